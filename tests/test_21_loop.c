/* Chapter 21: the loop end to end, on a tiny model, in a few seconds. Each of its stages is made a second
   time here, by hand, from the functions of the chapters before: what a folder holds must be the same bytes.
   So no model is trained on top of another one, no tag is swapped, no rating comes from the wrong model. */
#include "test.h"
#include "fault.h"

static const char *const t21_seed[][2] = {
    {"What is hot?", "The tea is hot."}, {"Where is the moon?", "It is far."}, {"Who is it?", "The old cat."},
    {"Why is it wet?", "It is the dog."}, {"Is it good?", "It is."},
};
enum { T21_SEED = sizeof t21_seed / sizeof *t21_seed };

static const char *const t21_corpus[] = {
    "The cat is wet.",  "The dog is old.",      "Tea.",        "The moon is hot, and far.",
    "It is a bad dog.", "Far, far is the tea.", "What a moon."};
enum { T21_CORPUS = sizeof t21_corpus / sizeof *t21_corpus };

/* Everything that a call of hbk_loop_run takes. */
typedef struct t21_world {
    hbk_tokenizer *tok;
    hbk_template *t;
    const hbk_model *m;
    hbk_loop_options o;
    hbk_loop_result r;
    char seed[512], corpus[512], dir[512];
} t21_world;

/* One base for all tests: it has learned, loosely, to ask a question about a text and then to stop. */
static const hbk_model *t21_base(const hbk_tokenizer *tok, const hbk_template *t)
{
    static hbk_model *base;
    static hbk_trainer *taught;
    if (taught) return hbk_trainer_model(taught);
    hbk_dataset d;
    memset(&d, 0, sizeof d);
    for (int i = 0; i < T21_SEED; i++) {
        t19_lesson(&d, t, tok, HBK_BACKWARD, NULL, t21_corpus[i], t21_seed[i][0]);
        t19_lesson(&d, t, tok, HBK_RATING, t21_seed[i][0], t21_corpus[i],
                   i % 2 ? "bad\nScore: 1" : "Score: 5");
    }
    taught = t19_teach(&base, tok, &d, 0.4);
    hbk_dataset_free(&d);
    return hbk_trainer_model(taught);
}

static hbk_train_options t21_training(hbk_int steps)
{
    hbk_train_options o = hbk_train_defaults(false);
    o.lora.rank = 2;
    o.lora.alpha = 4;
    o.lr = 2e-2;
    o.lr_end = 3e-3;
    o.batch = 2;
    o.steps = steps;
    o.save_every = 2;
    return o;
}

static t21_world t21_new(const char *name)
{
    t21_world w;
    hbk_text seed, corpus;
    memset(&w, 0, sizeof w);
    memset(&seed, 0, sizeof seed);
    memset(&corpus, 0, sizeof corpus);
    w.tok = t19_tokenizer(true);
    w.t = t19_template();
    w.m = t21_base(w.tok, w.t);
    test_tmp(w.seed, "t21_seed.jsonl");
    test_tmp(w.corpus, "t21_corpus.jsonl");
    for (int i = 0; i < T21_SEED; i++)
        hbk_text_printf(&seed, "{\"instruction\": \"%s\", \"output\": \"%s\"}\n", t21_seed[i][0],
                        t21_seed[i][1]);
    for (int i = 0; i < T21_CORPUS; i++)
        hbk_text_printf(&corpus, "{\"id\": \"s%d\", \"text\": \"%s\"}\n", i, t21_corpus[i]);
    t19_write(w.seed, hbk_text_string(&seed));
    t19_write(w.corpus, hbk_text_string(&corpus));
    hbk_text_free(&seed);
    hbk_text_free(&corpus);
    char file[64];
    snprintf(file, sizeof file, "t21_%s", name);
    test_tmp(w.dir, file);
    w.o = hbk_loop_defaults();
    w.o.seed_path = w.seed;
    w.o.corpus_path = w.corpus;
    w.o.model_name = "tiny";
    w.o.tmpl = w.t;
    w.o.inference_tags = "seed";
    w.o.myx = t21_training(3);
    w.o.m0 = t21_training(4);
    w.o.mt = t21_training(5);
    w.o.augment.decode.sampling.max_new = 12;
    w.o.augment.decode.wave = w.o.curate.decode.wave = 4;
    w.o.augment.decode.slots = w.o.curate.decode.slots = 2;
    w.o.curate.decode.sampling.max_new = 8;
    w.o.curate.readout = HBK_READOUT_EXPECTED;
    w.o.curate.keep_share = 0.4;
    w.o.stop_unchanged = false; /* of seven candidates the same two may well be kept again */
    w.o.seed = 3;
    return w;
}

static void t21_free(t21_world *w)
{
    hbk_template_free(w->t);
    hbk_tokenizer_free(w->tok);
}

/* The paths in options point into the struct: a copy of a world runs on its own files. */
static bool t21_run(t21_world *w, const hbk_progress *p, hbk_allocator *a, hbk_error *err)
{
    w->o.seed_path = w->seed;
    w->o.corpus_path = w->corpus;
    return hbk_loop_run(w->m, w->tok, &w->o, w->dir, p, &w->r, a, err);
}

/* DIR/name, or with `more`, DIR/name/more. */
static const char *t21_path(char out[512], const char *dir, const char *name, const char *more)
{
    assert_true(hbk_path(out, dir, name, NULL) && (!more || hbk_path(out, out, more, NULL)));
    return out;
}

/* What two runs have in common to the byte. */
static const char *const t21_files[] = {
    "template.json",               "rubric.txt",         "seed.jsonl",
    "segments.jsonl",              "candidates.jsonl",   "ratings-1.jsonl",
    "curated-1.jsonl",             "ratings-2.jsonl",    "curated-2.jsonl",
    "myx/adapter_model.safetensors", "myx/metrics.jsonl", "myx/humpback.json", "myx/adapter_config.json",
    "m0/adapter_model.safetensors", "m0/metrics.jsonl",  "m0/humpback.json",  "m0/adapter_config.json",
    "m1/adapter_model.safetensors", "m1/metrics.jsonl",  "m1/humpback.json",  "m1/adapter_config.json",
    "m2/adapter_model.safetensors", "m2/metrics.jsonl",  "m2/humpback.json",  "m2/adapter_config.json",
};
enum { T21_FILES = sizeof t21_files / sizeof *t21_files };

static void t21_check_same_run(const char *want, const char *got, const char *what)
{
    char a[512], b[512];
    for (int i = 0; i < T21_FILES; i++) {
        hbk_text bytes = t19_read(t21_path(a, want, t21_files[i], NULL));
        t19_check_same(&bytes, t21_path(b, got, t21_files[i], NULL), what);
        hbk_text_free(&bytes);
    }
}

/* A finished run that others are compared with: made once. */
static const char *t21_reference(t21_world *w)
{
    static char dir[512];
    static hbk_loop_result result;
    hbk_error err;
    if (!*dir) {
        test_tmp(dir, "t21_reference");
        t21_world own = *w;
        memcpy(own.dir, dir, sizeof dir);
        check_ok(t21_run(&own, NULL, NULL, &err));
        result = own.r;
    }
    w->r = result;
    return dir;
}

static hbk_int t21_count(const char *dir)
{
    hbk_int n = 0;
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d)) != NULL;) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

/* ---- what a run leaves --------------------------------------------------------------------- */

/* Promise: "seed,web" joins the tags in that order, a missing tag is left out, another list is refused. */
static void t21_inference_tags(void **state)
{
    (void)state;
    static const char *const cases[][4] = {
        {"none", "S.", "W.", ""},     {"seed", "S.", "W.", "S."},     {"web", "S.", "W.", "W."},
        {"seed,web", "S.", "W.", "S. W."}, {"web,seed", "S.", "W.", "W. S."}, {"seed,web", NULL, "W.", "W."},
        {"seed,web", "S.", NULL, "S."}, {"web,seed", NULL, "W.", "W."}, {"seed", NULL, "W.", ""},
        {"seed,web", NULL, NULL, ""},
        {"seed,web", HBK_TAG_SEED, HBK_TAG_WEB,
         "Answer in the style of an AI Assistant. Answer with knowledge from web search."},
    };
    hbk_error err;
    char out[512];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_ok(hbk_inference_tag(out, cases[i][0], cases[i][1], cases[i][2], &err));
        assert_string_equal(out, cases[i][3]);
    }
    static const char *const wrong[] = {"", "both", "seed, web", "Seed", "seed,seed", "seed,web,"};
    for (size_t i = 0; i < 6; i++)
        check_error(hbk_inference_tag(out, wrong[i], "S.", "W.", &err), HBK_ERROR_OPTION, "seed,web");
    char large[300];
    memset(large, 'x', 299);
    large[299] = 0;
    strcpy(out, "as it was");
    check_error(hbk_inference_tag(out, "seed,web", large, large, &err), HBK_ERROR_RANGE, "longer");
    check_error(hbk_inference_tag(out, "both", "S.", "W.", &err), HBK_ERROR_OPTION, "seed,web");
    assert_string_equal(out, "as it was");
    assert_string_equal(hbk_loop_defaults().inference_tags, "seed,web"); /* the paper's */
    assert_string_equal(hbk_loop_defaults().tag_seed, "Answer in the style of an AI Assistant.");
    assert_string_equal(hbk_loop_defaults().tag_web, "Answer with knowledge from web search.");
}

/* The candidate with this id, or NULL. */
static const json_t *t21_find(const json_t *rows, const char *id)
{
    for (size_t i = 0; i < json_array_size(rows); i++)
        if (!strcmp(t19_string(rows, i, "id"), id)) return json_array_get(rows, i);
    return NULL;
}

/* Promise: the folder holds the files of a run and no others; every segment has a candidate, every usable one
   a rating in both iterations, and what is curated are the best of them, unchanged. */
