/* Chapter 9: every backward is the derivative of its forward, and adds.

   The loss is sum(out * R) with a fixed random R: with sum(out) alone the derivative through a softmax or a
   norm would vanish, and a wrong backward would pass. In float this is a smoke test; built with
   HBK_REAL_DOUBLE the bar is 1e-6. */
#include "test.h"

#define T09_STEP (sizeof(hbk_real) == 8 ? 1e-5 : 1e-2)
#define T09_BAR  (sizeof(hbk_real) == 8 ? 1e-6 : 2e-2)

enum { T09_MOST = 4096 };

/* A layer under test: `forward` fills out (n_out) from the inputs; `backward` adds to their gradients. */
typedef struct t09_case {
    const char *name;
    int n_inputs;
    hbk_int n_in[4], n_out;
    void (*forward)(hbk_real *out, hbk_real **in);
    void (*backward)(hbk_real **din, const hbk_real *dout, hbk_real **in);
} t09_case;

static void t09_random(hbk_real *x, hbk_int n, uint64_t seed)
{
    hbk_rng r = hbk_rng_at(seed, "layers", 0);
    for (hbk_int i = 0; i < n; i++) x[i] = (hbk_real)hbk_rng_normal(&r);
}

static double t09_loss(const t09_case *c, hbk_real **in, const hbk_real *R)
{
    hbk_real out[T09_MOST];
    c->forward(out, in);
    double sum = 0;
    for (hbk_int i = 0; i < c->n_out; i++) sum += (double)out[i] * (double)R[i];
    return sum;
}

static void t09_check(const t09_case *c)
{
    static hbk_real in_[4][T09_MOST], d_[4][T09_MOST], R[T09_MOST];
    hbk_real *in[4] = {in_[0], in_[1], in_[2], in_[3]}, *d[4] = {d_[0], d_[1], d_[2], d_[3]};
    memset(d_, 0, sizeof d_);
    for (int k = 0; k < c->n_inputs; k++) t09_random(in[k], c->n_in[k], 10 + (uint64_t)k);
    t09_random(R, c->n_out, 99);
    c->backward(d, R, in);
    double worst = 0;
    for (int k = 0; k < c->n_inputs; k++) {
        double largest = 0;
        for (hbk_int i = 0; i < c->n_in[k]; i++) largest = fmax(largest, fabs((double)d[k][i]));
        assert_true(largest > 0); /* a gradient that is zero everywhere proves nothing */
        for (hbk_int i = 0; i < c->n_in[k]; i++) {
            hbk_real x = in[k][i];
            double h = T09_STEP;
            in[k][i] = (hbk_real)((double)x + h);
            double up = t09_loss(c, in, R);
            in[k][i] = (hbk_real)((double)x - h);
            double down = t09_loss(c, in, R);
            in[k][i] = x;
            double numeric = (up - down) / (2 * h),
                   error = fabs(numeric - (double)d[k][i]) / fmax(largest, 1);
            worst = fmax(worst, error);
            if (error > T09_BAR)
                fail_msg("%s: input %d element %lld: gradient %g, by differences %g", c->name, k,
                         (long long)i, (double)d[k][i], numeric);
        }
    }
    hbk_real before[4][T09_MOST];
    memcpy(before, d_, sizeof before);
    c->backward(d, R, in); /* twice doubles: backward functions add */
    for (int k = 0; k < c->n_inputs; k++)
        for (hbk_int i = 0; i < c->n_in[k]; i++) check_near(d[k][i], 2 * before[k][i], 1e-5);
    print_message("    %-12s worst relative error %.1e\n", c->name, worst);
}

/* sizes all differ, none a multiple of 8; dropped again at the end of this file */
#define N 11
#define C 7
#define V 13
#define H 6
#define K 2
#define D 4

static void t09_rms_f(hbk_real *out, hbk_real **in)
{
    hbk_rms_norm_forward(out, in[0], in[1], N, C, 1e-5);
}
static void t09_rms_b(hbk_real **d, const hbk_real *dout, hbk_real **in)
{
    hbk_rms_norm_backward(d[0], d[1], dout, in[0], in[1], N, C, 1e-5);
}

