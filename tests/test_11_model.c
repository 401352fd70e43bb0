/* Chapters 10 and 11: the whole model, its gradients, adapters, and the reference outputs of PyTorch. */
#include "test.h"
#include "fault.h"

/* The difference that another order of the same sums makes. */
#define T11_BAR (sizeof(hbk_real) == 8 ? 1e-12 : 1e-5)

/* Every size differs; grouped heads; a head that is not the embedding unless `tied`. */
static hbk_config t11_config(bool tied)
{
    hbk_config c;
    memset(&c, 0, sizeof c);
    c.n_layers = 2;
    c.n_heads = 6;
    c.n_kv_heads = 2;
    c.head_dim = 4;
    c.dim = 20;
    c.ffn_dim = 28;
    c.vocab_size = 37;
    c.context_length = 64;
    c.rms_norm_eps = 1e-5;
    c.rope_theta = 10000;
    c.tied = tied;
    c.n_eos = 1;
    return c;
}

/* Every projection with a bias, one key/value head for all, heads wider together than the stream. */
static hbk_config t11_biased(void)
{
    hbk_config c = t11_config(false);
    c.biases = HBK_ALL_SLOTS;
    c.n_kv_heads = 1;
    c.head_dim = 6;
    return c;
}

/* Three sequences packed; some positions have no target. */
static const int32_t t11_tokens[] = {5, 9, 2, 2, 30, 1, 7, 36, 0, 12, 4, 18, 18, 3, 25};
static const int32_t t11_targets[] = {9, 2, -1, 30, -1, 7, 36, 0, -1, -1, 18, 18, 3, 25, 6};
static const hbk_int t11_start[] = {0, 5, 9, 15};
static hbk_batch t11_batch(void)
{
    hbk_batch b = {15, 3, t11_tokens, t11_targets, t11_start};
    return b;
}

static double t11_loss(hbk_acts *a, const hbk_model *m, const hbk_pass *p)
{
    hbk_error err;
    hbk_batch b = t11_batch();
    double loss = 0;
    check_ok(hbk_model_pass(a, m, &b, p, &loss, NULL, &err));
    return loss;
}

/* Compares `grads` (n) with central differences of the loss over `values`, all of them or every `skip`-th. */
static void t11_check(const char *name, hbk_acts *a, const hbk_model *m, const hbk_pass *p, hbk_real *values,
                      const hbk_real *grads, hbk_int n, hbk_int skip)
{
    double h = sizeof(hbk_real) == 8 ? 1e-5 : 2e-2, bar = sizeof(hbk_real) == 8 ? 1e-6 : 1e-2, worst = 0;
    double largest = 0;
    for (hbk_int i = 0; i < n; i++) largest = fmax(largest, fabs((double)grads[i]));
    assert_true(largest > 0);
    hbk_acts *b = a;
    hbk_int some = 0;
    for (hbk_int i = 0; i < n; i += skip) {
        hbk_real x = values[i];
        values[i] = (hbk_real)((double)x + h);
        double up = t11_loss(b, m, p);
        values[i] = (hbk_real)((double)x - h);
        double down = t11_loss(b, m, p);
        values[i] = x;
        double numeric = (up - down) / (2 * h) * p->scale;
        double error = fabs(numeric - (double)grads[i]) / fmax(1, largest);
        some += grads[i] != 0;
        worst = fmax(worst, error);
        if (error > bar)
            fail_msg("%s: value %lld of %lld: gradient %g, by differences %g", name, (long long)i,
                     (long long)n, (double)grads[i], numeric);
    }
    assert_true(some > n / skip / 2);
    print_message("    %-22s worst relative error %.1e\n", name, worst);
}

/* The n gradients again with the layers' inputs kept alone: the same bits. */
static void t11_recompute(const hbk_model *m, const hbk_pass *p, hbk_real *grads, const hbk_real *want,
                          hbk_int n)
{
    hbk_error err;
    memset(grads, 0, sizeof *grads * (size_t)n);
    hbk_acts *a = p->adapters ? hbk_acts_new_mixed(m, p->adapters, 3, 15, 6, HBK_KEEP_INPUTS, NULL, &err)
                              : hbk_acts_new(m, p->adapter, 15, 6, HBK_KEEP_INPUTS, NULL, &err);
    check_ok(a);
    if (p->adapters || (p->adapter && p->adapter->targets >> HBK_LM_HEAD)) a->head_rows = 4;
    t11_loss(a, m, p);
    assert_memory_equal(grads, want, sizeof *grads * (size_t)n);
    hbk_acts_free(a);
}

/* Gives an adapter other numbers, B's among them. */
static void t11_shake(hbk_adapter *w, double by, uint64_t id)
{
    hbk_rng r = hbk_rng_at(4, "b", id);
    for (hbk_int i = 0; i < w->n_values; i++) w->values[i] = (hbk_real)(by * hbk_rng_normal(&r));
}

/* Promise: in full training the gradient of every weight is the derivative of the loss, dropout's fixed mask
   and NEFTune's fixed noise included, and under a frozen adapter; recomputing layers changes no bit of it. */
static void t11_full_gradient(void **state)
{
    (void)state;
    static const char *const names[] = {"full", "full, tied", "full, dropout", "full, biases, one kv head",
                                        "full, noise", "full, under lora"};
    for (int variant = 0; variant < 6; variant++) {
        hbk_error err;
        hbk_config c = variant == 3 ? t11_biased() : t11_config(variant == 1);
        hbk_model *m = hbk_model_random(&c, 3, NULL, &err);
        unsigned all = HBK_ALL_SLOTS | 1u << HBK_LM_HEAD;
        hbk_adapter *w = variant == 5 ? hbk_adapter_new(&c, 3, 5, all, 4, NULL, &err) : NULL;
        if (w) t11_shake(w, 0.1, 0);
        hbk_real *grads = HBK__NEW(NULL, hbk_real, hbk_model_count(&c), &err);
        hbk_model *d = hbk_model_view(&c, grads, NULL, &err);
        hbk_acts *a = hbk_acts_new(m, w, 15, 6, HBK_KEEP_ALL, NULL, &err);
        hbk_pass p = {w, d, NULL, variant == 3 ? 8 : 0.25, variant == 2 ? 0.2 : 0, 11, 0, NULL, NULL};
        if (w) p.dropout = 0.3, a->head_rows = 4;
        p.neftune = variant == 4 ? 5 : 0;
        t11_loss(a, m, &p);
        hbk_real *keep = HBK__NEW(NULL, hbk_real, hbk_model_count(&c), &err);
        memcpy(keep, grads, sizeof *grads * (size_t)hbk_model_count(&c));
        t11_recompute(m, &p, grads, keep, hbk_model_count(&c));
        t11_check(names[variant], a, m, &p, m->values, keep, hbk_model_count(&c),
                  sizeof(hbk_real) == 8 ? 1 : 7);
        hbk_acts_free(a);
        hbk_adapter_free(w);
        hbk_model_free(d);
        hbk_model_free(m);
        hbk_free(NULL, grads);
        hbk_free(NULL, keep);
    }
}

