/* Chapter 15: pairs from files, examples as tokens, packing. */

static void t15_file(char path[512], const char *name, const char *content)
{
    hbk_error err;
    test_tmp(path, name);
    check_ok(hbk_file_write(path, content, strlen(content), &err));
}

/* Promise: rows become pairs with their id, source and score, defaults where they have none. */
static void t15_pairs_load(void **state)
{
    (void)state;
    hbk_error err;
    char path[512];
    t15_file(path, "t15_pairs.jsonl",
             "{\"id\": \"x\", \"instruction\": \"a\", \"output\": \"b\", \"source\": \"aug\","
             " \"score\": 4.5}\n"
             "\n"
             "{\"instruction\": \"c\", \"output\": \"d \\u00e9\\n\", \"input\": \"\", \"score\": null}\r\n"
             "{\"id\": 12, \"instruction\": \"e\", \"output\": \"f\", \"source\": \"somewhere\"}\n");
    hbk_pairs p;
    memset(&p, 0, sizeof p);
    check_ok(hbk_pairs_add(&p, "0", "q", "r", "seed", (double)NAN, &err));
    check_ok(hbk_pairs_load(&p, path, "seed", &err));
    assert_int_equal(p.n, 4);
    assert_string_equal(p.data[1].id, "x");
    assert_string_equal(p.data[1].source, "aug");
    assert_true(p.data[1].score == 4.5);
    assert_string_equal(p.data[2].id, "row-3");
    assert_string_equal(p.data[2].source, "seed");
    assert_string_equal(p.data[2].output, "d \xc3\xa9\n");
    assert_true(isnan(p.data[2].score));
    assert_string_equal(p.data[3].id, "12");
    assert_string_equal(p.data[3].source, "seed");
    hbk_pairs_free(&p);
    assert_int_equal(p.n, 0);
}

/* Promise: a bad row is named by file, line and field, and the pairs stay as they were. */
static void t15_pairs_errors(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"{\"output\": \"b\"}", ":2: the key \"instruction\" is missing"},
        {"{\"instruction\": \"a\"}", ":2: the key \"output\" is missing"},
        {"{\"instruction\": \"a\", \"output\": 3}", ":2: the value of \"output\" is no string"},
        {"{\"instruction\": \"a\", \"output\": \" \\n\"}", ":2: \"output\" is empty"},
        {"{\"instruction\": \"\", \"output\": \"b\"}", ":2: \"instruction\" is empty"},
        {"{\"instruction\": \"a\", \"output\": \"b\\u0000c\"}", ":2: \"output\" holds a NUL"},
        {"{\"instruction\": \"a\", \"output\": \"b\", \"input\": \"c\"}", ":2: \"input\""},
        {"{\"instruction\": \"a\", \"output\": \"b\", \"input\": 4}", ":2: the value of \"input\" is no"},
        {"{\"instruction\": \"a\", \"output\": \"b\", \"score\": \"5\"}", ":2: \"score\" is no number"},
        {"{\"instruction\": \"a\", \"output\": \"b\", \"id\": \"\"}", ":2: \"id\" has 0 bytes"},
        {"{\"instruction\": \"a\", \"output\": \"b\", \"id\": []}", ":2: \"id\" is neither"},
        {"{\"instruction\": \"a\", \"output\": ", ":2: "},
    };
    hbk_pairs p;
    memset(&p, 0, sizeof p);
    hbk_error err;
    check_ok(hbk_pairs_add(&p, "0", "q", "r", "seed", 5, &err));
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char path[512], content[256];
        snprintf(content, sizeof content, "{\"instruction\": \"a\", \"output\": \"b\"}\n%s\n", cases[i][0]);
        t15_file(path, "t15_bad.jsonl", content);
        memset(&err, 0, sizeof err);
        assert_false(hbk_pairs_load(&p, path, "seed", &err));
        if (!strstr(err.message, "t15_bad.jsonl") || !strstr(err.message, cases[i][1]) || err.line != 2)
            fail_msg("case %d: line %d, %s", (int)i, (int)err.line, err.message);
        assert_int_equal(p.n, 1);
    }
    assert_string_equal(p.data[0].output, "r");
    hbk_pairs_free(&p);
}