static const int32_t t09_tokens[N] = {3, 0, 12, 3, 7, 7, 1, 2, 3, 11, 5}; /* some more than once */
static void t09_embed_f(hbk_real *out, hbk_real **in)
{
    hbk_matrix m = {HBK_REAL, V, C, in[0], NULL, 0, false};
    hbk_embed_forward(out, &m, t09_tokens, N);
}
static void t09_embed_b(hbk_real **d, const hbk_real *dout, hbk_real **in)
{
    hbk_matrix m = {HBK_REAL, V, C, d[0], NULL, 0, false};
    (void)in;
    hbk_embed_backward(&m, dout, t09_tokens, N);
}

static void t09_rope_table(hbk_real *table)
{
    static const double inv_freq[D / 2] = {1, 0.1};
    static const int32_t pos[N] = {0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5};
    hbk_rope_table(table, pos, inv_freq, N, D);
}
static void t09_rope_f(hbk_real *out, hbk_real **in)
{
    hbk_real table[N * D];
    t09_rope_table(table);
    memcpy(out, in[0], sizeof(hbk_real) * N * H * D);
    hbk_rope(out, table, N, H, D, false);
}
static void t09_rope_b(hbk_real **d, const hbk_real *dout, hbk_real **in)
{
    hbk_real table[N * D], turned[N * H * D];
    (void)in;
    t09_rope_table(table);
    memcpy(turned, dout, sizeof turned);
    hbk_rope(turned, table, N, H, D, true);
    for (int i = 0; i < N * H * D; i++) d[0][i] += turned[i];
}

/* Two packed sequences, of 5 and 6 tokens. */
static void t09_spans(hbk_span spans[2], const hbk_real *k, const hbk_real *v)
{
    memset(spans, 0, 2 * sizeof *spans);
    spans[0].T = 5;
    spans[1].q_start = 5;
    spans[1].T = 6;
    for (int s = 0; s < 2; s++) {
        spans[s].k = k + spans[s].q_start * K * D;
        spans[s].v = v + spans[s].q_start * K * D;
    }
}
static int t09_threads(void)
{
    return hbk__n_threads() > 64 ? 64 : hbk__n_threads();
}
static hbk_real *t09_work(hbk_int keys, hbk_int size, int threads)
{
    return HBK__NEW(NULL, hbk_real, hbk_attention_work(keys, size, threads), NULL);
}
static void t09_att_f(hbk_real *out, hbk_real **in)
{
    hbk_span spans[2];
    hbk_real *work = t09_work(6, D, t09_threads());
    t09_spans(spans, in[1], in[2]);
    hbk_attention_forward(out, NULL, in[0], spans, 2, H, K, D, work, t09_threads());
    hbk_free(NULL, work);
}
static void t09_att_b(hbk_real **d, const hbk_real *dout, hbk_real **in)
{
    hbk_span spans[2];
    hbk_real out[N * H * D], lse[N * H], *work = t09_work(6, D, t09_threads());
    t09_spans(spans, in[1], in[2]);
    hbk_attention_forward(out, lse, in[0], spans, 2, H, K, D, work, t09_threads());
    hbk_attention_backward(d[0], d[1], d[2], dout, out, lse, in[0], spans, 2, H, K, D, work, t09_threads());
    hbk_free(NULL, work);
}

static void t09_swiglu_f(hbk_real *out, hbk_real **in)
{
    hbk_swiglu_forward(out, in[0], in[1], N * C);
}
static void t09_swiglu_b(hbk_real **d, const hbk_real *dout, hbk_real **in)
{
    hbk_swiglu_backward(d[0], d[1], dout, in[0], in[1], N * C);
}

static const int32_t t09_targets[N] = {0, 12, 4, 4, 7, 1, 2, 9, 10, 3, 6};
/* one output per row: its negative log-likelihood */
static void t09_ce_f(hbk_real *out, hbk_real **in)
{
    double nll[N];
    hbk_cross_entropy(NULL, nll, in[0], t09_targets, N, V, 1);
    for (int i = 0; i < N; i++) out[i] = (hbk_real)nll[i];
}
static void t09_ce_b(hbk_real **d, const hbk_real *dout, hbk_real **in)
{
    hbk_real dz[V];
    for (int i = 0; i < N; i++) {
        hbk_cross_entropy(dz, NULL, in[0] + i * V, t09_targets + i, 1, V, (double)dout[i]);
        for (int j = 0; j < V; j++) d[0][i * V + j] += dz[j];
    }
}

