/* Chapter 6: files, JSON, JSONL, GGUF. */

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
    test_tmp(path, "t06_nowhere");
    assert_int_equal(symlink("t06_not_there", path), 0); /* mkdir's reason, not that of a look afterwards */
    check_error(hbk_dir_make(path, &err), HBK_ERROR_FILE, "cannot be made: File exists");
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

/* ---- GGUF ----------------------------------------------------------------------- */

/* Describes a tensor of up to two dimensions (0: none) in PyTorch's order. */
static void t06_tensor(hbk_gguf_writer *w, const char *name, const char *type, hbk_int rows, hbk_int cols)
{
    hbk_gguf_tensor t;
    memset(&t, 0, sizeof t);
    t.name = name;
    t.type = type;
    if (rows) t.shape[t.n_dims++] = rows;
    if (cols) t.shape[t.n_dims++] = cols;
    hbk_gguf_put_tensor(w, &t);
}

/* A file with a value of every type, arrays, and tensors of four types. */
static void t06_gguf_write(const char *path)
{
    static const struct {
        const char *key;
        hbk_gguf_type type;
        hbk_int x;
    } whole[] = {{"a.u8", HBK_GGUF_U8, 200},          {"a.i8", HBK_GGUF_I8, -3},
                 {"a.u16", HBK_GGUF_U16, 65535},      {"a.i16", HBK_GGUF_I16, -32768},
                 {"a.u32", HBK_GGUF_U32, 4294967295}, {"a.i32", HBK_GGUF_I32, -1},
                 {"a.u64", HBK_GGUF_U64, INT64_MAX},  {"a.i64", HBK_GGUF_I64, INT64_MIN}};
    hbk_error err;
    unsigned char data[512];
    for (int i = 0; i < 512; i++) data[i] = (unsigned char)i;
    hbk_gguf_writer *w = hbk_gguf_create(path, NULL, &err);
    assert_non_null(w);
    hbk_gguf_put_string(w, "general.architecture", "llama", 5);
    for (size_t i = 0; i < 8; i++) hbk_gguf_put_int(w, whole[i].key, whole[i].type, whole[i].x);
    hbk_gguf_put_real(w, "a.f32", 0.1);
    hbk_gguf_put_bool(w, "a.bool", true);
    hbk_gguf_put_string(w, "a.nul", "x\0y", 3);
    hbk_gguf_put_string(w, "a.none", "", 0);
    hbk_gguf_put_array(w, "b.words", HBK_GGUF_STRING, 3);
    hbk_gguf_add_string(w, "one", 3);
    hbk_gguf_add_string(w, "", 0);
    hbk_gguf_add_string(w, "\xc4\xa0the", 5);
    hbk_gguf_put_array(w, "b.scores", HBK_GGUF_F32, 2);
    hbk_gguf_add_real(w, -1.5);
    hbk_gguf_add_real(w, 1e9);
    hbk_gguf_put_array(w, "b.types", HBK_GGUF_I32, 2);
    hbk_gguf_add_int(w, 6);
    hbk_gguf_add_int(w, -6);
    hbk_gguf_put_array(w, "b.empty", HBK_GGUF_STRING, 0);
    t06_tensor(w, "floats", "F32", 2, 3); /* 24 bytes, padded to 32 */
    t06_tensor(w, "blocks", "Q4_0", 2, 64);
    t06_tensor(w, "one", "F16", 0, 0);
    t06_tensor(w, "line", "BF16", 5, 0);
    hbk_gguf_put_data(w, data, 30); /* pieces need not be tensors */
    hbk_gguf_put_data(w, data + 30, 24 + 72 + 2 + 10 - 30);
    check_ok(hbk_gguf_finish(w, &err));
}

