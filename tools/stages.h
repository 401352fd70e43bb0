/* tools/stages.h - the commands of the method: corpus, seeds, augment, rewrite, curate, run, demo, reproduce,
   report - public domain */

#ifndef CMD_STAGES_H
#define CMD_STAGES_H

/* ==== DATA =============================================================== */

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

/* ==== AUGMENT, REWRITE, CURATE ==================================================== */

/* The options of an augmentation as its output records them; NULL on failure. */
static json_t *cmd_augment_options(cli *c, const cmd_world *w, const hbk_augment_options *o,
                                   const char *corpus)
{
    json_t *options = cmd_options(c, w, &o->decode, corpus);
    if (!options || hbk__augment_json(options, o)) return options;
    json_decref(options);
    hbk_fail(&c->err, HBK_ERROR_MEMORY, "out of memory for the options");
    return NULL;
}

/* What a fate is, and the flag that has a say in it. `rewritten`: of an output, which then stays. */
static const char *cmd_fate_reason(hbk_fate f, bool rewritten)
{
    switch (f) {
    case HBK_FATE_EMPTY: return "nothing was written";
    case HBK_FATE_ECHO: return "mostly words of the text: --max-echo";
    case HBK_FATE_LEAK: return "holds a marker of the template";
    case HBK_FATE_SHORT: return "below --min-instruction";
    case HBK_FATE_LONG: return "above --max-instruction";
    case HBK_FATE_TRUNCATED:
        return rewritten ? "cut off by --max-new: the output stays"
                         : "cut off by --max-new; --keep-truncated takes them";
    case HBK_FATE_TOO_LONG: return "the prompt alone fills the context, or --max-length";
    case HBK_FATE_DUPLICATE: return "like an instruction before it: --dedup";
    case HBK_FATE_CONTAMINATED: return "shares words with a file of --decontaminate";
    case HBK_FATE_OK:
    case HBK_FATE_COUNT: break;
    }
    return "";
}

/* What became of the rows, every fate with its number. */
static bool cmd_say_fates(cli *c, const char *path, const char *key)
{
    hbk_int counts[HBK_FATE_COUNT] = {0};
    if (!hbk_fate_count(counts, path, key, NULL, &c->err)) return false;
    cli_draw_end(&c->meter);
    json_t *fates = json_object();
    for (int f = 0; f < HBK_FATE_COUNT; f++) {
        const char *name = hbk_fate_name((hbk_fate)f);
        json_object_set_new(fates, name, json_integer(counts[f]));
        const char *reason = cmd_fate_reason((hbk_fate)f, strcmp(key, "rewrite") == 0);
        if (counts[f] && *reason) cli_say(c, "%8lld %-13s %s\n", (long long)counts[f], name, reason);
        else if (counts[f]) cli_say(c, "%8lld %s\n", (long long)counts[f], name);
    }
    if (cli_has(c, "json")) return cli_print_json(fates, &c->err);
    json_decref(fates);
    return true;
}

/* What is done to instructions. The names of evaluation files are put into `files`. */
enum { CMD_MOST_FILES = 64 };
static void cmd_bind_filter(const cli *c, hbk_augment_options *o, const char *files[CMD_MOST_FILES])
{
    cli_bind(c, &cmd_filter_group, "", o);
    int n = 0;
    while (n < CMD_MOST_FILES && (files[n] = cli_nth(c, "decontaminate", n)) != NULL) n++;
    o->sift.holdout = files;
    o->sift.n_holdout = n;
}

/* A flag that refines another one does nothing alone. */
static int cmd_check_filter(const cli *c)
{
    static const char *const pairs[][2] = {{"dedup-words", "dedup"},
                                           {"decontaminate-words", "decontaminate"}};
    for (int i = 0; i < 2; i++)
        if (cli_has(c, pairs[i][0]) && !cli_has(c, pairs[i][1]))
            return cli_misused(c, "--%s is of use with --%s only", pairs[i][0], pairs[i][1]);
    return CLI_DONE;
}

