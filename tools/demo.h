/* demo.h - `humpback demo`: the whole method on the miniature world, from nothing - public domain

     1  the world's files, a vocabulary, a base model pretrained on its web
     2  the loop, as for anybody's data: hbk_loop_run
     3  what the loop is compared with, the arms: each a row that says what it is trained on
     4  measuring: the oracle judges instructions, ratings and answers
     5  tables, on the screen and in the report

   Knowledge of the oracle enters the method by the pretraining web alone (rated forum threads) and, as in any
   supervised seed, by its right answers; arms that learn what the oracle picks or says are named so, and the
   method learns nothing from them. `humpback reproduce` (reproduce.h) runs the same stages over several
   worlds, with many more arms. */

#ifndef DEMO_H_INCLUDED
#define DEMO_H_INCLUDED

#include "tinyworld.h"

typedef struct demo_options {
    uint64_t seed; /* of the world and of everything random */
    bool lora;     /* finetunings as LoRA; pretraining is always full */
    const char *dir;
    tiny_level level;
} demo_options;

/* The size of a base model. */
typedef struct demo_shape {
    hbk_int n_layers, n_heads, dim, ffn_dim;
} demo_shape;
static const demo_shape demo_full_shape = {4, 4, 96, 256}; /* 0.49 million parameters */

/* What an arm learns besides the seed. Those that are picked are picked among the candidates with a usable
   instruction, each by a random stream of its own. */
typedef enum demo_source {
    DEMO_NOTHING,
    DEMO_CURATED_1,  /* what M0 gave a 5 */
    DEMO_CURATED_2,  /* what M1 gave a 5 */
    DEMO_CURATED_3,  /* what M2 gave a 5; the loop has no use for it */
    DEMO_FOURS,      /* what M1 gave a 4 or a 5 */
    DEMO_UNCURATED,  /* any candidates */
    DEMO_ORACLE,     /* what the oracle gives a 5 */
    DEMO_GOLD,       /* pairs like the seed's, about the whole world */
    DEMO_SOURCES
} demo_source;

typedef enum demo_training {
    DEMO_AS_M0, /* the settings of M0 */
    DEMO_AS_M2, /* those of M1 and M2 */
    DEMO_LONG   /* the same, and as many steps as M2, however little there is to learn */
} demo_training;

/* A model beside the loop, finetuned from the base like all others. */
typedef struct demo_arm {
    const char *key; /* its folder */
    hbk_int repeat;  /* copies of the seed */
    demo_source source;
    hbk_int n;       /* pairs from the source; 0: as many as the last curation kept; -1: all */
    bool tags;       /* by source, as in the loop, or none at all */
    demo_training training;
} demo_arm;

/* One model under one tag, judged on the evaluation prompts; shares of 1. In the hard world also of the
   prompts about animals with a rumour, and of those that combine what nobody taught; NAN in the plain one. */
typedef struct demo_row {
    const char *name, *key;
    double win, content, right, style, common, rare, score;
    double misled, held;
} demo_row;

/* How many of the prompts are of which sort. */
typedef struct demo_sorts {
    hbk_int common, rare, misled, held;
} demo_sorts;

/* One curation against the oracle. */
typedef struct demo_rater {
    const char *name;
    hbk_int kept, rated, unparsable, n; /* n: candidates, rated or not */
    hbk_int of_kind[TINY_KINDS], kept_of_kind[TINY_KINDS]; /* by the oracle's verdict */
    double precision, recall;
    double recovered, good; /* shares of the candidates: latent instruction found; right pair by the oracle */
} demo_rater;

