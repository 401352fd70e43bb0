/* Chapter 12: safetensors, model folders, llama2.c files, PEFT adapters; and all of them damaged. */
#include "test.h"
#include "fault.h"

/* ---- helpers ------------------------------------------------------------------ */

static void t12_put(const char *path, const void *data, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static hbk_text t12_get(const char *path)
{
    hbk_error err;
    hbk_text t;
    memset(&t, 0, sizeof t);
    check_ok(hbk_file_read(path, (size_t)1 << 30, &t, &err));
    return t;
}

static void t12_same_file(const char *a, const char *b)
{
    hbk_text x = t12_get(a), y = t12_get(b);
    if (x.len != y.len || memcmp(x.data, y.data, x.len) != 0) fail_msg("%s and %s differ", a, b);
    hbk_text_free(&x);
    hbk_text_free(&y);
}

/* A safetensors file from the text of its header and n bytes 0, 1, 2 ... of data. */
static void t12_header_file(const char *path, const char *header, size_t n)
{
    char buffer[4096];
    size_t len = strlen(header);
    assert_true(8 + len + n <= sizeof buffer);
    for (int i = 0; i < 8; i++) buffer[i] = (char)(len >> (8 * i) & 0xff);
    memcpy(buffer + 8, header, len);
    for (size_t i = 0; i < n; i++) buffer[8 + len + i] = (char)i;
    t12_put(path, buffer, 8 + len + n);
}

/* A safetensors file as header and data, so that tests can write it back changed. */
typedef struct t12_parts {
    json_t *header;
    hbk_text file;
    const char *data;
    size_t n;
} t12_parts;

static t12_parts t12_split(const char *path)
{
    t12_parts p;
    p.file = t12_get(path);
    size_t n = 0;
    for (int i = 7; i >= 0; i--) n = n << 8 | (unsigned char)p.file.data[i];
    p.header = json_loadb(p.file.data + 8, n, 0, NULL);
    assert_non_null(p.header);
    p.data = p.file.data + 8 + n;
    p.n = p.file.len - 8 - n;
    return p;
}

/* Writes the parts with a header padded to a length that is `odd` modulo 8. */
static void t12_join(const char *path, const t12_parts *p, size_t odd)
{
    hbk_text out;
    memset(&out, 0, sizeof out);
    char *s = json_dumps(p->header, JSON_COMPACT);
    size_t len = strlen(s), padded = len;
    while (padded % 8 != odd) padded++;
    for (int i = 0; i < 8; i++) {
        char c = (char)(padded >> (8 * i) & 0xff);
        hbk_text_append(&out, &c, 1);
    }
    hbk_text_append(&out, s, len);
    for (; len < padded; len++) hbk_text_append(&out, " ", 1);
    hbk_text_append(&out, p->data, p->n);
    t12_put(path, out.data, out.len);
    free(s);
    hbk_text_free(&out);
}

static void t12_parts_free(t12_parts *p)
{
    json_decref(p->header);
    hbk_text_free(&p->file);
}

/* Sets (or, value NULL, removes) a key of a JSON file. */
static void t12_json_set(const char *path, const char *key, const char *value)
{
    hbk_error err;
    json_t *o = hbk_json_read(path, &err);
    assert_non_null(o);
    if (value) {
        json_t *v = json_loads(value, JSON_DECODE_ANY, NULL);
        if (!v) fail_msg("the test's own JSON is wrong: %s", value);
        json_object_set_new(o, key, v);
    } else {
        json_object_del(o, key);
    }
    char *s = json_dumps(o, JSON_INDENT(2));
    t12_put(path, s, strlen(s));
    free(s);
    json_decref(o);
}

/* Every size differs; heads are grouped and not dim / n_heads wide. */
static hbk_config t12_config(bool tied)
{
    hbk_config c;
    memset(&c, 0, sizeof c);
    c.n_layers = 2;
    c.n_heads = 4;
    c.n_kv_heads = 2;
    c.head_dim = 6;
    c.dim = 20;
    c.ffn_dim = 28;
    c.vocab_size = 37;
    c.context_length = 64;
    c.rms_norm_eps = 1e-5;
    c.rope_theta = 10000;
    c.rope_factor = c.rope_low_freq_factor = c.rope_high_freq_factor = 1;
    c.tied = tied;
    c.bos = 1;
    c.eos[0] = 2;
    c.n_eos = 1;
    return c;
}

/* A random model, saved in a folder of the scratch folder; its path and that of its weights. */
static hbk_model *t12_saved(const hbk_config *c, hbk_dtype t, char dir[512], char weights[512],
                            const char *name)
{
    hbk_error err;
    hbk_model *m = hbk_model_random(c, 5, NULL, &err);
    assert_non_null(m);
    test_tmp(dir, name);
    check_ok(hbk_model_save(m, dir, t, &err));
    check_ok(hbk_path(weights, dir, "model.safetensors", &err));
    return m;
}

/* Fails unless both have the same shape and the same numbers, the first rounded to type t. */
static void t12_same_weights(const hbk_model *a, const hbk_model *b, hbk_dtype t)
{
    hbk_error err;
    hbk_int n = hbk_model_count(&a->config);
    assert_int_equal(n, hbk_model_count(&b->config));
    hbk_real *x = HBK__NEW(NULL, hbk_real, n, &err), *y = HBK__NEW(NULL, hbk_real, n, &err);
    hbk_model_unpack(x, a);
    hbk_model_unpack(y, b);
    for (hbk_int i = 0; i < n; i++) {
        char packed[8];
        hbk_matrix w;
        hbk_pack(packed, t, x + i, 1);
        w.dtype = t;
        w.rows = w.cols = 1;
        w.data = packed;
        hbk_matrix_unpack(x + i, &w, 0, 1);
        if (x[i] != y[i]) fail_msg("weight %lld: %g, expected %g", (long long)i, (double)y[i], (double)x[i]);
    }
    for (hbk_int i = 0; i < a->config.head_dim / 2; i++) assert_true(a->inv_freq[i] == b->inv_freq[i]);
    hbk_free(NULL, x);
    hbk_free(NULL, y);
}

/* ---- safetensors -------------------------------------------------------------- */

/* Promise: what the format allows is read: any key order, white space, escapes, null or no metadata,
   empty tensors, scalars, no tensors at all; an alias in the metadata finds the tensor that it names. */
static void t12_safetensors_valid(void **state)
{
    (void)state;
    hbk_error err;
    char path[512];
    test_tmp(path, "t12_valid.safetensors");
    t12_header_file(path,
                    " {\"b\\u0061\": {\"data_offsets\": [4, 10], \"shape\": [1, 3], \"dtype\": \"BF16\"},\n"
                    "\"empty\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[4,4]},"
                    "\"one\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
                    "\"four\":{\"dtype\":\"F4\",\"shape\":[2,2],\"data_offsets\":[10,12],\"more\":1},"
                    "\"__metadata__\":{\"format\":\"pt\",\"other\":\"ba\",\"dead\":\"end\"}}  \n",
                    12);
    hbk_safetensors *s = hbk_safetensors_open(path, NULL, &err);
    if (!s) fail_msg("%s", err.message);
    assert_int_equal(hbk_safetensors_count(s), 4);
    static const char *const order[] = {"one", "empty", "ba", "four"};
    for (hbk_int i = 0; i < 4; i++) assert_string_equal(hbk_safetensors_at(s, i)->name, order[i]);
    const hbk_tensor *t = hbk_safetensors_find(s, "ba");
    assert_non_null(t);
    assert_string_equal(t->dtype, "BF16");
    assert_int_equal(t->n_dims, 2);
    assert_int_equal(t->shape[1], 3);
    assert_int_equal(t->bytes, 6);
    assert_int_equal(*(const char *)t->data, 4);
    assert_ptr_equal(hbk_safetensors_find(s, "other"), t);
    assert_null(hbk_safetensors_find(s, "dead"));
    assert_null(hbk_safetensors_find(s, "bb"));
    assert_int_equal(hbk_safetensors_find(s, "one")->n_elements, 1);
    assert_string_equal(hbk_safetensors_meta(s, "format"), "pt");
    assert_null(hbk_safetensors_meta(s, "absent"));
    hbk_safetensors_close(s);
    hbk_safetensors_close(NULL);

    static const char *const empty[] = {"{}", "{\"__metadata__\":null}", "{\"__metadata__\":{}}"};
    for (int i = 0; i < 3; i++) {
        t12_header_file(path, empty[i], 0);
        s = hbk_safetensors_open(path, NULL, &err);
        if (!s) fail_msg("%s: %s", empty[i], err.message);
        assert_int_equal(hbk_safetensors_count(s), 0);
        hbk_safetensors_close(s);
    }
}

#define T12_A "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}"

/* Promise: each way to be no safetensors file has its own message. */
static void t12_safetensors_errors(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        size_t n;
        hbk_code code;
        const char *part;
    } cases[] = {
        {"{" T12_A "}", 7, HBK_ERROR_FORMAT,
         "truncated: tensor a ends at byte 8 of the data, of which there are 7"},
        {"{" T12_A "}", 9, HBK_ERROR_FORMAT, "1 bytes follow the last tensor"},
        {"{" T12_A ",\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[9,10]}}", 10, HBK_ERROR_FORMAT,
         "tensor b: begins at byte 9 of the data, but those before it end at 8: a gap"},
        {"{" T12_A ",\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[7,8]}}", 8, HBK_ERROR_FORMAT,
         "tensor b: begins at byte 7 of the data, but those before it end at 8: an overlap"},
        {"{" T12_A "," T12_A "}", 8, HBK_ERROR_FORMAT, "duplicate"},
        {"{\"a\":{\"dtype\":\"F33\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, HBK_ERROR_UNSUPPORTED,
         "tensor a: unknown type F33"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8, HBK_ERROR_FORMAT,
         "data_offsets [0, 8], but type and shape ask for 12 bytes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,8]}}", 8, HBK_ERROR_FORMAT,
         "data_offsets [0, 8], but type and shape ask for 4 bytes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
         HBK_ERROR_FORMAT, "tensor a: its shape overflows"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0,
         HBK_ERROR_FORMAT, "tensor a: its shape overflows"},
        {"{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1, HBK_ERROR_FORMAT,
         "half a byte"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8, HBK_ERROR_FORMAT,
         "tensor a: dimension 0 is not a whole number"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2.0],\"data_offsets\":[0,8]}}", 8, HBK_ERROR_FORMAT,
         "tensor a: dimension 0 is not a whole number"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}", 1,
         HBK_ERROR_UNSUPPORTED, "tensor a: has 9 dimensions"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, HBK_ERROR_FORMAT,
         "data_offsets [8, 0]"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-8,0]}}", 8, HBK_ERROR_FORMAT,
         "data_offsets [-8, 0]"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-9223372036854775808,8]}}", 8,
         HBK_ERROR_FORMAT, "data_offsets [-9223372036854775808, 8]"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,99999999999999999999]}}", 8,
         HBK_ERROR_FORMAT, "its header is no valid JSON"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", 8, HBK_ERROR_FORMAT,
         "tensor a: expected {\"dtype\""},
        {"{\"a\":null}", 0, HBK_ERROR_FORMAT, "tensor a: expected {\"dtype\""},
        {"{\"__metadata__\":null,\"a\":null}", 0, HBK_ERROR_FORMAT, "tensor a: expected {\"dtype\""},
        {"{\"__metadata__\":7}", 0, HBK_ERROR_FORMAT, "__metadata__: expected null or an object of strings"},
        {"{\"__metadata__\":{\"n\":7}}", 0, HBK_ERROR_FORMAT, "__metadata__: expected null or an object"},
        {"[]", 0, HBK_ERROR_FORMAT, "its header is no JSON object"},
        {"", 0, HBK_ERROR_FORMAT, "its header is no valid JSON"},
        {"{} x", 0, HBK_ERROR_FORMAT, "its header is no valid JSON"},
    };
    hbk_error err;
    char path[512];
    test_tmp(path, "t12_bad.safetensors");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        t12_header_file(path, cases[i].header, cases[i].n);
        check_error(hbk_safetensors_open(path, NULL, &err), cases[i].code, cases[i].part);
        assert_string_equal(err.file, path);
    }
    static const struct {
        const char *bytes;
        size_t n;
        const char *part;
    } raw[] = {
        {"", 0, "has 0 bytes, expected a safetensors file"},
        {"\2\0\0\0\0\0\0", 7, "has 7 bytes"},
        {"\3\0\0\0\0\0\0\0{}", 10, "truncated: a header of 3 bytes is announced and 2 follow"},
        {"\1\xe1\xf5\5\0\0\0\0{}", 10, "would have 100000001 bytes, at most 100000000"},
        {"\2\0\0\0\0\0\0\x80{}", 10, "would have 9223372036854775810 bytes"},
        {"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", 63, "is a git-lfs pointer"},
    };
    for (size_t i = 0; i < sizeof raw / sizeof *raw; i++) {
        t12_put(path, raw[i].bytes, raw[i].n);
        check_error(hbk_safetensors_open(path, NULL, &err), HBK_ERROR_FORMAT, raw[i].part);
    }
    check_error(hbk_safetensors_open("/nowhere/x.safetensors", NULL, &err), HBK_ERROR_FILE,
                "cannot be opened");
}

static hbk_tensor t12_tensor(const char *name, const char *dtype, hbk_int rows, hbk_int cols,
                             const void *data)
{
    hbk_tensor t;
    memset(&t, 0, sizeof t);
    t.name = name;
    snprintf(t.dtype, sizeof t.dtype, "%s", dtype);
    t.n_dims = cols ? 2 : 1;
    t.shape[0] = rows;
    t.shape[1] = cols;
    t.data = data;
    return t;
}

/* Promise: the writer's bytes are the reference's: wide types first, then names; offsets without gaps, the
   header padded to 8; what it cannot write leaves neither the file nor a temporary one. */
static void t12_safetensors_write(void **state)
{
    (void)state;
    hbk_error err;
    char path[512], tmp[520];
    test_tmp(path, "t12_write.safetensors");
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    static const char data[] = "0123456789abcdefghijklmn";
    hbk_tensor t[4] = {t12_tensor("z", "U8", 3, 0, data), t12_tensor("b\"\n/", "BF16", 2, 1, data),
                       t12_tensor("a", "F16", 1, 0, data + 4), t12_tensor("m", "I64", 1, 2, data + 8)};
    check_ok(hbk_safetensors_write(path, t, 4, &err));
    hbk_text file = t12_get(path);
    static const char want[] = "{\"__metadata__\":{\"format\":\"pt\"},\"m\":{\"dtype\":\"I64\",\"shape\":[1,"
                               "2],\"data_offsets\":[0,16]},"
                               "\"b\\\"\\n/\":{\"dtype\":\"BF16\",\"shape\":[2,1],\"data_offsets\":[16,20]},"
                               "\"a\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[20,22]},"
                               "\"z\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[22,25]}}";
    size_t n = (unsigned char)file.data[0] + 256 * (size_t)(unsigned char)file.data[1];
    assert_int_equal(n, (sizeof want - 1 + 7) / 8 * 8);
    assert_memory_equal(file.data + 8, want, sizeof want - 1);
    for (size_t i = sizeof want - 1; i < n; i++) assert_int_equal(file.data[8 + i], ' ');
    assert_int_equal(file.len, 8 + n + 25);
    assert_memory_equal(file.data + 8 + n, "89abcdefghijklmn012345012", 25);
    hbk_text_free(&file);
    assert_false(hbk_file_exists(tmp));
    check_ok(hbk_safetensors_write(path, t, 0, &err));
    unlink(path);

    t[1].name = "z";
    check_error(hbk_safetensors_write(path, t, 4, &err), HBK_ERROR_OPTION, "are called z");
    t[1].name = "__metadata__";
    check_error(hbk_safetensors_write(path, t, 4, &err), HBK_ERROR_OPTION, "are called __metadata__");
    t[1].name = "\xff";
    check_error(hbk_safetensors_write(path, t, 4, &err), HBK_ERROR_RANGE, "not UTF-8");
    t[1] = t12_tensor("b", "F12", 2, 1, data);
    check_error(hbk_safetensors_write(path, t, 4, &err), HBK_ERROR_RANGE, "tensor b: no size");
    assert_false(hbk_file_exists(path));
    assert_false(hbk_file_exists(tmp));
    check_error(hbk_safetensors_write("/nowhere/x.safetensors", t, 1, &err), HBK_ERROR_FILE,
                "cannot be created");
}

