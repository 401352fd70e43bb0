/* tools/world.h - what commands share: the flags of the library's options, and what --model, --adapter,
   --template and the tags open - public domain */

#ifndef CMD_WORLD_H
#define CMD_WORLD_H

/* ==== FLAGS OF THE LIBRARY'S OPTIONS =====================================

   Flags whose value goes into a field of an options struct, and the defaults that --help prints for them. */

#define CMD_FLAG_CACHE                                                                                       \
    {                                                                                                        \
        "cache", CLI_CHOICE, "f32|bf16", "f32", "type of the keys and values kept; bf16: half the memory",   \
            0, 0, CLI_FREE                                                                                   \
    }
#define CMD_FLAG_JSON                                                                                        \
    {                                                                                                        \
        "json", CLI_SWITCH, NULL, NULL, "the result as JSON on stdout", 0, 0, CLI_FREE                       \
    }

static void cmd_generate_defaults(void *options, bool full)
{
    hbk_decode_options *o = (hbk_decode_options *)options;
    (void)full;
    *o = hbk_decode_defaults();
    o->sampling = hbk_sampling_defaults();
}

static void cmd_augment_defaults(void *options, bool full)
{
    (void)full;
    *(hbk_decode_options *)options = hbk_decode_defaults();
}

static void cmd_rewrite_defaults(void *options, bool full)
{
    (void)full;
    *(hbk_decode_options *)options = hbk_rewrite_defaults();
}

static void cmd_rate_defaults(void *options, bool full)
{
    (void)full;
    *(hbk_decode_options *)options = hbk_curate_defaults().decode;
}

static void cmd_filter_defaults(void *options, bool full)
{
    (void)full;
    *(hbk_augment_options *)options = hbk_augment_defaults();
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
                                          CMD_FLAG_CACHE,
                                          CLI_END};
static const cli_flag cmd_filter_flags[] = {
    {"candidates", CLI_INT, "N", NULL, "written for each text; the likeliest of the usable ones stays", 1,
     1000, offsetof(hbk_augment_options, candidates)},
    {"min-instruction", CLI_INT, "N", NULL, "shortest instruction, in characters", 0, 1e9,
     offsetof(hbk_augment_options, min_chars)},
    {"max-instruction", CLI_INT, "N", NULL, "longest instruction, in characters", 1, 1e9,
     offsetof(hbk_augment_options, max_chars)},
    {"max-echo", CLI_REAL, "X", NULL, "most of its runs of words that may stand in the text; 1: any", 0, 1,
     offsetof(hbk_augment_options, max_echo)},
    {"echo-words", CLI_INT, "N", NULL, "words of such a run", 1, 1000,
     offsetof(hbk_augment_options, echo_words)},
    {"keep-truncated", CLI_SWITCH, NULL, NULL, "use what --max-new cut off, too", 0, 0,
     offsetof(hbk_augment_options, keep_truncated)},
    {"no-clean", CLI_SWITCH, NULL, NULL, "leave labels and quotes around an instruction", 0, 0,
     offsetof(hbk_augment_options, raw)},
    {"dedup", CLI_REAL, "X", "(off)", "leave out instructions this similar to one before, up to 1", 0, 1,
     offsetof(hbk_augment_options, sift.dedup)},
    {"dedup-words", CLI_INT, "N", NULL, "words of the n-grams that are compared", 1, 1000,
     offsetof(hbk_augment_options, sift.dedup_words)},
    {"decontaminate", CLI_TEXT, "F", NULL,
     "leave out pairs that share a run of words with this evaluation file; may be repeated", 0, 0, CLI_FREE},
    {"decontaminate-words", CLI_INT, "N", NULL, "words of such a run", 4, 64,
     offsetof(hbk_augment_options, sift.holdout_words)},
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
    {"votes", CLI_INT, "N", NULL, "ratings per pair; above 1 needs a temperature", 1, 1000,
     offsetof(hbk_curate_options, votes)},
    {"vote", CLI_CHOICE, "mean|median", NULL, "what several ratings come to", 0, 0,
     offsetof(hbk_curate_options, vote)},
    {"retries", CLI_INT, "N", NULL, "how often a reply without a score is sampled anew", 0, 1000,
     offsetof(hbk_curate_options, retries)},
    {"keep-top", CLI_INT, "N", "(0: by --keep)", "keep the N best pairs, whatever their score", 0, 1e9,
     offsetof(hbk_curate_options, keep_top)},
    {"signal", CLI_TEXT, "LIST", "rating",
     "what to select by: rating, ifd, round-trip, or several, by the sum of ranks", 0, 0, CLI_FREE},
    CLI_END};