/* The example's prompt as text. */
static void t15_prompt(hbk_text *out, const hbk_dataset *d, const hbk_tokenizer *tok, hbk_int i, bool target)
{
    hbk_error err;
    const int32_t *ids = d->tokens.data + d->start[i];
    hbk_int n = d->start[i + 1] - d->start[i], p = n - hbk_dataset_targets(d, i);
    hbk_text_clear(out);
    check_ok(hbk_tokenizer_decode(tok, target ? ids + p : ids, target ? n - p : p, 0, out, &err));
}

/* Promise: seed pairs carry the seed tag and augmented ones the web tag, never swapped, in the prompt and not
   in the target; backward examples carry none and have prompt and target exchanged. */
static void t15_tags_by_source(void **state)
{
    (void)state;
    hbk_error err;
    hbk_pairs p;
    memset(&p, 0, sizeof p);
    check_ok(hbk_pairs_add(&p, "1", "first ask", "first body", "seed", 5, &err));
    check_ok(hbk_pairs_add(&p, "2", "second ask", "second body", "aug", 5, &err));
    check_ok(hbk_pairs_add(&p, "3", "third ask", "third body", "other", 5, &err));
    hbk_tokenizer *tok = t14_bytes();
    hbk_template *t = hbk_template_load("llama2", NULL, &err);
    hbk_dataset d;
    memset(&d, 0, sizeof d);
    check_ok(hbk_dataset_add_pairs(&d, &p, t, tok, HBK_FORWARD, HBK_TAG_SEED, HBK_TAG_WEB, 0, &err));
    check_ok(hbk_dataset_add_pairs(&d, &p, t, tok, HBK_BACKWARD, HBK_TAG_SEED, HBK_TAG_WEB, 0, &err));
    assert_int_equal(d.n, 6);
    static const char *const prompts[3] = {"[INST] first ask Answer in the style of an AI Assistant. [/INST]",
                                           "[INST] second ask Answer with knowledge from web search. [/INST]",
                                           "[INST] third ask [/INST]"};
    static const char *const bodies[3] = {"first body", "second body", "third body"};
    static const char *const asks[3] = {"first ask", "second ask", "third ask"};
    hbk_text text;
    memset(&text, 0, sizeof text);
    for (int i = 0; i < 3; i++) {
        t15_prompt(&text, &d, tok, i, false);
        assert_string_equal(hbk_text_string(&text), prompts[i]);
        t15_prompt(&text, &d, tok, i, true);
        assert_non_null(strstr(hbk_text_string(&text), bodies[i]));
        assert_null(strstr(hbk_text_string(&text), "Answer"));
        t15_prompt(&text, &d, tok, 3 + i, false);
        assert_non_null(strstr(hbk_text_string(&text), bodies[i]));
        assert_null(strstr(hbk_text_string(&text), asks[i]));
        assert_null(strstr(hbk_text_string(&text), "AI Assistant"));
        t15_prompt(&text, &d, tok, 3 + i, true);
        assert_non_null(strstr(hbk_text_string(&text), asks[i]));
    }
    hbk_text_free(&text);
    hbk_dataset_free(&d);
    hbk_template_free(t);
    hbk_tokenizer_free(tok);
    hbk_pairs_free(&p);
}

/* Promise: token j predicts token j+1 from the first token of the target on; the last one is not fed; a batch
   that is full stays as it is. */