/* Promise: a number that the disk does not give back as it was written is an error, before the file takes the
   place of the one before it. */
static void t12_read_back(void **state)
{
    (void)state;
    char path[512];
    hbk_error err;
    float a[5000], b[3] = {1, 2, 3};
    for (int i = 0; i < 5000; i++) a[i] = (float)i;
    hbk_tensor t[2] = {t12_tensor("a", "F32", 5000, 0, a), t12_tensor("b", "F32", 3, 0, b)};
    hbk__st_item items[2];
    memset(items, 0, sizeof items);
    for (int i = 0; i < 2; i++) {
        items[i].t = t[i];
        items[i].t.bytes = i ? sizeof b : sizeof a;
    }
    test_tmp(path, "t12_read_back.safetensors");
    check_ok(hbk_safetensors_write(path, t, 2, &err));
    hbk_text file = t12_get(path);
    size_t header = file.len - 8 - sizeof a - sizeof b;
    check_ok(hbk__st_verify(path, items, 2, header, NULL, &err));
    const size_t at[] = {8 + header, 8 + header + sizeof a - 1, file.len - 1};
    for (int i = 0; i < 3; i++) {
        file.data[at[i]] ^= 1;
        t12_put(path, file.data, file.len);
        check_error(hbk__st_verify(path, items, 2, header, NULL, &err), HBK_ERROR_FILE, "does not read back");
        file.data[at[i]] ^= 1;
    }
    t12_put(path, file.data, file.len);
    check_error(hbk__st_verify(path, items, 1, header, NULL, &err), HBK_ERROR_FILE, "does not read back");
    t12_put(path, file.data, file.len - 1);
    assert_false(hbk__st_verify(path, items, 2, header, NULL, &err));
    hbk_text_free(&file);
}

/* ---- model folders ------------------------------------------------------------ */

/* Promise: a model saved and loaded is the same model, in the type it was saved in, mapped; saved again it
   is the same bytes; a tied one stores the embedding only. */
static void t12_model_round_trip(void **state)
{
    (void)state;
    static const char *const files[] = {"config.json", "generation_config.json", "model.safetensors"};
    for (int i = 0; i < 6; i++) {
        hbk_error err;
        hbk_dtype t = (hbk_dtype)(i % 3);
        hbk_config c = t12_config(i / 3);
        char dir[512], again[512], weights[512], a[512], b[512];
        if (i == 1) { /* every optional field at once */
            c.rope_scaling = HBK_ROPE_LLAMA3;
            c.rope_factor = 8;
            c.rope_low_freq_factor = 1;
            c.rope_high_freq_factor = 4;
            c.rope_original_context = 32;
            c.rope_theta = 5e5;
            c.eos[1] = 30;
            c.n_eos = 2;
            c.bos = -1;
            c.biases = HBK_ALL_SLOTS;
        }
        if (i == 4) c.biases = HBK__MLP;
        hbk_model *m = t12_saved(&c, t, dir, weights, "t12_round"), *l = hbk_model_load(dir, NULL, &err);
        if (!l) fail_msg("%s", err.message);
        t12_same_weights(m, l, t);
        assert_int_equal(l->embed.dtype, t);
        assert_int_equal(l->layers[1].w[HBK_DOWN].dtype, t);
        const unsigned char *p = (const unsigned char *)l->layers[1].w[HBK_DOWN].data;
        assert_true(p > l->maps[0].data && p < l->maps[0].data + l->maps[0].size);
        assert_int_equal(l->config.tied, c.tied);
        assert_int_equal(l->head.data == l->embed.data, c.tied);
        assert_true(l->config.rms_norm_eps == 1e-5 && l->config.rope_theta == c.rope_theta);
        assert_true(l->config.bos == c.bos && l->config.n_eos == c.n_eos && l->config.eos[0] == 2);
        hbk_safetensors *s = hbk_safetensors_open(weights, NULL, &err);
        assert_int_equal(hbk_safetensors_count(s), 2 * hbk__per_layer(&c) + 2 + !c.tied);
        assert_int_equal(l->config.biases, c.biases);
        assert_int_equal(hbk_safetensors_find(s, "lm_head.weight") != NULL, !c.tied);
        hbk_safetensors_close(s);
        test_tmp(again, "t12_round_again");
        check_ok(hbk_model_save(l, again, t, &err));
        for (int k = 0; k < 3; k++) {
            check_ok(hbk_path(a, dir, files[k], &err));
            check_ok(hbk_path(b, again, files[k], &err));
            t12_same_file(a, b);
        }
        hbk_model_free(l);
        hbk_model_free(m);
    }
}

/* Promise: a model whose q, k and v alone have biases, as other files know them, is saved as one whose o has
   a bias of zero, which Hugging Face's configuration can say. */
static void t12_bias_groups(void **state)
{
    (void)state;
    hbk_error err;
    hbk_config c = t12_config(false);
    c.biases = 1u << HBK_Q | 1u << HBK_K | 1u << HBK_V;
    char dir[512], weights[512];
    hbk_model *m = t12_saved(&c, HBK_F32, dir, weights, "t12_groups"), *l = hbk_model_load(dir, NULL, &err);
    check_ok(l);
    assert_int_equal(l->config.biases, HBK__ATTENTION);
    for (hbk_int i = 0; i < c.dim; i++) assert_true(l->layers[1].bias[HBK_O][i] == 0);
    hbk_int kv = c.n_kv_heads * c.head_dim;
    assert_memory_equal(l->layers[1].bias[HBK_V], m->layers[1].bias[HBK_V], (size_t)kv * sizeof(hbk_real));
    assert_null(l->layers[1].bias[HBK_UP]);
    hbk_model_free(l);
    hbk_model_free(m);
}

/* Promise: what cannot be saved is an error, and the file that was there stays. */
static void t12_model_save_errors(void **state)
{
    (void)state;
    hbk_error err;
    hbk_config c = t12_config(true);
    char dir[512], weights[512], tmp[520];
    hbk_model *m = t12_saved(&c, HBK_F32, dir, weights, "t12_save_errors");
    hbk_text before = t12_get(weights);
    hbk_real *w = (hbk_real *)m->layers[1].w[HBK_K].data, keep = w[7];
    check_error(hbk_model_save(m, dir, HBK_F64, &err), HBK_ERROR_OPTION, "f32, f16 or bf16, not as f64");
    w[7] = (hbk_real)NAN;
    check_error(hbk_model_save(m, dir, HBK_BF16, &err), HBK_ERROR_NUMERIC,
                "tensor model.layers.1.self_attn.k_proj.weight: holds nan, which BF16 cannot");
    w[7] = (hbk_real)65520;
    check_error(hbk_model_save(m, dir, HBK_F16, &err), HBK_ERROR_NUMERIC, "holds 65520, which F16 cannot");
    w[7] = (hbk_real)3.4e38;
    check_error(hbk_model_save(m, dir, HBK_BF16, &err), HBK_ERROR_NUMERIC,
                "holds 3.4e+38, which BF16 cannot");
    w[7] = keep;
    check_ok(hbk_path(tmp, dir, "config.json.tmp", &err) && hbk_dir_make(tmp, &err)); /* in the way */
    check_error(hbk_model_save(m, dir, HBK_F16, &err), HBK_ERROR_FILE, "config.json.tmp");
    rmdir(tmp);
    hbk_text after = t12_get(weights);
    assert_int_equal(before.len, after.len);
    assert_memory_equal(before.data, after.data, before.len);
    snprintf(tmp, sizeof tmp, "%s.tmp", weights);
    assert_false(hbk_file_exists(tmp));
    w[7] = (hbk_real)65504;
    check_ok(hbk_model_save(m, dir, HBK_F16, &err));
    w[7] = keep;
    hbk_text_free(&before);
    hbk_text_free(&after);
    hbk_model_free(m);
}

/* Promise: every variant of config.json that is not supported, or makes no sense, is refused by name. */
static void t12_config_errors(void **state)
{
    (void)state;
    static const struct {
        const char *key, *value;
        hbk_code code;
        const char *part;
    } cases[] = {
        {"hidden_act", "\"gelu\"", HBK_ERROR_UNSUPPORTED,
         "hidden_act \"gelu\" is not supported, only \"silu\""},
        {"attention_bias", "true", HBK_ERROR_FORMAT,
         "tensor model.layers.0.self_attn.q_proj.bias is missing"},
        {"mlp_bias", "true", HBK_ERROR_FORMAT, "tensor model.layers.0.mlp.gate_proj.bias is missing"},
        {"mlp_bias", "1", HBK_ERROR_FORMAT, "mlp_bias: expected true or false"},
        {"quantization_config", "{\"bits\":4}", HBK_ERROR_UNSUPPORTED,
         "quantization_config: weights packed by an unnamed quant_method are not supported; take the model "
         "in F32"},
        {"quantization_config", "{\"quant_method\":\"gptq\",\"bits\":4}", HBK_ERROR_UNSUPPORTED,
         "packed by gptq"},
        {"quantization_config", "{\"quant_method\":\"awq\"}", HBK_ERROR_UNSUPPORTED, "packed by awq"},
        {"quantization_config", "{\"quant_method\":\"bitsandbytes\",\"load_in_4bit\":true}",
         HBK_ERROR_UNSUPPORTED, "packed by bitsandbytes"},
        {"model_type", "\"qwen2\"", HBK_ERROR_UNSUPPORTED,
         "model_type qwen2, architectures LlamaForCausalLM: only llama (LlamaForCausalLM) and mistral "
         "(MistralForCausalLM) are supported"},
        {"model_type", "\"mixtral\"", HBK_ERROR_UNSUPPORTED, "model_type mixtral"},
        {"model_type", "\"phi3\"", HBK_ERROR_UNSUPPORTED, "model_type phi3"},
        {"model_type", "\"gemma\"", HBK_ERROR_UNSUPPORTED, "model_type gemma"},
        {"architectures", "[\"LlamaForSequenceClassification\"]", HBK_ERROR_UNSUPPORTED,
         "architectures LlamaForSequenceClassification"},
        {"architectures", "[\"LlamaModel\"]", HBK_ERROR_UNSUPPORTED, "architectures LlamaModel"},
        {"architectures", "[\"MixtralForCausalLM\"]", HBK_ERROR_UNSUPPORTED,
         "architectures MixtralForCausalLM"},
        {"rope_scaling", "{\"rope_type\":\"yarn\",\"factor\":2}", HBK_ERROR_UNSUPPORTED, "rope scaling yarn"},
        {"rope_scaling", "{\"type\":\"dynamic\",\"factor\":2}", HBK_ERROR_UNSUPPORTED,
         "rope scaling dynamic"},
        {"rope_scaling", "{\"type\":\"su\"}", HBK_ERROR_UNSUPPORTED, "rope scaling su is not supported"},
        {"rope_parameters", "{\"rope_type\":\"yarn\",\"rope_theta\":1e4}", HBK_ERROR_UNSUPPORTED,
         "rope scaling yarn is not supported: default, linear and llama3 are"},
        {"partial_rotary_factor", "0.5", HBK_ERROR_UNSUPPORTED, "partial_rotary_factor 0.5 is not"},
        {"rope_parameters", "{\"rope_type\":\"longrope\"}", HBK_ERROR_UNSUPPORTED, "rope scaling longrope"},
        {"rope_scaling", "{\"factor\":2}", HBK_ERROR_UNSUPPORTED, "rope scaling without rope_type"},
        {"rope_parameters", "{\"full_attention\":{\"rope_type\":\"default\"}}", HBK_ERROR_UNSUPPORTED,
         "rope scaling without rope_type"},
        {"rope_parameters", "{\"rope_type\":\"default\",\"partial_rotary_factor\":0.5}",
         HBK_ERROR_UNSUPPORTED, "partial_rotary_factor 0.5 is not"},
        {"rope_scaling", "{\"type\":\"linear\"}", HBK_ERROR_FORMAT, "rope scaling linear: expected a factor"},
        {"rope_scaling",
         "{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4,"
         "\"original_max_position_embeddings\":0}",
         HBK_ERROR_FORMAT, "original_max_position_embeddings above 0"},
        {"rope_scaling",
         "{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":4,"
         "\"original_max_position_embeddings\":8192}",
         HBK_ERROR_FORMAT, "low_freq_factor < high_freq_factor"},
        {"rope_scaling", "\"linear\"", HBK_ERROR_FORMAT, "rope scaling: expected null or an object"},
        {"rope_theta", "\"a\"", HBK_ERROR_FORMAT, "rope_theta: expected a number"},
        {"rope_theta", "0", HBK_ERROR_RANGE, "config.json: configuration: rope_theta 0, expected"},
        {"rope_theta", "1e308", HBK_ERROR_RANGE, "config.json: configuration: rope_theta 1e+308, expected"},
        {"rms_norm_eps", "1e308", HBK_ERROR_RANGE, "rms_norm_eps 1e+308, expected 0 to 1"},
        {"rope_scaling", "{\"type\":\"linear\",\"factor\":1e-320}", HBK_ERROR_RANGE,
         "the factor of the rope scaling is 9.99989e-321"},
        {"rope_scaling",
         "{\"rope_type\":\"llama3\",\"factor\":1e-300,\"low_freq_factor\":1,\"high_freq_factor\":4,"
         "\"original_max_position_embeddings\":8192}",
         HBK_ERROR_RANGE, "the factor of the rope scaling is 1e-300"},
        {"rope_scaling",
         "{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1e-300,\"high_freq_factor\":4,"
         "\"original_max_position_embeddings\":8192}",
         HBK_ERROR_RANGE, "rope scaling llama3 of low_freq_factor 1e-300, high_freq_factor 4"},
        {"hidden_size", "\"20\"", HBK_ERROR_FORMAT, "hidden_size: expected a whole number"},
        {"hidden_size", "20.5", HBK_ERROR_FORMAT, "hidden_size: expected a whole number"},
        {"hidden_size", "1e40", HBK_ERROR_FORMAT, "hidden_size: expected a whole"},
        {"tie_word_embeddings", "1", HBK_ERROR_FORMAT, "tie_word_embeddings: expected true or false"},
        {"bos_token_id", "\"<s>\"", HBK_ERROR_FORMAT, "bos_token_id: expected token ids"},
        {"eos_token_id", "[2,\"a\"]", HBK_ERROR_FORMAT, "eos_token_id: expected token ids"},
        {"eos_token_id", "[1,2,3,4,5,6,7,8,9]", HBK_ERROR_RANGE, "has 9 ids, at most 8"},
        {"head_dim", "3", HBK_ERROR_RANGE, "head_dim 3 is odd"},
        {"num_attention_heads", "5", HBK_ERROR_RANGE, "num_attention_heads 5 is no multiple"},
        {"num_hidden_layers", "0", HBK_ERROR_RANGE, "num_hidden_layers is 0"},
        {"num_hidden_layers", "1000000000000", HBK_ERROR_RANGE, "num_hidden_layers is 1000000000000"},
        {"hidden_size", "2000000000", HBK_ERROR_RANGE, "would not fit any memory"},
        {"head_dim", "1000000", HBK_ERROR_SHAPE, "head_dim 1000000: the files are smaller"},
        {"num_hidden_layers", "1000000", HBK_ERROR_FORMAT,
         "tensor model.layers.2.input_layernorm.weight is missing"},
        {"num_hidden_layers", "1", HBK_ERROR_UNSUPPORTED, "a LLaMA of 1 layers has no such weight"},
        {"num_attention_heads", "8", HBK_ERROR_SHAPE,
         "tensor model.layers.0.self_attn.q_proj.weight: shape (24,20), expected (48,20) for n_heads=8 "
         "head_dim=6"},
        {"num_key_value_heads", "1", HBK_ERROR_SHAPE,
         "k_proj.weight: shape (12,20), expected (6,20) for n_kv_heads=1 head_dim=6 dim=20"},
        {"num_key_value_heads", "null", HBK_ERROR_SHAPE, "k_proj.weight: shape (12,20), expected (24,20)"},
        {"intermediate_size", "30", HBK_ERROR_SHAPE,
         "gate_proj.weight: shape (28,20), expected (30,20) for ffn_dim=30"},
        {"vocab_size", "38", HBK_ERROR_SHAPE,
         "tensor model.embed_tokens.weight: shape (37,20), expected (38,20) for vocab_size=38 dim=20; "
         "vocab_size "
         "may be lower than the rows, not higher"},
    };
    hbk_error err;
    hbk_config c = t12_config(false);
    char dir[512], weights[512], config[512];
    hbk_model_free(t12_saved(&c, HBK_BF16, dir, weights, "t12_config"));
    check_ok(hbk_path(config, dir, "config.json", &err));
    hbk_text good = t12_get(config);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        t12_put(config, good.data, good.len);
        t12_json_set(config, cases[i].key, cases[i].value);
        check_error(hbk_model_load(dir, NULL, &err), cases[i].code, cases[i].part);
    }
    t12_put(config, "[]", 2);
    check_error(hbk_model_load(dir, NULL, &err), HBK_ERROR_FORMAT, "expected a JSON object");
    for (size_t n = 0; n + 2 < good.len; n += 7) { /* cut anywhere */
        t12_put(config, good.data, n);
        check_error(hbk_model_load(dir, NULL, &err), HBK_ERROR_FORMAT, "config.json");
    }
    unlink(config);
    check_error(hbk_model_load(dir, NULL, &err), HBK_ERROR_FILE, "config.json: is missing");
    hbk_text_free(&good);
}

