/* 02_generate.c - text from a model, printed while it is being written - public domain

   Shows    the way of a prompt: text, token ids, key/value cache, one id after another, text
   Run      build/examples/02_generate FOLDER [PROMPT]           a Hugging Face folder
            build/examples/02_generate FILE TOKENIZER [PROMPT]   llama2.c: stories.bin tokenizer.bin
   Prints   the prompt and its continuation as it comes, up to 256 tokens; then how fast it came
   Takes    seconds; without arguments it continues with the model that 03_train left behind */

#define HUMPBACK_IMPLEMENTATION
#include "../humpback.h"
#include <time.h>

static const char story_dir[] = "/tmp/humpback-03_train"; /* where 03_train leaves its model */

/* Called after each token; returning false would end the text here. A character may take several tokens: the
   reply hands out what is whole. */
static bool print_token(void *ctx, hbk_int request, int32_t id)
{
    const char *piece;
    size_t n = hbk_reply_take((hbk_reply *)ctx, &piece);
    (void)request; /* there is only one */
    (void)id;
    fwrite(piece, 1, n, stdout);
    fflush(stdout);
    return true;
}

static double seconds(void)
{
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static bool generate(const hbk_model *model, const hbk_tokenizer *tok, const char *prompt, hbk_error *err)
{
    hbk_tokens ids;
    hbk_request request;
    hbk_reply reply;
    memset(&ids, 0, sizeof ids);
    memset(&request, 0, sizeof request);
    memset(&reply, 0, sizeof reply);
    reply.tok = tok;
    request.reply = &reply;
    hbk_stream stream = {print_token, &reply};

    /* A text begins with the bos token where the model knows one; encoding never adds it by itself. */
    if (hbk_tokenizer_bos(tok) >= 0) hbk_tokens_push(&ids, hbk_tokenizer_bos(tok));
    bool ok = hbk_tokenizer_encode(tok, prompt, strlen(prompt), 0, &ids, err) && hbk_tokens_ok(&ids, err);
    request.prompt = ids.data;
    request.n_prompt = ids.n;
    request.rng = hbk_rng_at(1, "example", 0); /* another number, another text */

    hbk_sampling sampling = hbk_sampling_defaults();
    sampling.max_new = 256;
    hbk_int most = model->config.context_length;
    if (most > ids.n + sampling.max_new) most = ids.n + sampling.max_new;
    hbk_session *session = ok ? hbk_session_new(model, NULL, 1, most, HBK_F32, NULL, err) : NULL;
    printf("%s", prompt);
    double start = seconds();
    ok = session && hbk_generate(session, &request, 1, &sampling, &stream, err);
    double taken = seconds() - start;
    print_token(&reply, 0, 0); /* what waited for more */
    printf("\n");
    if (ok && request.finish == HBK_FINISH_TOO_LONG)
        ok = hbk_fail(err, HBK_ERROR_RANGE,
                      "the prompt is %d tokens long and leaves no room to continue: shorten it", (int)ids.n);
    if (ok)
        printf("\n[%d tokens, %.0f per second; %s]\n", (int)request.output.n,
               (double)request.output.n / taken,
               request.finish == HBK_FINISH_EOS ? "the model ended the text" : "cut off here");
    hbk_session_free(session);
    hbk_tokens_free(&request.output);
    hbk_reply_free(&reply);
    hbk_tokens_free(&ids);
    return ok;
}

int main(int argc, char **argv)
{
    const char *path = argc > 1 ? argv[1] : story_dir;
    bool folder = hbk_dir_exists(path); /* which holds its tokenizer; beside a file it has to be named */
    if ((argc < 2 && !folder) || (argc == 2 && !folder && hbk_file_exists(path))) {
        if (argc < 2)
            printf("%s is not there yet: run 03_train, which makes a model in seconds. Or:\n\n", path);
        printf("    02_generate FOLDER [PROMPT]\n    02_generate FILE TOKENIZER [PROMPT]\n");
        return argc < 2 ? 0 : 1;
    }
    const char *tok_path = folder || argc < 3 ? path : argv[2];
    int at = folder ? 2 : 3;
    const char *prompt = argc > at ? argv[at] : "Once upon a time";
    hbk_error err;
    hbk_model *model = hbk_model_load(path, NULL, &err);
    hbk_tokenizer *tok = model ? hbk_tokenizer_load(tok_path, NULL, &err) : NULL;
    bool ok = tok && generate(model, tok, prompt, &err);
    if (!ok) fprintf(stderr, "%s\n", err.message);
    hbk_tokenizer_free(tok);
    hbk_model_free(model);
    return ok ? 0 : 1;
}
