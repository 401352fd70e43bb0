/* Chapters 1 to 4: platform, errors and progress, memory, random. */

/* ---- 1 platform ---- */

/* Promise: sizes are 64 bits wide, and hbk_real is what the build says. */
static void t01_types(void **state)
{
    (void)state;
    assert_int_equal(sizeof(hbk_int), 8);
    assert_true((hbk_int)-1 < 0);
#ifdef HBK_REAL_DOUBLE
    assert_int_equal(sizeof(hbk_real), sizeof(double));
#else
    assert_int_equal(sizeof(hbk_real), sizeof(float));
#endif
}

/* Promise: sizes are multiplied exactly or not at all. */
static void t01_mul_checks_overflow(void **state)
{
    (void)state;
    hbk_int x = -7;
    assert_true(hbk__mul(&x, 3000000000, 3000000000));
    assert_int_equal(x, 9000000000000000000);
    assert_true(hbk__mul(&x, INT64_MAX, 1));
    assert_int_equal(x, INT64_MAX);
    assert_true(hbk__mul(&x, INT64_MAX, 0));
    assert_int_equal(x, 0);
    x = -7;
    assert_false(hbk__mul(&x, INT64_MAX / 2 + 1, 2));
    assert_false(hbk__mul(&x, 2, INT64_MAX / 2 + 1));
    assert_false(hbk__mul(&x, -1, 2));
    assert_false(hbk__mul(&x, 2, -1));
    assert_int_equal(x, -7); /* untouched on failure */
}

/* Promise: a parallel region inside a caller's parallel region stays on its one thread. */
static void t01_threads(void **state)
{
    (void)state;
    assert_true(hbk__n_threads() >= 1);
    assert_int_equal(hbk__thread(), 0);
    int wrong = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(2) reduction(+ : wrong)
    if (omp_get_num_threads() > 1) wrong += hbk__n_threads() != 1;
#endif
    assert_int_equal(wrong, 0);
}

/* ---- 2 errors, progress, cancel ---- */

/* Promise: every code has a sentence of its own, and a number that is no code has one too. */
static void t02_texts(void **state)
{
    (void)state;
    for (int i = 0; i < HBK_ERROR_COUNT; i++) {
        const char *text = hbk_error_text((hbk_code)i);
        assert_true(strlen(text) > 5);
        for (int j = 0; j < i; j++) assert_string_not_equal(text, hbk_error_text((hbk_code)j));
    }
    assert_string_equal(hbk_error_text(HBK_ERROR_NONE), "no error");
    assert_string_equal(hbk_error_text(HBK_ERROR_COUNT), "unknown error");
    assert_string_equal(hbk_error_text((hbk_code)99), "unknown error");
}

/* Promise: hbk_fail sets every field, returns false, and is fine with nobody listening. */
static void t02_fail(void **state)
{
    (void)state;
    hbk_error err;
    memset(&err, 'x', sizeof err);
    assert_false(hbk_fail(&err, HBK_ERROR_SHAPE, "tensor %s: %d rows", "wq", 3));
    assert_int_equal(err.code, HBK_ERROR_SHAPE);
    assert_string_equal(err.message, "tensor wq: 3 rows");
    assert_string_equal(err.file, "");
    assert_int_equal(err.line, 0);
    assert_false(hbk_fail(NULL, HBK_ERROR_SHAPE, "nobody listens"));
    assert_false(hbk_fail_at(NULL, HBK_ERROR_FORMAT, "a.json", 1, "nobody listens"));
}