/* Promise: both spellings of the rope fields, absent and null fields, lists of eos ids and the generation
   configuration mean what transformers makes of them. */
static void t12_config_spellings(void **state)
{
    (void)state;
#define T12_LLAMA3                                                                                           \
    "\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"                                       \
    "\"original_max_position_embeddings\":32"
    static const struct {
        const char *key[3], *value[3];
        hbk_rope_scaling scaling;
        double theta, factor;
    } cases[] = {
        {{"rope_theta"}, {"1000"}, HBK_ROPE_DEFAULT, 1000, 1},
        {{"rope_theta"}, {NULL}, HBK_ROPE_DEFAULT, 10000, 1},
        {{"rope_parameters", "rope_theta"}, {"{\"rope_theta\":1000}", NULL}, HBK_ROPE_DEFAULT, 1000, 1},
        {{"rope_parameters", "rope_scaling"},
         {"{\"rope_theta\":1000,\"rope_type\":\"default\"}", "{}"},
         HBK_ROPE_DEFAULT,
         1000,
         1},
        {{"rope_scaling"}, {"{\"type\":\"linear\",\"factor\":2}"}, HBK_ROPE_LINEAR, 10000, 2},
        {{"rope_scaling", "rope_theta"},
         {"{\"rope_type\":\"llama3\"," T12_LLAMA3 "}", "1000"},
         HBK_ROPE_LLAMA3,
         1000,
         8},
        {{"rope_parameters", "rope_theta", "rope_scaling"},
         {"{\"rope_type\":\"llama3\",\"rope_theta\":1000," T12_LLAMA3 "}", "7", NULL},
         HBK_ROPE_LLAMA3,
         1000,
         8},
    };
    hbk_error err;
    hbk_config c = t12_config(false);
    c.head_dim = 5 * 2;
    c.n_heads = 2;
    char dir[512], weights[512], config[512];
    hbk_model_free(t12_saved(&c, HBK_F32, dir, weights, "t12_spellings"));
    check_ok(hbk_path(config, dir, "config.json", &err));
    hbk_text good = t12_get(config);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        t12_put(config, good.data, good.len);
        t12_json_set(config, "head_dim", i % 2 ? "null" : NULL); /* 20 / 2 */
        for (int k = 0; k < 3 && cases[i].key[k]; k++)
            t12_json_set(config, cases[i].key[k], cases[i].value[k]);
        hbk_model *m = hbk_model_load(dir, NULL, &err);
        if (!m) fail_msg("case %d: %s", (int)i, err.message);
        assert_int_equal(m->config.head_dim, 10);
        assert_int_equal(m->config.rope_scaling, cases[i].scaling);
        check_near(m->config.rope_theta, cases[i].theta, 0);
        check_near(m->config.rope_factor, cases[i].factor, 0);
        /* the lowest frequency has the longest wave, which every scaling divides by its factor */
        check_near(m->inv_freq[4], pow(cases[i].theta, -0.8) / cases[i].factor, 1e-7);
        check_near(m->inv_freq[0], cases[i].scaling == HBK_ROPE_LINEAR ? 0.5 : 1, 1e-12);
        hbk_model_free(m);
    }
    t12_put(config, good.data, good.len);
    check_ok(hbk_path(weights, dir, "generation_config.json", &err));
    static const char *const eos[][3] = {/* config.json, generation_config.json, count and sum */
                                         {"[3, 9, 11]", NULL, "\3\27"},
                                         {"3", "[4, 5]", "\2\11"},
                                         {"null", NULL, "\0"},
                                         {NULL, NULL, "\1\2"},
                                         {"3", "null", "\1\3"}};
    for (int i = 0; i < 5; i++) {
        t12_json_set(config, "eos_token_id", eos[i][0]);
        t12_json_set(weights, "eos_token_id", eos[i][1]);
        hbk_model *m = hbk_model_load(dir, NULL, &err);
        if (!m) fail_msg("%s", err.message);
        hbk_int sum = 0;
        for (hbk_int k = 0; k < m->config.n_eos; k++) sum += m->config.eos[k];
        assert_int_equal(m->config.n_eos, eos[i][2][0]);
        assert_int_equal(sum, eos[i][2][0] ? eos[i][2][1] : 0);
        hbk_model_free(m);
    }
    hbk_text_free(&good);
}

/* Merges the keys of a JSON text into a folder's config.json; a key whose value is "absent" goes. */
static void t12_patch(const char *dir, const char *text)
{
    hbk_error err;
    char path[512];
    check_ok(hbk_path(path, dir, "config.json", &err));
    json_t *patch = json_loads(text, 0, NULL), *value;
    const char *key;
    if (!patch) fail_msg("the test's own JSON is wrong: %s", text);
    json_object_foreach(patch, key, value)
    {
        char *s = json_dumps(value, JSON_ENCODE_ANY);
        t12_json_set(path, key, strcmp(s, "\"absent\"") == 0 ? NULL : s);
        free(s);
    }
    json_decref(patch);
}

/* Promise: configurations that differ in spelling only load as the same model. */
static void t12_config_accepted(void **state)
{
    (void)state;
    static const char *const patches[] = {
        "{\"hidden_act\":\"swish\"}",
        "{\"hidden_act\":null,\"attention_bias\":null,\"mlp_bias\":null,\"tie_word_embeddings\":null}",
        "{\"hidden_act\":\"absent\",\"attention_bias\":\"absent\",\"tie_word_embeddings\":\"absent\"}",
        "{\"pretraining_tp\":4,\"use_cache\":false,\"attention_dropout\":0.5,\"initializer_range\":7}",
        "{\"pad_token_id\":-1,\"transformers_version\":\"9\",\"torch_dtype\":\"absent\",\"dtype\":"
        "\"bfloat16\"}",
        "{\"rms_norm_eps\":1e-05,\"rope_theta\":10000}",
        "{\"hidden_size\":20.0,\"num_hidden_layers\":2.0,\"vocab_size\":37.0,\"rope_theta\":10000.0}",
        "{\"rope_theta\":\"absent\",\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":10000}}",
        "{\"rope_theta\":\"absent\",\"rope_parameters\":{\"rope_theta\":10000.0,\"partial_rotary_factor\":1."
        "0}}",
        "{\"rope_scaling\":{\"type\":\"default\"}}",
        "{\"rope_scaling\":{\"type\":\"linear\",\"factor\":1}}",
        "{\"partial_rotary_factor\":1.0,\"quantization_config\":{}}",
        "{\"partial_rotary_factor\":1,\"quantization_config\":null,\"sliding_window\":8}",
        "{\"architectures\":null}",
        "{\"architectures\":[]}",
        "{\"architectures\":[\"LLaMAForCausalLM\"]}",
        "{\"model_type\":\"absent\"}",
        "{\"model_type\":\"mistral\",\"architectures\":[\"MistralForCausalLM\"],\"sliding_window\":null}",
        "{\"model_type\":\"mistral\",\"architectures\":\"absent\",\"sliding_window\":64}",
        "{\"model_type\":\"absent\",\"architectures\":[\"MistralForCausalLM\"],\"sliding_window\":1000}",
        "{\"model_type\":\"mistral\",\"architectures\":[\"MistralForCausalLM\"]}", /* absent: 4096 */
        "{\"model_type\":\"mistral\",\"architectures\":[\"MistralForCausalLM\"],\"attention_bias\":true}",
    };
    static const struct {
        const char *patch, *part;
    } refused[] = {
        {"{\"model_type\":\"mistral\",\"sliding_window\":32}",
         "sliding_window 32 is shorter than max_position_embeddings 64, which is not supported; to use the "
         "model "
         "up to the window, lower max_position_embeddings to it"},
        {"{\"model_type\":\"mistral\",\"sliding_window\":0}", "sliding_window 0 is shorter"},
        {"{\"model_type\":\"mistral\",\"max_position_embeddings\":\"absent\"}",
         "sliding_window 4096 is shorter than max_position_embeddings 131072"},
        {"{\"model_type\":\"absent\",\"architectures\":null}",
         "model_type absent, architectures absent: only"},
        {"{\"model_type\":\"llama\",\"architectures\":[\"Qwen2ForCausalLM\"]}",
         "architectures Qwen2ForCausalLM"},
    };
    hbk_error err;
    hbk_config c = t12_config(false);
    char dir[512], weights[512], config[512];
    hbk_model *m = t12_saved(&c, HBK_F32, dir, weights, "t12_accepted");
    check_ok(hbk_path(config, dir, "config.json", &err));
    hbk_text good = t12_get(config);
    for (size_t i = 0; i < sizeof patches / sizeof *patches; i++) {
        t12_put(config, good.data, good.len);
        t12_patch(dir, patches[i]);
        hbk_model *l = hbk_model_load(dir, NULL, &err);
        if (!l) fail_msg("%s: %s", patches[i], err.message);
        t12_same_weights(m, l, HBK_F32);
        assert_true(l->config.rms_norm_eps == 1e-5 && l->config.context_length == 64 && !l->config.biases);
        hbk_model_free(l);
    }
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        t12_put(config, good.data, good.len);
        t12_patch(dir, refused[i].patch);
        check_error(hbk_model_load(dir, NULL, &err), HBK_ERROR_UNSUPPORTED, refused[i].part);
    }
    hbk_text_free(&good);
    hbk_model_free(m);
    c.n_heads = 8; /* what Mistral's configuration class has for absent keys */
    c.n_kv_heads = 8;
    c.ffn_dim = 14336;
    m = t12_saved(&c, HBK_BF16, dir, weights, "t12_accepted");
    t12_patch(
        dir,
        "{\"model_type\":\"mistral\",\"sliding_window\":null,\"architectures\":null,\"bos_token_id\":"
        "\"absent\","
        "\"num_key_value_heads\":\"absent\",\"intermediate_size\":\"absent\",\"rms_norm_eps\":\"absent\","
        "\"max_position_embeddings\":\"absent\",\"rope_theta\":\"absent\"}");
    hbk_model *l = hbk_model_load(dir, NULL, &err);
    check_ok(l);
    t12_same_weights(m, l, HBK_BF16);
    assert_true(l->config.context_length == 131072 && l->config.rms_norm_eps == 1e-6 && l->config.bos == 1);
    hbk_model_free(l);
    hbk_model_free(m);
}

/* Renames tensor `from` to `to`, or removes it from the table (its data stay, so that needs the last). */
static void t12_rename(t12_parts *p, const char *from, const char *to)
{
    json_object_set(p->header, to, json_object_get(p->header, from));
    json_object_del(p->header, from);
}

/* Promise: whichever copy of tied weights is stored, named or not in the metadata, loads as the same. */
static void t12_tied(void **state)
{
    (void)state;
    for (int i = 0; i < 6; i++) {
        hbk_error err;
        hbk_config c = t12_config(true);
        char dir[512], weights[512], config[512];
        hbk_model *m = t12_saved(&c, HBK_F16, dir, weights, "t12_tied");
        check_ok(hbk_path(config, dir, "config.json", &err));
        t12_parts p = t12_split(weights);
        if (i & 1) t12_rename(&p, "model.embed_tokens.weight", "lm_head.weight");
        if (i == 2) json_object_set_new(p.header, "__metadata__", json_null());
        if (i == 3)
            json_object_set_new(p.header, "__metadata__",
                                json_pack("{s:s}", "model.embed_tokens.weight", "lm_head.weight"));
        if (i >= 2) t12_json_set(config, "tie_word_embeddings", i % 2 ? NULL : "false");
        t12_join(weights, &p, 0);
        hbk_model *l = hbk_model_load(dir, NULL, &err);
        if (!l) fail_msg("case %d: %s", i, err.message);
        assert_true(l->config.tied);
        t12_same_weights(m, l, HBK_F16);
        hbk_model_free(l);
        hbk_model_free(m);
        t12_parts_free(&p);
    }
}

/* Promise: where head and embedding are both stored and equal, a configuration that ties them is believed;
   where they differ, both are used, as transformers does. Where it does not tie them they stay two. */
static void t12_two_copies(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        hbk_error err;
        hbk_config c = t12_config(false);
        char dir[512], weights[512];
        hbk_model *m = t12_saved(&c, HBK_F32, dir, weights, "t12_two");
        size_t bytes = (size_t)(c.vocab_size * c.dim) * sizeof(hbk_real);
        if (i & 1) memcpy(m->head.data, m->embed.data, bytes);
        check_ok(hbk_model_save(m, dir, HBK_F32, &err));
        if (i & 2) t12_patch(dir, "{\"tie_word_embeddings\":true}");
        hbk_model *l = hbk_model_load(dir, NULL, &err);
        check_ok(l);
        assert_int_equal(l->config.tied, i == 3);
        if (i != 3) t12_same_weights(m, l, HBK_F32);
        hbk_model_free(l);
        hbk_model_free(m);
    }
}

/* Promise: a table that does not fit the model is an error that names the tensor; rotary tables of old files
   and rows beyond the vocabulary are no error. */
