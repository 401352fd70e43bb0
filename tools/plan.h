/* plan.h - `humpback plan`: what a finetuning will take, before it is begun - public domain, see humpback.h

   Memory. What a trainer holds is counted by the library, with the walk that lays it out. Around that stand

       the weights      a file's are mapped: pages that a step reads and that the system may drop, to read
                        them again; norms, and what a format stores in another order, are copied
       the program      code, tokenizer, OpenBLAS's buffers: what this very process has when it has opened the
                        tokenizer and multiplied, less what was taken for that

   Time. A step is products, attention, and what walks over memory in between. One layer's share of each is
   timed here, by the library's own functions, on at most PLAN_ROWS tokens and PLAN_WEIGHTS numbers of a
   weight in its stored type, and multiplied up: a model far larger than memory is timed on its pieces.
   Everything a step does is in it but the embedding, copies and the passing of data.

   Other programs on the machine make single measurements too long, never too short. So every piece is timed
   in short rounds, all pieces in each round, and by two clocks. The estimate is the least processor time,
   divided by the threads: others hardly lengthen it (with OMP_WAIT_POLICY=passive: who spins, counts
   too), but it leaves out what threads wait for each other. So beside it stand the sum of the shortest times
   on the wall, and the median round, what the machine does now. On an idle machine the three agree.

   Include after bench.h and finetune.h. */

#ifndef TOOL_PLAN_H
#define TOOL_PLAN_H

#include "bench.h"

enum { PLAN_ROWS = 256, PLAN_WEIGHTS = 1 << 20, PLAN_ROUNDS = 9 };

#define PLAN_SHAPES                                                                                          \
    "15m|135m|1b|7b|13b|33b|65b|smollm2-135m|tinyllama-1.1b|llama-7b|llama-13b|llama-33b|llama-65b"

static const cli_flag plan_flags[] = {
    {"model", CLI_TEXT, "M", NULL, "a model folder, a .gguf, or a llama2.c .bin; or --shape", 0, 0, CLI_FREE},
    {"tokenizer", CLI_TEXT, "F", "(the model's)", "whose memory counts, too", 0, 0, CLI_FREE},
    {"shape", CLI_CHOICE, PLAN_SHAPES, "(none)", "instead of a model; 135m is smollm2-135m, and so on", 0, 0,
     CLI_FREE},
    {"dtype", CLI_CHOICE, "f32|bf16|f16|q8_0|q4_0|q4_k", "bf16", "of the weights of a --shape", 0, 0,
     CLI_FREE},
    {"tokens", CLI_INT, "N", "2048", "in one pass", 1, 1e7, CLI_FREE},
    {"length", CLI_INT, "N", "(--tokens, at most the context)", "longest example in tokens", 1, 1e7,
     CLI_FREE},
    {"max-tokens", CLI_INT, "N", "(none)", "as finetune calls --tokens", 1, 1e7, CLI_FREE},
    {"max-length", CLI_INT, "N", "(none)", "as finetune calls --length", 1, 1e7, CLI_FREE},
    {"full", CLI_SWITCH, NULL, NULL, "train every weight instead of an adapter", 0, 0, CLI_FREE},
    {"init-adapter", CLI_TEXT, "D", NULL, "start from this adapter: its ranks, layers and targets", 0, 0,
     CLI_FREE},
    {"layers", CLI_TEXT, "A-B", "(all)", "adapt these layers alone, counted from 0", 0, 0, CLI_FREE},
    {"rank-of", CLI_TEXT, "LIST", NULL, "ranks that differ: v_proj=8,lm_head=4", 0, 0, CLI_FREE},
    {"validation", CLI_TEXT, "F", NULL, "with a validation set, which is not read: the best weights are kept",
     0, 0, CLI_FREE},
    {"validation-share", CLI_REAL, "X", "(none)", "the same", 1e-9, 0.999, CLI_FREE},
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
    double shortest, median;         /* a step's seconds by the shortest times on the wall; by the median */
    double n_init;                   /* values of --init-adapter; 0: there is none */
} plan;

