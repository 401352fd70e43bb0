/* plan.h - `humpback plan`: what a finetuning will take, before it is begun - public domain, see humpback.h

   Memory. What a trainer holds is counted by the library, with the walk that lays it out. Around that stand

       the weights      a file's are mapped: pages that a step reads and that the system may drop, to read
                        them again; norms, and what a format stores in another order, are copied
       the program      code, tokenizer, OpenBLAS's buffers: what this very process has when it has opened the
                        tokenizer and multiplied, less what was taken for that

   Time. A step is products, attention, and what walks over memory in between. One layer's share of each is
   timed here, by the library's own functions, on at most PLAN_ROWS tokens and PLAN_WEIGHTS numbers of a
   weight in its stored type, and multiplied up. Everything a step does is in it but the embedding, copies and
   the passing of data.

   Include after bench.h. */

#ifndef TOOL_PLAN_H
#define TOOL_PLAN_H

#include "bench.h"

enum { PLAN_ROWS = 256, PLAN_WEIGHTS = 1 << 22, PLAN_REPEATS = 3 };

static const cli_flag plan_flags[] = {
    {"model", CLI_TEXT, "M", NULL, "a model folder, a .gguf, or a llama2.c .bin; or --shape", 0, 0, CLI_FREE},
    {"tokenizer", CLI_TEXT, "F", "(the model's)", "whose memory counts, too", 0, 0, CLI_FREE},
    {"shape", CLI_CHOICE, "135m|1b|7b|13b|33b|65b", "(none)",
     "without a model: that of SmolLM2-135M, TinyLlama-1.1B, LLaMA 7B to 65B", 0, 0, CLI_FREE},
    {"dtype", CLI_CHOICE, "f32|bf16|f16|q8_0|q4_k", "bf16", "of the weights of a --shape", 0, 0, CLI_FREE},
    {"tokens", CLI_INT, "N", "2048", "in one pass: finetune's --max-tokens", 1, 1e7, CLI_FREE},
    {"length", CLI_INT, "N", "(--tokens, at most the context)", "longest example in tokens", 1, 1e7,
     CLI_FREE},
    {"full", CLI_SWITCH, NULL, NULL, "train every weight instead of an adapter", 0, 0, CLI_FREE},
    {"validation", CLI_SWITCH, NULL, NULL, "with a validation set: the best weights are kept", 0, 0,
     CLI_FREE},
    {"json", CLI_SWITCH, NULL, NULL, "the result as JSON on stdout", 0, 0, CLI_FREE},
    CLI_END};
static const cli_flag plan_train_flags[] = {
    {"rank", CLI_INT, "N", NULL, "of the LoRA adapter", 1, 1e5, offsetof(hbk_train_options, lora.rank)},
    {"targets", CLI_TARGETS, "LIST", "(all)", "what is adapted: q_proj,v_proj, ...", 0, 0,
     offsetof(hbk_train_options, lora.targets)},
    {"dropout", CLI_REAL, "X", NULL, "0 needs less memory", 0, 0.99, offsetof(hbk_train_options, dropout)},
    {"recompute", CLI_SWITCH, NULL, NULL, "less memory, more time, the same bits", 0, 0,
     offsetof(hbk_train_options, recompute)},
    CLI_END};
static void plan_defaults(void *options, bool full)
{
    *(hbk_train_options *)options = hbk_train_defaults(full);
}
static const cli_group plan_group = {"Flags", plan_flags, NULL, NULL};
static const cli_group plan_train_group = {"Training", plan_train_flags, NULL, plan_defaults};

/* What a finetuning costs, in bytes, and what it does. */
typedef enum plan_part {
    PLAN_MAPPED,
    PLAN_COPIED,
    PLAN_TRAINED,
    PLAN_GRADIENTS,
    PLAN_MOMENTS,
    PLAN_BEST,
    PLAN_KEPT,
    PLAN_SCRATCH,
    PLAN_LOGITS,
    PLAN_PROGRAM,
    PLAN_PARTS
} plan_part;
static const char *const plan_names[PLAN_PARTS][2] = {
    {"weights_mapped", "weights, mapped from their file: the system may drop and reread them"},
    {"weights_copied", "weights in memory: norms, biases, what a format stores in another order"},
    {"trained", "what is trained: the adapter, or every weight as f32"},
    {"gradients", "its gradients"},
    {"moments", "its two moments of AdamW"},
    {"best", "its best state so far, by validation"},
    {"activations", "activations that the layers keep for the backward"},
    {"scratch", "activations and gradients of one layer at a time"},
    {"logits", "logits, some rows at a time"},
    {"program", "program, tokenizer and OpenBLAS's buffers, measured now"}};