static void t15_packing(void **state)
{
    (void)state;
    hbk_error err;
    hbk_dataset d;
    memset(&d, 0, sizeof d);
    static const int32_t a[] = {1, 11, 12, 21, 22, 2}, b[] = {1, 31, 2}, c[] = {41, 42};
    check_ok(hbk_dataset_add(&d, a, 6, 3, &err));
    check_ok(hbk_dataset_add(&d, b, 3, 1, &err));
    check_ok(hbk_dataset_add(&d, c, 2, 0, &err));
    assert_int_equal(d.max_length, 6);
    check_error(hbk_dataset_add(&d, a, 6, 6, &err), HBK_ERROR_RANGE, "no token to learn");
    check_error(hbk_dataset_add(&d, a, 1, 0, &err), HBK_ERROR_RANGE, "no token to learn");
    assert_int_equal(d.n, 3);

    hbk_packer p;
    check_ok(hbk_packer_init(&p, 8, 3, NULL, &err));
    for (int round = 0; round < 2; round++) {
        hbk_packer_clear(&p);
        for (int i = 0; i < 3; i++) assert_true(hbk_packer_add(&p, &d, i));
        assert_false(hbk_packer_add(&p, &d, 2)); /* three sequences are enough */
        hbk_batch batch = hbk_packer_batch(&p);
        static const int32_t tokens[] = {1, 11, 12, 21, 22, 1, 31, 41};
        static const int32_t targets[] = {-1, -1, 21, 22, 2, 31, 2, 42};
        static const hbk_int starts[] = {0, 5, 7, 8};
        assert_int_equal(batch.n_tokens, 8);
        assert_int_equal(batch.n_seqs, 3);
        assert_memory_equal(batch.tokens, tokens, sizeof tokens);
        assert_memory_equal(batch.targets, targets, sizeof targets);
        assert_memory_equal(batch.seq_start, starts, sizeof starts);
        assert_int_equal(p.n_targets, 6);
    }
    hbk_packer_free(&p);
    check_ok(hbk_packer_init(&p, 6, 9, NULL, &err));
    assert_true(hbk_packer_add(&p, &d, 0));
    assert_false(hbk_packer_add(&p, &d, 1)); /* two tokens, one place */
    assert_int_equal(p.n_tokens, 5);
    assert_int_equal(p.n_targets, 3);
    assert_true(hbk_packer_add(&p, &d, 2));
    hbk_packer_free(&p);
    check_error(hbk_packer_init(&p, 0, 1, NULL, &err), HBK_ERROR_RANGE, "cannot hold");
    hbk_dataset_free(&d);
}

/* Promise: what is longer than the limit is left out whole and counted. */
static void t15_too_long(void **state)
{
    (void)state;
    hbk_error err;
    hbk_pairs p;
    memset(&p, 0, sizeof p);
    check_ok(hbk_pairs_add(&p, "1", "ask", "b", "seed", 5, &err));
    check_ok(hbk_pairs_add(&p, "2", "ask", "b b", "seed", 5, &err));
    hbk_tokenizer *tok = t14_bytes();
    hbk_template *t = hbk_template_load("plain", NULL, &err);
    hbk_dataset d;
    memset(&d, 0, sizeof d);
    check_ok(hbk_dataset_add_pairs(&d, &p, t, tok, HBK_FORWARD, NULL, NULL, 0, &err));
    hbk_int shorter = d.start[1], longer = d.max_length;
    assert_true(shorter < longer);
    hbk_dataset_free(&d);
    for (hbk_int most = shorter - 1; most <= longer; most++) {
        check_ok(hbk_dataset_add_pairs(&d, &p, t, tok, HBK_FORWARD, NULL, NULL, most, &err));
        assert_int_equal(d.n, (most >= shorter) + (most >= longer));
        assert_int_equal(d.n_too_long, 2 - d.n);
        hbk_dataset_free(&d);
    }
    hbk_template_free(t);
    hbk_tokenizer_free(tok);
    hbk_pairs_free(&p);
}

/* Promise: a raw document is bos, its text, eos, with loss on all but bos; special tokens in it stay text. */
static void t15_texts(void **state)
{
    (void)state;
    hbk_error err;
    char path[512];
    t15_file(path, "t15_texts.jsonl",
             "{\"text\": \"the cat\"}\n{\"instruction\": \"x\", \"text\": \"a</s>b\"}\n");
    hbk_tokenizer *tok = t14_bytes();
    hbk_dataset d;
    memset(&d, 0, sizeof d);
    check_ok(hbk_dataset_add_texts(&d, path, tok, 0, &err));
    assert_true(d.n == 2 && d.line[0] == 1 && d.line[1] == 2);
    hbk_tokens ids;
    memset(&ids, 0, sizeof ids);
    check_ok(hbk_tokenizer_encode(tok, "the cat", 7, 0, &ids, &err));
    assert_int_equal(d.start[1], ids.n + 2);
    assert_int_equal(d.tokens.data[0], hbk_tokenizer_bos(tok));
    assert_memory_equal(d.tokens.data + 1, ids.data, sizeof(int32_t) * (size_t)ids.n);
    assert_int_equal(d.tokens.data[d.start[1] - 1], hbk_tokenizer_eos(tok));
    assert_int_equal(hbk_dataset_targets(&d, 0), d.start[1] - 1);
    assert_int_equal(t14_count(&d.tokens, hbk_tokenizer_eos(tok)), 2);
    hbk_tokens_free(&ids);

    t15_file(path, "t15_texts.jsonl", "{\"text\": \"the cat\"}\n{\"txt\": \"a\"}\n");
    check_error(hbk_dataset_add_texts(&d, path, tok, 0, &err), HBK_ERROR_FORMAT,
                ":2: the key \"text\" is missing");
    assert_int_equal(d.n, 2); /* as before: the first row of the bad file is gone again */
    assert_int_equal(d.start[2], d.tokens.n);
    hbk_dataset_free(&d);
    hbk_tokenizer_free(tok);
}

