/* inspect.h - `humpback inspect`: what a file or folder holds - public domain, see humpback.h

   Facts are gathered into one JSON object, which --json prints as it is and from which the text for people is
   written, so that the two cannot disagree:

       {"path", "kind",
        "config"         sizes in words: of the loaded model, or as far as config.json tells them
        "weights"        {"files", "tensors", "values", "bytes", "types": {"BF16": {"tensors", "bytes"}}}
        "tensors"        [{"name", "type", "shape", "bytes"}]
        "tokenizer"      {"file", "kind", "size", "bos", "eos", "unk", "added", "adds_bos"}
        "chat_template"  {"recognised": NAME} or {"unknown": its first line}; null: none
        "memory"         bytes of the weights, of the cache per token and of a full context
        "tokenizer_refused", "template_refused"   why generate refuses a model whose weights load
        "adapter", "recipe", "metadata", "keys", "run"   where the thing has them
        "not_supported"  the message with which the library refuses a variant
        "broken"         or one about what is missing or damaged; neither: it loads}

   What the library cannot load is inspected all the same, out of its files: a yarn model still has layers.

       1  words      2  tensors      3  configurations      4  tokenizers and chat templates
       5  kinds of things            6  text for people     7  the command

   Include after cli.h. */

#ifndef TOOL_INSPECT_H
#define TOOL_INSPECT_H

#include "cli.h"

#include <dirent.h>
#include <jansson.h>

static const cli_flag inspect_flags[] = {
    {"tensors", CLI_SWITCH, NULL, NULL, "every tensor on a line of its own", 0, 0, CLI_FREE},
    {"model", CLI_TEXT, "M", "(the base that an adapter names)", "the base to try an adapter on", 0, 0,
     CLI_FREE},
    {"json", CLI_SWITCH, NULL, NULL, "the facts as one JSON object on stdout, every tensor included", 0, 0,
     CLI_FREE},
    CLI_END};
static const cli_group inspect_group = {"Flags", inspect_flags, NULL, NULL};

/* ---- 1 words ------------------------------------------------------------------------ */

/* "12 bytes", "65.5 kB", "2.65 MB". */
static const char *inspect_bytes(double n, char out[32])
{
    static const char units[] = "kMGT";
    int unit = -1;
    for (; n >= 999.5 && unit < 3; unit++) n /= 1000;
    if (unit < 0)
        snprintf(out, 32, "%.0f bytes", n);
    else
        snprintf(out, 32, "%.3g %cB", n, units[unit]);
    return out;
}

/* "1.10 billion", "662,272". */
static const char *inspect_count(double n, char out[32])
{
    if (n >= 1e9)
        snprintf(out, 32, "%.2f billion", n / 1e9);
    else if (n >= 1e6)
        snprintf(out, 32, "%.1f million", n / 1e6);
    else if (n >= 1e3)
        snprintf(out, 32, "%.0f,%03d", floor(n / 1e3), (int)fmod(n, 1e3));
    else
        snprintf(out, 32, "%.0f", n);
    return out;
}

static json_int_t inspect_int(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return json_is_integer(v) ? json_integer_value(v) : -1;
}

static const char *inspect_string(const json_t *o, const char *key)
{
    return json_string_value(json_object_get(o, key));
}

/* A text as JSON; bytes that are none as a note. */
static json_t *inspect_text(const char *s, size_t n)
{
    json_t *text = json_stringn(s, n);
    return text ? text : json_string("(bytes that are no UTF-8)");
}

/* The name of a file without its folders. */
static json_t *inspect_base_name(const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    return inspect_text(name, strlen(name));
}

/* A JSON file that may be absent or broken: NULL then. */
static json_t *inspect_file(const char *dir, const char *name)
{
    char path[512];
    return hbk_path(path, dir, name, NULL) && hbk_file_exists(path) ? hbk_json_read(path, NULL) : NULL;
}

static bool inspect_has(const char *dir, const char *name)
{
    char path[512];
    return hbk_path(path, dir, name, NULL) && hbk_file_exists(path);
}

/* Why the library does not load a thing; the first reason stays. */
static void inspect_refused(json_t *facts, const hbk_error *e)
{
    if (json_object_get(facts, "not_supported") || json_object_get(facts, "broken")) return;
    json_object_set_new(facts, e->code == HBK_ERROR_UNSUPPORTED ? "not_supported" : "broken",
                        json_string(e->message));
}

/* ---- 2 tensors ---------------------------------------------------------------------- */

/* Adds what is known of a tensor of the file `path`. A name that JSON cannot hold is an error: without it the
   list would be of another model. */
static bool inspect_add_tensor(json_t *tensors, const char *path, const char *name, const char *type,
                               const hbk_int *shape, hbk_int n_dims, size_t bytes, hbk_error *err)
{
    char upper[16];
    json_t *dims = json_array();
    snprintf(upper, sizeof upper, "%s", type);
    for (char *c = upper; *c; c++)
        if (*c >= 'a' && *c <= 'z') *c = (char)(*c - 'a' + 'A');
    for (hbk_int i = 0; i < n_dims; i++) json_array_append_new(dims, json_integer(shape[i]));
    json_t *tensor = json_pack("{s:o, s:s, s:s, s:I}", "shape", dims, "name", name, "type", upper, "bytes",
                               (json_int_t)bytes);
    return (tensor && json_array_append_new(tensors, tensor) == 0) ||
           hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0, "the name of tensor %zu is no UTF-8",
                       json_array_size(tensors));
}

/* The tensors of a safetensors file; false if it is none. */
static bool inspect_safetensors(json_t *tensors, const char *path, hbk_error *err)
{
    hbk_safetensors *s = hbk_safetensors_open(path, NULL, err);
    bool ok = s != NULL;
    for (hbk_int i = 0; ok && i < hbk_safetensors_count(s); i++) {
        const hbk_tensor *t = hbk_safetensors_at(s, i);
        ok = inspect_add_tensor(tensors, path, t->name, t->dtype, t->shape, t->n_dims, t->bytes, err);
    }
    hbk_safetensors_close(s);
    return ok;
}

static double inspect_values(const json_t *tensor)
{
    double n = 1;
    size_t i;
    json_t *dim;
    json_array_foreach(json_object_get(tensor, "shape"), i, dim) n *= (double)json_integer_value(dim);
    return n;
}

/* Sums the tensors up. `files`: names of the files that hold them, or NULL. */
static json_t *inspect_weights(const json_t *tensors, json_t *files)
{
    double values = 0, bytes = 0;
    json_t *types = json_object();
    for (size_t i = 0; i < json_array_size(tensors); i++) {
        const json_t *t = json_array_get(tensors, i);
        const char *type = inspect_string(t, "type"), *name = inspect_string(t, "name");
        json_int_t size = inspect_int(t, "bytes");
        json_t *sum = json_object_get(types, type);
        bytes += (double)size;
        if (!strstr(name, "rotary_emb.inv_freq") && !strstr(name, "rope_freqs")) values += inspect_values(t);
        json_object_set_new(types, type,
                            json_pack("{s:I, s:I}", "tensors", sum ? inspect_int(sum, "tensors") + 1 : 1,
                                      "bytes", size + (sum ? inspect_int(sum, "bytes") : 0)));
    }
    return json_pack("{s:o, s:I, s:I, s:I, s:o}", "files", files ? files : json_array(), "tensors",
                     (json_int_t)json_array_size(tensors), "values", (json_int_t)values, "bytes",
                     (json_int_t)bytes, "types", types);
}

/* ---- 3 configurations --------------------------------------------------------------- */

