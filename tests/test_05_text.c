/* Chapter 5: strings and UTF-8. */

/* Promise: a text grows by any of its functions, is always NUL-terminated, and reads "" while empty. */
static void t05_text(void **state)
{
    (void)state;
    hbk_text t = {NULL, NULL, 0, 0, false};
    char wide[600];
    assert_string_equal(hbk_text_string(&t), "");
    hbk_text_add(&t, NULL);
    hbk_text_append(&t, "", 0);
    assert_null(t.data);
    hbk_text_add(&t, "one ");
    hbk_text_append(&t, "two, cut here", 4);
    hbk_text_printf(&t, " %d%s", 3, "!");
    assert_string_equal(t.data, "one two, 3!");
    assert_int_equal(t.len, 11);
    memset(wide, 'x', sizeof wide);
    wide[599] = 0;
    hbk_text_clear(&t);
    hbk_text_printf(&t, "<%s>", wide); /* longer than the printf's own buffer */
    assert_int_equal(t.len, 601);
    assert_true(t.data[0] == '<' && t.data[600] == '>' && t.data[601] == 0);
    assert_true(hbk_text_ok(&t, NULL));
    hbk_text_free(&t);
    assert_true(t.data == NULL && t.len == 0);
}

/* Promise: running out of memory is remembered, changes nothing, and is told at the end. */
static void t05_text_fails(void **state)
{
    (void)state;
    hbk_allocator alloc;
    hbk_error err;
    memset(&alloc, 0, sizeof alloc);
    alloc.limit = 400;
    hbk_text t = {&alloc, NULL, 0, 0, false};
    hbk_text_add(&t, "kept");
    for (int i = 0; i < 100; i++) hbk_text_add(&t, "more and more");
    size_t len = t.len;
    hbk_text_add(&t, "x");
    assert_int_equal(t.len, len);
    check_error(hbk_text_ok(&t, &err), HBK_ERROR_MEMORY, "could not grow");
    hbk_text_clear(&t);
    assert_false(hbk_text_ok(&t, NULL)); /* clearing does not forget */
    hbk_text_free(&t);
    assert_true(hbk_text_ok(&t, NULL));
    assert_int_equal(alloc.live, 0);
}

/* Promise: every code point survives encoding and decoding, in the shortest form. */
static void t05_round_trip(void **state)
{
    (void)state;
    for (int32_t cp = 0, got; cp <= 0x10FFFF; cp++) {
        char s[5] = "";
        size_t n = hbk_utf8_encode(s, cp), m = hbk_utf8_decode(s, n, &got);
        bool surrogate = cp >= 0xD800 && cp <= 0xDFFF;
        if (n != (size_t)(cp < 0x80 ? 1 : cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4)) fail_msg("U+%04X", cp);
        if (surrogate ? got != -1 || m != 1 : got != cp || m != n) fail_msg("U+%04X", cp);
        if (!surrogate && n > 1 && (hbk_utf8_decode(s, n - 1, &got) != 1 || got != -1))
            fail_msg("U+%04X", cp);
    }
}

/* Promise: overlong, cut, stray and too large sequences are invalid, one byte at a time. */
static void t05_invalid(void **state)
{
    (void)state;
    static const char *const bad[] = {"\x80",
                                      "\xc0\x80",
                                      "\xc1\xbf",
                                      "\xe0\x9f\xbf",
                                      "\xf0\x8f\xbf\xbf",
                                      "\xed\xa0\x80",
                                      "\xf4\x90\x80\x80",
                                      "\xf8\x88\x80\x80\x80",
                                      "\xff",
                                      "\xe2\x28\xa1",
                                      "\xc3"};
    int32_t cp;
    size_t at = 99;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(hbk_utf8_decode(bad[i], strlen(bad[i]), &cp), 1);
        assert_int_equal(cp, -1);
    }
    assert_int_equal(hbk_utf8_decode("", 0, &cp), 0);
    assert_false(hbk_utf8_valid("ab\xc3\xa9\xff", 5, &at));
    assert_int_equal(at, 4);
    assert_true(hbk_utf8_valid("ab\xc3\xa9", 4, NULL));
    assert_int_equal(hbk_utf8_length("a\xc3\xa9\xf0\x9f\x90\x8b\xff\x80", 9), 5);
    assert_int_equal(hbk_utf8_length("", 0), 0);
}

static const struct CMUnitTest tests_05[] = {
    cmocka_unit_test(t05_text),
    cmocka_unit_test(t05_text_fails),
    cmocka_unit_test(t05_round_trip),
    cmocka_unit_test(t05_invalid),
};