/* Promise: the place leads the message: file and line, the file alone, or nothing. */
static void t02_fail_at(void **state)
{
    (void)state;
    hbk_error err;
    assert_false(hbk_fail_at(&err, HBK_ERROR_FORMAT, "seed.jsonl", 12, "no \"%s\"", "output"));
    assert_int_equal(err.code, HBK_ERROR_FORMAT);
    assert_string_equal(err.message, "seed.jsonl:12: no \"output\"");
    assert_string_equal(err.file, "seed.jsonl");
    assert_int_equal(err.line, 12);
    assert_false(hbk_fail_at(&err, HBK_ERROR_FORMAT, "m.gguf", 0, "cut short"));
    assert_string_equal(err.message, "m.gguf: cut short");
    assert_int_equal(err.line, 0);
    assert_false(hbk_fail_at(&err, HBK_ERROR_FORMAT, NULL, 3, "cut short"));
    assert_string_equal(err.message, "cut short");
}

/* Promise: a message is one line that fits, whatever a file's name or text holds. */
static void t02_one_line(void **state)
{
    (void)state;
    hbk_error err;
    char long_name[2000];
    memset(long_name, 'n', sizeof long_name);
    long_name[sizeof long_name - 1] = 0;
    hbk_fail(&err, HBK_ERROR_DATA, "a\nb\tc\x1b[31m");
    assert_string_equal(err.message, "a b c [31m");
    hbk_fail(&err, HBK_ERROR_DATA, "%s", long_name);
    assert_int_equal(strlen(err.message), sizeof err.message - 1);
    hbk_fail_at(&err, HBK_ERROR_DATA, long_name, 7, "%s", long_name);
    assert_int_equal(strlen(err.file), sizeof err.file - 1);
    assert_int_equal(strlen(err.message), sizeof err.message - 1);
    assert_non_null(strstr(err.message, "n:7: nn"));
}

/* Promise: an error may be reported again with more around it: arguments may point into it. */
static void t02_wraps_itself(void **state)
{
    (void)state;
    hbk_error err;
    hbk_fail_at(&err, HBK_ERROR_FILE, "w.bin", 0, "absent");
    hbk_fail_at(&err, err.code, err.file, err.line, "loading: %s", err.message);
    assert_string_equal(err.message, "w.bin: loading: w.bin: absent");
    assert_string_equal(err.file, "w.bin");
}

typedef struct t02_seen {
    int calls, stop_at;
    char last[400];
} t02_seen;

static bool t02_watch(void *ctx, const char *stage, hbk_int done, hbk_int total, const char *unit,
                      const char *note)
{
    t02_seen *s = (t02_seen *)ctx;
    snprintf(s->last, sizeof s->last, "%s %lld/%lld %s: %s", stage, (long long)done, (long long)total, unit,
             note);
    return ++s->calls != s->stop_at;
}

/* Promise: progress arrives as it was sent, and returning false cancels with an error that says so. */
static void t02_progress(void **state)
{
    (void)state;
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    t02_seen seen = {0, 2, ""};
    hbk_progress p, silent;
    memset(&silent, 0, sizeof silent);
    p = silent;
    p.call = t02_watch;
    p.ctx = &seen;
    assert_true(hbk_report(NULL, "s", 1, 2, "u", &err, "x"));
    assert_true(hbk_report(&silent, "s", 1, 2, "u", &err, "x"));
    assert_true(hbk_report(&p, "finetune", 3, 10, "steps", &err, "loss %.2f", 1.5));
    assert_string_equal(seen.last, "finetune 3/10 steps: loss 1.50");
    assert_int_equal(err.code, HBK_ERROR_NONE);
    check_error(hbk_report(&p, "finetune", 4, 10, "steps", &err, "%s", ""), HBK_ERROR_CANCELLED, "finetune");
    assert_string_equal(seen.last, "finetune 4/10 steps: ");
    seen.calls = 0, seen.stop_at = 1;
    assert_false(hbk_report(&p, "finetune", 4, 10, "steps", NULL, "%s", ""));
}

/* ---- 3 memory ---- */

static bool all_are(const unsigned char *p, size_t n, int value)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] != value) return false;
    return true;
}

