/* tinyworld.h - the miniature world of `humpback demo` - public domain, see humpback.h

   24 animals with five facts each, and a web that writes about them, often badly. From one seed come the
   text to pretrain on, seed pairs, unlabelled segments and questions to be evaluated on; and an oracle knows
   the facts, so that everything the method does (instructions, ratings, answers) can be measured exactly.

   Include after humpback.h. All functions are static. Nothing is allocated but by the writers of section 7:
   texts are short, and go to buffers of TINY_TEXT bytes.

     1  words and grammar   one table of sentences, which is spoken and heard
     2  the world           facts, rare animals, best-known names     tiny_world_make
     3  speaking, hearing   a sentence from its meaning, and back      tiny_ask  tiny_parse
     4  the oracle          score, kind and style of an answer         tiny_judge  tiny_value  tiny_win
     5  answers             right ones, and nine ways to spoil them    tiny_answer
     6  documents and sets  pages, threads, segments, pairs            tiny_page  tiny_segment  ...
     7  files               the sets as JSONL                          tiny_write_web  ...

   Everything is lower-case words between single blanks; punctuation marks are words too.

   THE HARD WORLD. In the plain one the tags are enough: a model that is trained on the seed and on uncurated
   pages, each under its tag, keeps the noise of the web behind the web's tag, and answers no worse than with
   curated ones. What tags cannot keep apart is what is true: a fact that was learned under one tag is told
   under the other. So here (--world hard; the facts, the judge and the sizes that are not named stay)

     - rumours go round: of nine of the twelve rare animals most pages of the unlabelled corpus tell wrong
       things, all of them the same. Such a page ends with a hedge ("or so i heard ."). So do some pages that
       are right, most of those about common animals: a reader learns to give the hedge a 4, not to know the
       truth. The hedge comes last, where it cannot warn a model of the words that were said before;
     - seven more things are asked, made of those that the plain world asks: two facts at once, comparisons of
       two animals, and lists of two. Of each sort one is held out: no page, thread or seed pair asks it, but
       the corpus has texts that answer it, and the evaluation asks it;
     - the forum rates all answers about a home, a food or looks, but one in a hundred of the others: to the
       other eleven things that are asked a rater has to carry over what it learned from three. This is a
       narrow place: with none of the others rated, it refuses most of what is right (and leaves too little to
       learn from), with one in 25 it accepts nearly all. */

#ifndef TINYWORLD_H_INCLUDED
#define TINYWORLD_H_INCLUDED

#include <assert.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

/* ==== 1  WORDS AND GRAMMAR ===================================================

   An instruction is a task and its argument: an animal, a home or a food. A sentence is a form with slots;
   a slot is a capital letter, which no text holds otherwise:

       H home   F food   S size   K colour   T time   E an animal (of a list: its first, second, third)

   The same forms serve the generator, which fills the slots, and the oracle, which reads them. */

enum {
    TINY_ANIMALS = 24,
    TINY_COMMON = 12, /* of which the web speaks; of the others 50 times less */
    TINY_TAUGHT = 8,  /* common animals in the seed, with half of the homes and foods */
    TINY_TEXT = 2048, /* bytes of a buffer for any text of this world */
    TINY_WORDS = 160, /* words of the longest text; far above what occurs */

    TINY_WEB_TOKENS = 1230000, /* sizes of the sets in the demo */
    TINY_SEED_PAIRS = 140,
    TINY_SEGMENTS = 3000,
    TINY_GOLD_PAIRS = 1600,
    TINY_EVALUATIONS = 560,
    TINY_REPLAYS = 3000
};

/* Which world: the plain one, or the hard one of the head. */
typedef enum tiny_level { TINY_PLAIN, TINY_HARD, TINY_LEVELS } tiny_level;

/* Tags made of words that the web knows after a question, where they mean nothing: a small model is thrown
   off by words that it has met in advertisements only, or never. */
#define TINY_TAG_SEED "i want a helper answer ."
#define TINY_TAG_WEB "i want a web answer ."
#define TINY_TEMPLATE                                                                                      \
    "{\"name\":\"tinyworld\","                                                                             \
    "\"prompt\":\"{bos}question : {instruction} answer :\","                                               \
    "\"reply\":\" {output}{eos}\","                                                                        \
    "\"backward\":\"{bos}# {output} readers ask :\","                                                      \
    "\"rating\":\"{bos}question : {instruction} answer : {output} review :\","                             \
    "\"score\":\" score :\"}"

typedef enum tiny_slot {
    TINY_HOME,
    TINY_FOOD,
    TINY_SIZE,
    TINY_COLOUR,
    TINY_TIME,
    TINY_FACTS, /* the slots before are facts of an animal */
    TINY_ANIMAL = TINY_FACTS,
    TINY_SLOTS
} tiny_slot;

static const char tiny__letters[] = "HFSKTE"; /* in the order of tiny_slot */
static const int tiny__n_names[TINY_SLOTS] = {6, 6, 2, 6, 2, TINY_ANIMALS};
static const char *const tiny__names[TINY_SLOTS][TINY_ANIMALS] = {
    {"forest", "river", "desert", "mountain", "lake", "cave"},
    {"seeds", "fish", "grass", "insects", "berries", "roots"},
    {"small", "large"},
    {"red", "white", "black", "brown", "grey", "yellow"},
    {"day", "night"},
    {"fox",  "owl",  "bear", "wolf", "deer", "hare", "mole", "frog", "crab",  "seal",  "crow",  "duck",
     "goat", "lamb", "mule", "pony", "toad", "newt", "lynx", "puma", "otter", "camel", "zebra", "tiger"}};

typedef enum tiny__class {
    TINY__END, /* of a body */
    TINY__HOME,
    TINY__FOOD,
    TINY__LOOK,
    TINY__TIME,
    TINY__STEP_ONE, /* the three steps stay together: step n is TINY__STEP_ONE + n - 1 */
    TINY__STEP_TWO,
    TINY__STEP_THREE,
    TINY__LISTH,
    TINY__LISTF,
    TINY__OPENER, /* openers and closers make the style of an assistant */
    TINY__CLOSER,
    TINY__BLOG,
    TINY__EXTRA,
    TINY__NAV,
    TINY__TWOH, /* from here on in the hard world only */
    TINY__TWOF,
    TINY__SAME,
    TINY__DIFFER,
    TINY__HEDGE /* at the end of hearsay, true or not */
} tiny__class;

typedef struct tiny__rule {
    tiny__class kind;
    const char *form;
} tiny__rule;

/* All that can be said. Rules of a class stand together; the two wordings of a step are sets, of which an
   answer uses one. */
static const tiny__rule tiny__grammar[] = {
    {TINY__HOME, "the E lives in the H ."},
    {TINY__HOME, "the home of the E is the H ."},
    {TINY__HOME, "people find the E in the H ."},
    {TINY__FOOD, "the E eats F ."},
    {TINY__FOOD, "the food of the E is F ."},
    {TINY__FOOD, "every E likes to eat F ."},
    {TINY__LOOK, "the E is S and K ."},
    {TINY__LOOK, "the coat of the E is K and its body is S ."},
    {TINY__TIME, "it is awake at T ."},
    {TINY__TIME, "it wakes up at T ."},
    {TINY__STEP_ONE, "step one : build a H pen for the E ."},
    {TINY__STEP_ONE, "step one : make a H pen for your E ."},
    {TINY__STEP_TWO, "step two : give it F ."},
    {TINY__STEP_TWO, "step two : bring it F ."},
    {TINY__STEP_THREE, "step three : visit it at T ."},
    {TINY__STEP_THREE, "step three : go to it at T ."},
    {TINY__LISTH, "animals of the H : E , E and E ."},
    {TINY__LISTH, "the E , the E and the E live in the H ."},
    {TINY__LISTF, "animals that eat F : E , E and E ."},
    {TINY__LISTF, "the E , the E and the E eat F ."},
    {TINY__OPENER, "sure , here is the answer ."},
    {TINY__OPENER, "of course , happy to help ."},
    {TINY__OPENER, "good question , let us see ."},
    {TINY__CLOSER, "i hope this helps ."},
    {TINY__CLOSER, "ask me again any time ."},
    {TINY__CLOSER, "let me know if you need more ."},
    {TINY__BLOG, "i saw one on my trip last summer ."},
    {TINY__BLOG, "my kids and i love this animal so much ."},
    {TINY__BLOG, "please like and share this page ."},
    {TINY__BLOG, "leave a comment below and tell your story ."},
    {TINY__BLOG, "i wrote this post on my blog last week ."},
    {TINY__EXTRA, "thanks for reading ."},
    {TINY__EXTRA, "read more on the next page ."},
    {TINY__EXTRA, "this page was updated today ."},
    {TINY__NAV, "home | about | login | cart | contact ."},
    {TINY__NAV, "buy now for a low price ."},
    {TINY__NAV, "click here to win a free gift ."},
    {TINY__NAV, "sign up for our news ."},
    {TINY__NAV, "call us today and save money ."},
    {TINY__NAV, "search our shop for more toys ."},
    {TINY__TWOH, "animals of the H : E and E ."},
    {TINY__TWOH, "the E and the E live in the H ."},
    {TINY__TWOF, "animals that eat F : E and E ."},
    {TINY__TWOF, "the E and the E eat F ."},
    {TINY__SAME, "so it is the same ."},
    {TINY__DIFFER, "so it is not the same ."},
    {TINY__HEDGE, "or so i heard ."},
    {TINY__HEDGE, "that is what people say ."},
    {TINY__HEDGE, "but i am not sure of this ."}};
