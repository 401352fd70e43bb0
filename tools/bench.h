/* bench.h - `humpback bench`: how fast the library is on this machine - public domain, see humpback.h

   Rows, on random weights of three well-known shapes:

       lora      one step of LoRA finetuning: rank 16, seven projections, loss on every token
       full      one step that trains every weight
       prefill   512 tokens into an empty cache
       decode1   one token after another, 128 tokens into a text
       decode16  the same for 16 texts side by side
       curate    pairs rated per second: a rubric of 500 tokens, 64 pairs of 150, replies of 32,
                 32 side by side; with the rubric computed once, as hbk_generate does, and with prompts that
                 share no beginning

   Machines differ, so each time stands beside a ceiling that was measured in the same process, turn by turn:
   OpenBLAS's sgemm on f32 products of the same shapes,

       forward (N, in) x (in, out)     dX (N, out) x (out, in)     dW (out, N) x (N, in)

   which leaves out attention, norms, softmax, the adapter and the optimiser. (Of a LoRA step it includes the
   dX below the lowest adapter, which the trainer skips: at most 2 % for these shapes.) GFLOP/s counts these
   products alone, on both sides; their ratio is the share of the ceiling that is reached, and above 1 where
   weights of 16 bits need only half of the memory's speed. GB/s is weights read per second, where that is
   the limit. All figures are medians.

   Include after cli.h. */

#ifndef TOOL_BENCH_H
#define TOOL_BENCH_H

#include "cli.h"

enum { BENCH_ROWS = 6, BENCH_REPEATS = 3, BENCH_MOST_REPEATS = 99, BENCH_PREFILL = 512, BENCH_PAST = 128 };
enum { BENCH_DECODE1 = 32, BENCH_DECODE16 = 8 }; /* steps in one measurement */
enum { BENCH_RUBRIC = 500, BENCH_PAIR = 150, BENCH_REPLY = 32, BENCH_PAIRS = 64, BENCH_SLOTS = 32 };

static const char *const bench_rows[BENCH_ROWS] = {"lora", "full", "prefill", "decode1",
                                                "decode16", "curate"};
typedef enum bench_row {
    BENCH_ROW_LORA,
    BENCH_ROW_FULL,
    BENCH_ROW_PREFILL,
    BENCH_ROW_DECODE1,
    BENCH_ROW_DECODE16,
    BENCH_ROW_CURATE
} bench_row;

static const cli_flag bench_flags[] = {
    {"shape", CLI_CHOICE, "15m|135m|1b", "135m", "of the model: 1b needs 5 GB", 0, 0, CLI_FREE},
    {"rows", CLI_TEXT, "LIST", "(lora,prefill,decode1,decode16; of 15m full too)",
     "what to measure, of lora, full, prefill, decode1, decode16, curate", 0, 0,
     CLI_FREE},
    {"dtype", CLI_CHOICE, "f32|bf16|q8_0", "f32", "of the weights", 0, 0, CLI_FREE},
    {"tokens", CLI_TEXT, "SxT", "4x256", "a training step: S sequences of T tokens", 0, 0, CLI_FREE},
    {"repeats", CLI_INT, "N", "3", "measurements per row, after one that warms up", 1, BENCH_MOST_REPEATS,
     CLI_FREE},
    {"json", CLI_SWITCH, NULL, NULL, "the rows as a JSON array on stdout", 0, 0, CLI_FREE},
    CLI_END};
static const cli_group bench_group = {"Flags", bench_flags, NULL, NULL};

/* One row's measurements: medians. */
typedef struct bench_result {
    double seconds, tokens_per_s, gflops, gbps, peak_mb, sgemm_gflops;
} bench_result;

/* What is measured. A row allocates through `alloc`, which counts. */
typedef struct bench {
    hbk_model *model;
    const char *shape;
    hbk_int n_seqs, T, repeats;
    hbk_allocator alloc;
    int32_t *tokens, *targets; /* random ids, as many as any row needs */
    hbk_int *starts;
    hbk_int n_tokens;
    hbk_real *logits;          /* (16, V) */
    /* the ceiling: weights and activations for sgemm */
    float *pool, *x, *y;
    hbk_int pool_size, at, rows;
} bench;

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

