/* tools/finetune.h - the command finetune, with its look at the loss mask - public domain */

#ifndef CMD_FINETUNE_H
#define CMD_FINETUNE_H

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
        printf("%s# example %lld of %lld, line %lld: the loss is on %lld of %lld tokens, in %lld place%s, "
               "%s\n\n",
               i ? "\n" : "", (long long)i + 1, (long long)d->n, (long long)d->line[i],
               (long long)hbk_dataset_targets(d, i), (long long)n, (long long)parts, parts == 1 ? "" : "s",
               marks.name);
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

/* Says what was left out of a file of `form`s, or cut: nothing may be missing unseen. */
static void cmd_say_left_out(const hbk_dataset *d, const char *form, const char *path, hbk_int limit)
{
    hbk_int all = d->n + d->n_too_long + d->n_no_target;
    if (d->n_too_long)
        fprintf(stderr, "humpback: note: %lld of %lld %s of %s are longer than %lld tokens and left out\n",
                (long long)d->n_too_long, (long long)all, form, path, (long long)limit);
    if (d->n_cut)
        fprintf(stderr, "humpback: note: %lld of %lld %s of %s are longer than %lld tokens and cut there\n",
                (long long)d->n_cut, (long long)all, form, path, (long long)limit);
    if (d->n_no_target)
        fprintf(stderr, "humpback: note: %lld of %lld %s of %s have nothing to learn and are left out\n",
                (long long)d->n_no_target, (long long)all, form, path);
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
    cmd_say_left_out(d, hbk_form_name(form), path, limit);
    return true;
}

static bool cmd_train_data(cli *c, const cmd_world *w, const hbk_train_options *o, cmd_sets *s)
{
    hbk_int context = w->base->config.context_length;
    hbk_int limit = o->max_length > 0 ? HBK__MIN(o->max_length, context) : context;
    bool ok = cmd_add_examples(c, w, cli_text(c, "data"), limit, &s->examples);
    if (ok && cli_has(c, "replay"))
        ok = hbk_dataset_add_texts(&s->replay, cli_text(c, "replay"), w->tok, limit, &c->err);
    if (ok) cmd_say_left_out(&s->replay, "documents", cli_text(c, "replay"), limit);
    if (ok && cli_has(c, "validation"))
        ok = cmd_add_examples(c, w, cli_text(c, "validation"), limit, &s->validation);
    if (ok && cli_has(c, "validation-share"))
        ok = hbk_dataset_split(&s->examples, &s->validation, cli_real(c, "validation-share"), o->seed,
                               &c->err);
    return ok;
}

/* What a finetuned folder was before the call. */
typedef enum cmd_begun { CMD_NEW, CMD_BEGUN, CMD_FINISHED } cmd_begun;

static bool cmd_was_begun(const char *dir, cmd_begun *begun, hbk_error *err)
{
    char done[512], checkpoint[512];
    if (!hbk_path(done, dir, "humpback.json", err) ||
        !hbk_path(checkpoint, dir, "checkpoint/state.safetensors", err))
        return false;
    *begun = hbk_file_exists(done) ? CMD_FINISHED : hbk_file_exists(checkpoint) ? CMD_BEGUN : CMD_NEW;
    return true;
}

/* Says what is about to be done, unless it was begun before: what somebody may have meant otherwise. */
static bool cmd_say_facts(cli *c, const cmd_world *w, const hbk_train_data *data, const hbk_train_options *o,
                          const hbk_adapter *init)
{
    const char *dir = cli_text(c, "out");
    cmd_begun begun;
    hbk_train_facts x;
    if (!cmd_was_begun(dir, &begun, &c->err)) return false;
    if (begun != CMD_NEW) return true;
    if (!hbk_finetune_facts(&x, w->base, data, o, init, NULL, &c->err)) return false;
    const hbk_dataset *d = data->examples;
    double on = (double)d->n_targets / (double)d->tokens.n;
    fprintf(stderr,
            "humpback: %lld examples of %lld to %lld tokens, half of them up to %lld, nine in ten up to "
            "%lld\n",
            (long long)d->n, (long long)x.shortest, (long long)x.longest, (long long)x.half,
            (long long)x.most);
    fprintf(stderr, "humpback: the loss is on %lld of their %lld tokens (%.0f%%)", (long long)d->n_targets,
            (long long)d->tokens.n, 100 * on);
    if (data->validation) fprintf(stderr, "; %lld others validate", (long long)data->validation->n);
    fprintf(stderr,
            "\nhumpback: %lld steps of %lld examples, %.3g epochs, train %lld numbers; the model has "
            "%lld\n",
            (long long)x.steps, (long long)(x.batch * o->accumulate), x.epochs, (long long)x.trained,
            (long long)x.numbers);
    if (x.shared)
        fprintf(stderr,
                "humpback: note: %lld of the %lld examples that validate are trained on, too: the validation "
                "loss is too good\n",
                (long long)x.shared, (long long)data->validation->n);
    return true;
}

