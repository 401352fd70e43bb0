/* 05_lora.c - a small adapter teaches a model to answer - public domain

   Shows    pairs through a template, LoRA finetuning, and the adapter on its untouched base
   Run      build/examples/05_lora                             with a model and pairs of its own making
            build/examples/05_lora MODEL PAIRS.jsonl FOLDER    with yours; rows {"instruction","output"}
   Prints   what is said to the last six pairs, which are not trained on, without the adapter and with it
   Takes    about 5 seconds; writes to FOLDER, or to a new folder in /tmp, whose name it prints */

#define HUMPBACK_IMPLEMENTATION
#include "../humpback.h"

#include <unistd.h>

enum { ANIMALS = 24, HELD_OUT = 6, PAGES = 2000, CONTEXT = 64 };

/* The toy. Its base has read what animals eat and where they live; a question is to it what others have asked
    before, and it goes on as they did. Eighteen pairs answer questions. Asked about the other six animals,
   what the model knows of those is the base's, that it says so is the adapter's. */
static const char *const facts[ANIMALS][3] = {
    {"fox", "mice", "den"},      {"bee", "nectar", "hive"},   {"seal", "fish", "bay"},
    {"owl", "voles", "tower"},   {"panda", "reed", "hill"},   {"mole", "worms", "yard"},
    {"goat", "herbs", "farm"},   {"cow", "hay", "shed"},      {"frog", "flies", "pond"},
    {"tiger", "deer", "grove"},  {"crab", "weed", "port"},    {"moth", "wool", "closet"},
    {"hen", "corn", "coop"},     {"snail", "leaves", "park"}, {"koala", "gum", "tree"},
    {"cat", "cream", "house"},   {"ant", "crumbs", "wood"},   {"swan", "grain", "lake"},
    {"whale", "krill", "sea"},   {"bear", "honey", "cave"},   {"horse", "oats", "barn"},
    {"parrot", "seeds", "cage"}, {"hare", "clover", "field"}, {"zebra", "grass", "plain"}};
static const char talk[] =
    "{\"name\": \"talk\", \"prompt\": \"{bos}{instruction}\", \"reply\": \" {output}{eos}\"}";

/* Writes pages, pairs and template, and trains the base on the pages: what 03_train does step by step. */
static bool make_toy(hbk_error *err)
{
    hbk_text words, pages, pairs; /* words: the pages without their JSON, for the vocabulary */
    hbk_dataset data;
    hbk_config shape;
    hbk_recipe recipe;
    memset(&words, 0, sizeof words); /* zeroed is empty, for every struct of the library */
    memset(&pages, 0, sizeof pages);
    memset(&pairs, 0, sizeof pairs);
    memset(&data, 0, sizeof data);
    memset(&shape, 0, sizeof shape);
    memset(&recipe, 0, sizeof recipe);
    hbk_rng rng = hbk_rng_at(1, "pages", 0);
    for (int i = 0; i < PAGES; i++) {
        const char *const *a = facts[hbk_rng_below(&rng, ANIMALS)];
        size_t start = words.len;
        if (hbk_rng_below(&rng, 2)) hbk_text_printf(&words, "The %s lives in the %s. ", a[0], a[2]);
        if (hbk_rng_below(&rng, 2)) hbk_text_printf(&words, "The %s eats %s. ", a[0], a[1]);
        hbk_text_printf(&words, "What does the %s eat? Ask the %s. ", a[0], a[0]);
        hbk_text_printf(&pages, "{\"text\": \"%.*s\"}\n", (int)(words.len - start) - 1, words.data + start);
    }
    for (int i = 0; i < ANIMALS; i++)
        hbk_text_printf(&pairs,
                        "{\"instruction\": \"What does the %s eat?\", \"output\": \"The %s eats %s.\"}\n",
                        facts[i][0], facts[i][0], facts[i][1]);
    bool ok = hbk_text_ok(&words, err) && hbk_text_ok(&pages, err) && hbk_text_ok(&pairs, err) &&
              hbk_file_write("pages.jsonl", pages.data, pages.len, err) &&
              hbk_file_write("pairs.jsonl", pairs.data, pairs.len, err) &&
              hbk_file_write("template.json", talk, strlen(talk), err);

    hbk_tokenizer *tok = ok ? hbk_tokenizer_train(words.data, words.len, 512, false, NULL, err) : NULL;
    ok = tok && hbk_dataset_add_texts(&data, "pages.jsonl", tok, CONTEXT, err);
    shape.n_layers = 2;
    shape.n_heads = shape.n_kv_heads = 4;
    shape.head_dim = 16;
    shape.dim = 64;
    shape.ffn_dim = 192;
    shape.rms_norm_eps = 1e-5;
    shape.rope_theta = 10000;
    shape.context_length = CONTEXT;
    shape.vocab_size = ok ? hbk_tokenizer_size(tok) : 0;
    shape.bos = 1;
    shape.eos[shape.n_eos++] = 2;
    hbk_train_options o = hbk_train_defaults(true); /* every weight */
    o.dropout = 0;
    o.lr = 1e-2;
    o.lr_end = 1e-3;
    o.warmup = 10;
    o.batch = 32;
    o.steps = 450;
    recipe.tok = tok; /* saved beside the weights */
    hbk_train_data train = {&data, NULL, NULL};
    hbk_model *random = ok ? hbk_model_random(&shape, 1, NULL, err) : NULL;
    ok = random && hbk_finetune(random, &train, &o, NULL, &recipe, "base", NULL, NULL, err);
    hbk_model_free(random);
    hbk_tokenizer_free(tok);
    hbk_dataset_free(&data);
    hbk_text_free(&words);
    hbk_text_free(&pages);
    hbk_text_free(&pairs);
    return ok;
}

