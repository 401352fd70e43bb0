/* 07_backward_model.c - a model that reads an answer and writes the question - public domain

   Shows    pairs learned in reverse, instructions written for unlabelled texts, and the filters behind that
   Run      build/examples/07_backward_model           with pairs and texts of its own making
   Prints   what is asked about 24 texts that are new to the model, and what becomes of bad replies
   Takes    about 5 seconds; writes to a new folder in /tmp, whose name it prints */

#define HUMPBACK_IMPLEMENTATION
#include "../humpback.h"

#include <unistd.h>

enum { ANIMALS = 24, KINDS = 3 };

/* The toy. A text says one of three things about an animal. Two thirds of all texts come with the question
   that somebody asked, and are learned; the rest is the unlabelled corpus. */
static const char *const animals[ANIMALS] = {
    "fox", "bee",  "seal", "owl",   "panda", "mole", "goat", "cow",   "frog", "tiger",  "crab", "moth",
    "hen", "snail", "koala", "cat", "ant",   "swan", "whale", "bear", "horse", "parrot", "hare", "zebra"};
static const char *const texts[KINDS] = {"The %s eats what it finds.", "The %s sleeps in its home.",
                                         "The %s runs from men."};
static const char *const questions[KINDS] = {"What does the %s eat?", "Where does the %s sleep?",
                                             "From whom does the %s run?"};
/* The backward prompt is data too: the text, and a sign that the question is due. */
static const char talk[] = "{\"name\": \"talk\", \"prompt\": \"{bos}{instruction}\","
                           " \"reply\": \" {output}{eos}\", \"backward\": \"{bos}{output} Asked:\"}";

static bool make_files(hbk_text *words, hbk_error *err)
{
    hbk_text pairs, corpus;
    memset(&pairs, 0, sizeof pairs);
    memset(&corpus, 0, sizeof corpus);
    for (int i = 0; i < ANIMALS * KINDS; i++) {
        int a = i / KINDS, k = i % KINDS;
        char x[80], y[80];
        snprintf(x, sizeof x, questions[k], animals[a]);
        snprintf(y, sizeof y, texts[k], animals[a]);
        hbk_text_printf(words, "%s Asked: %s ", y, x);
        if (k == a % KINDS) hbk_text_printf(&corpus, "{\"id\": \"%s\", \"text\": \"%s\"}\n", animals[a], y);
        else hbk_text_printf(&pairs, "{\"instruction\": \"%s\", \"output\": \"%s\"}\n", x, y);
    }
    bool ok = hbk_text_ok(words, err) && hbk_text_ok(&pairs, err) && hbk_text_ok(&corpus, err) &&
              hbk_file_write("template.json", talk, strlen(talk), err) &&
              hbk_file_write("pairs.jsonl", pairs.data, pairs.len, err) &&
              hbk_file_write("corpus.jsonl", corpus.data, corpus.len, err);
    hbk_text_free(&pairs);
    hbk_text_free(&corpus);
    return ok;
}

/* HBK_BACKWARD renders a pair the other way round: the output is the prompt, the instruction the target. To
   swap the loss mask alone would teach p(text), not p(instruction | text). */
static bool learn(const hbk_tokenizer *tok, const hbk_template *tmpl, hbk_error *err)
{
    hbk_pairs pairs;
    hbk_dataset data;
    hbk_config shape;
    hbk_recipe recipe;
    memset(&pairs, 0, sizeof pairs);
    memset(&data, 0, sizeof data);
    memset(&shape, 0, sizeof shape);
    memset(&recipe, 0, sizeof recipe);
    shape.n_layers = 2;
    shape.n_heads = shape.n_kv_heads = 4;
    shape.head_dim = 16;
    shape.dim = 64;
    shape.ffn_dim = 128;
    shape.rms_norm_eps = 1e-5;
    shape.rope_theta = 10000;
    shape.context_length = 64;
    shape.vocab_size = hbk_tokenizer_size(tok);
    shape.bos = 1;
    shape.eos[shape.n_eos++] = 2;
    hbk_train_options o = hbk_train_defaults(true); /* every weight: there is no base to adapt */
    o.lr = 5e-3;
    o.lr_end = 5e-4;
    o.dropout = 0;
    o.batch = 16;
    o.steps = 400;
    recipe.tmpl = tmpl;
    recipe.tok = tok;
    recipe.use = HBK_BACKWARD;
    hbk_train_data train = {&data, NULL, NULL};
    hbk_model *random = hbk_model_random(&shape, 1, NULL, err);
    bool ok = random && hbk_pairs_load(&pairs, "pairs.jsonl", "seed", err) &&
              hbk_dataset_add_pairs(&data, &pairs, tmpl, tok, HBK_BACKWARD, NULL, NULL, 0, err) &&
              hbk_finetune(random, &train, &o, NULL, &recipe, "myx", NULL, NULL, err);
    if (ok) printf("%d pairs were learned in reverse\n\n", (int)data.n);
    hbk_model_free(random);
    hbk_dataset_free(&data);
    hbk_pairs_free(&pairs);
    return ok;
}

