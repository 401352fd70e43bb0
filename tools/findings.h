/* findings.h - what `humpback reproduce` measured (reproduce.h): verdicts, tables, figures, a page - public
   domain

     1  statistics  values over worlds, slopes, findings and their verdicts
     2  tables      Markdown, JSON, screen
     3  figures     data files and gnuplot scripts
     4  the page    report.html

   The rule, fixed before any run: a finding is reproduced if the 95 % interval of its paired differences
   (Student's t, hbk_summarize) is clear of zero in the paper's direction; not reproduced if it is clear of it
   on the other side; else undecided. */

#ifndef FINDINGS_H_INCLUDED
#define FINDINGS_H_INCLUDED

#include "report.h"
#include "reproduce.h"

/* ==== 1  STATISTICS ========================================================== */

typedef struct repro_data {
    const repro_options *o;
    json_t *rows[REPRO_WORLDS][REPRO_MODES][REPRO_ROWS]; /* NULL: not there */
} repro_data;

static bool repro_read(repro_data *d, const repro_options *o, hbk_error *err)
{
    char path[512];
    memset(d, 0, sizeof *d);
    d->o = o;
    for (int w = 0; w < o->n_worlds; w++)
        for (int m = 0; m < REPRO_MODES; m++)
            for (int r = 0; r < REPRO_ROWS; r++) {
                repro_task t = {w, (repro_mode)m, r};
                if (!repro_wanted(o, t.mode, r)) continue;
                if (!repro_row_path(o, &t, path, err)) return false;
                if (!hbk_file_exists(path)) continue;
                if (!(d->rows[w][m][r] = hbk_json_read(path, err))) return false;
            }
    return true;
}

static void repro_data_free(repro_data *d)
{
    for (int w = 0; w < REPRO_WORLDS; w++)
        for (int m = 0; m < REPRO_MODES; m++)
            for (int r = 0; r < REPRO_ROWS; r++) json_decref(d->rows[w][m][r]);
}

/* A number of a row; NAN where row or number are missing. */
static double repro_metric(const repro_data *d, int world, repro_mode mode, const char *key,
                           const char *metric)
{
    int row = repro_find(key);
    const json_t *all = row < 0 ? NULL : d->rows[world][mode][row], *x = json_object_get(all, metric);
    if (!x) x = json_object_get(json_object_get(all, "kept_of_kind"), metric);
    return json_is_number(x) ? json_number_value(x) : (double)NAN;
}

/* Least-squares slope of y over ln n, of the series KEY-100, KEY-400, KEY: the paper's alpha. */
static double repro_slope(const repro_data *d, int world, repro_mode mode, const char *series,
                          const char *metric)
{
    static const char *const ends[] = {"-100", "-400", ""};
    double x[3], y[3], mean_x = 0, mean_y = 0, above = 0, below = 0;
    for (int i = 0; i < 3; i++) {
        char key[64];
        snprintf(key, sizeof key, "%s%s", series, ends[i]);
        x[i] = log(repro_metric(d, world, mode, key, "n"));
        y[i] = repro_metric(d, world, mode, key, metric);
        mean_x += x[i] / 3, mean_y += y[i] / 3;
    }
    for (int i = 0; i < 3; i++) {
        above += (x[i] - mean_x) * (y[i] - mean_y);
        below += (x[i] - mean_x) * (x[i] - mean_x);
    }
    return below > 0 ? above / below : (double)NAN;
}

/* A figure or, of a key "alpha KEY", a slope. */
static double repro_value(const repro_data *d, int world, repro_mode mode, const char *key,
                          const char *metric)
{
    if (!strncmp(key, "alpha ", 6)) return repro_slope(d, world, mode, key + 6, metric);
    return repro_metric(d, world, mode, key, metric);
}

typedef enum repro_verdict { REPRO_REPRODUCED, REPRO_NOT, REPRO_UNDECIDED } repro_verdict;

/* The rule. `sign` is the paper's direction; with fewer than two worlds there is no interval. */
static repro_verdict repro_judge_summary(const hbk_summary *s, int sign)
{
    double mean = sign * s->mean;
    if (!isfinite(mean) || !isfinite(s->half_width)) return REPRO_UNDECIDED;
    if (mean - s->half_width > 0) return REPRO_REPRODUCED;
    if (mean + s->half_width < 0) return REPRO_NOT;
    return REPRO_UNDECIDED;
}

static const char *repro_verdict_name(repro_verdict v)
{
    static const char *const names[] = {"reproduced", "not reproduced", "undecided"};
    return names[v];
}

/* A finding: a - b, or a alone where b is NULL, of the same mode or of two. */
typedef struct repro_finding {
    const char *letter, *text, *a, *b, *metric;
    int sign;          /* the paper's direction: +1 or -1 */
    repro_mode of, to; /* modes of a and b */
    bool lora;         /* also asked of LoRA */
    const char *paper; /* the paper's figure for it */
} repro_finding;

/* A finding within a mode, asked of LoRA too. */
#define REPRO_ASKS(letter, text, a, b, metric, sign, paper)                                                  \
    {                                                                                                        \
        letter, text, a, b, metric, sign, REPRO_FULL, REPRO_FULL, true, paper                                \
    }
