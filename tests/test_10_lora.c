/* Chapter 10: adapters as objects; their gradients are checked in chapters 9 and 11. */
#include <time.h>

#include "test.h"

static hbk_config t10_config(void)
{
    hbk_config c;
    memset(&c, 0, sizeof c);
    c.n_layers = 2;
    c.n_heads = 4;
    c.n_kv_heads = 2;
    c.head_dim = 6;
    c.dim = 20;
    c.ffn_dim = 28;
    c.vocab_size = 10;
    c.context_length = 16;
    c.rope_theta = 10000;
    return c;
}

/* Promise: names become bits; an unknown or missing name is an error that lists the known ones. */
static void t10_targets(void **state)
{
    (void)state;
    hbk_error err;
    unsigned bits = 77;
    check_ok(hbk_adapter_targets("q_proj,v_proj", &bits, &err));
    assert_int_equal(bits, 1u << HBK_Q | 1u << HBK_V);
    check_ok(hbk_adapter_targets("all", &bits, &err));
    assert_int_equal(bits, HBK_ALL_SLOTS);
    check_ok(hbk_adapter_targets("lm_head,o_proj", &bits, &err));
    assert_int_equal(bits, 1u << HBK_LM_HEAD | 1u << HBK_O);
    check_ok(hbk_adapter_targets("all-linear", &bits, &err)); /* PEFT leaves the head out of it, too */
    assert_int_equal(bits, HBK_ALL_SLOTS);
    check_error(hbk_adapter_targets("q_proj,fc1", &bits, &err), HBK_ERROR_OPTION, "'fc1'");
    check_error(hbk_adapter_targets("", &bits, &err), HBK_ERROR_OPTION, "no target");
    assert_int_equal(bits, HBK_ALL_SLOTS); /* untouched by failures */
}

/* Promise: a new adapter has the shapes of its projections, A uniform in +-1/sqrt(in), B zero, and the same
   seed gives the same numbers. */
static void t10_start(void **state)
{
    (void)state;
    hbk_error err;
    hbk_config c = t10_config();
    unsigned targets = 1u << HBK_K | 1u << HBK_DOWN;
    hbk_adapter *a = hbk_adapter_new(&c, 4, 6, targets, 9, NULL, &err);
    hbk_adapter *same = hbk_adapter_new(&c, 4, 6, targets, 9, NULL, &err);
    hbk_adapter *other = hbk_adapter_new(&c, 4, 6, targets, 10, NULL, &err);
    check_ok(a && same && other);
    assert_int_equal(a->n_values, 2 * 4 * ((20 + 12) + (28 + 20)));
    assert_memory_equal(a->values, same->values, sizeof(hbk_real) * (size_t)a->n_values);
    assert_memory_not_equal(a->values, other->values, sizeof(hbk_real) * (size_t)a->n_values);
    for (hbk_int i = 0; i < 2 * HBK_N_SLOTS; i++) {
        const hbk_lora *l = &a->loras[i];
        if (!(targets >> i % HBK_N_SLOTS & 1)) {
            assert_null(l->a);
            continue;
        }
        double bound = 1 / sqrt((double)l->in), largest = 0;
        for (hbk_int k = 0; k < l->rank * l->in; k++) largest = fmax(largest, fabs((double)l->a[k]));
        assert_true(largest <= bound && largest > 0.8 * bound);
        for (hbk_int k = 0; k < l->rank * l->out; k++) assert_true(l->b[k] == 0);
        check_near(l->scale, 1.5, 1e-7);
    }
    hbk_adapter_free(a);
    hbk_adapter_free(same);
    hbk_adapter_free(other);
    hbk_adapter_free(NULL);
}

/* Promise: a rank that a projection cannot have is refused and names the projection; so is an alpha with
   which nothing could be learned. */
static void t10_rank(void **state)
{
    (void)state;
    hbk_error err;
    hbk_config c = t10_config();
    check_error(hbk_adapter_new(&c, 0, 6, HBK_ALL_SLOTS, 1, NULL, &err), HBK_ERROR_RANGE, "rank 0");
    check_error(hbk_adapter_new(&c, 13, 6, 1u << HBK_K, 1, NULL, &err), HBK_ERROR_RANGE, "k_proj");
    check_error(hbk_adapter_new(&c, 2, (double)NAN, 1u << HBK_K, 1, NULL, &err), HBK_ERROR_RANGE,
                "alpha nan over rank 2 is no scale for k_proj (layer 0 of 2)");
    check_error(hbk_adapter_new(&c, 2, 0, 1u << HBK_K, 1, NULL, &err), HBK_ERROR_RANGE,
                "alpha 0 of k_proj: it must be above 0");
    check_error(hbk_adapter_new(&c, 2, 1e300, 1u << HBK_LM_HEAD, 1, NULL, &err), HBK_ERROR_RANGE,
                "alpha 1e+300 over rank 2 is no scale for lm_head");
}

