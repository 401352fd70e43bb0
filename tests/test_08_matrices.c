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

/* Where the halves of a block lie (-1: no second one). */
static void t08_halves(hbk_dtype t, int at[2])
{
    bool pair = t == HBK_Q4_1 || t == HBK_Q5_1 || t == HBK_Q4_K || t == HBK_Q5_K;
    at[0] = t == HBK_Q2_K ? 80 : t == HBK_Q3_K ? 108 : t == HBK_Q6_K ? 208 : 0;
    at[1] = t == HBK_Q2_K ? 82 : pair ? 2 : -1;
}

/* n elements of type t from a seed: packed normal numbers where the type can be packed, else blocks of random
   bytes whose halves, of either sign, lie between 2^-11 and 2^-7. */
static void t08_stored(unsigned char *p, hbk_dtype t, hbk_int n, uint64_t seed)
{
    hbk_rng r = hbk_rng_at(seed, "stored", (uint64_t)t);
    hbk_int size = (hbk_int)hbk_dtype_size(t, n), block = (hbk_int)hbk_dtype_size(t, hbk_dtype_block(t));
    int at[2];
    if (hbk_dtype_packs(t)) {
        hbk_real *x = HBK__NEW(NULL, hbk_real, n, NULL);
        t08_fill(x, n, seed);
        hbk_pack(p, t, x, n);
        hbk_free(NULL, x);
        return;
    }
    t08_halves(t, at);
    for (hbk_int i = 0; i < size; i++) p[i] = (unsigned char)hbk_rng_below(&r, 256);
    for (hbk_int i = 0; t != HBK_INT8 && i < size; i += block)
        for (int k = 0; k < 2 && at[k] >= 0; k++)
            p[i + at[k] + 1] = (unsigned char)((p[i + at[k] + 1] & 0x8f) | 0x10);
}

/* n reals as a product takes them: as they are, or rounded to bf16. */
static void t08_taken(double *to, const hbk_real *x, hbk_int n, bool rounded)
{
    for (hbk_int i = 0; i < n; i++)
        to[i] = rounded ? (double)hbk__f32_of_bf16(hbk__bf16_of_f32((float)x[i])) : (double)x[i];
}

/* Whether a product that may round does: five rows or more, and in the backward no type of large blocks. */
static bool t08_rounds(hbk_dtype t, hbk_int N, bool back, bool rounds)
{
    return rounds && hbk__has_bf16() && N >= 5 && (!back || hbk_dtype_block(t) <= 32);
}

/* All products of one shape and type, which may round or not; w is what the stored type holds, so only sums
   differ. */