/* Promise: hbk_alloc gives zeroed blocks on 64-byte boundaries, whatever the size, even none. */
static void t03_zeroed_and_aligned(void **state)
{
    (void)state;
    fault f;
    hbk_error err;
    hbk_allocator *a = fault_init(&f, -1); /* its memory comes dirty */
    for (hbk_int n = 0; n < 300; n += 7) {
        unsigned char *p = (unsigned char *)hbk_alloc(a, n, 3, &err);
        unsigned char *q = (unsigned char *)hbk_alloc(NULL, n, 3, &err);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 64, 0);
        assert_true(all_are(p, (size_t)n * 3, 0));
        hbk_free(a, p);
        assert_non_null(q);
        assert_int_equal((uintptr_t)q % 64, 0);
        hbk_free(NULL, q);
    }
    hbk_free(NULL, NULL);
    fault_check_clean(&f);
}

/* Promise: hbk_realloc keeps what both sizes hold, and allocates from NULL. */
static void t03_realloc_keeps(void **state)
{
    (void)state;
    fault f;
    hbk_error err;
    hbk_allocator *a = fault_init(&f, -1);
    int *p = (int *)hbk_realloc(a, NULL, 10, sizeof *p, &err);
    assert_non_null(p);
    for (int i = 0; i < 10; i++) p[i] = i;
    p = (int *)hbk_realloc(a, p, 1000, sizeof *p, &err);
    assert_non_null(p);
    assert_int_equal((uintptr_t)p % 64, 0);
    for (int i = 0; i < 10; i++) assert_int_equal(p[i], i);
    p = (int *)hbk_realloc(a, p, 4, sizeof *p, &err);
    for (int i = 0; i < 4; i++) assert_int_equal(p[i], i);
    hbk_free(a, p);
    fault_check_clean(&f);
}

/* Promise: when a block cannot grow, it stays as it was and still belongs to the caller. */
static void t03_failed_realloc_keeps(void **state)
{
    (void)state;
    fault f;
    hbk_error err;
    hbk_allocator *a = fault_init(&f, 1);
    unsigned char *p = (unsigned char *)hbk_alloc(a, 100, 1, &err);
    assert_non_null(p);
    memset(p, 0x5a, 100);
    size_t live = a->live;
    check_error(hbk_realloc(a, p, 200, 1, &err), HBK_ERROR_MEMORY, "200 bytes");
    assert_int_equal(a->live, live);
    assert_true(all_are(p, 100, 0x5a));
    hbk_free(a, p);
    fault_check_clean(&f);
}

/* Promise: sizes that no memory could hold are range errors, found before the hook is asked. */
static void t03_overflow(void **state)
{
    (void)state;
    static const struct {
        hbk_int count;
        size_t size;
        const char *part;
    } cases[] = {
        {INT64_MAX, 2, "elements of 2 bytes"}, {INT64_MAX, 1, "address"},         {-1, 8, "-1 elements"},
        {2, SIZE_MAX, "address"},              {INT64_MAX / 8 + 1, 8, "address"},
    };
    fault f;
    hbk_error err;
    hbk_allocator *a = fault_init(&f, -1);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        volatile size_t size = cases[i].size; /* or the compiler warns of what is tested here */
        check_error(hbk_alloc(a, cases[i].count, size, &err), HBK_ERROR_RANGE, cases[i].part);
        check_error(hbk_realloc(a, NULL, cases[i].count, size, &err), HBK_ERROR_RANGE, cases[i].part);
        assert_null(hbk_alloc(a, cases[i].count, size, NULL));
    }
    assert_int_equal(f.seen, 0);
    fault_check_clean(&f);
}

/* Promise: more than the machine has is an error of memory, not a crash. */
static void t03_out_of_memory(void **state)
{
    (void)state;
    hbk_error err;
    hbk_allocator a;
    memset(&a, 0, sizeof a);
    check_error(hbk_alloc(&a, INT64_MAX / 4, 1, &err), HBK_ERROR_MEMORY, "out of memory");
    assert_int_equal(a.live, 0);
}