/* clang-format off */
static const repro_finding repro_findings[] = {
    REPRO_ASKS("a", "seed + curated beats seed only (M2 - M0)", "m2", "m0", "right", 1,
               "Figure 7: a large gain"),
    REPRO_ASKS("a", "the same against M0 with as many steps", "m2", "m0-long", "right", 1, "no such control"),
    REPRO_ASKS("a", "the same against seed + uncurated, tags", "m2", "joint-uncurated", "right", 1,
               "no such control"),
    REPRO_ASKS("b", "curated beats uncurated at equal N, alone", "a5", "uncurated", "right", 1,
               "Figure 3: above it at each N"),
    REPRO_ASKS("b", "the same at N = 400", "a5-400", "uncurated-400", "right", 1, "Figure 3"),
    REPRO_ASKS("b", "the same at N = 100", "a5-100", "uncurated-100", "right", 1, "Figure 3"),
    REPRO_ASKS("b", "the same with the seed, no tags", "untagged", "untagged-uncurated", "right", 1,
               "no such row"),
    REPRO_ASKS("b2", "curated data gains with N: alpha", "alpha a5", NULL, "right", 1, "6.95 (joint)"),
    REPRO_ASKS("b2", "uncurated data gains nothing with N: alpha", "alpha uncurated", NULL, "right", -1,
               "Figure 3: flat"),
    REPRO_ASKS("b2", "curated gains more than uncurated: alphas", "alpha a5", "alpha uncurated", "right", 1,
               "Figure 3"),
    REPRO_ASKS("b2", "curated gains more than seed-like pairs: alphas", "alpha a5", "alpha gold", "right", 1,
               "6.95 - 4.43 (Open Assistant)"),
    REPRO_ASKS("c", "joint beats augmented data alone", "m2", "a5", "right", 1, "Figure 7: a large gain"),
    REPRO_ASKS("c", "joint beats seed alone", "m2", "m0", "right", 1, "Figure 7: a large gain"),
    REPRO_ASKS("d", "tags: under S_a, against no tags at all", "m2", "untagged", "right", 1,
               "+2.7, standard error 4.3"),
    REPRO_ASKS("d", "tags: under S_a S_w, against no tags at all", "seed,web", "untagged", "right", 1,
               "+6.5, standard error 4.3"),
    REPRO_ASKS("d", "tags: under S_w S_a, against no tags at all", "web,seed", "untagged", "right", 1,
               "+6.5 (the order is not told)"),
    REPRO_ASKS("d", "both tags (S_a S_w) beat S_a alone", "seed,web", "m2", "right", 1,
               "+3.8, standard error 4.3"),
    REPRO_ASKS("d", "both tags (S_w S_a) beat S_a alone", "web,seed", "m2", "right", 1,
               "+3.8 (the order is not told)"),
    REPRO_ASKS("d", "no tag at inference, against no tags at all", "none", "untagged", "right", 1,
               "+2.7, standard error 4.3"),
    REPRO_ASKS("e", "M1 rates better than M0: precision", "rater-m1", "rater-m0", "precision", 1,
               "+8 (0.52, 0.44)"),
    REPRO_ASKS("e", "M1 rates better than M0: recall", "rater-m1", "rater-m0", "recall", 1,
               "+35 (0.44, 0.09)"),
    REPRO_ASKS("e", "100 pairs by M1 teach more than by M0", "a5-100", "pick-m0", "right", 1,
               "+2.0, standard error 4.3"),
    REPRO_ASKS("e", "100 pairs by M2 teach more than by M1", "pick-m2", "a5-100", "right", 1, "no such row"),
    REPRO_ASKS("e", "100 pairs by the oracle teach more than by M1", "pick-oracle", "a5-100", "right", 1,
               "+3.3, standard error 4.3 (GPT-4)"),
    {"f", "M2 of 0.25 M beats M2 of 0.1 M parameters", "m2", "m2", "right", 1, REPRO_MIDDLE, REPRO_SMALL,
     false, "Figure 5: larger is better"},
    {"f", "M2 of 0.49 M beats M2 of 0.25 M parameters", "m2", "m2", "right", 1, REPRO_FULL, REPRO_MIDDLE,
     false, "Figure 5: larger is better"},
    REPRO_ASKS("g", "A5 beats A4 at equal N, alone", "a5", "a4", "right", 1, "Figure 3: above it"),
    REPRO_ASKS("h", "the second iteration helps: M2 - M1", "m2", "m1", "right", 1, "never reported"),
};
/* clang-format on */
enum { REPRO_FINDINGS = sizeof repro_findings / sizeof *repro_findings };

/* What is left when a finding is asked of LoRA: both sides move. */
static repro_finding repro_finding_in(const repro_finding *f, repro_mode mode)
{
    repro_finding g = *f;
    if (mode == REPRO_LORA) g.of = g.to = REPRO_LORA;
    return g;
}

/* a - b in every world that has both, in points; the worlds' numbers go to `worlds` (may be NULL). */
static int repro_differences(const repro_data *d, const repro_finding *f, const char *metric, double *x,
                             int *worlds)
{
    int n = 0;
    for (int w = 0; w < d->o->n_worlds; w++) {
        double a = repro_value(d, w, f->of, f->a, metric);
        double b = f->b ? repro_value(d, w, f->to, f->b, metric) : 0;
        if (!isfinite(a) || !isfinite(b)) continue;
        if (worlds) worlds[n] = w;
        x[n++] = 100 * (a - b);
    }
    return n;
}

static hbk_summary repro_summary(const repro_data *d, repro_mode mode, const char *key, const char *metric,
                                 double scale)
{
    double x[REPRO_WORLDS];
    int n = 0;
    for (int w = 0; w < d->o->n_worlds; w++) {
        double value = repro_value(d, w, mode, key, metric);
        if (isfinite(value)) x[n++] = scale * value;
    }
    return hbk_summarize(x, n);
}

/* ==== 2  TABLES ==============================================================

   A table is {"title", "columns", "rows", "note"}; Markdown, table.json and the page are made of the same. */

typedef struct repro_text {
    char s[96];
} repro_text;

/* "+7.0 +- 3.3"; without an interval the mean alone, and "-" for nothing. */
static repro_text repro_interval(const hbk_summary *s, bool sign, int decimals)
{
    repro_text t;
    if (s->n < 1)
        snprintf(t.s, sizeof t.s, "-");
    else if (s->n < 2)
        snprintf(t.s, sizeof t.s, sign ? "%+.*f" : "%.*f", decimals, s->mean);
    else
        snprintf(t.s, sizeof t.s, sign ? "%+.*f +- %.*f" : "%.*f +- %.*f", decimals, s->mean, decimals,
                 s->half_width);
    return t;
}

static json_t *repro_table(json_t *tables, const char *title, const char *note, const char *const *columns,
                           size_t n)
{
    json_t *t = json_object(), *head = json_array(), *rows = json_array();
    for (size_t i = 0; i < n; i++) json_array_append_new(head, json_string(columns[i]));
    json_object_set_new(t, "title", json_string(title));
    json_object_set_new(t, "columns", head);
    json_object_set_new(t, "rows", rows);
    json_object_set_new(t, "note", json_string(note));
    json_array_append_new(tables, t);
    return rows;
}

static void repro_put(json_t *row, const char *cell)
{
    json_array_append_new(row, json_string(cell));
}

