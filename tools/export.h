/* tools/export.h - the command export - public domain */

#ifndef CMD_EXPORT_H
#define CMD_EXPORT_H

/* ==== EXPORTING ==========================================================

   What was trained here, for other programs. OUT is written inside a new folder OUT.part.XXXXXX and moved out
   of it when it is whole. Nothing else is removed: what is called like that already is somebody's. */

/* Whether `folder` is `path`, or holds it at any depth. */
static bool cmd_holds(const char *folder, const char *path)
{
    char *a = realpath(folder, NULL), *b = a && path ? realpath(path, NULL) : NULL;
    size_t n = a ? strlen(a) : 0;
    bool holds = b && !strncmp(a, b, n) && (!b[n] || b[n] == '/' || n == 1);
    free(a);
    free(b);
    return holds;
}

/* Removes a folder that was made here and the files in it; one that holds folders stays. */
static void cmd_remove_folder(const char *dir)
{
    DIR *d = opendir(dir);
    char path[512];
    for (struct dirent *e; d && (e = readdir(d)) != NULL;)
        if (e->d_name[0] != '.' && hbk_path(path, dir, e->d_name, NULL)) unlink(path);
    if (d) closedir(d);
    rmdir(dir);
}

static bool cmd_folder_empty(const char *dir)
{
    DIR *d = opendir(dir);
    bool empty = true;
    for (struct dirent *e; d && (e = readdir(d)) != NULL;)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) empty = false;
    if (d) closedir(d);
    return empty;
}

/* The flag whose value is, or lies in, what is to be written; NULL if none: inputs never are outputs. */
static const char *cmd_input_in(cli *c, const char *out)
{
    static const char *const inputs[] = {"model", "adapter", "tokenizer"};
    for (int i = 0; i < 3; i++)
        if (cmd_holds(out, cli_text(c, inputs[i]))) return inputs[i];
    return NULL;
}

/* Whether the folder or file `out` may be written: nothing is there, or --force sets aside what is. */
static bool cmd_may_write(cli *c, const char *out)
{
    bool free_place = hbk_dir_exists(out) ? cmd_folder_empty(out) : !hbk_file_exists(out);
    if (free_place || cli_has(c, "force")) return true;
    return hbk_fail_at(&c->err, HBK_ERROR_OPTION, out, 0,
                       "is there already: choose another name, or --force, which sets it aside");
}

/* The type of the weights to write: --dtype, else the base's own, or bf16 of a base that is quantised. */
static hbk_dtype cmd_dtype(cli *c, const hbk_model *m)
{
    static const hbk_dtype types[] = {HBK_F32, HBK_BF16, HBK_F16, HBK_Q8_0};
    hbk_dtype own = m->layers[0].w[HBK_Q].dtype;
    if (cli_has(c, "dtype")) return types[cli_choice(c, "dtype")];
    return own == HBK_F32 || own == HBK_F16 ? own : HBK_BF16;
}

/* The tokenizer that belongs to the model, into the folder `dir`: the files of its folder as they are, or
   what a single file holds or --tokenizer names. */
static bool cmd_export_tokenizer(cli *c, cmd_world *w, const char *dir)
{
    const char *model = w->tuned.own_model ? cli_text(c, "adapter") : cli_text(c, "model");
    if (hbk_dir_exists(model) && !cli_text(c, "tokenizer"))
        return hbk_tokenizer_copy(model, dir, NULL, &c->err);
    char json[512], other[512];
    if (!cmd_open_tokenizer(c, w) || !hbk_tokenizer_save(w->tok, dir, &c->err) ||
        !hbk_path(json, dir, "tokenizer.json", &c->err) ||
        !hbk_path(other, dir, "tokenizer.bin", &c->err))
        return false;
    if (hbk_file_exists(other) && !hbk_file_exists(json))
        fputs("humpback: no tokenizer.json can say what this tokenizer.bin does: transformers will not open "
              "the folder\n",
              stderr);
    return true;
}

/* The recipe that the adapter was trained with, so that template and tags follow the merged model. */
static bool cmd_export_recipe(cli *c, const char *from, const char *dir)
{
    char path[512];
    if (!from || !hbk_path(path, from, "humpback.json", &c->err)) return !from;
    if (!hbk_file_exists(path)) return true;
    json_t *recipe = hbk_json_read(path, &c->err);
    bool ok = recipe && hbk_path(path, dir, "humpback.json", &c->err);
    if (ok) json_object_set_new(recipe, "mode", json_string("merged"));
    ok = ok && hbk_json_write(path, recipe, &c->err);
    json_decref(recipe);
    return ok;
}

/* What ends a reply of the recipe's template ends a text of the merged model, for programs that know no
   recipe. Without a tokenizer in the folder there is nothing to find its id by. */
