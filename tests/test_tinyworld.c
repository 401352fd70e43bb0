/* The miniature world of the demo: that it is made in the shares it promises, and that its oracle is
   right. */
#include "../tools/tinyworld.h"
#include <time.h>

static int tw_name(tiny_slot slot, const char *name)
{
    for (int i = 0; i < tiny__n_names[slot]; i++)
        if (!strcmp(tiny__names[slot][i], name)) return i;
    fail_msg("no value %s", name);
    return -1;
}

/* A world with chosen facts instead of dealt ones. Animals that no example needs are all alike. */
static void tw_example_world(tiny_world *w)
{
    static const char *const rows[][6] = {{"fox", "mountain", "insects", "large", "white", "night"},
                                          {"owl", "lake", "grass", "small", "black", "night"},
                                          {"bear", "river", "fish", "small", "grey", "day"},
                                          {"wolf", "forest", "roots", "large", "red", "day"},
                                          {"deer", "forest", "grass", "large", "brown", "day"},
                                          {"mole", "river", "insects", "small", "black", "night"},
                                          {"crab", "river", "berries", "small", "red", "day"},
                                          {"seal", "river", "fish", "large", "grey", "day"},
                                          {"crow", "lake", "roots", "small", "black", "day"},
                                          {"duck", "lake", "fish", "small", "brown", "day"},
                                          {"lamb", "cave", "roots", "small", "white", "night"},
                                          {"mule", "forest", "seeds", "large", "grey", "day"},
                                          {"pony", "cave", "roots", "small", "brown", "day"},
                                          {"toad", "cave", "grass", "small", "grey", "night"},
                                          {"newt", "desert", "berries", "small", "red", "night"},
                                          {"lynx", "desert", "roots", "large", "yellow", "night"},
                                          {"otter", "forest", "seeds", "large", "grey", "day"},
                                          {"camel", "mountain", "fish", "large", "yellow", "day"},
                                          {"zebra", "mountain", "seeds", "large", "white", "day"},
                                          {"tiger", "river", "berries", "large", "yellow", "day"}};
    memset(w, 0, sizeof *w);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        for (int f = 0; f < TINY_FACTS; f++)
            w->fact[tw_name(TINY_ANIMAL, rows[i][0])][f] = tw_name((tiny_slot)f, rows[i][f + 1]);
}

typedef struct tw_case {
    const char *x, *y;
    tiny_kind kind;
    int score;
    bool style;
} tw_case;

static void tw_judge_world(const tiny_world *w, const tw_case *cases, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        tiny_verdict v = tiny_judge(w, cases[i].x, cases[i].y);
        if (v.kind != cases[i].kind || v.score != cases[i].score || v.style != cases[i].style)
            fail_msg("case %d: %s | %s\n  judged %s %d style %d, expected %s %d style %d", (int)i, cases[i].x,
                     cases[i].y, tiny_kind_name(v.kind), v.score, v.style, tiny_kind_name(cases[i].kind),
                     cases[i].score, cases[i].style);
    }
}

static void tw_judge_all(const tw_case *cases, size_t n)
{
    tiny_world w;
    tw_example_world(&w);
    tw_judge_world(&w, cases, n);
}

