/* humpback - the command line of humpback.h - public domain

   Each command is a function cmd_NAME that reads its flags, calls the library and prints what came of it.
   Tables say which flags there are; cli.h parses them, and prints them for --help.

     1  flags of the library's options
     2  what commands share     models, templates, adapters, tags, files that are continued
     3  looking                 tokenize, logits
     4  generating              generate, chat
     5  data                    corpus, seeds
     6  the stages              finetune, augment, curate
     7  the loop                run, report
     8  exporting               export
     9  commands and their own flags

   Results go to stdout, progress and errors to stderr. */

#define HUMPBACK_IMPLEMENTATION
#include "../humpback.h"

#include "cli.h"

#include "bench.h"
#include "curve.h"
#include "demo.h"
#include "inspect.h"
#include "plan.h"
#include "report.h"
#include "seeds.h"

/* ==== 1  FLAGS OF THE LIBRARY'S OPTIONS =====================================

   Flags whose value goes into a field of an options struct, and the defaults that --help prints for them. */

#define CMD_FLAG_JSON                                                                                        \
    {                                                                                                        \
        "json", CLI_SWITCH, NULL, NULL, "the result as JSON on stdout", 0, 0, CLI_FREE                       \
    }

static void cmd_generate_defaults(void *options, bool full)
{
    hbk_decode_options *o = (hbk_decode_options *)options;
    (void)full;
    *o = hbk_augment_defaults();
    o->sampling = hbk_sampling_defaults();
}

static void cmd_augment_defaults(void *options, bool full)
{
    (void)full;
    *(hbk_decode_options *)options = hbk_augment_defaults();
}

static void cmd_rate_defaults(void *options, bool full)
{
    (void)full;
    *(hbk_decode_options *)options = hbk_curate_defaults().decode;
}

static void cmd_train_defaults(void *options, bool full)
{
    *(hbk_train_options *)options = hbk_train_defaults(full);
}

static void cmd_curate_defaults(void *options, bool full)
{
    (void)full;
    *(hbk_curate_options *)options = hbk_curate_defaults();
}

static void cmd_corpus_defaults(void *options, bool full)
{
    (void)full;
    *(hbk_corpus_options *)options = hbk_corpus_defaults();
}

static const cli_flag cmd_sampling_flags[] = {
    {"temperature", CLI_REAL, "X", NULL, "of sampling; 0: greedy", 0, 100,
     offsetof(hbk_decode_options, sampling.temperature)},
    {"top-p", CLI_REAL, "X", NULL, "the smallest set of ids of that much probability; 1: all", 0, 1,
     offsetof(hbk_decode_options, sampling.top_p)},
    {"top-k", CLI_INT, "N", NULL, "the N most likely ids only; 0: all", 0, CLI_MOST,
     offsetof(hbk_decode_options, sampling.top_k)},
    {"min-p", CLI_REAL, "X", NULL, "ids of that share of the likeliest one's probability; 0: all", 0, 1,
     offsetof(hbk_decode_options, sampling.min_p)},
    {"repetition-penalty", CLI_REAL, "X", NULL, "makes ids that occurred less likely; 1: none", 0.01, 100,
     offsetof(hbk_decode_options, sampling.repetition_penalty)},
    {"max-new", CLI_INT, "N", NULL, "most new tokens of a text", 1, 1e9,
     offsetof(hbk_decode_options, sampling.max_new)},
    CLI_END};
static const cli_flag cmd_seed_flags[] = {
    {"seed", CLI_SEED, "N", NULL, "of all random choices", 0, 0, offsetof(hbk_decode_options, seed)},
    {"max-length", CLI_INT, "N", "(the model's context)", "longest prompt and answer together, in tokens", 2,
     1e9, offsetof(hbk_decode_options, max_length)},
    CLI_END};
static const cli_flag cmd_wave_flags[] = {{"wave", CLI_INT, "N", NULL,
                                           "records that are decoded, written and made safe together", 1, 1e6,
                                           offsetof(hbk_decode_options, wave)},
                                          {"slots", CLI_INT, "N", NULL, "sequences decoded side by side", 1,
                                           1e4, offsetof(hbk_decode_options, slots)},
                                          CLI_END};
static const cli_flag cmd_train_flags[] = {
    {"rank", CLI_INT, "N", NULL, "of the LoRA adapter", 1, 1e5, offsetof(hbk_train_options, lora.rank)},
    {"alpha", CLI_REAL, "X", NULL, "of the adapter, which is scaled by alpha/rank", 0, 1e6,
     offsetof(hbk_train_options, lora.alpha)},
    {"targets", CLI_TARGETS, "LIST", "(all)",
     "adapted: q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj,lm_head", 0, 0,
     offsetof(hbk_train_options, lora.targets)},
    {"rslora", CLI_SWITCH, NULL, NULL, "scale the adapter by alpha/sqrt(rank)", 0, 0,
     offsetof(hbk_train_options, lora.rslora)},
    {"lora-plus", CLI_REAL, "X", NULL, "learning rate of B over that of A", 1e-9, 1e6,
     offsetof(hbk_train_options, lora_plus)},
    {"neftune", CLI_REAL, "X", NULL, "noise on the embeddings; 5 is usual, 0 none", 0, 1e6,
     offsetof(hbk_train_options, neftune)},
    {"dropout", CLI_REAL, "X", NULL, "a share, of the adapter's input or the residual branches", 0, 0.99,
     offsetof(hbk_train_options, dropout)},
    {"lr", CLI_REAL, "X", NULL, "first learning rate", 0, 1e3, offsetof(hbk_train_options, lr)},
    {"lr-end", CLI_REAL, "X", NULL, "last learning rate", 0, 1e3, offsetof(hbk_train_options, lr_end)},
    {"schedule", CLI_CHOICE, "linear|cosine|constant", NULL, "from the first to the last", 0, 0,
     offsetof(hbk_train_options, schedule)},
    {"warmup", CLI_INT, "N", NULL, "steps in which the rate rises from 0", 0, 1e9,
     offsetof(hbk_train_options, warmup)},
    {"weight-decay", CLI_REAL, "X", NULL, "on matrices, never on norms or biases", 0, 1e3,
     offsetof(hbk_train_options, weight_decay)},
    {"beta1", CLI_REAL, "X", NULL, "decay of AdamW's mean", 0, 0.999999, offsetof(hbk_train_options, beta1)},
    {"beta2", CLI_REAL, "X", NULL, "decay of AdamW's square", 0, 0.999999,
     offsetof(hbk_train_options, beta2)},
    {"clip", CLI_REAL, "X", NULL, "most norm of a step's gradient; 0: any", 0, 1e9,
     offsetof(hbk_train_options, clip)},
    {"batch", CLI_INT, "N", "(8 below 3000 examples, else 32)", "examples per batch", 1, 1e6,
     offsetof(hbk_train_options, batch)},
    {"accumulate", CLI_INT, "N", NULL, "batches per step", 1, 1e6, offsetof(hbk_train_options, accumulate)},
    {"epochs", CLI_REAL, "X", "(none)", "passes over the examples, instead of --steps", 1e-6, 1e6,
     offsetof(hbk_train_options, epochs)},
    {"steps", CLI_INT, "N", "(the paper's table by number of examples)", "updates of the weights", 1, 1e9,
     offsetof(hbk_train_options, steps)},
    {"max-tokens", CLI_INT, "N", NULL, "most tokens in one pass; a batch may take several", 1, 1e8,
     offsetof(hbk_train_options, max_tokens)},
    {"replay-per-batch", CLI_INT, "N", NULL, "raw documents of --replay added to each batch", 0, 1e6,
     offsetof(hbk_train_options, replay)},
    {"recompute", CLI_SWITCH, NULL, NULL, "less memory, more time, the same bits", 0, 0,
     offsetof(hbk_train_options, recompute)},
    {"validate-every", CLI_INT, "N", NULL, "steps between validations; 0: at the end only", 0, 1e9,
     offsetof(hbk_train_options, validate_every)},
    {"patience", CLI_INT, "N", NULL, "stop after so many validations that were no better; 0: never", 0, 1e9,
     offsetof(hbk_train_options, patience)},
    {"no-shuffle", CLI_OFF, NULL, NULL, "take the examples in file order", 0, 0,
     offsetof(hbk_train_options, shuffle)},
    {"save-every", CLI_INT, "N", NULL, "steps between checkpoints; 0: none", 0, 1e9,
     offsetof(hbk_train_options, save_every)},
    {"seed", CLI_SEED, "N", NULL, "of all random choices", 0, 0, offsetof(hbk_train_options, seed)},
    CLI_END};
static const cli_flag cmd_curate_flags[] = {
    {"readout", CLI_CHOICE, "text|expected", NULL, "the written score, or its mean under the model", 0, 0,
     offsetof(hbk_curate_options, readout)},
    {"votes", CLI_INT, "N", NULL, "ratings per pair, averaged; above 1 needs a temperature", 1, 1000,
     offsetof(hbk_curate_options, votes)},
    {"keep", CLI_REAL, "X", NULL, "least score that is kept, 1 to 5", 1, 5,
     offsetof(hbk_curate_options, keep)},
    {"keep-share", CLI_REAL, "X", "(0: by --keep)", "the best share of the rated pairs instead, up to 1", 0,
     1, offsetof(hbk_curate_options, keep_share)},
    CLI_END};
static const cli_flag cmd_corpus_flags[] = {
    {"out", CLI_TEXT, "F", NULL, "segments, {\"id\",\"text\",\"header\",\"source\"} a line", 1, 0, CLI_FREE},
    {"min-chars", CLI_INT, "N", NULL, "shortest segment, in characters", 1, 1e9,
     offsetof(hbk_corpus_options, min_chars)},
    {"max-chars", CLI_INT, "N", NULL, "longest segment, in characters", 1, 1e9,
     offsetof(hbk_corpus_options, max_chars)},
    {"max-repeat", CLI_REAL, "X", NULL, "most similarity of two sentences of a segment, 0 to 1", 0, 1,
     offsetof(hbk_corpus_options, max_repeat)},
    {"max-upper", CLI_REAL, "X", NULL, "most capitals among a header's letters, 0 to 1", 0, 1,
     offsetof(hbk_corpus_options, max_upper)},
    {"keep-all", CLI_SWITCH, NULL, NULL, "segments before any filter", 0, 0,
     offsetof(hbk_corpus_options, keep_all)},
    {"rejects", CLI_TEXT, "F", NULL, "what is dropped goes here, with its \"reason\"", 0, 0, CLI_FREE},
    CMD_FLAG_JSON,
    CLI_END};