static void t21_run_folder(void **state)
{
    (void)state;
    hbk_error err;
    t21_world w = t21_new("folder");
    const char *dir = t21_reference(&w);
    char path[512];
    for (int i = 0; i < T21_FILES; i++) assert_true(hbk_file_exists(t21_path(path, dir, t21_files[i], NULL)));
    assert_int_equal(t21_count(dir), 14); /* run.json, template, rubric, 7 jsonl, 4 folders; no .tmp */
    for (int k = 0; k < 4; k++) {
        static const char *const folders[] = {"myx", "m0", "m1", "m2"};
        assert_int_equal(t21_count(t21_path(path, dir, folders[k], NULL)), 5); /* no checkpoint */
    }
    assert_int_equal(w.r.n_seed, T21_SEED);
    assert_int_equal(w.r.n_segments, T21_CORPUS);
    assert_int_equal(w.r.n_candidates, T21_CORPUS);
    assert_in_range(w.r.n_ok, 4, T21_CORPUS);
    assert_int_equal(w.r.iterations, 2);
    assert_string_equal(w.r.stopped, "");
    assert_string_equal(w.r.final_dir, t21_path(path, dir, "m2", NULL));
    json_t *candidates = t19_rows(t21_path(path, dir, "candidates.jsonl", NULL));
    assert_int_equal(json_array_size(candidates), T21_CORPUS);
    for (size_t i = 0; i < T21_CORPUS; i++)
        assert_string_equal(t19_string(candidates, i, "output"), t21_corpus[i]);
    for (int k = 1; k <= 2; k++) {
        json_t *ratings = t19_rows(t21_path(path, dir, k == 1 ? "ratings-1.jsonl" : "ratings-2.jsonl", NULL));
        json_t *curated = t19_rows(t21_path(path, dir, k == 1 ? "curated-1.jsonl" : "curated-2.jsonl", NULL));
        const hbk_curate_counts *c = &w.r.curated[k - 1];
        assert_int_equal(json_array_size(ratings), w.r.n_ok); /* every usable one anew: kept before or not */
        assert_int_equal(c->n, w.r.n_ok);
        assert_int_equal(c->rated, w.r.n_ok);
        assert_int_equal(c->kept, (hbk_int)ceil(0.4 * (double)w.r.n_ok - 1e-9));
        assert_int_equal(json_array_size(curated), c->kept);
        for (size_t i = 0; i < json_array_size(curated); i++) {
            const json_t *row = json_array_get(curated, i);
            const json_t *candidate = t21_find(candidates, t19_string(curated, i, "id"));
            const json_t *rating = t21_find(ratings, t19_string(curated, i, "id"));
            assert_true(candidate && rating);
            assert_true(
                json_equal(json_object_get(row, "instruction"), json_object_get(candidate, "instruction")));
            assert_true(json_equal(json_object_get(row, "output"), json_object_get(candidate, "output")));
            assert_true(json_equal(json_object_get(row, "score"), json_object_get(rating, "score")));
            assert_true(json_number_value(json_object_get(row, "score")) >= c->threshold);
            assert_string_equal(json_string_value(json_object_get(candidate, "status")), "ok");
        }
        json_decref(ratings);
        json_decref(curated);
    }
    json_decref(candidates);
    json_t *run = hbk_json_read(t21_path(path, dir, "run.json", NULL), &err);
    const json_t *stages = json_object_get(run, "stages");
    t19_check_keys(stages, "segments myx candidates m0 ratings-1 curated-1 m1 ratings-2 curated-2 m2");
    for (int k = 0; k < 2; k++) {
        const json_t *counts = json_object_get(stages, k ? "curated-2" : "curated-1");
        assert_int_equal(json_integer_value(json_object_get(counts, "kept")), w.r.curated[k].kept);
        for (size_t i = 0; i < 5; i++)
            assert_int_equal(json_integer_value(json_array_get(json_object_get(counts, "histogram"), i)),
                             w.r.curated[k].histogram[i]);
    }
    assert_int_equal(json_integer_value(json_object_get(json_object_get(stages, "m1"), "examples")),
                     T21_SEED + w.r.curated[0].kept);
    json_decref(run);
    /* called again, it finds everything done: no step, no wave, the same result */
    t19_watch watch;
    hbk_progress p = t19_progress(&watch, 0);
    t21_world again = w;
    memcpy(again.dir, dir, 512);
    memset(&again.r, 0, sizeof again.r);
    check_ok(t21_run(&again, &p, NULL, &err));
    assert_int_equal(watch.calls, 0);
    assert_int_equal(again.r.n_ok, w.r.n_ok);
    assert_int_equal(again.r.curated[1].kept, w.r.curated[1].kept);
    assert_string_equal(again.r.final_dir, w.r.final_dir);
    t21_free(&w);
}

/* Adds pairs to a data set, with the tag spelled out. */
static void t21_render(hbk_dataset *d, const t21_world *w, hbk_use use, const char *instruction,
                       const char *output, const char *tag)
{
    hbk_error err;
    hbk_tokens ids;
    hbk_int n_prompt;
    char tagged[256];
    hbk_render r;
    memset(&ids, 0, sizeof ids);
    memset(&r, 0, sizeof r);
    r.use = use;
    if (use == HBK_FORWARD) {
        snprintf(tagged, sizeof tagged, "%s", instruction);
        r.instruction = tagged;
        r.tag = tag;
        r.reply = output;
    } else {
        r.output = output;
        r.reply = instruction;
    }
    check_ok(hbk_template_tokens(w->t, w->tok, &r, &ids, &n_prompt, &err));
    check_ok(hbk_dataset_add(d, ids.data, ids.n, n_prompt, &err));
    hbk_tokens_free(&ids);
}

/* Promise: each of the four models is the base finetuned - M_yx on the reversed seed, M0 on the seed with the
   seed's tag, M1 and M2 on the seed with that tag and the curated pairs with the web's - to the byte. */
static void t21_models_from_the_base(void **state)
{
    (void)state;
    static const char *const names[] = {"myx", "m0", "m1", "m2"};
    static const char *const curated[] = {NULL, NULL, "curated-1.jsonl", "curated-2.jsonl"};
    t21_world w = t21_new("direct");
    const char *dir = t21_reference(&w);
    for (int k = 0; k < 4; k++) {
        hbk_error err;
        char path[512], own[512];
        hbk_dataset d;
        memset(&d, 0, sizeof d);
        for (int i = 0; i < T21_SEED; i++)
            t21_render(&d, &w, k == 0 ? HBK_BACKWARD : HBK_FORWARD, t21_seed[i][0], t21_seed[i][1],
                       "Answer in the style of an AI Assistant.");
        json_t *rows = curated[k] ? t19_rows(t21_path(path, dir, curated[k], NULL)) : json_array();
        for (size_t i = 0; i < json_array_size(rows); i++)
            t21_render(&d, &w, HBK_FORWARD, t19_string(rows, i, "instruction"), t19_string(rows, i, "output"),
                       "Answer with knowledge from web search.");
        assert_int_equal(json_array_size(rows), k < 2 ? 0 : w.r.curated[k - 2].kept);
        json_decref(rows);
        hbk_train_options o = t21_training(k == 0 ? 3 : k == 1 ? 4 : 5);
        hbk_train_data data = {&d, NULL, NULL};
        hbk_recipe recipe;
        memset(&recipe, 0, sizeof recipe);
        test_tmp(own, k == 0 ? "t21_own0" : k == 1 ? "t21_own1" : k == 2 ? "t21_own2" : "t21_own3");
        check_ok(hbk_finetune(w.m, &data, &o, NULL, &recipe, own, NULL, NULL, &err));
        hbk_text want = t19_read(t21_path(path, own, "adapter_model.safetensors", NULL));
        hbk_text got = t19_read(t21_path(path, dir, names[k], "adapter_model.safetensors"));
        if (want.len != got.len || memcmp(want.data, got.data, got.len))
            fail_msg("%s is another model", names[k]);
        hbk_text_free(&want);
        want = t19_read(t21_path(path, own, "metrics.jsonl", NULL));
        t19_check_same(&want, t21_path(path, dir, names[k], "metrics.jsonl"), names[k]);
        hbk_text_free(&want);
        hbk_text_free(&got);
        hbk_dataset_free(&d);
    }
    t21_free(&w);
}

/* Promise: the candidates are M_yx's, the first ratings M0's and the second M1's, each of all candidates. */
static void t21_stages_by_their_models(void **state)
{
    (void)state;
    t21_world w = t21_new("stages");
    const char *dir = t21_reference(&w);
    static const char *const names[] = {"myx", "m0", "m1"};
    static const char *const files[] = {"candidates.jsonl", "ratings-1.jsonl", "ratings-2.jsonl"};
    char candidates[512], segments[512], path[512], own[512];
    t21_path(candidates, dir, "candidates.jsonl", NULL);
    t21_path(segments, dir, "segments.jsonl", NULL);
    hbk_text read[3];
    for (int k = 0; k < 3; k++) {
        hbk_error err;
        hbk_tuned t;
        char who[64];
        check_ok(hbk_tuned_load(&t, w.m, t21_path(path, dir, names[k], NULL), NULL, &err));
        snprintf(who, sizeof who, "%s %016llx", names[k],
                 (unsigned long long)hbk_adapter_hash(hbk_model_hash(w.m), t.adapter));
        test_tmp(own, "t21_stage.jsonl");
        unlink(own);
        w.o.augment.decode.seed = w.o.curate.decode.seed = w.o.seed;
        if (k == 0)
            check_ok(hbk_augment(t.model, t.adapter, w.tok, w.t, &w.o.augment, who, segments, own, NULL,
                                 NULL, &err));
        else
            check_ok(hbk_rate(t.model, t.adapter, w.tok, w.t, &w.o.curate, who, candidates, own, NULL,
                              NULL, &err));
        read[k] = t19_read(t21_path(path, dir, files[k], NULL));
        t19_check_same(&read[k], own, files[k]);
        hbk_tuned_free(&t);
    }
    json_t *first = t19_rows(t21_path(path, dir, files[1], NULL));
    json_t *second = t19_rows(t21_path(path, dir, files[2], NULL));
    int differ = 0;
    for (size_t i = 0; i < json_array_size(first); i++)
        differ += !json_equal(json_object_get(json_array_get(first, i), "score"),
                              json_object_get(json_array_get(second, i), "score"));
    assert_true(differ > 0);
    json_decref(first);
    json_decref(second);
    for (int k = 0; k < 3; k++) hbk_text_free(&read[k]);
    t21_free(&w);
}

/* A key of DIR/name/humpback.json, "null" where it is that. */
static void t21_check_recipe(const char *dir, const char *name, const char *key, const char *wanted)
{
    char path[512];
    hbk_error err;
    json_t *j = hbk_json_read(t21_path(path, dir, name, "humpback.json"), &err);
    const json_t *value = json_object_get(j, key);
    const char *got = !value ? "absent" : json_is_null(value) ? "null" : json_string_value(value);
    if (!got || strcmp(got, wanted))
        fail_msg("%s: %s is %s, expected %s", name, key, got ? got : "?", wanted);
    json_decref(j);
}