/* The adapters whose gradients are checked: which projections, of which layers, with which ranks. */
typedef struct t11_lora {
    const char *name;
    unsigned targets;
    hbk_int begin, end, rank_of_v, rank_of_head;
    double dropout;
    bool tied, biased;
    double neftune;
} t11_lora;

static const t11_lora t11_loras[] = {
    {"lora", HBK_ALL_SLOTS, 0, 0, 0, 0, 0, false, false, 0},
    {"lora, q and v", 1u << HBK_Q | 1u << HBK_V, 0, 0, 0, 0, 0, false, false, 0},
    {"lora, biases", 1u << HBK_Q | 1u << HBK_V, 0, 0, 0, 0, 0, false, true, 0},
    {"lora, down", 1u << HBK_DOWN, 0, 0, 0, 0, 0, false, false, 0},
    {"lora, dropout", HBK_ALL_SLOTS, 0, 0, 0, 0, 0.3, false, false, 0},
    {"lora, ranks, head", HBK_ALL_SLOTS | 1u << HBK_LM_HEAD, 0, 0, 7, 5, 0, false, false, 0},
    {"lora, upper layer", HBK_ALL_SLOTS | 1u << HBK_LM_HEAD, 1, 2, 1, 2, 0.3, false, false, 0},
    {"lora, lower layer", 1u << HBK_K | 1u << HBK_V, 0, 1, 2, 0, 0, false, false, 0},
    {"lora, head alone", 1u << HBK_LM_HEAD, 0, 0, 0, 4, 0.2, false, false, 0},
    {"lora, tied head", 1u << HBK_O | 1u << HBK_LM_HEAD, 0, 0, 0, 2, 0, true, false, 0},
    {"lora, noise, dropout", HBK_ALL_SLOTS, 0, 0, 0, 0, 0.3, false, false, 5},
};

static hbk_adapter *t11_adapter(const hbk_config *c, const t11_lora *v, uint64_t seed)
{
    hbk_error err;
    hbk_adapter_options o = hbk_adapter_defaults();
    o.rank = 3;
    o.alpha = 5;
    o.targets = v->targets;
    o.layer_begin = v->begin;
    o.layer_end = v->end;
    o.target_rank[HBK_V] = v->rank_of_v;
    o.target_rank[HBK_LM_HEAD] = v->rank_of_head;
    o.target_alpha[HBK_LM_HEAD] = 1.5;
    hbk_adapter *a = hbk_adapter_make(c, &o, seed, NULL, &err);
    check_ok(a);
    return a;
}

/* Promise: where products may round to bf16, loss and gradients are those of exact products within a few
   times bf16's 2^-8, and to the bit where the processor cannot; forbidden again, everything is as it was. */
static void t11_rounded(void **state)
{
    (void)state;
    hbk_error err;
    hbk_config c = t11_config(false);
    hbk_model *m = hbk_model_random(&c, 3, NULL, &err);
    hbk_int n = hbk_model_count(&c);
    hbk_real *grads[3];
    double loss[3];
    for (int i = 0; i < 3; i++) {
        grads[i] = HBK__NEW(NULL, hbk_real, n, &err);
        hbk_model *d = hbk_model_view(&c, grads[i], NULL, &err);
        hbk_acts *a = hbk_acts_new(m, NULL, 15, 6, HBK_KEEP_ALL, NULL, &err);
        hbk_pass p = {NULL, d, NULL, 0.25, 0, 0, 0, NULL, NULL};
        hbk_model_round(m, i == 1);
        assert_string_equal(hbk_model_precision(m), i == 1 && hbk__has_bf16() ? "bf16" : "f32");
        loss[i] = t11_loss(a, m, &p);
        hbk_acts_free(a);
        hbk_model_free(d);
    }
    double differ = 0, length = 0;
    for (hbk_int i = 0; i < n; i++) {
        differ += pow((double)(grads[1][i] - grads[0][i]), 2);
        length += pow((double)grads[0][i], 2);
    }
    assert_true(hbk__has_bf16() == (differ > 0));
    check_near(loss[1], loss[0], 0.01 * loss[0]);
    assert_true(sqrt(differ / length) < 0.02);
    assert_memory_equal(grads[2], grads[0], sizeof *grads[0] * (size_t)n);
    print_message("    loss differs by %.1e, gradient by %.1e of its length\n", fabs(loss[1] / loss[0] - 1),
                  sqrt(differ / length));
    for (int i = 0; i < 3; i++) hbk_free(NULL, grads[i]);
    hbk_model_free(m);
}

/* Promise: in LoRA training the gradient of A and B is the derivative of the loss for any set of targets,
   the head among them, with ranks of their own, in all layers or some, with dropout's fixed mask and
   NEFTune's fixed noise; and the head in several chunks; recomputing layers changes no bit of it. */