/* The differences of the single worlds: "16.4, 13.9, 19.6"; and of how many, where some have none. */
static void repro_singles(hbk_text *t, const repro_data *d, const double *x, int n)
{
    for (int i = 0; i < n; i++) hbk_text_printf(t, "%s%.1f", i ? ", " : "", x[i]);
    if (n && n < d->o->n_worlds) hbk_text_printf(t, " (%d of %d worlds)", n, d->o->n_worlds);
}

/* One finding: a row for the table, an object for programs, a line for the screen. */
static void repro_report_finding(const repro_data *d, const repro_finding *f, json_t *rows, json_t *list,
                                 hbk_text *lines)
{
    double x[REPRO_WORLDS], wins[REPRO_WORLDS];
    int worlds[REPRO_WORLDS], n = repro_differences(d, f, f->metric, x, worlds);
    bool answers = !strcmp(f->metric, "right");
    int n_wins = answers ? repro_differences(d, f, "win", wins, NULL) : 0;
    hbk_summary s = hbk_summarize(x, n), win = hbk_summarize(wins, n_wins);
    repro_verdict v = repro_judge_summary(&s, f->sign);
    hbk_text singles;
    memset(&singles, 0, sizeof singles);
    repro_singles(&singles, d, x, n);
    json_t *row = json_array(), *values = json_array(), *of = json_array();
    char name[128];
    snprintf(name, sizeof name, "%s) %s", f->letter, f->text);
    repro_put(row, name);
    repro_put(row, repro_interval(&s, true, 1).s);
    repro_put(row, hbk_text_string(&singles));
    repro_put(row, answers ? repro_interval(&win, true, 1).s : "-");
    repro_put(row, n ? repro_verdict_name(v) : "not measured");
    repro_put(row, f->paper);
    json_array_append_new(rows, row);
    for (int i = 0; i < n; i++) {
        json_array_append_new(values, json_real(x[i]));
        json_array_append_new(of, json_integer((json_int_t)d->o->worlds[worlds[i]]));
    }
    json_array_append_new(list, json_pack("{s:s s:s s:s s:s s:i s:o s:o s:o s:o s:o s:s s:s}", "finding",
                                          f->letter, "text", f->text, "mode", repro_modes[f->of].key,
                                          "metric", f->metric, "sign", f->sign, "difference",
                                          repro_number(s.mean), "half_width", repro_number(s.half_width),
                                          "win", repro_number(win.mean), "values", values, "worlds", of,
                                          "verdict", n ? repro_verdict_name(v) : "not measured", "paper",
                                          f->paper));
    if (n)
        hbk_text_printf(lines, "%s: %s: %s   [paper: %s]\n", name, repro_interval(&s, true, 1).s,
                        repro_verdict_name(v), f->paper);
    hbk_text_free(&singles);
}

static const char repro_rule[] =
    "A finding is reproduced if the 95 % interval (Student's t over the worlds) of its paired differences is "
    "clear of zero in the paper's direction, not reproduced if it is clear of zero on the other side, and "
    "else undecided. Differences are points of right answers, of precision or of recall; slopes are points "
    "per ln N. S_a is the seed's tag and S_w that of curated pairs; A5(2) is what the second curation gave "
    "a 5, A4(2) a 4 or 5. That data gains nothing counts as reproduced only where more of it does harm, "
    "as no number of worlds proves a zero. Each interval stands alone: where nothing at all is behind "
    "them, one in twenty is clear of zero all the same.";

static void repro_tables_findings(const repro_data *d, json_t *tables, json_t *list, hbk_text *lines)
{
    static const char *const columns[] = {"finding", "difference", "worlds", "wins", "verdict", "paper"};
    static const char *const titles[] = {"The paper's findings", "The same with LoRA adapters"};
    for (int m = REPRO_FULL; m <= REPRO_LORA; m++) {
        if (m == REPRO_LORA && d->o->quick) break;
        json_t *rows = repro_table(tables, titles[m], m ? "" : repro_rule, columns, 6);
        if (m) hbk_text_add(lines, "\nwith LoRA adapters:\n");
        for (int i = 0; i < REPRO_FINDINGS; i++) {
            repro_finding f = repro_finding_in(&repro_findings[i], (repro_mode)m);
            bool asked = m == REPRO_FULL || repro_findings[i].lora;
            if (asked && d->o->quick) { /* what --quick leaves out is not listed at all */
                double x[REPRO_WORLDS];
                asked = repro_differences(d, &f, f.metric, x, NULL) > 0;
            }
            if (asked) repro_report_finding(d, &f, rows, list, lines);
        }
    }
}

/* LoRA against full finetuning, in one world each: no claim of the paper, but what a user asks first. */
static void repro_tables_lora(const repro_data *d, json_t *tables, hbk_text *lines)
{
    static const char *const keys[] = {"m0", "m1", "m2"}, *const names[] = {"M0", "M1", "M2"};
    static const char *const columns[] = {"model", "LoRA - full, right", "worlds", "wins", "within 3 points"};
    if (d->o->quick) return;
    json_t *rows = repro_table(tables, "LoRA against full finetuning",
                               "Rank 16, learning rate 4e-3, the same base, candidates and ratings. Within 3 "
                               "points: the mean difference is above -3.",
                               columns, 5);
    for (int i = 0; i < 3; i++) {
        repro_finding f = {"", "", keys[i], keys[i], "right", 1, REPRO_LORA, REPRO_FULL, false, ""};
        double x[REPRO_WORLDS], wins[REPRO_WORLDS];
        int n = repro_differences(d, &f, "right", x, NULL),
            n_wins = repro_differences(d, &f, "win", wins, NULL);
        hbk_summary s = hbk_summarize(x, n), win = hbk_summarize(wins, n_wins);
        hbk_text singles;
        memset(&singles, 0, sizeof singles);
        repro_singles(&singles, d, x, n);
        json_t *row = json_array();
        const char *within = n == 0 ? "not measured" : s.mean > -3 ? "yes" : "no";
        repro_put(row, names[i]);
        repro_put(row, repro_interval(&s, true, 1).s);
        repro_put(row, hbk_text_string(&singles));
        repro_put(row, repro_interval(&win, true, 1).s);
        repro_put(row, within);
        json_array_append_new(rows, row);
        if (n)
            hbk_text_printf(lines, "%s, LoRA - full: %s: within 3 points: %s\n", names[i],
                            repro_interval(&s, true, 1).s, within);
        hbk_text_free(&singles);
    }
}

