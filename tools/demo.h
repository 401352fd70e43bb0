/* demo.h - `humpback demo`: the whole method on the miniature world, from nothing - public domain

     1  the world's files, a vocabulary, a base model pretrained on its web
     2  the loop, as for anybody's data: hbk_loop_run
     3  what the loop is compared with: models trained on augmented data alone, and without tags
     4  measuring: the oracle judges instructions, ratings and answers
     5  tables, on the screen and in the report

   Knowledge of the oracle enters training by the pretraining web alone (rated forum threads) and, as in any
   supervised seed, by its right answers. */

#ifndef DEMO_H_INCLUDED
#define DEMO_H_INCLUDED

#include "tinyworld.h"

typedef struct demo_options {
    uint64_t seed; /* of the world and of everything random */
    bool lora;     /* finetunings as LoRA; pretraining is always full */
    const char *dir;
    tiny_level level;
} demo_options;

/* One model under one tag, judged on the evaluation prompts; shares of 1. */
typedef struct demo_row {
    const char *name, *key;
    double win, content, right, style, common, rare, score;
} demo_row;

/* One curation against the oracle. */
typedef struct demo_rater {
    const char *name;
    hbk_int kept, unparsable, n;
    hbk_int of_kind[TINY_KINDS], kept_of_kind[TINY_KINDS]; /* by the oracle's verdict */
    double precision, recall;
} demo_rater;

enum { DEMO_ROWS = 16, DEMO_TIMES = 24 };
typedef struct demo {
    demo_options o;
    tiny_world w;
    char base_dir[512], run_dir[512];
    hbk_tokenizer *tok;
    hbk_model *base;
    hbk_template *tmpl;
    hbk_dataset replay;
    const hbk_progress *progress;
    demo_row rows[DEMO_ROWS];
    int n_rows;
    demo_rater raters[4];
    int n_raters;
    double recovered, good; /* shares of the candidates: latent instruction found; right pair by the oracle */
    double times[DEMO_TIMES];
    const char *time_names[DEMO_TIMES];
    int n_times;
    double started;
} demo;

static double demo_now(const demo *d)
{
    return d->progress && d->progress->now ? d->progress->now(d->progress->ctx) : 0;
}

/* Closes the stage that began with the last call. */
static void demo_lap(demo *d, const char *name)
{
    double now = demo_now(d);
    if (d->n_times < DEMO_TIMES) {
        d->time_names[d->n_times] = name;
        d->times[d->n_times++] = now - d->started;
    }
    d->started = now;
}

/* ==== 1  THE BASE MODEL ====================================================== */

/* Text of a "text" JSONL file, one document a line. */
static bool demo_read_texts(const char *path, hbk_text *out, hbk_error *err)
{
    hbk_jsonl_reader *in = hbk_jsonl_open(path, NULL, err);
    json_t *row;
    int got = in ? 0 : -1;
    while (in && (got = hbk_jsonl_next(in, &row, err)) > 0) {
        hbk_text_add(out, json_string_value(json_object_get(row, "text")));
        hbk_text_add(out, "\n");
    }
    hbk_jsonl_close(in);
    return got == 0 && hbk_text_ok(out, err);
}

/* The rater's and the templates' words must be single tokens: a small model stumbles over parts. */
static bool demo_check_vocabulary(const hbk_tokenizer *tok, hbk_error *err)
{
    static const char *const words[] = {"1",      "2",        "3",      "4",       "5",  "score",
                                        "review", "question", "answer", "readers", "ask"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        char piece[32];
        snprintf(piece, sizeof piece, "\xe2\x96\x81%s", words[i]);
        if (hbk_tokenizer_find(tok, piece) < 0)
            return hbk_fail(err, HBK_ERROR_DATA,
                            "the vocabulary learned from the tiny web lacks the word \"%s\"", words[i]);
    }
    return true;
}

static hbk_config demo_config(hbk_int vocab_size)
{
    hbk_config c;
    memset(&c, 0, sizeof c);
    c.n_layers = 4;
    c.n_heads = c.n_kv_heads = 4;
    c.head_dim = 24;
    c.dim = 96;
    c.ffn_dim = 256;
    c.vocab_size = vocab_size;
    c.context_length = 128;
    c.rms_norm_eps = 1e-5;
    c.rope_theta = 10000;
    c.bos = 1;
    c.eos[0] = 2;
    c.n_eos = 1;
    return c;
}

