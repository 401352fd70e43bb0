/* Chapter 13: cached steps against the whole model, requests served together against requests alone, sampling
   against its probabilities, scores against log-softmax sums. */
#include "test.h"
#include "fault.h"

/* hidden and feed-forward sizes that differ, grouped heads, an untied head; id 2 ends a text */
enum { T13_V = 50, T13_LONG = 700, T13_ROOM = 720 };
#define T13_BAR (sizeof(hbk_real) == 8 ? 1e-12 : 1e-5)

static hbk_config t13_config(void)
{
    hbk_config c;
    memset(&c, 0, sizeof c);
    c.n_layers = 2;
    c.n_heads = 4;
    c.n_kv_heads = 2;
    c.head_dim = 6;
    c.dim = 20;
    c.ffn_dim = 28;
    c.vocab_size = T13_V;
    c.context_length = 1024;
    c.rms_norm_eps = 1e-5;
    c.rope_theta = 10000;
    c.eos[0] = 2;
    c.n_eos = 1;
    return c;
}

/* Random weights, made larger: attention that looks at single tokens and logits that differ, so that a wrong
   position or a wrong cache row is seen. */
static hbk_model *t13_model_of(hbk_int head_dim)
{
    hbk_error err;
    hbk_config c = t13_config();
    c.head_dim = head_dim;
    hbk_model *m = hbk_model_random(&c, 5, NULL, &err);
    check_ok(m);
    char name[96];
    hbk_matrix t;
    for (hbk_int i = 0; hbk_tensor_at(m, i, name, &t); i++) {
        hbk_real factor = strstr(name, "lm_head") ? 30 : i == 0 || t.rows == 1 ? 1 : 2;
        for (hbk_int j = 0; j < t.rows * t.cols; j++) ((hbk_real *)t.data)[j] *= factor;
    }
    return m;
}

static hbk_model *t13_model(void)
{
    return t13_model_of(t13_config().head_dim);
}

static hbk_adapter *t13_adapter(const hbk_model *m)
{
    hbk_error err;
    hbk_adapter *w = hbk_adapter_new(&m->config, 3, 6, HBK_ALL_SLOTS, 1, NULL, &err);
    check_ok(w);
    hbk_rng r = hbk_rng_at(4, "b", 0);
    for (hbk_int i = 0; i < w->n_values; i++) w->values[i] = (hbk_real)(0.2 * hbk_rng_normal(&r));
    return w;
}

static void t13_ids(int32_t *ids, hbk_int n, uint64_t seed)
{
    hbk_rng r = hbk_rng_at(seed, "ids", 0);
    for (hbk_int i = 0; i < n; i++) ids[i] = 3 + (int32_t)hbk_rng_below(&r, T13_V - 3);
}

static hbk_session *t13_session_of(const hbk_model *m, const hbk_adapter *w, hbk_int n_slots, hbk_dtype cache)
{
    hbk_error err;
    hbk_session *s = hbk_session_new(m, w, n_slots, T13_ROOM, cache, NULL, &err);
    check_ok(s);
    return s;
}

static hbk_session *t13_session(const hbk_model *m, const hbk_adapter *w, hbk_int n_slots)
{
    return t13_session_of(m, w, n_slots, HBK_F32);
}

/* Logits (n, V) of every position from one forward pass, the yardstick; to be freed. */
static hbk_real *t13_full(const hbk_model *m, const hbk_adapter *w, const int32_t *ids, hbk_int n)
{
    hbk_error err;
    hbk_int start[2] = {0, n};
    hbk_batch b = {n, 1, ids, NULL, start};
    hbk_acts *a = hbk_acts_new(m, w, n, n, HBK_KEEP_NONE, NULL, &err);
    hbk_real *logits = HBK__NEW(NULL, hbk_real, n * T13_V, &err);
    check_ok(hbk_model_logits(a, m, &b, w, logits, &err));
    hbk_acts_free(a);
    return logits;
}

/* x (n) as hbk_pack and hbk_matrix_unpack leave it. */
static void t13_round(hbk_real *x, hbk_int n)
{
    uint16_t *bf16 = HBK__NEW(NULL, uint16_t, n, NULL);
    hbk_matrix w = {HBK_BF16, 1, n, bf16, NULL, 0, false};
    hbk_pack(bf16, HBK_BF16, x, n);
    hbk_matrix_unpack(x, &w, 0, 1);
    hbk_free(NULL, bf16);
}

/* The same of a model without adapter, layer by layer, whose keys and values are rounded to bf16. */
static hbk_real *t13_rounded_full(const hbk_model *m, const int32_t *ids, hbk_int n)
{
    const hbk_config *c = &m->config;
    hbk_int Q = c->n_heads * c->head_dim, KV = c->n_kv_heads * c->head_dim, most = Q + c->dim + c->ffn_dim;
    hbk_real *b[8], *logits = HBK__NEW(NULL, hbk_real, n * c->vocab_size, NULL);
    hbk_real *work = HBK__NEW(NULL, hbk_real, hbk_attention_work(n, c->head_dim, hbk__n_threads()), NULL);
    int32_t pos[T13_LONG] = {0};
    for (int i = 0; i < 8; i++) b[i] = HBK__NEW(NULL, hbk_real, n * most, NULL);
    for (hbk_int i = 0; i < n; i++) pos[i] = (int32_t)i;
    hbk_real *x = b[0], *norm = b[1], *q = b[2], *k = b[3], *v = b[4], *att = b[5], *up = b[6], *table = b[7];
    hbk_rope_table(table, pos, m->inv_freq, n, c->head_dim);
    hbk_embed_forward(x, &m->embed, ids, n);
    for (hbk_int l = 0; l < c->n_layers; l++) {
        const hbk_matrix *w = m->layers[l].w;
        hbk_span span = {0, n, 0, k, v, 0, NULL, NULL, 0, 0, HBK_F32};
        for (int i = 2; i < 7; i++) memset(b[i], 0, (size_t)(n * most) * sizeof **b);
        hbk_rms_norm_forward(norm, x, m->layers[l].attn_norm, n, c->dim, c->rms_norm_eps);
        hbk_matmul(q, norm, &w[HBK_Q], n, NULL);
        hbk_matmul(k, norm, &w[HBK_K], n, NULL);
        hbk_matmul(v, norm, &w[HBK_V], n, NULL);
        hbk_rope(q, table, n, c->n_heads, c->head_dim, false);
        hbk_rope(k, table, n, c->n_kv_heads, c->head_dim, false);
        t13_round(k, n * KV);
        t13_round(v, n * KV);
        hbk_attention_forward(att, NULL, q, &span, 1, c->n_heads, c->n_kv_heads, c->head_dim, work,
                              hbk__n_threads());
        hbk_matmul(x, att, &w[HBK_O], n, NULL);
        hbk_rms_norm_forward(norm, x, m->layers[l].ffn_norm, n, c->dim, c->rms_norm_eps);
        memset(q, 0, (size_t)(n * most) * sizeof *q);
        hbk_matmul(q, norm, &w[HBK_GATE], n, NULL);
        hbk_matmul(up, norm, &w[HBK_UP], n, NULL);
        hbk_swiglu_forward(q, q, up, n * c->ffn_dim);
        hbk_matmul(x, q, &w[HBK_DOWN], n, NULL);
    }
    hbk_rms_norm_forward(norm, x, m->final_norm, n, c->dim, c->rms_norm_eps);
    hbk_matmul(logits, norm, &m->head, n, NULL);
    for (int i = 0; i < 8; i++) hbk_free(NULL, b[i]);
    hbk_free(NULL, work);
    return logits;
}

/* Fails unless rows of logits agree, relative to the largest; returns the difference. */
static double t13_compare(const char *what, const hbk_real *x, const hbk_real *want, hbk_int rows)
{
    double worst = 0, scale = 1;
    for (hbk_int i = 0; i < rows * T13_V; i++) scale = fmax(scale, fabs((double)want[i]));
    for (hbk_int i = 0; i < rows * T13_V; i++) {
        double difference = fabs((double)x[i] - (double)want[i]) / scale;
        if (!(difference <= T13_BAR))
            fail_msg("%s: logit %d of row %d is %.9g, expected %.9g", what, (int)(i % T13_V),
                     (int)(i / T13_V), (double)x[i], (double)want[i]);
        worst = fmax(worst, difference);
    }
    return worst;
}

/* Appends n ids to one slot; returns the logits after the last. */
static void t13_feed(hbk_session *s, hbk_int slot, const int32_t *ids, hbk_int n, hbk_real *logits)
{
    hbk_error err;
    hbk_feed f = {slot, ids, n};
    check_ok(hbk_session_feed(s, &f, 1, false, logits, &err));
}

/* ---- feeding ----------------------------------------------------------------------- */

/* Promise: a text fed at once, longer than one pass, or as a prompt and then token by token, has the logits
   of one forward pass over all of it, with an adapter and without; all = true gives every row. */
static void t13_steps(void **state)
{
    (void)state;
    static hbk_real rows[T13_LONG * T13_V];
    hbk_error err;
    int32_t ids[T13_LONG];
    hbk_real one[T13_V];
    t13_ids(ids, T13_LONG, 1);
    hbk_model *m = t13_model();
    hbk_adapter *w = t13_adapter(m);
    assert_true(T13_LONG > HBK__FEED_TOKENS);
    for (int variant = 0; variant < 2; variant++) {
        hbk_real *want = t13_full(m, variant ? w : NULL, ids, T13_LONG);
        hbk_session *s = t13_session(m, variant ? w : NULL, 2);
        hbk_feed f = {0, ids, T13_LONG};
        check_ok(hbk_session_feed(s, &f, 1, true, rows, &err));
        double worst = t13_compare("at once", rows, want, T13_LONG);
        t13_feed(s, 1, ids, 7, one);
        worst = fmax(worst, t13_compare("prompt", one, want + 6 * T13_V, 1));
        for (hbk_int i = 7; i < 100; i++) {
            t13_feed(s, 1, ids + i, 1, one);
            worst = fmax(worst, t13_compare("a step", one, want + i * T13_V, 1));
        }
        t13_feed(s, 1, ids + 100, T13_LONG - 100, one);
        worst = fmax(worst, t13_compare("a long piece", one, want + (T13_LONG - 1) * T13_V, 1));
        assert_int_equal(hbk_session_length(s, 0), T13_LONG);
        assert_int_equal(hbk_session_length(s, 1), T13_LONG);
        print_message("    %-12s largest difference %.1e\n", variant ? "adapter" : "base", worst);
        hbk_session_free(s);
        hbk_free(NULL, want);
    }
    hbk_adapter_free(w);
    hbk_model_free(m);
}

/* Promise: sequences of different length and past, fed in one call that takes several passes and in another
   order than their slots, have the logits that each has alone. */
static void t13_ragged(void **state)
{
    (void)state;
    enum { N = 4 };
    static hbk_real rows[N * 300 * T13_V];
    static const hbk_int first[N] = {1, 20, 3, 290}, second[N] = {250, 1, 280, 9}, slot[N] = {2, 0, 3, 1};
    hbk_error err;
    hbk_model *m = t13_model();
    hbk_session *s = t13_session(m, NULL, N);
    int32_t ids[N][300];
    hbk_real *want[N], last[N * T13_V];
    hbk_feed feeds[N];
    for (int i = 0; i < N; i++) {
        t13_ids(ids[i], 300, 10 + (uint64_t)i);
        want[i] = t13_full(m, NULL, ids[i], 300);
        feeds[i].slot = slot[i];
        feeds[i].tokens = ids[i];
        feeds[i].n = first[i];
    }
    check_ok(hbk_session_feed(s, feeds, N, false, last, &err));
    for (int i = 0; i < N; i++) {
        t13_compare("last row", last + i * T13_V, want[i] + (first[i] - 1) * T13_V, 1);
        feeds[i].tokens = ids[i] + first[i];
        feeds[i].n = second[i];
    }
    check_ok(hbk_session_feed(s, feeds, N, true, rows, &err));
    hbk_int at = 0;
    for (int i = 0; i < N; i++) {
        t13_compare("every row", rows + at * T13_V, want[i] + first[i] * T13_V, second[i]);
        at += second[i];
        assert_int_equal(hbk_session_length(s, slot[i]), first[i] + second[i]);
        feeds[i].tokens += second[i];
        feeds[i].n = 1;
    }
    check_ok(hbk_session_feed(s, feeds, N, false, last, &err));
    for (int i = 0; i < N; i++) {
        t13_compare("a step together", last + i * T13_V, want[i] + (first[i] + second[i]) * T13_V, 1);
        hbk_free(NULL, want[i]);
    }
    hbk_session_free(s);
    hbk_model_free(m);
}