/* Promise: beside each model stands what it was trained with; a prompt made from that file alone is, to the
   id, the prompt that M0 was trained on; other tags change neither M_yx nor what it writes. */
static void t21_tags(void **state)
{
    (void)state;
    hbk_error err;
    t21_world w = t21_new("tags");
    const char *dir = t21_reference(&w);
    static const char *const names[] = {"myx", "m0", "m1", "m2"};
    for (int k = 0; k < 4; k++) {
        t21_check_recipe(dir, names[k], "tag_seed", k ? HBK_TAG_SEED : "null");
        t21_check_recipe(dir, names[k], "tag_web", k ? HBK_TAG_WEB : "null");
        t21_check_recipe(dir, names[k], "inference_tag", k ? HBK_TAG_SEED : "null");
        t21_check_recipe(dir, names[k], "use", k ? "forward" : "backward");
    }
    char path[512], tag[512], folder[512];
    check_ok(hbk_recipe_tag(tag, t21_path(folder, dir, "m0", NULL), &err));
    hbk_template *t = hbk_template_load(t21_path(path, dir, "m0", "humpback.json"), NULL, &err);
    if (!t) fail_msg("%s", err.message);
    assert_true(hbk_template_hash(t) == hbk_template_hash(w.t));
    for (int i = 0; i < T21_SEED; i++) {
        hbk_dataset d;
        hbk_tokens ids;
        hbk_render r;
        memset(&d, 0, sizeof d);
        memset(&ids, 0, sizeof ids);
        memset(&r, 0, sizeof r);
        t21_render(&d, &w, HBK_FORWARD, t21_seed[i][0], t21_seed[i][1], HBK_TAG_SEED); /* as M0 was trained */
        r.use = HBK_FORWARD;
        r.instruction = t21_seed[i][0];
        r.tag = tag;
        check_ok(hbk_template_tokens(t, w.tok, &r, &ids, NULL, &err));
        assert_int_equal(ids.n, d.start[1] - hbk_dataset_targets(&d, 0));
        assert_memory_equal(ids.data, d.tokens.data, sizeof(int32_t) * (size_t)ids.n);
        hbk_tokens_free(&ids);
        hbk_dataset_free(&d);
    }
    hbk_template_free(t);
    /* the other way round: the same candidates, another M0, which rates otherwise */
    w.o.tag_seed = HBK_TAG_WEB;
    w.o.tag_web = HBK_TAG_SEED;
    w.o.iterations = 1;
    check_ok(t21_run(&w, NULL, NULL, &err));
    static const char *const same[] = {"myx/adapter_model.safetensors", "candidates.jsonl"};
    for (int i = 0; i < 2; i++) {
        hbk_text want = t19_read(t21_path(path, dir, same[i], NULL));
        t19_check_same(&want, t21_path(path, w.dir, same[i], NULL), "other tags");
        hbk_text_free(&want);
    }
    hbk_text a = t19_read(t21_path(path, dir, "m0", "adapter_model.safetensors"));
    hbk_text b = t19_read(t21_path(path, w.dir, "m0", "adapter_model.safetensors"));
    assert_true(a.len == b.len && memcmp(a.data, b.data, a.len));
    hbk_text_free(&a);
    hbk_text_free(&b);
    check_ok(hbk_recipe_tag(tag, t21_path(folder, w.dir, "m1", NULL), &err));
    assert_string_equal(tag, HBK_TAG_WEB); /* "seed" means the seed's tag, whatever its words */
    check_ok(hbk_recipe_tag(tag, w.dir, &err)); /* an adapter from elsewhere has none */
    assert_string_equal(tag, "");
    strcpy(tag, "as it was");
    check_ok(hbk_file_write(t21_path(path, w.dir, "humpback.json", NULL), "{\"inf", 5, &err));
    check_error(hbk_recipe_tag(tag, w.dir, &err), HBK_ERROR_FORMAT, "humpback.json");
    assert_string_equal(tag, "as it was");
    unlink(path);
    t21_free(&w);
}

/* Promise: the learning rate falls to lr_end itself, an absolute rate, at the last step of every finetuning;
   each has the steps it was given. */
static void t21_learning_rates(void **state)
{
    (void)state;
    t21_world w = t21_new("rates");
    const char *dir = t21_reference(&w);
    static const char *const names[] = {"myx", "m0", "m1", "m2"};
    static const size_t steps[] = {3, 4, 5, 5};
    for (int k = 0; k < 4; k++) {
        char path[512];
        json_t *rows = t19_rows(t21_path(path, dir, names[k], "metrics.jsonl"));
        assert_int_equal(json_array_size(rows), steps[k]);
        for (size_t i = 0; i < steps[k]; i++) {
            const json_t *row = json_array_get(rows, i);
            double t = (double)i / (double)(steps[k] - 1);
            t19_check_keys(row, "step loss lr grad_norm tokens");
            check_near(json_number_value(json_object_get(row, "lr")), 2e-2 + t * (3e-3 - 2e-2), 1e-15);
            assert_int_equal(json_integer_value(json_object_get(row, "step")), i + 1);
        }
        json_decref(rows);
    }
    t21_free(&w);
}

/* Promise: the run's seed decides what is sampled. */
static void t21_seed_matters(void **state)
{
    (void)state;
    hbk_error err;
    char a[512], b[512];
    t21_world w = t21_new("seed");
    const char *dir = t21_reference(&w);
    w.o.seed = 4;
    w.o.iterations = 1;
    check_ok(t21_run(&w, NULL, NULL, &err));
    json_t *one = t19_rows(t21_path(a, dir, "candidates.jsonl", NULL));
    json_t *two = t19_rows(t21_path(b, w.dir, "candidates.jsonl", NULL));
    int differ = 0;
    for (size_t i = 0; i < T21_CORPUS; i++)
        differ += strcmp(t19_string(one, i, "instruction"), t19_string(two, i, "instruction")) != 0;
    assert_true(differ > 0);
    json_decref(one);
    json_decref(two);
    t21_free(&w);
}

/* ---- iterations, mixing, validation ------------------------------------------------------------ */

/* Promise: a threshold or a share said for one curation holds until another is said, and what was said for
   all before the first. */
static void t21_keeping(void **state)
{
    (void)state;
    hbk_loop_options o = hbk_loop_defaults();
    static const double keep[][3] = {{0, 0, 0}, {4, 0, 0}, {4.5, 4, 0}, {0, 3, 0}, {0, 0, 0}};
    static const double share[][3] = {{0, 0, 0}, {0, 0, 0}, {0, 0, 0}, {0.5, 0, 0.25}, {0.1, 0.2, 0}};
    static const double keep_is[][3] = {
        {4.5, 4.5, 4.5}, {4, 4, 4}, {4.5, 4, 4}, {4.5, 3, 3}, {4.5, 4.5, 4.5}};
    static const double share_is[][3] = {{0, 0, 0}, {0, 0, 0}, {0, 0, 0}, {0.5, 0, 0.25}, {0.1, 0.2, 0.2}};
    for (int i = 0; i < 5; i++)
        for (int k = 0; k < 3; k++) {
            memcpy(o.keep, keep[i], sizeof keep[i]);
            memcpy(o.keep_share, share[i], sizeof share[i]);
            hbk_curate_options c = hbk__loop_keeping(&o, k + 1);
            assert_true(c.keep == keep_is[i][k] && c.keep_share == share_is[i][k]);
        }
}

/* Promise: three iterations, each with its own share, make M1, M2 and M3, every one the base finetuned on its
   own curated pairs, which the model before it rated; the record has a threshold for each. */
static void t21_three_iterations(void **state)
{
    (void)state;
    hbk_error err;
    char path[512], name[32];
    t21_world w = t21_new("three");
    static const double shares[] = {0.3, 0.6, 1};
    w.o.iterations = 3;
    memcpy(w.o.keep_share, shares, sizeof shares);
    check_ok(t21_run(&w, NULL, NULL, &err));
    assert_int_equal(w.r.iterations, 3);
    assert_int_equal(w.r.steps, 3 + 4 + 3 * 5);
    assert_string_equal(w.r.final_dir, t21_path(path, w.dir, "m3", NULL));
    json_t *run = hbk_json_read(t21_path(path, w.dir, "run.json", NULL), &err);
    const json_t *stages = json_object_get(run, "stages"), *base = NULL;
    t19_check_keys(stages, "segments myx candidates m0 ratings-1 curated-1 m1 ratings-2 curated-2 m2 "
                           "ratings-3 curated-3 m3");
    for (int k = 1; k <= 3; k++) {
        const json_t *recorded = json_object_get(json_object_get(run, "options"), "keep_share");
        assert_true(json_real_value(json_array_get(recorded, (size_t)k - 1)) == shares[k - 1]);
        assert_int_equal(w.r.curated[k - 1].kept, (hbk_int)ceil(shares[k - 1] * (double)w.r.n_ok - 1e-9));
        snprintf(name, sizeof name, "ratings-%d.jsonl", k);
        json_t *rows = t19_rows(t21_path(path, w.dir, name, NULL));
        const char *by = json_string_value(
            json_object_get(json_object_get(json_array_get(rows, 0), "prov"), "adapter"));
        snprintf(name, sizeof name, "m%d ", k - 1);
        assert_memory_equal(by, name, 3);
        json_decref(rows);
        snprintf(name, sizeof name, "m%d", k);
        const json_t *model = json_object_get(stages, name);
        assert_int_equal(json_integer_value(json_object_get(model, "examples")),
                         T21_SEED + w.r.curated[k - 1].kept);
        base = json_object_get(model, "base");
        assert_true(base && json_equal(base, json_object_get(json_object_get(run, "options"), "model_hash")));
    }
    json_decref(run);
    t21_free(&w);
}

/* Promise: copies of the seed are counted among the examples of M1 and M2 and of no other model; a share held
   out is trained on by none, and every model is validated on it. */
