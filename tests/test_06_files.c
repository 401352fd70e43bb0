/* Chapter 6: files, JSON, JSONL. */

static void t06_write(char path[512], const char *name, const char *text)
{
    test_tmp(path, name);
    assert_true(hbk_file_write(path, text, strlen(text), NULL));
}

static void t06_holds(const char *path, const char *text)
{
    hbk_text got = {NULL, NULL, 0, 0, false};
    assert_true(hbk_file_read(path, 1 << 20, &got, NULL));
    assert_string_equal(hbk_text_string(&got), text);
    hbk_text_free(&got);
}

/* Promise: a file is written whole, read within its limit, hashed; failures name it and change nothing. */
static void t06_files(void **state)
{
    (void)state;
    char path[512], tmp[520];
    hbk_error err;
    hbk_text text = {NULL, NULL, 0, 0, false};
    uint64_t hash;
    t06_write(path, "t06_file", "first");
    t06_write(path, "t06_file", "hello");
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    assert_false(hbk_file_exists(tmp));
    hbk_text_add(&text, "> ");
    assert_true(hbk_file_read(path, 5, &text, &err));
    assert_string_equal(text.data, "> hello");
    check_error(hbk_file_read(path, 4, &text, &err), HBK_ERROR_RANGE, "larger than 4 bytes");
    assert_string_equal(text.data, "> hello");
    assert_true(hbk_file_hash(path, &hash, &err) && hash == hbk_hash(0, "hello", 5));
    hbk_text_free(&text);
    test_tmp(path, "t06 none");
    check_error(hbk_file_read(path, 9, &text, &err), HBK_ERROR_FILE, "t06 none: cannot be opened");
    check_error(hbk_file_hash(path, &hash, &err), HBK_ERROR_FILE, "cannot be opened");
    test_tmp(path, "t06 none/below");
    check_error(hbk_file_write(path, "x", 1, &err), HBK_ERROR_FILE, "cannot be created");
}

/* Promise: what is under construction stands under its .tmp alone; sealed it can be read back; a commit
   replaces the old file, abandoning keeps it; a name that cannot be taken is an error without traces. */
static void t06_construction(void **state)
{
    (void)state;
    char path[512], longer[600];
    hbk_error err;
    hbk_file f;
    memset(&f, 0, sizeof f);
    hbk_file_abandon(&f); /* nothing, twice */
    hbk_file_abandon(&f);
    t06_write(path, "t06_door", "old");
    check_ok(hbk_file_begin(&f, path, &err));
    check_ok(hbk_file_put(&f, "half", 4, &err));
    t06_holds(path, "old");
    hbk_file_abandon(&f);
    t06_holds(path, "old");
    check_ok(hbk_file_begin(&f, path, &err));
    char tmp[512];
    snprintf(tmp, sizeof tmp, "%s", f.tmp);
    check_ok(hbk_file_put(&f, "ne", 2, &err));
    check_ok(hbk_file_put(&f, "w", 1, &err));
    check_ok(hbk_file_seal(&f, &err));
    t06_holds(tmp, "new");
    t06_holds(path, "old");
    check_ok(hbk_file_commit(&f, &err));
    hbk_file_abandon(&f);
    t06_holds(path, "new");
    assert_false(hbk_file_exists(tmp));
    test_tmp(path, "t06_door_folder");
    assert_true(hbk_dir_make(path, NULL));
    check_ok(hbk_file_begin(&f, path, &err));
    snprintf(tmp, sizeof tmp, "%s", f.tmp);
    check_error(hbk_file_commit(&f, &err), HBK_ERROR_FILE, "cannot be replaced");
    assert_false(hbk_file_exists(tmp));
    memset(longer, 'x', sizeof longer);
    longer[508] = 0;
    check_error(hbk_file_begin(&f, longer, &err), HBK_ERROR_RANGE, "507 bytes");
}

/* Promise: folders are made with their parents; a file in the way is an error; paths have a length. */
static void t06_folders(void **state)
{
    (void)state;
    char path[512], file[512], wide[600];
    hbk_error err;
    test_tmp(path, "t06_a/b/c");
    check_ok(hbk_dir_make(path, &err));
    check_ok(hbk_dir_make(path, &err));
    assert_true(hbk_dir_exists(path) && hbk_file_exists(path));
    check_error(hbk_file_read(path, 9, NULL, &err), HBK_ERROR_FILE, "a folder");
    t06_write(file, "t06_file", "x");
    assert_true(hbk_file_exists(file) && !hbk_dir_exists(file));
    check_error(hbk_dir_make(file, &err), HBK_ERROR_FILE, "cannot be made");
    check_error(hbk_dir_make("", &err), HBK_ERROR_RANGE, "1 to 511");
    memset(wide, 'x', sizeof wide);
    wide[599] = 0;
    check_error(hbk_path(path, "/tmp", wide, &err), HBK_ERROR_RANGE, "exceeds 511 bytes");
    assert_true(hbk_path(path, "a", "b", &err) && strcmp(path, "a/b") == 0);
    assert_true(hbk_path(path, path, "c", &err) && strcmp(path, "a/b/c") == 0);
    assert_true(hbk_path(path, "a/", "b", &err) && strcmp(path, "a/b") == 0);
}