/* Every value and byte of an open file, so that a sanitizer sees a pointer that leads nowhere. */
static uint64_t t06_gguf_walk(const hbk_gguf *g)
{
    uint64_t h = 0;
    for (hbk_int i = 0; i < hbk_gguf_key_count(g); i++) {
        const hbk_gguf_value *v = hbk_gguf_key_at(g, i);
        assert_ptr_equal(hbk_gguf_find(g, v->key), v);
        for (hbk_int k = 0; k < v->n; k++) {
            size_t n = 0;
            double x = 0;
            bool flag = false;
            const char *s = hbk_gguf_string_at(v, k, &n);
            if (s) h = hbk_hash(h, s, n);
            if (hbk_gguf_real_at(v, k, &x)) h = hbk_hash(h, &x, sizeof x);
            if (hbk_gguf_bool_at(v, k, &flag)) h = hbk_hash(h, flag ? "y" : "n", 1);
        }
    }
    for (hbk_int i = 0; i < hbk_gguf_tensor_count(g); i++) {
        const hbk_gguf_tensor *t = hbk_gguf_tensor_at(g, i);
        assert_ptr_equal(hbk_gguf_tensor_find(g, t->name), t);
        h = hbk_hash(h, t->data, t->bytes);
    }
    return h;
}

/* Promise: what is written is read back: every type, arrays, strings with NUL, shapes in PyTorch's order. */
static void t06_gguf_values(void **state)
{
    (void)state;
    static const char *const keys[8] = {"a.u8", "a.i8", "a.u16", "a.i16", "a.u32", "a.i32", "a.u64", "a.i64"};
    static const hbk_int whole[8] = {200, -3, 65535, -32768, 4294967295, -1, INT64_MAX, INT64_MIN};
    char path[512];
    hbk_error err;
    hbk_int x = 7;
    double r = 7;
    bool b = false;
    const char *s = NULL;
    size_t n = 0;
    const hbk_gguf_value *v;
    test_tmp(path, "t06.gguf");
    t06_gguf_write(path);
    hbk_gguf *g = hbk_gguf_open(path, NULL, &err);
    if (!g) fail_msg("%s", err.message);
    assert_int_equal(hbk_gguf_key_count(g), 17);
    for (int i = 0; i < 8; i++) {
        check_ok(hbk_gguf_int(g, keys[i], &x, &err));
        assert_int_equal(x, whole[i]);
        check_ok(hbk_gguf_real(g, keys[i], &r, &err));
        assert_true(r == (double)whole[i]);
    }
    check_ok(hbk_gguf_real(g, "a.f32", &r, &err) && hbk_gguf_bool(g, "a.bool", &b, &err));
    assert_true(r == (double)0.1f && b);
    check_ok(hbk_gguf_string(g, "a.nul", &s, &n, &err));
    assert_true(n == 3 && !memcmp(s, "x\0y", 3));
    check_ok(hbk_gguf_string(g, "a.none", &s, &n, &err));
    assert_int_equal(n, 0);
    check_ok(hbk_gguf_array(g, "b.words", HBK_GGUF_STRING, &v, &err));
    assert_true(v->n == 3 && !memcmp(hbk_gguf_string_at(v, 2, &n), "\xc4\xa0the", 5) && n == 5);
    check_ok(hbk_gguf_array(g, "b.scores", HBK_GGUF_F32, &v, &err));
    assert_true(v->n == 2 && hbk_gguf_real_at(v, 0, &r) && r == -1.5);
    check_ok(hbk_gguf_array(g, "b.types", HBK_GGUF_I32, &v, &err));
    assert_true(v->n == 2 && hbk_gguf_int_at(v, 1, &x) && x == -6);
    check_ok(hbk_gguf_array(g, "b.empty", HBK_GGUF_STRING, &v, &err));
    assert_int_equal(v->n, 0);
    x = 99; /* a default stays */
    check_ok(hbk_gguf_int(g, "absent", &x, &err) && hbk_gguf_array(g, "absent", HBK_GGUF_I32, &v, &err));
    assert_true(x == 99 && !v);
    check_error(hbk_gguf_int(g, "a.f32", &x, &err), HBK_ERROR_FORMAT, "key a.f32: expected a whole number");
    check_error(hbk_gguf_int(g, "b.types", &x, &err), HBK_ERROR_FORMAT, "found an array of i32");
    check_error(hbk_gguf_real(g, "a.bool", &r, &err), HBK_ERROR_FORMAT, "expected a number, found bool");
    check_error(hbk_gguf_bool(g, "a.u8", &b, &err), HBK_ERROR_FORMAT, "expected a bool, found u8");
    check_error(hbk_gguf_string(g, "b.words", &s, &n, &err), HBK_ERROR_FORMAT, "expected a string");
    check_error(hbk_gguf_array(g, "b.scores", HBK_GGUF_I32, &v, &err), HBK_ERROR_FORMAT,
                "key b.scores: expected an array of i32, found an array of f32");
    assert_true(x == 99 && !v);
    const hbk_gguf_tensor *t = hbk_gguf_tensor_find(g, "floats");
    assert_true(t && t->n_dims == 2 && t->shape[0] == 2 && t->shape[1] == 3 && t->bytes == 24);
    assert_true(t->data[5] == 5 && !strcmp(t->type, "F32"));
    t = hbk_gguf_tensor_find(g, "blocks");
    assert_true(t && t->bytes == 72 && t->data[0] == 24 && t->data[71] == 95);
    t = hbk_gguf_tensor_find(g, "one");
    assert_true(t && t->n_dims == 0 && t->bytes == 2 && t->data[0] == 96);
    assert_true(hbk_gguf_tensor_at(g, 3)->data[9] == 107 && !hbk_gguf_tensor_find(g, "two"));
    hbk_gguf_close(g);
    hbk_gguf_close(NULL);
}