static int cmd_augment(cli *c)
{
    cmd_world w;
    const char *files[CMD_MOST_FILES];
    memset(&w, 0, sizeof w);
    hbk_augment_options o = hbk_augment_defaults();
    cmd_bind_decode(c, &o.decode);
    cmd_bind_filter(c, &o, files);
    if (o.candidates > 1 && o.decode.sampling.temperature <= 0)
        return cli_misused(c, "--candidates %lld needs a --temperature above 0, or all are the same",
                           (long long)o.candidates);
    int code = cmd_check_filter(c);
    if (code) return code;
    const char *corpus = cli_text(c, "corpus"), *out = cli_text(c, "out"), *adapter = cli_text(c, "adapter");
    bool ok = cmd_apart(c, "out", out, &corpus, 1) && cmd_open(c, &w);
    w.tag[0] = 0; /* the backward prompt carries none */
    if (ok && !w.tmpl)
        ok = hbk_fail(&c->err, HBK_ERROR_OPTION, "augment needs a template: --template plain at least");
    ok = ok && cmd_wording(c, w.tmpl, "prompt", HBK_BACKWARD);
    if (ok) cmd_warn_of_template(c, &w);
    ok = ok && cmd_begin(c, out, cmd_augment_options(c, &w, &o, corpus)) &&
         hbk_augment(w.tuned.model, w.tuned.adapter, w.tok, w.tmpl, &o, adapter ? adapter : "", corpus, out,
                     cli_watch(c), NULL, &c->err);
    if (!ok) cmd_drop_empty(out);
    ok = ok && cmd_say_fates(c, out, "status");
    cmd_close(&w);
    return cli_end(c, ok);
}

static int cmd_rewrite(cli *c)
{
    cmd_world w;
    memset(&w, 0, sizeof w);
    hbk_decode_options o = hbk_rewrite_defaults();
    cmd_bind_decode(c, &o);
    const char *pairs = cli_text(c, "pairs"), *out = cli_text(c, "out"), *adapter = cli_text(c, "adapter");
    bool ok = cmd_apart(c, "out", out, &pairs, 1) && cmd_open(c, &w);
    w.tag[0] = 0; /* nor does the rewriting prompt */
    if (ok && !w.tmpl)
        ok = hbk_fail(&c->err, HBK_ERROR_OPTION, "rewrite needs a template: --template plain at least");
    ok = ok && cmd_wording(c, w.tmpl, "prompt", HBK_REWRITING);
    json_t *options = ok ? cmd_options(c, &w, &o, pairs) : NULL;
    const char *wording = ok ? hbk__template_text(w.tmpl, HBK_REWRITING) : "";
    if (options) json_object_set_new(options, "wording", hbk__hex(hbk_hash(0, wording, strlen(wording))));
    ok = ok && cmd_begin(c, out, options) &&
         hbk_rewrite(w.tuned.model, w.tuned.adapter, w.tok, w.tmpl, &o, adapter ? adapter : "", pairs, out,
                     cli_watch(c), NULL, &c->err);
    if (!ok) cmd_drop_empty(out);
    ok = ok && cmd_say_fates(c, out, "rewrite");
    cmd_close(&w);
    return cli_end(c, ok);
}

static double cmd_percent(hbk_int part, hbk_int whole)
{
    return whole ? 100.0 * (double)part / (double)whole : 0;
}

/* "rating,ifd" -> the sum of its signals; 0 where a name is none. */
static unsigned cmd_signals(const char *list)
{
    static const char *const names[] = {"rating", "ifd", "round-trip"};
    unsigned signals = 0;
    for (size_t n; list; list = list[n] ? list + n + 1 : NULL) {
        int k = 0;
        n = strcspn(list, ",");
        while (k < 3 && (strlen(names[k]) != n || strncmp(names[k], list, n))) k++;
        if (k == 3) return 0;
        signals |= 1u << k;
    }
    return signals;
}

