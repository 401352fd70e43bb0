/* Fault injection: an allocator that refuses one allocation, and the sweep that refuses each in turn.

       static bool load(void *ctx, hbk_allocator *a, hbk_error *err)
       {
           hbk_thing *thing = hbk_thing_load((const char *)ctx, a, err);
           hbk_thing_free(thing);
           return thing != NULL;
       }
       fault_sweep(load, path);

   For k = 0, 1, 2 ... the k-th allocation fails. The call must then return false with HBK_ERROR_MEMORY and
   leave no byte alive. The sweep ends when the call succeeds because it needs no k-th allocation. Nothing
   else may make it fail. From the 100th on k grows by a tenth, so long calls stay affordable. */
#ifndef FAULT_H
#define FAULT_H
#include "test.h"

typedef struct fault {
    hbk_allocator alloc;
    long fail_at; /* the allocation to refuse, from 0; -1: none */
    long seen;    /* allocations asked for so far */
    size_t live;  /* bytes alive by our own count, which alloc.live must match */
} fault;

/* The hook. New bytes are 0xee, so that whoever counts on zeros is found out. The counts are atomic, because
   chapters may allocate from several threads. */
static void *fault_realloc(void *ctx, void *p, size_t old_size, size_t size)
{
    fault *f = (fault *)ctx;
    if (size && __atomic_fetch_add(&f->seen, 1, __ATOMIC_RELAXED) == f->fail_at) return NULL;
    void *q = NULL;
    if (size) q = realloc(p, size);
    else free(p);
    if (q && size > old_size) memset((char *)q + old_size, 0xee, size - old_size);
    if (!size || q) __atomic_fetch_add(&f->live, size - old_size, __ATOMIC_RELAXED);
    return q;
}

/* An allocator whose allocation number fail_at fails. f must stay where it is. */
static hbk_allocator *fault_init(fault *f, long fail_at)
{
    memset(f, 0, sizeof *f);
    f->alloc.realloc = fault_realloc;
    f->alloc.ctx = f;
    f->fail_at = fail_at;
    return &f->alloc;
}

/* Fails unless everything allocated was freed, with the sizes it was allocated with. */
static void fault_check_clean(const fault *f)
{
    if (f->live || f->alloc.live)
        fail_msg("allocation %ld refused: %zu bytes are still alive (the library counts %zu)", f->fail_at,
                 f->live, f->alloc.live);
}

/* Returns how many allocations `call` makes when all goes well. */
static long fault_sweep(bool (*call)(void *ctx, hbk_allocator *a, hbk_error *err), void *ctx)
{
    for (long k = 0;; k += k < 100 ? 1 : k / 10) {
        fault f;
        hbk_error err;
        memset(&err, 0, sizeof err);
        bool ok = call(ctx, fault_init(&f, k), &err);
        fault_check_clean(&f);
        if (f.seen <= k) {
            if (!ok) fail_msg("failed though no allocation was refused: %s", err.message);
            return f.seen;
        }
        if (ok) fail_msg("succeeded although allocation %ld was refused", k);
        if (err.code != HBK_ERROR_MEMORY)
            fail_msg("allocation %ld refused: code %d '%s', expected HBK_ERROR_MEMORY", k, (int)err.code,
                     err.message);
    }
}

#endif