static void repro_tables_answers(const repro_data *d, json_t *tables)
{
    static const char *const columns[] = {"model",  "pairs",   "right %", "common %",
                                          "rare %", "style %", "win %",   "score"};
    static const char *const metrics[] = {"right", "common", "rare", "style", "win"};
    char title[96];
    for (int m = 0; m < REPRO_MODES; m++) {
        json_t *rows = NULL;
        for (int r = 0; r < REPRO_ROWS; r++) {
            const char *key = repro_rows[r].key;
            hbk_summary right = repro_summary(d, (repro_mode)m, key, "right", 100);
            hbk_summary n = repro_summary(d, (repro_mode)m, key, "n", 1);
            hbk_summary score = repro_summary(d, (repro_mode)m, key, "score", 1);
            if (right.n == 0) continue;
            snprintf(title, sizeof title, "Answers, judged by the oracle: %s", repro_modes[m].name);
            if (!rows)
                rows = repro_table(tables, title, "Mean +- 95 % half-width over the worlds.", columns, 8);
            json_t *row = json_array();
            repro_put(row, repro_rows[r].name);
            repro_put(row, repro_interval(&n, false, 0).s);
            for (int i = 0; i < 5; i++) {
                hbk_summary s = repro_summary(d, (repro_mode)m, key, metrics[i], 100);
                repro_put(row, repro_interval(&s, false, 1).s);
            }
            repro_put(row, repro_interval(&score, false, 2).s);
            json_array_append_new(rows, row);
        }
    }
}

static void repro_tables_raters(const repro_data *d, json_t *tables)
{
    static const char *const columns[] = {
        "rater",           "mode",         "kept",     "precision", "recall", "read %", "precision, as many",
        "recall, as many", "A4 precision", "A4 recall"};
    static const char *const metrics[] = {"precision",      "recall",      "parsed",  "precision_as_many",
                                          "recall_as_many", "precision_4", "recall_4"};
    json_t *rows =
        repro_table(tables, "Raters against the oracle",
                    "A 5 is right where the oracle gives 5 (A4: 4 or 5 by both). Read: ratings with "
                    "a score. Expected: the mean score under the model instead of the written one; "
                    "as many: where it keeps as many as the written score does. The oracle itself, the "
                    "paper's GPT-4, would stand at 1 and 1.",
                    columns, 10);
    for (int m = 0; m < REPRO_MODES; m++)
        for (int r = 0; r < REPRO_ROWS; r++) {
            const char *key = repro_rows[r].key;
            hbk_summary kept = repro_summary(d, (repro_mode)m, key, "kept", 1);
            if (kept.n == 0) continue;
            json_t *row = json_array();
            repro_put(row, repro_rows[r].name);
            repro_put(row, repro_modes[m].name);
            repro_put(row, repro_interval(&kept, false, 0).s);
            for (int i = 0; i < 7; i++) {
                bool share = i == 2;
                hbk_summary s = repro_summary(d, (repro_mode)m, key, metrics[i], share ? 100 : 1);
                repro_put(row, repro_interval(&s, false, share ? 1 : 3).s);
            }
            json_array_append_new(rows, row);
        }
}

/* What the raters see and what they do not. */
static void repro_tables_kinds(const repro_data *d, json_t *tables)
{
    const char *columns[TINY_KINDS + 2] = {"rater", "mode"};
    int n_kinds = tiny__levels[d->o->level].n_kinds;
    for (int k = 0; k < n_kinds; k++) columns[k + 2] = tiny_kind_name((tiny_kind)k);
    json_t *rows = repro_table(tables, "Candidates given a 5 (%), by what the oracle finds in them",
                               "Means over the worlds.", columns, (size_t)n_kinds + 2);
    for (int m = 0; m < REPRO_MODES; m++)
        for (int r = 0; r < REPRO_ROWS; r++) {
            if (repro_summary(d, (repro_mode)m, repro_rows[r].key, "kept", 1).n == 0) continue;
            json_t *row = json_array();
            repro_put(row, repro_rows[r].name);
            repro_put(row, repro_modes[m].name);
            for (int k = 0; k < n_kinds; k++) {
                hbk_summary s = repro_summary(d, (repro_mode)m, repro_rows[r].key, columns[k + 2], 100);
                char cell[32];
                snprintf(cell, sizeof cell, "%.1f", s.mean);
                repro_put(row, s.n ? cell : "-");
            }
            json_array_append_new(rows, row);
        }
}

static void repro_tables_backward(const repro_data *d, json_t *tables)
{
    static const char *const columns[] = {"mode", "instructions recovered %", "right pairs %", "kept by M0",
                                          "kept by M1"};
    json_t *rows = repro_table(tables, "Candidates", "Of all candidates, before curation.", columns, 5);
    for (int m = 0; m < REPRO_MODES; m++) {
        hbk_summary recovered = repro_summary(d, (repro_mode)m, "rater-m0", "recovered", 100);
        hbk_summary good = repro_summary(d, (repro_mode)m, "rater-m0", "right_pairs", 100);
        hbk_summary one = repro_summary(d, (repro_mode)m, "loop", "kept_1", 1);
        hbk_summary two = repro_summary(d, (repro_mode)m, "loop", "kept_2", 1);
        if (one.n == 0) continue; /* LoRA shares them */
        json_t *row = json_array();
        repro_put(row, repro_modes[m].name);
        repro_put(row, repro_interval(&recovered, false, 1).s);
        repro_put(row, repro_interval(&good, false, 1).s);
        repro_put(row, repro_interval(&one, false, 0).s);
        repro_put(row, repro_interval(&two, false, 0).s);
        json_array_append_new(rows, row);
    }
}

static void repro_tables_slopes(const repro_data *d, json_t *tables)
{
    static const char *const columns[] = {"data", "mode", "alpha, right", "alpha, win", "paper"};
    static const char *const series[][3] = {{"alpha a5", "curated", "6.95 (Humpback, joint)"},
                                            {"alpha uncurated", "uncurated", "flat (Figure 3)"},
                                            {"alpha gold", "seed-like", "4.43 (Open Assistant)"}};
    if (d->o->quick) return;
    json_t *rows =
        repro_table(tables, "Data scaling: slopes of right = alpha ln N + C",
                    "Points per ln N, from N = 100, 400 and as many as curation kept.", columns, 5);
    for (int m = REPRO_FULL; m <= REPRO_LORA; m++)
        for (int i = 0; i < 3; i++) {
            hbk_summary right = repro_summary(d, (repro_mode)m, series[i][0], "right", 100);
            hbk_summary win = repro_summary(d, (repro_mode)m, series[i][0], "win", 100);
            if (right.n == 0) continue;
            json_t *row = json_array();
            repro_put(row, series[i][1]);
            repro_put(row, repro_modes[m].name);
            repro_put(row, repro_interval(&right, false, 2).s);
            repro_put(row, repro_interval(&win, false, 2).s);
            repro_put(row, series[i][2]);
            json_array_append_new(rows, row);
        }
}