/* Promise: a small file is, to the byte, what the format's description says. */
static void t06_gguf_bytes(void **state)
{
    (void)state;
    static const char want[] = "GGUF\3\0\0\0\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0"
                               "\1\0\0\0\0\0\0\0k\4\0\0\0\7\0\0\0"
                               "\2\0\0\0\0\0\0\0kk\11\0\0\0\10\0\0\0\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0hi"
                               "\1\0\0\0\0\0\0\0w\2\0\0\0\3\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0\1\0\0\0"
                               "\0\0\0\0\0\0\0\0";
    char path[512], data[12] = "abcdefghijk";
    hbk_error err;
    hbk_text got = {NULL, NULL, 0, 0, false};
    test_tmp(path, "t06 small.gguf");
    hbk_gguf_writer *w = hbk_gguf_create(path, NULL, &err);
    hbk_gguf_put_int(w, "k", HBK_GGUF_U32, 7);
    hbk_gguf_put_array(w, "kk", HBK_GGUF_STRING, 1);
    hbk_gguf_add_string(w, "hi", 2);
    t06_tensor(w, "w", "F16", 2, 3);
    hbk_gguf_put_data(w, data, 12);
    check_ok(hbk_gguf_finish(w, &err));
    check_ok(hbk_file_read(path, 1 << 20, &got, &err));
    size_t table = sizeof want - 1, start = (table + 31) / 32 * 32;
    assert_int_equal(got.len, start + 32);
    assert_memory_equal(got.data, want, table);
    for (size_t i = table; i < start; i++) assert_int_equal(got.data[i], 0);
    assert_memory_equal(got.data + start, data, 12);
    for (size_t i = start + 12; i < got.len; i++) assert_int_equal(got.data[i], 0);
    hbk_text_free(&got);
}

/* Promise: a file that cannot be finished does not appear, and what stood there stays. */
static void t06_gguf_writer_fails(void **state)
{
    (void)state;
    char path[512], tmp[520];
    hbk_error err;
    t06_write(path, "t06 old.gguf", "old");
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    hbk_gguf_writer *w = hbk_gguf_create(path, NULL, &err);
    hbk_gguf_put_int(w, "k", HBK_GGUF_U8, 256);
    check_error(hbk_gguf_finish(w, &err), HBK_ERROR_RANGE, "256 is no u8");
    w = hbk_gguf_create(path, NULL, &err);
    hbk_gguf_put_bool(w, "k", true);
    hbk_gguf_put_bool(w, "k", false);
    check_error(hbk_gguf_finish(w, &err), HBK_ERROR_FORMAT, "key k: is there twice");
    w = hbk_gguf_create(path, NULL, &err);
    t06_tensor(w, "w", "Q8_0", 2, 31);
    check_error(hbk_gguf_finish(w, &err), HBK_ERROR_RANGE, "tensor w: no size for this shape in type Q8_0");
    w = hbk_gguf_create(path, NULL, &err);
    t06_tensor(w, "w", "F32", 2, 4);
    hbk_gguf_put_data(w, "1234567", 7);
    check_error(hbk_gguf_finish(w, &err), HBK_ERROR_DATA, "the data of 1 of 1 tensors are missing");
    w = hbk_gguf_create(path, NULL, &err);
    t06_tensor(w, "w", "F32", 1, 2);
    hbk_gguf_put_data(w, "12345678", 8);
    assert_true(hbk_file_exists(tmp));
    hbk_gguf_discard(w);
    hbk_gguf_discard(NULL);
    assert_false(hbk_file_exists(tmp));
    t06_holds(path, "old");
    test_tmp(path, "t06 none/below.gguf");
    w = hbk_gguf_create(path, NULL, &err);
    check_error(hbk_gguf_finish(w, &err), HBK_ERROR_FILE, "cannot be created");
}