/* Promise: a forked or rewound sequence goes on like one fed afresh, and its origin is not touched. */
static void t13_fork_rewind(void **state)
{
    (void)state;
    hbk_model *m = t13_model();
    hbk_session *s = t13_session(m, NULL, 3);
    int32_t a[40], b[40];
    hbk_real one[T13_V];
    t13_ids(a, 40, 21);
    t13_ids(b, 40, 22);
    memcpy(b, a, 15 * sizeof *b); /* b leaves a after 15 ids */
    assert_int_not_equal(a[15], b[15]);
    hbk_real *want_a = t13_full(m, NULL, a, 40), *want_b = t13_full(m, NULL, b, 40);
    t13_feed(s, 0, a, 30, one);
    t13_feed(s, 2, b + 20, 20, one); /* what the fork overwrites */
    hbk_session_fork(s, 2, 0, 15);
    assert_int_equal(hbk_session_length(s, 2), 15);
    assert_int_equal(hbk_session_length(s, 0), 30);
    t13_feed(s, 2, b + 15, 25, one);
    t13_compare("the fork", one, want_b + 39 * T13_V, 1);
    t13_feed(s, 0, a + 30, 10, one);
    t13_compare("its origin", one, want_a + 39 * T13_V, 1);
    hbk_session_rewind(s, 0, 15);
    assert_int_equal(hbk_session_length(s, 0), 15);
    for (hbk_int i = 15; i < 40; i++) t13_feed(s, 0, b + i, 1, one);
    t13_compare("after a rewind", one, want_b + 39 * T13_V, 1);
    hbk_session_rewind(s, 0, 0);
    t13_feed(s, 0, a, 40, one);
    t13_compare("from the start", one, want_a + 39 * T13_V, 1);
    hbk_free(NULL, want_a);
    hbk_free(NULL, want_b);
    hbk_session_free(s);
    hbk_model_free(m);
}

/* Largest difference of n logits, relative to the largest of them. */
static double t13_apart(const hbk_real *x, const hbk_real *want, hbk_int n)
{
    double worst = 0, scale = 1;
    for (hbk_int i = 0; i < n; i++) {
        double difference = fabs((double)x[i] - (double)want[i]);
        worst = difference <= worst ? worst : difference; /* NAN stays */
        scale = fmax(scale, fabs((double)want[i]));
    }
    return worst / scale;
}

/* Promise: with a cache of bf16 the logits are those of a model whose keys and values are rounded, and not
   those of the model itself: of a text at once, as a prompt and steps, of forks and of rewound slots. Where
   two ways of adding up differ in a last bit, a key may be rounded up in one of them and down in the other:
   that moves logits by far less than the rounding itself. */
static void t13_bf16_cache(void **state)
{
    (void)state;
    enum { N = 200 };
    static const hbk_int sizes[] = {6, 32}; /* of a head: the second has loops of its own */
    static hbk_real rows[N * T13_V];
    for (int size = 0; size < 2; size++) {
        hbk_error err;
        hbk_model *m = t13_model_of(sizes[size]);
        hbk_session *s = t13_session_of(m, NULL, 3, HBK_BF16);
        int32_t ids[N], other[N];
        hbk_real one[T13_V];
        t13_ids(ids, N, 31);
        t13_ids(other, N, 32);
        memcpy(other, ids, 60 * sizeof *ids);
        hbk_real *want = t13_rounded_full(m, ids, N), *want_other = t13_rounded_full(m, other, N);
        hbk_real *exact = t13_full(m, NULL, ids, N);
        hbk_feed f = {0, ids, N};
        check_ok(hbk_session_feed(s, &f, 1, true, rows, &err));
        double loss = t13_apart(rows, exact, N * T13_V), worst = t13_apart(rows, want, N * T13_V);
        t13_feed(s, 1, ids, 50, one);
        worst = fmax(worst, t13_apart(one, want + 49 * T13_V, T13_V));
        for (hbk_int i = 50; i < N; i++) {
            t13_feed(s, 1, ids + i, 1, one);
            worst = fmax(worst, t13_apart(one, want + i * T13_V, T13_V));
        }
        hbk_session_fork(s, 2, 1, 60);
        t13_feed(s, 2, other + 60, N - 60, one);
        worst = fmax(worst, t13_apart(one, want_other + (N - 1) * T13_V, T13_V));
        hbk_session_rewind(s, 1, 60);
        for (hbk_int i = 60; i < N; i++) {
            t13_feed(s, 1, other + i, 1, one);
            worst = fmax(worst, t13_apart(one, want_other + i * T13_V, T13_V));
        }
        print_message("    heads of %-3d rounding costs %.1e, largest difference %.1e\n", (int)sizes[size],
                      loss, worst);
        assert_true(loss > 1e-3);
        assert_true(worst < (sizeof(hbk_real) == 8 ? 1e-12 : loss / 10));
        hbk_free(NULL, want);
        hbk_free(NULL, want_other);
        hbk_free(NULL, exact);
        hbk_session_free(s);
        hbk_model_free(m);
    }
}

/* Promise: a cache of bf16 takes two bytes for each element, and all else of a session is the same. */
static void t13_bf16_memory(void **state)
{
    (void)state;
    size_t live[2];
    hbk_error err;
    hbk_model *m = t13_model();
    const hbk_config *c = &m->config;
    for (int k = 0; k < 2; k++) {
        hbk_allocator a;
        memset(&a, 0, sizeof a);
        hbk_session *s = hbk_session_new(m, NULL, 5, T13_ROOM, k ? HBK_BF16 : HBK_F32, &a, &err);
        check_ok(s);
        live[k] = a.live;
        hbk_session_free(s);
        assert_int_equal(a.live, 0);
    }
    size_t elements = (size_t)(2 * c->n_layers * c->n_kv_heads * c->head_dim * 6 * T13_ROOM);
    assert_int_equal(live[0] - live[1], elements * (sizeof(hbk_real) - 2));
    hbk_model_free(m);
}

/* Promise: an id beyond the vocabulary or a text beyond the room is an error, even in the last of several
   feeds, and then nothing was appended anywhere. */
static void t13_refusals(void **state)
{
    (void)state;
    hbk_error err;
    hbk_model *m = t13_model();
    hbk_session *s = t13_session(m, NULL, 2);
    static int32_t ids[T13_ROOM + 1];
    hbk_real out[2 * T13_V], want[T13_V];
    t13_ids(ids, T13_ROOM + 1, 31);
    t13_feed(s, 0, ids, 10, out);
    hbk_feed feeds[2] = {{0, ids + 10, 5}, {1, ids, 5}};
    int32_t bad[5] = {3, 4, 5, T13_V, 6};
    feeds[1].tokens = bad;
    check_error(hbk_session_feed(s, feeds, 2, false, out, &err), HBK_ERROR_RANGE, "token 3 is id 50");
    bad[3] = -1;
    check_error(hbk_session_feed(s, feeds, 2, false, out, &err), HBK_ERROR_RANGE, "id -1, expected 0 to 49");
    feeds[1].tokens = ids;
    feeds[1].n = T13_ROOM + 1;
    check_error(hbk_session_feed(s, feeds, 2, false, out, &err), HBK_ERROR_RANGE, "721 tokens after 0");
    hbk_feed over = {0, ids, T13_ROOM - 9};
    check_error(hbk_session_feed(s, &over, 1, false, out, &err), HBK_ERROR_RANGE, "711 tokens after 10");
    assert_int_equal(hbk_session_length(s, 0), 10);
    assert_int_equal(hbk_session_length(s, 1), 0);
    t13_feed(s, 0, ids + 10, 5, out);
    t13_feed(s, 1, ids, 15, want);
    t13_compare("after the errors", out, want, 1);
    check_error(hbk_session_new(m, NULL, 0, 10, HBK_F32, NULL, &err), HBK_ERROR_RANGE, "0 sequences");
    check_error(hbk_session_new(m, NULL, 1, 0, HBK_F32, NULL, &err), HBK_ERROR_RANGE, "of 0 tokens");
    check_error(hbk_session_new(m, NULL, INT64_MAX / 4, 100, HBK_F32, NULL, &err), HBK_ERROR_RANGE,
                "sequences of 100 tokens is not possible");
    check_error(hbk_session_new(m, NULL, 1, 100, HBK_Q8_0, NULL, &err), HBK_ERROR_OPTION, "a cache of q8_0");
    hbk_session_free(s);
    hbk_model_free(m);
}

/* ---- requests ---------------------------------------------------------------------- */

enum { T13_REQUESTS = 7, T13_PROMPT = 40 };

typedef struct t13_texts {
    int32_t prompt[T13_REQUESTS][T13_PROMPT];
    hbk_request r[T13_REQUESTS];
} t13_texts;

/* Prompts of different lengths that have their first `shared` ids in common. */
static void t13_requests(t13_texts *t, hbk_int shared)
{
    static const hbk_int length[T13_REQUESTS] = {13, 40, 14, 22, 13, 31, 17};
    memset(t, 0, sizeof *t);
    for (int i = 0; i < T13_REQUESTS; i++) {
        t13_ids(t->prompt[i], T13_PROMPT, 40 + (uint64_t)i);
        t13_ids(t->prompt[i], shared, 39);
        t->prompt[i][shared] = 3 + i; /* and not one more */
        t->r[i].prompt = t->prompt[i];
        t->r[i].n_prompt = length[i];
        t->r[i].rng = hbk_rng_at(9, "generate", (uint64_t)i);
    }
}

static void t13_requests_free(t13_texts *t)
{
    for (int i = 0; i < T13_REQUESTS; i++) hbk_tokens_free(&t->r[i].output);
}

static void t13_same_text(const char *what, const hbk_request *a, const hbk_request *b)
{
    if (a->output.n != b->output.n || a->finish != b->finish)
        fail_msg("%s: %d tokens, finish %d; alone %d tokens, finish %d", what, (int)a->output.n,
                 (int)a->finish, (int)b->output.n, (int)b->finish);
    for (hbk_int i = 0; i < a->output.n; i++)
        if (a->output.data[i] != b->output.data[i])
            fail_msg("%s: token %d is %d, alone %d", what, (int)i, (int)a->output.data[i],
                     (int)b->output.data[i]);
}

/* Each request in a session of its own: what all others must equal. */
static void t13_alone(const hbk_model *m, const hbk_adapter *w, t13_texts *t, hbk_int shared,
                      const hbk_sampling *o)
{
    hbk_error err;
    t13_requests(t, shared);
    for (int i = 0; i < T13_REQUESTS; i++) {
        hbk_session *s = t13_session(m, w, 1);
        check_ok(hbk_generate(s, &t->r[i], 1, o, NULL, &err));
        hbk_session_free(s);
    }
}

/* Promise: greedy texts are the same alone, in a batch, through fewer slots than requests and with a shared
   beginning, which is computed once when it is worth it. */
static void t13_together(void **state)
{
    (void)state;
    static const hbk_int shared[] = {0, 7, 8, 12}, used[] = {0, 0, 8, 12};
    static t13_texts alone, batch;
    hbk_error err;
    hbk_model *m = t13_model();
    hbk_adapter *w = t13_adapter(m);
    hbk_sampling o = {0, 1, 0, 64, -1, 0, 1};
    for (int k = 0; k < 4; k++) {
        const hbk_adapter *adapter = k % 2 ? w : NULL;
        t13_alone(m, adapter, &alone, shared[k], &o);
        for (hbk_int slots = 1; slots <= T13_REQUESTS; slots++) {
            hbk_session *s = t13_session(m, adapter, slots);
            t13_requests(&batch, shared[k]);
            check_ok(hbk_generate(s, batch.r, T13_REQUESTS, &o, NULL, &err));
            for (int i = 0; i < T13_REQUESTS; i++) t13_same_text("greedy", &batch.r[i], &alone.r[i]);
            if (slots > 1) assert_int_equal(s->length[slots], used[k]); /* where the beginning is kept */
            t13_requests_free(&batch);
            hbk_session_free(s);
        }
        t13_requests_free(&alone);
    }
    hbk_adapter_free(w);
    hbk_model_free(m);
}

/* Promise: a sampled text depends on its prompt and its own stream, not on neighbours, order, slots or what
   the session served before; another stream gives another text. */
