/* 03_train.c - a LLaMA from nothing: random numbers, a text, and a loop - public domain

   Shows    vocabulary, data set, model, the training loop in seven lines, and a model folder in the end
   Run      build/examples/03_train                           on little stories that it makes up itself
            build/examples/03_train TEXT [FOLDER [STEPS]]     on your own: paragraphs between blank lines
   Prints   what the model says after 0, 20, 80 ... steps, from noise to a story that nobody told it
   Takes    about 10 seconds, for your text, of which a larger model learns, about a minute on two cores;
            writes to FOLDER, by default /tmp/humpback-03_train (then try 02_generate) */

#define HUMPBACK_IMPLEMENTATION
#include "../humpback.h"

enum { CONTEXT = 128, BATCH_TOKENS = 1024, STORIES = 3000 };

/* The stories are simple; a text that people wrote takes a million numbers to learn. */
static const struct size {
    hbk_int vocabulary, layers, heads, head_dim, ffn_dim, steps;
    double lr;
} for_stories = {320, 2, 4, 16, 192, 300, 1e-2}, for_texts = {1024, 3, 5, 32, 426, 1000, 5e-3};

/* One of 327,680 stories; whoever tells it has to remember who met whom, and what was lost. Its seven choices
   are worth ln 327680 = 12.7 nats, 0.21 for each of its 61 tokens: no model can lose less. */
static void tell_story(hbk_text *out, hbk_rng *rng)
{
    static const char *const animals[] = {"whale",  "seal",  "crab",   "gull",
                                          "walrus", "squid", "turtle", "penguin"};
    static const char *const names[] = {"Mila", "Tobo", "Nuri", "Fenn", "Olga", "Pip", "Suki", "Bram"};
    static const char *const places[] = {"the cold sea", "a quiet bay", "the kelp forest", "a harbour"};
    static const char *const hobbies[] = {"sing", "dive", "count the stars", "race the waves", "tell jokes"};
    static const char *const things[] = {"shell", "hat", "drum", "lamp", "kite", "spoon", "map", "bell"};
    static const char *const spots[] = {"under a rock", "behind a boat", "in the sand", "next to a buoy"};
#define PICK(list) list[hbk_rng_below(rng, sizeof list / sizeof *list)]
    const char *name = PICK(names), *other = PICK(animals), *thing = PICK(things), *hobby = PICK(hobbies);
    hbk_text_printf(out, "Once upon a time there was a %s named %s, who lived in %s and loved to %s.",
                    PICK(animals), name, PICK(places), hobby);
    hbk_text_printf(out, " One day %s met a %s. \"I lost my %s,\" said the %s.", name, other, thing, other);
    hbk_text_printf(out, " %s looked for the %s and found it %s. The %s was happy,", name, thing, PICK(spots),
                    other);
    hbk_text_printf(out, " and from that day on the two would %s together.\n\n", hobby);
}

/* Every paragraph as bos, tokens, eos; a long one in pieces that fit the model's context. */
static bool cut_text(hbk_dataset *data, const char *s, const hbk_tokenizer *tok, hbk_error *err)
{
    bool ok = true;
    for (const char *end; ok && *s; s = end + strspn(end, "\r\n")) {
        hbk_tokens ids;
        memset(&ids, 0, sizeof ids);
        end = strstr(s, "\n\n") ? strstr(s, "\n\n") : s + strlen(s);
        hbk_tokens_push(&ids, hbk_tokenizer_bos(tok));
        ok = hbk_tokenizer_encode(tok, s, (size_t)(end - s), 0, &ids, err);
        hbk_tokens_push(&ids, hbk_tokenizer_eos(tok));
        ok = ok && hbk_tokens_ok(&ids, err);
        for (hbk_int at = 0; ok && at + 1 < ids.n; at += CONTEXT) { /* a last token is predicted, not read */
            hbk_int n = ids.n - at < CONTEXT + 1 ? ids.n - at : CONTEXT + 1;
            ok = hbk_dataset_add(data, ids.data + at, n, 1, err);
        }
        hbk_tokens_free(&ids);
    }
    return ok;
}

/* What the model says when all it is told is that a text begins. */
static bool say(hbk_text *out, const hbk_model *model, const hbk_tokenizer *tok, hbk_int max_new,
                hbk_error *err)
{
    int32_t bos = hbk_tokenizer_bos(tok);
    hbk_sampling sampling = hbk_sampling_defaults();
    hbk_request request;
    memset(&request, 0, sizeof request);
    sampling.max_new = max_new;
    request.prompt = &bos;
    request.n_prompt = 1;
    request.rng = hbk_rng_at(1, "say", 0);
    hbk_session *session = hbk_session_new(model, NULL, 1, CONTEXT, HBK_F32, NULL, err);
    hbk_text_clear(out);
    bool ok = session && hbk_generate(session, &request, 1, &sampling, NULL, err) &&
              hbk_tokenizer_decode(tok, request.output.data, request.output.n, 0, out, err);
    hbk_session_free(session);
    hbk_tokens_free(&request.output);
    return ok;
}