/* 30 examples {i, i+100, i+200} whose second or third id is learned. */
static hbk_dataset t15_thirty(void)
{
    hbk_error err;
    hbk_dataset d;
    memset(&d, 0, sizeof d);
    for (int32_t i = 0; i < 30; i++) {
        int32_t ids[3] = {i, i + 100, i + 200};
        unsigned char learn[3] = {0, i % 2 == 0, i % 2 == 1};
        check_ok(hbk_dataset_add_masked(&d, ids, learn, 3, &err));
        assert_int_equal(d.line[i], 0);
        d.line[i] = i + 7;
    }
    return d;
}

/* Promise: a split moves the share that was asked for, loses and doubles nothing, keeps masks, lines and
   order, and holds out the same for the same seed, and other examples for another. */
static void t15_split(void **state)
{
    (void)state;
    hbk_error err;
    int32_t out[3][3];
    for (int round = 0; round < 3; round++) {
        hbk_dataset d = t15_thirty(), held;
        memset(&held, 0, sizeof held);
        check_ok(hbk_dataset_split(&d, &held, 0.1, round < 2 ? 7 : 8, &err));
        assert_int_equal(d.n, 27);
        assert_int_equal(held.n, 3);
        bool seen[30] = {false};
        for (int k = 0; k < 2; k++) {
            const hbk_dataset *x = k ? &held : &d;
            assert_int_equal(x->n_targets, x->n);
            for (hbk_int i = 0; i < x->n; i++) {
                const int32_t *ids = x->tokens.data + x->start[i];
                const unsigned char *learn = x->learn + x->start[i];
                assert_false(seen[ids[0]]);
                seen[ids[0]] = true;
                assert_true(i == 0 || ids[0] > ids[-3]);
                assert_int_equal(ids[2], ids[0] + 200);
                assert_int_equal(x->line[i], ids[0] + 7);
                assert_true(learn[1 + ids[0] % 2] && !learn[2 - ids[0] % 2]);
                if (k) out[round][i] = ids[0];
            }
        }
        hbk_dataset_free(&d);
        hbk_dataset_free(&held);
    }
    assert_memory_equal(out[0], out[1], sizeof out[0]);
    assert_memory_not_equal(out[0], out[2], sizeof out[0]);
    hbk_dataset none, held;
    memset(&none, 0, sizeof none);
    memset(&held, 0, sizeof held);
    check_error(hbk_dataset_split(&none, &held, 0.5, 1, &err), HBK_ERROR_DATA, "at least two");
}

/* What the examples of a file teach, one line each: the learned tokens' text, with $ for eos. */
static void t15_learned(hbk_text *out, const hbk_dataset *d, const hbk_tokenizer *tok)
{
    hbk_error err;
    hbk_text_clear(out);
    for (hbk_int i = 0; i < d->n; i++) {
        for (hbk_int k = d->start[i]; k < d->start[i + 1]; k++) {
            if (!d->learn[k]) continue;
            if (d->tokens.data[k] == hbk_tokenizer_eos(tok))
                hbk_text_add(out, "$");
            else
                check_ok(hbk_tokenizer_decode(tok, d->tokens.data + k, 1, HBK_ENCODE_CONTINUE, out, &err));
        }
        hbk_text_add(out, "\n");
    }
    check_ok(hbk_text_ok(out, &err));
}

