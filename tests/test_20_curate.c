/* Chapter 20: what counts as a rating, the two read-outs, and what is kept. What peers got wrong is in the
   tables: the first score instead of the last, "10" read as 1, "4." and "4/5" missed, a default for no score,
   a threshold that is stored and never applied. */
#include "test.h"
#include "fault.h"

/* ---- reading a rating ----------------------------------------------------------------- */

typedef struct t20_reply {
    const char *text;
    double score; /* 0: none */
} t20_reply;

static const t20_reply t20_replies[] = {
    /* the form that the rubric asks for, and how models decorate it */
    {"The answer is complete.\nScore: 4", 4},
    {"Score: 1", 1},
    {"Score: 5", 5},
    {"Score: 4.", 4},
    {"Score:4.", 4},
    {"Score:4", 4},
    {"score : 5", 5},
    {"SCORE: 3", 3},
    {"ScOrE: 3", 3},
    {"Score:\t2", 2},
    {"**Score:** 4", 4},
    {"**Score**: 4", 4},
    {"**Score: 4**", 4},
    {"Score: **4**", 4},
    {"__Score__: 4", 4},
    {"_Score: 4_", 4},
    {"### Score: 4", 4},
    {"`Score: 4`", 4},
    {"Score: [4]", 4},
    {"Score: <4>", 4},
    {"Score: (4)", 4},
    {"Score: \"4\"", 4},
    {"Score: '4'", 4},
    {"{\"score\": 4}", 4},
    {"{\"score\": \"4\"}", 4},
    {"score=4", 4},
    {"Final score: 4", 4},
    {"Good. (Score: 4)", 4},
    {"\xe2\x80\x94Score: 4", 4}, /* a dash before it */
    {"Score: 4\n\n", 4},
    {"Score: 4\r\n", 4},
    /* numbers of the scale */
    {"Score: 4/5", 4},
    {"Score: 4 / 5", 4},
    {"Score: **4**/5.", 4},
    {"Score: 4 out of 5", 4},
    {"Score: 4.5", 4.5},
    {"Score: 4.5/5", 4.5},
    {"Score: 5.0", 5},
    {"Score: 1.00", 1},
    {"Score: 04", 4},
    {"Score: 4 because it is focused", 4},
    {"Score: 4 (5 would be perfect)", 4},
    {"Score: 4, not more", 4},
    {"Score: 4 - good", 4},
    {"Score: 4 of course", 4},
    {"Score: 4+", 4},
    /* the last label counts */
    {"A Score: 5 needs an expert. Score: 3", 3},
    {"Score: 2\nScore: 4", 4},
    {"Score: 4 is too much, so Score: 2. Done.", 2},
    {"The score: hard to say.\nScore: 3", 3},
    {"Score: 10\nScore: 3", 3},
    {"Score: 4\nI score things. Scores vary; the scoreboard is full.", 4}, /* words, no labels */
    {"Score: 4\nScore:", 0},
    {"Score: 4\nScore: unknown", 0},
    {"Score: 4\nScore: 10", 0},
    /* not on the scale */
    {"Score: 0", 0},
    {"Score: 6", 0},
    {"Score: 10", 0},
    {"Score: 10502", 0},
    {"Score: 0.5", 0},
    {"Score: 5.1", 0},
    {"Score: -4", 0},
    {"Score: 8/10", 0},
    {"Score: 4/10", 0},
    {"Score: 4/50", 0},
    {"Score: 4/5.5", 0},
    {"Score: 4 out of 10", 0},
    {"Score: 4 of 10", 0},
    {"Score: 80%", 0},
    {"Score: 4 %", 0},
    {"Score: 4th", 0},
    {"Score: 4x", 0},
    {"Score: 5e0", 0},
    {"Score: 99999999999999999999999999999999999999999999", 0},
    {"Score: 18446744073709551620", 0}, /* 2^64 + 4 */
    {"Score: 4294967300", 0},           /* 2^32 + 4 */
    /* several numbers are no rating */
    {"Score: 1-5", 0},
    {"Score: 4 - 5", 0},
    {"Score: 4\xe2\x80\x93" "5", 0}, /* an en dash */
    {"Score: 4\xe2\x80\x94" "5", 0}, /* an em dash */
    {"Score: 4\xe2\x80\x94it helps", 4},
    {"Score: 4~5", 0},
    {"Score: 4 to 5", 0},
    {"Score: 4 or 5", 0},
    {"Score: 4,5", 0},
    {"Score (1-5): 4", 0},
    /* no number, or no label */
    {"", 0},
    {"4", 0},
    {"Score", 0},
    {"Score:", 0},
    {"Score: ", 0},
    {"Score 4", 0},
    {"Score - 4", 0},
    {"Score is 4", 0},
    {"Score: four", 0},
    {"Score: IV", 0},
    {"Score: <rating>", 0},
    {"Score: N/A", 0},
    {"Score:\n4", 0}, /* the next line may be anything, a list too */
    {"Score: .5", 0},
    {"Rating: 4", 0},
    {"Reward: 10", 0},
    {"4/5", 0},
    {"[4]", 0},
    {"I give it a 4.", 0},
    {"underscore: 3", 0},
    {"my_score: 3", 0},
    {"2score: 3", 0},
    {"scores: 4", 0},
    {"Scored: 4", 0},
    {"scoreboard: 3", 0},
    {"s core: 3", 0},
    /* other languages: another word is another word */
    {"Bewertung: 4", 0},
    {"Puntuaci\xc3\xb3n: 4", 0},
    {"Note : 4/5", 0},
    {"\xe8\xaf\x84\xe5\x88\x86: 4", 0},
    {"\xd0\x9e\xd1\x86\xd0\xb5\xd0\xbd\xd0\xba\xd0\xb0: 4", 0},
    {"Score: \xef\xbc\x94", 0},       /* a wide digit */
    {"Score: \xd9\xa4", 0},           /* an Arabic one */
    {"\xff\xfe Score: 4 \xff", 4},    /* bytes that are no text */
};

/* Promise: a rating is a number from 1 to 5 after the last label "Score:", and nothing else is one. */
static void t20_rating_table(void **state)
{
    (void)state;
    size_t n = sizeof t20_replies / sizeof *t20_replies;
    for (size_t i = 0; i < n; i++) {
        const t20_reply *r = &t20_replies[i];
        double got = hbk_rating_parse(r->text);
        if (isnan(got) ? r->score != 0 : got != r->score)
            fail_msg("\"%s\" is rated %g, expected %g (0: none)", r->text, got, r->score);
    }
    print_message("    %zu replies\n", n);
}

/* Promise: the parser reads no byte behind the reply's end, wherever the reply is cut. */
static void t20_rating_ends(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof t20_replies / sizeof *t20_replies; i++)
        for (size_t n = 0; n <= strlen(t20_replies[i].text); n++) {
            char *copy = (char *)malloc(n + 1); /* of the reply's very size: sanitizers see a step beyond */
            assert_non_null(copy);
            memcpy(copy, t20_replies[i].text, n);
            copy[n] = 0;
            double got = hbk_rating_parse(copy);
            assert_true(isnan(got) || (got >= 1 && got <= 5));
            free(copy);
        }
}

/* ---- rating with a model ---------------------------------------------------------------- */

/* Everything that a call of hbk_rate takes. */
typedef struct t20_world {
    hbk_tokenizer *tok;
    hbk_template *t;
    hbk_model *base; /* or NULL: the taught model rates */
    const hbk_model *taught;
    hbk_curate_options o;
    char candidates[512], ratings[512];
} t20_world;

static t20_world t20_new(const char *name, bool digits, hbk_int context)
{
    t20_world w;
    char file[64];
    memset(&w, 0, sizeof w);
    w.tok = t19_tokenizer(digits);
    w.t = t19_template();
    if (context) w.base = t19_loud(t19_model(w.tok, 16, context));
    w.o = hbk_curate_defaults();
    w.o.decode.wave = 4;
    w.o.decode.slots = 3;
    w.o.decode.sampling.max_new = 24;
    snprintf(file, sizeof file, "t20_%s_candidates.jsonl", name);
    test_tmp(w.candidates, file);
    snprintf(file, sizeof file, "t20_%s_ratings.jsonl", name);
    test_tmp(w.ratings, file);
    unlink(w.ratings);
    return w;
}

static void t20_free(t20_world *w)
{
    hbk_model_free(w->base);
    hbk_template_free(w->t);
    hbk_tokenizer_free(w->tok);
}

static bool t20_rate(const t20_world *w, const hbk_progress *p, hbk_allocator *a, hbk_error *err)
{
    const hbk_model *m = w->base ? w->base : w->taught;
    return hbk_rate(m, NULL, w->tok, w->t, &w->o, "m0", w->candidates, w->ratings, p, a, err);
}

