/* Chapter 17: what a step learns from, how runs stop and go on to the same bytes, and PEFT's own numbers. */
#include "test.h"
#include "fault.h"

enum { T17_V = 40, T17_STEPS = 6 };
#define T17_BAR (sizeof(hbk_real) == 8 ? 1e-12 : 1e-5)

/* A small random model with logits that differ, so that there is something to learn. */
static hbk_model *t17_model(void)
{
    hbk_error err;
    hbk_config c;
    memset(&c, 0, sizeof c);
    c.n_layers = 2;
    c.n_heads = 4;
    c.n_kv_heads = 2;
    c.head_dim = 4;
    c.dim = 16;
    c.ffn_dim = 24;
    c.vocab_size = T17_V;
    c.context_length = 64;
    c.rms_norm_eps = 1e-5;
    c.rope_theta = 10000;
    c.eos[0] = 2;
    c.n_eos = 1;
    hbk_model *m = hbk_model_random(&c, 7, NULL, &err);
    check_ok(m);
    for (hbk_int i = 0; i < T17_V * c.dim; i++) ((hbk_real *)m->head.data)[i] *= 30;
    return m;
}

/* n examples of 5 to 14 ids, 1 to 4 of them prompt. */
static hbk_dataset t17_data(hbk_int n, uint64_t seed)
{
    hbk_error err;
    hbk_dataset d;
    memset(&d, 0, sizeof d);
    for (hbk_int i = 0; i < n; i++) {
        int32_t ids[14];
        hbk_rng r = hbk_rng_at(seed, "examples", (uint64_t)i);
        hbk_int length = 5 + hbk_rng_below(&r, 10), prompt = 1 + hbk_rng_below(&r, 4);
        for (hbk_int k = 0; k < length; k++) ids[k] = 3 + (int32_t)hbk_rng_below(&r, T17_V - 3);
        check_ok(hbk_dataset_add(&d, ids, length, prompt, &err));
    }
    return d;
}

/* Short runs whose steps take several passes. */
static hbk_train_options t17_options(bool full)
{
    hbk_train_options o = hbk_train_defaults(full);
    o.lora.rank = 2;
    o.lora.alpha = 4;
    o.dropout = 0.1;
    o.lr = 0.01;
    o.lr_end = 0.002;
    o.batch = 4;
    o.steps = T17_STEPS;
    o.max_tokens = 24;
    o.save_every = 3;
    return o;
}

static hbk_adapter *t17_adapter(const hbk_model *m, hbk_int rank)
{
    hbk_error err;
    hbk_adapter *a = hbk_adapter_new(&m->config, rank, 6, 1u << HBK_Q | 1u << HBK_UP, 3, NULL, &err);
    check_ok(a);
    hbk_rng r = hbk_rng_at(4, "b", 0);
    for (hbk_int i = 0; i < a->n_values; i++) a->values[i] = (hbk_real)(float)(0.3 * hbk_rng_normal(&r));
    return a;
}

/* A folder of its own for every run. */
static void t17_dir(char dir[512], const char *name)
{
    static int n;
    char unique[96];
    snprintf(unique, sizeof unique, "t17_%d_%s", n++, name);
    test_tmp(dir, unique);
}

/* Everything that most runs below share. */
typedef struct t17_world {
    hbk_model *m;
    hbk_dataset data, replay;
    hbk_recipe recipe;
    int threads; /* to go back to */
} t17_world;

/* threads 0: all there are. With models as small as this, threads mostly wait for each other, so the tests of
   many runs use one. */
static t17_world t17_begin(int threads)
{
    t17_world w;
    memset(&w, 0, sizeof w);
#ifdef _OPENMP
    w.threads = omp_get_max_threads();
    if (threads) omp_set_num_threads(threads);
#else
    (void)threads;
#endif
    w.m = t17_model();
    w.data = t17_data(10, 1);
    w.replay = t17_data(5, 2);
    w.recipe.base_name = "base";
    w.recipe.tag_seed = "the seed tag";
    w.recipe.inference_tag = "the inference tag";
    w.recipe.use = HBK_BACKWARD;
    return w;
}

static void t17_end(t17_world *w)
{
#ifdef _OPENMP
    omp_set_num_threads(w->threads);
#endif
    hbk_dataset_free(&w->data);
    hbk_dataset_free(&w->replay);
    hbk_model_free(w->m);
}

/* Training data that are this set alone. */
static const hbk_train_data *t17_only(const hbk_dataset *d, hbk_train_data *in)
{
    in->examples = d;
    in->replay = in->validation = NULL;
    return in;
}

static bool t17_tune(const t17_world *w, const hbk_train_options *o, const char *dir, const hbk_progress *p,
                     hbk_error *err)
{
    hbk_train_data data = {&w->data, &w->replay, NULL};
    return hbk_finetune(w->m, &data, o, NULL, &w->recipe, dir, p, NULL, err);
}

/* ---- files ----------------------------------------------------------------------- */

static bool t17_has(const char *dir, const char *name)
{
    char path[512];
    return hbk_path(path, dir, name, NULL) && hbk_file_exists(path);
}

static hbk_text t17_read(const char *dir, const char *name)
{
    hbk_error err;
    char path[512];
    hbk_text t;
    memset(&t, 0, sizeof t);
    check_ok(hbk_path(path, dir, name, &err));
    check_ok(hbk_file_read(path, (size_t)1 << 24, &t, &err));
    return t;
}

static void t17_same_file(const char *dir, const char *want, const char *name)
{
    hbk_text a = t17_read(dir, name), b = t17_read(want, name);
    if (a.len != b.len || memcmp(hbk_text_string(&a), hbk_text_string(&b), a.len))
        fail_msg("%s/%s differs from %s/%s", dir, name, want, name);
    hbk_text_free(&a);
    hbk_text_free(&b);
}

/* The results of two runs are the same bytes. */
static void t17_same_run(const char *dir, const char *want, bool full)
{
    t17_same_file(dir, want, full ? "model.safetensors" : "adapter_model.safetensors");
    t17_same_file(dir, want, full ? "config.json" : "adapter_config.json");
    t17_same_file(dir, want, "metrics.jsonl");
    t17_same_file(dir, want, "humpback.json");
    assert_false(t17_has(dir, "checkpoint"));
}

/* What a folder holds in the middle of a run, copied. */
static void t17_copy(const char *from, const char *to)
{
    static const char *const names[] = {"train.json", "metrics.jsonl", "checkpoint/state.safetensors"};
    hbk_error err;
    char path[512];
    check_ok(hbk_path(path, to, "checkpoint", &err));
    check_ok(hbk_dir_make(path, &err));
    for (int i = 0; i < 3; i++) {
        if (!t17_has(from, names[i])) continue;
        hbk_text t = t17_read(from, names[i]);
        check_ok(hbk_path(path, to, names[i], &err));
        check_ok(hbk_file_write(path, hbk_text_string(&t), t.len, &err));
        hbk_text_free(&t);
    }
}

/* Rows of metrics.jsonl; to be json_decref'ed. */
static json_t *t17_metrics(const char *dir)
{
    hbk_error err;
    char path[512];
    json_t *rows = json_array(), *row;
    check_ok(hbk_path(path, dir, "metrics.jsonl", &err));
    hbk_jsonl_reader *r = hbk_jsonl_open(path, NULL, &err);
    check_ok(r);
    while (hbk_jsonl_next(r, &row, &err) > 0) json_array_append(rows, row);
    hbk_jsonl_close(r);
    return rows;
}

static double t17_metric(const json_t *rows, size_t i, const char *key)
{
    return json_number_value(json_object_get(json_array_get(rows, i), key));
}

/* A progress callback that cancels at step `at`, copies the folder at step `copy_at`, and sees to it that a
   folder in training never looks finished. */
typedef struct t17_watch {
    const char *dir, *copy;
    hbk_int at, copy_at, calls;
    bool was_whole;
    double val; /* the validation loss of the last note */
} t17_watch;

static bool t17_call(void *ctx, const char *stage, hbk_int done, hbk_int total, const char *unit,
                     const char *note)
{
    t17_watch *w = (t17_watch *)ctx;
    const char *val = strstr(note, "  val ");
    (void)stage, (void)total, (void)unit;
    w->calls++;
    if (val) w->val = strtod(val + 6, NULL);
    w->was_whole = w->was_whole || t17_has(w->dir, "humpback.json");
    if (done == w->copy_at) t17_copy(w->dir, w->copy);
    return done != w->at;
}

static hbk_progress t17_progress(t17_watch *w, const char *dir, hbk_int at)
{
    hbk_progress p = {t17_call, NULL, w};
    memset(w, 0, sizeof *w);
    w->dir = dir;
    w->at = at;
    w->copy_at = -1;
    return p;
}

/* ---- gradients and steps ------------------------------------------------------------ */

/* Adds the gradient of n examples from `first` on, in one pass. */
static double t17_add(hbk_trainer *t, const hbk_dataset *d, hbk_int first, hbk_int n, double scale)
{
    hbk_error err;
    hbk_packer p;
    double loss;
    check_ok(hbk_packer_init(&p, 200, n, NULL, &err));
    for (hbk_int i = 0; i < n; i++) assert_true(hbk_packer_add(&p, d, first + i));
    hbk_batch b = hbk_packer_batch(&p);
    check_ok(hbk_trainer_accumulate(t, &b, scale, &loss, &err));
    hbk_packer_free(&p);
    return loss;
}

static hbk_int t17_targets(const hbk_dataset *d, hbk_int first, hbk_int n)
{
    hbk_int targets = 0;
    for (hbk_int i = first; i < first + n; i++) targets += hbk_dataset_targets(d, i);
    return targets;
}

static hbk_trainer *t17_trainer(const hbk_model *m, const hbk_train_options *o, const hbk_adapter *init)
{
    hbk_error err;
    hbk_trainer *t = hbk_trainer_new(m, o, init, 200, 64, NULL, &err);
    check_ok(t);
    return t;
}

/* Largest difference of n numbers, relative to the largest of y. */
static double t17_difference(const hbk_real *x, const hbk_real *y, hbk_int n)
{
    double worst = 0, scale = 0;
    for (hbk_int i = 0; i < n; i++) {
        worst = fmax(worst, fabs((double)x[i] - (double)y[i]));
        scale = fmax(scale, fabs((double)y[i]));
    }
    assert_true(scale > 0);
    return worst / scale;
}

/* Promise: steps by data size are the paper's Table 18, between its rows they run from one to the next
   without turning, and beyond its last they stay one epoch of 32. */
