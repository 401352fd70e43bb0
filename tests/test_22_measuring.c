/* Chapter 22: means with their spread, and the loss of a data set. */
#include "test.h"
#include "fault.h"

/* Promise: mean, sample deviation and the 95 % half-width are those of the textbook. */
static void t22_summaries(void **state)
{
    (void)state;
    static const double x[] = {2, 4, 4, 4, 5, 5, 7, 9}; /* mean 5, squares sum to 32 */
    hbk_summary s = hbk_summarize(x, 8);
    assert_int_equal(s.n, 8);
    check_near(s.mean, 5, 1e-15);
    check_near(s.deviation, sqrt(32 / 7.0), 1e-15);
    check_near(s.half_width, 2.365 * sqrt(32 / 7.0) / sqrt(8.0), 1e-12); /* t with 7 degrees of freedom */
    s = hbk_summarize(x, 2); /* 2 and 4: mean 3, deviation sqrt 2, half-width 12.706 */
    check_near(s.mean, 3, 1e-15);
    check_near(s.deviation, sqrt(2.0), 1e-15);
    check_near(s.half_width, 12.706, 1e-12);
    s = hbk_summarize(x, 1);
    assert_int_equal(s.n, 1);
    assert_true(s.mean == 2 && isnan(s.half_width));
    s = hbk_summarize(x, 0);
    assert_true(s.n == 0 && isnan(s.mean) && isnan(s.deviation) && isnan(s.half_width));
    /* a small spread far from zero: sums of squares would drown in the mean */
    static const double far[] = {1e9 + 1, 1e9 + 2, 1e9 + 3};
    s = hbk_summarize(far, 3);
    check_near(s.deviation, 1, 1e-12);
    check_near(s.half_width, 4.303 / sqrt(3.0), 1e-6);
}

/* Promise: Student's quantiles are right to three digits for any number of values. */
static void t22_student(void **state)
{
    (void)state;
    static const struct {
        hbk_int n;
        double t; /* two-sided 95 %, n - 1 degrees of freedom */
    } cases[] = {{3, 4.303}, {4, 3.182}, {5, 2.776}, {6, 2.571}, {11, 2.228}, {21, 2.086}, {30, 2.045},
                 {31, 2.042}, {32, 2.040}, {41, 2.021}, {61, 2.000}, {101, 1.984}, {1001, 1.962}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hbk_int n = cases[i].n;
        double *x = HBK__NEW(NULL, double, n, NULL);
        for (hbk_int j = 0; j < n; j++) x[j] = (double)(j % 2);
        hbk_summary s = hbk_summarize(x, n);
        double t = s.half_width * sqrt((double)n) / s.deviation;
        if (fabs(t - cases[i].t) > 0.004)
            fail_msg("t of %lld values is %g, expected %g", (long long)n, t, cases[i].t);
        hbk_free(NULL, x);
    }
}

enum { T22_EXAMPLES = 9, T22_VOCABULARY = 23 };

static hbk_model *t22_model(void)
{
    hbk_config c;
    hbk_error err;
    memset(&c, 0, sizeof c);
    c.n_layers = 2;
    c.n_heads = 2;
    c.n_kv_heads = 1;
    c.head_dim = 4;
    c.dim = 12;
    c.ffn_dim = 20;
    c.vocab_size = T22_VOCABULARY;
    c.context_length = 64;
    c.rms_norm_eps = 1e-5;
    c.rope_theta = 10000;
    hbk_model *m = hbk_model_random(&c, 8, NULL, &err);
    if (!m) fail_msg("%s", err.message);
    return t19_loud(m);
}

/* Examples of 4 to 12 tokens with 1 to 3 of them prompt. */
static hbk_dataset t22_data(void)
{
    hbk_dataset d;
    hbk_error err;
    memset(&d, 0, sizeof d);
    hbk_rng r = hbk_rng_at(1, "measuring", 0);
    for (int i = 0; i < T22_EXAMPLES; i++) {
        int32_t ids[12];
        for (int j = 0; j < 4 + i; j++) ids[j] = (int32_t)hbk_rng_below(&r, T22_VOCABULARY);
        check_ok(hbk_dataset_add(&d, ids, 4 + i, 1 + i % 3, &err));
    }
    return d;
}