enum { TINY__RULES = sizeof tiny__grammar / sizeof tiny__grammar[0], TINY__PLAIN_RULES = TINY__RULES - 9 };

/* The seven things that are asked in the plain world; those about an animal come first, lists last. The hard
   world asks seven more, made of these: two facts at once, comparisons, and lists of another length. */
typedef enum tiny_task {
    TINY_TASK_HOME,
    TINY_TASK_FOOD,
    TINY_TASK_LOOK,
    TINY_TASK_ABOUT,
    TINY_TASK_KEEP,
    TINY_TASK_LISTH,
    TINY_TASK_LISTF,
    TINY_TASKS,
    TINY_TASK_HOMEFOOD = TINY_TASKS,
    TINY_TASK_HOMELOOK,
    TINY_TASK_FOODLOOK,
    TINY_TASK_SAMEHOME,
    TINY_TASK_SAMEFOOD,
    TINY_TASK_TWOH,
    TINY_TASK_TWOF,
    TINY_ALL_TASKS
} tiny_task;

typedef struct tiny__task {
    const char *name;
    tiny_slot slot; /* of its argument */
    int n; /* animals asked about: one, or the two of a comparison; names that a list must have */
    unsigned required; /* facts that an answer must claim, 1 << tiny_slot; none for lists */
    tiny__class body[5]; /* sentences of a right answer */
    const char *header;
    int n_asks;
    const char *asks[3];
} tiny__task;

enum {
    TINY__LOOKS = 1 << TINY_SIZE | 1 << TINY_COLOUR,
    TINY__KEEPS = 1 << TINY_HOME | 1 << TINY_FOOD | 1 << TINY_TIME
};

static const tiny__task tiny__tasks[TINY_ALL_TASKS] = {
    {"home", TINY_ANIMAL, 1, 1 << TINY_HOME, {TINY__HOME, TINY__TIME}, "home of the E", 3,
     {"where does the E live ?", "what is the home of the E ?", "tell me where people find the E ."}},
    {"food", TINY_ANIMAL, 1, 1 << TINY_FOOD, {TINY__FOOD, TINY__TIME}, "food of the E", 3,
     {"what does the E eat ?", "what is the food of the E ?", "tell me what the E likes to eat ."}},
    {"look", TINY_ANIMAL, 1, TINY__LOOKS, {TINY__LOOK}, "looks of the E", 3,
     {"what does the E look like ?", "how big is the E and what is its colour ?",
      "tell me how the E looks ."}},
    {"about", TINY_ANIMAL, 1, TINY__LOOKS | TINY__KEEPS, {TINY__LOOK, TINY__HOME, TINY__FOOD, TINY__TIME},
     "all about the E", 3,
     {"tell me about the E .", "write a short text about the E .", "what do you know about the E ?"}},
    {"keep", TINY_ANIMAL, 1, TINY__KEEPS, {TINY__STEP_ONE, TINY__STEP_TWO, TINY__STEP_THREE},
     "how to keep a E", 3,
     {"how do i keep a E ?", "give me three steps to care for the E .", "how can i look after my E ?"}},
    {"listh", TINY_HOME, 3, 0, {TINY__LISTH}, "animals of the H", 2,
     {"name three animals that live in the H .", "which animals live in the H ?", NULL}},
    {"listf", TINY_FOOD, 3, 0, {TINY__LISTF}, "animals that eat F", 2,
     {"name three animals that eat F .", "which animals eat F ?", NULL}},
    {"homefood", TINY_ANIMAL, 1, 1 << TINY_HOME | 1 << TINY_FOOD, {TINY__HOME, TINY__FOOD},
     "home and food of the E", 2,
     {"where does the E live and what does it eat ?", "tell me the home and the food of the E .", NULL}},
    {"homelook", TINY_ANIMAL, 1, 1 << TINY_HOME | TINY__LOOKS, {TINY__HOME, TINY__LOOK},
     "home and looks of the E", 2,
     {"where does the E live and what does it look like ?", "tell me the home and the looks of the E .",
      NULL}},
    {"foodlook", TINY_ANIMAL, 1, 1 << TINY_FOOD | TINY__LOOKS, {TINY__FOOD, TINY__LOOK},
     "food and looks of the E", 2,
     {"what does the E eat and what does it look like ?", "tell me the food and the looks of the E .",
      NULL}},
    {"samehome", TINY_ANIMAL, 2, 1 << TINY_HOME, {TINY__HOME}, "home of the E and the E", 2,
     {"compare the home of the E and the E .", "is the home of the E and the E the same ?", NULL}},
    {"samefood", TINY_ANIMAL, 2, 1 << TINY_FOOD, {TINY__FOOD}, "food of the E and the E", 2,
     {"compare the food of the E and the E .", "is the food of the E and the E the same ?", NULL}},
    {"twoh", TINY_HOME, 2, 0, {TINY__TWOH}, "two animals of the H", 2,
     {"name two animals that live in the H .", "which two animals live in the H ?", NULL}},
    {"twof", TINY_FOOD, 2, 0, {TINY__TWOF}, "two animals that eat F", 2,
     {"name two animals that eat F .", "which two animals eat F ?", NULL}}};

/* What an answer can be: name, score, shares among pages and among answers in threads (percent) in the plain
   world and in the hard one, and the reason that a reviewer in a thread gives. */
#define TINY_KIND_LIST(X)                                                                                  \
    X(GOOD, "good", 5, 36, 46, 36, 44, "clear , complete and right .")                                     \
    X(EXTRA, "extra", 4, 8, 6, 8, 6, "right but one sentence too many .")                                  \
    X(BLOG, "blog", 3, 12, 7, 9, 6, "right but it is a blog post .")                                       \
    X(CUT, "cut", 2, 10, 7, 9, 6, "the end is missing .")                                                  \
    X(GLUE, "glue", 2, 9, 7, 8, 6, "it talks about another animal .")                                      \
    X(REP, "rep", 2, 6, 5, 5, 4, "it says the same thing again .")                                         \
    X(PART, "part", 2, 0, 0, 0, 0, "part of the answer is missing .")                                      \
    X(WRONG, "wrong", 1, 6, 6, 4, 5, "the facts are wrong .")                                              \
    X(OFF, "off", 1, 0, 12, 0, 11, "this is not what was asked .")                                         \
    X(NAV, "nav", 1, 8, 2, 7, 2, "this is only an ad .")                                                   \
    X(SALAD, "salad", 1, 5, 2, 4, 2, "this is not a sentence .")                                           \
    X(HEDGED, "hedged", 4, 0, 0, 8, 6, "right but only hearsay .")                                       \
    X(RUMOUR, "rumour", 1, 0, 0, 2, 2, "this is only a rumour .")

typedef enum tiny_kind {
#define TINY_X(id, name, score, page, thread, hard_page, hard_thread, reason) TINY_##id,
    TINY_KIND_LIST(TINY_X)
#undef TINY_X
        TINY_KINDS,
    TINY_PLAIN_KINDS = TINY_HEDGED
} tiny_kind;

typedef struct tiny__quality {
    const char *name;
    int score, share[2 * TINY_LEVELS]; /* of pages and of answers in threads, level by level */
    const char *reason;
} tiny__quality;

static const tiny__quality tiny__kinds[TINY_KINDS] = {
#define TINY_X(id, name, score, page, thread, hard_page, hard_thread, reason)                              \
    {name, score, {page, thread, hard_page, hard_thread}, reason},
    TINY_KIND_LIST(TINY_X)
#undef TINY_X
};

/* Small talk names animals and states nothing: from it a model learns to read and copy even rare names. */
static const char *const tiny__chat[4] = {"i love my E so much .", "my E and i had a good day .",
                                          "we saw a E on our trip .", "here is my E story ."};
static const char *const tiny__smalltalk[3][2] = {{"do you like the E ?", "yes , i like the E ."},
                                                  {"can i see your E ?", "sure , here is my E ."},
                                                  {"is the E here today ?", "the E is here today ."}};
static const char *const tiny__asides[5] = {"i want it now .", "i want a short answer .",
                                            "i want the facts .", "i asked a helper before .",
                                            "i looked on the web before ."};

/* ==== 2  THE WORLD ===========================================================

   Each fact is dealt like cards: 24 cards with the values in turn, shuffled, so that every home and every
   food has exactly four animals. Three of the four are its best known, and right lists name these three:
   lists drawn freely are too much for a small model to learn.

   Half of the animals are rare: the web hardly speaks of them and the seed never, but the unlabelled corpus
   and the evaluation treat all alike. So the base knows half of the world, and what the corpus knows more is
   what self-augmentation has to add.

   In the hard world a fact has one rumour beside it: the value so many places further, the same number for
   all animals, so that rumours are as consistent as facts are; the list of a home is rumoured to be that of
   another. Nine of the rare animals are misled about: on 72 of 100 of their pages the corpus has the rumour,
   which it says of them nearly three times as often as the truth. */

