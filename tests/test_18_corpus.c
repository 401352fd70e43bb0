/* Chapter 18: cutting, filters and their counts; and the seed conversion of tools/seeds.h. */

#include "../tools/seeds.h"

/* A corpus with its two output files, limits small enough to write tests by hand. */
typedef struct t18_run {
    hbk_corpus *c;
    char out[512], rejects[512];
    json_t *kept, *dropped; /* after t18_end */
    hbk_int counts[HBK_DROP_COUNT];
} t18_run;

static t18_run t18_begin(hbk_int min_chars, hbk_int max_chars, bool keep_all)
{
    t18_run r;
    memset(&r, 0, sizeof r);
    hbk_corpus_options o = hbk_corpus_defaults();
    o.min_chars = min_chars;
    o.max_chars = max_chars;
    o.keep_all = keep_all;
    test_tmp(r.out, "t18_out.jsonl");
    test_tmp(r.rejects, "t18_rejects.jsonl");
    hbk_error err;
    r.c = hbk_corpus_new(&o, r.out, r.rejects, NULL, &err);
    if (!r.c) fail_msg("%s", err.message);
    return r;
}

static json_t *t18_rows(const char *path)
{
    hbk_error err;
    json_t *rows = json_array(), *row;
    hbk_jsonl_reader *reader = hbk_jsonl_open(path, NULL, &err);
    assert_non_null(reader);
    while (hbk_jsonl_next(reader, &row, &err) > 0) json_array_append(rows, row);
    hbk_jsonl_close(reader);
    return rows;
}

static void t18_end(t18_run *r)
{
    hbk_error err;
    if (!hbk_corpus_finish(r->c, r->counts, &err)) assert_int_equal(err.code, HBK_ERROR_DATA);
    r->kept = t18_rows(r->out);
    r->dropped = t18_rows(r->rejects);
    assert_int_equal(json_array_size(r->kept), r->counts[HBK_DROP_KEPT]);
}

static void t18_free(t18_run *r)
{
    json_decref(r->kept);
    json_decref(r->dropped);
}

static const char *t18_get(const json_t *rows, size_t i, const char *key)
{
    const char *s = json_string_value(json_object_get(json_array_get(rows, i), key));
    return s ? s : "(none)";
}

static void t18_add(t18_run *r, const char *text, bool markdown, const char *source)
{
    hbk_error err;
    check_ok(hbk_corpus_add_text(r->c, text, strlen(text), markdown, source, &err));
}

#define T18_ACCENTS \
    "\xc3\xa9\xc3\xa8\xc3\xa9\xc3\xa8\xc3\xa9\xc3\xa8\xc3\xa9\xc3\xa8\xc3\xa9\xc3\xa8\xc3\xa9\xc3\xa8"

/* Promise: every filter drops its own case, under its own name, and no other; what passes is kept. */
static void t18_every_drop(void **state)
{
    (void)state;
    static const struct {
        hbk_drop drop;
        const char *text;
    } cases[] = {
        {HBK_DROP_KEPT, "# A good header\nThis is a text of some length.\n"},
        {HBK_DROP_EMPTY, "# Another header\n \n\n"},
        {HBK_DROP_SHORT, "# Another header\nThis is a short one"},
        {HBK_DROP_LONG, "# Another header\nThis text is much longer than any segment of this test may be, "
                        "and it has no parts."},
        {HBK_DROP_HEADER, "# \nThis is a text without a title."},
        {HBK_DROP_HEADER, "# 2023 !\nThis is a text without letters above."},
        {HBK_DROP_HEADER, "# BREAKING NEWS\nThis is a text under a shout."},
        {HBK_DROP_NAVIGATION, "# Our Forums\nThis is a text among others."},
        {HBK_DROP_NAVIGATION, "# Free newsletter\nThis is a text among others."},
        {HBK_DROP_REPETITION, "# Another header\nwe like cats a lot . We like cats a lot!"},
        {HBK_DROP_DUPLICATE, "# A third header\nThis is a text of some length.\n"},
        {HBK_DROP_SHORT, "# Another header\n" T18_ACCENTS}, /* 12 characters, 24 bytes */
        {HBK_DROP_KEPT, "# Another header\n" T18_ACCENTS T18_ACCENTS T18_ACCENTS T18_ACCENTS},
        {HBK_DROP_ENCODING, "# A header\nThis is a text with a byte \xff that is none."},
    };
    t18_run r = t18_begin(20, 70, false);
    hbk_int wanted[HBK_DROP_COUNT] = {0};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        t18_add(&r, cases[i].text, true, "pages/site.md");
        wanted[cases[i].drop]++;
    }
    t18_end(&r);
    for (int i = 0; i < HBK_DROP_COUNT; i++)
        if (r.counts[i] != wanted[i])
            fail_msg("%s: %d, expected %d", hbk_drop_name((hbk_drop)i), (int)r.counts[i], (int)wanted[i]);
    assert_string_equal(t18_get(r.kept, 0, "id"), "site-1");
    assert_string_equal(t18_get(r.kept, 0, "text"), "This is a text of some length.");
    assert_string_equal(t18_get(r.kept, 0, "header"), "A good header");
    assert_string_equal(t18_get(r.kept, 0, "source"), "pages/site.md");
    size_t dropped = 0; /* in order; a text of invalid bytes cannot stand in a row */
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (cases[i].drop != HBK_DROP_KEPT && cases[i].drop != HBK_DROP_ENCODING)
            assert_string_equal(t18_get(r.dropped, dropped++, "reason"), hbk_drop_name(cases[i].drop));
    assert_int_equal(json_array_size(r.dropped), dropped);
    assert_string_equal(t18_get(r.dropped, 0, "id"), "site-2");
    t18_free(&r);
}

