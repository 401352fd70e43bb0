/* 09_loop.c - the whole method: a few pairs and a pile of text write their own training set - public domain

   Shows    hbk_loop_run: backward model, candidates, ratings, curated pairs, finetuning, and once more
   Run      build/examples/09_loop                                          with a toy of its own making
            build/examples/09_loop MODEL seed.jsonl segments.jsonl FOLDER   {"instruction","output"}, {"text"}
   Prints   how many candidates each curation kept, and some pairs of the set that it wrote in the end
   Takes    about 10 seconds with the toy, in a new folder in /tmp; continues what was begun in FOLDER */

#define HUMPBACK_IMPLEMENTATION
#include "../humpback.h"

#include <unistd.h>

enum { ANIMALS = 24, IN_SEED = 12, PAGES = 3000, CONTEXT = 64 };

/* The toy. Its base has read about animals, and a forum that gives right answers a 5, but those about another
   animal and advertisements a 1. The seed asks about half of the animals. The segments are of the other half,
   and every second one is an advertisement. */
static const char *const foods[ANIMALS][2] = {
    {"fox", "mice"},   {"bee", "nectar"},   {"seal", "fish"},   {"owl", "voles"},    {"panda", "reed"},
    {"mole", "worms"}, {"goat", "herbs"},   {"camel", "dates"}, {"frog", "flies"},   {"tiger", "deer"},
    {"crab", "weed"},  {"moth", "wool"},    {"hen", "corn"},    {"snail", "leaves"}, {"koala", "gum"},
    {"cat", "cream"},  {"ant", "crumbs"},   {"swan", "grain"},  {"whale", "krill"},  {"bear", "honey"},
    {"horse", "oats"}, {"parrot", "seeds"}, {"hare", "clover"}, {"zebra", "grass"}};
static const char forum[] =
    "{\"name\": \"forum\", \"prompt\": \"{bos}{instruction}\", \"reply\": \" {output}{eos}\","
    " \"backward\": \"{bos}{output} Asked:\","
    " \"rating\": \"{bos}{instruction} {output} Review:\"}";

static void write_pages(hbk_text *words, hbk_text *pages)
{
    hbk_rng rng = hbk_rng_at(1, "pages", 0);
    for (int i = 0; i < PAGES; i++) {
        const char *const *a = foods[hbk_rng_below(&rng, ANIMALS)];
        const char *const *other = foods[hbk_rng_below(&rng, ANIMALS)];
        hbk_int kind = hbk_rng_below(&rng, 8);
        size_t start = words->len;
        if (kind == 0) hbk_text_printf(words, "The %s eats %s. ", a[0], a[1]);
        if (kind == 1) hbk_text_printf(words, "Buy the %s today. ", a[0]);
        hbk_text_printf(words, "What does the %s eat? ", a[0]);
        if (kind == 2 || kind == 3) hbk_text_printf(words, "The %s eats %s. Review: Score: 5 ", a[0], a[1]);
        if (kind == 4) hbk_text_printf(words, "Buy the %s today. Review: Score: 1 ", a[0]);
        if (kind > 4 && a != other)
            hbk_text_printf(words, "The %s eats %s. Review: Score: 1 ", other[0], other[1]);
        hbk_text_printf(pages, "{\"text\": \"%.*s\"}\n", (int)(words->len - start) - 1, words->data + start);
    }
    hbk_text_add(words, HBK_TAG_SEED " " HBK_TAG_WEB " Asked: "); /* what else the vocabulary must spell */
}

/* Writes all files of the toy and trains its base: what 03_train does step by step. */
static bool make_toy(hbk_error *err)
{
    hbk_text text[4], *words = &text[0], *pages = &text[1], *seed = &text[2], *segments = &text[3];
    hbk_dataset data;
    hbk_config shape;
    hbk_recipe recipe;
    memset(text, 0, sizeof text); /* zeroed is empty, for every struct of the library */
    memset(&data, 0, sizeof data);
    memset(&shape, 0, sizeof shape);
    memset(&recipe, 0, sizeof recipe);
    write_pages(words, pages);
    for (int i = 0; i < ANIMALS; i++) {
        const char *const *a = foods[i];
        if (i < IN_SEED)
            hbk_text_printf(seed,
                            "{\"instruction\": \"What does the %s eat?\", \"output\": \"The %s eats %s.\"}\n",
                            a[0], a[0], a[1]);
        else
            hbk_text_printf(segments, "{\"text\": \"The %s eats %s.\"}\n{\"text\": \"Buy the %s today.\"}\n",
                            a[0], a[1], a[0]);
    }
    bool ok = hbk_file_write("template.json", forum, strlen(forum), err);
    for (int i = 0; i < 4; i++) ok = ok && hbk_text_ok(&text[i], err);
    ok = ok && hbk_file_write("pages.jsonl", pages->data, pages->len, err) &&
         hbk_file_write("seed.jsonl", seed->data, seed->len, err) &&
         hbk_file_write("segments.jsonl", segments->data, segments->len, err);

    hbk_tokenizer *tok = ok ? hbk_tokenizer_train(words->data, words->len, 512, false, NULL, err) : NULL;
    ok = tok && hbk_dataset_add_texts(&data, "pages.jsonl", tok, CONTEXT, err);
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
    hbk_train_options o = hbk_train_defaults(true); /* every weight */
    o.dropout = 0;
    o.lr = 6e-3;
    o.lr_end = 6e-4;
    o.warmup = 10;
    o.batch = 32;
    o.steps = 500;
    recipe.tok = tok; /* saved beside the weights */
    hbk_train_data train = {&data, NULL, NULL};
    hbk_model *random = ok ? hbk_model_random(&shape, 1, NULL, err) : NULL;
    ok = random && hbk_finetune(random, &train, &o, NULL, &recipe, "base", NULL, NULL, err);
    hbk_model_free(random);
    hbk_tokenizer_free(tok);
    hbk_dataset_free(&data);
    for (int i = 0; i < 4; i++) hbk_text_free(&text[i]);
    return ok;
}

