/* 01_tokens.c - text as a model sees it - public domain

   Shows    a vocabulary and what it makes of texts: pieces, their ids, and the way back
   Run      build/examples/01_tokens                 learns a vocabulary from a few sentences
            build/examples/01_tokens MODEL [TEXT]    takes that of a model folder or tokenizer file
   Prints   each text as pieces above ids; then an end mark that a user wrote, and one that a program means
   Takes    no time; writes nothing */

#define HUMPBACK_IMPLEMENTATION
#include "../humpback.h"

static const char sentences[] =
    "The humpback whale sings. It sings for hours, and the other whales of the same sea sing the same song. "
    "The song changes from year to year, and what is new in it travels from whale to whale across the sea. "
    "Whales that sing together hear each other a hundred miles away. Nobody knows what the whales are "
    "saying. "
    "Some say that the singing whale is saying where it is. Others say that it sings to hear what is there. ";

static const char *const texts[] = {
    "The whales are singing.", /* words that were seen, or nearly */
    "Plankton!",               /* one that was not: it falls into letters */
    "\xf0\x9f\x90\x8b",        /* a whale of four bytes, and so of four byte pieces */
};

/* Prints the pieces in one row and their ids in the next, each column as wide as the wider of the two. */
static void print_columns(const hbk_tokenizer *tok, const hbk_tokens *ids)
{
    hbk_text pieces, numbers;
    memset(&pieces, 0, sizeof pieces);
    memset(&numbers, 0, sizeof numbers);
    for (hbk_int i = 0; i < ids->n; i++) {
        const char *piece = hbk_tokenizer_piece(tok, ids->data[i]);
        int columns = (int)hbk_utf8_length(piece, strlen(piece)), bytes = (int)strlen(piece);
        int digits = snprintf(NULL, 0, "%d", ids->data[i]), width = columns > digits ? columns : digits;
        hbk_text_printf(&pieces, "  %*s", width + bytes - columns, piece); /* printf counts bytes */
        hbk_text_printf(&numbers, "  %*d", width, ids->data[i]);
    }
    printf("%s\n%s\n", hbk_text_string(&pieces), hbk_text_string(&numbers));
    hbk_text_free(&pieces);
    hbk_text_free(&numbers);
}

/* Cuts a text into tokens, shows them, and checks that they spell the text again. */
static bool show(const hbk_tokenizer *tok, const char *text, unsigned flags, hbk_error *err)
{
    hbk_tokens ids;
    hbk_text back;
    memset(&ids, 0, sizeof ids); /* zeroed: empty */
    memset(&back, 0, sizeof back);
    bool ok = hbk_tokenizer_encode(tok, text, strlen(text), flags, &ids, err) &&
              hbk_tokenizer_decode(tok, ids.data, ids.n, 0, &back, err);
    if (ok) {
        printf("\n\"%s\" is %d tokens for %d bytes", text, (int)ids.n, (int)strlen(text));
        if (strcmp(hbk_text_string(&back), text)) printf(", which read \"%s\"", hbk_text_string(&back));
        printf("\n");
        print_columns(tok, &ids);
    }
    hbk_tokens_free(&ids);
    hbk_text_free(&back);
    return ok;
}

int main(int argc, char **argv)
{
    hbk_error err;
    hbk_tokenizer *tok = argc > 1 ? hbk_tokenizer_load(argv[1], NULL, &err)
                                  : hbk_tokenizer_train(sentences, strlen(sentences), 360, true, NULL, &err);
    bool ok = tok != NULL;
    if (ok) printf("a vocabulary of %d pieces\n", (int)hbk_tokenizer_size(tok));
    if (argc > 2) {
        ok = ok && show(tok, argv[2], 0, &err);
    } else {
        for (size_t i = 0; ok && i < sizeof texts / sizeof *texts; i++) ok = show(tok, texts[i], 0, &err);

        /* Who may end a text? A user who types the end mark has typed a few characters. Only a program that
           says so gets the one token by which a model knows that a text is over. */
        int32_t eos = ok ? hbk_tokenizer_eos(tok) : -1;
        char text[128];
        snprintf(text, sizeof text, "The end.%s", eos < 0 ? "" : hbk_tokenizer_piece(tok, eos));
        if (ok) printf("\nwhat a user writes stays text:");
        ok = ok && show(tok, text, 0, &err);
        if (ok) printf("\nHBK_ENCODE_SPECIAL, for text of your own:");
        ok = ok && show(tok, text, HBK_ENCODE_SPECIAL, &err);
    }
    if (!ok) fprintf(stderr, "%s\n", err.message);
    hbk_tokenizer_free(tok);
    return ok ? 0 : 1;
}
