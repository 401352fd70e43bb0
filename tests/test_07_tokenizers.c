/* Chapter 7: tokenizers. */
#include <time.h>
#include "fault.h"

/* ---- helpers */

static void t07_write(char path[512], const char *name, const void *data, size_t n)
{
    test_tmp(path, name);
    assert_true(hbk_file_write(path, data, n, NULL));
}

static hbk_tokenizer *t07_json(const char *text)
{
    char path[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    t07_write(path, "t07.json", text, strlen(text));
    hbk_tokenizer *t = hbk_tokenizer_load(path, NULL, &err);
    if (!t) fail_msg("%s", err.message);
    return t;
}

/* Fails unless `text` becomes exactly the n ids. */
static void t07_expect(const hbk_tokenizer *t, const char *text, size_t len, unsigned flags,
                       const int32_t *ids, hbk_int n)
{
    hbk_tokens got = {NULL, NULL, 0, 0, false};
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    check_ok(hbk_tokenizer_encode(t, text, len, flags, &got, &err));
    bool same = got.n == n && (n == 0 || memcmp(got.data, ids, (size_t)n * sizeof *ids) == 0);
    if (!same) {
        hbk_text line = {NULL, NULL, 0, 0, false};
        for (hbk_int i = 0; i < got.n; i++) hbk_text_printf(&line, " %d", (int)got.data[i]);
        hbk_text_add(&line, ", expected");
        for (hbk_int i = 0; i < n; i++) hbk_text_printf(&line, " %d", (int)ids[i]);
        print_message("'%.*s' became%s\n", (int)len, text, hbk_text_string(&line));
        hbk_text_free(&line);
        fail();
    }
    hbk_tokens_free(&got);
}

/* The same with the pieces spelled, one space between two. */
static void t07_pieces(const hbk_tokenizer *t, const char *text, unsigned flags, const char *pieces)
{
    hbk_tokens got = {NULL, NULL, 0, 0, false};
    hbk_text line = {NULL, NULL, 0, 0, false};
    assert_true(hbk_tokenizer_encode(t, text, strlen(text), flags, &got, NULL));
    for (hbk_int i = 0; i < got.n; i++) {
        hbk_text_add(&line, i ? " " : "");
        hbk_text_add(&line, hbk_tokenizer_piece(t, got.data[i]));
    }
    assert_string_equal(hbk_text_string(&line), pieces);
    hbk_text_free(&line);
    hbk_tokens_free(&got);
}

static void t07_decodes(const hbk_tokenizer *t, const int32_t *ids, hbk_int n, unsigned flags,
                        const char *text, size_t len)
{
    hbk_text got = {NULL, NULL, 0, 0, false};
    assert_true(hbk_tokenizer_decode(t, ids, n, flags, &got, NULL));
    if (got.len != len || memcmp(hbk_text_string(&got), text, len) != 0)
        fail_msg("decoded to '%s', expected '%s'", hbk_text_string(&got), text);
    hbk_text_free(&got);
}

/* Every row of a vectors file: ids, and the text again wherever no special token stands in it (the vectors
   spell those, and decoding here leaves them out). */
static void t07_vectors(const hbk_tokenizer *t, const char *name, unsigned flags)
{
    char path[512];
    assert_true(test_data(path, name));
    hbk_jsonl_reader *r = hbk_jsonl_open(path, NULL, NULL);
    assert_non_null(r);
    json_t *row;
    int rows = 0;
    while (hbk_jsonl_next(r, &row, NULL) == 1) {
        const json_t *text = json_object_get(row, "text"), *list = json_object_get(row, "ids");
        const json_t *back = json_object_get(row, "decoded");
        int32_t ids[1024];
        hbk_int n = (hbk_int)json_array_size(list);
        bool control = false;
        assert_true(n <= 1024);
        for (hbk_int i = 0; i < n; i++) {
            ids[i] = (int32_t)json_integer_value(json_array_get(list, (size_t)i));
            control = control || ids[i] == hbk_tokenizer_bos(t) || ids[i] == hbk_tokenizer_eos(t) ||
                      ids[i] == hbk_tokenizer_unk(t);
        }
        t07_expect(t, json_string_value(text), json_string_length(text), flags, ids, n);
        if (back && !control) t07_decodes(t, ids, n, 0, json_string_value(back), json_string_length(back));
        rows++;
    }
    hbk_jsonl_close(r);
    assert_true(rows > 20);
}

static hbk_tokenizer *t07_reference(const char *name)
{
    char path[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    if (!test_data(path, name)) skip();
    hbk_tokenizer *t = hbk_tokenizer_load(path, NULL, &err);
    if (!t) fail_msg("%s", err.message);
    return t;
}

/* ---- a small tokenizer.json of each kind; U+2581 is written as \xe2\x96\x81 */

#define T07_ADDED(normalized)                                                                                \
    "\"added_tokens\":[{\"id\":0,\"content\":\"<unk>\",\"special\":true,\"normalized\":" normalized "},"     \
    "{\"id\":1,\"content\":\"<s>\",\"special\":true,\"normalized\":" normalized "},"                         \
    "{\"id\":2,\"content\":\"</s>\",\"special\":true,\"normalized\":" normalized "}],"
#define T07_MODEL                                                                                            \
    "\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"fuse_unk\":true,\"byte_fallback\":true,"          \
    "\"vocab\":{\"<unk>\":0,\"<s>\":1,\"</s>\":2,\"\xe2\x96\x81\":3,\"a\":4,\"b\":5,\"c\":6,"                \
    "\"ab\":7,\"\xe2\x96\x81\x61\":8,\"\xe2\x96\x81\x61\x62\":9,\"<0xC3>\":10,\"<0xA9>\":11,"                \
    "\"s\":12,\"<\":13,\">\":14,\"<s\":15,\"\xe2\x96\x81\x62\":16},"                                         \
    "\"merges\":[\"a b\",[\"\xe2\x96\x81\",\"a\"],\"\xe2\x96\x81 ab\",\"\xe2\x96\x81 b\",\"< s\","           \
    "\"<s >\"]}}"
#define T07_PREPEND                                                                                          \
    "{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\","                         \
    "\"prepend\":\"\xe2\x96\x81\"},{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},"                    \
    "\"content\":\"\xe2\x96\x81\"}]},\"pre_tokenizer\":null,"
#define T07_META(scheme)                                                                                     \
    "{\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"\xe2\x96\x81\","       \
    "\"prepend_scheme\":\"" scheme "\",\"split\":true},"

/* Promise: merges go by rank, bytes and unk stand in for what has no piece, lists may be strings or pairs. */
static void t07_ranks(void **state)
{
    (void)state;
    hbk_tokenizer *t = t07_json(T07_PREPEND T07_ADDED("false") T07_MODEL);
    t07_pieces(t, "ab", 0, "\xe2\x96\x81\x61\x62");
    t07_pieces(t, "a b", 0, "\xe2\x96\x81\x61 \xe2\x96\x81\x62");
    t07_pieces(t, "abc", HBK_ENCODE_CONTINUE, "ab c");
    t07_pieces(t, " a", HBK_ENCODE_CONTINUE, "\xe2\x96\x81\x61");
    t07_pieces(t, "", 0, "");
    t07_pieces(t, "c\xc3\xa9", HBK_ENCODE_CONTINUE, "c <0xC3> <0xA9>");
    t07_pieces(t, "cxyc", HBK_ENCODE_CONTINUE, "c <unk> c");
    assert_int_equal(hbk_tokenizer_size(t), 17);
    assert_int_equal(hbk_tokenizer_find(t, "ab"), 7);
    assert_int_equal(hbk_tokenizer_find(t, "none"), -1);
    assert_null(hbk_tokenizer_piece(t, 17));
    assert_null(hbk_tokenizer_piece(t, -1));
    hbk_tokenizer_free(t);
}

/* Promise: a special token in a text is an id only by HBK_ENCODE_SPECIAL, whatever the merges would make. */
static void t07_no_injection(void **state)
{
    (void)state;
    hbk_tokenizer *t = t07_json(T07_PREPEND T07_ADDED("false") T07_MODEL);
    t07_pieces(t, "<s>", HBK_ENCODE_CONTINUE, "<s >");
    t07_pieces(t, "<s>a</s>", HBK_ENCODE_SPECIAL, "<s> \xe2\x96\x81\x61 </s>");
    hbk_tokenizer_free(t);
    /* normalized: true is looked for as U+2581<s>, which only a text's beginning or a space gives */
    t = t07_json(T07_PREPEND T07_ADDED("true") T07_MODEL);
    t07_pieces(t, "<s>a<s>", HBK_ENCODE_SPECIAL, "<s> a <s >");
    t07_pieces(t, "a <s>a", HBK_ENCODE_SPECIAL, "\xe2\x96\x81\x61 <s> a");
    hbk_tokenizer_free(t);
}

/* Promise: Metaspace cuts words before U+2581 and follows its prepend_scheme. */
static void t07_metaspace(void **state)
{
    (void)state;
    hbk_tokenizer *t = t07_json(T07_META("first") T07_ADDED("false") T07_MODEL);
    t07_pieces(t, "ab ab", 0, "\xe2\x96\x81\x61\x62 \xe2\x96\x81\x61\x62");
    t07_pieces(t, " ab", 0, "\xe2\x96\x81\x61\x62");
    t07_pieces(t, "  ab", 0, "\xe2\x96\x81 \xe2\x96\x81\x61\x62");
    t07_pieces(t, " ab", HBK_ENCODE_CONTINUE, "\xe2\x96\x81\x61\x62");
    t07_pieces(t, "ab", HBK_ENCODE_CONTINUE, "ab");
    t07_pieces(t, "<s>ab", HBK_ENCODE_SPECIAL, "<s> ab");
    hbk_tokenizer_free(t);
    t = t07_json(T07_META("always") T07_ADDED("false") T07_MODEL);
    t07_pieces(t, "<s>ab", HBK_ENCODE_SPECIAL, "<s> \xe2\x96\x81\x61\x62");
    hbk_tokenizer_free(t);
    t = t07_json(T07_META("never") T07_ADDED("false") T07_MODEL);
    t07_pieces(t, "ab ab", 0, "ab \xe2\x96\x81\x61\x62");
    hbk_tokenizer_free(t);
}

/* Promise: decoding drops control tokens and one leading space, joins bytes, repairs broken ones. */
static void t07_decode(void **state)
{
    (void)state;
    hbk_tokenizer *t = t07_json(T07_PREPEND T07_ADDED("false") T07_MODEL);
    const int32_t ids[] = {1, 9, 3, 8, 10, 11, 2};
    t07_decodes(t, ids, 7, 0, "ab  a\xc3\xa9", 7);
    t07_decodes(t, ids, 7, HBK_ENCODE_CONTINUE, " ab  a\xc3\xa9", 8);
    t07_decodes(t, ids + 4, 1, 0, "\xef\xbf\xbd", 3);
    t07_decodes(t, ids, 0, 0, "", 0);
    hbk_text out = {NULL, NULL, 0, 0, false};
    hbk_error err;
    const int32_t bad[2][2] = {{4, 17}, {4, -1}};
    hbk_text_add(&out, "kept");
    for (int i = 0; i < 2; i++)
        check_error(hbk_tokenizer_decode(t, bad[i], 2, 0, &out, &err), HBK_ERROR_RANGE, "expected 0 to 16");
    assert_string_equal(out.data, "kept");
    hbk_text_free(&out);
    hbk_tokenizer_free(t);
}

/* All 256 bytes as a vocabulary, and three merges; `pre` is the pre_tokenizer. */
static hbk_tokenizer *t07_byte_level(const char *pre)
{
    hbk_text json = {NULL, NULL, 0, 0, false};
    hbk_text_printf(&json,
                    "{\"pre_tokenizer\":%s,\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"vocab\":{", pre);
    for (int b = 0, next = 256; b < 256; b++) {
        char c[5] = "";
        bool same = (b > 32 && b < 127) || (b > 160 && b < 173) || b > 173;
        c[hbk_utf8_encode(c, same ? b : next++)] = 0;
        hbk_text_printf(&json, "\"%s%s\":%d,", b == '"' || b == '\\' ? "\\" : "", c, b);
    }
    hbk_text_add(&json, "\"\xc4\xa0\x61\":256,\"\xc4\xa0\x61\x62\":257,\"11\":258},"
                        "\"merges\":[\"\xc4\xa0 a\",\"\xc4\xa0\x61 b\",\"1 1\"]}}");
    hbk_tokenizer *t = t07_json(hbk_text_string(&json));
    hbk_text_free(&json);
    return t;
}

#define T07_LEVEL(regex) "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":" regex "}"

/* Promise: byte-level vocabularies spell any bytes; SmolLM's digits stand alone; words keep their space. */
static void t07_bytes(void **state)
{
    (void)state;
    static const char *const text = "x  ab ab's 11\n\xed\x95\x9c\xf0\x9f\x90\x8b e\xcc\x81 \t";
    hbk_tokenizer *t = t07_byte_level(T07_LEVEL("true"));
    t07_pieces(t, "c  ab 11", 0, "c \xc4\xa0 \xc4\xa0\x61\x62 \xc4\xa0 11");
    hbk_tokens ids = {NULL, NULL, 0, 0, false};
    assert_true(hbk_tokenizer_encode(t, text, strlen(text), 0, &ids, NULL));
    t07_decodes(t, ids.data, ids.n, 0, text, strlen(text));
    const int32_t broken[3] = {0xE2, 0x96, 'a'}; /* one U+FFFD for a character cut short */
    t07_decodes(t, broken, 3, 0, "\xef\xbf\xbd\x61", 4);
    hbk_tokens_free(&ids);
    hbk_tokenizer_free(t);
    t = t07_byte_level("{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\","
                       "\"individual_digits\":true}," T07_LEVEL("true") "]}");
    t07_pieces(t, "ab 11", 0, "a b \xc4\xa0 1 1");
    hbk_tokenizer_free(t);
}

/* The words of a text, with '|' between them. */
static void t07_words(int kind, const char *text, const char *wanted)
{
    hbk_tokenizer t;
    memset(&t, 0, sizeof t);
    t.words = kind;
    hbk_text got = {NULL, NULL, 0, 0, false};
    hbk_int n = (hbk_int)strlen(text);
    for (hbk_int i = 0, end, cut = 0; i < n; i = end) {
        end = hbk__word_end(&t, text, n, i, &cut);
        hbk_text_add(&got, i ? "|" : "");
        hbk_text_append(&got, text + i, (size_t)(end - i));
    }
    assert_string_equal(hbk_text_string(&got), wanted);
    hbk_text_free(&got);
}

/* Promise: words are cut as the regular expressions cut them. */
static void t07_regexes(void **state)
{
    (void)state;
    t07_words(HBK__WORDS_GPT2, "I've  seen 12345 cats!?\n\n ok  ",
              "I|'ve| | seen| 12345| cats|!?|\n\n| ok|  ");
    t07_words(HBK__WORDS_GPT2, "'S 's\t\tx", "'|S| '|s|\t|\t|x");
    t07_words(HBK__WORDS_LLAMA3, "I'VE 12345\tx!\n\n  y  ", "I|'VE| |123|45|\tx|!\n\n| | y|  ");
    t07_words(HBK__WORDS_LLAMA3, "a \n \n b#c '\xc5\xbf", "a| \n \n| b|#c| '|\xc5\xbf");
    t07_words(HBK__WORDS_LLAMA3, "'\xc5\xbf", "'\xc5\xbf");
    t07_words(HBK__WORDS_DEFAULT, "Hi,  it's 1234567 $5.00x ", "Hi|,| | it|'|s| |123|456|7| |$|5|.|00|x| ");
    t07_words(HBK__WORDS_DEFAULT, "\xd9\xa3\xd9\xa4\x31\x32\x33\x34", "\xd9\xa3\xd9\xa4|123|4");
    t07_words(HBK__WORDS_DEFAULT, " 12\xd9\xa3\x34\x35x\xd9\xa3\x31\x32\x33.",
              " |12\xd9\xa3\x34\x35|x|\xd9\xa3|123|.");
    t07_words(HBK__WORDS_RUNS, "a\xe2\x96\x81\xe2\x96\x81\x62\xe2\x96\x81",
              "a|\xe2\x96\x81\xe2\x96\x81\x62|\xe2\x96\x81");
}

/* Promise: what is not of LLaMA's family is refused by name; broken files are refused, not read. */
static void t07_refusals(void **state)
{
    (void)state;
    static const struct {
        const char *json;
        hbk_code code;
        const char *part;
    } bad[] = {
        {"{", HBK_ERROR_FORMAT, "is no JSON"},
        {"{}", HBK_ERROR_UNSUPPORTED, "model"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":{},\"merges\":[]}}", HBK_ERROR_UNSUPPORTED, "Unigram"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}}", HBK_ERROR_FORMAT, "empty"},
        {"{\"normalizer\":{\"type\":\"NFKC\"},\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}}",
         HBK_ERROR_UNSUPPORTED, "normalizer NFKC"},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"x+y\"},\"behavior\":\"Isolated\"},"
         "\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}}",
         HBK_ERROR_UNSUPPORTED, "x+y"},
        {"{\"decoder\":{\"type\":\"CTC\"},\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}}",
         HBK_ERROR_UNSUPPORTED, "decoder CTC"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a z\"]}}", HBK_ERROR_FORMAT, "merge 0"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[7]}}", HBK_ERROR_FORMAT, "merge 0"},
        {"{\"model\":{\"vocab\":{\"a\":0,\"b\":1},\"merges\":[\"a b\"]}}", HBK_ERROR_FORMAT, "\"ab\""},
        {"{\"model\":{\"vocab\":{\"a\":2000000000},\"merges\":[]}}", HBK_ERROR_RANGE, "out of range"},
        {"{\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", HBK_ERROR_RANGE, "out of range"},
        {"{\"model\":{\"vocab\":{\"a\":1.5},\"merges\":[]}}", HBK_ERROR_RANGE, "out of range"},
        {"{\"model\":{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", HBK_ERROR_FORMAT, "used twice"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[],\"unk_token\":\"?\"}}", HBK_ERROR_FORMAT,
         "unk_token"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[],\"end_of_word_suffix\":\"</w>\"}}",
         HBK_ERROR_UNSUPPORTED, "end_of_word_suffix"},
        {"{\"added_tokens\":[{\"id\":99999999,\"content\":\"x\"}],\"model\":{\"vocab\":{\"a\":0},"
         "\"merges\":[]}}",
         HBK_ERROR_FORMAT, "far outside"},
        {"{\"added_tokens\":[{\"id\":60000,\"content\":\"x\"},{\"id\":300000,\"content\":\"y\"}],"
         "\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}}",
         HBK_ERROR_FORMAT, "id 300000"}, /* within four times of what the one before admitted */
    };
    hbk_error err;
    char path[512];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        t07_write(path, "t07_bad.json", bad[i].json, strlen(bad[i].json));
        check_error(hbk_tokenizer_load(path, NULL, &err), bad[i].code, bad[i].part);
    }
    test_tmp(path, "no such tokenizer.json");
    check_error(hbk_tokenizer_load(path, NULL, &err), HBK_ERROR_FILE, "cannot be opened");
    test_tmp(path, "t07_empty");
    assert_true(hbk_dir_make(path, NULL));
    check_error(hbk_tokenizer_load(path, NULL, &err), HBK_ERROR_FILE, "holds no tokenizer.json");
}

