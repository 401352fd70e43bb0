/* Chapter 12, GGUF: models and adapters, in and out; and damaged. After test_12_weights.c, whose helpers it
   uses. */

/* ---- helpers ------------------------------------------------------------------ */

/* A key to leave out (type ARRAY), or to put in place of the one of that name or behind all. */
typedef struct t12_edit {
    const char *key;
    hbk_gguf_type type;
    double x;
    const char *s; /* of a string */
    int per_layer; /* so many elements, x, x + step ...; 0: a single value */
    int step;
} t12_edit;

static void t12_gguf_put(hbk_gguf_writer *w, const t12_edit *e)
{
    if (e->per_layer) hbk_gguf_put_array(w, e->key, e->type, e->per_layer);
    for (int i = 0; i < e->per_layer; i++) hbk_gguf_add_int(w, (hbk_int)e->x + i * e->step);
    if (e->per_layer) return;
    if (e->type == HBK_GGUF_STRING)
        hbk_gguf_put_string(w, e->key, e->s, strlen(e->s));
    else if (e->type == HBK_GGUF_F32)
        hbk_gguf_put_real(w, e->key, e->x);
    else if (e->type != HBK_GGUF_ARRAY)
        hbk_gguf_put_int(w, e->key, e->type, (hbk_int)e->x);
}

/* Copies a GGUF file with one key edited (NULL: none) and one tensor given another name or, "" , left out. */
static void t12_gguf_edit(const char *from, const char *to, const t12_edit *e, const char *tensor,
                          const char *name)
{
    hbk_error err;
    bool done = false;
    hbk_gguf *g = hbk_gguf_open(from, NULL, &err);
    hbk_gguf_writer *w = hbk_gguf_create(to, NULL, &err);
    assert_true(g && w);
    for (hbk_int i = 0; i < hbk_gguf_key_count(g); i++) {
        const hbk_gguf_value *v = hbk_gguf_key_at(g, i);
        bool this_one = e && !strcmp(v->key, e->key);
        done = done || this_one;
        if (this_one)
            t12_gguf_put(w, e);
        else
            hbk_gguf_put_value(w, v);
    }
    if (e && !done) t12_gguf_put(w, e);
    for (int data = 0; data < 2; data++)
        for (hbk_int i = 0; i < hbk_gguf_tensor_count(g); i++) {
            hbk_gguf_tensor t = *hbk_gguf_tensor_at(g, i);
            bool this_one = tensor && !strcmp(t.name, tensor);
            if (this_one && !*name) continue;
            if (this_one) t.name = name;
            if (data)
                hbk_gguf_put_data(w, t.data, t.bytes);
            else
                hbk_gguf_put_tensor(w, &t);
        }
    check_ok(hbk_gguf_finish(w, &err));
    hbk_gguf_close(g);
}

/* A random model of this configuration, and the file that it was saved in. */
static hbk_model *t12_gguf_saved(const hbk_config *c, hbk_dtype t, char path[512], const char *name)
{
    hbk_error err;
    hbk_model *m = hbk_model_random(c, 5, NULL, &err);
    if (!m) fail_msg("%s", err.message);
    test_tmp(path, name);
    check_ok(hbk_model_save_gguf(m, NULL, NULL, path, t, &err));
    return m;
}

static hbk_model *t12_gguf_load(const char *path)
{
    hbk_error err;
    hbk_model *m = hbk_model_load(path, NULL, &err);
    if (!m) fail_msg("%s", err.message);
    return m;
}

/* Fails unless b has a's numbers, matrices rounded to type t, or to F16 where rows are no whole blocks, and
   vectors to F32; t DTYPE_COUNT: not rounded. */
static void t12_gguf_same(const hbk_model *a, const hbk_model *b, hbk_dtype t)
{
    hbk_error err;
    char name[96];
    hbk_matrix x, y;
    assert_int_equal(hbk_model_count(&a->config), hbk_model_count(&b->config));
    for (hbk_int i = 0; hbk_tensor_at(a, i, name, &x); i++) {
        hbk_int n = x.rows * x.cols;
        assert_true(hbk_tensor_at(b, i, name, &y) && x.rows == y.rows && x.cols == y.cols);
        bool vector = strstr(name, "norm") || strstr(name, "bias");
        hbk_real *p = HBK__NEW(NULL, hbk_real, n, &err), *q = HBK__NEW(NULL, hbk_real, n, &err);
        hbk_matrix_unpack(p, &x, 0, x.rows);
        hbk_matrix_unpack(q, &y, 0, y.rows);
        if (t != HBK_DTYPE_COUNT) {
            hbk_dtype as = vector ? HBK_F32 : x.cols % hbk_dtype_block(t) ? HBK_F16 : t;
            char *packed = (char *)hbk_alloc(NULL, (hbk_int)hbk_dtype_size(as, n), 1, &err);
            hbk_pack(packed, as, p, n);
            x.data = packed;
            x.dtype = as;
            hbk_matrix_unpack(p, &x, 0, x.rows);
            hbk_free(NULL, packed);
            if (!vector) assert_int_equal(y.dtype, as);
        }
        for (hbk_int k = 0; k < n; k++)
            if (p[k] != q[k])
                fail_msg("%s[%lld]: %g, expected %g", name, (long long)k, (double)q[k], (double)p[k]);
        hbk_free(NULL, p);
        hbk_free(NULL, q);
    }
    for (hbk_int i = 0; i < a->config.head_dim / 2; i++) check_near(b->inv_freq[i] / a->inv_freq[i], 1, 1e-6);
}

/* ---- models ------------------------------------------------------------------- */

/* Promise: any model that we can hold is written as GGUF and read back the same: grouped heads of any size,
   tied or not, biases, each scaling, each type; what ends a text comes along. */
static void t12_gguf_models(void **state)
{
    (void)state;
    static const hbk_dtype types[4] = {HBK_F32, HBK_F16, HBK_BF16, HBK_Q8_0};
    hbk_error err;
    char path[512], again[512];
    for (int k = 0; k < 12; k++) {
        hbk_config c = t12_config(k % 2 == 0);
        c.rope_scaling = (hbk_rope_scaling)(k % 3);
        if (k % 3 == 1) c.rope_factor = 4;
        if (k % 3 == 2) {
            c.rope_factor = 8;
            c.rope_high_freq_factor = k == 2 ? 4 : 2.5;
            c.rope_original_context = k == 2 ? 32 : 50;
            if (k == 5) c.rope_theta = 3; /* no wavelength is long enough for the whole factor */
        }
        if (k > 3) c.biases = k % 2 ? 1u << HBK_Q | 1u << HBK_K | 1u << HBK_V : HBK_ALL_SLOTS;
        if (k > 7) c.dim = c.ffn_dim = 32; /* blocks of q8_0 fit into the rows of some */
        c.n_eos = 3;
        c.eos[1] = 36;
        c.eos[2] = 7;
        hbk_model *m = t12_gguf_saved(&c, types[k % 4], path, "t12.gguf"), *l = t12_gguf_load(path);
        t12_gguf_same(m, l, types[k % 4]);
        const hbk_config *d = &l->config;
        assert_true(d->context_length == 64 && d->tied == c.tied && d->biases == c.biases && d->bos == 1);
        assert_true(d->n_eos == 3 && d->eos[0] == 2 && d->eos[1] == 36 && d->eos[2] == 7);
        assert_true(d->rope_scaling == c.rope_scaling && d->rope_factor == c.rope_factor);
        if (c.rope_scaling == HBK_ROPE_LLAMA3)
            assert_true(d->rope_high_freq_factor == c.rope_high_freq_factor &&
                        d->rope_original_context == c.rope_original_context);
        check_near(d->rms_norm_eps, 1e-5, 1e-12);
        hbk_text first = t12_get(path);
        check_ok(hbk_model_save_gguf(l, NULL, NULL, path, types[k % 4], &err));
        hbk_text second = t12_get(path);
        assert_true(first.len == second.len && !memcmp(first.data, second.data, first.len));
        if (types[k % 4] == HBK_F32) { /* and as a folder: each of these has all biases, or none */
            test_tmp(again, "t12_folder_of_gguf");
            check_ok(hbk_model_save(l, again, HBK_F32, &err));
            hbk_model *f = t12_gguf_load(again);
            t12_gguf_same(l, f, HBK_DTYPE_COUNT);
            hbk_model_free(f);
        }
        hbk_text_free(&first);
        hbk_text_free(&second);
        hbk_model_free(l);
        hbk_model_free(m);
    }
}