/* Of which step the weights are, where there was a validation. */
static bool cmd_say_best(cli *c, const char *dir)
{
    char path[512];
    if (!hbk_path(path, dir, "humpback.json", &c->err)) return false;
    json_t *j = hbk_json_read(path, &c->err);
    const json_t *step = json_object_get(j, "best_step"), *loss = json_object_get(j, "val_loss");
    if (step && loss)
        cli_say(c, "its weights are those of step %lld, with the lowest validation loss, %.3f\n",
                (long long)json_integer_value(step), json_real_value(loss));
    json_decref(j);
    return j != NULL;
}

/* The adapter to start from, which a finetuned model is none of. */
static hbk_adapter *cmd_load_init(cli *c, const cmd_world *w, const char *dir)
{
    hbk_tuned t;
    if (!hbk_tuned_load(&t, w->base, dir, NULL, &c->err)) return NULL;
    hbk_adapter *init = t.adapter;
    t.adapter = NULL;
    hbk_tuned_free(&t);
    if (!init)
        hbk_fail_at(&c->err, HBK_ERROR_OPTION, dir, 0,
                    "is a model of its own, no adapter to start from: give it as --model");
    return init;
}

/* Trains and says where the result is. */
static bool cmd_train(cli *c, const cmd_world *w, const hbk_train_options *o, const cmd_sets *s)
{
    const char *dir = cli_text(c, "out"), *init_dir = cli_text(c, "init-adapter");
    char curves[1100];
    cmd_begun begun;
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
    if (!cmd_was_begun(dir, &begun, &c->err)) return false;
    if (init_dir && !(init = cmd_load_init(c, w, init_dir))) return false;
    bool ok = cmd_say_facts(c, w, &data, o, init) &&
              hbk_finetune(w->base, &data, o, init, &recipe, dir, cli_watch(c), NULL, &c->err);
    hbk_adapter_free(init);
    if (!ok || !tool_curve(dir, NULL, curves, &c->err)) return false;
    cli_draw_end(&c->meter);
    if (begun == CMD_FINISHED)
        fprintf(stderr, "humpback: note: %s was finished before, with these options and data: nothing was "
                        "trained; another --out trains anew\n", dir);
    cli_say(c, "%s of %lld example%s (the loss is on %lld of their %lld tokens): %s\n",
            o->full ? "a model" : "an adapter", (long long)d->n, d->n == 1 ? "" : "s",
            (long long)d->n_targets, (long long)d->tokens.n, dir);
    if (!cmd_say_best(c, dir)) return false;
    cli_say(c, "its loss: %s\n", curves);
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
        if (slot == HBK_N_TARGETS || *end || !(x > 0 && x <= 1e6)) return false;
        if (ranks) ranks[slot] = (hbk_int)x;
        if (ranks && (double)ranks[slot] != x) return false;
        if (alphas) alphas[slot] = x;
        at += used;
        if (*at && (*at++ != ',' || !*at)) return false;
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

/* Flags of an adapter's shape, where there is no adapter or it has its shape already; 0 or an exit code. */
static int cmd_lora_options(cli *c, const hbk_train_options *o)
{
    static const char *const shape[] = {"rank",    "alpha",    "targets", "rslora",
                                        "rank-of", "alpha-of", "layers"};
    bool init = cli_has(c, "init-adapter");
    if (o->full && init) return cli_misused(c, "--full and --init-adapter exclude each other");
    if (o->full && cli_has(c, "lora-plus"))
        return cli_misused(c, "--lora-plus is of LoRA: it does not go with --full");
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++) {
        if (!cli_has(c, shape[i])) continue;
        if (o->full) return cli_misused(c, "--%s is of LoRA: it does not go with --full", shape[i]);
        if (init)
            return cli_misused(c, "--%s does not go with --init-adapter, which brings its own", shape[i]);
    }
    return 0;
}

static int cmd_validation_options(cli *c)
{
    static const char *const needing[] = {"patience", "validate-every"};
    bool file = cli_has(c, "validation"), share = cli_has(c, "validation-share");
    if (file && share) return cli_misused(c, "--validation and --validation-share exclude each other");
    if (file && strcmp(cli_text(c, "validation"), cli_text(c, "data")) == 0)
        return cli_misused(c, "--validation is the file of --data: what is trained on validates nothing; "
                              "hold rows out with --validation-share 0.1");
    for (size_t i = 0; i < sizeof needing / sizeof *needing; i++)
        if (cli_has(c, needing[i]) && !file && !share)
            return cli_misused(c, "--%s needs --validation or --validation-share", needing[i]);
    return 0;
}