/* The web as one stream, bos and eos around each document, cut every 128 tokens without regard to them. */
static bool demo_windows(hbk_dataset *d, const char *web, const hbk_tokenizer *tok, hbk_int context,
                         hbk_error *err)
{
    hbk_dataset documents;
    memset(&documents, 0, sizeof documents);
    bool ok = hbk_dataset_add_texts(&documents, web, tok, 100000, err);
    for (hbk_int i = 0; ok && i + context < documents.tokens.n; i += context)
        ok = hbk_dataset_add(d, documents.tokens.data + i, context + 1, 1, err);
    hbk_dataset_free(&documents);
    return ok;
}

static hbk_train_options demo_pretraining(uint64_t seed)
{
    hbk_train_options o = hbk_train_defaults(true);
    o.dropout = 0;
    o.lr = 7e-3;
    o.lr_end = 0.05 * 7e-3;
    o.warmup = 40;
    o.steps = 1200;
    o.batch = 8;
    o.max_tokens = 1024;
    o.seed = seed;
    o.save_every = 0;
    return o;
}

static bool demo_base(demo *d, hbk_error *err)
{
    char web[512], replay[512];
    hbk_text text;
    hbk_dataset windows;
    memset(&text, 0, sizeof text);
    memset(&windows, 0, sizeof windows);
    bool ok = hbk_dir_make(d->o.dir, err) && hbk_path(web, d->o.dir, "web.jsonl", err) &&
              hbk_path(replay, d->o.dir, "replay.jsonl", err) &&
              hbk_path(d->base_dir, d->o.dir, "base", err) &&
              tiny_write_web(&d->w, web, tiny_setting_of(&d->w)->web_tokens, NULL, NULL, err) &&
              tiny_write_replay(&d->w, replay, TINY_REPLAYS, NULL, err) && demo_read_texts(web, &text, err);
    if (ok) d->tok = hbk_tokenizer_train(text.data, text.len, 640, false, NULL, err);
    ok = d->tok && demo_check_vocabulary(d->tok, err) && demo_windows(&windows, web, d->tok, 128, err);
    hbk_text_free(&text);
    if (ok) {
        hbk_config c = demo_config(hbk_tokenizer_size(d->tok));
        hbk_model *random = hbk_model_random(&c, d->o.seed, NULL, err);
        hbk_train_options o = demo_pretraining(d->o.seed);
        o.steps = tiny_setting_of(&d->w)->steps;
        hbk_train_data data = {&windows, NULL, NULL};
        hbk_recipe recipe;
        memset(&recipe, 0, sizeof recipe);
        recipe.tok = d->tok;
        ok = random && hbk_finetune(random, &data, &o, NULL, &recipe, d->base_dir, d->progress, NULL, err);
        hbk_model_free(random);
    }
    hbk_dataset_free(&windows);
    if (ok) d->base = hbk_model_load(d->base_dir, NULL, err);
    ok = d->base && hbk_dataset_add_texts(&d->replay, replay, d->tok, 128, err);
    return ok;
}

/* ==== 2  THE LOOP ============================================================ */

/* A finetuning of this world: batches of 16 examples and some replayed documents, which keep the small model
   from forgetting how to rate. */
static hbk_train_options demo_finetuning(const demo *d, double lr, double epochs, hbk_int replay)
{
    hbk_train_options o = hbk_train_defaults(!d->o.lora);
    o.dropout = 0;
    o.lr = d->o.lora ? 4e-3 : lr;
    o.lr_end = 0.1 * o.lr;
    o.warmup = 10;
    o.batch = 16;
    o.replay = replay;
    o.epochs = epochs;
    o.seed = d->o.seed;
    o.save_every = 0;
    return o;
}

/* M1, M2 and what they are compared with. */
static hbk_train_options demo_later(const demo *d)
{
    return demo_finetuning(d, 7e-4, 4, 8);
}

