/* bench.h - `humpback bench`: how fast the library is on this machine - public domain, see humpback.h

   Rows, on random weights of three well-known shapes or on a file's, are those of BENCH_ABOUT.

   Machines differ, so each time stands beside a ceiling that was measured in the same process, turn by turn:
   OpenBLAS's sgemm on f32 products of the same shapes,

       forward (N, in) x (in, out)     dX (N, out) x (out, in)     dW (out, N) x (N, in)

   which leaves out attention, norms, softmax, the adapter and the optimiser. (Of a LoRA step it includes the
   dX below the lowest adapter, which the trainer skips: at most 2 % for these shapes.) GFLOP/s counts these
   products alone, on both sides; the share of the ceiling that is reached may be above 1 where weights of 16
   bits need only half of the memory's speed. GB/s is weights read per second, where that is the limit; its
   share is of the row `memory`. All figures are medians.

   Of `tokens`: all that a step does is done for each token alone, but attention, which looks back on all
   tokens before. So sequences of one length T should take a time that grows as their number does, and one
   sequence of n tokens longer, for it has (n^2 - n T) / 2 pairs more of a query and a key. That difference,
   its time per pair, and attention's products in it (two forward, five backward) per second stand apart.

   --only work measures without the ceilings, in a process no larger than the work, and --only ceiling
   the ceilings alone: tools/bench-peers asks for both, to set them beside other libraries. --least is for
   tests: it fails when a row's share is below it.

   Include after cli.h. */

#ifndef TOOL_BENCH_H
#define TOOL_BENCH_H

#include "cli.h"

enum { BENCH_REPEATS = 3, BENCH_MOST_REPEATS = 99, BENCH_PREFILL = 512, BENCH_PAST = 128 };
enum { BENCH_LONGEST = 4096 }; /* tokens of a sequence */
enum { BENCH_DECODE1 = 32, BENCH_DECODE16 = 8, BENCH_DECODE64 = 4, BENCH_MOST_SLOTS = 64 }; /* steps, slots */
enum { BENCH_RUBRIC = 500, BENCH_PAIR = 150, BENCH_REPLY = 32, BENCH_PAIRS = 64, BENCH_SLOTS = 32 };

/* X(row, its name, measured unless --rows is given) */
#define BENCH_TABLE(X)                                                                                       \
    X(MEMORY, "memory", true)                                                                                \
    X(OPEN, "open", false)                                                                                   \
    X(LORA, "lora", true)                                                                                    \
    X(RECOMPUTE, "recompute", false)                                                                         \
    X(FULL, "full", false)                                                                                   \
    X(PREFILL, "prefill", true)                                                                              \
    X(DECODE1, "decode1", true)                                                                              \
    X(DECODE16, "decode16", true)                                                                            \
    X(DECODE64, "decode64", false)                                                                           \
    X(CURATE, "curate", false)                                                                               \
    X(APART, "apart", false)                                                                                 \
    X(TOKENS, "tokens", false) /* the last, whose table is another */
#define BENCH_LIST                                                                                           \
    "memory, open, lora, recompute, full, prefill, decode1, decode16, decode64, curate, apart, tokens"
typedef enum bench_row {
#define BENCH_X(row, name, usual) BENCH_ROW_##row,
    BENCH_TABLE(BENCH_X)
#undef BENCH_X
        BENCH_ROWS
} bench_row;
#define BENCH_X(row, name, usual) name,
static const char *const bench_rows[] = {BENCH_TABLE(BENCH_X)};
#undef BENCH_X
#define BENCH_X(row, name, usual) usual,
static const bool bench_usual[] = {BENCH_TABLE(BENCH_X)};
#undef BENCH_X

static const cli_flag bench_flags[] = {
    {"shape", CLI_CHOICE, "15m|135m|1b", "135m", "of the model: 1b needs 5 GB", 0, 0, CLI_FREE},
    {"model", CLI_TEXT, "PATH", NULL, "a model in place of random weights: --shape and --dtype are its own",
     0, 0, CLI_FREE},
    {"rows", CLI_TEXT, "LIST", "(memory,lora,prefill,decode1,decode16; of 15m full too)",
     "what to measure, of " BENCH_LIST, 0, 0, CLI_FREE},
    {"dtype", CLI_CHOICE, "f32|bf16|q8_0|q4_0|f16", "f32", "of the weights", 0, 0, CLI_FREE},
    {"cache", CLI_CHOICE, "f32|bf16", "f32", "of the keys and values that generating keeps", 0, 0, CLI_FREE},
    {"precision", CLI_CHOICE, "f32|bf16", "f32", "of products: bf16 rounds both sides", 0, 0, CLI_FREE},
    {"tokens", CLI_TEXT, "SxT", "4x256",
     "a training step: S sequences of T tokens; with --rows tokens: from T tokens to S*T", 0, 0, CLI_FREE},
    {"repeats", CLI_INT, "N", "3", "measurements per row, after one that warms up", 1, BENCH_MOST_REPEATS,
     CLI_FREE},
    {"pairs", CLI_INT, "N", "64", "that curate and apart rate", 2, BENCH_PAIRS, CLI_FREE},
    {"only", CLI_CHOICE, "work|ceiling", "(both)", "what to measure", 0, 0, CLI_FREE},
    {"least", CLI_REAL, "R", "(none)", "exit with 1 when a row's fastest turn is slower than R of sgemm's", 0,
     100, CLI_FREE},
    {"json", CLI_SWITCH, NULL, NULL, "the rows as a JSON array on stdout", 0, 0, CLI_FREE},
    CLI_END};