/* Promise: the file has llama.cpp's names, the rows of q and k (and their biases) in pairs, norms in F32. */
static void t12_gguf_layout(void **state)
{
    (void)state;
    char path[512];
    hbk_error err;
    hbk_config c = t12_config(false);
    c.biases = 1u << HBK_K;
    hbk_model *m = t12_gguf_saved(&c, HBK_F32, path, "t12.gguf");
    hbk_gguf *g = hbk_gguf_open(path, NULL, &err);
    assert_non_null(g);
    assert_int_equal(hbk_gguf_tensor_count(g), 3 + 2 * 10);
    assert_string_equal(hbk_gguf_tensor_at(g, 0)->name, "token_embd.weight");
    const hbk_gguf_tensor *q = hbk_gguf_tensor_find(g, "blk.1.attn_q.weight");
    const hbk_gguf_tensor *v = hbk_gguf_tensor_find(g, "blk.1.attn_v.weight");
    const hbk_gguf_tensor *b = hbk_gguf_tensor_find(g, "blk.1.attn_k.bias");
    const hbk_gguf_tensor *n = hbk_gguf_tensor_find(g, "blk.0.ffn_norm.weight");
    assert_true(q && v && b && n && q->shape[0] == 24 && q->shape[1] == 20 && b->n_dims == 1);
    assert_true(b->shape[0] == 12 && n->n_dims == 1 && n->shape[0] == 20 && !strcmp(n->type, "F32"));
    for (hbk_int row = 0; row < 24; row++) { /* head h, pair i, half s: 6 h + 2 i + s <- 6 h + 3 s + i */
        hbk_int h = row / 6, i = row % 6 / 2, s = row % 2, from = 6 * h + 3 * s + i;
        for (hbk_int k = 0; k < 20; k++) {
            float x;
            memcpy(&x, q->data + 4 * (row * 20 + k), 4);
            assert_true(x == (float)((hbk_real *)m->layers[1].w[HBK_Q].data)[from * 20 + k]);
            if (row >= 12) continue;
            memcpy(&x, v->data + 4 * (row * 20 + k), 4);
            assert_true(x == (float)((hbk_real *)m->layers[1].w[HBK_V].data)[row * 20 + k]);
        }
        float x;
        if (row < 12) memcpy(&x, b->data + 4 * row, 4);
        if (row < 12) assert_true(x == (float)m->layers[1].bias[HBK_K][from]);
    }
    hbk_gguf_close(g);
    hbk_model_free(m);
}

/* A model of random blocks: dim 256, two heads, the stored types in turn over the matrices. */
static void t12_gguf_blocks(const char *path, hbk_dtype first)
{
    static const char *const keys[] = {"llama.block_count",          "llama.context_length",
                                       "llama.embedding_length",     "llama.feed_forward_length",
                                       "llama.attention.head_count", "llama.attention.head_count_kv"};
    static const hbk_int sizes[] = {1, 8, 256, 256, 2, 1};
    static const struct {
        const char *name;
        hbk_int rows;
    } tensors[] = {
        {"token_embd.weight", 4},     {"output_norm.weight", 0},         {"blk.0.attn_norm.weight", 0},
        {"blk.0.ffn_norm.weight", 0}, {"blk.0.attn_q.weight", 256},      {"blk.0.attn_k.weight", 128},
        {"blk.0.attn_v.weight", 128}, {"blk.0.attn_output.weight", 256}, {"blk.0.ffn_gate.weight", 256},
        {"blk.0.ffn_up.weight", 256}, {"blk.0.ffn_down.weight", 256}};
    hbk_error err;
    hbk_gguf_writer *w = hbk_gguf_create(path, NULL, &err);
    hbk_rng rng = hbk_rng_at(3, "blocks", (uint64_t)first);
    hbk_gguf_put_string(w, "general.architecture", "llama", 5);
    for (int i = 0; i < 6; i++) hbk_gguf_put_int(w, keys[i], HBK_GGUF_U32, sizes[i]);
    hbk_gguf_put_real(w, "llama.attention.layer_norm_rms_epsilon", 1e-6);
    for (int data = 0; data < 2; data++)
        for (int i = 0; i < 11; i++) {
            hbk_gguf_tensor t;
            hbk_dtype type = tensors[i].rows ? (hbk_dtype)(first + (hbk_dtype)(i % 3)) : HBK_F32;
            memset(&t, 0, sizeof t);
            t.name = tensors[i].name;
            t.type = hbk__st_type_name(type);
            t.shape[0] = tensors[i].rows;
            t.n_dims = tensors[i].rows ? 2 : 1;
            t.shape[t.n_dims - 1] = 256;
            if (!data) hbk_gguf_put_tensor(w, &t);
            for (hbk_int row = 0; data && row < HBK__MAX(1, tensors[i].rows); row++) {
                char bytes[1024];
                size_t n = hbk_dtype_size(type, 256);
                for (size_t k = 0; k < n; k++) bytes[k] = (char)(hbk_rng_next(&rng) & 0x3b); /* no NaN */
                hbk_gguf_put_data(w, bytes, n);
            }
        }
    check_ok(hbk_gguf_finish(w, &err));
}

/* Promise: block types stay as they are stored: q and k copied row by row into the other order, byte for
   byte, all other matrices left in the file; written back as q8_0 where they were, the bytes are the same. */
static void t12_gguf_stored(void **state)
{
    (void)state;
    static const hbk_dtype firsts[4] = {HBK_Q4_0, HBK_Q5_1, HBK_Q2_K, HBK_Q4_K};
    char path[512];
    hbk_error err;
    test_tmp(path, "t12_blocks.gguf");
    for (int f = 0; f < 4; f++) {
        t12_gguf_blocks(path, firsts[f]);
        hbk_model *m = t12_gguf_load(path);
        hbk_gguf *g = hbk_gguf_open(path, NULL, &err);
        const hbk_gguf_tensor *q = hbk_gguf_tensor_find(g, "blk.0.attn_q.weight");
        const hbk_gguf_tensor *down = hbk_gguf_tensor_find(g, "blk.0.ffn_down.weight");
        const hbk_matrix *w = &m->layers[0].w[HBK_Q], *d = &m->layers[0].w[HBK_DOWN];
        assert_string_equal(hbk__st_type_name(w->dtype), q->type);
        size_t row = hbk_dtype_size(w->dtype, 256);
        for (hbk_int i = 0; i < 256; i++) {
            hbk_int to = i / 128 * 128 + i % 2 * 64 + i % 128 / 2;
            assert_memory_equal((char *)w->data + (size_t)to * row, q->data + (size_t)i * row, row);
        }
        assert_int_equal((const unsigned char *)d->data - m->maps[0].data, down->data - g->map.data);
        hbk_gguf_close(g);
        hbk_matrix embed = m->embed;
        hbk_real x[256];
        hbk_matrix_unpack(x, &embed, 3, 1);
        assert_true(x[0] == x[0] && embed.rows == 4);
        hbk_model_free(m);
    }
    hbk_config c = t12_config(true);
    char copy[512];
    c.dim = c.ffn_dim = c.head_dim = 32;
    hbk_model_free(t12_gguf_saved(&c, HBK_Q8_0, path, "t12_q8.gguf"));
    hbk_model *m = t12_gguf_load(path);
    assert_true(m->layers[0].w[HBK_O].dtype == HBK_Q8_0 && m->embed.dtype == HBK_Q8_0);
    test_tmp(copy, "t12_q8_copy.gguf");
    check_ok(hbk_model_save_gguf(m, NULL, NULL, copy, HBK_Q8_0, &err));
    hbk_gguf *a = hbk_gguf_open(path, NULL, &err), *b = hbk_gguf_open(copy, NULL, &err);
    for (hbk_int i = 0; i < hbk_gguf_tensor_count(a); i++)
        assert_memory_equal(hbk_gguf_tensor_at(a, i)->data, hbk_gguf_tensor_at(b, i)->data,
                            hbk_gguf_tensor_at(a, i)->bytes);
    hbk_gguf_close(a);
    hbk_gguf_close(b);
    hbk_model_free(m);
}

