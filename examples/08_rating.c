/* 08_rating.c - a model says how good an answer is, and two ways to read it - public domain

   Shows    a rating prompt, hbk_rate with both read-outs, and which pairs hbk_select keeps
   Run      build/examples/08_rating                           with a rater of its own making
            build/examples/08_rating MODEL CANDIDATES.jsonl    with yours; rows {"instruction","output"}
   Prints   of every pair what the rater wrote, the score that it spelled and the one that it expects
   Takes    about a second; writes to /tmp/humpback-08_rating */

#define HUMPBACK_IMPLEMENTATION
#include "../humpback.h"

#define TOY "/tmp/humpback-08_rating"
enum { PAIRS = 2, REVIEWS = 5 };

/* The toy's rater knows two pairs by heart, and what five people wrote about each. They did not agree: four
   of five gave the first a 5, one a 4. The likeliest reply is a 5; the expectation is 4.8, which tells this
   pair from one that everybody liked. */
static const char *const pairs[PAIRS][2] = {{"What do owls eat?", "Owls eat mice and voles, at night."},
                                            {"What do bees make?", "Buy our honey today! Share this page."}};
static const char *const reviews[PAIRS][2] = {{"It answers in full.", "5 5 5 5 4"},
                                              {"It sells and does not answer.", "1 1 1 1 2"}};
static const char talk[] =
    "{\"name\": \"talk\", \"prompt\": \"{bos}{instruction}\", \"reply\": \" {output}{eos}\","
    " \"rating\": \"{bos}How good is this answer, 1 to 5?\\n{instruction}\\n{output}\\nReview:\"}";

/* Trains every weight of a small model on the reviews, all at once, until it knows them by heart. */
static bool learn(hbk_trainer *t, const hbk_dataset *d, hbk_packer *p, hbk_error *err)
{
    bool ok = true;
    for (hbk_int i = 0; i < d->n; i++) hbk_packer_add(p, d, i);
    hbk_batch batch = hbk_packer_batch(p);
    for (hbk_int step = 0; ok && step < 250; step++) {
        double loss, lr = hbk_learning_rate(HBK_LINEAR, step + 1, 250, 10, 1e-2, 1e-4);
        ok = hbk_trainer_accumulate(t, &batch, 1 / (double)p->n_targets, &loss, err) &&
             hbk_trainer_update(t, lr, NULL, err);
    }
    return ok;
}

/* The prompt of a rating and five replies to it, for each pair. */
static bool write_lessons(hbk_dataset *d, const hbk_template *tmpl, const hbk_tokenizer *tok, hbk_error *err)
{
    bool ok = true;
    for (int i = 0; ok && i < PAIRS * REVIEWS; i++) {
        char reply[80];
        hbk_tokens ids;
        hbk_render r;
        hbk_int n_prompt;
        int pair = i / REVIEWS;
        memset(&ids, 0, sizeof ids); /* zeroed is empty, for every struct of the library */
        memset(&r, 0, sizeof r);
        snprintf(reply, sizeof reply, "%s\nScore: %c", reviews[pair][0], reviews[pair][1][i % REVIEWS * 2]);
        r.use = HBK_RATING;
        r.instruction = pairs[pair][0];
        r.output = pairs[pair][1];
        r.reply = reply;
        ok = hbk_template_tokens(tmpl, tok, &r, &ids, &n_prompt, err) &&
             hbk_dataset_add(d, ids.data, ids.n, n_prompt, err);
        hbk_tokens_free(&ids);
    }
    return ok;
}

/* What a rater is made of: the model that was trained lives in its trainer. */
typedef struct rater {
    hbk_tokenizer *tok;
    hbk_template *tmpl;
    hbk_model *base;
    hbk_trainer *trainer;
} rater;