static void t09_drop_f(hbk_real *out, hbk_real **in)
{
    hbk_dropout(out, in[0], N * C, 0.3, 77);
}
static void t09_drop_b(hbk_real **d, const hbk_real *dout, hbk_real **in)
{
    hbk_real back[N * C];
    (void)in;
    hbk_dropout(back, dout, N * C, 0.3, 77);
    for (int i = 0; i < N * C; i++) d[0][i] += back[i];
}

static hbk_lora t09_lora(hbk_real **p)
{
    hbk_lora l;
    l.in = C;
    l.out = 5;
    l.rank = 3;
    l.scale = (hbk_real)1.5;
    l.a = p[1];
    l.b = p[2];
    return l;
}
static void t09_lora_f(hbk_real *out, hbk_real **in)
{
    hbk_lora l = t09_lora(in);
    hbk_real xa[N * 3];
    memset(out, 0, sizeof(hbk_real) * N * 5);
    hbk_lora_forward(out, xa, in[0], &l, N);
}
static void t09_lora_b(hbk_real **d, const hbk_real *dout, hbk_real **in)
{
    hbk_lora l = t09_lora(in), dl = t09_lora(d);
    hbk_real xa[N * 3], dxa[N * 3], y[N * 5];
    memset(y, 0, sizeof y);
    hbk_lora_forward(y, xa, in[0], &l, N);
    hbk_lora_backward(d[0], &dl, dxa, dout, in[0], xa, &l, N);
}

/* Promise: each backward pass is the derivative of its forward pass, and accumulates. */
static void t09_gradients(void **state)
{
    (void)state;
    static const t09_case cases[] = {
        {"embedding", 1, {V * C, 0, 0, 0}, N * C, t09_embed_f, t09_embed_b},
        {"rms norm", 2, {N * C, C, 0, 0}, N * C, t09_rms_f, t09_rms_b},
        {"rope", 1, {N * H * D, 0, 0, 0}, N * H * D, t09_rope_f, t09_rope_b},
        {"attention", 3, {N * H * D, N * K * D, N * K * D, 0}, N * H * D, t09_att_f, t09_att_b},
        {"swiglu", 2, {N * C, N * C, 0, 0}, N * C, t09_swiglu_f, t09_swiglu_b},
        {"cross-entropy", 1, {N * V, 0, 0, 0}, N, t09_ce_f, t09_ce_b},
        {"dropout", 1, {N * C, 0, 0, 0}, N * C, t09_drop_f, t09_drop_b},
        {"lora", 3, {N * C, 3 * C, 5 * 3, 0}, N * 5, t09_lora_f, t09_lora_b},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) t09_check(&cases[i]);
}

/* Promise: a sequence longer than a query block, and queries that follow cached keys, give what a plain
   loop over all scores gives. */
static void t09_attention_blocks(void **state)
{
    (void)state;
    enum { T = 150, PAST = 21 };
    hbk_int keys = T + PAST;
    hbk_real *q = HBK__NEW(NULL, hbk_real, T * H * D, NULL),
             *k = HBK__NEW(NULL, hbk_real, keys * K * D, NULL);
    hbk_real *v = HBK__NEW(NULL, hbk_real, keys * K * D, NULL),
             *out = HBK__NEW(NULL, hbk_real, T * H * D, NULL);
    hbk_real *work = HBK__NEW(NULL, hbk_real, hbk_attention_work(keys, D, t09_threads()), NULL);
    t09_random(q, T * H * D, 1);
    t09_random(k, keys * K * D, 2);
    t09_random(v, keys * K * D, 3);
    for (hbk_int n = 1; n <= T; n = n < 4 ? n + 1 : n * 3) { /* 1, 2, 3 queries take another road */
        hbk_span s = {0, n, PAST, k, v, 0, NULL, NULL, 0, 0, HBK_F32};
        hbk_attention_forward(out, NULL, q, &s, 1, H, K, D, work, t09_threads());
        for (hbk_int i = 0; i < n; i++)
            for (hbk_int h = 0; h < H; h++) {
                double want[D] = {0}, total = 0;
                for (hbk_int j = 0; j <= PAST + i; j++) {
                    double score = 0;
                    for (hbk_int d = 0; d < D; d++)
                        score += (double)q[(i * H + h) * D + d] * (double)k[(j * K + h / (H / K)) * D + d];
                    double p = exp(score / 2); /* sqrt(D) = 2 */
                    total += p;
                    for (hbk_int d = 0; d < D; d++) want[d] += p * (double)v[(j * K + h / (H / K)) * D + d];
                }
                for (hbk_int d = 0; d < D; d++) check_near(out[(i * H + h) * D + d], want[d] / total, 1e-5);
            }
    }
    void *all[] = {q, k, v, out, work};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) hbk_free(NULL, all[i]);
}