static void t08_shape(hbk_dtype t, hbk_int N, hbk_int O, hbk_int C, bool rounds)
{
    C = (C + hbk_dtype_block(t) - 1) / hbk_dtype_block(t) * hbk_dtype_block(t);
    hbk_int most = N * O + N * C + O * C;
    hbk_real *x = HBK__NEW(NULL, hbk_real, most, NULL), *dy = HBK__NEW(NULL, hbk_real, most, NULL);
    hbk_real *w = HBK__NEW(NULL, hbk_real, most, NULL), *y = HBK__NEW(NULL, hbk_real, most, NULL);
    hbk_real *panel = HBK__NEW(NULL, hbk_real, HBK_PANEL, NULL);
    double *dx = HBK__NEW(NULL, double, most, NULL), *dw = HBK__NEW(NULL, double, most, NULL);
    double *want = HBK__NEW(NULL, double, most, NULL), *xt = HBK__NEW(NULL, double, most, NULL);
    unsigned char *block = HBK__NEW(NULL, unsigned char, O * C * 8 + 1, NULL);
    unsigned char *packed =
        block + (t != HBK_REAL || N % 2); /* unaligned; reals that are read in place, too */
    float scales[65];
    hbk_int group = (O * C + 63) / 64; /* seldom a divisor of the row */
    for (int i = 0; i < 65; i++) scales[i] = (float)(i - 30) / 1024;
    t08_fill(x, N * C, 1);
    t08_fill(dy, N * O, 2);
    t08_fill(y, most, 4);
    t08_stored(packed, t, O * C, 3);
    hbk_matrix m = {t, O, C, packed, NULL, 0, rounds};
    if (t == HBK_INT8) m.scales = scales, m.group = group;
    hbk_matrix_unpack(w, &m, 0, O);
    double tol = sizeof(hbk_real) == 8 ? 1e-12 : 2e-6 * sqrt((double)(N + O + C)), largest = 1;
    for (hbk_int i = 0; i < O * C; i++) largest = fmax(largest, fabs((double)w[i]));
    tol *= largest;

    for (hbk_int i = 0; i < N * O; i++) want[i] = (double)y[i];
    t08_taken(dx, x, N * C, t08_rounds(t, N, false, rounds));
    t08_taken(dw, w, O * C, t08_rounds(t, N, false, rounds));
    t08_reference(want, dx, dw, N, O, C);
    hbk_matmul(y, x, &m, N, panel);
    for (hbk_int i = 0; i < N * O; i++) check_near(y[i], want[i], tol);

    t08_fill(y, most, 5); /* dx += dy W is y += x W^T with W^T for W */
    for (hbk_int i = 0; i < N * C; i++) want[i] = (double)y[i];
    t08_taken(dx, dy, N * O, t08_rounds(t, N, true, rounds));
    t08_taken(dw, w, O * C, t08_rounds(t, N, true, rounds));
    for (hbk_int o = 0; o < O; o++)
        for (hbk_int c = 0; c < C; c++) xt[c * O + o] = dw[o * C + c];
    t08_reference(want, dx, xt, N, C, O);
    hbk_matmul_dx(y, dy, &m, N, panel);
    for (hbk_int i = 0; i < N * C; i++) check_near(y[i], want[i], tol);

    hbk_matrix grad = {HBK_REAL, O, C, y, NULL, 0, false};
    t08_fill(y, most, 6); /* dW += dy^T x */
    for (hbk_int i = 0; i < O * C; i++) want[i] = (double)y[i];
    for (hbk_int n = 0; n < N; n++)
        for (hbk_int o = 0; o < O; o++)
            for (hbk_int c = 0; c < C; c++) want[o * C + c] += (double)dy[n * O + o] * (double)x[n * C + c];
    hbk_matmul_dw(&grad, dy, x, N);
    for (hbk_int i = 0; i < O * C; i++) check_near(y[i], want[i], tol);

    void *all[] = {x, dy, w, y, panel, dx, dw, want, xt, block};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) hbk_free(NULL, all[i]);
}

/* Promise: one door, same result for every type, number of rows (few and many), odd or prime sizes, rows of
   one block and of several parts; what is stored may be unaligned. */
static void t08_products(void **state)
{
    (void)state;
    static const hbk_int shapes[][3] = {{1, 1, 1},   {1, 7, 5},    {2, 3, 1},   {3, 17, 31},  {4, 64, 64},
                                        {5, 13, 97}, {8, 96, 256}, {9, 33, 65}, {16, 41, 3},  {31, 64, 96},
                                        {64, 5, 7},  {67, 129, 33}};
    for (int t = 0; t < HBK_DTYPE_COUNT; t++) {
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            t08_shape((hbk_dtype)t, shapes[i][0], shapes[i][1], shapes[i][2], false);
        for (hbk_int N = 1; N <= 9; N++) t08_shape((hbk_dtype)t, N, 3, 2049 + 32 * N, false);
        for (hbk_int N = HBK__FEW - 2; N <= HBK__FEW + 1; N++) /* rows 4 KB apart are moved */
            t08_shape((hbk_dtype)t, N, 5 + N % 4, 1024 * (1 + N % 2), false);
    }
}

/* Promise: where products may round, they are those of rounded numbers, with sums as exact as ever: for every
   type, few rows and many, pairs that end in half, stripes that are cut, parts of x that fill the panel. */