/* Promise: the same documents before any filter: all but what has no text or no valid bytes. */
static void t18_keep_all(void **state)
{
    (void)state;
    t18_run r = t18_begin(20, 70, true);
    t18_add(&r, "# LOGIN\nx", true, "a.md");
    t18_add(&r, "# LOGIN\nx", true, "a.md");
    t18_add(&r, "# Empty\n", true, "a.md");
    t18_add(&r, "# Bad\n\xc3", true, "a.md");
    t18_end(&r);
    assert_int_equal(r.counts[HBK_DROP_KEPT], 2);
    assert_int_equal(r.counts[HBK_DROP_EMPTY], 1);
    assert_int_equal(r.counts[HBK_DROP_ENCODING], 1);
    t18_free(&r);
}

/* Promise: a heading's segment holds its sub-sections; where that is too long, its opening text and its
   sub-headings are segments of their own; fenced code has no headings. */
static void t18_markdown_trees(void **state)
{
    (void)state;
    static const char text[] = "---\ntitle: settings\n---\n"
                               "Before any heading.\n"
                               "# Big\n"
                               "Opening.\n"
                               "## One ##\n"
                               "Text one.\n"
                               "### Deep\n"
                               "Text deep.\n"
                               "## Two\n"
                               "```\n# no heading\n```\n"
                               "Under\n-----\nText under.\n"
                               "#hashtag and\n"
                               "# Last\n\nEnd.\n";
    for (int wide = 0; wide < 2; wide++) {
        static const char *const headers[2][6] = {{"", "Big", "One", "Two", "Under", "Last"},
                                                  {"", "Big", "Last"}};
        static const char *const texts[6] = {"Before any heading.", "Opening.",
                                             "Text one.\n### Deep\nText deep.", "```\n# no heading\n```",
                                             "Text under.\n#hashtag and", "End."};
        t18_run r = t18_begin(1, wide ? 1000 : 40, true);
        t18_add(&r, text, true, "tree.md");
        t18_end(&r);
        assert_int_equal(json_array_size(r.kept), wide ? 3 : 6);
        for (size_t i = 0; i < json_array_size(r.kept); i++) {
            assert_string_equal(t18_get(r.kept, i, "header"), headers[wide][i]);
            if (!wide) assert_string_equal(t18_get(r.kept, i, "text"), texts[i]);
        }
        if (wide) assert_memory_equal(t18_get(r.kept, 1, "text"), "Opening.\n## One ##\nText one.", 28);
        t18_free(&r);
    }
}

/* Promise: plain text is one segment if it fits, else as many paragraphs at a time as fit; every segment is
   a piece of the document; lengths are code points, not bytes. */
static void t18_plain_cuts(void **state)
{
    (void)state;
    t18_run r = t18_begin(1, 12, true);
    t18_add(&r, "\n twelve chars\n", false, "x/fit.txt");
    t18_add(&r, "one\n\ntwo\nt\n\n \nthree\n\na very long paragraph\n\nend", false, "x/cut.txt");
    t18_add(&r, "line one\nline two\nand", false, "lines.txt"); /* no blank line: lines are paragraphs */
    t18_add(&r, T18_ACCENTS "\n\nabc", false, "e.txt");
    t18_end(&r);
    static const char *const wanted[][2] = {
        {"fit-1", "twelve chars"}, {"cut-1", "one\n\ntwo\nt"}, {"cut-2", "three"},
        {"cut-3", "a very long paragraph"}, {"cut-4", "end"}, {"lines-1", "line one"},
        {"lines-2", "line two\nand"}, {"e-1", T18_ACCENTS},
        {"e-2", "abc"}};
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        assert_string_equal(t18_get(r.kept, i, "id"), wanted[i][0]);
        assert_string_equal(t18_get(r.kept, i, "text"), wanted[i][1]);
    }
    assert_int_equal(json_array_size(r.kept), 9);
    t18_free(&r);
}

/* Promise: rows of JSONL are documents; their ids and addresses are kept; files are told apart by their
   endings; ids of two files of one name do not collide. */