/* Rates anew and returns the rows. */
static json_t *t20_rows(const t20_world *w)
{
    hbk_error err;
    unlink(w->ratings);
    check_ok(t20_rate(w, NULL, NULL, &err));
    return t19_rows(w->ratings);
}

/* What the taught model says of each pair. The last four are two pairs: it says either. */
static const char *const t20_lessons[][3] = {
    {"What is hot?", "The tea.", "good.\nScore: 4"},
    {"Who is it?", "A dog.", "Score: 4.5"},
    {"Where is it?", "The moon.", "bad"},
    {"Why is it?", "It is far.", "Score: 4\nScore: 10"},
    {"Is it hot?", "The cat.", "fair. A Score: 5 is good\nScore: 2\nbad"},
    {"Is it wet?", "A dog.",
     "bad bad bad bad bad bad bad bad bad bad bad bad bad bad bad bad bad bad bad bad bad"},
    {"Is it far?", "It is.", "Score: 2"},
    {"Is it far?", "It is.", "Score: 5"},
    {"Is it old?", "It is.", "bad"},
    {"Is it old?", "It is.", "Score: 1"},
};
enum { T20_LESSONS = sizeof t20_lessons / sizeof *t20_lessons };

/* One taught model for all tests. */
static void t20_teach(t20_world *w)
{
    static hbk_model *base;
    static hbk_trainer *taught;
    if (!taught) {
        hbk_dataset d;
        memset(&d, 0, sizeof d);
        for (int i = 0; i < T20_LESSONS; i++)
            t19_lesson(&d, w->t, w->tok, HBK_RATING, t20_lessons[i][0], t20_lessons[i][1], t20_lessons[i][2]);
        double unknowable = 4 * log(2.0) / (double)d.n_targets; /* which of the last it will be */
        taught = t19_teach(&base, w->tok, &d, 0.004 + unknowable);
        hbk_dataset_free(&d);
    }
    w->taught = hbk_trainer_model(taught);
}

/* One candidate per number: the pair of that lesson, with id "c0", "c1" ... */
static void t20_write_candidates(const t20_world *w, const int *lesson, int n)
{
    hbk_text t;
    memset(&t, 0, sizeof t);
    for (int i = 0; i < n; i++)
        hbk_text_printf(
            &t, "{\"id\": \"c%d\", \"instruction\": \"%s\", \"output\": \"%s\", \"status\": \"ok\"}\n", i,
            t20_lessons[lesson[i]][0], t20_lessons[lesson[i]][1]);
    t19_write(w->candidates, hbk_text_string(&t));
    hbk_text_free(&t);
}

/* Lets so many threads work, 0: as many as before. Returns how many did. */
static int t20_threads(int n)
{
#ifdef _OPENMP
    int before = omp_get_max_threads();
    if (n) omp_set_num_threads(n);
    return before;
#else
    return n ? n : 1;
#endif
}

static double t20_score(const json_t *rows, size_t i)
{
    const json_t *score = json_object_get(json_array_get(rows, i), "score");
    assert_true(json_is_number(score) || json_is_null(score));
    return json_is_number(score) ? json_number_value(score) : (double)NAN;
}

/* Tokens of a text that continues another. */
static hbk_int t20_length(const hbk_tokenizer *tok, const char *text)
{
    hbk_error err;
    hbk_tokens ids;
    memset(&ids, 0, sizeof ids);
    check_ok(hbk_tokenizer_encode(tok, text, strlen(text), HBK_ENCODE_CONTINUE, &ids, &err));
    hbk_int n = ids.n;
    hbk_tokens_free(&ids);
    return n;
}

/* Promise: one row per usable candidate, in order, of the schema, with what the model said; a reply without a
   rating has score null and the reason, never a number. */
static void t20_text_readout(void **state)
{
    (void)state;
    hbk_error err;
    t20_world w = t20_new("text", true, 0);
    t20_teach(&w);
    static const int lesson[] = {0, 1, 2, 3, 4, 5};
    static const double scores[] = {4, 4.5, 0, 0, 2, 0};
    static const char *const statuses[] = {"ok", "ok", "unparsable", "unparsable", "ok", "truncated"};
    hbk_int room = 0; /* enough for all but the sixth */
    for (int i = 0; i < 5; i++) room = HBK__MAX(room, t20_length(w.tok, t20_lessons[i][2]) + 1);
    assert_true(t20_length(w.tok, t20_lessons[5][2]) > room);
    w.o.decode.sampling.max_new = room;
    t20_write_candidates(&w, lesson, 6);
    json_t *rows = t20_rows(&w);
    assert_int_equal(json_array_size(rows), 6);
    for (size_t i = 0; i < 6; i++) {
        const json_t *row = json_array_get(rows, i), *prov = json_object_get(row, "prov");
        t19_check_keys(row, "id score status readout votes retries text rater prov");
        t19_check_keys(prov, "model adapter template template_hash seed");
        assert_string_equal(json_string_value(json_object_get(prov, "adapter")), "m0");
        assert_string_equal(t19_string(rows, i, "status"), statuses[i]);
        assert_string_equal(t19_string(rows, i, "readout"), "text");
        if (i < 5) assert_string_equal(t19_string(rows, i, "text"), t20_lessons[i][2]);
        double score = t20_score(rows, i);
        assert_true(scores[i] > 0 ? score == scores[i] : isnan(score));
    }
    json_decref(rows);
    /* only usable candidates are rated; ids are those of the file, row-N where there is none */
    t19_write(
        w.candidates,
        "{\"id\": \"a\", \"instruction\": \"\", \"output\": \"The tea.\", \"status\": \"empty\"}\n"
        "{\"instruction\": \"What is hot?\", \"output\": \"The tea.\", \"status\": \"ok\"}\n"
        "{\"id\": \"b\", \"instruction\": \"What\", \"output\": \"The tea.\", \"status\": \"truncated\"}\n\n"
        "{\"id\": 7, \"instruction\": \"Who is it?\", \"output\": \"A dog.\"}\n");
    rows = t20_rows(&w);
    assert_int_equal(json_array_size(rows), 2);
    assert_string_equal(t19_string(rows, 0, "id"), "row-2");
    assert_string_equal(t19_string(rows, 1, "id"), "7");
    assert_true(t20_score(rows, 0) == 4 && t20_score(rows, 1) == 4.5);
    json_decref(rows);
    /* none usable, and bad rows */
    t19_write(w.candidates, "{\"instruction\": \"\", \"output\": \"x\", \"status\": \"empty\"}\n");
    unlink(w.ratings);
    check_error(t20_rate(&w, NULL, NULL, &err), HBK_ERROR_DATA, "no row that rate could use");
    t19_write(w.candidates, "\n{\"instruction\": \"x\"}\n");
    check_error(t20_rate(&w, NULL, NULL, &err), HBK_ERROR_FORMAT, "\"output\"");
    assert_int_equal(err.line, 2);
    t19_write(w.candidates, "{\"instruction\": \"x\", \"output\": \"x\", \"status\": 1}\n");
    check_error(t20_rate(&w, NULL, NULL, &err), HBK_ERROR_FORMAT, "\"status\"");
    t20_free(&w);
}

/* Promise: wherever a reply is cut off, the score is that of the whole reply or none: "4.5" never becomes 4,
   "10" never 1. */
static void t20_cut_off_digits(void **state)
{
    (void)state;
    t20_world w = t20_new("cutoff", false, 0); /* without digits in the vocabulary: they come byte by byte */
    static const char *const replies[] = {"Score: 4.5", "Score: 4/50", "Score: 10", "good.\nScore: 4 to 5",
                                          "Score: 2\nbad because it is a bad answer"};
    hbk_dataset d;
    hbk_text t;
    memset(&d, 0, sizeof d);
    memset(&t, 0, sizeof t);
    for (int i = 0; i < 5; i++) {
        char ask[16];
        snprintf(ask, sizeof ask, "%c?", "aekou"[i]);
        t19_lesson(&d, w.t, w.tok, HBK_RATING, ask, "The tea.", replies[i]);
        hbk_text_printf(&t, "{\"id\": \"%d\", \"instruction\": \"%s\", \"output\": \"The tea.\"}\n", i, ask);
    }
    hbk_model *base;
    hbk_trainer *taught = t19_teach(&base, w.tok, &d, 0.02);
    w.taught = hbk_trainer_model(taught);
    t19_write(w.candidates, hbk_text_string(&t));
    int rated = 0, cut = 0;
    for (int most = 1; most <= 30; most++) {
        w.o.decode.sampling.max_new = most;
        json_t *rows = t20_rows(&w);
        for (size_t i = 0; i < 5; i++) {
            double got = t20_score(rows, i), whole = hbk_rating_parse(replies[i]);
            const char *text = t19_string(rows, i, "text"), *status = t19_string(rows, i, "status");
            assert_int_equal(strncmp(text, replies[i], strlen(text)), 0); /* it says what it learned */
            bool all = !strcmp(text, replies[i]);
            rated += !isnan(got);
            cut += !all && !isnan(hbk_rating_parse(text)); /* what a careless reader would believe */
            if (!isnan(got) && got != whole)
                fail_msg("\"%s\" cut to \"%s\" is rated %g", replies[i], text, got);
            if (!all && isnan(got)) assert_string_equal(status, "truncated");
            if (most == 30) assert_true(isnan(whole) ? isnan(got) : got == whole);
        }
        json_decref(rows);
    }
    assert_true(rated > 30 && cut > 4);
    hbk_text_free(&t);
    hbk_dataset_free(&d);
    hbk_trainer_free(taught);
    hbk_model_free(base);
    t20_free(&w);
}