static bool demo_loop(demo *d, hbk_loop_result *result, hbk_error *err)
{
    char seed[512], segments[512], replay[512], tmpl[512];
    bool ok = hbk_path(seed, d->o.dir, "seed.jsonl", err) &&
              hbk_path(segments, d->o.dir, "segments.jsonl", err) &&
              hbk_path(replay, d->o.dir, "replay.jsonl", err) &&
              hbk_path(tmpl, d->o.dir, "template.json", err) && hbk_path(d->run_dir, d->o.dir, "run", err) &&
              tiny_write_seed(&d->w, seed, TINY_SEED_PAIRS, NULL, err) &&
              tiny_write_segments(&d->w, segments, tiny_setting_of(&d->w)->segments, NULL, err) &&
              hbk_file_write(tmpl, TINY_TEMPLATE, strlen(TINY_TEMPLATE), err);
    if (ok) d->tmpl = hbk_template_load(tmpl, NULL, err);
    if (!d->tmpl) return false;
    hbk_loop_options o = hbk_loop_defaults();
    o.seed_path = seed;
    o.corpus_path = segments;
    o.replay_path = replay;
    o.model_name = "base";
    o.tmpl = d->tmpl;
    o.tag_seed = TINY_TAG_SEED;
    o.tag_web = TINY_TAG_WEB;
    o.inference_tags = "seed";
    o.seed_repeat = 3;
    o.seed = d->o.seed;
    o.myx = demo_finetuning(d, 1e-3, 8, 6);
    o.m0 = demo_finetuning(d, 3e-4, 5, 6);
    o.mt = demo_later(d);
    o.augment.sampling.max_new = 20;
    o.curate.decode.sampling.max_new = 16;
    return hbk_loop_run(d->base, d->tok, &o, d->run_dir, d->progress, result, NULL, err);
}

/* ==== 3  COMPARISONS ========================================================= */

/* n of the candidates with a usable instruction, drawn at random. */
static bool demo_uncurated(demo *d, const char *path, hbk_int n, hbk_error *err)
{
    char candidates[512];
    hbk_pairs all, some;
    memset(&all, 0, sizeof all);
    memset(&some, 0, sizeof some);
    hbk_jsonl_writer *out = NULL;
    bool ok = hbk_path(candidates, d->run_dir, "candidates.jsonl", err);
    hbk_jsonl_reader *in = ok ? hbk_jsonl_open(candidates, NULL, err) : NULL;
    json_t *row;
    int got = in ? 0 : -1;
    while (in && (got = hbk_jsonl_next(in, &row, err)) > 0) {
        if (strcmp(json_string_value(json_object_get(row, "status")), "ok")) continue;
        if (!hbk_pairs_add(&all, json_string_value(json_object_get(row, "id")),
                           json_string_value(json_object_get(row, "instruction")),
                           json_string_value(json_object_get(row, "output")), "aug", NAN, err)) {
            got = -1;
            break;
        }
    }
    hbk_jsonl_close(in);
    hbk_int *order = got == 0 ? (hbk_int *)hbk_alloc(NULL, all.n, sizeof *order, err) : NULL;
    ok = order && (out = hbk_jsonl_create(path, 0, NULL, err)) != NULL;
    if (ok) {
        hbk_rng r = hbk_rng_at(d->o.seed, "uncurated", 0);
        for (hbk_int i = 0; i < all.n; i++) order[i] = i;
        hbk_rng_shuffle(&r, order, all.n);
        for (hbk_int i = 0; ok && i < n && i < all.n; i++) {
            const hbk_pair *p = &all.data[order[i]];
            json_t *j = json_pack("{s:s s:s s:s s:s}", "id", p->id, "instruction", p->instruction, "output",
                                  p->output, "source", "aug");
            ok = hbk_jsonl_write(out, j, err);
            json_decref(j);
        }
    }
    if (out && !hbk_jsonl_finish(out, ok ? err : NULL)) ok = false;
    hbk_free(NULL, order);
    hbk_pairs_free(&all);
    return ok;
}

