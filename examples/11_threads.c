/* 11_threads.c - two threads, one model - public domain

   Shows    a model that two threads share, each with an adapter and a session of its own
   Run      build/examples/11_threads
   Prints   what each teaches the model and has it say, side by side and then one after the other
   Takes    about 2 seconds; writes nothing */

#define HUMPBACK_IMPLEMENTATION
#include "../humpback.h"

#include <pthread.h>

enum { VOCABULARY = 300, CONTEXT = 64, STEPS = 60, PROMPT = 4, READERS = 2 };

static const char *const poems[READERS] = {
    "the owl and the cat went to sea in a beautiful green boat and took some honey",
    "the fox went out on a cold dark night and prayed to the moon to give him light"};

/* What a thread reads and what it makes. The model and the tokenizer are only read, by any number of threads
   at once; a trainer, a session and an error belong to one thread. */
typedef struct reader {
    const hbk_model *model;
    const hbk_tokenizer *tok;
    const char *poem;
    hbk_text said;
    uint64_t adapter; /* hash of what it learned */
    hbk_error err;
    bool ok;
} reader;

/* Teaches an adapter the poem, then has the model say it from its first words on. */
static bool learn_and_say(reader *r, hbk_trainer *t, const hbk_tokens *ids)
{
    int32_t next[CONTEXT];
    hbk_int n = ids->n, starts[2] = {0, ids->n - 1};
    for (hbk_int i = 0; i + 1 < n; i++) next[i] = ids->data[i + 1];
    hbk_batch batch = {n - 1, 1, ids->data, next, starts};
    for (int step = 0; step < STEPS; step++)
        if (!hbk_trainer_accumulate(t, &batch, 1 / (double)(n - 1), NULL, &r->err) ||
            !hbk_trainer_update(t, 1e-2, NULL, &r->err))
            return false;
    r->adapter = hbk_adapter_hash(0, hbk_trainer_adapter(t));

    hbk_sampling greedy = hbk_sampling_defaults();
    hbk_request request;
    memset(&request, 0, sizeof request);
    greedy.temperature = 0;
    greedy.max_new = n - PROMPT;
    request.prompt = ids->data;
    request.n_prompt = PROMPT;
    hbk_session *s = hbk_session_new(r->model, hbk_trainer_adapter(t), 1, CONTEXT, HBK_F32, NULL, &r->err);
    bool ok = s && hbk_generate(s, &request, 1, &greedy, NULL, &r->err) &&
              hbk_tokenizer_decode(r->tok, ids->data, PROMPT, 0, &r->said, &r->err) &&
              hbk_tokenizer_decode(r->tok, request.output.data, request.output.n, HBK_ENCODE_CONTINUE,
                                   &r->said, &r->err);
    hbk_session_free(s);
    hbk_tokens_free(&request.output);
    return ok;
}

static void *work(void *ctx)
{
    reader *r = (reader *)ctx;
    hbk_train_options o = hbk_train_defaults(false);
    hbk_tokens ids;
    memset(&ids, 0, sizeof ids);
    o.lora.targets = HBK_ALL_SLOTS | 1u << HBK_LM_HEAD; /* the base is random numbers: all is to be learned */
    o.dropout = 0;
    hbk_tokens_push(&ids, hbk_tokenizer_bos(r->tok));
    bool ok = hbk_tokenizer_encode(r->tok, r->poem, strlen(r->poem), 0, &ids, &r->err);
    hbk_trainer *t =
        ok && ids.n <= CONTEXT ? hbk_trainer_new(r->model, &o, NULL, CONTEXT, CONTEXT, NULL, &r->err) : NULL;
    r->ok = t && learn_and_say(r, t, &ids);
    hbk_trainer_free(t);
    hbk_tokens_free(&ids);
    return NULL;
}

/* Both readers, each in a thread or both in this one. */
static bool run(reader readers[READERS], const hbk_model *m, const hbk_tokenizer *tok, bool threads)
{
    pthread_t thread[READERS];
    bool started[READERS] = {false, false}, ok = true;
    for (int i = 0; i < READERS; i++) {
        memset(&readers[i], 0, sizeof readers[i]);
        readers[i].model = m;
        readers[i].tok = tok;
        readers[i].poem = poems[i];
        started[i] = threads && pthread_create(&thread[i], NULL, work, &readers[i]) == 0;
        if (!started[i]) work(&readers[i]); /* no thread to be had: it works all the same */
    }
    for (int i = 0; i < READERS; i++) {
        if (started[i]) pthread_join(thread[i], NULL);
        if (readers[i].ok) printf("  %s\n", hbk_text_string(&readers[i].said));
        else fprintf(stderr, "%s\n", readers[i].err.message);
        ok = ok && readers[i].ok;
    }
    return ok;
}

int main(void)
{
    hbk_error err;
    hbk_config shape;
    char words[512];
    reader together[READERS], alone[READERS];
    snprintf(words, sizeof words, "%s %s", poems[0], poems[1]);
    hbk_tokenizer *tok = hbk_tokenizer_train(words, strlen(words), VOCABULARY, false, NULL, &err);
    memset(&shape, 0, sizeof shape);
    shape.n_layers = 2;
    shape.n_heads = shape.n_kv_heads = 4;
    shape.head_dim = 16;
    shape.dim = 64;
    shape.ffn_dim = 192;
    shape.vocab_size = tok ? hbk_tokenizer_size(tok) : 1;
    shape.context_length = CONTEXT;
    shape.rms_norm_eps = 1e-5;
    shape.rope_theta = 10000;
    hbk_model *model = tok ? hbk_model_random(&shape, 1, NULL, &err) : NULL;
    if (!model) {
        fprintf(stderr, "%s\n", err.message);
        hbk_tokenizer_free(tok);
        return 1;
    }
    uint64_t before = hbk_model_hash(model);
    printf("side by side, on one model of %d numbers\n", (int)hbk_model_count(&shape));
    bool ok = run(together, model, tok, true);
    printf("one after the other\n");
    ok = run(alone, model, tok, false) && ok;
    bool same = ok && hbk_model_hash(model) == before;
    for (int i = 0; i < READERS; i++) {
        same = same && together[i].adapter == alone[i].adapter &&
               strcmp(hbk_text_string(&together[i].said), hbk_text_string(&alone[i].said)) == 0;
        hbk_text_free(&together[i].said);
        hbk_text_free(&alone[i].said);
    }
    if (ok) printf("texts and adapters are %s\n", same ? "the same to the bit" : "NOT the same");
    hbk_model_free(model);
    hbk_tokenizer_free(tok);
    return same ? 0 : 1;
}
