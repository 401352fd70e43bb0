/* 09_loop.c - the whole method: a few pairs and a pile of text become a better model - public domain

   Shows    hbk_loop_run: backward model, candidates, ratings, curated pairs, finetuning, and again
   Run      build/examples/09_loop                                           on a toy that it makes itself
            build/examples/09_loop MODEL seed.jsonl segments.jsonl FOLDER    rows {"instruction","output"}, {"text"}
   Prints   how many candidates each curation kept, and pairs of the training set that was written
   Takes    about 20 seconds (a model of 1 B: a day); goes on when called again; FOLDER or /tmp/humpback-09_loop */

#define HUMPBACK_IMPLEMENTATION
#include "../humpback.h"

#define TOY "/tmp/humpback-09_loop"
enum { ANIMALS = 24, SEEDS = 12, PAGES = 3000, CONTEXT = 64 };

/* The toy. A base model has read about animals, and a forum where answers get a score: right ones a 5, those
   about another animal and advertisements a 1. The seed asks about half of the animals; the segments are of
   the other half, and every second one is an advertisement. */
static const char *const foods[ANIMALS][2] = {
    {"fox", "mice"},   {"bee", "nectar"},  {"seal", "fish"}, {"owl", "voles"},    {"panda", "reed"},  {"mole", "worms"},
    {"goat", "herbs"}, {"camel", "dates"}, {"frog", "flies"}, {"tiger", "deer"},  {"crab", "weed"},   {"moth", "wool"},
    {"hen", "corn"},   {"snail", "leaves"}, {"koala", "gum"}, {"cat", "cream"},   {"ant", "crumbs"},  {"swan", "grain"},
    {"whale", "krill"}, {"bear", "honey"}, {"horse", "oats"}, {"parrot", "seeds"}, {"hare", "clover"}, {"zebra", "grass"}};
static const char tmpl_json[] =
    "{\"name\": \"forum\", \"prompt\": \"{bos}{instruction}\", \"reply\": \" {output}{eos}\","
    " \"backward\": \"{bos}{output} Asked:\", \"rating\": \"{bos}{instruction} {output} Review:\"}";

static bool make_toy(hbk_error *err)
{
    hbk_text words, pages, seed, segments; /* words: the pages without their JSON, for the vocabulary */
    hbk_dataset data;
    hbk_config shape;
    hbk_recipe recipe;
    memset(&words, 0, sizeof words); /* zeroed is empty, for every struct of the library */
    memset(&pages, 0, sizeof pages);
    memset(&seed, 0, sizeof seed);
    memset(&segments, 0, sizeof segments);
    memset(&data, 0, sizeof data);
    memset(&shape, 0, sizeof shape);
    memset(&recipe, 0, sizeof recipe);
    hbk_rng rng = hbk_rng_at(1, "pages", 0);
    for (int i = 0; i < PAGES; i++) {
        const char *const *a = foods[hbk_rng_below(&rng, ANIMALS)], *const *b = foods[hbk_rng_below(&rng, ANIMALS)];
        size_t start = words.len;
        hbk_int kind = hbk_rng_below(&rng, 5);
        if (kind == 0) hbk_text_printf(&words, "The %s eats %s. ", a[0], a[1]);
        else if (kind == 1) hbk_text_printf(&words, "Buy the %s today. ", a[0]);
        else hbk_text_printf(&words, "What does the %s eat? ", a[0]);
        if (kind == 2) hbk_text_printf(&words, "The %s eats %s. Review: Score: 5 ", a[0], a[1]);
        if (kind == 3) hbk_text_printf(&words, "The %s eats %s. Review: Score: %d ", b[0], b[1], a == b ? 5 : 1);
        if (kind == 4) hbk_text_printf(&words, "Buy the %s today. Review: Score: 1 ", a[0]);
        hbk_text_printf(&pages, "{\"text\": \"%.*s\"}\n", (int)(words.len - start) - 1, words.data + start);
    }
    hbk_text_add(&words, HBK_TAG_SEED " " HBK_TAG_WEB " Asked: ");
    for (int i = 0; i < ANIMALS; i++) {
        const char *const *a = foods[i];
        if (i < SEEDS) hbk_text_printf(&seed, "{\"instruction\": \"What does the %s eat?\", \"output\": \"The %s eats %s.\"}\n", a[0], a[0], a[1]);
        else hbk_text_printf(&segments, "{\"text\": \"The %s eats %s.\"}\n{\"text\": \"Buy the %s today.\"}\n", a[0], a[1], a[0]);
    }
    bool ok = hbk_text_ok(&words, err) && hbk_text_ok(&pages, err) && hbk_text_ok(&seed, err) &&
              hbk_text_ok(&segments, err) && hbk_dir_make(TOY, err) &&
              hbk_file_write(TOY "/pages.jsonl", pages.data, pages.len, err) &&
              hbk_file_write(TOY "/seed.jsonl", seed.data, seed.len, err) &&
              hbk_file_write(TOY "/segments.jsonl", segments.data, segments.len, err) &&
              hbk_file_write(TOY "/template.json", tmpl_json, strlen(tmpl_json), err);
    hbk_tokenizer *tok = ok ? hbk_tokenizer_train(words.data, words.len, 512, false, NULL, err) : NULL;
    ok = tok && hbk_dataset_add_texts(&data, TOY "/pages.jsonl", tok, CONTEXT, err);
    shape.n_layers = 2;
    shape.n_heads = shape.n_kv_heads = 4;
    shape.head_dim = 16;
    shape.dim = 64;
    shape.ffn_dim = 192;
    shape.rms_norm_eps = 1e-5;
    shape.rope_theta = 10000;
    shape.context_length = CONTEXT;
    shape.vocab_size = ok ? hbk_tokenizer_size(tok) : 0;
    shape.bos = 1;
    shape.eos[shape.n_eos++] = 2;
    hbk_train_options o = hbk_train_defaults(true);
    o.dropout = 0;
    o.lr = 1e-2;
    o.lr_end = 1e-3;
    o.warmup = 10;
    o.batch = 32;
    o.steps = 450;
    recipe.tok = tok;
    hbk_model *random = ok ? hbk_model_random(&shape, 1, NULL, err) : NULL;
    ok = random && hbk_finetune(random, &data, NULL, &o, NULL, &recipe, TOY "/base", NULL, NULL, err);
    hbk_model_free(random);
    hbk_tokenizer_free(tok);
    hbk_dataset_free(&data);
    hbk_text_free(&words);
    hbk_text_free(&pages);
    hbk_text_free(&seed);
    hbk_text_free(&segments);
    return ok;
}

