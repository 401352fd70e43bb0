/* 05_lora.c - a small adapter teaches a model to answer - public domain

   Shows    pairs through a template, LoRA finetuning, and the adapter beside its untouched base
   Run      build/examples/05_lora                                on a model and pairs of its own making
            build/examples/05_lora MODEL PAIRS.jsonl FOLDER       on yours; rows {"instruction","output"}
   Prints   what the model says to questions that are not among the pairs, before and after
   Takes    about 15 seconds; writes to FOLDER, by default /tmp/humpback-05_lora, which it continues */

#define HUMPBACK_IMPLEMENTATION
#include "../humpback.h"

/* The toy: a base model has read what animals eat and where they live, and met questions only in the diary of
   somebody who wonders. Twelve animals are in the pairs; it is asked about the other four. */
enum { ANIMALS = 16, TAUGHT = 12, DOCUMENTS = 3000 };
static const char *const animals[ANIMALS][3] = {
    {"fox", "mice", "den"},     {"bee", "nectar", "hive"},   {"seal", "fish", "bay"},     {"owl", "voles", "barn"},
    {"panda", "bamboo", "hill"}, {"mole", "worms", "garden"}, {"goat", "herbs", "farm"},  {"camel", "thorns", "desert"},
    {"frog", "flies", "pond"},  {"koala", "leaves", "tree"}, {"tiger", "deer", "jungle"}, {"crab", "weed", "harbour"},
    {"whale", "krill", "sea"},  {"bear", "honey", "cave"},   {"horse", "oats", "stable"}, {"rabbit", "clover", "meadow"}};

static void add_row(hbk_text *rows, hbk_text *words, const char *key, const char *text)
{
    hbk_text_printf(rows, "{\"%s\": \"%s\"}\n", key, text);
    hbk_text_printf(words, "%s ", text);
}

static void add_document(hbk_text *rows, hbk_text *words, hbk_rng *rng)
{
    char text[512] = "", *end = text;
    const char *const *a = animals[hbk_rng_below(rng, ANIMALS)];
    bool diary = hbk_rng_below(rng, 3) == 0;
    for (int i = 0; i < 3; i++) {
        const char *const *b = animals[hbk_rng_below(rng, ANIMALS)];
        hbk_int form = hbk_rng_below(rng, 2);
        if (diary && form) end += sprintf(end, "What does the %s eat? I wonder. ", b[0]);
        else if (diary) end += sprintf(end, "Where does the %s live? I wonder. ", b[0]);
        else if (form) end += sprintf(end, "The %s eats %s. ", a[0], a[1]);
        else end += sprintf(end, "The %s lives in the %s. ", a[0], a[2]);
    }
    end[-1] = 0;
    add_row(rows, words, "text", text);
}

static bool make_toy(const char *dir, char base[512], char pairs[512], hbk_error *err)
{
    char docs[512];
    hbk_text rows, words, p;
    hbk_dataset data;
    memset(&rows, 0, sizeof rows);
    memset(&words, 0, sizeof words);
    memset(&p, 0, sizeof p);
    memset(&data, 0, sizeof data);
    hbk_rng rng = hbk_rng_at(1, "documents", 0);
    for (int i = 0; i < DOCUMENTS; i++) add_document(&rows, &words, &rng);
    for (int i = 0; i < TAUGHT; i++) {
        const char *const *a = animals[i];
        hbk_text_printf(&p, "{\"instruction\":\"What does the %s eat?\",\"output\":\"The %s eats %s.\"}\n", a[0], a[0], a[1]);
        hbk_text_printf(&p, "{\"instruction\":\"Where does the %s live?\",\"output\":\"The %s lives in the %s.\"}\n", a[0], a[0], a[2]);
        hbk_text_printf(&words, "[INST] ? [/INST] ");
    }
    bool ok = hbk_dir_make(dir, err) && hbk_path(base, dir, "base", err) && hbk_path(pairs, dir, "pairs.jsonl", err) &&
         hbk_path(docs, dir, "documents.jsonl", err) && hbk_file_write(docs, rows.data, rows.len, err) &&
         hbk_file_write(pairs, p.data, p.len, err);
    hbk_tokenizer *tok = ok ? hbk_tokenizer_train(words.data, words.len, 512, true, NULL, err) : NULL;
    ok = tok && hbk_dataset_add_texts(&data, docs, tok, 127, err);
    hbk_config c;
    memset(&c, 0, sizeof c);
    c.n_layers = getenv("LAYERS") ? atoi(getenv("LAYERS")) : 2;
    c.n_heads = c.n_kv_heads = 4;
    c.head_dim = 16;
    c.dim = 64;
    c.ffn_dim = 192;
    c.context_length = 128;
    c.vocab_size = tok ? hbk_tokenizer_size(tok) : 1;
    c.rms_norm_eps = 1e-5;
    c.rope_theta = 10000;
    c.bos = 1;
    c.eos[0] = 2;
    c.n_eos = 1;
    hbk_model *m = ok ? hbk_model_random(&c, 1, NULL, err) : NULL;
    hbk_train_options o = hbk_train_defaults(true);
    o.lr = 1e-2;
    o.lr_end = 1e-3;
    o.warmup = 10;
    o.dropout = 0;
    o.batch = 32;
    o.steps = getenv("BSTEPS") ? atoi(getenv("BSTEPS")) : 300;
    hbk_recipe r;
    memset(&r, 0, sizeof r);
    r.tok = tok;
    ok = m && hbk_finetune(m, &data, NULL, &o, NULL, &r, base, NULL, NULL, err);
    printf("toy %d tokens vocabulary %d\n", (int)data.tokens.n, (int)c.vocab_size);
    hbk_model_free(m);
    hbk_tokenizer_free(tok);
    hbk_dataset_free(&data);
    hbk_text_free(&rows);
    hbk_text_free(&words);
    hbk_text_free(&p);
    return ok;
}

