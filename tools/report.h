/* report.h: a run folder -> report.json and report.html, the work of `humpback report`.

   Two steps with one value between them. Gathering reads the folder and puts every number of the page into
   one JSON value, which is report.json; drawing makes the page from that value alone. So the page shows
   nothing that report.json does not hold, and another program can draw its own.

   What is counted is counted from the files themselves; run.json adds what files cannot tell: the
   options, the threshold, why a run stopped. A file that is not there leaves its part out, so the report of
   a run that ended early, or is still running, is a shorter report.

   The page is one file of HTML with inline CSS and SVG: no script, nothing fetched, light or dark as
   the reader's system is, from 320 pixels on. It is well-formed XML too (characters as numbers, every element
   closed). All text from files passes through report_escape.

     1  gathering           report_each  report_pairs  report_curation  report_model  report_examples
     2  judging             report_verdict  report_warnings
     3  words of HTML       report_escape  report_count  report_fixed  report_bar
     4  drawings            report_diagram  report_curve  report_histogram
     5  sections            one function each, in the order of the page
     6  the page            tool_report

   Include after humpback.h's implementation, or link with it. */

#ifndef TOOL_REPORT_H
#define TOOL_REPORT_H

#include "../humpback.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    REPORT_ROUNDS = HBK_ITERATIONS, /* looked for */
    REPORT_POINTS = 100, /* of a loss curve; more steps are averaged */
    REPORT_PICKS = 3    /* examples from each end of the scores */
};

/* ==== 1  GATHERING =========================================================== */

typedef struct report_run {
    const char *dir;
    json_t *state;  /* run.json */
    json_t *report; /* what becomes report.json */
    bool failed;    /* jansson had no memory: it sticks, and is asked for once, at the end */
} report_run;

static void report_set(report_run *r, json_t *object, const char *key, json_t *value)
{
    if (json_object_set_new(object, key, value) != 0) r->failed = true;
}

static void report_push(report_run *r, json_t *array, json_t *value)
{
    if (json_array_append_new(array, value) != 0) r->failed = true;
}

/* A number, or null where there is none: the mean of nothing, the deviation of one value. */
static json_t *report_real(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

/* A new array or object in `parent`, which owns it. */
static json_t *report_inner(report_run *r, json_t *parent, const char *key, json_t *value)
{
    report_set(r, parent, key, value);
    return json_object_get(parent, key);
}

static json_t *report_append(report_run *r, json_t *array)
{
    report_push(r, array, json_object());
    return json_array_get(array, json_array_size(array) - 1);
}

static hbk_int report_int(const json_t *object, const char *key)
{
    return (hbk_int)json_integer_value(json_object_get(object, key));
}

static const char *report_string(const json_t *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object, key));
    return s ? s : "";
}

/* The object in `array` whose `key` is `value`, a string; NULL if there is none. */
static json_t *report_find(const json_t *array, const char *key, const char *value)
{
    for (size_t i = 0; i < json_array_size(array); i++)
        if (strcmp(report_string(json_array_get(array, i), key), value) == 0) return json_array_get(array, i);
    return NULL;
}

static const json_t *report_stage(const report_run *r, const char *name)
{
    return json_object_get(json_object_get(r->state, "stages"), name);
}

typedef void report_row(report_run *r, json_t *row, void *ctx);

/* Calls fn for every complete row of DIR/name; *rows counts them, and is -1 if there is no such file. A last
   line without its newline, which a kill leaves, is not a row yet. */
static bool report_each(report_run *r, const char *name, report_row *fn, void *ctx, hbk_int *rows,
                        hbk_error *err)
{
    char path[512];
    hbk_int complete, n = 0;
    *rows = -1;
    if (!hbk_path(path, r->dir, name, err)) return false;
    if (!hbk_file_exists(path)) return true;
    if (!hbk_jsonl_count(path, &complete, err)) return false;
    hbk_jsonl_reader *reader = hbk_jsonl_open(path, NULL, err);
    if (!reader) return false;
    json_t *row;
    int got = 1;
    for (; n < complete && (got = hbk_jsonl_next(reader, &row, err)) == 1; n++) fn(r, row, ctx);
    hbk_jsonl_close(reader);
    if (got < 0) return false;
    *rows = n;
    return true;
}

/* Mean and sample deviation of a stream (Welford 1962): a corpus need not fit into memory. */
typedef struct report_moments {
    hbk_int n;
    double mean, squares;
} report_moments;

static void report_add(report_moments *m, double x)
{
    double d = x - m->mean;
    m->n++;
    m->mean += d / (double)m->n;
    m->squares += d * (x - m->mean);
}

static void report_add_length(report_moments *m, const json_t *string)
{
    report_add(m, (double)hbk_utf8_length(json_string_value(string), json_string_length(string)));
}

static json_t *report_moments_json(const report_moments *m)
{
    double nan = (double)NAN;
    return json_pack("{s:o s:o}", "mean", report_real(m->n > 0 ? m->mean : nan), "deviation",
                     report_real(m->n > 1 ? sqrt(m->squares / (double)(m->n - 1)) : nan));
}

/* Adds one to counts[key]. */
static void report_tally(report_run *r, json_t *counts, const char *key)
{
    report_set(r, counts, key, json_integer(report_int(counts, key) + 1));
}

/* A score's place in a histogram of 1 to 5: rounded, as hbk_curate_counts has it. */
static int report_bucket(double score)
{
    double rounded = floor(score + 0.5);
    return rounded < 1 ? 0 : rounded > 5 ? 4 : (int)rounded - 1;
}

/* What is gathered of any file of pairs: seed, candidates and curated ones. */
typedef struct report_pair_sums {
    report_moments instruction, output;
    hbk_int scored, histogram[5];
    double least;   /* score */
    json_t *status; /* counts by name; NULL: not counted */
} report_pair_sums;

static void report_pair_row(report_run *r, json_t *row, void *ctx)
{
    report_pair_sums *s = (report_pair_sums *)ctx;
    const json_t *score = json_object_get(row, "score"), *status = json_object_get(row, "status");
    report_add_length(&s->instruction, json_object_get(row, "instruction"));
    report_add_length(&s->output, json_object_get(row, "output"));
    if (s->status && json_is_string(status)) report_tally(r, s->status, json_string_value(status));
    if (!json_is_number(score)) return;
    double x = json_number_value(score);
    if (s->scored++ == 0 || x < s->least) s->least = x;
    s->histogram[report_bucket(x)]++;
}

/* One row of the table of lengths, from a file of pairs. s->status may be set before. */
static bool report_pairs(report_run *r, const char *set, const char *name, report_pair_sums *s, hbk_int *rows,
                         hbk_error *err)
{
    if (!report_each(r, name, report_pair_row, s, rows, err)) return false;
    if (*rows < 0) return true;
    json_t *row = report_append(r, json_object_get(r->report, "sets"));
    report_set(r, row, "set", json_string(set));
    report_set(r, row, "examples", json_integer(*rows));
    report_set(r, row, "instruction", report_moments_json(&s->instruction));
    report_set(r, row, "output", report_moments_json(&s->output));
    return true;
}

static void report_segment_row(report_run *r, json_t *row, void *ctx)
{
    (void)r;
    report_add_length((report_moments *)ctx, json_object_get(row, "text"));
}

static bool report_segments(report_run *r, hbk_error *err)
{
    report_moments text = {0, 0, 0};
    hbk_int rows;
    if (!report_each(r, "segments.jsonl", report_segment_row, &text, &rows, err)) return false;
    if (rows < 0) return true;
    json_t *s = report_inner(r, r->report, "segments", json_object());
    report_set(r, s, "rows", json_integer(rows));
    report_set(r, s, "text", report_moments_json(&text));
    return true;
}

static bool report_candidates(report_run *r, hbk_error *err)
{
    report_pair_sums sums;
    hbk_int rows;
    memset(&sums, 0, sizeof sums);
    sums.status = json_object();
    for (int f = 0; f < HBK_FATE_COUNT; f++)
        report_set(r, sums.status, hbk_fate_name((hbk_fate)f), json_integer(0));
    bool ok = report_pairs(r, "all candidates", "candidates.jsonl", &sums, &rows, err);
    if (ok && rows >= 0) {
        json_t *c = report_inner(r, r->report, "candidates", json_object());
        report_set(r, c, "rows", json_integer(rows));
        report_set(r, c, "ok", json_integer(report_int(sums.status, "ok")));
        report_set(r, c, "status", json_incref(sums.status));
    }
    json_decref(sums.status);
    return ok;
}

/* The best and the worst rated rows so far, the extreme ones first; of equals, the first in the file. */
typedef struct report_picks {
    json_t *row[2][REPORT_PICKS]; /* [0] high, [1] low */
    int n[2];
} report_picks;

static double report_score(const json_t *row)
{
    return json_number_value(json_object_get(row, "score"));
}

static void report_pick(report_picks *p, int end, json_t *row)
{
    double sign = end == 0 ? 1 : -1, score = sign * report_score(row);
    json_t **kept = p->row[end];
    int at = p->n[end];
    while (at > 0 && score > sign * report_score(kept[at - 1])) at--;
    if (at == REPORT_PICKS) return;
    if (p->n[end] == REPORT_PICKS) json_decref(kept[REPORT_PICKS - 1]);
    else p->n[end]++;
    for (int i = p->n[end] - 1; i > at; i--) kept[i] = kept[i - 1];
    kept[at] = json_incref(row);
}

static void report_picks_free(report_picks *p)
{
    for (int end = 0; end < 2; end++)
        for (int i = 0; i < p->n[end]; i++) json_decref(p->row[end][i]);
    memset(p, 0, sizeof *p);
}

typedef struct report_rating_sums {
    json_t *status;
    hbk_int histogram[5];
    report_moments score;
    char readout[32];
    report_picks picks;
} report_rating_sums;

static void report_rating_row(report_run *r, json_t *row, void *ctx)
{
    report_rating_sums *s = (report_rating_sums *)ctx;
    const char *status = report_string(row, "status");
    report_tally(r, s->status, *status ? status : "unknown");
    snprintf(s->readout, sizeof s->readout, "%s", report_string(row, "readout"));
    if (strcmp(status, "ok") != 0 || !json_is_number(json_object_get(row, "score"))) return;
    double score = report_score(row);
    report_add(&s->score, score);
    s->histogram[report_bucket(score)]++;
    for (int end = 0; end < 2; end++) report_pick(&s->picks, end, row);
}

/* Was nothing rated, since other signals select? */
static bool report_unrated(const json_t *curation)
{
    return strcmp(report_string(curation, "readout"), "none") == 0;
}

static json_t *report_five(const hbk_int h[5])
{
    return json_pack("[I,I,I,I,I]", (json_int_t)h[0], (json_int_t)h[1], (json_int_t)h[2], (json_int_t)h[3],
                     (json_int_t)h[4]);
}

/* The table of lengths' row of a stage's pairs, if they are there; *rows is -1 if they are not. */
static bool report_stage_pairs(report_run *r, const char *stage, int iteration, report_pair_sums *s,
                               hbk_int *rows, hbk_error *err)
{
    char set[32], file[48];
    memset(s, 0, sizeof *s);
    snprintf(set, sizeof set, "%s-%d", stage, iteration);
    snprintf(file, sizeof file, "%s.jsonl", set);
    return report_pairs(r, set, file, s, rows, err);
}

/* At most `most` characters of a string, with an ellipsis for the rest. */
static json_t *report_shortened(const json_t *string, hbk_int most)
{
    const char *s = json_string_value(string);
    size_t n = json_string_length(string), at = 0;
    int32_t cp;
    if (!s) return json_string("");
    for (hbk_int i = 0; i < most && at < n; i++) at += hbk_utf8_decode(s + at, n - at, &cp);
    if (at == n) return json_stringn(s, n);
    hbk_text t = {NULL, NULL, 0, 0, false};
    hbk_text_append(&t, s, at);
    hbk_text_add(&t, "\xe2\x80\xa6");
    json_t *cut = t.failed ? NULL : json_stringn(t.data, t.len);
    hbk_text_free(&t);
    return cut;
}