/* Promise: other spellings of the same: integers of other widths, an array per layer, the old key for linear
   scaling, "none", a table of divisors without our numbers, SentencePiece's ids where none are given. */
static void t12_gguf_spellings(void **state)
{
    (void)state;
    static const t12_edit edits[] = {
        {"llama.block_count", HBK_GGUF_U64, 2, NULL, 0, 0},
        {"llama.block_count", HBK_GGUF_I8, 2, NULL, 0, 0},
        {"llama.vocab_size", HBK_GGUF_ARRAY, 0, NULL, 0, 0},
        {"llama.rope.freq_base", HBK_GGUF_ARRAY, 0, NULL, 0, 0},
        {"llama.rope.scaling.type", HBK_GGUF_STRING, 0, "none", 0, 0},
        {"llama.expert_count", HBK_GGUF_U32, 0, NULL, 0, 0},
        {"general.type", HBK_GGUF_ARRAY, 0, NULL, 0, 0},
        {"unheard.of", HBK_GGUF_U32, 9, NULL, 0, 0},
        {"llama.attention.head_count", HBK_GGUF_I32, 4, NULL, 2, 0},
        {"llama.attention.head_count_kv", HBK_GGUF_U32, 2, NULL, 2, 0},
    };
    char path[512], other[512];
    hbk_config c = t12_config(false);
    hbk_model *m = t12_gguf_saved(&c, HBK_F32, path, "t12.gguf"), *l;
    test_tmp(other, "t12_other.gguf");
    for (size_t i = 0; i < sizeof edits / sizeof *edits; i++) {
        t12_gguf_edit(path, other, &edits[i], NULL, NULL);
        l = t12_gguf_load(other);
        t12_gguf_same(m, l, HBK_F32);
        hbk_model_free(l);
    }
    t12_edit e = {"llama.rope.scale_linear", HBK_GGUF_F32, 2, NULL, 0, 0};
    t12_gguf_edit(path, other, &e, NULL, NULL);
    l = t12_gguf_load(other);
    assert_true(l->config.rope_scaling == HBK_ROPE_LINEAR && l->config.rope_factor == 2);
    check_near(l->inv_freq[0], 0.5, 1e-12);
    hbk_model_free(l);
    t12_edit spm = {"tokenizer.ggml.model", HBK_GGUF_STRING, 0, "llama", 0, 0};
    t12_gguf_edit(path, other, &spm, NULL, NULL);
    t12_edit none = {
        "tokenizer.ggml.eos_token_id", HBK_GGUF_U32, 4294967295.0, NULL, 0, 0}; /* -1, by some writers */
    t12_gguf_edit(other, path, &none, NULL, NULL);
    l = t12_gguf_load(path);
    assert_true(l->config.bos == 1 && l->config.n_eos == 1 && l->config.eos[0] == 2);
    hbk_model_free(l);
    hbk_model_free(m);
    c.rope_scaling = HBK_ROPE_LLAMA3; /* as in Llama 3.2: 32, 1, 4, 8192 */
    c.rope_theta = 500000;
    c.rope_factor = 32;
    c.rope_high_freq_factor = 4;
    c.rope_original_context = 8192;
    c.head_dim = 64;
    m = t12_gguf_saved(&c, HBK_F32, path, "t12.gguf");
    t12_edit own = {HBK__GGUF_LLAMA3, HBK_GGUF_ARRAY, 0, NULL, 0, 0};
    t12_gguf_edit(path, other, &own, NULL, NULL);
    l = t12_gguf_load(other);
    t12_gguf_same(m, l, HBK_F32);
    assert_true(l->config.rope_factor == 32 && l->config.rope_original_context == 8192);
    hbk_model_free(l);
    hbk_model_free(m);
}