static const cli_flag cmd_keep_flags[] = {
    {"keep", CLI_REAL, "X", NULL, "least score that is kept, 1 to 5", 1, 5,
     offsetof(hbk_curate_options, keep)},
    {"keep-share", CLI_REAL, "X", "(0: by --keep)", "the best share of the rated pairs instead, up to 1", 0,
     1, offsetof(hbk_curate_options, keep_share)},
    CLI_END};
/* Of the adapter too, and no plain numbers: cmd_bind_lora reads them. */
static const cli_flag cmd_lora_flags[] = {
    {"rank-of", CLI_TEXT, "LIST", NULL, "ranks of targets that differ: v_proj=8", 0, 0, CLI_FREE},
    {"alpha-of", CLI_TEXT, "LIST", NULL, "alphas that differ, likewise", 0, 0, CLI_FREE},
    {"layers", CLI_TEXT, "A-B", "(all)", "adapt these layers alone, counted from 0", 0, 0, CLI_FREE},
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
static const cli_group cmd_rewrite_sampling_group = {"Sampling", cmd_sampling_flags, NULL,
                                                     cmd_rewrite_defaults};
static const cli_group cmd_rate_sampling_group = {"Sampling", cmd_sampling_flags, NULL, cmd_rate_defaults};
static const cli_group cmd_loop_sampling_group = {
    "Sampling of instructions; ratings are greedy, with 512 tokens, unless --curate-... says otherwise",
    cmd_sampling_flags, "augment curate rewrite", cmd_augment_defaults};
static const cli_group cmd_filter_group = {"Instructions: choice, clean-up and filters", cmd_filter_flags,
                                           NULL, cmd_filter_defaults};
static const cli_group cmd_train_group = {"Training", cmd_train_flags, NULL, cmd_train_defaults};
static const cli_group cmd_loop_train_group = {
    "Training, of three stages: myx, the backward model; m0, the first model that rates; mt, M1 and later",
    cmd_train_flags, "myx m0 mt", cmd_train_defaults};
static const cli_group cmd_lora_group = {"Which weights LoRA adapts", cmd_lora_flags, NULL, NULL};
static const cli_group cmd_loop_lora_group = {"Which weights LoRA adapts, of the three stages",
                                              cmd_lora_flags, "myx m0 mt", NULL};
static const cli_group cmd_keep_group = {"Selection", cmd_keep_flags, NULL, cmd_curate_defaults};
static const cli_group cmd_curate_group = {"Curation", cmd_curate_flags, NULL, cmd_curate_defaults};
static const cli_group cmd_corpus_group = {"Flags", cmd_corpus_flags, NULL, cmd_corpus_defaults};

/* ==== WHAT COMMANDS SHARE ================================================ */

/* What --cache asks for: the words of CMD_FLAG_CACHE are no neighbours among the types. */
static hbk_dtype cmd_cache(const cli *c)
{
    return cli_choice(c, "cache") == 1 ? HBK_BF16 : HBK_F32;
}

/* What --model, --tokenizer, --adapter and --template open. */
typedef struct cmd_world {
    hbk_model *base;
    hbk_tokenizer *tok;
    hbk_tuned tuned;       /* the base where there is no --adapter */
    hbk_template *tmpl;    /* NULL: raw text */
    hbk_template *trained; /* what the finetuned folder was trained with; NULL: it does not say */
    const char *folder;    /* that one */
    hbk_use use, learned;  /* what prompts are for; what the finetuned folder was trained for */
    char tag[512];         /* what inference appends, or "" */
} cmd_world;

static void cmd_close(cmd_world *w)
{
    hbk_template_free(w->tmpl);
    hbk_template_free(w->trained);
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

/* The model, whose products round if that is asked for. */
static bool cmd_load(cli *c, cmd_world *w)
{
    bool rounds = cli_choice(c, "precision") == 1;
    w->base = hbk_model_load(cli_text(c, "model"), NULL, &c->err);
    if (!w->base) return false;
    hbk_model_round(w->base, rounds);
    if (rounds && strcmp(hbk_model_precision(w->base), "bf16") != 0)
        fputs("humpback: note: --precision bf16 has no effect: this processor, or the compiler of this "
              "program, has no products of bf16 (AVX512-BF16)\n",
              stderr);
    return true;
}

static bool cmd_open_model(cli *c, cmd_world *w)
{
    return cmd_load(c, w) && cmd_open_tokenizer(c, w);
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
    if (use && strcmp(use, "backward") == 0) w->use = w->learned = HBK_BACKWARD;
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
    w->folder = dir;
    if (trained) w->trained = hbk_template_load(recipe, NULL, NULL); /* fails below, where it is needed */
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

static bool cmd_same_text(const hbk_template *a, const hbk_template *b, hbk_use use)
{
    return strcmp(hbk__template_text(a, use), hbk__template_text(b, use)) == 0;
}

/* A model that was finetuned in one template answers badly in another, and nothing shows why: so it is said.
   Call it when the wordings are in their places. Names do not count, texts do; of the wordings that of the
   backward prompt alone was trained. */
static void cmd_warn_of_template(const cli *c, const cmd_world *w)
{
    static const char warning[] = "humpback: warning: %s was trained with template %s, and %s\n";
    const hbk_template *then = w->trained, *now = w->tmpl;
    char why[600] = "";
    if (!then) return;
    if (!now)
        snprintf(why, sizeof why, "raw text is not what it learned: leave --template none out");
    else if (!cmd_same_text(then, now, HBK_FORWARD) ||
             strcmp(then->text[HBK__TEXT_REPLY], now->text[HBK__TEXT_REPLY]) != 0)
        snprintf(why, sizeof why, "the prompts of --template %.200s differ from it: leave --template out",
                 cli_text(c, "template"));
    else if (w->learned == HBK_BACKWARD && !cmd_same_text(then, now, HBK_BACKWARD))
        snprintf(why, sizeof why, "another wording of the backward prompt: leave %s out",
                 cli_has(c, "template") ? "--template" : "--prompt");
    if (why[0])
        fprintf(stderr, warning, w->folder, hbk_template_name(then), why);
}

/* Puts the text of the file that flag `name` names in the place of a wording of the template. */
static bool cmd_wording(cli *c, hbk_template *t, const char *name, hbk_use use)
{
    const char *path = cli_text(c, name);
    hbk_error why;
    hbk_text text;
    memset(&text, 0, sizeof text);
    bool ok = !path || hbk_file_read(path, (size_t)1 << 20, &text, &c->err);
    if (ok && path && !hbk_template_set(t, use, hbk_text_string(&text), &why))
        ok = hbk_fail_at(&c->err, why.code, path, 0, "%s", why.message);
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
        "{s:s, s:o, s:o, s:o, s:s, s:f, s:f, s:I, s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:s, s:i, s:s}",
        "command", c->command->name, "input", hbk__hex(data), "model_hash", hbk__hex(model), "template_hash",
        hbk__hex(w->tmpl ? hbk_template_hash(w->tmpl) : 0), "tag", w->tag, "temperature", p->temperature,
        "top_p", p->top_p, "top_k", (json_int_t)p->top_k, "min_p", p->min_p, "repetition_penalty",
        p->repetition_penalty, "max_new", (json_int_t)p->max_new, "seed", (json_int_t)o->seed, "wave",
        (json_int_t)o->wave, "slots", (json_int_t)o->slots, "max_length", (json_int_t)o->max_length,
        "cache", hbk_dtype_name(o->cache), "threads", hbk__n_threads(), "precision",
        hbk_model_precision(w->base));
    if (!options) hbk_fail(&c->err, HBK_ERROR_MEMORY, "out of memory for the options");
    return options;
}

static bool cmd_record_path(char path[512], const char *out, hbk_error *err)
{
    return snprintf(path, 512, "%s.options.json", out) < 512 ||
           hbk_fail_at(err, HBK_ERROR_RANGE, out, 0, "this path is too long");
}

/* Whether `out`, what --flag names, is none of the files at `inputs`, NULLs among them: --force would set one
   aside, and without it hours would pass before the end is refused. */
static bool cmd_apart(cli *c, const char *flag, const char *out, const char *const *inputs, int n)
{
    for (int i = 0; i < n; i++)
        if (inputs[i] && hbk__same_file(out, inputs[i]))
            return hbk_fail_at(&c->err, HBK_ERROR_OPTION, out, 0,
                               "is an input too: choose another file for --%s", flag);
    return true;
}

/* Whether `out` may be written or continued with these options, which are let go of; NULL: false. */
static bool cmd_begin(cli *c, const char *out, json_t *options)
{
    static const char remedy[] = "another --out, or --force, which sets it aside";
    char path[512];
    hbk_int rows = 0;
    json_t *then = NULL;
    bool ok = options && cmd_record_path(path, out, &c->err) && hbk_jsonl_count(out, &rows, &c->err);
    if (ok && rows > 0) {
        if (hbk_file_exists(path))
            ok = (then = hbk_json_read(path, &c->err)) != NULL &&
                 hbk_json_same(then, options, out, remedy, &c->err);
        else
            ok = hbk_fail_at(&c->err, HBK_ERROR_OPTION, out, 0,
                             "exists, and %s, which would say how it was begun, does not: take %s",
                             strrchr(path, '/') ? strrchr(path, '/') + 1 : path, remedy);
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

#endif /* CMD_WORLD_H */