/* Of a model that the library has loaded, whatever it came from. */
static json_t *inspect_config(const hbk_config *c, const char *architecture)
{
    static const char *const ropes[] = {"default", "linear", "llama3"};
    json_t *eos = json_array(), *biases = json_array();
    for (hbk_int i = 0; i < c->n_eos; i++) json_array_append_new(eos, json_integer(c->eos[i]));
    for (int s = 0; s < HBK_N_SLOTS; s++)
        if (c->biases >> s & 1) json_array_append_new(biases, json_string(hbk_slot_name((hbk_slot)s)));
    json_t *rope = json_pack("{s:s, s:f}", "type", ropes[c->rope_scaling], "theta", c->rope_theta);
    if (c->rope_scaling != HBK_ROPE_DEFAULT) json_object_set_new(rope, "factor", json_real(c->rope_factor));
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:f, s:b, s:o, s:i, s:o}",
                     "architecture", architecture ? architecture : "llama", "layers", (json_int_t)c->n_layers,
                     "width", (json_int_t)c->dim, "ffn", (json_int_t)c->ffn_dim, "heads",
                     (json_int_t)c->n_heads, "kv_heads", (json_int_t)c->n_kv_heads, "head_dim",
                     (json_int_t)c->head_dim, "vocabulary", (json_int_t)c->vocab_size, "context",
                     (json_int_t)c->context_length, "rope", rope, "norm_eps", c->rms_norm_eps, "tied",
                     c->tied, "biases", biases, "bos", (int)c->bos, "eos", eos);
}

static const char *inspect_architecture(const json_t *config)
{
    const char *name = json_string_value(json_array_get(json_object_get(config, "architectures"), 0));
    return name ? name : inspect_string(config, "model_type");
}

/* Of a config.json that the library refuses: what it says, under the names that architectures use. */
static json_t *inspect_config_json(const json_t *j)
{
    static const char *const names[][4] = {
        {"layers", "num_hidden_layers", "n_layer", "num_layers"},
        {"width", "hidden_size", "n_embd", "d_model"},
        {"ffn", "intermediate_size", "n_inner", "ffn_dim"},
        {"heads", "num_attention_heads", "n_head", "num_heads"},
        {"kv_heads", "num_key_value_heads", "num_attention_heads", "n_head"},
        {"head_dim", "head_dim", "", ""},
        {"experts", "num_local_experts", "num_experts", ""},
        {"vocabulary", "vocab_size", "", ""},
        {"context", "max_position_embeddings", "n_positions", "n_ctx"},
        {"window", "sliding_window", "", ""}};
    const char *architecture = inspect_architecture(j);
    json_t *o = json_pack("{s:s}", "architecture", architecture ? architecture : "unknown");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        for (int k = 1; k < 4 && !json_object_get(o, names[i][0]); k++)
            if (inspect_int(j, names[i][k]) >= 0)
                json_object_set(o, names[i][0], json_object_get(j, names[i][k]));
    json_int_t heads = inspect_int(o, "heads"), width = inspect_int(o, "width");
    if (!json_object_get(o, "head_dim") && heads > 0 && width > 0)
        json_object_set_new(o, "head_dim", json_integer(width / heads));
    const json_t *scaling = json_object_get(j, "rope_scaling"), *theta = json_object_get(j, "rope_theta");
    if (!json_is_object(scaling)) scaling = json_object_get(j, "rope_parameters");
    const char *type = inspect_string(scaling, "rope_type");
    if (!type) type = inspect_string(scaling, "type");
    if (!theta) theta = json_object_get(scaling, "rope_theta");
    json_t *rope = json_pack("{s:s}", "type", type ? type : "default");
    if (json_is_number(theta)) json_object_set_new(rope, "theta", json_real(json_number_value(theta)));
    if (json_is_number(json_object_get(scaling, "factor")))
        json_object_set_new(rope, "factor", json_real(json_number_value(json_object_get(scaling, "factor"))));
    json_object_set_new(o, "rope", rope);
    if (json_is_boolean(json_object_get(j, "tie_word_embeddings")))
        json_object_set(o, "tied", json_object_get(j, "tie_word_embeddings"));
    return o;
}

/* What a conversation needs: weights, which are mapped and shared, and keys and values of every token. */
static json_t *inspect_memory(const hbk_config *c, const json_t *weights)
{
    double per_token =
        2.0 * (double)c->n_layers * (double)c->n_kv_heads * (double)c->head_dim * (double)sizeof(hbk_real);
    json_int_t bytes = inspect_int(weights, "bytes");
    double full = (double)bytes + per_token * (double)c->context_length;
    return json_pack("{s:I, s:I, s:I}", "weights_bytes", bytes, "cache_bytes_per_token",
                     (json_int_t)per_token, "full_context_bytes", (json_int_t)full);
}

/* ---- 4 tokenizers and chat templates ------------------------------------------------- */

static json_t *inspect_piece(const hbk_tokenizer *t, int32_t id)
{
    const char *piece = id >= 0 ? hbk_tokenizer_piece(t, id) : NULL;
    return piece ? json_pack("{s:i, s:o}", "id", (int)id, "piece", inspect_text(piece, strlen(piece)))
                 : json_null();
}

/* What the library knows of a tokenizer once it has loaded it. */
static void inspect_vocabulary(json_t *o, const char *path)
{
    hbk_error e;
    hbk_tokenizer *t = hbk_tokenizer_load(path, NULL, &e);
    if (!t) {
        inspect_refused(o, &e);
        return;
    }
    json_object_set_new(o, "size", json_integer(hbk_tokenizer_size(t)));
    json_object_set_new(o, "bos", inspect_piece(t, hbk_tokenizer_bos(t)));
    json_object_set_new(o, "eos", inspect_piece(t, hbk_tokenizer_eos(t)));
    json_object_set_new(o, "unk", inspect_piece(t, hbk_tokenizer_unk(t)));
    json_object_set_new(o, "adds_bos", json_boolean(hbk_tokenizer_adds_bos(t)));
    hbk_tokenizer_free(t);
}

/* What tells the families of tokenizer.json apart. */
static void inspect_tokenizer_json(json_t *o, const char *path)
{
    json_t *root = hbk_json_read(path, NULL);
    const json_t *model = json_object_get(root, "model"), *added = json_object_get(root, "added_tokens");
    const char *type = inspect_string(model, "type");
    char *text = root ? json_dumps(json_object_get(root, "pre_tokenizer"), JSON_ENCODE_ANY) : NULL;
    const char *cut = text && strstr(text, "\"ByteLevel\"") ? "byte-level" : "SentencePiece style";
    char kind[128];
    snprintf(kind, sizeof kind, "%.60s, %s", type ? type : "BPE", cut);
    json_object_set_new(o, "kind", inspect_text(kind, strlen(kind)));
    if (json_object_size(json_object_get(model, "vocab")))
        json_object_set_new(o, "size",
                            json_integer((json_int_t)json_object_size(json_object_get(model, "vocab"))));
    json_object_set_new(o, "added", json_integer((json_int_t)json_array_size(added)));
    free(text);
    json_decref(root);
}

/* Of a folder or a file; JSON null if there is none. */
static json_t *inspect_tokenizer(const char *path)
{
    static const char *const files[][2] = {
        {"tokenizer.json", "BPE"}, {"tokenizer.model", "SentencePiece BPE"}, {"tokenizer.bin", "llama2.c"}};
    const char *name = hbk_dir_exists(path) ? NULL : path, *dot = strrchr(path, '.');
    char file[512];
    int k = dot && !strcmp(dot, ".json") ? 0 : dot && !strcmp(dot, ".bin") ? 2 : 1;
    for (int i = 0; i < 3 && hbk_dir_exists(path) && !name; i++)
        if (inspect_has(path, files[i][0])) name = files[k = i][0];
    if (!name) return json_null();
    if (name == path ? snprintf(file, sizeof file, "%s", path) >= (int)sizeof file
                     : !hbk_path(file, path, name, NULL))
        return json_null();
    json_t *o = json_pack("{s:o, s:s}", "file", inspect_base_name(file), "kind", files[k][1]);
    if (k == 0) inspect_tokenizer_json(o, file);
    hbk_mapping map; /* a SentencePiece model begins with the tag of its first piece, tiktoken with base64 */
    if (k == 1 && hbk_mapping_open(&map, file, NULL)) {
        if (map.size > 0 && map.data[0] != 0x0a)
            json_object_set_new(o, "kind", json_string("tiktoken, byte-level"));
        hbk_mapping_close(&map);
    }
    inspect_vocabulary(o, path);
    return o;
}