static const cli_group bench_group = {"Flags", bench_flags, NULL, NULL};

#define BENCH_ABOUT                                                                                          \
    "Rows\n"                                                                                                 \
    "  memory    bytes that all threads together read in a second, out of a gigabyte\n"                      \
    "  open      from the name of a model's file to the logits of a first token (with --model)\n"            \
    "  lora      one step of LoRA finetuning: rank 16, seven projections, loss on every token\n"             \
    "  recompute the same in less memory: of a layer only the input is kept for the backward\n"              \
    "  full      one step that trains every weight\n"                                                        \
    "  prefill   512 tokens into an empty cache\n"                                                           \
    "  decode1   one token after another, 128 tokens into a text\n"                                          \
    "  decode16  the same for 16 texts side by side\n"                                                       \
    "  decode64  and for 64\n"                                                                               \
    "  curate    pairs rated: a rubric of 500 tokens, computed once, pairs of 150, replies of 32\n"          \
    "  apart     the same with prompts that share no beginning\n"                                            \
    "  tokens    how a LoRA step grows: T tokens, 2T ... S*T, as sequences of T and as one\n"                \
    "\nColumns\n"                                                                                            \
    "  tokens/s  pairs/s of curate and apart\n"                                                              \
    "  seconds   of a step, a prompt, a token of each text, all pairs\n"                                     \
    "  GFLOP/s   products with weights alone; sgemm: those by OpenBLAS in f32; of sgemm: the share\n"        \
    "  GB/s      weights read; of mem: the share of the row memory, where that is measured, too\n"           \
    "  peak MB   the weights and what the row allocates; progress counts the whole process\n"                \
    "and of the row tokens\n"                                                                                \
    "  per 1024  seconds for 1,024 tokens, as sequences of T and as one\n"                                   \
    "  square    seconds that one sequence takes longer: attention's square term; below 0: noise\n"          \
    "  ns/pair   of a query and a key, in all layers; GFLOP/s: attention's products in them"
static const cli_flag bench_no_flags[] = {CLI_END};
static const cli_group bench_about = {BENCH_ABOUT, bench_no_flags, NULL, NULL};

/* One row's measurements: medians. */
typedef struct bench_result {
    double seconds, tokens_per_s, gflops, gbps, peak_mb, sgemm_gflops;
    double best; /* share of the ceiling, fastest turn against fastest turn: what else runs only slows */
} bench_result;  /* NAN: not measured */

/* What is measured. A row allocates through `alloc`, which counts. */
typedef struct bench {
    hbk_model *model;
    const char *shape, *path; /* path: --model or NULL */
    hbk_int n_seqs, T, repeats, pairs;
    bool work, ceiling;       /* what of the two is measured */
    hbk_dtype cache;
    bool rounds;              /* products may round to bf16 */
    double memory_gbps;       /* of the row; 0: not measured */
    hbk_allocator alloc;
    int32_t *tokens, *targets; /* random ids, as many as any row needs */
    hbk_int *starts;
    hbk_int n_tokens;
    hbk_real *logits;          /* (BENCH_MOST_SLOTS, V) */
    /* the ceiling: weights and activations for sgemm */
    float *pool, *x, *y;
    hbk_int pool_size, at, rows;
} bench;

static int bench_compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double bench_median(double *x, hbk_int n)
{
    qsort(x, (size_t)n, sizeof *x, bench_compare);
    return n % 2 ? x[n / 2] : 0.5 * (x[n / 2 - 1] + x[n / 2]);
}

/* ---- the model --------------------------------------------------------------------- */

static hbk_config bench_config(int shape)
{
    static const hbk_int sizes[3][7] = {/* L, H, K, D, C, F, V */
                                        {6, 6, 6, 48, 288, 768, 32000},
                                        {30, 9, 3, 64, 576, 1536, 49152},
                                        {22, 32, 4, 64, 2048, 5632, 32000}};
    const hbk_int *s = sizes[shape];
    hbk_config c;
    memset(&c, 0, sizeof c);
    c.n_layers = s[0];
    c.n_heads = s[1];
    c.n_kv_heads = s[2];
    c.head_dim = s[3];
    c.dim = s[4];
    c.ffn_dim = s[5];
    c.vocab_size = s[6];
    c.context_length = 2048;
    c.rms_norm_eps = 1e-5;
    c.rope_theta = 10000;
    c.tied = shape < 2;
    c.bos = 1;
    return c;
}

/* Packs n reals, a multiple of 32, as Q4_0: blocks of a scale d and 32 nibbles, (nibble - 8) d, the first 16
   elements in the low halves. d takes the largest of the block to -8. */
static void bench_pack_q4_0(unsigned char *out, const hbk_real *x, hbk_int n)
{
    for (hbk_int b = 0; b < n; b += 32, x += 32, out += 18) {
        hbk_real largest = 0;
        for (int i = 0; i < 32; i++)
            if (fabs((double)x[i]) > fabs((double)largest)) largest = x[i];
        hbk_real d = largest / -8;
        double inverse = d < 0 || d > 0 ? 1 / (double)d : 0;
        hbk_pack(out, HBK_F16, &d, 1);
        for (int i = 0; i < 16; i++) {
            int low = (int)((double)x[i] * inverse + 8.5), high = (int)((double)x[i + 16] * inverse + 8.5);
            out[2 + i] = (unsigned char)(HBK__MIN(low, 15) | HBK__MIN(high, 15) << 4);
        }
    }
}