/* What became of the outputs that a curation kept, where they were rewritten. */
typedef struct report_rewriting_sums {
    json_t *status, *examples;
    hbk_int changed;
} report_rewriting_sums;

static void report_rewriting_row(report_run *r, json_t *row, void *ctx)
{
    report_rewriting_sums *s = (report_rewriting_sums *)ctx;
    const char *fate = report_string(row, "rewrite");
    json_t *before = json_object_get(row, "original"), *after = json_object_get(row, "output");
    report_tally(r, s->status, *fate ? fate : "unknown");
    if (!json_is_string(before) || json_equal(before, after)) return;
    if (s->changed++ < REPORT_PICKS)
        report_push(r, s->examples,
                    json_pack("{s:s s:o s:o s:o}", "id", report_string(row, "id"), "instruction",
                              report_shortened(json_object_get(row, "instruction"), 400), "before",
                              report_shortened(before, 700), "after", report_shortened(after, 700)));
}

static bool report_rewriting(report_run *r, json_t *c, int iteration, hbk_error *err)
{
    char file[48];
    hbk_int rows;
    report_rewriting_sums s = {NULL, json_array(), 0};
    s.status = json_pack("{s:i s:i s:i s:i s:i}", "ok", 0, "empty", 0, "leak", 0, "truncated", 0, "too_long",
                         0);
    r->failed = r->failed || !s.status || !s.examples;
    snprintf(file, sizeof file, "rewritten-%d.jsonl", iteration);
    bool ok = report_each(r, file, report_rewriting_row, &s, &rows, err);
    if (ok && rows >= 0) {
        json_t *w = report_inner(r, c, "rewriting", json_object());
        hbk_int new_ = report_int(s.status, "ok");
        report_set(r, w, "rows", json_integer(rows));
        report_set(r, w, "changed", json_integer(s.changed));
        report_set(r, w, "the_same", json_integer(new_ - s.changed));
        report_set(r, w, "fell_back", json_integer(rows - new_));
        report_set(r, w, "status", json_incref(s.status));
        report_set(r, w, "examples", json_incref(s.examples));
    }
    json_decref(s.status);
    json_decref(s.examples);
    return ok;
}

/* What the curated file of an iteration says, once there is one, and the lengths of what was made of it. */
static bool report_kept(report_run *r, json_t *c, int iteration, hbk_int n_rows, hbk_error *err)
{
    char stage[32];
    report_pair_sums sums, rewritten;
    hbk_int kept, n;
    if (!report_stage_pairs(r, "curated", iteration, &sums, &kept, err) ||
        !report_stage_pairs(r, "rewritten", iteration, &rewritten, &n, err) ||
        !report_rewriting(r, c, iteration, err))
        return false;
    if (kept < 0) return true;
    snprintf(stage, sizeof stage, "curated-%d", iteration);
    const json_t *told = json_object_get(report_stage(r, stage), "threshold"); /* null: by several signals */
    double threshold = json_is_number(told) ? json_number_value(told)
                       : told || !sums.scored ? (double)NAN
                                              : sums.least;
    double share = n_rows > 0 ? (double)kept / (double)n_rows : 0;
    report_set(r, c, "kept", json_integer(kept));
    report_set(r, c, "kept_share", json_real(share));
    report_set(r, c, "kept_histogram", report_five(sums.histogram));
    report_set(r, c, "threshold", report_real(threshold));
    report_set(r, c, "collapsed", json_boolean(share < 0.02 || share > 0.9));
    return true;
}

/* Iteration i: ratings-i and curated-i. False in *there if it has not begun. */
static bool report_curation(report_run *r, int iteration, report_picks *picks, bool *there, hbk_error *err)
{
    char file[32];
    hbk_int rows;
    report_rating_sums sums;
    memset(&sums, 0, sizeof sums);
    snprintf(file, sizeof file, "ratings-%d.jsonl", iteration);
    sums.status = json_pack("{s:i s:i s:i s:i}", "ok", 0, "unparsable", 0, "truncated", 0, "too_long", 0);
    bool ok = report_each(r, file, report_rating_row, &sums, &rows, err);
    *there = ok && rows >= 0;
    if (*there) {
        json_t *c = report_append(r, json_object_get(r->report, "curations"));
        char rater[16];
        snprintf(rater, sizeof rater, "m%d", iteration - 1);
        report_set(r, c, "iteration", json_integer(iteration));
        report_set(r, c, "rater", json_string(rater));
        report_set(r, c, "readout", json_string(sums.readout));
        report_set(r, c, "rows", json_integer(rows));
        report_set(r, c, "rated", json_integer(sums.score.n));
        bool asked = rows > 0 && strcmp(sums.readout, "none") != 0; /* for ratings */
        double read = asked ? (double)sums.score.n / (double)rows : (double)NAN;
        report_set(r, c, "parse_rate", report_real(read));
        report_set(r, c, "mean_score", report_real(sums.score.n > 0 ? sums.score.mean : (double)NAN));
        report_set(r, c, "histogram", report_five(sums.histogram));
        report_set(r, c, "status", json_incref(sums.status));
        ok = report_kept(r, c, iteration, rows, err);
    }
    if (*there && sums.score.n > 0) { /* the examples shown are those of the last curation */
        report_picks_free(picks);
        *picks = sums.picks;
    } else report_picks_free(&sums.picks);
    json_decref(sums.status);
    return ok;
}

/* A line through at most REPORT_POINTS points: sums over equal stretches of a file's rows. */
typedef struct report_line_sums {
    hbk_int n[REPORT_POINTS];
    double step[REPORT_POINTS], loss[REPORT_POINTS];
} report_line_sums;

/* Loss by step, of the training and, in the rows that have one, of the validation. The number of rows is
   known before. */
typedef struct report_curve_sums {
    hbk_int rows, at, buckets;
    report_line_sums train, val;
    double first, last, last_n, tokens, seconds;
    hbk_int n_val;
    double val_first, val_last, val_best, val_best_step;
} report_curve_sums;

static void report_line_add(report_line_sums *l, hbk_int bucket, double step, double loss)
{
    l->n[bucket]++;
    l->step[bucket] += step;
    l->loss[bucket] += loss;
}

/* The points as [[step, loss], ...] in `parent`; stretches without a row have none. */
static void report_line_json(report_run *r, json_t *parent, const char *key, const report_line_sums *l)
{
    json_t *points = report_inner(r, parent, key, json_array());
    for (int i = 0; i < REPORT_POINTS; i++)
        if (l->n[i] > 0)
            report_push(r, points, json_pack("[o,o]", report_real(l->step[i] / (double)l->n[i]),
                                             report_real(l->loss[i] / (double)l->n[i])));
}

static void report_validation(report_curve_sums *s, hbk_int bucket, double step, double loss)
{
    report_line_add(&s->val, bucket, step, loss);
    if (s->n_val++ == 0) s->val_first = loss;
    if (s->n_val == 1 || loss < s->val_best) {
        s->val_best = loss;
        s->val_best_step = step;
    }
    s->val_last = loss;
}

static void report_metric_row(report_run *r, json_t *row, void *ctx)
{
    (void)r;
    report_curve_sums *s = (report_curve_sums *)ctx;
    const json_t *val = json_object_get(row, "val_loss");
    double loss = json_number_value(json_object_get(row, "loss"));
    double step = json_number_value(json_object_get(row, "step"));
    hbk_int i = s->at++, bucket = i * s->buckets / s->rows;
    report_line_add(&s->train, bucket, step, loss);
    if (json_is_number(val)) report_validation(s, bucket, step, json_number_value(val));
    s->tokens += json_number_value(json_object_get(row, "tokens"));
    if (i == 0) s->first = loss;
    if (i >= s->rows - s->rows / 10 - 1) { /* the last tenth, and one step at least */
        s->last += loss;
        s->last_n++;
    }
}

static void report_timing_row(report_run *r, json_t *row, void *ctx)
{
    (void)r;
    report_curve_sums *s = (report_curve_sums *)ctx;
    double seconds = json_number_value(json_object_get(row, "seconds"));
    s->seconds += seconds;
    s->tokens += seconds * json_number_value(json_object_get(row, "tokens_per_s"));
}

/* The time of a training. After a resume the file holds the steps since then only: they are counted too. */
static bool report_model_time(report_run *r, json_t *m, const char *name, hbk_error *err)
{
    char file[64];
    report_curve_sums s;
    hbk_int timed;
    memset(&s, 0, sizeof s);
    snprintf(file, sizeof file, "%s/timings.jsonl", name);
    if (!report_each(r, file, report_timing_row, &s, &timed, err)) return false;
    if (timed <= 0) return true;
    report_set(r, m, "timed_steps", json_integer(timed));
    report_set(r, m, "seconds", report_real(s.seconds));
    report_set(r, m, "tokens_per_s", report_real(s.seconds > 0 ? s.tokens / s.seconds : (double)NAN));
    return true;
}

/* What a finished model was finetuned from and on, as run.json has it. */
static void report_model_data(report_run *r, json_t *m, const char *name)
{
    static const char *const keys[] = {"base", "examples", "validation", "too_long"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        json_t *value = json_object_get(report_stage(r, name), keys[i]);
        if (value) report_set(r, m, keys[i], json_incref(value));
    }
}

static bool report_model(report_run *r, const char *name, hbk_error *err)
{
    char file[64], path[512];
    report_curve_sums s;
    hbk_int rows;
    memset(&s, 0, sizeof s);
    snprintf(file, sizeof file, "%s/metrics.jsonl", name);
    if (!hbk_path(path, r->dir, file, err)) return false;
    if (!hbk_file_exists(path)) return true;
    if (!hbk_jsonl_count(path, &s.rows, err)) return false;
    s.buckets = s.rows < REPORT_POINTS ? s.rows : (hbk_int)REPORT_POINTS;
    if (!report_each(r, file, report_metric_row, &s, &rows, err)) return false;
    json_t *m = report_append(r, json_object_get(r->report, "models"));
    snprintf(file, sizeof file, "%s/humpback.json", name); /* written last: the model is complete */
    if (!hbk_path(path, r->dir, file, err)) return false;
    report_set(r, m, "model", json_string(name));
    report_set(r, m, "done", json_boolean(hbk_file_exists(path)));
    report_set(r, m, "steps", json_integer(rows));
    report_set(r, m, "tokens", fabs(s.tokens) < 9e15 ? json_integer((json_int_t)s.tokens) : json_null());
    report_set(r, m, "loss_first", report_real(rows > 0 ? s.first : (double)NAN));
    report_set(r, m, "loss_last", report_real(s.last_n > 0 ? s.last / s.last_n : (double)NAN));
    report_model_data(r, m, name);
    report_line_json(r, m, "curve", &s.train);
    if (s.n_val > 0) {
        report_set(r, m, "val_first", report_real(s.val_first));
        report_set(r, m, "val_last", report_real(s.val_last));
        report_set(r, m, "val_best", report_real(s.val_best));
        report_set(r, m, "val_best_step", report_real(s.val_best_step));
        report_line_json(r, m, "val_curve", &s.val);
    }
    return report_model_time(r, m, name, err);
}

/* Fills an example in from the candidate that it rates. */
static void report_example_row(report_run *r, json_t *row, void *ctx)
{
    json_t *examples = (json_t *)ctx;
    for (size_t i = 0; i < json_array_size(examples); i++) {
        json_t *e = json_array_get(examples, i);
        if (json_object_get(e, "output") || strcmp(report_string(e, "id"), report_string(row, "id")) != 0)
            continue;
        report_set(r, e, "instruction", report_shortened(json_object_get(row, "instruction"), 400));
        report_set(r, e, "output", report_shortened(json_object_get(row, "output"), 700));
    }
}

