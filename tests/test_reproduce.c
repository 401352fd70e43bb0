/* `humpback reproduce`: that the rule, the differences and the slopes are what they say, that a second call
   makes only what is missing, and that tables, figures and the page hold what the rows hold. No model is
   trained here: the rows are made up, of figures whose differences are known. */
#include "../tools/findings.h"

static repro_options trp_options(const char *dir, int n_worlds, bool quick)
{
    repro_options o;
    memset(&o, 0, sizeof o);
    o.dir = dir;
    o.n_worlds = n_worlds;
    for (int i = 0; i < n_worlds; i++) o.worlds[i] = 10 + i;
    o.quick = quick;
    o.jobs = 2;
    return o;
}

/* Right answers of a made-up row: M2 is 20, 21, 22 ... points above M0, curated data gains 4 points per ln N,
   uncurated none, LoRA is 2 points below full finetuning; the rest is alike. */
static double trp_right(const repro_options *o, const repro_task *t)
{
    const char *key = repro_rows[t->row].key;
    double right = 50 + (double)o->worlds[t->world], n = 1600;
    if (!strcmp(key, "m0")) right -= 20 + t->world;
    if (strstr(key, "-100")) n = 100;
    if (strstr(key, "-400")) n = 400;
    if (!strncmp(key, "a5", 2)) right += 4 * log(n / 1600);
    if (t->mode == REPRO_LORA) right -= 2;
    return right / 100;
}