static void t18_files(void **state)
{
    (void)state;
    hbk_error err;
    char jsonl[512], md[512], txt[512], bad[512];
    test_tmp(jsonl, "t18_rows.jsonl");
    test_tmp(md, "t18_page.MD");
    test_tmp(txt, "t18_page.txt");
    test_tmp(bad, "t18_bad.jsonl");
    static const char rows[] =
        "{\"id\": \"own\", \"text\": \"A text with an id.\", \"url\": \"http://a.b/c\", "
        "\"title\": \"Head\"}\n"
        "{\"id\": 7, \"text\": \"A part of it.\\n\\nAnother part of it.\"}\n"
        "{\"text\": \"A text by itself.\", \"header\": \"\", \"title\": null}\n"
        "{\"text\": \"One with a \\u0000.\"}\n";
    check_ok(hbk_file_write(jsonl, rows, sizeof rows - 1, &err));
    check_ok(hbk_file_write(md, "\xef\xbb\xbf# Head\nUnder it.\n", 20, &err));
    check_ok(hbk_file_write(txt, "# Head\nNot under it.\n", 21, &err));
    check_ok(hbk_file_write(bad, "{\"text\": \"a\"}\n{\"text\": 3}\n", 26, &err));
    t18_run r = t18_begin(1, 22, false);
    check_ok(hbk_corpus_add_file(r.c, jsonl, &err));
    check_ok(hbk_corpus_add_file(r.c, md, &err));
    check_ok(hbk_corpus_add_file(r.c, txt, &err));
    check_error(hbk_corpus_add_file(r.c, bad, &err), HBK_ERROR_FORMAT,
                ":2: the value of \"text\" is no string");
    check_error(hbk_corpus_add_file(r.c, "no/such.txt", &err), HBK_ERROR_FILE, "no/such.txt");
    t18_end(&r);
    static const char *const ids[] = {"own",        "7-1",        "7-2",      "t18_rows-1",
                                      "t18_page-1", "t18_page-2", "t18_bad-1"};
    assert_int_equal(json_array_size(r.kept), 7);
    for (size_t i = 0; i < 7; i++) assert_string_equal(t18_get(r.kept, i, "id"), ids[i]);
    assert_string_equal(t18_get(r.kept, 0, "url"), "http://a.b/c");
    assert_string_equal(t18_get(r.kept, 0, "header"), "Head");
    assert_string_equal(t18_get(r.kept, 1, "url"), "(none)");
    assert_string_equal(t18_get(r.kept, 4, "text"), "Under it.");
    assert_string_equal(t18_get(r.kept, 5, "text"), "# Head\nNot under it.");
    assert_string_equal(t18_get(r.kept, 5, "source"), "t18_page.txt");
    assert_int_equal(r.counts[HBK_DROP_ENCODING], 1);
    t18_free(&r);
}

/* Promise: no segment kept is an error that says why, and the counts are there all the same. */
static void t18_nothing_kept(void **state)
{
    (void)state;
    hbk_error err;
    t18_run r = t18_begin(600, 3000, false);
    t18_add(&r, "Too short.", false, "a.txt");
    t18_add(&r, "Too short as well.", false, "a.txt");
    check_error(hbk_corpus_finish(r.c, r.counts, &err), HBK_ERROR_DATA, "(2 short)");
    assert_int_equal(r.counts[HBK_DROP_SHORT], 2);
    hbk_corpus_options o = hbk_corpus_defaults();
    o.min_chars = o.max_chars + 1;
    check_error(hbk_corpus_new(&o, r.out, NULL, NULL, &err), HBK_ERROR_OPTION, "segments of 3001 to 3000");
}

/* Promise: similarity is shared 3-grams over all 3-grams, whatever case and punctuation, of sentences with
   five words and more. */
static void t18_jaccard(void **state)
{
    (void)state;
    static const uint64_t a[] = {1, 2, 3, 5}, b[] = {2, 3, 4};
    check_near(hbk__jaccard(a, 4, b, 3), 2.0 / 5, 1e-15);
    check_near(hbk__jaccard(a, 4, a, 4), 1, 1e-15);
    check_near(hbk__jaccard(a, 0, b, 0), 0, 1e-15);
    static const struct {
        const char *text;
        double worst;
    } cases[] = {
        {"", 0},
        {"the cat sat on the mat", 0},
        {"The cat sat on it. the CAT, sat on it!", 1},
        /* the-cat-sat cat-sat-on sat-on-the on-the-mat | .. on-the-rug: 3 of 5 */
        {"The cat sat on the mat. The cat sat on the rug.", 3.0 / 5},
        {"The cat sat on the mat\nThe cat sat on the rug", 3.0 / 5},
        {"Yes it is so. Yes it is so. Yes it is so.", 0},       /* four words */
        {"a b c a b c a b. a b c a b c", 1},                    /* sets: abc bca cab */
        {"In v1.2 of it we see. one two three four five", 0},   /* no end inside 1.2 */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        double worst = -1;
        assert_true(hbk__repetition(cases[i].text, strlen(cases[i].text), &worst, NULL, NULL));
        check_near(worst, cases[i].worst, 1e-12);
    }
}

/* Promise: the set of hashes knows what it was given, and the map its values, through growth, zero
   included. */
static void t18_hash_set(void **state)
{
    (void)state;
    hbk__hash_set s, m;
    memset(&s, 0, sizeof s);
    memset(&m, 0, sizeof m);
    m.valued = true;
    assert_null(hbk__hash_find(&m, 3));
    for (int round = 0; round < 2; round++)
        for (uint64_t i = 0; i < 1000; i++) {
            bool had = !round;
            uint64_t h = i == 0 ? 0 : i * 4096 + 3; /* equal low bits, so that they collide */
            assert_true(hbk__hash_add(&s, h, &had, NULL));
            assert_int_equal(had, round);
            assert_int_equal(hbk__hash_find(&m, h) != NULL, round);
            hbk_int *value = hbk__hash_at(&m, h, NULL);
            assert_int_equal(*value, round ? (hbk_int)i * 7 : -1);
            *value = (hbk_int)i * 7;
            assert_int_equal(*hbk__hash_find(&m, h), i * 7);
        }
    assert_int_equal(s.n, 1000);
    assert_int_equal(m.n, 1000);
    hbk__hash_free(&s);
    hbk__hash_free(&m);
}