/* ---- a hand-made tokenizer.model */

static void t07_varint(hbk_text *t, uint64_t v)
{
    do {
        char c = (char)((v & 0x7F) | (v > 0x7F ? 0x80 : 0));
        hbk_text_append(t, &c, 1);
    } while (v >>= 7);
}

static void t07_message(hbk_text *t, int field, const hbk_text *body)
{
    t07_varint(t, (uint64_t)field << 3 | 2);
    t07_varint(t, body->len);
    hbk_text_append(t, hbk_text_string(body), body->len);
}

static void t07_piece(hbk_text *model, const char *s, float score, int kind)
{
    hbk_text piece = {NULL, NULL, 0, 0, false}, text = piece;
    hbk_text_add(&text, s);
    t07_message(&piece, 1, &text);
    hbk_text_append(&piece, "\x15", 1);
    hbk_text_append(&piece, (const char *)&score, 4);
    if (kind != 1) {
        t07_varint(&piece, 3 << 3);
        t07_varint(&piece, (uint64_t)kind);
    }
    t07_message(model, 1, &piece);
    hbk_text_free(&piece);
    hbk_text_free(&text);
}

/* `kind` is the model type; extra spaces stay; bos is id 1, eos -1. */
static void t07_model(hbk_text *model, int kind)
{
    hbk_text spec = {NULL, NULL, 0, 0, false};
    t07_piece(model, "<unk>", 0, 2);
    t07_piece(model, "<s>", 0, 3);
    static const char *const pieces[] = {"\xe2\x96\x81",     "a", "b", "ab", "aa",
                                         "\xe2\x96\x81\x61", "s", "<", ">"};
    for (int i = 0; i < 9; i++) t07_piece(model, pieces[i], i == 3 ? -1.0f : i == 4 ? -2.0f : -9.0f, 1);
    t07_piece(model, "[x]", 0, 4);
    t07_varint(&spec, 3 << 3);
    t07_varint(&spec, (uint64_t)kind);
    t07_varint(&spec, 42 << 3);
    t07_varint(&spec, UINT64_MAX);
    t07_message(model, 2, &spec);
    hbk_text_clear(&spec);
    t07_varint(&spec, 4 << 3);
    t07_varint(&spec, 0);
    t07_message(model, 3, &spec);
    hbk_text_free(&spec);
}