static void t21_mixing(void **state)
{
    (void)state;
    static const char *const names[] = {"myx", "m0", "m1", "m2"};
    for (int way = 0; way < 2; way++) {
        hbk_error err;
        char path[512];
        t21_world w = t21_new(way ? "held" : "repeat");
        if (way) w.o.validation_share = 0.4;
        else w.o.seed_repeat = 3;
        check_ok(t21_run(&w, NULL, NULL, &err));
        json_t *run = hbk_json_read(t21_path(path, w.dir, "run.json", NULL), &err);
        for (int k = 0; k < 4; k++) {
            const json_t *model = json_object_get(json_object_get(run, "stages"), names[k]);
            hbk_int n = json_integer_value(json_object_get(model, "examples"));
            hbk_int held = json_integer_value(json_object_get(model, "validation"));
            hbk_int kept = k < 2 ? 0 : w.r.curated[k - 2].kept, copies = way || k < 2 ? 1 : 3;
            assert_int_equal(n + held, copies * T21_SEED + kept);
            assert_true(way ? held >= 1 && n > held : held == 0);
            json_t *metrics = t19_rows(t21_path(path, w.dir, names[k], "metrics.jsonl"));
            const json_t *last = json_array_get(metrics, json_array_size(metrics) - 1);
            assert_true((json_object_get(last, "val_loss") != NULL) == (way == 1));
            json_decref(metrics);
        }
        json_decref(run);
        t21_free(&w);
    }
}

/* ---- a second call ---------------------------------------------------------------------------- */

/* Changes option number i of a training in a way that any option stands; false after the last. */
static bool t21_change_training(hbk_train_options *o, int i)
{
    if (i >= (int)(sizeof hbk__train_fields / sizeof *hbk__train_fields)) return false;
    char *field = (char *)o + hbk__train_fields[i].offset;
    switch (hbk__train_fields[i].kind) {
    case 'b': *(bool *)field = !*(bool *)field; break;
    case 'i': *(hbk_int *)field += 3; break;
    case 's': *(hbk_schedule *)field = HBK_COSINE; break;
    case 't': *(unsigned *)field ^= 1; break;
    case 'u': *(uint64_t *)field ^= 1; break;
    case 'I':
        for (int k = 0; k < HBK_N_TARGETS; k++) ((hbk_int *)field)[k] += k + 1;
        break;
    case 'R':
        for (int k = 0; k < HBK_N_TARGETS; k++) ((double *)field)[k] += k + 1;
        break;
    default: *(double *)field += 0.25;
    }
    return true;
}

/* Makes change number i to the options and puts the name it must be refused by into `name`; false after the
   last. The trainings, of which there are three, come first. */
static bool t21_change(hbk_loop_options *o, int i, char name[64])
{
    static const char *const stages[] = {"myx", "m0", "mt"}, *const holdout[] = {"/no/such.txt"};
    hbk_train_options *const trainings[] = {&o->myx, &o->m0, &o->mt};
    int k = 3 * (int)(sizeof hbk__train_fields / sizeof *hbk__train_fields);
    if (i < k) {
        snprintf(name, 64, "%s.%s", stages[i % 3], hbk__train_fields[i / 3].key);
        return t21_change_training(trainings[i % 3], i / 3);
    }
#define T21_CHANGE(key, change)       \
    if (k++ == i) {                   \
        change;                       \
        snprintf(name, 64, "%s", key); \
        return true;                  \
    }
    T21_CHANGE("model", o->model_name = "other")
    T21_CHANGE("tag_seed", o->tag_seed = "Be kind.")
    T21_CHANGE("tag_web", o->tag_web = NULL)
    T21_CHANGE("inference_tags", o->inference_tags = "seed,web")
    T21_CHANGE("iterations", o->iterations = 3)
    T21_CHANGE("seed_repeat", o->seed_repeat = 2)
    T21_CHANGE("validation_share", o->validation_share = 0.5)
    T21_CHANGE("stop_on_collapse", o->stop_on_collapse = true)
    T21_CHANGE("stop_unchanged", o->stop_unchanged = true)
    T21_CHANGE("max_steps", o->max_steps = 1000)
    T21_CHANGE("max_length", o->max_length = 200)
    T21_CHANGE("readout", o->curate.readout = HBK_READOUT_TEXT)
    T21_CHANGE("votes", (o->curate.votes = 2, o->curate.decode.sampling.temperature = 1))
    T21_CHANGE("vote", o->curate.vote = HBK_VOTE_MEDIAN)
    T21_CHANGE("retries", o->curate.retries = 1)
    T21_CHANGE("signals", o->curate.signals = HBK_SIGNAL_IFD)
    T21_CHANGE("keep_top", (o->curate.keep_top = 3, o->curate.keep_share = 0))
    T21_CHANGE("keep", o->curate.keep = 4)
    T21_CHANGE("keep", o->keep[0] = 4)
    T21_CHANGE("keep", o->keep[1] = 4)
    T21_CHANGE("keep_share", o->curate.keep_share = 0.4000000001)
    T21_CHANGE("keep_share", o->keep_share[0] = 0.5)
    T21_CHANGE("keep_share", o->keep_share[1] = 0.5)
    T21_CHANGE("seed", o->seed = 4)
    T21_CHANGE("augment.temperature", o->augment.decode.sampling.temperature = 1)
    T21_CHANGE("augment.top_p", o->augment.decode.sampling.top_p = 1)
    T21_CHANGE("augment.top_k", o->augment.decode.sampling.top_k = 5)
    T21_CHANGE("augment.min_p", o->augment.decode.sampling.min_p = 0.1)
    T21_CHANGE("augment.repetition_penalty", o->augment.decode.sampling.repetition_penalty = 1.1)
    T21_CHANGE("augment.max_new", o->augment.decode.sampling.max_new = 13)
    T21_CHANGE("augment.stop", o->augment.decode.sampling.stop = 9)
    T21_CHANGE("augment.wave", o->augment.decode.wave = 5)
    T21_CHANGE("augment.slots", o->augment.decode.slots = 3)
    T21_CHANGE("augment.max_length", o->augment.decode.max_length = 100)
    T21_CHANGE("augment.cache", o->augment.decode.cache = HBK_BF16)
    T21_CHANGE("augment.candidates", o->augment.candidates = 2)
    T21_CHANGE("augment.min_chars", o->augment.min_chars = 4)
    T21_CHANGE("augment.max_chars", o->augment.max_chars = 300)
    T21_CHANGE("augment.max_echo", o->augment.max_echo = 0.25)
    T21_CHANGE("augment.echo_words", o->augment.echo_words = 5)
    T21_CHANGE("augment.keep_truncated", o->augment.keep_truncated = true)
    T21_CHANGE("augment.raw", o->augment.raw = true)
    T21_CHANGE("augment.dedup", o->augment.sift.dedup = 0.5)
    T21_CHANGE("augment.dedup_words", o->augment.sift.dedup_words = 3)
    T21_CHANGE("augment.dedup_hashes", o->augment.sift.dedup_hashes = 64)
    T21_CHANGE("augment.holdout", (o->augment.sift.holdout = holdout, o->augment.sift.n_holdout = 1))
    T21_CHANGE("augment.holdout_words", o->augment.sift.holdout_words = 8)
    T21_CHANGE("rewrite", o->rewrite = true)
    T21_CHANGE("rewrite.temperature", o->rewriting.sampling.temperature = 0.1)
    T21_CHANGE("rewrite.top_p", o->rewriting.sampling.top_p = 0.5)
    T21_CHANGE("rewrite.top_k", o->rewriting.sampling.top_k = 5)
    T21_CHANGE("rewrite.min_p", o->rewriting.sampling.min_p = 0.1)
    T21_CHANGE("rewrite.repetition_penalty", o->rewriting.sampling.repetition_penalty = 1.1)
    T21_CHANGE("rewrite.max_new", o->rewriting.sampling.max_new = 9)
    T21_CHANGE("rewrite.stop", o->rewriting.sampling.stop = 9)
    T21_CHANGE("rewrite.wave", o->rewriting.wave = 5)
    T21_CHANGE("rewrite.slots", o->rewriting.slots = 1)
    T21_CHANGE("rewrite.max_length", o->rewriting.max_length = 100)
    T21_CHANGE("rewrite.cache", o->rewriting.cache = HBK_BF16)
    T21_CHANGE("rate.temperature", o->curate.decode.sampling.temperature = 0.1)
    T21_CHANGE("rate.top_p", o->curate.decode.sampling.top_p = 0.5)
    T21_CHANGE("rate.top_k", o->curate.decode.sampling.top_k = 5)
    T21_CHANGE("rate.min_p", o->curate.decode.sampling.min_p = 0.1)
    T21_CHANGE("rate.repetition_penalty", o->curate.decode.sampling.repetition_penalty = 1.1)
    T21_CHANGE("rate.max_new", o->curate.decode.sampling.max_new = 9)
    T21_CHANGE("rate.stop", o->curate.decode.sampling.stop = 9)
    T21_CHANGE("rate.wave", o->curate.decode.wave = 5)
    T21_CHANGE("rate.slots", o->curate.decode.slots = 1)
    T21_CHANGE("rate.max_length", o->curate.decode.max_length = 100)
    T21_CHANGE("rate.cache", o->curate.decode.cache = HBK_BF16)
#undef T21_CHANGE
    return false;
}

/* Promise: with rewriting each rater writes what it kept anew, the next model learns from that, and a second
   call changes nothing. */
static void t21_rewrites(void **state)
{
    (void)state;
    hbk_error err;
    t21_world w = t21_new("rewrites");
    char path[512];
    w.o.rewrite = true;
    w.o.rewriting.sampling.max_new = 8;
    w.o.rewriting.sampling.temperature = 0;
    w.o.rewriting.wave = 4;
    hbk_file_set_aside(w.dir, NULL);
    check_ok(t21_run(&w, NULL, NULL, &err));
    assert_true(w.r.iterations >= 1);
    json_t *rows = t19_rows(t21_path(path, w.dir, "rewritten-1.jsonl", NULL));
    assert_int_equal(json_array_size(rows), w.r.curated[0].kept);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *prov = json_object_get(json_array_get(rows, i), "prov");
        const char *who = json_string_value(json_object_get(prov, "adapter"));
        assert_true(who && strncmp(who, "m0 ", 3) == 0);
        assert_string_equal(t19_string(rows, i, "source"), "aug");
        t19_string(rows, i, "rewrite");
    }
    json_decref(rows);
    hbk_text before = t19_read(path),
             weights = t19_read(t21_path(path, w.dir, "m1", "adapter_model.safetensors"));
    check_ok(t21_run(&w, NULL, NULL, &err));
    t19_check_same(&before, t21_path(path, w.dir, "rewritten-1.jsonl", NULL), "rewritten twice");
    hbk_text again = t19_read(t21_path(path, w.dir, "m1", "adapter_model.safetensors"));
    assert_true(again.len == weights.len && memcmp(again.data, weights.data, again.len) == 0);
    hbk_text_free(&before);
    hbk_text_free(&weights);
    hbk_text_free(&again);
    t21_free(&w);
}