/* The same gradients by the formulas of 9.4, row by row in double. d: of q, k, v. */
static void t09_attention_plain(double *const d[3], const hbk_real *dout, hbk_real *const in[3],
                                const hbk_span *s, hbk_int heads, hbk_int kv, hbk_int size)
{
    double *p = HBK__NEW(NULL, double, 2 * s->T, NULL), *dp = p + s->T;
    for (hbk_int i = 0; i < s->T; i++)
        for (hbk_int h = 0; h < heads; h++) {
            hbk_int row = ((s->q_start + i) * heads + h) * size;
            hbk_int key = (s->q_start * kv + h / (heads / kv)) * size;
            double total = 0, delta = 0;
            for (hbk_int j = 0; j <= i; j++) {
                const hbk_real *k = in[1] + key + j * kv * size, *v = in[2] + key + j * kv * size;
                p[j] = dp[j] = 0;
                for (hbk_int x = 0; x < size; x++) {
                    p[j] += (double)in[0][row + x] * (double)k[x] / sqrt((double)size);
                    dp[j] += (double)dout[row + x] * (double)v[x];
                }
                p[j] = exp(p[j]);
                total += p[j];
            }
            for (hbk_int j = 0; j <= i; j++) delta += (p[j] /= total) * dp[j];
            for (hbk_int j = 0; j <= i; j++)
                for (hbk_int x = 0; x < size; x++) {
                    hbk_int at = key + j * kv * size + x;
                    double ds = p[j] * (dp[j] - delta) / sqrt((double)size);
                    d[0][row + x] += ds * (double)in[1][at];
                    d[1][at] += ds * (double)in[0][row + x];
                    d[2][at] += p[j] * (double)dout[row + x];
                }
        }
    hbk_free(NULL, p);
}

/* Spans of these lengths: the backward by 1, 2 and 3 threads, each twice, against the plain one. */
static void t09_backward_case(const hbk_int *lengths, hbk_int n, hbk_int heads, hbk_int kv, hbk_int size)
{
    hbk_span spans[8];
    hbk_int rows = 0, most = 0;
    memset(spans, 0, sizeof spans);
    for (hbk_int i = 0; i < n; rows += lengths[i++]) {
        spans[i].q_start = rows;
        spans[i].T = lengths[i];
        most = HBK__MAX(most, lengths[i]);
    }
    hbk_int Q = rows * heads * size, KV = rows * kv * size, all = Q + 2 * KV;
    hbk_real *q = HBK__NEW(NULL, hbk_real, 3 * Q + 2 * KV + rows * heads, NULL), *k = q + Q, *v = k + KV;
    hbk_real *out = v + KV, *dout = out + Q, *lse = dout + Q, *in[3] = {q, k, v};
    hbk_real *got = HBK__NEW(NULL, hbk_real, 2 * all, NULL), *work = t09_work(most, size, 3);
    double *want = HBK__NEW(NULL, double, all, NULL), *const d[3] = {want, want + Q, want + Q + KV};
    t09_random(q, Q + 2 * KV, 1);
    t09_random(dout, Q, 2);
    for (hbk_int i = 0; i < n; i++) {
        spans[i].k = k + spans[i].q_start * kv * size;
        spans[i].v = v + spans[i].q_start * kv * size;
        t09_attention_plain(d, dout, in, &spans[i], heads, kv, size);
    }
    hbk_attention_forward(out, lse, q, spans, n, heads, kv, size, work, 1);
    for (int turn = 0; turn < 6; turn++) {
        hbk_real *g = got + turn % 2 * all;
        for (hbk_int i = 0; i < all; i++) g[i] = 1; /* a backward adds */
        hbk_attention_backward(g, g + Q, g + Q + KV, dout, out, lse, q, spans, n, heads, kv, size, work,
                               1 + turn / 2);
        if (turn % 2) assert_memory_equal(got, got + all, (size_t)all * sizeof *got);
        for (hbk_int i = 0; i < all; i++) check_near(g[i], 1 + want[i], 2e-4 * fmax(1, fabs(want[i])));
    }
    hbk_free(NULL, q);
    hbk_free(NULL, got);
    hbk_free(NULL, work);
    hbk_free(NULL, want);
}