/* `source`: the text of the chat template that stands in the model at `path`. */
static json_t *inspect_chat(const char *path, const char *source)
{
    size_t begin = strspn(source, " \t\r\n");
    if (!source[begin]) return json_null();
    hbk_template *t = hbk_template_for_model(path, NULL, NULL);
    char line[80];
    snprintf(line, sizeof line, "%.*s", (int)HBK__MIN(strcspn(source + begin, "\r\n"), 76), source + begin);
    while (!hbk_utf8_valid(line, strlen(line), NULL)) line[strlen(line) - 1] = 0;
    json_t *o = json_pack("{s:s}", t ? "recognised" : "unknown", t ? hbk_template_name(t) : line);
    hbk_template_free(t);
    return o;
}

/* Whether generate would find a tokenizer, and a template that it can spell; why not, where it would not. */
static void inspect_try_text(json_t *facts, const char *path)
{
    hbk_error e;
    hbk_tokenizer *tok = hbk_tokenizer_load(path, NULL, &e);
    if (!tok) json_object_set_new(facts, "tokenizer_refused", json_string(e.message));
    hbk_template *t = tok ? hbk_template_for_model(path, NULL, NULL) : NULL;
    if (t && !hbk_template_check(t, tok, &e))
        json_object_set_new(facts, "template_refused", json_string(hbk_template_name(t)));
    hbk_template_free(t);
    hbk_tokenizer_free(tok);
}

/* ---- 5 kinds of things --------------------------------------------------------------- */

/* Names of the weight files of a folder: model.safetensors, or the shards of an index. */
static json_t *inspect_weight_files(const char *dir)
{
    json_t *names = json_array();
    if (inspect_has(dir, "model.safetensors")) {
        json_array_append_new(names, json_string("model.safetensors"));
        return names;
    }
    json_t *index = inspect_file(dir, "model.safetensors.index.json"), *shard, *seen = json_object();
    const char *tensor;
    json_object_foreach(json_object_get(index, "weight_map"), tensor, shard)
    {
        const char *name = json_string_value(shard);
        if (!name || strchr(name, '/') || json_object_get(seen, name)) continue;
        json_object_set_new(seen, name, json_true());
        json_array_append_new(names, json_string(name));
    }
    json_decref(index);
    json_decref(seen);
    return names;
}

/* How humpback finetuned it, where it did. */
static void inspect_recipe(json_t *facts, const char *dir)
{
    static const char *const keys[] = {"mode",          "use",       "tag_seed", "tag_web",
                                       "inference_tag", "best_step", "val_loss"};
    json_t *recipe = inspect_file(dir, "humpback.json");
    if (!recipe) return;
    json_t *o = json_object();
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (json_object_get(recipe, keys[i])) json_object_set(o, keys[i], json_object_get(recipe, keys[i]));
    const char *name = inspect_string(json_object_get(recipe, "template"), "name");
    json_object_set_new(o, "template", name ? json_string(name) : json_null());
    json_object_set_new(facts, "recipe", o);
    json_decref(recipe);
}

static bool inspect_model_folder(json_t *facts, const char *dir)
{
    char path[512];
    hbk_error e;
    hbk_text chat;
    memset(&chat, 0, sizeof chat);
    json_t *files = inspect_weight_files(dir), *tensors = json_array(),
           *config = inspect_file(dir, "config.json");
    json_object_set_new(facts, "kind", json_string("Hugging Face folder"));
    hbk_model *m = hbk_model_load(dir, NULL, &e);
    if (!m) inspect_refused(facts, &e);
    json_object_set_new(facts, "config",
                        m ? inspect_config(&m->config, inspect_architecture(config))
                          : inspect_config_json(config));
    for (size_t i = 0; i < json_array_size(files); i++)
        if (!hbk_path(path, dir, json_string_value(json_array_get(files, i)), &e) ||
            !inspect_safetensors(tensors, path, &e))
            inspect_refused(facts, &e);
    json_t *weights = inspect_weights(tensors, files);
    json_object_set_new(facts, "weights", weights);
    json_object_set_new(facts, "tensors", tensors);
    json_object_set_new(facts, "tokenizer", inspect_tokenizer(dir));
    if (!hbk__chat_template(dir, &chat, NULL)) hbk_text_clear(&chat);
    json_object_set_new(facts, "chat_template", inspect_chat(dir, hbk_text_string(&chat)));
    if (m) json_object_set_new(facts, "memory", inspect_memory(&m->config, weights));
    if (m) inspect_try_text(facts, dir);
    inspect_recipe(facts, dir);
    hbk_text_free(&chat);
    hbk_model_free(m);
    json_decref(config);
    return true;
}

/* A single safetensors file: tensors, and what __metadata__ says. */
static bool inspect_safetensors_file(json_t *facts, const char *path, hbk_error *err)
{
    json_t *tensors = json_array(), *header = NULL;
    hbk_mapping map;
    json_object_set_new(facts, "kind", json_string("safetensors file"));
    json_object_set_new(facts, "tensors", tensors);
    if (!inspect_safetensors(tensors, path, err) || !hbk_mapping_open(&map, path, err)) return false;
    uint64_t n = 0; /* checked when it was opened */
    for (int i = 0; i < 8; i++) n |= (uint64_t)map.data[i] << 8 * i;
    if (n <= map.size - 8) header = json_loadb((const char *)map.data + 8, (size_t)n, JSON_ALLOW_NUL, NULL);
    hbk_mapping_close(&map);
    json_t *meta = json_object_get(header, "__metadata__");
    json_object_set(facts, "metadata", meta ? meta : json_null());
    json_decref(header);
    json_object_set_new(facts, "weights", inspect_weights(tensors, NULL));
    return true;
}

/* A llama2.c checkpoint: one that loads, or one that says by its first bytes what it is. */
static bool inspect_llama2c(json_t *facts, const char *path, hbk_error *err)
{
    char name[96], label[40];
    hbk_matrix w;
    hbk_mapping map;
    if (!hbk_mapping_open(&map, path, err)) return false;
    bool magic = map.size >= 8 && memcmp(map.data, "24ka", 4) == 0;
    snprintf(label, sizeof label, "llama2.c checkpoint, version %d", magic ? (int)map.data[4] : 0);
    hbk_mapping_close(&map);
    hbk_error e;
    hbk_model *m = hbk_model_load(path, NULL, &e);
    if (!m && !magic) {
        if (err) *err = e;
        return false;
    }
    json_object_set_new(facts, "kind", json_string(label));
    if (!m) {
        inspect_refused(facts, &e);
        return true;
    }
    json_t *tensors = json_array();
    bool ok = true;
    for (hbk_int i = 0; ok && hbk_tensor_at(m, i, name, &w); i++) {
        hbk_int shape[2] = {w.rows, w.cols};
        int vector = w.rows == 1; /* norms, and what is as wide as they are */
        ok = inspect_add_tensor(tensors, path, name, hbk_dtype_name(w.dtype), shape + vector, 2 - vector,
                                hbk_dtype_size(w.dtype, w.rows * w.cols), err);
    }
    json_t *weights = inspect_weights(tensors, NULL);
    json_object_set_new(facts, "config", inspect_config(&m->config, "llama"));
    json_object_set_new(facts, "tokenizer", json_null());
    json_object_set_new(facts, "weights", weights);
    json_object_set_new(facts, "tensors", tensors);
    json_object_set_new(facts, "memory", inspect_memory(&m->config, weights));
    hbk_model_free(m);
    return ok;
}