/* What no change of t21_change touches, and why not. */
static void t21_exempt(hbk_loop_options *o)
{
    hbk_train_options *const trainings[] = {&o->myx, &o->m0, &o->mt};
    o->seed_path = o->corpus_path = o->replay_path = "x"; /* the files' hashes are recorded */
    o->tmpl = (const hbk_template *)(uintptr_t)o;         /* its hash is */
    o->force = !o->force;                                 /* what a second call is for */
    o->augment.decode.seed++, o->curate.decode.seed++, o->rewriting.seed++; /* `seed` stands for them */
    o->curate.backward = (const hbk_model *)(uintptr_t)o; /* the run's own M_yx takes its place */
    o->curate.backward_adapter = (const hbk_adapter *)(uintptr_t)o;
    for (int k = 2; k < HBK_ITERATIONS; k++)
        o->keep[k]++, o->keep_share[k]++; /* no curation in two has these */
    for (int k = 0; k < 3; k++) { /* these change no bit of a result */
        trainings[k]->recompute = !trainings[k]->recompute;
        trainings[k]->save_every++;
    }
}

/* Adds to `touched` the bytes in which two options differ. */
static void t21_touch(unsigned char *touched, const hbk_loop_options *x, const hbk_loop_options *y)
{
    for (size_t i = 0; i < sizeof *x; i++)
        touched[i] |= ((const unsigned char *)x)[i] ^ ((const unsigned char *)y)[i];
}

/* Promise: there is no option that is not recorded, or exempt for a reason: the changes of t21_change, each
   of which must be refused by name, and those of t21_exempt reach every word of the struct. (Whoever adds an
   option and forgets to record it, or to try it, ends here.) */
static void t21_every_option(void **state)
{
    (void)state;
    enum { WORD = 8 };
    t21_world w = t21_new("every");
    unsigned char touched[sizeof(hbk_loop_options)];
    char name[64];
    memset(touched, 0, sizeof touched);
    hbk_loop_options o;
    memcpy(&o, &w.o, sizeof o); /* its padding too */
    for (int i = 0; t21_change(&o, i, name); i++) {
        t21_touch(touched, &o, &w.o);
        memcpy(&o, &w.o, sizeof o);
    }
    t21_exempt(&o);
    t21_touch(touched, &o, &w.o);
    for (size_t i = 0; i < sizeof o; i += WORD) {
        size_t k = 0, n = HBK__MIN(sizeof o - i, (size_t)WORD);
        while (k < n && !touched[i + k]) k++;
        if (k == n) fail_msg("no change of the options reaches their bytes from %d on", (int)i);
    }
    t21_free(&w);
}

/* Promise: a folder is continued with the options it was begun with; any other is refused by name, with what
   it was and what it is, and nothing changes; so are another model and another template. */
static void t21_other_options(void **state)
{
    (void)state;
    hbk_error err;
    t21_world w = t21_new("options");
    const char *dir = t21_reference(&w);
    memcpy(w.dir, dir, 512);
    char path[512], begun[96];
    hbk_text state_before = t19_read(t21_path(path, dir, "run.json", NULL));
    hbk_loop_options o = w.o;
    char name[64];
    int n = 0;
    for (; w.o = o, t21_change(&w.o, n, name); n++) {
        snprintf(begun, sizeof begun, "was begun with %s ", name);
        check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION, begun);
        assert_non_null(strstr(err.message, "--force"));
        assert_string_equal(err.file, dir);
    }
    assert_true(n > 130);
    w.o.mt.schedule = HBK_COSINE; /* choices by the words of their flags */
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION,
                "begun with mt.schedule \"linear\", not \"cosine\"");
    w.o = o;
    w.o.m0.lora.targets = 1u << HBK_Q | 1u << HBK_LM_HEAD;
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION, ", not \"q_proj,lm_head\"");
    w.o = o;
    hbk_template *llama2 = hbk_template_load("llama2", NULL, &err);
    w.o.tmpl = llama2;
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION,
                "begun with template \"plain\", not \"llama2\"");
    w.o.tmpl = w.t;
    check_ok(hbk_template_set(w.t, HBK_RATING, "{instruction}\n{output}\nRate it:", &err)); /* --rubric */
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "template_hash");
    hbk_template_free(w.t);
    w.t = t19_template();
    w.o.tmpl = w.t;
    hbk_model *other = t19_model(w.tok, 32, 512);
    const hbk_model *m = w.m;
    w.m = other;
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "model_hash");
    w.m = m;
    w.o.inference_tags = "both";
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "'both'");
    t19_check_same(&state_before, t21_path(path, dir, "run.json", NULL), "after refusals");
    w.o = o;
    w.o.tmpl = w.t;
    w.o.m0.save_every = 7; /* no say in the result */
    check_ok(t21_run(&w, NULL, NULL, &err));
    hbk_text_free(&state_before);
    hbk_template_free(llama2);
    hbk_model_free(other);
    t21_free(&w);
}

/* Promise: input files may move but not change; --force sets the old folder aside, whole, and begins anew,
   and with nothing changed it just continues. */
static void t21_inputs_and_force(void **state)
{
    (void)state;
    hbk_error err;
    t21_world w = t21_new("force");
    char path[512], aside[640];
    hbk_text bytes;
    w.o.iterations = 1;
    check_ok(t21_run(&w, NULL, NULL, &err));
    hbk_text first = t19_read(t21_path(path, w.dir, "candidates.jsonl", NULL));
    bytes = t19_read(w.seed);
    test_tmp(w.seed, "t21_moved_seed.jsonl"); /* moved: fine */
    t19_write(w.seed, hbk_text_string(&bytes));
    check_ok(t21_run(&w, NULL, NULL, &err));
    hbk_text_add(&bytes, "{\"instruction\": \"Is it?\", \"output\": \"It is.\"}\n");
    t19_write(w.seed, hbk_text_string(&bytes));
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "begun with seed ");
    hbk_text_free(&bytes);
    test_tmp(w.seed, "t21_seed.jsonl");
    bytes = t19_read(w.corpus);
    test_tmp(w.corpus, "t21_other_corpus.jsonl");
    bytes.data[bytes.len - 5] = '!';
    t19_write(w.corpus, hbk_text_string(&bytes));
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "begun with segments ");
    test_tmp(w.corpus, "t21_corpus.jsonl");
    hbk_text_free(&bytes);

    w.o.force = true;
    check_ok(t21_run(&w, NULL, NULL, &err)); /* nothing to force */
    snprintf(aside, sizeof aside, "%s.1", w.dir);
    assert_false(hbk_file_exists(aside));
    for (int k = 1; k <= 2; k++) {
        w.o.seed = 10 + (uint64_t)k;
        check_ok(t21_run(&w, NULL, NULL, &err));
        snprintf(aside, sizeof aside, "%s.%d", w.dir, k);
        assert_true(hbk_file_exists(t21_path(path, aside, "m1", "adapter_model.safetensors")));
        if (k == 1) t19_check_same(&first, t21_path(path, aside, "candidates.jsonl", NULL), "set aside");
        json_t *run = hbk_json_read(t21_path(path, w.dir, "run.json", NULL), &err);
        assert_int_equal(json_integer_value(json_object_get(json_object_get(run, "options"), "seed")),
                         10 + k);
        json_decref(run);
    }
    hbk_text_free(&first);
    t21_free(&w);
}

/* ---- early ends ------------------------------------------------------------------------------ */

/* Promise: a curation that keeps nothing, and a backward model that writes nothing usable, end the loop with
   what there is; why is told in the result and in run.json, also by a second call. */
static void t21_stops(void **state)
{
    (void)state;
    for (int way = 0; way < 3; way++) {
        hbk_error err;
        char path[512];
        t21_world w = t21_new(way == 0 ? "stop_keep" : way == 1 ? "stop_text" : "stop_augment");
        if (way == 0) w.o.curate.keep_share = 0, w.o.curate.keep = 5.1;
        if (way == 1) w.o.curate.readout = HBK_READOUT_TEXT, w.o.curate.decode.sampling.max_new = 1;
        if (way == 2) w.o.augment.decode.sampling.max_new = 1;
        for (int call = 0; call < 2; call++) {
            memset(&w.r, 0, sizeof w.r);
            check_ok(t21_run(&w, NULL, NULL, &err));
            const char *why =
                way == 2 ? "none of 7 candidates has a usable instruction" : "curation 1 kept none of";
            assert_non_null(strstr(w.r.stopped, why));
            assert_non_null(strstr(w.r.stopped, "M0 is the result"));
            assert_int_equal(w.r.iterations, 0);
            assert_string_equal(w.r.final_dir, t21_path(path, w.dir, "m0", NULL));
            if (way == 1) assert_int_equal(w.r.curated[0].truncated, w.r.n_ok);
            if (way == 2) assert_int_equal(w.r.n_ok, 0);
        }
        assert_true(hbk_file_exists(t21_path(path, w.dir, "m0", "adapter_model.safetensors")));
        assert_false(hbk_file_exists(t21_path(path, w.dir, "m1", NULL)));
        json_t *run = hbk_json_read(t21_path(path, w.dir, "run.json", NULL), &err);
        assert_string_equal(json_string_value(json_object_get(run, "stopped")), w.r.stopped);
        json_decref(run);
        t21_free(&w);
    }
}

/* Promise: a curation that keeps what the one before it kept ends the loop, for the next model would be, to
   the byte, the one that there is. */
static void t21_stop_unchanged(void **state)
{
    (void)state;
    hbk_error err;
    char path[512], other[512];
    t21_world w = t21_new("unchanged");
    w.o.curate.keep_share = 1;
    check_ok(t21_run(&w, NULL, NULL, &err));
    assert_string_equal(w.r.stopped, ""); /* asked not to */
    hbk_text m1 = t19_read(t21_path(path, w.dir, "m1", "adapter_model.safetensors"));
    t19_check_same(&m1, t21_path(path, w.dir, "m2", "adapter_model.safetensors"), "the same pairs");
    test_tmp(w.dir, "t21_unchanged_stops");
    w.o.stop_unchanged = true;
    for (int call = 0; call < 2; call++) {
        check_ok(t21_run(&w, NULL, NULL, &err));
        snprintf(
            other, sizeof other,
            "curation 2 kept the same %d pairs as curation 1, and M2 would be M1 once more; M1 is the result",
            (int)w.r.curated[0].kept);
        assert_string_equal(w.r.stopped, other);
        assert_int_equal(w.r.iterations, 1);
        assert_string_equal(w.r.final_dir, t21_path(path, w.dir, "m1", NULL));
        assert_false(hbk_file_exists(t21_path(path, w.dir, "m2", NULL)));
        t19_check_same(&m1, t21_path(path, w.dir, "m1", "adapter_model.safetensors"), "asked to stop");
    }
    test_tmp(w.dir, "t21_unchanged_not");
    w.o.keep_share[1] = 0.4; /* other pairs: no reason to stop */
    check_ok(t21_run(&w, NULL, NULL, &err));
    assert_string_equal(w.r.stopped, "");
    assert_int_equal(w.r.iterations, 2);
    hbk_text_free(&m1);
    t21_free(&w);
}