typedef struct plan {
    hbk_config config;
    hbk_dtype dtype; /* of the matrices */
    hbk_train_options o;
    hbk_int tokens, length;
    double bytes[PLAN_PARTS];
    double seconds, products, flops; /* of a step; of that in products; operations in those */
} plan;

static double plan_total(const plan *p)
{
    double sum = 0;
    for (int i = 0; i < PLAN_PARTS; i++) sum += p->bytes[i];
    return sum;
}

/* ---- the model ---------------------------------------------------------------------------- */

/* The published shapes of LLaMA (Touvron et al. 2023, table 2). */
static hbk_config plan_shape(int shape)
{
    static const hbk_int sizes[4][4] = {/* L, H, C, F */
                                        {32, 32, 4096, 11008},
                                        {40, 40, 5120, 13824},
                                        {60, 52, 6656, 17920},
                                        {80, 64, 8192, 22016}};
    if (shape < 2) return bench_config(shape + 1);
    hbk_config c = bench_config(2);
    const hbk_int *s = sizes[shape - 2];
    c.n_layers = s[0];
    c.n_heads = c.n_kv_heads = s[1];
    c.head_dim = 128;
    c.dim = s[2];
    c.ffn_dim = s[3];
    return c;
}

static void plan_weights_of_shape(plan *p)
{
    const hbk_config *c = &p->config;
    double norms = (double)(c->dim * (2 * c->n_layers + 1)) * sizeof(hbk_real);
    double matrices = (double)hbk_model_count(c) - (double)(c->dim * (2 * c->n_layers + 1));
    hbk_int block = hbk_dtype_block(p->dtype);
    p->bytes[PLAN_COPIED] = norms;
    p->bytes[PLAN_MAPPED] = matrices / (double)block * (double)hbk_dtype_size(p->dtype, block);
}

/* Opens a model to see where its weights lie, and closes it. */
static bool plan_weights_of_file(plan *p, const char *path, hbk_error *err)
{
    hbk_model *m = hbk_model_load(path, NULL, err);
    if (!m) return false;
    char name[96];
    hbk_matrix w;
    for (hbk_int i = 0; hbk_tensor_at(m, i, name, &w); i++) {
        plan_part part = PLAN_COPIED;
        const unsigned char *data = (const unsigned char *)w.data;
        for (hbk_int k = 0; k < m->n_maps; k++)
            if (data >= m->maps[k].data && data < m->maps[k].data + m->maps[k].size) part = PLAN_MAPPED;
        p->bytes[part] += (double)w.rows * (double)hbk_dtype_size(w.dtype, w.cols);
        if (w.group) p->bytes[part] += (double)w.rows * (double)w.cols / (double)w.group * sizeof(float);
    }
    p->config = m->config;
    p->dtype = m->layers[0].w[HBK_GATE].dtype;
    if (p->dtype == HBK_INT8) p->dtype = HBK_Q8_0; /* which is timed in its place: its scales are at hand */
    hbk_model_free(m);
    return true;
}

/* ---- time --------------------------------------------------------------------------------- */

/* Room for one layer's work on `rows` tokens: a piece of a weight, and activations. */
typedef struct plan_room {
    hbk_allocator alloc; /* counts */
    hbk_int rows, T;     /* T: tokens of a sequence */
    hbk_int most;        /* numbers in a row of activations */
    void *weights;
    hbk_real *x, *y, *z;         /* (rows, most), z twice that */
    hbk_real *adapter, *xa, *dxa; /* A and B, likewise their gradients behind them; (rows, R) */
    hbk_real *dw, *panel, *work, *lse;
    int threads;
} plan_room;