/* Promise: SentencePiece's merges go by score, leftmost first; its file may be cut anywhere without harm. */
static void t07_sentencepiece(void **state)
{
    (void)state;
    hbk_text model = {NULL, NULL, 0, 0, false};
    hbk_error err;
    char path[512];
    t07_model(&model, 2);
    t07_write(path, "t07.model", model.data, model.len);
    hbk_tokenizer *t = hbk_tokenizer_load(path, NULL, &err);
    if (!t) fail_msg("%s", err.message);
    t07_pieces(t, "aaab", HBK_ENCODE_CONTINUE, "aa ab");
    t07_pieces(t, "aaa", HBK_ENCODE_CONTINUE, "aa a");
    t07_pieces(t, "a  b", 0, "\xe2\x96\x81\x61 \xe2\x96\x81 \xe2\x96\x81 b");
    t07_pieces(t, "<s>", 0, "\xe2\x96\x81 < s >");
    t07_pieces(t, "<s>b", HBK_ENCODE_SPECIAL, "<s> b");
    t07_pieces(t, "a[x]a", 0, "\xe2\x96\x81\x61 [x] a");
    t07_pieces(t,
               "azz\xff"
               "a",
               HBK_ENCODE_CONTINUE, "a <unk> a");
    assert_int_equal(hbk_tokenizer_bos(t), 1);
    assert_int_equal(hbk_tokenizer_eos(t), -1);
    assert_true(hbk_tokenizer_adds_bos(t));
    const int32_t ids[] = {1, 7, 2, 0};
    t07_decodes(t, ids, 4, 0, "a  \xe2\x81\x87 ", 7);
    hbk_tokenizer_free(t);
    for (size_t n = 0; n < model.len; n++) { /* a cut loses the trainer_spec, which comes last but one */
        t07_write(path, "t07_cut.model", model.data, n);
        t = hbk_tokenizer_load(path, NULL, &err);
        if (t && n < model.len - 5) fail_msg("a model cut to %zu bytes was read", n);
        hbk_tokenizer_free(t);
    }
    hbk_text_clear(&model);
    t07_model(&model, 1);
    t07_write(path, "t07_cut.model", model.data, model.len);
    check_error(hbk_tokenizer_load(path, NULL, &err), HBK_ERROR_UNSUPPORTED, "unigram");
    hbk_text_clear(&model);
    t07_piece(&model, "a", NAN, 1);
    t07_write(path, "t07_cut.model", model.data, model.len);
    check_error(hbk_tokenizer_load(path, NULL, &err), HBK_ERROR_FORMAT, "finite score");
    for (int twice = 0; twice < 2; twice++) { /* a piece again, and a model without unk */
        hbk_text spec = {NULL, NULL, 0, 0, false};
        hbk_text_clear(&model);
        for (int i = 0; i <= twice; i++) t07_piece(&model, "a", 0, 1);
        t07_varint(&spec, 3 << 3);
        t07_varint(&spec, 2);
        t07_message(&model, 2, &spec);
        t07_write(path, "t07_cut.model", model.data, model.len);
        check_error(hbk_tokenizer_load(path, NULL, &err), HBK_ERROR_FORMAT,
                    twice ? "pieces 0 and 1 are the same" : "unk_id 0 is not of an unknown piece");
        hbk_text_free(&spec);
    }
    hbk_text_free(&model);
}

/* ---- added tokens, decoders */

#define T07_ODD                                                                                              \
    "\"added_tokens\":[{\"id\":0,\"content\":\"<unk>\",\"special\":true},"                                   \
    "{\"id\":20,\"content\":\"<l>\",\"lstrip\":true},{\"id\":21,\"content\":\"<r>\",\"rstrip\":true},"       \
    "{\"id\":22,\"content\":\"one\",\"single_word\":true},{\"id\":23,\"content\":\"<s>\",\"special\":true}," \
    "{\"id\":24,\"content\":\"s>a\"}],"

/* Promise: added tokens take the white space beside them (of all Unicode), or want to stand alone; the
   leftmost and longest is found, and one that may not be cut out hides what it covers; decoding leaves out
   the special ones. */
static void t07_added_tokens(void **state)
{
    (void)state;
    hbk_tokenizer *t = t07_json("{" T07_ODD T07_MODEL);
    t07_pieces(t, "a \xe3\x80\x80<l> a", 0, "a <l> <unk> a");
    t07_pieces(t, "a <r>\xc2\xa0 \na<r> <l>", 0, "a <unk> <r> a <r> <l>");
    t07_pieces(t, "one aone,one \xe2\x80\x8done (one)", 0, "one <unk> a <unk> one <unk> one <unk>");
    t07_pieces(t, "<s>a", 0, "<s > a");
    t07_pieces(t, "s>a<s>a", 0, "s>a <s > a");
    t07_pieces(t, "<s>a", HBK_ENCODE_SPECIAL, "<s> a");
    const int32_t ids[] = {4, 23, 0, 20, 4};
    t07_decodes(t, ids, 5, 0, "a<l>a", 5);
    hbk_tokenizer_free(t);
}

/* Promise: each decoder does its own: Metaspace drops every mark of the first piece, Strip one space of the
   text, Fuse alone nothing; bytes come back with ByteFallback only. Other orders are refused. */
static void t07_decoders(void **state)
{
    (void)state;
#define T07_DECODER(d) "{\"decoder\":" d "," T07_ADDED("false") T07_MODEL
#define T07_STRIP      "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}"
#define T07_REPLACE    "{\"type\":\"Replace\",\"pattern\":{\"String\":\"\xe2\x96\x81\"},\"content\":\" \"}"
    static const struct {
        const char *json, *text;
    } good[] = {
        {T07_DECODER("{\"type\":\"Metaspace\",\"replacement\":\"\xe2\x96\x81\"}"), " a<0xC3><0xA9><0xC3>"},
        {T07_DECODER(
             "{\"type\":\"Metaspace\",\"replacement\":\"\xe2\x96\x81\",\"prepend_scheme\":\"never\"}"),
         "  a<0xC3><0xA9><0xC3>"},
        {T07_DECODER("{\"type\":\"Fuse\"}"), "\xe2\x96\x81\xe2\x96\x81\x61<0xC3><0xA9><0xC3>"},
        {T07_DECODER("{\"type\":\"Sequence\",\"decoders\":[" T07_REPLACE ",{\"type\":\"ByteFallback\"}]}"),
         "  a\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
        {T07_DECODER("{\"type\":\"Sequence\",\"decoders\":[" T07_REPLACE ",{\"type\":\"Fuse\"}," T07_STRIP
                     "]}"),
         " a<0xC3><0xA9><0xC3>"},
    };
    const int32_t ids[] = {1, 3, 8, 10, 11, 10};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        hbk_tokenizer *t = t07_json(good[i].json);
        t07_decodes(t, ids, 6, 0, good[i].text, strlen(good[i].text));
        hbk_tokenizer_free(t);
    }
    static const char *const bad[] = {
        T07_DECODER("{\"type\":\"Sequence\",\"decoders\":[" T07_REPLACE "," T07_STRIP "]}"),
        T07_DECODER("{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"}," T07_REPLACE "]}"),
        T07_DECODER("{\"type\":\"Replace\",\"pattern\":{\"String\":\"_\"},\"content\":\" \"}"),
        T07_DECODER("{\"type\":\"ByteLevel\"}"),
    };
    char path[512];
    hbk_error err;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        t07_write(path, "t07_decoder.json", bad[i], strlen(bad[i]));
        check_error(hbk_tokenizer_load(path, NULL, &err), HBK_ERROR_UNSUPPORTED, "decoder");
    }
}

