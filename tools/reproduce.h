/* reproduce.h - `humpback reproduce`: what is trained and measured in several miniature worlds - public
   domain

   For each of its findings the paper has one figure from one run. Here every world is a run: the same models
   are trained in each, a finding is the difference of two of them, and the differences of all worlds give a
   mean with an interval (findings.h).

     1  rows        what is trained and measured, one row of a table each
     2  one row     a process of its own, which leaves one file: ROWS/10-full-m2.json
     3  the queue   rows whose needs are met, a few at a time; a second call continues

   Every model starts from the base of its world and learns from the same candidates and ratings. Whatever is
   drawn has a random stream of its own, so that a new row changes none of the others, and each process
   computes on one thread: figures depend neither on --jobs nor on which rows were there before. */

#ifndef REPRODUCE_H_INCLUDED
#define REPRODUCE_H_INCLUDED

#include "demo.h"

#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#if defined(_OPENMP)
#include <omp.h>
#endif

/* ==== 1  ROWS ================================================================ */

typedef enum repro_mode { REPRO_FULL, REPRO_LORA, REPRO_SMALL, REPRO_MIDDLE, REPRO_MODES } repro_mode;
typedef struct repro_mode_entry {
    const char *key, *name;
    demo_shape shape;
    double millions; /* of parameters, as told */
} repro_mode_entry;
static const repro_mode_entry repro_modes[REPRO_MODES] = {
    {"full", "full finetuning", {4, 4, 96, 256}, 0.49},
    {"lora", "LoRA", {4, 4, 96, 256}, 0.49},
    {"small", "full, 0.1 M parameters", {3, 4, 48, 128}, 0.11},
    {"middle", "full, 0.25 M parameters", {4, 4, 64, 192}, 0.25},
};
enum {
    REPRO_ALL = 1 << REPRO_FULL | 1 << REPRO_LORA | 1 << REPRO_SMALL | 1 << REPRO_MIDDLE,
    REPRO_BOTH = 1 << REPRO_FULL | 1 << REPRO_LORA,
    REPRO_SIZES = 1 << REPRO_FULL | 1 << REPRO_SMALL | 1 << REPRO_MIDDLE,
    REPRO_ONE = 1 << REPRO_FULL
};

typedef enum repro_kind {
    REPRO_BASE, /* the world's files and a pretrained base */
    REPRO_LOOP, /* backward model, candidates, ratings, M0, M1, M2 */
    REPRO_ARM,  /* a finetuning, and its answers judged */
    REPRO_EXAM, /* answers of a model that is there, under another tag */
    REPRO_RATER /* ratings against the oracle */
} repro_kind;

typedef struct repro_row {
    const char *key, *name;
    repro_kind kind;
    unsigned modes;          /* 1 << repro_mode */
    bool quick;              /* also with --quick */
    const char *model, *tag; /* the model that answers or rates; the tag under which it answers */
    const char *after;       /* a row that must be done before, besides the loop; NULL: none */
    demo_arm arm;
} repro_row;

#define REPRO_A TINY_TAG_SEED
#define REPRO_W TINY_TAG_WEB
#define REPRO_NONE                                                                                           \
    {                                                                                                        \
        NULL, 0, DEMO_NOTHING, 0, false, DEMO_AS_M0                                                          \
    }
#define REPRO_TRAIN(key, name, modes, quick, tag, after, repeat, source, n, tags, training)                  \
    {                                                                                                        \
        key, name, REPRO_ARM, modes, quick, key, tag, after,                                                 \
        {                                                                                                    \
            key, repeat, source, n, tags, training                                                           \
        }                                                                                                    \
    }
#define REPRO_RATE(key, name, modes, quick, model, after)                                                    \
    {                                                                                                        \
        key, name, REPRO_RATER, modes, quick, model, NULL, after, REPRO_NONE                                 \
    }
#define REPRO_ASK(key, name, model, tag)                                                                     \
    {                                                                                                        \
        key, name, REPRO_EXAM, REPRO_BOTH, false, model, tag, model, REPRO_NONE                              \
    }