static void trp_write_row(const repro_options *o, const repro_task *t, const char *missing)
{
    char path[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    const char *key = repro_rows[t->row].key;
    double n = strstr(key, "-100") ? 100 : strstr(key, "-400") ? 400 : 1600;
    json_t *j = json_pack("{s:I s:s s:s s:f}", "world", (json_int_t)o->worlds[t->world], "mode",
                          repro_modes[t->mode].key, "row", key, "seconds", 2.0);
    if (missing) {
        json_object_set_new(j, "missing", json_string(missing));
    } else if (repro_rows[t->row].kind == REPRO_RATER) {
        json_object_set_new(j, "precision", json_real(0.6));
        json_object_set_new(j, "recall", json_real(strcmp(key, "rater-m0") ? 0.9 : 0.5));
        json_object_set_new(j, "kept", json_integer(1600));
        json_object_set_new(j, "parsed", json_real(1));
        json_object_set_new(j, "kept_of_kind", json_pack("{s:f s:f}", "good", 0.995, "glue", 0.25));
    } else if (repro_rows[t->row].kind != REPRO_LOOP) {
        json_object_set_new(j, "right", json_real(trp_right(o, t)));
        json_object_set_new(j, "win", json_real(0.5));
        json_object_set_new(j, "n", json_real(n));
    }
    check_ok(repro_row_path(o, t, path, &err) && hbk_file_write(path, "", 0, &err)); /* the folder is there */
    check_ok(hbk_json_write(path, j, &err));
    json_decref(j);
}

/* Every row that the options ask for. */
static void trp_write_rows(const repro_options *o)
{
    char rows[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    check_ok(hbk_path(rows, o->dir, "rows", &err) && hbk_dir_make(rows, &err));
    for (int m = 0; m < REPRO_MODES; m++)
        for (int r = 0; r < REPRO_ROWS; r++)
            for (int w = 0; w < o->n_worlds; w++) {
                repro_task t = {w, (repro_mode)m, r};
                if (repro_wanted(o, t.mode, r)) trp_write_row(o, &t, NULL);
            }
}

/* Fails unless there is nothing left to make; what was would train for minutes. */
static void trp_all_there(const repro_options *o)
{
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    repro_queue *q = (repro_queue *)calloc(1, sizeof *q);
    assert_non_null(q);
    check_ok(repro_queue_init(q, o, &err));
    assert_int_equal(q->n_done, q->n_wanted);
    free(q);
}

static void trp_read(const char *dir, const char *name, hbk_text *out)
{
    char path[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    memset(out, 0, sizeof *out);
    check_ok(hbk_path(path, dir, name, &err) && hbk_file_read(path, 1 << 24, out, &err));
}

static void trp_holds(const char *dir, const char *name, const char *part)
{
    hbk_text text;
    trp_read(dir, name, &text);
    if (!strstr(hbk_text_string(&text), part)) fail_msg("%s lacks: %s", name, part);
    hbk_text_free(&text);
}

static repro_verdict trp_judge(double a, double b, double c, int sign)
{
    const double x[] = {a, b, c};
    hbk_summary s = hbk_summarize(x, 3);
    return repro_judge_summary(&s, sign);
}

/* Promise: the verdict is that of the interval. Three values with deviation 1 have the half-width
   4.303 / sqrt 3 = 2.484: means beyond it are clear of zero, on the paper's side or the other. */
static void trp_rule(void **state)
{
    (void)state;
    assert_int_equal(trp_judge(1.4, 2.4, 3.4, 1), REPRO_UNDECIDED);
    assert_int_equal(trp_judge(1.5, 2.5, 3.5, 1), REPRO_REPRODUCED);
    assert_int_equal(trp_judge(1.5, 2.5, 3.5, -1), REPRO_NOT);
    assert_int_equal(trp_judge(-1.5, -2.5, -3.5, 1), REPRO_NOT);
    assert_int_equal(trp_judge(-1.5, -2.5, -3.5, -1), REPRO_REPRODUCED);
    assert_int_equal(trp_judge(-1, 0, 1, 1), REPRO_UNDECIDED);
    const double one[] = {50};
    hbk_summary s = hbk_summarize(one, 1);
    assert_int_equal(repro_judge_summary(&s, 1), REPRO_UNDECIDED); /* one world proves nothing */
    s = hbk_summarize(one, 0);
    assert_int_equal(repro_judge_summary(&s, 1), REPRO_UNDECIDED);
}

/* The object of a finding in table.json. */
static json_t *trp_finding(const json_t *all, const char *text, const char *mode)
{
    const json_t *list = json_object_get(all, "findings");
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_t *f = json_array_get(list, i);
        if (strstr(json_string_value(json_object_get(f, "text")), text) &&
            !strcmp(json_string_value(json_object_get(f, "mode")), mode))
            return f;
    }
    fail_msg("no finding \"%s\"", text);
    return NULL;
}

static void trp_check(const json_t *all, const char *text, const char *mode, double difference,
                      double half_width, const char *verdict)
{
    const json_t *f = trp_finding(all, text, mode);
    check_near(json_number_value(json_object_get(f, "difference")), difference, 1e-6);
    check_near(json_number_value(json_object_get(f, "half_width")), half_width, 1e-3);
    assert_string_equal(json_string_value(json_object_get(f, "verdict")), verdict);
}

/* Promise: differences are paired over the worlds, slopes are those per ln N, recall is in points, and
   Markdown, JSON, figures, page and screen say the same. With every row there nothing is trained. */
static void trp_tables(void **state)
{
    (void)state;
    char dir[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    hbk_text lines;
    json_t *all = NULL;
    memset(&lines, 0, sizeof lines);
    test_tmp(dir, "reproduce");
    repro_options o = trp_options(dir, 3, false);
    trp_write_rows(&o);
    trp_all_there(&o);
    check_ok(tool_reproduce(&o, NULL, &lines, &all, &err));
    trp_check(all, "beats seed only (M2 - M0)", "full", 21, 2.484, "reproduced");
    trp_check(all, "beats seed only (M2 - M0)", "lora", 21, 2.484, "reproduced");
    trp_check(all, "curated data gains with N", "full", 4, 0, "reproduced");
    trp_check(all, "uncurated data gains nothing", "full", 0, 0, "undecided");
    trp_check(all, "better than M0: recall", "full", 40, 0, "reproduced");
    trp_check(all, "M2 - M1", "full", 0, 0, "undecided");
    trp_check(all, "the same at N = 400", "full", 4 * log(0.25), 0, "not reproduced");
    assert_int_equal(json_array_size(json_object_get(trp_finding(all, "M2 - M1", "lora"), "values")), 3);
    assert_non_null(strstr(hbk_text_string(&lines),
                           "a) seed + curated beats seed only (M2 - M0): +21.0 +- 2.5: reproduced   ["));
    assert_non_null(strstr(hbk_text_string(&lines), "M2, LoRA - full: -2.0 +- 0.0: within 3 points: yes"));
    trp_holds(dir, "table.md",
              "| a) seed + curated beats seed only (M2 - M0) | +21.0 +- 2.5 | 20.0, 21.0, 22.0 |");
    trp_holds(dir, "table.md", "| curated | full finetuning | 4.00 +- 0.00 |");
    trp_holds(dir, "table.md", "| M2 | LoRA | 99.5 | - | - | - | 25.0 |");
    trp_holds(dir, "table.json", "\"verdict\": \"reproduced\"");
    trp_holds(dir, "report.html", "<td class=\"w\">a) seed + curated beats seed only (M2 - M0)</td>");
    trp_holds(dir, "figures/scaling.dat", "# uncurated\n100 61.00 2.48\n400 61.00 2.48\n1600 61.00 2.48\n");
    trp_holds(dir, "figures/tags.dat", "\"S_a S_w\" 61.00 2.48\n");
    trp_holds(dir, "figures/sizes.gp", "'sizes.dat' index 2");
    hbk_text_free(&lines);
    tr_page(&lines, dir);
    tr_check_balance(hbk_text_string(&lines));
    json_decref(all);
    hbk_text_free(&lines);
}

/* Promise: a world that lacks one side of a finding is left out of it, and the row is listed with its reason;
   without gnuplot there are the data files, and it is said. */
static void trp_missing(void **state)
{
    (void)state;
    char dir[512], path[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    hbk_text lines;
    json_t *all = NULL;
    memset(&lines, 0, sizeof lines);
    test_tmp(dir, "reproduce-missing");
    repro_options o = trp_options(dir, 3, true);
    trp_write_rows(&o);
    repro_task t = {1, REPRO_FULL, repro_find("m2")};
    trp_write_row(&o, &t, "curation 1 | kept none");
    const char *old = getenv("PATH");
    char *kept = old ? strdup(old) : NULL;
    setenv("PATH", "/nonexistent", 1);
    trp_all_there(&o);
    check_ok(tool_reproduce(&o, NULL, &lines, &all, &err));
    if (kept) setenv("PATH", kept, 1);
    free(kept);
    trp_check(all, "beats seed only (M2 - M0)", "full", 21, 12.706, "reproduced"); /* of 20 and 22 */
    const json_t *of = json_object_get(trp_finding(all, "M2 - M0", "full"), "worlds"); /* 10 and 12 */
    assert_int_equal(json_array_size(json_object_get(trp_finding(all, "M2 - M0", "full"), "values")), 2);
    assert_int_equal(json_array_size(of), 2);
    assert_int_equal(json_integer_value(json_array_get(of, 1)), 12);
    trp_holds(dir, "table.md", "| 20.0, 22.0 (2 of 3 worlds) |");
    trp_holds(dir, "table.md", "| 11 | full finetuning | m2 | curation 1 \\| kept none |");
    trp_holds(dir, "table.md", "QUICK: ");
    trp_holds(dir, "report.html", "gnuplot is not there");
    assert_non_null(strstr(hbk_text_string(&lines), "no gnuplot: "));
    assert_null(strstr(hbk_text_string(&lines), "with LoRA"));
    check_ok(hbk_path(path, dir, "figures/joint.svg", &err));
    assert_false(hbk_file_exists(path));
    trp_holds(dir, "figures/joint.dat", "# seed + curated\n");
    json_decref(all);
    hbk_text_free(&lines);
}

/* Promise: a folder that was begun with other worlds or another size is refused, naming what differs. */
static void trp_other_options(void **state)
{
    (void)state;
    char dir[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    test_tmp(dir, "reproduce-options");
    repro_options o = trp_options(dir, 3, true);
    check_ok(repro_check_folder(&o, &err));
    check_ok(repro_check_folder(&o, &err));
    o.jobs = 7; /* how the rows are made is no part of what they are */
    check_ok(repro_check_folder(&o, &err));
    o.n_worlds = 2;
    check_error(repro_check_folder(&o, &err), HBK_ERROR_OPTION, "worlds [10,11,12], not [10,11]");
    o = trp_options(dir, 3, false);
    check_error(repro_check_folder(&o, &err), HBK_ERROR_OPTION, "quick true, not false");
    o.quick = true;
    o.level = TINY_HARD;
    check_error(repro_check_folder(&o, &err), HBK_ERROR_OPTION, "world \"plain\", not \"hard\"");
}

/* Marks a row as made. */
static void trp_done(repro_queue *q, int world, repro_mode mode, const char *key)
{
    q->state[world][mode][repro_find(key)] = REPRO_DONE;
}

static void trp_next(const repro_queue *q, int world, repro_mode mode, const char *key)
{
    repro_task t;
    assert_true(repro_next(q, &t));
    assert_string_equal(repro_rows[t.row].key, key);
    assert_int_equal(t.mode, mode);
    assert_int_equal(t.world, world);
}

/* Promise: rows come in the order of the tables when what they need is there, and never again once they are
   there; what is being made is not begun twice. */
static void trp_queue(void **state)
{
    (void)state;
    char dir[512], rows[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    repro_queue *q = (repro_queue *)calloc(1, sizeof *q);
    repro_task t;
    assert_non_null(q);
    test_tmp(dir, "reproduce-queue");
    repro_options o = trp_options(dir, 2, false);
    check_ok(hbk_path(rows, dir, "rows", &err) && hbk_dir_make(rows, &err));
    check_ok(repro_queue_init(q, &o, &err));
    assert_int_equal(q->n_done, 0);
    trp_next(q, 0, REPRO_FULL, "base");
    q->state[0][REPRO_FULL][0] = REPRO_RUNNING;
    trp_next(q, 1, REPRO_FULL, "base");
    trp_done(q, 1, REPRO_FULL, "base");
    trp_next(q, 1, REPRO_FULL, "loop");
    trp_done(q, 0, REPRO_FULL, "base");
    q->state[0][REPRO_FULL][1] = q->state[1][REPRO_FULL][1] = REPRO_RUNNING;
    trp_next(q, 0, REPRO_SMALL, "base"); /* other sizes need the world's files only */
    trp_done(q, 0, REPRO_FULL, "loop");
    trp_next(q, 0, REPRO_FULL, "m0");
    for (int m = 0; m < REPRO_MODES; m++) /* all but what waits for M2's ratings */
        for (int r = 0; r < REPRO_ROWS; r++) q->state[0][m][r] = q->state[1][m][r] = REPRO_DONE;
    q->state[0][REPRO_FULL][repro_find("rater-m2")] = REPRO_RUNNING;
    q->state[0][REPRO_LORA][repro_find("pick-m2")] = REPRO_TODO;
    assert_false(repro_next(q, &t));
    trp_done(q, 0, REPRO_FULL, "rater-m2");
    trp_next(q, 0, REPRO_LORA, "pick-m2");

    trp_write_rows(&o); /* a second call: all is there but one */
    repro_task gone = {1, REPRO_LORA, repro_find("m2")};
    char path[512];
    check_ok(repro_row_path(&o, &gone, path, &err));
    assert_int_equal(remove(path), 0);
    check_ok(repro_queue_init(q, &o, &err));
    assert_int_equal(q->n_done, q->n_wanted - 1);
    trp_next(q, 1, REPRO_LORA, "m2");
    free(q);
}

/* A row that cannot be made (its world has no files): the failure names world, mode, row and file, comes from
   the process that made it, and leaves no row behind. */
static void trp_failing(void **state)
{
    (void)state;
    char dir[512], path[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    hbk_text lines;
    memset(&lines, 0, sizeof lines);
    test_tmp(dir, "reproduce-failing");
    repro_options o = trp_options(dir, 1, true);
    trp_write_rows(&o);
    trp_all_there(&o);
    repro_task t = {0, REPRO_FULL, repro_find("a5")};
    check_ok(repro_row_path(&o, &t, path, &err));
    assert_int_equal(remove(path), 0);
    check_error(tool_reproduce(&o, NULL, &lines, NULL, &err), HBK_ERROR_DATA, "world 10, full, row a5: ");
    assert_non_null(strstr(err.message, "world-10/base"));
    assert_false(hbk_file_exists(path));
    hbk_text_free(&lines);
}

static void trp_why(const repro_options *o, repro_mode mode, const char *key, const char *expected)
{
    char why[256];
    repro_task t = {0, mode, repro_find(key)};
    repro_missing(o, &t, why);
    assert_string_equal(why, expected);
}

/* Promise: a row whose training went astray does not end the run: what needs it is missing for its reason,
   what does not is made. LoRA needs the base and the loop of full finetuning, other sizes have their own. */
static void trp_astray(void **state)
{
    (void)state;
    char dir[512];
    test_tmp(dir, "reproduce-astray");
    repro_options o = trp_options(dir, 1, false);
    trp_write_rows(&o);
    repro_task m2 = {0, REPRO_LORA, repro_find("m2")}, loop = {0, REPRO_SMALL, repro_find("loop")};
    trp_write_row(&o, &m2, "no numbers");
    trp_why(&o, REPRO_LORA, "m0-long", "without the row m2: no numbers");
    trp_why(&o, REPRO_LORA, "seed,web", "without the row m2: no numbers");
    trp_why(&o, REPRO_LORA, "a5", "");
    trp_why(&o, REPRO_LORA, "pick-m2", ""); /* by the other M2 */
    trp_why(&o, REPRO_FULL, "m0-long", "");
    trp_write_row(&o, &loop, "no numbers");
    trp_why(&o, REPRO_SMALL, "m0", "without the row loop: no numbers");
    trp_why(&o, REPRO_MIDDLE, "m0", "");
    trp_why(&o, REPRO_LORA, "m0", "");
    trp_why(&o, REPRO_SMALL, "loop", "");
    loop.mode = REPRO_FULL;
    trp_write_row(&o, &loop, "no numbers");
    trp_why(&o, REPRO_LORA, "m0", "without the row loop: no numbers");
    json_t *stopped = json_pack("{s:s}", "stopped", "kept none");
    char path[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    check_ok(repro_row_path(&o, &loop, path, &err) && hbk_json_write(path, stopped, &err));
    json_decref(stopped);
    trp_why(&o, REPRO_LORA, "m1", "kept none");
    trp_why(&o, REPRO_LORA, "m0", ""); /* came before */
    trp_why(&o, REPRO_FULL, "base", "");
}

/* The pairs 0 .. n-1 of a source, as demo_draw leaves them. */
static void trp_draw(const demo *d, demo_source source, hbk_int all, hbk_int n, hbk_pairs *out)
{
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    memset(out, 0, sizeof *out);
    for (hbk_int i = 0; i < all; i++) {
        char id[32];
        snprintf(id, sizeof id, "p-%d", (int)i);
        check_ok(hbk_pairs_add(out, id, "x", "y", "aug", (double)NAN, &err));
    }
    check_ok(demo_draw(d, source, out, n, &err));
}

/* Promise: a draw depends on the world and on its source alone; smaller draws are parts of larger ones; all
   that there is stays in its order. */
static void trp_draws(void **state)
{
    (void)state;
    demo *d = (demo *)calloc(1, sizeof *d);
    hbk_pairs small, large, other, whole;
    int same = 0;
    assert_non_null(d);
    d->o.seed = 10;
    trp_draw(d, DEMO_CURATED_2, 200, 20, &small);
    trp_draw(d, DEMO_CURATED_2, 200, 60, &large);
    trp_draw(d, DEMO_UNCURATED, 200, 60, &other);
    trp_draw(d, DEMO_CURATED_2, 200, 200, &whole);
    assert_int_equal(small.n, 20);
    assert_int_equal(large.n, 60);
    for (hbk_int i = 0; i < 20; i++) assert_string_equal(small.data[i].id, large.data[i].id);
    for (hbk_int i = 0; i < 60; i++) same += !strcmp(other.data[i].id, large.data[i].id);
    assert_true(same < 6);
    for (hbk_int i = 0; i < 200; i++) assert_int_equal(tiny_index(whole.data[i].id), i);
    hbk_pairs_free(&small);
    hbk_pairs_free(&large);
    hbk_pairs_free(&other);
    hbk_pairs_free(&whole);
    free(d);
    (void)tool_demo; /* its table is not under test */
}

static const struct CMUnitTest tests_reproduce[] = {
    cmocka_unit_test(trp_rule),          cmocka_unit_test(trp_tables), cmocka_unit_test(trp_missing),
    cmocka_unit_test(trp_other_options), cmocka_unit_test(trp_queue),  cmocka_unit_test(trp_failing),
    cmocka_unit_test(trp_astray),        cmocka_unit_test(trp_draws),
};