/* Adds 1 to the number under `key`. */
static void inspect_tally(json_t *o, const char *key)
{
    json_object_set_new(o, key, json_integer(HBK__MAX(inspect_int(o, key), 0) + 1));
}

/* Ranks, projections and layers out of the names "...layers.3.self_attn.q_proj.lora_A.weight" (PEFT),
   "...q_proj.lora_a" (MLX) and "blk.3.attn_q.weight.lora_a" (GGUF). The rank is the smaller side. */
static json_t *inspect_lora(const json_t *tensors)
{
    json_t *ranks = json_object(), *targets = json_object(), *layers = json_object(), *other = json_array();
    double values = 0;
    for (size_t i = 0; i < json_array_size(tensors); i++) {
        const json_t *t = json_array_get(tensors, i), *shape = json_object_get(t, "shape");
        const char *name = inspect_string(t, "name"), *lora = strstr(name, ".lora_");
        json_int_t rows = json_integer_value(json_array_get(shape, 0)),
                   cols = json_integer_value(json_array_get(shape, 1));
        char part[64];
        if (!lora || json_array_size(shape) != 2) {
            json_array_append_new(other, json_string(name));
            continue;
        }
        values += inspect_values(t);
        if (lora[6] != 'A' && lora[6] != 'a') continue;
        snprintf(part, sizeof part, "%lld", (long long)HBK__MIN(rows, cols));
        inspect_tally(ranks, part);
        if (lora - name > 7 && memcmp(lora - 7, ".weight", 7) == 0) lora -= 7;
        const char *from = lora;
        while (from > name && from[-1] != '.') from--;
        snprintf(part, sizeof part, "%.*s", (int)HBK__MIN(lora - from, 60), from);
        inspect_tally(targets, part);
        const char *layer = strstr(name, "layers.");
        layer = layer ? layer + 7 : strncmp(name, "blk.", 4) == 0 ? name + 4 : NULL;
        if (!layer) continue;
        snprintf(part, sizeof part, "%.*s", (int)HBK__MIN(strspn(layer, "0123456789"), 20), layer);
        inspect_tally(layers, part);
    }
    return json_pack("{s:o, s:o, s:o, s:I, s:o}", "ranks", ranks, "targets", targets, "layers", layers,
                     "values", (json_int_t)values, "other_tensors", other);
}

/* alpha, and, where all ranks are the same, what it makes of them. */
static void inspect_scale(json_t *lora, double alpha, bool rslora)
{
    json_t *ranks = json_object_get(lora, "ranks");
    const char *rank = json_object_iter_key(json_object_iter(ranks));
    double r = rank && json_object_size(ranks) == 1 ? strtod(rank, NULL) : 0;
    json_object_set_new(lora, "alpha", json_real(alpha));
    json_object_set_new(lora, "rslora", json_boolean(rslora));
    if (r > 0) json_object_set_new(lora, "scale", json_real(alpha / (rslora ? sqrt(r) : r)));
}

/* Tries the adapter on its base, if that is at hand. */
static void inspect_try_adapter(json_t *facts, const char *dir, const char *base)
{
    hbk_error e;
    hbk_model *m = base && hbk_file_exists(base) ? hbk_model_load(base, NULL, NULL) : NULL;
    json_object_set_new(facts, "tried_on", m ? json_string(base) : json_null());
    if (!m) return;
    hbk_adapter *a = hbk_adapter_load(dir, m, NULL, &e);
    if (!a) inspect_refused(facts, &e);
    hbk_adapter_free(a);
    hbk_model_free(m);
}

/* What adapter_config.json says beside the tensors, in PEFT's words or in MLX's, whose scale is not divided
   by the rank. */
static void inspect_adapter_options(json_t *lora, const json_t *config, bool mlx)
{
    const json_t *alpha = json_object_get(config, "lora_alpha"),
                 *scale = json_object_get(json_object_get(config, "lora_parameters"), "scale");
    const char *base = inspect_string(config, mlx ? "model" : "base_model_name_or_path"),
               *type = inspect_string(config, "peft_type");
    bool patterns = json_object_size(json_object_get(config, "rank_pattern")) ||
                    json_object_size(json_object_get(config, "alpha_pattern"));
    json_object_set_new(lora, "base", base ? json_string(base) : json_null());
    json_object_set_new(lora, "type", json_string(type ? type : mlx ? "MLX" : "unknown"));
    json_object_set_new(lora, "patterns", json_boolean(patterns));
    if (alpha)
        inspect_scale(lora, json_number_value(alpha), json_is_true(json_object_get(config, "use_rslora")));
    if (scale) json_object_set_new(lora, "scale", json_real(json_number_value(scale)));
}

static bool inspect_adapter(json_t *facts, const char *dir, const char *base, hbk_error *err)
{
    char path[512];
    hbk_error e;
    json_t *tensors = json_array(), *config = inspect_file(dir, "adapter_config.json");
    bool mlx = !inspect_has(dir, "adapter_model.safetensors") && inspect_has(dir, "adapters.safetensors");
    const char *file = mlx ? "adapters.safetensors" : "adapter_model.safetensors";
    json_object_set_new(facts, "kind", json_string(mlx ? "MLX adapter" : "PEFT adapter"));
    if (!config) return hbk_fail_at(err, HBK_ERROR_FORMAT, dir, 0, "its adapter_config.json is no JSON");
    if (!hbk_path(path, dir, file, &e) || !inspect_safetensors(tensors, path, &e)) inspect_refused(facts, &e);
    json_t *o = inspect_lora(tensors);
    inspect_adapter_options(o, config, mlx);
    json_object_set_new(facts, "adapter", o);
    json_object_set_new(facts, "weights", inspect_weights(tensors, json_pack("[s]", file)));
    json_object_set_new(facts, "tensors", tensors);
    inspect_try_adapter(facts, dir, base ? base : inspect_string(o, "base"));
    inspect_recipe(facts, dir);
    json_decref(config);
    return true;
}

/* A GGUF value as JSON. */
static json_t *inspect_gguf_element(const hbk_gguf_value *v, hbk_int i)
{
    hbk_int whole;
    double real;
    bool yes;
    size_t n;
    const char *s = hbk_gguf_string_at(v, i, &n);
    if (s) return inspect_text(s, n);
    if (hbk_gguf_bool_at(v, i, &yes)) return json_boolean(yes);
    if (hbk_gguf_int_at(v, i, &whole)) return json_integer(whole);
    if (!hbk_gguf_real_at(v, i, &real)) return json_string("(beyond 63 bits)");
    char digits[32]; /* of an f32 the few that tell it from its neighbours: 1e-6, not 9.99999997e-7 */
    for (int k = 6; k <= 9 && v->type == HBK_GGUF_F32; k++) {
        snprintf(digits, sizeof digits, "%.*g", k, real);
        if ((float)strtod(digits, NULL) != (float)real) continue;
        real = strtod(digits, NULL);
        break;
    }
    return isfinite(real) ? json_real(real) : json_string("(not finite)");
}

/* A value; of an array its type, length and first elements. */
static json_t *inspect_gguf_value(const hbk_gguf_value *v)
{
    enum { FEW = 3 };
    if (!v->is_array) return inspect_gguf_element(v, 0);
    json_t *first = json_array();
    for (hbk_int k = 0; k < v->n && k < FEW; k++) json_array_append_new(first, inspect_gguf_element(v, k));
    return json_pack("{s:s, s:I, s:o}", "array", hbk_gguf_type_name(v->type), "n", (json_int_t)v->n, "first",
                     first);
}