static void t11_lora_gradient(void **state)
{
    (void)state;
    for (size_t variant = 0; variant < sizeof t11_loras / sizeof *t11_loras; variant++) {
        hbk_error err;
        const t11_lora *v = &t11_loras[variant];
        hbk_config c = v->biased ? t11_biased() : t11_config(v->tied);
        hbk_model *m = hbk_model_random(&c, 3, NULL, &err);
        hbk_adapter *w = t11_adapter(&c, v, 1), *d = t11_adapter(&c, v, 2);
        t11_shake(w, 0.3, 0);
        memset(d->values, 0, sizeof *d->values * (size_t)d->n_values);
        hbk_acts *a = hbk_acts_new(m, w, 15, 6, HBK_KEEP_ALL, NULL, &err);
        if (w->targets >> HBK_LM_HEAD) a->head_rows = 4; /* 12 targets: three chunks */
        hbk_pass p = {w, NULL, d, 0.25, v->dropout, 12, v->neftune, NULL, NULL};
        t11_loss(a, m, &p);
        hbk_real *keep = HBK__NEW(NULL, hbk_real, d->n_values, &err);
        memcpy(keep, d->values, sizeof *keep * (size_t)d->n_values);
        t11_recompute(m, &p, d->values, keep, d->n_values);
        t11_check(v->name, a, m, &p, w->values, keep, w->n_values, sizeof(hbk_real) == 8 ? 1 : 5);
        hbk_acts_free(a);
        hbk_adapter_free(w);
        hbk_adapter_free(d);
        hbk_model_free(m);
        hbk_free(NULL, keep);
    }
}

/* ---- several adapters in one batch ----------------------------------------------------- */

enum { T11_ADAPTERS = 2 };
/* A model, and two adapters of different ranks, targets and layers with their gradients. */
typedef struct t11_mix {
    hbk_model *m;
    hbk_adapter *w[T11_ADAPTERS], *d[T11_ADAPTERS];
    const hbk_adapter *adapters[3]; /* of the three sequences */
    hbk_adapter *dadapters[3];
    hbk_pass p;
} t11_mix;

static t11_mix t11_mix_new(void)
{
    hbk_error err;
    t11_mix x;
    memset(&x, 0, sizeof x);
    hbk_config c = t11_config(false);
    x.m = hbk_model_random(&c, 3, NULL, &err);
    for (int k = 0; k < T11_ADAPTERS; k++) {
        const t11_lora *v = &t11_loras[k ? 6 : 5];
        x.w[k] = t11_adapter(&c, v, 1);
        x.d[k] = t11_adapter(&c, v, 1);
        memset(x.d[k]->values, 0, sizeof(hbk_real) * (size_t)x.d[k]->n_values);
        t11_shake(x.w[k], 0.3, (uint64_t)k);
    }
    x.p.scale = 0.25;
    x.p.dropout_seed = 12;
    return x;
}

static void t11_mix_free(t11_mix *x)
{
    for (int k = 0; k < T11_ADAPTERS; k++) {
        hbk_adapter_free(x->w[k]);
        hbk_adapter_free(x->d[k]);
    }
    hbk_model_free(x->m);
}

/* Gives sequence s adapter of[s], or none where that is negative. */
static void t11_mix_assign(t11_mix *x, const int of[3])
{
    for (int s = 0; s < 3; s++) {
        x->adapters[s] = of[s] < 0 ? NULL : x->w[of[s]];
        x->dadapters[s] = of[s] < 0 ? NULL : x->d[of[s]];
    }
    x->p.adapters = x->adapters;
    x->p.dadapters = x->dadapters;
}

static void t11_mix_clear(t11_mix *x)
{
    for (int k = 0; k < T11_ADAPTERS; k++)
        memset(x->d[k]->values, 0, sizeof(hbk_real) * (size_t)x->d[k]->n_values);
}

static hbk_real *t11_copy(const hbk_adapter *d)
{
    hbk_error err;
    hbk_real *copy = HBK__NEW(NULL, hbk_real, d->n_values, &err);
    memcpy(copy, d->values, sizeof *copy * (size_t)d->n_values);
    return copy;
}

/* The largest difference of the gradient to `want`, relative to its largest. */
static double t11_apart(const hbk_adapter *d, const hbk_real *want)
{
    double largest = 1, apart = 0;
    for (hbk_int i = 0; i < d->n_values; i++) largest = fmax(largest, fabs((double)want[i]));
    for (hbk_int i = 0; i < d->n_values; i++)
        apart = fmax(apart, fabs((double)(d->values[i] - want[i])) / largest);
    return apart;
}

/* Each sequence in a batch of its own, with its own adapter as the pass's only one. */
static double t11_mix_separate(t11_mix *x, double *nll)
{
    hbk_error err;
    double sum = 0, part;
    for (int s = 0; s < 3; s++) {
        hbk_int n = t11_start[s + 1] - t11_start[s], start[2] = {0, n};
        hbk_batch one = {n, 1, t11_tokens + t11_start[s], t11_targets + t11_start[s], start};
        hbk_pass p = {x->adapters[s], NULL, x->dadapters[s], 0.25, 0, 0, 0, NULL, NULL};
        hbk_acts *a = hbk_acts_new(x->m, p.adapter, 6, 6, HBK_KEEP_ALL, NULL, &err);
        check_ok(hbk_model_pass(a, x->m, &one, &p, &part, nll + t11_start[s], &err));
        hbk_acts_free(a);
        sum += part;
    }
    return sum;
}

/* Promise: a batch whose sequences have different adapters, or none, or all one, has the losses of its
   sequences taken alone, each with its own, and leaves in each adapter's gradient the sum of theirs. */
static void t11_mixed_separate(void **state)
{
    (void)state;
    static const int of[][3] = {{0, -1, 1}, {0, 1, 0}, {1, 1, 0}, {-1, 0, -1}, {-1, -1, -1}, {0, 0, 0}};
    hbk_error err;
    t11_mix x = t11_mix_new();
    const hbk_adapter *named[3] = {x.w[0], x.w[1], NULL};
    hbk_acts *a = hbk_acts_new_mixed(x.m, named, 3, 15, 6, HBK_KEEP_ALL, NULL, &err);
    check_ok(a);
    a->head_rows = 4; /* chunks that hold rows of two adapters, and sequences in two chunks */
    double worst = 0;
    for (size_t k = 0; k < sizeof of / sizeof *of; k++) {
        double alone[15], nll[15], loss;
        t11_mix_assign(&x, of[k]);
        t11_mix_clear(&x);
        double sum = t11_mix_separate(&x, alone);
        hbk_real *want[T11_ADAPTERS] = {t11_copy(x.d[0]), t11_copy(x.d[1])};
        t11_mix_clear(&x);
        hbk_batch b = t11_batch();
        check_ok(hbk_model_pass(a, x.m, &b, &x.p, &loss, nll, &err));
        check_near(loss, sum, T11_BAR);
        for (int i = 0; i < 15; i++) check_near(nll[i], alone[i], T11_BAR);
        for (int i = 0; i < T11_ADAPTERS; i++) {
            double apart = t11_apart(x.d[i], want[i]);
            if (!(apart <= T11_BAR)) fail_msg("mix %d: gradient %d differs by %g", (int)k, i, apart);
            worst = fmax(worst, apart);
            hbk_free(NULL, want[i]);
        }
    }
    print_message("    packed against separate: gradients differ by %.1e\n", worst);
    hbk_acts_free(a);
    t11_mix_free(&x);
}