static void repro_put_seconds(json_t *row, double seconds)
{
    char cell[32];
    snprintf(cell, sizeof cell, "%.1f", seconds);
    repro_put(row, isfinite(seconds) ? cell : "-");
}

/* Where the time went; the result is the seconds of all rows together. */
static double repro_tables_seconds(const repro_data *d, json_t *tables)
{
    static const char *const columns[] = {"mode",  "row", "worlds", "seconds a world", "of the processor",
                                          "in all"};
    double all = 0;
    json_t *rows = repro_table(tables, "Time",
                               "Each row is made on one thread, --jobs of them side by side. The loop is the "
                               "backward model, the candidates, M0, two curations, M1 and M2.",
                               columns, 6);
    for (int m = 0; m < REPRO_MODES; m++)
        for (int r = 0; r < REPRO_ROWS; r++) {
            hbk_summary s = repro_summary(d, (repro_mode)m, repro_rows[r].key, "seconds", 1);
            hbk_summary cpu = repro_summary(d, (repro_mode)m, repro_rows[r].key, "cpu_seconds", 1);
            char cell[32];
            if (s.n == 0) continue;
            json_t *row = json_array();
            repro_put(row, repro_modes[m].name);
            repro_put(row, repro_rows[r].kind == REPRO_RATER ? repro_rows[r].key : repro_rows[r].name);
            snprintf(cell, sizeof cell, "%d", (int)s.n);
            repro_put(row, cell);
            repro_put_seconds(row, s.mean);
            repro_put_seconds(row, cpu.mean);
            repro_put_seconds(row, s.mean * (double)s.n);
            json_array_append_new(rows, row);
            all += s.mean * (double)s.n;
        }
    return all;
}

/* Rows that could not be made, each with its reason; without any there is no table. */
static void repro_tables_missing(const repro_data *d, json_t *tables)
{
    static const char *const columns[] = {"world", "mode", "row", "reason"};
    json_t *rows = NULL;
    for (int w = 0; w < d->o->n_worlds; w++)
        for (int m = 0; m < REPRO_MODES; m++)
            for (int r = 0; r < REPRO_ROWS; r++) {
                const char *why = json_string_value(json_object_get(d->rows[w][m][r], "missing"));
                char cell[32];
                if (!why) continue;
                if (!rows)
                    rows =
                        repro_table(tables, "Rows that are missing",
                                    "The findings leave these worlds out where they need them.", columns, 4);
                json_t *row = json_array();
                snprintf(cell, sizeof cell, "%lld", (long long)d->o->worlds[w]);
                repro_put(row, cell);
                repro_put(row, repro_modes[m].name);
                repro_put(row, repro_rows[r].key);
                repro_put(row, why);
                json_array_append_new(rows, row);
            }
}

/* A Markdown table; bars within cells would end them. */
static void repro_markdown(hbk_text *t, const json_t *table)
{
    const json_t *columns = json_object_get(table, "columns"), *rows = json_object_get(table, "rows");
    size_t n = json_array_size(columns);
    hbk_text_printf(t, "\n## %s\n\n|", json_string_value(json_object_get(table, "title")));
    for (size_t k = 0; k < n; k++) hbk_text_printf(t, " %s |", json_string_value(json_array_get(columns, k)));
    hbk_text_add(t, "\n|");
    for (size_t k = 0; k < n; k++) hbk_text_add(t, "---|");
    for (size_t i = 0; i < json_array_size(rows); i++) {
        hbk_text_add(t, "\n|");
        for (size_t k = 0; k < n; k++) {
            const char *s = json_string_value(json_array_get(json_array_get(rows, i), k));
            hbk_text_add(t, " ");
            for (; s && *s; s++) {
                if (*s == '|') hbk_text_add(t, "\\");
                hbk_text_append(t, *s == '\n' ? " " : s, 1);
            }
            hbk_text_add(t, " |");
        }
    }
    const char *note = json_string_value(json_object_get(table, "note"));
    hbk_text_printf(t, "\n%s%s%s", note && *note ? "\n" : "", note ? note : "", note && *note ? "\n" : "");
}

/* ==== 3  FIGURES =============================================================

   A data file and a gnuplot script each, under DIR/figures; where there is gnuplot, SVG and PNG beside
   them. A data file has a block a curve, two empty lines apart, or a line a bar. */

typedef struct repro_curve {
    const char *title, *keys[3]; /* fewer keys: NULL; one key and `level`: a line over the whole width */
    repro_mode modes[3];
    bool level;
} repro_curve;

typedef struct repro_bar {
    const char *title, *key, *metric;
} repro_bar;

enum { REPRO_CURVES = 5, REPRO_BARS = 8 };
typedef struct repro_figure {
    const char *name, *title, *x, *paper;
    bool sizes;                       /* the axis is the number of parameters, else of pairs */
    repro_curve curves[REPRO_CURVES]; /* ended by a NULL title */
    repro_bar bars[REPRO_BARS];       /* likewise; curves or bars */
} repro_figure;

#define REPRO_M3                                                                                             \
    {                                                                                                        \
        REPRO_FULL, REPRO_FULL, REPRO_FULL                                                                   \
    }
#define REPRO_S3                                                                                             \
    {                                                                                                        \
        REPRO_SMALL, REPRO_MIDDLE, REPRO_FULL                                                                \
    }
#define REPRO_SERIES(title, key)                                                                             \
    {                                                                                                        \
        title, {key "-100", key "-400", key}, REPRO_M3, false                                                \
    }
#define REPRO_POINT(title, key, level)                                                                       \
    {                                                                                                        \
        title, {key, NULL, NULL}, REPRO_M3, level                                                            \
    }
#define REPRO_OVER_SIZES(title, key)                                                                         \
    {                                                                                                        \
        title, {key, key, key}, REPRO_S3, false                                                              \
    }