/* Packs a matrix of reals to `type` where it lies: the beginning of its memory. `row` holds one row. */
static void bench_pack(hbk_matrix *w, hbk_dtype type, hbk_real *row)
{
    for (hbk_int i = 0; i < w->rows; i++) {
        memcpy(row, (const hbk_real *)w->data + i * w->cols, (size_t)w->cols * sizeof *row);
        unsigned char *out = (unsigned char *)w->data + hbk_dtype_size(type, i * w->cols);
        if (type == HBK_Q4_0) bench_pack_q4_0(out, row, w->cols);
        else hbk_pack(out, type, row, w->cols);
    }
    w->dtype = type;
}

static bool bench_pack_all(hbk_model *m, hbk_dtype type, hbk_error *err)
{
    const hbk_config *c = &m->config;
    hbk_real *row = (hbk_real *)hbk_alloc(NULL, HBK__MAX(c->ffn_dim, c->dim), sizeof *row, err);
    if (!row) return false;
    bench_pack(&m->embed, type, row);
    if (c->tied) m->head = m->embed;
    else bench_pack(&m->head, type, row);
    for (hbk_int l = 0; l < c->n_layers; l++)
        for (int s = 0; s < HBK_N_SLOTS; s++) bench_pack(&m->layers[l].w[s], type, row);
    hbk_free(NULL, row);
    return true;
}

/* Bytes of the weights as they are stored; without the embedding's, of which a token reads one row only. */
static double bench_bytes(const hbk_model *m, bool read_by_a_token)
{
    char name[96];
    hbk_matrix w;
    double bytes = 0;
    for (hbk_int i = 0; hbk_tensor_at(m, i, name, &w); i++)
        if (!read_by_a_token || m->config.tied || w.data != m->embed.data)
            bytes += (double)w.rows * (double)hbk_dtype_size(w.dtype, w.cols);
    return bytes;
}

/* ---- the ceiling ------------------------------------------------------------------- */

/* What a row multiplies: N rows through every projection, n_head through the head, and whether dX and dW
   follow. */
typedef struct bench_products {
    hbk_int N, n_head;
    bool dx, dw;
} bench_products;

static double bench_flops(const hbk_config *c, const bench_products *p)
{
    double q = (double)(c->n_heads * c->head_dim), kv = (double)(c->n_kv_heads * c->head_dim);
    double C = (double)c->dim, F = (double)c->ffn_dim;
    double layers = (double)c->n_layers * (2 * C * q + 2 * C * kv + 3 * C * F);
    double once = 2 * ((double)p->N * layers + (double)p->n_head * (double)c->vocab_size * C);
    return once * (1 + p->dx + p->dw);
}

#ifdef HBK_NO_BLAS
static double bench_sgemm(bench *b, const bench_products *p)
{
    (void)b;
    (void)p;
    return (double)NAN;
}
#else
/* One product and what follows from it in training, with weights out of the pool; returns seconds. */
static double bench_product(bench *b, hbk_int N, hbk_int in, hbk_int out, const bench_products *p)
{
    int n = (int)N, i = (int)in, o = (int)out;
    if (b->at + in * out > b->pool_size) b->at = 0;
    float *w = b->pool + b->at;
    b->at += in * out;
    double start = cli_now(NULL);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, n, o, i, 1, b->x, i, w, i, 0, b->y, o);
    if (p->dx) cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, n, i, o, 1, b->y, o, w, i, 0, b->x, i);
    if (p->dw)
        cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, o, i, n, 1e-9f, b->y, o, b->x, i, 1, w, i);
    return cli_now(NULL) - start;
}

/* Seconds that sgemm takes for a row's products. Of large products one layer stands for all; of small ones
   every layer is walked, for they live on memory. The head is taken in pieces, as in training. */
static double bench_sgemm(bench *b, const bench_products *p)
{
    const hbk_config *c = &b->model->config;
    hbk_int C = c->dim, F = c->ffn_dim, q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    hbk_int walked = p->N >= 64 ? 1 : c->n_layers, piece = HBK__MIN(p->n_head, 128);
    double layers = 0;
    for (hbk_int k = 0; k < walked; k++) {
        layers += bench_product(b, p->N, C, q, p) + bench_product(b, p->N, q, C, p);
        for (int i = 0; i < 2; i++)
            layers += bench_product(b, p->N, C, kv, p) + bench_product(b, p->N, C, F, p);
        layers += bench_product(b, p->N, F, C, p);
    }
    double head = bench_product(b, piece, C, c->vocab_size, p);
    return layers * (double)c->n_layers / (double)walked + head * (double)p->n_head / (double)piece;
}
#endif

/* Memory for the ceiling's products: weights of at most half a gigabyte, walked in a circle. */
static bool bench_pool(bench *b, hbk_error *err)
{
    const hbk_config *c = &b->model->config;
    hbk_int widest = HBK__MAX(c->ffn_dim, c->dim), head = c->vocab_size * c->dim;
    b->rows = HBK__MAX(b->n_seqs * b->T, BENCH_PREFILL);
    b->pool_size = HBK__MAX(HBK__MIN(hbk_model_count(c), (hbk_int)1 << 27), head);
    b->pool = (float *)hbk_alloc(NULL, b->pool_size, sizeof *b->pool, err);
    if (b->pool) b->x = (float *)hbk_alloc(NULL, b->rows * widest, sizeof *b->x, err);
    if (b->x)
        b->y = (float *)hbk_alloc(NULL, HBK__MAX(b->rows * widest, 128 * c->vocab_size), sizeof *b->y, err);
    if (!b->y) return false;
    for (hbk_int i = 0; i < b->pool_size; i++) b->pool[i] = (float)(i % 7 - 3) * 0.01f;
    for (hbk_int i = 0; i < b->rows * widest; i++) b->x[i] = (float)(i % 5 - 2) * 0.1f;
    return true;
}