/* Rows of every form, what they teach, and what a backward model learns of them. */
static const struct {
    hbk_form form;
    const char *rows, *learned, *reversed; /* reversed NULL: cannot be */
} t15_examples[] = {
    {HBK_FORM_PAIRS, "{\"instruction\": \"i\", \"input\": \"x\", \"output\": \"out\"}\n", "out$\n",
     "i\n\nx$\n"},
    {HBK_FORM_PAIRS, /* the template's own words in the texts: the mask is not found by them */
     "{\"instruction\": \"Response:\\n\", \"output\": \"a\\n\\nResponse:\\nInstruction:\\nb\"}",
     "a\n\nResponse:\nInstruction:\nb$\n", "Response:\n$\n"},
    {HBK_FORM_MESSAGES,
     "{\"messages\": [{\"role\": \"user\", \"content\": \"q1\"}, {\"role\": \"assistant\", \"content\": "
     "\"a1\"},"
     "{\"role\": \"user\", \"content\": \"q2\"}, {\"role\": \"assistant\", \"content\": \"a2\"}]}\n"
     "{\"messages\": [{\"role\": \"user\", \"content\": \"q3\"}, {\"role\": \"assistant\", \"content\": "
     "\"a3\", "
     "\"weight\": 0}, {\"role\": \"user\", \"content\": \"q4\"}, {\"role\": \"assistant\", \"content\": "
     "\"a4\"}]}\n",
     "a1$a2$\na4$\n", "q1$\nq3$\n"},
    {HBK_FORM_SHAREGPT,
     "[{\"conversations\": [{\"from\": \"human\", \"value\": \"q\"}, {\"from\": \"gpt\", \"value\": "
     "\"a\"},"
     "{\"from\": \"human\", \"value\": \"bye\"}]}]",
     "a$\n", "q$\n"},
    {HBK_FORM_COMPLETION, "{\"prompt\": \"ab\", \"completion\": \"cd</s>\"}", "cd</s>$\n", NULL},
    {HBK_FORM_COMPLETION, /* lists: the words of a conversation, of which the prompt is not learned */
     "{\"prompt\": [{\"role\": \"user\", \"content\": \"q1\"}, {\"role\": \"assistant\", \"content\": "
     "\"a1\"}, {\"role\": \"user\", \"content\": \"q2\"}],"
     "\"completion\": [{\"role\": \"assistant\", \"content\": \"a2\"}]}",
     "a2$\n", "q1$\n"},
    {HBK_FORM_TEXT, "{\"text\": \"all of it\"}", " all of it$\n", NULL},
    {HBK_FORM_OASST,
     "{\"prompt\": {\"text\": \"q\", \"replies\": [{\"text\": \"worse\", \"rank\": 1}, {\"text\": "
     "\"best\", "
     "\"rank\": 0, \"replies\": [{\"text\": \"more\", \"replies\": [{\"text\": \"unranked\"}]}]}]}}\n"
     "{\"prompt\": {\"text\": \"q\", \"replies\": [{\"text\": \"unranked\", \"rank\": null}]}}",
     "best$\n", "q$\n"},
};

/* Promise: every form of public data teaches its replies with their endings, nothing else: of every turn that
   counts, of the reply ranked first, of the completion, of the whole text. */
static void t15_forms(void **state)
{
    (void)state;
    hbk_tokenizer *tok = t14_bytes();
    hbk_template *plain = hbk_template_load("plain", NULL, NULL);
    hbk_text learned = {NULL, NULL, 0, 0, false};
    for (size_t i = 0; i < sizeof t15_examples / sizeof *t15_examples; i++)
        for (int back = 0; back < 2; back++) {
            hbk_error err;
            hbk_form form = HBK_FORM_COUNT;
            hbk_dataset d;
            hbk_data_options o;
            char path[512];
            memset(&d, 0, sizeof d);
            memset(&o, 0, sizeof o);
            o.tmpl = plain;
            o.tok = tok;
            o.use = back ? HBK_BACKWARD : HBK_FORWARD;
            t15_file(path, "t15_forms.jsonl", t15_examples[i].rows);
            if (back && !t15_examples[i].reversed) {
                check_error(hbk_dataset_add_file(&d, path, &o, &form, &err), HBK_ERROR_OPTION,
                            "no instruction that a backward model could learn");
            } else {
                check_ok(hbk_dataset_add_file(&d, path, &o, &form, &err));
                assert_int_equal(form, t15_examples[i].form);
                t15_learned(&learned, &d, tok);
                assert_string_equal(learned.data, back ? t15_examples[i].reversed : t15_examples[i].learned);
                assert_int_equal(d.n_no_target, form == HBK_FORM_OASST);
            }
            hbk_dataset_free(&d);
        }
    hbk_text_free(&learned);
    hbk_template_free(plain);
    hbk_tokenizer_free(tok);
}

