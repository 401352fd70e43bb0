/* Chapter 19: what a generated instruction is worth, the rows of candidates.jsonl, and waves: a file that was
   cut off anywhere is continued to the same bytes.

   The models are tiny and made here: random ones where any text will do, and where a model must say something
   particular, one that learned a handful of examples by heart. Chapters 20 and 21 use these helpers too. */
#include "test.h"
#include "fault.h"

/* Spells every text; words of the template and of the tests are few tokens each. With digits, " 1" to " 5"
   are one token each; without, two. */
static hbk_tokenizer *t19_tokenizer(bool digits)
{
    static const char text[] =
        "Instruction:\nResponse:\n Instruction: Response: Score: Score: Score: What Who Where Why is the "
        "tea cat dog moon hot wet far old ? . Rate: Ask: Rate Ask good bad fair because it is a good answer "
        "because it is a bad answer.\n 1 2 3 4 5 1 2 3 4 5 1 2 3 4 5";
    hbk_error err;
    size_t n = sizeof text - 1;
    hbk_tokenizer *tok = hbk_tokenizer_train(text, digits ? n : n - 30, 340, true, NULL, &err);
    if (!tok) fail_msg("%s", err.message);
    return tok;
}

/* "plain" with a backward and a rating wording of a few tokens. */
static hbk_template *t19_template(void)
{
    hbk_error err;
    hbk_template *t = hbk_template_load("plain", NULL, &err);
    if (!t) fail_msg("%s", err.message);
    check_ok(hbk_template_set(t, HBK_BACKWARD, "{output}\nAsk:", &err));
    check_ok(hbk_template_set(t, HBK_RATING, "{instruction}\n{output}\nRate:", &err));
    return t;
}

static hbk_model *t19_model(const hbk_tokenizer *tok, hbk_int dim, hbk_int context)
{
    hbk_config c;
    memset(&c, 0, sizeof c);
    c.n_layers = 2;
    c.n_heads = 4;
    c.n_kv_heads = 2;
    c.head_dim = dim / 4;
    c.dim = dim;
    c.ffn_dim = 2 * dim;
    c.vocab_size = hbk_tokenizer_size(tok);
    c.context_length = context;
    c.rms_norm_eps = 1e-5;
    c.rope_theta = 10000;
    c.bos = hbk_tokenizer_bos(tok);
    c.eos[0] = hbk_tokenizer_eos(tok);
    c.n_eos = 1;
    hbk_error err;
    hbk_model *m = hbk_model_random(&c, 5, NULL, &err);
    if (!m) fail_msg("%s", err.message);
    return m;
}

/* Gives a random model opinions: fresh heads are so small that all ids are about as likely. */
static hbk_model *t19_loud(hbk_model *m)
{
    hbk_real *head = (hbk_real *)m->head.data;
    for (hbk_int i = 0; i < m->head.rows * m->head.cols; i++) head[i] *= 30;
    return m;
}

/* An example of `use` for t19_teach. */
static void t19_lesson(hbk_dataset *d, const hbk_template *t, const hbk_tokenizer *tok, hbk_use use,
                       const char *instruction, const char *output, const char *reply)
{
    hbk_error err;
    hbk_tokens ids;
    hbk_int n_prompt;
    hbk_render r;
    memset(&ids, 0, sizeof ids);
    memset(&r, 0, sizeof r);
    r.use = use;
    r.instruction = instruction;
    r.output = output;
    r.reply = reply;
    check_ok(hbk_template_tokens(t, tok, &r, &ids, &n_prompt, &err));
    check_ok(hbk_dataset_add(d, ids.data, ids.n, n_prompt, &err));
    hbk_tokens_free(&ids);
}

/* A trainer whose model knows the examples by heart: full training on all of them at once, until the loss per
   token is below `enough`. It borrows *base; both are the caller's to free. */
static hbk_trainer *t19_teach(hbk_model **base, const hbk_tokenizer *tok, const hbk_dataset *d, double enough)
{
    hbk_error err;
    hbk_packer p;
    hbk_train_options o = hbk_train_defaults(true);
    o.dropout = o.weight_decay = 0;
    *base = t19_model(tok, 32, 512);
    check_ok(hbk_packer_init(&p, d->tokens.n, d->n, NULL, &err));
    for (hbk_int i = 0; i < d->n; i++) assert_true(hbk_packer_add(&p, d, i));
    hbk_batch b = hbk_packer_batch(&p);
    hbk_trainer *t = hbk_trainer_new(*base, &o, NULL, p.max_tokens, d->max_length, NULL, &err);
    if (!t) fail_msg("%s", err.message);
    double loss = HUGE_VAL;
    for (int step = 0; loss / (double)p.n_targets > enough; step++) {
        if (step == 2000)
            fail_msg("loss %g after %d steps, expected %g", loss / (double)p.n_targets, step, enough);
        check_ok(hbk_trainer_accumulate(t, &b, 1 / (double)p.n_targets, &loss, &err));
        check_ok(hbk_trainer_update(t, 5e-3, NULL, &err));
    }
    hbk_packer_free(&p);
    return t;
}

/* ---- files ------------------------------------------------------------------------- */