static bool report_examples(report_run *r, const report_picks *p, hbk_error *err)
{
    json_t *examples = json_array();
    for (int end = 0; end < 2; end++)
        for (int i = 0; i < p->n[end]; i++) {
            const json_t *row = p->row[end][i];
            bool again = false; /* of six ratings or fewer the best are among the worst */
            for (int k = 0; end == 1 && k < p->n[0]; k++) again = again || p->row[0][k] == row;
            if (again) continue;
            report_push(r, examples,
                        json_pack("{s:s s:s s:f s:o}", "end", end == 0 ? "high" : "low", "id",
                                  report_string(row, "id"), "score", report_score(row), "rating",
                                  report_shortened(json_object_get(row, "text"), 500)));
        }
    hbk_int rows = 0;
    bool ok = json_array_size(examples) == 0 ||
              report_each(r, "candidates.jsonl", report_example_row, examples, &rows, err);
    report_set(r, r->report, "examples", examples);
    return ok;
}

/* Time by stage: of a training from its timings, of the others where run.json has "seconds". */
static void report_stage_time(report_run *r, json_t *times, const char *stage, const char *unit, hbk_int n)
{
    const json_t *m = report_find(json_object_get(r->report, "models"), "model", stage);
    const json_t *seconds = json_object_get(m ? m : report_stage(r, stage), "seconds");
    json_t *row = report_append(r, times);
    report_set(r, row, "stage", json_string(stage));
    report_set(r, row, "unit", json_string(unit));
    report_set(r, row, "n", json_integer(n));
    if (m) report_set(r, row, "timed", json_integer(report_int(m, "timed_steps")));
    double s = json_is_number(seconds) ? json_number_value(seconds) : (double)NAN;
    report_set(r, row, "seconds", report_real(s));
    if (json_is_number(json_object_get(m, "tokens_per_s")))
        report_set(r, row, "tokens_per_s", json_copy(json_object_get(m, "tokens_per_s")));
}

static void report_times(report_run *r)
{
    const json_t *models = json_object_get(r->report, "models"), *rows;
    json_t *times = report_inner(r, r->report, "stages", json_array());
    const json_t *m = report_find(models, "model", "myx");
    if (m) report_stage_time(r, times, "myx", "steps", report_int(m, "steps"));
    rows = json_object_get(r->report, "candidates");
    if (rows) report_stage_time(r, times, "candidates", "rows", report_int(rows, "rows"));
    for (int i = 0; i <= REPORT_ROUNDS; i++) {
        char name[32];
        snprintf(name, sizeof name, "m%d", i);
        m = report_find(models, "model", name);
        if (m) report_stage_time(r, times, name, "steps", report_int(m, "steps"));
        rows = json_array_get(json_object_get(r->report, "curations"), (size_t)i);
        snprintf(name, sizeof name, "ratings-%d", i + 1);
        if (rows) report_stage_time(r, times, name, "rows", report_int(rows, "rows"));
    }
}

/* ==== 2  JUDGING ============================================================= */

/* A formatted number, by value: report_count(n).s lives to the end of the expression that holds it. */
typedef struct report_word {
    char s[48];
} report_word;

/* 12345 as 12,345. */
static report_word report_count(hbk_int n)
{
    char digits[32];
    report_word w;
    size_t len = (size_t)snprintf(digits, sizeof digits, "%lld", (long long)n), at = 0;
    for (size_t i = 0; i < len; i++) {
        w.s[at++] = digits[i];
        if ((len - i) % 3 == 1 && i + 1 < len && digits[i] != '-') w.s[at++] = ',';
    }
    w.s[at] = 0;
    return w;
}

static bool report_done(const json_t *report, const char *model)
{
    const json_t *m = report_find(json_object_get(report, "models"), "model", model);
    return json_is_true(json_object_get(m, "done"));
}

/* Iterations that were asked for; where run.json does not say, those that have begun. */
static int report_rounds(const json_t *report)
{
    hbk_int asked = report_int(json_object_get(report, "options"), "iterations");
    hbk_int begun = (hbk_int)json_array_size(json_object_get(report, "curations"));
    hbk_int n = asked > begun ? asked : begun;
    return n > REPORT_ROUNDS ? REPORT_ROUNDS : (int)n;
}

/* What came of the run so far, as the clause of a sentence: no capital, no full stop. */
static void report_outcome(hbk_text *t, const json_t *report)
{
    const json_t *seed = report_find(json_object_get(report, "sets"), "set", "seed");
    const json_t *candidates = json_object_get(report, "candidates");
    const json_t *curations = json_object_get(report, "curations");
    hbk_int usable = report_int(candidates, "ok");
    if (!candidates) {
        hbk_text_add(t, "no instruction has been written yet");
        return;
    }
    hbk_text_printf(t, "from %s seed pairs and %s segments the loop wrote %s usable instruction%s",
                    report_count(report_int(seed, "examples")).s,
                    report_count(report_int(json_object_get(report, "segments"), "rows")).s,
                    report_count(usable).s, usable == 1 ? "" : "s");
    for (size_t i = 0; i < json_array_size(curations); i++) {
        const json_t *c = json_array_get(curations, i);
        if (!json_object_get(c, "kept")) break;
        hbk_text_printf(t, "%s %s", i == 0 ? ", of which it kept" : " and then",
                        report_count(report_int(c, "kept")).s);
    }
}

/* The one sentence on top: is it finished, and what came of it? */
static void report_verdict(report_run *r)
{
    const char *stopped = report_string(r->state, "stopped");
    const json_t *stages = json_object_get(r->report, "stages");
    const json_t *last = json_array_get(stages, json_array_size(stages) - 1);
    char result[16];
    hbk_text t = {NULL, NULL, 0, 0, false};
    int rounds = report_rounds(r->report);
    snprintf(result, sizeof result, "m%d", rounds);
    bool complete = !*stopped && rounds > 0 && report_done(r->report, result);
    if (*stopped) hbk_text_printf(&t, "Stopped early (%s): ", stopped);
    else if (!complete) hbk_text_add(&t, "Not finished: ");
    report_outcome(&t, r->report);
    if (complete) hbk_text_printf(&t, ", and ended with M%d", rounds);
    else if (!*stopped && last)
        hbk_text_printf(&t, "; the last stage with a file is %s, and the same command goes on from there",
                        report_string(last, "stage"));
    hbk_text_add(&t, ".");
    if (!t.failed && t.data[0] == 'f') t.data[0] = 'F';
    report_set(r, r->report, "complete", json_boolean(complete));
    report_set(r, r->report, "stopped", json_string(stopped));
    report_set(r, r->report, "verdict", t.failed ? NULL : json_stringn(t.data, t.len));
    hbk_text_free(&t);
}

/* Tags that are the same tell nothing apart. */
static void report_warn_tags(report_run *r, json_t *warnings)
{
    const json_t *options = json_object_get(r->report, "options");
    const char *seed = report_string(options, "tag_seed"), *web = report_string(options, "tag_web");
    if (*seed && strcmp(seed, web) == 0)
        report_push(
            r, warnings,
            json_string("Seed and curated pairs carry the same tag: the models cannot tell them apart."));
}

/* A seed of which much was left out is a smaller seed than its owner thinks. */
static void report_warn_too_long(report_run *r, json_t *warnings)
{
    const json_t *m0 = report_find(json_object_get(r->report, "models"), "model", "m0");
    hbk_int used = report_int(m0, "examples") + report_int(m0, "validation"),
            out = report_int(m0, "too_long");
    char line[320];
    if (10 * out <= used + out) return;
    snprintf(line, sizeof line,
             "%s of the %s seed pairs do not fit into the context and were left out: shorter pairs, a larger "
             "--max-length or a model with a longer context keep them.",
             report_count(out).s, report_count(used + out).s);
    report_push(r, warnings, json_string(line));
}

static void report_warnings(report_run *r)
{
    json_t *warnings = report_inner(r, r->report, "warnings", json_array());
    const json_t *curations = json_object_get(r->report, "curations");
    report_warn_tags(r, warnings);
    report_warn_too_long(r, warnings);
    for (size_t i = 0; i < json_array_size(curations); i++) {
        const json_t *c = json_array_get(curations, i), *rate = json_object_get(c, "parse_rate");
        hbk_int rows = report_int(c, "rows"), too_long = report_int(json_object_get(c, "status"), "too_long");
        char line[320];
        if (2 * too_long > rows) { /* nobody's judgement has failed: nothing was judged */
            snprintf(line, sizeof line,
                     "%s of the %s pairs of curation %zu do not fit into the context with the rubric around "
                     "them: they need a shorter rubric, shorter segments or a model with a longer context.",
                     report_count(too_long).s, report_count(rows).s, i + 1);
            report_push(r, warnings, json_string(line));
            continue;
        }
        if (json_is_true(json_object_get(c, "collapsed"))) {
            snprintf(line, sizeof line,
                     "The rater of curation %zu, M%zu, has collapsed: %s of %s pairs were kept, and fewer "
                     "than 2 %% or more than 90 %% mean that it does not tell good from bad.",
                     i + 1, i, report_count(report_int(c, "kept")).s, report_count(report_int(c, "rows")).s);
            report_push(r, warnings, json_string(line));
        }
        if (json_is_number(rate) && json_number_value(rate) < 0.5) {
            snprintf(line, sizeof line, "Only %.1f %% of the ratings of curation %zu could be read.",
                     100 * json_number_value(rate), i + 1);
            report_push(r, warnings, json_string(line));
        }
    }
}

/* extra.json: a title, notes and tables of the program that made the run. */
static bool report_extra(report_run *r, hbk_error *err)
{
    char path[512];
    if (!hbk_path(path, r->dir, "extra.json", err)) return false;
    if (!hbk_file_exists(path)) return true;
    json_t *extra = hbk_json_read(path, err);
    if (!extra) return false;
    if (json_is_object(extra)) {
        report_set(r, r->report, "extra", extra);
        return true;
    }
    json_decref(extra);
    return hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0,
                       "expected an object {\"title\", \"notes\", \"tables\"}, or no such file");
}

/* A member of run.json as it is, null if there is none. */
static void report_copy(report_run *r, const char *key)
{
    json_t *value = json_object_get(r->state, key);
    report_set(r, r->report, key, value ? json_incref(value) : json_null());
}

/* Everything, in the order of report.json. */
static bool report_gather(report_run *r, hbk_error *err)
{
    static const char *const names[] = {"myx", "m0", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8"};
    report_picks picks;
    report_pair_sums seed;
    hbk_int rows;
    memset(&picks, 0, sizeof picks);
    memset(&seed, 0, sizeof seed);
    report_copy(r, "humpback");
    report_set(r, r->report, "verdict", json_string("")); /* these four stand first, and are known last */
    report_set(r, r->report, "complete", json_false());
    report_set(r, r->report, "stopped", json_string(""));
    report_set(r, r->report, "warnings", json_array());
    report_copy(r, "options");
    report_copy(r, "inputs");
    report_set(r, r->report, "sets", json_array());
    report_set(r, r->report, "curations", json_array());
    report_set(r, r->report, "models", json_array());
    bool ok = report_extra(r, err) && report_segments(r, err) &&
              report_pairs(r, "seed", "seed.jsonl", &seed, &rows, err), there = true;
    for (int i = 1; ok && there && i <= REPORT_ROUNDS; i++) ok = report_curation(r, i, &picks, &there, err);
    ok = ok && report_candidates(r, err) && report_examples(r, &picks, err);
    report_picks_free(&picks);
    for (size_t i = 0; ok && i < sizeof names / sizeof names[0]; i++) ok = report_model(r, names[i], err);
    if (!ok) return false;
    report_times(r);
    report_verdict(r);
    report_warnings(r);
    return !r->failed || hbk_fail(err, HBK_ERROR_MEMORY, "out of memory for the numbers of the report");
}

/* ==== 3  WORDS OF HTML ======================================================= */

/* Text from outside as text: markup, quotes and control characters become harmless. */
static void report_escape_n(hbk_text *t, const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c == '&') hbk_text_add(t, "&amp;");
        else if (c == '<') hbk_text_add(t, "&lt;");
        else if (c == '>') hbk_text_add(t, "&gt;");
        else if (c == '"') hbk_text_add(t, "&quot;");
        else if (c == '\'') hbk_text_add(t, "&#39;");
        else if ((c < 32 && c != '\n' && c != '\t') || c == 127) hbk_text_add(t, "&#65533;");
        else hbk_text_append(t, s + i, 1);
    }
}