/* clang-format off */
static const repro_row repro_rows[] = {
    {"base", "base model, no tag", REPRO_BASE, REPRO_SIZES, true, NULL, NULL, NULL, REPRO_NONE},
    {"loop", "the loop", REPRO_LOOP, REPRO_SIZES, true, NULL, NULL, "base", REPRO_NONE},

    /* key, name, modes, quick, tag at inference, after;
       copies of the seed, source, n of it, tags in training, training */
    REPRO_TRAIN("m0", "M0 (seed only)", REPRO_ALL, true, REPRO_A, NULL, 1, DEMO_NOTHING, 0, true, DEMO_AS_M0),
    REPRO_TRAIN("m1", "M1 (seed + A5(1))", REPRO_ALL, true, REPRO_A, NULL,
                3, DEMO_CURATED_1, -1, true, DEMO_AS_M2),
    REPRO_TRAIN("m2", "M2 (seed + A5(2))", REPRO_ALL, true, REPRO_A, NULL,
                3, DEMO_CURATED_2, -1, true, DEMO_AS_M2),
    REPRO_TRAIN("m0-long", "M0 with as many steps as M2", REPRO_BOTH, true, REPRO_A, "m2",
                1, DEMO_NOTHING, 0, true, DEMO_LONG),
    REPRO_TRAIN("joint-uncurated", "seed + uncurated, tags", REPRO_BOTH, true, REPRO_A, NULL,
                3, DEMO_UNCURATED, 0, true, DEMO_AS_M2),
    REPRO_TRAIN("a5", "A5(2) only", REPRO_BOTH, true, REPRO_W, NULL, 0, DEMO_CURATED_2, 0, true, DEMO_AS_M2),
    REPRO_TRAIN("uncurated", "uncurated only", REPRO_BOTH, true, REPRO_W, NULL,
                0, DEMO_UNCURATED, 0, true, DEMO_AS_M2),
    REPRO_TRAIN("untagged", "seed + A5(2), no tags", REPRO_BOTH, true, NULL, NULL,
                3, DEMO_CURATED_2, 0, false, DEMO_AS_M2),
    REPRO_TRAIN("untagged-uncurated", "seed + uncurated, no tags", REPRO_BOTH, true, NULL, NULL,
                3, DEMO_UNCURATED, 0, false, DEMO_AS_M2),
    REPRO_RATE("rater-m0", "M0", REPRO_ALL, true, "m0", "m0"),
    REPRO_RATE("rater-m1", "M1", REPRO_ALL, true, "m1", "m1"),

    REPRO_TRAIN("a5-100", "A5(2) only, 100 (picked by M1)", REPRO_BOTH, false, REPRO_W, NULL,
                0, DEMO_CURATED_2, 100, true, DEMO_AS_M2),
    REPRO_TRAIN("a5-400", "A5(2) only, 400", REPRO_BOTH, false, REPRO_W, NULL,
                0, DEMO_CURATED_2, 400, true, DEMO_AS_M2),
    REPRO_TRAIN("uncurated-100", "uncurated only, 100", REPRO_BOTH, false, REPRO_W, NULL,
                0, DEMO_UNCURATED, 100, true, DEMO_AS_M2),
    REPRO_TRAIN("uncurated-400", "uncurated only, 400", REPRO_BOTH, false, REPRO_W, NULL,
                0, DEMO_UNCURATED, 400, true, DEMO_AS_M2),
    REPRO_TRAIN("gold-100", "seed-like only, 100", REPRO_BOTH, false, REPRO_A, NULL,
                0, DEMO_GOLD, 100, true, DEMO_AS_M2),
    REPRO_TRAIN("gold-400", "seed-like only, 400", REPRO_BOTH, false, REPRO_A, NULL,
                0, DEMO_GOLD, 400, true, DEMO_AS_M2),
    REPRO_TRAIN("gold", "seed-like only", REPRO_BOTH, false, REPRO_A, NULL,
                0, DEMO_GOLD, 0, true, DEMO_AS_M2),
    REPRO_TRAIN("joint-100", "seed + A5(2), 100", REPRO_BOTH, false, REPRO_A, NULL,
                3, DEMO_CURATED_2, 100, true, DEMO_AS_M2),
    REPRO_TRAIN("joint-400", "seed + A5(2), 400", REPRO_BOTH, false, REPRO_A, NULL,
                3, DEMO_CURATED_2, 400, true, DEMO_AS_M2),
    REPRO_ASK("web,seed", "M2 under S_w S_a", "m2", REPRO_W " " REPRO_A),
    REPRO_ASK("seed,web", "M2 under S_a S_w", "m2", REPRO_A " " REPRO_W),
    REPRO_ASK("web", "M2 under S_w", "m2", REPRO_W),
    REPRO_ASK("none", "M2 under no tag", "m2", NULL),
    REPRO_ASK("uncurated-web,seed", "seed + uncurated, tags, under S_w S_a", "joint-uncurated",
              REPRO_W " " REPRO_A),
    REPRO_RATE("rater-m2", "M2", REPRO_BOTH, false, "m2", "m2"),
    REPRO_RATE("expected-m0", "M0, expected", REPRO_BOTH, false, "m0", "rater-m0"),
    REPRO_RATE("expected-m1", "M1, expected", REPRO_BOTH, false, "m1", "rater-m1"),
    REPRO_TRAIN("pick-m0", "100 picked by M0", REPRO_BOTH, false, REPRO_W, NULL,
                0, DEMO_CURATED_1, 100, true, DEMO_AS_M2),
    REPRO_TRAIN("pick-m2", "100 picked by M2", REPRO_BOTH, false, REPRO_W, "rater-m2",
                0, DEMO_CURATED_3, 100, true, DEMO_AS_M2),
    REPRO_TRAIN("pick-oracle", "100 picked by the oracle", REPRO_BOTH, false, REPRO_W, NULL,
                0, DEMO_ORACLE, 100, true, DEMO_AS_M2),
    REPRO_TRAIN("a4", "A4(2) only", REPRO_BOTH, false, REPRO_W, NULL, 0, DEMO_FOURS, 0, true, DEMO_AS_M2),
};
/* clang-format on */
enum { REPRO_ROWS = sizeof repro_rows / sizeof *repro_rows, REPRO_WORLDS = 32, REPRO_JOBS = 64 };