/* Promise: the backward of attention is that of the plain formulas for sequences of several tiles of scores,
   alone and beside short ones, for any group of heads, by any number of threads, and to the byte the same
   when it is done again. */
static void t09_attention_backward(void **state)
{
    (void)state;
    static const hbk_int one[] = {333}, mixed[] = {3, 290, 64, 1, 65}, alike[] = {70, 70, 70, 70, 70};
    t09_backward_case(one, 1, 6, 2, 6);
    t09_backward_case(mixed, 5, 3, 1, 5);
    t09_backward_case(alike, 5, 4, 4, 8);
    t09_backward_case(alike, 1, 300, 1, 2); /* a group of more rows than a tile has */
    t09_backward_case(mixed, 2, 20, 2, 3);
}

/* One span's place in the caches of t09_attention_shared: how long its own past is, what it shares. */
typedef struct t09_place {
    hbk_int T, past, shared;
} t09_place;

/* The same span over `bf16`, what hbk_pack makes of the reals from `k` on. */
static hbk_span t09_as_bf16(hbk_span s, const hbk_real *k, const uint16_t *bf16)
{
    s.dtype = HBK_BF16;
    s.k = bf16 + ((const hbk_real *)s.k - k);
    s.v = bf16 + ((const hbk_real *)s.v - k);
    if (s.shared) s.shared_k = bf16 + ((const hbk_real *)s.shared_k - k);
    if (s.shared) s.shared_v = bf16 + ((const hbk_real *)s.shared_v - k);
    return s;
}

/* Attention of spans over caches of (keys, kv, size), or (kv, keys, size) where apart, of which a span reads
   its first `shared` rows in one of the last two; again, with those copied into its own; and both once more
   with all of them, which are chosen so that nothing is lost, as bf16. */