enum { DEMO_ROWS = 16, DEMO_TIMES = 24 };
typedef struct demo {
    demo_options o;
    tiny_world w;
    demo_shape shape;
    hbk_int n_segments;
    bool apart; /* arms are finetuned in another way than the loop, whose models stand among them too */
    char data_dir[512], base_dir[512], run_dir[512], arm_dir[512];
    hbk_tokenizer *tok;
    hbk_model *base;
    hbk_template *tmpl;
    hbk_dataset replay;
    const hbk_progress *progress;
    demo_row rows[DEMO_ROWS];
    int n_rows;
    demo_rater raters[4];
    int n_raters;
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

static hbk_config demo_config(const demo_shape *shape, hbk_int vocab_size)
{
    hbk_config c;
    memset(&c, 0, sizeof c);
    c.n_layers = shape->n_layers;
    c.n_heads = c.n_kv_heads = shape->n_heads;
    c.head_dim = shape->dim / shape->n_heads;
    c.dim = shape->dim;
    c.ffn_dim = shape->ffn_dim;
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

/* The world's files: the web, replay, seed, segments, the template. The same bytes every time. */
static bool demo_write_world(const demo *d, hbk_error *err)
{
    char web[512], replay[512], seed[512], segments[512], tmpl[512];
    return hbk_dir_make(d->data_dir, err) && hbk_path(web, d->data_dir, "web.jsonl", err) &&
           hbk_path(replay, d->data_dir, "replay.jsonl", err) &&
           hbk_path(seed, d->data_dir, "seed.jsonl", err) &&
           hbk_path(segments, d->data_dir, "segments.jsonl", err) &&
           hbk_path(tmpl, d->data_dir, "template.json", err) &&
           tiny_write_web(&d->w, web, tiny_setting_of(&d->w)->web_tokens, NULL, NULL, err) &&
           tiny_write_replay(&d->w, replay, TINY_REPLAYS, NULL, err) &&
           tiny_write_seed(&d->w, seed, TINY_SEED_PAIRS, NULL, err) &&
           tiny_write_segments(&d->w, segments, d->n_segments, NULL, err) &&
           hbk_file_write(tmpl, TINY_TEMPLATE, strlen(TINY_TEMPLATE), err);
}

/* A vocabulary and a base model from the web, into base_dir. */
static bool demo_pretrain(const demo *d, hbk_error *err)
{
    char web[512];
    hbk_text text;
    hbk_dataset windows;
    hbk_tokenizer *tok = NULL;
    memset(&text, 0, sizeof text);
    memset(&windows, 0, sizeof windows);
    bool ok = hbk_path(web, d->data_dir, "web.jsonl", err) && demo_read_texts(web, &text, err);
    if (ok) tok = hbk_tokenizer_train(text.data, text.len, 640, false, NULL, err);
    ok = tok && demo_check_vocabulary(tok, err) && demo_windows(&windows, web, tok, 128, err);
    hbk_text_free(&text);
    if (ok) {
        hbk_config c = demo_config(&d->shape, hbk_tokenizer_size(tok));
        hbk_model *random = hbk_model_random(&c, d->o.seed, NULL, err);
        hbk_train_options o = demo_pretraining(d->o.seed);
        o.steps = tiny_setting_of(&d->w)->steps;
        hbk_train_data data = {&windows, NULL, NULL};
        hbk_recipe recipe;
        memset(&recipe, 0, sizeof recipe);
        recipe.tok = tok;
        ok = random && hbk_finetune(random, &data, &o, NULL, &recipe, d->base_dir, d->progress, NULL, err);
        hbk_model_free(random);
    }
    hbk_tokenizer_free(tok);
    hbk_dataset_free(&windows);
    return ok;
}

/* What every later stage reads. */
static bool demo_open(demo *d, hbk_error *err)
{
    char replay[512], tmpl[512];
    if (!hbk_path(replay, d->data_dir, "replay.jsonl", err) ||
        !hbk_path(tmpl, d->data_dir, "template.json", err))
        return false;
    d->base = hbk_model_load(d->base_dir, NULL, err);
    d->tok = d->base ? hbk_tokenizer_load(d->base_dir, NULL, err) : NULL;
    d->tmpl = d->tok ? hbk_template_load(tmpl, NULL, err) : NULL;
    return d->tmpl && hbk_dataset_add_texts(&d->replay, replay, d->tok, 128, err);
}

static void demo_close(demo *d)
{
    hbk_dataset_free(&d->replay);
    hbk_template_free(d->tmpl);
    hbk_tokenizer_free(d->tok);
    hbk_model_free(d->base);
    d->tmpl = NULL;
    d->tok = NULL;
    d->base = NULL;
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

static hbk_train_options demo_first(const demo *d)
{
    return demo_finetuning(d, 3e-4, 5, 6);
}

/* M1, M2 and what they are compared with. */
static hbk_train_options demo_later(const demo *d)
{
    return demo_finetuning(d, 7e-4, 4, 8);
}

static bool demo_loop(const demo *d, hbk_loop_result *result, hbk_error *err)
{
    char seed[512], segments[512], replay[512];
    if (!hbk_path(seed, d->data_dir, "seed.jsonl", err) ||
        !hbk_path(segments, d->data_dir, "segments.jsonl", err) ||
        !hbk_path(replay, d->data_dir, "replay.jsonl", err))
        return false;
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
    o.stop_unchanged = false; /* the table has a row for M2 */
    o.seed = d->o.seed;
    o.myx = demo_finetuning(d, 1e-3, 8, 6);
    o.m0 = demo_first(d);
    o.mt = demo_later(d);
    o.augment.decode.sampling.max_new = 20;
    o.curate.decode.sampling.max_new = 16;
    return hbk_loop_run(d->base, d->tok, &o, d->run_dir, d->progress, result, NULL, err);
}

/* ==== 3  COMPARISONS ========================================================= */

/* The folder of a model: one of the loop's or an arm. */
static bool demo_model_dir(const demo *d, const char *key, char dir[512], hbk_error *err)
{
    bool loop = !strcmp(key, "m0") || !strcmp(key, "m1") || !strcmp(key, "m2");
    return hbk_path(dir, loop && !d->apart ? d->run_dir : d->arm_dir, key, err);
}

/* Adds the usable candidates; with `oracle`, those alone that it gives a 5. */
static bool demo_candidates(const demo *d, bool oracle, hbk_pairs *out, hbk_error *err)
{
    char path[512];
    if (!hbk_path(path, d->run_dir, "candidates.jsonl", err)) return false;
    hbk_jsonl_reader *in = hbk_jsonl_open(path, NULL, err);
    json_t *row;
    int got = in ? 0 : -1;
    while (in && (got = hbk_jsonl_next(in, &row, err)) > 0) {
        const char *instruction = json_string_value(json_object_get(row, "instruction"));
        const char *output = json_string_value(json_object_get(row, "output"));
        if (strcmp(json_string_value(json_object_get(row, "status")), "ok")) continue;
        if (oracle && tiny_judge(&d->w, instruction, output).score < 5) continue;
        if (!hbk_pairs_add(out, json_string_value(json_object_get(row, "id")), instruction, output, "aug",
                           (double)NAN, err)) {
            got = -1;
            break;
        }
    }
    hbk_jsonl_close(in);
    return got == 0;
}

/* What curation k kept; k 0: what M1 gave a 4 or a 5. */
static bool demo_curated(const demo *d, int k, hbk_pairs *out, hbk_error *err)
{
    char path[512], name[32];
    snprintf(name, sizeof name, k ? "curated-%d.jsonl" : "fours.jsonl", k);
    if (!hbk_path(path, k ? d->run_dir : d->arm_dir, name, err)) return false;
    if (k == 0) {
        char candidates[512], ratings[512];
        hbk_curate_options o = hbk_curate_defaults();
        hbk_curate_counts counts;
        o.keep = 4;
        if (!hbk_path(candidates, d->run_dir, "candidates.jsonl", err) ||
            !hbk_path(ratings, d->run_dir, "ratings-2.jsonl", err) ||
            !hbk_select(&o, candidates, ratings, path, &counts, NULL, err))
            return false;
    }
    return hbk_pairs_load(out, path, "aug", err);
}

static bool demo_gold(const demo *d, hbk_pairs *out, hbk_error *err)
{
    bool ok = true;
    for (hbk_int i = 0; ok && i < TINY_GOLD_PAIRS; i++) {
        char id[32], instruction[TINY_TEXT], output[TINY_TEXT];
        snprintf(id, sizeof id, "gold-%05lld", (long long)i);
        tiny_gold_pair(&d->w, i, instruction, output);
        ok = hbk_pairs_add(out, id, instruction, output, "seed", (double)NAN, err);
    }
    return ok;
}

static bool demo_source_pairs(const demo *d, demo_source source, hbk_pairs *out, hbk_error *err)
{
    switch (source) {
    case DEMO_CURATED_1: return demo_curated(d, 1, out, err);
    case DEMO_CURATED_2: return demo_curated(d, 2, out, err);
    case DEMO_CURATED_3: return demo_curated(d, 3, out, err);
    case DEMO_FOURS: return demo_curated(d, 0, out, err);
    case DEMO_UNCURATED: return demo_candidates(d, false, out, err);
    case DEMO_ORACLE: return demo_candidates(d, true, out, err);
    case DEMO_GOLD: return demo_gold(d, out, err);
    case DEMO_NOTHING:
    case DEMO_SOURCES: break;
    }
    return true;
}

/* Leaves n of the pairs, drawn at random; fewer than n stay as they are. The order of the draw is the same
   for every n, so that smaller sets are parts of the larger. */
static bool demo_draw(const demo *d, demo_source source, hbk_pairs *pairs, hbk_int n, hbk_error *err)
{
    static const char *const streams[DEMO_SOURCES] = {
        "", "curated 1", "curated 2", "curated 3", "fours", "uncurated", "oracle", "gold"};
    if (n >= pairs->n) return true;
    hbk_int *order = (hbk_int *)hbk_alloc(NULL, pairs->n, sizeof *order, err);
    if (!order) return false;
    hbk_pairs drawn;
    memset(&drawn, 0, sizeof drawn);
    hbk_rng r = hbk_rng_at(d->o.seed, streams[source], 0);
    for (hbk_int i = 0; i < pairs->n; i++) order[i] = i;
    hbk_rng_shuffle(&r, order, pairs->n);
    bool ok = true;
    for (hbk_int i = 0; ok && i < n; i++) {
        const hbk_pair *p = &pairs->data[order[i]];
        ok = hbk_pairs_add(&drawn, p->id, p->instruction, p->output, p->source, p->score, err);
    }
    hbk_free(NULL, order);
    hbk_pairs_free(pairs);
    *pairs = drawn;
    return ok;
}

/* The steps that a finetuned folder took. */
static bool demo_steps_of(const demo *d, const char *key, hbk_int *steps, hbk_error *err)
{
    char dir[512], path[512];
    if (!demo_model_dir(d, key, dir, err) || !hbk_path(path, dir, "train.json", err)) return false;
    json_t *j = hbk_json_read(path, err);
    *steps = json_integer_value(json_object_get(j, "steps"));
    json_decref(j);
    if (j && *steps < 1) return hbk_fail_at(err, HBK_ERROR_DATA, path, 0, "has no \"steps\"");
    return j != NULL;
}

/* Everything that an arm learns from; *n (may be NULL) is what came from its source. */
static bool demo_arm_data(const demo *d, const demo_arm *a, hbk_dataset *set, hbk_int *n, hbk_error *err)
{
    char seed[512], curated[512];
    hbk_pairs people, web;
    hbk_int count = a->n;
    memset(&people, 0, sizeof people);
    memset(&web, 0, sizeof web);
    const char *tag_seed = a->tags ? TINY_TAG_SEED : NULL, *tag_web = a->tags ? TINY_TAG_WEB : NULL;
    bool ok = hbk_path(seed, d->data_dir, "seed.jsonl", err) && hbk_pairs_load(&people, seed, "seed", err) &&
              demo_source_pairs(d, a->source, &web, err);
    if (ok && count == 0 && a->source != DEMO_NOTHING)
        ok = hbk_path(curated, d->run_dir, "curated-2.jsonl", err) && hbk_jsonl_count(curated, &count, err);
    ok = ok && demo_draw(d, a->source, &web, count < 0 ? web.n : count, err);
    for (hbk_int i = 0; ok && i < a->repeat; i++)
        ok = hbk_dataset_add_pairs(set, &people, d->tmpl, d->tok, HBK_FORWARD, tag_seed, tag_web, 128, err);
    ok = ok && hbk_dataset_add_pairs(set, &web, d->tmpl, d->tok, HBK_FORWARD, tag_seed, tag_web, 128, err);
    if (ok && n) *n = web.n;
    hbk_pairs_free(&people);
    hbk_pairs_free(&web);
    return ok;
}

/* Finetunes the base as the row says; *n (may be NULL) is what came from its source. */
static bool demo_train_arm(const demo *d, const demo_arm *a, hbk_int *n, hbk_error *err)
{
    char dir[512];
    hbk_dataset set;
    hbk_recipe recipe;
    memset(&set, 0, sizeof set);
    memset(&recipe, 0, sizeof recipe);
    recipe.tok = d->tok;
    recipe.tmpl = d->tmpl;
    recipe.base_name = "base";
    hbk_train_options o = a->training == DEMO_AS_M0 ? demo_first(d) : demo_later(d);
    bool ok = hbk_dir_make(d->arm_dir, err) && hbk_path(dir, d->arm_dir, a->key, err) &&
              (a->training != DEMO_LONG || demo_steps_of(d, "m2", &o.steps, err)) &&
              demo_arm_data(d, a, &set, n, err);
    hbk_train_data train = {&set, &d->replay, NULL};
    ok = ok && hbk_finetune(d->base, &train, &o, NULL, &recipe, dir, d->progress, NULL, err);
    hbk_dataset_free(&set);
    return ok;
}

/* ==== 4  MEASURING =========================================================== */

/* Judges one answer into the sums of a row. */
static void demo_judge(const demo *d, hbk_int i, const char *answer, demo_row *row, demo_sorts *n)
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
    if (rare == 0) row->common += right, n->common++;
    if (rare == 1) row->rare += right, n->rare++;
    if (tiny_is_misled(&d->w, q)) row->misled += right, n->misled++;
    if (tiny_is_held(&d->w, q)) row->held += right, n->held++;
}

/* Decodes the answers to the prompts and judges them into *row, as shares. */
static bool demo_judge_all(const demo *d, hbk_request *requests, hbk_int n, demo_row *row, hbk_error *err)
{
    demo_sorts sorts = {0, 0, 0, 0};
    bool ok = true;
    for (hbk_int i = 0; ok && i < n; i++) {
        hbk_text answer;
        memset(&answer, 0, sizeof answer);
        ok = hbk_tokenizer_decode(d->tok, requests[i].output.data, requests[i].output.n, 0, &answer, err);
        const char *text = hbk_text_string(&answer);
        demo_judge(d, i, text + strspn(text, " "), row, &sorts);
        hbk_text_free(&answer);
    }
    row->win /= (double)n, row->content /= (double)n, row->right /= (double)n;
    row->style /= (double)n, row->score /= (double)n;
    row->common /= (double)sorts.common, row->rare /= (double)sorts.rare;
    row->misled = sorts.misled ? row->misled / (double)sorts.misled : (double)NAN;
    row->held = sorts.held ? row->held / (double)sorts.held : (double)NAN;
    return ok;
}

/* Answers all evaluation prompts with a model (NULL: the base) under a tag, into *row. */
static bool demo_examine(const demo *d, const char *model, const char *tag, demo_row *row, hbk_error *err)
{
    enum { N = TINY_EVALUATIONS };
    char dir[512];
    hbk_tuned t;
    hbk_tokens prompts[N];
    hbk_request requests[N];
    memset(&t, 0, sizeof t);
    memset(prompts, 0, sizeof prompts);
    memset(requests, 0, sizeof requests);
    t.model = d->base;
    bool ok = !model || (demo_model_dir(d, model, dir, err) && hbk_tuned_load(&t, d->base, dir, NULL, err));
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
    hbk_session *s = ok ? hbk_session_new(t.model, t.adapter, 64, 128, HBK_F32, NULL, err) : NULL;
    ok = s && hbk_generate(s, requests, N, &o, NULL, err) && demo_judge_all(d, requests, N, row, err);
    for (hbk_int i = 0; i < N; i++) {
        hbk_tokens_free(&prompts[i]);
        hbk_tokens_free(&requests[i].output);
    }
    hbk_session_free(s);
    hbk_tuned_free(&t);
    return ok;
}

/* The next row of ratings, which must be that of the candidate `id`. */
static bool demo_next_rating(hbk_jsonl_reader *r, const char *id, const char *path, json_t **rating,
                             hbk_error *err)
{
    int got = hbk_jsonl_next(r, rating, err);
    if (got < 0) return false;
    const char *of = got ? json_string_value(json_object_get(*rating, "id")) : NULL;
    return (of && !strcmp(of, id)) ||
           hbk_fail_at(err, HBK_ERROR_DATA, path, hbk_jsonl_line(r),
                       "expected the rating of candidate \"%.80s\" here: these ratings are of other "
                       "candidates",
                       id);
}

/* What the oracle thinks of the candidates, and of the ratings of a file in run_dir that reach `keep`.
   Positive are the pairs to which the oracle gives `positive` or more. */
static bool demo_judge_rater(const demo *d, const char *file, double keep, int positive, demo_rater *out,
                             hbk_error *err)
{
    char candidates[512], ratings[512];
    hbk_int n_positive = 0, both = 0, recovered = 0;
    hbk_jsonl_reader *c = NULL, *r = NULL;
    json_t *row, *rating = NULL;
    memset(out, 0, sizeof *out);
    bool ok = hbk_path(candidates, d->run_dir, "candidates.jsonl", err) &&
              hbk_path(ratings, d->run_dir, file, err) &&
              (c = hbk_jsonl_open(candidates, NULL, err)) != NULL &&
              (r = hbk_jsonl_open(ratings, NULL, err)) != NULL;
    for (int got; ok && (got = hbk_jsonl_next(c, &row, err)) != 0; out->n++) {
        ok = got > 0;
        if (!ok) break;
        const char *x = json_string_value(json_object_get(row, "instruction"));
        const char *id = json_string_value(json_object_get(row, "id"));
        char text[TINY_TEXT];
        tiny_question latent = tiny_segment(&d->w, tiny_index(id), text, NULL);
        tiny_verdict verdict = tiny_judge(&d->w, x, text);
        bool good = verdict.score >= positive, kept = false;
        recovered += tiny_recovered(x, latent);
        if (!strcmp(json_string_value(json_object_get(row, "status")), "ok")) {
            ok = demo_next_rating(r, id, ratings, &rating, err);
            const json_t *score = ok ? json_object_get(rating, "score") : NULL;
            kept = json_is_number(score) && json_number_value(score) >= keep;
            out->rated++;
            out->unparsable += ok && !json_is_number(score);
        }
        out->of_kind[verdict.kind]++;
        out->kept_of_kind[verdict.kind] += kept;
        out->kept += kept;
        n_positive += good;
        both += kept && good;
    }
    hbk_jsonl_close(c);
    hbk_jsonl_close(r);
    out->precision = out->kept ? (double)both / (double)out->kept : (double)NAN;
    out->recall = n_positive ? (double)both / (double)n_positive : (double)NAN;
    out->recovered = (double)recovered / (double)out->n;
    out->good = (double)n_positive / (double)out->n;
    return ok;
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
            100 * d->raters[0].recovered, 100 * d->raters[0].good);
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
    const bool hard = d->o.level == TINY_HARD;
    fprintf(f, "\n\n%-44s %6s %6s %6s %7s %6s %6s%s\n", "answers, judged by the oracle (%)", "right",
            "common", "rare", "style", "win", "score", hard ? " misled   held" : "");
    for (int i = 0; i < d->n_rows; i++) {
        const demo_row *r = &d->rows[i];
        fprintf(f, "%-44s %6.1f %6.1f %6.1f %7.1f %6.1f %6.2f", r->name, 100 * r->right, 100 * r->common,
                100 * r->rare, 100 * r->style, 100 * r->win, r->score);
        if (hard) fprintf(f, " %6.1f %6.1f", 100 * r->misled, 100 * r->held);
        fputc('\n', f);
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
                            json_pack("{s:f s:f s:f s:f s:f s:f s:f s:o s:o}", "right", r->right, "common",
                                      r->common, "rare", r->rare, "style", r->style, "win", r->win,
                                      "content_win", r->content, "score", r->score, "misled",
                                      isfinite(r->misled) ? json_real(r->misled) : json_null(), "held",
                                      isfinite(r->held) ? json_real(r->held) : json_null()));
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
                     "recovered",
                     d->raters[0].recovered, "right_pairs", d->raters[0].good, "raters", raters, "rows", rows,
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
             100 * d->raters[0].recovered, 100 * d->raters[0].good);
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

static const demo_arm demo_arms[] = {
    {"a5-only", 0, DEMO_CURATED_2, 0, true, DEMO_AS_M2},
    {"uncurated-only", 0, DEMO_UNCURATED, 0, true, DEMO_AS_M2},
    {"untagged", 3, DEMO_CURATED_2, 0, false, DEMO_AS_M2},
};

/* Which models are examined, and under which tag. */
typedef struct demo_exam {
    const char *name, *key, *model, *tag; /* model NULL: the base */
} demo_exam;
static const demo_exam demo_exams[] = {
    {"base model, no tag", "base", NULL, NULL},
    {"M0: seed", "m0", "m0", TINY_TAG_SEED},
    {"M1: seed + curated-1", "m1", "m1", TINY_TAG_SEED},
    {"M2: seed + curated-2, seed tag", "m2", "m2", TINY_TAG_SEED},
    {"M2, tags web seed", "web,seed", "m2", TINY_TAG_WEB " " TINY_TAG_SEED},
    {"M2, tags seed web", "seed,web", "m2", TINY_TAG_SEED " " TINY_TAG_WEB},
    {"M2, web tag", "web", "m2", TINY_TAG_WEB},
    {"M2, no tag", "none", "m2", NULL},
    {"curated-2 only, web tag", "a5", "a5-only", TINY_TAG_WEB},
    {"uncurated only, equal N, web tag", "uncurated", "uncurated-only", TINY_TAG_WEB},
    {"seed + curated-2 without tags", "untagged", "untagged", NULL},
};

static bool demo_compare(demo *d, hbk_error *err)
{
    static const char *const names[] = {"M0", "M1"}, *const files[] = {"ratings-1.jsonl", "ratings-2.jsonl"};
    bool ok = true;
    for (int i = 0; ok && i < 2; i++) {
        demo_rater *r = &d->raters[d->n_raters];
        ok = demo_judge_rater(d, files[i], 4.5, 5, r, err);
        r->name = names[i];
        if (ok) d->n_raters++;
    }
    for (size_t i = 0; ok && i < sizeof demo_arms / sizeof *demo_arms; i++)
        ok = demo_train_arm(d, &demo_arms[i], NULL, err);
    return ok;
}

static bool demo_evaluate(demo *d, hbk_error *err)
{
    bool ok = true;
    for (size_t i = 0; ok && i < sizeof demo_exams / sizeof *demo_exams; i++) {
        const demo_exam *e = &demo_exams[i];
        demo_row *row = &d->rows[d->n_rows];
        memset(row, 0, sizeof *row);
        row->name = e->name;
        row->key = e->key;
        ok = demo_examine(d, e->model, e->tag, row, err);
        if (ok) d->n_rows++;
    }
    return ok;
}

static bool demo_stages(demo *d, hbk_error *err)
{
    hbk_loop_result result;
    memset(&result, 0, sizeof result);
    if (!demo_write_world(d, err) || !demo_pretrain(d, err) || !demo_open(d, err)) return false;
    demo_lap(d, "pretraining");
    if (!demo_loop(d, &result, err)) return false;
    demo_lap(d, "loop");
    if (result.stopped[0])
        return hbk_fail(err, HBK_ERROR_DATA,
                        "the loop ended early: %s. In this world training has gone astray; try "
                        "another --seed",
                        result.stopped);
    if (!demo_compare(d, err)) return false;
    demo_lap(d, "comparisons");
    if (!demo_evaluate(d, err)) return false;
    demo_lap(d, "evaluation");
    return demo_extra(d, err);
}

/* A world of a seed, whose files will be in o->dir; nothing is read or written yet. */
static bool demo_init(demo *d, const demo_options *o, const hbk_progress *progress, hbk_error *err)
{
    memset(d, 0, sizeof *d);
    d->o = *o;
    d->progress = progress;
    d->shape = demo_full_shape;
    tiny_world_make_at(&d->w, o->seed, o->level);
    d->n_segments = tiny_setting_of(&d->w)->segments;
    bool ok = hbk_path(d->base_dir, o->dir, "base", err) && hbk_path(d->run_dir, o->dir, "run", err);
    snprintf(d->data_dir, sizeof d->data_dir, "%s", o->dir); /* shorter than those two */
    snprintf(d->arm_dir, sizeof d->arm_dir, "%s", o->dir);
    return ok;
}

/* Runs the demo into o->dir; *result (may be NULL) is a JSON object that the caller owns. The tables go to
   `tables` (NULL: nowhere). */
static bool tool_demo(const demo_options *o, const hbk_progress *progress, FILE *tables, json_t **result,
                      hbk_error *err)
{
    demo *d = (demo *)hbk_alloc(NULL, 1, sizeof *d, err);
    if (!d) return false;
    bool ok = demo_init(d, o, progress, err);
    d->started = demo_now(d);
    ok = ok && demo_stages(d, err);
    if (ok && tables) demo_print(d, tables);
    if (ok && result) *result = demo_json(d);
    demo_close(d);
    hbk_free(NULL, d);
    return ok;
}

#endif