/* Promise: what would give another model is refused, by the name of its key or tensor. */
static void t12_gguf_refused(void **state)
{
    (void)state;
    static const struct {
        t12_edit edit;
        hbk_code code;
        const char *message;
    } keys[] = {
        {{"general.architecture", HBK_GGUF_STRING, 0, "qwen2", 0, 0},
         HBK_ERROR_UNSUPPORTED,
         "key general.architecture: \"qwen2\" is not supported, only \"llama\""},
        {{"general.architecture", HBK_GGUF_ARRAY, 0, NULL, 0, 0},
         HBK_ERROR_FORMAT,
         "key general.architecture is missing"},
        {{"general.architecture", HBK_GGUF_U32, 1, NULL, 0, 0},
         HBK_ERROR_FORMAT,
         "key general.architecture: expected a string, found u32"},
        {{"general.type", HBK_GGUF_STRING, 0, "adapter", 0, 0},
         HBK_ERROR_UNSUPPORTED,
         "opened as an adapter"},
        {{"llama.expert_count", HBK_GGUF_U32, 8, NULL, 0, 0},
         HBK_ERROR_UNSUPPORTED,
         "key llama.expert_count: 8 is not supported"},
        {{"llama.attention.sliding_window", HBK_GGUF_U32, 16, NULL, 0, 0},
         HBK_ERROR_UNSUPPORTED,
         "sliding_window"},
        {{"llama.block_count", HBK_GGUF_ARRAY, 0, NULL, 0, 0},
         HBK_ERROR_FORMAT,
         "key llama.block_count is missing"},
        {{"llama.block_count", HBK_GGUF_I32, -1, NULL, 0, 0}, HBK_ERROR_RANGE, "num_hidden_layers is -1"},
        {{"llama.block_count", HBK_GGUF_U32, 2000000000, NULL, 0, 0},
         HBK_ERROR_FORMAT,
         "tensor blk.2.attn_norm.weight is missing"},
        {{"llama.block_count", HBK_GGUF_U32, 1, NULL, 0, 0},
         HBK_ERROR_UNSUPPORTED,
         "tensor blk.1.attn_norm.weight: a LLaMA of 1 layers has no such weight"},
        {{"llama.attention.head_count_kv", HBK_GGUF_U32, 3, NULL, 0, 0},
         HBK_ERROR_RANGE,
         "t12_other.gguf: configuration: num_attention_heads 4 is no multiple of"},
        {{"llama.rope.scaling.factor", HBK_GGUF_F32, 1e-20, NULL, 0, 0},
         HBK_ERROR_RANGE,
         "t12_other.gguf: configuration: the factor of the rope scaling is 1e-20"},
        {{"llama.attention.head_count_kv", HBK_GGUF_U32, 1, NULL, 0, 0},
         HBK_ERROR_SHAPE,
         "tensor blk.0.attn_k.weight: shape (12,20), expected (6,20)"},
        {{"llama.attention.head_count_kv", HBK_GGUF_F32, 2, NULL, 0, 0},
         HBK_ERROR_FORMAT,
         "key llama.attention.head_count_kv: expected a whole number below 2^63, found f32"},
        {{"llama.attention.value_length", HBK_GGUF_U32, 8, NULL, 0, 0},
         HBK_ERROR_UNSUPPORTED,
         "key llama.attention.value_length: is 8, not the 6"},
        {{"llama.rope.dimension_count", HBK_GGUF_U32, 4, NULL, 0, 0},
         HBK_ERROR_UNSUPPORTED,
         "key llama.rope.dimension_count: is 4, not the 6"},
        {{"llama.attention.layer_norm_rms_epsilon", HBK_GGUF_ARRAY, 0, NULL, 0, 0},
         HBK_ERROR_FORMAT,
         "layer_norm_rms_epsilon is missing"},
        {{"llama.rope.scaling.type", HBK_GGUF_STRING, 0, "yarn", 0, 0},
         HBK_ERROR_UNSUPPORTED,
         "key llama.rope.scaling.type: \"yarn\" is not supported, only \"linear\" and \"none\""},
        {{"llama.rope.scaling.factor", HBK_GGUF_F32, -2, NULL, 0, 0},
         HBK_ERROR_FORMAT,
         "is -2, expected a factor"},
        {{"llama.rope.scaling.attn_factor", HBK_GGUF_F32, 0.5, NULL, 0, 0},
         HBK_ERROR_UNSUPPORTED,
         "attn_factor"},
        {{"llama.vocab_size", HBK_GGUF_U32, 38, NULL, 0, 0},
         HBK_ERROR_SHAPE,
         "key llama.vocab_size: speaks of 38 tokens, but tensor token_embd.weight has 37 rows"},
        {{"tokenizer.ggml.bos_token_id", HBK_GGUF_U32, 37, NULL, 0, 0},
         HBK_ERROR_RANGE,
         "key tokenizer.ggml.bos_token_id: is 37, expected an id below the vocabulary's size 37"},
        {{"llama.attention.head_count_kv", HBK_GGUF_U32, 2, NULL, 2, 2},
         HBK_ERROR_UNSUPPORTED,
         "key llama.attention.head_count_kv: its layers differ, which is not supported"},
        {{"tokenizer.ggml.tokens", HBK_GGUF_STRING, 0, "x", 0, 0},
         HBK_ERROR_FORMAT,
         "key tokenizer.ggml.tokens: expected an array of string, found string"},
    };
    static const struct {
        const char *tensor, *name;
        hbk_code code;
        const char *message;
    } tensors[] = {
        {"token_embd.weight", "", HBK_ERROR_FORMAT, "tensor token_embd.weight is missing"},
        {"output_norm.weight", "", HBK_ERROR_FORMAT, "tensor output_norm.weight is missing"},
        {"blk.1.ffn_up.weight", "", HBK_ERROR_FORMAT, "tensor blk.1.ffn_up.weight is missing"},
        {"blk.1.ffn_up.weight", "blk.1.ffn_up_exps.weight", HBK_ERROR_FORMAT,
         "blk.1.ffn_up.weight is missing"},
        {"output.weight", "cls.weight", HBK_ERROR_UNSUPPORTED,
         "tensor cls.weight: a LLaMA of 2 layers has no"},
        {"output.weight", "blk.0.attn_q.bias", HBK_ERROR_SHAPE,
         "tensor blk.0.attn_q.bias: shape (37,20), expected (24)"},
        {"output.weight", HBK__GGUF_ROPE, HBK_ERROR_UNSUPPORTED,
         "tensor rope_freqs.weight: expected 3 divisors in F32"},
        {"output.weight", "lm_head.weight", HBK_ERROR_UNSUPPORTED, "tensor lm_head.weight: a LLaMA of 2"},
        {"output.weight", "model.layers.0.input_layernorm.weight", HBK_ERROR_UNSUPPORTED,
         "tensor model.layers.0.input_layernorm.weight: a LLaMA of 2 layers has no such weight"},
    };
    char path[512], other[512];
    hbk_error err;
    hbk_config c = t12_config(false);
    hbk_model_free(t12_gguf_saved(&c, HBK_F32, path, "t12.gguf"));
    test_tmp(other, "t12_other.gguf");
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        t12_gguf_edit(path, other, &keys[i].edit, NULL, NULL);
        check_error(hbk_model_load(other, NULL, &err), keys[i].code, keys[i].message);
    }
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        t12_gguf_edit(path, other, NULL, tensors[i].tensor, tensors[i].name);
        check_error(hbk_model_load(other, NULL, &err), tensors[i].code, tensors[i].message);
    }
    static const char *const odd[2] = {"general.architecture", "output_norm.weight"};
    for (int i = 0; i < 2; i++) { /* the writer would refuse them as well */
        hbk_text file = {NULL, NULL, 0, 0, false};
        check_ok(hbk_file_read(path, (size_t)1 << 24, &file, &err));
        size_t at = 0;
        while (at < file.len && memcmp(file.data + at, odd[i], strlen(odd[i])) != 0) at++;
        assert_true(at < file.len);
        file.data[at + 6] = (char)0xff;
        t12_put(other, file.data, file.len);
        check_error(hbk_model_load(other, NULL, &err), HBK_ERROR_FORMAT, "name is no UTF-8 from byte 6");
        hbk_text_free(&file);
    }
}

/* A file under way: the keys of m's configuration are put, its tensors are items. */
typedef struct t12_draft {
    hbk_gguf_writer *w;
    hbk__gguf_item items[32];
    hbk_int n;
} t12_draft;

static void t12_draft_begin(t12_draft *d, const hbk_model *m, const char *path)
{
    hbk_error err;
    memset(d, 0, sizeof *d);
    d->w = hbk_gguf_create(path, NULL, &err);
    assert_non_null(d->w);
    hbk_gguf_put_string(d->w, "general.architecture", "llama", 5);
    hbk__gguf_put_config(d->w, &m->config);
    while (hbk__gguf_model_item(&d->items[d->n], m, NULL, d->n, HBK_F32)) d->n++;
}

static void t12_draft_end(t12_draft *d)
{
    hbk_error err;
    check_ok(hbk__gguf_put_items(d->w, d->items, d->n, NULL, &err));
}

/* Promise: a vocabulary of another size, layers that differ, divisors of no known scaling and a type that is
   not multiplied are refused by name; layers that are alike are not. */
static void t12_gguf_refused_arrays(void **state)
{
    (void)state;
    char path[512];
    hbk_error err;
    hbk_config c = t12_config(false);
    hbk_model *m = hbk_model_random(&c, 5, NULL, &err);
    t12_draft d;
    test_tmp(path, "t12_arrays.gguf");
    for (hbk_int n = 36; n <= 37; n++) {
        t12_draft_begin(&d, m, path);
        hbk_gguf_put_array(d.w, "tokenizer.ggml.tokens", HBK_GGUF_STRING, n);
        for (hbk_int i = 0; i < n; i++) hbk_gguf_add_string(d.w, "x", 1);
        t12_draft_end(&d);
        if (n == 37)
            hbk_model_free(t12_gguf_load(path));
        else
            check_error(
                hbk_model_load(path, NULL, &err), HBK_ERROR_SHAPE,
                "key tokenizer.ggml.tokens: speaks of 36 tokens, but tensor token_embd.weight has 37");
    }
    hbk_real divisors[3] = {1, (hbk_real)1.5, 9};
    t12_draft_begin(&d, m, path);
    hbk__gguf_item *rope = &d.items[d.n++];
    snprintf(rope->name, sizeof rope->name, HBK__GGUF_ROPE);
    rope->from = hbk__matrix(3, 1, divisors);
    rope->vector = true;
    rope->factor = 1;
    t12_draft_end(&d);
    check_error(hbk_model_load(path, NULL, &err), HBK_ERROR_UNSUPPORTED,
                "tensor rope_freqs.weight: its divisors are not those of Llama 3's scaling");
    t12_draft_begin(&d, m, path);
    d.items[3].type = HBK_F64;
    t12_draft_end(&d);
    check_error(hbk_model_load(path, NULL, &err), HBK_ERROR_UNSUPPORTED,
                "tensor blk.0.attn_k.weight: type F64 is not supported");
    hbk_model_free(m);
    c.head_dim = 8; /* whole blocks: the bias itself could be Q8_0, were vectors ever stored so */
    c.biases = 1u << HBK_Q;
    m = hbk_model_random(&c, 5, NULL, &err);
    t12_draft_begin(&d, m, path);
    for (hbk_int i = 0; i < d.n; i++)
        if (!strcmp(d.items[i].name, "blk.0.attn_q.bias")) {
            d.items[i].from = hbk__matrix(1, 32, (hbk_real *)d.items[i].from.data);
            d.items[i].type = HBK_Q8_0;
            d.items[i].interleave = 0;
        }
    t12_draft_end(&d);
    check_error(hbk_model_load(path, NULL, &err), HBK_ERROR_UNSUPPORTED,
                "tensor blk.0.attn_q.bias: type Q8_0, expected F32, F16 or BF16 for a norm or bias");
    hbk_model_free(m);
}