/* Promise: the gradient of each of several adapters in one batch is the derivative of the loss, with
   dropout's fixed mask; recomputing layers changes no bit of it. */
static void t11_mixed_gradient(void **state)
{
    (void)state;
    static const int of[2][3] = {{0, -1, 1}, {1, 0, 1}};
    for (int k = 0; k < 4; k++) {
        hbk_error err;
        t11_mix x = t11_mix_new();
        t11_mix_assign(&x, of[k % 2]);
        x.p.dropout = k / 2 ? 0.3 : 0;
        hbk_acts *a = hbk_acts_new_mixed(x.m, x.adapters, 3, 15, 6, HBK_KEEP_ALL, NULL, &err);
        check_ok(a);
        a->head_rows = 4;
        t11_loss(a, x.m, &x.p);
        hbk_real *keep[T11_ADAPTERS] = {t11_copy(x.d[0]), t11_copy(x.d[1])};
        for (int i = 0; i < T11_ADAPTERS; i++) { /* the other one's gradient must come out, too */
            t11_mix_clear(&x);
            t11_recompute(x.m, &x.p, x.d[i]->values, keep[i], x.d[i]->n_values);
            assert_memory_equal(x.d[!i]->values, keep[!i], sizeof(hbk_real) * (size_t)x.d[!i]->n_values);
        }
        for (int i = 0; i < T11_ADAPTERS; i++) {
            char name[64];
            snprintf(name, sizeof name, "mix %d, adapter %d%s", k % 2, i, k / 2 ? ", dropout" : "");
            t11_check(name, a, x.m, &x.p, x.w[i]->values, keep[i], x.w[i]->n_values,
                      sizeof(hbk_real) == 8 ? 1 : 5);
            hbk_free(NULL, keep[i]);
        }
        hbk_acts_free(a);
        t11_mix_free(&x);
    }
}

/* Promise: dropout's mask lies on places, not on adapters: a batch whose sequences have three copies of one
   adapter loses and learns what the batch with the one adapter does. A frozen adapter changes nothing for
   its neighbours. */
static void t11_mixed_dropout(void **state)
{
    (void)state;
    hbk_error err;
    t11_mix x = t11_mix_new(), copy = t11_mix_new(), third = t11_mix_new();
    hbk_pass p = {x.w[0], NULL, x.d[0], 0.25, 0.3, 12, 5, NULL, NULL};
    hbk_acts *a = hbk_acts_new(x.m, x.w[0], 15, 6, HBK_KEEP_ALL, NULL, &err);
    double loss = t11_loss(a, x.m, &p);
    hbk_real *want = t11_copy(x.d[0]);
    hbk_acts_free(a);
    t11_mix_clear(&x);
    t11_mix *of[3] = {&x, &copy, &third};
    for (int s = 0; s < 3; s++) {
        x.adapters[s] = of[s]->w[0];
        x.dadapters[s] = of[s]->d[0];
    }
    p.adapter = NULL;
    p.dadapter = NULL;
    p.adapters = x.adapters;
    p.dadapters = x.dadapters;
    a = hbk_acts_new_mixed(x.m, x.adapters, 3, 15, 6, HBK_KEEP_ALL, NULL, &err);
    check_near(t11_loss(a, x.m, &p), loss, T11_BAR);
    hbk_real *first = t11_copy(x.d[0]);
    for (hbk_int i = 0; i < x.d[0]->n_values; i++)
        x.d[0]->values[i] += copy.d[0]->values[i] + third.d[0]->values[i];
    double apart = t11_apart(x.d[0], want);
    if (!(apart <= T11_BAR)) fail_msg("the three gradients together differ by %g", apart);
    t11_mix_clear(&x);
    t11_mix_clear(&copy);
    x.dadapters[1] = x.dadapters[2] = NULL;
    t11_loss(a, x.m, &p);
    assert_memory_equal(x.d[0]->values, first, sizeof *first * (size_t)x.d[0]->n_values);
    for (hbk_int i = 0; i < x.d[0]->n_values; i++) assert_true(copy.d[0]->values[i] == 0);
    hbk_acts_free(a);
    hbk_free(NULL, want);
    hbk_free(NULL, first);
    t11_mix_free(&x);
    t11_mix_free(&copy);
    t11_mix_free(&third);
}

/* Promise: an adapter that the buffers have no room for, one of another base, a gradient of other ranks, and
   several adapters where there is room for one are errors, and no gradient is touched. */