static void t13_neighbours(void **state)
{
    (void)state;
    static t13_texts alone, batch;
    hbk_error err;
    hbk_model *m = t13_model();
    hbk_sampling o = {0.9, 0.95, 0, 30, -1, 0, 1};
    t13_alone(m, NULL, &alone, 0, &o);
    hbk_session *s = t13_session(m, NULL, 3);
    int n_eos = 0;
    for (int round = 0; round < 3; round++) {
        t13_requests(&batch, 0);
        hbk_request mixed[T13_REQUESTS];
        for (int i = 0; i < T13_REQUESTS; i++) mixed[i] = batch.r[round == 1 ? T13_REQUESTS - 1 - i : i];
        if (round == 2) /* other neighbours */
            for (int i = 1; i < T13_REQUESTS; i += 2) mixed[i].rng = hbk_rng_at(10, "generate", (uint64_t)i);
        check_ok(hbk_generate(s, mixed, T13_REQUESTS, &o, NULL, &err));
        int others = 0;
        for (int i = 0; i < T13_REQUESTS; i++) {
            const hbk_request *want = &alone.r[round == 1 ? T13_REQUESTS - 1 - i : i];
            n_eos += want->finish == HBK_FINISH_EOS;
            if (round < 2 || i % 2 == 0) t13_same_text("sampled", &mixed[i], want);
            else
                others += mixed[i].output.n != want->output.n ||
                          memcmp(mixed[i].output.data, want->output.data, (size_t)want->output.n * 4) != 0;
            hbk_tokens_free(&mixed[i].output);
        }
        assert_int_equal(others, round == 2 ? T13_REQUESTS / 2 : 0);
    }
    assert_true(n_eos > 0 && n_eos < 3 * T13_REQUESTS); /* texts of different length were among them */
    t13_requests_free(&alone);
    hbk_session_free(s);
    hbk_model_free(m);
}

/* One greedy text of the first prompt. */
static hbk_request t13_one(hbk_session *s, t13_texts *t, const hbk_sampling *o)
{
    hbk_error err;
    t13_requests(t, 0);
    check_ok(hbk_generate(s, t->r, 1, o, NULL, &err));
    return t->r[0];
}

/* How many ids come before the first `id`. */
static hbk_int t13_before(const hbk_tokens *t, int32_t id)
{
    hbk_int n = 0;
    while (n < t->n && t->data[n] != id) n++;
    return n;
}

/* Promise: a text ends before any eos of the model or the stop id, at max_new, or when the room is full, and
   says why; a prompt that leaves no room is marked and the others are served. */
static void t13_finish(void **state)
{
    (void)state;
    static t13_texts t;
    hbk_error err;
    hbk_model *m = t13_model();
    hbk_session *s = t13_session(m, NULL, 2);
    hbk_sampling o = {0, 1, 0, 12, -1, 0, 1};
    m->config.n_eos = 0;
    hbk_request free_run = t13_one(s, &t, &o);
    assert_int_equal(free_run.finish, HBK_FINISH_LENGTH);
    assert_int_equal(free_run.output.n, 12);
    int32_t id = free_run.output.data[3];
    hbk_int n = t13_before(&free_run.output, id);
    for (int way = 0; way < 3; way++) { /* the only eos, the second of two, the stop id */
        m->config.n_eos = way == 2 ? 0 : way + 1;
        m->config.eos[0] = way == 0 ? id : -1;
        m->config.eos[1] = id;
        o.stop = way == 2 ? id : -1;
        hbk_request r = t13_one(s, &t, &o);
        assert_int_equal(r.finish, way == 2 ? HBK_FINISH_STOP : HBK_FINISH_EOS);
        assert_int_equal(r.output.n, n);
        assert_memory_equal(r.output.data, free_run.output.data, (size_t)n * sizeof(int32_t));
        hbk_tokens_free(&r.output);
    }
    m->config.n_eos = 0;
    o.stop = -1;
    hbk_session_free(s);

    s = hbk_session_new(m, NULL, 2, 22, HBK_F32, NULL, &err); /* prompts of 13, 40, 14 and 22 tokens */
    check_ok(s);
    t13_requests(&t, 0);
    check_ok(hbk_generate(s, t.r, 4, &o, NULL, &err));
    assert_int_equal(t.r[0].finish, HBK_FINISH_CONTEXT);
    assert_int_equal(t.r[0].output.n, 22 - 13 + 1); /* the last one is never fed */
    assert_memory_equal(t.r[0].output.data, free_run.output.data, 10 * sizeof(int32_t));
    assert_int_equal(t.r[2].output.n, 22 - 14 + 1);
    for (int i = 1; i < 4; i += 2) {
        assert_int_equal(t.r[i].finish, HBK_FINISH_TOO_LONG);
        assert_int_equal(t.r[i].output.n, 0);
    }
    t13_requests_free(&t);
    t13_requests(&t, 0);
    t.prompt[1][5] = T13_V;
    t.r[1].n_prompt = 13;
    check_error(hbk_generate(s, t.r, 2, &o, NULL, &err), HBK_ERROR_RANGE, "id 50");
    t13_requests_free(&t);
    hbk_tokens_free(&free_run.output);
    hbk_session_free(s);
    hbk_model_free(m);
}

typedef struct t13_heard {
    int32_t ids[T13_REQUESTS][30];
    hbk_int n[T13_REQUESTS], stop_at; /* request 2 is ended at its stop_at-th token */
} t13_heard;

static bool t13_on_token(void *ctx, hbk_int request, int32_t id)
{
    t13_heard *h = (t13_heard *)ctx;
    h->ids[request][h->n[request]++] = id;
    return request != 2 || h->n[2] < h->stop_at;
}

/* Promise: the stream hears every token of every request as it comes, may end one, and the others go on. */
static void t13_streaming(void **state)
{
    (void)state;
    static t13_texts alone, t;
    static t13_heard h;
    hbk_error err;
    hbk_model *m = t13_model();
    hbk_sampling o = {0, 1, 0, 20, -1, 0, 1};
    m->config.n_eos = 0;
    t13_alone(m, NULL, &alone, 0, &o);
    t13_requests(&t, 0);
    memset(&h, 0, sizeof h);
    h.stop_at = 4;
    hbk_stream stream = {t13_on_token, &h};
    hbk_session *s = t13_session(m, NULL, 3);
    check_ok(hbk_generate(s, t.r, T13_REQUESTS, &o, &stream, &err));
    for (int i = 0; i < T13_REQUESTS; i++) {
        assert_int_equal(t.r[i].output.n, i == 2 ? 4 : 20);
        assert_int_equal(h.n[i], t.r[i].output.n);
        assert_memory_equal(h.ids[i], t.r[i].output.data, (size_t)h.n[i] * sizeof(int32_t));
        assert_memory_equal(h.ids[i], alone.r[i].output.data, (size_t)h.n[i] * sizeof(int32_t));
    }
    assert_int_equal(t.r[2].finish, HBK_FINISH_CANCELLED);
    assert_int_equal(t.r[3].finish, HBK_FINISH_LENGTH);
    t13_requests_free(&t);
    t13_requests_free(&alone);
    hbk_session_free(s);
    hbk_model_free(m);
}

/* Scores in the session that is being served; ctx: the session, NULL once it was refused as it should be. */
static bool t13_score_meanwhile(void *ctx, hbk_int request, int32_t id)
{
    hbk_session **s = (hbk_session **)ctx;
    int32_t ids[2] = {3, 4};
    hbk_scoring item;
    hbk_error err;
    memset(&err, 0, sizeof err);
    memset(&item, 0, sizeof item);
    item.prompt = ids;
    item.continuation = ids + 1;
    item.n_prompt = item.n_continuation = 1;
    if (*s && !hbk_score(*s, &item, 1, &err) && strstr(err.message, "all 1 slots of the session")) *s = NULL;
    return request >= 0 && id >= 0;
}

/* Promise: scores that would take a slot from a request are refused by name, and the request goes on. */
static void t13_score_when_busy(void **state)
{
    (void)state;
    static t13_texts alone, t;
    hbk_error err;
    hbk_model *m = t13_model();
    hbk_sampling o = {0, 1, 0, 20, -1, 0, 1};
    m->config.n_eos = 0;
    t13_alone(m, NULL, &alone, 0, &o);
    t13_requests(&t, 0);
    hbk_session *s = t13_session(m, NULL, 1), *asked = s;
    hbk_stream stream = {t13_score_meanwhile, &asked};
    check_ok(hbk_generate(s, t.r, 1, &o, &stream, &err));
    assert_null(asked);
    t13_same_text("busy", &t.r[0], &alone.r[0]);
    t13_requests_free(&t);
    t13_requests_free(&alone);
    hbk_session_free(s);
    hbk_model_free(m);
}

/* ---- sampling ------------------------------------------------------------------------ */

/* Promise: temperature 0 takes the largest logit, of equals the one with the lower id, at any top_p. */
static void t13_greedy(void **state)
{
    (void)state;
    hbk_real logits[6] = {-3, 2, 5, 5, -1, 5};
    hbk_candidate scratch[6];
    hbk_sampling o = {0, 0.5, 2, 1, -1, 0, 1};
    assert_int_equal(hbk_sample(logits, 6, &o, NULL, scratch), 2);
    logits[5] = 5.5f;
    assert_int_equal(hbk_sample(logits, 6, &o, NULL, scratch), 5);
    for (int i = 0; i < 6; i++) logits[i] = -7;
    assert_int_equal(hbk_sample(logits, 6, &o, NULL, scratch), 0);
}

/* Scales p so that it sums to 1. */
static void t13_normalise(double *p, hbk_int V)
{
    double sum = 0;
    for (hbk_int i = 0; i < V; i++) sum += p[i];
    for (hbk_int i = 0; i < V; i++) p[i] /= sum;
}

/* The probabilities that the options ask for, each filter straight from its definition. */
static void t13_probabilities(double *p, const hbk_real *logits, hbk_int V, const hbk_sampling *o)
{
    double max = 0, q[T13_V];
    for (hbk_int i = 0; i < V; i++) p[i] = exp((double)logits[i] / o->temperature);
    t13_normalise(p, V);
    for (hbk_int i = 0; i < V && o->top_k; i++) { /* out if top_k ids are likelier */
        hbk_int above = 0;
        for (hbk_int k = 0; k < V; k++) above += logits[k] > logits[i];
        q[i] = above < o->top_k ? p[i] : 0;
    }
    if (o->top_k) memcpy(p, q, sizeof q);
    t13_normalise(p, V);
    for (hbk_int i = 0; i < V; i++) { /* out if those that are likelier make up top_p already */
        double above = 0;
        for (hbk_int k = 0; k < V; k++) above += logits[k] > logits[i] ? p[k] : 0;
        q[i] = above < o->top_p ? p[i] : 0;
    }
    memcpy(p, q, sizeof q);
    for (hbk_int i = 0; i < V; i++) max = fmax(max, p[i]);
    for (hbk_int i = 0; i < V; i++) p[i] = p[i] >= o->min_p * max ? p[i] : 0;
    t13_normalise(p, V);
}

/* Promise: ids are drawn as often as temperature, top_k, top_p and min_p say, in this order, and those left
   out never. */
static void t13_sampling(void **state)
{
    (void)state;
    static const hbk_sampling cases[] = {
        {1, 1, 0, 1, -1, 0, 1},      {0.5, 1, 0, 1, -1, 0, 1},   {1, 0.6, 0, 1, -1, 0, 1},
        {1, 1, 3, 1, -1, 0, 1},      {2, 0.9, 9, 1, -1, 0, 1},   {0.7, 0.9, 2, 1, -1, 0, 1},
        {1, 1e-9, 0, 1, -1, 0, 1},   {1, 0, 0, 1, -1, 0, 1},     {1, 1, 0, 1, -1, 0.1, 1},
        {2, 1, 0, 1, -1, 0.4, 1},    {2, 0.8, 12, 1, -1, 0.3, 1},
        {2, 0.5, 0, 1, -1, 0.05, 1}, {0.7, 1, 0, 1, -1, 1, 1},
        {1, 1, 4, 1, -1, 0.01, 1},   {3, 1, 49, 1, -1, 0, 1},
    };
    enum { DRAWS = 20000 };
    hbk_real logits[T13_V];
    hbk_candidate scratch[T13_V];
    double p[T13_V];
    hbk_rng r = hbk_rng_at(3, "logits", 0);
    for (int i = 0; i < T13_V; i++) logits[i] = (hbk_real)(2 * hbk_rng_normal(&r));
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        int count[T13_V] = {0}, allowed = 0;
        hbk_sampling o = cases[k];
        if (o.top_p <= 0) o.top_k = 1; /* no probability at all still leaves the most likely id */
        if (o.top_p <= 0) o.top_p = 1;
        t13_probabilities(p, logits, T13_V, &o);
        for (int i = 0; i < DRAWS; i++) count[hbk_sample(logits, T13_V, &cases[k], &r, scratch)]++;
        for (int i = 0; i < T13_V; i++) {
            double share = (double)count[i] / DRAWS, deviation = sqrt(p[i] * (1 - p[i]) / DRAWS);
            allowed += p[i] > 0;
            if (p[i] <= 0 && count[i]) fail_msg("case %d: id %d was drawn", (int)k, i);
            if (fabs(share - p[i]) > 4.5 * deviation + 1e-12)
                fail_msg("case %d: id %d has share %.4f, expected %.4f", (int)k, i, share, p[i]);
        }
        assert_int_equal(hbk__filter(logits, T13_V, &cases[k], scratch), allowed);
        if (k == 2 || (k >= 8 && k < 12)) assert_true(allowed > 1 && allowed < T13_V / 2);
        if (k == 3) assert_int_equal(allowed, 3);
        if (k == 12) assert_int_equal(allowed, 1);
    }
}

