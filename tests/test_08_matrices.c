/* Chapter 8: the matmul door against the textbook loop, for every dtype and awkward shapes. */
#include "test.h"

/* y (N, O) += x (N, C) W^T, in double, the plainest way. */
static void t08_reference(double *y, const double *x, const double *w, hbk_int N, hbk_int O, hbk_int C)
{
    for (hbk_int n = 0; n < N; n++)
        for (hbk_int o = 0; o < O; o++)
            for (hbk_int c = 0; c < C; c++) y[n * O + o] += x[n * C + c] * w[o * C + c];
}

static void t08_fill(hbk_real *x, hbk_int n, uint64_t seed)
{
    hbk_rng r = hbk_rng_at(seed, "test", 0);
    for (hbk_int i = 0; i < n; i++) x[i] = (hbk_real)(float)hbk_rng_normal(&r);
}

/* All three products of one shape and dtype; w is rounded to the dtype first, so only sums differ. */
static void t08_shape(hbk_dtype t, hbk_int N, hbk_int O, hbk_int C)
{
    hbk_int most = N * O + N * C + O * C;
    hbk_real *x = HBK__NEW(NULL, hbk_real, most, NULL), *dy = HBK__NEW(NULL, hbk_real, most, NULL);
    hbk_real *w = HBK__NEW(NULL, hbk_real, most, NULL), *y = HBK__NEW(NULL, hbk_real, most, NULL);
    hbk_real *panel = HBK__NEW(NULL, hbk_real, HBK_PANEL, NULL);
    double *dx = HBK__NEW(NULL, double, most, NULL), *dw = HBK__NEW(NULL, double, most, NULL);
    double *want = HBK__NEW(NULL, double, most, NULL), *xt = HBK__NEW(NULL, double, most, NULL);
    void *packed = hbk_alloc(NULL, O * C, 8, NULL);
    t08_fill(x, N * C, 1);
    t08_fill(dy, N * O, 2);
    t08_fill(w, O * C, 3);
    t08_fill(y, most, 4);
    hbk_pack(packed, t, w, O * C);
    hbk_matrix m = {t, O, C, packed, NULL, 0};
    hbk_matrix_unpack(w, &m, 0, O);
    double tol = sizeof(hbk_real) == 8 ? 1e-12 : 2e-6 * sqrt((double)(N + O + C));

    for (hbk_int i = 0; i < N * O; i++) want[i] = (double)y[i];
    for (hbk_int i = 0; i < N * C; i++) dx[i] = (double)x[i];
    for (hbk_int i = 0; i < O * C; i++) dw[i] = (double)w[i];
    t08_reference(want, dx, dw, N, O, C);
    hbk_matmul(y, x, &m, N, panel);
    for (hbk_int i = 0; i < N * O; i++) check_near(y[i], want[i], tol);

    t08_fill(y, most, 5); /* dx += dy W is y += x W^T with W^T for W */
    for (hbk_int i = 0; i < N * C; i++) want[i] = (double)y[i];
    for (hbk_int i = 0; i < N * O; i++) dx[i] = (double)dy[i];
    for (hbk_int o = 0; o < O; o++)
        for (hbk_int c = 0; c < C; c++) xt[c * O + o] = (double)w[o * C + c];
    t08_reference(want, dx, xt, N, C, O);
    hbk_matmul_dx(y, dy, &m, N, panel);
    for (hbk_int i = 0; i < N * C; i++) check_near(y[i], want[i], tol);

    hbk_matrix grad = {HBK_REAL, O, C, y, NULL, 0};
    t08_fill(y, most, 6); /* dW += dy^T x */
    for (hbk_int i = 0; i < O * C; i++) want[i] = (double)y[i];
    for (hbk_int n = 0; n < N; n++)
        for (hbk_int o = 0; o < O; o++)
            for (hbk_int c = 0; c < C; c++) want[o * C + c] += (double)dy[n * O + o] * (double)x[n * C + c];
    hbk_matmul_dw(&grad, dy, x, N);
    for (hbk_int i = 0; i < O * C; i++) check_near(y[i], want[i], tol);

    void *all[] = {x, dy, w, y, panel, dx, dw, want, xt, packed};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) hbk_free(NULL, all[i]);
}