static void t11_mixed_refusals(void **state)
{
    (void)state;
    hbk_error err;
    hbk_batch b = t11_batch();
    double loss = 7;
    t11_mix x = t11_mix_new();
    hbk_acts *one = hbk_acts_new(x.m, x.w[1], 15, 6, HBK_KEEP_ALL, NULL, &err);
    static const int both[3] = {1, -1, 0}, first[3] = {0, 0, 0}, second[3] = {1, 1, -1};
    t11_mix_assign(&x, both);
    check_error(hbk_model_pass(one, x.m, &b, &x.p, &loss, NULL, &err), HBK_ERROR_RANGE,
                "sequence 1 has another adapter than those before");
    t11_mix_assign(&x, first);
    check_error(hbk_model_pass(one, x.m, &b, &x.p, &loss, NULL, &err), HBK_ERROR_RANGE,
                "rank 3 of q_proj (layer 0 of 2) exceeds the room for 0");
    t11_mix_assign(&x, second);
    const hbk_adapter *room[2] = {x.w[1], NULL};
    hbk_acts *two = hbk_acts_new_mixed(x.m, room, 2, 15, 6, HBK_KEEP_ALL, NULL, &err);
    x.dadapters[1] = x.d[0];
    check_error(hbk_model_pass(two, x.m, &b, &x.p, &loss, NULL, &err), HBK_ERROR_SHAPE,
                "rank 0 of q_proj (layer 0 of 2) and rank 3 of its gradient differ");
    hbk_config c = t11_config(false);
    c.ffn_dim++;
    hbk_adapter *wide = hbk_adapter_new(&c, 2, 2, 1u << HBK_UP, 1, NULL, &err);
    c.n_layers = 3;
    hbk_adapter *deep = hbk_adapter_new(&c, 2, 2, 1u << HBK_UP, 1, NULL, &err);
    room[1] = wide;
    check_error(hbk_acts_new_mixed(x.m, room, 2, 15, 6, HBK_KEEP_ALL, NULL, &err), HBK_ERROR_SHAPE,
                "for up_proj of (29, 20), the model's is (28, 20)");
    check_error(hbk_acts_new(x.m, deep, 15, 6, HBK_KEEP_ALL, NULL, &err), HBK_ERROR_SHAPE,
                "for 3 layers, the model has 2");
    t11_mix_assign(&x, second);
    x.adapters[1] = deep;
    check_error(hbk_model_pass(two, x.m, &b, &x.p, &loss, NULL, &err), HBK_ERROR_SHAPE, "for 3 layers");
    x.adapters[1] = x.w[1];
    x.dadapters[1] = wide;
    check_error(hbk_model_pass(two, x.m, &b, &x.p, &loss, NULL, &err), HBK_ERROR_SHAPE, "for up_proj");
    for (int k = 0; k < T11_ADAPTERS; k++)
        for (hbk_int i = 0; i < x.d[k]->n_values; i++) assert_true(x.d[k]->values[i] == 0);
    assert_true(loss == 7);
    x.dadapters[1] = x.d[1];
    check_ok(hbk_model_pass(two, x.m, &b, &x.p, &loss, NULL, &err)); /* and goes on afterwards */
    hbk_acts_free(one);
    hbk_acts_free(two);
    hbk_adapter_free(wide);
    hbk_adapter_free(deep);
    t11_mix_free(&x);
}

static bool t11_make_room(void *ctx, hbk_allocator *alloc, hbk_error *err)
{
    const t11_mix *x = (const t11_mix *)ctx;
    hbk_batch b = t11_batch();
    hbk_acts *a = hbk_acts_new_mixed(x->m, x->adapters, 3, 15, 6, HBK_KEEP_ALL, alloc, err);
    bool ok = a && hbk_model_pass(a, x->m, &b, &x->p, NULL, NULL, err);
    hbk_acts_free(a);
    return ok;
}

/* Promise: whatever allocation fails, making room for several adapters reports it and leaks nothing; the
   pass itself takes no memory. */
static void t11_mixed_memory(void **state)
{
    (void)state;
    static const int of[3] = {1, -1, 0};
    t11_mix x = t11_mix_new();
    t11_mix_assign(&x, of);
    assert_int_equal(fault_sweep(t11_make_room, &x), 10);
    t11_mix_free(&x);
}

/* Promise: tensors are counted up one after another, under names that lead back to their places; any
   projection may have a bias or none; each bias changes what its layer gives, in generation as well. */
static void t11_tensors(void **state)
{
    (void)state;
    for (unsigned biases = 0; biases <= HBK_ALL_SLOTS; biases++) {
        hbk_error err;
        hbk_config c = t11_biased();
        c.biases = biases;
        hbk_model *m = hbk_model_random(&c, 3, NULL, &err);
        check_ok(m);
        char name[96];
        hbk_matrix t;
        hbk_real *at = m->values;
        hbk_int n_biases = 0;
        for (hbk_int i = 0; hbk_tensor_at(m, i, name, &t); i++) {
            hbk__place p;
            assert_ptr_equal(t.data, at);
            assert_true(hbk__place_of(m, name, &p));
            assert_ptr_equal(p.w ? p.w->data : *p.vector, at);
            if (strstr(name, ".bias")) assert_true(biases >> p.slot & 1 && t.rows == 1 && ++n_biases);
            at += t.rows * t.cols;
        }
        assert_int_equal(at - m->values, hbk_model_count(&c));
        hbk_int set = 0;
        for (int s = 0; s < HBK_N_SLOTS; s++) {
            assert_int_equal(m->layers[1].bias[s] != NULL, biases >> s & 1);
            set += biases >> s & 1;
        }
        assert_int_equal(n_biases, 2 * set);
        hbk_model_free(m);
    }
    hbk_error err;
    hbk_config c = t11_biased();
    hbk_model *m = hbk_model_random(&c, 3, NULL, &err);
    hbk_acts *a = hbk_acts_new(m, NULL, 15, 6, HBK_KEEP_NONE, NULL, &err);
    hbk_pass p = {NULL, NULL, NULL, 1, 0, 0, 0, NULL, NULL};
    double loss = t11_loss(a, m, &p);
    for (int s = 0; s < HBK_N_SLOTS; s++) {
        hbk_real *bias = m->layers[0].bias[s];
        m->layers[0].bias[s] = NULL;
        double without = t11_loss(a, m, &p);
        if (!(fabs(loss - without) > 1e-5))
            fail_msg("the bias of %s does nothing", hbk_slot_name((hbk_slot)s));
        m->layers[0].bias[s] = bias;
    }
    assert_true(t11_loss(a, m, &p) == loss);
    hbk_real logits[15 * 37], steps[6 * 37];
    hbk_session *s = hbk_session_new(m, NULL, 1, 6, HBK_F32, NULL, &err); /* generation goes the same way */
    hbk_feed feeds[2] = {{0, t11_tokens + 9, 4}, {0, t11_tokens + 13, 2}};
    hbk_batch b = t11_batch();
    check_ok(hbk_model_logits(a, m, &b, NULL, logits, &err));
    check_ok(hbk_session_feed(s, feeds, 1, true, steps, &err));
    check_ok(hbk_session_feed(s, feeds + 1, 1, true, steps + 4 * 37, &err));
    for (int i = 0; i < 6 * 37; i++) check_near(steps[i], logits[9 * 37 + i], 1e-5);
    hbk_session_free(s);
    hbk_acts_free(a);
    hbk_model_free(m);
    c.biases = 1u << HBK_N_SLOTS;
    check_error(hbk_config_check(&c, &err), HBK_ERROR_RANGE, "biases 0x80, expected bits of hbk_slot");
}