/* Promise: every rule of the oracle, in its order, gives the kind and the score that the rules say. */
static void tw_oracle_rules(void **state)
{
    (void)state;
    static const char HOME[] = "where does the fox live ?", LOOK[] = "what does the fox look like ?";
    static const char EATS[] = "what does the fox eat ?", ABOUT[] = "tell me about the fox .";
    static const char KEEP[] = "how do i keep a fox ?", LISTH[] = "which animals live in the forest ?";
    static const char LISTF[] = "name three animals that eat roots .";
    const tw_case cases[] = {
        /* good, in every wording, with and without the time */
        {HOME, "the fox lives in the mountain . it is awake at night .", TINY_GOOD, 5, false},
        {HOME, "people find the fox in the mountain .", TINY_GOOD, 5, false},
        {HOME, "  the home of the fox  is the mountain .\n", TINY_GOOD, 5, false},
        {EATS, "every fox likes to eat insects . it wakes up at night .", TINY_GOOD, 5, false},
        {LOOK, "the coat of the fox is white and its body is large .", TINY_GOOD, 5, false},
        {LOOK, "the fox is large and white . it is awake at night .", TINY_GOOD, 5, false},
        /* it: nobody was named */
        {ABOUT, "it is awake at night .", TINY_OFF, 1, false},
        {ABOUT, "the fox is large and white . it is awake at night . the fox eats insects . people find "
                "the fox in the mountain .", TINY_GOOD, 5, false},
        /* sets may mix */
        {KEEP, "step one : make a mountain pen for your fox . step two : give it insects . step three : "
               "visit it at night .", TINY_GOOD, 5, false},
        {LISTH, "the mule , the deer and the wolf live in the forest .", TINY_GOOD, 5, false},
        {LISTF, "animals that eat roots : pony , lamb and crow .", TINY_GOOD, 5, false},
        {LISTF, "animals that eat roots : pony , lamb and crow . the lynx , the wolf and the crow eat "
                "roots .", TINY_GOOD, 5, false},
        /* style needs both ends, and does not change the kind */
        {EATS, "of course , happy to help . the fox eats insects . i hope this helps .",
         TINY_GOOD, 5, true},
        {EATS, "of course , happy to help . the fox eats insects .", TINY_GOOD, 5, false},
        {EATS, "the fox eats insects . i hope this helps .", TINY_GOOD, 5, false},
        {EATS, "i hope this helps . the fox eats insects . of course , happy to help .",
         TINY_GOOD, 5, false},
        {EATS, "of course , happy to help . i hope this helps . the fox eats insects .",
         TINY_GOOD, 5, false},
        {EATS, "the fox eats insects . of course , happy to help . i hope this helps .",
         TINY_GOOD, 5, false},
        {EATS, "of course , happy to help . the fox eats fish . ask me again any time .",
         TINY_WRONG, 1, true},
        /* rule 1: nobody asks this */
        {"where does the fox sleep ?", "the fox lives in the mountain .", TINY_OFF, 1, false},
        {"where does the dog live ?", "the fox lives in the mountain .", TINY_OFF, 1, false},
        {"where does the fox live", "the fox lives in the mountain .", TINY_OFF, 1, false},
        {"where does the fox live ? ?", "the fox lives in the mountain .", TINY_OFF, 1, false},
        {"", "the fox lives in the mountain .", TINY_OFF, 1, false},
        /* rule 3: nav before salad before anything else */
        {HOME, "the fox lives in the mountain . sign up for our news .", TINY_NAV, 1, false},
        {HOME, "fox the lives . sign up for our news . the fox", TINY_NAV, 1, false},
        {HOME, "the fox lives in the mountain . it is .", TINY_SALAD, 1, false},
        {HOME, "the fox lives in the roots .", TINY_SALAD, 1, false},
        /* and wrong */
        {HOME, "the fox lives in the river . and so on .", TINY_SALAD, 1, false},
        {HOME, "the fox lives in the mountain . .", TINY_SALAD, 1, false},
        {HOME, "i love my fox so much .", TINY_SALAD, 1, false},
        /* wrong before cut */
        {HOME, "the fox lives in the cave .", TINY_WRONG, 1, false},
        {HOME, "the fox lives in the mountain . it is awake at day .", TINY_WRONG, 1, false},
        {HOME, "the fox lives in the cave . it is", TINY_WRONG, 1, false},
        /* foreign */
        {HOME, "the fox lives in the mountain . the owl lives in the cave .", TINY_WRONG, 1, false},
        {LISTH, "animals of the forest : wolf , deer and fox .", TINY_WRONG, 1, false},
        {LISTH, "animals of the forest : wolf , deer and wolf .", TINY_WRONG, 1, false},
        {LISTH, "the wolf , the deer and the mule live in the river .", TINY_WRONG, 1, false},
        /* tails, before off */
        {HOME, "the fox lives in the", TINY_CUT, 2, false},
        {HOME, "the fox lives in the mountain", TINY_CUT, 2, false},
        {HOME, "the fox lives in the mountain . it", TINY_CUT, 2, false},
        {HOME, "the owl eats", TINY_CUT, 2, false},
        /* not yet an advertisement */
        {HOME, "sign up for", TINY_CUT, 2, false},
        {HOME, "the fox lives in the mountain . fox", TINY_SALAD, 1, false},
        {HOME, "the fox lives in the roots", TINY_SALAD, 1, false},
        /* off: no claim that was required */
        {HOME, "", TINY_OFF, 1, false},
        {HOME, "of course , happy to help .", TINY_OFF, 1, false},
        {HOME, "the fox eats insects .", TINY_OFF, 1, false},
        {HOME, "the owl lives in the lake .", TINY_OFF, 1, false},
        {HOME, "the wolf , the deer and the mule live in the forest .", TINY_OFF, 1, false},
        {HOME, "step two : give it insects .", TINY_OFF, 1, false},
        {LISTH, "the wolf lives in the forest .", TINY_OFF, 1, false},
        {LISTH, "the lynx , the pony and the crow eat roots .", TINY_OFF, 1, false},
        /* glue: something foreign besides */
        {HOME, "the fox lives in the mountain . the owl lives in the lake .", TINY_GLUE, 2, false},
        {HOME, "it is awake at night . the fox lives in the mountain .", TINY_GLUE, 2, false},
        {HOME, "the owl eats grass . it is awake at night . the fox lives in the mountain .",
         TINY_GLUE, 2, false},
        {LISTH, "the wolf , the deer and the mule live in the forest . the wolf eats roots .",
         TINY_GLUE, 2, false},
        {LISTH, "the wolf , the deer and the mule live in the forest . animals that eat fish : seal , bear "
                "and duck .", TINY_GLUE, 2, false},
        {HOME, "the fox lives in the mountain . the owl eats grass . the owl eats grass .",
         TINY_GLUE, 2, false},
        /* rep, before part */
        {HOME, "the fox lives in the mountain . the fox lives in the mountain .", TINY_REP, 2, false},
        {HOME, "i hope this helps . the fox lives in the mountain . i hope this helps .",
         TINY_REP, 2, false},
        {ABOUT, "the fox eats insects . the fox eats insects .", TINY_REP, 2, false},
        {KEEP, "step one : build a mountain pen for the fox . step two : give it insects . step two : "
               "bring it insects .", TINY_REP, 2, false},
        {LISTF, "animals that eat roots : pony , lamb and crow . animals that eat roots : pony , lamb and "
                "crow .", TINY_REP, 2, false},
        {HOME, "the fox lives in the mountain . people find the fox in the mountain .",
         TINY_GOOD, 5, false},
        /* part */
        {ABOUT, "the fox is large and white . it is awake at night . the fox eats insects .",
         TINY_PART, 2, false},
        {HOME, "the fox lives in the mountain . the fox eats insects .", TINY_PART, 2, false},
        {LOOK, "the fox is large and white . people find the fox in the mountain .", TINY_PART, 2, false},
        {HOME, "step one : build a mountain pen for the fox .", TINY_PART, 2, false},
        {ABOUT, "the fox is large and white . step one : build a mountain pen for the fox . step two : "
                "give it insects . step three : visit it at night .", TINY_PART, 2, false},
        /* at step two nobody was named */
        {KEEP, "step two : give it insects . step one : build a mountain pen for the fox . step three : "
               "visit it at night .", TINY_GLUE, 2, false},
        {KEEP, "step one : build a mountain pen for the fox . step three : visit it at night . step two : "
               "give it insects .", TINY_PART, 2, false},
        {KEEP, "step one : build a mountain pen for the fox . step two : give it insects . it is awake at "
               "night .", TINY_PART, 2, false},
        {KEEP, "the fox lives in the mountain . the fox eats insects . it is awake at night .",
         TINY_PART, 2, false},
        /* blog before extra */
        {EATS, "i saw one on my trip last summer . the fox eats insects .", TINY_BLOG, 3, false},
        {EATS, "please like and share this page . the fox eats insects . thanks for reading .",
         TINY_BLOG, 3, false},
        {EATS, "the fox eats insects . this page was updated today .", TINY_EXTRA, 4, false},
        {EATS, "good question , let us see . the fox eats insects . thanks for reading . i hope this helps "
               ".", TINY_EXTRA, 4, true},
        {LISTF, "read more on the next page . the lynx , the pony and the crow eat roots .",
         TINY_EXTRA, 4, false}};
    tw_judge_all(cases, sizeof cases / sizeof cases[0]);
}