/* Promise: words are letters, digits and what is beyond ASCII, whatever punctuation of any script stands
   between them; characters of scripts without blanks are words each; case of ASCII makes no difference. */
static void t18_words(void **state)
{
    (void)state;
    static const struct {
        const char *a, *b;
        int n;
    } cases[] = {
        {"Green tea is hot.", "green -- TEA, is: hot", 4},
        {"It's 2 cups", "it s 2 cups", 4},
        {"\xe2\x80\x9cTea\xe2\x80\x9d\xe2\x80\x94hot", "tea hot", 2},
        {"caf\xc3\xa9\xc2\xa0noir", "caf\xc3\xa9 noir", 2},
        {"\xe8\x8c\xb6\xe6\x98\xaf\xe3\x80\x82\xe7\x83\xad", "\xe8\x8c\xb6 \xe6\x98\xaf \xe7\x83\xad", 3},
        {"tea\xe8\x8c\xb6pot", "tea \xe8\x8c\xb6 pot", 3},
        {"?!", "", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hbk__hashes a, b;
        memset(&a, 0, sizeof a);
        memset(&b, 0, sizeof b);
        assert_true(hbk__words(&a, cases[i].a, strlen(cases[i].a), NULL, NULL));
        assert_true(hbk__words(&b, cases[i].b, strlen(cases[i].b), NULL, NULL));
        assert_int_equal(a.n, cases[i].n);
        assert_int_equal(b.n, cases[i].n);
        for (hbk_int k = 0; k < a.n; k++) assert_true(a.data[k] == b.data[k]);
        for (hbk_int k = 1; k < a.n; k++) assert_true(a.data[k] != a.data[k - 1]);
        hbk_free(NULL, a.data);
        hbk_free(NULL, b.data);
    }
}

/* Promise: the similarity of two texts is that of their sets of word n-grams. */
static void t18_similarity(void **state)
{
    (void)state;
    static const struct {
        const char *a, *b;
        int words;
        double j;
    } cases[] = {
        {"How do I brew green tea?", "how do i BREW green tea", 2, 1},
        {"a b c d", "a b c e", 1, 3.0 / 5},
        {"a b c d", "a b c e", 2, 2.0 / 4},
        {"a b c d", "a b c e", 3, 1.0 / 3},
        {"a b c d", "a b c e", 9, 0}, /* one n-gram each */
        {"a b", "a b", 9, 1},
        {"a a a a", "a a", 2, 1}, /* sets, not bags */
        {"a b c d e", "c d e a b", 2, 3.0 / 5},
        {"tea", "coffee", 1, 0},
        {"?!", "?!", 2, 1},
        {"?!", "!?", 2, 0},
        {"", "", 2, 1},
    };
    hbk_error err;
    double j;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_ok(hbk_similarity(cases[i].a, cases[i].b, cases[i].words, &j, NULL, &err));
        check_near(j, cases[i].j, 1e-12);
    }
    check_error(hbk_similarity("a", "a", 0, &j, NULL, &err), HBK_ERROR_OPTION, "0 words");
}

enum { T18_TEXTS = 240 };

/* Texts of which many are alike: each is a copy of one before it with some words replaced, or new. */
static void t18_alike(char texts[T18_TEXTS][200])
{
    hbk_rng r = hbk_rng_at(1, "alike", 0);
    for (int i = 0; i < T18_TEXTS; i++) {
        int words[20], n = 6 + (int)hbk_rng_below(&r, 14);
        bool copy = i > 0 && hbk_rng_below(&r, 3) > 0;
        const char *from = texts[i > 0 ? hbk_rng_below(&r, i) : 0];
        hbk_int changes = hbk_rng_below(&r, 6);
        if (copy) n = 0;
        for (char *end; copy && *from && n < 20; from = end) words[n++] = (int)strtol(from, &end, 10);
        for (int k = 0; k < n && !copy; k++) words[k] = (int)hbk_rng_below(&r, 400);
        for (hbk_int k = 0; k < changes; k++) words[hbk_rng_below(&r, n)] = (int)hbk_rng_below(&r, 400);
        texts[i][0] = 0;
        for (int k = 0; k < n; k++)
            snprintf(texts[i] + strlen(texts[i]), 200 - strlen(texts[i]), k ? " %d" : "%d", words[k]);
    }
}

/* Promise: of texts in a row those are found that a comparison of all with all finds, with the same partner
   and similarity, at every threshold. */