/* Promise: with an adapter of mixed ranks, on the head too, the training pass, the logits of a batch and a
   session's agree: one reads its buffers per layer, the others share them. */
static void t11_lora_paths(void **state)
{
    (void)state;
    hbk_error err;
    t11_lora v = t11_loras[5];
    hbk_config c = t11_config(true);
    hbk_model *m = hbk_model_random(&c, 3, NULL, &err);
    hbk_adapter *w = t11_adapter(&c, &v, 1);
    t11_shake(w, 0.3, 0);
    hbk_batch b = t11_batch();
    hbk_acts *a = hbk_acts_new(m, w, 15, 6, HBK_KEEP_NONE, NULL, &err);
    hbk_acts *t = hbk_acts_new(m, w, 15, 6, HBK_KEEP_ALL, NULL, &err);
    hbk_real all[15 * 37], fed[15 * 37];
    double loss = 0, trained, nll[15];
    check_ok(hbk_model_logits(a, m, &b, w, all, &err));
    hbk_pass p = {w, NULL, NULL, 1, 0, 0, 0, NULL, NULL};
    check_ok(hbk_model_pass(t, m, &b, &p, &trained, NULL, &err));
    for (int i = 0; i < 15; i++) {
        if (b.targets[i] < 0) continue;
        hbk_cross_entropy(NULL, nll, all + 37 * i, &b.targets[i], 1, 37, 1);
        loss += *nll;
    }
    check_near(loss, trained, sizeof(hbk_real) == 8 ? 1e-12 : 1e-5);
    hbk_session *s = hbk_session_new(m, w, 3, 8, HBK_F32, NULL, &err);
    check_ok(s);
    for (hbk_int i = 0; i < 3; i++) {
        hbk_feed feed = {i, t11_tokens + t11_start[i], t11_start[i + 1] - t11_start[i]};
        check_ok(hbk_session_feed(s, &feed, 1, true, fed + 37 * t11_start[i], &err));
    }
    for (int i = 0; i < 15 * 37; i++) check_near(fed[i], all[i], sizeof(hbk_real) == 8 ? 1e-12 : 1e-5);
    hbk_session_free(s);
    hbk_acts_free(a);
    hbk_acts_free(t);
    hbk_adapter_free(w);
    hbk_model_free(m);
}

/* Promise: a packed batch has the losses of its sequences taken alone; a later token changes no earlier
   logit; an adapter with B = 0 changes no bit. */
static void t11_packing(void **state)
{
    (void)state;
    hbk_error err;
    hbk_config c = t11_config(false);
    hbk_model *m = hbk_model_random(&c, 3, NULL, &err);
    hbk_adapter *zero = hbk_adapter_new(&c, 3, 5, HBK_ALL_SLOTS, 1, NULL, &err);
    hbk_acts *a = hbk_acts_new(m, zero, 15, 6, HBK_KEEP_NONE, NULL, &err);
    hbk_pass p = {NULL, NULL, NULL, 1, 0, 0, 0, NULL, NULL};
    double nll[15], alone[15], loss, part, sum = 0;
    hbk_batch b = t11_batch();
    check_ok(hbk_model_pass(a, m, &b, &p, &loss, nll, &err));
    for (int s = 0; s < 3; s++) {
        hbk_int n = t11_start[s + 1] - t11_start[s], start[2] = {0, n};
        hbk_batch one = {n, 1, t11_tokens + t11_start[s], t11_targets + t11_start[s], start};
        check_ok(hbk_model_pass(a, m, &one, &p, &part, alone, &err));
        sum += part;
        for (hbk_int i = 0; i < n; i++) check_near(nll[t11_start[s] + i], alone[i], T11_BAR);
    }
    check_near(loss, sum, T11_BAR);
    hbk_real x[15 * 37], y[15 * 37];
    check_ok(hbk_model_logits(a, m, &b, NULL, x, &err));
    check_ok(hbk_model_logits(a, m, &b, zero, y, &err));
    assert_memory_equal(x, y, sizeof x);
    int32_t changed[15];
    memcpy(changed, t11_tokens, sizeof changed);
    changed[3] = 1; /* of the first sequence, whose earlier positions are 0, 1, 2 */
    b.tokens = changed;
    check_ok(hbk_model_logits(a, m, &b, NULL, y, &err));
    assert_memory_equal(x, y, 3 * 37 * sizeof *x);
    assert_memory_not_equal(x + 3 * 37, y + 3 * 37, 37 * sizeof *x);
    check_near(x[5 * 37], y[5 * 37], 1e-6);
    hbk_acts_free(a);
    hbk_adapter_free(zero);
    hbk_model_free(m);
}

/* Promise: rotary angles are those of transformers 5.23 in float32, also far out, where the same formulas in
   double would turn by another 1e-4. */
static void t11_rope(void **state)
{
    (void)state;
    static const struct {
        hbk_rope_scaling scaling;
        double theta, factor, inv_freq[8], cosine[8]; /* at position 3999 */
    } cases[] = {
        {HBK_ROPE_LLAMA3,
         5e5,
         8,
         {1, 0.079403013, 0.00470075384, 0.000911583134, 0.000176776681, 3.42810235e-05, 6.64786967e-06,
          1.28917316e-06},
         {-0.969540656, -0.973255455, 0.998687446, -0.875740707, 0.760359466, 0.990617871, 0.999646664,
          0.999986708}},
        {HBK_ROPE_LINEAR,
         1e4,
         3,
         {0.333333343, 0.105409257, 0.0333333351, 0.0105409259, 0.00333333318, 0.00105409266, 0.000333333359,
          0.000105409265},
         {0.569651246, 0.84820956, 0.215969577, -0.255473018, 0.722331583, -0.476854116, 0.235561475,
          0.912463307}},
        {HBK_ROPE_DEFAULT,
         5e5,
         1,
         {1, 0.193922758, 0.0376060307, 0.00729266508, 0.00141421345, 0.000274248188, 5.31829573e-05,
          1.03133852e-05},
         {-0.969540656, -0.888718486, 0.917149901, -0.63016212, 0.809353411, 0.456518143, 0.977469027,
          0.999149621}},
    };
    for (int k = 0; k < 3; k++) {
        hbk_error err;
        hbk_config c = t11_config(true);
        c.head_dim = 16;
        c.rope_scaling = cases[k].scaling;
        c.rope_theta = cases[k].theta;
        c.rope_factor = cases[k].factor;
        c.rope_low_freq_factor = 1;
        c.rope_high_freq_factor = 4;
        c.rope_original_context = 64;
        hbk_model *m = hbk_model_random(&c, 1, NULL, &err);
        check_ok(m);
        hbk_real table[16];
        int32_t pos = 3999;
        hbk_rope_table(table, &pos, m->inv_freq, 1, 16);
        for (int i = 0; i < 8; i++) {
            check_near((float)m->inv_freq[i] / (float)cases[k].inv_freq[i], 1, 0);
            check_near(table[i], cases[k].cosine[i], 1e-7);
            check_near(table[i] * table[i] + table[8 + i] * table[8 + i], 1, 2e-7);
        }
        hbk_model_free(m);
    }
}

