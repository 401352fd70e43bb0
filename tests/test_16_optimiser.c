/* Chapter 16: AdamW against a plain loop in double, the norm, the schedules. */
#include "test.h"

enum { T16_MOST = 20003 }; /* more than one thread's share, and no multiple of anything */

#define T16_BAR (sizeof(hbk_real) == 8 ? 1e-12 : 5e-6)

/* AdamW as the paper prints it, in double, one number at a time. */
static void t16_reference(double *w, double *m, double *v, double g, int t, const hbk_adamw *o)
{
    *m = o->beta1 * *m + (1 - o->beta1) * g;
    *v = o->beta2 * *v + (1 - o->beta2) * g * g;
    double mean = *m / (1 - pow(o->beta1, t)), square = *v / (1 - pow(o->beta2, t));
    *w -= o->lr * o->weight_decay * *w;
    *w -= o->lr * mean / (sqrt(square) + o->eps);
}

/* Gradient i of step t: of every size from 1e-6 to 10, at times 0. */
static hbk_real t16_gradient(hbk_int i, int t)
{
    if ((i + t) % 7 == 0) return 0;
    return (hbk_real)(pow(10, (double)(i % 8) - 6) * sin((double)(i * 3 + t)));
}

/* Promise: 50 steps follow the paper's equations, with decay and bias correction, for gradients of any size,
   at the usual betas and at beta1 = 0. */
static void t16_adamw(void **state)
{
    (void)state;
    static hbk_real w[T16_MOST], m[T16_MOST], v[T16_MOST], g[T16_MOST];
    static double dw[T16_MOST], dm[T16_MOST], dv[T16_MOST];
    static const hbk_adamw options[] = {
        {0.01, 0.9, 0.999, 1e-8, 0.1}, {0.003, 0.9, 0.95, 1e-3, 0}, {0.01, 0, 0.99, 1e-8, 0.5}};
    for (int k = 0; k < 3; k++) {
        hbk_int n = k == 0 ? T16_MOST : 37;
        double worst = 0;
        for (hbk_int i = 0; i < n; i++) {
            dw[i] = (double)(w[i] = (hbk_real)(0.5 * cos((double)i)));
            dm[i] = dv[i] = 0;
            m[i] = v[i] = 0;
        }
        for (int t = 1; t <= 50; t++) {
            for (hbk_int i = 0; i < n; i++) {
                g[i] = t16_gradient(i, t);
                t16_reference(&dw[i], &dm[i], &dv[i], (double)g[i], t, &options[k]);
            }
            hbk_adamw_step(w, m, v, g, n, t, 1, &options[k]);
            for (hbk_int i = 0; i < n && (t < 3 || t == 50); i++)
                worst = fmax(worst, fabs((double)w[i] - dw[i]));
            assert_true(worst < T16_BAR);
        }
        print_message("    largest difference after 50 steps %.1e\n", worst);
    }
}

/* Promise: the first step is lr times the gradient's sign, whatever its size: the bias correction cancels the
   betas to the last digits. */
static void t16_first_step(void **state)
{
    (void)state;
    hbk_adamw o = {0.01, 0.9, 0.999, 0, 0};
    hbk_real w[3] = {0, 0, 0}, m[3] = {0, 0, 0}, v[3] = {0, 0, 0}, g[3] = {1e-3f, -20, 5};
    hbk_adamw_step(w, m, v, g, 3, 1, 1, &o);
    for (int i = 0; i < 3; i++) assert_true(fabs((double)w[i] / (g[i] > 0 ? -0.01 : 0.01) - 1) < 1e-6);
}

/* Promise: the decay acts on the weight alone: without a gradient w shrinks by 1 - lr wd a step, and the
   moments stay zero. */
static void t16_decay(void **state)
{
    (void)state;
    hbk_adamw o = {0.1, 0.9, 0.999, 1e-8, 0.2};
    hbk_real w = 3, m = 0, v = 0, g = 0;
    for (int t = 1; t <= 10; t++) hbk_adamw_step(&w, &m, &v, &g, 1, t, 1, &o);
    check_near(w, 3 * pow(1 - 0.1 * 0.2, 10), 1e-6);
    assert_true(m == 0 && v == 0);
}

/* Promise: `scale` multiplies the gradient before anything else. */
static void t16_scale(void **state)
{
    (void)state;
    hbk_adamw o = {0.01, 0.9, 0.999, 1e-2, 0.1};
    hbk_real w[2] = {1, 1}, m[2] = {0, 0}, v[2] = {0, 0};
    for (int t = 1; t <= 5; t++) {
        hbk_real g = (hbk_real)(0.04 * t), quarter = g / 4;
        hbk_adamw_step(&w[0], &m[0], &v[0], &g, 1, t, 0.25, &o);
        hbk_adamw_step(&w[1], &m[1], &v[1], &quarter, 1, t, 1, &o);
    }
    assert_true(w[0] == w[1] && m[0] == m[1] && v[0] == v[1]);
    assert_true(w[0] != 1 && (double)m[0] < 0.04);
}

/* Promise: the norm is the Euclidean one, in double, of any number of values, and the number of threads does
   not change its last bit. */