/* Packs a matrix of reals to `type` where it lies: the beginning of its memory. `row` holds one row. */
static void bench_pack(hbk_matrix *w, hbk_dtype type, hbk_real *row)
{
    for (hbk_int i = 0; i < w->rows; i++) {
        memcpy(row, (const hbk_real *)w->data + i * w->cols, (size_t)w->cols * sizeof *row);
        hbk_pack((char *)w->data + hbk_dtype_size(type, i * w->cols), type, row, w->cols);
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

/* ---- rows --------------------------------------------------------------------------- */

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
    w->steps = 1;
    w->tokens = N;
    w->products.N = w->products.n_head = N;
    w->products.dx = true;
    w->products.dw = o.full;
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
    hbk_feed feeds[16];
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
    w->slots = w->row == BENCH_ROW_DECODE16 ? 16 : 1;
    w->steps = prefill ? 1 : w->row == BENCH_ROW_DECODE1 ? BENCH_DECODE1 : BENCH_DECODE16;
    w->tokens = prefill ? BENCH_PREFILL : w->slots * w->steps;
    w->products.N = prefill ? BENCH_PREFILL : w->slots;
    w->products.n_head = w->slots;
    w->session = hbk_session_new(w->b->model, NULL, w->slots, BENCH_PREFILL, &w->b->alloc, err);
    return w->session && (prefill || bench_feed(w, BENCH_PAST, err));
}

/* Does the work once. */
static bool bench_once(bench_work *w, hbk_error *err)
{
    double loss;
    if (w->trainer)
        return hbk_trainer_accumulate(w->trainer, &w->batch, 1 / (double)w->tokens, &loss, err) &&
               hbk_trainer_update(w->trainer, 1e-6, NULL, err);
    hbk_int past = w->row == BENCH_ROW_PREFILL ? 0 : BENCH_PAST;
    for (hbk_int i = 0; i < w->slots; i++) hbk_session_rewind(w->session, i, past);
    for (hbk_int i = 0; i < w->steps; i++)
        if (!bench_feed(w, w->row == BENCH_ROW_PREFILL ? BENCH_PREFILL : 1, err)) return false;
    return true;
}

/* One row: work and ceiling in turn, after one turn that warms up. */
static bool bench_measure(bench *b, bench_row row, bench_result *r, const hbk_progress *progress,
                          hbk_error *err)
{
    bench_work w;
    double seconds[BENCH_MOST_REPEATS], ceiling[BENCH_MOST_REPEATS];
    memset(&w, 0, sizeof w);
    memset(&b->alloc, 0, sizeof b->alloc);
    w.b = b;
    w.row = row;
    bool ok =
        row == BENCH_ROW_LORA || row == BENCH_ROW_FULL ? bench_train_new(&w, err) : bench_decode_new(&w, err);
    for (hbk_int i = -1; ok && i < b->repeats; i++) {
        double start = cli_now(NULL);
        ok = bench_once(&w, err);
        double done = cli_now(NULL), sgemm = bench_sgemm(b, &w.products);
        if (i >= 0) {
            seconds[i] = (done - start) / (double)w.steps;
            ceiling[i] = sgemm;
        }
        ok = ok && hbk_report(progress, bench_rows[row], i + 1, b->repeats, "repeats", err, "%s", "");
    }
    if (ok) {
        double flops = bench_flops(&b->model->config, &w.products), weights = bench_bytes(b->model, true);
        r->seconds = bench_median(seconds, b->repeats);
        r->tokens_per_s = (double)w.tokens / (double)w.steps / r->seconds;
        r->gflops = flops / r->seconds * 1e-9;
        r->sgemm_gflops = flops / bench_median(ceiling, b->repeats) * 1e-9;
        r->gbps = weights * (1 + w.products.dx + w.products.dw) / r->seconds * 1e-9;
        r->peak_mb = (bench_bytes(b->model, false) + (double)b->alloc.peak) * 1e-6;
    }
    bench_work_free(&w);
    return ok;
}

/* ---- ratings with a shared rubric ----------------------------------------------------- */

/* Pairs per second, medians. */
typedef struct bench_curation {
    double shared, apart;
} bench_curation;

/* Rates BENCH_PAIRS pairs in a fresh session, which holds nothing of an earlier turn: seconds, or a negative
   number on failure. Without sharing the first ids differ, and the work of a prompt is what it was. */
static double bench_rate(bench *b, bool shared, hbk_error *err)
{
    enum { LENGTH = BENCH_RUBRIC + BENCH_PAIR };
    hbk_request r[BENCH_PAIRS];
    hbk_int V = b->model->config.vocab_size;
    hbk_sampling greedy = hbk_sampling_defaults();
    memset(r, 0, sizeof r);
    greedy.temperature = 0;
    greedy.max_new = BENCH_REPLY;
    int32_t *ids = (int32_t *)hbk_alloc(NULL, BENCH_PAIRS * LENGTH, sizeof *ids, err);
    hbk_session *s =
        ids ? hbk_session_new(b->model, NULL, BENCH_SLOTS, LENGTH + BENCH_REPLY, &b->alloc, err) : NULL;
    for (hbk_int i = 0; s && i < BENCH_PAIRS; i++) {
        hbk_rng rubric = hbk_rng_at(1, "rubric", 0), pair = hbk_rng_at(1, "pair", (uint64_t)i);
        int32_t *p = ids + i * LENGTH;
        for (hbk_int k = 0; k < LENGTH; k++)
            p[k] = (int32_t)hbk_rng_below(k < BENCH_RUBRIC ? &rubric : &pair, V);
        if (!shared) p[0] = (int32_t)i;
        p[BENCH_RUBRIC] = (int32_t)i; /* two pairs have nothing more in common */
        r[i].prompt = p;
        r[i].n_prompt = LENGTH;
    }
    double start = cli_now(NULL);
    bool ok = s && hbk_generate(s, r, BENCH_PAIRS, &greedy, NULL, err);
    double seconds = cli_now(NULL) - start;
    for (hbk_int i = 0; i < BENCH_PAIRS; i++) hbk_tokens_free(&r[i].output);
    hbk_session_free(s);
    hbk_free(NULL, ids);
    return ok ? seconds : -1;
}

/* Both ways in turn. */
static bool bench_curate(bench *b, bench_curation *r, const hbk_progress *progress, hbk_error *err)
{
    double seconds[2][BENCH_MOST_REPEATS];
    memset(&b->alloc, 0, sizeof b->alloc);
    for (hbk_int i = 0; i < b->repeats; i++)
        for (int way = 0; way < 2; way++) {
            seconds[way][i] = bench_rate(b, way == 0, err);
            if (seconds[way][i] < 0 || !hbk_report(progress, bench_rows[BENCH_ROW_CURATE], 2 * i + way + 1,
                                                   2 * b->repeats, "repeats", err, "%s", ""))
                return false;
        }
    r->shared = BENCH_PAIRS / bench_median(seconds[0], b->repeats);
    r->apart = BENCH_PAIRS / bench_median(seconds[1], b->repeats);
    return true;
}

/* Measures and prints the row, or appends it to `rows`. */
static bool bench_curate_row(bench *b, json_t *rows, const hbk_progress *progress, hbk_error *err)
{
    bench_curation r;
    if (!bench_curate(b, &r, progress, err)) return false;
    cli_draw_end((cli_meter *)progress->ctx);
    const char *dtype = hbk_dtype_name(b->model->layers[0].w[HBK_Q].dtype);
    if (!rows) {
        printf("%-9s %-6s %-5s %.3f pairs/s with the rubric computed once, %.3f without: %.2f times\n",
               bench_rows[BENCH_ROW_CURATE], b->shape, dtype, r.shared, r.apart, r.shared / r.apart);
        fflush(stdout);
        return true;
    }
    json_array_append_new(rows, json_pack("{s:s, s:s, s:s, s:f, s:f, s:f}", "row",
                                          bench_rows[BENCH_ROW_CURATE], "shape", b->shape, "dtype", dtype,
                                          "pairs_per_s", r.shared, "pairs_per_s_unshared", r.apart, "ratio",
                                          r.shared / r.apart));
    return true;
}

/* ---- the command ---------------------------------------------------------------------- */

static json_t *bench_json(const bench *b, bench_row row, const bench_result *r)
{
    json_t *ceiling = isfinite(r->sgemm_gflops) ? json_real(r->sgemm_gflops) : json_null();
    return json_pack("{s:s, s:s, s:s, s:f, s:f, s:f, s:f, s:f, s:o}", "row", bench_rows[row], "shape",
                     b->shape, "dtype", hbk_dtype_name(b->model->layers[0].w[HBK_Q].dtype), "tokens_per_s",
                     r->tokens_per_s, "seconds", r->seconds, "gflops", r->gflops, "gbps", r->gbps, "peak_mb",
                     r->peak_mb, "sgemm_gflops", ceiling);
}

static void bench_print(const bench *b, bench_row row, const bench_result *r)
{
    printf("%-9s %-6s %-5s %10.1f %10.4f %9.1f %9.1f %7.2f %8.1f %9.0f\n", bench_rows[row], b->shape,
           hbk_dtype_name(b->model->layers[0].w[HBK_Q].dtype), r->tokens_per_s, r->seconds, r->gflops,
           r->sgemm_gflops, r->gflops / r->sgemm_gflops, r->gbps, r->peak_mb);
    fflush(stdout);
}

/* The random ids and the model. */
static bool bench_open(bench *b, int shape, hbk_dtype type, hbk_error *err)
{
    hbk_config config = bench_config(shape);
    hbk_rng rng = hbk_rng_at(1, "bench", 0);
    b->n_tokens = HBK__MAX(b->n_seqs * b->T, BENCH_PREFILL) + 16;
    b->model = hbk_model_random(&config, 1, NULL, err);
    if (!b->model || (type != HBK_F32 && !bench_pack_all(b->model, type, err))) return false;
    b->tokens = (int32_t *)hbk_alloc(NULL, b->n_tokens, sizeof *b->tokens, err);
    if (b->tokens) b->targets = (int32_t *)hbk_alloc(NULL, b->n_tokens, sizeof *b->targets, err);
    if (b->targets) b->starts = (hbk_int *)hbk_alloc(NULL, b->n_seqs + 1, sizeof *b->starts, err);
    if (b->starts) b->logits = (hbk_real *)hbk_alloc(NULL, 16 * config.vocab_size, sizeof *b->logits, err);
    if (!b->logits) return false;
    for (hbk_int i = 0; i < b->n_tokens; i++) {
        b->tokens[i] = (int32_t)hbk_rng_below(&rng, config.vocab_size);
        b->targets[i] = (int32_t)hbk_rng_below(&rng, config.vocab_size);
    }
    for (hbk_int i = 0; i <= b->n_seqs; i++) b->starts[i] = i * b->T;
    return bench_pool(b, err);
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
static int bench_wanted(const cli *c, int shape, bool wanted[BENCH_ROWS])
{
    const char *list = cli_text(c, "rows");
    for (int i = 0; i < BENCH_ROWS; i++)
        wanted[i] = !list && i != BENCH_ROW_CURATE && (i != BENCH_ROW_FULL || shape == 0);
    for (size_t n; list; list = list[n] ? list + n + 1 : NULL) {
        bool known = false;
        n = strcspn(list, ",");
        for (int i = 0; i < BENCH_ROWS; i++)
            if (strlen(bench_rows[i]) == n && strncmp(bench_rows[i], list, n) == 0) wanted[i] = known = true;
        if (!known)
            return cli_misused(c, "--rows: \"%.*s\" is none of lora, full, prefill, decode1, decode16, "
                                  "curate", (int)n, list);
    }
    return CLI_DONE;
}

static int bench_main(cli *c)
{
    bench b;
    bool wanted[BENCH_ROWS];
    int shape = cli_choice(c, "shape");
    static const hbk_dtype types[] = {HBK_F32, HBK_BF16, HBK_Q8_0};
    hbk_dtype type = types[cli_choice(c, "dtype")];
    long long seqs, tokens;
    char end;
    memset(&b, 0, sizeof b);
    if (sscanf(cli_text(c, "tokens"), "%4lldx%6lld%c", &seqs, &tokens, &end) != 2 || seqs < 1 || tokens < 1 ||
        tokens > 2048 || seqs * tokens > 65536)
        return cli_misused(c, "--tokens: \"%.60s\" is not like 4x256, with at most 2048 tokens a sequence",
                           cli_text(c, "tokens"));
    int code = bench_wanted(c, shape, wanted);
    if (code) return code;
    if (wanted[BENCH_ROW_FULL] && type != HBK_F32)
        return cli_misused(c, "--dtype %s: full training keeps its weights in f32, leave out --rows full",
                           hbk_dtype_name(type));
    b.shape = shape == 0 ? "15m" : shape == 1 ? "135m" : "1b";
    b.n_seqs = seqs;
    b.T = tokens;
    b.repeats = cli_int(c, "repeats");
    const hbk_progress *progress = cli_watch(c);
    bool ok = bench_open(&b, shape, type, &c->err), json = cli_has(c, "json");
    json_t *rows = json_array();
    if (ok && !json)
        puts("row       shape  dtype   tokens/s    seconds   GFLOP/s     sgemm   ratio     GB/s   peak MB");
    for (int i = 0; ok && i < BENCH_ROWS; i++) {
        bench_result r;
        if (!wanted[i]) continue;
        if (i == BENCH_ROW_CURATE) {
            ok = bench_curate_row(&b, json ? rows : NULL, progress, &c->err);
            continue;
        }
        ok = bench_measure(&b, (bench_row)i, &r, progress, &c->err);
        cli_draw_end(&c->meter);
        if (ok && json) json_array_append_new(rows, bench_json(&b, (bench_row)i, &r));
        else if (ok) bench_print(&b, (bench_row)i, &r);
    }
    if (ok && json) ok = cli_print_json(json_incref(rows), &c->err);
    json_decref(rows);
    bench_close(&b);
    return cli_end(c, ok);
}

#endif