static void t12_tensor_errors(void **state)
{
    (void)state;
    static const struct {
        const char *tensor, *key, *value; /* key "name": rename; tensor NULL: add an empty tensor */
        hbk_code code;
        const char *part;
    } cases[] = {
        {"model.layers.1.self_attn.q_proj.weight", "shape", "[20,24]", HBK_ERROR_SHAPE,
         "tensor model.layers.1.self_attn.q_proj.weight: shape (20,24), expected (24,20) for n_heads=4 "
         "head_dim=6"},
        {"model.layers.1.self_attn.o_proj.weight", "shape", "[20,24,1]", HBK_ERROR_SHAPE,
         "shape (20,24,1), expected (20,24)"},
        {"model.layers.0.mlp.down_proj.weight", "shape", "[560]", HBK_ERROR_SHAPE,
         "shape (560), expected (20,28)"},
        {"model.norm.weight", "shape", "[1,20]", HBK_ERROR_SHAPE,
         "model.norm.weight: shape (1,20), expected (20)"},
        {"lm_head.weight", "shape", "[20,37]", HBK_ERROR_SHAPE,
         "lm_head.weight: shape (20,37), expected (37,20)"},
        {"model.norm.weight", "dtype", "\"I32\"", HBK_ERROR_UNSUPPORTED,
         "model.norm.weight: type I32 is not supported"},
        {"lm_head.weight", "dtype", "\"U32\"", HBK_ERROR_UNSUPPORTED,
         "lm_head.weight: type U32 is not supported"},
        {"model.norm.weight", "name", "norm.weight", HBK_ERROR_FORMAT, "tensor model.norm.weight is missing"},
        {"model.layers.1.mlp.up_proj.weight", "name", "model.layers.01.mlp.up_proj.weight", HBK_ERROR_FORMAT,
         "tensor model.layers.1.mlp.up_proj.weight is missing"},
        {"model.layers.1.input_layernorm.weight", "name", "x", HBK_ERROR_FORMAT,
         "tensor model.layers.1.input_layernorm.weight is missing"},
        {NULL, "model.layers.0.self_attn.q_proj.bias", "", HBK_ERROR_UNSUPPORTED,
         "tensor model.layers.0.self_attn.q_proj.bias: a LLaMA of 2 layers without attention_bias in its "
         "config.json has no such weight"},
        {NULL, "model.layers.1.mlp.up_proj.bias", "", HBK_ERROR_UNSUPPORTED,
         "without mlp_bias in its config.json has no such weight"},
        {NULL, "model.layers.1.mlp.up_proj.weight_scale", "", HBK_ERROR_UNSUPPORTED,
         "tensor model.layers.1.mlp.up_proj.weight_scale: a LLaMA of 2 layers has no such weight"},
        {NULL, "score.weight", "", HBK_ERROR_UNSUPPORTED,
         "tensor score.weight: a LLaMA of 2 layers has no such"},
        {"lm_head.weight", "dtype", "\"F8_E4M3\"", HBK_ERROR_FORMAT, "tensor lm_head.weight: data_offsets"},
        {"model.embed_tokens.weight", "shape", "[36,20]", HBK_ERROR_FORMAT,
         "tensor model.embed_tokens.weight"},
        {NULL, "model.layers.1.self_attn.masked_bias", "", HBK_ERROR_NONE, ""},
        {NULL, "model.layers.2.mlp.up_proj.weight", "", HBK_ERROR_UNSUPPORTED,
         "tensor model.layers.2.mlp.up_proj"},
        {NULL, "model.layers.0.self_attn.rotary_emb.inv_freq", "", HBK_ERROR_NONE, ""},
    };
    hbk_error err;
    hbk_config c = t12_config(false);
    char dir[512], weights[512], config[512];
    hbk_model *m = t12_saved(&c, HBK_F32, dir, weights, "t12_tensors");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_ok(hbk_model_save(m, dir, HBK_F32, &err));
        t12_parts p = t12_split(weights);
        if (!cases[i].tensor)
            json_object_set_new(p.header, cases[i].key,
                                json_pack("{s:s,s:[i],s:[I,I]}", "dtype", "F32", "shape", 0, "data_offsets",
                                          (json_int_t)p.n, (json_int_t)p.n));
        else if (!strcmp(cases[i].key, "name")) t12_rename(&p, cases[i].tensor, cases[i].value);
        else
            json_object_set_new(json_object_get(p.header, cases[i].tensor), cases[i].key,
                                json_loads(cases[i].value, JSON_DECODE_ANY, NULL));
        t12_join(weights, &p, 0);
        t12_parts_free(&p);
        if (cases[i].code != HBK_ERROR_NONE) {
            check_error(hbk_model_load(dir, NULL, &err), cases[i].code, cases[i].part);
            continue;
        }
        hbk_model *l = hbk_model_load(dir, NULL, &err);
        if (!l) fail_msg("%s", err.message);
        t12_same_weights(m, l, HBK_F32);
        hbk_model_free(l);
    }
    check_ok(hbk_path(config, dir, "config.json", &err));
    t12_json_set(config, "vocab_size", "30");
    hbk_model *l = hbk_model_load(dir, NULL, &err);
    if (!l) fail_msg("%s", err.message);
    assert_int_equal(l->embed.rows, 30);
    hbk_model_free(l);
    hbk_model_free(m);
    unlink(weights);
    check_error(hbk_model_load(dir, NULL, &err), HBK_ERROR_FILE, "neither model.safetensors nor");
    check_ok(hbk_path(weights, dir, "pytorch_model.bin", &err));
    t12_put(weights, "x", 1);
    check_error(hbk_model_load(dir, NULL, &err), HBK_ERROR_FILE,
                "its weights are in pytorch_model.bin: save the model as safetensors first");
}

/* Promise: data may begin at any byte of a file: the weights are the same, mapped, and give the same
   logits. */
static void t12_unaligned(void **state)
{
    (void)state;
    for (int i = 0; i < 8; i++) {
        hbk_error err;
        hbk_config c = t12_config(false);
        hbk_dtype t = i % 2 ? HBK_F32 : HBK_BF16;
        char dir[512], weights[512];
        hbk_model *m = t12_saved(&c, t, dir, weights, "t12_unaligned");
        t12_parts p = t12_split(weights);
        t12_join(weights, &p, (size_t)i);
        hbk_model *l = hbk_model_load(dir, NULL, &err);
        if (!l) fail_msg("%s", err.message);
        t12_same_weights(m, l, t);
        const unsigned char *q = (const unsigned char *)l->layers[0].w[HBK_Q].data;
        assert_int_equal((uintptr_t)q % 8, i);
        assert_true(q > l->maps[0].data && q < l->maps[0].data + l->maps[0].size);
        int32_t tokens[12] = {1, 5, 9, 36, 0, 2, 2, 7, 8, 30, 31, 6};
        hbk_int start[2] = {0, 12};
        hbk_batch b = {12, 1, tokens, NULL, start};
        hbk_real x[12 * 37], y[12 * 37];
        hbk_acts *a = hbk_acts_new(m, NULL, 12, 12, HBK_KEEP_NONE, NULL, &err);
        check_ok(hbk_model_logits(a, m, &b, NULL, x, &err) && hbk_model_logits(a, l, &b, NULL, y, &err));
        for (int k = 0; k < 12 * 37; k++) check_near(x[k], y[k], t == HBK_F32 ? 1e-6 : 2e-2);
        hbk_acts_free(a);
        hbk_model_free(l);
        hbk_model_free(m);
        t12_parts_free(&p);
    }
}

/* The tensors of a saved model dealt out to a.st and b.st, with an index; *map is its weight_map. */
static json_t *t12_deal(const char *dir, const char *weights, json_t **map)
{
    static const char names[2][8] = {"a.st", "b.st"};
    hbk_error err;
    char path[512];
    hbk_safetensors *s = hbk_safetensors_open(weights, NULL, &err);
    check_ok(s);
    *map = json_object();
    json_t *root = json_pack("{s:{s:f},s:o}", "metadata", "total_size", 1.5, "weight_map", *map);
    for (int k = 0; k < 2; k++) {
        hbk_tensor part[32];
        hbk_int n = 0;
        for (hbk_int i = k; i < hbk_safetensors_count(s); i += 2) {
            part[n++] = *hbk_safetensors_at(s, i);
            json_object_set_new(*map, part[n - 1].name, json_string(names[k]));
        }
        check_ok(hbk_path(path, dir, names[k], &err));
        check_ok(hbk_safetensors_write(path, part, n, &err));
    }
    hbk_safetensors_close(s);
    unlink(weights);
    check_ok(hbk_path(path, dir, "model.safetensors.index.json", &err));
    check_ok(hbk_json_write(path, root, &err));
    return root;
}

/* Promise: shards are followed by the index, and only inside the folder; both must say the same. */
static void t12_shards(void **state)
{
    (void)state;
    hbk_error err;
    hbk_config c = t12_config(false);
    char dir[512], weights[512], path[512], index[512];
    json_t *map, *root;
    hbk_model *m = t12_saved(&c, HBK_F32, dir, weights, "t12_shards");
    root = t12_deal(dir, weights, &map);
    check_ok(hbk_path(index, dir, "model.safetensors.index.json", &err));
    hbk_model *l = hbk_model_load(dir, NULL, &err);
    check_ok(l);
    assert_int_equal(l->n_maps, 2);
    t12_same_weights(m, l, HBK_F32);
    hbk_model_free(l);

    static const char *const cases[][3] = {
        /* tensor, shard (NULL: not named), message (NULL: it loads) */
        {HBK__NORM, "../a.st", "'../a.st', expected a file name in the same folder"},
        {HBK__NORM, "x/a.st", "'x/a.st', expected a file name"},
        {HBK__NORM, "/etc/passwd", "'/etc/passwd', expected a file name"},
        {HBK__NORM, "a..st", "expected a file name"},
        {HBK__NORM, "", "expected a file name"},
        {HBK__NORM, "c.st", "shard c.st is missing from the folder"},
        {HBK__NORM, "config.json", "config.json: is no safetensors file"},
        {HBK__NORM, "other", "tensor model.norm.weight is missing from the shard that the index names: "},
        {HBK__NORM, NULL, NULL},
        {"x.weight", "a.st", "tensor x.weight is missing from the shard that the index names: a.st"},
        {"model.layers.0.self_attn.rotary_emb.inv_freq", "a.st", NULL},
    };
    const char *right = json_string_value(json_object_get(map, HBK__NORM));
    const char *wrong = strcmp(right, "a.st") ? "a.st" : "b.st";
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *changed = json_deep_copy(root), *to = json_object_get(changed, "weight_map");
        const char *shard = cases[i][1] && !strcmp(cases[i][1], "other") ? wrong : cases[i][1];
        if (shard)
            json_object_set_new(to, cases[i][0], json_string(shard));
        else
            json_object_del(to, cases[i][0]);
        check_ok(hbk_json_write(index, changed, &err));
        json_decref(changed);
        memset(&err, 0, sizeof err);
        l = hbk_model_load(dir, NULL, &err);
        if (cases[i][2] ? l != NULL || !strstr(err.message, cases[i][2]) : !l)
            fail_msg("%s in %s: '%s', expected '%s'", cases[i][0], shard ? shard : "none", err.message,
                     cases[i][2]);
        if (l) t12_same_weights(m, l, HBK_F32);
        hbk_model_free(l);
    }
    static const char *const bad[][2] = {
        {"{\"weight_map\":[]}", "expected a weight_map"},
        {"{}", "expected a weight_map"},
        {"{\"weight_map\":{}}", "expected a weight_map"},
        {"[]", "expected a weight_map"},
        {"7", "expected a weight_map"},
        {"{\"weight_map\":{\"model.norm.weight\":1}}", "the shard of model.norm.weight is ''"},
        {"{\"weight_map\":{\"model.norm.weight\":{\"a\":[]}}}", "the shard of model.norm.weight is ''"},
        {"{\"weight_map\":", "is no JSON"},
        {"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
         "index.json: is a git-lfs pointer"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        t12_put(index, bad[i][0], strlen(bad[i][0]));
        check_error(hbk_model_load(dir, NULL, &err), HBK_ERROR_FORMAT, bad[i][1]);
    }
    /* one tensor, two shards */
    check_ok(hbk_json_write(index, root, &err));
    check_ok(hbk_path(path, dir, right, &err));
    hbk_safetensors *s = hbk_safetensors_open(path, NULL, &err);
    hbk_tensor both[32];
    hbk_int n = 0;
    both[n++] = *hbk_safetensors_find(s, HBK__NORM);
    check_ok(hbk_path(path, dir, wrong, &err));
    hbk_safetensors *o = hbk_safetensors_open(path, NULL, &err);
    for (hbk_int i = 0; i < hbk_safetensors_count(o); i++) both[n++] = *hbk_safetensors_at(o, i);
    check_ok(hbk_safetensors_write(path, both, n, &err));
    hbk_safetensors_close(o);
    hbk_safetensors_close(s);
    check_error(hbk_model_load(dir, NULL, &err), HBK_ERROR_FORMAT,
                "tensor model.norm.weight is in two shards, ");
    t12_put(path, "version https://git-lfs.github.com/spec/v1\n", 43);
    check_error(hbk_model_load(dir, NULL, &err), HBK_ERROR_FORMAT, ".st: is a git-lfs pointer");
    json_decref(root);
    hbk_model_free(m);
}

/* ---- llama2.c ----------------------------------------------------------------- */

enum { T12_GROUP = 8 }; /* divides dim, and not ffn_dim: groups of down_proj cross rows */

/* Groups of f, n floats, as llama2.c's exporter quantises them: q = round(f / scale), scale = max |f| / 127.
   f becomes what they hold. */
static void t12_append_groups(hbk_text *out, float *f, hbk_int n)
{
    hbk_text scales;
    memset(&scales, 0, sizeof scales);
    for (hbk_int i = 0; i < n; i += T12_GROUP) {
        float most = 0;
        for (hbk_int k = i; k < i + T12_GROUP; k++) most = fmaxf(most, fabsf(f[k]));
        float scale = most / 127.0f;
        for (hbk_int k = i; k < i + T12_GROUP; k++) {
            signed char q = (signed char)rintf(f[k] / scale);
            hbk_text_append(out, (const char *)&q, 1);
            f[k] = (float)q * scale;
        }
        hbk_text_append(&scales, (const char *)&scale, 4);
    }
    hbk_text_append(out, scales.data, scales.len);
    hbk_text_free(&scales);
}

/* Appends tensor `name` of m, q and k with the rows of a head interleaved: as floats, or in version 2, where
   it is a matrix, as int8; then m's own numbers become those. */
static void t12_append(hbk_text *out, const hbk_model *m, const char *name, int version)
{
    char at[96];
    hbk_matrix w;
    hbk_int i = 0, D = m->config.head_dim;
    bool swap = strstr(name, "q_proj") || strstr(name, "k_proj"), found = false;
    while (!found && hbk_tensor_at(m, i++, at, &w)) found = !strcmp(at, name);
    if (!found) fail_msg("no tensor %s", name);
    float *f = HBK__NEW(NULL, float, w.rows * w.cols, NULL);
    for (int back = 0; back < 2; back++) {
        for (hbk_int row = 0; row < w.rows; row++) {
            hbk_int r = row % D, from = swap ? row - r + r % 2 * (D / 2) + r / 2 : row;
            hbk_real *x = (hbk_real *)w.data + from * w.cols;
            for (hbk_int k = 0; k < w.cols; k++)
                if (back) x[k] = (hbk_real)f[row * w.cols + k];
                else f[row * w.cols + k] = (float)x[k];
        }
        if (back) break;
        if (version == 2 && w.rows > 1) t12_append_groups(out, f, w.rows * w.cols);
        else hbk_text_append(out, (const char *)f, (size_t)(w.rows * w.cols) * 4);
    }
    hbk_free(NULL, f);
}

/* The bytes of m as llama2.c would export them. */
static hbk_text t12_llama2c(const hbk_model *m, int version)
{
    static const char *const order[2][13] = {{"model.embed_tokens", "input_layernorm", "self_attn.q_proj",
                                              "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                                              "post_attention_layernorm", "mlp.gate_proj", "mlp.down_proj",
                                              "mlp.up_proj", "model.norm", "", "lm_head"},
                                             {"input_layernorm", "post_attention_layernorm", "model.norm",
                                              "model.embed_tokens", "self_attn.q_proj", "self_attn.k_proj",
                                              "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
                                              "mlp.down_proj", "mlp.up_proj", "lm_head", NULL}};
    const hbk_config *c = &m->config;
    hbk_text out;
    memset(&out, 0, sizeof out);
    int32_t v = (int32_t)c->vocab_size, magic[2] = {0x616b3432, version}, group = T12_GROUP;
    int32_t size[7] = {(int32_t)c->dim,           (int32_t)c->ffn_dim,    (int32_t)c->n_layers,
                       (int32_t)c->n_heads,       (int32_t)c->n_kv_heads, 0,
                       (int32_t)c->context_length};
    size[5] = version == 0 && !c->tied ? -v : v;
    if (version) hbk_text_append(&out, (const char *)magic, 8);
    hbk_text_append(&out, (const char *)size, 28);
    if (version) hbk_text_append(&out, c->tied ? "\1" : "\0", 1);
    if (version == 2) hbk_text_append(&out, (const char *)&group, 4);
    while (version && out.len < 256) hbk_text_append(&out, "\0", 1);
    for (int i = 0; i < 13 && order[version > 0][i]; i++) {
        const char *part = order[version > 0][i];
        char name[96];
        if (!*part)
            for (hbk_int k = 0; k < c->context_length * c->head_dim; k++)
                hbk_text_append(&out, "\0\0\0\0", 4);
        bool whole = !strncmp(part, "model.", 6) || !strcmp(part, "lm_head");
        if (!*part || (c->tied && !strcmp(part, "lm_head"))) continue;
        for (hbk_int l = 0; l < (whole ? 1 : c->n_layers); l++) {
            if (whole) snprintf(name, sizeof name, "%s.weight", part);
            else snprintf(name, sizeof name, "model.layers.%d.%s.weight", (int)l, part);
            t12_append(&out, m, name, version);
        }
    }
    return out;
}

static hbk_config t12_llama2c_config(bool tied)
{
    hbk_config c = t12_config(tied);
    c.dim = 24; /* head_dim is dim / n_heads there */
    return c;
}