/* Of three instructions for each text the likeliest usable one stays. The file has a row for every text,
   used or not; a call that finds it finished does nothing. */
static bool augment(const hbk_tokenizer *tok, const hbk_template *tmpl, hbk_error *err)
{
    hbk_augment_options o = hbk_augment_defaults();
    o.candidates = 3;
    o.decode.sampling.max_new = 24;
    hbk_model *m = hbk_model_load("myx", NULL, err);
    bool ok = m && hbk_augment(m, NULL, tok, tmpl, &o, "myx", "corpus.jsonl", "candidates.jsonl",
                               NULL, NULL, err);
    hbk_jsonl_reader *in = ok ? hbk_jsonl_open("candidates.jsonl", NULL, err) : NULL;
    json_t *row;
    int got = in ? 0 : -1;
    while (in && (got = hbk_jsonl_next(in, &row, err)) > 0)
        printf("%-30s %-10s %s\n", json_string_value(json_object_get(row, "output")),
               json_string_value(json_object_get(row, "status")),
               json_string_value(json_object_get(row, "instruction")));
    hbk_jsonl_close(in);
    hbk_model_free(m);
    return got == 0;
}

/* What the filters make of replies that a larger and less obedient model might give. */
static bool show_filters(const hbk_tokenizer *tok, hbk_error *err)
{
    static const char text[] =
        "Green tea is made from leaves that did not wither. Brew it at eighty degrees.";
    static const char *const replies[] = {
        "How is green tea made?",
        "**Instruction:** \"How is green tea made?\"",
        "Tell me: Green tea is made from leaves that did not wither, is it?",
        "How is green tea made? [/INST] Green tea is",
        "Hm",
        ""};
    hbk_augment_options o = hbk_augment_defaults();
    hbk_template *t = hbk_template_load("llama2", NULL, err);
    bool ok = t != NULL;
    printf("\n");
    for (size_t i = 0; ok && i < sizeof replies / sizeof *replies; i++) {
        char said[160];
        hbk_fate fate;
        size_t n = strlen(replies[i]);
        const char *clean = hbk_augment_clean(replies[i], &n); /* labels and quotes go first */
        snprintf(said, sizeof said, "%.*s", (int)n, clean);
        ok = hbk_augment_judge(&fate, said, text, HBK_FINISH_EOS, &o, t, tok, NULL, err);
        if (ok) printf("%-10s %s\n", hbk_fate_name(fate), replies[i]);
    }
    hbk_template_free(t);
    return ok;
}

int main(void)
{
    char dir[] = "/tmp/humpback-07_backward_model.XXXXXX"; /* new: a training would continue an earlier one */
    hbk_error err;
    hbk_text words;
    memset(&words, 0, sizeof words);
    if (!mkdtemp(dir) || chdir(dir)) {
        perror(dir);
        return 1;
    }
    bool ok = make_files(&words, &err);
    hbk_tokenizer *tok = ok ? hbk_tokenizer_train(words.data, words.len, 400, false, NULL, &err) : NULL;
    hbk_template *tmpl = tok ? hbk_template_load("template.json", NULL, &err) : NULL;
    ok = tmpl && learn(tok, tmpl, &err) && augment(tok, tmpl, &err) && show_filters(tok, &err);
    if (ok) printf("\nthe model and its files: %s\n", dir);
    else fprintf(stderr, "%s\n", err.message);
    hbk_template_free(tmpl);
    hbk_tokenizer_free(tok);
    hbk_text_free(&words);
    return ok ? 0 : 1;
}