static void t18_dedup_is_exact(void **state)
{
    (void)state;
    static char texts[T18_TEXTS][200];
    static const double thresholds[] = {0.2, 0.5, 0.7, 0.9, 1};
    hbk_error err;
    t18_alike(texts);
    for (size_t t = 0; t < sizeof thresholds / sizeof *thresholds; t++) {
        int kept[T18_TEXTS], n_kept = 0, n_like = 0;
        hbk_dedup *d = hbk_dedup_new(thresholds[t], 2, 128, NULL, &err);
        check_ok(d);
        for (int i = 0; i < T18_TEXTS; i++) {
            hbk_int want = -1, like;
            double best = 0, j;
            for (int k = 0; k < n_kept; k++) {
                check_ok(hbk_similarity(texts[kept[k]], texts[i], 2, &j, NULL, &err));
                if (j < thresholds[t] || j <= best) continue;
                want = kept[k];
                best = j;
            }
            check_ok(hbk_dedup_add(d, texts[i], &like, &j, &err));
            if (like != want || fabs(j - best) > 1e-12)
                fail_msg("threshold %g, text %d: like %d (%g), expected %d (%g)", thresholds[t], i, (int)like,
                         j, (int)want, best);
            if (like < 0) kept[n_kept++] = i;
            n_like += like >= 0;
        }
        if (t < 4) assert_true(n_like > 20);
        assert_true(n_kept > 20);
        hbk_dedup_free(d);
    }
    check_error(hbk_dedup_new(0, 2, 128, NULL, &err), HBK_ERROR_OPTION, "similarity 0");
    check_error(hbk_dedup_new(1.5, 2, 128, NULL, &err), HBK_ERROR_OPTION, "similarity 1.5");
    check_error(hbk_dedup_new(0.5, 0, 128, NULL, &err), HBK_ERROR_OPTION, "0 words");
    check_error(hbk_dedup_new(0.5, 2, 0, NULL, &err), HBK_ERROR_OPTION, "0 hashes");
    hbk_dedup_free(NULL);
}

static bool t18_dedup_once(void *ctx, hbk_allocator *a, hbk_error *err)
{
    char(*texts)[200] = (char(*)[200])ctx;
    hbk_dedup *d = hbk_dedup_new(0.7, 2, 32, a, err);
    hbk_int like;
    double j;
    bool ok = d != NULL;
    for (int i = 0; i < 40 && ok; i++) ok = hbk_dedup_add(d, texts[i], &like, &j, err);
    hbk_dedup_free(d);
    return ok;
}

static const char t18_question[] =
    "How many cups of green tea can you brew from ten grams of leaves, please?";

/* Fails unless `text` is found at `line` of `file`, or, with file NULL, nowhere. */
static void t18_check_found(hbk_holdout *h, const char *text, const char *file, hbk_int line)
{
    hbk_error err;
    const char *where = "?";
    hbk_int at = -7;
    check_ok(hbk_holdout_find(h, text, &where, &at, &err));
    if (!file != !where || (file && strcmp(file, where)) || at != (file ? line : -7))
        fail_msg("\"%s\" found at %s:%d, expected %s:%d", text, where ? where : "none", (int)at,
                 file ? file : "none", (int)line);
}

/* Promise: a text that shares 13 words in a row with an evaluation, or holds a shorter one whole, is found,
   whatever its case and punctuation; 12 words in a row, or 3 words, give nothing away. */
static void t18_holdout_rules(void **state)
{
    (void)state;
    hbk_error err;
    hbk_holdout *h = hbk_holdout_new(13, NULL, &err);
    check_ok(h);
    t18_check_found(h, t18_question, NULL, 0);
    check_ok(hbk_holdout_add(h, t18_question, "a.jsonl", 3, &err)); /* 15 words */
    check_ok(hbk_holdout_add(h, "Who was Li Bai?", "a.jsonl", 4, &err));
    check_ok(hbk_holdout_add(h, "Boil the water", "a.jsonl", 5, &err));
    check_ok(hbk_holdout_add(h, "Who was Li Bai?", "b.txt", 1, &err));
    t18_check_found(h, t18_question, "a.jsonl", 3);
    t18_check_found(h, "Tell me: how many cups of green tea can you brew from TEN grams in all?", NULL, 0);
    t18_check_found(h, "Tell me: how many cups of green tea can you brew from TEN grams - of?", "a.jsonl", 3);
    t18_check_found(h, "of green tea can you brew from ten grams of leaves, please?", NULL, 0); /* 12 words */
    t18_check_found(h, "cups of green tea can you brew from ten grams of leaves, please?", "a.jsonl", 3);
    t18_check_found(h, "He asked who was Li Bai, and why.", "a.jsonl", 4); /* the first of two */
    t18_check_found(h, "who was Li", NULL, 0);
    t18_check_found(h, "Boil the water.", NULL, 0);
    t18_check_found(h, "", NULL, 0);
    hbk_holdout_free(h);
    check_error(hbk_holdout_new(3, NULL, &err), HBK_ERROR_OPTION, "3 words");
    check_error(hbk_holdout_new(65, NULL, &err), HBK_ERROR_OPTION, "65 words");
}

/* Promise: evaluations are read from JSONL, from a JSON array and from lines of text, every string of a row,
   and what is found has its file and line; a file without a text, or with a NUL among its lines, is an
   error. */