static const cli_group cmd_sampling_group = {"Sampling", cmd_sampling_flags, NULL, cmd_generate_defaults};
static const cli_group cmd_seed_group = {"Randomness and room", cmd_seed_flags, NULL, cmd_augment_defaults};
static const cli_group cmd_wave_group = {"Batching (part of what makes a run the same run)", cmd_wave_flags,
                                         NULL, cmd_augment_defaults};
static const cli_group cmd_augment_sampling_group = {"Sampling", cmd_sampling_flags, NULL,
                                                     cmd_augment_defaults};
static const cli_group cmd_rate_sampling_group = {"Sampling", cmd_sampling_flags, NULL, cmd_rate_defaults};
static const cli_group cmd_loop_sampling_group = {
    "Sampling of instructions; ratings are greedy, with 512 tokens, unless --curate-... says otherwise",
    cmd_sampling_flags, "augment curate", cmd_augment_defaults};
static const cli_group cmd_train_group = {"Training", cmd_train_flags, NULL, cmd_train_defaults};
static const cli_group cmd_loop_train_group = {
    "Training, of three stages: myx, the backward model; m0, the first model that rates; mt, M1 and later",
    cmd_train_flags, "myx m0 mt", cmd_train_defaults};
static const cli_group cmd_curate_group = {"Curation", cmd_curate_flags, NULL, cmd_curate_defaults};
static const cli_group cmd_corpus_group = {"Flags", cmd_corpus_flags, NULL, cmd_corpus_defaults};

/* ==== 2  WHAT COMMANDS SHARE ================================================ */

/* What --model, --tokenizer, --adapter and --template open. */
typedef struct cmd_world {
    hbk_model *base;
    hbk_tokenizer *tok;
    hbk_tuned tuned;    /* the base where there is no --adapter */
    hbk_template *tmpl; /* NULL: raw text */
    hbk_use use;        /* what the adapter was trained for */
    char tag[512];      /* what inference appends, or "" */
} cmd_world;

static void cmd_close(cmd_world *w)
{
    hbk_template_free(w->tmpl);
    hbk_tuned_free(&w->tuned);
    hbk_tokenizer_free(w->tok);
    hbk_model_free(w->base);
}

/* Whether a tokenizer of n pieces can be the one of a model with V ids. Embeddings are padded, and some
   tokenizers add a token or two that their model never learned; beyond that they belong to others. */
static bool cmd_sizes_fit(cli *c, const char *path, hbk_int n, hbk_int V)
{
    hbk_int apart = n > V ? n - V : V - n;
    bool usual = apart * 20 < V;
    if (n > V && !usual)
        return hbk_fail_at(&c->err, HBK_ERROR_OPTION, path, 0,
                           "has %lld pieces, the model only %lld: it is another model's tokenizer",
                           (long long)n, (long long)V);
    if (n > V)
        fprintf(stderr, "humpback: %s has %lld pieces, the model %lld: the others cannot be used\n", path,
                (long long)n, (long long)V);
    if (n < V && !usual && V > (n + 255) / 256 * 256)
        fprintf(stderr, "humpback: %s has %lld pieces, the model %lld: is it the model's own tokenizer?\n",
                path, (long long)n, (long long)V);
    return true;
}

/* The tokenizer stands in the model's folder or GGUF file, or --tokenizer names it. */
static bool cmd_open_tokenizer(cli *c, cmd_world *w)
{
    const char *path = cli_text(c, "tokenizer"), *model = cli_text(c, "model");
    if (!path && !hbk_file_exists(model)) return hbk__no_such_model(model, &c->err);
    if (!path && !hbk_dir_exists(model) && !hbk__is_gguf(model))
        return hbk_fail(&c->err, HBK_ERROR_OPTION,
                        "%s is a file and holds no tokenizer: name one with --tokenizer", model);
    path = path ? path : model;
    w->tok = hbk_tokenizer_load(path, NULL, &c->err);
    return w->tok && (!w->base || cmd_sizes_fit(c, path, hbk_tokenizer_size(w->tok),
                                                w->base->config.vocab_size));
}

static bool cmd_open_model(cli *c, cmd_world *w)
{
    w->base = hbk_model_load(cli_text(c, "model"), NULL, &c->err);
    return w->base && cmd_open_tokenizer(c, w);
}

static bool cmd_open_adapter(cli *c, cmd_world *w)
{
    const char *dir = cli_text(c, "adapter");
    w->tuned.model = w->base;
    return !dir || hbk_tuned_load(&w->tuned, w->base, dir, NULL, &c->err);
}

/* What humpback.json of the finetuned folder `dir` says: which way it was trained, and whether there is a
   template in it; none where it is null. */
static bool cmd_open_recipe(cli *c, cmd_world *w, const char *dir, char path[512], bool *has_template)
{
    *has_template = false;
    if (!hbk_path(path, dir, "humpback.json", &c->err)) return false;
    if (!hbk_file_exists(path)) return true;
    json_t *recipe = hbk_json_read(path, &c->err);
    const char *use = json_string_value(json_object_get(recipe, "use"));
    if (use && strcmp(use, "backward") == 0) w->use = HBK_BACKWARD;
    *has_template = json_is_object(json_object_get(recipe, "template"));
    json_decref(recipe);
    return recipe != NULL;
}

/* The template: --template, else the one that the finetuned folder `dir` was trained with, else that of the
   model. */
static bool cmd_open_template(cli *c, cmd_world *w, const char *dir)
{
    const char *name = cli_text(c, "template");
    char recipe[512];
    bool trained;
    if (!cmd_open_recipe(c, w, dir, recipe, &trained)) return false;
    if (!name && trained) name = recipe;
    if (name && strcmp(name, "none") == 0) return true;
    w->tmpl = name ? hbk_template_load(name, NULL, &c->err)
                   : hbk_template_for_model(cli_text(c, "model"), NULL, &c->err);
    return w->tmpl && hbk_template_check(w->tmpl, w->tok, &c->err);
}

/* All of it. A model that was itself finetuned whole keeps its recipe beside its weights. */
static bool cmd_open(cli *c, cmd_world *w)
{
    const char *dir = cli_text(c, "adapter") ? cli_text(c, "adapter") : cli_text(c, "model");
    return cmd_open_model(c, w) && cmd_open_adapter(c, w) && cmd_open_template(c, w, dir) &&
           hbk_recipe_tag(w->tag, dir, &c->err);
}

/* Puts the text of the file that flag `name` names in the place of a wording of the template. */
static bool cmd_wording(cli *c, hbk_template *t, const char *name, hbk_use use)
{
    const char *path = cli_text(c, name);
    hbk_text text;
    memset(&text, 0, sizeof text);
    bool ok = !path || (hbk_file_read(path, (size_t)1 << 20, &text, &c->err) &&
                        hbk_template_set(t, use, hbk_text_string(&text), &c->err));
    hbk_text_free(&text);
    return ok;
}

/* Parses "1,2,3". */
static bool cmd_ids(const char *text, hbk_tokens *ids)
{
    char *end;
    do {
        long id = strtol(text, &end, 10);
        if (end == text || id < 0 || id > INT32_MAX) return false;
        hbk_tokens_push(ids, (int32_t)id);
        text = end + 1;
    } while (*end == ',');
    return !*end;
}

static void cmd_print_ids(const int32_t *ids, hbk_int n)
{
    putchar('[');
    for (hbk_int i = 0; i < n; i++) printf("%s%d", i ? ", " : "", (int)ids[i]);
    puts("]");
}

/* A text as a model meets it at its beginning: bos, where the format has one, and the ids. */
static bool cmd_encode(cli *c, const hbk_tokenizer *tok, const char *text, size_t n, hbk_tokens *ids)
{
    enum { AUTO, YES, NO };
    int bos = cli_choice(c, "bos");
    if (bos == YES && hbk_tokenizer_bos(tok) < 0)
        return hbk_fail(&c->err, HBK_ERROR_OPTION, "--bos yes: the vocabulary has no bos");
    if (bos == YES || (bos == AUTO && hbk_tokenizer_adds_bos(tok)))
        hbk_tokens_push(ids, hbk_tokenizer_bos(tok));
    unsigned flags = cli_has(c, "special") ? HBK_ENCODE_SPECIAL : 0;
    return hbk_tokenizer_encode(tok, text, n, flags, ids, &c->err) && hbk_tokens_ok(ids, &c->err);
}

/* What --inference-tags and the tags make; those that are given where the list is not. */
static bool cmd_inference_tag(cli *c, char tag[512])
{
    const char *seed = cli_text(c, "tag-seed"), *web = cli_text(c, "tag-web"),
               *list = cli_text(c, "inference-tags");
    if (!list) list = seed && web ? "seed,web" : seed ? "seed" : web ? "web" : "none";
    return hbk_inference_tag(tag, list, seed, web, &c->err);
}

/* ---- files that a second call continues ---------------------------------------------

   Beside OUT, which grows by waves, stands OUT.options.json: what it was begun with. A second call continues
   with the same and refuses other options, for a file of two minds would be of no use. */

/* The options of a decoding stage over the file `input`; NULL on failure. */
static json_t *cmd_options(cli *c, const cmd_world *w, const hbk_decode_options *o, const char *input)
{
    uint64_t data, model = hbk_model_hash(w->tuned.model);
    if (w->tuned.adapter) model = hbk_adapter_hash(model, w->tuned.adapter);
    if (!hbk_file_hash(input, &data, &c->err)) return NULL;
    const hbk_sampling *p = &o->sampling;
    json_t *options = json_pack(
        "{s:s, s:o, s:o, s:o, s:s, s:f, s:f, s:I, s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:i}", "command",
        c->command->name, "input", hbk__hex(data), "model", hbk__hex(model), "template",
        hbk__hex(w->tmpl ? hbk_template_hash(w->tmpl) : 0), "tag", w->tag, "temperature", p->temperature,
        "top_p", p->top_p, "top_k", (json_int_t)p->top_k, "min_p", p->min_p, "repetition_penalty",
        p->repetition_penalty, "max_new", (json_int_t)p->max_new, "seed", (json_int_t)o->seed, "wave",
        (json_int_t)o->wave, "slots", (json_int_t)o->slots, "max_length", (json_int_t)o->max_length,
        "threads", hbk__n_threads());
    if (!options) hbk_fail(&c->err, HBK_ERROR_MEMORY, "out of memory for the options");
    return options;
}