static bool make_toy(rater *r, hbk_error *err)
{
    hbk_text words;
    hbk_dataset d;
    hbk_packer p;
    hbk_config shape;
    memset(&words, 0, sizeof words);
    memset(&d, 0, sizeof d);
    memset(&p, 0, sizeof p);
    memset(&shape, 0, sizeof shape);
    for (int i = 0; i < PAIRS; i++)
        hbk_text_printf(&words, "%s\n%s\n%s\n%s\n", pairs[i][0], pairs[i][1], reviews[i][0], reviews[i][1]);
    hbk_text_add(&words, talk); /* whose words the vocabulary must spell, too; and 3, which nobody gave */
    hbk_text_add(&words, " Score: 3");
    bool ok = hbk_text_ok(&words, err) && hbk_file_write(TOY "/template.json", talk, strlen(talk), err);
    r->tok = ok ? hbk_tokenizer_train(words.data, words.len, 300, false, NULL, err) : NULL;
    r->tmpl = r->tok ? hbk_template_load(TOY "/template.json", NULL, err) : NULL;
    ok = r->tmpl && write_lessons(&d, r->tmpl, r->tok, err);
    shape.n_layers = 2;
    shape.n_heads = shape.n_kv_heads = 4;
    shape.head_dim = 8;
    shape.dim = 32;
    shape.ffn_dim = 96;
    shape.rms_norm_eps = 1e-5;
    shape.rope_theta = 10000;
    shape.context_length = 256;
    shape.vocab_size = ok ? hbk_tokenizer_size(r->tok) : 0;
    shape.bos = 1;
    shape.eos[shape.n_eos++] = 2;
    hbk_train_options o = hbk_train_defaults(true); /* every weight */
    o.dropout = o.weight_decay = 0;
    if (ok) r->base = hbk_model_random(&shape, 1, NULL, err);
    ok = r->base && hbk_packer_init(&p, d.tokens.n, d.n, NULL, err);
    if (ok) r->trainer = hbk_trainer_new(r->base, &o, NULL, d.tokens.n, d.max_length, NULL, err);
    ok = r->trainer && learn(r->trainer, &d, &p, err);

    hbk_text candidates;
    memset(&candidates, 0, sizeof candidates);
    for (int i = 0; i < PAIRS; i++)
        hbk_text_printf(&candidates, "{\"id\": \"%d\", \"instruction\": \"%s\", \"output\": \"%s\"}\n", i + 1,
                        pairs[i][0], pairs[i][1]);
    ok = ok && hbk_text_ok(&candidates, err) &&
         hbk_file_write(TOY "/candidates.jsonl", candidates.data, candidates.len, err);
    hbk_text_free(&candidates);
    hbk_packer_free(&p);
    hbk_dataset_free(&d);
    hbk_text_free(&words);
    return ok;
}

/* The rows of a ratings file, printed. */
static bool show(const char *path, hbk_error *err)
{
    hbk_jsonl_reader *in = hbk_jsonl_open(path, NULL, err);
    json_t *row;
    int got = in ? 1 : -1;
    while (got > 0 && (got = hbk_jsonl_next(in, &row, err)) > 0) {
        const json_t *score = json_object_get(row, "score");
        printf("    pair %s  ", json_string_value(json_object_get(row, "id")));
        if (json_is_number(score)) printf("%.1f", json_number_value(score));
        else printf("%s", json_string_value(json_object_get(row, "status"))); /* never a default */
        const char *text = json_string_value(json_object_get(row, "text"));
        printf("  %.*s ...\n", (int)strcspn(text, "\n"), text);
    }
    hbk_jsonl_close(in);
    return got == 0;
}

/* The example itself: rates the candidates in both ways, and keeps what is worth 4.5 and more. */
static bool rate(const hbk_model *m, const hbk_tokenizer *tok, const hbk_template *tmpl,
                 const char *candidates, hbk_error *err)
{
    static const char *const titles[] = {"The score that the reply spells", "Its mean under the model"};
    static const char *const files[] = {TOY "/ratings-text.jsonl", TOY "/ratings-expected.jsonl"};
    hbk_curate_options o = hbk_curate_defaults(); /* greedy; the wave, 256 pairs, shares the rubric */
    hbk_curate_counts counts;
    bool ok = true;
    for (int way = 0; ok && way < 2; way++) {
        o.readout = way ? HBK_READOUT_EXPECTED : HBK_READOUT_TEXT;
        unlink(files[way]); /* else what is there is taken for these ratings, or refused */
        ok = hbk_rate(m, NULL, tok, tmpl, &o, "", candidates, files[way], NULL, NULL, err);
        if (ok) printf("%s\n", titles[way]);
        ok = ok && show(files[way], err) &&
             hbk_select(&o, candidates, files[way], TOY "/curated.jsonl", &counts, NULL, err);
        if (ok) printf("    kept %d of %d\n\n", (int)counts.kept, (int)counts.n);
    }
    return ok;
}

int main(int argc, char **argv)
{
    rater r;
    hbk_error err;
    memset(&r, 0, sizeof r);
    bool toy = argc < 3, ok = hbk_dir_make(TOY, &err);
    if (toy) {
        ok = ok && make_toy(&r, &err);
    } else if (ok) {
        r.base = hbk_model_load(argv[1], NULL, &err);
        r.tok = r.base ? hbk_tokenizer_load(argv[1], NULL, &err) : NULL;
        r.tmpl = r.tok ? hbk_template_for_model(argv[1], NULL, &err) : NULL;
        ok = r.tmpl != NULL;
    }
    ok = ok && rate(toy ? hbk_trainer_model(r.trainer) : r.base, r.tok, r.tmpl,
                    toy ? TOY "/candidates.jsonl" : argv[2], &err);
    if (!ok) fprintf(stderr, "%s\n", err.message);
    hbk_trainer_free(r.trainer);
    hbk_model_free(r.base);
    hbk_template_free(r.tmpl);
    hbk_tokenizer_free(r.tok);
    return ok ? 0 : 1;
}