/* What makes one world harder than another; the shares of the kinds stand in their list. */
typedef struct tiny_setting {
    const char *name;
    int n_tasks, n_kinds, n_rules;       /* of the tables above, from their beginnings */
    int n_misled;                        /* rare animals of which the unlabelled corpus tells a rumour, */
    double rumour;                       /* on that share of their pages */
    unsigned rates;                      /* tasks, 1 << tiny_task, of which the forum rates answers, */
    double rated[2];                     /* the share of the others that it rates, and of these */
    hbk_int web_tokens, steps, segments; /* the web, the steps on it, and the unlabelled corpus */
} tiny_setting;

enum { TINY__SIMPLE = 1 << TINY_TASK_HOME | 1 << TINY_TASK_FOOD | 1 << TINY_TASK_LOOK };
static const tiny_setting tiny__levels[TINY_LEVELS] = {
    {"plain", TINY_TASKS, TINY_PLAIN_KINDS, TINY__PLAIN_RULES, 0, 0, ~0u, {0, 0.70}, TINY_WEB_TOKENS, 1200,
     TINY_SEGMENTS},
    {"hard", TINY_ALL_TASKS, TINY_KINDS, TINY__RULES, 9, 0.72, TINY__SIMPLE, {0.01, 1.0}, 1640000, 1600,
     4000}};

typedef struct tiny_world {
    uint64_t seed;
    tiny_level level;
    int fact[TINY_ANIMALS][TINY_FACTS];
    int order[TINY_ANIMALS]; /* the common animals, then the rare; the seed's are the first */
    bool rare[TINY_ANIMALS];
    int top[2][6][3];  /* best-known animals of each home [TINY_HOME] and food [TINY_FOOD] */
    int taught[2][3];  /* homes and foods in the seed's lists */
    bool held[TINY_ALL_TASKS]; /* combinations that nobody asks for before the evaluation */
    int shift[TINY_FACTS];     /* the rumour about a fact is so many values further; 0: there is none */
    bool misled[TINY_ANIMALS];
} tiny_world;

static inline const tiny_setting *tiny_setting_of(const tiny_world *w)
{
    return &tiny__levels[w->level];
}

static int tiny__below(hbk_rng *r, int n)
{
    return (int)hbk_rng_below(r, n);
}

static bool tiny__chance(hbk_rng *r, double p)
{
    return hbk_rng_uniform(r) < p;
}

/* pick[0..k-1]: different numbers below n, in random order. */
static void tiny__pick(hbk_rng *r, int *pick, int k, int n)
{
    hbk_int deck[TINY_ANIMALS];
    assert(k <= n && n <= TINY_ANIMALS);
    for (int i = 0; i < n; i++) deck[i] = i;
    hbk_rng_shuffle(r, deck, n);
    for (int i = 0; i < k; i++) pick[i] = (int)deck[i];
}

/* What the hard world adds. Two values have no rumour: it would be the other one. */
static void tiny__make_harder(tiny_world *w)
{
    static const tiny_task sorts[4] = {TINY_TASK_HOMEFOOD, TINY_TASK_SAMEHOME, TINY_TASK_TWOH,
                                       TINY_ALL_TASKS};
    for (int i = 0; i < 3; i++) {
        hbk_rng r = hbk_rng_at(w->seed, "tiny held", (uint64_t)i);
        w->held[(int)sorts[i] + tiny__below(&r, (int)sorts[i + 1] - (int)sorts[i])] = true;
    }
    for (int f = 0; f < TINY_FACTS; f++) {
        hbk_rng r = hbk_rng_at(w->seed, "tiny rumour", (uint64_t)f);
        if (tiny__n_names[f] > 2) w->shift[f] = 1 + tiny__below(&r, tiny__n_names[f] - 1);
    }
    for (int i = 0; i < tiny_setting_of(w)->n_misled; i++) w->misled[w->order[TINY_COMMON + i]] = true;
}

/* Everything about the world of this seed and level. Every set has its own addressed random streams, so a
   new one changes none of the others. */
static inline void tiny_world_make_at(tiny_world *w, uint64_t seed, tiny_level level)
{
    memset(w, 0, sizeof *w);
    w->seed = seed;
    w->level = level;
    for (int f = 0; f < TINY_FACTS; f++) {
        hbk_rng r = hbk_rng_at(seed, "tiny fact", (uint64_t)f);
        int card[TINY_ANIMALS];
        tiny__pick(&r, card, TINY_ANIMALS, TINY_ANIMALS);
        for (int a = 0; a < TINY_ANIMALS; a++) w->fact[a][f] = card[a] % tiny__n_names[f];
    }
    hbk_rng r = hbk_rng_at(seed, "tiny order", 0);
    tiny__pick(&r, w->order, TINY_ANIMALS, TINY_ANIMALS);
    for (int i = TINY_COMMON; i < TINY_ANIMALS; i++) w->rare[w->order[i]] = true;
    for (int f = TINY_HOME; f <= TINY_FOOD; f++) {
        r = hbk_rng_at(seed, "tiny top", (uint64_t)f);
        for (int v = 0; v < 6; v++) {
            int owners[TINY_ANIMALS], n = 0, pick[3];
            for (int a = 0; a < TINY_ANIMALS; a++)
                if (w->fact[a][f] == v) owners[n++] = a;
            tiny__pick(&r, pick, 3, n);
            for (int i = 0; i < 3; i++) w->top[f][v][i] = owners[pick[i]];
        }
        r = hbk_rng_at(seed, "tiny taught", (uint64_t)f);
        tiny__pick(&r, w->taught[f], 3, 6);
    }
    if (level == TINY_HARD) tiny__make_harder(w);
}

static inline void tiny_world_make(tiny_world *w, uint64_t seed)
{
    tiny_world_make_at(w, seed, TINY_PLAIN);
}

/* ==== 3  SPEAKING AND HEARING ================================================

   A meaning is what the slots of a sentence hold. tiny__say writes a form with a meaning, tiny__hear reads
   it back; what hears nothing else but what can be said is an exact judge of grammar.

   A text in the making is a list of words that point into the tables, so that cutting, repeating and
   shuffling are moves of words, and counting tokens is free. Blanks come in only when it is finished;
   hearing forgives blanks, which a model's decoder may add at the ends. */

typedef struct tiny_question {
    tiny_task task;
    int argument; /* an animal, a home or a food; of a comparison 24 times one animal, and the other */
} tiny_question;

/* The i-th animal that the question is about, -1 if there is none. */
static int tiny__subject(tiny_question q, int i)
{
    const tiny__task *task = &tiny__tasks[q.task];
    if (task->slot != TINY_ANIMAL || i >= task->n) return -1;
    if (task->n == 1) return q.argument;
    return i == 0 ? q.argument / TINY_ANIMALS : q.argument % TINY_ANIMALS;
}

static bool tiny__is_comparison(tiny_task t)
{
    return tiny__tasks[t].slot == TINY_ANIMAL && tiny__tasks[t].n == 2;
}

typedef struct tiny__meaning {
    int fact[TINY_FACTS]; /* -1: not named */
    int animal[3], n_animals;
} tiny__meaning;

typedef struct tiny__word {
    const char *s;
    size_t n;
} tiny__word;

/* A text in the making. */
typedef struct tiny__words {
    tiny__word word[TINY_WORDS];
    int n;
} tiny__words;

/* The next word of the text at *p, which ends at `end` or, if that is NULL, at its NUL. */
static bool tiny__next(const char **p, const char *end, tiny__word *w)
{
    const char *s = *p;
    while (s != end && (*s == ' ' || *s == '\t' || *s == '\n' || *s == '\r')) s++;
    w->s = s;
    while (s != end && *s && *s != ' ' && *s != '\t' && *s != '\n' && *s != '\r') s++;
    w->n = (size_t)(s - w->s);
    *p = s;
    return w->n > 0;
}

static bool tiny__same_word(tiny__word a, tiny__word b)
{
    return a.n == b.n && memcmp(a.s, b.s, a.n) == 0;
}

static bool tiny__is(tiny__word w, const char *s)
{
    return strncmp(w.s, s, w.n) == 0 && s[w.n] == 0;
}

/* The slot that a word of a form is, or -1. */
static int tiny__slot(tiny__word w)
{
    const char *at = w.n == 1 && *w.s >= 'A' && *w.s <= 'Z' ? strchr(tiny__letters, *w.s) : NULL;
    return at ? (int)(at - tiny__letters) : -1;
}

static void tiny__add(tiny__words *t, tiny__word w)
{
    assert(t->n < TINY_WORDS);
    t->word[t->n++] = w;
}

/* Appends a form; m may be NULL for one without slots. */
static void tiny__say(tiny__words *t, const char *form, const tiny__meaning *m)
{
    tiny__word w;
    int n_animals = 0;
    while (tiny__next(&form, NULL, &w)) {
        int slot = tiny__slot(w);
        if (slot >= 0) {
            assert(m != NULL);
            int value = slot == TINY_ANIMAL ? m->animal[n_animals++] : m->fact[slot];
            w.s = tiny__names[slot][value];
            w.n = strlen(w.s);
        }
        tiny__add(t, w);
    }
}

static void tiny__copy(tiny__words *t, const tiny__words *from, int start, int n)
{
    for (int i = start; i < start + n; i++) tiny__add(t, from->word[i]);
}