/* Promise: a model in several files loads from its first. */
static void t12_gguf_shards(void **state)
{
    (void)state;
    char path[512], part[512];
    hbk_error err;
    hbk_config c = t12_config(false);
    hbk_model *m = t12_gguf_saved(&c, HBK_BF16, path, "t12.gguf");
    hbk_gguf *g = hbk_gguf_open(path, NULL, &err);
    hbk_int n = hbk_gguf_tensor_count(g);
    for (int f = 2; f >= 0; f--) { /* the last first: path stays the first's */
        char name[64];
        snprintf(name, sizeof name, "t12_split-%05d-of-00003.gguf", f + 1);
        test_tmp(part, name);
        hbk_gguf_writer *w = hbk_gguf_create(part, NULL, &err);
        for (hbk_int i = 0; f == 0 && i < hbk_gguf_key_count(g); i++)
            hbk_gguf_put_value(w, hbk_gguf_key_at(g, i));
        hbk_gguf_put_int(w, "split.no", HBK_GGUF_U16, f);
        hbk_gguf_put_int(w, "split.count", HBK_GGUF_U16, 3);
        hbk_gguf_put_int(w, "split.tensors.count", HBK_GGUF_I32, n);
        for (hbk_int i = f; i < n; i += 3) hbk_gguf_put_tensor(w, hbk_gguf_tensor_at(g, i));
        for (hbk_int i = f; i < n; i += 3)
            hbk_gguf_put_data(w, hbk_gguf_tensor_at(g, i)->data, hbk_gguf_tensor_at(g, i)->bytes);
        check_ok(hbk_gguf_finish(w, &err));
    }
    hbk_gguf_close(g);
    hbk_model *l = t12_gguf_load(part);
    assert_int_equal(l->n_maps, 3);
    t12_gguf_same(m, l, HBK_BF16);
    hbk_model_free(l);
    hbk_model_free(m);
}

/* Promise: what cannot be written is refused, and no file appears. */
static void t12_gguf_save_errors(void **state)
{
    (void)state;
    char path[512];
    hbk_error err;
    hbk_config c = t12_config(true);
    hbk_model *m = hbk_model_random(&c, 5, NULL, &err);
    test_tmp(path, "t12_never.gguf");
    check_error(hbk_model_save_gguf(m, NULL, NULL, path, HBK_Q4_K, &err), HBK_ERROR_OPTION,
                "is saved as f32, f16, bf16 or q8_0, not as q4_k");
    ((hbk_real *)m->layers[1].w[HBK_Q].data)[5] = (hbk_real)1e6;
    check_error(hbk_model_save_gguf(m, NULL, NULL, path, HBK_F16, &err), HBK_ERROR_NUMERIC,
                "tensor blk.1.attn_q.weight: holds 1e+06, which F16 cannot; nothing was written");
    m->layers[0].attn_norm[3] = (hbk_real)NAN;
    check_error(hbk_model_save_gguf(m, NULL, NULL, path, HBK_BF16, &err), HBK_ERROR_NUMERIC,
                "tensor blk.0.attn_norm.weight: holds nan");
    assert_false(hbk_file_exists(path));
    hbk_tokenizer *tok = hbk_tokenizer_train("aa ab abc", 9, 300, true, NULL, &err);
    assert_non_null(tok);
    check_error(hbk_model_save_gguf(m, NULL, tok, path, HBK_F32, &err), HBK_ERROR_SHAPE,
                "the model's embedding 37 rows");
    hbk_tokenizer_free(tok);
    hbk_model_free(m);
    c.dim = 32; /* blocks of q8_0 pass from file to file as they are: but none whose scale is a NaN */
    hbk_model_free(t12_gguf_saved(&c, HBK_Q8_0, path, "t12_blocks.gguf"));
    m = t12_gguf_load(path);
    hbk_matrix *up = &m->layers[1].w[HBK_UP];
    size_t bytes = hbk_dtype_size(up->dtype, up->rows * up->cols);
    char *blocks = (char *)malloc(bytes);
    assert_true(blocks && up->dtype == HBK_Q8_0);
    memcpy(blocks, up->data, bytes);
    blocks[34 * 5] = 0;
    blocks[34 * 5 + 1] = 0x7e;
    up->data = blocks;
    test_tmp(path, "t12_never.gguf");
    check_error(hbk_model_save_gguf(m, NULL, NULL, path, HBK_Q8_0, &err), HBK_ERROR_NUMERIC,
                "tensor blk.1.ffn_up.weight: holds nan, which Q8_0 cannot");
    assert_false(hbk_file_exists(path));
    free(blocks);
    hbk_model_free(m);
}

/* ---- tokenizers --------------------------------------------------------------- */

/* Key K of the file holds these n strings. */
static void t12_gguf_strings(const hbk_gguf *g, const char *key, const char *const *want, hbk_int n)
{
    hbk_error err;
    const hbk_gguf_value *v;
    check_ok(hbk_gguf_array(g, key, HBK_GGUF_STRING, &v, &err));
    assert_true(v && v->n >= n);
    for (hbk_int i = 0; i < n; i++) {
        size_t len = 0;
        const char *s = hbk_gguf_string_at(v, i, &len);
        if (len != strlen(want[i]) || memcmp(s, want[i], len) != 0)
            fail_msg("%s[%lld] is '%.*s', expected '%s'", key, (long long)i, (int)len, s, want[i]);
    }
}

/* Promise: a byte-level vocabulary goes out as "gpt2" with its merges, types and ids, filled up to the rows
   of the embedding; the chat template beside it comes along. */