/* What curate and run demand of the options of a curation, which gets its signals; the exit code.
   `temperature` is the flag's name. */
static int cmd_check_curation(const cli *c, hbk_curate_options *o, const char *temperature)
{
    o->signals = cmd_signals(cli_text(c, "signal"));
    if (cli_has(c, "keep") + cli_has(c, "keep-top") + cli_has(c, "keep-share") > 1)
        return cli_misused(c, "--keep, --keep-top and --keep-share exclude each other");
    if (!o->signals)
        return cli_misused(c, "--signal %.60s: expected rating, ifd, round-trip or several, as rating,ifd",
                           cli_text(c, "signal"));
    if (o->signals != HBK_SIGNAL_RATING && o->keep_top <= 0 && !cli_has(c, "keep-share"))
        return cli_misused(c, "--signal %.60s needs --keep-top or --keep-share: a least score is of ratings",
                           cli_text(c, "signal"));
    if (o->votes > 1 && o->decode.sampling.temperature <= 0)
        return cli_misused(c, "--votes %lld needs a --%s above 0, or all votes are the same",
                           (long long)o->votes, temperature);
    return CLI_DONE;
}

/* "  scores   1: 0   2: 3 ..." and what became of the replies. */
static void cmd_say_ratings(const cli *c, const hbk_curate_counts *n)
{
    cli_say(c, "  scores   1: %lld   2: %lld   3: %lld   4: %lld   5: %lld\n", (long long)n->histogram[0],
            (long long)n->histogram[1], (long long)n->histogram[2], (long long)n->histogram[3],
            (long long)n->histogram[4]);
    cli_say(c, "  ratings  %lld read (%.0f %%), %lld unparsable, %lld truncated, %lld too long\n",
            (long long)n->rated, cmd_percent(n->rated, n->n), (long long)n->unparsable,
            (long long)n->truncated, (long long)n->too_long);
    if (n->retried) cli_say(c, "  retries  of %lld pairs a reply was sampled anew\n", (long long)n->retried);
}