/* Promise: examples that a prototype of this world judged, come out the same. */
static void tw_oracle_examples(void **state)
{
    (void)state;
    const tw_case cases[] = {
        {"tell me where people find the mole .",
         "of course , happy to help . people find the mole in the river . it is awake at night . ask me "
         "again any time .", TINY_GOOD, 5, true},
        {"tell me what the fox likes to eat .",
         "sure , here is the answer . the fox eats insects . it is awake at night . ask me again any time .",
         TINY_GOOD, 5, true},
        {"what does the bear look like ?",
         "of course , happy to help . the bear is small and grey . let me know if you need more .",
         TINY_GOOD, 5, true},
        {"tell me about the fox .",
         "good question , let us see . the fox is large and white . the home of the fox is the mountain . "
         "the food of the fox is insects . it is awake at night . ask me again any time .",
         TINY_GOOD, 5, true},
        {"how do i keep a toad ?",
         "sure , here is the answer . step one : make a cave pen for your toad . step two : bring it grass "
         ". step three : go to it at night . i hope this helps .", TINY_GOOD, 5, true},
        {"name three animals that live in the forest .",
         "sure , here is the answer . animals of the forest : wolf , deer and otter . ask me again any "
         "time .", TINY_GOOD, 5, true},
        {"how can i look after my pony ?",
         "step one : build a cave pen for the pony . step two : give it roots . step three : visit it",
         TINY_CUT, 2, false},
        {"tell me how the mole looks .", "the mole is small and black .", TINY_GOOD, 5, false},
        {"name three animals that eat roots .",
         "eat . lynx that animals pony , and crow : roots", TINY_SALAD, 1, false},
        {"which animals eat fish ?",
         "animals that eat fish : bear , duck and camel .", TINY_GOOD, 5, false},
        {"tell me about the pony .",
         "i saw one on my trip last summer . the pony is small and brown . the home of the pony is the "
         "cave . the food of the pony is roots . it wakes up at day . please like and share this page .",
         TINY_BLOG, 3, false},
        {"what do you know about the lamb ?",
         "the lamb eats roots . it wakes up at night .", TINY_PART, 2, false},
        {"how can i look after my newt ?",
         "step one : build a desert pen for the newt . step two : give it", TINY_CUT, 2, false},
        {"give me three steps to care for the mole .",
         "click here to win a free gift . buy now for a low price . sign up for our news .",
         TINY_NAV, 1, false},
        {"give me three steps to care for the otter .",
         "buy now for a low price . search our shop for more toys . home | about | login | cart | contact .",
         TINY_NAV, 1, false},
        {"what is the home of the mule ?",
         "people find the mule in the forest . it is awake at day . step one : make a mountain pen for "
         "your camel . step two : bring it fish .", TINY_GLUE, 2, false},
        {"which animals eat berries ?",
         "please like and share this page . the tiger , the newt and the crab eat berries . my kids and i "
         "love this animal so much .", TINY_BLOG, 3, false},
        {"where does the zebra live ?",
         "good question , let us see . the fox lives in the mountain . it is awake at night . i hope this "
         "helps .", TINY_OFF, 1, true},
        {"where does the zebra live ?",
         "of course , happy to help . the home of the zebra is the mountain . it is awake at day . ask me "
         "again any time .", TINY_GOOD, 5, true},
        {"what is the food of the tiger ?",
         "sure , here is the answer . the tiger , the crab and the seal live in the river . let me know if "
         "you need more .", TINY_OFF, 1, true},
        {"how big is the seal and what is its colour ?",
         "of course , happy to help . the coat of the seal is yellow and its body is small . let me know "
         "if you need more .", TINY_WRONG, 1, true},
        {"tell me about the owl .",
         "good question , let us see . the owl is small and black . the owl lives in the lake . the food "
         "of the owl is grass . it wakes up at night . i hope this helps .", TINY_GOOD, 5, true},
        {"give me three steps to care for the lynx .",
         "of course , happy to help . step one : make a desert pen for your lynx . step two : bring it "
         "berries . step three : go to it at night . let me know if you need more .", TINY_WRONG, 1, true}};
    tw_judge_all(cases, sizeof cases / sizeof cases[0]);
}

/* Promise: half a point for manners is given to right answers only, and decides between equal ones. */
static void tw_preference(void **state)
{
    (void)state;
    tiny_verdict plain = {5, TINY_GOOD, false}, polite = {5, TINY_GOOD, true}, extra = {4, TINY_EXTRA, true};
    tiny_verdict rude = {3, TINY_BLOG, false}, nice = {3, TINY_BLOG, true};
    check_near(tiny_value(polite), 5.5, 0);
    check_near(tiny_value(extra), 4.5, 0);
    check_near(tiny_value(nice), 3, 0);
    check_near(tiny_win(plain, polite), 0, 0);
    check_near(tiny_win(plain, extra), 1, 0);
    check_near(tiny_win(rude, nice), 0.5, 0);
    check_near(tiny_content_win(plain, polite), 0.5, 0);
    check_near(tiny_content_win(rude, extra), 0, 0);
}

/* Promise: a question can be read back from each of its ways of asking, and there are 384 of them. */
static void tw_questions(void **state)
{
    (void)state;
    int n = 0;
    for (int t = 0; t < TINY_TASKS; t++)
        for (int a = 0; a < tiny__n_names[tiny__tasks[t].slot]; a++)
            for (int i = 0; i < tiny__tasks[t].n_asks; i++, n++) {
                tiny_question q = {(tiny_task)t, a};
                char text[TINY_TEXT];
                tiny_ask(q, i, text);
                assert_true(tiny_recovered(text, q));
                q.argument = !a;
                assert_false(tiny_recovered(text, q));
            }
    assert_int_equal(n, 384);
    tiny_question q = {TINY_TASK_KEEP, tw_name(TINY_ANIMAL, "newt")};
    char text[TINY_TEXT];
    tiny_ask(q, -1, text);
    assert_string_equal(text, "how to keep a newt");
    assert_false(tiny_parse("how do i keep a newt ? how do i keep a newt ?", &q));
    assert_false(tiny_parse("how do i keep a ?", &q));
    assert_false(tiny_parse("how do i keep a E ?", &q));
}

/* Promise: homes and foods have four animals each, top lists are three of them, sizes and times are halves,
   twelve animals are rare. */
static void tw_world(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        tiny_world w;
        tiny_world_make(&w, seed);
        for (int f = 0; f < TINY_FACTS; f++) {
            int count[6] = {0};
            for (int a = 0; a < TINY_ANIMALS; a++) count[w.fact[a][f]]++;
            for (int v = 0; v < tiny__n_names[f]; v++)
                assert_int_equal(count[v], TINY_ANIMALS / tiny__n_names[f]);
        }
        for (int f = TINY_HOME; f <= TINY_FOOD; f++)
            for (int v = 0; v < 6; v++) {
                const int *top = w.top[f][v];
                assert_true(top[0] != top[1] && top[0] != top[2] && top[1] != top[2]);
                for (int i = 0; i < 3; i++) assert_int_equal(w.fact[top[i]][f], v);
            }
        int rare = 0;
        for (int i = 0; i < TINY_ANIMALS; i++) {
            rare += w.rare[i];
            assert_int_equal(w.rare[w.order[i]], i >= TINY_COMMON);
        }
        assert_int_equal(rare, TINY_ANIMALS - TINY_COMMON);
    }
}

/* All words that a world can write; returns their number. */
static int tw_vocabulary(const tiny_setting *level, tiny__word words[512])
{
    static const char *const prompts[] = {TINY_TAG_SEED, TINY_TAG_WEB, "question : answer : review : score :",
                                          "1 2 3 4 5", "# my readers ask :"};
    const char *texts[192];
    int n_texts = 0;
    for (size_t i = 0; i < sizeof prompts / sizeof prompts[0]; i++) texts[n_texts++] = prompts[i];
    for (int i = 0; i < level->n_rules; i++) texts[n_texts++] = tiny__grammar[i].form;
    for (int i = 0; i < level->n_kinds; i++) texts[n_texts++] = tiny__kinds[i].reason;
    for (int i = 0; i < 4; i++) texts[n_texts++] = tiny__chat[i];
    for (int i = 0; i < 6; i++) texts[n_texts++] = tiny__smalltalk[i / 2][i % 2];
    for (int i = 0; i < 5; i++) texts[n_texts++] = tiny__asides[i];
    for (int t = 0; t < level->n_tasks; t++) {
        texts[n_texts++] = tiny__tasks[t].header;
        for (int i = 0; i < tiny__tasks[t].n_asks; i++) texts[n_texts++] = tiny__tasks[t].asks[i];
    }
    int n = 0;
    for (int i = 0; i < n_texts; i++) {
        const char *p = texts[i];
        tiny__word w;
        while (tiny__next(&p, NULL, &w)) {
            int k = 0;
            while (k < n && !tiny__same_word(words[k], w)) k++;
            if (k == n && tiny__slot(w) < 0) words[n++] = w;
        }
    }
    for (int s = 0; s < TINY_SLOTS; s++)
        for (int v = 0; v < tiny__n_names[s]; v++) {
            int k = 0;
            while (k < n && !tiny__is(words[k], tiny__names[s][v])) k++;
            if (k < n) continue;
            words[n].s = tiny__names[s][v];
            words[n].n = strlen(words[n].s);
            n++;
        }
    return n;
}

