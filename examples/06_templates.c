/* 06_templates.c - what a model is really shown, and which part of it is learned - public domain

   Shows    two templates next to each other, the tags of the loop, and the loss mask of pairs and dialogs
   Run      build/examples/06_templates             with a vocabulary that it learns from its own sentences
            build/examples/06_templates MODEL       with that of a model folder, and the model's own template
   Prints   every prompt as the model gets it; what is learned in green or, in a file, between >>> and <<<
   Takes    no time; writes nothing */

#define HUMPBACK_IMPLEMENTATION
#include "../humpback.h"

#define QUESTION "Why do whales sing?"
#define ANSWER   "To hear each other far away."
#define RUBRIC   "Rate the answer to this from 1 to 5.\n\n{instruction}\n{output}"

static bool colours(void)
{
    return isatty(1) != 0;
}

static void mark(bool on)
{
    if (colours()) fputs(on ? "\033[32m" : "\033[0m", stdout);
    else fputs(on ? ">>>" : "<<<", stdout);
}

/* What one use of a template is made of, piece by piece: a piece is the template's own text, somebody's
   words, or an id such as bos. Only the template's text may hold control tokens: whoever writes "</s>" in a
   question writes four letters. */
static void show_spans(const hbk_template *t, const hbk_tokenizer *tok, const hbk_render *r)
{
    hbk_span_text spans[HBK_MAX_SPANS];
    hbk_int n = hbk_template_spans(t, tok, r, spans);
    bool learned = false;
    for (hbk_int i = 0; i < n; i++) {
        if (spans[i].target != learned) mark(learned = spans[i].target);
        printf("%*s", (int)spans[i].blanks, "");
        if (spans[i].text) fwrite(spans[i].text, 1, (size_t)spans[i].len, stdout);
        else fputs(hbk_tokenizer_piece(tok, spans[i].id), stdout);
    }
    if (learned) mark(false);
    puts("");
}

/* The four uses in the loop, number i. */
static void show_use(const hbk_template *t, const hbk_tokenizer *tok, int i)
{
    hbk_render r[4];
    memset(r, 0, sizeof r); /* HBK_FORWARD, no tag, no system text */
    r[0].instruction = r[1].instruction = r[3].instruction = QUESTION;
    r[0].reply = r[1].reply = ANSWER;
    r[0].tag = HBK_TAG_SEED;
    r[1].tag = HBK_TAG_WEB;
    r[2].use = HBK_BACKWARD;
    r[2].output = r[3].output = ANSWER;
    r[2].reply = QUESTION;
    r[3].use = HBK_RATING;
    printf("\n%s\n", hbk_template_name(t));
    show_spans(t, tok, &r[i]);
}

/* A conversation as tokens, with the mask that training gets; the first reply is there to be read only. */
static bool show_dialog(const hbk_template *t, const hbk_tokenizer *tok, hbk_error *err)
{
    static const hbk_turn turns[] = {{HBK_USER, false, QUESTION},
                                     {HBK_ASSISTANT, false, ANSWER},
                                     {HBK_USER, false, "And at night?"},
                                     {HBK_ASSISTANT, true, "At night they sing, too."}};
    hbk_tokens ids;
    hbk_text learn, text;
    memset(&ids, 0, sizeof ids);
    memset(&learn, 0, sizeof learn);
    memset(&text, 0, sizeof text);
    bool ok = hbk_template_dialog(t, tok, turns, 4, NULL, &ids, &learn, err), learned = false;
    hbk_int n_learned = 0;
    if (ok) printf("\n%s\n", hbk_template_name(t));
    for (hbk_int i = 0; ok && i < ids.n; i++) {
        text.len = 0;
        if (learn.data[i] != learned) mark(learned = learn.data[i] != 0);
        n_learned += learned;
        ok = hbk_tokenizer_decode(tok, ids.data + i, 1, HBK_ENCODE_CONTINUE, &text, err);
        fputs(ok && text.len ? hbk_text_string(&text) : hbk_tokenizer_piece(tok, ids.data[i]), stdout);
    }
    if (learned) mark(false);
    if (ok) printf("\n%d of %d tokens are learned, the one that ends the reply among them\n", (int)n_learned,
                   (int)ids.n);
    hbk_tokens_free(&ids);
    hbk_text_free(&learn);
    hbk_text_free(&text);
    return ok;
}

static bool show(hbk_template *const *t, int n, const hbk_tokenizer *tok, hbk_error *err)
{
    static const char *const titles[] = {"A pair by people, tagged as such",
                                         "A pair by the model, tagged as such",
                                         "The pair reversed: what the backward model learns",
                                         "A rating: the model goes on from here"};
    for (int use = 0; use < 4; use++) {
        printf("%s---- %s\n", use ? "\n" : "", titles[use]);
        for (int i = 0; i < n; i++) show_use(t[i], tok, use);
    }
    printf("\n---- A dialog of two turns, of which the second is learned\n");
    for (int i = 0; i < n; i++)
        if (!show_dialog(t[i], tok, err)) return false;
    return true;
}

int main(int argc, char **argv)
{
    static const char words[] = QUESTION " " ANSWER " And at night? At night they sing, too. ";
    hbk_error err;
    hbk_tokenizer *tok = argc > 1 ? hbk_tokenizer_load(argv[1], NULL, &err)
                                  : hbk_tokenizer_train(words, strlen(words), 320, true, NULL, &err);
    hbk_template *t[2] = {NULL, NULL};
    int n = argc > 1 ? 1 : 2;
    bool ok = tok != NULL;
    for (int i = 0; ok && i < n; i++) {
        t[i] = argc > 1 ? hbk_template_for_model(argv[1], NULL, &err)
                        : hbk_template_load(i ? "chatml" : "llama2", NULL, &err);
        /* a wording of one's own; and a vocabulary without "[" could not spell "[INST]" */
        ok = t[i] && hbk_template_set(t[i], HBK_RATING, RUBRIC, &err) && hbk_template_check(t[i], tok, &err);
    }
    ok = ok && show(t, n, tok, &err);
    if (!ok) fprintf(stderr, "%s\n", err.message);
    for (int i = 0; i < n; i++) hbk_template_free(t[i]);
    hbk_tokenizer_free(tok);
    return ok ? 0 : 1;
}