/* Promise: the limit bounds the bytes alive, a refusal leaves no trace, and freeing makes room again. */
static void t03_limit(void **state)
{
    (void)state;
    fault f;
    hbk_error err;
    hbk_allocator *a = fault_init(&f, -1);
    a->limit = 10000;
    void *p = hbk_alloc(a, 6000, 1, &err);
    assert_non_null(p);
    size_t live = a->live;
    long seen = f.seen;
    assert_in_range(live, 6000, 6300);
    check_error(hbk_alloc(a, 6000, 1, &err), HBK_ERROR_MEMORY, "limit of 10000 bytes");
    assert_int_equal(a->live, live);
    assert_int_equal(f.seen, seen); /* the hook was not even asked */
    hbk_free(a, p);
    assert_int_equal(a->live, 0);
    p = hbk_alloc(a, 9000, 1, &err);
    assert_non_null(p);
    hbk_free(a, p);
    fault_check_clean(&f);
}

/* Promise: live is what is alive, peak the most that ever was. */
static void t03_live_and_peak(void **state)
{
    (void)state;
    fault f;
    hbk_allocator *a = fault_init(&f, -1);
    void *p = hbk_alloc(a, 1000, 8, NULL), *q = hbk_alloc(a, 500, 8, NULL);
    size_t both = a->live;
    assert_int_equal(both, f.live);
    assert_in_range(both, 12000, 12600);
    hbk_free(a, p);
    assert_in_range(a->live, 4000, 4300);
    assert_int_equal(a->peak, both);
    hbk_free(a, q);
    assert_int_equal(a->peak, both);
    fault_check_clean(&f);
}

/* Promise: the counts hold when threads allocate from one allocator. */
static void t03_threads_count(void **state)
{
    (void)state;
    fault f;
    hbk_allocator *a = fault_init(&f, -1);
    int failures = 0;
#pragma omp parallel for reduction(+ : failures)
    for (int i = 0; i < 2000; i++) {
        void *p = hbk_alloc(a, i % 50, 8, NULL);
        failures += !p;
        hbk_free(a, p);
    }
    assert_int_equal(failures, 0);
    assert_int_equal(f.seen, 2000);
    fault_check_clean(&f);
}

typedef struct t03_array {
    int *data;
    hbk_int n, cap;
} t03_array;

/* Grows an array element by element, as chapters 5 and 7 do. */
static bool t03_grow(void *ctx, hbk_allocator *a, hbk_error *err)
{
    t03_array x = {NULL, 0, 0};
    bool ok = true;
    for (; ok && x.n < *(const int *)ctx; x.n++) {
        void *data = x.data; /* hbk__reserve takes any array as void */
        ok = hbk__reserve(a, &data, &x.cap, x.n + 1, sizeof *x.data, err);
        x.data = (int *)data;
        if (ok) x.data[x.n] = (int)x.n;
    }
    for (int i = 0; ok && i < x.n; i++) assert_int_equal(x.data[i], i);
    hbk_free(a, x.data);
    return ok;
}

/* Promise: growth at least doubles, keeps its content, and cleans up wherever memory runs out. */
static void t03_reserve(void **state)
{
    (void)state;
    int n = 1000;
    assert_int_equal(fault_sweep(t03_grow, &n), 7); /* 16, 32 ... 1024 */
}

/* ---- 4 random ---- */

/* Promise: the generator is xoshiro256** as published: its own first numbers from the state 1, 2, 3, 4. */
static void t04_xoshiro_vector(void **state)
{
    (void)state;
    static const uint64_t want[] = {11520u, 0u, 1509978240u, 1215971899390074240u, 1216172134540287360u,
                                    607988272756665600u, 16172922978634559625u, 8476171486693032832u,
                                    10595114339597558777u, 2904607092377533576u};
    hbk_rng r = {{1, 2, 3, 4}};
    for (int i = 0; i < 10; i++) assert_true(hbk_rng_next(&r) == want[i]);
}

/* Promise: its state is filled by splitmix64 as published. */
static void t04_splitmix_vector(void **state)
{
    (void)state;
    uint64_t x = 1234567;
    assert_true(hbk__splitmix(&x) == 6457827717110365317u);
    assert_true(hbk__splitmix(&x) == 3203168211198807973u);
    assert_true(hbk__splitmix(&x) == 9817491932198370423u);
}