/* Promise: of equal logits top_k leaves the lower ids, however many they are and wherever they stand. */
static void t13_ties(void **state)
{
    (void)state;
    hbk_real logits[T13_V];
    hbk_candidate kept[T13_V];
    for (int k = 1; k <= T13_V; k++)
        for (int step = 1; step <= 7; step++) {
            hbk_sampling o = {1, 1, k, 1, -1, 0, 1};
            for (int i = 0; i < T13_V; i++) logits[i] = (hbk_real)(i * step % 7 % 3);
            assert_int_equal(hbk__filter(logits, T13_V, &o, kept), k);
            for (int i = 0; i < k; i++) { /* every id that beats the i-th is before it */
                int before = 0;
                hbk_real mine = logits[kept[i].id];
                for (int j = 0; j < T13_V; j++)
                    before += logits[j] > mine || (logits[j] >= mine && j < (int)kept[i].id);
                assert_int_equal(before, i);
            }
        }
}

/* Promise: logits that are no numbers draw an id and read nothing else; of min_p 1 the likeliest remain. */
static void t13_no_numbers(void **state)
{
    (void)state;
    hbk_real logits[T13_V];
    hbk_candidate kept[T13_V];
    hbk_sampling options[] = {{0.7, 1, 0, 1, -1, 0.1, 1},
                             {0.7, 0.9, 5, 1, -1, 0, 1},
                             {0.7, 0.9, 0, 1, -1, 1, 1}};
    hbk_rng rng = hbk_rng_at(1, "t13", 0);
    for (int k = 0; k < 3; k++) {
        for (int i = 0; i < T13_V; i++) logits[i] = k < 2 || i % 2 ? (hbk_real)NAN : 1;
        if (k == 1) logits[7] = (hbk_real)INFINITY;
        for (int i = 0; i < 3; i++) {
            int32_t id = hbk_sample(logits, T13_V, &options[i], &rng, kept);
            assert_true(id >= 0 && id < T13_V);
            assert_int_equal(hbk__filter(logits, T13_V, &options[i], kept), 1);
        }
    }
    for (int n = 1; n <= T13_V; n++) { /* n equal ones: 1 / n times n is not always 1 */
        hbk_sampling o = {1, 1, 0, 1, -1, 1, 1};
        for (int i = 0; i < T13_V; i++) logits[i] = i < n ? 0 : -1000;
        assert_int_equal(hbk__filter(logits, T13_V, &o, kept), n);
    }
}

/* Promise: the penalty divides what is positive and multiplies what is negative, once for each id however
   often it occurs; 1 and 0 are no penalty; hbk_generate penalises prompt and text. */
static void t13_penalty(void **state)
{
    (void)state;
    static t13_texts t, free_run;
    hbk_error err;
    hbk_real logits[6] = {2, -1, 3, 0, -4, 5};
    const hbk_real want[6] = {1, -2, 3, 0, -4, 2.5f};
    const int32_t ids[] = {5, 0, 1, 5, 5, 3, 0};
    bool seen[T13_V] = {false};
    hbk_penalise(logits, ids, 7, 2, seen);
    for (int i = 0; i < 6; i++) {
        check_near(logits[i], want[i], 1e-7);
        assert_false(seen[i]);
    }
    hbk_model *m = t13_model();
    m->config.n_eos = 0;
    hbk_session *s = t13_session(m, NULL, 3);
    hbk_sampling o = {0, 1, 0, 30, -1, 0, 1}, none = {0, 1, 0, 30, -1, 0, 0};
    t13_requests(&free_run, 9);
    t13_requests(&t, 9);
    check_ok(hbk_generate(s, free_run.r, T13_REQUESTS, &o, NULL, &err));
    check_ok(hbk_generate(s, t.r, T13_REQUESTS, &none, NULL, &err));
    for (int i = 0; i < T13_REQUESTS; i++) t13_same_text("no penalty", &t.r[i], &free_run.r[i]);
    t13_requests_free(&t);
    t13_requests(&t, 9);
    o.repetition_penalty = 1.5;
    check_ok(hbk_generate(s, t.r, T13_REQUESTS, &o, NULL, &err));
    int others = 0;
    for (int i = 0; i < T13_REQUESTS; i++) { /* greedy, by hand */
        int32_t text[T13_PROMPT + 30];
        hbk_int n = t.r[i].n_prompt;
        memcpy(text, t.r[i].prompt, (size_t)n * sizeof *text);
        memcpy(text + n, t.r[i].output.data, 30 * sizeof *text);
        hbk_real *full = t13_full(m, NULL, text, n + 30);
        for (hbk_int k = 0; k < 30; k++) {
            hbk_real *z = full + (n + k - 1) * T13_V, best = 0;
            for (int id = 0; id < T13_V; id++) {
                hbk_int at = 0;
                while (at < n + k && text[at] != id) at++;
                if (at < n + k) z[id] = (hbk_real)(z[id] > 0 ? (double)z[id] / 1.5 : (double)z[id] * 1.5);
                if (id == 0 || z[id] > best) best = z[id];
            }
            check_near(z[text[n + k]], best, 1e-5);
        }
        others += memcmp(t.r[i].output.data, free_run.r[i].output.data, 30 * sizeof(int32_t)) != 0;
        hbk_free(NULL, full);
    }
    assert_true(others > T13_REQUESTS / 2);
    t13_requests_free(&t);
    t13_requests_free(&free_run);
    hbk_session_free(s);
    hbk_model_free(m);
}

/* Promise: options out of range and a model whose logits are no numbers are named, and nothing is touched. */
static void t13_bad_options(void **state)
{
    (void)state;
    static const struct {
        hbk_sampling o;
        const char *part;
    } bad[] = {{{-1, 1, 0, 5, -1, 0, 1}, "temperature -1"},
               {{0, 1.5, 0, 5, -1, 0, 1}, "top_p 1.5"},
               {{0, 1, -2, 5, -1, 0, 1}, "top_k -2"},
               {{0, 1, 0, 5, -1, 2, 1}, "min_p 2"},
               {{0, 1, 0, 5, -1, 0, -1}, "repetition_penalty -1"},
               {{0, 1, 0, 5, -1, 0, 1e-300}, "repetition_penalty 1e-300: expected 0.01 to 100"}};
    static t13_texts t;
    hbk_error err;
    hbk_model *m = t13_model();
    hbk_session *s = t13_session(m, NULL, 1);
    t13_requests(&t, 0);
    t.r[0].finish = HBK_FINISH_COUNT;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        check_error(hbk_generate(s, t.r, 1, &bad[i].o, NULL, &err), HBK_ERROR_OPTION, bad[i].part);
    hbk_sampling o = {0.5, 1, 0, 5, -1, 0, 1};
    hbk_logprobs p;
    memset(&p, 0, sizeof p);
    p.n_top = T13_V + 1;
    t.r[0].logprobs = &p;
    check_error(hbk_generate(s, t.r, 1, &o, NULL, &err), HBK_ERROR_OPTION, "51 alternatives");
    p.n_top = 2;
    hbk_rng before = t.r[0].rng;
    ((hbk_real *)m->head.data)[7 * m->config.dim] = (hbk_real)NAN;
    check_error(hbk_generate(s, t.r, 1, &o, NULL, &err), HBK_ERROR_NUMERIC, "not finite");
    assert_int_equal(t.r[0].output.n + p.n, 0);
    assert_int_equal(t.r[0].finish, HBK_FINISH_COUNT);
    assert_memory_equal(&t.r[0].rng, &before, sizeof before);
    hbk_logprobs_free(&p);
    t13_requests_free(&t);
    hbk_session_free(s);
    hbk_model_free(m);
}

/* Promise: what a session still holds of a prompt, from an earlier call or in another slot, is not computed
   again, and the texts stay the same; a rewound slot is computed anew. */
static void t13_reuse(void **state)
{
    (void)state;
    static t13_texts alone, t;
    hbk_error err;
    hbk_model *m = t13_model();
    hbk_sampling o = {0, 1, 0, 8, -1, 0, 1};
    m->config.n_eos = 0;
    t13_alone(m, NULL, &alone, 12, &o);
    for (hbk_int slots = 1; slots <= 3; slots++) {
        hbk_session *s = t13_session(m, NULL, slots);
        t13_requests(&t, 12);
        int32_t talk[T13_PROMPT + 16];
        hbk_int n = t.r[0].n_prompt;
        check_ok(hbk_generate(s, t.r, 1, &o, NULL, &err));
        t13_same_text("a turn", &t.r[0], &alone.r[0]);
        assert_int_equal(hbk_session_length(s, 0), n + 7); /* the last token is not fed */
        memcpy(talk, t.r[0].prompt, (size_t)n * sizeof *talk);
        memcpy(talk + n, t.r[0].output.data, 8 * sizeof *talk);
        t13_ids(talk + n + 8, 3, 77);
        assert_int_equal(hbk__held_ids(s, 0, NULL, talk, n + 11), n + 7);

        hbk_request next;
        memset(&next, 0, sizeof next);
        next.prompt = talk;
        next.n_prompt = n + 11;
        hbk_real *k = (hbk_real *)(void *)(s->keys + hbk__cache_at(s, 0, 0, 0)), first = k[0];
        k[0] = first + 1; /* a mark that computing it anew would remove */
        hbk_session *fresh = t13_session(m, NULL, 1);
        check_ok(hbk_generate(fresh, &next, 1, &o, NULL, &err));
        hbk_int before = next.output.n;
        check_ok(hbk_generate(s, &next, 1, &o, NULL, &err));
        check_near(k[0], first + 1, 1e-7);
        hbk_session_rewind(s, 0, 0);
        next.output.n = before;
        check_ok(hbk_generate(s, &next, 1, &o, NULL, &err));
        if (slots == 1) check_near(k[0], first, 1e-6);
        assert_memory_equal(next.output.data, next.output.data + 8, 8 * sizeof(int32_t));

        hbk_session_free(s);
        s = t13_session(m, NULL, slots); /* another slot has it */
        hbk_tokens_free(&t.r[0].output);
        check_ok(hbk_generate(s, t.r, T13_REQUESTS, &o, NULL, &err));
        for (int i = 0; i < T13_REQUESTS; i++) t13_same_text("shared", &t.r[i], &alone.r[i]);
        hbk_tokens_free(&next.output);
        t13_requests_free(&t);
        hbk_session_free(fresh);
        hbk_session_free(s);
    }
    t13_requests_free(&alone);
    hbk_model_free(m);
}

/* ---- text ---------------------------------------------------------------------------- */

/* T13_V pieces learned from a little text. */
static hbk_tokenizer *t13_tokenizer(bool all_bytes)
{
    static const char text[] = "the cat sat on the mat and the hat sat on the cat, then the rat ate that oat "
                               "sam ran with the ham to the man who sold a pan, a fan, a bell and five cans.";
    hbk_error err;
    hbk_int size = all_bytes ? 300 : T13_V;
    hbk_tokenizer *tok = hbk_tokenizer_train(text, strlen(text), size, all_bytes, NULL, &err);
    check_ok(tok);
    return tok;
}

/* Gives a reply the ids and, at the end, takes its pieces together into `out`. */
static void t13_reply(hbk_reply *r, const int32_t *ids, hbk_int n, hbk_text *out)
{
    hbk_error err;
    const char *piece;
    size_t taken;
    hbk_text_clear(out);
    for (hbk_int i = 0; i <= n; i++) {
        check_ok(i < n ? hbk_reply_add(r, ids[i], &err) : hbk_reply_end(r, &err));
        while ((taken = hbk_reply_take(r, &piece)) > 0) hbk_text_append(out, piece, taken);
        assert_true(hbk_utf8_valid(hbk_text_string(out), out->len, NULL)); /* whole characters only */
    }
    assert_string_equal(hbk_text_string(out), hbk_reply_text(r));
}

/* Promise: stop strings cut a text before the one that is complete first, wherever the text is cut into
   tokens; what is handed out is what the text ends up as. */