/* Promise: a mapping shows a file's bytes; an empty file maps to nothing; closing twice is harmless. */
static void t06_mapping(void **state)
{
    (void)state;
    char path[512];
    hbk_error err;
    hbk_mapping m;
    t06_write(path, "t06_map", "bytes");
    check_ok(hbk_mapping_open(&m, path, &err));
    assert_true(m.size == 5 && memcmp(m.data, "bytes", 5) == 0);
    hbk_mapping_close(&m);
    hbk_mapping_close(&m);
    t06_write(path, "t06_map", "");
    check_ok(hbk_mapping_open(&m, path, &err));
    assert_true(m.size == 0 && m.data != NULL);
    hbk_mapping_close(&m);
    check_error(hbk_mapping_open(&m, "/dev/null", &err), HBK_ERROR_FILE, "device or pipe");
}

/* Promise: an integer beyond 64 bits becomes a real, alone; order and NUL survive a round trip. */
static void t06_json(void **state)
{
    (void)state;
    char path[512];
    hbk_error err;
    t06_write(path, "t06.json",
              "\xef\xbb\xbf{\"z\":1234567890123456789012345,\"n\":-9223372036854775809,"
              "\"max\":9223372036854775807,\"min\":-9223372036854775808,\"a\":3,"
              "\"s\":\"12345678901234567890123 \\\" \\u0000x\",\"r\":2.5e3}");
    json_t *v = hbk_json_read(path, &err);
    if (!v) fail_msg("%s", err.message);
    assert_true(json_is_real(json_object_get(v, "z")));
    check_near(json_real_value(json_object_get(v, "z")), 1234567890123456789012345.0, 1e-15);
    assert_true(json_is_real(json_object_get(v, "n")));
    assert_true(json_integer_value(json_object_get(v, "max")) == INT64_MAX);
    assert_true(json_integer_value(json_object_get(v, "min")) == INT64_MIN);
    assert_true(json_is_integer(json_object_get(v, "a")));
    assert_int_equal(json_string_length(json_object_get(v, "s")), 28);
    check_ok(hbk_json_write(path, v, &err));
    json_t *again = hbk_json_read(path, &err);
    char *x = json_dumps(v, JSON_COMPACT), *y = json_dumps(again, JSON_COMPACT);
    assert_string_equal(x, y);
    assert_non_null(strstr(x, "{\"z\":"));
    free(x);
    free(y);
    json_decref(v);
    json_decref(again);
    t06_write(path, "t06.json", "{\n\"a\": 1,\n}");
    check_error(hbk_json_read(path, &err), HBK_ERROR_FORMAT, "t06.json:3: is no JSON");
    t06_write(path, "t06.json", "[1e999]");
    check_error(hbk_json_read(path, &err), HBK_ERROR_FORMAT, "is no JSON");
}

/* Promise: a missing or wrong field is told with its file and line. */
static void t06_fields(void **state)
{
    (void)state;
    hbk_error err;
    const char *s = "untouched";
    json_t *row = json_pack("{s:s,s:i}", "text", "x", "n", 1);
    assert_true(hbk_json_string(row, "text", &s, "f", 3, &err));
    assert_string_equal(s, "x");
    check_error(hbk_json_string(row, "none", &s, "f.jsonl", 3, &err), HBK_ERROR_FORMAT,
                "f.jsonl:3: the key");
    check_error(hbk_json_string(row, "n", &s, "f.jsonl", 4, &err), HBK_ERROR_FORMAT, "\"n\" is no string");
    assert_int_equal(err.line, 4);
    assert_string_equal(s, "x");
    json_decref(row);
}