static bool show(void *ctx, const char *stage, hbk_int done, hbk_int total, const char *unit, const char *note)
{
    (void)ctx;
    printf("\r%-8s %d of %d %s  %s  ", stage, (int)done, (int)total, unit, note);
    if (done == total) printf("\n");
    fflush(stdout);
    return true;
}

int main(int argc, char **argv)
{
    bool toy = argc < 5, ok;
    const char *model_path = toy ? TOY "/base" : argv[1], *dir = toy ? TOY "/run" : argv[4];
    hbk_error err;
    hbk_model *model = NULL;
    hbk_tokenizer *tok = NULL;
    hbk_template *tmpl = NULL;
    hbk_progress progress = {show, NULL, NULL};
    hbk_loop_result r;
    if (!toy || make_toy(&err)) model = hbk_model_load(model_path, NULL, &err);
    if (model) tok = hbk_tokenizer_load(model_path, NULL, &err);
    if (tok) tmpl = toy ? hbk_template_load(TOY "/template.json", NULL, &err) : hbk_template_for_model(model_path, NULL, &err);

    hbk_loop_options o = hbk_loop_defaults();
    o.seed_path = toy ? TOY "/seed.jsonl" : argv[2];
    o.corpus_path = toy ? TOY "/segments.jsonl" : argv[3];
    o.model_name = model_path;
    o.tmpl = tmpl;
    if (toy) {
        o.force = true;
        o.replay_path = TOY "/pages.jsonl";
        o.m0.replay = o.mt.replay = 8;
        o.myx.rank = o.m0.rank = o.mt.rank = 4;
        o.myx.alpha = o.m0.alpha = o.mt.alpha = 8;
        o.myx.lr = o.m0.lr = o.mt.lr = 4e-3;
        o.myx.lr_end = o.m0.lr_end = o.mt.lr_end = 4e-4;
        o.myx.steps = o.m0.steps = o.mt.steps = 150;
        o.augment.sampling.max_new = o.curate.decode.sampling.max_new = 16;
    }
    ok = tmpl && hbk_loop_run(model, tok, &o, dir, getenv("Q") ? NULL : &progress, &r, NULL, &err);
    if (ok) {
        printf("%d pairs by people, %d segments, %d candidates, %d of them usable\n", (int)r.n_seed, (int)r.n_segments, (int)r.n_candidates, (int)r.n_ok);
        for (hbk_int k = 0; k < r.iterations; k++) {
            const hbk_curate_counts *c = &r.curated[k];
            printf("curation %d: %d of %d kept; scores", (int)k + 1, (int)c->kept, (int)c->n);
            for (int s = 0; s < 5; s++) printf("  %d: %d", s + 1, (int)c->histogram[s]);
            printf("\n");
        }
        if (r.stopped[0]) printf("stopped: %s\n", r.stopped);
        printf("best: %s\n", r.final_dir);
    }
    if (!ok) fprintf(stderr, "%s\n", err.message);
    hbk_template_free(tmpl);
    hbk_tokenizer_free(tok);
    hbk_model_free(model);
    return ok ? 0 : 1;
}