/* Bytes per second that all threads together read, median, out of a gigabyte that no cache holds; or a
   negative number on failure. */
static double bench_memory(hbk_int repeats, hbk_error *err)
{
    const hbk_int n = (hbk_int)1 << 27;
    double seconds[BENCH_MOST_REPEATS];
    uint64_t *words = (uint64_t *)hbk_alloc(NULL, n, sizeof *words, err), sum = 0;
    if (!words) return -1;
#pragma omp parallel for
    for (hbk_int i = 0; i < n; i++) words[i] = (uint64_t)i;
    for (hbk_int k = -1; k < repeats; k++) {
        double start = cli_now(NULL);
#pragma omp parallel for reduction(+ : sum)
        for (hbk_int i = 0; i < n; i += 8) /* eight sums, so that no addition waits for the one before */
            sum += ((words[i] + words[i + 1]) + (words[i + 2] + words[i + 3])) +
                   ((words[i + 4] + words[i + 5]) + (words[i + 6] + words[i + 7]));
        if (k >= 0) seconds[k] = cli_now(NULL) - start;
    }
    bool read = sum == (uint64_t)(repeats + 1) * ((uint64_t)n * (uint64_t)(n - 1) / 2); /* so it must be */
    hbk_free(NULL, words);
    if (!read) hbk_fail(err, HBK_ERROR_NUMERIC, "memory: a gigabyte was written and is not what is read");
    return read ? (double)n * 8 / bench_median(seconds, repeats) : -1;
}

/* ---- rows --------------------------------------------------------------------------- */

/* What a row's unit of work needs. */
typedef struct bench_work {
    bench *b;
    bench_row row;
    hbk_trainer *trainer;
    hbk_session *session;
    hbk_batch batch;
    hbk_int slots, steps;
    hbk_int tokens;          /* in one measurement */
    bench_products products; /* of one of its steps */
} bench_work;

static void bench_work_free(bench_work *w)
{
    hbk_trainer_free(w->trainer);
    hbk_session_free(w->session);
}

static bool bench_train_new(bench_work *w, hbk_error *err)
{
    bench *b = w->b;
    hbk_train_options o = hbk_train_defaults(w->row == BENCH_ROW_FULL);
    hbk_int N = b->n_seqs * b->T;
    o.dropout = 0;
    o.recompute = w->row == BENCH_ROW_RECOMPUTE;
    w->steps = 1;
    w->tokens = N;
    w->products.N = w->products.n_head = N;
    w->products.dx = true;
    w->products.dw = o.full;
    if (!b->work) return true;
    w->batch.n_tokens = N;
    w->batch.n_seqs = b->n_seqs;
    w->batch.tokens = b->tokens;
    w->batch.targets = b->targets;
    w->batch.seq_start = b->starts;
    w->trainer = hbk_trainer_new(b->model, &o, NULL, N, b->T, &b->alloc, err);
    return w->trainer != NULL;
}

/* Appends n tokens to every slot. */
static bool bench_feed(bench_work *w, hbk_int n, hbk_error *err)
{
    hbk_feed feeds[BENCH_MOST_SLOTS];
    for (hbk_int i = 0; i < w->slots; i++) {
        feeds[i].slot = i;
        feeds[i].tokens = w->b->tokens + i;
        feeds[i].n = n;
    }
    return hbk_session_feed(w->session, feeds, w->slots, false, w->b->logits, err);
}

static bool bench_decode_new(bench_work *w, hbk_error *err)
{
    bool prefill = w->row == BENCH_ROW_PREFILL;
    w->slots = w->row == BENCH_ROW_DECODE64 ? 64 : w->row == BENCH_ROW_DECODE16 ? 16 : 1;
    w->steps = prefill          ? 1
               : w->slots == 1  ? BENCH_DECODE1
               : w->slots == 16 ? BENCH_DECODE16
                                : BENCH_DECODE64;
    w->tokens = prefill ? BENCH_PREFILL : w->slots * w->steps;
    w->products.N = prefill ? BENCH_PREFILL : w->slots;
    w->products.n_head = w->slots;
    if (!w->b->work) return true;
    w->session = hbk_session_new(w->b->model, NULL, w->slots, BENCH_PREFILL, w->b->cache, &w->b->alloc, err);
    return w->session && (prefill || bench_feed(w, BENCH_PAST, err));
}

/* From the file's name to the logits of one token. The turn that warms up has brought it into memory. */
static bool bench_load(bench *b, hbk_error *err)
{
    hbk_feed feed = {0, b->tokens, 1};
    hbk_model *m = hbk_model_load(b->path, NULL, err);
    hbk_session *s = m ? hbk_session_new(m, NULL, 1, BENCH_PREFILL, b->cache, &b->alloc, err) : NULL;
    bool ok = s && hbk_session_feed(s, &feed, 1, false, b->logits, err);
    hbk_session_free(s);
    hbk_model_free(m);
    return ok;
}

/* Rates the pairs in a fresh session, which holds nothing of an earlier turn. Without sharing the first ids
   differ, and the work of a prompt is what it was. */