static double plan_total(const plan *p)
{
    double sum = 0;
    for (int i = 0; i < PLAN_PARTS; i++) sum += p->bytes[i];
    return sum;
}

/* ---- the model ---------------------------------------------------------------------------- */

/* The published shapes: of SmolLM2-135M and TinyLlama as in their config.json, of LLaMA as in Touvron et al.
   2023, table 2. Names are those of PLAN_SHAPES, long or short. */
static hbk_config plan_shape(int shape)
{
    static const hbk_int sizes[4][4] = {/* L, H, C, F */
                                        {32, 32, 4096, 11008},
                                        {40, 40, 5120, 13824},
                                        {60, 52, 6656, 17920},
                                        {80, 64, 8192, 22016}};
    if (shape > 6) shape -= 6; /* the long names, which begin with the second */
    hbk_config c = bench_config(HBK__MIN(shape, 2));
    if (shape == 1) c.context_length = 8192;
    if (shape < 3) return c;
    const hbk_int *s = sizes[shape - 3];
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

/* Of an adapter what asks a new one for the same: per target the highest rank, and the layers it reaches. */
static bool plan_init(plan *p, const hbk_model *m, const char *dir, hbk_error *err)
{
    hbk_adapter *a = hbk_adapter_load(dir, m, NULL, err);
    if (!a) return false;
    hbk_adapter_options *o = &p->o.lora;
    o->rank = a->rank;
    o->targets = a->targets;
    o->layer_begin = a->n_layers;
    for (hbk_int l = 0; l < a->n_layers; l++)
        for (int s = 0; s < HBK_N_SLOTS; s++) {
            hbk_int rank = a->loras[l * HBK_N_SLOTS + s].rank;
            o->target_rank[s] = HBK__MAX(o->target_rank[s], rank);
            if (rank > 0) o->layer_begin = HBK__MIN(o->layer_begin, l);
            if (rank > 0) o->layer_end = l + 1;
        }
    o->target_rank[HBK_LM_HEAD] = a->loras[a->n_layers * HBK_N_SLOTS].rank;
    if (o->layer_end == 0) o->layer_begin = 0; /* the head alone */
    p->n_init = (double)a->n_values;
    hbk_adapter_free(a);
    return true;
}

/* Opens a model to see where its weights lie, and closes it. */
static bool plan_weights_of_file(plan *p, const char *path, const char *init, hbk_error *err)
{
    hbk_model *m = hbk_model_load(path, NULL, err);
    if (!m) return false;
    if (init && !plan_init(p, m, init, err)) {
        hbk_model_free(m);
        return false;
    }
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

/* The rank of a target's adapter; 0: it has none. */
static hbk_int plan_rank(const plan *p, int slot)
{
    const hbk_adapter_options *o = &p->o.lora;
    if (p->o.full || !(o->targets >> slot & 1)) return 0;
    return o->target_rank[slot] ? o->target_rank[slot] : o->rank;
}

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
    hbk_int R = 1;
    for (int s = 0; s < HBK_N_TARGETS; s++) R = HBK__MAX(R, plan_rank(p, s));
    memset(r, 0, sizeof *r);
    r->rows = HBK__MIN(p->tokens, PLAN_ROWS);
    r->T = HBK__MIN(p->length, r->rows);
    r->threads = hbk__n_threads();
    hbk_int work = hbk_attention_work(r->T, p->config.head_dim, r->threads);
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

/* Two clocks: that on the wall, and that of the processors, shared out among the threads. */
enum { PLAN_WALL, PLAN_PROCESSOR, PLAN_CLOCKS };
typedef struct plan_clock {
    double at[PLAN_CLOCKS];
} plan_clock;

static plan_clock plan_now(void)
{
    plan_clock t;
    struct timespec used;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    t.at[PLAN_WALL] = cli_now(NULL);
    t.at[PLAN_PROCESSOR] = ((double)used.tv_sec + 1e-9 * (double)used.tv_nsec) / hbk__n_threads();
    return t;
}

/* Seconds, by both clocks, in which all tokens of a step go through one piece of it, and back. */
typedef struct plan_pair {
    double forward[PLAN_CLOCKS], backward[PLAN_CLOCKS];
} plan_pair;

static plan_pair plan_times(plan_clock start, plan_clock middle, double times)
{
    plan_clock end = plan_now();
    plan_pair t;
    for (int k = 0; k < PLAN_CLOCKS; k++) {
        t.forward[k] = (middle.at[k] - start.at[k]) * times;
        t.backward[k] = (end.at[k] - middle.at[k]) * times;
    }
    return t;
}

/* The product with a weight (out, in), of which as many rows are multiplied as fit. */
static plan_pair plan_product(const plan *p, plan_room *r, hbk_int out, hbk_int in)
{
    hbk_int rows = HBK__MAX(1, HBK__MIN(out, PLAN_WEIGHTS / in));
    hbk_matrix w = {p->dtype, rows, in, r->weights, NULL, 0, false};
    hbk_matrix dw = {HBK_REAL, rows, in, r->dw, NULL, 0, false};
    if (in % hbk_dtype_block(p->dtype)) w.dtype = HBK_F16; /* as quantisers do */
    if (p->o.full) w.dtype = HBK_REAL;
    plan_clock start = plan_now();
    hbk_matmul(r->y, r->x, &w, r->rows, r->panel);
    plan_clock middle = plan_now();
    hbk_matmul_dx(r->z, r->y, &w, r->rows, r->panel);
    if (p->o.full) hbk_matmul_dw(&dw, r->y, r->x, r->rows);
    return plan_times(start, middle, (double)p->tokens / (double)r->rows * (double)out / (double)rows);
}

/* The adapter of a projection, its dropout included; of a head so wide that it does not fit, a part. */
static plan_pair plan_adapter(const plan *p, plan_room *r, hbk_int rank, hbk_int out, hbk_int in)
{
    hbk_int part = HBK__MIN(out, r->most);
    hbk_real *a = r->adapter, *da = a + rank * (in + part);
    hbk_lora l = {in, part, rank, 1, 1, a, a + rank * in}, d = {in, part, rank, 1, 1, da, da + rank * in};
    plan_clock start = plan_now();
    hbk_dropout(r->z, r->x, r->rows * in, p->o.dropout, 1);
    hbk_lora_forward(r->y, r->xa, r->z, &l, r->rows);
    plan_clock middle = plan_now();
    hbk_dropout(r->z, r->x, r->rows * in, p->o.dropout, 1);
    hbk_lora_backward(r->x, &d, r->dxa, r->y, r->z, r->xa, &l, r->rows);
    hbk_dropout(r->z, r->z, r->rows * in, p->o.dropout, 1);
    return plan_times(start, middle, (double)p->tokens / (double)r->rows * (double)out / (double)part);
}

/* Attention, whose price for a token grows with the length of its sequence. */
static plan_pair plan_attention(const plan *p, plan_room *r)
{
    const hbk_config *c = &p->config;
    hbk_int H = c->n_heads, K = c->n_kv_heads, D = c->head_dim, T = r->T;
    hbk_span s = {0, T, 0, r->x, r->x, 0, NULL, NULL, 0, 0, HBK_F32};
    plan_clock start = plan_now();
    hbk_attention_forward(r->y, r->lse, r->x, &s, 1, H, K, D, r->work, r->threads);
    plan_clock middle = plan_now();
    hbk_attention_backward(r->z, r->z + T * H * D, r->z + T * (H + K) * D, r->y, r->y, r->lse, r->x, &s, 1, H,
                           K, D, r->work, r->threads);
    return plan_times(start, middle, (double)p->tokens / (double)T * (double)p->length / (double)T);
}

/* Norms and silu(gate) * up of a layer; the backward computes both again. */
static plan_pair plan_between(const plan *p, plan_room *r)
{
    hbk_int N = r->rows, C = p->config.dim, n = N * p->config.ffn_dim;
    plan_clock start = plan_now();
    for (int k = 0; k < 2; k++) hbk_rms_norm_forward(r->y, r->x, r->x, N, C, 1e-5);
    hbk_swiglu_forward(r->y, r->x, r->z, n);
    plan_clock middle = plan_now();
    for (int k = 0; k < 2; k++) hbk_rms_norm_backward(r->y, NULL, r->z, r->x, r->x, N, C, 1e-5);
    hbk_swiglu_backward(r->y, r->y, r->z, r->x, r->x, n);
    plan_pair t = plan_times(start, middle, (double)p->tokens / (double)N);
    for (int k = 0; k < PLAN_CLOCKS; k++) t.backward[k] += t.forward[k];
    return t;
}

/* The loss over the vocabulary, on every token: logits to their gradient. */
static plan_pair plan_loss(const plan *p, plan_room *r)
{
    static const int32_t targets[4] = {0, 0, 0, 0};
    hbk_int V = p->config.vocab_size, part = HBK__MIN(V, r->rows * r->most / 4);
    plan_clock start = plan_now();
    hbk_cross_entropy(r->y, NULL, r->x, targets, 4, part, 1);
    return plan_times(start, plan_now(), (double)p->tokens / 4 * (double)V / (double)part);
}

/* AdamW's step over all that is trained, from one over a part. */
static plan_pair plan_adamw(const plan *p, plan_room *r, double n_values)
{
    hbk_int n = r->rows * p->config.dim / 2;
    hbk_adamw o = {1e-6, 0.9, 0.95, 1e-8, 0.1};
    plan_clock start = plan_now();
    hbk_adamw_step(r->x, r->y, r->z, r->x + n, n, 1, hbk_norm(r->x, n), &o);
    return plan_times(start, plan_now(), n_values / (double)n);
}

/* The pieces of a step: every target's product, every target's adapter, and the rest. */
enum {
    PLAN_ADAPTER = HBK_N_TARGETS,
    PLAN_ATTENTION = 2 * HBK_N_TARGETS,
    PLAN_BETWEEN,
    PLAN_LOSS,
    PLAN_ADAMW,
    PLAN_PIECES
};

static plan_pair plan_piece(const plan *p, plan_room *r, int piece, double n_values)
{
    hbk_int out, in, slot = piece % HBK_N_TARGETS;
    if (piece == PLAN_ATTENTION) return plan_attention(p, r);
    if (piece == PLAN_BETWEEN) return plan_between(p, r);
    if (piece == PLAN_LOSS) return plan_loss(p, r);
    if (piece == PLAN_ADAMW) return plan_adamw(p, r, n_values);
    hbk__slot_shape(&p->config, (int)slot, &out, &in);
    if (piece < PLAN_ADAPTER) return plan_product(p, r, out, in);
    return plan_adapter(p, r, plan_rank(p, (int)slot), out, in);
}

/* How often a piece is gone through. */
typedef struct plan_times_of {
    double forward, backward;
} plan_times_of;

/* Once a layer, and forward once more where a layer is recomputed; an adapter of some layers in those. Below
   the lowest adapter nothing goes back. */
static plan_times_of plan_counts(const plan *p, int piece)
{
    const hbk_adapter_options *o = &p->o.lora;
    double L = (double)p->config.n_layers, again = p->o.recompute ? L - 1 : 0;
    double first = (double)o->layer_begin, end = o->layer_end ? (double)o->layer_end : L;
    hbk_int slot = piece % HBK_N_TARGETS;
    bool adapter = piece >= PLAN_ADAPTER && piece < PLAN_ATTENTION, adapted = plan_rank(p, (int)slot) > 0;
    bool head_only = !p->o.full && o->targets == 1u << HBK_LM_HEAD;
    plan_times_of once = {1, 1}, never = {0, 0}, n;
    if (adapter && !adapted) return never;
    if (piece == PLAN_LOSS || piece == PLAN_ADAMW) return once;
    if (piece < PLAN_ATTENTION && slot == HBK_LM_HEAD) return once;
    if (piece < PLAN_ATTENTION && slot == HBK_DOWN) again = 0; /* the layer's output is not needed again */
    n.backward = p->o.full ? L : head_only ? 0 : adapter ? HBK__MIN(end, L) - first : L - first;
    n.forward = (adapter ? n.backward : L) + HBK__MIN(again, n.backward);
    return n;
}

static int plan_compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Times every piece once and keeps the shortest times; returns the seconds of a step by this round. */
static double plan_round(const plan *p, plan_room *r, double n_values, const plan_times_of *n,
                         plan_pair *best)
{
    double sum = 0;
    for (int k = 0; k < PLAN_PIECES; k++) {
        if (n[k].forward <= 0) continue;
        plan_pair t = plan_piece(p, r, k, n_values);
        sum += n[k].forward * t.forward[PLAN_WALL] + n[k].backward * t.backward[PLAN_WALL];
        for (int clock = 0; clock < PLAN_CLOCKS; clock++) {
            best[k].forward[clock] = HBK__MIN(best[k].forward[clock], t.forward[clock]);
            best[k].backward[clock] = HBK__MIN(best[k].backward[clock], t.backward[clock]);
        }
    }
    return sum;
}

/* Times the pieces, and adds up a step. */
static void plan_time(plan *p, plan_room *r, double n_values)
{
    static const plan_pair long_time = {{1e30, 1e30}, {1e30, 1e30}};
    plan_pair best[PLAN_PIECES];
    plan_times_of n[PLAN_PIECES];
    double rounds[PLAN_ROUNDS];
    for (int k = 0; k < PLAN_PIECES; k++) {
        n[k] = plan_counts(p, k);
        best[k] = long_time;
    }
    plan_round(p, r, n_values, n, best); /* warms up */
    for (int i = 0; i < PLAN_ROUNDS; i++) rounds[i] = plan_round(p, r, n_values, n, best);
    qsort(rounds, PLAN_ROUNDS, sizeof rounds[0], plan_compare);
    p->median = rounds[PLAN_ROUNDS / 2];
    p->seconds = p->shortest = p->products = p->flops = 0;
    for (int k = 0; k < PLAN_PIECES; k++) {
        hbk_int out, in;
        double t[PLAN_CLOCKS];
        if (n[k].forward <= 0) continue;
        for (int clock = 0; clock < PLAN_CLOCKS; clock++)
            t[clock] = n[k].forward * best[k].forward[clock] + n[k].backward * best[k].backward[clock];
        p->seconds += t[PLAN_PROCESSOR];
        p->shortest += t[PLAN_WALL];
        if (k >= PLAN_ADAPTER) continue;
        hbk__slot_shape(&p->config, k, &out, &in);
        p->products += t[PLAN_PROCESSOR];
        p->flops += 2 * (double)p->tokens * (double)in * (double)out *
                    (n[k].forward + n[k].backward * (p->o.full ? 2 : 1));
    }
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
    double times = p->n_init > 0 ? p->n_init / (double)m.n_values : 1; /* its ranks may differ by layer */
    for (int i = PLAN_TRAINED; i <= PLAN_BEST; i++) p->bytes[i] *= times;
    *n_values = (double)m.n_values * times;
    return true;
}

static bool plan_make(cli *c, plan *p)
{
    const char *path = cli_text(c, "model"), *vocabulary = cli_text(c, "tokenizer");
    hbk_tokenizer *tok = NULL;
    plan_room room;
    double n_values;
    if (!vocabulary && path && hbk_dir_exists(path)) vocabulary = path;
    const char *length = cli_has(c, "max-length") ? "max-length" : "length";
    if (path && !plan_weights_of_file(p, path, cli_text(c, "init-adapter"), &c->err)) return false;
    p->length = cli_has(c, length) ? cli_int(c, length) : p->config.context_length;
    p->length = HBK__MIN(p->length, p->config.context_length);
    if (cli_has(c, length)) p->tokens = HBK__MAX(p->tokens, p->length); /* an example is never torn */
    p->length = HBK__MIN(p->length, p->tokens);
    bool validation = cli_has(c, "validation") || cli_has(c, "validation-share");
    if (!plan_count(p, validation, &n_values, &c->err)) return false;
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
        json_pack("{s:s, s:s, s:b, s:I, s:I, s:o, s:I, s:f, s:f, s:f, s:f, s:f}", "mode",
                  p->o.full ? "full" : "lora", "dtype", hbk_dtype_name(p->dtype), "recompute",
                  p->o.recompute, "tokens", (json_int_t)p->tokens, "length", (json_int_t)p->length, "bytes",
                  parts, "total", (json_int_t)plan_total(p), "seconds", p->seconds, "seconds_shortest",
                  p->shortest, "seconds_median", p->median, "tokens_per_s",
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
    printf("\n%10.3g  seconds for a pass of %lld tokens and its step, which is %.3g tokens/s, where nothing\n"
           "            else runs; %.3g to %.3g beside what runs here now\n",
           p->seconds, (long long)p->tokens, (double)p->tokens / p->seconds, p->shortest, p->median);
    printf("%10.3g  of them in products, at %.3g GFLOP/s, measured now on %d thread%s in %d rounds\n",
           p->products, p->flops / p->products * 1e-9, hbk__n_threads(), hbk__n_threads() == 1 ? "" : "s",
           PLAN_ROUNDS);
}

/* The flags that are no plain number; 0 or an exit code. */
static int plan_options(cli *c, plan *p)
{
    static const char *const of_lora[] = {"rank", "targets", "layers", "rank-of", "init-adapter"};
    const char *layers = cli_text(c, "layers"), *ranks = cli_text(c, "rank-of");
    if (cli_has(c, "model") == cli_has(c, "shape"))
        return cli_misused(c, "plan needs --model M or --shape S, one of them");
    if (cli_has(c, "model") && cli_has(c, "dtype"))
        return cli_misused(c, "--dtype is of --shape: a model has its own");
    for (size_t i = 0; i < sizeof of_lora / sizeof *of_lora; i++) {
        if (!cli_has(c, of_lora[i])) continue;
        if (p->o.full) return cli_misused(c, "--%s is of LoRA: it does not go with --full", of_lora[i]);
        if (i < 4 && cli_has(c, "init-adapter"))
            return cli_misused(c, "--%s is of a new adapter: --init-adapter has its own", of_lora[i]);
    }
    if (cli_has(c, "init-adapter") && !cli_has(c, "model"))
        return cli_misused(c, "--init-adapter needs its --model; give a --shape its --rank");
    if (ranks && !cmd_per_target(ranks, p->o.lora.target_rank, NULL))
        return cli_misused(c, "--rank-of %s: expected a list such as v_proj=8,lm_head=4", ranks);
    if (layers && !cmd_layers(layers, &p->o.lora.layer_begin, &p->o.lora.layer_end))
        return cli_misused(c, "--layers %s: expected a number or a range such as 4-7, from 0", layers);
    return 0;
}

static int plan_main(cli *c)
{
    static const hbk_dtype types[] = {HBK_F32, HBK_BF16, HBK_F16, HBK_Q8_0, HBK_Q4_0, HBK_Q4_K};
    plan p;
    memset(&p, 0, sizeof p);
    p.o = hbk_train_defaults(cli_has(c, "full"));
    cli_bind(c, &plan_train_group, "", &p.o);
    int misused = plan_options(c, &p);
    if (misused) return misused;
    p.tokens = cli_int(c, cli_has(c, "max-tokens") ? "max-tokens" : "tokens");
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