/* Promise: versions 0, 1 and 2, tied or not, load as the model that they were made from; cut or lengthened
   they do not, and what is no model is told from what it is. */
static void t12_llama2c_files(void **state)
{
    (void)state;
    hbk_error err;
    char path[512];
    test_tmp(path, "t12_model.bin");
    for (int i = 0; i < 6; i++) {
        hbk_config c = t12_llama2c_config(i / 3);
        hbk_model *m = hbk_model_random(&c, 9, NULL, &err);
        hbk_text file = t12_llama2c(m, i % 3);
        t12_put(path, file.data, file.len);
        hbk_model *l = hbk_model_load(path, NULL, &err);
        if (!l) fail_msg("%s", err.message);
        assert_int_equal(l->config.tied, c.tied);
        assert_int_equal(l->config.context_length, 64);
        t12_same_weights(m, l, HBK_F32);
        const unsigned char *p = (const unsigned char *)l->embed.data;
        assert_true(p > l->maps[0].data && p < l->maps[0].data + l->maps[0].size);
        hbk_model_free(l);
        hbk_text_append(&file, "\0\0\0\0", 4);
        t12_put(path, file.data, file.len);
        check_error(hbk_model_load(path, NULL, &err), HBK_ERROR_FORMAT,
                    "a llama2.c file of dim 24, 2 layers, 37 tokens");
        for (size_t n = 0; n < file.len - 4; n += n < 300 ? 1 : 997) {
            t12_put(path, file.data, n);
            check_error(hbk_model_load(path, NULL, &err), HBK_ERROR_FORMAT, "t12_model.bin");
        }
        hbk_text_free(&file);
        hbk_model_free(m);
    }
    static const struct {
        const char *bytes;
        hbk_code code;
        const char *part;
    } cases[] = {
        {"24ka\2", HBK_ERROR_FORMAT, "is no model"},
        {"24ka\7", HBK_ERROR_UNSUPPORTED, "llama2.c version 7 is not supported"},
        {"24ka\1", HBK_ERROR_FORMAT, "is no model"},
        {"GGUF\3", HBK_ERROR_FORMAT, "key general.architecture is missing"},
        {"PK\3\4\1", HBK_ERROR_UNSUPPORTED, "is a PyTorch checkpoint"},
        {"12345678{}", HBK_ERROR_UNSUPPORTED, "is a safetensors file: name the folder"},
        {"version https://git-lfs.github.com/spec/v1", HBK_ERROR_FORMAT, "is a git-lfs pointer"},
        {"anything else", HBK_ERROR_FORMAT,
         "is no model: expected a GGUF file, a llama2.c .bin, or a folder"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char bytes[300] = {0};
        snprintf(bytes, sizeof bytes, "%s", cases[i].bytes);
        t12_put(path, bytes, sizeof bytes);
        check_error(hbk_model_load(path, NULL, &err), cases[i].code, cases[i].part);
    }
    check_error(hbk_model_load("/nowhere", NULL, &err), HBK_ERROR_FILE, "/nowhere: there is no such file");
}

/* The logits of ids, at every position; free them. */
static hbk_real *t12_logits(const hbk_model *m, const int32_t *ids, hbk_int n)
{
    hbk_error err;
    hbk_int start[2] = {0, n};
    hbk_batch b = {n, 1, ids, NULL, start};
    hbk_real *logits = HBK__NEW(NULL, hbk_real, n * m->config.vocab_size, &err);
    hbk_acts *a = hbk_acts_new(m, NULL, n, n, false, NULL, &err);
    assert_non_null(a);
    check_ok(hbk_model_logits(a, m, &b, NULL, logits, &err));
    hbk_acts_free(a);
    return logits;
}

/* Promise: the matrices of version 2 stay int8 in memory, in the mapped file but for q and k, and give the
   logits of the numbers that they hold, by few rows and by many; groups that cannot be are refused. */
static void t12_llama2c_int8(void **state)
{
    (void)state;
    static const int32_t ids[] = {1, 5, 9, 36, 0, 7, 7, 12, 30, 2, 18};
    static const int32_t groups[] = {0, -8, 7, 16, 48, INT32_MIN, INT32_MAX};
    hbk_error err;
    char path[512];
    test_tmp(path, "t12_int8.bin");
    hbk_config c = t12_llama2c_config(false);
    hbk_model *m = hbk_model_random(&c, 9, NULL, &err);
    hbk_text file = t12_llama2c(m, 2);
    t12_put(path, file.data, file.len);
    hbk_model *l = hbk_model_load(path, NULL, &err);
    if (!l) fail_msg("%s", err.message);
    for (int s = 0; s < HBK_N_SLOTS; s++) {
        const hbk_matrix *w = &l->layers[1].w[s];
        const unsigned char *p = (const unsigned char *)w->data;
        assert_int_equal(w->dtype, HBK_INT8);
        assert_int_equal(w->group, T12_GROUP);
        bool mapped = p > l->maps[0].data && p < l->maps[0].data + l->maps[0].size;
        assert_int_equal(mapped, s != HBK_Q && s != HBK_K);
    }
    for (hbk_int n = 3; n <= 11; n += 8) {
        hbk_real *want = t12_logits(m, ids, n), *got = t12_logits(l, ids, n);
        for (hbk_int i = 0; i < n * c.vocab_size; i++) check_near(got[i], want[i], 1e-5);
        hbk_free(NULL, want);
        hbk_free(NULL, got);
    }
    hbk_model_free(l);
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
        memcpy(file.data + 37, &groups[i], 4);
        t12_put(path, file.data, file.len);
        check_error(hbk_model_load(path, NULL, &err), HBK_ERROR_FORMAT, "do not divide dim 24");
    }
    memcpy(file.data + 37, "\4\0\0", 4); /* a possible size, of another file */
    t12_put(path, file.data, file.len);
    check_error(hbk_model_load(path, NULL, &err), HBK_ERROR_FORMAT, "a llama2.c file of dim 24");
    hbk_text_free(&file);
    hbk_model_free(m);
}

/* ---- adapters ----------------------------------------------------------------- */

/* A base that has its shapes only: an adapter is read by them. */
static hbk_model *t12_base(const hbk_config *c)
{
    hbk_error err;
    hbk_model *m = hbk__model_new(c, NULL, &err);
    if (!m) fail_msg("%s", err.message);
    return m;
}

static hbk_adapter *t12_adapter(const hbk_config *c, unsigned targets, double alpha, char dir[512],
                                char weights[512], const char *name)
{
    hbk_error err;
    hbk_adapter *a = hbk_adapter_new(c, 3, alpha, targets, 4, NULL, &err);
    if (!a) fail_msg("%s", err.message);
    for (hbk_int i = 0; i < a->n_values; i++) a->values[i] = (hbk_real)((double)(i % 91) / 64 - 0.5);
    test_tmp(dir, name);
    check_ok(hbk_adapter_save(a, dir, "some/base", 0.25, &err));
    check_ok(hbk_path(weights, dir, "adapter_model.safetensors", &err));
    return a;
}

/* Promise: an adapter saved and loaded is the same, and saved again the same bytes; the configuration holds
   the keys that every PEFT knows, and no others. */
static void t12_adapter_round_trip(void **state)
{
    (void)state;
    static const unsigned targets[] = {HBK_ALL_SLOTS, 1u << HBK_Q | 1u << HBK_V, 1u << HBK_DOWN};
    static const double alphas[] = {16, 4.5, 8};
    hbk_config c = t12_config(false);
    hbk_model *base = t12_base(&c);
    for (int i = 0; i < 3; i++) {
        hbk_error err;
        char dir[512], again[512], weights[512], path[512], x[512], y[512];
        hbk_adapter *a = t12_adapter(&c, targets[i], alphas[i], dir, weights, "t12_adapter");
        hbk_adapter *b = hbk_adapter_load(dir, base, NULL, &err);
        if (!b) fail_msg("%s", err.message);
        assert_int_equal(b->rank, 3);
        assert_int_equal(b->targets, targets[i]);
        assert_true(b->alpha == alphas[i]);
        assert_int_equal(a->n_values, b->n_values);
        assert_memory_equal(a->values, b->values, sizeof *a->values * (size_t)a->n_values);
        check_near(b->loras[HBK_N_SLOTS + HBK_DOWN].scale, i == 1 ? 0 : alphas[i] / 3, 1e-7);
        test_tmp(again, "t12_adapter_again");
        check_ok(hbk_adapter_save(b, again, "some/base", 0.25, &err));
        static const char *const files[] = {"adapter_config.json", "adapter_model.safetensors"};
        for (int k = 0; k < 2; k++) {
            check_ok(hbk_path(x, dir, files[k], &err));
            check_ok(hbk_path(y, again, files[k], &err));
            t12_same_file(x, y);
        }
        check_ok(hbk_path(path, dir, "adapter_config.json", &err));
        json_t *o = hbk_json_read(path, &err);
        assert_int_equal(json_object_size(o), 18);
        assert_int_equal(json_is_integer(json_object_get(o, "lora_alpha")), i != 1);
        assert_string_equal(json_string_value(json_object_get(o, "base_model_name_or_path")), "some/base");
        assert_true(json_real_value(json_object_get(o, "lora_dropout")) == 0.25);
        assert_true(json_is_array(json_object_get(o, "target_modules")));
        assert_null(json_object_get(o, "use_rslora"));
        json_decref(o);
        t12_parts p = t12_split(weights);
        assert_non_null(
            json_object_get(p.header,
                            i == 2 ? "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
                                   : "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"));
        t12_parts_free(&p);
        a->values[1] = (hbk_real)INFINITY;
        check_error(hbk_adapter_save(a, dir, NULL, 0, &err), HBK_ERROR_NUMERIC,
                    "holds inf, which F32 cannot");
        hbk_adapter_free(a);
        hbk_adapter_free(b);
    }
    hbk_model_free(base);
}

#define T12_64  ".*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*"
#define T12_256 T12_64 T12_64 T12_64 T12_64

/* Promise: what changes an adapter's meaning and is not supported is refused by name; rank-stabilised
   scaling, patterns for targets and harmless keys are understood. */
static void t12_adapter_config(void **state)
{
    (void)state;
    static const struct {
        const char *key, *value;
        hbk_code code;
        const char *part;
    } cases[] = {
        {"peft_type", "\"LOHA\"", HBK_ERROR_UNSUPPORTED, "peft_type LOHA: only LORA"},
        {"peft_type", "\"IA3\"", HBK_ERROR_UNSUPPORTED, "peft_type IA3: only LORA"},
        {"peft_type", NULL, HBK_ERROR_UNSUPPORTED, "peft_type is absent: only LORA"},
        {"use_dora", "true", HBK_ERROR_UNSUPPORTED, "use_dora true is not supported"},
        {"bias", "\"all\"", HBK_ERROR_UNSUPPORTED, "bias \"all\" is not supported, only \"none\""},
        {"lora_bias", "true", HBK_ERROR_UNSUPPORTED, "lora_bias true is not supported"},
        {"modules_to_save", "[\"lm_head\"]", HBK_ERROR_UNSUPPORTED, "modules_to_save [\"lm_head\"] is not"},
        {"layers_to_transform", "[1]", HBK_ERROR_FORMAT, "does not name its module"},
        {"layers_to_transform", "0", HBK_ERROR_FORMAT,
         "layers.1.self_attn.q_proj.lora_A.weight: target_modules"},
        {"layers_to_transform", "[\"x\"]", HBK_ERROR_FORMAT, "layers_to_transform: expected a layer's"},
        {"layers_to_transform", "\"x\"", HBK_ERROR_FORMAT, "layers_to_transform: expected a layer's"},
        {"layer_replication", "[[0,1]]", HBK_ERROR_UNSUPPORTED, "layer_replication [[0,1]] is not supported"},
        {"trainable_token_indices", "[3]", HBK_ERROR_UNSUPPORTED, "trainable_token_indices [3] is not"},
        {"target_parameters", "[\"x\"]", HBK_ERROR_UNSUPPORTED, "target_parameters [\"x\"] is not"},
        {"alora_invocation_tokens", "[1,2]", HBK_ERROR_UNSUPPORTED, "alora_invocation_tokens [1,2] is not"},
        {"kasa_config", "{\"beta\":1}", HBK_ERROR_UNSUPPORTED, "kasa_config {\"beta\":1} is not"},
        {"something_new", "{\"a\":1}", HBK_ERROR_UNSUPPORTED, "something_new {\"a\":1} is not"},
        {"something_new", "true", HBK_ERROR_UNSUPPORTED, "something_new true is not"},
        {"init_lora_weights", "\"pissa\"", HBK_ERROR_UNSUPPORTED,
         "init_lora_weights \"pissa\" is not supported: it changed the base"},
        {"target_modules", "[\"q_proj\",\"lm_head\"]", HBK_ERROR_FORMAT,
         "v_proj.lora_A.weight: target_modules of adapter_config.json does not name its module"},
        {"target_modules", "[\"q_proj\",\"v_proj\",\"lm_head\"]", HBK_ERROR_FORMAT,
         "tensor base_model.model.lm_head.lora_A.weight is missing, which target_modules asks for"},
        {"target_modules", "[\"q_proj\",\"v_proj\",\"up_proj\"]", HBK_ERROR_FORMAT,
         "tensor base_model.model.model.layers.0.mlp.up_proj.lora_A.weight is missing"},
        {"target_modules", "\"all-linear\"", HBK_ERROR_FORMAT, "k_proj.lora_A.weight is missing"},
        {"target_modules", "[7]", HBK_ERROR_FORMAT, "target_modules: expected names"},
        {"lora_alpha", "\"8\"", HBK_ERROR_FORMAT, "lora_alpha: expected a number"},
        {"lora_alpha", "1e300", HBK_ERROR_RANGE,
         "adapter_config.json: alpha 1e+300 over rank 3 is no scale for q_proj (layer 0 of 2)"},
        {"alpha_pattern", "[\"q_proj\"]", HBK_ERROR_FORMAT, "alpha_pattern: expected an object"},
        {"alpha_pattern", "{\"q_proj\":\"8\"}", HBK_ERROR_FORMAT, "alpha_pattern: expected a number for q_"},
        {"alpha_pattern", "{\"(?=q)_proj\":8}", HBK_ERROR_UNSUPPORTED, "the expression (?=q)_proj is not"},
        {"alpha_pattern", "{\"q_pro{1,2}j\":8}", HBK_ERROR_UNSUPPORTED, "the expression q_pro{1,2}j is not"},
        {"alpha_pattern", "{\"((((((((((((((((((((q))))))))))))))))))))\":8}", HBK_ERROR_UNSUPPORTED,
         "more than 256 bytes or 16 groups"},
        {"alpha_pattern", "{\"" T12_256 "q_proj\":8}", HBK_ERROR_UNSUPPORTED,
         "more than 256 bytes or 16 groups"},
        {"alpha_pattern", "{\"(q_proj\":8}", HBK_ERROR_UNSUPPORTED, "the expression (q_proj is not"},
        {"alpha_pattern", "{\"[q_proj\":8}", HBK_ERROR_UNSUPPORTED, "the expression [q_proj is not"},
        {"alpha_pattern", "{\"q\\\\bproj\":8}", HBK_ERROR_UNSUPPORTED, "the expression q\\bproj is not"},
        {"target_modules", "[\"self_attn.v_proj\",\"q_proj\"]", HBK_ERROR_NONE, ""},
        {"target_modules", "[\"self_attn.v_proj\",\"q_proj\",\"c_attn\"]", HBK_ERROR_NONE, ""},
        {"target_modules", "\".*[qv]_proj\"", HBK_ERROR_NONE, ""},
        {"target_modules", NULL, HBK_ERROR_NONE, ""},
        {"layers_to_transform", "[1,0,7]", HBK_ERROR_NONE, ""},
        {"layers_to_transform", "[]", HBK_ERROR_NONE, ""},
        {"init_lora_weights", "\"gaussian\"", HBK_ERROR_NONE, ""},
        {"init_lora_weights", "false", HBK_ERROR_NONE, ""},
        {"modules_to_save", "[]", HBK_ERROR_NONE, ""},
        {"fan_in_fan_out", "true", HBK_ERROR_NONE, ""},
        {"exclude_modules", "[\"o_proj\"]", HBK_ERROR_NONE, ""},
        {"something_new", "{}", HBK_ERROR_NONE, ""},
        {"something_new", "7", HBK_ERROR_NONE, ""},
        {"r", "64", HBK_ERROR_NONE, ""},
        {"rank_pattern", "{\"q_proj\":4}", HBK_ERROR_NONE, ""}, /* the tensors say it */
        {"use_rslora", "true", HBK_ERROR_NONE, "rs"},
    };
    hbk_error err;
    hbk_config c = t12_config(false);
    hbk_model *base = t12_base(&c);
    char dir[512], weights[512], config[512];
    hbk_adapter *a = t12_adapter(&c, 1u << HBK_Q | 1u << HBK_V, 6, dir, weights, "t12_adapter_config");
    check_ok(hbk_path(config, dir, "adapter_config.json", &err));
    hbk_text good = t12_get(config);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        t12_put(config, good.data, good.len);
        t12_json_set(config, cases[i].key, cases[i].value);
        if (cases[i].code != HBK_ERROR_NONE) {
            check_error(hbk_adapter_load(dir, base, NULL, &err), cases[i].code, cases[i].part);
            continue;
        }
        hbk_adapter *b = hbk_adapter_load(dir, base, NULL, &err);
        if (!b) fail_msg("%s: %s", cases[i].key, err.message);
        check_near(b->loras[0].scale, *cases[i].part ? 6 / sqrt(3.0) : 2, 1e-6);
        check_near(b->alpha / (double)b->rank, (double)b->loras[0].scale, 1e-6);
        hbk_adapter_free(b);
    }
    unlink(config);
    check_error(hbk_adapter_load(dir, base, NULL, &err), HBK_ERROR_FILE, "adapter_config.json");
    hbk_text_free(&good);
    hbk_adapter_free(a);
    hbk_model_free(base);
}