/* Promise: a collapsed rater ends the loop where that is asked for, and not else. */
static void t21_stop_on_collapse(void **state)
{
    (void)state;
    hbk_error err;
    char path[512], wanted[128];
    t21_world w = t21_new("collapse");
    w.o.curate.keep_share = 1;
    w.o.stop_on_collapse = true;
    for (int call = 0; call < 2; call++) {
        check_ok(t21_run(&w, NULL, NULL, &err));
        assert_true(w.r.curated[0].collapsed);
        snprintf(wanted, sizeof wanted,
                 "the rater of curation 1 has collapsed: it kept %d of %d candidates; M0 is the result",
                 (int)w.r.n_ok, (int)w.r.n_ok);
        assert_string_equal(w.r.stopped, wanted);
        assert_int_equal(w.r.iterations, 0);
        assert_string_equal(w.r.final_dir, t21_path(path, w.dir, "m0", NULL));
        assert_false(hbk_file_exists(t21_path(path, w.dir, "m1", NULL)));
    }
    json_t *run = hbk_json_read(t21_path(path, w.dir, "run.json", NULL), &err);
    assert_string_equal(json_string_value(json_object_get(run, "stopped")), wanted);
    json_decref(run);
    test_tmp(w.dir, "t21_collapse_not");
    w.o.keep_share[0] = 0.4; /* the first curation selects; the second keeps all */
    w.o.keep_share[1] = 1;
    check_ok(t21_run(&w, NULL, NULL, &err));
    assert_non_null(strstr(w.r.stopped, "the rater of curation 2 has collapsed"));
    assert_int_equal(w.r.iterations, 1);
    t21_free(&w);
}

/* Promise: no model is trained whose steps would take all of them together beyond max_steps: 3 of M_yx, 4 of
   M0 and 5 of each that follows. */
static void t21_stop_by_steps(void **state)
{
    (void)state;
    static const struct {
        hbk_int most, iterations, done;
    } cases[] = {{1, 0, 7}, {11, 0, 7}, {12, 1, 12}, {16, 1, 12}, {17, 2, 17}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hbk_error err;
        char path[512], name[32], wanted[128] = "";
        snprintf(name, sizeof name, "steps%d", (int)cases[i].most);
        t21_world w = t21_new(name);
        w.o.max_steps = cases[i].most;
        for (int call = 0; call < 2; call++) {
            check_ok(t21_run(&w, NULL, NULL, &err));
            if (cases[i].iterations < 2)
                snprintf(wanted, sizeof wanted,
                         "M%d takes 5 training steps more than the %d done, and %d are allowed; M%d is the "
                         "result",
                         (int)cases[i].iterations + 1, (int)cases[i].done, (int)cases[i].most,
                         (int)cases[i].iterations);
            assert_string_equal(w.r.stopped, wanted);
            assert_int_equal(w.r.iterations, cases[i].iterations);
            assert_int_equal(w.r.steps, cases[i].done);
            snprintf(name, sizeof name, "m%d", (int)cases[i].iterations);
            assert_string_equal(w.r.final_dir, t21_path(path, w.dir, name, NULL));
        }
        t21_free(&w);
    }
}

/* Promise: what cannot work is said before anything is trained: a seed of one pair, an empty corpus, a
   missing file, a broken row, no iteration. */
static void t21_bad_inputs(void **state)
{
    (void)state;
    static const char pair[] = "{\"instruction\": \"What is hot?\", \"output\": \"The tea.\"}\n";
    static const struct {
        const char *seed, *corpus, *message;
        hbk_code code;
        int file; /* 1: the error names the seed, 2: the corpus */
    } cases[] = {
        {pair, NULL, "holds 1 pairs; at least 2", HBK_ERROR_DATA, 1},
        {"", NULL, "holds 0 pairs", HBK_ERROR_DATA, 1},
        {"{\"instruction\": \"x\"}\n", NULL, "\"output\"", HBK_ERROR_FORMAT, 1},
        {NULL, "", "the corpus is empty", HBK_ERROR_DATA, 2},
        {NULL, "\n\n", "the corpus is empty", HBK_ERROR_DATA, 2},
        {NULL, "{\"text\": \"a\"}\n{\"txt\": \"b\"}\n", "\"text\"", HBK_ERROR_FORMAT, 2},
        {NULL, "{\"text\": \"a\"}\n{\"text\": \" \\n\"}\n", "\"text\" is empty", HBK_ERROR_DATA, 2},
        {NULL, "{\"id\": 7, \"text\": \"a\"}\n{\"id\": \"7\", \"text\": \"b\"}\n", "the id \"7\" came before",
         HBK_ERROR_DATA, 2},
        {NULL, "{\"id\": \"row-2\", \"text\": \"a\"}\n{\"text\": \"b\"}\n", "the id \"row-2\" came before",
         HBK_ERROR_DATA, 2},
        {"{\"id\": \"x\", \"instruction\": \"a\", \"output\": \"b\"}\n"
         "{\"id\": \"x\", \"instruction\": \"c\", \"output\": \"d\"}\n",
         NULL, "the id \"x\" came before", HBK_ERROR_DATA, 1},
        {"{\"instruction\": \" \", \"output\": \"b\"}\n", NULL, "\"instruction\" is empty", HBK_ERROR_DATA,
         1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hbk_error err;
        t21_world w = t21_new("inputs");
        snprintf(w.dir + strlen(w.dir), 8, "%d", (int)i);
        test_tmp(w.seed, "t21_bad_seed.jsonl");
        test_tmp(w.corpus, "t21_bad_corpus.jsonl");
        t19_write(w.seed, cases[i].seed ? cases[i].seed : "{\"instruction\": \"a\", \"output\": \"b\"}\n"
                                                          "{\"instruction\": \"c\", \"output\": \"d\"}\n");
        t19_write(w.corpus, cases[i].corpus ? cases[i].corpus : "{\"text\": \"a\"}\n");
        w.r.n_seed = 99;
        for (int call = 0; call < 2; call++) /* once more, on the folder that the first call began */
            check_error(t21_run(&w, NULL, NULL, &err), cases[i].code, cases[i].message);
        assert_string_equal(err.file, cases[i].file == 1 ? w.seed : w.corpus);
        assert_int_equal(w.r.n_seed, 99); /* outputs are untouched */
        char path[512];
        assert_false(hbk_file_exists(t21_path(path, w.dir, "myx", NULL)));
        unlink(cases[i].file == 1 ? w.seed : w.corpus);
        check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_FILE, "opened");
        t21_free(&w);
    }
    hbk_error err;
    t21_world w = t21_new("options0");
    w.o.max_length = 12; /* examples may be as short, but no rubric */
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_DATA, "no segment fits into the rating prompt");
    assert_string_equal(err.file, w.corpus);
    assert_false(hbk_file_exists(w.dir));
    w.o.max_length = -1;
    w.o.iterations = 0;
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "at least one iteration");
    w.o.iterations = HBK_ITERATIONS + 1;
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "at most 8");
    w.o.iterations = 1;
    w.o.keep[0] = 4, w.o.keep_share[0] = 0.5;
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "curation 1 keeps by score or by share");
    w.o.keep[0] = 0, w.o.keep_share[0] = 0, w.o.keep_share[1] = 1.5;
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "curation 2 is to keep");
    w.o.keep_share[1] = 0, w.o.keep[2] = -1;
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "curation 3 is to keep");
    w.o.keep[2] = 0, w.o.validation_share = 1;
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "validation share 1");
    w.o.validation_share = 0.5, w.o.seed_repeat = 2;
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "would be trained on");
    w.o.validation_share = 0, w.o.seed_repeat = 1, w.o.max_steps = -1;
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "most steps -1");
    w.o.max_steps = 0;
    w.o.m0.replay = 2; /* documents that are not given */
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_DATA, "replayed");
    w.o.m0.replay = 0;
    w.o.curate.votes = 3; /* what a curation would refuse is refused before anything is trained */
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "3 votes");
    w.o.curate.votes = 1;
    w.o.curate.signals = HBK_SIGNAL_IFD;
    w.o.curate.keep_share = 0;
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "of ratings alone");
    w.o.curate.signals = HBK_SIGNAL_RATING;
    w.o.curate.keep = (double)NAN;
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "a score from nan");
    w.o.curate.keep = 4, w.o.curate.keep_share = 1.5;
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "a share of 1.5");
    t21_free(&w);
}

/* A vocabulary of the letters that the seed, the corpus and the wordings of t19_template need, and no
   others. */
static hbk_tokenizer *t21_letters(void)
{
    static const char text[] = "Instruction:\nResponse:\n Score: Rate: Ask: What Who Where Why Is It The tea "
                               "cat dog moon hot wet far old good bad Tea Far , ? . 1 2 3 4 5\n";
    hbk_error err;
    hbk_tokenizer *tok = hbk_tokenizer_train(text, sizeof text - 1, 120, false, NULL, &err);
    if (!tok) fail_msg("%s", err.message);
    return tok;
}

/* Promise: a tag, or a wording that a run will need, which the vocabulary cannot spell is named before the
   folder is begun; a wording that it will not need is no matter. */
static void t21_unspellable(void **state)
{
    (void)state;
    hbk_error err;
    t21_world w = t21_new("unspellable");
    hbk_tokenizer_free(w.tok);
    w.tok = t21_letters();
    w.m = t19_model(w.tok, 16, 256);
    w.o.tag_seed = "Zzz";
    w.o.tag_web = "tea";
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "cannot spell the tag \"Zzz\"");
    w.o.tag_seed = "tea";
    w.o.tag_web = "old Zzz";
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "cannot spell the tag \"old Zzz\"");
    w.o.tag_web = NULL;
    check_ok(hbk_template_set(w.t, HBK_REWRITING, "{instruction} {output} Zzz:", &err));
    w.o.rewrite = true;
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "Zzz");
    assert_false(hbk_file_exists(w.dir));
    w.o.rewrite = false;
    check_ok(t21_run(&w, NULL, NULL, &err));
    hbk_model_free((hbk_model *)(uintptr_t)w.m);
    t21_free(&w);
}