/* Promise: the loss of a data set is the mean over all its target tokens, not over examples or passes,
   however many fit into a pass; and it is the model's with its adapter. */
static void t22_loss(void **state)
{
    (void)state;
    hbk_error err;
    hbk_model *m = t22_model();
    hbk_dataset d = t22_data();
    hbk_adapter *adapter = hbk_adapter_new(&m->config, 2, 4, HBK_ALL_SLOTS, 3, NULL, &err);
    hbk_rng r = hbk_rng_at(2, "measuring", 0);
    for (hbk_int i = 0; i < adapter->n_values; i++)
        adapter->values[i] += (hbk_real)(0.2 * hbk_rng_normal(&r));
    for (int adapted = 0; adapted < 2; adapted++) {
        const hbk_adapter *a = adapted ? adapter : NULL;
        double sum = 0, loss;
        hbk_int targets = 0;
        for (int i = 0; i < T22_EXAMPLES; i++) { /* each example alone, token by token from its logits */
            hbk_int n = d.start[i + 1] - d.start[i], start[2] = {0, n};
            const int32_t *ids = d.tokens.data + d.start[i];
            hbk_batch b = {n, 1, ids, NULL, start};
            hbk_acts *acts = hbk_acts_new(m, a, n, n, HBK_KEEP_NONE, NULL, &err);
            hbk_real logits[12 * T22_VOCABULARY];
            check_ok(hbk_model_logits(acts, m, &b, a, logits, &err));
            for (hbk_int k = n - hbk_dataset_targets(&d, i); k < n; k++, targets++)
                sum += hbk_cross_entropy(NULL, NULL, logits + (k - 1) * T22_VOCABULARY, ids + k, 1,
                                         T22_VOCABULARY, 1);
            hbk_acts_free(acts);
        }
        for (hbk_int room = 1; room < 100; room = 2 * room + 1) { /* 1: even one example has to fit */
            check_ok(hbk_evaluate_loss(m, a, &d, room, &loss, NULL, &err));
            check_near(loss, sum / (double)targets, sizeof(hbk_real) == 8 ? 1e-12 : 1e-5);
        }
    }
    hbk_dataset empty;
    double loss = 7;
    memset(&empty, 0, sizeof empty);
    check_error(hbk_evaluate_loss(m, NULL, &empty, 64, &loss, NULL, &err), HBK_ERROR_DATA, "no example");
    d.tokens.data[2] = T22_VOCABULARY;
    check_error(hbk_evaluate_loss(m, NULL, &d, 64, &loss, NULL, &err), HBK_ERROR_RANGE, "");
    assert_true(loss == 7); /* outputs are untouched */
    hbk_adapter_free(adapter);
    hbk_dataset_free(&d);
    hbk_model_free(m);
}

static bool t22_evaluate(void *ctx, hbk_allocator *a, hbk_error *err)
{
    double loss;
    hbk_dataset d = t22_data();
    bool ok = hbk_evaluate_loss((const hbk_model *)ctx, NULL, &d, 16, &loss, a, err);
    hbk_dataset_free(&d);
    return ok;
}

/* Promise: whichever allocation fails, the error is memory and nothing leaks. */
static void t22_memory_runs_out(void **state)
{
    (void)state;
    hbk_model *m = t22_model();
    assert_true(fault_sweep(t22_evaluate, m) > 3);
    hbk_model_free(m);
}

static const struct CMUnitTest tests_22[] = {
    cmocka_unit_test(t22_summaries), cmocka_unit_test(t22_student),
    cmocka_unit_test(t22_loss),      cmocka_unit_test(t22_memory_runs_out),
};
