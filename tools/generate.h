/* tools/generate.h - the commands that look and answer: tokenize, logits, generate, chat - public domain */

#ifndef CMD_GENERATE_H
#define CMD_GENERATE_H

/* ==== LOOKING ============================================================ */

/* One text of n bytes as a line of ids, and a list of ids as a JSON string. */
static bool cmd_tokenize_one(cli *c, const hbk_tokenizer *tok, const char *s, size_t n)
{
    hbk_tokens ids;
    memset(&ids, 0, sizeof ids);
    bool ok = cmd_encode(c, tok, s, n, &ids);
    if (ok) cmd_print_ids(ids.data, ids.n);
    hbk_tokens_free(&ids);
    return ok;
}

static bool cmd_decode_one(cli *c, const hbk_tokenizer *tok, const json_t *list)
{
    hbk_tokens ids;
    hbk_text text;
    memset(&ids, 0, sizeof ids);
    memset(&text, 0, sizeof text);
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_int_t id = json_integer_value(json_array_get(list, i));
        hbk_tokens_push(&ids, id < 0 || id > INT32_MAX ? -1 : (int32_t)id);
    }
    bool ok = hbk_tokens_ok(&ids, &c->err) &&
              hbk_tokenizer_decode(tok, ids.data, ids.n, 0, &text, &c->err) && hbk_text_ok(&text, &c->err);
    json_t *value = ok ? json_stringn(hbk_text_string(&text), text.len) : NULL;
    ok = ok && json_dumpf(value, stdout, JSON_ENCODE_ANY) == 0 && putchar('\n') != EOF;
    json_decref(value);
    hbk_text_free(&text);
    hbk_tokens_free(&ids);
    return ok;
}

static bool cmd_is_ids(const json_t *list)
{
    bool ids = json_is_array(list);
    for (size_t i = 0; ids && i < json_array_size(list); i++)
        ids = json_is_integer(json_array_get(list, i));
    return ids;
}