/* One line for a running stage; returning false would end the run, to be continued later. */
static bool show(void *ctx, const char *stage, hbk_int done, hbk_int total, const char *unit,
                 const char *note)
{
    (void)ctx;
    fprintf(stderr, "\r%s: %d of %d %s  %s%s", stage, (int)done, (int)total, unit, note,
            done < total ? "   " : "\n");
    return true;
}

static bool print_result(const hbk_loop_result *r, const char *dir, hbk_error *err)
{
    printf("%d pairs by people, %d segments of text, %d candidates with an instruction\n", (int)r->n_seed,
           (int)r->n_segments, (int)r->n_ok);
    for (hbk_int k = 0; k < r->iterations; k++) {
        const hbk_curate_counts *c = &r->curated[k];
        printf("curation %d kept %d of %d; scores", (int)k + 1, (int)c->kept, (int)c->n);
        for (int s = 0; s < 5; s++) printf("%s %d: %d", s ? "," : "", s + 1, (int)c->histogram[s]);
        printf("\n");
    }
    char name[32], path[512];
    hbk_pairs pairs;
    memset(&pairs, 0, sizeof pairs);
    snprintf(name, sizeof name, "curated-%d.jsonl", (int)r->iterations);
    bool ok =
        r->iterations < 1 || (hbk_path(path, dir, name, err) && hbk_pairs_load(&pairs, path, "aug", err));
    for (hbk_int i = 0; ok && i < pairs.n && i < 3; i++)
        printf("\n    %s\n    %s\n", pairs.data[i].instruction, pairs.data[i].output);
    if (ok && r->stopped[0]) printf("\nended early: %s\n", r->stopped);
    if (ok) printf("\nthe model: %s\n", r->final_dir);
    hbk_pairs_free(&pairs);
    return ok;
}

int main(int argc, char **argv)
{
    bool toy = argc < 5, ok;
    const char *model_path = toy ? "base" : argv[1], *dir = toy ? "run" : argv[4];
    char work[] = "/tmp/humpback-09_loop.XXXXXX"; /* new: a run would continue an earlier one */
    hbk_error err;
    hbk_loop_result result;
    hbk_progress progress = {show, NULL, NULL};
    hbk_template *tmpl = NULL;
    if (toy && (!mkdtemp(work) || chdir(work))) {
        perror(work);
        return 1;
    }
    ok = !toy || make_toy(&err);
    hbk_model *model = ok ? hbk_model_load(model_path, NULL, &err) : NULL;
    hbk_tokenizer *tok = model ? hbk_tokenizer_load(model_path, NULL, &err) : NULL;
    if (tok)
        tmpl = toy ? hbk_template_load("template.json", NULL, &err)
                   : hbk_template_for_model(model_path, NULL, &err);

    hbk_loop_options o = hbk_loop_defaults(); /* the paper's, with LoRA */
    o.seed_path = toy ? "seed.jsonl" : argv[2];
    o.corpus_path = toy ? "segments.jsonl" : argv[3];
    o.model_name = model_path;
    o.tmpl = tmpl;
    if (toy) { /* small adapters and great steps; pages replayed, or so small a model forgets how to rate */
        o.myx.lora.rank = 4;
        o.myx.lora.alpha = 8;
        o.myx.lr = 4e-3;
        o.myx.lr_end = 4e-4;
        o.myx.steps = 80;
        o.m0 = o.mt = o.myx;
        o.m0.replay = o.mt.replay = 8;
        o.replay_path = "pages.jsonl";
        o.augment.decode.sampling.max_new = o.curate.decode.sampling.max_new = 16;
    }
    ok = tmpl && hbk_loop_run(model, tok, &o, dir, toy ? NULL : &progress, &result, NULL, &err) &&
         print_result(&result, dir, &err);
    if (!ok) fprintf(stderr, "%s\n", err.message);
    else if (toy) printf("in %s\n", work);
    hbk_template_free(tmpl);
    hbk_tokenizer_free(tok);
    hbk_model_free(model);
    return ok ? 0 : 1;
}