/* Promise: one door, same result for every dtype, number of rows (few and many) and odd or prime sizes. */
static void t08_products(void **state)
{
    (void)state;
    static const hbk_int shapes[][3] = {{1, 1, 1},   {1, 7, 5},    {2, 3, 1},   {3, 17, 31},  {4, 64, 64},
                                        {5, 13, 97}, {8, 96, 256}, {9, 33, 65}, {16, 41, 3},  {31, 64, 96},
                                        {64, 5, 7},  {67, 129, 33}};
    for (int t = 0; t <= HBK_F64; t++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            t08_shape((hbk_dtype)t, shapes[i][0], shapes[i][1], shapes[i][2]);
}

/* Promise: a weight larger than the panel is unpacked in several pieces that add up to the same. */
static void t08_panels(void **state)
{
    (void)state;
    hbk_int C = 4099, O = 2 * (HBK_PANEL / C) + 1; /* two full panels and one row */
    t08_shape(HBK_F16, 9, O, C);
}

/* Promise: halves and bf16 keep every representable value, and round to nearest even. */
static void t08_rounding(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = hbk__f32_of_f16((uint16_t)h), b = hbk__f32_of_bf16((uint16_t)h);
        if (!isnan(f)) assert_int_equal(hbk__f16_of_f32(f), h);
        else assert_true(isnan(hbk__f32_of_f16(hbk__f16_of_f32(f))));
        if (!isnan(b)) assert_int_equal(hbk__bf16_of_f32(b), h);
        else assert_true(isnan(hbk__f32_of_bf16(hbk__bf16_of_f32(b))));
    }
    assert_int_equal(hbk__f16_of_f32(1.0f + 1.0f / 2048), 0x3c00);           /* a tie, to even: down */
    assert_int_equal(hbk__f16_of_f32(1.0f + 3.0f / 2048), 0x3c02);           /* a tie, to even: up */
    assert_int_equal(hbk__f16_of_f32(65519.0f), 0x7bff);
    assert_int_equal(hbk__f16_of_f32(65520.0f), 0x7c00);
    assert_int_equal(hbk__f16_of_f32(-1e-8f), 0x8000);
    assert_int_equal(hbk__bf16_of_f32(1.0f + 1.0f / 256), 0x3f80);
    assert_int_equal(hbk__bf16_of_f32(1.0f + 3.0f / 256), 0x3f82);
}

/* ---- stored types ---------------------------------------------------------------------- */

/* A reference file of golden/quant, whole; false if there is none. */
static bool t08_golden(hbk_text *out, const char *type, const char *ending)
{
    hbk_error err;
    char name[64], path[512];
    memset(out, 0, sizeof *out);
    snprintf(name, sizeof name, "golden/quant/%s.%s", type, ending);
    if (!test_data(path, name)) return false;
    check_ok(hbk_file_read(path, (size_t)1 << 20, out, &err));
    return true;
}

/* Promise: blocks that ggml quantised unpack to the numbers that ggml makes of them, bit for bit. */
static void t08_golden_blocks(void **state)
{
    (void)state;
    static const hbk_dtype types[] = {HBK_F16,  HBK_BF16, HBK_Q4_0, HBK_Q8_0,
                                      HBK_Q4_K, HBK_Q5_K, HBK_Q6_K};
    enum { ROWS = 4, COLS = 512 };
    hbk_real x[ROWS * COLS];
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        hbk_text blocks, floats;
        if (!t08_golden(&blocks, hbk_dtype_name(types[i]), "blocks")) skip();
        assert_true(t08_golden(&floats, hbk_dtype_name(types[i]), "f32"));
        assert_int_equal(blocks.len, hbk_dtype_size(types[i], ROWS * COLS));
        assert_int_equal(floats.len, sizeof(float) * ROWS * COLS);
        hbk_matrix m = {types[i], ROWS, COLS, blocks.data, NULL, 0};
        hbk_matrix_unpack(x, &m, 0, ROWS);
        for (int k = 0; k < ROWS * COLS; k++) {
            float f = (float)x[k];
            if (memcmp(&f, floats.data + 4 * k, 4) != 0)
                fail_msg("%s: element %d", hbk_dtype_name(types[i]), k);
        }
        hbk_text_free(&blocks);
        hbk_text_free(&floats);
    }
}

static const struct CMUnitTest tests_08[] = {
    cmocka_unit_test(t08_golden_blocks),
    cmocka_unit_test(t08_products),
    cmocka_unit_test(t08_panels),
    cmocka_unit_test(t08_rounding),
};