static void t17_steps_by_size(void **state)
{
    (void)state;
    static const hbk_int table[][2] = {{100, 30},   {800, 300},   {1600, 600},   {3200, 500},
                                       {6400, 600}, {12800, 600}, {25600, 1200}, {51200, 1600}};
    assert_int_equal(hbk_train_steps(1), 30);
    for (int i = 0; i < 8; i++) assert_int_equal(hbk_train_steps(table[i][0]), table[i][1]);
    for (int i = 0; i + 1 < 8; i++) {
        hbk_int sign = table[i + 1][1] < table[i][1] ? -1 : 1, last = table[i][1];
        for (hbk_int n = table[i][0]; n <= table[i + 1][0]; n++) {
            hbk_int now = hbk_train_steps(n);
            assert_true(sign * (now - last) >= 0 && now - last <= 2);
            last = now;
        }
        assert_int_equal(last, table[i + 1][1]);
    }
    assert_int_equal(hbk_train_steps(283), 165); /* 100 sqrt(8): halfway in log n */
    assert_true(hbk_train_steps(51201) == 1600 && hbk_train_steps(102400) == 3200);
}

/* Promise: the gradient of batches added up one by one, each weighed by its target tokens, is that of one
   large batch, and so is their loss; an update clears it. */
static void t17_accumulation(void **state)
{
    (void)state;
    hbk_error err;
    t17_world w = t17_begin(0);
    hbk_int M = t17_targets(&w.data, 0, 10), part = t17_targets(&w.data, 0, 1);
    assert_true(10 * part != M); /* a mean of means would be something else */
    for (int full = 0; full < 2; full++) {
        hbk_train_options o = t17_options(full);
        hbk_adapter *init = t17_adapter(w.m, 2);
        o.dropout = 0;
        hbk_trainer *one = t17_trainer(w.m, &o, init), *many = t17_trainer(w.m, &o, init);
        double loss = t17_add(one, &w.data, 0, 10, 1 / (double)M), sum = 0;
        for (hbk_int i = 0; i < 10; i += i == 0 ? 1 : 3) /* 1, 3, 3 and 3 examples */
            sum += t17_add(many, &w.data, i, i == 0 ? 1 : 3, 1 / (double)M);
        double worst = t17_difference(many->grads, one->grads, one->n);
        print_message("    %s largest relative difference %.1e\n", full ? "full" : "LoRA", worst);
        assert_true(worst < T17_BAR);
        check_near(sum / loss, 1, T17_BAR);
        check_ok(hbk_trainer_update(many, 0.01, NULL, &err));
        for (hbk_int i = 0; i < many->n; i++) assert_true(many->grads[i] == 0);
        assert_int_equal(hbk_trainer_step(many), 1);
        hbk_trainer_free(one);
        hbk_trainer_free(many);
        hbk_adapter_free(init);
    }
    t17_end(&w);
}

/* Promise: clipping scales the gradient down to the norm asked for, and only down; norms and
   biases of a model do not decay, its matrices do. */
static void t17_clip_and_decay(void **state)
{
    (void)state;
    hbk_error err;
    t17_world w = t17_begin(1);
    for (int clipped = 0; clipped < 2; clipped++) {
        hbk_train_options o = t17_options(true);
        o.dropout = 0;
        o.clip = clipped ? 0.01 : 1e6;
        hbk_trainer *t = t17_trainer(w.m, &o, NULL);
        t17_add(t, &w.data, 0, 5, 1 / (double)t17_targets(&w.data, 0, 5));
        double norm, want = hbk_norm(t->grads, t->n);
        check_ok(hbk_trainer_update(t, 1e-3, &norm, &err));
        assert_true(norm == want && norm > 0.01);
        check_near(hbk_norm(t->m, t->n) / 0.1 / (clipped ? 0.01 : norm), 1, 1e-5); /* m = (1 - beta1) g */
        hbk_trainer_free(t);
    }
    hbk_train_options o = t17_options(true);
    hbk_config c = w.m->config;
    c.biases = 1u << HBK_DOWN;
    hbk_model_free(w.m);
    w.m = hbk_model_random(&c, 7, NULL, &err);
    o.weight_decay = 0.5;
    hbk_trainer *t = t17_trainer(w.m, &o, NULL);
    check_ok(hbk_trainer_update(t, 0.1, NULL, &err)); /* no gradient: nothing but decay */
    const hbk_model *after = hbk_trainer_model(t);
    assert_true(after->final_norm[3] == 1 && after->layers[1].attn_norm[0] == 1);
    assert_true(after->layers[1].bias[HBK_DOWN][3] == w.m->layers[1].bias[HBK_DOWN][3]);
    const hbk_real *now = (const hbk_real *)after->layers[1].w[HBK_DOWN].data;
    check_near(now[5], 0.95 * (double)((const hbk_real *)w.m->layers[1].w[HBK_DOWN].data)[5], 1e-7);
    check_near(t->values[7], 0.95 * (double)w.m->values[7], 1e-7); /* of the embedding */
    hbk_trainer_free(t);
    t17_end(&w);
}

/* Promise: under LoRA+ the first step moves every A as without it, and every B by that many times as much. */
static void t17_lora_plus(void **state)
{
    (void)state;
    hbk_error err;
    t17_world w = t17_begin(1);
    hbk_trainer *t[2];
    hbk_adapter *start = t17_adapter(w.m, 2);
    for (int k = 0; k < 2; k++) {
        hbk_train_options o = t17_options(false);
        o.dropout = 0;
        o.lora_plus = k ? 16 : 1;
        t[k] = t17_trainer(w.m, &o, start);
        t17_add(t[k], &w.data, 0, 5, 1 / (double)t17_targets(&w.data, 0, 5));
        check_ok(hbk_trainer_update(t[k], 1e-3, NULL, &err));
    }
    for (hbk_int i = 0; i < start->n_layers * HBK_N_SLOTS; i++) {
        const hbk_lora *l = &start->loras[i];
        hbk_int a = l->a - start->values, b = l->b - start->values;
        for (hbk_int k = 0; l->a && k < l->rank * l->in; k++)
            assert_true(t[0]->values[a + k] == t[1]->values[a + k]);
        for (hbk_int k = 0; l->a && k < l->rank * l->out; k++) {
            double plain = (double)(t[0]->values[b + k] - l->b[k]);
            check_near((double)(t[1]->values[b + k] - l->b[k]) / 16, plain, 1e-6);
            assert_true(fabs(plain) > 1e-4); /* Adam's first step is the rate itself, but for eps */
        }
    }
    hbk_trainer_free(t[0]);
    hbk_trainer_free(t[1]);
    hbk_adapter_free(start);
    t17_end(&w);
}

/* Promise: a few examples are learned by heart, by an adapter and in full training; the base stays. */
static void t17_overfit(void **state)
{
    (void)state;
    hbk_error err;
    t17_world w = t17_begin(1);
    double scale = 1 / (double)t17_targets(&w.data, 0, 3);
    uint64_t before = hbk_hash(0, w.m->values, (size_t)hbk_model_count(&w.m->config) * sizeof(hbk_real));
    for (int full = 0; full < 2; full++) {
        hbk_train_options o = t17_options(full);
        o.lora.rank = 4;
        o.lora.alpha = 8;
        o.dropout = 0;
        hbk_trainer *t = t17_trainer(w.m, &o, NULL);
        double first = t17_add(t, &w.data, 0, 3, scale) * scale, loss = first;
        for (int i = 0; i < 100 && loss >= 0.05; i++) {
            check_ok(hbk_trainer_update(t, 0.02, NULL, &err));
            loss = t17_add(t, &w.data, 0, 3, scale) * scale;
        }
        print_message("    %s loss %.2f, after %d steps %.3f\n", full ? "full" : "LoRA", first,
                      (int)hbk_trainer_step(t), loss);
        assert_true(loss < 0.05);
        hbk_trainer_free(t);
    }
    assert_true(before == hbk_hash(0, w.m->values,
                                   (size_t)hbk_model_count(&w.m->config) * sizeof(hbk_real)));
    t17_end(&w);
}

/* Promise: a gradient that is not finite is an error that leaves weights, moments and the step count as they
   were, and the next step goes as if nothing had been; weights that are no longer finite end the run in that
   very step. */
static void t17_not_finite(void **state)
{
    (void)state;
    hbk_error err;
    t17_world w = t17_begin(1);
    for (int full = 0; full < 2; full++) {
        hbk_train_options o = t17_options(full);
        hbk_trainer *t = t17_trainer(w.m, &o, NULL), *good = t17_trainer(w.m, &o, NULL);
        for (int i = 0; i < 3; i++) {
            if (i == 1) {
                double norm = 42;
                hbk_real *keep = HBK__NEW(NULL, hbk_real, t->n, &err);
                memcpy(keep, t->values, (size_t)t->n * sizeof *keep);
                t17_add(t, &w.data, 0, 2, INFINITY);
                check_error(hbk_trainer_update(t, 0.01, &norm, &err), HBK_ERROR_NUMERIC, "step 2");
                assert_memory_equal(keep, t->values, (size_t)t->n * sizeof *keep);
                assert_true(norm == 42 && hbk_trainer_step(t) == 1);
                hbk_free(NULL, keep);
            }
            t17_add(t, &w.data, i, 3, 0.1);
            t17_add(good, &w.data, i, 3, 0.1);
            check_ok(hbk_trainer_update(t, 0.01, NULL, &err));
            check_ok(hbk_trainer_update(good, 0.01, NULL, &err));
        }
        assert_memory_equal(good->values, t->values, (size_t)t->n * sizeof *t->values);
        assert_memory_equal(good->m, t->m, (size_t)t->n * sizeof *t->m);
        hbk_trainer_free(t);
        hbk_trainer_free(good);
    }
    char dir[512];
    hbk_train_options o = t17_options(false);
    t17_dir(dir, "infinite");
    o.lr = o.lr_end = 1e29; /* a decay of -1e58 */
    o.weight_decay = 1e29;
    if (sizeof(hbk_real) == 4)
        check_error(t17_tune(&w, &o, dir, NULL, &err), HBK_ERROR_NUMERIC, "the weights are not finite");
    hbk_trainer *far = t17_trainer(w.m, &o, NULL);
    t17_add(far, &w.data, 0, 3, 0.1);
    check_error(hbk_trainer_update(far, 1e300, NULL, &err), HBK_ERROR_NUMERIC, "not finite any more");
    hbk_trainer_free(far);
    o = t17_options(false);
    w.m->final_norm[2] = INFINITY;
    check_error(t17_tune(&w, &o, dir, NULL, &err), HBK_ERROR_NUMERIC, "step 1: the loss is not finite");
    assert_false(t17_has(dir, "humpback.json"));
    t17_end(&w);
}

/* Promise: a model that was finetuned whole says in its generation_config.json that what ends its template's
   replies ends a text. */
