/* What every test shares: the library itself, cmocka, the reference files, a scratch folder. */
#ifndef TEST_H
#define TEST_H
#define HUMPBACK_IMPLEMENTATION
#include "../humpback.h"

#include <setjmp.h>
#include <cmocka.h>

/* path = $HUMPBACK_DATA/name, the folder of reference files; false when the variable is not set, and the
   test should call skip(). */
static bool test_data(char path[512], const char *name)
{
    const char *dir = getenv("HUMPBACK_DATA");
    if (!dir || !*dir) {
        print_message("    (needs reference file %s: set HUMPBACK_DATA)\n", name);
        return false;
    }
    snprintf(path, 512, "%s/%s", dir, name);
    return true;
}

/* path = a name inside the scratch folder, which is made on first use and is this process's own. */
static void test_tmp(char path[512], const char *name)
{
    char dir[256];
    const char *base = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/humpback-test-%ld", base && *base ? base : "/tmp", (long)getpid());
    assert_true(hbk_dir_make(dir, NULL));
    snprintf(path, 512, "%s/%s", dir, name);
}

/* Bytes that this process has mapped in, cached files included; -1 where the kernel does not tell. */
static long test_resident(void)
{
    long size = 0, resident = -1;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%ld %ld", &size, &resident) != 2) resident = -1;
    if (f) fclose(f);
    return resident < 0 ? -1 : resident * sysconf(_SC_PAGESIZE);
}

static bool is_near(double a, double b, double tolerance)
{
    double scale = fabs(a) > fabs(b) ? fabs(a) : fabs(b);
    return fabs(a - b) <= tolerance * (scale > 1 ? scale : 1);
}

/* Fails and prints both numbers unless |a - b| <= tol * max(1, |a|, |b|). */
#define check_near(a, b, tol)                                                                     \
    do {                                                                                          \
        double a_ = (double)(a), b_ = (double)(b);                                                \
        if (!is_near(a_, b_, tol))                                                                \
            fail_msg("%s = %.9g, expected %s = %.9g within %g", #a, a_, #b, b_, (double)(tol));   \
    } while (0)

/* Fails unless the call did what it should: prints the library's own message. */
#define check_ok(call)                                                                            \
    do {                                                                                          \
        if (!(call)) fail_msg("%s: %s", #call, err.message);                                      \
    } while (0)

/* Fails unless `call` is false and err holds `code` and a message that contains `part`. */
#define check_error(call, wanted, part)                                                           \
    do {                                                                                          \
        memset(&err, 0, sizeof err);                                                              \
        if (call) fail_msg("%s succeeded, expected: %s", #call, part);                            \
        if (err.code != (wanted) || !strstr(err.message, part))                                   \
            fail_msg("%s gave code %d '%s', expected code %d with '%s'", #call, (int)err.code,    \
                     err.message, (int)(wanted), part);                                           \
    } while (0)

#endif