/* Promise: every tensor must have its place and every projection its two tensors: another base's adapter does
   not load. The spelling of a raw state_dict and unaligned data do. */
static void t12_adapter_tensors(void **state)
{
    (void)state;
#define T12_Q0 "base_model.model.model.layers.0.self_attn.q_proj"
    static const struct {
        const char *from, *to, *shape;
        hbk_code code;
        const char *part;
    } cases[] = {
        {T12_Q0 ".lora_A.weight", T12_Q0 ".lora_A.default.weight", NULL, HBK_ERROR_NONE, ""},
        {T12_Q0 ".lora_A.weight", T12_Q0 ".lora_A.other.weight", NULL, HBK_ERROR_UNSUPPORTED,
         "lora_A.other.weight: is not"},
        {T12_Q0 ".lora_A.weight", "model.layers.0.self_attn.q_proj.lora_A.weight", NULL,
         HBK_ERROR_UNSUPPORTED, "PEFT's names begin with base_model.model."},
        {T12_Q0 ".lora_A.weight", "base_model.model.layers.0.self_attn.q_proj.lora_A.weight", NULL,
         HBK_ERROR_UNSUPPORTED, "tensor base_model.model.layers.0.self_attn.q_proj.lora_A.weight: is not"},
        {T12_Q0 ".lora_A.weight", "base_model.model.lm_head.lora_A.weight", NULL, HBK_ERROR_FORMAT,
         "tensor " T12_Q0 ".lora_A.weight is missing"},
        {T12_Q0 ".lora_A.weight", "base_model.model.model.embed_tokens.lora_embedding_A", NULL,
         HBK_ERROR_UNSUPPORTED, "lora_embedding_A: is not lora_A or lora_B of a layer's projection"},
        {T12_Q0 ".lora_A.weight", "base_model.model.model.embed_tokens.weight", NULL, HBK_ERROR_SHAPE,
         "embed_tokens.weight: is no copy of the base's, which is (37,20): was the vocabulary resized?"},
        {T12_Q0 ".lora_A.weight", T12_Q0 ".lora_magnitude_vector", NULL, HBK_ERROR_UNSUPPORTED,
         "lora_magnitude_vector"},
        {T12_Q0 ".lora_A.weight", "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight", NULL,
         HBK_ERROR_SHAPE, "the model has 2 layers; is this the adapter of another base?"},
        {T12_Q0 ".lora_A.weight", "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight", NULL,
         HBK_ERROR_FORMAT, "tensor " T12_Q0 ".lora_A.weight is missing"},
        {T12_Q0 ".lora_B.weight", "base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight", "[3,24]",
         HBK_ERROR_FORMAT, "tensor " T12_Q0 ".lora_B.weight is missing"},
        {T12_Q0 ".lora_A.weight", T12_Q0 ".lora_A.weight", "[2,30]", HBK_ERROR_SHAPE,
         "q_proj.lora_A.weight: shape (2,30), expected (rank,20); is this the adapter of another base?"},
        {T12_Q0 ".lora_B.weight", T12_Q0 ".lora_B.weight", "[12,6]", HBK_ERROR_SHAPE,
         "q_proj.lora_B.weight: shape (12,6), expected (24,rank)"},
        {"base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight", T12_Q0 ".lora_A.default.weight",
         NULL, HBK_ERROR_FORMAT, T12_Q0 ".lora_A.weight are one and the same"},
        {T12_Q0 ".lora_B.weight", T12_Q0 ".lora_B.weight", "[72]", HBK_ERROR_SHAPE,
         "shape (72), expected (24,rank)"},
    };
    hbk_error err;
    hbk_config c = t12_config(false);
    hbk_model *base = t12_base(&c);
    char dir[512], weights[512];
    hbk_adapter *a = t12_adapter(&c, 1u << HBK_Q, 6, dir, weights, "t12_adapter_tensors");
    t12_parts good = t12_split(weights);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        t12_parts p = good;
        p.header = json_deep_copy(good.header);
        if (cases[i].shape)
            json_object_set_new(json_object_get(p.header, cases[i].from), "shape",
                                json_loads(cases[i].shape, 0, NULL));
        if (strcmp(cases[i].from, cases[i].to) != 0) t12_rename(&p, cases[i].from, cases[i].to);
        t12_join(weights, &p, i % 8);
        json_decref(p.header);
        if (cases[i].code != HBK_ERROR_NONE) {
            check_error(hbk_adapter_load(dir, base, NULL, &err), cases[i].code, cases[i].part);
            continue;
        }
        hbk_adapter *b = hbk_adapter_load(dir, base, NULL, &err);
        if (!b) fail_msg("%s", err.message);
        assert_memory_equal(a->values, b->values, sizeof *a->values * (size_t)a->n_values);
        hbk_adapter_free(b);
    }
    for (size_t odd = 0; odd < 8; odd++) { /* unaligned */
        t12_join(weights, &good, odd);
        hbk_adapter *b = hbk_adapter_load(dir, base, NULL, &err);
        if (!b) fail_msg("%s", err.message);
        assert_memory_equal(a->values, b->values, sizeof *a->values * (size_t)a->n_values);
        hbk_adapter_free(b);
    }
    hbk_config deeper = c, wider = c;
    deeper.n_layers = 3;
    hbk_model *other = t12_base(&deeper);
    check_error(hbk_adapter_load(dir, other, NULL, &err), HBK_ERROR_FORMAT,
                "layers.2.self_attn.q_proj.lora_A.weight is");
    hbk_model_free(other);
    wider.dim = 40;
    other = t12_base(&wider);
    check_error(hbk_adapter_load(dir, other, NULL, &err), HBK_ERROR_SHAPE,
                "shape (3,20), expected (rank,40)");
    hbk_model_free(other);
    check_ok(hbk_safetensors_write(weights, NULL, 0, &err));
    check_error(hbk_adapter_load(dir, base, NULL, &err), HBK_ERROR_FORMAT,
                "holds no tensor: nothing was trained");
    t12_parts_free(&good);
    hbk_adapter_free(a);
    /* halves whose ranks differ */
    a = t12_adapter(&c, 1u << HBK_K, 6, dir, weights, "t12_adapter_tensors");
    good = t12_split(weights);
    json_t *table =
        json_object_get(good.header, "base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight");
    json_object_set_new(table, "shape", json_loads("[12,2]", 0, NULL));
    json_object_set_new(table, "dtype", json_string("F32"));
    json_t *offsets = json_object_get(table, "data_offsets");
    json_int_t end = json_integer_value(json_array_get(offsets, 0)) + 96;
    json_array_set_new(offsets, 1, json_integer(end));
    good.n = (size_t)end; /* it is the last one */
    t12_join(weights, &good, 0);
    check_error(hbk_adapter_load(dir, base, NULL, &err), HBK_ERROR_SHAPE,
                "k_proj.lora_B.weight: rank 2, but 3 in base_model.model.model.layers.1.self_attn.k_proj");
    t12_parts_free(&good);
    hbk_adapter_free(a);
    hbk_model_free(base);
}

/* An adapter of mixed ranks and alphas with numbers in both halves. */
static hbk_adapter *t12_mixed(const hbk_config *c, const hbk_adapter_options *o)
{
    hbk_error err;
    hbk_adapter *a = hbk_adapter_make(c, o, 4, NULL, &err);
    if (!a) fail_msg("%s", err.message);
    hbk_rng r = hbk_rng_at(6, "mixed", 0);
    for (hbk_int i = 0; i < a->n_values; i++) a->values[i] = (hbk_real)(float)(0.3 * hbk_rng_normal(&r));
    return a;
}

static void t12_same_adapter(const hbk_adapter *a, const hbk_adapter *b)
{
    assert_int_equal(a->n_values, b->n_values);
    assert_int_equal(a->targets, b->targets);
    assert_true(a->rank == b->rank && a->alpha == b->alpha);
    assert_memory_equal(a->values, b->values, sizeof *a->values * (size_t)a->n_values);
    for (hbk_int i = 0; i <= a->n_layers * HBK_N_SLOTS; i++) {
        const hbk_lora *x = &a->loras[i], *y = &b->loras[i];
        if (x->rank != y->rank || x->alpha != y->alpha || x->scale != y->scale)
            fail_msg("projection %lld: rank %lld alpha %.17g, expected %lld, %.17g", (long long)i,
                     (long long)y->rank, y->alpha, (long long)x->rank, x->alpha);
    }
}

/* Saves, loads and saves again: the same adapter, the same bytes, and these values of the configuration. */
static void t12_adapter_returns(const hbk_adapter *a, const hbk_config *c, const char *config)
{
    static const char *const keys[] = {
        "r", "lora_alpha", "rank_pattern", "alpha_pattern", "layers_to_transform", "target_modules"};
    hbk_error err;
    char dir[512], again[512], x[512], y[512];
    hbk_model *base = t12_base(c);
    test_tmp(dir, "t12_returns");
    test_tmp(again, "t12_returns_again");
    check_ok(hbk_adapter_save(a, dir, "some/base", 0, &err));
    hbk_adapter *b = hbk_adapter_load(dir, base, NULL, &err);
    if (!b) fail_msg("%s: %s", config, err.message);
    t12_same_adapter(a, b);
    check_ok(hbk_adapter_save(b, again, "some/base", 0, &err));
    check_ok(hbk_path(x, dir, "adapter_config.json", &err));
    check_ok(hbk_path(y, again, "adapter_config.json", &err));
    t12_same_file(x, y);
    json_t *o = hbk_json_read(x, &err), *got = json_object();
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        json_object_set(got, keys[i], json_object_get(o, keys[i]));
    char *text = json_dumps(got, JSON_COMPACT);
    assert_string_equal(text, config);
    free(text);
    json_decref(got);
    json_decref(o);
    hbk_adapter_free(b);
    hbk_model_free(base);
}

/* Promise: ranks and alphas of each projection, some layers, and the head come back from a saved adapter; the
   configuration says so in as few words as early versions of PEFT understand. */
static void t12_adapter_modules(void **state)
{
    (void)state;
    hbk_error err;
    hbk_config c = t12_config(false);
    c.n_layers = 3;
    hbk_adapter_options o = hbk_adapter_defaults();
    o.rank = 4;
    o.alpha = 6;
    o.targets = 1u << HBK_Q | 1u << HBK_K | 1u << HBK_UP;
    o.target_rank[HBK_K] = 2;
    o.target_alpha[HBK_UP] = 2.5;
    hbk_adapter *a = t12_mixed(&c, &o);
    t12_adapter_returns(
        a, &c,
        "{\"r\":4,\"lora_alpha\":6,\"rank_pattern\":{\"k_proj\":2},\"alpha_pattern\":{\"up_proj\":2.5},"
        "\"layers_to_transform\":null,\"target_modules\":[\"q_proj\",\"k_proj\",\"up_proj\"]}");
    hbk_adapter_free(a);
    o.layer_begin = 1; /* some layers, and the head, whose rank and alpha become the common ones */
    o.targets |= 1u << HBK_LM_HEAD;
    o.target_rank[HBK_LM_HEAD] = 7;
    a = t12_mixed(&c, &o);
    t12_adapter_returns(
        a, &c,
        "{\"r\":7,\"lora_alpha\":6,\"rank_pattern\":{\"q_proj\":4,\"k_proj\":2,\"up_proj\":4},"
        "\"alpha_pattern\":{\"up_proj\":2.5},\"layers_to_transform\":[1,2],"
        "\"target_modules\":[\"q_proj\",\"k_proj\",\"up_proj\",\"lm_head\"]}");
    hbk_adapter_free(a);
    a = hbk__adapter_begin(&c, NULL, &err); /* layers that adapt different projections */
    assert_non_null(a);
    static const hbk_int some[] = {HBK_Q, HBK_N_SLOTS + HBK_Q, 2 * HBK_N_SLOTS + HBK_DOWN};
    for (int i = 0; i < 3; i++) {
        a->loras[some[i]].rank = i == 1 ? 3 : 2;
        a->loras[some[i]].alpha = i == 1 ? 1 : 2;
    }
    check_ok(hbk__adapter_lay(a, NULL, &err));
    a->values[5] = 0.5;
    t12_adapter_returns(a, &c,
                        "{\"r\":2,\"lora_alpha\":2,\"rank_pattern\":{\"layers.1.self_attn.q_proj\":3},"
                        "\"alpha_pattern\":{\"layers.1.self_attn.q_proj\":1},\"layers_to_transform\":null,"
                        "\"target_modules\":[\"model.layers.0.self_attn.q_proj\","
                        "\"model.layers.1.self_attn.q_proj\",\"model.layers.2.mlp.down_proj\"]}");
    hbk_adapter_free(a);
}

/* Promise: alpha_pattern gives each module the number of the first key that matches its name's end, as PEFT
   reads it: names, and the regular expressions that people write for them. */