/* A model beside the loop: finetuned from the base on `repeat` copies of the seed and a curated file. */
static bool demo_arm(demo *d, const char *name, const char *data, hbk_int repeat, const char *tag_seed,
                     const char *tag_web, hbk_error *err)
{
    char dir[512], seed[512];
    hbk_pairs people, web;
    hbk_dataset set;
    hbk_recipe recipe;
    memset(&people, 0, sizeof people);
    memset(&web, 0, sizeof web);
    memset(&set, 0, sizeof set);
    memset(&recipe, 0, sizeof recipe);
    recipe.tok = d->tok;
    recipe.tmpl = d->tmpl;
    recipe.base_name = "base";
    hbk_train_options o = demo_later(d);
    bool ok = hbk_path(dir, d->o.dir, name, err) && hbk_path(seed, d->o.dir, "seed.jsonl", err) &&
              hbk_pairs_load(&people, seed, "seed", err) && hbk_pairs_load(&web, data, "aug", err);
    for (hbk_int i = 0; ok && i < repeat; i++)
        ok = hbk_dataset_add_pairs(&set, &people, d->tmpl, d->tok, HBK_FORWARD, tag_seed, tag_web, 128, err);
    ok = ok && hbk_dataset_add_pairs(&set, &web, d->tmpl, d->tok, HBK_FORWARD, tag_seed, tag_web, 128, err);
    hbk_train_data train = {&set, &d->replay, NULL};
    ok = ok && hbk_finetune(d->base, &train, &o, NULL, &recipe, dir, d->progress, NULL, err);
    hbk_dataset_free(&set);
    hbk_pairs_free(&people);
    hbk_pairs_free(&web);
    return ok;
}

/* ==== 4  MEASURING =========================================================== */

/* Judges one answer into the sums of a row. */
static void demo_judge(const demo *d, hbk_int i, const char *answer, demo_row *row, hbk_int *n_common,
                       hbk_int *n_rare)
{
    char instruction[TINY_TEXT], reference[TINY_TEXT];
    tiny_question q = tiny_evaluation(&d->w, i, instruction);
    tiny_reference(&d->w, i, reference);
    tiny_verdict v = tiny_judge(&d->w, instruction, answer), r = tiny_judge(&d->w, instruction, reference);
    bool right = v.score >= 4;
    int rare = tiny_is_rare(&d->w, q); /* -1: a list, which asks for no single animal */
    row->win += tiny_win(v, r);
    row->content += tiny_content_win(v, r);
    row->right += right;
    row->style += v.style;
    row->score += v.score;
    if (rare == 0) row->common += right, ++*n_common;
    if (rare == 1) row->rare += right, ++*n_rare;
}

/* Answers all evaluation prompts with the model in `dir` (NULL: the base) under a tag, and adds a row. */
static bool demo_evaluate(demo *d, const char *name, const char *key, const char *dir, const char *tag,
                          hbk_error *err)
{
    enum { N = TINY_EVALUATIONS };
    demo_row row;
    hbk_tuned t;
    hbk_tokens prompts[N];
    hbk_request requests[N];
    hbk_int n_common = 0, n_rare = 0;
    memset(&row, 0, sizeof row);
    memset(&t, 0, sizeof t);
    memset(prompts, 0, sizeof prompts);
    memset(requests, 0, sizeof requests);
    row.name = name;
    row.key = key;
    t.model = d->base;
    bool ok = !dir || hbk_tuned_load(&t, d->base, dir, NULL, err);
    for (hbk_int i = 0; ok && i < N; i++) {
        char instruction[TINY_TEXT];
        hbk_render r;
        memset(&r, 0, sizeof r);
        tiny_evaluation(&d->w, i, instruction);
        r.instruction = instruction;
        r.tag = tag;
        ok = hbk_template_tokens(d->tmpl, d->tok, &r, &prompts[i], NULL, err);
        requests[i].prompt = prompts[i].data;
        requests[i].n_prompt = prompts[i].n;
        requests[i].rng = hbk_rng_at(d->o.seed, "evaluate", (uint64_t)i);
    }
    hbk_sampling o = hbk_sampling_defaults();
    o.max_new = 56;
    hbk_session *s = ok ? hbk_session_new(t.model, t.adapter, 64, 128, NULL, err) : NULL;
    ok = s && hbk_generate(s, requests, N, &o, NULL, err);
    for (hbk_int i = 0; ok && i < N; i++) {
        hbk_text answer;
        memset(&answer, 0, sizeof answer);
        ok = hbk_tokenizer_decode(d->tok, requests[i].output.data, requests[i].output.n, 0, &answer, err);
        const char *text = hbk_text_string(&answer);
        demo_judge(d, i, text + strspn(text, " "), &row, &n_common, &n_rare);
        hbk_text_free(&answer);
    }
    for (hbk_int i = 0; i < N; i++) {
        hbk_tokens_free(&prompts[i]);
        hbk_tokens_free(&requests[i].output);
    }
    hbk_session_free(s);
    hbk_tuned_free(&t);
    row.win /= N, row.content /= N, row.right /= N, row.style /= N, row.score /= N;
    row.common /= (double)n_common;
    row.rare /= (double)n_rare;
    if (ok) d->rows[d->n_rows++] = row;
    return ok;
}