/* Every key and its value into `keys`; one that JSON cannot hold is an error. */
static bool inspect_gguf_keys(const hbk_gguf *g, const char *path, json_t *keys, hbk_error *err)
{
    for (hbk_int i = 0; i < hbk_gguf_key_count(g); i++) {
        const hbk_gguf_value *v = hbk_gguf_key_at(g, i);
        if (json_object_set_new(keys, v->key, inspect_gguf_value(v)) != 0)
            return hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0, "the name of key %lld is no UTF-8",
                               (long long)i);
    }
    return true;
}

/* The sizes that an architecture which the library refuses tells by its keys. */
static json_t *inspect_gguf_config(const json_t *keys)
{
    static const char *const names[][2] = {{"layers", "block_count"},
                                           {"width", "embedding_length"},
                                           {"ffn", "feed_forward_length"},
                                           {"heads", "attention.head_count"},
                                           {"kv_heads", "attention.head_count_kv"},
                                           {"head_dim", "attention.key_length"},
                                           {"experts", "expert_count"},
                                           {"vocabulary", "vocab_size"},
                                           {"context", "context_length"},
                                           {"window", "attention.sliding_window"}};
    const char *architecture = inspect_string(keys, "general.architecture");
    char key[160];
    json_t *o = json_pack("{s:s}", "architecture", architecture ? architecture : "unknown");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(key, sizeof key, "%.80s.%s", architecture ? architecture : "", names[i][1]);
        if (inspect_int(keys, key) >= 0) json_object_set(o, names[i][0], json_object_get(keys, key));
    }
    snprintf(key, sizeof key, "%.80s.rope.scaling.type", architecture ? architecture : "");
    json_t *rope =
        json_pack("{s:s}", "type", inspect_string(keys, key) ? inspect_string(keys, key) : "default");
    snprintf(key, sizeof key, "%.80s.rope.freq_base", architecture ? architecture : "");
    if (json_is_number(json_object_get(keys, key)))
        json_object_set_new(rope, "theta", json_real(json_number_value(json_object_get(keys, key))));
    json_object_set_new(o, "rope", rope);
    return o;
}

/* The vocabulary in a GGUF file, by its keys where the library refuses it. */
static json_t *inspect_gguf_tokenizer(const char *path, const json_t *keys)
{
    const char *model = inspect_string(keys, "tokenizer.ggml.model"),
               *pre = inspect_string(keys, "tokenizer.ggml.pre");
    char kind[160];
    if (!model) return json_null();
    snprintf(kind, sizeof kind, "%.40s%s%s%.40s",
             strcmp(model, "llama") == 0  ? "SentencePiece BPE"
             : strcmp(model, "gpt2") == 0 ? "BPE, byte-level"
                                          : model,
             pre ? ", pre-tokeniser " : "", pre ? pre : "", "");
    json_t *o =
        json_pack("{s:o, s:o}", "file", inspect_base_name(path), "kind", inspect_text(kind, strlen(kind)));
    inspect_vocabulary(o, path);
    json_int_t n = inspect_int(json_object_get(keys, "tokenizer.ggml.tokens"), "n");
    if (!json_object_get(o, "size") && n >= 0) json_object_set_new(o, "size", json_integer(n));
    return o;
}

/* Names of the files that a model consists of, the first of which is `path`. */
static json_t *inspect_gguf_files(const json_t *keys, const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path, *part = strstr(name, "-00001-of-");
    json_t *files = json_pack("[o]", inspect_base_name(path));
    for (json_int_t i = 2; part && i <= inspect_int(keys, "split.count"); i++) {
        char other[512];
        snprintf(other, sizeof other, "%.*s-%05lld%s", (int)(part - name), name, (long long)i, part + 6);
        json_array_append_new(files, inspect_text(other, strlen(other)));
    }
    return files;
}

/* "keys", "tensors" and "weights" of a GGUF file. */
static bool inspect_gguf_contents(json_t *facts, const hbk_gguf *g, const char *path, hbk_error *err)
{
    json_t *keys = json_object(), *tensors = json_array();
    json_object_set_new(facts, "keys", keys);
    json_object_set_new(facts, "tensors", tensors);
    bool ok = inspect_gguf_keys(g, path, keys, err);
    for (hbk_int i = 0; ok && i < hbk_gguf_tensor_count(g); i++) {
        const hbk_gguf_tensor *t = hbk_gguf_tensor_at(g, i);
        ok = inspect_add_tensor(tensors, path, t->name, t->type, t->shape, t->n_dims, t->bytes, err);
    }
    if (ok) json_object_set_new(facts, "weights", inspect_weights(tensors, inspect_gguf_files(keys, path)));
    return ok;
}

/* A GGUF file: a model, or an adapter for one. */
static bool inspect_gguf(json_t *facts, const char *path, const char *base, hbk_error *err)
{
    hbk_error e;
    hbk_gguf *g = hbk_gguf_open(path, NULL, err);
    bool read = g && inspect_gguf_contents(facts, g, path, err);
    bool empty = read && hbk_gguf_tensor_count(g) == 0;
    hbk_gguf_close(g);
    if (!read) return false;
    const json_t *keys = json_object_get(facts, "keys"), *tensors = json_object_get(facts, "tensors"),
                 *weights = json_object_get(facts, "weights");
    const char *type = inspect_string(keys, "general.type"),
               *chat = inspect_string(keys, "tokenizer.chat_template");
    bool adapter = type && strcmp(type, "adapter") == 0;
    json_object_set_new(facts, "kind",
                        json_string(adapter ? "GGUF adapter"
                                    : empty ? "GGUF file without tensors"
                                            : "GGUF model"));
    if (adapter) {
        json_t *o = inspect_lora(tensors);
        const json_t *alpha = json_object_get(keys, "adapter.lora.alpha");
        if (json_is_number(alpha)) inspect_scale(o, json_number_value(alpha), false);
        json_object_set_new(facts, "adapter", o);
        json_object_set_new(o, "base", json_null());
        inspect_try_adapter(facts, path, base);
        return true;
    }
    hbk_model *m = empty ? NULL : hbk_model_load(path, NULL, &e);
    if (!m && !empty) inspect_refused(facts, &e);
    json_object_set_new(facts, "config",
                        m ? inspect_config(&m->config, inspect_string(keys, "general.architecture"))
                          : inspect_gguf_config(keys));
    json_object_set_new(facts, "tokenizer", inspect_gguf_tokenizer(path, keys));
    json_object_set_new(facts, "chat_template", inspect_chat(path, chat ? chat : ""));
    if (m) json_object_set_new(facts, "memory", inspect_memory(&m->config, weights));
    if (m) inspect_try_text(facts, path);
    hbk_model_free(m);
    return true;
}

/* A folder of `humpback run`: its inputs, and how far it has come. */
static bool inspect_run(json_t *facts, const char *dir, hbk_error *err)
{
    char path[512];
    json_t *run = hbk_path(path, dir, "run.json", err) ? hbk_json_read(path, err) : NULL, *options, *o;
    if (!run) return false;
    json_object_set_new(facts, "kind", json_string("run folder"));
    options = json_object_get(run, "options");
    o = json_pack("{s:O?, s:O?, s:O?, s:O?, s:O?, s:O?}", "model", json_object_get(options, "model"),
                  "template", json_object_get(options, "template"), "iterations",
                  json_object_get(options, "iterations"), "inputs", json_object_get(run, "inputs"), "stages",
                  json_object_get(run, "stages"), "stopped", json_object_get(run, "stopped"));
    json_object_set_new(facts, "run", o);
    json_decref(run);
    return true;
}