static void plan_room_free(plan_room *r)
{
    hbk_free(&r->alloc, r->weights);
    hbk_free(&r->alloc, r->x);
    hbk_free(&r->alloc, r->adapter);
}

/* n reals that were written to, so that they count. */
static hbk_real *plan_reals(plan_room *r, hbk_int n, hbk_error *err)
{
    hbk_real *x = (hbk_real *)hbk_alloc(&r->alloc, n, sizeof *x, err);
    for (hbk_int i = 0; x && i < n; i++) x[i] = (hbk_real)(i % 7 - 3) * (hbk_real)0.01;
    return x;
}

static bool plan_room_new(plan_room *r, const plan *p, hbk_error *err)
{
    const hbk_config *c = &p->config;
    hbk_int wide = HBK__MAX(HBK__MAX(c->dim, c->ffn_dim), c->n_heads * c->head_dim);
    hbk_int R = HBK__MAX(p->o.lora.rank, 1);
    memset(r, 0, sizeof *r);
    r->rows = HBK__MIN(p->tokens, PLAN_ROWS);
    r->T = HBK__MIN(p->length, r->rows);
    r->threads = hbk__n_threads();
    hbk_int work = hbk_attention_work(r->T, r->threads);
    hbk_int most = HBK__MAX(wide, HBK__MIN(c->vocab_size, PLAN_WEIGHTS / c->dim));
    r->most = most;
    size_t bytes = hbk_dtype_size(p->dtype, HBK__MAX(PLAN_WEIGHTS, wide + 256) / 256 * 256);
    r->weights = hbk_alloc(&r->alloc, (hbk_int)bytes, 1, err);
    if (r->weights) memset(r->weights, 0, bytes); /* zeros are numbers in every type */
    if (r->weights)
        r->x = plan_reals(r, 4 * r->rows * most + 2 * r->rows * R + HBK_PANEL + work + r->rows * c->n_heads,
                          err);
    if (r->x) r->adapter = plan_reals(r, 4 * R * most + (p->o.full ? PLAN_WEIGHTS + wide : 0), err);
    if (!r->adapter) return false;
    r->y = r->x + r->rows * most;
    r->z = r->y + r->rows * most;
    r->xa = r->z + 2 * r->rows * most;
    r->dxa = r->xa + r->rows * R;
    r->panel = r->dxa + r->rows * R;
    r->work = r->panel + HBK_PANEL;
    r->lse = r->work + work;
    r->dw = r->adapter + 4 * R * most;
    return true;
}

/* Seconds of a step in which all tokens go through one projection. */
typedef struct plan_pair {
    double forward, backward;
} plan_pair;

/* The product with a weight (out, in), of which as many rows are multiplied as fit. */
static plan_pair plan_product(plan *p, plan_room *r, hbk_int out, hbk_int in)
{
    plan_pair best = {1e30, 1e30};
    hbk_int rows = HBK__MAX(1, HBK__MIN(out, PLAN_WEIGHTS / in));
    hbk_matrix w = {p->dtype, rows, in, r->weights, NULL, 0}, dw = {HBK_REAL, rows, in, r->dw, NULL, 0};
    if (in % hbk_dtype_block(p->dtype)) w.dtype = HBK_F16; /* as quantisers do */
    if (p->o.full) w.dtype = HBK_REAL;
    double times = (double)p->tokens / (double)r->rows * (double)out / (double)rows;
    for (int i = 0; i < PLAN_REPEATS; i++) {
        double start = cli_now(NULL);
        hbk_matmul(r->y, r->x, &w, r->rows, r->panel);
        double middle = cli_now(NULL);
        hbk_matmul_dx(r->z, r->y, &w, r->rows, r->panel);
        if (p->o.full) hbk_matmul_dw(&dw, r->y, r->x, r->rows);
        best.forward = HBK__MIN(best.forward, (middle - start) * times);
        best.backward = HBK__MIN(best.backward, (cli_now(NULL) - middle) * times);
    }
    p->flops += (double)p->tokens * 2 * (double)in * (double)out * (p->o.full ? 3 : 2);
    return best;
}