static void t12_gguf_tokenizer(void **state)
{
    (void)state;
    static const char json[] =
        "{\"added_tokens\":[{\"id\":5,\"content\":\"<s>\",\"special\":true},{\"id\":6,\"content\":\"<mine>\","
        "\"special\":false}],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\","
        "\"add_prefix_space\":false,\"use_regex\":true},\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{"
        "\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"\xc4\xa0\":2,\"\xc4\xa0"
        "a\":3,\"ab\":4},\"merges\":[\"\xc4\xa0 a\",\"a b\"]}}";
    static const char config[] =
        "{\"bos_token\":\"<s>\",\"eos_token\":\"<s>\",\"chat_template\":\"<<SYS>>[INST]\"}";
    static const char *const pieces[] = {"a",
                                         "b",
                                         "\xc4\xa0",
                                         "\xc4\xa0"
                                         "a",
                                         "ab",
                                         "<s>",
                                         "<mine>",
                                         "[PAD7]"};
    static const char *const merges[] = {"\xc4\xa0 a", "a b"};
    static const hbk_int kinds[] = {1, 1, 1, 1, 1, 3, 4, 5};
    char dir[512], path[512];
    hbk_error err;
    hbk_config c = t12_config(true);
    const char *s = NULL;
    size_t n = 0;
    hbk_int id = -1;
    bool bos = true;
    const hbk_gguf_value *types;
    test_tmp(dir, "t12_tok");
    check_ok(hbk_dir_make(dir, &err) && hbk_path(path, dir, "tokenizer.json", &err));
    t12_put(path, json, strlen(json));
    check_ok(hbk_path(path, dir, "tokenizer_config.json", &err));
    t12_put(path, config, strlen(config));
    hbk_tokenizer *tok = hbk_tokenizer_load(dir, NULL, &err);
    if (!tok) fail_msg("%s", err.message);
    hbk_model *m = hbk_model_random(&c, 5, NULL, &err);
    test_tmp(path, "t12_tok.gguf");
    check_ok(hbk_model_save_gguf(m, NULL, tok, path, HBK_F32, &err));
    hbk_gguf *g = hbk_gguf_open(path, NULL, &err);
    t12_gguf_strings(g, "tokenizer.ggml.tokens", pieces, 8);
    t12_gguf_strings(g, "tokenizer.ggml.merges", merges, 2);
    assert_int_equal(hbk_gguf_find(g, "tokenizer.ggml.tokens")->n, 37);
    check_ok(hbk_gguf_array(g, "tokenizer.ggml.token_type", HBK_GGUF_I32, &types, &err));
    for (int i = 0; i < 8; i++) assert_true(hbk_gguf_int_at(types, i, &id) && id == kinds[i]);
    check_ok(hbk_gguf_string(g, "tokenizer.ggml.model", &s, &n, &err));
    assert_true(n == 4 && !memcmp(s, "gpt2", 4));
    check_ok(hbk_gguf_string(g, "tokenizer.chat_template", &s, &n, &err));
    assert_true(n == 13 && !memcmp(s, "<<SYS>>[INST]", 13));
    check_ok(hbk_gguf_int(g, "tokenizer.ggml.bos_token_id", &id, &err));
    assert_int_equal(id, 5);
    check_ok(hbk_gguf_bool(g, "tokenizer.ggml.add_bos_token", &bos, &err));
    assert_false(bos);
    hbk_gguf_close(g);
    hbk_template *t = hbk_template_for_model(path, NULL, &err);
    assert_true(t && !strcmp(hbk_template_name(t), "llama2"));
    hbk_template_free(t);
    hbk_model_free(m);
    hbk_tokenizer_free(tok);
    tok = hbk_tokenizer_load(path, NULL, &err); /* and from there into a model of more rows */
    if (!tok) fail_msg("%s", err.message);
    c.vocab_size = 40;
    m = hbk_model_random(&c, 5, NULL, &err);
    test_tmp(path, "t12_wider.gguf");
    check_ok(hbk_model_save_gguf(m, NULL, tok, path, HBK_F32, &err));
    g = hbk_gguf_open(path, NULL, &err);
    t12_gguf_strings(g, "tokenizer.ggml.tokens", pieces, 8);
    assert_int_equal(hbk_gguf_find(g, "tokenizer.ggml.tokens")->n, 40);
    check_ok(hbk_gguf_string(g, "tokenizer.chat_template", &s, &n, &err));
    assert_true(n == 13 && !memcmp(s, "<<SYS>>[INST]", 13));
    hbk_gguf_close(g);
    hbk_model_free(m);
    hbk_tokenizer_free(tok);
    hbk_model_free(t12_gguf_load(path));
}

/* ---- adapters ----------------------------------------------------------------- */

/* An adapter of q, k and down, with random B; some projections with a rank and an alpha of their own. */
static hbk_adapter *t12_gguf_adapter(const hbk_config *c, bool head)
{
    hbk_error err;
    hbk_adapter_options o = hbk_adapter_defaults();
    o.rank = 3;
    o.alpha = 5;
    o.targets = 1u << HBK_Q | 1u << HBK_K | 1u << HBK_DOWN | (head ? 1u << HBK_LM_HEAD : 0);
    o.target_rank[HBK_K] = 2;
    o.target_alpha[HBK_DOWN] = 40;
    hbk_adapter *a = hbk_adapter_make(c, &o, 7, NULL, &err);
    if (!a) fail_msg("%s", err.message);
    for (hbk_int i = 0; i < a->n_values; i++) a->values[i] = (hbk_real)((double)(i % 91) / 64 - 0.5);
    return a;
}

/* Promise: an adapter written as GGUF and read back adds the same to every weight: rows of q and k in pairs,
   one alpha, other scales inside B; the head, ranks and layers of its own included. */
static void t12_gguf_adapters(void **state)
{
    (void)state;
    char path[512];
    hbk_error err;
    hbk_config c = t12_config(false);
    hbk_model *m = t12_base(&c);
    hbk_adapter *a = t12_gguf_adapter(&c, true);
    test_tmp(path, "t12_adapter.gguf");
    check_ok(hbk_adapter_save_gguf(a, &c, path, &err));
    hbk_adapter *b = hbk_adapter_load(path, m, NULL, &err);
    if (!b) fail_msg("%s", err.message);
    assert_true(b->targets == a->targets && b->alpha == 5 && b->n_values == a->n_values);
    for (hbk_int i = 0; i <= c.n_layers * HBK_N_SLOTS; i++) {
        const hbk_lora *x = &a->loras[i], *y = &b->loras[i];
        assert_true(!x->a == !y->a && x->rank == y->rank);
        for (hbk_int k = 0; x->a && k < x->rank * x->in; k++) assert_true(x->a[k] == y->a[k]);
        for (hbk_int k = 0; x->a && k < x->rank * x->out; k++)
            check_near(x->scale * x->b[k], y->scale * y->b[k], 1e-6);
    }
    hbk_gguf *g = hbk_gguf_open(path, NULL, &err);
    const hbk_gguf_value *alpha = hbk_gguf_find(g, "adapter.lora.alpha");
    const hbk_gguf_tensor *q = hbk_gguf_tensor_find(g, "blk.1.attn_q.weight.lora_b");
    assert_true(alpha && alpha->type == HBK_GGUF_F32 && q && q->shape[0] == 24 && q->shape[1] == 3);
    assert_non_null(hbk_gguf_tensor_find(g, "output.weight.lora_a"));
    for (hbk_int row = 0; row < 24; row++) {
        hbk_int from = row / 6 * 6 + row % 2 * 3 + row % 6 / 2;
        float x;
        memcpy(&x, q->data + 4 * row * 3, 4);
        assert_true(x == (float)a->loras[HBK_N_SLOTS + HBK_Q].b[from * 3]);
    }
    hbk_gguf_close(g);
    hbk_tuned t;
    check_ok(hbk_tuned_load(&t, m, path, NULL, &err));
    assert_true(t.adapter && t.model == m);
    hbk_tuned_free(&t);
    c.tied = true;
    check_error(hbk_adapter_save_gguf(a, &c, path, &err), HBK_ERROR_UNSUPPORTED, "the head of a tied model");
    hbk_adapter_free(b);
    hbk_adapter_free(a);
    hbk_model_free(m);
}

/* Promise: a model written with an adapter merged is W + scale B A. */
static void t12_gguf_merged(void **state)
{
    (void)state;
    char path[512];
    hbk_error err;
    hbk_config c = t12_config(true);
    hbk_model *m = hbk_model_random(&c, 5, NULL, &err);
    hbk_adapter *a = t12_gguf_adapter(&c, true);
    hbk_model *merged = hbk_adapter_merge(m, a, NULL, &err);
    test_tmp(path, "t12_merged.gguf");
    check_ok(hbk_model_save_gguf(m, a, NULL, path, HBK_F32, &err));
    hbk_model *l = t12_gguf_load(path);
    assert_true(!l->config.tied); /* the adapter corrects the head alone */
    t12_gguf_same(merged, l, HBK_F32);
    hbk_model_free(l);
    hbk_model_free(merged);
    hbk_adapter_free(a);
    hbk_model_free(m);
}