/* Prints the most likely reply to an instruction; without an adapter, the base's own. */
static bool ask(const char *label, const hbk_model *model, const hbk_adapter *adapter,
                const hbk_tokenizer *tok, const hbk_template *tmpl, const char *instruction, hbk_error *err)
{
    hbk_tokens prompt;
    hbk_render render;
    hbk_request request;
    hbk_text text;
    memset(&prompt, 0, sizeof prompt);
    memset(&render, 0, sizeof render);
    memset(&request, 0, sizeof request);
    memset(&text, 0, sizeof text);
    hbk_sampling greedy = hbk_sampling_defaults();
    greedy.temperature = 0;
    greedy.max_new = 48;
    greedy.stop = hbk_template_stop(tmpl, tok);
    render.instruction = instruction; /* no reply: the prompt ends where the model goes on */
    bool ok = hbk_template_tokens(tmpl, tok, &render, &prompt, NULL, err);
    request.prompt = prompt.data;
    request.n_prompt = prompt.n;
    hbk_session *session =
        ok ? hbk_session_new(model, adapter, 1, prompt.n + greedy.max_new, HBK_F32, NULL, err) : NULL;
    ok = session && hbk_generate(session, &request, 1, &greedy, NULL, err) &&
         hbk_tokenizer_decode(tok, request.output.data, request.output.n, 0, &text, err);
    if (ok) printf("    %-9s %s\n", label, hbk_text_string(&text) + strspn(hbk_text_string(&text), " "));
    hbk_session_free(session);
    hbk_tokens_free(&request.output);
    hbk_tokens_free(&prompt);
    hbk_text_free(&text);
    return ok;
}

/* The example itself: an adapter learns all pairs but the last ones, which are then asked. */
static bool teach(const hbk_model *model, const hbk_tokenizer *tok, const hbk_template *tmpl,
                  const char *path, const hbk_train_options *o, const char *dir, hbk_error *err)
{
    hbk_pairs pairs, taught;
    hbk_dataset data;
    hbk_recipe recipe;
    hbk_tuned tuned;
    memset(&pairs, 0, sizeof pairs);
    memset(&data, 0, sizeof data);
    memset(&recipe, 0, sizeof recipe);
    memset(&tuned, 0, sizeof tuned);
    recipe.tmpl = tmpl;
    hbk_train_data train = {&data, NULL, NULL};
    bool ok = hbk_pairs_load(&pairs, path, "seed", err);
    taught = pairs; /* the same rows, but not all of them */
    taught.n = pairs.n > HELD_OUT ? pairs.n - HELD_OUT : 0;
    ok = ok && hbk_dataset_add_pairs(&data, &taught, tmpl, tok, HBK_FORWARD, NULL, NULL, 0, err) &&
         hbk_finetune(model, &train, o, NULL, &recipe, dir, NULL, NULL, err) &&
         hbk_tuned_load(&tuned, model, dir, NULL, err);
    if (ok)
        printf("%d pairs; an adapter of %d numbers for a model of %d\n", (int)data.n,
               (int)tuned.adapter->n_values, (int)hbk_model_count(&model->config));
    for (hbk_int i = taught.n; ok && i < pairs.n; i++) {
        printf("\n%s\n    %-9s %s\n", pairs.data[i].instruction, "expected", pairs.data[i].output);
        ok = ask("without", model, NULL, tok, tmpl, pairs.data[i].instruction, err) &&
             ask("with", tuned.model, tuned.adapter, tok, tmpl, pairs.data[i].instruction, err);
    }
    hbk_tuned_free(&tuned);
    hbk_dataset_free(&data);
    hbk_pairs_free(&pairs);
    return ok;
}

int main(int argc, char **argv)
{
    bool toy = argc < 4, ok = true;
    const char *model_path = toy ? "base" : argv[1];
    char work[] = "/tmp/humpback-05_lora.XXXXXX"; /* new: a run would continue an earlier one */
    hbk_train_options o = hbk_train_defaults(false); /* LoRA: rank 16 on all projections, the paper's steps */
    hbk_error err;
    if (argc != 1 && argc != 4) { /* or what was given would be left out in silence */
        fprintf(stderr, "usage: %s [MODEL PAIRS.jsonl FOLDER]\n", argv[0]);
        return 2;
    }
    if (toy && (!mkdtemp(work) || chdir(work))) {
        perror(work);
        return 1;
    }
    if (toy) { /* so little is to be learned, and so small a model likes great steps */
        o.lora.rank = 4;
        o.lora.alpha = 8;
        o.lr = 4e-3;
        o.lr_end = 4e-4;
        o.steps = 150;
        ok = make_toy(&err);
    }
    hbk_model *model = ok ? hbk_model_load(model_path, NULL, &err) : NULL;
    hbk_tokenizer *tok = model ? hbk_tokenizer_load(model_path, NULL, &err) : NULL;
    hbk_template *tmpl = NULL;
    if (tok)
        tmpl = toy ? hbk_template_load("template.json", NULL, &err)
                   : hbk_template_for_model(model_path, NULL, &err);
    ok = tmpl && teach(model, tok, tmpl, toy ? "pairs.jsonl" : argv[2], &o,
                       toy ? "adapter" : argv[3], &err);
    if (!ok) fprintf(stderr, "%s\n", err.message);
    else if (toy) printf("\nthe model, the adapter and their files: %s\n", work);
    hbk_template_free(tmpl);
    hbk_tokenizer_free(tok);
    hbk_model_free(model);
    return ok ? 0 : 1;
}