static bool cmd_export_stop(cli *c, cmd_world *w, const char *dir)
{
    char path[512];
    bool trained;
    if (!cmd_open_recipe(c, w, dir, path, &trained)) return false;
    hbk_tokenizer *tok = trained ? hbk_tokenizer_load(dir, NULL, NULL) : NULL;
    bool ok = !tok || ((w->tmpl = hbk_template_load(path, NULL, &c->err)) != NULL &&
                       hbk_template_save_stop(w->tmpl, tok, dir, &c->err));
    hbk_tokenizer_free(tok);
    return ok;
}

/* Logits of a few made-up tokens, (n, vocabulary), to be freed; NULL on failure. */
static hbk_real *cmd_probe(cli *c, const hbk_model *m, const hbk_adapter *a, hbk_int n)
{
    enum { MOST = 16 };
    int32_t ids[MOST];
    hbk_int start[2] = {0, n};
    HBK_ASSERT(n <= MOST);
    for (hbk_int i = 0; i < n; i++) ids[i] = (int32_t)((7919 * i + 13) % m->config.vocab_size);
    hbk_batch batch = {n, 1, ids, NULL, start};
    hbk_acts *acts = hbk_acts_new(m, a, n, n, HBK_KEEP_NONE, NULL, &c->err);
    hbk_real *logits =
        acts ? (hbk_real *)hbk_alloc(NULL, n * m->config.vocab_size, sizeof *logits, &c->err) : NULL;
    if (logits && !hbk_model_logits(acts, m, &batch, a, logits, &c->err)) {
        hbk_free(NULL, logits);
        logits = NULL;
    }
    hbk_acts_free(acts);
    return logits;
}

/* Reads the exported model back, and says how far its logits are from those of base and adapter: what the
   rounding to its type costs, or that the merge went wrong. */
static bool cmd_check_export(cli *c, const cmd_world *w, const char *path, double *largest)
{
    const hbk_model *m = w->tuned.model;
    hbk_int n = HBK__MIN(16, m->config.context_length);
    hbk_model *merged = hbk_model_load(path, NULL, &c->err);
    hbk_real *got = merged ? cmd_probe(c, merged, NULL, n) : NULL;
    hbk_real *want = got ? cmd_probe(c, m, w->tuned.adapter, n) : NULL;
    *largest = 0;
    for (hbk_int i = 0; want && i < n * m->config.vocab_size; i++)
        *largest = fmax(*largest, fabs((double)got[i] - (double)want[i]));
    bool ok = want != NULL;
    hbk_free(NULL, got);
    hbk_free(NULL, want);
    hbk_model_free(merged);
    return ok;
}

/* --merge: the model with its adapter merged, as a Hugging Face folder. */
static bool cmd_export_merged(cli *c, cmd_world *w, const char *part, double *apart)
{
    return hbk_model_save_merged(w->tuned.model, w->tuned.adapter, part, cmd_dtype(c, w->tuned.model),
                                 &c->err) &&
           cmd_export_tokenizer(c, w, part) && cmd_export_recipe(c, cli_text(c, "adapter"), part) &&
           cmd_export_stop(c, w, part) && cmd_check_export(c, w, part, apart);
}

/* --gguf: the same as one file; of a folder without a tokenizer, one without a vocabulary. */
static bool cmd_export_gguf(cli *c, cmd_world *w, const char *part, double *apart)
{
    static const char *const files[] = {"tokenizer.json", "tokenizer.model", "tokenizer.bin"};
    char path[512];
    const char *model = cli_text(c, "model");
    bool spelled = cli_text(c, "tokenizer") || !hbk_dir_exists(model);
    for (int i = 0; i < 3; i++)
        if (hbk_path(path, model, files[i], NULL) && hbk_file_exists(path)) spelled = true;
    if (!spelled) cli_say(c, "without a vocabulary: %s holds no tokenizer\n", model);
    return (!spelled || cmd_open_tokenizer(c, w)) &&
           hbk_model_save_gguf(w->tuned.model, w->tuned.adapter, w->tok, part, cmd_dtype(c, w->tuned.model),
                               &c->err) &&
           cmd_check_export(c, w, part, apart);
}

/* --adapter-gguf: the adapter alone, for llama.cpp to put on the base. */
static bool cmd_export_adapter(cli *c, cmd_world *w, const char *part, double *apart)
{
    *apart = NAN; /* it has no logits of its own */
    if (!w->tuned.adapter)
        return hbk_fail_at(&c->err, HBK_ERROR_OPTION, cli_text(c, "adapter"), 0,
                           "is a whole model, no adapter: use --gguf");
    return hbk_adapter_save_gguf(w->tuned.adapter, &w->base->config, part, &c->err);
}