static bool cmd_record_path(char path[512], const char *out, hbk_error *err)
{
    return snprintf(path, 512, "%s.options.json", out) < 512 ||
           hbk_fail_at(err, HBK_ERROR_RANGE, out, 0, "this path is too long");
}

/* Whether `out` may be written or continued with these options, which are let go of; NULL: false. */
static bool cmd_begin(cli *c, const char *out, json_t *options)
{
    char path[512];
    hbk_int rows = 0;
    json_t *then = NULL;
    bool ok = options && cmd_record_path(path, out, &c->err) && hbk_jsonl_count(out, &rows, &c->err);
    if (ok && rows > 0) {
        if (hbk_file_exists(path)) ok = (then = hbk_json_read(path, &c->err)) != NULL;
        ok = ok &&
             hbk_json_same(then, options, out, "another --out, or --force, which sets it aside", &c->err);
        if (!ok && cli_has(c, "force")) ok = hbk_file_set_aside(out, &c->err);
    }
    ok = ok && hbk_json_write(path, options, &c->err);
    json_decref(then);
    json_decref(options);
    return ok;
}

/* After a failure: a file without a row is no file. */
static void cmd_drop_empty(const char *out)
{
    char path[512];
    hbk_int rows = 0;
    if (!hbk_jsonl_count(out, &rows, NULL) || rows > 0 || !cmd_record_path(path, out, NULL)) return;
    unlink(out);
    unlink(path);
}

/* ==== 3  LOOKING ============================================================ */

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
    w.base = hbk_model_load(cli_text(c, "model"), NULL, &c->err);
    bool ok = w.base && cmd_open_adapter(c, &w);
    if (ok && text) ok = cmd_open_tokenizer(c, &w) && cmd_encode(c, w.tok, text, strlen(text), &ids);
    ok = ok && hbk_tokens_ok(&ids, &c->err) && cmd_write_logits(c, &w, &ids);
    hbk_tokens_free(&ids);
    cmd_close(&w);
    return cli_end(c, ok);
}

/* ==== 4  GENERATING ========================================================= */

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
                                     HBK__MAX(length, longest + 1), NULL, &c->err);
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

static int cmd_generate(cli *c)
{
    cmd_world w;
    cmd_decoding d;
    memset(&w, 0, sizeof w);
    memset(&d, 0, sizeof d);
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
    if (ok) cmd_template_end(&w, &d);
    ok = ok && (cli_has(c, "data") ? cmd_generate_file(c, &w, &d) : cmd_generate_prompts(c, &w, &d));
    cmd_close(&w);
    return cli_end(c, ok);
}

/* ---- conversations -----------------------------------------------------------------

   A turn's prompt is the whole conversation as ids; the session still holds all of them but the newest, so a
   turn costs what is new. When the room is used up the conversation ends: to drop its oldest turns would mean
   to compute all others anew, and to forget without saying so. */

enum { CMD_CHAT_ROOM = 8192 }; /* tokens, where the model's context is longer and nothing else is said */