static void t18_holdout_files(void **state)
{
    (void)state;
    hbk_error err;
    char jsonl[512], json[512], txt[512];
    test_tmp(jsonl, "t18_eval.jsonl");
    test_tmp(json, "t18_eval.json");
    test_tmp(txt, "t18_eval.txt");
    static const char rows[] = "{\"id\": 5, \"q\": \"Who was Li Bai?\"}\n\n"
                               "{\"turns\": [{\"text\": \"Where is the old moon?\"}]}\n";
    static const char array[] = "[{\"a\": \"Why is tea so green?\"}, {\"a\": \"How far is far away?\"}]";
    static const char lines[] = "one two three\nfour five six seven\nlast line without end";
    check_ok(hbk_file_write(jsonl, rows, strlen(rows), &err));
    check_ok(hbk_file_write(json, array, strlen(array), &err));
    check_ok(hbk_file_write(txt, lines, strlen(lines), &err));
    hbk_holdout *h = hbk_holdout_new(13, NULL, &err);
    check_ok(hbk_holdout_add_file(h, jsonl, &err));
    check_ok(hbk_holdout_add_file(h, json, &err));
    check_ok(hbk_holdout_add_file(h, txt, &err));
    t18_check_found(h, "who was li bai", jsonl, 1);
    t18_check_found(h, "where is the old moon", jsonl, 3);
    t18_check_found(h, "how far is far away", json, 2);
    t18_check_found(h, "three four five six seven", txt, 2);
    t18_check_found(h, "the last line without end", txt, 3);
    t18_check_found(h, "one two three four", NULL, 0);
    check_ok(hbk_file_write(txt, "one two three\n", 14, &err));
    check_error(hbk_holdout_add_file(h, txt, &err), HBK_ERROR_DATA, "at least 4 words");
    check_ok(hbk_file_write(txt, "four five six seven\n\0\nwho was Li Bai?\n", 38, &err));
    check_error(hbk_holdout_add_file(h, txt, &err), HBK_ERROR_FORMAT, "NUL byte"); /* and nothing unread */
    check_ok(hbk_file_write(json, "[{\"a\": ", 8, &err));
    check_error(hbk_holdout_add_file(h, json, &err), HBK_ERROR_FORMAT, "");
    check_error(hbk_holdout_add_file(h, "/no/such.jsonl", &err), HBK_ERROR_FILE, "");
    hbk_holdout_free(h);
}

static bool t18_holdout_once(void *ctx, hbk_allocator *a, hbk_error *err)
{
    const char *file;
    hbk_int line;
    hbk_holdout *h = hbk_holdout_new(4, a, err);
    bool ok = h && hbk_holdout_add(h, t18_question, "a", 1, err) &&
              hbk_holdout_add_file(h, (const char *)ctx, err) &&
              hbk_holdout_find(h, t18_question, &file, &line, err);
    hbk_holdout_free(h);
    return ok;
}

/* Promise: whichever allocation of the two sieves fails, the error is memory and nothing leaks. */
static void t18_sieves_run_out(void **state)
{
    (void)state;
    hbk_error err;
    static char texts[T18_TEXTS][200];
    char path[512];
    t18_alike(texts);
    assert_true(fault_sweep(t18_dedup_once, texts) > 10);
    test_tmp(path, "t18_eval_memory.txt");
    check_ok(hbk_file_write(path, "four five six seven\n", 20, &err));
    assert_true(fault_sweep(t18_holdout_once, path) > 6);
}

/* Promise: header rules count letters of any script, and navigation words begin at a word. */
static void t18_headers(void **state)
{
    (void)state;
    check_near(hbk__upper_share("NASA x", 6), 0.8, 1e-12);
    check_near(hbk__upper_share("\xc3\x89t\xc3\xa9", 5), 1.0 / 3, 1e-12); /* E, t and e, two with accents */
    check_near(hbk__upper_share("12 - !", 6), -1, 1e-12);
    check_near(hbk__upper_share("\xe6\x97\xa5\xe6\x9c\xac", 6), 0, 1e-12); /* no capitals there */
    assert_true(hbk__is_navigation("Quick Links", 11));
    assert_true(hbk__is_navigation("All ADVERTISEMENTS", 18));
    assert_false(hbk__is_navigation("How we ported it", 16));
    assert_false(hbk__is_navigation("Blogin", 6));
}

static bool t18_use_corpus(void *ctx, hbk_allocator *a, hbk_error *err)
{
    static const char text[] = "# One of them\nThe cat sat on the mat. Then it went to sleep at once.\n"
                               "# Another\nThis is the second text, and it has a few words too.\n";
    hbk_corpus_options o = hbk_corpus_defaults();
    o.min_chars = 10;
    hbk_corpus *c = hbk_corpus_new(&o, (const char *)ctx, NULL, a, err);
    bool ok = c && hbk_corpus_add_text(c, text, sizeof text - 1, true, "a.md", err);
    if (c) ok = hbk_corpus_finish(c, NULL, ok ? err : NULL) && ok;
    return ok;
}

/* Promise: whichever allocation fails, the error is memory and nothing leaks. */
static void t18_memory_runs_out(void **state)
{
    (void)state;
    char out[512];
    test_tmp(out, "t18_memory.jsonl");
    assert_true(fault_sweep(t18_use_corpus, out) > 4);
}

/* Promise: of 300 web texts the filters keep a plausible share, and every kept text is a piece of its
   document, byte for byte. */
static void t18_c4(void **state)
{
    (void)state;
    char path[512];
    if (!test_data(path, "instructions/lf_c4_demo.jsonl")) skip();
    hbk_error err;
    t18_run r = t18_begin(200, 700, false);
    check_ok(hbk_corpus_add_file(r.c, path, &err));
    t18_end(&r);
    hbk_int total = 0;
    for (int i = 0; i < HBK_DROP_COUNT; i++) {
        print_message("    %s %d", hbk_drop_name((hbk_drop)i), (int)r.counts[i]);
        total += r.counts[i];
    }
    print_message(" of %d segments\n", (int)total);
    assert_true(total >= 300 && r.counts[HBK_DROP_KEPT] > total / 2);
    json_t *rows = t18_rows(path);
    size_t row = 0;
    for (size_t i = 0; i < json_array_size(r.kept); i++) {
        const char *text = t18_get(r.kept, i, "text");
        hbk_int length = hbk_utf8_length(text, strlen(text));
        assert_true(length >= 200 && length <= 700);
        while (row < json_array_size(rows) && !strstr(t18_get(rows, row, "text"), text)) row++;
    }
    assert_true(row < json_array_size(rows)); /* all were found, in the file's order */
    json_decref(rows);
    t18_free(&r);
}