#define REPRO_NO_CURVE                                                                                       \
    {                                                                                                        \
        NULL, {NULL, NULL, NULL}, REPRO_M3, false                                                            \
    }
#define REPRO_NO_BAR                                                                                         \
    {                                                                                                        \
        NULL, NULL, NULL                                                                                     \
    }
/* clang-format off */
static const repro_figure repro_figures[] = {
    {"scaling", "Quality against quantity (the paper's Figure 3 and Table 3)", "pairs, of one kind alone",
     "There curated data rises with N, the score-5 set above the score-4 set, and uncurated data does not.",
     false,
     {REPRO_SERIES("curated, A5(2)", "a5"), REPRO_SERIES("uncurated", "uncurated"),
      REPRO_SERIES("seed-like", "gold"), REPRO_POINT("curated, A4(2)", "a4", false), REPRO_NO_CURVE},
     {REPRO_NO_BAR}},
    {"sizes", "Model size (the paper's Figure 5)", "million parameters",
     "There curated data helps the small and the large model.", true,
     {REPRO_OVER_SIZES("M0: seed only", "m0"), REPRO_OVER_SIZES("M1: seed + A5(1)", "m1"),
      REPRO_OVER_SIZES("M2: seed + A5(2)", "m2"), REPRO_NO_CURVE},
     {REPRO_NO_BAR}},
    {"joint", "Seed only, augmented only, joint (the paper's Figure 7)", "augmented pairs",
     "There seed and curated data together are far above either alone.", false,
     {{"seed + curated", {"joint-100", "joint-400", "m2"}, REPRO_M3, false},
      REPRO_SERIES("curated alone", "a5"), REPRO_SERIES("uncurated alone", "uncurated"),
      REPRO_POINT("seed only", "m0", true), REPRO_NO_CURVE},
     {REPRO_NO_BAR}},
    {"tags", "Tags in training and at inference (the paper's Table 8)", "",
     "There, in wins: both tags 66.5 %, none in training 60.0, the seed tag alone 62.7, none at inference "
     "62.7.",
     false, {REPRO_NO_CURVE},
     {{"no tags at all", "untagged", "right"}, {"S_a", "m2", "right"}, {"S_a S_w", "seed,web", "right"},
      {"S_w S_a", "web,seed", "right"}, {"S_w", "web", "right"}, {"none at inference", "none", "right"},
      REPRO_NO_BAR}},
    {"picks", "What 100 pairs teach, by who picked them (the paper's Table 7)", "",
     "There, in wins: M0 35.7 %, M1 37.7, GPT-4 41.0.", false, {REPRO_NO_CURVE},
     {{"nobody", "uncurated-100", "right"}, {"M0", "pick-m0", "right"}, {"M1", "a5-100", "right"},
      {"M2", "pick-m2", "right"}, {"the oracle", "pick-oracle", "right"}, REPRO_NO_BAR}},
};
/* clang-format on */
enum { REPRO_FIGURES = sizeof repro_figures / sizeof *repro_figures };

/* Where a point of a curve lies on the axis: the row's augmented pairs. The loop's M2 has as many as the row
   of the same pairs alone. */
static double repro_place(const repro_data *d, const repro_figure *f, const repro_curve *c, int i)
{
    if (f->sizes) return repro_modes[c->modes[i]].millions;
    const char *key = !strcmp(c->keys[i], "m2") ? "a5" : c->keys[i];
    return repro_summary(d, c->modes[i], key, "n", 1).mean;
}

/* The figure's data; false: nothing was measured of it. */
static bool repro_figure_data(const repro_data *d, const repro_figure *f, hbk_text *t)
{
    bool any = false;
    hbk_text_printf(t, "# %s\n# %s, right answers in percent, 95 %% half-width\n", f->title,
                    f->bars[0].title ? "row" : f->x);
    for (int i = 0; f->bars[i].title; i++) {
        hbk_summary s = repro_summary(d, REPRO_FULL, f->bars[i].key, f->bars[i].metric, 100);
        if (s.n == 0) continue;
        any = true;
        hbk_text_printf(t, "\"%s\" %.2f %.2f\n", f->bars[i].title, s.mean, s.n > 1 ? s.half_width : 0.0);
    }
    for (int k = 0; f->curves[k].title; k++) {
        const repro_curve *c = &f->curves[k];
        hbk_text_printf(t, "%s# %s\n", k ? "\n\n" : "", c->title);
        for (int i = 0; i < 3 && c->keys[i]; i++) {
            hbk_summary s = repro_summary(d, c->modes[i], c->keys[i], "right", 100);
            double x = c->level ? 0 : repro_place(d, f, c, i);
            if (s.n == 0 || !isfinite(x)) continue;
            any = true;
            hbk_text_printf(t, "%.4g %.2f %.2f\n", x, s.mean, s.n > 1 ? s.half_width : 0.0);
        }
    }
    return any;
}

/* How many points a curve has: gnuplot takes empty blocks for errors. */
static int repro_curve_points(const repro_data *d, const repro_curve *c)
{
    int n = 0;
    for (int i = 0; i < 3 && c->keys[i]; i++)
        n += repro_summary(d, c->modes[i], c->keys[i], "right", 100).n > 0;
    return n;
}

/* The plot command of a figure with curves. */
static void repro_script_curves(const repro_data *d, const repro_figure *f, const char *const *colours,
                                hbk_text *t)
{
    const char *before = "plot ";
    int block = 0;
    for (int k = 0; f->curves[k].title; k++) {
        const repro_curve *c = &f->curves[k];
        int points = repro_curve_points(d, c);
        if (points == 0) continue; /* nor does gnuplot count a block without points */
        hbk_text_add(t, before);
        if (c->level)
            hbk_text_printf(t, "%.2f with lines dt 2 lw 1.5",
                            repro_summary(d, c->modes[0], c->keys[0], "right", 100).mean);
        else
            hbk_text_printf(t, "'%s.dat' index %d using 1:2:3 with yerror%s lw 1.5 pt 7 ps 0.6", f->name,
                            block, points > 1 ? "lines" : "bars");
        hbk_text_printf(t, " lc rgb '%s' title '%s'", colours[k], c->title);
        before = ", \\\n     ";
        block++;
    }
}