/* Promise: adapters that do not fit are refused by the name of what does not. */
static void t12_gguf_adapters_refused(void **state)
{
    (void)state;
    static const struct {
        t12_edit edit;
        const char *tensor, *name;
        hbk_code code;
        const char *message;
    } cases[] = {
        {{"general.type", HBK_GGUF_STRING, 0, "model", 0, 0},
         NULL,
         NULL,
         HBK_ERROR_UNSUPPORTED,
         "key general.type: \"model\" is not supported, only \"adapter\"; a model is opened as a model"},
        {{"general.type", HBK_GGUF_ARRAY, 0, NULL, 0, 0},
         NULL,
         NULL,
         HBK_ERROR_FORMAT,
         "key general.type is missing: it is no adapter"},
        {{"general.architecture", HBK_GGUF_STRING, 0, "gemma", 0, 0},
         NULL,
         NULL,
         HBK_ERROR_UNSUPPORTED,
         "\"gemma\" is not supported"},
        {{"adapter.type", HBK_GGUF_STRING, 0, "dora", 0, 0},
         NULL,
         NULL,
         HBK_ERROR_UNSUPPORTED,
         "key adapter.type: \"dora\" is not supported, only \"lora\""},
        {{"adapter.lora.alpha", HBK_GGUF_STRING, 0, "5", 0, 0},
         NULL,
         NULL,
         HBK_ERROR_FORMAT,
         "key adapter.lora.alpha: expected a number, found string"},
        {{"adapter.lora.alpha", HBK_GGUF_F32, (double)NAN, NULL, 0, 0},
         NULL,
         NULL,
         HBK_ERROR_RANGE,
         "t12_other.gguf: alpha nan over rank 3 is no scale for q_proj (layer 0 of 2)"},
        {{"x", HBK_GGUF_U8, 0, NULL, 0, 0},
         "blk.0.attn_q.weight.lora_a",
         "",
         HBK_ERROR_FORMAT,
         "tensor blk.0.attn_q.weight.lora_a is missing"},
        {{"x", HBK_GGUF_U8, 0, NULL, 0, 0},
         "blk.0.attn_k.weight.lora_b",
         "",
         HBK_ERROR_FORMAT,
         "tensor blk.0.attn_k.weight.lora_b is missing"},
        {{"x", HBK_GGUF_U8, 0, NULL, 0, 0},
         "blk.0.attn_k.weight.lora_b",
         "blk.9.attn_k.weight.lora_b",
         HBK_ERROR_UNSUPPORTED,
         "tensor blk.9.attn_k.weight.lora_b: is not lora_a or lora_b"},
        {{"x", HBK_GGUF_U8, 0, NULL, 0, 0},
         "blk.0.attn_k.weight.lora_b",
         "blk.0.attn_norm.weight.lora_b",
         HBK_ERROR_UNSUPPORTED,
         "tensor blk.0.attn_norm.weight.lora_b: is not lora_a or lora_b"},
        {{"x", HBK_GGUF_U8, 0, NULL, 0, 0},
         "blk.0.attn_k.weight.lora_b",
         "blk.0.ffn_up.weight.lora_b",
         HBK_ERROR_SHAPE,
         "tensor blk.0.ffn_up.weight.lora_b: expected (28,rank)"},
        {{"x", HBK_GGUF_U8, 0, NULL, 0, 0},
         "blk.0.attn_k.weight.lora_b",
         "token_embd.weight.lora_b",
         HBK_ERROR_UNSUPPORTED,
         "tensor token_embd.weight.lora_b: is not"},
        {{"x", HBK_GGUF_U8, 0, NULL, 0, 0},
         "blk.0.attn_k.weight.lora_b",
         "model.layers.0.self_attn.k_proj.weight.lora_b",
         HBK_ERROR_UNSUPPORTED,
         "tensor model.layers.0.self_attn.k_proj.weight.lora_b: is not lora_a or lora_b"},
    };
    char path[512], other[512];
    hbk_error err;
    hbk_config c = t12_config(false);
    hbk_model *m = t12_base(&c);
    hbk_adapter *a = t12_gguf_adapter(&c, false);
    test_tmp(path, "t12_adapter.gguf");
    test_tmp(other, "t12_other.gguf");
    check_ok(hbk_adapter_save_gguf(a, &c, path, &err));
    hbk_adapter_free(a);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        t12_gguf_edit(path, other, &cases[i].edit, cases[i].tensor, cases[i].name);
        check_error(hbk_adapter_load(other, m, NULL, &err), cases[i].code, cases[i].message);
    }
    t12_edit zero = {"adapter.lora.alpha", HBK_GGUF_F32, 0, NULL, 0, 0}; /* llama.cpp: a scale of 1 */
    t12_gguf_edit(path, other, &zero, NULL, NULL);
    a = hbk_adapter_load(other, m, NULL, &err);
    if (!a) fail_msg("%s", err.message);
    assert_true(a->loras[HBK_Q].scale == 1 && a->loras[HBK_K].scale == 1);
    hbk_adapter_free(a);
    hbk_model_free(m);
}

/* ---- damage and memory -------------------------------------------------------- */

static void t12_gguf_check(void *ctx, bool cut)
{
    hbk_error err;
    memset(&err, 0, sizeof err);
    hbk_model *m = hbk_model_load((const char *)ctx, NULL, &err);
    if (!m) assert_true(err.code != HBK_ERROR_NONE && err.message[0]);
    if (m) { /* every number can be read */
        hbk_real *x = HBK__NEW(NULL, hbk_real, hbk_model_count(&m->config), &err);
        assert_non_null(x);
        hbk_model_unpack(x, m);
        hbk_free(NULL, x);
        assert_false(cut);
    }
    hbk_model_free(m);
}

/* Promise: a model or adapter that is cut, or whose tables are changed, is refused or still sound. */
static void t12_gguf_damaged(void **state)
{
    (void)state;
    char path[512];
    hbk_error err;
    hbk_config c = t12_config(true);
    c.n_layers = 1;
    c.rope_scaling = HBK_ROPE_LLAMA3;
    c.rope_high_freq_factor = 4;
    c.rope_original_context = 32;
    hbk_model_free(t12_gguf_saved(&c, HBK_F32, path, "t12_damaged.gguf"));
    hbk_gguf *g = hbk_gguf_open(path, NULL, &err);
    size_t tables = (size_t)(hbk_gguf_tensor_at(g, 0)->data - g->map.data);
    hbk_gguf_close(g);
    t12_damage(path, tables, t12_gguf_check, path);
}

static bool t12_gguf_load_save(void *ctx, hbk_allocator *a, hbk_error *err)
{
    char copy[512];
    test_tmp(copy, "t12_faults_copy.gguf");
    hbk_model *m = hbk_model_load((const char *)ctx, a, err);
    bool ok = m && hbk_model_save_gguf(m, NULL, NULL, copy, HBK_Q8_0, err);
    hbk_model_free(m);
    return ok;
}

static bool t12_gguf_adapter_load_save(void *ctx, hbk_allocator *a, hbk_error *err)
{
    hbk_config c = t12_config(false);
    hbk_model *m = t12_base(&c);
    hbk_adapter *b = hbk_adapter_load((const char *)ctx, m, a, err);
    bool ok = b && hbk_adapter_save_gguf(b, &c, (const char *)ctx, err);
    hbk_adapter_free(b);
    hbk_model_free(m);
    return ok;
}

static bool t12_gguf_tokenizer_save(void *ctx, hbk_allocator *a, hbk_error *err)
{
    char path[512];
    test_tmp(path, "t12_faults_tok.gguf");
    hbk_tokenizer *tok = hbk_tokenizer_train("aa ab abc", 9, 30, false, a, err);
    bool ok = tok && hbk_model_save_gguf((const hbk_model *)ctx, NULL, tok, path, HBK_F32, err);
    hbk_tokenizer_free(tok);
    return ok;
}

/* Promise: wherever memory runs out, loading and saving fail with that error and leak nothing. */
static void t12_gguf_faults(void **state)
{
    (void)state;
    char path[512];
    hbk_error err;
    hbk_config c = t12_config(false);
    c.rope_scaling = HBK_ROPE_LLAMA3;
    c.rope_high_freq_factor = 4;
    c.rope_original_context = 32;
    hbk_model *m = t12_gguf_saved(&c, HBK_F32, path, "t12_faults.gguf");
    fault_sweep(t12_gguf_load_save, path);
    fault_sweep(t12_gguf_tokenizer_save, m);
    hbk_model_free(m);
    hbk_adapter *a = t12_gguf_adapter(&c, true);
    test_tmp(path, "t12_faults_adapter.gguf");
    check_ok(hbk_adapter_save_gguf(a, &c, path, &err));
    hbk_adapter_free(a);
    fault_sweep(t12_gguf_adapter_load_save, path);
}

/* ---- reference files ---------------------------------------------------------- */