/* Promise: of a pair that the merge list names twice the last rank holds; an empty piece ends no loop; words
   met before have the ids that they had; a run of a hundred thousand characters is no matter. */
static void t07_merging(void **state)
{
    (void)state;
    hbk_tokenizer *t =
        t07_json("{\"model\":{\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"bc\":4,\"\":5,\"aa\":6,"
                 "\"aaaa\":7},\"merges\":[\"a b\",\"b c\",\"a b\",[\"\",\"a\"],[\"\",\"\"],"
                 "\"a a\",\"aa aa\"]}}");
    t07_pieces(t, "abc", 0, "a bc");
    hbk_tokens ids = {NULL, NULL, 0, 0, false};
    hbk_text text = {NULL, NULL, 0, 0, false};
    for (int i = 0; i < 100003; i++) hbk_text_add(&text, "a");
    assert_true(hbk_tokenizer_encode(t, text.data, text.len, 0, &ids, NULL));
    assert_int_equal(ids.n, 25002); /* 100000 / 4, and aa a */
    assert_int_equal(ids.data[24999], 7);
    assert_int_equal(ids.data[25000], 6);
    assert_int_equal(ids.data[25001], 0);
    hbk_tokenizer_free(t);
    t = t07_byte_level(T07_LEVEL("true"));
    hbk_text_clear(&text);
    for (int i = 0; i < 500; i++) hbk_text_add(&text, i % 3 ? " ab" : " x11?");
    ids.n = 0;
    assert_true(hbk_tokenizer_encode(t, text.data, text.len, 0, &ids, NULL));
    for (hbk_int i = 0, k = 0; i < 500; i++) {
        static const int32_t odd[] = {220, 'x', 258, '?'};
        const int32_t even = 257;
        hbk_int n = i % 3 ? 1 : 4;
        int32_t first = i % 3 ? even : hbk_tokenizer_find(t, "\xc4\xa0");
        assert_int_equal(ids.data[k], first);
        for (hbk_int j = 1; j < n; j++) assert_int_equal(ids.data[k + j], odd[j]);
        k += n;
        if (i == 499) assert_int_equal(k, ids.n);
    }
    hbk_tokenizer_free(t);
    hbk_tokens_free(&ids);
    hbk_text_free(&text);
}

/* Promise: a long number, and many added tokens that begin alike, cost no square of their number. */
static void t07_long_and_many(void **state)
{
    (void)state;
    hbk_text text = {NULL, NULL, 0, 0, false};
    hbk_tokens ids = {NULL, NULL, 0, 0, false};
    hbk_tokenizer *t = t07_byte_level(T07_LEVEL("true"));
    t->words = HBK__WORDS_DEFAULT;
    clock_t start = clock();
    for (int i = 0; i < 200000; i++) hbk_text_add(&text, i % 4 ? "7" : "\xd9\xa3\x39");
    assert_true(hbk_tokenizer_encode(t, text.data, text.len, 0, &ids, NULL));
    assert_true(clock() - start < 5 * CLOCKS_PER_SEC);
    hbk_tokenizer_free(t);
    hbk_text_clear(&text);
    hbk_text_add(&text, "{\"added_tokens\":[");
    for (int i = 0; i < 20000; i++)
        hbk_text_printf(&text, "%s{\"id\":%d,\"content\":\"<%d>\"}", i ? "," : "", i + 2, i);
    hbk_text_add(&text, "],\"model\":{\"vocab\":{\"<\":0,\"7\":1},\"merges\":[]}}");
    t = t07_json(hbk_text_string(&text));
    hbk_text_clear(&text);
    for (int i = 0; i < 100000; i++) hbk_text_add(&text, "<");
    hbk_text_add(&text, "<7><19999><<7");
    ids.n = 0;
    start = clock();
    assert_true(hbk_tokenizer_encode(t, text.data, text.len, 0, &ids, NULL));
    assert_true(clock() - start < 5 * CLOCKS_PER_SEC);
    assert_int_equal(ids.n, 100005);
    assert_true(ids.data[100000] == 9 && ids.data[100001] == 20001 && ids.data[100004] == 1);
    hbk_tokenizer_free(t);
    hbk_tokens_free(&ids);
    hbk_text_free(&text);
}

/* ---- SentencePiece's rarer pieces */

typedef struct t07_row {
    const char *piece;
    float score;
    int kind;
} t07_row;

/* A model of these pieces: the flags of its normaliser, its unk's text. */
static hbk_tokenizer *t07_spm(const t07_row *rows, int n, int dummy_prefix, int collapse, bool bytes)
{
    hbk_text model = {NULL, NULL, 0, 0, false}, spec = model, surface = model;
    char path[512], name[8];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    t07_piece(&model, "<unk>", 0, 2);
    t07_piece(&model, "<s>", 0, 3);
    t07_piece(&model, "\xe2\x96\x81", -90, 1);
    for (int i = 0; i < n; i++) t07_piece(&model, rows[i].piece, rows[i].score, rows[i].kind);
    for (int b = 0; b < 256 && bytes; b++) {
        snprintf(name, sizeof name, "<0x%02X>", b);
        t07_piece(&model, name, 0, 6);
    }
    const uint64_t fields[3][2] = {{3, 2}, {35, bytes}, {42, UINT64_MAX}};
    for (int i = 0; i < 3; i++) {
        t07_varint(&spec, fields[i][0] << 3);
        t07_varint(&spec, fields[i][1]);
    }
    hbk_text_add(&surface, "??");
    t07_message(&spec, 44, &surface);
    t07_message(&model, 2, &spec);
    hbk_text_clear(&spec);
    const uint64_t normal[2][2] = {{3, (uint64_t)dummy_prefix}, {4, (uint64_t)collapse}};
    for (int i = 0; i < 2; i++) {
        t07_varint(&spec, normal[i][0] << 3);
        t07_varint(&spec, normal[i][1]);
    }
    t07_message(&model, 3, &spec);
    t07_write(path, "t07_rows.model", model.data, model.len);
    hbk_tokenizer *t = hbk_tokenizer_load(path, NULL, &err);
    if (!t) fail_msg("%s", err.message);
    hbk_text_free(&model);
    hbk_text_free(&spec);
    hbk_text_free(&surface);
    return t;
}

/* Promise: unused pieces lead merges on but are written as what they were made of; a character without a
   piece may be merged away, else it is bytes or unk; user-defined ones are matched first and never merge. */
static void t07_piece_kinds(void **state)
{
    (void)state;
    static const t07_row rows[] = {{"a", -9, 1},   {"b", -9, 1},    {"c", -9, 1},   {"ab", -1, 5},
                                   {"abc", -2, 5}, {"abcd", -3, 1}, {"q", -9, 5},   {"[", -9, 1},
                                   {"[x]", 0, 4},  {"[xy]", 0, 4},  {"[x]a", -1, 1}};
    hbk_tokenizer *t = t07_spm(rows, 11, 0, 0, false);
    t07_pieces(t, "abcd", 0, "abcd"); /* though d is no piece */
    t07_pieces(t, "abc", 0, "a b c");
    t07_pieces(t, "ab", 0, "a b");
    t07_pieces(t, "dda", 0, "<unk> a");
    t07_pieces(t, "qda", 0, "<unk> a");
    t07_pieces(t, "a[x]a[xy][", 0, "a [x] a [xy] [");
    const int32_t ids[] = {3, 0, 3};
    t07_decodes(t, ids, 3, 0, "a??a", 4);
    hbk_tokenizer_free(t);
    t = t07_spm(rows, 11, 0, 0, true);
    t07_pieces(t, "qd\xc3\xa9", 0, "<0x71> <0x64> <0xC3> <0xA9>");
    int32_t e = hbk_tokenizer_find(t, "<0xC3>"), acute = hbk_tokenizer_find(t, "<0xA9>");
    const int32_t whole[] = {e, acute}, cut[] = {e, 1, acute}; /* a control token ends the run */
    t07_decodes(t, whole, 2, 0, "\xc3\xa9", 2);
    t07_decodes(t, cut, 3, 0, "\xef\xbf\xbd\xef\xbf\xbd", 6);
    hbk_tokenizer_free(t);
}

/* Promise: remove_extra_whitespaces takes spaces at the ends and all but one inside, at the end even marks of
   the text's own; decoding then drops all marks that begin a text. */
static void t07_spaces(void **state)
{
    (void)state;
    static const t07_row rows[] = {{"a", -9, 1}, {"\xe2\x96\x81\x61", -1, 1}};
    hbk_tokenizer *t = t07_spm(rows, 2, 1, 1, false);
    t07_pieces(t, "  a   a ", 0, "\xe2\x96\x81\x61 \xe2\x96\x81\x61");
    t07_pieces(t, "a\xe2\x96\x81 \xe2\x96\x81", 0, "\xe2\x96\x81\x61");
    t07_pieces(t, "   ", 0, "");
    t07_pieces(t, "\xe2\x96\x81", 0, "");
    const int32_t ids[] = {2, 4, 4};
    t07_decodes(t, ids, 3, 0, "a a", 3);
    hbk_tokenizer_free(t);
    t = t07_spm(rows, 2, 0, 0, false);
    t07_pieces(t, " a", 0, "\xe2\x96\x81\x61");
    t07_pieces(t, "a ", 0, "a \xe2\x96\x81");
    t07_decodes(t, ids, 3, 0, "  a a", 5);
    hbk_tokenizer_free(t);
    static const t07_row across[] = {{"a", -9, 1}, {"a\xe2\x96\x81", -2, 1}, {"a\xe2\x96\x81\x61", -1, 1}};
    t = t07_spm(across, 3, 0, 0, false); /* pieces that reach across a border: the text is not cut there */
    t07_pieces(t, "a a a", 0, "a\xe2\x96\x81\x61 \xe2\x96\x81 a");
    hbk_tokenizer_free(t);
}