/* Promise: hbk_hash is 64-bit FNV-1a, and goes on where it was. */
static void t04_hash_vector(void **state)
{
    (void)state;
    assert_true(hbk_hash(0, "", 0) == 0xcbf29ce484222325u);
    assert_true(hbk_hash(0, "a", 1) == 0xaf63dc4c8601ec8cu);
    assert_true(hbk_hash(0, "foobar", 6) == 0x85944171f73967e8u);
    assert_true(hbk_hash(hbk_hash(0, "foo", 3), "bar", 3) == 0x85944171f73967e8u);
}

/* Promise: an address always names the same stream, and each part of the address matters. */
static void t04_addressed(void **state)
{
    (void)state;
    hbk_rng a = hbk_rng_at(1, "augment", 7), b = hbk_rng_at(1, "augment", 7);
    hbk_rng others[] = {hbk_rng_at(2, "augment", 7), hbk_rng_at(1, "curate", 7), hbk_rng_at(1, "augment", 8),
                        hbk_rng_at(7, "augment", 1), hbk_rng_at(0, "", 0)};
    uint64_t first = hbk_rng_next(&a);
    assert_true(first == hbk_rng_next(&b));
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        assert_true(hbk_rng_next(&others[i]) != first);
    for (int i = 0; i < 100; i++) assert_true(hbk_rng_next(&a) == hbk_rng_next(&b));
}

/* Promise: neighbouring records get unrelated streams: the first number of 1000 ids is uniform, too.
   Mean of 1000 uniforms: 0.5 with deviation 0.0091; the bar is four of these. The seed is fixed. */
static void t04_neighbours(void **state)
{
    (void)state;
    double sum = 0, product = 0, last = 0;
    for (uint64_t id = 0; id < 1000; id++) {
        hbk_rng r = hbk_rng_at(1, "stage", id);
        double u = hbk_rng_uniform(&r) - 0.5;
        sum += u;
        product += u * last;
        last = u;
    }
    check_near(sum / 1000, 0, 0.037);
    check_near(product / 1000, 0, 0.011); /* uncorrelated: deviation 1 / (12 sqrt(1000)) */
}

/* Promise: uniform numbers lie in [0, 1) and fill it. 20000 draws: deviation of the mean 0.00204, of each
   of ten equal bins 42; the bars are about four of these. */
static void t04_uniform(void **state)
{
    (void)state;
    enum { N = 20000 };
    hbk_rng r = hbk_rng_at(3, "uniform", 0);
    double sum = 0;
    int bins[10] = {0};
    for (int i = 0; i < N; i++) {
        double u = hbk_rng_uniform(&r);
        assert_true(u >= 0 && u < 1);
        sum += u;
        bins[(int)(u * 10)]++;
    }
    check_near(sum / N, 0.5, 0.008);
    for (int i = 0; i < 10; i++) assert_in_range(bins[i], N / 10 - 170, N / 10 + 170);
}

/* Promise: hbk_rng_below is unbiased. With n = 3 * 2^61 a plain remainder would give the lower third of the
   range half of all draws (2^64 holds it 2.67 times: 3 / 8 against 1 / 3). */
static void t04_below(void **state)
{
    (void)state;
    enum { N = 20000 };
    hbk_rng r = hbk_rng_at(4, "below", 0);
    hbk_int n = 3 * ((hbk_int)1 << 61);
    int low = 0, counts[6] = {0};
    for (int i = 0; i < N; i++) {
        hbk_int x = hbk_rng_below(&r, n);
        assert_true(x >= 0 && x < n);
        low += x < n / 3;
    }
    assert_in_range(low, N / 3 - 270, N / 3 + 270); /* deviation 67 */
    for (int i = 0; i < N; i++) counts[hbk_rng_below(&r, 6)]++;
    for (int i = 0; i < 6; i++) assert_in_range(counts[i], N / 6 - 210, N / 6 + 210); /* deviation 53 */
    for (int i = 0; i < 100; i++) assert_int_equal(hbk_rng_below(&r, 1), 0);
}