/* The finished text: its words between single blanks. Returns their number. */
static hbk_int tiny__finish(const tiny__words *t, char out[TINY_TEXT])
{
    size_t at = 0;
    for (int i = 0; i < t->n; i++) {
        assert(at + t->word[i].n + 2 <= TINY_TEXT);
        if (i) out[at++] = ' ';
        memcpy(out + at, t->word[i].s, t->word[i].n);
        at += t->word[i].n;
    }
    out[at] = 0;
    return t->n;
}

typedef enum tiny__fit { TINY__NONE, TINY__PREFIX, TINY__WHOLE } tiny__fit;

/* Reads s .. end as the form. A text that stops within it is a (proper) prefix. */
static tiny__fit tiny__hear(const char *form, const char *s, const char *end, tiny__meaning *m)
{
    tiny__word want, got;
    m->n_animals = 0;
    for (int f = 0; f < TINY_FACTS; f++) m->fact[f] = -1;
    while (tiny__next(&form, NULL, &want)) {
        if (!tiny__next(&s, end, &got)) return TINY__PREFIX;
        int slot = tiny__slot(want);
        if (slot < 0) {
            if (!tiny__same_word(want, got)) return TINY__NONE;
            continue;
        }
        int value = 0;
        while (value < tiny__n_names[slot] && !tiny__is(got, tiny__names[slot][value])) value++;
        if (value == tiny__n_names[slot]) return TINY__NONE;
        if (slot == TINY_ANIMAL) m->animal[m->n_animals++] = value;
        else m->fact[slot] = value;
    }
    return tiny__next(&s, end, &got) ? TINY__NONE : TINY__WHOLE;
}

/* The latent instruction behind a text, by all ways to ask (of either world); false if it is none of them.
   An instruction is recovered if this is the segment's. */
static inline bool tiny_parse(const char *instruction, tiny_question *q)
{
    tiny__meaning m;
    for (int t = 0; t < TINY_ALL_TASKS; t++)
        for (int i = 0; i < tiny__tasks[t].n_asks; i++) {
            if (tiny__hear(tiny__tasks[t].asks[i], instruction, NULL, &m) != TINY__WHOLE) continue;
            tiny_slot slot = tiny__tasks[t].slot;
            q->task = (tiny_task)t;
            q->argument = slot == TINY_ANIMAL ? m.animal[0] : m.fact[slot];
            if (!tiny__is_comparison(q->task)) return true;
            q->argument = m.animal[0] * TINY_ANIMALS + m.animal[1];
            return m.animal[0] != m.animal[1];
        }
    return false;
}

static inline bool tiny_same(tiny_question a, tiny_question b)
{
    return a.task == b.task && a.argument == b.argument;
}

static inline bool tiny_recovered(const char *instruction, tiny_question latent)
{
    tiny_question q;
    return tiny_parse(instruction, &q) && tiny_same(q, latent);
}

static inline const char *tiny_task_name(tiny_task t)
{
    return tiny__tasks[t].name;
}

static inline const char *tiny_kind_name(tiny_kind k)
{
    return tiny__kinds[k].name;
}

/* The name of the question's argument: "fox", "lake", "seeds"; of a comparison the first animal's. */
static inline const char *tiny_argument_name(tiny_question q)
{
    int animal = tiny__subject(q, 0);
    return animal >= 0 ? tiny__names[TINY_ANIMAL][animal] : tiny__names[tiny__tasks[q.task].slot][q.argument];
}

/* Whether the question is about a rare animal, or two of which one is: 1 yes, 0 no, -1 a list. */
static inline int tiny_is_rare(const tiny_world *w, tiny_question q)
{
    int a = tiny__subject(q, 0), b = tiny__subject(q, 1);
    return a < 0 ? -1 : w->rare[a] || (b >= 0 && w->rare[b]);
}

/* Whether it is about an animal of which the unlabelled corpus mostly tells a rumour. */
static inline bool tiny_is_misled(const tiny_world *w, tiny_question q)
{
    int a = tiny__subject(q, 0), b = tiny__subject(q, 1);
    return a >= 0 && (w->misled[a] || (b >= 0 && w->misled[b]));
}

/* Whether the question combines what nobody combines in the web, the forum and the seed. */
static inline bool tiny_is_held(const tiny_world *w, tiny_question q)
{
    return w->held[q.task];
}

static void tiny__ask(tiny__words *t, tiny_question q, int way)
{
    const tiny__task *task = &tiny__tasks[q.task];
    tiny__meaning m;
    memset(&m, 0, sizeof m);
    for (int i = 0; i < 2; i++) m.animal[i] = tiny__subject(q, i);
    if (task->slot != TINY_ANIMAL) m.fact[task->slot] = q.argument;
    tiny__say(t, way < 0 ? task->header : task->asks[way], &m);
}

/* The question in one of its ways, 0 the first; a way below 0 gives the header of its pages. */
static inline void tiny_ask(tiny_question q, int way, char out[TINY_TEXT])
{
    tiny__words t;
    t.n = 0;
    tiny__ask(&t, q, way < tiny__tasks[q.task].n_asks ? way : 0);
    tiny__finish(&t, out);
}

/* ==== 4  THE ORACLE ==========================================================

   An answer is heard sentence by sentence, and everything found in it is noted; then the first defect in a
   fixed order names its kind, and the kind its score:

       nav    an advertisement among its sentences            rep    a sentence or a step came twice
       salad  something that is no sentence                   part   a required claim is missing, the steps
       wrong  a claim or a list against the facts                    are not one, two, three, or it tells
              (rumour, if it is hedged)                              more than home, food or look was asked
       cut    ends within a sentence (else salad)             blog   a blog sentence
       off    nothing that was asked                          hedged right, but it is hearsay
       glue   something foreign besides                       extra  one sentence too many

   A comparison needs the fact of both animals and a conclusion, which is wrong if the facts disagree.
   `it` means the animal named last. A claim is foreign if it is about another animal or none, or if a list
   was asked; it is wrong, foreign or not, if the facts disagree. A list is wrong if one of its names is, or
   comes twice, and foreign if it is another list than the one that was asked for. */

typedef struct tiny_verdict {
    int score; /* 1 to 5 */
    tiny_kind kind;
    bool style; /* begins and ends as an assistant's answer */
} tiny_verdict;

typedef struct tiny__heard {
    bool nav, nonsense;           /* a navigation line; a sentence that is none */
    bool wrong, foreign, repeated;
    bool blog, extra, listed;     /* listed: the list that was asked for */
    bool hedged, concluded;       /* it is hearsay; a comparison comes to its end */
    bool opened, closed;          /* the first sentence is an opener, the last a closer */
    unsigned claims[2];           /* about the animals asked, 1 << tiny_slot */
    int n_steps;
    bool disorder;                /* step k was not the k-th */
    bool tailed;                  /* words follow the last full stop, */
    tiny__fit tail;               /* which may or may not begin a sentence */
} tiny__heard;

/* The class of the sentence s .. end, TINY__END if it is none; *fit says whether it may begin one. */
static tiny__class tiny__classify(const tiny_world *w, const char *s, const char *end, tiny__meaning *m,
                                  tiny__fit *fit)
{
    *fit = TINY__NONE;
    for (int i = 0; i < tiny_setting_of(w)->n_rules; i++) {
        tiny__fit f = tiny__hear(tiny__grammar[i].form, s, end, m);
        if (f != TINY__NONE) *fit = f;
        if (f == TINY__WHOLE) return tiny__grammar[i].kind;
    }
    return TINY__END;
}

/* Moves *p behind the next sentence, which ends with its full stop; *whole is false if that is missing. */
static bool tiny__next_sentence(const char **p, bool *whole)
{
    tiny__word w;
    bool any = false;
    *whole = false;
    while (!*whole && tiny__next(p, NULL, &w)) {
        any = true;
        *whole = tiny__is(w, ".");
    }
    return any;
}

/* Whether the sentence s .. end occurs in `text` before s. */
static bool tiny__said_before(const char *text, const char *s, const char *end)
{
    bool whole;
    for (const char *from = text, *to = text; from < s && tiny__next_sentence(&to, &whole); from = to) {
        const char *a = from, *b = s;
        tiny__word x, y;
        bool same = from < s && to <= s;
        while (same) {
            bool more = tiny__next(&a, to, &x);
            if (more != tiny__next(&b, end, &y)) same = false;
            else if (!more) return true;
            else same = tiny__same_word(x, y);
        }
    }
    return false;
}

static void tiny__hear_list(const tiny_world *w, tiny_question q, tiny_slot slot, const tiny__meaning *m,
                            tiny__heard *h)
{
    const int *e = m->animal;
    int value = m->fact[slot], n = m->n_animals;
    for (int i = 0; i < n; i++) {
        if (w->fact[e[i]][slot] != value) h->wrong = true;
        for (int k = 0; k < i; k++)
            if (e[k] == e[i]) h->wrong = true;
    }
    if (tiny__tasks[q.task].slot == slot && tiny__tasks[q.task].n == n && q.argument == value)
        h->listed = true;
    else h->foreign = true;
}

/* The conclusion of a comparison, which is wrong or right whatever was claimed before. */
static void tiny__hear_conclusion(const tiny_world *w, tiny_question q, bool same, tiny__heard *h)
{
    int a = tiny__subject(q, 0), b = tiny__subject(q, 1);
    if (a < 0 || b < 0) { /* nothing was to be compared */
        h->foreign = true;
        return;
    }
    h->concluded = true;
    for (int f = 0; f < TINY_FACTS; f++)
        if (tiny__tasks[q.task].required >> f & 1u && same != (w->fact[a][f] == w->fact[b][f]))
            h->wrong = true;
}