/* ---- Meta's list of tokens */

/* Lines for the 256 bytes, and for " a" and " ab" at the end. */
static void t07_tiktoken_file(hbk_text *out)
{
    static const char *const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int b = 0; b < 256; b++)
        hbk_text_printf(out, "%c%c== %d\n", digits[b >> 2], digits[(b & 3) << 4], b);
    hbk_text_add(out, "IGE= 256\nIGFi 257\nYmM= 258\nIGJjYQ== 259\n");
}

/* Promise: a list of base64 and ranks is found by its content, merges by rank, takes whole words first, and
   is followed by LLaMA-3's special tokens; each broken line is named. */
static void t07_tiktoken(void **state)
{
    (void)state;
    hbk_text file = {NULL, NULL, 0, 0, false};
    char path[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    t07_tiktoken_file(&file);
    t07_write(path, "t07_tiktoken.model", file.data, file.len);
    hbk_tokenizer *t = hbk_tokenizer_load(path, NULL, &err);
    if (!t) fail_msg("%s", err.message);
    assert_int_equal(hbk_tokenizer_size(t), 260 + 256);
    assert_int_equal(hbk_tokenizer_bos(t), 260);
    assert_int_equal(hbk_tokenizer_eos(t), 261);
    assert_true(hbk_tokenizer_adds_bos(t));
    assert_int_equal(hbk_tokenizer_find(t, "<|eot_id|>"), 260 + 9);
    assert_int_equal(hbk_tokenizer_find(t, "<|image|>"), 260 + 11);
    assert_int_equal(hbk_tokenizer_find(t, "<|reserved_special_token_2|>"), 260 + 12);
    assert_int_equal(hbk_tokenizer_find(t, "<|reserved_special_token_245|>"), 260 + 255);
    const int32_t ids[] = {257, 256, 'd', 259, 220, 258, 0xff};
    t07_expect(t, " ab ad bca", 10, 0, ids, 4); /* " bca" by the whole word only: bc and " b" part it */
    const int32_t eot[] = {'a', 269};
    t07_expect(t, "a<|eot_id|>", 11, HBK_ENCODE_SPECIAL, eot, 2);
    t07_decodes(t, eot, 2, 0, "a", 1);
    hbk_tokenizer_free(t);
    static const struct {
        const char *line, *part;
        hbk_code code;
    } bad[] = {{"YQ== 257", "rank 257, expected 260", HBK_ERROR_RANGE},
               {"IGE= 260", "bytes of an earlier one", HBK_ERROR_FORMAT},
               {"I*E= 260", ":261", HBK_ERROR_FORMAT},
               {"IGE 260", "base64", HBK_ERROR_FORMAT},
               {" 260", "base64", HBK_ERROR_FORMAT},
               {"IGI= 99999999999999999999", "base64", HBK_ERROR_FORMAT},
               {"IGI=", "base64", HBK_ERROR_FORMAT}};
    size_t whole = file.len;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        file.len = whole;
        hbk_text_add(&file, bad[i].line);
        t07_write(path, "t07_tiktoken.model", file.data, file.len);
        check_error(hbk_tokenizer_load(path, NULL, &err), bad[i].code, bad[i].part);
    }
    t07_write(path, "t07_tiktoken.model", "AA== 0\nAQ== 1\n", 14);
    check_error(hbk_tokenizer_load(path, NULL, &err), HBK_ERROR_FORMAT, "no token for the byte 0x02");
    hbk_text_free(&file);
}

/* ---- vocabularies of GGUF files */

/* What a test changes of a good file. */
typedef struct t07_gguf {
    const char *model, *pre;
    hbk_int bos;
    int fewer_scores, fewer_types;
} t07_gguf;

/* The pieces of T07_MODEL as "llama", those of t07_byte_level as "gpt2". */
static void t07_gguf_file(char path[512], const t07_gguf *o)
{
    static const char *const pieces[] = {"<unk>",
                                         "<s>",
                                         "</s>",
                                         "\xe2\x96\x81",
                                         "a",
                                         "b",
                                         "c",
                                         "ab",
                                         "\xe2\x96\x81\x61",
                                         "\xe2\x96\x81\x61\x62",
                                         "\xe2\x96\x81\x62"};
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    bool level = strcmp(o->model, "gpt2") == 0;
    hbk_int n = level ? 261 : 11;
    test_tmp(path, "t07_vocab.gguf");
    hbk_gguf_writer *w = hbk_gguf_create(path, NULL, &err);
    assert_non_null(w);
    hbk_gguf_put_string(w, "general.architecture", "llama", 5);
    hbk_gguf_put_string(w, "tokenizer.ggml.model", o->model, strlen(o->model));
    if (o->pre) hbk_gguf_put_string(w, "tokenizer.ggml.pre", o->pre, strlen(o->pre));
    hbk_gguf_put_array(w, "tokenizer.ggml.tokens", HBK_GGUF_STRING, n);
    for (int b = 0, next = 256; b < 256 && level; b++) {
        char c[4];
        bool same = (b > 32 && b < 127) || (b > 160 && b < 173) || b > 173;
        hbk_gguf_add_string(w, c, hbk_utf8_encode(c, same ? b : next++));
    }
    static const char *const more[] = {"\xc4\xa0\x61", "\xc4\xa0\x61\x62", "11", "<|end|>", "[user]"};
    for (int i = 0; i < 5 && level; i++) hbk_gguf_add_string(w, more[i], strlen(more[i]));
    for (int i = 0; i < 11 && !level; i++) hbk_gguf_add_string(w, pieces[i], strlen(pieces[i]));
    hbk_gguf_put_array(w, "tokenizer.ggml.token_type", HBK_GGUF_I32, n - o->fewer_types);
    for (hbk_int i = 0; i < n - o->fewer_types; i++)
        hbk_gguf_add_int(w, level ? (i == 259 ? 3 : i == 260 ? 4 : 1) : i == 0 ? 2 : i < 3 ? 3 : 1);
    if (!level) {
        hbk_gguf_put_array(w, "tokenizer.ggml.scores", HBK_GGUF_F32, n - o->fewer_scores);
        for (hbk_int i = 0; i < n - o->fewer_scores; i++) hbk_gguf_add_real(w, (double)-i);
    } else {
        hbk_gguf_put_array(w, "tokenizer.ggml.merges", HBK_GGUF_STRING, 3);
        hbk_gguf_add_string(w, "\xc4\xa0 a", 4);
        hbk_gguf_add_string(w, "\xc4\xa0\x61 b", 5);
        hbk_gguf_add_string(w, "1 1", 3);
    }
    hbk_gguf_put_int(w, "tokenizer.ggml.bos_token_id", HBK_GGUF_U32, o->bos);
    check_ok(hbk_gguf_finish(w, &err));
}

/* Promise: a GGUF's vocabulary, of either model, gives its ids; saved, it is a tokenizer.json with these. */
static void t07_gguf_vocabulary(void **state)
{
    (void)state;
    static const t07_gguf kinds[] = {{"llama", NULL, 1, 0, 0},       {"gpt2", "gpt-2", 259, 0, 0},
                                     {"gpt2", "smollm", 259, 0, 0},  {"gpt2", "llama-bpe", 259, 0, 0},
                                     {"gpt2", "llama3", 259, 0, 0},  {"gpt2", "llama-v3", 259, 0, 0},
                                     {"gpt2", "default", 259, 0, 0}, {"gpt2", NULL, 259, 0, 0}};
    static const char *const texts[] = {"\xe2\x96\x81\x61\x62 \xe2\x96\x81 \xe2\x96\x81 c",
                                        "\xc4\xa0\x61\x62 \xc4\xa0 \xc4\xa0 c", "\xc4\xa0 1 1 ,",
                                        "\xc4\xa0 11 ,"};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        char path[512], dir[512];
        hbk_error err = {HBK_ERROR_NONE, "", "", 0};
        t07_gguf_file(path, &kinds[i]);
        hbk_tokenizer *t = hbk_tokenizer_load(path, NULL, &err), *u = t;
        if (!t) fail_msg("%s", err.message);
        test_tmp(dir, "t07_saved");
        if (i < 6) {
            check_ok(hbk_tokenizer_save(t, dir, &err));
            u = hbk_tokenizer_load(dir, NULL, &err);
            if (!u) fail_msg("%s", err.message);
        } else {
            check_error(hbk_tokenizer_save(t, dir, &err), HBK_ERROR_UNSUPPORTED, "llama.cpp's default");
        }
        for (int k = 0; k < 2; k++) {
            const hbk_tokenizer *x = k ? u : t;
            bool llama3 = i >= 3 && i <= 5;
            if (i == 0) t07_pieces(x, "ab  c", 0, texts[0]);
            if (i > 0) t07_pieces(x, " ab  c", 0, texts[1]);
            if (i > 0) t07_pieces(x, " 11,", 0, texts[i == 2 ? 2 : 3]);
            if (i > 0) t07_pieces(x, "b[user]<|end|>", HBK_ENCODE_SPECIAL, "b [user] <|end|>");
            assert_int_equal(hbk_tokenizer_bos(x), kinds[i].bos);
            assert_true(hbk_tokenizer_adds_bos(x) == (i == 0 || llama3));
        }
        if (u != t) hbk_tokenizer_free(u);
        if (i == 0) { /* a piece of two ids */
            check_ok(hbk__vocab_set(&t->vocab, t->vocab.n, "ab", 2, HBK__PIECE_NORMAL, 0, &err));
            check_error(hbk_tokenizer_save(t, dir, &err), HBK_ERROR_UNSUPPORTED, "ids 7 and 11 both have");
        }
        hbk_tokenizer_free(t);
    }
}