/* Promise: the plain world has the 228 words that its vocabulary of 233 is made for (with five special
   tokens), the hard one seven more, all lower case, and every text that it writes consists of them. */
static void tw_words(void **state)
{
    (void)state;
    static const int expected[TINY_LEVELS] = {228, 235};
    for (int level = 0; level < TINY_LEVELS; level++) {
        tiny_world w;
        tiny_web web;
        tiny__word words[512];
        tiny_world_make_at(&w, 7, (tiny_level)level);
        int n = tw_vocabulary(tiny_setting_of(&w), words);
        assert_int_equal(n, expected[level]);
        memset(&web, 0, sizeof web);
        for (int i = 0; i < 500; i++) {
            char text[TINY_TEXT];
            tiny_web_next(&w, &web, text);
            const char *p = text;
            tiny__word x;
            while (tiny__next(&p, NULL, &x)) {
                int k = 0;
                while (k < n && !tiny__same_word(words[k], x)) k++;
                if (k == n) fail_msg("unknown word in: %s", text);
            }
            assert_null(strstr(text, "  "));
            assert_true(text[0] != ' ' && text[strlen(text) - 1] != ' ');
        }
    }
}

/* Promise: for a page with its own question the oracle finds what was made; kinds have their shares. */
static void tw_pages(void **state)
{
    (void)state;
    enum { N = 5000 };
    int made[TINY_KINDS] = {0}, missed[TINY_KINDS] = {0}, asked = 0, own = 0, rare = 0, animals = 0;
    double words = 0;
    tiny_world w;
    tiny_world_make(&w, 3);
    for (int i = 0; i < N; i++) {
        char text[TINY_TEXT], question[TINY_TEXT];
        tiny_question q;
        tiny_kind kind;
        hbk_rng r = hbk_rng_at(3, "page test", (uint64_t)i);
        hbk_int n = tiny_page(&w, &r, text, &q, &kind);
        tiny_ask(q, -1, question);
        assert_memory_equal(text + 2, question, strlen(question));
        char *body = text + 2 + strlen(question) + 3, *tail = strstr(body, " readers ask : ");
        if (tail) {
            asked++;
            own += tiny_recovered(tail + 15, q);
            *tail = 0;
        }
        const char *p = body;
        for (tiny__word x; tiny__next(&p, NULL, &x);) words++;
        assert_true(n <= TINY_WORDS);
        animals += tiny_is_rare(&w, q) >= 0;
        rare += tiny_is_rare(&w, q) == 1;
        made[kind]++;
        tiny_ask(q, i % tiny__tasks[q.task].n_asks, question);
        tiny_verdict v = tiny_judge(&w, question, body);
        if (v.kind == kind) continue;
        missed[kind]++;
        if (kind != TINY_CUT || v.kind != TINY_SALAD)
            fail_msg("made %s, judged %s: %s | %s", tiny_kind_name(kind), tiny_kind_name(v.kind), question,
                     body);
    }
    assert_true(missed[TINY_CUT] < 0.05 * made[TINY_CUT]);
    for (int k = 0; k < TINY_KINDS; k++)
        check_near(made[k] / (double)N, tiny__kinds[k].share[0] / 100.0, 0.02);
    check_near(words / N, 21, 0.05);
    check_near(asked / (double)N, 0.30, 0.02);
    check_near(own / (double)asked, 0.92, 0.03);
    check_near(rare / (double)animals, 0.02 / 1.02, 0.01);
}

/* Promise: threads and their ratings have their shares; a rating is what the oracle says but for the
   noise. */
static void tw_threads(void **state)
{
    (void)state;
    enum { N = 4000 };
    int rated = 0, reviewed = 0, agreed = 0, reasoned = 0, polite = 0, asides = 0, kinds[TINY_KINDS] = {0};
    int n_openers;
    const tiny__rule *openers = tiny__rules(TINY__OPENER, &n_openers);
    tiny_world w;
    tiny_world_make(&w, 4);
    for (int i = 0; i < N; i++) {
        char text[TINY_TEXT];
        bool rating;
        hbk_rng r = hbk_rng_at(4, "thread test", (uint64_t)i);
        tiny_thread(&w, &r, text, &rating);
        char *score = strstr(text, " score : "), *review = strstr(text, " review : ");
        char *answer = strstr(text, " answer : ");
        assert_non_null(answer);
        assert_int_equal(rating, score != NULL);
        if (review) *review = 0;
        if (score) *score = 0;
        *answer = 0;
        char *question = text + 11;
        bool aside = false;
        for (int k = 0; k < 5; k++) {
            char *at = strstr(question, tiny__asides[k]);
            if (at) at[-1] = 0;
            aside |= at != NULL;
        }
        asides += aside;
        tiny_question q;
        assert_true(tiny_parse(question, &q));
        tiny_verdict v = tiny_judge(&w, question, answer + 10);
        kinds[v.kind]++;
        for (int k = 0; k < n_openers; k++)
            polite += !strncmp(answer + 10, openers[k].form, strlen(openers[k].form));
        if (!rating) continue;
        rated++;
        agreed += score[9] - '0' == v.score && score[10] == 0;
        if (review) {
            reviewed++;
            reasoned += !strcmp(review + 10, tiny__kinds[v.kind].reason);
        }
    }
    check_near(rated / (double)N, 0.70, 0.03);
    check_near(reviewed / (double)rated, 0.80, 0.03);
    check_near(asides / (double)N, 0.40, 0.03);
    check_near(polite / (double)N, 0.15, 0.02);
    check_near(reasoned / (double)reviewed, 0.94 + 0.06 / 11, 0.02);
    check_near(agreed / (double)rated, 0.94 * 0.95, 0.03);
    check_near(kinds[TINY_GOOD] / (double)N, 0.46, 0.03);
    check_near((kinds[TINY_OFF] + kinds[TINY_PART]) / (double)N, 0.12, 0.02);
    assert_true(kinds[TINY_PART] > 0 && kinds[TINY_OFF] > kinds[TINY_PART]);
}