typedef struct cmd_talk {
    cli *c;
    const cmd_world *w;
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
    } else {
        if (strcmp(line, "/help") != 0) fprintf(stderr, "humpback: %.40s is unknown\n", line);
        fputs("/reset         forget the conversation and begin a new one\n"
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
        t.session = hbk_session_new(w.tuned.model, w.tuned.adapter, 1, t.room, NULL, &c->err);
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

/* ==== 5  DATA =============================================================== */

static bool cmd_has_ending(const char *path, const char *ending)
{
    size_t n = strlen(path), m = strlen(ending);
    return n >= m && strcmp(path + n - m, ending) == 0;
}

/* Adds one input. Markup would pass for text and spoil the corpus, so it is refused. */
static bool cmd_corpus_input(hbk_corpus *corpus, const char *path, hbk_error *err)
{
    static const char *const unread[] = {".html", ".htm", ".xhtml", ".warc", ".gz"};
    for (size_t i = 0; i < sizeof unread / sizeof *unread; i++)
        if (cmd_has_ending(path, unread[i]))
            return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, path, 0,
                               "HTML and WARC are not read yet: give plain text, markdown or JSONL");
    if (hbk_dir_exists(path))
        return hbk_fail_at(err, HBK_ERROR_FILE, path, 0, "is a folder: name the files in it");
    return hbk_corpus_add_file(corpus, path, err);
}

static int cmd_corpus(cli *c)
{
    hbk_corpus_options o = hbk_corpus_defaults();
    hbk_int counts[HBK_DROP_COUNT] = {0};
    const char *path = cli_text(c, "out"), *rejects = cli_text(c, "rejects");
    cli_bind(c, &cmd_corpus_group, "", &o);
    if (o.min_chars > o.max_chars)
        return cli_misused(c, "--min-chars %lld is above --max-chars %lld", (long long)o.min_chars,
                           (long long)o.max_chars);
    for (int i = 0; i < c->n_operands; i++)
        if (strcmp(c->operands[i], path) == 0)
            return cli_misused(c, "--out %.200s is an input as well", path);
    const hbk_progress *progress = cli_watch(c);
    hbk_file f;
    memset(&f, 0, sizeof f);
    hbk_corpus *corpus =
        hbk_file_begin(&f, path, &c->err) ? hbk_corpus_new(&o, f.tmp, rejects, NULL, &c->err) : NULL;
    bool ok = corpus != NULL;
    for (int i = 0; ok && i < c->n_operands; i++)
        ok = cmd_corpus_input(corpus, c->operands[i], &c->err) &&
             hbk_report(progress, "corpus", i + 1, c->n_operands, "files", &c->err, "%s", c->operands[i]);
    if (corpus) ok = hbk_corpus_finish(corpus, counts, ok ? &c->err : NULL) && ok;
    ok = ok && hbk_file_commit(&f, &c->err);
    hbk_file_abandon(&f);
    if (!ok) return cli_fail(c);
    cli_draw_end(&c->meter);
    json_t *drops = json_object();
    for (int i = 0; i < HBK_DROP_COUNT; i++) {
        json_object_set_new(drops, hbk_drop_name((hbk_drop)i), json_integer(counts[i]));
        if (counts[i]) cli_say(c, "%8lld %s\n", (long long)counts[i], hbk_drop_name((hbk_drop)i));
    }
    if (cli_has(c, "json"))
        ok = cli_print_json(drops, &c->err);
    else
        json_decref(drops);
    return cli_end(c, ok);
}

static int cmd_seeds(cli *c)
{
    tool_seed_counts counts;
    const char *out = cli_text(c, "out");
    if (strcmp(c->operands[0], out) == 0) return cli_misused(c, "--out %.200s is the input as well", out);
    hbk_file f;
    memset(&f, 0, sizeof f);
    bool ok = hbk_file_begin(&f, out, &c->err) &&
              tool_seeds(c->operands[0], f.tmp, cli_int(c, "limit"), &counts, &c->err) &&
              hbk_file_commit(&f, &c->err);
    hbk_file_abandon(&f);
    if (!ok) return cli_fail(c);
    json_t *fates = json_pack("{s:s, s:I}", "format", counts.format, "rows", (json_int_t)counts.rows),
           *lines = json_object();
    cli_say(c, "%lld rows of format %s\n", (long long)counts.rows, counts.format);
    for (int i = 0; i < TOOL_SEED_FATE_COUNT; i++) {
        const char *name = tool_seed_fate_name((tool_seed_fate)i);
        char reason[256];
        json_object_set_new(fates, name, json_integer(counts.fates[i]));
        if (!counts.fates[i]) continue;
        tool_seed_reason(&counts, (tool_seed_fate)i, reason);
        cli_say(c, "%8lld %s\n", (long long)counts.fates[i], reason);
        if (i != TOOL_SEED_WRITTEN) json_object_set_new(lines, name, json_integer(counts.first[i]));
    }
    json_object_set_new(fates, "first_lines", lines);
    if (cli_has(c, "json"))
        ok = cli_print_json(fates, &c->err);
    else
        json_decref(fates);
    return cli_end(c, ok);
}

/* ==== 6  THE STAGES ========================================================= */

/* What a piece or a text spells, with control characters as codes: the data must not steer the terminal. A
   text keeps its line breaks. */
static void cmd_print_safe(const char *s, bool line_breaks)
{
    for (; s && *s; s++) {
        unsigned char byte = (unsigned char)*s;
        if ((byte < ' ' && !(line_breaks && (byte == '\n' || byte == '\t'))) || byte == 127)
            printf("\\x%02x", (unsigned)byte);
        else
            putchar(byte);
    }
}

/* How what is learned is told from what is not. */
typedef struct cmd_marks {
    const char *name, *on, *off, *row_on, *row_off;
} cmd_marks;

static cmd_marks cmd_choose_marks(void)
{
    static const cmd_marks plain = {"between >>> and <<<", ">>>", "<<<", "", ""};
    static const cmd_marks green = {"in green", "\033[32m", "\033[0m", "\033[32m", "\033[0m"};
    const char *terminal = getenv("TERM");
    bool colours = isatty(1) && !getenv("NO_COLOR") && terminal && strcmp(terminal, "dumb") != 0;
    return colours ? green : plain;
}

/* The text of n ids; a control token, which has none, by its name. `text` is scratch. */
static bool cmd_print_text(const hbk_tokenizer *tok, const int32_t *ids, hbk_int n, bool begins,
                           hbk_text *text, hbk_error *err)
{
    for (hbk_int k = 0, end; k < n; k = end) {
        unsigned flags = begins ? 0u : (unsigned)HBK_ENCODE_CONTINUE;
        for (end = k; end < n; end++) { /* as far as there is text: letters of several bytes stay whole */
            text->len = 0;
            if (!hbk_tokenizer_decode(tok, ids + end, 1, HBK_ENCODE_CONTINUE, text, err)) return false;
            if (text->len == 0) break;
        }
        text->len = 0;
        if (!hbk_tokenizer_decode(tok, ids + k, end - k, flags, text, err)) return false;
        cmd_print_safe(hbk_text_string(text), true);
        begins = begins && end == k;
        if (end < n) cmd_print_safe(hbk_tokenizer_piece(tok, ids[end++]), false);
    }
    return true;
}

/* Example i as running text, what is learned marked. */
static bool cmd_dump_text(const hbk_dataset *d, hbk_int i, const hbk_tokenizer *tok, const cmd_marks *marks,
                          hbk_text *text, hbk_error *err)
{
    const int32_t *ids = d->tokens.data;
    bool ok = true;
    for (hbk_int k = d->start[i], end; ok && k < d->start[i + 1]; k = end) {
        bool learn = d->learn[k] != 0;
        for (end = k; end < d->start[i + 1] && (d->learn[end] != 0) == learn; end++) {}
        if (learn) fputs(marks->on, stdout);
        ok = cmd_print_text(tok, ids + k, end - k, k == d->start[i], text, err);
        if (learn) fputs(marks->off, stdout);
    }
    puts("\n");
    return ok;
}

/* Prints the first examples as the trainer sees them: the text, then every token and whether the loss is on
   it. */
static bool cmd_dump_labels(const hbk_dataset *d, const hbk_tokenizer *tok, hbk_error *err)
{
    hbk_int most = HBK__MIN(d->n, 5);
    cmd_marks marks = cmd_choose_marks();
    hbk_text text;
    memset(&text, 0, sizeof text);
    bool ok = true;
    for (hbk_int i = 0; ok && i < most; i++) {
        hbk_int start = d->start[i], n = d->start[i + 1] - start, parts = 0;
        for (hbk_int k = start; k < start + n; k++) parts += d->learn[k] && (k == start || !d->learn[k - 1]);
        printf("%s# example %lld of %lld: the loss is on %lld of %lld tokens, in %lld place%s, %s\n\n",
               i ? "\n" : "", (long long)i + 1, (long long)d->n, (long long)hbk_dataset_targets(d, i),
               (long long)n, (long long)parts, parts == 1 ? "" : "s", marks.name);
        ok = cmd_dump_text(d, i, tok, &marks, &text, err);
        puts("     n       id  loss  piece");
        for (hbk_int k = start; ok && k < start + n; k++) {
            int32_t id = d->tokens.data[k];
            printf("%s%6lld  %7d  %s  ", d->learn[k] ? marks.row_on : "", (long long)(k - start), (int)id,
                   d->learn[k] ? "loss" : "-   ");
            cmd_print_safe(hbk_tokenizer_piece(tok, id), false);
            puts(d->learn[k] ? marks.row_off : "");
        }
    }
    hbk_text_free(&text);
    return ok;
}

/* What a finetuning reads: its examples, the raw documents that are replayed, and what it is validated on. */
typedef struct cmd_sets {
    hbk_dataset examples, replay, validation;
} cmd_sets;

static void cmd_sets_free(cmd_sets *s)
{
    hbk_dataset_free(&s->examples);
    hbk_dataset_free(&s->replay);
    hbk_dataset_free(&s->validation);
}

/* Adds the rows of a file as examples and says what was left out. */
static bool cmd_add_examples(cli *c, const cmd_world *w, const char *path, hbk_int limit, hbk_dataset *d)
{
    hbk_data_options o;
    memset(&o, 0, sizeof o);
    o.tmpl = w->tmpl;
    o.tok = w->tok;
    o.use = cli_has(c, "reverse") ? HBK_BACKWARD : HBK_FORWARD;
    o.tag_seed = cli_text(c, "tag-seed");
    o.tag_web = cli_text(c, "tag-web");
    o.max_length = limit;
    o.overlong = cli_has(c, "overlong") ? (hbk_overlong)cli_choice(c, "overlong") : HBK_OVERLONG_DROP;
    hbk_form form;
    if (!hbk_dataset_add_file(d, path, &o, &form, &c->err)) return false;
    hbk_int all = d->n + d->n_too_long + d->n_no_target;
    if (d->n_too_long)
        fprintf(stderr, "humpback: note: %lld of %lld %s of %s are longer than %lld tokens and left out\n",
                (long long)d->n_too_long, (long long)all, hbk_form_name(form), path, (long long)limit);
    if (d->n_cut)
        fprintf(stderr, "humpback: note: %lld of %lld %s of %s are longer than %lld tokens and cut there\n",
                (long long)d->n_cut, (long long)all, hbk_form_name(form), path, (long long)limit);
    if (d->n_no_target)
        fprintf(stderr, "humpback: note: %lld of %lld %s of %s have nothing to learn and are left out\n",
                (long long)d->n_no_target, (long long)all, hbk_form_name(form), path);
    return true;
}

static bool cmd_train_data(cli *c, const cmd_world *w, const hbk_train_options *o, cmd_sets *s)
{
    hbk_int context = w->base->config.context_length;
    hbk_int limit = o->max_length > 0 ? HBK__MIN(o->max_length, context) : context;
    bool ok = cmd_add_examples(c, w, cli_text(c, "data"), limit, &s->examples);
    if (ok && cli_has(c, "replay"))
        ok = hbk_dataset_add_texts(&s->replay, cli_text(c, "replay"), w->tok, limit, &c->err);
    if (ok && cli_has(c, "validation"))
        ok = cmd_add_examples(c, w, cli_text(c, "validation"), limit, &s->validation);
    if (ok && cli_has(c, "validation-share"))
        ok = hbk_dataset_split(&s->examples, &s->validation, cli_real(c, "validation-share"), o->seed,
                               &c->err);
    return ok;
}

/* Trains and says where the result is. */
static bool cmd_train(cli *c, const cmd_world *w, const hbk_train_options *o, const cmd_sets *s)
{
    const char *dir = cli_text(c, "out"), *init_dir = cli_text(c, "init-adapter");
    hbk_recipe recipe;
    memset(&recipe, 0, sizeof recipe);
    recipe.tmpl = w->tmpl;
    recipe.tok = w->tok;
    recipe.base_name = cli_text(c, "model");
    recipe.use = cli_has(c, "reverse") ? HBK_BACKWARD : HBK_FORWARD;
    if (recipe.use == HBK_FORWARD) { /* the backward prompt carries no tag */
        recipe.tag_seed = cli_text(c, "tag-seed");
        recipe.tag_web = cli_text(c, "tag-web");
        recipe.inference_tag = w->tag[0] ? w->tag : NULL;
    }
    const hbk_dataset *d = &s->examples;
    hbk_train_data data = {d, s->replay.n ? &s->replay : NULL, s->validation.n ? &s->validation : NULL};
    hbk_adapter *init = NULL;
    if (init_dir && !(init = hbk_adapter_load(init_dir, w->base, NULL, &c->err))) return false;
    bool ok = hbk_finetune(w->base, &data, o, init, &recipe, dir, cli_watch(c), NULL, &c->err);
    hbk_adapter_free(init);
    if (!ok || !tool_curve(dir, NULL, &c->err)) return false;
    cli_draw_end(&c->meter);
    cli_say(c, "%s of %lld examples (the loss is on %lld of their %lld tokens): %s\nits loss: %s/loss.svg\n",
            o->full ? "a model" : "an adapter", (long long)d->n, (long long)d->n_targets,
            (long long)d->tokens.n, dir, dir);
    return !cli_has(c, "json") ||
           cli_print_json(json_pack("{s:s, s:s, s:I, s:I, s:I, s:I}", "out", dir, "mode",
                                    o->full ? "full" : "lora", "examples", (json_int_t)d->n, "targets",
                                    (json_int_t)d->n_targets, "too_long", (json_int_t)d->n_too_long,
                                    "peak_bytes", (json_int_t)cli_peak_memory()),
                          &c->err);
}

/* "v_proj=8,lm_head=4" into one number a target, of the kind that the flag takes. False: not such a list. */
static bool cmd_per_target(const char *list, hbk_int ranks[HBK_N_TARGETS], double alphas[HBK_N_TARGETS])
{
    for (const char *at = list; *at;) {
        char name[32], number[32], *end;
        int used = 0, slot = 0;
        if (sscanf(at, "%31[a-z_]=%31[0-9.]%n", name, number, &used) != 2) return false;
        while (slot < HBK_N_TARGETS && strcmp(name, hbk_slot_name((hbk_slot)slot)) != 0) slot++;
        double x = strtod(number, &end);
        if (slot == HBK_N_TARGETS || *end || !(x > 0)) return false;
        if (ranks) ranks[slot] = (hbk_int)x;
        if (ranks && (double)ranks[slot] != x) return false;
        if (alphas) alphas[slot] = x;
        at += used;
        if (*at == ',') at++;
        else if (*at) return false;
    }
    return *list != 0;
}

/* "4" or "4-7", counted from 0, into begin and end. */
static bool cmd_layers(const char *range, hbk_int *begin, hbk_int *end)
{
    long long first, last;
    int used = 0;
    if (sscanf(range, "%lld%n", &first, &used) != 1) return false;
    last = first;
    if (range[used] == '-' && sscanf(range + used, "-%lld%n", &last, &used) == 1) used = (int)strlen(range);
    *begin = first;
    *end = last + 1;
    return !range[used] && first >= 0 && last >= first && last < 1000000;
}

/* Options that are no plain number, and combinations that make no sense; 0 or an exit code. */
static int cmd_finetune_options(cli *c, hbk_train_options *o)
{
    const char *name = cli_text(c, "template"), *layers = cli_text(c, "layers");
    const char *ranks = cli_text(c, "rank-of"), *alphas = cli_text(c, "alpha-of");
    static const char *const of_lora[] = {"rank",     "alpha",  "targets", "rslora",
                                          "rank-of", "alpha-of", "layers", "lora-plus"};
    if (cli_has(c, "epochs") && cli_has(c, "steps"))
        return cli_misused(c, "--epochs and --steps exclude each other");
    if (o->full && cli_has(c, "init-adapter"))
        return cli_misused(c, "--full and --init-adapter exclude each other");
    for (size_t i = 0; i < sizeof of_lora / sizeof *of_lora; i++)
        if (o->full && cli_has(c, of_lora[i]))
            return cli_misused(c, "--%s is of LoRA: it does not go with --full", of_lora[i]);
    if ((o->replay > 0) != cli_has(c, "replay"))
        return cli_misused(c, "--replay and --replay-per-batch go together");
    if (cli_has(c, "validation") && cli_has(c, "validation-share"))
        return cli_misused(c, "--validation and --validation-share exclude each other");
    if (o->patience && !cli_has(c, "validation") && !cli_has(c, "validation-share"))
        return cli_misused(c, "--patience needs --validation or --validation-share");
    if (name && strcmp(name, "none") == 0)
        return cli_misused(c, "--template none: pairs need a template; plain is the simplest");
    if (!cli_has(c, "out") && !cli_has(c, "dump-labels")) return cli_misused(c, "finetune needs --out D");
    if (ranks && !cmd_per_target(ranks, o->lora.target_rank, NULL))
        return cli_misused(c, "--rank-of %s: expected a list such as v_proj=8,lm_head=4", ranks);
    if (alphas && !cmd_per_target(alphas, NULL, o->lora.target_alpha))
        return cli_misused(c, "--alpha-of %s: expected a list such as v_proj=16,lm_head=8", alphas);
    if (layers && !cmd_layers(layers, &o->lora.layer_begin, &o->lora.layer_end))
        return cli_misused(c, "--layers %s: expected a number or a range such as 4-7, from 0", layers);
    o->max_length = cli_has(c, "max-length") ? cli_int(c, "max-length") : -1;
    return 0;
}

static int cmd_finetune(cli *c)
{
    cmd_world w;
    cmd_sets s;
    memset(&w, 0, sizeof w);
    memset(&s, 0, sizeof s);
    hbk_train_options o = hbk_train_defaults(cli_has(c, "full"));
    cli_bind(c, &cmd_train_group, "", &o);
    int misused = cmd_finetune_options(c, &o);
    if (misused) return misused;
    const char *init = cli_text(c, "init-adapter");
    bool ok = cmd_open_model(c, &w) && cmd_open_template(c, &w, init ? init : cli_text(c, "model")) &&
              cmd_inference_tag(c, w.tag) && cmd_train_data(c, &w, &o, &s);
    if (ok && cli_has(c, "dump-labels"))
        ok = cmd_dump_labels(&s.examples, w.tok, &c->err);
    else
        ok = ok && cmd_train(c, &w, &o, &s);
    cmd_sets_free(&s);
    cmd_close(&w);
    return cli_end(c, ok);
}

/* Counts "status" over the rows of a file. */
static json_t *cmd_statuses(const char *path, hbk_error *err)
{
    hbk_jsonl_reader *in = hbk_jsonl_open(path, NULL, err);
    json_t *counts = in ? json_object() : NULL, *row;
    int got = -1;
    while (counts && (got = hbk_jsonl_next(in, &row, err)) > 0) {
        const char *status = json_string_value(json_object_get(row, "status"));
        json_int_t n = json_integer_value(json_object_get(counts, status ? status : "?"));
        json_object_set_new(counts, status ? status : "?", json_integer(n + 1));
    }
    hbk_jsonl_close(in);
    if (got == 0) return counts;
    json_decref(counts);
    return NULL;
}

static int cmd_augment(cli *c)
{
    cmd_world w;
    memset(&w, 0, sizeof w);
    hbk_decode_options o = hbk_augment_defaults();
    cmd_bind_decode(c, &o);
    const char *corpus = cli_text(c, "corpus"), *out = cli_text(c, "out"), *adapter = cli_text(c, "adapter"),
               *key;
    bool ok = cmd_open(c, &w);
    w.tag[0] = 0; /* the backward prompt carries none */
    if (ok && !w.tmpl)
        ok = hbk_fail(&c->err, HBK_ERROR_OPTION, "augment needs a template: --template plain at least");
    ok = ok && cmd_wording(c, w.tmpl, "prompt", HBK_BACKWARD) &&
         cmd_begin(c, out, cmd_options(c, &w, &o, corpus)) &&
         hbk_augment(w.tuned.model, w.tuned.adapter, w.tok, w.tmpl, &o, adapter ? adapter : "", corpus, out,
                     cli_watch(c), NULL, &c->err);
    if (!ok) cmd_drop_empty(out);
    json_t *counts = ok ? cmd_statuses(out, &c->err) : NULL, *n;
    ok = counts != NULL;
    if (ok) cli_draw_end(&c->meter);
    json_object_foreach(counts, key, n) cli_say(c, "%8lld %s\n", (long long)json_integer_value(n), key);
    if (ok && cli_has(c, "json")) ok = cli_print_json(json_incref(counts), &c->err);
    json_decref(counts);
    cmd_close(&w);
    return cli_end(c, ok);
}

static double cmd_percent(hbk_int part, hbk_int whole)
{
    return whole ? 100.0 * (double)part / (double)whole : 0;
}

/* What decision makers look at after a curation. `k` is its number in a loop, 0 outside. */
static void cmd_say_counts(const cli *c, const hbk_curate_counts *n, int k)
{
    char name[32] = "curation";
    if (k) snprintf(name, sizeof name, "curation %d", k);
    cli_say(c, "%s: kept %lld of %lld (%.0f %%)", name, (long long)n->kept, (long long)n->n,
            cmd_percent(n->kept, n->n));
    if (isfinite(n->threshold)) cli_say(c, " with a score of at least %g", n->threshold);
    cli_say(c, "\n  scores   1: %lld   2: %lld   3: %lld   4: %lld   5: %lld\n", (long long)n->histogram[0],
            (long long)n->histogram[1], (long long)n->histogram[2], (long long)n->histogram[3],
            (long long)n->histogram[4]);
    cli_say(c, "  ratings  %lld read (%.0f %%), %lld unparsable, %lld truncated, %lld too long\n",
            (long long)n->rated, cmd_percent(n->rated, n->n), (long long)n->unparsable,
            (long long)n->truncated, (long long)n->too_long);
    if (n->collapsed) {
        const char *what = n->kept * 2 > n->n ? "more than 90 % were kept" : "fewer than 2 % were kept";
        const char *why = n->rated * 2 < n->n ? "Most ratings have no score that could be read"
                                              : "A rater that gives all pairs one score selects nothing";
        cli_say(c,
                "  WARNING: %s. %s: look at the ratings, and try\n"
                "           --readout expected, --keep-share 0.2, more new tokens or a better rater.\n",
                what, why);
    }
}

/* Where the ratings go: --ratings, or beside OUT.jsonl as OUT.ratings.jsonl. */
static bool cmd_ratings_path(cli *c, char path[512])
{
    const char *given = cli_text(c, "ratings"), *out = cli_text(c, "out");
    size_t stem = strlen(out);
    if (cmd_has_ending(out, ".jsonl")) stem -= strlen(".jsonl");
    int n =
        given ? snprintf(path, 512, "%s", given) : snprintf(path, 512, "%.*s.ratings.jsonl", (int)stem, out);
    return n < 512 || hbk_fail_at(&c->err, HBK_ERROR_RANGE, out, 0, "this path is too long");
}

/* Rates the candidates, and selects from all ratings. What is kept may change later, ratings may not. */
static bool cmd_rate_and_select(cli *c, const cmd_world *w, const hbk_curate_options *o,
                                hbk_curate_counts *counts)
{
    const char *candidates = cli_text(c, "candidates"), *out = cli_text(c, "out"),
               *adapter = cli_text(c, "adapter");
    char ratings[512];
    json_t *options = cmd_options(c, w, &o->decode, candidates);
    if (options) {
        json_object_set_new(options, "readout", json_integer(o->readout));
        json_object_set_new(options, "votes", json_integer(o->votes));
    }
    if (!options || !cmd_ratings_path(c, ratings)) {
        json_decref(options);
        return false;
    }
    bool ok = cmd_begin(c, ratings, options) &&
              hbk_rate(w->tuned.model, w->tuned.adapter, w->tok, w->tmpl, o, adapter ? adapter : "",
                       candidates, ratings, cli_watch(c), NULL, &c->err);
    if (!ok) cmd_drop_empty(ratings);
    if (!ok) return false;
    cli_draw_end(&c->meter);
    ok = hbk_select(o, candidates, ratings, out, counts, NULL, &c->err);
    return ok;
}

static int cmd_curate(cli *c)
{
    cmd_world w;
    hbk_curate_counts counts;
    memset(&w, 0, sizeof w);
    hbk_curate_options o = hbk_curate_defaults();
    cli_bind(c, &cmd_curate_group, "", &o);
    cmd_bind_decode(c, &o.decode);
    if (cli_has(c, "keep") && cli_has(c, "keep-share"))
        return cli_misused(c, "--keep and --keep-share exclude each other");
    if (o.votes > 1 && o.decode.sampling.temperature <= 0)
        return cli_misused(c, "--votes %lld needs a --temperature above 0, or all votes are the same",
                           (long long)o.votes);
    bool ok = cmd_open(c, &w);
    w.tag[0] = 0; /* nor does the rating prompt */
    if (ok && !w.tmpl)
        ok = hbk_fail(&c->err, HBK_ERROR_OPTION, "curate needs a template: --template plain at least");
    ok = ok && cmd_wording(c, w.tmpl, "rubric", HBK_RATING) && cmd_rate_and_select(c, &w, &o, &counts);
    if (ok) cmd_say_counts(c, &counts, 0);
    if (ok && cli_has(c, "json")) ok = cli_print_json(hbk__counts_json(&counts), &c->err);
    cmd_close(&w);
    return cli_end(c, ok);
}

/* ==== 7  THE LOOP =========================================================== */

/* A stage's training: what is said for all, and over it what is said for this one. */
static void cmd_bind_stage(const cli *c, const char *stage, hbk_train_options *o)
{
    cli_bind(c, &cmd_train_group, "", o);
    hbk_int steps = o->steps;
    double epochs = o->epochs;
    o->steps = -1;
    o->epochs = 0;
    cli_bind(c, &cmd_train_group, stage, o);
    if (o->steps < 0 && o->epochs <= 0) { /* nothing of its own about its length */
        o->steps = steps;
        o->epochs = epochs;
    }
}

static const char *cmd_or_null(const char *text)
{
    return text && *text ? text : NULL;
}

static hbk_loop_options cmd_loop_options(const cli *c)
{
    hbk_loop_options o = hbk_loop_defaults();
    o.seed_path = cli_text(c, "seed-data");
    o.corpus_path = cli_text(c, "corpus");
    o.model_name = cli_text(c, "model");
    o.replay_path = cli_text(c, "replay");
    o.tag_seed = cmd_or_null(cli_text(c, "tag-seed"));
    o.tag_web = cmd_or_null(cli_text(c, "tag-web"));
    o.inference_tags = cli_text(c, "inference-tags");
    o.iterations = cli_int(c, "iterations");
    o.seed_repeat = cli_int(c, "seed-repeat");
    o.max_length = cli_has(c, "max-length") ? cli_int(c, "max-length") : -1;
    o.force = cli_has(c, "force");
    o.myx = o.m0 = o.mt = hbk_train_defaults(cli_has(c, "full"));
    cmd_bind_stage(c, "myx", &o.myx);
    cmd_bind_stage(c, "m0", &o.m0);
    cmd_bind_stage(c, "mt", &o.mt);
    if (cli_has(c, "seed")) o.seed = o.augment.seed = o.curate.decode.seed = (uint64_t)cli_int(c, "seed");
    cli_bind(c, &cmd_curate_group, "", &o.curate);
    cli_bind(c, &cmd_loop_sampling_group, "", &o.augment);
    cli_bind(c, &cmd_loop_sampling_group, "augment", &o.augment);
    cli_bind(c, &cmd_loop_sampling_group, "curate", &o.curate.decode);
    cli_bind(c, &cmd_wave_group, "", &o.augment);
    cli_bind(c, &cmd_wave_group, "", &o.curate.decode);
    return o;
}

/* A run that is watched: run.json gets a "curated-k" after each curation, and that is when its counts are
   printed. */
typedef struct cmd_run_watch {
    cli *c;
    char run[512], stage[64];
    int said; /* curations whose counts were printed */
} cmd_run_watch;

static void cmd_read_counts(const json_t *j, hbk_curate_counts *n)
{
    const json_t *threshold = json_object_get(j, "threshold");
    memset(n, 0, sizeof *n);
    n->n = json_integer_value(json_object_get(j, "n"));
    n->rated = json_integer_value(json_object_get(j, "rated"));
    n->unparsable = json_integer_value(json_object_get(j, "unparsable"));
    n->truncated = json_integer_value(json_object_get(j, "truncated"));
    n->too_long = json_integer_value(json_object_get(j, "too_long"));
    n->kept = json_integer_value(json_object_get(j, "kept"));
    n->threshold = json_is_number(threshold) ? json_number_value(threshold) : (double)NAN;
    n->collapsed = json_is_true(json_object_get(j, "collapsed"));
    for (size_t i = 0; i < 5; i++)
        n->histogram[i] = json_integer_value(json_array_get(json_object_get(j, "histogram"), i));
}

/* Prints the curations that have ended since the last call. */
static void cmd_say_curations(cmd_run_watch *w)
{
    json_t *run = hbk_file_exists(w->run) ? hbk_json_read(w->run, NULL) : NULL;
    const json_t *stages = json_object_get(run, "stages"), *entry;
    char name[32];
    for (;; w->said++) {
        hbk_curate_counts n;
        snprintf(name, sizeof name, "curated-%d", w->said + 1);
        if (!(entry = json_object_get(stages, name))) break;
        cmd_read_counts(entry, &n);
        cli_draw_end(&w->c->meter);
        cmd_say_counts(w->c, &n, w->said + 1);
        fflush(stdout);
    }
    json_decref(run);
}

static bool cmd_on_run(void *ctx, const char *stage, hbk_int done, hbk_int total, const char *unit,
                       const char *note)
{
    cmd_run_watch *w = (cmd_run_watch *)ctx;
    if (strncmp(w->stage, stage, sizeof w->stage - 1) != 0) {
        snprintf(w->stage, sizeof w->stage, "%s", stage);
        cmd_say_curations(w);
    }
    return cli_on_progress(&w->c->meter, stage, done, total, unit, note);
}

/* What the loop ended with, and the page about it. */
static bool cmd_say_result(cli *c, const char *dir, const hbk_loop_result *r)
{
    char page[512];
    if (!hbk_path(page, dir, "report.html", &c->err) || !tool_report(dir, NULL, &c->err)) return false;
    cli_say(c, "%lld seed pairs, %lld segments, %lld candidates, %lld of them with a usable instruction\n",
            (long long)r->n_seed, (long long)r->n_segments, (long long)r->n_candidates, (long long)r->n_ok);
    if (r->stopped[0]) cli_say(c, "STOPPED EARLY: %s\n", r->stopped);
    cli_say(c, "result: %s\nreport: %s\n", r->final_dir, page);
    if (!cli_has(c, "json")) return true;
    json_t *curations = json_array();
    for (int k = 0; k < 8 && r->curated[k].n; k++)
        json_array_append_new(curations, hbk__counts_json(&r->curated[k]));
    return cli_print_json(json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:o, s:s}", "result", r->final_dir,
                                    "report", page, "iterations", (json_int_t)r->iterations, "seed_pairs",
                                    (json_int_t)r->n_seed, "segments", (json_int_t)r->n_segments,
                                    "candidates", (json_int_t)r->n_candidates, "usable", (json_int_t)r->n_ok,
                                    "curations", curations, "stopped", r->stopped),
                          &c->err);
}