/* Promise: what a GGUF's vocabulary lacks or names that is not known is refused by key. */
static void t07_gguf_refusals(void **state)
{
    (void)state;
    static const struct {
        t07_gguf file;
        hbk_code code;
        const char *part;
    } bad[] = {{{"bert", NULL, 1, 0, 0}, HBK_ERROR_UNSUPPORTED, "tokenizer.ggml.model \"bert\""},
               {{"gpt2", "qwen2", 1, 0, 0}, HBK_ERROR_UNSUPPORTED, "tokenizer.ggml.pre \"qwen2\""},
               {{"gpt2", "", 1, 0, 0}, HBK_ERROR_UNSUPPORTED, "tokenizer.ggml.pre \"\""},
               {{"llama", NULL, 11, 0, 0}, HBK_ERROR_RANGE, "bos_token_id is 11, but there are 11"},
               {{"llama", NULL, 1, 1, 0}, HBK_ERROR_FORMAT, "scores has 10 entries for 11 tokens"},
               {{"gpt2", NULL, 1, 0, 2}, HBK_ERROR_FORMAT, "token_type has 259 entries for 261 tokens"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char path[512];
        hbk_error err;
        t07_gguf_file(path, &bad[i].file);
        check_error(hbk_tokenizer_load(path, NULL, &err), bad[i].code, bad[i].part);
    }
}

/* ---- damaged files */

/* Loads n bytes that end where their block ends, so that a byte read behind them is found out, and uses what
   comes of it. */
static bool t07_try(int format, const char *bytes, size_t n)
{
    static const char mixed[] = "a ab<s>[x] \xff\xc3\xa9 11 one";
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    char *data = (char *)malloc(n ? n : 1);
    memcpy(data, bytes, n);
    hbk_tokenizer *t = hbk__tokenizer_new(NULL, NULL);
    bool ok;
    if (format == HBK__FORMAT_JSON) {
        json_t *root = json_loadb(data, n, 0, NULL);
        ok = root ? hbk__load_json(t, root, "t07", &err) : hbk_fail(&err, HBK_ERROR_FORMAT, "no JSON");
        json_decref(root);
    } else if (format == HBK__FORMAT_BIN) {
        ok = hbk__load_bin(t, data, n, "t07", &err);
    } else {
        ok = hbk__is_tiktoken(data, n) ? hbk__load_tiktoken(t, data, n, "t07", &err)
                                       : hbk__load_model(t, data, n, "t07", &err);
    }
    free(data);
    if (!ok && (err.code == HBK_ERROR_NONE || !err.message[0])) fail_msg("refused without a word");
    hbk_tokens ids = {NULL, NULL, 0, 0, false};
    hbk_text text = {NULL, NULL, 0, 0, false};
    if (ok) {
        assert_true(hbk_tokenizer_encode(t, mixed, sizeof mixed - 1, HBK_ENCODE_SPECIAL, &ids, NULL));
        assert_true(hbk_tokenizer_decode(t, ids.data, ids.n, 0, &text, NULL));
    }
    hbk_tokens_free(&ids);
    hbk_text_free(&text);
    hbk_tokenizer_free(t);
    return ok;
}

/* Cut at every length, and each byte changed in four ways. */
static void t07_damage(int format, const hbk_text *file)
{
    assert_true(t07_try(format, file->data, file->len));
    for (size_t n = 0; n < file->len; n++) t07_try(format, file->data, n);
    for (size_t i = 0; i < file->len; i++) {
        char was = file->data[i];
        const char values[4] = {(char)(was + 1), (char)(was ^ 0x80), 0, (char)0xff};
        for (int k = 0; k < 4; k++) {
            file->data[i] = values[k];
            t07_try(format, file->data, file->len);
        }
        file->data[i] = was;
    }
}

/* Promise: damage is refused or harmless, whatever byte it strikes; nothing is read out of bounds. */
static void t07_damaged(void **state)
{
    (void)state;
    hbk_text file = {NULL, NULL, 0, 0, false};
    hbk_text_add(&file, T07_PREPEND T07_ODD T07_MODEL);
    t07_damage(HBK__FORMAT_JSON, &file);
    hbk_text_clear(&file);
    t07_model(&file, 2);
    t07_damage(HBK__FORMAT_MODEL, &file);
    hbk_text_clear(&file);
    t07_tiktoken_file(&file);
    for (size_t n = 0; n < file.len; n += n < 30 || n > 2800 ? 1 : 40)
        t07_try(HBK__FORMAT_MODEL, file.data, n);
    for (size_t i = file.len - 60; i < file.len; i++) {
        char was = file.data[i];
        for (int v = 0; v < 256; v += 5) {
            file.data[i] = (char)v;
            t07_try(HBK__FORMAT_MODEL, file.data, file.len);
        }
        file.data[i] = was;
    }
    hbk_text_clear(&file);
    const uint32_t longest = 5;
    hbk_text_append(&file, (const char *)&longest, 4);
    static const char *const pieces[] = {"<unk>", "\n<s>\n", "\n</s>\n", " ", "a", " a", "b"};
    for (int i = 0; i < 7; i++) {
        float score = (float)-i;
        uint32_t n = (uint32_t)strlen(pieces[i]);
        if (i == 2) n = 4;
        hbk_text_append(&file, (const char *)&score, 4);
        hbk_text_append(&file, (const char *)&n, 4);
        hbk_text_append(&file, i == 2 ? "</s>" : pieces[i], n);
    }
    assert_false(t07_try(HBK__FORMAT_BIN, file.data, file.len)); /* no bytes */
    for (size_t n = 0; n < file.len; n++) t07_try(HBK__FORMAT_BIN, file.data, n);
    hbk_text_free(&file);
}

/* Promise: nesting as deep as the JSON reader lets through is refused or read, not a broken stack. */
static void t07_nesting(void **state)
{
    (void)state;
    for (int deep = 500; deep <= 5000; deep *= 10) {
        hbk_text json = {NULL, NULL, 0, 0, false};
        char path[512];
        hbk_error err;
        hbk_text_add(&json, "{\"pre_tokenizer\":");
        for (int i = 0; i < deep; i++) hbk_text_add(&json, "{\"type\":\"Sequence\",\"pretokenizers\":[");
        for (int i = 0; i < deep; i++) hbk_text_add(&json, "]}");
        hbk_text_add(&json,
                     ",\"normalizer\":{\"type\":\"NFC\"},\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}}");
        t07_write(path, "t07_deep.json", json.data, json.len);
        check_error(hbk_tokenizer_load(path, NULL, &err),
                    deep == 500 ? HBK_ERROR_UNSUPPORTED : HBK_ERROR_FORMAT, deep == 500 ? "NFC" : "JSON");
        hbk_text_free(&json);
    }
}

/* ---- training */

static const char *const t07_story =
    "The cat sat on the mat. The cat ate the rat.\nA rat, a cat and a mat! <s> caf\xc3\xa9\n"
    "the the the cat cat cat  sat sat";

/* Promise: training spells every text it saw, crosses no word, keeps 0 1 2 special, is repeatable. */
static void t07_train(void **state)
{
    (void)state;
    hbk_error err;
    hbk_tokenizer *t = hbk_tokenizer_train(t07_story, strlen(t07_story), 50, false, NULL, &err);
    if (!t) fail_msg("%s", err.message);
    assert_int_equal(hbk_tokenizer_size(t), 50);
    assert_int_equal(hbk_tokenizer_unk(t), 0);
    assert_int_equal(hbk_tokenizer_bos(t), 1);
    assert_int_equal(hbk_tokenizer_eos(t), 2);
    assert_true(hbk_tokenizer_adds_bos(t));
    t07_pieces(t, "cat the", 0, "\xe2\x96\x81\x63\x61\x74 \xe2\x96\x81the");
    t07_pieces(t, " the", HBK_ENCODE_CONTINUE, "\xe2\x96\x81the");
    hbk_tokens ids = {NULL, NULL, 0, 0, false};
    assert_true(hbk_tokenizer_encode(t, t07_story, strlen(t07_story), 0, &ids, NULL));
    for (hbk_int i = 0; i < ids.n; i++) assert_true(ids.data[i] > 2);
    t07_decodes(t, ids.data, ids.n, 0, t07_story, strlen(t07_story));
    for (int32_t id = 3; id < 50; id++) {
        const char *piece = hbk_tokenizer_piece(t, id);
        assert_null(strstr(piece + 1, "\xe2\x96\x81"));
        if (strlen(piece) > 1) assert_null(strchr(piece, '\n'));
    }
    hbk_tokens_free(&ids);
    hbk_tokenizer *again = hbk_tokenizer_train(t07_story, strlen(t07_story), 50, false, NULL, &err);
    assert_string_equal(t->document.data, again->document.data);
    hbk_tokenizer_free(again);
    hbk_tokenizer_free(t);
}

/* Promise: with all bytes any text comes back; vocab_size ends early when words run out, and fails when it
   is too small. */
static void t07_train_bytes(void **state)
{
    (void)state;
    hbk_error err;
    static const char *const odd = "\xf0\x9f\x90\x8b\t<unk> \xe4\xb8\xad cat <0x41>";
    hbk_tokenizer *t = hbk_tokenizer_train(t07_story, strlen(t07_story), 5000, true, NULL, &err);
    if (!t) fail_msg("%s", err.message);
    assert_true(hbk_tokenizer_size(t) < 400);
    hbk_tokens ids = {NULL, NULL, 0, 0, false};
    assert_true(hbk_tokenizer_encode(t, odd, strlen(odd), 0, &ids, NULL));
    for (hbk_int i = 0; i < ids.n; i++) assert_true(ids.data[i] > 2);
    t07_decodes(t, ids.data, ids.n, 0, odd, strlen(odd));
    hbk_tokens_free(&ids);
    hbk_tokenizer_free(t);
    t = hbk_tokenizer_train(t07_story, strlen(t07_story), 264, true, NULL, &err); /* rare letters as bytes */
    assert_int_equal(hbk_tokenizer_size(t), 264);
    hbk_tokenizer_free(t);
    check_error(hbk_tokenizer_train(t07_story, strlen(t07_story), 20, false, NULL, &err), HBK_ERROR_OPTION,
                "room for 17 characters");
    check_error(hbk_tokenizer_train(t07_story, strlen(t07_story), 259, true, NULL, &err), HBK_ERROR_OPTION,
                "room for 0");
    t = hbk_tokenizer_train("", 0, 300, true, NULL, &err);
    assert_int_equal(hbk_tokenizer_size(t), 260);
    hbk_tokenizer_free(t);
}

/* Promise: saved and loaded it is the same tokenizer, and saving a loaded one copies its bytes. */
static void t07_save(void **state)
{
    (void)state;
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    char a[512], b[512], file[512];
    test_tmp(a, "t07_a");
    test_tmp(b, "t07_b");
    hbk_tokenizer *t = hbk_tokenizer_train(t07_story, strlen(t07_story), 300, true, NULL, &err);
    check_ok(hbk_tokenizer_save(t, a, &err));
    hbk_tokenizer *u = hbk_tokenizer_load(a, NULL, &err);
    if (!u) fail_msg("%s", err.message);
    check_ok(hbk_tokenizer_save(u, b, &err));
    static const char *const names[2] = {"tokenizer.json", "tokenizer_config.json"};
    for (int i = 0; i < 2; i++) {
        uint64_t x, y;
        assert_true(hbk_path(file, a, names[i], NULL) && hbk_file_hash(file, &x, NULL));
        assert_true(hbk_path(file, b, names[i], NULL) && hbk_file_hash(file, &y, NULL));
        assert_true(x == y);
    }
    assert_int_equal(hbk_tokenizer_bos(u), 1);
    assert_int_equal(hbk_tokenizer_eos(u), 2);
    assert_true(hbk_tokenizer_adds_bos(u));
    hbk_tokens ids = {NULL, NULL, 0, 0, false};
    assert_true(hbk_tokenizer_encode(t, t07_story, strlen(t07_story), 0, &ids, NULL));
    t07_expect(u, t07_story, strlen(t07_story), 0, ids.data, ids.n);
    hbk_tokens_free(&ids);
    hbk_tokenizer_free(t);
    hbk_tokenizer_free(u);
}

/* Promise: companions decide bos and eos, config.json's list and 25-digit numbers included. */
static void t07_companions(void **state)
{
    (void)state;
    char dir[512], path[512];
    hbk_error err = {HBK_ERROR_NONE, "", "", 0};
    static const char *const json = T07_PREPEND T07_ADDED("false") T07_MODEL;
    static const char *const config = "{\"add_bos_token\":true,\"bos_token\":{\"content\":\"ab\"},"
                                      "\"model_max_length\":1000000000000000019884624838656}";
    static const char *const model = "{\"bos_token_id\":3,\"eos_token_id\":[4,5]}";
    test_tmp(dir, "t07_folder");
    assert_true(hbk_dir_make(dir, NULL));
    assert_true(hbk_path(path, dir, "tokenizer.json", NULL) &&
                hbk_file_write(path, json, strlen(json), NULL));
    assert_true(hbk_path(path, dir, "config.json", NULL) && hbk_file_write(path, model, strlen(model), NULL));
    assert_true(hbk_path(path, dir, "tokenizer_config.json", NULL) &&
                hbk_file_write(path, config, strlen(config), NULL));
    hbk_tokenizer *t = hbk_tokenizer_load(dir, NULL, &err);
    if (!t) fail_msg("%s", err.message);
    assert_int_equal(hbk_tokenizer_bos(t), 7);
    assert_int_equal(hbk_tokenizer_eos(t), 4);
    assert_true(hbk_tokenizer_adds_bos(t));
    hbk_tokenizer_free(t);
    assert_true(hbk_path(path, dir, "config.json", NULL) &&
                hbk_file_write(path, "{\"eos_token_id\":99}", 19, NULL));
    check_error(hbk_tokenizer_load(dir, NULL, &err), HBK_ERROR_RANGE, "eos_token_id is 99");
    static const char *const gulfs = "{\"added_tokens_decoder\":{\"60000\":{\"content\":\"x\"},"
                                     "\"300000\":{\"content\":\"y\"}}}";
    hbk_text file = {NULL, NULL, 0, 0, false};
    t07_model(&file, 2);
    test_tmp(dir, "t07_gulfs");
    assert_true(hbk_dir_make(dir, NULL));
    assert_true(hbk_path(path, dir, "tokenizer.model", NULL) &&
                hbk_file_write(path, file.data, file.len, NULL));
    assert_true(hbk_path(path, dir, "tokenizer_config.json", NULL) &&
                hbk_file_write(path, gulfs, strlen(gulfs), NULL));
    check_error(hbk_tokenizer_load(dir, NULL, &err), HBK_ERROR_FORMAT, "id 300000");
    hbk_text_free(&file);
}

/* An allocator whose k-th allocation fails. */
typedef struct t07_faults {
    int left;
    int alive;
} t07_faults;

static void *t07_faulty(void *ctx, void *p, size_t old_size, size_t size)
{
    t07_faults *f = (t07_faults *)ctx;
    (void)old_size;
    if (size == 0) {
        f->alive -= p != NULL;
        free(p);
        return NULL;
    }
    if (f->left-- <= 0) return NULL;
    f->alive += p == NULL;
    return realloc(p, size);
}

static bool t07_everything(hbk_allocator *alloc, const char *model, hbk_error *err)
{
    hbk_tokens ids = {alloc, NULL, 0, 0, false};
    hbk_text text = {alloc, NULL, 0, 0, false};
    hbk_tokenizer *t = hbk_tokenizer_train("a cat a mat \xff", 13, 280, true, alloc, err);
    hbk_tokenizer *u = t ? hbk_tokenizer_load(model, alloc, err) : NULL;
    bool ok = u && hbk_tokenizer_encode(t, "a cat sat\xf0\x9f", 11, 0, &ids, err);
    if (!ok) assert_int_equal(ids.n, 0);
    ok = ok && hbk_tokenizer_decode(t, ids.data, ids.n, 0, &text, err);
    if (!ok) assert_int_equal(text.len, 0);
    hbk_tokens_free(&ids);
    hbk_text_free(&text);
    hbk_tokenizer_free(t);
    hbk_tokenizer_free(u);
    return ok;
}

/* Promise: any allocation may fail: an error, nothing leaked, no output touched. */
static void t07_faults_everywhere(void **state)
{
    (void)state;
    hbk_text model = {NULL, NULL, 0, 0, false};
    char path[512];
    t07_model(&model, 2);
    t07_write(path, "t07.model", model.data, model.len);
    hbk_text_free(&model);
    for (int k = 0;; k++) {
        t07_faults faults = {k, 0};
        hbk_allocator alloc;
        memset(&alloc, 0, sizeof alloc);
        alloc.realloc = t07_faulty;
        alloc.ctx = &faults;
        hbk_error err = {HBK_ERROR_NONE, "", "", 0};
        bool ok = t07_everything(&alloc, path, &err);
        assert_int_equal(faults.alive, 0);
        if (ok) break;
        if (err.code != HBK_ERROR_MEMORY) fail_msg("allocation %d: %s", k, err.message);
        assert_true(k < 2000);
    }
}

/* Loading from a file, a text there and back. */
static bool t07_there_and_back(void *ctx, hbk_allocator *alloc, hbk_error *err)
{
    hbk_tokens ids = {alloc, NULL, 0, 0, false};
    hbk_text text = {alloc, NULL, 0, 0, false};
    hbk_tokenizer *t = hbk_tokenizer_load((const char *)ctx, alloc, err);
    char many[600];
    for (int i = 0; i < 600; i++) many[i] = "ab a11 \xff, "[i % 11];
    bool ok = t && hbk_tokenizer_encode(t, many, sizeof many, HBK_ENCODE_SPECIAL, &ids, err) &&
              hbk_tokenizer_decode(t, ids.data, ids.n, 0, &text, err);
    hbk_tokens_free(&ids);
    hbk_text_free(&text);
    hbk_tokenizer_free(t);
    return ok;
}

/* Promise: so it is for every kind of file. */
static void t07_faults_of_files(void **state)
{
    (void)state;
    static const t07_gguf kinds[2] = {{"llama", NULL, 1, 0, 0}, {"gpt2", "smollm", 259, 0, 0}};
    char path[512];
    for (int i = 0; i < 2; i++) {
        t07_gguf_file(path, &kinds[i]);
        fault_sweep(t07_there_and_back, path);
    }
    hbk_text file = {NULL, NULL, 0, 0, false};
    t07_tiktoken_file(&file);
    t07_write(path, "t07_tiktoken.model", file.data, file.len);
    fault_sweep(t07_there_and_back, path);
    hbk_text_free(&file);
    static const t07_row rows[] = {{"a", -9, 1}, {"ab", -1, 5}, {"abx", -2, 1}};
    hbk_tokenizer_free(t07_spm(rows, 3, 1, 1, true)); /* which leaves its file */
    test_tmp(path, "t07_rows.model");
    fault_sweep(t07_there_and_back, path);
    t07_write(path, "t07.json", T07_PREPEND T07_ODD T07_MODEL, strlen(T07_PREPEND T07_ODD T07_MODEL));
    fault_sweep(t07_there_and_back, path);
}

/* ---- reference files */

/* Promise: the ids of sentencepiece itself, with its model file and with llama2.c's. */
static void t07_reference_sentencepiece(void **state)
{
    (void)state;
    hbk_tokenizer *t = t07_reference("tokenizers/llama2.tokenizer.model");
    t07_vectors(t, "tokenizers/vectors/spm_llama2.json", 0);
    const int32_t ids[] = {263, 26308, 29890};
    t07_expect(t,
               "a\xff\xfe"
               "b",
               4, 0, ids, 3);
    const int32_t spaces[] = {259, 15043}, line[] = {1, 13, 15043};
    t07_decodes(t, spaces, 2, 0, "  Hello", 7);
    t07_decodes(t, line, 3, 0, "\n Hello", 7);
    hbk_tokenizer_free(t);
    t = t07_reference("tokenizers/llama2c.tokenizer.bin");
    assert_int_equal(hbk_tokenizer_size(t), 32000);
    t07_vectors(t, "tokenizers/vectors/spm_llama2.json", 0);
    hbk_tokenizer_free(t);
    t = t07_reference("golden/spm/botchan_llamalike.model");
    t07_vectors(t, "golden/spm/botchan_llamalike.vectors.json", 0);
    hbk_tokenizer_free(t);
}

/* Promise: the ids of Hugging Face's tokenizer.json files, special tokens and their quirks included. */
static void t07_reference_json(void **state)
{
    (void)state;
    hbk_tokenizer *t = t07_reference("tokenizers/llama2.tokenizer.json");
    t07_vectors(t, "tokenizers/vectors/hfjs_llama2.json", HBK_ENCODE_SPECIAL);
    assert_int_equal(hbk_tokenizer_bos(t), 1);
    assert_int_equal(hbk_tokenizer_eos(t), 2);
    hbk_tokenizer_free(t);
    t = t07_reference("tokenizers/tinyllama.tokenizer.json");
    t07_vectors(t, "tokenizers/vectors/hfjs_tinyllama.json", HBK_ENCODE_SPECIAL);
    hbk_tokenizer_free(t);
    t = t07_reference("checkpoints/story_hf");
    t07_vectors(t, "tokenizers/vectors/hfjs_story_hf.json", HBK_ENCODE_SPECIAL);
    assert_int_equal(hbk_tokenizer_eos(t), 2);
    hbk_tokenizer_free(t);
}

/* A tokenizer.json from Llama-3's vocabulary and merges, which come as two files. */
static void t07_make_llama3(char path[512])
{
    char vocab_path[512], merges_path[512];
    if (!test_data(vocab_path, "tokenizers/llama3.2.encoder.json")) skip();
    assert_true(test_data(merges_path, "tokenizers/llama3.2.vocab.bpe"));
    hbk_text lines = {NULL, NULL, 0, 0, false};
    assert_true(hbk_file_read(merges_path, 1 << 24, &lines, NULL));
    json_t *root = json_loads(
        "{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","
        "\"pattern\":{\"Regex\":\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+"
        "|\\\\p{N}{1,3}| "
        "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"},"
        "\"behavior\":\"Isolated\",\"invert\":false}," T07_LEVEL(
            "false") "]},"
                     "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"ignore_merges\":"
                     "true}}",
        0, NULL);
    json_t *model = json_object_get(root, "model"), *merges = json_array();
    json_object_set_new(model, "vocab", hbk_json_read(vocab_path, NULL));
    for (char *p = lines.data, *end; (end = strchr(p, '\n')) != NULL; p = end + 1)
        if (*p != '#') json_array_append_new(merges, json_stringn(p, (size_t)(end - p)));
    json_object_set_new(model, "merges", merges);
    test_tmp(path, "t07_llama3.json");
    assert_true(hbk_json_write(path, root, NULL));
    json_decref(root);
    hbk_text_free(&lines);
}