/* Largest difference of m's logits, with adapter a (NULL: none), to a tensor of a golden file. */
static double t12_gguf_distance(const hbk_model *m, const hbk_adapter *a, const char *file, const char *name)
{
    hbk_error err;
    char path[512];
    test_data(path, file);
    hbk_safetensors *s = hbk_safetensors_open(path, NULL, &err);
    assert_non_null(s);
    const hbk_tensor *ids = hbk_safetensors_find(s, "input_ids"), *want = hbk_safetensors_find(s, name);
    hbk_int n = ids->n_elements, V = m->config.vocab_size;
    hbk_int seq[2] = {0, n};
    int32_t *tokens = HBK__NEW(NULL, int32_t, n, &err);
    memcpy(tokens, ids->data, (size_t)n * 4);
    hbk_batch b = {n, 1, tokens, NULL, seq};
    hbk_acts *acts = hbk_acts_new(m, a, n, n, HBK_KEEP_NONE, NULL, &err);
    hbk_real *logits = HBK__NEW(NULL, hbk_real, n * V, &err);
    check_ok(hbk_model_logits(acts, m, &b, a, logits, &err));
    double most = 0;
    for (hbk_int i = 0; i < n * V; i++) {
        double x;
        memcpy(&x, (const char *)want->data + 8 * i, 8);
        most = HBK__MAX(most, fabs((double)logits[i] - x));
    }
    hbk_free(NULL, tokens);
    hbk_free(NULL, logits);
    hbk_acts_free(acts);
    hbk_safetensors_close(s);
    return most;
}

/* Promise: llama.cpp's files of the story model give the golden logits (f32, f16, bf16), the golden adapter
   its own, and quantised ones stay quantised. What we write holds the same tensors, byte for byte, q8_0
   included, and the same pieces and types. */
static void t12_gguf_reference(void **state)
{
    (void)state;
    static const char *const names[6] = {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m"};
    static const char golden[] = "golden/story_hf/logits_f64.safetensors";
    static const hbk_dtype types[4] = {HBK_F32, HBK_F16, HBK_BF16, HBK_Q8_0};
    hbk_error err;
    char path[512], mine[512], name[64];
    if (!test_data(path, "checkpoints/story_hf")) skip();
    hbk_model *hf = t12_gguf_load(path);
    hbk_tokenizer *tok = hbk_tokenizer_load(path, NULL, &err);
    assert_non_null(tok);
    test_tmp(mine, "t12_mine.gguf");
    for (int k = 0; k < 6; k++) {
        snprintf(name, sizeof name, "gguf/story-%s.gguf", names[k]);
        test_data(path, name);
        hbk_model *m = t12_gguf_load(path);
        if (k < 3) assert_true(t12_gguf_distance(m, NULL, golden, "logits") < 1e-4);
        if (k >= 3) assert_true(m->layers[0].w[HBK_Q].dtype != HBK_F32);
        if (k == 0) {
            test_data(path, "golden/lora/story-lora-f32.gguf");
            hbk_adapter *a = hbk_adapter_load(path, m, NULL, &err);
            if (!a) fail_msg("%s", err.message);
            assert_true(t12_gguf_distance(m, a, "golden/lora/logits_with_lora.safetensors", "logits_f64") <
                        1e-4);
            hbk_adapter_free(a);
        }
        hbk_model_free(m);
        if (k > 3) continue;
        test_data(path, name);
        check_ok(hbk_model_save_gguf(hf, NULL, tok, mine, types[k], &err));
        hbk_gguf *x = hbk_gguf_open(mine, NULL, &err), *y = hbk_gguf_open(path, NULL, &err);
        for (hbk_int i = 0; i < hbk_gguf_tensor_count(y); i++) {
            const hbk_gguf_tensor *t = hbk_gguf_tensor_at(y, i), *u = hbk_gguf_tensor_find(x, t->name);
            assert_true(u && !strcmp(t->type, u->type) && t->bytes == u->bytes);
            if (memcmp(t->data, u->data, t->bytes) != 0) fail_msg("%s: tensor %s differs", name, t->name);
        }
        const hbk_gguf_value *v = hbk_gguf_find(x, "tokenizer.ggml.tokens"), *u = hbk_gguf_find(y, v->key);
        for (hbk_int i = 0; i < u->n; i++) {
            size_t a = 0, b = 0;
            const char *s = hbk_gguf_string_at(v, i, &a), *r = hbk_gguf_string_at(u, i, &b);
            assert_true(a == b && !memcmp(s, r, a));
        }
        v = hbk_gguf_find(x, "tokenizer.ggml.token_type");
        assert_memory_equal(v->data, hbk_gguf_find(y, v->key)->data, 4 * (size_t)v->n);
        hbk_gguf_close(x);
        hbk_gguf_close(y);
    }
    hbk_tokenizer_free(tok);
    hbk_model_free(hf);
}

/* Promise: the vocabulary of a GGUF file goes into another as it is, key by key. */
static void t12_gguf_vocabulary_copied(void **state)
{
    (void)state;
    char path[512], mine[512];
    hbk_error err;
    if (!test_data(path, "gguf/story-q8_0.gguf")) skip();
    hbk_model *m = t12_gguf_load(path);
    hbk_tokenizer *tok = hbk_tokenizer_load(path, NULL, &err);
    if (!tok) fail_msg("%s", err.message);
    test_tmp(mine, "t12_copied.gguf");
    check_ok(hbk_model_save_gguf(m, NULL, tok, mine, HBK_Q8_0, &err));
    hbk_gguf *a = hbk_gguf_open(path, NULL, &err), *b = hbk_gguf_open(mine, NULL, &err);
    int same = 0;
    for (hbk_int i = 0; i < hbk_gguf_key_count(a); i++) {
        const hbk_gguf_value *v = hbk_gguf_key_at(a, i), *u = hbk_gguf_find(b, v->key);
        if (strncmp(v->key, "tokenizer.", 10) != 0) continue;
        assert_true(u && u->type == v->type && u->n == v->n);
        for (hbk_int k = 0; v->type == HBK_GGUF_STRING && k < v->n; k++) {
            size_t n = 0, l = 0;
            const char *s = hbk_gguf_string_at(v, k, &n), *r = hbk_gguf_string_at(u, k, &l);
            assert_true(n == l && !memcmp(s, r, n));
        }
        if (v->type != HBK_GGUF_STRING)
            assert_memory_equal(u->data, v->data, (size_t)(v->n * hbk__gguf_sizes[v->type]));
        same++;
    }
    assert_int_equal(same, 9);
    for (hbk_int i = 0; i < hbk_gguf_tensor_count(a); i++) { /* and so do blocks of q8_0, q and k included */
        const hbk_gguf_tensor *t = hbk_gguf_tensor_at(a, i), *u = hbk_gguf_tensor_find(b, t->name);
        assert_true(u && t->bytes == u->bytes && !memcmp(t->data, u->data, t->bytes));
    }
    hbk_gguf_close(a);
    hbk_gguf_close(b);
    hbk_tokenizer_free(tok);
    hbk_model_free(m);
}

static const struct CMUnitTest tests_12_gguf[] = {
    cmocka_unit_test(t12_gguf_models),    cmocka_unit_test(t12_gguf_layout),
    cmocka_unit_test(t12_gguf_stored),    cmocka_unit_test(t12_gguf_spellings),
    cmocka_unit_test(t12_gguf_refused),   cmocka_unit_test(t12_gguf_refused_arrays),
    cmocka_unit_test(t12_gguf_shards),    cmocka_unit_test(t12_gguf_save_errors),
    cmocka_unit_test(t12_gguf_tokenizer), cmocka_unit_test(t12_gguf_adapters),
    cmocka_unit_test(t12_gguf_merged),    cmocka_unit_test(t12_gguf_adapters_refused),
    cmocka_unit_test(t12_gguf_damaged),   cmocka_unit_test(t12_gguf_faults),
    cmocka_unit_test(t12_gguf_reference),        cmocka_unit_test(t12_gguf_vocabulary_copied),
};