static void t13_stop_strings(void **state)
{
    (void)state;
    static const char *const stops[] = {"abcd", "c.", "at\n", "\xe2\x82\xac", "b c.d", "  "};
    static const struct {
        const char *text, *want;
        bool trim, stopped;
    } cases[] = {{"the cat sat.", "the cat sat.", false, false},
                 {"the abcd sat", "the ", false, true},
                 {"the abc sat", "the abc sat", false, false},
                 {"ab ababcdabcd", "ab ab", false, true},
                 {"a bcat\ncat", "a bc", false, true},
                 {"abc.d", "ab", false, true},      /* "c." is complete before "abcd" could be */
                 {"ab c.d", "ab ", false, true},    /* and before "b c.d", which begins earlier */
                 {"cost 3 \xe2\x82\xac!", "cost 3 ", false, true},
                 {"cost 3 \xc3\xa9\xe2\x82\xad", "cost 3 \xc3\xa9\xe2\x82\xad", false, false},
                 {"the ab", "the ab", false, false}, /* a beginning that nothing follows is text */
                 {"  abcd", "", false, true},
                 {" \n the cat \n\n sat \n ", "the cat \n\n sat", true, false},
                 {" \n x \n c.", "x", true, true},
                 {" \n ", "", true, false},
                 {"\n  x", "", true, true},
                 {"c.", "", true, true},
                 {"", "", true, false}};
    hbk_error err;
    hbk_tokenizer *tok = t13_tokenizer(true);
    hbk_reply r;
    hbk_text out;
    memset(&r, 0, sizeof r);
    memset(&out, 0, sizeof out);
    r.tok = tok;
    r.stops = stops;
    r.n_stops = 6;
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        const char *text = cases[k].text;
        size_t n = strlen(text);
        for (size_t a = 0; a <= n + 1; a++) /* a border at a and b; at last every byte for itself */
            for (size_t b = a; b <= n; b++) {
                hbk_tokens ids;
                memset(&ids, 0, sizeof ids);
                if (a <= n) {
                    bool whole = hbk_utf8_valid(text, a, NULL) && hbk_utf8_valid(text + a, b - a, NULL);
                    if (!whole) continue;
                    check_ok(hbk_tokenizer_encode(tok, text, a, HBK_ENCODE_CONTINUE, &ids, &err));
                    check_ok(hbk_tokenizer_encode(tok, text + a, b - a, HBK_ENCODE_CONTINUE, &ids, &err));
                    check_ok(hbk_tokenizer_encode(tok, text + b, n - b, HBK_ENCODE_CONTINUE, &ids, &err));
                }
                r.trim = cases[k].trim;
                t13_reply(&r, ids.data, ids.n, &out);
                if (strcmp(out.data ? out.data : "", cases[k].want) != 0 || r.stopped != cases[k].stopped)
                    fail_msg("case %d cut at %d, %d: '%s'%s", (int)k, (int)a, (int)b, hbk_text_string(&out),
                             r.stopped ? ", stopped" : "");
                hbk_reply_clear(&r);
                hbk_tokens_free(&ids);
            }
        hbk_tokens bytes;
        memset(&bytes, 0, sizeof bytes);
        for (size_t i = 0; i < n; i++) {
            char piece[8];
            snprintf(piece, sizeof piece, "<0x%02X>", (unsigned char)text[i]);
            hbk_tokens_push(&bytes, hbk_tokenizer_find(tok, piece));
        }
        t13_reply(&r, bytes.data, bytes.n, &out);
        assert_string_equal(hbk_text_string(&out), cases[k].want);
        hbk_reply_clear(&r);
        hbk_tokens_free(&bytes);
    }
    int32_t t = hbk_tokenizer_find(tok, "t"), padded[] = {t, 300, -1, 5000, t};
    t13_reply(&r, padded, 5, &out); /* ids that the tokenizer does not have say nothing */
    assert_string_equal(hbk_text_string(&out), "tt");
    hbk_reply_free(&r);
    hbk_text_free(&out);
    hbk_tokenizer_free(tok);
}

/* Promise: nothing is handed out while it may be the beginning of a stop string or half a character, and
   everything as soon as it cannot. */
static void t13_held_back(void **state)
{
    (void)state;
    static const char *const stops[] = {"cat!", "at?"};
    static const struct {
        const char *piece, *out;
    } steps[] = {{"t", "t"},     {"c", ""},   {"a", ""},     {"t", ""},      {".", "cat."}, {"c", ""},
                 {"c", "c"},     {"a", ""},   {"\xe2", ""},  {"\x82", ""},   {"\xac", "ca\xe2\x82\xac"},
                 {"a", ""},      {"t", ""},   {"a", "at"},   {"t", ""},      {" ", "at "},  {"c", ""},
                 {"a", ""},      {"t", ""},   {"?", "c"},    {"x", ""}};
    hbk_error err;
    hbk_tokenizer *tok = t13_tokenizer(true);
    hbk_reply r;
    memset(&r, 0, sizeof r);
    r.tok = tok;
    r.stops = stops;
    r.n_stops = 2;
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        char name[8];
        const char *piece;
        snprintf(name, sizeof name, "<0x%02X>", (unsigned char)*steps[i].piece);
        check_ok(hbk_reply_add(&r, hbk_tokenizer_find(tok, name), &err));
        size_t n = hbk_reply_take(&r, &piece);
        if (n != strlen(steps[i].out) || memcmp(piece, steps[i].out, n) != 0)
            fail_msg("step %d: '%.*s', expected '%s'", (int)i, (int)n, piece, steps[i].out);
    }
    assert_true(r.stopped);
    check_ok(hbk_reply_end(&r, &err));
    assert_string_equal(hbk_reply_text(&r), "tcat.cca\xe2\x82\xac""atat c");
    hbk_reply_free(&r);
    hbk_tokenizer_free(tok);
}

typedef struct t13_told {
    hbk_reply *replies;
    hbk_text text[T13_REQUESTS];
} t13_told;

static bool t13_on_text(void *ctx, hbk_int request, int32_t id)
{
    t13_told *t = (t13_told *)ctx;
    const char *piece;
    (void)id;
    size_t n = hbk_reply_take(&t->replies[request], &piece);
    hbk_text_append(&t->text[request], piece, n);
    return true;
}

/* Promise: requests that write replies have the text of their ids; any part of such a text as a stop string
   ends it right there, at the first id that completes it, alone and in a batch. */
static void t13_replies(void **state)
{
    (void)state;
    enum { N = 3, LONG = 24 };
    static t13_texts t, free_run;
    hbk_error err;
    hbk_model *m = t13_model();
    hbk_tokenizer *tok = t13_tokenizer(false);
    assert_int_equal(hbk_tokenizer_size(tok), T13_V);
    hbk_session *s = t13_session(m, NULL, 2);
    hbk_sampling o = {0, 1, 0, LONG, -1, 0, 1};
    hbk_text whole[N];
    hbk_reply replies[N];
    t13_told told;
    hbk_stream stream = {t13_on_text, &told};
    m->config.n_eos = 0;
    memset(whole, 0, sizeof whole);
    memset(replies, 0, sizeof replies);
    memset(&told, 0, sizeof told);
    told.replies = replies;
    t13_requests(&free_run, 9);
    for (int i = 0; i < N; i++) {
        replies[i].tok = tok;
        free_run.r[i].reply = &replies[i];
    }
    check_ok(hbk_generate(s, free_run.r, N, &o, NULL, &err));
    for (int i = 0; i < N; i++) {
        const hbk_tokens *ids = &free_run.r[i].output;
        check_ok(hbk_tokenizer_decode(tok, ids->data, ids->n, HBK_ENCODE_CONTINUE, &whole[i], &err));
        assert_string_equal(hbk_reply_text(&replies[i]), hbk_text_string(&whole[i]));
        assert_int_equal(free_run.r[i].finish, HBK_FINISH_LENGTH);
        hbk_reply_free(&replies[i]);
    }
    int stopped = 0;
    for (size_t at = 0; at + 6 < whole[0].len; at++) {
        char stop[8];
        const char *stops[1] = {stop};
        snprintf(stop, 2 + at % 5, "%s", whole[0].data + at);
        t13_requests(&t, 9);
        for (int i = 0; i < N; i++) {
            replies[i].tok = tok;
            replies[i].stops = stops;
            replies[i].n_stops = 1;
            t.r[i].reply = &replies[i];
        }
        check_ok(hbk_generate(s, t.r, at % 2 ? 1 : N, &o, &stream, &err));
        for (int i = 0; i < (at % 2 ? 1 : N); i++) {
            const char *end = strstr(hbk_text_string(&whole[i]), stop), *piece = NULL;
            size_t last = hbk_reply_take(&replies[i], &piece);
            size_t n = end ? (size_t)(end - whole[i].data) : whole[i].len;
            hbk_text_append(&told.text[i], piece, last);
            assert_int_equal(replies[i].text.len, n);
            assert_memory_equal(hbk_reply_text(&replies[i]), whole[i].data, n);
            assert_string_equal(hbk_text_string(&told.text[i]), hbk_reply_text(&replies[i]));
            assert_int_equal(t.r[i].finish, end ? HBK_FINISH_STOP : HBK_FINISH_LENGTH);
            if (end) { /* the last id completed it */
                hbk_text text;
                memset(&text, 0, sizeof text);
                stopped++;
                check_ok(hbk_tokenizer_decode(tok, t.r[i].output.data, t.r[i].output.n - 1,
                                              HBK_ENCODE_CONTINUE, &text, &err));
                assert_null(strstr(hbk_text_string(&text), stop));
                hbk_text_free(&text);
            }
            hbk_reply_free(&replies[i]);
            hbk_text_clear(&told.text[i]);
        }
        t13_requests_free(&t);
    }
    assert_true(stopped > 20);
    for (int i = 0; i < N; i++) hbk_text_free(&told.text[i]);
    for (int i = 0; i < N; i++) hbk_text_free(&whole[i]);
    t13_requests_free(&free_run);
    hbk_session_free(s);
    hbk_tokenizer_free(tok);
    hbk_model_free(m);
}

/* Promise: log-probabilities are the log-softmax of the model's logits, whatever the sampling; their sum is
   the score of the text. */
static void t13_log_probabilities(void **state)
{
    (void)state;
    enum { N = 4, LONG = 20, TOP = 5 };
    static t13_texts t;
    hbk_error err;
    hbk_model *m = t13_model();
    hbk_session *s = t13_session(m, NULL, 3);
    hbk_sampling o = {1.7, 0.9, 30, LONG, -1, 0.01, 1.2};
    hbk_logprobs p[N];
    memset(p, 0, sizeof p);
    t13_requests(&t, 9);
    for (int i = 0; i < N; i++) {
        p[i].n_top = i == 3 ? 0 : TOP;
        t.r[i].logprobs = &p[i];
    }
    check_ok(hbk_generate(s, t.r, N, &o, NULL, &err));
    double worst = 0;
    for (int i = 0; i < N; i++) {
        hbk_int n = t.r[i].n_prompt, made = t.r[i].output.n, width = 1 + p[i].n_top;
        int32_t text[T13_PROMPT + LONG];
        double sum = 0;
        memcpy(text, t.r[i].prompt, (size_t)n * sizeof *text);
        memcpy(text + n, t.r[i].output.data, (size_t)made * sizeof *text);
        hbk_real *full = t13_full(m, NULL, text, n + made);
        assert_int_equal(p[i].n, made);
        for (hbk_int k = 0; k < made; k++) {
            const hbk_real *z = full + (n + k - 1) * T13_V;
            const hbk_logprob *row = p[i].data + k * width;
            double total = 0;
            for (int j = 0; j < T13_V; j++) total += exp((double)z[j]);
            assert_int_equal(row->id, text[n + k]);
            for (hbk_int j = 0; j < width; j++) {
                double want = (double)z[row[j].id] - log(total);
                check_near(row[j].logprob, want, 1e-5);
                worst = fmax(worst, fabs(row[j].logprob - want));
                if (j > 1) assert_true(row[j].logprob <= row[j - 1].logprob);
            }
            for (int j = 0; j < T13_V && width > 1; j++) { /* nobody likelier was left out */
                hbk_int at = 1;
                while (at < width && row[at].id != j) at++;
                if (at == width) assert_true((double)z[j] - log(total) <= row[width - 1].logprob + 1e-5);
            }
            sum += row->logprob;
        }
        hbk_scoring item = {t.r[i].prompt, t.r[i].output.data, n, made, 0, NULL};
        check_ok(hbk_score(s, &item, 1, &err));
        check_near(item.log_likelihood, sum, 1e-5);
        hbk_logprobs_free(&p[i]);
        hbk_free(NULL, full);
    }
    print_message("    largest difference %.1e\n", worst);
    t13_requests_free(&t);
    hbk_session_free(s);
    hbk_model_free(m);
}

/* ---- scores -------------------------------------------------------------------------- */

/* Promise: a score is the sum of the continuation's log-softmax values in one forward pass, whatever prompts
   the items share; an item that does not fit is NAN and the rest are scored; a foreign id is an error. */