static void t16_norm(void **state)
{
    (void)state;
    enum { MANY = 300007 };
    hbk_error err;
    hbk_real few[3] = {3, -4, 12};
    check_near(hbk_norm(few, 0), 0, 0);
    check_near(hbk_norm(few, 2), 5, 1e-15);
    check_near(hbk_norm(few, 3), 13, 1e-15);
    hbk_real *g = HBK__NEW(NULL, hbk_real, MANY, &err);
    check_ok(g);
    double sum = 0;
    for (hbk_int i = 0; i < MANY; i++) {
        g[i] = (hbk_real)(1e-3 * cos((double)i) * (double)(i % 5 + 1));
        sum += (double)g[i] * (double)g[i];
    }
    double norm = hbk_norm(g, MANY);
    assert_true(fabs(norm / sqrt(sum) - 1) < 1e-12);
#ifdef _OPENMP
    int threads = omp_get_max_threads();
    for (int n = 1; n <= 3; n++) {
        omp_set_num_threads(n);
        assert_true(hbk_norm(g, MANY) == norm);
    }
    omp_set_num_threads(threads);
#endif
    g[MANY - 1] = INFINITY;
    assert_true(isinf(hbk_norm(g, MANY)));
    g[77] = NAN;
    assert_true(isnan(hbk_norm(g, MANY)));
    hbk_free(NULL, g);
}

/* Promise: every schedule rises linearly to lr at the last step of the warm-up; the falling ones have exactly
   lr_end, an absolute rate, at the last step, and never rise again. */
static void t16_schedules(void **state)
{
    (void)state;
    static const double rates[][2] = {{1e-5, 9e-6}, {2e-4, 2e-5}, {0.3, 0.1}, {1, 0}};
    static const hbk_int warmups[] = {0, 1, 10, 40};
    for (int k = 0; k < 3; k++)
        for (int r = 0; r < 4; r++)
            for (int w = 0; w < 4; w++) {
                hbk_schedule s = k == 0 ? HBK_LINEAR : k == 1 ? HBK_COSINE : HBK_CONSTANT;
                hbk_int warmup = warmups[w];
                double lr = rates[r][0], last = lr;
                for (hbk_int t = 1; t <= warmup; t++)
                    check_near(hbk_learning_rate(s, t, 60, warmup, lr, rates[r][1]) / lr,
                               (double)t / (double)warmup, 1e-15);
                assert_true(!warmup || hbk_learning_rate(s, warmup, 60, warmup, lr, rates[r][1]) == lr);
                assert_true(hbk_learning_rate(s, warmup + 1, 60, warmup, lr, rates[r][1]) == lr);
                for (hbk_int t = warmup + 2; t <= 60; t++) {
                    double now = hbk_learning_rate(s, t, 60, warmup, lr, rates[r][1]);
                    assert_true(s == HBK_CONSTANT ? now == lr : now < last);
                    last = now;
                }
                assert_true(last == (s == HBK_CONSTANT ? lr : rates[r][1]));
            }
}

/* Promise: linear falls in equal parts, cosine follows half a wave. */
static void t16_shapes(void **state)
{
    (void)state;
    for (hbk_int t = 1; t <= 101; t++) {
        double part = (double)(t - 1) / 100, wave = (1 + cos(3.14159265358979 * part)) / 2;
        check_near(hbk_learning_rate(HBK_LINEAR, t, 101, 0, 5, 1), 5 - 4 * part, 1e-14);
        check_near(hbk_learning_rate(HBK_COSINE, t, 101, 0, 5, 1), 1 + 4 * wave, 1e-13);
    }
    check_near(hbk_learning_rate(HBK_LINEAR, 56, 101, 10, 5, 1), 3, 1e-14); /* halfway, after a warm-up */
}

/* Promise: a run of one step, and one whose warm-up takes all its steps, have rates between 0 and lr. */
static void t16_short_runs(void **state)
{
    (void)state;
    for (int k = 0; k < 3; k++) {
        hbk_schedule s = k == 0 ? HBK_LINEAR : k == 1 ? HBK_COSINE : HBK_CONSTANT;
        assert_true(hbk_learning_rate(s, 1, 1, 0, 0.5, 0.1) == 0.5);
        assert_true(hbk_learning_rate(s, 1, 1, 1, 0.5, 0.1) == 0.5);
        assert_true(hbk_learning_rate(s, 2, 2, 1, 0.5, 0.1) == 0.5);
        assert_true(hbk_learning_rate(s, 3, 3, 3, 0.5, 0.1) == 0.5);
        assert_true(hbk_learning_rate(s, 2, 2, 0, 0.5, 0.1) == (s == HBK_CONSTANT ? 0.5 : 0.1));
        check_near(hbk_learning_rate(s, 2, 2, 8, 0.5, 0.1), 0.125, 1e-15);
    }
}

static const struct CMUnitTest tests_16[] = {
    cmocka_unit_test(t16_adamw),     cmocka_unit_test(t16_first_step), cmocka_unit_test(t16_decay),
    cmocka_unit_test(t16_scale),     cmocka_unit_test(t16_norm),       cmocka_unit_test(t16_schedules),
    cmocka_unit_test(t16_shapes),    cmocka_unit_test(t16_short_runs),
};