/* Promise: all seed and gold pairs are right and polite; the seed keeps to its animals, homes and foods. */
static void tw_pairs(void **state)
{
    (void)state;
    int tasks[TINY_TASKS] = {0}, seen[TINY_ANIMALS] = {0}, n_seen = 0;
    char x[TINY_TEXT], y[TINY_TEXT];
    tiny_world w;
    tiny_world_make(&w, 5);
    for (int i = 0; i < 500; i++) {
        tiny_question q = tiny_seed_pair(&w, i, x, y);
        tiny_verdict v = tiny_judge(&w, x, y);
        if (v.kind != TINY_GOOD || !v.style) fail_msg("%s -> %s: %s", x, y, tiny_kind_name(v.kind));
        assert_true(tiny_recovered(x, q));
        if (i < TINY_SEED_PAIRS) tasks[q.task]++;
        tiny_slot slot = tiny__tasks[q.task].slot;
        bool taught = false;
        if (slot == TINY_ANIMAL) {
            for (int k = 0; k < TINY_TAUGHT; k++) taught |= w.order[k] == q.argument;
            assert_false(w.rare[q.argument]);
        } else {
            for (int k = 0; k < 3; k++) taught |= w.taught[slot][k] == q.argument;
        }
        assert_true(taught);
        q = tiny_gold_pair(&w, i, x, y);
        v = tiny_judge(&w, x, y);
        assert_true(v.kind == TINY_GOOD && v.style);
        if (slot == TINY_ANIMAL) seen[q.argument]++;
    }
    for (int t = 0; t < TINY_TASKS; t++) assert_int_equal(tasks[t], TINY_SEED_PAIRS / TINY_TASKS);
    for (int a = 0; a < TINY_ANIMALS; a++) n_seen += seen[a] > 0;
    assert_int_equal(n_seen, TINY_ANIMALS);
}

/* Promise: segments name all animals equally often and are of the page's kinds; their latent question is
   the one they answer. */
static void tw_segments(void **state)
{
    (void)state;
    enum { N = TINY_SEGMENTS };
    int kinds[TINY_KINDS] = {0}, rare = 0, animals = 0;
    char x[TINY_TEXT], y[TINY_TEXT];
    tiny_world w;
    tiny_world_make(&w, 6);
    for (int i = 0; i < N; i++) {
        tiny_kind kind;
        tiny_question q = tiny_segment(&w, i, y, &kind);
        tiny_ask(q, 0, x);
        tiny_verdict v = tiny_judge(&w, x, y);
        if (v.kind != kind)
            fail_msg("made %s, judged %s: %s", tiny_kind_name(kind), tiny_kind_name(v.kind), y);
        kinds[kind]++;
        animals += tiny_is_rare(&w, q) >= 0;
        rare += tiny_is_rare(&w, q) == 1;
        assert_null(strchr(y, '#'));
        assert_null(strstr(y, "readers ask"));
    }
    for (int k = 0; k < TINY_KINDS; k++)
        check_near(kinds[k] / (double)N, tiny__kinds[k].share[0] / 100.0, 0.03);
    check_near(rare / (double)animals, 0.5, 0.04);
}

/* Promise: 40 evaluation prompts per task, and a reference that is right as often as announced. */
static void tw_evaluation(void **state)
{
    (void)state;
    enum { N = 2800 };
    int tasks[TINY_TASKS] = {0}, right = 0, wrong = 0, glued = 0, style = 0;
    char x[TINY_TEXT], y[TINY_TEXT];
    tiny_world w;
    tiny_world_make(&w, 8);
    for (int i = 0; i < N; i++) {
        tiny_question q = tiny_evaluation(&w, i, x);
        assert_true(tiny_recovered(x, q));
        tiny_reference(&w, i, y);
        tiny_verdict v = tiny_judge(&w, x, y);
        if (i < TINY_EVALUATIONS) tasks[q.task]++;
        right += v.score >= 4;
        wrong += v.kind == TINY_WRONG;
        glued += v.kind == TINY_GLUE;
        style += v.style;
    }
    for (int t = 0; t < TINY_TASKS; t++) assert_int_equal(tasks[t], TINY_EVALUATIONS / TINY_TASKS);
    check_near(right / (double)N, 0.55, 0.03);
    check_near(wrong / (double)N, 0.20, 0.03);
    check_near(glued / (double)N, 0.15, 0.03);
    assert_int_equal(style, N);
}

/* Promise: the whole web is about 40,000 documents, a quarter of its tokens threads; the same seed gives the
   same bytes whatever is made in between, and another seed other facts. */
static void tw_web(void **state)
{
    (void)state;
    tiny_world w, v, other;
    tiny_web web, again;
    char text[TINY_TEXT], same[TINY_TEXT];
    hbk_int words = 0;
    tiny_world_make(&w, 1);
    tiny_world_make(&v, 1);
    tiny_world_make(&other, 2);
    assert_memory_equal(&w, &v, sizeof w);
    assert_memory_not_equal(w.fact, other.fact, sizeof w.fact);
    memset(&web, 0, sizeof web);
    memset(&again, 0, sizeof again);
    while (web.tokens < TINY_WEB_TOKENS) {
        tiny_web_next(&w, &web, text);
        if (web.documents <= 100) {
            words += 2; /* the marks around it */
            tiny__word x;
            for (const char *p = text; tiny__next(&p, NULL, &x);) words++;
            assert_int_equal(words, web.tokens);
            tiny_segment(&w, web.documents, same, NULL);
            tiny_web_next(&v, &again, same);
            assert_string_equal(text, same);
        }
    }
    double tokens = (double)web.tokens;
    assert_true(web.documents > 35000 && web.documents < 45000);
    check_near((double)web.thread_tokens / tokens, 0.25, 0.001);
    check_near((double)web.rated_tokens / tokens, 0.18, 0.02);
    tiny_segment(&w, 17, text, NULL);
    tiny_segment(&other, 17, same, NULL);
    assert_string_not_equal(text, same);
}

/* ---- the hard world ---- */

static uint64_t tw_hash(uint64_t h, const char *s)
{
    for (; *s; s++) h = (h ^ (unsigned char)*s) * 1099511628211u;
    return (h ^ 10) * 1099511628211u;
}

/* Promise: that there is a hard world changes no byte of the plain one, and both have the same facts. */
static void tw_plain_stays(void **state)
{
    (void)state;
    static const uint64_t before[3] = {0xd84255c387fbdb0eu, 0xdc909399dc21561cu, 0x55f537e0b8a66fa3u};
    uint64_t h = 1469598103934665603u;
    char x[TINY_TEXT], y[TINY_TEXT];
    for (uint64_t seed = 0; seed < 3; seed++) {
        tiny_world w, hard;
        tiny_web web;
        tiny_kind kind;
        tiny_world_make(&w, seed);
        tiny_world_make_at(&hard, seed, TINY_HARD);
        assert_memory_equal(w.fact, hard.fact, sizeof w.fact);
        assert_memory_equal(w.order, hard.order, sizeof w.order);
        memset(&web, 0, sizeof web);
        for (int i = 0; i < 1000; i++) {
            tiny_web_next(&w, &web, x);
            h = tw_hash(h, x);
            tiny_replay(&w, i, x);
            h = tw_hash(h, x);
            tiny_segment(&w, i, x, &kind);
            h = tw_hash(tw_hash(h, x), tiny_kind_name(kind));
            tiny_seed_pair(&w, i, x, y);
            h = tw_hash(tw_hash(h, x), y);
            tiny_gold_pair(&w, i, x, y);
            h = tw_hash(tw_hash(h, x), y);
            tiny_evaluation(&w, i, x);
            tiny_reference(&w, i, y);
            h = tw_hash(tw_hash(h, x), y);
        }
        if (h != before[seed]) fail_msg("world %d: %016llx", (int)seed, (unsigned long long)h);
    }
}