/* ---- files that are wrong */

/* A GGUF under construction, piece by piece: tests break each piece. */
typedef struct t06_raw {
    hbk_text head, table;
} t06_raw;

static void t06_raw_begin(t06_raw *r, uint32_t version, uint64_t n_tensors, uint64_t n_keys)
{
    memset(r, 0, sizeof *r);
    hbk_text_append(&r->head, "GGUF", 4);
    hbk__gguf_emit(&r->head, version, 4);
    hbk__gguf_emit(&r->head, n_tensors, 8);
    hbk__gguf_emit(&r->head, n_keys, 8);
}

static void t06_raw_key(t06_raw *r, const char *name, uint32_t type)
{
    hbk__gguf_emit_string(&r->head, name, strlen(name));
    hbk__gguf_emit(&r->head, type, 4);
}

static void t06_raw_tensor(t06_raw *r, const char *name, uint64_t rows, uint64_t cols, uint32_t type,
                           uint64_t offset)
{
    hbk__gguf_emit_string(&r->head, name, strlen(name));
    hbk__gguf_emit(&r->head, 2, 4);
    hbk__gguf_emit(&r->head, cols, 8);
    hbk__gguf_emit(&r->head, rows, 8);
    hbk__gguf_emit(&r->head, type, 4);
    hbk__gguf_emit(&r->head, offset, 8);
}

/* Pads the tables, appends n bytes of data, writes the file, and expects this failure of its opening. */
static void t06_raw_refused(t06_raw *r, size_t n, hbk_code code, const char *part)
{
    char path[512];
    hbk_error err;
    while (r->head.len % 32) hbk_text_append(&r->head, "", 1);
    for (size_t i = 0; i < n; i++) hbk_text_append(&r->head, "", 1);
    test_tmp(path, "t06 wrong.gguf");
    assert_true(hbk_file_write(path, r->head.data, r->head.len, NULL));
    check_error(hbk_gguf_open(path, NULL, &err), code, part);
    hbk_text_free(&r->head);
}