static void t12_alpha_pattern(void **state)
{
    (void)state;
    /* alphas wanted of q, k of layer 0, q, k of layer 1, and the head; 6 is lora_alpha */
    static const struct {
        const char *pattern;
        double want[5];
    } cases[] = {
        {"{}", {6, 6, 6, 6, 6}},
        {"{\"q_proj\":1}", {1, 6, 1, 6, 6}},
        {"{\"_proj\":1,\"q_pro\":1,\"proj\":1}", {6, 6, 6, 6, 6}}, /* only after a dot, to the end */
        {"{\"lm_head\":1,\"layers.1.self_attn.k_proj\":2.5}", {6, 6, 6, 2.5, 1}},
        {"{\"model.layers.0.self_attn.q_proj\":3,\"q_proj\":4}", {3, 6, 4, 6, 6}}, /* the first one wins */
        {"{\"q_proj\":4,\"model.layers.0.self_attn.q_proj\":3}", {4, 6, 4, 6, 6}},
        {"{\"^model\\\\.layers\\\\.\\\\d+\\\\.self_attn\\\\.(?:q|k)_proj\":2}", {2, 2, 2, 2, 6}},
        {"{\"layers.0.*\":2}", {2, 2, 6, 6, 6}},
        {"{\".*?[^q]_proj$\":2}", {6, 2, 6, 2, 6}},
        {"{\"layers\\\\.[\\\\d]+\\\\.\\\\w+\\\\.q_proj|lm_head\":2}", {2, 6, 2, 6, 2}},
        {"{\"(model\\\\.)?layers.[1-9].self_attn.(q|k)_proj\":2}", {6, 6, 2, 2, 6}},
        {"{\"self_attn\\\\.[kq\\\\.]+_proj\":2}", {2, 2, 2, 2, 6}},
        {"{\"layers.(0|7)\\\\.self_attn[.]k_proj\":2}", {6, 2, 6, 6, 6}},
    };
    hbk_error err;
    char dir[512], config[512];
    hbk_config c = t12_config(false);
    hbk_model *base = t12_base(&c);
    hbk_adapter_options o = hbk_adapter_defaults();
    o.rank = 3;
    o.alpha = 6;
    o.targets = 1u << HBK_Q | 1u << HBK_K | 1u << HBK_LM_HEAD;
    hbk_adapter *a = t12_mixed(&c, &o);
    test_tmp(dir, "t12_alpha_pattern");
    check_ok(hbk_adapter_save(a, dir, "x", 0, &err));
    check_ok(hbk_path(config, dir, "adapter_config.json", &err));
    for (int rslora = 0; rslora < 2; rslora++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            t12_json_set(config, "alpha_pattern", cases[i].pattern);
            t12_json_set(config, "use_rslora", rslora ? "true" : "false");
            hbk_adapter *b = hbk_adapter_load(dir, base, NULL, &err);
            if (!b) fail_msg("%s: %s", cases[i].pattern, err.message);
            static const hbk_int at[] = {HBK_Q, HBK_K, HBK_N_SLOTS + HBK_Q, HBK_N_SLOTS + HBK_K,
                                         2 * HBK_N_SLOTS};
            for (int k = 0; k < 5; k++) {
                double want = cases[i].want[k] / (rslora ? sqrt(3.0) : 3);
                if (!is_near((double)b->loras[at[k]].scale, want, 1e-6))
                    fail_msg("%s: scale %d is %g, expected %g", cases[i].pattern, k,
                             (double)b->loras[at[k]].scale, want);
            }
            hbk_adapter_free(b);
        }
    hbk_adapter_free(a);
    hbk_model_free(base);
}

/* One half of a projection as MLX stores it: turned. */
static void t12_mlx_half(hbk_tensor *t, float *out, const hbk_real *x, hbk_int rows, hbk_int cols)
{
    for (hbk_int i = 0; i < rows; i++)
        for (hbk_int k = 0; k < cols; k++) out[k * rows + i] = (float)x[i * cols + k];
    snprintf(t->dtype, sizeof t->dtype, "F32");
    t->n_dims = 2;
    t->shape[0] = cols;
    t->shape[1] = rows;
    t->data = out;
    t->bytes = (size_t)(rows * cols) * sizeof *out;
}

/* Promise: MLX's adapters load: matrices turned, the scale as it stands, the last layers only. */
static void t12_adapter_mlx(void **state)
{
    (void)state;
    hbk_error err;
    char dir[512], path[512], names[4][96];
    hbk_config c = t12_config(false);
    hbk_model *base = t12_base(&c);
    hbk_adapter_options o = hbk_adapter_defaults();
    o.rank = 5;
    o.alpha = 60; /* a scale of 12 */
    o.targets = 1u << HBK_V | 1u << HBK_GATE;
    o.layer_begin = 1;
    hbk_adapter *a = t12_mixed(&c, &o);
    float *data = HBK__NEW(NULL, float, a->n_values, &err), *at = data;
    hbk_tensor t[4];
    memset(t, 0, sizeof t);
    for (int i = 0; i < 4; i++) {
        const hbk_lora *l = &a->loras[HBK_N_SLOTS + (i < 2 ? HBK_V : HBK_GATE)];
        t[i].name = names[i];
        snprintf(names[i], 96, "model.layers.1.%s.lora_%c", i < 2 ? "self_attn.v_proj" : "mlp.gate_proj",
                 i % 2 ? 'b' : 'a');
        t12_mlx_half(&t[i], at, i % 2 ? l->b : l->a, i % 2 ? l->out : l->rank, i % 2 ? l->rank : l->in);
        at += t[i].shape[0] * t[i].shape[1];
    }
    test_tmp(dir, "t12_mlx");
    check_ok(hbk_dir_make(dir, &err));
    check_ok(hbk_path(path, dir, "adapters.safetensors", &err));
    check_ok(hbk_safetensors_write(path, t, 4, &err));
    check_ok(hbk_path(path, dir, "adapter_config.json", &err));
    static const char config[] = "{\"fine_tune_type\": \"lora\", \"num_layers\": 1,"
                                 " \"lora_parameters\": {\"rank\": 5, \"dropout\": 0.0, \"scale\": 12.0}}";
    t12_put(path, config, sizeof config - 1);
    hbk_adapter *b = hbk_adapter_load(dir, base, NULL, &err);
    if (!b) fail_msg("%s", err.message);
    t12_same_adapter(a, b);
    hbk_adapter_free(b);
    t12_json_set(path, "fine_tune_type", "\"dora\"");
    check_error(hbk_adapter_load(dir, base, NULL, &err), HBK_ERROR_UNSUPPORTED, "fine_tune_type \"dora\" is");
    t12_json_set(path, "fine_tune_type", NULL);
    t12_json_set(path, "lora_parameters", "{\"rank\":5}");
    check_error(hbk_adapter_load(dir, base, NULL, &err), HBK_ERROR_FORMAT, "expected a number as scale");
    t12_json_set(path, "lora_parameters", "{\"scale\":1}");
    c.dim = 21;
    hbk_model *other = t12_base(&c);
    check_error(hbk_adapter_load(dir, other, NULL, &err), HBK_ERROR_SHAPE,
                "lora_a: shape (20,5), expected (21,rank)");
    hbk_model_free(other);
    hbk_free(NULL, data);
    hbk_adapter_free(a);
    hbk_model_free(base);
}

/* Promise: the copy of the base's head that PEFT stores beside an adapter of it is let pass if it is one,
   also rounded to bf16; another, which would change the result, is refused; so is a PyTorch checkpoint. */
static void t12_adapter_copies(void **state)
{
    (void)state;
    static const char *const names[] = {"lm_head.base_layer.weight", "model.embed_tokens.weight"};
    hbk_error err;
    char dir[512], weights[512], path[512], name[96];
    hbk_config c = t12_config(false);
    hbk_model *m = hbk_model_random(&c, 5, NULL, &err);
    hbk_adapter *a = t12_adapter(&c, 1u << HBK_Q, 6, dir, weights, "t12_copies");
    hbk_tensor t[5];
    uint16_t copy[37 * 20];
    for (int k = 0; k < 2; k++)
        for (int changed = 0; changed < 3; changed++) {
            check_ok(hbk_adapter_save(a, dir, "x", 0, &err));
            hbk_safetensors *s = hbk_safetensors_open(weights, NULL, &err);
            assert_int_equal(hbk_safetensors_count(s), 4);
            for (int i = 0; i < 4; i++) t[i] = *hbk_safetensors_at(s, i);
            t[4] = t[0];
            t[4].name = name;
            snprintf(name, sizeof name, "base_model.model.%s", names[k]);
            snprintf(t[4].dtype, sizeof t[4].dtype, "BF16");
            hbk_pack(copy, HBK_BF16, (const hbk_real *)(k ? m->embed.data : m->head.data), 37 * 20);
            if (changed == 1) copy[7] ^= 0x200;  /* one number, by half of itself or more */
            if (changed == 2) copy[30] = 0x7fff; /* NaN */
            t[4].shape[0] = 37;
            t[4].shape[1] = 20;
            t[4].data = copy;
            check_ok(hbk_path(path, dir, "other.safetensors", &err));
            check_ok(hbk_safetensors_write(path, t, 5, &err));
            hbk_safetensors_close(s);
            assert_int_equal(rename(path, weights), 0);
            hbk_adapter *b = changed ? NULL : hbk_adapter_load(dir, m, NULL, &err);
            if (changed)
                check_error(hbk_adapter_load(dir, m, NULL, &err), HBK_ERROR_UNSUPPORTED,
                            "differs from the base's");
            else if (!b)
                fail_msg("%s", err.message);
            else
                t12_same_adapter(a, b);
            hbk_adapter_free(b);
        }
    unlink(weights);
    check_error(hbk_adapter_load(dir, m, NULL, &err), HBK_ERROR_FILE, "adapter_model.safetensors");
    check_ok(hbk_path(path, dir, "adapter_model.bin", &err));
    t12_put(path, "PK", 2);
    check_error(hbk_adapter_load(dir, m, NULL, &err), HBK_ERROR_UNSUPPORTED,
                "is a PyTorch checkpoint: load and save");
    unlink(path);
    hbk_adapter_free(a);
    hbk_model_free(m);
}

/* Logits of ten tokens. */
static void t12_ten_logits(hbk_real out[10 * 37], const hbk_model *m, const hbk_adapter *a)
{
    static const int32_t ids[] = {3, 36, 0, 7, 7, 21, 14, 2, 30, 9};
    static const hbk_int start[] = {0, 10};
    hbk_error err;
    hbk_batch batch = {10, 1, ids, NULL, start};
    hbk_acts *acts = hbk_acts_new(m, a, 10, 10, HBK_KEEP_NONE, NULL, &err);
    check_ok(acts);
    check_ok(hbk_model_logits(acts, m, &batch, a, out, &err));
    hbk_acts_free(acts);
}

static double t12_apart(const hbk_real *x, const hbk_real *y)
{
    double largest = 0;
    for (int i = 0; i < 10 * 37; i++) largest = fmax(largest, fabs((double)x[i] - (double)y[i]));
    return largest;
}

/* Promise: a merged model, in memory and as a folder, gives what base and adapter give; a head that was the
   embedding becomes its own, and the embedding stays; biases come along; merged in place, the adapter can be
   taken out again. */
static void t12_merge(void **state)
{
    (void)state;
    double bar = sizeof(hbk_real) == 8 ? 1e-6 : 1e-5; /* of the folder, which is F32 */
    for (int tied = 0; tied < 2; tied++) {
        hbk_error err;
        char dir[512];
        hbk_real base[370], want[370], got[370];
        hbk_config c = t12_config(tied == 1);
        c.biases = 1u << HBK_Q | 1u << HBK_DOWN;
        hbk_model *m = hbk_model_random(&c, 5, NULL, &err), *kept = hbk_model_random(&c, 5, NULL, &err);
        for (hbk_int i = 0; i < c.dim; i++)
            m->layers[1].bias[HBK_DOWN][i] = kept->layers[1].bias[HBK_DOWN][i] = 1;
        hbk_adapter_options o = hbk_adapter_defaults();
        o.rank = 3;
        o.alpha = 3;
        o.targets |= 1u << HBK_LM_HEAD;
        o.target_rank[HBK_V] = 2;
        o.layer_end = 1;
        hbk_adapter *a = t12_mixed(&c, &o);
        t12_ten_logits(base, m, NULL);
        t12_ten_logits(want, m, a);
        assert_true(t12_apart(base, want) > 0.1);
        hbk_model *merged = hbk_adapter_merge(m, a, NULL, &err);
        if (!merged) fail_msg("%s", err.message);
        t12_ten_logits(got, merged, NULL);
        assert_true(t12_apart(got, want) < bar);
        assert_true(!merged->config.tied && merged->head.data != merged->embed.data);
        assert_memory_equal(m->values, kept->values, sizeof *m->values * (size_t)hbk_model_count(&c));
        assert_memory_equal(merged->embed.data, m->embed.data, sizeof(hbk_real) * 37 * 20);
        const hbk_matrix *q = &merged->layers[0].w[HBK_Q];
        hbk_lora_merge(got, &m->layers[0].w[HBK_Q], &a->loras[HBK_Q], 5, 6); /* rows from the middle */
        for (int i = 0; i < 6 * 20; i++) check_near(got[i], ((const hbk_real *)q->data)[5 * 20 + i], 1e-6);
        test_tmp(dir, "t12_merge");
        check_ok(hbk_model_save_merged(m, a, dir, HBK_F32, &err));
        hbk_model *loaded = hbk_model_load(dir, NULL, &err);
        if (!loaded) fail_msg("%s", err.message);
        assert_false(loaded->config.tied);
        t12_ten_logits(got, loaded, NULL);
        assert_true(t12_apart(got, want) < bar);
        if (sizeof(hbk_real) == 4) /* by panels or at once: the same numbers */
            assert_memory_equal(loaded->head.data, merged->head.data, sizeof(float) * 37 * 20);
        check_error(hbk_adapter_add(tied ? m : loaded, a, 1, &err), HBK_ERROR_OPTION,
                    tied ? "also the embedding" : "make a merged model");
        if (!tied) {
            check_ok(hbk_adapter_add(m, a, 1, &err));
            t12_ten_logits(got, m, NULL);
            assert_true(t12_apart(got, want) < bar);
            check_ok(hbk_adapter_add(m, a, -1, &err));
            t12_ten_logits(got, m, NULL);
            assert_true(t12_apart(got, base) < bar);
        }
        hbk_model_free(loaded);
        hbk_model_free(merged);
        hbk_model_free(m);
        hbk_model_free(kept);
        hbk_adapter_free(a);
    }
}

/* ---- damage ------------------------------------------------------------------- */

/* Calls `check` with every byte of the first n of the file at `path` changed to its neighbours, 0 and 255,
   then with the file cut at every length below n and at some above; `cut` tells which. The file is changed
   in place: to write it anew each time costs a hundred times as much. */
static void t12_damage(const char *path, size_t n, void (*check)(void *ctx, bool cut), void *ctx)
{
    hbk_text file = t12_get(path);
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    for (size_t i = 0; i < HBK__MIN(n, file.len); i++) {
        char keep = file.data[i], values[4] = {(char)(keep + 1), (char)(keep - 1), 0, (char)255};
        for (int k = 0; k < 4; k++) {
            if (values[k] == keep) continue;
            assert_int_equal(pwrite(fd, &values[k], 1, (off_t)i), 1);
            check(ctx, false);
        }
        assert_int_equal(pwrite(fd, &keep, 1, (off_t)i), 1);
    }
    for (size_t len = file.len; len > 0;) {
        len -= len <= n ? 1 : HBK__MIN(len - n, 1 + file.len / 50);
        assert_int_equal(ftruncate(fd, (off_t)len), 0);
        check(ctx, true);
    }
    assert_int_equal(close(fd), 0);
    hbk_text_free(&file);
}

/* What opens must be sound: tensors inside the file, one after another, each as long as its shape. */
static void t12_check_table(void *ctx, bool cut)
{
    hbk_error err;
    memset(&err, 0, sizeof err);
    hbk_safetensors *s = hbk_safetensors_open((const char *)ctx, NULL, &err);
    if (!s) {
        assert_true(err.code != HBK_ERROR_NONE && err.message[0]);
        return;
    }
    if (cut) fail_msg("a cut file was opened");
    const unsigned char *at = NULL;
    for (hbk_int i = 0; i < hbk_safetensors_count(s); i++) {
        const hbk_tensor *t = hbk_safetensors_at(s, i);
        hbk_int n = 1;
        for (hbk_int k = 0; k < t->n_dims; k++) n *= t->shape[k];
        assert_int_equal(n, t->n_elements);
        if (at) assert_ptr_equal(t->data, at);
        at = (const unsigned char *)t->data + t->bytes;
        assert_ptr_equal(hbk_safetensors_find(s, t->name), t);
    }
    assert_ptr_equal(at, s->map.data + s->map.size);
    hbk_safetensors_close(s);
}

/* Promise: no damage to a safetensors file crashes the reader, and what it accepts is sound. */
static void t12_damaged_safetensors(void **state)
{
    (void)state;
    char path[512];
    test_tmp(path, "t12_damaged.safetensors");
    static const char header[] = "{\"__metadata__\":{\"format\":\"pt\",\"c\":\"a\"},\"a\":{\"dtype\":\"F32\","
                                 "\"shape\":[2,1],\"data_offsets\":[0,8]},"
                                 "\"b\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[8,14]},"
                                 "\"e\":{\"dtype\":\"F4\",\"shape\":[2,0],\"data_offsets\":[14,14]}}   ";
    t12_header_file(path, header, 14);
    t12_damage(path, 8 + sizeof header - 1 + 14, t12_check_table, path);
}

typedef struct t12_damaged {
    const char *path;
    hbk_model *base;  /* of an adapter */
    hbk_model *model; /* what must load, if anything loads */
    hbk_adapter *adapter;
    hbk_int loaded;
} t12_damaged;