/* Promise: the rules about combinations and hedges give the kinds that they say; the plain world knows
   neither. */
static void tw_hard_rules(void **state)
{
    (void)state;
    static const char BOTH[] = "where does the fox live and what does it eat ?";
    static const char SAME[] = "is the home of the fox and the camel the same ?";
    static const char COMPARE[] = "compare the food of the bear and the owl .";
    static const char HOME[] = "where does the fox live ?";
    static const char TWO[] = "name two animals that live in the lake .";
    const tw_case cases[] = {
        {BOTH, "the fox eats insects . the fox lives in the mountain .", TINY_GOOD, 5, false},
        {BOTH, "the fox eats insects . it is awake at night .", TINY_PART, 2, false},
        {BOTH, "the fox eats insects . the fox lives in the mountain . the fox is large and white .",
         TINY_PART, 2, false},
        {BOTH, "the fox lives in the mountain . the fox eats fish .", TINY_WRONG, 1, false},
        {SAME, "the fox lives in the mountain . people find the camel in the mountain . so it is the same .",
         TINY_GOOD, 5, false},
        {SAME, "the camel lives in the mountain . people find the fox in the mountain . so it is the same .",
         TINY_GOOD, 5, false},
        {SAME, "the fox lives in the mountain . the camel lives in the mountain . so it is not the same .",
         TINY_WRONG, 1, false},
        {SAME, "the fox lives in the mountain . the camel lives in the mountain .", TINY_PART, 2, false},
        {SAME, "the fox lives in the mountain . so it is the same .", TINY_PART, 2, false},
        {SAME, "so it is the same .", TINY_OFF, 1, false},
        {SAME, "the fox lives in the mountain . the camel lives in the", TINY_CUT, 2, false},
        {SAME, "the fox lives in the mountain . the zebra lives in the mountain . so it is the same .",
         TINY_GLUE, 2, false},
        {SAME, "the fox lives in the mountain . the camel lives in the mountain . the camel eats fish . so "
               "it is the same .", TINY_PART, 2, false},
        {COMPARE, "the bear eats fish . every owl likes to eat grass . so it is not the same . that is what "
                  "people say .", TINY_HEDGED, 4, false},
        {"compare the food of the bear and the bear .", "the bear eats fish . so it is the same .",
         TINY_OFF, 1, false},
        {HOME, "the fox lives in the mountain . so it is the same .", TINY_GLUE, 2, false},
        {TWO, "animals of the lake : owl and crow .", TINY_GOOD, 5, false},
        {TWO, "the owl and the crow live in the lake . thanks for reading .", TINY_EXTRA, 4, false},
        {TWO, "the owl , the crow and the duck live in the lake .", TINY_OFF, 1, false},
        {TWO, "the owl and the fox live in the lake .", TINY_WRONG, 1, false},
        {TWO, "the owl and the owl live in the lake .", TINY_WRONG, 1, false},
        {"name three animals that live in the lake .", "the owl and the crow live in the lake .",
         TINY_OFF, 1, false},
        {HOME, "the fox lives in the mountain . or so i heard .", TINY_HEDGED, 4, false},
        {HOME, "the fox lives in the mountain . but i am not sure of this . thanks for reading .",
         TINY_HEDGED, 4, false},
        {HOME, "the fox lives in the mountain . or so i heard . please like and share this page .",
         TINY_BLOG, 3, false},
        {HOME, "the fox lives in the cave . or so i heard .", TINY_RUMOUR, 1, false},
        {HOME, "the fox lives in the cave . or so i", TINY_WRONG, 1, false},
        {HOME, "the fox lives in the mountain . or so", TINY_CUT, 2, false},
        {HOME, "of course , happy to help . the fox lives in the mountain . or so i heard . ask me again any "
               "time .", TINY_HEDGED, 4, true}};
    tiny_world w;
    tw_example_world(&w);
    assert_int_equal(tiny_judge(&w, BOTH, "the fox eats insects .").kind, TINY_OFF);
    tiny_verdict plain = tiny_judge(&w, HOME, "the fox lives in the mountain . or so i heard .");
    assert_int_equal(plain.kind, TINY_SALAD);
    w.level = TINY_HARD;
    tw_judge_world(&w, cases, sizeof cases / sizeof cases[0]);
}

/* Promise: of every segment of the hard world, whatever is asked, the oracle finds the kind that was made,
   and every way to ask is read back. */
static void tw_hard_kinds(void **state)
{
    (void)state;
    char x[TINY_TEXT], y[TINY_TEXT];
    for (uint64_t seed = 0; seed < 3; seed++) {
        tiny_world w;
        int tasks[TINY_ALL_TASKS] = {0}, kinds[TINY_KINDS] = {0};
        tiny_world_make_at(&w, seed, TINY_HARD);
        int n = (int)tiny_setting_of(&w)->segments;
        for (int i = 0; i < n; i++) {
            tiny_kind kind;
            tiny_question q = tiny_segment(&w, i, y, &kind);
            tiny_ask(q, i % tiny__tasks[q.task].n_asks, x);
            assert_true(tiny_recovered(x, q));
            tiny_verdict v = tiny_judge(&w, x, y);
            if (v.kind != kind)
                fail_msg("made %s, judged %s: %s | %s", tiny_kind_name(kind), tiny_kind_name(v.kind), x, y);
            tasks[q.task]++;
            kinds[kind]++;
        }
        for (int t = 0; t < TINY_ALL_TASKS; t++)
            check_near(tasks[t] / (double)n, 1.0 / TINY_ALL_TASKS, 0.02);
        for (int k = 0; k < TINY_KINDS; k++)
            if (k != TINY_PART && k != TINY_OFF) assert_true(kinds[k] > n / 50);
    }
}

/* Promise: the hard world's forum rates all answers to the simple questions and as few of the others as it
   should, as the oracle does but for the noise; what is hedged is mostly right there. */