static bool bench_rate(bench *b, bool shared, hbk_error *err)
{
    enum { LENGTH = BENCH_RUBRIC + BENCH_PAIR };
    hbk_request r[BENCH_PAIRS];
    hbk_int V = b->model->config.vocab_size;
    hbk_sampling greedy = hbk_sampling_defaults();
    memset(r, 0, sizeof r);
    greedy.temperature = 0;
    greedy.max_new = BENCH_REPLY;
    int32_t *ids = (int32_t *)hbk_alloc(NULL, b->pairs * LENGTH, sizeof *ids, err);
    hbk_session *s = ids ? hbk_session_new(b->model, NULL, BENCH_SLOTS, LENGTH + BENCH_REPLY, b->cache,
                                           &b->alloc, err)
                         : NULL;
    for (hbk_int i = 0; s && i < b->pairs; i++) {
        hbk_rng rubric = hbk_rng_at(1, "rubric", 0), pair = hbk_rng_at(1, "pair", (uint64_t)i);
        int32_t *p = ids + i * LENGTH;
        for (hbk_int k = 0; k < LENGTH; k++)
            p[k] = (int32_t)hbk_rng_below(k < BENCH_RUBRIC ? &rubric : &pair, V);
        if (!shared) p[0] = (int32_t)i;
        p[BENCH_RUBRIC] = (int32_t)i; /* two pairs have nothing more in common */
        r[i].prompt = p;
        r[i].n_prompt = LENGTH;
    }
    bool ok = s && hbk_generate(s, r, b->pairs, &greedy, NULL, err);
    for (hbk_int i = 0; i < BENCH_PAIRS; i++) hbk_tokens_free(&r[i].output);
    hbk_session_free(s);
    hbk_free(NULL, ids);
    return ok;
}

static bool bench_new(bench_work *w, hbk_error *err)
{
    w->steps = w->tokens = 1;
    if (w->row == BENCH_ROW_OPEN) return true;
    if (w->row == BENCH_ROW_CURATE || w->row == BENCH_ROW_APART) {
        w->tokens = w->b->pairs;
        return true;
    }
    return w->row >= BENCH_ROW_LORA && w->row <= BENCH_ROW_FULL ? bench_train_new(w, err)
                                                                 : bench_decode_new(w, err);
}

/* Does the work once. */
static bool bench_once(bench_work *w, hbk_error *err)
{
    double loss;
    if (w->row == BENCH_ROW_OPEN) return bench_load(w->b, err);
    if (w->row == BENCH_ROW_CURATE || w->row == BENCH_ROW_APART)
        return bench_rate(w->b, w->row == BENCH_ROW_CURATE, err);
    if (w->trainer)
        return hbk_trainer_accumulate(w->trainer, &w->batch, 1 / (double)w->tokens, &loss, err) &&
               hbk_trainer_update(w->trainer, 1e-6, NULL, err);
    hbk_int past = w->row == BENCH_ROW_PREFILL ? 0 : BENCH_PAST;
    for (hbk_int i = 0; i < w->slots; i++) hbk_session_rewind(w->session, i, past);
    for (hbk_int i = 0; i < w->steps; i++)
        if (!bench_feed(w, w->row == BENCH_ROW_PREFILL ? BENCH_PREFILL : 1, err)) return false;
    return true;
}

/* What the medians of a row mean. */
static void bench_figures(const bench_work *w, double seconds, double ceiling, bench_result *r)
{
    const bench *b = w->b;
    double flops = bench_flops(&b->model->config, &w->products), weights = bench_bytes(b->model, true);
    bool products = w->products.N > 0, training = w->products.dx;
    r->seconds = seconds;
    r->tokens_per_s = (double)w->tokens / (double)w->steps / seconds;
    r->gflops = products ? flops / seconds * 1e-9 : (double)NAN;
    r->sgemm_gflops = products ? flops / ceiling * 1e-9 : (double)NAN;
    r->gbps = products && !training ? weights / seconds * 1e-9 : (double)NAN;
    r->peak_mb = (bench_bytes(b->model, false) + (double)b->alloc.peak) * 1e-6;
}

/* One row: work and ceiling in turn, after one turn that warms up; it means nothing to
   ratings, which take long. */
static bool bench_measure(bench *b, bench_row row, bench_result *r, const hbk_progress *progress,
                          hbk_error *err)
{
    bench_work w;
    double seconds[BENCH_MOST_REPEATS], ceiling[BENCH_MOST_REPEATS];
    memset(&w, 0, sizeof w);
    memset(&b->alloc, 0, sizeof b->alloc);
    w.b = b;
    w.row = row;
    bool ok = bench_new(&w, err);
    bool ratings = row == BENCH_ROW_CURATE || row == BENCH_ROW_APART;
    for (hbk_int i = ratings ? 0 : -1; ok && i < b->repeats; i++) {
        double start = cli_now(NULL);
        ok = !b->work || bench_once(&w, err);
        double done = cli_now(NULL);
        double sgemm = b->ceiling && w.products.N ? bench_sgemm(b, &w.products) : (double)NAN;
        if (i >= 0) {
            seconds[i] = b->work ? (done - start) / (double)w.steps : (double)NAN;
            ceiling[i] = sgemm;
        }
        ok = ok && hbk_report(progress, bench_rows[row], i + 1, b->repeats, "repeats", err, "%s", "");
    }
    if (ok) { /* bench_median sorts: the fastest comes to stand first */
        double work = bench_median(seconds, b->repeats), sgemm = bench_median(ceiling, b->repeats);
        bench_figures(&w, work, sgemm, r);
        r->best = ceiling[0] / seconds[0];
    }
    bench_work_free(&w);
    return ok;
}