/* Puts what was written whole under its name; what stood there is set aside, an empty folder gives way. */
static bool cmd_put_in_place(cli *c, const char *part, const char *out)
{
    if (hbk_file_exists(out) && rmdir(out) != 0 && !hbk_file_set_aside(out, &c->err)) return false;
    return rename(part, out) == 0 ||
           hbk_fail_at(&c->err, HBK_ERROR_FILE, out, 0, "cannot be made of %s: %s", part, strerror(errno));
}

static bool cmd_say_exported(cli *c, const cmd_world *w, const char *type, const char *out, double apart)
{
    const char *what = isnan(apart)       ? "the adapter"
                       : w->tuned.adapter ? "base and adapter, merged"
                                          : "the model";
    cli_say(c, "%s, %s: %s\n", what, type, out);
    if (!isnan(apart)) cli_say(c, "read back, its logits differ by at most %.1e\n", apart);
    if (!cli_has(c, "json")) return true;
    json_t *result = json_pack("{s:s, s:s}", "out", out, "dtype", type);
    if (!isnan(apart)) json_object_set_new(result, "largest_difference", json_real(apart));
    return cli_print_json(result, &c->err);
}

/* A new folder beside `out`, and the path in it that has out's own name, which a GGUF file repeats. */
static bool cmd_make_work(cli *c, const char *out, char work[512], char part[512])
{
    const char *slash = strrchr(out, '/');
    int n = snprintf(work, 512, "%s.part.XXXXXX", out);
    if (n >= 512 || snprintf(part, 512, "%s/%s", work, slash ? slash + 1 : out) >= 512)
        return hbk_fail_at(&c->err, HBK_ERROR_RANGE, out, 0, "this path is too long");
    if (!mkdtemp(work))
        return hbk_fail_at(&c->err, HBK_ERROR_FILE, out, 0, "no folder can be made beside it: %s",
                           strerror(errno));
    memcpy(part, work, (size_t)n); /* mkdtemp chose the last letters */
    return true;
}

typedef enum cmd_export_kind { CMD_MERGE, CMD_GGUF, CMD_ADAPTER_GGUF, CMD_EXPORT_KINDS } cmd_export_kind;

/* Everything after the flags are known to make sense. */
static bool cmd_export_to(cli *c, cmd_export_kind kind, const char *out)
{
    static bool (*const write[])(cli *, cmd_world *, const char *,
                                 double *) = {cmd_export_merged, cmd_export_gguf, cmd_export_adapter};
    cmd_world w;
    char work[512], part[512];
    double apart = 0;
    memset(&w, 0, sizeof w);
    if (!cmd_may_write(c, out)) return false;
    w.base = hbk_model_load(cli_text(c, "model"), NULL, &c->err);
    bool ok = w.base && cmd_open_adapter(c, &w), made = ok && cmd_make_work(c, out, work, part);
    ok = made && write[kind](c, &w, part, &apart) && cmd_put_in_place(c, part, out);
    if (made) {
        if (!ok) cmd_remove_folder(part);
        cmd_remove_folder(work);
    }
    if (ok) {
        const char *type = kind == CMD_ADAPTER_GGUF ? "f32" : hbk_dtype_name(cmd_dtype(c, w.tuned.model));
        ok = cmd_say_exported(c, &w, type, out, apart);
    }
    cmd_close(&w);
    return ok;
}

static int cmd_export(cli *c)
{
    static const char *const flags[] = {"merge", "gguf", "adapter-gguf"};
    char out[512];
    int kind = -1, n = 0;
    for (int i = 0; i < CMD_EXPORT_KINDS; i++) {
        if (!cli_text(c, flags[i])) continue;
        kind = i;
        n++;
    }
    if (n == 1 && !*cli_text(c, flags[kind])) return cli_misused(c, "--%s: an empty name", flags[kind]);
    if (n != 1) return cli_misused(c, "export needs exactly one of --merge, --gguf, --adapter-gguf");
    bool q8_0 = cli_has(c, "dtype") && cli_choice(c, "dtype") == 3, alone = kind == CMD_ADAPTER_GGUF;
    if (q8_0 && kind != CMD_GGUF) return cli_misused(c, "--dtype q8_0 goes with --gguf alone");
    if (alone && cli_has(c, "dtype")) return cli_misused(c, "an adapter is written in f32: no --dtype");
    if (alone && !cli_text(c, "adapter")) return cli_misused(c, "--adapter-gguf needs --adapter");
    snprintf(out, sizeof out, "%s", cli_text(c, flags[kind]));
    for (size_t k = strlen(out); k > 1 && out[k - 1] == '/'; k--) out[k - 1] = 0; /* DIR/ is DIR */
    const char *input = cmd_input_in(c, out);
    if (input) return cli_misused(c, "--%s %.200s is or holds what --%s names", flags[kind], out, input);
    return cli_end(c, cmd_export_to(c, (cmd_export_kind)kind, out));
}

#endif /* CMD_EXPORT_H */
