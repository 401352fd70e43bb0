/* The report: that its numbers are those of the run folder, that the page is well-formed and harmless
   whatever a model wrote, and that a folder of a run that ended early has its report too. */
#include "../tools/report.h"
#include "../tools/curve.h"

static void tr_write(const char *dir, const char *name, const char *content)
{
    char path[512], folder[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    check_ok(hbk_path(path, dir, name, &err));
    snprintf(folder, sizeof folder, "%s", path);
    *strrchr(folder, '/') = 0;
    check_ok(hbk_dir_make(folder, &err));
    check_ok(hbk_file_write(path, content, strlen(content), &err));
}

/* A finished run of one iteration: 2 seed pairs, 4 segments, 3 usable candidates, of which 1 is kept. */
static void tr_folder(char dir[512], const char *name)
{
    test_tmp(dir, name);
    tr_write(dir, "run.json",
             "{\"humpback\":\"9.8.7\","
             "\"options\":{\"iterations\":1,\"keep\":4.5,\"tag\":\"<b>\\\"&'\",\"none\":null},"
             "\"inputs\":{\"seed\":{\"path\":\"pairs.jsonl\",\"hash\":\"00ff\"},\"replay\":null},"
             "\"stages\":{\"candidates\":{\"rows\":4,\"seconds\":90.0},\"curated-1\":{\"threshold\":4.5}},"
             "\"stopped\":\"\"}");
    tr_write(dir, "segments.jsonl", "{\"id\":\"a\",\"text\":\"aaaa\"}\n{\"id\":\"b\",\"text\":\"bb\"}\n"
                                    "{\"id\":\"c\",\"text\":\"cccc\"}\n{\"id\":\"d\",\"text\":\"dd\"}\n");
    tr_write(dir, "seed.jsonl",
             "{\"id\":\"s1\",\"instruction\":\"12345\",\"output\":\"\xc3\xa9\xc3\xa9\",\"source\":\"seed\"}\n"
             "{\"id\":\"s2\",\"instruction\":\"123\",\"output\":\"1234\",\"source\":\"seed\"}\n");
    tr_write(dir, "candidates.jsonl",
             "{\"id\":\"a\",\"instruction\":\"say <script>alert(1)</script> & go\",\"output\":\"aaaa\","
             "\"status\":\"ok\"}\n"
             "{\"id\":\"b\",\"instruction\":\"ask b\",\"output\":\"bb\\u0000\\u0007\",\"status\":\"ok\"}\n"
             "{\"id\":\"c\",\"instruction\":\"\",\"output\":\"cccc\",\"status\":\"empty\"}\n"
             "{\"id\":\"d\",\"instruction\":\"ask d\",\"output\":\"dd\",\"status\":\"ok\"}\n");
    tr_write(dir, "ratings-1.jsonl",
             "{\"id\":\"a\",\"score\":5,\"status\":\"ok\",\"text\":\"</dd>fine. Score: 5\"}\n"
             "{\"id\":\"b\",\"score\":2.4,\"status\":\"ok\",\"readout\":\"text\",\"text\":\"2.4\"}\n"
             "{\"id\":\"d\",\"score\":null,\"status\":\"unparsable\",\"text\":\"no\"}\n");
    tr_write(dir, "curated-1.jsonl",
             "{\"id\":\"a\",\"instruction\":\"say\",\"output\":\"aaaa\",\"score\":5.0}\n");
    tr_write(dir, "myx/metrics.jsonl", "{\"step\":1,\"loss\":4.0,\"tokens\":10}\n"
                                       "{\"step\":2,\"loss\":2.0,\"tokens\":30}\n");
    tr_write(dir, "myx/timings.jsonl", "{\"step\":1,\"seconds\":1.0,\"tokens_per_s\":10}\n"
                                       "{\"step\":2,\"seconds\":3.0,\"tokens_per_s\":10}\n");
    tr_write(dir, "m0/metrics.jsonl", "{\"step\":1,\"loss\":3.0,\"tokens\":7}\n");
    tr_write(dir, "m1/metrics.jsonl", "{\"step\":1,\"loss\":1.5,\"tokens\":7}\n");
    tr_write(dir, "myx/humpback.json", "{}");
    tr_write(dir, "m0/humpback.json", "{}");
    tr_write(dir, "m1/humpback.json", "{}");
}

static json_t *tr_numbers(const char *dir)
{
    char path[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    check_ok(hbk_path(path, dir, "report.json", &err));
    json_t *report = hbk_json_read(path, &err);
    if (!report) fail_msg("%s", err.message);
    return report;
}

static void tr_page(hbk_text *html, const char *dir)
{
    char path[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    check_ok(hbk_path(path, dir, "report.html", &err));
    check_ok(hbk_file_read(path, 1 << 22, html, &err));
}

/* The number at a path such as "candidates.status.ok" or "curations.0.kept"; fails if there is none. */
static double tr_at(const json_t *value, const char *path)
{
    char part[64];
    for (const char *p = path; value && *p;) {
        size_t n = strcspn(p, ".");
        snprintf(part, sizeof part, "%.*s", (int)n, p);
        value = json_is_array(value) ? json_array_get(value, (size_t)atoi(part))
                                     : json_object_get(value, part);
        p += n + (p[n] == '.');
    }
    if (!json_is_number(value) && !json_is_boolean(value)) fail_msg("report.json has no number %s", path);
    return json_is_boolean(value) ? json_is_true(value) : json_number_value(value);
}

/* Fails unless every element is closed in the order in which it was opened, and attributes are quoted. */
static void tr_check_balance(const char *html)
{
    char open[64][16];
    int depth = 0;
    for (const char *p = strchr(html, '<'); p; p = strchr(p + 1, '<')) {
        const char *end = strchr(p, '>');
        if (!end) fail_msg("an element without its end: %.40s", p);
        if (p[1] == '!') continue;
        if (memchr(p + 1, '<', (size_t)(end - p - 1))) fail_msg("a tag within a tag: %.40s", p);
        int quotes = 0;
        for (const char *q = p; q < end; q++) quotes += *q == '"';
        if (quotes % 2) fail_msg("an open quote: %.*s", (int)(end - p), p);
        char name[16];
        size_t n = strcspn(p + 1 + (p[1] == '/'), " />");
        snprintf(name, sizeof name, "%.*s", (int)(n < 15 ? n : 15), p + 1 + (p[1] == '/'));
        if (p[1] == '/') {
            if (depth == 0 || strcmp(open[depth - 1], name) != 0)
                fail_msg("</%s> closes <%s>", name, depth ? open[depth - 1] : "nothing");
            depth--;
        } else if (end[-1] != '/') {
            assert_true(depth < 64);
            memcpy(open[depth++], name, sizeof name);
        }
    }
    if (depth) fail_msg("<%s> is never closed", open[depth - 1]);
}

/* Promise: report.json counts what the files of the folder hold. */
static void tr_counts(void **state)
{
    (void)state;
    char dir[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    static const struct { const char *path; double value; } expected[] = {
        {"complete", 1}, {"segments.rows", 4}, {"segments.text.mean", 3}, {"candidates.rows", 4},
        {"candidates.ok", 3}, {"candidates.status.empty", 1}, {"candidates.status.leak", 0},
        {"sets.0.examples", 2}, {"sets.0.instruction.mean", 4},
        {"sets.0.instruction.deviation", 1.41421356}, {"sets.0.output.mean", 3}, {"sets.1.examples", 1},
        {"sets.2.examples", 4}, {"sets.2.output.mean", 3.5}, {"curations.0.rows", 3},
        {"curations.0.rated", 2}, {"curations.0.parse_rate", 2 / 3.0},
        {"curations.0.status.unparsable", 1}, {"curations.0.mean_score", 3.7},
        {"curations.0.histogram.1", 1}, {"curations.0.histogram.4", 1}, {"curations.0.kept", 1},
        {"curations.0.kept_histogram.4", 1}, {"curations.0.kept_histogram.1", 0},
        {"curations.0.threshold", 4.5}, {"curations.0.collapsed", 0}, {"models.0.steps", 2},
        {"models.0.tokens", 40}, {"models.0.loss_first", 4}, {"models.0.loss_last", 2},
        {"models.0.seconds", 4}, {"models.0.tokens_per_s", 10}, {"models.0.curve.1.0", 2},
        {"models.0.curve.1.1", 2}, {"models.2.loss_last", 1.5}, {"stages.0.seconds", 4},
        {"stages.1.seconds", 90}, {"stages.4.n", 1}, {"options.keep", 4.5}, {"examples.0.score", 5}};
    tr_folder(dir, "report-counts");
    check_ok(tool_report(dir, NULL, &err));
    json_t *report = tr_numbers(dir);
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        double value = tr_at(report, expected[i].path);
        if (!is_near(value, expected[i].value, 1e-8))
            fail_msg("%s is %g, expected %g", expected[i].path, value, expected[i].value);
    }
    assert_string_equal(report_string(report, "humpback"), "9.8.7");
    assert_string_equal(report_string(report, "verdict"),
                        "From 2 seed pairs and 4 segments the loop wrote 3 usable instructions, of which it "
                        "kept 1, and ended with M1.");
    assert_int_equal(json_array_size(json_object_get(report, "warnings")), 0);
    assert_int_equal(json_array_size(json_object_get(report, "examples")), 2); /* none is shown twice */
    json_decref(report);
}

/* Promise: the page is well-formed, fetches nothing, runs nothing, and shows text of models as text. */
static void tr_harmless(void **state)
{
    (void)state;
    char dir[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    hbk_text html = {NULL, NULL, 0, 0, false};
    tr_folder(dir, "report-harmless");
    tr_write(dir, "extra.json",
             "{\"title\":\"<i>Title</i>\",\"notes\":[\"a < b\"],"
             "\"tables\":[{\"title\":\"T&T\",\"columns\":[\"Model<\",\"Right\"],"
             "\"rows\":[[\"<img src=x>\",0.5],[\"M1\",0.125],[\"M2\",null],[\"M3\"]],\"bar\":1,"
             "\"note\":\"\\\"\"}]}");
    check_ok(tool_report(dir, NULL, &err));
    tr_page(&html, dir);
    assert_int_equal(strlen(hbk_text_string(&html)), html.len); /* a NUL in a text did not end the page */
    tr_check_balance(hbk_text_string(&html));
    static const char *const present[] = {
        "say &lt;script&gt;alert(1)&lt;/script&gt; &amp; go", "&lt;/dd&gt;fine.", "bb&#65533;&#65533;",
        "&lt;b&gt;&quot;&amp;&#39;", "&lt;i&gt;Title", "T&amp;T", "&lt;img src=x&gt;", ">0.500<", ">0.125<",
        "width:100.0%"};
    static const char *const absent[] = {"<script", "<img", "<i>Title", "http:",
                                         "https:",  "@import", "url(h"};
    for (size_t i = 0; i < sizeof present / sizeof present[0]; i++)
        if (!strstr(html.data, present[i])) fail_msg("the page lacks %s", present[i]);
    for (size_t i = 0; i < sizeof absent / sizeof absent[0]; i++)
        if (strstr(html.data, absent[i])) fail_msg("the page holds %s", absent[i]);
    hbk_text_free(&html);
}

/* Promise: a run that ended early has a report without the parts that are not there, the reason on top. */
static void tr_stopped(void **state)
{
    (void)state;
    char dir[512], page[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    hbk_text html = {NULL, NULL, 0, 0, false};
    test_tmp(dir, "report-stopped");
    tr_write(dir, "run.json", "{\"stages\":{},\"stopped\":\"the <lights> went out\"}");
    check_ok(tool_report(dir, NULL, &err));
    tr_page(&html, dir);
    tr_check_balance(hbk_text_string(&html));
    if (!strstr(html.data, "Stopped early (the &lt;lights&gt; went out): no instruction has been written"))
        fail_msg("the reason is not on the page");
    static const char *const parts[] = {"loss",     "scores", "lengths", "status",
                                        "examples", "times",  "options"};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        char id[32];
        snprintf(id, sizeof id, "id=\"%s\"", parts[i]);
        if (strstr(html.data, id)) fail_msg("the part %s is on the page, without data", parts[i]);
    }
    json_t *report = tr_numbers(dir);
    assert_true(tr_at(report, "complete") == 0);
    assert_null(json_object_get(report, "candidates"));
    json_decref(report);
    hbk_text_free(&html);

    test_tmp(page, "report-elsewhere.html");
    check_ok(tool_report(dir, page, &err));
    assert_true(hbk_file_exists(page));
}

/* Promise: of a run in the middle the report names the last stage; a torn last line is no row, and a broken
   one inside is an error with its place. */
static void tr_unfinished(void **state)
{
    (void)state;
    char dir[512], gone[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    tr_folder(dir, "report-unfinished");
    tr_write(dir, "candidates.jsonl",
             "{\"id\":\"a\",\"instruction\":\"x\",\"output\":\"y\",\"status\":\"ok\"}\n"
             "{\"id\":\"b\",\"instr");
    static const char *const later[] = {"ratings-1.jsonl", "curated-1.jsonl", "m1/metrics.jsonl",
                                        "m0/metrics.jsonl", "m1/humpback.json"};
    for (size_t i = 0; i < sizeof later / sizeof later[0]; i++) {
        check_ok(hbk_path(gone, dir, later[i], &err));
        assert_int_equal(unlink(gone), 0);
    }
    check_ok(tool_report(dir, NULL, &err));
    json_t *report = tr_numbers(dir);
    assert_true(tr_at(report, "candidates.rows") == 1);
    assert_string_equal(report_string(report, "verdict"),
                        "Not finished: from 2 seed pairs and 4 segments the loop wrote 1 usable instruction; "
                        "the last stage with a file is candidates, and the same command goes on from there.");
    json_decref(report);
    tr_write(dir, "candidates.jsonl", "{\"id\":\"a\"}\n{\"id\":\n{\"id\":\"c\"}\n");
    check_error(tool_report(dir, NULL, &err), HBK_ERROR_FORMAT, "candidates.jsonl:2:");
    test_tmp(dir, "report-nowhere");
    check_error(tool_report(dir, NULL, &err), HBK_ERROR_FILE, "run.json: is not there");
}

/* Promise: a rater that keeps nearly all, or of which little can be read, is warned of. */
static void tr_collapsed(void **state)
{
    (void)state;
    char dir[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    tr_folder(dir, "report-collapsed");
    tr_write(dir, "ratings-1.jsonl",
             "{\"id\":\"a\",\"score\":null,\"status\":\"unparsable\",\"text\":\"\"}\n"
             "{\"id\":\"b\",\"score\":null,\"status\":\"truncated\",\"text\":\"\"}\n");
    tr_write(dir, "curated-1.jsonl", "");
    check_ok(tool_report(dir, NULL, &err));
    json_t *report = tr_numbers(dir), *warnings = json_object_get(report, "warnings");
    assert_true(tr_at(report, "curations.0.collapsed") == 1);
    assert_int_equal(json_array_size(warnings), 2);
    assert_non_null(strstr(json_string_value(json_array_get(warnings, 0)), "0 of 2 pairs were kept"));
    assert_non_null(strstr(json_string_value(json_array_get(warnings, 1)), "Only 0.0 %"));
    json_decref(report);
}

/* Promise: where no rating was asked for none is missed and nothing warns of it, a threshold has the name of
   its signal, and pairs chosen by several signals have none; every fate of a candidate is counted, from 0. */
static void tr_signals(void **state)
{
    (void)state;
    static const char *const says[] = {"\"signals\":2},\"stages\":{\"curated-1\":{\"threshold\":0.8}}}",
                                       "\"signals\":3},\"stages\":{\"curated-1\":{\"threshold\":null}}}"};
    static const char *const unrated[] = {"without a rating", "2 measured", ": IFD 0.8 and above"};
    char dir[512], run[256];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    for (int several = 0; several < 2; several++) {
        hbk_text html = {NULL, NULL, 0, 0, false};
        tr_folder(dir, several ? "report-signals" : "report-ifd");
        snprintf(run, sizeof run, "{\"options\":{\"iterations\":1,%s", says[several]);
        tr_write(dir, "run.json", run);
        if (!several)
            tr_write(dir, "ratings-1.jsonl",
                     "{\"id\":\"a\",\"score\":null,\"status\":\"ok\",\"readout\":\"none\",\"ifd\":0.8}\n"
                     "{\"id\":\"b\",\"score\":null,\"status\":\"ok\",\"readout\":\"none\",\"ifd\":0.2}\n");
        tr_write(dir, "curated-1.jsonl", "{\"id\":\"a\",\"instruction\":\"say\",\"output\":\"aaaa\"}\n");
        check_ok(tool_report(dir, NULL, &err));
        json_t *report = tr_numbers(dir);
        const json_t *c = json_array_get(json_object_get(report, "curations"), 0);
        assert_int_equal(json_array_size(json_object_get(report, "warnings")), 0);
        assert_true(json_is_null(json_object_get(c, "parse_rate")) == !several);
        assert_true(tr_at(report, "curations.0.kept") == 1);
        for (int f = 0; f < HBK_FATE_COUNT; f++) {
            char key[64];
            snprintf(key, sizeof key, "candidates.status.%s", hbk_fate_name((hbk_fate)f));
            assert_true(tr_at(report, key) == (f == HBK_FATE_OK ? 3 : f == HBK_FATE_EMPTY));
        }
        tr_page(&html, dir);
        tr_check_balance(html.data);
        for (size_t i = 0; i < sizeof unrated / sizeof *unrated; i++)
            if ((strstr(html.data, unrated[i]) != NULL) != !several) fail_msg("%s, %d", unrated[i], several);
        assert_true((strstr(html.data, "of the ratings read") != NULL) == several);
        assert_null(strstr(html.data, several ? " and above" : "could be read"));
        hbk_text_free(&html);
        json_decref(report);
    }
}

/* Promise: of outputs that were rewritten the report counts those that changed, came out the same and stayed
   as they were, each reason, and shows the first three that changed before and after, as text; without a
   rewriting there is no word of it. */
static void tr_rewriting(void **state)
{
    (void)state;
    static const struct { const char *path; double value; } expected[] = {
        {"sets.2.examples", 7}, {"sets.2.output.mean", 19 / 7.0}, {"curations.0.rewriting.rows", 7},
        {"curations.0.rewriting.changed", 4}, {"curations.0.rewriting.the_same", 1},
        {"curations.0.rewriting.fell_back", 2}, {"curations.0.rewriting.status.ok", 5},
        {"curations.0.rewriting.status.truncated", 2}, {"curations.0.rewriting.status.leak", 0}};
    static const char *const present[] = {
        "Rewriting 1", "<dt>before</dt><dd class=\"before\" dir=\"auto\">&lt;b&gt;<",
        "<dt>after</dt><dd class=\"after\" dir=\"auto\">B&amp;B<",
        "Of 7 outputs that were kept 4 changed, 1 came out the same, and 2 stayed as they were"};
    char dir[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    hbk_text html = {NULL, NULL, 0, 0, false}, rows = {NULL, NULL, 0, 0, false};
    tr_folder(dir, "report-rewriting");
    check_ok(tool_report(dir, NULL, &err));
    tr_page(&html, dir);
    assert_null(strstr(html.data, "Rewr"));
    assert_null(strstr(html.data, "<dt>before"));
    hbk_text_clear(&html);
    for (int i = 0; i < 4; i++)
        hbk_text_printf(&rows,
                        "{\"id\":\"%d\",\"instruction\":\"ask\",\"original\":\"%s\",\"output\":\"B&B\","
                        "\"rewrite\":\"ok\"}\n",
                        i, i == 3 ? "not shown" : "<b>");
    hbk_text_add(&rows, "{\"id\":\"s\",\"instruction\":\"ask\",\"original\":\"one\",\"output\":\"one\","
                        "\"rewrite\":\"ok\"}\n");
    for (int i = 0; i < 2; i++)
        hbk_text_printf(&rows, "{\"id\":\"t%d\",\"instruction\":\"ask\",\"output\":\"it\","
                               "\"rewrite\":\"truncated\"}\n", i);
    tr_write(dir, "rewritten-1.jsonl", hbk_text_string(&rows));
    check_ok(tool_report(dir, NULL, &err));
    json_t *report = tr_numbers(dir);
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++)
        check_near(tr_at(report, expected[i].path), expected[i].value, 1e-8);
    json_decref(report);
    tr_page(&html, dir);
    tr_check_balance(html.data);
    for (size_t i = 0; i < sizeof present / sizeof *present; i++)
        if (!strstr(html.data, present[i])) fail_msg("the page lacks %s", present[i]);
    assert_null(strstr(html.data, "not shown"));
    hbk_text_free(&html);
    hbk_text_free(&rows);
}

/* Promise: pairs that do not fit into the rating prompt are told from a rater that fails, a seed of which a
   part was left out from a whole one, and tags that are the same are noticed. */
static void tr_left_out(void **state)
{
    (void)state;
    char dir[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    tr_folder(dir, "report-left-out");
    tr_write(dir, "run.json",
             "{\"options\":{\"iterations\":1,\"tag_seed\":\"Be.\",\"tag_web\":\"Be.\"},"
             "\"stages\":{\"m0\":{\"examples\":8,\"validation\":1,\"too_long\":2}},\"stopped\":\"\"}");
    tr_write(dir, "ratings-1.jsonl", "{\"id\":\"a\",\"score\":null,\"status\":\"too_long\",\"text\":\"\"}\n");
    tr_write(dir, "curated-1.jsonl", "");
    check_ok(tool_report(dir, NULL, &err));
    json_t *report = tr_numbers(dir), *warnings = json_object_get(report, "warnings");
    assert_int_equal(json_array_size(warnings), 3);
    assert_non_null(strstr(json_string_value(json_array_get(warnings, 0)), "the same tag"));
    assert_non_null(strstr(json_string_value(json_array_get(warnings, 1)), "2 of the 11 seed pairs"));
    assert_non_null(strstr(json_string_value(json_array_get(warnings, 2)), "1 of the 1 pairs of curation 1"));
    json_decref(report);
}

/* Promise: the table of models says what each was finetuned from and on: the base's hash as "the base", any
   other as itself; an option that is a list is shown as one. */
static void tr_models(void **state)
{
    (void)state;
    char dir[512], path[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    hbk_text page = {NULL, NULL, 0, 0, false};
    tr_folder(dir, "report-models");
    tr_write(dir, "run.json",
             "{\"options\":{\"iterations\":1,\"model\":\"tiny\",\"model_hash\":\"00aa\",\"seed_repeat\":3,"
             "\"keep\":[4.5,4],\"ranks\":[0,0]},\"stages\":{\"myx\":{\"base\":\"00aa\",\"examples\":2,"
             "\"validation\":0,\"too_long\":0},\"m1\":{\"base\":\"00bb\",\"examples\":7,\"too_long\":0}},"
             "\"stopped\":\"\"}");
    check_ok(tool_report(dir, NULL, &err));
    check_ok(hbk_path(path, dir, "report.html", &err) && hbk_file_read(path, 1 << 22, &page, &err));
    static const char *const wanted[] = {
        "<td class=\"w\">M<sub>yx</sub></td><td class=\"w\">the base</td><td class=\"w soft\">seed, "
        "reversed<",
        "<td class=\"w\">M0</td><td class=\"w\">-</td><td class=\"w soft\">seed<",
        "<td class=\"w\">M1</td><td class=\"w\">00bb</td><td class=\"w soft\">3 x seed + curated 1<",
        "<dt>keep</dt><dd>4.5, 4<",
        "<dt>ranks</dt><dd>none<",
        "tiny (hash 00aa)"};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        if (!strstr(hbk_text_string(&page), wanted[i])) fail_msg("the page lacks %s", wanted[i]);
    hbk_text_free(&page);
}

/* Promise: the result stands out in the diagram: the last model of a run that is complete, or of one that was
   stopped, and none of one that is not finished. */
static void tr_result(void **state)
{
    (void)state;
    static const struct {
        const char *stopped;
        bool m1_done;
        int result;
    } cases[] = {{"", true, 1}, {"", false, -1}, {"why", false, 0}, {"why", true, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char dir[512], path[512], name[32], run[128];
        hbk_error err = {HBK_ERROR_NONE, "", "", 0};
        snprintf(name, sizeof name, "report-result%d", (int)i);
        tr_folder(dir, name);
        snprintf(run, sizeof run, "{\"options\":{\"iterations\":1},\"stages\":{},\"stopped\":\"%s\"}",
                 cases[i].stopped);
        tr_write(dir, "run.json", run);
        check_ok(hbk_path(path, dir, "m1/humpback.json", &err));
        if (!cases[i].m1_done) unlink(path);
        check_ok(tool_report(dir, NULL, &err));
        json_t *report = tr_numbers(dir);
        assert_int_equal(report_result(report), cases[i].result);
        json_decref(report);
    }
}

/* Promise: a long curve is averaged to a hundred points; a long text is cut between two characters. */
static void tr_long(void **state)
{
    (void)state;
    char dir[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    hbk_text rows = {NULL, NULL, 0, 0, false}, text = {NULL, NULL, 0, 0, false};
    tr_folder(dir, "report-long");
    for (int i = 1; i <= 1000; i++) hbk_text_printf(&rows, "{\"step\":%d,\"loss\":%d,\"tokens\":1}\n", i, i);
    tr_write(dir, "m0/metrics.jsonl", hbk_text_string(&rows));
    for (int i = 0; i < 1000; i++) hbk_text_add(&text, "\xc3\xa9");
    hbk_text_clear(&rows);
    hbk_text_printf(&rows, "{\"id\":\"a\",\"instruction\":\"x\",\"output\":\"%s\",\"status\":\"ok\"}\n",
                    hbk_text_string(&text));
    tr_write(dir, "candidates.jsonl", hbk_text_string(&rows));
    check_ok(tool_report(dir, NULL, &err));
    json_t *report = tr_numbers(dir);
    const json_t *m0 = report_find(json_object_get(report, "models"), "model", "m0");
    const json_t *curve = json_object_get(m0, "curve");
    assert_int_equal(json_array_size(curve), 100);
    check_near(tr_at(curve, "0.1"), 5.5, 1e-9);
    check_near(tr_at(curve, "99.0"), 995.5, 1e-9);
    check_near(tr_at(m0, "loss_last"), 950, 1e-9); /* the last 101 of 1,000 steps */
    const char *cut = report_string(json_array_get(json_object_get(report, "examples"), 0), "output");
    assert_int_equal(hbk_utf8_length(cut, strlen(cut)), 701);
    json_decref(report);
    hbk_text_free(&rows);
    hbk_text_free(&text);
}

static long tr_json_left; /* allocations of jansson before the one that is refused; below 0: none is */
static bool tr_json_refused;

/* Where the buffer of a token, of 2^k bytes, does not grow, jansson itself drops a character without a word:
   sizes like that are left out. */
static void *tr_json_malloc(size_t n)
{
    bool buffer = n >= 32 && (n & (n - 1)) == 0;
    if (buffer || tr_json_left-- != 0) return malloc(n);
    tr_json_refused = true;
    return NULL;
}

/* Promise: report.json has the validation losses of a training, exact or as means of stretches, and its
   lowest one as it was; the page draws them inside the frame, with one ring; without them there is no word of
   them. */
static void tr_validation(void **state)
{
    (void)state;
    char dir[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    hbk_text rows = {NULL, NULL, 0, 0, false}, html = {NULL, NULL, 0, 0, false};
    tr_folder(dir, "report-validation");
    check_ok(tool_report(dir, NULL, &err));
    tr_page(&html, dir);
    if (strstr(html.data, "class=\"ring\"") || strstr(html.data, "class=\"val-word\""))
        fail_msg("the page tells of a validation that never was");
    tr_write(dir, "m0/metrics.jsonl", "{\"step\":1,\"loss\":3.0}\n"
                                      "{\"step\":2,\"loss\":2.0,\"val_loss\":9.5}\n"
                                      "{\"step\":3,\"loss\":1.0}\n"
                                      "{\"step\":4,\"loss\":1.0,\"val_loss\":2.5}\n"
                                      "{\"step\":5,\"loss\":0.5,\"val_loss\":2.75}\n");
    for (int i = 1; i <= 1000; i++) { /* in stretches of ten, two of which are validated */
        hbk_text_printf(&rows, "{\"step\":%d,\"loss\":2", i);
        if (i % 5 == 0) hbk_text_printf(&rows, ",\"val_loss\":%d", 1 + abs(i - 305));
        hbk_text_add(&rows, "}\n");
    }
    tr_write(dir, "m1/metrics.jsonl", hbk_text_string(&rows));
    check_ok(tool_report(dir, NULL, &err));
    json_t *report = tr_numbers(dir);
    static const struct { const char *path; double value; } expected[] = {
        {"models.1.val_first", 9.5},      {"models.1.val_last", 2.75},      {"models.1.val_best", 2.5},
        {"models.1.val_best_step", 4},    {"models.1.val_curve.0.0", 2},    {"models.1.val_curve.0.1", 9.5},
        {"models.1.val_curve.2.1", 2.75}, {"models.2.val_best", 1},         {"models.2.val_best_step", 305},
        {"models.2.val_curve.0.0", 7.5},  {"models.2.val_curve.0.1", 298.5},
        {"models.2.val_curve.99.0", 997.5}};
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++)
        check_near(tr_at(report, expected[i].path), expected[i].value, 1e-8);
    const json_t *models = json_object_get(report, "models");
    assert_int_equal(json_array_size(json_object_get(json_array_get(models, 1), "val_curve")), 3);
    assert_null(json_object_get(json_array_get(models, 0), "val_curve"));
    tr_page(&html, dir);
    tr_check_balance(html.data);
    int rings = 0;
    double x, y;
    for (const char *p = html.data; (p = strstr(p, "class=\"ring\"")) != NULL; p++) {
        rings++;
        assert_int_equal(sscanf(p, "class=\"ring\" cx=\"%lf\" cy=\"%lf\"", &x, &y), 2);
        assert_true(x >= CURVE_X && x <= CURVE_X + CURVE_W && y >= CURVE_Y && y <= CURVE_Y + CURVE_H);
    }
    assert_int_equal(rings, 2);
    if (!strstr(html.data, "<b>M0</b> 5 steps, best at 4<")) fail_msg("the best step of M0 is not told");
    json_decref(report);
    hbk_text_free(&rows);
    hbk_text_free(&html);
}

/* Promise: the loss curve is well-formed, shows the name of its folder as text, draws every line inside the
   frame, rings the lowest validation loss, and tells the figures; it does without validations, with one step,
   and with more steps than it has points. */
static void tr_curve(void **state)
{
    (void)state;
    char dir[512], path[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    test_tmp(dir, "curve<&>");
    check_ok(hbk_path(path, dir, "loss.svg", &err));
    hbk_text rows = {NULL, NULL, 0, 0, false};
    for (int n = 1; n <= 1000; n = n == 1 ? 12 : n == 12 ? 1000 : 1001) {
        for (int validated = 0; validated < 2; validated++) {
            hbk_text_clear(&rows);
            for (int i = 1; i <= n; i++) {
                hbk_text_printf(&rows, "{\"step\":%d,\"loss\":%.3f,\"lr\":0.001", i, 3 + 2.0 / i);
                if (validated && (i % 4 == 0 || i == n))
                    hbk_text_printf(&rows, ",\"val_loss\":%.3f", 4 + 0.01 * abs(i - 8));
                hbk_text_add(&rows, "}\n");
            }
            hbk_text_add(&rows, "{\"step\":"); /* torn: no row yet */
            tr_write(dir, "metrics.jsonl", hbk_text_string(&rows));
            check_ok(tool_curve(dir, path, NULL, &err));
            hbk_text svg = {NULL, NULL, 0, 0, false};
            check_ok(hbk_file_read(path, 1 << 20, &svg, &err));
            tr_check_balance(svg.data);
            assert_non_null(strstr(svg.data, "curve&lt;&amp;&gt;</text>"));
            assert_null(strstr(svg.data, "nan"));
            assert_null(strstr(svg.data, "inf"));
            assert_true(svg.len < 32768);
            assert_true((strstr(svg.data, "class=\"ring\"") != NULL) == (validated == 1));
            if (n == 12) assert_non_null(strstr(svg.data, "12 steps: training loss 5.000 &#8594; 3.175"));
            if (n == 12 && validated) assert_non_null(strstr(svg.data, "lowest 4.000 in step 8<"));
            double x, y; /* every point of every line */
            for (const char *p = strpbrk(svg.data, "ML"); p; p = strpbrk(p + 1, "ML"))
                if (sscanf(p + 1, "%lf %lf", &x, &y) == 2)
                    assert_true(x >= CURVE_LEFT && x <= CURVE_LEFT + CURVE_WIDTH + 0.05 && y > 80 && y < 403);
            hbk_text_free(&svg);
        }
    }
    hbk_text_free(&rows);
    tr_write(dir, "metrics.jsonl", "{\"step\":1");
    check_error(tool_curve(dir, NULL, NULL, &err), HBK_ERROR_DATA, "holds no step");
    tr_write(dir, "metrics.jsonl", "{\"step\":1,\"loss\":1.0,\"lr\":1}\n{\"step\":2,\"lr\":1}\n");
    check_error(tool_curve(dir, NULL, NULL, &err), HBK_ERROR_FORMAT, "without step, loss or lr");
    unlink(path);
    check_error(tool_curve("no/such", NULL, NULL, &err), HBK_ERROR_DATA, "holds no step");
}

static bool tr_is_png(const char *path)
{
    char head[8] = "";
    FILE *f = fopen(path, "rb");
    size_t n = f ? fread(head, 1, 8, f) : 0;
    if (f) fclose(f);
    return n == 8 && memcmp(head, "\x89PNG\r\n\x1a\n", 8) == 0;
}

/* Promise: where gnuplot is on the PATH a PNG stands beside the SVG, whatever the folder is called; where it
   is not, the SVG alone, without an older PNG, and what was written is told; a PNG that was asked for is an
   error then. */
static void tr_curve_png(void **state)
{
    (void)state;
    char dir[512], svg[512], png[512], told[1100], both[1100];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    hbk_text path = {NULL, NULL, 0, 0, false};
    test_tmp(dir, "curve 'a'\n\"`x`\"_{2}");
    hbk_text_add(&path, getenv("PATH") ? getenv("PATH") : "");
    check_ok(hbk_path(svg, dir, "loss.svg", &err) && hbk_path(png, dir, "loss.png", &err));
    tr_write(dir, "metrics.jsonl", "{\"step\":1,\"loss\":3.0,\"lr\":1e-5}\n"
                                   "{\"step\":2,\"loss\":2.0,\"lr\":9e-6,\"val_loss\":2.5}\n");
    tr_write(dir, "loss.png", "old");
    setenv("PATH", "/nonexistent", 1);
    bool ok = tool_curve(dir, NULL, told, &err);
    bool refused = !tool_curve(dir, png, NULL, &err);
    setenv("PATH", hbk_text_string(&path), 1);
    hbk_text_free(&path);
    assert_true(ok && refused);
    assert_string_equal(told, svg);
    assert_true(hbk_file_exists(svg) && !hbk_file_exists(png));
    assert_non_null(strstr(err.message, "needs gnuplot"));
    check_ok(tool_curve(dir, NULL, told, &err));
    if (system("command -v gnuplot >/dev/null") != 0) skip();
    snprintf(both, sizeof both, "%s and %s", svg, png);
    assert_string_equal(told, both);
    assert_true(tr_is_png(png));
    unlink(svg);
    unlink(png);
    check_ok(tool_curve(dir, png, told, &err));
    assert_string_equal(told, png);
    assert_true(tr_is_png(png) && !hbk_file_exists(svg));
}

/* Promise: whichever allocation of jansson is refused, the report fails and says why. */
static void tr_memory(void **state)
{
    (void)state;
    char dir[512];
    hbk_error err;
    tr_folder(dir, "report-memory");
    json_malloc_t old_malloc;
    json_free_t old_free;
    json_get_alloc_funcs(&old_malloc, &old_free);
    for (long k = 0;; k += 1 + k / 16) {
        memset(&err, 0, sizeof err);
        tr_json_refused = false;
        tr_json_left = k;
        json_set_alloc_funcs(tr_json_malloc, free);
        bool ok = tool_report(dir, NULL, &err);
        json_set_alloc_funcs(old_malloc, old_free);
        if (ok && tr_json_refused) fail_msg("allocation %ld was refused, and a report was written", k);
        if (!ok && (!tr_json_refused || !err.message[0])) fail_msg("allocation %ld: no reason given", k);
        if (ok) break;
    }
}

static const struct CMUnitTest tests_report[] = {
    cmocka_unit_test(tr_signals),    cmocka_unit_test(tr_rewriting),  cmocka_unit_test(tr_counts),
    cmocka_unit_test(tr_harmless),   cmocka_unit_test(tr_stopped),    cmocka_unit_test(tr_unfinished),
    cmocka_unit_test(tr_collapsed),  cmocka_unit_test(tr_left_out),   cmocka_unit_test(tr_models),
    cmocka_unit_test(tr_result),     cmocka_unit_test(tr_long),       cmocka_unit_test(tr_curve),
    cmocka_unit_test(tr_memory),     cmocka_unit_test(tr_validation), cmocka_unit_test(tr_curve_png),
};