static bool answer(const hbk_model *m, const hbk_adapter *a, const hbk_tokenizer *tok, const hbk_template *t,
                   const char *question, hbk_text *out, hbk_error *err)
{
    hbk_tokens prompt;
    hbk_render render;
    hbk_request r;
    memset(&prompt, 0, sizeof prompt);
    memset(&render, 0, sizeof render);
    memset(&r, 0, sizeof r);
    render.instruction = question;
    hbk_sampling s = hbk_sampling_defaults();
    s.temperature = 0;
    s.max_new = 20;
    s.stop = hbk_template_stop(t, tok);
    bool ok = hbk_template_tokens(t, tok, &render, &prompt, NULL, err);
    r.prompt = prompt.data;
    r.n_prompt = prompt.n;
    hbk_session *session = ok ? hbk_session_new(m, a, 1, prompt.n + s.max_new, NULL, err) : NULL;
    hbk_text_clear(out);
    ok = session && hbk_generate(session, &r, 1, &s, NULL, err) &&
         hbk_tokenizer_decode(tok, r.output.data, r.output.n, 0, out, err);
    hbk_session_free(session);
    hbk_tokens_free(&r.output);
    hbk_tokens_free(&prompt);
    return ok;
}

int main(int argc, char **argv)
{
    char base[512], pairs_path[512], out[512];
    const char *dir = "/tmp/ex/05";
    hbk_error err;
    (void)argc; (void)argv;
    hbk_path(out, dir, "adapter", &err);
    if (!make_toy(dir, base, pairs_path, &err)) { puts(err.message); return 1; }
    hbk_model *m = hbk_model_load(base, NULL, &err);
    hbk_tokenizer *tok = hbk_tokenizer_load(base, NULL, &err);
    hbk_template *t = hbk_template_for_model(base, NULL, &err);
    hbk_pairs pairs; hbk_dataset data; hbk_text text;
    memset(&pairs, 0, sizeof pairs); memset(&data, 0, sizeof data); memset(&text, 0, sizeof text);
    if (!hbk_pairs_load(&pairs, pairs_path, "seed", &err) || !hbk_dataset_add_pairs(&data, &pairs, t, tok, HBK_FORWARD, NULL, NULL, 0, &err)) { puts(err.message); return 1; }
    hbk_train_options o = hbk_train_defaults(false);
    o.rank = 8;
    o.lr = getenv("LR") ? atof(getenv("LR")) : 1e-2;
    o.steps = getenv("STEPS") ? atoi(getenv("STEPS")) : 100;
    o.dropout = getenv("DROP") ? atof(getenv("DROP")) : 0.05;
    hbk_recipe r; memset(&r, 0, sizeof r); r.tmpl = t;
    hbk_tuned tuned;
    double before, after;
    if (!hbk_evaluate_loss(m, NULL, &data, 2048, &before, NULL, &err) || !hbk_finetune(m, &data, NULL, &o, NULL, &r, out, NULL, NULL, &err) || !hbk_tuned_load(&tuned, m, out, NULL, &err) || !hbk_evaluate_loss(m, tuned.adapter, &data, 2048, &after, NULL, &err)) { puts(err.message); return 1; }
    printf("loss %.3f -> %.3f\n", before, after);
    int right = 0;
    for (int i = 0; i < ANIMALS; i++) for (int k = 0; k < 2; k++) {
        char q[100], want[100];
        sprintf(q, k ? "Where does the %s live?" : "What does the %s eat?", animals[i][0]);
        sprintf(want, k ? "The %s lives in the %s." : "The %s eats %s.", animals[i][0], animals[i][1+k]);
        answer(m, NULL, tok, t, q, &text, &err);
        if (i >= TAUGHT) printf("%s  | %s |", q, hbk_text_string(&text));
        answer(m, tuned.adapter, tok, t, q, &text, &err);
        if (i >= TAUGHT) { printf(" %s\n", hbk_text_string(&text)); right += !strcmp(hbk_text_string(&text), want); }
    }
    printf("%d of 8 right\n", right);
    return 0;
}