static void t09_shared_case(const t09_place *at, hbk_int n, hbk_int heads, hbk_int kv, hbk_int size,
                            bool apart, uint64_t seed)
{
    hbk_int rows = 0, keys = 0;
    hbk_span spans[4][16];
    for (hbk_int i = 0; i < n; i++) rows += at[i].T, keys = HBK__MAX(keys, at[i].past + at[i].T);
    hbk_int row = apart ? size : kv * size, head = apart ? keys * size : size, cache = keys * kv * size;
    hbk_int n_q = rows * heads * size, n_cache = (n + 2) * cache;
    hbk_real *q = HBK__NEW(NULL, hbk_real, n_q, NULL), *k = HBK__NEW(NULL, hbk_real, 4 * n_cache, NULL);
    hbk_real *out = HBK__NEW(NULL, hbk_real, 6 * n_q, NULL), *lse = HBK__NEW(NULL, hbk_real, 6 * n_q, NULL);
    uint16_t *bf16 = HBK__NEW(NULL, uint16_t, 4 * n_cache, NULL);
    hbk_matrix unpack = {HBK_BF16, 1, 2 * n_cache, bf16, NULL, 0, false};
    hbk_real *work = HBK__NEW(NULL, hbk_real, hbk_attention_work(keys, size, t09_threads()), NULL);
    t09_random(q, n_q, seed);
    t09_random(k, 2 * n_cache, seed + 1);
    hbk_pack(bf16, HBK_BF16, k, 2 * n_cache);
    hbk_matrix_unpack(k, &unpack, 0, 1);
    memcpy(k + 2 * n_cache, k, (size_t)(2 * n_cache) * sizeof *k);
    for (hbk_int i = 0, start = 0; i < n; start += at[i++].T)
        for (int copied = 0; copied < 2; copied++) {
            hbk_real *own = k + 2 * copied * n_cache + i * cache, *from = k + (n + i % 3 / 2) * cache;
            hbk_span s = {start, at[i].T, at[i].past, own, own + n_cache, 0, NULL, NULL, 0, 0, HBK_F32};
            for (hbk_int j = 0; j < at[i].shared * kv * size; j++) {
                hbk_int place = j / (kv * size) * row + j / size % kv * head + j % size;
                own[place] = copied ? from[place] : (hbk_real)NAN;
                own[n_cache + place] = copied ? from[n_cache + place] : (hbk_real)NAN;
            }
            if (!copied && at[i].shared)
                s.shared = at[i].shared, s.shared_k = from, s.shared_v = from + n_cache;
            if (apart) s.row = row, s.head = head;
            spans[copied][i] = s;
            spans[2 + copied][i] = t09_as_bf16(s, k, bf16);
        }
    hbk_pack(bf16, HBK_BF16, k, 4 * n_cache);
    for (int way = 0; way < 6; way++) /* shared, again, copied */
        hbk_attention_forward(out + way * n_q, lse + way * n_q, q, spans[way / 3 * 2 + way % 3 / 2], n, heads,
                              kv, size, work, t09_threads());
    for (int type = 0; type < 2; type++)
        assert_memory_equal(out + 3 * type * n_q, out + (3 * type + 1) * n_q, (size_t)n_q * sizeof *out);
    for (hbk_int j = 0; j < 2 * n_q; j++) check_near(out[3 * n_q + j / n_q * 2 * n_q + j % n_q], out[j % n_q],
                                                     1e-5);
    for (hbk_int j = 0; j < rows * heads; j++) check_near(lse[3 * n_q + j], lse[j], 1e-5);
    for (hbk_int j = 0; j < n_q; j++) check_near(out[j], out[2 * n_q + j], 1e-5);
    for (hbk_int j = 0; j < rows * heads; j++) check_near(lse[j], lse[2 * n_q + j], 1e-5);
    for (hbk_int i = 0; i < 2 * n; i++) { /* a sequence that shares nothing does not see its neighbours */
        const hbk_span *s = &spans[i / n * 2 + 1][i % n];
        hbk_int first = s->q_start * heads * size, many = s->T * heads * size;
        hbk_attention_forward(out, NULL, q, s, 1, heads, kv, size, work, t09_threads());
        assert_memory_equal(out + first, out + (2 + 3 * (i / n)) * n_q + first, (size_t)many * sizeof *out);
    }
    void *all[] = {q, k, out, lse, work, bf16};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) hbk_free(NULL, all[i]);
}

/* Promise: spans that have their beginnings in one place give what they give with copies of their own, with
   any sizes and groups of heads, side by side with others and with themselves in pieces of several queries;
   what lies in their own caches instead is not looked at. Caches may lie by position or by head. Keys and
   values as bf16 give what the same as reals give. */