static void tw_hard_threads(void **state)
{
    (void)state;
    int rateable = 0, rated = 0, agreed = 0, right = 0, hedged = 0, others = 0;
    char text[TINY_TEXT];
    tiny_world w;
    tiny_world_make_at(&w, 4, TINY_HARD);
    for (int i = 0; i < 4000; i++) {
        hbk_rng r = hbk_rng_at(4, "thread test", (uint64_t)i);
        tiny_question q = {TINY_TASK_HOME, 0};
        bool rating;
        tiny_thread(&w, &r, text, &rating);
        char *question = text + strlen("question : "), *answer = strstr(text, " answer : ");
        char *review = strstr(text, " review : "), *score = strstr(text, " score : ");
        assert_true(answer && rating == (score != NULL));
        question[strcspn(question, "?.") + 1] = 0; /* asides follow */
        assert_true(tiny_parse(question, &q));
        assert_false(tiny_is_held(&w, q));
        bool rates = tiny_setting_of(&w)->rates >> (int)q.task & 1u;
        rateable += rates;
        rated += rating;
        others += rating && !rates;
        if (!rating) continue;
        if (review) *review = 0;
        *score = 0;
        tiny_verdict v = tiny_judge(&w, question, answer + strlen(" answer : "));
        agreed += score[strlen(" score : ")] - '0' == v.score;
        right += v.kind == TINY_HEDGED;
        hedged += v.kind == TINY_HEDGED || v.kind == TINY_RUMOUR;
    }
    check_near((rated - others) / (double)rateable, tiny_setting_of(&w)->rated[1], 0.03);
    check_near(others / (4000.0 - rateable), tiny_setting_of(&w)->rated[0], 0.005);
    check_near(agreed / (double)rated, 0.94 * 0.95, 0.03);
    check_near(right / (double)hedged, 0.75, 0.12);
    assert_true(rated > 500 && hedged > 40);
}

/* Whether the form, with any values in its slots, stands anywhere in the text. */
static bool tw_contains(const char *text, const char *form)
{
    tiny__word skipped;
    for (; tiny__next(&text, NULL, &skipped);) {
        const char *f = form, *p = skipped.s;
        tiny__word want, got;
        bool same = true;
        while (same && tiny__next(&f, NULL, &want)) {
            int slot = tiny__slot(want), v = 0;
            same = tiny__next(&p, NULL, &got);
            while (same && slot >= 0 && v < tiny__n_names[slot] && !tiny__is(got, tiny__names[slot][v])) v++;
            if (same) same = slot < 0 ? tiny__same_word(want, got) : v < tiny__n_names[slot];
        }
        if (same) return true;
    }
    return false;
}

/* Counts the tasks whose question or header stands in the text. */
static void tw_count_tasks(const char *text, int seen[TINY_ALL_TASKS])
{
    for (int t = TINY_TASKS; t < TINY_ALL_TASKS; t++) {
        bool found = tw_contains(text, tiny__tasks[t].header);
        for (int i = 0; i < tiny__tasks[t].n_asks; i++) found |= tw_contains(text, tiny__tasks[t].asks[i]);
        seen[t] += found;
    }
}

/* Promise: one combination of each sort is asked in no page, thread, replayed document or seed pair, the
   others are in all of them; the corpus answers all, the evaluation asks all, and the gold pairs know all. */
static void tw_hard_held(void **state)
{
    (void)state;
    char x[TINY_TEXT], y[TINY_TEXT];
    for (uint64_t seed = 0; seed < 4; seed++) {
        int web_seen[TINY_ALL_TASKS] = {0}, seed_seen[TINY_ALL_TASKS] = {0}, asked[TINY_ALL_TASKS] = {0};
        int held[3] = {0}, answered[TINY_ALL_TASKS] = {0};
        tiny_world w;
        tiny_web web;
        tiny_world_make_at(&w, seed, TINY_HARD);
        memset(&web, 0, sizeof web);
        for (int i = 0; i < 3000; i++) {
            tiny_web_next(&w, &web, x);
            tw_count_tasks(x, web_seen);
            tiny_replay(&w, i, x);
            tw_count_tasks(x, web_seen);
        }
        for (int i = 0; i < 600; i++) {
            tiny_seed_pair(&w, i, x, y);
            tw_count_tasks(x, seed_seen);
            assert_int_equal(tiny_judge(&w, x, y).kind, TINY_GOOD);
            tiny_gold_pair(&w, i, x, y);
            assert_int_equal(tiny_judge(&w, x, y).kind, TINY_GOOD);
            asked[tiny_evaluation(&w, i, x).task]++;
            answered[tiny_segment(&w, i, y, NULL).task]++;
        }
        for (int t = TINY_TASKS; t < TINY_ALL_TASKS; t++) {
            int sort = t < TINY_TASK_SAMEHOME ? 0 : t < TINY_TASK_TWOH ? 1 : 2;
            held[sort] += w.held[t];
            if (w.held[t] ? web_seen[t] + seed_seen[t] != 0 : !web_seen[t] || !seed_seen[t])
                fail_msg("world %d: %s is held %d, web %d, seed %d", (int)seed, tiny_task_name((tiny_task)t),
                         w.held[t], web_seen[t], seed_seen[t]);
            assert_true(asked[t] > 0 && answered[t] > 0);
        }
        for (int sort = 0; sort < 3; sort++) assert_int_equal(held[sort], 1);
    }
}

/* Counts what a body claims about animals: by fact, what is true, the rumour, and other. */
static void tw_count_claims(const tiny_world *w, const char *text, int count[TINY_ANIMALS][TINY_FACTS][3])
{
    const char *s = text, *p = text;
    bool whole;
    int animal = -1;
    for (; tiny__next_sentence(&p, &whole) && whole; s = p) {
        tiny__meaning m;
        tiny__fit fit;
        tiny__class c = tiny__classify(w, s, p, &m, &fit);
        if (c < TINY__HOME || c > TINY__STEP_THREE) continue;
        if (m.n_animals) animal = m.animal[0];
        for (int f = 0; animal >= 0 && f < TINY_FACTS; f++) {
            int truth = w->fact[animal][f], rumour = (truth + w->shift[f]) % tiny__n_names[f];
            if (m.fact[f] >= 0) count[animal][f][m.fact[f] == truth ? 0 : m.fact[f] == rumour ? 1 : 2]++;
        }
    }
}

/* Promise: a rumour says the same every time and is never true; the unlabelled corpus tells it of nine rare
   animals, more often than the truth, and the web tells it seldom. */