static void t17_full_stop(void **state)
{
    (void)state;
    hbk_error err;
    int32_t id;
    t17_world w = t17_begin(1);
    char dir[512], path[600];
    hbk_tokenizer *tok = t14_with_special("<|im_end|>", &id);
    hbk_template *chatml = hbk_template_load("chatml", NULL, &err);
    hbk_train_options o = t17_options(true);
    o.steps = 1;
    w.recipe.tok = tok;
    w.recipe.tmpl = chatml;
    t17_dir(dir, "full_stop");
    check_ok(t17_tune(&w, &o, dir, NULL, &err));
    snprintf(path, sizeof path, "%s/generation_config.json", dir);
    json_t *root = hbk_json_read(path, &err), *list = json_object_get(root, "eos_token_id");
    assert_int_equal(json_array_size(list), 2);
    assert_int_equal(json_integer_value(json_array_get(list, 0)), 2);
    assert_int_equal(json_integer_value(json_array_get(list, 1)), id);
    json_decref(root);
    hbk_template_free(chatml);
    hbk_tokenizer_free(tok);
    t17_end(&w);
}

/* Promise: NEFTune's noise is uniform in +-alpha / sqrt(T C), T the length of each sequence, another one in
   every pass, the same one in the same run, and in training alone. */
static void t17_neftune(void **state)
{
    (void)state;
    hbk_error err;
    enum { C = 16, N = 220 };
    static hbk_real x[N * C], same[N * C];
    hbk_int start[3] = {0, 20, N};
    hbk_batch b;
    memset(&b, 0, sizeof b);
    memset(x, 0, sizeof x);
    memset(same, 0, sizeof same);
    b.n_seqs = 2;
    b.n_tokens = N;
    b.seq_start = start;
    hbk__embed_noise(x, &b, C, 5, 9);
    hbk__embed_noise(same, &b, C, 5, 9);
    assert_memory_equal(x, same, sizeof x);
    for (int s = 0; s < 2; s++) {
        double bound = 5 / sqrt((double)(start[s + 1] - start[s]) * C), most = 0, sum = 0, squares = 0;
        hbk_int n = (start[s + 1] - start[s]) * C;
        for (hbk_int i = start[s] * C; i < start[s + 1] * C; i++) {
            most = HBK__MAX(most, fabs((double)x[i]));
            sum += (double)x[i];
            squares += (double)x[i] * (double)x[i];
        }
        assert_true(most <= bound * (1 + 1e-6) && most > 0.98 * bound);
        assert_true(fabs(sum / (double)n) < 0.1 * bound);
        check_near(squares / (double)n, bound * bound / 3, 0.15);
    }
    t17_world w = t17_begin(1);
    hbk_train_data in;
    double loss[3][2], held[3];
    for (int k = 0; k < 3; k++) {
        hbk_train_options o = t17_options(false);
        o.dropout = 0;
        o.neftune = k ? 20 : 0;
        hbk__plan p;
        check_ok(hbk__plan_init(&p, w.m, t17_only(&w.data, &in), &o, NULL, &err));
        p.validation = &w.data;
        hbk_trainer *t = t17_trainer(w.m, &o, NULL);
        for (int pass = 0; pass < 2; pass++) loss[k][pass] = t17_add(t, &w.data, 0, 3, 0.1);
        check_ok(hbk__validation_loss(t, &p, &held[k], &err));
        hbk_trainer_free(t);
        hbk__plan_free(&p);
    }
    assert_true(loss[0][0] == loss[0][1] && loss[1][0] != loss[1][1] && loss[1][0] != loss[0][0]);
    assert_memory_equal(loss[1], loss[2], sizeof loss[1]);
    assert_true(held[0] == held[1]);
    t17_end(&w);
}

/* Promise: what a finetuning is about to do is known before: lengths, steps, epochs and how much is trained,
   as the run then has them, and what of the validation set is trained on, too; what the run would refuse is
   refused here. */
static void t17_facts(void **state)
{
    (void)state;
    hbk_error err;
    hbk_train_data in;
    hbk_train_facts x;
    t17_world w = t17_begin(1);
    hbk_dataset d;
    memset(&d, 0, sizeof d);
    int32_t ids[40] = {0};
    for (hbk_int i = 0; i < 20; i++) check_ok(hbk_dataset_add(&d, ids, 21 - i, 1, &err)); /* 2 to 21 tokens */
    t17_only(&d, &in);
    hbk_adapter *init = t17_adapter(w.m, 3);
    for (int k = 0; k < 3; k++) {
        hbk_train_options o = t17_options(k == 1);
        o.steps = -1;
        o.epochs = 2;
        o.accumulate = 3;
        check_ok(hbk_finetune_facts(&x, w.m, &in, &o, k == 2 ? init : NULL, NULL, &err));
        assert_true(x.shared == 0 && x.shortest == 2 && x.half == 11 && x.most == 19 && x.longest == 21);
        assert_true(x.batch == 4 && x.steps == 4);
        check_near(x.epochs, 2.4, 1e-12);
        hbk_trainer *t = t17_trainer(w.m, &o, k == 2 ? init : NULL);
        assert_int_equal(x.trained, t->n);
        assert_int_equal(x.numbers, hbk_model_count(&w.m->config));
        hbk_trainer_free(t);
        hbk_dataset held = t17_data(3, 9); /* two of d's examples among four others */
        check_ok(hbk_dataset_add(&held, ids, 5, 2, &err) && hbk_dataset_add(&held, ids, 22, 2, &err));
        check_ok(hbk_dataset_add(&held, ids, 21, 1, &err));
        in.validation = &held;
        check_ok(hbk_finetune_facts(&x, w.m, &in, &o, NULL, NULL, &err));
        assert_int_equal(x.shared, 2);
        in.validation = NULL;
        hbk_dataset_free(&held);
        o.lr_end = 2 * o.lr;
        check_error(hbk_finetune_facts(&x, w.m, &in, &o, NULL, NULL, &err), HBK_ERROR_OPTION, "lr_end");
        o.lr_end = o.lr;
        o.lora.rank = k == 1 ? 2 : 99;
        if (k == 0)
            check_error(hbk_finetune_facts(&x, w.m, &in, &o, NULL, NULL, &err), HBK_ERROR_RANGE, "rank 99");
    }
    hbk_adapter_free(init);
    hbk_dataset_free(&d);
    t17_end(&w);
}

/* Promise: where a loss is not finite the run ends with the step and the lines of its examples, and what is
   left is the checkpoint before. */
static void t17_broken_example(void **state)
{
    (void)state;
    hbk_error err;
    hbk_train_data in;
    t17_world w = t17_begin(1);
    char dir[512], path[600];
    hbk_dataset d;
    memset(&d, 0, sizeof d);
    for (int32_t i = 0; i < 6; i++) {
        int32_t ids[4] = {i + 3, i == 4 ? T17_V - 1 : 30, i + 4, 2};
        check_ok(hbk_dataset_add(&d, ids, 4, 2, &err));
        d.line[i] = 10 * i + 1;
    }
    ((hbk_real *)w.m->embed.data)[(T17_V - 1) * w.m->config.dim] = (hbk_real)NAN;
    hbk_train_options o = t17_options(false);
    o.batch = 1;
    o.save_every = 2;
    o.shuffle = false;
    t17_dir(dir, "broken");
    check_error(hbk_finetune(w.m, t17_only(&d, &in), &o, NULL, &w.recipe, dir, NULL, NULL, &err),
                HBK_ERROR_NUMERIC, "step 5: the loss is not finite");
    assert_non_null(strstr(err.message, "Its examples: line 41."));
    assert_false(t17_has(dir, "humpback.json") || t17_has(dir, "adapter_model.safetensors"));
    hbk_trainer *t = t17_trainer(w.m, &o, NULL);
    snprintf(path, sizeof path, "%s/checkpoint/state.safetensors", dir);
    check_ok(hbk_trainer_resume(t, path, &err));
    assert_int_equal(hbk_trainer_step(t), 4);
    assert_true(isfinite(hbk_norm(t->values, t->n)));
    hbk_trainer_free(t);
    hbk_dataset_free(&d);
    t17_end(&w);
}

/* Promise: dropout has another mask in every step and in every pass of a step, the same ones in the same run,
   and none at p = 0. */
static void t17_dropout(void **state)
{
    (void)state;
    hbk_error err;
    t17_world w = t17_begin(1);
    hbk_adapter *init = t17_adapter(w.m, 2);
    for (int full = 0; full < 2; full++)
        for (int off = 0; off < 2; off++) {
            hbk_train_options o = t17_options(full);
            o.dropout = off ? 0 : 0.2;
            double loss[2][4];
            for (int run = 0; run < 2; run++) {
                hbk_trainer *t = t17_trainer(w.m, &o, init);
                for (int i = 0; i < 4; i++) {
                    loss[run][i] = t17_add(t, &w.data, 0, 5, 1);
                    if (i == 1) check_ok(hbk_trainer_update(t, 0, NULL, &err)); /* a step, the same weights */
                }
                hbk_trainer_free(t);
            }
            assert_memory_equal(loss[0], loss[1], sizeof loss[0]);
            for (int i = 0; i < 4; i++)
                for (int k = 0; k < i; k++) assert_true((loss[0][i] == loss[0][k]) == off);
        }
    hbk_adapter_free(init);
    t17_end(&w);
}

/* Promise: a checkpoint holds all of a trainer's state: what goes on from it makes the same bytes; one of
   another shape is refused and changes nothing. */
static void t17_checkpoint(void **state)
{
    (void)state;
    hbk_error err;
    t17_world w = t17_begin(0);
    char path[512];
    test_tmp(path, "t17_state.safetensors");
    hbk_train_options o = t17_options(false);
    hbk_trainer *a = t17_trainer(w.m, &o, NULL), *b = t17_trainer(w.m, &o, NULL);
    o.lora.rank = 3;
    hbk_trainer *other = t17_trainer(w.m, &o, NULL);
    for (int i = 0; i < 4; i++) {
        if (i == 2) {
            check_ok(hbk_trainer_save(a, path, &err));
            t17_add(b, &w.data, 7, 1, 3); /* forgotten: neither its gradient nor its pass counts */
            check_ok(hbk_trainer_resume(b, path, &err));
            assert_int_equal(hbk_trainer_step(b), 2);
        }
        t17_add(a, &w.data, i, 3, 0.1);
        check_ok(i < 2 || t17_add(b, &w.data, i, 3, 0.1) > 0);
        check_ok(hbk_trainer_update(a, 0.01, NULL, &err));
        if (i >= 2) check_ok(hbk_trainer_update(b, 0.01, NULL, &err));
    }
    assert_memory_equal(a->values, b->values, (size_t)a->n * sizeof *a->values);
    assert_memory_equal(a->v, b->v, (size_t)a->n * sizeof *a->v);
    uint64_t before = hbk_hash(0, other->values, (size_t)other->n * sizeof(hbk_real));
    check_error(hbk_trainer_resume(other, path, &err), HBK_ERROR_SHAPE, "another run");
    assert_true(before == hbk_hash(0, other->values, (size_t)other->n * sizeof(hbk_real)));
    assert_int_equal(hbk_trainer_step(other), 0);
    int64_t step; /* a file of the right sizes, but of a step that cannot be, then of another type */
    hbk_tensor state_now[HBK__STATE_MAX];
    hbk_int n = hbk__trainer_state(a, &step, state_now);
    before = hbk_hash(0, b->values, (size_t)b->n * sizeof(hbk_real));
    a->values[0] += 1; /* which b must not take over */
    for (int k = 0; k < 2; k++) {
        step = k ? 4 : -1;
        if (k) snprintf(state_now[HBK__STATE_STEP].dtype, sizeof state_now[0].dtype, "F64");
        check_ok(hbk_safetensors_write(path, state_now, n, &err));
        check_error(hbk_trainer_resume(b, path, &err), HBK_ERROR_SHAPE, "another run");
        assert_true(before == hbk_hash(0, b->values, (size_t)b->n * sizeof(hbk_real)));
        assert_int_equal(hbk_trainer_step(b), 4);
    }
    hbk_trainer_free(a);
    hbk_trainer_free(b);
    hbk_trainer_free(other);
    t17_end(&w);
}