/* Plainly: inputs of tests need not survive a power cut. */
static void t19_write_bytes(const char *path, const char *data, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void t19_write(const char *path, const char *text)
{
    t19_write_bytes(path, text, strlen(text));
}

static hbk_text t19_read(const char *path)
{
    hbk_text t;
    hbk_error err;
    memset(&t, 0, sizeof t);
    check_ok(hbk_file_read(path, (size_t)1 << 24, &t, &err));
    return t;
}

static void t19_check_same(const hbk_text *want, const char *path, const char *what)
{
    hbk_text got = t19_read(path);
    if (got.len != want->len || memcmp(hbk_text_string(&got), hbk_text_string(want), got.len))
        fail_msg("%s: %s differs:\n%s\nexpected:\n%s", what, path, hbk_text_string(&got),
                 hbk_text_string(want));
    hbk_text_free(&got);
}

/* All rows of a JSONL file as one array. */
static json_t *t19_rows(const char *path)
{
    hbk_error err;
    hbk_jsonl_reader *r = hbk_jsonl_open(path, NULL, &err);
    if (!r) fail_msg("%s", err.message);
    json_t *row, *all = json_array();
    int got;
    while ((got = hbk_jsonl_next(r, &row, &err)) > 0) json_array_append(all, row);
    if (got < 0) fail_msg("%s", err.message);
    hbk_jsonl_close(r);
    return all;
}

static const char *t19_string(const json_t *rows, size_t i, const char *key)
{
    const char *s = json_string_value(json_object_get(json_array_get(rows, i), key));
    if (!s) fail_msg("row %d has no string \"%s\"", (int)i, key);
    return s;
}

/* Fails unless the row has exactly these keys, in this order: "id instruction output". */
static void t19_check_keys(const json_t *row, const char *keys)
{
    char got[256] = "";
    const char *key;
    const json_t *value;
    json_object_foreach((json_t *)(uintptr_t)row, key, value) {
        strcat(got, *got ? " " : "");
        strcat(got, key);
    }
    assert_string_equal(got, keys);
}

/* Counts the calls, and cancels at call number stop_at (from 1; 0: never). */
typedef struct t19_watch {
    int calls, stop_at;
} t19_watch;

static bool t19_on_progress(void *ctx, const char *stage, hbk_int done, hbk_int total, const char *unit,
                            const char *note)
{
    t19_watch *w = (t19_watch *)ctx;
    (void)unit, (void)note;
    assert_true(*stage && done >= 0 && (total == 0 || done <= total));
    return ++w->calls != w->stop_at;
}

static hbk_progress t19_progress(t19_watch *w, int stop_at)
{
    hbk_progress p = {t19_on_progress, NULL, w};
    w->calls = 0;
    w->stop_at = stop_at;
    return p;
}

/* ---- augmentation ------------------------------------------------------------------- */

/* Everything that a call of hbk_augment takes. */
typedef struct t19_world {
    hbk_tokenizer *tok;
    hbk_template *t;
    hbk_model *m;
    hbk_augment_options o;
    char segments[512], out[512];
} t19_world;

/* A random model that says anything; little of it, in waves of four, more records than slots. */
static t19_world t19_new(const char *name)
{
    t19_world w;
    char file[64];
    w.tok = t19_tokenizer(true);
    w.t = t19_template();
    w.m = t19_loud(t19_model(w.tok, 16, 256));
    w.o = hbk_augment_defaults();
    w.o.decode.sampling.top_k = 8;
    w.o.decode.sampling.temperature = 1;
    w.o.decode.sampling.max_new = 10;
    w.o.decode.wave = 4;
    w.o.decode.slots = 3;
    snprintf(file, sizeof file, "t19_%s_segments.jsonl", name);
    test_tmp(w.segments, file);
    snprintf(file, sizeof file, "t19_%s.jsonl", name);
    test_tmp(w.out, file);
    return w;
}

static void t19_free(t19_world *w)
{
    hbk_tokenizer_free(w->tok);
    hbk_template_free(w->t);
    hbk_model_free(w->m);
}

static bool t19_augment(const t19_world *w, const hbk_progress *p, hbk_allocator *a, hbk_error *err)
{
    return hbk_augment(w->m, NULL, w->tok, w->t, &w->o, "myx", w->segments, w->out, p, a, err);
}

/* n segments of different lengths. */
static void t19_write_segments(const t19_world *w, int n)
{
    static const char *const words[] = {"tea", "moon", "old cat", "far", "a wet dog"};
    hbk_text t;
    memset(&t, 0, sizeof t);
    for (int i = 0; i < n; i++) {
        hbk_text_printf(&t, "{\"id\": \"s%d\", \"text\": \"The", i);
        for (int j = 0; j <= i % 4; j++) hbk_text_printf(&t, " %s", words[(i + j) % 5]);
        hbk_text_add(&t, " is hot.\"}\n");
    }
    t19_write(w->segments, hbk_text_string(&t));
    hbk_text_free(&t);
}

static void t19_check_fate(const char *instruction, const char *text, const hbk_augment_options *o,
                           const hbk_template *t, const hbk_tokenizer *tok, const char *want)
{
    hbk_error err;
    hbk_fate fate;
    check_ok(hbk_augment_judge(&fate, instruction, text, HBK_FINISH_EOS, o, t, tok, NULL, &err));
    if (strcmp(hbk_fate_name(fate), want))
        fail_msg("\"%s\" is %s, expected %s", instruction, hbk_fate_name(fate), want);
}

/* Promise: each way in which a generated instruction can be useless has its name, and a useful one is ok. */
static void t19_statuses(void **state)
{
    (void)state;
    static const char text[] =
        "Green tea is made from leaves that were not left to wither. Brew it at eighty "
        "degrees, for two minutes, or it turns bitter.";
    char most[2100], over[2100];
    memset(most, 'x', 2000);
    most[2000] = 0;
    memset(over, 'x', 2001);
    over[2001] = 0;
    const struct {
        const char *instruction, *tmpl;
        hbk_finish finish;
        const char *status;
    } cases[] = {
        {"How do I brew green tea?", "llama2", HBK_FINISH_EOS, "ok"},
        {"Tea?", "llama2", HBK_FINISH_EOS, "ok"},
        /* four characters */
        {"\xe8\x8c\xb6\xe6\x98\xaf\xe4\xbb\x80\xe4\xb9\x88", "llama2", HBK_FINISH_EOS, "ok"},
        {most, "llama2", HBK_FINISH_EOS, "ok"},
        {"", "llama2", HBK_FINISH_EOS, "empty"},
        {" \n\t ", "llama2", HBK_FINISH_EOS, "empty"},
        {"", "llama2", HBK_FINISH_LENGTH, "empty"},
        {"Hm", "llama2", HBK_FINISH_EOS, "short"},
        {"\xe8\x8c\xb6\xe8\x8c\xb6", "llama2", HBK_FINISH_EOS, "short"}, /* 2 characters of 6 bytes */
        {over, "llama2", HBK_FINISH_EOS, "long"},
        {"How do I brew green", "llama2", HBK_FINISH_LENGTH, "truncated"},
        {"", "llama2", HBK_FINISH_TOO_LONG, "too_long"},
        /* the text again, whole, in part, and with other white space at the ends */
        {text, "llama2", HBK_FINISH_EOS, "echo"},
        {"Brew it at eighty degrees, for two minutes, or it turns bitter.", "llama2", HBK_FINISH_EOS, "echo"},
        {"Explain: Brew it at eighty degrees, for two minutes, or it turns", "llama2", HBK_FINISH_EOS,
         "echo"},
        {"Why should I brew it at eighty degrees, for two minutes, please?", "llama2", HBK_FINISH_EOS, "ok"},
        {"green tea is made", "llama2", HBK_FINISH_EOS, "ok"}, /* naming the subject is no echo */
        /* markers of the template in use, and of no other */
        {"What is tea? [/INST] Tea is", "llama2", HBK_FINISH_EOS, "leak"},
        {"[INST] What is tea?", "llama2", HBK_FINISH_EOS, "leak"},
        {"What is tea? [/INST] Tea is", "plain", HBK_FINISH_EOS, "ok"},
        {"What is tea?\n\nResponse:\nTea is", "plain", HBK_FINISH_EOS, "leak"},
        {"Instruction: what is tea?", "plain", HBK_FINISH_EOS, "leak"},
        {"Write a response to my aunt.", "plain", HBK_FINISH_EOS, "ok"},
        {"What is tea?<|im_end|>\n<|im_start|>assistant\n", "chatml", HBK_FINISH_EOS, "leak"},
        {"<|im_start|>user\nWhat is tea?", "chatml", HBK_FINISH_EOS, "leak"},
        {"<|start_header_id|>user<|end_header_id|>\n\nWhat is tea?", "llama3", HBK_FINISH_EOS, "leak"},
    };
    hbk_error err;
    hbk_augment_options o = hbk_augment_defaults();
    hbk_tokenizer *tok = t19_tokenizer(true);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hbk_template *t = hbk_template_load(cases[i].tmpl, NULL, NULL);
        hbk_fate fate;
        check_ok(hbk_augment_judge(&fate, cases[i].instruction, text, cases[i].finish, &o, t, tok, NULL,
                                   &err));
        const char *got = hbk_fate_name(fate);
        if (strcmp(got, cases[i].status))
            fail_msg("\"%s\" in %s is %s, expected %s", cases[i].instruction, cases[i].tmpl, got,
                     cases[i].status);
        hbk_template_free(t);
    }
    hbk_template *t = hbk_template_load("llama2", NULL, NULL); /* a text of few words, repeated whole */
    t19_check_fate("Tea is hot.", "Tea is hot.", &o, t, tok, "echo");
    t19_check_fate("tea is hot!", "Tea is hot.", &o, t, tok, "echo");
    t19_check_fate("...", "Tea is hot.", &o, t, tok, "ok");
    t19_check_fate("...", "...", &o, t, tok, "echo");
    o.max_echo = 1;
    t19_check_fate("Tea is hot.", "Tea is hot.", &o, t, tok, "ok");
    o.max_echo = 0; /* 1 of 7 runs of 6 words */
    t19_check_fate("How to brew it at eighty degrees, my old friend and aunt?", text, &o, t, tok, "ok");
    o.echo_words = 5;
    t19_check_fate("How to brew it at eighty degrees, my old friend and aunt?", text, &o, t, tok, "echo");
    o.min_chars = 8;
    t19_check_fate("Say tea", text, &o, t, tok, "short");
    t19_check_fate("Say teas", text, &o, t, tok, "ok");
    o.max_chars = 9;
    t19_check_fate("Say my teas", text, &o, t, tok, "long");
    hbk_template_free(t);
    hbk_tokenizer_free(tok);
}