/* Promise: each format gives its first turn, and each row left out is counted under its reason. */
static void t18_seed_formats(void **state)
{
    (void)state;
    static const struct {
        const char *format, *rows, *instruction, *output, *id;
        int fates[TOOL_SEED_FATE_COUNT];
    } cases[] = {
        {"alpaca",
         "[{\"instruction\": \"Add.\", \"input\": \"1 2\", \"output\": \"3\"},"
         "{\"instruction\": \"Say it.\", \"input\": \"\", \"output\": \" \"}, {\"instruction\": \"Say.\"}]",
         "Add.\n\n1 2", "3", "seed-1", {1, 0, 0, 0, 0, 1, 0, 0, 1}},
        {"seed_tasks",
         "{\"id\": \"t0\", \"instruction\": \"Go.\", \"instances\": "
         "[{\"input\": \"\", \"output\": \"Gone.\"}]}\n"
         "{\"id\": \"t1\", \"instruction\": \"Go.\", \"instances\": []}",
         "Go.", "Gone.", "t0", {1, 0, 0, 0, 0, 0, 0, 0, 1}},
        {"messages",
         "{\"messages\": [{\"role\": \"system\", \"content\": \"S\"}, "
         "{\"role\": \"user\", \"content\": \"U\"},"
         "{\"role\": \"assistant\", \"content\": \"A\"}, {\"role\": \"user\", \"content\": \"V\"}]}\n"
         "{\"messages\": [{\"role\": \"assistant\", \"content\": \"A\"}]}\n"
         "{\"messages\": [{\"role\": \"user\", \"content\": \"A\"}]}",
         "U", "A", "seed-1", {1, 0, 0, 0, 2, 0, 0}},
        {"sharegpt",
         "{\"id\": \"c\", \"conversations\": [{\"from\": \"human\", \"value\": \"U\"},"
         "{\"from\": \"gpt\", \"value\": \"A\"}]}",
         "U", "A", "c", {1, 0, 0, 0, 0, 0, 0}},
        {"sharegpt", "{\"conversations\": [\"U\", \"A\"]}", "U", "A", "seed-1", {1, 0, 0, 0, 0, 0, 0}},
        {"guanaco",
         "{\"text\": \"### Human: U ### Assistant: A\\n### Human: V### Assistant: B\"}\n"
         "{\"text\": \"### Human: U\"}",
         "U", "A", "seed-1", {1, 0, 0, 0, 1, 0, 0}},
        {"oasst",
         "{\"message_tree_id\": \"m\", \"prompt\": {\"text\": \"U\", \"lang\": \"en\", \"replies\": ["
         "{\"text\": \"B\", \"lang\": \"en\", \"role\": \"assistant\", \"rank\": 1},"
         "{\"text\": \"A\", \"lang\": \"en\", \"role\": \"assistant\", \"rank\": 0}]}}\n"
         "{\"prompt\": {\"text\": \"U\", \"lang\": \"de\", \"replies\": ["
         "{\"text\": \"A\", \"lang\": \"en\", \"role\": \"assistant\", \"rank\": 0}]}}\n"
         "{\"prompt\": {\"text\": \"U\", \"lang\": \"en\", \"replies\": ["
         "{\"text\": \"A\", \"lang\": \"fr\", \"role\": \"assistant\", \"rank\": 0}]}}\n"
         "{\"prompt\": {\"text\": \"U\", \"lang\": \"en\", \"deleted\": true, \"replies\": ["
         "{\"text\": \"A\", \"lang\": \"en\", \"role\": \"assistant\", \"rank\": 0}]}}\n"
         "{\"prompt\": {\"text\": \"U\", \"lang\": \"en\", \"replies\": ["
         "{\"text\": \"A\", \"lang\": \"en\", \"role\": \"assistant\", \"rank\": null}]}}\n"
         "{\"prompt\": {\"text\": \"U\", \"lang\": \"en\"}}",
         "U", "A", "m", {1, 2, 1, 2, 0, 0, 0}},
    };
    char in[512], out[512];
    test_tmp(in, "t18_seeds_in.jsonl");
    test_tmp(out, "t18_seeds_out.jsonl");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        hbk_error err;
        tool_seed_counts counts;
        check_ok(hbk_file_write(in, cases[i].rows, strlen(cases[i].rows), &err));
        check_ok(tool_seeds(in, out, 0, &counts, &err));
        assert_string_equal(counts.format, cases[i].format);
        hbk_int sum = 0;
        for (int k = 0; k < TOOL_SEED_FATE_COUNT; k++) {
            if (counts.fates[k] != cases[i].fates[k])
                fail_msg("%s: %d %s", counts.format, (int)counts.fates[k],
                         tool_seed_fate_name((tool_seed_fate)k));
            sum += counts.fates[k];
        }
        assert_int_equal(sum, counts.rows);
        json_t *rows = t18_rows(out);
        assert_int_equal(json_array_size(rows), 1);
        assert_string_equal(t18_get(rows, 0, "id"), cases[i].id);
        assert_string_equal(t18_get(rows, 0, "instruction"), cases[i].instruction);
        assert_string_equal(t18_get(rows, 0, "output"), cases[i].output);
        assert_string_equal(t18_get(rows, 0, "source"), "seed");
        json_decref(rows);
    }
    hbk_error err;
    tool_seed_counts counts;
    check_ok(hbk_file_write(in, "{\"a\": 1}\n", 9, &err));
    check_error(tool_seeds(in, out, 0, &counts, &err), HBK_ERROR_UNSUPPORTED, ":1: no format that is known");
    check_ok(hbk_file_write(in, "{\"conversations\": []}\n", 22, &err));
    check_error(tool_seeds(in, out, 0, &counts, &err), HBK_ERROR_DATA, "no pair in 1 rows");
    const char *torn = "{\"instruction\": \"a\", \"output\": \"b\"}\n\n{\"instruction\": \"a\"}\n"
                       "{\"output\": \"b\"}\n{\"instruction\": \"a\"}\n"
                       "{\"instruction\": 1, \"output\": \"b\"}\n";
    char reason[256];
    check_ok(hbk_file_write(in, torn, strlen(torn), &err));
    check_ok(tool_seeds(in, out, 0, &counts, &err));
    assert_int_equal(counts.fates[TOOL_SEED_NO_OUTPUT], 2);
    assert_int_equal(counts.fates[TOOL_SEED_NO_INSTRUCTION], 1);
    tool_seed_reason(&counts, TOOL_SEED_NO_OUTPUT, reason);
    assert_string_equal(reason, "without an output (the first in line 3)");
    tool_seed_reason(&counts, TOOL_SEED_MALFORMED, reason);
    assert_non_null(strstr(reason, "{\"instruction\", \"input\"?, \"output\"} (the first in line 6)"));
    torn = "{\"instruction\": \"a\"}\n";
    check_ok(hbk_file_write(in, torn, strlen(torn), &err));
    check_error(tool_seeds(in, out, 0, &counts, &err), HBK_ERROR_DATA,
                "without an output (the first in line 1)");
}