/* The adapter of a projection, its dropout included; of a head so wide that it does not fit, a part. */
static plan_pair plan_adapter(const plan *p, plan_room *r, hbk_int rank, hbk_int out, hbk_int in)
{
    plan_pair best = {1e30, 1e30};
    hbk_int part = HBK__MIN(out, r->most);
    hbk_real *a = r->adapter, *da = a + rank * (in + part);
    hbk_lora l = {in, part, rank, 1, 1, a, a + rank * in}, d = {in, part, rank, 1, 1, da, da + rank * in};
    double times = (double)p->tokens / (double)r->rows * (double)out / (double)part;
    for (int i = 0; i < PLAN_REPEATS; i++) {
        double start = cli_now(NULL);
        hbk_dropout(r->z, r->x, r->rows * in, p->o.dropout, 1);
        hbk_lora_forward(r->y, r->xa, r->z, &l, r->rows);
        double middle = cli_now(NULL);
        hbk_dropout(r->z, r->x, r->rows * in, p->o.dropout, 1);
        hbk_lora_backward(r->x, &d, r->dxa, r->y, r->z, r->xa, &l, r->rows);
        hbk_dropout(r->z, r->z, r->rows * in, p->o.dropout, 1);
        best.forward = HBK__MIN(best.forward, (middle - start) * times);
        best.backward = HBK__MIN(best.backward, (cli_now(NULL) - middle) * times);
    }
    return best;
}

/* Attention, whose price for a token grows with the length of its sequence. */
static plan_pair plan_attention(const plan *p, plan_room *r)
{
    plan_pair best = {1e30, 1e30};
    const hbk_config *c = &p->config;
    hbk_int H = c->n_heads, K = c->n_kv_heads, D = c->head_dim, T = r->T;
    hbk_span s = {0, T, 0, r->x, r->x};
    double times = (double)p->tokens / (double)T * (double)p->length / (double)T;
    for (int i = 0; i < PLAN_REPEATS; i++) {
        double start = cli_now(NULL);
        hbk_attention_forward(r->y, r->lse, r->x, &s, 1, H, K, D, r->work, r->threads);
        double middle = cli_now(NULL);
        hbk_attention_backward(r->z, r->z + T * H * D, r->z + T * (H + K) * D, r->y, r->y, r->lse, r->x, &s,
                               1, H, K, D, r->work, r->threads);
        best.forward = HBK__MIN(best.forward, (middle - start) * times);
        best.backward = HBK__MIN(best.backward, (cli_now(NULL) - middle) * times);
    }
    return best;
}

/* Norms and silu(gate) * up of a layer. */
static plan_pair plan_between(const plan *p, plan_room *r)
{
    plan_pair best = {1e30, 1e30};
    hbk_int N = r->rows, C = p->config.dim, n = N * p->config.ffn_dim;
    double times = (double)p->tokens / (double)N;
    for (int i = 0; i < PLAN_REPEATS; i++) {
        double start = cli_now(NULL);
        for (int k = 0; k < 2; k++) hbk_rms_norm_forward(r->y, r->x, r->x, N, C, 1e-5);
        hbk_swiglu_forward(r->y, r->x, r->z, n);
        double middle = cli_now(NULL);
        for (int k = 0; k < 2; k++) hbk_rms_norm_backward(r->y, NULL, r->z, r->x, r->x, N, C, 1e-5);
        hbk_swiglu_backward(r->y, r->y, r->z, r->x, r->x, n);
        best.forward = HBK__MIN(best.forward, (middle - start) * times);
        best.backward = HBK__MIN(best.backward, (cli_now(NULL) - middle) * times);
    }
    best.backward += best.forward; /* which computes both again */
    return best;
}

/* AdamW's step over all that is trained, from one over a part. */
static double plan_adamw(const plan *p, plan_room *r, double n_values)
{
    hbk_int n = r->rows * p->config.dim / 2;
    hbk_adamw o = {1e-6, 0.9, 0.95, 1e-8, 0.1};
    double best = 1e30;
    for (int i = 0; i < PLAN_REPEATS; i++) {
        double start = cli_now(NULL);
        hbk_adamw_step(r->x, r->y, r->z, r->x + n, n, 1, hbk_norm(r->x, n), &o);
        best = HBK__MIN(best, cli_now(NULL) - start);
    }
    return best * n_values / (double)n;
}