static bool inspect_tokenizer_alone(json_t *facts, const char *path, hbk_error *err)
{
    hbk_error e;
    hbk_tokenizer *t = hbk_tokenizer_load(path, NULL, &e);
    hbk_tokenizer_free(t);
    if (!t && !hbk_dir_exists(path)) { /* a tokenizer of another kind is one all the same */
        json_t *root = hbk_json_read(path, NULL);
        bool other = json_is_object(json_object_get(root, "model")) && json_object_get(root, "added_tokens");
        json_decref(root);
        if (!other) {
            if (err) *err = e;
            return false;
        }
    }
    json_object_set_new(facts, "kind", json_string("tokenizer"));
    json_object_set_new(facts, "tokenizer", inspect_tokenizer(path));
    return true;
}

static bool inspect_folder(json_t *facts, const char *dir, const char *base, hbk_error *err)
{
    if (inspect_has(dir, "adapter_config.json")) return inspect_adapter(facts, dir, base, err);
    if (inspect_has(dir, "run.json")) return inspect_run(facts, dir, err);
    if (inspect_has(dir, "config.json") || inspect_has(dir, "model.safetensors") ||
        inspect_has(dir, "model.safetensors.index.json"))
        return inspect_model_folder(facts, dir);
    if (inspect_has(dir, "tokenizer.json") || inspect_has(dir, "tokenizer.model") ||
        inspect_has(dir, "tokenizer.bin"))
        return inspect_tokenizer_alone(facts, dir, err);
    if (inspect_has(dir, "train.json"))
        return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, dir, 0,
                           "holds a finetuning that is not finished, and no result yet: run the same "
                           "finetune again, which goes on with it; its curve so far: humpback report");
    return hbk_fail_at(
        err, HBK_ERROR_UNSUPPORTED, dir, 0,
        "holds no config.json, adapter_config.json, run.json or tokenizer: name a model, adapter "
        "or run folder, or a file in it");
}

/* Files are known by their first bytes; what has none (llama2.c's first version, tokenizers) is tried. */
static bool inspect_one_file(json_t *facts, const char *path, const char *base, hbk_error *err)
{
    hbk_mapping map;
    unsigned char p[9] = {0};
    if (!hbk_mapping_open(&map, path, err)) return false;
    size_t size = map.size;
    memcpy(p, map.data, HBK__MIN(size, sizeof p));
    bool lfs = size > 8 && memcmp(p, "version ", 8) == 0;
    hbk_mapping_close(&map);
    if (size > 4 && memcmp(p, "PK\3\4", 4) == 0)
        return hbk_fail_at(
            err, HBK_ERROR_UNSUPPORTED, path, 0,
            "is a PyTorch checkpoint (a zip of pickles), which is not read: save it as safetensors");
    if (memcmp(p, "GGUF", 4) == 0) return inspect_gguf(facts, path, base, err);
    if (lfs || (size > 8 && p[8] == '{' && p[7] == 0)) return inspect_safetensors_file(facts, path, err);
    if (p[0] == '{' || p[0] == '[') {
        json_t *root = hbk_json_read(path, err);
        json_decref(root);
        if (!root) return false;
        if (inspect_tokenizer_alone(facts, path, err)) return true;
        return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, path, 0,
                           "is JSON but no tokenizer: name the folder of a config.json");
    }
    hbk_error e, as_tokenizer;
    const char *dot = strrchr(path, '.');
    if (inspect_llama2c(facts, path, &e) || inspect_tokenizer_alone(facts, path, &as_tokenizer)) return true;
    bool sized = strstr(e.message, "a llama2.c file of dim"); /* its header makes sense */
    if (err && dot && (strcmp(dot, ".model") == 0 || strcmp(dot, ".bin") == 0)) *err = as_tokenizer;
    if (err && (sized || memcmp(p, "24ka", 4) == 0)) *err = e;
    if (!err || err->code) return false;
    return hbk_fail_at(
        err, HBK_ERROR_UNSUPPORTED, path, 0,
        "is nothing that is known here: expected safetensors, GGUF, a llama2.c .bin or a tokenizer");
}

/* ---- 6 text for people ---------------------------------------------------------------- */

static void inspect_row(const char *label, const char *fmt, ...) HBK_PRINTF(2, 3);
static void inspect_row(const char *label, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    printf("  %-13s ", label);
    vprintf(fmt, args);
    putchar('\n');
    va_end(args);
}

/* A line about why something does not load; false if it does. */
static bool inspect_print_refused(const char *label, const json_t *facts)
{
    const char *refused = inspect_string(facts, "not_supported"), *broken = inspect_string(facts, "broken");
    if (refused) inspect_row(label, "not supported: %s", refused);
    if (broken) inspect_row(label, "does not load: %s", broken);
    return refused || broken;
}

/* The keys of an object, or the strings of an array, with commas between. */
static void inspect_list(hbk_text *out, const json_t *list)
{
    const char *key;
    json_t *v;
    size_t i;
    json_object_foreach((json_t *)(uintptr_t)list, key, v)
        hbk_text_printf(out, "%s%s", out->len ? ", " : "", key);
    json_array_foreach(list, i, v)
        hbk_text_printf(out, "%s%s", out->len ? ", " : "", json_is_string(v) ? json_string_value(v) : "?");
}

/* " 8 query heads": a number and its noun, where the number is known. */
static void inspect_part(hbk_text *out, const json_t *o, const char *key, const char *fmt)
{
    char number[32];
    json_int_t n = inspect_int(o, key);
    if (n < 0) return;
    hbk_text_add(out, out->len ? ", " : "");
    snprintf(number, sizeof number, "%lld", (long long)n);
    for (; *fmt; fmt++) {
        if (*fmt == '#')
            hbk_text_add(out, number);
        else
            hbk_text_append(out, fmt, 1);
    }
}

static void inspect_print_config(const json_t *c, const json_t *weights)
{
    char count[32];
    hbk_text t;
    memset(&t, 0, sizeof t);
    const json_t *rope = json_object_get(c, "rope"), *tied = json_object_get(c, "tied"),
                 *biases = json_object_get(c, "biases");
    double values = (double)inspect_int(weights, "values");
    inspect_row("architecture", "%s%s%s%s", inspect_string(c, "architecture"), values > 0 ? ", " : "",
                values > 0 ? inspect_count(values, count) : "", values > 0 ? " parameters" : "");
    inspect_part(&t, c, "layers", "# layers");
    inspect_part(&t, c, "width", "width #");
    inspect_part(&t, c, "ffn", "feed-forward #");
    inspect_part(&t, c, "experts", "# experts");
    if (t.len) inspect_row("shape", "%s", hbk_text_string(&t));
    hbk_text_clear(&t);
    inspect_part(&t, c, "heads", "# query heads");
    inspect_part(&t, c, "kv_heads", "# key/value heads");
    inspect_part(&t, c, "head_dim", "each of #");
    inspect_part(&t, c, "window", "sliding window #");
    if (biases && !json_array_size(biases)) hbk_text_add(&t, ", no biases");
    if (json_array_size(biases)) {
        hbk_text names;
        memset(&names, 0, sizeof names);
        inspect_list(&names, biases);
        hbk_text_printf(&t, ", biases on %s", hbk_text_string(&names));
        hbk_text_free(&names);
    }
    if (t.len) inspect_row("attention", "%s", hbk_text_string(&t));
    hbk_text_clear(&t);
    inspect_part(&t, c, "context", "context #");
    hbk_text_printf(&t, "%srope %s", t.len ? ", " : "", inspect_string(rope, "type"));
    if (json_object_get(rope, "theta"))
        hbk_text_printf(&t, ", theta %g", json_number_value(json_object_get(rope, "theta")));
    if (json_object_get(rope, "factor"))
        hbk_text_printf(&t, ", factor %g", json_number_value(json_object_get(rope, "factor")));
    inspect_row("positions", "%s", hbk_text_string(&t));
    hbk_text_clear(&t);
    inspect_part(&t, c, "vocabulary", "#");
    if (tied) hbk_text_printf(&t, ", head %s", json_is_true(tied) ? "tied to the embedding" : "of its own");
    if (t.len) inspect_row("vocabulary", "%s", hbk_text_string(&t));
    hbk_text_free(&t);
}