static void t08_rounded_products(void **state)
{
    (void)state;
    static const hbk_int shapes[][3] = {{4, 9, 33},   {5, 1, 1},   {6, 7, 5},    {16, 8, 64},  {17, 41, 31},
                                        {33, 64, 96}, {64, 5, 7},  {65, 1, 3},   {67, 129, 33}, {96, 32, 64},
                                        {70, 63, 95}, {66, 8, 257}};
    for (int t = 0; t < HBK_DTYPE_COUNT; t++) {
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            t08_shape((hbk_dtype)t, shapes[i][0], shapes[i][1], shapes[i][2], true);
        t08_shape((hbk_dtype)t, 9, 11, HBK__PART * 2, true);      /* rows 4 KB apart, two parts */
        t08_shape((hbk_dtype)t, 65, 3, HBK__PART + 1, true); /* odd: the last piece is half of a pair */
        t08_shape((hbk_dtype)t, 65, HBK__PART + 1, 3, true);
        t08_shape((hbk_dtype)t, 66, 40, 3 * HBK__PART, true); /* two tiles of full depth */
        t08_shape((hbk_dtype)t, 66, 40, 3 * HBK__PART, false);
        t08_shape((hbk_dtype)t, 66, 40, 2 * HBK__PART + 34, true); /* a depth that ends within a square */
        t08_shape((hbk_dtype)t, 66, 2 * HBK__PART + 34, 40, true);
    }
    t08_shape(HBK_F32, 2 * HBK_PANEL / HBK__PART + 3, 5, HBK__PART, true);
}

/* Promise: products of our own loops have the same bits on any number of threads, exact and rounded, both
   ways, also where a result is too narrow for all threads. */
static void t08_threads(void **state)
{
    (void)state;
#if defined(_OPENMP) && defined(HBK__X86)
    enum { N = 150, O = 100, C = 70 };
    static hbk_real w[O * C], x[N * O], y[N * O], want[N * O], panel[HBK_PANEL];
    for (hbk_int stripes = 1; stripes < 40; stripes++) /* shared fairly by up to 16 threads */
        for (hbk_int t = 1; t <= 16; t++) {
            hbk_int tasks = stripes * hbk__parts(stripes, 4096, t);
            assert_true((tasks + t - 1) / t * t * 5 < tasks * 6);
        }
    assert_int_equal(hbk__parts(1, 95, 2), 1); /* not worth packing W twice */
    assert_int_equal(hbk__parts(1, 96, 2), 2);
    if (!HBK__HAS_AVX512()) return; /* OpenBLAS's, which promises no such thing */
    t08_fill(w, O * C, 1);
    t08_fill(x, N * O, 2);
    int threads = omp_get_max_threads();
    for (int k = 0; k < 4; k++)
        for (int n = 1; n <= 7; n++) {
            hbk_matrix m = {HBK_REAL, O, C, w, NULL, 0, k % 2 != 0};
            memset(y, 0, sizeof y);
            omp_set_num_threads(n);
            if (k < 2) hbk_matmul(y, x, &m, N, panel);
            else hbk_matmul_dx(y, x, &m, N, panel);
            if (n == 1) memcpy(want, y, sizeof y);
            assert_memory_equal(y, want, sizeof y);
        }
    omp_set_num_threads(threads);
#else
    skip();
#endif
}

/* Promise: rows of a large W that threads take in turns have the bits that they have in equal shares. */
static void t08_turns(void **state)
{
    (void)state;
#ifdef _OPENMP
    enum { N = 20, O = 16389, C = 512 };
    uint16_t *w = (uint16_t *)calloc(O * C, sizeof *w);
    hbk_real *x = (hbk_real *)calloc(N * C, sizeof *x), *panel = (hbk_real *)calloc(HBK_PANEL, sizeof *x);
    hbk_real *y = (hbk_real *)calloc(N * O, sizeof *y), *want = (hbk_real *)calloc(N * O, sizeof *y);
    hbk_matrix m = {HBK_BF16, O, C, w, NULL, 0, false};
    int threads = omp_get_max_threads(), turns = 0;
    assert_true(w && x && panel && y && want);
    t08_fill(x, N * C, 2);
    for (hbk_int i = 0; i < O * C; i++) w[i] = (uint16_t)(0x3f00 + i * 31 % 251);
    for (hbk_int rows = 1; rows <= (hbk__meets() ? N : 1); rows += N - 1) /* else OpenBLAS's */
        for (int n = 7; n >= 1; n--) {
            omp_set_num_threads(n);
            turns += hbk__turn_of(&m) > 0;
            memset(y, 0, N * O * sizeof *y);
            hbk_matmul(y, x, &m, rows, panel);
            if (n == 7) memcpy(want, y, N * O * sizeof *y);
            assert_memory_equal(y, want, N * O * sizeof *y);
        }
    omp_set_num_threads(threads);
    assert_int_equal(turns, hbk__meets() ? 8 : 4); /* with up to four threads, of seven */
    free(w), free(x), free(panel), free(y), free(want);
#else
    skip();
#endif
}