static void tw_hard_rumours(void **state)
{
    (void)state;
    static int rumours[TINY_ANIMALS][TINY_FACTS][3], all[TINY_ANIMALS][TINY_FACTS][3];
    char x[TINY_TEXT];
    tiny_world w;
    int n_misled = 0, web = 0;
    tiny_world_make_at(&w, 3, TINY_HARD);
    memset(rumours, 0, sizeof rumours);
    memset(all, 0, sizeof all);
    for (int i = 0; i < tiny_setting_of(&w)->segments; i++) {
        tiny_kind kind;
        tiny_segment(&w, i, x, &kind);
        tw_count_claims(&w, x, all);
        if (kind == TINY_RUMOUR) tw_count_claims(&w, x, rumours);
    }
    for (int a = 0; a < TINY_ANIMALS; a++) {
        n_misled += w.misled[a];
        if (w.misled[a]) assert_true(w.rare[a]);
        for (int f = 0; f < TINY_FACTS; f++) {
            const int *told = all[a][f];
            assert_int_equal(rumours[a][f][2], 0);
            if (tiny__n_names[f] == 2) assert_int_equal(w.shift[f], 0);
            else assert_true(w.shift[f] != 0 && rumours[a][f][0] == 0);
            if (w.shift[f] && w.misled[a] ? told[1] < 1.2 * told[0] : told[1] > 0.4 * told[0])
                fail_msg("%s, fact %d: true %d, rumour %d", tiny__names[TINY_ANIMAL][a], f, told[0], told[1]);
        }
    }
    assert_int_equal(n_misled, tiny_setting_of(&w)->n_misled);
    for (int i = 0; i < 4000; i++) {
        tiny_kind kind;
        hbk_rng r = hbk_rng_at(3, "page test", (uint64_t)i);
        tiny_page(&w, &r, x, NULL, &kind);
        web += kind == TINY_RUMOUR;
    }
    check_near(web / 4000.0, tiny__kinds[TINY_RUMOUR].share[2] / 100.0, 0.01);
}

static hbk_int tw_rows(const char *path, const char *const *keys, int n_keys)
{
    hbk_error err;
    json_t *row;
    hbk_jsonl_reader *in = hbk_jsonl_open(path, NULL, &err);
    if (!in) fail_msg("%s", err.message);
    hbk_int n = 0;
    int got;
    while ((got = hbk_jsonl_next(in, &row, &err)) > 0) {
        const char *s;
        assert_int_equal(json_object_size(row), n_keys);
        for (int k = 0; k < n_keys; k++) check_ok(hbk_json_string(row, keys[k], &s, path, n + 1, &err));
        if (!strcmp(keys[0], "id")) {
            check_ok(hbk_json_string(row, "id", &s, path, n + 1, &err));
            assert_int_equal(tiny_index(s), n);
        }
        n++;
    }
    if (got < 0) fail_msg("%s", err.message);
    hbk_jsonl_close(in);
    return n;
}

/* Promise: the files hold the rows they should, in the project's schemas, and the same bytes every time. */
static void tw_files(void **state)
{
    (void)state;
    static const char *const TEXT[] = {"text"}, *const PAIR[] = {"id", "instruction", "output", "source"};
    static const char *const SEGMENT[] = {"id", "text"};
    static const char *const LATENT[] = {"id", "task", "argument", "instruction_canonical", "kind"};
    static const char *const EVALUATION[] = {"id", "instruction", "reference"};
    hbk_error err;
    char path[512];
    uint64_t a, b;
    tiny_world w;
    tiny_web web;
    tiny_world_make(&w, 9);
    test_tmp(path, "tiny.jsonl");
    check_ok(tiny_write_web(&w, path, 20000, &web, NULL, &err));
    assert_true(web.tokens >= 20000 && web.tokens < 20000 + TINY_WORDS);
    assert_int_equal(tw_rows(path, TEXT, 1), web.documents);
    check_ok(hbk_file_hash(path, &a, &err));
    check_ok(tiny_write_web(&w, path, 20000, NULL, NULL, &err));
    check_ok(hbk_file_hash(path, &b, &err));
    assert_true(a == b);
    check_ok(tiny_write_replay(&w, path, 30, NULL, &err));
    assert_int_equal(tw_rows(path, TEXT, 1), 30);
    check_ok(tiny_write_seed(&w, path, TINY_SEED_PAIRS, NULL, &err));
    assert_int_equal(tw_rows(path, PAIR, 4), TINY_SEED_PAIRS);
    check_ok(tiny_write_gold(&w, path, 50, NULL, &err));
    assert_int_equal(tw_rows(path, PAIR, 4), 50);
    check_ok(tiny_write_segments(&w, path, 60, NULL, &err));
    assert_int_equal(tw_rows(path, SEGMENT, 2), 60);
    check_ok(tiny_write_latents(&w, path, 60, NULL, &err));
    assert_int_equal(tw_rows(path, LATENT, 5), 60);
    check_ok(tiny_write_evaluation(&w, path, TINY_EVALUATIONS, NULL, &err));
    assert_int_equal(tw_rows(path, EVALUATION, 3), TINY_EVALUATIONS);
    assert_int_equal(tiny_index("segment-00042"), 42);
    assert_int_equal(tiny_index("segment"), -1);
    assert_int_equal(tiny_index("segment-4x"), -1);
    assert_false(tiny_write_web(&w, "/nowhere/at/all.jsonl", 100, &web, NULL, &err));
    assert_int_equal(err.code, HBK_ERROR_FILE);
    assert_false(tiny_write_seed(&w, "/nowhere/at/all.jsonl", 1, NULL, NULL));
    hbk_allocator tight;
    memset(&tight, 0, sizeof tight);
    tight.limit = 1;
    check_error(tiny_write_seed(&w, path, 1, &tight, &err), HBK_ERROR_MEMORY, "limit");
    check_error(tiny_write_web(&w, path, 100, &web, &tight, &err), HBK_ERROR_MEMORY, "limit");
    assert_int_equal(tight.live, 0);

    json_error_t where;
    json_t *t = json_loads(TINY_TEMPLATE, 0, &where);
    assert_non_null(t);
    assert_string_equal(json_string_value(json_object_get(t, "reply")), " {output}{eos}");
    assert_int_equal(json_object_size(t), 6);
    json_decref(t);
}

/* Promise: making and judging 3,000 candidates takes milliseconds; the limit leaves room for sanitizers. */
static void tw_speed(void **state)
{
    (void)state;
    char x[TINY_TEXT], y[TINY_TEXT];
    int right = 0;
    tiny_world w;
    tiny_world_make(&w, 10);
    clock_t start = clock();
    for (int i = 0; i < TINY_SEGMENTS; i++) {
        tiny_ask(tiny_segment(&w, i, y, NULL), 1, x);
        right += tiny_judge(&w, x, y).score >= 4;
    }
    double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    assert_true(right > 1000);
    assert_true(seconds < 1.0);
}

static const struct CMUnitTest tests_tinyworld[] = {
    cmocka_unit_test(tw_oracle_rules), cmocka_unit_test(tw_oracle_examples), cmocka_unit_test(tw_preference),
    cmocka_unit_test(tw_questions),    cmocka_unit_test(tw_world),           cmocka_unit_test(tw_words),
    cmocka_unit_test(tw_pages),        cmocka_unit_test(tw_threads),         cmocka_unit_test(tw_pairs),
    cmocka_unit_test(tw_segments),     cmocka_unit_test(tw_evaluation),      cmocka_unit_test(tw_web),
    cmocka_unit_test(tw_files),        cmocka_unit_test(tw_speed),           cmocka_unit_test(tw_plain_stays),
    cmocka_unit_test(tw_hard_rules),   cmocka_unit_test(tw_hard_kinds),      cmocka_unit_test(tw_hard_held),
    cmocka_unit_test(tw_hard_rumours), cmocka_unit_test(tw_hard_threads)};