/* ---- what is printed ------------------------------------------------------------------ */

static const char *bench_type(const bench *b)
{
    return hbk_dtype_name(b->model->layers[0].w[HBK_Q].dtype);
}

static json_t *bench_number(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static json_t *bench_json(const bench *b, bench_row row, const bench_result *r)
{
    if (row == BENCH_ROW_MEMORY) return json_pack("{s:s, s:f}", "row", bench_rows[row], "gbps", r->gbps);
    const char *rate = row == BENCH_ROW_CURATE || row == BENCH_ROW_APART ? "pairs_per_s" : "tokens_per_s";
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:o, s:o, s:o, s:o, s:f, s:o}", "row", bench_rows[row],
                     "shape", b->shape, "dtype", bench_type(b), "precision", hbk_model_precision(b->model),
                     "cache", hbk_dtype_name(b->cache), rate, bench_number(r->tokens_per_s), "seconds",
                     bench_number(r->seconds), "gflops", bench_number(r->gflops), "gbps",
                     bench_number(r->gbps), "peak_mb", r->peak_mb, "sgemm_gflops",
                     bench_number(r->sgemm_gflops));
}

/* A column: the number, or blanks where it was not measured. */
static void bench_cell(int width, int digits, double x)
{
    if (isfinite(x)) printf(" %*.*f", width, digits, x);
    else printf(" %*s", width, "");
}

static void bench_print(const bench *b, bench_row row, const bench_result *r)
{
    bool memory = row == BENCH_ROW_MEMORY;
    printf("%-9s %-6s %-5s", bench_rows[row], memory ? "" : b->shape, memory ? "" : bench_type(b));
    bench_cell(10, 1, r->tokens_per_s);
    bench_cell(10, 4, r->seconds);
    bench_cell(9, 1, r->gflops);
    bench_cell(9, 1, r->sgemm_gflops);
    bench_cell(8, 2, r->gflops / r->sgemm_gflops);
    bench_cell(8, 1, r->gbps);
    bench_cell(8, 2, memory || b->memory_gbps == 0 ? (double)NAN : r->gbps / b->memory_gbps);
    bench_cell(9, 0, r->peak_mb);
    puts("");
    fflush(stdout);
}

/* ---- tokens ---------------------------------------------------------------------------- */

/* A step of so many tokens: medians. */
typedef struct bench_length {
    hbk_int tokens, sequences;
    double seconds, one;                /* as sequences of T, as one; NAN: beyond the model's context */
    double square, ns_per_pair, gflops; /* what one takes longer, and attention's products in that */
} bench_length;

/* Seconds of a step over the first n tokens in sequences of T. */
static bool bench_step(bench_work *w, hbk_int n, hbk_int T, double *seconds, hbk_error *err)
{
    hbk_int one[2] = {0, n};
    double start = cli_now(NULL);
    w->tokens = w->batch.n_tokens = n;
    w->batch.n_seqs = n / T;
    w->batch.seq_start = n == T ? one : w->b->starts;
    if (!bench_once(w, err)) return false;
    *seconds = cli_now(NULL) - start;
    return true;
}

/* One length: both steps turn by turn. */
static bool bench_grow(bench_work *w, hbk_int sequences, bench_length *r, hbk_error *err)
{
    const bench *b = w->b;
    const hbk_config *c = &b->model->config;
    hbk_int T = b->T, n = sequences * T;
    double many[BENCH_MOST_REPEATS], one[BENCH_MOST_REPEATS], pairs = 0.5 * (double)(n * n - n * T);
    bool fits = n <= c->context_length;
    for (hbk_int i = 0; i < b->repeats; i++) {
        one[i] = (double)NAN;
        if (!bench_step(w, n, T, &many[i], err)) return false;
        if (n == T) one[i] = many[i];
        else if (fits && !bench_step(w, n, n, &one[i], err)) return false;
    }
    r->tokens = n;
    r->sequences = sequences;
    r->seconds = bench_median(many, b->repeats);
    r->one = fits ? bench_median(one, b->repeats) : (double)NAN;
    r->square = n > T ? r->one - r->seconds : (double)NAN;
    r->ns_per_pair = r->square > 0 ? r->square / pairs * 1e9 : (double)NAN; /* none was seen: no figure */
    r->gflops = 7 * 2 * (double)(c->n_layers * c->n_heads * c->head_dim) / r->ns_per_pair;
    return true;
}

static void bench_grown(const bench *b, const bench_length *r, json_t *rows)
{
    double per = 1024 / (double)r->tokens;
    if (rows) {
        json_t *row = json_pack(
            "{s:s, s:s, s:s, s:s, s:I, s:I, s:f, s:o, s:o, s:o, s:o}", "row", "tokens", "shape", b->shape,
            "dtype", bench_type(b), "precision", hbk_model_precision(b->model), "tokens",
            (json_int_t)r->tokens, "sequences", (json_int_t)r->sequences, "seconds", r->seconds,
            "one_seconds", bench_number(r->one), "square_seconds", bench_number(r->square), "ns_per_pair",
            bench_number(r->ns_per_pair), "square_gflops", bench_number(r->gflops));
        json_array_append_new(rows, row);
        return;
    }
    printf("%-9lld %4lld x %-5lld", (long long)r->tokens, (long long)r->sequences, (long long)b->T);
    bench_cell(9, 3, r->seconds);
    bench_cell(10, 3, r->seconds * per);
    bench_cell(9, 3, r->one);
    bench_cell(10, 3, r->one * per);
    bench_cell(9, 3, r->square);
    bench_cell(9, 1, r->ns_per_pair);
    bench_cell(9, 1, r->gflops);
    puts("");
    fflush(stdout);
}