/* The claims of a sentence about `animal`, -1 if none was named so far. */
static void tiny__hear_claims(const tiny_world *w, tiny_question q, int animal, const tiny__meaning *m,
                              tiny__heard *h)
{
    int who = animal < 0 ? 2 : animal == tiny__subject(q, 0) ? 0 : animal == tiny__subject(q, 1) ? 1 : 2;
    for (int f = 0; f < TINY_FACTS; f++) {
        if (m->fact[f] < 0) continue;
        if (who < 2) h->claims[who] |= 1u << f;
        else h->foreign = true;
        if (animal >= 0 && w->fact[animal][f] != m->fact[f]) h->wrong = true;
    }
}

static void tiny__listen(const tiny_world *w, tiny_question q, const char *text, tiny__heard *h)
{
    const char *p = text, *s = text;
    int animal = -1;
    unsigned steps = 0;
    bool whole, first = true;
    memset(h, 0, sizeof *h);
    for (; tiny__next_sentence(&p, &whole); s = p, first = false) {
        tiny__meaning m;
        tiny__fit fit;
        tiny__class c = tiny__classify(w, s, p, &m, &fit);
        if (!whole) { /* the last one, and it is not over */
            h->tailed = true;
            h->tail = fit;
            return;
        }
        if (c == TINY__END) h->nonsense = true;
        if (c == TINY__NAV) h->nav = true;
        if (c == TINY__BLOG) h->blog = true;
        if (c == TINY__EXTRA) h->extra = true;
        if (c == TINY__HEDGE) h->hedged = true;
        if (c == TINY__SAME || c == TINY__DIFFER) tiny__hear_conclusion(w, q, c == TINY__SAME, h);
        if (first && c == TINY__OPENER) h->opened = true;
        h->closed = c == TINY__CLOSER;
        if (tiny__said_before(text, s, p)) h->repeated = true;
        if (c == TINY__LISTH || c == TINY__TWOH) tiny__hear_list(w, q, TINY_HOME, &m, h);
        if (c == TINY__LISTF || c == TINY__TWOF) tiny__hear_list(w, q, TINY_FOOD, &m, h);
        if (c >= TINY__HOME && c <= TINY__STEP_THREE) {
            if (m.n_animals) animal = m.animal[0];
            tiny__hear_claims(w, q, animal, &m, h);
        }
        if (c >= TINY__STEP_ONE && c <= TINY__STEP_THREE) {
            int step = (int)c - (int)TINY__STEP_ONE;
            if (steps >> step & 1u) h->repeated = true;
            if (step != h->n_steps) h->disorder = true;
            steps |= 1u << step;
            h->n_steps++;
        }
    }
}

/* The first defect, in the order in which they weigh. */
static tiny_kind tiny__decide(tiny_question q, const tiny__heard *h)
{
    const tiny__task *task = &tiny__tasks[q.task];
    bool list = task->slot != TINY_ANIMAL, keep = q.task == TINY_TASK_KEEP;
    bool two = tiny__is_comparison(q.task);
    unsigned any = h->claims[0] | h->claims[1], all = two ? h->claims[0] & h->claims[1] : any;
    bool steps_fit = keep ? h->n_steps == 3 && !h->disorder : h->n_steps == 0;
    /* an answer may tell the time unasked; home, food and look may tell nothing else */
    bool chatty = !keep && (any & ~(task->required | 1u << TINY_TIME)) != 0;

    if (h->nav) return TINY_NAV;
    if (h->nonsense) return TINY_SALAD;
    if (h->wrong) return h->hedged ? TINY_RUMOUR : TINY_WRONG;
    if (h->tailed) return h->tail == TINY__PREFIX ? TINY_CUT : TINY_SALAD;
    if (list ? !h->listed : !(any & task->required)) return TINY_OFF;
    if (h->foreign) return TINY_GLUE;
    if (h->repeated) return TINY_REP;
    if ((all & task->required) != task->required || !steps_fit || chatty || h->concluded != two)
        return TINY_PART;
    if (h->blog) return TINY_BLOG;
    if (h->hedged) return TINY_HEDGED;
    if (h->extra) return TINY_EXTRA;
    return TINY_GOOD;
}

/* Score, kind and style of an answer to an instruction. An instruction that nobody asks makes any answer
   off. Thread safety: pure. */
static inline tiny_verdict tiny_judge(const tiny_world *w, const char *instruction, const char *output)
{
    tiny_question q;
    tiny_verdict v;
    v.kind = TINY_OFF;
    v.style = false;
    if (tiny_parse(instruction, &q) && (int)q.task < tiny_setting_of(w)->n_tasks) {
        tiny__heard h;
        tiny__listen(w, q, output, &h);
        v.kind = tiny__decide(q, &h);
        v.style = h.opened && h.closed;
    }
    v.score = tiny__kinds[v.kind].score;
    return v;
}

/* What a judge of preferences sees: the score, and the manners of an answer that is right. */
static inline double tiny_value(tiny_verdict v)
{
    return v.score + (v.score >= 4 && v.style ? 0.5 : 0.0);
}

/* 1 if a is preferred to b, 0.5 if they are equal, 0 if not; means of it are win rates. */
static inline double tiny_win(tiny_verdict a, tiny_verdict b)
{
    double x = tiny_value(a), y = tiny_value(b);
    return x > y ? 1.0 : x < y ? 0.0 : 0.5;
}

/* The same by the score alone: models that speak as the web does cannot win against manners. */
static inline double tiny_content_win(tiny_verdict a, tiny_verdict b)
{
    return a.score > b.score ? 1.0 : a.score < b.score ? 0.0 : 0.5;
}

/* ==== 5  ANSWERS =============================================================

   A right answer is made from the facts; the spoiled ones are made from it, each with the one defect that
   the oracle will find in it:

       extra  one more sentence                       rep    the last sentence once or twice more
       blog   between two sentences of a blog         wrong  two facts, or two names of a list, are not true
       cut    after 40 % of the words or later        nav    three advertisements instead
       glue   goes on about something else            salad  its words shuffled

   and, in the hard world, hedged (one more sentence, which doubts it) and rumour (the same, with the rumour
   in the place of the facts).

   Part has no recipe: it comes up when an answer meets another question (off, in threads). */

static int tiny__draw_animal(const tiny_world *w, hbk_rng *r, bool web)
{
    const double common = TINY_COMMON, rare = TINY_ANIMALS - TINY_COMMON, weight = 0.02;
    if (!web) return tiny__below(r, TINY_ANIMALS);
    double u = hbk_rng_uniform(r) * (common + rare * weight);
    int i = (int)(u < common ? u : common + (u - common) / weight);
    return w->order[i < TINY_ANIMALS ? i : TINY_ANIMALS - 1]; /* rounding */
}

/* A random (task, argument); with `web`, rare animals are 50 times less frequent, and what is held out does
   not occur. */
static inline tiny_question tiny_draw(const tiny_world *w, hbk_rng *r, bool web)
{
    tiny_question q;
    do q.task = (tiny_task)tiny__below(r, tiny_setting_of(w)->n_tasks);
    while (web && w->held[q.task]);
    tiny_slot slot = tiny__tasks[q.task].slot;
    if (slot != TINY_ANIMAL) {
        q.argument = tiny__below(r, tiny__n_names[slot]);
        return q;
    }
    q.argument = tiny__draw_animal(w, r, web);
    if (tiny__is_comparison(q.task)) {
        int other;
        do other = tiny__draw_animal(w, r, web);
        while (other == q.argument);
        q.argument = q.argument * TINY_ANIMALS + other;
    }
    return q;
}

/* Whether two questions are about the same: an animal, or a home or a food. */
static bool tiny__overlap(tiny_question a, tiny_question b)
{
    if (tiny__tasks[a.task].slot != tiny__tasks[b.task].slot) return false;
    if (tiny__tasks[a.task].slot != TINY_ANIMAL) return a.argument == b.argument;
    for (int i = 0; i < 4; i++) {
        int x = tiny__subject(a, i / 2);
        if (x >= 0 && x == tiny__subject(b, i % 2)) return true;
    }
    return false;
}

/* The same, about something else than q. */
static tiny_question tiny__draw_other(const tiny_world *w, hbk_rng *r, bool web, tiny_question q)
{
    tiny_question other;
    do other = tiny_draw(w, r, web);
    while (tiny__overlap(other, q));
    return other;
}

/* A kind by its share among pages or threads. */
static tiny_kind tiny__draw_kind(const tiny_world *w, hbk_rng *r, bool thread)
{
    int u = tiny__below(r, 100), k = 0, column = 2 * (int)w->level + thread;
    while (u >= tiny__kinds[k].share[column]) u -= tiny__kinds[k++].share[column];
    return (tiny_kind)k;
}

/* What a right answer to q says. */
static tiny__meaning tiny__truth(const tiny_world *w, hbk_rng *r, tiny_question q)
{
    tiny_slot slot = tiny__tasks[q.task].slot;
    tiny__meaning m;
    memset(&m, 0, sizeof m);
    if (slot == TINY_ANIMAL) {
        m.animal[0] = q.argument;
        memcpy(m.fact, w->fact[q.argument], sizeof m.fact);
    } else {
        int pick[3];
        tiny__pick(r, pick, 3, 3);
        for (int i = 0; i < 3; i++) m.animal[i] = w->top[slot][q.argument][pick[i]];
        m.fact[slot] = q.argument;
    }
    return m;
}