/* Promise: a slip that no later stage could make good is named before anything is written: an evaluation file
   that is not there, candidates that would be all the same. One that the first training finds leaves a folder
   that other options may begin again; once there is a model, they may not. */
static void t21_slips(void **state)
{
    (void)state;
    hbk_error err;
    char path[512];
    t21_world w = t21_new("slips");
    const hbk_loop_options o = w.o;
    const char *missing[] = {"/nonexistent/evaluation.jsonl"};
    w.o.augment.sift.holdout = missing, w.o.augment.sift.n_holdout = 1;
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_FILE, "opened");
    w.o = o, w.o.augment.candidates = 3, w.o.augment.decode.sampling.temperature = 0;
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "3 candidates");
    assert_false(hbk_file_exists(w.dir));

    w.o = o, w.o.myx.replay = 2;
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_DATA, "replayed");
    assert_true(hbk_file_exists(t21_path(path, w.dir, "run.json", NULL)));
    w.o = o, w.o.iterations = 1, w.o.m0.replay = 2;
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_DATA, "replayed");
    assert_true(hbk_file_exists(t21_path(path, w.dir, "myx", "adapter_model.safetensors")));
    w.o.m0.replay = 0;
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "begun with m0.replay 2, not 0");
    t21_free(&w);
}

/* Promise: signals beside the rating come from the models that they are named after: the IFD from the rater,
   the round trip from the backward model; and the curated pairs are the best by all of them. */
static void t21_signals(void **state)
{
    (void)state;
    hbk_error err;
    t21_world w = t21_new("signals");
    char path[512], own[512];
    w.o.iterations = 1;
    w.o.curate.signals = HBK_SIGNAL_RATING | HBK_SIGNAL_IFD | HBK_SIGNAL_ROUND_TRIP;
    w.o.curate.keep_share = 0;
    w.o.curate.keep_top = 2;
    check_ok(t21_run(&w, NULL, NULL, &err));
    assert_int_equal(w.r.curated[0].kept, HBK__MIN(2, w.r.curated[0].ranked));
    hbk_tuned m0, myx;
    memset(&m0, 0, sizeof m0);
    memset(&myx, 0, sizeof myx);
    check_ok(hbk_tuned_load(&m0, w.m, t21_path(path, w.dir, "m0", NULL), NULL, &err));
    check_ok(hbk_tuned_load(&myx, w.m, t21_path(path, w.dir, "myx", NULL), NULL, &err));
    hbk_curate_options o = w.o.curate;
    o.decode.seed = w.o.seed;
    if (o.decode.max_length < 0) o.decode.max_length = w.o.max_length;
    o.backward = myx.model;
    o.backward_adapter = myx.adapter;
    test_tmp(own, "t21_signals.jsonl");
    unlink(own);
    json_t *rows = t19_rows(t21_path(path, w.dir, "ratings-1.jsonl", NULL));
    const json_t *prov = json_object_get(json_array_get(rows, 0), "prov");
    const char *who = json_string_value(json_object_get(prov, "adapter"));
    check_ok(hbk_rate(m0.model, m0.adapter, w.tok, w.t, &o, who,
                      t21_path(path, w.dir, "candidates.jsonl", NULL), own, NULL, NULL, &err));
    json_decref(rows);
    hbk_text want = t19_read(own);
    assert_non_null(strstr(hbk_text_string(&want), "\"round_trip\":-"));
    t19_check_same(&want, t21_path(path, w.dir, "ratings-1.jsonl", NULL), "signals");
    hbk_text_free(&want);
    hbk_tuned_free(&m0);
    hbk_tuned_free(&myx);
    t21_free(&w);
}

/* ---- what went wrong elsewhere ------------------------------------------------------------------

   Public attempts at this method were read before it was written here. Each of these faults stood in one of
   them, and each leaves a run that ends well and a model that is worse; so each has a test that fails for it.

     tags exchanged between seed and curated pairs      t21_models_from_the_base  t15_tags_by_source
     a prompt at inference other than that of training  t21_prompts_as_trained    t21_tags
     the last learning rate taken for a factor          t21_learning_rates        t16 (schedules)
     a score made up where none can be read             t21_no_made_up_score      t20 (rows)
     the backward model's mask reversed, not its text   t21_reversed_text         t14_backward_reverses
     replies cut off before their score                 t21_room_for_the_score    t20 (cut replies)
     each model finetuned from the one before           t21_models_from_the_base
     the first curation's ratings used for the second   t21_rows_of_others        t21_stages_by_their_models
*/

/* Promise: a model is asked in the words that it was trained on: the prompt that augmentation makes of a
   seed's output is to the id the prompt of M_yx's example.
   Excludes: training under one wrapper and asking under another, or with the halves in the other order. */
static void t21_prompts_as_trained(void **state)
{
    (void)state;
    hbk_error err;
    t21_world w = t21_new("prompts");
    hbk_pairs pairs;
    hbk_dataset backward;
    memset(&pairs, 0, sizeof pairs);
    memset(&backward, 0, sizeof backward);
    check_ok(hbk_pairs_load(&pairs, w.seed, "seed", &err));
    check_ok(hbk_dataset_add_pairs(&backward, &pairs, w.t, w.tok, HBK_BACKWARD, NULL, NULL, 0, &err));
    hbk__stage stage;
    memset(&stage, 0, sizeof stage);
    stage.tok = w.tok;
    stage.t = w.t;
    for (int i = 0; i < T21_SEED; i++) {
        hbk__item item;
        memset(&item, 0, sizeof item);
        item.row = json_pack("{s:s s:s}", "id", "x", "text", t21_seed[i][1]);
        assert_int_equal(hbk__take_segment(&stage, &item, "x", 1, &err), 1);
        hbk_int n = backward.start[i + 1] - backward.start[i] - hbk_dataset_targets(&backward, i);
        assert_int_equal(item.prompt.n, n);
        assert_memory_equal(item.prompt.data, backward.tokens.data + backward.start[i],
                            sizeof(int32_t) * (size_t)n);
        hbk__items_clear(&item, 1);
    }
    hbk_dataset_free(&backward);
    hbk_pairs_free(&pairs);
    t21_free(&w);
}

/* The text of ids begin .. end. */
static void t21_spell(hbk_text *out, const t21_world *w, const int32_t *ids, hbk_int n)
{
    hbk_error err;
    hbk_text_clear(out);
    check_ok(hbk_tokenizer_decode(w->tok, ids, n, 0, out, &err));
}

/* Promise: what M_yx is trained on reads output, then instruction, and the instruction is what it learns.
   Excludes: the order of M0 with the loss on the other half. Such a model learns the instruction before it
   has seen the text, p(x) in place of p(x|y). */
static void t21_reversed_text(void **state)
{
    (void)state;
    hbk_error err;
    t21_world w = t21_new("reversed");
    const char *dir = t21_reference(&w);
    hbk_pairs pairs;
    hbk_dataset d;
    hbk_text text;
    char path[512];
    memset(&pairs, 0, sizeof pairs);
    memset(&d, 0, sizeof d);
    memset(&text, 0, sizeof text);
    check_ok(hbk_pairs_load(&pairs, t21_path(path, dir, "seed.jsonl", NULL), "seed", &err));
    check_ok(hbk_dataset_add_pairs(&d, &pairs, w.t, w.tok, HBK_BACKWARD, NULL, NULL, 0, &err));
    for (int i = 0; i < T21_SEED; i++) {
        const int32_t *ids = d.tokens.data + d.start[i];
        hbk_int n = d.start[i + 1] - d.start[i], p = n - hbk_dataset_targets(&d, i);
        t21_spell(&text, &w, ids, p);
        assert_non_null(strstr(hbk_text_string(&text), t21_seed[i][1]));
        assert_null(strstr(hbk_text_string(&text), t21_seed[i][0]));
        t21_spell(&text, &w, ids + p, n - p);
        assert_non_null(strstr(hbk_text_string(&text), t21_seed[i][0]));
        assert_null(strstr(hbk_text_string(&text), t21_seed[i][1]));
    }
    /* and the run's M_yx was trained on these: its record hashes its data */
    json_t *train = hbk_json_read(t21_path(path, dir, "myx", "train.json"), &err), *hash;
    assert_non_null(train);
    hash = hbk__hex(hbk__dataset_hash(0, &d));
    assert_true(json_equal(json_object_get(train, "data"), hash));
    json_decref(hash);
    json_decref(train);
    hbk_text_free(&text);
    hbk_dataset_free(&d);
    hbk_pairs_free(&pairs);
    t21_free(&w);
}

/* Promise: with the lowest bar of all, a candidate whose rating cannot be read is still not kept, has no
   score, and is in no column of the histogram.
   Excludes: a middling score, or any, for what the rater did not say. */
static void t21_no_made_up_score(void **state)
{
    (void)state;
    hbk_error err;
    char path[512], name[32];
    hbk_int all_read = 0, all_unread = 0;
    for (int run = 0; run < 3; run++) {
        snprintf(name, sizeof name, "unread%d", run);
        t21_world w = t21_new(name);
        w.o.curate.readout = HBK_READOUT_TEXT;
        w.o.curate.keep_share = 0;
        w.o.curate.keep = 1;
        w.o.curate.decode.sampling.temperature = 1; /* a rater that finds its words at times */
        w.o.curate.decode.sampling.top_p = 1;
        w.o.curate.decode.sampling.max_new = 16;
        w.o.seed = 3 + (uint64_t)run;
        w.o.iterations = 1;
        check_ok(t21_run(&w, NULL, NULL, &err));
        json_t *ratings = t19_rows(t21_path(path, w.dir, "ratings-1.jsonl", NULL));
        json_t *curated = t19_rows(t21_path(path, w.dir, "curated-1.jsonl", NULL));
        const hbk_curate_counts *c = &w.r.curated[0];
        hbk_int read = 0, unread = 0, columns = 0;
        for (size_t i = 0; i < json_array_size(ratings); i++) {
            const json_t *score = json_object_get(json_array_get(ratings, i), "score");
            double said = hbk_rating_parse(t19_string(ratings, i, "text"));
            bool ok = !strcmp(t19_string(ratings, i, "status"), "ok");
            assert_true(ok ? json_real_value(score) == said : json_is_null(score));
            assert_true((t21_find(curated, t19_string(ratings, i, "id")) != NULL) == ok);
            read += ok;
            unread += !ok;
        }
        for (int k = 0; k < 5; k++) columns += c->histogram[k];
        assert_int_equal(c->rated, read);
        assert_int_equal(c->kept, read);
        assert_int_equal(columns, read);
        assert_int_equal(c->unparsable + c->truncated + c->too_long, unread);
        all_read += read;
        all_unread += unread;
        json_decref(ratings);
        json_decref(curated);
        t21_free(&w);
    }
    assert_true(all_unread > 0 && all_read > 0); /* or this test shows nothing */
}