/* Promise: headers and keys that are wrong are refused, each by its name. */
static void t06_gguf_wrong_keys(void **state)
{
    (void)state;
    t06_raw r;
    const hbk_code format = HBK_ERROR_FORMAT, unsupported = HBK_ERROR_UNSUPPORTED;
    t06_raw_begin(&r, 3, 0, 0);
    r.head.data[0] = 'g';
    t06_raw_refused(&r, 0, format, "is no GGUF file");
    t06_raw_begin(&r, 1, 0, 0);
    t06_raw_refused(&r, 0, unsupported, "GGUF of version 1: 2 and 3 are supported");
    t06_raw_begin(&r, 3u << 24, 0, 0);
    t06_raw_refused(&r, 0, unsupported, "big-endian GGUF");
    t06_raw_begin(&r, 3, 0, (uint64_t)1 << 63);
    t06_raw_refused(&r, 0, format, "announces 0 tensors and 9223372036854775808 keys");
    t06_raw_begin(&r, 3, UINT64_MAX, 0);
    t06_raw_refused(&r, 0, format, "announces 18446744073709551615 tensors");
    t06_raw_begin(&r, 3, 0, 1);
    hbk__gguf_emit(&r.head, UINT64_MAX, 8);
    t06_raw_refused(&r, 32, format, "key 1: its name has 18446744073709551615 bytes, expected 1 to 65535");
    t06_raw_begin(&r, 3, 0, 1);
    hbk__gguf_emit_string(&r.head, "a\0b", 3);
    t06_raw_refused(&r, 32, format, "key 1: its name holds a NUL byte");
    t06_raw_begin(&r, 3, 0, 1);
    t06_raw_key(&r, "k", 13);
    t06_raw_refused(&r, 32, format, "key k: unknown value type 13");
    t06_raw_begin(&r, 3, 0, 1);
    t06_raw_key(&r, "k", HBK_GGUF_STRING);
    hbk__gguf_emit(&r.head, ((uint64_t)1 << 30) + 1, 8);
    t06_raw_refused(&r, 32, HBK_ERROR_RANGE, "key k: a string of 1073741825 bytes, at most 1073741824");
    t06_raw_begin(&r, 3, 0, 1);
    t06_raw_key(&r, "k", HBK_GGUF_STRING);
    hbk__gguf_emit(&r.head, 1000, 8);
    t06_raw_refused(&r, 32, format, "truncated: the file ends within key k");
    t06_raw_begin(&r, 3, 0, 1);
    t06_raw_key(&r, "k", HBK_GGUF_ARRAY);
    hbk__gguf_emit(&r.head, HBK_GGUF_ARRAY, 4);
    t06_raw_refused(&r, 64, unsupported, "key k: an array of arrays is not supported");
    for (int s = 0; s < 2; s++) { /* 2^62 strings or numbers: times their size, 2^64 and more */
        t06_raw_begin(&r, 3, 0, 1);
        t06_raw_key(&r, "k", HBK_GGUF_ARRAY);
        hbk__gguf_emit(&r.head, s ? HBK_GGUF_STRING : HBK_GGUF_U32, 4);
        hbk__gguf_emit(&r.head, (uint64_t)1 << 62, 8);
        t06_raw_refused(&r, 64, HBK_ERROR_RANGE, "key k: an array of 4611686018427387904 elements");
        t06_raw_begin(&r, 3, 0, 1);
        t06_raw_key(&r, "k", HBK_GGUF_ARRAY);
        hbk__gguf_emit(&r.head, s ? HBK_GGUF_STRING : HBK_GGUF_U32, 4);
        hbk__gguf_emit(&r.head, (uint64_t)1 << 30, 8);
        t06_raw_refused(&r, 64, format, "truncated: the file ends within key k");
    }
    t06_raw_begin(&r, 3, 0, 2);
    t06_raw_key(&r, "k", HBK_GGUF_BOOL);
    hbk__gguf_emit(&r.head, 1, 1);
    t06_raw_key(&r, "k", HBK_GGUF_U8);
    hbk__gguf_emit(&r.head, 1, 1);
    t06_raw_refused(&r, 0, format, "key k: is there twice");
    for (int i = 0; i < 3; i++) {
        static const uint64_t wrong[3] = {0, 24, (uint64_t)1 << 40};
        t06_raw_begin(&r, 3, 0, 1);
        t06_raw_key(&r, "general.alignment", HBK_GGUF_U64);
        hbk__gguf_emit(&r.head, wrong[i], 8);
        t06_raw_refused(&r, 0, format, "key general.alignment: is ");
    }
    t06_raw_begin(&r, 3, 0, 1);
    t06_raw_key(&r, "general.alignment", HBK_GGUF_U64);
    hbk__gguf_emit(&r.head, UINT64_MAX, 8);
    t06_raw_refused(&r, 0, format, "key general.alignment: expected a whole number below 2^63");
    char path[512];
    hbk_error err;
    t06_write(path, "t06 pointer.gguf", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n");
    check_error(hbk_gguf_open(path, NULL, &err), format, "git-lfs pointer");
    t06_write(path, "t06 empty.gguf", "");
    check_error(hbk_gguf_open(path, NULL, &err), format, "is no GGUF file");
}

/* Promise: tensors that are wrong are refused, each by its name. */
static void t06_gguf_wrong_tensors(void **state)
{
    (void)state;
    t06_raw r;
    static const struct {
        uint64_t rows, cols, offset;
        uint32_t type;
        hbk_code code;
        const char *message;
    } one[] = {
        {0, 4, 0, 0, HBK_ERROR_FORMAT, "tensor w: a dimension of 0"},
        {2, (uint64_t)1 << 63, 0, 0, HBK_ERROR_FORMAT, "tensor w: a dimension of 9223372036854775808"},
        {(uint64_t)1 << 32, (uint64_t)1 << 31, 0, 0, HBK_ERROR_FORMAT, "tensor w: its shape overflows"},
        {(uint64_t)1 << 31, (uint64_t)1 << 30, 0, 0, HBK_ERROR_FORMAT, "tensor w: its shape overflows"},
        {2, 33, 0, 2, HBK_ERROR_FORMAT, "its rows are not whole blocks of 32, as Q4_0 asks for"},
        {2, 4, 0, 4, HBK_ERROR_UNSUPPORTED, "tensor w: unknown tensor type 4"},
        {2, 4, 0, UINT32_MAX, HBK_ERROR_UNSUPPORTED, "tensor w: unknown tensor type 4294967295"},
        {2, 4, 4, 0, HBK_ERROR_FORMAT, "its offset 4 is no multiple of general.alignment 32"},
        {2, 4, (uint64_t)1 << 63, 0, HBK_ERROR_FORMAT, "truncated: tensor w has 32 bytes at offset 92233"},
        {2, 4, 64, 0, HBK_ERROR_FORMAT, "truncated: tensor w ends at byte 192, the file at 160"},
        {2, 9, 0, 0, HBK_ERROR_FORMAT, "truncated: tensor w ends at byte 168, the file at 160"},
    };
    for (size_t i = 0; i < sizeof one / sizeof *one; i++) {
        t06_raw_begin(&r, 3, 1, 0);
        t06_raw_tensor(&r, "w", one[i].rows, one[i].cols, one[i].type, one[i].offset);
        t06_raw_refused(&r, 64, one[i].code, one[i].message);
    }
    t06_raw_begin(&r, 3, 1, 0);
    hbk__gguf_emit_string(&r.head, "w", 1);
    hbk__gguf_emit(&r.head, 5, 4);
    t06_raw_refused(&r, 64, HBK_ERROR_FORMAT, "tensor w: has 5 dimensions, at most 4");
    char name[65] = "0123456789012345678901234567890123456789012345678901234567890123";
    t06_raw_begin(&r, 3, 1, 0);
    t06_raw_tensor(&r, name, 2, 4, 0, 0);
    t06_raw_refused(&r, 64, HBK_ERROR_FORMAT, "tensor 1: its name has 64 bytes, expected 1 to 63");
    t06_raw_begin(&r, 3, 2, 0);
    t06_raw_tensor(&r, "w", 2, 4, 0, 0);
    t06_raw_tensor(&r, "v", 2, 4, 0, 0);
    t06_raw_refused(&r, 64, HBK_ERROR_FORMAT, " overlap");
    t06_raw_begin(&r, 3, 2, 0);
    t06_raw_tensor(&r, "w", 2, 5, 0, 32);
    t06_raw_tensor(&r, "v", 2, 5, 0, 64);
    t06_raw_refused(&r, 128, HBK_ERROR_FORMAT, "tensors w and v overlap");
    t06_raw_begin(&r, 3, 2, 0);
    t06_raw_tensor(&r, "w", 2, 4, 0, 0);
    t06_raw_tensor(&r, "w", 2, 4, 0, 32);
    t06_raw_refused(&r, 64, HBK_ERROR_FORMAT, "tensor w: is there twice");
}

/* Opens n bytes that lie in a block of just that size, where a sanitizer sees every step beyond it. */
static bool t06_gguf_parse(const char *bytes, size_t n, hbk_error *err)
{
    hbk_gguf *g = (hbk_gguf *)hbk_alloc(NULL, 1, sizeof *g, NULL);
    unsigned char *block = (unsigned char *)malloc(n ? n : 1);
    assert_true(g && block);
    memcpy(block, bytes, n);
    snprintf(g->path, sizeof g->path, "PATH");
    g->map.data = block;
    g->map.size = n;
    bool ok = hbk__gguf_tables(g, err) && hbk__gguf_index(g, err);
    if (ok) t06_gguf_walk(g);
    g->map.data = NULL; /* not mapped */
    hbk_gguf_close(g);
    free(block);
    return ok;
}

/* Promise: a file cut at any length is refused and says so; any byte of its tables may be anything. */
static void t06_gguf_damage(void **state)
{
    (void)state;
    char path[512];
    hbk_error err;
    hbk_text file = {NULL, NULL, 0, 0, false};
    test_tmp(path, "t06.gguf");
    t06_gguf_write(path);
    check_ok(hbk_file_read(path, 1 << 20, &file, &err));
    check_ok(t06_gguf_parse(file.data, file.len, &err));
    size_t last = file.len - 22; /* the end of the last tensor, whose padding nobody needs */
    for (size_t n = 0; n < last; n++)
        check_error(t06_gguf_parse(file.data, n, &err), HBK_ERROR_FORMAT,
                    n < 4    ? "is no GGUF"
                    : n < 24 ? "within the header"
                             : "PATH: ");
    check_ok(t06_gguf_parse(file.data, last, &err));
    size_t tables = file.len - 160;
    int refused = 0;
    for (size_t i = 0; i < tables; i++) {
        char was = file.data[i];
        const char tries[5] = {0, (char)0xff, (char)0x80, (char)(was + 1), (char)(was - 1)};
        for (int k = 0; k < 5; k++) {
            file.data[i] = tries[k];
            memset(&err, 0, sizeof err);
            if (t06_gguf_parse(file.data, file.len, &err)) continue;
            refused++;
            assert_true(err.code != HBK_ERROR_NONE && !strncmp(err.message, "PATH: ", 6));
        }
        file.data[i] = was;
    }
    assert_true(refused > (int)tables); /* most of it matters */
    hbk_text_free(&file);
}

/* ---- split models */

/* Part i of n, with one tensor, `total` in all. */
static void t06_gguf_shard(char path[512], hbk_int i, hbk_int n, hbk_int no, hbk_int total)
{
    char name[64];
    hbk_error err;
    float x[8] = {(float)i};
    snprintf(name, sizeof name, "t06s-%05lld-of-%05lld.gguf", (long long)i + 1, (long long)n);
    test_tmp(path, name);
    hbk_gguf_writer *w = hbk_gguf_create(path, NULL, &err);
    hbk_gguf_put_int(w, "split.no", HBK_GGUF_U16, no);
    hbk_gguf_put_int(w, "split.count", HBK_GGUF_U16, n);
    hbk_gguf_put_int(w, "split.tensors.count", HBK_GGUF_I32, total);
    snprintf(name, sizeof name, "blk.%lld", (long long)i);
    t06_tensor(w, name, "F32", 2, 4);
    hbk_gguf_put_data(w, x, sizeof x);
    check_ok(hbk_gguf_finish(w, &err));
}

/* Promise: the first part opens all; a part that is missing, out of order or of another model is named. */
static void t06_gguf_split(void **state)
{
    (void)state;
    char first[512], second[512], third[512], other[512];
    hbk_error err;
    t06_gguf_shard(first, 0, 3, 0, 3);
    t06_gguf_shard(second, 1, 3, 1, 3);
    t06_gguf_shard(third, 2, 3, 2, 3);
    hbk_gguf *g = hbk_gguf_open(first, NULL, &err);
    if (!g) fail_msg("%s", err.message);
    assert_int_equal(hbk_gguf_tensor_count(g), 3);
    for (int i = 0; i < 3; i++) {
        float x;
        char name[16];
        snprintf(name, sizeof name, "blk.%d", i);
        assert_string_equal(hbk_gguf_tensor_at(g, i)->name, name);
        memcpy(&x, hbk_gguf_tensor_find(g, name)->data, 4);
        assert_true(x == (float)i);
    }
    hbk_gguf_close(g);
    check_error(hbk_gguf_open(second, NULL, &err), HBK_ERROR_OPTION,
                "is part 2 of 3: open the first, ...-00001-of-00003.gguf");
    t06_gguf_shard(second, 1, 3, 2, 3);
    check_error(hbk_gguf_open(first, NULL, &err), HBK_ERROR_FORMAT, "are 2, 3, expected 1, 3");
    t06_gguf_shard(second, 1, 3, 1, 3);
    remove(third);
    check_error(hbk_gguf_open(first, NULL, &err), HBK_ERROR_FILE, "part 3 of 3 is missing: expected ");
    t06_gguf_shard(third, 2, 3, 2, 3);
    t06_gguf_shard(first, 0, 3, 0, 4);
    check_error(hbk_gguf_open(first, NULL, &err), HBK_ERROR_FORMAT,
                "split.tensors.count: is 4, but the files hold 3");
    t06_gguf_shard(first, 0, 3, 0, 3);
    test_tmp(other, "t06s.gguf");
    assert_int_equal(rename(first, other), 0);
    check_error(hbk_gguf_open(other, NULL, &err), HBK_ERROR_FORMAT, "does not end with -00001-of-00003.gguf");
}

static bool t06_gguf_open_close(void *path, hbk_allocator *a, hbk_error *err)
{
    hbk_gguf *g = hbk_gguf_open((const char *)path, a, err);
    hbk_gguf_close(g);
    return g != NULL;
}

static bool t06_gguf_copy(const char *from, const char *to, hbk_allocator *a, hbk_error *err)
{
    hbk_gguf *g = hbk_gguf_open(from, a, err);
    hbk_gguf_writer *w = g ? hbk_gguf_create(to, a, err) : NULL;
    for (hbk_int i = 0; w && i < hbk_gguf_key_count(g); i++) hbk_gguf_put_value(w, hbk_gguf_key_at(g, i));
    for (hbk_int i = 0; w && i < hbk_gguf_tensor_count(g); i++)
        hbk_gguf_put_tensor(w, hbk_gguf_tensor_at(g, i));
    for (hbk_int i = 0; w && i < hbk_gguf_tensor_count(g); i++)
        hbk_gguf_put_data(w, hbk_gguf_tensor_at(g, i)->data, hbk_gguf_tensor_at(g, i)->bytes);
    bool ok = w && hbk_gguf_finish(w, err);
    hbk_gguf_close(g);
    return ok;
}

static bool t06_gguf_copy_own(void *ctx, hbk_allocator *a, hbk_error *err)
{
    char path[512], copy[512];
    (void)ctx;
    test_tmp(path, "t06.gguf");
    test_tmp(copy, "t06 copy.gguf");
    return t06_gguf_copy(path, copy, a, err);
}

/* Promise: without memory reading and writing fail, name no file and leak nothing. */
static void t06_gguf_memory(void **state)
{
    (void)state;
    char path[512];
    test_tmp(path, "t06.gguf");
    t06_gguf_write(path);
    assert_true(fault_sweep(t06_gguf_open_close, path) > 5);
    assert_true(fault_sweep(t06_gguf_copy_own, NULL) > 10);
    t06_gguf_shard(path, 1, 2, 1, 2);
    t06_gguf_shard(path, 0, 2, 0, 2);
    assert_true(fault_sweep(t06_gguf_open_close, path) > 12);
}

/* Promise: files of llama.cpp's own writers, copied key by key and tensor by tensor, are the same bytes. */
static void t06_gguf_reference(void **state)
{
    (void)state;
    static const char *const names[] = {"gguf/story-f32.gguf", "gguf/story-bf16.gguf",
                                        "gguf/story-q4_k_m.gguf", "golden/lora/story-lora-f32.gguf",
                                        "tokenizers/vectors/ggml-vocab-llama-spm.gguf"};
    char path[512], copy[512];
    hbk_error err;
    test_tmp(copy, "t06 copy.gguf");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        uint64_t a, b;
        if (!test_data(path, names[i])) skip();
        check_ok(t06_gguf_copy(path, copy, NULL, &err));
        check_ok(hbk_file_hash(path, &a, &err) && hbk_file_hash(copy, &b, &err));
        if (a != b) fail_msg("%s and its copy differ", names[i]);
    }
}

static const struct CMUnitTest tests_06[] = {
    cmocka_unit_test(t06_files),
    cmocka_unit_test(t06_construction),
    cmocka_unit_test(t06_folders),
    cmocka_unit_test(t06_mapping),
    cmocka_unit_test(t06_json),
    cmocka_unit_test(t06_fields),
    cmocka_unit_test(t06_reals),
    cmocka_unit_test(t06_same),
    cmocka_unit_test(t06_set_aside),
    cmocka_unit_test(t06_read_rows),
    cmocka_unit_test(t06_write_rows),
    cmocka_unit_test(t06_gguf_values),
    cmocka_unit_test(t06_gguf_bytes),
    cmocka_unit_test(t06_gguf_writer_fails),
    cmocka_unit_test(t06_gguf_wrong_keys),
    cmocka_unit_test(t06_gguf_wrong_tensors),
    cmocka_unit_test(t06_gguf_damage),
    cmocka_unit_test(t06_gguf_split),
    cmocka_unit_test(t06_gguf_memory),
    cmocka_unit_test(t06_gguf_reference),
};