/* Rows of several files are joined by cat, not by a flag for each. */
static int cmd_once_options(cli *c)
{
    static const char *const names[] = {"data", "validation", "replay"};
    int misused = cli_once(c, "init-adapter", "merge the first into the base by export --merge");
    for (size_t i = 0; i < sizeof names / sizeof *names && !misused; i++)
        misused = cli_once(c, names[i], "join files of one form, cat a.jsonl b.jsonl >both.jsonl");
    return misused;
}

/* The tags that generate is to append must be among those that are given. */
static int cmd_inference_options(cli *c)
{
    static const char *const tags[][2] = {{"seed", "tag-seed"}, {"web", "tag-web"}};
    const char *list = cli_text(c, "inference-tags");
    for (size_t i = 0; i < sizeof tags / sizeof *tags; i++)
        if (list && strstr(list, tags[i][0]) && !cli_text(c, tags[i][1]))
            return cli_misused(c, "--inference-tags %s needs --%s, the text of that tag", list, tags[i][1]);
    return CLI_DONE;
}

static int cmd_reverse_options(cli *c)
{
    static const char *const tags[] = {"tag-seed", "tag-web", "inference-tags"};
    for (size_t i = 0; i < sizeof tags / sizeof *tags; i++)
        if (cli_has(c, tags[i]))
            return cli_misused(c, "--%s does not go with --reverse: the backward prompt carries no tag",
                               tags[i]);
    return 0;
}

/* The flags of cmd_lora_flags, of a stage or of none; 0 or an exit code. */
static int cmd_bind_lora(cli *c, const char *stage, hbk_adapter_options *o)
{
    const char *ranks = cli_stage_text(c, stage, "rank-of"), *alphas = cli_stage_text(c, stage, "alpha-of"),
               *layers = cli_stage_text(c, stage, "layers"), *dash = *stage ? "-" : "";
    if (ranks && !cmd_per_target(ranks, o->target_rank, NULL))
        return cli_misused(c, "--%s%srank-of %s: expected a list such as v_proj=8,lm_head=4", stage, dash,
                           ranks);
    if (alphas && !cmd_per_target(alphas, NULL, o->target_alpha))
        return cli_misused(c, "--%s%salpha-of %s: expected a list such as v_proj=16,lm_head=8", stage, dash,
                           alphas);
    if (layers && !cmd_layers(layers, &o->layer_begin, &o->layer_end))
        return cli_misused(c, "--%s%slayers %s: expected a number or a range such as 4-7, from 0", stage,
                           dash, layers);
    return 0;
}

/* Options that are no plain number, and combinations that make no sense; 0 or an exit code. */
static int cmd_finetune_options(cli *c, hbk_train_options *o)
{
    const char *name = cli_text(c, "template");
    if (cli_has(c, "epochs") && cli_has(c, "steps"))
        return cli_misused(c, "--epochs and --steps exclude each other");
    if ((o->replay > 0) != cli_has(c, "replay"))
        return cli_misused(c, "--replay and --replay-per-batch go together");
    if (cli_has(c, "lr-end") && o->schedule == HBK_CONSTANT)
        return cli_misused(c, "--lr-end does not go with --schedule constant, which stays at --lr");
    int misused = cmd_lora_options(c, o);
    if (!misused) misused = cmd_once_options(c);
    if (!misused) misused = cmd_inference_options(c);
    if (!misused) misused = cmd_validation_options(c);
    if (!misused && cli_has(c, "reverse")) misused = cmd_reverse_options(c);
    if (misused) return misused;
    if (name && strcmp(name, "none") == 0)
        return cli_misused(c, "--template none: pairs need a template; plain is the simplest");
    if (!cli_has(c, "out") && !cli_has(c, "dump-labels")) return cli_misused(c, "finetune needs --out D");
    o->max_length = cli_has(c, "max-length") ? cli_int(c, "max-length") : -1;
    return cmd_bind_lora(c, "", &o->lora);
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
              cmd_inference_tag(c, w.tag);
    if (ok) cmd_warn_of_template(c, &w);
    ok = ok && cmd_train_data(c, &w, &o, &s);
    if (ok && cli_has(c, "dump-labels"))
        ok = cmd_dump_labels(&s.examples, w.tok, &c->err);
    else
        ok = ok && cmd_train(c, &w, &o, &s);
    cmd_sets_free(&s);
    cmd_close(&w);
    return cli_end(c, ok);
}

#endif /* CMD_FINETUNE_H */