/* Reads all rows; their "i" and lines as "i@line ", then the error's message if one ends them. */
static void t06_rows(const char *text, const char *wanted)
{
    char path[512];
    hbk_error err;
    hbk_text got = {NULL, NULL, 0, 0, false};
    int status = -1;
    t06_write(path, "t06.jsonl", text);
    hbk_jsonl_reader *r = hbk_jsonl_open(path, NULL, &err);
    json_t *row;
    while (r && (status = hbk_jsonl_next(r, &row, &err)) == 1)
        hbk_text_printf(&got, "%d@%d ", (int)json_integer_value(json_object_get(row, "i")),
                        (int)hbk_jsonl_line(r));
    if (status < 0) hbk_text_printf(&got, "%d: %s", (int)err.line, strstr(err.message, ": ") + 2);
    if (strncmp(hbk_text_string(&got), wanted, strlen(wanted)) != 0)
        fail_msg("'%s' gave '%s', expected '%s'", text, hbk_text_string(&got), wanted);
    hbk_text_free(&got);
    hbk_jsonl_close(r);
}

/* Promise: BOM, CRLF, blank lines and a last line without a newline are read; the rest is an error that
   names its line. */
static void t06_read_rows(void **state)
{
    (void)state;
    t06_rows("", "");
    t06_rows("\xef\xbb\xbf{\"i\":1}\r\n\r\n  \n{\"i\":2}", "1@1 2@4 ");
    t06_rows(" [ {\"i\":1},\n{\"i\":2} ]\n", "1@1 2@2 ");
    t06_rows("{\"i\":1}\n{\"i\":2", "1@1 2: line 2 is no JSON");
    t06_rows("{\"i\":1}\n\n[2]\n", "1@1 3: row is no JSON object");
    t06_rows("{\"i\":1}\n7\n", "1@1 2: row is no JSON object");
    t06_rows("[{\"i\":1},2]", "1@1 2: row is no JSON object");
    t06_rows("[{\"i\":1},\n{\"i\"]", "2: line 2 is no JSON");
    t06_rows("{\"i\":1}\n{\"i\":\"\xff\"}\n", "1@1 2: line 2 is no JSON");
    t06_rows("{\"i\":\"\\ud800\"}\n", "1: line 1 is no JSON");
    t06_rows("{\"i\":1} {\"i\":2}\n", "1: line 1 is no JSON");
    t06_rows("{\"i\":5,\"x\":1000000000000000019884624}\n", "5@1 ");
    char path[512];
    hbk_error err;
    test_tmp(path, "t06 none");
    check_error(hbk_jsonl_open(path, NULL, &err), HBK_ERROR_FILE, "cannot be opened");
}

static void t06_put(hbk_jsonl_writer *w, int i)
{
    json_t *row = json_pack("{s:i,s:s}", "z", i, "a", "\xc3\xa9/\n");
    assert_true(hbk_jsonl_write(w, row, NULL));
    json_decref(row);
}

/* Promise: rows append by waves; opening again keeps what was asked for and cuts the torn rest. */
static void t06_write_rows(void **state)
{
    (void)state;
    char path[512];
    hbk_error err;
    hbk_int n = -1;
    test_tmp(path, "t06_out.jsonl");
    remove(path);
    check_ok(hbk_jsonl_count(path, &n, &err));
    assert_int_equal(n, 0);
    hbk_jsonl_writer *w = hbk_jsonl_create(path, 0, NULL, &err);
    assert_non_null(w);
    t06_put(w, 0);
    check_ok(hbk_jsonl_sync(w, &err));
    t06_holds(path, "{\"z\":0,\"a\":\"\xc3\xa9/\\n\"}\n");
    t06_put(w, 1);
    t06_put(w, 2);
    check_ok(hbk_jsonl_finish(w, &err));
    FILE *f = fopen(path, "ab"); /* a wave torn in its second row */
    fputs("{\"z\":3}\n{\"z\":", f);
    fclose(f);
    check_ok(hbk_jsonl_count(path, &n, &err));
    assert_int_equal(n, 4);
    check_error(hbk_jsonl_create(path, 5, NULL, &err), HBK_ERROR_DATA,
                "holds 4 complete rows, expected at least 5");
    w = hbk_jsonl_create(path, 2, NULL, &err);
    assert_non_null(w);
    t06_put(w, 9);
    check_ok(hbk_jsonl_finish(w, &err));
    t06_holds(path, "{\"z\":0,\"a\":\"\xc3\xa9/\\n\"}\n{\"z\":1,\"a\":\"\xc3\xa9/\\n\"}\n"
                    "{\"z\":9,\"a\":\"\xc3\xa9/\\n\"}\n");
    w = hbk_jsonl_create(path, 0, NULL, &err);
    check_ok(hbk_jsonl_finish(w, &err));
    t06_holds(path, "");
    assert_true(hbk_jsonl_finish(NULL, &err));
    test_tmp(path, "t06 gone.jsonl");
    check_error(hbk_jsonl_create(path, 1, NULL, &err), HBK_ERROR_FILE, "cannot be opened");
    assert_false(hbk_file_exists(path));
}