/* ---- which examples ------------------------------------------------------------------ */

/* The first n examples of a run, pairs alone. */
static void t17_order_of(const t17_world *w, hbk_train_options o, hbk_int *out, hbk_int n)
{
    hbk_error err;
    hbk_train_data in;
    hbk__plan p;
    const hbk_dataset *from;
    check_ok(hbk__plan_init(&p, w->m, t17_only(&w->data, &in), &o, NULL, &err));
    hbk_int per_step = p.o.batch * p.o.accumulate;
    for (hbk_int i = 0; i < n; i++) {
        out[i] = hbk__step_example(&p, 1 + i / per_step, i % per_step, &from);
        assert_ptr_equal(from, &w->data);
    }
    hbk__plan_free(&p);
}

/* Promise: every epoch takes each example once, in an order of its own that the seed decides; without
   shuffling it is the order of the data. Batches do not end at the end of an epoch. */
static void t17_order(void **state)
{
    (void)state;
    t17_world w = t17_begin(1);
    hbk_train_options o = t17_options(false);
    hbk_int a[30], again[30], other[30], plain[30];
    t17_order_of(&w, o, a, 30); /* 10 examples, batches of 4: three epochs */
    t17_order_of(&w, o, again, 30);
    assert_memory_equal(a, again, sizeof a);
    o.seed = 2;
    t17_order_of(&w, o, other, 30);
    o.shuffle = false;
    t17_order_of(&w, o, plain, 30);
    for (int e = 0; e < 3; e++) {
        int seen[10] = {0};
        for (int i = 0; i < 10; i++) {
            seen[a[10 * e + i]]++;
            assert_int_equal(plain[10 * e + i], i);
        }
        for (int i = 0; i < 10; i++) assert_int_equal(seen[i], 1);
        assert_memory_not_equal(a + 10 * e, other + 10 * e, sizeof a / 3);
        assert_memory_not_equal(a + 10 * e, plain, sizeof a / 3);
        if (e) assert_memory_not_equal(a + 10 * e, a + 10 * (e - 1), sizeof a / 3);
    }
    t17_end(&w);
}

/* Promise: every batch of every step holds as many replayed documents as were asked for, all documents in
   turn, and the pairs are those of a run without replay; replay from nothing is an error. */
static void t17_replay(void **state)
{
    (void)state;
    hbk_error err;
    t17_world w = t17_begin(1);
    hbk_train_data in;
    hbk_train_data both = {&w.data, &w.replay, NULL};
    hbk_train_options o = t17_options(false);
    hbk_int pairs[40];
    o.batch = 2;
    o.accumulate = 2;
    t17_order_of(&w, o, pairs, 40);
    o.replay = 3;
    hbk__plan p;
    check_ok(hbk__plan_init(&p, w.m, &both, &o, NULL, &err));
    int seen[5] = {0}, n = 0;
    for (hbk_int step = 1; step <= 10; step++)
        for (hbk_int i = 0; i < 10; i++) {
            const hbk_dataset *from;
            hbk_int x = hbk__step_example(&p, step, i, &from);
            assert_ptr_equal(from, i % 5 < 2 ? &w.data : &w.replay);
            if (i % 5 < 2) assert_int_equal(x, pairs[n++]);
            else seen[x]++;
        }
    for (int i = 0; i < 5; i++) assert_int_equal(seen[i], 10 * 2 * 3 / 5);
    hbk__plan_free(&p);
    char dir[512];
    t17_dir(dir, "replay");
    check_error(hbk_finetune(w.m, t17_only(&w.data, &in), &o, NULL, &w.recipe, dir, NULL, NULL, &err),
                HBK_ERROR_DATA, "3 replayed documents");
    check_ok(t17_tune(&w, &o, dir, NULL, &err));
    json_t *rows = t17_metrics(dir);
    hbk_int tokens = 0; /* of the first step: 2 batches of 2 pairs and 3 documents */
    check_ok(hbk__plan_init(&p, w.m, &both, &o, NULL, &err));
    for (hbk_int i = 0; i < 10; i++) {
        const hbk_dataset *from;
        hbk_int x = hbk__step_example(&p, 1, i, &from);
        tokens += from->start[x + 1] - from->start[x] - 1;
    }
    assert_int_equal(t17_metric(rows, 0, "tokens"), tokens);
    hbk__plan_free(&p);
    json_decref(rows);
    t17_end(&w);
}

/* Promise: a step's examples go into as few passes as best fit finds, every one into exactly one, and none of
   the passes is over the limit. */
static void t17_best_fit(void **state)
{
    (void)state;
    static const hbk_int tokens[] = {30, 60, 20, 50, 40}, pass[] = {1, 0, 1, 1, 0}; /* 60+40, 50+30+20 */
    hbk__step_item items[5];
    hbk_int room[5];
    hbk__plan p;
    memset(&p, 0, sizeof p);
    p.per_step = 5;
    p.items = items;
    p.room = room;
    p.packer.max_tokens = 100;
    for (hbk_int i = 0; i < 5; i++) {
        items[i].example = i;
        items[i].tokens = tokens[i];
        items[i].pass = i;
    }
    assert_int_equal(hbk__pack(&p), 2); /* in file order it would be three */
    unsigned seen = 0;
    for (int i = 0; i < 5; i++) {
        assert_int_equal(items[i].pass, pass[items[i].example]);
        seen |= 1u << items[i].example;
    }
    assert_int_equal(seen, 31);
    assert_int_equal(room[0], 0);
    assert_int_equal(room[1], 0);
}

/* ---- whole runs ------------------------------------------------------------------------ */

/* Promise: a run leaves metrics of every step, the learning rate ending exactly at lr_end, its first loss the
   mean over the step's target tokens; what it saved loads and has learned; humpback.json says its use. */
static void t17_results(void **state)
{
    (void)state;
    hbk_error err;
    t17_world w = t17_begin(1);
    for (int full = 0; full < 2; full++) {
        char dir[512];
        hbk_train_options o = t17_options(full);
        o.batch = 10;
        o.dropout = 0;
        o.steps = 20;
        t17_dir(dir, "results");
        check_ok(t17_tune(&w, &o, dir, NULL, &err));
        json_t *rows = t17_metrics(dir), *j;
        assert_int_equal(json_array_size(rows), 20);
        for (size_t i = 0; i < 20; i++) assert_int_equal(t17_metric(rows, i, "step"), i + 1);
        assert_true(t17_metric(rows, 0, "lr") == o.lr && t17_metric(rows, 19, "lr") == o.lr_end);
        double scale = 1 / (double)t17_targets(&w.data, 0, 10);
        hbk_trainer *t = t17_trainer(w.m, &o, NULL);
        check_near(t17_metric(rows, 0, "loss"), t17_add(t, &w.data, 0, 10, scale) * scale, T17_BAR);
        check_near(t17_metric(rows, 0, "grad_norm"), hbk_norm(t->grads, t->n), T17_BAR);
        hbk_trainer_free(t);

        hbk_tuned tuned;
        check_ok(hbk_tuned_load(&tuned, w.m, dir, NULL, &err));
        assert_true(full ? !tuned.adapter && tuned.own_model : tuned.adapter && tuned.model == w.m);
        t = t17_trainer(tuned.model, &o, tuned.adapter);
        double loss = t17_add(t, &w.data, 0, 10, scale) * scale;
        assert_true(loss < t17_metric(rows, 19, "loss") && loss < 0.8 * t17_metric(rows, 0, "loss"));
        hbk_trainer_free(t);
        hbk_tuned_free(&tuned);
        json_decref(rows);
        hbk_model_round(w.m, true); /* what comes of a model that may round may, too */
        check_ok(hbk_tuned_load(&tuned, w.m, dir, NULL, &err));
        t = t17_trainer(tuned.model, &o, tuned.adapter);
        assert_true(tuned.model->head.rounds && tuned.model->layers[1].w[HBK_DOWN].rounds);
        assert_true(hbk_trainer_model(t)->head.rounds && hbk_trainer_model(t)->layers[0].w[HBK_Q].rounds);
        hbk_trainer_free(t);
        hbk_tuned_free(&tuned);
        hbk_model_round(w.m, false);

        char path[512];
        const char *use, *tag;
        check_ok(hbk_path(path, dir, "humpback.json", &err));
        j = hbk_json_read(path, &err);
        check_ok(j);
        check_ok(hbk_json_string(j, "use", &use, path, 0, &err));
        check_ok(hbk_json_string(j, "inference_tag", &tag, path, 0, &err));
        assert_string_equal(use, "backward");
        assert_string_equal(tag, "the inference tag");
        assert_true(json_is_null(json_object_get(j, "tag_web")));
        json_decref(j);
    }
    t17_end(&w);
}

/* Mean loss of a target of the set, of the base with an adapter or of a model of its own. */
static double t17_mean_loss(const hbk_tuned *tuned, const hbk_dataset *d)
{
    hbk_train_options o = t17_options(tuned->own_model != NULL);
    o.dropout = 0;
    hbk_trainer *t = t17_trainer(tuned->model, &o, tuned->adapter);
    double scale = 1 / (double)d->n_targets, loss = t17_add(t, d, 0, d->n, scale) * scale;
    hbk_trainer_free(t);
    return loss;
}

/* Promise: with a validation set the result is the weights of the lowest validation loss, not the last ones;
   patience ends the run; humpback.json names the step; who watches sees the last validation, not the best. */