/* The row `tokens`: one trainer with room for the largest step, which warms up with it. Into rows, or, NULL,
   printed. */
static bool bench_lengths(bench *b, cli *c, const hbk_progress *progress, json_t *rows)
{
    hbk_int most = b->n_seqs * b->T, context = b->model->config.context_length;
    hbk_train_options o = hbk_train_defaults(false);
    bench_work w;
    double seconds;
    memset(&w, 0, sizeof w);
    memset(&b->alloc, 0, sizeof b->alloc);
    w.b = b;
    w.batch.tokens = b->tokens;
    w.batch.targets = b->targets;
    o.dropout = 0;
    w.trainer = hbk_trainer_new(b->model, &o, NULL, most, HBK__MAX(HBK__MIN(most, context), b->T), &b->alloc,
                                &c->err);
    bool ok = w.trainer && bench_step(&w, most, b->T, &seconds, &c->err);
    if (ok && !rows)
        puts("tokens    sequences     seconds  per 1024  one seq.  per 1024   square  ns/pair  GFLOP/s");
    for (hbk_int s = 1, before = 0; ok && s > before; before = s, s = HBK__MIN(2 * s, b->n_seqs)) {
        bench_length r;
        ok = bench_grow(&w, s, &r, &c->err) &&
             hbk_report(progress, "tokens", r.tokens, most, "tokens", &c->err, "%s", "");
        cli_draw_end(&c->meter);
        if (ok) bench_grown(b, &r, rows);
    }
    bench_work_free(&w);
    return ok;
}

/* ---- the command ---------------------------------------------------------------------- */

/* The random ids and the model. */
static bool bench_open(bench *b, int shape, hbk_dtype type, hbk_error *err)
{
    hbk_rng rng = hbk_rng_at(1, "bench", 0);
    hbk_config config = bench_config(shape);
    b->n_tokens = HBK__MAX(b->n_seqs * b->T, BENCH_PREFILL) + BENCH_MOST_SLOTS;
    config.context_length = BENCH_LONGEST;
    b->model = b->path ? hbk_model_load(b->path, NULL, err) : hbk_model_random(&config, 1, NULL, err);
    if (!b->model || (!b->path && type != HBK_F32 && !bench_pack_all(b->model, type, err))) return false;
    hbk_model_round(b->model, b->rounds);
    config = b->model->config;
    b->tokens = (int32_t *)hbk_alloc(NULL, b->n_tokens, sizeof *b->tokens, err);
    if (b->tokens) b->targets = (int32_t *)hbk_alloc(NULL, b->n_tokens, sizeof *b->targets, err);
    if (b->targets) b->starts = (hbk_int *)hbk_alloc(NULL, b->n_seqs + 1, sizeof *b->starts, err);
    if (b->starts)
        b->logits =
            (hbk_real *)hbk_alloc(NULL, BENCH_MOST_SLOTS * config.vocab_size, sizeof *b->logits, err);
    if (!b->logits) return false;
    for (hbk_int i = 0; i < b->n_tokens; i++) {
        b->tokens[i] = (int32_t)hbk_rng_below(&rng, config.vocab_size);
        b->targets[i] = (int32_t)hbk_rng_below(&rng, config.vocab_size);
    }
    for (hbk_int i = 0; i <= b->n_seqs; i++) b->starts[i] = i * b->T;
    return !b->ceiling || bench_pool(b, err);
}

static void bench_close(bench *b)
{
    hbk_model_free(b->model);
    hbk_free(NULL, b->tokens);
    hbk_free(NULL, b->targets);
    hbk_free(NULL, b->starts);
    hbk_free(NULL, b->logits);
    hbk_free(NULL, b->pool);
    hbk_free(NULL, b->x);
    hbk_free(NULL, b->y);
}

/* "lora,prefill" -> wanted; the exit code. */
static int bench_wanted(const cli *c, bool small, bool wanted[BENCH_ROWS])
{
    const char *list = cli_text(c, "rows");
    for (int i = 0; i < BENCH_ROWS; i++)
        wanted[i] = !list && (bench_usual[i] || (i == BENCH_ROW_FULL && small));
    for (size_t n; list; list = list[n] ? list + n + 1 : NULL) {
        bool known = false;
        n = strcspn(list, ",");
        for (int i = 0; i < BENCH_ROWS; i++)
            if (strlen(bench_rows[i]) == n && strncmp(bench_rows[i], list, n) == 0) wanted[i] = known = true;
        if (!known) return cli_misused(c, "--rows: \"%.*s\" is none of " BENCH_LIST, (int)n, list);
    }
    if (wanted[BENCH_ROW_OPEN] && !cli_has(c, "model"))
        return cli_misused(c, "--rows open: needs --model, a file that can be opened");
    if (wanted[BENCH_ROW_TOKENS] && cli_has(c, "only") && cli_choice(c, "only") == 1)
        return cli_misused(c, "--rows tokens: has no ceiling of its own, so not with --only ceiling");
    static const bench_row none[] = {BENCH_ROW_MEMORY, BENCH_ROW_OPEN, BENCH_ROW_CURATE, BENCH_ROW_APART,
                                     BENCH_ROW_TOKENS};
    for (size_t i = 0; cli_has(c, "rows") && cli_has(c, "least") && i < sizeof none / sizeof *none; i++)
        if (wanted[none[i]])
            return cli_misused(c, "--rows %s: has no ceiling of its own, so not with --least",
                               bench_rows[none[i]]);
    return CLI_DONE;
}