/* Promise: a real is written in few digits that give the same number back, stays a real, and digits inside
   strings stay as they are. */
static void t06_reals(void **state)
{
    (void)state;
    hbk_error err;
    hbk_text text = {NULL, NULL, 0, 0, false};
    json_t *v = json_pack("{s:[f,f,f,f,f,f], s:s, s:i}", "0.10000000000000001", 0.1, 1.0 / 3, 2e-5, 1e300,
                          3.0, -0.0, "s", "a \" 0.10000000000000001 \\", "n", 12);
    hbk_text_add(&text, "> 0.50000000000000000 ");
    check_ok(hbk_json_text(&text, v, JSON_COMPACT, &err));
    assert_string_equal(text.data, "> 0.50000000000000000 {\"0.10000000000000001\":"
                                   "[0.1,0.3333333333333333,2e-5,1e300,3.0,-0.0],"
                                   "\"s\":\"a \\\" 0.10000000000000001 \\\\\",\"n\":12}");
    json_decref(v);
    hbk_rng rng = hbk_rng_at(1, "t06", 0);
    for (int i = 0; i < 2000; i++) { /* any bits that are a number */
        uint64_t bits = hbk_rng_next(&rng);
        double x, back;
        memcpy(&x, &bits, sizeof x);
        if (!isfinite(x)) continue;
        hbk_text_clear(&text);
        v = json_real(x);
        check_ok(hbk_json_text(&text, v, 0, &err));
        json_decref(v);
        v = json_loads(text.data, JSON_DECODE_ANY, NULL);
        assert_true(json_is_real(v));
        back = json_real_value(v);
        assert_memory_equal(&back, &x, sizeof x);
        json_decref(v);
    }
    check_error(hbk_json_text(&text, NULL, 0, &err), HBK_ERROR_MEMORY, "no JSON value");
    hbk_text_free(&text);
}

/* Promise: what differs from the beginning is named with both values; what is only in the old is ignored. */
static void t06_same(void **state)
{
    (void)state;
    hbk_error err;
    json_t *then = json_pack("{s:i s:f s:s}", "a", 1, "b", 0.1, "old", "x");
    json_t *now = json_pack("{s:i s:f}", "a", 1, "b", 0.1);
    check_ok(hbk_json_same(then, now, "run", "another run", &err));
    json_object_set_new(now, "b", json_real(0.2));
    check_error(hbk_json_same(then, now, "run", "another run", &err), HBK_ERROR_OPTION,
                "run: was begun with b 0.1, not 0.2: use the same, or another run");
    json_object_set_new(now, "b", json_real(0.1));
    json_object_set_new(now, "c", json_true());
    check_error(hbk_json_same(then, now, "run", "another run", &err), HBK_ERROR_OPTION, "c unset, not true");
    check_error(hbk_json_same(NULL, now, "run", "another run", &err), HBK_ERROR_OPTION, "a unset, not 1");
    json_decref(then);
    json_decref(now);
}

/* Promise: setting aside takes the first free number, for files and folders. */
static void t06_set_aside(void **state)
{
    (void)state;
    char path[512], to[520];
    hbk_error err;
    for (int k = 1; k <= 2; k++) {
        t06_write(path, "t06_aside", k == 1 ? "one" : "two");
        check_ok(hbk_file_set_aside(path, &err));
        assert_false(hbk_file_exists(path));
        snprintf(to, sizeof to, "%s.%d", path, k);
        t06_holds(to, k == 1 ? "one" : "two");
    }
    check_ok(hbk_dir_make(path, &err));
    check_ok(hbk_file_set_aside(path, &err));
    snprintf(to, sizeof to, "%s.3", path);
    assert_true(hbk_dir_exists(to));
    check_error(hbk_file_set_aside(path, &err), HBK_ERROR_FILE, "cannot be renamed");
}

static const struct CMUnitTest tests_06[] = {
    cmocka_unit_test(t06_files),   cmocka_unit_test(t06_construction), cmocka_unit_test(t06_folders),
    cmocka_unit_test(t06_mapping), cmocka_unit_test(t06_json),         cmocka_unit_test(t06_fields),
    cmocka_unit_test(t06_reals),   cmocka_unit_test(t06_same),         cmocka_unit_test(t06_set_aside),
    cmocka_unit_test(t06_read_rows), cmocka_unit_test(t06_write_rows),
};