/* Adds up a step. */
static void plan_time(plan *p, plan_room *r, double n_values)
{
    const hbk_config *c = &p->config;
    double L = (double)c->n_layers, again = p->o.recompute ? L - 1 : 0; /* layers that go forward twice */
    p->flops = p->seconds = p->products = 0;
    for (int s = 0; s < HBK_N_TARGETS; s++) {
        hbk_int out, in;
        hbk__slot_shape(c, s, &out, &in);
        double layers = s == HBK_LM_HEAD ? 1 : L, repeated = s == HBK_LM_HEAD || s == HBK_DOWN ? 0 : again;
        double flops = p->flops;
        plan_pair w = plan_product(p, r, out, in), a = {0, 0};
        p->flops = flops + (p->flops - flops) * layers +
                   repeated * 2 * (double)p->tokens * (double)in * (double)out;
        p->products += (w.forward + w.backward) * layers + w.forward * repeated;
        if (!p->o.full && p->o.lora.targets >> s & 1) a = plan_adapter(p, r, p->o.lora.rank, out, in);
        p->seconds += (a.forward + a.backward) * layers + a.forward * repeated;
    }
    plan_pair attention = plan_attention(p, r), between = plan_between(p, r);
    p->seconds += p->products + L * (attention.forward + attention.backward) + again * attention.forward +
                  L * (between.forward + between.backward) + again * between.forward +
                  plan_adamw(p, r, n_values);
}

/* ---- the command ---------------------------------------------------------------------------- */

/* Bytes that the process has now, or, where the system does not tell, had at most. */
static double plan_resident(void)
{
    long long all, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    bool told = f && fscanf(f, "%lld %lld", &all, &resident) == 2;
    if (f) fclose(f);
    return told ? (double)resident * (double)sysconf(_SC_PAGESIZE) : cli_peak_memory();
}

/* The trainer's parts. */
static bool plan_count(plan *p, bool validation, double *n_values, hbk_error *err)
{
    hbk_train_memory m;
    if (!hbk_trainer_memory(&m, &p->config, &p->o, p->tokens, p->length, err)) return false;
    p->bytes[PLAN_TRAINED] = (double)m.values;
    p->bytes[PLAN_GRADIENTS] = (double)m.gradients;
    p->bytes[PLAN_MOMENTS] = (double)m.moments;
    p->bytes[PLAN_BEST] = validation ? (double)m.values : 0;
    p->bytes[PLAN_KEPT] = (double)m.kept;
    p->bytes[PLAN_SCRATCH] = (double)m.scratch;
    p->bytes[PLAN_LOGITS] = (double)m.logits;
    *n_values = (double)m.n_values;
    return true;
}

static bool plan_make(cli *c, plan *p)
{
    const char *path = cli_text(c, "model"), *vocabulary = cli_text(c, "tokenizer");
    hbk_tokenizer *tok = NULL;
    plan_room room;
    double n_values;
    if (!vocabulary && path && hbk_dir_exists(path)) vocabulary = path;
    if (path && !plan_weights_of_file(p, path, &c->err)) return false;
    p->length = cli_has(c, "length") ? cli_int(c, "length") : p->config.context_length;
    p->length = HBK__MIN(p->length, p->config.context_length);
    if (cli_has(c, "length")) p->tokens = HBK__MAX(p->tokens, p->length); /* an example is never torn */
    p->length = HBK__MIN(p->length, p->tokens);
    if (!plan_count(p, cli_has(c, "validation"), &n_values, &c->err)) return false;
    if (vocabulary && !(tok = hbk_tokenizer_load(vocabulary, NULL, &c->err))) return false;
    bool ok = plan_room_new(&room, p, &c->err);
    if (ok) {
        plan_time(p, &room, n_values);
        p->bytes[PLAN_PROGRAM] = plan_resident() - (double)room.alloc.live;
    }
    plan_room_free(&room);
    hbk_tokenizer_free(tok);
    return ok;
}