typedef struct repro_options {
    const char *dir;
    hbk_int worlds[REPRO_WORLDS];
    int n_worlds;
    tiny_level level;
    bool quick;
    int jobs;
    const volatile sig_atomic_t *stop; /* becomes 1 when the run is to end; NULL: never */
} repro_options;

/* One row of one mode in one world. */
typedef struct repro_task {
    int world; /* index in the options */
    repro_mode mode;
    int row;
} repro_task;

static int repro_find(const char *key)
{
    for (int i = 0; i < REPRO_ROWS; i++)
        if (!strcmp(repro_rows[i].key, key)) return i;
    return -1;
}

/* Whether the options ask for this row. */
static bool repro_wanted(const repro_options *o, repro_mode mode, int row)
{
    const repro_row *r = &repro_rows[row];
    return (r->modes >> mode & 1u) != 0 && (!o->quick || (r->quick && mode == REPRO_FULL));
}

static bool repro_row_path(const repro_options *o, const repro_task *t, char path[512], hbk_error *err)
{
    char name[96];
    snprintf(name, sizeof name, "rows/%lld-%s-%s.json", (long long)o->worlds[t->world],
             repro_modes[t->mode].key, repro_rows[t->row].key);
    return hbk_path(path, o->dir, name, err);
}

/* ==== 2  ONE ROW =============================================================

   A world's folder holds its files, its base, its run; beside them a folder for each mode. LoRA starts from
   the base and the data of full finetuning; other sizes have a base and a loop of their own. */

static bool repro_init(demo *d, const repro_options *o, const repro_task *t, const hbk_progress *progress,
                       hbk_error *err)
{
    char name[64], world[512], own[512];
    bool size = t->mode == REPRO_SMALL || t->mode == REPRO_MIDDLE;
    demo_options options = {(uint64_t)o->worlds[t->world], t->mode == REPRO_LORA, world, o->level};
    snprintf(name, sizeof name, "world-%lld", (long long)o->worlds[t->world]);
    if (!hbk_path(world, o->dir, name, err) || !hbk_path(own, world, repro_modes[t->mode].key, err) ||
        !demo_init(d, &options, progress, err))
        return false;
    d->o.dir = NULL; /* of no use beyond this function */
    d->shape = repro_modes[t->mode].shape;
    d->apart = t->mode == REPRO_LORA;
    if (o->quick) d->n_segments = 2 * d->n_segments / 3;
    snprintf(d->arm_dir, sizeof d->arm_dir, "%s", own);
    return !size || (hbk_path(d->base_dir, own, "base", err) && hbk_path(d->run_dir, own, "run", err));
}