/* llama.cpp's own test texts, and their ids line by line. */
static void t07_ggml_vectors(const hbk_tokenizer *t, const char *in_name, const char *out_name)
{
    static const char *const border = "\n__ggml_vocab_test__\n";
    char path[512];
    hbk_text in = {NULL, NULL, 0, 0, false}, out = in;
    assert_true(test_data(path, in_name) && hbk_file_read(path, 1 << 20, &in, NULL));
    assert_true(test_data(path, out_name) && hbk_file_read(path, 1 << 20, &out, NULL));
    char *p = in.data, *q = out.data, *end;
    int rows = 0;
    for (; (end = strstr(p, border)) != NULL; p = end + strlen(border), rows++) {
        int32_t ids[1024];
        hbk_int n = 0;
        char *line_end = strchr(q, '\n');
        assert_non_null(line_end);
        *line_end = 0;
        for (char *next; n < 1024; q = next) {
            ids[n] = (int32_t)strtol(q, &next, 10);
            if (next == q) break;
            n++;
        }
        q = line_end + 1;
        t07_expect(t, p, (size_t)(end - p), 0, ids, n);
    }
    assert_true(rows > 40);
    hbk_text_free(&in);
    hbk_text_free(&out);
}

/* Promise: llama.cpp's ids, for both families. */
static void t07_reference_ggml(void **state)
{
    (void)state;
    char path[512];
    hbk_tokenizer *t = t07_reference("tokenizers/llama2.tokenizer.model");
    t07_ggml_vectors(t, "tokenizers/vectors/ggml-vocab-llama-spm.gguf.inp",
                     "tokenizers/vectors/ggml-vocab-llama-spm.gguf.out");
    hbk_tokenizer_free(t);
    t07_make_llama3(path);
    for (int i = 0; i < 2; i++) { /* as tokenizer.json, and as Meta's own file */
        if (i > 0) assert_true(test_data(path, "tokenizers/llama3.tokenizer.model.tiktoken"));
        t = hbk_tokenizer_load(path, NULL, NULL);
        assert_non_null(t);
        t07_vectors(t, "tokenizers/vectors/tiktoken_llama3.json", 0);
        t07_ggml_vectors(t, "tokenizers/vectors/ggml-vocab-llama-bpe.gguf.inp",
                         "tokenizers/vectors/ggml-vocab-llama-bpe.gguf.out");
        hbk_tokenizer_free(t);
    }
    t = t07_reference("tokenizers/vectors/ggml-vocab-llama-spm.gguf");
    t07_vectors(t, "tokenizers/vectors/spm_llama2.json", 0);
    t07_ggml_vectors(t, "tokenizers/vectors/ggml-vocab-llama-spm.gguf.inp",
                     "tokenizers/vectors/ggml-vocab-llama-spm.gguf.out");
    hbk_tokenizer_free(t);
}