static void inspect_print_weights(const json_t *w)
{
    char bytes[32];
    const char *type;
    json_t *sum;
    hbk_text t;
    memset(&t, 0, sizeof t);
    const json_t *files = json_object_get(w, "files"), *types = json_object_get(w, "types");
    size_t n = json_array_size(files);
    if (n == 1) hbk_text_printf(&t, "%s: ", json_string_value(json_array_get(files, 0)));
    if (n > 1) hbk_text_printf(&t, "%zu files: ", n);
    hbk_text_printf(&t, "%lld tensors, %s", (long long)inspect_int(w, "tensors"),
                    inspect_bytes((double)inspect_int(w, "bytes"), bytes));
    json_object_foreach((json_t *)(uintptr_t)types, type, sum)
    {
        if (json_object_size(types) == 1)
            hbk_text_printf(&t, ", all %s", type);
        else
            hbk_text_printf(&t, ", %lld %s (%s)", (long long)inspect_int(sum, "tensors"), type,
                            inspect_bytes((double)inspect_int(sum, "bytes"), bytes));
    }
    inspect_row("weights", "%s", hbk_text_string(&t));
    hbk_text_free(&t);
}

static void inspect_print_tokenizer(const json_t *o)
{
    static const char *const names[] = {"bos", "eos", "unk"};
    hbk_text t;
    memset(&t, 0, sizeof t);
    if (!json_is_object(o)) {
        inspect_row("tokenizer", "none: name one with --tokenizer");
        return;
    }
    hbk_text_printf(&t, "%s: %s", inspect_string(o, "file"), inspect_string(o, "kind"));
    inspect_part(&t, o, "size", "# pieces");
    if (inspect_int(o, "added") > 0) inspect_part(&t, o, "added", "# added tokens");
    inspect_row("tokenizer", "%s", hbk_text_string(&t));
    hbk_text_clear(&t);
    for (int i = 0; i < 3; i++) {
        const json_t *piece = json_object_get(o, names[i]);
        if (json_is_object(piece))
            hbk_text_printf(&t, "%s%s %lld %s", t.len ? ", " : "", names[i],
                            (long long)inspect_int(piece, "id"), inspect_string(piece, "piece"));
    }
    if (json_object_get(o, "adds_bos"))
        hbk_text_printf(&t, "%sbos is%s put before a text", t.len ? "; " : "",
                        json_is_true(json_object_get(o, "adds_bos")) ? "" : " not");
    if (t.len) inspect_row("", "%s", hbk_text_string(&t));
    inspect_print_refused("", o);
    hbk_text_free(&t);
}

/* `unspelled`: the template whose markers the vocabulary lacks, or NULL. */
static void inspect_print_chat(const json_t *chat, const char *unspelled)
{
    if (unspelled)
        inspect_row("chat", "%s, and %s's markers cannot be spelled: use --template plain",
                    inspect_string(chat, "recognised") ? "a template" : "no template", unspelled);
    else if (inspect_string(chat, "recognised"))
        inspect_row("chat", "template %s", inspect_string(chat, "recognised"));
    else if (inspect_string(chat, "unknown"))
        inspect_row("chat", "unknown: %s (choose with --template)", inspect_string(chat, "unknown"));
    else
        inspect_row("chat", "no template: llama2 unless --template says otherwise");
}

static void inspect_print_recipe(const json_t *r)
{
    hbk_text t;
    memset(&t, 0, sizeof t);
    bool backward = inspect_string(r, "use") && strcmp(inspect_string(r, "use"), "backward") == 0;
    hbk_text_printf(&t, "by humpback, %s", backward ? "backward: from output to instruction" : "forward");
    if (inspect_string(r, "template")) hbk_text_printf(&t, ", template %s", inspect_string(r, "template"));
    inspect_row("finetuned", "%s", hbk_text_string(&t));
    static const char *const keys[] = {"tag_seed", "tag_web", "inference_tag"}, *const labels[] = {
                                                                                    "tag of seed",
                                                                                    "tag of web",
                                                                                    "at inference"};
    for (int i = 0; i < 3; i++)
        if (inspect_string(r, keys[i])) inspect_row(labels[i], "%s", inspect_string(r, keys[i]));
    hbk_text_free(&t);
}

static void inspect_print_adapter(const json_t *a, const json_t *tried)
{
    char count[32];
    hbk_text t;
    memset(&t, 0, sizeof t);
    const json_t *alpha = json_object_get(a, "alpha"), *scale = json_object_get(a, "scale");
    const char *base = inspect_string(a, "base");
    if (json_is_string(tried))
        inspect_row("base", "%s", base ? base : json_string_value(tried));
    else if (base)
        inspect_row("base", "%s, which is not here: name it with --model", base);
    else if (json_object_get(a, "base"))
        inspect_row("base", "not named: name it with --model");
    inspect_list(&t, json_object_get(a, "ranks"));
    inspect_row("LoRA", "rank %s%s, %s values", hbk_text_string(&t),
                json_is_true(json_object_get(a, "patterns")) ? " (by patterns)" : "",
                inspect_count((double)inspect_int(a, "values"), count));
    hbk_text_clear(&t);
    if (alpha) hbk_text_printf(&t, "alpha %g", json_number_value(alpha));
    if (scale) hbk_text_printf(&t, "%sscale %g", t.len ? ", " : "", json_number_value(scale));
    if (json_is_true(json_object_get(a, "rslora"))) hbk_text_add(&t, " (rsLoRA: alpha / sqrt(rank))");
    inspect_row("", "%s", hbk_text_string(&t));
    hbk_text_clear(&t);
    inspect_list(&t, json_object_get(a, "targets"));
    inspect_row("targets", "%s; in %zu layers", hbk_text_string(&t),
                json_object_size(json_object_get(a, "layers")));
    size_t other = json_array_size(json_object_get(a, "other_tensors"));
    if (other)
        inspect_row("besides", "%zu tensors that are no LoRA, %s ...", other,
                    json_string_value(json_array_get(json_object_get(a, "other_tensors"), 0)));
    hbk_text_free(&t);
}

static void inspect_print_run(const json_t *r)
{
    const char *name, *stopped = inspect_string(r, "stopped");
    json_t *v;
    inspect_row("model", "%s, template %s",
                inspect_string(r, "model") ? inspect_string(r, "model") : "not named",
                inspect_string(r, "template") ? inspect_string(r, "template") : "?");
    json_object_foreach(json_object_get(r, "inputs"), name, v) if (inspect_string(v, "path"))
        inspect_row(name, "%s", inspect_string(v, "path"));
    json_object_foreach(json_object_get(r, "stages"), name, v)
    {
        hbk_text t;
        memset(&t, 0, sizeof t);
        inspect_part(&t, v, "rows", "# rows");
        inspect_part(&t, v, "examples", "# examples");
        inspect_part(&t, v, "kept", "# kept");
        if (inspect_int(v, "kept") >= 0) inspect_part(&t, v, "n", "of #");
        if (json_object_get(v, "seconds"))
            hbk_text_printf(&t, "%s%.3g s", t.len ? ", " : "",
                            json_number_value(json_object_get(v, "seconds")));
        inspect_row(name, "done%s%s", t.len ? ": " : "", hbk_text_string(&t));
        hbk_text_free(&t);
    }
    if (stopped && *stopped) inspect_row("stopped", "%s", stopped);
}