/* Promise: normal numbers have mean 0, deviation 1, no skew and the normal's fourth moment, 3.
   Deviations over 20000 draws: 0.007, 0.01, 0.027, 0.069; the bars are about four of these. */
static void t04_normal(void **state)
{
    (void)state;
    enum { N = 20000 };
    hbk_rng r = hbk_rng_at(5, "normal", 0);
    double moment[5] = {0};
    for (int i = 0; i < N; i++) {
        double x = hbk_rng_normal(&r), power = 1;
        assert_true(isfinite(x));
        for (int k = 1; k <= 4; k++) moment[k] += (power *= x) / N;
    }
    check_near(moment[1], 0, 0.03);
    check_near(moment[2], 1, 0.04);
    check_near(moment[3], 0, 0.11);
    check_near(moment[4] / 3, 1, 0.1);
}

/* Promise: a shuffle is a permutation, and each of the six orders of three comes equally often. */
static void t04_shuffle(void **state)
{
    (void)state;
    enum { N = 50, ROUNDS = 6000 };
    hbk_rng r = hbk_rng_at(6, "shuffle", 0);
    hbk_int a[N];
    int counts[27] = {0}, seen[N] = {0}, moved = 0, orders = 0;
    for (hbk_int i = 0; i < N; i++) a[i] = i;
    hbk_rng_shuffle(&r, a, N);
    for (hbk_int i = 0; i < N; i++) {
        seen[a[i]]++;
        moved += a[i] != i;
    }
    for (int i = 0; i < N; i++) assert_int_equal(seen[i], 1);
    assert_true(moved > N / 2);
    for (int i = 0; i < ROUNDS; i++) {
        hbk_int b[3] = {0, 1, 2};
        hbk_rng_shuffle(&r, b, 3);
        counts[b[0] * 9 + b[1] * 3 + b[2]]++;
    }
    for (int i = 0; i < 27; i++) {
        if (!counts[i]) continue;
        assert_in_range(counts[i], ROUNDS / 6 - 120, ROUNDS / 6 + 120); /* deviation 29 */
        orders++;
    }
    assert_int_equal(orders, 6);
    hbk_rng_shuffle(&r, a, 0); /* nothing to shuffle is fine */
    hbk_rng_shuffle(&r, a, 1);
}

static const struct CMUnitTest tests_01[] = {
    cmocka_unit_test(t01_types),
    cmocka_unit_test(t01_mul_checks_overflow),
    cmocka_unit_test(t01_threads),
    cmocka_unit_test(t02_texts),
    cmocka_unit_test(t02_fail),
    cmocka_unit_test(t02_fail_at),
    cmocka_unit_test(t02_one_line),
    cmocka_unit_test(t02_wraps_itself),
    cmocka_unit_test(t02_progress),
    cmocka_unit_test(t03_zeroed_and_aligned),
    cmocka_unit_test(t03_realloc_keeps),
    cmocka_unit_test(t03_failed_realloc_keeps),
    cmocka_unit_test(t03_overflow),
    cmocka_unit_test(t03_out_of_memory),
    cmocka_unit_test(t03_limit),
    cmocka_unit_test(t03_live_and_peak),
    cmocka_unit_test(t03_threads_count),
    cmocka_unit_test(t03_reserve),
    cmocka_unit_test(t04_xoshiro_vector),
    cmocka_unit_test(t04_splitmix_vector),
    cmocka_unit_test(t04_hash_vector),
    cmocka_unit_test(t04_addressed),
    cmocka_unit_test(t04_neighbours),
    cmocka_unit_test(t04_uniform),
    cmocka_unit_test(t04_below),
    cmocka_unit_test(t04_normal),
    cmocka_unit_test(t04_shuffle),
};