/* Promise: a conversation is tokenised as the first exchange and, from each ending on, the template's "next"
   prompt say: what a chat holds after the same turns. */
static void t15_dialog(void **state)
{
    (void)state;
    static const char *const names[] = {"plain", "llama2"};
    static const hbk_turn turns[] = {{HBK_USER, false, "one"},   {HBK_ASSISTANT, true, "two"},
                                     {HBK_USER, false, "three"}, {HBK_ASSISTANT, true, "four"},
                                     {HBK_USER, false, "five"},  {HBK_ASSISTANT, true, "six"}};
    hbk_tokenizer *tok = t14_bytes();
    for (int k = 0; k < 2; k++) {
        hbk_error err;
        hbk_template *t = hbk_template_load(names[k], NULL, &err);
        hbk_tokens all = {NULL, NULL, 0, 0, false}, chat = {NULL, NULL, 0, 0, false};
        hbk_text learn = {NULL, NULL, 0, 0, false};
        check_ok(hbk_template_dialog(t, tok, turns, 6, "tag", &all, &learn, &err));
        assert_int_equal(learn.len, all.n);
        for (int i = 0; i < 6; i += 2) { /* a chat: the prompt, the model's reply, the next prompt */
            hbk_render r;
            hbk_int n_prompt;
            memset(&r, 0, sizeof r);
            r.use = i ? HBK_NEXT : HBK_FORWARD;
            r.instruction = turns[i].text;
            r.tag = "tag";
            r.reply = turns[i + 1].text;
            check_ok(hbk_template_tokens(t, tok, &r, &chat, &n_prompt, &err));
            assert_int_equal(chat.data[chat.n - 1], hbk_tokenizer_eos(tok));
            if (i < 4) chat.n--; /* eos comes with the next prompt */
        }
        for (hbk_int i = chat.n - 1; k && i > 0; i--) /* in llama2's behind a blank, which is not learned */
            if (chat.data[i] == hbk_tokenizer_bos(tok)) {
                memmove(chat.data + i - 2, chat.data + i - 1, sizeof *chat.data * (size_t)(chat.n - i + 1));
                chat.n--;
                i--;
            }
        assert_int_equal(all.n, chat.n);
        assert_memory_equal(all.data, chat.data, sizeof *all.data * (size_t)all.n);
        hbk_int bos = t14_count(&all, hbk_tokenizer_bos(tok));
        assert_int_equal(bos, k ? 3 : 1);
        assert_int_equal(t14_count(&all, hbk_tokenizer_eos(tok)), 3);
        check_error(hbk_template_dialog(t, tok, turns + 1, 2, NULL, &all, &learn, &err), HBK_ERROR_DATA,
                    "turn 1 is the assistant's, expected the user's");
        check_error(hbk_template_dialog(t, tok, turns, 1, NULL, &all, &learn, &err), HBK_ERROR_DATA,
                    "no reply");
        assert_int_equal(all.n, chat.n);
        hbk_tokens_free(&all);
        hbk_tokens_free(&chat);
        hbk_text_free(&learn);
        hbk_template_free(t);
    }
    hbk_tokenizer_free(tok);
}