static void repro_figure_script(const repro_data *d, const repro_figure *f, hbk_text *t)
{
    static const char *const colours[REPRO_CURVES] = {"#1f4e79", "#c0504d", "#8a8a8a", "#5b8fb9", "#555555"};
    hbk_text_printf(t, "# gnuplot %s.gp makes %s.svg and %s.png\n", f->name, f->name, f->name);
    hbk_text_add(t, "set terminal svg size 720,430 font 'sans-serif,13' background '#ffffff'\n");
    hbk_text_printf(t, "set output '%s.svg'\nset title \"%s\"\n", f->name, f->title);
    hbk_text_add(t, "set ylabel 'right answers (%)'\nset border 3\nset tics nomirror\nset grid ytics lc rgb "
                    "'#dddddd'\n");
    if (f->bars[0].title) {
        hbk_text_add(t,
                     "set yrange [0:100]\nset offsets 0.5, 0.5, 0, 0\nset boxwidth 0.6\nset style fill solid "
                     "noborder\nunset key\n");
        hbk_text_printf(
            t,
            "plot '%s.dat' using 0:2:xtic(1) with boxes lc rgb '%s', \\\n"
            "     '' using 0:($2-$3):(0):(2*$3) with vectors heads size 0.08,90 lw 1.5 lc rgb '#222222'",
            f->name, colours[3]);
    } else {
        hbk_text_printf(t, "set xlabel '%s'\nset key bottom right\n%s", f->x,
                        f->sizes ? "" : "set logscale x\nset xtics (100, 200, 400, 800, 1600)\n");
        hbk_text_add(t, f->sizes ? "set xrange [0:0.6]\n" : "set xrange [80:2000]\n");
        repro_script_curves(d, f, colours, t);
    }
    hbk_text_add(t, "\nset terminal pngcairo size 1440,860 font 'sans,22' linewidth 2 pointscale 2\n");
    hbk_text_printf(t, "set output '%s.png'\nreplot\n", f->name);
}

/* Runs gnuplot in the folder; false: there is none, or it failed. */
static bool repro_gnuplot(const char *folder, const char *script)
{
    int status = 0;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        if (chdir(folder) == 0 && freopen("/dev/null", "w", stderr) && freopen("/dev/null", "w", stdout))
            execlp("gnuplot", "gnuplot", script, (char *)NULL);
        _exit(127);
    }
    return pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* Writes all figures; *drawn: gnuplot made every one of them. */
static bool repro_write_figures(const repro_data *d, bool *drawn, hbk_error *err)
{
    char folder[512], path[512], name[64];
    *drawn = true;
    if (!hbk_path(folder, d->o->dir, "figures", err) || !hbk_dir_make(folder, err)) return false;
    for (int i = 0; i < REPRO_FIGURES; i++) {
        const repro_figure *f = &repro_figures[i];
        hbk_text data, script;
        memset(&data, 0, sizeof data);
        memset(&script, 0, sizeof script);
        bool ok = true;
        if (repro_figure_data(d, f, &data)) {
            repro_figure_script(d, f, &script);
            snprintf(name, sizeof name, "%s.dat", f->name);
            ok = hbk_text_ok(&data, err) && hbk_text_ok(&script, err) && hbk_path(path, folder, name, err) &&
                 hbk_file_write(path, data.data, data.len, err);
            snprintf(name, sizeof name, "%s.gp", f->name);
            ok =
                ok && hbk_path(path, folder, name, err) && hbk_file_write(path, script.data, script.len, err);
            if (ok && !repro_gnuplot(folder, name)) *drawn = false;
        }
        hbk_text_free(&data);
        hbk_text_free(&script);
        if (!ok) return false;
    }
    return true;
}

/* ==== 4  THE PAGE ============================================================ */