/* What the oracle thinks of the candidates, and of curation k's choice among them. */
static bool demo_rate(demo *d, const char *name, int k, hbk_error *err)
{
    char candidates[512], ratings[512], file[32];
    demo_rater *out = &d->raters[d->n_raters];
    hbk_int kept = 0, positive = 0, both = 0, n = 0, recovered = 0;
    hbk_jsonl_reader *c = NULL, *r = NULL;
    json_t *row, *rating = NULL;
    snprintf(file, sizeof file, "ratings-%d.jsonl", k);
    out->name = name;
    bool ok = hbk_path(candidates, d->run_dir, "candidates.jsonl", err) &&
              hbk_path(ratings, d->run_dir, file, err) &&
              (c = hbk_jsonl_open(candidates, NULL, err)) != NULL &&
              (r = hbk_jsonl_open(ratings, NULL, err)) != NULL;
    for (int got; ok && (got = hbk_jsonl_next(c, &row, err)) != 0; n++) {
        ok = got > 0;
        if (!ok) break;
        const char *x = json_string_value(json_object_get(row, "instruction"));
        const char *id = json_string_value(json_object_get(row, "id"));
        char text[TINY_TEXT];
        tiny_question latent = tiny_segment(&d->w, tiny_index(id), text, NULL);
        tiny_verdict verdict = tiny_judge(&d->w, x, text);
        bool good = verdict.score == 5, keep = false;
        recovered += tiny_recovered(x, latent);
        if (!strcmp(json_string_value(json_object_get(row, "status")), "ok")) {
            ok = hbk_jsonl_next(r, &rating, err) > 0;
            const json_t *score = ok ? json_object_get(rating, "score") : NULL;
            keep = json_is_number(score) && json_number_value(score) >= 4.5;
            out->unparsable += ok && !json_is_number(score);
        }
        out->of_kind[verdict.kind]++;
        out->kept_of_kind[verdict.kind] += keep;
        kept += keep;
        positive += good;
        both += keep && good;
    }
    hbk_jsonl_close(c);
    hbk_jsonl_close(r);
    if (!ok) return false;
    out->n = n;
    out->kept = kept;
    out->precision = kept ? (double)both / (double)kept : (double)NAN;
    out->recall = positive ? (double)both / (double)positive : (double)NAN;
    d->recovered = (double)recovered / (double)n;
    d->good = (double)positive / (double)n;
    d->n_raters++;
    return true;
}

static const demo_row *demo_find(const demo *d, const char *key)
{
    for (int i = 0; i < d->n_rows; i++)
        if (!strcmp(d->rows[i].key, key)) return &d->rows[i];
    return NULL;
}

/* ==== 5  TABLES ============================================================== */

/* A finding of the paper as the difference of two rows. */
typedef struct demo_finding {
    const char *text, *a, *b;
} demo_finding;
static const demo_finding demo_findings[] = {
    {"(a) curated data on top of the seed helps: M2 - M0", "m2", "m0"},
    {"(b) curated beats uncurated at equal N, alone", "a5", "uncurated"},
    {"(c) seed and curated together beat curated alone", "m2", "a5"},
    {"(d) tags help: M2 under the seed tag - untagged", "m2", "untagged"},
    {"(d) the tag is needed at inference: seed tag - none", "m2", "none"},
    {"(d) both tags, seed tag last - untagged", "web,seed", "untagged"},
    {"(e) a second iteration: M2 - M1", "m2", "m1"},
};
enum { DEMO_FINDINGS = sizeof demo_findings / sizeof *demo_findings };