static void report_escape(hbk_text *t, const char *s)
{
    report_escape_n(t, s, strlen(s));
}

static void report_escape_json(hbk_text *t, const json_t *string)
{
    if (json_is_string(string)) report_escape_n(t, json_string_value(string), json_string_length(string));
}

/* A number with so many decimals, or "-" for null and the like. Decimals below 0: six digits. */
static report_word report_fixed(const json_t *number, int decimals)
{
    report_word w = {"-"};
    if (!json_is_number(number)) return w;
    double x = json_number_value(number);
    if (decimals == 0 && fabs(x) < 1e15) return report_count((hbk_int)floor(x + 0.5));
    if (decimals < 0 || fabs(x) >= 1e15) snprintf(w.s, sizeof w.s, "%.6g", x);
    else snprintf(w.s, sizeof w.s, "%.*f", decimals, x);
    return w;
}

/* A score or threshold: 5, 4.5, 3.67. */
static report_word report_plain(const json_t *number)
{
    report_word w = {"-"};
    if (json_is_number(number)) snprintf(w.s, sizeof w.s, "%.3g", json_number_value(number));
    return w;
}

static report_word report_percent(double part, double whole)
{
    report_word w = {"-"};
    double p = 100 * part / whole;
    bool edge = (p > 0 && p < 0.05) || (p >= 99.95 && p < 100); /* not all, not none: a digit more shows it */
    if (whole > 0) snprintf(w.s, sizeof w.s, "%.*f&#160;%%", edge ? 2 : 1, p);
    return w;
}

static report_word report_duration(const json_t *seconds)
{
    report_word w = {"-"};
    if (!json_is_number(seconds)) return w;
    double s = json_number_value(seconds);
    long long whole = s < 1e15 ? (long long)(s + 0.5) : 0;
    if (s < 60) snprintf(w.s, sizeof w.s, "%.1f s", s);
    else if (s < 3600) snprintf(w.s, sizeof w.s, "%lld min %02lld s", whole / 60, whole % 60);
    else snprintf(w.s, sizeof w.s, "%lld h %02lld min", whole / 3600, whole / 60 % 60);
    return w;
}

/* m1 as M1; the backward model with its index, in HTML. */
static report_word report_model_name(const char *model)
{
    report_word w;
    if (strcmp(model, "myx") == 0) snprintf(w.s, sizeof w.s, "M<sub>yx</sub>");
    else snprintf(w.s, sizeof w.s, "M%.8s", model + 1);
    return w;
}

static void report_cell(hbk_text *t, const char *kind, const char *content)
{
    hbk_text_printf(t, "<td class=\"%s\">%s</td>", kind, content);
}

/* A cell with a bar of share 0 .. 1 of its width. */
static void report_bar(hbk_text *t, double share, bool accent)
{
    double width = share > 0 ? (share < 1 ? 100 * share : 100) : 0; /* a NaN is no bar */
    hbk_text_printf(t, "<td class=\"bar\"><span%s style=\"width:%.1f%%\"></span></td>",
                    accent ? " class=\"main\"" : "", width);
}

static void report_section(hbk_text *t, const char *id, const char *title, const char *about)
{
    hbk_text_printf(t, "<section id=\"%s\">\n<h2>%s</h2>\n", id, title);
    if (*about) hbk_text_printf(t, "<p class=\"about\">%s</p>\n", about);
}

/* ==== 4  DRAWINGS ============================================================

   Each is drawn at the size at which it stands on a phone, in units that are then pixels, so that its letters
   are read there; a wide screen shows it a little larger or more of them side by side. */

static void report_label(hbk_text *t, double x, double y, const char *kind, const char *words)
{
    hbk_text_printf(t, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\">%s</text>\n", x, y, kind, words);
}

static void report_edge(hbk_text *t, const char *kind, const char *path)
{
    hbk_text_printf(t, "<path d=\"%s\" class=\"edge %s\" marker-end=\"url(#tip)\"/>\n", path, kind);
}

/* A box of the diagram, 44 high around the middle y: data are square, models are round. */
typedef enum report_shape { REPORT_DATA, REPORT_SEED, REPORT_MODEL } report_shape;

static void report_box(hbk_text *t, report_shape shape, double y, const char *kind, const char *name,
                       const char *note)
{
    double x = shape == REPORT_DATA ? 24 : 254, width = shape == REPORT_DATA ? 140 : 124;
    hbk_text_printf(t, "<rect x=\"%.0f\" y=\"%.0f\" width=\"%.0f\" height=\"44\" rx=\"%d\" ", x, y - 22,
                    width, shape == REPORT_MODEL ? 22 : 4);
    hbk_text_printf(t, "class=\"box %s\"/>\n<text x=\"%.0f\" y=\"%.0f\" class=\"name %s\">%s</text>\n", kind,
                    x + width / 2, *note ? y - 3 : y + 5, kind, name);
    if (*note)
        hbk_text_printf(t, "<text x=\"%.0f\" y=\"%.0f\" class=\"note %s\">%s</text>\n", x + width / 2, y + 13,
                        kind, note);
}

/* The number of the model that the run has ended with; -1 while it has not. */
static int report_result(const json_t *report)
{
    int last = -1;
    char model[16] = "m0";
    while (last < REPORT_ROUNDS && report_done(report, model))
        snprintf(model, sizeof model, "m%d", ++last + 1);
    return json_is_true(json_object_get(report, "complete")) || *report_string(report, "stopped") ? last : -1;
}

/* One iteration, from the row of its rater at y to the row of its model, y + 136:

       candidates |<-- rates -- M(i-1)
                  v
       curated i  ---- kept --> M(i)                                                                     */
static void report_diagram_round(hbk_text *t, const json_t *report, int i, int result, double y)
{
    const json_t *c = json_array_get(json_object_get(report, "curations"), (size_t)(i - 1));
    const json_t *kept = json_object_get(c, "kept");
    char model[32], words[128];
    const char *rating = c ? "" : "off", *keeping = kept ? "" : "off";
    snprintf(model, sizeof model, "m%d", i);
    const char *after = report_done(report, model) ? "" : "off";

    if (i == 1) snprintf(words, sizeof words, "M92 186V%.0f", y + 44);
    else
        snprintf(words, sizeof words, "M24 164H16Q8 164 8 172V%.0fQ8 %.0f 16 %.0fH84Q92 %.0f 92 %.0fV%.0f",
                 y - 32, y - 24, y - 24, y - 24, y - 16, y + 44);
    report_edge(t, keeping, words);
    snprintf(words, sizeof words, "M254 %.0fH98", y);
    report_edge(t, rating, words);
    report_label(t, 176, y - 7, "act", report_unrated(c) ? "measures" : "rates");
    if (c) {
        hbk_int ranked = report_int(json_object_get(c, "status"), "ok");
        if (report_unrated(c)) snprintf(words, sizeof words, "%s measured", report_count(ranked).s);
        else snprintf(words, sizeof words, "%s rated", report_count(report_int(c, "rated")).s);
        report_label(t, 102, y + 24, "flow", words);
    }
    snprintf(model, sizeof model, "Curated %d", i);
    words[0] = 0;
    if (kept && json_is_number(json_object_get(c, "threshold")))
        snprintf(words, sizeof words, "score &#8805; %s", report_plain(json_object_get(c, "threshold")).s);
    report_box(t, REPORT_DATA, y + 68, keeping, model, words);

    snprintf(words, sizeof words, "M164 %.0fH308Q316 %.0f 316 %.0fV%.0f", y + 68, y + 68, y + 76, y + 112);
    report_edge(t, after, words);
    if (kept) {
        snprintf(words, sizeof words, "%s kept", report_count(report_int(c, "kept")).s);
        report_label(t, 172, y + 61, "flow", words);
    }
    snprintf(words, sizeof words, "M392 %.0fV%.0fQ392 %.0f 386 %.0fH382", y - 8, y + 128, y + 136, y + 136);
    report_edge(t, after, words);
    snprintf(model, sizeof model, "M%d", i);
    snprintf(words, sizeof words, "seed + curated %d", i);
    report_box(t, REPORT_MODEL, y + 136, *after ? after : i == result ? "result" : "", model, words);
}

/* The loop. The seed's rail on the right reaches every model, the candidates' rail on the left every curation
   after the first. */
static void report_diagram(hbk_text *t, const json_t *report)
{
    int rounds = report_rounds(report);
    rounds = rounds > 0 ? rounds : 2;
    int result = report_result(report);
    const json_t *candidates = json_object_get(report, "candidates");
    const json_t *seed = report_find(json_object_get(report, "sets"), "set", "seed");
    const json_t *segments = json_object_get(report, "segments");
    const char *written = candidates ? "" : "off";
    char words[128];
    hbk_text_printf(t,
                    "<svg class=\"diagram\" viewBox=\"0 0 400 %d\" role=\"img\" aria-label=\"The loop: "
                    "the backward model writes instructions for segments, they are rated, and the best "
                    "train the next model\">\n",
                    256 + 136 * rounds);
    hbk_text_add(t, "<defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"8\" "
                    "markerHeight=\"8\" markerUnits=\"userSpaceOnUse\" orient=\"auto\">"
                    "<path d=\"M0 0.5L8 4L0 7.5Z\" class=\"tip\"/></marker></defs>\n");
    report_edge(t, written, "M92 46V138");
    report_edge(t, written, "M254 94H98");
    report_edge(t, report_done(report, "myx") ? "" : "off", "M378 24H384Q392 24 392 32V86Q392 94 386 94H382");
    report_edge(t, report_done(report, "m0") ? "" : "off", "M392 86V226Q392 234 386 234H382");
    report_label(t, 176, 87, "act", "writes instructions");
    if (segments) report_label(t, 102, 66, "flow", report_count(report_int(segments, "rows")).s);
    if (candidates) {
        snprintf(words, sizeof words, "%s written", report_count(report_int(candidates, "rows")).s);
        report_label(t, 102, 120, "flow", words);
        snprintf(words, sizeof words, "%s usable", report_count(report_int(candidates, "ok")).s);
        report_label(t, 102, 206, "flow", words);
    }
    report_box(t, REPORT_DATA, 24, segments ? "" : "off", "Segments", "unlabelled text");
    snprintf(words, sizeof words, "%s by people", report_count(report_int(seed, "examples")).s);
    report_box(t, REPORT_SEED, 24, seed ? "" : "off", "Seed pairs", seed ? words : "by people");
    report_box(t, REPORT_MODEL, 94, report_done(report, "myx") ? "" : "off",
               "M<tspan class=\"sub\" dy=\"3\">yx</tspan>", "output &#8594; instruction");
    report_box(t, REPORT_DATA, 164, written, "Candidates", "new instruction, old text");
    report_box(t, REPORT_MODEL, 234, !report_done(report, "m0") ? "off" : result == 0 ? "result" : "",
               "M0", "seed only");
    for (int i = 1; i <= rounds; i++) report_diagram_round(t, report, i, result, 98 + 136.0 * i);
    hbk_text_add(t, "</svg>\n");
}