/* Promise: a rater has room for its reasons, 512 tokens, unless someone says otherwise; a reply that ends
   before its score is counted as cut off, apart from those that have none; and no candidate is cut to fit the
   prompt: one that does not fit is counted too.
   Excludes: so little room that the score, which comes last, is cut off or read from half a line. */
static void t21_room_for_the_score(void **state)
{
    (void)state;
    hbk_error err;
    char candidates[512], ratings[512];
    t21_world w = t21_new("room");
    hbk_text text;
    memset(&text, 0, sizeof text);
    assert_true(hbk_loop_defaults().curate.decode.sampling.max_new >= 512);
    for (int i = 0; i < T21_SEED; i++)
        hbk_text_printf(&text, "{\"id\": \"%d\", \"instruction\": \"%s\", \"output\": \"%s\"}\n", i,
                        t21_seed[i][0], t21_corpus[i]);
    hbk_text_add(&text, "{\"id\": \"large\", \"instruction\": \"x\", \"output\": \"");
    for (int i = 0; i < 600; i++) hbk_text_add(&text, "the ");
    hbk_text_add(&text, "end.\"}\n");
    test_tmp(candidates, "t21_room_candidates.jsonl");
    test_tmp(ratings, "t21_room_ratings.jsonl");
    t19_write(candidates, hbk_text_string(&text));
    hbk_text_free(&text);
    hbk_curate_options o = w.o.curate;
    o.readout = HBK_READOUT_TEXT;
    for (hbk_int room = 2; room <= 64; room += 62) { /* two tokens, and plenty */
        unlink(ratings);
        o.decode.sampling.max_new = room;
        check_ok(hbk_rate(w.m, NULL, w.tok, w.t, &o, "base", candidates, ratings, NULL, NULL, &err));
        json_t *rows = t19_rows(ratings);
        for (size_t i = 0; i < T21_SEED; i++) {
            assert_string_equal(t19_string(rows, i, "status"), room == 2 ? "truncated" : "ok");
            assert_true(json_is_null(json_object_get(json_array_get(rows, i), "score")) == (room == 2));
        }
        assert_string_equal(t19_string(rows, T21_SEED, "status"), "too_long");
        json_decref(rows);
    }
    t21_free(&w);
}

/* Writes the rows of one file of a run over another's, with another template's hash if asked for. */
static void t21_exchange(const char *dir, const char *from, const char *to, bool another_template)
{
    char path[512];
    hbk_error err;
    json_t *rows = t19_rows(t21_path(path, dir, from, NULL));
    unlink(t21_path(path, dir, to, NULL));
    hbk_jsonl_writer *out = hbk_jsonl_create(path, 0, NULL, &err);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        json_t *row = json_array_get(rows, i), *prov = json_object_get(row, "prov");
        if (another_template) json_object_set_new(prov, "template_hash", json_string("0123456789abcdef"));
        check_ok(hbk_jsonl_write(out, row, &err));
    }
    check_ok(hbk_jsonl_finish(out, &err));
    json_decref(rows);
}

/* Takes the entries of these stages out of run.json, as if they had not ended. */
static void t21_undo(const char *dir, const char *const *names, int n)
{
    char path[512];
    hbk_error err;
    json_t *run = hbk_json_read(t21_path(path, dir, "run.json", NULL), &err);
    for (int i = 0; i < n; i++) json_object_del(json_object_get(run, "stages"), names[i]);
    check_ok(hbk_json_write(path, run, &err));
    json_decref(run);
}

/* Promise: rows that another model, the iteration before, or another rubric has made are refused, by file and
   line, whether their stage has ended or was cut off.
   Excludes: a second curation that selects by the first one's ratings. */
static void t21_rows_of_others(void **state)
{
    (void)state;
    static const struct {
        const char *file, *from, *message;
        bool another_template;
    } cases[] = {
        {"ratings-2.jsonl", "ratings-1.jsonl", "made by \"m0 ", false},
        {"ratings-1.jsonl", "ratings-2.jsonl", "made by \"m1 ", false},
        {"ratings-1.jsonl", "ratings-1.jsonl", "another template or rubric", true},
        {"candidates.jsonl", "candidates.jsonl", "another template or rubric", true},
    };
    static const char *const undone[] = {"ratings-2", "curated-2", "m2"};
    hbk_error err;
    char path[512];
    t21_world w = t21_new("others");
    w.o.curate.decode.wave = 2;
    check_ok(t21_run(&w, NULL, NULL, &err));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hbk_text own = t19_read(t21_path(path, w.dir, cases[i].file, NULL));
        t21_exchange(w.dir, cases[i].from, cases[i].file, cases[i].another_template);
        check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_DATA, cases[i].message);
        assert_string_equal(err.file, t21_path(path, w.dir, cases[i].file, NULL));
        assert_int_equal(err.line, 1);
        check_ok(hbk_file_write(path, own.data, own.len, &err));
        hbk_text_free(&own);
        check_ok(t21_run(&w, NULL, NULL, &err));
    }
    hbk_text want = t19_read(t21_path(path, w.dir, "ratings-2.jsonl", NULL));
    t21_exchange(w.dir, "ratings-1.jsonl", "ratings-2.jsonl", false);
    t21_undo(w.dir, undone, 3);
    check_error(t21_run(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "was begun with adapter \"m0 ");
    unlink(t21_path(path, w.dir, "ratings-2.jsonl", NULL));
    check_ok(t21_run(&w, NULL, NULL, &err));
    t19_check_same(&want, path, "rated anew");
    hbk_text_free(&want);
    t21_free(&w);
}

/* ---- interruption ------------------------------------------------------------------------------ */

/* Promise: cancelled at any call of progress and called again, or cancelled over and over, the run ends with
   the bytes of one that was not. */
static void t21_cancel_anywhere(void **state)
{
    (void)state;
    hbk_error err;
    t21_world w = t21_new("cancel");
    const char *dir = t21_reference(&w);
    char base[512], folder[512];
    memcpy(base, w.dir, 512);
    t19_watch watch;
    int stop = 1, n = 0;
    for (bool done = false; !done; stop += 4, n++) {
        snprintf(w.dir, sizeof w.dir, "%.400s%d", base, stop);
        hbk_progress p = t19_progress(&watch, stop);
        done = t21_run(&w, &p, NULL, &err);
        if (done) break; /* there was no such call */
        if (err.code != HBK_ERROR_CANCELLED) fail_msg("cancelled at %d: %s", stop, err.message);
        check_ok(t21_run(&w, NULL, NULL, &err));
        t21_check_same_run(dir, w.dir, "cancelled");
        assert_false(hbk_file_exists(t21_path(folder, w.dir, "m0", "checkpoint")));
    }
    assert_true(n > 4); /* 17 steps and 6 waves, every fourth one */
    snprintf(w.dir, sizeof w.dir, "%.400s", base);
    int calls = 0;
    for (bool done = false; !done; calls++) {
        hbk_progress p = t19_progress(&watch, 2);
        done = t21_run(&w, &p, NULL, &err);
        if (!done && err.code != HBK_ERROR_CANCELLED) fail_msg("call %d: %s", calls, err.message);
        assert_true(calls < 60);
    }
    assert_true(calls > 8);
    t21_check_same_run(dir, w.dir, "cancelled over and over");
    t21_free(&w);
}

/* Promise: whichever allocation fails, nothing leaks, the error is memory, and a run that was stopped by it a
   hundred times ends with the bytes of one that was not. */
static void t21_memory_runs_out(void **state)
{
    (void)state;
    t21_world w = t21_new("memory");
    const char *dir = t21_reference(&w);
    int failed = 0;
    for (long k = 0;; k += k < 20 ? 5 : k / 4) { /* each call goes on where the one before was stopped */
        fault f;
        hbk_error err;
        memset(&err, 0, sizeof err);
        bool ok = t21_run(&w, NULL, fault_init(&f, k), &err);
        fault_check_clean(&f);
        if (ok && f.seen <= k) break;
        if (ok) fail_msg("succeeded although allocation %ld was refused", k);
        if (err.code != HBK_ERROR_MEMORY) fail_msg("allocation %ld refused: %s", k, err.message);
        failed++;
    }
    assert_true(failed > 10);
    t21_check_same_run(dir, w.dir, "out of memory");
    t21_free(&w);
}

static const struct CMUnitTest tests_21[] = {
    cmocka_unit_test(t21_inference_tags),
    cmocka_unit_test(t21_run_folder),
    cmocka_unit_test(t21_models_from_the_base),
    cmocka_unit_test(t21_stages_by_their_models),
    cmocka_unit_test(t21_tags),
    cmocka_unit_test(t21_learning_rates),
    cmocka_unit_test(t21_seed_matters),
    cmocka_unit_test(t21_keeping),
    cmocka_unit_test(t21_three_iterations),
    cmocka_unit_test(t21_mixing),
    cmocka_unit_test(t21_rewrites),
    cmocka_unit_test(t21_every_option),
    cmocka_unit_test(t21_other_options),
    cmocka_unit_test(t21_inputs_and_force),
    cmocka_unit_test(t21_stops),
    cmocka_unit_test(t21_stop_unchanged),
    cmocka_unit_test(t21_stop_on_collapse),
    cmocka_unit_test(t21_stop_by_steps),
    cmocka_unit_test(t21_bad_inputs),
    cmocka_unit_test(t21_unspellable),
    cmocka_unit_test(t21_slips),
    cmocka_unit_test(t21_signals),
    cmocka_unit_test(t21_prompts_as_trained),
    cmocka_unit_test(t21_reversed_text),
    cmocka_unit_test(t21_no_made_up_score),
    cmocka_unit_test(t21_room_for_the_score),
    cmocka_unit_test(t21_rows_of_others),
    cmocka_unit_test(t21_cancel_anywhere),
    cmocka_unit_test(t21_memory_runs_out),
};