/* Files whose last row, or lack of one, is an error. */
static const struct {
    const char *rows, *message;
    hbk_code code;
} t15_wrong_rows[] = {
    {"{\"a\": 1, \"b\": 2}", ":1: is of no form that is known: its keys are \"a\", \"b\", expected",
     HBK_ERROR_UNSUPPORTED},
    {"a,b", ":1: line 1 is no JSON: ", HBK_ERROR_FORMAT},
    {"a,b", "; expected an object {...} on each line", HBK_ERROR_FORMAT},
    {"[{\"text\": \"a\"},\n{\"text\":\n\"\"}]",
     ":2: \"text\" is empty: remove the row or fill it in (2 counts the rows of its array, not lines)",
     HBK_ERROR_DATA},
    {"{\"prompt\": [{\"role\": \"user\", \"content\": \"q\"}], \"completion\": \"a\"}",
     ":1: \"completion\" is no list of turns", HBK_ERROR_DATA},
    {"{\"text\": \"x\"}\n{\"prompt\": \"a\", \"completion\": \"b\"}",
     ":2: the file's first row is of form text", HBK_ERROR_FORMAT},
    {"{\"messages\": []}", ":1: \"messages\" is no list of turns", HBK_ERROR_DATA},
    {"{\"messages\": [{\"role\": \"tool\", \"content\": \"x\"}]}", "turn 1 is of \"tool\"",
     HBK_ERROR_UNSUPPORTED},
    {"{\"messages\": [{\"role\": \"user\", \"content\": \" \"}]}", ":1: \"content\" is empty",
     HBK_ERROR_DATA},
    {"{\"messages\": [{\"role\": \"user\", \"content\": \"x\", \"weight\": 0.5}]}", "neither 0 nor 1",
     HBK_ERROR_DATA},
    {"{\"messages\": [{\"role\": \"assistant\", \"content\": \"x\"}]}", ":1: turn 1 is the assistant's",
     HBK_ERROR_DATA},
    {"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}", ":1: the conversation has no reply",
     HBK_ERROR_DATA},
    {"", "holds no rows", HBK_ERROR_DATA},
    {"{\"messages\": [{\"role\": \"system\", \"content\": \"x\"}, {\"role\": \"user\", \"content\": "
     "\"x\"}]}",
     ":1: template plain has no place for a system text", HBK_ERROR_UNSUPPORTED},
    {"{\"instruction\": \"x\", \"output\": \"\"}", ":1: \"output\" is empty", HBK_ERROR_DATA},
    {"{\"instruction\": \"Double it.\", \"input\": 4, \"output\": \"8\"}",
     ":1: the value of \"input\" is no string", HBK_ERROR_FORMAT},
    {"{\"instruction\": \"x\", \"input\": \"y\\u0000y\", \"output\": \"z\"}",
     ":1: \"input\" holds a NUL character", HBK_ERROR_DATA},
    {"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}, {\"role\": \"assistant\", \"content\": "
     "\"x\", "
     "\"weight\": 0}]}",
     "1 have no reply with loss", HBK_ERROR_DATA},
};

/* Promise: rows that cannot be learned from are errors with file and line, before anything is added. */
static void t15_form_errors(void **state)
{
    (void)state;
    hbk_tokenizer *tok = t14_bytes();
    hbk_template *plain = hbk_template_load("plain", NULL, NULL);
    hbk_error err;
    hbk_dataset d;
    hbk_data_options o;
    char path[512];
    memset(&d, 0, sizeof d);
    memset(&o, 0, sizeof o);
    o.tmpl = plain;
    o.tok = tok;
    for (size_t i = 0; i < sizeof t15_wrong_rows / sizeof *t15_wrong_rows; i++) {
        t15_file(path, "t15_wrong.jsonl", t15_wrong_rows[i].rows);
        check_error(hbk_dataset_add_file(&d, path, &o, NULL, &err), t15_wrong_rows[i].code,
                    t15_wrong_rows[i].message);
        assert_int_equal(d.n + d.tokens.n + d.n_no_target, 0);
    }
    hbk_dataset_free(&d);
    hbk_template_free(plain);
    hbk_tokenizer_free(tok);
}

