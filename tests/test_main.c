/* The test program: every chapter's tests, one translation unit.

       build/test               all of them
       build/test 07            one chapter
       build/test rope fault    the tests whose names contain one of the words

   It ends with "N passed, N failed, N skipped" and exits 0 only if none failed. The tests that need
   reference files find them through HUMPBACK_DATA and skip where it is not set. */

#include "test.h"
#include "fault.h"

#include "test_01_ground.c"
#include "test_05_text.c"
#include "test_06_files.c"
#include "test_07_tokenizers.c"
#include "test_08_matrices.c"
#include "test_09_layers.c"
#include "test_10_lora.c"
#include "test_11_model.c"
#include "test_12_weights.c"
#include "test_12_gguf.c"
#include "test_13_generation.c"
#include "test_14_templates.c"
#include "test_15_batches.c"
#include "test_16_optimiser.c"
#include "test_17_finetuning.c"
#include "test_18_corpus.c"
#include "test_19_augment.c"
#include "test_20_curate.c"
#include "test_21_loop.c"
#include "test_22_measuring.c"
#include "test_tinyworld.c"
#include "test_report.c"
#include "test_reproduce.c"

typedef struct test_group {
    const char *name;
    const struct CMUnitTest *tests;
    size_t n;
} test_group;

#define GROUP(name, tests) {name, tests, sizeof(tests) / sizeof((tests)[0])}
static const test_group groups[] = {
    GROUP("01 ground", tests_01),     GROUP("05 text", tests_05),       GROUP("06 files", tests_06),
    GROUP("07 tokenizers", tests_07), GROUP("08 matrices", tests_08),   GROUP("09 layers", tests_09),
    GROUP("10 lora", tests_10),       GROUP("11 model", tests_11),      GROUP("12 weights", tests_12),
    GROUP("12 gguf", tests_12_gguf),  GROUP("13 generation", tests_13), GROUP("14 templates", tests_14),
    GROUP("15 batches", tests_15),    GROUP("16 optimiser", tests_16),  GROUP("17 finetuning", tests_17),
    GROUP("18 corpus", tests_18),     GROUP("19 augment", tests_19),    GROUP("20 curate", tests_20),
    GROUP("21 loop", tests_21),       GROUP("22 measuring", tests_22),  GROUP("tinyworld", tests_tinyworld),
    GROUP("report", tests_report),    GROUP("reproduce", tests_reproduce),
};

/* cmocka says how many tests failed, but not how many skipped. Both leave a test by a jump, so what
   returns to run_one has passed, and the rest of what began and did not fail was skipped. */
static size_t n_begun, n_passed;

static void run_one(void **state)
{
    const struct CMUnitTest *test = (const struct CMUnitTest *)*state;
    *state = test->initial_state;
    n_begun++;
    if (test->setup_func && test->setup_func(state) != 0) fail_msg("setup of %s", test->name);
    test->test_func(state);
    if (test->teardown_func && test->teardown_func(state) != 0) fail_msg("teardown of %s", test->name);
    n_passed++;
}

static bool wanted(const test_group *group, const char *test, int n_words, char **words)
{
    for (int i = 0; i < n_words; i++)
        if (strstr(test, words[i]) || strstr(group->name, words[i])) return true;
    return n_words == 0;
}

/* Runs the tests of a group that are wanted; returns how many failed. */
static int run_group(const test_group *group, int n_words, char **words)
{
    enum { MOST = 200 };
    struct CMUnitTest tests[MOST], originals[MOST];
    size_t n = 0;
    for (size_t i = 0; i < group->n; i++) {
        const struct CMUnitTest *t = &group->tests[i];
        if (!t->name || !wanted(group, t->name, n_words, words)) continue;
        if (n == MOST) {
            print_error("chapter %s has more than %d tests: raise MOST in test_main.c\n", group->name, MOST);
            return 1;
        }
        originals[n] = *t;
        tests[n].name = t->name;
        tests[n].test_func = run_one;
        tests[n].setup_func = tests[n].teardown_func = NULL;
        tests[n].initial_state = &originals[n];
        n++;
    }
    if (n == 0) return 0;
    return _cmocka_run_group_tests(group->name, tests, n, NULL, NULL);
}

/* Removes the scratch folder of test_tmp, and everything in it. */
static void remove_tree(const char *path)
{
    DIR *dir = opendir(path);
    for (struct dirent *entry; dir && (entry = readdir(dir)) != NULL;) {
        char inner[1024];
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name) >= (int)sizeof inner) continue;
        if (unlink(inner) != 0) remove_tree(inner);
    }
    if (dir) closedir(dir);
    rmdir(path);
}

int main(int argc, char **argv)
{
    size_t n_failed = 0;
    for (size_t i = 0; i < sizeof groups / sizeof groups[0]; i++) {
        int failed = run_group(&groups[i], argc - 1, argv + 1);
        n_failed += (size_t)(failed < 0 ? 1 : failed);
    }
    char scratch[512];
    test_tmp(scratch, "");
    remove_tree(scratch);
    fflush(stderr);
    if (n_begun == 0) {
        printf("no test has that name\n");
        return 1;
    }
    printf("%zu passed, %zu failed, %zu skipped\n", n_passed, n_failed, n_begun - n_passed - n_failed);
    return n_failed != 0;
}