/* A round step (1, 2 or 5 times a power of ten) that cuts `range` into about n pieces. */
static double report_tick(double range, int n)
{
    double raw = range / n, power = pow(10, floor(log10(raw))), lead = raw / power;
    return power * (lead < 1.5 ? 1 : lead < 3.5 ? 2 : lead < 7.5 ? 5 : 10);
}

/* The frame that all curves share: losses from 0 up, so that heights can be compared. */
typedef struct report_frame {
    double top, tick, steps;
} report_frame;

enum { CURVE_X = 34, CURVE_Y = 12, CURVE_W = 236, CURVE_H = 128 }; /* of a drawing of 320 x 166 */

static double report_curve_x(const report_frame *f, double step)
{
    return CURVE_X + CURVE_W * step / f->steps;
}

static double report_curve_y(const report_frame *f, double loss)
{
    return CURVE_Y + CURVE_H * (1 - loss / f->top);
}

static double report_point(const json_t *curve, size_t i, size_t coordinate)
{
    return json_number_value(json_array_get(json_array_get(curve, i), coordinate));
}

/* A line through the curve's points, each the mean of those within `reach` of it. */
static void report_line(hbk_text *t, const report_frame *f, const json_t *curve, size_t reach,
                        const char *kind)
{
    size_t n = json_array_size(curve);
    hbk_text_printf(t, "<path class=\"%s\" d=\"", kind);
    for (size_t i = 0; i < n; i++) {
        size_t from = i > reach ? i - reach : 0, to = i + reach < n - 1 ? i + reach : n - 1;
        double sum = 0;
        for (size_t k = from; k <= to; k++) sum += report_point(curve, k, 1);
        hbk_text_printf(t, "%c%.1f %.1f", i ? 'L' : 'M', report_curve_x(f, report_point(curve, i, 0)),
                        report_curve_y(f, sum / (double)(to - from + 1)));
    }
    hbk_text_add(t, "\"/>\n");
}

static void report_axes(hbk_text *t, const report_frame *f)
{
    for (double v = 0; v <= f->top * 1.001; v += f->tick) {
        double y = report_curve_y(f, v);
        hbk_text_printf(t, "<path class=\"%s\" d=\"M%d %.1fH%d\"/>", v > 0 ? "grid" : "axis", CURVE_X, y,
                        CURVE_X + CURVE_W);
        hbk_text_printf(t, "<text class=\"scale y\" x=\"%d\" y=\"%.1f\">%.4g</text>\n", CURVE_X - 6,
                        y + 4, v);
    }
    double tick = report_tick(f->steps, 3);
    tick = tick < 1 ? 1 : tick;
    for (double v = 0; v <= f->steps * 1.001; v += tick)
        hbk_text_printf(t, "<text class=\"scale x\" x=\"%.1f\" y=\"%d\">%s</text>\n", report_curve_x(f, v),
                        CURVE_Y + CURVE_H + 17, report_count((hbk_int)v).s);
}

/* The validations, joined, with a ring around the lowest: the weights of that step were kept. */
static void report_curve_validation(hbk_text *t, const json_t *m, const report_frame *f)
{
    const json_t *curve = json_object_get(m, "val_curve");
    size_t n = json_array_size(curve);
    report_line(t, f, curve, 0, "val");
    for (size_t i = 0; i < n && n <= 30; i++)
        hbk_text_printf(t, "<circle class=\"dot\" cx=\"%.1f\" cy=\"%.1f\" r=\"2\"/>\n",
                        report_curve_x(f, report_point(curve, i, 0)),
                        report_curve_y(f, report_point(curve, i, 1)));
    hbk_text_printf(t, "<circle class=\"ring\" cx=\"%.1f\" cy=\"%.1f\" r=\"5\"/>\n",
                    report_curve_x(f, json_number_value(json_object_get(m, "val_best_step"))),
                    report_curve_y(f, json_number_value(json_object_get(m, "val_best"))));
}

/* The figures at the ends of the lines, apart from each other. */
static void report_curve_ends(hbk_text *t, const json_t *m, const report_frame *f, double x)
{
    const json_t *last = json_object_get(m, "loss_last"), *val = json_object_get(m, "val_last");
    double y = report_curve_y(f, json_number_value(last)), v = report_curve_y(f, json_number_value(val));
    hbk_text_printf(t, "<circle class=\"end\" cx=\"%.1f\" cy=\"%.1f\" r=\"3\"/>\n", x, y);
    if (val && fabs(v - y) < 14) { /* the upper one goes up */
        double middle = (v + y) / 2;
        y = middle + (y >= v ? 7 : -7);
        v = 2 * middle - y;
    }
    report_label(t, x + 8, y + 4, "value", report_fixed(last, 2).s);
    if (val) report_label(t, x + 8, v + 4, "value of-val", report_fixed(val, 2).s);
}

/* The loss curve of one model. Its scale of losses is that of all; its steps are its own. */
static void report_curve(hbk_text *t, const json_t *m, const report_frame *shared)
{
    const json_t *curve = json_object_get(m, "curve"), *last = json_object_get(m, "loss_last");
    size_t n = json_array_size(curve);
    report_frame f = *shared;
    f.steps = (double)report_int(m, "steps");
    f.steps = f.steps > 1 ? f.steps : 1;
    report_word steps = report_count(report_int(m, "steps"));
    hbk_text_printf(t, "<figure>\n<figcaption><b>%s</b> %s steps%s",
                    report_model_name(report_string(m, "model")).s, steps.s,
                    json_is_true(json_object_get(m, "done")) ? "" : ", not finished");
    if (json_object_get(m, "val_curve"))
        hbk_text_printf(t, ", best at %s", report_fixed(json_object_get(m, "val_best_step"), 0).s);
    hbk_text_add(t, "</figcaption>\n");
    hbk_text_printf(t, "<svg viewBox=\"0 0 320 166\" role=\"img\" aria-label=\"loss from %s to %s\">\n",
                    report_fixed(json_object_get(m, "loss_first"), 2).s, report_fixed(last, 2).s);
    report_axes(t, &f);
    if (n > 0) {
        report_line(t, &f, curve, 0, "raw");
        report_line(t, &f, curve, n / 10, "line");
        if (json_object_get(m, "val_curve")) report_curve_validation(t, m, &f);
        report_curve_ends(t, m, &f, report_curve_x(&f, report_point(curve, n - 1, 0)));
    }
    hbk_text_add(t, "</svg>\n</figure>\n");
}

/* Scores 1 to 5 as bars, what was kept in the accent colour, and beside them those without a score. */
static void report_histogram(hbk_text *t, const json_t *c)
{
    const json_t *all = json_object_get(c, "histogram"), *kept = json_object_get(c, "kept_histogram");
    hbk_int n[6], k[6] = {0, 0, 0, 0, 0, 0}, most = 1;
    n[0] = report_int(c, "rows") - report_int(c, "rated");
    for (size_t i = 1; i < 6; i++) {
        n[i] = (hbk_int)json_integer_value(json_array_get(all, i - 1));
        k[i] = (hbk_int)json_integer_value(json_array_get(kept, i - 1));
    }
    for (int i = 0; i < 6; i++) most = n[i] > most ? n[i] : most;
    hbk_text_add(t, "<svg viewBox=\"0 0 320 166\" role=\"img\" aria-label=\"number of pairs by score\">\n");
    for (int i = 0; i < 6; i++) {
        double x = i == 0 ? 8 : 26 + 48.0 * i, scale = 116.0 / (double)most;
        double height = (double)n[i] * scale, dark = (double)k[i] * scale;
        static const char *const names[6] = {"no score", "1", "2", "3", "4", "5"};
        hbk_text_printf(t, "<rect class=\"%s\" x=\"%.1f\" y=\"%.1f\" width=\"38\" height=\"%.1f\"/>\n",
                        i == 0 ? "none" : "rest", x, 140 - height, height);
        if (k[i] > 0)
            hbk_text_printf(t, "<rect class=\"kept\" x=\"%.1f\" y=\"%.1f\" width=\"38\" height=\"%.1f\"/>\n",
                            x, 140 - dark, dark);
        report_label(t, x + 19, 135 - height, k[i] > 0 ? "count strong" : "count", report_count(n[i]).s);
        report_label(t, x + 19, 157, "scale x", names[i]);
    }
    hbk_text_add(t, "<path class=\"axis\" d=\"M6 140.5H314\"/>\n</svg>\n");
}

/* ==== 5  SECTIONS ============================================================ */

/* The beginning of a page, to its last note. Arrays of strings; NULL: none. */
static void report_head(hbk_text *t, const char *title, const json_t *verdict, const json_t *warnings,
                        const json_t *notes)
{
    hbk_text_add(t, "<header>\n<h1>");
    report_escape(t, title);
    hbk_text_add(t, "</h1>\n<p class=\"verdict\">");
    report_escape_json(t, verdict);
    hbk_text_add(t, "</p>\n");
    for (size_t i = 0; i < json_array_size(warnings); i++) {
        hbk_text_add(t, "<p class=\"warning\">");
        report_escape_json(t, json_array_get(warnings, i));
        hbk_text_add(t, "</p>\n");
    }
    for (size_t i = 0; i < json_array_size(notes); i++) {
        hbk_text_add(t, "<p class=\"about\">");
        report_escape_json(t, json_array_get(notes, i));
        hbk_text_add(t, "</p>\n");
    }
    hbk_text_add(t, "</header>\n");
}

static void report_key_figure(hbk_text *t, const char *name, const char *figure, const char *more)
{
    hbk_text_printf(t, "<div><dt>%s</dt><dd>%s <small>%s</small></dd></div>\n", name, figure, more);
}

static void report_key_figures(hbk_text *t, const json_t *report)
{
    const json_t *c = json_object_get(report, "candidates");
    const json_t *curations = json_object_get(report, "curations");
    const json_t *stages = json_object_get(report, "stages");
    double seconds = 0;
    char name[64], more[128];
    hbk_text_add(t, "<dl class=\"figures\">\n");
    if (c) {
        hbk_int rows = report_int(c, "rows"), ok = report_int(c, "ok");
        snprintf(more, sizeof more, "of %s written", report_count(rows).s);
        report_key_figure(t, "Usable instructions", report_percent((double)ok, (double)rows).s, more);
    }
    for (size_t i = 0; i < json_array_size(curations); i++) {
        const json_t *round = json_array_get(curations, i);
        hbk_int rows = report_int(round, "rows"), rated = report_int(round, "rated");
        snprintf(name, sizeof name, "Ratings of M%zu that could be read", i);
        snprintf(more, sizeof more, "of %s", report_count(rows).s);
        if (!report_unrated(round))
            report_key_figure(t, name, report_percent((double)rated, (double)rows).s, more);
        if (!json_object_get(round, "kept")) continue;
        snprintf(name, sizeof name, "Kept by curation %zu", i + 1);
        report_key_figure(t, name, report_count(report_int(round, "kept")).s,
                          report_percent((double)report_int(round, "kept"), (double)rows).s);
    }
    bool all = true; /* stages timed; else the trainings are */
    for (size_t i = 0; i < json_array_size(stages); i++) {
        const json_t *s = json_object_get(json_array_get(stages, i), "seconds");
        all = all && json_is_number(s);
        seconds += json_number_value(s);
    }
    if (seconds > 0) {
        json_t *total = report_real(seconds);
        if (!total) t->failed = true; /* no "-" for want of memory */
        report_key_figure(t, all ? "Time" : "Time in training", report_duration(total).s, "");
        json_decref(total);
    }
    hbk_text_add(t, "</dl>\n");
}