static const char demo_note[] = "One world and one training path: each figure has a standard error of 2 to 3 "
                                "points. A claim needs several worlds.";

static void demo_print(const demo *d, FILE *f)
{
    fprintf(f, "\nworld %llu, %s finetuning\n\n", (unsigned long long)d->o.seed, d->o.lora ? "LoRA" : "full");
    fprintf(f,
            "backward model: %.1f %% of the latent instructions recovered; %.1f %% of the candidates are "
            "right pairs\n\n",
            100 * d->recovered, 100 * d->good);
    fprintf(f, "%-8s %10s %10s %8s %11s\n", "rater", "kept", "precision", "recall", "unparsable");
    for (int i = 0; i < d->n_raters; i++) {
        const demo_rater *r = &d->raters[i];
        fprintf(f, "%-8s %5lld/%4lld %10.3f %8.3f %11lld\n", r->name, (long long)r->kept, (long long)r->n,
                r->precision, r->recall, (long long)r->unparsable);
    }
    const int n_kinds = tiny_setting_of(&d->w)->n_kinds;
    fprintf(f, "\nshare kept (%%), by what the oracle finds\n%-8s", "");
    for (int k = 0; k < n_kinds; k++) fprintf(f, " %6s", tiny_kind_name((tiny_kind)k));
    for (int i = 0; i < d->n_raters; i++) {
        const demo_rater *r = &d->raters[i];
        fprintf(f, "\n%-8s", r->name);
        for (int k = 0; k < n_kinds; k++)
            fprintf(f, " %6.0f",
                    100.0 * (double)r->kept_of_kind[k] / (double)(r->of_kind[k] ? r->of_kind[k] : 1));
    }
    fprintf(f, "\n\n%-44s %6s %6s %6s %7s %6s %6s\n", "answers, judged by the oracle (%)", "right", "common",
            "rare", "style", "win", "score");
    for (int i = 0; i < d->n_rows; i++) {
        const demo_row *r = &d->rows[i];
        fprintf(f, "%-44s %6.1f %6.1f %6.1f %7.1f %6.1f %6.2f\n", r->name, 100 * r->right, 100 * r->common,
                100 * r->rare, 100 * r->style, 100 * r->win, r->score);
    }
    fprintf(f, "\n%-56s %12s %6s\n", "the paper's findings, as differences in points", "right", "win");
    for (int i = 0; i < DEMO_FINDINGS; i++) {
        const demo_row *a = demo_find(d, demo_findings[i].a), *b = demo_find(d, demo_findings[i].b);
        if (a && b)
            fprintf(f, "%-56s %+12.1f %+6.1f\n", demo_findings[i].text, 100 * (a->right - b->right),
                    100 * (a->win - b->win));
    }
    if (d->n_raters == 2)
        fprintf(f, "%-56s %+12.1f\n", "(e) M1 rates better than M0: precision",
                100 * (d->raters[1].precision - d->raters[0].precision));
    fprintf(f, "\n%s\n\nseconds:", demo_note);
    double total = 0;
    for (int i = 0; i < d->n_times; i++) {
        fprintf(f, " %s %.1f%s", d->time_names[i], d->times[i], i + 1 < d->n_times ? "," : "");
        total += d->times[i];
    }
    fprintf(f, "; in all %.0f\n", total);
}

static json_t *demo_percent(double share)
{
    return isfinite(share) ? json_real(floor(1000 * share + 0.5) / 10) : json_null();
}