/* One line of --lines (a text as it stands), --jsonl (a JSON string) or --decode-jsonl (a list of ids). */
static bool cmd_tokenize_line(cli *c, const hbk_tokenizer *tok, const char *s, size_t n, const char *path,
                              hbk_int line)
{
    if (cli_has(c, "lines")) return cmd_tokenize_one(c, tok, s, n);
    if (strspn(s, " \t\r") >= n) return true;
    bool ok, decode = cli_has(c, "decode-jsonl");
    json_t *value = json_loadb(s, n, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
    if (decode ? !cmd_is_ids(value) : !json_is_string(value))
        ok = hbk_fail_at(&c->err, HBK_ERROR_FORMAT, path, line, "expected %s",
                         decode ? "an array of whole numbers" : "one JSON string on each line");
    else if (decode)
        ok = cmd_decode_one(c, tok, value);
    else
        ok = cmd_tokenize_one(c, tok, json_string_value(value), json_string_length(value));
    json_decref(value);
    return ok;
}

static bool cmd_tokenize_file(cli *c, const hbk_tokenizer *tok, const char *path, bool whole)
{
    hbk_text file;
    memset(&file, 0, sizeof file);
    bool ok = hbk_file_read(path, (size_t)1 << 30, &file, &c->err);
    const char *s = hbk_text_string(&file), *end = s + file.len;
    if (ok && whole) ok = cmd_tokenize_one(c, tok, s, file.len);
    for (hbk_int line = 1; ok && !whole && s < end; line++) {
        const char *stop = (const char *)memchr(s, '\n', (size_t)(end - s));
        size_t n = stop ? (size_t)(stop - s) : (size_t)(end - s);
        ok = cmd_tokenize_line(c, tok, s, n, path, line);
        s += n + 1;
    }
    hbk_text_free(&file);
    return ok;
}

/* --decode: the bytes themselves, and a line feed. */
static bool cmd_tokenize_back(cli *c, const hbk_tokenizer *tok, const hbk_tokens *ids)
{
    hbk_text text;
    memset(&text, 0, sizeof text);
    bool ok = hbk_tokens_ok(ids, &c->err) &&
              hbk_tokenizer_decode(tok, ids->data, ids->n, 0, &text, &c->err) && hbk_text_ok(&text, &c->err);
    if (ok) {
        fwrite(hbk_text_string(&text), 1, text.len, stdout);
        putchar('\n');
    }
    hbk_text_free(&text);
    return ok;
}

static int cmd_tokenize(cli *c)
{
    static const char *const sources[6] = {"text", "decode", "file", "lines", "jsonl", "decode-jsonl"};
    int n_sources = 0, source = 0;
    const char *given = NULL;
    cmd_world w;
    hbk_tokens ids;
    memset(&w, 0, sizeof w);
    memset(&ids, 0, sizeof ids);
    for (int i = 0; i < 6; i++) {
        if (!cli_has(c, sources[i])) continue;
        n_sources++;
        source = i;
        given = cli_text(c, sources[i]);
    }
    if (n_sources != 1)
        return cli_misused(c, "tokenize needs exactly one of --text, --file, --lines, --jsonl, --decode, "
                              "--decode-jsonl");
    if (!cli_has(c, "model") && !cli_has(c, "tokenizer")) return cli_misused(c, "tokenize needs --model M");
    if (source == 1 && *given && !cmd_ids(given, &ids)) {
        hbk_tokens_free(&ids);
        return cli_misused(c, "--decode: \"%.60s\" is no list of ids like 1,15043,3186", given);
    }
    bool ok = cmd_open_tokenizer(c, &w);
    if (ok && source == 0)
        ok = cmd_tokenize_one(c, w.tok, given, strlen(given));
    else if (ok && source == 1)
        ok = cmd_tokenize_back(c, w.tok, &ids);
    else if (ok)
        ok = cmd_tokenize_file(c, w.tok, given, source == 2);
    hbk_tokens_free(&ids);
    cmd_close(&w);
    return cli_end(c, ok);
}

/* Logits of every position of one sequence, into the tensor "logits" of --out. */
static bool cmd_write_logits(cli *c, const cmd_world *w, const hbk_tokens *ids)
{
    const hbk_model *m = w->tuned.model;
    hbk_int n = ids->n, V = m->config.vocab_size, start[2];
    if (n < 1 || n > m->config.context_length)
        return hbk_fail(&c->err, HBK_ERROR_RANGE, "%lld tokens: the model's context holds 1 to %lld",
                        (long long)n, (long long)m->config.context_length);
    start[0] = 0;
    start[1] = n;
    hbk_batch batch = {n, 1, ids->data, NULL, start};
    hbk_acts *acts = hbk_acts_new(m, w->tuned.adapter, n, n, HBK_KEEP_NONE, NULL, &c->err);
    hbk_real *logits = acts ? (hbk_real *)hbk_alloc(NULL, n * V, sizeof *logits, &c->err) : NULL;
    float *out = logits ? (float *)hbk_alloc(NULL, n * V, sizeof *out, &c->err) : NULL;
    bool ok = out && hbk_model_logits(acts, m, &batch, w->tuned.adapter, logits, &c->err);
    if (ok) {
        hbk_tensor t;
        memset(&t, 0, sizeof t);
        hbk_pack(out, HBK_F32, logits, n * V);
        t.name = "logits";
        snprintf(t.dtype, sizeof t.dtype, "F32");
        t.n_dims = 2;
        t.shape[0] = n;
        t.shape[1] = V;
        t.n_elements = n * V;
        t.data = out;
        t.bytes = (size_t)(n * V) * sizeof *out;
        ok = hbk_safetensors_write(cli_text(c, "out"), &t, 1, &c->err);
    }
    hbk_free(NULL, out);
    hbk_free(NULL, logits);
    hbk_acts_free(acts);
    return ok;
}

static int cmd_logits(cli *c)
{
    cmd_world w;
    hbk_tokens ids;
    memset(&w, 0, sizeof w);
    memset(&ids, 0, sizeof ids);
    const char *list = cli_text(c, "ids"), *text = cli_text(c, "text");
    if (!list == !text) return cli_misused(c, "logits needs exactly one of --ids, --text");
    if (list && !cmd_ids(list, &ids)) {
        hbk_tokens_free(&ids);
        return cli_misused(c, "--ids: \"%.60s\" is no list of ids like 1,15043,3186", list);
    }
    if (hbk_dir_exists(cli_text(c, "out"))) {
        hbk_fail_at(&c->err, HBK_ERROR_OPTION, cli_text(c, "out"), 0, "is a folder, expected a file name");
        hbk_tokens_free(&ids);
        return cli_end(c, false);
    }
    bool ok = cmd_load(c, &w) && cmd_open_adapter(c, &w);
    if (ok && text) ok = cmd_open_tokenizer(c, &w) && cmd_encode(c, w.tok, text, strlen(text), &ids);
    ok = ok && hbk_tokens_ok(&ids, &c->err) && cmd_write_logits(c, &w, &ids);
    hbk_tokens_free(&ids);
    cmd_close(&w);
    return cli_end(c, ok);
}

/* ==== GENERATING ========================================================= */

/* A prompt's tokens: through the template with the tag, or, without one, as raw text. */
static bool cmd_prompt(cli *c, const cmd_world *w, const char *text, hbk_tokens *ids)
{
    if (!w->tmpl) return cmd_encode(c, w->tok, text, strlen(text), ids);
    hbk_render r;
    memset(&r, 0, sizeof r);
    r.use = w->use;
    if (w->use == HBK_BACKWARD)
        r.output = text;
    else
        r.instruction = text;
    r.tag = w->use == HBK_FORWARD && w->tag[0] ? w->tag : NULL;
    return hbk_template_tokens(w->tmpl, w->tok, &r, ids, NULL, &c->err) && hbk_tokens_ok(ids, &c->err);
}

/* How texts are made: the library's options, and what the command adds to them. */
enum { CMD_STOPS = 16 };
typedef struct cmd_decoding {
    hbk_decode_options o;
    const char *stops[CMD_STOPS + 1]; /* --stop, and the end of the template's reply where that is text */
    hbk_int n_stops;
    hbk_int logprobs; /* alternatives; -1: no log-probabilities */
    hbk_int samples;  /* texts of each prompt */
} cmd_decoding;

/* Reads --stop; an exit code. */
static int cmd_read_stops(cli *c, cmd_decoding *d)
{
    for (const char *text; (text = cli_nth(c, "stop", (int)d->n_stops)) != NULL;) {
        if (!*text) return cli_misused(c, "--stop: an empty text stands everywhere");
        if (d->n_stops == CMD_STOPS) return cli_misused(c, "--stop: at most %d", CMD_STOPS);
        d->stops[d->n_stops++] = text;
    }
    return CLI_DONE;
}

/* What ends a reply of the template: an id, or a text. */
static void cmd_template_end(const cmd_world *w, cmd_decoding *d)
{
    if (!w->tmpl) return;
    d->o.sampling.stop = hbk_template_stop(w->tmpl, w->tok);
    const char *text = hbk_template_stop_text(w->tmpl);
    if (d->o.sampling.stop < 0 && *text) d->stops[d->n_stops++] = text;
}

/* Prompts that are served together, `samples` requests for each. */
typedef struct cmd_wave {
    json_t **rows; /* of --data, or NULL each */
    hbk_tokens *prompts;
    hbk_request *requests;
    hbk_reply *replies;
    hbk_logprobs *logprobs;
    hbk_int n, first; /* prompts in it, and their number in the file */
    hbk_int samples;
} cmd_wave;

static bool cmd_wave_new(cmd_wave *v, hbk_int size, hbk_int samples, hbk_error *err)
{
    memset(v, 0, sizeof *v);
    v->samples = samples;
    v->rows = (json_t **)hbk_alloc(NULL, size, sizeof *v->rows, err);
    if (v->rows) v->prompts = (hbk_tokens *)hbk_alloc(NULL, size, sizeof *v->prompts, err);
    if (v->prompts) v->requests = (hbk_request *)hbk_alloc(NULL, size * samples, sizeof *v->requests, err);
    if (v->requests) v->replies = (hbk_reply *)hbk_alloc(NULL, size * samples, sizeof *v->replies, err);
    if (v->replies) v->logprobs = (hbk_logprobs *)hbk_alloc(NULL, size * samples, sizeof *v->logprobs, err);
    return v->logprobs != NULL;
}

static void cmd_wave_clear(cmd_wave *v)
{
    for (hbk_int i = 0; i < v->n; i++) {
        json_decref(v->rows[i]);
        v->rows[i] = NULL;
        hbk_tokens_free(&v->prompts[i]);
    }
    for (hbk_int i = 0; i < v->n * v->samples; i++) {
        hbk_tokens_free(&v->requests[i].output);
        hbk_reply_free(&v->replies[i]);
        hbk_logprobs_free(&v->logprobs[i]);
        memset(&v->requests[i], 0, sizeof v->requests[i]);
    }
    v->first += v->n;
    v->n = 0;
}

static void cmd_wave_free(cmd_wave *v)
{
    cmd_wave_clear(v);
    hbk_free(NULL, v->rows);
    hbk_free(NULL, v->prompts);
    hbk_free(NULL, v->requests);
    hbk_free(NULL, v->replies);
    hbk_free(NULL, v->logprobs);
}

/* Generates for the wave, over a session as long as its longest prompt needs. */
static bool cmd_wave_run(cli *c, const cmd_world *w, cmd_wave *v, const cmd_decoding *d,
                         const hbk_stream *stream)
{
    hbk_int limit = w->tuned.model->config.context_length, longest = 1, n = v->n * v->samples;
    if (d->o.max_length > 0) limit = HBK__MIN(limit, d->o.max_length);
    for (hbk_int i = 0; i < n; i++) {
        const hbk_tokens *prompt = &v->prompts[i / v->samples];
        uint64_t id = (uint64_t)(v->first + i / v->samples) + ((uint64_t)(i % v->samples) << 40);
        v->replies[i].tok = w->tok;
        v->replies[i].stops = d->stops;
        v->replies[i].n_stops = d->n_stops;
        v->replies[i].trim = w->tmpl != NULL; /* raw text as it stands */
        v->logprobs[i].n_top = HBK__MAX(d->logprobs, 0);
        v->requests[i].prompt = prompt->data;
        v->requests[i].n_prompt = prompt->n;
        v->requests[i].rng = hbk_rng_at(d->o.seed, "generate", id);
        v->requests[i].finish = HBK_FINISH_COUNT; /* until it has one */
        v->requests[i].reply = &v->replies[i];
        v->requests[i].logprobs = d->logprobs >= 0 ? &v->logprobs[i] : NULL;
        if (prompt->n < limit) longest = HBK__MAX(longest, prompt->n);
    }
    hbk_int length = HBK__MIN(limit, longest + d->o.sampling.max_new);
    hbk_session *s = hbk_session_new(w->tuned.model, w->tuned.adapter, HBK__MIN(n, d->o.slots),
                                     HBK__MAX(length, longest + 1), d->o.cache, NULL, &c->err);
    bool ok = s && hbk_generate(s, v->requests, n, &d->o.sampling, stream, &c->err);
    hbk_session_free(s);
    return ok;
}

/* [{"id","token","logprob","top":[{"id","token","logprob"}]}] */
static json_t *cmd_logprobs_json(const cmd_world *w, const hbk_logprobs *p)
{
    json_t *rows = json_array(), *row = NULL;
    for (hbk_int i = 0; i < p->n * (1 + p->n_top); i++) {
        const hbk_logprob *l = &p->data[i];
        const char *token = hbk_tokenizer_piece(w->tok, l->id);
        bool known = token && hbk_utf8_valid(token, strlen(token), NULL);
        json_t *entry = json_pack("{s:i, s:s, s:f}", "id", (int)l->id, "token", known ? token : "", "logprob",
                                  l->logprob);
        if (i % (1 + p->n_top) == 0) {
            row = entry;
            json_array_append_new(rows, entry);
            if (p->n_top) json_object_set_new(row, "top", json_array());
        } else {
            json_array_append_new(json_object_get(row, "top"), entry);
        }
    }
    return rows;
}

/* One finished text as an object; `prompt` -1 where there is only one. */
static json_t *cmd_generated_json(const cmd_world *w, const cmd_wave *v, hbk_int i, hbk_int prompt)
{
    const hbk_request *r = &v->requests[i];
    json_t *ids = json_array();
    for (hbk_int k = 0; k < r->output.n; k++) json_array_append_new(ids, json_integer(r->output.data[k]));
    json_t *j = json_pack("{s:s, s:o, s:s, s:I}", "text", hbk_reply_text(r->reply), "ids", ids, "finish",
                          hbk_finish_name(r->finish), "prompt_tokens", (json_int_t)r->n_prompt);
    if (j && prompt >= 0) json_object_set_new(j, "prompt", json_integer((json_int_t)prompt));
    if (j && r->logprobs) json_object_set_new(j, "logprobs", cmd_logprobs_json(w, r->logprobs));
    return j;
}

/* Says on stderr that a text was cut, which nobody could see in it. */
static void cmd_say_cut(const hbk_request *r)
{
    if (r->finish == HBK_FINISH_LENGTH)
        fprintf(stderr, "humpback: cut off after %lld tokens: see --max-new\n", (long long)r->output.n);
    if (r->finish == HBK_FINISH_CONTEXT)
        fprintf(stderr, "humpback: cut off where the context ended, %lld tokens after the prompt\n",
                (long long)r->output.n);
}

/* Prints what a reply has that was not printed yet. */
static bool cmd_on_token(void *ctx, hbk_int request, int32_t id)
{
    const char *piece;
    size_t n = hbk_reply_take((hbk_reply *)ctx, &piece);
    (void)request;
    (void)id;
    if (n) fwrite(piece, 1, n, stdout);
    if (n) fflush(stdout);
    return true;
}

/* Texts on their way to stdout: each in its turn, as soon as it and all before it are finished. */
typedef struct cmd_printer {
    cli *c;
    const cmd_world *w;
    cmd_wave *v;
    hbk_int next; /* the first text that was not printed */
    bool grows;   /* a text that is alone is printed while it grows */
    bool ok;
} cmd_printer;

/* One finished text in the form that was asked for, an empty line between two. */
static void cmd_print_one(cmd_printer *p, hbk_int i)
{
    const hbk_request *r = &p->v->requests[i];
    hbk_int n = p->v->n * p->v->samples;
    if (cli_has(p->c, "json")) {
        json_t *text = cmd_generated_json(p->w, p->v, i, n > 1 ? i / p->v->samples : -1);
        p->ok = cli_print_json(text, &p->c->err) && p->ok;
    } else if (cli_has(p->c, "print-ids")) {
        cmd_print_ids(r->output.data, r->output.n);
    } else {
        if (p->next) putchar('\n');
        cmd_on_token(r->reply, i, 0);
        putchar('\n');
        cmd_say_cut(r);
    }
    fflush(stdout);
    p->next++;
}

/* Ctrl-C ends the texts that are being made; those that wait are passed over, as an empty prompt is. */
static bool cmd_on_text(void *ctx, hbk_int request, int32_t id)
{
    cmd_printer *p = (cmd_printer *)ctx;
    hbk_int n = p->v->n * p->v->samples;
    while (p->ok && p->next < n && p->v->requests[p->next].finish != HBK_FINISH_COUNT)
        cmd_print_one(p, p->next);
    if (p->grows) cmd_on_token(p->v->replies, request, id);
    if (p->ok && !cli_interrupted) return true;
    for (hbk_int i = 0; i < n; i++)
        if (p->v->requests[i].finish == HBK_FINISH_COUNT && !p->v->requests[i].output.n)
            p->v->requests[i].n_prompt = 0;
    return false;
}

/* After the last token: what is finished and was not printed yet. */
static bool cmd_print_rest(cmd_printer *p)
{
    hbk_int n = p->v->n * p->v->samples, finished = p->next;
    for (hbk_int i = p->next; p->ok && i < n; i++) {
        const hbk_request *r = &p->v->requests[i];
        if (r->finish == HBK_FINISH_CANCELLED || r->n_prompt == 0) continue;
        cmd_print_one(p, i);
        finished++;
    }
    if (p->ok && finished < n) {
        if (p->grows) putchar('\n');
        p->ok = hbk_fail(&p->c->err, HBK_ERROR_CANCELLED, "generate: stopped at %lld of %lld texts",
                         (long long)finished, (long long)n);
    }
    return p->ok;
}

/* --prompt, once or several times; a text that is alone is printed while it grows. */
static bool cmd_generate_prompts(cli *c, const cmd_world *w, const cmd_decoding *d)
{
    cmd_wave v;
    hbk_int n = 0, limit = w->tuned.model->config.context_length;
    const char *text;
    if (d->o.max_length > 0) limit = HBK__MIN(limit, d->o.max_length);
    while (cli_nth(c, "prompt", (int)n)) n++;
    bool ok = cmd_wave_new(&v, n, d->samples, &c->err);
    while (ok && (text = cli_nth(c, "prompt", (int)v.n)) != NULL) {
        const hbk_tokens *ids = &v.prompts[v.n];
        ok = cmd_prompt(c, w, text, &v.prompts[v.n++]);
        if (ok && ids->n == 0)
            ok = hbk_fail(&c->err, HBK_ERROR_DATA, "the prompt is empty: there is nothing to continue");
        if (ok && ids->n >= limit)
            ok = hbk_fail(
                &c->err, HBK_ERROR_RANGE,
                "the prompt is %lld tokens long, the model's context holds %lld and must leave room for an "
                "answer: shorten it",
                (long long)ids->n, (long long)limit);
    }
    bool alone = n * d->samples == 1 && !cli_has(c, "json") && !cli_has(c, "print-ids");
    cmd_printer printer = {c, w, &v, 0, alone, true};
    hbk_stream stream = {cmd_on_text, &printer};
    if (ok) cli_watch(c);
    ok = ok && cmd_wave_run(c, w, &v, d, &stream) && cmd_print_rest(&printer);
    cmd_wave_free(&v);
    return ok;
}

/* Reads up to `size` rows and makes their prompts. False on an error. */
static bool cmd_wave_read(cli *c, const cmd_world *w, cmd_wave *v, hbk_int size, hbk_jsonl_reader *in)
{
    const char *path = cli_text(c, "data"), *text;
    json_t *row;
    int got = 0;
    while (v->n < size && (got = hbk_jsonl_next(in, &row, &c->err)) > 0) {
        const char *key = json_object_get(row, "instruction") ? "instruction" : "prompt";
        if (!hbk_json_string(row, key, &text, path, hbk_jsonl_line(in), &c->err)) return false;
        v->rows[v->n] = json_incref(row);
        hbk_tokens *prompt = &v->prompts[v->n++];
        if (!cmd_prompt(c, w, text, prompt)) return false;
        if (prompt->n == 0)
            return hbk_fail_at(&c->err, HBK_ERROR_DATA, path, hbk_jsonl_line(in),
                               "the prompt is empty: there is nothing to continue");
    }
    return got >= 0;
}

/* Every row as it came, with "output" and "finish", and "logprobs" where they are asked for. */
static bool cmd_wave_write(cli *c, const cmd_world *w, cmd_wave *v, hbk_jsonl_writer *out)
{
    bool ok = true;
    for (hbk_int i = 0; ok && i < v->n; i++) {
        const hbk_request *r = &v->requests[i];
        if (json_object_set_new(v->rows[i], "output", json_string(hbk_reply_text(r->reply))) != 0 ||
            json_object_set_new(v->rows[i], "finish", json_string(hbk_finish_name(r->finish))) != 0 ||
            (r->logprobs &&
             json_object_set_new(v->rows[i], "logprobs", cmd_logprobs_json(w, r->logprobs)) != 0))
            ok = hbk_fail(&c->err, HBK_ERROR_MEMORY, "out of memory for a row");
        ok = ok && hbk_jsonl_write(out, v->rows[i], &c->err);
    }
    return ok && hbk_jsonl_sync(out, &c->err);
}

/* What a file of texts is made with: the options of every decoding stage, and generate's own. */
static json_t *cmd_generate_options(cli *c, const cmd_world *w, const cmd_decoding *d)
{
    json_t *options = cmd_options(c, w, &d->o, cli_text(c, "data")), *stops = json_array();
    for (hbk_int i = 0; i < d->n_stops; i++) json_array_append_new(stops, json_string(d->stops[i]));
    if (options && (json_object_set_new(options, "stop", stops) != 0 ||
                    json_object_set_new(options, "logprobs", json_integer((json_int_t)d->logprobs)) != 0)) {
        hbk_fail(&c->err, HBK_ERROR_MEMORY, "out of memory for the options");
        json_decref(options);
        options = NULL;
    }
    return options;
}

/* --data to --out, wave by wave, behind the waves that are there already. */
static bool cmd_generate_file(cli *c, const cmd_world *w, const cmd_decoding *d)
{
    const char *data = cli_text(c, "data"), *path = cli_text(c, "out");
    const hbk_progress *progress = cli_watch(c);
    hbk_int total, done, wave = d->o.wave;
    cmd_wave v;
    if (!cmd_begin(c, path, cmd_generate_options(c, w, d)) || !hbk_jsonl_count(data, &total, &c->err) ||
        !hbk_jsonl_count(path, &done, &c->err))
        return false;
    done -= done % wave;
    hbk_jsonl_reader *in = hbk_jsonl_open(data, NULL, &c->err);
    hbk_jsonl_writer *out = in ? hbk_jsonl_create(path, done, NULL, &c->err) : NULL;
    bool ok = cmd_wave_new(&v, wave, 1, out ? &c->err : NULL) && out;
    while (ok && (ok = cmd_wave_read(c, w, &v, wave, in)) && v.n > 0) {
        if (v.first >= done) {
            hbk_int end = v.first + v.n;
            ok = cmd_wave_run(c, w, &v, d, NULL) && cmd_wave_write(c, w, &v, out) &&
                 hbk_report(progress, "generate", end, HBK__MAX(total, end), "rows", &c->err, "%s", "");
        }
        cmd_wave_clear(&v);
    }
    if (ok && v.first == 0) ok = hbk_fail_at(&c->err, HBK_ERROR_DATA, data, 0, "holds no row");
    if (ok) cli_draw_end(&c->meter);
    if (ok) cli_say(c, "%lld rows: %s\n", (long long)v.first, path);
    cmd_wave_free(&v);
    hbk_jsonl_close(in);
    ok = hbk_jsonl_finish(out, ok ? &c->err : NULL) && ok;
    if (!ok) cmd_drop_empty(path);
    return ok;
}

/* Everything that shapes a decoding, over the defaults in *o. */
static void cmd_bind_decode(const cli *c, hbk_decode_options *o)
{
    cli_bind(c, &cmd_sampling_group, "", o);
    cli_bind(c, &cmd_seed_group, "", o);
    cli_bind(c, &cmd_wave_group, "", o);
    o->cache = cmd_cache(c);
}

/* What the prompt's tag is: the finetuned folder's own, or what is said here. */
static bool cmd_choose_tag(cli *c, cmd_world *w)
{
    const char *tags = cli_text(c, "inference-tags"), *tag = cli_text(c, "tag");
    if (tags && !hbk_inference_tag(w->tag, tags, cli_text(c, "tag-seed"), cli_text(c, "tag-web"), &c->err))
        return false;
    return !tag || snprintf(w->tag, sizeof w->tag, "%s", tag) < (int)sizeof w->tag ||
           hbk_fail(&c->err, HBK_ERROR_RANGE, "--tag is longer than %d bytes", (int)sizeof w->tag - 1);
}

#define CMD_ONE_ADAPTER "a call for each, or /adapter in a chat, which goes from one to the other"

static int cmd_generate(cli *c)
{
    cmd_world w;
    cmd_decoding d;
    memset(&w, 0, sizeof w);
    memset(&d, 0, sizeof d);
    if (cli_once(c, "adapter", CMD_ONE_ADAPTER) || cli_once(c, "data", "a call for each file"))
        return CLI_MISUSED;
    if (cli_has(c, "prompt") == cli_has(c, "data"))
        return cli_misused(c, "generate needs exactly one of --prompt, --data");
    if (cli_has(c, "data") != cli_has(c, "out")) return cli_misused(c, "--data and --out go together");
    if (cli_has(c, "n") && cli_has(c, "data")) return cli_misused(c, "--n is for --prompt");
    if (cli_has(c, "logprobs") && !cli_has(c, "data") && !cli_has(c, "json"))
        return cli_misused(c, "--logprobs needs --json");
    d.logprobs = cli_has(c, "logprobs") ? cli_int(c, "logprobs") : -1;
    d.samples = cli_int(c, "n");
    if (cmd_read_stops(c, &d)) return CLI_MISUSED;
    cmd_generate_defaults(&d.o, false);
    cmd_bind_decode(c, &d.o);
    bool ok = cmd_open(c, &w) && cmd_choose_tag(c, &w);
    if (ok && cli_has(c, "reverse")) w.use = HBK_BACKWARD;
    if (ok) cmd_warn_of_template(c, &w);
    if (ok) cmd_template_end(&w, &d);
    ok = ok && (cli_has(c, "data") ? cmd_generate_file(c, &w, &d) : cmd_generate_prompts(c, &w, &d));
    cmd_close(&w);
    return cli_end(c, ok);
}

/* ---- conversations -----------------------------------------------------------------

   A turn's prompt is the whole conversation as ids; the session still holds all of them but the newest, so a
   turn costs what is new. When the room is used up the conversation ends: to drop its oldest turns would mean
   to compute all others anew, and to forget without saying so.

   Another adapter takes the same conversation over: its next prompt is that conversation, read anew. */

enum { CMD_CHAT_ROOM = 8192 }; /* tokens, where the model's context is longer and nothing else is said */

typedef struct cmd_talk {
    cli *c;
    cmd_world *w;
    const cmd_decoding *d;
    hbk_session *session;
    hbk_tokens ids; /* the conversation up to the end of the last reply's text */
    hbk_int room, turns, asked; /* tokens; turns of this conversation, and of all */
    hbk_text system;            /* "": none */
    hbk_reply reply;
    bool terminal;
} cmd_talk;

/* The first Ctrl-C asks for an end; a second one before anybody looked does not ask. */
static void cmd_on_interrupt(int number)
{
    (void)number;
    if (cli_interrupted) _exit(CLI_INTERRUPTED);
    cli_interrupted = 1;
}

static bool cmd_on_talk(void *ctx, hbk_int request, int32_t id)
{
    cmd_on_token(ctx, request, id);
    return !cli_interrupted;
}

/* Appends what the user says to the conversation. The model may have begun what ends its reply (llama2's
   blank before eos): those ids are not said twice. */
static bool cmd_talk_ask(cmd_talk *t, const char *text)
{
    hbk_tokens next;
    hbk_render r;
    memset(&next, 0, sizeof next);
    memset(&r, 0, sizeof r);
    r.use = t->turns ? HBK_NEXT : HBK_FORWARD;
    r.instruction = text;
    r.tag = t->w->tag[0] ? t->w->tag : NULL;
    r.system = t->system.len ? t->system.data : NULL;
    bool ok = hbk_template_tokens(t->w->tmpl, t->w->tok, &r, &next, NULL, &t->c->err);
    hbk_int same = t->turns ? HBK__MIN(t->ids.n, next.n) : 0;
    for (; same > 0; same--)
        if (hbk__common_ids(t->ids.data + t->ids.n - same, same, next.data, same) == same) break;
    if (ok) hbk_tokens_append(&t->ids, next.data + same, next.n - same);
    hbk_tokens_free(&next);
    return ok && hbk_tokens_ok(&t->ids, &t->c->err);
}

static void cmd_talk_reset(cmd_talk *t)
{
    t->ids.n = 0;
    t->turns = 0;
}

static void cmd_talk_note(cmd_talk *t, const hbk_request *r)
{
    if (r->finish == HBK_FINISH_LENGTH) cmd_say_cut(r);
    if (r->finish == HBK_FINISH_TOO_LONG)
        fprintf(stderr,
                "humpback: that does not fit: the conversation has %lld of %lld tokens, that would be %lld; "
                "shorten it, or begin anew with /reset\n",
                (long long)t->ids.n, (long long)t->room, (long long)r->n_prompt);
    if (r->finish == HBK_FINISH_CONTEXT)
        fprintf(stderr, "humpback: the conversation fills its %lld tokens: begin anew with /reset\n",
                (long long)t->room);
}

/* One turn: what the user says, and the reply as it comes. */
static bool cmd_talk_turn(cmd_talk *t, const char *text)
{
    hbk_request r;
    hbk_stream stream = {cmd_on_talk, &t->reply};
    hbk_int before = t->ids.n;
    if (!cmd_talk_ask(t, text)) return false;
    memset(&r, 0, sizeof r);
    hbk_reply_clear(&t->reply);
    r.prompt = t->ids.data;
    r.n_prompt = t->ids.n;
    r.rng = hbk_rng_at(t->d->o.seed, "chat", (uint64_t)t->asked++);
    r.reply = &t->reply;
    bool ok = hbk_generate(t->session, &r, 1, &t->d->o.sampling, &stream, &t->c->err);
    if (ok && r.finish != HBK_FINISH_TOO_LONG) {
        cmd_on_token(&t->reply, 0, 0); /* what was held back */
        putchar('\n');
        fflush(stdout);
        hbk_tokens_append(&t->ids, r.output.data, r.output.n);
        t->turns++;
    } else {
        t->ids.n = before;
    }
    if (ok) cmd_talk_note(t, &r);
    hbk_tokens_free(&r.output);
    cli_interrupted = 0;
    return ok && hbk_tokens_ok(&t->ids, &t->c->err);
}

/* Says that the finetuned folder of `recipe` learned another template than the one that is spoken here. */
static bool cmd_talk_compare(const cmd_talk *t, const char *dir, const char *recipe)
{
    hbk_template *own = hbk_template_load(recipe, NULL, &t->c->err);
    if (own && hbk_template_hash(own) != hbk_template_hash(t->w->tmpl))
        fprintf(stderr, "humpback: %s was trained with template %s, here it is %s\n", dir,
                hbk_template_name(own), hbk_template_name(t->w->tmpl));
    hbk_template_free(own);
    return own != NULL;
}

/* Opens what /adapter names over the conversation's model, with its tag. */
static bool cmd_talk_open(cmd_talk *t, const char *dir, hbk_tuned *next, char tag[512])
{
    char recipe[512];
    bool trained;
    cmd_world w;
    memset(&w, 0, sizeof w);
    if (strcmp(dir, "none") == 0) return hbk_recipe_tag(tag, cli_text(t->c, "model"), &t->c->err);
    if (!hbk_tuned_load(next, t->w->tuned.model, dir, NULL, &t->c->err)) return false;
    if (next->own_model)
        return hbk_fail_at(&t->c->err, HBK_ERROR_OPTION, dir, 0,
                           "is a model of its own, no adapter: talk to it with chat --adapter");
    if (!cmd_open_recipe(t->c, &w, dir, recipe, &trained)) return false;
    if (w.use == HBK_BACKWARD)
        return hbk_fail_at(&t->c->err, HBK_ERROR_OPTION, dir, 0, "is a backward model: it asks questions");
    return (!trained || cmd_talk_compare(t, dir, recipe)) && hbk_recipe_tag(tag, dir, &t->c->err);
}

/* The conversation goes on with another adapter, or with none; where that fails, with the one that it has. */
static void cmd_talk_adapter(cmd_talk *t, const char *dir)
{
    hbk_tuned next;
    char tag[512] = "";
    memset(&next, 0, sizeof next);
    if (cmd_talk_open(t, dir, &next, tag) && hbk_session_switch(t->session, next.adapter, &t->c->err)) {
        hbk_adapter *before = t->w->tuned.adapter;
        t->w->tuned.adapter = next.adapter;
        next.adapter = before;
        memcpy(t->w->tag, tag, sizeof tag);
        fprintf(stderr, "humpback: %s from here on\n", strcmp(dir, "none") == 0 ? "no adapter" : dir);
    } else {
        fprintf(stderr, "humpback: %s\n", t->c->err.message);
    }
    hbk_tuned_free(&next);
}

/* A line that begins with a slash; false: leave. */
static bool cmd_talk_command(cmd_talk *t, const char *line)
{
    size_t n = strcspn(line, " ");
    const char *rest = line + n + strspn(line + n, " ");
    if (strcmp(line, "/quit") == 0 || strcmp(line, "/exit") == 0) return false;
    if (strcmp(line, "/reset") == 0) {
        cmd_talk_reset(t);
        fputs("humpback: a new conversation\n", stderr);
    } else if (n == 7 && strncmp(line, "/system", n) == 0) {
        if (!hbk_template_has_system(t->w->tmpl)) {
            fprintf(stderr, "humpback: template %s has no place for a system text\n",
                    hbk_template_name(t->w->tmpl));
            return true;
        }
        hbk_text_clear(&t->system);
        hbk_text_add(&t->system, rest);
        cmd_talk_reset(t);
        fprintf(stderr, "humpback: a new conversation, %s\n",
                *rest ? "with that in advance" : "without a system text");
    } else if (n == 8 && *rest && strncmp(line, "/adapter", n) == 0) {
        cmd_talk_adapter(t, rest);
    } else {
        if (strcmp(line, "/help") != 0) fprintf(stderr, "humpback: %.40s is unknown\n", line);
        fputs("/reset         forget the conversation and begin a new one\n"
              "/adapter D     go on with the adapter D, or with none\n"
              "/system TEXT   begin a new one with TEXT said to the model in advance\n"
              "/help          this list\n"
              "/quit          leave, like Ctrl-D\n"
              "Ctrl-C stops a reply. A line that begins with // is said with one slash.\n",
              stderr);
    }
    return true;
}

/* The next line without its end; false at the end of the input, or when the user leaves with Ctrl-C twice. */
static bool cmd_talk_line(cmd_talk *t, char **line, size_t *room, int *code)
{
    for (bool warned = false;; warned = true) {
        if (t->terminal) fputs("> ", stdout);
        fflush(stdout);
        ssize_t n = getline(line, room, stdin);
        if (n >= 0) {
            while (n > 0 && strchr("\r\n", (*line)[n - 1])) (*line)[--n] = 0;
            return true;
        }
        if (!cli_interrupted || warned || !t->terminal) break;
        cli_interrupted = 0;
        clearerr(stdin);
        fputs("\nhumpback: Ctrl-C again leaves, as Ctrl-D does\n", stderr);
    }
    if (t->terminal) putchar('\n');
    *code = cli_interrupted ? CLI_INTERRUPTED : CLI_DONE;
    return false;
}

/* Talks until the input ends; an exit code. */
static int cmd_talk_on(cmd_talk *t)
{
    char *line = NULL;
    size_t room = 0;
    int code = CLI_DONE;
    bool ok = true;
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = cmd_on_interrupt; /* without SA_RESTART: a line that is being read is given up */
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    t->terminal = isatty(0) && isatty(1);
    if (t->terminal)
        fprintf(stderr, "humpback: template %s, room for %lld tokens; /help tells of commands\n",
                hbk_template_name(t->w->tmpl), (long long)t->room);
    while (ok && cmd_talk_line(t, &line, &room, &code)) {
        if (!line[strspn(line, " \t")]) continue;
        if (line[0] == '/' && line[1] != '/') {
            if (!cmd_talk_command(t, line)) break;
        } else {
            ok = cmd_talk_turn(t, line + (line[0] == '/'));
        }
    }
    free(line);
    return ok ? code : cli_fail(t->c);
}

static int cmd_chat(cli *c)
{
    cmd_world w;
    cmd_decoding d;
    cmd_talk t;
    int code = CLI_FAILED;
    memset(&w, 0, sizeof w);
    memset(&d, 0, sizeof d);
    memset(&t, 0, sizeof t);
    const char *name = cli_text(c, "template"), *system = cli_text(c, "system");
    if (name && strcmp(name, "none") == 0) return cli_misused(c, "a conversation needs a template");
    if (cli_once(c, "adapter", CMD_ONE_ADAPTER)) return CLI_MISUSED;
    if (cmd_read_stops(c, &d)) return CLI_MISUSED;
    cmd_generate_defaults(&d.o, false);
    cli_bind(c, &cmd_sampling_group, "", &d.o);
    if (cli_has(c, "seed")) d.o.seed = (uint64_t)cli_int(c, "seed");
    bool ok = cmd_open(c, &w);
    if (ok && w.use == HBK_BACKWARD)
        ok = hbk_fail(&c->err, HBK_ERROR_OPTION,
                      "%s is a backward model: it asks questions, generate --prompt gives it an answer",
                      cli_text(c, "adapter") ? cli_text(c, "adapter") : cli_text(c, "model"));
    if (ok && system && !hbk_template_has_system(w.tmpl))
        ok = hbk_fail(&c->err, HBK_ERROR_OPTION, "template %s has no place for a system text",
                      hbk_template_name(w.tmpl));
    if (ok) {
        cmd_warn_of_template(c, &w);
        cmd_template_end(&w, &d);
        t.c = c;
        t.w = &w;
        t.d = &d;
        t.reply.tok = w.tok;
        t.reply.stops = d.stops;
        t.reply.n_stops = d.n_stops;
        t.reply.trim = true;
        hbk_text_add(&t.system, system);
        t.room = w.tuned.model->config.context_length;
        t.room = HBK__MIN(t.room, cli_has(c, "max-length") ? cli_int(c, "max-length") : CMD_CHAT_ROOM);
        t.session =
            hbk_session_new(w.tuned.model, w.tuned.adapter, 1, t.room, cmd_cache(c), NULL, &c->err);
        ok = t.session != NULL && hbk_text_ok(&t.system, &c->err);
    }
    code = ok ? cmd_talk_on(&t) : cli_fail(c);
    hbk_session_free(t.session);
    hbk_tokens_free(&t.ids);
    hbk_text_free(&t.system);
    hbk_reply_free(&t.reply);
    cmd_close(&w);
    return code;
}

#endif /* CMD_GENERATE_H */