static void report_loop_section(hbk_text *t, const json_t *report)
{
    report_section(t, "loop", "The loop",
                   "Square boxes are data, round ones models, each trained from the same base. What a run "
                   "has not reached is dashed.");
    hbk_text_add(t, "<div class=\"pair\">\n");
    report_diagram(t, report);
    report_key_figures(t, report);
    hbk_text_add(t, "</div>\n</section>\n");
}

/* A cell whose string is a figure with something around it: "0.62 +- 0.03", "-3 %". */
static bool report_is_figure(const json_t *cell)
{
    const char *s = json_string_value(cell);
    if (!s) return json_is_number(cell);
    if (*s == '-' || *s == '+') s++;
    return *s >= '0' && *s <= '9';
}

/* A column of a table of extra.json: set to the right if it holds figures only, numbers with the decimals
   that they need, at most three digits behind the first. */
typedef struct report_column {
    bool figures;
    int decimals;
    double most;
} report_column;

static report_column report_column_of(const json_t *rows, size_t column)
{
    report_column c = {false, 0, 0};
    size_t n_figures = 0, n_words = 0;
    double power = 1;
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *cell = json_array_get(json_array_get(rows, i), column);
        if (report_is_figure(cell)) n_figures++;
        else if (json_string_length(cell) > 1) n_words++; /* "" and "-" stand for no figure */
        if (json_is_number(cell)) c.most = fmax(c.most, fabs(json_number_value(cell)));
    }
    c.figures = n_figures > 0 && n_words == 0;
    int limit = c.most >= 100 ? 1 : c.most >= 10 ? 2 : 3;
    if (c.most > 0 && c.most < 0.01) limit = -1;
    for (size_t i = 0; i < json_array_size(rows) && c.decimals < limit; i++) {
        double x = json_number_value(json_array_get(json_array_get(rows, i), column));
        while (c.decimals < limit && fabs(x * power - floor(x * power + 0.5)) > 1e-6) {
            c.decimals++;
            power *= 10;
        }
    }
    if (limit < 0) c.decimals = -1;
    return c;
}

static void report_extra_cell(hbk_text *t, const report_column *c, const json_t *cell)
{
    hbk_text_printf(t, "<td class=\"%s\">", c->figures ? "n" : "w");
    if (json_is_number(cell)) hbk_text_add(t, report_fixed(cell, c->decimals).s);
    else if (json_is_boolean(cell)) hbk_text_add(t, json_is_true(cell) ? "yes" : "no");
    else if (json_is_string(cell)) report_escape_json(t, cell);
    else hbk_text_add(t, "-");
    hbk_text_add(t, "</td>");
}

/* A table of extra.json; its "bar", a column's index, is drawn as bars behind that column's figures. */
static void report_extra_table(hbk_text *t, const json_t *table)
{
    const json_t *columns = json_object_get(table, "columns"), *rows = json_object_get(table, "rows");
    const json_t *bar = json_object_get(table, "bar");
    size_t n = json_array_size(columns), barred = n;
    if (json_is_integer(bar) && json_integer_value(bar) >= 0 && (size_t)json_integer_value(bar) < n)
        barred = (size_t)json_integer_value(bar);
    hbk_text_add(t, "<section>\n<h2>");
    report_escape_json(t, json_object_get(table, "title"));
    hbk_text_add(t, "</h2>\n<div class=\"scroll\"><table>\n<thead><tr>");
    for (size_t k = 0; k < n; k++) {
        report_column c = report_column_of(rows, k);
        hbk_text_printf(t, "<th class=\"%s\">", c.figures ? "n" : "w");
        report_escape_json(t, json_array_get(columns, k));
        hbk_text_add(t, k == barred ? "</th><th class=\"bar\"></th>" : "</th>");
    }
    hbk_text_add(t, "</tr></thead>\n<tbody>\n");
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        hbk_text_add(t, "<tr>");
        for (size_t k = 0; k < n; k++) {
            report_column c = report_column_of(rows, k);
            report_extra_cell(t, &c, json_array_get(row, k));
            if (k == barred) report_bar(t, json_number_value(json_array_get(row, k)) / c.most, true);
        }
        hbk_text_add(t, "</tr>\n");
    }
    hbk_text_add(t, "</tbody>\n</table></div>\n");
    if (json_string_length(json_object_get(table, "note")) > 0) {
        hbk_text_add(t, "<p class=\"about\">");
        report_escape_json(t, json_object_get(table, "note"));
        hbk_text_add(t, "</p>\n");
    }
    hbk_text_add(t, "</section>\n");
}

static void report_extra_section(hbk_text *t, const json_t *report)
{
    const json_t *tables = json_object_get(json_object_get(report, "extra"), "tables");
    for (size_t i = 0; i < json_array_size(tables); i++) report_extra_table(t, json_array_get(tables, i));
}

static void report_loss_section(hbk_text *t, const json_t *report)
{
    const json_t *models = json_object_get(report, "models");
    static const char *const lines[2] = {"curve", "val_curve"};
    report_frame f = {0, 1, 1};
    bool validated = false;
    for (size_t i = 0; i < 2 * json_array_size(models); i++) {
        const json_t *curve = json_object_get(json_array_get(models, i / 2), lines[i % 2]);
        for (size_t k = 0; k < json_array_size(curve); k++) f.top = fmax(f.top, report_point(curve, k, 1));
        validated = validated || (i % 2 == 1 && curve);
    }
    if (json_array_size(models) == 0) return;
    f.top = f.top > 0 ? f.top : 1;
    f.tick = report_tick(f.top, 4);
    f.top = f.tick * ceil(f.top / f.tick - 1e-9);
    report_section(t, "loss", "Losses in training",
                   "Mean negative log-likelihood of a target token, by step. The strong line is a running "
                   "mean, its figure the mean of the last tenth; all models have one scale.");
    if (validated)
        hbk_text_add(t, "<p class=\"about\">Where examples were held out for validation, the "
                        "<span class=\"val-word\">line of this colour</span> is their loss, ringed where it "
                        "is lowest: those weights are kept.</p>\n");
    hbk_text_add(t, "<div class=\"grid\">\n");
    for (size_t i = 0; i < json_array_size(models); i++) report_curve(t, json_array_get(models, i), &f);
    hbk_text_add(t, "</div>\n</section>\n");
}

/* "the seed, twice over, and curated 1": what the model was finetuned on. */
static void report_model_sources(hbk_text *t, const json_t *report, const char *model)
{
    hbk_int copies = report_int(json_object_get(report, "options"), "seed_repeat");
    if (strcmp(model, "myx") == 0) hbk_text_add(t, "seed, reversed");
    else if (strcmp(model, "m0") == 0) hbk_text_add(t, "seed");
    else if (copies > 1) hbk_text_printf(t, "%s x seed + curated %s", report_count(copies).s, model + 1);
    else hbk_text_printf(t, "seed + curated %s", model + 1);
}

/* Each model's base and data. A model that another one was finetuned from would show here by its hash. */
static void report_models_section(hbk_text *t, const json_t *report)
{
    const json_t *models = json_object_get(report, "models"), *options = json_object_get(report, "options");
    const char *base = report_string(options, "model_hash");
    if (json_array_size(models) == 0 || !*base) return;
    report_section(t, "models", "Models",
                   "What each was finetuned from and on, and how many examples did not fit its context.");
    hbk_text_add(t, "<div class=\"scroll\"><table>\n<thead><tr><th class=\"w\">Model</th>"
                    "<th class=\"w\">From</th><th class=\"w\">On</th><th class=\"n\">Examples</th>"
                    "<th class=\"n\">Held out</th><th class=\"n\">Too long</th><th class=\"n\">Steps</th>"
                    "</tr></thead>\n<tbody>\n");
    for (size_t i = 0; i < json_array_size(models); i++) {
        const json_t *m = json_array_get(models, i);
        const char *from = report_string(m, "base"), *name = report_string(m, "model");
        hbk_text_printf(t, "<tr><td class=\"w\">%s</td><td class=\"w\">", report_model_name(name).s);
        if (!*from) hbk_text_add(t, "-");
        else if (strcmp(from, base) == 0) hbk_text_add(t, "the base");
        else report_escape(t, from);
        hbk_text_add(t, "</td><td class=\"w soft\">");
        report_model_sources(t, report, name);
        hbk_text_add(t, "</td>");
        report_cell(t, "n", report_fixed(json_object_get(m, "examples"), 0).s);
        report_cell(t, "n", report_fixed(json_object_get(m, "validation"), 0).s);
        report_cell(t, "n", report_fixed(json_object_get(m, "too_long"), 0).s);
        report_cell(t, "n", report_count(report_int(m, "steps")).s);
        hbk_text_add(t, "</tr>\n");
    }
    hbk_text_add(t, "</tbody>\n</table></div>\n<p class=\"about\">The base: ");
    report_escape(t, report_string(options, "model"));
    hbk_text_printf(t, " (hash %s).</p>\n</section>\n", base);
}

/* What the threshold is one of: HBK_SIGNAL_... in the options, none before there were others. */
static const char *report_signal(const json_t *report)
{
    hbk_int signals = report_int(json_object_get(report, "options"), "signals");
    return signals == HBK_SIGNAL_IFD ? "IFD" : signals == HBK_SIGNAL_ROUND_TRIP ? "round trip" : "score";
}

static void report_scores_section(hbk_text *t, const json_t *report)
{
    const json_t *curations = json_object_get(report, "curations");
    if (json_array_size(curations) == 0) return;
    report_section(t, "scores", "Scores",
                   "Pairs by their score, rounded; what was kept is in colour. A pair whose rating could not "
                   "be read has no score and is dropped.");
    hbk_text_add(t, "<div class=\"grid\">\n");
    for (size_t i = 0; i < json_array_size(curations); i++) {
        const json_t *c = json_array_get(curations, i), *kept = json_object_get(c, "kept");
        double rows = (double)report_int(c, "rows");
        hbk_text_printf(t, "<figure>\n<figcaption><b>Curation %zu</b> %s by %s", i + 1,
                        report_unrated(c) ? "measured" : "rated",
                        report_model_name(report_string(c, "rater")).s);
        if (json_is_true(json_object_get(c, "collapsed"))) hbk_text_add(t, " <em>collapsed</em>");
        hbk_text_add(t, "</figcaption>\n");
        if (report_unrated(c)) {
            hbk_text_add(t, "<p class=\"under\">Selected by --signal without a rating: there are no scores.");
        } else {
            report_histogram(t, c);
            hbk_text_printf(t, "<p class=\"under\">%s of the ratings read, mean score %s",
                            report_percent((double)report_int(c, "rated"), rows).s,
                            report_fixed(json_object_get(c, "mean_score"), 2).s);
        }
        if (kept) {
            hbk_text_printf(t, "<br/><b>%s</b> of %s kept, %s", report_count(report_int(c, "kept")).s,
                            report_count(report_int(c, "rows")).s,
                            report_percent((double)report_int(c, "kept"), rows).s);
            if (json_is_number(json_object_get(c, "threshold")))
                hbk_text_printf(t, ": %s %s and above", report_signal(report),
                                report_plain(json_object_get(c, "threshold")).s);
        }
        hbk_text_add(t, "</p>\n</figure>\n");
    }
    hbk_text_add(t, "</div>\n</section>\n");
}

/* Table 2 of the paper (version 1), in characters. */
typedef struct report_paper_row {
    const char *set;
    int examples, mean[2], deviation[2]; /* instruction, output */
} report_paper_row;
static const report_paper_row report_paper[] = {{"seed", 3200, {148, 1072}, {322, 818}},
                                                {"curated-2", 41821, {115, 1663}, {175, 616}},
                                                {"all candidates", 502133, {352, 1722}, {134, 653}}};