/* Promise: one row per segment, in order, of the schema; the instruction is what the backward model says
   after the backward prompt, the output is the text unchanged; missing ids are row-N. */
static void t19_rows_and_schema(void **state)
{
    (void)state;
    hbk_error err;
    t19_world w = t19_new("schema");
    static const char *const pairs[][2] = {{"The tea is hot.", "What is hot?"},
                                           {"The moon is far.", "Where is the moon?"},
                                           {"A dog.", "Who is it?"}};
    hbk_dataset d;
    memset(&d, 0, sizeof d);
    for (int i = 0; i < 3; i++) t19_lesson(&d, w.t, w.tok, HBK_BACKWARD, NULL, pairs[i][0], pairs[i][1]);
    hbk_model *base;
    hbk_trainer *taught = t19_teach(&base, w.tok, &d, 0.02);
    w.o.decode.sampling.temperature = 0;
    w.o.decode.sampling.max_new = 40;
    w.o.decode.seed = 7;
    char file[1200] = "{\"text\": \"The tea is hot.\"}\n\n"
                      "{\"id\": 42, \"header\": \"Moon\", \"text\": \"The moon is far.\", \"url\": \"x\"}\r\n"
                      "{\"id\": null, \"text\": \"A dog.\"}\n{\"id\": \"long\", \"text\": \"";
    for (int i = 0; i < 60; i++) strcat(file, "Zq xj vw gb "); /* two tokens a word and more: beyond 512 */
    strcat(file, "\"}\n{\"id\": \"again\", \"text\": \"The tea is hot.\"}");
    t19_write(w.segments, file);
    check_ok(hbk_augment(hbk_trainer_model(taught), NULL, w.tok, w.t, &w.o, "runs/myx", w.segments, w.out,
                         NULL, NULL, &err));
    json_t *rows = t19_rows(w.out);
    static const char *const ids[] = {"row-1", "42", "row-4", "long", "again"};
    static const char *const statuses[] = {"ok", "ok", "ok", "too_long", "ok"};
    static const int said[] = {0, 1, 2, -1, 0};
    assert_int_equal(json_array_size(rows), 5);
    for (size_t i = 0; i < 5; i++) {
        const json_t *row = json_array_get(rows, i), *prov = json_object_get(row, "prov");
        t19_check_keys(row, "id instruction output status finish prov");
        assert_string_equal(t19_string(rows, i, "id"), ids[i]);
        assert_string_equal(t19_string(rows, i, "status"), statuses[i]);
        assert_string_equal(t19_string(rows, i, "finish"), i == 3 ? "too_long" : "eos");
        assert_string_equal(t19_string(rows, i, "instruction"), said[i] < 0 ? "" : pairs[said[i]][1]);
        if (said[i] >= 0) assert_string_equal(t19_string(rows, i, "output"), pairs[said[i]][0]);
        t19_check_keys(prov, "model adapter template template_hash seed candidates temperature top_p");
        assert_string_equal(json_string_value(json_object_get(prov, "adapter")), "runs/myx");
        assert_string_equal(json_string_value(json_object_get(prov, "template")), "plain");
        assert_int_equal(json_integer_value(json_object_get(prov, "seed")), 7);
    }
    json_decref(rows);
    hbk_trainer_free(taught);
    hbk_model_free(base);
    hbk_dataset_free(&d);
    t19_free(&w);
}

/* Promise: a record's row is its own: other records beside it, before it or in its wave change nothing, and
   neither does its place; another seed, or another id, does. */
static void t19_records_are_independent(void **state)
{
    (void)state;
    hbk_error err;
    t19_world w = t19_new("order");
    t19_write_segments(&w, 10);
    check_ok(t19_augment(&w, NULL, NULL, &err));
    json_t *rows = t19_rows(w.out), *segments = t19_rows(w.segments);
    for (int way = 0; way < 3; way++) { /* backwards; every third alone; the first five in another order */
        hbk_text t;
        memset(&t, 0, sizeof t);
        for (size_t k = 0; k < 10; k++) {
            size_t i = way == 0 ? 9 - k : way == 1 ? 3 * k : (k * 3 + 1) % 5;
            if ((way == 1 && k > 3) || (way == 2 && k > 4)) break;
            char *line = json_dumps(json_array_get(segments, i), JSON_COMPACT);
            hbk_text_printf(&t, "%s\n", line);
            free(line);
        }
        t19_write(w.segments, hbk_text_string(&t));
        hbk_text_free(&t);
        unlink(w.out);
        check_ok(t19_augment(&w, NULL, NULL, &err));
        json_t *now = t19_rows(w.out);
        for (size_t k = 0; k < json_array_size(now); k++) {
            size_t i = (size_t)atoi(t19_string(now, k, "id") + 1);
            if (!json_equal(json_array_get(now, k), json_array_get(rows, i)))
                fail_msg("way %d: row %s reads \"%s\", expected \"%s\"", way, t19_string(now, k, "id"),
                         t19_string(now, k, "instruction"), t19_string(rows, i, "instruction"));
        }
        json_decref(now);
    }
    t19_write(w.segments, "{\"id\":\"a\",\"text\":\"The tea.\"}\n{\"id\":\"b\",\"text\":\"The tea.\"}\n");
    unlink(w.out);
    check_ok(t19_augment(&w, NULL, NULL, &err));
    json_t *two = t19_rows(w.out);
    assert_string_not_equal(t19_string(two, 0, "instruction"), t19_string(two, 1, "instruction"));
    w.o.decode.seed++;
    unlink(w.out);
    check_ok(t19_augment(&w, NULL, NULL, &err));
    json_t *other = t19_rows(w.out);
    assert_string_not_equal(t19_string(two, 0, "instruction"), t19_string(other, 0, "instruction"));
    json_decref(two);
    json_decref(other);
    json_decref(rows);
    json_decref(segments);
    t19_free(&w);
}

/* Cuts the finished file `path`, whose bytes are `whole`, to its first `at` bytes, and says in *waves how
   many of the waves of `wave` rows are then left to do. */
static void t19_cut(const char *path, const hbk_text *whole, size_t at, hbk_int wave, int *waves)
{
    hbk_int rows = 0, all = 0;
    for (size_t i = 0; i < whole->len; i++) {
        if (whole->data[i] != '\n') continue;
        all++;
        if (i < at) rows++;
    }
    *waves = (int)((all + wave - 1) / wave - rows / wave);
    t19_write_bytes(path, hbk_text_string(whole), at);
}

/* Promise: cut off at any byte - inside a row, at its newline, at the border of a wave, after the last row -
   the file is continued to the same bytes, and whole waves are not made again. */