static bool train(hbk_trainer *t, const hbk_dataset *data, const hbk_tokenizer *tok, hbk_int steps,
                  double peak, hbk_text *said, hbk_error *err)
{
    hbk_packer packer;
    hbk_rng rng = hbk_rng_at(1, "order", 0);
    double loss;
    bool ok = hbk_packer_init(&packer, BATCH_TOKENS, BATCH_TOKENS, NULL, err);
    for (hbk_int step = 0; ok; step++) {
        hbk_packer_clear(&packer); /* a batch: paragraphs drawn at random, side by side, until it is full */
        while (hbk_packer_add(&packer, data, hbk_rng_below(&rng, data->n))) continue;
        hbk_batch batch = hbk_packer_batch(&packer);
        ok = hbk_trainer_accumulate(t, &batch, 1.0 / (double)packer.n_targets, &loss, err); /* the gradient */
        if (ok && (step == 0 || step == 20 || step == 80 || step >= steps)) {
            ok = say(said, hbk_trainer_model(t), tok, step < steps ? 24 : CONTEXT, err);
            printf("\nstep %-3d  loss %.2f   %s\n", (int)step, loss / (double)packer.n_targets,
                   hbk_text_string(said));
            fflush(stdout);
        }
        if (step >= steps) break;
        double lr = hbk_learning_rate(HBK_COSINE, step + 1, steps, 10, peak, peak / 10);
        ok = ok && hbk_trainer_update(t, lr, NULL, err); /* a small step against it */
    }
    hbk_packer_free(&packer);
    return ok;
}

int main(int argc, char **argv)
{
    const char *dir = argc > 2 ? argv[2] : "/tmp/humpback-03_train";
    hbk_error err;
    hbk_text text, said;
    hbk_dataset data;
    hbk_config shape;
    memset(&text, 0, sizeof text);
    memset(&said, 0, sizeof said);
    memset(&data, 0, sizeof data);
    memset(&shape, 0, sizeof shape);
    const struct size *size = argc < 2 ? &for_stories : &for_texts;
    hbk_rng rng = hbk_rng_at(1, "stories", 0);
    for (int i = 0; argc < 2 && i < STORIES; i++) tell_story(&text, &rng);
    bool ok = (argc < 2 || hbk_file_read(argv[1], (size_t)1 << 30, &text, &err)) && hbk_text_ok(&text, &err);

    if (ok && !text.len)
        ok = hbk_fail(&err, HBK_ERROR_DATA, "%s is empty: there is nothing to learn", argv[1]);
    hbk_tokenizer *tok =
        ok ? hbk_tokenizer_train(text.data, text.len, size->vocabulary, false, NULL, &err) : NULL;
    ok = tok && cut_text(&data, text.data, tok, &err);
    shape.n_layers = size->layers;
    shape.n_heads = shape.n_kv_heads = size->heads;
    shape.head_dim = size->head_dim;
    shape.dim = size->heads * size->head_dim;
    shape.ffn_dim = size->ffn_dim;
    shape.rms_norm_eps = 1e-5;
    shape.rope_theta = 10000;
    shape.context_length = CONTEXT;
    shape.vocab_size = ok ? hbk_tokenizer_size(tok) : 0;
    shape.bos = 1; /* as hbk_tokenizer_train numbers them */
    shape.eos[shape.n_eos++] = 2;
    hbk_model *model = ok ? hbk_model_random(&shape, 1, NULL, &err) : NULL;
    hbk_train_options o = hbk_train_defaults(true); /* every weight learns */
    o.dropout = 0;
    hbk_trainer *t = model ? hbk_trainer_new(model, &o, NULL, BATCH_TOKENS, CONTEXT, NULL, &err) : NULL;
    if (t)
        printf("%d paragraphs, %d tokens; a model of %d numbers\n", (int)data.n, (int)data.tokens.n,
               (int)hbk_model_count(&shape));
    ok = t && train(t, &data, tok, argc > 3 ? atoi(argv[3]) : size->steps, size->lr, &said, &err) &&
         hbk_model_save(hbk_trainer_model(t), dir, HBK_F32, &err) && hbk_tokenizer_save(tok, dir, &err);
    if (ok && !strstr(text.data, hbk_text_string(&said))) printf("\nThat story is not in the text.\n");
    if (ok)
        printf("\nThe model is in %s\n", dir);
    else
        fprintf(stderr, "%s\n", err.message);
    hbk_trainer_free(t);
    hbk_model_free(model);
    hbk_tokenizer_free(tok);
    hbk_dataset_free(&data);
    hbk_text_free(&text);
    hbk_text_free(&said);
    return ok ? 0 : 1;
}