/* Everything as numbers, for programs. */
static json_t *demo_json(const demo *d)
{
    json_t *rows = json_object(), *raters = json_object(), *times = json_object();
    for (int i = 0; i < d->n_rows; i++) {
        const demo_row *r = &d->rows[i];
        json_object_set_new(rows, r->key,
                            json_pack("{s:f s:f s:f s:f s:f s:f s:f}", "right", r->right, "common", r->common,
                                      "rare", r->rare, "style", r->style, "win", r->win, "content_win",
                                      r->content, "score", r->score));
    }
    for (int i = 0; i < d->n_raters; i++) {
        const demo_rater *r = &d->raters[i];
        json_object_set_new(raters, r->name,
                            json_pack("{s:I s:I s:I s:o s:o}", "kept", (json_int_t)r->kept, "n",
                                      (json_int_t)r->n, "unparsable", (json_int_t)r->unparsable, "precision",
                                      isfinite(r->precision) ? json_real(r->precision) : json_null(),
                                      "recall", isfinite(r->recall) ? json_real(r->recall) : json_null()));
    }
    for (int i = 0; i < d->n_times; i++) json_object_set_new(times, d->time_names[i], json_real(d->times[i]));
    return json_pack("{s:I s:b s:f s:f s:o s:o s:o}", "world", (json_int_t)d->o.seed, "lora", d->o.lora,
                     "recovered", d->recovered, "right_pairs", d->good, "raters", raters, "rows", rows,
                     "seconds", times);
}

/* The tables of demo_print as extra.json, which the report shows first. */
static bool demo_extra(const demo *d, hbk_error *err)
{
    char path[512];
    json_t *answers = json_array(), *findings = json_array(), *raters = json_array();
    for (int i = 0; i < d->n_rows; i++) {
        const demo_row *r = &d->rows[i];
        json_array_append_new(answers, json_pack("[s,o,o,o,o,o,f]", r->name, demo_percent(r->right),
                                                 demo_percent(r->common), demo_percent(r->rare),
                                                 demo_percent(r->style), demo_percent(r->win),
                                                 floor(100 * r->score + 0.5) / 100));
    }
    for (int i = 0; i < DEMO_FINDINGS; i++) {
        const demo_row *a = demo_find(d, demo_findings[i].a), *b = demo_find(d, demo_findings[i].b);
        if (a && b)
            json_array_append_new(findings, json_pack("[s,o,o]", demo_findings[i].text,
                                                      demo_percent(a->right - b->right),
                                                      demo_percent(a->win - b->win)));
    }
    for (int i = 0; i < d->n_raters; i++) {
        const demo_rater *r = &d->raters[i];
        json_array_append_new(raters, json_pack("[s,I,o,o,I]", r->name, (json_int_t)r->kept,
                                                demo_percent(r->precision), demo_percent(r->recall),
                                                (json_int_t)r->unparsable));
    }
    char title[64], recovered[160];
    snprintf(title, sizeof title, "The miniature world %llu, %s finetuning", (unsigned long long)d->o.seed,
             d->o.lora ? "LoRA" : "full");
    snprintf(recovered, sizeof recovered,
             "The backward model recovered %.1f %% of the latent instructions; %.1f %% of the candidates are "
             "right "
             "pairs by the oracle.",
             100 * d->recovered, 100 * d->good);
    json_t *j = json_pack(
        "{s:s s:[s,s] s:[{s:s s:[s,s,s] s:o s:s},{s:s s:[s,s,s,s,s,s,s] s:o s:s s:i},{s:s s:[s,s,s,s,s] s:o "
        "s:s}]}",
        "title", title, "notes", demo_note, recovered, "tables", "title", "The paper's findings, in points",
        "columns", "finding", "right", "win", "rows", findings, "note",
        "Differences of the rows below: right answers, and wins against a fixed reference writer.", "title",
        "Answers, judged by the oracle", "columns", "model", "right %", "common %", "rare %", "style %",
        "win %", "score", "rows", answers, "note",
        "Right: score 4 or 5. Common and rare: questions about animals that the web knows well or hardly.",
        "bar", 1, "title", "Raters against the oracle", "columns", "rater", "kept", "precision %", "recall %",
        "unparsable", "rows", raters, "note", "Positive: pairs that the oracle gives a 5.");
    bool ok = j && hbk_path(path, d->run_dir, "extra.json", err) && hbk_json_write(path, j, err);
    json_decref(j);
    return ok;
}

/* ==== the demo =============================================================== */