/* Promise: of several votes the score is the mean or the median of those that can be read, and both stand in
   the row with their spread; votes need a temperature, and each has a stream of its own. */
static void t20_votes_come_to(bool median)
{
    hbk_error err;
    t20_world w = t20_new("votes", true, 0);
    t20_teach(&w);
    static const int lesson[] = {6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 2}; /* gets a 2 or a 5; gets none */
    enum { N = sizeof lesson / sizeof *lesson };
    w.o.votes = 3;
    t20_write_candidates(&w, lesson, N);
    check_error(t20_rate(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "3 votes");
    w.o.decode.sampling.temperature = 1;
    w.o.decode.sampling.top_p = 0.95;
    w.o.vote = median ? HBK_VOTE_MEDIAN : HBK_VOTE_MEAN;
    json_t *rows = t20_rows(&w);
    int differ = 0, twos = 0, fives = 0;
    for (size_t i = 0; i < N; i++) {
        const json_t *votes = json_object_get(json_array_get(rows, i), "votes");
        double sum = 0, first = 0, sorted[3];
        int read = 0;
        assert_int_equal(json_array_size(votes), 3);
        for (size_t v = 0; v < 3; v++) {
            const json_t *vote = json_array_get(votes, v);
            if (!json_is_number(vote)) continue;
            double x = json_number_value(vote);
            assert_true(i < N - 1 && (x == 2 || x == 5));
            twos += x == 2;
            fives += x == 5;
            if (!read++) first = x;
            differ += x != first;
            sum += x;
            sorted[read - 1] = x;
        }
        assert_int_equal(read, i < N - 1 ? 3 : 0);
        qsort(sorted, (size_t)read, sizeof *sorted, hbk__by_value);
        const json_t *row = json_array_get(rows, i);
        t19_check_keys(row, "id score status readout votes mean median spread retries text rater prov");
        double mean = sum / 3, squares = 0;
        for (int v = 0; v < read; v++) squares += (sorted[v] - mean) * (sorted[v] - mean);
        if (read) {
            check_near(json_number_value(json_object_get(row, "mean")), mean, 1e-12);
            check_near(json_number_value(json_object_get(row, "median")), sorted[1], 0);
            check_near(json_number_value(json_object_get(row, "spread")), sqrt(squares / 2), 1e-12);
        } else {
            assert_true(json_is_null(json_object_get(row, "spread")));
        }
        if (read) check_near(t20_score(rows, i), median ? sorted[1] : mean, 1e-12);
        else assert_true(isnan(t20_score(rows, i)));
        assert_string_equal(t19_string(rows, i, "status"), read ? "ok" : "unparsable");
    }
    assert_true(differ > 0 && twos > 0 && fives > 0);
    json_decref(rows);
    w.o.votes = 0;
    check_error(t20_rate(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "0 votes");
    unlink(w.ratings);
    w.o.votes = INT64_MAX / 2; /* a product beyond all numbers */
    check_error(t20_rate(&w, NULL, NULL, &err), HBK_ERROR_RANGE, "are too many");
    t20_free(&w);
}

static void t20_votes(void **state)
{
    (void)state;
    t20_votes_come_to(false);
    t20_votes_come_to(true);
}

/* Promise: a reply without a score is sampled anew as often as was asked, with a stream of its own, until one
   has a score; a reply with one is left alone; the row says how often, and the text is that of the reply that
   counted. What still has none is dropped as before. */
static void t20_retries(void **state)
{
    (void)state;
    t20_world w = t20_new("retries", true, 0);
    t20_teach(&w);
    /* of "Is it old?" the model says "bad" or a score, about as often */
    static const int lesson[] = {8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 0, 2};
    enum { N = sizeof lesson / sizeof *lesson, DOUBTFUL = 12 };
    w.o.decode.sampling.temperature = 1;
    w.o.decode.sampling.top_p = 0.95;
    w.o.decode.wave = 16;
    t20_write_candidates(&w, lesson, N);
    hbk_int read[3], tried[3];
    json_t *first = NULL;
    for (int most = 0; most < 3; most++) {
        w.o.retries = 2 * most;
        json_t *rows = t20_rows(&w);
        read[most] = tried[most] = 0;
        for (size_t i = 0; i < N; i++) {
            const json_t *row = json_array_get(rows, i), *votes = json_object_get(row, "votes");
            hbk_int tries = json_integer_value(json_object_get(row, "retries"));
            double score = t20_score(rows, i), said = hbk_rating_parse(t19_string(rows, i, "text"));
            assert_true(isnan(score) ? isnan(said) : score == said);
            assert_int_equal(json_array_size(votes), 1);
            assert_in_range(tries, 0, 2 * most);
            if (isnan(score)) assert_int_equal(tries, 2 * most);
            if (i == DOUBTFUL) assert_true(tries == 0 && score == 4);
            if (i == N - 1) assert_true(tries == 2 * most && isnan(score)); /* it knows no number for this */
            if (first && !isnan(t20_score(first, i))) /* a reply that could be read stays */
                assert_true(json_equal(row, json_array_get(first, i)));
            read[most] += !isnan(score);
            tried[most] += tries;
        }
        if (most == 0) first = rows;
        else json_decref(rows);
    }
    assert_true(read[0] > 1 && read[0] < DOUBTFUL && read[1] > read[0] && read[2] >= read[1]);
    assert_true(tried[0] == 0 && tried[2] > tried[1]);
    json_decref(first);
    w.o.decode.sampling.temperature = 0; /* a greedy reply would come again: it is sampled */
    w.o.retries = 6;
    json_t *rows = t20_rows(&w);
    assert_true(t20_score(rows, DOUBTFUL) == 4 && isnan(t20_score(rows, N - 1)));
    json_decref(rows);
    hbk_error err;
    w.o.retries = -1;
    check_error(t20_rate(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "-1 retries");
    t20_free(&w);
}

/* ---- the expected read-out ------------------------------------------------------------------ */

/* log p(continuation | prompt) from the logits of every position of the whole. */
static double t20_log_p(const hbk_model *m, const hbk_tokens *prompt, const hbk_tokens *continuation)
{
    hbk_error err;
    hbk_tokens all;
    memset(&all, 0, sizeof all);
    hbk_tokens_append(&all, prompt->data, prompt->n);
    hbk_tokens_append(&all, continuation->data, continuation->n);
    hbk_int start[2] = {0, all.n}, V = m->config.vocab_size;
    hbk_batch b = {all.n, 1, all.data, NULL, start};
    hbk_acts *a = hbk_acts_new(m, NULL, all.n, all.n, HBK_KEEP_NONE, NULL, &err);
    hbk_real *logits = HBK__NEW(NULL, hbk_real, all.n * V, &err);
    check_ok(hbk_model_logits(a, m, &b, NULL, logits, &err));
    double sum = 0;
    for (hbk_int i = prompt->n; i < all.n; i++) {
        const hbk_real *row = logits + (i - 1) * V;
        double max = -INFINITY, total = 0;
        for (hbk_int j = 0; j < V; j++) max = fmax(max, (double)row[j]);
        for (hbk_int j = 0; j < V; j++) total += exp((double)row[j] - max);
        sum += (double)row[all.data[i]] - max - log(total);
    }
    hbk_free(NULL, logits);
    hbk_acts_free(a);
    hbk_tokens_free(&all);
    return sum;
}

/* The mean of 1 .. 5 after the rating prompt of lesson k and the text `lead`, which ends in the label. */
static double t20_expected_by_hand(const t20_world *w, int k, const char *lead)
{
    hbk_error err;
    hbk_tokens prompt, digit;
    hbk_render r;
    memset(&prompt, 0, sizeof prompt);
    memset(&digit, 0, sizeof digit);
    memset(&r, 0, sizeof r);
    r.use = HBK_RATING;
    r.instruction = t20_lessons[k][0];
    r.output = t20_lessons[k][1];
    check_ok(hbk_template_tokens(w->t, w->tok, &r, &prompt, NULL, &err));
    check_ok(hbk_tokenizer_encode(w->tok, lead, strlen(lead), HBK_ENCODE_CONTINUE, &prompt, &err));
    double total = 0, mean = 0;
    for (int grade = 1; grade <= 5; grade++) {
        char text[3] = {' ', (char)('0' + grade), 0};
        digit.n = 0;
        check_ok(hbk_tokenizer_encode(w->tok, text, 2, HBK_ENCODE_CONTINUE, &digit, &err));
        double p = exp(t20_log_p(w->base ? w->base : w->taught, &prompt, &digit));
        total += p;
        mean += grade * p;
    }
    hbk_tokens_free(&prompt);
    hbk_tokens_free(&digit);
    return mean / total;
}

/* A template whose reply stands behind a blank, as llama2's does. */
static hbk_template *t20_blank_template(void)
{
    char path[512];
    hbk_error err;
    test_tmp(path, "t20_blank.json");
    t19_write(
        path,
        "{\"name\": \"blank\", \"prompt\": \"{bos}Ask: {instruction} Rate:\", \"reply\": \" {output}{eos}\","
        " \"rating\": \"{bos}Ask: {instruction}\\n{output} Rate:\"}");
    hbk_template *t = hbk_template_load(path, NULL, &err);
    if (!t) fail_msg("%s", err.message);
    return t;
}

/* Promise: the expected rating is the mean of 1 to 5 under the probabilities of the whole continuations " 1"
   to " 5" after reasoning and label, of one token each or of two; and every pair gets one. */
static void t20_expected_readout(void **state)
{
    (void)state;
    static const int lesson[] = {0, 1, 2, 3, 4, 5};
    for (int way = 0; way < 4; way++) { /* digits of one and two tokens; reply with and without a blank */
        t20_world w = t20_new("expected", way % 2 == 0, 256);
        if (way > 1) {
            hbk_template_free(w.t);
            w.t = t20_blank_template();
        }
        assert_int_equal(t20_length(w.tok, " 4"), way % 2 == 0 ? 1 : 2);
        w.o.readout = HBK_READOUT_EXPECTED;
        w.o.decode.sampling.max_new = 6;
        t20_write_candidates(&w, lesson, 6);
        json_t *rows = t20_rows(&w);
        double least = 5, most = 1;
        for (size_t i = 0; i < 6; i++) {
            char lead[512];
            snprintf(lead, sizeof lead, "%s%s\nScore:", way > 1 ? " " : "", t19_string(rows, i, "text"));
            double score = t20_score(rows, i);
            assert_string_equal(t19_string(rows, i, "readout"), "expected");
            assert_string_equal(t19_string(rows, i, "status"), "ok");
            check_near(score, t20_expected_by_hand(&w, lesson[i], lead), sizeof(hbk_real) == 8 ? 1e-9 : 1e-4);
            least = fmin(least, score);
            most = fmax(most, score);
        }
        assert_true(most - least > 0.01); /* a read-out that ignores the pair would pass the rest */
        json_decref(rows);
        t20_free(&w);
    }
}

/* Counts blocks of one size; 0: takes that of the first. */
typedef struct t20_blocks {
    size_t size;
    int n;
} t20_blocks;

static void *t20_count_blocks(void *ctx, void *p, size_t old_size, size_t size)
{
    t20_blocks *b = (t20_blocks *)ctx;
    (void)old_size;
    if (!b->size) b->size = size;
    b->n += !p && size == b->size;
    if (size) return realloc(p, size);
    free(p);
    return NULL;
}

/* Promise: the expected read-out reads replies in the session that wrote them, one for each wave: nothing of
   a prompt and its reasoning goes through the model twice. */
static void t20_expected_once(void **state)
{
    (void)state;
    static const int lesson[] = {0, 1, 2, 3, 4, 5, 0, 1, 2};
    hbk_error err;
    t20_blocks blocks = {0, 0};
    hbk_allocator a;
    memset(&a, 0, sizeof a);
    a.realloc = t20_count_blocks;
    a.ctx = &blocks;
    t20_world w = t20_new("once", true, 256);
    w.o.readout = HBK_READOUT_EXPECTED;
    w.o.decode.sampling.max_new = 6;
    w.o.decode.wave = 3;
    t20_write_candidates(&w, lesson, 9);
    hbk_session *s = hbk_session_new(w.base, NULL, 1, 8, HBK_F32, &a, &err);
    check_ok(s);
    hbk_session_free(s); /* the session itself was the first block */
    blocks.n = 0;
    unlink(w.ratings);
    check_ok(t20_rate(&w, NULL, &a, &err));
    assert_int_equal(blocks.n, 3);
    t20_free(&w);
}

/* Promise: a reply that has its label is read there, whatever number it wrote; one without is led to the
   label. Greedy text and expectation agree where the model is sure. */
static void t20_expected_label(void **state)
{
    (void)state;
    t20_world w = t20_new("label", true, 0);
    t20_teach(&w);
    static const int lesson[] = {0, 2, 3, 4, 6};
    static const char *const leads[] = {"good.\nScore:", "bad\nScore:", "Score: 4\nScore:",
                                        "fair. A Score: 5 is good\nScore:", "Score:"};
    w.o.readout = HBK_READOUT_EXPECTED;
    t20_write_candidates(&w, lesson, 5);
    json_t *rows = t20_rows(&w);
    for (size_t i = 0; i < 5; i++) {
        double score = t20_score(rows, i);
        assert_string_equal(t19_string(rows, i, "status"), "ok");
        check_near(score, t20_expected_by_hand(&w, lesson[i], leads[i]), sizeof(hbk_real) == 8 ? 1e-9 : 1e-3);
    }
    check_near(t20_score(rows, 0), 4, 0.2);
    check_near(t20_score(rows, 3), 2, 0.2);
    assert_in_range((int)(100 * t20_score(rows, 4)), 230, 470); /* 2 and 5, about as often */
    json_decref(rows);
    t20_free(&w);
}

/* Promise: the expected read-out finds room for label and digit even where the reply fills the context; a
   pair that leaves none is too long, whatever stands beside it in its wave. */
static void t20_expected_room(void **state)
{
    (void)state;
    t20_world w = t20_new("room", false, 256);
    static const int lesson[] = {1, 0, 3, 5, 6};
    w.o.readout = HBK_READOUT_EXPECTED;
    w.o.decode.sampling.max_new = 500; /* a random model does not end by itself */
    t20_write_candidates(&w, lesson, 5);
    json_t *rows = t20_rows(&w);
    for (size_t i = 0; i < 5; i++) {
        assert_string_equal(t19_string(rows, i, "status"), "ok");
        assert_in_range((int)(1000 * t20_score(rows, i)), 1000, 5000);
    }
    json_decref(rows);
    int seen[2] = {0, 0};
    for (hbk_int limit = 1; limit < 64; limit += 5) {
        w.o.decode.max_length = limit;
        w.o.decode.wave = 5;
        rows = t20_rows(&w);
        w.o.decode.wave = 1; /* every pair alone */
        json_t *alone = t20_rows(&w);
        for (size_t i = 0; i < 5; i++) {
            double a = t20_score(rows, i), b = t20_score(alone, i);
            bool too_long = !strcmp(t19_string(rows, i, "status"), "too_long");
            assert_string_equal(t19_string(rows, i, "status"), t19_string(alone, i, "status"));
            assert_int_equal(too_long, isnan(a));
            if (!too_long) assert_string_equal(t19_string(rows, i, "status"), "ok");
            if (!too_long) check_near(a, b, 1e-3);
            seen[too_long]++;
        }
        json_decref(rows);
        json_decref(alone);
    }
    assert_true(seen[0] > 10 && seen[1] > 10);
    t20_free(&w);
}

/* Promise: a vocabulary that cannot spell a digit is refused before anything is rated, and the other read-out
   is named. */
static void t20_expected_vocabulary(void **state)
{
    (void)state;
    static const char text[] =
        "Instruction:\nResponse:\n Score: Rate Ask What is hot The tea . ? 1 2 3 4 good bad";
    hbk_error err;
    t20_world w = t20_new("vocabulary", true, 0);
    hbk_tokenizer_free(w.tok);
    w.tok = hbk_tokenizer_train(text, sizeof text - 1, 120, false, NULL, &err);
    if (!w.tok) fail_msg("%s", err.message);
    w.base = t19_model(w.tok, 16, 256);
    static const int lesson[] = {0};
    t20_write_candidates(&w, lesson, 1);
    check_ok(t20_rate(&w, NULL, NULL, &err));
    unlink(w.ratings);
    w.o.readout = HBK_READOUT_EXPECTED;
    check_error(t20_rate(&w, NULL, NULL, &err), HBK_ERROR_UNSUPPORTED, "digit 5");
    assert_non_null(strstr(err.message, "--readout text"));
    t20_free(&w);
}

/* ---- signals beside the rating ---------------------------------------------------------------- */

/* Mean log-likelihood of the target of lesson k: forward its output, backward its instruction; or of the same
   tokens after the prompt's first alone. */
static double t20_mean_log_p(const t20_world *w, const hbk_model *m, int k, hbk_use use, bool alone)
{
    hbk_error err;
    hbk_tokens all, prompt, rest;
    hbk_render r;
    hbk_int n_prompt;
    memset(&all, 0, sizeof all);
    memset(&prompt, 0, sizeof prompt);
    memset(&rest, 0, sizeof rest);
    memset(&r, 0, sizeof r);
    r.use = use;
    r.instruction = use == HBK_FORWARD ? t20_lessons[k][0] : NULL;
    r.output = use == HBK_FORWARD ? NULL : t20_lessons[k][1];
    r.reply = t20_lessons[k][use == HBK_FORWARD ? 1 : 0];
    check_ok(hbk_template_tokens(w->t, w->tok, &r, &all, &n_prompt, &err));
    hbk_tokens_append(&prompt, all.data, alone ? 1 : n_prompt);
    hbk_tokens_append(&rest, all.data + n_prompt, all.n - n_prompt);
    double mean = t20_log_p(m, &prompt, &rest) / (double)rest.n;
    hbk_tokens_free(&all);
    hbk_tokens_free(&prompt);
    hbk_tokens_free(&rest);
    return mean;
}

/* Promise: the IFD is the rater's loss of the output after its instruction over that of the output alone, the
   round trip the backward model's mean log-likelihood of the instruction after its output; both stand beside
   the rating, which they leave as it is, or in its place, and then nothing is generated. */
static void t20_signals(void **state)
{
    (void)state;
    hbk_error err;
    const double tolerance = sizeof(hbk_real) == 8 ? 1e-9 : 1e-4;
    static const int lesson[] = {0, 1, 2, 3, 4, 5};
    t20_world w = t20_new("signals", true, 256);
    hbk_model *other = t19_loud(t19_model(w.tok, 32, 256)); /* the backward model, of another width */
    t20_write_candidates(&w, lesson, 6);
    w.o.readout = HBK_READOUT_EXPECTED;
    w.o.decode.sampling.max_new = 6;
    json_t *plain = t20_rows(&w);
    w.o.signals = HBK_SIGNAL_RATING | HBK_SIGNAL_IFD | HBK_SIGNAL_ROUND_TRIP;
    unlink(w.ratings);
    check_error(t20_rate(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "backward model");
    w.o.backward = other;
    json_t *both = t20_rows(&w);
    w.o.signals = HBK_SIGNAL_IFD | HBK_SIGNAL_ROUND_TRIP;
    json_t *alone = t20_rows(&w);
    for (size_t i = 0; i < 6; i++) {
        const json_t *row = json_array_get(both, i), *bare = json_array_get(alone, i);
        double ifd = t20_mean_log_p(&w, w.base, lesson[i], HBK_FORWARD, false) /
                     t20_mean_log_p(&w, w.base, lesson[i], HBK_FORWARD, true);
        double trip = t20_mean_log_p(&w, other, lesson[i], HBK_BACKWARD, false);
        t19_check_keys(row, "id score status readout votes retries text ifd round_trip rater prov");
        t19_check_keys(bare, "id score status readout votes retries text ifd round_trip rater prov");
        check_near(json_number_value(json_object_get(row, "ifd")), ifd, tolerance);
        check_near(json_number_value(json_object_get(row, "round_trip")), trip, 10 * tolerance);
        assert_true(json_equal(json_object_get(row, "ifd"), json_object_get(bare, "ifd")));
        assert_true(json_equal(json_object_get(row, "round_trip"), json_object_get(bare, "round_trip")));
        assert_true(t20_score(both, i) == t20_score(plain, i));
        assert_true(isnan(t20_score(alone, i)));
        assert_string_equal(t19_string(alone, i, "status"), "ok");
        assert_string_equal(t19_string(alone, i, "readout"), "none");
    }
    json_decref(both);
    json_decref(alone);
    json_decref(plain);
    int mixed = 0; /* files of which some pairs do not fit, and say so */
    for (hbk_int limit = 8; limit < 40; limit++) {
        w.o.decode.max_length = limit;
        alone = t20_rows(&w);
        int fits = 0;
        for (size_t i = 0; i < 6; i++) {
            const json_t *row = json_array_get(alone, i);
            bool both_fit = json_is_number(json_object_get(row, "ifd")) &&
                            json_is_number(json_object_get(row, "round_trip"));
            assert_string_equal(t19_string(alone, i, "status"), both_fit ? "ok" : "too_long");
            fits += both_fit;
        }
        mixed += fits > 0 && fits < 6;
        json_decref(alone);
    }
    assert_true(mixed > 3);
    w.o.signals = 8;
    check_error(t20_rate(&w, NULL, NULL, &err), HBK_ERROR_OPTION, "signals 8");
    hbk_model_free(other);
    t20_free(&w);
}

/* ---- what is refused ---------------------------------------------------------------------- */

/* Promise: candidates whose ids are not unique are refused by file, line and id before anything is rated. */
static void t20_duplicate_ids(void **state)
{
    (void)state;
    hbk_error err;
    t20_world w = t20_new("ids", true, 256);
    t19_write(w.candidates, "{\"id\":\"a\",\"instruction\":\"What\",\"output\":\"The tea.\"}\n"
                            "{\"id\":\"b\",\"instruction\":\"What\",\"output\":\"The tea.\"}\n"
                            "{\"id\":\"a\",\"instruction\":\"Who\",\"output\":\"A dog.\"}\n");
    unlink(w.ratings);
    check_error(t20_rate(&w, NULL, NULL, &err), HBK_ERROR_DATA, "\"a\" stands in an earlier row");
    assert_string_equal(err.file, w.candidates);
    assert_int_equal(err.line, 3);
    assert_false(hbk_file_exists(w.ratings));
    t20_free(&w);
}

/* Promise: ratings that another model, rubric, read-out, seed, precision or number of votes made are never
   continued nor taken for these: the difference is named, and the file stays as it was. A second iteration's
   rater cannot pick up the first one's ratings. */
static void t20_other_ratings(void **state)
{
    (void)state;
    static const struct {
        const char *what, *message;
    } cases[] = {{"same", NULL},          {"rubric", "template_hash"}, {"model", "model"},
                 {"adapter", "rater"},    {"name", "adapter"},         {"readout", "readout"},
                 {"votes", "2 votes"},    {"seed", "seed"},            {"signals", "readout"},
                 {"rounded", "cache unset, not \"bf16\""},   {"exact", "cache \"bf16\", not unset"}};
    hbk_error err;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        t20_world w = t20_new("other", true, 256);
        static const int lesson[] = {0, 1, 2, 3, 4, 5, 6, 7};
        const char *what = cases[i].what, *name = "m0";
        hbk_adapter_options lora = hbk_adapter_defaults();
        lora.rank = 4;
        hbk_adapter *a = hbk_adapter_make(&w.base->config, &lora, 1, NULL, &err);
        if (!a) fail_msg("%s", err.message);
        hbk_model *other = NULL;
        t20_write_candidates(&w, lesson, 8);
        w.o.votes = 2;
        w.o.decode.sampling.temperature = 1;
        w.o.decode.sampling.max_new = 3;
        if (!strcmp(what, "exact")) w.o.decode.cache = HBK_BF16;
        unlink(w.ratings);
        check_ok(hbk_rate(w.base, a, w.tok, w.t, &w.o, "m0", w.candidates, w.ratings, NULL, NULL, &err));
        hbk_text was = t19_read(w.ratings);
        if (!strcmp(what, "exact")) w.o.decode.cache = HBK_F32;
        if (!strcmp(what, "rounded")) w.o.decode.cache = HBK_BF16;
        if (!strcmp(what, "rubric"))
            check_ok(hbk_template_set(w.t, HBK_RATING, "{instruction}\n{output}\nRate now:", &err));
        if (!strcmp(what, "model")) other = t19_model(w.tok, 32, 256);
        if (!strcmp(what, "adapter")) a->values[0] += 1;
        if (!strcmp(what, "name")) name = "m1";
        if (!strcmp(what, "readout")) w.o.readout = HBK_READOUT_EXPECTED;
        if (!strcmp(what, "votes")) w.o.votes = 1;
        if (!strcmp(what, "seed")) w.o.decode.seed++;
        if (!strcmp(what, "signals")) w.o.signals = HBK_SIGNAL_IFD;
        bool ok = hbk_rate(other ? other : w.base, other ? NULL : a, w.tok, w.t, &w.o, name, w.candidates,
                           w.ratings, NULL, NULL, &err);
        if (ok != !cases[i].message) fail_msg("%s: %s", what, ok ? "was accepted" : err.message);
        if (!ok) {
            assert_int_equal(err.code, HBK_ERROR_OPTION);
            if (!strstr(err.message, cases[i].message)) fail_msg("%s: %s", what, err.message);
        }
        t19_check_same(&was, w.ratings, what);
        hbk_text_free(&was);
        hbk_adapter_free(a);
        hbk_model_free(other);
        t20_free(&w);
    }
}

/* ---- resuming --------------------------------------------------------------------------- */

/* Promise: greedy ratings hardly depend on how many sequences are decoded side by side, on the waves or on
   the number of threads: in both read-outs at least 99 of 100 have the same text and the same score, an
   expected one but for what the rounding of sums explains. */
static void t20_side_by_side(void **state)
{
    (void)state;
    enum { N = 100 };
    static const int settings[][3] = {{32, 64, 1}, {1, 64, 1}, {7, 5, 1}, {32, 64, 2}, {3, 100, 2}};
    int lesson[N], threads = t20_threads(0);
    for (int i = 0; i < N; i++) lesson[i] = i % 6; /* the taught model is sure of these */
    for (int expected = 0; expected < 2; expected++) {
        t20_world w = t20_new("side", true, 0);
        if (expected) w.base = t19_loud(t19_model(w.tok, 64, 256)); /* large enough for work to be shared */
        else t20_teach(&w);
        t20_write_candidates(&w, lesson, N);
        w.o.readout = expected ? HBK_READOUT_EXPECTED : HBK_READOUT_TEXT;
        json_t *first = NULL;
        for (size_t k = 0; k < sizeof settings / sizeof *settings; k++) {
            w.o.decode.slots = settings[k][0];
            w.o.decode.wave = settings[k][1];
            t20_threads(settings[k][2]);
            json_t *rows = t20_rows(&w);
            int same = 0;
            for (size_t i = 0; first && i < N; i++) {
                double a = t20_score(rows, i), b = t20_score(first, i);
                bool near = expected ? fabs(a - b) < 1e-3 : is_near(a, b, 0) || (isnan(a) && isnan(b));
                same += near && !strcmp(t19_string(rows, i, "text"), t19_string(first, i, "text"));
            }
            if (first && 100 * same < 99 * N)
                fail_msg("%d slots, waves of %d, %d threads: %d of %d are the same", settings[k][0],
                         settings[k][1], settings[k][2], same, (int)N);
            if (first) json_decref(rows);
            else first = rows;
        }
        json_decref(first);
        t20_threads(threads);
        t20_free(&w);
    }
}

/* Promise: ratings that were cut off anywhere are continued to the same bytes, in both read-outs, with votes,
   with retries and with signals, though unusable candidates are passed over. */
static void t20_cut_anywhere(void **state)
{
    (void)state;
    hbk_error err;
    for (int way = 0; way < 2; way++) {
        t20_world w = t20_new("cut", true, 256);
        hbk_text t, whole;
        memset(&t, 0, sizeof t);
        for (int i = 0; i < 15; i++)
            hbk_text_printf(
                &t, "{\"id\": \"c%d\", \"instruction\": \"%s\", \"output\": \"%s\", \"status\": \"%s\"}\n", i,
                t20_lessons[i % 6][0], t20_lessons[i % 4][1], i % 3 == 1 ? "short" : "ok");
        t19_write(w.candidates, hbk_text_string(&t));
        hbk_text_free(&t);
        w.o.readout = way ? HBK_READOUT_EXPECTED : HBK_READOUT_TEXT;
        w.o.retries = way ? 0 : 2;
        w.o.signals = way ? HBK_SIGNAL_RATING | HBK_SIGNAL_IFD : HBK_SIGNAL_RATING;
        w.o.votes = 2;
        w.o.decode.sampling.temperature = 0.9;
        w.o.decode.sampling.max_new = 4;
        w.o.decode.wave = 3;
        check_ok(t20_rate(&w, NULL, NULL, &err));
        whole = t19_read(w.ratings);
        for (size_t at = 0; at <= whole.len; at++) {
            bool border = at == 0 || at == whole.len || whole.data[at - 1] == '\n' || whole.data[at] == '\n';
            if (!border && at % 311 != 1) continue;
            int waves;
            t19_watch watch;
            t19_cut(w.ratings, &whole, at, w.o.decode.wave, &waves);
            hbk_progress p = t19_progress(&watch, 0);
            check_ok(t20_rate(&w, &p, NULL, &err));
            t19_check_same(&whole, w.ratings, "cut");
            assert_int_equal(watch.calls, waves);
        }
        hbk_text_free(&whole);
        t20_free(&w);
    }
}

static bool t20_rate_once(void *ctx, hbk_allocator *a, hbk_error *err)
{
    const t20_world *w = (const t20_world *)ctx;
    unlink(w->ratings);
    return t20_rate(w, NULL, a, err);
}

/* Promise: whichever allocation fails, the error is memory and nothing leaks. */
static void t20_rate_memory_runs_out(void **state)
{
    (void)state;
    t20_world w = t20_new("memory", false, 256);
    static const int lesson[] = {0, 1};
    t20_write_candidates(&w, lesson, 2);
    w.o.readout = HBK_READOUT_EXPECTED;
    w.o.signals = HBK_SIGNAL_RATING | HBK_SIGNAL_IFD | HBK_SIGNAL_ROUND_TRIP;
    w.o.backward = w.base;
    w.o.decode.sampling.max_new = 2;
    assert_true(fault_sweep(t20_rate_once, &w) > 80);
    w.o.readout = HBK_READOUT_TEXT;
    w.o.signals = HBK_SIGNAL_RATING;
    w.o.retries = 1;
    assert_true(fault_sweep(t20_rate_once, &w) > 50);
    t20_free(&w);
}

/* ---- selection ---------------------------------------------------------------------------- */

/* Files for hbk_select. */
typedef struct t20_choice {
    char candidates[512], ratings[512], curated[512];
    hbk_curate_options o;
    hbk_curate_counts c;
} t20_choice;

/* n candidates "c0" ... with these scores; 0: unparsable, -1: truncated, -2: too long, -3: no usable
   candidate, so that it has no rating at all. */
static t20_choice t20_choose(const double *scores, int n)
{
    t20_choice k;
    hbk_text c, r;
    memset(&k, 0, sizeof k);
    memset(&c, 0, sizeof c);
    memset(&r, 0, sizeof r);
    k.o = hbk_curate_defaults();
    test_tmp(k.candidates, "t20_select_candidates.jsonl");
    test_tmp(k.ratings, "t20_select_ratings.jsonl");
    test_tmp(k.curated, "t20_select_curated.jsonl");
    for (int i = 0; i < n; i++) {
        int why = scores[i] > 0 ? 1 : (int)scores[i];
        hbk_text_printf(
            &c, "{\"id\":\"c%d\",\"instruction\":\"ask %d\",\"output\":\"say %d\",\"status\":\"%s\"}\n", i, i,
            i, why == -3 ? "echo" : "ok");
        if (why == -3) continue;
        const char *status = why == 1 ? "ok" : why == 0 ? "unparsable" : why == -1 ? "truncated" : "too_long";
        hbk_text_printf(&r, "{\"id\":\"c%d\",\"score\":", i);
        if (why == 1) hbk_text_printf(&r, "%.17g", scores[i]);
        else hbk_text_add(&r, "null");
        hbk_text_printf(&r, ",\"status\":\"%s\"}\n", status);
    }
    t19_write(k.candidates, hbk_text_string(&c));
    t19_write(k.ratings, hbk_text_string(&r));
    hbk_text_free(&c);
    hbk_text_free(&r);
    return k;
}

/* Selects; the kept ids in order, as "0 3 7". */
static const char *t20_kept(t20_choice *k, char out[512])
{
    hbk_error err;
    check_ok(hbk_select(&k->o, k->candidates, k->ratings, k->curated, &k->c, NULL, &err));
    json_t *rows = t19_rows(k->curated);
    out[0] = 0;
    for (size_t i = 0; i < json_array_size(rows); i++) {
        strcat(out, i ? " " : "");
        strcat(out, t19_string(rows, i, "id") + 1);
    }
    assert_int_equal(k->c.kept, json_array_size(rows));
    json_decref(rows);
    return out;
}

static const double t20_scores[] = {4.5, 3, 0, 5, 4.49, -3, 1, -1, 4.5, 2.5, 5, -2, 1.49, 0};
enum { T20_SCORES = sizeof t20_scores / sizeof *t20_scores };

/* Promise: kept are the pairs rated at least `keep`, in file order, with their score; a higher bar keeps a
   subset; what could not be rated is counted and never kept. */
static void t20_select_threshold(void **state)
{
    (void)state;
    char kept[512];
    t20_choice k = t20_choose(t20_scores, T20_SCORES);
    static const char *const wanted[] = {
        "0 1 3 4 6 8 9 10 12", "0 1 3 4 8 9 10", "0 1 3 4 8 10", "0 3 4 8 10", "0 3 8 10", "3 10", ""};
    static const double bars[] = {1, 2, 3, 4, 4.5, 5, 5.01};
    for (int i = 0; i < 7; i++) {
        k.o.keep = bars[i];
        assert_string_equal(t20_kept(&k, kept), wanted[i]);
        check_near(k.c.threshold, bars[i], 0);
    }
    k.o.keep = 4.5;
    t20_kept(&k, kept);
    assert_int_equal(k.c.n, 13);
    assert_int_equal(k.c.rated, 9);
    assert_int_equal(k.c.unparsable, 2);
    assert_int_equal(k.c.truncated, 1);
    assert_int_equal(k.c.too_long, 1);
    static const int histogram[5] = {2, 0, 2, 1, 4}; /* 4.5 rounds to 5, 4.49 to 4, 2.5 to 3, 1.49 to 1 */
    for (int i = 0; i < 5; i++) assert_int_equal(k.c.histogram[i], histogram[i]);
    assert_false(k.c.collapsed);
    json_t *rows = t19_rows(k.curated);
    t19_check_keys(json_array_get(rows, 2), "id instruction output score source");
    assert_string_equal(t19_string(rows, 2, "instruction"), "ask 8");
    assert_string_equal(t19_string(rows, 2, "output"), "say 8");
    assert_string_equal(t19_string(rows, 2, "source"), "aug");
    assert_true(t20_score(rows, 2) == 4.5);
    json_decref(rows);
    /* what is written is what chapter 15 reads */
    hbk_error err;
    hbk_pairs p;
    memset(&p, 0, sizeof p);
    check_ok(hbk_pairs_load(&p, k.curated, "seed", &err));
    assert_int_equal(p.n, 4);
    assert_string_equal(p.data[0].source, "aug");
    assert_true(p.data[0].score == 4.5);
    hbk_pairs_free(&p);
}

/* Promise: a share keeps so many of the rated pairs, rounded up, the best, the earlier of equals; the
   threshold that this amounted to is told. */
static void t20_select_share(void **state)
{
    (void)state;
    char kept[512];
    t20_choice k = t20_choose(t20_scores, T20_SCORES); /* 9 rated: 5 5 4.5 4.5 4.49 3 2.5 1.49 1 */
    static const struct {
        double share;
        const char *kept;
        double threshold;
    } cases[] = {
        {0.0001, "3", 5},
        {1 / 9.0, "3", 5},
        {0.2, "3 10", 5},
        {2.01 / 9, "0 3 10", 4.5},
        {1 / 3.0, "0 3 10", 4.5},
        {0.5, "0 3 4 8 10", 4.49},
        {1, "0 1 3 4 6 8 9 10 12", 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        k.o.keep_share = cases[i].share;
        k.o.keep = 5; /* a share takes its place */
        assert_string_equal(t20_kept(&k, kept), cases[i].kept);
        check_near(k.c.threshold, cases[i].threshold, 0);
    }
    static const double wrong[][2] = {{4, 20}, {4, NAN}, {NAN, 0}}; /* keep, keep_share: 20 for 20 % */
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        hbk_error err;
        k.o.keep = wrong[i][0];
        k.o.keep_share = wrong[i][1];
        check_error(hbk_select(&k.o, k.candidates, k.ratings, k.curated, NULL, NULL, &err), HBK_ERROR_OPTION,
                    "expected a number, and a share up to 1");
    }
    static const double none[] = {0, -1, -2};
    k = t20_choose(none, 3);
    k.o.keep_share = 0.5;
    assert_string_equal(t20_kept(&k, kept), "");
    assert_true(isnan(k.c.threshold));
}

/* Promise: so many of the best are kept, the earlier of equals, or all where there are no more; a number and
   a share exclude each other. */
static void t20_select_top(void **state)
{
    (void)state;
    hbk_error err;
    char kept[512];
    t20_choice k = t20_choose(t20_scores, T20_SCORES); /* 9 rated: 5 5 4.5 4.5 4.49 3 2.5 1.49 1 */
    static const struct {
        hbk_int top;
        const char *kept;
        double threshold;
    } cases[] = {{1, "3", 5}, {3, "0 3 10", 4.5}, {4, "0 3 8 10", 4.5}, {100, "0 1 3 4 6 8 9 10 12", 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        k.o.keep_top = cases[i].top;
        assert_string_equal(t20_kept(&k, kept), cases[i].kept);
        check_near(k.c.threshold, cases[i].threshold, 0);
        assert_int_equal(k.c.ranked, 9);
    }
    k.o.keep_share = 0.5;
    check_error(hbk_select(&k.o, k.candidates, k.ratings, k.curated, &k.c, NULL, &err), HBK_ERROR_OPTION,
                "exclude each other");
}

/* Promise: by the IFD the highest below 1 are kept, by the round trip the highest, by several those of the
   least sum of ranks, where equals share the mean of their ranks; a pair that lacks a signal is never kept,
   nor one that was rated without it silently. A least score is of ratings alone. */
static void t20_select_signals(void **state)
{
    (void)state;
    hbk_error err;
    char kept[512];
    static const double scores[] = {5, 5, 4, 3, 0, 5, 4};
    t20_choice k = t20_choose(scores, 7);
    t19_write(k.ratings, /*  ranks of score, ifd, round_trip: sums below */
              "{\"id\":\"c0\",\"score\":5,\"status\":\"ok\",\"ifd\":0.2,\"round_trip\":-3}\n"
              "{\"id\":\"c1\",\"score\":5,\"status\":\"ok\",\"ifd\":1.0,\"round_trip\":-1}\n"
              "{\"id\":\"c2\",\"score\":4,\"status\":\"ok\",\"ifd\":0.9,\"round_trip\":-2}\n"
              "{\"id\":\"c3\",\"score\":3,\"status\":\"ok\",\"ifd\":0.8,\"round_trip\":-0.5}\n"
              "{\"id\":\"c4\",\"score\":null,\"status\":\"unparsable\",\"ifd\":0.99,\"round_trip\":-9}\n"
              "{\"id\":\"c5\",\"score\":5,\"status\":\"ok\",\"ifd\":null,\"round_trip\":null}\n"
              "{\"id\":\"c6\",\"score\":4,\"status\":\"ok\",\"ifd\":0.7,\"round_trip\":-4}\n");
    static const struct {
        unsigned signals;
        hbk_int top, ranked, unhelpful;
        const char *kept;
        double threshold; /* 0: none */
    } cases[] = {
        {HBK_SIGNAL_IFD, 3, 5, 1, "2 3 4", 0.8},
        {HBK_SIGNAL_IFD, 9, 5, 1, "0 2 3 4 6", 0.2},
        {HBK_SIGNAL_ROUND_TRIP, 2, 6, 0, "1 3", -1},
        /* of c0 c1 c2 c3 c6, ranks from 0: score 0.5 0.5 2.5 4 2.5, round trip 3 1 2 0 4 */
        {HBK_SIGNAL_RATING | HBK_SIGNAL_ROUND_TRIP, 1, 5, 0, "1", 0},
        {HBK_SIGNAL_RATING | HBK_SIGNAL_ROUND_TRIP, 2, 5, 0, "0 1", 0},
        {HBK_SIGNAL_RATING | HBK_SIGNAL_ROUND_TRIP, 3, 5, 0, "0 1 3", 0},
        /* of c0 c2 c3 c6: score 0 1.5 3 1.5, IFD 3 0 1 2: sums 3 1.5 4 3.5 */
        {HBK_SIGNAL_RATING | HBK_SIGNAL_IFD, 1, 4, 1, "2", 0},
        {HBK_SIGNAL_RATING | HBK_SIGNAL_IFD, 2, 4, 1, "0 2", 0},
        {HBK_SIGNAL_RATING | HBK_SIGNAL_IFD, 3, 4, 1, "0 2 6", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        k.o.signals = cases[i].signals;
        k.o.keep_top = cases[i].top;
        assert_string_equal(t20_kept(&k, kept), cases[i].kept);
        assert_int_equal(k.c.ranked, cases[i].ranked);
        assert_int_equal(k.c.unhelpful, cases[i].unhelpful);
        assert_int_equal(k.c.rated, 6);
        if (cases[i].threshold != 0) check_near(k.c.threshold, cases[i].threshold, 0);
        else assert_true(isnan(k.c.threshold));
    }
    /* a pair without a rating has no score in the curated set, and is read as such */
    k.o.signals = HBK_SIGNAL_IFD;
    k.o.keep_top = 3;
    t20_kept(&k, kept);
    json_t *rows = t19_rows(k.curated);
    t19_check_keys(json_array_get(rows, 1), "id instruction output score source");
    t19_check_keys(json_array_get(rows, 2), "id instruction output source");
    json_decref(rows);
    hbk_pairs p;
    memset(&p, 0, sizeof p);
    check_ok(hbk_pairs_load(&p, k.curated, "seed", &err));
    assert_true(p.n == 3 && isnan(p.data[2].score));
    hbk_pairs_free(&p);
    k.o.keep_top = 0;
    check_error(hbk_select(&k.o, k.candidates, k.ratings, k.curated, &k.c, NULL, &err), HBK_ERROR_OPTION,
                "of ratings alone");
    t19_write(k.ratings, "{\"id\":\"c0\",\"score\":5,\"status\":\"ok\"}\n");
    k.o.keep_top = 1;
    check_error(hbk_select(&k.o, k.candidates, k.ratings, k.curated, &k.c, NULL, &err), HBK_ERROR_DATA,
                "\"ifd\" is missing");
}

/* Promise: precision and recall of a selection are those of the rated pairs that have a label, whether it is
   a word or a score; bad labels are refused by line. */
static void t20_labels(void **state)
{
    (void)state;
    hbk_error err;
    char kept[512], labels[512];
    hbk_agreement a;
    t20_choice k = t20_choose(t20_scores, T20_SCORES);
    test_tmp(labels, "t20_labels.jsonl");
    assert_string_equal(t20_kept(&k, kept), "0 3 8 10");
    t19_write(labels, "{\"id\":\"c0\",\"good\":true}\n{\"id\":\"c3\",\"good\":false}\n"
                      "{\"id\":\"c10\",\"score\":4.5}\n{\"id\":\"c4\",\"score\":4.4}\n"
                      "{\"id\":\"c2\",\"good\":true}\n{\"id\":\"c7\",\"good\":true}\n" /* without a score */
                      "{\"id\":\"c5\",\"good\":true}\n{\"id\":\"z\",\"good\":true}\n");  /* never rated */
    check_ok(hbk_agree(labels, k.ratings, k.curated, &a, NULL, &err));
    assert_true(a.n == 6 && a.good == 4 && a.kept == 3 && a.both == 2 && a.unknown == 2);
    check_near(a.precision, 2 / 3.0, 1e-12);
    check_near(a.recall, 0.5, 1e-12);
    t19_write(labels, "{\"id\":\"c1\",\"good\":false}\n");
    check_ok(hbk_agree(labels, k.ratings, k.curated, &a, NULL, &err));
    assert_true(a.n == 1 && isnan(a.precision) && isnan(a.recall));
    static const struct {
        const char *text, *message;
        int line;
    } bad[] = {{"{\"id\":\"c1\",\"good\":true}\n{\"id\":\"c1\",\"score\":1}\n", "earlier row", 2},
               {"{\"id\":\"c1\",\"good\":\"yes\"}\n", "\"good\": true or false", 1},
               {"{\"id\":\"c1\"}\n", "expected", 1},
               {"{\"id\":\"z\",\"good\":true}\n", "labels none of the pairs", 0},
               {"", "labels none of the pairs", 0}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        t19_write(labels, bad[i].text);
        a.n = -1;
        assert_false(hbk_agree(labels, k.ratings, k.curated, &a, NULL, &err));
        if (!strstr(err.message, bad[i].message)) fail_msg("%s", err.message);
        assert_string_equal(err.file, labels);
        assert_int_equal(err.line, bad[i].line);
        assert_int_equal(a.n, -1);
    }
}

/* Promise: a rater that keeps fewer than 2 % or more than 90 % of its candidates has collapsed, and the
   counts say so. */
static void t20_select_collapse(void **state)
{
    (void)state;
    double scores[100];
    char kept[512];
    static const struct {
        int good, bad; /* the rest of the hundred is unparsable */
        bool collapsed;
    } cases[] = {{0, 100, true}, {1, 99, true}, {2, 98, false}, {50, 50, false}, {90, 10, false},
                 {91, 9, true},  {100, 0, true}, {0, 0, true},  {1, 0, true},    {2, 0, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int j = 0; j < 100; j++)
            scores[j] = j < cases[i].good ? 5 : j < cases[i].good + cases[i].bad ? 1 : 0;
        t20_choice k = t20_choose(scores, 100);
        t20_kept(&k, kept);
        if (k.c.collapsed != cases[i].collapsed)
            fail_msg("%d of 100 kept: collapsed is %d", cases[i].good, (int)k.c.collapsed);
    }
}

/* Promise: ratings of other candidates, of fewer, of more, or off the scale are refused by file and line. */
static void t20_select_refuses(void **state)
{
    (void)state;
    hbk_error err;
    static const double scores[] = {5, 4, 3};
    t20_choice k = t20_choose(scores, 3);
    static const char *const rows[] = {"{\"id\":\"c0\",\"score\":5,\"status\":\"ok\"}\n",
                                       "{\"id\":\"c1\",\"score\":4,\"status\":\"ok\"}\n",
                                       "{\"id\":\"c2\",\"score\":3,\"status\":\"ok\"}\n"};
    static const char other[] = "{\"id\":\"d2\",\"score\":3,\"status\":\"ok\"}\n";
    static const char high[] = "{\"id\":\"c2\",\"score\":5.5,\"status\":\"ok\"}\n";
    static const char low[] = "{\"id\":\"c2\",\"score\":0,\"status\":\"ok\"}\n";
    static const char bare[] = "{\"id\":\"c1\",\"score\":4}\n";
    const struct {
        const char *rows[4], *message;
        hbk_code code;
        int line;
    } cases[] = {
        {{rows[0], rows[1], "", ""}, "candidate \"c2\"", HBK_ERROR_DATA, 3},
        {{rows[1], rows[0], rows[2], ""}, "candidate \"c0\"", HBK_ERROR_DATA, 1},
        {{rows[0], rows[1], other, ""}, "candidate \"c2\"", HBK_ERROR_DATA, 3},
        {{rows[0], rows[1], rows[2], rows[2]}, "no candidate for this rating", HBK_ERROR_DATA, 4},
        {{rows[0], rows[1], high, ""}, "5.5", HBK_ERROR_RANGE, 3},
        {{rows[0], rows[1], low, ""}, "1 to 5", HBK_ERROR_RANGE, 3},
        {{rows[0], bare, rows[2], ""}, "\"status\"", HBK_ERROR_FORMAT, 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char all[512];
        snprintf(all, sizeof all, "%s%s%s%s", cases[i].rows[0], cases[i].rows[1], cases[i].rows[2],
                 cases[i].rows[3]);
        t19_write(k.ratings, all);
        k.c.n = -1;
        check_error(hbk_select(&k.o, k.candidates, k.ratings, k.curated, &k.c, NULL, &err), cases[i].code,
                    cases[i].message);
        assert_string_equal(err.file, k.ratings);
        assert_int_equal(err.line, cases[i].line);
        assert_int_equal(k.c.n, -1); /* outputs are untouched */
    }
    unlink(k.ratings);
    check_error(hbk_select(&k.o, k.candidates, k.ratings, k.curated, &k.c, NULL, &err), HBK_ERROR_FILE,
                "opened");
}

static bool t20_select_once(void *ctx, hbk_allocator *a, hbk_error *err)
{
    t20_choice *k = (t20_choice *)ctx;
    return hbk_select(&k->o, k->candidates, k->ratings, k->curated, &k->c, a, err);
}

/* Promise: whichever allocation fails, the error is memory and nothing leaks. */
static void t20_select_memory_runs_out(void **state)
{
    (void)state;
    t20_choice k = t20_choose(t20_scores, T20_SCORES);
    assert_true(fault_sweep(t20_select_once, &k) > 5);
}

static const struct CMUnitTest tests_20[] = {
    cmocka_unit_test(t20_rating_table),
    cmocka_unit_test(t20_rating_ends),
    cmocka_unit_test(t20_text_readout),
    cmocka_unit_test(t20_cut_off_digits),
    cmocka_unit_test(t20_votes),
    cmocka_unit_test(t20_retries),
    cmocka_unit_test(t20_expected_readout),
    cmocka_unit_test(t20_expected_once),
    cmocka_unit_test(t20_expected_label),
    cmocka_unit_test(t20_expected_room),
    cmocka_unit_test(t20_expected_vocabulary),
    cmocka_unit_test(t20_signals),
    cmocka_unit_test(t20_duplicate_ids),
    cmocka_unit_test(t20_other_ratings),
    cmocka_unit_test(t20_side_by_side),
    cmocka_unit_test(t20_cut_anywhere),
    cmocka_unit_test(t20_rate_memory_runs_out),
    cmocka_unit_test(t20_select_threshold),
    cmocka_unit_test(t20_select_share),
    cmocka_unit_test(t20_select_top),
    cmocka_unit_test(t20_select_signals),
    cmocka_unit_test(t20_labels),
    cmocka_unit_test(t20_select_collapse),
    cmocka_unit_test(t20_select_refuses),
    cmocka_unit_test(t20_select_memory_runs_out),
};