static void t12_check_damaged(void *ctx, bool cut)
{
    t12_damaged *d = (t12_damaged *)ctx;
    hbk_error err;
    memset(&err, 0, sizeof err);
    hbk_model *m = d->model ? hbk_model_load(d->path, NULL, &err) : NULL;
    hbk_adapter *a = d->adapter ? hbk_adapter_load(d->path, d->base, NULL, &err) : NULL;
    if (!m && !a) {
        assert_true(err.code != HBK_ERROR_NONE && err.message[0]);
        return;
    }
    if (cut) fail_msg("a cut file was loaded");
    d->loaded++;
    if (m) t12_same_weights(d->model, m, HBK_F32);
    if (a) assert_memory_equal(a->values, d->adapter->values, sizeof *a->values * (size_t)a->n_values);
    hbk_model_free(m);
    hbk_adapter_free(a);
}

/* Promise: no damage to a table crashes a loader, and if anything loads, it is the same weights. */
static void t12_damaged_weights(void **state)
{
    (void)state;
    hbk_error err;
    hbk_config c = t12_config(true);
    char dir[512], weights[512];
    c.n_layers = 1;
    c.vocab_size = 5;
    t12_damaged d;
    memset(&d, 0, sizeof d);
    d.path = dir;
    d.model = t12_saved(&c, HBK_F32, dir, weights, "t12_damaged");
    t12_parts p = t12_split(weights);
    size_t n = p.file.len - p.n;
    t12_parts_free(&p);
    t12_damage(weights, n, t12_check_damaged, &d);
    assert_true(d.loaded < 4 * 40); /* little but the metadata and the padding is free */
    hbk_model_free(d.model);
    d.model = NULL;
    d.base = t12_base(&c);
    d.adapter = t12_adapter(&c, 1u << HBK_K, 6, dir, weights, "t12_damaged_adapter");
    p = t12_split(weights);
    n = p.file.len - p.n;
    t12_parts_free(&p);
    t12_damage(weights, n, t12_check_damaged, &d);
    hbk_adapter_free(d.adapter);
    hbk_model_free(d.base);
    (void)err;
}

/* Promise: no damage to an index or to the table of a shard crashes the loader, and what loads is the same
   weights. */
static void t12_damaged_shards(void **state)
{
    (void)state;
    hbk_error err;
    hbk_config c = t12_config(true);
    char dir[512], weights[512], path[512];
    c.n_layers = 1;
    c.vocab_size = 5;
    json_t *map;
    t12_damaged d;
    memset(&d, 0, sizeof d);
    d.path = dir;
    d.model = t12_saved(&c, HBK_F32, dir, weights, "t12_damaged_shards");
    json_t *root = t12_deal(dir, weights, &map);
    check_ok(hbk_path(path, dir, "b.st", &err));
    t12_parts part = t12_split(path);
    hbk_text file = t12_get(path);
    t12_damage(path, part.file.len - part.n, t12_check_damaged, &d);
    t12_put(path, file.data, file.len);
    hbk_text_free(&file);
    t12_parts_free(&part);
    check_ok(hbk_path(path, dir, "model.safetensors.index.json", &err));
    char *s = json_dumps(root, JSON_COMPACT);
    t12_put(path, s, strlen(s));
    d.loaded = 0;
    t12_damage(path, strlen(s), t12_check_damaged, &d);
    assert_true(d.loaded > 0); /* total_size may be anything */
    free(s);
    json_decref(root);
    hbk_model_free(d.model);
}

static void t12_check_alive(void *ctx, bool cut)
{
    hbk_error err;
    memset(&err, 0, sizeof err);
    hbk_model *m = hbk_model_load((const char *)ctx, NULL, &err);
    if (!m) assert_true(err.code != HBK_ERROR_NONE && err.message[0]);
    if (cut) assert_null(m);
    if (m) { /* other context lengths are as good as the right one: all weights must be there to read */
        hbk_real *x = HBK__NEW(NULL, hbk_real, hbk_model_count(&m->config), &err);
        hbk_model_unpack(x, m);
        hbk_free(NULL, x);
    }
    hbk_model_free(m);
}

/* Promise: the header of a llama2.c file and a config.json may hold anything. */
static void t12_damaged_configs(void **state)
{
    (void)state;
    hbk_error err;
    hbk_config c = t12_llama2c_config(true);
    char path[512], dir[512], weights[512];
    c.n_layers = 1;
    c.eos[c.n_eos++] = 36;
    hbk_model *m = hbk_model_random(&c, 9, NULL, &err);
    test_tmp(path, "t12_damaged.bin");
    static const size_t headers[] = {28, 40, 41};
    for (int version = 0; version < 3; version++) {
        hbk_text file = t12_llama2c(m, version);
        t12_put(path, file.data, file.len);
        t12_damage(path, headers[version], t12_check_alive, path);
        hbk_text_free(&file);
    }
    hbk_model_free(m);
    c.biases = HBK_ALL_SLOTS;
    c.rope_scaling = HBK_ROPE_LLAMA3;
    c.rope_factor = 8;
    c.rope_high_freq_factor = 4;
    c.rope_original_context = 32;
    hbk_model_free(t12_saved(&c, HBK_F32, dir, weights, "t12_damaged_config"));
    static const char *const names[] = {"config.json", "generation_config.json"};
    for (int i = 0; i < 2; i++) {
        check_ok(hbk_path(path, dir, names[i], &err));
        hbk_text file = t12_get(path);
        t12_put(path, file.data, file.len - 1); /* the newline may be cut without loss */
        t12_damage(path, file.len, t12_check_alive, dir);
        t12_put(path, file.data, file.len);
        hbk_text_free(&file);
    }
}

/* ---- cost ----------------------------------------------------------------------- */

/* Promise: opening a model reads its table and its norms, and keeps no more than these: what it allocates
   does not grow with the matrices, whose pages stay in the file until they are used; nor does a session's
   cache take memory before there is something in it. */
static void t12_cost(void **state)
{
    (void)state;
    for (int layers = 2; layers <= 8; layers += 6) {
        hbk_error err;
        hbk_allocator alloc;
        hbk_config c = t12_config(false);
        memset(&alloc, 0, sizeof alloc);
        c.n_layers = layers;
        c.dim = 256;
        c.ffn_dim = 512;
        c.vocab_size = 4000;
        c.context_length = 100000;
        char dir[512], weights[512];
        hbk_model_free(t12_saved(&c, HBK_BF16, dir, weights, "t12_cost")); /* 6.7 and 14.6 MB */
        hbk_model_free(hbk_model_load(dir, NULL, &err));
        long before = test_resident();
        hbk_model *m = hbk_model_load(dir, &alloc, &err);
        check_ok(m);
        long open = test_resident();
        size_t norms = (size_t)(2 * layers + 1) * 256 * sizeof(hbk_real);
        if (alloc.live > norms + (size_t)layers * sizeof(hbk_layer) + 4096)
            fail_msg("%d layers: %zu bytes are allocated, %zu of them norms", layers, alloc.live, norms);
        if (alloc.peak > alloc.live + 40000) fail_msg("%zu bytes for a moment", alloc.peak);
        if (open - before > 500000) fail_msg("opening mapped %ld bytes in", open - before);
        hbk_session *s = hbk_session_new(m, NULL, 4, 100000, HBK_F32, &alloc, &err);
        check_ok(s);
        assert_true(alloc.live > (size_t)layers * 4 * 100000 * 2 * 12 * sizeof(hbk_real));
#ifndef __SANITIZE_ADDRESS__
        long session = test_resident();
        if (session - open > 1000000) fail_msg("a session mapped %ld bytes in", session - open);
#endif
        hbk_session_free(s);
        hbk_model_free(m);
        assert_int_equal(alloc.live, 0);
    }
}

/* ---- failing memory ----------------------------------------------------------- */

static bool t12_load_model(void *ctx, hbk_allocator *a, hbk_error *err)
{
    hbk_model *m = hbk_model_load((const char *)ctx, a, err);
    bool ok = m != NULL;
    if (ok && hbk_dir_exists((const char *)ctx)) ok = hbk_model_save(m, (const char *)ctx, HBK_F32, err);
    hbk_model_free(m);
    return ok;
}

static bool t12_load_adapter(void *ctx, hbk_allocator *a, hbk_error *err)
{
    hbk_config c = t12_config(false);
    hbk_model *base = t12_base(&c);
    hbk_adapter *b = hbk_adapter_load((const char *)ctx, base, a, err);
    bool ok = b && hbk_adapter_save(b, (const char *)ctx, "x", 0, err);
    hbk_adapter_free(b);
    hbk_model_free(base);
    return ok;
}

static bool t12_merge_both(void *ctx, hbk_allocator *a, hbk_error *err)
{
    hbk_config c = t12_config(true);
    hbk_model *m = hbk_model_random(&c, 5, NULL, NULL);
    hbk_adapter *w = hbk_adapter_new(&c, 2, 4, HBK_ALL_SLOTS | 1u << HBK_LM_HEAD, 1, NULL, NULL);
    hbk_model *merged = hbk_adapter_merge(m, w, a, err);
    m->alloc = a; /* for what saving takes */
    bool ok = merged && hbk_model_save_merged(m, w, (const char *)ctx, HBK_F16, err);
    m->alloc = NULL;
    hbk_model_free(merged);
    hbk_adapter_free(w);
    hbk_model_free(m);
    return ok;
}

static bool t12_open_table(void *ctx, hbk_allocator *a, hbk_error *err)
{
    hbk_safetensors *s = hbk_safetensors_open((const char *)ctx, a, err);
    hbk_safetensors_close(s);
    return s != NULL;
}

/* Promise: wherever memory runs out, loading and saving fail with that error and leak nothing. */
static void t12_faults(void **state)
{
    (void)state;
    hbk_error err;
    hbk_config c = t12_config(false), flat = t12_llama2c_config(false);
    char dir[512], weights[512];
    hbk_model_free(t12_saved(&c, HBK_F32, dir, weights, "t12_faults"));
    fault_sweep(t12_load_model, dir);
    fault_sweep(t12_open_table, weights);
    hbk_adapter_free(t12_adapter(&c, HBK_ALL_SLOTS, 4, dir, weights, "t12_faults_adapter"));
    check_ok(hbk_path(weights, dir, "adapter_config.json", &err));
    t12_json_set(weights, "alpha_pattern", "{\"layers.0.*\":3}");
    fault_sweep(t12_load_adapter, dir);
    fault_sweep(t12_merge_both, dir);
    hbk_model *m = hbk_model_random(&flat, 9, NULL, &err);
    for (int version = 0; version < 3; version += 2) {
        hbk_text file = t12_llama2c(m, version);
        test_tmp(dir, "t12_faults.bin");
        t12_put(dir, file.data, file.len);
        fault_sweep(t12_load_model, dir);
        hbk_text_free(&file);
    }
    hbk_model_free(m);
}

/* ---- reference files ---------------------------------------------------------- */

/* Promise: the published files load: an aliased embedding, llama2.c's two versions (the same weights), a PEFT
   adapter without metadata, an unaligned file by MLX; saved, loaded and saved again they stay the same. */
static void t12_reference_files(void **state)
{
    (void)state;
    hbk_error err;
    char path[512], first[512], second[512], a[512], b[512];
    if (!test_data(path, "checkpoints/story_hf")) skip();
    hbk_model *m = hbk_model_load(path, NULL, &err);
    if (!m) fail_msg("%s", err.message);
    assert_true(m->config.tied && m->embed.data == m->head.data && m->embed.dtype == HBK_F32);
    assert_int_equal(m->config.eos[0], 2);
    test_tmp(first, "t12_story_1");
    test_tmp(second, "t12_story_2");
    for (int t = 0; t < 3; t++) {
        check_ok(hbk_model_save(m, first, (hbk_dtype)t, &err));
        hbk_model *l = hbk_model_load(first, NULL, &err);
        if (!l) fail_msg("%s", err.message);
        t12_same_weights(m, l, (hbk_dtype)t);
        check_ok(hbk_model_save(l, second, (hbk_dtype)t, &err));
        check_ok(hbk_path(a, first, "model.safetensors", &err));
        check_ok(hbk_path(b, second, "model.safetensors", &err));
        t12_same_file(a, b);
        hbk_model_free(l);
    }
    test_data(path, "golden/lora/peft_adapter");
    hbk_adapter *w = hbk_adapter_load(path, m, NULL, &err);
    if (!w) fail_msg("%s", err.message);
    assert_int_equal(w->rank, 4);
    assert_true(w->alpha == 8 && w->targets == HBK_ALL_SLOTS);
    check_ok(hbk_adapter_save(w, first, "story", 0, &err));
    hbk_adapter *v = hbk_adapter_load(first, m, NULL, &err);
    if (!v) fail_msg("%s", err.message);
    assert_memory_equal(w->values, v->values, sizeof *w->values * (size_t)w->n_values);
    hbk_adapter_free(v);
    hbk_adapter_free(w);
    test_data(path, "adapters/mlx_test_dpo");
    check_error(hbk_adapter_load(path, m, NULL, &err), HBK_ERROR_SHAPE, "the model has 2 layers");
    hbk_config qwen = m->config; /* the shapes of the base that it was trained on */
    qwen.n_layers = 24;
    qwen.dim = 896;
    qwen.n_heads = 14;
    qwen.n_kv_heads = 2;
    qwen.head_dim = 64;
    hbk_model *base = t12_base(&qwen);
    w = hbk_adapter_load(path, base, NULL, &err);
    if (!w) fail_msg("%s", err.message);
    assert_true(w->rank == 8 && w->loras[23 * HBK_N_SLOTS + HBK_V].scale == 20);
    assert_null(w->loras[21 * HBK_N_SLOTS + HBK_V].a);
    hbk_adapter_free(w);
    hbk_model_free(base);
    hbk_model_free(m);
    test_data(path, "adapters/mlx_test_dpo/adapters.safetensors");
    hbk_safetensors *s = hbk_safetensors_open(path, NULL, &err);
    if (!s) fail_msg("%s", err.message);
    assert_int_equal(hbk_safetensors_count(s), 8);
    hbk_safetensors_close(s);
    test_data(path, "checkpoints/stories260K/stories260K.bin");
    m = hbk_model_load(path, NULL, &err);
    if (!m) fail_msg("%s", err.message);
    test_data(path, "checkpoints/stories260K/stories260K_v1.bin");
    hbk_model *n = hbk_model_load(path, NULL, &err);
    if (!n) fail_msg("%s", err.message);
    t12_same_weights(m, n, HBK_F32);
    hbk_model_free(n);
    hbk_model_free(m);
}

static const struct CMUnitTest tests_12[] = {
    cmocka_unit_test(t12_safetensors_valid),
    cmocka_unit_test(t12_safetensors_errors),
    cmocka_unit_test(t12_safetensors_write),
    cmocka_unit_test(t12_read_back),
    cmocka_unit_test(t12_model_round_trip),
    cmocka_unit_test(t12_bias_groups),
    cmocka_unit_test(t12_model_save_errors),
    cmocka_unit_test(t12_config_errors),
    cmocka_unit_test(t12_config_spellings),
    cmocka_unit_test(t12_config_accepted),
    cmocka_unit_test(t12_tied),
    cmocka_unit_test(t12_two_copies),
    cmocka_unit_test(t12_tensor_errors),
    cmocka_unit_test(t12_unaligned),
    cmocka_unit_test(t12_shards),
    cmocka_unit_test(t12_llama2c_files),
    cmocka_unit_test(t12_adapter_round_trip),
    cmocka_unit_test(t12_adapter_config),
    cmocka_unit_test(t12_adapter_tensors),
    cmocka_unit_test(t12_damaged_safetensors),
    cmocka_unit_test(t12_damaged_weights),
    cmocka_unit_test(t12_damaged_shards),
    cmocka_unit_test(t12_damaged_configs),
    cmocka_unit_test(t12_cost),
    cmocka_unit_test(t12_faults),
    cmocka_unit_test(t12_adapter_modules),
    cmocka_unit_test(t12_alpha_pattern),
    cmocka_unit_test(t12_adapter_mlx),
    cmocka_unit_test(t12_adapter_copies),
    cmocka_unit_test(t12_merge),
    cmocka_unit_test(t12_llama2c_int8),
    cmocka_unit_test(t12_reference_files),
};