static void t09_attention_shared(void **state)
{
    (void)state;
    static const t09_place few[] = {{1, 40, 33}, {1, 33, 33}, {1, 57, 33}, {1, 12, 0}, {1, 33, 7},
                                    {2, 41, 33}, {1, 90, 33}, {3, 33, 33}, {1, 0, 0},  {1, 34, 33}};
    static const t09_place many[] = {{70, 35, 33}, {1, 40, 33}, {5, 33, 33}, {66, 0, 0}, {4, 1, 1}};
    static const hbk_int heads[][3] = {{3, 3, 7}, {9, 3, 64}, {8, 1, 16}, {1, 1, 1}, {70, 1, 5},
                                      {4, 2, 17}, {70, 1, 32}, {4, 4, 96}, {5, 1, 64}};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        t09_shared_case(few, 10, heads[i][0], heads[i][1], heads[i][2], i % 2, 100 + i);
        t09_shared_case(many, 5, heads[i][0], heads[i][1], heads[i][2], i % 2, 200 + i);
    }
    hbk_rng r = hbk_rng_at(7, "places", 0);
    for (int round = 0; round < 40; round++) {
        t09_place at[16];
        hbk_int n = 1 + hbk_rng_below(&r, 16), shared = 1 + hbk_rng_below(&r, 60);
        hbk_int group = 1 + hbk_rng_below(&r, 8), kv = 1 + hbk_rng_below(&r, 3);
        hbk_int size = 1 + hbk_rng_below(&r, 40);
        for (hbk_int i = 0; i < n; i++) {
            at[i].T = hbk_rng_below(&r, 4) ? 1 : 1 + hbk_rng_below(&r, 9);
            at[i].shared = hbk_rng_below(&r, 4) ? shared : hbk_rng_below(&r, 5);
            at[i].past = at[i].shared + hbk_rng_below(&r, 30);
        }
        t09_shared_case(at, n, group * kv, kv, size, round % 2, 300 + (uint64_t)round);
    }
}

/* Promise: rotation keeps lengths, and scores depend on the distance of positions alone. */
static void t09_rope_distance(void **state)
{
    (void)state;
    static const double inv_freq[2] = {1, 0.01};
    hbk_real q[4], k[4], first = 0;
    for (int shift = 0; shift < 50; shift += 7) {
        int32_t pos[2] = {(int32_t)(9 + shift), (int32_t)(4 + shift)};
        hbk_real table[8], dot = 0, length = 0;
        t09_random(q, 4, 1);
        t09_random(k, 4, 2);
        for (int i = 0; i < 4; i++) length += q[i] * q[i];
        hbk_rope_table(table, pos, inv_freq, 2, 4);
        hbk_rope(q, table, 1, 1, 4, false);
        hbk_rope(k, table + 4, 1, 1, 4, false);
        for (int i = 0; i < 4; i++) dot += q[i] * k[i], length -= q[i] * q[i];
        if (shift == 0) first = dot;
        check_near(dot, first, 1e-5);
        check_near(length, 0, 1e-5);
    }
}

/* Promise: exp is within 2e-7 relative over the range that a softmax uses, and 0 far below. */
static void t09_exp(void **state)
{
    (void)state;
    for (double x = -86; x < 88; x += 0.0137) {
        double got = (double)hbk__exp((hbk_real)(float)x), want = exp((double)(float)x);
        assert_true(fabs(got - want) <= 2e-7 * want);
    }
    assert_true(hbk__exp(-1000) == 0);
}

/* Promise: dropout keeps 1 - p of the elements, scaled so that the mean stays; another seed, another mask. */
static void t09_dropout(void **state)
{
    (void)state;
    enum { M = 100000 };
    hbk_real *x = HBK__NEW(NULL, hbk_real, M, NULL), *y = HBK__NEW(NULL, hbk_real, M, NULL);
    hbk_real *z = HBK__NEW(NULL, hbk_real, M, NULL);
    for (int i = 0; i < M; i++) x[i] = 1;
    hbk_dropout(y, x, M, 0.1, 5);
    hbk_dropout(z, x, M, 0.1, 6);
    double mean = 0;
    int zeros = 0, differ = 0;
    for (int i = 0; i < M; i++) mean += (double)y[i] / M, zeros += y[i] == 0, differ += y[i] != z[i];
    check_near(mean, 1, 0.005);
    assert_in_range(zeros, M / 10 - 500, M / 10 + 500);
    assert_in_range(differ, M * 17 / 100, M * 19 / 100); /* 2 p (1 - p) */
    hbk_free(NULL, x);
    hbk_free(NULL, y);
    hbk_free(NULL, z);
}

static const struct CMUnitTest tests_09[] = {
    cmocka_unit_test(t09_gradients),     cmocka_unit_test(t09_attention_blocks),
    cmocka_unit_test(t09_rope_distance), cmocka_unit_test(t09_exp),
    cmocka_unit_test(t09_dropout),       cmocka_unit_test(t09_attention_shared),
    cmocka_unit_test(t09_attention_backward),
};

#undef N
#undef C
#undef V
#undef H
#undef K
#undef D