/* Promise: ids beyond the vocabulary and batches beyond the room are errors, as are impossible shapes. */
static void t11_refusals(void **state)
{
    (void)state;
    hbk_error err;
    hbk_config c = t11_config(false);
    hbk_model *m = hbk_model_random(&c, 3, NULL, &err);
    hbk_acts *a = hbk_acts_new(m, NULL, 4, 4, HBK_KEEP_NONE, NULL, &err);
    hbk_pass p = {NULL, NULL, NULL, 1, 0, 0, 0, NULL, NULL};
    int32_t tokens[5] = {1, 37, 2, 3, 4}, targets[5] = {1, 2, -2, 3, 4};
    hbk_int start[2] = {0, 2};
    hbk_batch b = {2, 1, tokens, targets, start};
    double loss = 42;
    check_error(hbk_model_pass(a, m, &b, &p, &loss, NULL, &err), HBK_ERROR_RANGE, "id 37");
    tokens[1] = 0, b.n_tokens = start[1] = 3;
    check_error(hbk_model_pass(a, m, &b, &p, &loss, NULL, &err), HBK_ERROR_RANGE, "target -2");
    targets[2] = -1, b.n_tokens = start[1] = 5;
    check_error(hbk_model_pass(a, m, &b, &p, &loss, NULL, &err), HBK_ERROR_RANGE, "room for 4");
    assert_true(loss == 42);
    hbk_acts_free(a);
    hbk_model_free(m);
    c.n_kv_heads = 4;
    check_error(hbk_model_random(&c, 1, NULL, &err), HBK_ERROR_RANGE, "num_attention_heads 6");
    c = t11_config(false);
    c.dim = 0;
    check_error(hbk_config_check(&c, &err), HBK_ERROR_RANGE, "hidden_size is 0");
    c = t11_config(false);
    check_error(hbk_adapter_new(&c, 9, 1, HBK_ALL_SLOTS, 1, NULL, &err), HBK_ERROR_RANGE, "1 to 8");
}

/* ---- reference outputs --------------------------------------------------------- */

static const hbk_tensor *t11_tensor(const hbk_safetensors *s, const char *name)
{
    const hbk_tensor *t = hbk_safetensors_find(s, name);
    if (!t) fail_msg("the reference file lacks %s", name);
    return t;
}

static double t11_number(const hbk_tensor *t, hbk_int i)
{
    float f;
    double d;
    memcpy(&f, (const char *)t->data + 4 * i, 4);
    if (t->dtype[1] == '6')
        memcpy(&d, (const char *)t->data + 8 * i, 8);
    else
        d = (double)f;
    return d;
}

static int32_t *t11_ids(const hbk_tensor *t)
{
    int32_t *ids = HBK__NEW(NULL, int32_t, t->n_elements, NULL);
    memcpy(ids, t->data, t->bytes);
    return ids;
}

/* Largest |x - reference| over n numbers, and in *scale the largest |reference|. */
static double t11_difference(const hbk_real *x, const hbk_tensor *t, double *scale)
{
    double worst = 0;
    *scale = 0;
    for (hbk_int i = 0; i < t->n_elements; i++) {
        worst = fmax(worst, fabs((double)x[i] - t11_number(t, i)));
        *scale = fmax(*scale, fabs(t11_number(t, i)));
    }
    return worst;
}

/* Logits of one sequence from a reference file, with or without an adapter. */
static double t11_logits_difference(const char *model, const char *adapter_dir, const char *file,
                                    const char *tensor)
{
    hbk_error err;
    hbk_model *m = hbk_model_load(model, NULL, &err);
    check_ok(m);
    hbk_adapter *w = adapter_dir ? hbk_adapter_load(adapter_dir, m, NULL, &err) : NULL;
    if (adapter_dir) check_ok(w);
    hbk_safetensors *s = hbk_safetensors_open(file, NULL, &err);
    check_ok(s);
    const hbk_tensor *in = t11_tensor(s, "input_ids"), *want = t11_tensor(s, tensor);
    int32_t *ids = t11_ids(in);
    hbk_int start[2] = {0, in->n_elements};
    hbk_batch b = {in->n_elements, 1, ids, NULL, start};
    hbk_acts *a = hbk_acts_new(m, w, b.n_tokens, b.n_tokens, HBK_KEEP_NONE, NULL, &err);
    hbk_real *logits = HBK__NEW(NULL, hbk_real, want->n_elements, &err);
    check_ok(hbk_model_logits(a, m, &b, w, logits, &err));
    double scale, worst = t11_difference(logits, want, &scale);
    hbk_free(NULL, logits);
    hbk_free(NULL, ids);
    hbk_acts_free(a);
    hbk_safetensors_close(s);
    hbk_adapter_free(w);
    hbk_model_free(m);
    return worst;
}

/* Promise: logits of a real checkpoint, and with a PEFT adapter on it, agree with PyTorch to 1e-4. */
static void t11_golden_logits(void **state)
{
    (void)state;
    char model[512], file[512], dir[512];
    if (!test_data(model, "checkpoints/story_hf")) skip();
    test_data(file, "golden/story_hf/logits_f64.safetensors");
    double plain = t11_logits_difference(model, NULL, file, "logits");
    test_data(file, "golden/lora/logits_with_lora.safetensors");
    test_data(dir, "golden/lora/peft_adapter");
    double lora = t11_logits_difference(model, dir, file, "logits_f64");
    print_message("    largest difference: %.1e, with an adapter %.1e\n", plain, lora);
    assert_true(plain < 1e-4 && lora < 1e-4);
}