/* Promise: what is too long is left out, cut or refused as asked, and counted. */
static void t15_overlong(void **state)
{
    (void)state;
    hbk_tokenizer *tok = t14_bytes();
    hbk_template *plain = hbk_template_load("plain", NULL, NULL);
    hbk_error err;
    hbk_dataset d;
    hbk_data_options o;
    char path[512];
    memset(&d, 0, sizeof d);
    memset(&o, 0, sizeof o);
    o.tmpl = plain;
    o.tok = tok;
    t15_file(path, "t15_long.jsonl", "{\"text\": \"abcdefghij\"}\n{\"text\": \"abc\"}");
    for (int way = 0; way < 3; way++) {
        o.max_length = 8;
        o.overlong = (hbk_overlong)way;
        if (way == HBK_OVERLONG_ERROR)
            check_error(hbk_dataset_add_file(&d, path, &o, NULL, &err), HBK_ERROR_RANGE,
                        "13 tokens, more than 8");
        else
            check_ok(hbk_dataset_add_file(&d, path, &o, NULL, &err));
        if (way == HBK_OVERLONG_DROP)
            assert_true(d.n == 1 && d.n_too_long == 1 && d.n_cut == 0 && d.line[0] == 2);
        if (way == HBK_OVERLONG_CUT) {
            assert_true(d.n == 2 && d.n_too_long == 0 && d.n_cut == 1 && d.start[1] == 8);
            assert_true(d.tokens.data[7] != hbk_tokenizer_eos(tok));
        }
        hbk_dataset_free(&d);
    }
    o.overlong = HBK_OVERLONG_CUT; /* what is left of the first is prompt alone */
    t15_file(path, "t15_long.jsonl",
             "{\"prompt\": \"abcdefghij\", \"completion\": \"k\"}\n"
             "{\"prompt\": \"a\", \"completion\": \"b\"}");
    check_ok(hbk_dataset_add_file(&d, path, &o, NULL, &err));
    assert_true(d.n == 1 && d.n_no_target == 1 && d.n_cut == 0 && d.line[0] == 2);
    hbk_dataset_free(&d);
    hbk_template_free(plain);
    hbk_tokenizer_free(tok);
}

typedef struct t15_inputs {
    char path[512];
    hbk_tokenizer *tok;
    hbk_template *t;
} t15_inputs;

static bool t15_use_pairs(void *ctx, hbk_allocator *a, hbk_error *err)
{
    const t15_inputs *in = (const t15_inputs *)ctx;
    hbk_pairs p;
    hbk_dataset d;
    hbk_packer k;
    memset(&p, 0, sizeof p);
    memset(&d, 0, sizeof d);
    memset(&k, 0, sizeof k);
    p.alloc = d.alloc = a;
    bool loaded = hbk_pairs_load(&p, in->path, "seed", err);
    assert_int_equal(p.n, loaded ? 2 : 0);
    bool added = loaded && hbk_dataset_add_pairs(&d, &p, in->t, in->tok, HBK_FORWARD, NULL, NULL, 0, err);
    assert_int_equal(d.n, added ? 2 : 0);
    assert_int_equal(d.tokens.n, added ? d.start[2] : 0);
    bool more = added && hbk_dataset_add_texts(&d, in->path, in->tok, 0, err);
    assert_int_equal(d.n, more ? 4 : added ? 2 : 0);
    hbk_data_options o;
    memset(&o, 0, sizeof o);
    o.tmpl = in->t;
    o.tok = in->tok;
    more = more && hbk_dataset_add_file(&d, in->path, &o, NULL, err);
    assert_int_equal(d.n, more ? 6 : d.n > 2 ? 4 : d.n);
    bool ok = more && hbk_packer_init(&k, 64, 2, a, err);
    hbk_packer_free(&k);
    hbk_dataset_free(&d);
    hbk_pairs_free(&p);
    return ok;
}

/* Promise: whichever allocation fails, the error is memory, nothing leaks and what was there before stays. */
static void t15_memory_runs_out(void **state)
{
    (void)state;
    t15_inputs in;
    t15_file(in.path, "t15_memory.jsonl",
             "{\"instruction\": \"a\", \"output\": \"b\", \"text\": \"e\"}\n"
             "{\"instruction\": \"c\", \"output\": \"d\", \"text\": \"f\"}\n");
    in.tok = t14_bytes();
    in.t = hbk_template_load("plain", NULL, NULL);
    assert_true(fault_sweep(t15_use_pairs, &in) > 8);
    hbk_template_free(in.t);
    hbk_tokenizer_free(in.tok);
}

static const struct CMUnitTest tests_15[] = {
    cmocka_unit_test(t15_pairs_load),      cmocka_unit_test(t15_pairs_errors),
    cmocka_unit_test(t15_tags_by_source),  cmocka_unit_test(t15_packing),
    cmocka_unit_test(t15_too_long),        cmocka_unit_test(t15_texts),
    cmocka_unit_test(t15_split),           cmocka_unit_test(t15_forms),
    cmocka_unit_test(t15_dialog),          cmocka_unit_test(t15_form_errors),
    cmocka_unit_test(t15_overlong),
    cmocka_unit_test(t15_memory_runs_out),
};