static bool demo_arms(demo *d, hbk_error *err)
{
    char curated[512], uncurated[512];
    hbk_int n;
    bool ok = hbk_path(curated, d->run_dir, "curated-2.jsonl", err) &&
              hbk_path(uncurated, d->o.dir, "uncurated.jsonl", err) && hbk_jsonl_count(curated, &n, err) &&
              demo_uncurated(d, uncurated, n, err) &&
              demo_arm(d, "a5-only", curated, 0, NULL, TINY_TAG_WEB, err) &&
              demo_arm(d, "uncurated-only", uncurated, 0, NULL, TINY_TAG_WEB, err) &&
              demo_arm(d, "untagged", curated, 3, NULL, NULL, err);
    return ok;
}

static bool demo_evaluations(demo *d, hbk_error *err)
{
    char m0[512], m1[512], m2[512], a5[512], uncurated[512], untagged[512];
    const char *seed_web = TINY_TAG_SEED " " TINY_TAG_WEB, *web_seed = TINY_TAG_WEB " " TINY_TAG_SEED;
    return hbk_path(m0, d->run_dir, "m0", err) && hbk_path(m1, d->run_dir, "m1", err) &&
           hbk_path(m2, d->run_dir, "m2", err) && hbk_path(a5, d->o.dir, "a5-only", err) &&
           hbk_path(uncurated, d->o.dir, "uncurated-only", err) &&
           hbk_path(untagged, d->o.dir, "untagged", err) &&
           demo_evaluate(d, "base model, no tag", "base", NULL, NULL, err) &&
           demo_evaluate(d, "M0: seed", "m0", m0, TINY_TAG_SEED, err) &&
           demo_evaluate(d, "M1: seed + curated-1", "m1", m1, TINY_TAG_SEED, err) &&
           demo_evaluate(d, "M2: seed + curated-2, seed tag", "m2", m2, TINY_TAG_SEED, err) &&
           demo_evaluate(d, "M2, tags web seed", "web,seed", m2, web_seed, err) &&
           demo_evaluate(d, "M2, tags seed web", "seed,web", m2, seed_web, err) &&
           demo_evaluate(d, "M2, web tag", "web", m2, TINY_TAG_WEB, err) &&
           demo_evaluate(d, "M2, no tag", "none", m2, NULL, err) &&
           demo_evaluate(d, "curated-2 only, web tag", "a5", a5, TINY_TAG_WEB, err) &&
           demo_evaluate(d, "uncurated only, equal N, web tag", "uncurated", uncurated, TINY_TAG_WEB, err) &&
           demo_evaluate(d, "seed + curated-2 without tags", "untagged", untagged, NULL, err);
}

static bool demo_stages(demo *d, hbk_error *err)
{
    hbk_loop_result result;
    memset(&result, 0, sizeof result);
    if (!demo_base(d, err)) return false;
    demo_lap(d, "pretraining");
    if (!demo_loop(d, &result, err)) return false;
    demo_lap(d, "loop");
    if (result.stopped[0])
        return hbk_fail(err, HBK_ERROR_DATA,
                        "the loop ended early: %s. In this world training has gone astray; try "
                        "another --seed",
                        result.stopped);
    if (!demo_rate(d, "M0", 1, err) || !demo_rate(d, "M1", 2, err) || !demo_arms(d, err)) return false;
    demo_lap(d, "comparisons");
    if (!demo_evaluations(d, err)) return false;
    demo_lap(d, "evaluation");
    return demo_extra(d, err);
}

/* Runs the demo into o->dir; *result (may be NULL) is a JSON object that the caller owns. The tables go to
   `tables` (NULL: nowhere). */
static bool tool_demo(const demo_options *o, const hbk_progress *progress, FILE *tables, json_t **result,
                      hbk_error *err)
{
    demo *d = (demo *)hbk_alloc(NULL, 1, sizeof *d, err);
    if (!d) return false;
    d->o = *o;
    d->progress = progress;
    d->started = demo_now(d);
    tiny_world_make_at(&d->w, o->seed, o->level);
    bool ok = demo_stages(d, err);
    if (ok && tables) demo_print(d, tables);
    if (ok && result) *result = demo_json(d);
    hbk_dataset_free(&d->replay);
    hbk_template_free(d->tmpl);
    hbk_tokenizer_free(d->tok);
    hbk_model_free(d->base);
    hbk_free(NULL, d);
    return ok;
}

#endif