/* Promise: a row of q8_0 or q4_0 has the same product by each of the processor's means as by the plain
   loop. */
static void t08_blocks_by_any_means(void **state)
{
    (void)state;
#ifdef HBK__X86
    static unsigned char block[34 * 77 + 1];
    static hbk_real x[32 * 77];
    if (!HBK__HAS_AVX2()) return; /* the plain loop alone is here */
    t08_fill(x, 32 * 77, 7);
    for (int q8 = 0; q8 < 2; q8++)
        for (hbk_int n = 32; n <= 32 * 77; n += 32 * 19) {
            unsigned char *w = block + n % 3; /* of any alignment */
            t08_stored(w, q8 ? HBK_Q8_0 : HBK_Q4_0, n, (uint64_t)n);
            double want = (double)hbk__dot_blocks(x, w, n, q8 != 0), tol = 1e-3 + 1e-5 * fabs(want);
            if (HBK__HAS_AVX512())
                check_near(hbk__dot_blocks_avx512(x, w, n, q8 != 0), want, tol);
            if (HBK__HAS_AVX2())
                check_near(hbk__dot_blocks_avx2(x, w, n, q8 != 0), want, tol);
        }
#else
    skip();
#endif
}

/* Promise: eight rows meet sixteen lanes with the same sums by each of the processor's means, which add to
   what is there. */
static void t08_meet_by_any_means(void **state)
{
    (void)state;
#ifdef HBK__X86
    enum { MOST = 100, LDW = 103 };
    static hbk_real w[8 * LDW], x[16 * MOST], start[128], want[128], got[128];
    const hbk__ahead next = {(const char *)w, LDW * sizeof *w, 16 * sizeof *w};
    t08_fill(w, 8 * LDW, 8);
    t08_fill(x, 16 * MOST, 9);
    t08_fill(start, 128, 10);
    static const hbk_int sizes[] = {1, 2, 15, 16, 17, 33, 97, MOST};
    for (int i = 0; i < 8; i++) {
        memcpy(want, start, sizeof start);
        for (int k = 0; k < 128; k++)
            for (hbk_int c = 0; c < sizes[i]; c++) want[k] += w[k / 16 * LDW + c] * x[16 * c + k % 16];
        for (int means = 0; means < 3; means++) {
            memcpy(got, start, sizeof start);
            if (means == 0) hbk__meet_any(got, w, LDW, x, sizes[i], &next);
            else if (means == 1 && HBK__HAS_AVX512())
                hbk__meet_avx512(got, w, LDW, x, sizes[i], &next);
            else if (means == 2 && HBK__HAS_AVX2())
                hbk__meet_avx2(got, w, LDW, x, sizes[i], &next);
            else continue;
            for (int k = 0; k < 128; k++) check_near(got[k], want[k], 1e-4);
        }
    }
#else
    skip();
#endif
}