/* What decision makers look at after a curation. `k` is its number in a loop, 0 outside. */
static void cmd_say_counts(const cli *c, const hbk_curate_counts *n, unsigned signals, int k)
{
    char name[32] = "curation";
    static const char *const values[] = {"score", "IFD", "round trip"};
    if (k) snprintf(name, sizeof name, "curation %d", k);
    cli_say(c, "%s: kept %lld of %lld (%.0f %%)", name, (long long)n->kept, (long long)n->n,
            cmd_percent(n->kept, n->n));
    if (isfinite(n->threshold))
        cli_say(c, " with a%s %s of at least %g", signals == HBK_SIGNAL_IFD ? "n" : "", values[signals / 2],
                n->threshold);
    cli_say(c, "\n");
    if (signals & HBK_SIGNAL_RATING) cmd_say_ratings(c, n);
    if (signals != HBK_SIGNAL_RATING) cli_say(c, "  ranked   %lld pairs\n", (long long)n->ranked);
    if (signals & HBK_SIGNAL_IFD)
        cli_say(c, "  IFD      of %lld pairs 1 and more: the instruction is of no use to the output\n",
                (long long)n->unhelpful);
    if (!n->kept && n->n) cli_say(c, "  nothing was kept: the file of pairs is empty\n");
    if (n->collapsed) {
        bool read = n->rated * 2 >= n->n, many = n->kept * 2 > n->n;
        const char *what = many ? "more than 90 % were kept" : "fewer than 2 % were kept";
        const char *why = read ? "A rater that gives all pairs one score selects nothing"
                               : "Most ratings have no score that could be read";
        const char *remedy =
            read ? "look at the ratings, and try\n"
                   "           --keep-share 0.2, which keeps the best, another --keep or a better rater"
                 : "look at the ratings, and try\n"
                   "           --readout expected, --keep-share 0.2, more new tokens or a better rater";
        if (n->too_long * 2 > n->n) {
            why = "Most pairs do not fit into the context with the rubric around them";
            remedy = "try a shorter\n           --rubric, shorter segments, or a model with a longer context";
        }
        cli_say(c, "  WARNING: %s. %s: %s.\n", what, why, remedy);
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

static uint64_t cmd_backward_hash(const hbk_curate_options *o)
{
    uint64_t h = hbk_model_hash(o->backward);
    return o->backward_adapter ? hbk_adapter_hash(h, o->backward_adapter) : h;
}

/* Precision and recall against --labels. */
static bool cmd_say_agreement(cli *c, const char *ratings, json_t *result)
{
    hbk_agreement a;
    if (!hbk_agree(cli_text(c, "labels"), ratings, cli_text(c, "out"), &a, NULL, &c->err)) return false;
    cli_say(c, "  labels   %lld pairs, %lld good, %lld kept, %lld good and kept", (long long)a.n,
            (long long)a.good, (long long)a.kept, (long long)a.both);
    if (a.unknown) cli_say(c, "; %lld labels of no rated pair", (long long)a.unknown);
    cli_say(c, "\n           precision ");
    if (a.kept) cli_say(c, "%.3f, recall ", a.precision);
    else cli_say(c, "- (nothing labelled was kept), recall ");
    if (a.good) cli_say(c, "%.3f\n", a.recall);
    else cli_say(c, "- (nothing is labelled good)\n");
    json_object_set_new(result, "labels",
                        json_pack("{s:I s:I s:I s:I s:I s:o s:o}", "n", (json_int_t)a.n, "good",
                                  (json_int_t)a.good, "kept", (json_int_t)a.kept, "both", (json_int_t)a.both,
                                  "unknown", (json_int_t)a.unknown, "precision",
                                  hbk__real_or_null(a.precision), "recall", hbk__real_or_null(a.recall)));
    return true;
}

/* Are the files of a curation different ones, and are the labels there? */
static bool cmd_curate_files(cli *c, char ratings[512])
{
    const char *out = cli_text(c, "out"), *labels = cli_text(c, "labels");
    if (!cmd_ratings_path(c, ratings)) return false;
    const char *inputs[] = {cli_text(c, "candidates"), labels, ratings};
    if (!cmd_apart(c, "out", out, inputs, 3) || !cmd_apart(c, "ratings", ratings, inputs, 2)) return false;
    return !labels || hbk_file_exists(labels) ||
           hbk_fail_at(&c->err, HBK_ERROR_FILE, labels, 0,
                       "does not exist: --labels takes rows {\"id\", \"good\"}");
}

/* Rates the candidates, and selects from all ratings. What is kept may change later, ratings may not. */
static bool cmd_rate_and_select(cli *c, const cmd_world *w, const hbk_curate_options *o, const char *ratings,
                                hbk_curate_counts *counts)
{
    const char *candidates = cli_text(c, "candidates"), *out = cli_text(c, "out"),
               *adapter = cli_text(c, "adapter");
    json_t *options = cmd_options(c, w, &o->decode, candidates);
    if (options) {
        json_object_set_new(options, "readout",
                            json_string(o->readout == HBK_READOUT_TEXT ? "text" : "expected"));
        json_object_set_new(options, "votes", json_integer(o->votes));
        json_object_set_new(options, "vote", json_string(o->vote == HBK_VOTE_MEAN ? "mean" : "median"));
        json_object_set_new(options, "retries", json_integer(o->retries));
        json_object_set_new(options, "signals", json_integer(o->signals));
        if (o->backward) json_object_set_new(options, "backward", hbk__hex(cmd_backward_hash(o)));
    }
    bool ok = cmd_begin(c, ratings, options) &&
              hbk_rate(w->tuned.model, w->tuned.adapter, w->tok, w->tmpl, o, adapter ? adapter : "",
                       candidates, ratings, cli_watch(c), NULL, &c->err);
    if (!ok) cmd_drop_empty(ratings);
    if (!ok) return false;
    cli_draw_end(&c->meter);
    return hbk_select(o, candidates, ratings, out, counts, NULL, &c->err);
}

/* The backward model that the round trip asks for, at home in *myx. */
static bool cmd_open_backward(cli *c, const cmd_world *w, hbk_tuned *myx, hbk_curate_options *o)
{
    if (!cli_text(c, "backward")) return true;
    if (!hbk_tuned_load(myx, w->base, cli_text(c, "backward"), NULL, &c->err)) return false;
    o->backward = myx->model;
    o->backward_adapter = myx->adapter;
    return true;
}

static int cmd_curate(cli *c)
{
    cmd_world w;
    char ratings[512];
    hbk_curate_counts counts;
    memset(&w, 0, sizeof w);
    hbk_curate_options o = hbk_curate_defaults();
    cli_bind(c, &cmd_curate_group, "", &o);
    cli_bind(c, &cmd_keep_group, "", &o);
    cmd_bind_decode(c, &o.decode);
    int code = cmd_check_curation(c, &o, "temperature");
    if (code) return code;
    if (cli_has(c, "backward") != ((o.signals & HBK_SIGNAL_ROUND_TRIP) != 0))
        return cli_misused(c, "--backward and --signal round-trip go together");
    hbk_tuned myx;
    memset(&myx, 0, sizeof myx);
    bool ok = cmd_curate_files(c, ratings) && cmd_open(c, &w) && cmd_open_backward(c, &w, &myx, &o);
    w.tag[0] = 0; /* nor does the rating prompt */
    if (ok && !w.tmpl)
        ok = hbk_fail(&c->err, HBK_ERROR_OPTION, "curate needs a template: --template plain at least");
    ok = ok && cmd_wording(c, w.tmpl, "rubric", HBK_RATING);
    if (ok) cmd_warn_of_template(c, &w);
    ok = ok && cmd_rate_and_select(c, &w, &o, ratings, &counts);
    if (ok) cmd_say_counts(c, &counts, o.signals, 0);
    json_t *result = ok ? hbk__counts_json(&counts) : NULL;
    if (ok && cli_text(c, "labels")) ok = cmd_say_agreement(c, ratings, result);
    if (ok && cli_has(c, "json")) ok = cli_print_json(json_incref(result), &c->err);
    json_decref(result);
    hbk_tuned_free(&myx);
    cmd_close(&w);
    return cli_end(c, ok);
}

/* ==== THE LOOP =========================================================== */

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

static hbk_loop_options cmd_loop_options(const cli *c, const char *files[CMD_MOST_FILES])
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
    o.validation_share = cli_real(c, "validation-share");
    o.stop_on_collapse = cli_has(c, "stop-on-collapse");
    o.stop_unchanged = !cli_has(c, "no-stop-unchanged");
    o.max_steps = cli_int(c, "max-steps");
    if (cli_has(c, "keep")) cli_reals(cli_text(c, "keep"), o.keep, HBK_ITERATIONS);
    if (cli_has(c, "keep-share")) cli_reals(cli_text(c, "keep-share"), o.keep_share, HBK_ITERATIONS);
    o.max_length = cli_has(c, "max-length") ? cli_int(c, "max-length") : -1;
    o.force = cli_has(c, "force");
    o.myx = o.m0 = o.mt = hbk_train_defaults(cli_has(c, "full"));
    cmd_bind_stage(c, "myx", &o.myx);
    cmd_bind_stage(c, "m0", &o.m0);
    cmd_bind_stage(c, "mt", &o.mt);
    if (cli_has(c, "seed"))
        o.seed = o.augment.decode.seed = o.curate.decode.seed = (uint64_t)cli_int(c, "seed");
    cli_bind(c, &cmd_curate_group, "", &o.curate);
    cmd_bind_filter(c, &o.augment, files);
    cli_bind(c, &cmd_loop_sampling_group, "", &o.augment.decode);
    cli_bind(c, &cmd_loop_sampling_group, "augment", &o.augment.decode);
    cli_bind(c, &cmd_loop_sampling_group, "curate", &o.curate.decode);
    o.rewrite = cli_has(c, "rewrite");
    cli_bind(c, &cmd_loop_sampling_group, "rewrite", &o.rewriting);
    cli_bind(c, &cmd_wave_group, "", &o.rewriting);
    cli_bind(c, &cmd_wave_group, "", &o.augment.decode);
    cli_bind(c, &cmd_wave_group, "", &o.curate.decode);
    o.rewriting.cache = o.augment.decode.cache = o.curate.decode.cache = cmd_cache(c);
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
    n->retried = json_integer_value(json_object_get(j, "retried"));
    n->ranked = json_integer_value(json_object_get(j, "ranked"));
    n->unhelpful = json_integer_value(json_object_get(j, "unhelpful"));
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
        cmd_say_counts(w->c, &n, cmd_signals(cli_text(w->c, "signal")), w->said + 1);
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

/* What was not used, and why, from run.json: "of the others 43 truncated, 2 echo". */
static void cmd_say_unused(const cli *c, const char *dir)
{
    char path[512];
    const char *key, *lead = "  of the others ";
    json_t *n, *run = hbk_path(path, dir, "run.json", NULL) ? hbk_json_read(path, NULL) : NULL;
    json_t *counts =
        json_object_get(json_object_get(json_object_get(run, "stages"), "candidates"), "status");
    json_object_foreach(counts, key, n) {
        if (strcmp(key, "ok") == 0 || json_integer_value(n) == 0) continue;
        cli_say(c, "%s%lld %s", lead, (long long)json_integer_value(n), key);
        lead = ", ";
    }
    if (*lead == ',') cli_say(c, "\n");
    for (int k = 1; k <= HBK_ITERATIONS; k++) {
        snprintf(path, sizeof path, "rewritten-%d", k);
        const json_t *rewritten = json_object_get(json_object_get(run, "stages"), path);
        if (rewritten)
            cli_say(c, "  rewriting %d: %lld of %lld outputs are new, the others stay as they were\n", k,
                    (long long)json_integer_value(json_object_get(rewritten, "rewritten")),
                    (long long)json_integer_value(json_object_get(rewritten, "rows")));
    }
    long long out = json_integer_value(
        json_object_get(json_object_get(json_object_get(run, "stages"), "m0"), "too_long"));
    if (out) cli_say(c, "  of the seed %lld pairs do not fit into the context and were left out\n", out);
    json_decref(run);
}

/* What the loop ended with, and the page about it. */
static bool cmd_say_result(cli *c, const char *dir, const hbk_loop_result *r)
{
    char page[512];
    if (!hbk_path(page, dir, "report.html", &c->err) || !tool_report(dir, NULL, &c->err)) return false;
    cli_say(c, "%lld seed pairs, %lld segments, %lld candidates, %lld of them with a usable instruction\n",
            (long long)r->n_seed, (long long)r->n_segments, (long long)r->n_candidates, (long long)r->n_ok);
    cmd_say_unused(c, dir);
    if (r->stopped[0]) cli_say(c, "STOPPED EARLY: %s\n", r->stopped);
    cli_say(c, "result: %s\nreport: %s\n", r->final_dir, page);
    if (!cli_has(c, "json")) return true;
    json_t *curations = json_array();
    for (int k = 0; k < HBK_ITERATIONS && r->curated[k].n; k++)
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

/* More thresholds than curations are a mistake that would pass unseen. */
static int cmd_check_keeps(cli *c, const char *name)
{
    double values[CLI_LIST];
    const char *list = cli_has(c, name) ? cli_text(c, name) : NULL;
    int n = list ? cli_reals(list, values, CLI_LIST) : 0, most = (int)cli_int(c, "iterations");
    return n <= most ? 0 : cli_misused(c, "--%s %s: %d values for %d iterations", name, list, n, most);
}

/* The stages' options that are no plain numbers, and combinations that make no sense; 0 or an exit code. */
static int cmd_check_stages(cli *c, hbk_loop_options *o)
{
    static const char *const stages[] = {"", "myx", "m0", "mt"};
    hbk_train_options *const trainings[] = {&o->myx, &o->m0, &o->mt};
    int code = 0;
    for (int i = 0; i < 4 && !code; i++)
        if (cli_stage_text(c, stages[i], "epochs") && cli_stage_text(c, stages[i], "steps"))
            return cli_misused(c, "--%s%sepochs and --%s%ssteps exclude each other", stages[i], i ? "-" : "",
                               stages[i], i ? "-" : "");
    for (int i = 0; i < 3 && !code; i++) { /* what is said for all, and over it what is said for this one */
        code = cmd_bind_lora(c, "", &trainings[i]->lora);
        if (!code) code = cmd_bind_lora(c, stages[i + 1], &trainings[i]->lora);
        if (!code && trainings[i]->patience > 0 && !cli_has(c, "validation-share"))
            code = cli_misused(c, "--patience needs --validation-share");
    }
    return code;
}

/* The commonest slip of the pen, after which nothing tells seed and curated pairs apart. */
static void cmd_warn_tags(const hbk_loop_options *o)
{
    if (o->tag_seed && o->tag_web && strcmp(o->tag_seed, o->tag_web) == 0)
        fprintf(stderr,
                "humpback: note: --tag-seed and --tag-web are the same: the models cannot tell curated pairs "
                "from people's\n");
    bool seed = strstr(o->inference_tags, "seed") && !o->tag_seed;
    bool web = strstr(o->inference_tags, "web") && !o->tag_web;
    if ((seed || web) && (o->tag_seed || o->tag_web))
        fprintf(stderr, "humpback: note: --inference-tags %s: --tag-%s is empty and adds nothing\n",
                o->inference_tags, seed ? "seed" : "web");
}

static int cmd_run(cli *c)
{
    cmd_world w;
    memset(&w, 0, sizeof w);
    const char *files[CMD_MOST_FILES];
    hbk_loop_options o = cmd_loop_options(c, files);
    const char *name = cli_text(c, "template");
    int code = cmd_check_stages(c, &o);
    if (code || (code = cmd_check_keeps(c, "keep")) || (code = cmd_check_keeps(c, "keep-share"))) return code;
    if (cli_has(c, "validation-share") && o.seed_repeat > 1)
        return cli_misused(c, "--validation-share and --seed-repeat exclude each other");
    if ((code = cmd_check_curation(c, &o.curate, "curate-temperature")) || (code = cmd_check_filter(c)))
        return code;
    if ((o.myx.replay > 0 || o.m0.replay > 0 || o.mt.replay > 0) != cli_has(c, "replay"))
        return cli_misused(c, "--replay and --replay-per-batch go together");
    if (name && strcmp(name, "none") == 0)
        return cli_misused(c, "--template none: the loop needs a template; plain is the simplest");
    cmd_warn_tags(&o);
    bool ok = cmd_open_model(c, &w) && cmd_open_template(c, &w, cli_text(c, "model")) &&
              cmd_wording(c, w.tmpl, "rubric", HBK_RATING) &&
              cmd_wording(c, w.tmpl, "rewriting", HBK_REWRITING) &&
              cmd_wording(c, w.tmpl, "prompt", HBK_BACKWARD);
    if (ok) cmd_warn_of_template(c, &w);
    ok = ok && cmd_run_loop(c, &w, &o);
    cmd_close(&w);
    return cli_end(c, ok);
}

/* The same in the miniature world, where an oracle can say what came of it. */
static int cmd_demo(cli *c)
{
    const char *dir = cli_text(c, "out");
    char run[512], page[512];
    demo_options o = {(uint64_t)cli_int(c, "seed"), cli_has(c, "lora"), dir,
                      (tiny_level)cli_choice(c, "world")};
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

/* Seeds of worlds, "10,11,12", all different, into *o. */
static int cmd_worlds(const cli *c, const char *list, repro_options *o)
{
    const char *s = list;
    while (*s) {
        char *end;
        errno = 0;
        long long seed = strtoll(s, &end, 10);
        if (end == s || *s < '0' || *s > '9' || errno || (*end && *end != ',') || (*end == ',' && !end[1]))
            return cli_misused(c, "--worlds %.60s: seeds with commas between them, as 10,11,12", list);
        for (int i = 0; i < o->n_worlds; i++)
            if (o->worlds[i] == seed) return cli_misused(c, "--worlds names %lld twice", seed);
        if (o->n_worlds == REPRO_WORLDS) return cli_misused(c, "--worlds: at most %d", (int)REPRO_WORLDS);
        o->worlds[o->n_worlds++] = (hbk_int)seed;
        s = *end ? end + 1 : end;
    }
    return o->n_worlds > 0 ? CLI_DONE : cli_misused(c, "--worlds: an empty list");
}

static int cmd_reproduce(cli *c)
{
    repro_options o;
    hbk_text lines;
    char page[512];
    json_t *result = NULL;
    memset(&o, 0, sizeof o);
    memset(&lines, 0, sizeof lines);
    o.dir = cli_text(c, "out");
    o.level = (tiny_level)cli_choice(c, "world");
    o.quick = cli_has(c, "quick");
    o.jobs = (int)cli_int(c, "jobs");
    o.stop = &cli_interrupted;
    const char *list = cli_has(c, "worlds") ? cli_text(c, "worlds") : o.quick ? "20,21,22" : "20,21,22,23,24";
    int code = cmd_worlds(c, list, &o);
    if (code != CLI_DONE) return code;
    bool json = cli_has(c, "json");
    bool ok = tool_reproduce(&o, cli_watch(c), &lines, json ? &result : NULL, &c->err) &&
              hbk_path(page, o.dir, "report.html", &c->err) && hbk_text_ok(&lines, &c->err);
    if (ok) cli_draw_end(&c->meter);
    if (ok) cli_say(c, "%s\nreport: %s\n", hbk_text_string(&lines), page);
    if (ok && json) ok = cli_print_json(json_incref(result), &c->err);
    json_decref(result);
    hbk_text_free(&lines);
    return cli_end(c, ok);
}

static int cmd_report(cli *c)
{
    const char *run = c->operands[0], *out = cli_text(c, "out");
    char state[512], metrics[512], curves[1100];
    if (!hbk_dir_exists(run)) {
        hbk_fail_at(&c->err, HBK_ERROR_FILE, run, 0,
                    "there is no such folder: give one that run, demo or finetune made with --out");
        return cli_fail(c);
    }
    bool ok = hbk_path(state, run, "run.json", &c->err) && hbk_path(metrics, run, "metrics.jsonl", &c->err);
    bool tuned = ok && !hbk_file_exists(state) && hbk_file_exists(metrics);
    ok = ok && (tuned ? tool_curve(run, out, curves, &c->err) : tool_report(run, out, &c->err));
    if (ok && (out || tuned)) printf("%s\n", tuned ? curves : out);
    if (ok && !out && !tuned) printf("%s/report.html\n", run);
    return cli_end(c, ok);
}

#endif /* CMD_STAGES_H */