/* "layers.0.attention.wq.weight", as llama2.c's exporter names it, for our Hugging Face name. */
static void t11_llama2c_name(char out[128], const char *name)
{
    static const char *const pairs[][2] = {
        {"input_layernorm", "attention_norm"}, {"post_attention_layernorm", "ffn_norm"},
        {"self_attn.q_proj", "attention.wq"},  {"self_attn.k_proj", "attention.wk"},
        {"self_attn.v_proj", "attention.wv"},  {"self_attn.o_proj", "attention.wo"},
        {"mlp.gate_proj", "feed_forward.w1"},  {"mlp.down_proj", "feed_forward.w2"},
        {"mlp.up_proj", "feed_forward.w3"},
    };
    snprintf(out, 128, "grad.%s", strstr(name, "embed") ? "tok_embeddings.weight" : "norm.weight");
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        if (strstr(name, pairs[i][0]))
            snprintf(out, 128, "grad.layers.%d.%s.weight", atoi(name + strlen("model.layers.")), pairs[i][1]);
}

/* The gradient of q or k, whose rows our loader moved from interleaved to half-split order, moved back. */
static void t11_interleave(hbk_real *x, hbk_int rows, hbk_int cols, hbk_int D)
{
    hbk_real *y = HBK__NEW(NULL, hbk_real, rows * cols, NULL);
    for (hbk_int r = 0; r < rows; r++) {
        hbk_int h = r / D, i = r % D, to = h * D + (i < D / 2 ? 2 * i : 2 * (i - D / 2) + 1);
        memcpy(y + to * cols, x + r * cols, sizeof *x * (size_t)cols);
    }
    memcpy(x, y, sizeof *x * (size_t)(rows * cols));
    hbk_free(NULL, y);
}

/* Loss and every gradient of a checkpoint against a reference file, relative to each tensor's largest. */
static void t11_golden_case(const char *model, const char *file, bool llama2c)
{
    hbk_error err;
    hbk_model *m = hbk_model_load(model, NULL, &err);
    check_ok(m);
    hbk_safetensors *s = hbk_safetensors_open(file, NULL, &err);
    check_ok(s);
    const hbk_tensor *in = t11_tensor(s, "input_ids");
    int32_t *ids = t11_ids(in), *targets = t11_ids(t11_tensor(s, "targets"));
    hbk_int start[2] = {0, in->n_elements}, n_targets = 0;
    hbk_batch b = {in->n_elements, 1, ids, targets, start};
    for (hbk_int i = 0; i < b.n_tokens; i++) {
        if (targets[i] < 0) targets[i] = -1;
        n_targets += targets[i] >= 0;
    }
    hbk_real *grads = HBK__NEW(NULL, hbk_real, hbk_model_count(&m->config), &err);
    hbk_model *d = hbk_model_view(&m->config, grads, NULL, &err);
    hbk_acts *a = hbk_acts_new(m, NULL, b.n_tokens, b.n_tokens, HBK_KEEP_ALL, NULL, &err);
    hbk_pass p = {NULL, d, NULL, 1 / (double)n_targets, 0, 0, 0, NULL, NULL};
    double loss, scale, worst = 0;
    check_ok(hbk_model_pass(a, m, &b, &p, &loss, NULL, &err));
    check_near(loss / (double)n_targets, t11_number(t11_tensor(s, "loss"), 0), 1e-5);
    char name[96], key[128];
    hbk_matrix t;
    hbk_int n = 0;
    for (hbk_int i = 0; hbk_tensor_at(d, i, name, &t); i++) {
        if (llama2c)
            t11_llama2c_name(key, name);
        else
            snprintf(key, sizeof key, "grad.%s", strstr(name, "embed") ? "lm_head.weight" : name);
        hbk_real *g = (hbk_real *)t.data;
        if (llama2c && (strstr(name, "q_proj") || strstr(name, "k_proj")))
            t11_interleave(g, t.rows, t.cols, m->config.head_dim);
        const hbk_tensor *want = t11_tensor(s, key);
        assert_int_equal(want->n_elements, t.rows * t.cols);
        double difference = t11_difference(g, want, &scale) / scale;
        if (difference > 1e-4) fail_msg("%s differs by %g relative", key, difference);
        worst = fmax(worst, difference);
        n++;
    }
    print_message("    loss %.6f, %d gradients, largest relative difference %.1e\n", loss / (double)n_targets,
                  (int)n, worst);
    hbk_free(NULL, grads);
    hbk_free(NULL, ids);
    hbk_free(NULL, targets);
    hbk_acts_free(a);
    hbk_model_free(d);
    hbk_safetensors_close(s);
    hbk_model_free(m);
}

/* Promise: loss and every gradient of two real checkpoints agree with PyTorch's to 1e-4. */
static void t11_golden_gradients(void **state)
{
    (void)state;
    char model[512], file[512];
    if (!test_data(model, "checkpoints/stories260K/stories260K.bin")) skip();
    test_data(file, "golden/stories260K/fwd_bwd.safetensors");
    t11_golden_case(model, file, true);
    test_data(model, "checkpoints/story_hf");
    test_data(file, "golden/story_hf/fwd_bwd.safetensors");
    t11_golden_case(model, file, false);
}

static const struct CMUnitTest tests_11[] = {
    cmocka_unit_test(t11_full_gradient),
    cmocka_unit_test(t11_rounded),
    cmocka_unit_test(t11_lora_gradient),
    cmocka_unit_test(t11_mixed_separate),
    cmocka_unit_test(t11_mixed_gradient),
    cmocka_unit_test(t11_mixed_dropout),
    cmocka_unit_test(t11_mixed_refusals),
    cmocka_unit_test(t11_mixed_memory),
    cmocka_unit_test(t11_lora_paths),
    cmocka_unit_test(t11_tensors),
    cmocka_unit_test(t11_rope),
    cmocka_unit_test(t11_packing),
    cmocka_unit_test(t11_refusals),
    cmocka_unit_test(t11_golden_logits),
    cmocka_unit_test(t11_golden_gradients),
};