/* "model.layers.*.mlp.up_proj.weight" for the tensor of any layer. */
static void inspect_pattern(const char *name, char out[160])
{
    const char *at = strstr(name, "layers.");
    at = at ? at + 7 : strncmp(name, "blk.", 4) == 0 ? name + 4 : NULL;
    size_t digits = at ? strspn(at, "0123456789") : 0;
    if (digits)
        snprintf(out, 160, "%.*s*%s", (int)(at - name), name, at + digits);
    else
        snprintf(out, 160, "%s", name);
}

static void inspect_print_shape(hbk_text *t, const json_t *shape)
{
    size_t i;
    json_t *dim;
    hbk_text_add(t, "(");
    json_array_foreach(shape, i, dim)
        hbk_text_printf(t, "%s%lld", i ? ", " : "", (long long)json_integer_value(dim));
    hbk_text_add(t, ")");
}

/* One line per name, layers taken together unless `all`; a group's shape is that of its first tensor. */
static void inspect_print_tensors(const json_t *tensors, bool all)
{
    enum { MOST = 40 };
    json_t *groups = json_object(), *g;
    const char *name;
    char pattern[160], bytes[32];
    hbk_text t;
    memset(&t, 0, sizeof t);
    for (size_t i = 0; i < json_array_size(tensors); i++) {
        const json_t *tensor = json_array_get(tensors, i);
        if (all)
            snprintf(pattern, sizeof pattern, "%s", inspect_string(tensor, "name"));
        else
            inspect_pattern(inspect_string(tensor, "name"), pattern);
        if (!(g = json_object_get(groups, pattern))) {
            g = json_pack("{s:i, s:i, s:O, s:{}}", "n", 0, "bytes", 0, "shape",
                          json_object_get(tensor, "shape"), "types");
            json_object_set_new(groups, pattern, g);
        }
        inspect_tally(g, "n");
        inspect_tally(json_object_get(g, "types"), inspect_string(tensor, "type"));
        json_object_set_new(g, "bytes", json_integer(inspect_int(g, "bytes") + inspect_int(tensor, "bytes")));
        if (!json_equal(json_object_get(g, "shape"), json_object_get(tensor, "shape")))
            json_object_set_new(g, "differ", json_true());
    }
    size_t shown = 0, n = json_object_size(groups), width = 0;
    json_object_foreach(groups, name, g) width = HBK__MAX(width, HBK__MIN(strlen(name), 70));
    if (n) puts("");
    json_object_foreach(groups, name, g)
    {
        if (!all && shown == MOST) break;
        shown++;
        hbk_text_clear(&t);
        inspect_list(&t, json_object_get(g, "types"));
        hbk_text_add(&t, " ");
        if (json_object_get(g, "differ"))
            hbk_text_add(&t, "(shapes differ)");
        else
            inspect_print_shape(&t, json_object_get(g, "shape"));
        snprintf(pattern, sizeof pattern, "%lld x", (long long)inspect_int(g, "n"));
        printf("  %-*s %5s %s, %s\n", (int)width, name, inspect_int(g, "n") > 1 ? pattern : "",
               hbk_text_string(&t), inspect_bytes((double)inspect_int(g, "bytes"), bytes));
    }
    if (shown < n) printf("  and %zu other names: --tensors shows all\n", n - shown);
    json_decref(groups);
    hbk_text_free(&t);
}

/* The keys of a GGUF file, long texts and arrays cut short. */
static void inspect_print_keys(const json_t *keys)
{
    const char *key;
    json_t *v;
    size_t width = 0;
    if (json_object_size(keys)) puts("");
    json_object_foreach((json_t *)(uintptr_t)keys, key, v) width = HBK__MAX(width, HBK__MIN(strlen(key), 50));
    json_object_foreach((json_t *)(uintptr_t)keys, key, v)
    {
        hbk_text t;
        memset(&t, 0, sizeof t);
        const json_t *first = json_object_get(v, "first");
        if (!hbk_json_text(&t, first ? first : v, JSON_COMPACT, NULL)) hbk_text_add(&t, "?");
        if (t.len > 60) {
            size_t n = 57;
            while (n > 0 && (t.data[n] & 0xc0) == 0x80) n--; /* between characters */
            t.data[n] = 0;
            t.len = n;
            hbk_text_add(&t, " ...");
        }
        printf("  %-*s  ", (int)width, key);
        if (first) printf("%lld %s: ", (long long)inspect_int(v, "n"), inspect_string(v, "array"));
        printf("%s\n", hbk_text_string(&t));
        hbk_text_free(&t);
    }
}

static void inspect_print_metadata(const json_t *meta)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)meta, key, v)
        inspect_row("metadata", "%s = %.200s", key, json_is_string(v) ? json_string_value(v) : "(no string)");
}

static void inspect_print(const json_t *facts, bool all)
{
    char a[32], b[32], c[32];
    const json_t *config = json_object_get(facts, "config"), *weights = json_object_get(facts, "weights"),
                 *memory = json_object_get(facts, "memory"), *adapter = json_object_get(facts, "adapter");
    printf("%s: %s\n\n", inspect_string(facts, "path"), inspect_string(facts, "kind"));
    if (config) inspect_print_config(config, weights);
    if (adapter) inspect_print_adapter(adapter, json_object_get(facts, "tried_on"));
    if (weights) inspect_print_weights(weights);
    inspect_print_metadata(json_object_get(facts, "metadata"));
    if (json_object_get(facts, "tokenizer")) inspect_print_tokenizer(json_object_get(facts, "tokenizer"));
    const json_t *trained = json_object_get(json_object_get(facts, "recipe"), "template");
    if (json_object_get(facts, "chat_template"))
        inspect_print_chat(json_object_get(facts, "chat_template"),
                           json_is_string(trained) ? NULL : inspect_string(facts, "template_refused"));
    if (json_object_get(facts, "recipe")) inspect_print_recipe(json_object_get(facts, "recipe"));
    if (memory)
        inspect_row("memory",
                    "%s of weights (mapped, shared) + %s of cache per token: %s with a full context",
                    inspect_bytes((double)inspect_int(memory, "weights_bytes"), a),
                    inspect_bytes((double)inspect_int(memory, "cache_bytes_per_token"), b),
                    inspect_bytes((double)inspect_int(memory, "full_context_bytes"), c));
    if (json_object_get(facts, "run")) inspect_print_run(json_object_get(facts, "run"));
    bool refused = inspect_print_refused("humpback", facts);
    const char *no_text = inspect_string(facts, "tokenizer_refused");
    if (!refused && no_text) inspect_row("humpback", "weights load; the tokenizer does not: %s", no_text);
    if (!refused && memory && !no_text) inspect_row("humpback", "runs and finetunes it");
    if (!refused && inspect_string(facts, "tried_on"))
        inspect_row("humpback", "runs it on %s", inspect_string(facts, "tried_on"));
    inspect_print_keys(json_object_get(facts, "keys"));
    inspect_print_tensors(json_object_get(facts, "tensors"), all);
}

/* ---- 7 the command -------------------------------------------------------------------- */

static int inspect_main(cli *c)
{
    const char *path = c->operands[0];
    if (!hbk_file_exists(path)) {
        hbk_fail_at(&c->err, HBK_ERROR_FILE, path, 0, "there is no such file or folder");
        return cli_fail(c);
    }
    json_t *facts = json_pack("{s:o}", "path", inspect_text(path, strlen(path)));
    bool ok = hbk_dir_exists(path) ? inspect_folder(facts, path, cli_text(c, "model"), &c->err)
                                   : inspect_one_file(facts, path, cli_text(c, "model"), &c->err);
    if (ok && cli_has(c, "json"))
        ok = cli_print_json(json_incref(facts), &c->err);
    else if (ok)
        inspect_print(facts, cli_has(c, "tensors"));
    json_decref(facts);
    return cli_end(c, ok);
}

#endif