static bool plan_json(const plan *p, hbk_error *err)
{
    json_t *parts = json_object();
    for (int i = 0; i < PLAN_PARTS; i++)
        json_object_set_new(parts, plan_names[i][0], json_integer((json_int_t)p->bytes[i]));
    return cli_print_json(
        json_pack("{s:s, s:s, s:b, s:I, s:I, s:o, s:I, s:f, s:f, s:f}", "mode", p->o.full ? "full" : "lora",
                  "dtype", hbk_dtype_name(p->dtype), "recompute", p->o.recompute, "tokens",
                  (json_int_t)p->tokens, "length", (json_int_t)p->length, "bytes", parts, "total",
                  (json_int_t)plan_total(p), "seconds", p->seconds, "tokens_per_s",
                  (double)p->tokens / p->seconds, "gflops", p->flops / p->products * 1e-9),
        err);
}

/* What the other choice of recomputing would take. */
static void plan_say_other(const plan *p)
{
    plan other = *p;
    double n_values;
    other.o.recompute = !p->o.recompute;
    if (!plan_count(&other, p->bytes[PLAN_BEST] > 0, &n_values, NULL)) return;
    printf("%10.1f  with%s --recompute\n", plan_total(&other) * 1e-6, p->o.recompute ? "out" : "");
}

static void plan_print(const plan *p)
{
    const hbk_config *c = &p->config;
    char mode[64] = "every weight";
    if (!p->o.full) snprintf(mode, sizeof mode, "LoRA of rank %lld", (long long)p->o.lora.rank);
    printf("A model of %.4g million numbers in %s: %lld layers of width %lld, vocabulary %lld\n",
           (double)hbk_model_count(c) * 1e-6, hbk_dtype_name(p->dtype), (long long)c->n_layers,
           (long long)c->dim, (long long)c->vocab_size);
    printf("%s, passes of %lld tokens, the longest example has %lld%s\n\n        MB\n", mode,
           (long long)p->tokens, (long long)p->length, p->o.recompute ? ", recomputing" : "");
    for (int i = 0; i < PLAN_PARTS; i++)
        if (p->bytes[i] > 0) printf("%10.1f  %s\n", p->bytes[i] * 1e-6, plan_names[i][1]);
    printf("%10.1f  in all", plan_total(p) * 1e-6);
    double machine = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    printf("; this machine has %.0f%s\n", machine * 1e-6,
           plan_total(p) < machine               ? ""
           : plan_total(p) - p->bytes[0] < machine ? ": it would read the weights again in every step"
                                                 : ": too little");
    plan_say_other(p);
    printf("\n%10.3g  seconds for a pass of %lld tokens and its step, which is %.3g tokens/s;\n", p->seconds,
           (long long)p->tokens, (double)p->tokens / p->seconds);
    printf("%10.3g  of them in products, at %.3g GFLOP/s, measured now on %d thread%s\n", p->products,
           p->flops / p->products * 1e-9, hbk__n_threads(), hbk__n_threads() == 1 ? "" : "s");
}

static int plan_main(cli *c)
{
    static const hbk_dtype types[] = {HBK_F32, HBK_BF16, HBK_F16, HBK_Q8_0, HBK_Q4_K};
    plan p;
    memset(&p, 0, sizeof p);
    if (cli_has(c, "model") == cli_has(c, "shape"))
        return cli_misused(c, "plan needs --model M or --shape S, one of them");
    if (cli_has(c, "model") && cli_has(c, "dtype"))
        return cli_misused(c, "--dtype is of --shape: a model has its own");
    if (cli_has(c, "full") && (cli_has(c, "rank") || cli_has(c, "targets")))
        return cli_misused(c, "--rank and --targets are of LoRA: they do not go with --full");
    p.o = hbk_train_defaults(cli_has(c, "full"));
    cli_bind(c, &plan_train_group, "", &p.o);
    p.tokens = cli_int(c, "tokens");
    if (cli_has(c, "shape")) {
        p.config = plan_shape(cli_choice(c, "shape"));
        p.dtype = types[cli_choice(c, "dtype")];
        plan_weights_of_shape(&p);
    }
    bool ok = plan_make(c, &p);
    if (ok && cli_has(c, "json")) ok = plan_json(&p, &c->err);
    else if (ok) plan_print(&p);
    return cli_end(c, ok);
}

#endif