static void t17_validation(void **state)
{
    (void)state;
    hbk_error err;
    t17_world w = t17_begin(1);
    hbk_dataset other = t17_data(6, 9); /* random like the first: to learn that one is to unlearn this one */
    hbk_train_data in = {&w.data, NULL, &other};
    for (int full = 0; full < 2; full++) {
        char dir[512], again[512], path[512];
        hbk_train_options o = t17_options(full);
        o.steps = 30;
        o.lr = 0.05;
        o.schedule = HBK_CONSTANT;
        o.validate_every = 2;
        o.patience = 3;
        t17_dir(dir, "validation");
        t17_watch seen;
        hbk_progress look = t17_progress(&seen, dir, -1);
        check_ok(hbk_finetune(w.m, &in, &o, NULL, &w.recipe, dir, &look, NULL, &err));
        o.patience = 4;
        check_error(hbk_finetune(w.m, &in, &o, NULL, &w.recipe, dir, NULL, NULL, &err), HBK_ERROR_OPTION,
                    "begun with patience 3");
        o.patience = 3;
        in.validation = &w.replay;
        check_error(hbk_finetune(w.m, &in, &o, NULL, &w.recipe, dir, NULL, NULL, &err), HBK_ERROR_OPTION,
                    "begun with data ");
        in.validation = &other;
        for (int at = 7; at < 11; at++) { /* the best so far survives a stop, before and after it was found */
            t17_watch watch;
            t17_dir(again, "stopped");
            hbk_progress stop = t17_progress(&watch, again, at);
            check_error(hbk_finetune(w.m, &in, &o, NULL, &w.recipe, again, &stop, NULL, &err),
                        HBK_ERROR_CANCELLED, "run it again");
            check_ok(hbk_finetune(w.m, &in, &o, NULL, &w.recipe, again, NULL, NULL, &err));
            t17_same_run(again, dir, full);
        }
        json_t *rows = t17_metrics(dir);
        size_t n = json_array_size(rows), best = 0;
        assert_true(n < 30 && n % 2 == 0);
        for (size_t i = 0; i < n; i++) {
            assert_true((json_object_get(json_array_get(rows, i), "val_loss") != NULL) == (i % 2 == 1));
            if (i % 2 == 0) continue;
            if (!best || t17_metric(rows, i, "val_loss") < t17_metric(rows, best, "val_loss")) best = i;
        }
        assert_int_equal(n, best + 1 + 2 * 3); /* three validations that were no better */
        check_near(seen.val, t17_metric(rows, n - 1, "val_loss"), 1e-3);
        check_ok(hbk_path(path, dir, "humpback.json", &err));
        json_t *j = hbk_json_read(path, &err);
        check_ok(j);
        assert_int_equal(json_integer_value(json_object_get(j, "best_step")), best + 1);
        hbk_tuned tuned;
        check_ok(hbk_tuned_load(&tuned, w.m, dir, NULL, &err));
        check_near(t17_mean_loss(&tuned, &other), t17_metric(rows, best, "val_loss"), 1e-5);
        hbk_tuned_free(&tuned);
        json_decref(j);
        json_decref(rows);
    }
    hbk_dataset_free(&other);
    t17_end(&w);
}

/* Promise: how a step is cut into passes (max_tokens), and into batches that are accumulated, changes losses,
   gradients and what was learned by rounding alone. */
static void t17_packing(void **state)
{
    (void)state;
    hbk_error err;
    t17_world w = t17_begin(1);
    double worst = 0;
    for (int full = 0; full < 2; full++) {
        json_t *rows[3];
        for (int k = 0; k < 3; k++) { /* one pass; one example a pass; three batches of two, three passes */
            char dir[512];
            hbk_train_options o = t17_options(full);
            o.dropout = 0;
            o.batch = k == 2 ? 2 : 6;
            o.accumulate = k == 2 ? 3 : 1;
            o.max_tokens = k == 0 ? 2048 : k == 1 ? 1 : 30;
            t17_dir(dir, "packing");
            check_ok(t17_tune(&w, &o, dir, NULL, &err));
            rows[k] = t17_metrics(dir);
        }
        for (size_t i = 0; i < T17_STEPS; i++)
            for (int k = 1; k < 3; k++) {
                assert_true(t17_metric(rows[k], i, "tokens") == t17_metric(rows[0], i, "tokens"));
                double loss = t17_metric(rows[0], i, "loss"), norm = t17_metric(rows[0], i, "grad_norm");
                worst = fmax(worst, fabs(t17_metric(rows[k], i, "loss") / loss - 1));
                worst = fmax(worst, fabs(t17_metric(rows[k], i, "grad_norm") / norm - 1));
            }
        for (int k = 0; k < 3; k++) json_decref(rows[k]);
    }
    print_message("    largest relative difference over %d steps %.1e\n", T17_STEPS, worst);
    assert_true(worst < T17_BAR);
    t17_end(&w);
}

/* Promise: cancelled at any step, whatever the interval of checkpoints, and called again, a run ends with the
   bytes of one that nobody stopped; only a whole folder has humpback.json. */
static void t17_cancel_and_continue(void **state)
{
    (void)state;
    static const hbk_int every[] = {1, 3, 0}, stops[][2] = {{1, 4}, {2, 3}, {3, 6}, {5, 0}};
    hbk_error err;
    t17_world w = t17_begin(1);
    for (int full = 0; full < 2; full++) {
        char plain[512], dir[512];
        hbk_train_options o = t17_options(full);
        t17_dir(plain, "plain");
        check_ok(t17_tune(&w, &o, plain, NULL, &err));
        for (int k = 0; k < 3; k++)
            for (int s = 0; s < 4; s++) {
                t17_watch watch;
                if (full && (k + s) % 2) continue; /* half of the combinations will do */
                o.save_every = every[k];
                t17_dir(dir, "cancel");
                for (int i = 0; i < 2 && stops[s][i]; i++) {
                    hbk_progress p = t17_progress(&watch, dir, stops[s][i]);
                    check_error(t17_tune(&w, &o, dir, &p, &err), HBK_ERROR_CANCELLED, "run it again");
                    assert_false(watch.was_whole || t17_has(dir, "humpback.json"));
                    assert_true(t17_has(dir, "checkpoint/state.safetensors"));
                }
                hbk_progress p = t17_progress(&watch, dir, -1);
                check_ok(t17_tune(&w, &o, dir, &p, &err));
                assert_int_equal(watch.calls, T17_STEPS - (stops[s][1] ? stops[s][1] : stops[s][0]));
                assert_false(watch.was_whole);
                t17_same_run(dir, plain, full);
            }
    }
    t17_end(&w);
}

/* Promise: a folder as a kill leaves it, with metrics beyond the last checkpoint, a torn row or without any,
   goes on to the same bytes; one that lost rows which the checkpoint counts is refused. */
static void t17_killed(void **state)
{
    (void)state;
    hbk_error err;
    t17_world w = t17_begin(0);
    for (int full = 0; full < 2; full++)
        for (hbk_int at = full ? 3 : 1; at <= T17_STEPS; at += full ? 3 : at == 1 ? 3 : 1) {
            char plain[512], dir[512], path[512];
            t17_watch watch;
            hbk_train_options o = t17_options(full);
            o.save_every = 4;
            t17_dir(plain, "whole");
            t17_dir(dir, "killed");
            hbk_progress p = t17_progress(&watch, plain, -1);
            watch.copy = dir;
            watch.copy_at = at;
            check_ok(t17_tune(&w, &o, plain, &p, &err));
            assert_int_equal(t17_has(dir, "checkpoint/state.safetensors"), at > 4);
            hbk_text t = t17_read(dir, "metrics.jsonl");
            check_ok(hbk_path(path, dir, "metrics.jsonl", &err));
            if (at == T17_STEPS) { /* the rows that the checkpoint promises are gone */
                check_ok(hbk_file_write(path, t.data, t.len / 2, &err));
                check_error(t17_tune(&w, &o, dir, NULL, &err), HBK_ERROR_DATA, "expected at least 4");
            }
            hbk_text_add(&t, "{\"step\":99,\"loss\":1.0}\n{\"step\":100,\"lo"); /* not yet promised */
            check_ok(hbk_file_write(path, t.data, t.len, &err));
            hbk_text_free(&t);
            p = t17_progress(&watch, dir, -1);
            check_ok(t17_tune(&w, &o, dir, &p, &err));
            assert_int_equal(watch.calls, at > 4 ? T17_STEPS - 4 : T17_STEPS);
            t17_same_run(dir, plain, full);
        }
    t17_end(&w);
}