static bool cmd_run_loop(cli *c, const cmd_world *w, hbk_loop_options *o)
{
    cmd_run_watch watch;
    hbk_loop_result r;
    const char *dir = cli_text(c, "out");
    memset(&watch, 0, sizeof watch);
    memset(&r, 0, sizeof r);
    watch.c = c;
    if (!hbk_path(watch.run, dir, "run.json", &c->err)) return false;
    hbk_progress progress = *cli_watch(c);
    progress.call = cmd_on_run;
    progress.ctx = &watch;
    o->tmpl = w->tmpl;
    bool ok = hbk_loop_run(w->base, w->tok, o, dir, &progress, &r, NULL, &c->err);
    if (ok || c->err.code == HBK_ERROR_CANCELLED) cmd_say_curations(&watch);
    cli_draw_end(&c->meter);
    return ok && cmd_say_result(c, dir, &r);
}

static int cmd_run(cli *c)
{
    cmd_world w;
    memset(&w, 0, sizeof w);
    hbk_loop_options o = cmd_loop_options(c);
    const char *name = cli_text(c, "template");
    if (cli_has(c, "epochs") && cli_has(c, "steps"))
        return cli_misused(c, "--epochs and --steps exclude each other");
    if (cli_has(c, "keep") && cli_has(c, "keep-share"))
        return cli_misused(c, "--keep and --keep-share exclude each other");
    if (o.curate.votes > 1 && o.curate.decode.sampling.temperature <= 0)
        return cli_misused(c, "--votes %lld needs a --curate-temperature above 0, or all votes are the same",
                           (long long)o.curate.votes);
    if ((o.myx.replay > 0 || o.m0.replay > 0 || o.mt.replay > 0) != cli_has(c, "replay"))
        return cli_misused(c, "--replay and --replay-per-batch go together");
    if (name && strcmp(name, "none") == 0)
        return cli_misused(c, "--template none: the loop needs a template; plain is the simplest");
    bool ok = cmd_open_model(c, &w) && cmd_open_template(c, &w, cli_text(c, "model")) &&
              cmd_wording(c, w.tmpl, "rubric", HBK_RATING) &&
              cmd_wording(c, w.tmpl, "prompt", HBK_BACKWARD) && cmd_run_loop(c, &w, &o);
    cmd_close(&w);
    return cli_end(c, ok);
}