/* Promise: of 100 Open Assistant trees, all English, the 99 with a ranked first reply become pairs, which
   chapter 15 reads back; the public files of other formats convert too. */
static void t18_seed_files(void **state)
{
    (void)state;
    static const struct {
        const char *name, *format;
        int rows, written;
    } cases[] = {{"instructions/oasst_en_100_tree.jsonl", "oasst", 100, 99},
                 {"instructions/seed_tasks.jsonl", "seed_tasks", 175, -1},
                 {"instructions/lf_alpaca_en_demo.json", "alpaca", 999, -1},
                 {"instructions/fastchat_dummy_conversation.json", "sharegpt", -1, -1}};
    char path[512], out[512];
    if (!test_data(path, cases[0].name)) skip();
    test_tmp(out, "t18_seeds_out.jsonl");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        hbk_error err;
        tool_seed_counts counts;
        assert_true(test_data(path, cases[i].name));
        check_ok(tool_seeds(path, out, 0, &counts, &err));
        print_message("    %s: %d of %d\n", counts.format, (int)counts.fates[0], (int)counts.rows);
        assert_string_equal(counts.format, cases[i].format);
        if (cases[i].rows >= 0) assert_int_equal(counts.rows, cases[i].rows);
        if (cases[i].written >= 0) assert_int_equal(counts.fates[TOOL_SEED_WRITTEN], cases[i].written);
        hbk_pairs p;
        memset(&p, 0, sizeof p);
        check_ok(hbk_pairs_load(&p, out, "seed", &err));
        assert_int_equal(p.n, counts.fates[TOOL_SEED_WRITTEN]);
        if (i == 0)
            assert_string_equal(p.data[0].instruction, "How can I find the best 401k plan for my needs?");
        hbk_pairs_free(&p);
        check_ok(tool_seeds(path, out, 5, &counts, &err));
        assert_int_equal(counts.fates[TOOL_SEED_WRITTEN], 5);
    }
}

static const struct CMUnitTest tests_18[] = {
    cmocka_unit_test(t18_every_drop),   cmocka_unit_test(t18_keep_all),
    cmocka_unit_test(t18_markdown_trees), cmocka_unit_test(t18_plain_cuts),
    cmocka_unit_test(t18_files),        cmocka_unit_test(t18_nothing_kept),
    cmocka_unit_test(t18_jaccard),      cmocka_unit_test(t18_hash_set),
    cmocka_unit_test(t18_words),
    cmocka_unit_test(t18_similarity),
    cmocka_unit_test(t18_dedup_is_exact),
    cmocka_unit_test(t18_holdout_rules),
    cmocka_unit_test(t18_holdout_files),
    cmocka_unit_test(t18_sieves_run_out),
    cmocka_unit_test(t18_headers),      cmocka_unit_test(t18_memory_runs_out),
    cmocka_unit_test(t18_c4),           cmocka_unit_test(t18_seed_formats),
    cmocka_unit_test(t18_seed_files),
};