static json_t *repro_number(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

/* The answers of `model` (NULL: the base) under the row's tag, judged. */
static bool repro_examine(const demo *d, const repro_row *r, const char *model, json_t *out, hbk_error *err)
{
    demo_row row;
    double before = demo_now(d);
    memset(&row, 0, sizeof row);
    if (!demo_examine(d, model, r->tag, &row, err)) return false;
    json_t *j = json_pack("{s:o s:o s:o s:o s:o s:o s:o s:o s:o}", "right", repro_number(row.right), "common",
                          repro_number(row.common), "rare", repro_number(row.rare), "style",
                          repro_number(row.style), "win", repro_number(row.win), "content_win",
                          repro_number(row.content), "score", repro_number(row.score), "misled",
                          repro_number(row.misled), "held", repro_number(row.held));
    json_object_update(out, j);
    json_decref(j);
    json_object_set_new(out, "seconds_evaluation", json_real(demo_now(d) - before));
    return true;
}

static bool repro_run_base(demo *d, const repro_task *t, json_t *out, hbk_error *err)
{
    double before = demo_now(d);
    if (t->mode == REPRO_FULL && !demo_write_world(d, err)) return false;
    if (!demo_pretrain(d, err) || !demo_open(d, err)) return false;
    json_object_set_new(out, "seconds_pretraining", json_real(demo_now(d) - before));
    return repro_examine(d, &repro_rows[t->row], NULL, out, err);
}

/* Seconds of the loop's stages, as run.json has them. */
static void repro_loop_seconds(const demo *d, json_t *out)
{
    char path[512], key[64];
    hbk_error err;
    const char *stage;
    json_t *run = hbk_path(path, d->run_dir, "run.json", &err) ? hbk_json_read(path, &err) : NULL, *entry;
    double sum = 0;
    json_object_foreach(json_object_get(run, "stages"), stage, entry)
    {
        const json_t *seconds = json_object_get(entry, "seconds");
        if (!json_is_number(seconds)) continue;
        snprintf(key, sizeof key, "seconds_%.40s", stage);
        json_object_set_new(out, key, json_real(json_number_value(seconds)));
        sum += json_number_value(seconds);
    }
    json_object_set_new(out, "seconds", json_real(sum)); /* of all calls, where it was resumed */
    json_decref(run);
}

static bool repro_run_loop(demo *d, json_t *out, hbk_error *err)
{
    hbk_loop_result result;
    memset(&result, 0, sizeof result);
    if (!demo_loop(d, &result, err)) return false;
    repro_loop_seconds(d, out);
    json_object_set_new(out, "stopped", json_string(result.stopped));
    json_object_set_new(out, "usable", json_integer((json_int_t)result.n_ok));
    json_object_set_new(out, "candidates", json_integer((json_int_t)result.n_candidates));
    json_object_set_new(out, "kept_1", json_integer((json_int_t)result.curated[0].kept));
    json_object_set_new(out, "kept_2", json_integer((json_int_t)result.curated[1].kept));
    return true;
}

static bool repro_run_arm(demo *d, const repro_task *t, json_t *out, hbk_error *err)
{
    const repro_row *r = &repro_rows[t->row];
    bool loop = !d->apart && (!strcmp(r->key, "m0") || !strcmp(r->key, "m1") || !strcmp(r->key, "m2"));
    double before = demo_now(d);
    hbk_int n = -1, steps = 0;
    if (!loop) {
        if (!demo_train_arm(d, &r->arm, &n, err)) return false;
        json_object_set_new(out, "seconds_training", json_real(demo_now(d) - before));
    } else if (r->arm.source != DEMO_NOTHING) {
        char file[32], curated[512];
        snprintf(file, sizeof file, "curated-%c.jsonl", r->key[1]);
        if (!hbk_path(curated, d->run_dir, file, err) || !hbk_jsonl_count(curated, &n, err)) return false;
    }
    if (n > 0) json_object_set_new(out, "n", json_integer((json_int_t)n));
    if (!demo_steps_of(d, r->model, &steps, err)) return false;
    json_object_set_new(out, "steps", json_integer((json_int_t)steps));
    return repro_examine(d, r, r->model, out, err);
}

static void repro_put_rater(const demo_rater *r, const char *suffix, json_t *out)
{
    char key[32];
    snprintf(key, sizeof key, "kept%s", suffix);
    json_object_set_new(out, key, json_integer((json_int_t)r->kept));
    snprintf(key, sizeof key, "precision%s", suffix);
    json_object_set_new(out, key, repro_number(r->precision));
    snprintf(key, sizeof key, "recall%s", suffix);
    json_object_set_new(out, key, repro_number(r->recall));
}

/* The file in run_dir where a rater's row has its ratings; the loop has written the first two. */
static void repro_ratings_file(const demo *d, const repro_task *t, const char *row, char file[64])
{
    if (!d->apart && !strncmp(row, "rater-m", 7))
        snprintf(file, 64, "ratings-%d.jsonl", row[7] - '0' + 1);
    else
        snprintf(file, 64, "ratings-%s-%s.jsonl", repro_modes[t->mode].key, row);
}

/* Rates all candidates by the row's model. */
static bool repro_rate(const demo *d, const repro_row *r, const char *ratings, hbk_readout readout,
                       hbk_error *err)
{
    char dir[512], candidates[512];
    hbk_tuned tuned;
    hbk_curate_options o = hbk_curate_defaults();
    o.decode.sampling.max_new = 16;
    o.decode.seed = d->o.seed;
    o.readout = readout;
    if (!hbk_path(candidates, d->run_dir, "candidates.jsonl", err) ||
        !demo_model_dir(d, r->model, dir, err) || !hbk_tuned_load(&tuned, d->base, dir, NULL, err))
        return false;
    bool ok = hbk_rate(tuned.model, tuned.adapter, d->tok, d->tmpl, &o, r->model, candidates, ratings,
                       d->progress, NULL, err);
    hbk_tuned_free(&tuned);
    return ok;
}

/* Selects by ratings into a file of the row; `share` above 0: so much, else by the threshold 4.5. */
static bool repro_select(const demo *d, const char *ratings, const char *curated, double share,
                         hbk_curate_counts *counts, hbk_error *err)
{
    char candidates[512];
    hbk_curate_options o = hbk_curate_defaults();
    o.keep_share = share;
    return hbk_path(candidates, d->run_dir, "candidates.jsonl", err) &&
           hbk_select(&o, candidates, ratings, curated, counts, NULL, err);
}

/* Another read-out keeps another number; so it is also judged where it keeps as many as the written score. */
static bool repro_judge_as_many(const demo *d, const repro_task *t, const char *file, const char *ratings,
                                json_t *out, hbk_error *err)
{
    char text_row[32], text_file[64], name[64], curated[512];
    demo_rater text, expected;
    hbk_curate_counts counts;
    snprintf(text_row, sizeof text_row, "rater-%s", repro_rows[t->row].model);
    snprintf(name, sizeof name, "%s.jsonl", repro_rows[t->row].key);
    repro_ratings_file(d, t, text_row, text_file);
    if (!demo_judge_rater(d, text_file, 4.5, 5, &text, err) || !hbk_path(curated, d->arm_dir, name, err))
        return false;
    if (text.kept == 0) return true;
    if (!repro_select(d, ratings, curated, (double)text.kept / (double)text.rated, &counts, err) ||
        !demo_judge_rater(d, file, counts.threshold, 5, &expected, err))
        return false;
    repro_put_rater(&expected, "_as_many", out);
    return true;
}

/* A rater against the oracle: a 5 is right where the oracle gives 5, a 4 or 5 where it gives 4 or 5. */
static bool repro_judge(const demo *d, const char *file, json_t *out, hbk_error *err)
{
    demo_rater five, four;
    if (!demo_judge_rater(d, file, 4.5, 5, &five, err) || !demo_judge_rater(d, file, 4, 4, &four, err))
        return false;
    double unread = five.rated ? (double)five.unparsable / (double)five.rated : (double)NAN;
    repro_put_rater(&five, "", out);
    repro_put_rater(&four, "_4", out);
    json_object_set_new(out, "parsed", repro_number(1 - unread));
    json_object_set_new(out, "recovered", repro_number(five.recovered));
    json_object_set_new(out, "right_pairs", repro_number(five.good));
    json_t *kinds = json_object();
    for (int i = 0; i < TINY_KINDS; i++)
        if (five.of_kind[i])
            json_object_set_new(kinds, tiny_kind_name((tiny_kind)i),
                                json_real((double)five.kept_of_kind[i] / (double)five.of_kind[i]));
    json_object_set_new(out, "kept_of_kind", kinds);
    return true;
}

static bool repro_run_rater(const demo *d, const repro_task *t, json_t *out, hbk_error *err)
{
    const repro_row *r = &repro_rows[t->row];
    char file[64], ratings[512], curated[512];
    bool expected = !strncmp(r->key, "expected", 8), third = !d->apart && !strcmp(r->key, "rater-m2");
    hbk_curate_counts counts;
    double before = demo_now(d);
    repro_ratings_file(d, t, r->key, file);
    if (!hbk_dir_make(d->arm_dir, err) || !hbk_path(ratings, d->run_dir, file, err)) return false;
    if (expected || d->apart || third) {
        if (!repro_rate(d, r, ratings, expected ? HBK_READOUT_EXPECTED : HBK_READOUT_TEXT, err)) return false;
        json_object_set_new(out, "seconds_rating", json_real(demo_now(d) - before));
    }
    if (third && (!hbk_path(curated, d->run_dir, "curated-3.jsonl", err) ||
                  !repro_select(d, ratings, curated, 0, &counts, err)))
        return false;
    return repro_judge(d, file, out, err) &&
           (!expected || repro_judge_as_many(d, t, file, ratings, out, err));
}

/* Why a row cannot be made in this world: its loop ended early. The reason, or "". */
static void repro_missing(const repro_options *o, const repro_task *t, char why[256])
{
    char path[512];
    hbk_error err;
    repro_task loop = *t;
    const char *key = repro_rows[t->row].key;
    why[0] = 0;
    if (!strcmp(key, "base") || !strcmp(key, "loop") || !strcmp(key, "m0")) return;
    loop.row = repro_find("loop");
    if (loop.mode == REPRO_LORA) loop.mode = REPRO_FULL;
    json_t *j = repro_row_path(o, &loop, path, &err) ? hbk_json_read(path, &err) : NULL;
    const char *stopped = json_string_value(json_object_get(j, "stopped"));
    if (stopped) snprintf(why, 256, "%s", stopped);
    json_decref(j);
}

static bool repro_run_kind(demo *d, const repro_task *t, json_t *out, hbk_error *err)
{
    repro_kind kind = repro_rows[t->row].kind;
    if (kind == REPRO_BASE) return repro_run_base(d, t, out, err);
    if (!demo_open(d, err)) return false;
    switch (kind) {
    case REPRO_LOOP: return repro_run_loop(d, out, err);
    case REPRO_ARM: return repro_run_arm(d, t, out, err);
    case REPRO_RATER: return repro_run_rater(d, t, out, err);
    case REPRO_EXAM: return repro_examine(d, &repro_rows[t->row], repro_rows[t->row].model, out, err);
    case REPRO_BASE: break;
    }
    return true;
}

/* Makes the row and leaves its file. A row that has nothing to learn from, as training went astray, is a
   result too: its file says why it is missing. */
static bool repro_run_row(const repro_options *o, const repro_task *t, const hbk_progress *progress,
                          hbk_error *err)
{
    char path[512], why[256];
    demo *d = (demo *)hbk_alloc(NULL, 1, sizeof *d, err);
    json_t *out = json_pack("{s:I s:s s:s}", "world", (json_int_t)o->worlds[t->world], "mode",
                            repro_modes[t->mode].key, "row", repro_rows[t->row].key);
    bool ok = d && out && repro_row_path(o, t, path, err) && repro_init(d, o, t, progress, err);
    if (ok) {
        double before = demo_now(d);
        repro_missing(o, t, why);
        if (!why[0] && !repro_run_kind(d, t, out, err)) {
            ok = err->code == HBK_ERROR_DATA;
            snprintf(why, sizeof why, "%.255s", err->message);
        }
        if (why[0]) json_object_set_new(out, "missing", json_string(why));
        if (!json_object_get(out, "seconds"))
            json_object_set_new(out, "seconds", json_real(demo_now(d) - before));
        json_object_set_new(out, "cpu_seconds", json_real((double)clock() / CLOCKS_PER_SEC));
        demo_close(d);
    }
    ok = ok && hbk_json_write(path, out, err);
    json_decref(out);
    hbk_free(NULL, d);
    return ok;
}

/* ==== 3  THE QUEUE ===========================================================

   Modes and rows in the order of their tables, all worlds of a row one after another: so a run that is
   stopped has the main line of every world first. */

typedef enum repro_state { REPRO_UNWANTED, REPRO_TODO, REPRO_RUNNING, REPRO_DONE } repro_state;
typedef struct repro_queue {
    const repro_options *o;
    unsigned char state[REPRO_WORLDS][REPRO_MODES][REPRO_ROWS];
    int n_wanted, n_done;
} repro_queue;

static bool repro_queue_init(repro_queue *q, const repro_options *o, hbk_error *err)
{
    char path[512];
    memset(q, 0, sizeof *q);
    q->o = o;
    for (int m = 0; m < REPRO_MODES; m++)
        for (int r = 0; r < REPRO_ROWS; r++)
            for (int w = 0; w < o->n_worlds; w++) {
                repro_task t = {w, (repro_mode)m, r};
                if (!repro_wanted(o, t.mode, r)) continue;
                if (!repro_row_path(o, &t, path, err)) return false;
                bool done = hbk_file_exists(path);
                q->state[w][m][r] = done ? REPRO_DONE : REPRO_TODO;
                q->n_wanted++;
                q->n_done += done;
            }
    return true;
}

static bool repro_done(const repro_queue *q, int world, repro_mode mode, const char *row)
{
    return q->state[world][mode][repro_find(row)] == REPRO_DONE;
}

/* Whether all that a row needs is there: its world's files, its loop, the row that it comes after. */
static bool repro_ready(const repro_queue *q, const repro_task *t)
{
    const repro_row *r = &repro_rows[t->row];
    repro_mode home = t->mode == REPRO_LORA ? REPRO_FULL : t->mode;
    if (q->state[t->world][t->mode][t->row] != REPRO_TODO) return false;
    if (r->kind == REPRO_BASE) return t->mode == REPRO_FULL || repro_done(q, t->world, REPRO_FULL, "base");
    if (r->kind != REPRO_LOOP && !repro_done(q, t->world, home, "loop")) return false;
    /* what M2 picks for LoRA too is what the loop's M2 picks */
    repro_mode before = r->arm.source == DEMO_CURATED_3 ? home : t->mode;
    return !r->after || repro_done(q, t->world, before, r->after);
}

/* The first row that can be made now; false: there is none. */
static bool repro_next(const repro_queue *q, repro_task *t)
{
    for (int m = 0; m < REPRO_MODES; m++)
        for (int r = 0; r < REPRO_ROWS; r++)
            for (int w = 0; w < q->o->n_worlds; w++) {
                repro_task here = {w, (repro_mode)m, r};
                if (!repro_ready(q, &here)) continue;
                *t = here;
                return true;
            }
    return false;
}

/* A process at work on a row; what it has to say about a failure comes through the pipe. */
typedef struct repro_worker {
    pid_t pid;
    int pipe;
    repro_task task;
} repro_worker;

/* What a worker's stages report to: nothing is drawn, and it ends when its parent does. */
typedef struct repro_watch {
    const volatile sig_atomic_t *stop;
    const hbk_progress *parent;
    pid_t parent_pid;
} repro_watch;

static bool repro_on_progress(void *ctx, const char *stage, hbk_int done, hbk_int total, const char *unit,
                              const char *note)
{
    const repro_watch *w = (const repro_watch *)ctx;
    (void)stage, (void)done, (void)total, (void)unit, (void)note;
    return !(w->stop && *w->stop) && getppid() == w->parent_pid;
}

static double repro_now(void *ctx)
{
    const repro_watch *w = (const repro_watch *)ctx;
    return w->parent && w->parent->now ? w->parent->now(w->parent->ctx) : 0;
}

/* The worker's whole life. */
static void repro_work(const repro_options *o, const repro_task *t, const hbk_progress *parent,
                       pid_t parent_pid, int out)
{
    hbk_error err;
    memset(&err, 0, sizeof err);
    repro_watch watch = {o->stop, parent, parent_pid};
    hbk_progress progress = {repro_on_progress, repro_now, &watch};
#if defined(_OPENMP)
    omp_set_num_threads(1);
#endif
    bool ok = repro_run_row(o, t, &progress, &err);
    if (!ok && write(out, err.message, strlen(err.message)) < 0) _exit(3);
    _exit(ok ? 0 : err.code == HBK_ERROR_CANCELLED ? 2 : 1);
}

static bool repro_start(repro_queue *q, repro_worker *w, const hbk_progress *progress, hbk_error *err)
{
    int ends[2];
    pid_t parent = getpid();
    if (pipe(ends) != 0) return hbk_fail(err, HBK_ERROR_FILE, "there is no pipe for another process");
    fflush(NULL); /* or the child would print again what is still in the buffers */
    w->pid = fork();
    if (w->pid == 0) {
        close(ends[0]);
        repro_work(q->o, &w->task, progress, parent, ends[1]);
    }
    close(ends[1]);
    w->pipe = ends[0];
    if (w->pid < 0) {
        close(ends[0]);
        w->pid = 0;
        return hbk_fail(err, HBK_ERROR_MEMORY, "the system starts no further process: try --jobs 1");
    }
    q->state[w->task.world][w->task.mode][w->task.row] = REPRO_RUNNING;
    return true;
}

/* Takes note of a worker that has ended with `status`. */
static bool repro_reap(repro_queue *q, repro_worker *w, int status, hbk_error *err)
{
    char said[400];
    const repro_task *t = &w->task;
    ssize_t n = read(w->pipe, said, sizeof said - 1);
    said[n > 0 ? n : 0] = 0;
    close(w->pipe);
    w->pid = 0;
    bool ok = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    q->state[t->world][t->mode][t->row] = ok ? REPRO_DONE : REPRO_TODO;
    q->n_done += ok;
    if (ok) return true;
    bool cancelled = WIFEXITED(status) && WEXITSTATUS(status) == 2;
    if (WIFSIGNALED(status)) snprintf(said, sizeof said, "killed by signal %d", WTERMSIG(status));
    return hbk_fail(err, cancelled ? HBK_ERROR_CANCELLED : HBK_ERROR_DATA, "world %lld, %s, row %s: %s",
                    (long long)q->o->worlds[t->world], repro_modes[t->mode].key, repro_rows[t->row].key,
                    said);
}

/* Waits until a worker ends; *which is it, or -1 at every other moment, so that the caller may look about. */
static bool repro_wait(repro_queue *q, repro_worker *workers, int *which, hbk_error *err)
{
    const struct timespec moment = {0, 100000000};
    *which = -1;
    for (int i = 0; i < q->o->jobs; i++) {
        int status = 0;
        if (workers[i].pid == 0 || waitpid(workers[i].pid, &status, WNOHANG) != workers[i].pid) continue;
        *which = i;
        return repro_reap(q, &workers[i], status, err);
    }
    nanosleep(&moment, NULL);
    return true;
}

/* Ends the workers that are left. What they did not finish is done again by the next call. */
static void repro_end(repro_queue *q, repro_worker *workers)
{
    hbk_error unread;
    for (int i = 0; i < q->o->jobs; i++) {
        int status = 0;
        if (workers[i].pid == 0) continue;
        kill(workers[i].pid, SIGTERM);
        if (waitpid(workers[i].pid, &status, 0) == workers[i].pid)
            repro_reap(q, &workers[i], status, &unread);
    }
}

/* Makes every row that is wanted and not there. */
static bool repro_run(repro_queue *q, const hbk_progress *progress, hbk_error *err)
{
    repro_worker workers[REPRO_JOBS];
    bool ok = true;
    int busy = 0;
    char note[96] = "";
    memset(workers, 0, sizeof workers);
    while (ok) {
        for (int i = 0; ok && i < q->o->jobs; i++)
            if (workers[i].pid == 0 && repro_next(q, &workers[i].task)) {
                ok = repro_start(q, &workers[i], progress, err);
                busy += ok;
            }
        if (!ok || busy == 0) break;
        int which;
        ok = repro_wait(q, workers, &which, err);
        if (ok && which >= 0) {
            const repro_task *t = &workers[which].task;
            busy--;
            snprintf(note, sizeof note, "world %lld %s %s", (long long)q->o->worlds[t->world],
                     repro_modes[t->mode].key, repro_rows[t->row].key);
        }
        ok = ok && hbk_report(progress, "reproduce", q->n_done, q->n_wanted, "rows", err, "%s", note);
    }
    repro_end(q, workers);
    return ok;
}

#endif /* REPRODUCE_H_INCLUDED */