/* The flags; the exit code. */
static int bench_flags_read(const cli *c, bench *b)
{
    long long seqs, tokens;
    char end;
    if (sscanf(cli_text(c, "tokens"), "%4lldx%6lld%c", &seqs, &tokens, &end) != 2 || seqs < 1 || tokens < 1 ||
        tokens > BENCH_LONGEST || seqs * tokens > 65536)
        return cli_misused(c,
                           "--tokens: \"%.60s\" is not like 4x256, with at most %d tokens a sequence and "
                           "65536 in all",
                           cli_text(c, "tokens"), BENCH_LONGEST);
    if (cli_has(c, "model") && (cli_has(c, "shape") || cli_has(c, "dtype")))
        return cli_misused(c, "--model has a shape and a dtype of its own: no --shape, no --dtype");
    if (cli_has(c, "least") && cli_has(c, "only"))
        return cli_misused(c, "--least compares a row with its ceiling, of which --only leaves one out");
    static const char *const shapes[] = {"15m", "135m", "1b"};
    b->path = cli_text(c, "model");
    b->shape = b->path ? "file" : shapes[cli_choice(c, "shape")];
    b->n_seqs = seqs;
    b->T = tokens;
    b->repeats = cli_int(c, "repeats");
    b->pairs = cli_int(c, "pairs");
    b->cache = cli_choice(c, "cache") == 1 ? HBK_BF16 : HBK_F32;
    b->rounds = cli_choice(c, "precision") == 1;
    b->work = !cli_has(c, "only") || cli_choice(c, "only") == 0;
    b->ceiling = !cli_has(c, "only") || cli_choice(c, "only") == 1;
    return CLI_DONE;
}

static bool bench_run_row(bench *b, bench_row row, bench_result *r, const hbk_progress *progress,
                          hbk_error *err)
{
    if (row != BENCH_ROW_MEMORY) return bench_measure(b, row, r, progress, err);
    r->tokens_per_s = r->seconds = r->gflops = r->sgemm_gflops = r->peak_mb = r->best = (double)NAN;
    r->gbps = b->memory_gbps = bench_memory(b->repeats, err) * 1e-9;
    return r->gbps > 0;
}

/* Whether the row reaches the share of its ceiling that --least asks for. */
static bool bench_enough(cli *c, bench_row row, const bench_result *r)
{
    double least = cli_has(c, "least") ? cli_real(c, "least") : 0;
    if (cli_has(c, "least") && isfinite(r->gflops) && !isfinite(r->best))
        return hbk_fail(&c->err, HBK_ERROR_OPTION, "%s: --least needs a build with OpenBLAS to compare with",
                        bench_rows[row]);
    return !(r->best < least) ||
           hbk_fail(&c->err, HBK_ERROR_NUMERIC,
                    "%s: at best %.2f of sgemm's speed (medians %.1f of %.1f GFLOP/s), --least asks for %g",
                    bench_rows[row], r->best, r->gflops, r->sgemm_gflops, least);
}

static int bench_main(cli *c)
{
    static const hbk_dtype types[] = {HBK_F32, HBK_BF16, HBK_Q8_0, HBK_Q4_0, HBK_F16};
    bench b;
    bool wanted[BENCH_ROWS];
    int shape = cli_choice(c, "shape");
    memset(&b, 0, sizeof b);
    int code = bench_flags_read(c, &b);
    if (!code) code = bench_wanted(c, !b.path && shape == 0, wanted);
    if (code) return code;
    bool table = false; /* of all rows but `tokens` */
    for (int i = 0; i < BENCH_ROW_TOKENS; i++) table = table || wanted[i];
    b.ceiling = b.ceiling && table;
    const hbk_progress *progress = cli_watch(c);
    bool ok = bench_open(&b, shape, types[cli_choice(c, "dtype")], &c->err), json = cli_has(c, "json");
    if (ok && wanted[BENCH_ROW_FULL] && b.model->layers[0].w[HBK_Q].dtype != HBK_F32) {
        bench_close(&b);
        return cli_misused(c, "--rows full: full training keeps its weights in f32");
    }
    json_t *rows = json_array();
    if (ok && !json && (b.rounds || b.cache != HBK_F32))
        printf("products in %s, keys and values in %s\n\n", hbk_model_precision(b.model),
               hbk_dtype_name(b.cache));
    if (ok && !json && table)
        puts("row       shape  dtype   tokens/s    seconds   GFLOP/s     sgemm of sgemm     GB/s"
             "   of mem   peak MB");
    for (int i = 0; ok && i < BENCH_ROW_TOKENS; i++) {
        bench_result r;
        memset(&r, 0, sizeof r);
        if (!wanted[i]) continue;
        ok = bench_run_row(&b, (bench_row)i, &r, progress, &c->err);
        cli_draw_end(&c->meter);
        if (ok && json) json_array_append_new(rows, bench_json(&b, (bench_row)i, &r));
        else if (ok) bench_print(&b, (bench_row)i, &r);
        ok = ok && bench_enough(c, (bench_row)i, &r);
    }
    if (ok && wanted[BENCH_ROW_TOKENS]) ok = bench_lengths(&b, c, progress, json ? rows : NULL);
    if (ok && json) ok = cli_print_json(json_incref(rows), &c->err);
    json_decref(rows);
    bench_close(&b);
    return cli_end(c, ok);
}

#endif