static void t19_cut_anywhere(void **state)
{
    (void)state;
    hbk_error err;
    t19_world w = t19_new("cut");
    t19_watch watch;
    w.o.decode.sampling.max_new = 4;
    t19_write_segments(&w, 11);
    check_ok(t19_augment(&w, NULL, NULL, &err));
    hbk_text whole = t19_read(w.out);
    int n = 0;
    for (size_t at = 0; at <= whole.len; at++) {
        bool border = at == 0 || at == whole.len || whole.data[at - 1] == '\n' || whole.data[at] == '\n';
        if (!border && at % 211 != 1) continue;
        int waves;
        t19_cut(w.out, &whole, at, w.o.decode.wave, &waves);
        hbk_progress p = t19_progress(&watch, 0);
        check_ok(t19_augment(&w, &p, NULL, &err));
        t19_check_same(&whole, w.out, "cut");
        assert_int_equal(watch.calls, waves);
        n++;
    }
    assert_true(n > 30);
    for (int stop = 1; stop <= 3; stop++) { /* cancelled after a wave */
        unlink(w.out);
        hbk_progress p = t19_progress(&watch, stop);
        check_error(t19_augment(&w, &p, NULL, &err), HBK_ERROR_CANCELLED, "augment");
        hbk_int rows;
        check_ok(hbk_jsonl_count(w.out, &rows, &err));
        assert_int_equal(rows, stop == 3 ? 11 : 4 * stop);
        check_ok(t19_augment(&w, NULL, NULL, &err));
        t19_check_same(&whole, w.out, "cancelled");
    }
    /* what follows a torn write may be anything */
    hbk_text_append(&whole, "\0\0{\"id\"", 7);
    int waves;
    t19_cut(w.out, &whole, whole.len, w.o.decode.wave, &waves);
    check_ok(t19_augment(&w, NULL, NULL, &err));
    whole.len -= 7;
    t19_check_same(&whole, w.out, "torn");
    hbk_text_free(&whole);
    t19_free(&w);
}