/* Puts the rumour in the place of the facts: every time the same. */
static void tiny__spread(const tiny_world *w, tiny_question q, tiny__meaning *m)
{
    tiny_slot slot = tiny__tasks[q.task].slot;
    if (slot == TINY_ANIMAL) {
        for (int f = 0; f < TINY_FACTS; f++)
            m->fact[f] = (w->fact[m->animal[0]][f] + w->shift[f]) % tiny__n_names[f];
        return;
    }
    int from = (q.argument + tiny__n_names[slot] - w->shift[slot]) % tiny__n_names[slot];
    for (int i = 0; i < 3; i++) m->animal[i] = w->top[slot][from][i];
}

/* Makes it wrong: the first two facts asked for, or all names but one. */
static void tiny__lie(const tiny_world *w, hbk_rng *r, tiny_question q, tiny__meaning *m)
{
    const tiny__task *task = &tiny__tasks[q.task];
    if (task->slot == TINY_ANIMAL) {
        for (int f = 0, n = 0; f < TINY_FACTS && n < 2; f++) {
            if (!(task->required >> f & 1u)) continue;
            m->fact[f] = (m->fact[f] + 1 + tiny__below(r, tiny__n_names[f] - 1)) % tiny__n_names[f];
            n++;
        }
        return;
    }
    int name[3], at[3];
    name[0] = m->animal[0];
    for (int i = 1; i < task->n; i++) {
        do name[i] = tiny__below(r, TINY_ANIMALS);
        while (w->fact[name[i]][task->slot] == q.argument || name[i] == name[i - 1]);
    }
    tiny__pick(r, at, task->n, task->n);
    for (int i = 0; i < task->n; i++) m->animal[at[i]] = name[i];
}

/* The *n rules of a class, which stand together in the grammar. */
static const tiny__rule *tiny__rules(tiny__class c, int *n)
{
    int first = 0, end;
    while (tiny__grammar[first].kind != c) first++;
    for (end = first; end < TINY__RULES && tiny__grammar[end].kind == c; end++) {
    }
    *n = end - first;
    return tiny__grammar + first;
}

/* Appends n different sentences of a class without slots. */
static void tiny__say_some(tiny__words *t, hbk_rng *r, tiny__class c, int n)
{
    int count, pick[8];
    const tiny__rule *rules = tiny__rules(c, &count);
    tiny__pick(r, pick, n, count);
    for (int i = 0; i < n; i++) tiny__say(t, rules[pick[i]].form, NULL);
}

/* The sentences of an answer to a task, with whatever meaning; three steps are of one set. */
static void tiny__say_body(tiny__words *t, hbk_rng *r, tiny_task task, const tiny__meaning *m)
{
    int n, set = tiny__below(r, 2);
    for (const tiny__class *c = tiny__tasks[task].body; *c != TINY__END; c++) {
        const tiny__rule *rules = tiny__rules(*c, &n);
        tiny__say(t, rules[task == TINY_TASK_KEEP ? set : tiny__below(r, n)].form, m);
    }
}

/* The fact of one animal, that of the other, and what follows from what was said. */
static void tiny__say_comparison(tiny__words *t, const tiny_world *w, hbk_rng *r, tiny_question q,
                                 tiny_kind kind)
{
    const tiny__task *task = &tiny__tasks[q.task];
    bool same = true;
    int n, said[TINY_FACTS];
    const tiny__rule *rules = tiny__rules(task->body[0], &n);
    for (int i = 0; i < 2; i++) {
        tiny__meaning m;
        memset(&m, 0, sizeof m);
        m.animal[0] = tiny__subject(q, i);
        memcpy(m.fact, w->fact[m.animal[0]], sizeof m.fact);
        if (kind == TINY_WRONG && i == 0) tiny__lie(w, r, q, &m);
        if (kind == TINY_RUMOUR) tiny__spread(w, q, &m);
        tiny__say(t, rules[tiny__below(r, n)].form, &m);
        for (int f = 0; f < TINY_FACTS; f++) {
            if (i == 0) said[f] = m.fact[f];
            else if (task->required >> f & 1u) same = said[f] == m.fact[f];
        }
    }
    tiny__say(t, tiny__rules(same ? TINY__SAME : TINY__DIFFER, &n)->form, NULL);
}

/* The body of an answer that is right, or wrong as `kind` says. */
static void tiny__say_answer(tiny__words *t, const tiny_world *w, hbk_rng *r, tiny_question q, tiny_kind kind)
{
    if (tiny__is_comparison(q.task)) {
        tiny__say_comparison(t, w, r, q, kind);
        return;
    }
    tiny__meaning m = tiny__truth(w, r, q);
    if (kind == TINY_WRONG) tiny__lie(w, r, q, &m);
    if (kind == TINY_RUMOUR) tiny__spread(w, q, &m);
    tiny__say_body(t, r, q.task, &m);
}

/* Where the n-th sentence ends, or the last if there are fewer: a number of words. */
static int tiny__sentence_end(const tiny__words *t, int n)
{
    int i = 0;
    for (; i < t->n && n > 0; i++)
        if (tiny__is(t->word[i], ".")) n--;
    return i;
}

/* Ends it early and on a word: behind a full stop nobody would miss the rest. */
static void tiny__cut(tiny__words *t, hbk_rng *r)
{
    int low = t->n * 4 / 10;
    if (low < 2) low = 2;
    t->n = low + tiny__below(r, t->n - 2 - low + 1);
    while (tiny__is(t->word[t->n - 1], ".") || tiny__is(t->word[t->n - 1], ":") ||
           tiny__is(t->word[t->n - 1], ","))
        t->n--;
}

/* Says the last sentence so many times more. */
static void tiny__repeat(tiny__words *t, int times)
{
    int end = t->n, start = end - 1;
    while (start > 0 && !tiny__is(t->word[start - 1], ".")) start--;
    for (int i = 0; i < times; i++) tiny__copy(t, t, start, end - start);
}

static void tiny__shuffle(tiny__words *t, hbk_rng *r)
{
    for (int i = t->n - 1; i > 0; i--) {
        int j = tiny__below(r, i + 1);
        tiny__word x = t->word[i];
        t->word[i] = t->word[j];
        t->word[j] = x;
    }
}

/* An answer to q of a kind; part and off, which are made by asking something else, come out good. `web`
   weights the animal that a glued answer drifts to. */
static void tiny__answer(tiny__words *out, const tiny_world *w, hbk_rng *r, tiny_question q, tiny_kind kind,
                         bool web)
{
    tiny__words t;
    t.n = 0;
    if (kind == TINY_NAV) {
        tiny__say_some(&t, r, TINY__NAV, 3);
        tiny__copy(out, &t, 0, t.n);
        return;
    }
    tiny__say_answer(&t, w, r, q, kind);
    if (kind == TINY_HEDGED || kind == TINY_RUMOUR) tiny__say_some(&t, r, TINY__HEDGE, 1);
    if (kind == TINY_EXTRA) tiny__say_some(&t, r, TINY__EXTRA, 1);
    if (kind == TINY_CUT) tiny__cut(&t, r);
    if (kind == TINY_REP) tiny__repeat(&t, 1 + tiny__below(r, 2));
    if (kind == TINY_SALAD) tiny__shuffle(&t, r);
    if (kind == TINY_BLOG) {
        tiny__words blog;
        blog.n = 0;
        tiny__say_some(&blog, r, TINY__BLOG, 2);
        int one = tiny__sentence_end(&blog, 1);
        tiny__copy(out, &blog, 0, one);
        tiny__copy(&t, &blog, one, blog.n - one);
    }
    tiny__copy(out, &t, 0, t.n);
    if (kind == TINY_GLUE) {
        tiny_question other = tiny__draw_other(w, r, web, q);
        t.n = 0;
        tiny__say_answer(&t, w, r, other, TINY_GOOD);
        tiny__copy(out, &t, 0, tiny__sentence_end(&t, 1 + tiny__below(r, 2)));
    }
}

static inline void tiny_answer(const tiny_world *w, hbk_rng *r, tiny_question q, tiny_kind kind, bool web,
                               char out[TINY_TEXT])
{
    tiny__words t;
    t.n = 0;
    tiny__answer(&t, w, r, q, kind, web);
    tiny__finish(&t, out);
}

/* The same between an opener and a closer, which only follows a full stop. */
static void tiny__polite_answer(tiny__words *t, const tiny_world *w, hbk_rng *r, tiny_question q,
                                tiny_kind kind, bool web)
{
    tiny__say_some(t, r, TINY__OPENER, 1);
    tiny__answer(t, w, r, q, kind, web);
    if (tiny__is(t->word[t->n - 1], ".")) tiny__say_some(t, r, TINY__CLOSER, 1);
}

/* ==== 6  DOCUMENTS AND SETS ==================================================

       page     # HEADER # BODY [readers ask : QUESTION]
       thread   question : QUESTION [ASIDE [ASIDE]] answer : BODY [[review : REASON] score : K]

   The question below a page is what the backward direction is learned from, the ratings of the forum what
   the rater is. Nowhere else does the oracle enter the training text. All return the number of words. */