/* The same in the miniature world, where an oracle can say what came of it. */
static int cmd_demo(cli *c)
{
    const char *dir = cli_text(c, "out");
    char run[512], page[512];
    demo_options o = {(uint64_t)cli_int(c, "seed"), cli_has(c, "lora"), dir};
    bool json = cli_has(c, "json");
    json_t *result = NULL;
    bool ok = tool_demo(&o, cli_watch(c), json ? NULL : stdout, json ? &result : NULL, &c->err) &&
              hbk_path(run, dir, "run", &c->err) && hbk_path(page, run, "report.html", &c->err) &&
              tool_report(run, NULL, &c->err);
    if (ok) cli_say(c, "report: %s\n", page);
    if (ok && json) ok = cli_print_json(json_incref(result), &c->err);
    json_decref(result);
    return cli_end(c, ok);
}

static int cmd_report(cli *c)
{
    const char *run = c->operands[0], *out = cli_text(c, "out");
    char state[512], metrics[512];
    if (!hbk_dir_exists(run)) {
        hbk_fail_at(&c->err, HBK_ERROR_FILE, run, 0, "there is no such run folder");
        return cli_fail(c);
    }
    bool ok = hbk_path(state, run, "run.json", &c->err) && hbk_path(metrics, run, "metrics.jsonl", &c->err);
    bool tuned = ok && !hbk_file_exists(state) && hbk_file_exists(metrics);
    ok = ok && (tuned ? tool_curve(run, out, &c->err) : tool_report(run, out, &c->err));
    if (ok && out) printf("%s\n", out);
    if (ok && !out) printf("%s/%s\n", run, tuned ? "loss.svg" : "report.html");
    return cli_end(c, ok);
}

/* ==== 8  EXPORTING ==========================================================

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
           cmd_check_export(c, w, part, apart);
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

/* ==== 9  COMMANDS AND THEIR OWN FLAGS ======================================= */

#define CMD_FLAG_FORCE(what)                                                                                 \
    {                                                                                                        \
        "force", CLI_SWITCH, NULL, NULL, what, 0, 0, CLI_FREE                                                \
    }