/* A figure within the page, as an address that holds it all. */
static bool repro_embed(hbk_text *t, const repro_options *o, const repro_figure *f, hbk_error *err)
{
    char name[64], path[512];
    hbk_text svg;
    memset(&svg, 0, sizeof svg);
    snprintf(name, sizeof name, "figures/%s.svg", f->name);
    if (!hbk_path(path, o->dir, name, err)) return false;
    if (!hbk_file_exists(path)) return true;
    bool ok = hbk_file_read(path, 1 << 24, &svg, err);
    hbk_text_printf(t, "<figure>\n<img style=\"max-width:100%%\" alt=\"%s\" src=\"data:image/svg+xml,",
                    f->title);
    for (size_t i = 0; ok && i < svg.len; i++) {
        unsigned char ch = (unsigned char)svg.data[i];
        bool plain = (ch >= '0' && ch <= '9') || (ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z') ||
                     strchr("-_.!*()/:;,= ", ch) != NULL;
        if (plain && ch)
            hbk_text_append(t, (const char *)&ch, 1);
        else
            hbk_text_printf(t, "%%%02X", ch);
    }
    hbk_text_add(t, "\"/>\n<figcaption>");
    report_escape(t, f->paper);
    hbk_text_add(t, "</figcaption>\n</figure>\n");
    hbk_text_free(&svg);
    return ok;
}

static bool repro_page(hbk_text *t, const repro_options *o, const json_t *all, hbk_error *err)
{
    static const char wide[] = "body{max-width:74rem}td.w:first-child{min-width:15rem}"
                               "td.w:last-child{min-width:11rem}\n";
    const json_t *tables = json_object_get(all, "tables");
    const char *title = json_string_value(json_object_get(all, "title"));
    bool ok = true;
    report_begin(t, title, wide);
    report_head(t, title, json_object_get(all, "verdict"), NULL, json_object_get(all, "notes"));
    for (size_t i = 0; ok && i < json_array_size(tables); i++) {
        report_extra_table(t, json_array_get(tables, i));
        if (i > 0) continue;
        hbk_text_add(t, "<section>\n<h2>Figures</h2>\n");
        for (int k = 0; ok && k < REPRO_FIGURES; k++) ok = repro_embed(t, o, &repro_figures[k], err);
        hbk_text_add(t, "</section>\n");
    }
    hbk_text_add(t, "<footer>Made by humpback " HBK_VERSION
                    " reproduce. The numbers of this page are in table.json and figures/.</footer>\n</body>\n"
                    "</html>\n");
    return ok;
}

/* ==== the whole ============================================================== */

/* What is told before any figure: the worlds, and what was left out. */
static json_t *repro_notes(const repro_data *d, bool drawn, double seconds)
{
    const repro_options *o = d->o;
    json_t *notes = json_array();
    hbk_text t;
    memset(&t, 0, sizeof t);
    const tiny_setting *level = &tiny__levels[o->level];
    hbk_int segments = o->quick ? 2 * level->segments / 3 : level->segments;
    hbk_text_printf(&t, "%d %s worlds (", o->n_worlds, level->name);
    for (int i = 0; i < o->n_worlds; i++)
        hbk_text_printf(&t, "%s%lld", i ? ", " : "", (long long)o->worlds[i]);
    hbk_text_printf(&t,
                    "), %d evaluation prompts each, %lld segments; %.0f seconds in all, on one thread each.",
                    (int)TINY_EVALUATIONS, (long long)segments, seconds);
    json_array_append_new(notes, json_string(hbk_text_string(&t)));
    if (o->quick)
        json_array_append_new(
            notes,
            json_string("QUICK: the main line and findings a, b (at one N), c, d (one row), h with full "
                        "finetuning only, on fewer segments; no scaling, no other tags, no LoRA, no "
                        "other sizes. Few worlds make wide intervals."));
    if (!drawn)
        json_array_append_new(notes, json_string("gnuplot is not there or failed: figures/ holds data files "
                                                 "and scripts, and this page no figures."));
    hbk_text_free(&t);
    return notes;
}

/* table.md, table.json, figures and the page from what was measured; *result, where not NULL, is the
   caller's. */
static bool repro_report(const repro_data *d, hbk_text *lines, json_t **result, hbk_error *err)
{
    char path[512], verdict[160];
    json_t *tables = json_array(), *findings = json_array(), *all = json_object();
    hbk_text markdown, page;
    bool drawn = true;
    int counts[3] = {0, 0, 0};
    memset(&markdown, 0, sizeof markdown);
    memset(&page, 0, sizeof page);
    repro_tables_findings(d, tables, findings, lines);
    repro_tables_lora(d, tables, lines);
    repro_tables_missing(d, tables);
    repro_tables_raters(d, tables);
    repro_tables_kinds(d, tables);
    repro_tables_backward(d, tables);
    repro_tables_slopes(d, tables);
    repro_tables_answers(d, tables);
    double seconds = repro_tables_seconds(d, tables);
    bool ok = repro_write_figures(d, &drawn, err);
    for (size_t i = 0; i < json_array_size(findings); i++)
        for (int v = 0; v < 3; v++) {
            const json_t *f = json_array_get(findings, i);
            if (strcmp(json_string_value(json_object_get(f, "mode")), "lora") &&
                !strcmp(json_string_value(json_object_get(f, "verdict")),
                        repro_verdict_name((repro_verdict)v)))
                counts[v]++;
        }
    snprintf(verdict, sizeof verdict,
             "Of the findings asked of full finetuning %d reproduced, %d did not, %d are undecided.",
             counts[REPRO_REPRODUCED], counts[REPRO_NOT], counts[REPRO_UNDECIDED]);
    json_object_set_new(all, "title", json_string("The paper's findings in miniature worlds"));
    json_object_set_new(all, "verdict", json_string(verdict));
    json_object_set_new(all, "rule", json_string(repro_rule));
    json_object_set_new(all, "notes", repro_notes(d, drawn, seconds));
    json_object_set_new(all, "findings", findings);
    json_object_set_new(all, "tables", tables);
    hbk_text_printf(&markdown, "# The paper's findings in miniature worlds\n\n%s\n", verdict);
    for (size_t i = 0; i < json_array_size(json_object_get(all, "notes")); i++)
        hbk_text_printf(&markdown, "\n%s\n",
                        json_string_value(json_array_get(json_object_get(all, "notes"), i)));
    for (size_t i = 0; i < json_array_size(tables); i++) repro_markdown(&markdown, json_array_get(tables, i));
    ok = ok && repro_page(&page, d->o, all, err) && hbk_text_ok(&markdown, err) && hbk_text_ok(&page, err) &&
         hbk_path(path, d->o->dir, "table.md", err) &&
         hbk_file_write(path, markdown.data, markdown.len, err) &&
         hbk_path(path, d->o->dir, "table.json", err) && hbk_json_write(path, all, err) &&
         hbk_path(path, d->o->dir, "report.html", err) && hbk_file_write(path, page.data, page.len, err);
    hbk_text_printf(lines, "\n%s\n", verdict);
    if (!drawn) hbk_text_add(lines, "no gnuplot: figures/ holds data files and scripts only\n");
    hbk_text_free(&markdown);
    hbk_text_free(&page);
    if (ok && result) *result = json_incref(all);
    json_decref(all);
    return ok;
}

/* reproduce.json: what the folder was begun with. Another number of worlds is another run: the worlds are
   fixed before the first of them, or a run could be ended when it pleases. */
static bool repro_check_folder(const repro_options *o, hbk_error *err)
{
    char path[512], rows[512];
    json_t *worlds = json_array(), *now, *then;
    for (int i = 0; i < o->n_worlds; i++)
        json_array_append_new(worlds, json_integer((json_int_t)o->worlds[i]));
    now =
        json_pack("{s:s s:b s:o}", "world", tiny__levels[o->level].name, "quick", o->quick, "worlds", worlds);
    bool ok = now && hbk_path(path, o->dir, "reproduce.json", err) && hbk_path(rows, o->dir, "rows", err) &&
              hbk_dir_make(rows, err);
    if (ok && hbk_file_exists(path)) {
        then = hbk_json_read(path, err);
        ok = then && hbk_json_same(then, now, path, "another --out", err);
        json_decref(then);
    } else if (ok) {
        ok = hbk_json_write(path, now, err);
    }
    json_decref(now);
    return ok;
}

/* Makes what is missing of the rows, then all tables; a line a finding is appended to `lines`. */
static bool tool_reproduce(const repro_options *o, const hbk_progress *progress, hbk_text *lines,
                           json_t **result, hbk_error *err)
{
    repro_queue *q = (repro_queue *)hbk_alloc(NULL, 1, sizeof *q, err);
    repro_data *d = q ? (repro_data *)hbk_alloc(NULL, 1, sizeof *d, err) : NULL;
    bool ok = d && repro_check_folder(o, err) && repro_queue_init(q, o, err) && repro_run(q, progress, err) &&
              repro_read(d, o, err) && repro_report(d, lines, result, err);
    if (d) repro_data_free(d);
    hbk_free(NULL, d);
    hbk_free(NULL, q);
    return ok;
}

#endif /* FINDINGS_H_INCLUDED */