/* Promise: llama2.c's small vocabulary loads, and any text comes back from it. */
static void t07_reference_tok512(void **state)
{
    (void)state;
    static const char *const text = "Once upon a time,  there was\n a \xf0\x9f\x90\x8b.";
    hbk_tokenizer *t = t07_reference("checkpoints/stories260K/tok512.bin");
    assert_int_equal(hbk_tokenizer_size(t), 512);
    assert_int_equal(hbk_tokenizer_find(t, "<s>"), 1);
    hbk_tokens ids = {NULL, NULL, 0, 0, false};
    assert_true(hbk_tokenizer_encode(t, text, strlen(text), 0, &ids, NULL));
    assert_true(ids.n < 40);
    t07_decodes(t, ids.data, ids.n, 0, text, strlen(text));
    hbk_tokens_free(&ids);
    hbk_tokenizer_free(t);
}

static const struct CMUnitTest tests_07[] = {
    cmocka_unit_test(t07_ranks),
    cmocka_unit_test(t07_no_injection),
    cmocka_unit_test(t07_metaspace),
    cmocka_unit_test(t07_decode),
    cmocka_unit_test(t07_bytes),
    cmocka_unit_test(t07_regexes),
    cmocka_unit_test(t07_refusals),
    cmocka_unit_test(t07_sentencepiece),
    cmocka_unit_test(t07_added_tokens),
    cmocka_unit_test(t07_decoders),
    cmocka_unit_test(t07_merging),
    cmocka_unit_test(t07_long_and_many),
    cmocka_unit_test(t07_piece_kinds),
    cmocka_unit_test(t07_spaces),
    cmocka_unit_test(t07_tiktoken),
    cmocka_unit_test(t07_gguf_vocabulary),
    cmocka_unit_test(t07_gguf_refusals),
    cmocka_unit_test(t07_damaged),
    cmocka_unit_test(t07_nesting),
    cmocka_unit_test(t07_train),
    cmocka_unit_test(t07_train_bytes),
    cmocka_unit_test(t07_save),
    cmocka_unit_test(t07_companions),
    cmocka_unit_test(t07_faults_everywhere),
    cmocka_unit_test(t07_faults_of_files),
    cmocka_unit_test(t07_reference_sentencepiece),
    cmocka_unit_test(t07_reference_json),
    cmocka_unit_test(t07_reference_ggml),
    cmocka_unit_test(t07_reference_tok512),
};