/* Promise: the time that an adapter takes grows with its layers, not with their square. */
static void t10_many_layers(void **state)
{
    (void)state;
    hbk_error err;
    hbk_config c = t10_config();
    c.n_layers = 20000;
    c.dim = c.ffn_dim = c.vocab_size = c.head_dim = 2;
    c.n_heads = c.n_kv_heads = 1;
    clock_t start = clock();
    hbk_adapter *a = hbk_adapter_new(&c, 1, 6, HBK_ALL_SLOTS, 1, NULL, &err);
    check_ok(a);
    assert_true(a->rank == 1 && a->alpha == 6);
    assert_true((double)(clock() - start) / CLOCKS_PER_SEC < 4);
    hbk_adapter_free(a);
}

/* Promise: each projection has the rank and the scale that the options give it, in their layers only, the
   head among them; rank-stabilised scaling divides by the root of each one's own rank. */
static void t10_options(void **state)
{
    (void)state;
    hbk_error err;
    hbk_config c = t10_config();
    c.n_layers = 4;
    hbk_adapter_options o = hbk_adapter_defaults();
    assert_true(o.rank == 16 && o.alpha == 32 && o.targets == HBK_ALL_SLOTS && !o.rslora);
    o.rank = 4;
    o.alpha = 6;
    o.targets = 1u << HBK_Q | 1u << HBK_DOWN | 1u << HBK_LM_HEAD;
    o.layer_begin = 1;
    o.layer_end = 3;
    o.target_rank[HBK_DOWN] = 9;
    o.target_alpha[HBK_LM_HEAD] = 5;
    for (int rslora = 0; rslora < 2; rslora++) {
        o.rslora = rslora == 1;
        hbk_adapter *a = hbk_adapter_make(&c, &o, 1, NULL, &err);
        check_ok(a);
        assert_int_equal(a->n_values, 2 * (4 * (20 + 24) + 9 * (28 + 20)) + 4 * (20 + 10));
        assert_int_equal(a->targets, o.targets);
        assert_int_equal(a->rank, 4);
        check_near(a->alpha, rslora ? 12 : 6, 1e-12);
        hbk_real *at = a->values; /* all a and b one after another, without gap */
        for (hbk_int i = 0; i <= 4 * HBK_N_SLOTS; i++) {
            const hbk_lora *l = &a->loras[i];
            int slot = i == 4 * HBK_N_SLOTS ? HBK_LM_HEAD : (int)(i % HBK_N_SLOTS);
            hbk_int layer = i / HBK_N_SLOTS, rank = slot == HBK_DOWN ? 9 : 4;
            bool on = o.targets >> slot & 1 && (slot == HBK_LM_HEAD || layer == 1 || layer == 2);
            assert_true(on ? l->a == at && l->b == at + rank * l->in : !l->a && !l->b && l->rank == 0);
            if (!on) continue;
            at += rank * (l->in + l->out);
            double alpha = slot == HBK_LM_HEAD ? 5 : 6, by = rslora ? sqrt((double)rank) : (double)rank;
            check_near(l->scale, alpha / by, 1e-6);
        }
        assert_true(at == a->values + a->n_values);
        assert_true(a->loras[4 * HBK_N_SLOTS].in == 20 && a->loras[4 * HBK_N_SLOTS].out == 10);
        hbk_adapter_free(a);
    }
    o.target_rank[HBK_LM_HEAD] = 11;
    check_error(hbk_adapter_make(&c, &o, 1, NULL, &err), HBK_ERROR_RANGE, "rank 11 does not fit lm_head");
    o.target_rank[HBK_LM_HEAD] = 0;
    o.layer_end = 5;
    check_error(hbk_adapter_make(&c, &o, 1, NULL, &err), HBK_ERROR_RANGE, "layers 1 to 4");
    o.layer_end = 1;
    check_error(hbk_adapter_make(&c, &o, 1, NULL, &err), HBK_ERROR_RANGE, "layers 1 to 0");
}

static const struct CMUnitTest tests_10[] = {
    cmocka_unit_test(t10_targets),
    cmocka_unit_test(t10_start),
    cmocka_unit_test(t10_rank),
    cmocka_unit_test(t10_many_layers),
    cmocka_unit_test(t10_options),
};