#define CMD_FLAG_MODEL                                                                                       \
    {"model", CLI_TEXT, "M", NULL, "a Hugging Face folder, a .gguf, or a llama2.c .bin", 1, 0, CLI_FREE},    \
    {                                                                                                        \
        "tokenizer", CLI_TEXT, "F", NULL, "the tokenizer, where the model is one file", 0, 0, CLI_FREE       \
    }
#define CMD_FLAG_ADAPTER(what)                                                                               \
    {                                                                                                        \
        "adapter", CLI_TEXT, "D", NULL, what ": a PEFT folder, a .gguf, or one of finetune --full", 0, 0,    \
            CLI_FREE                                                                                         \
    }
#define CMD_FLAG_TEMPLATE(more)                                                                              \
    {                                                                                                        \
        "template", CLI_TEXT, "NAME|F", "(that of the finetuned folder, else of the model)",                 \
            "llama2, llama3, chatml, plain" more " or a JSON file", 0, 0, CLI_FREE                           \
    }
#define CMD_FLAG_STOP                                                                                        \
    {                                                                                                        \
        "stop", CLI_TEXT, "T", NULL, "a text that ends an answer, which is cut before it; may be repeated",  \
            0, 0, CLI_FREE                                                                                   \
    }
#define CMD_FLAGS_TEXT                                                                                       \
    {"bos", CLI_CHOICE, "auto|yes|no", "auto", "bos before raw text; auto: where the format has it",         \
     0,     0,          CLI_FREE},                                                                           \
    {                                                                                                        \
        "special", CLI_SWITCH, NULL, NULL, "special tokens spelled in raw text become their ids", 0, 0,      \
            CLI_FREE                                                                                         \
    }

static const cli_flag cmd_demo_flags[] = {
    {"out", CLI_TEXT, "D", "humpback-demo", "the run folder", 0, 0, CLI_FREE},
    {"seed", CLI_SEED, "N", "1", "of the miniature world and of all random choices", 0, 0, CLI_FREE},
    {"lora", CLI_SWITCH, NULL, NULL, "finetune adapters instead of whole models", 0, 0, CLI_FREE},
    CMD_FLAG_JSON,
    CLI_END};
static const cli_flag cmd_tokenize_flags[] = {
    {"model", CLI_TEXT, "M", NULL, "a folder with a tokenizer", 0, 0, CLI_FREE},
    {"tokenizer", CLI_TEXT, "F", NULL, "a tokenizer.json, tokenizer.model, tokenizer.bin or .gguf instead", 0,
     0, CLI_FREE},
    {"text", CLI_TEXT, "T", NULL, "a text", 0, 0, CLI_FREE},
    {"file", CLI_TEXT, "F", NULL, "a file that is one text", 0, 0, CLI_FREE},
    {"lines", CLI_TEXT, "F", NULL, "a file whose every line is a text", 0, 0, CLI_FREE},
    {"jsonl", CLI_TEXT, "F", NULL, "a file with one JSON string a line, each a text", 0, 0, CLI_FREE},
    {"decode", CLI_TEXT, "IDS", NULL, "ids like 1,15043,3186: prints their text", 0, 0, CLI_FREE},
    {"decode-jsonl", CLI_TEXT, "F", NULL, "a file with one JSON array of ids a line: prints JSON strings", 0,
     0, CLI_FREE},
    CMD_FLAGS_TEXT,
    CLI_END};
static const cli_flag cmd_logits_flags[] = {
    CMD_FLAG_MODEL,
    CMD_FLAG_ADAPTER("finetuned weights"),
    {"ids", CLI_TEXT, "IDS", NULL, "token ids like 1,15043,3186", 0, 0, CLI_FREE},
    {"text", CLI_TEXT, "T", NULL, "a raw text instead", 0, 0, CLI_FREE},
    {"out", CLI_TEXT, "F", NULL, "safetensors with \"logits\", f32 [tokens, vocabulary]", 1, 0, CLI_FREE},
    CMD_FLAGS_TEXT,
    CLI_END};
static const cli_flag cmd_generate_flags[] = {
    CMD_FLAG_MODEL,
    CMD_FLAG_ADAPTER("finetuned weights"),
    {"prompt", CLI_TEXT, "T", NULL, "an instruction; its answer goes to stdout; may be repeated", 0, 0,
     CLI_FREE},
    {"data", CLI_TEXT, "F", NULL, "many: JSONL rows with \"instruction\" or \"prompt\"", 0, 0, CLI_FREE},
    {"out", CLI_TEXT, "F", NULL, "the rows of --data with \"output\" and \"finish\"", 0, 0, CLI_FREE},
    CMD_FLAG_TEMPLATE(", none (raw text)"),
    {"tag", CLI_TEXT, "T", "(the finetuned folder's)", "appended to the instruction", 0, 0, CLI_FREE},
    {"inference-tags", CLI_TEXT, "LIST", "(the finetuned folder's)", "none, seed, web or seed,web", 0, 0,
     CLI_FREE},
    {"tag-seed", CLI_TEXT, "T", HBK_TAG_SEED, "what --inference-tags calls seed", 0, 0, CLI_FREE},
    {"tag-web", CLI_TEXT, "T", HBK_TAG_WEB, "and web", 0, 0, CLI_FREE},
    {"reverse", CLI_SWITCH, NULL, NULL, "the prompt is an output: write its instruction", 0, 0, CLI_FREE},
    CMD_FLAGS_TEXT,
    {"n", CLI_INT, "N", "1", "answers to each --prompt", 1, 1e6, CLI_FREE},
    CMD_FLAG_STOP,
    {"logprobs", CLI_INT, "N", "(off)", "log-probabilities of each token and the N likeliest, with --json", 0,
     1e6, CLI_FREE},
    {"print-ids", CLI_SWITCH, NULL, NULL, "the generated ids as a JSON array instead of the text", 0, 0,
     CLI_FREE},
    CMD_FLAG_FORCE("with --data: set a file that was begun with other options aside"),
    CMD_FLAG_JSON,
    CLI_END};
static const cli_flag cmd_chat_flags[] = {
    CMD_FLAG_MODEL,
    CMD_FLAG_ADAPTER("finetuned weights"),
    CMD_FLAG_TEMPLATE(""),
    {"system", CLI_TEXT, "T", NULL, "said to the model before the conversation", 0, 0, CLI_FREE},
    CMD_FLAG_STOP,
    {"seed", CLI_SEED, "N", "1", "of all random choices", 0, 0, CLI_FREE},
    {"max-length", CLI_INT, "N", "(the model's context, at most 8192)", "longest conversation, in tokens", 2,
     1e9, CLI_FREE},
    CLI_END};
static const cli_flag cmd_seeds_flags[] = {
    {"out", CLI_TEXT, "F", NULL, "pairs, {\"id\",\"instruction\",\"output\",\"source\":\"seed\"} a line", 1,
     0, CLI_FREE},
    {"limit", CLI_INT, "N", "0", "stop after N pairs; 0: take all", 0, CLI_MOST, CLI_FREE},
    CMD_FLAG_JSON,
    CLI_END};
static const cli_flag cmd_finetune_flags[] = {
    CMD_FLAG_MODEL,
    {"data", CLI_TEXT, "F", NULL,
     "rows of pairs (Alpaca), messages, ShareGPT, prompt/completion, Open Assistant trees or text", 1, 0,
     CLI_FREE},
    {"overlong", CLI_CHOICE, "drop|cut|error", "drop", "what is longer than --max-length", 0, 0, CLI_FREE},
    {"out", CLI_TEXT, "D", NULL, "the finetuned folder; one that was begun is continued", 0, 0, CLI_FREE},
    CMD_FLAG_TEMPLATE(""),
    {"reverse", CLI_SWITCH, NULL, NULL, "the backward model: from output to instruction", 0, 0, CLI_FREE},
    {"full", CLI_SWITCH, NULL, NULL, "train every weight instead of an adapter", 0, 0, CLI_FREE},
    {"init-adapter", CLI_TEXT, "D", NULL, "start from this adapter", 0, 0, CLI_FREE},
    {"tag-seed", CLI_TEXT, "T", NULL, "appended to the instruction of rows of source \"seed\"", 0, 0,
     CLI_FREE},
    {"tag-web", CLI_TEXT, "T", NULL, "appended to that of rows of source \"aug\"", 0, 0, CLI_FREE},
    {"inference-tags", CLI_TEXT, "LIST", "(the tags that are given)",
     "what generate will append: none, seed, ...", 0, 0, CLI_FREE},
    {"replay", CLI_TEXT, "F", NULL, "raw documents, JSONL rows with \"text\", mixed in", 0, 0, CLI_FREE},
    {"validation", CLI_TEXT, "F", NULL, "rows never trained on; the weights of their lowest loss are kept", 0,
     0, CLI_FREE},
    {"validation-share", CLI_REAL, "X", "(none)", "hold out this share of --data instead", 1e-9, 0.999,
     CLI_FREE},
    {"rank-of", CLI_TEXT, "LIST", NULL, "ranks that differ: v_proj=8,lm_head=4", 0, 0, CLI_FREE},
    {"alpha-of", CLI_TEXT, "LIST", NULL, "alphas that differ, likewise", 0, 0, CLI_FREE},
    {"layers", CLI_TEXT, "A-B", "(all)", "adapt these layers alone, counted from 0", 0, 0, CLI_FREE},
    {"max-length", CLI_INT, "N", "(the model's context)", "longest example in tokens", 2,
     1e9, CLI_FREE},
    {"dump-labels", CLI_SWITCH, NULL, NULL, "print the first examples and their loss mask, and stop", 0, 0,
     CLI_FREE},
    {"resume", CLI_SWITCH, NULL, NULL, "accepted: what was begun is continued anyway", 0, 0, CLI_FREE},
    CMD_FLAG_JSON,
    CLI_END};