/* Promise: a weight larger than the panel is unpacked in several pieces that add up to the same. */
static void t08_panels(void **state)
{
    (void)state;
    static const hbk_dtype types[] = {HBK_F16, HBK_Q8_0, HBK_Q4_K, HBK_INT8};
    for (int i = 0; i < 4; i++) {
        hbk_int C = i ? 4096 + 256 : 4099, O = 2 * (HBK_PANEL / C) + 1; /* two full panels and one row */
        t08_shape(types[i], 9, O, C, false);
    }
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
        hbk_matrix m = {types[i], ROWS, COLS, blocks.data, NULL, 0, false};
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

/* n bits from bit `first` on, one by one; the lowest bit of a byte is its first. */
static int t08_bits(const unsigned char *p, int first, int n)
{
    int v = 0;
    for (int k = 0; k < n; k++) v |= (p[(first + k) / 8] >> (first + k) % 8 & 1) << k;
    return v;
}

static double t08_half(const unsigned char *p)
{
    int fraction = t08_bits(p, 0, 10), e = t08_bits(p, 10, 5);
    double x = e ? ldexp(1024 + fraction, e - 25) : ldexp(fraction, -24);
    return t08_bits(p, 15, 1) ? -x : x;
}

/* Element i of a block of one of the 32-element types. */
static double t08_element_32(hbk_dtype t, const unsigned char *p, int i)
{
    int nibble = 8 * (i % 16) + 4 * (i / 16);
    double d = t08_half(p);
    switch ((int)t) {
    case HBK_Q4_0: return d * (t08_bits(p + 2, nibble, 4) - 8);
    case HBK_Q4_1: return d * t08_bits(p + 4, nibble, 4) + t08_half(p + 2);
    case HBK_Q5_0: return d * (t08_bits(p + 6, nibble, 4) + 16 * t08_bits(p + 2, i, 1) - 16);
    case HBK_Q5_1: return d * (t08_bits(p + 8, nibble, 4) + 16 * t08_bits(p + 4, i, 1)) + t08_half(p + 2);
    default: return d * (t08_bits(p + 2, 8 * i, 7) - 128 * t08_bits(p + 2, 8 * i + 7, 1));
    }
}

/* Element i of a block of one of the 256-element types. */
static double t08_element_256(hbk_dtype t, const unsigned char *p, int i)
{
    int half = i / 128, quarter = i % 128 / 32, l = i % 32, k = i / 16, sub = i / 32, q, s, m;
    if (t == HBK_Q2_K) {
        q = t08_bits(p + 16, 8 * (32 * half + l) + 2 * quarter, 2);
        return t08_half(p + 80) * t08_bits(p, 8 * k, 4) * q - t08_half(p + 82) * t08_bits(p, 8 * k + 4, 4);
    }
    if (t == HBK_Q3_K) {
        q = t08_bits(p + 32, 8 * (32 * half + l) + 2 * quarter, 2) + 4 * t08_bits(p, 8 * l + sub, 1) - 4;
        s = t08_bits(p + 96, 8 * (k % 8) + 4 * (k / 8), 4);
        s += 16 * t08_bits(p + 104, 8 * (k % 4) + 2 * (k / 4), 2);
        return t08_half(p + 108) * (s - 32) * q;
    }
    if (t == HBK_Q6_K) {
        q = t08_bits(p, 8 * (64 * half + i % 64) + 4 * (i % 128 / 64), 4) +
            16 * t08_bits(p + 128, 8 * (32 * half + l) + 2 * quarter, 2) - 32;
        return t08_half(p + 208) * (t08_bits(p + 192, 8 * k, 7) - 128 * t08_bits(p + 192, 8 * k + 7, 1)) * q;
    }
    q = t08_bits(p + (t == HBK_Q5_K ? 48 : 16), 8 * (32 * (sub / 2) + l) + 4 * (sub % 2), 4);
    if (t == HBK_Q5_K) q += 16 * t08_bits(p + 16, 8 * l + sub, 1);
    if (sub < 4) {
        s = t08_bits(p + 4, 8 * sub, 6);
        m = t08_bits(p + 8, 8 * sub, 6);
    } else {
        s = t08_bits(p + 12, 8 * (sub - 4), 4) + 16 * t08_bits(p + 4, 8 * (sub - 4) + 6, 2);
        m = t08_bits(p + 12, 8 * (sub - 4) + 4, 4) + 16 * t08_bits(p + 8, 8 * (sub - 4) + 6, 2);
    }
    return t08_half(p) * s * q - t08_half(p + 2) * m;
}

/* Promise: random blocks of every block type unpack, bit for bit, to what their layout says when it is read
   one bit at a time: subnormal, zero and negative scales included, in any alignment, and from any row on. */
static void t08_block_layouts(void **state)
{
    (void)state;
    enum { N = 64 * 256 };
    static unsigned char block[N * 2];
    static hbk_real x[N];
    for (int t = HBK_Q4_0; t <= HBK_Q6_K; t++) {
        int n = (int)hbk_dtype_block((hbk_dtype)t), size = (int)hbk_dtype_size((hbk_dtype)t, n), at[2];
        unsigned char *p = block + t % 4;
        hbk_rng r = hbk_rng_at(1, "layout", (uint64_t)t);
        t08_halves((hbk_dtype)t, at);
        for (int i = 0; i < N / n * size; i++) p[i] = (unsigned char)hbk_rng_below(&r, 256);
        for (int i = 0; i < N / n; i++) /* exponents below 16, every fourth 0: no infinities */
            for (int k = 0; k < 2 && at[k] >= 0; k++) p[i * size + at[k] + 1] &= i % 4 == 3 ? 0x83 : 0xbf;
        memset(p + size, 0, 4); /* a block of zero scale, in the types where it comes first */
        hbk_matrix m = {(hbk_dtype)t, 64, N / 64, p, NULL, 0, false};
        hbk_matrix_unpack(x, &m, 0, 32);
        hbk_matrix_unpack(x + N / 2, &m, 32, 32);
        for (int i = 0; i < N; i++) {
            const unsigned char *b = p + i / n * size;
            float got = (float)x[i], want = (float)(n == 32 ? t08_element_32((hbk_dtype)t, b, i % n)
                                                            : t08_element_256((hbk_dtype)t, b, i % n));
            if (memcmp(&got, &want, 4) != 0)
                fail_msg("%s: element %d is %g, expected %g", hbk_dtype_name((hbk_dtype)t), i, (double)got,
                         (double)want);
        }
    }
}

/* Promise: the scales of int8 count through the whole matrix: a group may cross the end of a row. */
static void t08_int8_groups(void **state)
{
    (void)state;
    static const hbk_int groups[] = {1, 4, 6, 8, 12, 24};
    signed char q[24];
    unsigned char scales[4 * 24 + 1];
    float scale[24];
    hbk_real x[24];
    for (int i = 0; i < 24; i++) {
        q[i] = (signed char)(i * 37 % 255 - 127);
        scale[i] = (float)(i + 1) / 3;
    }
    memcpy(scales + 1, scale, sizeof scale);
    for (int k = 0; k < 6; k++) {
        hbk_matrix m = {HBK_INT8, 6, 4, q, scales + 1, groups[k], false};
        hbk_matrix_unpack(x, &m, 0, 1);
        hbk_matrix_unpack(x + 4, &m, 1, 5);
        for (int i = 0; i < 24; i++) {
            float want = (float)q[i] * scale[i / groups[k]];
            assert_true((float)x[i] == want);
        }
    }
}

/* Promise: q8_0 is packed byte for byte as ggml packs it. */
static void t08_golden_pack(void **state)
{
    (void)state;
    hbk_text input, blocks;
    if (!t08_golden(&input, "input", "f32")) skip();
    assert_true(t08_golden(&blocks, "q8_0", "blocks"));
    hbk_int n = (hbk_int)input.len / 4;
    hbk_real *x = HBK__NEW(NULL, hbk_real, n, NULL);
    unsigned char *packed = HBK__NEW(NULL, unsigned char, (hbk_int)blocks.len, NULL);
    hbk__unpack(x, HBK_F32, input.data, n);
    assert_int_equal(hbk_dtype_size(HBK_Q8_0, n), blocks.len);
    hbk_pack(packed, HBK_Q8_0, x, n);
    assert_memory_equal(packed, blocks.data, blocks.len);
    hbk_free(NULL, x);
    hbk_free(NULL, packed);
    hbk_text_free(&input);
    hbk_text_free(&blocks);
}

/* Promise: a block of q8_0 keeps its largest number as 127 and the rest to half a step; zeros, and numbers
   too small for a scale, give zeros; what is not finite does not stop it. */
static void t08_pack_q8_0(void **state)
{
    (void)state;
    hbk_real x[64], y[64];
    unsigned char p[68];
    t08_fill(x, 64, 9);
    x[5] = -4;
    for (int i = 32; i < 64; i++) x[i] *= (hbk_real)1e-3;
    hbk_pack(p, HBK_Q8_0, x, 64);
    assert_int_equal((signed char)p[2 + 5], -127);
    hbk_matrix m = {HBK_Q8_0, 1, 64, p, NULL, 0, false};
    hbk_matrix_unpack(y, &m, 0, 1);
    for (int i = 0; i < 64; i++) {
        double step = t08_half(p + i / 32 * 34), rounding = step * ldexp(1, -11) + ldexp(1, -25);
        assert_true(fabs((double)(x[i] - y[i])) <= 0.5 * (step + rounding) * (1 + 1e-5) + 127 * rounding);
    }
    for (int k = 0; k < 3; k++) {
        for (int i = 0; i < 32; i++) x[i] = k == 0 ? 0 : (hbk_real)(k == 1 ? 1e-42f : 1e-9f);
        hbk_pack(p, HBK_Q8_0, x, 32);
        m.cols = 32;
        hbk_matrix_unpack(y, &m, 0, 1);
        for (int i = 0; i < 32; i++) assert_true(y[i] == 0 && (k == 2 || p[2 + i] == 0));
    }
    x[3] = (hbk_real)NAN;
    x[4] = (hbk_real)INFINITY;
    hbk_pack(p, HBK_Q8_0, x, 32);
    assert_true(p[2 + 3] == 0 && p[2 + 4] == 0);
}

/* Promise: the table of types holds what GGUF says of them, and only five of them are written. */
static void t08_types(void **state)
{
    (void)state;
    static const int gguf[] = {0, 1, 30, 28, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, -1};
    static const int bytes[] = {1024, 512, 512, 2048, 144, 160, 176, 192, 272, 84, 110, 144, 176, 210, 256};
    assert_int_equal(sizeof gguf / sizeof *gguf, HBK_DTYPE_COUNT);
    int packs = 0;
    for (int t = 0; t < HBK_DTYPE_COUNT; t++) {
        const hbk__ggml_type *type = hbk__ggml_type_of(hbk__st_type_name((hbk_dtype)t), 0);
        assert_int_equal(type ? type->id : -1, gguf[t]);
        assert_int_equal(hbk_dtype_size((hbk_dtype)t, 256), bytes[t]);
        assert_int_equal(hbk_dtype_size((hbk_dtype)t, 0), 0);
        assert_int_equal(256 % hbk_dtype_block((hbk_dtype)t), 0);
        packs += hbk_dtype_packs((hbk_dtype)t);
    }
    assert_int_equal(packs, 5);
    assert_string_equal(hbk_dtype_name(HBK_Q4_K), "q4_k");
    assert_string_equal(hbk_dtype_name(HBK_INT8), "int8");
    assert_string_equal(hbk_dtype_name(HBK_DTYPE_COUNT), "?");
}

static const struct CMUnitTest tests_08[] = {
    cmocka_unit_test(t08_products),
    cmocka_unit_test(t08_rounded_products),
    cmocka_unit_test(t08_threads),
    cmocka_unit_test(t08_turns),
    cmocka_unit_test(t08_blocks_by_any_means),
    cmocka_unit_test(t08_meet_by_any_means),
    cmocka_unit_test(t08_panels),
    cmocka_unit_test(t08_rounding),
    cmocka_unit_test(t08_types),
    cmocka_unit_test(t08_golden_blocks),
    cmocka_unit_test(t08_block_layouts),
    cmocka_unit_test(t08_int8_groups),
    cmocka_unit_test(t08_golden_pack),
    cmocka_unit_test(t08_pack_q8_0),
};