static void report_mean_cells(hbk_text *t, const char *kind, const char *mean, const char *deviation)
{
    hbk_text_printf(t, "<td class=\"n %s\">%s</td><td class=\"n %s sd\">%s%s</td>", kind, mean, kind,
                    *deviation == '-' ? "" : "&#177;&#8201;", deviation);
}

static void report_length_row(hbk_text *t, const json_t *row)
{
    static const char *const sides[2] = {"instruction", "output"};
    const char *set = report_string(row, "set");
    const report_paper_row *paper = NULL;
    for (size_t i = 0; i < sizeof report_paper / sizeof report_paper[0]; i++)
        if (strcmp(set, report_paper[i].set) == 0) paper = &report_paper[i];
    hbk_text_printf(t, "<tr><td class=\"w\">%s</td>", set);
    report_cell(t, "n", report_count(report_int(row, "examples")).s);
    for (int k = 0; k < 2; k++) {
        const json_t *m = json_object_get(row, sides[k]);
        report_mean_cells(t, "", report_fixed(json_object_get(m, "mean"), 0).s,
                          report_fixed(json_object_get(m, "deviation"), 0).s);
    }
    if (paper) {
        report_cell(t, "n paper gap", report_count(paper->examples).s);
        for (int k = 0; k < 2; k++)
            report_mean_cells(t, "paper", report_count(paper->mean[k]).s,
                              report_count(paper->deviation[k]).s);
    } else hbk_text_add(t, "<td class=\"gap\"></td><td></td><td></td><td></td><td></td>");
    hbk_text_add(t, "</tr>\n");
}

static void report_lengths_section(hbk_text *t, const json_t *report)
{
    const json_t *sets = json_object_get(report, "sets");
    if (json_array_size(sets) == 0) return;
    report_section(t, "lengths", "Lengths",
                   "Characters, mean &#177; standard deviation, as in Table 2 of the paper; its own figures, "
                   "for pages of the English web, stand beside in grey.");
    hbk_text_add(t, "<div class=\"scroll\"><table>\n<thead>\n<tr><th></th><th colspan=\"5\"></th>"
                    "<th class=\"paper gap\" colspan=\"5\">in the paper</th></tr>\n"
                    "<tr><th class=\"w\">Set</th><th class=\"n\">Examples</th>"
                    "<th class=\"n\" colspan=\"2\">Instruction</th><th class=\"n\" colspan=\"2\">Output</th>"
                    "<th class=\"n paper gap\">Examples</th>"
                    "<th class=\"n paper\" colspan=\"2\">Instruction</th>"
                    "<th class=\"n paper\" colspan=\"2\">Output</th></tr>\n</thead>\n<tbody>\n");
    for (size_t i = 0; i < json_array_size(sets); i++) report_length_row(t, json_array_get(sets, i));
    hbk_text_add(t, "</tbody>\n</table></div>\n</section>\n");
}

/* Rows by status, most of them first met at the top; a status that never came is left out. */
static void report_status_table(hbk_text *t, const char *title, const json_t *object)
{
    json_t *counts = json_object_get(object, "status"), *value;
    const char *name;
    double rows = (double)report_int(object, "rows");
    hbk_text_printf(t, "<div><h3>%s</h3>\n<table class=\"status\"><tbody>\n", title);
    json_object_foreach(counts, name, value) {
        hbk_int n = (hbk_int)json_integer_value(value);
        if (n == 0 && strcmp(name, "ok") != 0) continue;
        hbk_text_add(t, "<tr><td class=\"w\">");
        report_escape(t, name);
        hbk_text_add(t, "</td>");
        report_cell(t, "n", report_count(n).s);
        report_cell(t, "n soft", report_percent((double)n, rows).s);
        report_bar(t, (double)n / rows, strcmp(name, "ok") == 0);
        hbk_text_add(t, "</tr>\n");
    }
    hbk_text_add(t, "</tbody></table></div>\n");
}

static void report_status_section(hbk_text *t, const json_t *report)
{
    const json_t *candidates = json_object_get(report, "candidates");
    const json_t *curations = json_object_get(report, "curations");
    if (!candidates && json_array_size(curations) == 0) return;
    report_section(t, "status", "What became of every row",
                   "Only <i>ok</i> goes on. Too long: the pair does not fit into the model's context; "
                   "truncated: the model had not ended when its budget of tokens did.");
    hbk_text_add(t, "<div class=\"grid\">\n");
    if (candidates) report_status_table(t, "Candidates", candidates);
    for (size_t i = 0; i < json_array_size(curations); i++) {
        char title[64];
        snprintf(title, sizeof title, "Ratings %zu", i + 1);
        report_status_table(t, title, json_array_get(curations, i));
    }
    hbk_text_add(t, "</div>\n</section>\n");
}

/* An example's score, if it has one, its id and three parts. */
static void report_example(hbk_text *t, const json_t *e, const char *const parts[3])
{
    hbk_text_add(t, "<article>\n<p class=\"score\">");
    if (json_object_get(e, "score"))
        hbk_text_printf(t, "<b>%s</b> ", report_plain(json_object_get(e, "score")).s);
    report_escape_json(t, json_object_get(e, "id"));
    hbk_text_add(t, "</p>\n<dl>\n");
    for (int i = 0; i < 3; i++) {
        hbk_text_printf(t, "<dt>%s</dt><dd class=\"%s\" dir=\"auto\">", parts[i], parts[i]);
        report_escape_json(t, json_object_get(e, parts[i]));
        hbk_text_add(t, "</dd>\n");
    }
    hbk_text_add(t, "</dl>\n</article>\n");
}

static void report_examples_section(hbk_text *t, const json_t *report)
{
    static const char *const ends[2] = {"high", "low"};
    static const char *const titles[2] = {"Highest scores", "Lowest scores"};
    static const char *const parts[3] = {"instruction", "output", "rating"};
    const json_t *examples = json_object_get(report, "examples");
    if (json_array_size(examples) == 0) return;
    report_section(t, "examples", "Examples",
                   "From the last curation; of equal scores the first in the file, and long texts are cut. "
                   "The output is the segment as it was found; the instruction and the rating are models'.");
    for (int end = 0; end < 2; end++) {
        if (!report_find(examples, "end", ends[end])) continue;
        hbk_text_printf(t, "<h3>%s</h3>\n", titles[end]);
        for (size_t i = 0; i < json_array_size(examples); i++) {
            const json_t *e = json_array_get(examples, i);
            if (strcmp(report_string(e, "end"), ends[end]) == 0) report_example(t, e, parts);
        }
    }
    hbk_text_add(t, "</section>\n");
}

/* What a curation kept and its rater wrote anew: how many, why not all, the first of those that changed. */
static void report_rewriting_round(hbk_text *t, const json_t *w, size_t iteration)
{
    static const char *const parts[3] = {"instruction", "before", "after"};
    const json_t *examples = json_object_get(w, "examples");
    char title[64];
    snprintf(title, sizeof title, "Rewriting %zu", iteration);
    hbk_text_add(t, "<div class=\"grid\">\n");
    report_status_table(t, title, w);
    hbk_text_printf(t, "</div>\n<p>Of %s outputs that were kept %s changed, ",
                    report_count(report_int(w, "rows")).s, report_count(report_int(w, "changed")).s);
    hbk_text_printf(t, "%s came out the same, and %s stayed as they were.</p>\n",
                    report_count(report_int(w, "the_same")).s, report_count(report_int(w, "fell_back")).s);
    for (size_t i = 0; i < json_array_size(examples); i++)
        report_example(t, json_array_get(examples, i), parts);
}

static void report_rewriting_section(hbk_text *t, const json_t *report)
{
    const json_t *curations = json_object_get(report, "curations");
    bool begun = false;
    for (size_t i = 0; i < json_array_size(curations); i++) {
        const json_t *w = json_object_get(json_array_get(curations, i), "rewriting");
        if (!w) continue;
        if (!begun)
            report_section(t, "rewriting", "Rewritten outputs",
                           "The model that has curated wrote the outputs it kept anew, and the next one "
                           "learns from those. <i>ok</i>: the new one stands; else the segment stays as it "
                           "was found.");
        report_rewriting_round(t, w, i + 1);
        begun = true;
    }
    if (begun) hbk_text_add(t, "</section>\n");
}

static void report_times_section(hbk_text *t, const json_t *report)
{
    const json_t *stages = json_object_get(report, "stages");
    double most = 0;
    for (size_t i = 0; i < json_array_size(stages); i++)
        most = fmax(most, json_number_value(json_object_get(json_array_get(stages, i), "seconds")));
    if (json_array_size(stages) == 0) return;
    report_section(t, "times", "Stages and times",
                   "In the order in which they ran. A training that was continued shows its last part.");
    hbk_text_add(t, "<div class=\"scroll\"><table>\n<thead><tr><th class=\"w\">Stage</th>"
                    "<th class=\"n\">Work</th><th class=\"w\"></th><th class=\"n\">Time</th>"
                    "<th class=\"bar\"></th><th class=\"n\">Tokens/s</th></tr></thead>\n<tbody>\n");
    for (size_t i = 0; i < json_array_size(stages); i++) {
        const json_t *s = json_array_get(stages, i), *seconds = json_object_get(s, "seconds");
        hbk_int timed = report_int(s, "timed"), n = report_int(s, "n");
        hbk_text_printf(t, "<tr><td class=\"w\">%s</td><td class=\"n\">%s</td><td class=\"w soft\">%s",
                        report_string(s, "stage"), report_count(n).s, report_string(s, "unit"));
        if (timed > 0 && timed < n) hbk_text_printf(t, ", %s timed", report_count(timed).s);
        hbk_text_add(t, "</td>");
        report_cell(t, "n", report_duration(seconds).s);
        report_bar(t, json_number_value(seconds) / most, false);
        report_cell(t, "n", report_fixed(json_object_get(s, "tokens_per_s"), 0).s);
        hbk_text_add(t, "</tr>\n");
    }
    hbk_text_add(t, "</tbody>\n</table></div>\n</section>\n");
}

/* A list of numbers, "4.5, 4"; of zeros alone, "none". */
static void report_option_list(hbk_text *t, const json_t *list)
{
    size_t n = json_array_size(list), zeros = 0;
    for (size_t i = 0; i < n; i++) zeros += !(fabs(json_number_value(json_array_get(list, i))) > 0);
    if (zeros == n) hbk_text_add(t, "none");
    for (size_t i = 0; i < n && zeros < n; i++)
        hbk_text_printf(t, "%s%s", i ? ", " : "", report_fixed(json_array_get(list, i), -1).s);
}

static void report_option(hbk_text *t, const char *name, const json_t *value)
{
    hbk_text_add(t, "<div><dt>");
    report_escape(t, name);
    hbk_text_add(t, "</dt><dd>");
    if (json_is_integer(value)) hbk_text_printf(t, "%lld", (long long)json_integer_value(value));
    else if (json_is_number(value)) hbk_text_add(t, report_fixed(value, -1).s);
    else if (json_is_boolean(value)) hbk_text_add(t, json_is_true(value) ? "yes" : "no");
    else if (json_is_array(value)) report_option_list(t, value);
    else if (json_string_length(value) > 0) report_escape_json(t, value);
    else hbk_text_add(t, "none");
    hbk_text_add(t, "</dd></div>\n");
}

