/* tokenizers.c - what tokenizers.py needs beside the command line - public domain

   tokenizers time TOKENIZER FILE             encodes the file once; prints seconds of processor time, and ids
   tokenizers save TOKENIZER FOLDER           hbk_tokenizer_save
   tokenizers train FILE SIZE BYTES FOLDER    hbk_tokenizer_train; BYTES 1: all 256 bytes are pieces */

#define HUMPBACK_IMPLEMENTATION
#include "../../humpback.h"

#include <time.h>

static bool encode(const char *path, const hbk_text *text, hbk_error *err)
{
    struct timespec from, to;
    hbk_tokens ids = {NULL, NULL, 0, 0, false};
    hbk_tokenizer *t = hbk_tokenizer_load(path, NULL, err);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &from);
    bool ok = t && hbk_tokenizer_encode(t, hbk_text_string(text), text->len, 0, &ids, err);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &to);
    if (ok)
        printf("%.6f %lld\n", (double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec),
               (long long)ids.n);
    hbk_tokens_free(&ids);
    hbk_tokenizer_free(t);
    return ok;
}

static bool save(const char *path, const char *folder, hbk_error *err)
{
    hbk_tokenizer *t = hbk_tokenizer_load(path, NULL, err);
    bool ok = t && hbk_tokenizer_save(t, folder, err);
    hbk_tokenizer_free(t);
    return ok;
}

static bool train(const hbk_text *text, char **argv, hbk_error *err)
{
    hbk_tokenizer *t = hbk_tokenizer_train(hbk_text_string(text), text->len, strtol(argv[0], NULL, 10),
                                           argv[1][0] == '1', NULL, err);
    bool ok = t && hbk_tokenizer_save(t, argv[2], err);
    hbk_tokenizer_free(t);
    return ok;
}

int main(int argc, char **argv)
{
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    hbk_text text = {NULL, NULL, 0, 0, false};
    bool ok;
    if (argc == 4 && strcmp(argv[1], "time") == 0)
        ok = hbk_file_read(argv[3], (size_t)1 << 30, &text, &err) && encode(argv[2], &text, &err);
    else if (argc == 4 && strcmp(argv[1], "save") == 0)
        ok = save(argv[2], argv[3], &err);
    else if (argc == 6 && strcmp(argv[1], "train") == 0)
        ok = hbk_file_read(argv[2], (size_t)1 << 30, &text, &err) && train(&text, argv + 3, &err);
    else
        return 2;
    if (!ok) fprintf(stderr, "%s\n", err.message);
    hbk_text_free(&text);
    return ok ? 0 : 1;
}