static void t13_score(void **state)
{
    (void)state;
    enum { N = 9, ROOM = 40 };
    static const struct {
        hbk_int prompt, same, n; /* prompt length, ids in common with the first prompt, continuation */
    } shape[N] = {{20, 20, 1}, {20, 20, 5}, {20, 20, 3}, {38, 20, 5}, {20, 20, 2}, {20, 9, 4}, {6, 6, 6},
                  {30, 20, 10}, {1, 0, 1}};
    hbk_error err;
    int32_t ids[N][60];
    hbk_scoring items[N];
    hbk_model *m = t13_model();
    hbk_adapter *w = t13_adapter(m);
    hbk_session *s = hbk_session_new(m, w, 1, ROOM, HBK_F32, NULL, &err);
    check_ok(s);
    for (int i = 0; i < N; i++) {
        t13_ids(ids[i], 60, 60 + (uint64_t)i);
        t13_ids(ids[i], shape[i].same, 50);
        items[i].prompt = ids[i];
        items[i].n_prompt = shape[i].prompt;
        items[i].continuation = ids[i] + shape[i].prompt;
        items[i].n_continuation = shape[i].n;
        items[i].log_likelihood = 1;
        items[i].adapter = NULL;
    }
    check_ok(hbk_score(s, items, N, &err));
    double worst = 0;
    for (int i = 0; i < N; i++) {
        hbk_int P = shape[i].prompt, n = shape[i].n;
        if (P + n > ROOM) {
            assert_true(isnan(items[i].log_likelihood));
            continue;
        }
        hbk_real *logits = t13_full(m, w, ids[i], P + n);
        double want = 0;
        for (hbk_int k = P - 1; k < P + n - 1; k++) {
            double sum = 0;
            for (int j = 0; j < T13_V; j++) sum += exp((double)logits[k * T13_V + j]);
            want += (double)logits[k * T13_V + ids[i][k + 1]] - log(sum);
        }
        check_near(items[i].log_likelihood, want, T13_BAR);
        worst = fmax(worst, fabs(items[i].log_likelihood - want));
        hbk_free(NULL, logits);
    }
    print_message("    largest difference %.1e\n", worst);
    items[0].n_prompt = 0;
    items[1].n_continuation = 0;
    check_ok(hbk_score(s, items, 2, &err));
    assert_true(isnan(items[0].log_likelihood) && isnan(items[1].log_likelihood));
    for (int bad = 0; bad < 3; bad++) { /* in the prompt, and as first and last id of a continuation */
        int32_t keep = ids[4][bad == 0 ? 3 : 19 + bad];
        ids[4][bad == 0 ? 3 : 19 + bad] = bad == 1 ? -1 : T13_V;
        check_error(hbk_score(s, items + 4, 1, &err), HBK_ERROR_RANGE, bad == 1 ? "id -1" : "id 50");
        ids[4][bad == 0 ? 3 : 19 + bad] = keep;
    }
    hbk_session_free(s);
    hbk_adapter_free(w);
    hbk_model_free(m);
}

/* Promise: many continuations of one prompt, longer and shorter than what is scored at once, with common
   beginnings and without, have through any number of slots the scores that each has alone. */
static void t13_score_groups(void **state)
{
    (void)state;
    enum { N = 14, P = 12, ROOM = 260 };
    static const hbk_int n[N] = {1, 2, 2, 65, 64, 3, 240, 150, 1, 70, 70, 5, 200, 9};
    static int32_t text[N][ROOM], prompt[2][P];
    hbk_error err;
    hbk_scoring items[N], one;
    hbk_model *m = t13_model();
    for (int i = 0; i < N; i++) {
        t13_ids(text[i], ROOM, 90 + (uint64_t)i);
        t13_ids(text[i], i % 4, 80); /* shared beginnings of 0 to 3 ids */
        if (i == 10) memcpy(text[10], text[9], 69 * sizeof **text); /* and one of all but the last */
    }
    t13_ids(prompt[0], P, 81);
    t13_ids(prompt[1], P, 81);
    prompt[1][P - 1]++;
    for (hbk_int slots = 1; slots <= 9; slots += slots < 3 ? 1 : 6) {
        hbk_session *s = hbk_session_new(m, NULL, slots, ROOM, HBK_F32, NULL, &err);
        check_ok(s);
        for (int i = 0; i < N; i++) {
            hbk_scoring item = {prompt[i >= 11], text[i], P, n[i], 5, NULL};
            items[i] = item;
        }
        check_ok(hbk_score(s, items, N, &err));
        for (int i = 0; i < N; i++) {
            hbk_session *fresh = hbk_session_new(m, NULL, 1, ROOM, HBK_F32, NULL, &err);
            one = items[i];
            check_ok(hbk_score(fresh, &one, 1, &err));
            check_near(items[i].log_likelihood, one.log_likelihood, T13_BAR);
            hbk_session_free(fresh);
        }
        items[3].log_likelihood = 7;
        text[5][0] = T13_V; /* a foreign id late in the list: nothing is changed */
        check_error(hbk_score(s, items, N, &err), HBK_ERROR_RANGE, "id 50");
        check_near(items[3].log_likelihood, 7, 0);
        t13_ids(text[5], 1, 80);
        hbk_session_free(s);
    }
    hbk_model_free(m);
}

/* Promise: after hbk_generate each text and its reply are scored where they stand, in any slot: only what is
   new goes through the model. What has only a beginning in common with them does not take their place while
   there is a slot that holds less. Scores are those of a fresh session. */
static void t13_score_after(void **state)
{
    (void)state;
    enum { SLOTS = 4, TEXTS = 3, LEAD = 5 };
    static const hbk_int order[] = {2, 0, 1};
    static t13_texts t;
    hbk_error err;
    hbk_model *m = t13_model();
    hbk_sampling o = {0, 1, 0, 9, -1, 0, 1};
    m->config.n_eos = 0;
    for (int type = 0; type < 2; type++) {
        hbk_dtype cache = type ? HBK_BF16 : HBK_F32;
        hbk_session *s = t13_session_of(m, NULL, SLOTS, cache);
        t13_requests(&t, 12); /* what all share lies in the spare cache */
        check_ok(hbk_generate(s, t.r, TEXTS, &o, NULL, &err));
        for (int k = -1; k < 3 * TEXTS; k++) { /* each text three times, after one that only begins alike */
            hbk_int i = k < 0 ? 0 : order[k % TEXTS], n = k < 0 ? 12 : t.r[i].n_prompt, fed;
            int32_t ids[T13_PROMPT + 16 + LEAD], digits[2][2] = {{5, 7}, {6, 8}};
            hbk_scoring item[2], alone[2];
            memcpy(ids, t.r[i].prompt, (size_t)n * sizeof *ids);
            if (k >= 0) memcpy(ids + n, t.r[i].output.data, 9 * sizeof *ids), n += 9;
            fed = LEAD + (k >= 0 && k < TEXTS); /* the reply's last token, too, which was never fed before */
            t13_ids(ids + n, LEAD, 70);
            ids[n] = 10 + (int32_t)(k < TEXTS ? 0 : k); /* later a text goes another way */
            for (int j = 0; j < 2; j++) {
                hbk_scoring x = {ids, digits[j], n + LEAD, 1 + type, 5, NULL};
                item[j] = alone[j] = x;
            }
            check_ok(hbk_score(s, item, 2, &err));
            hbk_session *fresh = t13_session_of(m, NULL, 1, cache);
            check_ok(hbk_score(fresh, alone, 2, &err));
            for (int j = 0; j < 2; j++)
                check_near(item[j].log_likelihood, alone[j].log_likelihood, type ? 1e-3 : T13_BAR);
            if (type == 0) assert_int_equal(n + LEAD - s->pos[0], fed); /* the last pass began there */
            hbk_session_free(fresh);
        }
        t13_requests_free(&t);
        hbk_session_free(s);
    }
    hbk_model_free(m);
}

/* ---- several adapters over one base ---------------------------------------------------- */

/* A model and what its sequences may have: no adapter, and two of different ranks and targets. */
typedef struct t13_several {
    hbk_model *m;
    hbk_adapter *w[3]; /* the first NULL */
} t13_several;

static t13_several t13_several_new(void)
{
    hbk_error err;
    t13_several x = {t13_model(), {NULL, NULL, NULL}};
    unsigned targets = 1u << HBK_V | 1u << HBK_UP | 1u << HBK_LM_HEAD;
    x.w[1] = t13_adapter(x.m);
    x.w[2] = hbk_adapter_new(&x.m->config, 7, 6, targets, 2, NULL, &err);
    check_ok(x.w[2]);
    hbk_rng r = hbk_rng_at(4, "b", 2);
    for (hbk_int i = 0; i < x.w[2]->n_values; i++) x.w[2]->values[i] = (hbk_real)(0.2 * hbk_rng_normal(&r));
    return x;
}

static void t13_several_free(t13_several *x)
{
    hbk_adapter_free(x->w[1]);
    hbk_adapter_free(x->w[2]);
    hbk_model_free(x->m);
}

/* Promise: slots with different adapters are fed in one pass, each with the logits of one forward pass with
   its adapter; a fork takes the adapter along. */
static void t13_several_slots(void **state)
{
    (void)state;
    enum { N = 30, SLOTS = 7 };
    static const hbk_int of[SLOTS - 1] = {1, 0, 2, 2, 1, 0};
    hbk_error err;
    int32_t ids[SLOTS][N];
    hbk_feed feeds[SLOTS];
    hbk_real rows[SLOTS * N * T13_V];
    double worst = 0;
    t13_several x = t13_several_new();
    hbk_session *s = t13_session(x.m, x.w[1], SLOTS);
    for (hbk_int i = 0; i < SLOTS - 1; i++) {
        check_ok(hbk_session_adapt(s, i, x.w[of[i]], &err));
        t13_ids(ids[i], N, 200 + (uint64_t)i);
        hbk_feed f = {i, ids[i], 10 + i};
        feeds[i] = f;
    }
    check_ok(hbk_session_feed(s, feeds, SLOTS - 1, false, rows, &err)); /* prompts */
    hbk_session_fork(s, SLOTS - 1, 2, 8);
    memcpy(ids[SLOTS - 1], ids[2], 8 * sizeof **ids);
    t13_ids(ids[SLOTS - 1] + 8, N - 8, 300);
    hbk_int at = 0;
    for (hbk_int i = 0; i < SLOTS; i++) { /* and what follows, all rows of it */
        hbk_int held = hbk_session_length(s, i);
        hbk_feed f = {i, ids[i] + held, N - held};
        feeds[i] = f;
    }
    check_ok(hbk_session_feed(s, feeds, SLOTS, true, rows, &err));
    for (hbk_int i = 0; i < SLOTS; at += feeds[i++].n) {
        hbk_real *want = t13_full(x.m, x.w[i < SLOTS - 1 ? of[i] : 2], ids[i], N);
        const hbk_real *rest = want + (N - feeds[i].n) * T13_V;
        worst = fmax(worst, t13_compare("slot", rows + at * T13_V, rest, feeds[i].n));
        hbk_free(NULL, want);
    }
    print_message("    largest difference %.1e\n", worst);
    hbk_session_free(s);
    t13_several_free(&x);
}

/* Promise: requests that name adapters, in any order, through any number of slots, with beginnings in common
   and after other requests in the same session, have the texts that each has alone; none is answered from
   what another adapter computed. */
static void t13_several_requests(void **state)
{
    (void)state;
    static t13_texts alone, batch;
    static const hbk_int shared[] = {0, 12};
    hbk_error err;
    int differ = 0;
    t13_several x = t13_several_new();
    hbk_sampling o = {0.6, 1, 0, 24, -1, 0, 1};
    for (int k = 0; k < 4; k++) {
        o.temperature = k / 2 ? 0.6 : 0;
        hbk_request want[3][T13_REQUESTS];
        for (int a = 0; a < 3; a++) {
            t13_alone(x.m, x.w[a], &alone, shared[k % 2], &o);
            memcpy(want[a], alone.r, sizeof alone.r);
        }
        for (hbk_int slots = 1; slots <= T13_REQUESTS; slots += 2) {
            hbk_session *s = t13_session(x.m, NULL, slots);
            for (int turn = 0; turn < 3; turn++) { /* the same prompts again, with other adapters */
                t13_requests(&batch, shared[k % 2]);
                for (int i = 0; i < T13_REQUESTS; i++) batch.r[i].adapter = x.w[(i + turn) % 3];
                check_ok(hbk_generate(s, batch.r, T13_REQUESTS, &o, NULL, &err));
                for (int i = 0; i < T13_REQUESTS; i++)
                    t13_same_text("with its adapter", &batch.r[i], &want[(i + turn) % 3][i]);
                t13_requests_free(&batch);
            }
            hbk_session_free(s);
        }
        for (int i = 0; i < T13_REQUESTS; i++)
            differ += want[1][i].output.n != want[2][i].output.n;
        for (int a = 0; a < 3; a++)
            for (int i = 0; i < T13_REQUESTS; i++) hbk_tokens_free(&want[a][i].output);
    }
    assert_true(differ > 4); /* the adapters do say different things */
    t13_several_free(&x);
}