static void report_options_section(hbk_text *t, const json_t *report)
{
    json_t *options = json_object_get(report, "options"), *inputs = json_object_get(report, "inputs"), *value;
    const char *name;
    if (json_object_size(options) + json_object_size(inputs) == 0) return;
    report_section(t, "options", "Options and inputs", "As run.json records them.");
    hbk_text_add(t, "<dl class=\"options\">\n");
    json_object_foreach(options, name, value) report_option(t, name, value);
    json_object_foreach(inputs, name, value) {
        hbk_text words = {t->alloc, NULL, 0, 0, false};
        const json_t *hash = json_object_get(value, "hash");
        hbk_text_add(&words, report_string(value, "path"));
        if (report_int(value, "rows") > 0)
            hbk_text_printf(&words, ", %s rows", report_count(report_int(value, "rows")).s);
        if (json_is_string(hash)) hbk_text_printf(&words, ", hash %s", json_string_value(hash));
        json_t *line = json_string(hbk_text_string(&words));
        report_option(t, name, line);
        t->failed = t->failed || words.failed || !line;
        json_decref(line);
        hbk_text_free(&words);
    }
    hbk_text_add(t, "</dl>\n</section>\n");
}

/* ==== 6  THE PAGE ============================================================

   One accent colour, greys for the rest; both sets of colours are chosen so that text keeps a contrast of at
   least 4.5 to its ground. Figures are tabular everywhere. */

static const char *const report_style[] = {
    ":root{color-scheme:light dark;--ground:#fcfcfa;--ink:#1c2225;--soft:#5a656a;--line:#d8dddf;",
    "--fill:#bcc6ca;--tint:#f1f4f4;--accent:#0b6785;--warn:#934700}\n",
    "@media(prefers-color-scheme:dark){:root{--ground:#13181b;--ink:#e3e7e8;--soft:#98a5ab;--line:#303a3f;",
    "--fill:#4b585e;--tint:#1b2226;--accent:#5dbad8;--warn:#e9a75c}}\n",
    "*{box-sizing:border-box}\n",
    "html{background:var(--ground);-webkit-text-size-adjust:100%;text-size-adjust:100%}\n",
    "body{margin:0 auto;max-width:52rem;padding:3.5rem 1.25rem 5rem;color:var(--ink);",
    "font:1rem/1.55 system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;",
    "font-variant-numeric:tabular-nums lining-nums;overflow-wrap:anywhere}\n",
    "h1{font-size:1.9rem;line-height:1.2;font-weight:650;letter-spacing:-.015em;margin:0 0 .8rem}\n",
    "h2{font-size:1.2rem;line-height:1.3;font-weight:650;margin:0 0 .35rem}\n",
    "h3{font-size:.95rem;font-weight:650;margin:1.6rem 0 .5rem}\n",
    "section{border-top:1px solid var(--line);margin-top:3rem;padding-top:1.4rem}\n",
    "p{margin:0 0 .8rem}\n",
    ".verdict{font-size:1.2rem;line-height:1.5;max-width:42rem}\n",
    ".warning{border-left:3px solid var(--warn);padding-left:.8rem;color:var(--warn);max-width:42rem}\n",
    ".about{color:var(--soft);max-width:42rem;font-size:.95rem}\n",
    "header .about{margin-top:.8rem}\n",
    ".pair{display:flex;flex-wrap:wrap;gap:2rem 3.5rem;align-items:flex-start;margin-top:1.4rem}\n",
    ".diagram{flex:1 1 20rem;max-width:28rem;min-width:0;height:auto}\n",
    ".figures{flex:1 1 14rem;margin:0}\n",
    ".figures div{padding:.55rem 0;border-bottom:1px solid var(--line)}\n",
    ".figures dt{color:var(--soft);font-size:.9rem}\n",
    ".figures dd{margin:0;font-size:1.5rem;line-height:1.3;font-weight:600}\n",
    ".figures small{font-size:.9rem;font-weight:400;color:var(--soft)}\n",
    ".grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(19rem,100%),1fr));",
    "gap:1.8rem 3rem;margin-top:1.4rem}\n",
    "figure{margin:0}\n",
    "figcaption{color:var(--soft);font-size:.95rem;margin-bottom:.3rem}\n",
    "figcaption b,.under b{color:var(--ink);font-weight:650}\n",
    "figcaption em{color:var(--warn);font-style:normal}\n",
    "figure svg{display:block;width:100%;height:auto}\n",
    ".under{color:var(--soft);font-size:.9rem;margin:.4rem 0 0}\n",
    "sub{line-height:0}\n",
    ".scroll{overflow-x:auto;margin:1rem 0}\n",
    "table{border-collapse:collapse;font-size:.95rem;min-width:60%;overflow-wrap:normal}\n",
    "th{font-weight:500;color:var(--soft);font-size:.88rem;vertical-align:bottom}\n",
    "th,td{padding:.35rem .7rem;text-align:left;white-space:nowrap}\n",
    "td.w{white-space:normal;min-width:5rem}\n",
    "th:first-child,td:first-child{padding-left:0}\n",
    "thead tr:last-child th{border-bottom:1px solid var(--ink)}\n",
    "tbody tr+tr td{border-top:1px solid var(--line)}\n",
    "td.n,th.n{text-align:right}\n",
    "td.sd{padding-left:0;color:var(--soft)}\n",
    ".paper,.soft,td.paper{color:var(--soft)}\n",
    "th.gap,td.gap{padding-left:2rem}\n",
    "td.bar,th.bar{width:8rem;min-width:5rem}\n",
    "td.bar span{display:block;height:.6rem;background:var(--fill)}\n",
    "td.bar span.main{background:var(--accent)}\n",
    "table.status{width:100%}\n",
    ".grid h3{margin-top:0}\n",
    "article{border-left:3px solid var(--line);padding:.1rem 0 .1rem 1rem;margin:0 0 1.6rem;",
    "max-width:44rem}\n",
    ".score{color:var(--soft);font-size:.9rem;margin:0 0 .3rem}\n",
    ".score b{color:var(--accent);font-size:1.2rem;margin-right:.4rem}\n",
    "article dl{margin:0}\n",
    "article dt{color:var(--soft);font-size:.8rem;margin-top:.5rem}\n",
    "article dd{margin:0;white-space:pre-wrap}\n",
    "dd.instruction{font-weight:600}\n",
    "dd.rating,dd.before{color:var(--soft)}\n",
    ".options{columns:2 20rem;column-gap:3rem;font-size:.9rem;margin:1rem 0 0}\n",
    ".options div{display:flex;gap:1rem;justify-content:space-between;break-inside:avoid;",
    "padding:.22rem 0;border-bottom:1px solid var(--line)}\n",
    ".options dt{color:var(--soft);flex:none;max-width:50%}\n",
    ".options dd{margin:0;text-align:right}\n",
    "footer{margin-top:3rem;color:var(--soft);font-size:.85rem}\n",
    "svg text{font-size:12px;fill:var(--soft)}\n",
    "svg .name,svg .note{text-anchor:middle}\n",
    "svg .name{font-size:14px;font-weight:600;fill:var(--ink)}\n",
    "svg .sub{font-size:10px}\n",
    "svg .note{font-size:11px}\n",
    "svg .flow,svg .value,svg .strong{fill:var(--ink)}\n",
    "svg .value{font-weight:600;fill:var(--accent)}\n",
    "svg .strong{font-weight:600}\n",
    "svg .act,svg .count,svg .x{text-anchor:middle}\n",
    "svg .y{text-anchor:end}\n",
    "svg .scale{font-size:11px}\n",
    ".box{fill:var(--tint);stroke:var(--line)}\n",
    ".box.result{fill:var(--accent);stroke:none}\n",
    "svg .name.result,svg .note.result{fill:var(--ground)}\n",
    ".box.off{fill:none;stroke-dasharray:4 3}\n",
    "svg .name.off,svg .note.off{fill:var(--soft);font-weight:400}\n",
    ".edge{fill:none;stroke:var(--soft);stroke-width:1.25}\n",
    ".edge.off{stroke:var(--fill);stroke-dasharray:4 3;marker-end:none}\n",
    ".tip{fill:var(--soft)}\n",
    ".axis,.grid,.raw,.line{fill:none;stroke-width:1}\n",
    ".axis{stroke:var(--soft)}\n",
    "path.grid{stroke:var(--line)}\n",
    ".raw{stroke:var(--fill)}\n",
    ".line{stroke:var(--accent);stroke-width:2;stroke-linejoin:round}\n",
    "path.val,.ring{fill:none;stroke:var(--warn);stroke-width:1.5;stroke-linejoin:round}\n",
    ".dot,svg .of-val{fill:var(--warn)}\n",
    ".val-word{color:var(--warn)}\n",
    ".end,.kept{fill:var(--accent)}\n",
    ".rest{fill:var(--fill)}\n",
    ".none{fill:none;stroke:var(--fill);stroke-dasharray:3 2}\n",
    "@media(max-width:34rem){body{padding-top:2rem}h1{font-size:1.6rem}.verdict{font-size:1.1rem}",
    "th,td{padding-left:.45rem;padding-right:.45rem}th.gap,td.gap{padding-left:1.2rem}}\n",
    "@media print{body{max-width:none;padding:0}section,figure,article{break-inside:avoid}}\n"};

/* A page up to its body; `more` is added to the style. */
static void report_begin(hbk_text *t, const char *title, const char *more)
{
    hbk_text_add(t, "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
                    "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
                    "<meta name=\"color-scheme\" content=\"light dark\"/>\n<title>");
    report_escape(t, title);
    hbk_text_add(t, "</title>\n<style>\n");
    for (size_t i = 0; i < sizeof report_style / sizeof report_style[0]; i++)
        hbk_text_add(t, report_style[i]);
    hbk_text_printf(t, "%s</style>\n</head>\n<body>\n", more);
}

static void report_page(hbk_text *t, const json_t *report, const char *dir)
{
    const json_t *extra = json_object_get(report, "extra");
    const char *title = report_string(extra, "title");
    if (!*title) title = "A run of instruction backtranslation";
    report_begin(t, title, "");
    report_head(t, title, json_object_get(report, "verdict"), json_object_get(report, "warnings"),
                json_object_get(extra, "notes"));
    report_loop_section(t, report);
    report_extra_section(t, report);
    report_models_section(t, report);
    report_loss_section(t, report);
    report_scores_section(t, report);
    report_lengths_section(t, report);
    report_status_section(t, report);
    report_rewriting_section(t, report);
    report_examples_section(t, report);
    report_times_section(t, report);
    report_options_section(t, report);
    hbk_text_add(t, "<footer>Made from the run folder ");
    report_escape(t, dir);
    hbk_text_add(t, ", which humpback ");
    report_escape(t, report_string(report, "humpback"));
    hbk_text_add(t, " wrote. The numbers of this page are in its report.json.</footer>\n</body>\n</html>\n");
}

/* Writes RUN/report.json and the page: out_html, or RUN/report.html if that is NULL. */
static bool tool_report(const char *run_dir, const char *out_html, hbk_error *err)
{
    char state[512], numbers[512], page[512];
    if (!hbk_path(state, run_dir, "run.json", err) || !hbk_path(numbers, run_dir, "report.json", err) ||
        !hbk_path(page, run_dir, "report.html", err))
        return false;
    if (!hbk_file_exists(state))
        return hbk_fail_at(err, HBK_ERROR_FILE, state, 0,
                           "is not there: give a folder that run, demo or finetune made with --out");
    report_run r = {run_dir, hbk_json_read(state, err), json_object(), false};
    hbk_text html = {NULL, NULL, 0, 0, false}, json = html;
    bool ok = r.state != NULL && report_gather(&r, err);
    if (ok) {
        report_page(&html, r.report, run_dir);
        ok = hbk_text_ok(&html, err) && /* for reading, not for resuming: nine digits are plenty */
             hbk_json_text(&json, r.report, JSON_INDENT(2) | JSON_REAL_PRECISION(9), err) &&
             hbk_file_write(numbers, json.data, json.len, err) &&
             hbk_file_write(out_html ? out_html : page, hbk_text_string(&html), html.len, err);
    }
    hbk_text_free(&html);
    hbk_text_free(&json);
    json_decref(r.report);
    json_decref(r.state);
    return ok;
}

#endif /* TOOL_REPORT_H */
