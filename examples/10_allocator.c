/* 10_allocator.c - your memory, your clock, your stop button - public domain

   Shows    an allocator of one's own, a limit on memory, and a progress callback that cancels
   Run      build/examples/10_allocator
   Prints   what a finetuning allocates; what it says when that is too much; a run that is stopped and goes on
   Takes    a second; writes to /tmp/humpback-10_allocator */

#define HUMPBACK_IMPLEMENTATION
#include "../humpback.h"

#define FOLDER "/tmp/humpback-10_allocator"
enum { VOCABULARY = 64, EXAMPLES = 32, STEPS = 20, CANCEL_AT = 8 };

/* Where memory comes from. The library hands over both sizes, so that an arena or a pool could stand here;
   this one counts, and asks malloc. */
typedef struct counter {
    long blocks, frees;
    size_t largest;
} counter;

static void *count_realloc(void *ctx, void *p, size_t old_size, size_t size)
{
    counter *c = (counter *)ctx;
    (void)old_size;
    if (size > c->largest) c->largest = size;
    if (size) {
        c->blocks += p == NULL;
        return realloc(p, size);
    }
    c->frees++;
    free(p);
    return NULL;
}

static hbk_allocator counting(counter *c, size_t limit)
{
    hbk_allocator a;
    memset(&a, 0, sizeof a);
    memset(c, 0, sizeof *c);
    a.realloc = count_realloc;
    a.ctx = c;
    a.limit = limit;
    return a;
}

/* Called after every step: prints every fourth, and says stop where it is told to. */
static bool on_step(void *ctx, const char *stage, hbk_int done, hbk_int total, const char *unit,
                    const char *note)
{
    hbk_int stop_at = *(const hbk_int *)ctx;
    if (done % 4 == 0) printf("  %s: %d of %d %s, %s\n", stage, (int)done, (int)total, unit, note);
    return done != stop_at;
}

/* A model of random numbers and examples in which each id is followed by the next: quick to learn. */
static hbk_model *make_toy(hbk_dataset *data, hbk_error *err)
{
    hbk_config shape;
    memset(&shape, 0, sizeof shape);
    shape.n_layers = 2;
    shape.n_heads = shape.n_kv_heads = 4;
    shape.head_dim = 16;
    shape.dim = 64;
    shape.ffn_dim = 192;
    shape.vocab_size = VOCABULARY;
    shape.context_length = 64;
    shape.rms_norm_eps = 1e-5;
    shape.rope_theta = 10000;
    hbk_rng rng = hbk_rng_at(1, "examples", 0);
    for (int i = 0; i < EXAMPLES; i++) {
        int32_t ids[16], first = (int32_t)hbk_rng_below(&rng, VOCABULARY);
        for (int k = 0; k < 16; k++) ids[k] = (first + k) % VOCABULARY;
        if (!hbk_dataset_add(data, ids, 16, 1, err)) return NULL;
    }
    return hbk_model_random(&shape, 1, NULL, err);
}

/* A folder that is finished would return at once, and one that was begun would be continued. */
static void begin_anew(const char *dir)
{
    static const char *const files[] = {"humpback.json", "checkpoint/state.safetensors"};
    char path[512];
    for (int i = 0; i < 2; i++)
        if (hbk_path(path, dir, files[i], NULL)) remove(path);
}

/* One finetuning in a folder of its own. */
static bool train(const hbk_model *m, const hbk_dataset *data, const char *dir, hbk_int stop_at,
                  hbk_allocator *alloc, hbk_error *err)
{
    hbk_train_options o = hbk_train_defaults(true);
    hbk_train_data in = {data, NULL, NULL};
    hbk_recipe recipe;
    hbk_progress progress = {on_step, NULL, &stop_at};
    memset(&recipe, 0, sizeof recipe);
    o.dropout = 0;
    o.lr = 1e-2;
    o.lr_end = 1e-3;
    o.steps = STEPS;
    return hbk_finetune(m, &in, &o, NULL, &recipe, dir, &progress, alloc, err);
}

/* Whether two folders hold the same weights, to the bit. */
static bool same_weights(const char *a, const char *b, bool *same, hbk_error *err)
{
    uint64_t one, other;
    if (!hbk_file_hash(a, &one, err) || !hbk_file_hash(b, &other, err)) return false;
    *same = one == other;
    return true;
}

static bool show(const hbk_model *m, const hbk_dataset *data, hbk_error *err)
{
    counter c;
    hbk_allocator free_hand = counting(&c, 0);
    printf("without a limit\n");
    if (!train(m, data, FOLDER "/whole", -1, &free_hand, err)) return false;
    printf("  %ld blocks, %ld given back, the largest of %d KB; %d KB at most, %d now\n\n", c.blocks, c.frees,
           (int)(c.largest / 1024), (int)(free_hand.peak / 1024), (int)(free_hand.live / 1024));
    if (c.blocks != c.frees || free_hand.live != 0) return false;

    printf("with half of that\n");
    hbk_allocator tight = counting(&c, free_hand.peak / 2);
    hbk_error refused;
    if (train(m, data, FOLDER "/tight", -1, &tight, &refused) || refused.code != HBK_ERROR_MEMORY)
        return hbk_fail(err, HBK_ERROR_OPTION, "half of the memory was enough");
    printf("  %s\n  %ld blocks, %ld given back, %d KB now: nothing is lost where it fails\n\n",
           refused.message, c.blocks, c.frees, (int)(tight.live / 1024));

    printf("stopped after %d steps\n", CANCEL_AT);
    hbk_allocator again = counting(&c, 0);
    if (train(m, data, FOLDER "/stopped", CANCEL_AT, &again, &refused) || refused.code != HBK_ERROR_CANCELLED)
        return hbk_fail(err, HBK_ERROR_OPTION, "it did not stop");
    printf("  %s\nand called again\n", refused.message);
    bool same = false;
    if (!train(m, data, FOLDER "/stopped", -1, &again, err) ||
        !same_weights(FOLDER "/whole/model.safetensors", FOLDER "/stopped/model.safetensors", &same, err))
        return false;
    printf("  the weights are %s those of the run that was never stopped\n",
           same ? "to the bit" : "NOT");
    return same || hbk_fail(err, HBK_ERROR_NUMERIC, "two runs of the same training differ");
}

int main(void)
{
    hbk_dataset data;
    hbk_error err;
    memset(&data, 0, sizeof data);
    memset(&err, 0, sizeof err);
    begin_anew(FOLDER "/whole");
    begin_anew(FOLDER "/tight");
    begin_anew(FOLDER "/stopped");
    hbk_model *model = make_toy(&data, &err);
    bool ok = model && show(model, &data, &err);
    if (!ok) fprintf(stderr, "%s\n", err.message);
    hbk_model_free(model);
    hbk_dataset_free(&data);
    return ok ? 0 : 1;
}