static void tiny__ask_some_way(tiny__words *t, hbk_rng *r, tiny_question q)
{
    tiny__ask(t, q, tiny__below(r, tiny__tasks[q.task].n_asks));
}

/* A page of the web; *q and *kind (may be NULL) are its latent instruction and the kind of its body. */
static inline hbk_int tiny_page(const tiny_world *w, hbk_rng *r, char out[TINY_TEXT], tiny_question *q,
                                tiny_kind *kind)
{
    tiny_question about = tiny_draw(w, r, true);
    tiny_kind k = tiny__draw_kind(w, r, false);
    tiny__words t;
    t.n = 0;
    tiny__say(&t, "#", NULL);
    tiny__ask(&t, about, -1);
    tiny__say(&t, "#", NULL);
    tiny__answer(&t, w, r, about, k, true);
    if (tiny__chance(r, 0.30)) {
        bool own = tiny__chance(r, 0.92);
        tiny__say(&t, "readers ask :", NULL);
        tiny__ask_some_way(&t, r, own ? about : tiny_draw(w, r, true));
    }
    if (q) *q = about;
    if (kind) *kind = k;
    return tiny__finish(&t, out);
}

/* A page or thread without facts, about any animal. */
static inline hbk_int tiny_small_talk(hbk_rng *r, char out[TINY_TEXT])
{
    tiny__words t;
    tiny__meaning m;
    t.n = 0;
    memset(&m, 0, sizeof m);
    m.animal[0] = tiny__below(r, TINY_ANIMALS);
    if (tiny__chance(r, 0.5)) {
        const char *const *qa = tiny__smalltalk[tiny__below(r, 3)];
        tiny__say(&t, "question :", NULL);
        tiny__say(&t, qa[0], &m);
        tiny__say(&t, "answer :", NULL);
        tiny__say(&t, qa[1], &m);
        return tiny__finish(&t, out);
    }
    int pick[4], n = 1 + tiny__below(r, 3);
    tiny__pick(r, pick, n, 4);
    tiny__say(&t, "# my E #", &m);
    for (int i = 0; i < n; i++) tiny__say(&t, tiny__chat[pick[i]], &m);
    if (tiny__chance(r, 0.5)) {
        tiny_question q;
        q.task = (tiny_task)tiny__below(r, TINY_TASK_LISTH); /* the tasks about an animal come first */
        q.argument = m.animal[0];
        tiny__say(&t, "readers ask :", NULL);
        tiny__ask_some_way(&t, r, q);
    }
    return tiny__finish(&t, out);
}

/* Another question that an answer to q does not answer: the same task about something else, or something
   else about the same animal. */
static tiny_question tiny__misfit(const tiny_world *w, hbk_rng *r, tiny_question q)
{
    tiny_question other = q;
    if (tiny__tasks[q.task].slot == TINY_ANIMAL && !tiny__is_comparison(q.task) && tiny__chance(r, 0.5)) {
        other.task = (tiny_task)(((int)q.task + 1 + tiny__below(r, TINY_TASK_LISTH - 1)) % TINY_TASK_LISTH);
        return other;
    }
    do other = tiny_draw(w, r, true);
    while (other.task != q.task || other.argument == q.argument);
    return other;
}

/* The rating of a forum: what the oracle says, with noise, and in one case of five without its reason. */
static void tiny__rate(tiny__words *t, const tiny_world *w, hbk_rng *r, tiny_kind kind)
{
    static const char *const digits[5] = {"1", "2", "3", "4", "5"};
    if (tiny__chance(r, 0.06)) kind = (tiny_kind)tiny__below(r, tiny_setting_of(w)->n_kinds);
    int score = tiny__kinds[kind].score;
    if (tiny__chance(r, 0.06)) {
        bool up = tiny__chance(r, 0.5);
        score += score == 1 || (score < 5 && up) ? 1 : -1;
    }
    if (tiny__chance(r, 0.80)) {
        tiny__say(t, "review :", NULL);
        tiny__say(t, tiny__kinds[kind].reason, NULL);
    }
    tiny__say(t, "score :", NULL);
    tiny__say(t, digits[score - 1], NULL);
}

/* A thread of the forum; *rated (may be NULL) says whether it carries a rating. */
static inline hbk_int tiny_thread(const tiny_world *w, hbk_rng *r, char out[TINY_TEXT], bool *rated)
{
    tiny_question about = tiny_draw(w, r, true);
    tiny_kind kind = tiny__draw_kind(w, r, true);
    tiny_question asked = kind == TINY_OFF ? tiny__misfit(w, r, about) : about;
    bool polite = tiny__chance(r, 0.15);
    bool rates = tiny_setting_of(w)->rates >> (int)asked.task & 1u;
    bool rating = tiny__chance(r, tiny_setting_of(w)->rated[rates]);
    tiny__words t, answer;
    t.n = answer.n = 0;
    tiny__say(&t, "question :", NULL);
    tiny__ask_some_way(&t, r, asked);
    if (tiny__chance(r, 0.40)) {
        int pick[2], n = 1 + tiny__below(r, 2);
        tiny__pick(r, pick, n, 5);
        for (int i = 0; i < n; i++) tiny__say(&t, tiny__asides[pick[i]], NULL);
    }
    if (polite) tiny__polite_answer(&answer, w, r, about, kind, true);
    else tiny__answer(&answer, w, r, about, kind, true);
    tiny__say(&t, "answer :", NULL);
    tiny__copy(&t, &answer, 0, answer.n);
    if (rating) {
        tiny__heard h;
        tiny__finish(&answer, out);
        tiny__listen(w, asked, out, &h);
        tiny__rate(&t, w, r, tiny__decide(asked, &h));
    }
    if (rated) *rated = rating;
    return tiny__finish(&t, out);
}

/* Where a reader of the web stands: documents and tokens so far, a token being a word or one of the two
   marks around a document. Start from zeros. */
typedef struct tiny_web {
    hbk_int documents, tokens;
    hbk_int thread_tokens, rated_tokens;
} tiny_web;

/* The next document of the web, without its marks: a thread when threads are below a quarter of the tokens
   so far, else small talk (one in five) or a page. */
static inline void tiny_web_next(const tiny_world *w, tiny_web *web, char out[TINY_TEXT])
{
    hbk_rng r = hbk_rng_at(w->seed, "tiny web", (uint64_t)web->documents++);
    bool rated = false, thread = web->thread_tokens * 4 < web->tokens;
    hbk_int n = 2;
    if (thread) n += tiny_thread(w, &r, out, &rated);
    else if (tiny__chance(&r, 0.20)) n += tiny_small_talk(&r, out);
    else n += tiny_page(w, &r, out, NULL, NULL);
    web->tokens += n;
    if (thread) web->thread_tokens += n;
    if (rated) web->rated_tokens += n;
}

/* Document i of the replay set: threads and other documents in turn. */
static inline void tiny_replay(const tiny_world *w, hbk_int i, char out[TINY_TEXT])
{
    hbk_rng r = hbk_rng_at(w->seed, "tiny replay", (uint64_t)i);
    if (i % 2 == 0) tiny_thread(w, &r, out, NULL);
    else if (tiny__chance(&r, 0.20)) tiny_small_talk(&r, out);
    else tiny_page(w, &r, out, NULL, NULL);
}

/* Segment i of the unlabelled corpus: a body alone, all animals equally often. *kind (may be NULL) is how
   it was made; the result is its latent instruction. Nothing needs to be kept: it is the same every time. */
static inline tiny_question tiny_segment(const tiny_world *w, hbk_int i, char out[TINY_TEXT],
                                         tiny_kind *kind)
{
    hbk_rng r = hbk_rng_at(w->seed, "tiny segment", (uint64_t)i);
    tiny_question q = tiny_draw(w, &r, false);
    tiny_kind k = tiny__draw_kind(w, &r, false);
    if (tiny_is_misled(w, q) && tiny__chance(&r, tiny_setting_of(w)->rumour)) k = TINY_RUMOUR;
    tiny_answer(w, &r, q, k, false, out);
    if (kind) *kind = k;
    return q;
}

static int tiny__draw_value(const tiny_world *w, hbk_rng *r, tiny_slot slot, bool taught)
{
    if (!taught) return tiny__below(r, tiny__n_names[slot]);
    if (slot == TINY_ANIMAL) return w->order[tiny__below(r, TINY_TAUGHT)];
    return w->taught[slot][tiny__below(r, 3)];
}

/* A question whose task takes its turn by i, so that any run of them is balanced; nothing that is held out
   is taught. */
static tiny_question tiny__draw_in_turn(const tiny_world *w, hbk_rng *r, hbk_int i, bool taught)
{
    tiny_question q;
    int turn[TINY_ALL_TASKS], n = 0;
    for (int t = 0; t < tiny_setting_of(w)->n_tasks; t++)
        if (!taught || !w->held[t]) turn[n++] = t;
    q.task = (tiny_task)turn[i % n];
    tiny_slot slot = tiny__tasks[q.task].slot;
    q.argument = tiny__draw_value(w, r, slot, taught);
    if (tiny__is_comparison(q.task)) {
        int other;
        do other = tiny__draw_value(w, r, slot, taught);
        while (other == q.argument);
        q.argument = q.argument * TINY_ANIMALS + other;
    }
    return q;
}