static const cli_flag cmd_augment_flags[] = {
    CMD_FLAG_MODEL,
    CMD_FLAG_ADAPTER("the backward model"),
    {"corpus", CLI_TEXT, "F", NULL, "segments: JSONL rows with \"text\"", 1, 0, CLI_FREE},
    {"out", CLI_TEXT, "F", NULL, "candidates; a file that was begun is continued", 1, 0, CLI_FREE},
    {"prompt", CLI_TEXT, "F", "(the template's)", "a file with the backward wording, with {output}", 0, 0,
     CLI_FREE},
    CMD_FLAG_TEMPLATE(""),
    CMD_FLAG_FORCE("set a file that was begun with other options aside"),
    CMD_FLAG_JSON,
    CLI_END};
static const cli_flag cmd_curate_own_flags[] = {
    CMD_FLAG_MODEL,
    CMD_FLAG_ADAPTER("the rating model"),
    {"candidates", CLI_TEXT, "F", NULL, "what augment wrote", 1, 0, CLI_FREE},
    {"out", CLI_TEXT, "F", NULL, "the pairs that are kept", 1, 0, CLI_FREE},
    {"ratings", CLI_TEXT, "F", "(beside --out, .ratings.jsonl)", "every rating; one begun is continued", 0, 0,
     CLI_FREE},
    {"rubric", CLI_TEXT, "F", "(the template's)",
     "a file with the rating wording, with {instruction} and {output}", 0, 0, CLI_FREE},
    CMD_FLAG_TEMPLATE(""),
    CMD_FLAG_FORCE("set ratings that were begun with other options aside"),
    CMD_FLAG_JSON,
    CLI_END};
static const cli_flag cmd_run_flags[] = {
    CMD_FLAG_MODEL,
    {"seed-data", CLI_TEXT, "F", NULL, "pairs by people: JSONL rows with \"instruction\" and \"output\"", 1,
     0, CLI_FREE},
    {"corpus", CLI_TEXT, "F", NULL, "segments: JSONL rows with \"text\"", 1, 0, CLI_FREE},
    {"out", CLI_TEXT, "D", NULL, "the run folder; one that was begun is continued", 1, 0, CLI_FREE},
    {"iterations", CLI_INT, "N", "2", "curations, each followed by a finetuning", 1, 8, CLI_FREE},
    {"full", CLI_SWITCH, NULL, NULL, "train every weight instead of adapters", 0, 0, CLI_FREE},
    {"seed-repeat", CLI_INT, "N", "1", "copies of the seed among the examples of M1, M2 ...", 1, 1000,
     CLI_FREE},
    {"tag-seed", CLI_TEXT, "T", HBK_TAG_SEED, "after a seed pair's instruction; empty: none", 0, 0, CLI_FREE},
    {"tag-web", CLI_TEXT, "T", HBK_TAG_WEB, "after a curated pair's; empty: none", 0, 0, CLI_FREE},
    {"inference-tags", CLI_TEXT, "LIST", "seed,web", "what generate will append: none, seed, web, ...", 0, 0,
     CLI_FREE},
    {"template", CLI_TEXT, "NAME|F", "(the model's)", "llama2, llama3, chatml, plain or a JSON file", 0, 0,
     CLI_FREE},
    {"prompt", CLI_TEXT, "F", "(the template's)", "a file with the backward wording, with {output}", 0, 0,
     CLI_FREE},
    {"rubric", CLI_TEXT, "F", "(the template's)",
     "a file with the rating wording, with {instruction} and {output}", 0, 0, CLI_FREE},
    {"replay", CLI_TEXT, "F", NULL, "raw documents, JSONL rows with \"text\", mixed in", 0, 0, CLI_FREE},
    {"max-length", CLI_INT, "N", "(the model's context)", "longest example, prompt and answer, in tokens", 2,
     1e9, CLI_FREE},
    CMD_FLAG_FORCE("with other options than before: set the folder aside and start anew"),
    CMD_FLAG_JSON,
    CLI_END};
static const cli_flag cmd_report_flags[] = {
    {"out", CLI_TEXT, "F", "(RUN/report.html, D/loss.svg)", "the page", 0, 0, CLI_FREE}, CLI_END};

static const cli_group cmd_demo_group = {"Flags", cmd_demo_flags, NULL, NULL};
static const cli_group cmd_tokenize_group = {"Flags", cmd_tokenize_flags, NULL, NULL};
static const cli_flag cmd_export_flags[] = {
    CMD_FLAG_MODEL,
    CMD_FLAG_ADAPTER("what is merged into it"),
    {"merge", CLI_TEXT, "DIR", NULL, "a Hugging Face folder: weights, configuration, tokenizer", 0, 0,
     CLI_FREE},
    {"gguf", CLI_TEXT, "F", NULL, "a GGUF file of the model, for llama.cpp", 0, 0, CLI_FREE},
    {"adapter-gguf", CLI_TEXT, "F", NULL, "a GGUF file of the adapter alone", 0, 0, CLI_FREE},
    {"dtype", CLI_CHOICE, "f32|bf16|f16|q8_0", "(the model's; bf16 if that is quantised)",
     "type of the weights; q8_0 in GGUF only", 0, 0, CLI_FREE},
    CMD_FLAG_FORCE("set aside what stands under the output's name, as NAME.1 ..."),
    CMD_FLAG_JSON,
    CLI_END};
static const cli_group cmd_logits_group = {"Flags", cmd_logits_flags, NULL, NULL};
static const cli_group cmd_export_group = {"Flags", cmd_export_flags, NULL, NULL};
static const cli_group cmd_generate_group = {"Flags", cmd_generate_flags, NULL, NULL};
static const cli_group cmd_chat_group = {"Flags", cmd_chat_flags, NULL, NULL};
static const cli_group cmd_seeds_group = {
    "One file of JSON rows, one a line or all in an array, all of one form; a pair from each:\n\n"
    TOOL_SEED_HELP "\nSeveral files: convert each, and put the results together with cat.\n\nFlags",
    cmd_seeds_flags, NULL, NULL};
static const cli_group cmd_finetune_group = {"Flags", cmd_finetune_flags, NULL, NULL};
static const cli_group cmd_augment_group = {"Flags", cmd_augment_flags, NULL, NULL};
static const cli_group cmd_curate_own_group = {"Flags", cmd_curate_own_flags, NULL, NULL};
static const cli_group cmd_run_group = {"Flags", cmd_run_flags, NULL, NULL};
static const cli_group cmd_report_group = {"Flags", cmd_report_flags, NULL, NULL};

static const cli_command cmd_commands[] = {
    {"demo",
     "the whole loop on a built-in miniature world, from nothing, in minutes",
     "[flags]",
     0,
     0,
     {&cmd_demo_group},
     cmd_demo},
    {"run",
     "the whole loop on your data",
     "--model M --seed-data F --corpus F --out D [flags]",
     0,
     0,
     {&cmd_run_group, &cmd_loop_train_group, &cmd_curate_group, &cmd_loop_sampling_group, &cmd_wave_group},
     cmd_run},
    {"corpus",
     "raw text, markdown or JSONL -> segments.jsonl, every drop counted",
     "INPUT... --out F [flags]",
     1,
     1 << 20,
     {&cmd_corpus_group},
     cmd_corpus},
    {"seeds",
     "oasst trees, alpaca, sharegpt, messages, guanaco -> seed.jsonl",
     "INPUT --out F [flags]",
     1,
     1,
     {&cmd_seeds_group},
     cmd_seeds},
    {"finetune",
     "a LoRA adapter or, with --full, a model, from pairs",
     "--model M --data F --out D [flags]",
     0,
     0,
     {&cmd_finetune_group, &cmd_train_group},
     cmd_finetune},
    {"augment",
     "the backward model writes an instruction for every segment",
     "--model M [--adapter D] --corpus F --out F [flags]",
     0,
     0,
     {&cmd_augment_group, &cmd_augment_sampling_group, &cmd_seed_group, &cmd_wave_group},
     cmd_augment},
    {"curate",
     "a model rates candidates; the best are kept",
     "--model M [--adapter D] --candidates F --out F [flags]",
     0,
     0,
     {&cmd_curate_own_group, &cmd_curate_group, &cmd_rate_sampling_group, &cmd_seed_group, &cmd_wave_group},
     cmd_curate},
    {"generate",
     "answers to one prompt or to a file of them",
     "--model M [--adapter D] (--prompt T... | --data F --out F) [flags]",
     0,
     0,
     {&cmd_generate_group, &cmd_sampling_group, &cmd_seed_group, &cmd_wave_group},
     cmd_generate},
    {"chat",
     "a conversation, a line of stdin a turn; /help there",
     "--model M [--adapter D] [--template NAME|F] [flags]",
     0,
     0,
     {&cmd_chat_group, &cmd_sampling_group},
     cmd_chat},
    {"tokenize",
     "text -> token ids as JSON, and back",
     "--model M (--text T | --file F | --lines F | --jsonl F | --decode IDS | --decode-jsonl F) [flags]",
     0,
     0,
     {&cmd_tokenize_group},
     cmd_tokenize},
    {"logits",
     "the logits of every position -> safetensors",
     "--model M [--adapter D] (--ids IDS | --text T) --out F [flags]",
     0,
     0,
     {&cmd_logits_group},
     cmd_logits},
    {"export",
     "a model, its adapter merged, or the adapter, for other programs",
     "--model M [--adapter D] (--merge DIR | --gguf F | --adapter-gguf F) [flags]",
     0,
     0,
     {&cmd_export_group},
     cmd_export},
    {"inspect",
     "what a model, adapter, tokenizer or run folder holds",
     "FILE|DIR [flags]",
     1,
     1,
     {&inspect_group},
     inspect_main},
    {"plan",
     "memory and time of a finetuning, before it is begun",
     "(--model M | --shape S) [flags]",
     0,
     0,
     {&plan_group, &plan_train_group},
     plan_main},
    {"report",
     "writes a run folder's report.json and report.html again, or a finetuned folder's loss.svg",
     "RUN|D [--out F]",
     1,
     1,
     {&cmd_report_group},
     cmd_report},
    {"bench",
     "tokens per second, GFLOP/s and GB/s on random weights",
     "[flags]",
     0,
     0,
     {&bench_group},
     bench_main},
    {NULL, NULL, NULL, 0, 0, {NULL}, NULL}};

int main(int argc, char **argv)
{
    return cli_main(cmd_commands, argc, argv);
}