/* Promise: a row says what was rounded, and only then; it is continued under the same rounding alone. */
static void t19_rounding(void **state)
{
    (void)state;
    hbk_error err;
    t19_world w = t19_new("rounding");
    t19_write_segments(&w, 4); /* a whole wave */
    for (int way = 0; way < 2; way++) {
        unlink(w.out);
        w.o.decode.cache = way ? HBK_BF16 : HBK_F32;
        hbk_model_round(w.m, way == 1);
        check_ok(t19_augment(&w, NULL, NULL, &err));
        json_t *rows = t19_rows(w.out), *prov = json_object_get(json_array_get(rows, 1), "prov");
        const char *cache = json_string_value(json_object_get(prov, "cache"));
        const char *precision = json_string_value(json_object_get(prov, "precision"));
        assert_string_equal(cache ? cache : "none", way ? "bf16" : "none");
        assert_string_equal(precision ? precision : "f32", hbk_model_precision(w.m));
        assert_int_equal(precision != NULL, strcmp(hbk_model_precision(w.m), "f32") != 0);
        json_decref(rows);
    }
    check_ok(t19_augment(&w, NULL, NULL, &err)); /* the same: nothing is left to do */
    hbk_model_round(w.m, false);
    if (hbk__has_bf16())
        check_error(t19_augment(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "precision or cache");
    hbk_model_round(w.m, true);
    w.o.decode.cache = HBK_F32;
    check_error(t19_augment(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "precision or cache");
    t19_free(&w);
}

/* Promise: a bad row is named by file and line, options by their names; the waves before it stay. */
static void t19_errors(void **state)
{
    (void)state;
    static const struct {
        const char *row, *message;
        hbk_code code;
    } cases[] = {
        {"{\"id\": \"x\"}", "\"text\"", HBK_ERROR_FORMAT},
        {"{\"text\": 5}", "no string", HBK_ERROR_FORMAT},
        {"{\"text\": \" \\n\"}", "empty", HBK_ERROR_DATA},
        {"{\"text\": \"a\\u0000b\"}", "NUL", HBK_ERROR_DATA},
        {"{\"text\": \"a\", \"id\": [1]}", "\"id\"", HBK_ERROR_FORMAT},
        {"{\"text\": \"a", "no JSON", HBK_ERROR_FORMAT},
        {"\"a\"", "no JSON object", HBK_ERROR_FORMAT},
    };
    hbk_error err;
    t19_world w = t19_new("errors");
    w.o.decode.wave = 2;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char file[512];
        snprintf(file, sizeof file, "{\"text\": \"a\"}\n\n{\"text\": \"b\"}\n%s\n{\"text\": \"c\"}\n",
                 cases[i].row);
        t19_write(w.segments, file);
        unlink(w.out);
        check_error(t19_augment(&w, NULL, NULL, &err), cases[i].code, cases[i].message);
        assert_string_equal(err.file, w.segments);
        assert_int_equal(err.line, 4);
        hbk_int rows;
        check_ok(hbk_jsonl_count(w.out, &rows, &err));
        assert_int_equal(rows, 2);
    }
    t19_write(w.segments, "\n");
    check_error(t19_augment(&w, NULL, NULL, &err), HBK_ERROR_DATA, "holds no row");
    assert_string_equal(err.file, w.segments);
    t19_write_segments(&w, 3);
    w.o.decode.wave = 0;
    check_error(t19_augment(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "wave 0");
    w.o.decode.wave = 2;
    w.o.decode.slots = 0;
    check_error(t19_augment(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "slots 0");
    w.o.decode.slots = 2;
    unlink(w.out);
    t19_write_segments(&w, 9);
    check_ok(t19_augment(&w, NULL, NULL, &err));
    t19_write_segments(&w, 3); /* the rows of a larger file are not those of this one */
    check_error(t19_augment(&w, NULL, NULL, &err), HBK_ERROR_DATA, "more rows");
    unlink(w.segments);
    check_error(t19_augment(&w, NULL, NULL, &err), HBK_ERROR_FILE, "opened");
    t19_free(&w);
}

/* Promise: with no token left for a reply, or none asked for, rows say so and nothing fails. */
static void t19_limits(void **state)
{
    (void)state;
    hbk_error err;
    t19_world w = t19_new("limits");
    t19_write_segments(&w, 5);
    hbk_dataset d;
    memset(&d, 0, sizeof d);
    t19_lesson(&d, w.t, w.tok, HBK_BACKWARD, NULL, "The tea is hot.", "?"); /* the first, and the shortest */
    hbk_int room = d.start[1] - hbk_dataset_targets(&d, 0) + 1;
    hbk_dataset_free(&d);
    for (int way = 0; way < 3; way++) {
        w.o.decode.max_length = way == 0 ? 1 : way == 1 ? room : -1; /* nothing fits; some do; all do */
        w.o.decode.sampling.max_new = way == 2 ? 1 : 10;
        unlink(w.out);
        check_ok(t19_augment(&w, NULL, NULL, &err));
        json_t *rows = t19_rows(w.out);
        int too_long = 0;
        assert_int_equal(json_array_size(rows), 5);
        for (size_t i = 0; i < 5; i++) {
            bool none = !strcmp(t19_string(rows, i, "status"), "too_long");
            too_long += none;
            assert_int_equal(none, !strcmp(t19_string(rows, i, "finish"), "too_long"));
            if (none) assert_string_equal(t19_string(rows, i, "instruction"), "");
        }
        if (way == 0) assert_int_equal(too_long, 5);
        if (way == 1) assert_in_range(too_long, 1, 4);
        if (way == 2) assert_int_equal(too_long, 0);
        json_decref(rows);
    }
    t19_free(&w);
}

static bool t19_augment_once(void *ctx, hbk_allocator *a, hbk_error *err)
{
    const t19_world *w = (const t19_world *)ctx;
    unlink(w->out);
    return t19_augment(w, NULL, a, err);
}

/* Promise: whichever allocation fails, the error is memory and nothing leaks. */
static void t19_memory_runs_out(void **state)
{
    (void)state;
    t19_world w = t19_new("memory");
    t19_write_segments(&w, 3);
    w.o.decode.wave = 2;
    w.o.decode.sampling.max_new = 3;
    assert_true(fault_sweep(t19_augment_once, &w) > 30);
    t19_free(&w);
}

/* Promise: labels, marks and white space around an instruction go, as long as there are any, and nothing
   else. */
static void t19_clean(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"What is tea?", "What is tea?"},
        {" \n\tWhat is tea?\r\n", "What is tea?"},
        {"Instruction: What is tea?", "What is tea?"},
        {"instruction:What is tea?", "What is tea?"},
        {"### Instruction:\nWhat is tea?", "What is tea?"},
        {"### Instruction\nWhat is tea?", "What is tea?"},
        {"**Question:** What is tea?", "What is tea?"},
        {"**Question**: What is tea?", "What is tea?"},
        {"Question: Instruction: \"What is tea?\"", "What is tea?"},
        {"Q: What is tea?", "What is tea?"},
        {"\"What is tea?\"", "What is tea?"},
        {"\xe2\x80\x9cWhat is tea?\xe2\x80\x9d", "What is tea?"},
        {"\xc2\xabWhat is tea?\xc2\xbb", "What is tea?"},
        {"`What is tea?`", "What is tea?"},
        {"**What is tea?**", "What is tea?"},
        {"\" **Task:** What is tea? \"", "What is tea?"},
        {"Instruction:", ""},
        {"Prompt: \n", ""},
        {"", ""},
        /* and these stay */
        {"\"Tea\" or \"coffee\"", "\"Tea\" or \"coffee\""},
        {"**Tea** or **coffee**", "**Tea** or **coffee**"},
        {"\"", "\""},
        {"\"\"", "\"\""},
        {"Question everything", "Question everything"},
        {"Questions: how many?", "Questions: how many?"},
        {"Task\nWrite.", "Task\nWrite."},
        {"# Task force, what is it?", "# Task force, what is it?"},
        {"Explain: what is tea?", "Explain: what is tea?"},
        {"What is this question: tea?", "What is this question: tea?"},
        {"Queue: what is it?", "Queue: what is it?"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t n = strlen(cases[i][0]);
        const char *s = hbk_augment_clean(cases[i][0], &n);
        if (n != strlen(cases[i][1]) || memcmp(s, cases[i][1], n))
            fail_msg("\"%s\" became \"%.*s\", expected \"%s\"", cases[i][0], (int)n, s, cases[i][1]);
    }
}

/* The mean log-probability per token that the model itself gives to `reply` after the backward prompt. */
static double t19_likelihood(const t19_world *w, const hbk_model *m, const char *text, const char *reply)
{
    hbk_error err;
    hbk_tokens prompt, ids;
    hbk_render r;
    hbk_scoring x;
    memset(&prompt, 0, sizeof prompt);
    memset(&ids, 0, sizeof ids);
    memset(&r, 0, sizeof r);
    memset(&x, 0, sizeof x);
    r.use = HBK_BACKWARD;
    r.output = text;
    check_ok(hbk_template_tokens(w->t, w->tok, &r, &prompt, NULL, &err));
    check_ok(hbk_tokenizer_encode(w->tok, reply, strlen(reply), HBK_ENCODE_CONTINUE, &ids, &err));
    x.prompt = prompt.data;
    x.n_prompt = prompt.n;
    x.continuation = ids.data;
    x.n_continuation = ids.n;
    hbk_session *s = hbk_session_new(m, NULL, 1, 256, HBK_F32, NULL, &err);
    check_ok(s);
    check_ok(hbk_score(s, &x, 1, &err));
    hbk_session_free(s);
    double mean = x.log_likelihood / (double)ids.n;
    hbk_tokens_free(&prompt);
    hbk_tokens_free(&ids);
    return mean;
}

/* Promise: what the backward model wraps around an instruction is gone from the row, which keeps the reply as
   it was under "raw"; with raw set nothing is touched, and there is no "raw". A candidate's likelihood is the
   mean over its tokens that the model itself gives to them. */
static void t19_clean_rows(void **state)
{
    (void)state;
    hbk_error err;
    t19_world w = t19_new("clean");
    hbk_dataset d;
    memset(&d, 0, sizeof d);
    t19_lesson(&d, w.t, w.tok, HBK_BACKWARD, NULL, "The tea.", "Task: \"What is hot?\"");
    t19_lesson(&d, w.t, w.tok, HBK_BACKWARD, NULL, "A dog.", "Who is it?");
    hbk_model *base;
    hbk_trainer *taught = t19_teach(&base, w.tok, &d, 0.02);
    w.o.decode.sampling.temperature = 0;
    w.o.decode.sampling.max_new = 40;
    t19_write(w.segments, "{\"text\": \"The tea.\"}\n{\"text\": \"A dog.\"}\n");
    for (int raw = 0; raw < 2; raw++) {
        w.o.raw = raw != 0;
        unlink(w.out);
        check_ok(hbk_augment(hbk_trainer_model(taught), NULL, w.tok, w.t, &w.o, "", w.segments, w.out, NULL,
                             NULL, &err));
        json_t *rows = t19_rows(w.out);
        assert_string_equal(t19_string(rows, 0, "instruction"),
                            raw ? "Task: \"What is hot?\"" : "What is hot?");
        if (!raw) assert_string_equal(t19_string(rows, 0, "raw"), "Task: \"What is hot?\"");
        assert_int_equal(json_object_get(json_array_get(rows, 0), "raw") == NULL, raw);
        assert_null(json_object_get(json_array_get(rows, 1), "raw"));
        json_decref(rows);
    }
    w.o.candidates = 3;
    w.o.decode.sampling.temperature = 0.3;
    unlink(w.out);
    check_ok(hbk_augment(hbk_trainer_model(taught), NULL, w.tok, w.t, &w.o, "", w.segments, w.out, NULL, NULL,
                         &err));
    json_t *rows = t19_rows(w.out), *p = json_object_get(json_array_get(rows, 1), "logprobs");
    assert_string_equal(t19_string(rows, 1, "instruction"), "Who is it?");
    check_near(t19_likelihood(&w, hbk_trainer_model(taught), "A dog.", "Who is it?"),
               json_real_value(json_array_get(p, 0)), 1e-5);
    json_decref(rows);
    hbk_trainer_free(taught);
    hbk_model_free(base);
    hbk_dataset_free(&d);
    t19_free(&w);
}

/* Promise: of several candidates the likeliest usable one stays; candidate k is what k + 1 candidates say
   too; and cut off inside a wave the file comes back the same. */
static void t19_candidates(void **state)
{
    (void)state;
    enum { N = 9, K = 4 };
    hbk_error err;
    t19_world w = t19_new("candidates");
    t19_write_segments(&w, N);
    w.o.keep_truncated = true;
    w.o.raw = true;
    w.o.max_echo = 1;
    w.o.min_chars = 14; /* drops about half of what comes */
    json_t *rows[K + 1];
    for (int k = 1; k <= K; k++) {
        w.o.candidates = k;
        unlink(w.out);
        check_ok(t19_augment(&w, NULL, NULL, &err));
        rows[k] = t19_rows(w.out);
    }
    int n_changed = 0, n_unusable = 0;
    for (size_t i = 0; i < N; i++)
        for (int k = 2; k <= K; k++) {
            const json_t *row = json_array_get(rows[k], i), *p = json_object_get(row, "logprobs");
            const json_t *before = json_array_get(rows[k - 1], i);
            hbk_int picked = json_integer_value(json_object_get(row, "picked"));
            assert_int_equal(json_array_size(p), k);
            assert_in_range(picked, 0, k - 1);
            const json_t *prov = json_object_get(row, "prov"), *earlier = json_object_get(before, "logprobs");
            assert_int_equal(json_integer_value(json_object_get(prov, "candidates")), k);
            for (size_t j = 0; k > 2 && j < (size_t)k - 1; j++) /* the earlier ones are as they were */
                check_near(json_real_value(json_array_get(p, j)),
                           json_real_value(json_array_get(earlier, j)), 1e-4);
            bool was = !strcmp(t19_string(rows[k - 1], i, "status"), "ok");
            bool is = !strcmp(t19_string(rows[k], i, "status"), "ok");
            double own = json_real_value(json_array_get(p, (size_t)picked));
            assert_true(is || !was); /* never worse */
            if (picked != k - 1) {
                assert_string_equal(t19_string(rows[k], i, "instruction"),
                                    t19_string(rows[k - 1], i, "instruction"));
            } else {
                n_changed++;
                if (was && k > 2) {
                    hbk_int other = json_integer_value(json_object_get(before, "picked"));
                    assert_true(own > json_real_value(json_array_get(p, (size_t)other)));
                }
            }
            if (!is) n_unusable++;
        }
    assert_true(n_changed > 3 && n_unusable < N * (K - 1));
    hbk_text whole = t19_read(w.out);
    for (size_t at = 0; at < whole.len; at += 331) {
        int waves;
        t19_cut(w.out, &whole, at, w.o.decode.wave, &waves);
        check_ok(t19_augment(&w, NULL, NULL, &err));
        t19_check_same(&whole, w.out, "candidates cut");
    }
    w.o.candidates = 2; /* a file of four is not one of two */
    check_error(t19_augment(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "another input");
    w.o.candidates = 0;
    check_error(t19_augment(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "0 candidates");
    w.o.candidates = 2;
    w.o.decode.sampling.temperature = 0;
    check_error(t19_augment(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "temperature");
    w.o.candidates = 1;
    w.o.max_chars = 3;
    check_error(t19_augment(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "characters");
    w.o.max_chars = 30;
    w.o.echo_words = 0;
    check_error(t19_augment(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "echo");
    for (int k = 1; k <= K; k++) json_decref(rows[k]);
    hbk_text_free(&whole);
    t19_free(&w);
}

/* Promise: truncated instructions are dropped, or kept where that is asked for; the counts are those of the
   rows, and a status that is none is an error. */
static void t19_counts(void **state)
{
    (void)state;
    hbk_error err;
    t19_world w = t19_new("counts");
    t19_write_segments(&w, 7);
    w.o.decode.sampling.max_new = 5;
    w.m->config.n_eos = 0; /* nothing ends by itself */
    w.o.max_echo = 1;
    for (int keep = 0; keep < 2; keep++) {
        hbk_int counts[HBK_FATE_COUNT] = {0}, sum = 0;
        w.o.keep_truncated = keep != 0;
        unlink(w.out);
        check_ok(t19_augment(&w, NULL, NULL, &err));
        check_ok(hbk_fate_count(counts, w.out, "status", NULL, &err));
        for (int f = 0; f < HBK_FATE_COUNT; f++) sum += counts[f];
        assert_int_equal(sum, 7);
        assert_int_equal(counts[HBK_FATE_TRUNCATED] > 0, !keep);
        if (!keep) assert_int_equal(counts[HBK_FATE_TRUNCATED] + counts[HBK_FATE_EMPTY], 7);
        if (keep) assert_true(counts[HBK_FATE_OK] > 0);
        json_t *rows = t19_rows(w.out);
        for (size_t i = 0; i < 7; i++) assert_string_equal(t19_string(rows, i, "finish"), "length");
        json_decref(rows);
    }
    hbk_int counts[HBK_FATE_COUNT] = {0};
    t19_write(w.out, "{\"status\": \"echo\"}\n{}\n{\"status\": \"fine\"}\n");
    check_error(hbk_fate_count(counts, w.out, "status", NULL, &err), HBK_ERROR_DATA, "fine");
    assert_int_equal(err.line, 3);
    assert_int_equal(counts[HBK_FATE_ECHO], 0);
    t19_write(w.out, "{\"status\": \"echo\"}\n{}\n");
    check_ok(hbk_fate_count(counts, w.out, "status", NULL, &err));
    assert_int_equal(counts[HBK_FATE_ECHO], 1);
    assert_int_equal(counts[HBK_FATE_OK], 1);
    t19_free(&w);
}

/* Candidates for hbk_sift: an id, a status or none, an instruction, a text. */
static void t19_write_candidates(const char *path)
{
    static const char *const rows[][4] = {
        {"a", "ok", "How do I brew a cup of green tea?", "Boil water."},
        {"b", "ok", "What is the moon?", "It is far."},
        {"c", "ok", "How do I brew a cup of green tea, please?", "Use leaves."},
        {"d", "echo", "How do I brew a cup of green tea?", "Boil it."},
        {"e", NULL, "how do i brew a cup of GREEN tea", "Ask him."},
        {"f", "ok", "Who is it?", "It is said: the quick old dog ran home."},
        {"g", "ok", "Why did the quick old dog run home?", "He was wet."},
        {"h", "ok", "Was it true that the quick old dog ran home?", "It was."},
        {"i", "empty", "", "The quick old dog ran home."},
    };
    hbk_text t;
    memset(&t, 0, sizeof t);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        hbk_text_printf(&t, "{\"id\":\"%s\",\"instruction\":\"%s\",\"output\":\"%s\"", rows[i][0], rows[i][2],
                        rows[i][3]);
        if (rows[i][1]) hbk_text_printf(&t, ",\"status\":\"%s\"", rows[i][1]);
        hbk_text_add(&t, "}\n");
    }
    t19_write(path, hbk_text_string(&t));
    hbk_text_free(&t);
}

static bool t19_sift_once(void *ctx, hbk_allocator *a, hbk_error *err)
{
    const char *const *p = (const char *const *)ctx;
    hbk_sift_options o = hbk_augment_defaults().sift;
    o.dedup = 0.8;
    o.holdout = p + 2;
    o.n_holdout = 1;
    return hbk_sift(&o, p[0], p[1], a, err);
}

/* Promise: rows that overlap an evaluation in instruction or output, and instructions much like one before
   them, get their status, the place or the id, and the similarity; only usable rows are looked at, and a
   dropped one makes no duplicate; done again, in place, the bytes are the same; with all off marks go. */
static void t19_sift(void **state)
{
    (void)state;
    static const char *const want[] = {"ok", "ok", "duplicate", "echo", "duplicate", "contaminated", "ok",
                                       "contaminated", "empty"};
    hbk_error err;
    char in[512], out[512], eval[512];
    test_tmp(in, "t19_sift_in.jsonl");
    test_tmp(out, "t19_sift_out.jsonl");
    test_tmp(eval, "t19_sift_eval.txt");
    t19_write_candidates(in);
    t19_write(eval, "An owl\nThe quick old dog ran home.\n");
    const char *const files[] = {in, out, eval};
    hbk_sift_options o = hbk_augment_defaults().sift;
    assert_true(o.dedup == 0 && o.n_holdout == 0);
    o.dedup = 0.8;
    o.holdout = files + 2;
    o.n_holdout = 1;
    check_ok(hbk_sift(&o, in, out, NULL, &err));
    json_t *rows = t19_rows(out);
    hbk_int counts[HBK_FATE_COUNT] = {0};
    for (size_t i = 0; i < 9; i++) assert_string_equal(t19_string(rows, i, "status"), want[i]);
    assert_string_equal(t19_string(rows, 2, "duplicate_of"), "a");
    assert_string_equal(t19_string(rows, 4, "duplicate_of"), "a");
    check_near(json_real_value(json_object_get(json_array_get(rows, 2), "similarity")), 8.0 / 9, 1e-12);
    check_near(json_real_value(json_object_get(json_array_get(rows, 4), "similarity")), 1, 1e-12);
    assert_null(json_object_get(json_array_get(rows, 0), "similarity"));
    assert_non_null(strstr(t19_string(rows, 5, "overlaps"), "t19_sift_eval.txt:2"));
    check_ok(hbk_fate_count(counts, out, "status", NULL, &err));
    assert_int_equal(counts[HBK_FATE_DUPLICATE], 2);
    assert_int_equal(counts[HBK_FATE_CONTAMINATED], 2);
    json_decref(rows);
    hbk_text once = t19_read(out);
    check_ok(hbk_sift(&o, out, out, NULL, &err));
    t19_check_same(&once, out, "sifted twice");
    memset(&o, 0, sizeof o);
    check_ok(hbk_sift(&o, out, out, NULL, &err));
    rows = t19_rows(out);
    json_t *before = t19_rows(in);
    json_object_set_new(json_array_get(before, 4), "status", json_string("ok"));
    assert_true(json_equal(rows, before));
    json_decref(rows);
    json_decref(before);
    o = hbk_augment_defaults().sift;
    o.holdout = files + 2;
    o.n_holdout = 1;
    t19_write(out, "{\"instruction\": \"a\"}\n");
    check_error(hbk_sift(&o, out, out, NULL, &err), HBK_ERROR_FORMAT, "output");
    hbk_text kept = t19_read(out); /* a failure leaves it alone */
    assert_string_equal(hbk_text_string(&kept), "{\"instruction\": \"a\"}\n");
    hbk_text_free(&kept);
    unlink(eval);
    check_error(hbk_sift(&o, in, out, NULL, &err), HBK_ERROR_FILE, "opened");
    t19_write(eval, "The quick old dog ran home.\n");
    assert_true(fault_sweep(t19_sift_once, (void *)(uintptr_t)files) > 10);
    hbk_text_free(&once);
}

/* Promise: augment sifts what it wrote; cut off anywhere the file still ends with the same bytes, and a bad
   evaluation file is known before anything is generated. */
static void t19_sift_after_augment(void **state)
{
    (void)state;
    hbk_error err;
    t19_world w = t19_new("sifted");
    char eval[512];
    const char *const files[] = {eval};
    test_tmp(eval, "t19_sifted_eval.txt");
    t19_write_segments(&w, 11);
    t19_write(eval, "The tea is hot!\n");
    w.o.keep_truncated = true;
    w.o.max_echo = 1;
    w.o.decode.sampling.max_new = 20;
    w.o.min_chars = 1;
    w.o.sift.dedup = 0.05;
    w.o.sift.dedup_words = 1;
    w.o.sift.holdout = files;
    w.o.sift.n_holdout = 1;
    check_ok(t19_augment(&w, NULL, NULL, &err));
    hbk_int counts[HBK_FATE_COUNT] = {0};
    check_ok(hbk_fate_count(counts, w.out, "status", NULL, &err));
    assert_true(counts[HBK_FATE_DUPLICATE] > 0 && counts[HBK_FATE_CONTAMINATED] > 0);
    hbk_text whole = t19_read(w.out);
    for (size_t at = 0; at <= whole.len; at += 173) {
        int waves;
        t19_cut(w.out, &whole, at, w.o.decode.wave, &waves);
        check_ok(t19_augment(&w, NULL, NULL, &err));
        t19_check_same(&whole, w.out, "sifted, cut");
    }
    hbk_text_free(&whole);
    unlink(eval);
    unlink(w.out);
    check_error(t19_augment(&w, NULL, NULL, &err), HBK_ERROR_FILE, "opened");
    assert_false(hbk_file_exists(w.out));
    w.o.sift.n_holdout = 0;
    w.o.sift.dedup = 2;
    check_error(t19_augment(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "similarity 2");
    t19_free(&w);
}

static bool t19_rewrite_once(void *ctx, hbk_allocator *a, hbk_error *err)
{
    const t19_world *w = (const t19_world *)ctx;
    unlink(w->out);
    return hbk_rewrite(w->m, NULL, w->tok, w->t, &w->o.decode, "m1", w->segments, w->out, NULL, a, err);
}

/* Promise: each pair comes back with the output that the model writes after the rewriting prompt, and its
   other fields; where the model writes nothing, too much, or has no room, the output stays as it was and the
   row says why; the rows train; rows that are not ok are passed over; a file cut off is continued. */
static void t19_rewrite(void **state)
{
    (void)state;
    static const char *const lessons[][3] = {{"What is hot?", "Tea tea tea is hot hot.", "The tea is hot."},
                                             {"Where is it?", "The moon.", ""},
                                             {"Who is it?", "A dog.", "a a a a a a a a a a a a a a a a a"},
                                             {"Why?", "Cat.", "Response:\nthe cat."}};
    static const char *const want[] = {"ok", "empty", "truncated", "leak", "too_long"};
    hbk_error err;
    t19_world w = t19_new("rewrite");
    check_ok(hbk_template_set(w.t, HBK_REWRITING, "{instruction}\n{output}\nBest:", &err));
    hbk_dataset d;
    memset(&d, 0, sizeof d);
    for (int i = 0; i < 4; i++)
        t19_lesson(&d, w.t, w.tok, HBK_REWRITING, lessons[i][0], lessons[i][1], lessons[i][2]);
    hbk_model *base;
    hbk_trainer *taught = t19_teach(&base, w.tok, &d, 0.02);
    hbk_model *random = w.m;
    char file[2000] = "";
    for (int i = 0; i < 4; i++)
        snprintf(file + strlen(file), 400,
                 "{\"id\":\"p%d\",\"instruction\":\"%s\",\"output\":\"%s\",\"score\":%d,"
                 "\"source\":\"aug\"}\n%s",
                 i, lessons[i][0], lessons[i][1], 5 - i, i == 1 ? "{\"status\":\"echo\"}\n" : "");
    strcat(file, "{\"instruction\": \"Long?\", \"output\": \"");
    for (int i = 0; i < 60; i++) strcat(file, "Zq xj vw gb ");
    strcat(file, "\"}\n");
    t19_write(w.segments, file);
    w.o.decode.sampling.temperature = 0;
    w.o.decode.sampling.max_new = 16;
    w.o.decode.wave = 2;
    unlink(w.out);
    check_ok(hbk_rewrite(hbk_trainer_model(taught), NULL, w.tok, w.t, &w.o.decode, "m1", w.segments, w.out,
                         NULL, NULL, &err));
    json_t *rows = t19_rows(w.out);
    assert_int_equal(json_array_size(rows), 5);
    for (size_t i = 0; i < 5; i++) {
        const json_t *row = json_array_get(rows, i);
        assert_string_equal(t19_string(rows, i, "rewrite"), want[i]);
        assert_int_equal(json_object_get(row, "original") != NULL, i == 0);
        if (i == 0) assert_string_equal(t19_string(rows, i, "original"), lessons[i][1]);
        if (i < 4) {
            assert_string_equal(t19_string(rows, i, "output"), lessons[i][i == 0 ? 2 : 1]);
            assert_string_equal(t19_string(rows, i, "instruction"), lessons[i][0]);
            assert_true(json_number_value(json_object_get(row, "score")) == 5 - (double)i);
        }
        t19_check_keys(json_object_get(row, "prov"),
                       "model adapter template template_hash seed rewriting_hash temperature top_p");
    }
    t19_check_keys(json_array_get(rows, 0),
                   "id instruction output score source original rewrite finish prov");
    hbk_int counts[HBK_FATE_COUNT] = {0};
    check_ok(hbk_fate_count(counts, w.out, "rewrite", NULL, &err));
    assert_int_equal(counts[HBK_FATE_OK], 1);
    assert_int_equal(counts[HBK_FATE_LEAK], 1);
    hbk_pairs p;
    memset(&p, 0, sizeof p);
    check_ok(hbk_pairs_load(&p, w.out, "seed", &err));
    assert_int_equal(p.n, 5);
    assert_string_equal(p.data[0].output, "The tea is hot.");
    assert_string_equal(p.data[0].source, "aug");
    hbk_pairs_free(&p);
    hbk_text whole = t19_read(w.out);
    for (size_t at = 0; at <= whole.len; at += 97) {
        int waves;
        t19_cut(w.out, &whole, at, 2, &waves);
        check_ok(hbk_rewrite(hbk_trainer_model(taught), NULL, w.tok, w.t, &w.o.decode, "m1", w.segments,
                             w.out, NULL, NULL, &err));
        t19_check_same(&whole, w.out, "rewriting cut");
    }
    check_ok(hbk_template_set(w.t, HBK_REWRITING, "{instruction}\n{output}\nGood:", &err));
    check_error(hbk_rewrite(hbk_trainer_model(taught), NULL, w.tok, w.t, &w.o.decode, "m1", w.segments, w.out,
                            NULL, NULL, &err),
                HBK_ERROR_OPTION, "another input");
    w.m = random;
    w.o.decode.sampling.max_new = 3;
    assert_true(fault_sweep(t19_rewrite_once, &w) > 30);
    hbk_text_free(&whole);
    json_decref(rows);
    hbk_trainer_free(taught);
    hbk_model_free(base);
    hbk_dataset_free(&d);
    t19_free(&w);
}

/* Promise: instructions are the same in at least 99 of 100 rows whatever --slots and --wave are: greedy ones,
   and the likeliest of three that are drawn, as each row and candidate has a stream of its own. */
static void t19_batching(void **state)
{
    (void)state;
    enum { N = 100 };
    static const hbk_int settings[][2] = {{1, 256}, {7, 64}, {32, 5}, {3, 1}};
    hbk_error err;
    t19_world w = t19_new("batching");
    t19_write_segments(&w, N);
    for (int drawn = 0; drawn < 2; drawn++) {
        w.o.decode.sampling.temperature = drawn ? 0.7 : 0;
        w.o.candidates = drawn ? 3 : 1;
        w.o.decode.wave = 256;
        w.o.decode.slots = 32;
        unlink(w.out);
        check_ok(t19_augment(&w, NULL, NULL, &err));
        json_t *rows = t19_rows(w.out);
        for (size_t k = 0; k < sizeof settings / sizeof *settings; k++) {
            w.o.decode.slots = settings[k][0];
            w.o.decode.wave = settings[k][1];
            unlink(w.out);
            check_ok(t19_augment(&w, NULL, NULL, &err));
            json_t *now = t19_rows(w.out);
            int same = 0;
            for (size_t i = 0; i < N; i++)
                same += !strcmp(t19_string(now, i, "instruction"), t19_string(rows, i, "instruction"));
            assert_in_range(same, 99, N);
            json_decref(now);
        }
        json_decref(rows);
    }
    t19_free(&w);
}

/* The template whose replies end with `end`. */
static void t19_end_with(t19_world *w, const char *end)
{
    char path[512], text[256];
    hbk_error err;
    snprintf(text, sizeof text,
             "{\"prompt\": \"{instruction}\", \"reply\": \"{output}%s\", "
             "\"backward\": \"{output}\\nAsk:\"}",
             end);
    test_tmp(path, "t19_ends_template.json");
    check_ok(hbk_file_write(path, text, strlen(text), &err));
    hbk_template_free(w->t);
    w->t = hbk_template_load(path, NULL, &err);
    check_ok(w->t);
}

/* Promise: a reply that its template ends with text, not with one id, ends there, without it. */
static void t19_text_ends_reply(void **state)
{
    (void)state;
    hbk_error err;
    t19_world w = t19_new("ends");
    t19_write_segments(&w, 12);
    w.m->config.n_eos = 0;
    remove(w.out);
    t19_end_with(&w, "no such end");
    check_ok(t19_augment(&w, NULL, NULL, &err));
    json_t *whole = t19_rows(w.out), *cut;
    int n_cut = 0, n_tried = 0;
    for (size_t at = 0; at < 24; at += 2) { /* ends of two letters, from all texts */
        const char *text = t19_string(whole, at / 2, "instruction");
        char end[3] = {0};
        for (; text[0] && text[1] && !end[0]; text++)
            if (hbk__letter(text[0]) && hbk__letter(text[1])) memcpy(end, text, 2);
        if (!end[0]) continue;
        t19_end_with(&w, end);
        if (hbk_template_stop(w.t, w.tok) >= 0) continue; /* one id */
        n_tried++;
        remove(w.out);
        check_ok(t19_augment(&w, NULL, NULL, &err));
        cut = t19_rows(w.out);
        for (size_t i = 0; i < json_array_size(whole); i++) {
            const char *all = t19_string(whole, i, "instruction"), *stop = strstr(all, end);
            const char *said = t19_string(cut, i, "instruction");
            assert_string_equal(t19_string(cut, i, "finish"), stop ? "stop" : "length");
            assert_null(strstr(said, end));
            assert_memory_equal(said, all, strlen(said));
            if (!stop) assert_string_equal(said, all);
            n_cut += stop != NULL;
        }
        json_decref(cut);
    }
    assert_true(n_tried > 0 && n_cut >= n_tried);
    json_decref(whole);
    t19_free(&w);
}

static const struct CMUnitTest tests_19[] = {
    cmocka_unit_test(t19_statuses),
    cmocka_unit_test(t19_clean),
    cmocka_unit_test(t19_clean_rows),
    cmocka_unit_test(t19_candidates),
    cmocka_unit_test(t19_counts),
    cmocka_unit_test(t19_sift),
    cmocka_unit_test(t19_sift_after_augment),
    cmocka_unit_test(t19_rewrite),
    cmocka_unit_test(t19_batching),
    cmocka_unit_test(t19_rows_and_schema),
    cmocka_unit_test(t19_records_are_independent),
    cmocka_unit_test(t19_cut_anywhere),
    cmocka_unit_test(t19_rounding),
    cmocka_unit_test(t19_errors),
    cmocka_unit_test(t19_limits),
    cmocka_unit_test(t19_text_ends_reply),
    cmocka_unit_test(t19_memory_runs_out),
};