/* Promise: the beginning that is computed once is the one that prompts of the first one's adapter share, and
   none where no other has that adapter. */
static void t13_several_beginnings(void **state)
{
    (void)state;
    static t13_texts shared, apart;
    hbk_error err;
    t13_several x = t13_several_new();
    hbk_sampling o = {0, 1, 0, 2, -1, 0, 1};
    for (int alone = 0; alone < 2; alone++) {
        hbk_session *s = t13_session(x.m, NULL, 2);
        t13_requests(&shared, 12);
        t13_requests(&apart, 0);
        for (int i = 0; i < T13_REQUESTS; i++) {
            if (i % 2) shared.r[i] = apart.r[i];
            else shared.r[i].adapter = x.w[alone && i ? 2 : 1];
        }
        check_ok(hbk_generate(s, shared.r, T13_REQUESTS, &o, NULL, &err));
        assert_int_equal(s->length[2], alone ? 0 : 12);
        t13_requests_free(&shared);
        hbk_session_free(s);
    }
    t13_several_free(&x);
}

/* ---- shared beginnings ------------------------------------------------------------------ */

enum { T13_ALIKE = 23, T13_WHOLE = 60 }; /* ids that texts begin with, ids of a text */

/* Texts that begin alike, and a session whose first two requests left that beginning in the spare cache. */
typedef struct t13_linked {
    int32_t ids[6][T13_WHOLE];
    hbk_session *s;
    hbk_dtype cache;
    hbk_int fed[6]; /* of each slot's text */
} t13_linked;

/* Serves prompts of ids[0] and ids[1], which are as long as the beginning and a few ids, in slots 0 and 1. */
static void t13_linked_serve(t13_linked *t, const hbk_adapter *w)
{
    hbk_error err;
    hbk_request r[2];
    hbk_sampling o = {0, 1, 0, 1, -1, 0, 1};
    memset(r, 0, sizeof r);
    for (int i = 0; i < 2; i++) {
        r[i].prompt = t->ids[i];
        r[i].n_prompt = T13_ALIKE + 2 + i;
        r[i].adapter = w;
        t->fed[i] = r[i].n_prompt;
    }
    check_ok(hbk_generate(t->s, r, 2, &o, NULL, &err));
    for (int i = 0; i < 2; i++) hbk_tokens_free(&r[i].output);
}

static void t13_linked_new(t13_linked *t, const hbk_model *m, const hbk_adapter *w, uint64_t seed)
{
    memset(t->fed, 0, sizeof t->fed);
    for (int i = 0; i < 6; i++) {
        t13_ids(t->ids[i], T13_WHOLE, seed + 1 + (uint64_t)i);
        t13_ids(t->ids[i], T13_ALIKE, seed);
        t->ids[i][T13_ALIKE] = 3 + i;
    }
    hbk_error err;
    hbk_real one[T13_V];
    t->s = t13_session_of(m, NULL, 6, t->cache);
    check_ok(hbk_session_adapt(t->s, 1, w, &err));
    t13_feed(t->s, 1, t->ids[1], T13_ALIKE, one); /* what a slot has of its own is given up */
    t13_linked_serve(t, w);
}

/* Feeds each of the slots that `which` names its next n ids, in one pass, and compares with a whole forward
   pass over its text; of a cache of bf16, which has no adapter here, with one that rounds, too. */
static void t13_linked_step(t13_linked *t, unsigned which, hbk_int n, const char *what)
{
    hbk_error err;
    hbk_feed feeds[6];
    hbk_real logits[6 * T13_V];
    hbk_int n_feeds = 0;
    for (hbk_int i = 0; i < 6; i++) {
        hbk_feed f = {i, t->ids[i] + t->fed[i], n};
        assert_int_equal(hbk_session_length(t->s, i), t->fed[i]);
        if (which >> i & 1) feeds[n_feeds++] = f;
    }
    check_ok(hbk_session_feed(t->s, feeds, n_feeds, false, logits, &err));
    for (hbk_int f = 0; f < n_feeds; f++) {
        hbk_int slot = feeds[f].slot;
        t->fed[slot] += n;
        bool bf16 = t->cache == HBK_BF16;
        hbk_real *want = bf16 ? t13_rounded_full(t->s->m, t->ids[slot], t->fed[slot])
                              : t13_full(t->s->m, t->s->of[slot], t->ids[slot], t->fed[slot]);
        hbk_real *last = want + (t->fed[slot] - 1) * T13_V;
        if (!bf16) t13_compare(what, logits + f * T13_V, last, 1);
        else if (!(t13_apart(logits + f * T13_V, last, T13_V) < 1e-4)) fail_msg("%s, with bf16", what);
        hbk_free(NULL, want);
    }
}

/* What slots hold of the shared beginning in their own caches becomes no number: reading it would be seen. */
static void t13_linked_spoil(t13_linked *t)
{
    hbk_int K = t->s->m->config.n_kv_heads, D = t->s->m->config.head_dim;
    for (hbk_int l = 0; l < t->s->m->config.n_layers; l++)
        for (hbk_int i = 0; i < t->s->n_slots * K; i++)
            for (hbk_int d = 0; d < t->s->linked[i / K] * D; d++) {
                const hbk_real nan = (hbk_real)NAN;
                size_t at = hbk__cache_at(t->s, l, i / K, i % K) + hbk_dtype_size(t->s->cache, d);
                hbk_pack(t->s->keys + at, t->s->cache, &nan, 1);
                hbk_pack(t->s->values + at, t->s->cache, &nan, 1);
            }
}

/* Promise: slots that share a beginning hold none of it and go on like texts fed afresh, by single tokens,
   few or many, one of them or all, beside slots that share nothing; so do their forks, and slots that are
   rewound into the beginning or behind it. */
static void t13_linked_slots(void **state)
{
    (void)state;
    static t13_linked t;
    t13_several x = t13_several_new();
    for (int a = 0; a < 3; a++) {
        t.cache = a == 2 ? HBK_BF16 : HBK_F32;
        t13_linked_new(&t, x.m, x.w[a % 2], 500);
        hbk_session *s = t.s;
        assert_int_equal(s->length[6], T13_ALIKE);
        assert_int_equal(s->linked[0], T13_ALIKE);
        assert_int_equal(s->linked[1], T13_ALIKE);
        t13_linked_spoil(&t);
        hbk_session_fork(s, 2, 0, T13_ALIKE); /* nothing is copied */
        hbk_session_fork(s, 3, 1, T13_ALIKE - 5);
        hbk_session_fork(s, 4, 0, t.fed[0]); /* only its tail is */
        memcpy(t.ids[4], t.ids[0], (size_t)t.fed[0] * sizeof **t.ids);
        t.fed[2] = T13_ALIKE, t.fed[3] = T13_ALIKE - 5, t.fed[4] = t.fed[0];
        assert_int_equal(s->linked[2], T13_ALIKE);
        assert_int_equal(s->linked[3], T13_ALIKE - 5);
        assert_int_equal(s->linked[4], T13_ALIKE);
        t13_linked_spoil(&t);
        for (int i = 0; i < 4; i++) t13_linked_step(&t, 63, 1, "single tokens");
        t13_linked_step(&t, 63, 2, "two tokens");
        t13_linked_step(&t, 63, 5, "five tokens");
        t13_linked_step(&t, 4, 1, "one slot");
        hbk_session_rewind(s, 0, T13_ALIKE + 1);
        hbk_session_rewind(s, 1, T13_ALIKE);
        hbk_session_rewind(s, 2, T13_ALIKE - 1);
        hbk_session_rewind(s, 4, 0);
        t.fed[0] = T13_ALIKE + 1, t.fed[1] = T13_ALIKE, t.fed[2] = T13_ALIKE - 1, t.fed[4] = 0;
        t13_ids(t.ids[2] + T13_ALIKE - 1, 10, 900); /* another way on */
        t13_ids(t.ids[4], 30, 901);
        assert_int_equal(s->linked[2], T13_ALIKE - 1);
        assert_int_equal(s->linked[4], 0);
        for (int i = 0; i < 3; i++) t13_linked_step(&t, 63, 1, "after a rewind");
        t13_linked_step(&t, 63, 7, "after a rewind, seven");
        hbk_session_free(s);
    }
    t13_several_free(&x);
}

/* Promise: a new beginning, of other ids or another adapter or only shorter, leaves slots that hold the
   earlier one what they held; a switch forgets it. */
static void t13_linked_anew(void **state)
{
    (void)state;
    static t13_linked t, other;
    t13_several x = t13_several_new();
    for (int way = 0; way < 3; way++) {
        hbk_error err;
        t.cache = HBK_F32;
        t13_linked_new(&t, x.m, x.w[1], 500);
        for (hbk_int k = 2; k < 6; k++) { /* these go on; 0 and 1 serve the new beginning */
            hbk_session_fork(t.s, k, k % 2, T13_ALIKE + 1);
            memcpy(t.ids[k], t.ids[k % 2], (T13_ALIKE + 1) * sizeof **t.ids);
            t.fed[k] = T13_ALIKE + 1;
        }
        t13_linked_spoil(&t);
        memcpy(&other, &t, sizeof t);
        for (int i = 0; i < 2; i++) {
            t13_ids(other.ids[i] + (way == 0 ? 12 : way == 1 ? 1 : 0), T13_ALIKE, 77);
            other.ids[i][T13_ALIKE + 1] = 20 + i;
        }
        t13_linked_serve(&other, x.w[way == 2 ? 2 : 1]);
        assert_int_equal(t.s->linked[2], way == 0 ? 12 : way == 1 ? 1 : 0);
        assert_int_equal(t.s->linked[0], t.s->length[6]);
        for (int i = 0; i < 2; i++) memcpy(t.ids[i], other.ids[i], sizeof *t.ids), t.fed[i] = other.fed[i];
        for (int i = 0; i < 3; i++) t13_linked_step(&t, 63, 1, "beside a new beginning");
        t13_linked_step(&t, 60, 6, "after a new beginning");
        check_ok(hbk_session_switch(t.s, x.w[2], &err));
        for (int i = 0; i < 6; i++) {
            assert_int_equal(t.s->linked[i], 0);
            t.fed[i] = 0;
        }
        t13_linked_step(&t, 63, 9, "after a switch");
        hbk_session_free(t.s);
    }
    t13_several_free(&x);
}

/* Promise: in a pass the slots of one adapter stand together, whatever order requests came in, so that each A
   and B takes one product; slots that are free are left out. */
static void t13_several_lined_up(void **state)
{
    (void)state;
    enum { SLOTS = 7 };
    static const hbk_int of[SLOTS] = {1, 0, 2, 1, 0, 1, 2}, want[SLOTS - 1] = {0, 5, 1, 4, 2, 6};
    t13_several x = t13_several_new();
    hbk_session *s = t13_session(x.m, NULL, SLOTS);
    hbk_int request[SLOTS];
    hbk_feed feeds[SLOTS], packed[SLOTS];
    hbk__serving v;
    memset(&v, 0, sizeof v);
    v.s = s;
    v.request = request;
    v.feeds = feeds;
    v.packed = packed;
    for (hbk_int i = 0; i < SLOTS; i++) {
        hbk_feed f = {i, NULL, 1};
        feeds[i] = f;
        request[i] = i == 3 ? -1 : i;
        s->of[i] = x.w[of[i]];
    }
    assert_int_equal(hbk__line_up(&v), SLOTS - 1);
    for (int i = 0; i < SLOTS - 1; i++) assert_int_equal(packed[i].slot, want[i]);
    hbk_session_free(s);
    t13_several_free(&x);
}

/* Promise: items that name adapters have the scores that each has alone, also where neighbours share prompt
   and continuation but not the adapter; none named is the session's own. */
static void t13_several_scores(void **state)
{
    (void)state;
    enum { N = 12, ROOM = 40 };
    hbk_error err;
    int32_t prompt[2][12], text[2][9];
    t13_several x = t13_several_new();
    for (int i = 0; i < 2; i++) {
        t13_ids(prompt[i], 12, 400 + (uint64_t)i);
        t13_ids(text[i], 9, 410 + (uint64_t)i);
    }
    for (hbk_int slots = 1; slots <= 5; slots += 2)
        for (int own = 0; own < 2; own++) {
            hbk_session *s = hbk_session_new(x.m, x.w[own], slots, ROOM, HBK_F32, NULL, &err);
            hbk_scoring items[N];
            for (int i = 0; i < N; i++) {
                hbk_scoring item = {prompt[i / 6], text[i % 2], 12, 9, 0, x.w[i % 3]};
                items[i] = item;
            }
            check_ok(hbk_score(s, items, N, &err));
            for (int i = 0; i < N; i++) {
                hbk_session *one =
                    hbk_session_new(x.m, x.w[i % 3 ? i % 3 : own], 1, ROOM, HBK_F32, NULL, &err);
                hbk_scoring item = items[i];
                item.adapter = NULL;
                check_ok(hbk_score(one, &item, 1, &err));
                check_near(items[i].log_likelihood, item.log_likelihood, T13_BAR);
                hbk_session_free(one);
            }
            bool same = fabs(items[1].log_likelihood - items[3].log_likelihood) < 1e-3;
            assert_true(same == (own == 1)); /* item 3 names none */
            assert_true(fabs(items[1].log_likelihood - items[5].log_likelihood) > 1e-3);
            hbk_session_free(s);
        }
    t13_several_free(&x);
}