/* Changes the option of this name. */
static void t17_change(hbk_train_options *o, const char *name)
{
#define T17_IS(field, value)                                                                      \
    if (!strcmp(name, #field)) o->field = value
    T17_IS(full, true);
#undef T17_IS
#define T17_IS(field, value)                                                                                 \
    if (!strcmp(name, #field)) o->lora.field = value
    T17_IS(rank, 3);
    T17_IS(alpha, 5);
    T17_IS(targets, 1);
    T17_IS(rslora, true);
    T17_IS(layer_begin, 1);
    T17_IS(layer_end, 1);
    T17_IS(target_rank[0], 1);
    T17_IS(target_alpha[0], 1);
#undef T17_IS
#define T17_IS(field, value)                                                                                 \
    if (!strcmp(name, #field)) o->field = value
    T17_IS(dropout, 0.2);
    T17_IS(lr, 0.02);
    T17_IS(lr_end, 0.001);
    T17_IS(schedule, HBK_COSINE);
    T17_IS(warmup, 2);
    T17_IS(beta1, 0.8);
    T17_IS(beta2, 0.9);
    T17_IS(eps, 1e-6);
    T17_IS(weight_decay, 0.01);
    T17_IS(clip, 2);
    T17_IS(batch, 5);
    T17_IS(accumulate, 2);
    T17_IS(steps, 7);
    T17_IS(epochs, 1);
    T17_IS(max_tokens, 25);
    T17_IS(max_length, 20);
    T17_IS(replay, 1);
    T17_IS(seed, 2);
    T17_IS(shuffle, false);
    T17_IS(validate_every, 3);
    T17_IS(neftune, 1);
    T17_IS(lora_plus, 4);
#undef T17_IS
}

/* Promise: a folder with a checkpoint or a result refuses every other option, other data, another base and
   another precision by name, and stays as it was; how often to save is free. What is not finished is not
   taken for a result. */
static void t17_other_options(void **state)
{
    (void)state;
    static const char *const names[] = {
        "full",  "rank",  "alpha", "targets",      "dropout", "lr",    "lr_end",     "schedule",
        "warmup", "beta1", "beta2", "eps",          "weight_decay", "clip", "batch",  "accumulate",
        "steps", "epochs", "max_tokens", "max_length", "replay",  "seed",  "shuffle",
        "validate_every", "neftune", "lora_plus",  "rslora", "layer_begin",  "layer_end", "target_rank[0]",
        "target_alpha[0]"};
    hbk_error err;
    hbk_train_data in;
    t17_world w = t17_begin(1);
    char dir[512], message[64];
    t17_watch watch;
    hbk_train_options o = t17_options(false);
    hbk_dataset other = t17_data(10, 9), fewer = t17_data(9, 1);
    hbk_adapter *init = t17_adapter(w.m, 2);
    t17_dir(dir, "options");
    for (int finished = 0; finished < 2; finished++) {
        hbk_progress p = t17_progress(&watch, dir, finished ? -1 : 2);
        assert_int_equal(t17_tune(&w, &o, dir, &p, &err), finished);
        hbk_text before = t17_read(dir, "metrics.jsonl");
        hbk_tuned tuned;
        memset(&tuned, 0, sizeof tuned);
        if (finished) check_ok(hbk_tuned_load(&tuned, w.m, dir, NULL, &err));
        else check_error(hbk_tuned_load(&tuned, w.m, dir, NULL, &err), HBK_ERROR_FILE, "is not finished");
        hbk_tuned_free(&tuned);
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            hbk_train_options changed = o;
            t17_change(&changed, names[i]);
            snprintf(message, sizeof message, "begun with %.*s ", (int)strcspn(names[i], "["), names[i]);
            check_error(t17_tune(&w, &changed, dir, NULL, &err), HBK_ERROR_OPTION, message);
        }
        check_error(hbk_finetune(w.m, t17_only(&other, &in), &o, NULL, &w.recipe, dir, NULL, NULL, &err),
                    HBK_ERROR_OPTION, "begun with data ");
        check_error(hbk_finetune(w.m, t17_only(&fewer, &in), &o, NULL, &w.recipe, dir, NULL, NULL, &err),
                    HBK_ERROR_OPTION, "begun with examples 10, not 9");
        check_error(hbk_finetune(w.m, t17_only(&w.data, &in), &o, init, &w.recipe, dir, NULL, NULL, &err),
                    HBK_ERROR_OPTION, "begun with data ");
        w.data.start[3]++; /* the same ids, cut elsewhere */
        check_error(t17_tune(&w, &o, dir, NULL, &err), HBK_ERROR_OPTION, "begun with data ");
        w.data.start[3]--;
        w.m->final_norm[0] = 0.5f;
        check_error(t17_tune(&w, &o, dir, NULL, &err), HBK_ERROR_OPTION, "begun with model ");
        w.m->final_norm[0] = 1;
        hbk_model_round(w.m, true);
        if (hbk__has_bf16())
            check_error(t17_tune(&w, &o, dir, NULL, &err), HBK_ERROR_OPTION,
                        "begun with precision \"f32\", not \"bf16\"");
        hbk_model_round(w.m, false);
#ifdef _OPENMP
        omp_set_num_threads(2);
        check_error(t17_tune(&w, &o, dir, NULL, &err), HBK_ERROR_OPTION,
                    "begun with threads 1, not 2, and sums differ by them: set OMP_NUM_THREADS=1");
        omp_set_num_threads(1);
#endif
        hbk_text after = t17_read(dir, "metrics.jsonl");
        assert_string_equal(hbk_text_string(&before), hbk_text_string(&after));
        hbk_text_free(&before);
        hbk_text_free(&after);
        o.save_every++;
    }
    hbk_adapter_free(init);
    hbk_dataset_free(&other);
    hbk_dataset_free(&fewer);
    t17_end(&w);
}

/* Promise: a finished folder returns at once, without a step or a changed byte; options that could not even
   begin leave a folder that others can begin in. */
static void t17_finished(void **state)
{
    (void)state;
    hbk_error err;
    t17_world w = t17_begin(1);
    char dir[512], path[512];
    t17_watch watch;
    hbk_train_options o = t17_options(false);
    t17_dir(dir, "finished");
    o.lora.rank = 100;
    check_error(t17_tune(&w, &o, dir, NULL, &err), HBK_ERROR_RANGE, "rank 100");
    o.lora.rank = 2;
    check_ok(t17_tune(&w, &o, dir, NULL, &err));
    check_ok(hbk_path(path, dir, "adapter_model.safetensors", &err));
    check_ok(hbk_file_write(path, "mark", 4, &err));
    hbk_progress p = t17_progress(&watch, dir, -1);
    check_ok(t17_tune(&w, &o, dir, &p, &err));
    assert_int_equal(watch.calls, 0);
    hbk_text t = t17_read(dir, "adapter_model.safetensors");
    assert_string_equal(hbk_text_string(&t), "mark");
    hbk_text_free(&t);
    t17_end(&w);
}

/* Promise: what somebody else left in a folder, a model above all, is named and never written over. */
static void t17_foreign_folder(void **state)
{
    (void)state;
    static const char *const names[] = {
        "model.safetensors",         "config.json",   "model.safetensors.index.json", "adapter_config.json",
        "adapter_model.safetensors", "metrics.jsonl", "humpback.json"};
    hbk_error err;
    t17_world w = t17_begin(1);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        for (int full = 0; full < 2; full++) {
            char dir[512], path[512];
            hbk_train_options o = t17_options(full);
            t17_dir(dir, "foreign");
            check_ok(hbk_dir_make(dir, &err));
            check_ok(hbk_path(path, dir, names[i], &err));
            check_ok(hbk_file_write(path, "mine", 4, &err));
            check_error(t17_tune(&w, &o, dir, NULL, &err), HBK_ERROR_FILE, "use another folder");
            assert_non_null(strstr(err.message, names[i]));
            hbk_text t = t17_read(dir, names[i]);
            assert_string_equal(hbk_text_string(&t), "mine");
            hbk_text_free(&t);
            assert_false(t17_has(dir, "train.json"));
            unlink(path); /* without it the same folder, and whatever else is in it, is good */
            check_ok(hbk_path(path, dir, "notes.txt", &err));
            check_ok(hbk_file_write(path, "mine", 4, &err));
            if (i == 0) check_ok(t17_tune(&w, &o, dir, NULL, &err));
        }
    t17_end(&w);
}

/* Promise: options that make no run, an empty data set and examples beyond the model's context are errors. */
static void t17_refusals(void **state)
{
    (void)state;
    hbk_error err;
    hbk_train_data in;
    t17_world w = t17_begin(1);
    char dir[512];
    hbk_dataset none;
    memset(&none, 0, sizeof none);
    none.n_too_long = 3;
    t17_dir(dir, "refused");
    hbk_train_options o = t17_options(false);
    check_error(hbk_finetune(w.m, t17_only(&none, &in), &o, NULL, &w.recipe, dir, NULL, NULL, &err),
                HBK_ERROR_DATA, "3 were too long");
    in.examples = &w.data;
    in.validation = &none;
    check_error(hbk_finetune(w.m, &in, &o, NULL, &w.recipe, dir, NULL, NULL, &err), HBK_ERROR_DATA,
                "validation set is empty");
    o.patience = 2;
    check_error(t17_tune(&w, &o, dir, NULL, &err), HBK_ERROR_OPTION, "patience 2 needs a validation set");
    o.patience = 0;
    o.batch = 0;
    check_error(t17_tune(&w, &o, dir, NULL, &err), HBK_ERROR_OPTION, "batch 0");
    o.batch = o.accumulate = (hbk_int)1 << 40;
    check_error(t17_tune(&w, &o, dir, NULL, &err), HBK_ERROR_RANGE, "is too much");
    o.accumulate = 1;
    o.batch = 4;
    o.steps = 0;
    check_error(t17_tune(&w, &o, dir, NULL, &err), HBK_ERROR_OPTION, "steps 0");
    o.steps = -2;
    check_error(t17_tune(&w, &o, dir, NULL, &err), HBK_ERROR_OPTION, "steps -2");
    o.steps = 6;
    o.batch = -2;
    check_error(t17_tune(&w, &o, dir, NULL, &err), HBK_ERROR_OPTION, "batch -2");
    o.batch = 4;
    o.max_tokens = 0;
    check_error(t17_tune(&w, &o, dir, NULL, &err), HBK_ERROR_OPTION, "max_tokens 0");
    o.max_tokens = 24;
    o.save_every = -1;
    check_error(t17_tune(&w, &o, dir, NULL, &err), HBK_ERROR_OPTION, "save_every -1");
    o.save_every = 3;
    o.lr = (double)NAN;
    check_error(t17_tune(&w, &o, dir, NULL, &err), HBK_ERROR_OPTION, "lr is nan");
    o.lr = 0;
    check_error(t17_tune(&w, &o, dir, NULL, &err), HBK_ERROR_OPTION, "lr is 0");
    o.lr = 0.1;
    o.lr = 0.001; /* below lr_end: the rate would rise where it is meant to fall */
    check_error(t17_tune(&w, &o, dir, NULL, &err), HBK_ERROR_OPTION, "lr_end 0.002 is above lr 0.001");
    o.lr = 0.1;
    o.warmup = 7;
    check_error(t17_tune(&w, &o, dir, NULL, &err), HBK_ERROR_OPTION, "warmup 7 is more than the 6 steps");
    o.warmup = 0;
    o.lora.rank = 17;
    check_error(t17_tune(&w, &o, dir, NULL, &err), HBK_ERROR_RANGE, "rank 17 does not fit q_proj (16, 16)");
    o.lora.rank = 2;
    o.lora.target_alpha[HBK_LM_HEAD] = 3;
    check_error(t17_tune(&w, &o, dir, NULL, &err), HBK_ERROR_OPTION, "lm_head, which is not adapted");
    o.lora.target_alpha[HBK_LM_HEAD] = 0;
    o.lora.target_alpha[HBK_V] = -3; /* and not the common alpha in its place */
    check_error(t17_tune(&w, &o, dir, NULL, &err), HBK_ERROR_RANGE, "alpha -3 of v_proj");
    o.lora.target_alpha[HBK_V] = 0;
    o.lora.alpha = 0;
    check_error(t17_tune(&w, &o, dir, NULL, &err), HBK_ERROR_RANGE, "alpha 0 of q_proj");
    o.lora.alpha = 4;
    w.m->config.context_length = 8;
    check_error(t17_tune(&w, &o, dir, NULL, &err), HBK_ERROR_RANGE, "context of 8");
    assert_false(hbk_dir_exists(dir)); /* refused before there is a folder to clear away */
    t17_end(&w);
}

/* Promise: an adapter of another base, of more or fewer layers or of other shapes, is refused by the names of
   what differs, before anything is read from it or written. */
static void t17_other_base(void **state)
{
    (void)state;
    hbk_error err;
    hbk_train_data in;
    t17_world w = t17_begin(1);
    char dir[512];
    t17_dir(dir, "other_base");
    hbk_train_options o = t17_options(false);
    static const char *const expected[] = {"for 1 layers, the model has 2", "for 3 layers, the model has 2",
                                           "for up_proj of (20, 16), the model's is (24, 16)"};
    for (int k = 0; k < 3; k++) {
        hbk_model other = *w.m;
        other.config.n_layers = k == 0 ? 1 : k == 1 ? 3 : 2;
        other.config.ffn_dim = k == 2 ? 20 : 24;
        hbk_adapter *init = t17_adapter(&other, 2);
        check_error(hbk_finetune(w.m, t17_only(&w.data, &in), &o, init, &w.recipe, dir, NULL, NULL, &err),
                    HBK_ERROR_SHAPE, expected[k]);
        assert_null(hbk_trainer_new(w.m, &o, init, 64, 16, NULL, &err));
        assert_int_equal(err.code, HBK_ERROR_SHAPE);
        hbk_adapter_free(init);
    }
    assert_false(hbk_dir_exists(dir));
    t17_end(&w);
}

/* Promise: steps and batch resolve as the options say: from epochs, or the paper's table by size. */
static void t17_resolved(void **state)
{
    (void)state;
    hbk_error err;
    t17_world w = t17_begin(1);
    hbk_dataset many = t17_data(3000, 1);
    hbk_train_data in;
    hbk__plan p;
    hbk_train_options rounded = hbk_train_defaults(false);
    rounded.batch = 1;
    rounded.epochs = 1.1; /* of 10 examples, in double a little more than 11 */
    assert_int_equal(hbk__train_length(&rounded, 10), 11);
    rounded.epochs = 1e29; /* no such count fits a number of steps */
    assert_int_equal(hbk__train_length(&rounded, 10), 1000000000000000);
    for (int k = 0; k < 4; k++) {
        hbk_train_options o = hbk_train_defaults(false);
        o.epochs = k % 2 ? 2.5 : 0;
        o.accumulate = k == 3 ? 2 : 1;
        check_ok(hbk__plan_init(&p, w.m, t17_only(k < 2 ? &w.data : &many, &in), &o, NULL, &err));
        assert_int_equal(p.o.batch, k < 2 ? 8 : 32);
        assert_int_equal(p.o.steps, k == 0   ? 30
                                    : k == 1 ? 4                     /* 25 examples in batches of 8 */
                                    : k == 2 ? hbk_train_steps(3000)
                                             : 118);                 /* 7,500 in 64s */
        hbk__plan_free(&p);
    }
    hbk_dataset_free(&many);
    t17_end(&w);
}

/* Promise: training begins at an adapter that is given, in its rank and targets, and leaves it as it was. */
static void t17_init_adapter(void **state)
{
    (void)state;
    hbk_error err;
    hbk_train_data in;
    t17_world w = t17_begin(1);
    char dir[512];
    hbk_adapter *init = t17_adapter(w.m, 3);
    hbk_train_options o = t17_options(false); /* rank 2, all targets: the adapter's own count */
    o.dropout = 0;
    o.batch = 10;
    uint64_t before = hbk_hash(0, init->values, (size_t)init->n_values * sizeof(hbk_real));
    hbk_trainer *t = t17_trainer(w.m, &o, init);
    assert_int_equal(t->n, init->n_values);
    assert_memory_equal(t->values, init->values, (size_t)t->n * sizeof *t->values);
    double scale = 1 / (double)t17_targets(&w.data, 0, 10), loss = t17_add(t, &w.data, 0, 10, scale) * scale;
    t17_dir(dir, "init");
    check_ok(hbk_finetune(w.m, t17_only(&w.data, &in), &o, init, &w.recipe, dir, NULL, NULL, &err));
    json_t *rows = t17_metrics(dir);
    check_near(t17_metric(rows, 0, "loss"), loss, T17_BAR);
    hbk_adapter *got = hbk_adapter_load(dir, w.m, NULL, &err);
    check_ok(got);
    assert_true(got->rank == 3 && got->targets == init->targets && got->alpha == 6);
    double moved = t17_difference(got->values, init->values, init->n_values);
    assert_true(moved > 0.001 && moved < 0.5);
    assert_true(before == hbk_hash(0, init->values, (size_t)init->n_values * sizeof(hbk_real)));
    hbk_adapter_free(got);
    hbk_trainer_free(t);
    hbk_adapter_free(init);
    json_decref(rows);
    t17_end(&w);
}

static double t17_now(void *ctx)
{
    return (*(double *)ctx) += 0.25;
}

/* Promise: timings are written when the caller has a clock, and only then. */
static void t17_timings(void **state)
{
    (void)state;
    hbk_error err;
    t17_world w = t17_begin(1);
    char dir[512];
    double clock = 100;
    hbk_progress p = {NULL, t17_now, &clock};
    hbk_train_options o = t17_options(false);
    for (int timed = 0; timed < 2; timed++) {
        t17_dir(dir, "timings");
        check_ok(t17_tune(&w, &o, dir, timed ? &p : NULL, &err));
        assert_int_equal(t17_has(dir, "timings.jsonl"), timed);
    }
    hbk_text t = t17_read(dir, "timings.jsonl");
    assert_non_null(strstr(hbk_text_string(&t), "{\"step\":6,\"seconds\":0.25,"));
    hbk_text_free(&t);
    t17_end(&w);
}

/* ---- memory ------------------------------------------------------------------------------ */

typedef struct t17_fault {
    t17_world *w;
    char plain[512];
    int calls;
} t17_fault;

static bool t17_faulty_run(void *ctx, hbk_allocator *a, hbk_error *err)
{
    hbk_train_data in;
    static const char *const torn[] = {"train.json.tmp",           "checkpoint/state.safetensors.tmp",
                                       "adapter_config.json.tmp",  "adapter_model.safetensors.tmp",
                                       "humpback.json",            "humpback.json.tmp"};
    t17_fault *f = (t17_fault *)ctx;
    hbk_error again;
    char dir[512];
    hbk_train_options o = t17_options(false);
    o.steps = 2;
    o.save_every = 1;
    t17_dir(dir, "fault");
    bool ok = hbk_finetune(f->w->m, t17_only(&f->w->data, &in), &o, NULL, &f->w->recipe, dir, NULL, a, err);
    if (ok) return ok;
    for (size_t i = 0; i < sizeof torn / sizeof *torn; i++)
        if (t17_has(dir, torn[i])) fail_msg("a failed run left %s", torn[i]);
    if (f->calls++ % 8) return ok;
    if (!t17_tune(f->w, &o, dir, NULL, &again)) fail_msg("%s", again.message); /* now there is memory */
    if (f->plain[0]) t17_same_run(dir, f->plain, false);
    else memcpy(f->plain, dir, sizeof dir);
    return ok;
}

static bool t17_faulty_trainer(void *ctx, hbk_allocator *a, hbk_error *err)
{
    t17_world *w = (t17_world *)ctx;
    hbk_train_options o = t17_options(true);
    hbk_trainer *t = hbk_trainer_new(w->m, &o, NULL, 24, 14, a, err);
    char path[512];
    test_tmp(path, "t17_fault.safetensors");
    if (t && !hbk_file_exists(path) && !hbk_trainer_save(t, path, err)) fail_msg("%s", err->message);
    bool ok = t && hbk_trainer_resume(t, path, err);
    hbk_trainer_free(t);
    return ok;
}

/* Promise: whatever allocation of a run fails, it says so, leaks nothing, leaves no half-written file, and
   the run called again ends with the bytes of one that had memory; so does a trainer of a whole model. */
static void t17_no_memory(void **state)
{
    (void)state;
    t17_world w = t17_begin(1);
    t17_fault f;
    memset(&f, 0, sizeof f);
    f.w = &w;
    assert_true(fault_sweep(t17_faulty_run, &f) > 25);
    assert_true(fault_sweep(t17_faulty_trainer, &w) > 10);
    t17_end(&w);
}

/* ---- reference outputs ------------------------------------------------------------------- */

static const hbk_tensor *t17_tensor(const hbk_safetensors *s, const char *name)
{
    const hbk_tensor *t = hbk_safetensors_find(s, name);
    if (!t) fail_msg("the reference file lacks %s", name);
    return t;
}

static double t17_f64(const hbk_safetensors *s, const char *name, hbk_int i)
{
    double x;
    memcpy(&x, (const char *)t17_tensor(s, name)->data + 8 * i, 8);
    return x;
}

/* Copies an adapter from the tensors that PEFT would name so, or returns the largest difference to them,
   relative to each one's largest number. */
static double t17_peft(const hbk_adapter *a, const hbk_safetensors *s, const char *lead, bool copy)
{
    double worst = 0;
    for (hbk_int i = 0; i < 2 * a->n_layers * HBK_N_SLOTS; i++) {
        const hbk_lora *l = &a->loras[i / 2];
        if (!l->a) continue;
        char name[160];
        const char *slot = hbk_slot_name((hbk_slot)(i / 2 % HBK_N_SLOTS));
        hbk_real *mine = i % 2 ? l->b : l->a, *want;
        snprintf(name, sizeof name, "%s.base_model.model.model.layers.%d.self_attn.%s.lora_%c.weight", lead,
                 (int)(i / 2 / HBK_N_SLOTS), slot, i % 2 ? 'B' : 'A');
        const hbk_tensor *t = t17_tensor(s, name);
        assert_int_equal(t->n_elements, l->rank * (i % 2 ? l->out : l->in));
        want = HBK__NEW(NULL, hbk_real, t->n_elements, NULL);
        double scale = 0, difference = 0;
        for (hbk_int k = 0; k < t->n_elements; k++) {
            float f;
            memcpy(&f, (const char *)t->data + 4 * k, 4);
            want[k] = (hbk_real)f;
            if (copy) mine[k] = want[k];
            scale = fmax(scale, fabs((double)f));
            difference = fmax(difference, fabs((double)mine[k] - (double)f));
        }
        worst = fmax(worst, scale > 0 ? difference / scale : difference);
        hbk_free(NULL, want);
    }
    return worst;
}

/* Promise: 20 AdamW steps on two projections of a real checkpoint have the losses, gradient norms, first
   gradients and final weights of PEFT and PyTorch. */
static void t17_golden(void **state)
{
    (void)state;
    hbk_error err;
    char path[512], file[512];
    if (!test_data(path, "checkpoints/story_hf")) skip();
    test_data(file, "golden/lora_train/qv_r4.safetensors");
    hbk_model *m = hbk_model_load(path, NULL, &err);
    check_ok(m);
    hbk_safetensors *s = hbk_safetensors_open(file, NULL, &err);
    check_ok(s);
    hbk_adapter *init = hbk_adapter_new(&m->config, 4, 8, 1u << HBK_Q | 1u << HBK_V, 1, NULL, &err);
    check_ok(init);
    t17_peft(init, s, "init", true);
    hbk_train_options o = hbk_train_defaults(false);
    o.beta2 = 0.999;
    o.weight_decay = 0.01;
    o.clip = o.dropout = 0;
    hbk_trainer *t = t17_trainer(m, &o, init);
    int32_t ids[11], targets[10];
    memcpy(ids, t17_tensor(s, "seq")->data, sizeof ids);
    for (int i = 0; i < 10; i++) targets[i] = i < 5 ? -1 : ids[i + 1];
    hbk_int start[2] = {0, 10};
    hbk_batch b = {10, 1, ids, targets, start};
    double losses = 0, norms = 0, grads = 0;
    for (hbk_int i = 0; i < 20; i++) {
        double loss, norm;
        check_ok(hbk_trainer_accumulate(t, &b, 0.2, &loss, &err));
        if (i == 0) grads = t17_peft(t->dadapter, s, "grad0", false);
        check_ok(hbk_trainer_update(t, 0.01, &norm, &err));
        losses = fmax(losses, fabs(loss / 5 / t17_f64(s, "losses", i) - 1));
        norms = fmax(norms, fabs(norm / t17_f64(s, "grad_norms", i) - 1));
    }
    double weights = t17_peft(hbk_trainer_adapter(t), s, "final", false);
    print_message("    largest relative differences: losses %.1e, gradient norms %.1e, first gradients %.1e, "
                  "final weights %.1e\n",
                  losses, norms, grads, weights);
    bool exact = sizeof(hbk_real) == 8;
    assert_true(losses < (exact ? 1e-6 : 1e-4) && norms < (exact ? 1e-6 : 1e-4));
    assert_true(grads < (exact ? 1e-6 : 1e-4) && weights < (exact ? 1e-5 : 1e-3));
    hbk_trainer_free(t);
    hbk_adapter_free(init);
    hbk_safetensors_close(s);
    hbk_model_free(m);
}

/* ---- bases in stored types -------------------------------------------------------------- */

/* A model whose matrices are of type t in *block, and the same numbers as reals; `m` lends the norms. */
static hbk_model *t17_stored(hbk_dtype t, const hbk_model *m, hbk_model **plain, unsigned char **block)
{
    hbk_error err;
    const hbk_config *c = &m->config;
    hbk_model *stored = hbk_model_view(c, m->values, NULL, &err);
    *plain = hbk_model_random(c, 1, NULL, &err);
    *block = HBK__NEW(NULL, unsigned char, 4 * hbk_model_count(c), &err);
    unsigned char *p = *block;
    hbk_matrix *all[2 + HBK_N_SLOTS] = {&stored->embed, &stored->head};
    for (int s = 0; s < HBK_N_SLOTS; s++) all[2 + s] = &stored->layers[0].w[s];
    for (int k = 0; k < 2 + HBK_N_SLOTS; k++) {
        hbk_int n = all[k]->rows * all[k]->cols, size = (hbk_int)hbk_dtype_size(t, n);
        if (hbk_dtype_packs(t)) hbk_pack(p, t, (const hbk_real *)all[k]->data, n);
        else t08_stored(p, t, n, (uint64_t)k);
        for (hbk_int i = 0; t == HBK_Q4_K && i < size; i += 144) { /* scales of 2^-14 suit a width of 256 */
            p[i + 1] = (unsigned char)((p[i + 1] & 0x83) | 4);
            p[i + 3] = (unsigned char)((p[i + 3] & 0x83) | 4);
        }
        all[k]->dtype = t;
        all[k]->data = p;
        p += size;
    }
    hbk_model_unpack((*plain)->values, stored);
    return stored;
}

/* One step over two sequences; the gradients before it, scaled so that the largest is 1, into g. */
static hbk_trainer *t17_step(const hbk_model *m, bool full, const hbk_adapter *w, hbk_real **g, double *loss)
{
    static const int32_t ids[] = {1, 5, 9, 30, 7, 7, 12, 3, 1, 18, 4, 39, 22}, after[] = {
        5, 9, 30, 7, 7, 12, 3, -1, 18, 4, 39, 22, 2};
    static const hbk_int starts[] = {0, 8, 13};
    hbk_error err;
    hbk_batch b = {13, 2, ids, after, starts};
    hbk_train_options o = t17_options(full);
    hbk_trainer *t = hbk_trainer_new(m, &o, w, 13, 8, NULL, &err);
    check_ok(t);
    check_ok(hbk_trainer_accumulate(t, &b, 1.0 / 12, loss, &err));
    *g = HBK__NEW(NULL, hbk_real, t->n, &err);
    double largest = 0;
    for (hbk_int i = 0; i < t->n; i++) largest = fmax(largest, fabs((double)t->grads[i]));
    assert_true(largest > 0);
    for (hbk_int i = 0; i < t->n; i++) (*g)[i] = (hbk_real)((double)t->grads[i] / largest);
    check_ok(hbk_trainer_update(t, o.lr, NULL, &err));
    return t;
}

/* Promise: an adapter learns on a base of any stored type what it learns on the same numbers as reals; and
   full training of such a base begins with those numbers: the first step ends with the same bytes. */
static void t17_stored_bases(void **state)
{
    (void)state;
    static const hbk_dtype types[] = {HBK_F16, HBK_Q8_0, HBK_Q4_K};
    hbk_error err;
    hbk_config c;
    memset(&c, 0, sizeof c);
    c.n_layers = 1;
    c.n_heads = 4;
    c.n_kv_heads = c.n_heads;
    c.head_dim = 64;
    c.dim = c.ffn_dim = 256;
    c.vocab_size = T17_V;
    c.context_length = 64;
    c.rms_norm_eps = 1e-5;
    c.rope_theta = 10000;
    hbk_model *m = hbk_model_random(&c, 3, NULL, &err), *plain;
    hbk_adapter *w = t17_adapter(m, 3);
    for (int k = 0; k < 3; k++) {
        unsigned char *block;
        hbk_model *stored = t17_stored(types[k], m, &plain, &block);
        for (int full = 0; full < 2; full++) {
            hbk_real *x, *y;
            double loss[2], worst = 0;
            hbk_trainer *s = t17_step(stored, full, full ? NULL : w, &x, &loss[0]);
            hbk_trainer *t = t17_step(plain, full, full ? NULL : w, &y, &loss[1]);
            for (hbk_int i = 0; i < s->n; i++) worst = fmax(worst, fabs((double)(x[i] - y[i])));
            print_message("    %-5s%-5s loss %.3f, of the gradient %.1e\n", hbk_dtype_name(types[k]),
                          full ? "full" : "LoRA", loss[0] / 12, worst);
            check_near(loss[0], loss[1], sizeof(hbk_real) == 8 ? 1e-12 : 1e-5);
            assert_true(worst <= (full ? 0 : sizeof(hbk_real) == 8 ? 1e-12 : 1e-4));
            if (full) assert_memory_equal(s->values, t->values, (size_t)s->n * sizeof(hbk_real));
            hbk_free(NULL, x);
            hbk_free(NULL, y);
            hbk_trainer_free(s);
            hbk_trainer_free(t);
        }
        hbk_model_free(stored);
        hbk_model_free(plain);
        hbk_free(NULL, block);
    }
    hbk_adapter_free(w);
    hbk_model_free(m);
}

/* Promise: hbk_trainer_memory says what a trainer holds, for every mode that changes it, and takes next to
   nothing itself. What it leaves out is scratch that no dropout touches, and for each token the span of a
   sequence and indices of a few bytes. */
static void t17_memory(void **state)
{
    (void)state;
    enum { N = 512, T = 128 };
    hbk_error err;
    hbk_model *small = t17_model();
    hbk_config c = small->config;
    hbk_model_free(small);
    c.n_layers = 5;
    c.dim = 96;
    c.ffn_dim = 384;
    c.vocab_size = 700;
    hbk_model *m = hbk_model_random(&c, 1, NULL, &err);
    check_ok(m);
    for (int i = 0; i < 12; i++) {
        hbk_train_options o = t17_options(i % 2 != 0);
        hbk_train_memory x;
        o.recompute = i / 2 % 2 != 0;
        o.dropout = i / 4 == 1 ? 0 : 0.1;
        if (i / 4 == 2) o.lora.targets = 1u << HBK_Q | 1u << HBK_LM_HEAD;
        hbk_allocator count;
        memset(&count, 0, sizeof count);
        hbk_trainer *t = hbk_trainer_new(m, &o, NULL, N, T, &count, &err);
        check_ok(t);
        check_ok(hbk_trainer_memory(&x, &c, &o, N, T, &err));
        assert_int_equal(x.n_values, t->n);
        hbk_int wide = i / 4 == 2 ? c.dim : c.ffn_dim, untouched = o.full ? 0 : N * c.dim;
        if (o.dropout <= 0) untouched = o.full ? N * c.dim : N * (c.dim + 2 * wide);
        hbk_int sum = x.values + x.gradients + x.moments + x.kept + x.scratch + x.logits;
        hbk_int live = (hbk_int)count.live - untouched * (hbk_int)sizeof(hbk_real);
        assert_true(sum <= live && live - sum < ((hbk_int)sizeof(hbk_span) + 48) * N);
        hbk_trainer_free(t);
    }
    hbk_model_free(m);

    hbk_train_options o = t17_options(false); /* a LLaMA of 65B: a matter of a few kilobytes */
    hbk_train_memory x;
    c.n_layers = 80;
    c.n_heads = c.n_kv_heads = 64;
    c.head_dim = 128;
    c.dim = 8192;
    c.ffn_dim = 22016;
    c.vocab_size = 32000;
    check_ok(hbk_trainer_memory(&x, &c, &o, 2048, 2048, &err));
    assert_int_equal(x.n_values, 2 * 80 * (4 * 2 * 8192 + 3 * (8192 + 22016)));
    o.lora.rank = 9000;
    check_error(hbk_trainer_memory(&x, &c, &o, 2048, 2048, &err), HBK_ERROR_RANGE, "rank");
    o.lora.rank = 2;
    check_error(hbk_trainer_memory(&x, &c, &o, 0, 1, &err), HBK_ERROR_RANGE, "room");
    c.n_layers = 1 << 21; /* weights of 2^56 numbers count; times tokens they do not */
    c.dim = c.n_heads = c.n_kv_heads = 2;
    c.ffn_dim = 1 << 16;
    check_ok(hbk_config_check(&c, &err));
    check_error(hbk_trainer_memory(&x, &c, &o, 1 << 24, 2048, &err), HBK_ERROR_RANGE,
                "activations of 16777216 tokens would not fit any memory");
}

static const struct CMUnitTest tests_17[] = {
    cmocka_unit_test(t17_memory),
    cmocka_unit_test(t17_stored_bases),
    cmocka_unit_test(t17_steps_by_size), cmocka_unit_test(t17_accumulation),
    cmocka_unit_test(t17_clip_and_decay), cmocka_unit_test(t17_lora_plus), cmocka_unit_test(t17_overfit),
    cmocka_unit_test(t17_not_finite),    cmocka_unit_test(t17_dropout),
    cmocka_unit_test(t17_checkpoint),    cmocka_unit_test(t17_order),
    cmocka_unit_test(t17_replay),        cmocka_unit_test(t17_best_fit),
    cmocka_unit_test(t17_results),
    cmocka_unit_test(t17_validation),
    cmocka_unit_test(t17_packing),       cmocka_unit_test(t17_cancel_and_continue),
    cmocka_unit_test(t17_killed),        cmocka_unit_test(t17_other_options),
    cmocka_unit_test(t17_finished),      cmocka_unit_test(t17_refusals),
    cmocka_unit_test(t17_resolved),      cmocka_unit_test(t17_init_adapter),
    cmocka_unit_test(t17_other_base),    cmocka_unit_test(t17_broken_example),
    cmocka_unit_test(t17_foreign_folder),
    cmocka_unit_test(t17_facts),         cmocka_unit_test(t17_neftune),
    cmocka_unit_test(t17_full_stop),
    cmocka_unit_test(t17_timings),       cmocka_unit_test(t17_no_memory),
    cmocka_unit_test(t17_golden),
};