static tiny_question tiny__pair(const tiny_world *w, const char *stage, hbk_int i, bool taught,
                                char instruction[TINY_TEXT], char output[TINY_TEXT])
{
    hbk_rng r = hbk_rng_at(w->seed, stage, (uint64_t)i);
    tiny_question q = tiny__draw_in_turn(w, &r, i, taught);
    tiny__words t;
    t.n = 0;
    tiny__ask_some_way(&t, &r, q);
    tiny__finish(&t, instruction);
    t.n = 0;
    tiny__polite_answer(&t, w, &r, q, TINY_GOOD, false);
    tiny__finish(&t, output);
    return q;
}

/* Seed pair i: an assistant's right answer, about a few well-known animals, homes and foods. */
static inline tiny_question tiny_seed_pair(const tiny_world *w, hbk_int i, char instruction[TINY_TEXT],
                                           char output[TINY_TEXT])
{
    return tiny__pair(w, "tiny seed", i, true, instruction, output);
}

/* The same about everything: what people could have written instead of the augmentation. */
static inline tiny_question tiny_gold_pair(const tiny_world *w, hbk_int i, char instruction[TINY_TEXT],
                                           char output[TINY_TEXT])
{
    return tiny__pair(w, "tiny gold", i, false, instruction, output);
}

/* Evaluation prompt i. */
static inline tiny_question tiny_evaluation(const tiny_world *w, hbk_int i, char instruction[TINY_TEXT])
{
    hbk_rng r = hbk_rng_at(w->seed, "tiny evaluation", (uint64_t)i);
    tiny_question q = tiny__draw_in_turn(w, &r, i, false);
    tiny_ask(q, tiny__below(&r, tiny__tasks[q.task].n_asks), instruction);
    return q;
}

/* The answer that models are compared with on prompt i: a polite writer who is right in 55 cases of 100,
   wrong in 20, drifts off in 15 and misreads the question in 10. */
static inline void tiny_reference(const tiny_world *w, hbk_int i, char output[TINY_TEXT])
{
    hbk_rng r = hbk_rng_at(w->seed, "tiny reference", (uint64_t)i);
    char instruction[TINY_TEXT];
    tiny_question q = tiny_evaluation(w, i, instruction), about = q;
    int u = tiny__below(&r, 100);
    tiny_kind kind = u < 55 ? TINY_GOOD : u < 75 ? TINY_WRONG : u < 90 ? TINY_GLUE : TINY_GOOD;
    while (u >= 90 && tiny_same(about, q)) about = tiny_draw(w, &r, false);
    tiny__words t;
    t.n = 0;
    tiny__polite_answer(&t, w, &r, about, kind, false);
    tiny__finish(&t, output);
}

/* ==== 7  FILES ===============================================================

   Every set as JSONL, in the schemas that the loop reads:

       web, replay      {"text"}                                    documents; the tokenizer adds <s> </s>
       seed, gold       {"id","instruction","output","source":"seed"}
       segments         {"id","text"}
       latents          {"id","task","argument","instruction_canonical","kind"}     for measuring only
       evaluation       {"id","instruction","reference"} */

static void tiny__id(char out[32], const char *set, hbk_int i)
{
    snprintf(out, 32, "%s-%05lld", set, (long long)i);
}

/* The number in an id of this world, as in "segment-00042"; -1 if there is none. */
static inline hbk_int tiny_index(const char *id)
{
    const char *s = strrchr(id, '-');
    hbk_int i = 0;
    if (!s || !s[1] || strlen(s + 1) > 12) return -1;
    for (s++; *s; s++) {
        if (*s < '0' || *s > '9') return -1;
        i = 10 * i + (*s - '0');
    }
    return i;
}

/* Writes a row and lets go of it; NULL: it could not be made. */
static bool tiny__write_row(hbk_jsonl_writer *file, json_t *row, hbk_error *err)
{
    if (!row) return hbk_fail(err, HBK_ERROR_MEMORY, "out of memory for a row of the miniature world");
    bool ok = hbk_jsonl_write(file, row, err);
    json_decref(row);
    return ok;
}

typedef json_t *(*tiny__row_maker)(const tiny_world *w, hbk_int i);

/* Rows 0 .. n-1 of a set into a new file; what was written before a failure stays, as with any .jsonl. */
static bool tiny__write(const tiny_world *w, const char *path, hbk_int n, tiny__row_maker row,
                        hbk_allocator *alloc, hbk_error *err)
{
    hbk_jsonl_writer *file = hbk_jsonl_create(path, 0, alloc, err);
    bool ok = file != NULL;
    for (hbk_int i = 0; ok && i < n; i++) ok = tiny__write_row(file, row(w, i), err);
    return hbk_jsonl_finish(file, ok ? err : NULL) && ok;
}

static json_t *tiny__replay_row(const tiny_world *w, hbk_int i)
{
    char text[TINY_TEXT];
    tiny_replay(w, i, text);
    return json_pack("{s:s}", "text", text);
}

static json_t *tiny__seed_row(const tiny_world *w, hbk_int i)
{
    char id[32], instruction[TINY_TEXT], output[TINY_TEXT];
    tiny__id(id, "seed", i);
    tiny_seed_pair(w, i, instruction, output);
    return json_pack("{s:s, s:s, s:s, s:s}", "id", id, "instruction", instruction, "output", output, "source",
                     "seed");
}

static json_t *tiny__gold_row(const tiny_world *w, hbk_int i)
{
    char id[32], instruction[TINY_TEXT], output[TINY_TEXT];
    tiny__id(id, "gold", i);
    tiny_gold_pair(w, i, instruction, output);
    return json_pack("{s:s, s:s, s:s, s:s}", "id", id, "instruction", instruction, "output", output, "source",
                     "seed");
}

static json_t *tiny__segment_row(const tiny_world *w, hbk_int i)
{
    char id[32], text[TINY_TEXT];
    tiny__id(id, "segment", i);
    tiny_segment(w, i, text, NULL);
    return json_pack("{s:s, s:s}", "id", id, "text", text);
}

static json_t *tiny__latent_row(const tiny_world *w, hbk_int i)
{
    char id[32], text[TINY_TEXT];
    tiny_kind kind;
    tiny__id(id, "segment", i);
    tiny_question q = tiny_segment(w, i, text, &kind);
    tiny_ask(q, 0, text);
    char argument[64];
    int other = tiny__subject(q, 1);
    snprintf(argument, sizeof argument, other < 0 ? "%s" : "%s and %s", tiny_argument_name(q),
             other < 0 ? "" : tiny__names[TINY_ANIMAL][other]);
    return json_pack("{s:s, s:s, s:s, s:s, s:s}", "id", id, "task", tiny_task_name(q.task), "argument",
                     argument, "instruction_canonical", text, "kind", tiny_kind_name(kind));
}

static json_t *tiny__evaluation_row(const tiny_world *w, hbk_int i)
{
    char id[32], instruction[TINY_TEXT], reference[TINY_TEXT];
    tiny__id(id, "evaluation", i);
    tiny_evaluation(w, i, instruction);
    tiny_reference(w, i, reference);
    return json_pack("{s:s, s:s, s:s}", "id", id, "instruction", instruction, "reference", reference);
}

static inline bool tiny_write_replay(const tiny_world *w, const char *path, hbk_int n, hbk_allocator *alloc,
                                     hbk_error *err)
{
    return tiny__write(w, path, n, tiny__replay_row, alloc, err);
}

static inline bool tiny_write_seed(const tiny_world *w, const char *path, hbk_int n, hbk_allocator *alloc,
                                   hbk_error *err)
{
    return tiny__write(w, path, n, tiny__seed_row, alloc, err);
}

static inline bool tiny_write_gold(const tiny_world *w, const char *path, hbk_int n, hbk_allocator *alloc,
                                   hbk_error *err)
{
    return tiny__write(w, path, n, tiny__gold_row, alloc, err);
}

static inline bool tiny_write_segments(const tiny_world *w, const char *path, hbk_int n, hbk_allocator *alloc,
                                       hbk_error *err)
{
    return tiny__write(w, path, n, tiny__segment_row, alloc, err);
}

static inline bool tiny_write_latents(const tiny_world *w, const char *path, hbk_int n, hbk_allocator *alloc,
                                      hbk_error *err)
{
    return tiny__write(w, path, n, tiny__latent_row, alloc, err);
}

static inline bool tiny_write_evaluation(const tiny_world *w, const char *path, hbk_int n,
                                         hbk_allocator *alloc, hbk_error *err)
{
    return tiny__write(w, path, n, tiny__evaluation_row, alloc, err);
}

/* The web until `tokens` are reached; *read (may be NULL) says what came together. */
static inline bool tiny_write_web(const tiny_world *w, const char *path, hbk_int tokens, tiny_web *read,
                                  hbk_allocator *alloc, hbk_error *err)
{
    tiny_web web;
    char text[TINY_TEXT];
    hbk_jsonl_writer *file = hbk_jsonl_create(path, 0, alloc, err);
    bool ok = file != NULL;
    memset(&web, 0, sizeof web);
    while (ok && web.tokens < tokens) {
        tiny_web_next(w, &web, text);
        ok = tiny__write_row(file, json_pack("{s:s}", "text", text), err);
    }
    ok = hbk_jsonl_finish(file, ok ? err : NULL) && ok;
    if (ok && read) *read = web;
    return ok;
}

#endif /* TINYWORLD_H_INCLUDED */