/* Promise: a session that switches is as a new one with that adapter; a slot that holds another adapter's
   tokens does not change hands; an adapter of another base is refused everywhere, and nothing is changed. */
static void t13_several_switch(void **state)
{
    (void)state;
    hbk_error err;
    int32_t ids[20];
    hbk_real one[T13_V];
    t13_ids(ids, 20, 500);
    t13_several x = t13_several_new();
    hbk_config c = t13_config();
    c.ffn_dim++;
    hbk_adapter *other = hbk_adapter_new(&c, 2, 2, 1u << HBK_GATE, 1, NULL, &err);
    hbk_session *s = t13_session(x.m, NULL, 2);
    for (int turn = 0; turn < 6; turn++) { /* up and down in rank, and back to none */
        const hbk_adapter *w = x.w[turn % 3];
        check_ok(hbk_session_switch(s, w, &err));
        assert_int_equal(hbk_session_length(s, 0), 0);
        hbk_real *want = t13_full(x.m, w, ids, 20);
        t13_feed(s, turn % 2, ids, 20, one);
        t13_compare("switched", one, want + 19 * T13_V, 1);
        hbk_free(NULL, want);
    }
    assert_int_equal(hbk_session_length(s, 1), 20); /* of w[2] */
    check_error(hbk_session_adapt(s, 1, x.w[1], &err), HBK_ERROR_OPTION, "slot 1 holds 20 tokens of another");
    check_error(hbk_session_adapt(s, 1, NULL, &err), HBK_ERROR_OPTION, "rewind it to 0");
    check_ok(hbk_session_adapt(s, 1, x.w[2], &err));
    check_error(hbk_session_adapt(s, 0, other, &err), HBK_ERROR_SHAPE, "gate_proj of (29, 20)");
    check_error(hbk_session_switch(s, other, &err), HBK_ERROR_SHAPE, "it is of another base");
    assert_int_equal(hbk_session_length(s, 1), 20);
    check_error(hbk_session_new(x.m, other, 1, 10, HBK_F32, NULL, &err), HBK_ERROR_SHAPE, "gate_proj");
    t13_texts t;
    hbk_sampling o = {0, 1, 0, 4, -1, 0, 1};
    t13_requests(&t, 0);
    t.r[2].adapter = other;
    check_error(hbk_generate(s, t.r, 3, &o, NULL, &err), HBK_ERROR_SHAPE, "gate_proj");
    hbk_scoring item = {ids, ids, 10, 10, 3, other};
    check_error(hbk_score(s, &item, 1, &err), HBK_ERROR_SHAPE, "gate_proj");
    assert_true(item.log_likelihood == 3 && t.r[0].output.n == 0);
    hbk_session_rewind(s, 1, 0);
    check_ok(hbk_session_adapt(s, 1, x.w[1], &err));
    hbk_session_free(s);
    hbk_adapter_free(other);
    t13_several_free(&x);
}

/* ---- stored types, threads, memory ----------------------------------------------------- */

/* The same weights rounded to `t`, once stored so (*packed) and once as reals (returned). Both borrow norms,
   and the packed data is in *block. */
static hbk_model *t13_rounded(const hbk_model *m, hbk_dtype t, hbk_model **packed, char **block)
{
    hbk_error err;
    const hbk_config *c = &m->config;
    hbk_int n = hbk_model_count(c), at = 0;
    hbk_model *plain = hbk_model_random(c, 1, NULL, &err);
    *packed = hbk_model_view(c, m->values, NULL, &err);
    *block = HBK__NEW(NULL, char, 2 * n, &err);
    hbk_matrix *to[64], from;
    int k = 0;
    to[k++] = &(*packed)->embed;
    for (hbk_int l = 0; l < c->n_layers; l++)
        for (int s = 0; s < HBK_N_SLOTS; s++) to[k++] = &(*packed)->layers[l].w[s];
    to[k] = &(*packed)->head;
    char name[96];
    k = 0;
    for (hbk_int i = 0; hbk_tensor_at(m, i, name, &from); i++) {
        hbk_int size = from.rows * from.cols;
        if (from.rows == 1) {
            memcpy(plain->values + at, from.data, (size_t)size * sizeof(hbk_real));
        } else {
            hbk_pack(*block + 2 * at, t, (const hbk_real *)from.data, size);
            to[k]->dtype = t;
            to[k]->data = *block + 2 * at;
            hbk_matrix_unpack(plain->values + at, to[k++], 0, from.rows);
        }
        at += size;
    }
    return plain;
}

/* Promise: a model whose matrices are stored as bf16 or f16 gives, in prompts and in steps, alone and with an
   adapter, the logits of the same rounded weights in reals, and not those of the weights before rounding. */
static void t13_stored_types(void **state)
{
    (void)state;
    static const hbk_dtype types[] = {HBK_BF16, HBK_F16};
    int32_t ids[40];
    hbk_real one[T13_V];
    t13_ids(ids, 40, 70);
    hbk_model *m = t13_model(), *packed;
    hbk_adapter *w = t13_adapter(m);
    for (int k = 0; k < 4; k++) {
        char *block;
        const hbk_adapter *adapter = k / 2 ? w : NULL;
        hbk_model *plain = t13_rounded(m, types[k % 2], &packed, &block);
        hbk_real *want = t13_full(plain, adapter, ids, 40), *other = t13_full(m, adapter, ids, 40);
        hbk_session *s = t13_session(packed, adapter, 1);
        t13_feed(s, 0, ids, 30, one);
        double worst = t13_compare("prompt", one, want + 29 * T13_V, 1);
        for (hbk_int i = 30; i < 40; i++) {
            t13_feed(s, 0, ids + i, 1, one);
            worst = fmax(worst, t13_compare("step", one, want + i * T13_V, 1));
        }
        double rounding = 0;
        for (int j = 0; j < T13_V; j++)
            rounding = fmax(rounding, fabs((double)(one[j] - other[39 * T13_V + j])));
        print_message("    %-5s%-10s difference %.1e, of the rounding %.1e\n", hbk_dtype_name(types[k % 2]),
                      adapter ? "adapter" : "", worst, rounding);
        assert_true(rounding > 1e-4);
        hbk_session_free(s);
        hbk_free(NULL, want);
        hbk_free(NULL, other);
        hbk_free(NULL, block);
        hbk_model_free(packed);
        hbk_model_free(plain);
    }
    hbk_adapter_free(w);
    hbk_model_free(m);
}

/* Promise: two threads with a session each share one model and adapter, and give what one thread gives. */
static void t13_threads(void **state)
{
    (void)state;
    static t13_texts alone, t[2];
    hbk_error err[2];
    bool ok[2] = {true, true};
    hbk_model *m = t13_model();
    hbk_adapter *w = t13_adapter(m);
    hbk_sampling o = {0.8, 0.9, 0, 30, -1, 0, 1};
    t13_alone(m, w, &alone, 10, &o);
    for (int i = 0; i < 2; i++) t13_requests(&t[i], 10);
#ifdef _OPENMP
#pragma omp parallel for num_threads(2) schedule(static, 1)
#endif
    for (int i = 0; i < 2; i++) {
        hbk_session *s = hbk_session_new(m, w, 2 + i, T13_ROOM, HBK_F32, NULL, &err[i]);
        ok[i] = s && hbk_generate(s, t[i].r, T13_REQUESTS, &o, NULL, &err[i]);
        hbk_session_free(s);
    }
    for (int i = 0; i < 2; i++) {
        if (!ok[i]) fail_msg("%s", err[i].message);
        for (int k = 0; k < T13_REQUESTS; k++) t13_same_text("thread", &t[i].r[k], &alone.r[k]);
        t13_requests_free(&t[i]);
    }
    t13_requests_free(&alone);
    hbk_adapter_free(w);
    hbk_model_free(m);
}

typedef struct t13_world {
    hbk_model *m;
    hbk_tokenizer *tok;
    hbk_adapter *w[2];
} t13_world;

/* Generates and scores with an allocator that may refuse. */
static bool t13_serve(void *ctx, hbk_allocator *a, hbk_error *err)
{
    static t13_texts t;
    const t13_world *c = (const t13_world *)ctx;
    hbk_sampling o = {0.5, 1, 0, 40, -1, 0, 1.1};
    hbk_session *s = hbk_session_new(c->m, NULL, 2, 80, HBK_F32, a, err);
    static const char *const stops[] = {"no such text"};
    hbk_reply reply;
    hbk_logprobs p;
    memset(&reply, 0, sizeof reply);
    memset(&p, 0, sizeof p);
    t13_requests(&t, 9);
    for (int i = 0; i < 3; i++) t.r[i].output.alloc = a;
    reply.alloc = p.alloc = a;
    reply.tok = c->tok;
    reply.stops = stops;
    reply.n_stops = 1;
    p.n_top = 3;
    t.r[0].reply = &reply;
    t.r[1].logprobs = &p;
    t.r[2].finish = HBK_FINISH_COUNT;
    t.r[1].adapter = c->w[0];
    hbk_scoring item = {t.prompt[0], t.prompt[1], 10, 5, 3, c->w[0]};
    hbk_rng before = t.r[1].rng;
    bool made = s && hbk_generate(s, t.r, 3, &o, NULL, err);
    if (s && !made) { /* as if nothing had happened */
        assert_int_equal(t.r[0].output.n + t.r[1].output.n + t.r[2].output.n + p.n, 0);
        assert_int_equal(t.r[2].finish, HBK_FINISH_COUNT);
        assert_memory_equal(&before, &t.r[1].rng, sizeof before);
    }
    bool ok = made && hbk_score(s, &item, 1, err);
    assert_true(ok || item.log_likelihood > 2);
    const hbk_adapter *of = ok ? s->of[0] : NULL;
    if (ok && !hbk_session_switch(s, c->w[1], err)) { /* of more rank: as it was */
        assert_true(!s->adapter && s->length[0] > 0 && s->of[0] == of && of != c->w[1]);
        ok = false;
    }
    hbk_reply_free(&reply);
    hbk_logprobs_free(&p);
    t13_requests_free(&t);
    hbk_session_free(s);
    return ok;
}

/* Promise: whatever allocation fails, generating and scoring report it, leave their outputs as they were and
   leak nothing. */
static void t13_no_memory(void **state)
{
    (void)state;
    t13_several x = t13_several_new();
    t13_world c = {x.m, t13_tokenizer(false), {x.w[1], x.w[2]}};
    assert_true(fault_sweep(t13_serve, &c) > 30);
    hbk_tokenizer_free(c.tok);
    t13_several_free(&x);
}

static const struct CMUnitTest tests_13[] = {
    cmocka_unit_test(t13_steps),         cmocka_unit_test(t13_ragged),
    cmocka_unit_test(t13_fork_rewind),   cmocka_unit_test(t13_bf16_cache),
    cmocka_unit_test(t13_bf16_memory),   cmocka_unit_test(t13_refusals),
    cmocka_unit_test(t13_together),      cmocka_unit_test(t13_neighbours),
    cmocka_unit_test(t13_finish),        cmocka_unit_test(t13_streaming),
    cmocka_unit_test(t13_score_when_busy),
    cmocka_unit_test(t13_greedy),        cmocka_unit_test(t13_sampling),
    cmocka_unit_test(t13_ties),
    cmocka_unit_test(t13_no_numbers),       cmocka_unit_test(t13_penalty),
    cmocka_unit_test(t13_bad_options),   cmocka_unit_test(t13_reuse),
    cmocka_unit_test(t13_stop_strings),  cmocka_unit_test(t13_held_back),
    cmocka_unit_test(t13_replies),       cmocka_unit_test(t13_log_probabilities),
    cmocka_unit_test(t13_score),         cmocka_unit_test(t13_score_groups),
    cmocka_unit_test(t13_score_after),
    cmocka_unit_test(t13_several_slots), cmocka_unit_test(t13_several_requests),
    cmocka_unit_test(t13_several_beginnings),
    cmocka_unit_test(t13_linked_slots),  cmocka_unit_test(t13_linked_anew),
    cmocka_unit_test(t13_several_lined_up), cmocka_unit_test(t13_several_scores),
    cmocka_unit_test(t13_several_switch),
    cmocka_unit_test(t13_stored_types),  cmocka_unit_test(t13_threads),
    cmocka_unit_test(t13_no_memory),
};
