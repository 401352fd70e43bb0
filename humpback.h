/* humpback.h - v0.1.0 - public domain - instruction backtranslation in C

   A LLaMA that writes its own training set: from a few (instruction, output) pairs written by people and a
   pile of unlabelled text, a backward model writes for each text the instruction it answers, a model
   finetuned on the pairs keeps the best, and the base is finetuned on both. Twice.
   Method: Li et al. 2023, "Self-Alignment with Instruction Backtranslation", arXiv 2308.06259.

   Do this in ONE C or C++ file:

       #define HUMPBACK_IMPLEMENTATION
       #include "humpback.h"

   and include the header plainly everywhere else. Link with openblas, utf8proc, stb and jansson
   (Debian: libopenblas-openmp-dev libutf8proc-dev libstb-dev libjansson-dev) and -lm -fopenmp.

   A whole program:

       #define HUMPBACK_IMPLEMENTATION
       #include "humpback.h"
       int main(int argc, char **argv)
       {
           if (argc != 3) {
               fprintf(stderr, "usage: %s MODEL-FOLDER OUTPUT-FOLDER\n", argv[0]);
               return 2;
           }
           hbk_error err;
           hbk_model *model = hbk_model_load(argv[1], NULL, &err);
           hbk_tokenizer *tok = model ? hbk_tokenizer_load(argv[1], NULL, &err) : NULL;
           hbk_loop_options opt = hbk_loop_defaults();
           opt.seed_path = "seed.jsonl";       // {"instruction": ..., "output": ...}
           opt.corpus_path = "segments.jsonl"; // {"text": ...}
           bool ok = tok && hbk_loop_run(model, tok, &opt, argv[2], NULL, NULL, NULL, &err);
           if (!ok) fprintf(stderr, "%s\n", err.message);
           hbk_tokenizer_free(tok);
           hbk_model_free(model);
           return ok ? 0 : 1;
       }

   TABLE OF CONTENTS - the numbers stand in the interface, in the implementation and in tests/

     A  Ground               1  platform            hbk_int  hbk_real  HBK_* macros
                             2  errors, progress    hbk_error  hbk_progress
                             3  memory              hbk_allocator
                             4  random              hbk_rng_*
     B  Text                 5  strings and UTF-8   hbk_text_*  hbk_utf8_*
                             6  files, JSON, GGUF   hbk_file_*  hbk_jsonl_*  hbk_gguf_*
                             7  tokenizers          hbk_tokenizer_*
     C  Numbers              8  matrices            hbk_matrix  hbk_matmul
                             9  layers              hbk_rms_norm_*  hbk_rope_*  hbk_attention_*  ...
                            10  LoRA                hbk_adapter_*
     D  Model               11  model               hbk_config  hbk_model_*
                            12  weight files        hbk_safetensors_*  hbk_model_load  hbk_adapter_load
                            13  generation          hbk_session_*  hbk_generate
     E  Learning            14  templates and tags  hbk_template_*
                            15  examples, batches   hbk_pairs_*  hbk_dataset_*
                            16  optimiser           hbk_adamw_*  hbk_learning_rate
                            17  finetuning          hbk_trainer_*  hbk_finetune
     F  Backtranslation     18  corpus              hbk_corpus_*
                            19  self-augmentation   hbk_augment
                            20  self-curation       hbk_curate  hbk_rating_parse
                            21  the loop            hbk_loop_run
                            22  measuring           hbk_summary  hbk_log_likelihood
     G  Scale               23  several processes   hbk_comm

   WORDS USED EVERYWHERE - dimension letters, in comments such as (N, C):
     N tokens of a packed batch (all sequences one after another; there is no padding anywhere)
     T tokens of one sequence   C width   H query heads   K key/value heads   D size of a head
     F feed-forward width   V vocabulary   L layers   R rank of an adapter
   Matrices are row-major. A weight is (out, in), as in PyTorch: y = x W^T. Gradients are the name
   with a d in front, and every backward function adds to them.

   COMPILE-TIME OPTIONS - define before including; the first four in every file alike
     HBK_STATIC              every function static: the library private to one file
     HBK_REAL_DOUBLE         activations and gradients in double: slow, for gradient checks
     HBK_ASSERT(x)           assert() by default; only broken contracts of the caller reach it
     HBK_NO_BLAS             no OpenBLAS: plain C products, slow, bit-exact everywhere
     HBK_STB_DS_IMPLEMENTATION  where stb_ds comes as a header only, without libstb
   Without -fopenmp the same code runs on one thread; then compile with -fopenmp-simd, or float sums
   stay scalar. Never compile with -ffast-math: a trainer must see a NaN.

   humpback.h DOES NOT: run on a GPU; run on Windows (use WSL), 32-bit or big-endian machines; read
   architectures other than LLaMA's; promise anything about hostile model files beyond the bounds checks
   that it makes.
   jansson and stb_ds allocate with malloc, not through the hook of chapter 3.

   LICENCE: public domain or MIT, as you like: see the end of the file. */

#ifndef HUMPBACK_H_INCLUDED
#define HUMPBACK_H_INCLUDED

/* ==== 1  PLATFORM ============================================================ [hbk_int] */

#if defined(_WIN32)
#error "humpback.h needs POSIX (mmap, fsync): on Windows build it inside WSL"
#endif
#if !defined(__cplusplus) && (!defined(__STDC_VERSION__) || __STDC_VERSION__ < 201112L)
#error "humpback.h needs C11 or C++11: compile with -std=c11 or later"
#endif

/* Strict C11 hides POSIX (mmap, fsync, realpath) unless these stand before the first system header. */
#if defined(HUMPBACK_IMPLEMENTATION) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif
#if defined(HUMPBACK_IMPLEMENTATION) && !defined(_XOPEN_SOURCE)
#define _XOPEN_SOURCE 700
#endif
#if defined(HUMPBACK_IMPLEMENTATION) && !defined(_DEFAULT_SOURCE)
#define _DEFAULT_SOURCE /* madvise; done without where it stays hidden */
#endif
#if defined(HUMPBACK_IMPLEMENTATION) && defined(__APPLE__) && !defined(_DARWIN_C_SOURCE)
#define _DARWIN_C_SOURCE
#endif

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if UINTPTR_MAX < UINT64_MAX
#error "humpback.h needs a 64-bit machine: whole model files are mapped, and counted by size_t"
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "humpback.h needs a little-endian machine: weights are used as they lie in their files"
#endif

#define HBK_VERSION "0.1.0"

#if defined(HBK_STATIC) && (defined(__GNUC__) || defined(__clang__))
#define HBK_DEF static __attribute__((unused))
#elif defined(HBK_STATIC)
#define HBK_DEF static
#else
#define HBK_DEF extern
#endif

#if defined(__GNUC__) || defined(__clang__)
#define HBK_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define HBK_PRINTF(fmt, args)
#endif

#ifdef __cplusplus
extern "C" {
#endif

struct json_t; /* jansson's value: a program that touches one includes <jansson.h> itself */

typedef int64_t hbk_int; /* every size, count, index and position */

#ifdef HBK_REAL_DOUBLE
typedef double hbk_real; /* activations, gradients, trained weights */
#else
typedef float hbk_real;
#endif

/* ==== 2  ERRORS, PROGRESS, CANCEL ============================================ [hbk_error]

   A function that can fail returns bool, or a pointer that is NULL on failure, and takes an optional
   last hbk_error *. On failure its outputs are untouched. A message names the thing, what was expected
   and the remedy, in one line. */

#define HBK_ERRORS(X)                                                                                        \
    X(NONE, "no error")                                                                                      \
    X(MEMORY, "out of memory, or over the allocator's limit")                                                \
    X(FILE, "a file cannot be opened, read or written")                                                      \
    X(FORMAT, "a file's content is not what its format asks for")                                            \
    X(UNSUPPORTED, "well-formed, but a variant that is not supported")                                       \
    X(SHAPE, "a tensor has another shape than the configuration asks for")                                   \
    X(RANGE, "a number, an id or a length is out of range")                                                  \
    X(OPTION, "options contradict each other, or the run that they continue")                                \
    X(DATA, "a data set is empty or lacks what the task needs")                                              \
    X(NUMERIC, "a loss or gradient is not finite")                                                           \
    X(CANCELLED, "the progress callback asked to stop")

typedef enum hbk_code {
#define HBK_X(name, text) HBK_ERROR_##name,
    HBK_ERRORS(HBK_X)
#undef HBK_X
        HBK_ERROR_COUNT
} hbk_code;

typedef struct hbk_error {
    hbk_code code;
    char message[512]; /* one line for people */
    char file[256];    /* the input that is at fault, "" if none */
    hbk_int line;      /* its line, from 1; 0 if lines have no meaning there */
} hbk_error;

/* The sentence above for a code. Thread safety: pure. */
HBK_DEF const char *hbk_error_text(hbk_code code);

/* Sets *err (NULL is fine) and returns false, so that callers can write `return hbk_fail(...)`. Every
   error of the library passes through here: one breakpoint catches them all. */
HBK_DEF bool hbk_fail(hbk_error *err, hbk_code code, const char *fmt, ...) HBK_PRINTF(3, 4);

/* The same for line `line` of the input `file`, whose name and number lead the message. */
HBK_DEF bool hbk_fail_at(hbk_error *err, hbk_code code, const char *file, hbk_int line, const char *fmt, ...)
    HBK_PRINTF(5, 6);

/* Called between units of work: `done` of `total` (0 if unknown) `unit`s of `stage`; `note` says more
   (loss, counts) and may be "". Returning false cancels: what is finished stays finished, and the
   function that was running fails with HBK_ERROR_CANCELLED. */
typedef struct hbk_progress {
    bool (*call)(void *ctx, const char *stage, hbk_int done, hbk_int total, const char *unit,
                 const char *note);
    double (*now)(void *ctx); /* seconds of a clock of the caller's, or NULL: then no timings are written */
    void *ctx;
} hbk_progress;

/* Reports to `p` (NULL is fine). False: cancelled, and *err says so. */
HBK_DEF bool hbk_report(const hbk_progress *p, const char *stage, hbk_int done, hbk_int total,
                        const char *unit, hbk_error *err, const char *fmt, ...) HBK_PRINTF(7, 8);

/* ==== 3  MEMORY ============================================================== [hbk_allocator] */

/* Where memory comes from. Zeroed: malloc, no limit. NULL instead of an allocator: the same, uncounted.
   realloc   realloc(ctx, p, old, size): p NULL allocates, size 0 frees and returns NULL
   limit     most bytes alive at once; 0 = none
   live, peak  bytes now and at most, kept by the library
   Thread safety: live and peak are counted atomically; `realloc` must be as safe as its use. */
typedef struct hbk_allocator {
    void *(*realloc)(void *ctx, void *p, size_t old_size, size_t size);
    void *ctx;
    size_t limit;
    size_t live, peak;
} hbk_allocator;

/* `count` elements of `size` bytes, zeroed, aligned to 64 bytes. NULL, with *err set, when the product
   overflows, the limit is hit or memory is out. Zero elements give a block that must be freed too. */
HBK_DEF void *hbk_alloc(hbk_allocator *a, hbk_int count, size_t size, hbk_error *err);

/* Grows or shrinks a block of hbk_alloc to `count` elements; p NULL allocates. New bytes are not zeroed.
   On failure p stays as it was. */
HBK_DEF void *hbk_realloc(hbk_allocator *a, void *p, hbk_int count, size_t size, hbk_error *err);

/* Frees a block of hbk_alloc. NULL is fine. */
HBK_DEF void hbk_free(hbk_allocator *a, void *p);

/* ==== 4  RANDOM ============================================================== [hbk_rng_*]

   Randomness is addressed, not consumed: the stream of a record is seeded from (run seed, stage, record
   id), so that neither order nor resumption changes what a record gets. */

typedef struct hbk_rng {
    uint64_t s[4];
} hbk_rng;

/* The stream of record `id` in `stage` of the run `seed`. Thread safety: pure. */
HBK_DEF hbk_rng hbk_rng_at(uint64_t seed, const char *stage, uint64_t id);
HBK_DEF uint64_t hbk_rng_next(hbk_rng *r);                       /* 64 random bits */
HBK_DEF double hbk_rng_uniform(hbk_rng *r);                      /* in [0, 1), 53 bits */
HBK_DEF hbk_int hbk_rng_below(hbk_rng *r, hbk_int n);            /* in 0 .. n-1, without bias; n >= 1 */
HBK_DEF double hbk_rng_normal(hbk_rng *r);                       /* mean 0, deviation 1 */
HBK_DEF void hbk_rng_shuffle(hbk_rng *r, hbk_int *a, hbk_int n); /* a[0..n-1], uniformly */

/* 64-bit FNV-1a of n bytes, started from `h` (0 for a fresh one): names, ids and files, not secrets. */
HBK_DEF uint64_t hbk_hash(uint64_t h, const void *data, size_t n);

/* ==== 5  STRINGS AND UTF-8 =================================================== [hbk_text_*] */

/* A growable byte string, NUL-terminated. Zeroed (with `alloc` set, or NULL) it is empty. Appending
   never fails at once: it sets `failed`, and hbk_text_ok reports it in the end. */
typedef struct hbk_text {
    hbk_allocator *alloc;
    char *data; /* NULL while nothing was appended: read it through hbk_text_string */
    size_t len, cap;
    bool failed;
} hbk_text;

HBK_DEF void hbk_text_append(hbk_text *t, const char *s, size_t n); /* n bytes, NUL allowed */
HBK_DEF void hbk_text_add(hbk_text *t, const char *s);              /* NUL-terminated; NULL adds nothing */
HBK_DEF void hbk_text_printf(hbk_text *t, const char *fmt, ...) HBK_PRINTF(2, 3);
HBK_DEF void hbk_text_clear(hbk_text *t);               /* empties it, keeps the memory */
HBK_DEF void hbk_text_trim(hbk_text *t); /* drops blanks, tabs and line breaks at both ends */
HBK_DEF const char *hbk_text_string(const hbk_text *t); /* never NULL */
HBK_DEF bool hbk_text_ok(const hbk_text *t, hbk_error *err);
HBK_DEF void hbk_text_free(hbk_text *t); /* frees and empties */

/* Decodes one code point of s[0..n-1]; *cp is -1 on an invalid byte (overlong forms, surrogates and
   values beyond U+10FFFF included). Returns the bytes consumed: 1 for an invalid one, 0 if n is 0. */
HBK_DEF size_t hbk_utf8_decode(const char *s, size_t n, int32_t *cp);
HBK_DEF size_t hbk_utf8_encode(char out[4], int32_t cp); /* returns 1 to 4 bytes written */
/* True if all n bytes are valid; else *bad (may be NULL) is the first invalid byte's offset. */
HBK_DEF bool hbk_utf8_valid(const char *s, size_t n, size_t *bad);
HBK_DEF hbk_int hbk_utf8_length(const char *s, size_t n); /* code points; an invalid byte counts as one */

/* ==== 6  FILES, JSON, GGUF =================================================== [hbk_file_*]

   A file is complete or absent: written under a temporary name, fsynced, renamed. Only .jsonl files
   grow, by whole waves that are fsynced together. */

/* Appends a file's bytes to `out`; more than max_bytes is an error. */
HBK_DEF bool hbk_file_read(const char *path, size_t max_bytes, hbk_text *out, hbk_error *err);
/* A file under construction, under the name PATH.tmp: readers see the old file, or none, until it is whole.
   begin    creates PATH.tmp; on failure there is nothing to end
   put      appends n bytes
   seal     fsyncs and closes it: what was put can be read back under f->tmp, and checked
   commit   seals it where that was not done, renames it to PATH and fsyncs the folder
   abandon  removes it; harmless after commit, and on a zeroed hbk_file
   Something else that writes by name (hbk_jsonl_create) may fill f->tmp instead of put. After a failed put or
   seal call abandon; a failed commit has removed PATH.tmp. One thread at a time. */
typedef struct hbk_file {
    char path[512], tmp[512]; /* tmp "": nothing is under construction */
    int fd;                   /* -1: sealed */
} hbk_file;
HBK_DEF bool hbk_file_begin(hbk_file *f, const char *path, hbk_error *err);
HBK_DEF bool hbk_file_put(hbk_file *f, const void *data, size_t n, hbk_error *err);
HBK_DEF bool hbk_file_seal(hbk_file *f, hbk_error *err);
HBK_DEF bool hbk_file_commit(hbk_file *f, hbk_error *err);
HBK_DEF void hbk_file_abandon(hbk_file *f);
/* All of it at once: PATH holds the n bytes, or what it held before. */
HBK_DEF bool hbk_file_write(const char *path, const void *data, size_t n, hbk_error *err);
HBK_DEF bool hbk_file_exists(const char *path); /* file or folder */
HBK_DEF bool hbk_dir_exists(const char *path);
HBK_DEF bool hbk_dir_make(const char *path, hbk_error *err); /* parents too; an existing one is fine */
HBK_DEF bool hbk_file_hash(const char *path, uint64_t *hash, hbk_error *err); /* hbk_hash of its bytes */
/* Renames a file or folder to PATH.1, PATH.2 ...: what --force replaces is kept. */
HBK_DEF bool hbk_file_set_aside(const char *path, hbk_error *err);
/* dir + "/" + name into out[512]; a longer path is an error. */
HBK_DEF bool hbk_path(char out[512], const char *dir, const char *name, hbk_error *err);

/* A file mapped read-only: the kernel pages it in and shares it between processes. */
typedef struct hbk_mapping {
    const unsigned char *data;
    size_t size;
} hbk_mapping;
HBK_DEF bool hbk_mapping_open(hbk_mapping *m, const char *path, hbk_error *err);
HBK_DEF void hbk_mapping_close(hbk_mapping *m);

/* A whole JSON file; the caller owns the value (json_decref). Numbers beyond 64 bits become reals. */
HBK_DEF struct json_t *hbk_json_read(const char *path, hbk_error *err);
/* Appends `value` as JSON text: jansson's flags (JSON_COMPACT, JSON_INDENT(2)); keys in insertion order, a
   real in few digits that read back as the same number: 0.1 where jansson writes 0.10000000000000001. */
HBK_DEF bool hbk_json_text(hbk_text *out, const struct json_t *value, size_t flags, hbk_error *err);
/* Writes `value` with hbk_file_write, indented. */
HBK_DEF bool hbk_json_write(const char *path, const struct json_t *value, hbk_error *err);
/* Whether each key of the object `now` has the same value in `then`, what PATH was begun with. The first that
   differs is named, with both values and what else can be done: "another folder". */
HBK_DEF bool hbk_json_same(const struct json_t *then, const struct json_t *now, const char *path,
                           const char *remedy, hbk_error *err);
/* The string of key `key` in object `row`; an absent key or another type fails and names file and line. */
HBK_DEF bool hbk_json_string(const struct json_t *row, const char *key, const char **out, const char *file,
                             hbk_int line, hbk_error *err);

/* Reads a JSONL file row by row: tolerates a BOM, CRLF, blank lines; also takes one JSON array of
   objects, whose elements are then the rows. Owned by one thread. */
typedef struct hbk_jsonl_reader hbk_jsonl_reader;
HBK_DEF hbk_jsonl_reader *hbk_jsonl_open(const char *path, hbk_allocator *alloc, hbk_error *err);
/* 1: *row is the next object (owned by the reader until the next call), 0: the end, -1: an error. */
HBK_DEF int hbk_jsonl_next(hbk_jsonl_reader *r, struct json_t **row, hbk_error *err);
HBK_DEF hbk_int hbk_jsonl_line(const hbk_jsonl_reader *r); /* line (or element) of the last row, from 1 */
HBK_DEF void hbk_jsonl_close(hbk_jsonl_reader *r);

/* Appends rows to a JSONL file by waves. Opening keeps the first keep_rows rows and cuts the rest (a torn
   wave); 0 starts the file anew; fewer rows than that is an error. */
typedef struct hbk_jsonl_writer hbk_jsonl_writer;
HBK_DEF hbk_jsonl_writer *hbk_jsonl_create(const char *path, hbk_int keep_rows, hbk_allocator *alloc,
                                           hbk_error *err);
HBK_DEF bool hbk_jsonl_write(hbk_jsonl_writer *w, const struct json_t *row, hbk_error *err);
HBK_DEF bool hbk_jsonl_sync(hbk_jsonl_writer *w, hbk_error *err);   /* flush and fsync: a wave is safe */
HBK_DEF bool hbk_jsonl_finish(hbk_jsonl_writer *w, hbk_error *err); /* sync, close, free; NULL is fine */
/* Complete rows (lines ended by a newline, blank ones left out) of the file; 0 if it does not exist. */
HBK_DEF bool hbk_jsonl_count(const char *path, hbk_int *rows, hbk_error *err);

/* GGUF, the container of llama.cpp: keys with typed values, then tensors, in one file or in several (open
   NAME-00001-of-00003.gguf). Mapped, and checked whole when opened; what is handed out lies in the file or
   beside it, and lives until it is closed. Versions 2 and 3. Thread safety: read-only once open. */
typedef struct hbk_gguf hbk_gguf;

/* A value's type, in the file's numbering. */
typedef enum hbk_gguf_type {
    HBK_GGUF_U8,
    HBK_GGUF_I8,
    HBK_GGUF_U16,
    HBK_GGUF_I16,
    HBK_GGUF_U32,
    HBK_GGUF_I32,
    HBK_GGUF_F32,
    HBK_GGUF_BOOL,
    HBK_GGUF_STRING,
    HBK_GGUF_ARRAY,
    HBK_GGUF_U64,
    HBK_GGUF_I64,
    HBK_GGUF_F64,
    HBK_GGUF_TYPE_COUNT
} hbk_gguf_type;

typedef struct hbk_gguf_value {
    const char *key;
    hbk_gguf_type type; /* of an array: of its elements, which are no arrays */
    bool is_array;
    hbk_int n;                 /* elements of an array, else 1 */
    const unsigned char *data; /* little-endian, perhaps unaligned */
    hbk_int *at;               /* (n) where each string of an array begins in data; else NULL */
} hbk_gguf_value;

typedef struct hbk_gguf_tensor {
    const char *name;
    const char *type;          /* as ggml calls it: "F32", "Q4_K" ... */
    hbk_int n_dims, shape[4];  /* PyTorch's order: the last dimension is contiguous */
    const unsigned char *data; /* aligned to general.alignment within the file */
    size_t bytes;
} hbk_gguf_tensor;

/* Everything in it that is wrong (sizes, types, overlaps, duplicates, missing parts) is an error by name. */
HBK_DEF hbk_gguf *hbk_gguf_open(const char *path, hbk_allocator *alloc, hbk_error *err);
HBK_DEF void hbk_gguf_close(hbk_gguf *g); /* NULL is fine */

/* Keys in the order of the (first) file. */
HBK_DEF hbk_int hbk_gguf_key_count(const hbk_gguf *g);
HBK_DEF const hbk_gguf_value *hbk_gguf_key_at(const hbk_gguf *g, hbk_int i);
HBK_DEF const hbk_gguf_value *hbk_gguf_find(const hbk_gguf *g, const char *key); /* or NULL */
HBK_DEF const char *hbk_gguf_type_name(hbk_gguf_type t);                         /* "u8" ... "f64" */
/* Tensors of all files together, in the order of the files. */
HBK_DEF hbk_int hbk_gguf_tensor_count(const hbk_gguf *g);
HBK_DEF const hbk_gguf_tensor *hbk_gguf_tensor_at(const hbk_gguf *g, hbk_int i);
HBK_DEF const hbk_gguf_tensor *hbk_gguf_tensor_find(const hbk_gguf *g, const char *name); /* or NULL */

/* Element i < v->n of a value: an integer of any width, a real (or integer), a bool, a string of *n bytes
   that no NUL ends. False (NULL) if the value is of another type, or an integer is beyond hbk_int. */
HBK_DEF bool hbk_gguf_int_at(const hbk_gguf_value *v, hbk_int i, hbk_int *x);
HBK_DEF bool hbk_gguf_real_at(const hbk_gguf_value *v, hbk_int i, double *x);
HBK_DEF bool hbk_gguf_bool_at(const hbk_gguf_value *v, hbk_int i, bool *x);
HBK_DEF const char *hbk_gguf_string_at(const hbk_gguf_value *v, hbk_int i, size_t *n);
/* The single value of a key. An absent key leaves *x as it is, which is how defaults are given; a value of
   another type is an error that names the key. */
HBK_DEF bool hbk_gguf_int(const hbk_gguf *g, const char *key, hbk_int *x, hbk_error *err);
HBK_DEF bool hbk_gguf_real(const hbk_gguf *g, const char *key, double *x, hbk_error *err);
HBK_DEF bool hbk_gguf_bool(const hbk_gguf *g, const char *key, bool *x, hbk_error *err);
HBK_DEF bool hbk_gguf_string(const hbk_gguf *g, const char *key, const char **s, size_t *n, hbk_error *err);
/* An array whose elements are of type t: *v, or NULL if the key is absent. */
HBK_DEF bool hbk_gguf_array(const hbk_gguf *g, const char *key, hbk_gguf_type t, const hbk_gguf_value **v,
                            hbk_error *err);

/* Writes a GGUF of version 3: first the keys, then the tensors' descriptions, then their data in the same
   order, padded as it passes. The first failure sticks; hbk_gguf_finish reports it. The file is complete or
   absent. One thread at a time. */
typedef struct hbk_gguf_writer hbk_gguf_writer;
HBK_DEF hbk_gguf_writer *hbk_gguf_create(const char *path, hbk_allocator *alloc, hbk_error *err);
/* An integer of type t (a width that x does not fit is an error), an f32, a bool, a string, any value. */
HBK_DEF void hbk_gguf_put_int(hbk_gguf_writer *w, const char *key, hbk_gguf_type t, hbk_int x);
HBK_DEF void hbk_gguf_put_real(hbk_gguf_writer *w, const char *key, double x);
HBK_DEF void hbk_gguf_put_bool(hbk_gguf_writer *w, const char *key, bool x);
HBK_DEF void hbk_gguf_put_string(hbk_gguf_writer *w, const char *key, const char *s, size_t n);
HBK_DEF void hbk_gguf_put_value(hbk_gguf_writer *w, const hbk_gguf_value *v);
/* An array of n elements of type t, which the next n calls of hbk_gguf_add_* give. */
HBK_DEF void hbk_gguf_put_array(hbk_gguf_writer *w, const char *key, hbk_gguf_type t, hbk_int n);
HBK_DEF void hbk_gguf_add_int(hbk_gguf_writer *w, hbk_int x);
HBK_DEF void hbk_gguf_add_real(hbk_gguf_writer *w, double x);
HBK_DEF void hbk_gguf_add_string(hbk_gguf_writer *w, const char *s, size_t n);
/* Describes a tensor: name, type, n_dims and shape; the rest is not looked at. */
HBK_DEF void hbk_gguf_put_tensor(hbk_gguf_writer *w, const hbk_gguf_tensor *t);
HBK_DEF void hbk_gguf_put_data(hbk_gguf_writer *w, const void *data, size_t n);
/* Ends the file and frees w, in every case. False, and no file, if anything failed or data are missing. */
HBK_DEF bool hbk_gguf_finish(hbk_gguf_writer *w, hbk_error *err);
HBK_DEF void hbk_gguf_discard(hbk_gguf_writer *w); /* frees w without a file; NULL is fine */

/* ==== 7  TOKENIZERS ========================================================== [hbk_tokenizer_*] */

/* A growable list of token ids; the conventions of hbk_text. */
typedef struct hbk_tokens {
    hbk_allocator *alloc;
    int32_t *data;
    hbk_int n, cap;
    bool failed;
} hbk_tokens;
HBK_DEF void hbk_tokens_push(hbk_tokens *t, int32_t id);
HBK_DEF void hbk_tokens_append(hbk_tokens *t, const int32_t *ids, hbk_int n);
HBK_DEF bool hbk_tokens_ok(const hbk_tokens *t, hbk_error *err);
HBK_DEF void hbk_tokens_free(hbk_tokens *t);

/* Read-only after loading; shared freely between threads. */
typedef struct hbk_tokenizer hbk_tokenizer;

/* From a file, or a folder that holds one: tokenizer.json (BPE), tokenizer.model (SentencePiece BPE, or
   Meta's list of tokens in base64), llama2.c's tokenizer.bin, or a GGUF with its vocabulary. A folder's
   tokenizer_config.json and config.json decide bos and eos. */
HBK_DEF hbk_tokenizer *hbk_tokenizer_load(const char *path, hbk_allocator *alloc, hbk_error *err);
HBK_DEF void hbk_tokenizer_free(hbk_tokenizer *t);

enum {
    HBK_ENCODE_SPECIAL = 1, /* special tokens spelled in the text become their ids; else they stay text */
    HBK_ENCODE_CONTINUE = 2 /* the text continues earlier tokens: no space is put before it */
};
/* Appends the ids of n bytes of text; never adds bos or eos. Invalid bytes become U+FFFD. A text of more than
   2^31 bytes is an error if its format does not cut it into words. */
HBK_DEF bool hbk_tokenizer_encode(const hbk_tokenizer *t, const char *text, size_t n, unsigned flags,
                                  hbk_tokens *out, hbk_error *err);
/* Appends the text of n ids. Special tokens vanish; flag HBK_ENCODE_CONTINUE keeps the leading space that
   a text's beginning loses. An id out of range is an error. */
HBK_DEF bool hbk_tokenizer_decode(const hbk_tokenizer *t, const int32_t *ids, hbk_int n, unsigned flags,
                                  hbk_text *out, hbk_error *err);
HBK_DEF hbk_int hbk_tokenizer_size(const hbk_tokenizer *t);
HBK_DEF int32_t hbk_tokenizer_bos(const hbk_tokenizer *t);   /* -1: none */
HBK_DEF int32_t hbk_tokenizer_eos(const hbk_tokenizer *t);   /* -1: none */
HBK_DEF int32_t hbk_tokenizer_unk(const hbk_tokenizer *t);   /* -1: none */
HBK_DEF bool hbk_tokenizer_adds_bos(const hbk_tokenizer *t); /* does the format put bos before a text? */
HBK_DEF int32_t hbk_tokenizer_find(const hbk_tokenizer *t, const char *piece); /* its id, or -1 */
/* The piece as the vocabulary spells it ("\xe2\x96\x81the"); NULL beyond the vocabulary. */
HBK_DEF const char *hbk_tokenizer_piece(const hbk_tokenizer *t, int32_t id);

/* Learns a BPE vocabulary (Sennrich et al. 2016) from n bytes of text: words with the space before them,
   pairs merged by frequency, first seen first on ties.
   vocab_size  wanted pieces, specials and alphabet included; fewer when every word is one piece
   all_bytes   true: 256 byte pieces, so that any text can be spelled; false: the characters seen only
   Specials <unk> <s> </s> are ids 0 1 2. Save with hbk_tokenizer_save (a tokenizer.json). */
HBK_DEF hbk_tokenizer *hbk_tokenizer_train(const char *text, size_t n, hbk_int vocab_size, bool all_bytes,
                                           hbk_allocator *alloc, hbk_error *err);
/* Writes DIR/tokenizer.json and DIR/tokenizer_config.json, of a trained tokenizer or a GGUF's vocabulary; of
   another loaded one its own files are copied byte for byte. A GGUF's with one piece under two ids is
   refused: tokenizer.json cannot say it. A tokenizer.bin gets a tokenizer.json beside it where one can say
   the same. */
HBK_DEF bool hbk_tokenizer_save(const hbk_tokenizer *t, const char *dir, hbk_error *err);
/* Copies what stands beside the weights in the model folder `from`, byte for byte: the tokenizer's files,
   chat template and generation settings, as many as there are. `to` must exist. */
HBK_DEF bool hbk_tokenizer_copy(const char *from, const char *to, hbk_allocator *alloc, hbk_error *err);

/* ==== 8  MATRICES ============================================================ [hbk_matmul] */

/* The types in which weights are stored: X(name, text, id in GGUF or -1, elements per block, bytes per
   block). A row of a matrix holds whole blocks. The Q types are GGUF's; INT8 is llama2.c's, whose scales lie
   apart. */
#define HBK_DTYPES(X)                                                                                        \
    X(F32, f32, 0, 1, 4)                                                                                     \
    X(F16, f16, 1, 1, 2)                                                                                     \
    X(BF16, bf16, 30, 1, 2)                                                                                  \
    X(F64, f64, 28, 1, 8)                                                                                    \
    X(Q4_0, q4_0, 2, 32, 18)                                                                                 \
    X(Q4_1, q4_1, 3, 32, 20)                                                                                 \
    X(Q5_0, q5_0, 6, 32, 22)                                                                                 \
    X(Q5_1, q5_1, 7, 32, 24)                                                                                 \
    X(Q8_0, q8_0, 8, 32, 34)                                                                                 \
    X(Q2_K, q2_k, 10, 256, 84)                                                                               \
    X(Q3_K, q3_k, 11, 256, 110)                                                                              \
    X(Q4_K, q4_k, 12, 256, 144)                                                                              \
    X(Q5_K, q5_k, 13, 256, 176)                                                                              \
    X(Q6_K, q6_k, 14, 256, 210)                                                                              \
    X(INT8, int8, -1, 1, 1)

typedef enum hbk_dtype {
#define HBK_X(name, text, gguf, block, bytes) HBK_##name,
    HBK_DTYPES(HBK_X)
#undef HBK_X
        HBK_DTYPE_COUNT
} hbk_dtype;
#ifdef HBK_REAL_DOUBLE
#define HBK_REAL HBK_F64 /* the dtype of hbk_real */
#else
#define HBK_REAL HBK_F32
#endif

/* A weight in its stored type, (rows, cols) row-major; owns nothing. The data may be unaligned.
   scales, group  of INT8, else NULL and 0: one f32, perhaps unaligned, for each `group` elements, counted
                  through the whole matrix
   rounds         hbk_matmul and hbk_matmul_dx may round both sides to bf16, with sums in f32: done where the
                  processor multiplies such numbers (AVX512-BF16) and five rows or more make it pay, but not
                  in dx of the K types; else exact */
typedef struct hbk_matrix {
    hbk_dtype dtype;
    hbk_int rows, cols;
    void *data;
    const void *scales;
    hbk_int group;
    bool rounds;
} hbk_matrix;

HBK_DEF const char *hbk_dtype_name(hbk_dtype t);         /* "f32" ... */
HBK_DEF hbk_int hbk_dtype_block(hbk_dtype t);            /* elements that are stored together: 1, 32, 256 */
HBK_DEF size_t hbk_dtype_size(hbk_dtype t, hbk_int n);   /* bytes of n elements, n a multiple of the block */
HBK_DEF bool hbk_dtype_packs(hbk_dtype t);               /* whether hbk_pack writes it */
/* Rows first .. first+n-1 of w as reals into out (n, cols). What the blocks say, in f32, to the bit. */
HBK_DEF void hbk_matrix_unpack(hbk_real *out, const hbk_matrix *w, hbk_int first, hbk_int n);
/* n reals, a multiple of t's block, into elements of type t at out, for t F32, F16, BF16, F64 (round to
   nearest even) or Q8_0 (to nearest by block, as ggml's reference quantiser does). */
HBK_DEF void hbk_pack(void *out, hbk_dtype t, const hbk_real *x, hbk_int n);

/* The one door for products of activations with a weight matrix of any dtype. All three add to their
   result. `panel` is scratch of HBK_PANEL reals, where other dtypes are unpacked piece by piece and a few
   rows of x laid out anew or rounded; it may be NULL for a matrix of reals, at the price of both. Threads:
   OpenMP's, or OpenBLAS's own; 120 KB of each one's stack. Thread safety: pure, apart from the scratch. */
#define HBK_PANEL ((hbk_int)1 << 18)
/* y (N, rows) += x (N, cols) W^T */
HBK_DEF void hbk_matmul(hbk_real *y, const hbk_real *x, const hbk_matrix *w, hbk_int N, hbk_real *panel);
/* dx (N, cols) += dy (N, rows) W */
HBK_DEF void hbk_matmul_dx(hbk_real *dx, const hbk_real *dy, const hbk_matrix *w, hbk_int N, hbk_real *panel);
/* dw (rows, cols) += dy^T x, for dy (N, rows), x (N, cols); dw holds reals */
HBK_DEF void hbk_matmul_dw(hbk_matrix *dw, const hbk_real *dy, const hbk_real *x, hbk_int N);

/* ==== 9  LAYERS ============================================================== [hbk_*_forward]

   Pure functions over packed rows; destination first, then inputs, then sizes. A forward writes its result,
   a backward adds to its gradients. Each splits its rows over OpenMP threads. */

/* x (N, C): row n is row tokens[n] of the embedding. */
HBK_DEF void hbk_embed_forward(hbk_real *x, const hbk_matrix *embed, const int32_t *tokens, hbk_int N);
HBK_DEF void hbk_embed_backward(hbk_matrix *dembed, const hbk_real *dx, const int32_t *tokens, hbk_int N);

/* RMS norm of each row: y, x (N, C); w (C). Source: Zhang & Sennrich 2019, eq. 4. */
HBK_DEF void hbk_rms_norm_forward(hbk_real *y, const hbk_real *x, const hbk_real *w, hbk_int N, hbk_int C,
                                  double eps);
/* dx (N, C); dw (C) or NULL for a frozen gain. */
HBK_DEF void hbk_rms_norm_backward(hbk_real *dx, hbk_real *dw, const hbk_real *dy, const hbk_real *x,
                                   const hbk_real *w, hbk_int N, hbk_int C, double eps);

/* Rotary positions. table (N, D): the cosines, then the sines, of pos[n] * inv_freq[i] for i < D/2. */
HBK_DEF void hbk_rope_table(hbk_real *table, const int32_t *pos, const double *inv_freq, hbk_int N,
                            hbk_int D);
/* Rotates the pairs (x[i], x[i + D/2]) of each of the H heads of each row of x (N, H*D) in place; `back`
   turns the other way, which is the backward. Source: Su et al. 2021, in Hugging Face's half-split order. */
HBK_DEF void hbk_rope(hbk_real *x, const hbk_real *table, hbk_int N, hbk_int H, hbk_int D, bool back);

/* One sequence's share of an attention: T queries, rows q_start .. of the packed q, which attend to `past`
   earlier keys and causally to themselves. k, v (past + T, K*D) are the sequence's keys and values; but its
   first `shared` rows, of the past, are those of shared_k, shared_v, where several sequences that begin alike
   may have them, and are not looked at in k, v. Without such: 0, NULL, NULL. Caches may lie otherwise: `row`
   elements from one position to the next, `head` from one key/value head to the next; 0, 0 stand for K*D, D.
   All four hold reals, or with dtype HBK_BF16 what hbk_pack makes of them; a backward asks for reals. */
typedef struct hbk_span {
    hbk_int q_start, T, past;
    const void *k, *v;
    hbk_int shared;
    const void *shared_k, *shared_v;
    hbk_int row, head;
    hbk_dtype dtype; /* HBK_BF16; anything else: reals */
} hbk_span;

/* Scaled dot-product attention with grouped heads: query head h reads key/value head h / (H/K).
   out, q  (N, H*D)
   lse     (N, H) out: log of the softmax's denominator, for the backward; NULL when none follows
   work    scratch of hbk_attention_work(...) reals, for `threads` threads */
HBK_DEF void hbk_attention_forward(hbk_real *out, hbk_real *lse, const hbk_real *q, const hbk_span *spans,
                                   hbk_int n_spans, hbk_int H, hbk_int K, hbk_int D, hbk_real *work,
                                   int threads);
/* dq (N, H*D), dk, dv (N, K*D): gradients of packed sequences without past; spans as in the forward. */
HBK_DEF void hbk_attention_backward(hbk_real *dq, hbk_real *dk, hbk_real *dv, const hbk_real *dout,
                                    const hbk_real *out, const hbk_real *lse, const hbk_real *q,
                                    const hbk_span *spans, hbk_int n_spans, hbk_int H, hbk_int K, hbk_int D,
                                    hbk_real *work, int threads);
/* Reals of scratch for either; max_keys is the largest past + T. */
HBK_DEF hbk_int hbk_attention_work(hbk_int max_keys, hbk_int D, int threads);

/* SwiGLU: y = silu(gate) * up, over n elements; y may be gate. Source: Shazeer 2020, eq. 5 without biases. */
HBK_DEF void hbk_swiglu_forward(hbk_real *y, const hbk_real *gate, const hbk_real *up, hbk_int n);
HBK_DEF void hbk_swiglu_backward(hbk_real *dgate, hbk_real *dup, const hbk_real *dy, const hbk_real *gate,
                                 const hbk_real *up, hbk_int n);

/* Cross-entropy of rows of logits (N, V) against targets (N), each >= 0. Returns the sum of the negative
   log-likelihoods in double. dlogits (N, V), or NULL: *set* to scale * (softmax - one-hot); may be the
   logits themselves. nll (N) or NULL receives each row's value. */
HBK_DEF double hbk_cross_entropy(hbk_real *dlogits, double *nll, const hbk_real *logits,
                                 const int32_t *targets, hbk_int N, hbk_int V, double scale);

/* Inverted dropout: y = x * keep / (1 - p), `keep` a function of (seed, index) alone, so that the backward
   is the same call on the gradient. y may be x. p = 0 copies. */
HBK_DEF void hbk_dropout(hbk_real *y, const hbk_real *x, hbk_int n, double p, uint64_t seed);

/* ==== 10  LORA =============================================================== [hbk_adapter_*] */

/* The seven projections of a layer, in the order in which data meets them. */
typedef enum hbk_slot { HBK_Q, HBK_K, HBK_V, HBK_O, HBK_GATE, HBK_UP, HBK_DOWN, HBK_N_SLOTS } hbk_slot;
/* What can be adapted: the seven of each layer, and after them the head. */
#define HBK_LM_HEAD   HBK_N_SLOTS
#define HBK_N_TARGETS (HBK_N_SLOTS + 1)
#define HBK_ALL_SLOTS ((1u << HBK_N_SLOTS) - 1) /* as bits: the seven, without the head */
/* "q_proj" ... "lm_head", as Hugging Face and PEFT name them. */
HBK_DEF const char *hbk_slot_name(hbk_slot s);

/* y += scale * (x A^T) B^T: a low-rank correction of one projection. Source: Hu et al. 2021. */
typedef struct hbk_lora {
    hbk_int in, out, rank;
    double alpha;
    hbk_real scale;  /* alpha / rank */
    hbk_real *a, *b; /* (rank, in), (out, rank); both NULL where the projection is not adapted */
} hbk_lora;

/* An adapter of a whole model; also the shape of its gradient. Each projection may have a rank and an alpha
   of its own. */
typedef struct hbk_adapter {
    hbk_int n_layers;
    hbk_int rank;     /* rank and alpha of most of the adapted projections */
    double alpha;
    unsigned targets; /* bit s set: slot s is adapted, at least in one layer; bit HBK_LM_HEAD: the head */
    hbk_lora *loras;  /* (n_layers * HBK_N_SLOTS + 1): the layers' projections, last the head */
    hbk_real *values; /* all a and b, one after another: what an optimiser steps over */
    hbk_int n_values;
    bool owns_values;
    hbk_allocator *alloc;
} hbk_adapter;

/* What a new adapter adapts, and how strongly. Zero in a target's own rank or alpha means the common one. */
typedef struct hbk_adapter_options {
    hbk_int rank;                       /* 16 */
    double alpha;                       /* scale = alpha / rank                              32 */
    unsigned targets;                   /* bits of hbk_slot and HBK_LM_HEAD                  all seven */
    bool rslora;                        /* scale = alpha / sqrt(rank) (Kalajdzievski 2023)   false */
    hbk_int layer_begin, layer_end;     /* layers begin .. end-1; end 0: to the last         0, 0 */
    hbk_int target_rank[HBK_N_TARGETS]; /* 0 */
    double target_alpha[HBK_N_TARGETS]; /* 0 */
} hbk_adapter_options;
HBK_DEF hbk_adapter_options hbk_adapter_defaults(void);

struct hbk_config;
/* A new adapter for models of this shape: A uniform in +-1/sqrt(in) from `seed`, B zero (PEFT's start). The
   caller frees it with hbk_adapter_free; only reading it may be shared by threads. Errors: a rank above a
   projection's smaller side, which could learn no more than that side; an alpha that is not above 0, or makes
   no finite scale; layers that the model does not have; memory. */
HBK_DEF hbk_adapter *hbk_adapter_make(const struct hbk_config *config, const hbk_adapter_options *o,
                                      uint64_t seed, hbk_allocator *alloc, hbk_error *err);
/* The same with one rank and alpha for the targets of every layer. */
HBK_DEF hbk_adapter *hbk_adapter_new(const struct hbk_config *config, hbk_int rank, double alpha,
                                     unsigned targets, uint64_t seed, hbk_allocator *alloc, hbk_error *err);
HBK_DEF void hbk_adapter_free(hbk_adapter *a); /* NULL is fine */
/* hbk_hash, started from h, of all that an adapter adds to a model. */
HBK_DEF uint64_t hbk_adapter_hash(uint64_t h, const hbk_adapter *a);
/* "q_proj,lm_head" into bits, "all" or PEFT's "all-linear" into the seven; an unknown name is an error that
   lists the known ones. */
HBK_DEF bool hbk_adapter_targets(const char *names, unsigned *targets, hbk_error *err);

/* y (N, out) += scale * xa B^T with xa (N, R) = x A^T, which the backward needs; x (N, in). */
HBK_DEF void hbk_lora_forward(hbk_real *y, hbk_real *xa, const hbk_real *x, const hbk_lora *l, hbk_int N);
/* Adds to d->a, d->b and, where dx is not NULL, to dx (N, in). d NULL: the adapter is frozen. dxa (N, R) is
   scratch. */
HBK_DEF void hbk_lora_backward(hbk_real *dx, const hbk_lora *d, hbk_real *dxa, const hbk_real *dy,
                               const hbk_real *x, const hbk_real *xa, const hbk_lora *l, hbk_int N);

/* Rows first .. first+n-1 of W + scale B A as reals into out (n, in): a weight with its correction merged;
   l NULL: of W alone. */
HBK_DEF void hbk_lora_merge(hbk_real *out, const hbk_matrix *w, const hbk_lora *l, hbk_int first, hbk_int n);

/* ==== 11  MODEL ============================================================== [hbk_model_*] */

typedef enum hbk_rope_scaling { HBK_ROPE_DEFAULT, HBK_ROPE_LINEAR, HBK_ROPE_LLAMA3 } hbk_rope_scaling;

#define HBK_MAX_EOS 8
typedef struct hbk_config {
    hbk_int n_layers, n_heads, n_kv_heads, head_dim, dim, ffn_dim, vocab_size;
    hbk_int context_length; /* max_position_embeddings */
    double rms_norm_eps, rope_theta;
    hbk_rope_scaling rope_scaling;
    double rope_factor, rope_low_freq_factor, rope_high_freq_factor;
    hbk_int rope_original_context;
    bool tied;       /* the head is the embedding */
    unsigned biases; /* bit s set: projection s of every layer adds a bias */
    int32_t bos, eos[HBK_MAX_EOS];
    hbk_int n_eos;
} hbk_config;

/* Whether a model of this shape can exist. HBK_ERROR_RANGE names the field of config.json where a size is not
   from 1 to 2^31 - 1, query heads are no multiple of key/value heads, head_dim is odd, eps, theta or a number
   of the rope scaling is out of range, or the sizes multiply beyond any memory: behind it products of two of
   them cannot overflow, and every frequency is finite. Thread safety: pure. */
HBK_DEF bool hbk_config_check(const hbk_config *c, hbk_error *err);

typedef struct hbk_layer {
    hbk_real *attn_norm, *ffn_norm; /* (C) */
    hbk_matrix w[HBK_N_SLOTS];      /* q (H*D, C)  k, v (K*D, C)  o (C, H*D)  gate, up (F, C)  down (C, F) */
    hbk_real *bias[HBK_N_SLOTS];    /* (out), or NULL where the projection has none */
} hbk_layer;

/* Weights, read-only once loaded and shared by any number of sessions and trainers; also the shape of
   their gradient. */
typedef struct hbk_model {
    hbk_config config;
    hbk_matrix embed, head; /* (V, C); the same data when config.tied */
    hbk_real *final_norm;   /* (C) */
    hbk_layer *layers;      /* (L) */
    double *inv_freq;       /* (D/2), scaling applied */
    hbk_mapping *maps;      /* files that stay mapped */
    hbk_int n_maps;
    hbk_real *values; /* what this object owns of the weights, or NULL */
    hbk_allocator *alloc;
} hbk_model;

HBK_DEF void hbk_model_free(hbk_model *m); /* unmaps its files too; NULL is fine */
/* Trainable numbers of a model of this shape. */
HBK_DEF hbk_int hbk_model_count(const hbk_config *c);
/* What tells two models apart without reading all of their weights: shape, final norm, first rows of q. */
HBK_DEF uint64_t hbk_model_hash(const hbk_model *m);
/* Allows products with the model's matrices to round both sides to bf16, or forbids it, as it is by default
   (hbk_matrix.rounds). With AVX512-BF16 finetuning, prompts and decoding five texts or more side by side are
   up to twice as fast, and what comes of them differs in the third digit: a reply then depends on how many
   others are decoded beside it. Elsewhere nothing changes. Models that are finetuned from it, and those of
   hbk_tuned_load, inherit it; merged ones do not. Thread safety: writes to m, so before sessions and trainers
   use it. */
HBK_DEF void hbk_model_round(hbk_model *m, bool rounds);
/* "bf16" if products of m are rounded, else "f32", also where it is allowed and processor or compiler do not
   know how: for records of what a result was made with. */
HBK_DEF const char *hbk_model_precision(const hbk_model *m);
/* A model whose tensors are reals inside `values` (hbk_model_count of them, owned by the caller, in the
   order of hbk_tensor_at); for trained weights and for gradients. */
HBK_DEF hbk_model *hbk_model_view(const hbk_config *c, hbk_real *values, hbk_allocator *alloc,
                                  hbk_error *err);
/* A model of random weights: embedding N(0, 0.5), head N(0, 0.02), matrices and biases N(0, 0.5/sqrt(C)), and
   those that write to the residual stream smaller by sqrt(2 L); norms 1. It owns its values. */
HBK_DEF hbk_model *hbk_model_random(const hbk_config *c, uint64_t seed, hbk_allocator *alloc, hbk_error *err);
/* Copies the weights as reals into values (hbk_model_count). */
HBK_DEF void hbk_model_unpack(hbk_real *values, const hbk_model *m);

/* Tensor number i in a fixed order, with its Hugging Face name in `name`; a norm is (1, C), a bias (1, out).
   Returns false after the last. The head is left out when tied. */
HBK_DEF bool hbk_tensor_at(const hbk_model *m, hbk_int i, char name[96], hbk_matrix *out);

/* A packed batch: sequence s is tokens seq_start[s] .. seq_start[s+1]-1. targets[n] is the id that token n
   should predict, or -1 for no loss. Owns nothing. */
typedef struct hbk_batch {
    hbk_int n_tokens, n_seqs;
    const int32_t *tokens, *targets;
    const hbk_int *seq_start; /* (n_seqs + 1) */
} hbk_batch;

/* What a forward keeps for its backward, and all scratch, in one block. One thread at a time. */
typedef struct hbk_acts hbk_acts;
typedef enum hbk_keep {
    HBK_KEEP_NONE,  /* forward only: a fraction of the memory */
    HBK_KEEP_ALL,   /* what each layer's backward reads */
    HBK_KEEP_INPUTS /* each layer's input alone; the rest is computed a second time, to the same bits */
} hbk_keep;
/* Room for batches of up to max_tokens tokens, no sequence longer than max_seq. `adapter` NULL: none. */
HBK_DEF hbk_acts *hbk_acts_new(const hbk_model *m, const hbk_adapter *adapter, hbk_int max_tokens,
                               hbk_int max_seq, hbk_keep keep, hbk_allocator *alloc, hbk_error *err);
/* The same for passes whose sequences have any of n adapters; an entry NULL is the base alone. */
HBK_DEF hbk_acts *hbk_acts_new_mixed(const hbk_model *m, const hbk_adapter *const *adapters, hbk_int n,
                                     hbk_int max_tokens, hbk_int max_seq, hbk_keep keep, hbk_allocator *alloc,
                                     hbk_error *err);
HBK_DEF void hbk_acts_free(hbk_acts *a);

typedef struct hbk_pass {
    const hbk_adapter *adapter; /* NULL: the base alone */
    hbk_model *dmodel;          /* gradient of every weight (full training), or NULL */
    hbk_adapter *dadapter;      /* gradient of the adapter (LoRA), or NULL; both NULL: no backward */
    double scale;               /* multiplies the loss before differentiation, e.g. 1 / targets */
    double dropout;             /* of the adapter's input (LoRA) or the residual branches (full) */
    uint64_t dropout_seed;
    double neftune; /* noise on the embeddings, in +-neftune / sqrt(T C), in training; 0: none */
    /* (n_seqs) each, or NULL: every sequence's own adapter and gradient, instead of the two above. An entry
       NULL: the base alone, or an adapter that does not train. Sequences of one adapter name one gradient and
       should stand next to each other: a product with A or B takes as many rows as lie together. */
    const hbk_adapter *const *adapters;
    hbk_adapter *const *dadapters;
} hbk_pass;

/* Forward, loss and (where gradients are given) backward of one batch.
   *loss  sum of the negative log-likelihoods over the targets, not scaled
   nll    (n_tokens) out or NULL: each target's own, 0 where there is none
   Errors: a token or target beyond the vocabulary, a batch beyond the room of `a`, an adapter of another
   base, of a larger rank than `a` has room for, or with a gradient of other ranks, several adapters where
   there is room for one at a time. */
HBK_DEF bool hbk_model_pass(hbk_acts *a, const hbk_model *m, const hbk_batch *b, const hbk_pass *p,
                            double *loss, double *nll, hbk_error *err);
/* Logits (n_tokens, V) of every position of a batch: for tests and the `logits` command. */
HBK_DEF bool hbk_model_logits(hbk_acts *a, const hbk_model *m, const hbk_batch *b, const hbk_adapter *adapter,
                              hbk_real *logits, hbk_error *err);

/* ==== 12  WEIGHT FILES ======================================================= [hbk_safetensors_*] */

/* A safetensors file, mapped and checked whole when opened. It owns its tensors, and their data, until it is
   closed. Thread safety: read-only once open. */
typedef struct hbk_safetensors hbk_safetensors;
typedef struct hbk_tensor {
    const char *name;
    char dtype[12]; /* as the file spells it: "F32", "BF16", "F8_E4M3FNUZ" ... */
    hbk_int n_dims, shape[8], n_elements;
    const void *data; /* perhaps unaligned */
    size_t bytes;
} hbk_tensor;
/* Opens a file; free with hbk_safetensors_close. Errors: HBK_ERROR_FILE if it cannot be opened or mapped,
   HBK_ERROR_FORMAT, with the tensor's name, for a header that is cut short, no JSON, or describes tensors
   that overlap, leave gaps, leave the file or differ from their shape. A git-lfs pointer is named so. */
HBK_DEF hbk_safetensors *hbk_safetensors_open(const char *path, hbk_allocator *alloc, hbk_error *err);
HBK_DEF void hbk_safetensors_close(hbk_safetensors *s); /* unmaps it; NULL is fine */
HBK_DEF hbk_int hbk_safetensors_count(const hbk_safetensors *s);
/* Tensor i, 0 <= i < count, in the order of the data; it lives until the file is closed. */
HBK_DEF const hbk_tensor *hbk_safetensors_at(const hbk_safetensors *s, hbk_int i);
/* By name, or by what __metadata__ calls its alias (tied weights are stored once); or NULL. */
HBK_DEF const hbk_tensor *hbk_safetensors_find(const hbk_safetensors *s, const char *name);
/* The string of a __metadata__ key, or NULL. */
HBK_DEF const char *hbk_safetensors_meta(const hbk_safetensors *s, const char *key);
/* Writes n tensors (name, dtype, n_dims, shape, data; the rest is computed) with metadata {"format":"pt"}, in
   the order and to the byte as the reference writer does. The file is complete or absent. */
HBK_DEF bool hbk_safetensors_write(const char *path, const hbk_tensor *tensors, hbk_int n, hbk_error *err);

/* A model from a Hugging Face folder (config.json and safetensors, one file or shards), a GGUF file (of a
   split model: its first) or a llama2.c .bin. Weights stay mapped in their stored type (F32, F16, BF16; in
   GGUF also Q4_0 to Q6_K, in llama2.c's version 2 INT8); norms and biases are copied, and so are the q and k
   of GGUF and llama2.c, whose rows change order. A folder is LLaMA's, or Mistral's with a window no shorter
   than its context; every other architecture, scaling of positions or packing of weights is refused by name.
   Opening reads tables and norms only: it takes milliseconds and next to no memory. (Only where a folder says
   tie_word_embeddings and yet stores both matrices are these read, to see whether they are the same.) */
HBK_DEF hbk_model *hbk_model_load(const char *path, hbk_allocator *alloc, hbk_error *err);
/* Writes DIR/config.json, generation_config.json and model.safetensors in dtype t (F32, F16 or BF16). A
   number that t cannot hold, or a NaN, is an error. */
HBK_DEF bool hbk_model_save(const hbk_model *m, const char *dir, hbk_dtype t, hbk_error *err);
/* The same of W + scale B A for each adapted W, computed a panel at a time: nothing of the model's size is
   allocated. A tied head that the adapter corrects becomes a tensor of its own. a NULL: of m as it is. */
HBK_DEF bool hbk_model_save_merged(const hbk_model *m, const hbk_adapter *a, const char *dir, hbk_dtype t,
                                   hbk_error *err);
/* The model, with adapter a (NULL: none) merged, as a GGUF file like those of llama.cpp's converter: matrices
   in dtype t (F32, F16, BF16 or Q8_0; F16 where rows are no whole blocks of Q8_0), norms and biases in F32.
   tok NULL: without a vocabulary. Of more than three ids that end a text the first three are kept. */
HBK_DEF bool hbk_model_save_gguf(const hbk_model *m, const hbk_adapter *a, const hbk_tokenizer *tok,
                                 const char *path, hbk_dtype t, hbk_error *err);

/* An adapter for `base` from a PEFT folder (adapter_config.json, adapter_model.safetensors), an MLX one
   (adapter_config.json, adapters.safetensors) or a GGUF file. Ranks are those of the tensors; of a
   rank-stabilised adapter, alpha becomes alpha sqrt(rank), which means the same. What would change the result
   and is not supported is an error that names the key or tensor; so are tensors that do not fit the base. */
HBK_DEF hbk_adapter *hbk_adapter_load(const char *dir, const hbk_model *base, hbk_allocator *alloc,
                                      hbk_error *err);
/* A PEFT folder, for old and new versions of it.
   base_name  what adapter_config.json calls the base model (NULL: nothing)
   dropout    what it was trained with
   A number that is not finite is an error. */
HBK_DEF bool hbk_adapter_save(const hbk_adapter *a, const char *dir, const char *base_name, double dropout,
                              hbk_error *err);
/* The adapter of a model of configuration c as a GGUF file for llama.cpp, in F32. Scales that differ between
   projections go into B. An adapter of a tied head is an error: llama.cpp has nothing to bind it to. */
HBK_DEF bool hbk_adapter_save_gguf(const hbk_adapter *a, const hbk_config *c, const char *path,
                                   hbk_error *err);

/* A model of its own with the adapter merged, in reals: W + scale B A for each adapted W. A tied head that
   the adapter corrects becomes untied. To write one, hbk_model_save_merged needs less memory. */
HBK_DEF hbk_model *hbk_adapter_merge(const hbk_model *m, const hbk_adapter *a, hbk_allocator *alloc,
                                     hbk_error *err);
/* Adds times scale B A to the weights of m, which must be reals in memory: 1 merges, -1 takes it out again,
   up to rounding. Weights of a file, and an adapter of a tied head, are errors. */
HBK_DEF bool hbk_adapter_add(hbk_model *m, const hbk_adapter *a, double times, hbk_error *err);

/* ==== 13  GENERATION ========================================================= [hbk_session_*] */

/* Key/value caches of sequences ("slots") over one model, which it borrows. One thread at a time; any number
   of sessions share a model. Each slot has its adapter, or none: at first the session's own, then that of the
   request or item that it serves; slots of several adapters go through the base together. Adapters are
   borrowed too, and what a slot holds was computed with the weights as they were: after a step of training,
   or before one of its adapters is freed, free the session or call hbk_session_switch. */
typedef struct hbk_session hbk_session;
/* adapter     the session's own; NULL: the base alone
   n_slots     sequences side by side, numbered from 0; each is empty at first
   max_length  most tokens of a sequence; beyond the model's context_length it never learned to look
   cache       type of the keys and values that are kept: F32 (reals), or BF16, rounded to nearest even: half
               the memory, and half the reading in a step of many long sequences
   Memory: 2 L K D elements for each slot (and one more, if there are several) and token, which the system
   hands out as they are filled, and the buffers of a pass of 512 tokens. A beginning that hbk_generate
   computed once for several slots is held once, until prompts with another one come.
   Errors: sizes that are not possible, another type, an adapter of another base, memory. */
HBK_DEF hbk_session *hbk_session_new(const hbk_model *m, const hbk_adapter *adapter, hbk_int n_slots,
                                     hbk_int max_length, hbk_dtype cache, hbk_allocator *alloc,
                                     hbk_error *err);
HBK_DEF void hbk_session_free(hbk_session *s); /* NULL is fine */

typedef struct hbk_feed {
    hbk_int slot;
    const int32_t *tokens;
    hbk_int n; /* at least 1 */
} hbk_feed;
/* Appends each feed's tokens to its slot (a slot at most once per call), all in one pass.
   logits  (n_feeds, V): after the last token of each feed; or, with all true, (sum of n, V): after each
   Errors: an id beyond the vocabulary, a slot that would outgrow max_length; then nothing is appended. */
HBK_DEF bool hbk_session_feed(hbk_session *s, const hbk_feed *feeds, hbk_int n_feeds, bool all,
                              hbk_real *logits, hbk_error *err);
/* Tokens that the slot holds. */
HBK_DEF hbk_int hbk_session_length(const hbk_session *s, hbk_int slot);
/* Forgets what follows the first `length` tokens of the slot, 0 to all of them: what is fed next stands there
   instead. */
HBK_DEF void hbk_session_rewind(hbk_session *s, hbk_int slot, hbk_int length);
/* Makes slot `to` a copy of the first `length` tokens of slot `from`, another one, which stays as it is, and
   of its adapter. What `to` held is lost. What `from` shares with others, `to` shares too. */
HBK_DEF void hbk_session_fork(hbk_session *s, hbk_int to, hbk_int from, hbk_int length);
/* The adapter of what is fed to this slot from now on; NULL: the base alone. Errors: the slot holds tokens of
   another adapter (rewind it to 0 first), an adapter of another base, memory; then the slot keeps its own. */
HBK_DEF bool hbk_session_adapt(hbk_session *s, hbk_int slot, const hbk_adapter *adapter, hbk_error *err);
/* Makes `adapter` (NULL: none) the session's own and every slot's, and forgets what they held. Errors: an
   adapter of another base, memory; then the session is as it was. */
HBK_DEF bool hbk_session_switch(hbk_session *s, const hbk_adapter *adapter, hbk_error *err);

/* How the next id is chosen. The fields act in this order: repetition_penalty, temperature, top_k, top_p,
   min_p; each filter sees what the one before it left, as in Hugging Face's transformers. */
typedef struct hbk_sampling {
    double temperature; /* 0: greedy, and the filters have no say */
    double top_p;       /* nucleus: the smallest set of that much probability; 1 = all */
    hbk_int top_k;      /* most likely ids only, of equals the lower ones; 0 = all */
    hbk_int max_new;    /* tokens */
    int32_t stop;       /* an id that ends a text besides the model's eos; -1 = none */
    double min_p;       /* ids of at least that share of the most likely one's probability; 0 = all */
    double repetition_penalty; /* 0.01 to 100, see hbk_penalise; 1 or 0 = none */
} hbk_sampling;
HBK_DEF hbk_sampling hbk_sampling_defaults(void); /* the paper's: 0.7, 0.9, 0, 512, and the rest neutral */
typedef struct hbk_candidate {
    double p;
    int32_t id;
} hbk_candidate;
/* The next id from logits (V); scratch (V). Greedy ties go to the lower id. Where logits are NaN or infinite
   there is no distribution to draw from: the answer is then the greedy one's, some id of 0 to V-1. */
HBK_DEF int32_t hbk_sample(const hbk_real *logits, hbk_int V, const hbk_sampling *o, hbk_rng *rng,
                           hbk_candidate *scratch);
/* Makes ids that were used less likely: the logit of each id of ids[0..n-1] is divided by `penalty` where it
   is positive and multiplied where it is negative, once however often the id occurs.
   seen (V) all false before and after. Source: Keskar et al. 2019, section 4.1, in transformers' form. */
HBK_DEF void hbk_penalise(hbk_real *logits, const int32_t *ids, hbk_int n, double penalty, bool *seen);

/* A reply's text while its ids come. A character may be spread over ids and a stop string over both, so
   hbk_reply_take hands out only what can no longer change: whole characters, and nothing that may yet be the
   beginning of a stop string or, with `trim`, white space at the end. Set the first five fields and zero the
   rest; free it afterwards.
   stops  n_stops strings, none empty: the text ends before the one that is the first to be complete (the
          longest, if several are), however the text is cut into ids
   trim   white space around the text is not part of it */
typedef struct hbk_reply {
    hbk_allocator *alloc;
    const hbk_tokenizer *tok;
    const char *const *stops;
    hbk_int n_stops;
    bool trim;
    bool stopped;       /* out: by a stop string; further ids are passed over */
    hbk_tokens pending; /* ids whose characters are not whole yet */
    hbk_text text;
    size_t start, shown, taken; /* where it begins, up to where it is settled, up to where it was taken */
} hbk_reply;
/* Takes the next id. One beyond the tokenizer (vocabularies are padded) has no text. */
HBK_DEF bool hbk_reply_add(hbk_reply *r, int32_t id, hbk_error *err);
/* No more ids: settles the rest of the text. */
HBK_DEF bool hbk_reply_end(hbk_reply *r, hbk_error *err);
/* What has been settled since the last call: returns its bytes, 0 if there is nothing, and points *s there
   until the next hbk_reply_ call. */
HBK_DEF size_t hbk_reply_take(hbk_reply *r, const char **s);
HBK_DEF const char *hbk_reply_text(const hbk_reply *r); /* all of it, NUL-terminated, after hbk_reply_end */
HBK_DEF void hbk_reply_clear(hbk_reply *r);             /* for the next reply; keeps the first five fields */
HBK_DEF void hbk_reply_free(hbk_reply *r);

/* Log-probabilities of a text's tokens, natural, under the model's own distribution, which is what serving
   engines report too: temperature 1, no filter, no penalty. Row t, 1 + n_top entries from
   data[t * (1 + n_top)] on, is token t itself and then the n_top most likely ids, the likeliest first. */
typedef struct hbk_logprob {
    double logprob;
    int32_t id;
} hbk_logprob;
typedef struct hbk_logprobs {
    hbk_allocator *alloc; /* set this and n_top, 0 to V; zero the rest */
    hbk_int n_top;
    hbk_logprob *data;
    hbk_int n, cap; /* rows; entries that there is room for */
} hbk_logprobs;
HBK_DEF void hbk_logprobs_free(hbk_logprobs *p);

#define HBK_FINISHES(X)                                                                                      \
    X(EOS, "eos")             /* an id of the model's eos list */                                            \
    X(STOP, "stop")           /* the stop id, or a stop string */                                            \
    X(LENGTH, "length")       /* max_new tokens */                                                           \
    X(CONTEXT, "context")     /* the sequence has max_length tokens */                                       \
    X(TOO_LONG, "too_long")   /* the prompt leaves no room: nothing was generated */                         \
    X(CANCELLED, "cancelled") /* on_token returned false */
typedef enum hbk_finish {
#define HBK_X(name, text) HBK_FINISH_##name,
    HBK_FINISHES(HBK_X)
#undef HBK_X
        HBK_FINISH_COUNT
} hbk_finish;
HBK_DEF const char *hbk_finish_name(hbk_finish f); /* "eos" ... */

/* One prompt in, its continuation out. */
typedef struct hbk_request {
    const int32_t *prompt;
    hbk_int n_prompt;
    hbk_rng rng;            /* this record's own stream */
    hbk_tokens output;      /* appended to, without the id that ended it; set .alloc first, free afterwards */
    hbk_finish finish;      /* out */
    hbk_reply *reply;       /* NULL, or where the text goes; its stop strings end the request */
    hbk_logprobs *logprobs; /* NULL, or a row is appended for each token of output */
    const hbk_adapter *adapter; /* NULL: the session's own */
} hbk_request;
/* Streaming: on_token(ctx, request, id) after each token that was appended; returning false ends that
   request. By then the requests that ended before have their finish. */
typedef struct hbk_stream {
    bool (*on_token)(void *ctx, hbk_int request, int32_t id);
    void *ctx;
} hbk_stream;
/* Serves n requests, in order, over the session's slots: a slot that finishes takes the next request. A
   beginning that all prompts (of the first one's adapter) share is computed once, and one that some slot
   still holds, from this call or an earlier one, with the same adapter, not again: a conversation that is
   passed whole each time costs its new tokens. Between calls a session of one slot holds the request that
   came last, all but its last token.
   o       must be in range: temperature >= 0, top_p, min_p 0 to 1, top_k >= 0, and
           repetition_penalty 0 or 0.01 to 100
   stream  may be NULL
   Errors: such an option, an id beyond the vocabulary, an adapter of another base, logits that are not
   finite, memory. On failure output, finish, rng and logprobs are as before; a reply and a stream keep what
   they were given. */
HBK_DEF bool hbk_generate(hbk_session *s, hbk_request *requests, hbk_int n, const hbk_sampling *o,
                          const hbk_stream *stream, hbk_error *err);

/* A continuation of a prompt, and how likely the model finds it. */
typedef struct hbk_scoring {
    const int32_t *prompt, *continuation;
    hbk_int n_prompt, n_continuation;
    double log_likelihood; /* out: sum over its tokens; NAN where it does not fit, or one is empty */
    const hbk_adapter *adapter; /* NULL: the session's own */
} hbk_scoring;
/* Scores n items in order over the session's slots. What neighbours in the list (of one adapter) share is
   computed once: a prompt with several continuations, their common beginning, the common beginning of two
   prompts; with several slots those continuations go through the model together. Nor is a beginning that some
   slot still holds computed again: after hbk_generate a text and its reply go on where they stand.
   Errors: an id beyond the vocabulary, an adapter of another base, a session whose slots all serve requests
   (from on_token), memory. On failure no item is changed. */
HBK_DEF bool hbk_score(hbk_session *s, hbk_scoring *items, hbk_int n, hbk_error *err);

/* ==== 14  TEMPLATES AND TAGS ================================================= [hbk_template_*]

   A template says how an instruction becomes a prompt and where the reply begins. It is data: strings with
   slots, turned into spans, each tokenised for itself and joined as ids; the loss mask comes from the spans.
   The same object serves training, rating, generation and conversation.
       prompt    "{bos}[INST] {instruction} [/INST]"
       reply     " {output}{eos}": the loss is on what stands from {output} on
       backward  the whole prompt of the backward model, with {output}; its reply is the instruction
       rating    the whole prompt of a rating, with {instruction} and {output}
       score     what leads to the digit of a rating: "Score:"
       next      what stands between two replies of a conversation: the end of the one and, with
                 {instruction}, the prompt of the other
       system    the first prompt of a conversation, with {system}, what is said to the model in advance
       rewriting the whole prompt for a better output, with {instruction} and {output} */

#define HBK_TAG_SEED "Answer in the style of an AI Assistant."
#define HBK_TAG_WEB  "Answer with knowledge from web search."

typedef enum hbk_use {
    HBK_FORWARD,  /* instruction -> output */
    HBK_BACKWARD, /* output -> instruction */
    HBK_RATING,   /* (instruction, output) -> reasoning and score */
    HBK_NEXT,     /* instruction -> output, behind the text of a reply */
    HBK_REWRITING /* (instruction, output) -> a better output */
} hbk_use;

typedef struct hbk_span_text {
    const char *text; /* NULL: the single id */
    hbk_int len;
    hbk_int blanks; /* spaces before the text, encoded together with it: words keep their tokens */
    int32_t id;     /* bos or eos where text is NULL */
    bool trusted;   /* template text, whose special tokens count; else user text, where they do not */
    bool target;    /* the loss is here */
} hbk_span_text;

typedef struct hbk_template hbk_template;
/* Built in: "llama2" "llama3" "chatml" "plain"; anything else is a JSON file {"name","prompt","reply",
   "backward"?,"rating"?,"score"?,"next"?,"system"?,"rewriting"?}, or one that holds such an object under
   "template". Where "backward", "rating" or "rewriting" is absent, a wording of ours takes the place of
   {instruction} in "prompt"; where "next" is, the end of "reply" and the prompt without its first {bos};
   without "system" the template has no place for one.
   Slots: {bos} {eos} {instruction} {output} {system}; other braces are text. */
HBK_DEF hbk_template *hbk_template_load(const char *name_or_path, hbk_allocator *alloc, hbk_error *err);
/* The one for a model folder or GGUF file: its chat_template recognised by markers (an unknown one, Mistral's
   among them, is an error that names --template); llama2 where there is none. */
HBK_DEF hbk_template *hbk_template_for_model(const char *model_path, hbk_allocator *alloc, hbk_error *err);
/* Replaces the wording of the backward, rating or rewriting prompt by a text with {output}, and {instruction}
   for rating and rewriting; it is put into the chat prompt, as an instruction would be, without the line
   breaks at its end. A missing slot is an error, and the template stays as it was. */
HBK_DEF bool hbk_template_set(hbk_template *t, hbk_use use, const char *text, hbk_error *err);
HBK_DEF void hbk_template_free(hbk_template *t);
/* Writes the template, wordings that were set included, as a JSON file that hbk_template_load reads; the file
   is complete or absent. Thread safety: reads t only. */
HBK_DEF bool hbk_template_save(const hbk_template *t, const char *path, hbk_error *err);
HBK_DEF const char *hbk_template_name(const hbk_template *t);
HBK_DEF const char *hbk_template_score(const hbk_template *t); /* what leads to a rating: "Score:" */
/* Of all its strings but those for conversations and rewriting, which neither pairs nor ratings see; a
   training on conversations tells its data apart by their tokens. */
HBK_DEF uint64_t hbk_template_hash(const hbk_template *t);
HBK_DEF bool hbk_template_has_system(const hbk_template *t);
/* Fails if the vocabulary cannot spell the text of prompt and reply, and names --template plain. The
   backward and rating prompts, which not everyone needs, are checked where hbk_template_tokens uses them. */
HBK_DEF bool hbk_template_check(const hbk_template *t, const hbk_tokenizer *tok, hbk_error *err);
/* The one id that ends a reply and so ends generation: eos, or a token like <|eot_id|>; -1 if the reply's
   ending is no single id. */
HBK_DEF int32_t hbk_template_stop(const hbk_template *t, const hbk_tokenizer *tok);
/* Adds that id to the ids that end a text in DIR/generation_config.json, as saving a model writes it, so that
   other programs stop where replies end; there is nothing to do where it is -1 or among them. */
HBK_DEF bool hbk_template_save_stop(const hbk_template *t, const hbk_tokenizer *tok, const char *dir,
                                    hbk_error *err);
/* The text that ends a reply, where it is more than white space: a stop string, if hbk_template_stop has no
   id for it. Else "". */
HBK_DEF const char *hbk_template_stop_text(const hbk_template *t);

/* What a prompt is made of; unused fields NULL. `tag` is appended to the instruction after a blank, in
   forward use and in the next turns only. `reply` is the target: the output, in backward use the instruction;
   NULL ends the spans where the model goes on. `system` has a say in forward use, where the template has a
   place for it. */
typedef struct hbk_render {
    hbk_use use;
    const char *instruction, *output, *tag, *reply, *system;
} hbk_render;
#define HBK_MAX_SPANS 24
/* Spans of one example, in order; texts point into the template and the arguments. Returns their number. */
HBK_DEF hbk_int hbk_template_spans(const hbk_template *t, const hbk_tokenizer *tok, const hbk_render *r,
                                   hbk_span_text spans[HBK_MAX_SPANS]);
/* Appends the tokens of the example; *n_prompt (may be NULL) of them come before the target. A vocabulary
   that cannot spell the template's own text or the tag is an error. */
HBK_DEF bool hbk_template_tokens(const hbk_template *t, const hbk_tokenizer *tok, const hbk_render *r,
                                 hbk_tokens *out, hbk_int *n_prompt, hbk_error *err);

typedef enum hbk_role { HBK_SYSTEM, HBK_USER, HBK_ASSISTANT } hbk_role;
typedef struct hbk_turn {
    hbk_role role;
    bool learn; /* of an assistant's turn: the loss is on it */
    const char *text;
} hbk_turn;
/* Appends the tokens of a conversation as a chat would hold them: perhaps a system text, then a user's and
   the assistant's turns one after the other; a user's turn at the end, which nothing answers, is left out.
   `tag` (may be NULL) is appended to every user's turn. learn (grown with out, one byte a token) is 1 on the
   replies that count, their endings included. Errors: turns out of order; a system text where the template
   has no place for one; a template whose "next" does not begin with the end of its "reply". */
HBK_DEF bool hbk_template_dialog(const hbk_template *t, const hbk_tokenizer *tok, const hbk_turn *turns,
                                 hbk_int n_turns, const char *tag, hbk_tokens *out, hbk_text *learn,
                                 hbk_error *err);

/* ==== 15  EXAMPLES AND BATCHES =============================================== [hbk_pairs_*] */

/* Pairs by people or by the loop. Zero it, set .alloc, free with hbk_pairs_free; one thread at a time. */
typedef struct hbk_pair {
    char *id, *instruction, *output, *source; /* source: "seed" or "aug" */
    double score;                             /* NAN if none */
} hbk_pair;
typedef struct hbk_pairs {
    hbk_allocator *alloc;
    hbk_pair *data;
    hbk_int n, cap;
} hbk_pairs;
/* Appends the rows {"instruction","output","id"?,"source"?,"score"?} of a JSONL file. Rows without an id
   get "row-<line>", rows whose source is not "seed" or "aug" `source`. A blank output or instruction is an
   error, and so is a filled "input" beside them. */
HBK_DEF bool hbk_pairs_load(hbk_pairs *p, const char *path, const char *source, hbk_error *err);
/* Appends one pair; the strings (NUL-terminated, not NULL) are copied. score: NAN if there is none. The only
   error is memory, and leaves the pairs as they were. */
HBK_DEF bool hbk_pairs_add(hbk_pairs *p, const char *id, const char *instruction, const char *output,
                           const char *source, double score, hbk_error *err);
HBK_DEF void hbk_pairs_free(hbk_pairs *p);

/* Tokenised examples: example i is tokens start[i] .. start[i+1]-1, and learn[k] is 1 where token k is to be
   predicted with loss. Zero it, set .alloc, free with hbk_dataset_free. One thread fills it, then any number
   may read. */
typedef struct hbk_dataset {
    hbk_allocator *alloc;
    hbk_tokens tokens;
    unsigned char *learn; /* (tokens.n) */
    hbk_int *start;       /* (n + 1) */
    hbk_int *line;        /* (n) where in its file it stands, from 1; 0: it is of none */
    hbk_int n, cap, learn_cap;
    hbk_int max_length; /* longest example */
    hbk_int n_targets;  /* tokens with loss, of all examples */
    hbk_int n_too_long;  /* examples left out because they exceed the limit */
    hbk_int n_cut;       /* examples that lost their end to it */
    hbk_int n_no_target; /* examples left out because nothing in them is to be learned */
} hbk_dataset;
/* Appends an example of n ids, a copy; the loss is on all but its first n_prompt, 0 <= n_prompt < n. Errors:
   no token is left to learn (the first of an example is never predicted), or memory; d stays as it was. */
HBK_DEF bool hbk_dataset_add(hbk_dataset *d, const int32_t *ids, hbk_int n, hbk_int n_prompt, hbk_error *err);
/* The same with a mask of n bytes, for examples whose targets stand in several places. */
HBK_DEF bool hbk_dataset_add_masked(hbk_dataset *d, const int32_t *ids, const unsigned char *learn, hbk_int n,
                                    hbk_error *err);
/* Tokens of example i that carry loss. */
HBK_DEF hbk_int hbk_dataset_targets(const hbk_dataset *d, hbk_int i);
/* Every pair through the template: forward, or reversed for the backward model, which has no tags. Tags by
   source (NULL: none). Examples longer than max_length tokens (0: no limit) are left out and counted. */
HBK_DEF bool hbk_dataset_add_pairs(hbk_dataset *d, const hbk_pairs *p, const hbk_template *t,
                                   const hbk_tokenizer *tok, hbk_use use, const char *tag_seed,
                                   const char *tag_web, hbk_int max_length, hbk_error *err);
/* The forms of public data. A file has that of its first row. "weight" is 0 (no loss) or 1. A prompt and a
   completion are words as they stand or, where they are lists, one conversation with loss on the completion.
   Of a tree of Open Assistant the conversation along the replies ranked first is taken; trees without one are
   left out. */
#define HBK_FORMS(X)                                                                                         \
    X(PAIRS, "pairs", "{\"instruction\", \"input\"?, \"output\"}")                                           \
    X(MESSAGES, "messages", "{\"messages\": [{\"role\", \"content\", \"weight\"?}]}")                        \
    X(SHAREGPT, "sharegpt", "{\"conversations\": [{\"from\", \"value\", \"weight\"?}]}")                     \
    X(COMPLETION, "completion", "{\"prompt\", \"completion\"} (texts, or lists of messages)")                \
    X(OASST, "oasst", "{\"prompt\": {\"text\", \"replies\"}}")                                               \
    X(TEXT, "text", "{\"text\"}")
typedef enum hbk_form {
#define HBK_X(name, text, shape) HBK_FORM_##name,
    HBK_FORMS(HBK_X)
#undef HBK_X
        HBK_FORM_COUNT
} hbk_form;
HBK_DEF const char *hbk_form_name(hbk_form f);

typedef enum hbk_overlong { HBK_OVERLONG_DROP, HBK_OVERLONG_CUT, HBK_OVERLONG_ERROR } hbk_overlong;
typedef struct hbk_data_options {
    const hbk_template *tmpl; /* not for texts, whose words stand as they are */
    const hbk_tokenizer *tok;
    hbk_use use; /* HBK_BACKWARD: the first exchange of each row, reversed; completions and texts have none */
    const char *tag_seed, *tag_web; /* by a pair's source; other forms count as seed; NULL: none */
    hbk_int max_length;             /* tokens; 0: no limit */
    hbk_overlong overlong; /* what is longer is left out, or cut at its end, without eos then, or an error */
} hbk_data_options;
/* Appends every row of a JSONL file, or of a JSON array of rows, as an example; *form (may be NULL) says
   which form it has. What is left out is counted in *d. Errors name file and line: a row of another form
   than the first, turns out of order, a text that is empty; nothing is added then. */
HBK_DEF bool hbk_dataset_add_file(hbk_dataset *d, const char *path, const hbk_data_options *o, hbk_form *form,
                                  hbk_error *err);
/* Raw documents, the "text" of each row of a JSONL file, whatever else it holds: bos, text, eos, loss on all
   but bos. Counts and errors as above. */
HBK_DEF bool hbk_dataset_add_texts(hbk_dataset *d, const char *path, const hbk_tokenizer *tok,
                                   hbk_int max_length, hbk_error *err);
/* Moves a share of the examples, drawn by `seed`, from d to the end of `held`: at least one, and not all.
   Error: d has fewer than two examples. */
HBK_DEF bool hbk_dataset_split(hbk_dataset *d, hbk_dataset *held, double share, uint64_t seed,
                               hbk_error *err);
HBK_DEF void hbk_dataset_free(hbk_dataset *d);

/* A batch under construction: the packed arrays behind an hbk_batch. One thread at a time.
   init   room for max_tokens fed tokens in max_seqs sequences, both at least 1; free with hbk_packer_free.
          Errors: HBK_ERROR_RANGE for less, or memory; p is untouched then
   clear  empties it, keeps the room
   batch  what was added so far; its arrays belong to p and hold until the next add, clear or free */
typedef struct hbk_packer {
    hbk_allocator *alloc;
    int32_t *tokens, *targets;
    hbk_int *seq_start;
    hbk_int n_tokens, n_seqs, n_targets, max_tokens, max_seqs;
} hbk_packer;
HBK_DEF bool hbk_packer_init(hbk_packer *p, hbk_int max_tokens, hbk_int max_seqs, hbk_allocator *alloc,
                             hbk_error *err);
HBK_DEF void hbk_packer_free(hbk_packer *p); /* a zeroed one is fine */
HBK_DEF void hbk_packer_clear(hbk_packer *p);
/* Adds example i; false, with the batch unchanged, if it does not fit any more. Its last token predicts
   nothing and is not fed. */
HBK_DEF bool hbk_packer_add(hbk_packer *p, const hbk_dataset *d, hbk_int i);
HBK_DEF hbk_batch hbk_packer_batch(const hbk_packer *p);

/* ==== 16  OPTIMISER AND SCHEDULE ============================================= [hbk_adamw_step] */

/* One AdamW step (Loshchilov & Hutter 2019, decoupled decay) over n values.
   m, v  (n) running moments, zero at the start
   step  counts from 1
   scale multiplies the gradient first (clipping)
   Thread safety: its arrays are the caller's. Every value is stepped for itself, so no bit depends on the
   number of OpenMP's threads. */
typedef struct hbk_adamw {
    double lr, beta1, beta2, eps, weight_decay;
} hbk_adamw;
HBK_DEF void hbk_adamw_step(hbk_real *values, hbk_real *m, hbk_real *v, const hbk_real *grads, hbk_int n,
                            hbk_int step, double scale, const hbk_adamw *o);
/* Euclidean norm of n gradients, summed in double in a fixed order. */
HBK_DEF double hbk_norm(const hbk_real *g, hbk_int n);

typedef enum hbk_schedule { HBK_LINEAR, HBK_COSINE, HBK_CONSTANT } hbk_schedule;
/* Learning rate of step 1 .. steps: rises linearly over `warmup` steps to lr, then falls to lr_end, an
   absolute rate, which the last step has; a single step after the warm-up has lr. */
HBK_DEF double hbk_learning_rate(hbk_schedule s, hbk_int step, hbk_int steps, hbk_int warmup, double lr,
                                 double lr_end);

/* ==== 17  FINETUNING ========================================================= [hbk_finetune] */

typedef struct hbk_train_options {
    bool full;                /* every weight; else LoRA                              default false */
    hbk_adapter_options lora; /* of the adapter (chapter 10)                          its defaults */
    double dropout;           /* 0.05 LoRA, 0.1 full */
    double neftune;           /* noise on the embeddings (Jain et al. 2023); 5 is usual          0 */
    double lora_plus;         /* learning rate of B over that of A (LoRA+, Hayou et al. 2024)    1 */
    bool recompute;           /* less memory, more time, the same bits                           false */
    double lr, lr_end;        /* first and last learning rate     2e-4 to 2e-5 LoRA, 1e-5 to 9e-6 full */
    hbk_schedule schedule;    /* HBK_LINEAR */
    hbk_int warmup;           /* steps                                                0 */
    double beta1, beta2, eps; /* 0.9, 0.95, 1e-8 */
    double weight_decay;      /* on matrices, never on norms or biases                0 LoRA, 0.1 full */
    double clip;              /* global norm of the gradient; 0 = none                1.0 */
    hbk_int batch;            /* examples per step; -1: 32, and 8 below 3,000 examples (the paper)   -1 */
    hbk_int accumulate;       /* batches summed up per step                           1 */
    hbk_int steps;            /* -1: by `epochs`, or the paper's table by size        -1 */
    double epochs;            /* used when steps is -1 and this is above 0            0 */
    hbk_int max_tokens;       /* most in one pass, of which a batch may take several; an example that is
                                 longer has one of its own                            2048 */
    hbk_int max_length;       /* longest example in tokens; -1: the model's context   -1 */
    hbk_int replay;           /* raw documents per batch, from the replay set         0 */
    hbk_int validate_every;   /* steps between validations, where there is a set; 0: the end only    50 */
    hbk_int patience;         /* stop after so many validations without a lower loss; 0: never       0 */
    uint64_t seed;            /* of order, dropout and the adapter's start            1 */
    bool shuffle;             /* true */
    hbk_int save_every;       /* steps between checkpoints; 0 = only at the end       100 */
} hbk_train_options;
HBK_DEF hbk_train_options hbk_train_defaults(bool full);
/* Steps for n examples from the paper's Table 18, interpolated in log n. */
HBK_DEF hbk_int hbk_train_steps(hbk_int n_examples);

/* What a trainer holds, in bytes; the rest of a process is the base's weights, the program, its data and
   OpenBLAS's buffers. Scratch that these options never touch is not counted: the system hands it out on
   touch. */
typedef struct hbk_train_memory {
    hbk_int n_values;                   /* numbers that are trained: a count, no bytes */
    hbk_int values, gradients, moments; /* of those; a validation set costs `values` once more */
    hbk_int kept;                       /* what the layers keep for the backward */
    hbk_int scratch, logits;
} hbk_train_memory;
/* Counts that for models of shape c, with an adapter as o->lora asks for or o->full, and batches of up to
   max_tokens tokens in sequences of up to max_seq. It takes no memory of that size. Errors: those of
   hbk_config_check and hbk_trainer_new but for memory. Thread safety: pure. */
HBK_DEF bool hbk_trainer_memory(hbk_train_memory *memory, const hbk_config *c, const hbk_train_options *o,
                                hbk_int max_tokens, hbk_int max_seq, hbk_error *err);

/* The trained numbers, their gradients and moments, and the step count. Borrows the model, which any number
   of trainers may share; a trainer is for one thread at a time. */
typedef struct hbk_trainer hbk_trainer;
/* init: an adapter to start from (LoRA), or NULL. A batch never holds more than max_tokens tokens. Errors:
   an adapter that the options cannot make, or one of another base, names the projection; memory. */
HBK_DEF hbk_trainer *hbk_trainer_new(const hbk_model *m, const hbk_train_options *o, const hbk_adapter *init,
                                     hbk_int max_tokens, hbk_int max_seq, hbk_allocator *alloc,
                                     hbk_error *err);
HBK_DEF void hbk_trainer_free(hbk_trainer *t);
/* Adds the gradient of one batch; scale and *loss as in hbk_pass and hbk_model_pass, whose errors it has. The
   caller makes the scale 1 / (target tokens of the whole step). */
HBK_DEF bool hbk_trainer_accumulate(hbk_trainer *t, const hbk_batch *b, double scale, double *loss,
                                    hbk_error *err);
/* Clips, steps with learning rate lr, clears the gradients. A gradient that is not finite is an error: it is
   cleared, and the weights stay. So are weights that the step took beyond all numbers; those are lost.
   *grad_norm (may be NULL): before clipping. */
HBK_DEF bool hbk_trainer_update(hbk_trainer *t, double lr, double *grad_norm, hbk_error *err);
HBK_DEF const hbk_model *hbk_trainer_model(const hbk_trainer *t);     /* the weights in training (or base) */
HBK_DEF const hbk_adapter *hbk_trainer_adapter(const hbk_trainer *t); /* NULL in full training */
HBK_DEF hbk_int hbk_trainer_step(const hbk_trainer *t);
/* Values, moments and step in one safetensors file, which is read back and compared before it takes the place
   of the last one. resume continues from there, gradients cleared; it needs the same number of values, of
   the same type. Errors: what files can do; HBK_ERROR_SHAPE for a checkpoint of another run. What file and
   trainer held stays then. */
HBK_DEF bool hbk_trainer_save(const hbk_trainer *t, const char *path, hbk_error *err);
HBK_DEF bool hbk_trainer_resume(hbk_trainer *t, const char *path, hbk_error *err);

/* What stands beside an adapter or model in humpback.json, so that generation follows training. */
typedef struct hbk_recipe {
    const hbk_template *tmpl;       /* may be NULL for raw text */
    const hbk_tokenizer *tok;       /* saved with full models; NULL: not */
    const char *base_name;          /* for adapter_config.json */
    const char *tag_seed, *tag_web; /* training tags; NULL = none */
    const char *inference_tag;      /* what generate appends; NULL = none */
    hbk_use use;
} hbk_recipe;

/* What a finetuning reads; it borrows all three. */
typedef struct hbk_train_data {
    const hbk_dataset *examples;
    const hbk_dataset *replay;     /* raw documents mixed in, o->replay per batch; NULL: none */
    const hbk_dataset *validation; /* never trained on; NULL: none */
} hbk_train_data;

/* What a finetuning would do, for a look before it is begun. */
typedef struct hbk_train_facts {
    hbk_int shortest, half, most, longest; /* tokens: half of the examples have up to half, 90 % up to most */
    hbk_int batch, steps;                  /* as numbers; what stands in the options may be -1 */
    double epochs;                         /* readings of the examples in those steps */
    hbk_int trained, numbers;              /* numbers that are trained, of so many in the model */
    hbk_int shared;                        /* examples of the validation set that are trained on, too */
} hbk_train_facts;
/* Fills *facts. Errors: all that hbk_finetune would find in options, data and init before its first step.
   Thread safety: reads its arguments only. */
HBK_DEF bool hbk_finetune_facts(hbk_train_facts *facts, const hbk_model *m, const hbk_train_data *data,
                                const hbk_train_options *o, const hbk_adapter *init, hbk_allocator *alloc,
                                hbk_error *err);

/* Trains and leaves in `dir` a PEFT adapter, or a model folder when full, with humpback.json, metrics.jsonl
   and timings.jsonl. With a validation set the result is the weights of its lowest loss, else the last ones.
   Killed at any moment and called again it continues, and ends with the same bytes; a finished folder returns
   at once; another option or data set than the folder's checkpoint was made with is an error, and so is a
   folder with a model, adapter or metrics.jsonl that no finetuning began there. A loss or gradient that is
   not finite is an error too, and the last checkpoint stays.
   init  an adapter to start from, copied (LoRA), or NULL
   Thread safety: one call per folder; models and data may be shared. */
HBK_DEF bool hbk_finetune(const hbk_model *m, const hbk_train_data *data, const hbk_train_options *o,
                          const hbk_adapter *init, const hbk_recipe *recipe, const char *dir,
                          const hbk_progress *progress, hbk_allocator *alloc, hbk_error *err);

/* A finetuned folder, or a GGUF adapter, opened on its base: an adapter, or a model of its own. */
typedef struct hbk_tuned {
    const hbk_model *model; /* the base, or own_model */
    hbk_adapter *adapter;   /* NULL in full mode */
    hbk_model *own_model;
} hbk_tuned;
/* dir: a PEFT folder, or a model folder as full finetuning leaves it. The base is borrowed, by any number of
   adapters (chapters 11 and 13 take several at once), and must outlive t, which hbk_tuned_free frees.
   Errors: those of hbk_adapter_load or hbk_model_load, and a finetuning that is not finished; t is untouched
   then. Thread safety: read-only once loaded, shared like a model. */
HBK_DEF bool hbk_tuned_load(hbk_tuned *t, const hbk_model *base, const char *dir, hbk_allocator *alloc,
                            hbk_error *err);
HBK_DEF void hbk_tuned_free(hbk_tuned *t); /* a zeroed one is fine; not the base */

/* ==== 18  CORPUS ============================================================= [hbk_corpus_*] */

typedef struct hbk_corpus_options {
    hbk_int min_chars, max_chars; /* code points of a segment                   600, 3000 (paper) */
    double max_repeat;            /* highest 3-gram Jaccard similarity of two sentences            0.6 */
    double max_upper;             /* highest share of capitals among a header's letters            0.6 */
    bool keep_all;                /* segments before any filter */
} hbk_corpus_options;
HBK_DEF hbk_corpus_options hbk_corpus_defaults(void);

#define HBK_DROPS(X)                                                                                         \
    X(KEPT, "kept")                                                                                          \
    X(EMPTY, "empty")                                                                                        \
    X(SHORT, "short") X(LONG, "long") X(HEADER, "header") X(NAVIGATION, "navigation")                        \
        X(REPETITION, "repetition") X(DUPLICATE, "duplicate") X(ENCODING, "encoding")
typedef enum hbk_drop {
#define HBK_X(name, text) HBK_DROP_##name,
    HBK_DROPS(HBK_X)
#undef HBK_X
        HBK_DROP_COUNT
} hbk_drop;
HBK_DEF const char *hbk_drop_name(hbk_drop d); /* "kept", "short" ... */

/* Cuts documents into segments and filters them. Not thread safe. */
typedef struct hbk_corpus hbk_corpus;
/* Segments go to out_path as {"id","text","header","source","url"?}, rejected ones, when rejects_path is
   not NULL, to that file with their "reason". An id is the source's stem and a running number, dropped
   segments included: "notes-3". hbk_corpus_finish frees it. Errors: lengths out of order, the files. */
HBK_DEF hbk_corpus *hbk_corpus_new(const hbk_corpus_options *o, const char *out_path,
                                   const char *rejects_path, hbk_allocator *alloc, hbk_error *err);
/* One document: markdown (headings open segments, sub-headings included in them), or plain text, which is
   one segment if it fits and is else cut at paragraphs. `source` is the file's name or its address. */
HBK_DEF bool hbk_corpus_add_text(hbk_corpus *c, const char *text, size_t n, bool markdown, const char *source,
                                 hbk_error *err);
/* A file by its ending: .md and .markdown, .jsonl and .json with rows {"text","id"?,"title"|"header"?,"url"?}
   that are plain documents each, anything else as plain text. A row's own id is kept; ID-1, ID-2 ... where
   the document is cut. */
HBK_DEF bool hbk_corpus_add_file(hbk_corpus *c, const char *path, hbk_error *err);
/* Ends the files; counts (HBK_DROP_COUNT) may be NULL. Frees c in every case. No segment kept is an error
   that gives the counts all the same. */
HBK_DEF bool hbk_corpus_finish(hbk_corpus *c, hbk_int *counts, hbk_error *err);

/* Near-duplicates by MinHash (Broder 1997). One thread at a time.
   threshold  Jaccard similarity, above 0 to 1, of two texts' sets of word n-grams from which the later one is
              a duplicate
   words      n; a text of fewer words is one n-gram
   hashes     of a signature, up to 65536; with 128 and a threshold of 0.06 or more a pair just at it is
              missed once in a thousand times or less often, and none is found wrongly: pairs that look alike
              are compared exactly
   Memory for each text that stays: 8 bytes for each n-gram and some 60 for each band, of which there are 32
   at a threshold of 0.7 and 16 at 0.9.
   The caller frees it with hbk_dedup_free. Errors: numbers out of range, memory. */
typedef struct hbk_dedup hbk_dedup;
HBK_DEF hbk_dedup *hbk_dedup_new(double threshold, hbk_int words, hbk_int hashes, hbk_allocator *alloc,
                                 hbk_error *err);
/* Takes the next text, which has number 0, 1, 2 ... *like: -1, it stays; or the number of the one before it
   that stayed and is most like it, of equals the first. *similarity: theirs; 0 where it stays. The only error
   is memory; d can then only be freed. */
HBK_DEF bool hbk_dedup_add(hbk_dedup *d, const char *text, hbk_int *like, double *similarity, hbk_error *err);
HBK_DEF void hbk_dedup_free(hbk_dedup *d); /* NULL is fine */
/* *similarity: the exact one of two texts. Errors: memory, words below 1. Thread safety: pure. */
HBK_DEF bool hbk_similarity(const char *a, const char *b, hbk_int words, double *similarity,
                            hbk_allocator *alloc, hbk_error *err);

/* Texts of evaluations, and what shares a run of words with them: it must not be trained on (Brown et al.
   2020, appendix C). One thread at a time.
   words  of a run, 4 to 64; an evaluation text of fewer words is looked for whole, and one of fewer than 4,
          which any text may hold, is not looked for
   The caller frees it with hbk_holdout_free. Errors: words out of range, memory. */
typedef struct hbk_holdout hbk_holdout;
HBK_DEF hbk_holdout *hbk_holdout_new(hbk_int words, hbk_allocator *alloc, hbk_error *err);
/* Adds a text, of which h keeps nothing but hashes; file (copied) and line say where it stands when it is
   found. Errors: memory. */
HBK_DEF bool hbk_holdout_add(hbk_holdout *h, const char *text, const char *file, hbk_int line,
                             hbk_error *err);
/* Adds every string of every row of a .jsonl file or of a .json file's array, at any depth, or every line of
   another file. Errors: the file, a NUL byte in it, no text of 4 words in it, memory. */
HBK_DEF bool hbk_holdout_add_file(hbk_holdout *h, const char *path, hbk_error *err);
/* *file, *line: the evaluation text that shares a run of words with this one, the shortest run first; *file
   is NULL, and *line untouched, where none does. *file belongs to h. Errors: memory. */
HBK_DEF bool hbk_holdout_find(hbk_holdout *h, const char *text, const char **file, hbk_int *line,
                              hbk_error *err);
HBK_DEF void hbk_holdout_free(hbk_holdout *h); /* NULL is fine */

/* ==== 19  SELF-AUGMENTATION ================================================== [hbk_augment] */

/* What both stages, and rewriting, share. */
typedef struct hbk_decode_options {
    hbk_sampling sampling;
    uint64_t seed;
    hbk_int wave;       /* records per wave                                             256 */
    hbk_int slots;      /* sequences decoded side by side                               32 */
    hbk_int max_length; /* cache per sequence in tokens; -1: the model's context      -1 */
    hbk_dtype cache;    /* of keys and values: F32 (reals) or BF16                   F32 */
} hbk_decode_options;
HBK_DEF hbk_decode_options hbk_decode_defaults(void); /* T 0.7, top-p 0.9, 256 new tokens */

/* What is sorted out of the candidates when all are there; nothing, in the paper. */
typedef struct hbk_sift_options {
    double dedup;               /* similarity from which an instruction is a duplicate; 0: off         0 */
    hbk_int dedup_words;        /* n of its word n-grams                                               2 */
    hbk_int dedup_hashes;       /* of a signature                                                    128 */
    const char *const *holdout; /* evaluation files, borrowed */
    hbk_int n_holdout;          /* so many; 0: off                                                     0 */
    hbk_int holdout_words;      /* of a run that gives a pair away                                    13 */
} hbk_sift_options;

typedef struct hbk_augment_options {
    hbk_decode_options decode;
    hbk_int candidates; /* instructions written for each text, of which the likeliest stays; above 1 needs a
                           temperature                                                       1 */
    hbk_int min_chars, max_chars; /* code points of an instruction                     3, 2000 */
    double max_echo;              /* most of its runs of words that may stand in the text; 1: any     0.5 */
    hbk_int echo_words;           /* words of such a run                                              6 */
    bool keep_truncated;          /* judge what max_new cut off as if it were whole            false */
    bool raw;                     /* no clean-up                                               false */
    hbk_sift_options sift;        /* off */
} hbk_augment_options;
HBK_DEF hbk_augment_options hbk_augment_defaults(void);

/* What becomes of a generated text: it is used, or why not. */
#define HBK_FATES(X)                                                                                         \
    X(OK, "ok")                                                                                              \
    X(EMPTY, "empty")                                                                                        \
    X(ECHO, "echo")           /* mostly words of the text */                                                 \
    X(LEAK, "leak")           /* holds a marker of the template */                                           \
    X(SHORT, "short")         /* fewer than min_chars */                                                     \
    X(LONG, "long")           /* more than max_chars */                                                      \
    X(TRUNCATED, "truncated") /* cut off by max_new or the context */                                        \
    X(TOO_LONG, "too_long")   /* the prompt leaves no room: nothing was generated */                         \
    X(DUPLICATE, "duplicate") /* much like an instruction before it */                                       \
    X(CONTAMINATED, "contaminated") /* shares a run of words with an evaluation */
typedef enum hbk_fate {
#define HBK_X(name, text) HBK_FATE_##name,
    HBK_FATES(HBK_X)
#undef HBK_X
        HBK_FATE_COUNT
} hbk_fate;
HBK_DEF const char *hbk_fate_name(hbk_fate f); /* "ok", "empty" ...: a row's "status" */

/* For every row {"text","id"?} of `segments` one row of `out`: {"id","instruction","output","status",
   "finish","prov"}; "raw", what the model said, where the clean-up changed it; and with several candidates
   "picked", the number of the one that stayed, from 0, and "logprobs", the mean per token of each. prov is
   {"model","adapter","template","template_hash","seed","precision"?,"cache"?,"candidates","temperature",
   "top_p"}: prov_adapter names the adapter, and "bf16" stands where products or caches are rounded. The
   backward model is (m, adapter). Continues a file that was cut off; rows of another input, or with another
   prov, are an error. */
HBK_DEF bool hbk_augment(const hbk_model *m, const hbk_adapter *adapter, const hbk_tokenizer *tok,
                         const hbk_template *t, const hbk_augment_options *o, const char *prov_adapter,
                         const char *segments, const char *out, const hbk_progress *progress,
                         hbk_allocator *alloc, hbk_error *err);
/* Adds the rows of a file to counts (HBK_FATE_COUNT) by the fate under `key`: "status" of what hbk_augment
   wrote, "rewrite" of what hbk_rewrite wrote. A row without one counts as ok. Errors: the file, a value that
   is no fate; counts are untouched then. */
HBK_DEF bool hbk_fate_count(hbk_int *counts, const char *path, const char *key, hbk_allocator *alloc,
                            hbk_error *err);
/* Marks duplicates and what overlaps evaluations in a file of candidates: rows whose status is ok get that of
   their fate, and "duplicate_of" (an id) and "similarity", or "overlaps" ("FILE:LINE"). Marks of an earlier
   call are taken off first. out may be the same file; it is complete or as it was. hbk_augment does this in
   the end. Errors: the files, options out of range, memory. */
HBK_DEF bool hbk_sift(const hbk_sift_options *o, const char *candidates, const char *out,
                      hbk_allocator *alloc, hbk_error *err);
/* What an instruction says without the labels, marks and white space around it: returns where that begins in
   s[0..*n-1] and shortens *n. Thread safety: pure. */
HBK_DEF const char *hbk_augment_clean(const char *s, size_t *n);
/* *fate of an instruction, cleaned or not, for the text `output`, under o's bounds. Errors: memory. */
HBK_DEF bool hbk_augment_judge(hbk_fate *fate, const char *instruction, const char *output, hbk_finish finish,
                               const hbk_augment_options *o, const hbk_template *t, const hbk_tokenizer *tok,
                               hbk_allocator *alloc, hbk_error *err);

HBK_DEF hbk_decode_options hbk_rewrite_defaults(void); /* T 0.7, top-p 0.9, 1024 new tokens */
/* For every row {"instruction","output","id"?} of `pairs`, but those whose "status" is not ok, the same row
   in `out`, its output rewritten by (m, adapter) for its instruction: "original" is the output as it was,
   "rewrite" the fate of the new one. Where that is empty, truncated, too_long or a leak, the output stays
   and there is no "original". prov_adapter is named in "prov", as hbk_augment's is, with the hash of the
   wording. Continues a file that was cut off. */
HBK_DEF bool hbk_rewrite(const hbk_model *m, const hbk_adapter *adapter, const hbk_tokenizer *tok,
                         const hbk_template *t, const hbk_decode_options *o, const char *prov_adapter,
                         const char *pairs, const char *out, const hbk_progress *progress,
                         hbk_allocator *alloc, hbk_error *err);

/* ==== 20  SELF-CURATION ====================================================== [hbk_curate] */

typedef enum hbk_readout { HBK_READOUT_TEXT, HBK_READOUT_EXPECTED } hbk_readout;
typedef enum hbk_vote { HBK_VOTE_MEAN, HBK_VOTE_MEDIAN } hbk_vote;
/* What pairs are selected by; several may be added up. */
enum {
    HBK_SIGNAL_RATING = 1,    /* the paper's */
    HBK_SIGNAL_IFD = 2,       /* instruction-following difficulty (Li et al. 2023, arXiv 2308.12032) */
    HBK_SIGNAL_ROUND_TRIP = 4 /* log-likelihood of the instruction under the backward model */
};
typedef struct hbk_curate_options {
    hbk_decode_options decode; /* greedy, 512 new tokens */
    hbk_readout readout;       /* HBK_READOUT_TEXT */
    hbk_int votes;             /* ratings per pair; above 1 needs a temperature               1 */
    hbk_vote vote;             /* what several come to: HBK_VOTE_MEAN */
    hbk_int retries;           /* how often a reply without a score is sampled anew           0 */
    unsigned signals;          /* HBK_SIGNAL_RATING */
    const hbk_model *backward; /* of round_trip, with its adapter; borrowed                   NULL */
    const hbk_adapter *backward_adapter;
    double keep;               /* least score that is kept                                    4.5 */
    hbk_int keep_top;          /* if above 0: so many of the best instead                     0 */
    double keep_share;         /* if above 0, up to 1: the best share of the rated pairs       0 */
} hbk_curate_options;
HBK_DEF hbk_curate_options hbk_curate_defaults(void);

/* The rating in a model's reply: the last "Score:" (any case, a word of its own, a blank before the colon and
   bold marks allowed) followed by a number from 1 to 5, "4/5" and "4.5" included. A range, another scale, a
   number in words, or a last label without a number give NAN, like a reply without any label: never a
   default. */
HBK_DEF double hbk_rating_parse(const char *reply);

/* Counts of one curation; kept / n is what decision makers look at. */
typedef struct hbk_curate_counts {
    hbk_int n, rated, unparsable, truncated, too_long, kept;
    hbk_int histogram[5]; /* scores rounded to 1 .. 5 */
    double threshold;     /* the least value that was kept; NAN where the order is of several signals */
    bool collapsed;       /* fewer than 2 % or more than 90 % of n kept */
    hbk_int retried;      /* pairs of which a reply was sampled anew */
    hbk_int ranked;       /* pairs that have all that they are selected by */
    hbk_int unhelpful;    /* not among them: by the IFD the instruction is of no use to the output */
} hbk_curate_counts;

/* Rates every candidate whose status is "ok" into `ratings`; continues a file that was cut off. A row is
   {"id","score","status","readout","votes","mean"?,"median"?,"spread"?,"retries","text","ifd"?,
   "round_trip"?,"rater","prov"}:
       votes       each rating, null where there is none; mean, median and sample deviation of several
       score       of those that can be read the mean, or the median; else null, and status says why:
                   "unparsable" "truncated" "too_long"
       retries     replies that were sampled anew, at the decoding's temperature or 0.7 where that is greedy
       ifd         loss of the output after the instruction over that of the output alone
       round_trip  mean log-likelihood of the instruction's tokens after the output
       rater       hash of model and adapter
   Without HBK_SIGNAL_RATING nothing is generated, and the read-out is "none".
   Errors: ids that are not unique; a vocabulary that cannot spell a digit, for the expected read-out; ratings
   in the file that another model, rubric, seed, precision, cache or read-out made. */
HBK_DEF bool hbk_rate(const hbk_model *m, const hbk_adapter *adapter, const hbk_tokenizer *tok,
                      const hbk_template *t, const hbk_curate_options *o, const char *prov_adapter,
                      const char *candidates, const char *ratings, const hbk_progress *progress,
                      hbk_allocator *alloc, hbk_error *err);
/* Keeps the best: candidates + ratings -> curated ({"id","instruction","output","score"?,"source":"aug"}), in
   file order; of equals the earlier. The order is that of the score, of the highest IFD below 1 (from 1 on
   the instruction is of no use), of the highest round_trip; or of the sum of a pair's ranks in several.
   Without the rating, or with several signals, keep_top or keep_share is needed. A curated set may be empty:
   that is not an error here. */
HBK_DEF bool hbk_select(const hbk_curate_options *o, const char *candidates, const char *ratings,
                        const char *curated, hbk_curate_counts *counts, hbk_allocator *alloc, hbk_error *err);

/* A selection against labels by people, rows {"id","good"} or {"id","score"}, where 4.5 and more is good. */
typedef struct hbk_agreement {
    hbk_int n, good, kept, both; /* labelled pairs that were rated; of them good, kept, good and kept */
    hbk_int unknown;             /* labels of no rated pair */
    double precision, recall;    /* NAN where a denominator is 0 */
} hbk_agreement;
/* Errors: a row of another form, an id that is labelled twice, no label of any rated pair. */
HBK_DEF bool hbk_agree(const char *labels, const char *ratings, const char *curated, hbk_agreement *a,
                       hbk_allocator *alloc, hbk_error *err);

/* ==== 21  THE LOOP =========================================================== [hbk_loop_run] */

enum { HBK_ITERATIONS = 8 }; /* most iterations of a loop */
typedef struct hbk_loop_options {
    const char *seed_path;          /* pairs by people, JSONL */
    const char *corpus_path;        /* segments, JSONL with "text" */
    const char *model_name;         /* for adapter_config.json and prov */
    const hbk_template *tmpl;       /* borrowed; NULL: llama2. Its rating and backward wordings are used */
    const char *replay_path;        /* raw documents, JSONL with "text"; NULL: none */
    const char *tag_seed, *tag_web; /* HBK_TAG_SEED, HBK_TAG_WEB; NULL: none */
    const char *inference_tags;     /* "seed,web" "web,seed" "seed" "web" "none" */
    hbk_int iterations;             /* 1 to HBK_ITERATIONS: 2 */
    hbk_int seed_repeat;            /* copies of the seed in M1, M2 ...: 1 */
    double validation_share;        /* of every model's examples, held out; 0: none */
    hbk_int max_length;             /* longest example and prompt in tokens; -1: the model's context */
    hbk_train_options myx, m0, mt;  /* backward model, M0, M1 and later */
    hbk_augment_options augment;
    hbk_curate_options curate;
    bool rewrite;                   /* the model that has curated writes the kept outputs anew   false */
    hbk_decode_options rewriting;   /* how */
    /* curation k keeps a score of keep[k-1], or the best keep_share[k-1]; where both are 0, as the curation
       before it, and the first as `curate` says */
    double keep[HBK_ITERATIONS], keep_share[HBK_ITERATIONS];
    bool stop_on_collapse; /* end when a rater keeps nearly all or nearly none       false */
    bool stop_unchanged;   /* end when a curation keeps the pairs of the one before: the model would be the
                              same once more                                       true */
    hbk_int max_steps;     /* end before the model that takes the training steps of all, M_yx and M0
                              included, beyond this; 0: never                      0 */
    uint64_t seed; /* of everything that is sampled, in place of augment's and curate's own */
    bool force;    /* other options than the folder's: move its files aside and start anew */
} hbk_loop_options;
HBK_DEF hbk_loop_options hbk_loop_defaults(void);

typedef struct hbk_loop_result {
    hbk_int n_seed, n_segments, n_candidates, n_ok; /* n_ok: candidates with a usable instruction */
    hbk_int iterations;                             /* that ended with a model */
    hbk_int steps;                                  /* of training, of all models together */
    hbk_curate_counts curated[HBK_ITERATIONS];      /* per curation */
    char final_dir[512]; /* the folder of the best model: m2, or what the loop ended with */
    char stopped[256];   /* "" or why it ended early */
} hbk_loop_result;

/* The whole method into the folder `dir` (see the README for its files). Called again with the same options
   it continues; with others it names the difference and fails, unless o->force. A curation that keeps nothing
   ends the loop, and so do the stop rules among the options: result->stopped says which and why, and what was
   trained stays.
   progress, result, alloc and err may be NULL. On failure result is untouched.
   Errors: HBK_ERROR_OPTION for options that contradict themselves or the folder, HBK_ERROR_DATA for a seed of
   fewer than two pairs, an empty corpus, an id that comes twice, and rows of the folder that another model or
   template has made; HBK_ERROR_CANCELLED when progress says so; those of the stages.
   Thread safety: one call per folder at a time. Source: the paper, section 2. */
HBK_DEF bool hbk_loop_run(const hbk_model *m, const hbk_tokenizer *tok, const hbk_loop_options *o,
                          const char *dir, const hbk_progress *progress, hbk_loop_result *result,
                          hbk_allocator *alloc, hbk_error *err);
/* A finetuned folder's inference tag (humpback.json), into out[512]; "" if it has none. */
HBK_DEF bool hbk_recipe_tag(char out[512], const char *dir, hbk_error *err);
/* The tag that inference appends, into out[512]: "seed,web" joins the two by a blank. */
HBK_DEF bool hbk_inference_tag(char out[512], const char *list, const char *tag_seed, const char *tag_web,
                               hbk_error *err);

/* ==== 22  MEASURING ========================================================== [hbk_summary] */

/* Mean, sample deviation and 95 % half-width (Student's t) of n values; n 1 has neither deviation nor
   half-width, n 0 no mean either: those are NAN. Thread safety: pure. */
typedef struct hbk_summary {
    hbk_int n;
    double mean, deviation, half_width;
} hbk_summary;
HBK_DEF hbk_summary hbk_summarize(const double *x, hbk_int n);

/* *loss: mean negative log-likelihood, in nats per target token, of a data set.
   max_tokens  most tokens in one pass; the longest example is taken in any case
   Errors: no example, ids beyond the vocabulary, memory; *loss is untouched then. Thread safety: reads its
   arguments only. */
HBK_DEF bool hbk_evaluate_loss(const hbk_model *m, const hbk_adapter *adapter, const hbk_dataset *d,
                               hbk_int max_tokens, double *loss, hbk_allocator *alloc, hbk_error *err);

/* ==== 23  SEVERAL PROCESSES ================================================== [hbk_comm]

   What training and curation over several processes will ask of a communication library. Reserved: no
   function takes one yet. */
typedef struct hbk_comm {
    hbk_int (*rank)(void *ctx); /* 0 .. size-1 */
    hbk_int (*size)(void *ctx);
    bool (*sum)(void *ctx, double *values, hbk_int n); /* each rank's values summed, in rank order */
    bool (*barrier)(void *ctx);
    void *ctx;
} hbk_comm;

#ifdef __cplusplus
}
#endif
#endif /* HUMPBACK_H_INCLUDED */

/* Stop here if you only want to use the library: what follows is how it works. */

#if defined(HUMPBACK_IMPLEMENTATION) && !defined(HUMPBACK_IMPLEMENTED)
#define HUMPBACK_IMPLEMENTED

/* ==== 1  PLATFORM ============================================================

   Third-party headers come outside extern "C": stb_ds holds C++ templates. Where the program has included
   a system header before this file, POSIX names may be hidden already: include the instantiating header
   first, or compile with -D_XOPEN_SOURCE=700. A program that uses stb_ds's short names includes it before
   this file. */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <regex.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include <jansson.h>
#include <utf8proc.h>
#ifndef HBK_NO_BLAS
#include <cblas.h>
#endif
#ifdef HBK_STB_DS_IMPLEMENTATION
#define STB_DS_IMPLEMENTATION
#endif
#ifndef STBDS_NO_SHORT_NAMES /* only stbds_ names: the short ones are common words */
#define STBDS_NO_SHORT_NAMES
#define HBK__STB_DS_NAMES
#endif
#if defined(__has_include)
#if __has_include(<stb/stb_ds.h>)
#include <stb/stb_ds.h>
#else
#include <stb_ds.h>
#endif
#else
#include <stb_ds.h>
#endif
#ifdef HBK__STB_DS_NAMES
#undef STBDS_NO_SHORT_NAMES
#undef HBK__STB_DS_NAMES
#endif
#ifdef HBK_STB_DS_IMPLEMENTATION
#undef STB_DS_IMPLEMENTATION
#endif
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* clang warns where it finds no use in vectorising a loop that asks for it; that is fine with us */
#ifdef __clang__
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wpass-failed"
#endif

#ifndef HBK_ASSERT
#include <assert.h>
#define HBK_ASSERT(x) assert(x)
#endif

/* A cast that C++ wants and C does not need, in one place. */
#define HBK__NEW(alloc, T, n, err) ((T *)hbk_alloc((alloc), (n), sizeof(T), (err)))
#define HBK__MIN(a, b)             ((a) < (b) ? (a) : (b))
#define HBK__MAX(a, b)             ((a) > (b) ? (a) : (b))

static int hbk__n_threads(void)
{
#ifdef _OPENMP
    return omp_in_parallel() ? 1 : omp_get_max_threads();
#else
    return 1;
#endif
}

static int hbk__thread(void)
{
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

/* *product = a * b; false if it overflows. The one place where sizes are multiplied. */
static bool hbk__mul(hbk_int *product, hbk_int a, hbk_int b)
{
    if (a < 0 || b < 0 || (b > 0 && a > INT64_MAX / b)) return false;
    *product = a * b;
    return true;
}

/* Around chapters that wait for files or for the chapters before them, half of the text: -O1 is enough for
   them and takes gcc half of the time. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__OPTIMIZE__) && !defined(__OPTIMIZE_SIZE__)
#define HBK__GLUE     _Pragma("GCC push_options") _Pragma("GCC optimize(\"O1\")")
#define HBK__GLUE_END _Pragma("GCC pop_options")
#else
#define HBK__GLUE
#define HBK__GLUE_END
#endif

/* ==== 2  ERRORS, PROGRESS, CANCEL ============================================ */

HBK_DEF const char *hbk_error_text(hbk_code code)
{
    switch (code) {
#define HBK_X(name, text)                                                                                    \
    case HBK_ERROR_##name: return text;
        HBK_ERRORS(HBK_X)
#undef HBK_X
    case HBK_ERROR_COUNT: break;
    }
    return "unknown error";
}

/* The funnel: every message is formatted here. `lead` is "file:line: " or "". */
static void hbk__set_error(hbk_error *err, hbk_code code, const char *file, hbk_int line, const char *fmt,
                           va_list args)
{
    if (!err) return;
    hbk_error e; /* built aside: an argument may point into *err */
    memset(&e, 0, sizeof e);
    e.code = code;
    e.line = line;
    size_t at = 0;
    if (file && *file) {
        snprintf(e.file, sizeof e.file, "%s", file);
        if (line)
            snprintf(e.message, sizeof e.message, "%s:%lld: ", e.file, (long long)line);
        else
            snprintf(e.message, sizeof e.message, "%s: ", e.file);
        at = strlen(e.message);
    }
    vsnprintf(e.message + at, sizeof e.message - at, fmt, args);
    for (char *p = e.message; *p; p++)
        if ((unsigned char)*p < 32) *p = ' '; /* one line, whatever a file's name or text holds */
    *err = e;
}

HBK_DEF bool hbk_fail(hbk_error *err, hbk_code code, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    hbk__set_error(err, code, NULL, 0, fmt, args);
    va_end(args);
    return false;
}

HBK_DEF bool hbk_fail_at(hbk_error *err, hbk_code code, const char *file, hbk_int line, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    hbk__set_error(err, code, file, line, fmt, args);
    va_end(args);
    return false;
}

HBK_DEF bool hbk_report(const hbk_progress *p, const char *stage, hbk_int done, hbk_int total,
                        const char *unit, hbk_error *err, const char *fmt, ...)
{
    if (!p || !p->call) return true;
    char note[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(note, sizeof note, fmt, args);
    va_end(args);
    if (p->call(p->ctx, stage, done, total, unit, note)) return true;
    return hbk_fail(err, HBK_ERROR_CANCELLED, "%s: stopped at %lld of %lld %s; run it again to go on", stage,
                    (long long)done, (long long)total, unit);
}

/* ==== 3  MEMORY ==============================================================

   A block begins with a hidden line of 64 bytes that remembers its size, so that freeing can tell the
   hook both sizes, and that keeps what follows aligned for any vector unit:

       hook's pointer .. padding .. [base, bytes, size] | 64-byte aligned data */

typedef struct hbk__block {
    void *base;   /* what the hook returned */
    size_t bytes; /* what was asked of the hook */
    size_t size;  /* what the caller asked for */
} hbk__block;
enum { HBK__ALIGN = 64 };

static hbk__block *hbk__block_of(void *p)
{
    return (hbk__block *)(void *)((char *)p - HBK__ALIGN);
}

/* Adds `plus` to the bytes alive and takes `minus` off; false, and nothing changed, if that would break the
   limit. */
static bool hbk__count(hbk_allocator *a, size_t plus, size_t minus)
{
    if (!a) return true;
    size_t live = __atomic_add_fetch(&a->live, plus - minus, __ATOMIC_RELAXED);
    if (plus > minus && a->limit && live > a->limit) {
        __atomic_sub_fetch(&a->live, plus - minus, __ATOMIC_RELAXED);
        return false;
    }
    size_t peak = __atomic_load_n(&a->peak, __ATOMIC_RELAXED);
    while (live > peak &&
           !__atomic_compare_exchange_n(&a->peak, &peak, live, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return true;
}

static void *hbk__hook(hbk_allocator *a, void *p, size_t old_size, size_t size)
{
    if (a && a->realloc) return a->realloc(a->ctx, p, old_size, size);
    if (size) return realloc(p, size);
    free(p);
    return NULL;
}

/* A new block with the beginning of p, which is freed; or, p NULL, a fresh one, zeroed where `zero`. Without
   a hook the C library does that: large blocks come as zero pages, which cost nothing until touched. */
static void *hbk__grow(hbk_allocator *a, void *p, hbk_int count, size_t size, bool zero, hbk_error *err)
{
    hbk_int want;
    bool hooked = a && a->realloc;
    if (!hbk__mul(&want, count, (hbk_int)size) || want > INT64_MAX - 2 * HBK__ALIGN) {
        hbk_fail(err, HBK_ERROR_RANGE, "%lld elements of %zu bytes are more than memory can address",
                 (long long)count, size);
        return NULL;
    }
    size_t bytes = (size_t)want + 2 * HBK__ALIGN;
    size_t had = p ? hbk__block_of(p)->bytes : 0;
    if (!hbk__count(a, bytes, 0)) { /* old and new are alive together while the data moves */
        hbk_fail(err, HBK_ERROR_MEMORY, "%lld bytes more would exceed the limit of %zu bytes (%zu in use)",
                 (long long)want, a->limit, a->live);
        return NULL;
    }
    char *base = (char *)(zero && !hooked ? calloc(1, bytes) : hbk__hook(a, NULL, 0, bytes));
    if (!base) {
        hbk__count(a, 0, bytes);
        hbk_fail(err, HBK_ERROR_MEMORY, "out of memory: %lld bytes were not to be had", (long long)want);
        return NULL;
    }
    char *data = base + HBK__ALIGN;
    data += HBK__ALIGN - (uintptr_t)data % HBK__ALIGN;
    hbk__block *block = hbk__block_of(data);
    block->base = base;
    block->bytes = bytes;
    block->size = (size_t)want;
    if (zero && hooked) memset(data, 0, (size_t)want);
    if (p) {
        hbk__block *old = hbk__block_of(p);
        memcpy(data, p, HBK__MIN(old->size, block->size));
        hbk__hook(a, old->base, old->bytes, 0);
        hbk__count(a, 0, had);
    }
    return data;
}

HBK_DEF void *hbk_realloc(hbk_allocator *a, void *p, hbk_int count, size_t size, hbk_error *err)
{
    return hbk__grow(a, p, count, size, false, err);
}

HBK_DEF void *hbk_alloc(hbk_allocator *a, hbk_int count, size_t size, hbk_error *err)
{
    return hbk__grow(a, NULL, count, size, true, err);
}

HBK_DEF void hbk_free(hbk_allocator *a, void *p)
{
    if (!p) return;
    hbk__block *block = hbk__block_of(p);
    size_t bytes = block->bytes;
    hbk__hook(a, block->base, bytes, 0);
    hbk__count(a, 0, bytes);
}

/* Growth of dynamic arrays: room for `need` elements, at least doubling. */
static bool hbk__reserve(hbk_allocator *a, void **data, hbk_int *cap, hbk_int need, size_t size,
                         hbk_error *err)
{
    if (need <= *cap) return true;
    hbk_int want = HBK__MAX(need, *cap < INT64_MAX / 2 ? 2 * *cap : need);
    want = HBK__MAX(want, 16);
    void *p = hbk_realloc(a, *data, want, size, err);
    if (!p) return false;
    *data = p;
    *cap = want;
    return true;
}

/* ==== 4  RANDOM ==============================================================

   xoshiro256** (Blackman & Vigna 2018), its state filled by splitmix64 from a hash of the address
   (seed, stage, id). A stream costs four words, so every record can have its own. */

static uint64_t hbk__splitmix(uint64_t *x)
{
    uint64_t z = (*x += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

HBK_DEF uint64_t hbk_hash(uint64_t h, const void *data, size_t n)
{
    const unsigned char *p = (const unsigned char *)data;
    if (h == 0) h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

HBK_DEF hbk_rng hbk_rng_at(uint64_t seed, const char *stage, uint64_t id)
{
    hbk_rng r;
    uint64_t x = seed;
    x = hbk__splitmix(&x) ^ hbk_hash(0, stage, strlen(stage));
    x = hbk__splitmix(&x) ^ id;
    for (int i = 0; i < 4; i++) r.s[i] = hbk__splitmix(&x);
    return r;
}

HBK_DEF uint64_t hbk_rng_next(hbk_rng *r)
{
    uint64_t *s = r->s, t = s[1] * 5, out = ((t << 7) | (t >> 57)) * 9;
    t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = (s[3] << 45) | (s[3] >> 19);
    return out;
}

HBK_DEF double hbk_rng_uniform(hbk_rng *r)
{
    return (double)(hbk_rng_next(r) >> 11) * (1.0 / 9007199254740992.0); /* 2^-53 */
}

HBK_DEF hbk_int hbk_rng_below(hbk_rng *r, hbk_int n)
{
    HBK_ASSERT(n >= 1);
    uint64_t bound = (uint64_t)n, reject = (0 - bound) % bound; /* 2^64 mod n */
    uint64_t x;
    do x = hbk_rng_next(r);
    while (x < reject);
    return (hbk_int)(x % bound);
}

HBK_DEF double hbk_rng_normal(hbk_rng *r)
{
    /* Box-Muller, one of the pair: addressed streams are short, and a kept half would be hidden state. */
    double u = 1.0 - hbk_rng_uniform(r), v = hbk_rng_uniform(r); /* u in (0, 1] */
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}

HBK_DEF void hbk_rng_shuffle(hbk_rng *r, hbk_int *a, hbk_int n)
{
    for (hbk_int i = n - 1; i > 0; i--) {
        hbk_int j = hbk_rng_below(r, i + 1), t = a[i];
        a[i] = a[j];
        a[j] = t;
    }
}

/* ==== 5  STRINGS AND UTF-8 ===================================================

   hbk_text is the one string builder. Appending cannot be checked at every call without drowning the
   code that appends, so the first failure sticks: later appends do nothing, and the one question at the
   end, hbk_text_ok, answers for all of them. What was appended before the failure stays readable.

   UTF-8 (RFC 3629), bytes per code point:

       0xxxxxxx                                U+0000 .. U+007F
       110xxxxx 10xxxxxx                       U+0080 .. U+07FF
       1110xxxx 10xxxxxx 10xxxxxx              U+0800 .. U+FFFF, without the surrogates D800 .. DFFF
       11110xxx 10xxxxxx 10xxxxxx 10xxxxxx     U+10000 .. U+10FFFF

   A longer form than needed is invalid, and so is a cut one. An invalid sequence is consumed byte by byte,
   as SentencePiece does it: one U+FFFD per byte where replacement is asked for. utf8proc is used for
   categories only; its decoder stops at errors, and a trained tokenizer must see every byte. */

HBK_DEF void hbk_text_append(hbk_text *t, const char *s, size_t n)
{
    if (t->failed || n == 0) return;
    if (n >= (size_t)INT64_MAX - t->len) { /* the NUL needs a byte as well */
        t->failed = true;
        return;
    }
    void *data = t->data;
    hbk_int cap = (hbk_int)t->cap;
    if (!hbk__reserve(t->alloc, &data, &cap, (hbk_int)(t->len + n + 1), 1, NULL)) {
        t->failed = true;
        return;
    }
    t->data = (char *)data;
    t->cap = (size_t)cap;
    memcpy(t->data + t->len, s, n);
    t->len += n;
    t->data[t->len] = 0;
}

HBK_DEF void hbk_text_add(hbk_text *t, const char *s)
{
    if (s) hbk_text_append(t, s, strlen(s));
}

HBK_DEF void hbk_text_printf(hbk_text *t, const char *fmt, ...)
{
    char small[256]; /* most uses fit: formatted once, and no memory is asked for */
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(small, sizeof small, fmt, args);
    va_end(args);
    if (n < 0) {
        t->failed = true;
    } else if ((size_t)n < sizeof small) {
        hbk_text_append(t, small, (size_t)n);
    } else {
        char *large = HBK__NEW(t->alloc, char, (hbk_int)n + 1, NULL);
        if (large) {
            vsnprintf(large, (size_t)n + 1, fmt, again);
            hbk_text_append(t, large, (size_t)n);
        } else {
            t->failed = true;
        }
        hbk_free(t->alloc, large);
    }
    va_end(again);
}

HBK_DEF void hbk_text_clear(hbk_text *t)
{
    t->len = 0; /* `failed` stays: a builder that is reused must not forget what it lost */
    if (t->data) t->data[0] = 0;
}

HBK_DEF const char *hbk_text_string(const hbk_text *t)
{
    return t->data ? t->data : "";
}

HBK_DEF void hbk_text_trim(hbk_text *t)
{
    static const char blanks[] = " \t\r\n";
    while (t->len && memchr(blanks, t->data[t->len - 1], sizeof blanks - 1)) t->data[--t->len] = 0;
    size_t lead = t->len ? strspn(t->data, blanks) : 0;
    if (lead) memmove(t->data, t->data + lead, t->len - lead + 1);
    t->len -= lead;
}

HBK_DEF bool hbk_text_ok(const hbk_text *t, hbk_error *err)
{
    if (!t->failed) return true;
    return hbk_fail(err, HBK_ERROR_MEMORY, "out of memory: a text of %zu bytes could not grow", t->len);
}

HBK_DEF void hbk_text_free(hbk_text *t)
{
    hbk_free(t->alloc, t->data);
    t->data = NULL;
    t->len = t->cap = 0;
    t->failed = false;
}

HBK_DEF size_t hbk_utf8_decode(const char *s, size_t n, int32_t *cp)
{
    *cp = -1;
    if (n == 0) return 0;
    const unsigned char *p = (const unsigned char *)s;
    if (p[0] < 0x80) {
        *cp = p[0];
        return 1;
    }
    /* The smallest value of each length rules out longer forms; 0x80..0xBF and 0xF8.. lead nothing. */
    static const int32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    size_t len = p[0] >= 0xF8 ? 0 : p[0] >= 0xF0 ? 4 : p[0] >= 0xE0 ? 3 : p[0] >= 0xC0 ? 2 : 0;
    if (len == 0 || len > n) return 1;
    int32_t c = p[0] & (0xFF >> (len + 1));
    for (size_t i = 1; i < len; i++) {
        if ((p[i] & 0xC0) != 0x80) return 1;
        c = c << 6 | (p[i] & 0x3F);
    }
    if (c < least[len] || c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF)) return 1;
    *cp = c;
    return len;
}

HBK_DEF size_t hbk_utf8_encode(char out[4], int32_t cp)
{
    HBK_ASSERT(cp >= 0 && cp <= 0x10FFFF);
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    size_t len = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (size_t i = len - 1; i > 0; i--, cp >>= 6) out[i] = (char)(0x80 | (cp & 0x3F));
    static const int lead[5] = {0, 0, 0xC0, 0xE0, 0xF0};
    out[0] = (char)(lead[len] | cp);
    return len;
}

HBK_DEF bool hbk_utf8_valid(const char *s, size_t n, size_t *bad)
{
    for (size_t i = 0; i < n;) {
        int32_t cp;
        size_t step = hbk_utf8_decode(s + i, n - i, &cp);
        if (cp < 0) {
            if (bad) *bad = i;
            return false;
        }
        i += step;
    }
    return true;
}

HBK_DEF hbk_int hbk_utf8_length(const char *s, size_t n)
{
    hbk_int count = 0;
    int32_t cp;
    for (size_t i = 0; i < n; count++) i += hbk_utf8_decode(s + i, n - i, &cp);
    return count;
}

HBK__GLUE

/* ==== 6  FILES, JSON, GGUF ===================================================

   What a crash may leave behind. A file written whole goes PATH.tmp -> fsync -> rename -> fsync of the
   folder: after a power cut it is the old one or the new one, never half of either. A .jsonl file grows
   by waves; the run's state records how many rows are safe, and opening the file again cuts whatever lies
   behind them, a torn line included. So a row is what a newline ends, and nothing else.

   JSON is jansson's (RFC 8259), with four answers of our own:
     - an integer beyond 64 bits becomes a real, it alone: tokenizer_config.json holds
       1000000000000000019884624838656, and the integers around it must stay integers;
     - \u0000 in a string is allowed; invalid UTF-8 and lone surrogates are errors of their line;
     - objects keep the order in which keys were put in, so what is written twice is the same bytes;
     - a real is written in the first of 15, 16 or 17 digits that read back as the same number.

   jansson allocates with malloc; what it is fed is bounded by HBK__JSON_MAX.

   GGUF stands last in this chapter because two read it: its keys hold a vocabulary (chapter 7), its tensors
   a model (chapter 12). */

enum { HBK__JSON_MAX = 1 << 30 }; /* bytes of one JSON file, or of one row */

/* "PATH: cannot be opened: No such file or directory". Reads errno, so it is called at once. */
static bool hbk__fail_errno(hbk_error *err, const char *path, const char *what)
{
    return hbk_fail_at(err, HBK_ERROR_FILE, path, 0, "cannot be %s: %s", what, strerror(errno));
}

/* Opens a regular file for reading; -1 and *err otherwise. *size may be NULL. A pipe has no size to map and
   cannot be read twice: it is refused here rather than taken for an empty file. */
static int hbk__open(const char *path, hbk_int *size, hbk_error *err)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        hbk__fail_errno(err, path, "opened");
        return -1;
    }
    bool ok = fstat(fd, &st) == 0;
    if (!ok) hbk__fail_errno(err, path, "examined");
    if (ok && !S_ISREG(st.st_mode))
        ok = hbk_fail_at(err, HBK_ERROR_FILE, path, 0, "is %s, expected a plain file",
                         S_ISDIR(st.st_mode) ? "a folder" : "a device or pipe");
    if (!ok) {
        close(fd);
        return -1;
    }
    if (size) *size = (hbk_int)st.st_size;
    return fd;
}

/* read() that goes on after signals; -1 on an error. */
static hbk_int hbk__read(int fd, void *data, size_t n)
{
    ssize_t got;
    do got = read(fd, data, n);
    while (got < 0 && errno == EINTR);
    return (hbk_int)got;
}

/* write() until all is written: a full disk shows only after the part that still fitted. */
static bool hbk__write_all(int fd, const char *data, size_t n, const char *path, hbk_error *err)
{
    while (n > 0) {
        ssize_t put = write(fd, data, n);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return hbk__fail_errno(err, path, "written");
        data += put;
        n -= (size_t)put;
    }
    return true;
}

HBK_DEF bool hbk_file_read(const char *path, size_t max_bytes, hbk_text *out, hbk_error *err)
{
    int fd = hbk__open(path, NULL, err);
    if (fd < 0) return false;
    char chunk[16384];
    size_t before = out->len;
    bool ok = true;
    while (ok) {
        hbk_int got = hbk__read(fd, chunk, sizeof chunk);
        if (got < 0) ok = hbk__fail_errno(err, path, "read");
        if (got <= 0) break;
        if ((size_t)got > max_bytes - (out->len - before))
            ok = hbk_fail_at(err, HBK_ERROR_RANGE, path, 0, "is larger than %zu bytes", max_bytes);
        else
            hbk_text_append(out, chunk, (size_t)got);
        ok = ok && hbk_text_ok(out, err);
    }
    close(fd);
    if (!ok && out->data) {
        out->len = before;
        out->data[before] = 0;
    }
    return ok;
}

/* A new or renamed name is durable once its folder is. File systems that cannot sync a folder say EINVAL,
   and lose nothing that they could keep. */
static bool hbk__sync_folder_of(const char *path, hbk_error *err)
{
    char dir[512] = ".";
    const char *slash = strrchr(path, '/');
    if (slash) {
        size_t n = slash == path ? 1 : (size_t)(slash - path);
        if (n >= sizeof dir) return hbk_fail_at(err, HBK_ERROR_RANGE, path, 0, "the path is too long");
        memcpy(dir, path, n);
        dir[n] = 0;
    }
    int fd = open(dir, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return hbk__fail_errno(err, dir, "opened");
    bool ok = fsync(fd) == 0 || errno == EINVAL;
    if (!ok) hbk__fail_errno(err, dir, "synced");
    close(fd);
    return ok;
}

HBK_DEF bool hbk_file_begin(hbk_file *f, const char *path, hbk_error *err)
{
    hbk_file made;
    int n = snprintf(made.tmp, sizeof made.tmp, "%s.tmp", path);
    if (n < 0 || n >= (int)sizeof made.tmp)
        return hbk_fail_at(err, HBK_ERROR_RANGE, path, 0, "the path is longer than 507 bytes");
    snprintf(made.path, sizeof made.path, "%s", path);
    made.fd = open(made.tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (made.fd < 0) return hbk__fail_errno(err, made.tmp, "created");
    *f = made;
    return true;
}

HBK_DEF bool hbk_file_put(hbk_file *f, const void *data, size_t n, hbk_error *err)
{
    HBK_ASSERT(f->tmp[0] && f->fd >= 0 && "a file that was not begun, or is sealed");
    return hbk__write_all(f->fd, (const char *)data, n, f->tmp, err);
}

HBK_DEF bool hbk_file_seal(hbk_file *f, hbk_error *err)
{
    if (f->fd < 0) return true;
    bool ok = fsync(f->fd) == 0 || hbk__fail_errno(err, f->tmp, "synced");
    if (close(f->fd) != 0 && ok) ok = hbk__fail_errno(err, f->tmp, "closed"); /* NFS reports late */
    f->fd = -1;
    return ok;
}

HBK_DEF void hbk_file_abandon(hbk_file *f)
{
    if (!f->tmp[0]) return;
    if (f->fd >= 0) close(f->fd);
    unlink(f->tmp);
    f->tmp[0] = 0;
    f->fd = -1;
}

HBK_DEF bool hbk_file_commit(hbk_file *f, hbk_error *err)
{
    HBK_ASSERT(f->tmp[0] && "a file that was not begun");
    bool ok = hbk_file_seal(f, err);
    if (ok && rename(f->tmp, f->path) != 0) ok = hbk__fail_errno(err, f->path, "replaced by its .tmp");
    if (!ok) {
        hbk_file_abandon(f);
        return false;
    }
    f->tmp[0] = 0;
    return hbk__sync_folder_of(f->path, err);
}

HBK_DEF bool hbk_file_write(const char *path, const void *data, size_t n, hbk_error *err)
{
    hbk_file f;
    if (!hbk_file_begin(&f, path, err)) return false;
    if (hbk_file_put(&f, data, n, err)) return hbk_file_commit(&f, err);
    hbk_file_abandon(&f);
    return false;
}

HBK_DEF bool hbk_file_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

HBK_DEF bool hbk_dir_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

HBK_DEF bool hbk_dir_make(const char *path, hbk_error *err)
{
    char part[512];
    size_t n = strlen(path);
    if (n == 0 || n >= sizeof part)
        return hbk_fail_at(err, HBK_ERROR_RANGE, path, 0, "expected a folder's path of 1 to 511 bytes");
    memcpy(part, path, n + 1);
    for (size_t i = 1; i <= n; i++) {
        if (part[i] != '/' && part[i] != 0) continue;
        char keep = part[i];
        part[i] = 0;
        bool made = mkdir(part, 0777) == 0;
        int why = errno; /* which the look below may change */
        if (!made && !hbk_dir_exists(part)) { /* made by someone else meanwhile is as good as made */
            errno = why;
            return hbk__fail_errno(err, part, "made");
        }
        part[i] = keep;
    }
    return true;
}

/* Are both names of one existing file? */
static bool hbk__same_file(const char *a, const char *b)
{
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* Does the existing file lie in the existing folder, or below it? */
static bool hbk__inside(const char *dir, const char *path)
{
    char *d = realpath(dir, NULL), *p = realpath(path, NULL);
    size_t n = d ? strlen(d) : 0;
    bool inside = d && p && strncmp(d, p, n) == 0 && p[n] == '/';
    free(d);
    free(p);
    return inside;
}

HBK_DEF bool hbk_file_set_aside(const char *path, hbk_error *err)
{
    char to[640];
    for (int k = 1; k < 10000; k++) {
        int n = snprintf(to, sizeof to, "%s.%d", path, k);
        if (n < 0 || n >= (int)sizeof to) break;
        if (hbk_file_exists(to)) continue;
        return rename(path, to) == 0 || hbk_fail_at(err, HBK_ERROR_FILE, path, 0,
                                                    "cannot be renamed to %s: %s", to, strerror(errno));
    }
    return hbk_fail_at(err, HBK_ERROR_FILE, path, 0, "9999 earlier ones stand beside it: remove some");
}

HBK_DEF bool hbk_file_hash(const char *path, uint64_t *hash, hbk_error *err)
{
    int fd = hbk__open(path, NULL, err);
    if (fd < 0) return false;
    char chunk[16384];
    uint64_t h = hbk_hash(0, chunk, 0); /* FNV goes on where it stopped: chunks give the whole's hash */
    hbk_int got;
    while ((got = hbk__read(fd, chunk, sizeof chunk)) > 0) h = hbk_hash(h, chunk, (size_t)got);
    close(fd);
    if (got < 0) return hbk__fail_errno(err, path, "read");
    *hash = h;
    return true;
}

HBK_DEF bool hbk_path(char out[512], const char *dir, const char *name, hbk_error *err)
{
    size_t a = strlen(dir), b = strlen(name);
    if (a + b + 2 > 512)
        return hbk_fail_at(err, HBK_ERROR_RANGE, name, 0, "its path in %.100s... exceeds 511 bytes", dir);
    memmove(out, dir, a); /* out and dir may be the same: a path that grows */
    if (a > 0 && out[a - 1] != '/') out[a++] = '/';
    memcpy(out + a, name, b + 1);
    return true;
}

HBK_DEF bool hbk_mapping_open(hbk_mapping *m, const char *path, hbk_error *err)
{
    hbk_int size;
    int fd = hbk__open(path, &size, err);
    if (fd < 0) return false;
    static const unsigned char nothing[1] = {0};
    const unsigned char *data = nothing; /* mmap refuses empty files; readers need not */
    if (size > 0) {
        void *p = mmap(NULL, (size_t)size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            close(fd);
            return hbk__fail_errno(err, path, "mapped");
        }
        data = (const unsigned char *)p;
    }
    close(fd); /* the mapping stays */
    m->data = data;
    m->size = (size_t)size;
    return true;
}

/* Pages that were looked at leave this process; the kernel's cache may keep them, and they come back when
   they are looked at again. Looking at one brings its neighbours along: 2 MB, where those are cached. */
static void hbk__mapping_forget(const hbk_mapping *m)
{
#ifdef MADV_DONTNEED
    if (m->size > 0) madvise((void *)(uintptr_t)m->data, m->size, MADV_DONTNEED);
#else
    (void)m;
#endif
}

HBK_DEF void hbk_mapping_close(hbk_mapping *m)
{
    if (m->size > 0) munmap((void *)(uintptr_t)m->data, m->size);
    m->data = NULL;
    m->size = 0;
}

static uint64_t hbk__little_endian(const unsigned char *p, int n)
{
    uint64_t x = 0;
    while (n > 0) x = x << 8 | p[--n];
    return x;
}

/* Copies JSON text, giving each integer that no 64 bits hold the exponent that makes it a real. */
static void hbk__json_widen(hbk_text *out, const char *s, size_t n)
{
    for (size_t i = 0, from; i < n;) {
        from = i;
        if (s[i] == '"') { /* strings pass as they are; an escape hides its next byte */
            for (i++; i < n && s[i] != '"'; i++)
                if (s[i] == '\\') i++;
            i = HBK__MIN(i + 1, n);
            hbk_text_append(out, s + from, i - from);
        } else if (s[i] == '-' || (s[i] >= '0' && s[i] <= '9')) {
            bool negative = s[i] == '-', real = false;
            for (i++; i < n && s[i] && strchr("0123456789.eE+-", s[i]); i++)
                if (s[i] == '.' || s[i] == 'e' || s[i] == 'E') real = true;
            const char *digits = s + from + negative;
            size_t len = i - from - negative;
            const char *last = negative ? "9223372036854775808" : "9223372036854775807";
            hbk_text_append(out, s + from, i - from);
            if (!real && (len > 19 || (len == 19 && memcmp(digits, last, 19) > 0)))
                hbk_text_append(out, "e0", 2);
        } else {
            hbk_text_append(out, s + i++, 1);
        }
    }
}

/* Parses n bytes: one JSON value. NULL with *e, and *code, on failure. The text is rewritten only when
   jansson complains of a number, so that the usual file is parsed once and not copied. */
static json_t *hbk__json_parse(const char *s, size_t n, hbk_allocator *alloc, json_error_t *e, hbk_code *code)
{
    size_t flags = JSON_ALLOW_NUL | JSON_DECODE_ANY;
    memset(e, 0, sizeof *e); /* jansson leaves the code unset where its first allocation fails */
    json_t *value = json_loadb(s, n, flags, e);
    if (!value && json_error_code(e) == json_error_numeric_overflow) {
        hbk_text wide;
        memset(&wide, 0, sizeof wide);
        wide.alloc = alloc;
        hbk__json_widen(&wide, s, n);
        if (hbk_text_ok(&wide, NULL)) value = json_loadb(hbk_text_string(&wide), wide.len, flags, e);
        hbk_text_free(&wide);
    }
    *code = !value && json_error_code(e) == json_error_out_of_memory ? HBK_ERROR_MEMORY : HBK_ERROR_FORMAT;
    return value;
}

/* The commonest broken model: a text of 130 bytes that a clone without git-lfs leaves in a file's place. */
static bool hbk__check_pointer(const void *data, size_t n, const char *path, hbk_error *err)
{
    static const char lead[] = "version https://git-lfs";
    if (n < sizeof lead - 1 || memcmp(data, lead, sizeof lead - 1) != 0) return true;
    return hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0,
                       "is a git-lfs pointer, not the file itself: fetch it with `git lfs pull`");
}

HBK_DEF struct json_t *hbk_json_read(const char *path, hbk_error *err)
{
    hbk_text text;
    memset(&text, 0, sizeof text);
    json_t *value = NULL;
    if (hbk_file_read(path, HBK__JSON_MAX, &text, err)) {
        json_error_t e;
        hbk_code code;
        const char *s = hbk_text_string(&text);
        size_t bom = text.len >= 3 && memcmp(s, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
        value = hbk__json_parse(s + bom, text.len - bom, NULL, &e, &code);
        if (!value && hbk__check_pointer(s, text.len, path, err))
            hbk_fail_at(err, code, path, e.line, "is no JSON: %s", e.text);
    }
    hbk_text_free(&text);
    return value;
}

static int hbk__text_sink(const char *s, size_t n, void *text)
{
    hbk_text_append((hbk_text *)text, s, n);
    return 0;
}

/* A real's n bytes in the first of 15, 16, 17 digits that reads back, in place; returns the new length. 17
   always suffice, and 15 are enough for what people write. A process whose locale has a decimal comma cannot
   read the number here, and it stays as it is. */
static size_t hbk__real_shorten(char *s, size_t n)
{
    char old[40], text[40], *end, *power;
    if (n >= sizeof old) return n;
    memcpy(old, s, n);
    old[n] = 0;
    double x = strtod(old, &end);
    if (*end) return n;
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text - 2, "%.*g", digits, x);
        if (strtod(text, NULL) == x) break;
    }
    if ((power = strchr(text, 'e')) != NULL) { /* e+09 is e9, as jansson writes it */
        power += power[1] == '-' ? 2 : 1;
        size_t idle = strspn(power, "+0");
        memmove(power, power + idle, strlen(power + idle) + 1);
    } else if (!strchr(text, '.')) { /* it must stay a real */
        strcat(text, ".0");
    }
    size_t len = strlen(text);
    if (len > n) return n;
    memcpy(s, text, len);
    return len;
}

/* The same for every real of JSON text, whose strings stay as they are; returns the new length. */
static size_t hbk__json_shorten(char *s, size_t n)
{
    size_t to = 0;
    bool quoted = false;
    for (size_t i = 0; i < n;) {
        size_t len = quoted || !strchr("-0123456789", s[i]) ? 0 : strspn(s + i, "-+.0123456789eE");
        if (len) {
            memmove(s + to, s + i, len);
            bool real = false;
            for (size_t k = 0; k < len; k++) real = real || strchr(".eE", s[to + k]);
            to += real ? hbk__real_shorten(s + to, len) : len;
            i += len;
            continue;
        }
        if (s[i] == '"') quoted = !quoted;
        if (quoted && s[i] == '\\') s[to++] = s[i++]; /* and what it escapes */
        s[to++] = s[i++];
    }
    s[to] = 0;
    return to;
}

HBK_DEF bool hbk_json_text(hbk_text *out, const struct json_t *value, size_t flags, hbk_error *err)
{
    size_t before = out->len;
    int code = json_dump_callback(value, hbk__text_sink, out, flags | JSON_ENCODE_ANY);
    if (code == 0 && !out->failed)
        out->len = before + hbk__json_shorten(out->data + before, out->len - before);
    if (code == 0) return hbk_text_ok(out, err);
    out->len = before;
    if (out->data) out->data[before] = 0;
    return hbk_fail(err, HBK_ERROR_MEMORY, "out of memory for JSON text, or no JSON value to write");
}

HBK_DEF bool hbk_json_write(const char *path, const struct json_t *value, hbk_error *err)
{
    hbk_text text;
    memset(&text, 0, sizeof text);
    bool ok = hbk_json_text(&text, value, JSON_INDENT(2), err);
    hbk_text_append(&text, "\n", 1);
    ok = ok && hbk_text_ok(&text, err) && hbk_file_write(path, text.data, text.len, err);
    hbk_text_free(&text);
    return ok;
}

/* What the value of `key` stands for where that is no name or number of the user's; or "". */
static const char *hbk__begun_note(const char *key)
{
    static const char *const notes[][2] = {
        {"template_hash", " (hashes of the template with its rubric and other wordings)"},
        {"model_hash", " (hashes of the weights)"},
        {"wording", " (hashes of the wording)"},
        {"rewrite.wording", " (hashes of the wording)"},
        {"backward", " (hashes of the backward model)"},
        {"input", " (hashes of the file)"},
        {"augment.holdout", " (hashes of the evaluation files)"},
        {"rater", " (hashes of the weights)"},
        {"signals", " (the sum of 1 rating, 2 IFD, 4 round trip)"},
        {"precision", " (what products do here: bf16 needs a processor with AVX512-BF16)"},
        {"threads", " (of the processor: sums differ by their number; OMP_NUM_THREADS sets it)"},
    };
    for (size_t i = 0; i < sizeof notes / sizeof *notes; i++)
        if (strcmp(key, notes[i][0]) == 0) return notes[i][1];
    return "";
}

/* "PATH: was begun with KEY OLD, not VALUE: use the same, or REMEDY". */
static bool hbk__fail_begun(const char *path, const char *key, const json_t *old, const json_t *value,
                            const char *remedy, hbk_error *err)
{
    hbk_text a, b;
    memset(&a, 0, sizeof a);
    memset(&b, 0, sizeof b);
    if (!old || !hbk_json_text(&a, old, JSON_COMPACT, NULL)) hbk_text_add(&a, "unset");
    if (!value || !hbk_json_text(&b, value, JSON_COMPACT, NULL)) hbk_text_add(&b, "unset");
    hbk_fail_at(err, HBK_ERROR_OPTION, path, 0, "was begun with %s %.100s, not %.100s%s: use the same, or %s",
                key, hbk_text_string(&a), hbk_text_string(&b), hbk__begun_note(key), remedy);
    hbk_text_free(&a);
    hbk_text_free(&b);
    return false;
}

HBK_DEF bool hbk_json_same(const struct json_t *then, const struct json_t *now, const char *path,
                           const char *remedy, hbk_error *err)
{
    json_t *object = (json_t *)(uintptr_t)now; /* jansson's iterators know no const */
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value)
    {
        const json_t *old = json_object_get(then, key);
        if (!old || !json_equal(old, value)) return hbk__fail_begun(path, key, old, value, remedy, err);
    }
    return true;
}

HBK_DEF bool hbk_json_string(const struct json_t *row, const char *key, const char **out, const char *file,
                             hbk_int line, hbk_error *err)
{
    const json_t *value = json_object_get(row, key);
    if (!value)
        return hbk_fail_at(err, HBK_ERROR_FORMAT, file, line, "the key \"%s\" is missing, expected a string",
                           key);
    if (!json_is_string(value))
        return hbk_fail_at(err, HBK_ERROR_FORMAT, file, line, "the value of \"%s\" is no string", key);
    *out = json_string_value(value);
    return true;
}

/* The file is mapped, and a line is parsed where it lies: no buffer, and no longest line. */
struct hbk_jsonl_reader {
    hbk_allocator *alloc;
    char path[512];
    hbk_mapping map;
    size_t at;     /* first byte not yet read */
    hbk_int line;  /* of the last row; its element if `array` */
    json_t *array; /* the whole file, if it is one JSON array */
    json_t *row;   /* the last one given; NULL if it belongs to `array` */
};

/* JSON's own white space, which is not isspace()'s: that one asks the locale. */
static bool hbk__json_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

HBK_DEF hbk_jsonl_reader *hbk_jsonl_open(const char *path, hbk_allocator *alloc, hbk_error *err)
{
    hbk_jsonl_reader *r = HBK__NEW(alloc, hbk_jsonl_reader, 1, err);
    if (!r) return NULL;
    r->alloc = alloc;
    snprintf(r->path, sizeof r->path, "%s", path);
    if (!hbk_mapping_open(&r->map, path, err)) {
        hbk_free(alloc, r);
        return NULL;
    }
    const char *s = (const char *)r->map.data;
    size_t n = r->map.size, i;
    if (n >= 3 && memcmp(s, "\xef\xbb\xbf", 3) == 0) r->at = 3;
    for (i = r->at; i < n && hbk__json_space(s[i]); i++) {
    }
    if (i == n || s[i] != '[') return r;
    json_error_t e; /* rows are objects: what begins like an array is one file-sized array of them */
    hbk_code code = HBK_ERROR_RANGE;
    if (n <= HBK__JSON_MAX) r->array = hbk__json_parse(s + r->at, n - r->at, alloc, &e, &code);
    if (r->array) return r;
    if (code == HBK_ERROR_RANGE)
        hbk_fail_at(err, code, path, 0, "one JSON array of more than 1 GiB; write it as JSONL, a row a line");
    else
        hbk_fail_at(err, code, path, e.line, "line %d is no JSON: %s", e.line, e.text);
    hbk_jsonl_close(r);
    return NULL;
}

/* The same as hbk_jsonl_next where the file is one array; its elements are counted like lines. */
static int hbk__jsonl_element(hbk_jsonl_reader *r, struct json_t **row, hbk_error *err)
{
    if ((size_t)r->line >= json_array_size(r->array)) return 0;
    json_t *element = json_array_get(r->array, (size_t)r->line++);
    if (!json_is_object(element)) {
        hbk_fail_at(err, HBK_ERROR_FORMAT, r->path, r->line, "row is no JSON object");
        return -1;
    }
    *row = element;
    return 1;
}

HBK_DEF int hbk_jsonl_next(hbk_jsonl_reader *r, struct json_t **row, hbk_error *err)
{
    if (r->array) return hbk__jsonl_element(r, row, err);
    json_decref(r->row);
    r->row = NULL;
    const char *s = (const char *)r->map.data, *begin;
    size_t n;
    do { /* the next line that is not blank */
        if (r->at >= r->map.size) return 0;
        begin = s + r->at;
        n = r->map.size - r->at;
        const char *newline = (const char *)memchr(begin, '\n', n);
        if (newline) n = (size_t)(newline - begin);
        r->at += n + 1;
        r->line++;
        for (; n > 0 && hbk__json_space(begin[n - 1]); n--) {
        }
    } while (n == 0);
    if (n > HBK__JSON_MAX) {
        hbk_fail_at(err, HBK_ERROR_RANGE, r->path, r->line, "row has %zu bytes, expected at most 1 GiB", n);
        return -1;
    }
    json_error_t e;
    hbk_code code;
    r->row = hbk__json_parse(begin, n, r->alloc, &e, &code);
    if (!r->row) {
        hbk_fail_at(err, code, r->path, r->line, "line %lld is no JSON: %s%s", (long long)r->line, e.text,
                    r->line > 1 ? "" : "; expected an object {...} on each line, or one array of them");
        return -1;
    }
    if (!json_is_object(r->row)) {
        hbk_fail_at(err, HBK_ERROR_FORMAT, r->path, r->line, "row is no JSON object");
        return -1;
    }
    *row = r->row;
    return 1;
}

HBK_DEF hbk_int hbk_jsonl_line(const hbk_jsonl_reader *r)
{
    return r->line;
}

HBK_DEF void hbk_jsonl_close(hbk_jsonl_reader *r)
{
    if (!r) return;
    json_decref(r->row);
    json_decref(r->array);
    hbk_mapping_close(&r->map);
    hbk_free(r->alloc, r);
}

struct hbk_jsonl_writer {
    hbk_allocator *alloc;
    char path[512];
    int fd;
    hbk_text pending; /* rows not yet handed to the kernel */
};

/* Counts up to `most` newlines of the open file; *end is the offset behind the last one counted. */
static bool hbk__count_lines(int fd, const char *path, hbk_int most, hbk_int *lines, hbk_int *end,
                             hbk_error *err)
{
    char chunk[16384];
    hbk_int at = 0, got = 0;
    bool blank = true; /* which is no row */
    *lines = *end = 0;
    while (*lines < most && (got = hbk__read(fd, chunk, sizeof chunk)) > 0) {
        for (hbk_int i = 0; i < got && *lines < most; i++) {
            if (chunk[i] != '\n') {
                blank = blank && strchr(" \t\r", chunk[i]) && chunk[i];
                continue;
            }
            if (!blank) {
                ++*lines;
                *end = at + i + 1;
            }
            blank = true;
        }
        at += got;
    }
    return got >= 0 || hbk__fail_errno(err, path, "read");
}

/* Cuts the open file behind its first keep_rows lines and goes there. */
static bool hbk__jsonl_cut(int fd, const char *path, hbk_int keep_rows, hbk_error *err)
{
    hbk_int rows, end;
    if (!hbk__count_lines(fd, path, keep_rows, &rows, &end, err)) return false;
    if (rows < keep_rows)
        return hbk_fail_at(err, HBK_ERROR_DATA, path, 0,
                           "holds %lld complete rows, expected at least %lld: it was cut or replaced",
                           (long long)rows, (long long)keep_rows);
    if (ftruncate(fd, (off_t)end) != 0) return hbk__fail_errno(err, path, "cut");
    if (lseek(fd, (off_t)end, SEEK_SET) < 0) return hbk__fail_errno(err, path, "positioned");
    return hbk__sync_folder_of(path, err);
}

HBK_DEF hbk_jsonl_writer *hbk_jsonl_create(const char *path, hbk_int keep_rows, hbk_allocator *alloc,
                                           hbk_error *err)
{
    hbk_jsonl_writer *w = HBK__NEW(alloc, hbk_jsonl_writer, 1, err);
    if (!w) return NULL;
    w->alloc = w->pending.alloc = alloc;
    snprintf(w->path, sizeof w->path, "%s", path);
    int create = keep_rows > 0 ? 0 : O_CREAT; /* rows to keep in a file that is gone: an error */
    w->fd = open(path, O_RDWR | O_CLOEXEC | create, 0666);
    if (w->fd >= 0 && hbk__jsonl_cut(w->fd, path, keep_rows, err)) return w;
    if (w->fd < 0)
        hbk__fail_errno(err, path, "opened for writing");
    else
        close(w->fd);
    hbk_free(alloc, w);
    return NULL;
}

/* Hands the pending rows to the kernel. If that fails midway, a torn row stays in the file and the run's
   state does not count it: the next opening cuts it off. */
static bool hbk__jsonl_flush(hbk_jsonl_writer *w, hbk_error *err)
{
    if (!hbk__write_all(w->fd, hbk_text_string(&w->pending), w->pending.len, w->path, err)) return false;
    hbk_text_clear(&w->pending);
    return true;
}

HBK_DEF bool hbk_jsonl_write(hbk_jsonl_writer *w, const struct json_t *row, hbk_error *err)
{
    if (!hbk_json_text(&w->pending, row, JSON_COMPACT, err)) return false;
    hbk_text_append(&w->pending, "\n", 1);
    if (!hbk_text_ok(&w->pending, err)) return false;
    return w->pending.len < ((size_t)1 << 20) || hbk__jsonl_flush(w, err);
}

HBK_DEF bool hbk_jsonl_sync(hbk_jsonl_writer *w, hbk_error *err)
{
    if (!hbk_text_ok(&w->pending, err) || !hbk__jsonl_flush(w, err)) return false;
    return fsync(w->fd) == 0 || hbk__fail_errno(err, w->path, "synced");
}

HBK_DEF bool hbk_jsonl_finish(hbk_jsonl_writer *w, hbk_error *err)
{
    if (!w) return true;
    bool ok = hbk_jsonl_sync(w, err);
    if (close(w->fd) != 0 && ok) ok = hbk__fail_errno(err, w->path, "closed");
    hbk_text_free(&w->pending);
    hbk_free(w->alloc, w);
    return ok;
}

HBK_DEF bool hbk_jsonl_count(const char *path, hbk_int *rows, hbk_error *err)
{
    hbk_int lines = 0, end;
    if (hbk_file_exists(path)) {
        int fd = hbk__open(path, NULL, err);
        if (fd < 0) return false;
        bool ok = hbk__count_lines(fd, path, INT64_MAX, &lines, &end, err);
        close(fd);
        if (!ok) return false;
    }
    *rows = lines;
    return true;
}

/* ---- GGUF -------------------------------------------------------------------

       "GGUF" | u32 version | u64 tensors | u64 keys
       keys:      string name, u32 type, value         string: u64 length, bytes
       tensors:   string name, u32 n, u64 dims[n], u32 type, u64 offset
       zeros up to a multiple of general.alignment (32)
       data:      each tensor at its offset, which is such a multiple too

   All of it little-endian and packed. A value of type array is u32 element type, u64 n, elements. Dimensions
   run from the contiguous one outwards; here they are turned round, into PyTorch's order. Source: ggml's
   docs/gguf.md.

   Every count is held against the bytes that are left before memory is taken by it, and every name is
   unique, so whoever reads values and tensors later need not look again. Strings of an array are found
   through an index made at opening: a vocabulary has 128,000. */

enum { HBK__GGUF_KEY_MAX = 65535, HBK__GGUF_TENSOR_MAX = 63, HBK__GGUF_LENGTH_MAX = 1 << 30 };

typedef struct hbk__ggml_type {
    char name[12];
    int id, block, bytes; /* elements of a block and their bytes */
} hbk__ggml_type;

/* All that files hold: the types of chapter 8, and behind them those that it cannot multiply, so that these
   are refused by their names. */
static const hbk__ggml_type hbk__ggml_types[] = {
#define HBK_X(name, text, gguf, block, bytes) {#name, gguf, block, bytes},
    HBK_DTYPES(HBK_X)
#undef HBK_X
    {"IQ2_XXS", 16, 256, 66}, {"IQ2_XS", 17, 256, 74}, {"IQ3_XXS", 18, 256, 98}, {"IQ1_S", 19, 256, 50},
    {"IQ4_NL", 20, 32, 18},   {"IQ3_S", 21, 256, 110}, {"IQ2_S", 22, 256, 82},   {"IQ4_XS", 23, 256, 136},
    {"I8", 24, 1, 1},         {"I16", 25, 1, 2},       {"I32", 26, 1, 4},        {"I64", 27, 1, 8},
    {"IQ1_M", 29, 256, 56},   {"TQ1_0", 34, 256, 54},  {"TQ2_0", 35, 256, 66},   {"MXFP4", 39, 32, 17},
    {"NVFP4", 40, 64, 36},    {"Q1_0", 41, 128, 18}};

/* By name, or by id where name is NULL; NULL if there is none. */
static const hbk__ggml_type *hbk__ggml_type_of(const char *name, uint64_t id)
{
    for (size_t i = 0; i < sizeof hbk__ggml_types / sizeof *hbk__ggml_types; i++) {
        const hbk__ggml_type *t = &hbk__ggml_types[i];
        if (t->id >= 0 && (name ? !strcmp(name, t->name) : (uint64_t)t->id == id)) return t;
    }
    return NULL;
}

/* Bytes of a tensor's data, by type and shape; false if its rows are no whole blocks, or too large. */
static bool hbk__ggml_size(const hbk__ggml_type *type, const hbk_gguf_tensor *t, size_t *bytes)
{
    hbk_int n = 1, size;
    for (hbk_int i = 0; i < t->n_dims; i++)
        if (!hbk__mul(&n, n, t->shape[i])) return false;
    if ((t->n_dims ? t->shape[t->n_dims - 1] : 1) % type->block) return false;
    if (!hbk__mul(&size, n / type->block, type->bytes)) return false;
    *bytes = (size_t)size;
    return true;
}

/* Name and bytes of a value's types; an array's stand for the least that one takes. */
static const char hbk__gguf_names[HBK_GGUF_TYPE_COUNT][8] = {
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};
static const int hbk__gguf_sizes[HBK_GGUF_TYPE_COUNT] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};

HBK_DEF const char *hbk_gguf_type_name(hbk_gguf_type t)
{
    return (unsigned)t < HBK_GGUF_TYPE_COUNT ? hbk__gguf_names[t] : "unknown";
}

struct hbk_gguf {
    char path[512];
    hbk_allocator *alloc;
    hbk_mapping map;
    hbk_text names; /* of keys, then of tensors, each with its NUL */
    hbk_gguf_value *values;
    const hbk_gguf_value **by_key; /* sorted */
    hbk_int n_values;
    hbk_gguf_tensor *own; /* the tensors of this file */
    hbk_int n_own;
    hbk_gguf **rest; /* the further files of a split model */
    hbk_int n_rest;
    const hbk_gguf_tensor **tensors, **by_name; /* of all files, in order, and sorted */
    hbk_int n_tensors;
};

/* What reads the tables: `what` names the entry that is read, for messages. */
typedef struct hbk__gguf_cursor {
    hbk_gguf *g;
    size_t at;
    char what[128];
    hbk_error *err;
} hbk__gguf_cursor;

static bool hbk__gguf_short(const hbk__gguf_cursor *c)
{
    return hbk_fail_at(c->err, HBK_ERROR_FORMAT, c->g->path, 0,
                       "truncated: the file ends within %s; fetch it again", c->what);
}

/* The next n bytes, or NULL where the file has fewer. */
static const unsigned char *hbk__gguf_take(hbk__gguf_cursor *c, uint64_t n)
{
    if (n > c->g->map.size - c->at) {
        hbk__gguf_short(c);
        return NULL;
    }
    c->at += (size_t)n;
    return c->g->map.data + c->at - n;
}

static bool hbk__gguf_number(hbk__gguf_cursor *c, int bytes, uint64_t *x)
{
    const unsigned char *p = hbk__gguf_take(c, (uint64_t)bytes);
    if (p) *x = hbk__little_endian(p, bytes);
    return p != NULL;
}

/* The name of entry i, copied to the end of `names`. */
static bool hbk__gguf_name(hbk__gguf_cursor *c, const char *kind, hbk_int i, int most)
{
    uint64_t n;
    snprintf(c->what, sizeof c->what, "%s %lld", kind, (long long)i + 1);
    if (!hbk__gguf_number(c, 8, &n)) return false;
    if (n < 1 || n > (uint64_t)most)
        return hbk_fail_at(c->err, HBK_ERROR_FORMAT, c->g->path, 0,
                           "%s: its name has %llu bytes, expected 1 to %d", c->what, (unsigned long long)n,
                           most);
    const char *s = (const char *)hbk__gguf_take(c, n);
    if (!s) return false;
    if (memchr(s, 0, (size_t)n))
        return hbk_fail_at(c->err, HBK_ERROR_FORMAT, c->g->path, 0, "%s: its name holds a NUL byte", c->what);
    size_t bad = 0;
    if (!hbk_utf8_valid(s, (size_t)n, &bad))
        return hbk_fail_at(c->err, HBK_ERROR_FORMAT, c->g->path, 0,
                           "%s, \"%.*s\" and so on: its name is no UTF-8 from byte %llu on", c->what,
                           (int)HBK__MIN(bad, 100), s, (unsigned long long)bad);
    hbk_text_append(&c->g->names, s, (size_t)n);
    hbk_text_append(&c->g->names, "", 1);
    snprintf(c->what, sizeof c->what, "%s %.*s", kind, (int)HBK__MIN(n, 100), s);
    return hbk_text_ok(&c->g->names, c->err);
}

/* The v->n strings that follow; an array of them gets its index. */
static bool hbk__gguf_strings(hbk__gguf_cursor *c, hbk_gguf_value *v)
{
    size_t start = c->at;
    v->data = c->g->map.data + start;
    if (v->is_array) {
        v->at = HBK__NEW(c->g->alloc, hbk_int, v->n, c->err);
        if (!v->at) return false;
    }
    for (hbk_int i = 0; i < v->n; i++) {
        uint64_t n;
        if (v->at) v->at[i] = (hbk_int)(c->at - start);
        if (!hbk__gguf_number(c, 8, &n)) return false;
        if (n > HBK__GGUF_LENGTH_MAX)
            return hbk_fail_at(c->err, HBK_ERROR_RANGE, c->g->path, 0,
                               "%s: a string of %llu bytes, at most %d are allowed", c->what,
                               (unsigned long long)n, (int)HBK__GGUF_LENGTH_MAX);
        if (!hbk__gguf_take(c, n)) return false;
    }
    return true;
}

/* Key i: its name, already in `names`, its type and its value. */
static bool hbk__gguf_read_value(hbk__gguf_cursor *c, hbk_gguf_value *v)
{
    uint64_t type, n = 1;
    if (!hbk__gguf_number(c, 4, &type)) return false;
    v->is_array = type == HBK_GGUF_ARRAY;
    if (v->is_array && (!hbk__gguf_number(c, 4, &type) || !hbk__gguf_number(c, 8, &n))) return false;
    if (v->is_array && type == HBK_GGUF_ARRAY)
        return hbk_fail_at(c->err, HBK_ERROR_UNSUPPORTED, c->g->path, 0,
                           "%s: an array of arrays is not supported", c->what);
    if (type >= HBK_GGUF_TYPE_COUNT)
        return hbk_fail_at(c->err, HBK_ERROR_FORMAT, c->g->path, 0, "%s: unknown value type %llu", c->what,
                           (unsigned long long)type);
    if (n > HBK__GGUF_LENGTH_MAX)
        return hbk_fail_at(c->err, HBK_ERROR_RANGE, c->g->path, 0,
                           "%s: an array of %llu elements, at most %d are allowed", c->what,
                           (unsigned long long)n, (int)HBK__GGUF_LENGTH_MAX);
    v->type = (hbk_gguf_type)type;
    v->n = (hbk_int)n;
    uint64_t least = n * (uint64_t)hbk__gguf_sizes[type];
    if (least > c->g->map.size - c->at) return hbk__gguf_short(c);
    if (v->type == HBK_GGUF_STRING) return hbk__gguf_strings(c, v);
    v->data = hbk__gguf_take(c, least);
    return true;
}

/* A tensor's description after its name. Until hbk__gguf_place its data lie at the offset from the file's
   beginning: where the data begin is known only when all descriptions were read. */
static bool hbk__gguf_read_tensor(hbk__gguf_cursor *c, hbk_gguf_tensor *t, hbk_int alignment)
{
    uint64_t n, dim, id, offset;
    const char *path = c->g->path;
    if (!hbk__gguf_number(c, 4, &n)) return false;
    if (n > 4)
        return hbk_fail_at(c->err, HBK_ERROR_FORMAT, path, 0, "%s: has %llu dimensions, at most 4", c->what,
                           (unsigned long long)n);
    t->n_dims = (hbk_int)n;
    for (hbk_int i = t->n_dims - 1; i >= 0; i--) {
        if (!hbk__gguf_number(c, 8, &dim)) return false;
        if (dim < 1 || dim > INT64_MAX)
            return hbk_fail_at(c->err, HBK_ERROR_FORMAT, path, 0, "%s: a dimension of %llu", c->what,
                               (unsigned long long)dim);
        t->shape[i] = (hbk_int)dim;
    }
    if (!hbk__gguf_number(c, 4, &id) || !hbk__gguf_number(c, 8, &offset)) return false;
    const hbk__ggml_type *type = hbk__ggml_type_of(NULL, id);
    if (!type)
        return hbk_fail_at(c->err, HBK_ERROR_UNSUPPORTED, path, 0, "%s: unknown tensor type %llu", c->what,
                           (unsigned long long)id);
    t->type = type->name;
    if (!hbk__ggml_size(type, t, &t->bytes))
        return hbk_fail_at(c->err, HBK_ERROR_FORMAT, path, 0,
                           "%s: its shape overflows, or its rows are not whole blocks of %d, as %s asks for",
                           c->what, type->block, type->name);
    if (offset % (uint64_t)alignment)
        return hbk_fail_at(c->err, HBK_ERROR_FORMAT, path, 0,
                           "%s: its offset %llu is no multiple of general.alignment %lld", c->what,
                           (unsigned long long)offset, (long long)alignment);
    if (offset > c->g->map.size || t->bytes > c->g->map.size - offset)
        return hbk_fail_at(c->err, HBK_ERROR_FORMAT, path, 0,
                           "truncated: %s has %zu bytes at offset %llu, the file %zu; fetch it again",
                           c->what, t->bytes, (unsigned long long)offset, c->g->map.size);
    t->data = c->g->map.data + offset;
    return true;
}

/* Names get their pointers once `names` has stopped growing, data theirs once their beginning is known. */
static bool hbk__gguf_place(hbk__gguf_cursor *c, hbk_int alignment)
{
    hbk_gguf *g = c->g;
    const char *name = hbk_text_string(&g->names);
    size_t size = g->map.size, align = (size_t)alignment, start = (c->at + align - 1) / align * align;
    for (hbk_int i = 0; i < g->n_values; i++, name += strlen(name) + 1) g->values[i].key = name;
    for (hbk_int i = 0; i < g->n_own; i++, name += strlen(name) + 1) {
        hbk_gguf_tensor *t = &g->own[i];
        size_t offset = (size_t)(t->data - g->map.data);
        t->name = name;
        if (start > size || offset > size - start || t->bytes > size - start - offset)
            return hbk_fail_at(c->err, HBK_ERROR_FORMAT, g->path, 0,
                               "truncated: tensor %s ends at byte %zu, the file at %zu; fetch it again", name,
                               start + offset + t->bytes, size);
        t->data += start;
    }
    return true;
}

/* Magic, version and counts, which the file must have room for. */
static bool hbk__gguf_header(hbk__gguf_cursor *c, uint64_t *n_tensors, uint64_t *n_keys)
{
    const char *path = c->g->path;
    size_t size = c->g->map.size;
    if (size < 4 || memcmp(c->g->map.data, "GGUF", 4) != 0)
        return hbk_fail_at(c->err, HBK_ERROR_FORMAT, path, 0, "is no GGUF file: it does not begin with GGUF");
    c->at = 4;
    uint64_t version;
    if (!hbk__gguf_number(c, 4, &version)) return false;
    if (version && (version & 0xffff) == 0)
        return hbk_fail_at(c->err, HBK_ERROR_UNSUPPORTED, path, 0,
                           "is a big-endian GGUF, which is not supported: fetch the little-endian one");
    if (version != 2 && version != 3)
        return hbk_fail_at(c->err, HBK_ERROR_UNSUPPORTED, path, 0,
                           "is a GGUF of version %llu: 2 and 3 are supported; convert it with llama.cpp",
                           (unsigned long long)version);
    if (!hbk__gguf_number(c, 8, n_tensors) || !hbk__gguf_number(c, 8, n_keys)) return false;
    /* the least that an entry takes: a name of one byte, and no dimension or a value of one byte */
    if (*n_tensors > (size - c->at) / 25 || *n_keys > (size - c->at) / 14)
        return hbk_fail_at(c->err, HBK_ERROR_FORMAT, path, 0,
                           "announces %llu tensors and %llu keys, for which its %zu bytes have no room",
                           (unsigned long long)*n_tensors, (unsigned long long)*n_keys, size);
    return true;
}

static int hbk__by_key(const void *a, const void *b)
{
    return strcmp((*(const hbk_gguf_value *const *)a)->key, (*(const hbk_gguf_value *const *)b)->key);
}

static int hbk__by_tensor_name(const void *a, const void *b)
{
    return strcmp((*(const hbk_gguf_tensor *const *)a)->name, (*(const hbk_gguf_tensor *const *)b)->name);
}

static int hbk__by_tensor_place(const void *a, const void *b)
{
    const unsigned char *x = (*(const hbk_gguf_tensor *const *)a)->data;
    const unsigned char *y = (*(const hbk_gguf_tensor *const *)b)->data;
    return x < y ? -1 : x > y;
}

/* Sorts the keys; the same one twice is an error. Done before tensors are read: they need the alignment. */
static bool hbk__gguf_sort_keys(hbk_gguf *g, hbk_error *err)
{
    g->by_key = HBK__NEW(g->alloc, const hbk_gguf_value *, g->n_values, err);
    if (!g->by_key) return false;
    const char *name = hbk_text_string(&g->names);
    for (hbk_int i = 0; i < g->n_values; i++, name += strlen(name) + 1) {
        g->values[i].key = name;
        g->by_key[i] = &g->values[i];
    }
    qsort(g->by_key, (size_t)g->n_values, sizeof *g->by_key, hbk__by_key);
    for (hbk_int i = 1; i < g->n_values; i++)
        if (!strcmp(g->by_key[i - 1]->key, g->by_key[i]->key))
            return hbk_fail_at(err, HBK_ERROR_FORMAT, g->path, 0, "key %.100s: is there twice",
                               g->by_key[i]->key);
    return true;
}

/* The tables of the file mapped in g. */
static bool hbk__gguf_tables(hbk_gguf *g, hbk_error *err)
{
    uint64_t n_tensors = 0, n_keys = 0;
    hbk_int alignment = 32;
    hbk__gguf_cursor c;
    memset(&c, 0, sizeof c);
    c.g = g;
    c.err = err;
    snprintf(c.what, sizeof c.what, "the header");
    if (!hbk__gguf_header(&c, &n_tensors, &n_keys)) return false;
    g->values = HBK__NEW(g->alloc, hbk_gguf_value, (hbk_int)n_keys, err);
    if (g->values) g->own = HBK__NEW(g->alloc, hbk_gguf_tensor, (hbk_int)n_tensors, err);
    if (!g->own) return false;
    while (g->n_values < (hbk_int)n_keys) /* counted before it is read: closing frees what it holds so far */
        if (!hbk__gguf_name(&c, "key", g->n_values, HBK__GGUF_KEY_MAX) ||
            !hbk__gguf_read_value(&c, &g->values[g->n_values++]))
            return false;
    if (!hbk__gguf_sort_keys(g, err) || !hbk_gguf_int(g, "general.alignment", &alignment, err)) return false;
    if (alignment < 1 || alignment > HBK__GGUF_LENGTH_MAX || (alignment & (alignment - 1)))
        return hbk_fail_at(err, HBK_ERROR_FORMAT, g->path, 0,
                           "key general.alignment: is %lld, expected a power of two", (long long)alignment);
    for (; g->n_own < (hbk_int)n_tensors; g->n_own++)
        if (!hbk__gguf_name(&c, "tensor", g->n_own, HBK__GGUF_TENSOR_MAX) ||
            !hbk__gguf_read_tensor(&c, &g->own[g->n_own], alignment))
            return false;
    return hbk__gguf_place(&c, alignment);
}

/* One file, whatever split it may be part of. */
static hbk_gguf *hbk__gguf_open_one(const char *path, hbk_allocator *alloc, hbk_error *err)
{
    hbk_gguf *g = HBK__NEW(alloc, hbk_gguf, 1, err);
    if (!g) return NULL;
    g->alloc = g->names.alloc = alloc;
    bool ok = snprintf(g->path, sizeof g->path, "%s", path) < (int)sizeof g->path;
    if (!ok) hbk_fail_at(err, HBK_ERROR_RANGE, path, 0, "the path is longer than 511 bytes");
    if (ok && hbk_mapping_open(&g->map, path, err) &&
        hbk__check_pointer(g->map.data, g->map.size, path, err) && hbk__gguf_tables(g, err))
        return g;
    hbk_gguf_close(g);
    return NULL;
}

/* Part i (from 0) of a split model, from the name of its first: PREFIX-00001-of-00003.gguf. False if `first`
   is not such a name. */
static bool hbk__gguf_part(char out[512], const char *first, hbk_int i, hbk_int n)
{
    char tail[40];
    int len = snprintf(tail, sizeof tail, "-%05lld-of-%05lld.gguf", 1LL, (long long)n);
    size_t stem = strlen(first);
    if (stem < (size_t)len || strcmp(first + stem - (size_t)len, tail) != 0) return false;
    memcpy(out, first, stem -= (size_t)len);
    return snprintf(out + stem, 512 - stem, "-%05lld-of-%05lld.gguf", (long long)i + 1, (long long)n) <
           (int)(512 - stem);
}

/* Opens part i of g's split; its own keys must say that it is. */
static bool hbk__gguf_open_part(hbk_gguf *g, hbk_int i, hbk_int n, hbk_error *err)
{
    char path[512];
    if (!hbk__gguf_part(path, g->path, i, n))
        return hbk_fail_at(err, HBK_ERROR_FORMAT, g->path, 0,
                           "key split.count: the model has %lld files, but this name does not end with "
                           "-00001-of-%05lld.gguf; restore the files' names",
                           (long long)n, (long long)n);
    if (!hbk_file_exists(path))
        return hbk_fail_at(err, HBK_ERROR_FILE, g->path, 0, "part %lld of %lld is missing: expected %.300s",
                           (long long)i + 1, (long long)n, path);
    hbk_gguf *part = hbk__gguf_open_one(path, g->alloc, err);
    if (!part) return false;
    g->rest[g->n_rest++] = part;
    hbk_int no = -1, count = -1;
    if (!hbk_gguf_int(part, "split.no", &no, err) || !hbk_gguf_int(part, "split.count", &count, err))
        return false;
    if (no == i && count == n) return true;
    return hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0,
                       "keys split.no, split.count: are %lld, %lld, expected %lld, %lld; is it part of "
                       "another model?",
                       (long long)no, (long long)count, (long long)i, (long long)n);
}

static bool hbk__gguf_open_rest(hbk_gguf *g, hbk_error *err)
{
    hbk_int count = 1, no = 0;
    if (!hbk_gguf_int(g, "split.count", &count, err) || !hbk_gguf_int(g, "split.no", &no, err)) return false;
    if (count < 0 || count > 99999)
        return hbk_fail_at(err, HBK_ERROR_FORMAT, g->path, 0, "key split.count: is %lld, expected 1 to 99999",
                           (long long)count);
    if (no != 0)
        return hbk_fail_at(err, HBK_ERROR_OPTION, g->path, 0,
                           "is part %lld of %lld: open the first, ...-00001-of-%05lld.gguf",
                           (long long)no + 1, (long long)count, (long long)count);
    if (count < 2) return true;
    g->rest = HBK__NEW(g->alloc, hbk_gguf *, count - 1, err);
    if (!g->rest) return false;
    hbk_int n = g->n_own;
    for (hbk_int i = 1; i < count; i++) {
        if (!hbk__gguf_open_part(g, i, count, err)) return false;
        n += g->rest[i - 1]->n_own;
    }
    hbk_int wanted = n;
    if (!hbk_gguf_int(g, "split.tensors.count", &wanted, err)) return false;
    return wanted == n || hbk_fail_at(err, HBK_ERROR_FORMAT, g->path, 0,
                                      "key split.tensors.count: is %lld, but the files hold %lld tensors",
                                      (long long)wanted, (long long)n);
}

/* The tensors of all files together: no name twice, none over another. */
static bool hbk__gguf_index(hbk_gguf *g, hbk_error *err)
{
    hbk_int n = g->n_own, k = 0;
    for (hbk_int f = 0; f < g->n_rest; f++) n += g->rest[f]->n_own;
    g->tensors = HBK__NEW(g->alloc, const hbk_gguf_tensor *, n, err);
    if (g->tensors) g->by_name = HBK__NEW(g->alloc, const hbk_gguf_tensor *, n, err);
    if (!g->by_name) return false;
    for (hbk_int f = -1; f < g->n_rest; f++) {
        const hbk_gguf *part = f < 0 ? g : g->rest[f];
        for (hbk_int i = 0; i < part->n_own; i++) g->tensors[k++] = &part->own[i];
    }
    g->n_tensors = n;
    if (n) memcpy(g->by_name, g->tensors, (size_t)n * sizeof *g->tensors);
    qsort(g->by_name, (size_t)n, sizeof *g->by_name, hbk__by_tensor_place);
    for (hbk_int i = 1; i < n; i++) {
        const hbk_gguf_tensor *t = g->by_name[i - 1], *u = g->by_name[i];
        if ((uintptr_t)u->data - (uintptr_t)t->data < t->bytes)
            return hbk_fail_at(err, HBK_ERROR_FORMAT, g->path, 0, "tensors %s and %s overlap", t->name,
                               u->name);
    }
    qsort(g->by_name, (size_t)n, sizeof *g->by_name, hbk__by_tensor_name);
    for (hbk_int i = 1; i < n; i++)
        if (!strcmp(g->by_name[i - 1]->name, g->by_name[i]->name))
            return hbk_fail_at(err, HBK_ERROR_FORMAT, g->path, 0, "tensor %s: is there twice",
                               g->by_name[i]->name);
    return true;
}

HBK_DEF hbk_gguf *hbk_gguf_open(const char *path, hbk_allocator *alloc, hbk_error *err)
{
    hbk_gguf *g = hbk__gguf_open_one(path, alloc, err);
    if (!g || (hbk__gguf_open_rest(g, err) && hbk__gguf_index(g, err))) return g;
    hbk_gguf_close(g);
    return NULL;
}

HBK_DEF void hbk_gguf_close(hbk_gguf *g)
{
    if (!g) return;
    for (hbk_int i = 0; i < g->n_rest; i++) hbk_gguf_close(g->rest[i]);
    for (hbk_int i = 0; i < g->n_values; i++) hbk_free(g->alloc, g->values[i].at);
    if (g->map.data) hbk_mapping_close(&g->map); /* NULL: a model has taken it over */
    hbk_text_free(&g->names);
    hbk_free(g->alloc, g->values);
    hbk_free(g->alloc, g->by_key);
    hbk_free(g->alloc, g->own);
    hbk_free(g->alloc, g->rest);
    hbk_free(g->alloc, g->tensors);
    hbk_free(g->alloc, g->by_name);
    hbk_free(g->alloc, g);
}

HBK_DEF hbk_int hbk_gguf_key_count(const hbk_gguf *g)
{
    return g->n_values;
}

HBK_DEF const hbk_gguf_value *hbk_gguf_key_at(const hbk_gguf *g, hbk_int i)
{
    HBK_ASSERT(i >= 0 && i < g->n_values);
    return &g->values[i];
}

HBK_DEF const hbk_gguf_value *hbk_gguf_find(const hbk_gguf *g, const char *key)
{
    hbk_gguf_value wanted;
    const hbk_gguf_value *like = &wanted, *const *found;
    wanted.key = key;
    found = (const hbk_gguf_value *const *)bsearch(&like, g->by_key, (size_t)g->n_values, sizeof *g->by_key,
                                                  hbk__by_key);
    return found ? *found : NULL;
}

HBK_DEF hbk_int hbk_gguf_tensor_count(const hbk_gguf *g)
{
    return g->n_tensors;
}

HBK_DEF const hbk_gguf_tensor *hbk_gguf_tensor_at(const hbk_gguf *g, hbk_int i)
{
    HBK_ASSERT(i >= 0 && i < g->n_tensors);
    return g->tensors[i];
}

HBK_DEF const hbk_gguf_tensor *hbk_gguf_tensor_find(const hbk_gguf *g, const char *name)
{
    hbk_gguf_tensor wanted;
    const hbk_gguf_tensor *like = &wanted, *const *found;
    wanted.name = name;
    found = (const hbk_gguf_tensor *const *)bsearch(&like, g->by_name, (size_t)g->n_tensors,
                                                    sizeof *g->by_name, hbk__by_tensor_name);
    return found ? *found : NULL;
}

HBK_DEF bool hbk_gguf_int_at(const hbk_gguf_value *v, hbk_int i, hbk_int *x)
{
    HBK_ASSERT(i >= 0 && i < v->n);
    int size = hbk__gguf_sizes[v->type];
    bool is_signed = v->type == HBK_GGUF_I8 || v->type == HBK_GGUF_I16 || v->type == HBK_GGUF_I32 ||
                     v->type == HBK_GGUF_I64;
    if (!is_signed && v->type != HBK_GGUF_U8 && v->type != HBK_GGUF_U16 && v->type != HBK_GGUF_U32 &&
        v->type != HBK_GGUF_U64)
        return false;
    uint64_t bits = hbk__little_endian(v->data + i * size, size);
    if (!is_signed && bits > INT64_MAX) return false;
    uint64_t sign = (uint64_t)1 << (8 * size - 1);
    if (is_signed) bits = (bits ^ sign) - sign; /* carries the sign bit up to the 64th */
    *x = (hbk_int)bits;
    return true;
}

HBK_DEF bool hbk_gguf_real_at(const hbk_gguf_value *v, hbk_int i, double *x)
{
    hbk_int whole;
    HBK_ASSERT(i >= 0 && i < v->n);
    if (v->type == HBK_GGUF_F32) {
        float f;
        memcpy(&f, v->data + 4 * i, 4);
        *x = (double)f;
        return true;
    }
    if (v->type == HBK_GGUF_F64) {
        memcpy(x, v->data + 8 * i, 8);
        return true;
    }
    if (!hbk_gguf_int_at(v, i, &whole)) return false;
    *x = (double)whole;
    return true;
}

HBK_DEF bool hbk_gguf_bool_at(const hbk_gguf_value *v, hbk_int i, bool *x)
{
    HBK_ASSERT(i >= 0 && i < v->n);
    if (v->type != HBK_GGUF_BOOL) return false;
    *x = v->data[i] != 0;
    return true;
}

HBK_DEF const char *hbk_gguf_string_at(const hbk_gguf_value *v, hbk_int i, size_t *n)
{
    HBK_ASSERT(i >= 0 && i < v->n);
    if (v->type != HBK_GGUF_STRING) return NULL;
    const unsigned char *p = v->data + (v->at ? v->at[i] : 0);
    *n = (size_t)hbk__little_endian(p, 8);
    return (const char *)p + 8;
}

static bool hbk__gguf_mistyped(const hbk_gguf *g, const hbk_gguf_value *v, const char *wanted, hbk_error *err)
{
    return hbk_fail_at(err, HBK_ERROR_FORMAT, g->path, 0, "key %.100s: expected %s, found %s%s", v->key,
                       wanted, v->is_array ? "an array of " : "", hbk_gguf_type_name(v->type));
}

HBK_DEF bool hbk_gguf_int(const hbk_gguf *g, const char *key, hbk_int *x, hbk_error *err)
{
    const hbk_gguf_value *v = hbk_gguf_find(g, key);
    if (!v || (!v->is_array && hbk_gguf_int_at(v, 0, x))) return true;
    return hbk__gguf_mistyped(g, v, "a whole number below 2^63", err);
}

HBK_DEF bool hbk_gguf_real(const hbk_gguf *g, const char *key, double *x, hbk_error *err)
{
    const hbk_gguf_value *v = hbk_gguf_find(g, key);
    if (!v || (!v->is_array && hbk_gguf_real_at(v, 0, x))) return true;
    return hbk__gguf_mistyped(g, v, "a number", err);
}

HBK_DEF bool hbk_gguf_bool(const hbk_gguf *g, const char *key, bool *x, hbk_error *err)
{
    const hbk_gguf_value *v = hbk_gguf_find(g, key);
    if (!v || (!v->is_array && hbk_gguf_bool_at(v, 0, x))) return true;
    return hbk__gguf_mistyped(g, v, "a bool", err);
}

HBK_DEF bool hbk_gguf_string(const hbk_gguf *g, const char *key, const char **s, size_t *n, hbk_error *err)
{
    const hbk_gguf_value *v = hbk_gguf_find(g, key);
    if (!v) return true;
    if (v->is_array || v->type != HBK_GGUF_STRING) return hbk__gguf_mistyped(g, v, "a string", err);
    *s = hbk_gguf_string_at(v, 0, n);
    return true;
}

HBK_DEF bool hbk_gguf_array(const hbk_gguf *g, const char *key, hbk_gguf_type t, const hbk_gguf_value **v,
                            hbk_error *err)
{
    char wanted[32];
    *v = hbk_gguf_find(g, key);
    if (!*v || ((*v)->is_array && (*v)->type == t)) return true;
    snprintf(wanted, sizeof wanted, "an array of %s", hbk_gguf_type_name(t));
    bool ok = hbk__gguf_mistyped(g, *v, wanted, err);
    *v = NULL;
    return ok;
}

/* Whether a file begins as GGUF does; false as well where it cannot be read. */
static bool hbk__is_gguf(const char *path)
{
    char lead[4] = "";
    int fd = hbk__open(path, NULL, NULL);
    bool is = fd >= 0 && hbk__read(fd, lead, 4) == 4 && !memcmp(lead, "GGUF", 4);
    if (fd >= 0) close(fd);
    return is;
}

/* Writing. Keys and descriptions are gathered in two texts; the file is begun with the first data. ggml
   reads a file only if each offset is the sum of the padded sizes before it, so that is what it gets. */
struct hbk_gguf_writer {
    hbk_allocator *alloc;
    char path[512];
    hbk_file file;
    bool begun;
    hbk_error err; /* the first failure */
    hbk_text keys, table;
    hbk_int n_keys, n_tensors;
    hbk_gguf_type item; /* of the array begun last, */
    hbk_int items;      /* of which so many are still to come */
    hbk_int *sizes;     /* (n_tensors) bytes of data */
    hbk_int room;
    hbk_int offset;       /* of the next tensor that is described */
    hbk_int current, put; /* the tensor whose data come next, and how many of its bytes have come */
};

enum { HBK__GGUF_ALIGN = 32 };

HBK_DEF hbk_gguf_writer *hbk_gguf_create(const char *path, hbk_allocator *alloc, hbk_error *err)
{
    hbk_gguf_writer *w = HBK__NEW(alloc, hbk_gguf_writer, 1, err);
    if (!w) return NULL;
    w->alloc = w->keys.alloc = w->table.alloc = alloc;
    w->file.fd = -1;
    if (snprintf(w->path, sizeof w->path, "%s", path) < (int)sizeof w->path) return w;
    hbk_fail_at(err, HBK_ERROR_RANGE, path, 0, "the path is longer than 511 bytes");
    hbk_free(alloc, w);
    return NULL;
}

static void hbk__gguf_emit(hbk_text *t, uint64_t x, int bytes)
{
    char s[8];
    for (int i = 0; i < bytes; i++) s[i] = (char)(x >> (8 * i) & 0xff);
    hbk_text_append(t, s, (size_t)bytes);
}

static void hbk__gguf_emit_string(hbk_text *t, const char *s, size_t n)
{
    hbk__gguf_emit(t, n, 8);
    hbk_text_append(t, s, n);
}

/* Begins a value; the elements, `n` of type t, are to follow. */
static void hbk__gguf_begin_value(hbk_gguf_writer *w, const char *key, hbk_gguf_type t, hbk_int n, bool array)
{
    HBK_ASSERT(w->items == 0 && !w->begun && n >= 0 && t != HBK_GGUF_ARRAY);
    hbk__gguf_emit_string(&w->keys, key, strlen(key));
    if (array) hbk__gguf_emit(&w->keys, HBK_GGUF_ARRAY, 4);
    hbk__gguf_emit(&w->keys, t, 4);
    if (array) hbk__gguf_emit(&w->keys, (uint64_t)n, 8);
    w->item = t;
    w->items = n;
    w->n_keys++;
}

HBK_DEF void hbk_gguf_put_array(hbk_gguf_writer *w, const char *key, hbk_gguf_type t, hbk_int n)
{
    hbk__gguf_begin_value(w, key, t, n, true);
}

HBK_DEF void hbk_gguf_add_int(hbk_gguf_writer *w, hbk_int x)
{
    HBK_ASSERT(w->items > 0);
    int size = hbk__gguf_sizes[w->item];
    hbk_gguf_value v;
    unsigned char bytes[8];
    hbk_int back;
    memset(&v, 0, sizeof v);
    for (int i = 0; i < 8; i++) bytes[i] = (unsigned char)((uint64_t)x >> (8 * i) & 0xff);
    v.type = w->item;
    v.n = 1;
    v.data = bytes;
    hbk_text_append(&w->keys, (const char *)bytes, (size_t)size);
    w->items--;
    if (w->err.code == HBK_ERROR_NONE && (!hbk_gguf_int_at(&v, 0, &back) || back != x))
        hbk_fail_at(&w->err, HBK_ERROR_RANGE, w->path, 0, "key %lld: %lld is no %s", (long long)w->n_keys,
                    (long long)x, hbk_gguf_type_name(w->item));
}

HBK_DEF void hbk_gguf_add_real(hbk_gguf_writer *w, double x)
{
    HBK_ASSERT(w->items > 0 && w->item == HBK_GGUF_F32);
    float f = (float)x;
    hbk_text_append(&w->keys, (const char *)&f, 4);
    w->items--;
}

HBK_DEF void hbk_gguf_add_string(hbk_gguf_writer *w, const char *s, size_t n)
{
    HBK_ASSERT(w->items > 0 && w->item == HBK_GGUF_STRING);
    hbk__gguf_emit_string(&w->keys, s, n);
    w->items--;
}

HBK_DEF void hbk_gguf_put_int(hbk_gguf_writer *w, const char *key, hbk_gguf_type t, hbk_int x)
{
    hbk__gguf_begin_value(w, key, t, 1, false);
    hbk_gguf_add_int(w, x);
}

HBK_DEF void hbk_gguf_put_real(hbk_gguf_writer *w, const char *key, double x)
{
    hbk__gguf_begin_value(w, key, HBK_GGUF_F32, 1, false);
    hbk_gguf_add_real(w, x);
}

HBK_DEF void hbk_gguf_put_bool(hbk_gguf_writer *w, const char *key, bool x)
{
    hbk__gguf_begin_value(w, key, HBK_GGUF_BOOL, 1, false);
    hbk__gguf_emit(&w->keys, x, 1);
    w->items--;
}

HBK_DEF void hbk_gguf_put_string(hbk_gguf_writer *w, const char *key, const char *s, size_t n)
{
    hbk__gguf_begin_value(w, key, HBK_GGUF_STRING, 1, false);
    hbk_gguf_add_string(w, s, n);
}

HBK_DEF void hbk_gguf_put_value(hbk_gguf_writer *w, const hbk_gguf_value *v)
{
    size_t bytes = (size_t)v->n * (size_t)hbk__gguf_sizes[v->type], last;
    if (v->type == HBK_GGUF_STRING && v->n > 0) { /* they lie one after another */
        const char *s = hbk_gguf_string_at(v, v->n - 1, &last);
        bytes = (size_t)(s + last - (const char *)v->data);
    }
    hbk__gguf_begin_value(w, v->key, v->type, v->n, v->is_array);
    hbk_text_append(&w->keys, (const char *)v->data, bytes);
    w->items = 0;
}

static hbk_int hbk__gguf_padded(hbk_int n)
{
    return n + (HBK__GGUF_ALIGN - n % HBK__GGUF_ALIGN) % HBK__GGUF_ALIGN;
}

HBK_DEF void hbk_gguf_put_tensor(hbk_gguf_writer *w, const hbk_gguf_tensor *t)
{
    void *sizes = w->sizes;
    size_t bytes = 0;
    HBK_ASSERT(!w->begun && t->n_dims >= 0 && t->n_dims <= 4);
    if (w->err.code != HBK_ERROR_NONE) return;
    const hbk__ggml_type *type = hbk__ggml_type_of(t->type, 0);
    if (!type || !hbk__ggml_size(type, t, &bytes) || bytes == 0 || bytes > INT64_MAX / 4 ||
        w->offset > INT64_MAX / 4) {
        hbk_fail_at(&w->err, HBK_ERROR_RANGE, w->path, 0,
                    "tensor %.100s: no size for this shape in type %.20s", t->name, t->type);
        return;
    }
    if (!hbk__reserve(w->alloc, &sizes, &w->room, w->n_tensors + 1, sizeof *w->sizes, &w->err)) return;
    w->sizes = (hbk_int *)sizes;
    w->sizes[w->n_tensors++] = (hbk_int)bytes;
    hbk__gguf_emit_string(&w->table, t->name, strlen(t->name));
    hbk__gguf_emit(&w->table, (uint64_t)t->n_dims, 4);
    for (hbk_int i = t->n_dims - 1; i >= 0; i--) hbk__gguf_emit(&w->table, (uint64_t)t->shape[i], 8);
    hbk__gguf_emit(&w->table, (uint64_t)type->id, 4);
    hbk__gguf_emit(&w->table, (uint64_t)w->offset, 8);
    w->offset += hbk__gguf_padded((hbk_int)bytes);
}

/* The zeros that bring n bytes to the alignment. */
static bool hbk__gguf_pad(hbk_gguf_writer *w, hbk_int n)
{
    static const char zeros[HBK__GGUF_ALIGN] = {0};
    return hbk_file_put(&w->file, zeros, (size_t)(hbk__gguf_padded(n) - n), &w->err);
}

/* Everything before the data, once. */
static bool hbk__gguf_begin(hbk_gguf_writer *w)
{
    HBK_ASSERT(w->items == 0);
    if (w->err.code != HBK_ERROR_NONE || !hbk_text_ok(&w->keys, &w->err) || !hbk_text_ok(&w->table, &w->err))
        return false;
    if (w->begun) return true;
    w->begun = true;
    hbk_text head;
    memset(&head, 0, sizeof head);
    head.alloc = w->alloc;
    hbk_text_append(&head, "GGUF", 4);
    hbk__gguf_emit(&head, 3, 4);
    hbk__gguf_emit(&head, (uint64_t)w->n_tensors, 8);
    hbk__gguf_emit(&head, (uint64_t)w->n_keys, 8);
    bool ok = hbk_text_ok(&head, &w->err) && hbk_file_begin(&w->file, w->path, &w->err) &&
              hbk_file_put(&w->file, head.data, head.len, &w->err) &&
              hbk_file_put(&w->file, hbk_text_string(&w->keys), w->keys.len, &w->err) &&
              hbk_file_put(&w->file, hbk_text_string(&w->table), w->table.len, &w->err) &&
              (!w->n_tensors || hbk__gguf_pad(w, (hbk_int)(head.len + w->keys.len + w->table.len)));
    hbk_text_free(&head);
    return ok;
}

HBK_DEF void hbk_gguf_put_data(hbk_gguf_writer *w, const void *data, size_t n)
{
    const char *p = (const char *)data;
    if (!hbk__gguf_begin(w)) return;
    while (n > 0) {
        HBK_ASSERT(w->current < w->n_tensors); /* more data than were described */
        size_t step = HBK__MIN(n, (size_t)(w->sizes[w->current] - w->put));
        if (!hbk_file_put(&w->file, p, step, &w->err)) return;
        p += step;
        n -= step;
        w->put += (hbk_int)step;
        if (w->put < w->sizes[w->current]) return;
        if (!hbk__gguf_pad(w, w->put)) return;
        w->current++;
        w->put = 0;
    }
}

HBK_DEF void hbk_gguf_discard(hbk_gguf_writer *w)
{
    if (!w) return;
    hbk_file_abandon(&w->file);
    hbk_text_free(&w->keys);
    hbk_text_free(&w->table);
    hbk_free(w->alloc, w->sizes);
    hbk_free(w->alloc, w);
}

/* The file is read back before it gets its name: a duplicate key or a name too long shows there. */
HBK_DEF bool hbk_gguf_finish(hbk_gguf_writer *w, hbk_error *err)
{
    bool ok = hbk__gguf_begin(w);
    if (ok && w->current < w->n_tensors)
        ok = hbk_fail_at(&w->err, HBK_ERROR_DATA, w->path, 0, "the data of %lld of %lld tensors are missing",
                         (long long)(w->n_tensors - w->current), (long long)w->n_tensors);
    ok = ok && hbk_file_seal(&w->file, &w->err);
    hbk_gguf *back = ok ? hbk__gguf_open_one(w->file.tmp, w->alloc, &w->err) : NULL;
    ok = back && hbk__gguf_index(back, &w->err) && hbk_file_commit(&w->file, &w->err);
    hbk_gguf_close(back);
    if (!ok && err) *err = w->err;
    hbk_gguf_discard(w);
    return ok;
}

HBK__GLUE_END

/* ==== 7  TOKENIZERS ==========================================================

   Byte-pair encoding (Sennrich et al. 2016) in three dialects that share one merge loop:

       text -> [special tokens cut out] -> normalise -> words -> symbols -> merge -> ids

     dialect          tokenizer.json,              tokenizer.model,            Meta's list
                      GGUF "gpt2"                  tokenizer.bin, GGUF "llama"
     first symbols    a word's characters          the text's characters       a word's bytes
     may merge        pairs in the merge list      pairs whose concatenation is a piece
     best first       lowest rank, leftmost        highest score, leftmost     lowest id, leftmost
     unknown          <0xXX> bytes, or unk         <0xXX> bytes, or unk        (none)

   All three come down to one table of rules, (left, right) -> (rank, piece): where pieces have scores, each
   way to cut a piece in two is a rule. So the merge loop knows numbers only.

   LLaMA-1 and -2 have no words: the text is one, its spaces are U+2581, and merges may cross them. So the
   merge loop keeps its candidates in a heap, O(n log n), where the usual scan for the best pair is O(n^2).
   An entry is stale when one of its two symbols has grown since, which their lengths betray. Where no piece
   reaches across a run of U+2581, as in LLaMA-2's own vocabulary, the text is cut there after all. The
   byte-level family (GPT-2, SmolLM, Llama-3) cuts words by a regular expression, and merges inside words.
   Most words of a text come again: their ids are remembered during the call.

   What differs from the usual:
     - Control tokens cannot be reached by spelling them, unless the caller says HBK_ENCODE_SPECIAL: the
       text of strangers must not end a turn. A merge that would make one is left out.
     - An added token with "normalized": true is looked for in its own normalised form, as Hugging Face
       does: in LLaMA-2's file </s> is found as U+2581</s> only.
     - Regular expressions are not interpreted: those that LLaMA models use are written by hand, and any
       other is refused by name. So is every normaliser, model and decoder not met in that family.

   7.1 lists and tables   7.2 vocabulary and rules   7.3 words   7.4 encoding   7.5 decoding
   7.6 tokenizer.json   7.7 SentencePiece and llama2.c   7.8 Meta's list and GGUF   7.9 loading
   7.10 training   7.11 saving */

/* ---- 7.1 lists and tables */

HBK_DEF void hbk_tokens_append(hbk_tokens *t, const int32_t *ids, hbk_int n)
{
    if (t->failed || n <= 0) return;
    void *data = t->data;
    if (n > INT64_MAX - t->n || !hbk__reserve(t->alloc, &data, &t->cap, t->n + n, sizeof *t->data, NULL)) {
        t->failed = true;
        return;
    }
    t->data = (int32_t *)data;
    memcpy(t->data + t->n, ids, (size_t)n * sizeof *ids);
    t->n += n;
}

HBK_DEF void hbk_tokens_push(hbk_tokens *t, int32_t id)
{
    hbk_tokens_append(t, &id, 1);
}

HBK_DEF bool hbk_tokens_ok(const hbk_tokens *t, hbk_error *err)
{
    if (!t->failed) return true;
    return hbk_fail(err, HBK_ERROR_MEMORY, "out of memory: a list of %lld tokens could not grow",
                    (long long)t->n);
}

HBK_DEF void hbk_tokens_free(hbk_tokens *t)
{
    hbk_free(t->alloc, t->data);
    t->data = NULL;
    t->n = t->cap = 0;
    t->failed = false;
}

/* An open-addressing table of 64-bit keys that is at most half full. A key may stand several times: strings
   are entered under their hash, and the reader compares. Looking up writes nothing, so a finished table is
   shared between threads. Pairs of ids (left << 32 | right) are entered as they are. */
typedef struct hbk__slot {
    uint64_t key;
    hbk_int value; /* + 1; 0: empty */
} hbk__slot;
typedef struct hbk__map {
    hbk_allocator *alloc;
    hbk__slot *slots;
    hbk_int n, cap; /* cap is a power of two */
} hbk__map;

/* The next value under `key` from probe *probe (0 at first) on, or -1. */
static hbk_int hbk__map_next(const hbk__map *m, uint64_t key, hbk_int *probe)
{
    uint64_t x = key, at = hbk__splitmix(&x), mask = (uint64_t)m->cap - 1;
    if (m->cap == 0) return -1;
    for (;;) {
        const hbk__slot *s = &m->slots[(at + (uint64_t)*probe) & mask];
        if (s->value == 0) return -1;
        ++*probe;
        if (s->key == key) return s->value - 1;
    }
}

static void hbk__map_enter(hbk__slot *slots, hbk_int cap, uint64_t key, hbk_int value)
{
    uint64_t x = key, at = hbk__splitmix(&x), mask = (uint64_t)cap - 1;
    while (slots[at & mask].value) at++;
    slots[at & mask].key = key;
    slots[at & mask].value = value + 1;
}

/* Enters a value, growing to twice the slots when half are taken. */
static bool hbk__map_add(hbk__map *m, uint64_t key, hbk_int value, hbk_error *err)
{
    if (2 * (m->n + 1) > m->cap) {
        hbk_int cap = m->cap ? 2 * m->cap : 64;
        hbk__slot *slots = HBK__NEW(m->alloc, hbk__slot, cap, err);
        if (!slots) return false;
        for (hbk_int i = 0; i < m->cap; i++)
            if (m->slots[i].value) hbk__map_enter(slots, cap, m->slots[i].key, m->slots[i].value - 1);
        hbk_free(m->alloc, m->slots);
        m->slots = slots;
        m->cap = cap;
    }
    hbk__map_enter(m->slots, m->cap, key, value);
    m->n++;
    return true;
}

/* The value of a key that stands once, or -1. */
static hbk_int hbk__map_get(const hbk__map *m, uint64_t key)
{
    hbk_int probe = 0;
    return hbk__map_next(m, key, &probe);
}

/* Two ids as one key: never negative, so that no pair equals another. */
static uint64_t hbk__pair_key(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

/* ---- 7.2 vocabulary and rules */

enum { /* SentencePiece's numbers; 0 is an id that no piece has */
       HBK__PIECE_NONE,
       HBK__PIECE_NORMAL,
       HBK__PIECE_UNKNOWN,
       HBK__PIECE_CONTROL,
       HBK__PIECE_USER, /* matched whole before anything merges */
       HBK__PIECE_UNUSED,
       HBK__PIECE_BYTE
};

typedef struct hbk__piece {
    hbk_int at; /* in hbk__vocab.bytes, NUL-terminated */
    int32_t len;
    int32_t kind;
    bool hidden; /* decoding leaves it out, like a control piece */
    float score; /* the higher, the earlier it is merged; 0 where merges have no scores */
} hbk__piece;

/* All pieces lie in one text, by offset: it moves while it grows. */
typedef struct hbk__vocab {
    hbk_allocator *alloc;
    hbk__piece *pieces;
    hbk_int n, cap;
    hbk_text bytes;
    hbk__map map; /* hash of a piece -> id */
    hbk_int longest;
} hbk__vocab;

static void hbk__vocab_init(hbk__vocab *v, hbk_allocator *alloc)
{
    memset(v, 0, sizeof *v);
    v->alloc = v->bytes.alloc = v->map.alloc = alloc;
}

static void hbk__vocab_free(hbk__vocab *v)
{
    hbk_free(v->alloc, v->pieces);
    hbk_free(v->alloc, v->map.slots);
    hbk_text_free(&v->bytes);
}

static const char *hbk__vocab_piece(const hbk__vocab *v, hbk_int id)
{
    return v->bytes.data + v->pieces[id].at;
}

/* The id of n bytes, or -1. What is longer than any piece is not even hashed. */
static int32_t hbk__vocab_find(const hbk__vocab *v, const char *s, hbk_int n)
{
    if (n > v->longest) return -1;
    hbk_int probe = 0, id;
    uint64_t key = hbk_hash(0, s, (size_t)n);
    while ((id = hbk__map_next(&v->map, key, &probe)) >= 0)
        if (v->pieces[id].len == n && memcmp(hbk__vocab_piece(v, id), s, (size_t)n) == 0) return (int32_t)id;
    return -1;
}

/* Gives `id` its piece; ids may come in any order. A piece that has an id already keeps it for look-ups. */
static bool hbk__vocab_set(hbk__vocab *v, hbk_int id, const char *s, hbk_int n, int32_t kind, float score,
                           hbk_error *err)
{
    void *pieces = v->pieces;
    if (id < 0 || id >= INT32_MAX || n > INT32_MAX)
        return hbk_fail(err, HBK_ERROR_RANGE, "token id %lld is out of range", (long long)id);
    if (!hbk__reserve(v->alloc, &pieces, &v->cap, id + 1, sizeof *v->pieces, err)) return false;
    v->pieces = (hbk__piece *)pieces;
    for (; v->n <= id; v->n++) memset(&v->pieces[v->n], 0, sizeof *v->pieces);
    hbk__piece *p = &v->pieces[id];
    if (p->kind != HBK__PIECE_NONE)
        return hbk_fail(err, HBK_ERROR_FORMAT, "token id %lld is used twice: by \"%.40s\" and \"%.*s\"",
                        (long long)id, hbk__vocab_piece(v, id), (int)HBK__MIN(n, 40), s);
    if (v->bytes.len == 0) hbk_text_append(&v->bytes, "", 1); /* offset 0: the piece of missing ids */
    p->at = (hbk_int)v->bytes.len;
    hbk_text_append(&v->bytes, s, (size_t)n);
    hbk_text_append(&v->bytes, "", 1);
    if (!hbk_text_ok(&v->bytes, err)) return false;
    p->len = (int32_t)n;
    p->kind = kind;
    p->score = score;
    v->longest = HBK__MAX(v->longest, n);
    if (hbk__vocab_find(v, s, n) >= 0) return true;
    return hbk__map_add(&v->map, hbk_hash(0, s, (size_t)n), id, err);
}

/* The byte that "<0x0A>" stands for, or -1. */
static int hbk__byte_of(const char *s, hbk_int n)
{
    if (n != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>') return -1;
    int value = 0;
    for (int i = 3; i < 5; i++) {
        if (s[i] >= '0' && s[i] <= '9')
            value = 16 * value + s[i] - '0';
        else if (s[i] >= 'A' && s[i] <= 'F')
            value = 16 * value + s[i] - 'A' + 10;
        else
            return -1;
    }
    return value;
}

enum {                   /* how a text falls into words */
       HBK__WORDS_ALL,   /* it does not: one word */
       HBK__WORDS_SPACE, /* before every U+2581 */
       HBK__WORDS_RUNS,  /* before every run of U+2581: a short cut for WORDS_ALL where no merge crosses it */
       HBK__WORDS_GPT2,  /* by GPT-2's expression */
       HBK__WORDS_LLAMA3, /* by Llama-3's */
       HBK__WORDS_DEFAULT /* by those that llama.cpp takes when a GGUF names none */
};
enum { /* what decoding takes off a text's beginning */
       HBK__STRIP_NONE,
       HBK__STRIP_MARK,  /* SentencePiece: one U+2581 of a piece, or all if spaces are collapsed */
       HBK__STRIP_MARKS, /* Metaspace: every U+2581 of the first piece */
       HBK__STRIP_SPACE  /* Strip: one space of the text */
};
enum { /* when U+2581 is put before a text */
       HBK__PREFIX_NEVER,
       HBK__PREFIX_FIRST, /* at the text's beginning only */
       HBK__PREFIX_ALWAYS /* after each special token as well */
};
enum { /* those before HBK__N_FORMATS stand in folders */
       HBK__FORMAT_JSON,
       HBK__FORMAT_MODEL,
       HBK__FORMAT_BIN,
       HBK__N_FORMATS,
       HBK__FORMAT_GGUF = HBK__N_FORMATS
};

/* A token that is cut out of the text before anything else happens. */
typedef struct hbk__added {
    hbk_int at, len; /* its pattern, in hbk_tokenizer.patterns */
    int32_t id;
    bool special;    /* only with HBK_ENCODE_SPECIAL */
    bool normalized; /* looked for in the normalised text */
    bool lstrip, rstrip, single_word;
} hbk__added;

struct hbk_tokenizer {
    hbk_allocator *alloc;
    hbk__vocab vocab;
    int32_t bos, eos, unk;
    bool adds_bos;
    int format;

    hbk__map rules;        /* (left, right) -> rank << 32 | what they become; the lowest rank merges first */
    hbk__vocab letters;    /* characters that only occur inside pieces; their symbols follow the vocabulary */
    bool sentencepiece;    /* its reading of pieces, else Hugging Face's */
    bool ignore_merges;    /* a word that is a piece is that piece */
    bool byte_fallback;    /* an unknown character becomes the bytes below */
    bool fuse_unk;         /* a run of unknown characters is one unk */
    bool resplits;         /* some pieces are unused: merges pass through them, ids must not */
    int32_t byte_ids[256]; /* of <0xXX>, in the byte-level family of each byte itself; or -1 */

    /* normaliser */
    bool escape;   /* ' ' -> U+2581 */
    int prefix;    /* HBK__PREFIX_* */
    bool collapse; /* SentencePiece's remove_extra_whitespaces */
    /* words */
    int words;
    bool digits;    /* each digit is a word */
    bool metaspace; /* ' ' -> U+2581 here, after special tokens were cut out */
    int meta_prefix;
    bool byte_level, prefix_space;
    int32_t byte_char[256]; /* byte -> its printable code point */
    int32_t char_byte[512]; /* and back, -1 if none */
    int strip;              /* HBK__STRIP_* */
    bool decode_bytes;      /* <0xXX> is a byte again */
    bool decode_marks;      /* U+2581 is a space again */
    hbk_text unk_text;      /* what SentencePiece writes for unk */

    hbk__added *added;
    hbk_int n_added, cap_added;
    hbk_text patterns;
    bool begins[2][256]; /* [normalized][byte]: some pattern begins so */
    hbk__map trees;      /* the patterns byte by byte: see hbk__enter_pattern */
    bool cuts[2];        /* [normalized]: some of them are cut out of any text, special tokens or not */

    char folder[512];  /* of the file and its companions; "" if it stands alone */
    char file[512];    /* that it was loaded from; "" if trained */
    hbk_text document; /* the tokenizer.json of a trained one */
};

#define HBK__SPACE "\xe2\x96\x81" /* U+2581, three bytes */

/* An empty one, with the byte alphabet of the byte-level family: what prints stands for itself, the other
   68 bytes follow from U+0100 on, so that pieces hold neither spaces nor control characters. */
static hbk_tokenizer *hbk__tokenizer_new(hbk_allocator *alloc, hbk_error *err)
{
    hbk_tokenizer *t = HBK__NEW(alloc, hbk_tokenizer, 1, err);
    if (!t) return NULL;
    t->alloc = t->rules.alloc = t->trees.alloc = alloc;
    t->patterns.alloc = t->unk_text.alloc = t->document.alloc = alloc;
    hbk__vocab_init(&t->vocab, alloc);
    hbk__vocab_init(&t->letters, alloc);
    t->bos = t->eos = t->unk = -1;
    for (int i = 0; i < 512; i++) t->char_byte[i] = -1;
    for (int b = 0, next = 256; b < 256; b++) {
        bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        t->byte_ids[b] = -1;
        t->byte_char[b] = printable ? b : next++;
        t->char_byte[t->byte_char[b]] = b;
    }
    return t;
}

HBK_DEF void hbk_tokenizer_free(hbk_tokenizer *t)
{
    if (!t) return;
    hbk__vocab_free(&t->vocab);
    hbk__vocab_free(&t->letters);
    hbk_free(t->alloc, t->rules.slots);
    hbk_free(t->alloc, t->added);
    hbk_free(t->alloc, t->trees.slots);
    hbk_text_free(&t->patterns);
    hbk_text_free(&t->unk_text);
    hbk_text_free(&t->document);
    hbk_free(t->alloc, t);
}

/* May merging and look-ups in text arrive at this piece? Not at control tokens: see the head. */
static bool hbk__may_spell(const hbk_tokenizer *t, int32_t id)
{
    int32_t kind = t->vocab.pieces[id].kind;
    if (kind == HBK__PIECE_BYTE) return !t->sentencepiece; /* an ordinary piece to Hugging Face's merges */
    return kind == HBK__PIECE_NORMAL || kind == HBK__PIECE_USER || kind == HBK__PIECE_UNUSED;
}

/* What n bytes are to the merge loop: a piece, a letter of pieces, or -1. */
static int32_t hbk__symbol_of(const hbk_tokenizer *t, const char *s, hbk_int n)
{
    int32_t id = hbk__vocab_find(&t->vocab, s, n);
    if (id >= 0 && hbk__may_spell(t, id)) return id;
    id = hbk__vocab_find(&t->letters, s, n);
    return id < 0 ? -1 : (int32_t)t->vocab.n + id;
}

/* Two symbols may become `id`. Of two rules for one pair the first entered holds. */
static bool hbk__add_rule(hbk_tokenizer *t, int32_t left, int32_t right, hbk_int rank, int32_t id,
                          hbk_error *err)
{
    uint64_t key = hbk__pair_key(left, right);
    return hbk__map_get(&t->rules, key) >= 0 || hbk__map_add(&t->rules, key, rank << 32 | id, err);
}

/* Formats without a merge list score their pieces, and any two symbols that spell a piece may merge: that is
   the same as a rule for each way to cut each piece in two, ranked by the piece's score. It is worth writing
   out, because merging then looks up pairs of numbers and never a text. */
typedef struct hbk__scored {
    float score;
    int32_t id;
} hbk__scored;

static int hbk__scored_order(const void *a, const void *b)
{
    const hbk__scored *x = (const hbk__scored *)a, *y = (const hbk__scored *)b;
    if (x->score < y->score || x->score > y->score) return x->score > y->score ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

/* A character that pieces hold but that is none itself can still be merged away. */
static bool hbk__find_letters(hbk_tokenizer *t, const hbk__scored *list, hbk_int n, hbk_error *err)
{
    for (hbk_int k = 0; k < n; k++) {
        const hbk__piece *p = &t->vocab.pieces[list[k].id];
        const char *s = hbk__vocab_piece(&t->vocab, list[k].id);
        for (hbk_int i = 0, len; i < p->len; i += len) {
            int32_t cp;
            len = (hbk_int)hbk_utf8_decode(s + i, (size_t)(p->len - i), &cp);
            if (hbk__symbol_of(t, s + i, len) < 0 &&
                !hbk__vocab_set(&t->letters, t->letters.n, s + i, len, HBK__PIECE_NORMAL, 0, err))
                return false;
        }
    }
    return true;
}

static bool hbk__cut_piece(hbk_tokenizer *t, int32_t id, hbk_int rank, hbk_error *err)
{
    const char *s = hbk__vocab_piece(&t->vocab, id);
    hbk_int n = t->vocab.pieces[id].len;
    for (hbk_int i = 1; i < n; i++) {
        if (((unsigned char)s[i] & 0xC0) == 0x80) continue; /* inside a character */
        int32_t left = hbk__symbol_of(t, s, i), right = left < 0 ? -1 : hbk__symbol_of(t, s + i, n - i);
        if (right >= 0 && !hbk__add_rule(t, left, right, rank, id, err)) return false;
    }
    return true;
}

/* Pieces of one score share one rank, and the leftmost pair decides between them. */
static bool hbk__rules_by_score(hbk_tokenizer *t, hbk_error *err)
{
    hbk__scored *list = HBK__NEW(t->alloc, hbk__scored, t->vocab.n, err);
    hbk_int n = 0, rank = 0;
    if (!list) return false;
    for (int32_t id = 0; id < t->vocab.n; id++) {
        if (!hbk__may_spell(t, id)) continue;
        list[n].score = t->vocab.pieces[id].score;
        list[n++].id = id;
    }
    qsort(list, (size_t)n, sizeof *list, hbk__scored_order);
    bool ok = hbk__find_letters(t, list, n, err);
    for (hbk_int k = 0; k < n && ok; k++) {
        if (k > 0 && list[k].score < list[k - 1].score) rank = k;
        ok = hbk__cut_piece(t, list[k].id, rank, err);
    }
    hbk_free(t->alloc, list);
    return ok;
}

/* ---- 7.3 words

   The expressions, with L letters, N numbers, S white space, O the rest (SmolLM's is GPT-2's with each number
   cut out before, llama.cpp's default is described where it stands):

     GPT-2     's|'t|'re|'ve|'m|'ll|'d | ?L+ | ?N+ | ?O+ | S+(?!\S) | S+
     Llama-3   the first with (?i) | [^\r\nLN]?L+ | N{1,3} | ?O+[\r\n]* | S*[\r\n]+ | S+(?!\S) | S+

   S+(?!\S) leaves the last space of a run to the word behind it, unless the text ends there. */

enum { HBK__S, HBK__L, HBK__N, HBK__O };

/* White space is tested first: utf8proc counts line feeds among the control characters. */
static int hbk__class(int32_t cp)
{
    if (cp < 128) {
        if ((cp >= 9 && cp <= 13) || cp == 32) return HBK__S;
        if ((cp >= 'a' && cp <= 'z') || (cp >= 'A' && cp <= 'Z')) return HBK__L;
        return cp >= '0' && cp <= '9' ? HBK__N : HBK__O;
    }
    if (cp == 0x85 || cp == 0xA0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 ||
        cp == 0x2029 || cp == 0x202F || cp == 0x205F || cp == 0x3000)
        return HBK__S;
    int category = (int)utf8proc_category(cp);
    if (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO) return HBK__L;
    return category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO ? HBK__N : HBK__O;
}

/* Does U+2581 stand at s[i]? */
static bool hbk__is_mark(const char *s, hbk_int n, hbk_int i)
{
    return n - i >= 3 && memcmp(s + i, HBK__SPACE, 3) == 0;
}

/* The class at s[i] and its length; class -1 and length 0 at the end. The text is valid UTF-8. */
static int hbk__class_at(const char *s, hbk_int n, hbk_int i, hbk_int *len)
{
    int32_t cp = i < n ? (unsigned char)s[i] : 0;
    *len = i < n;
    if (cp >= 128) *len = (hbk_int)hbk_utf8_decode(s + i, (size_t)(n - i), &cp);
    return *len ? hbk__class(cp) : -1;
}

/* The end of the run of class c that begins at i, `most` characters at most. */
static hbk_int hbk__run(const char *s, hbk_int n, hbk_int i, int c, hbk_int most)
{
    hbk_int len;
    for (; most > 0 && hbk__class_at(s, n, i, &len) == c; most--) i += len;
    return i;
}

/* Length of the English contraction at s[i], 0 if there is none. */
static hbk_int hbk__contraction(const char *s, hbk_int n, hbk_int i, bool any_case)
{
    if (s[i] != '\'' || i + 1 >= n) return 0;
    int a = (unsigned char)s[i + 1], b = i + 2 < n ? (unsigned char)s[i + 2] : 0;
    if (any_case) {
        if (a == 0xC5 && b == 0xBF) return 3; /* U+017F, the long s, folds to s */
        a = a >= 'A' && a <= 'Z' ? a + 32 : a;
        b = b >= 'A' && b <= 'Z' ? b + 32 : b;
    }
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return 3;
    return 0;
}

/* The end of the white space that begins at i, less what belongs to the next word. */
static hbk_int hbk__white_space(const char *s, hbk_int n, hbk_int i, bool lines)
{
    hbk_int end = i, last = i, line = i, len;
    while (hbk__class_at(s, n, end, &len) == HBK__S) {
        last = end;
        end += len;
        if (s[last] == '\r' || s[last] == '\n') line = end;
    }
    if (lines && line > i) return line;
    return end == n || last == i ? end : last;
}

/* The alternatives in their order: the first that matches wins. */
static hbk_int hbk__word_gpt2(const char *s, hbk_int n, hbk_int i)
{
    hbk_int len, contraction = hbk__contraction(s, n, i, false);
    if (contraction) return i + contraction;
    hbk_int from = s[i] == ' ' ? i + 1 : i;
    int c = hbk__class_at(s, n, from, &len);
    if (c > HBK__S) return hbk__run(s, n, from, c, n);
    return hbk__white_space(s, n, i, false);
}

/* Here any one character but a line end or a number glues to the letters behind it, and numbers go by
   threes. */
static hbk_int hbk__word_llama3(const char *s, hbk_int n, hbk_int i)
{
    hbk_int len, next_len, contraction = hbk__contraction(s, n, i, true);
    if (contraction) return i + contraction;
    int c = hbk__class_at(s, n, i, &len);
    if (c == HBK__L) return hbk__run(s, n, i, HBK__L, n);
    if (c == HBK__N) return hbk__run(s, n, i, HBK__N, 3);
    if (s[i] != '\r' && s[i] != '\n' && hbk__class_at(s, n, i + len, &next_len) == HBK__L)
        return hbk__run(s, n, i + len, HBK__L, n);
    hbk_int from = s[i] == ' ' ? i + 1 : i;
    if (hbk__class_at(s, n, from, &len) != HBK__O) return hbk__white_space(s, n, i, true);
    hbk_int end = hbk__run(s, n, from, HBK__O, n);
    while (end < n && (s[end] == '\r' || s[end] == '\n')) end++;
    return end;
}

/* Does punctuation stand at s[i], in the sense of [\p{P}$+<=>^~|]? */
static bool hbk__is_punctuation(const char *s, hbk_int n, hbk_int i, hbk_int *len)
{
    int32_t cp;
    *len = i < n ? (hbk_int)hbk_utf8_decode(s + i, (size_t)(n - i), &cp) : 0;
    if (*len == 0) return false;
    int category = (int)utf8proc_category(cp);
    return (category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO) ||
           (cp < 128 && cp != 0 && strchr("$+<=>^~|", cp));
}

/* llama.cpp's default is a chain of cuts, each inside the pieces of the one before: runs of punctuation, at
   which n ends here; GPT-2's words; runs of numbers; and in those each three ASCII digits. A number is read
   no further than its word goes: to its end for every word would take the square of its length. */
static hbk_int hbk__word_default(const char *s, hbk_int n, hbk_int i)
{
    hbk_int len, from = i;
    if (s[i] == ' ' && hbk__class_at(s, n, i + 1, &len) == HBK__N) return i + 1;
    for (; hbk__class_at(s, n, i, &len) == HBK__N; i += len) {
        bool three = n - i >= 3;
        for (hbk_int k = i; three && k < i + 3; k++) three = s[k] >= '0' && s[k] <= '9';
        if (three) return i > from ? i : i + 3;
    }
    return i > from ? i : hbk__word_gpt2(s, n, i);
}

/* Some families cut the text once before their expression does: a digit stands alone, or punctuation. Is
   there such a cut at s[i], and how long is what it cuts out? */
static bool hbk__is_first_cut(const hbk_tokenizer *t, const char *s, hbk_int n, hbk_int i, hbk_int *len)
{
    if (t->words == HBK__WORDS_DEFAULT) return hbk__is_punctuation(s, n, i, len);
    return hbk__class_at(s, n, i, len) == HBK__N;
}

/* The end of the word that begins at i < n. *cut, 0 before the first word, is where the next such cut is:
   to seek it for every word again would make a long text without one take the square of its length. */
static hbk_int hbk__word_end(const hbk_tokenizer *t, const char *s, hbk_int n, hbk_int i, hbk_int *cut)
{
    hbk_int len;
    if (t->words == HBK__WORDS_SPACE || t->words == HBK__WORDS_RUNS) {
        while (t->words == HBK__WORDS_RUNS && hbk__is_mark(s, n, i)) i += 3;
        for (i++; i < n && !hbk__is_mark(s, n, i);) i++;
        return HBK__MIN(i, n);
    }
    if (t->digits || t->words == HBK__WORDS_DEFAULT) {
        for (*cut = HBK__MAX(*cut, i); *cut < n && !hbk__is_first_cut(t, s, n, *cut, &len);) *cut += len;
        if (*cut == i) {
            hbk__is_first_cut(t, s, n, i, &len);
            for (i += len; !t->digits && hbk__is_punctuation(s, n, i, &len);) i += len;
            return i;
        }
        n = *cut;
    }
    if (t->words == HBK__WORDS_GPT2) return hbk__word_gpt2(s, n, i);
    if (t->words == HBK__WORDS_LLAMA3) return hbk__word_llama3(s, n, i);
    if (t->words == HBK__WORDS_DEFAULT) return hbk__word_default(s, n, i);
    return n;
}

/* Where no piece holds U+2581 behind another character, nothing merges across the border before a run of
   U+2581, and a text that is one word by its format may be cut there. */
static void hbk__find_borders(hbk_tokenizer *t)
{
    if (t->words != HBK__WORDS_ALL || t->digits || t->byte_level || t->ignore_merges || t->resplits) return;
    if (hbk__symbol_of(t, HBK__SPACE, 3) < 0) return; /* unk would reach across */
    for (int32_t id = 0; id < t->vocab.n; id++) {
        const char *s = hbk__vocab_piece(&t->vocab, id);
        hbk_int n = t->vocab.pieces[id].len;
        for (hbk_int i = 1; i < n && hbk__may_spell(t, id); i++)
            if (hbk__is_mark(s, n, i) && !(i >= 3 && hbk__is_mark(s, n, i - 3))) return;
    }
    t->words = HBK__WORDS_RUNS;
}

/* ---- 7.4 encoding */

typedef struct hbk__symbol {
    int32_t id;
    int32_t prev, next; /* -1 at the ends */
    int32_t len;        /* bytes of the word that it covers; 0: merged into the one before */
} hbk__symbol;

typedef struct hbk__merge { /* a candidate in the heap */
    uint64_t order;         /* rank << 32 | left symbol: the smallest goes first, ties to the left */
    int32_t id;             /* what they become */
    int32_t len;            /* of both when it was entered: another one now means stale */
} hbk__merge;

typedef struct hbk__known { /* a word that was met, in the cache */
    uint64_t hash;
    hbk_int at, len;    /* its bytes in `seen`; len 0: an empty slot */
    hbk_int ids, n_ids; /* its ids in `out` */
} hbk__known;

/* The state of one call; its buffers serve every word. */
typedef struct hbk__encoder {
    const hbk_tokenizer *t;
    unsigned flags;
    const char *begin; /* of the text, to know its first segment */
    bool first;        /* the segment at hand is the first */
    bool unknown;      /* the last id was unk: a second one may join it */
    hbk_text normal, spaced, spelled, seen;
    hbk__symbol *symbols;
    hbk_int n_symbols, cap_symbols;
    hbk__merge *heap;
    hbk_int n_heap, cap_heap;
    hbk__known *words; /* by hash; a later word takes the slot of an earlier one */
    hbk_int n_words;   /* a power of two, or 0 */
    uint64_t *halves;  /* of each unused piece: ~ the pair that may become it, seen last; or 0 */
    hbk_tokens *out;
    hbk_error *err;
} hbk__encoder;

/* A binary heap: parents of i at (i - 1) / 2. Instead of swapping, the hole moves. */
static bool hbk__heap_push(hbk__encoder *e, hbk__merge m)
{
    void *heap = e->heap;
    if (!hbk__reserve(e->t->alloc, &heap, &e->cap_heap, e->n_heap + 1, sizeof m, e->err)) return false;
    e->heap = (hbk__merge *)heap;
    hbk_int i = e->n_heap++;
    for (; i > 0 && m.order < e->heap[(i - 1) / 2].order; i = (i - 1) / 2) e->heap[i] = e->heap[(i - 1) / 2];
    e->heap[i] = m;
    return true;
}

static hbk__merge hbk__heap_pop(hbk__encoder *e)
{
    hbk__merge top = e->heap[0], m = e->heap[--e->n_heap];
    hbk_int i = 0, child;
    while ((child = 2 * i + 1) < e->n_heap) {
        if (child + 1 < e->n_heap && e->heap[child + 1].order < e->heap[child].order) child++;
        if (e->heap[child].order >= m.order) break;
        e->heap[i] = e->heap[child];
        i = child;
    }
    e->heap[i] = m;
    return top;
}

/* Enters the symbols left and right if a rule joins them. */
static bool hbk__try_pair(hbk__encoder *e, int32_t left, int32_t right)
{
    if (left < 0 || right < 0) return true;
    const hbk__symbol *a = &e->symbols[left], *b = &e->symbols[right];
    uint64_t key = hbk__pair_key(a->id, b->id);
    hbk_int rule = hbk__map_get(&e->t->rules, key);
    if (rule < 0) return true;
    hbk__merge m;
    m.id = (int32_t)(rule & INT32_MAX);
    m.order = (uint64_t)(rule >> 32) << 32 | (uint32_t)left;
    m.len = a->len + b->len;
    if (e->halves && e->t->vocab.pieces[m.id].kind == HBK__PIECE_UNUSED) e->halves[m.id] = ~key;
    return hbk__heap_push(e, m);
}

/* Links one symbol more behind the last; there is room. */
static void hbk__add_symbol(hbk__encoder *e, int32_t id, hbk_int len)
{
    int32_t i = (int32_t)e->n_symbols++;
    hbk__symbol *x = &e->symbols[i];
    x->id = id;
    x->len = (int32_t)len;
    x->prev = i - 1;
    x->next = -1;
    if (i > 0) e->symbols[i - 1].next = i;
}

/* Have all n bytes of a character a piece to fall back to? */
static bool hbk__has_bytes(const hbk_tokenizer *t, const char *s, hbk_int n)
{
    if (!t->byte_fallback) return false;
    for (hbk_int i = 0; i < n; i++)
        if (t->byte_ids[(unsigned char)s[i]] < 0) return false;
    return true;
}

/* The symbols of a word before anything merges: its bytes, or its characters, of which an unknown one falls
   back to its bytes or to unk. A vocabulary without unk drops what it cannot spell. */
static bool hbk__split_symbols(hbk__encoder *e, const char *s, hbk_int n)
{
    const hbk_tokenizer *t = e->t;
    void *symbols = e->symbols;
    if (n > INT32_MAX)
        return hbk_fail(e->err, HBK_ERROR_RANGE, "a text of %lld bytes is too long to encode at once: cut it",
                        (long long)n);
    if (!hbk__reserve(t->alloc, &symbols, &e->cap_symbols, n, sizeof *e->symbols, e->err)) return false;
    e->symbols = (hbk__symbol *)symbols;
    e->n_symbols = 0;
    for (hbk_int i = 0, len = 1; i < n; i += len) {
        int32_t cp, id;
        if (!t->byte_level) len = (hbk_int)hbk_utf8_decode(s + i, (size_t)(n - i), &cp);
        id = t->byte_level ? t->byte_ids[(unsigned char)s[i]] : hbk__symbol_of(t, s + i, len);
        if (id < 0 && hbk__has_bytes(t, s + i, len))
            for (hbk_int k = 0; k < len; k++) hbk__add_symbol(e, t->byte_ids[(unsigned char)s[i + k]], 1);
        else if (id >= 0 || t->unk >= 0)
            hbk__add_symbol(e, id >= 0 ? id : t->unk, len);
    }
    return true;
}

/* One symbol as ids: an unused piece as the halves that made it; one without halves, and a letter, as bytes
   or unk. */
static void hbk__emit(hbk__encoder *e, int32_t id)
{
    const hbk_tokenizer *t = e->t;
    while (e->halves && id < t->vocab.n && e->halves[id]) {
        uint64_t pair = ~e->halves[id];
        hbk__emit(e, (int32_t)(pair >> 32));
        id = (int32_t)(pair & INT32_MAX);
    }
    bool letter = id >= t->vocab.n;
    if (letter || t->vocab.pieces[id].kind == HBK__PIECE_UNUSED) {
        const hbk__vocab *v = letter ? &t->letters : &t->vocab;
        hbk_int own = letter ? id - t->vocab.n : id, n = v->pieces[own].len;
        const char *s = hbk__vocab_piece(v, own);
        bool bytes = hbk__has_bytes(t, s, n);
        for (hbk_int k = 0; k < n && bytes; k++) hbk_tokens_push(e->out, t->byte_ids[(unsigned char)s[k]]);
        if (bytes) e->unknown = false;
        id = bytes ? -1 : t->unk;
    }
    if (id < 0 || (id == t->unk && e->unknown && t->fuse_unk)) return;
    e->unknown = id == t->unk;
    hbk_tokens_push(e->out, id);
}

/* Bytes as the printable characters that stand for them. */
static void hbk__spell(const hbk_tokenizer *t, const char *s, hbk_int n, hbk_text *out)
{
    for (hbk_int i = 0; i < n; i++) {
        char c[4];
        size_t len = hbk_utf8_encode(c, t->byte_char[(unsigned char)s[i]]);
        hbk_text_append(out, c, len);
    }
}

/* The piece that is the whole word, or -1. */
static bool hbk__whole_word(hbk__encoder *e, const char *s, hbk_int n, int32_t *id)
{
    const hbk_tokenizer *t = e->t;
    *id = -1;
    if (!t->ignore_merges || n > t->vocab.longest) return true;
    if (t->byte_level) {
        hbk_text_clear(&e->spelled);
        hbk__spell(t, s, n, &e->spelled);
        if (!hbk_text_ok(&e->spelled, e->err)) return false;
        s = e->spelled.data;
        n = (hbk_int)e->spelled.len;
    }
    *id = hbk__vocab_find(&t->vocab, s, n);
    if (*id >= 0 && !hbk__may_spell(t, *id)) *id = -1;
    return true;
}

/* The merge loop. A merge makes two new neighbourhoods, and stale entries are passed over when they come
   up: taking them out at once would need a search. n symbols enter at most 3n candidates. */
static bool hbk__merge_word(hbk__encoder *e, const char *s, hbk_int n)
{
    int32_t whole;
    e->unknown = false;
    if (!hbk__whole_word(e, s, n, &whole)) return false;
    if (whole >= 0) {
        hbk_tokens_push(e->out, whole);
        return true;
    }
    if (!hbk__split_symbols(e, s, n)) return false;
    e->n_heap = 0;
    for (int32_t i = 0; i + 1 < e->n_symbols; i++)
        if (!hbk__try_pair(e, i, i + 1)) return false;
    while (e->n_heap > 0) {
        hbk__merge m = hbk__heap_pop(e);
        int32_t left = (int32_t)(m.order & INT32_MAX);
        hbk__symbol *a = &e->symbols[left];
        if (a->len == 0 || a->next < 0 || a->len + e->symbols[a->next].len != m.len) continue;
        hbk__symbol *b = &e->symbols[a->next];
        a->len = m.len;
        a->id = m.id;
        a->next = b->next;
        if (b->next >= 0) e->symbols[b->next].prev = left;
        b->len = 0;
        if (!hbk__try_pair(e, a->prev, left) || !hbk__try_pair(e, left, a->next)) return false;
    }
    for (int32_t i = e->n_symbols ? 0 : -1; i >= 0; i = e->symbols[i].next) hbk__emit(e, e->symbols[i].id);
    return true;
}

/* Most words of a text were met before: their ids are copied. */
static bool hbk__encode_word(hbk__encoder *e, const char *s, hbk_int n)
{
    enum { LONGEST = 64 }; /* what is longer hardly comes again */
    uint64_t hash = 0;
    hbk__known *w = NULL;
    if (e->n_words && n <= LONGEST) {
        hash = hbk_hash(0, s, (size_t)n);
        w = &e->words[hash & (uint64_t)(e->n_words - 1)];
        if (w->hash == hash && w->len == n && memcmp(e->seen.data + w->at, s, (size_t)n) == 0) {
            for (hbk_int k = 0; k < w->n_ids; k++) hbk_tokens_push(e->out, e->out->data[w->ids + k]);
            return true;
        }
    }
    hbk_int before = e->out->n;
    if (!hbk__merge_word(e, s, n)) return false;
    if (!w) return true;
    w->hash = hash;
    w->at = (hbk_int)e->seen.len;
    w->len = n;
    w->ids = before;
    w->n_ids = e->out->n - before;
    hbk_text_append(&e->seen, s, (size_t)n);
    return hbk_text_ok(&e->seen, e->err) && hbk_tokens_ok(e->out, e->err);
}

/* Copies n bytes with every ' ' as U+2581. */
static void hbk__escape(hbk_text *out, const char *s, hbk_int n)
{
    for (hbk_int i = 0, from = 0; i <= n; i++) {
        if (i < n && s[i] != ' ') continue;
        hbk_text_append(out, s + from, (size_t)(i - from));
        if (i < n) hbk_text_append(out, HBK__SPACE, 3);
        from = i + 1;
    }
}

/* The last stage before merging: cuts text into words. */
static bool hbk__encode_words(hbk__encoder *e, const char *s, hbk_int n)
{
    const hbk_tokenizer *t = e->t;
    bool first = e->first && s == hbk_text_string(&e->normal);
    if (n == 0) return true;
    hbk_text_clear(&e->spaced);
    if (t->metaspace) {
        bool has = s[0] == ' ' || hbk__is_mark(s, n, 0);
        bool wants = t->meta_prefix == HBK__PREFIX_ALWAYS || (t->meta_prefix == HBK__PREFIX_FIRST && first);
        if (wants && !has && !(e->flags & HBK_ENCODE_CONTINUE)) hbk_text_append(&e->spaced, HBK__SPACE, 3);
        hbk__escape(&e->spaced, s, n);
    } else if (t->prefix_space && s[0] != ' ' && !(e->flags & HBK_ENCODE_CONTINUE)) {
        hbk_text_append(&e->spaced, " ", 1);
        hbk_text_append(&e->spaced, s, (size_t)n);
    }
    if (!hbk_text_ok(&e->spaced, e->err)) return false;
    if (e->spaced.len) {
        s = e->spaced.data;
        n = (hbk_int)e->spaced.len;
    }
    for (hbk_int i = 0, end, cut = 0; i < n; i = end) {
        end = hbk__word_end(t, s, n, i, &cut);
        if (!hbk__encode_word(e, s + i, end - i)) return false;
    }
    return true;
}

/* \w of the regular expressions: letters, marks, decimal digits, joining punctuation, what else counts as
   alphabetic (letter numbers, circled and squared letters), and the two joiners. */
static bool hbk__is_word_char(const char *s, hbk_int n, hbk_int i)
{
    int32_t cp;
    if (i >= n || hbk_utf8_decode(s + i, (size_t)(n - i), &cp) == 0) return false;
    int c = (int)utf8proc_category(cp);
    return (c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_NL) || c == UTF8PROC_CATEGORY_PC ||
           (cp >= 0x24B6 && cp <= 0x24E9) || (cp >= 0x1F130 && cp <= 0x1F149) ||
           (cp >= 0x1F150 && cp <= 0x1F169) || (cp >= 0x1F170 && cp <= 0x1F189) || cp == 0x200C ||
           cp == 0x200D;
}

/* The beginning of the character that ends before i > 0. */
static hbk_int hbk__before(const char *s, hbk_int i)
{
    for (i--; i > 0 && ((unsigned char)s[i] & 0xC0) == 0x80;) i--;
    return i;
}

/* The patterns are two trees, whose roots are nodes 0 and 1, `normalized`. Under (node, byte) stands the node
   that the byte leads to, under (node, 256) the added token that ends there: a look-up costs the length of
   what matches, however many patterns there are. Of two equal ones the first entered holds. */
static uint64_t hbk__tree_key(hbk_int node, int byte)
{
    return (uint64_t)node << 9 | (uint64_t)byte;
}

static bool hbk__enter_pattern(hbk_tokenizer *t, const hbk__added *a, hbk_int index, hbk_error *err)
{
    hbk_int node = a->normalized;
    for (hbk_int k = 0; k < a->len; k++) {
        uint64_t key = hbk__tree_key(node, (unsigned char)t->patterns.data[a->at + k]);
        node = hbk__map_get(&t->trees, key);
        if (node >= 0) continue;
        node = t->trees.n + 2; /* every entry has another number */
        if (!hbk__map_add(&t->trees, key, node, err)) return false;
    }
    uint64_t end = hbk__tree_key(node, 256);
    return hbk__map_get(&t->trees, end) >= 0 || hbk__map_add(&t->trees, end, index, err);
}

/* The longest added token at s[i], or NULL. */
static const hbk__added *hbk__added_at(const hbk_tokenizer *t, bool normalized, const char *s, hbk_int n,
                                       hbk_int i)
{
    hbk_int best = -1, node = normalized;
    if (!t->begins[normalized][(unsigned char)s[i]]) return NULL;
    while (i < n && (node = hbk__map_get(&t->trees, hbk__tree_key(node, (unsigned char)s[i++]))) >= 0) {
        hbk_int ends = hbk__map_get(&t->trees, hbk__tree_key(node, 256));
        if (ends >= 0) best = ends;
    }
    return best < 0 ? NULL : &t->added[best];
}

/* May it be cut out where it was found? */
static bool hbk__added_fits(const hbk__encoder *e, const hbk__added *a, const char *s, hbk_int n, hbk_int i)
{
    if (a->special && !(e->flags & HBK_ENCODE_SPECIAL)) return false;
    return !a->single_word ||
           (!(i > 0 && hbk__is_word_char(s, n, hbk__before(s, i))) && !hbk__is_word_char(s, n, i + a->len));
}

/* Cuts added tokens out of s, leftmost and longest first, and hands what lies between to `gap`. As Hugging
   Face does it, a token that is found but may not be cut out still hides what it covers. */
static bool hbk__split_added(hbk__encoder *e, const char *s, hbk_int n, bool normalized,
                             bool (*gap)(hbk__encoder *e, const char *s, hbk_int n))
{
    const hbk_tokenizer *t = e->t;
    hbk_int from = 0, i = 0, len;
    if (!(e->flags & HBK_ENCODE_SPECIAL) && !t->cuts[normalized]) return gap(e, s, n);
    while (i < n) {
        const hbk__added *a = hbk__added_at(t, normalized, s, n, i);
        if (!a) {
            i++;
            continue;
        }
        hbk_int begin = i, end = i + a->len;
        i = end;
        if (!hbk__added_fits(e, a, s, n, begin)) continue;
        while (a->lstrip && begin > from && hbk__class_at(s, n, hbk__before(s, begin), &len) == HBK__S)
            begin -= len;
        while (a->rstrip && hbk__class_at(s, n, end, &len) == HBK__S) end += len;
        if (begin > from && !gap(e, s + from, begin - from)) return false;
        hbk_tokens_push(e->out, a->id);
        from = end;
    }
    return gap(e, s + from, n - from);
}

/* SentencePiece's remove_extra_whitespaces: no space at the ends, one inside. */
static void hbk__collapse(hbk_text *out, const char *s, hbk_int n)
{
    while (n > 0 && s[n - 1] == ' ') n--;
    hbk_int i = 0;
    while (i < n && s[i] == ' ') i++;
    for (; i < n; i++)
        if (s[i] != ' ' || s[i - 1] != ' ') hbk_text_append(out, s + i, 1);
}

/* The normaliser, appended to `out`; `first`: the text begins here. */
static void hbk__normalise(const hbk_tokenizer *t, const char *s, hbk_int n, bool first, unsigned flags,
                           hbk_text *out, hbk_text *scratch)
{
    size_t before = out->len;
    if (t->collapse) {
        hbk_text_clear(scratch);
        hbk__collapse(scratch, s, n);
        if (scratch->failed) out->failed = true;
        s = hbk_text_string(scratch);
        n = (hbk_int)scratch->len;
    }
    bool wants = t->prefix == HBK__PREFIX_ALWAYS || (t->prefix == HBK__PREFIX_FIRST && first);
    if (wants && n > 0 && !(flags & HBK_ENCODE_CONTINUE))
        hbk_text_add(out, t->escape || !t->sentencepiece ? HBK__SPACE : " ");
    if (t->escape)
        hbk__escape(out, s, n);
    else
        hbk_text_append(out, s, (size_t)n);
    while (t->collapse && t->escape && out->len >= before + 3 &&
           hbk__is_mark(out->data, (hbk_int)out->len, (hbk_int)out->len - 3))
        out->data[out->len -= 3] = 0; /* also those that the text itself ends with */
}

/* What lies between two raw special tokens: normalised, then cut at the normalised ones. */
static bool hbk__encode_segment(hbk__encoder *e, const char *s, hbk_int n)
{
    if (n == 0) return true;
    e->first = s == e->begin;
    hbk_text_clear(&e->normal);
    hbk__normalise(e->t, s, n, e->first, e->flags, &e->normal, &e->spaced);
    if (!hbk_text_ok(&e->normal, e->err)) return false;
    return hbk__split_added(e, hbk_text_string(&e->normal), (hbk_int)e->normal.len, true, hbk__encode_words);
}

/* Appends s with every invalid byte as U+FFFD. */
static void hbk__repair(hbk_text *out, const char *s, size_t n)
{
    size_t bad;
    while (!hbk_utf8_valid(s, n, &bad)) {
        hbk_text_append(out, s, bad);
        hbk_text_append(out, "\xef\xbf\xbd", 3);
        s += bad + 1;
        n -= bad + 1;
    }
    hbk_text_append(out, s, n);
}

/* What a text of n bytes needs: a cache that suits its length, and where pieces are unused, their halves.
   Those depend on the whole text, so that no word can be taken from the cache then. */
static bool hbk__encoder_open(hbk__encoder *e, size_t n)
{
    const hbk_tokenizer *t = e->t;
    if (t->resplits) {
        e->halves = HBK__NEW(t->alloc, uint64_t, t->vocab.n, e->err);
        return e->halves != NULL;
    }
    if (n < 256) return true;
    for (e->n_words = 16; (size_t)e->n_words < n / 16 && e->n_words < 1 << 14;) e->n_words *= 2;
    e->words = HBK__NEW(t->alloc, hbk__known, e->n_words, e->err);
    return e->words != NULL;
}

static void hbk__encoder_close(hbk__encoder *e)
{
    hbk_text_free(&e->normal);
    hbk_text_free(&e->spaced);
    hbk_text_free(&e->spelled);
    hbk_text_free(&e->seen);
    hbk_free(e->t->alloc, e->symbols);
    hbk_free(e->t->alloc, e->heap);
    hbk_free(e->t->alloc, e->words);
    hbk_free(e->t->alloc, e->halves);
}

HBK_DEF bool hbk_tokenizer_encode(const hbk_tokenizer *t, const char *text, size_t n, unsigned flags,
                                  hbk_tokens *out, hbk_error *err)
{
    hbk__encoder e;
    memset(&e, 0, sizeof e);
    hbk_text repaired;
    memset(&repaired, 0, sizeof repaired);
    e.normal.alloc = e.spaced.alloc = e.spelled.alloc = e.seen.alloc = repaired.alloc = t->alloc;
    e.t = t;
    e.flags = flags;
    e.out = out;
    e.err = err;
    hbk_int before = out->n;
    if (!hbk_utf8_valid(text, n, NULL)) {
        hbk__repair(&repaired, text, n);
        text = hbk_text_string(&repaired);
        n = repaired.len;
    }
    e.begin = text;
    bool ok = hbk_text_ok(&repaired, err) && hbk__encoder_open(&e, n) &&
              hbk__split_added(&e, text, (hbk_int)n, false, hbk__encode_segment) && hbk_tokens_ok(out, err);
    if (!ok) out->n = before;
    hbk_text_free(&repaired);
    hbk__encoder_close(&e);
    return ok;
}

/* ---- 7.5 decoding */

/* Appends the text that a run of byte pieces spells. SentencePiece repairs it byte by byte; Hugging Face
   gives a run that is not valid as a whole one U+FFFD per byte. */
static void hbk__flush_bytes(const hbk_tokenizer *t, hbk_text *run, hbk_text *out)
{
    if (run->failed) out->failed = true;
    if (run->len == 0) return;
    const char *s = hbk_text_string(run);
    if (t->sentencepiece || hbk_utf8_valid(s, run->len, NULL))
        hbk__repair(out, s, run->len);
    else
        for (size_t i = 0; i < run->len; i++) hbk_text_append(out, "\xef\xbf\xbd", 3);
    hbk_text_clear(run);
}

/* Bytes of s[0..n-1], which begins invalidly, that one U+FFFD stands for: the longest beginning of some
   valid sequence, as Unicode recommends and byte-level decoders do. */
static size_t hbk__broken_length(const char *s, size_t n)
{
    const unsigned char *p = (const unsigned char *)s;
    size_t want = p[0] >= 0xC2 && p[0] <= 0xDF   ? 2
                  : p[0] >= 0xE0 && p[0] <= 0xEF ? 3
                  : p[0] >= 0xF0 && p[0] <= 0xF4 ? 4
                                                 : 1;
    int low = p[0] == 0xE0 ? 0xA0 : p[0] == 0xF0 ? 0x90 : 0x80;
    int high = p[0] == 0xED ? 0x9F : p[0] == 0xF4 ? 0x8F : 0xBF;
    size_t len = 1;
    for (; len < want && len < n && p[len] >= low && p[len] <= high; len++) {
        low = 0x80;
        high = 0xBF;
    }
    return len;
}

/* Byte-level pieces back to bytes; a piece outside the alphabet (an added token) is its own text. */
static void hbk__unspell(const hbk_tokenizer *t, const char *s, hbk_int n, hbk_text *bytes)
{
    size_t before = bytes->len;
    for (hbk_int i = 0, len; i < n; i += len) {
        int32_t cp;
        len = (hbk_int)hbk_utf8_decode(s + i, (size_t)(n - i), &cp);
        int32_t b = cp >= 0 && cp < 512 ? t->char_byte[cp] : -1;
        if (b < 0) {
            bytes->len = HBK__MIN(bytes->len, before);
            hbk_text_append(bytes, s, (size_t)n);
            return;
        }
        char c = (char)b;
        hbk_text_append(bytes, &c, 1);
    }
}

/* Appends a piece's text: U+2581 as ' ', less what a text's beginning loses. `begin` says whether it still
   begins here. */
static void hbk__decode_piece(const hbk_tokenizer *t, int32_t id, bool *begin, hbk_text *out)
{
    const hbk__piece *p = &t->vocab.pieces[id];
    const char *s = hbk__vocab_piece(&t->vocab, id);
    hbk_int n = p->len;
    if (p->kind == HBK__PIECE_UNKNOWN && t->sentencepiece) {
        s = hbk_text_string(&t->unk_text);
        n = (hbk_int)t->unk_text.len;
    }
    bool drop = *begin && t->strip == HBK__STRIP_MARK && hbk__is_mark(s, n, 0);
    bool drop_all = *begin && t->strip == HBK__STRIP_MARKS;
    hbk_int from = drop ? 3 : 0;
    *begin = *begin && t->strip == HBK__STRIP_MARK && from == n && (t->collapse || !drop);
    for (hbk_int i = from; i < n;) {
        bool mark = t->decode_marks && hbk__is_mark(s, n, i);
        if (!mark || !drop_all) hbk_text_append(out, mark ? " " : s + i, 1);
        i += mark ? 3 : 1;
    }
}

/* The pieces' texts one after another. Byte-level pieces are all left in `run`. */
static void hbk__decode_pieces(const hbk_tokenizer *t, const int32_t *ids, hbk_int n, bool begin,
                               hbk_text *run, hbk_text *out)
{
    for (hbk_int i = 0; i < n; i++) {
        const hbk__piece *p = &t->vocab.pieces[ids[i]];
        const char *s = hbk__vocab_piece(&t->vocab, ids[i]);
        bool hidden = p->hidden || p->kind == HBK__PIECE_CONTROL || p->kind == HBK__PIECE_NONE;
        if (hidden && t->sentencepiece) hbk__flush_bytes(t, run, out); /* bytes do not reach over it */
        if (hidden) continue;
        if (t->byte_level) {
            hbk__unspell(t, s, p->len, run);
            continue;
        }
        int byte = p->kind == HBK__PIECE_BYTE || !t->sentencepiece ? hbk__byte_of(s, p->len) : -1;
        if (byte >= 0 && t->decode_bytes) {
            char c = (char)byte;
            hbk_text_append(run, &c, 1);
            begin = false;
        } else {
            hbk__flush_bytes(t, run, out);
            hbk__decode_piece(t, ids[i], &begin, out);
        }
    }
    if (!t->byte_level) hbk__flush_bytes(t, run, out);
}

HBK_DEF bool hbk_tokenizer_decode(const hbk_tokenizer *t, const int32_t *ids, hbk_int n, unsigned flags,
                                  hbk_text *out, hbk_error *err)
{
    for (hbk_int i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= t->vocab.n)
            return hbk_fail(err, HBK_ERROR_RANGE, "token %lld is id %ld, expected 0 to %lld", (long long)i,
                            (long)ids[i], (long long)t->vocab.n - 1);
    hbk_text run;
    memset(&run, 0, sizeof run);
    run.alloc = t->alloc;
    size_t before = out->len;
    bool begin = t->strip != HBK__STRIP_NONE && !(flags & HBK_ENCODE_CONTINUE);
    hbk__decode_pieces(t, ids, n, begin, &run, out);
    for (size_t i = 0, step; i < run.len; i += step) {
        int32_t cp;
        step = hbk_utf8_decode(run.data + i, run.len - i, &cp);
        if (cp < 0) step = hbk__broken_length(run.data + i, run.len - i);
        hbk_text_append(out, cp < 0 ? "\xef\xbf\xbd" : run.data + i, cp < 0 ? 3 : step);
    }
    bool ok = hbk_text_ok(&run, err) && hbk_text_ok(out, err);
    if (ok && begin && t->strip == HBK__STRIP_SPACE && out->len > before && out->data[before] == ' ') {
        memmove(out->data + before, out->data + before + 1, out->len - before); /* the NUL too */
        out->len--;
    }
    if (!ok && out->data) {
        out->len = before;
        out->data[before] = 0;
    }
    hbk_text_free(&run);
    return ok;
}

HBK_DEF hbk_int hbk_tokenizer_size(const hbk_tokenizer *t)
{
    return t->vocab.n;
}

HBK_DEF int32_t hbk_tokenizer_bos(const hbk_tokenizer *t)
{
    return t->bos;
}

HBK_DEF int32_t hbk_tokenizer_eos(const hbk_tokenizer *t)
{
    return t->eos;
}

HBK_DEF int32_t hbk_tokenizer_unk(const hbk_tokenizer *t)
{
    return t->unk;
}

HBK_DEF bool hbk_tokenizer_adds_bos(const hbk_tokenizer *t)
{
    return t->adds_bos && t->bos >= 0;
}

HBK_DEF int32_t hbk_tokenizer_find(const hbk_tokenizer *t, const char *piece)
{
    return hbk__vocab_find(&t->vocab, piece, (hbk_int)strlen(piece));
}

HBK_DEF const char *hbk_tokenizer_piece(const hbk_tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->vocab.n ? hbk__vocab_piece(&t->vocab, id) : NULL;
}

/* What writers of other formats ask: pieces by id in t->vocab.pieces, and the following. */

typedef struct hbk__rule {
    int32_t left, right, id;
    hbk_int rank;
} hbk__rule;

static int hbk__rule_order(const void *a, const void *b)
{
    const hbk__rule *x = (const hbk__rule *)a, *y = (const hbk__rule *)b;
    if (x->rank != y->rank) return x->rank < y->rank ? -1 : 1;
    if (x->left != y->left) return x->left < y->left ? -1 : 1;
    return (x->right > y->right) - (x->right < y->right);
}

/* The merges in their order; the caller frees the list with hbk_free(t->alloc). Rules of letters are left
   out: they have no piece. NULL: no memory. */
static hbk__rule *hbk__tokenizer_rules(const hbk_tokenizer *t, hbk_int *n, hbk_error *err)
{
    hbk__rule *list = HBK__NEW(t->alloc, hbk__rule, t->rules.n, err);
    *n = 0;
    for (hbk_int i = 0; list && i < t->rules.cap; i++) {
        const hbk__slot *slot = &t->rules.slots[i];
        if (!slot->value) continue;
        hbk__rule *r = &list[*n];
        r->left = (int32_t)(slot->key >> 32);
        r->right = (int32_t)(slot->key & INT32_MAX);
        r->id = (int32_t)((slot->value - 1) & INT32_MAX);
        r->rank = (slot->value - 1) >> 32;
        if (r->left < t->vocab.n && r->right < t->vocab.n) ++*n;
    }
    if (list) qsort(list, (size_t)*n, sizeof *list, hbk__rule_order);
    return list;
}

/* GGUF's name for how a byte-level text falls into words: "" for the families without bytes (GGUF's model
   "llama"), NULL if no name fits. */
static const char *hbk__tokenizer_pre(const hbk_tokenizer *t)
{
    bool smollm = t->words == HBK__WORDS_GPT2 && t->digits;
    if (!t->byte_level) return "";
    if (t->prefix_space || (t->ignore_merges != (t->words == HBK__WORDS_LLAMA3))) return NULL;
    if (t->words == HBK__WORDS_LLAMA3 && !t->digits) return "llama-bpe";
    if (t->words == HBK__WORDS_DEFAULT) return "default";
    return smollm ? "smollm" : t->words == HBK__WORDS_GPT2 ? "gpt-2" : NULL;
}

/* ---- 7.6 tokenizer.json

   Each of its five parts is a small tree of typed nodes. A node that is not known is refused by its name:
   ids that are almost right are worse than none. */

static const char *hbk__node_type(const json_t *node)
{
    const char *type = json_string_value(json_object_get(node, "type"));
    return type ? type : "(none)";
}

static bool hbk__refuse_node(const char *path, const char *part, const char *what, hbk_error *err)
{
    return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, path, 0,
                       "%s %.160s is not supported, expected one of LLaMA's family; a SentencePiece "
                       "tokenizer.model beside it may serve instead",
                       part, what);
}

static bool hbk__node_is(const json_t *node, const char *key, const char *wanted)
{
    const char *s = json_string_value(json_object_get(node, key));
    return s && strcmp(s, wanted) == 0;
}

/* Two normalisers are LLaMA's: U+2581 before the text, and in the place of each space. */
static bool hbk__json_normalizer(hbk_tokenizer *t, const json_t *node, const char *path, hbk_error *err)
{
    const char *type = hbk__node_type(node);
    if (!node || json_is_null(node)) return true;
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(node, "normalizers");
        for (size_t i = 0; i < json_array_size(list); i++)
            if (!hbk__json_normalizer(t, json_array_get(list, i), path, err)) return false;
        return true;
    }
    if (strcmp(type, "Prepend") == 0 && hbk__node_is(node, "prepend", HBK__SPACE)) {
        t->prefix = HBK__PREFIX_ALWAYS;
        return true;
    }
    if (strcmp(type, "Replace") == 0 && hbk__node_is(json_object_get(node, "pattern"), "String", " ") &&
        hbk__node_is(node, "content", HBK__SPACE)) {
        t->escape = true;
        return true;
    }
    return hbk__refuse_node(path, "normalizer", type, err);
}

/* When a Metaspace prepends: "prepend_scheme" replaced "add_prefix_space", and both are optional. */
static int hbk__json_scheme(const json_t *node)
{
    if (hbk__node_is(node, "prepend_scheme", "first")) return HBK__PREFIX_FIRST;
    if (hbk__node_is(node, "prepend_scheme", "never")) return HBK__PREFIX_NEVER;
    return json_is_false(json_object_get(node, "add_prefix_space")) ? HBK__PREFIX_NEVER : HBK__PREFIX_ALWAYS;
}

/* The newer spelling of the same, done after special tokens are cut out. */
static void hbk__json_metaspace(hbk_tokenizer *t, const json_t *node)
{
    t->metaspace = true;
    t->meta_prefix = hbk__json_scheme(node);
    t->words = json_is_false(json_object_get(node, "split")) ? HBK__WORDS_ALL : HBK__WORDS_SPACE;
}

static const char *const hbk__gpt2_regex =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
static const char *const hbk__llama3_regex =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}"
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/* Cutting by a regular expression: letter for letter one of those that 7.3 knows. */
static bool hbk__json_split(hbk_tokenizer *t, const json_t *node, const char *path, hbk_error *err)
{
    const char *regex = json_string_value(json_object_get(json_object_get(node, "pattern"), "Regex"));
    bool plain = hbk__node_is(node, "behavior", "Isolated") && !json_is_true(json_object_get(node, "invert"));
    plain = plain && t->words == HBK__WORDS_ALL; /* two of them would cut twice */
    if (regex && plain && strcmp(regex, hbk__gpt2_regex) == 0)
        t->words = HBK__WORDS_GPT2;
    else if (regex && plain && strcmp(regex, hbk__llama3_regex) == 0)
        t->words = HBK__WORDS_LLAMA3;
    else
        return hbk__refuse_node(path, "pre_tokenizer Split", regex ? regex : "(no Regex)", err);
    return true;
}

/* Words: none, Metaspace, or the byte-level combinations of GPT-2, SmolLM (Digits first) and Llama-3 (Split
   first, and then ByteLevel without its own expression). */
static bool hbk__json_pre_tokenizer(hbk_tokenizer *t, const json_t *node, const char *path, hbk_error *err)
{
    const char *type = hbk__node_type(node);
    if (!node || json_is_null(node)) return true;
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(node, "pretokenizers");
        for (size_t i = 0; i < json_array_size(list); i++)
            if (!hbk__json_pre_tokenizer(t, json_array_get(list, i), path, err)) return false;
        return true;
    }
    if (t->byte_level || t->metaspace) /* what follows these would see spelled text */
        return hbk__refuse_node(path, "pre_tokenizer Sequence that goes on after spelling, with", type, err);
    if (strcmp(type, "Metaspace") == 0 && !t->digits && t->words == HBK__WORDS_ALL &&
        (hbk__node_is(node, "replacement", HBK__SPACE))) {
        hbk__json_metaspace(t, node);
        return true;
    }
    if (strcmp(type, "Split") == 0) return hbk__json_split(t, node, path, err);
    if (strcmp(type, "Digits") == 0 && json_is_true(json_object_get(node, "individual_digits")) &&
        t->words == HBK__WORDS_ALL) {
        t->digits = true;
        return true;
    }
    bool regex = !json_is_false(json_object_get(node, "use_regex"));
    bool space = !json_is_false(json_object_get(node, "add_prefix_space"));
    bool alone = t->words == HBK__WORDS_ALL && !t->digits;
    if (strcmp(type, "ByteLevel") == 0 && (alone || !space) && !(regex && t->words != HBK__WORDS_ALL)) {
        t->byte_level = true;
        t->prefix_space = space;
        if (regex) t->words = HBK__WORDS_GPT2;
        return true;
    }
    return hbk__refuse_node(path, "pre_tokenizer", type, err);
}

/* Is this the node of the one form that the family uses at step k of a decoder? */
static bool hbk__json_decoder_step(const json_t *node, int k)
{
    const json_t *start = json_object_get(node, "start"), *stop = json_object_get(node, "stop");
    if (k == 0)
        return hbk__node_is(json_object_get(node, "pattern"), "String", HBK__SPACE) &&
               hbk__node_is(node, "content", " ");
    return k < 3 || (hbk__node_is(node, "content", " ") && json_integer_value(start) == 1 &&
                     json_integer_value(stop) == 0);
}

/* ByteLevel; Metaspace; or some of these steps in this order, Strip only behind Fuse: before it, each piece
   would lose its space. Another decoder means another kind of vocabulary. */
static bool hbk__json_decoder(hbk_tokenizer *t, const json_t *node, const char *path, hbk_error *err)
{
    static const char *const steps[4] = {"Replace", "ByteFallback", "Fuse", "Strip"};
    const char *type = hbk__node_type(node);
    const json_t *list = json_object_get(node, "decoders");
    size_t n = json_array_size(list), done = 0;
    if (!node || json_is_null(node)) { /* then what encoding put before a text is taken off again */
        bool prefix = t->prefix != HBK__PREFIX_NEVER || t->meta_prefix != HBK__PREFIX_NEVER;
        t->strip = prefix && !t->byte_level ? HBK__STRIP_SPACE : HBK__STRIP_NONE;
        t->decode_bytes = t->decode_marks = true;
        return true;
    }
    if (strcmp(type, "ByteLevel") == 0 && t->byte_level) return true;
    if (strcmp(type, "Metaspace") == 0 && !t->byte_level && hbk__node_is(node, "replacement", HBK__SPACE)) {
        if (hbk__json_scheme(node) != HBK__PREFIX_NEVER) t->strip = HBK__STRIP_MARKS;
        t->decode_marks = true;
        return true;
    }
    if (n == 1) return hbk__json_decoder(t, json_array_get(list, 0), path, err);
    if (t->byte_level) return hbk__refuse_node(path, "decoder", type, err);
    for (size_t i = 0; i < HBK__MAX(n, 1); i++) {
        const json_t *step = n ? json_array_get(list, i) : node;
        size_t k = done;
        while (k < 4 && !hbk__node_is(step, "type", steps[k])) k++;
        if (k == 4 || !hbk__json_decoder_step(step, (int)k) || (k == 3 && done != 3))
            return hbk__refuse_node(path, "decoder", hbk__node_type(step), err);
        if (k == 0) t->decode_marks = true;
        if (k == 1) t->decode_bytes = true;
        if (k == 3) t->strip = HBK__STRIP_SPACE;
        done = k + 1;
    }
    return true;
}

/* Does every text begin with a special token? That is bos. ByteLevel here only moves offsets. */
static bool hbk__json_post_processor(hbk_tokenizer *t, const json_t *node, const char *path, hbk_error *err)
{
    const char *type = hbk__node_type(node);
    if (!node || json_is_null(node) || strcmp(type, "ByteLevel") == 0) return true;
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(node, "processors");
        bool ok = true;
        for (size_t i = 0; ok && i < json_array_size(list); i++)
            ok = hbk__json_post_processor(t, json_array_get(list, i), path, err);
        return ok;
    }
    if (strcmp(type, "TemplateProcessing") != 0) return hbk__refuse_node(path, "post_processor", type, err);
    const json_t *first = json_array_get(json_object_get(node, "single"), 0);
    const char *id = json_string_value(json_object_get(json_object_get(first, "SpecialToken"), "id"));
    int32_t bos = id ? hbk_tokenizer_find(t, id) : -1;
    if (bos < 0) return true;
    t->bos = bos;
    t->adds_bos = true;
    return true;
}

/* A cut-out token. Its pattern is found in raw text, or, normalised itself, in the normalised text. */
static bool hbk__add_added(hbk_tokenizer *t, hbk__added a, const char *s, hbk_int n, hbk_error *err)
{
    void *added = t->added;
    hbk_text scratch;
    memset(&scratch, 0, sizeof scratch);
    scratch.alloc = t->alloc;
    if (n == 0) return true;
    if (!hbk__reserve(t->alloc, &added, &t->cap_added, t->n_added + 1, sizeof a, err)) return false;
    t->added = (hbk__added *)added;
    a.at = (hbk_int)t->patterns.len;
    if (a.normalized && !t->sentencepiece)
        hbk__normalise(t, s, n, true, 0, &t->patterns, &scratch);
    else
        hbk_text_append(&t->patterns, s, (size_t)n);
    hbk_text_free(&scratch);
    if (!hbk_text_ok(&t->patterns, err)) return false;
    a.len = (hbk_int)t->patterns.len - a.at;
    t->begins[a.normalized][(unsigned char)t->patterns.data[a.at]] = true;
    if (!a.special) t->cuts[a.normalized] = true;
    t->added[t->n_added++] = a;
    return hbk__enter_pattern(t, &a, t->n_added - 1, err);
}

/* The greatest id that a file of n pieces may give: there may be holes, not gulfs, which would take memory.
   It comes from how much the file says, before anything is admitted: each gulf would let in a wider one. */
static hbk_int hbk__most_id(size_t n)
{
    return 4 * (hbk_int)n + 65536;
}

/* One entry {"content", "special", ...} under the id that it asks for, 0 to most. */
static bool hbk__json_added(hbk_tokenizer *t, const json_t *entry, hbk_int id, hbk_int most, const char *path,
                            hbk_error *err)
{
    const json_t *content = json_object_get(entry, "content");
    if (!json_is_string(content) || id < 0 || id > most)
        return hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0,
                           "an added token with id %lld has no content, or an id far outside the vocabulary",
                           (long long)id);
    const char *s = json_string_value(content);
    hbk_int n = (hbk_int)json_string_length(content);
    hbk__added a;
    memset(&a, 0, sizeof a);
    a.special = json_is_true(json_object_get(entry, "special"));
    a.normalized = json_is_true(json_object_get(entry, "normalized"));
    a.lstrip = json_is_true(json_object_get(entry, "lstrip"));
    a.rstrip = json_is_true(json_object_get(entry, "rstrip"));
    a.single_word = json_is_true(json_object_get(entry, "single_word"));
    a.id = hbk__vocab_find(&t->vocab, s, n); /* the vocabulary's id goes before the entry's */
    if (a.id < 0) {
        if (!hbk__vocab_set(&t->vocab, id, s, n, HBK__PIECE_NORMAL, 0, err)) return false;
        a.id = (int32_t)id;
    }
    hbk__piece *p = &t->vocab.pieces[a.id];
    if (a.special && p->kind == HBK__PIECE_NORMAL) p->kind = HBK__PIECE_CONTROL; /* unk and bytes stay so */
    p->hidden = a.special;
    return hbk__add_added(t, a, s, n, err);
}

/* In the byte-level family every byte is a character of the alphabet, and that is its symbol. */
static void hbk__find_byte_pieces(hbk_tokenizer *t)
{
    for (int b = 0; b < 256 && t->byte_level; b++) {
        char c[4];
        hbk_int n = (hbk_int)hbk_utf8_encode(c, t->byte_char[b]);
        t->byte_ids[b] = hbk__symbol_of(t, c, n);
    }
}

/* Pieces, unk, and the bytes that unknown characters fall back to. */
static bool hbk__json_vocab(hbk_tokenizer *t, const json_t *model, const char *path, hbk_error *err)
{
    json_t *vocab = json_object_get(model, "vocab");
    hbk_int most = hbk__most_id(json_object_size(vocab));
    for (void *i = json_object_iter(vocab); i; i = json_object_iter_next(vocab, i)) {
        const char *s = json_object_iter_key(i);
        const json_t *value = json_object_iter_value(i);
        json_int_t id = json_integer_value(value);
        if (!json_is_integer(value) || id < 0 || id > most)
            return hbk_fail_at(err, HBK_ERROR_RANGE, path, 0, "id %lld of piece \"%.40s\" is out of range",
                               (long long)id, s);
        if (!hbk__vocab_set(&t->vocab, id, s, (hbk_int)strlen(s), HBK__PIECE_NORMAL, 0, err)) return false;
    }
    if (t->vocab.n == 0) return hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0, "its vocabulary is empty");
    const char *unk = json_string_value(json_object_get(model, "unk_token"));
    t->unk = unk ? hbk_tokenizer_find(t, unk) : -1;
    if (unk && t->unk < 0)
        return hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0, "unk_token \"%.40s\" is no piece", unk);
    if (unk) t->vocab.pieces[t->unk].kind = HBK__PIECE_UNKNOWN;
    hbk__find_byte_pieces(t);
    t->byte_fallback = json_is_true(json_object_get(model, "byte_fallback")) && !t->byte_level;
    for (hbk_int id = 0; id < t->vocab.n && t->byte_fallback; id++) {
        int b = hbk__byte_of(hbk__vocab_piece(&t->vocab, id), t->vocab.pieces[id].len);
        if (b < 0) continue;
        t->vocab.pieces[id].kind = HBK__PIECE_BYTE;
        t->byte_ids[b] = (int32_t)id;
    }
    return true;
}

/* A published LLaMA-2 file lost its no-break spaces to plain ones: the merges that held them begin with a
   space, so one piece of theirs is empty, and they can never apply. */
static bool hbk__is_void_merge(const json_t *entry)
{
    const char *s = json_string_value(entry);
    return s && s[0] == ' ';
}

/* A merge list's entry number `rank`: both parts and their whole must be pieces. */
static bool hbk__add_merge(hbk_tokenizer *t, const char *a, hbk_int a_len, const char *b, hbk_int b_len,
                           hbk_int rank, hbk_text *joined, const char *path, hbk_error *err)
{
    int32_t left = hbk__vocab_find(&t->vocab, a, a_len), right = hbk__vocab_find(&t->vocab, b, b_len);
    hbk_text_clear(joined);
    hbk_text_append(joined, a, (size_t)a_len);
    hbk_text_append(joined, b, (size_t)b_len);
    if (!hbk_text_ok(joined, err)) return false;
    int32_t id = hbk__vocab_find(&t->vocab, hbk_text_string(joined), (hbk_int)joined->len);
    if (left < 0 || right < 0 || id < 0)
        return hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0,
                           "merge %lld, making \"%.40s\", names a piece that the vocabulary lacks",
                           (long long)rank, hbk_text_string(joined));
    if (!hbk__may_spell(t, id)) return true;
    t->vocab.pieces[id].score = -(float)rank; /* for formats that score pieces */
    return hbk__add_rule(t, left, right, rank, id, err);
}

/* "a b", or ["a", "b"] where pieces hold spaces. */
static bool hbk__json_merge(hbk_tokenizer *t, const json_t *entry, hbk_int rank, hbk_text *joined,
                            const char *path, hbk_error *err)
{
    const char *a = json_string_value(entry), *space = a ? strchr(a, ' ') : NULL;
    const json_t *first = json_array_get(entry, 0), *second = json_array_get(entry, 1);
    if (space)
        return hbk__add_merge(t, a, space - a, space + 1, (hbk_int)strlen(space + 1), rank, joined, path,
                              err);
    if (json_is_string(first) && json_is_string(second))
        return hbk__add_merge(t, json_string_value(first), (hbk_int)json_string_length(first),
                              json_string_value(second), (hbk_int)json_string_length(second), rank, joined,
                              path, err);
    return hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0, "merge %lld is no pair of pieces", (long long)rank);
}

/* The position in the list is the rank. The list is read from its end: a pair that it names twice has its
   last rank, as Hugging Face reads it. */
static bool hbk__json_merges(hbk_tokenizer *t, const json_t *merges, const char *path, hbk_error *err)
{
    hbk_text joined;
    memset(&joined, 0, sizeof joined);
    joined.alloc = t->alloc;
    bool ok = true;
    for (hbk_int rank = (hbk_int)json_array_size(merges) - 1; rank >= 0 && ok; rank--) {
        const json_t *entry = json_array_get(merges, (size_t)rank);
        ok = hbk__is_void_merge(entry) || hbk__json_merge(t, entry, rank, &joined, path, err);
    }
    hbk_text_free(&joined);
    return ok;
}

/* Refuses options of BPE that would change ids and are not done here. */
static bool hbk__json_check_options(const json_t *model, const char *path, hbk_error *err)
{
    static const char *const affix[2] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++) {
        const char *s = json_string_value(json_object_get(model, affix[i]));
        if (s && *s) return hbk__refuse_node(path, "model BPE with", affix[i], err);
    }
    if (json_number_value(json_object_get(model, "dropout")) > 0)
        return hbk__refuse_node(path, "model BPE with", "dropout", err);
    return true;
}

/* Refuses a model that is no BPE. */
static bool hbk__json_check_model(const json_t *model, const char *path, hbk_error *err)
{
    if (json_object_get(model, "type") && !hbk__node_is(model, "type", "BPE"))
        return hbk__refuse_node(path, "a tokenizer of type", hbk__node_type(model), err);
    if (!json_is_object(json_object_get(model, "vocab")) || !json_is_array(json_object_get(model, "merges")))
        return hbk__refuse_node(path, "model (without a vocab object and a merges list)",
                                hbk__node_type(model), err);
    return hbk__json_check_options(model, path, err);
}

/* The order matters: what is added decides which merges would spell a special token, and added tokens are
   normalised by what was read before. */
static bool hbk__load_json(hbk_tokenizer *t, const json_t *root, const char *path, hbk_error *err)
{
    const json_t *model = json_object_get(root, "model"), *added = json_object_get(root, "added_tokens");
    t->ignore_merges = json_is_true(json_object_get(model, "ignore_merges"));
    t->fuse_unk = json_is_true(json_object_get(model, "fuse_unk"));
    if (!hbk__json_check_model(model, path, err) ||
        !hbk__json_normalizer(t, json_object_get(root, "normalizer"), path, err) ||
        !hbk__json_pre_tokenizer(t, json_object_get(root, "pre_tokenizer"), path, err) ||
        !hbk__json_decoder(t, json_object_get(root, "decoder"), path, err) ||
        !hbk__json_vocab(t, model, path, err))
        return false;
    hbk_int most = hbk__most_id(json_object_size(json_object_get(model, "vocab")) + json_array_size(added));
    for (size_t i = 0; i < json_array_size(added); i++) {
        const json_t *entry = json_array_get(added, i), *id = json_object_get(entry, "id");
        if (!hbk__json_added(t, entry, json_is_integer(id) ? json_integer_value(id) : -1, most, path, err))
            return false;
    }
    if (!hbk__json_post_processor(t, json_object_get(root, "post_processor"), path, err) ||
        !hbk__json_merges(t, json_object_get(model, "merges"), path, err)) return false;
    hbk__find_borders(t);
    return true;
}

/* ---- 7.7 SentencePiece and llama2.c

   tokenizer.model is one protobuf message, a list of (field number, wire type, value):

       ModelProto      1 piece*  2 trainer_spec  3 normalizer_spec
       piece           1 text    2 score (f32)   3 type, NORMAL if absent
       trainer_spec    3 model_type (2 = BPE; absent = unigram)   24 whitespace as suffix
                       35 byte_fallback   40 unk_id  41 bos_id  42 eos_id  44 text of unk
       normalizer_spec 2 compiled map   3 dummy prefix   4 remove extra spaces   5 escape; absent = true

   tokenizer.bin is i32 longest, then {f32 score, i32 length, bytes} to its end, with ' ' for U+2581. */

typedef struct hbk__proto {
    const unsigned char *p, *end;
    bool bad; /* cut short, or no protobuf */
} hbk__proto;

typedef struct hbk__field {
    uint64_t number, value; /* value: of a varint or fixed32 */
    hbk__proto body;        /* of a string or message */
} hbk__field;

/* Seven bits a byte, low ones first, ten bytes at most. */
static uint64_t hbk__varint(hbk__proto *m)
{
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        if (m->p == m->end) break;
        unsigned char b = *m->p++;
        value |= (uint64_t)(b & 0x7F) << shift;
        if (b < 0x80) return value;
    }
    m->bad = true;
    return 0;
}

/* The next field of a message; false at its end or when it is bad. */
static bool hbk__proto_next(hbk__proto *m, hbk__field *f)
{
    if (m->bad || m->p == m->end) return false;
    uint64_t tag = hbk__varint(m), n = 0;
    memset(f, 0, sizeof *f);
    f->number = tag >> 3;
    switch (tag & 7) {
    case 0: f->value = hbk__varint(m); return !m->bad;
    case 1: n = 8; break;
    case 2: n = hbk__varint(m); break;
    case 5: n = 4; break;
    default: m->bad = true; break;
    }
    if (n > (uint64_t)(m->end - m->p)) m->bad = true;
    if (m->bad) return false;
    f->body.p = m->p;
    f->body.end = m->p + n;
    if ((tag & 7) == 5) f->value = m->p[0] | m->p[1] << 8 | m->p[2] << 16 | (uint64_t)m->p[3] << 24;
    m->p += n;
    return true;
}

/* The float with these bits, without a pointer cast that the optimiser may misread. */
static float hbk__f32_of_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

enum { HBK__LONGEST_PIECE = 4096 }; /* bytes; the halves of unused pieces nest that deep */

/* A piece of either file: remembers bytes, control tokens and pieces to be matched whole. */
static bool hbk__add_piece(hbk_tokenizer *t, const char *s, hbk_int n, float score, int32_t kind,
                           const char *path, hbk_error *err)
{
    hbk_int id = t->vocab.n;
    int byte = kind == HBK__PIECE_BYTE ? hbk__byte_of(s, n) : 0;
    if (kind < HBK__PIECE_NORMAL || kind > HBK__PIECE_BYTE || byte < 0)
        return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, path, 0, "piece %lld has type %ld, which is not read",
                           (long long)id, (long)kind);
    if (n < 1 || n > HBK__LONGEST_PIECE)
        return hbk_fail_at(err, HBK_ERROR_RANGE, path, 0, "piece %lld has %lld bytes, expected 1 to %d",
                           (long long)id, (long long)n, (int)HBK__LONGEST_PIECE);
    if (!(score > -3e38f && score < 3e38f) || !hbk_utf8_valid(s, (size_t)n, NULL))
        return hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0, "piece %lld has no finite score, or is no UTF-8",
                           (long long)id);
    if (!hbk__vocab_set(&t->vocab, id, s, n, kind, score, err)) return false;
    if (kind == HBK__PIECE_BYTE) t->byte_ids[byte] = (int32_t)id;
    if (kind == HBK__PIECE_UNUSED) t->resplits = true;
    if (kind != HBK__PIECE_CONTROL && kind != HBK__PIECE_USER) return true;
    hbk__added a;
    memset(&a, 0, sizeof a);
    a.id = (int32_t)id;
    a.special = kind == HBK__PIECE_CONTROL;
    a.normalized = !a.special && t->sentencepiece;
    return hbk__add_added(t, a, s, n, err);
}

/* SentencePiece's conventions, before any piece is added. */
static bool hbk__be_sentencepiece(hbk_tokenizer *t, hbk_error *err)
{
    t->sentencepiece = t->fuse_unk = t->decode_bytes = t->decode_marks = true;
    hbk_text_add(&t->unk_text, " \xe2\x81\x87 "); /* U+2047 */
    return hbk_text_ok(&t->unk_text, err);
}

/* After the last piece. */
static bool hbk__finish_scored(hbk_tokenizer *t, hbk_error *err)
{
    if (!hbk__rules_by_score(t, err)) return false;
    hbk__find_borders(t);
    return true;
}

static bool hbk__proto_piece(hbk_tokenizer *t, hbk__proto *m, const char *path, hbk_error *err)
{
    hbk__field f;
    hbk__proto text;
    float score = 0;
    int32_t kind = HBK__PIECE_NORMAL;
    memset(&text, 0, sizeof text);
    while (hbk__proto_next(m, &f)) {
        if (f.number == 1) text = f.body;
        if (f.number == 2) score = hbk__f32_of_bits((uint32_t)f.value);
        if (f.number == 3) kind = f.value <= HBK__PIECE_BYTE ? (int32_t)f.value : 0;
    }
    if (m->bad || !text.p)
        return hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0, "piece %lld is damaged", (long long)t->vocab.n);
    const char *s = (const char *)text.p;
    hbk_int n = text.end - text.p, before = hbk__vocab_find(&t->vocab, s, n);
    if (before >= 0)
        return hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0, "pieces %lld and %lld are the same",
                           (long long)before, (long long)t->vocab.n);
    return hbk__add_piece(t, s, n, score, kind, path, err);
}

static bool hbk__proto_trainer(hbk_tokenizer *t, hbk__proto *m, const char *path, hbk_error *err)
{
    hbk__field f;
    uint64_t model_type = 1, suffix = 0;
    t->unk = 0; /* the defaults of the format */
    t->bos = 1;
    t->eos = 2;
    while (hbk__proto_next(m, &f)) {
        int32_t id = f.value <= INT32_MAX ? (int32_t)f.value : -1; /* -1 comes as 2^64 - 1 */
        if (f.number == 3) model_type = f.value;
        if (f.number == 24) suffix = f.value;
        if (f.number == 35) t->byte_fallback = f.value != 0;
        if (f.number == 40) t->unk = id;
        if (f.number == 41) t->bos = id;
        if (f.number == 42) t->eos = id;
        if (f.number == 44) {
            hbk_text_clear(&t->unk_text);
            hbk_text_append(&t->unk_text, (const char *)f.body.p, (size_t)(f.body.end - f.body.p));
        }
    }
    if (!hbk_text_ok(&t->unk_text, err)) return false;
    if (m->bad) return hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0, "its trainer_spec is damaged");
    if (model_type != 2)
        return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, path, 0,
                           "model type %s is not supported, expected BPE",
                           model_type == 1   ? "unigram"
                           : model_type == 3 ? "word"
                                             : "char");
    if (suffix)
        return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, path, 0,
                           "treat_whitespace_as_suffix is not supported");
    return true;
}

static bool hbk__proto_normalizer(hbk_tokenizer *t, hbk__proto *m, const char *path, hbk_error *err)
{
    hbk__field f;
    while (hbk__proto_next(m, &f)) {
        if (f.number == 2 && f.body.p != f.body.end)
            return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, path, 0,
                               "a compiled normalisation map (nmt_nfkc) is not supported, expected identity");
        if (f.number == 3) t->prefix = f.value ? HBK__PREFIX_FIRST : HBK__PREFIX_NEVER;
        if (f.number == 4) t->collapse = f.value != 0;
        if (f.number == 5) t->escape = f.value != 0;
    }
    return !m->bad || hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0, "its normalizer_spec is damaged");
}

/* The file's own ids against its own pieces. */
static bool hbk__check_ids(const hbk_tokenizer *t, const char *path, hbk_error *err)
{
    const int32_t ids[3] = {t->unk, t->bos, t->eos};
    static const char *const names[3] = {"unk", "bos", "eos"};
    for (int i = 0; i < 3; i++)
        if (ids[i] >= t->vocab.n)
            return hbk_fail_at(err, HBK_ERROR_RANGE, path, 0, "%s is id %ld, but there are %lld pieces",
                               names[i], (long)ids[i], (long long)t->vocab.n);
    for (int b = 0; b < 256 && t->byte_fallback; b++)
        if (t->byte_ids[b] < 0)
            return hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0, "byte_fallback without a piece <0x%02X>", b);
    return true;
}

static bool hbk__load_model(hbk_tokenizer *t, const char *data, size_t n, const char *path, hbk_error *err)
{
    hbk__proto m;
    hbk__field f;
    bool ok = true, bpe = false;
    m.p = (const unsigned char *)data;
    m.end = m.p + n;
    m.bad = false;
    if (!hbk__be_sentencepiece(t, err)) return false;
    t->escape = t->collapse = t->adds_bos = true; /* absent is true in this format */
    t->prefix = HBK__PREFIX_FIRST;
    while (ok && hbk__proto_next(&m, &f)) {
        if (f.number == 1) ok = hbk__proto_piece(t, &f.body, path, err);
        if (f.number == 2) ok = bpe = hbk__proto_trainer(t, &f.body, path, err);
        if (f.number == 3) ok = hbk__proto_normalizer(t, &f.body, path, err);
    }
    if (!ok) return false;
    if (m.bad || t->vocab.n == 0 || !bpe)
        return hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0, "is no SentencePiece model, or is cut short");
    if (t->unk < 0 || t->unk >= t->vocab.n || t->vocab.pieces[t->unk].kind != HBK__PIECE_UNKNOWN)
        return hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0, "unk_id %ld is not of an unknown piece",
                           (long)t->unk);
    if (t->collapse || t->prefix != HBK__PREFIX_NEVER) t->strip = HBK__STRIP_MARK;
    return hbk__check_ids(t, path, err) && hbk__finish_scored(t, err);
}

/* Neither the number of pieces nor their types are stored: pieces run to the end of the file, unk, bos and
   eos are 0, 1 and 2, and the bytes follow. */
static bool hbk__load_bin(hbk_tokenizer *t, const char *data, size_t n, const char *path, hbk_error *err)
{
    uint32_t word[2], longest = 0;
    size_t at = sizeof longest;
    hbk_text piece;
    memset(&piece, 0, sizeof piece);
    piece.alloc = t->alloc;
    bool ok = hbk__be_sentencepiece(t, err);
    if (n >= at) memcpy(&longest, data, sizeof longest);
    while (ok && at + sizeof word <= n) {
        memcpy(word, data + at, sizeof word);
        at += sizeof word;
        if (word[1] > longest || word[1] > n - at) break;
        const char *s = data + at;
        hbk_int len = (hbk_int)word[1], id = t->vocab.n;
        at += word[1];
        hbk_text_clear(&piece);
        if (id == 1 || id == 2) /* exported with newlines around: "\n<s>\n" */
            for (; len > 2 && s[0] == '\n' && s[len - 1] == '\n'; len -= 2) s++;
        hbk__escape(&piece, s, len);
        int32_t kind = id == 0                                 ? HBK__PIECE_UNKNOWN
                       : id < 3                                ? HBK__PIECE_CONTROL
                       : id < 259 && hbk__byte_of(s, len) >= 0 ? HBK__PIECE_BYTE
                                                               : HBK__PIECE_NORMAL;
        ok = hbk_text_ok(&piece, err) && hbk__add_piece(t, hbk_text_string(&piece), (hbk_int)piece.len,
                                                        hbk__f32_of_bits(word[0]), kind, path, err);
    }
    hbk_text_free(&piece);
    if (!ok) return false;
    if (at != n || t->vocab.n < 4)
        return hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0,
                           "is no tokenizer.bin of llama2.c, or is cut short");
    t->escape = t->byte_fallback = t->adds_bos = true;
    t->strip = HBK__STRIP_MARK;
    t->prefix = HBK__PREFIX_FIRST;
    t->unk = 0;
    t->bos = 1;
    t->eos = 2;
    return hbk__check_ids(t, path, err) && hbk__finish_scored(t, err);
}

/* ---- 7.8 Meta's list and GGUF

   A tokenizer.model of Meta's is text: a line for each token, its bytes in base64 and its rank, which is its
   id, and the lower the earlier it merges. The 256 special tokens that follow are not in the file; they are
   LLaMA-3's, as is the way in which words are cut. Nothing in the file says so: others' lists look the same.

   A GGUF holds, under tokenizer.ggml.*, tokens, token_type (SentencePiece's numbers) and either scores (model
   "llama", SentencePiece's dialect) or merges ("gpt2", the byte-level one, where `pre` names the way in which
   words are cut).

   Source: tokenizer.py of llama-models; docs/gguf.md of ggml. */

/* The bytes that n characters spell, in `out`; false if they are no base64. */
static bool hbk__base64(const char *s, hbk_int n, hbk_text *out)
{
    static const char *const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint32_t bits = 0;
    int have = 0;
    hbk_text_clear(out);
    if (n == 0 || n % 4) return false;
    for (int pad = 0; pad < 2 && s[n - 1] == '='; pad++) n--;
    for (hbk_int i = 0; i < n; i++) {
        const char *digit = s[i] ? strchr(digits, s[i]) : NULL;
        if (!digit) return false;
        bits = (bits << 6 | (uint32_t)(digit - digits)) & 0xFFFFFF;
        have += 6;
        if (have < 8) continue;
        have -= 8;
        char c = (char)(bits >> have & 0xFF);
        hbk_text_append(out, &c, 1);
    }
    return true;
}

/* The line at s: how long its base64 is, and its rank; false if it is no such line. */
static bool hbk__tiktoken_line(const char *s, const char *end, hbk_int *n, hbk_int *rank)
{
    const char *p = s;
    while (p < end && *p != ' ' && *p != '\n') p++;
    *n = p - s;
    *rank = 0;
    if (p == end || *p != ' ' || p + 1 == end || p[1] < '0' || p[1] > '9') return false;
    for (p++; p < end && *p >= '0' && *p <= '9' && *rank < INT32_MAX; p++) *rank = 10 * *rank + *p - '0';
    return p == end || *p == '\n' || *p == '\r';
}

static bool hbk__is_tiktoken(const char *data, size_t n)
{
    hbk_int len, rank;
    return n > 0 && data[0] != '\n' && hbk__tiktoken_line(data, data + n, &len, &rank) && len % 4 == 0;
}

static bool hbk__tiktoken_special(hbk_tokenizer *t, hbk_error *err)
{
    static const char *const names[12] = {"begin_of_text",
                                          "end_of_text",
                                          "reserved_special_token_0",
                                          "reserved_special_token_1",
                                          "finetune_right_pad_id",
                                          "step_id",
                                          "start_header_id",
                                          "end_header_id",
                                          "eom_id",
                                          "eot_id",
                                          "python_tag",
                                          "image"};
    t->bos = (int32_t)t->vocab.n;
    t->eos = t->bos + 1;
    t->adds_bos = true;
    for (int i = 0; i < 256; i++) {
        char name[64], number[32];
        snprintf(number, sizeof number, "reserved_special_token_%d", i - 10);
        snprintf(name, sizeof name, "<|%s|>", i < 12 ? names[i] : number);
        if (!hbk__add_piece(t, name, (hbk_int)strlen(name), 0, HBK__PIECE_CONTROL, "tokenizer.model", err))
            return false;
    }
    return true;
}

static bool hbk__tiktoken_lines(hbk_tokenizer *t, const char *data, size_t n, hbk_text *bytes,
                                hbk_text *spelled, const char *path, hbk_error *err)
{
    const char *s = data, *end = data + n;
    for (hbk_int line = 1; s < end; line++) {
        hbk_int len, rank;
        const char *stop = (const char *)memchr(s, '\n', (size_t)(end - s));
        if (!stop) stop = end;
        bool good = hbk__tiktoken_line(s, stop, &len, &rank) && hbk__base64(s, len, bytes);
        if (!hbk_text_ok(bytes, err)) return false;
        if (!good || bytes->len == 0)
            return hbk_fail_at(err, HBK_ERROR_FORMAT, path, line, "expected base64, a space and a rank");
        if (rank != t->vocab.n || bytes->len > HBK__LONGEST_PIECE)
            return hbk_fail_at(err, HBK_ERROR_RANGE, path, line,
                               "rank %lld, expected %lld, of at most %d bytes", (long long)rank,
                               (long long)t->vocab.n, (int)HBK__LONGEST_PIECE);
        hbk_text_clear(spelled);
        hbk__spell(t, hbk_text_string(bytes), (hbk_int)bytes->len, spelled);
        if (!hbk_text_ok(spelled, err)) return false;
        if (hbk__vocab_find(&t->vocab, spelled->data, (hbk_int)spelled->len) >= 0)
            return hbk_fail_at(err, HBK_ERROR_FORMAT, path, line, "rank %lld has the bytes of an earlier one",
                               (long long)rank);
        if (!hbk__vocab_set(&t->vocab, rank, spelled->data, (hbk_int)spelled->len, HBK__PIECE_NORMAL,
                            -(float)rank, err))
            return false;
        s = stop + 1;
    }
    return true;
}

static bool hbk__load_tiktoken(hbk_tokenizer *t, const char *data, size_t n, const char *path, hbk_error *err)
{
    hbk_text bytes, spelled;
    memset(&bytes, 0, sizeof bytes);
    bytes.alloc = t->alloc;
    spelled = bytes;
    t->byte_level = t->ignore_merges = true;
    t->words = HBK__WORDS_LLAMA3;
    bool ok = hbk__tiktoken_lines(t, data, n, &bytes, &spelled, path, err);
    hbk_text_free(&bytes);
    hbk_text_free(&spelled);
    if (!ok) return false;
    hbk__find_byte_pieces(t);
    for (int b = 0; b < 256; b++)
        if (t->byte_ids[b] < 0)
            return hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0, "has no token for the byte 0x%02X", b);
    return hbk__rules_by_score(t, err) && hbk__tiktoken_special(t, err);
}

#define HBK__GGML "tokenizer.ggml."

static bool hbk__vocab_gguf_bad_list(const char *path, const char *key, hbk_int n, hbk_int wanted,
                                     hbk_error *err)
{
    return hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0, HBK__GGML "%s has %lld entries for %lld tokens", key,
                       (long long)n, (long long)wanted);
}

static bool hbk__vocab_gguf_pieces(hbk_tokenizer *t, const hbk_gguf *g, const char *path, hbk_error *err)
{
    const hbk_gguf_value *tokens, *scores, *types = hbk_gguf_find(g, HBK__GGML "token_type");
    if (!hbk_gguf_array(g, HBK__GGML "tokens", HBK_GGUF_STRING, &tokens, err) ||
        !hbk_gguf_array(g, HBK__GGML "scores", HBK_GGUF_F32, &scores, err))
        return false;
    if (!tokens || tokens->n == 0) return hbk__vocab_gguf_bad_list(path, "tokens", 0, 0, err);
    if (t->sentencepiece && (!scores || scores->n != tokens->n))
        return hbk__vocab_gguf_bad_list(path, "scores", scores ? scores->n : 0, tokens->n, err);
    if (types && types->n != tokens->n)
        return hbk__vocab_gguf_bad_list(path, "token_type", types->n, tokens->n, err);
    for (hbk_int id = 0; id < tokens->n; id++) {
        size_t n = 0;
        double score = 0;
        hbk_int kind = HBK__PIECE_NORMAL;
        const char *s = hbk_gguf_string_at(tokens, id, &n);
        if (types && (!hbk_gguf_int_at(types, id, &kind) || kind < 0 || kind > HBK__PIECE_BYTE)) kind = 0;
        if (t->sentencepiece) hbk_gguf_real_at(scores, id, &score);
        if (t->byte_level && kind == HBK__PIECE_BYTE) kind = HBK__PIECE_NORMAL;
        if (!hbk__add_piece(t, s, (hbk_int)n, (float)score, (int32_t)kind, path, err)) return false;
    }
    return true;
}

/* Each is "a b", and its position its rank, as in tokenizer.json. */
static bool hbk__vocab_gguf_merges(hbk_tokenizer *t, const hbk_gguf *g, const char *path, hbk_error *err)
{
    const hbk_gguf_value *merges;
    if (!hbk_gguf_array(g, HBK__GGML "merges", HBK_GGUF_STRING, &merges, err)) return false;
    if (!merges)
        return hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0, "a gpt2 vocabulary without " HBK__GGML "merges");
    hbk_text joined;
    memset(&joined, 0, sizeof joined);
    joined.alloc = t->alloc;
    bool ok = true;
    for (hbk_int rank = merges->n - 1; rank >= 0 && ok; rank--) {
        size_t n = 0;
        const char *s = hbk_gguf_string_at(merges, rank, &n);
        const char *space = s && n ? (const char *)memchr(s, ' ', n) : NULL;
        if (space)
            ok = hbk__add_merge(t, s, space - s, space + 1, s + n - space - 1, rank, &joined, path, err);
        else
            ok = hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0, "merge %lld is no pair of pieces",
                             (long long)rank);
    }
    hbk_text_free(&joined);
    return ok;
}

/* An id under a key that may be absent: then, and where it is -1 in any width, *id stays. */
static bool hbk__vocab_gguf_id(const hbk_tokenizer *t, const hbk_gguf *g, const char *key, int32_t *id,
                               const char *path, hbk_error *err)
{
    hbk_int x = -1;
    if (!hbk_gguf_int(g, key, &x, err)) return false;
    if (x == -1 || x == UINT32_MAX) return true;
    if (x < 0 || x >= t->vocab.n)
        return hbk_fail_at(err, HBK_ERROR_RANGE, path, 0, "%s is %lld, but there are %lld tokens", key,
                           (long long)x, (long long)t->vocab.n);
    *id = (int32_t)x;
    return true;
}

static bool hbk__vocab_gguf_ids(hbk_tokenizer *t, const hbk_gguf *g, const char *path, hbk_error *err)
{
    return hbk__vocab_gguf_id(t, g, HBK__GGML "bos_token_id", &t->bos, path, err) &&
           hbk__vocab_gguf_id(t, g, HBK__GGML "eos_token_id", &t->eos, path, err) &&
           hbk__vocab_gguf_id(t, g, HBK__GGML "unknown_token_id", &t->unk, path, err) &&
           hbk_gguf_bool(g, HBK__GGML "add_bos_token", &t->adds_bos, err);
}

/* SentencePiece's settings, and those of its ids that every such file has. */
static bool hbk__vocab_gguf_spm(hbk_tokenizer *t, const hbk_gguf *g, const char *path, hbk_error *err)
{
    const hbk_gguf_value *map = hbk_gguf_find(g, HBK__GGML "precompiled_charsmap");
    bool prefix = true;
    if (map && map->n > 0)
        return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, path, 0,
                           HBK__GGML "precompiled_charsmap (nmt_nfkc) is not supported, expected none");
    t->escape = t->adds_bos = true;
    t->bos = 1;
    t->eos = 2;
    t->unk = 0;
    if (!hbk__be_sentencepiece(t, err) || !hbk__vocab_gguf_pieces(t, g, path, err) ||
        !hbk__vocab_gguf_ids(t, g, path, err) ||
        !hbk_gguf_bool(g, HBK__GGML "add_space_prefix", &prefix, err) ||
        !hbk_gguf_bool(g, HBK__GGML "remove_extra_whitespaces", &t->collapse, err))
        return false;
    t->prefix = prefix ? HBK__PREFIX_FIRST : HBK__PREFIX_NEVER;
    if (t->collapse || prefix) t->strip = HBK__STRIP_MARK;
    for (int b = 0; b < 256; b++) t->byte_fallback = t->byte_fallback || t->byte_ids[b] >= 0;
    return hbk__check_ids(t, path, err) && hbk__finish_scored(t, err);
}

/* Old files lack `pre`, and llama.cpp's default is not GPT-2's expression: see hbk__word_default. */
static bool hbk__vocab_gguf_level(hbk_tokenizer *t, const hbk_gguf *g, const char *path, hbk_error *err)
{
    static const struct {
        const char *name;
        int words;
        bool digits;
    } known[] = {{"llama-bpe", HBK__WORDS_LLAMA3, false}, {"llama3", HBK__WORDS_LLAMA3, false},
                 {"llama-v3", HBK__WORDS_LLAMA3, false},  {"smollm", HBK__WORDS_GPT2, true},
                 {"gpt-2", HBK__WORDS_GPT2, false},       {"default", HBK__WORDS_DEFAULT, false}};
    const char *pre = "default";
    size_t n = strlen(pre), k = 0, n_known = sizeof known / sizeof *known;
    if (!hbk_gguf_string(g, HBK__GGML "pre", &pre, &n, err)) return false;
    while (k < n_known && (strlen(known[k].name) != n || memcmp(known[k].name, pre, n) != 0)) k++;
    if (k == n_known)
        return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, path, 0,
                           HBK__GGML "pre \"%.*s\" is not supported, expected llama-bpe, smollm, gpt-2 or "
                                     "default",
                           (int)HBK__MIN(n, 40), pre);
    t->byte_level = true;
    t->words = known[k].words;
    t->digits = known[k].digits;
    t->ignore_merges = t->adds_bos = t->words == HBK__WORDS_LLAMA3;
    if (!hbk__vocab_gguf_pieces(t, g, path, err) || !hbk__vocab_gguf_ids(t, g, path, err)) return false;
    hbk__find_byte_pieces(t);
    return hbk__vocab_gguf_merges(t, g, path, err);
}

static bool hbk__load_vocab_gguf(hbk_tokenizer *t, const hbk_gguf *g, const char *path, hbk_error *err)
{
    const char *model = "none";
    size_t n = strlen(model);
    if (!hbk_gguf_string(g, HBK__GGML "model", &model, &n, err)) return false;
    if (n == 5 && memcmp(model, "llama", 5) == 0) return hbk__vocab_gguf_spm(t, g, path, err);
    if (n == 4 && memcmp(model, "gpt2", 4) == 0) return hbk__vocab_gguf_level(t, g, path, err);
    return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, path, 0,
                       HBK__GGML "model \"%.*s\" is not supported, expected llama or gpt2",
                       (int)HBK__MIN(n, 40), model);
}

/* ---- 7.9 loading */

static const char *const hbk__format_files[HBK__N_FORMATS] = {"tokenizer.json", "tokenizer.model",
                                                              "tokenizer.bin"};

/* A companion file as JSON; *value stays NULL if there is none. */
static bool hbk__companion(const hbk_tokenizer *t, const char *name, json_t **value, hbk_error *err)
{
    char path[512];
    *value = NULL;
    if (!t->folder[0]) return true;
    if (!hbk_path(path, t->folder, name, err)) return false;
    if (hbk_file_exists(path)) *value = hbk_json_read(path, err);
    return *value || !hbk_file_exists(path);
}

/* The id of "bos_token": "<s>" or {"content": "<s>", ...}; -1 if absent or no piece. */
static int32_t hbk__named_token(const hbk_tokenizer *t, const json_t *config, const char *key)
{
    const json_t *value = json_object_get(config, key);
    if (json_is_object(value)) value = json_object_get(value, "content");
    return json_is_string(value) ? hbk_tokenizer_find(t, json_string_value(value)) : -1;
}

/* The same from config.json, where ids stand, several perhaps. */
static bool hbk__numbered_token(const hbk_tokenizer *t, const json_t *config, const char *key, int32_t *id,
                                hbk_error *err)
{
    const json_t *value = json_object_get(config, key);
    if (json_is_array(value)) value = json_array_get(value, 0);
    if (*id >= 0 || !json_is_integer(value)) return true;
    json_int_t wanted = json_integer_value(value);
    if (wanted >= t->vocab.n)
        return hbk_fail_at(err, HBK_ERROR_RANGE, t->folder, 0,
                           "config.json's %s is %lld, but the tokenizer has %lld pieces", key,
                           (long long)wanted, (long long)t->vocab.n);
    *id = wanted < 0 ? -1 : (int32_t)wanted;
    return true;
}

/* Added tokens of a tokenizer.model stand beside it, in tokenizer_config.json. */
static bool hbk__added_decoder(hbk_tokenizer *t, json_t *config, hbk_error *err)
{
    json_t *decoder = json_object_get(config, "added_tokens_decoder");
    hbk_int most = hbk__most_id((size_t)t->vocab.n + json_object_size(decoder));
    for (void *i = json_object_iter(decoder); i; i = json_object_iter_next(decoder, i)) {
        hbk_int id = strtoll(json_object_iter_key(i), NULL, 10);
        if (id < t->vocab.n && (id < 0 || t->vocab.pieces[id].kind != HBK__PIECE_NONE)) continue;
        if (!hbk__json_added(t, json_object_iter_value(i), id, most, t->folder, err)) return false;
    }
    return true;
}

/* bos and eos: the tokenizer's own configuration, then the model's, then the names that everyone uses. */
static bool hbk__load_companions(hbk_tokenizer *t, hbk_error *err)
{
    static const char *const bos_names[] = {"<s>", "<|begin_of_text|>", "<|endoftext|>"};
    static const char *const eos_names[] = {"</s>", "<|end_of_text|>", "<|endoftext|>"};
    static const char *const files[2] = {"tokenizer_config.json", "special_tokens_map.json"};
    int32_t bos = -1, eos = -1;
    json_t *config;
    for (int i = 0; i < 2; i++) {
        if (!hbk__companion(t, files[i], &config, err)) return false;
        const json_t *adds = json_object_get(config, "add_bos_token");
        bool ok = t->format == HBK__FORMAT_JSON || i > 0 || hbk__added_decoder(t, config, err);
        if (json_is_boolean(adds)) t->adds_bos = json_is_true(adds);
        if (bos < 0) bos = hbk__named_token(t, config, "bos_token");
        if (eos < 0) eos = hbk__named_token(t, config, "eos_token");
        json_decref(config);
        if (!ok) return false;
    }
    if (bos < 0) bos = t->bos; /* what the file itself says */
    if (eos < 0) eos = t->eos;
    if (!hbk__companion(t, "config.json", &config, err)) return false;
    bool ok = hbk__numbered_token(t, config, "bos_token_id", &bos, err) &&
              hbk__numbered_token(t, config, "eos_token_id", &eos, err);
    json_decref(config);
    if (!ok) return false;
    for (int i = 0; i < 3 && t->format == HBK__FORMAT_JSON; i++) {
        if (bos < 0) bos = hbk_tokenizer_find(t, bos_names[i]);
        if (eos < 0) eos = hbk_tokenizer_find(t, eos_names[i]);
    }
    t->bos = bos;
    t->eos = eos;
    return true;
}

/* Fills t->file, t->folder and t->format from a path to a file or folder. */
static bool hbk__find_tokenizer(hbk_tokenizer *t, const char *path, hbk_error *err)
{
    if (strlen(path) >= sizeof t->file)
        return hbk_fail_at(err, HBK_ERROR_RANGE, path, 0, "the path is longer than 511 bytes");
    if (hbk_dir_exists(path)) {
        strcpy(t->folder, path);
        for (int i = 0; i < HBK__N_FORMATS; i++) {
            if (!hbk_path(t->file, path, hbk__format_files[i], err)) return false;
            t->format = i;
            if (hbk_file_exists(t->file)) return true;
        }
        return hbk_fail_at(err, HBK_ERROR_FILE, path, 0,
                           "holds no tokenizer.json, tokenizer.model or tokenizer.bin");
    }
    strcpy(t->file, path);
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path, *dot = strrchr(name, '.');
    t->format = dot && strcmp(dot, ".json") == 0  ? HBK__FORMAT_JSON
                : hbk__is_gguf(path)              ? HBK__FORMAT_GGUF
                : dot && strcmp(dot, ".bin") == 0 ? HBK__FORMAT_BIN
                                                  : HBK__FORMAT_MODEL;
    for (int i = 0; i < HBK__N_FORMATS; i++) { /* under its own name it has companions */
        if (strcmp(name, hbk__format_files[i]) != 0) continue;
        memcpy(t->folder, path, (size_t)(name - path));
        if (name == path) strcpy(t->folder, ".");
    }
    return true;
}

static bool hbk__load_file(hbk_tokenizer *t, hbk_error *err)
{
    bool ok;
    if (t->format == HBK__FORMAT_JSON) {
        json_t *root = hbk_json_read(t->file, err);
        ok = root && hbk__load_json(t, root, t->file, err);
        json_decref(root);
    } else if (t->format == HBK__FORMAT_GGUF) {
        hbk_gguf *g = hbk_gguf_open(t->file, t->alloc, err);
        ok = g && hbk__load_vocab_gguf(t, g, t->file, err);
        hbk_gguf_close(g);
    } else {
        hbk_mapping map;
        if (!hbk_mapping_open(&map, t->file, err)) return false;
        const char *data = (const char *)map.data;
        if (t->format == HBK__FORMAT_BIN)
            ok = hbk__load_bin(t, data, map.size, t->file, err);
        else if (hbk__is_tiktoken(data, map.size))
            ok = hbk__load_tiktoken(t, data, map.size, t->file, err);
        else
            ok = hbk__load_model(t, data, map.size, t->file, err);
        hbk_mapping_close(&map);
    }
    return ok;
}

HBK_DEF hbk_tokenizer *hbk_tokenizer_load(const char *path, hbk_allocator *alloc, hbk_error *err)
{
    hbk_tokenizer *t = hbk__tokenizer_new(alloc, err);
    if (t && hbk__find_tokenizer(t, path, err) && hbk__load_file(t, err) && hbk__load_companions(t, err))
        return t;
    hbk_tokenizer_free(t);
    return NULL;
}

/* ---- 7.10 training

   Words are counted first, and pairs are counted over distinct words, so that the size of the text hardly
   matters. Each step takes the most frequent pair, the one seen first on ties, makes it a piece, and counts
   again only the words that hold it. Words begin at a U+2581, and control characters (line feeds) stand
   alone: no piece crosses either. The result is written as a tokenizer.json and loaded by 7.6, so that what
   was trained and what will be loaded cannot differ.

   Source: Sennrich et al. 2016, section 3.2. What differs: a word's border is the space before it, not a
   mark behind it, and a merge that would spell a special or byte token is never learned. */

typedef struct hbk__counted {
    hbk_int at, len, count; /* a word: of its bytes in the text, then of its symbols */
} hbk__counted;

typedef struct hbk__pair {
    int32_t left, right;
    hbk_int count;
} hbk__pair;

typedef struct hbk__learner {
    hbk_allocator *alloc;
    hbk_error *err;
    hbk_text text; /* repaired, with U+2581 for ' ' */
    hbk__vocab vocab;
    hbk__counted *words;
    hbk_int n_words, cap_words;
    hbk__map word_map; /* hash -> word */
    int32_t *symbols;  /* of all words; -1: a character without a piece */
    hbk__pair *pairs;  /* in the order in which they were seen */
    hbk_int n_pairs, cap_pairs;
    hbk__map pair_map; /* (left, right) -> pair */
    json_t *merges;
} hbk__learner;

static void hbk__learner_free(hbk__learner *l)
{
    hbk__vocab_free(&l->vocab);
    hbk_text_free(&l->text);
    hbk_free(l->alloc, l->words);
    hbk_free(l->alloc, l->word_map.slots);
    hbk_free(l->alloc, l->symbols);
    hbk_free(l->alloc, l->pairs);
    hbk_free(l->alloc, l->pair_map.slots);
    json_decref(l->merges);
}

/* The frequent first; the alphabet's order among equals, so that nothing depends on the sort. */
static int hbk__by_count(const void *a, const void *b)
{
    const hbk__counted *x = (const hbk__counted *)a, *y = (const hbk__counted *)b;
    if (x->count != y->count) return x->count > y->count ? -1 : 1;
    return (x->at > y->at) - (x->at < y->at);
}

static int hbk__by_code_point(const void *a, const void *b)
{
    const hbk__counted *x = (const hbk__counted *)a, *y = (const hbk__counted *)b;
    return (x->at > y->at) - (x->at < y->at);
}

/* Counts one thing more: `match` is the entry found, or -1 for a new one. */
static bool hbk__count_one(hbk__learner *l, hbk__counted **list, hbk_int *n, hbk_int *cap, hbk__map *map,
                           uint64_t key, hbk_int match, hbk_int at, hbk_int len)
{
    void *data = *list;
    if (match >= 0) {
        (*list)[match].count++;
        return true;
    }
    if (!hbk__reserve(l->alloc, &data, cap, *n + 1, sizeof **list, l->err)) return false;
    *list = (hbk__counted *)data;
    hbk__counted *c = &(*list)[*n];
    c->at = at;
    c->len = len;
    c->count = 1;
    return hbk__map_add(map, key, (*n)++, l->err);
}

/* The characters of the text as pieces. Where bytes can stand in, the rare ones give way to vocab_size. */
static bool hbk__learn_alphabet(hbk__learner *l, hbk_int room, bool all_bytes)
{
    hbk__counted *chars = NULL;
    hbk_int n = 0, cap = 0;
    hbk__map map;
    memset(&map, 0, sizeof map);
    map.alloc = l->alloc;
    bool ok = true;
    for (size_t i = 0, step; i < l->text.len && ok; i += step) {
        int32_t cp;
        hbk_int probe = 0;
        step = hbk_utf8_decode(l->text.data + i, l->text.len - i, &cp);
        if (cp == 0) continue; /* no JSON key can hold it */
        hbk_int match = hbk__map_next(&map, (uint64_t)cp, &probe);
        ok = hbk__count_one(l, &chars, &n, &cap, &map, (uint64_t)cp, match, cp, 0);
    }
    if (ok && (room < 1 || (n > room && !all_bytes)))
        ok = hbk_fail(l->err, HBK_ERROR_OPTION,
                      "vocab_size leaves room for %lld characters, and the text has %lld: raise it",
                      (long long)HBK__MAX(room, 0), (long long)n);
    if (ok) {
        chars[0].count = INT64_MAX; /* U+2581 begins the text, and stays */
        qsort(chars, (size_t)n, sizeof *chars, hbk__by_count);
        n = HBK__MIN(n, room);
        qsort(chars, (size_t)n, sizeof *chars, hbk__by_code_point);
    }
    for (hbk_int i = 0; i < n && ok; i++) {
        char c[4];
        hbk_int len = (hbk_int)hbk_utf8_encode(c, (int32_t)chars[i].at);
        ok = hbk__vocab_set(&l->vocab, l->vocab.n, c, len, HBK__PIECE_NORMAL, 0, l->err);
    }
    hbk_free(l->alloc, chars);
    hbk_free(l->alloc, map.slots);
    return ok;
}

/* Distinct words and how often they occur. A word's count is all that later steps see of the text. */
static bool hbk__count_words(hbk__learner *l)
{
    const char *s = l->text.data;
    hbk_int n = (hbk_int)l->text.len;
    for (hbk_int i = 0, end; i < n; i = end) {
        end = i + 1;
        if ((unsigned char)s[i] >= 32)
            for (; end < n && (unsigned char)s[end] >= 32; end++)
                if (n - end >= 3 && memcmp(s + end, HBK__SPACE, 3) == 0) break;
        uint64_t key = hbk_hash(0, s + i, (size_t)(end - i));
        hbk_int probe = 0, match;
        while ((match = hbk__map_next(&l->word_map, key, &probe)) >= 0)
            if (l->words[match].len == end - i &&
                memcmp(s + l->words[match].at, s + i, (size_t)(end - i)) == 0)
                break;
        if (!hbk__count_one(l, &l->words, &l->n_words, &l->cap_words, &l->word_map, key, match, i, end - i))
            return false;
    }
    return true;
}

/* Adds (sign 1) or takes away (-1) the pairs of a word. */
static bool hbk__count_pairs(hbk__learner *l, const hbk__counted *w, hbk_int sign)
{
    const int32_t *s = l->symbols + w->at;
    for (hbk_int i = 0; i + 1 < w->len; i++) {
        if (s[i] < 0 || s[i + 1] < 0) continue;
        hbk_int probe = 0, match = hbk__map_next(&l->pair_map, hbk__pair_key(s[i], s[i + 1]), &probe);
        if (match < 0) {
            void *data = l->pairs;
            match = l->n_pairs;
            if (!hbk__reserve(l->alloc, &data, &l->cap_pairs, match + 1, sizeof *l->pairs, l->err))
                return false;
            l->pairs = (hbk__pair *)data;
            l->pairs[match].left = s[i];
            l->pairs[match].right = s[i + 1];
            l->pairs[match].count = 0;
            l->n_pairs++;
            if (!hbk__map_add(&l->pair_map, hbk__pair_key(s[i], s[i + 1]), match, l->err)) return false;
        }
        l->pairs[match].count += sign * w->count;
    }
    return true;
}

/* Words as symbols, and the first count of their pairs. */
static bool hbk__spell_words(hbk__learner *l)
{
    hbk_int bytes = 0, at = 0;
    for (hbk_int i = 0; i < l->n_words; i++) bytes += l->words[i].len;
    l->symbols = HBK__NEW(l->alloc, int32_t, bytes, l->err);
    if (!l->symbols) return false;
    for (hbk_int i = 0; i < l->n_words; i++) {
        hbk__counted *w = &l->words[i];
        const char *s = l->text.data + w->at;
        hbk_int n = w->len, step;
        w->at = at;
        for (hbk_int k = 0; k < n; k += step) {
            int32_t cp;
            step = (hbk_int)hbk_utf8_decode(s + k, (size_t)(n - k), &cp);
            l->symbols[at++] = hbk__vocab_find(&l->vocab, s + k, step);
        }
        w->len = at - w->at;
        if (!hbk__count_pairs(l, w, 1)) return false;
    }
    return true;
}

/* Replaces (left, right) by id in every word. */
static bool hbk__apply_merge(hbk__learner *l, int32_t left, int32_t right, int32_t id)
{
    for (hbk_int k = 0; k < l->n_words; k++) {
        hbk__counted *w = &l->words[k];
        int32_t *s = l->symbols + w->at;
        hbk_int i = 0, n = 0;
        while (i + 1 < w->len && (s[i] != left || s[i + 1] != right)) i++;
        if (i + 1 >= w->len) continue;
        if (!hbk__count_pairs(l, w, -1)) return false;
        for (i = 0; i < w->len; i++) {
            bool pair = i + 1 < w->len && s[i] == left && s[i + 1] == right;
            s[n++] = pair ? id : s[i];
            i += pair;
        }
        w->len = n;
        if (!hbk__count_pairs(l, w, 1)) return false;
    }
    return true;
}

/* One piece a step, until the vocabulary is full or nothing is left to join. */
static bool hbk__learn_merges(hbk__learner *l, hbk_int vocab_size)
{
    hbk_text piece, line;
    memset(&piece, 0, sizeof piece);
    piece.alloc = l->alloc;
    line = piece;
    bool ok = true;
    while (ok && l->vocab.n < vocab_size) {
        hbk__pair *best = NULL;
        for (hbk_int i = 0; i < l->n_pairs; i++)
            if (l->pairs[i].count > (best ? best->count : 0)) best = &l->pairs[i];
        if (!best) break; /* every word is one piece */
        int32_t left = best->left, right = best->right;
        hbk_text_clear(&piece);
        hbk_text_add(&piece, hbk__vocab_piece(&l->vocab, left));
        hbk_text_add(&piece, hbk__vocab_piece(&l->vocab, right));
        hbk_text_clear(&line);
        hbk_text_printf(&line, "%s %s", hbk__vocab_piece(&l->vocab, left),
                        hbk__vocab_piece(&l->vocab, right));
        ok = hbk_text_ok(&piece, l->err) && hbk_text_ok(&line, l->err);
        if (!ok) break;
        int32_t id = hbk__vocab_find(&l->vocab, piece.data, (hbk_int)piece.len);
        if (id >= 0 && l->vocab.pieces[id].kind != HBK__PIECE_NORMAL) { /* spells "<s>": never again */
            best->count = INT64_MIN / 2;
            continue;
        }
        if (id < 0) { /* else two ways lead to one piece, and both are merges */
            id = (int32_t)l->vocab.n;
            ok = hbk__vocab_set(&l->vocab, id, piece.data, (hbk_int)piece.len, HBK__PIECE_NORMAL, 0, l->err);
        }
        if (ok && json_array_append_new(l->merges, json_string(line.data)) != 0)
            ok = hbk_fail(l->err, HBK_ERROR_MEMORY, "out of memory: the merges could not grow");
        ok = ok && hbk__apply_merge(l, left, right, id);
    }
    hbk_text_free(&piece);
    hbk_text_free(&line);
    return ok;
}

/* All but vocab and merges. */
static const char *const hbk__trained_json =
    "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":["
    "{\"id\":0,\"content\":\"<unk>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
    "\"normalized\":false,\"special\":true},"
    "{\"id\":1,\"content\":\"<s>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
    "\"normalized\":false,\"special\":true},"
    "{\"id\":2,\"content\":\"</s>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
    "\"normalized\":false,\"special\":true}],"
    "\"normalizer\":null,"
    "\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"\xe2\x96\x81\","
    "\"prepend_scheme\":\"first\",\"split\":true},"
    "\"post_processor\":{\"type\":\"TemplateProcessing\","
    "\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},"
    "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],"
    "\"pair\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}},"
    "{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":1}},{\"Sequence\":{\"id\":\"B\",\"type_id\":1}}],"
    "\"special_tokens\":{\"<s>\":{\"id\":\"<s>\",\"ids\":[1],\"tokens\":[\"<s>\"]}}},"
    "\"decoder\":{\"type\":\"Sequence\",\"decoders\":["
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\"\xe2\x96\x81\"},\"content\":\" \"},"
    "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},"
    "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]},"
    "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":\"<unk>\","
    "\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,\"fuse_unk\":true,"
    "\"byte_fallback\":false,\"ignore_merges\":false,\"vocab\":{},\"merges\":[]}}";

static const char *const hbk__trained_config =
    "{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\",\n  \"bos_token\": \"<s>\",\n"
    "  \"eos_token\": \"</s>\",\n  \"unk_token\": \"<unk>\",\n  \"add_bos_token\": true,\n"
    "  \"add_eos_token\": false,\n  \"clean_up_tokenization_spaces\": false\n}\n";

/* What was learned as the JSON of a tokenizer.json. */
static json_t *hbk__learned_json(const hbk__learner *l, bool all_bytes)
{
    json_t *root = json_loads(hbk__trained_json, 0, NULL), *vocab = json_object();
    json_t *model = json_object_get(root, "model");
    int failed = !root || !vocab;
    for (hbk_int id = 0; id < l->vocab.n && !failed; id++)
        failed |= json_object_set_new(vocab, hbk__vocab_piece(&l->vocab, id), json_integer(id));
    failed |= json_object_set(model, "vocab", vocab);
    failed |= json_object_set(model, "merges", l->merges);
    failed |= json_object_set_new(model, "byte_fallback", json_boolean(all_bytes));
    json_decref(vocab);
    if (!failed) return root;
    json_decref(root);
    hbk_fail(l->err, HBK_ERROR_MEMORY, "out of memory: a vocabulary could not be written down");
    return NULL;
}

/* The JSON as text, to be saved, and as a tokenizer. */
static hbk_tokenizer *hbk__learned_tokenizer(const hbk__learner *l, bool all_bytes)
{
    json_t *root = hbk__learned_json(l, all_bytes);
    char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    hbk_tokenizer *t = text ? hbk__tokenizer_new(l->alloc, l->err) : NULL;
    if (root && !text) hbk_fail(l->err, HBK_ERROR_MEMORY, "out of memory: a vocabulary has no room");
    if (t) {
        hbk_text_add(&t->document, text);
        hbk_text_add(&t->document, "\n");
        t->format = HBK__FORMAT_JSON;
        if (!hbk_text_ok(&t->document, l->err) || !hbk__load_json(t, root, "trained tokenizer", l->err)) {
            hbk_tokenizer_free(t);
            t = NULL;
        }
    }
    if (t) t->eos = 2;
    free(text);
    json_decref(root);
    return t;
}

HBK_DEF hbk_tokenizer *hbk_tokenizer_train(const char *text, size_t n, hbk_int vocab_size, bool all_bytes,
                                           hbk_allocator *alloc, hbk_error *err)
{
    static const char *const special[3] = {"<unk>", "<s>", "</s>"};
    hbk__learner l;
    hbk_text repaired;
    memset(&l, 0, sizeof l);
    memset(&repaired, 0, sizeof repaired);
    l.alloc = l.text.alloc = l.word_map.alloc = l.pair_map.alloc = repaired.alloc = alloc;
    l.err = err;
    hbk__vocab_init(&l.vocab, alloc);
    l.merges = json_array();
    hbk__repair(&repaired, text, n);
    hbk_text_append(&l.text, HBK__SPACE, 3);
    hbk__escape(&l.text, hbk_text_string(&repaired), (hbk_int)repaired.len);
    bool ok = hbk_text_ok(&repaired, err) && hbk_text_ok(&l.text, err);
    hbk_text_free(&repaired);
    if (!l.merges) ok = hbk_fail(err, HBK_ERROR_MEMORY, "out of memory: the merges have no room");
    if (ok && vocab_size > (hbk_int)1 << 24)
        ok = hbk_fail(err, HBK_ERROR_OPTION, "vocab_size %lld is not below 16777216", (long long)vocab_size);
    for (int i = 0; i < 3 && ok; i++)
        ok = hbk__vocab_set(&l.vocab, i, special[i], (hbk_int)strlen(special[i]), HBK__PIECE_CONTROL, 0, err);
    for (int b = 0; b < 256 && all_bytes && ok; b++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", b);
        ok = hbk__vocab_set(&l.vocab, 3 + b, name, 6, HBK__PIECE_BYTE, 0, err);
    }
    ok = ok && hbk__learn_alphabet(&l, vocab_size - l.vocab.n, all_bytes) && hbk__count_words(&l) &&
         hbk__spell_words(&l) && hbk__learn_merges(&l, vocab_size);
    hbk_tokenizer *t = ok ? hbk__learned_tokenizer(&l, all_bytes) : NULL;
    hbk__learner_free(&l);
    return t;
}

/* ---- 7.11 saving */

static bool hbk__copy_file(const char *from, const char *dir, const char *name, hbk_allocator *alloc,
                           hbk_error *err)
{
    char to[512];
    hbk_text bytes;
    memset(&bytes, 0, sizeof bytes);
    bytes.alloc = alloc;
    bool ok = hbk_path(to, dir, name, err) && hbk_file_read(from, HBK__JSON_MAX, &bytes, err) &&
              hbk_file_write(to, hbk_text_string(&bytes), bytes.len, err);
    hbk_text_free(&bytes);
    return ok;
}

HBK_DEF bool hbk_tokenizer_copy(const char *from, const char *to, hbk_allocator *alloc, hbk_error *err)
{
    static const char *const names[] = {
        "tokenizer.json", "tokenizer.model", "tokenizer.bin",      "tokenizer_config.json",
        "vocab.json",     "merges.txt",      "added_tokens.json",  "special_tokens_map.json",
        "chat_template.jinja",               "generation_config.json"};
    char path[512];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!hbk_path(path, from, names[i], err)) return false;
        if (hbk_file_exists(path) && !hbk__copy_file(path, to, names[i], alloc, err)) return false;
    }
    return true;
}

/* What came out of a GGUF becomes a tokenizer.json: the trained one's, with other parts. A NULL among them
   is memory that ran out, which json_object_set_new reports. */

static json_t *hbk__save_added(const hbk_tokenizer *t)
{
    json_t *list = json_array();
    for (hbk_int i = 0; i < t->n_added; i++) {
        int32_t id = t->added[i].id;
        json_array_append_new(list,
                              json_pack("{s:i,s:s,s:b,s:b,s:b,s:b,s:b}", "id", (int)id, "content",
                                        hbk__vocab_piece(&t->vocab, id), "single_word", 0, "lstrip", 0,
                                        "rstrip", 0, "normalized", 0, "special", (int)t->added[i].special));
    }
    return list;
}

static json_t *hbk__save_words(const hbk_tokenizer *t)
{
    json_t *first = NULL, *level;
    if (!t->byte_level) return json_null();
    level = json_pack("{s:s,s:b,s:b,s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1,
                      "use_regex", (int)(t->words == HBK__WORDS_GPT2));
    if (t->words == HBK__WORDS_LLAMA3)
        first = json_pack("{s:s,s:{s:s},s:s,s:b}", "type", "Split", "pattern", "Regex", hbk__llama3_regex,
                          "behavior", "Isolated", "invert", 0);
    if (t->digits) first = json_pack("{s:s,s:b}", "type", "Digits", "individual_digits", 1);
    return first ? json_pack("{s:s,s:[o,o]}", "type", "Sequence", "pretokenizers", first, level) : level;
}

/* The template's sequence [Prepend, Replace], less Prepend; its decoder less Strip; or a ByteLevel. */
static int hbk__save_ends(const hbk_tokenizer *t, json_t *root)
{
    json_t *decoder = json_object_get(root, "decoder"), *steps = json_object_get(decoder, "decoders");
    if (t->byte_level)
        return json_object_set_new(root, "decoder",
                                   json_pack("{s:s,s:b,s:b,s:b}", "type", "ByteLevel", "add_prefix_space", 0,
                                             "trim_offsets", 1, "use_regex", 1));
    json_t *replace =
        json_pack("{s:s,s:{s:s},s:s}", "type", "Replace", "pattern", "String", " ", "content", HBK__SPACE);
    json_t *prepend = json_pack("{s:s,s:s}", "type", "Prepend", "prepend", HBK__SPACE);
    json_t *list =
        t->prefix == HBK__PREFIX_NEVER ? json_pack("[o]", replace) : json_pack("[o,o]", prepend, replace);
    if (t->prefix == HBK__PREFIX_NEVER) {
        json_decref(prepend);
        json_array_remove(steps, json_array_size(steps) - 1);
    }
    return json_object_set_new(root, "normalizer",
                               json_pack("{s:s,s:o}", "type", "Sequence", "normalizers", list));
}

static int hbk__save_bos(const hbk_tokenizer *t, json_t *root)
{
    const char *bos = hbk_tokenizer_piece(t, t->bos);
    if (!bos || !t->adds_bos) return json_object_set_new(root, "post_processor", json_null());
    json_t *all = json_pack("{s:{s:s,s:[i],s:[s]}}", bos, "id", bos, "ids", (int)t->bos, "tokens", bos);
    json_t *begin = json_pack("{s:{s:s,s:i}}", "SpecialToken", "id", bos, "type_id", 0);
    json_t *a = json_pack("{s:{s:s,s:i}}", "Sequence", "id", "A", "type_id", 0);
    json_t *b = json_pack("{s:{s:s,s:i}}", "Sequence", "id", "B", "type_id", 1);
    return json_object_set_new(root, "post_processor",
                               json_pack("{s:s,s:[O,O],s:[o,o,o],s:o}", "type", "TemplateProcessing",
                                         "single", begin, a, "pair", begin, a, b, "special_tokens", all));
}

/* The vocabulary, and the merges in their order: those of pieces with spaces cannot be written, nor apply. */
static int hbk__save_model(const hbk_tokenizer *t, json_t *model, const hbk__rule *rules, hbk_int n)
{
    json_t *vocab = json_object(), *merges = json_array();
    const char *unk = hbk_tokenizer_piece(t, t->unk);
    int failed = 0;
    for (hbk_int id = 0; id < t->vocab.n && !failed; id++)
        failed |= json_object_set_new(vocab, hbk__vocab_piece(&t->vocab, id), json_integer(id));
    for (hbk_int i = 0; i < n && !failed; i++) {
        const char *a = hbk__vocab_piece(&t->vocab, rules[i].left);
        const char *b = hbk__vocab_piece(&t->vocab, rules[i].right);
        if (!strchr(a, ' ') && !strchr(b, ' '))
            failed |= json_array_append_new(merges, json_sprintf("%s %s", a, b));
    }
    failed |= json_object_set_new(model, "vocab", vocab) | json_object_set_new(model, "merges", merges);
    failed |= json_object_set_new(model, "byte_fallback", json_boolean(t->byte_fallback));
    failed |= json_object_set_new(model, "ignore_merges", json_boolean(t->ignore_merges));
    failed |= json_object_set_new(model, "fuse_unk", json_boolean(t->fuse_unk));
    return failed | json_object_set_new(model, "unk_token", unk ? json_string(unk) : json_null());
}

static bool hbk__save_document(const hbk_tokenizer *t, const char *dir, hbk_error *err)
{
    char path[512];
    if (t->collapse || t->resplits || t->letters.n || t->words == HBK__WORDS_DEFAULT)
        return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, t->file, 0,
                           "its vocabulary %s, which no tokenizer.json of LLaMA's family says: save as GGUF",
                           t->collapse     ? "removes extra spaces"
                           : t->byte_level ? "cuts words by llama.cpp's default"
                                           : "has unused pieces or characters without a piece");
    for (hbk_int id = 0; id < t->vocab.n; id++) {
        const char *piece = hbk__vocab_piece(&t->vocab, id);
        hbk_int first = hbk__vocab_find(&t->vocab, piece, t->vocab.pieces[id].len);
        if (t->vocab.pieces[id].kind != HBK__PIECE_NONE && first != id)
            return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, t->file, 0,
                               "ids %lld and %lld both have the piece \"%.40s\", and tokenizer.json has one "
                               "id for a piece: save as GGUF",
                               (long long)first, (long long)id, piece);
    }
    hbk_int n;
    hbk__rule *rules = hbk__tokenizer_rules(t, &n, err);
    if (!rules) return false;
    json_t *root = json_loads(hbk__trained_json, 0, NULL);
    int failed = hbk__save_model(t, json_object_get(root, "model"), rules, n);
    hbk_free(t->alloc, rules);
    failed |= json_object_set_new(root, "added_tokens", hbk__save_added(t));
    failed |= json_object_set_new(root, "pre_tokenizer", hbk__save_words(t));
    failed |= hbk__save_ends(t, root) | hbk__save_bos(t, root);
    json_t *config = json_loads(hbk__trained_config, 0, NULL);
    static const char *const names[3] = {"bos_token", "eos_token", "unk_token"};
    const int32_t ids[3] = {t->bos, t->eos, t->unk};
    for (int i = 0; i < 3; i++) {
        const char *piece = hbk_tokenizer_piece(t, ids[i]);
        failed |= json_object_set_new(config, names[i], piece ? json_string(piece) : json_null());
    }
    failed |= json_object_set_new(config, "add_bos_token", json_boolean(t->adds_bos));
    bool ok =
        !failed || hbk_fail(err, HBK_ERROR_MEMORY, "out of memory: a vocabulary could not be written down");
    ok = ok && hbk_path(path, dir, "tokenizer.json", err) && hbk_json_write(path, root, err) &&
         hbk_path(path, dir, "tokenizer_config.json", err) && hbk_json_write(path, config, err);
    json_decref(root);
    json_decref(config);
    return ok;
}

HBK_DEF bool hbk_tokenizer_save(const hbk_tokenizer *t, const char *dir, hbk_error *err)
{
    char path[512];
    if (!hbk_dir_make(dir, err)) return false;
    if (t->document.len) {
        const char *config = hbk__trained_config;
        return hbk_path(path, dir, "tokenizer.json", err) &&
               hbk_file_write(path, t->document.data, t->document.len, err) &&
               hbk_path(path, dir, "tokenizer_config.json", err) &&
               hbk_file_write(path, config, strlen(config), err);
    }
    if (t->format == HBK__FORMAT_GGUF) return hbk__save_document(t, dir, err);
    if (!hbk__copy_file(t->file, dir, hbk__format_files[t->format], t->alloc, err)) return false;
    if (t->folder[0] && !hbk_tokenizer_copy(t->folder, dir, t->alloc, err)) return false;
    if (t->format != HBK__FORMAT_BIN) return true;
    hbk_error no_json; /* for transformers, which does not know tokenizer.bin; not every one can be said so */
    if (!hbk_path(path, dir, "tokenizer.json", err)) return false;
    if (hbk_file_exists(path) || hbk__save_document(t, dir, &no_json)) return true;
    if (no_json.code == HBK_ERROR_UNSUPPORTED) return true;
    if (err) *err = no_json;
    return false;
}

/* ---- 7.11 chat templates, as the text that files hold; chapter 14 tells which they are */

/* The source of the chat template that a model folder comes with; nothing is appended where it has none.
   Of several, "default" counts, else the first. */
static bool hbk__chat_template(const char *dir, hbk_text *out, hbk_error *err)
{
    char path[512];
    if (!hbk_path(path, dir, "chat_template.jinja", err)) return false;
    if (hbk_file_exists(path)) return hbk_file_read(path, (size_t)4 << 20, out, err);
    if (!hbk_path(path, dir, "tokenizer_config.json", err)) return false;
    if (!hbk_file_exists(path)) return true;
    json_t *root = hbk_json_read(path, err);
    if (!root) return false;
    const json_t *chat = json_object_get(root, "chat_template");
    const char *source = json_string_value(chat);
    for (size_t i = 0; i < json_array_size(chat); i++) { /* 0 unless it is an array */
        const json_t *row = json_array_get(chat, i);
        const char *name = json_string_value(json_object_get(row, "name"));
        if (i == 0 || (name && strcmp(name, "default") == 0))
            source = json_string_value(json_object_get(row, "template"));
    }
    hbk_text_add(out, source);
    json_decref(root);
    return hbk_text_ok(out, err);
}

/* The same, where the model is a GGUF file. */
static bool hbk__gguf_chat_template(const char *path, hbk_text *out, hbk_error *err)
{
    const char *source = "";
    size_t n = 0;
    hbk_gguf *g = hbk_gguf_open(path, out->alloc, err);
    if (!g) return false;
    bool ok = hbk_gguf_string(g, "tokenizer.chat_template", &source, &n, err);
    if (ok) hbk_text_append(out, source, n);
    hbk_gguf_close(g);
    return ok && hbk_text_ok(out, err);
}

/* ==== 8  MATRICES ============================================================

   Nearly all time is spent in three products of activations with a weight W (out, in):

       y  (N, out) += x  (N, in)  W^T      forward
       dx (N, in)  += dy (N, out) W        backward to the input
       dW (out,in) += dy^T x               backward to the weight

   They all pass through this door, whatever type W is stored in. Many rows: OpenBLAS, which wants reals, so
   other types are unpacked a panel of W at a time into a scratch that stays in cache, and used at once; with
   AVX-512 loops of our own (8.3), which unpack as they go and may multiply in bf16. Few rows (a decoding
   step): W is read from memory once and that is the cost, so other loops (8.2) take it as it lies; OpenBLAS
   would first copy W into its own layout.
   dW is only ever asked for weights of reals: a weight in any other type is trained through an adapter,
   which needs dx alone.

   HBK_NO_BLAS replaces OpenBLAS by the loop that every textbook has: the yardstick for all else. */

#ifndef HBK__WIDEST
#define HBK__WIDEST 3 /* tests of one processor's loops on another: 0 plain, 1 AVX2, 2 AVX-512, 3 its bf16 */
#endif

/* Loops below are compiled for several generations of x86 and chosen when the program loads. A product and
   the sum after it may be one instruction there, faster and more exact; by itself -std=c11 forbids it. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC__) &&                 \
    !defined(HBK_NO_BLAS) && HBK__WIDEST > 0
#if HBK__WIDEST == 1 && __GNUC__ >= 12
#define HBK__CLONES                                                                                          \
    __attribute__((target_clones("arch=x86-64-v3", "default"), optimize("fp-contract=fast")))
#elif HBK__WIDEST == 1
#define HBK__CLONES __attribute__((target_clones("avx2", "default")))
#elif __GNUC__ >= 12
#define HBK__CLONES                                                                                          \
    __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"),                             \
                   optimize("fp-contract=fast")))
#else
#define HBK__CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#else
#define HBK__CLONES
#endif
#if defined(__x86_64__) && defined(__GNUC__) && !defined(HBK_NO_BLAS) && !defined(HBK_REAL_DOUBLE)
#define HBK__X86 /* some loops are also written in the words of these processors; all with FMA have F16C */
#define HBK__HAS_AVX2()                                                                                      \
    (HBK__WIDEST >= 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#define HBK__HAS_AVX512() (HBK__WIDEST >= 2 && HBK__HAS_AVX2() && __builtin_cpu_supports("avx512bw"))
#define HBK__AVX512       __attribute__((target("avx512f,avx512bw,avx2,fma,f16c")))
#define HBK__AVX2         __attribute__((target("avx2,fma,f16c")))
#if defined(__clang__) ? __clang_major__ >= 14 : __GNUC__ >= 12
#define HBK__HAS_BF16() (HBK__WIDEST >= 3 && HBK__HAS_AVX512() && __builtin_cpu_supports("avx512bf16"))
#define HBK__BF16       __attribute__((target("avx512f,avx512bw,avx512bf16,avx2,fma,f16c")))
#endif
#endif
#if defined(__GNUC__) || defined(__clang__)
#define HBK__INLINE static inline __attribute__((always_inline)) /* into each of these generations */
#else
#define HBK__INLINE static inline
#endif
#define HBK__SIMD _Pragma("omp simd")
/* The address so many bytes ahead, which may lie behind the block: made of a number, as no pointer may. */
#define HBK__AHEAD(p, bytes) ((const char *)((uintptr_t)(p) + (uintptr_t)(bytes)))
#ifdef __clang__
#define HBK__UNROLL _Pragma("clang loop unroll(full)")
#else
#define HBK__UNROLL _Pragma("GCC unroll 16") /* sums in an array stay in registers only so */
#endif

HBK_DEF const char *hbk_dtype_name(hbk_dtype t)
{
    switch (t) {
#define HBK_X(name, text, gguf, block, bytes)                                                                \
    case HBK_##name: return #text;
        HBK_DTYPES(HBK_X)
#undef HBK_X
    case HBK_DTYPE_COUNT: break;
    }
    return "?";
}

HBK_DEF hbk_int hbk_dtype_block(hbk_dtype t)
{
#define HBK_X(name, text, gguf, block, bytes) block,
    static const hbk_int blocks[] = {HBK_DTYPES(HBK_X)};
#undef HBK_X
    return blocks[t];
}

HBK_DEF size_t hbk_dtype_size(hbk_dtype t, hbk_int n)
{
#define HBK_X(name, text, gguf, block, bytes) bytes,
    static const size_t sizes[] = {HBK_DTYPES(HBK_X)};
#undef HBK_X
    HBK_ASSERT(n >= 0 && n % hbk_dtype_block(t) == 0);
    return (size_t)(n / hbk_dtype_block(t)) * sizes[t];
}

HBK_DEF bool hbk_dtype_packs(hbk_dtype t)
{
    return t == HBK_F32 || t == HBK_F16 || t == HBK_BF16 || t == HBK_F64 || t == HBK_Q8_0;
}

static uint32_t hbk__bits_of_f32(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static float hbk__f32_of_bf16(uint16_t h)
{
    return hbk__f32_of_bits((uint32_t)h << 16);
}

static uint16_t hbk__bf16_of_f32(float f)
{
    uint32_t u = hbk__bits_of_f32(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40); /* NaN stays a quiet NaN */
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

/* Half: 1 sign, 5 exponent (bias 15), 10 fraction bits. */
static float hbk__f32_of_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
    uint32_t special = rest >= 0x7c00 ? 0x7f800000u : 0; /* the exponent of infinities and NaN */
    /* Shifted into place, the number is 2^112 too small, subnormal halves included: one product mends it. */
    float scaled = hbk__f32_of_bits(rest << 13) * hbk__f32_of_bits(0x77800000u);
    return hbk__f32_of_bits(sign | special | hbk__bits_of_f32(scaled));
}

static uint16_t hbk__f16_of_f32(float f)
{
    uint32_t u = hbk__bits_of_f32(f), sign = (u >> 16) & 0x8000, abs = u & 0x7fffffffu;
    if (abs > 0x7f800000u) return (uint16_t)(sign | 0x7e00);  /* NaN */
    if (abs >= 0x477ff000u) return (uint16_t)(sign | 0x7c00); /* 65520 and above round to infinity */
    if (abs < 0x38800000u) { /* subnormal: let the float adder round at the last half bit, 2^-24 */
        float magic = hbk__f32_of_bits(0x3f000000u); /* 0.5, whose last bit is 2^-24 */
        return (uint16_t)(sign | (hbk__bits_of_f32(hbk__f32_of_bits(abs) + magic) - 0x3f000000u));
    }
    abs += 0xfff + ((abs >> 13) & 1);
    return (uint16_t)(sign | ((abs - 0x38000000u) >> 13));
}

/* 8.1  Unpacking: hbk__unpack_TYPE turns n elements at p, of any alignment, into reals.

   A block of a Q type is small integers q that share one or two halves d, m: y = d q, or y = d q + m. The K
   types cut 256 elements into sub-blocks whose own scales are small integers again: y = d s q - dmin t. All
   products have fewer than 24 bits and so are exact: neither their order nor a fused addition matters, and
   the result is that of ggml, whose ggml-common.h defines the layouts. */

static void hbk__unpack_f32(hbk_real *out, const unsigned char *p, hbk_int n)
{
    HBK__SIMD
    for (hbk_int i = 0; i < n; i++) {
        float f;
        memcpy(&f, p + 4 * i, 4);
        out[i] = (hbk_real)f;
    }
}

static void hbk__unpack_f64(hbk_real *out, const unsigned char *p, hbk_int n)
{
    HBK__SIMD
    for (hbk_int i = 0; i < n; i++) {
        double f;
        memcpy(&f, p + 8 * i, 8);
        out[i] = (hbk_real)f;
    }
}

HBK__CLONES
static void hbk__unpack_f16(hbk_real *out, const unsigned char *p, hbk_int n)
{
    HBK__SIMD
    for (hbk_int i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, p + 2 * i, 2);
        out[i] = (hbk_real)hbk__f32_of_f16(h);
    }
}

HBK__CLONES
static void hbk__unpack_bf16(hbk_real *out, const unsigned char *p, hbk_int n)
{
    HBK__SIMD
    for (hbk_int i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, p + 2 * i, 2);
        out[i] = (hbk_real)hbk__f32_of_bf16(h);
    }
}

/* The bare integers: their scales are the matrix's. */
HBK__CLONES
static void hbk__unpack_int8(hbk_real *out, const unsigned char *p, hbk_int n)
{
    HBK__SIMD
    for (hbk_int i = 0; i < n; i++) out[i] = (hbk_real)(int8_t)p[i];
}

static float hbk__half_at(const unsigned char *p)
{
    return hbk__f32_of_f16((uint16_t)(p[0] | p[1] << 8));
}

/* d; i8 q[32] */
HBK__CLONES
static void hbk__unpack_q8_0(hbk_real *out, const unsigned char *p, hbk_int n)
{
    for (; n > 0; n -= 32, p += 34, out += 32) {
        float d = hbk__half_at(p);
        HBK__SIMD
        for (int j = 0; j < 32; j++) out[j] = (hbk_real)(d * (float)(int8_t)p[2 + j]);
    }
}

/* d; m in the _1 types; u32 of fifth bits in the 5 types; 16 bytes whose low nibbles are elements 0 .. 15
   and whose high nibbles 16 .. 31. Without m, q is around 0. */
HBK__INLINE void hbk__unpack_nibbles(hbk_real *out, const unsigned char *p, hbk_int n, bool fifth, bool min)
{
    int zero = min ? 0 : fifth ? 16 : 8;
    for (; n > 0; n -= 32, p += 16, out += 32) {
        float d = hbk__half_at(p), m = -0.0f; /* adding that changes nothing, not even the sign of a zero */
        uint32_t high = 0;
        p += 2;
        if (min) m = hbk__half_at(p), p += 2;
        if (fifth) memcpy(&high, p, 4), p += 4;
        HBK__SIMD
        for (int j = 0; j < 16; j++) {
            int low = (p[j] & 15) | (int)(high >> j & 1) << 4;
            int top = p[j] >> 4 | (int)(high >> (j + 16) & 1) << 4;
            out[j] = (hbk_real)(d * (float)(low - zero) + m);
            out[j + 16] = (hbk_real)(d * (float)(top - zero) + m);
        }
    }
}

HBK__CLONES
static void hbk__unpack_q4_0(hbk_real *out, const unsigned char *p, hbk_int n)
{
    hbk__unpack_nibbles(out, p, n, false, false);
}

HBK__CLONES
static void hbk__unpack_q4_1(hbk_real *out, const unsigned char *p, hbk_int n)
{
    hbk__unpack_nibbles(out, p, n, false, true);
}

HBK__CLONES
static void hbk__unpack_q5_0(hbk_real *out, const unsigned char *p, hbk_int n)
{
    hbk__unpack_nibbles(out, p, n, true, false);
}

HBK__CLONES
static void hbk__unpack_q5_1(hbk_real *out, const unsigned char *p, hbk_int n)
{
    hbk__unpack_nibbles(out, p, n, true, true);
}

/* 16 sub-blocks of 16 elements: y = a q - b. */
HBK__INLINE void hbk__scale_16(hbk_real *out, const int8_t q[256], const float a[16], const float b[16])
{
    for (int k = 0; k < 16; k++, q += 16, out += 16) {
        float ak = a[k], bk = b[k];
        HBK__SIMD
        for (int l = 0; l < 16; l++) out[l] = (hbk_real)(ak * (float)q[l] - bk);
    }
}

/* u8 scales[16] (low nibble s, high t); 2-bit q[64]; d; dmin. In each half of 128, byte l of 32 holds, two
   bits each, elements l, l + 32, l + 64, l + 96. */
HBK__CLONES
static void hbk__unpack_q2_k(hbk_real *out, const unsigned char *p, hbk_int n)
{
    for (; n > 0; n -= 256, p += 84, out += 256) {
        float a[16], b[16], d = hbk__half_at(p + 80), dmin = hbk__half_at(p + 82);
        int8_t q[256];
        for (int k = 0; k < 16; k++) {
            a[k] = d * (float)(p[k] & 15);
            b[k] = dmin * (float)(p[k] >> 4);
        }
        for (int half = 0; half < 2; half++) {
            const unsigned char *two = p + 16 + 32 * half;
            int8_t *to = q + 128 * half;
            HBK__SIMD
            for (int l = 0; l < 32; l++) {
                to[l] = (int8_t)(two[l] & 3);
                to[l + 32] = (int8_t)(two[l] >> 2 & 3);
                to[l + 64] = (int8_t)(two[l] >> 4 & 3);
                to[l + 96] = (int8_t)(two[l] >> 6);
            }
        }
        hbk__scale_16(out, q, a, b);
    }
}

/* third bits[32]; 2-bit q[64]; 6-bit scales in 12 bytes; d. Elements lie as in Q2_K; byte l of the third bits
   serves l, l + 32 ... l + 224. Scales: low four bits in 8 bytes of nibbles, high two in 4 bytes. */
HBK__CLONES
static void hbk__unpack_q3_k(hbk_real *out, const unsigned char *p, hbk_int n)
{
    static const float zero[16] = {0};
    for (; n > 0; n -= 256, p += 110, out += 256) {
        const unsigned char *s = p + 96;
        float a[16], d = hbk__half_at(p + 108);
        int8_t q[256];
        for (int k = 0; k < 16; k++)
            a[k] = d * (float)(((s[k % 8] >> k / 8 * 4 & 15) | (s[8 + k % 4] >> k / 4 * 2 & 3) << 4) - 32);
        for (int half = 0; half < 2; half++) {
            const unsigned char *two = p + 32 + 32 * half;
            int8_t *to = q + 128 * half;
            HBK__SIMD
            for (int l = 0; l < 32; l++) {
                int third = p[l] >> 4 * half;
                to[l] = (int8_t)((two[l] & 3) + (third & 1) * 4 - 4);
                to[l + 32] = (int8_t)((two[l] >> 2 & 3) + (third >> 1 & 1) * 4 - 4);
                to[l + 64] = (int8_t)((two[l] >> 4 & 3) + (third >> 2 & 1) * 4 - 4);
                to[l + 96] = (int8_t)((two[l] >> 6) + (third >> 3 & 1) * 4 - 4);
            }
        }
        hbk__scale_16(out, q, a, zero);
    }
}

/* d; dmin; 8 pairs (s, t) of 6 bits in 12 bytes; in Q5_K 32 bytes of fifth bits; 128 bytes of nibbles. Each
   32 bytes hold 32 elements of one sub-block in their low nibbles, and of the next in their high ones. */
HBK__INLINE void hbk__unpack_k(hbk_real *out, const unsigned char *p, hbk_int n, bool fifth)
{
    for (; n > 0; n -= 256, p += fifth ? 176 : 144) {
        const unsigned char *s = p + 4, *high = p + 16, *q = p + (fifth ? 48 : 16);
        float a[8], b[8], d = hbk__half_at(p), dmin = hbk__half_at(p + 2);
        for (int j = 0; j < 4; j++) {
            a[j] = d * (float)(s[j] & 63);
            b[j] = dmin * (float)(s[j + 4] & 63);
            a[j + 4] = d * (float)((s[j + 8] & 15) | s[j] >> 6 << 4);
            b[j + 4] = dmin * (float)(s[j + 8] >> 4 | s[j + 4] >> 6 << 4);
        }
        for (int k = 0; k < 8; k += 2, q += 32, out += 64) {
            float a0 = a[k], b0 = b[k], a1 = a[k + 1], b1 = b[k + 1];
            HBK__SIMD
            for (int l = 0; l < 32; l++) {
                int low = (q[l] & 15) | (fifth ? (high[l] >> k & 1) << 4 : 0);
                int top = q[l] >> 4 | (fifth ? (high[l] >> (k + 1) & 1) << 4 : 0);
                out[l] = (hbk_real)(a0 * (float)low - b0);
                out[l + 32] = (hbk_real)(a1 * (float)top - b1);
            }
        }
    }
}

HBK__CLONES
static void hbk__unpack_q4_k(hbk_real *out, const unsigned char *p, hbk_int n)
{
    hbk__unpack_k(out, p, n, false);
}

HBK__CLONES
static void hbk__unpack_q5_k(hbk_real *out, const unsigned char *p, hbk_int n)
{
    hbk__unpack_k(out, p, n, true);
}

/* low four bits[128]; high two[64]; i8 scales[16]; d. In each half of 128, 64 bytes of nibbles: low ones are
   elements 0 .. 63, high ones 64 .. 127; a byte of high bits serves elements l, l + 32, l + 64, l + 96. */
HBK__CLONES
static void hbk__unpack_q6_k(hbk_real *out, const unsigned char *p, hbk_int n)
{
    static const float zero[16] = {0};
    for (; n > 0; n -= 256, p += 210, out += 256) {
        float a[16], d = hbk__half_at(p + 208);
        int8_t q[256];
        for (int k = 0; k < 16; k++) a[k] = d * (float)(int8_t)p[192 + k];
        for (int half = 0; half < 2; half++) {
            const unsigned char *four = p + 64 * half, *two = p + 128 + 32 * half;
            int8_t *to = q + 128 * half;
            HBK__SIMD
            for (int l = 0; l < 32; l++) {
                to[l] = (int8_t)(((four[l] & 15) | (two[l] & 3) << 4) - 32);
                to[l + 32] = (int8_t)(((four[l + 32] & 15) | (two[l] >> 2 & 3) << 4) - 32);
                to[l + 64] = (int8_t)((four[l] >> 4 | (two[l] >> 4 & 3) << 4) - 32);
                to[l + 96] = (int8_t)((four[l + 32] >> 4 | (two[l] >> 6) << 4) - 32);
            }
        }
        hbk__scale_16(out, q, a, zero);
    }
}

/* n elements of type t at `in`, of any alignment, as reals. */
static void hbk__unpack(hbk_real *out, hbk_dtype t, const void *in, hbk_int n)
{
    HBK_ASSERT(n % hbk_dtype_block(t) == 0);
    if (t == HBK_REAL) {
        memcpy(out, in, (size_t)n * sizeof *out);
        return;
    }
    switch (t) {
#define HBK_X(name, text, gguf, block, bytes)                                                                \
    case HBK_##name: hbk__unpack_##text(out, (const unsigned char *)in, n); break;
        HBK_DTYPES(HBK_X)
#undef HBK_X
    case HBK_DTYPE_COUNT: break;
    }
}

static const void *hbk__row(const hbk_matrix *w, hbk_int row)
{
    return (const char *)w->data + (size_t)row * hbk_dtype_size(w->dtype, w->cols);
}

/* Elements at .. at+n-1 of w, counted through all rows; whole blocks. */
static void hbk__unpack_part(hbk_real *out, const hbk_matrix *w, hbk_int at, hbk_int n)
{
    hbk__unpack(out, w->dtype, (const char *)w->data + hbk_dtype_size(w->dtype, at), n);
    for (hbk_int i = 0; w->dtype == HBK_INT8 && i < n;) { /* each group's scale */
        hbk_int group = (at + i) / w->group, end = HBK__MIN((group + 1) * w->group - at, n);
        float scale;
        memcpy(&scale, (const char *)w->scales + 4 * group, 4);
        for (; i < end; i++) out[i] = (hbk_real)((float)out[i] * scale);
    }
}

HBK_DEF void hbk_matrix_unpack(hbk_real *out, const hbk_matrix *w, hbk_int first, hbk_int n)
{
    HBK_ASSERT(first >= 0 && n >= 0 && first + n <= w->rows && w->cols % hbk_dtype_block(w->dtype) == 0);
#ifdef _OPENMP
#pragma omp parallel for schedule(static) if (n * w->cols > 50000)
#endif
    for (hbk_int row = first; row < first + n; row++)
        hbk__unpack_part(out + (row - first) * w->cols, w, row * w->cols, w->cols);
}

/* A block of Q8_0: d = max |x| / 127, q = x / d with d as it was before it became a half. */
static void hbk__pack_q8_0(unsigned char *p, const hbk_real *x)
{
    float most = 0;
    for (int j = 0; j < 32; j++) most = HBK__MAX(most, fabsf((float)x[j]));
    float d = most / 127, inverse = d != 0 ? 1 / d : 0;
    uint16_t h = hbk__f16_of_f32(d);
    p[0] = (unsigned char)(h & 255);
    p[1] = (unsigned char)(h >> 8);
    for (int j = 0; j < 32; j++) {
        float q = roundf((float)x[j] * inverse);
        p[2 + j] = (unsigned char)(fabsf(q) <= 127 ? (int8_t)q : 0); /* beyond: 1 / d overflowed, or a NaN */
    }
}

HBK_DEF void hbk_pack(void *out, hbk_dtype t, const hbk_real *x, hbk_int n)
{
    char *p = (char *)out;
    HBK_ASSERT(hbk_dtype_packs(t) && n % hbk_dtype_block(t) == 0);
    for (hbk_int i = 0; t == HBK_Q8_0 && i < n; i += 32)
        hbk__pack_q8_0((unsigned char *)out + hbk_dtype_size(t, i), x + i);
    for (hbk_int i = 0; t != HBK_Q8_0 && i < n; i++) {
        float f = (float)x[i];
        double d = (double)x[i];
        uint16_t h = t == HBK_BF16 ? hbk__bf16_of_f32(f) : t == HBK_F16 ? hbk__f16_of_f32(f) : 0;
        if (t == HBK_F32)
            memcpy(p + 4 * i, &f, 4);
        else if (t == HBK_F64)
            memcpy(p + 8 * i, &d, 8);
        else
            memcpy(p + 2 * i, &h, 2);
    }
}

/* c (M, N) = alpha op(a) op(b) + beta c, row-major; ta: a is stored (K, M), tb: b is stored (N, K). */
#ifdef HBK_NO_BLAS
static void hbk__gemm(bool ta, bool tb, hbk_int M, hbk_int N, hbk_int K, hbk_real alpha, const hbk_real *a,
                      hbk_int lda, const hbk_real *b, hbk_int ldb, hbk_real beta, hbk_real *c, hbk_int ldc)
{
#ifdef _OPENMP
#pragma omp parallel for if (M * N * K > 100000)
#endif
    for (hbk_int i = 0; i < M; i++)
        for (hbk_int j = 0; j < N; j++) {
            double sum = 0;
            for (hbk_int k = 0; k < K; k++)
                sum += (double)(ta ? a[k * lda + i] : a[i * lda + k]) *
                       (double)(tb ? b[j * ldb + k] : b[k * ldb + j]);
            c[i * ldc + j] = alpha * (hbk_real)sum + (beta != 0 ? beta * c[i * ldc + j] : 0);
        }
}
#else
static void hbk__gemm(bool ta, bool tb, hbk_int M, hbk_int N, hbk_int K, hbk_real alpha, const hbk_real *a,
                      hbk_int lda, const hbk_real *b, hbk_int ldb, hbk_real beta, hbk_real *c, hbk_int ldc)
{
    if (M == 0 || N == 0) return;
#ifdef HBK_REAL_DOUBLE
    cblas_dgemm
#else
    cblas_sgemm
#endif
        (CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, (blasint)M,
         (blasint)N, (blasint)K, alpha, a, (blasint)lda, b, (blasint)ldb, beta, c, (blasint)ldc);
}
#endif

/* 8.2  A few rows. OpenBLAS copies W into a layout of its own, which pays when many rows of x use it. With a
   few rows W is taken as it lies, and read from memory once.

   With one to four rows the memory is all that counts. It is fastest when W is read from its beginning to its
   end: one row of W after another, dotted in the type that it is stored in.

   With more rows the copy is of x instead: sixteen rows become the lanes of one vector for each column. A
   number of W, spread over all lanes, then meets sixteen rows in one instruction; eight rows of W make eight
   sums that stay in registers, and nothing has to be summed across lanes. Meanwhile the eight rows after them
   are asked for, a line every few instructions. Products of (1536, 576) on two cores of a Zen 4: 180 GFLOP/s
   with 16 rows of x, where the memory gives no more, and 200 with 64; OpenBLAS reaches 75 and 150. Held to
   the loops for AVX2, 16 texts of a model of 135M decode 1.5 times as fast as by the plain ones. Up to 64
   rows are taken so on processors for which the loop is written, as long as their lanes fit into the panel;
   on others dots serve up to 8 rows. */

HBK__CLONES
static hbk_real hbk__dot(const hbk_real *x, const hbk_real *w, hbk_int n)
{
    hbk_real s = 0;
#pragma omp simd reduction(+ : s)
    for (hbk_int i = 0; i < n; i++) s += x[i] * w[i];
    return s;
}

HBK__CLONES
static hbk_real hbk__dot_bf16(const hbk_real *x, const uint16_t *w, hbk_int n)
{
    hbk_real s = 0;
#pragma omp simd reduction(+ : s)
    for (hbk_int i = 0; i < n; i++) s += x[i] * (hbk_real)hbk__f32_of_bf16(w[i]);
    return s;
}

/* A row of q8_0 (or of q4_0): sum over blocks of d sum_j q_j x_j. The plain loop; what follows is the same in
   the words of the processor, for gcc gives these conversions a third of the speed. */
static hbk_real hbk__dot_blocks(const hbk_real *x, const unsigned char *w, hbk_int n, bool q8)
{
    hbk_real sum = 0;
    for (; n > 0; n -= 32, x += 32, w += q8 ? 34 : 18) {
        hbk_real s = 0;
        const unsigned char *q = w + 2;
        for (int j = 0; j < 16; j++)
            s += x[j] * (hbk_real)(q8 ? (int8_t)q[j] : (q[j] & 15) - 8) +
                 x[j + 16] * (hbk_real)(q8 ? (int8_t)q[j + 16] : (q[j] >> 4) - 8);
        sum += (hbk_real)hbk__half_at(w) * s;
    }
    return sum;
}

#ifdef HBK__X86
HBK__AVX2
static inline float hbk__sum_lanes(__m256 x)
{
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

/* Sixteen numbers as floats. Without a mask g++ warns that its own header begins with an undefined vector. */
#define HBK__FLOATS(q) _mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, q))

/* q4_0: four bits pick their value, -8 .. 7, from the lanes of `sixteen`. W is asked for 2 KB ahead, and so
   that it need not stay: else it would push x out of the first cache, 22 KB of it with 5632 columns, where
   q8_0 is 1.3 times as fast for that. */
HBK__AVX512
static float hbk__dot_blocks_avx512(const float *x, const unsigned char *w, hbk_int n, bool q8)
{
    __m512 sum = _mm512_setzero_ps();
    __m512 sixteen = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    for (; n > 0; n -= 32, x += 32, w += q8 ? 34 : 18) {
        __m128i q = _mm_loadu_si128((const __m128i *)(const void *)(w + 2));
        __m512i bits = _mm512_maskz_cvtepu8_epi32(0xffff, q);
        __m512 low, high;
        _mm_prefetch(HBK__AHEAD(w, 2048), _MM_HINT_NTA);
        if (q8) {
            low = HBK__FLOATS(q);
            high = HBK__FLOATS(_mm_loadu_si128((const __m128i *)(const void *)(w + 18)));
        } else {
            low = _mm512_maskz_permutexvar_ps(0xffff, bits, sixteen);
            high = _mm512_maskz_permutexvar_ps(0xffff, _mm512_maskz_srli_epi32(0xffff, bits, 4), sixteen);
        }
        __m512 s = _mm512_mul_ps(low, _mm512_loadu_ps(x));
        s = _mm512_fmadd_ps(high, _mm512_loadu_ps(x + 16), s);
        sum = _mm512_fmadd_ps(s, _mm512_set1_ps(_cvtsh_ss((unsigned short)(w[0] | w[1] << 8))), sum);
    }
    float lanes[16];
    _mm512_storeu_ps(lanes, sum);
    return hbk__sum_lanes(_mm256_add_ps(_mm256_loadu_ps(lanes), _mm256_loadu_ps(lanes + 8)));
}

/* The first n of sixteen lanes, as a mask. */
static inline unsigned hbk__first_lanes(hbk_int n)
{
    return n >= 16 ? 0xffff : n > 0 ? (1u << n) - 1 : 0;
}

/* A row of halves, which gcc converts bit by bit: here decoding is 2.2 times as fast. */
HBK__AVX512
static float hbk__dot_f16_avx512(const float *x, const unsigned char *w, hbk_int n)
{
    __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (hbk_int i = 0; i < n; i += 16) {
        unsigned char last[32] = {0};
        __mmask16 in = (__mmask16)hbk__first_lanes(n - i);
        if (n - i < 16) memcpy(last, w + 2 * i, (size_t)(2 * (n - i)));
        __m256i h = _mm256_loadu_si256((const __m256i *)(const void *)(n - i < 16 ? last : w + 2 * i));
        __m512 *s = &sum[i / 16 % 2];
        *s = _mm512_fmadd_ps(_mm512_maskz_cvtph_ps(0xffff, h), _mm512_maskz_loadu_ps(in, x + i), *s);
    }
    float lanes[16];
    _mm512_storeu_ps(lanes, _mm512_add_ps(sum[0], sum[1]));
    return hbk__sum_lanes(_mm256_add_ps(_mm256_loadu_ps(lanes), _mm256_loadu_ps(lanes + 8)));
}

/* Elements 0 .. 15 of a block, or 16 .. 31, as signed bytes. */
HBK__AVX2
static inline __m128i hbk__block_q(const unsigned char *w, bool q8, bool high)
{
    __m128i q = _mm_loadu_si128((const __m128i *)(const void *)(w + (q8 && high ? 18 : 2)));
    if (q8) return q;
    if (high) q = _mm_srli_epi16(q, 4);
    return _mm_sub_epi8(_mm_and_si128(q, _mm_set1_epi8(15)), _mm_set1_epi8(8));
}

/* Of a model of 135M this decodes q8_0 seven times as fast as the plain loop. */
HBK__AVX2
static float hbk__dot_blocks_avx2(const float *x, const unsigned char *w, hbk_int n, bool q8)
{
    __m256 sum = _mm256_setzero_ps();
    for (; n > 0; n -= 32, x += 32, w += q8 ? 34 : 18) {
        __m256 s[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
        HBK__UNROLL
        for (int half = 0; half < 2; half++) {
            __m128i q = hbk__block_q(w, q8, half != 0);
            __m256 a = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q));
            __m256 b = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(q, 8)));
            s[0] = _mm256_fmadd_ps(a, _mm256_loadu_ps(x + 16 * half), s[0]);
            s[1] = _mm256_fmadd_ps(b, _mm256_loadu_ps(x + 16 * half + 8), s[1]);
        }
        _mm_prefetch(HBK__AHEAD(w, 2048), _MM_HINT_NTA);
        float d = _cvtsh_ss((unsigned short)(w[0] | w[1] << 8));
        sum = _mm256_fmadd_ps(_mm256_add_ps(s[0], s[1]), _mm256_set1_ps(d), sum);
    }
    return hbk__sum_lanes(sum);
}
#endif

/* hbk__dot_blocks by the widest means that this processor has. */
static hbk_real hbk__dot_q(const hbk_real *x, const unsigned char *w, hbk_int n, bool q8)
{
#ifdef HBK__X86
    if (HBK__HAS_AVX512())
        return q8 ? hbk__dot_blocks_avx512(x, w, n, true) : hbk__dot_blocks_avx512(x, w, n, false);
    if (HBK__HAS_AVX2())
        return q8 ? hbk__dot_blocks_avx2(x, w, n, true) : hbk__dot_blocks_avx2(x, w, n, false);
#endif
    return hbk__dot_blocks(x, w, n, q8);
}

#define HBK__FEW   ((hbk_int)64)   /* rows of x, at most, that are few */
#define HBK__DOTS  ((hbk_int)4)    /* up to so many are dotted one by one */
#define HBK__LANES ((hbk_int)16)   /* rows of x in a vector */
#define HBK__ROWS  ((hbk_int)8)    /* of W that are taken together */
#define HBK__PART  ((hbk_int)1024) /* columns of W at once, a multiple of every block */

/* What is asked of the memory meanwhile: eight rows, `step` bytes apart, of which 16 columns are `bytes`. */
typedef struct hbk__ahead {
    const char *at; /* NULL: nothing */
    size_t step, bytes;
} hbk__ahead;

/* Asks for columns i .. i+15 of the rows ahead, if a line begins there. */
HBK__INLINE void hbk__ask(const hbk__ahead *a, hbk_int i)
{
#if defined(__GNUC__) || defined(__clang__)
    size_t at = (size_t)(i / 16) * a->bytes;
    if (a->at && at % 64 < a->bytes)
        for (size_t j = 0; j < 8; j++) __builtin_prefetch(HBK__AHEAD(a->at, j * a->step + at), 0, 3);
#else
    (void)a, (void)i;
#endif
}

/* y (8, 16) += w (8, n) x (n, 16), rows of w ldw apart: the plain loop, and the same for two generations of
   processors. */
HBK__CLONES
static void hbk__meet_any(hbk_real *y, const hbk_real *w, hbk_int ldw, const hbk_real *x, hbk_int n,
                          const hbk__ahead *ahead)
{
    for (hbk_int i = 0; i < n; i++) {
        if (i % 16 == 0) hbk__ask(ahead, i);
        for (hbk_int j = 0; j < 8; j++) {
            hbk_real wj = w[j * ldw + i];
            HBK__SIMD
            for (hbk_int l = 0; l < 16; l++) y[16 * j + l] += wj * x[16 * i + l];
        }
    }
}

#ifdef HBK__X86
HBK__AVX512
static void hbk__meet_avx512(float *y, const float *w, hbk_int ldw, const float *x, hbk_int n,
                             const hbk__ahead *ahead)
{
    const float *w1 = w + ldw, *w2 = w1 + ldw, *w3 = w2 + ldw, *w4 = w3 + ldw, *w5 = w4 + ldw, *w6 = w5 + ldw;
    const float *w7 = w6 + ldw;
    __m512 y0 = _mm512_loadu_ps(y), y1 = _mm512_loadu_ps(y + 16), y2 = _mm512_loadu_ps(y + 32);
    __m512 y3 = _mm512_loadu_ps(y + 48), y4 = _mm512_loadu_ps(y + 64), y5 = _mm512_loadu_ps(y + 80);
    __m512 y6 = _mm512_loadu_ps(y + 96), y7 = _mm512_loadu_ps(y + 112);
    for (hbk_int i = 0; i < n;) {
        hbk__ask(ahead, i);
        for (hbk_int end = HBK__MIN(i + 16, n); i < end; i++) {
            __m512 v = _mm512_loadu_ps(x + 16 * i);
            y0 = _mm512_fmadd_ps(_mm512_set1_ps(w[i]), v, y0);
            y1 = _mm512_fmadd_ps(_mm512_set1_ps(w1[i]), v, y1);
            y2 = _mm512_fmadd_ps(_mm512_set1_ps(w2[i]), v, y2);
            y3 = _mm512_fmadd_ps(_mm512_set1_ps(w3[i]), v, y3);
            y4 = _mm512_fmadd_ps(_mm512_set1_ps(w4[i]), v, y4);
            y5 = _mm512_fmadd_ps(_mm512_set1_ps(w5[i]), v, y5);
            y6 = _mm512_fmadd_ps(_mm512_set1_ps(w6[i]), v, y6);
            y7 = _mm512_fmadd_ps(_mm512_set1_ps(w7[i]), v, y7);
        }
    }
    _mm512_storeu_ps(y, y0), _mm512_storeu_ps(y + 16, y1), _mm512_storeu_ps(y + 32, y2);
    _mm512_storeu_ps(y + 48, y3), _mm512_storeu_ps(y + 64, y4), _mm512_storeu_ps(y + 80, y5);
    _mm512_storeu_ps(y + 96, y6), _mm512_storeu_ps(y + 112, y7);
}

/* Vectors of eight: two of them for the lanes, and sums of four rows of W in a pass, to fit 16 registers. */
HBK__AVX2
static void hbk__meet_avx2(float *y, const float *w, hbk_int ldw, const float *x, hbk_int n,
                           const hbk__ahead *ahead)
{
    for (int half = 0; half < 2; half++, y += 64, w += 4 * ldw) {
        const float *w1 = w + ldw, *w2 = w1 + ldw, *w3 = w2 + ldw;
        __m256 a0 = _mm256_loadu_ps(y), b0 = _mm256_loadu_ps(y + 8), a1 = _mm256_loadu_ps(y + 16);
        __m256 b1 = _mm256_loadu_ps(y + 24), a2 = _mm256_loadu_ps(y + 32), b2 = _mm256_loadu_ps(y + 40);
        __m256 a3 = _mm256_loadu_ps(y + 48), b3 = _mm256_loadu_ps(y + 56);
        for (hbk_int i = 0; i < n;) {
            if (half == 0) hbk__ask(ahead, i);
            for (hbk_int end = HBK__MIN(i + 16, n); i < end; i++) {
                __m256 a = _mm256_loadu_ps(x + 16 * i), b = _mm256_loadu_ps(x + 16 * i + 8), v;
                v = _mm256_set1_ps(w[i]), a0 = _mm256_fmadd_ps(v, a, a0), b0 = _mm256_fmadd_ps(v, b, b0);
                v = _mm256_set1_ps(w1[i]), a1 = _mm256_fmadd_ps(v, a, a1), b1 = _mm256_fmadd_ps(v, b, b1);
                v = _mm256_set1_ps(w2[i]), a2 = _mm256_fmadd_ps(v, a, a2), b2 = _mm256_fmadd_ps(v, b, b2);
                v = _mm256_set1_ps(w3[i]), a3 = _mm256_fmadd_ps(v, a, a3), b3 = _mm256_fmadd_ps(v, b, b3);
            }
        }
        _mm256_storeu_ps(y, a0), _mm256_storeu_ps(y + 8, b0), _mm256_storeu_ps(y + 16, a1);
        _mm256_storeu_ps(y + 24, b1), _mm256_storeu_ps(y + 32, a2), _mm256_storeu_ps(y + 40, b2);
        _mm256_storeu_ps(y + 48, a3), _mm256_storeu_ps(y + 56, b3);
    }
}
#endif

/* Whether it is written for this processor. */
static bool hbk__meets(void)
{
#ifdef HBK__X86
    return HBK__HAS_AVX2();
#else
    return false;
#endif
}

static void hbk__meet(hbk_real *y, const hbk_real *w, hbk_int ldw, const hbk_real *x, hbk_int n,
                      const hbk__ahead *ahead)
{
#ifdef HBK__X86
    if (HBK__HAS_AVX512()) {
        hbk__meet_avx512(y, w, ldw, x, n, ahead);
        return;
    }
    if (HBK__HAS_AVX2()) {
        hbk__meet_avx2(y, w, ldw, x, n, ahead);
        return;
    }
#endif
    hbk__meet_any(y, w, ldw, x, n, ahead);
}

/* Whether W's elements can be read where they lie. In a file they may begin at any byte: then they are
   unpacked like any other type. */
static bool hbk__in_place(const hbk_matrix *w)
{
    return w->dtype == HBK_REAL && (uintptr_t)w->data % sizeof(hbk_real) == 0;
}

/* y (N, rows of W) += x . row o of W for each of N rows of x, in column o. */
static void hbk__dot_rows(hbk_real *y, const hbk_real *x, const hbk_matrix *w, hbk_int o, hbk_int N)
{
    const unsigned char *row = (const unsigned char *)hbk__row(w, o);
    hbk_int C = w->cols, O = w->rows;
    bool real = hbk__in_place(w), bf16 = w->dtype == HBK_BF16 && (uintptr_t)row % 2 == 0;
    if (real || bf16) {
        for (hbk_int k = 0; k < N; k++)
            y[k * O + o] += real ? hbk__dot(x + k * C, (const hbk_real *)hbk__row(w, o), C)
                                 : hbk__dot_bf16(x + k * C, (const uint16_t *)hbk__row(w, o), C);
    } else if (N == 1 && (w->dtype == HBK_Q8_0 || w->dtype == HBK_Q4_0)) {
        y[o] += hbk__dot_q(x, row, C, w->dtype == HBK_Q8_0);
#ifdef HBK__X86
    } else if (w->dtype == HBK_F16 && HBK__HAS_AVX512()) {
        for (hbk_int k = 0; k < N; k++) y[k * O + o] += hbk__dot_f16_avx512(x + k * C, row, C);
#endif
    } else {
        hbk_real part[HBK__PART];
        for (hbk_int c = 0, n; c < C; c += n) { /* unpacked once for all rows of x */
            n = HBK__MIN(HBK__PART, C - c);
            hbk__unpack_part(part, w, o * C + c, n);
            for (hbk_int k = 0; k < N; k++) y[k * O + o] += hbk__dot(x + k * C + c, part, n);
        }
    }
}

/* Columns c .. c+n-1 of eight rows of W from o on, where they lie or unpacked into `part`; *ldw apart. Rows
   that W does not have are zero. Rows that lie a multiple of 4 KB apart would push each other out of the
   first cache, and are unpacked, too. */
static const hbk_real *hbk__eight_rows(hbk_real *part, const hbk_matrix *w, hbk_int o, hbk_int c, hbk_int n,
                                       hbk_int *ldw)
{
    hbk_int rows = HBK__MIN(HBK__ROWS, w->rows - o);
    *ldw = w->cols;
    if (hbk__in_place(w) && rows == HBK__ROWS && w->cols * (hbk_int)sizeof *part % 4096 != 0)
        return (const hbk_real *)hbk__row(w, o) + c;
    *ldw = HBK__PART + HBK__LANES;
    for (hbk_int j = 0; j < HBK__ROWS; j++)
        if (j < rows) hbk__unpack_part(part + j * *ldw, w, (o + j) * w->cols + c, n);
        else memset(part + j * *ldw, 0, (size_t)n * sizeof *part);
    return part;
}

/* What comes after these columns of rows o .. o+7, if it is there: the next columns, or the next rows. */
static hbk__ahead hbk__ahead_of(const hbk_matrix *w, hbk_int o, hbk_int c, hbk_int n)
{
    hbk_int block = HBK__MAX(hbk_dtype_block(w->dtype), 16);
    size_t bytes = hbk_dtype_size(w->dtype, block) * 16 / (size_t)block;
    hbk__ahead a = {NULL, hbk_dtype_size(w->dtype, w->cols), bytes};
    if (c + n < w->cols && o + HBK__ROWS <= w->rows)
        a.at = (const char *)hbk__row(w, o) + hbk_dtype_size(w->dtype, c + n);
    else if (o + 2 * HBK__ROWS <= w->rows)
        a.at = (const char *)hbk__row(w, o + HBK__ROWS);
    return a;
}

/* y (N, O) += the sums of hbk__meet, (8, 16) for each group of its rows, in its columns from o on, eight at
   most. */
static void hbk__add_sums(hbk_real *y, const hbk_real *sums, hbk_int O, hbk_int o, hbk_int N)
{
    hbk_int rows = HBK__MIN(HBK__ROWS, O - o);
    for (hbk_int k = 0; k < N; k++)
        for (hbk_int j = 0; j < rows; j++)
            y[k * O + o + j] += sums[((k / HBK__LANES) * HBK__ROWS + j) * HBK__LANES + k % HBK__LANES];
}

/* y (N, O) += x W^T in the columns of y from o on, eight at most; x as hbk__to_lanes left it. */
static void hbk__few_rows(hbk_real *y, const hbk_real *lanes, const hbk_matrix *w, hbk_int o, hbk_int N)
{
    hbk_real part[HBK__ROWS * (HBK__PART + HBK__LANES)], sums[HBK__FEW * HBK__ROWS];
    hbk_int C = w->cols, ldw;
    memset(sums, 0, sizeof sums);
    for (hbk_int c = 0, n; c < C; c += n) {
        n = HBK__MIN(HBK__PART, C - c);
        const hbk_real *wt = hbk__eight_rows(part, w, o, c, n, &ldw);
        hbk__ahead next = hbk__ahead_of(w, o, c, n);
        for (hbk_int g = 0; g < N; g += HBK__LANES) {
            hbk__meet(sums + g * HBK__ROWS, wt, ldw, lanes + (g * C + c * HBK__LANES), n, &next);
            next.at = NULL; /* asking once is enough */
        }
    }
    hbk__add_sums(y, sums, w->rows, o, N);
}

/* Columns c .. c+n-1 of x (N, C) into groups of (C, 16), where rows that x does not have are zero. */
static void hbk__to_lanes(hbk_real *lanes, const hbk_real *x, hbk_int N, hbk_int C, hbk_int c, hbk_int n)
{
    for (hbk_int g = 0; g < N; g += HBK__LANES)
        for (hbk_int i = c; i < c + n; i++)
            for (hbk_int l = 0; l < HBK__LANES; l++)
                lanes[g * C + i * HBK__LANES + l] = g + l < N ? x[(g + l) * C + i] : 0;
}

/* 8.3  Many rows, with AVX-512: a product that unpacks as it goes. OpenBLAS would want W as floats first.

   32 rows of W, or columns of it in the backward, are laid out anew as the lanes of two vectors, for each
   number that is summed over; numbers of x, spread over all lanes, meet them, six rows of x in twelve sums.

   Where W may be rounded and the processor has AVX512-BF16, an instruction multiplies 32 numbers of bf16 and
   adds the products of two neighbours to one of 16 sums: twice the work that it does on floats. So what is
   summed over then comes in pairs, which are words of 32 bits as floats are:

       y_nm += sum_p  x_n,2p w_m,2p + x_n,2p+1 w_m,2p+1

   With up to 64 rows pairs of x are the lanes, as in 8.2, and W in bf16 is taken as it lies.

   Products of (1536, 576) on two cores of a Zen 4: 215 GFLOP/s with 1024 rows of x, and 400 in pairs, where
   OpenBLAS reaches 200; 320 and 350 in pairs with 16 and 64 rows, against 180 and 200 of 8.2. Each number of
   the result is one thread's, summed in one order, whatever the number of threads. */

#ifdef HBK__X86
#define HBK__SPREAD ((hbk_int)6)                /* rows of x at once */
#define HBK__TILE   ((hbk_int)32)               /* rows or columns of W in two vectors */
#define HBK__DEPTH  ((hbk_int)768)              /* words of each lane, a multiple of every block: a prompt of
                                                   135M is 1.08 times as fast as with 512 */
#define HBK__DEEP   (HBK__TILE * HBK__DEPTH)    /* words of a tile, 96 KB: it stays in the second cache */
#define HBK__PIECE  ((hbk_int)256)              /* numbers of a row unpacked at once, the largest block */

/* Words that n numbers take, in whole squares of 16. */
static hbk_int hbk__n_words(hbk_int n, bool pairs)
{
    return ((pairs ? (n + 1) / 2 : n) + 15) / 16 * 16;
}

#ifdef HBK__BF16
/* n floats as pairs, rounded to nearest even; zeros to the end of the last 16 pairs. */
HBK__BF16
static void hbk__to_pairs(uint32_t *out, const float *x, hbk_int n)
{
    for (hbk_int i = 0; i < 2 * hbk__n_words(n, true); i += 16) {
        __mmask16 in = (__mmask16)hbk__first_lanes(n - i);
        __m256bh h = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(in, x + i));
        memcpy(out + i / 2, &h, sizeof h);
    }
}
#endif

/* n elements of W from number `at` on, of one row and at most HBK__PART; zeros to the end of the words. */
static void hbk__row_words(uint32_t *out, const hbk_matrix *w, hbk_int at, hbk_int n, bool pairs)
{
    float part[HBK__PART];
    const float *from = part;
    if (hbk__in_place(w)) from = (const float *)w->data + at;
    else if (!pairs || w->dtype != HBK_BF16) hbk__unpack_part(part, w, at, n);
    if (pairs && w->dtype == HBK_BF16) {
        out[(n - 1) / 2] = 0; /* beside an odd last one */
        memcpy(out, (const char *)w->data + 2 * at, (size_t)(2 * n));
#ifdef HBK__BF16
    } else if (pairs) {
        hbk__to_pairs(out, from, n);
#endif
    } else {
        memcpy(out, from, (size_t)n * sizeof *out);
    }
    for (hbk_int i = pairs ? (n + 1) / 2 : n; i < hbk__n_words(n, pairs); i++) out[i] = 0;
}

/* out (16, 16), rows ldo apart, is the transpose of in, rows ldi apart: in four rounds squares of 1, 2, 4 and
   8 change places across the diagonal. */
HBK__AVX512
static void hbk__turn(uint32_t *out, hbk_int ldo, const uint32_t *in, hbk_int ldi)
{
    __m512i rows[16], lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    HBK__UNROLL
    for (int i = 0; i < 16; i++) rows[i] = _mm512_loadu_si512(in + i * ldi);
    HBK__UNROLL
    for (int s = 1; s < 16; s *= 2) {
        /* lanes 16 .. 31 are the other row's */
        __mmask16 odd = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(s));
        __m512i low = _mm512_mask_add_epi32(lane, odd, lane, _mm512_set1_epi32(16 - s));
        __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(s));
        HBK__UNROLL
        for (int i = 0; i < 16; i++) {
            if (i & s) continue;
            __m512i a = rows[i], b = rows[i + s];
            rows[i] = _mm512_permutex2var_epi32(a, low, b);
            rows[i + s] = _mm512_permutex2var_epi32(a, high, b);
        }
    }
    HBK__UNROLL
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(out + i * ldo, rows[i]);
}

/* sums (6, 32) = x (6, n) w (n, 32); xs: the six rows. */
HBK__AVX512
static void hbk__tile_f32(float *sums, const float *const *xs, const uint32_t *w, hbk_int n)
{
    __m512 a[HBK__SPREAD], b[HBK__SPREAD];
    HBK__UNROLL
    for (int r = 0; r < HBK__SPREAD; r++) a[r] = b[r] = _mm512_setzero_ps();
    for (hbk_int i = 0; i < n; i++, w += HBK__TILE) {
        __m512 wa = _mm512_loadu_ps(w), wb = _mm512_loadu_ps(w + 16);
        HBK__UNROLL
        for (int r = 0; r < HBK__SPREAD; r++) {
            __m512 v = _mm512_set1_ps(xs[r][i]);
            a[r] = _mm512_fmadd_ps(wa, v, a[r]);
            b[r] = _mm512_fmadd_ps(wb, v, b[r]);
        }
    }
    HBK__UNROLL
    for (int r = 0; r < HBK__SPREAD; r++) {
        _mm512_storeu_ps(sums + 32 * r, a[r]);
        _mm512_storeu_ps(sums + 32 * r + 16, b[r]);
    }
}

#ifdef HBK__BF16
/* The same for n pairs. */
HBK__BF16
static void hbk__tile_bf16(float *sums, const uint32_t *const *xs, const uint32_t *w, hbk_int n)
{
    __m512 a[HBK__SPREAD], b[HBK__SPREAD];
    HBK__UNROLL
    for (int r = 0; r < HBK__SPREAD; r++) a[r] = b[r] = _mm512_setzero_ps();
    for (hbk_int i = 0; i < n; i++, w += HBK__TILE) {
        __m512bh wa = (__m512bh)_mm512_loadu_si512(w), wb = (__m512bh)_mm512_loadu_si512(w + 16);
        HBK__UNROLL
        for (int r = 0; r < HBK__SPREAD; r++) {
            __m512bh v = (__m512bh)_mm512_set1_epi32((int)xs[r][i]);
            a[r] = _mm512_dpbf16_ps(a[r], wa, v);
            b[r] = _mm512_dpbf16_ps(b[r], wb, v);
        }
    }
    HBK__UNROLL
    for (int r = 0; r < HBK__SPREAD; r++) {
        _mm512_storeu_ps(sums + 32 * r, a[r]);
        _mm512_storeu_ps(sums + 32 * r + 16, b[r]);
    }
}

/* hbk__meet in pairs: y (8, 16) += w (8, n) x (n, 16). */
HBK__BF16
static void hbk__meet_bf16(float *y, const uint32_t *w, hbk_int ldw, const uint32_t *x, hbk_int n,
                           const hbk__ahead *ahead)
{
    __m512 sums[HBK__ROWS];
    HBK__UNROLL
    for (int j = 0; j < HBK__ROWS; j++) sums[j] = _mm512_loadu_ps(y + 16 * j);
    for (hbk_int i = 0; i < n;) {
        hbk__ask(ahead, 2 * i);
        hbk__ask(ahead, 2 * i + 16);
        for (hbk_int end = HBK__MIN(i + 16, n); i < end; i++) {
            __m512bh v = (__m512bh)_mm512_loadu_si512(x + 16 * i);
            HBK__UNROLL
            for (int j = 0; j < HBK__ROWS; j++)
                sums[j] = _mm512_dpbf16_ps(sums[j], (__m512bh)_mm512_set1_epi32((int)w[j * ldw + i]), v);
        }
    }
    HBK__UNROLL
    for (int j = 0; j < HBK__ROWS; j++) _mm512_storeu_ps(y + 16 * j, sums[j]);
}

/* hbk__to_lanes in pairs: columns c .. c+31 of x (N, C) into groups of (pairs of C, 16). */
static void hbk__to_lanes_bf16(uint32_t *lanes, const float *x, hbk_int N, hbk_int C, hbk_int c)
{
    for (hbk_int g = 0; g < N; g += HBK__LANES) {
        uint32_t square[16 * 16] = {0};
        for (hbk_int l = 0; l < HBK__MIN(HBK__LANES, N - g); l++)
            hbk__to_pairs(square + 16 * l, x + (g + l) * C + c, HBK__MIN(32, C - c));
        hbk__turn(lanes + g * hbk__n_words(C, true) + c / 2 * HBK__LANES, HBK__LANES, square, 16);
    }
}

/* hbk__eight_rows in pairs. */
static const uint32_t *hbk__eight_rows_bf16(uint32_t *part, const hbk_matrix *w, hbk_int o, hbk_int c,
                                            hbk_int n, hbk_int *ldw)
{
    hbk_int rows = HBK__MIN(HBK__ROWS, w->rows - o), C = w->cols;
    *ldw = C / 2;
    if (w->dtype == HBK_BF16 && (uintptr_t)w->data % 4 == 0 && C % 2 == 0 && rows == HBK__ROWS &&
        2 * C % 4096 != 0)
        return (const uint32_t *)hbk__row(w, o) + c / 2;
    *ldw = HBK__PART / 2 + HBK__LANES;
    for (hbk_int j = 0; j < HBK__ROWS; j++)
        if (j < rows) hbk__row_words(part + j * *ldw, w, (o + j) * C + c, n, true);
        else memset(part + j * *ldw, 0, (size_t)hbk__n_words(n, true) * sizeof *part);
    return part;
}

/* hbk__few_rows in pairs. */
static void hbk__few_rows_bf16(float *y, const uint32_t *lanes, const hbk_matrix *w, hbk_int o, hbk_int N)
{
    uint32_t part[HBK__ROWS * (HBK__PART / 2 + HBK__LANES)];
    float sums[HBK__FEW * HBK__ROWS];
    hbk_int C = w->cols, ldw;
    memset(sums, 0, sizeof sums);
    for (hbk_int c = 0, n; c < C; c += n) {
        n = HBK__MIN(HBK__PART, C - c);
        const uint32_t *wt = hbk__eight_rows_bf16(part, w, o, c, n, &ldw);
        hbk__ahead next = hbk__ahead_of(w, o, c, n);
        for (hbk_int g = 0; g < N; g += HBK__LANES) {
            const uint32_t *x = lanes + g * hbk__n_words(C, true) + c / 2 * HBK__LANES;
            hbk__meet_bf16(sums + g * HBK__ROWS, wt, ldw, x, (n + 1) / 2, &next);
            next.at = NULL;
        }
    }
    hbk__add_sums(y, sums, w->rows, o, N);
}
#endif

/* A product of many rows, y (N, M) = or += x (N, R) W^T, or with `back` x W, of which columns r .. r+n-1 of x
   are on: a depth that a tile holds. */
typedef struct hbk__product {
    float *y;
    const float *x;
    const hbk_matrix *w;
    hbk_int N, M, R;
    bool back, add, pairs;
    hbk_int r, n;
    uint32_t *xp; /* pairs: x as such, (N, hbk__n_words(n)) */
} hbk__product;

/* tile (n, 16), rows 32 apart: rows o .. o+15 of W, turned where they lie, in whole squares; returns how many
   of the n words that are. */
static hbk_int hbk__pack_in_place(uint32_t *tile, const hbk__product *p, hbk_int o)
{
    const hbk_matrix *w = p->w;
    hbk_int C = w->cols, at = o * C + p->r, done = 0;
    bool words = p->pairs ? w->dtype == HBK_BF16 && C % 2 == 0 : hbk__in_place(w);
    if (!words || o + 16 > p->M) return 0;
    const void *from = (const char *)w->data + at * (p->pairs ? 2 : 4);
    for (hbk_int n = p->pairs ? p->n / 2 : p->n; done + 16 <= n; done += 16)
        hbk__turn(tile + done * HBK__TILE, HBK__TILE, (const uint32_t *)from + done, p->pairs ? C / 2 : C);
    return done;
}

/* tile (n, 32): rows m .. m+31 of W, turned. What W does not have is zero. */
static void hbk__pack_rows(uint32_t *tile, const hbk__product *p, hbk_int m)
{
    uint32_t rows[16 * HBK__PIECE];
    for (hbk_int o = m; o < m + HBK__TILE; o += 16, tile += 16) {
        hbk_int done = hbk__pack_in_place(tile, p, o), n; /* of words; n of numbers */
        for (hbk_int c = done * (1 + p->pairs); c < p->n; c += n) {
            n = HBK__MIN(HBK__PIECE, p->n - c);
            hbk_int words = hbk__n_words(n, p->pairs);
            if (o + 16 > p->M) memset(rows, 0, sizeof rows);
            for (hbk_int j = 0; j < HBK__MIN(16, p->M - o); j++)
                hbk__row_words(rows + j * words, p->w, (o + j) * p->w->cols + p->r + c, n, p->pairs);
            for (hbk_int i = 0; i < words; i += 16, done += 16)
                hbk__turn(tile + done * HBK__TILE, HBK__TILE, rows + i, words);
        }
    }
}

/* Columns m .. m+31 of a row of W as words of floats; what W does not have is zero. Rows lie far apart, so
   the one eight below is asked for. */
HBK__AVX512
static inline void hbk__row_of_32(uint32_t *out, const hbk_matrix *w, hbk_int row, hbk_int m)
{
    hbk_int cols = HBK__MIN(HBK__TILE, w->cols - m), at = row * w->cols + m;
    __mmask16 ma = (__mmask16)hbk__first_lanes(cols), mb = (__mmask16)hbk__first_lanes(cols - 16);
    if (hbk__in_place(w)) {
        const float *from = (const float *)w->data + at;
        __builtin_prefetch(HBK__AHEAD(from, 32 * w->cols));
        __builtin_prefetch(HBK__AHEAD(from, 32 * w->cols + 64));
        _mm512_storeu_ps(out, _mm512_maskz_loadu_ps(ma, from));
        _mm512_storeu_ps(out + 16, _mm512_maskz_loadu_ps(mb, from + 16));
    } else if (w->dtype == HBK_BF16 && cols == HBK__TILE) {
        const char *from = (const char *)w->data + 2 * at;
        __builtin_prefetch(HBK__AHEAD(from, 16 * w->cols));
        for (int i = 0; i < 32; i += 16) {
            __m256i h = _mm256_loadu_si256((const __m256i *)(const void *)(from + 2 * i));
            __m512i bits = _mm512_maskz_cvtepu16_epi32(0xffff, h);
            _mm512_storeu_si512(out + i, _mm512_maskz_slli_epi32(0xffff, bits, 16));
        }
    } else {
        hbk__row_words(out, w, at, cols, false);
        for (hbk_int i = hbk__n_words(cols, false); i < HBK__TILE; i++) out[i] = 0;
    }
}

#ifdef HBK__BF16
/* The same as bf16; room: 32 words. */
HBK__BF16
static inline __m512i hbk__row_of_32_bf16(uint32_t *room, const hbk_matrix *w, hbk_int row, hbk_int m)
{
    if (w->dtype == HBK_BF16) {
        hbk_int cols = HBK__MIN(HBK__TILE, w->cols - m);
        const char *from = (const char *)w->data + 2 * (row * w->cols + m);
        __builtin_prefetch(HBK__AHEAD(from, 16 * w->cols));
        return _mm512_maskz_loadu_epi16((__mmask32)(cols >= 32 ? 0xffffffffu : (1u << cols) - 1), from);
    }
    hbk__row_of_32(room, w, row, m);
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(room + 16), _mm512_loadu_ps(room));
}

/* tile (n, 32) of the backward in pairs: of rows r, r+1 of W in columns m .. m+31. */
HBK__BF16
static void hbk__pack_pairs(uint32_t *tile, const hbk__product *p, hbk_int m)
{
    static const uint16_t order[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                       8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    __m512i low = _mm512_loadu_si512(order), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (hbk_int i = 0; i < p->n; i += 2, tile += HBK__TILE) {
        __m512i a = hbk__row_of_32_bf16(tile, p->w, p->r + i, m), b = _mm512_setzero_si512();
        if (i + 1 < p->n) b = hbk__row_of_32_bf16(tile, p->w, p->r + i + 1, m);
        _mm512_storeu_si512(tile, _mm512_permutex2var_epi16(a, low, b)); /* element l of both: pair l */
        _mm512_storeu_si512(tile + 16, _mm512_permutex2var_epi16(a, high, b));
    }
}
#endif

/* tile (n, 32) of the backward: columns m .. m+31 of W. */
static void hbk__pack_columns(uint32_t *tile, const hbk__product *p, hbk_int m)
{
#ifdef HBK__BF16
    if (p->pairs) {
        hbk__pack_pairs(tile, p, m);
        return;
    }
#endif
    for (hbk_int i = 0; i < p->n; i++, tile += HBK__TILE) hbk__row_of_32(tile, p->w, p->r + i, m);
}

/* y (rows, cols) = or += the sums of a tile (6, 32). */
HBK__AVX512
static void hbk__add_tile(float *y, hbk_int ldy, const float *sums, hbk_int rows, hbk_int cols, bool add)
{
    __mmask16 ma = (__mmask16)hbk__first_lanes(cols), mb = (__mmask16)hbk__first_lanes(cols - 16);
    for (hbk_int r = 0; r < rows; r++, y += ldy, sums += HBK__TILE) {
        __m512 a = _mm512_loadu_ps(sums), b = _mm512_loadu_ps(sums + 16);
        if (add) a = _mm512_add_ps(a, _mm512_maskz_loadu_ps(ma, y));
        if (add) b = _mm512_add_ps(b, _mm512_maskz_loadu_ps(mb, y + 16));
        _mm512_mask_storeu_ps(y, ma, a);
        _mm512_mask_storeu_ps(y + 16, mb, b);
    }
}

/* Columns m .. m+31 of the result, in rows k .. end-1. */
static void hbk__stripe(const hbk__product *p, hbk_int m, hbk_int k, hbk_int end)
{
    uint32_t room[HBK__DEEP + 16], *tile = room + (0 - (uintptr_t)room) % 64 / 4; /* at the head of a line */
    float sums[HBK__SPREAD * HBK__TILE];
    if (p->back) hbk__pack_columns(tile, p, m);
    else hbk__pack_rows(tile, p, m);
    for (; k < end; k += HBK__SPREAD) {
        hbk_int rows = HBK__MIN(HBK__SPREAD, end - k), at[HBK__SPREAD];
        for (hbk_int r = 0; r < HBK__SPREAD; r++) at[r] = k + HBK__MIN(r, rows - 1); /* the last, once more */
#ifdef HBK__BF16
        if (p->pairs) {
            const uint32_t *xs[HBK__SPREAD];
            for (int r = 0; r < HBK__SPREAD; r++) xs[r] = p->xp + at[r] * hbk__n_words(p->n, true);
            hbk__tile_bf16(sums, xs, tile, (p->n + 1) / 2);
        } else
#endif
        {
            const float *xs[HBK__SPREAD];
            for (int r = 0; r < HBK__SPREAD; r++) xs[r] = p->x + at[r] * p->R + p->r;
            hbk__tile_f32(sums, xs, tile, p->n);
        }
        hbk__add_tile(p->y + k * p->M + m, p->M, sums, rows, HBK__MIN(HBK__TILE, p->M - m), p->add);
    }
}

/* Into how many parts the rows of a stripe are cut: each packs W once more, so as few as leave the busiest
   thread less than a fifth above its share, counted in parts, of which the last may be shorter; none of fewer
   than about 48 rows. */
static hbk_int hbk__parts(hbk_int stripes, hbk_int N, hbk_int threads)
{
    for (hbk_int parts = 1;; parts++) {
        hbk_int tasks = stripes * parts, most = (tasks + threads - 1) / threads;
        if (most * threads * 5 < tasks * 6 || N < 8 * HBK__SPREAD * (parts + 1)) return parts;
    }
}

/* Stripes of the result, or parts of them, for each thread. */
static void hbk__stripes(const hbk__product *p)
{
    bool alone = p->N * p->M * p->n <= 100000;
    hbk_int stripes = (p->M + HBK__TILE - 1) / HBK__TILE;
    hbk_int parts = hbk__parts(stripes, p->N, alone ? 1 : hbk__n_threads());
    hbk_int rows = ((p->N + parts - 1) / parts + HBK__SPREAD - 1) / HBK__SPREAD * HBK__SPREAD;
#ifdef _OPENMP
#pragma omp parallel if (!alone)
#endif
    {
#ifdef HBK__BF16
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
        for (hbk_int k = 0; k < (p->pairs ? p->N : 0); k++)
            hbk__to_pairs(p->xp + k * hbk__n_words(p->n, true), p->x + k * p->R + p->r, p->n);
#endif
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
        for (hbk_int i = 0; i < stripes * parts; i++) {
            hbk_int k = i / stripes * rows;
            if (k < p->N) hbk__stripe(p, i % stripes * HBK__TILE, k, HBK__MIN(k + rows, p->N));
        }
    }
}

/* panel: room for pairs of x, or NULL where there are none. */
static void hbk__matmul_many(float *y, const float *x, const hbk_matrix *w, hbk_int N, bool back, bool pairs,
                             float *panel, bool add)
{
    hbk_int M = back ? w->cols : w->rows, R = back ? w->rows : w->cols;
    hbk_int most = pairs ? 2 * HBK__DEPTH : HBK__DEPTH;
    hbk_int depths = (R + most - 1) / most; /* of about one size, */
    hbk_int depth = (R + depths - 1) / depths, align = HBK__MAX(hbk_dtype_block(w->dtype), 32);
    hbk__product p = {y, x, w, N, M, R, back, add, pairs, 0, 0, (uint32_t *)(void *)panel};
    depth = HBK__MIN(most, (depth + align - 1) / align * align); /* of whole blocks */
    for (; p.r < R; p.r += p.n, p.add = true) {
        p.n = HBK__MIN(depth, R - p.r);
        hbk_int rows = pairs ? HBK_PANEL / hbk__n_words(p.n, true) : N, chunks = (N + rows - 1) / rows;
        rows = (N + chunks - 1) / chunks; /* of about one size, too: each packs W anew */
        for (hbk_int k = 0; k < N; k += rows) {
            p.y = y + k * M;
            p.x = x + k * R;
            p.N = HBK__MIN(rows, N - k);
            hbk__stripes(&p);
        }
    }
}

/* Whether these loops take a product of N rows with W. In the backward they would cut blocks of K types. */
static bool hbk__many(const hbk_matrix *w, hbk_int N, bool back)
{
    return N > HBK__DOTS && HBK__HAS_AVX512() && (!back || hbk_dtype_block(w->dtype) <= HBK__TILE);
}
#endif

/* Whether the processor multiplies bf16, and these loops were compiled for it. */
static bool hbk__has_bf16(void)
{
#ifdef HBK__BF16
    return HBK__HAS_BF16();
#else
    return false;
#endif
}

/* Whether they take it in pairs. */
static bool hbk__rounds(const hbk_matrix *w, hbk_int N, bool back, const hbk_real *panel)
{
#ifdef HBK__BF16
    return w->rounds && panel && hbk__many(w, N, back) && hbk__has_bf16();
#else
    (void)w, (void)N, (void)back, (void)panel;
    return false;
#endif
}

/* Columns c .. c+31 of x for hbk__eight_columns. */
static void hbk__meet_in(hbk_real *lanes, const hbk_real *x, hbk_int N, hbk_int C, hbk_int c, bool rounds)
{
#ifdef HBK__BF16
    if (rounds) {
        hbk__to_lanes_bf16((uint32_t *)(void *)lanes, x, N, C, c);
        return;
    }
#endif
    (void)rounds;
    hbk__to_lanes(lanes, x, N, C, c, HBK__MIN(32, C - c));
}

/* y (N, O) = or += x W^T in eight columns from o on, or as many as there are; lanes NULL: row by row. */
static void hbk__eight_columns(hbk_real *y, const hbk_real *x, const hbk_matrix *w, hbk_int N, hbk_int o,
                               const hbk_real *lanes, bool rounds, bool add)
{
    hbk_int end = HBK__MIN(o + HBK__ROWS, w->rows);
    for (hbk_int k = 0; k < (add ? 0 : N); k++)
        memset(y + k * w->rows + o, 0, (size_t)(end - o) * sizeof *y);
#ifdef HBK__BF16
    if (rounds) {
        hbk__few_rows_bf16(y, (const uint32_t *)(const void *)lanes, w, o, N);
        return;
    }
#endif
    (void)rounds;
    if (lanes) hbk__few_rows(y, lanes, w, o, N);
    else
        for (hbk_int i = o; i < end; i++) hbk__dot_rows(y, x, w, i, N);
}

/* Eights of W's rows that a thread takes at a time, half a MB; 0: equal shares, where that is too few turns.
   In turns a thread that is held up holds up no other: a model of 1.1B decodes 1.08 times as fast. Products
   of 135M would lose a tenth by smaller ones. */
static hbk_int hbk__turn_of(const hbk_matrix *w)
{
    hbk_int eight = HBK__ROWS * (hbk_int)hbk_dtype_size(w->dtype, w->cols);
    hbk_int turn = HBK__MAX((512 << 10) / eight, 1);
    return w->rows / (HBK__ROWS * turn) >= 8 * hbk__n_threads() ? turn : 0;
}

/* y (N, O) = or += x W^T for a few rows of x; lanes: scratch, or NULL where each row is dotted by itself.
   Threads share the columns of x, then the rows of W. */
static void hbk__matmul_few(hbk_real *y, const hbk_real *x, const hbk_matrix *w, hbk_int N, hbk_real *lanes,
                            bool rounds, bool add)
{
    hbk_int O = w->rows, C = w->cols, turn = hbk__turn_of(w);
#ifdef _OPENMP
#pragma omp parallel if (O * C > 20000)
#endif
    {
        if (lanes) {
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
            for (hbk_int c = 0; c < C; c += 32) hbk__meet_in(lanes, x, N, C, c, rounds);
        }
        if (turn > 0) {
#ifdef _OPENMP
#pragma omp for schedule(dynamic, turn)
#endif
            for (hbk_int o = 0; o < O; o += HBK__ROWS) hbk__eight_columns(y, x, w, N, o, lanes, rounds, add);
        } else {
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
            for (hbk_int o = 0; o < O; o += HBK__ROWS) hbk__eight_columns(y, x, w, N, o, lanes, rounds, add);
        }
    }
}

/* Rows of W that fit into the panel at once. */
static hbk_int hbk__panel_rows(const hbk_matrix *w)
{
    return HBK__MAX(1, HBK__MIN(w->rows, HBK_PANEL / w->cols));
}

/* hbk_matmul that adds to y, or sets it. */
static void hbk__matmul(hbk_real *y, const hbk_real *x, const hbk_matrix *w, hbk_int N, hbk_real *panel,
                        bool add)
{
    hbk_int C = w->cols, O = w->rows;
    HBK_ASSERT(O > 0 && C > 0);
    hbk_int lanes = (N + HBK__LANES - 1) / HBK__LANES * HBK__LANES * C;
    bool rounds = hbk__rounds(w, N, false, panel);
    bool meet = N > HBK__DOTS && N <= HBK__FEW && panel && lanes <= HBK_PANEL && hbk__meets();
    bool few = meet || N <= (hbk__meets() ? HBK__DOTS : 2 * HBK__DOTS);
#ifdef HBK_NO_BLAS
    few = false;
#endif
    if (few) {
        hbk__matmul_few(y, x, w, N, meet ? panel : NULL, rounds, add);
#ifdef HBK__X86
    } else if (hbk__many(w, N, false)) {
        hbk__matmul_many(y, x, w, N, false, rounds, panel, add);
#endif
    } else if (hbk__in_place(w)) {
        hbk__gemm(false, true, N, O, C, 1, x, C, (const hbk_real *)w->data, C, add ? 1 : 0, y, O);
    } else {
        hbk_int step = hbk__panel_rows(w);
        for (hbk_int o = 0; o < O; o += step) {
            hbk_int n = HBK__MIN(step, O - o);
            hbk_matrix_unpack(panel, w, o, n);
            hbk__gemm(false, true, N, n, C, 1, x, C, panel, C, add ? 1 : 0, y + o, O);
        }
    }
}

HBK_DEF void hbk_matmul(hbk_real *y, const hbk_real *x, const hbk_matrix *w, hbk_int N, hbk_real *panel)
{
    hbk__matmul(y, x, w, N, panel, true);
}

/* hbk_matmul_dx that adds to dx, or sets it. */
static void hbk__matmul_dx(hbk_real *dx, const hbk_real *dy, const hbk_matrix *w, hbk_int N, hbk_real *panel,
                           bool add)
{
    hbk_int C = w->cols, O = w->rows;
    HBK_ASSERT(O > 0 && C > 0);
    /* forward: y = x W^T */
#ifdef HBK__X86
    if (hbk__many(w, N, true)) {
        hbk__matmul_many(dx, dy, w, N, true, hbk__rounds(w, N, true, panel), panel, add);
        return;
    }
#endif
    if (hbk__in_place(w)) {
        hbk__gemm(false, false, N, C, O, 1, dy, O, (const hbk_real *)w->data, C, add ? 1 : 0, dx, C);
        return;
    }
    hbk_int step = hbk__panel_rows(w);
    for (hbk_int o = 0; o < O; o += step) {
        hbk_int n = HBK__MIN(step, O - o);
        hbk_matrix_unpack(panel, w, o, n);
        hbk__gemm(false, false, N, C, n, 1, dy + o, O, panel, C, add || o > 0 ? 1 : 0, dx, C);
    }
}

HBK_DEF void hbk_matmul_dx(hbk_real *dx, const hbk_real *dy, const hbk_matrix *w, hbk_int N, hbk_real *panel)
{
    hbk__matmul_dx(dx, dy, w, N, panel, true);
}

HBK_DEF void hbk_matmul_dw(hbk_matrix *dw, const hbk_real *dy, const hbk_real *x, hbk_int N)
{
    HBK_ASSERT(dw->dtype == HBK_REAL);
    hbk_int C = dw->cols, O = dw->rows;
    hbk__gemm(true, false, O, C, N, 1, dy, O, x, C, 1, (hbk_real *)dw->data, C);
}

/* ==== 9  LAYERS ==============================================================

   Each layer is a pair: what it computes, and how a change of its result changes its inputs. Backward
   functions quote the forward line they differentiate. Rows are independent in all of them but attention,
   so rows (or heads) are what threads share out; a thread never adds to what another one writes, and so a
   number of threads gives the same bytes every time. */

#define HBK__PARALLEL_MIN 16384        /* below this many elements a loop is not worth waking the threads */
#define HBK__CHUNK ((hbk_int)4096)     /* elements per task of the element-wise loops */

/* exp, in a form that compilers turn into vector code: 2^n e^r with n whole and |r| <= ln(2)/2, e^r by its
   series to r^7. Relative error below 1e-7 for float. Below -87 it gives 0, far enough for a softmax.
   In double the library's own. */
#ifdef HBK_REAL_DOUBLE
static double hbk__exp(double x)
{
    return exp(x);
}
#else
static inline float hbk__exp(float x)
{
    float c = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float shifted = c * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the sum's low bits are round(c / ln 2) */
    int32_t n = (int32_t)(hbk__bits_of_f32(shifted) - 0x4b400000u);
    float k = shifted - 12582912.0f;
    float r = c - k * 0.693359375f + k * 2.12194440e-4f; /* ln 2 in two parts: the first product is exact */
    float e = 1.0f / 5040;
    e = e * r + 1.0f / 720;
    e = e * r + 1.0f / 120;
    e = e * r + 1.0f / 24;
    e = e * r + 1.0f / 6;
    e = e * r + 0.5f;
    e = e * r + 1.0f;
    e = e * r + 1.0f;
    e = e * hbk__f32_of_bits((uint32_t)(n + 127) << 23);
    return x < -87.0f ? 0.0f : e;
}
#endif

/* y += a * x over n elements */
HBK__CLONES
static void hbk__axpy(hbk_real *y, hbk_real a, const hbk_real *x, hbk_int n)
{
    HBK__SIMD
    for (hbk_int i = 0; i < n; i++) y[i] += a * x[i];
}

static void hbk__add_to(hbk_real *y, const hbk_real *x, hbk_int n)
{
#ifdef _OPENMP
#pragma omp parallel for schedule(static) if (n > HBK__PARALLEL_MIN)
#endif
    for (hbk_int i = 0; i < n; i += HBK__CHUNK) hbk__axpy(y + i, 1, x + i, HBK__MIN(HBK__CHUNK, n - i));
}

/* 9.1  Embedding: x_n = E[token_n]. The backward adds each row's gradient to its token's row. */

HBK_DEF void hbk_embed_forward(hbk_real *x, const hbk_matrix *embed, const int32_t *tokens, hbk_int N)
{
    for (hbk_int n = 0; n < N; n++) hbk_matrix_unpack(x + n * embed->cols, embed, tokens[n], 1);
}

HBK_DEF void hbk_embed_backward(hbk_matrix *dembed, const hbk_real *dx, const int32_t *tokens, hbk_int N)
{
    hbk_int C = dembed->cols;
    for (hbk_int n = 0; n < N; n++) { /* in order: two rows may be the same token */
        hbk_real *d = (hbk_real *)dembed->data + tokens[n] * C;
        for (hbk_int c = 0; c < C; c++) d[c] += dx[n * C + c];
    }
}

/* 9.2  RMS norm: y_c = w_c x_c s with s = 1 / sqrt(mean(x^2) + eps).

   Each x_c reaches the loss by two ways: directly, and through s, which the whole row shares.
   With g_c = dy_c w_c and ds/dx_c = -s^3 x_c / C:

       dx_c = s g_c - (s^3 / C) x_c sum_j(g_j x_j)         dw_c = sum over rows of dy_c x_c s

   Sums over a row are kept in double: they decide its scale. Hugging Face multiplies by w after rounding
   x s to the weight's type; we stay in reals. */

HBK__INLINE double hbk__sum_squares(const hbk_real *x, hbk_int n)
{
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (hbk_int i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sum;
}

HBK__CLONES
static void hbk__rms_norm_row(hbk_real *y, const hbk_real *x, const hbk_real *w, hbk_int C, double eps)
{
    hbk_real s = (hbk_real)(1 / sqrt(hbk__sum_squares(x, C) / (double)C + eps));
    HBK__SIMD
    for (hbk_int c = 0; c < C; c++) y[c] = w[c] * x[c] * s;
}

HBK_DEF void hbk_rms_norm_forward(hbk_real *y, const hbk_real *x, const hbk_real *w, hbk_int N, hbk_int C,
                                  double eps)
{
#ifdef _OPENMP
#pragma omp parallel for schedule(static) if (N * C > HBK__PARALLEL_MIN)
#endif
    for (hbk_int n = 0; n < N; n++) hbk__rms_norm_row(y + n * C, x + n * C, w, C, eps);
}

HBK__CLONES
static void hbk__rms_norm_backward_row(hbk_real *dx, const hbk_real *dy, const hbk_real *x, const hbk_real *w,
                                       hbk_int C, double eps)
{
    double s = 1 / sqrt(hbk__sum_squares(x, C) / (double)C + eps), dot = 0;
#pragma omp simd reduction(+ : dot)
    for (hbk_int c = 0; c < C; c++) dot += (double)dy[c] * (double)w[c] * (double)x[c];
    hbk_real direct = (hbk_real)s, shared = (hbk_real)(dot * s * s * s / (double)C);
    /* forward: y[c] = w[c] * x[c] * s */
    HBK__SIMD
    for (hbk_int c = 0; c < C; c++) dx[c] += dy[c] * w[c] * direct - x[c] * shared;
}

HBK__CLONES
static void hbk__rms_norm_backward_weight(hbk_real *dw, const hbk_real *dy, const hbk_real *x, hbk_int C,
                                          double eps)
{
    hbk_real s = (hbk_real)(1 / sqrt(hbk__sum_squares(x, C) / (double)C + eps));
    HBK__SIMD
    for (hbk_int c = 0; c < C; c++) dw[c] += dy[c] * x[c] * s;
}

HBK_DEF void hbk_rms_norm_backward(hbk_real *dx, hbk_real *dw, const hbk_real *dy, const hbk_real *x,
                                   const hbk_real *w, hbk_int N, hbk_int C, double eps)
{
    if (dw)
        for (hbk_int n = 0; n < N; n++)
            hbk__rms_norm_backward_weight(dw, dy + n * C, x + n * C, C, eps);
#ifdef _OPENMP
#pragma omp parallel for schedule(static) if (N * C > HBK__PARALLEL_MIN)
#endif
    for (hbk_int n = 0; n < N; n++) hbk__rms_norm_backward_row(dx + n * C, dy + n * C, x + n * C, w, C, eps);
}

/* 9.3  Rotary positions: the pair (x_i, x_{i+D/2}) turns by the angle pos * inv_freq_i,

       x_i' = x_i cos - x_{i+D/2} sin          x_{i+D/2}' = x_{i+D/2} cos + x_i sin

   so that q . k depends on the distance of positions alone. A rotation's transpose is the rotation back.
   Angles are rounded to float, as the models were trained with: at position 2000 that moves logits by 1e-3.
   Meta's files pair (x_{2i}, x_{2i+1}) instead; chapter 12 reorders their rows when loading. */

HBK_DEF void hbk_rope_table(hbk_real *table, const int32_t *pos, const double *inv_freq, hbk_int N, hbk_int D)
{
#ifdef _OPENMP
#pragma omp parallel for schedule(static) if (N * D > HBK__PARALLEL_MIN)
#endif
    for (hbk_int n = 0; n < N; n++)
        for (hbk_int i = 0; i < D / 2; i++) {
            double angle = (double)(float)(pos[n] * inv_freq[i]);
            table[n * D + i] = (hbk_real)cos(angle);
            table[n * D + D / 2 + i] = (hbk_real)sin(angle);
        }
}

/* Turns the H heads of one row; sign -1 turns back. */
HBK__CLONES
static void hbk__rope_row(hbk_real *x, const hbk_real *table, hbk_int H, hbk_int D, hbk_real sign)
{
    hbk_int half = D / 2;
    const hbk_real *cosines = table, *sines = table + half;
    for (hbk_int h = 0; h < H; h++) {
        hbk_real *p = x + h * D, *q = p + half;
        HBK__SIMD
        for (hbk_int i = 0; i < half; i++) {
            hbk_real a = p[i], b = q[i], s = sign * sines[i];
            p[i] = a * cosines[i] - b * s;
            q[i] = b * cosines[i] + a * s;
        }
    }
}

HBK_DEF void hbk_rope(hbk_real *x, const hbk_real *table, hbk_int N, hbk_int H, hbk_int D, bool back)
{
    hbk_real sign = back ? (hbk_real)-1 : (hbk_real)1;
#ifdef _OPENMP
#pragma omp parallel for schedule(static) if (N * H * D > HBK__PARALLEL_MIN)
#endif
    for (hbk_int n = 0; n < N; n++) hbk__rope_row(x + n * H * D, table + n * D, H, D, sign);
}

/* 9.4  Attention, for each head, with q, k, v rows of size D and scale c = 1 / sqrt(D):

       S_ij = c q_i . k_j  for j <= i        P = softmax of each row of S        o_i = sum_j P_ij v_j

   Rows of P are not kept: with lse_i = log sum_j exp(S_ij) they come back as P_ij = exp(S_ij - lse_i).
   Backward, with delta_i = sum_j P_ij dP_ij = do_i . o_i:

       dV = P^T dO      dP = dO V^T      dS_ij = P_ij (dP_ij - delta_i)      dQ = c dS K      dK = c dS^T Q

   Queries are taken HBK__Q_BLOCK at a time, so that scratch is a strip of scores and never (T, T).
   Forward tasks are (sequence, query head, block), of a head the last block first, which sees the most keys;
   backward tasks (sequence, key/value head) with the group of query heads that reads it, so that no two tasks
   add to the same dK, dV. Inside a task OpenBLAS stays on its thread. Source of the recomputation: Dao et al.
   2022.

   In the backward the block's queries of the whole group are the rows of one matrix, which meets the keys a
   tile at a time: P and dP stay in the second cache for five products, and these have many rows (84 GFLOP/s
   on a Zen 4 core that reaches 95; 75 head by head over strips of 2048 keys). A sequence of so many scores
   that a task of it would keep other threads waiting is shared by all of them, each with a dK, dV of its own:
   2048 tokens, 9:3 heads of 64, take a layer 75 ms on two cores, 105 with a task for each of the three.

   A sequence of few queries, a step of decoding, costs the reading of its keys and values: there a task is
   (sequence, key/value head), and a row that was read meets its whole group. Sequences whose beginnings lie
   in one place read that place once: the group's rows of all of them are one matrix that meets the shared
   keys, then the shared values, in one product. A row of scores is whole, shared part | own part, before its
   softmax, so nothing has to be merged. A step of 16 sequences of 650 tokens, 9:3 heads of 64, takes a layer
   1.3 ms on one Zen 4 core (as many bytes as it can read; 3.3 ms query head by query head over caches with
   the heads side by side), and 0.8 ms where 500 of the tokens are shared.

   Keys and values that are kept as bf16 are half the bytes. HBK__Q_BLOCK of them at a time become reals,
   which stay in the first cache for all that meets them, and the products are the same as over reals; but in
   a step that would cost more than the reading saves (1.7 ms), and bf16 is met as it lies: 0.66 ms, 0.58
   where 500 are shared, and after 2000 tokens 1.9 ms where reals take 4.7. */

#define HBK__Q_BLOCK     ((hbk_int)64)
#define HBK__FEW_QUERIES ((hbk_int)4)
#define HBK__TOGETHER    ((hbk_int)32) /* rows of a product with shared keys: 16 and 64 are as fast */
#define HBK__SIDE        ((hbk_int)256) /* rows, and keys, of a tile of scores; two are half a megabyte */

HBK_DEF hbk_int hbk_attention_work(hbk_int max_keys, hbk_int D, int threads)
{
    /* the backward keeps P and dP; the forward scores, queries, results and widened keys side by side */
    hbk_int forward = HBK__Q_BLOCK * (max_keys + 3 * D);
    hbk_int backward = HBK__SIDE * (2 * HBK__SIDE + 3 * D) + 2 * max_keys * D;
    return threads * HBK__MAX(forward, backward);
}

/* Softmax in place of the first n of a row of scores; the rest, up to `end`, becomes 0. Returns the log
   of the denominator. */
HBK__CLONES
static double hbk__softmax_row(hbk_real *s, hbk_int n, hbk_int end)
{
    hbk_real max = s[0], sum = 0;
#pragma omp simd reduction(max : max)
    for (hbk_int j = 0; j < n; j++) max = s[j] > max ? s[j] : max;
#pragma omp simd reduction(+ : sum)
    for (hbk_int j = 0; j < n; j++) {
        s[j] = hbk__exp(s[j] - max);
        sum += s[j];
    }
    hbk_real inverse = 1 / sum;
    HBK__SIMD
    for (hbk_int j = 0; j < n; j++) s[j] *= inverse;
    for (hbk_int j = n; j < end; j++) s[j] = 0;
    return (double)max + log((double)sum);
}

/* s (n, keys) = q k^T / sqrt(D) for a few rows of q, with four keys at once, which stay in the first cache
   for all rows. Rows of s, q and k lie lds, ldq and ldk apart. */
HBK__CLONES
static void hbk__scores_few(hbk_real *s, hbk_int lds, const hbk_real *q, hbk_int ldq, hbk_int n,
                            const hbk_real *k, hbk_int ldk, hbk_int keys, hbk_int D)
{
    hbk_real scale = (hbk_real)(1 / sqrt((double)D));
    hbk_int j = 0;
    for (; j + 4 <= keys; j += 4) {
        const hbk_real *k0 = k + j * ldk, *k1 = k0 + ldk, *k2 = k1 + ldk, *k3 = k2 + ldk;
        for (hbk_int i = 0; i < n; i++) {
            const hbk_real *x = q + i * ldq;
            hbk_real s0 = 0, s1 = 0, s2 = 0, s3 = 0, *to = s + i * lds + j;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
            for (hbk_int d = 0; d < D; d++)
                s0 += x[d] * k0[d], s1 += x[d] * k1[d], s2 += x[d] * k2[d], s3 += x[d] * k3[d];
            to[0] = scale * s0, to[1] = scale * s1, to[2] = scale * s2, to[3] = scale * s3;
        }
    }
    for (; j < keys; j++)
        for (hbk_int i = 0; i < n; i++) s[i * lds + j] = scale * hbk__dot(q + i * ldq, k + j * ldk, D);
}

/* out (n, D) += p (n, keys) v, likewise. */
HBK__CLONES
static void hbk__values_few(hbk_real *out, hbk_int ldo, const hbk_real *p, hbk_int ldp, hbk_int n,
                            const hbk_real *v, hbk_int ldv, hbk_int keys, hbk_int D)
{
    hbk_int j = 0;
    for (; j + 4 <= keys; j += 4) {
        const hbk_real *v0 = v + j * ldv, *v1 = v0 + ldv, *v2 = v1 + ldv, *v3 = v2 + ldv;
        for (hbk_int i = 0; i < n; i++) {
            const hbk_real *w = p + i * ldp + j;
            hbk_real w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3], *to = out + i * ldo;
            HBK__SIMD
            for (hbk_int d = 0; d < D; d++)
                to[d] = to[d] + w0 * v0[d] + w1 * v1[d] + w2 * v2[d] + w3 * v3[d];
        }
    }
    for (; j < keys; j++)
        for (hbk_int i = 0; i < n; i++) {
            hbk_real w = p[i * ldp + j], *to = out + i * ldo;
            const hbk_real *x = v + j * ldv;
            HBK__SIMD
            for (hbk_int d = 0; d < D; d++) to[d] += w * x[d];
        }
}

#ifdef HBK__X86
/* The two over bf16, for D a multiple of 32 and two rows at a time (the last of an odd number twice). Of
   sixteen bf16s the even ones become floats by a shift and the odd ones by a mask: q is sorted likewise, and
   sums are sorted back. */
#define HBK__EVEN(x) _mm256_castsi256_ps(_mm256_slli_epi32(x, 16))
#define HBK__ODD(x)  _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32((int)0xffff0000u)))

/* The sums of the lanes of four vectors. */
HBK__AVX2
static inline __m128 hbk__sum_four(__m256 a, __m256 b, __m256 c, __m256 d)
{
    __m256 ab = _mm256_hadd_ps(a, b), cd = _mm256_hadd_ps(c, d), x = _mm256_hadd_ps(ab, cd);
    return _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
}

/* sorted: room for (n, D) */
HBK__AVX2
static void hbk__scores_bf16(float *s, hbk_int lds, const float *q, hbk_int ldq, hbk_int n, const uint16_t *k,
                             hbk_int ldk, hbk_int keys, hbk_int D, float *sorted)
{
    __m128 scale = _mm_set1_ps((float)(1 / sqrt((double)D)));
    for (hbk_int i = 0; i < n; i++)
        for (hbk_int d = 0; d < D; d++) sorted[i * D + d / 16 * 16 + d % 2 * 8 + d % 16 / 2] = q[i * ldq + d];
    for (hbk_int j = 0; j < keys; j += 4) {
        const uint16_t *k0 = k + j * ldk, *end = k + (keys - 1) * ldk; /* where four go beyond: once more */
        const uint16_t *k1 = HBK__MIN(k0 + ldk, end), *k2 = HBK__MIN(k1 + ldk, end);
        const uint16_t *k3 = HBK__MIN(k2 + ldk, end);
        size_t bytes = sizeof *s * (size_t)HBK__MIN(4, keys - j);
        for (hbk_int i = 0; i < n; i += 2) {
            hbk_int other = HBK__MIN(i + 1, n - 1);
            const float *x = sorted + i * D, *y = sorted + other * D;
            __m256 x0 = _mm256_setzero_ps(), x1 = x0, x2 = x0, x3 = x0, y0 = x0, y1 = x0, y2 = x0, y3 = x0;
            for (hbk_int d = 0; d < D; d += 16) {
                __m256 xe = _mm256_loadu_ps(x + d), xo = _mm256_loadu_ps(x + d + 8);
                __m256 ye = _mm256_loadu_ps(y + d), yo = _mm256_loadu_ps(y + d + 8), e, o;
                __m256i w = _mm256_loadu_si256((const __m256i *)(k0 + d));
                e = HBK__EVEN(w), x0 = _mm256_fmadd_ps(e, xe, x0), y0 = _mm256_fmadd_ps(e, ye, y0);
                o = HBK__ODD(w), x0 = _mm256_fmadd_ps(o, xo, x0), y0 = _mm256_fmadd_ps(o, yo, y0);
                w = _mm256_loadu_si256((const __m256i *)(k1 + d));
                e = HBK__EVEN(w), x1 = _mm256_fmadd_ps(e, xe, x1), y1 = _mm256_fmadd_ps(e, ye, y1);
                o = HBK__ODD(w), x1 = _mm256_fmadd_ps(o, xo, x1), y1 = _mm256_fmadd_ps(o, yo, y1);
                w = _mm256_loadu_si256((const __m256i *)(k2 + d));
                e = HBK__EVEN(w), x2 = _mm256_fmadd_ps(e, xe, x2), y2 = _mm256_fmadd_ps(e, ye, y2);
                o = HBK__ODD(w), x2 = _mm256_fmadd_ps(o, xo, x2), y2 = _mm256_fmadd_ps(o, yo, y2);
                w = _mm256_loadu_si256((const __m256i *)(k3 + d));
                e = HBK__EVEN(w), x3 = _mm256_fmadd_ps(e, xe, x3), y3 = _mm256_fmadd_ps(e, ye, y3);
                o = HBK__ODD(w), x3 = _mm256_fmadd_ps(o, xo, x3), y3 = _mm256_fmadd_ps(o, yo, y3);
            }
            float four[8];
            _mm_storeu_ps(four, _mm_mul_ps(scale, hbk__sum_four(x0, x1, x2, x3)));
            _mm_storeu_ps(four + 4, _mm_mul_ps(scale, hbk__sum_four(y0, y1, y2, y3)));
            memcpy(s + i * lds + j, four, bytes);
            memcpy(s + other * lds + j, four + 4, bytes);
        }
    }
}

/* x[0..15] += the even and odd sums */
HBK__AVX2
static inline void hbk__add_sorted(float *x, __m256 even, __m256 odd)
{
    __m256 low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
    __m256 a = _mm256_permute2f128_ps(low, high, 0x20), b = _mm256_permute2f128_ps(low, high, 0x31);
    _mm256_storeu_ps(x, _mm256_add_ps(_mm256_loadu_ps(x), a));
    _mm256_storeu_ps(x + 8, _mm256_add_ps(_mm256_loadu_ps(x + 8), b));
}

/* 64 values at a time, which stay in the first cache for all columns and rows. */
HBK__AVX2
static void hbk__values_bf16(float *out, hbk_int ldo, const float *p, hbk_int ldp, hbk_int n,
                             const uint16_t *v, hbk_int ldv, hbk_int keys, hbk_int D)
{
    for (hbk_int j = 0; j < keys; j += 64)
        for (hbk_int d = 0; d < D; d += 32)
            for (hbk_int i = 0; i < n; i += 2) {
                hbk_int other = HBK__MIN(i + 1, n - 1), end = HBK__MIN(j + 64, keys);
                const float *x = p + i * ldp, *y = p + other * ldp;
                __m256 x0 = _mm256_setzero_ps(), x1 = x0, x2 = x0, x3 = x0, y0 = x0, y1 = x0;
                __m256 y2 = x0, y3 = x0;
                for (hbk_int k = j; k < end; k++) {
                    __m256 a = _mm256_set1_ps(x[k]), b = _mm256_set1_ps(y[k]), w;
                    __m256i low = _mm256_loadu_si256((const __m256i *)(v + k * ldv + d));
                    __m256i high = _mm256_loadu_si256((const __m256i *)(v + k * ldv + d + 16));
                    w = HBK__EVEN(low), x0 = _mm256_fmadd_ps(w, a, x0), y0 = _mm256_fmadd_ps(w, b, y0);
                    w = HBK__ODD(low), x1 = _mm256_fmadd_ps(w, a, x1), y1 = _mm256_fmadd_ps(w, b, y1);
                    w = HBK__EVEN(high), x2 = _mm256_fmadd_ps(w, a, x2), y2 = _mm256_fmadd_ps(w, b, y2);
                    w = HBK__ODD(high), x3 = _mm256_fmadd_ps(w, a, x3), y3 = _mm256_fmadd_ps(w, b, y3);
                }
                hbk__add_sorted(out + i * ldo + d, x0, x1);
                hbk__add_sorted(out + i * ldo + d + 16, x2, x3);
                if (other == i) continue;
                hbk__add_sorted(out + other * ldo + d, y0, y1);
                hbk__add_sorted(out + other * ldo + d + 16, y2, y3);
            }
}
#endif

/* Keys or values of one head: rows of D, ld elements apart. */
typedef struct hbk__kept {
    const void *rows;
    hbk_int ld;
    hbk_dtype dtype; /* as that of hbk_span */
    hbk_real *wide;  /* room for HBK__Q_BLOCK rows of reals */
} hbk__kept;

/* Rows `from` .. of those below `end`, as reals: all of them where they lie, ldw apart, or the next few in
   k->wide. Returns how many. */
static hbk_int hbk__widen(const hbk__kept *k, hbk_int from, hbk_int end, hbk_int D, const hbk_real **wide,
                          hbk_int *ldw)
{
    bool reals = k->dtype != HBK_BF16;
    hbk_int n = reals ? end - from : HBK__MIN(HBK__Q_BLOCK, end - from);
    *wide = reals ? (const hbk_real *)k->rows + from * k->ld : k->wide;
    *ldw = reals ? k->ld : D;
    if (reals) return n;
    const unsigned char *at = (const unsigned char *)k->rows + 2 * from * k->ld;
    if (k->ld == D) hbk__unpack_bf16(k->wide, at, n * D);
    else for (hbk_int i = 0; i < n; i++) hbk__unpack_bf16(k->wide + i * D, at + 2 * i * k->ld, D);
    return n;
}

#ifdef HBK__X86
/* Whether a loop is written for these rows in the words of this processor. */
static bool hbk__in_words(const hbk__kept *k, hbk_int D)
{
    return k->dtype == HBK_BF16 && D % 32 == 0 && HBK__HAS_AVX2();
}
#endif

/* The two over keys or values of either type, from row `first` on, by the loops above or, for more rows than
   a few, by OpenBLAS; values are added to what is there, or replace it. */
static void hbk__scores(bool few, hbk_real *s, hbk_int lds, const hbk_real *q, hbk_int ldq, hbk_int n,
                        const hbk__kept *kept, hbk_int first, hbk_int keys, hbk_int D)
{
    const hbk_real *k;
    hbk_real scale = (hbk_real)(1 / sqrt((double)D));
    if (keys == 0) return; /* nothing is shared: there are no rows */
#ifdef HBK__X86
    if (few && hbk__in_words(kept, D)) {
        hbk__scores_bf16(s, lds, q, ldq, n, (const uint16_t *)kept->rows + first * kept->ld, kept->ld, keys,
                         D, kept->wide);
        return;
    }
#endif
    for (hbk_int j = 0, m, ldk; j < keys; j += m) {
        m = hbk__widen(kept, first + j, first + keys, D, &k, &ldk);
        if (few) hbk__scores_few(s + j, lds, q, ldq, n, k, ldk, m, D);
        else hbk__gemm(false, true, n, m, D, scale, q, ldq, k, ldk, 0, s + j, lds);
    }
}

static void hbk__values(bool few, hbk_real *out, hbk_int ldo, const hbk_real *p, hbk_int ldp, hbk_int n,
                        const hbk__kept *kept, hbk_int first, hbk_int keys, hbk_int D, bool add)
{
    const hbk_real *v;
    for (hbk_int i = 0; i < n && few && !add; i++) memset(out + i * ldo, 0, (size_t)D * sizeof *out);
#ifdef HBK__X86
    if (few && hbk__in_words(kept, D)) {
        hbk__values_bf16(out, ldo, p, ldp, n, (const uint16_t *)kept->rows + first * kept->ld, kept->ld, keys,
                         D);
        return;
    }
#endif
    for (hbk_int j = 0, m, ldv; j < keys; j += m) {
        m = hbk__widen(kept, first + j, first + keys, D, &v, &ldv);
        if (few) hbk__values_few(out, ldo, p + j, ldp, n, v, ldv, m, D);
        else hbk__gemm(false, false, n, D, m, 1, p + j, ldp, v, ldv, add || j > 0 ? 1 : 0, out, ldo);
    }
}

/* What the tasks of a forward have in common. */
typedef struct hbk__attending {
    hbk_real *out, *lse;
    const hbk_real *q;
    const hbk_span *spans;
    hbk_int n_spans, H, K, D;
    hbk_int most; /* keys of the longest */
} hbk__attending;

/* Of `rows`, keys or values of a span, what query head h reads. */
static hbk__kept hbk__kept_head(const hbk__attending *a, const hbk_span *p, const void *rows, hbk_int h,
                                hbk_real *wide)
{
    hbk_int column = h / (a->H / a->K) * (p->row ? p->head : a->D);
    size_t size = p->dtype == HBK_BF16 ? 2 : sizeof(hbk_real);
    hbk__kept k = {rows ? (const char *)rows + (size_t)column * size : NULL, p->row ? p->row : a->K * a->D,
                   p->dtype, wide};
    return k;
}

/* Queries i .. i+n-1 of one span and query head. s: a strip of n * keys scores; wide: see hbk__kept. */
static void hbk__attention_block(const hbk__attending *a, const hbk_span *p, hbk_int h, hbk_int i, hbk_int n,
                                 hbk_real *s, hbk_real *wide)
{
    hbk_int H = a->H, D = a->D, keys = p->past + i + n, own = keys - p->shared; /* the last row sees all */
    hbk_int row = (p->q_start + i) * H + h;
    bool few = n < HBK__FEW_QUERIES; /* a block's last rows */
    const hbk_real *q = a->q + row * D;
    hbk_real *out = a->out + row * D;
    hbk__kept shared_k = hbk__kept_head(a, p, p->shared_k, h, wide), k = hbk__kept_head(a, p, p->k, h, wide);
    hbk__kept shared_v = hbk__kept_head(a, p, p->shared_v, h, wide), v = hbk__kept_head(a, p, p->v, h, wide);
    hbk__scores(few, s, keys, q, H * D, n, &shared_k, 0, p->shared, D);
    hbk__scores(few, s + p->shared, keys, q, H * D, n, &k, p->shared, own, D);
    for (hbk_int r = 0; r < n; r++) {
        double l = hbk__softmax_row(s + r * keys, keys - n + 1 + r, keys);
        if (a->lse) a->lse[row + r * H] = (hbk_real)l;
    }
    if (p->shared) hbk__values(few, out, H * D, s, keys, n, &shared_v, 0, p->shared, D, false);
    hbk__values(few, out, H * D, s + p->shared, keys, n, &v, p->shared, own, D, p->shared > 0);
}

/* Query t of each of n spans, and `heads` query heads from h on, which read one key/value head; of several
   spans the shared parts are one. work: (n * heads, most) scores, and twice (n * heads, D). */
static void hbk__attention_group(const hbk__attending *a, const hbk_span *const *spans, hbk_int n, hbk_int t,
                                 hbk_int h, hbk_int heads, hbk_real *work, hbk_real *wide)
{
    hbk_int D = a->D, most = a->most, rows = n * heads, shared = spans[0]->shared;
    bool few = rows < HBK__FEW_QUERIES;
    hbk_real *s = work, *q = s + rows * most, *out = q + rows * D;
    size_t bytes = (size_t)(heads * D) * sizeof *q;
    hbk__kept k = hbk__kept_head(a, spans[0], spans[0]->shared_k, h, wide), v;
    for (hbk_int m = 0; m < n; m++)
        memcpy(q + m * heads * D, a->q + ((spans[m]->q_start + t) * a->H + h) * D, bytes);
    hbk__scores(few, s, most, q, D, rows, &k, 0, shared, D);
    for (hbk_int m = 0; m < n; m++) {
        const hbk_span *p = spans[m];
        hbk_int keys = p->past + t + 1, row = (p->q_start + t) * a->H + h;
        hbk_real *own = s + m * heads * most;
        k = hbk__kept_head(a, p, p->k, h, wide);
        hbk__scores(true, own + shared, most, q + m * heads * D, D, heads, &k, shared, keys - shared, D);
        for (hbk_int g = 0; g < heads; g++) {
            double l = hbk__softmax_row(own + g * most, keys, keys);
            if (a->lse) a->lse[row + g] = (hbk_real)l;
        }
    }
    v = hbk__kept_head(a, spans[0], spans[0]->shared_v, h, wide);
    if (shared) hbk__values(few, out, D, s, most, rows, &v, 0, shared, D, false);
    else memset(out, 0, (size_t)(rows * D) * sizeof *out);
    for (hbk_int m = 0; m < n; m++) {
        const hbk_span *p = spans[m];
        hbk_real *to = out + m * heads * D;
        v = hbk__kept_head(a, p, p->v, h, wide);
        hbk__values(true, to, D, s + m * heads * most + shared, most, heads, &v, shared,
                    p->past + t + 1 - shared, D, true);
        memcpy(a->out + ((p->q_start + t) * a->H + h) * D, to, bytes);
    }
}

/* Whether steps of two sequences are taken together. */
static bool hbk__together(const hbk_span *x, const hbk_span *y)
{
    return x->T == 1 && y->T == 1 && x->shared > 0 && x->shared == y->shared &&
           x->shared_k == y->shared_k && x->shared_v == y->shared_v && x->row == y->row &&
           x->head == y->head && x->dtype == y->dtype;
}

/* The spans that are taken together with span s and not before it: how many, 0 if an earlier one takes it.
   All that belong together are cut into pieces of equal size, up to `most`. */
static hbk_int hbk__attention_piece(const hbk__attending *a, hbk_int s, hbk_int most, const hbk_span **piece)
{
    hbk_int before = 0, all = 0, n = 0;
    for (hbk_int i = 0; i < a->n_spans; i++)
        if (hbk__together(&a->spans[s], &a->spans[i])) before += i < s, all++;
    hbk_int n_pieces = (all + most - 1) / most, size = all ? (all + n_pieces - 1) / n_pieces : 1;
    if (before % size != 0) return 0;
    piece[n++] = &a->spans[s];
    for (hbk_int i = s + 1; i < a->n_spans && n < size; i++)
        if (hbk__together(&a->spans[s], &a->spans[i])) piece[n++] = &a->spans[i];
    return n;
}

/* Few queries of span s, for one key/value head. */
static void hbk__attention_few(const hbk__attending *a, hbk_int s, hbk_int kv, hbk_real *work, hbk_real *wide)
{
    const hbk_span *piece[HBK__TOGETHER];
    hbk_int group = a->H / a->K, end = (kv + 1) * group;
    hbk_int n = hbk__attention_piece(a, s, HBK__MAX(HBK__TOGETHER / group, 1), piece);
    for (hbk_int t = 0; n > 0 && t < a->spans[s].T; t++)
        for (hbk_int h = kv * group; h < end; h += HBK__Q_BLOCK)
            hbk__attention_group(a, piece, n, t, h, HBK__MIN(HBK__Q_BLOCK, end - h), work, wide);
}

HBK_DEF void hbk_attention_forward(hbk_real *out, hbk_real *lse, const hbk_real *q, const hbk_span *spans,
                                   hbk_int n_spans, hbk_int H, hbk_int K, hbk_int D, hbk_real *work,
                                   int threads)
{
    hbk__attending a = {out, lse, q, spans, n_spans, H, K, D, 0};
    hbk_int scores = 0, group = H / K, blocks = 0;
    for (hbk_int s = 0; s < n_spans; s++) {
        HBK_ASSERT(spans[s].shared >= 0 && spans[s].shared <= spans[s].past);
        a.most = HBK__MAX(a.most, spans[s].past + spans[s].T);
        blocks = HBK__MAX(blocks, (spans[s].T + HBK__Q_BLOCK - 1) / HBK__Q_BLOCK);
        scores += spans[s].T * (spans[s].past + spans[s].T);
    }
    (void)threads;
    (void)scores;
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (scores * H * D > HBK__PARALLEL_MIN)
#endif
    for (hbk_int task = 0; task < n_spans * H * blocks; task++) {
        hbk_int head = task / blocks, h = head % H, i = (blocks - 1 - task % blocks) * HBK__Q_BLOCK;
        const hbk_span *p = &spans[head / H];
        hbk_real *s = work + hbk__thread() * HBK__Q_BLOCK * (a.most + 3 * D);
        hbk_real *wide = s + HBK__Q_BLOCK * (a.most + 2 * D);
        if (p->T >= HBK__FEW_QUERIES && i < p->T)
            hbk__attention_block(&a, p, h, i, HBK__MIN(HBK__Q_BLOCK, p->T - i), s, wide);
        else if (p->T < HBK__FEW_QUERIES && i == 0 && h % group == 0)
            hbk__attention_few(&a, head / H, h / group, s, wide);
    }
}

/* dS in place of P for a block: ds = p * (dp - delta) * scale, and P itself from scores by lse. */
HBK__CLONES
static void hbk__attention_ds_row(hbk_real *ds, const hbk_real *p, const hbk_real *dp, hbk_int n,
                                  hbk_real delta, hbk_real scale)
{
    HBK__SIMD
    for (hbk_int j = 0; j < n; j++) ds[j] = p[j] * (dp[j] - delta) * scale;
}

HBK__CLONES
static void hbk__attention_p_row(hbk_real *s, hbk_int n, hbk_int end, hbk_real lse)
{
    HBK__SIMD
    for (hbk_int j = 0; j < n; j++) s[j] = hbk__exp(s[j] - lse);
    for (hbk_int j = n; j < end; j++) s[j] = 0;
}

/* What the blocks of a backward have in common. */
typedef struct hbk__attending_back {
    hbk_real *dq;
    const hbk_real *dout, *out, *lse, *q;
    hbk_int H, K, D;
} hbk__attending_back;

/* The gradients of one key/value head's keys and values: rows of D, ld apart. */
typedef struct hbk__attended {
    hbk_real *dk, *dv;
    hbk_int ld;
} hbk__attended;

/* Queries i .. i+n-1 of a span and `heads` query heads from h on, which read one key/value head: row
   t*heads+g of a tile is query t of head g. work: P and dP of a tile, and (n * heads, D) three times. */
static void hbk__attention_tiles_backward(const hbk__attending_back *a, const hbk_span *s, hbk_int h,
                                          hbk_int heads, hbk_int i, hbk_int n, const hbk__attended *to,
                                          hbk_real *work)
{
    hbk_int H = a->H, D = a->D, ld = a->K * D, rows = n * heads, wide = heads * D;
    hbk_int first = (s->q_start + i) * H + h, column = h / (H / a->K) * D;
    hbk_real *p = work, *dp = p + HBK__SIDE * HBK__SIDE, *q = dp + HBK__SIDE * HBK__SIDE;
    hbk_real *dout = q + rows * D, *dq = dout + rows * D, delta[HBK__SIDE], lse[HBK__SIDE];
    hbk_real scale = (hbk_real)(1 / sqrt((double)D));
    for (hbk_int t = 0; t < n; t++) {
        memcpy(q + t * wide, a->q + (first + t * H) * D, (size_t)wide * sizeof *q);
        memcpy(dout + t * wide, a->dout + (first + t * H) * D, (size_t)wide * sizeof *dout);
        memcpy(lse + t * heads, a->lse + first + t * H, (size_t)heads * sizeof *lse);
    }
    for (hbk_int r = 0; r < rows; r++)
        delta[r] = hbk__dot(dout + r * D, a->out + (first + r / heads * H + r % heads) * D, D);
    for (hbk_int j = 0, m; j < i + n; j += m) {
        const hbk_real *k = (const hbk_real *)s->k + j * ld + column;
        const hbk_real *v = (const hbk_real *)s->v + j * ld + column;
        m = HBK__MIN(HBK__SIDE, i + n - j);
        hbk__gemm(false, true, rows, m, D, scale, q, D, k, ld, 0, p, m);
        for (hbk_int r = 0; r < rows; r++)
            hbk__attention_p_row(p + r * m, HBK__MAX(0, HBK__MIN(m, i + r / heads + 1 - j)), m, lse[r]);
        /* forward: out = P V */
        hbk__gemm(true, false, m, D, rows, 1, p, m, dout, D, 1, to->dv + j * to->ld, to->ld);
        hbk__gemm(false, true, rows, m, D, 1, dout, D, v, ld, 0, dp, m);
        /* forward: P = softmax(S) row by row */
        for (hbk_int r = 0; r < rows; r++)
            hbk__attention_ds_row(dp + r * m, p + r * m, dp + r * m, m, delta[r], scale);
        /* forward: S = scale Q K^T */
        hbk__gemm(false, false, rows, D, m, 1, dp, m, k, ld, j > 0, dq, D);
        hbk__gemm(true, false, m, D, rows, 1, dp, m, q, D, 1, to->dk + j * to->ld, to->ld);
    }
    for (hbk_int t = 0; t < n; t++) hbk__axpy(a->dq + (first + t * H) * D, 1, dq + t * wide, wide);
}

/* Queries of a block: with the heads that read one key/value head they are the rows of a tile. */
static hbk_int hbk__attention_step(hbk_int group)
{
    return HBK__MAX(1, HBK__MIN(HBK__Q_BLOCK, HBK__SIDE / group));
}

/* Block b of a span's queries, for all heads that read key/value head kv. */
static void hbk__attention_block_backward(const hbk__attending_back *a, const hbk_span *s, hbk_int kv,
                                          hbk_int b, const hbk__attended *to, hbk_real *work)
{
    hbk_int group = a->H / a->K, n = hbk__attention_step(group), i = b * n, end = (kv + 1) * group;
    for (hbk_int h = kv * group; h < end; h += HBK__SIDE)
        hbk__attention_tiles_backward(a, s, h, HBK__MIN(HBK__SIDE, end - h), i, HBK__MIN(n, s->T - i), to,
                                      work);
}

/* One key/value head of a long span, by all threads: part 0 .. threads-1 takes blocks from both ends, which
   cost little and much, and adds to a dK and dV of its own. Those are then added up in order. */
static void hbk__attention_shared_backward(const hbk__attending_back *a, const hbk_span *s, hbk_int kv,
                                           const hbk__attended *to, hbk_real *work, hbk_int strip,
                                           int threads)
{
    hbk_int D = a->D, step = hbk__attention_step(a->H / a->K), n = (s->T + step - 1) / step, half = s->T * D;
#ifdef _OPENMP
#pragma omp parallel for schedule(static, 1) num_threads(threads)
#endif
    for (int part = 0; part < threads; part++) {
        hbk_real *own = work + part * strip;
        hbk__attended apart = {own, own + half, D};
        if (part > 0) memset(own, 0, (size_t)(2 * half) * sizeof *own);
        for (hbk_int b = 0; b < n; b++) {
            hbk_int turn = b % (2 * threads);
            if (part == HBK__MIN(turn, 2 * threads - 1 - turn))
                hbk__attention_block_backward(a, s, kv, b, part > 0 ? &apart : to, own + 2 * half);
        }
    }
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(threads)
#endif
    for (hbk_int t = 0; t < s->T; t++)
        for (int part = 1; part < threads; part++) {
            hbk__axpy(to->dk + t * to->ld, 1, work + part * strip + t * D, D);
            hbk__axpy(to->dv + t * to->ld, 1, work + part * strip + half + t * D, D);
        }
}

HBK_DEF void hbk_attention_backward(hbk_real *dq, hbk_real *dk, hbk_real *dv, const hbk_real *dout,
                                    const hbk_real *out, const hbk_real *lse, const hbk_real *q,
                                    const hbk_span *spans, hbk_int n_spans, hbk_int H, hbk_int K, hbk_int D,
                                    hbk_real *work, int threads)
{
    hbk__attending_back a = {dq, dout, out, lse, q, H, K, D};
    hbk_int most = 0, scores = 0, step = hbk__attention_step(H / K);
    for (hbk_int s = 0; s < n_spans; s++) {
        HBK_ASSERT(spans[s].past == 0 && spans[s].shared == 0 && spans[s].row == 0);
        HBK_ASSERT(spans[s].dtype != HBK_BF16);
        most = HBK__MAX(most, spans[s].T);
        scores += spans[s].T * spans[s].T;
    }
    hbk_int strip = hbk_attention_work(most, D, 1);
    if (scores * H * D <= HBK__PARALLEL_MIN) threads = 1;
    /* A task of more than a quarter of a thread's share would keep the others waiting: those come after. */
    hbk_int largest = scores * K / (4 * threads);
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
#endif
    for (hbk_int task = 0; task < n_spans * K; task++) {
        const hbk_span *s = &spans[task / K];
        hbk_int at = (s->q_start * K + task % K) * D;
        hbk__attended to = {dk + at, dv + at, K * D};
        for (hbk_int b = 0; s->T * s->T <= largest && b * step < s->T; b++)
            hbk__attention_block_backward(&a, s, task % K, b, &to, work + hbk__thread() * strip);
    }
    for (hbk_int task = 0; task < n_spans * K; task++) {
        const hbk_span *s = &spans[task / K];
        hbk_int at = (s->q_start * K + task % K) * D;
        hbk__attended to = {dk + at, dv + at, K * D};
        if (s->T * s->T > largest) hbk__attention_shared_backward(&a, s, task % K, &to, work, strip, threads);
    }
}

/* 9.5  SwiGLU: y = g sigma(g) u with sigma(g) = 1 / (1 + exp(-g)).

       dy/dg = u sigma (1 + g (1 - sigma))          dy/du = g sigma */

HBK__CLONES
static void hbk__swiglu_chunk(hbk_real *y, const hbk_real *gate, const hbk_real *up, hbk_int n)
{
    HBK__SIMD
    for (hbk_int i = 0; i < n; i++) y[i] = gate[i] / (1 + hbk__exp(-gate[i])) * up[i];
}

HBK__CLONES
static void hbk__swiglu_chunk_backward(hbk_real *dgate, hbk_real *dup, const hbk_real *dy,
                                       const hbk_real *gate, const hbk_real *up, hbk_int n)
{
    HBK__SIMD
    for (hbk_int i = 0; i < n; i++) {
        hbk_real g = gate[i], sigma = 1 / (1 + hbk__exp(-g));
        /* forward: y[i] = g * sigma * up[i] */
        dgate[i] += dy[i] * up[i] * sigma * (1 + g * (1 - sigma));
        dup[i] += dy[i] * g * sigma;
    }
}

HBK_DEF void hbk_swiglu_forward(hbk_real *y, const hbk_real *gate, const hbk_real *up, hbk_int n)
{
#ifdef _OPENMP
#pragma omp parallel for schedule(static) if (n > HBK__PARALLEL_MIN)
#endif
    for (hbk_int i = 0; i < n; i += HBK__CHUNK)
        hbk__swiglu_chunk(y + i, gate + i, up + i, HBK__MIN(HBK__CHUNK, n - i));
}

HBK_DEF void hbk_swiglu_backward(hbk_real *dgate, hbk_real *dup, const hbk_real *dy, const hbk_real *gate,
                                 const hbk_real *up, hbk_int n)
{
#ifdef _OPENMP
#pragma omp parallel for schedule(static) if (n > HBK__PARALLEL_MIN)
#endif
    for (hbk_int i = 0; i < n; i += HBK__CHUNK)
        hbk__swiglu_chunk_backward(dgate + i, dup + i, dy + i, gate + i, up + i, HBK__MIN(HBK__CHUNK, n - i));
}

/* 9.6  Cross-entropy: the loss of a row with target t is -log softmax(z)_t = log sum_j exp(z_j) - z_t, and
   its derivative by z_j is softmax(z)_j - [j = t]. */

HBK__CLONES
static double hbk__cross_entropy_row(hbk_real *dz, const hbk_real *z, int32_t target, hbk_int V, double scale)
{
    hbk_real max = z[0], wanted = z[target];
#pragma omp simd reduction(max : max)
    for (hbk_int j = 0; j < V; j++) max = z[j] > max ? z[j] : max;
    double total = 0; /* blocks in real, their sum in double: V may be 10^5 */
    for (hbk_int b = 0; b < V; b += 1024) {
        hbk_real sum = 0;
        hbk_int end = HBK__MIN(b + 1024, V);
#pragma omp simd reduction(+ : sum)
        for (hbk_int j = b; j < end; j++) sum += hbk__exp(z[j] - max);
        total += (double)sum;
    }
    double log_total = log(total);
    if (dz) {
        hbk_real shift = (hbk_real)((double)max + log_total), s = (hbk_real)scale;
        HBK__SIMD
        for (hbk_int j = 0; j < V; j++) dz[j] = s * hbk__exp(z[j] - shift);
        dz[target] -= s;
    }
    return (double)max + log_total - (double)wanted;
}

HBK_DEF double hbk_cross_entropy(hbk_real *dlogits, double *nll, const hbk_real *logits,
                                 const int32_t *targets, hbk_int N, hbk_int V, double scale)
{
    double total = 0, row[64];
    for (hbk_int b = 0; b < N; b += 64) { /* rows in parallel, their sum in order */
        hbk_int n = HBK__MIN(64, N - b);
#ifdef _OPENMP
#pragma omp parallel for schedule(static) if (n * V > HBK__PARALLEL_MIN)
#endif
        for (hbk_int i = 0; i < n; i++)
            row[i] = hbk__cross_entropy_row(dlogits ? dlogits + (b + i) * V : NULL, logits + (b + i) * V,
                                            targets[b + i], V, scale);
        for (hbk_int i = 0; i < n; i++) {
            if (nll) nll[b + i] = row[i];
            total += row[i];
        }
    }
    return total;
}

/* 9.7  Dropout, whose mask is recomputed from the element's index instead of stored. */

static inline uint32_t hbk__mix32(uint32_t x)
{
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

HBK__CLONES
static void hbk__dropout_chunk(hbk_real *y, const hbk_real *x, hbk_int first, hbk_int n, uint32_t threshold,
                               hbk_real scale, uint32_t key, uint32_t key2)
{
    HBK__SIMD
    for (hbk_int i = 0; i < n; i++) {
        uint32_t r = hbk__mix32(hbk__mix32((uint32_t)(first + i) ^ key) + key2);
        y[i] = r < threshold ? 0 : x[i] * scale;
    }
}

HBK_DEF void hbk_dropout(hbk_real *y, const hbk_real *x, hbk_int n, double p, uint64_t seed)
{
    if (p <= 0) {
        if (y != x) memcpy(y, x, (size_t)n * sizeof *y);
        return;
    }
    uint32_t threshold = (uint32_t)(p * 4294967295.0);
    hbk_real scale = (hbk_real)(1 / (1 - p));
#ifdef _OPENMP
#pragma omp parallel for schedule(static) if (n > HBK__PARALLEL_MIN)
#endif
    for (hbk_int i = 0; i < n; i += HBK__CHUNK)
        hbk__dropout_chunk(y + i, x + i, i, HBK__MIN(HBK__CHUNK, n - i), threshold, scale, (uint32_t)seed,
                           (uint32_t)(seed >> 32));
}

/* ==== 10  LORA ===============================================================

   A frozen projection W (out, in) gets a low-rank correction (Hu et al. 2021):

       y = x W^T + s (x A^T) B^T       A (R, in), B (out, R), s = alpha / R

   so that finetuning trains R (in + out) numbers instead of in * out, and needs of W only the product
   dy W, whatever type W is stored in. With u = x A^T (N, R) and dy given:

       du = s dy B          dB += s dy^T u          dA += du^T x          dx += du A

   A starts uniform in +-1/sqrt(in), B at zero: the first step begins at the base model. Each W of a layer,
   and the head, may have a correction of its own rank and scale, or none.

   W is only read, so several adapters share one base in memory, and the rows of a pass may belong to
   different ones: x W^T is one product over all rows, the corrections follow adapter by adapter, each on the
   rows of its own sequences (chapter 11). */

HBK_DEF const char *hbk_slot_name(hbk_slot s)
{
    switch (s) {
    case HBK_Q: return "q_proj";
    case HBK_K: return "k_proj";
    case HBK_V: return "v_proj";
    case HBK_O: return "o_proj";
    case HBK_GATE: return "gate_proj";
    case HBK_UP: return "up_proj";
    case HBK_DOWN: return "down_proj";
    case HBK_LM_HEAD: break;
    }
    return "lm_head";
}

/* (out, in) of a projection, or of the head, in models of this shape. */
static void hbk__slot_shape(const hbk_config *c, int slot, hbk_int *out, hbk_int *in)
{
    hbk_int q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    *out = slot == HBK_LM_HEAD                  ? c->vocab_size
           : slot == HBK_Q                      ? q
           : slot == HBK_K || slot == HBK_V     ? kv
           : slot == HBK_GATE || slot == HBK_UP ? c->ffn_dim
                                                : c->dim;
    *in = slot == HBK_O ? q : slot == HBK_DOWN ? c->ffn_dim : c->dim;
}

HBK_DEF uint64_t hbk_adapter_hash(uint64_t h, const hbk_adapter *a)
{
    for (hbk_int i = 0; i <= a->n_layers * HBK_N_SLOTS; i++) {
        h = hbk_hash(h, &a->loras[i].rank, sizeof a->loras[i].rank);
        h = hbk_hash(h, &a->loras[i].alpha, sizeof a->loras[i].alpha);
    }
    return hbk_hash(h, a->values, (size_t)a->n_values * sizeof(hbk_real));
}

/* The slot of number i of an adapter's projections; after those of the layers comes the head. */
static int hbk__lora_slot(const hbk_adapter *a, hbk_int i)
{
    return i < a->n_layers * HBK_N_SLOTS ? (int)(i % HBK_N_SLOTS) : HBK_LM_HEAD;
}

/* The largest rank in the adapter; 0 without one: what scratch must hold. */
static hbk_int hbk__max_rank(const hbk_adapter *a)
{
    hbk_int rank = 0;
    for (hbk_int i = 0; a && i <= a->n_layers * HBK_N_SLOTS; i++) rank = HBK__MAX(rank, a->loras[i].rank);
    return rank;
}

/* Whether the adapter was made for models of this shape. */
static bool hbk__adapter_fits(const hbk_adapter *a, const hbk_config *c, hbk_error *err)
{
    if (a->n_layers != c->n_layers)
        return hbk_fail(err, HBK_ERROR_SHAPE,
                        "the adapter is for %lld layers, the model has %lld: it is of another base",
                        (long long)a->n_layers, (long long)c->n_layers);
    for (hbk_int i = 0; i <= a->n_layers * HBK_N_SLOTS; i++) {
        const hbk_lora *l = &a->loras[i];
        hbk_int out, in;
        hbk__slot_shape(c, hbk__lora_slot(a, i), &out, &in);
        if (l->rank && (l->out != out || l->in != in))
            return hbk_fail(err, HBK_ERROR_SHAPE,
                            "the adapter is for %s of (%lld, %lld), the model's is (%lld, %lld): it is of "
                            "another base",
                            hbk_slot_name((hbk_slot)hbk__lora_slot(a, i)), (long long)l->out,
                            (long long)l->in, (long long)out, (long long)in);
    }
    return true;
}

HBK_DEF bool hbk_adapter_targets(const char *names, unsigned *targets, hbk_error *err)
{
    unsigned bits = 0;
    for (const char *p = names; *p;) {
        size_t n = strcspn(p, ",");
        int found = -1;
        for (int s = 0; s < HBK_N_TARGETS; s++)
            if (strlen(hbk_slot_name((hbk_slot)s)) == n && !strncmp(p, hbk_slot_name((hbk_slot)s), n))
                found = s;
        if ((n == 3 && !strncmp(p, "all", 3)) || (n == 10 && !strncmp(p, "all-linear", 10)))
            bits |= HBK_ALL_SLOTS;
        else if (found >= 0)
            bits |= 1u << found;
        else
            return hbk_fail(err, HBK_ERROR_OPTION,
                            "target '%.*s' is no projection of a LLaMA; known: all, q_proj, k_proj, v_proj, "
                            "o_proj, gate_proj, up_proj, down_proj, lm_head",
                            (int)HBK__MIN(n, 40), p);
        p += n;
        if (*p) p++;
    }
    if (!bits) return hbk_fail(err, HBK_ERROR_OPTION, "no target projections were named; try 'all'");
    *targets = bits;
    return true;
}

/* An adapter is made in two steps: here every projection gets its shape; then the caller sets rank and alpha
   of those that it adapts, and hbk__adapter_lay gives them their numbers. */
static hbk_adapter *hbk__adapter_begin(const hbk_config *c, hbk_allocator *alloc, hbk_error *err)
{
    hbk_adapter *a = HBK__NEW(alloc, hbk_adapter, 1, err);
    if (!a) return NULL;
    a->alloc = alloc;
    a->n_layers = c->n_layers;
    a->loras = HBK__NEW(alloc, hbk_lora, c->n_layers * HBK_N_SLOTS + 1, err);
    if (!a->loras) {
        hbk_adapter_free(a);
        return NULL;
    }
    for (hbk_int i = 0; i <= c->n_layers * HBK_N_SLOTS; i++)
        hbk__slot_shape(c, hbk__lora_slot(a, i), &a->loras[i].out, &a->loras[i].in);
    return a;
}

/* A rank and an alpha that some projection has, and which. */
typedef struct hbk__lora_kind {
    hbk_int rank, at;
    double alpha;
} hbk__lora_kind;

static int hbk__by_kind(const void *left, const void *right)
{
    const hbk__lora_kind *x = (const hbk__lora_kind *)left, *y = (const hbk__lora_kind *)right;
    if (x->rank != y->rank) return x->rank < y->rank ? -1 : 1;
    if (x->alpha != y->alpha) return x->alpha < y->alpha ? -1 : 1;
    return x->at < y->at ? -1 : x->at > y->at;
}

/* Sets the adapter's rank and alpha to those that most of its projections have, the first of equals. Sorted,
   for a file may have many layers: equals then stand together, and each run begins with its first. */
static bool hbk__adapter_majority(hbk_adapter *a, hbk_error *err)
{
    hbk_int last = a->n_layers * HBK_N_SLOTS, n = 0, most = 0, first = 0;
    hbk__lora_kind *kinds = HBK__NEW(a->alloc, hbk__lora_kind, last + 1, err);
    if (!kinds) return false;
    for (hbk_int i = 0; i <= last; i++) {
        if (a->loras[i].rank == 0) continue;
        kinds[n].rank = a->loras[i].rank;
        kinds[n].alpha = a->loras[i].alpha;
        kinds[n++].at = i;
    }
    qsort(kinds, (size_t)n, sizeof *kinds, hbk__by_kind);
    for (hbk_int i = 0, end; i < n; i = end) {
        const hbk__lora_kind *k = &kinds[i];
        for (end = i + 1; end < n && kinds[end].rank == k->rank && kinds[end].alpha == k->alpha;) end++;
        if (end - i < most || (end - i == most && k->at > first)) continue;
        most = end - i;
        first = k->at;
        a->rank = k->rank;
        a->alpha = k->alpha;
    }
    hbk_free(a->alloc, kinds);
    return true;
}

/* Lays a and b of every projection with a rank out in `values`, or, values NULL, in a zeroed block of the
   adapter's own. */
static bool hbk__adapter_lay(hbk_adapter *a, hbk_real *values, hbk_error *err)
{
    hbk_int n = 0, part, last = a->n_layers * HBK_N_SLOTS;
    for (hbk_int i = 0; i <= last; i++) {
        if (!hbk__mul(&part, a->loras[i].rank, a->loras[i].in + a->loras[i].out) || part > INT64_MAX / 64 - n)
            return hbk_fail(err, HBK_ERROR_RANGE, "an adapter of rank %lld would not fit any memory",
                            (long long)a->loras[i].rank);
        n += part;
    }
    a->n_values = n;
    a->owns_values = !values;
    a->values = values ? values : HBK__NEW(a->alloc, hbk_real, n, err);
    if (!a->values) return false;
    hbk_real *at = a->values;
    for (hbk_int i = 0; i <= last; i++) {
        hbk_lora *l = &a->loras[i];
        if (l->rank == 0) continue;
        l->scale = (hbk_real)(l->alpha / (double)l->rank);
        if (!isfinite((float)l->scale)) /* float in every build: files and other programs have no more */
            return hbk_fail(err, HBK_ERROR_RANGE,
                            "alpha %g over rank %lld is no scale for %s (layer %lld of %lld): it must be "
                            "finite",
                            l->alpha, (long long)l->rank, hbk_slot_name((hbk_slot)hbk__lora_slot(a, i)),
                            (long long)(i / HBK_N_SLOTS), (long long)a->n_layers);
        l->a = at;
        l->b = at + l->rank * l->in;
        at += l->rank * (l->in + l->out);
        a->targets |= 1u << hbk__lora_slot(a, i);
    }
    return hbk__adapter_majority(a, err);
}

/* An adapter of the same projections and ranks over other numbers. */
static hbk_adapter *hbk__adapter_view(const hbk_adapter *like, const hbk_config *c, hbk_real *values,
                                      hbk_allocator *alloc, hbk_error *err)
{
    hbk_adapter *a = hbk__adapter_begin(c, alloc, err);
    for (hbk_int i = 0; a && i <= a->n_layers * HBK_N_SLOTS; i++) {
        a->loras[i].rank = like->loras[i].rank;
        a->loras[i].alpha = like->loras[i].alpha;
    }
    if (!a || hbk__adapter_lay(a, values, err)) return a;
    hbk_adapter_free(a);
    return NULL;
}

HBK_DEF hbk_adapter_options hbk_adapter_defaults(void)
{
    hbk_adapter_options o;
    memset(&o, 0, sizeof o);
    o.rank = 16;
    o.alpha = 32;
    o.targets = HBK_ALL_SLOTS;
    return o;
}

/* Rank and alpha of each projection that the options name. */
static bool hbk__adapter_plan(hbk_adapter *a, const hbk_adapter_options *o, hbk_error *err)
{
    hbk_int end = o->layer_end ? o->layer_end : a->n_layers;
    if (o->layer_begin < 0 || o->layer_begin >= end || end > a->n_layers)
        return hbk_fail(err, HBK_ERROR_RANGE, "layers %lld to %lld are to be adapted, of a model's 0 to %lld",
                        (long long)o->layer_begin, (long long)end - 1, (long long)a->n_layers - 1);
    for (hbk_int i = 0; i <= a->n_layers * HBK_N_SLOTS; i++) {
        hbk_lora *l = &a->loras[i];
        int slot = hbk__lora_slot(a, i);
        bool in_range = slot == HBK_LM_HEAD || (i / HBK_N_SLOTS >= o->layer_begin && i / HBK_N_SLOTS < end);
        if (!in_range || !(o->targets >> slot & 1)) continue;
        l->rank = o->target_rank[slot] ? o->target_rank[slot] : o->rank;
        l->alpha = o->target_alpha[slot] != 0 ? o->target_alpha[slot] : o->alpha;
        if (l->rank < 1 || l->rank > HBK__MIN(l->in, l->out))
            return hbk_fail(err, HBK_ERROR_RANGE,
                            "rank %lld does not fit %s (%lld, %lld): it must be 1 to %lld",
                            (long long)l->rank, hbk_slot_name((hbk_slot)slot), (long long)l->out,
                            (long long)l->in, (long long)HBK__MIN(l->in, l->out));
        if (l->alpha <= 0)
            return hbk_fail(err, HBK_ERROR_RANGE,
                            "alpha %g of %s: it must be above 0, or the adapter could not learn", l->alpha,
                            hbk_slot_name((hbk_slot)slot));
        if (o->rslora) l->alpha *= sqrt((double)l->rank); /* alpha sqrt(R) / R = alpha / sqrt(R) */
    }
    return true;
}

HBK_DEF hbk_adapter *hbk_adapter_make(const hbk_config *c, const hbk_adapter_options *o, uint64_t seed,
                                      hbk_allocator *alloc, hbk_error *err)
{
    hbk_adapter *a = hbk__adapter_begin(c, alloc, err);
    if (!a) return NULL;
    if (!hbk__adapter_plan(a, o, err) || !hbk__adapter_lay(a, NULL, err)) {
        hbk_adapter_free(a);
        return NULL;
    }
    for (hbk_int i = 0; i <= a->n_layers * HBK_N_SLOTS; i++) {
        hbk_lora *l = &a->loras[i];
        if (!l->a) continue;
        hbk_rng rng = hbk_rng_at(seed, "adapter", (uint64_t)i);
        double bound = 1 / sqrt((double)l->in);
        for (hbk_int j = 0; j < l->rank * l->in; j++)
            l->a[j] = (hbk_real)(float)((2 * hbk_rng_uniform(&rng) - 1) * bound);
    }
    return a;
}

HBK_DEF hbk_adapter *hbk_adapter_new(const hbk_config *c, hbk_int rank, double alpha, unsigned targets,
                                     uint64_t seed, hbk_allocator *alloc, hbk_error *err)
{
    hbk_adapter_options o = hbk_adapter_defaults();
    o.rank = rank;
    o.alpha = alpha;
    o.targets = targets;
    return hbk_adapter_make(c, &o, seed, alloc, err);
}

HBK_DEF void hbk_adapter_free(hbk_adapter *a)
{
    if (!a) return;
    if (a->owns_values) hbk_free(a->alloc, a->values);
    hbk_free(a->alloc, a->loras);
    hbk_free(a->alloc, a);
}

/* These products have a side of R only, too thin for OpenBLAS to share out well: with two threads it needs as
   long as with one. So threads take blocks of rows, or of columns where the rows are summed over, and each
   block's products stay on its thread. */
#define HBK__LORA_BLOCK ((hbk_int)128)

/* Rows of a block: at most HBK__LORA_BLOCK, a multiple of 16 rows, which OpenBLAS takes together, and as many
   blocks for each thread, where there are rows enough. */
static hbk_int hbk__lora_rows(hbk_int N)
{
    hbk_int threads = hbk__n_threads(), blocks = (N + HBK__LORA_BLOCK - 1) / HBK__LORA_BLOCK;
    blocks = HBK__MAX(1, (blocks + threads - 1) / threads * threads);
    return ((N + blocks - 1) / blocks + 15) / 16 * 16;
}

HBK_DEF void hbk_lora_forward(hbk_real *y, hbk_real *xa, const hbk_real *x, const hbk_lora *l, hbk_int N)
{
    hbk_int R = l->rank, in = l->in, out = l->out, block = hbk__lora_rows(N);
#ifdef _OPENMP
#pragma omp parallel for schedule(static) if (N > block)
#endif
    for (hbk_int n = 0; n < N; n += block) {
        hbk_int rows = HBK__MIN(block, N - n);
        hbk__gemm(false, true, rows, R, in, 1, x + n * in, in, l->a, in, 0, xa + n * R, R);
        hbk__gemm(false, true, rows, out, R, l->scale, xa + n * R, R, l->b, R, 1, y + n * out, out);
    }
}

HBK_DEF void hbk_lora_backward(hbk_real *dx, const hbk_lora *d, hbk_real *dxa, const hbk_real *dy,
                               const hbk_real *x, const hbk_real *xa, const hbk_lora *l, hbk_int N)
{
    hbk_int R = l->rank, in = l->in, out = l->out, block = hbk__lora_rows(N);
    if (!d && !dx) return;
#ifdef _OPENMP
#pragma omp parallel for schedule(static) if (N > block)
#endif
    for (hbk_int n = 0; n < N; n += block) {
        hbk_int rows = HBK__MIN(block, N - n);
        /* forward: y += scale * xa B^T, xa = x A^T */
        hbk__gemm(false, false, rows, R, out, l->scale, dy + n * out, out, l->b, R, 0, dxa + n * R, R);
        if (dx) hbk__gemm(false, false, rows, in, R, 1, dxa + n * R, R, l->a, in, 1, dx + n * in, in);
    }
    if (!d) return;
#ifdef _OPENMP
#pragma omp parallel for schedule(static) if ((out + in) * R * N > 100000)
#endif
    for (hbk_int c = 0; c < out + in; c += HBK__LORA_BLOCK) { /* columns of y, then those of x */
        hbk_int end = HBK__MIN(c + HBK__LORA_BLOCK, out + in), o = HBK__MIN(end, out), i = HBK__MAX(c, out);
        /* forward: y += scale * xa B^T */
        if (c < o) hbk__gemm(true, false, o - c, R, N, l->scale, dy + c, out, xa, R, 1, d->b + c * R, R);
        /* forward: xa = x A^T */
        if (i < end)
            hbk__gemm(true, false, R, end - i, N, 1, dxa, R, x + (i - out), in, 1, d->a + (i - out), in);
    }
}

HBK_DEF void hbk_lora_merge(hbk_real *out, const hbk_matrix *w, const hbk_lora *l, hbk_int first, hbk_int n)
{
    hbk_matrix_unpack(out, w, first, n);
    if (l)
        hbk__gemm(false, false, n, l->in, l->rank, l->scale, l->b + first * l->rank, l->rank, l->a, l->in, 1,
                  out, l->in);
}

/* ==== 11  MODEL ==============================================================

   LLaMA (Touvron et al. 2023): for each layer, on the residual stream x (N, C),

       h = x + O attention(rope(Q n), rope(K n), V n)       n = rms_norm(x)
       x = h + DOWN (silu(GATE m) * (UP m))                 m = rms_norm(h)

   then logits = HEAD rms_norm(x). Each projection may add a bias: Hugging Face's attention_bias and mlp_bias
   do so for whole groups, other files for q, k and v alone. The pieces between the attention and its
   neighbours are the same whether keys come from the batch (training) or from a cache (chapter 13):
   hbk__block_in and hbk__block_out serve both.

   For the backward a layer keeps x, q, k, v, the attention's result and lse, h, gate and up. Norms and
   silu(gate) * up are computed again: they cost little, and would double the memory. With HBK_KEEP_INPUTS a
   layer keeps x alone, and the rest is computed again by the same calls, so to the same bits (Chen et al.
   2016, arXiv 1604.06174).

   The head runs on rows that have a target only, HBK__HEAD_REALS at a time: no (N, V) array exists.
   In LoRA training the backward ends at the lowest adapted layer.

   Sequences of one batch may have different adapters, or none. Products with W take all rows at once; those
   with A and B go by runs, rows that lie together and have one adapter. Everything else, dropout's mask among
   it, sees rows alone: a sequence's numbers do not depend on whose adapter its neighbours have. */

static bool hbk__positive(const char *name, hbk_int value, hbk_error *err)
{
    if (value >= 1 && value <= INT32_MAX) return true;
    return hbk_fail(err, HBK_ERROR_RANGE, "configuration: %s is %lld, expected 1 to 2147483647", name,
                    (long long)value);
}

/* Bounds of eps and of what frequencies are made from: within them no frequency is infinite or a NaN, also
   in float. */
static bool hbk__check_numbers(const hbk_config *c, hbk_error *err)
{
    if (!(c->rms_norm_eps >= 0 && c->rms_norm_eps <= 1))
        return hbk_fail(err, HBK_ERROR_RANGE, "configuration: rms_norm_eps %g, expected 0 to 1",
                        c->rms_norm_eps);
    if (!(c->rope_theta >= 1e-9 && c->rope_theta <= 1e30))
        return hbk_fail(err, HBK_ERROR_RANGE, "configuration: rope_theta %g, expected 1e-9 to 1e30",
                        c->rope_theta);
    if (c->rope_scaling == HBK_ROPE_DEFAULT) return true;
    if (!(c->rope_factor >= 1e-9 && c->rope_factor <= 1e9))
        return hbk_fail(err, HBK_ERROR_RANGE,
                        "configuration: the factor of the rope scaling is %g, expected 1e-9 to 1e9",
                        c->rope_factor);
    double low = c->rope_low_freq_factor, high = c->rope_high_freq_factor;
    if (c->rope_scaling == HBK_ROPE_LINEAR ||
        (low >= 1e-9 && high <= 1e9 && (float)low < (float)high && c->rope_original_context >= 1))
        return true;
    return hbk_fail(err, HBK_ERROR_RANGE,
                    "configuration: rope scaling llama3 of low_freq_factor %g, high_freq_factor %g, "
                    "original_max_position_embeddings %lld: expected 1e-9 <= low < high <= 1e9, and 1 or "
                    "more",
                    low, high, (long long)c->rope_original_context);
}

HBK_DEF bool hbk_config_check(const hbk_config *c, hbk_error *err)
{
    if (!hbk__positive("num_hidden_layers", c->n_layers, err) ||
        !hbk__positive("num_attention_heads", c->n_heads, err) ||
        !hbk__positive("num_key_value_heads", c->n_kv_heads, err) ||
        !hbk__positive("head_dim", c->head_dim, err) || !hbk__positive("hidden_size", c->dim, err) ||
        !hbk__positive("intermediate_size", c->ffn_dim, err) ||
        !hbk__positive("vocab_size", c->vocab_size, err) ||
        !hbk__positive("max_position_embeddings", c->context_length, err))
        return false;
    if (c->n_heads % c->n_kv_heads)
        return hbk_fail(err, HBK_ERROR_RANGE,
                        "configuration: num_attention_heads %lld is no multiple of num_key_value_heads %lld",
                        (long long)c->n_heads, (long long)c->n_kv_heads);
    if (c->head_dim % 2)
        return hbk_fail(err, HBK_ERROR_RANGE,
                        "configuration: head_dim %lld is odd; rotary positions need pairs",
                        (long long)c->head_dim);
    if (c->biases & ~HBK_ALL_SLOTS)
        return hbk_fail(err, HBK_ERROR_RANGE, "configuration: biases 0x%x, expected bits of hbk_slot",
                        c->biases);
    if (!hbk__check_numbers(c, err)) return false;
    hbk_int width = HBK__MAX(c->dim, HBK__MAX(c->ffn_dim, c->n_heads * c->head_dim)), layer, all;
    if (!hbk__mul(&layer, width, 8 * width) || !hbk__mul(&all, layer, c->n_layers) ||
        !hbk__mul(&layer, c->vocab_size, c->dim) || all > INT64_MAX / 64 || layer > INT64_MAX / 64)
        return hbk_fail(err, HBK_ERROR_RANGE, "configuration: the model would not fit any memory");
    return true;
}

/* Inverse frequencies theta^(-2i/D). llama3 slows long wavelengths down by `factor`, keeps short ones, and
   blends between; source: Llama 3.1's reference code. In float and step by step as there: a position of some
   thousands multiplies what the last bit says. */
static void hbk__rope_frequencies(double *inv_freq, const hbk_config *c)
{
    float factor = (float)c->rope_factor, old = (float)c->rope_original_context;
    float low = (float)c->rope_low_freq_factor, high = (float)c->rope_high_freq_factor;
    for (hbk_int i = 0; i < c->head_dim / 2; i++) {
        float exponent = (float)(2 * i) / (float)c->head_dim;
        float f = 1 / (float)pow((double)(float)c->rope_theta, (double)exponent);
        float wavelength = 6.2831853f / f;
        if (c->rope_scaling == HBK_ROPE_LINEAR) f /= factor;
        if (c->rope_scaling == HBK_ROPE_LLAMA3 && wavelength >= old / high) {
            float blend = wavelength > old / low ? 0 : (old / wavelength - low) / (high - low);
            f = (1 - blend) * f / factor + blend * f;
        }
        inv_freq[i] = (double)f;
    }
}

static hbk_matrix hbk__matrix(hbk_int rows, hbk_int cols, hbk_real *data)
{
    hbk_matrix m = {HBK_REAL, rows, cols, data, NULL, 0, false};
    return m;
}

/* A model of this shape whose tensors have no data yet. */
static hbk_model *hbk__model_new(const hbk_config *c, hbk_allocator *alloc, hbk_error *err)
{
    if (!hbk_config_check(c, err)) return NULL;
    hbk_model *m = HBK__NEW(alloc, hbk_model, 1, err);
    if (!m) return NULL;
    m->config = *c;
    m->alloc = alloc;
    m->layers = HBK__NEW(alloc, hbk_layer, c->n_layers, err);
    m->inv_freq = m->layers ? HBK__NEW(alloc, double, c->head_dim / 2, err) : NULL;
    if (!m->inv_freq) {
        hbk_model_free(m);
        return NULL;
    }
    hbk__rope_frequencies(m->inv_freq, c);
    m->embed = m->head = hbk__matrix(c->vocab_size, c->dim, NULL);
    for (hbk_int l = 0; l < c->n_layers; l++)
        for (int s = 0; s < HBK_N_SLOTS; s++) {
            hbk_int out, in;
            hbk__slot_shape(c, s, &out, &in);
            m->layers[l].w[s] = hbk__matrix(out, in, NULL);
        }
    return m;
}

HBK_DEF void hbk_model_free(hbk_model *m)
{
    if (!m) return;
    for (hbk_int i = 0; i < m->n_maps; i++) hbk_mapping_close(&m->maps[i]);
    hbk_free(m->alloc, m->maps);
    hbk_free(m->alloc, m->values);
    hbk_free(m->alloc, m->inv_freq);
    hbk_free(m->alloc, m->layers);
    hbk_free(m->alloc, m);
}

/* Where a model keeps a tensor: in a matrix, or behind the pointer of a vector, which is a norm or a bias. */
typedef struct hbk__place {
    hbk_matrix *w;
    hbk_real **vector;
    hbk_slot slot; /* of a projection's weight or bias; else HBK_N_SLOTS */
} hbk__place;

static const char *hbk__slot_group(hbk_slot slot)
{
    return slot <= HBK_O ? "self_attn." : "mlp.";
}

/* The order of tensors: embedding; per layer attn_norm q k v o ffn_norm gate up down, then the biases that
   there are; final norm; head. */
static hbk_int hbk__per_layer(const hbk_config *c)
{
    hbk_int n = HBK_N_SLOTS + 2;
    for (int s = 0; s < HBK_N_SLOTS; s++) n += c->biases >> s & 1;
    return n;
}

/* Tensor k of a layer, and its name without the layer's. */
static void hbk__layer_place(const hbk_config *c, hbk_layer *layer, hbk_int k, hbk__place *p, char name[48])
{
    if (k == 0 || k == 5) {
        p->vector = k ? &layer->ffn_norm : &layer->attn_norm;
        snprintf(name, 48, "%s.weight", k ? "post_attention_layernorm" : "input_layernorm");
        return;
    }
    bool bias = k >= HBK_N_SLOTS + 2;
    int s = (int)(k < 5 ? k - 1 : k - 2);
    if (bias)
        for (s = -1, k -= HBK_N_SLOTS + 2; k >= 0; k -= c->biases >> s & 1) s++;
    p->slot = (hbk_slot)s;
    if (bias)
        p->vector = &layer->bias[s];
    else
        p->w = &layer->w[s];
    snprintf(name, 48, "%s%s.%s", hbk__slot_group(p->slot), hbk_slot_name(p->slot), bias ? "bias" : "weight");
}

/* The place of tensor i, and its name; false after the last. */
static bool hbk__place_at(hbk_model *m, hbk_int i, hbk__place *p, char name[96])
{
    hbk_int per_layer = hbk__per_layer(&m->config), n_layer = m->config.n_layers * per_layer;
    p->w = NULL;
    p->vector = NULL;
    p->slot = HBK_N_SLOTS;
    if (i == 0) {
        snprintf(name, 96, "model.embed_tokens.weight");
        p->w = &m->embed;
    } else if (i <= n_layer) {
        char part[48];
        hbk_int l = (i - 1) / per_layer;
        hbk__layer_place(&m->config, &m->layers[l], (i - 1) % per_layer, p, part);
        snprintf(name, 96, "model.layers.%lld.%s", (long long)l, part);
    } else if (i == n_layer + 1) {
        snprintf(name, 96, "model.norm.weight");
        p->vector = &m->final_norm;
    } else if (i == n_layer + 2 && !m->config.tied) {
        snprintf(name, 96, "lm_head.weight");
        p->w = &m->head;
    }
    return p->w || p->vector;
}

HBK_DEF bool hbk_tensor_at(const hbk_model *m, hbk_int i, char name[96], hbk_matrix *out)
{
    hbk__place p;
    hbk_int cols = m->config.dim, in;
    if (!hbk__place_at((hbk_model *)(uintptr_t)m, i, &p, name)) return false; /* only read through p */
    if (p.slot < HBK_N_SLOTS) hbk__slot_shape(&m->config, p.slot, &cols, &in);
    *out = p.w ? *p.w : hbk__matrix(1, cols, *p.vector);
    return true;
}

HBK_DEF uint64_t hbk_model_hash(const hbk_model *m)
{
    const hbk_config *c = &m->config;
    hbk_int sizes[] = {c->n_layers, c->n_heads, c->n_kv_heads, c->head_dim,
                       c->dim,      c->ffn_dim, c->vocab_size};
    uint64_t h = hbk_hash(0, sizes, sizeof sizes);
    if (c->biases) h = hbk_hash(h, &c->biases, sizeof c->biases);
    h = hbk_hash(h, &c->rms_norm_eps, sizeof c->rms_norm_eps);
    h = hbk_hash(h, m->inv_freq, (size_t)(c->head_dim / 2) * sizeof(double));
    h = hbk_hash(h, m->final_norm, (size_t)c->dim * sizeof(hbk_real));
    for (hbk_int l = 0; l < c->n_layers; l++) {
        const hbk_matrix *w = &m->layers[l].w[HBK_Q];
        h = hbk_hash(h, w->data, hbk_dtype_size(w->dtype, w->cols));
    }
    return h;
}

HBK_DEF hbk_int hbk_model_count(const hbk_config *c)
{
    hbk_int n = c->vocab_size * c->dim * (c->tied ? 1 : 2) + c->dim * (2 * c->n_layers + 1);
    for (int s = 0; s < HBK_N_SLOTS; s++) {
        hbk_int out, in;
        hbk__slot_shape(c, s, &out, &in);
        n += c->n_layers * out * (in + (c->biases >> s & 1));
    }
    return n;
}

HBK_DEF void hbk_model_round(hbk_model *m, bool rounds)
{
    m->head.rounds = rounds;
    for (hbk_int l = 0; l < m->config.n_layers; l++)
        for (int s = 0; s < HBK_N_SLOTS; s++) m->layers[l].w[s].rounds = rounds;
}

HBK_DEF const char *hbk_model_precision(const hbk_model *m)
{
    return m->head.rounds && hbk__has_bf16() ? "bf16" : "f32";
}

HBK_DEF hbk_model *hbk_model_view(const hbk_config *c, hbk_real *values, hbk_allocator *alloc, hbk_error *err)
{
    hbk_model *m = hbk__model_new(c, alloc, err);
    if (!m) return NULL;
    char name[96];
    hbk_matrix t;
    hbk__place p;
    for (hbk_int i = 0; hbk_tensor_at(m, i, name, &t); i++) {
        hbk__place_at(m, i, &p, name);
        if (p.w)
            p.w->data = values;
        else
            *p.vector = values;
        values += t.rows * t.cols;
    }
    if (c->tied) m->head = m->embed;
    return m;
}

HBK_DEF void hbk_model_unpack(hbk_real *values, const hbk_model *m)
{
    char name[96];
    hbk_matrix t;
    for (hbk_int i = 0; hbk_tensor_at(m, i, name, &t); i++) {
        hbk_matrix_unpack(values, &t, 0, t.rows);
        values += t.rows * t.cols;
    }
}

HBK_DEF hbk_model *hbk_model_random(const hbk_config *c, uint64_t seed, hbk_allocator *alloc, hbk_error *err)
{
    if (!hbk_config_check(c, err)) return NULL;
    hbk_real *values = HBK__NEW(alloc, hbk_real, hbk_model_count(c), err);
    if (!values) return NULL;
    hbk_model *m = hbk_model_view(c, values, alloc, err);
    if (!m) {
        hbk_free(alloc, values);
        return NULL;
    }
    m->values = values;
    double narrow = 0.5 / sqrt((double)c->dim), residual = narrow / sqrt(2.0 * (double)c->n_layers);
    char name[96];
    hbk_matrix t;
    for (hbk_int i = 0; hbk_tensor_at(m, i, name, &t); i++) {
        hbk_real *x = (hbk_real *)t.data;
        hbk_rng rng = hbk_rng_at(seed, "weights", (uint64_t)i);
        double deviation = i == 0                                                ? 0.5
                           : strstr(name, "lm_head")                             ? 0.02
                           : strstr(name, "o_proj") || strstr(name, "down_proj") ? residual
                                                                                 : narrow;
        for (hbk_int j = 0; j < t.rows * t.cols; j++)
            x[j] = strstr(name, "norm.") ? 1 : (hbk_real)(float)(deviation * hbk_rng_normal(&rng));
    }
    return m;
}

/* ---- one layer, between its neighbours --------------------------------------- */

/* Rows first .. first+n-1 of a pass, which have one adapter, or none. */
typedef struct hbk__lora_run {
    hbk_int first, n;
    const hbk_adapter *adapter;
    const hbk_adapter *dadapter; /* its gradient, or NULL */
} hbk__lora_run;

/* Appends n rows to the last run, or to a new one where the adapter is another. */
static void hbk__add_run(hbk__lora_run *runs, hbk_int *n_runs, hbk_int n, const hbk_adapter *adapter,
                         const hbk_adapter *dadapter)
{
    hbk__lora_run *last = *n_runs ? &runs[*n_runs - 1] : NULL;
    if (!last || last->adapter != adapter || last->dadapter != dadapter) {
        hbk__lora_run next = {last ? last->first + last->n : 0, 0, adapter, dadapter};
        runs[(*n_runs)++] = next;
    }
    runs[*n_runs - 1].n += n;
}

/* The runs of some of the rows, which rise, gathered: which first .. first+n-1 of rows[0..n_rows-1] lie in
   each. */
static void hbk__gather_runs(hbk__lora_run *out, const hbk__lora_run *runs, hbk_int n_runs,
                             const hbk_int *rows, hbk_int n_rows)
{
    hbk_int at = 0;
    for (hbk_int i = 0; i < n_runs; i++) {
        out[i] = runs[i];
        out[i].first = at;
        while (at < n_rows && rows[at] < runs[i].first + runs[i].n) at++;
        out[i].n = at - out[i].first;
    }
}

/* Everything a projection needs besides its operands. */
typedef struct hbk__env {
    const hbk_model *m;
    const hbk__lora_run *runs; /* (n_runs) */
    hbk__lora_run *head_runs;  /* (n_runs) of the rows that are at the head now */
    hbk_int n_runs;
    hbk_real *panel;
    hbk_real *drop; /* (N, widest adapted input): the adapters' input after dropout */
    double lora_dropout, residual_dropout, neftune;
    uint64_t seed;
} hbk__env;

/* One layer's buffers; which of them a layer has for itself is its owner's choice. */
typedef struct hbk__block_acts {
    hbk_real *x;               /* (N, C) the residual stream as it comes in */
    hbk_real *q, *k, *v;       /* (N, H*D), (N, K*D) after the rotation */
    hbk_real *att, *lse;       /* (N, H*D), (N, H) */
    hbk_real *h;               /* (N, C) after the attention */
    hbk_real *gate, *up;       /* (N, F) */
    hbk_real *xa[HBK_N_SLOTS]; /* (N, R), each with the projection's own R, the largest of its adapters */
} hbk__block_acts;

/* A dropout mask of its own for each layer and place. */
static uint64_t hbk__drop_seed(const hbk__env *e, hbk_int layer, int place)
{
    uint64_t x = e->seed ^ ((uint64_t)layer * 16 + (uint64_t)place);
    return hbk__splitmix(&x);
}

/* What corrects a projection, or NULL; the head's is (n_layers, 0), since it comes after the layers. */
static const hbk_lora *hbk__lora_of(const hbk_adapter *a, hbk_int layer, int slot)
{
    const hbk_lora *l = a ? &a->loras[layer * HBK_N_SLOTS + slot] : NULL;
    return l && l->a ? l : NULL;
}

static const hbk_lora *hbk__head_lora(const hbk_adapter *a)
{
    return a ? hbk__lora_of(a, a->n_layers, 0) : NULL;
}

/* The adapters' input: x, or x after dropout in e->drop. */
static const hbk_real *hbk__lora_input(const hbk__env *e, hbk_int layer, int slot, const hbk_real *x,
                                       hbk_int n)
{
    if (e->lora_dropout <= 0) return x;
    hbk_dropout(e->drop, x, n, e->lora_dropout, hbk__drop_seed(e, layer, slot));
    return e->drop;
}

/* Adds a bias, if there is one, to each row of y (N, n). */
static void hbk__add_bias(hbk_real *y, const hbk_real *bias, hbk_int N, hbk_int n)
{
    for (hbk_int row = 0; bias && row < N; row++) hbk__axpy(y + row * n, 1, bias, n);
}

/* The runs of the rows in a layer; behind the last one they are those of the head. */
static const hbk__lora_run *hbk__runs_at(const hbk__env *e, hbk_int layer)
{
    return layer < e->m->config.n_layers ? e->runs : e->head_runs;
}

/* What corrects a projection in a run; from layer n_layers on it is the head, chunk by chunk. */
static const hbk_lora *hbk__run_lora(const hbk_adapter *a, hbk_int layer, int slot)
{
    return a ? hbk__lora_of(a, HBK__MIN(layer, a->n_layers), slot) : NULL;
}

/* Adds to y (N, out) the corrections of a projection of x (N, in), run by run; xa gets each run's x A^T, one
   after another. */
static void hbk__correct(const hbk__env *e, hbk_int layer, int slot, hbk_real *y, const hbk_real *x,
                         hbk_int N, hbk_real *xa)
{
    const hbk__lora_run *runs = hbk__runs_at(e, layer);
    const hbk_real *in = NULL;
    for (hbk_int i = 0; i < e->n_runs; i++) {
        const hbk_lora *l = hbk__run_lora(runs[i].adapter, layer, slot);
        hbk_int first = runs[i].first, n = runs[i].n;
        if (!l || n == 0) continue;
        if (!in) in = hbk__lora_input(e, layer, slot, x, N * l->in);
        hbk_lora_forward(y + first * l->out, xa, in + first * l->in, l, n);
        xa += n * l->rank;
    }
}

/* y (N, out) = x W^T + bias, or with add += that, and the adapters' corrections. */
static void hbk__project(const hbk__env *e, hbk_int layer, int slot, hbk_real *y, const hbk_real *x,
                         hbk_int N, bool add, hbk_real *xa)
{
    const hbk_matrix *w = &e->m->layers[layer].w[slot];
    hbk__matmul(y, x, w, N, e->panel, add);
    hbk__add_bias(y, e->m->layers[layer].bias[slot], N, w->rows);
    hbk__correct(e, layer, slot, y, x, N, xa);
}

/* logits (N, V) = x HEAD^T and the adapters' corrections, for x (N, C) after the last norm, which are rows
   rows[0..N-1] of the pass; xa (N, R) serves the backward. `chunk` tells them from those before: each chunk
   has a dropout mask of its own. */
static void hbk__head_forward(const hbk__env *e, hbk_real *logits, const hbk_real *x, const hbk_int *rows,
                              hbk_int N, hbk_real *xa, hbk_int chunk)
{
    hbk__matmul(logits, x, &e->m->head, N, e->panel, false);
    hbk__gather_runs(e->head_runs, e->runs, e->n_runs, rows, N);
    hbk__correct(e, e->m->config.n_layers + chunk, 0, logits, x, N, xa);
}

/* From the residual stream to rotated q, k and v. norm (N, C) is scratch. */
static void hbk__block_in(const hbk__env *e, hbk_int layer, const hbk__block_acts *b, hbk_real *norm,
                          const hbk_real *rope, hbk_int N)
{
    const hbk_config *c = &e->m->config;
    hbk_rms_norm_forward(norm, b->x, e->m->layers[layer].attn_norm, N, c->dim, c->rms_norm_eps);
    hbk__project(e, layer, HBK_Q, b->q, norm, N, false, b->xa[HBK_Q]);
    hbk__project(e, layer, HBK_K, b->k, norm, N, false, b->xa[HBK_K]);
    hbk__project(e, layer, HBK_V, b->v, norm, N, false, b->xa[HBK_V]);
    hbk_rope(b->q, rope, N, c->n_heads, c->head_dim, false);
    hbk_rope(b->k, rope, N, c->n_kv_heads, c->head_dim, false);
}

/* y = x + branch, where the branch is in * W^T, perhaps after dropout. scratch (N, C). */
static void hbk__residual(const hbk__env *e, hbk_int layer, int slot, hbk_real *y, const hbk_real *x,
                          const hbk_real *in, hbk_int N, hbk_real *scratch, hbk_real *xa)
{
    hbk_int n = N * e->m->config.dim;
    if (e->residual_dropout > 0) {
        hbk__project(e, layer, slot, scratch, in, N, false, xa);
        hbk_dropout(scratch, scratch, n, e->residual_dropout, hbk__drop_seed(e, layer, 8 + slot));
        if (y != x) memcpy(y, x, (size_t)n * sizeof *y);
        hbk__add_to(y, scratch, n);
    } else {
        if (y != x) memcpy(y, x, (size_t)n * sizeof *y);
        hbk__project(e, layer, slot, y, in, N, true, xa);
    }
}

/* From the attention's result to gate and up. norm (N, C) is scratch. */
static void hbk__block_middle(const hbk__env *e, hbk_int layer, const hbk__block_acts *b, hbk_real *norm,
                              hbk_int N)
{
    const hbk_config *c = &e->m->config;
    hbk__residual(e, layer, HBK_O, b->h, b->x, b->att, N, norm, b->xa[HBK_O]);
    hbk_rms_norm_forward(norm, b->h, e->m->layers[layer].ffn_norm, N, c->dim, c->rms_norm_eps);
    hbk__project(e, layer, HBK_GATE, b->gate, norm, N, false, b->xa[HBK_GATE]);
    hbk__project(e, layer, HBK_UP, b->up, norm, N, false, b->xa[HBK_UP]);
}

/* From the attention's result to the next layer's residual stream y. norm (N, C), act (N, F): scratch. */
static void hbk__block_out(const hbk__env *e, hbk_int layer, const hbk__block_acts *b, hbk_real *y,
                           hbk_real *norm, hbk_real *act, hbk_int N)
{
    hbk__block_middle(e, layer, b, norm, N);
    hbk_swiglu_forward(act, b->gate, b->up, N * e->m->config.ffn_dim);
    hbk__residual(e, layer, HBK_DOWN, y, b->h, act, N, norm, b->xa[HBK_DOWN]);
}

/* ---- a batch, forward and backward -------------------------------------------- */

#define HBK__HEAD_REALS ((hbk_int)1 << 23) /* logits alive at once */

struct hbk_acts {
    hbk_allocator *alloc;
    hbk_int max_tokens, max_seq;
    hbk_keep keep;
    int threads;
    hbk_int *ranks; /* (L * HBK_N_SLOTS + 1) the largest that there is room for, as in an adapter */
    hbk__lora_run *runs, *head_runs; /* (n_runs of max_runs) of the batch in work */
    hbk_int n_runs, max_runs;
    hbk__block_acts *blocks; /* (L); all share one layer's buffers but for what `keep` says */
    hbk_real *block;         /* every buffer below and above lies in it */
    hbk_real *last;          /* (N, C) the residual stream after the last layer */
    hbk_real *norm, *act, *drop, *rope, *work, *panel, *logits;
    hbk_real *head_x, *head_n, *dhead; /* (N, C) rows with a target: stream, norm, gradient of the norm */
    hbk_real *dx, *dh, *dnorm;         /* (N, C) */
    hbk_real *datt, *dq, *dk, *dv;     /* (N, H*D), (N, K*D) */
    hbk_real *dgate, *dup, *dact;      /* (N, F) */
    hbk_real *head_xa;                 /* (N, R of the head) */
    hbk_real *dxa, *ddrop;             /* (N, largest R), (N, widest adapted input) */
    int32_t *pos, *targets;            /* (N) positions; targets of the gathered rows */
    hbk_int *rows;                     /* (N) which rows those are */
    hbk_span *spans;                   /* (sequences) */
    double *nll;
    hbk_int head_rows; /* rows of logits at once */
};

/* Takes n reals from *at, rounded up to a cache line; with *at NULL only counts, in *total. */
static hbk_real *hbk__take(hbk_real **at, hbk_int *total, hbk_int n)
{
    n = (n + 15) / 16 * 16;
    *total += n;
    if (!*at) return NULL;
    hbk_real *p = *at;
    *at += n;
    return p;
}

/* Reals of the buffers, by what asks for them. */
typedef struct hbk__acts_size {
    hbk_int kept, logits;
    hbk_int lora_dropout, full_dropout; /* scratch that only a dropout touches */
} hbk__acts_size;

/* The largest rank that there is room for; *in is the widest input of what may be adapted, 0 if nothing. */
static hbk_int hbk__acts_rank(const hbk_acts *a, const hbk_config *c, hbk_int *in)
{
    hbk_int rank = 0, head = c->n_layers * HBK_N_SLOTS, rows, cols;
    *in = 0;
    for (hbk_int i = 0; i <= head; i++) {
        hbk__slot_shape(c, i < head ? (int)(i % HBK_N_SLOTS) : HBK_LM_HEAD, &rows, &cols);
        if (a->ranks[i]) *in = HBK__MAX(*in, cols);
        rank = HBK__MAX(rank, a->ranks[i]);
    }
    return rank;
}

/* Lays all buffers out from `at`, or counts their reals with at NULL: one walk for both. */
static hbk_int hbk__acts_layout(hbk_acts *a, const hbk_config *c, hbk_real *at, hbk__acts_size *size)
{
    hbk_int N = a->max_tokens, C = c->dim, F = c->ffn_dim, Q = c->n_heads * c->head_dim, total = 0;
    hbk_int KV = c->n_kv_heads * c->head_dim, wide = HBK__MAX(HBK__MAX(C, F), Q), adapted;
    hbk_int R = hbk__acts_rank(a, c, &adapted);
    adapted *= N;
    bool train = a->keep != HBK_KEEP_NONE;
    for (hbk_int l = 0; l < c->n_layers; l++) {
        hbk__block_acts *b = &a->blocks[l];
        if (l > 0 && a->keep != HBK_KEEP_ALL) *b = a->blocks[0];
        if (l > 0 && !train) continue;
        b->x = hbk__take(&at, &total, N * C);
        for (int s = 0; s < HBK_N_SLOTS; s++) { /* narrow, so kept for every layer by all who train */
            hbk_int own = a->ranks[l * HBK_N_SLOTS + s];
            b->xa[s] = !train ? (s ? b->xa[0] : hbk__take(&at, &total, N * R))
                       : own  ? hbk__take(&at, &total, N * own)
                              : NULL;
        }
        if (l > 0 && a->keep == HBK_KEEP_INPUTS) continue;
        b->q = hbk__take(&at, &total, N * Q);
        b->k = hbk__take(&at, &total, N * KV);
        b->v = hbk__take(&at, &total, N * KV);
        b->att = hbk__take(&at, &total, N * Q);
        b->lse = hbk__take(&at, &total, N * c->n_heads);
        b->h = hbk__take(&at, &total, N * C);
        b->gate = hbk__take(&at, &total, N * F);
        b->up = hbk__take(&at, &total, N * F);
    }
    size->kept = total;
    a->last = train ? hbk__take(&at, &total, N * C) : a->blocks[0].x;
    a->norm = hbk__take(&at, &total, N * C);
    a->act = hbk__take(&at, &total, N * F);
    a->rope = hbk__take(&at, &total, N * c->head_dim);
    a->work = hbk__take(&at, &total, hbk_attention_work(a->max_seq, c->head_dim, a->threads));
    a->panel = hbk__take(&at, &total, HBK__MAX(HBK_PANEL, wide));
    size->logits = a->head_rows * c->vocab_size;
    a->logits = hbk__take(&at, &total, size->logits);
    a->head_x = hbk__take(&at, &total, N * C);
    a->head_n = hbk__take(&at, &total, N * C);
    a->head_xa = hbk__take(&at, &total, N * a->ranks[c->n_layers * HBK_N_SLOTS]);
    if (!train) return total;
    a->drop = hbk__take(&at, &total, adapted);
    a->dhead = hbk__take(&at, &total, N * C);
    a->dx = hbk__take(&at, &total, N * C);
    a->dh = hbk__take(&at, &total, N * C);
    a->dnorm = hbk__take(&at, &total, N * C);
    a->datt = hbk__take(&at, &total, N * Q);
    a->dq = hbk__take(&at, &total, N * Q);
    a->dk = hbk__take(&at, &total, N * KV);
    a->dv = hbk__take(&at, &total, N * KV);
    a->dgate = hbk__take(&at, &total, N * F);
    a->dup = hbk__take(&at, &total, N * F);
    a->dact = hbk__take(&at, &total, N * F);
    a->dxa = hbk__take(&at, &total, N * HBK__MAX(R, 1));
    a->ddrop = hbk__take(&at, &total, adapted);
    size->lora_dropout = 2 * adapted;
    size->full_dropout = N * C;
    return total;
}

HBK_DEF void hbk_acts_free(hbk_acts *a)
{
    if (!a) return;
    hbk_free(a->alloc, a->ranks);
    hbk_free(a->alloc, a->runs);
    hbk_free(a->alloc, a->blocks);
    hbk_free(a->alloc, a->block);
    hbk_free(a->alloc, a->pos);
    hbk_free(a->alloc, a->targets);
    hbk_free(a->alloc, a->rows);
    hbk_free(a->alloc, a->spans);
    hbk_free(a->alloc, a->nll);
    hbk_free(a->alloc, a);
}

/* Room and settings, without a buffer yet. Of the adapters only the ranks are looked at. */
static hbk_acts *hbk__acts_begin(const hbk_config *c, const hbk_adapter *const *adapters, hbk_int n,
                                 hbk_int max_tokens, hbk_int max_seq, hbk_keep keep, hbk_allocator *alloc,
                                 hbk_error *err)
{
    if (max_tokens < 1 || max_tokens > INT32_MAX / 64 || max_seq < 1) {
        hbk_fail(err, HBK_ERROR_RANGE, "room for %lld tokens was asked for, expected 1 to %d",
                 (long long)max_tokens, INT32_MAX / 64);
        return NULL;
    }
    /* A layer keeps no more than 16 rows of the widest size, adapters included; all count together below. */
    hbk_int wide = HBK__MAX(c->n_heads * c->head_dim, HBK__MAX(c->dim, c->ffn_dim)), row, kept;
    if (!hbk__mul(&row, c->n_layers + 1, 16 * wide) || !hbk__mul(&kept, row, max_tokens) ||
        kept > INT64_MAX / 64) {
        hbk_fail(err, HBK_ERROR_RANGE, "activations of %lld tokens would not fit any memory",
                 (long long)max_tokens);
        return NULL;
    }
    hbk_acts *a = HBK__NEW(alloc, hbk_acts, 1, err);
    if (!a) return NULL;
    a->alloc = alloc;
    a->max_tokens = max_tokens;
    a->max_seq = HBK__MIN(max_seq, max_tokens);
    a->keep = keep;
    a->threads = hbk__n_threads();
    a->max_runs = n > 1 ? max_tokens : 1; /* no more than sequences */
    a->head_rows = HBK__MIN(max_tokens, HBK__MAX(16, HBK__HEAD_REALS / c->vocab_size));
    a->blocks = HBK__NEW(alloc, hbk__block_acts, c->n_layers, err);
    if (a->blocks) a->ranks = HBK__NEW(alloc, hbk_int, c->n_layers * HBK_N_SLOTS + 1, err);
    if (!a->ranks) {
        hbk_acts_free(a);
        return NULL;
    }
    for (hbk_int k = 0; k < n; k++)
        for (hbk_int i = 0; adapters[k] && i <= c->n_layers * HBK_N_SLOTS; i++)
            a->ranks[i] = HBK__MAX(a->ranks[i], adapters[k]->loras[i].rank);
    return a;
}

HBK_DEF hbk_acts *hbk_acts_new_mixed(const hbk_model *m, const hbk_adapter *const *adapters, hbk_int n,
                                     hbk_int max_tokens, hbk_int max_seq, hbk_keep keep, hbk_allocator *alloc,
                                     hbk_error *err)
{
    const hbk_config *c = &m->config;
    hbk__acts_size size;
    for (hbk_int k = 0; k < n; k++)
        if (adapters[k] && !hbk__adapter_fits(adapters[k], c, err)) return NULL;
    hbk_acts *a = hbk__acts_begin(c, adapters, n, max_tokens, max_seq, keep, alloc, err);
    if (!a) return NULL;
    a->block = HBK__NEW(alloc, hbk_real, hbk__acts_layout(a, c, NULL, &size), err);
    if (a->block) a->runs = HBK__NEW(alloc, hbk__lora_run, 2 * a->max_runs, err);
    if (a->runs) a->pos = HBK__NEW(alloc, int32_t, max_tokens, err);
    if (a->pos) a->targets = HBK__NEW(alloc, int32_t, max_tokens, err);
    if (a->targets) a->rows = HBK__NEW(alloc, hbk_int, max_tokens, err);
    if (a->rows) a->spans = HBK__NEW(alloc, hbk_span, max_tokens, err);
    if (a->spans) a->nll = HBK__NEW(alloc, double, max_tokens, err);
    if (!a->nll) {
        hbk_acts_free(a);
        return NULL;
    }
    hbk__acts_layout(a, c, a->block, &size);
    a->head_runs = a->runs + a->max_runs;
    return a;
}

HBK_DEF hbk_acts *hbk_acts_new(const hbk_model *m, const hbk_adapter *adapter, hbk_int max_tokens,
                               hbk_int max_seq, hbk_keep keep, hbk_allocator *alloc, hbk_error *err)
{
    return hbk_acts_new_mixed(m, &adapter, 1, max_tokens, max_seq, keep, alloc, err);
}

static bool hbk__fail_id(hbk_int n, int32_t id, int32_t target, hbk_int vocab_size, hbk_error *err)
{
    char with[40] = "";
    if (target != -1) snprintf(with, sizeof with, " with target %d", (int)target);
    return hbk_fail(err, HBK_ERROR_RANGE,
                    "token %lld of the batch is id %d%s, expected ids 0 to %lld; is this the model's own "
                    "tokenizer?",
                    (long long)n, (int)id, with, (long long)vocab_size - 1);
}

/* Whether there is room for the adapter, and its gradient, which may be NULL, is of the same ranks. */
static bool hbk__adapter_room(const hbk_acts *a, const hbk_config *c, const hbk_adapter *w,
                              const hbk_adapter *d, hbk_error *err)
{
    if (!hbk__adapter_fits(w, c, err) || (d && !hbk__adapter_fits(d, c, err))) return false;
    for (hbk_int i = 0; i <= w->n_layers * HBK_N_SLOTS; i++) {
        const char *name = hbk_slot_name((hbk_slot)hbk__lora_slot(w, i));
        if (w->loras[i].rank > a->ranks[i])
            return hbk_fail(err, HBK_ERROR_RANGE,
                            "rank %lld of %s (layer %lld of %lld) exceeds the room for %lld: name every "
                            "adapter when making room for the passes",
                            (long long)w->loras[i].rank, name, (long long)(i / HBK_N_SLOTS),
                            (long long)w->n_layers, (long long)a->ranks[i]);
        if (d && d->loras[i].rank != w->loras[i].rank)
            return hbk_fail(err, HBK_ERROR_SHAPE,
                            "rank %lld of %s (layer %lld of %lld) and rank %lld of its gradient differ",
                            (long long)w->loras[i].rank, name, (long long)(i / HBK_N_SLOTS),
                            (long long)w->n_layers, (long long)d->loras[i].rank);
    }
    return true;
}

/* Which rows have which adapter. */
static bool hbk__batch_runs(hbk_acts *a, const hbk_config *c, const hbk_batch *b, const hbk_pass *p,
                            hbk_error *err)
{
    HBK_ASSERT(p->adapters ? !p->adapter && !p->dadapter : !p->dadapters);
    const hbk_adapter *before = NULL, *dbefore = NULL;
    a->n_runs = 0;
    for (hbk_int s = 0; s < b->n_seqs; s++) {
        const hbk_adapter *w = p->adapters ? p->adapters[s] : p->adapter;
        const hbk_adapter *d = p->dadapters ? p->dadapters[s] : p->dadapter;
        HBK_ASSERT(w || !d);
        bool another = s == 0 || w != before || d != dbefore;
        if (another && a->n_runs == a->max_runs)
            return hbk_fail(err, HBK_ERROR_RANGE,
                            "sequence %lld has another adapter than those before, the room was made for one "
                            "at a time: hbk_acts_new_mixed makes it for several",
                            (long long)s);
        if (another && w && !hbk__adapter_room(a, c, w, d, err)) return false;
        hbk__add_run(a->runs, &a->n_runs, b->seq_start[s + 1] - b->seq_start[s], w, d);
        before = w;
        dbefore = d;
    }
    return true;
}

/* Checks a batch against the room and the vocabulary, and fills positions, spans and runs. */
static bool hbk__batch_begin(hbk_acts *a, const hbk_model *m, const hbk_batch *b, const hbk_pass *p,
                             hbk_error *err)
{
    if (b->n_tokens > a->max_tokens)
        return hbk_fail(err, HBK_ERROR_RANGE, "a batch of %lld tokens exceeds the room for %lld",
                        (long long)b->n_tokens, (long long)a->max_tokens);
    HBK_ASSERT(b->n_seqs >= 1 && b->n_seqs <= b->n_tokens && b->seq_start[0] == 0 &&
               b->seq_start[b->n_seqs] == b->n_tokens);
    for (hbk_int n = 0; n < b->n_tokens; n++) {
        int32_t t = b->targets ? b->targets[n] : -1;
        if (b->tokens[n] < 0 || b->tokens[n] >= m->config.vocab_size || t < -1 || t >= m->config.vocab_size)
            return hbk__fail_id(n, b->tokens[n], t, m->config.vocab_size, err);
    }
    for (hbk_int s = 0; s < b->n_seqs; s++) {
        hbk_int start = b->seq_start[s], T = b->seq_start[s + 1] - start;
        if (T > a->max_seq)
            return hbk_fail(err, HBK_ERROR_RANGE, "a sequence of %lld tokens exceeds the room for %lld",
                            (long long)T, (long long)a->max_seq);
        a->spans[s].q_start = start;
        a->spans[s].T = T;
        a->spans[s].past = 0;
        for (hbk_int t = 0; t < T; t++) a->pos[start + t] = (int32_t)t;
    }
    if (!hbk__batch_runs(a, &m->config, b, p, err)) return false;
    hbk_rope_table(a->rope, a->pos, m->inv_freq, b->n_tokens, m->config.head_dim);
    return true;
}

/* The spans of a layer's own keys and values. */
static void hbk__spans_at(hbk_acts *a, const hbk_config *c, const hbk__block_acts *b, hbk_int n_seqs)
{
    hbk_int KV = c->n_kv_heads * c->head_dim;
    for (hbk_int s = 0; s < n_seqs; s++) {
        a->spans[s].k = b->k + a->spans[s].q_start * KV;
        a->spans[s].v = b->v + a->spans[s].q_start * KV;
    }
}

/* A layer from its input to the attention's result. */
static void hbk__attend(hbk_acts *a, const hbk__env *e, hbk_int l, const hbk_batch *b)
{
    const hbk_config *c = &e->m->config;
    const hbk__block_acts *k = &a->blocks[l];
    hbk__block_in(e, l, k, a->norm, a->rope, b->n_tokens);
    hbk__spans_at(a, c, k, b->n_seqs);
    hbk_attention_forward(k->att, k->lse, k->q, a->spans, b->n_seqs, c->n_heads, c->n_kv_heads, c->head_dim,
                          a->work, a->threads);
}

/* Uniform noise on the embeddings of a training step, narrower in longer sequences. It is a constant to the
   gradient. Source: Jain et al. 2023 (NEFTune), algorithm 1. */
static void hbk__embed_noise(hbk_real *x, const hbk_batch *b, hbk_int C, double alpha, uint64_t seed)
{
    for (hbk_int s = 0; s < b->n_seqs; s++) {
        hbk_int start = b->seq_start[s], T = b->seq_start[s + 1] - start;
        double bound = alpha / sqrt((double)(T * C));
        hbk_rng r = hbk_rng_at(seed, "neftune", (uint64_t)s);
        for (hbk_int i = start * C; i < (start + T) * C; i++)
            x[i] += (hbk_real)(bound * (2 * hbk_rng_uniform(&r) - 1));
    }
}

static void hbk__layers_forward(hbk_acts *a, const hbk__env *e, const hbk_batch *b)
{
    const hbk_config *c = &e->m->config;
    hbk_int N = b->n_tokens;
    hbk_embed_forward(a->blocks[0].x, &e->m->embed, b->tokens, N);
    if (e->neftune > 0) hbk__embed_noise(a->blocks[0].x, b, c->dim, e->neftune, e->seed);
    for (hbk_int l = 0; l < c->n_layers; l++) {
        hbk__block_acts *k = &a->blocks[l];
        hbk__attend(a, e, l, b);
        hbk__block_out(e, l, k, l + 1 < c->n_layers ? a->blocks[l + 1].x : a->last, a->norm, a->act, N);
    }
}

/* Adds the gradients of one projection's corrections, given dy: of each A and B that trains, of their input x
   where dx is given. The mirror image of hbk__correct. */
static void hbk__correct_backward(hbk_acts *a, const hbk__env *e, hbk_int layer, int slot, hbk_real *dx,
                                  const hbk_real *dy, const hbk_real *x, const hbk_real *xa, hbk_int N)
{
    const hbk__lora_run *runs = hbk__runs_at(e, layer);
    const hbk_real *in = NULL;
    bool masked = e->lora_dropout > 0 && dx;
    hbk_real *din = masked ? a->ddrop : dx;
    hbk_int size = 0;
    for (hbk_int i = 0; i < e->n_runs; i++) {
        const hbk_lora *l = hbk__run_lora(runs[i].adapter, layer, slot);
        const hbk_lora *d = hbk__run_lora(runs[i].dadapter, layer, slot);
        hbk_int first = runs[i].first, n = runs[i].n;
        if (!l || n == 0) continue;
        if (!in) {
            size = N * l->in;
            in = hbk__lora_input(e, layer, slot, x, size);
            if (masked) memset(din, 0, (size_t)size * sizeof *din);
        }
        hbk_lora_backward(din ? din + first * l->in : NULL, d, a->dxa, dy + first * l->out,
                          in + first * l->in, xa, l, n);
        xa += n * l->rank;
    }
    if (!masked || !in) return;
    /* forward: the adapters read dropout(x), so what they pass down goes through the same mask */
    hbk_dropout(din, din, size, e->lora_dropout, hbk__drop_seed(e, layer, slot));
    hbk__add_to(dx, din, size);
}

/* Whether a backward follows. */
static bool hbk__trains(const hbk_pass *p)
{
    return p->dmodel || p->dadapter || p->dadapters;
}

/* N gathered rows from `first` on, a chunk by number: logits, loss and, in training, the gradients of the
   head's weight or adapter and of head_n. Returns the summed loss. */
static double hbk__head_chunk(hbk_acts *a, const hbk__env *e, const hbk_pass *p, hbk_int chunk, hbk_int first,
                              hbk_int N)
{
    const hbk_model *m = e->m;
    bool backward = hbk__trains(p);
    const hbk_real *x = a->head_n + first * m->config.dim;
    hbk_real *dx = backward ? a->dhead + first * m->config.dim : NULL;
    hbk__head_forward(e, a->logits, x, a->rows + first, N, a->head_xa, chunk);
    double loss = hbk_cross_entropy(backward ? a->logits : NULL, a->nll + first, a->logits,
                                    a->targets + first, N, m->config.vocab_size, p->scale);
    if (!backward) return loss;
    /* from here on a->logits holds dlogits; forward: logits = head_n HEAD^T */
    hbk__matmul_dx(dx, a->logits, &m->head, N, a->panel, false);
    if (p->dmodel) hbk_matmul_dw(&p->dmodel->head, a->logits, x, N);
    hbk__correct_backward(a, e, m->config.n_layers + chunk, 0, dx, a->logits, x, a->head_xa, N);
    return loss;
}

/* Gathers rows with a target, and for chunks of them: logits, loss and, if wanted, the gradients of the
   head and of the residual stream (into a->dx, zero elsewhere). Returns the summed loss. */
static double hbk__head(hbk_acts *a, const hbk__env *e, const hbk_batch *b, const hbk_pass *p, double *nll)
{
    const hbk_model *m = e->m;
    hbk_int C = m->config.dim, n = 0;
    bool backward = hbk__trains(p);
    for (hbk_int i = 0; i < b->n_tokens; i++) {
        if (nll) nll[i] = 0;
        if (b->targets[i] < 0) continue;
        memcpy(a->head_x + n * C, a->last + i * C, (size_t)C * sizeof *a->last);
        a->targets[n] = b->targets[i];
        a->rows[n++] = i;
    }
    hbk_rms_norm_forward(a->head_n, a->head_x, m->final_norm, n, C, m->config.rms_norm_eps);
    double loss = 0;
    hbk_int chunks = (n + a->head_rows - 1) / a->head_rows; /* alike: each packs the whole of HEAD */
    for (hbk_int i = 0; i < chunks; i++)
        loss += hbk__head_chunk(a, e, p, i, n * i / chunks, n * (i + 1) / chunks - n * i / chunks);
    if (nll)
        for (hbk_int i = 0; i < n; i++) nll[a->rows[i]] = a->nll[i];
    if (!backward) return loss;
    /* forward: head_n = rms_norm(head_x) on the gathered rows; dnorm serves as their dx */
    memset(a->dnorm, 0, (size_t)(n * C) * sizeof *a->dnorm);
    hbk_rms_norm_backward(a->dnorm, p->dmodel ? p->dmodel->final_norm : NULL, a->dhead, a->head_x,
                          m->final_norm, n, C, m->config.rms_norm_eps);
    memset(a->dx, 0, (size_t)(b->n_tokens * C) * sizeof *a->dx);
    for (hbk_int i = 0; i < n; i++)
        memcpy(a->dx + a->rows[i] * C, a->dnorm + i * C, (size_t)C * sizeof *a->dx);
    return loss;
}

/* Gradients of one projection, given dy: of W, bias and adapter where they train; of x where dx is given,
   which is set, or with add added to. */
static void hbk__project_backward(hbk_acts *a, const hbk__env *e, const hbk_pass *p, hbk_int layer, int slot,
                                  hbk_real *dx, bool add, const hbk_real *dy, const hbk_real *x, hbk_int N)
{
    const hbk_matrix *w = &e->m->layers[layer].w[slot];
    if (dx) hbk__matmul_dx(dx, dy, w, N, a->panel, add);
    if (p->dmodel) hbk_matmul_dw(&p->dmodel->layers[layer].w[slot], dy, x, N);
    hbk_real *dbias = p->dmodel ? p->dmodel->layers[layer].bias[slot] : NULL;
    for (hbk_int row = 0; dbias && row < N; row++) /* forward: y += bias in every row */
        hbk__axpy(dbias, 1, dy + row * w->rows, w->rows);
    hbk__correct_backward(a, e, layer, slot, dx, dy, x, a->blocks[layer].xa[slot], N);
}

/* The gradient that enters a residual branch: dy itself, or behind its dropout (in scratch). */
static const hbk_real *hbk__residual_backward(const hbk__env *e, hbk_int layer, int slot, const hbk_real *dy,
                                              hbk_int N, hbk_real *scratch)
{
    if (e->residual_dropout <= 0) return dy;
    hbk_dropout(scratch, dy, N * e->m->config.dim, e->residual_dropout, hbk__drop_seed(e, layer, 8 + slot));
    return scratch;
}

static void hbk__zero(hbk_real *p, hbk_int n)
{
    memset(p, 0, (size_t)n * sizeof *p);
}

/* One layer: a->dx comes in as the gradient of its output, and leaves as that of its input, unless `lowest`,
   where only gradients of weights are wanted. The mirror image of block_out, attention, block_in. */
static void hbk__layer_backward(hbk_acts *a, const hbk__env *e, const hbk_pass *p, hbk_int l,
                                const hbk_batch *b, bool lowest)
{
    const hbk_config *c = &e->m->config;
    const hbk_layer *w = &e->m->layers[l];
    hbk_layer *dw = p->dmodel ? &p->dmodel->layers[l] : NULL;
    hbk__block_acts *k = &a->blocks[l];
    hbk_int N = b->n_tokens, C = c->dim, F = c->ffn_dim, Q = c->n_heads * c->head_dim;
    hbk_int KV = c->n_kv_heads * c->head_dim;
    if (a->keep == HBK_KEEP_INPUTS && l + 1 < c->n_layers) { /* the last layer's is still there */
        hbk__attend(a, e, l, b);
        hbk__block_middle(e, l, k, a->norm, N);
    }

    /* forward: y = h + act DOWN^T, act = silu(gate) * up */
    const hbk_real *dbranch = hbk__residual_backward(e, l, HBK_DOWN, a->dx, N, a->dh);
    hbk_swiglu_forward(a->act, k->gate, k->up, N * F);
    hbk__project_backward(a, e, p, l, HBK_DOWN, a->dact, false, dbranch, a->act, N);
    hbk__zero(a->dgate, N * F);
    hbk__zero(a->dup, N * F);
    hbk_swiglu_backward(a->dgate, a->dup, a->dact, k->gate, k->up, N * F);
    /* forward: gate, up = norm GATE^T, norm UP^T, norm = rms_norm(h) */
    hbk_rms_norm_forward(a->norm, k->h, w->ffn_norm, N, C, c->rms_norm_eps);
    hbk__project_backward(a, e, p, l, HBK_GATE, a->dnorm, false, a->dgate, a->norm, N);
    hbk__project_backward(a, e, p, l, HBK_UP, a->dnorm, true, a->dup, a->norm, N);
    hbk_rms_norm_backward(a->dx, dw ? dw->ffn_norm : NULL, a->dnorm, k->h, w->ffn_norm, N, C,
                          c->rms_norm_eps);

    /* forward: h = x + att O^T; a->dx is now the gradient of h */
    dbranch = hbk__residual_backward(e, l, HBK_O, a->dx, N, a->dh);
    hbk__project_backward(a, e, p, l, HBK_O, a->datt, false, dbranch, k->att, N);
    hbk__zero(a->dq, N * Q);
    hbk__zero(a->dk, N * KV);
    hbk__zero(a->dv, N * KV);
    hbk__spans_at(a, c, k, b->n_seqs);
    hbk_attention_backward(a->dq, a->dk, a->dv, a->datt, k->att, k->lse, k->q, a->spans, b->n_seqs,
                           c->n_heads, c->n_kv_heads, c->head_dim, a->work, a->threads);
    hbk_rope(a->dq, a->rope, N, c->n_heads, c->head_dim, true);
    hbk_rope(a->dk, a->rope, N, c->n_kv_heads, c->head_dim, true);
    /* forward: q, k, v = norm Q^T, norm K^T, norm V^T, norm = rms_norm(x) */
    hbk_rms_norm_forward(a->norm, k->x, w->attn_norm, N, C, c->rms_norm_eps);
    hbk_real *dnorm = lowest ? NULL : a->dnorm;
    hbk__project_backward(a, e, p, l, HBK_Q, dnorm, false, a->dq, a->norm, N);
    hbk__project_backward(a, e, p, l, HBK_K, dnorm, true, a->dk, a->norm, N);
    hbk__project_backward(a, e, p, l, HBK_V, dnorm, true, a->dv, a->norm, N);
    if (!lowest)
        hbk_rms_norm_backward(a->dx, dw ? dw->attn_norm : NULL, a->dnorm, k->x, w->attn_norm, N, C,
                              c->rms_norm_eps);
}

static hbk__env hbk__env_of(const hbk_acts *a, const hbk_model *m, const hbk_pass *p)
{
    hbk__env e;
    e.m = m;
    e.runs = a->runs;
    e.head_runs = a->head_runs;
    e.n_runs = a->n_runs;
    e.panel = a->panel;
    e.drop = a->drop;
    bool backward = hbk__trains(p), adapted = p->adapter || p->adapters;
    e.lora_dropout = backward && adapted ? p->dropout : 0; /* dropout belongs to training only */
    e.residual_dropout = p->dmodel && !adapted ? p->dropout : 0;
    e.neftune = backward ? p->neftune : 0;
    e.seed = p->dropout_seed;
    return e;
}

/* The lowest layer that has something to train; n_layers if only the head has. */
static hbk_int hbk__lowest_layer(const hbk_acts *a, const hbk_model *m, const hbk_pass *p)
{
    hbk_int l = 0;
    for (; !p->dmodel && l < m->config.n_layers; l++)
        for (hbk_int i = 0; i < a->n_runs; i++)
            for (int s = 0; s < HBK_N_SLOTS; s++)
                if (hbk__lora_of(a->runs[i].dadapter, l, s)) return l;
    return l;
}

HBK_DEF bool hbk_model_pass(hbk_acts *a, const hbk_model *m, const hbk_batch *b, const hbk_pass *p,
                            double *loss, double *nll, hbk_error *err)
{
    HBK_ASSERT(a->keep != HBK_KEEP_NONE || !hbk__trains(p));
    if (!hbk__batch_begin(a, m, b, p, err)) return false;
    hbk__env e = hbk__env_of(a, m, p);
    hbk__layers_forward(a, &e, b);
    double sum = hbk__head(a, &e, b, p, nll);
    if (hbk__trains(p)) {
        hbk_int lowest = hbk__lowest_layer(a, m, p);
        for (hbk_int l = m->config.n_layers - 1; l >= lowest; l--)
            hbk__layer_backward(a, &e, p, l, b, l == lowest && !p->dmodel);
    }
    if (p->dmodel) hbk_embed_backward(&p->dmodel->embed, a->dx, b->tokens, b->n_tokens);
    if (loss) *loss = sum;
    return true;
}

HBK_DEF bool hbk_model_logits(hbk_acts *a, const hbk_model *m, const hbk_batch *b, const hbk_adapter *adapter,
                              hbk_real *logits, hbk_error *err)
{
    hbk_pass p;
    memset(&p, 0, sizeof p);
    p.adapter = adapter;
    if (!hbk__batch_begin(a, m, b, &p, err)) return false;
    hbk__env e = hbk__env_of(a, m, &p);
    hbk__layers_forward(a, &e, b);
    hbk_int N = b->n_tokens, C = m->config.dim;
    hbk_rms_norm_forward(a->head_n, a->last, m->final_norm, N, C, m->config.rms_norm_eps);
    for (hbk_int i = 0; i < N; i++) a->rows[i] = i;
    hbk__head_forward(&e, logits, a->head_n, a->rows, N, a->head_xa, 0);
    return true;
}

HBK__GLUE

/* ==== 12  WEIGHT FILES =======================================================

   A weight file is a table of (name, type, shape, place) in front of a heap of numbers. safetensors:

       u64 N | N bytes of JSON: {"name": {"dtype", "shape", "data_offsets": [begin, end]}, ...} | data

   The file is mapped, and its table is checked whole before anything looks at the data: the tensors tile
   the data from its first byte to its last, without gap or overlap, and each is as long as its shape
   says. After that no reader has to check again. The numbers begin wherever the header happened to end,
   so they may be unaligned.

   llama2.c's .bin has no table, only an order. Its table is made here, in Hugging Face's names, so that
   one loader serves both; a GGUF file's table is read with its names translated. Both differ in one thing:
   rotary positions turn the pairs (2i, 2i+1) of a head, Hugging Face's the pairs (i, i + D/2). Rows of q and
   k are brought into the latter order, which is why they are copied while everything else stays mapped in
   its stored type.

   Loaders are tolerant where the public files differ (which copy of tied weights is stored, null or
   absent metadata, where the configuration keeps its rope fields) and strict about everything that would
   give another model silently: a tensor too few, too many or of another shape is an error by name.

     12.1 reading safetensors   12.2 writing them     12.3 config.json    12.4 binding a model's tensors
     12.5 folders               12.6 llama2.c         12.7 reading GGUF    12.8 saving
     12.9 adapters              12.10 merging         12.11 writing GGUF */

/* ---- 12.1 reading safetensors ----------------------------------------------- */

enum { HBK__HEADER_MAX = 100000000 }; /* bytes of JSON; the format's own limit */

struct hbk_safetensors {
    char path[512];
    hbk_allocator *alloc;
    hbk_mapping map;
    json_t *meta;               /* __metadata__, an object of strings, or NULL */
    hbk_tensor *tensors;        /* (n) in the order of their data */
    const hbk_tensor **by_name; /* (n) the same, sorted */
    char *names;                /* each name with its NUL, one after another */
    size_t names_used;
    hbk_int n;
    bool interleaved; /* llama2.c, GGUF: rows 2i and 2i+1 of a head of q and k are a pair */
    hbk_int group;    /* llama2.c: elements per scale of an INT8 tensor, whose scales follow it */
};

typedef struct hbk__st_type {
    char name[12];
    int bits;
} hbk__st_type;

/* In the reference's order, whose writer puts the last type first. */
static const hbk__st_type hbk__st_types[] = {
    {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
    {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
    {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
    {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64}};

static int hbk__st_type_of(const char *name)
{
    for (int i = 0; i < (int)(sizeof hbk__st_types / sizeof *hbk__st_types); i++)
        if (!strcmp(name, hbk__st_types[i].name)) return i;
    return -1;
}

/* Fills n_elements and bytes from dtype and shape; false if there is no such size: an unknown type, an
   overflow, or a last byte that elements of less than a byte fill only in part. */
static bool hbk__tensor_size(hbk_tensor *t)
{
    int type = hbk__st_type_of(t->dtype);
    hbk_int n = 1, bits;
    for (hbk_int i = 0; i < t->n_dims; i++)
        if (!hbk__mul(&n, n, t->shape[i])) return false;
    if (type < 0 || !hbk__mul(&bits, n, hbk__st_types[type].bits) || bits % 8) return false;
    t->n_elements = n;
    t->bytes = (size_t)(bits / 8);
    return true;
}

/* An empty table over the mapped file; safetensors fill it from their header, llama2.c from its order. */
static hbk_safetensors *hbk__st_map(const char *path, hbk_allocator *alloc, hbk_error *err)
{
    hbk_safetensors *s = HBK__NEW(alloc, hbk_safetensors, 1, err);
    if (!s) return NULL;
    s->alloc = alloc;
    bool fits = snprintf(s->path, sizeof s->path, "%s", path) < (int)sizeof s->path;
    if (!fits) hbk_fail_at(err, HBK_ERROR_RANGE, path, 0, "the path is longer than 511 bytes");
    if (!fits || !hbk_mapping_open(&s->map, path, err) ||
        !hbk__check_pointer(s->map.data, s->map.size, path, err)) {
        hbk_safetensors_close(s);
        return NULL;
    }
    return s;
}

HBK_DEF void hbk_safetensors_close(hbk_safetensors *s)
{
    if (!s) return;
    if (s->map.data) hbk_mapping_close(&s->map); /* NULL: a model has taken it over */
    json_decref(s->meta);
    hbk_free(s->alloc, s->tensors);
    hbk_free(s->alloc, s->by_name);
    hbk_free(s->alloc, s->names);
    hbk_free(s->alloc, s);
}

/* Room for n tensors whose names have name_bytes in all, NULs included. */
static bool hbk__st_reserve(hbk_safetensors *s, hbk_int n, hbk_int name_bytes, hbk_error *err)
{
    s->tensors = HBK__NEW(s->alloc, hbk_tensor, n, err);
    if (s->tensors) s->by_name = HBK__NEW(s->alloc, const hbk_tensor *, n, err);
    if (s->by_name) s->names = HBK__NEW(s->alloc, char, name_bytes, err);
    return s->names != NULL;
}

/* Appends an entry; the name is copied, because the JSON that holds it is gone after opening. */
static hbk_tensor *hbk__st_add(hbk_safetensors *s, const char *name)
{
    size_t n = strlen(name) + 1;
    hbk_tensor *t = &s->tensors[s->n++];
    t->name = (const char *)memcpy(s->names + s->names_used, name, n);
    s->names_used += n;
    return t;
}

static int hbk__by_place(const void *a, const void *b)
{
    const hbk_tensor *x = (const hbk_tensor *)a, *y = (const hbk_tensor *)b;
    const char *p = (const char *)x->data, *q = (const char *)y->data;
    if (p != q) return p < q ? -1 : 1;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1; /* empty ones before their place's owner */
    return strcmp(x->name, y->name);
}

static int hbk__by_name(const void *a, const void *b)
{
    return strcmp((*(const hbk_tensor *const *)a)->name, (*(const hbk_tensor *const *)b)->name);
}

static void hbk__st_sort(hbk_safetensors *s)
{
    qsort(s->tensors, (size_t)s->n, sizeof *s->tensors, hbk__by_place);
    for (hbk_int i = 0; i < s->n; i++) s->by_name[i] = &s->tensors[i];
    qsort(s->by_name, (size_t)s->n, sizeof *s->by_name, hbk__by_name);
}

/* One entry of the header, into t. Nothing in it is believed: a pointer is formed only once the offsets are
   inside the file and agree with type and shape. */
static bool hbk__st_entry(const hbk_safetensors *s, hbk_tensor *t, const json_t *entry, hbk_int header,
                          hbk_error *err)
{
    const json_t *shape = json_object_get(entry, "shape"), *offsets = json_object_get(entry, "data_offsets");
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    const json_t *from = json_array_get(offsets, 0), *to = json_array_get(offsets, 1);
    if (!dtype || !json_is_array(shape) || json_array_size(offsets) != 2 || !json_is_integer(from) ||
        !json_is_integer(to))
        return hbk_fail_at(err, HBK_ERROR_FORMAT, s->path, 0,
                           "tensor %s: expected {\"dtype\", \"shape\", \"data_offsets\": [begin, end]}",
                           t->name);
    if (hbk__st_type_of(dtype) < 0)
        return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, s->path, 0, "tensor %s: unknown type %.40s", t->name,
                           dtype);
    snprintf(t->dtype, sizeof t->dtype, "%s", dtype);
    t->n_dims = (hbk_int)json_array_size(shape);
    if (t->n_dims > 8)
        return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, s->path, 0,
                           "tensor %s: has %lld dimensions, at most 8", t->name, (long long)t->n_dims);
    for (hbk_int i = 0; i < t->n_dims; i++) {
        const json_t *d = json_array_get(shape, (size_t)i);
        if (!json_is_integer(d) || json_integer_value(d) < 0)
            return hbk_fail_at(err, HBK_ERROR_FORMAT, s->path, 0,
                               "tensor %s: dimension %lld is not a whole number", t->name, (long long)i);
        t->shape[i] = (hbk_int)json_integer_value(d);
    }
    if (!hbk__tensor_size(t))
        return hbk_fail_at(err, HBK_ERROR_FORMAT, s->path, 0,
                           "tensor %s: its shape overflows, or ends in half a byte", t->name);
    hbk_int begin = (hbk_int)json_integer_value(from), end = (hbk_int)json_integer_value(to);
    hbk_int room = (hbk_int)s->map.size - header;
    if (begin < 0 || end < begin || end - begin != (hbk_int)t->bytes)
        return hbk_fail_at(err, HBK_ERROR_FORMAT, s->path, 0,
                           "tensor %s: data_offsets [%lld, %lld], but type and shape ask for %zu bytes",
                           t->name, (long long)begin, (long long)end, t->bytes);
    if (end > room)
        return hbk_fail_at(err, HBK_ERROR_FORMAT, s->path, 0,
                           "truncated: tensor %s ends at byte %lld of the data, of which there are %lld; "
                           "fetch the file again",
                           t->name, (long long)end, (long long)room);
    t->data = s->map.data + header + begin;
    return true;
}

/* Metadata are kept for the aliases that they hold. `meta` is NULL where the header has none. */
static bool hbk__st_metadata(hbk_safetensors *s, json_t *meta, hbk_error *err)
{
    const char *key;
    json_t *value;
    if (!meta || json_is_null(meta)) return true; /* MLX writes null */
    bool ok = json_is_object(meta);
    json_object_foreach(meta, key, value) ok = ok && json_is_string(value);
    if (!ok)
        return hbk_fail_at(err, HBK_ERROR_FORMAT, s->path, 0,
                           "__metadata__: expected null or an object of strings");
    s->meta = json_incref(meta);
    return true;
}

/* The table from the parsed header; the data begin at byte `start` of the file. */
static bool hbk__st_table(hbk_safetensors *s, json_t *header, hbk_int start, hbk_error *err)
{
    const char *key;
    json_t *value;
    if (!json_is_object(header))
        return hbk_fail_at(err, HBK_ERROR_FORMAT, s->path, 0, "its header is no JSON object");
    if (!hbk__st_metadata(s, json_object_get(header, "__metadata__"), err)) return false;
    hbk_int name_bytes = 1;
    json_object_foreach(header, key, value) name_bytes += (hbk_int)strlen(key) + 1;
    if (!hbk__st_reserve(s, (hbk_int)json_object_size(header), name_bytes, err)) return false;
    json_object_foreach(header, key,
                        value) if (strcmp(key, "__metadata__") != 0 &&
                                   !hbk__st_entry(s, hbk__st_add(s, key), value, start, err)) return false;
    hbk__st_sort(s);
    const unsigned char *at = s->map.data + start, *last = s->map.data + s->map.size;
    for (hbk_int i = 0; i < s->n; i++) {
        const hbk_tensor *t = &s->tensors[i];
        const unsigned char *data = (const unsigned char *)t->data;
        if (data != at)
            return hbk_fail_at(err, HBK_ERROR_FORMAT, s->path, 0,
                               "tensor %s: begins at byte %lld of the data, but those before it end at %lld: "
                               "%s",
                               t->name, (long long)(data - s->map.data - start),
                               (long long)(at - s->map.data - start), data < at ? "an overlap" : "a gap");
        at += t->bytes;
    }
    return at == last ||
           hbk_fail_at(err, HBK_ERROR_FORMAT, s->path, 0,
                       "%lld bytes follow the last tensor; the file is damaged", (long long)(last - at));
}

HBK_DEF hbk_safetensors *hbk_safetensors_open(const char *path, hbk_allocator *alloc, hbk_error *err)
{
    hbk_safetensors *s = hbk__st_map(path, alloc, err);
    if (!s) return NULL;
    size_t size = s->map.size;
    uint64_t n = size < 8 ? 0 : hbk__little_endian(s->map.data, 8);
    bool ok = false;
    if (size < 8) {
        hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0, "has %zu bytes, expected a safetensors file: 8 and more",
                    size);
    } else if (n > HBK__HEADER_MAX) {
        hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0,
                    "is no safetensors file: its header would have %llu bytes, at most %d are allowed",
                    (unsigned long long)n, (int)HBK__HEADER_MAX);
    } else if (n > size - 8) {
        hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0,
                    "truncated: a header of %llu bytes is announced and %zu follow; fetch the file again",
                    (unsigned long long)n, size - 8);
    } else {
        json_error_t e;
        json_t *header = json_loadb((const char *)s->map.data + 8, (size_t)n, JSON_REJECT_DUPLICATES, &e);
        if (!header) hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0, "its header is no valid JSON: %s", e.text);
        ok = header && hbk__st_table(s, header, 8 + (hbk_int)n, err);
        json_decref(header);
    }
    if (ok) return s;
    hbk_safetensors_close(s);
    return NULL;
}

HBK_DEF hbk_int hbk_safetensors_count(const hbk_safetensors *s)
{
    return s->n;
}

HBK_DEF const hbk_tensor *hbk_safetensors_at(const hbk_safetensors *s, hbk_int i)
{
    HBK_ASSERT(i >= 0 && i < s->n);
    return &s->tensors[i];
}

HBK_DEF const char *hbk_safetensors_meta(const hbk_safetensors *s, const char *key)
{
    return json_string_value(json_object_get(s->meta, key));
}

/* By its very name. A search in an own sorted table, since lookups in stb_ds's maps write to them, and an
   open file may be shared. */
static const hbk_tensor *hbk__st_find(const hbk_safetensors *s, const char *name)
{
    hbk_tensor wanted;
    const hbk_tensor *like = &wanted, *const *found;
    wanted.name = name;
    found = (const hbk_tensor *const *)bsearch(&like, s->by_name, (size_t)s->n, sizeof *s->by_name,
                                               hbk__by_name);
    return found ? *found : NULL;
}

HBK_DEF const hbk_tensor *hbk_safetensors_find(const hbk_safetensors *s, const char *name)
{
    const hbk_tensor *t = hbk__st_find(s, name);
    const char *alias = t ? NULL : hbk_safetensors_meta(s, name);
    return alias ? hbk__st_find(s, alias) : t;
}

/* A type as files spell it: "F32", "Q4_K". */
static const char *hbk__st_type_name(hbk_dtype t)
{
#define HBK_X(name, text, gguf, block, bytes) #name,
    static const char names[][5] = {HBK_DTYPES(HBK_X)};
#undef HBK_X
    return names[t];
}

/* The types of a matrix that files may hold: safetensors the first three, GGUF those that it has ids for,
   llama2.c F32 and INT8. */
static bool hbk__dtype_of(const char *name, hbk_dtype *t)
{
    for (int i = 0; i < HBK_DTYPE_COUNT; i++) {
        if (strcmp(name, hbk__st_type_name((hbk_dtype)i)) != 0 || i == HBK_F64) continue;
        *t = (hbk_dtype)i;
        return true;
    }
    return false;
}

/* A tensor of a type that hbk__dtype_of knows, as a matrix. The data are the file's: nothing writes to it. */
static hbk_matrix hbk__tensor_matrix(const hbk_tensor *t, hbk_int rows, hbk_int cols)
{
    /* drops const without -Wcast-qual */
    hbk_matrix w = {HBK_F32, rows, cols, (void *)(uintptr_t)t->data, NULL, 0, false};
    hbk__dtype_of(t->dtype, &w.dtype);
    return w;
}

/* ---- 12.2 writing safetensors -----------------------------------------------

   Tensors are sorted, the header is padded with spaces to 8 bytes, and data are converted a panel at a
   time between the matrix and the file: no buffer has the size of the file. It appears under its name
   only after it was synced and read back: its table has passed the checks of 12.1, and numbers that are
   written as they are, those of a checkpoint, are the ones in memory. */

/* Where numbers to write come from: a matrix, and what an adapter adds to it, or NULL. */
typedef struct hbk__origin {
    hbk_matrix w;
    const hbk_lora *lora;
} hbk__origin;

typedef struct hbk__st_item {
    hbk_tensor t;
    const hbk__origin *from; /* the source of the numbers, converted to t.dtype; NULL: t.data as they are */
} hbk__st_item;

static int hbk__by_type(const void *a, const void *b)
{
    const hbk_tensor *x = &((const hbk__st_item *)a)->t, *y = &((const hbk__st_item *)b)->t;
    int order = hbk__st_type_of(y->dtype) - hbk__st_type_of(x->dtype);
    return order ? order : strcmp(x->name, y->name);
}

/* The header of sorted items, into `out`. */
static bool hbk__st_header(hbk_text *out, const hbk__st_item *items, hbk_int n, const char *path,
                           hbk_error *err)
{
    json_t *header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    hbk_int at = 0;
    bool ok = true;
    for (hbk_int i = 0; i < n && ok; i++) {
        const hbk_tensor *t = &items[i].t;
        if (json_object_get(header, t->name)) {
            ok = hbk_fail_at(err, HBK_ERROR_OPTION, path, 0, "two tensors to write are called %s", t->name);
            break;
        }
        json_t *shape = json_array();
        for (hbk_int k = 0; k < t->n_dims; k++)
            json_array_append_new(shape, json_integer((json_int_t)t->shape[k]));
        json_t *entry = json_pack("{s:s, s:o, s:[I,I]}", "dtype", t->dtype, "shape", shape, "data_offsets",
                                  (json_int_t)at, (json_int_t)(at + (hbk_int)t->bytes));
        ok = json_object_set_new(header, t->name, entry) == 0;
        if (!ok) hbk_fail_at(err, HBK_ERROR_RANGE, path, 0, "a tensor's name is not UTF-8: %s", t->name);
        at += (hbk_int)t->bytes;
    }
    ok = ok && hbk_json_text(out, header, JSON_COMPACT, err);
    while (out->len % 8 && !out->failed) hbk_text_append(out, " ", 1);
    json_decref(header);
    return ok && hbk_text_ok(out, err);
}

/* The smallest number that rounds to infinity in type t: (2 - 2^-(p+1)) 2^e for p fraction bits. A block of
   q8_0 has an F16 for a 127th of its largest number. */
static double hbk__dtype_limit(hbk_dtype t)
{
    if (t == HBK_Q8_0) return 127 * hbk__dtype_limit(HBK_F16);
    if (t == HBK_F16) return ldexp(2 - ldexp(1, -11), 15);
    return ldexp(2 - ldexp(1, t == HBK_BF16 ? -8 : -24), 127);
}

/* Packs n numbers of a tensor of the file `path`; packed NULL: only looks at them. A trainer that diverged
   must not replace a good file by one full of NaN, nor a narrow type turn large weights into infinities: both
   end the writing. */
static bool hbk__pack_checked(void *packed, hbk_dtype t, const hbk_real *x, hbk_int n, const char *name,
                              const char *path, hbk_error *err)
{
    double limit = hbk__dtype_limit(t);
    hbk_int bad = 0;
    while (bad < n && fabs((double)x[bad]) < limit) bad++; /* false for a NaN, too */
    if (bad < n)
        return hbk_fail_at(err, HBK_ERROR_NUMERIC, path, 0,
                           "tensor %s: holds %g, which %s cannot; nothing was written", name, (double)x[bad],
                           hbk__st_type_name(t));
    if (packed) hbk_pack(packed, t, x, n);
    return true;
}

/* The numbers of one tensor. */
static bool hbk__st_put(hbk_file *f, const hbk__st_item *item, hbk_allocator *alloc, hbk_error *err)
{
    if (!item->from) return hbk_file_put(f, item->t.data, item->t.bytes, err);
    hbk_dtype type = HBK_F32;
    hbk__dtype_of(item->t.dtype, &type);
    const hbk_matrix *w = &item->from->w;
    hbk_int step = hbk__panel_rows(w);
    hbk_real *x = HBK__NEW(alloc, hbk_real, step * w->cols, err);
    char *packed = x ? (char *)hbk_alloc(alloc, step, hbk_dtype_size(type, w->cols), err) : NULL;
    bool ok = packed != NULL;
    for (hbk_int row = 0; ok && row < w->rows; row += step) {
        hbk_int n = HBK__MIN(step, w->rows - row) * w->cols;
        hbk_lora_merge(x, w, item->from->lora, row, n / w->cols);
        ok = hbk__pack_checked(packed, type, x, n, item->t.name, f->path, err) &&
             hbk_file_put(f, packed, hbk_dtype_size(type, n), err);
    }
    hbk_free(alloc, x);
    hbk_free(alloc, packed);
    return ok;
}

/* Do n bytes of the open file, from where it stands, hold the same? */
static bool hbk__reads_back(int fd, const char *data, size_t n)
{
    char chunk[16384];
    while (n > 0) {
        hbk_int got = hbk__read(fd, chunk, HBK__MIN(n, sizeof chunk));
        if (got <= 0 || memcmp(chunk, data, (size_t)got) != 0) return false;
        data += got;
        n -= (size_t)got;
    }
    return true;
}

/* The written file's table, and its numbers where they were not converted. They are read, not mapped: the
   pages of a mapping would count as this process's memory. */
static bool hbk__st_verify(const char *path, const hbk__st_item *items, hbk_int n, size_t header,
                           hbk_allocator *alloc, hbk_error *err)
{
    hbk_safetensors *back = hbk_safetensors_open(path, alloc, err);
    if (!back) return false;
    bool ok = back->n == n;
    hbk_safetensors_close(back);
    off_t at = (off_t)(8 + header);
    int fd = hbk__open(path, NULL, err);
    if (fd < 0) return false;
    for (hbk_int i = 0; i < n && ok; i++) {
        if (!items[i].from)
            ok = lseek(fd, at, SEEK_SET) == at &&
                 hbk__reads_back(fd, (const char *)items[i].t.data, items[i].t.bytes);
        at += (off_t)items[i].t.bytes;
    }
    close(fd);
    if (ok) return true;
    return hbk_fail_at(err, HBK_ERROR_FILE, path, 0,
                       "was written but does not read back: is the disk sound?");
}

/* Writes sorted items to a file under construction, and reads them back. */
static bool hbk__st_write(hbk_file *f, const hbk__st_item *items, hbk_int n, hbk_allocator *alloc,
                          hbk_error *err)
{
    char length[8];
    hbk_text header;
    memset(&header, 0, sizeof header);
    header.alloc = alloc;
    bool ok = hbk__st_header(&header, items, n, f->path, err);
    for (int i = 0; i < 8; i++) length[i] = (char)((uint64_t)header.len >> (8 * i) & 0xff);
    ok = ok && hbk_file_put(f, length, 8, err) && hbk_file_put(f, header.data, header.len, err);
    for (hbk_int i = 0; i < n && ok; i++) ok = hbk__st_put(f, &items[i], alloc, err);
    ok = ok && hbk_file_seal(f, err) && hbk__st_verify(f->tmp, items, n, header.len, alloc, err);
    hbk_text_free(&header);
    return ok;
}

/* Tensors, and for each the origin of its numbers (from NULL: its own data), into a file. */
static bool hbk__tensors_write(const char *path, const hbk_tensor *tensors, const hbk__origin *from,
                               hbk_int n, hbk_allocator *alloc, hbk_error *err)
{
    hbk_file f;
    hbk__st_item *items = HBK__NEW(alloc, hbk__st_item, n, err);
    if (!items) return false;
    bool ok = true;
    for (hbk_int i = 0; i < n && ok; i++) {
        items[i].t = tensors[i];
        items[i].from = from ? &from[i] : NULL;
        HBK_ASSERT(tensors[i].n_dims >= 0 && tensors[i].n_dims <= 8);
        if (!hbk__tensor_size(&items[i].t))
            ok = hbk_fail_at(err, HBK_ERROR_RANGE, path, 0, "tensor %s: no size for this shape in type %s",
                             tensors[i].name, tensors[i].dtype);
    }
    if (ok) qsort(items, (size_t)n, sizeof *items, hbk__by_type);
    if (ok && (ok = hbk_file_begin(&f, path, err))) {
        ok = hbk__st_write(&f, items, n, alloc, err) && hbk_file_commit(&f, err);
        if (!ok) hbk_file_abandon(&f);
    }
    hbk_free(alloc, items);
    return ok;
}

HBK_DEF bool hbk_safetensors_write(const char *path, const hbk_tensor *tensors, hbk_int n, hbk_error *err)
{
    return hbk__tensors_write(path, tensors, NULL, n, NULL, err);
}

/* ---- 12.3 config.json -------------------------------------------------------

   A field that is absent or null has the value that transformers' LlamaConfig gives it, or MistralConfig: a
   Mistral whose window hides nothing is a LLaMA. Keys that change no number (pretraining_tp, use_cache,
   dropout rates) are not looked at; those that would are refused by name. Two spellings of
   the rope fields are about: rope_theta and rope_scaling {"rope_type" or "type", ...} beside the others,
   and, since transformers 5, all of them inside rope_parameters. */

/* The two groups of projections that a config.json gives biases to, whole or not at all. */
#define HBK__ATTENTION (1u << HBK_Q | 1u << HBK_K | 1u << HBK_V | 1u << HBK_O)
#define HBK__MLP       (1u << HBK_GATE | 1u << HBK_UP | 1u << HBK_DOWN)

typedef struct hbk__fields {
    const json_t *o;
    const char *path;
    hbk_error *err;
    bool ok; /* the first failure sticks */
} hbk__fields;

/* The value of a key, or NULL if it is absent or null, or if reading has failed before. */
static const json_t *hbk__json_field(const hbk__fields *f, const char *key)
{
    const json_t *v = f->ok ? json_object_get(f->o, key) : NULL;
    return v && !json_is_null(v) ? v : NULL;
}

static hbk_int hbk__field_int(hbk__fields *f, const char *key, hbk_int absent)
{
    const json_t *v = hbk__json_field(f, key);
    if (!v) return absent;
    if (json_is_integer(v)) return (hbk_int)json_integer_value(v);
    double x = json_real_value(v); /* 0 for what is no number; some writers know reals only */
    if (json_is_real(v) && x == floor(x) && fabs(x) < 1e15) return (hbk_int)x;
    f->ok = hbk_fail_at(f->err, HBK_ERROR_FORMAT, f->path, 0, "%s: expected a whole number", key);
    return absent;
}

static double hbk__field_real(hbk__fields *f, const char *key, double absent)
{
    const json_t *v = hbk__json_field(f, key);
    if (!v) return absent;
    if (json_is_number(v)) return json_number_value(v);
    f->ok = hbk_fail_at(f->err, HBK_ERROR_FORMAT, f->path, 0, "%s: expected a number", key);
    return absent;
}

static bool hbk__field_bool(hbk__fields *f, const char *key, bool absent)
{
    const json_t *v = hbk__json_field(f, key);
    if (!v) return absent;
    if (json_is_boolean(v)) return json_is_true(v);
    f->ok = hbk_fail_at(f->err, HBK_ERROR_FORMAT, f->path, 0, "%s: expected true or false", key);
    return absent;
}

/* Refuses a key that asks for something: one that is not null, false, empty or the string `idle`. */
static void hbk__field_refuse(hbk__fields *f, const char *key, const char *idle)
{
    const json_t *v = hbk__json_field(f, key);
    const char *s = json_string_value(v);
    if (!v || json_is_false(v) || (s && idle && !strcmp(s, idle))) return;
    if ((json_is_array(v) && !json_array_size(v)) || (json_is_object(v) && !json_object_size(v))) return;
    char *text = json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY);
    f->ok = hbk_fail_at(f->err, HBK_ERROR_UNSUPPORTED, f->path, 0, "%s %.80s is not supported%s%s%s", key,
                        text ? text : "", idle ? ", only \"" : "", idle ? idle : "", idle ? "\"" : "");
    free(text);
}

/* A token id, or -1 for null. */
static int32_t hbk__field_id(hbk__fields *f, const json_t *v, const char *key)
{
    if (!v || json_is_null(v)) return -1;
    if (json_is_integer(v) && json_integer_value(v) >= -1 && json_integer_value(v) <= INT32_MAX)
        return (int32_t)json_integer_value(v);
    f->ok = f->ok && hbk_fail_at(f->err, HBK_ERROR_FORMAT, f->path, 0, "%s: expected token ids", key);
    return -1;
}

/* eos_token_id is an id or a list of them. */
static void hbk__read_eos(hbk__fields *f, hbk_config *c)
{
    const json_t *v = json_object_get(f->o, "eos_token_id");
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    if (n > HBK_MAX_EOS)
        f->ok = f->ok && hbk_fail_at(f->err, HBK_ERROR_RANGE, f->path, 0,
                                     "eos_token_id: has %zu ids, at most %d", n, HBK_MAX_EOS);
    c->n_eos = 0;
    for (size_t i = 0; i < n && f->ok; i++) {
        int32_t id = hbk__field_id(f, json_is_array(v) ? json_array_get(v, i) : v, "eos_token_id");
        if (id >= 0) c->eos[c->n_eos++] = id;
    }
}

/* `original` is the context length that some files give beside the scaling instead of inside it, or else, as
   in transformers, the model's. */
static void hbk__read_llama3(hbk__fields *f, hbk_config *c, hbk_int original)
{
    c->rope_low_freq_factor = hbk__field_real(f, "low_freq_factor", 0);
    c->rope_high_freq_factor = hbk__field_real(f, "high_freq_factor", 0);
    c->rope_original_context = hbk__field_int(f, "original_max_position_embeddings", original);
    if (f->ok && !(c->rope_low_freq_factor > 0 && c->rope_high_freq_factor > c->rope_low_freq_factor &&
                   c->rope_original_context > 0))
        f->ok = hbk_fail_at(f->err, HBK_ERROR_FORMAT, f->path, 0,
                            "rope scaling llama3: expected 0 < low_freq_factor < high_freq_factor and "
                            "original_max_position_embeddings above 0");
}

/* The share of a head that turns: all of it, or another model. */
static void hbk__read_share(hbk__fields *f)
{
    if (hbk__field_real(f, "partial_rotary_factor", 1) != 1)
        hbk__field_refuse(f, "partial_rotary_factor", NULL);
}

static void hbk__read_rope(hbk__fields *f, hbk_config *c)
{
    const json_t *whole = f->o, *scaling = hbk__json_field(f, "rope_scaling");
    if (!scaling || (json_is_object(scaling) && !json_object_size(scaling)))
        scaling = hbk__json_field(f, "rope_parameters");
    hbk_int original = hbk__field_int(f, "original_max_position_embeddings", c->context_length);
    hbk__read_share(f);
    c->rope_theta = hbk__field_real(f, "rope_theta", 10000);
    c->rope_scaling = HBK_ROPE_DEFAULT;
    c->rope_factor = c->rope_low_freq_factor = c->rope_high_freq_factor = 1;
    c->rope_original_context = c->context_length;
    if (scaling && !json_is_object(scaling))
        f->ok = hbk_fail_at(f->err, HBK_ERROR_FORMAT, f->path, 0, "rope scaling: expected null or an object");
    if (!scaling || !f->ok) return;
    const char *type = json_string_value(json_object_get(scaling, "rope_type"));
    if (!type) type = json_string_value(json_object_get(scaling, "type")); /* before transformers 4.43 */
    /* these say nothing of a type and may stand without one */
    size_t alone = (json_object_get(scaling, "rope_theta") ? 1 : 0) +
                   (json_object_get(scaling, "partial_rotary_factor") ? 1 : 0);
    f->o = scaling;
    c->rope_theta = hbk__field_real(f, "rope_theta", c->rope_theta);
    hbk__read_share(f);
    if (type && !strcmp(type, "linear"))
        c->rope_scaling = HBK_ROPE_LINEAR;
    else if (type && !strcmp(type, "llama3"))
        c->rope_scaling = HBK_ROPE_LLAMA3;
    else if (type ? strcmp(type, "default") != 0 : json_object_size(scaling) > alone)
        f->ok = f->ok && hbk_fail_at(f->err, HBK_ERROR_UNSUPPORTED, f->path, 0,
                                     "rope scaling %.40s is not supported: default, linear and llama3 are",
                                     type ? type : "without rope_type");
    if (c->rope_scaling != HBK_ROPE_DEFAULT) {
        c->rope_factor = hbk__field_real(f, "factor", 0);
        if (f->ok && !(c->rope_factor > 0))
            f->ok = hbk_fail_at(f->err, HBK_ERROR_FORMAT, f->path, 0,
                                "rope scaling %s: expected a factor above 0", type);
    }
    if (c->rope_scaling == HBK_ROPE_LLAMA3) hbk__read_llama3(f, c, original);
    f->o = whole;
}

/* Which architecture the numbers are for. Qwen, Gemma and the like differ from LLaMA in norms, activations
   or windows while their tensors have the same names: the configuration is the only place to tell them apart.
   LLaMAForCausalLM is what the first conversions called it. */
static bool hbk__read_architecture(hbk__fields *f, bool *mistral)
{
    static const char *const known[] = {"LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM"};
    const char *model = json_string_value(hbk__json_field(f, "model_type"));
    const char *name = json_string_value(json_array_get(hbk__json_field(f, "architectures"), 0));
    bool fits = model ? !strcmp(model, "llama") || !strcmp(model, "mistral") : name != NULL;
    int k = 0;
    while (k < 3 && name && strcmp(name, known[k]) != 0) k++;
    if (!fits || k == 3)
        return hbk_fail_at(f->err, HBK_ERROR_UNSUPPORTED, f->path, 0,
                           "model_type %.40s, architectures %.60s: only llama (LlamaForCausalLM) and mistral "
                           "(MistralForCausalLM) are supported",
                           model ? model : "absent", name ? name : "absent");
    *mistral = model ? !strcmp(model, "mistral") : k == 2;
    return true;
}

/* Mistral is LLaMA but for a window, beyond which a token sees no other. A window of the whole context, like
   none, hides nothing; a shorter one gives other numbers from its length on. An absent key means 4096. */
static void hbk__read_window(hbk__fields *f, const hbk_config *c)
{
    bool given = json_object_get(f->o, "sliding_window") != NULL;
    hbk_int window = hbk__field_int(f, "sliding_window", given ? c->context_length : 4096);
    if (!f->ok || window >= c->context_length) return;
    f->ok = hbk_fail_at(f->err, HBK_ERROR_UNSUPPORTED, f->path, 0,
                        "sliding_window %lld is shorter than max_position_embeddings %lld, which is not "
                        "supported; to use the model up to the window, lower max_position_embeddings to it",
                        (long long)window, (long long)c->context_length);
}

static void hbk__read_quantization(hbk__fields *f)
{
    const json_t *v = hbk__json_field(f, "quantization_config");
    const char *method = json_string_value(json_object_get(v, "quant_method"));
    if (!v || (json_is_object(v) && !json_object_size(v))) return;
    f->ok = hbk_fail_at(f->err, HBK_ERROR_UNSUPPORTED, f->path, 0,
                        "quantization_config: weights packed by %.40s are not supported; take the model in "
                        "F32, F16 or BF16",
                        method ? method : "an unnamed quant_method");
}

/* Sizes and numbers; what is absent has the value that the architecture's configuration class gives it. */
static bool hbk__read_sizes(hbk__fields *f, hbk_config *c, bool mistral)
{
    c->vocab_size = hbk__field_int(f, "vocab_size", 32000);
    c->dim = hbk__field_int(f, "hidden_size", 4096);
    c->ffn_dim = hbk__field_int(f, "intermediate_size", mistral ? 14336 : 11008);
    c->n_layers = hbk__field_int(f, "num_hidden_layers", 32);
    c->n_heads = hbk__field_int(f, "num_attention_heads", 32);
    bool eight = mistral && !json_object_get(f->o, "num_key_value_heads");
    c->n_kv_heads = hbk__field_int(f, "num_key_value_heads", eight ? 8 : c->n_heads);
    c->head_dim = hbk__field_int(f, "head_dim", 0);
    c->context_length = hbk__field_int(f, "max_position_embeddings", mistral ? 131072 : 2048);
    c->rms_norm_eps = hbk__field_real(f, "rms_norm_eps", 1e-6);
    if (c->head_dim != 0 || !f->ok) return f->ok;
    if (c->n_heads < 1 || c->dim % c->n_heads)
        return hbk_fail_at(f->err, HBK_ERROR_RANGE, f->path, 0,
                           "hidden_size %lld is no multiple of num_attention_heads %lld; give head_dim",
                           (long long)c->dim, (long long)c->n_heads);
    c->head_dim = c->dim / c->n_heads;
    return true;
}

static bool hbk__read_config(hbk__fields *f, hbk_config *c)
{
    bool mistral = false;
    if (!hbk__read_architecture(f, &mistral)) return false;
    const char *act = json_string_value(hbk__json_field(f, "hidden_act"));
    if (!act || strcmp(act, "swish") != 0) hbk__field_refuse(f, "hidden_act", "silu"); /* one and the same */
    hbk__read_quantization(f);
    if (!f->ok || !hbk__read_sizes(f, c, mistral)) return false;
    if (mistral) {
        hbk__read_window(f, c); /* it knows no biases: keys for them mean nothing to it */
    } else {
        c->biases = (hbk__field_bool(f, "attention_bias", false) ? HBK__ATTENTION : 0) |
                    (hbk__field_bool(f, "mlp_bias", false) ? HBK__MLP : 0);
    }
    c->tied = hbk__field_bool(f, "tie_word_embeddings", false);
    const json_t *bos = json_object_get(f->o, "bos_token_id");
    c->bos = bos ? hbk__field_id(f, bos, "bos_token_id") : 1;
    c->eos[0] = 2;
    c->n_eos = 1;
    if (json_object_get(f->o, "eos_token_id")) hbk__read_eos(f, c);
    hbk__read_rope(f, c);
    return f->ok;
}

/* hbk_config_check of what came from the file `path`. */
static bool hbk__config_fits(const hbk_config *c, const char *path, hbk_error *err)
{
    hbk_error why;
    return hbk_config_check(c, &why) || hbk_fail_at(err, why.code, path, 0, "%s", why.message);
}

/* DIR/config.json. What ends a text is taken from generation_config.json, as transformers' generate does, and
   from config.json where that file is absent or names nothing. */
static bool hbk__config_load(const char *dir, hbk_config *c, hbk_error *err)
{
    char path[512];
    hbk__fields f = {NULL, path, err, true};
    if (!hbk_path(path, dir, "adapter_config.json", err)) return false;
    bool adapter = hbk_file_exists(path);
    if (!hbk_path(path, dir, "config.json", err)) return false;
    if (adapter && !hbk_file_exists(path))
        return hbk_fail_at(err, HBK_ERROR_OPTION, dir, 0, "is an adapter: give it as --adapter, to its base");
    if (!hbk_file_exists(path))
        return hbk_fail_at(err, HBK_ERROR_FILE, path, 0,
                           "is missing; a model is a Hugging Face folder, a GGUF file or a llama2.c .bin");
    json_t *root = hbk_json_read(path, err);
    if (!root) return false;
    f.o = root;
    bool ok = json_is_object(root) ? hbk__read_config(&f, c)
                                   : hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0, "expected a JSON object");
    json_decref(root);
    if (!ok || !hbk__config_fits(c, path, err) || !hbk_path(path, dir, "generation_config.json", err))
        return false;
    if (!hbk_file_exists(path)) return true;
    root = hbk_json_read(path, err);
    if (!root) return false;
    f.o = root;
    if (hbk__json_field(&f, "eos_token_id")) hbk__read_eos(&f, c);
    json_decref(root);
    return f.ok;
}

/* ---- 12.4 binding a model's tensors -----------------------------------------

   A source is the files of one model. Every tensor that chapter 11 counts up is looked for by its name,
   checked, and bound: mapped where it lies, or copied into the model's one block. */

#define HBK__EMBED "model.embed_tokens.weight"
#define HBK__HEAD  "lm_head.weight"
#define HBK__NORM  "model.norm.weight"

typedef struct hbk__source {
    const char *path; /* the folder or file that was asked for */
    hbk_allocator *alloc;
    hbk_safetensors **files;
    hbk_int n_files, room;
    json_t *shard_of; /* weight_map of an index: name to file name; NULL: one file */
    hbk_gguf *gguf;   /* whose tensors have names of its own; NULL: Hugging Face's */
} hbk__source;

static void hbk__source_close(hbk__source *s)
{
    for (hbk_int i = 0; i < s->n_files; i++) hbk_safetensors_close(s->files[i]);
    hbk_free(s->alloc, s->files);
    json_decref(s->shard_of);
    hbk_gguf_close(s->gguf);
}

/* Adds a file, which the source then owns; NULL, from a failed open, fails. */
static bool hbk__source_add(hbk__source *s, hbk_safetensors *file, hbk_error *err)
{
    void *files = s->files;
    if (!file) return false;
    if (!hbk__reserve(s->alloc, &files, &s->room, s->n_files + 1, sizeof *s->files, err)) {
        hbk_safetensors_close(file);
        return false;
    }
    s->files = (hbk_safetensors **)files;
    s->files[s->n_files++] = file;
    return true;
}

/* The names of GGUF's tensors: the whole one, or what follows "blk.N." and precedes ".weight" or ".bias". */
static const char *const hbk__gguf_tensors[][2] = {{HBK__EMBED, "token_embd.weight"},
                                                   {HBK__HEAD, "output.weight"},
                                                   {HBK__NORM, "output_norm.weight"},
                                                   {"input_layernorm", "attn_norm"},
                                                   {"post_attention_layernorm", "ffn_norm"},
                                                   {"self_attn.q_proj", "attn_q"},
                                                   {"self_attn.k_proj", "attn_k"},
                                                   {"self_attn.v_proj", "attn_v"},
                                                   {"self_attn.o_proj", "attn_output"},
                                                   {"mlp.gate_proj", "ffn_gate"},
                                                   {"mlp.up_proj", "ffn_up"},
                                                   {"mlp.down_proj", "ffn_down"}};

/* A tensor's GGUF name from Hugging Face's or, with `to` 0, the other way; false, and out empty, for a name
   that is none of these: a name in the wrong language must not pass for its translation. */
static bool hbk__translate(char out[96], const char *name, int to)
{
    const char *prefix[2] = {"model.layers.", "blk."};
    size_t lead = strlen(prefix[!to]), digits;
    out[0] = 0;
    for (int i = 0; i < 3; i++)
        if (!strcmp(name, hbk__gguf_tensors[i][!to])) snprintf(out, 96, "%s", hbk__gguf_tensors[i][to]);
    if (strncmp(name, prefix[!to], lead) != 0) return out[0] != 0;
    digits = strspn(name + lead, "0123456789");
    const char *part = name + lead + digits + 1, *end = strrchr(name, '.');
    if (digits < 1 || digits > 9 || part[-1] != '.' || end < part) return false;
    for (int i = 3; i < 12; i++)
        if (strlen(hbk__gguf_tensors[i][!to]) == (size_t)(end - part) &&
            !strncmp(part, hbk__gguf_tensors[i][!to], (size_t)(end - part)))
            snprintf(out, 96, "%s%.*s.%s%.40s", prefix[to], (int)digits, name + lead,
                     hbk__gguf_tensors[i][to], end);
    return out[0] != 0;
}

static const char *hbk__base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* A tensor by name, in the shard that the index names, and its file. One of the tied pair stands for the
   other: which copy is stored varies, and whether metadata tell so. */
static const hbk_tensor *hbk__source_find(const hbk__source *s, const char *name,
                                          const hbk_safetensors **file)
{
    const char *names[2] = {name, NULL};
    if (!strcmp(name, HBK__EMBED)) names[1] = HBK__HEAD;
    if (!strcmp(name, HBK__HEAD)) names[1] = HBK__EMBED;
    for (int k = 0; k < 2 && names[k]; k++) {
        char own[96];
        if (s->gguf) {
            hbk__translate(own, names[k], 1);
            names[k] = own;
        }
        const char *shard = json_string_value(json_object_get(s->shard_of, names[k]));
        for (hbk_int i = 0; i < s->n_files; i++) {
            if (shard && strcmp(shard, hbk__base_name(s->files[i]->path)) != 0) continue;
            *file = s->files[i];
            const hbk_tensor *t = hbk_safetensors_find(s->files[i], names[k]);
            if (t) return t;
        }
    }
    return NULL;
}

/* Fails with the name of a tensor that was not found, and of the shard that should hold it. */
static bool hbk__missing(const hbk__source *s, const char *name, hbk_error *err)
{
    const char *shard = json_string_value(json_object_get(s->shard_of, name));
    char own[96];
    if (s->gguf) {
        hbk__translate(own, name, 1);
        name = own;
    }
    return hbk_fail_at(err, HBK_ERROR_FORMAT, s->path, 0, "tensor %s is missing%s%.200s", name,
                       shard ? " from the shard that the index names: " : "", shard ? shard : "");
}

/* What follows `prefix` in s, or NULL; NULL stays NULL, so that calls can be chained. */
static const char *hbk__after(const char *s, const char *prefix)
{
    size_t n = strlen(prefix);
    return s && !strncmp(s, prefix, n) ? s + n : NULL;
}

/* What follows "model.layers.N." and N itself. */
static const char *hbk__after_layer(const char *s, hbk_int *layer)
{
    s = hbk__after(s, "model.layers.");
    if (!s || *s < '0' || *s > '9' || (s[0] == '0' && s[1] != '.')) return NULL;
    for (*layer = 0; *s >= '0' && *s <= '9' && *layer < INT32_MAX; s++) *layer = 10 * *layer + (*s - '0');
    return hbk__after(s, ".");
}

/* What follows a projection such as "self_attn.q_proj", and which one it is. */
static const char *hbk__after_slot(const char *s, hbk_slot *slot)
{
    for (int i = 0; i < HBK_N_SLOTS; i++) {
        *slot = (hbk_slot)i;
        const char *rest = hbk__after(hbk__after(s, hbk__slot_group(*slot)), hbk_slot_name(*slot));
        if (rest) return rest;
    }
    *slot = HBK_N_SLOTS;
    return NULL;
}

/* The inverse of hbk__place_at: a name's place, or false for a name that no tensor of m has. */
static bool hbk__place_of(hbk_model *m, const char *name, hbk__place *p)
{
    hbk_int layer = 0;
    const char *rest = hbk__after_layer(name, &layer);
    p->w = NULL;
    p->vector = NULL;
    p->slot = HBK_N_SLOTS;
    if (!strcmp(name, HBK__EMBED)) p->w = &m->embed;
    if (!strcmp(name, HBK__HEAD)) p->w = &m->head;
    if (!strcmp(name, HBK__NORM)) p->vector = &m->final_norm;
    if (rest && layer < m->config.n_layers) {
        hbk_layer *l = &m->layers[layer];
        if (!strcmp(rest, "input_layernorm.weight")) p->vector = &l->attn_norm;
        if (!strcmp(rest, "post_attention_layernorm.weight")) p->vector = &l->ffn_norm;
        const char *end = hbk__after_slot(rest, &p->slot);
        if (end && !strcmp(end, ".weight")) p->w = &l->w[p->slot];
        if (end && !strcmp(end, ".bias") && m->config.biases >> p->slot & 1) p->vector = &l->bias[p->slot];
    }
    return p->w || p->vector;
}

static void hbk__shape_text(char out[192], const hbk_tensor *t)
{
    int at = snprintf(out, 192, "(");
    for (hbk_int i = 0; i < t->n_dims; i++)
        at += snprintf(out + at, 192 - (size_t)at, "%s%lld", i ? "," : "", (long long)t->shape[i]);
    snprintf(out + at, 192 - (size_t)at, ")");
}

/* Whether t can fill `w` at its place: type, shape. An embedding may have rows beyond the vocabulary. */
static bool hbk__check_tensor(const char *path, const hbk_tensor *t, const hbk_matrix *w, const hbk__place *p,
                              const hbk_config *c, hbk_error *err)
{
    hbk_dtype type;
    if (!hbk__dtype_of(t->dtype, &type))
        return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, path, 0,
                           "tensor %s: type %s is not supported; convert the model to F32, F16, BF16 or, in "
                           "GGUF, Q4_0 to Q6_K",
                           t->name, t->dtype);
    if (p->vector && type != HBK_F32 && type != HBK_F16 && type != HBK_BF16)
        return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, path, 0,
                           "tensor %s: type %s, expected F32, F16 or BF16 for a norm or bias", t->name,
                           t->dtype);
    bool vocabulary = p->w && p->slot == HBK_N_SLOTS;
    if (p->vector ? t->n_dims == 1 && t->shape[0] == w->cols
                  : t->n_dims == 2 && t->shape[1] == w->cols &&
                        (t->shape[0] == w->rows || (vocabulary && t->shape[0] > w->rows)))
        return true;
    char got[192], want[64], why[96] = "";
    hbk__shape_text(got, t);
    if (p->vector)
        snprintf(want, sizeof want, "(%lld)", (long long)w->cols);
    else
        snprintf(want, sizeof want, "(%lld,%lld)", (long long)w->rows, (long long)w->cols);
    bool kv = p->slot == HBK_K || p->slot == HBK_V;
    if (p->slot <= HBK_O)
        snprintf(why, sizeof why, "%s=%lld head_dim=%lld ", kv ? "n_kv_heads" : "n_heads",
                 (long long)(kv ? c->n_kv_heads : c->n_heads), (long long)c->head_dim);
    else if (p->slot <= HBK_DOWN)
        snprintf(why, sizeof why, "ffn_dim=%lld ", (long long)c->ffn_dim);
    else if (p->w)
        snprintf(why, sizeof why, "vocab_size=%lld ", (long long)c->vocab_size);
    return hbk_fail_at(err, HBK_ERROR_SHAPE, path, 0, "tensor %s: shape %s, expected %s for %sdim=%lld%s",
                       t->name, got, want, why, (long long)c->dim,
                       vocabulary ? "; vocab_size may be lower than the rows, not higher" : "");
}

/* Tensor t of a file as a matrix, with its scales if it has some. */
static hbk_matrix hbk__stored(const hbk_safetensors *file, const hbk_tensor *t, hbk_int rows, hbk_int cols)
{
    hbk_matrix w = hbk__tensor_matrix(t, rows, cols);
    if (w.dtype != HBK_INT8) return w;
    w.scales = (const char *)t->data + t->bytes;
    w.group = file->group;
    return w;
}

/* Bytes of `rows` rows' scales; rows hold whole groups. */
static size_t hbk__scales_size(const hbk_matrix *w, hbk_int rows)
{
    return w->dtype == HBK_INT8 ? (size_t)(rows * w->cols / w->group) * sizeof(float) : 0;
}

static bool hbk__must_permute(const hbk_safetensors *file, const hbk__place *p)
{
    return file->interleaved && (p->slot == HBK_Q || p->slot == HBK_K);
}

/* What a tensor needs of the model's block, in reals; 0: it stays where it is. Norms and biases are reals,
   interleaved q and k get their rows in another order: in their stored type, for rows are whole blocks or
   groups. */
static hbk_int hbk__copy_reals(const hbk_safetensors *file, const hbk_matrix *t, const hbk__place *p)
{
    hbk_int n = t->rows * t->cols, real = (hbk_int)sizeof(hbk_real);
    if (p->vector) return n;
    hbk_int bytes = (hbk_int)(hbk_dtype_size(t->dtype, n) + hbk__scales_size(t, t->rows));
    return hbk__must_permute(file, p) ? (bytes + real - 1) / real : 0;
}

/* The row here of an interleaved row: 2i + s of a head is its row s D/2 + i. */
static hbk_int hbk__half_split(hbk_int row, hbk_int D)
{
    return row / D * D + row % 2 * (D / 2) + row % D / 2;
}

/* Copies t into the model's block at out, and leads t there. */
static void hbk__copy_tensor(hbk_real *out, hbk_matrix *t, const hbk_safetensors *file, const hbk__place *p,
                             hbk_int D)
{
    size_t bytes = hbk_dtype_size(t->dtype, t->cols), scales = hbk__scales_size(t, 1);
    const char *scales_from = (const char *)t->scales;
    char *scales_to = (char *)out + (size_t)t->rows * bytes;
    bool permute = hbk__must_permute(file, p), same = permute && !p->vector;
    hbk_matrix to = *t;
    if (p->vector && permute) { /* a bias: its elements are what its matrix's rows are */
        to.rows = t->cols;
        to.cols = t->rows;
    }
    for (hbk_int row = 0; row < to.rows; row++) {
        hbk_int place = permute ? hbk__half_split(row, D) : row;
        if (same)
            memcpy((char *)out + (size_t)place * bytes, (const char *)to.data + (size_t)row * bytes, bytes);
        else
            hbk_matrix_unpack(out + place * to.cols, &to, row, 1);
        if (scales) memcpy(scales_to + (size_t)place * scales, scales_from + (size_t)row * scales, scales);
    }
    t->data = out;
    if (scales) t->scales = scales_to;
    if (!same) t->dtype = HBK_REAL;
}

/* Left out by right: tables that old files hold beside the weights, of rotary angles and the causal mask. */
static bool hbk__is_buffer(const char *name)
{
    static const char *const tails[] = {"rotary_emb.inv_freq", "attn.masked_bias"};
    size_t n = strlen(name);
    for (int i = 0; i < 2; i++)
        if (n >= strlen(tails[i]) && !strcmp(name + n - strlen(tails[i]), tails[i])) return true;
    return false;
}

/* What a model would need to have a place for a bias; "" for any other tensor. */
static const char *hbk__bias_key(const char *name, const hbk__place *p)
{
    if (p->slot >= HBK_N_SLOTS || !strstr(name, "_proj.bias")) return "";
    return p->slot <= HBK_O ? " without attention_bias in its config.json"
                            : " without mlp_bias in its config.json";
}

/* Whether the model has a place for a tensor of the file, or it holds no weights. */
static bool hbk__has_place(hbk_model *m, const hbk__source *src, const char *name, hbk__place *p)
{
    char known[96];
    if (src->gguf) hbk__translate(known, name, 0);
    return hbk__place_of(m, src->gguf ? known : name, p) || hbk__is_buffer(name);
}

/* Tensors that the model has no place for would be weights that are left out: an error. */
static bool hbk__check_strangers(hbk_model *m, const hbk__source *src, hbk_error *err)
{
    for (hbk_int i = 0; i < src->n_files; i++)
        for (hbk_int k = 0; k < src->files[i]->n; k++) {
            const char *name = src->files[i]->tensors[k].name;
            hbk__place p;
            if (hbk__has_place(m, src, name, &p)) continue;
            return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, src->files[i]->path, 0,
                               "tensor %.200s: a LLaMA of %lld layers%s has no such weight", name,
                               (long long)m->config.n_layers, hbk__bias_key(name, &p));
        }
    return true;
}

/* Binds all tensors of m, in two rounds: check and count, then fill. The mappings go over to the model. */
static bool hbk__bind(hbk_model *m, hbk__source *src, hbk_error *err)
{
    char name[96];
    hbk_matrix w;
    hbk_int copied = 0;
    const hbk_safetensors *file = NULL;
    hbk__place p;
    for (hbk_int i = 0; hbk_tensor_at(m, i, name, &w); i++) {
        const hbk_tensor *t = hbk__source_find(src, name, &file);
        if (!t) return hbk__missing(src, name, err);
        if (!hbk__place_of(m, name, &p) || !hbk__check_tensor(file->path, t, &w, &p, &m->config, err))
            return false;
        hbk_matrix stored = hbk__stored(file, t, w.rows, w.cols);
        copied += hbk__copy_reals(file, &stored, &p);
    }
    if (!hbk__check_strangers(m, src, err)) return false;
    m->values = HBK__NEW(m->alloc, hbk_real, copied, err);
    if (m->values) m->maps = HBK__NEW(m->alloc, hbk_mapping, src->n_files, err);
    if (!m->maps) return false;
    hbk_real *at = m->values;
    for (hbk_int i = 0; hbk_tensor_at(m, i, name, &w); i++) {
        const hbk_tensor *t = hbk__source_find(src, name, &file);
        hbk_matrix stored = hbk__stored(file, t, w.rows, w.cols);
        hbk__place_of(m, name, &p);
        hbk_int reals = hbk__copy_reals(file, &stored, &p);
        if (reals) hbk__copy_tensor(at, &stored, file, &p, m->config.head_dim);
        if (p.vector) *p.vector = at;
        if (p.w) *p.w = stored;
        at += reals;
    }
    if (m->config.tied) m->head = m->embed;
    for (hbk_int i = 0; i < src->n_files; i++) {
        hbk__mapping_forget(&src->files[i]->map); /* the norms have been copied, the rest was not read */
        m->maps[m->n_maps++] = src->files[i]->map;
        src->files[i]->map.data = NULL;
    }
    return true;
}

/* ---- 12.5 folders ----------------------------------------------------------- */

static const hbk_safetensors *hbk__shard(const hbk__source *s, const char *name)
{
    for (hbk_int i = 0; i < s->n_files; i++)
        if (!strcmp(name, hbk__base_name(s->files[i]->path))) return s->files[i];
    return NULL;
}

/* Index and shards must agree: every tensor that the index names is where it says, and none is in two shards,
   of which one would be left out. A tensor that the index does not name is taken from where it is. */
static bool hbk__check_index(const hbk__source *s, hbk_error *err)
{
    const char *name;
    json_t *value;
    json_object_foreach(s->shard_of, name, value)
    {
        if (!hbk_safetensors_find(hbk__shard(s, json_string_value(value)), name) && !hbk__is_buffer(name))
            return hbk__missing(s, name, err);
    }
    for (hbk_int i = 0; i < s->n_files; i++)
        for (hbk_int k = 0; k < s->files[i]->n; k++)
            for (hbk_int j = 0; j < i; j++) {
                name = s->files[i]->tensors[k].name;
                if (hbk__st_find(s->files[j], name))
                    return hbk_fail_at(err, HBK_ERROR_FORMAT, s->path, 0,
                                       "tensor %.200s is in two shards, %.100s and %.100s", name,
                                       hbk__base_name(s->files[j]->path), hbk__base_name(s->files[i]->path));
            }
    return true;
}

/* Opens every file that the index names. A name with a folder in it could read any file of the machine;
   total_size, often wrong after an edit, is not looked at. */
static bool hbk__open_shards(hbk__source *s, const char *index_path, hbk_error *err)
{
    const char *name;
    json_t *value, *index = hbk_json_read(index_path, err);
    if (!index) return false;
    s->shard_of = json_incref(json_object_get(index, "weight_map"));
    json_decref(index);
    if (!json_object_size(s->shard_of))
        return hbk_fail_at(err, HBK_ERROR_FORMAT, index_path, 0,
                           "expected a weight_map of tensor names to files");
    json_object_foreach(s->shard_of, name, value)
    {
        const char *shard = json_string_value(value);
        char path[512];
        if (!shard || !*shard || strchr(shard, '/') || strstr(shard, ".."))
            return hbk_fail_at(err, HBK_ERROR_FORMAT, index_path, 0,
                               "the shard of %s is '%.100s', expected a file name in the same folder", name,
                               shard ? shard : "");
        if (hbk__shard(s, shard)) continue;
        if (!hbk_path(path, s->path, shard, err)) return false;
        if (!hbk_file_exists(path))
            return hbk_fail_at(err, HBK_ERROR_FILE, index_path, 0, "shard %.100s is missing from the folder",
                               shard);
        if (!hbk__source_add(s, hbk_safetensors_open(path, s->alloc, err), err)) return false;
    }
    return hbk__check_index(s, err);
}

static bool hbk__open_folder(hbk__source *s, hbk_error *err)
{
    char path[512];
    if (!hbk_path(path, s->path, "model.safetensors", err)) return false;
    if (hbk_file_exists(path)) return hbk__source_add(s, hbk_safetensors_open(path, s->alloc, err), err);
    if (!hbk_path(path, s->path, "model.safetensors.index.json", err)) return false;
    if (hbk_file_exists(path)) return hbk__open_shards(s, path, err);
    static const char *const other[] = {"pytorch_model.bin", "pytorch_model.bin.index.json",
                                        "consolidated.00.pth"};
    const char *found = NULL;
    for (int i = 0; i < 3 && !found; i++) {
        if (!hbk_path(path, s->path, other[i], err)) return false;
        if (hbk_file_exists(path)) found = other[i];
    }
    return hbk_fail_at(err, HBK_ERROR_FILE, s->path, 0,
                       "holds neither model.safetensors nor model.safetensors.index.json%s%s%s",
                       found ? "; its weights are in " : "", found ? found : "",
                       found ? ": save the model as safetensors first (transformers' save_pretrained)" : "");
}

/* Sizes that the configuration claims, held against the files before memory is taken by them. */
static bool hbk__check_claims(const hbk__source *s, const hbk_config *c, hbk_error *err)
{
    hbk_int bytes = 0;
    const hbk_safetensors *file;
    for (hbk_int i = 0; i < s->n_files; i++) bytes += (hbk_int)s->files[i]->map.size;
    for (hbk_int l = 0; l < c->n_layers; l++) {
        char name[96];
        snprintf(name, sizeof name, "model.layers.%lld.input_layernorm.weight", (long long)l);
        if (!hbk__source_find(s, name, &file)) return hbk__missing(s, name, err);
    }
    if (c->dim <= bytes && c->head_dim <= bytes) return true;
    return hbk_fail_at(err, HBK_ERROR_SHAPE, s->path, 0,
                       "the configuration asks for width %lld, head_dim %lld: the files are smaller",
                       (long long)c->dim, (long long)c->head_dim);
}

/* Whether head and embedding are one. They are where both names lead to one tensor, by the metadata or
   because the other is not stored. Two copies that differ are two tensors whatever the configuration says,
   as in transformers 5: whoever wrote both meant both. */
static bool hbk__is_tied(const hbk__source *s, bool said)
{
    const hbk_safetensors *file;
    const hbk_tensor *embed = hbk__source_find(s, HBK__EMBED, &file);
    const hbk_tensor *head = hbk__source_find(s, HBK__HEAD, &file);
    if (embed == head || !said) return embed == head;
    return embed->bytes == head->bytes && !strcmp(embed->dtype, head->dtype) &&
           !memcmp(embed->data, head->data, embed->bytes);
}

static hbk_model *hbk__load_folder(hbk__source *s, hbk_error *err)
{
    hbk_config c;
    memset(&c, 0, sizeof c);
    if (!hbk__config_load(s->path, &c, err) || !hbk__open_folder(s, err) || !hbk__check_claims(s, &c, err))
        return NULL;
    c.tied = hbk__is_tied(s, c.tied);
    return hbk__model_new(&c, s->alloc, err);
}

/* ---- 12.6 llama2.c ----------------------------------------------------------

   i32 dim, ffn_dim, n_layers, n_heads, n_kv_heads, vocab_size, context_length, then floats:
     version 0: at byte 28; a negative vocab_size says that the head follows; tables of rope angles lie
       before it. There is no magic number: the sizes must explain the length of the file to the byte.
     version 1: "24ka", i32 1 and the sizes; u8 tied at byte 36; floats at byte 256, norms first.
     version 2: "24ka", i32 2, and i32 group at byte 37. Each matrix is rows*cols signed bytes and then one
       f32 for each `group` of them, which it multiplies. Groups run on from row to row; the exporter makes
       them divide dim, so that only those of down_proj can cross the end of a row. */

/* The order of tensors. A name that begins with '.' comes once per layer; "" stands for the tables. */
static const char *const hbk__llama2c_order[2][13] = {
    {HBK__EMBED, ".input_layernorm", ".self_attn.q_proj", ".self_attn.k_proj", ".self_attn.v_proj",
     ".self_attn.o_proj", ".post_attention_layernorm", ".mlp.gate_proj", ".mlp.down_proj", ".mlp.up_proj",
     HBK__NORM, "", HBK__HEAD},
    {".input_layernorm", ".post_attention_layernorm", HBK__NORM, HBK__EMBED, ".self_attn.q_proj",
     ".self_attn.k_proj", ".self_attn.v_proj", ".self_attn.o_proj", ".mlp.gate_proj", ".mlp.down_proj",
     ".mlp.up_proj", HBK__HEAD, NULL}};

/* The sizes in the header, and where the floats begin. Without a magic number, sizes that make sense are what
   tells version 0 from a file that is none. */
static bool hbk__llama2c_header(hbk_safetensors *s, hbk_config *c, int *version, hbk_int *start,
                                hbk_error *err)
{
    const unsigned char *p = s->map.data;
    bool magic = s->map.size >= 256 && hbk__little_endian(p, 4) == 0x616b3432;
    *version = magic ? (int)(int32_t)hbk__little_endian(p + 4, 4) : 0;
    *start = magic ? 256 : 28;
    if (magic && *version != 1 && *version != 2)
        return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, s->path, 0,
                           "llama2.c version %d is not supported: export version 0, 1 or 2", *version);
    s->group = *version == 2 ? (int32_t)(uint32_t)hbk__little_endian(p + 37, 4) : 0;
    hbk_int size[7];
    for (int i = 0; i < 7; i++)
        size[i] = s->map.size < 28 ? 0 : (int32_t)(uint32_t)hbk__little_endian(p + 8 * magic + 4 * i, 4);
    c->tied = magic ? p[36] != 0 : size[5] > 0;
    c->dim = size[0];
    c->ffn_dim = size[1];
    c->n_layers = size[2];
    c->n_heads = size[3];
    c->n_kv_heads = size[4];
    c->vocab_size = size[5] < 0 && !magic ? -size[5] : size[5];
    c->context_length = size[6];
    c->head_dim = c->n_heads > 0 && c->dim % c->n_heads == 0 ? c->dim / c->n_heads : 0;
    c->rms_norm_eps = 1e-5; /* neither is stored */
    c->rope_theta = 10000;
    c->rope_factor = c->rope_low_freq_factor = c->rope_high_freq_factor = 1;
    c->rope_original_context = c->context_length;
    c->bos = 1;
    c->eos[0] = 2;
    c->n_eos = 1;
    if (hbk_config_check(c, NULL)) return true;
    return hbk_fail_at(err, HBK_ERROR_FORMAT, s->path, 0,
                       "is no model: expected a GGUF file, a llama2.c .bin, or a folder with config.json and "
                       "safetensors");
}

/* The second test of version 0, and the bounds check of all: after it, no tensor can leave the file. */
static bool hbk__llama2c_length(const hbk_safetensors *s, const hbk_config *c, int version, hbk_int start,
                                hbk_error *err)
{
    hbk_int tables = version == 0 ? c->context_length * c->head_dim : 0;
    hbk_int n = hbk_model_count(c), bytes = 4 * n;
    if (version == 2 && (s->group < 1 || c->dim % s->group != 0))
        return hbk_fail_at(err, HBK_ERROR_FORMAT, s->path, 0,
                           "llama2.c version 2: groups of %lld do not divide dim %lld; export it again",
                           (long long)s->group, (long long)c->dim);
    if (version == 2) { /* matrices are a byte and their share of a scale */
        hbk_int norms = c->dim * (2 * c->n_layers + 1);
        bytes = 4 * norms + (n - norms) + 4 * ((n - norms) / s->group);
    }
    if (n < (hbk_int)1 << 58 && tables < (hbk_int)1 << 58 &&
        start + bytes + 4 * tables == (hbk_int)s->map.size)
        return true;
    return hbk_fail_at(err, HBK_ERROR_FORMAT, s->path, 0,
                       "has %zu bytes; a llama2.c file of dim %lld, %lld layers, %lld tokens has about %.0f",
                       s->map.size, (long long)c->dim, (long long)c->n_layers, (long long)c->vocab_size,
                       (double)bytes + 4.0 * (double)tables);
}

/* The table that a safetensors file would have. */
static bool hbk__llama2c_table(hbk_safetensors *s, hbk_model *m, int version, hbk_int start, hbk_error *err)
{
    const hbk_config *c = &m->config;
    const unsigned char *at = s->map.data + start;
    hbk_int n = 3 + 9 * c->n_layers;
    if (!hbk__st_reserve(s, n, n * 96, err)) return false;
    for (int i = 0; i < 13 && hbk__llama2c_order[version > 0][i]; i++) {
        const char *part = hbk__llama2c_order[version > 0][i];
        if (!*part) at += 4 * c->context_length * c->head_dim;
        if (!*part || (c->tied && !strcmp(part, HBK__HEAD))) continue;
        for (hbk_int l = 0; l < (*part == '.' ? c->n_layers : 1); l++) {
            char name[96];
            hbk__place p;
            if (*part == '.')
                snprintf(name, sizeof name, "model.layers.%lld%s.weight", (long long)l, part);
            else
                snprintf(name, sizeof name, "%s", part);
            hbk__place_of(m, name, &p);
            hbk_tensor *t = hbk__st_add(s, name);
            bool int8 = s->group && p.w;
            snprintf(t->dtype, sizeof t->dtype, int8 ? "INT8" : "F32");
            t->n_dims = p.vector ? 1 : 2;
            t->shape[0] = p.vector ? c->dim : p.w->rows;
            t->shape[1] = p.vector ? 0 : p.w->cols;
            t->n_elements = t->shape[0] * (p.vector ? 1 : t->shape[1]);
            t->data = at;
            t->bytes = hbk_dtype_size(int8 ? HBK_INT8 : HBK_F32, t->n_elements);
            at += t->bytes + (int8 ? 4 * (size_t)(t->n_elements / s->group) : 0);
        }
    }
    hbk__st_sort(s);
    s->interleaved = true;
    return true;
}

static hbk_model *hbk__load_llama2c(hbk__source *src, hbk_error *err)
{
    hbk_config c;
    int version;
    hbk_int start;
    if (!hbk__source_add(src, hbk__st_map(src->path, src->alloc, err), err)) return NULL;
    hbk_safetensors *s = src->files[0];
    const unsigned char *p = s->map.data;
    memset(&c, 0, sizeof c);
    if (s->map.size > 8 && (!memcmp(p, "PK\3\4", 4) || p[8] == '{')) {
        hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, src->path, 0, "%s",
                    p[8] == '{' ? "is a safetensors file: name the folder that holds it and config.json"
                                : "is a PyTorch checkpoint: save it as safetensors first");
        return NULL;
    }
    if (!hbk__llama2c_header(s, &c, &version, &start, err) ||
        !hbk__llama2c_length(s, &c, version, start, err))
        return NULL;
    hbk_model *m = hbk__model_new(&c, src->alloc, err);
    if (!m || hbk__llama2c_table(s, m, version, start, err)) return m;
    hbk_model_free(m);
    return NULL;
}

/* ---- 12.7 reading GGUF ------------------------------------------------------

   llama.cpp's container (chapter 6) holds configuration, tokenizer and tensors. Its tensors have names of
   their own, and q and k in llama2.c's order; of the rotary scalings, "linear" is a key, and Llama 3's is a
   tensor of divisors, rope_freqs.weight. The divisors are traced back to Llama 3's four numbers, which is
   what a config.json, and another training run, can be given; the trace is held against every divisor. */

#define HBK__GGUF_ROPE   "rope_freqs.weight"
#define HBK__GGUF_LLAMA3 "humpback.rope_scaling" /* f32: factor, low and high frequency factor, old context */

typedef struct hbk__gguf_fields {
    const hbk_gguf *g;
    hbk_error *err;
    bool ok; /* the first failure sticks */
} hbk__gguf_fields;

/* A size: a number, or one and the same number for every layer. Absent: `absent`, an error if that is -1. */
static hbk_int hbk__gguf_size(hbk__gguf_fields *f, const char *key, hbk_int absent)
{
    hbk_int x = absent, next = 0;
    const hbk_gguf_value *v = hbk_gguf_find(f->g, key);
    if (!f->ok) return absent;
    if (!v && absent < 0)
        f->ok = hbk_fail_at(f->err, HBK_ERROR_FORMAT, f->g->path, 0, "key %s is missing", key);
    else if (!v || !v->is_array || v->n < 1 || !hbk_gguf_int_at(v, 0, &x))
        f->ok = hbk_gguf_int(f->g, key, &x, f->err);
    for (hbk_int i = 1; v && v->is_array && f->ok && i < v->n; i++)
        if (!hbk_gguf_int_at(v, i, &next) || next != x)
            f->ok = hbk_fail_at(f->err, HBK_ERROR_UNSUPPORTED, f->g->path, 0,
                                "key %s: its layers differ, which is not supported", key);
    return x;
}

static double hbk__gguf_number_of(hbk__gguf_fields *f, const char *key, double absent)
{
    f->ok = f->ok && hbk_gguf_real(f->g, key, &absent, f->err);
    return absent;
}

/* Refuses a key whose value is not `only`. */
static void hbk__gguf_refuse(hbk__gguf_fields *f, const char *key, const char *only, const char *remedy)
{
    const char *s = only;
    size_t n = strlen(only);
    f->ok = f->ok && hbk_gguf_string(f->g, key, &s, &n, f->err);
    if (!f->ok || (n == strlen(only) && !memcmp(s, only, n))) return;
    f->ok = hbk_fail_at(f->err, HBK_ERROR_UNSUPPORTED, f->g->path, 0,
                        "key %s: \"%.*s\" is not supported, only \"%s\"%s", key, (int)HBK__MIN(n, 60), s,
                        only, remedy);
}

/* Keys that would change the numbers; `idle` is the value with which they do not. */
static void hbk__gguf_refuse_numbers(hbk__gguf_fields *f)
{
    static const struct {
        char key[40];
        double idle;
    } keys[] = {{"llama.expert_count", 0},
                {"llama.expert_used_count", 0},
                {"llama.attention.sliding_window", 0},
                {"llama.attention.clamp_kqv", 0},
                {"llama.attention.max_alibi_bias", 0},
                {"llama.attention.scale", 0},
                {"llama.logit_scale", 0},
                {"llama.residual_scale", 0},
                {"llama.embedding_scale", 0},
                {"llama.attn_logit_softcapping", 0},
                {"llama.final_logit_softcapping", 0},
                {"llama.rope.scaling.attn_factor", 1}};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        double x = hbk__gguf_number_of(f, keys[i].key, keys[i].idle);
        if (f->ok && x != keys[i].idle)
            f->ok = hbk_fail_at(f->err, HBK_ERROR_UNSUPPORTED, f->g->path, 0, "key %s: %g is not supported",
                                keys[i].key, x);
    }
}

/* A token id; absent, or the -1 that some writers put down, gives `absent`. */
static int32_t hbk__gguf_id(hbk__gguf_fields *f, const char *key, int32_t absent, hbk_int vocab_size)
{
    hbk_int id = -1;
    f->ok = f->ok && hbk_gguf_int(f->g, key, &id, f->err);
    if (!f->ok || id == -1 || id == UINT32_MAX) return absent;
    if (id >= 0 && id < vocab_size) return (int32_t)id;
    f->ok = hbk_fail_at(f->err, HBK_ERROR_RANGE, f->g->path, 0,
                        "key %s: is %lld, expected an id below the vocabulary's size %lld", key,
                        (long long)id, (long long)vocab_size);
    return absent;
}

/* bos, and all that ends a text: eos, and the end of a turn or a message. SentencePiece's 1 and 2 stand where
   its vocabularies, the oldest files, name none. */
static void hbk__gguf_ids(hbk__gguf_fields *f, hbk_config *c)
{
    static const char *const ends[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    const char *model = "";
    size_t n = 0;
    f->ok = f->ok && hbk_gguf_string(f->g, "tokenizer.ggml.model", &model, &n, f->err);
    bool spm = n == 5 && !memcmp(model, "llama", 5) && c->vocab_size > 2;
    c->bos = hbk__gguf_id(f, "tokenizer.ggml.bos_token_id", spm ? 1 : -1, c->vocab_size);
    for (int i = 0; i < 3; i++) {
        int32_t id = hbk__gguf_id(f, ends[i], spm && i == 0 ? 2 : -1, c->vocab_size);
        bool fresh = id >= 0;
        for (hbk_int k = 0; k < c->n_eos; k++) fresh = fresh && c->eos[k] != id;
        if (fresh) c->eos[c->n_eos++] = id;
    }
}

/* The vocabulary is as large as the embedding; keys that say otherwise belong to another model. */
static void hbk__gguf_vocabulary(hbk__gguf_fields *f, hbk_config *c)
{
    const hbk_gguf_tensor *embed = hbk_gguf_tensor_find(f->g, "token_embd.weight");
    const hbk_gguf_value *tokens;
    if (!f->ok || !(f->ok = hbk_gguf_array(f->g, "tokenizer.ggml.tokens", HBK_GGUF_STRING, &tokens, f->err)))
        return;
    if (!embed || embed->n_dims != 2) {
        f->ok = hbk_fail_at(f->err, HBK_ERROR_FORMAT, f->g->path, 0, "tensor token_embd.weight is %s",
                            embed ? "no matrix" : "missing; is it a vocabulary without a model?");
        return;
    }
    c->vocab_size = embed->shape[0];
    hbk_int size = hbk__gguf_size(f, "llama.vocab_size", c->vocab_size);
    bool differ = size != c->vocab_size;
    if (f->ok && (differ || (tokens && tokens->n != c->vocab_size)))
        f->ok = hbk_fail_at(f->err, HBK_ERROR_SHAPE, f->g->path, 0,
                            "key %s: speaks of %lld tokens, but tensor token_embd.weight has %lld rows",
                            differ ? "llama.vocab_size" : "tokenizer.ggml.tokens",
                            (long long)(differ ? size : tokens->n), (long long)c->vocab_size);
}

static bool hbk__gguf_shape(hbk__gguf_fields *f, hbk_config *c)
{
    c->n_layers = hbk__gguf_size(f, "llama.block_count", -1);
    c->context_length = hbk__gguf_size(f, "llama.context_length", -1);
    c->dim = hbk__gguf_size(f, "llama.embedding_length", -1);
    c->ffn_dim = hbk__gguf_size(f, "llama.feed_forward_length", -1);
    c->n_heads = hbk__gguf_size(f, "llama.attention.head_count", -1);
    c->n_kv_heads = hbk__gguf_size(f, "llama.attention.head_count_kv", c->n_heads);
    hbk_int whole = c->n_heads > 0 && c->dim % c->n_heads == 0 ? c->dim / c->n_heads : -1;
    c->head_dim = hbk__gguf_size(f, "llama.attention.key_length", whole);
    hbk_int value = hbk__gguf_size(f, "llama.attention.value_length", c->head_dim);
    hbk_int turned = hbk__gguf_size(f, "llama.rope.dimension_count", c->head_dim);
    if (f->ok && (value != c->head_dim || turned != c->head_dim))
        f->ok = hbk_fail_at(f->err, HBK_ERROR_UNSUPPORTED, f->g->path, 0,
                            "key llama.%s: is %lld, not the %lld of a head's keys, which is not supported",
                            value != c->head_dim ? "attention.value_length" : "rope.dimension_count",
                            (long long)(value != c->head_dim ? value : turned), (long long)c->head_dim);
    c->rms_norm_eps = hbk__gguf_number_of(f, "llama.attention.layer_norm_rms_epsilon", -1);
    if (f->ok && c->rms_norm_eps < 0)
        f->ok = hbk_fail_at(f->err, HBK_ERROR_FORMAT, f->g->path, 0,
                            "key llama.attention.layer_norm_rms_epsilon is missing or negative");
    c->rope_theta = hbk__gguf_number_of(f, "llama.rope.freq_base", 10000);
    hbk__gguf_vocabulary(f, c);
    c->tied = !hbk_gguf_tensor_find(f->g, "output.weight");
    for (int s = 0; s < HBK_N_SLOTS; s++) {
        char name[96];
        snprintf(name, sizeof name, "blk.0.%s.bias", hbk__gguf_tensors[5 + s][1]);
        if (hbk_gguf_tensor_find(f->g, name)) c->biases |= 1u << s;
    }
    return f->ok;
}

/* Linear scaling, by its key or the older one. Without a type, a factor means linear. */
static void hbk__gguf_linear(hbk__gguf_fields *f, hbk_config *c)
{
    const char *type = "linear";
    size_t n = 6;
    double factor = hbk__gguf_number_of(f, "llama.rope.scaling.factor", 0);
    if (factor == 0) factor = hbk__gguf_number_of(f, "llama.rope.scale_linear", 0);
    f->ok = f->ok && hbk_gguf_string(f->g, "llama.rope.scaling.type", &type, &n, f->err);
    if (!f->ok || (n == 4 && !memcmp(type, "none", 4))) return;
    hbk__gguf_refuse(f, "llama.rope.scaling.type", "linear", " and \"none\"");
    if (f->ok && !(factor >= 0 && factor < 1e9))
        f->ok = hbk_fail_at(f->err, HBK_ERROR_FORMAT, f->g->path, 0,
                            "key llama.rope.scaling.factor: is %g, expected a factor above 0", factor);
    if (!f->ok || factor == 0 || factor == 1) return;
    c->rope_scaling = HBK_ROPE_LINEAR;
    c->rope_factor = factor;
}

/* Whether Llama 3's scaling with these numbers divides as the table does. */
static bool hbk__is_llama3(const hbk_config *c, const hbk_real *divisors, double *plain, double *scaled)
{
    hbk_config base = *c;
    base.rope_scaling = HBK_ROPE_DEFAULT;
    hbk__rope_frequencies(plain, &base);
    hbk__rope_frequencies(scaled, c);
    for (hbk_int i = 0; i < c->head_dim / 2; i++)
        if (!(fabs(plain[i] / scaled[i] / (double)divisors[i] - 1) < 1e-5)) return false;
    return true;
}

/* The four numbers behind a table of divisors: those that a file of ours tells, or else Llama 3's own, with
   the largest divisor as factor and a power of two as the old context. */
static bool hbk__gguf_trace(hbk__gguf_fields *f, hbk_config *c, const hbk_real *divisors, double *room)
{
    const hbk_gguf_value *own;
    double *scaled = room + c->head_dim / 2, most = 1;
    for (hbk_int i = 0; i < c->head_dim / 2; i++) {
        if (!(divisors[i] > 0))
            return hbk_fail_at(f->err, HBK_ERROR_FORMAT, f->g->path, 0,
                               "tensor " HBK__GGUF_ROPE ": holds %g, expected divisors above 0",
                               (double)divisors[i]);
        most = HBK__MAX(most, (double)divisors[i]);
    }
    if (!hbk_gguf_array(f->g, HBK__GGUF_LLAMA3, HBK_GGUF_F32, &own, f->err)) return false;
    c->rope_scaling = HBK_ROPE_LLAMA3;
    for (hbk_int old = own && own->n == 4 ? 4 : 8; old <= (hbk_int)1 << 30; old *= 2) {
        double x[4] = {most, 1, 4, (double)old};
        for (hbk_int i = 0; i < 4 && old == 4; i++) hbk_gguf_real_at(own, i, &x[i]);
        c->rope_factor = x[0];
        c->rope_low_freq_factor = x[1];
        c->rope_high_freq_factor = x[2];
        c->rope_original_context = x[3] >= 1 && x[3] < 1e15 ? (hbk_int)x[3] : 1;
        if (x[0] > 0 && x[1] > 0 && x[2] > x[1] && hbk__is_llama3(c, divisors, room, scaled)) return true;
    }
    return hbk_fail_at(f->err, HBK_ERROR_UNSUPPORTED, f->g->path, 0,
                       "tensor " HBK__GGUF_ROPE ": its divisors are not those of Llama 3's scaling, which "
                       "alone is supported");
}

static bool hbk__gguf_rope(hbk__gguf_fields *f, hbk_config *c, hbk_allocator *alloc)
{
    const hbk_gguf_tensor *t = hbk_gguf_tensor_find(f->g, HBK__GGUF_ROPE);
    c->rope_factor = c->rope_low_freq_factor = c->rope_high_freq_factor = 1;
    c->rope_original_context = c->context_length;
    hbk__gguf_linear(f, c);
    if (!f->ok || !t) return f->ok;
    if (c->rope_scaling == HBK_ROPE_LINEAR || strcmp(t->type, "F32") != 0 ||
        t->bytes != 4 * (size_t)(c->head_dim / 2))
        return hbk_fail_at(f->err, HBK_ERROR_UNSUPPORTED, f->g->path, 0,
                           "tensor " HBK__GGUF_ROPE ": expected %lld divisors in F32, and no other scaling",
                           (long long)(c->head_dim / 2));
    hbk_real *divisors = HBK__NEW(alloc, hbk_real, c->head_dim / 2, f->err);
    double *room = divisors ? HBK__NEW(alloc, double, c->head_dim, f->err) : NULL;
    if (room) hbk__unpack(divisors, HBK_F32, t->data, c->head_dim / 2);
    bool ok = room && hbk__gguf_trace(f, c, divisors, room);
    hbk_free(alloc, room);
    hbk_free(alloc, divisors);
    return ok;
}

static bool hbk__gguf_config(const hbk_gguf *g, hbk_config *c, hbk_allocator *alloc, hbk_error *err)
{
    hbk__gguf_fields f = {g, err, true};
    if (!hbk_gguf_find(g, "general.architecture"))
        return hbk_fail_at(err, HBK_ERROR_FORMAT, g->path, 0, "key general.architecture is missing");
    hbk__gguf_refuse(&f, "general.type", "model", "; an adapter is opened as an adapter, beside its model");
    hbk__gguf_refuse(&f, "general.architecture", "llama", "");
    hbk__gguf_refuse_numbers(&f);
    if (!f.ok || !hbk__gguf_shape(&f, c) || !hbk__config_fits(c, g->path, err)) return false;
    hbk__gguf_ids(&f, c);
    return f.ok && hbk__gguf_rope(&f, c, alloc) && hbk__config_fits(c, g->path, err);
}

/* One file's tensors as binding wants them, all but the table of divisors; the mapping goes over. */
static hbk_safetensors *hbk__gguf_table(hbk_gguf *g, hbk_allocator *alloc, hbk_error *err)
{
    hbk_safetensors *s = HBK__NEW(alloc, hbk_safetensors, 1, err);
    if (!s) return NULL;
    s->alloc = alloc;
    s->interleaved = true;
    memcpy(s->path, g->path, sizeof s->path);
    if (!hbk__st_reserve(s, g->n_own, g->n_own * (HBK__GGUF_TENSOR_MAX + 1), err)) {
        hbk_safetensors_close(s);
        return NULL;
    }
    for (hbk_int i = 0; i < g->n_own; i++) {
        const hbk_gguf_tensor *from = &g->own[i];
        if (!strcmp(from->name, HBK__GGUF_ROPE)) continue;
        hbk_tensor *t = hbk__st_add(s, from->name);
        snprintf(t->dtype, sizeof t->dtype, "%s", from->type);
        t->n_dims = from->n_dims;
        t->n_elements = 1;
        for (hbk_int k = 0; k < t->n_dims; k++) t->n_elements *= t->shape[k] = from->shape[k];
        t->data = from->data;
        t->bytes = from->bytes;
    }
    hbk__st_sort(s);
    s->map = g->map;
    g->map.data = NULL;
    return s;
}

static hbk_model *hbk__load_gguf(hbk__source *src, hbk_error *err)
{
    hbk_config c;
    memset(&c, 0, sizeof c);
    hbk_gguf *g = src->gguf = hbk_gguf_open(src->path, src->alloc, err);
    if (!g || !hbk__gguf_config(g, &c, src->alloc, err)) return NULL;
    for (hbk_int i = -1; i < g->n_rest; i++)
        if (!hbk__source_add(src, hbk__gguf_table(i < 0 ? g : g->rest[i], src->alloc, err), err)) return NULL;
    return hbk__check_claims(src, &c, err) ? hbk__model_new(&c, src->alloc, err) : NULL;
}

static bool hbk__no_such_model(const char *path, hbk_error *err)
{
    return hbk_fail_at(err, HBK_ERROR_FILE, path, 0,
                       "there is no such file or folder: a model is a Hugging Face folder, a .gguf or a "
                       "llama2.c .bin on this machine; nothing is downloaded");
}

HBK_DEF hbk_model *hbk_model_load(const char *path, hbk_allocator *alloc, hbk_error *err)
{
    if (!hbk_file_exists(path)) {
        hbk__no_such_model(path, err);
        return NULL;
    }
    hbk__source src;
    memset(&src, 0, sizeof src);
    src.path = path;
    src.alloc = alloc;
    hbk_model *m = hbk_dir_exists(path) ? hbk__load_folder(&src, err)
                   : hbk__is_gguf(path) ? hbk__load_gguf(&src, err)
                                        : hbk__load_llama2c(&src, err);
    if (m && !hbk__bind(m, &src, err)) {
        hbk_model_free(m);
        m = NULL;
    }
    hbk__source_close(&src);
    return m;
}

/* Adapters: blk.N.attn_q.weight.lora_a (rank, in) and .lora_b (out, rank), one alpha for the file, a scale of
   alpha / rank for each pair, and of 1 where alpha is 0. Rows of B are interleaved as the weight's are. */

/* The base tensor of number i of an adapter's projections. */
static void hbk__gguf_lora_base(char name[64], const hbk_adapter *a, hbk_int i)
{
    int slot = hbk__lora_slot(a, i);
    if (slot == HBK_LM_HEAD)
        snprintf(name, 64, "output.weight");
    else
        snprintf(name, 64, "blk.%lld.%s.weight", (long long)(i / HBK_N_SLOTS),
                 hbk__gguf_tensors[5 + slot][1]);
}

/* hbk__adapter_lay of what the file `path` says of ranks and alpha. */
static bool hbk__adapter_lay_of(hbk_adapter *a, const char *path, hbk_error *err)
{
    hbk_error why;
    return hbk__adapter_lay(a, NULL, &why) || hbk_fail_at(err, why.code, path, 0, "%s", why.message);
}

/* Which projection (its number, as in hbk_adapter.loras) and half a tensor is of; false: of none. */
static bool hbk__gguf_lora_place(const char *name, const hbk_config *c, hbk_int *i, int *half)
{
    char base[96], known[96];
    const char *end = strrchr(name, '.'), *rest;
    hbk_int layer = 0;
    hbk_slot slot;
    *half = end && !strcmp(end, ".lora_b");
    if (!end || (!*half && strcmp(end, ".lora_a") != 0)) return false;
    snprintf(base, sizeof base, "%.*s", (int)(end - name), name);
    if (!hbk__translate(known, base, 0)) return false;
    *i = c->n_layers * HBK_N_SLOTS;
    if (!strcmp(known, HBK__HEAD)) return true;
    rest = hbk__after_slot(hbk__after_layer(known, &layer), &slot);
    *i = layer * HBK_N_SLOTS + (hbk_int)slot;
    return rest && !strcmp(rest, ".weight") && layer < c->n_layers;
}

/* Sorts the file's tensors into found[2 i + half] and sets the ranks; false with the name of one that has no
   place or the wrong shape. */
static bool hbk__gguf_lora_collect(const hbk_gguf *g, const hbk_config *c, hbk_adapter *a, double alpha,
                                   const hbk_gguf_tensor **found, hbk_error *err)
{
    for (hbk_int k = 0; k < hbk_gguf_tensor_count(g); k++) {
        const hbk_gguf_tensor *t = hbk_gguf_tensor_at(g, k);
        hbk_int i;
        int half;
        hbk_dtype type;
        if (!hbk__gguf_lora_place(t->name, c, &i, &half))
            return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, g->path, 0,
                               "tensor %s: is not lora_a or lora_b of a projection of this model; is it the "
                               "adapter of another base?",
                               t->name);
        hbk_lora *l = &a->loras[i];
        if (!hbk__dtype_of(t->type, &type))
            return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, g->path, 0, "tensor %s: type %s is not supported",
                               t->name, t->type);
        hbk_int wide = half ? l->out : l->in, rank = t->n_dims == 2 ? t->shape[half] : 0;
        if (t->n_dims != 2 || t->shape[!half] != wide || (l->rank && l->rank != rank))
            return hbk_fail_at(err, HBK_ERROR_SHAPE, g->path, 0,
                               "tensor %s: expected %s%lld%s, of one rank with its other half", t->name,
                               half ? "(" : "(rank,", (long long)wide, half ? ",rank)" : ")");
        l->rank = rank;
        l->alpha = alpha != 0 ? alpha : (double)rank;
        found[2 * i + half] = t;
    }
    for (hbk_int i = 0; i <= c->n_layers * HBK_N_SLOTS; i++) {
        char base[64];
        hbk__gguf_lora_base(base, a, i);
        if (!found[2 * i] != !found[2 * i + 1])
            return hbk_fail_at(err, HBK_ERROR_FORMAT, g->path, 0, "tensor %s.lora_%c is missing", base,
                               found[2 * i] ? 'b' : 'a');
    }
    return hbk_gguf_tensor_count(g) > 0 || hbk_fail_at(err, HBK_ERROR_FORMAT, g->path, 0, "holds no tensor");
}

static void hbk__gguf_lora_fill(hbk_lora *l, const hbk_gguf_tensor *A, const hbk_gguf_tensor *B, hbk_int D)
{
    hbk_matrix a = hbk__matrix(l->rank, l->in, NULL), b = hbk__matrix(l->out, l->rank, NULL);
    hbk__dtype_of(A->type, &a.dtype);
    hbk__dtype_of(B->type, &b.dtype);
    a.data = (void *)(uintptr_t)A->data; /* only read */
    b.data = (void *)(uintptr_t)B->data;
    hbk_matrix_unpack(l->a, &a, 0, l->rank);
    for (hbk_int row = 0; row < l->out; row++)
        hbk_matrix_unpack(l->b + (D ? hbk__half_split(row, D) : row) * l->rank, &b, row, 1);
}

/* hbk_adapter_load, where it is given a GGUF file. */
static hbk_adapter *hbk__adapter_load_gguf(const char *path, const hbk_config *c, hbk_allocator *alloc,
                                           hbk_error *err)
{
    hbk_gguf *g = hbk_gguf_open(path, alloc, err);
    if (!g) return NULL;
    hbk_adapter *a = NULL;
    hbk_int last = c->n_layers * HBK_N_SLOTS;
    hbk__gguf_fields f = {g, err, hbk_gguf_find(g, "general.type") != NULL};
    if (!f.ok) hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0, "key general.type is missing: it is no adapter");
    hbk__gguf_refuse(&f, "general.type", "adapter", "; a model is opened as a model");
    hbk__gguf_refuse(&f, "general.architecture", "llama", "");
    hbk__gguf_refuse(&f, "adapter.type", "lora", "");
    double alpha = hbk__gguf_number_of(&f, "adapter.lora.alpha", 0);
    const hbk_gguf_tensor **found =
        f.ok ? HBK__NEW(alloc, const hbk_gguf_tensor *, 2 * (last + 1), err) : NULL;
    if (found) a = hbk__adapter_begin(c, alloc, err);
    if (a && !(hbk__gguf_lora_collect(g, c, a, alpha, found, err) && hbk__adapter_lay_of(a, path, err))) {
        hbk_adapter_free(a);
        a = NULL;
    }
    for (hbk_int i = 0; a && i <= last; i++) {
        int slot = hbk__lora_slot(a, i);
        bool interleaved = slot == HBK_Q || slot == HBK_K;
        if (found[2 * i])
            hbk__gguf_lora_fill(&a->loras[i], found[2 * i], found[2 * i + 1], interleaved ? c->head_dim : 0);
    }
    hbk_free(alloc, found);
    hbk_gguf_close(g);
    return a;
}

/* ---- 12.8 saving ------------------------------------------------------------ */

/* One id as a number, several as a list, none as null. */
static json_t *hbk__eos_json(const hbk_config *c)
{
    if (c->n_eos == 0) return json_null();
    if (c->n_eos == 1) return json_integer(c->eos[0]);
    json_t *list = json_array();
    for (hbk_int i = 0; i < c->n_eos; i++) json_array_append_new(list, json_integer(c->eos[i]));
    return list;
}

static json_t *hbk__bos_json(const hbk_config *c)
{
    return c->bos < 0 ? json_null() : json_integer(c->bos);
}

static json_t *hbk__rope_json(const hbk_config *c)
{
    if (c->rope_scaling == HBK_ROPE_DEFAULT) return json_null();
    if (c->rope_scaling == HBK_ROPE_LINEAR)
        return json_pack("{s:s, s:f}", "rope_type", "linear", "factor", c->rope_factor);
    return json_pack("{s:s, s:f, s:f, s:f, s:I}", "rope_type", "llama3", "factor", c->rope_factor,
                     "low_freq_factor", c->rope_low_freq_factor, "high_freq_factor", c->rope_high_freq_factor,
                     "original_max_position_embeddings", (json_int_t)c->rope_original_context);
}

/* Writes `value`, which may be NULL for lack of memory, as DIR/NAME, and gives it up. */
static bool hbk__json_file(const char *dir, const char *name, json_t *value, hbk_error *err)
{
    char path[512];
    bool ok = hbk_path(path, dir, name, err);
    if (ok && !value) ok = hbk_fail_at(err, HBK_ERROR_MEMORY, path, 0, "out of memory for its JSON");
    ok = ok && hbk_json_write(path, value, err);
    json_decref(value);
    return ok;
}

/* The same as a file under construction, for hbk_file_commit. */
static bool hbk__json_begin(hbk_file *f, const char *dir, const char *name, json_t *value, hbk_error *err)
{
    char path[512];
    hbk_text text;
    memset(&text, 0, sizeof text);
    bool ok = hbk_json_text(&text, value, JSON_INDENT(2), err);
    hbk_text_append(&text, "\n", 1);
    ok = ok && hbk_text_ok(&text, err) && hbk_path(path, dir, name, err) && hbk_file_begin(f, path, err) &&
         hbk_file_put(f, text.data, text.len, err) && hbk_file_seal(f, err);
    hbk_text_free(&text);
    json_decref(value);
    return ok;
}

/* config.json and generation_config.json, begun: a folder must not get weights that its configuration does
   not fit. The spelling of transformers 4, which version 5 reads as well; keys in its order. */
static bool hbk__config_begin(hbk_file f[2], const hbk_config *c, const char *dir, hbk_dtype t,
                              hbk_error *err)
{
    const char *dtype = t == HBK_F32 ? "float32" : t == HBK_F16 ? "float16" : "bfloat16";
    json_t *o = json_pack(
        "{s:[s],s:b,s:f,s:o,s:o,s:I,s:s,s:I,s:f,s:I,s:I,s:b,"
        "s:s,s:I,s:I,s:I,s:f,s:o,s:f,s:b,s:s,s:b,s:I}",
        "architectures", "LlamaForCausalLM", "attention_bias", (c->biases & HBK__ATTENTION) != 0,
        "attention_dropout", 0.0, "bos_token_id", hbk__bos_json(c), "eos_token_id", hbk__eos_json(c),
        "head_dim", (json_int_t)c->head_dim, "hidden_act", "silu", "hidden_size", (json_int_t)c->dim,
        "initializer_range", 0.02, "intermediate_size", (json_int_t)c->ffn_dim, "max_position_embeddings",
        (json_int_t)c->context_length, "mlp_bias", (c->biases & HBK__MLP) != 0, "model_type", "llama",
        "num_attention_heads", (json_int_t)c->n_heads, "num_hidden_layers", (json_int_t)c->n_layers,
        "num_key_value_heads", (json_int_t)c->n_kv_heads, "rms_norm_eps", c->rms_norm_eps, "rope_scaling",
        hbk__rope_json(c), "rope_theta", c->rope_theta, "tie_word_embeddings", (int)c->tied, "torch_dtype",
        dtype, "use_cache", 1, "vocab_size", (json_int_t)c->vocab_size);
    return hbk__json_begin(&f[0], dir, "config.json", o, err) &&
           hbk__json_begin(
               &f[1], dir, "generation_config.json",
               json_pack("{s:o, s:o}", "bos_token_id", hbk__bos_json(c), "eos_token_id", hbk__eos_json(c)),
               err);
}

/* What the adapter adds to the tensor of this name, or NULL. */
static const hbk_lora *hbk__tensor_lora(const hbk_adapter *a, const char *name)
{
    hbk_int layer = 0;
    hbk_slot slot;
    if (!a) return NULL;
    if (!strcmp(name, HBK__HEAD)) return hbk__head_lora(a);
    const char *rest = hbk__after_slot(hbk__after_layer(name, &layer), &slot);
    return rest && !strcmp(rest, ".weight") ? hbk__lora_of(a, layer, slot) : NULL;
}

/* The model as it is to be merged: under an adapter of the head, a head that is the embedding becomes a
   matrix of its own. Borrows everything. */
static hbk_model hbk__merge_view(const hbk_model *m, const hbk_adapter *a)
{
    hbk_model view = *m;
    HBK_ASSERT(!a || a->n_layers == m->config.n_layers);
    if (hbk__head_lora(a)) view.config.tied = false;
    return view;
}

/* A model with m's weights in which a group that has one bias has all: those that m lacks are zero (other
   files give q, k and v alone a bias). Free its layers, and *zeros. */
static bool hbk__whole_groups(hbk_model *whole, const hbk_model *m, hbk_real **zeros, hbk_error *err)
{
    hbk_config *c = &whole->config;
    *whole = *m;
    if (c->biases & HBK__ATTENTION) c->biases |= HBK__ATTENTION;
    if (c->biases & HBK__MLP) c->biases |= HBK__MLP;
    hbk_int widest = HBK__MAX(c->n_heads * c->head_dim, HBK__MAX(c->dim, c->ffn_dim));
    *zeros = HBK__NEW(m->alloc, hbk_real, widest, err);
    whole->layers = *zeros ? HBK__NEW(m->alloc, hbk_layer, c->n_layers, err) : NULL;
    for (hbk_int l = 0; whole->layers && l < c->n_layers; l++) {
        whole->layers[l] = m->layers[l];
        for (int s = 0; s < HBK_N_SLOTS; s++)
            if (!whole->layers[l].bias[s]) whole->layers[l].bias[s] = *zeros;
    }
    return whole->layers != NULL;
}

HBK_DEF bool hbk_model_save_merged(const hbk_model *m, const hbk_adapter *a, const char *dir, hbk_dtype t,
                                   hbk_error *err)
{
    char path[512], name[96];
    hbk_model view = hbk__merge_view(m, a), whole;
    hbk_file config[2];
    hbk_real *zeros;
    hbk_int n = 0;
    hbk_matrix w;
    memset(config, 0, sizeof config);
    if (t != HBK_F32 && t != HBK_F16 && t != HBK_BF16)
        return hbk_fail(err, HBK_ERROR_OPTION, "a model is saved as f32, f16 or bf16, not as %s",
                        hbk_dtype_name(t));
    if (!hbk_dir_make(dir, err) || !hbk_path(path, dir, "model.safetensors", err)) return false;
    bool ok = hbk__whole_groups(&whole, &view, &zeros, err);
    while (ok && hbk_tensor_at(&whole, n, name, &w)) n++;
    hbk_tensor *tensors = ok ? HBK__NEW(m->alloc, hbk_tensor, n, err) : NULL;
    hbk__origin *from = tensors ? HBK__NEW(m->alloc, hbk__origin, n, err) : NULL;
    char *names = from ? HBK__NEW(m->alloc, char, 96 * n, err) : NULL;
    for (hbk_int i = 0; names && i < n; i++) {
        hbk__place p;
        hbk_tensor_at(&whole, i, names + 96 * i, &from[i].w);
        from[i].lora = hbk__tensor_lora(a, names + 96 * i);
        bool vector = hbk__place_at(&whole, i, &p, names + 96 * i) && p.vector;
        tensors[i].name = names + 96 * i;
        snprintf(tensors[i].dtype, sizeof tensors[i].dtype, "%s", hbk__st_type_name(t));
        tensors[i].n_dims = vector ? 1 : 2;
        tensors[i].shape[0] = vector ? from[i].w.cols : from[i].w.rows;
        tensors[i].shape[1] = vector ? 0 : from[i].w.cols;
    }
    ok = names && hbk__config_begin(config, &view.config, dir, t, err) &&
         hbk__tensors_write(path, tensors, from, n, m->alloc, err) && hbk_file_commit(&config[0], err) &&
         hbk_file_commit(&config[1], err);
    for (int i = 0; i < 2; i++) hbk_file_abandon(&config[i]);
    hbk_free(m->alloc, names);
    hbk_free(m->alloc, from);
    hbk_free(m->alloc, tensors);
    hbk_free(m->alloc, whole.layers);
    hbk_free(m->alloc, zeros);
    return ok;
}

HBK_DEF bool hbk_model_save(const hbk_model *m, const char *dir, hbk_dtype t, hbk_error *err)
{
    return hbk_model_save_merged(m, NULL, dir, t, err);
}

/* ---- 12.9 adapters ------------------------------------------------------------

   PEFT, adapter_model.safetensors beside adapter_config.json:

       base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight  (rank, in)
       base_model.model.model.layers.N.self_attn.q_proj.lora_B.weight  (out, rank)
       base_model.model.lm_head.lora_A.weight ...

   MLX, adapters.safetensors, whose configuration holds the scale itself:

       model.layers.N.self_attn.q_proj.lora_a  (in, rank)
       model.layers.N.self_attn.q_proj.lora_b  (rank, out)

   What is adapted, and with which rank, is what the file holds tensors for. The configuration says it once
   more, in r, rank_pattern, target_modules, layers_to_transform and exclude_modules, some of it as regular
   expressions: lists are held against the tensors, expressions are not needed. What it alone says is alpha,
   by module, and everything in it that would change the result and is not supported is refused by name.
   Every tensor must find its place and every adapted projection both its tensors: an adapter that matches
   nothing would load, and the base model would answer in its stead. */

/* An adapter's two files while they are read. */
typedef struct hbk__adapter_file {
    char config_path[512];
    json_t *config;
    const json_t *targets, *layers; /* lists that claim what is adapted; targets NULL: no list */
    bool mlx, all_linear, excludes, rslora;
    double alpha; /* of MLX: the scale */
    const hbk_model *base;
    hbk_safetensors *s;
    hbk_int n;                /* projections that could be adapted, the head last */
    const hbk_tensor **found; /* (n, 2) A and B */
    hbk_allocator *alloc;
} hbk__adapter_file;

static void hbk__adapter_close(hbk__adapter_file *f)
{
    hbk_free(f->alloc, f->found);
    hbk_safetensors_close(f->s);
    json_decref(f->config);
}

/* The module of number i of a model's projections: "model.layers.3.mlp.up_proj", "lm_head". */
static void hbk__module_name(char name[64], hbk_int i, hbk_int n_layers)
{
    hbk_slot slot = (hbk_slot)(i % HBK_N_SLOTS);
    if (i == n_layers * HBK_N_SLOTS)
        snprintf(name, 64, "lm_head");
    else
        snprintf(name, 64, "model.layers.%lld.%s%s", (long long)(i / HBK_N_SLOTS), hbk__slot_group(slot),
                 hbk_slot_name(slot));
}

static void hbk__lora_tensor_name(char name[96], const char *module, int half, bool mlx)
{
    if (mlx)
        snprintf(name, 96, "%s.lora_%c", module, half ? 'b' : 'a');
    else
        snprintf(name, 96, "base_model.model.%s.lora_%c.weight", module, half ? 'B' : 'A');
}

/* The layer, the projection and the half (0: A, 1: B) that a name speaks of. */
static bool hbk__lora_name(const char *name, bool mlx, hbk_int *layer, hbk_slot *slot, int *half)
{
    const char *module = mlx ? name : hbk__after(name, "base_model.model."), *head;
    const char *s = hbk__after_slot(hbk__after_layer(module, layer), slot);
    if ((head = hbk__after(module, "lm_head")) != NULL) s = head; /* *slot is HBK_LM_HEAD already */
    const char *a = hbk__after(s, mlx ? ".lora_a" : ".lora_A"),
               *b = hbk__after(s, mlx ? ".lora_b" : ".lora_B");
    *half = b != NULL;
    s = a ? a : b;
    if (!s || mlx) return s && !*s;
    const char *plain = hbk__after(s, ".default"); /* a raw state_dict keeps the adapter's name */
    return !strcmp(plain ? plain : s, ".weight");
}

/* The dimension of a half that is the rank: A (rank, in), B (out, rank); MLX has both turned. */
static int hbk__rank_dim(const hbk__adapter_file *f, int half)
{
    return f->mlx ? !half : half;
}

/* Whether t fits half `half` of a projection (out, in). */
static bool hbk__check_lora(const hbk__adapter_file *f, const hbk_tensor *t, hbk_int layer, hbk_slot slot,
                            int half, hbk_error *err)
{
    hbk_int out, in, rank_dim = hbk__rank_dim(f, half);
    hbk_dtype type;
    char got[192], want[64];
    if (slot != HBK_LM_HEAD && layer >= f->base->config.n_layers)
        return hbk_fail_at(err, HBK_ERROR_SHAPE, f->s->path, 0,
                           "tensor %s: the model has %lld layers; is this the adapter of another base?",
                           t->name, (long long)f->base->config.n_layers);
    if (!hbk__dtype_of(t->dtype, &type))
        return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, f->s->path, 0, "tensor %s: type %s is not supported",
                           t->name, t->dtype);
    hbk__slot_shape(&f->base->config, slot, &out, &in);
    if (t->n_dims == 2 && t->shape[!rank_dim] == (half ? out : in) && t->shape[rank_dim] > 0) return true;
    hbk__shape_text(got, t);
    snprintf(want, sizeof want, rank_dim ? "(%lld,rank)" : "(rank,%lld)", (long long)(half ? out : in));
    return hbk_fail_at(err, HBK_ERROR_SHAPE, f->s->path, 0,
                       "tensor %s: shape %s, expected %s; is this the adapter of another base?", t->name, got,
                       want);
}

/* PEFT puts a copy of the base's head or embedding beside an adapter of the head, and would put it in their
   place when it loads. It may be rounded to bf16; if it was trained too, that would get lost here. */
static bool hbk__check_copy(const hbk__adapter_file *f, const hbk_tensor *t, const hbk_matrix *w,
                            hbk_error *err)
{
    hbk_dtype type;
    double apart = 0, whole = 0;
    if (!hbk__dtype_of(t->dtype, &type) || t->n_dims != 2 || t->shape[0] != w->rows || t->shape[1] != w->cols)
        return hbk_fail_at(err, HBK_ERROR_SHAPE, f->s->path, 0,
                           "tensor %s: is no copy of the base's, which is (%lld,%lld): was the vocabulary "
                           "resized? That is not supported",
                           t->name, (long long)w->rows, (long long)w->cols);
    hbk_matrix copy = hbk__tensor_matrix(t, w->rows, w->cols);
    hbk_real *x = HBK__NEW(f->alloc, hbk_real, 2 * w->cols, err);
    if (!x) return false;
    hbk_real *y = x + w->cols;
    for (hbk_int row = 0; row < w->rows; row++) {
        hbk_matrix_unpack(x, &copy, row, 1);
        hbk_matrix_unpack(y, w, row, 1);
        for (hbk_int i = 0; i < w->cols; i++) {
            apart += (double)((x[i] - y[i]) * (x[i] - y[i]));
            whole += (double)(y[i] * y[i]);
        }
    }
    hbk_free(f->alloc, x);
    if (apart <= whole / 65536) return true; /* bf16 rounds by less than a 256th; false for a NaN */
    return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, f->s->path, 0,
                       "tensor %s: differs from the base's: it was trained too, or belongs to another base; "
                       "merge the adapter with PEFT first",
                       t->name);
}

/* A tensor that is no half of a correction: a copy of the base's is let pass. */
static bool hbk__adapter_stranger(const hbk__adapter_file *f, const hbk_tensor *t, hbk_error *err)
{
    const char *module = hbk__after(t->name, "base_model.model.");
    const char *head = hbk__after(module, "lm_head."), *embed = hbk__after(module, "model.embed_tokens.");
    const char *rest = head ? head : embed;
    if (rest && (!strcmp(rest, "base_layer.weight") || !strcmp(rest, "weight")))
        return hbk__check_copy(f, t, head ? &f->base->head : &f->base->embed, err);
    return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, f->s->path, 0, "tensor %.200s: %s", t->name,
                       module || f->mlx
                           ? "is not lora_A or lora_B of a layer's projection or lm_head: not supported"
                           : "PEFT's names begin with base_model.model.: rename the tensors");
}

/* Sorts the file's tensors into f->found. */
static bool hbk__adapter_collect(hbk__adapter_file *f, hbk_error *err)
{
    bool any = false;
    for (hbk_int i = 0; i < f->s->n; i++) {
        const hbk_tensor *t = &f->s->tensors[i];
        hbk_int layer = 0;
        hbk_slot slot;
        int half;
        if (!hbk__lora_name(t->name, f->mlx, &layer, &slot, &half)) {
            if (!hbk__adapter_stranger(f, t, err)) return false;
            continue;
        }
        if (!hbk__check_lora(f, t, layer, slot, half, err)) return false;
        hbk_int at = slot == HBK_LM_HEAD ? f->n - 1 : layer * HBK_N_SLOTS + slot;
        const hbk_tensor **place = &f->found[2 * at + half];
        if (*place)
            return hbk_fail_at(err, HBK_ERROR_FORMAT, f->s->path, 0, "tensors %s and %s are one and the same",
                               t->name, (*place)->name);
        *place = t;
        any = true;
    }
    if (any) return true;
    return hbk_fail_at(err, HBK_ERROR_FORMAT, f->s->path, 0,
                       "holds no tensor: nothing was trained, or nothing saved");
}

/* How a list of PEFT's names a module: 2 in full, 1 by its last parts, 0 not at all. */
static int hbk__list_names(const json_t *list, const char *module)
{
    int best = 0;
    for (size_t i = 0, m = strlen(module); i < json_array_size(list); i++) {
        const char *s = json_string_value(json_array_get(list, i));
        size_t n = s ? strlen(s) : m + 1;
        if (n == m && !strcmp(s, module)) return 2;
        if (n < m && module[m - n - 1] == '.' && !strcmp(module + m - n, s)) best = 1;
    }
    return best;
}

/* Whether layers_to_transform, a number or a list, holds the layer; absent or empty it holds all. */
static bool hbk__layer_listed(const json_t *layers, hbk_int layer)
{
    if (json_is_integer(layers)) return json_integer_value(layers) == layer;
    for (size_t i = 0; i < json_array_size(layers); i++)
        if (json_integer_value(json_array_get(layers, i)) == layer) return true;
    return json_array_size(layers) == 0;
}

/* Whether the configuration claims that projection i is adapted; a module named in full needs no layer. */
static bool hbk__adapter_claims(const hbk__adapter_file *f, hbk_int i, const char *module)
{
    if (f->all_linear) return i + 1 < f->n;
    int named = hbk__list_names(f->targets, module);
    return named == 2 || (named == 1 && hbk__layer_listed(f->layers, i / HBK_N_SLOTS));
}

/* Whether each adapted projection has A and B, of one rank, and the lists of the configuration agree. */
static bool hbk__adapter_complete(const hbk__adapter_file *f, hbk_error *err)
{
    bool lists = f->targets || f->all_linear;
    for (hbk_int i = 0; i < f->n; i++) {
        const hbk_tensor *a = f->found[2 * i], *b = f->found[2 * i + 1];
        char module[64], name[96];
        hbk__module_name(module, i, f->base->config.n_layers);
        bool claimed = lists && hbk__adapter_claims(f, i, module);
        hbk__lora_tensor_name(name, module, a != NULL, f->mlx);
        if (!a != !b || (claimed && !a && !f->excludes))
            return hbk_fail_at(err, HBK_ERROR_FORMAT, f->s->path, 0,
                               "tensor %s is missing%s; is this the adapter of another base?", name,
                               a || b ? "" : ", which target_modules asks for");
        if (!a) continue;
        if (lists && !claimed)
            return hbk_fail_at(err, HBK_ERROR_FORMAT, f->s->path, 0,
                               "tensor %s: target_modules of adapter_config.json does not name its module",
                               a->name);
        if (a->shape[hbk__rank_dim(f, 0)] != b->shape[hbk__rank_dim(f, 1)])
            return hbk_fail_at(err, HBK_ERROR_SHAPE, f->s->path, 0, "tensor %s: rank %lld, but %lld in %s",
                               b->name, (long long)b->shape[hbk__rank_dim(f, 1)],
                               (long long)a->shape[hbk__rank_dim(f, 0)], a->name);
    }
    return true;
}

/* Refuses what would change the numbers and is not known here: a switch that is on, a list or table that
   holds something. Texts and numbers only shape what such a switch turns on. Listed are the keys that are
   read elsewhere, or concern training and its start. */
static void hbk__refuse_unknown(hbk__fields *f, json_t *config)
{
    static const char known[][22] = {
        "alpha_pattern",  "auto_mapping",   "corda_config",    "eva_config",     "exclude_modules",
        "fan_in_fan_out", "inference_mode", "layers_pattern",  "lora_ga_config", "init_lora_weights",
        "loftq_config",   "rank_pattern",   "megatron_config", "runtime_config", "layers_to_transform",
        "target_modules", "use_rslora",     "velora_config"};
    const char *key;
    json_t *value;
    json_object_foreach(config, key, value)
    {
        size_t i = 0, n = sizeof known / sizeof *known;
        while (i < n && strcmp(key, known[i]) != 0) i++;
        if (i < n || json_is_string(value) || json_is_number(value)) continue;
        hbk__field_refuse(f, key, NULL);
        if (!f->ok) return;
    }
}

/* PEFT's adapter_config.json. fan_in_fan_out, of layers that store W transposed, PEFT itself ignores for
   LLaMA's. */
static bool hbk__peft_config(hbk__adapter_file *a, hbk_error *err)
{
    hbk__fields f = {a->config, a->config_path, err, true};
    const char *type = json_string_value(hbk__json_field(&f, "peft_type"));
    if (!type || strcmp(type, "LORA") != 0)
        return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, f.path, 0, "peft_type %.40s: only LORA is supported",
                           type ? type : "is absent");
    hbk__refuse_unknown(&f, a->config);
    hbk__field_refuse(&f, "bias", "none");
    /* these only choose where training begins; pissa, olora, corda, loftq and lora_ga change the base too */
    const char *init = json_string_value(hbk__json_field(&f, "init_lora_weights"));
    if (f.ok && init && strcmp(init, "gaussian") && strcmp(init, "eva") && strcmp(init, "orthogonal"))
        f.ok = hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, f.path, 0,
                           "init_lora_weights \"%.40s\" is not supported: it changed the base; save the "
                           "adapter with PEFT's path_initial_model_for_weight_conversion",
                           init);
    a->alpha = hbk__field_real(&f, "lora_alpha", 8);
    a->rslora = hbk__field_bool(&f, "use_rslora", false);
    const json_t *targets = hbk__json_field(&f, "target_modules");
    const json_t *excludes = hbk__json_field(&f, "exclude_modules");
    a->excludes = json_array_size(excludes) || json_is_string(excludes);
    a->layers = hbk__json_field(&f, "layers_to_transform");
    bool whole = !a->layers || json_is_integer(a->layers) || json_is_array(a->layers);
    for (size_t i = 0; i < json_array_size(a->layers) && whole; i++)
        whole = json_is_integer(json_array_get(a->layers, i));
    if (f.ok && !whole)
        f.ok = hbk_fail_at(err, HBK_ERROR_FORMAT, f.path, 0,
                           "layers_to_transform: expected a layer's number, or a list of them");
    const json_t *patterns = hbk__json_field(&f, "alpha_pattern");
    if (f.ok && patterns && !json_is_object(patterns))
        f.ok = hbk_fail_at(err, HBK_ERROR_FORMAT, f.path, 0,
                           "alpha_pattern: expected an object of modules and numbers");
    a->all_linear = json_is_string(targets) && !strcmp(json_string_value(targets), "all-linear");
    if (json_is_array(targets)) a->targets = targets;
    for (size_t i = 0; i < json_array_size(targets) && f.ok; i++)
        if (!json_is_string(json_array_get(targets, i)))
            f.ok = hbk_fail_at(err, HBK_ERROR_FORMAT, f.path, 0, "target_modules: expected names of modules");
    return f.ok;
}

/* MLX's: lora_parameters {"rank", "scale", ...}; the scale is used as it stands. */
static bool hbk__mlx_config(hbk__adapter_file *a, hbk_error *err)
{
    hbk__fields f = {a->config, a->config_path, err, true};
    hbk__field_refuse(&f, "fine_tune_type", "lora");
    hbk__field_refuse(&f, "use_dora", NULL);
    if (!f.ok) return false;
    const json_t *scale = json_object_get(json_object_get(a->config, "lora_parameters"), "scale");
    if (!json_is_number(scale))
        return hbk_fail_at(err, HBK_ERROR_FORMAT, f.path, 0, "lora_parameters: expected a number as scale");
    a->alpha = json_number_value(scale);
    return true;
}

/* Opens both files of an adapter's folder. */
static bool hbk__adapter_open(hbk__adapter_file *f, const char *dir, hbk_error *err)
{
    char path[512], mlx[512], bin[512];
    if (!hbk_path(f->config_path, dir, "adapter_config.json", err) ||
        !hbk_path(path, dir, "adapter_model.safetensors", err) ||
        !hbk_path(mlx, dir, "adapters.safetensors", err) || !hbk_path(bin, dir, "adapter_model.bin", err))
        return false;
    f->mlx = !hbk_file_exists(path) && hbk_file_exists(mlx);
    f->config = hbk_json_read(f->config_path, err);
    if (!f->config) return false;
    if (!(f->mlx ? hbk__mlx_config(f, err) : hbk__peft_config(f, err))) return false;
    if (!f->mlx && !hbk_file_exists(path) && hbk_file_exists(bin))
        return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, bin, 0,
                           "is a PyTorch checkpoint: load and save the adapter with a present PEFT, which "
                           "writes adapter_model.safetensors");
    f->s = hbk_safetensors_open(f->mlx ? mlx : path, f->alloc, err);
    f->found = f->s ? HBK__NEW(f->alloc, const hbk_tensor *, 2 * f->n, err) : NULL;
    return f->found != NULL;
}

/* A regular expression of Python's as a POSIX extended one, appended to `out`: what module names ask for.
   Whether a repetition is lazy makes no difference to whether a whole name matches. False: there is more. */
static bool hbk__pattern_text(hbk_text *out, const char *p)
{
    bool set = false; /* inside [...] */
    for (; *p; p++) {
        if (*p == '\\') {
            const char *range = *++p == 'd' ? "0-9" : *p == 'w' ? "A-Za-z0-9_" : NULL;
            if (range)
                hbk_text_printf(out, set ? "%s" : "[%s]", range);
            else if (!*p || !strchr(set ? "." : ".[]()*+?{}|^$\\-/", *p))
                return false;
            else
                hbk_text_printf(out, set ? "%c" : strchr("]}-/", *p) ? "[%c]" : "\\%c", *p);
        } else if (set || *p == '[') {
            if (set && *p == '[') return false;
            hbk_text_append(out, p, 1);
            if (!set && p[1] == '^') hbk_text_append(out, ++p, 1);
            set = *p != ']';
        } else if (*p == '(' && p[1] == '?') {
            if (p[2] != ':') return false; /* names, conditions, a look ahead or back */
            hbk_text_add(out, "(");
            p += 2;
        } else if (*p == '*' || *p == '+' || *p == '?') {
            hbk_text_append(out, p, 1);
            if (p[1] == '?') p++;
            if (p[1] == '*' || p[1] == '+') return false;
        } else if (*p == '{') {
            return false;
        } else {
            hbk_text_append(out, p, 1);
        }
    }
    return !set;
}

/* Compiles a key of alpha_pattern: it matches a module's whole name, or what follows a dot in it. Its length
   and its groups are bounded, for regcomp calls itself once a group: a file could exhaust the stack. */
static bool hbk__pattern_open(regex_t *re, const hbk__adapter_file *f, const char *key, hbk_error *err)
{
    hbk_text t;
    memset(&t, 0, sizeof t);
    t.alloc = f->alloc;
    int groups = 0;
    for (const char *p = key; *p && groups <= 16; p++) groups += *p == '(';
    if (groups > 16 || strlen(key) > 256)
        return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, f->config_path, 0,
                           "alpha_pattern: the expression %.80s... is not supported: it has more than 256 "
                           "bytes or 16 groups",
                           key);
    hbk_text_add(&t, "^(.*\\.)?(");
    bool known = hbk__pattern_text(&t, key), ok;
    hbk_text_add(&t, ")$");
    ok = hbk_text_ok(&t, err);
    if (ok && (!known || regcomp(re, hbk_text_string(&t), REG_EXTENDED | REG_NOSUB) != 0))
        ok = hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, f->config_path, 0,
                         "alpha_pattern: the expression %.80s is not supported: list the modules by name",
                         key);
    hbk_text_free(&t);
    return ok;
}

/* Gives each adapted projection, whose alpha is NAN so far, that of the first key that matches it. */
static bool hbk__alpha_pattern(const hbk__adapter_file *f, hbk_adapter *a, hbk_error *err)
{
    const char *key;
    json_t *value, *patterns = f->mlx ? NULL : json_object_get(f->config, "alpha_pattern");
    json_object_foreach(patterns, key, value)
    {
        regex_t re;
        if (!json_is_number(value))
            return hbk_fail_at(err, HBK_ERROR_FORMAT, f->config_path, 0,
                               "alpha_pattern: expected a number for %.80s", key);
        if (!hbk__pattern_open(&re, f, key, err)) return false;
        for (hbk_int i = 0; i < f->n; i++) {
            char module[64];
            hbk__module_name(module, i, a->n_layers);
            if (a->loras[i].rank && isnan(a->loras[i].alpha) && !regexec(&re, module, 0, NULL, 0))
                a->loras[i].alpha = json_number_value(value);
        }
        regfree(&re);
    }
    return true;
}

/* Half `half` of a projection into out, rows of x turned to columns for MLX. */
static bool hbk__unpack_half(const hbk__adapter_file *f, hbk_real *out, const hbk_tensor *t, hbk_error *err)
{
    hbk_matrix w = hbk__tensor_matrix(t, t->shape[0], t->shape[1]);
    if (!f->mlx) {
        hbk_matrix_unpack(out, &w, 0, w.rows);
        return true;
    }
    hbk_real *row = HBK__NEW(f->alloc, hbk_real, w.cols, err);
    for (hbk_int i = 0; row && i < w.rows; i++) {
        hbk_matrix_unpack(row, &w, i, 1);
        for (hbk_int k = 0; k < w.cols; k++) out[k * w.rows + i] = row[k];
    }
    hbk_free(f->alloc, row);
    return row != NULL;
}

/* Ranks, alphas and numbers of a begun adapter, from files that were found complete. */
static bool hbk__adapter_fill(const hbk__adapter_file *f, hbk_adapter *a, hbk_error *err)
{
    for (hbk_int i = 0; i < f->n; i++) {
        a->loras[i].rank = f->found[2 * i] ? f->found[2 * i]->shape[hbk__rank_dim(f, 0)] : 0;
        a->loras[i].alpha = a->loras[i].rank ? (double)NAN : 0;
    }
    if (!hbk__alpha_pattern(f, a, err)) return false;
    for (hbk_int i = 0; i < f->n; i++) {
        hbk_lora *l = &a->loras[i];
        double rank = (double)l->rank;
        if (isnan(l->alpha)) l->alpha = f->mlx ? f->alpha * rank : f->alpha;
        if (f->rslora) l->alpha *= sqrt(rank);
    }
    if (!hbk__adapter_lay_of(a, f->config_path, err)) return false;
    for (hbk_int i = 0; i < f->n; i++)
        if (a->loras[i].rank && (!hbk__unpack_half(f, a->loras[i].a, f->found[2 * i], err) ||
                                 !hbk__unpack_half(f, a->loras[i].b, f->found[2 * i + 1], err)))
            return false;
    return true;
}

HBK_DEF hbk_adapter *hbk_adapter_load(const char *dir, const hbk_model *base, hbk_allocator *alloc,
                                      hbk_error *err)
{
    if (hbk__is_gguf(dir)) return hbk__adapter_load_gguf(dir, &base->config, alloc, err);
    hbk__adapter_file f;
    memset(&f, 0, sizeof f);
    f.base = base;
    f.alloc = alloc;
    f.n = base->config.n_layers * HBK_N_SLOTS + 1;
    bool ok =
        hbk__adapter_open(&f, dir, err) && hbk__adapter_collect(&f, err) && hbk__adapter_complete(&f, err);
    hbk_adapter *a = ok ? hbk__adapter_begin(&base->config, alloc, err) : NULL;
    if (a && !hbk__adapter_fill(&f, a, err)) {
        hbk_adapter_free(a);
        a = NULL;
    }
    hbk__adapter_close(&f);
    return a;
}

/* A whole number as one: old readers want an int for alpha. */
static json_t *hbk__alpha_json(double alpha)
{
    bool whole = alpha == floor(alpha) && fabs(alpha) < 1e15;
    return whole ? json_integer((json_int_t)alpha) : json_real(alpha);
}

/* target_modules and layers_to_transform. Where every adapted layer adapts the same projections these are
   listed, and the layers unless they are all; else each module by its full name. */
static json_t *hbk__targets_json(const hbk_adapter *a, json_t **layers)
{
    bool even = true;
    json_t *targets = json_array(), *which = json_array();
    for (hbk_int l = 0; l < a->n_layers; l++) {
        unsigned bits = 0;
        for (int s = 0; s < HBK_N_SLOTS; s++) bits |= (hbk__lora_of(a, l, s) ? 1u : 0u) << s;
        if (bits && bits != (a->targets & HBK_ALL_SLOTS)) even = false;
        if (bits) json_array_append_new(which, json_integer(l));
    }
    for (hbk_int i = 0; i <= a->n_layers * HBK_N_SLOTS; i++) {
        char module[64];
        int slot = hbk__lora_slot(a, i);
        hbk__module_name(module, i, a->n_layers);
        if (even && i < HBK_N_SLOTS && a->targets >> slot & 1)
            json_array_append_new(targets, json_string(hbk_slot_name((hbk_slot)slot)));
        if (a->loras[i].a && (!even || slot == HBK_LM_HEAD))
            json_array_append_new(targets, json_string(module));
    }
    hbk_int n = (hbk_int)json_array_size(which);
    if (!even || n == 0 || n == a->n_layers) {
        json_decref(which);
        which = json_null();
    }
    *layers = which;
    return targets;
}

/* Puts the rank and alpha of a module into the patterns, where they are not the common ones. */
static void hbk__pattern_add(json_t *ranks, json_t *alphas, const char *key, const hbk_lora *l,
                             const hbk_lora *common)
{
    if (l->rank != common->rank) json_object_set_new(ranks, key, json_integer(l->rank));
    if (l->alpha != common->alpha) json_object_set_new(alphas, key, hbk__alpha_json(l->alpha));
}

/* rank_pattern and alpha_pattern: a projection's name where all layers agree about it, else one key a layer.
   These begin at "layers", because early versions ask for a dot before what matches; and since lm_head, which
   no dot precedes, could not be given a rank of its own there, its rank and alpha are the common ones. */
static void hbk__patterns_json(const hbk_adapter *a, const hbk_lora *common, json_t *ranks, json_t *alphas)
{
    for (int s = 0; s < HBK_N_SLOTS; s++) {
        const hbk_lora *first = NULL;
        bool same = true;
        for (hbk_int l = 0; l < a->n_layers; l++) {
            const hbk_lora *x = hbk__lora_of(a, l, s);
            if (x && !first) first = x;
            if (x && (x->rank != first->rank || x->alpha != first->alpha)) same = false;
        }
        if (same && first) hbk__pattern_add(ranks, alphas, hbk_slot_name((hbk_slot)s), first, common);
        for (hbk_int l = 0; !same && l < a->n_layers; l++) {
            char module[64];
            hbk__module_name(module, l * HBK_N_SLOTS + s, a->n_layers);
            if (hbk__lora_of(a, l, s))
                hbk__pattern_add(ranks, alphas, hbk__after(module, "model."), hbk__lora_of(a, l, s), common);
        }
    }
}

/* Only keys that every version of PEFT knows: old ones stop at a key that they do not. */
static bool hbk__adapter_config_save(const hbk_adapter *a, const char *dir, const char *base_name,
                                     double dropout, hbk_error *err)
{
    hbk_lora common;
    memset(&common, 0, sizeof common);
    common.rank = a->rank;
    common.alpha = a->alpha;
    if (hbk__head_lora(a)) common = *hbk__head_lora(a);
    json_t *layers, *targets = hbk__targets_json(a, &layers), *ranks = json_object(), *alphas = json_object();
    hbk__patterns_json(a, &common, ranks, alphas);
    json_t *o =
        json_pack("{s:o,s:n,s:s?,s:s,s:b,s:b,s:b,s:n,s:o,s:o,s:f,s:n,s:s,s:I,s:o,s:n,s:o,s:s}",
                  "alpha_pattern", alphas, "auto_mapping", "base_model_name_or_path", base_name, "bias",
                  "none", "fan_in_fan_out", 0, "inference_mode", 1, "init_lora_weights", 1, "layers_pattern",
                  "layers_to_transform", layers, "lora_alpha", hbk__alpha_json(common.alpha), "lora_dropout",
                  dropout, "modules_to_save", "peft_type", "LORA", "r", (json_int_t)common.rank,
                  "rank_pattern", ranks, "revision", "target_modules", targets, "task_type", "CAUSAL_LM");
    return hbk__json_file(dir, "adapter_config.json", o, err);
}

HBK_DEF bool hbk_adapter_save(const hbk_adapter *a, const char *dir, const char *base_name, double dropout,
                              hbk_error *err)
{
    char path[512];
    hbk_int n = 0, most = (a->n_layers * HBK_N_SLOTS + 1) * 2;
    if (!hbk_dir_make(dir, err) || !hbk_path(path, dir, "adapter_model.safetensors", err)) return false;
    hbk_tensor *tensors = HBK__NEW(a->alloc, hbk_tensor, most, err);
    hbk__origin *from = tensors ? HBK__NEW(a->alloc, hbk__origin, most, err) : NULL;
    char *names = from ? HBK__NEW(a->alloc, char, 96 * most, err) : NULL;
    for (hbk_int i = 0; names && i < most; i++) {
        const hbk_lora *l = &a->loras[i / 2];
        char module[64];
        if (!l->a) continue;
        hbk__module_name(module, i / 2, a->n_layers);
        hbk__lora_tensor_name(names + 96 * n, module, (int)(i % 2), false);
        from[n].w = i % 2 ? hbk__matrix(l->out, l->rank, l->b) : hbk__matrix(l->rank, l->in, l->a);
        tensors[n].name = names + 96 * n;
        snprintf(tensors[n].dtype, sizeof tensors[n].dtype, "F32");
        tensors[n].n_dims = 2;
        tensors[n].shape[0] = from[n].w.rows;
        tensors[n].shape[1] = from[n].w.cols;
        n++;
    }
    bool ok = names && hbk__tensors_write(path, tensors, from, n, a->alloc, err);
    hbk_free(a->alloc, names);
    hbk_free(a->alloc, from);
    hbk_free(a->alloc, tensors);
    return ok && hbk__adapter_config_save(a, dir, base_name, dropout, err);
}

/* ---- 12.10 merging ------------------------------------------------------------- */

HBK_DEF hbk_model *hbk_adapter_merge(const hbk_model *m, const hbk_adapter *a, hbk_allocator *alloc,
                                     hbk_error *err)
{
    hbk_model view = hbk__merge_view(m, a);
    hbk_real *values = HBK__NEW(alloc, hbk_real, hbk_model_count(&view.config), err);
    hbk_model *merged = values ? hbk_model_view(&view.config, values, alloc, err) : NULL;
    if (!merged) {
        hbk_free(alloc, values);
        return NULL;
    }
    merged->values = values;
    memcpy(merged->inv_freq, m->inv_freq, (size_t)(m->config.head_dim / 2) * sizeof *m->inv_freq);
    char name[96];
    hbk_matrix w;
    for (hbk_int i = 0; hbk_tensor_at(&view, i, name, &w); i++) {
        hbk_lora_merge(values, &w, hbk__tensor_lora(a, name), 0, w.rows);
        values += w.rows * w.cols;
    }
    return merged;
}

HBK_DEF bool hbk_adapter_add(hbk_model *m, const hbk_adapter *a, double times, hbk_error *err)
{
    HBK_ASSERT(a->n_layers == m->config.n_layers);
    if (hbk__head_lora(a) && m->config.tied)
        return hbk_fail(err, HBK_ERROR_OPTION,
                        "the adapter corrects a head that is also the embedding: make a merged model");
    for (int round = 0; round < 2; round++) /* check all before the first is touched */
        for (hbk_int i = 0; i <= a->n_layers * HBK_N_SLOTS; i++) {
            const hbk_lora *l = &a->loras[i];
            int slot = hbk__lora_slot(a, i);
            const hbk_matrix *w = slot == HBK_LM_HEAD ? &m->head : &m->layers[i / HBK_N_SLOTS].w[slot];
            if (!l->a) continue;
            if (m->n_maps || w->dtype != HBK_REAL)
                return hbk_fail(err, HBK_ERROR_OPTION,
                                "weights of a file, or in %s, cannot be changed: make a merged model",
                                hbk_dtype_name(w->dtype));
            if (round)
                hbk__gemm(false, false, l->out, l->in, l->rank, (hbk_real)times * l->scale, l->b, l->rank,
                          l->a, l->in, 1, (hbk_real *)w->data, l->in);
        }
    return true;
}

/* ---- 12.11 writing GGUF -----------------------------------------------------

   The way back of 12.7, to what llama.cpp's own converter writes: norms and biases in F32, rows of q and k
   interleaved, Llama 3's scaling as a table of divisors. A matrix whose rows are no whole blocks of q8_0 is
   F16. Numbers pass through a panel on their way, so no buffer has the size of the file. An adapter's file
   has one alpha: where a scale is another than alpha / rank, B takes the quotient in. */

typedef struct hbk__gguf_item {
    char name[96];
    hbk_matrix from;
    const hbk_lora *lora; /* merged into it, or NULL */
    hbk_dtype type;       /* in the file */
    hbk_int interleave;   /* size of the heads whose rows change order, or 0 */
    bool vector;          /* one dimension */
    double factor;        /* of the numbers */
} hbk__gguf_item;

static void hbk__gguf_describe(hbk_gguf_writer *w, const hbk__gguf_item *it)
{
    hbk_gguf_tensor t;
    memset(&t, 0, sizeof t);
    t.name = it->name;
    t.type = hbk__st_type_name(it->type);
    t.n_dims = it->vector ? 1 : 2;
    t.shape[0] = it->vector ? it->from.rows * it->from.cols : it->from.rows;
    t.shape[1] = it->from.cols;
    hbk_gguf_put_tensor(w, &t);
}

/* n rows of the file's order, from row `first` on, as reals. */
static void hbk__gguf_rows(hbk_real *x, const hbk__gguf_item *it, hbk_int first, hbk_int n)
{
    const hbk_matrix *m = &it->from;
    if (!it->interleave) hbk_lora_merge(x, m, it->lora, first, n);
    for (hbk_int i = 0; it->interleave && i < n; i++)
        hbk_lora_merge(x + i * m->cols, m, it->lora, hbk__half_split(first + i, it->interleave), 1);
    for (hbk_int i = 0; it->factor != 1 && i < n * m->cols; i++) x[i] = (hbk_real)((double)x[i] * it->factor);
}

/* The numbers of one tensor. Blocks that are stored as the file wants them are looked at, but not packed
   anew: the file's bytes are theirs. */
static bool hbk__gguf_put_rows(hbk_gguf_writer *w, const hbk__gguf_item *it, hbk_allocator *alloc,
                               hbk_error *err)
{
    const hbk_matrix *m = &it->from;
    hbk_int step = hbk__panel_rows(m);
    size_t row_bytes = hbk_dtype_size(it->type, m->cols);
    bool blocks = it->type == m->dtype && hbk_dtype_block(it->type) > 1 && !it->lora;
    hbk_real *x = HBK__NEW(alloc, hbk_real, step * m->cols, err);
    char *packed = x && !blocks ? (char *)hbk_alloc(alloc, step, row_bytes, err) : NULL;
    bool ok = x && (packed || blocks);
    for (hbk_int row = 0; ok && row < m->rows; row += step) {
        hbk_int n = HBK__MIN(step, m->rows - row);
        hbk__gguf_rows(x, it, row, n);
        ok = hbk__pack_checked(packed, it->type, x, n * m->cols, it->name, w->path, err);
        if (packed && ok) hbk_gguf_put_data(w, packed, (size_t)n * row_bytes);
        for (hbk_int i = row; blocks && ok && i < row + n; i++) {
            hbk_int from = it->interleave ? hbk__half_split(i, it->interleave) : i;
            hbk_gguf_put_data(w, (const char *)m->data + (size_t)from * row_bytes, row_bytes);
        }
    }
    hbk_free(alloc, x);
    hbk_free(alloc, packed);
    return ok;
}

/* Describes and writes all items, and ends the writer in every case. */
static bool hbk__gguf_put_items(hbk_gguf_writer *w, const hbk__gguf_item *items, hbk_int n,
                                hbk_allocator *alloc, hbk_error *err)
{
    bool ok = true;
    for (hbk_int i = 0; i < n; i++) hbk__gguf_describe(w, &items[i]);
    for (hbk_int i = 0; ok && i < n; i++) ok = hbk__gguf_put_rows(w, &items[i], alloc, err);
    if (ok) return hbk_gguf_finish(w, err);
    hbk_gguf_discard(w);
    return false;
}

static void hbk__gguf_put_text(hbk_gguf_writer *w, const char *key, const char *s)
{
    hbk_gguf_put_string(w, key, s, strlen(s));
}

/* The keys of a configuration; the scaling of Llama 3 also in numbers of our own, for reading it back. */
static void hbk__gguf_put_config(hbk_gguf_writer *w, const hbk_config *c)
{
    const struct {
        const char *key;
        hbk_int x;
    } sizes[] = {
        {"llama.block_count", c->n_layers},          {"llama.context_length", c->context_length},
        {"llama.embedding_length", c->dim},          {"llama.feed_forward_length", c->ffn_dim},
        {"llama.attention.head_count", c->n_heads},  {"llama.attention.head_count_kv", c->n_kv_heads},
        {"llama.attention.key_length", c->head_dim}, {"llama.attention.value_length", c->head_dim},
        {"llama.rope.dimension_count", c->head_dim}, {"llama.vocab_size", c->vocab_size}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        hbk_gguf_put_int(w, sizes[i].key, HBK_GGUF_U32, sizes[i].x);
    hbk_gguf_put_real(w, "llama.attention.layer_norm_rms_epsilon", c->rms_norm_eps);
    hbk_gguf_put_real(w, "llama.rope.freq_base", c->rope_theta);
    if (c->rope_scaling == HBK_ROPE_LINEAR) {
        hbk__gguf_put_text(w, "llama.rope.scaling.type", "linear");
        hbk_gguf_put_real(w, "llama.rope.scaling.factor", c->rope_factor);
    }
    if (c->rope_scaling == HBK_ROPE_LLAMA3) {
        hbk_gguf_put_array(w, HBK__GGUF_LLAMA3, HBK_GGUF_F32, 4);
        hbk_gguf_add_real(w, c->rope_factor);
        hbk_gguf_add_real(w, c->rope_low_freq_factor);
        hbk_gguf_add_real(w, c->rope_high_freq_factor);
        hbk_gguf_add_real(w, (double)c->rope_original_context);
    }
}

/* bos, and what ends a text under the three keys that there are for it. */
static void hbk__gguf_put_ids(hbk_gguf_writer *w, const hbk_config *c, int32_t bos, int32_t eos)
{
    static const char *const ends[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    int k = 0;
    if (bos >= 0) hbk_gguf_put_int(w, "tokenizer.ggml.bos_token_id", HBK_GGUF_U32, bos);
    if (eos >= 0) hbk_gguf_put_int(w, ends[k++], HBK_GGUF_U32, eos);
    for (hbk_int i = 0; i < c->n_eos && k < 3; i++)
        if (c->eos[i] != eos) hbk_gguf_put_int(w, ends[k++], HBK_GGUF_U32, c->eos[i]);
}

/* A tokenizer that came from a GGUF file and has a piece for every row: its keys, as they are. */
static bool hbk__gguf_copy_tokenizer(hbk_gguf_writer *w, const hbk_tokenizer *tok, hbk_error *err)
{
    hbk_gguf *g = hbk_gguf_open(tok->file, tok->alloc, err);
    for (hbk_int i = 0; g && i < hbk_gguf_key_count(g); i++)
        if (!strncmp(hbk_gguf_key_at(g, i)->key, "tokenizer.", 10))
            hbk_gguf_put_value(w, hbk_gguf_key_at(g, i));
    hbk_gguf_close(g);
    return g != NULL;
}

/* What a SentencePiece reader merges by: each piece's score or, of a vocabulary with ranked merges, the first
   rank that makes the piece, negative; (n) scores, zeroed. */
static bool hbk__gguf_scores(const hbk_tokenizer *tok, hbk_real *scores, hbk_int n, hbk_error *err)
{
    hbk_int n_rules = 0;
    hbk__rule *rules = tok->sentencepiece ? NULL : hbk__tokenizer_rules(tok, &n_rules, err);
    if (!tok->sentencepiece && !rules) return false;
    for (hbk_int id = 0; id < n && id < tok->vocab.n; id++)
        scores[id] = (hbk_real)(tok->sentencepiece ? tok->vocab.pieces[id].score : -(float)n_rules - 1);
    for (hbk_int i = n_rules - 1; i >= 0; i--) /* from the last: the first rank stays */
        if (rules[i].id < n) scores[rules[i].id] = (hbk_real)(-1 - i);
    hbk_free(tok->alloc, rules);
    return true;
}

/* Pieces and their types; ids without a piece are filled up to the model's n. */
static void hbk__gguf_put_pieces(hbk_gguf_writer *w, const hbk_tokenizer *tok, hbk_int n, int32_t *kinds)
{
    hbk_gguf_put_array(w, "tokenizer.ggml.tokens", HBK_GGUF_STRING, n);
    for (hbk_int id = 0; id < n; id++) {
        const hbk__piece *p = id < tok->vocab.n ? &tok->vocab.pieces[id] : NULL;
        char filler[32];
        snprintf(filler, sizeof filler, "[PAD%lld]", (long long)id);
        bool there = p && p->kind != HBK__PIECE_NONE;
        const char *s = there ? hbk__vocab_piece(&tok->vocab, id) : filler;
        hbk_gguf_add_string(w, s, there ? (size_t)p->len : strlen(filler));
        kinds[id] = there ? p->kind : HBK__PIECE_UNUSED;
    }
    for (hbk_int i = 0; i < tok->n_added; i++) { /* added, but no special token: written by the user */
        int32_t *kind = tok->added[i].id < n ? &kinds[tok->added[i].id] : NULL;
        if (kind && *kind == HBK__PIECE_NORMAL) *kind = HBK__PIECE_USER;
    }
    hbk_gguf_put_array(w, "tokenizer.ggml.token_type", HBK_GGUF_I32, n);
    for (hbk_int id = 0; id < n; id++) hbk_gguf_add_int(w, kinds[id]);
}

/* "left right", in the order of their ranks. */
static bool hbk__gguf_put_merges(hbk_gguf_writer *w, const hbk_tokenizer *tok, hbk_error *err)
{
    hbk_int n = 0;
    hbk__rule *rules = hbk__tokenizer_rules(tok, &n, err);
    hbk_text pair;
    memset(&pair, 0, sizeof pair);
    pair.alloc = tok->alloc;
    if (rules) hbk_gguf_put_array(w, "tokenizer.ggml.merges", HBK_GGUF_STRING, n);
    for (hbk_int i = 0; rules && i < n; i++) {
        hbk_text_clear(&pair);
        hbk_text_add(&pair, hbk__vocab_piece(&tok->vocab, rules[i].left));
        hbk_text_append(&pair, " ", 1);
        hbk_text_add(&pair, hbk__vocab_piece(&tok->vocab, rules[i].right));
        hbk_gguf_add_string(w, hbk_text_string(&pair), pair.len);
    }
    bool ok = rules && hbk_text_ok(&pair, err);
    hbk_text_free(&pair);
    hbk_free(tok->alloc, rules);
    return ok;
}

/* The vocabulary itself: pieces, types, and scores or merges. */
static bool hbk__gguf_put_vocabulary(hbk_gguf_writer *w, const hbk_tokenizer *tok, hbk_int n, bool bytes,
                                     hbk_error *err)
{
    int32_t *kinds = HBK__NEW(tok->alloc, int32_t, n, err);
    hbk_real *scores = kinds && !bytes ? HBK__NEW(tok->alloc, hbk_real, n, err) : NULL;
    bool ok = kinds && (bytes || (scores && hbk__gguf_scores(tok, scores, n, err)));
    if (ok) hbk__gguf_put_pieces(w, tok, n, kinds);
    if (ok && bytes) ok = hbk__gguf_put_merges(w, tok, err);
    if (ok && !bytes) {
        hbk_gguf_put_array(w, "tokenizer.ggml.scores", HBK_GGUF_F32, n);
        for (hbk_int id = 0; id < n; id++) hbk_gguf_add_real(w, (double)scores[id]);
        int prefix = tok->metaspace ? tok->meta_prefix : tok->prefix;
        hbk_gguf_put_bool(w, "tokenizer.ggml.add_space_prefix", prefix != HBK__PREFIX_NEVER);
        if (tok->collapse) hbk_gguf_put_bool(w, "tokenizer.ggml.remove_extra_whitespaces", true);
    }
    hbk_free(tok->alloc, scores);
    hbk_free(tok->alloc, kinds);
    return ok;
}

static bool hbk__gguf_put_tokenizer(hbk_gguf_writer *w, const hbk_tokenizer *tok, const hbk_config *c,
                                    hbk_error *err)
{
    const char *pre = hbk__tokenizer_pre(tok);
    if (tok->vocab.n > c->vocab_size)
        return hbk_fail(err, HBK_ERROR_SHAPE,
                        "the tokenizer has %lld pieces, the model's embedding %lld rows",
                        (long long)tok->vocab.n, (long long)c->vocab_size);
    bool gguf = tok->file[0] && hbk__is_gguf(tok->file);
    if (gguf && tok->vocab.n == c->vocab_size) return hbk__gguf_copy_tokenizer(w, tok, err);
    if (!pre)
        return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, tok->file, 0,
                           "GGUF has no name for the way in which this tokenizer cuts words");
    bool bytes = *pre != 0;
    hbk__gguf_put_text(w, "tokenizer.ggml.model", bytes ? "gpt2" : "llama");
    hbk__gguf_put_text(w, "tokenizer.ggml.pre", bytes ? pre : "default");
    if (!hbk__gguf_put_vocabulary(w, tok, c->vocab_size, bytes, err)) return false;
    hbk__gguf_put_ids(w, c, tok->bos >= 0 ? tok->bos : c->bos,
                      tok->eos >= 0 || !c->n_eos ? tok->eos : c->eos[0]);
    if (tok->unk >= 0) hbk_gguf_put_int(w, "tokenizer.ggml.unknown_token_id", HBK_GGUF_U32, tok->unk);
    hbk_gguf_put_bool(w, "tokenizer.ggml.add_bos_token", hbk_tokenizer_adds_bos(tok));
    hbk_text chat;
    memset(&chat, 0, sizeof chat);
    chat.alloc = tok->alloc;
    bool ok = gguf              ? hbk__gguf_chat_template(tok->file, &chat, err)
              : tok->folder[0] ? hbk__chat_template(tok->folder, &chat, err)
                               : true;
    if (ok && chat.len) hbk_gguf_put_string(w, "tokenizer.chat_template", chat.data, chat.len);
    hbk_text_free(&chat);
    return ok;
}

/* Everything before the tensors of a model. */
static bool hbk__gguf_put_keys(hbk_gguf_writer *w, const hbk_model *m, const hbk_tokenizer *tok, hbk_dtype t,
                               hbk_error *err)
{
    const char *name = hbk__base_name(w->path), *end = strstr(name, ".gguf"); /* the file's, as far as that */
    size_t n = end ? (size_t)(end - name) : strlen(name);
    int file_type = t == HBK_F32 ? 0 : t == HBK_F16 ? 1 : t == HBK_Q8_0 ? 7 : 32; /* llama.cpp's numbers */
    hbk__gguf_put_text(w, "general.architecture", "llama");
    hbk__gguf_put_text(w, "general.type", "model");
    hbk_gguf_put_string(w, "general.name", name, n);
    hbk_gguf_put_int(w, "general.file_type", HBK_GGUF_U32, file_type);
    hbk_gguf_put_int(w, "general.quantization_version", HBK_GGUF_U32, 2);
    hbk__gguf_put_config(w, &m->config);
    if (tok) return hbk__gguf_put_tokenizer(w, tok, &m->config, err);
    hbk__gguf_put_text(w, "tokenizer.ggml.model", "none"); /* llama.cpp's word for it */
    hbk__gguf_put_ids(w, &m->config, m->config.bos, m->config.n_eos ? m->config.eos[0] : -1);
    return true;
}

/* Item i of a model: tensor i, or false after the last. */
static bool hbk__gguf_model_item(hbk__gguf_item *it, const hbk_model *m, const hbk_adapter *a, hbk_int i,
                                 hbk_dtype t)
{
    char name[96];
    hbk__place p;
    if (!hbk_tensor_at(m, i, name, &it->from)) return false;
    hbk__place_at((hbk_model *)(uintptr_t)m, i, &p, name); /* only read */
    hbk__translate(it->name, name, 1);
    it->lora = hbk__tensor_lora(a, name);
    bool fits = it->from.cols % hbk_dtype_block(t) == 0;
    it->vector = p.vector != NULL;
    it->type = p.vector ? HBK_F32 : fits ? t : HBK_F16;
    it->interleave = p.slot == HBK_Q || p.slot == HBK_K ? m->config.head_dim : 0;
    it->factor = 1;
    if (p.vector) it->from = hbk__matrix(it->from.cols, 1, *p.vector); /* an element is what a row is */
    return true;
}

/* The divisors of Llama 3's scaling as an item; values (D) is room for them. */
static void hbk__gguf_rope_item(hbk__gguf_item *it, const hbk_config *c, double *frequencies,
                                hbk_real *values)
{
    hbk_config plain = *c;
    hbk_int half = c->head_dim / 2;
    plain.rope_scaling = HBK_ROPE_DEFAULT;
    hbk__rope_frequencies(frequencies, &plain);
    hbk__rope_frequencies(frequencies + half, c);
    for (hbk_int i = 0; i < half; i++) values[i] = (hbk_real)(frequencies[i] / frequencies[half + i]);
    snprintf(it->name, sizeof it->name, HBK__GGUF_ROPE);
    it->from = hbk__matrix(half, 1, values);
    it->type = HBK_F32;
    it->vector = true;
    it->factor = 1;
}

HBK_DEF bool hbk_model_save_gguf(const hbk_model *m, const hbk_adapter *a, const hbk_tokenizer *tok,
                                 const char *path, hbk_dtype t, hbk_error *err)
{
    hbk_int n = 0;
    hbk_matrix x;
    char name[96];
    hbk_model view = hbk__merge_view(m, a);
    const hbk_config *c = &m->config;
    if (t != HBK_F32 && t != HBK_F16 && t != HBK_BF16 && t != HBK_Q8_0)
        return hbk_fail(err, HBK_ERROR_OPTION, "a GGUF model is saved as f32, f16, bf16 or q8_0, not as %s",
                        hbk_dtype_name(t));
    while (hbk_tensor_at(&view, n, name, &x)) n++;
    hbk__gguf_item *items = HBK__NEW(m->alloc, hbk__gguf_item, n + 1, err);
    double *frequencies = items ? HBK__NEW(m->alloc, double, c->head_dim, err) : NULL;
    hbk_real *divisors = frequencies ? HBK__NEW(m->alloc, hbk_real, c->head_dim, err) : NULL;
    hbk_gguf_writer *w = divisors ? hbk_gguf_create(path, m->alloc, err) : NULL;
    for (hbk_int i = 0; w && i < n; i++) hbk__gguf_model_item(&items[i], &view, a, i, t);
    if (w && c->rope_scaling == HBK_ROPE_LLAMA3) hbk__gguf_rope_item(&items[n++], c, frequencies, divisors);
    bool ok = w && hbk__gguf_put_keys(w, m, tok, t, err);
    if (ok)
        ok = hbk__gguf_put_items(w, items, n, m->alloc, err);
    else
        hbk_gguf_discard(w);
    hbk_free(m->alloc, divisors);
    hbk_free(m->alloc, frequencies);
    hbk_free(m->alloc, items);
    return ok;
}

HBK_DEF bool hbk_adapter_save_gguf(const hbk_adapter *a, const hbk_config *c, const char *path,
                                   hbk_error *err)
{
    hbk_int n = 0, last = a->n_layers * HBK_N_SLOTS;
    double alpha = (double)(float)a->alpha;
    if (alpha == 0) alpha = 1;
    if (a->loras[last].a && c->tied)
        return hbk_fail(err, HBK_ERROR_UNSUPPORTED,
                        "an adapter of the head of a tied model has no tensor in "
                        "GGUF to be bound to: merge it into the model instead");
    hbk__gguf_item *items = HBK__NEW(a->alloc, hbk__gguf_item, 2 * (last + 1), err);
    hbk_gguf_writer *w = items ? hbk_gguf_create(path, a->alloc, err) : NULL;
    for (hbk_int i = 0; w && i <= last; i++) {
        const hbk_lora *l = &a->loras[i];
        int slot = hbk__lora_slot(a, i);
        char base[64];
        if (!l->a) continue;
        hbk__gguf_lora_base(base, a, i);
        hbk__gguf_item *A = &items[n++], *B = &items[n++];
        double quotient = (double)l->scale * (double)l->rank / alpha;
        snprintf(A->name, sizeof A->name, "%s.lora_a", base);
        snprintf(B->name, sizeof B->name, "%s.lora_b", base);
        A->from = hbk__matrix(l->rank, l->in, l->a);
        B->from = hbk__matrix(l->out, l->rank, l->b);
        A->factor = 1;
        B->factor = fabs(quotient - 1) < 1e-6 ? 1 : quotient; /* the scale is a float: 1 up to its last bit */
        B->interleave = slot == HBK_Q || slot == HBK_K ? c->head_dim : 0;
    }
    bool ok = w != NULL;
    if (w) {
        hbk__gguf_put_text(w, "general.type", "adapter");
        hbk__gguf_put_text(w, "general.architecture", "llama");
        hbk__gguf_put_text(w, "adapter.type", "lora");
        hbk_gguf_put_real(w, "adapter.lora.alpha", alpha);
        ok = hbk__gguf_put_items(w, items, n, a->alloc, err);
    }
    hbk_free(a->alloc, items);
    return ok;
}

HBK__GLUE_END

/* ==== 13  GENERATION =========================================================

   Keys and values of past tokens are kept, so that a new token costs one pass over the weights. Reading
   the weights is what such a pass costs, hence many sequences take their steps together:

       feed   any mix of whole prompts and single tokens, packed into one batch per pass
       slot   one sequence's cache; a slot that finishes takes the next request at once
       fork   a beginning that prompts share (a rubric, a conversation) is computed once, in a cache beside
              the slots'; they do not copy it but are linked to it, and read it together (9.4)
       run    slots of one adapter stand together in a pass; the base's products take all slots

   Caches are (layer, slot, key/value head, position, D), in reals or bf16: a step reads a head's positions
   one after the other, as memory gives them fastest (with the heads of a position side by side: half the
   bytes per second). Beside them stand the ids that they were computed from: what a slot holds is known
   without asking the caller. A slot's first `linked` positions are those of the spare cache, the one behind
   the last slot; only the ids stand in both. Before the spare loses positions, slots that are linked to them
   get copies.

   How the next id is drawn, from logits z over the vocabulary:

       z_i <- z_i / r or z_i r, for ids that occurred       repetition_penalty, Keskar et al. 2019
       p    = softmax(z / T)                                temperature
       keep the k most likely; the smallest set of mass P of those; p_i >= m max p       top_k, top_p, min_p

   Source of the nucleus: Holtzman et al. 2020; of min_p: Nguyen et al. 2024. */

struct hbk_session {
    const hbk_model *m;
    const hbk_adapter *adapter; /* its own, or NULL */
    hbk_allocator *alloc;
    hbk_int n_slots, max_length;
    hbk_int n_caches;        /* n_slots, and where there are several one more, for a shared beginning */
    hbk_int *length;         /* (n_slots + 1) */
    hbk_int *linked;         /* (n_slots + 1) first positions of each slot that are the spare's; of it: 0 */
    const hbk_adapter **of;  /* (n_slots + 1) whose each slot is; NULL: the base alone */
    hbk_int rank;            /* the largest that b.xa has room for */
    int32_t *held;           /* (n_caches, max_length): the ids behind the caches */
    hbk_dtype cache;         /* HBK_REAL or HBK_BF16, of */
    char *keys, *values;     /* (L, n_caches, K, max_length, D) */
    hbk__block_acts b;       /* buffers of one layer, (HBK__FEED_TOKENS) rows */
    hbk_real *block, *y, *norm, *act, *rope, *work, *panel, *head_x;
    const hbk_int *serving; /* (n_slots) while hbk_generate runs: each slot's request, -1: free; else NULL */
    hbk_span *spans; /* per pass */
    int32_t *tokens, *pos;
    hbk_int *slot_of, *rows, *row_out; /* per span: slot; per wanted row: where it is, where it goes */
    hbk__lora_run *runs;                    /* (2 HBK__FEED_TOKENS) of a pass, and of its wanted rows */
    int threads;
};
#define HBK__FEED_TOKENS ((hbk_int)512) /* rows of a pass; longer feeds take several */

static hbk_int hbk__session_layout(hbk_session *s, hbk_real *at)
{
    const hbk_config *c = &s->m->config;
    hbk_int N = HBK__FEED_TOKENS, C = c->dim, Q = c->n_heads * c->head_dim, KV = c->n_kv_heads * c->head_dim;
    hbk_int total = 0;
    s->b.x = hbk__take(&at, &total, N * C);
    s->b.q = hbk__take(&at, &total, N * Q);
    s->b.k = hbk__take(&at, &total, N * KV);
    s->b.v = hbk__take(&at, &total, N * KV);
    s->b.att = hbk__take(&at, &total, N * Q);
    s->b.h = hbk__take(&at, &total, N * C);
    s->b.gate = hbk__take(&at, &total, N * c->ffn_dim);
    s->b.up = hbk__take(&at, &total, N * c->ffn_dim);
    s->y = hbk__take(&at, &total, N * C);
    s->norm = hbk__take(&at, &total, N * C);
    s->act = hbk__take(&at, &total, N * c->ffn_dim);
    s->rope = hbk__take(&at, &total, N * c->head_dim);
    s->work = hbk__take(&at, &total, hbk_attention_work(s->max_length, c->head_dim, s->threads));
    s->panel = hbk__take(&at, &total, HBK__MAX(HBK_PANEL, HBK__MAX(HBK__MAX(C, c->ffn_dim), Q)));
    s->head_x = hbk__take(&at, &total, N * C);
    return total;
}

HBK_DEF void hbk_session_free(hbk_session *s)
{
    if (!s) return;
    hbk_free(s->alloc, s->length);
    hbk_free(s->alloc, s->linked);
    hbk_free(s->alloc, s->of);
    hbk_free(s->alloc, s->b.xa[0]);
    hbk_free(s->alloc, s->held);
    hbk_free(s->alloc, s->keys);
    hbk_free(s->alloc, s->values);
    hbk_free(s->alloc, s->block);
    hbk_free(s->alloc, s->spans);
    hbk_free(s->alloc, s->tokens);
    hbk_free(s->alloc, s->pos);
    hbk_free(s->alloc, s->slot_of);
    hbk_free(s->alloc, s->rows);
    hbk_free(s->alloc, s->row_out);
    hbk_free(s->alloc, s->runs);
    hbk_free(s->alloc, s);
}

/* Makes room for the adapter, if it is one of this base. NULL needs none. */
static bool hbk__session_room(hbk_session *s, const hbk_adapter *adapter, hbk_error *err)
{
    hbk_int rank = hbk__max_rank(adapter);
    if (adapter && !hbk__adapter_fits(adapter, &s->m->config, err)) return false;
    if (rank <= s->rank) return true;
    void *xa = hbk_realloc(s->alloc, s->b.xa[0], HBK__FEED_TOKENS * rank, sizeof(hbk_real), err);
    if (!xa) return false;
    for (int i = 0; i < HBK_N_SLOTS; i++) s->b.xa[i] = (hbk_real *)xa; /* nothing is kept for a backward */
    s->rank = rank;
    return true;
}

/* What is asked for by name, or the session's own. */
static const hbk_adapter *hbk__adapter_for(const hbk_session *s, const hbk_adapter *named)
{
    return named ? named : s->adapter;
}

/* The caches are not zeroed: pages that no token reaches are never the process's own. */
static bool hbk__session_caches(hbk_session *s, hbk_error *err)
{
    const hbk_config *c = &s->m->config;
    hbk_int tokens = s->n_caches * s->max_length, n = tokens * c->n_layers * c->n_kv_heads * c->head_dim;
    size_t size = hbk_dtype_size(s->cache, 1);
    s->held = (int32_t *)hbk_realloc(s->alloc, NULL, tokens, sizeof *s->held, err);
    if (s->held) s->keys = (char *)hbk_realloc(s->alloc, NULL, n, size, err);
    if (s->keys) s->values = (char *)hbk_realloc(s->alloc, NULL, n, size, err);
    return s->values != NULL;
}

HBK_DEF hbk_session *hbk_session_new(const hbk_model *m, const hbk_adapter *adapter, hbk_int n_slots,
                                     hbk_int max_length, hbk_dtype cache, hbk_allocator *alloc,
                                     hbk_error *err)
{
    hbk_int bytes;
    if (cache != HBK_F32 && cache != HBK_REAL && cache != HBK_BF16) {
        hbk_fail(err, HBK_ERROR_OPTION, "a cache of %s is not possible: expected f32 or bf16",
                 hbk_dtype_name(cache));
        return NULL;
    }
    if (n_slots < 1 || max_length < 1 || max_length > INT32_MAX ||
        !hbk__mul(&bytes, n_slots + 1, max_length) ||
        !hbk__mul(&bytes, bytes, 16 * m->config.n_layers * m->config.n_kv_heads * m->config.head_dim)) {
        hbk_fail(err, HBK_ERROR_RANGE, "a session of %lld sequences of %lld tokens is not possible",
                 (long long)n_slots, (long long)max_length);
        return NULL;
    }
    hbk_session *s = HBK__NEW(alloc, hbk_session, 1, err);
    if (!s) return NULL;
    s->m = m;
    s->adapter = adapter;
    s->alloc = alloc;
    s->n_slots = n_slots;
    s->n_caches = n_slots > 1 ? n_slots + 1 : 1; /* one slot shares with itself: see hbk__admit */
    s->max_length = max_length;
    s->cache = cache == HBK_BF16 ? HBK_BF16 : HBK_REAL;
    s->threads = hbk__n_threads();
    hbk_int N = HBK__FEED_TOKENS;
    s->length = HBK__NEW(alloc, hbk_int, n_slots + 1, err);
    if (s->length) s->linked = HBK__NEW(alloc, hbk_int, n_slots + 1, err);
    if (s->linked) s->of = HBK__NEW(alloc, const hbk_adapter *, n_slots + 1, err);
    if (s->of && hbk__session_room(s, adapter, err) && hbk__session_caches(s, err))
        s->block = HBK__NEW(alloc, hbk_real, hbk__session_layout(s, NULL), err);
    if (s->block) s->spans = HBK__NEW(alloc, hbk_span, N, err);
    if (s->spans) s->tokens = HBK__NEW(alloc, int32_t, N, err);
    if (s->tokens) s->pos = HBK__NEW(alloc, int32_t, N, err);
    if (s->pos) s->slot_of = HBK__NEW(alloc, hbk_int, N, err);
    if (s->slot_of) s->rows = HBK__NEW(alloc, hbk_int, N, err);
    if (s->rows) s->row_out = HBK__NEW(alloc, hbk_int, N, err);
    if (s->row_out) s->runs = HBK__NEW(alloc, hbk__lora_run, 2 * N, err);
    if (!s->runs) {
        hbk_session_free(s);
        return NULL;
    }
    hbk__session_layout(s, s->block);
    for (hbk_int slot = 0; slot <= n_slots; slot++) s->of[slot] = adapter;
    return s;
}

HBK_DEF bool hbk_session_adapt(hbk_session *s, hbk_int slot, const hbk_adapter *adapter, hbk_error *err)
{
    HBK_ASSERT(slot >= 0 && slot < s->n_slots);
    if (s->length[slot] > 0 && s->of[slot] != adapter)
        return hbk_fail(err, HBK_ERROR_OPTION,
                        "slot %lld holds %lld tokens of another adapter: rewind it to 0 before it takes this "
                        "one",
                        (long long)slot, (long long)s->length[slot]);
    if (!hbk__session_room(s, adapter, err)) return false;
    s->of[slot] = adapter;
    return true;
}

HBK_DEF bool hbk_session_switch(hbk_session *s, const hbk_adapter *adapter, hbk_error *err)
{
    if (!hbk__session_room(s, adapter, err)) return false;
    s->adapter = adapter;
    for (hbk_int slot = 0; slot <= s->n_slots; slot++) {
        s->length[slot] = s->linked[slot] = 0;
        s->of[slot] = adapter;
    }
    return true;
}

HBK_DEF hbk_int hbk_session_length(const hbk_session *s, hbk_int slot)
{
    return s->length[slot];
}

/* Where in the caches, in bytes, a slot's keys of one layer and key/value head begin. */
static size_t hbk__cache_at(const hbk_session *s, hbk_int layer, hbk_int slot, hbk_int kv)
{
    hbk_int head = (layer * s->n_caches + slot) * s->m->config.n_kv_heads + kv;
    return hbk_dtype_size(s->cache, head * s->max_length * s->m->config.head_dim);
}

/* Positions begin .. end-1 of a cache become those of another one. */
static void hbk__copy_cache(hbk_session *s, hbk_int to, hbk_int from, hbk_int begin, hbk_int end)
{
    const hbk_config *c = &s->m->config;
    if (begin >= end) return;
    size_t at = hbk_dtype_size(s->cache, begin * c->head_dim);
    size_t bytes = hbk_dtype_size(s->cache, (end - begin) * c->head_dim);
    for (hbk_int l = 0; l < c->n_layers; l++)
        for (hbk_int kv = 0; kv < c->n_kv_heads; kv++) {
            size_t x = hbk__cache_at(s, l, to, kv) + at, y = hbk__cache_at(s, l, from, kv) + at;
            memcpy(s->keys + x, s->keys + y, bytes);
            memcpy(s->values + x, s->values + y, bytes);
        }
}

/* Leaves the spare its first `length` positions. What slots are linked to beyond them they get as copies. */
static void hbk__rewind_spare(hbk_session *s, hbk_int length)
{
    for (hbk_int slot = 0; slot < s->n_slots; slot++) {
        hbk__copy_cache(s, slot, s->n_slots, length, s->linked[slot]);
        s->linked[slot] = HBK__MIN(s->linked[slot], length);
    }
    s->length[s->n_slots] = length;
}

HBK_DEF void hbk_session_rewind(hbk_session *s, hbk_int slot, hbk_int length)
{
    HBK_ASSERT(slot >= 0 && slot < s->n_slots && length >= 0 && length <= s->length[slot]);
    s->length[slot] = length;
    s->linked[slot] = HBK__MIN(s->linked[slot], length);
}

/* Forks a slot or the spare. */
HBK_DEF void hbk_session_fork(hbk_session *s, hbk_int to, hbk_int from, hbk_int length)
{
    HBK_ASSERT(to >= 0 && to < s->n_slots && from >= 0 && from < s->n_caches);
    HBK_ASSERT(to != from && length >= 0 && length <= s->length[from]);
    hbk_int linked = from == s->n_slots ? length : HBK__MIN(s->linked[from], length);
    hbk__copy_cache(s, to, from, linked, length);
    memcpy(s->held + to * s->max_length, s->held + from * s->max_length, (size_t)length * sizeof *s->held);
    s->length[to] = length;
    s->linked[to] = linked;
    s->of[to] = s->of[from];
}

/* How many first ids of both are the same. */
static hbk_int hbk__common_ids(const int32_t *a, hbk_int n_a, const int32_t *b, hbk_int n_b)
{
    hbk_int k = 0;
    while (k < n_a && k < n_b && a[k] == b[k]) k++;
    return k;
}

/* How many of the first ids of ids[0..n-1] the slot holds, computed with this adapter. */
static hbk_int hbk__held_ids(const hbk_session *s, hbk_int slot, const hbk_adapter *adapter,
                             const int32_t *ids, hbk_int n)
{
    if (s->of[slot] != adapter) return 0;
    return hbk__common_ids(s->held + slot * s->max_length, s->length[slot], ids, n);
}

/* n reals as the caches keep them. */
static void hbk__keep(hbk_session *s, char *to, const hbk_real *x, hbk_int n)
{
    if (s->cache == HBK_BF16) hbk_pack(to, HBK_BF16, x, n);
    else memcpy(to, x, (size_t)n * sizeof *x);
}

/* Puts the keys and values of a span's tokens into the slot's cache. */
static void hbk__keep_keys(hbk_session *s, hbk_int layer, hbk_int slot, const hbk_span *p)
{
    hbk_int K = s->m->config.n_kv_heads, D = s->m->config.head_dim;
    for (hbk_int kv = 0; kv < K; kv++) {
        size_t head = hbk__cache_at(s, layer, slot, kv);
        for (hbk_int t = 0; t < p->T; t++) {
            size_t to = head + hbk_dtype_size(s->cache, (p->past + t) * D);
            hbk_int from = ((p->q_start + t) * K + kv) * D;
            hbk__keep(s, s->keys + to, s->b.k + from, D);
            hbk__keep(s, s->values + to, s->b.v + from, D);
        }
    }
}

/* Where the keys or values of a span lie: its own, and those of the beginning that it shares. */
static void hbk__find_caches(const hbk_session *s, hbk_int layer, hbk_int slot, hbk_span *p)
{
    size_t own = hbk__cache_at(s, layer, slot, 0), spare = hbk__cache_at(s, layer, s->n_slots, 0);
    p->k = s->keys + own;
    p->v = s->values + own;
    p->shared = s->linked[slot];
    p->shared_k = p->shared ? s->keys + spare : NULL;
    p->shared_v = p->shared ? s->values + spare : NULL;
    p->row = s->m->config.head_dim;
    p->head = s->max_length * p->row;
    p->dtype = s->cache;
}

/* Runs one packed pass of N rows in n_spans spans whose tokens, slots and positions are set, and writes
   the logits of n_rows wanted rows. */
static void hbk__session_pass(hbk_session *s, hbk_int N, hbk_int n_spans, hbk_int n_rows, hbk_real *logits)
{
    const hbk_config *c = &s->m->config;
    hbk_int C = c->dim, V = c->vocab_size;
    hbk__env e;
    memset(&e, 0, sizeof e);
    e.m = s->m;
    e.runs = s->runs;
    e.head_runs = s->runs + HBK__FEED_TOKENS;
    for (hbk_int i = 0; i < n_spans; i++)
        hbk__add_run(s->runs, &e.n_runs, s->spans[i].T, s->of[s->slot_of[i]], NULL);
    e.panel = s->panel;
    hbk_embed_forward(s->b.x, &s->m->embed, s->tokens, N);
    hbk_rope_table(s->rope, s->pos, s->m->inv_freq, N, c->head_dim);
    for (hbk_int l = 0; l < c->n_layers; l++) {
        hbk__block_in(&e, l, &s->b, s->norm, s->rope, N);
        for (hbk_int i = 0; i < n_spans; i++) {
            hbk_span *p = &s->spans[i];
            hbk__keep_keys(s, l, s->slot_of[i], p);
            hbk__find_caches(s, l, s->slot_of[i], p);
        }
        hbk_attention_forward(s->b.att, NULL, s->b.q, s->spans, n_spans, c->n_heads, c->n_kv_heads,
                              c->head_dim, s->work, s->threads);
        hbk__block_out(&e, l, &s->b, s->y, s->norm, s->act, N);
        hbk_real *t = s->b.x; /* the layer's result is the next one's input */
        s->b.x = s->y;
        s->y = t;
    }
    for (hbk_int i = 0; i < n_rows; i++)
        memcpy(s->head_x + i * C, s->b.x + s->rows[i] * C, (size_t)C * sizeof *s->head_x);
    hbk_rms_norm_forward(s->norm, s->head_x, s->m->final_norm, n_rows, C, c->rms_norm_eps);
    for (hbk_int i = 0, n; i < n_rows; i += n) { /* runs of rows that also lie together in the result */
        for (n = 1; i + n < n_rows && s->row_out[i + n] == s->row_out[i] + n; n++) {
        }
        hbk__head_forward(&e, logits + s->row_out[i] * V, s->norm + i * C, s->rows + i, n, s->b.xa[0], 0);
    }
}

static bool hbk__ids_known(const hbk_session *s, const int32_t *ids, hbk_int n, hbk_error *err)
{
    for (hbk_int i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= s->m->config.vocab_size)
            return hbk_fail(err, HBK_ERROR_RANGE,
                            "token %lld is id %d, expected 0 to %lld; is this the model's own tokenizer?",
                            (long long)i, (int)ids[i], (long long)s->m->config.vocab_size - 1);
    return true;
}

/* hbk_session_feed for feeds that are known to fit; logits after each of the last `last` tokens of a feed. */
static void hbk__feed(hbk_session *s, const hbk_feed *feeds, hbk_int n_feeds, hbk_int last, hbk_real *logits)
{
    hbk_int N = 0, n_spans = 0, n_rows = 0, out = 0;
    for (hbk_int f = 0; f < n_feeds; f++)
        for (hbk_int i = 0; i < feeds[f].n;) { /* the next piece of this feed that fits into the pass */
            hbk_int slot = feeds[f].slot, n = HBK__MIN(feeds[f].n - i, HBK__FEED_TOKENS - N);
            hbk_span *p = &s->spans[n_spans];
            p->q_start = N;
            p->T = n;
            p->past = s->length[slot];
            s->slot_of[n_spans++] = slot;
            for (hbk_int j = 0; j < n; j++, i++, N++) {
                s->tokens[N] = s->held[slot * s->max_length + p->past + j] = feeds[f].tokens[i];
                s->pos[N] = (int32_t)(p->past + j);
                if (i < feeds[f].n - last) continue;
                s->rows[n_rows] = N;
                s->row_out[n_rows++] = out++;
            }
            s->length[slot] += n;
            if (N < HBK__FEED_TOKENS && !(f + 1 == n_feeds && i == feeds[f].n)) continue;
            hbk__session_pass(s, N, n_spans, n_rows, logits);
            N = n_spans = n_rows = 0;
        }
}

HBK_DEF bool hbk_session_feed(hbk_session *s, const hbk_feed *feeds, hbk_int n_feeds, bool all,
                              hbk_real *logits, hbk_error *err)
{
    for (hbk_int i = 1; i < n_feeds; i++) /* two feeds of one slot would be written to the same places */
        for (hbk_int k = 0; k < i; k++) HBK_ASSERT(feeds[i].slot != feeds[k].slot);
    for (hbk_int f = 0; f < n_feeds; f++) {
        const hbk_feed *p = &feeds[f];
        HBK_ASSERT(p->slot >= 0 && p->slot < s->n_slots && p->n >= 1);
        if (s->length[p->slot] + p->n > s->max_length)
            return hbk_fail(err, HBK_ERROR_RANGE,
                            "%lld tokens after %lld exceed the session's %lld per sequence", (long long)p->n,
                            (long long)s->length[p->slot], (long long)s->max_length);
        if (!hbk__ids_known(s, p->tokens, p->n, err)) return false;
    }
    hbk__feed(s, feeds, n_feeds, all ? s->max_length : 1, logits);
    return true;
}

/* ---- sampling ------------------------------------------------------------------ */

HBK_DEF hbk_sampling hbk_sampling_defaults(void)
{
    hbk_sampling o = {0.7, 0.9, 0, 512, -1, 0, 1};
    return o;
}

HBK__CLONES
static hbk_real hbk__largest(const hbk_real *x, hbk_int n)
{
    hbk_real max = x[0];
#pragma omp simd reduction(max : max)
    for (hbk_int i = 0; i < n; i++) max = x[i] > max ? x[i] : max;
    return max;
}

/* The first of them: its value by vectors, then its place. */
static hbk_int hbk__likeliest(const hbk_real *logits, hbk_int V)
{
    hbk_real max = hbk__largest(logits, V);
    hbk_int best = 0;
    while (best < V && !(logits[best] >= max)) best++;
    return best < V ? best : 0; /* logits that are no numbers have none */
}

static int hbk__by_probability(const void *x, const void *y)
{
    const hbk_candidate *a = (const hbk_candidate *)x, *b = (const hbk_candidate *)y;
    if (a->p != b->p) return a->p > b->p ? -1 : 1;
    return a->id < b->id ? -1 : a->id > b->id;
}

/* Brings the k most likely of n candidates to the front, in any order (Hoare's selection). */
static void hbk__select(hbk_candidate *a, hbk_int n, hbk_int k)
{
    for (hbk_int low = 0, high = n - 1; low < high;) {
        hbk_candidate pivot = a[low + (high - low) / 2];
        hbk_int i = low, j = high;
        while (i <= j) {
            while (hbk__by_probability(&a[i], &pivot) < 0) i++;
            while (hbk__by_probability(&a[j], &pivot) > 0) j--;
            if (i > j) break;
            hbk_candidate t = a[i];
            a[i++] = a[j];
            a[j--] = t;
        }
        if (k <= j) high = j;
        else if (k > i) low = i;
        else return; /* the border runs between j and i */
    }
}

/* Writes the ids that the options leave, with their probabilities before any filter, and returns how many:
   at least one; the likeliest first where top_k or top_p made it necessary to sort. */
static hbk_int hbk__filter(const hbk_real *logits, hbk_int V, const hbk_sampling *o, hbk_candidate *kept)
{
    int32_t likeliest = (int32_t)hbk__likeliest(logits, V);
    double highest = (double)logits[likeliest], total = 0, mass = 1, sum = 0;
    for (hbk_int i = 0; i < V; i++) total += exp(((double)logits[i] - highest) / o->temperature);
    kept[0].id = likeliest;
    kept[0].p = 1;
    if (!isfinite(total)) return 1; /* some are no numbers: nothing below could be compared */
    /* An id of less than (1 - p) / V cannot be among the most likely that make up p: not worth sorting. */
    double least = o->top_p < 1 && o->top_k <= 0 ? (1 - o->top_p) / (double)V : 0;
    hbk_int n = 0, left = 0;
    for (hbk_int i = 0; i < V; i++) {
        double p = exp(((double)logits[i] - highest) / o->temperature) / total;
        if (p < least) continue;
        kept[n].p = p;
        kept[n++].id = (int32_t)i;
    }
    if (o->top_k > 0 && o->top_k < n) {
        hbk__select(kept, n, o->top_k);
        n = o->top_k;
        mass = 0;
        for (hbk_int i = 0; i < n; i++) mass += kept[i].p;
    }
    if (o->top_k > 0 || o->top_p < 1) qsort(kept, (size_t)n, sizeof *kept, hbk__by_probability);
    if (o->top_p < 1) {
        for (; left < n && (sum < o->top_p * mass || left == 0); left++) sum += kept[left].p;
        n = left;
    }
    double share = HBK__MIN(o->min_p, 1) / total; /* 1 / total is the likeliest one's, so that one stays */
    for (hbk_int i = left = 0; i < n; i++)
        if (kept[i].p >= share) kept[left++] = kept[i];
    return left;
}

HBK_DEF int32_t hbk_sample(const hbk_real *logits, hbk_int V, const hbk_sampling *o, hbk_rng *rng,
                           hbk_candidate *scratch)
{
    if (o->temperature <= 0) return (int32_t)hbk__likeliest(logits, V);
    hbk_int n = hbk__filter(logits, V, o, scratch);
    double mass = 0;
    for (hbk_int i = 0; i < n; i++) mass += scratch[i].p;
    double r = hbk_rng_uniform(rng) * mass;
    for (hbk_int i = 0; i < n; i++) {
        r -= scratch[i].p;
        if (r < 0) return scratch[i].id;
    }
    return scratch[n - 1].id;
}

HBK_DEF void hbk_penalise(hbk_real *logits, const int32_t *ids, hbk_int n, double penalty, bool *seen)
{
    for (hbk_int i = 0; i < n; i++) {
        double z = (double)logits[ids[i]];
        if (!seen[ids[i]]) logits[ids[i]] = (hbk_real)(z < 0 ? z * penalty : z / penalty);
        seen[ids[i]] = true;
    }
    for (hbk_int i = 0; i < n; i++) seen[ids[i]] = false;
}

static bool hbk__sampling_check(const hbk_sampling *o, hbk_error *err)
{
    if (!(o->temperature >= 0 && isfinite(o->temperature)))
        return hbk_fail(err, HBK_ERROR_OPTION, "temperature %g: expected 0 (greedy) or more", o->temperature);
    if (!(o->top_p >= 0 && o->top_p <= 1))
        return hbk_fail(err, HBK_ERROR_OPTION, "top_p %g: expected 0 to 1 (all)", o->top_p);
    if (!(o->min_p >= 0 && o->min_p <= 1))
        return hbk_fail(err, HBK_ERROR_OPTION, "min_p %g: expected 0 (all) to 1", o->min_p);
    if (o->top_k < 0)
        return hbk_fail(err, HBK_ERROR_OPTION, "top_k %lld: expected 0 (all) or more", (long long)o->top_k);
    if (o->repetition_penalty != 0 && !(o->repetition_penalty >= 0.01 && o->repetition_penalty <= 100))
        return hbk_fail(err, HBK_ERROR_OPTION, "repetition_penalty %g: expected 0.01 to 100, 1 or 0 for none",
                        o->repetition_penalty);
    return true;
}

/* log softmax(logits)_id */
static double hbk__log_probability(const hbk_real *logits, hbk_int V, int32_t id)
{
    double nll;
    hbk_cross_entropy(NULL, &nll, logits, &id, 1, V, 1);
    return -nll;
}

/* Appends the row of token `id`. The likeliest ids come by insertion, for they are few. */
static bool hbk__log_token(hbk_logprobs *p, const hbk_real *logits, hbk_int V, int32_t id, hbk_error *err)
{
    hbk_int width = 1 + p->n_top, found = 0;
    void *data = p->data;
    if (!hbk__reserve(p->alloc, &data, &p->cap, (p->n + 1) * width, sizeof *p->data, err)) return false;
    p->data = (hbk_logprob *)data;
    hbk_logprob *row = p->data + p->n++ * width, *top = row + 1;
    row->logprob = hbk__log_probability(logits, V, id);
    row->id = id;
    double shift = row->logprob - (double)logits[id];
    for (hbk_int i = 0; i < V && p->n_top > 0; i++) {
        double logprob = (double)logits[i] + shift;
        if (found == p->n_top && logprob <= top[found - 1].logprob) continue;
        hbk_int at = found < p->n_top ? found++ : found - 1;
        for (; at > 0 && top[at - 1].logprob < logprob; at--) top[at] = top[at - 1];
        top[at].logprob = logprob;
        top[at].id = (int32_t)i;
    }
    return true;
}

HBK_DEF void hbk_logprobs_free(hbk_logprobs *p)
{
    hbk_free(p->alloc, p->data);
    p->data = NULL;
    p->n = p->cap = 0;
}

/* ---- a reply's text -------------------------------------------------------------- */

/* Bytes at the end of the text that may be the beginning of a stop string. */
static size_t hbk__held_back(const hbk_reply *r)
{
    size_t most = 0;
    for (hbk_int i = 0; i < r->n_stops; i++) {
        size_t n = HBK__MIN(strlen(r->stops[i]) - 1, r->text.len - r->start);
        while (n > most && memcmp(r->text.data + r->text.len - n, r->stops[i], n) != 0) n--;
        most = HBK__MAX(most, n);
    }
    return most;
}

/* Looks for stop strings that end behind the first `from` bytes and cuts the text at the first to be
   complete. Byte by byte, so that it does not matter how many bytes came at once. */
static void hbk__find_stop(hbk_reply *r, size_t from)
{
    for (size_t end = from + 1; end <= r->text.len; end++) {
        size_t longest = 0;
        for (hbk_int i = 0; i < r->n_stops; i++) {
            size_t n = strlen(r->stops[i]);
            if (n > longest && n <= end && memcmp(r->text.data + end - n, r->stops[i], n) == 0) longest = n;
        }
        if (!longest) continue;
        r->text.len = end - longest;
        r->stopped = true;
        return;
    }
}

/* Settles what can be settled of the text: all of it, if nothing follows. */
static void hbk__settle(hbk_reply *r, bool whole)
{
    static const char space[] = " \t\r\n";
    if (!r->text.data) return;
    r->text.data[r->text.len] = 0;
    r->start = HBK__MIN(r->start, r->text.len); /* white space may have been part of a stop string */
    if (r->trim && r->shown <= r->start) r->start += strspn(r->text.data + r->start, space);
    size_t end = r->text.len - (whole ? 0 : hbk__held_back(r));
    while (r->trim && end > r->start && memchr(space, r->text.data[end - 1], sizeof space - 1)) end--;
    r->shown = end;
    if (whole) r->text.data[r->text.len = end] = 0;
}

/* Decodes the ids that wait. U+FFFD at their end may be a character whose other bytes are still to come: they
   go on waiting, unless there are no more. */
static bool hbk__decode_pending(hbk_reply *r, bool whole, hbk_error *err)
{
    static const char broken[] = "\xef\xbf\xbd";
    size_t from = r->text.len;
    if (!hbk_tokenizer_decode(r->tok, r->pending.data, r->pending.n, HBK_ENCODE_CONTINUE, &r->text, err))
        return false;
    if (r->text.len == from) return true; /* control tokens have no text */
    if (!whole && r->text.len - from >= 3 && memcmp(r->text.data + r->text.len - 3, broken, 3) == 0) {
        r->text.len = from;
        return true;
    }
    r->pending.n = 0;
    hbk__find_stop(r, from);
    return true;
}

HBK_DEF bool hbk_reply_add(hbk_reply *r, int32_t id, hbk_error *err)
{
    if (r->stopped || id < 0 || id >= hbk_tokenizer_size(r->tok)) return true;
    r->text.alloc = r->pending.alloc = r->alloc;
    hbk_tokens_push(&r->pending, id);
    if (!hbk_tokens_ok(&r->pending, err) || !hbk__decode_pending(r, false, err)) return false;
    hbk__settle(r, r->stopped);
    return true;
}

HBK_DEF bool hbk_reply_end(hbk_reply *r, hbk_error *err)
{
    if (!r->stopped && !hbk__decode_pending(r, true, err)) return false;
    hbk__settle(r, true);
    return true;
}

HBK_DEF size_t hbk_reply_take(hbk_reply *r, const char **s)
{
    size_t from = HBK__MAX(r->taken, r->start), n = r->shown > from ? r->shown - from : 0;
    *s = n ? r->text.data + from : "";
    r->taken = from + n;
    return n;
}

HBK_DEF const char *hbk_reply_text(const hbk_reply *r)
{
    return hbk_text_string(&r->text) + r->start;
}

HBK_DEF void hbk_reply_clear(hbk_reply *r)
{
    hbk_text_clear(&r->text);
    r->pending.n = 0;
    r->pending.failed = r->stopped = false;
    r->start = r->shown = r->taken = 0;
}

HBK_DEF void hbk_reply_free(hbk_reply *r)
{
    hbk_reply_clear(r);
    hbk_text_free(&r->text);
    hbk_tokens_free(&r->pending);
}

/* ---- serving requests ------------------------------------------------------------ */

HBK_DEF const char *hbk_finish_name(hbk_finish f)
{
    static const char *const names[] = {
#define HBK_X(name, text) text,
        HBK_FINISHES(HBK_X)
#undef HBK_X
    };
    return (unsigned)f < HBK_FINISH_COUNT ? names[f] : "?";
}

/* What a request was before it was served: a failure takes it back there. */
typedef struct hbk__undo {
    hbk_rng rng;
    hbk_finish finish;
    hbk_int n_output, n_logprobs;
} hbk__undo;

/* What hbk_rate adds to hbk_generate: call(ctx, session, request) when a request ends, while its slot, which
   is free, still holds it; hbk_score may be called there. room: tokens of the session's max_length that are
   for this alone, and not for requests. */
typedef struct hbk__ending {
    bool (*call)(void *ctx, hbk_session *s, hbk_int request, hbk_error *err);
    void *ctx;
    hbk_int room;
} hbk__ending;

/* State of hbk_generate: which request each slot serves, and what it will be fed next. */
typedef struct hbk__serving {
    hbk_session *s;
    hbk_int limit;             /* most tokens of a request */
    const hbk__ending *ending; /* may be NULL */
    hbk_request *r;
    hbk_int n, next; /* requests, and the first that waits */
    const hbk_sampling *o;
    const hbk_stream *stream;
    hbk__undo *before;   /* (n) */
    hbk_int *request;    /* (n_slots) or -1 */
    hbk_feed *feeds;     /* (n_slots) */
    hbk_feed *packed;    /* (n_slots) those of the next pass */
    int32_t *last;       /* (n_slots) the token sampled last */
    hbk_int *made;       /* (n_slots) tokens so far */
    hbk_real *logits;    /* (n_slots, V) */
    hbk_real *penalised; /* (V) */
    bool *seen;          /* (V) */
    hbk_candidate *scratch;
} hbk__serving;

static void hbk__serving_free(hbk__serving *v)
{
    hbk_allocator *a = v->s->alloc;
    hbk_free(a, v->before);
    hbk_free(a, v->request);
    hbk_free(a, v->feeds);
    hbk_free(a, v->packed);
    hbk_free(a, v->last);
    hbk_free(a, v->made);
    hbk_free(a, v->logits);
    hbk_free(a, v->penalised);
    hbk_free(a, v->seen);
    hbk_free(a, v->scratch);
}

static bool hbk__serving_new(hbk__serving *v, hbk_error *err)
{
    hbk_allocator *a = v->s->alloc;
    hbk_int V = v->s->m->config.vocab_size, n_slots = v->s->n_slots;
    v->before = HBK__NEW(a, hbk__undo, v->n, err);
    if (v->before) v->request = HBK__NEW(a, hbk_int, n_slots, err);
    if (v->request) v->feeds = HBK__NEW(a, hbk_feed, n_slots, err);
    if (v->feeds) v->packed = HBK__NEW(a, hbk_feed, n_slots, err);
    if (v->packed) v->last = HBK__NEW(a, int32_t, n_slots, err);
    if (v->last) v->made = HBK__NEW(a, hbk_int, n_slots, err);
    if (v->made) v->logits = HBK__NEW(a, hbk_real, n_slots * V, err);
    if (v->logits) v->penalised = HBK__NEW(a, hbk_real, V, err);
    if (v->penalised) v->seen = HBK__NEW(a, bool, V, err);
    if (v->seen) v->scratch = HBK__NEW(a, hbk_candidate, V, err);
    if (!v->scratch) return false;
    for (hbk_int slot = 0; slot < n_slots; slot++) v->request[slot] = -1;
    for (hbk_int i = 0; i < v->n; i++) {
        v->before[i].rng = v->r[i].rng;
        v->before[i].finish = v->r[i].finish;
        v->before[i].n_output = v->r[i].output.n;
        v->before[i].n_logprobs = v->r[i].logprobs ? v->r[i].logprobs->n : 0;
    }
    return true;
}

static void hbk__serving_undo(hbk__serving *v)
{
    for (hbk_int i = 0; i < v->n; i++) {
        v->r[i].rng = v->before[i].rng;
        v->r[i].finish = v->before[i].finish;
        v->r[i].output.n = v->before[i].n_output;
        v->r[i].output.failed = false;
        if (v->r[i].logprobs) v->r[i].logprobs->n = v->before[i].n_logprobs;
    }
}

/* Everything that can be wrong with requests is found before the first is served. */
static bool hbk__requests_check(hbk_session *s, const hbk_request *r, hbk_int n, const hbk_sampling *o,
                                hbk_int limit, hbk_error *err)
{
    if (!hbk__sampling_check(o, err)) return false;
    for (hbk_int i = 0; i < n; i++) {
        hbk_int n_top = r[i].logprobs ? r[i].logprobs->n_top : 0;
        if (n_top < 0 || n_top > s->m->config.vocab_size)
            return hbk_fail(err, HBK_ERROR_OPTION, "%lld alternatives per token: expected 0 to %lld",
                            (long long)n_top, (long long)s->m->config.vocab_size);
        bool fits = r[i].n_prompt < limit;
        if (fits && !hbk__ids_known(s, r[i].prompt, r[i].n_prompt, err)) return false;
        if (!hbk__session_room(s, r[i].adapter, err)) return false;
    }
    return true;
}

enum { HBK__WORTH_SHARING = 8 }; /* tokens */

/* Computes the beginning that all prompts of the first one's adapter share, one token being left to each, in
   the slot that is there for it. A session of one slot does without: the next request finds the beginning
   where the last one was. */
static void hbk__share_beginning(hbk__serving *v)
{
    hbk_session *s = v->s;
    const int32_t *first = v->n > 1 ? v->r[0].prompt : NULL;
    const hbk_adapter *adapter = hbk__adapter_for(s, first ? v->r[0].adapter : NULL);
    hbk_int spare = s->n_slots, shared = first ? HBK__MIN(v->r[0].n_prompt, v->limit) - 1 : 0;
    hbk_int others = 0;
    for (hbk_int i = 1; i < v->n; i++) {
        if (hbk__adapter_for(s, v->r[i].adapter) != adapter) continue;
        shared = hbk__common_ids(first, shared, v->r[i].prompt, v->r[i].n_prompt - 1);
        others++;
    }
    if (!others || shared < HBK__WORTH_SHARING || spare == s->n_caches) return;
    hbk_int held = hbk__held_ids(s, spare, adapter, first, shared);
    hbk_feed rest = {spare, first + held, shared - held};
    hbk__rewind_spare(s, held);
    s->of[spare] = adapter;
    if (rest.n) hbk__feed(s, &rest, 1, 0, NULL);
}

/* Links a slot to the spare as far as both hold the same, though it have its own: what is read together costs
   less. */
static void hbk__link(hbk_session *s, hbk_int slot)
{
    hbk_int spare = s->n_slots;
    if (s->n_caches == 1 || slot == spare) return;
    hbk_int same =
        hbk__held_ids(s, spare, s->of[slot], s->held + slot * s->max_length, s->length[slot]);
    if (same >= HBK__WORTH_SHARING) s->linked[slot] = same;
}

/* Readies a slot for a request: of its prompt stays, is linked or is copied what this, the spare or another
   slot holds. */
static void hbk__seat(hbk__serving *v, hbk_int slot, const hbk_request *r)
{
    hbk_session *s = v->s;
    const hbk_adapter *adapter = hbk__adapter_for(s, r->adapter);
    hbk_int from = slot, held = hbk__held_ids(s, slot, adapter, r->prompt, r->n_prompt - 1);
    for (hbk_int k = 0; k < s->n_caches; k++) {
        hbk_int n = hbk__held_ids(s, k, adapter, r->prompt, r->n_prompt - 1);
        if (n > held) held = n, from = k;
    }
    if (held < HBK__WORTH_SHARING) held = 0;
    if (held && from != slot) hbk_session_fork(s, slot, from, held);
    hbk_session_rewind(s, slot, held);
    s->of[slot] = adapter;
    hbk__link(s, slot);
    v->feeds[slot].slot = slot;
    v->feeds[slot].tokens = r->prompt + held;
    v->feeds[slot].n = r->n_prompt - held;
    v->made[slot] = 0;
}

/* Gives waiting requests to free slots; those that leave no room for a reply are marked and passed over. */
static void hbk__admit(hbk__serving *v)
{
    for (hbk_int slot = 0; slot < v->s->n_slots; slot++) {
        if (v->request[slot] >= 0) continue;
        for (; v->next < v->n; v->next++) {
            hbk_request *r = &v->r[v->next];
            bool too_long = r->n_prompt >= v->limit;
            if (!too_long && r->n_prompt >= 1 && v->o->max_new >= 1) break;
            r->finish = too_long ? HBK_FINISH_TOO_LONG : HBK_FINISH_LENGTH;
        }
        if (v->next == v->n) return;
        hbk__seat(v, slot, &v->r[v->next]);
        v->request[slot] = v->next++;
    }
}

static bool hbk__is_eos(const hbk_config *c, int32_t id)
{
    for (hbk_int i = 0; i < c->n_eos; i++)
        if (id == c->eos[i]) return true;
    return false;
}

HBK__CLONES
static double hbk__sum(const hbk_real *x, hbk_int n)
{
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (hbk_int i = 0; i < n; i++) sum += (double)x[i];
    return sum;
}

/* The next id of the request in `slot`; -1 on failure. Logits that are no numbers would give the same id for
   ever. */
static int32_t hbk__draw(hbk__serving *v, hbk_int slot, const hbk_real *logits, hbk_error *err)
{
    const hbk_session *s = v->s;
    hbk_int V = s->m->config.vocab_size;
    double penalty = v->o->repetition_penalty;
    if (!isfinite(hbk__sum(logits, V))) {
        hbk_fail(err, HBK_ERROR_NUMERIC, "logits after %lld tokens are not finite: the weights%s are broken",
                 (long long)s->length[slot], s->of[slot] ? " or the adapter" : "");
        return -1;
    }
    if (penalty > 0 && penalty != 1) {
        memcpy(v->penalised, logits, (size_t)V * sizeof *logits);
        hbk_penalise(v->penalised, s->held + slot * s->max_length, s->length[slot], penalty, v->seen);
        logits = v->penalised;
    }
    return hbk_sample(logits, V, v->o, &v->r[v->request[slot]].rng, v->scratch);
}

/* Takes token `id` into its request; *finish stays HBK_FINISH_COUNT while the request goes on. */
static bool hbk__take_token(hbk__serving *v, hbk_int slot, const hbk_real *logits, int32_t id,
                            hbk_finish *finish, hbk_error *err)
{
    const hbk_session *s = v->s;
    hbk_request *r = &v->r[v->request[slot]];
    hbk_tokens_push(&r->output, id);
    if (!hbk_tokens_ok(&r->output, err) ||
        (r->logprobs && !hbk__log_token(r->logprobs, logits, s->m->config.vocab_size, id, err)) ||
        (r->reply && !hbk_reply_add(r->reply, id, err)))
        return false;
    v->last[slot] = id;
    v->made[slot]++;
    bool heard = v->stream && v->stream->on_token;
    bool more = !heard || v->stream->on_token(v->stream->ctx, v->request[slot], id);
    if (r->reply && r->reply->stopped) *finish = HBK_FINISH_STOP;
    else if (!more) *finish = HBK_FINISH_CANCELLED;
    else if (v->made[slot] == v->o->max_new) *finish = HBK_FINISH_LENGTH;
    else if (s->length[slot] == v->limit) *finish = HBK_FINISH_CONTEXT;
    return true;
}

/* Draws a token for `slot` and readies its next feed, or frees it. */
static bool hbk__serve_slot(hbk__serving *v, hbk_int slot, const hbk_real *logits, hbk_error *err)
{
    hbk_int request = v->request[slot];
    hbk_request *r = &v->r[request];
    hbk_finish finish = HBK_FINISH_COUNT;
    int32_t id = hbk__draw(v, slot, logits, err);
    if (id < 0) return false;
    if (hbk__is_eos(&v->s->m->config, id)) finish = HBK_FINISH_EOS;
    else if (id == v->o->stop) finish = HBK_FINISH_STOP;
    else if (!hbk__take_token(v, slot, logits, id, &finish, err)) return false;
    v->feeds[slot].slot = slot;
    v->feeds[slot].tokens = &v->last[slot];
    v->feeds[slot].n = 1;
    if (finish == HBK_FINISH_COUNT) return true;
    if (r->reply && !hbk_reply_end(r->reply, err)) return false;
    r->finish = finish;
    v->request[slot] = -1;
    return !v->ending || v->ending->call(v->ending->ctx, v->s, request, err);
}

/* Lines the feeds of busy slots up for a pass, in the order of the slots, but those of one adapter together.
   Returns how many. */
static hbk_int hbk__line_up(hbk__serving *v)
{
    const hbk_session *s = v->s;
    hbk_int n = 0;
    for (hbk_int slot = 0; slot < s->n_slots; slot++) {
        hbk_int before = 0;
        if (v->request[slot] < 0) continue;
        while (before < n && s->of[v->packed[before].slot] != s->of[slot]) before++;
        if (before < n) continue; /* its adapter's slots stand there already */
        for (hbk_int k = slot; k < s->n_slots; k++)
            if (v->request[k] >= 0 && s->of[k] == s->of[slot]) v->packed[n++] = v->feeds[k];
    }
    return n;
}

static bool hbk__generate(hbk_session *s, hbk_request *requests, hbk_int n, const hbk_sampling *o,
                          const hbk_stream *stream, const hbk__ending *ending, hbk_error *err)
{
    hbk_int limit = s->max_length - (ending ? ending->room : 0);
    if (!hbk__requests_check(s, requests, n, o, limit, err)) return false;
    hbk__serving v;
    memset(&v, 0, sizeof v);
    v.s = s;
    v.limit = limit;
    v.ending = ending;
    v.r = requests;
    v.n = n;
    v.o = o;
    v.stream = stream;
    bool ready = hbk__serving_new(&v, err), ok = ready;
    s->serving = v.request;
    if (ok) hbk__share_beginning(&v);
    while (ok) {
        hbk__admit(&v);
        hbk_int n_feeds = hbk__line_up(&v);
        if (!n_feeds) break;
        hbk__feed(s, v.packed, n_feeds, 1, v.logits);
        for (hbk_int f = n_feeds - 1; f >= 0 && ok; f--)
            ok = hbk__serve_slot(&v, v.packed[f].slot, v.logits + f * s->m->config.vocab_size, err);
    }
    if (ready && !ok) hbk__serving_undo(&v);
    s->serving = NULL;
    hbk__serving_free(&v);
    return ok;
}

HBK_DEF bool hbk_generate(hbk_session *s, hbk_request *requests, hbk_int n, const hbk_sampling *o,
                          const hbk_stream *stream, hbk_error *err)
{
    return hbk__generate(s, requests, n, o, stream, NULL, err);
}

/* ---- scores ---------------------------------------------------------------------- */

#define HBK__SCORE_ROWS ((hbk_int)64) /* logits at once */

/* Row r of an item is what the model expects after its prompt and r tokens of the continuation. */
typedef struct hbk__scoring {
    hbk_session *s;
    const hbk_scoring *items;
    hbk_int *fits;    /* (n) items that can be scored, in order */
    double *sum;      /* (n) */
    hbk_real *logits; /* (rows, V) */
    hbk_int rows;     /* HBK__SCORE_ROWS at most */
    hbk_feed *feeds;  /* (n_slots) */
    hbk_int *item_of; /* (n_slots) */
    hbk_int *slot;    /* (n_slots) those that may be used, the first being where a prompt is */
    hbk_int n_free;
    hbk_tokens ids;
} hbk__scoring;

/* Adds to item i what `n` rows of logits say, the first being its row `at`. */
static void hbk__score_rows(hbk__scoring *c, hbk_int i, const hbk_real *logits, hbk_int at, hbk_int n)
{
    const hbk_scoring *p = &c->items[i];
    hbk_int V = c->s->m->config.vocab_size;
    for (hbk_int k = 0; k < n && at + k < p->n_continuation; k++)
        c->sum[i] += hbk__log_probability(logits + k * V, V, p->continuation[at + k]);
}

/* Brings the free slot that is to hold the prompt to the front, and into it what any cache holds of the
   prompt; returns so many tokens. It is the slot that loses least, and of those the one that holds most. */
static hbk_int hbk__score_seat(hbk__scoring *c, const hbk_scoring *p)
{
    hbk_session *s = c->s;
    const hbk_adapter *adapter = hbk__adapter_for(s, p->adapter);
    hbk_int best = 0, held = 0, least = INT64_MAX;
    for (hbk_int i = 0; i < c->n_free; i++) {
        hbk_int n = hbk__held_ids(s, c->slot[i], adapter, p->prompt, p->n_prompt - 1);
        hbk_int lost = s->length[c->slot[i]] - n;
        if (lost < least || (lost == least && n > held)) least = lost, held = n, best = i;
    }
    hbk_int to = c->slot[best], from = to;
    for (hbk_int k = 0; k < s->n_caches; k++) {
        hbk_int n = hbk__held_ids(s, k, adapter, p->prompt, p->n_prompt - 1);
        if (n > held) held = n, from = k;
    }
    if (from != to) hbk_session_fork(s, to, from, held);
    hbk_session_rewind(s, to, held);
    s->of[to] = adapter;
    c->slot[best] = c->slot[0];
    c->slot[0] = to;
    return held;
}

/* Feeds the first slot what a group of n items shares, the prompt and `common` tokens, and scores the rows up
   to there. */
static bool hbk__score_common(hbk__scoring *c, const hbk_int *group, hbk_int n, hbk_int common,
                              hbk_error *err)
{
    const hbk_scoring *p = &c->items[group[0]];
    hbk_int held = hbk__score_seat(c, p), prompt = p->n_prompt - held, fed = 0;
    c->ids.n = 0;
    hbk_tokens_append(&c->ids, p->prompt + held, prompt);
    hbk_tokens_append(&c->ids, p->continuation, common);
    if (!hbk_tokens_ok(&c->ids, err)) return false;
    for (hbk_int at = 0, rows; at <= common; at += rows) {
        rows = HBK__MIN(common + 1 - at, c->rows);
        hbk_feed piece = {c->slot[0], c->ids.data + fed, prompt + at + rows - 1 - fed};
        hbk__feed(c->s, &piece, 1, rows, c->logits);
        fed += piece.n;
        for (hbk_int i = 0; i < n; i++) hbk__score_rows(c, group[i], c->logits, at, rows);
    }
    return true;
}

/* The rest of n items, each in its slot, which holds their prompt and `common` tokens. */
static void hbk__score_rests(hbk__scoring *c, hbk_int n, hbk_int common)
{
    hbk_int V = c->s->m->config.vocab_size, step = c->rows / n;
    for (hbk_int at = common;; at += step) {
        hbk_int n_feeds = 0, row = 0;
        for (hbk_int k = 0; k < n; k++) {
            const hbk_scoring *p = &c->items[c->item_of[c->slot[k]]];
            if (p->n_continuation - 1 <= at) continue; /* the last token is never fed */
            hbk_feed piece = {c->slot[k], p->continuation + at, HBK__MIN(p->n_continuation - 1 - at, step)};
            c->feeds[n_feeds++] = piece;
        }
        if (!n_feeds) return;
        hbk__feed(c->s, c->feeds, n_feeds, step, c->logits);
        for (hbk_int f = 0; f < n_feeds; row += c->feeds[f++].n)
            hbk__score_rows(c, c->item_of[c->feeds[f].slot], c->logits + row * V, at + 1, c->feeds[f].n);
    }
}

/* Scores a group of n items that have one prompt and one adapter: what all share first, then the rests side
   by side. */
static bool hbk__score_group(hbk__scoring *c, const hbk_int *group, hbk_int n, hbk_error *err)
{
    const hbk_scoring *p = &c->items[group[0]];
    hbk_int common = p->n_continuation - 1, most = HBK__MIN(c->n_free, c->rows);
    for (hbk_int i = 1; i < n; i++) {
        const hbk_scoring *q = &c->items[group[i]];
        common = hbk__common_ids(p->continuation, common, q->continuation, q->n_continuation - 1);
    }
    if (!hbk__score_common(c, group, n, common, err)) return false;
    hbk_int first = c->slot[0], length = c->s->length[first];
    for (hbk_int i = 0, k; i < n;) {
        for (k = 0; i < n && k < most; i++)
            if (c->items[group[i]].n_continuation - 1 > common) c->item_of[c->slot[k++]] = group[i];
        for (hbk_int other = 1; other < k; other++) hbk_session_fork(c->s, c->slot[other], first, length);
        if (k) hbk__score_rests(c, k, common);
        hbk_session_rewind(c->s, first, length);
    }
    return true;
}

/* Which items fit, and are of known ids and this base: *n of them. */
static bool hbk__score_check(hbk__scoring *c, hbk_int n_items, hbk_int *n, hbk_error *err)
{
    hbk_int longest = 1;
    *n = 0;
    for (hbk_int i = 0; i < n_items; i++) {
        const hbk_scoring *p = &c->items[i];
        if (p->n_prompt < 1 || p->n_continuation < 1 ||
            p->n_prompt > c->s->max_length - p->n_continuation)
            continue;
        if (!hbk__ids_known(c->s, p->prompt, p->n_prompt, err) ||
            !hbk__ids_known(c->s, p->continuation, p->n_continuation, err) ||
            !hbk__session_room(c->s, p->adapter, err))
            return false;
        longest = HBK__MAX(longest, p->n_continuation);
        c->fits[(*n)++] = i;
    }
    c->rows = HBK__MIN(HBK__SCORE_ROWS, longest * c->n_free);
    return true;
}

/* What scoring n items needs; all of it stays with the caller, also on failure. */
static bool hbk__scoring_new(hbk__scoring *c, hbk_int n, hbk_int *n_fits, hbk_error *err)
{
    hbk_session *s = c->s;
    c->ids.alloc = s->alloc;
    c->fits = HBK__NEW(s->alloc, hbk_int, n, err);
    if (c->fits) c->sum = HBK__NEW(s->alloc, double, n, err);
    if (c->sum) c->feeds = HBK__NEW(s->alloc, hbk_feed, s->n_slots, err);
    if (c->feeds) c->item_of = HBK__NEW(s->alloc, hbk_int, s->n_slots, err);
    if (c->item_of) c->slot = HBK__NEW(s->alloc, hbk_int, s->n_slots, err);
    if (!c->slot) return false;
    for (hbk_int slot = 0; slot < s->n_slots; slot++)
        if (!s->serving || s->serving[slot] < 0) c->slot[c->n_free++] = slot;
    if (c->n_free == 0)
        return hbk_fail(err, HBK_ERROR_OPTION,
                        "all %lld slots of the session serve requests: score in one of its own, or when "
                        "hbk_generate is done",
                        (long long)s->n_slots);
    if (!hbk__score_check(c, n, n_fits, err)) return false;
    c->logits = HBK__NEW(s->alloc, hbk_real, c->rows * s->m->config.vocab_size, err);
    return c->logits != NULL;
}

HBK_DEF bool hbk_score(hbk_session *s, hbk_scoring *items, hbk_int n, hbk_error *err)
{
    hbk__scoring c;
    hbk_int n_fits = 0;
    memset(&c, 0, sizeof c);
    c.s = s;
    c.items = items;
    bool ok = hbk__scoring_new(&c, n, &n_fits, err);
    for (hbk_int i = 0, k; ok && i < n_fits; i += k) {
        const hbk_scoring *p = &items[c.fits[i]];
        for (k = 1; i + k < n_fits; k++) {
            const hbk_scoring *q = &items[c.fits[i + k]];
            if (hbk__adapter_for(s, q->adapter) != hbk__adapter_for(s, p->adapter) ||
                q->n_prompt != p->n_prompt ||
                hbk__common_ids(p->prompt, p->n_prompt, q->prompt, q->n_prompt) < p->n_prompt)
                break;
        }
        ok = hbk__score_group(&c, c.fits + i, k, err);
    }
    for (hbk_int i = 0; ok && i < n; i++) items[i].log_likelihood = (double)NAN;
    for (hbk_int i = 0; ok && i < n_fits; i++) items[c.fits[i]].log_likelihood = c.sum[c.fits[i]];
    hbk_free(s->alloc, c.fits);
    hbk_free(s->alloc, c.sum);
    hbk_free(s->alloc, c.logits);
    hbk_free(s->alloc, c.feeds);
    hbk_free(s->alloc, c.item_of);
    hbk_free(s->alloc, c.slot);
    hbk_tokens_free(&c.ids);
    return ok;
}

HBK__GLUE

/* ==== 14  TEMPLATES AND TAGS =================================================

   A prompt is a row of spans: literals of the template, which are trusted and may spell special tokens, and
   texts of users, which are not and may not: "</s>" inside an answer is five characters. Each span is
   tokenised for itself and the ids are joined, so the border between prompt and target is a border between
   ids, known before any is counted.

   Tokenising span by span must not change how words are cut: after "[INST] " the word "hello" should be the
   token " hello" that the model met everywhere else. So the blanks at the end of a literal wait, and go
   before the next span:

       "[INST] {instruction} [/INST]" + " {output}{eos}"  ->  "[INST]"  " hello"  " [/INST]"  " Hi."  eos

   Where a SentencePiece vocabulary puts U+2581 before a text, only the first span gets it, by the tokenizer's
   own rule; behind the special tokens of later spans stands none, while Hugging Face's older ("legacy")
   tokenizers put one after each.

   The grammar is five slots in plain text. A backward or rating prompt that a file does not give is its
   wording put in the place of {instruction} of "prompt": from there on there are only strings with slots.

   A conversation is one prompt and then, behind each reply as the model wrote it, "next". The border lies at
   the end of the reply's text, not behind its eos, because what ends a reply may be more than one id (in
   chatml <|im_end|> and a line break), and because a reply that was stopped has no end of its own.

   Source: Li et al. 2023, section 2 (the tags, appended to the instruction; the shape of the rating prompt)
   and Li et al. 2024, arXiv 2408.04614, appendix A (the shape of the backward prompt); the words are ours.
   Unlike in most chat wrappers nothing is trimmed from what users wrote. */

enum {
    HBK__TEXT_NAME,
    HBK__TEXT_PROMPT,
    HBK__TEXT_REPLY,
    HBK__TEXT_BACKWARD,
    HBK__TEXT_RATING,
    HBK__TEXT_SCORE,
    HBK__TEXT_NEXT,
    HBK__TEXT_SYSTEM, /* alone may be NULL */
    HBK__TEXT_REWRITING,
    HBK__N_TEXTS
};

static const char *const hbk__text_keys[HBK__N_TEXTS] = {
    "name", "prompt", "reply", "backward", "rating", "score", "next", "system", "rewriting"};

struct hbk_template {
    hbk_allocator *alloc;
    char *text[HBK__N_TEXTS]; /* all set once the template is complete */
};

/* Name, prompt, reply, next, system. chatml has no {bos}: where its models have one it is <|im_start|>
   itself. The conversations that llama2's chat models learned from have a blank before eos; the reply, which
   is what is trained here, has none. */
static const char *const hbk__built_in[][5] = {
    {"llama2", "{bos}[INST] {instruction} [/INST]", " {output}{eos}",
     " {eos}{bos}[INST] {instruction} [/INST]",
     "{bos}[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{instruction} [/INST]"},
    {"llama3",
     "{bos}<|start_header_id|>user<|end_header_id|>\n\n{instruction}<|eot_id|>"
     "<|start_header_id|>assistant<|end_header_id|>\n\n",
     "{output}<|eot_id|>",
     "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{instruction}<|eot_id|>"
     "<|start_header_id|>assistant<|end_header_id|>\n\n",
     "{bos}<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>"
     "<|start_header_id|>user<|end_header_id|>\n\n{instruction}<|eot_id|>"
     "<|start_header_id|>assistant<|end_header_id|>\n\n"},
    {"chatml", "<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n", "{output}<|im_end|>",
     "<|im_end|>\n<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n",
     "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{instruction}<|im_end|>\n"
     "<|im_start|>assistant\n"},
    {"plain", "{bos}Instruction:\n{instruction}\n\nResponse:\n", "{output}{eos}", NULL, NULL},
};
enum { HBK__N_BUILT_IN = sizeof hbk__built_in / sizeof hbk__built_in[0] };

static const char hbk__backward_wording[] =
    "Below is a text that could be the answer to somebody's request. Write the question or instruction that "
    "it answers best, and nothing else.\n\n{output}";

static const char hbk__rating_wording[] =
    "Below are an instruction and a candidate answer. Judge whether the answer is a good example of how an "
    "AI assistant should respond to the instruction, and rate it from 1 to 5:\n"
    "1: The answer is incomplete, vague, off the topic, controversial, or not what was asked for. For "
    "example, content is missing, a list does not start at its beginning, the question is repeated first, "
    "it tells another person's experience, it speaks like a blog or a forum, or it holds promotion or "
    "navigation text.\n"
    "2: The answer addresses most of what was asked, but not directly. For example, it describes a general "
    "method where the exact solution was wanted.\n"
    "3: The answer is helpful, complete and stands on its own, but visibly no assistant wrote it: it looks "
    "like an excerpt of a blog, a web page or a search result, with personal experience, a comment section "
    "or share buttons.\n"
    "4: The answer is written from an assistant's point of view. It is focused, complete, well organised "
    "and helpful, and could at most be a little more concise or focused.\n"
    "5: The answer is what a perfect assistant would write: a clear focus, the knowledge of an expert, well "
    "written, logical, engaging, and no sentence that does not belong.\n"
    "First give a brief reasoning for your rating. Then write \"Score: <rating>\" as the last line.\n\n"
    "{instruction}\n{output}";

static const char hbk__rewriting_wording[] =
    "Below are an instruction and a text that was found for it. Rewrite the text as the answer of a "
    "knowledgeable assistant to the instruction: keep what it says, leave out what does not answer the "
    "instruction, bring the rest into a clear order, and add nothing of your own. Write the answer and "
    "nothing else.\n\n{instruction}\n\n{output}";

/* A copy of n bytes, NUL-terminated. */
static char *hbk__copy_text(hbk_allocator *alloc, const char *s, size_t n, hbk_error *err)
{
    char *copy = n < INT64_MAX ? HBK__NEW(alloc, char, (hbk_int)n + 1, err) : NULL;
    if (copy && n) memcpy(copy, s, n);
    return copy;
}

typedef enum hbk__template_slot {
    HBK__SLOT_NONE, /* a literal */
    HBK__SLOT_BOS,
    HBK__SLOT_EOS,
    HBK__SLOT_INSTRUCTION,
    HBK__SLOT_OUTPUT,
    HBK__SLOT_SYSTEM,
    HBK__N_TEMPLATE_SLOTS
} hbk__template_slot;
static const char *const hbk__template_slots[] = {"",         "{bos}",    "{eos}", "{instruction}",
                                                  "{output}", "{system}"};

typedef struct hbk__template_piece {
    const char *text; /* a literal's; it points into the template */
    hbk_int len;
    hbk__template_slot slot;
} hbk__template_piece;

static hbk__template_slot hbk__slot_at(const char *s)
{
    for (int i = HBK__SLOT_BOS; i < HBK__N_TEMPLATE_SLOTS; i++) {
        const char *slot = hbk__template_slots[i];
        if (strncmp(s, slot, strlen(slot)) == 0) return (hbk__template_slot)i;
    }
    return HBK__SLOT_NONE;
}

/* Takes the next piece off *at: a slot, or the text up to the next slot. False at the end. */
static bool hbk__next_piece(const char **at, hbk__template_piece *p)
{
    if (!**at) return false;
    const char *s = *at;
    p->text = s;
    p->slot = hbk__slot_at(s);
    if (p->slot == HBK__SLOT_NONE)
        while (*s && hbk__slot_at(s) == HBK__SLOT_NONE) s++;
    else
        s += strlen(hbk__template_slots[p->slot]);
    p->len = (hbk_int)(s - p->text);
    *at = s;
    return true;
}

/* Checks that string number `key` of a template has the slots that belong there, each once, and few enough
   pieces: half of HBK_MAX_SPANS, so that prompt, tag and reply fit together. */
static bool hbk__check_slots(const char *text, const char *name, int key, hbk_error *err)
{
    bool expected[HBK__N_TEMPLATE_SLOTS] = {false};
    expected[HBK__SLOT_INSTRUCTION] = key != HBK__TEXT_REPLY && key != HBK__TEXT_BACKWARD;
    expected[HBK__SLOT_OUTPUT] = key == HBK__TEXT_REPLY || key == HBK__TEXT_BACKWARD ||
                                 key == HBK__TEXT_RATING || key == HBK__TEXT_REWRITING;
    expected[HBK__SLOT_SYSTEM] = key == HBK__TEXT_SYSTEM;
    hbk__template_piece p;
    int found[HBK__N_TEMPLATE_SLOTS] = {0}, spans = 1; /* the tag */
    for (const char *at = text; hbk__next_piece(&at, &p);) {
        if (found[p.slot] < HBK_MAX_SPANS) found[p.slot]++;
        /* blanks that wait before an id become a span of their own */
        spans += p.slot == HBK__SLOT_BOS || p.slot == HBK__SLOT_EOS ? 2 : 1;
        if (spans > HBK_MAX_SPANS / 2)
            return hbk_fail(err, HBK_ERROR_RANGE, "template %s: \"%s\" has too many slots: %d pieces at most",
                            name, hbk__text_keys[key], HBK_MAX_SPANS / 2 - 1);
    }
    for (int i = HBK__SLOT_INSTRUCTION; i < HBK__N_TEMPLATE_SLOTS; i++)
        if (found[i] != (int)expected[i])
            return hbk_fail(err, HBK_ERROR_FORMAT, "template %s: \"%s\" has %s %s, expected %s", name,
                            hbk__text_keys[key],
                            found[i] == 0   ? "no"
                            : found[i] == 1 ? "one"
                                            : "several",
                            hbk__template_slots[i], expected[i] ? "exactly one" : "none");
    return true;
}

/* The prompt with `wording` in the place of its {instruction}; NULL on failure. */
static char *hbk__compose(const hbk_template *t, const char *wording, size_t n, hbk_error *err)
{
    hbk_text text;
    memset(&text, 0, sizeof text);
    text.alloc = t->alloc;
    hbk__template_piece p;
    for (const char *at = t->text[HBK__TEXT_PROMPT]; hbk__next_piece(&at, &p);) {
        if (p.slot == HBK__SLOT_INSTRUCTION)
            hbk_text_append(&text, wording, n);
        else
            hbk_text_append(&text, p.text, (size_t)p.len);
    }
    char *whole =
        hbk_text_ok(&text, err) ? hbk__copy_text(t->alloc, hbk_text_string(&text), text.len, err) : NULL;
    hbk_text_free(&text);
    return whole;
}

HBK_DEF bool hbk_template_set(hbk_template *t, hbk_use use, const char *text, hbk_error *err)
{
    const char *name = t->text[HBK__TEXT_NAME];
    if (use != HBK_BACKWARD && use != HBK_RATING && use != HBK_REWRITING)
        return hbk_fail(err, HBK_ERROR_OPTION,
                        "template %s: only the backward, the rating and the rewriting prompt can be reworded",
                        name);
    int slot = use == HBK_BACKWARD ? HBK__TEXT_BACKWARD
               : use == HBK_RATING ? HBK__TEXT_RATING
                                   : HBK__TEXT_REWRITING;
    size_t n = strlen(text);
    while (n > 0 && (text[n - 1] == '\n' || text[n - 1] == '\r')) n--; /* editors end a file with one */
    char *whole = hbk__compose(t, text, n, err);
    if (!whole) return false;
    if (!hbk__check_slots(whole, name, slot, err)) {
        hbk_free(t->alloc, whole);
        return false;
    }
    hbk_free(t->alloc, t->text[slot]);
    t->text[slot] = whole;
    return true;
}

HBK_DEF void hbk_template_free(hbk_template *t)
{
    if (!t) return;
    hbk_allocator *alloc = t->alloc;
    for (int i = 0; i < HBK__N_TEXTS; i++) hbk_free(alloc, t->text[i]);
    hbk_free(alloc, t);
}

/* What follows a reply where a template does not say it: the end of the reply, and the prompt again without
   the bos that only the first one has. */
static bool hbk__derive_next(hbk_template *t, hbk_error *err)
{
    const char *end = strstr(t->text[HBK__TEXT_REPLY], "{output}") + strlen("{output}");
    const char *prompt = t->text[HBK__TEXT_PROMPT];
    size_t skip = strncmp(prompt, "{bos}", 5) == 0 ? 5 : 0;
    hbk_text text;
    memset(&text, 0, sizeof text);
    text.alloc = t->alloc;
    hbk_text_add(&text, end);
    hbk_text_add(&text, prompt + skip);
    bool ok = hbk_text_ok(&text, err) &&
              (t->text[HBK__TEXT_NEXT] = hbk__copy_text(t->alloc, text.data, text.len, err)) != NULL;
    hbk_text_free(&text);
    return ok;
}

/* Strings for conversations of templates that were written down before there were any. */
static void hbk__add_built_in(const char *texts[HBK__N_TEXTS])
{
    for (int i = 0; i < HBK__N_BUILT_IN && !texts[HBK__TEXT_NEXT] && !texts[HBK__TEXT_SYSTEM]; i++)
        if (strcmp(texts[HBK__TEXT_PROMPT], hbk__built_in[i][1]) == 0 &&
            strcmp(texts[HBK__TEXT_REPLY], hbk__built_in[i][2]) == 0) {
            texts[HBK__TEXT_NEXT] = hbk__built_in[i][3];
            texts[HBK__TEXT_SYSTEM] = hbk__built_in[i][4];
        }
}

/* A template of the given strings; NULL ones get their default. texts[name], [prompt] and [reply] are set. */
static hbk_template *hbk__template_new(const char *texts[HBK__N_TEXTS], hbk_allocator *alloc, hbk_error *err)
{
    hbk_template *t = HBK__NEW(alloc, hbk_template, 1, err);
    if (!t) return NULL;
    t->alloc = alloc;
    hbk__add_built_in(texts);
    bool ok = true;
    for (int i = 0; i < HBK__N_TEXTS && ok; i++) {
        const char *s = texts[i] ? texts[i] : i == HBK__TEXT_SCORE ? "Score:" : NULL;
        bool slots = i != HBK__TEXT_NAME && i != HBK__TEXT_SCORE;
        if (s) ok = (t->text[i] = hbk__copy_text(alloc, s, strlen(s), err)) != NULL;
        if (s && slots) ok = ok && hbk__check_slots(s, texts[HBK__TEXT_NAME], i, err);
    }
    if (ok && !t->text[HBK__TEXT_BACKWARD])
        ok = hbk_template_set(t, HBK_BACKWARD, hbk__backward_wording, err);
    if (ok && !t->text[HBK__TEXT_RATING]) ok = hbk_template_set(t, HBK_RATING, hbk__rating_wording, err);
    if (ok && !t->text[HBK__TEXT_REWRITING])
        ok = hbk_template_set(t, HBK_REWRITING, hbk__rewriting_wording, err);
    if (ok && !t->text[HBK__TEXT_NEXT])
        ok = hbk__derive_next(t, err) &&
             hbk__check_slots(t->text[HBK__TEXT_NEXT], texts[HBK__TEXT_NAME], HBK__TEXT_NEXT, err);
    if (ok) return t;
    hbk_template_free(t);
    return NULL;
}

/* The template in a JSON object; `file` is named in messages and names a template without a name. */
static hbk_template *hbk__template_from_json(const json_t *object, const char *file, hbk_allocator *alloc,
                                             hbk_error *err)
{
    const char *texts[HBK__N_TEXTS] = {NULL};
    void *it = json_object_iter((json_t *)(uintptr_t)object); /* jansson's iterators take no const */
    for (; it; it = json_object_iter_next((json_t *)(uintptr_t)object, it)) {
        const char *key = json_object_iter_key(it), *value = json_string_value(json_object_iter_value(it));
        int i = 0;
        while (i < HBK__N_TEXTS && strcmp(key, hbk__text_keys[i]) != 0) i++;
        if (i == HBK__N_TEXTS || !value) { /* a misspelt "rating" must not fall back to ours */
            hbk_fail_at(err, HBK_ERROR_FORMAT, file, 0,
                        "\"%s\" %s: a template is an object of strings \"name\", \"prompt\", \"reply\", "
                        "\"backward\", \"rating\", \"score\", \"next\", \"system\", \"rewriting\"",
                        key, i == HBK__N_TEXTS ? "is unknown" : "is no string");
            return NULL;
        }
        texts[i] = value;
    }
    if (!texts[HBK__TEXT_NAME]) texts[HBK__TEXT_NAME] = file;
    for (int i = HBK__TEXT_PROMPT; i <= HBK__TEXT_REPLY; i++)
        if (!texts[i]) {
            hbk_fail_at(err, HBK_ERROR_FORMAT, file, 0, "a template needs a string \"%s\"",
                        hbk__text_keys[i]);
            return NULL;
        }
    return hbk__template_new(texts, alloc, err);
}

HBK_DEF hbk_template *hbk_template_load(const char *name_or_path, hbk_allocator *alloc, hbk_error *err)
{
    for (int i = 0; i < HBK__N_BUILT_IN; i++)
        if (strcmp(name_or_path, hbk__built_in[i][0]) == 0) {
            const char *texts[HBK__N_TEXTS] = {NULL};
            for (int k = 0; k < 3; k++) texts[HBK__TEXT_NAME + k] = hbk__built_in[i][k];
            return hbk__template_new(texts, alloc, err);
        }
    if (!hbk_file_exists(name_or_path)) {
        hbk_fail(err, HBK_ERROR_OPTION,
                 "no template and no file is called \"%s\": give llama2, llama3, chatml, plain or a JSON "
                 "file",
                 name_or_path);
        return NULL;
    }
    json_t *root = hbk_json_read(name_or_path, err);
    if (!root) return NULL;
    const json_t *nested = json_object_get(root, "template");
    hbk_template *t = NULL;
    if (json_is_object(root))
        t = hbk__template_from_json(json_is_object(nested) ? nested : root, name_or_path, alloc, err);
    else
        hbk_fail_at(err, HBK_ERROR_FORMAT, name_or_path, 0, "a template is a JSON object of strings");
    json_decref(root);
    return t;
}

/* Does a chat template write [INST] as llama2 does? Mistral's write other spaces, and bos once for the whole
   conversation: llama2 has bos before each [INST], or a place for <<SYS>>. */
static bool hbk__is_llama2(const char *s)
{
    bool system = strstr(s, "[INST]") && strstr(s, "<<SYS>>"), joined = false;
    while (!joined && (s = strstr(s, "bos_token")) != NULL) {
        s += strlen("bos_token");
        joined = strncmp(s + strspn(s, " \t\r\n+~'\""), "[INST]", 6) == 0; /* bos_token + '[INST] ' */
    }
    return system || joined;
}

HBK_DEF hbk_template *hbk_template_for_model(const char *model_path, hbk_allocator *alloc, hbk_error *err)
{
    static const char *const markers[][2] = {{"<|start_header_id|>", "llama3"}, {"<|im_start|>", "chatml"}};
    hbk_text source;
    memset(&source, 0, sizeof source);
    source.alloc = alloc;
    bool ok = hbk_dir_exists(model_path)
                  ? hbk__chat_template(model_path, &source, err)
                  : !hbk__is_gguf(model_path) || hbk__gguf_chat_template(model_path, &source, err);
    if (!ok) {
        hbk_text_free(&source);
        return NULL;
    }
    const char *s = hbk_text_string(&source), *name = hbk__is_llama2(s) ? "llama2" : NULL;
    for (int i = 0; i < 2 && !name; i++)
        if (strstr(s, markers[i][0])) name = markers[i][1];
    if (!name && s[strspn(s, " \t\r\n")] == 0) name = "llama2"; /* the paper's */
    bool mistral = strstr(s, "[INST]") != NULL;
    hbk_text_free(&source);
    if (name) return hbk_template_load(name, alloc, err);
    hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, model_path, 0,
                "its chat template%s is none of llama2, llama3, chatml: choose with --template, or "
                "hbk_template_load in C (a name or a JSON file)",
                mistral ? ", which writes [INST] as Mistral's do," : "");
    return NULL;
}

/* The template as a JSON object of its own; NULL when memory is out. */
static json_t *hbk__template_json(const hbk_template *t)
{
    json_t *object = json_object();
    for (int i = 0; i < HBK__N_TEXTS && object; i++)
        if (t->text[i] && json_object_set_new(object, hbk__text_keys[i], json_string(t->text[i])) != 0) {
            json_decref(object);
            object = NULL;
        }
    return object;
}

HBK_DEF bool hbk_template_save(const hbk_template *t, const char *path, hbk_error *err)
{
    json_t *object = hbk__template_json(t);
    if (!object)
        return hbk_fail(err, HBK_ERROR_MEMORY, "template %s: it is not UTF-8, or memory is out",
                        t->text[HBK__TEXT_NAME]);
    bool ok = hbk_json_write(path, object, err);
    json_decref(object);
    return ok;
}

HBK_DEF const char *hbk_template_name(const hbk_template *t)
{
    return t->text[HBK__TEXT_NAME];
}

HBK_DEF const char *hbk_template_score(const hbk_template *t)
{
    return t->text[HBK__TEXT_SCORE];
}

HBK_DEF bool hbk_template_has_system(const hbk_template *t)
{
    return t->text[HBK__TEXT_SYSTEM] != NULL;
}

/* The prompt of a use, as the template spells it. */
static const char *hbk__template_text(const hbk_template *t, hbk_use use)
{
    return t->text[use == HBK_FORWARD     ? HBK__TEXT_PROMPT
                   : use == HBK_BACKWARD  ? HBK__TEXT_BACKWARD
                   : use == HBK_NEXT      ? HBK__TEXT_NEXT
                   : use == HBK_REWRITING ? HBK__TEXT_REWRITING
                                          : HBK__TEXT_RATING];
}

HBK_DEF uint64_t hbk_template_hash(const hbk_template *t)
{
    uint64_t h = 0;
    for (int i = 0; i <= HBK__TEXT_SCORE; i++) /* with the NUL: "a" "bc" is not "ab" "c" */
        h = hbk_hash(h, t->text[i], strlen(t->text[i]) + 1);
    return h;
}

/* The spans of an example while they are collected. */
typedef struct hbk__spans {
    hbk_span_text *out;
    hbk_int n;
    hbk_int blanks; /* that wait for the next span */
    bool target;
} hbk__spans;

static void hbk__add_span(hbk__spans *s, const char *text, hbk_int len, int32_t id, bool trusted)
{
    HBK_ASSERT(s->n < HBK_MAX_SPANS);
    hbk_span_text *span = &s->out[s->n++];
    span->text = text;
    span->len = len;
    span->blanks = text ? s->blanks : 0;
    span->id = id;
    span->trusted = trusted;
    span->target = s->target;
    s->blanks = 0;
}

/* Only a literal's blanks are moved: a user's text stays as it is, and an empty one makes no span. */
static void hbk__add_text(hbk__spans *s, const char *text, hbk_int len, bool trusted)
{
    hbk_int end = len;
    while (trusted && end > 0 && text[end - 1] == ' ') end--;
    if (end > 0) hbk__add_span(s, text, end, -1, trusted);
    s->blanks += len - end;
}

static void hbk__add_id(hbk__spans *s, int32_t id)
{
    if (id < 0) return; /* a vocabulary without bos or eos */
    if (s->blanks) hbk__add_span(s, "", 0, -1, true);
    hbk__add_span(s, NULL, 0, id, true);
}

static void hbk__add_user(hbk__spans *s, const char *text)
{
    if (text) hbk__add_text(s, text, (hbk_int)strlen(text), false);
}

HBK_DEF hbk_int hbk_template_spans(const hbk_template *t, const hbk_tokenizer *tok, const hbk_render *r,
                                   hbk_span_text spans[HBK_MAX_SPANS])
{
    const char *parts[2] = {hbk__template_text(t, r->use), t->text[HBK__TEXT_REPLY]};
    hbk__spans s = {spans, 0, 0, false};
    if (r->use == HBK_FORWARD && r->system && t->text[HBK__TEXT_SYSTEM]) parts[0] = t->text[HBK__TEXT_SYSTEM];
    for (int part = 0; part < 2; part++) {
        hbk__template_piece p;
        for (const char *at = parts[part]; hbk__next_piece(&at, &p);) {
            switch (p.slot) {
            case HBK__SLOT_NONE: hbk__add_text(&s, p.text, p.len, true); break;
            case HBK__SLOT_BOS: hbk__add_id(&s, hbk_tokenizer_bos(tok)); break;
            case HBK__SLOT_EOS: hbk__add_id(&s, hbk_tokenizer_eos(tok)); break;
            case HBK__SLOT_INSTRUCTION:
                hbk__add_user(&s, r->instruction);
                if ((r->use == HBK_FORWARD || r->use == HBK_NEXT) && r->tag && *r->tag) {
                    s.blanks++;
                    hbk__add_text(&s, r->tag, (hbk_int)strlen(r->tag), true);
                }
                break;
            case HBK__SLOT_OUTPUT:
                if (part == 1 && !r->reply) return s.n; /* blanks still waiting are the model's to write */
                s.target = part == 1;
                hbk__add_user(&s, part == 1 ? r->reply : r->output);
                break;
            case HBK__SLOT_SYSTEM: hbk__add_user(&s, r->system); break;
            case HBK__N_TEMPLATE_SLOTS: break;
            }
        }
    }
    return s.n;
}

/* Appends the ids of one span of text; `begins`: no text stands before it. */
static bool hbk__encode_span(const hbk_template *t, const hbk_tokenizer *tok, const hbk_span_text *span,
                             bool begins, hbk_tokens *out, hbk_error *err)
{
    hbk_text text;
    memset(&text, 0, sizeof text);
    text.alloc = out->alloc;
    for (hbk_int i = 0; i < span->blanks; i++) hbk_text_append(&text, " ", 1);
    hbk_text_append(&text, span->text, (size_t)span->len);
    unsigned flags =
        (span->trusted ? (unsigned)HBK_ENCODE_SPECIAL : 0u) | (begins ? 0u : (unsigned)HBK_ENCODE_CONTINUE);
    hbk_int from = out->n;
    bool ok = hbk_text_ok(&text, err) &&
              hbk_tokenizer_encode(tok, hbk_text_string(&text), text.len, flags, out, err);
    int32_t unk = hbk_tokenizer_unk(tok);
    for (hbk_int i = from; ok && span->trusted && unk >= 0 && i < out->n; i++)
        if (out->data[i] == unk)
            ok = hbk_fail(err, HBK_ERROR_OPTION,
                          "the model's vocabulary cannot spell \"%.60s%s\" of template %s: take %sa "
                          "file of your own (--template FILE; hbk_template_load in C)",
                          hbk_text_string(&text), text.len > 60 ? "..." : "", t->text[HBK__TEXT_NAME],
                          strcmp(t->text[HBK__TEXT_NAME], "plain") ? "--template plain or " : "");
    hbk_text_free(&text);
    return ok;
}

HBK_DEF bool hbk_template_tokens(const hbk_template *t, const hbk_tokenizer *tok, const hbk_render *r,
                                 hbk_tokens *out, hbk_int *n_prompt, hbk_error *err)
{
    hbk_span_text spans[HBK_MAX_SPANS];
    hbk_int n = hbk_template_spans(t, tok, r, spans), start = out->n, prompt = -1;
    bool ok = true, begins = r->use != HBK_NEXT; /* text after bos gets what a text's beginning gets */
    for (hbk_int i = 0; i < n && ok; i++) {
        if (spans[i].target && prompt < 0) prompt = out->n - start;
        if (spans[i].text) {
            ok = hbk__encode_span(t, tok, &spans[i], begins, out, err);
            begins = false;
        } else {
            hbk_tokens_push(out, spans[i].id);
            begins = begins || spans[i].id == hbk_tokenizer_bos(tok);
        }
    }
    ok = ok && hbk_tokens_ok(out, err);
    if (!ok)
        out->n = start;
    else if (n_prompt)
        *n_prompt = prompt < 0 ? out->n - start : prompt;
    return ok;
}

/* A reply's ending stands at its end and, in a chat, at the beginning of "next", perhaps behind a blank
   (Llama 2 writes " </s>" into its history). How many ids of `next` are that; 0: `out` does not end so. */
static hbk_int hbk__shared_ending(const hbk_tokens *out, const hbk_tokens *next)
{
    for (hbk_int blank = 0; blank <= 1; blank++)
        for (hbk_int k = 1; k <= 16 && blank + k <= next->n && k <= out->n; k++)
            if (!memcmp(out->data + out->n - k, next->data + blank, (size_t)k * sizeof *next->data))
                return blank + k;
    return 0;
}

/* Appends one exchange, the user's turn and the reply. */
static bool hbk__add_exchange(const hbk_template *t, const hbk_tokenizer *tok, const hbk_render *r,
                              bool learns, hbk_tokens *out, hbk_text *learn, hbk_error *err)
{
    hbk_int n_prompt = 0, skip = 0;
    hbk_tokens ids;
    memset(&ids, 0, sizeof ids);
    ids.alloc = out->alloc;
    bool ok = hbk_template_tokens(t, tok, r, &ids, &n_prompt, err);
    if (ok && r->use == HBK_NEXT && !(skip = hbk__shared_ending(out, &ids)))
        ok = hbk_fail(err, HBK_ERROR_UNSUPPORTED,
                      "template %s: its \"next\" does not begin with the end of its \"reply\", so that "
                      "conversations cannot be learned: use another template",
                      t->text[HBK__TEXT_NAME]);
    if (ok) hbk_tokens_append(out, ids.data + skip, ids.n - skip);
    for (hbk_int i = skip; i < ids.n && ok; i++)
        hbk_text_append(learn, i >= n_prompt && learns ? "\1" : "\0", 1);
    hbk_tokens_free(&ids);
    return ok && hbk_tokens_ok(out, err) && hbk_text_ok(learn, err);
}

HBK_DEF bool hbk_template_dialog(const hbk_template *t, const hbk_tokenizer *tok, const hbk_turn *turns,
                                 hbk_int n_turns, const char *tag, hbk_tokens *out, hbk_text *learn,
                                 hbk_error *err)
{
    static const char *const roles[] = {"system", "user", "assistant"};
    hbk_int first = n_turns > 0 && turns[0].role == HBK_SYSTEM, start = out->n;
    size_t marks = learn->len;
    hbk_render r;
    memset(&r, 0, sizeof r);
    r.tag = tag;
    bool ok = true;
    if (first && !t->text[HBK__TEXT_SYSTEM])
        ok = hbk_fail(err, HBK_ERROR_UNSUPPORTED,
                      "template %s has no place for a system text: use another one, or remove the text",
                      t->text[HBK__TEXT_NAME]);
    for (hbk_int i = first; i < n_turns && ok; i++) {
        hbk_role wanted = (i - first) % 2 ? HBK_ASSISTANT : HBK_USER;
        if (turns[i].role != wanted) {
            ok = hbk_fail(err, HBK_ERROR_DATA,
                          "turn %lld is the %s's, expected the %s's: a user's and an assistant's turns take "
                          "turns, after at most one system text; mend or remove the row",
                          (long long)i + 1, roles[turns[i].role], roles[wanted]);
        } else if (wanted == HBK_ASSISTANT) {
            r.use = i == first + 1 ? HBK_FORWARD : HBK_NEXT;
            r.system = first && i == 2 ? turns[0].text : NULL;
            r.instruction = turns[i - 1].text;
            r.reply = turns[i].text;
            ok = hbk__add_exchange(t, tok, &r, turns[i].learn, out, learn, err);
        }
    }
    if (ok && out->n == start)
        ok = hbk_fail(err, HBK_ERROR_DATA, "the conversation has no reply to learn: remove the row");
    if (!ok) {
        out->n = start;
        learn->len = marks;
    }
    return ok;
}

HBK_DEF bool hbk_template_check(const hbk_template *t, const hbk_tokenizer *tok, hbk_error *err)
{
    hbk_render r;
    memset(&r, 0, sizeof r);
    r.use = HBK_FORWARD;
    r.instruction = r.reply = "."; /* they only keep the template's spans apart */
    hbk_span_text spans[HBK_MAX_SPANS];
    hbk_int n = hbk_template_spans(t, tok, &r, spans);
    hbk_tokens ids;
    memset(&ids, 0, sizeof ids);
    ids.alloc = t->alloc;
    bool ok = true, begins = true;
    for (hbk_int i = 0; i < n && ok; i++) {
        if (spans[i].text && spans[i].trusted) ok = hbk__encode_span(t, tok, &spans[i], begins, &ids, err);
        begins = begins && !spans[i].text;
    }
    ok = ok && hbk_tokens_ok(&ids, err);
    hbk_tokens_free(&ids);
    return ok;
}

HBK_DEF int32_t hbk_template_stop(const hbk_template *t, const hbk_tokenizer *tok)
{
    hbk_render r;
    memset(&r, 0, sizeof r);
    r.use = HBK_FORWARD;
    r.reply = "";
    hbk_span_text spans[HBK_MAX_SPANS];
    hbk_int n = hbk_template_spans(t, tok, &r, spans);
    if (n == 0 || !spans[n - 1].target) return -1; /* the reply ends with {output} */
    if (!spans[n - 1].text) return spans[n - 1].id;
    hbk_tokens ids;
    memset(&ids, 0, sizeof ids);
    ids.alloc = t->alloc;
    int32_t stop = -1; /* an ending of several ids, "\n###" say, ends in a token that means nothing alone */
    if (hbk__encode_span(t, tok, &spans[n - 1], false, &ids, NULL) && ids.n == 1) stop = ids.data[0];
    hbk_tokens_free(&ids);
    return stop;
}

HBK_DEF bool hbk_template_save_stop(const hbk_template *t, const hbk_tokenizer *tok, const char *dir,
                                    hbk_error *err)
{
    char path[512];
    int32_t stop = hbk_template_stop(t, tok);
    if (stop < 0) return true;
    json_t *root = hbk_path(path, dir, "generation_config.json", err) ? hbk_json_read(path, err) : NULL;
    if (!root) return false;
    json_t *old = json_object_get(root, "eos_token_id"), *ids = json_array();
    bool found = false, made = ids != NULL;
    for (size_t i = 0; made && i < (json_is_array(old) ? json_array_size(old) : 1); i++) {
        json_t *id = json_is_array(old) ? json_array_get(old, i) : old;
        if (!json_is_integer(id)) continue;
        found = found || json_integer_value(id) == stop;
        made = json_array_append(ids, id) == 0;
    }
    made = made && json_array_append_new(ids, json_integer(stop)) == 0 &&
           json_object_set(root, "eos_token_id", ids) == 0;
    bool ok = made || hbk_fail_at(err, HBK_ERROR_MEMORY, path, 0, "is no object, or memory is out");
    ok = ok && (found || hbk_json_write(path, root, err));
    json_decref(ids);
    json_decref(root);
    return ok;
}

HBK_DEF const char *hbk_template_stop_text(const hbk_template *t)
{
    const char *end = strstr(t->text[HBK__TEXT_REPLY], "{output}") + strlen("{output}"), *at = end;
    hbk__template_piece p;
    bool text = hbk__next_piece(&at, &p) && p.slot == HBK__SLOT_NONE && !*at;
    return text && end[strspn(end, " \t\r\n")] ? end : "";
}

/* ==== 15  EXAMPLES AND BATCHES ===============================================

   pairs    what people wrote or the loop made: (instruction, output) and where it came from
   dataset  the same as token ids, all examples in one array, and for each token whether it carries loss
   packer   a batch under construction: examples laid end to end, no padding anywhere

   Public data comes in a handful of forms; each row becomes a conversation of turns, or words as they stand,
   and then an example. The loss is on the assistant's turns, or on what follows the prompt.

   An example of one turn, n ids x_0 .. x_(n-1) whose first n_prompt are the prompt, is fed as n - 1 tokens:

       token   x_0   x_1  ...  x_(p-2)  x_(p-1)   ...  x_(n-2)           p = n_prompt
       target  -1    -1   ...  -1       x_p       ...  x_(n-1)           -1: no loss

   The last prompt token already predicts the first id of the target, and the last id is only predicted.
   Nothing marks the border between sequences but seq_start: the model restarts positions there and never
   attends across, so a packed batch has the loss of its examples one by one.

   The backward model's examples are not masked the other way round but rendered the other way round: the
   output is the prompt, the instruction is the target. Swapping the mask alone would train p(x), not
   p(x|y). */

static bool hbk__is_blank(const char *s)
{
    return s[strspn(s, " \t\r\n\f\v")] == 0;
}

HBK_DEF bool hbk_pairs_add(hbk_pairs *p, const char *id, const char *instruction, const char *output,
                           const char *source, double score, hbk_error *err)
{
    void *data = p->data;
    if (!hbk__reserve(p->alloc, &data, &p->cap, p->n + 1, sizeof *p->data, err)) return false;
    p->data = (hbk_pair *)data;
    const char *const from[4] = {id, instruction, output, source};
    char *to[4];
    size_t total = 0, at = 0;
    for (int i = 0; i < 4; i++) total += strlen(from[i]) + 1;
    char *block = HBK__NEW(p->alloc, char, (hbk_int)total, err); /* one block a pair, freed through its id */
    if (!block) return false;
    for (int i = 0; i < 4; i++) {
        size_t n = strlen(from[i]) + 1;
        to[i] = (char *)memcpy(block + at, from[i], n);
        at += n;
    }
    hbk_pair *pair = &p->data[p->n++];
    pair->id = to[0];
    pair->instruction = to[1];
    pair->output = to[2];
    pair->source = to[3];
    pair->score = score;
    return true;
}

static void hbk__pairs_cut(hbk_pairs *p, hbk_int n)
{
    while (p->n > n) hbk_free(p->alloc, p->data[--p->n].id);
}

HBK_DEF void hbk_pairs_free(hbk_pairs *p)
{
    hbk__pairs_cut(p, 0);
    hbk_free(p->alloc, p->data);
    p->data = NULL;
    p->cap = 0;
}

/* A string of a row that must say something: not blank, and without NUL, where C would cut it. */
static bool hbk__row_text(const json_t *row, const char *key, const char **out, const char *path,
                          hbk_int line, hbk_error *err)
{
    if (!hbk_json_string(row, key, out, path, line, err)) return false;
    if (hbk__is_blank(*out))
        return hbk_fail_at(err, HBK_ERROR_DATA, path, line, "\"%s\" is empty: remove the row or fill it in",
                           key);
    if (strlen(*out) != json_string_length(json_object_get(row, key)))
        return hbk_fail_at(err, HBK_ERROR_DATA, path, line, "\"%s\" holds a NUL character: remove it", key);
    return true;
}

/* Alpaca's other half of an instruction; *input stays as it is where there is none, or a blank one. A number
   or a list is an error: dropped unseen, it would leave an instruction that asks for something else. */
static bool hbk__row_input(const json_t *row, const char **input, const char *path, hbk_int line,
                           hbk_error *err)
{
    const json_t *value = json_object_get(row, "input");
    const char *s = json_string_value(value);
    if (!value || json_is_null(value)) return true;
    if (s && hbk__is_blank(s) && strlen(s) == json_string_length(value)) return true;
    return hbk__row_text(row, "input", input, path, line, err);
}

/* The row's id, a string or an integer, into id[256]; "PREFIX-<line>" if it has none. */
static bool hbk__row_id(const json_t *row, const char *prefix, char id[256], const char *path, hbk_int line,
                        hbk_error *err)
{
    const json_t *value = json_object_get(row, "id");
    int n;
    if (json_is_integer(value))
        n = snprintf(id, 256, "%lld", (long long)json_integer_value(value));
    else if (json_is_string(value))
        n = snprintf(id, 256, "%s", json_string_value(value));
    else if (!value || json_is_null(value))
        n = snprintf(id, 256, "%s-%lld", prefix, (long long)line);
    else
        return hbk_fail_at(err, HBK_ERROR_FORMAT, path, line, "\"id\" is neither a string nor an integer");
    if (n > 0 && n < 256) return true;
    return hbk_fail_at(err, HBK_ERROR_RANGE, path, line, "\"id\" has %d bytes, expected 1 to 255", n);
}

static bool hbk__pairs_row(hbk_pairs *p, const json_t *row, const char *source, const char *path,
                           hbk_int line, hbk_error *err)
{
    char id[256];
    const char *instruction, *output;
    if (!hbk__row_id(row, "row", id, path, line, err) ||
        !hbk__row_text(row, "instruction", &instruction, path, line, err) ||
        !hbk__row_text(row, "output", &output, path, line, err))
        return false;
    const char *input = NULL;
    if (!hbk__row_input(row, &input, path, line, err)) return false;
    if (input) /* Alpaca's: an instruction without its half is not the instruction */
        return hbk_fail_at(err, HBK_ERROR_DATA, path, line,
                           "\"input\" is no field of a pair: join it to \"instruction\" (`humpback seeds`)");
    const char *own = json_string_value(json_object_get(row, "source"));
    if (own && (strcmp(own, "seed") == 0 || strcmp(own, "aug") == 0)) source = own;
    const json_t *score = json_object_get(row, "score");
    if (score && !json_is_null(score) && !json_is_number(score))
        return hbk_fail_at(err, HBK_ERROR_FORMAT, path, line, "\"score\" is no number");
    return hbk_pairs_add(p, id, instruction, output, source,
                         json_is_number(score) ? json_number_value(score) : (double)NAN, err);
}

HBK_DEF bool hbk_pairs_load(hbk_pairs *p, const char *path, const char *source, hbk_error *err)
{
    hbk_jsonl_reader *r = hbk_jsonl_open(path, p->alloc, err);
    if (!r) return false;
    hbk_int before = p->n;
    json_t *row;
    int got;
    while ((got = hbk_jsonl_next(r, &row, err)) > 0)
        if (!hbk__pairs_row(p, row, source, path, hbk_jsonl_line(r), err)) {
            got = -1;
            break;
        }
    hbk_jsonl_close(r);
    if (got < 0) hbk__pairs_cut(p, before);
    return got == 0;
}

/* Room for one more example of n tokens. Nothing of what is there changes. */
static bool hbk__dataset_reserve(hbk_dataset *d, hbk_int n, hbk_error *err)
{
    void *learn = d->learn;
    if (!hbk__reserve(d->alloc, &learn, &d->learn_cap, d->tokens.n + n, sizeof *d->learn, err)) return false;
    d->learn = (unsigned char *)learn;
    if (d->n < d->cap) return true;
    hbk_int cap = d->cap < 16 ? 16 : 2 * d->cap;
    hbk_int *start = (hbk_int *)hbk_realloc(d->alloc, d->start, cap + 1, sizeof *start, err);
    if (!start) return false;
    d->start = start;
    hbk_int *line = (hbk_int *)hbk_realloc(d->alloc, d->line, cap, sizeof *line, err);
    if (!line) return false;
    d->line = line;
    d->cap = cap;
    d->start[0] = 0;
    return true;
}

/* The loss is on tokens where learn is not 0 or, learn NULL, on those from n_prompt on. */
static bool hbk__dataset_append(hbk_dataset *d, const int32_t *ids, const unsigned char *learn,
                                hbk_int n_prompt, hbk_int n, hbk_error *err)
{
    hbk_int targets = 0, before = d->tokens.n;
    for (hbk_int k = 1; k < n; k++) targets += learn ? learn[k] != 0 : k >= n_prompt;
    if (targets == 0)
        return hbk_fail(err, HBK_ERROR_RANGE, "an example of %lld tokens: there is no token to learn",
                        (long long)n);
    if (!hbk__dataset_reserve(d, n, err)) return false;
    d->tokens.alloc = d->alloc;
    hbk_tokens_append(&d->tokens, ids, n);
    if (!hbk_tokens_ok(&d->tokens, err)) {
        d->tokens.n = before;
        d->tokens.failed = false; /* what was added before is whole */
        return false;
    }
    for (hbk_int k = 0; k < n; k++) /* nothing predicts token 0 */
        d->learn[before + k] = k > 0 && (learn ? learn[k] != 0 : k >= n_prompt);
    d->line[d->n] = 0;
    d->start[++d->n] = d->tokens.n;
    d->max_length = HBK__MAX(d->max_length, n);
    d->n_targets += targets;
    return true;
}

HBK_DEF bool hbk_dataset_add(hbk_dataset *d, const int32_t *ids, hbk_int n, hbk_int n_prompt, hbk_error *err)
{
    return hbk__dataset_append(d, ids, NULL, n_prompt, n, err);
}

HBK_DEF bool hbk_dataset_add_masked(hbk_dataset *d, const int32_t *ids, const unsigned char *learn, hbk_int n,
                                    hbk_error *err)
{
    return hbk__dataset_append(d, ids, learn, 0, n, err);
}

HBK_DEF hbk_int hbk_dataset_targets(const hbk_dataset *d, hbk_int i)
{
    hbk_int n = 0;
    for (hbk_int k = d->start[i]; k < d->start[i + 1]; k++) n += d->learn[k];
    return n;
}

/* Adds an example unless it is longer than max_length (0 or less: no limit), which is counted. */
static bool hbk__dataset_offer(hbk_dataset *d, const hbk_tokens *ids, hbk_int n_prompt, hbk_int max_length,
                               hbk_error *err)
{
    if (max_length <= 0 || ids->n <= max_length) return hbk_dataset_add(d, ids->data, ids->n, n_prompt, err);
    d->n_too_long++;
    return true;
}

/* Back to what `old`, a copy of *d, held: for failures midway. The arrays have grown at most. */
static void hbk__dataset_cut(hbk_dataset *d, const hbk_dataset *old)
{
    d->n = old->n;
    d->tokens.n = old->tokens.n;
    d->max_length = old->max_length;
    d->n_targets = old->n_targets;
    d->n_too_long = old->n_too_long;
    d->n_cut = old->n_cut;
    d->n_no_target = old->n_no_target;
}

HBK_DEF bool hbk_dataset_add_pairs(hbk_dataset *d, const hbk_pairs *p, const hbk_template *t,
                                   const hbk_tokenizer *tok, hbk_use use, const char *tag_seed,
                                   const char *tag_web, hbk_int max_length, hbk_error *err)
{
    HBK_ASSERT(use == HBK_FORWARD || use == HBK_BACKWARD); /* the others are generated, never learned */
    const hbk_dataset old = *d;
    hbk_tokens ids;
    memset(&ids, 0, sizeof ids);
    ids.alloc = d->alloc;
    bool ok = true;
    for (hbk_int i = 0; i < p->n && ok; i++) {
        const hbk_pair *pair = &p->data[i];
        hbk_render r;
        memset(&r, 0, sizeof r);
        r.use = use;
        if (use == HBK_FORWARD) {
            r.instruction = pair->instruction;
            r.tag = strcmp(pair->source, "seed") == 0  ? tag_seed
                    : strcmp(pair->source, "aug") == 0 ? tag_web
                                                       : NULL;
            r.reply = pair->output;
        } else {
            r.output = pair->output;
            r.reply = pair->instruction;
        }
        hbk_int n_prompt = 0;
        ids.n = 0;
        ok = hbk_template_tokens(t, tok, &r, &ids, &n_prompt, err) &&
             hbk__dataset_offer(d, &ids, n_prompt, max_length, err);
    }
    hbk_tokens_free(&ids);
    if (!ok) hbk__dataset_cut(d, &old);
    return ok;
}

HBK_DEF void hbk_dataset_free(hbk_dataset *d)
{
    hbk_tokens_free(&d->tokens);
    hbk_free(d->alloc, d->start);
    hbk_free(d->alloc, d->line);
    hbk_free(d->alloc, d->learn);
    d->start = d->line = NULL;
    d->learn = NULL;
    d->n = d->cap = d->learn_cap = d->max_length = d->n_targets = d->n_too_long = 0;
    d->n_cut = d->n_no_target = 0;
}

/* ---- public data: rows into conversations into examples -------------------------- */

HBK_DEF const char *hbk_form_name(hbk_form f)
{
    static const char *const names[] = {
#define HBK_X(name, text, shape) text,
        HBK_FORMS(HBK_X)
#undef HBK_X
    };
    return f >= 0 && f < HBK_FORM_COUNT ? names[f] : "?";
}

/* The form of a file's first row; HBK_FORM_COUNT: none of them. */
static hbk_form hbk__form_of(const json_t *row)
{
    const json_t *prompt = json_object_get(row, "prompt");
    if (json_object_get(row, "instruction")) return HBK_FORM_PAIRS;
    if (json_object_get(row, "messages")) return HBK_FORM_MESSAGES;
    if (json_object_get(row, "conversations")) return HBK_FORM_SHAREGPT;
    if (json_object_get(row, "completion")) return HBK_FORM_COMPLETION;
    if (json_is_object(prompt)) return HBK_FORM_OASST;
    return json_object_get(row, "text") ? HBK_FORM_TEXT : HBK_FORM_COUNT;
}

/* A file in reading, and the row in work: its turns, whose texts belong to the row or to `joined`. */
typedef struct hbk__rows {
    const hbk_data_options *o;
    hbk_jsonl_reader *reader;
    const char *path;
    hbk_form form;
    bool settled; /* the form, beforehand: other fields of a row mean nothing then */
    hbk_allocator *alloc;
    hbk_turn *turns;
    hbk_int n, cap;
    hbk_text joined; /* an instruction and its input */
    const char *tag;
    hbk_tokens ids;
    hbk_text learn;
} hbk__rows;

static bool hbk__row_fails(const hbk__rows *r, hbk_error *err, const char *what, const char *key)
{
    return hbk_fail_at(err, HBK_ERROR_DATA, r->path, hbk_jsonl_line(r->reader), "\"%s\" %s", key, what);
}

static bool hbk__add_turn(hbk__rows *r, hbk_role role, const char *text, bool learn, hbk_error *err)
{
    void *data = r->turns;
    if (!hbk__reserve(r->alloc, &data, &r->cap, r->n + 1, sizeof *r->turns, err)) return false;
    r->turns = (hbk_turn *)data;
    hbk_turn turn = {role, learn, text};
    r->turns[r->n++] = turn;
    return true;
}

/* {"instruction", "input"?, "output"}: the input follows its instruction after a blank line. */
static bool hbk__row_pair(hbk__rows *r, const json_t *row, hbk_error *err)
{
    hbk_int line = hbk_jsonl_line(r->reader);
    const char *instruction = "", *output = "", *input = NULL;
    if (!hbk__row_text(row, "instruction", &instruction, r->path, line, err) ||
        !hbk__row_text(row, "output", &output, r->path, line, err) ||
        !hbk__row_input(row, &input, r->path, line, err))
        return false;
    hbk_text_add(&r->joined, instruction);
    if (input) hbk_text_printf(&r->joined, "\n\n%s", input);
    const char *source = json_string_value(json_object_get(row, "source"));
    if (source && strcmp(source, "aug") == 0) r->tag = r->o->tag_web;
    return hbk_text_ok(&r->joined, err) &&
           hbk__add_turn(r, HBK_USER, hbk_text_string(&r->joined), false, err) &&
           hbk__add_turn(r, HBK_ASSISTANT, output, true, err);
}

static bool hbk__role_of(const char *name, hbk_role *role)
{
    static const struct {
        const char *name;
        hbk_role role;
    } names[] = {{"system", HBK_SYSTEM},     {"user", HBK_USER},        {"human", HBK_USER},
                 {"prompter", HBK_USER},     {"assistant", HBK_ASSISTANT}, {"gpt", HBK_ASSISTANT},
                 {"chatgpt", HBK_ASSISTANT}, {"model", HBK_ASSISTANT}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i].name) == 0) {
            *role = names[i].role;
            return true;
        }
    return false;
}

/* The turns of the list `key`; `who` and `what` are the keys of a turn. */
static bool hbk__row_turns(hbk__rows *r, const json_t *row, const char *key, const char *who,
                           const char *what, hbk_error *err)
{
    hbk_int line = hbk_jsonl_line(r->reader);
    const json_t *list = json_object_get(row, key);
    if (!json_is_array(list) || json_array_size(list) == 0)
        return hbk__row_fails(r, err, "is no list of turns", key);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *turn = json_array_get(list, i), *weight = json_object_get(turn, "weight");
        const char *name = "", *text = "";
        hbk_role role;
        if (!hbk_json_string(turn, who, &name, r->path, line, err) ||
            !hbk__row_text(turn, what, &text, r->path, line, err))
            return false;
        if (!hbk__role_of(name, &role))
            return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, r->path, line,
                               "turn %zu is of \"%.40s\", expected system, user (human) or assistant (gpt): "
                               "remove the row",
                               i + 1, name);
        double w = weight && !json_is_null(weight) ? json_number_value(weight) : 1;
        if (weight && !json_is_null(weight) && (!json_is_number(weight) || (w != 0 && w != 1)))
            return hbk__row_fails(r, err, "is neither 0 nor 1", "weight");
        if (!hbk__add_turn(r, role, text, role == HBK_ASSISTANT && w > 0, err)) return false;
    }
    return true;
}

/* Lists of messages as prompt and completion: one conversation, whose prompt is not learned. */
static bool hbk__row_exchange(hbk__rows *r, const json_t *row, hbk_error *err)
{
    if (!hbk__row_turns(r, row, "prompt", "role", "content", err)) return false;
    for (hbk_int i = 0; i < r->n; i++) r->turns[i].learn = false;
    return hbk__row_turns(r, row, "completion", "role", "content", err);
}

/* Of an Open Assistant tree the first turn and, from there, the reply that people ranked first and the first
   answer to it, as long as there are such. */
static bool hbk__row_tree(hbk__rows *r, const json_t *row, hbk_error *err)
{
    const json_t *at = json_object_get(row, "prompt");
    for (hbk_role role = HBK_USER; at; role = role == HBK_USER ? HBK_ASSISTANT : HBK_USER) {
        const char *text = "";
        if (json_is_true(json_object_get(at, "deleted"))) break;
        if (!hbk__row_text(at, "text", &text, r->path, hbk_jsonl_line(r->reader), err) ||
            !hbk__add_turn(r, role, text, role == HBK_ASSISTANT, err))
            return false;
        const json_t *replies = json_object_get(at, "replies"), *best = NULL;
        for (size_t i = 0; i < json_array_size(replies) && !best; i++) {
            const json_t *rank = json_object_get(json_array_get(replies, i), "rank");
            if (role == HBK_ASSISTANT || (json_is_integer(rank) && json_integer_value(rank) == 0))
                best = json_array_get(replies, i);
        }
        at = best;
    }
    return true;
}

/* Appends the ids of a text of the user's, and the same number of marks. */
static bool hbk__row_ids(hbk__rows *r, const char *text, unsigned flags, bool learn, hbk_error *err)
{
    hbk_int from = r->ids.n;
    if (!hbk_tokenizer_encode(r->o->tok, text, strlen(text), flags, &r->ids, err)) return false;
    for (; from < r->ids.n; from++) hbk_text_append(&r->learn, learn ? "\1" : "\0", 1);
    return hbk_text_ok(&r->learn, err);
}

static bool hbk__row_id_of(hbk__rows *r, int32_t id, bool learn, hbk_error *err)
{
    if (id < 0) return true;
    hbk_tokens_push(&r->ids, id);
    hbk_text_append(&r->learn, learn ? "\1" : "\0", 1);
    return hbk_tokens_ok(&r->ids, err) && hbk_text_ok(&r->learn, err);
}

/* Words as they stand: bos, the prompt without loss, the rest with it, eos. */
static bool hbk__row_raw(hbk__rows *r, const json_t *row, hbk_error *err)
{
    const char *prompt = NULL, *rest = "";
    hbk_int line = hbk_jsonl_line(r->reader);
    const hbk_tokenizer *tok = r->o->tok;
    if (r->o->use == HBK_BACKWARD)
        return hbk_fail_at(err, HBK_ERROR_OPTION, r->path, line,
                           "rows of form %s have no instruction that a backward model could learn",
                           hbk_form_name(r->form));
    if (r->form == HBK_FORM_COMPLETION && !hbk__row_text(row, "prompt", &prompt, r->path, line, err))
        return false;
    return hbk__row_text(row, prompt ? "completion" : "text", &rest, r->path, line, err) &&
           hbk__row_id_of(r, hbk_tokenizer_bos(tok), false, err) &&
           (!prompt || hbk__row_ids(r, prompt, 0, false, err)) &&
           hbk__row_ids(r, rest, prompt ? (unsigned)HBK_ENCODE_CONTINUE : 0, true, err) &&
           hbk__row_id_of(r, hbk_tokenizer_eos(tok), true, err);
}

/* The turns through the template; for the backward model the first exchange the other way round. */
static bool hbk__row_render(hbk__rows *r, hbk_error *err)
{
    const hbk_data_options *o = r->o;
    if (o->use != HBK_BACKWARD)
        return hbk_template_dialog(o->tmpl, o->tok, r->turns, r->n, r->tag, &r->ids, &r->learn, err);
    hbk_int at = r->n > 0 && r->turns[0].role == HBK_SYSTEM, n_prompt = 0;
    if (r->n < at + 2 || r->turns[at].role != HBK_USER || r->turns[at + 1].role != HBK_ASSISTANT)
        return hbk_fail(err, HBK_ERROR_DATA, "the row does not begin with a user's turn and a reply");
    hbk_render render;
    memset(&render, 0, sizeof render);
    render.use = HBK_BACKWARD;
    render.output = r->turns[at + 1].text;
    render.reply = r->turns[at].text;
    if (!hbk_template_tokens(o->tmpl, o->tok, &render, &r->ids, &n_prompt, err)) return false;
    for (hbk_int i = 0; i < r->ids.n; i++) hbk_text_append(&r->learn, i >= n_prompt ? "\1" : "\0", 1);
    return hbk_text_ok(&r->learn, err);
}

/* The example that was made goes to the dataset, unless it is too long or teaches nothing. */
static bool hbk__row_offer(hbk__rows *r, hbk_dataset *d, hbk_error *err)
{
    hbk_int n = r->ids.n, most = r->o->max_length;
    if (most > 0 && n > most) {
        if (r->o->overlong == HBK_OVERLONG_ERROR)
            return hbk_fail(err, HBK_ERROR_RANGE, "the example has %lld tokens, more than %lld: shorten "
                            "the row, raise the limit, or have such rows dropped or cut (--overlong)",
                            (long long)n, (long long)most);
        if (r->o->overlong == HBK_OVERLONG_DROP) {
            d->n_too_long++;
            return true;
        }
        n = most;
    }
    bool learns = false;
    for (hbk_int i = 1; i < n; i++) learns = learns || r->learn.data[i];
    d->n_no_target += !learns;
    d->n_cut += learns && n < r->ids.n;
    if (!learns) return true;
    if (!hbk_dataset_add_masked(d, r->ids.data, (const unsigned char *)r->learn.data, n, err)) return false;
    d->line[d->n - 1] = hbk_jsonl_line(r->reader);
    return true;
}

/* One row as an example of the file's form. */
static bool hbk__row_add(hbk__rows *r, const json_t *row, hbk_dataset *d, hbk_error *err)
{
    hbk_error why;
    memset(&why, 0, sizeof why);
    hbk_form own = r->settled ? r->form : hbk__form_of(row);
    hbk_int line = hbk_jsonl_line(r->reader);
    r->n = r->ids.n = 0;
    r->tag = r->o->tag_seed;
    hbk_text_clear(&r->joined);
    hbk_text_clear(&r->learn);
    if (own != r->form)
        return hbk_fail_at(err, HBK_ERROR_FORMAT, r->path, line,
                           "the file's first row is of form %s, this one %s%s", hbk_form_name(r->form),
                           own == HBK_FORM_COUNT ? "of none" : "of form ",
                           own == HBK_FORM_COUNT ? "" : hbk_form_name(own));
    bool ok = true;
    switch (r->form) {
    case HBK_FORM_PAIRS: ok = hbk__row_pair(r, row, err); break;
    case HBK_FORM_MESSAGES:
        ok = hbk__row_turns(r, row, "messages", "role", "content", err);
        break;
    case HBK_FORM_SHAREGPT:
        ok = hbk__row_turns(r, row, "conversations", "from", "value", err);
        break;
    case HBK_FORM_OASST:
        ok = hbk__row_tree(r, row, err);
        if (ok && r->n < 2) { /* nobody's answer was ranked */
            d->n_no_target++;
            return true;
        }
        break;
    case HBK_FORM_COMPLETION:
        ok = json_is_array(json_object_get(row, "prompt")) ? hbk__row_exchange(r, row, err)
                                                           : hbk__row_raw(r, row, err);
        break;
    case HBK_FORM_TEXT: ok = hbk__row_raw(r, row, err); break;
    case HBK_FORM_COUNT: break;
    }
    if (!ok) return false;
    if ((r->n == 0 || hbk__row_render(r, &why)) && hbk__row_offer(r, d, &why)) return true;
    return hbk_fail_at(err, why.code, r->path, line, "%s", why.message);
}

/* The form of the first row, or an error with its keys that lists all. */
static bool hbk__rows_form(hbk__rows *r, const json_t *row, hbk_error *err)
{
    r->form = hbk__form_of(row);
    if (r->form != HBK_FORM_COUNT) return true;
    char keys[100] = "none";
    size_t used = 0;
    for (void *at = json_object_iter((json_t *)(uintptr_t)row); at && used < sizeof keys;
         at = json_object_iter_next((json_t *)(uintptr_t)row, at))
        used += (size_t)snprintf(keys + used, sizeof keys - used, "%s\"%.30s\"", used ? ", " : "",
                                 json_object_iter_key(at));
    return hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, r->path, hbk_jsonl_line(r->reader),
                       "is of no form that is known: its keys are %s, expected one of"
#define HBK_X(name, text, shape) " " shape
                       HBK_FORMS(HBK_X)
#undef HBK_X
                       , keys);
}

/* Rows of an array are counted, which does not say where they stand in the file. */
static void hbk__say_element(const hbk__rows *r, hbk_error *err)
{
    if (!err || !r->reader->array || r->reader->line < 1) return;
    size_t used = strlen(err->message);
    snprintf(err->message + used, sizeof err->message - used,
             " (%lld counts the rows of its array, not lines)", (long long)r->reader->line);
}

/* Appends the rows of a file of form *form or, HBK_FORM_COUNT, of that of its first row. */
static bool hbk__dataset_read(hbk_dataset *d, const char *path, const hbk_data_options *o, hbk_form *form,
                              hbk_error *err)
{
    const hbk_dataset old = *d;
    hbk__rows r;
    memset(&r, 0, sizeof r);
    r.o = o;
    r.path = path;
    r.alloc = r.joined.alloc = r.ids.alloc = r.learn.alloc = d->alloc;
    r.form = *form;
    r.settled = *form != HBK_FORM_COUNT;
    r.reader = hbk_jsonl_open(path, d->alloc, err);
    if (!r.reader) return false;
    json_t *row;
    int got;
    while ((got = hbk_jsonl_next(r.reader, &row, err)) > 0) {
        if (r.form == HBK_FORM_COUNT && !hbk__rows_form(&r, row, err)) got = -1;
        if (got > 0 && !hbk__row_add(&r, row, d, err)) got = -1;
        if (got < 0) break;
    }
    if (got < 0) hbk__say_element(&r, err);
    if (got == 0 && d->n == old.n) {
        hbk_int too_long = d->n_too_long - old.n_too_long, no_target = d->n_no_target - old.n_no_target;
        if (too_long + no_target == 0)
            hbk_fail_at(err, HBK_ERROR_DATA, path, 0, "holds no rows");
        else
            hbk_fail_at(err, HBK_ERROR_DATA, path, 0,
                        "holds nothing to learn: %lld rows are longer than %lld tokens, %lld have no reply "
                        "with loss; raise the limit or mend the rows",
                        (long long)too_long, (long long)o->max_length, (long long)no_target);
        got = -1;
    }
    hbk_jsonl_close(r.reader);
    hbk_free(r.alloc, r.turns);
    hbk_text_free(&r.joined);
    hbk_tokens_free(&r.ids);
    hbk_text_free(&r.learn);
    if (got < 0) hbk__dataset_cut(d, &old);
    *form = r.form;
    return got == 0;
}

HBK_DEF bool hbk_dataset_add_file(hbk_dataset *d, const char *path, const hbk_data_options *o, hbk_form *form,
                                  hbk_error *err)
{
    hbk_form found = HBK_FORM_COUNT;
    if (!hbk__dataset_read(d, path, o, &found, err)) return false;
    if (form) *form = found;
    return true;
}

HBK_DEF bool hbk_dataset_add_texts(hbk_dataset *d, const char *path, const hbk_tokenizer *tok,
                                   hbk_int max_length, hbk_error *err)
{
    hbk_form text = HBK_FORM_TEXT;
    hbk_data_options o;
    memset(&o, 0, sizeof o);
    o.tok = tok;
    o.max_length = max_length;
    return hbk__dataset_read(d, path, &o, &text, err);
}

/* Appends example i of `from`. */
static bool hbk__dataset_copy(hbk_dataset *to, const hbk_dataset *from, hbk_int i, hbk_error *err)
{
    hbk_int at = from->start[i], n = from->start[i + 1] - at;
    if (!hbk_dataset_add_masked(to, from->tokens.data + at, from->learn + at, n, err)) return false;
    to->line[to->n - 1] = from->line[i];
    return true;
}

HBK_DEF bool hbk_dataset_split(hbk_dataset *d, hbk_dataset *held, double share, uint64_t seed,
                               hbk_error *err)
{
    if (d->n < 2 || !(share > 0 && share < 1))
        return hbk_fail(err, HBK_ERROR_DATA,
                        "a share of %g of %lld examples cannot be held out: expected a share between 0 and 1 "
                        "of at least two examples",
                        share, (long long)d->n);
    hbk_int n_held = HBK__MAX(1, HBK__MIN(d->n - 1, (hbk_int)floor(share * (double)d->n + 0.5)));
    const hbk_dataset before = *held;
    hbk_dataset rest;
    memset(&rest, 0, sizeof rest);
    rest.alloc = d->alloc;
    rest.n_too_long = d->n_too_long;
    rest.n_cut = d->n_cut;
    rest.n_no_target = d->n_no_target;
    hbk_rng rng = hbk_rng_at(seed, "split", 0);
    bool ok = true;
    hbk_int wanted = n_held;
    for (hbk_int i = 0; i < d->n && ok; i++) { /* Knuth, TAOCP 2, algorithm 3.4.2 S: file order stays */
        bool out = hbk_rng_below(&rng, d->n - i) < wanted;
        wanted -= out;
        ok = hbk__dataset_copy(out ? held : &rest, d, i, err);
    }
    if (ok) {
        hbk_dataset_free(d);
        *d = rest;
    } else {
        hbk_dataset_free(&rest);
        hbk__dataset_cut(held, &before);
    }
    return ok;
}

HBK_DEF bool hbk_packer_init(hbk_packer *p, hbk_int max_tokens, hbk_int max_seqs, hbk_allocator *alloc,
                             hbk_error *err)
{
    if (max_tokens < 1 || max_seqs < 1 || max_seqs == INT64_MAX)
        return hbk_fail(err, HBK_ERROR_RANGE, "a batch of %lld tokens in %lld sequences cannot hold anything",
                        (long long)max_tokens, (long long)max_seqs);
    hbk_packer made;
    memset(&made, 0, sizeof made);
    made.alloc = alloc;
    made.max_tokens = max_tokens;
    made.max_seqs = max_seqs;
    made.tokens = HBK__NEW(alloc, int32_t, max_tokens, err);
    if (made.tokens) made.targets = HBK__NEW(alloc, int32_t, max_tokens, err);
    if (made.targets) made.seq_start = HBK__NEW(alloc, hbk_int, max_seqs + 1, err);
    if (!made.seq_start) {
        hbk_packer_free(&made);
        return false;
    }
    *p = made;
    return true;
}

HBK_DEF void hbk_packer_free(hbk_packer *p)
{
    hbk_free(p->alloc, p->tokens);
    hbk_free(p->alloc, p->targets);
    hbk_free(p->alloc, p->seq_start);
    memset(p, 0, sizeof *p);
}

HBK_DEF void hbk_packer_clear(hbk_packer *p)
{
    p->n_tokens = p->n_seqs = p->n_targets = 0; /* seq_start[0] is 0 for ever */
}

HBK_DEF bool hbk_packer_add(hbk_packer *p, const hbk_dataset *d, hbk_int i)
{
    HBK_ASSERT(i >= 0 && i < d->n);
    const int32_t *x = d->tokens.data + d->start[i];
    const unsigned char *learn = d->learn + d->start[i];
    hbk_int n = d->start[i + 1] - d->start[i] - 1;
    if (n > p->max_tokens - p->n_tokens || p->n_seqs == p->max_seqs) return false;
    for (hbk_int j = 0; j < n; j++) {
        p->tokens[p->n_tokens + j] = x[j];
        p->targets[p->n_tokens + j] = learn[j + 1] ? x[j + 1] : -1;
        p->n_targets += learn[j + 1];
    }
    p->n_tokens += n;
    p->seq_start[++p->n_seqs] = p->n_tokens;
    return true;
}

HBK_DEF hbk_batch hbk_packer_batch(const hbk_packer *p)
{
    hbk_batch b;
    b.n_tokens = p->n_tokens;
    b.n_seqs = p->n_seqs;
    b.tokens = p->tokens;
    b.targets = p->targets;
    b.seq_start = p->seq_start;
    return b;
}

HBK__GLUE_END

/* ==== 16  OPTIMISER AND SCHEDULE =============================================

   AdamW (Loshchilov & Hutter 2019), at step t with gradient g:

       m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
       w = w - lr wd w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

   The decay acts on the weight itself, not through the gradient.

   The schedule's floor is an absolute learning rate: the paper ends at 9e-6, and a public replication that
   took this number for a multiplier trained its last steps with next to nothing. */

/* c1 = 1 - b1 and c2 = 1 - b2 come in, subtracted in double: 1 - 0.999f is off by 5e-5 of itself, which the
   bias correction would not know. */
HBK__CLONES
static void hbk__adamw_chunk(hbk_real *w, hbk_real *m, hbk_real *v, const hbk_real *g, hbk_int n,
                             hbk_real scale, hbk_real c1, hbk_real c2, hbk_real rate, hbk_real root,
                             hbk_real eps, hbk_real decay)
{
    for (hbk_int i = 0; i < n; i++) {
        hbk_real gi = g[i] * scale;
        m[i] += c1 * (gi - m[i]);
        v[i] += c2 * (gi * gi - v[i]);
#ifdef HBK_REAL_DOUBLE
        hbk_real s = sqrt(v[i]);
#else
        hbk_real s = sqrtf(v[i]);
#endif
        w[i] = w[i] * decay - rate * m[i] / (s * root + eps);
    }
}

HBK_DEF void hbk_adamw_step(hbk_real *values, hbk_real *m, hbk_real *v, const hbk_real *grads, hbk_int n,
                            hbk_int step, double scale, const hbk_adamw *o)
{
    HBK_ASSERT(step >= 1);
    double t = (double)step;
    hbk_real rate = (hbk_real)(o->lr / (1 - pow(o->beta1, t)));
    hbk_real root = (hbk_real)(1 / sqrt(1 - pow(o->beta2, t)));
    hbk_real decay = (hbk_real)(1 - o->lr * o->weight_decay);
#ifdef _OPENMP
#pragma omp parallel for schedule(static) if (n > HBK__PARALLEL_MIN)
#endif
    for (hbk_int i = 0; i < n; i += HBK__CHUNK)
        hbk__adamw_chunk(values + i, m + i, v + i, grads + i, HBK__MIN(HBK__CHUNK, n - i), (hbk_real)scale,
                         (hbk_real)(1 - o->beta1), (hbk_real)(1 - o->beta2), rate, root, (hbk_real)o->eps,
                         decay);
}

HBK_DEF double hbk_norm(const hbk_real *g, hbk_int n)
{
    double total = 0, part[64];
    for (hbk_int b = 0; b < n; b += 64 * HBK__CHUNK) { /* parts in parallel, their sum in order */
        hbk_int parts = HBK__MIN(64, (n - b + HBK__CHUNK - 1) / HBK__CHUNK);
#ifdef _OPENMP
#pragma omp parallel for schedule(static) if (parts > 4)
#endif
        for (hbk_int i = 0; i < parts; i++) {
            hbk_int at = b + i * HBK__CHUNK;
            part[i] = hbk__sum_squares(g + at, HBK__MIN(HBK__CHUNK, n - at));
        }
        for (hbk_int i = 0; i < parts; i++) total += part[i];
    }
    return sqrt(total);
}

HBK_DEF double hbk_learning_rate(hbk_schedule s, hbk_int step, hbk_int steps, hbk_int warmup, double lr,
                                 double lr_end)
{
    if (step <= warmup) return lr * (double)step / (double)warmup;
    if (s == HBK_CONSTANT || steps <= warmup + 1) return lr;
    /* 0 at the first step after the warm-up, 1 at the last */
    double t = (double)(step - warmup - 1) / (double)(steps - warmup - 1);
    if (s == HBK_COSINE) t = 0.5 - 0.5 * cos(3.141592653589793 * t);
    return lr * (1 - t) + lr_end * t; /* exactly lr_end at t = 1 */
}

HBK__GLUE

/* ==== 17  FINETUNING =========================================================

   One trainer for LoRA, full finetuning and pretraining: they differ in which vector of numbers is stepped
   over, an adapter's or a model's.

       loss = (1 / M) sum over the M target tokens of the whole step of -log p(target | what precedes it)

   The mean is over the tokens of the step, however many passes and batches it takes, so that accumulation
   equals one large batch. A step's examples are spread over its passes by best fit. Which examples a step
   holds follows from (seed, epoch) alone, never from what ran before: a step can be repeated after a kill,
   and the files end with the same bytes. Where rows are held out, the weights of their lowest loss are the
   result; they are part of the checkpoint.

   Steps by data size are the paper's (Table 18), in between interpolated over log n. */

HBK_DEF hbk_train_options hbk_train_defaults(bool full)
{
    hbk_train_options o;
    memset(&o, 0, sizeof o);
    o.full = full;
    o.lora = hbk_adapter_defaults();
    o.dropout = full ? 0.1 : 0.05;
    o.lora_plus = 1;
    o.lr = full ? 1e-5 : 2e-4;
    o.lr_end = full ? 9e-6 : 2e-5;
    o.schedule = HBK_LINEAR;
    o.beta1 = 0.9;
    o.beta2 = 0.95;
    o.eps = 1e-8;
    o.weight_decay = full ? 0.1 : 0;
    o.clip = 1;
    o.batch = -1;
    o.accumulate = 1;
    o.steps = -1;
    o.max_tokens = 2048;
    o.max_length = -1;
    o.seed = 1;
    o.shuffle = true;
    o.validate_every = 50;
    o.save_every = 100;
    return o;
}

HBK_DEF hbk_int hbk_train_steps(hbk_int n)
{
    static const double size[] = {100, 800, 1600, 3200, 6400, 12800, 25600, 51200};
    static const double steps[] = {30, 300, 600, 500, 600, 600, 1200, 1600};
    if (n <= 100) return 30;
    for (int i = 1; i < 8; i++) {
        double t = log((double)n / size[i - 1]) / log(size[i] / size[i - 1]);
        if ((double)n <= size[i]) return (hbk_int)floor(steps[i - 1] + t * (steps[i] - steps[i - 1]) + 0.5);
    }
    return (hbk_int)((double)n / 32); /* beyond the table: one epoch of batches of 32, as its last row */
}

/* ---- the trainer ----------------------------------------------------------------- */

/* The validations so far: the lowest loss, the step that had it (0: none yet), and how many came since. */
typedef struct hbk__best_of {
    double loss;
    int64_t step, since;
} hbk__best_of;

struct hbk_trainer {
    hbk_allocator *alloc;
    const hbk_model *base;
    hbk_train_options o;
    hbk_real *values, *grads, *m, *v; /* (n) each */
    hbk_int n, step;
    hbk_real *best;     /* (n) the values of the lowest validation loss so far; NULL: none is kept */
    hbk__best_of found; /* where that was */
    double validated;   /* the last validation loss, for who watches; 0: none since the start */
    hbk_int passes;                  /* since the last update: part of the dropout's address */
    hbk_model *model, *dmodel;       /* full: views of values and grads */
    hbk_adapter *adapter, *dadapter; /* LoRA: likewise */
    hbk_acts *acts;
};

HBK_DEF void hbk_trainer_free(hbk_trainer *t)
{
    if (!t) return;
    hbk_acts_free(t->acts);
    hbk_model_free(t->model);
    hbk_model_free(t->dmodel);
    hbk_adapter_free(t->adapter);
    hbk_adapter_free(t->dadapter);
    hbk_free(t->alloc, t->values);
    hbk_free(t->alloc, t->grads);
    hbk_free(t->alloc, t->m);
    hbk_free(t->alloc, t->v);
    hbk_free(t->alloc, t->best);
    hbk_free(t->alloc, t);
}

/* The views: a model, or an adapter, whose tensors lie in values, and one in grads. */
static bool hbk__trainer_views(hbk_trainer *t, const hbk_adapter *init, hbk_error *err)
{
    const hbk_config *c = &t->base->config;
    if (t->o.full) {
        t->model = hbk_model_view(c, t->values, t->alloc, err);
        if (t->model) t->dmodel = hbk_model_view(c, t->grads, t->alloc, err);
        if (!t->dmodel) return false;
        hbk_model_unpack(t->values, t->base);
        hbk_model_round(t->model, t->base->head.rounds);
        return true;
    }
    t->adapter = hbk__adapter_view(init, c, t->values, t->alloc, err);
    if (t->adapter) t->dadapter = hbk__adapter_view(init, c, t->grads, t->alloc, err);
    if (t->dadapter) memcpy(t->values, init->values, (size_t)t->n * sizeof *t->values);
    return t->dadapter != NULL;
}

/* Is `init` of a model of this shape, or can o->lora make an adapter for it? */
static bool hbk__adapter_possible(const hbk_model *m, const hbk_train_options *o, const hbk_adapter *init,
                                  hbk_allocator *alloc, hbk_error *err)
{
    if (o->full) return true;
    if (init) return hbk__adapter_fits(init, &m->config, err);
    for (int slot = 0; slot < HBK_N_TARGETS; slot++)
        if (!(o->lora.targets >> slot & 1) && (o->lora.target_rank[slot] || o->lora.target_alpha[slot] != 0))
            return hbk_fail(err, HBK_ERROR_OPTION,
                            "a rank or alpha is given for %s, which is not adapted: add it to the targets",
                            hbk_slot_name((hbk_slot)slot));
    hbk_adapter *a = hbk__adapter_begin(&m->config, alloc, err); /* shapes, without numbers */
    bool ok = a && hbk__adapter_plan(a, &o->lora, err);
    hbk_adapter_free(a);
    return ok;
}

HBK_DEF hbk_trainer *hbk_trainer_new(const hbk_model *m, const hbk_train_options *o, const hbk_adapter *init,
                                     hbk_int max_tokens, hbk_int max_seq, hbk_allocator *alloc,
                                     hbk_error *err)
{
    hbk_adapter *fresh = NULL;
    if (!hbk__adapter_possible(m, o, init, alloc, err)) return NULL;
    if (!o->full && !init) {
        init = fresh = hbk_adapter_make(&m->config, &o->lora, o->seed, alloc, err);
        if (!fresh) return NULL;
    }
    hbk_trainer *t = HBK__NEW(alloc, hbk_trainer, 1, err);
    if (t) {
        t->alloc = alloc;
        t->base = m;
        t->o = *o;
        t->n = o->full ? hbk_model_count(&m->config) : init->n_values;
        t->values = HBK__NEW(alloc, hbk_real, t->n, err);
        if (t->values) t->grads = HBK__NEW(alloc, hbk_real, t->n, err);
        if (t->grads) t->m = HBK__NEW(alloc, hbk_real, t->n, err);
        if (t->m) t->v = HBK__NEW(alloc, hbk_real, t->n, err);
        if (t->v && hbk__trainer_views(t, init, err))
            t->acts = hbk_acts_new(m, t->adapter, max_tokens, max_seq,
                                   o->recompute ? HBK_KEEP_INPUTS : HBK_KEEP_ALL, alloc, err);
    }
    hbk_adapter_free(fresh);
    if (t && !t->acts) {
        hbk_trainer_free(t);
        t = NULL;
    }
    return t;
}

HBK_DEF bool hbk_trainer_memory(hbk_train_memory *memory, const hbk_config *c, const hbk_train_options *o,
                                hbk_int max_tokens, hbk_int max_seq, hbk_error *err)
{
    const hbk_int real = (hbk_int)sizeof(hbk_real);
    hbk__acts_size size;
    hbk_train_memory r;
    memset(&r, 0, sizeof r);
    if (!hbk_config_check(c, err)) return false;
    hbk_adapter *a = o->full ? NULL : hbk__adapter_begin(c, NULL, err); /* ranks without numbers */
    hbk_acts *acts = NULL;
    const hbk_adapter *planned = a;
    if (o->full || (a && hbk__adapter_plan(a, &o->lora, err)))
        acts = hbk__acts_begin(c, &planned, 1, max_tokens, max_seq,
                               o->recompute ? HBK_KEEP_INPUTS : HBK_KEEP_ALL, NULL, err);
    if (acts) {
        hbk_int scratch = hbk__acts_layout(acts, c, NULL, &size) - size.kept - size.logits;
        if (o->full || o->dropout <= 0) scratch -= size.lora_dropout;
        if (!o->full || o->dropout <= 0) scratch -= size.full_dropout;
        r.n_values = o->full ? hbk_model_count(c) : 0;
        for (hbk_int i = 0; a && i <= a->n_layers * HBK_N_SLOTS; i++)
            r.n_values += a->loras[i].rank * (a->loras[i].in + a->loras[i].out);
        r.values = r.gradients = real * r.n_values;
        r.moments = 2 * r.values;
        r.kept = real * size.kept;
        r.scratch = real * scratch;
        r.logits = real * size.logits;
        *memory = r;
    }
    hbk_acts_free(acts);
    hbk_adapter_free(a);
    return acts != NULL;
}

HBK_DEF const hbk_model *hbk_trainer_model(const hbk_trainer *t)
{
    return t->model ? t->model : t->base;
}

HBK_DEF const hbk_adapter *hbk_trainer_adapter(const hbk_trainer *t)
{
    return t->adapter;
}

HBK_DEF hbk_int hbk_trainer_step(const hbk_trainer *t)
{
    return t->step;
}

HBK_DEF bool hbk_trainer_accumulate(hbk_trainer *t, const hbk_batch *b, double scale, double *loss,
                                    hbk_error *err)
{
    hbk_pass p;
    memset(&p, 0, sizeof p);
    p.adapter = t->adapter;
    p.dmodel = t->dmodel;
    p.dadapter = t->dadapter;
    p.scale = scale;
    p.dropout = t->o.dropout;
    p.neftune = t->o.neftune;
    hbk_rng r = hbk_rng_at(t->o.seed, "dropout", (uint64_t)t->step * 4096 + (uint64_t)t->passes++);
    p.dropout_seed = hbk_rng_next(&r);
    return hbk_model_pass(t->acts, hbk_trainer_model(t), b, &p, loss, NULL, err);
}

/* n values from number `at` on. */
static void hbk__trainer_adamw_some(hbk_trainer *t, hbk_int at, hbk_int n, double scale, const hbk_adamw *o)
{
    hbk_adamw_step(t->values + at, t->m + at, t->v + at, t->grads + at, n, t->step, scale, o);
}

/* LoRA+: each B, which lies right behind its A, steps with a rate of its own. */
static void hbk__trainer_adamw_lora(hbk_trainer *t, double scale, hbk_adamw o)
{
    const double lr = o.lr;
    for (hbk_int i = 0; i <= t->adapter->n_layers * HBK_N_SLOTS && t->o.lora_plus != 1; i++) {
        const hbk_lora *l = &t->adapter->loras[i];
        if (!l->a) continue;
        o.lr = lr;
        hbk__trainer_adamw_some(t, l->a - t->values, l->rank * l->in, scale, &o);
        o.lr = lr * t->o.lora_plus;
        hbk__trainer_adamw_some(t, l->b - t->values, l->rank * l->out, scale, &o);
    }
    if (t->o.lora_plus == 1) hbk__trainer_adamw_some(t, 0, t->n, scale, &o);
}

/* Steps over every value; norms and biases, the one-row tensors of a model, do not decay. */
static void hbk__trainer_adamw(hbk_trainer *t, double scale, hbk_adamw o)
{
    if (t->adapter) {
        hbk__trainer_adamw_lora(t, scale, o);
        return;
    }
    char name[96];
    hbk_matrix w;
    hbk_int at = 0;
    double decay = o.weight_decay;
    for (hbk_int i = 0; hbk_tensor_at(t->model, i, name, &w); i++) {
        o.weight_decay = w.rows == 1 ? 0 : decay;
        hbk__trainer_adamw_some(t, at, w.rows * w.cols, scale, &o);
        at += w.rows * w.cols;
    }
}

HBK_DEF bool hbk_trainer_update(hbk_trainer *t, double lr, double *grad_norm, hbk_error *err)
{
    double norm = hbk_norm(t->grads, t->n);
    t->passes = 0;
    if (!isfinite(norm)) {
        memset(t->grads, 0, (size_t)t->n * sizeof *t->grads); /* or no later step could ever succeed */
        return hbk_fail(
            err, HBK_ERROR_NUMERIC,
            "step %lld: the gradient is not finite; the weights are those of the step before. Lower "
            "the learning rate, or look for a broken example",
            (long long)t->step + 1);
    }
    double scale = t->o.clip > 0 && norm > t->o.clip ? t->o.clip / norm : 1;
    hbk_adamw o = {lr, t->o.beta1, t->o.beta2, t->o.eps, t->o.weight_decay};
    t->step++;
    hbk__trainer_adamw(t, scale, o);
    memset(t->grads, 0, (size_t)t->n * sizeof *t->grads);
    if (!isfinite(hbk_norm(t->values, t->n)))
        return hbk_fail(err, HBK_ERROR_NUMERIC,
                        "step %lld: the weights are not finite any more: lower the learning rate, now %g",
                        (long long)t->step, lr);
    if (grad_norm) *grad_norm = norm;
    return true;
}

static hbk_tensor hbk__state_tensor(const char *name, const char *dtype, hbk_int n, const void *data,
                                    size_t size)
{
    hbk_tensor t;
    memset(&t, 0, sizeof t);
    t.name = name;
    snprintf(t.dtype, sizeof t.dtype, "%s", dtype);
    t.n_dims = 1;
    t.shape[0] = t.n_elements = n;
    t.data = data;
    t.bytes = (size_t)n * size;
    return t;
}

/* What a checkpoint holds, in its order: numbers of the trainer, which `data` of each tensor points at. */
enum { HBK__STATE_STEP = 3, HBK__STATE_MAX = 6 };
static hbk_int hbk__trainer_state(const hbk_trainer *t, int64_t *step, hbk_tensor state[HBK__STATE_MAX])
{
    const char *real = sizeof(hbk_real) == 8 ? "F64" : "F32";
    hbk_int n = 0;
    *step = t->step;
    state[n++] = hbk__state_tensor("values", real, t->n, t->values, sizeof(hbk_real));
    state[n++] = hbk__state_tensor("m", real, t->n, t->m, sizeof(hbk_real));
    state[n++] = hbk__state_tensor("v", real, t->n, t->v, sizeof(hbk_real));
    state[n++] = hbk__state_tensor("step", "I64", 1, step, sizeof *step);
    if (!t->best) return n;
    state[n++] = hbk__state_tensor("best", real, t->n, t->best, sizeof(hbk_real));
    state[n++] = hbk__state_tensor("found", "U8", sizeof t->found, &t->found, 1);
    return n;
}

HBK_DEF bool hbk_trainer_save(const hbk_trainer *t, const char *path, hbk_error *err)
{
    int64_t step;
    hbk_tensor state[HBK__STATE_MAX];
    hbk_int n = hbk__trainer_state(t, &step, state);
    return hbk_safetensors_write(path, state, n, err);
}

HBK_DEF bool hbk_trainer_resume(hbk_trainer *t, const char *path, hbk_error *err)
{
    hbk_safetensors *s = hbk_safetensors_open(path, t->alloc, err);
    if (!s) return false;
    int64_t step;
    hbk_tensor state[HBK__STATE_MAX];
    const hbk_tensor *in[HBK__STATE_MAX] = {NULL};
    hbk_int n = hbk__trainer_state(t, &step, state);
    bool ok = true;
    for (hbk_int i = 0; i < n; i++) {
        in[i] = hbk_safetensors_find(s, state[i].name);
        if (!in[i] || strcmp(in[i]->dtype, state[i].dtype) != 0 || in[i]->bytes != state[i].bytes) ok = false;
    }
    if (ok) memcpy(&step, in[HBK__STATE_STEP]->data, sizeof step); /* looked at before the rest is touched */
    ok = ok && step >= 0;
    if (ok) {
        for (hbk_int i = 0; i < n; i++) /* the trainer's own memory, which is not const behind *t */
            memcpy((void *)(uintptr_t)state[i].data, in[i]->data, in[i]->bytes);
        t->step = step;
        t->passes = 0;
        memset(t->grads, 0, (size_t)t->n * sizeof *t->grads);
    } else {
        hbk_fail_at(
            err, HBK_ERROR_SHAPE, path, 0,
            "the checkpoint does not hold %lld values, moments and a step: it is of another run; remove it "
            "to start anew",
            (long long)t->n);
    }
    hbk_safetensors_close(s);
    return ok;
}

/* ---- the loop over steps ----------------------------------------------------------- */

/* An example of the step in work, and the pass that it is put into. */
typedef struct hbk__step_item {
    const hbk_dataset *from;
    hbk_int example, tokens, pass;
} hbk__step_item;

/* Everything about a finetuning that is settled before its first step. */
typedef struct hbk__plan {
    const hbk_dataset *data, *replay, *validation;
    hbk_train_options o;         /* batch and steps resolved */
    hbk_int *order;              /* (data->n) the epoch's permutation */
    hbk_int *replay_order;       /* (replay->n) */
    hbk_int epoch, replay_epoch; /* which those are of; -1: none yet */
    hbk_int per_step;            /* examples of a step, replayed ones included */
    hbk__step_item *items;       /* (per_step) */
    hbk_int *room;               /* (per_step) tokens that still fit into each pass */
    hbk_packer packer;
    hbk_allocator *alloc;
} hbk__plan;

/* Example number `at` of an endless reading of n examples, each epoch in an order of its own. */
static hbk_int hbk__example_at(const hbk__plan *p, const char *stage, hbk_int *order, hbk_int *epoch,
                               hbk_int n, hbk_int at)
{
    if (at / n != *epoch) {
        *epoch = at / n;
        for (hbk_int i = 0; i < n; i++) order[i] = i;
        hbk_rng r = hbk_rng_at(p->o.seed, stage, (uint64_t)*epoch);
        if (p->o.shuffle) hbk_rng_shuffle(&r, order, n);
    }
    return order[at % n];
}

/* Example i (of 0 .. per_step-1) of a step: pairs first, replayed documents after each batch of pairs. */
static hbk_int hbk__step_example(hbk__plan *p, hbk_int step, hbk_int i, const hbk_dataset **from)
{
    hbk_int per_batch = p->o.batch + p->o.replay, batch = (step - 1) * p->o.accumulate + i / per_batch;
    hbk_int k = i % per_batch;
    *from = k < p->o.batch ? p->data : p->replay;
    if (k < p->o.batch)
        return hbk__example_at(p, "order", p->order, &p->epoch, p->data->n, batch * p->o.batch + k);
    return hbk__example_at(p, "replay", p->replay_order, &p->replay_epoch, p->replay->n,
                           batch * p->o.replay + k - p->o.batch);
}

static int hbk__by_length(const void *a, const void *b)
{
    const hbk__step_item *x = (const hbk__step_item *)a, *y = (const hbk__step_item *)b;
    if (x->tokens != y->tokens) return x->tokens < y->tokens ? 1 : -1;
    return x->pass < y->pass ? -1 : 1; /* before packing: the place in the step */
}

/* Spreads a step's examples over passes, as few as best fit finds: longest first, each to the pass that it
   leaves the least room in. Returns their number. Source: Johnson 1974, best fit decreasing. */
static hbk_int hbk__pack(hbk__plan *p)
{
    hbk_int n_passes = 0;
    qsort(p->items, (size_t)p->per_step, sizeof *p->items, hbk__by_length);
    for (hbk_int i = 0; i < p->per_step; i++) {
        hbk__step_item *x = &p->items[i];
        hbk_int best = -1;
        for (hbk_int k = 0; k < n_passes; k++)
            if (p->room[k] >= x->tokens && (best < 0 || p->room[k] < p->room[best])) best = k;
        if (best < 0) p->room[best = n_passes++] = p->packer.max_tokens;
        p->room[best] -= x->tokens;
        x->pass = best;
    }
    return n_passes;
}

/* Adds the gradient of one pass of the step, whose examples keep the order of hbk__pack. */
static bool hbk__train_pass(hbk_trainer *t, hbk__plan *p, hbk_int pass, hbk_int targets, double *sum,
                            hbk_error *err)
{
    double part;
    hbk_packer_clear(&p->packer);
    for (hbk_int i = 0; i < p->per_step; i++)
        if (p->items[i].pass == pass) hbk_packer_add(&p->packer, p->items[i].from, p->items[i].example);
    hbk_batch b = hbk_packer_batch(&p->packer);
    if (!hbk_trainer_accumulate(t, &b, 1 / (double)targets, &part, err)) return false;
    *sum += part;
    return true;
}

/* Names the examples of the step, as far as they fit into the message: by their line, where they have one,
   for what was left out or held out has shifted their numbers. */
static bool hbk__not_finite(const hbk__plan *p, hbk_int step, const char *what, hbk_error *err)
{
    char list[160] = "";
    size_t used = 0;
    for (hbk_int i = 0; i < p->per_step && used < sizeof list - 32; i++) {
        const hbk__step_item *x = &p->items[i];
        hbk_int line = x->from->line[x->example];
        used += (size_t)snprintf(list + used, sizeof list - used, "%s%s%s%lld", i ? ", " : "",
                                 x->from == p->data ? "" : "replayed ", line ? "line " : "",
                                 (long long)(line ? line : x->example + 1));
    }
    return hbk_fail(err, HBK_ERROR_NUMERIC,
                    "step %lld: the %s not finite; the last checkpoint stays. Its examples: %s%s. Lower the "
                    "learning rate, or look for a broken example",
                    (long long)step, what, list,
                    used < sizeof list - 32 ? "" : " ...");
}

/* What is known of a step when it is done. */
typedef struct hbk__step_facts {
    double loss, lr, norm; /* of the gradient, before clipping */
    double val_loss;       /* NAN: not validated */
    hbk_int tokens;
} hbk__step_facts;

/* One step: its examples packed into passes, then the update. */
static bool hbk__train_step(hbk_trainer *t, hbk__plan *p, hbk_int step, hbk__step_facts *facts,
                            hbk_error *err)
{
    hbk_int targets = 0;
    for (hbk_int i = 0; i < p->per_step; i++) {
        hbk__step_item *x = &p->items[i];
        x->example = hbk__step_example(p, step, i, &x->from);
        x->tokens = x->from->start[x->example + 1] - x->from->start[x->example] - 1; /* the last is not fed */
        x->pass = i;
        targets += hbk_dataset_targets(x->from, x->example);
        facts->tokens += x->tokens;
    }
    double sum = 0;
    hbk_int n_passes = hbk__pack(p);
    for (hbk_int k = 0; k < n_passes; k++)
        if (!hbk__train_pass(t, p, k, targets, &sum, err)) return false;
    facts->loss = sum / (double)targets;
    facts->lr = hbk_learning_rate(p->o.schedule, step, p->o.steps, p->o.warmup, p->o.lr, p->o.lr_end);
    if (isfinite(facts->loss) && hbk_trainer_update(t, facts->lr, &facts->norm, err)) return true;
    const char *what = !isfinite(facts->loss)                    ? "loss is"
                       : !isfinite(hbk_norm(t->values, t->n)) ? "weights are"
                                                              : "gradient is";
    return hbk__not_finite(p, step, what, err);
}

/* Mean loss of a target token of the validation set, without dropout. */
static bool hbk__validation_loss(hbk_trainer *t, hbk__plan *p, double *loss, hbk_error *err)
{
    const hbk_dataset *d = p->validation;
    hbk_pass forward;
    memset(&forward, 0, sizeof forward);
    forward.adapter = t->adapter;
    double sum = 0, part;
    for (hbk_int i = 0; i < d->n;) {
        hbk_packer_clear(&p->packer);
        while (i < d->n && hbk_packer_add(&p->packer, d, i)) i++;
        hbk_batch b = hbk_packer_batch(&p->packer);
        if (!hbk_model_pass(t->acts, hbk_trainer_model(t), &b, &forward, &part, NULL, err)) return false;
        sum += part;
    }
    *loss = sum / (double)d->n_targets;
    if (isfinite(*loss)) return true;
    return hbk_fail(err, HBK_ERROR_NUMERIC,
                    "step %lld: the validation loss is not finite; lower the learning rate",
                    (long long)t->step);
}

/* Validates where it is due and keeps the best weights. *loss stays NAN where it is not. */
static bool hbk__validate(hbk_trainer *t, hbk__plan *p, double *loss, hbk_error *err)
{
    bool last = t->step == p->o.steps;
    *loss = (double)NAN;
    if (!p->validation || !(last || (p->o.validate_every > 0 && t->step % p->o.validate_every == 0)))
        return true;
    if (!hbk__validation_loss(t, p, loss, err)) return false;
    t->validated = *loss;
    t->found.since++;
    if (t->found.step == 0 || *loss < t->found.loss) {
        t->found.loss = *loss;
        t->found.step = t->step;
        t->found.since = 0;
        memcpy(t->best, t->values, (size_t)t->n * sizeof *t->values);
    }
    return true;
}

/* Every option that a checkpoint is bound to. "recompute" is not: it changes no bit. */
typedef struct hbk__option {
    const char *key;
    char kind; /* b bool, i hbk_int, r double, u uint64_t, s schedule, t targets, I and R arrays for those */
    size_t offset;
} hbk__option;
#define HBK__OPTION(key, kind, field) {key, kind, offsetof(hbk_train_options, field)}
static const hbk__option hbk__train_fields[] = {
    HBK__OPTION("full", 'b', full),
    HBK__OPTION("rank", 'i', lora.rank),
    HBK__OPTION("alpha", 'r', lora.alpha),
    HBK__OPTION("targets", 't', lora.targets),
    HBK__OPTION("rslora", 'b', lora.rslora),
    HBK__OPTION("layer_begin", 'i', lora.layer_begin),
    HBK__OPTION("layer_end", 'i', lora.layer_end),
    HBK__OPTION("target_rank", 'I', lora.target_rank),
    HBK__OPTION("target_alpha", 'R', lora.target_alpha),
    HBK__OPTION("dropout", 'r', dropout),
    HBK__OPTION("neftune", 'r', neftune),
    HBK__OPTION("lora_plus", 'r', lora_plus),
    HBK__OPTION("lr", 'r', lr),
    HBK__OPTION("lr_end", 'r', lr_end),
    HBK__OPTION("schedule", 's', schedule),
    HBK__OPTION("warmup", 'i', warmup),
    HBK__OPTION("beta1", 'r', beta1),
    HBK__OPTION("beta2", 'r', beta2),
    HBK__OPTION("eps", 'r', eps),
    HBK__OPTION("weight_decay", 'r', weight_decay),
    HBK__OPTION("clip", 'r', clip),
    HBK__OPTION("batch", 'i', batch),
    HBK__OPTION("accumulate", 'i', accumulate),
    HBK__OPTION("steps", 'i', steps),
    HBK__OPTION("epochs", 'r', epochs),
    HBK__OPTION("max_tokens", 'i', max_tokens),
    HBK__OPTION("max_length", 'i', max_length),
    HBK__OPTION("replay", 'i', replay),
    HBK__OPTION("validate_every", 'i', validate_every),
    HBK__OPTION("patience", 'i', patience),
    HBK__OPTION("seed", 'u', seed),
    HBK__OPTION("shuffle", 'b', shuffle)};

static const char *hbk__schedule_name(hbk_schedule s)
{
    return s == HBK_COSINE ? "cosine" : s == HBK_CONSTANT ? "constant" : "linear";
}

/* "q_proj,lm_head": what hbk_adapter_targets reads. */
static json_t *hbk__target_names(unsigned targets)
{
    char names[160] = "";
    for (int i = 0; i < HBK_N_TARGETS; i++)
        if (targets >> i & 1)
            snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", *names ? "," : "",
                     hbk_slot_name((hbk_slot)i));
    return json_string(names);
}

/* The JSON of an option of a kind: choices by their names, as a refusal to go on quotes them. */
static json_t *hbk__option_json(const void *field, char kind)
{
    switch (kind) {
    case 'b': return json_boolean(*(const bool *)field);
    case 'i': return json_integer(*(const hbk_int *)field);
    case 'r': return json_real(*(const double *)field);
    case 's': return json_string(hbk__schedule_name(*(const hbk_schedule *)field));
    case 't': return hbk__target_names(*(const unsigned *)field);
    case 'u': return json_integer((json_int_t) * (const uint64_t *)field);
    default: break;
    }
    json_t *list = json_array();
    for (int i = 0; i < HBK_N_TARGETS && list; i++)
        if (json_array_append_new(list, kind == 'I' ? json_integer(((const hbk_int *)field)[i])
                                                    : json_real(((const double *)field)[i]))) {
            json_decref(list);
            list = NULL;
        }
    return list;
}

/* Adds every option to `into`, keys led by `prefix`: flat, so that a difference can be named. */
static bool hbk__options_json(json_t *into, const char *prefix, const hbk_train_options *o)
{
    for (size_t i = 0; i < sizeof hbk__train_fields / sizeof *hbk__train_fields; i++) {
        const hbk__option *f = &hbk__train_fields[i];
        char name[64];
        snprintf(name, sizeof name, "%s%s", prefix, f->key);
        if (json_object_set_new(into, name, hbk__option_json((const char *)o + f->offset, f->kind)))
            return false;
    }
    return into != NULL;
}

static json_t *hbk__hex(uint64_t h)
{
    char text[24];
    snprintf(text, sizeof text, "%016llx", (unsigned long long)h);
    return json_string(text);
}

static uint64_t hbk__dataset_hash(uint64_t h, const hbk_dataset *d)
{
    h = hbk_hash(h, d->tokens.data, (size_t)d->tokens.n * sizeof(int32_t));
    h = hbk_hash(h, d->start, (size_t)d->n * sizeof(hbk_int));
    return hbk_hash(h, d->learn, (size_t)d->tokens.n);
}

/* Options, base and data as one JSON object: what a checkpoint must have been made with to be continued. */
static json_t *hbk__train_json(const hbk__plan *p, const hbk_model *m, const hbk_adapter *init,
                               const hbk_recipe *r)
{
    uint64_t data = hbk__dataset_hash(0, p->data);
    if (p->replay) data = hbk__dataset_hash(data, p->replay);
    if (p->validation) data = hbk__dataset_hash(data, p->validation);
    if (init) data = hbk_adapter_hash(data, init);
    json_t *j = json_object();
    if (hbk__options_json(j, "", &p->o) && !json_object_set_new(j, "examples", json_integer(p->data->n)) &&
        !json_object_set_new(j, "model", hbk__hex(hbk_model_hash(m))) &&
        !json_object_set_new(j, "threads", json_integer(hbk__n_threads())) && /* sums differ by them */
        !json_object_set_new(j, "precision", json_string(hbk_model_precision(m))) &&
        !json_object_set_new(j, "template", hbk__hex(r->tmpl ? hbk_template_hash(r->tmpl) : 0)) &&
        !json_object_set_new(j, "tag_seed", r->tag_seed ? json_string(r->tag_seed) : json_null()) &&
        !json_object_set_new(j, "tag_web", r->tag_web ? json_string(r->tag_web) : json_null()) &&
        !json_object_set_new(j, "inference_tag",
                             r->inference_tag ? json_string(r->inference_tag) : json_null()) &&
        !json_object_set_new(j, "data", hbk__hex(data))) /* last: what else differs explains it */
        return j;
    json_decref(j);
    return NULL;
}

/* Compares `now` with what DIR/train.json says; a difference is named. Threads and data come last, for what
   else differs explains them, and neither is an option that could be given again as it was. */
static bool hbk__same_options(const char *path, const json_t *now, hbk_error *err)
{
    json_t *then = hbk_json_read(path, err), *options = json_copy((json_t *)(uintptr_t)now);
    if (then && !options) hbk_fail_at(err, HBK_ERROR_MEMORY, path, 0, "out of memory while it is compared");
    json_object_del(options, "threads");
    json_object_del(options, "data");
    bool ok = then && options && hbk_json_same(then, options, path, "another folder", err);
    long long had = json_integer_value(json_object_get(then, "threads")),
              has = json_integer_value(json_object_get(now, "threads"));
    if (ok && had != has)
        ok = hbk_fail_at(err, HBK_ERROR_OPTION, path, 0,
                         "was begun with threads %lld, not %lld, and sums differ by them: set "
                         "OMP_NUM_THREADS=%lld, or use another folder",
                         had, has, had);
    if (ok && !json_equal(json_object_get(then, "data"), json_object_get(now, "data")))
        ok = hbk_fail_at(err, HBK_ERROR_OPTION, path, 0,
                         "was begun with data that differ: rows of the examples, of what is replayed or "
                         "validated, or the adapter to start from; use the same, or another folder");
    json_decref(then);
    json_decref(options);
    return ok;
}

/* Is the number finite, and within least <= x < most? */
static bool hbk__in_range(const char *name, double x, double least, double most, hbk_error *err)
{
    if (isfinite(x) && x >= least && x < most) return true;
    return hbk_fail(err, HBK_ERROR_OPTION, "%s is %g, expected at least %g and below %g", name, x, least,
                    most);
}

static bool hbk__train_check(const hbk_train_options *o, hbk_error *err)
{
    const double any = 1e30;
    if (!o->full && !(o->lora.targets & (HBK_ALL_SLOTS | 1u << HBK_LM_HEAD)))
        return hbk_fail(err, HBK_ERROR_OPTION, "no projection is to be adapted: name targets, or all");
    if (o->lr == 0)
        return hbk_fail(err, HBK_ERROR_OPTION, "lr is 0: nothing would be learned; give a rate above it");
    if (o->schedule != HBK_CONSTANT && o->lr_end > o->lr)
        return hbk_fail(err, HBK_ERROR_OPTION,
                        "lr_end %g is above lr %g, so that the rate would rise: lower it too (it is a rate "
                        "of its own, no share of lr)",
                        o->lr_end, o->lr);
    return hbk__in_range("lr", o->lr, 0, any, err) && hbk__in_range("lr_end", o->lr_end, 0, any, err) &&
           hbk__in_range("alpha", o->lora.alpha, 0, any, err) &&
           hbk__in_range("clip", o->clip, 0, any, err) &&
           hbk__in_range("dropout", o->dropout, 0, 1, err) && hbk__in_range("beta1", o->beta1, 0, 1, err) &&
           hbk__in_range("beta2", o->beta2, 0, 1, err) && hbk__in_range("eps", o->eps, 1e-30, any, err) &&
           hbk__in_range("weight_decay", o->weight_decay, 0, any, err) &&
           hbk__in_range("neftune", o->neftune, 0, any, err) &&
           hbk__in_range("lora_plus", o->lora_plus, 1e-9, any, err) &&
           hbk__in_range("epochs", o->epochs, 0, any, err) &&
           hbk__in_range("warmup", (double)o->warmup, 0, any, err);
}

/* Tokens of the longest example that a plan reads. */
static hbk_int hbk__longest(const hbk__plan *p)
{
    hbk_int n = p->data->max_length;
    if (p->replay) n = HBK__MAX(n, p->replay->max_length);
    if (p->validation) n = HBK__MAX(n, p->validation->max_length);
    return n;
}

/* Examples of a batch, and updates of the weights, of a training on n examples. */
static hbk_int hbk__train_batch(const hbk_train_options *o, hbk_int n)
{
    return o->batch >= 0 ? o->batch : n < 3000 ? 8 : 32;
}

static hbk_int hbk__train_length(const hbk_train_options *o, hbk_int n)
{
    double per_step = (double)hbk__train_batch(o, n) * (double)o->accumulate;
    if (o->steps >= 0) return HBK__MAX(o->steps, 1);
    /* what is a whole number but for rounding, 1.1 epochs of 10 say, must not be rounded up to the next */
    double steps = ceil(o->epochs * (double)n / per_step * (1 - 1e-12));
    return o->epochs > 0 ? (hbk_int)fmin(fmax(steps, 1), 1e15) : HBK__MAX(hbk_train_steps(n), 1);
}

/* Is there something to train on, and do the options go with it? */
static bool hbk__plan_check(const hbk_train_data *in, const hbk_train_options *o, hbk_error *err)
{
    const hbk_dataset *data = in->examples, *replay = in->replay, *validation = in->validation;
    if (!hbk__train_check(o, err)) return false;
    if (data->n < 1)
        return hbk_fail(err, HBK_ERROR_DATA,
                        "there is no example to train on: %lld were too long; raise --max-length as far as "
                        "the context goes, or take shorter texts",
                        (long long)data->n_too_long);
    if (o->replay < 0 || (o->replay > 0 && (!replay || replay->n < 1)))
        return hbk_fail(err, HBK_ERROR_DATA,
                        "%lld replayed documents per batch were asked for, but none are given",
                        (long long)o->replay);
    if (validation && validation->n < 1)
        return hbk_fail(err, HBK_ERROR_DATA, "the validation set is empty (%lld examples were too long)",
                        (long long)validation->n_too_long);
    if (o->patience > 0 && !validation)
        return hbk_fail(err, HBK_ERROR_OPTION, "patience %lld needs a validation set",
                        (long long)o->patience);
    if (o->validate_every < 0 || o->patience < 0)
        return hbk_fail(err, HBK_ERROR_OPTION, "validate_every %lld and patience %lld must not be negative",
                        (long long)o->validate_every, (long long)o->patience);
    if (o->batch == 0 || o->batch < -1 || o->accumulate < 1 || o->steps == 0 || o->steps < -1)
        return hbk_fail(err, HBK_ERROR_OPTION,
                        "batch %lld, accumulate %lld and steps %lld: 1 is the least, or -1 for the usual "
                        "batch or steps",
                        (long long)o->batch, (long long)o->accumulate, (long long)o->steps);
    if (o->max_tokens < 1 || o->save_every < 0)
        return hbk_fail(err, HBK_ERROR_OPTION,
                        "max_tokens %lld and save_every %lld: expected 1 or more, and 0 or more",
                        (long long)o->max_tokens, (long long)o->save_every);
    return true;
}

/* Batch and steps as numbers. */
static bool hbk__plan_resolve(hbk__plan *p, hbk_error *err)
{
    hbk_train_options *o = &p->o;
    const hbk_int n = p->data->n;
    o->batch = hbk__train_batch(o, n);
    o->steps = hbk__train_length(o, n);
    if (o->warmup <= o->steps) return true;
    return hbk_fail(err, HBK_ERROR_OPTION,
                    "warmup %lld is more than the %lld steps of the run, which would never reach its rate",
                    (long long)o->warmup, (long long)o->steps);
}

static bool hbk__plan_init(hbk__plan *p, const hbk_model *m, const hbk_train_data *in,
                           const hbk_train_options *o, hbk_allocator *alloc, hbk_error *err)
{
    memset(p, 0, sizeof *p);
    p->data = in->examples;
    p->replay = o->replay > 0 ? in->replay : NULL;
    p->validation = in->validation;
    p->o = *o;
    p->alloc = alloc;
    p->epoch = p->replay_epoch = -1;
    if (!hbk__plan_check(in, o, err) || !hbk__plan_resolve(p, err)) return false;
    hbk_int longest = hbk__longest(p), all, room; /* a step never needs more than all these tokens */
    if (p->o.batch > INT64_MAX - o->replay || !hbk__mul(&all, o->accumulate, p->o.batch + o->replay) ||
        !hbk__mul(&room, all, longest))
        return hbk_fail(err, HBK_ERROR_RANGE, "batch %lld (and %lld replayed) x accumulate %lld is too much",
                        (long long)p->o.batch, (long long)o->replay, (long long)o->accumulate);
    room = HBK__MIN(room, HBK__MAX(o->max_tokens, longest));
    if (o->max_length > 0 && longest > o->max_length)
        return hbk_fail(err, HBK_ERROR_RANGE, "an example of %lld tokens exceeds max_length %lld",
                        (long long)longest, (long long)o->max_length);
    if (longest - 1 > m->config.context_length) /* the last token is never fed */
        return hbk_fail(err, HBK_ERROR_RANGE, "an example of %lld tokens exceeds the model's context of %lld",
                        (long long)longest, (long long)m->config.context_length);
    if (!hbk_packer_init(&p->packer, room, all, alloc, err)) return false;
    p->per_step = all;
    p->items = HBK__NEW(alloc, hbk__step_item, all, err);
    if (p->items) p->room = HBK__NEW(alloc, hbk_int, all, err);
    if (p->room) p->order = HBK__NEW(alloc, hbk_int, p->data->n, err);
    if (p->order) p->replay_order = HBK__NEW(alloc, hbk_int, p->replay ? p->replay->n : 1, err);
    return p->replay_order != NULL;
}

static void hbk__plan_free(hbk__plan *p)
{
    hbk_packer_free(&p->packer);
    hbk_free(p->alloc, p->items);
    hbk_free(p->alloc, p->room);
    hbk_free(p->alloc, p->order);
    hbk_free(p->alloc, p->replay_order);
}

static int hbk__by_size(const void *a, const void *b)
{
    hbk_int x = *(const hbk_int *)a, y = *(const hbk_int *)b;
    return x < y ? -1 : x > y;
}

/* The lengths of the examples. */
static bool hbk__length_facts(hbk_train_facts *facts, const hbk_dataset *d, hbk_allocator *alloc,
                              hbk_error *err)
{
    hbk_int *sizes = HBK__NEW(alloc, hbk_int, d->n, err);
    if (!sizes) return false;
    for (hbk_int i = 0; i < d->n; i++) sizes[i] = d->start[i + 1] - d->start[i];
    qsort(sizes, (size_t)d->n, sizeof *sizes, hbk__by_size);
    facts->shortest = sizes[0];
    facts->half = sizes[(d->n - 1) / 2];
    facts->most = sizes[d->n - 1 - d->n / 10];
    facts->longest = sizes[d->n - 1];
    hbk_free(alloc, sizes);
    return true;
}

static uint64_t hbk__example_hash(const hbk_dataset *d, hbk_int i)
{
    hbk_int at = d->start[i], n = d->start[i + 1] - at;
    return hbk_hash(0, d->tokens.data + at, (size_t)n * sizeof(int32_t));
}

static int hbk__by_hash(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* How many of the held out examples are examples of d as well. */
static bool hbk__shared_examples(hbk_int *shared, const hbk_dataset *d, const hbk_dataset *held,
                                 hbk_allocator *alloc, hbk_error *err)
{
    uint64_t *hashes = HBK__NEW(alloc, uint64_t, d->n, err);
    if (!hashes) return false;
    for (hbk_int i = 0; i < d->n; i++) hashes[i] = hbk__example_hash(d, i);
    qsort(hashes, (size_t)d->n, sizeof *hashes, hbk__by_hash);
    *shared = 0;
    for (hbk_int i = 0; i < held->n; i++) {
        uint64_t h = hbk__example_hash(held, i);
        *shared += bsearch(&h, hashes, (size_t)d->n, sizeof *hashes, hbk__by_hash) != NULL;
    }
    hbk_free(alloc, hashes);
    return true;
}

HBK_DEF bool hbk_finetune_facts(hbk_train_facts *facts, const hbk_model *m, const hbk_train_data *data,
                                const hbk_train_options *o, const hbk_adapter *init, hbk_allocator *alloc,
                                hbk_error *err)
{
    hbk__plan p;
    hbk_train_facts x;
    hbk_train_memory memory;
    memset(&x, 0, sizeof x);
    memset(&memory, 0, sizeof memory);
    bool ok = hbk__plan_init(&p, m, data, o, alloc, err) &&
              hbk__adapter_possible(m, o, init, alloc, err) &&
              (init || hbk_trainer_memory(&memory, &m->config, o, p.packer.max_tokens, hbk__longest(&p),
                                          err)) &&
              hbk__length_facts(&x, p.data, alloc, err) &&
              (!p.validation || hbk__shared_examples(&x.shared, p.data, p.validation, alloc, err));
    if (ok) {
        x.batch = p.o.batch;
        x.steps = p.o.steps;
        x.epochs = (double)x.steps * (double)x.batch * (double)o->accumulate / (double)p.data->n;
        x.trained = init && !o->full ? init->n_values : memory.n_values;
        x.numbers = hbk_model_count(&m->config);
        *facts = x;
    }
    hbk__plan_free(&p);
    return ok;
}

/* The files of a folder in training. */
typedef struct hbk__train_files {
    char train[512], done[512], metrics[512], timings[512], checkpoint_dir[512], checkpoint[512];
} hbk__train_files;

static bool hbk__train_paths(hbk__train_files *f, const char *dir, hbk_error *err)
{
    return hbk_path(f->train, dir, "train.json", err) && hbk_path(f->done, dir, "humpback.json", err) &&
           hbk_path(f->metrics, dir, "metrics.jsonl", err) &&
           hbk_path(f->timings, dir, "timings.jsonl", err) &&
           hbk_path(f->checkpoint_dir, dir, "checkpoint", err) &&
           hbk_path(f->checkpoint, f->checkpoint_dir, "state.safetensors", err);
}

static bool hbk__write_row(hbk_jsonl_writer *w, json_t *row, hbk_error *err)
{
    bool ok = row ? hbk_jsonl_write(w, row, err) : hbk_fail(err, HBK_ERROR_MEMORY, "out of memory for a row");
    json_decref(row);
    return ok;
}

/* Did the validation loss not fall for longer than wanted? */
static bool hbk__patience_ends(const hbk_trainer *t, const hbk__plan *p)
{
    return p->o.patience > 0 && t->found.since >= p->o.patience;
}

/* One row of metrics.jsonl. */
static json_t *hbk__facts_json(hbk_int step, const hbk__step_facts *x)
{
    json_t *row = json_pack("{s:I s:f s:f s:f s:I}", "step", (json_int_t)step, "loss", x->loss, "lr", x->lr,
                            "grad_norm", x->norm, "tokens", (json_int_t)x->tokens);
    if (row && !isnan(x->val_loss) && json_object_set_new(row, "val_loss", json_real(x->val_loss))) {
        json_decref(row);
        return NULL;
    }
    return row;
}

static bool hbk__report_step(const hbk_progress *progress, const char *stage, const hbk_trainer *t,
                             const hbk__plan *p, const hbk__step_facts *x, double seconds, hbk_error *err)
{
    char speed[40] = "", val[48] = "";
    if (seconds > 0) snprintf(speed, sizeof speed, "  %.0f tok/s", (double)x->tokens / seconds);
    if (t->validated > 0) snprintf(val, sizeof val, "  val %.3f", t->validated);
    return hbk_report(progress, stage, t->step, p->o.steps, "steps", err, "loss %.3f%s  lr %.2g  norm %.2g%s",
                      x->loss, val, x->lr, x->norm, speed);
}

/* Steps from the trainer's own to the last, with metrics, timings and checkpoints. */
static bool hbk__train_run(hbk_trainer *t, hbk__plan *p, const hbk__train_files *f, const char *stage,
                           const hbk_progress *progress, hbk_error *err)
{
    double (*now)(void *) = progress ? progress->now : NULL;
    hbk_jsonl_writer *metrics = hbk_jsonl_create(f->metrics, t->step, t->alloc, err), *timings = NULL;
    bool ok = metrics != NULL;
    hbk_int timed = 0; /* a resumed run keeps the rows of the steps that stand */
    if (ok && now)
        ok = hbk_jsonl_count(f->timings, &timed, err) &&
             (timings = hbk_jsonl_create(f->timings, HBK__MIN(timed, t->step), t->alloc, err)) != NULL;
    while (ok && t->step < p->o.steps && !hbk__patience_ends(t, p)) {
        hbk_int step = t->step + 1;
        hbk__step_facts x;
        double start = now ? now(progress->ctx) : 0;
        memset(&x, 0, sizeof x);
        ok = hbk__train_step(t, p, step, &x, err);
        double seconds = now ? now(progress->ctx) - start : 0;
        ok = ok && hbk__validate(t, p, &x.val_loss, err) &&
             hbk__write_row(metrics, hbk__facts_json(step, &x), err);
        if (ok && now)
            ok = hbk__write_row(timings,
                                json_pack("{s:I s:f s:f}", "step", (json_int_t)step, "seconds", seconds,
                                          "tokens_per_s", seconds > 0 ? (double)x.tokens / seconds : 0.0),
                                err);
        bool go_on = ok && hbk__report_step(progress, stage, t, p, &x, seconds, err);
        bool due = p->o.save_every > 0 && step % p->o.save_every == 0 && step < p->o.steps;
        if (ok && (due || !go_on)) /* rows first: a checkpoint promises the rows before it */
            ok = hbk_jsonl_sync(metrics, err) && hbk_dir_make(f->checkpoint_dir, err) &&
                 hbk_trainer_save(t, f->checkpoint, err);
        if (ok && !go_on)
            ok = hbk_report(progress, stage, step, p->o.steps, "steps", err, "checkpoint saved");
        ok = ok && go_on;
    }
    if (metrics && !hbk_jsonl_finish(metrics, ok ? err : NULL)) ok = false;
    if (timings && !hbk_jsonl_finish(timings, ok ? err : NULL)) ok = false;
    return ok;
}

/* The result, the best weights where there was a validation, and last humpback.json, whose presence says that
   the folder is whole. */
static bool hbk__train_finish(hbk_trainer *t, const hbk_recipe *r, const char *dir,
                              const hbk__train_files *f, hbk_error *err)
{
    if (t->found.step > 0) memcpy(t->values, t->best, (size_t)t->n * sizeof *t->values);
    if (t->o.full) {
        if (!hbk_model_save(t->model, dir, HBK_F32, err)) return false;
        if (r->tok && !hbk_tokenizer_save(r->tok, dir, err)) return false;
        if (r->tok && r->tmpl && !hbk_template_save_stop(r->tmpl, r->tok, dir, err)) return false;
    } else if (!hbk_adapter_save(t->adapter, dir, r->base_name, t->o.dropout, err)) {
        return false;
    }
    const char *use = r->use == HBK_BACKWARD ? "backward" : "forward";
    json_t *j = json_pack("{s:s s:s s:s s:s? s:s? s:s? s:o}", "humpback", HBK_VERSION, "mode",
                          t->o.full ? "full" : "lora", "use", use, "tag_seed", r->tag_seed, "tag_web",
                          r->tag_web, "inference_tag", r->inference_tag, "template",
                          r->tmpl ? hbk__template_json(r->tmpl) : json_null());
    if (t->found.step > 0 && j &&
        (json_object_set_new(j, "best_step", json_integer(t->found.step)) ||
         json_object_set_new(j, "val_loss", json_real(t->found.loss)))) {
        json_decref(j);
        j = NULL;
    }
    if (!j) return hbk_fail(err, HBK_ERROR_MEMORY, "out of memory while writing %s", f->done);
    bool ok = hbk_json_write(f->done, j, err);
    json_decref(j);
    return ok;
}

/* What stands in a folder that no finetuning began is somebody's model, adapter or record: a result would be
   written over it. */
static bool hbk__train_folder_free(const char *dir, const char *train, hbk_error *err)
{
    static const char *const names[] = {"config.json",         "model.safetensors",         "metrics.jsonl",
                                        "adapter_config.json", "adapter_model.safetensors", "humpback.json",
                                        "model.safetensors.index.json"};
    char path[512];
    for (size_t i = 0; i < sizeof names / sizeof *names && !hbk_file_exists(train); i++) {
        if (!hbk_path(path, dir, names[i], err)) return false;
        if (hbk_file_exists(path))
            return hbk_fail_at(err, HBK_ERROR_FILE, path, 0,
                               "is there already, of no finetuning that was begun in this folder, and would "
                               "be written over: use another folder");
    }
    return true;
}

HBK_DEF bool hbk_finetune(const hbk_model *m, const hbk_train_data *data, const hbk_train_options *o,
                          const hbk_adapter *init, const hbk_recipe *recipe, const char *dir,
                          const hbk_progress *progress, hbk_allocator *alloc, hbk_error *err)
{
    hbk__plan plan;
    hbk__train_files f;
    hbk_trainer *t = NULL;
    bool ok = hbk__plan_init(&plan, m, data, o, alloc, err) &&
              hbk__adapter_possible(m, o, init, alloc, err) && hbk__train_paths(&f, dir, err) &&
              hbk__train_folder_free(dir, f.train, err) && hbk_dir_make(dir, err);
    json_t *options = ok ? hbk__train_json(&plan, m, init, recipe) : NULL;
    if (ok && !options) ok = hbk_fail(err, HBK_ERROR_MEMORY, "out of memory for the options of %s", dir);
    /* A folder without a checkpoint holds nothing to continue: it may begin anew with other options. */
    bool begun = ok && hbk_file_exists(f.train) && (hbk_file_exists(f.done) || hbk_file_exists(f.checkpoint));
    ok = ok && (begun ? hbk__same_options(f.train, options, err) : hbk_json_write(f.train, options, err));
    if (ok && !hbk_file_exists(f.done)) {
        const char *stage = strrchr(dir, '/') ? strrchr(dir, '/') + 1 : dir;
        t = hbk_trainer_new(m, &plan.o, init, plan.packer.max_tokens, hbk__longest(&plan), alloc, err);
        ok = t && (!plan.validation || (t->best = HBK__NEW(alloc, hbk_real, t->n, err)) != NULL);
        ok = ok && (!hbk_file_exists(f.checkpoint) || hbk_trainer_resume(t, f.checkpoint, err)) &&
             hbk__train_run(t, &plan, &f, stage, progress, err) && hbk__train_finish(t, recipe, dir, &f, err);
    }
    if (ok) { /* here, not with the last file: a kill in between must not leave it behind */
        unlink(f.checkpoint);
        rmdir(f.checkpoint_dir);
    }
    json_decref(options);
    hbk_trainer_free(t);
    hbk__plan_free(&plan);
    return ok;
}

HBK_DEF bool hbk_tuned_load(hbk_tuned *t, const hbk_model *base, const char *dir, hbk_allocator *alloc,
                            hbk_error *err)
{
    char path[512], train[512], done[512];
    hbk_tuned r;
    memset(&r, 0, sizeof r);
    r.model = base;
    if (!hbk_path(path, dir, "adapter_config.json", err) || !hbk_path(train, dir, "train.json", err) ||
        !hbk_path(done, dir, "humpback.json", err))
        return false;
    if (!hbk_file_exists(dir))
        return hbk_fail_at(
            err, HBK_ERROR_FILE, dir, 0,
            "does not exist: an adapter is a PEFT folder, a GGUF file, or a folder of finetune "
            "--full");
    if (hbk_file_exists(train) && !hbk_file_exists(done))
        return hbk_fail_at(err, HBK_ERROR_FILE, dir, 0,
                           "holds a finetuning that is not finished: run the same finetune again, which goes "
                           "on with it");
    if (hbk_file_exists(path) || hbk__is_gguf(dir)) {
        r.adapter = hbk_adapter_load(dir, base, alloc, err);
        if (!r.adapter) return false;
    } else {
        r.model = r.own_model = hbk_model_load(dir, alloc, err);
        if (!r.model) return false;
        hbk_model_round(r.own_model, base->head.rounds);
    }
    *t = r;
    return true;
}

HBK_DEF void hbk_tuned_free(hbk_tuned *t)
{
    hbk_adapter_free(t->adapter);
    hbk_model_free(t->own_model);
    memset(t, 0, sizeof *t);
}

/* ==== 18  CORPUS =============================================================

   Unlabelled text is worth labelling where it reads like somebody's answer. A document is cut into segments
   and most of them are dropped, each for a reason that is counted:

       document -> segments -> empty? short? long? header? navigation? repetition? duplicate? -> kept

   A segment of a Markdown document is a heading's text with all its sub-sections. One that is too long
   becomes its opening text and its sub-headings, each tried in the same way. Text without headings is one
   segment, or, where it is too long, as many paragraphs at a time as fit.

   Repetition is the largest similarity of two sentences a, b with word 3-grams A, B:

       J(a, b) = |A and B| / |A or B|          (Jaccard)

   Source: Li et al. 2023, section 2.1 and appendix E (600 to 3,000 characters, headers, Jaccard). The paper
   gives neither n nor the threshold: 3 words and 0.6 are ours, and so is the list of navigation words beyond
   its four examples. Lengths are in code points. Nothing is normalised: a kept text is a piece of the
   document, byte for byte, without the white space at its ends.

   Two more sieves, for what is made of the texts, both off in the paper. Near-duplicates: with a random order
   h_j on all n-grams, two sets share their least element with probability J(A, B), so K such minima are a
   short likeness of a text. K = bands * rows; texts of J that agree in all rows of some band,

       P = 1 - (1 - J^rows)^bands

   are compared exactly. rows is the largest number at which J = threshold is missed, 1 - P, at most once in
   a thousand. Source: Broder 1997, "On the resemblance and containment of documents". Evaluation texts: a
   text that shares a run of 13 words with one is contaminated. Source: Brown et al. 2020, arXiv 2005.14165,
   appendix C, which besides spares runs that are found often; here none is spared. */

HBK_DEF hbk_corpus_options hbk_corpus_defaults(void)
{
    hbk_corpus_options o;
    o.min_chars = 600;
    o.max_chars = 3000;
    o.max_repeat = 0.6;
    o.max_upper = 0.6;
    o.keep_all = false;
    return o;
}

HBK_DEF const char *hbk_drop_name(hbk_drop d)
{
    switch (d) {
#define HBK_X(name, text)                                                                                    \
    case HBK_DROP_##name: return text;
        HBK_DROPS(HBK_X)
#undef HBK_X
    case HBK_DROP_COUNT: break;
    }
    return "unknown reason";
}

/* 18.1  A set of 64-bit hashes or, valued, a map to numbers: open addressing, 0 marks a free place */

typedef struct hbk__hash_set {
    hbk_allocator *alloc;
    bool valued; /* set this first */
    uint64_t *slots;
    hbk_int *values; /* of a map */
    hbk_int n, cap;  /* cap is a power of two */
} hbk__hash_set;

static hbk_int hbk__hash_place(const uint64_t *slots, hbk_int cap, uint64_t h)
{
    uint64_t mask = (uint64_t)cap - 1, i = (h ^ (h >> 32)) & mask;
    while (slots[i] && slots[i] != h) i = (i + 1) & mask;
    return (hbk_int)i;
}

static void hbk__hash_free(hbk__hash_set *s)
{
    hbk_free(s->alloc, s->slots);
    hbk_free(s->alloc, s->values);
}

/* Twice the room. */
static bool hbk__hash_grow(hbk__hash_set *s, hbk_error *err)
{
    hbk__hash_set to = *s;
    to.cap = s->cap ? 2 * s->cap : 64;
    to.slots = HBK__NEW(s->alloc, uint64_t, to.cap, err);
    to.values = to.slots && s->valued ? HBK__NEW(s->alloc, hbk_int, to.cap, err) : NULL;
    if (!to.slots || (s->valued && !to.values)) {
        hbk_free(s->alloc, to.slots);
        return false;
    }
    for (hbk_int i = 0; i < s->cap; i++) {
        if (!s->slots[i]) continue;
        hbk_int place = hbk__hash_place(to.slots, to.cap, s->slots[i]);
        to.slots[place] = s->slots[i];
        if (s->valued) to.values[place] = s->values[i];
    }
    hbk__hash_free(s);
    *s = to;
    return true;
}

/* The place of h, which is added; -1 on failure. *had says whether it was there already. */
static hbk_int hbk__hash_put(hbk__hash_set *s, uint64_t h, bool *had, hbk_error *err)
{
    if (h == 0) h = 1;
    if (2 * (s->n + 1) > s->cap && !hbk__hash_grow(s, err)) return -1; /* half full: few collisions */
    hbk_int i = hbk__hash_place(s->slots, s->cap, h);
    *had = s->slots[i] == h;
    s->n += !*had;
    s->slots[i] = h;
    return i;
}

/* Adds h; *had says whether it was there already. */
static bool hbk__hash_add(hbk__hash_set *s, uint64_t h, bool *had, hbk_error *err)
{
    return hbk__hash_put(s, h, had, err) >= 0;
}

/* The value of h in a map, to be read and set until the next call: -1 where it is new. NULL on failure. */
static hbk_int *hbk__hash_at(hbk__hash_set *s, uint64_t h, hbk_error *err)
{
    bool had;
    hbk_int i = hbk__hash_put(s, h, &had, err);
    if (i < 0) return NULL;
    if (!had) s->values[i] = -1;
    return &s->values[i];
}

/* The value of h in a map; NULL if there is none. */
static const hbk_int *hbk__hash_find(const hbk__hash_set *s, uint64_t h)
{
    if (h == 0) h = 1;
    hbk_int i = s->cap ? hbk__hash_place(s->slots, s->cap, h) : 0;
    return s->cap && s->slots[i] ? &s->values[i] : NULL;
}

/* Whether h was added. */
static bool hbk__hash_has(const hbk__hash_set *s, uint64_t h)
{
    if (h == 0) h = 1;
    return s->cap && s->slots[hbk__hash_place(s->slots, s->cap, h)] == h;
}

/* 18.2  Words, and runs of them */

static bool hbk__is_word_byte(char c)
{
    unsigned char u = (unsigned char)c;
    return u >= 0x80 || (u >= '0' && u <= '9') || (u >= 'A' && u <= 'Z') || (u >= 'a' && u <= 'z');
}

static char hbk__lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
}

/* What a character is to the words around it. Quotes, dashes and blanks beyond ASCII end a word like those in
   it; the ideographs and kana of scripts without blanks are words each. */
typedef enum hbk__word_part { HBK__WORD_NONE, HBK__WORD_LETTER, HBK__WORD_WHOLE } hbk__word_part;
static hbk__word_part hbk__part_of(int32_t cp)
{
    if (cp >= 0 && cp < 0x80) return hbk__is_word_byte((char)cp) ? HBK__WORD_LETTER : HBK__WORD_NONE;
    if ((cp >= 0x80 && cp < 0xc0) || (cp >= 0x2000 && cp < 0x2070) || (cp >= 0x3000 && cp < 0x3040) ||
        (cp >= 0xff00 && cp < 0xff10))
        return HBK__WORD_NONE;
    bool whole = (cp >= 0x2e80 && cp < 0xa000) || (cp >= 0xf900 && cp < 0xfb00) || cp >= 0x20000;
    return whole ? HBK__WORD_WHOLE : HBK__WORD_LETTER;
}

/* The next word of s[*at..n-1] as a hash of its bytes, capitals of ASCII made small; false at the end. */
static bool hbk__next_word(const char *s, size_t n, size_t *at, uint64_t *word)
{
    uint64_t h = 0;
    bool any = false;
    while (*at < n) {
        int32_t cp;
        size_t len = hbk_utf8_decode(s + *at, n - *at, &cp);
        hbk__word_part part = hbk__part_of(cp);
        if (any && part != HBK__WORD_LETTER) break;
        if (part != HBK__WORD_NONE) {
            char c = hbk__lower(s[*at]);
            h = len == 1 ? hbk_hash(h, &c, 1) : hbk_hash(h, s + *at, len);
            any = true;
        }
        *at += len;
        if (part == HBK__WORD_WHOLE) break;
    }
    *word = h;
    return any;
}

/* Hashes in a row, grown by hbk__word_runs; the caller frees data. */
typedef struct hbk__hashes {
    uint64_t *data;
    hbk_int n, cap;
} hbk__hashes;

/* Appends the hashes of s's words, one each. */
static bool hbk__words(hbk__hashes *out, const char *s, size_t n, hbk_allocator *alloc, hbk_error *err)
{
    uint64_t word;
    hbk_int from = out->n;
    for (size_t at = 0; hbk__next_word(s, n, &at, &word);) {
        void *data = out->data;
        if (!hbk__reserve(alloc, &data, &out->cap, out->n + 1, sizeof word, err)) {
            out->n = from;
            return false;
        }
        out->data = (uint64_t *)data;
        out->data[out->n++] = word;
    }
    return true;
}

/* Makes runs of k words of n words, in place and in order; returns their number. Fewer than k words are one
   run, of them all. */
static hbk_int hbk__runs(uint64_t *words, hbk_int n, hbk_int k)
{
    hbk_int runs = n > k ? n - k + 1 : n > 0, size = HBK__MIN(n, k);
    for (hbk_int i = 0; i < runs; i++) words[i] = hbk_hash(0, words + i, (size_t)size * sizeof *words);
    return runs;
}

/* Sorts n hashes, drops doubles, and returns how many are left. */
static hbk_int hbk__sort_hashes(uint64_t *h, hbk_int n)
{
    hbk_int to = 0;
    if (n > 1) qsort(h, (size_t)n, sizeof *h, hbk__by_hash);
    for (hbk_int i = 0; i < n; i++)
        if (to == 0 || h[to - 1] != h[i]) h[to++] = h[i];
    return to;
}

/* 18.3  Repetition */

/* |A and B| / |A or B| of two sorted sets without doubles. */
static double hbk__jaccard(const uint64_t *a, hbk_int n_a, const uint64_t *b, hbk_int n_b)
{
    hbk_int i = 0, j = 0, both = 0;
    while (i < n_a && j < n_b) {
        if (a[i] == b[j]) {
            both++;
            i++;
            j++;
        } else if (a[i] < b[j])
            i++;
        else
            j++;
    }
    hbk_int any = n_a + n_b - both;
    return any ? (double)both / (double)any : 0;
}

/* The sentences of a text as sets of 3-grams. */
typedef struct hbk__grams {
    hbk__hashes runs;
    hbk_int *start; /* (n_sets + 1) */
    hbk_int n_sets, cap_sets;
} hbk__grams;

enum { HBK__GRAM = 3, HBK__MIN_WORDS = 5 }; /* shorter sentences come back in any good prose: "Yes, it is." */

/* Adds sentence s[0..n-1] as the next set, if it has words enough. */
static bool hbk__grams_add(hbk__grams *g, const char *s, size_t n, hbk_allocator *alloc, hbk_error *err)
{
    hbk_int from = g->runs.n;
    if (!hbk__words(&g->runs, s, n, alloc, err)) return false;
    hbk_int words = g->runs.n - from;
    g->runs.n = from;
    if (words < HBK__MIN_WORDS) return true;
    hbk_int runs = hbk__runs(g->runs.data + from, words, HBK__GRAM);
    g->runs.n = from + hbk__sort_hashes(g->runs.data + from, runs);
    void *start = g->start;
    if (!hbk__reserve(alloc, &start, &g->cap_sets, g->n_sets + 2, sizeof *g->start, err)) return false;
    g->start = (hbk_int *)start;
    g->start[g->n_sets++] = from;
    g->start[g->n_sets] = g->runs.n;
    return true;
}

/* *worst: the largest similarity of two sentences of the text. A sentence ends at a line break, or at a full
   stop, question or exclamation mark before white space. */
static bool hbk__repetition(const char *s, size_t n, double *worst, hbk_allocator *alloc, hbk_error *err)
{
    hbk__grams g;
    memset(&g, 0, sizeof g);
    bool ok = true;
    size_t begin = 0;
    for (size_t i = 0; i < n && ok; i++) {
        bool last = i + 1 == n, space = last || s[i + 1] == ' ' || s[i + 1] == '\n' || s[i + 1] == '\r';
        if (!last && s[i] != '\n' && !(space && (s[i] == '.' || s[i] == '?' || s[i] == '!'))) continue;
        ok = hbk__grams_add(&g, s + begin, i + 1 - begin, alloc, err);
        begin = i + 1;
    }
    double most = 0;
    for (hbk_int a = 0; a < g.n_sets && ok; a++)
        for (hbk_int b = 0; b < a; b++) {
            const uint64_t *data = g.runs.data;
            double j = hbk__jaccard(data + g.start[a], g.start[a + 1] - g.start[a], data + g.start[b],
                                    g.start[b + 1] - g.start[b]);
            most = HBK__MAX(most, j);
        }
    hbk_free(alloc, g.runs.data);
    hbk_free(alloc, g.start);
    if (ok) *worst = most;
    return ok;
}

/* 18.4  Headers */

/* The share of capitals among the letters of a header; -1 if it has no letters. */
static double hbk__upper_share(const char *s, size_t n)
{
    hbk_int letters = 0, capitals = 0;
    for (size_t i = 0; i < n;) {
        int32_t cp;
        i += hbk_utf8_decode(s + i, n - i, &cp);
        utf8proc_category_t c = cp < 0 ? UTF8PROC_CATEGORY_CN : utf8proc_category(cp);
        letters += c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO;
        capitals += c == UTF8PROC_CATEGORY_LU || c == UTF8PROC_CATEGORY_LT;
    }
    return letters ? (double)capitals / (double)letters : -1;
}

/* True if a word of the header begins one of the phrases by which sites lead around in themselves. */
static bool hbk__is_navigation(const char *s, size_t n)
{
    static const char *const phrases[] = {
        "advertis",        "forum",         "quick link",        "newsletter",    "navigation",
        "site map",        "sitemap",       "sign up",           "sign in",       "subscribe",
        "log in",          "login",         "privacy policy",    "cookie policy", "terms of",
        "contact us",      "about us",      "follow us",         "share this",    "leave a reply",
        "leave a comment", "related posts", "related articles",  "recent posts",  "recent comments",
        "latest news",     "popular posts", "table of contents", "main menu",     "archives"};
    for (size_t i = 0; i < n; i++) {
        if (i > 0 && hbk__is_word_byte(s[i - 1])) continue;
        for (size_t p = 0; p < sizeof phrases / sizeof phrases[0]; p++) {
            size_t k = 0;
            while (i + k < n && phrases[p][k] && hbk__lower(s[i + k]) == phrases[p][k]) k++;
            if (!phrases[p][k]) return true;
        }
    }
    return false;
}

/* 18.5  A segment's way through the filters */

typedef struct hbk__stem {
    char *key;
    hbk_int value;
} hbk__stem;

struct hbk_corpus {
    hbk_allocator *alloc;
    hbk_corpus_options o;
    hbk_jsonl_writer *out, *rejects;
    hbk_int counts[HBK_DROP_COUNT];
    hbk__hash_set seen;
    hbk__stem *stems; /* stb_ds map: source stem -> segments so far */
};

/* The document at hand, as its segments need it. */
typedef struct hbk__document {
    const char *text;
    size_t n;
    const char *source, *url; /* url: or NULL */
    const char *header;       /* of a document without headings, or NULL */
    const char *id;           /* what ids begin with: STEM-1, STEM-2 ... */
    hbk_int n_segments;       /* the number of the last one */
    bool whole;               /* the first segment has the id itself: a row that brought its own */
} hbk__document;

typedef struct hbk__segment {
    const char *text, *header; /* header NULL: there is none to judge */
    size_t n, n_header;
} hbk__segment;

static bool hbk__judge(hbk_corpus *c, const hbk__segment *s, hbk_drop *drop, hbk_error *err)
{
    const hbk_corpus_options *o = &c->o;
    hbk_int length = hbk_utf8_length(s->text, s->n);
    *drop = HBK_DROP_KEPT;
    if (length == 0) *drop = HBK_DROP_EMPTY;
    if (*drop != HBK_DROP_KEPT || o->keep_all) return true;
    double upper = s->header ? hbk__upper_share(s->header, s->n_header) : 0;
    if (length < o->min_chars)
        *drop = HBK_DROP_SHORT;
    else if (length > o->max_chars)
        *drop = HBK_DROP_LONG;
    else if (upper < 0 || upper > o->max_upper)
        *drop = HBK_DROP_HEADER;
    else if (s->header && hbk__is_navigation(s->header, s->n_header))
        *drop = HBK_DROP_NAVIGATION;
    if (*drop != HBK_DROP_KEPT) return true;
    double worst = 0;
    if (!hbk__repetition(s->text, s->n, &worst, c->alloc, err)) return false;
    if (worst > o->max_repeat) {
        *drop = HBK_DROP_REPETITION;
        return true;
    }
    bool had = false; /* by hash: among a million texts a wrong match has a chance of 1 in 10^7 */
    if (!hbk__hash_add(&c->seen, hbk_hash(0, s->text, s->n), &had, err)) return false;
    if (had) *drop = HBK_DROP_DUPLICATE;
    return true;
}

/* Writes a segment's row to the file of its fate. */
static bool hbk__segment_write(hbk_corpus *c, const hbk__document *d, const hbk__segment *s, hbk_drop drop,
                               hbk_error *err)
{
    hbk_jsonl_writer *w = drop == HBK_DROP_KEPT ? c->out : c->rejects;
    if (!w) return true;
    char id[320];
    if (d->whole)
        snprintf(id, sizeof id, "%s", d->id);
    else
        snprintf(id, sizeof id, "%s-%lld", d->id, (long long)d->n_segments);
    const char *header = s->header ? s->header : "";
    json_t *row = json_object();
    bool ok = row && json_object_set_new(row, "id", json_string(id)) == 0 &&
              json_object_set_new(row, "text", json_stringn(s->text, s->n)) == 0 &&
              json_object_set_new(row, "header", json_stringn(header, s->n_header)) == 0 &&
              json_object_set_new(row, "source", json_string(d->source)) == 0;
    if (ok && d->url) ok = json_object_set_new(row, "url", json_string(d->url)) == 0;
    if (ok && drop != HBK_DROP_KEPT)
        ok = json_object_set_new(row, "reason", json_string(hbk_drop_name(drop))) == 0;
    if (ok)
        ok = hbk_jsonl_write(w, row, err);
    else
        hbk_fail(err, HBK_ERROR_MEMORY, "segment %s: its row cannot be built: memory is out", id);
    json_decref(row);
    return ok;
}

static bool hbk__blank(char ch)
{
    return ch == ' ' || (ch >= '\t' && ch <= '\r');
}

/* Judges, counts and writes text[from..to-1] as the document's next segment. */
static bool hbk__segment_add(hbk_corpus *c, hbk__document *d, size_t from, size_t to, const char *header,
                             size_t n_header, hbk_error *err)
{
    while (from < to && hbk__blank(d->text[from])) from++;
    while (to > from && hbk__blank(d->text[to - 1])) to--;
    hbk__segment s = {d->text + from, header, to - from, n_header};
    hbk_drop drop;
    d->n_segments++; /* dropped ones too: other filters leave the ids of the others as they are */
    if (!hbk__judge(c, &s, &drop, err) || !hbk__segment_write(c, d, &s, drop, err)) return false;
    c->counts[drop]++;
    return true;
}

/* 18.6  Cutting */

/* The end of the paragraph that begins at `from`, behind its blank lines; with `lines` every line is one. */
static size_t hbk__paragraph_end(const hbk__document *d, size_t from, size_t to, bool lines)
{
    for (size_t i = from; i < to; i++) {
        if (d->text[i] != '\n') continue;
        size_t k = i + 1, behind = k;
        while (k < to && hbk__blank(d->text[k]))
            if (d->text[k++] == '\n') behind = k;
        if (lines || behind > i + 1) return behind;
    }
    return to;
}

/* text[from..to-1] without headings: whole if it fits, else as many paragraphs at a time as fit. Where no
   blank line parts it, its lines are its paragraphs. */
static bool hbk__cut_plain(hbk_corpus *c, hbk__document *d, size_t from, size_t to, const char *header,
                           size_t n_header, hbk_error *err)
{
    while (from < to && hbk__blank(d->text[from])) from++;
    while (to > from && hbk__blank(d->text[to - 1])) to--;
    hbk_int chars = hbk_utf8_length(d->text + from, to - from);
    if (chars <= c->o.max_chars) return hbk__segment_add(c, d, from, to, header, n_header, err);
    d->whole = false;
    bool lines = hbk__paragraph_end(d, from, to, false) == to;
    size_t begin = from, at = from;
    chars = 0;
    while (at < to) {
        size_t end = hbk__paragraph_end(d, at, to, lines), tail = end;
        while (tail > at && hbk__blank(d->text[tail - 1])) tail--; /* segments are measured trimmed */
        hbk_int more = hbk_utf8_length(d->text + at, tail - at);
        if (at > begin && chars + more > c->o.max_chars) {
            if (!hbk__segment_add(c, d, begin, at, header, n_header, err)) return false;
            begin = at;
            chars = 0;
        }
        chars += more + hbk_utf8_length(d->text + tail, end - tail);
        at = end;
    }
    return begin == to || hbk__segment_add(c, d, begin, to, header, n_header, err);
}

typedef struct hbk__heading {
    size_t at, body; /* where its line and where its text begin */
    size_t header, n_header;
    int level; /* 1 .. 6; 0: none */
} hbk__heading;

/* The heading whose line is text[at..end-1]: "## Title", or a title underlined by the next line. */
static hbk__heading hbk__heading_at(const hbk__document *d, size_t at, size_t end)
{
    hbk__heading h = {at, end, 0, 0, 0};
    size_t i = at, stop = end;
    while (i < end && i < at + 3 && d->text[i] == ' ') i++;
    while (stop > i && hbk__blank(d->text[stop - 1])) stop--;
    int marks = 0;
    while (i + (size_t)marks < stop && d->text[i + (size_t)marks] == '#') marks++;
    size_t after = i + (size_t)marks;
    if (marks >= 1 && marks <= 6 && (after == stop || hbk__blank(d->text[after]))) {
        h.level = marks;
        while (stop > after && d->text[stop - 1] == '#') stop--; /* "## Title ##" */
        while (stop > after && hbk__blank(d->text[stop - 1])) stop--;
        while (after < stop && hbk__blank(d->text[after])) after++;
        h.header = after;
        h.n_header = stop - after;
        return h;
    }
    size_t k = end, n = 0;
    while (k + n < d->n && n < 80 && d->text[k + n] == (d->text[k] == '=' ? '=' : '-')) n++;
    size_t rest = k + n;
    while (rest < d->n && (d->text[rest] == ' ' || d->text[rest] == '\r')) rest++;
    bool prose = stop > i && !strchr("#>|-*+=", d->text[i]); /* no list, quote or table */
    if (prose && n >= 3 && (rest == d->n || d->text[rest] == '\n')) {
        h.level = d->text[k] == '=' ? 1 : 2;
        h.header = i;
        h.n_header = stop - i;
        h.body = HBK__MIN(rest + 1, d->n);
    }
    return h;
}

/* The headings of a Markdown document, those of fenced code left out. *list is the caller's to free. */
static bool hbk__find_headings(const hbk__document *d, hbk__heading **list, hbk_int *n, hbk_allocator *alloc,
                               hbk_error *err)
{
    void *data = NULL;
    hbk_int count = 0, cap = 0;
    char fence = 0;
    for (size_t at = 0, end; at < d->n; at = end) {
        const char *newline = (const char *)memchr(d->text + at, '\n', d->n - at);
        end = newline ? (size_t)(newline - d->text) + 1 : d->n;
        size_t i = at;
        while (i < end && d->text[i] == ' ') i++;
        if (end - i >= 3 && (d->text[i] == '`' || d->text[i] == '~') && d->text[i + 1] == d->text[i] &&
            d->text[i + 2] == d->text[i] && (!fence || fence == d->text[i])) {
            fence = fence ? (char)0 : d->text[i];
            continue;
        }
        hbk__heading h = hbk__heading_at(d, at, end);
        if (fence || !h.level) continue;
        end = h.body;
        if (!hbk__reserve(alloc, &data, &cap, count + 1, sizeof h, err)) {
            hbk_free(alloc, data);
            return false;
        }
        ((hbk__heading *)data)[count++] = h;
    }
    *list = (hbk__heading *)data;
    *n = count;
    return true;
}

/* Each heading with its sub-tree, where that fits; else its own text, and the headings below it in turn. */
static bool hbk__cut_markdown(hbk_corpus *c, hbk__document *d, hbk_error *err)
{
    hbk__heading *list;
    hbk_int n;
    if (!hbk__find_headings(d, &list, &n, c->alloc, err)) return false;
    size_t first = n ? list[0].at : d->n, lead = 0;
    while (lead < first && hbk__blank(d->text[lead])) lead++;
    bool ok = true;
    if (lead < first || n == 0) ok = hbk__cut_plain(c, d, 0, first, NULL, 0, err);
    for (hbk_int i = 0; i < n && ok;) {
        const hbk__heading *h = &list[i];
        hbk_int next = i + 1;
        while (next < n && list[next].level > h->level) next++;
        size_t end = next < n ? list[next].at : d->n;
        if (next > i + 1 && hbk_utf8_length(d->text + h->body, end - h->body) > c->o.max_chars) {
            next = i + 1;
            end = list[next].at;
            size_t k = h->body;
            while (k < end && hbk__blank(d->text[k])) k++;
            if (k == end) { /* a title over its chapters: nothing of its own to count */
                i = next;
                continue;
            }
        }
        ok = hbk__segment_add(c, d, h->body, end, d->text + h->header, h->n_header, err);
        i = next;
    }
    hbk_free(c->alloc, list);
    return ok;
}

/* Bytes of the settings ("---" lines around "key: value") that many Markdown files begin with; 0 if none. */
static size_t hbk__front_matter(const hbk__document *d)
{
    static const char line[] = "---\n";
    if (d->n < 4 || memcmp(d->text, line, 4) != 0) return 0;
    for (size_t i = 4; i + 4 <= d->n; i++)
        if (d->text[i - 1] == '\n' && memcmp(d->text + i, line, 4) == 0) return i + 4;
    return 0;
}

/* One document, its bytes checked; `markdown` decides how it is cut. */
static bool hbk__document_add(hbk_corpus *c, hbk__document *d, bool markdown, hbk_error *err)
{
    if (d->n >= 3 && memcmp(d->text, "\xef\xbb\xbf", 3) == 0) {
        d->text += 3;
        d->n -= 3;
    }
    if (!hbk_utf8_valid(d->text, d->n, NULL) || (d->n && memchr(d->text, 0, d->n))) {
        c->counts[HBK_DROP_ENCODING]++; /* no JSON row can hold its text, the rejects' neither */
        d->n_segments++;
        return true;
    }
    if (markdown) {
        size_t skip = hbk__front_matter(d);
        d->text += skip;
        d->n -= skip;
        return hbk__cut_markdown(c, d, err);
    }
    return hbk__cut_plain(c, d, 0, d->n, d->header, d->header ? strlen(d->header) : 0, err);
}

/* 18.7  Documents from outside */

HBK_DEF hbk_corpus *hbk_corpus_new(const hbk_corpus_options *o, const char *out_path,
                                   const char *rejects_path, hbk_allocator *alloc, hbk_error *err)
{
    if (o->min_chars < 0 || o->max_chars < 1 || o->min_chars > o->max_chars) {
        hbk_fail(err, HBK_ERROR_OPTION, "segments of %lld to %lld characters: expected 0 <= least <= most",
                 (long long)o->min_chars, (long long)o->max_chars);
        return NULL;
    }
    hbk_corpus *c = HBK__NEW(alloc, hbk_corpus, 1, err);
    if (!c) return NULL;
    c->alloc = c->seen.alloc = alloc;
    c->o = *o;
    c->out = hbk_jsonl_create(out_path, 0, alloc, err);
    if (c->out && rejects_path) c->rejects = hbk_jsonl_create(rejects_path, 0, alloc, err);
    if (c->out && (c->rejects || !rejects_path)) return c;
    hbk_jsonl_finish(c->out, NULL);
    hbk_free(alloc, c);
    return NULL;
}

/* The counter of the segments of sources with this stem: two files NOTES.md share one, so ids are unique. */
static hbk_int *hbk__stem_counter(hbk_corpus *c, char *stem)
{
    if (!c->stems) stbds_sh_new_strdup(c->stems);
    ptrdiff_t i = stbds_shgeti(c->stems, stem);
    if (i < 0) {
        stbds_shput(c->stems, stem, 0);
        i = stbds_shgeti(c->stems, stem);
    }
    return &c->stems[i].value;
}

/* "notes" of "texts/notes.md"; "text" where nothing is left. */
static void hbk__stem_of(char stem[256], const char *source)
{
    size_t n = strlen(source);
    while (n > 0 && source[n - 1] == '/') n--; /* addresses may end with one */
    size_t from = n;
    while (from > 0 && source[from - 1] != '/') from--;
    size_t end = n;
    while (end > from && source[end - 1] != '.') end--;
    end = end > from + 1 ? end - 1 : n;
    if (end - from > 255) end = from + 255;
    while (end > from && !hbk_utf8_valid(source + from, end - from, NULL)) end--;
    snprintf(stem, 256, "%.*s", (int)(end - from), source + from);
    if (!*stem) snprintf(stem, 256, "text");
}

HBK_DEF bool hbk_corpus_add_text(hbk_corpus *c, const char *text, size_t n, bool markdown, const char *source,
                                 hbk_error *err)
{
    char stem[256];
    hbk__stem_of(stem, source);
    hbk_int *counter = hbk__stem_counter(c, stem);
    hbk__document d;
    memset(&d, 0, sizeof d);
    d.text = text;
    d.n = n;
    d.source = source;
    d.id = stem;
    d.n_segments = *counter;
    bool ok = hbk__document_add(c, &d, markdown, err);
    *counter = d.n_segments;
    return ok;
}

/* The string of an optional key: NULL if it is absent, null or empty. */
static bool hbk__optional(const json_t *row, const char *key, const char **out, const char *path,
                          hbk_int line, hbk_error *err)
{
    const json_t *value = json_object_get(row, key);
    *out = json_string_value(value);
    if (*out && !**out) *out = NULL;
    if (!value || json_is_string(value) || json_is_null(value)) return true;
    return hbk_fail_at(err, HBK_ERROR_FORMAT, path, line, "the value of \"%s\" is no string", key);
}

/* A row with an id keeps it where its document is one segment; cut, it gives ID-1, ID-2 ... */
static bool hbk__corpus_row(hbk_corpus *c, const json_t *row, const char *source, const char *path,
                            hbk_int line, hbk_error *err)
{
    char stem[256];
    hbk__stem_of(stem, source);
    hbk__document d;
    memset(&d, 0, sizeof d);
    d.source = source;
    if (!hbk_json_string(row, "text", &d.text, path, line, err) ||
        !hbk__optional(row, "url", &d.url, path, line, err) ||
        !hbk__optional(row, "title", &d.header, path, line, err))
        return false;
    if (!d.header && !hbk__optional(row, "header", &d.header, path, line, err)) return false;
    d.n = json_string_length(json_object_get(row, "text"));
    const json_t *id = json_object_get(row, "id");
    if (id && !json_is_null(id)) {
        if (!hbk__row_id(row, "", stem, path, line, err)) return false;
        d.id = stem;
        d.whole = true;
        return hbk__document_add(c, &d, false, err);
    }
    hbk_int *counter = hbk__stem_counter(c, stem);
    d.id = stem;
    d.n_segments = *counter;
    bool ok = hbk__document_add(c, &d, false, err);
    *counter = d.n_segments;
    return ok;
}

static bool hbk__has_ending(const char *path, const char *ending)
{
    size_t n = strlen(path), k = strlen(ending);
    if (n < k) return false;
    for (size_t i = 0; i < k; i++)
        if (hbk__lower(path[n - k + i]) != ending[i]) return false;
    return true;
}

HBK_DEF bool hbk_corpus_add_file(hbk_corpus *c, const char *path, hbk_error *err)
{
    const char *slash = strrchr(path, '/'), *source = slash ? slash + 1 : path;
    if (hbk__has_ending(path, ".jsonl") || hbk__has_ending(path, ".json")) {
        hbk_jsonl_reader *r = hbk_jsonl_open(path, c->alloc, err);
        if (!r) return false;
        json_t *row;
        int got;
        while ((got = hbk_jsonl_next(r, &row, err)) > 0)
            if (!hbk__corpus_row(c, row, source, path, hbk_jsonl_line(r), err)) {
                got = -1;
                break;
            }
        hbk_jsonl_close(r);
        return got == 0;
    }
    hbk_text text;
    memset(&text, 0, sizeof text);
    text.alloc = c->alloc;
    bool markdown = hbk__has_ending(path, ".md") || hbk__has_ending(path, ".markdown");
    bool ok = hbk_file_read(path, (size_t)1 << 30, &text, err) &&
              hbk_corpus_add_text(c, hbk_text_string(&text), text.len, markdown, source, err);
    hbk_text_free(&text);
    return ok;
}

/* The counts, and what helps against the commonest reason. `rejects`: the dropped texts are in a file. */
static bool hbk__fail_nothing_kept(const hbk_corpus *c, bool rejects, hbk_error *err)
{
    static const char remedies[HBK_DROP_COUNT][56] = {/* in the order of HBK_DROPS */
                                                      "give files that hold text",
                                                      "give files that hold text",
                                                      "lower --min-chars",
                                                      "raise --max-chars",
                                                      "raise --max-upper, or give texts with other headings",
                                                      "give running text instead of menus and contents",
                                                      "raise --max-repeat",
                                                      "give texts that differ",
                                                      "save the texts as UTF-8"};
    char reasons[256] = "there were none", now[40] = "";
    size_t at = 0;
    int most = HBK_DROP_KEPT;
    for (int i = HBK_DROP_KEPT + 1; i < HBK_DROP_COUNT && at < sizeof reasons; i++) {
        if (!c->counts[i]) continue;
        if (c->counts[i] > c->counts[most]) most = i;
        at += (size_t)snprintf(reasons + at, sizeof reasons - at, "%s%lld %s", at ? ", " : "",
                               (long long)c->counts[i], hbk_drop_name((hbk_drop)i));
    }
    hbk_int limit = most == HBK_DROP_LONG ? c->o.max_chars : c->o.min_chars;
    if (most == HBK_DROP_SHORT || most == HBK_DROP_LONG)
        snprintf(now, sizeof now, ", now %lld", (long long)limit);
    return hbk_fail(err, HBK_ERROR_DATA, "no segment was kept (%s): %s%s%s", reasons, remedies[most], now,
                    most && !rejects ? "; --rejects FILE shows what was dropped" : "");
}

HBK_DEF bool hbk_corpus_finish(hbk_corpus *c, hbk_int *counts, hbk_error *err)
{
    bool rejects = c->rejects != NULL, ok = hbk_jsonl_finish(c->out, err);
    ok = hbk_jsonl_finish(c->rejects, ok ? err : NULL) && ok;
    if (ok && counts) memcpy(counts, c->counts, sizeof c->counts);
    if (ok && c->counts[HBK_DROP_KEPT] == 0) ok = hbk__fail_nothing_kept(c, rejects, err);
    stbds_shfree(c->stems);
    hbk__hash_free(&c->seen);
    hbk_free(c->alloc, c);
    return ok;
}

/* 18.8  Near-duplicates */

struct hbk_dedup {
    hbk_allocator *alloc;
    double threshold;
    hbk_int words, rows, bands;
    hbk_int n;              /* texts so far */
    hbk_int n_kept;         /* and how many of them stay; the arrays below are over those */
    hbk__hashes runs;       /* n-grams, text after text, each one's sorted */
    hbk_int *start;         /* where a text's begin; (n_kept + 1) */
    hbk_int *number;        /* a text's number */
    hbk_int *asked;         /* number of the last text that was compared with it */
    hbk_int *chain;         /* (bands) each: the entry before it in its bucket, or -1 */
    hbk__hash_set buckets;  /* a band's rows -> the last entry that has them: text * bands + band */
    uint64_t *mins;         /* (bands * rows) the signature of the text at hand */
    hbk_int cap_start, cap_number, cap_asked, cap_chain;
};

/* The most rows a band may have. */
static hbk_int hbk__dedup_rows(double threshold, hbk_int hashes)
{
    const double missed = 1e-3;
    hbk_int rows = 1;
    while (rows < hashes &&
           pow(1 - pow(threshold, (double)rows + 1), (double)(hashes / (rows + 1))) <= missed)
        rows++;
    return rows;
}

HBK_DEF hbk_dedup *hbk_dedup_new(double threshold, hbk_int words, hbk_int hashes, hbk_allocator *alloc,
                                 hbk_error *err)
{
    if (!(threshold > 0 && threshold <= 1) || words < 1 || hashes < 1 || hashes > 1 << 16) {
        hbk_fail(err, HBK_ERROR_OPTION,
                 "duplicates of similarity %g by %lld hashes of %lld words: expected a similarity above 0, "
                 "at most 1, 1 to 65536 hashes, and at least 1 word",
                 threshold, (long long)hashes, (long long)words);
        return NULL;
    }
    hbk_dedup *d = HBK__NEW(alloc, hbk_dedup, 1, err);
    if (!d) return NULL;
    d->alloc = d->buckets.alloc = alloc;
    d->buckets.valued = true;
    d->threshold = threshold;
    d->words = words;
    d->rows = hbk__dedup_rows(threshold, hashes);
    d->bands = hashes / d->rows;
    d->mins = HBK__NEW(alloc, uint64_t, d->rows * d->bands, err);
    if (d->mins) return d;
    hbk_dedup_free(d);
    return NULL;
}

HBK_DEF void hbk_dedup_free(hbk_dedup *d)
{
    if (!d) return;
    hbk_allocator *alloc = d->alloc;
    hbk__hash_free(&d->buckets);
    hbk_free(alloc, d->runs.data);
    hbk_free(alloc, d->start);
    hbk_free(alloc, d->number);
    hbk_free(alloc, d->asked);
    hbk_free(alloc, d->chain);
    hbk_free(alloc, d->mins);
    hbk_free(alloc, d);
}

/* Appends the set of a text's n-grams, sorted; one that has no word is a set of itself. */
static bool hbk__gram_set(hbk__hashes *out, const char *text, hbk_int words, hbk_allocator *alloc,
                          hbk_error *err)
{
    hbk_int from = out->n;
    if (!hbk__words(out, text, strlen(text), alloc, err)) return false;
    if (out->n == from) {
        void *data = out->data;
        if (!hbk__reserve(alloc, &data, &out->cap, from + 1, sizeof *out->data, err)) return false;
        out->data = (uint64_t *)data;
        out->data[out->n++] = hbk_hash(0, text, strlen(text));
    }
    hbk_int n = hbk__runs(out->data + from, out->n - from, words);
    out->n = from + hbk__sort_hashes(out->data + from, n);
    return true;
}

HBK_DEF bool hbk_similarity(const char *a, const char *b, hbk_int words, double *similarity,
                            hbk_allocator *alloc, hbk_error *err)
{
    if (words < 1)
        return hbk_fail(err, HBK_ERROR_OPTION, "n-grams of %lld words: expected at least 1",
                        (long long)words);
    hbk__hashes sets;
    memset(&sets, 0, sizeof sets);
    bool ok = hbk__gram_set(&sets, a, words, alloc, err);
    hbk_int n = sets.n;
    ok = ok && hbk__gram_set(&sets, b, words, alloc, err);
    if (ok) *similarity = hbk__jaccard(sets.data, n, sets.data + n, sets.n - n);
    hbk_free(alloc, sets.data);
    return ok;
}

/* The signature of n n-grams: h_j(x) is the j-th number of a generator that x seeds. */
static void hbk__signature(hbk_dedup *d, const uint64_t *x, hbk_int n)
{
    for (hbk_int j = 0; j < d->rows * d->bands; j++) d->mins[j] = UINT64_MAX;
    for (hbk_int i = 0; i < n; i++) {
        uint64_t state = x[i];
        for (hbk_int j = 0; j < d->rows * d->bands; j++) {
            uint64_t h = hbk__splitmix(&state);
            d->mins[j] = HBK__MIN(d->mins[j], h);
        }
    }
}

static uint64_t hbk__band_key(const hbk_dedup *d, hbk_int band)
{
    return hbk_hash((uint64_t)band + 1, d->mins + band * d->rows, (size_t)d->rows * sizeof *d->mins);
}

/* The text that stayed and is most like the n n-grams x; -1 if none is near enough. */
static hbk_int hbk__nearest(hbk_dedup *d, const uint64_t *x, hbk_int n, double *similarity)
{
    hbk_int like = -1;
    for (hbk_int band = 0; band < d->bands; band++) {
        const hbk_int *last = hbk__hash_find(&d->buckets, hbk__band_key(d, band));
        for (hbk_int e = last ? *last : -1; e >= 0; e = d->chain[e]) {
            hbk_int k = e / d->bands;
            if (d->asked[k] == d->n) continue; /* found by a band before */
            d->asked[k] = d->n;
            double j = hbk__jaccard(d->runs.data + d->start[k], d->start[k + 1] - d->start[k], x, n);
            if (j < d->threshold || (like >= 0 && (j < *similarity || (j == *similarity && k > like))))
                continue;
            like = k;
            *similarity = j;
        }
    }
    return like;
}

/* Makes the text at hand, whose n-grams stand at the end of runs, from `from` on, one that stays. */
static bool hbk__dedup_keep(hbk_dedup *d, hbk_int from, hbk_error *err)
{
    hbk_int k = d->n_kept, entries;
    void *start = d->start, *number = d->number, *asked = d->asked, *chain = d->chain;
    if (!hbk__mul(&entries, k + 1, d->bands))
        return hbk_fail(err, HBK_ERROR_RANGE, "too many texts to find duplicates among: %lld", (long long)k);
    bool ok = hbk__reserve(d->alloc, &start, &d->cap_start, k + 2, sizeof *d->start, err);
    d->start = (hbk_int *)start;
    ok = ok && hbk__reserve(d->alloc, &number, &d->cap_number, k + 1, sizeof *d->number, err);
    d->number = (hbk_int *)number;
    ok = ok && hbk__reserve(d->alloc, &asked, &d->cap_asked, k + 1, sizeof *d->asked, err);
    d->asked = (hbk_int *)asked;
    ok = ok && hbk__reserve(d->alloc, &chain, &d->cap_chain, entries, sizeof *d->chain, err);
    d->chain = (hbk_int *)chain;
    if (!ok) return false;
    d->start[k] = from;
    d->start[k + 1] = d->runs.n;
    d->number[k] = d->asked[k] = d->n;
    for (hbk_int band = 0; band < d->bands; band++) {
        hbk_int *last = hbk__hash_at(&d->buckets, hbk__band_key(d, band), err);
        if (!last) return false;
        d->chain[k * d->bands + band] = *last;
        *last = k * d->bands + band;
    }
    d->n_kept++;
    return true;
}

HBK_DEF bool hbk_dedup_add(hbk_dedup *d, const char *text, hbk_int *like, double *similarity, hbk_error *err)
{
    hbk_int from = d->runs.n;
    double j = 0;
    if (!hbk__gram_set(&d->runs, text, d->words, d->alloc, err)) return false;
    hbk__signature(d, d->runs.data + from, d->runs.n - from);
    hbk_int k = hbk__nearest(d, d->runs.data + from, d->runs.n - from, &j);
    if (k >= 0)
        d->runs.n = from;
    else if (!hbk__dedup_keep(d, from, err))
        return false;
    d->n++;
    *like = k < 0 ? -1 : d->number[k];
    *similarity = j;
    return true;
}

/* 18.9  Overlap with evaluations */

enum { HBK__LEAST_RUN = 4, HBK__MOST_RUN = 64 };

typedef struct hbk__held_text {
    hbk_int file, line;
} hbk__held_text;

struct hbk_holdout {
    hbk_allocator *alloc;
    hbk_int words;
    bool has[HBK__MOST_RUN + 1]; /* lengths that runs have */
    hbk__hash_set runs;          /* a run's hash -> the text it is of */
    hbk__held_text *texts;
    char **files;
    hbk_int n_texts, cap_texts, n_files, cap_files;
    hbk__hashes room; /* the words of the text at hand */
};

HBK_DEF hbk_holdout *hbk_holdout_new(hbk_int words, hbk_allocator *alloc, hbk_error *err)
{
    if (words < HBK__LEAST_RUN || words > HBK__MOST_RUN) {
        hbk_fail(err, HBK_ERROR_OPTION, "an overlap of %lld words: expected %d to %d", (long long)words,
                 HBK__LEAST_RUN, HBK__MOST_RUN);
        return NULL;
    }
    hbk_holdout *h = HBK__NEW(alloc, hbk_holdout, 1, err);
    if (!h) return NULL;
    h->alloc = h->runs.alloc = alloc;
    h->runs.valued = true;
    h->words = words;
    return h;
}

HBK_DEF void hbk_holdout_free(hbk_holdout *h)
{
    if (!h) return;
    for (hbk_int i = 0; i < h->n_files; i++) hbk_free(h->alloc, h->files[i]);
    hbk_free(h->alloc, h->files);
    hbk_free(h->alloc, h->texts);
    hbk_free(h->alloc, h->room.data);
    hbk__hash_free(&h->runs);
    hbk_free(h->alloc, h);
}

/* Makes `file` the last of the files. */
static bool hbk__holdout_file(hbk_holdout *h, const char *file, hbk_error *err)
{
    void *files = h->files;
    if (h->n_files && strcmp(h->files[h->n_files - 1], file) == 0) return true;
    if (!hbk__reserve(h->alloc, &files, &h->cap_files, h->n_files + 1, sizeof *h->files, err)) return false;
    h->files = (char **)files;
    h->files[h->n_files] = hbk__copy_text(h->alloc, file, strlen(file), err);
    if (!h->files[h->n_files]) return false;
    h->n_files++;
    return true;
}

HBK_DEF bool hbk_holdout_add(hbk_holdout *h, const char *text, const char *file, hbk_int line,
                             hbk_error *err)
{
    void *texts = h->texts;
    h->room.n = 0;
    if (!hbk__words(&h->room, text, strlen(text), h->alloc, err)) return false;
    if (h->room.n < HBK__LEAST_RUN) return true;
    if (!hbk__holdout_file(h, file, err) ||
        !hbk__reserve(h->alloc, &texts, &h->cap_texts, h->n_texts + 1, sizeof *h->texts, err))
        return false;
    h->texts = (hbk__held_text *)texts;
    h->texts[h->n_texts].file = h->n_files - 1;
    h->texts[h->n_texts].line = line;
    h->has[HBK__MIN(h->room.n, h->words)] = true;
    hbk_int n = hbk__runs(h->room.data, h->room.n, h->words);
    for (hbk_int i = 0; i < n; i++) {
        hbk_int *of = hbk__hash_at(&h->runs, h->room.data[i], err);
        if (!of) return false;
        if (*of < 0) *of = h->n_texts;
    }
    h->n_texts++;
    return true;
}

/* Adds every string in a JSON value. */
static bool hbk__holdout_json(hbk_holdout *h, const json_t *value, const char *file, hbk_int line,
                              hbk_error *err)
{
    if (json_is_string(value)) return hbk_holdout_add(h, json_string_value(value), file, line, err);
    for (size_t i = 0; i < json_array_size(value); i++)
        if (!hbk__holdout_json(h, json_array_get(value, i), file, line, err)) return false;
    json_t *object = (json_t *)(uintptr_t)value; /* jansson's iterators take no const */
    for (void *it = json_object_iter(object); it; it = json_object_iter_next(object, it))
        if (!hbk__holdout_json(h, json_object_iter_value(it), file, line, err)) return false;
    return true;
}

static bool hbk__holdout_rows(hbk_holdout *h, const char *path, hbk_error *err)
{
    hbk_jsonl_reader *in = hbk_jsonl_open(path, h->alloc, err);
    json_t *row;
    int got = in ? 0 : -1;
    while (in && (got = hbk_jsonl_next(in, &row, err)) > 0)
        if (!hbk__holdout_json(h, row, path, hbk_jsonl_line(in), err)) {
            got = -1;
            break;
        }
    hbk_jsonl_close(in);
    return got == 0;
}

/* The rows of an array, which count as lines. */
static bool hbk__holdout_array(hbk_holdout *h, const char *path, hbk_error *err)
{
    json_t *root = hbk_json_read(path, err);
    bool ok = root && (json_is_array(root) || hbk__holdout_json(h, root, path, 1, err));
    for (size_t i = 0; ok && i < json_array_size(root); i++)
        ok = hbk__holdout_json(h, json_array_get(root, i), path, (hbk_int)i + 1, err);
    json_decref(root);
    return ok;
}

static bool hbk__holdout_lines(hbk_holdout *h, const char *path, hbk_error *err)
{
    hbk_text text;
    memset(&text, 0, sizeof text);
    text.alloc = h->alloc;
    bool ok = hbk_file_read(path, (size_t)1 << 30, &text, err);
    if (ok && text.len && memchr(text.data, 0, text.len)) /* the lines behind it would not be looked for */
        ok = hbk_fail_at(err, HBK_ERROR_FORMAT, path, 0, "holds a NUL byte: expected text, saved as UTF-8");
    char *at = text.data;
    for (hbk_int line = 1; ok && at && *at; line++) {
        char *end = at + strcspn(at, "\n"), *next = *end ? end + 1 : end;
        *end = 0;
        ok = hbk_holdout_add(h, at, path, line, err);
        at = next;
    }
    hbk_text_free(&text);
    return ok;
}

HBK_DEF bool hbk_holdout_add_file(hbk_holdout *h, const char *path, hbk_error *err)
{
    hbk_int before = h->n_texts;
    bool ok = hbk__has_ending(path, ".jsonl")  ? hbk__holdout_rows(h, path, err)
              : hbk__has_ending(path, ".json") ? hbk__holdout_array(h, path, err)
                                               : hbk__holdout_lines(h, path, err);
    if (ok && h->n_texts == before)
        return hbk_fail_at(err, HBK_ERROR_DATA, path, 0,
                           "holds no text of at least %d words: name a file with the evaluation's texts",
                           HBK__LEAST_RUN);
    return ok;
}

HBK_DEF bool hbk_holdout_find(hbk_holdout *h, const char *text, const char **file, hbk_int *line,
                              hbk_error *err)
{
    h->room.n = 0;
    if (!hbk__words(&h->room, text, strlen(text), h->alloc, err)) return false;
    *file = NULL;
    for (hbk_int size = HBK__LEAST_RUN; size <= h->words; size++)
        for (hbk_int i = 0; h->has[size] && i + size <= h->room.n; i++) {
            uint64_t run = hbk_hash(0, h->room.data + i, (size_t)size * sizeof run);
            const hbk_int *of = hbk__hash_find(&h->runs, run);
            if (!of) continue;
            *file = h->files[h->texts[*of].file];
            *line = h->texts[*of].line;
            return true;
        }
    return true;
}

/* ==== 19  SELF-AUGMENTATION ==================================================

   For each text y of the corpus the backward model M_yx, p(instruction | text), writes an instruction x: the
   pair (x, y) is a candidate. The text stays as people wrote it; only its question is made up. Of several
   instructions x_1 .. x_k the one stays that is usable and, per token and without the id that ends it, the
   likeliest,

       max_j  log p(x_j | y) / |x_j|          under the model's own distribution, temperature 1

   Source: the paper, section 2.2, which writes one (k = 1), the default.

   Clean-up, our own rules, each as long as it applies: white space at the ends goes; so does a label at the
   beginning ("Instruction:", "**Question:**", "## Task"), and a pair of quotes, stars or backquotes around
   the whole that holds no other. What is then left is judged; the first filter that applies names the fate:

       too_long  empty  truncated  short  long  leak  echo          in this order

   and when all candidates are there, in file order, what overlaps an evaluation (contaminated) or is much
   like an instruction before it (duplicate); both are off in the paper.

   Echo is the share of an instruction's runs of n words that stand in the text, n = 6; one of fewer words is
   an echo only of a text of the same words. Words are compared as chapter 18 cuts them, without punctuation
   and capitals:

       echo(x, y) = |{i : x_i .. x_{i+n-1} in y}| / (|x| - n + 1)

   Rewriting, off in the paper: a model writes the text of a curated pair anew as an answer to its
   instruction, so that its facts stay and its web page goes. A reply that is no answer leaves the text as it
   is. Source: Nguyen et al. 2024, "Better Alignment with Instruction Back-and-Forth Translation", arXiv
   2408.04614; the wording is ours.

   The wave is the unit of work, here and in chapter 20: so many records are read in file order, decoded side
   by side, and written and fsynced together. Nothing outside a wave has a say in its rows, so a file that was
   cut off anywhere is cut back to whole waves and continued, and ends with the same bytes. */

/* ---- waves, for both stages ------------------------------------------------------- */

/* One record of a wave; strings belong to `row`. */
typedef struct hbk__item {
    json_t *row;
    char id[256];
    const char *instruction, *output;
    hbk_tokens prompt;
} hbk__item;

/* Who decodes, and a stage's way with a row and with a wave. */
typedef struct hbk__stage {
    const char *name; /* of progress and of random streams */
    const hbk_model *m;
    const hbk_adapter *adapter;
    const hbk_tokenizer *tok;
    const hbk_template *t;
    const hbk_decode_options *o;
    const char *prov_adapter;
    hbk_allocator *alloc;
    const void *options; /* the stage's own */
    /* 1: the row becomes an item, 0: it is passed over, -1: an error */
    int (*take)(const struct hbk__stage *s, hbk__item *item, const char *path, hbk_int line, hbk_error *err);
    bool (*wave)(const struct hbk__stage *s, hbk__item *items, hbk_int n, hbk_jsonl_writer *out,
                 hbk_error *err);
    bool (*describe)(const struct hbk__stage *s, json_t *prov); /* adds to prov; NULL: nothing */
} hbk__stage;

/* How a row was made, and what was rounded, if anything was; NULL when memory is out. */
static json_t *hbk__prov(const hbk__stage *s)
{
    const char *bf16 = hbk_dtype_name(HBK_BF16), *products = hbk_model_precision(s->m);
    json_t *prov =
        json_pack("{s:o s:s s:s s:o s:I s:s* s:s*}", "model", hbk__hex(hbk_model_hash(s->m)), "adapter",
                  s->prov_adapter ? s->prov_adapter : "", "template", hbk_template_name(s->t),
                  "template_hash", hbk__hex(hbk_template_hash(s->t)), "seed", (json_int_t)s->o->seed,
                  "precision", strcmp(products, bf16) ? NULL : bf16, "cache",
                  s->o->cache == HBK_BF16 ? bf16 : NULL);
    if (!prov || !s->describe || s->describe(s, prov)) return prov;
    json_decref(prov);
    return NULL;
}

static void hbk__items_clear(hbk__item *items, hbk_int n)
{
    for (hbk_int i = 0; i < n; i++) {
        json_decref(items[i].row);
        items[i].row = NULL;
        hbk_tokens_free(&items[i].prompt);
    }
}

/* Fills `items` with the next records, up to a wave; returns their number, or -1. */
static hbk_int hbk__read_wave(const hbk__stage *s, hbk_jsonl_reader *in, const char *path, hbk__item *items,
                              hbk_error *err)
{
    hbk_int n = 0;
    while (n < s->o->wave) {
        json_t *row;
        int got = hbk_jsonl_next(in, &row, err);
        if (got == 0) break;
        if (got > 0) {
            items[n].row = json_incref(row);
            got = s->take(s, &items[n], path, hbk_jsonl_line(in), err);
            n++;
        }
        if (got > 0) continue;
        if (got == 0) { /* passed over */
            json_decref(items[--n].row);
            items[n].row = NULL;
            continue;
        }
        hbk__items_clear(items, n);
        return -1;
    }
    return n;
}

/* Are the next n rows of `kept` those of these items, made in the same way? */
static bool hbk__kept_wave(const hbk__stage *s, hbk_jsonl_reader *kept, const char *path,
                           const hbk__item *items, hbk_int n, hbk_error *err)
{
    json_t *prov = hbk__prov(s), *row;
    bool ok = prov || hbk_fail(err, HBK_ERROR_MEMORY, "out of memory for a row");
    for (hbk_int i = 0; ok && i < n; i++) {
        ok = hbk_jsonl_next(kept, &row, err) > 0;
        const char *id = ok ? json_string_value(json_object_get(row, "id")) : NULL;
        if (ok && (!id || strcmp(id, items[i].id) || !json_equal(json_object_get(row, "prov"), prov)))
            ok = hbk_fail_at(
                err, HBK_ERROR_OPTION, path, hbk_jsonl_line(kept),
                "this row is of another input, model, template, seed, precision or cache: remove the file, "
                "or choose another");
    }
    json_decref(prov);
    return ok;
}

/* Reads, decodes and writes wave after wave, after the whole waves that `out` already holds. */
static bool hbk__run_waves(const hbk__stage *s, const char *path, const char *out_path,
                           const hbk_progress *progress, hbk_error *err)
{
    hbk_int total, done, n = 0, seen = 0;
    if (s->o->wave < 1 || s->o->slots < 1)
        return hbk_fail(err, HBK_ERROR_OPTION, "%s: wave %lld and slots %lld must be at least 1", s->name,
                        (long long)s->o->wave, (long long)s->o->slots);
    if (hbk__same_file(path, out_path))
        return hbk_fail_at(err, HBK_ERROR_OPTION, out_path, 0,
                           "is the input too: choose another output file");
    if (!hbk_jsonl_count(path, &total, err) || !hbk_jsonl_count(out_path, &done, err)) return false;
    done -= done % s->o->wave; /* the last wave, when it is a short one, is simply made again */
    hbk__item *items = HBK__NEW(s->alloc, hbk__item, s->o->wave, err);
    hbk_jsonl_reader *in = items ? hbk_jsonl_open(path, s->alloc, err) : NULL;
    hbk_jsonl_reader *kept = in && done ? hbk_jsonl_open(out_path, s->alloc, err) : NULL;
    hbk_jsonl_writer *out = in && (kept || !done) ? hbk_jsonl_create(out_path, done, s->alloc, err) : NULL;
    bool ok = out != NULL;
    while (ok && (n = hbk__read_wave(s, in, path, items, err)) > 0) {
        seen += n;
        if (seen <= done) ok = hbk__kept_wave(s, kept, out_path, items, n, err);
        if (seen > done) {
            ok = s->wave(s, items, n, out, err) && hbk_jsonl_sync(out, err);
            if (ok)
                ok = hbk_report(progress, s->name, seen, HBK__MAX(total, seen), "rows", err, "%s", "");
        }
        hbk__items_clear(items, n);
    }
    ok = ok && n == 0;
    if (ok && seen == 0)
        ok = hbk_fail_at(err, HBK_ERROR_DATA, path, 0, "holds no row that %s could use", s->name);
    if (ok && seen < done)
        ok = hbk_fail_at(err, HBK_ERROR_DATA, out_path, 0,
                         "holds %lld rows, more rows than %s has records (%lld): it is of another input; "
                         "remove it",
                         (long long)done, path, (long long)seen);
    if (out && !hbk_jsonl_finish(out, ok ? err : NULL)) ok = false;
    hbk_jsonl_close(kept);
    hbk_jsonl_close(in);
    hbk_free(s->alloc, items);
    return ok;
}

/* ---- decoding a wave ---------------------------------------------------------------- */

/* The longest sequence a stage may build. */
static hbk_int hbk__length_limit(const hbk__stage *s)
{
    hbk_int context = s->m->config.context_length;
    return s->o->max_length > 0 ? HBK__MIN(s->o->max_length, context) : context;
}

/* A session just large enough for these prompts and `extra` more tokens each, within `limit`, and `room`
   beyond. */
static hbk_session *hbk__wave_session(const hbk__stage *s, const hbk__item *items, hbk_int n, hbk_int slots,
                                      hbk_int extra, hbk_int limit, hbk_int room, hbk_error *err)
{
    hbk_int longest = 1;
    for (hbk_int i = 0; i < n; i++)
        if (items[i].prompt.n < limit) longest = HBK__MAX(longest, items[i].prompt.n);
    return hbk_session_new(s->m, s->adapter, HBK__MIN(slots, s->o->slots),
                           HBK__MIN(limit, longest + extra) + room, s->o->cache, s->alloc, err);
}

static void hbk__requests_free(const hbk__stage *s, hbk_request *r, hbk_int n)
{
    hbk_reply *replies = r ? r[0].reply : NULL; /* one block for all */
    hbk_logprobs *logprobs = r ? r[0].logprobs : NULL;
    for (hbk_int i = 0; r && i < n; i++) hbk_tokens_free(&r[i].output);
    for (hbk_int i = 0; replies && i < n; i++) hbk_reply_free(&replies[i]);
    for (hbk_int i = 0; logprobs && i < n; i++) hbk_logprobs_free(&logprobs[i]);
    hbk_free(s->alloc, logprobs);
    hbk_free(s->alloc, replies);
    hbk_free(s->alloc, r);
}

/* Requests that continue every item's prompt `votes` times, each with a stream of its own, into replies
   without the white space around them, item by item; with `scored` the log-probabilities of their tokens too.
   The caller frees all of them with hbk__requests_free. */
static hbk_request *hbk__requests_new(const hbk__stage *s, const hbk__item *items, hbk_int n, hbk_int votes,
                                      bool scored, hbk_error *err)
{
    hbk_int total;
    if (!hbk__mul(&total, n, votes) || total > INT64_MAX / 64) {
        hbk_fail(err, HBK_ERROR_RANGE, "%lld replies to each of %lld records are too many", (long long)votes,
                 (long long)n);
        return NULL;
    }
    hbk_request *r = HBK__NEW(s->alloc, hbk_request, total, err);
    hbk_reply *replies = r ? HBK__NEW(s->alloc, hbk_reply, total, err) : NULL;
    hbk_logprobs *logprobs = replies && scored ? HBK__NEW(s->alloc, hbk_logprobs, total, err) : NULL;
    if (!replies || (scored && !logprobs)) {
        hbk_free(s->alloc, replies);
        hbk_free(s->alloc, r);
        return NULL;
    }
    for (hbk_int i = 0; i < total; i++) {
        const hbk__item *item = &items[i / votes];
        r[i].reply = &replies[i];
        replies[i].alloc = s->alloc;
        replies[i].tok = s->tok;
        replies[i].trim = true;
        if (scored) {
            r[i].logprobs = &logprobs[i];
            logprobs[i].alloc = s->alloc;
        }
        uint64_t id = hbk_hash(0, item->id, strlen(item->id));
        r[i].prompt = item->prompt.data;
        r[i].n_prompt = item->prompt.n;
        r[i].rng = hbk_rng_at(s->o->seed, s->name, id + (uint64_t)(i % votes));
        r[i].output.alloc = s->alloc;
    }
    return r;
}

/* Serves `total` requests on the prompts of n items; `ending` may be NULL. */
static bool hbk__requests_run(const hbk__stage *s, const hbk__item *items, hbk_int n, hbk_request *r,
                              hbk_int total, hbk_int limit, const hbk__ending *ending, hbk_error *err)
{
    hbk_sampling sampling = s->o->sampling;
    if (sampling.stop < 0) sampling.stop = hbk_template_stop(s->t, s->tok);
    const char *end = hbk_template_stop_text(s->t); /* of a reply that no id ends */
    for (hbk_int i = 0; i < total; i++) {
        r[i].reply->stops = &end;
        r[i].reply->n_stops = sampling.stop < 0 && *end ? 1 : 0;
    }
    hbk_session *session = hbk__wave_session(s, items, n, total, sampling.max_new, limit,
                                             ending ? ending->room : 0, err);
    bool ok = session && hbk__generate(session, r, total, &sampling, NULL, ending, err);
    for (hbk_int i = 0; i < total; i++) r[i].reply->n_stops = 0; /* `end` goes, the texts stay */
    hbk_session_free(session);
    return ok;
}

/* Continues every item's prompt `votes` times; the caller frees the n * votes requests. */
static hbk_request *hbk__decode(const hbk__stage *s, const hbk__item *items, hbk_int n, hbk_int votes,
                                hbk_int limit, hbk_error *err)
{
    hbk_request *r = hbk__requests_new(s, items, n, votes, false, err);
    if (!r || hbk__requests_run(s, items, n, r, n * votes, limit, NULL, err)) return r;
    hbk__requests_free(s, r, n * votes);
    return NULL;
}

/* ---- augmentation --------------------------------------------------------------------- */

HBK_DEF hbk_decode_options hbk_decode_defaults(void)
{
    hbk_decode_options o;
    o.sampling = hbk_sampling_defaults();
    o.sampling.max_new = 256;
    o.seed = 1;
    o.wave = 256;
    o.slots = 32;
    o.max_length = -1;
    o.cache = HBK_F32;
    return o;
}

HBK_DEF hbk_augment_options hbk_augment_defaults(void)
{
    hbk_augment_options o;
    memset(&o, 0, sizeof o);
    o.decode = hbk_decode_defaults();
    o.candidates = 1;
    o.min_chars = 3;
    o.max_chars = 2000;
    o.max_echo = 0.5;
    o.echo_words = 6;
    o.sift.dedup_words = 2;
    o.sift.dedup_hashes = 128;
    o.sift.holdout_words = 13;
    return o;
}

HBK_DEF const char *hbk_fate_name(hbk_fate f)
{
    switch (f) {
#define HBK_X(name, text)                                                                                    \
    case HBK_FATE_##name: return text;
        HBK_FATES(HBK_X)
#undef HBK_X
    case HBK_FATE_COUNT: break;
    }
    return "unknown fate";
}

HBK_DEF bool hbk_fate_count(hbk_int *counts, const char *path, const char *key, hbk_allocator *alloc,
                            hbk_error *err)
{
    hbk_int sums[HBK_FATE_COUNT] = {0};
    hbk_jsonl_reader *in = hbk_jsonl_open(path, alloc, err);
    json_t *row;
    int got = in ? 0 : -1;
    while (in && (got = hbk_jsonl_next(in, &row, err)) > 0) {
        const char *status = json_string_value(json_object_get(row, key));
        int f = 0;
        while (status && f < HBK_FATE_COUNT && strcmp(status, hbk_fate_name((hbk_fate)f))) f++;
        if (f < HBK_FATE_COUNT) {
            sums[f]++;
            continue;
        }
        hbk_fail_at(err, HBK_ERROR_DATA, path, hbk_jsonl_line(in),
                    "\"%s\" is \"%.40s\", expected ok, empty, echo ...: is it a file of augment or rewrite?",
                    key, status);
        got = -1;
        break;
    }
    hbk_jsonl_close(in);
    for (int f = 0; got == 0 && f < HBK_FATE_COUNT; f++) counts[f] += sums[f];
    return got == 0;
}

/* ---- clean-up ----------------------------------------------------------------------- */

/* Bytes of the label that s[0..n-1] begins with, the marks around it included; 0 if there is none. "Task:",
   "**Question**:" and, on a line of its own, "## Prompt" are labels; "Task" alone is a word. */
static size_t hbk__label(const char *s, size_t n)
{
    static const char *const names[] = {"instruction", "question", "prompt", "request",
                                        "query",       "task",     "user",   "q"};
    size_t at = 0, k = 0;
    while (at < n && strchr("#*_ ", s[at])) at++;
    bool heading = at > 0 && s[0] == '#';
    for (size_t i = 0; i < sizeof names / sizeof *names && !k; i++) {
        size_t len = strlen(names[i]);
        while (k < len && at + k < n && hbk__lower(s[at + k]) == names[i][k]) k++;
        if (k < len) k = 0;
    }
    if (!k) return 0;
    at += k;
    while (at < n && strchr("*_ ", s[at])) at++;
    bool line = at < n && (s[at] == '\n' || s[at] == '\r');
    if (at < n && s[at] == ':')
        for (at++; at < n && strchr("*_", s[at]);) at++;
    else if (!heading || !line)
        return 0;
    return at;
}

/* Takes a pair of marks off that stands around all of s[0..*n-1] and nowhere in it. */
static bool hbk__unwrap(const char **s, size_t *n)
{
    static const char *const pairs[][2] = {{"\"", "\""},
                                           {"**", "**"},
                                           {"`", "`"},
                                           {"\xe2\x80\x9c", "\xe2\x80\x9d"},
                                           {"\xc2\xab", "\xc2\xbb"}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        const char *open = pairs[i][0], *close = pairs[i][1];
        size_t a = strlen(open), b = strlen(close);
        if (*n <= a + b || memcmp(*s, open, a) || memcmp(*s + *n - b, close, b)) continue;
        bool inside = false;
        for (size_t at = a; at + b < *n && !inside; at++)
            inside = !memcmp(*s + at, open, a) || (at + 2 * b <= *n && !memcmp(*s + at, close, b));
        if (inside) continue;
        *s += a;
        *n -= a + b;
        return true;
    }
    return false;
}

HBK_DEF const char *hbk_augment_clean(const char *s, size_t *n)
{
    for (size_t label;;) {
        while (*n && hbk__blank(*s)) {
            s++;
            --*n;
        }
        while (*n && hbk__blank(s[*n - 1])) --*n;
        if ((label = hbk__label(s, *n)) > 0) {
            s += label;
            *n -= label;
        } else if (!hbk__unwrap(&s, n))
            return s;
    }
}

/* ---- filters ------------------------------------------------------------------------ */

/* *share of the instruction's runs of k words that stand in the text. */
static bool hbk__echo(double *share, const char *instruction, const char *text, hbk_int k,
                      hbk_allocator *alloc, hbk_error *err)
{
    hbk__hashes x, y;
    memset(&x, 0, sizeof x);
    memset(&y, 0, sizeof y);
    bool ok = hbk__words(&x, instruction, strlen(instruction), alloc, err) &&
              hbk__words(&y, text, strlen(text), alloc, err);
    hbk_int found = 0, runs = 0;
    if (ok && x.n < k) { /* too few words to be an echo of anything but the same few */
        runs = 1;
        found = x.n == y.n && (x.n == 0 ? !strcmp(instruction, text)
                                        : !memcmp(x.data, y.data, (size_t)x.n * sizeof *x.data));
    } else if (ok) {
        runs = hbk__runs(x.data, x.n, k);
        y.n = y.n < k ? 0 : hbk__sort_hashes(y.data, hbk__runs(y.data, y.n, k));
        for (hbk_int i = 0; i < runs && y.n; i++)
            found += bsearch(&x.data[i], y.data, (size_t)y.n, sizeof *y.data, hbk__by_hash) != NULL;
    }
    if (ok) *share = (double)found / (double)runs;
    hbk_free(alloc, x.data);
    hbk_free(alloc, y.data);
    return ok;
}

/* Does the instruction hold a marker of the template, which only the loop may write? */
static bool hbk__is_leak(const char *instruction, const hbk_template *t, const hbk_tokenizer *tok)
{
    enum { LEAST = 4 }; /* shorter literals are ordinary text */
    hbk_span_text spans[HBK_MAX_SPANS];
    hbk_render r;
    memset(&r, 0, sizeof r);
    r.instruction = r.reply = "."; /* they only keep the literals apart */
    hbk_int n = hbk_template_spans(t, tok, &r, spans);
    for (hbk_int i = 0; i < n; i++) {
        if (!spans[i].text || !spans[i].trusted) continue;
        const char *s = spans[i].text;
        hbk_int len = spans[i].len;
        for (; len > 0 && strchr(" \n", s[len - 1]); len--) {
        }
        for (; len > 0 && strchr(" \n", *s); len--) s++;
        for (const char *p = instruction; len >= LEAST && (p = strchr(p, *s)) != NULL; p++)
            if (strncmp(p, s, (size_t)len) == 0) return true;
    }
    return false;
}

/* Did the text end where there was no more room for it? */
static bool hbk__is_cut(hbk_finish finish)
{
    return finish == HBK_FINISH_LENGTH || finish == HBK_FINISH_CONTEXT;
}

HBK_DEF bool hbk_augment_judge(hbk_fate *fate, const char *instruction, const char *output, hbk_finish finish,
                               const hbk_augment_options *o, const hbk_template *t, const hbk_tokenizer *tok,
                               hbk_allocator *alloc, hbk_error *err)
{
    hbk_int chars = hbk_utf8_length(instruction, strlen(instruction));
    double share = 0;
    hbk_fate f = HBK_FATE_OK;
    if (finish == HBK_FINISH_TOO_LONG)
        f = HBK_FATE_TOO_LONG;
    else if (hbk__is_blank(instruction))
        f = HBK_FATE_EMPTY;
    else if (hbk__is_cut(finish) && !o->keep_truncated)
        f = HBK_FATE_TRUNCATED;
    else if (chars < o->min_chars)
        f = HBK_FATE_SHORT;
    else if (chars > o->max_chars)
        f = HBK_FATE_LONG;
    else if (hbk__is_leak(instruction, t, tok))
        f = HBK_FATE_LEAK;
    else if (!hbk__echo(&share, instruction, output, o->echo_words, alloc, err))
        return false;
    else if (share > o->max_echo)
        f = HBK_FATE_ECHO;
    *fate = f;
    return true;
}

/* ---- what is sorted out of all candidates --------------------------------------------- */

/* A sieve at work: over all rows of a file, so no wave's business. */
typedef struct hbk__sieve {
    hbk_allocator *alloc;
    hbk_dedup *dedup;     /* NULL: off */
    hbk_holdout *holdout; /* NULL: off */
    hbk_text ids;         /* of the texts that dedup was given, each with its NUL */
    hbk__hashes at;       /* where they begin */
} hbk__sieve;

static void hbk__sieve_free(hbk__sieve *v)
{
    hbk_dedup_free(v->dedup);
    hbk_holdout_free(v->holdout);
    hbk_text_free(&v->ids);
    hbk_free(v->alloc, v->at.data);
}

/* Reads the evaluation files, so that a bad one is known before anything is generated. */
static bool hbk__sieve_new(hbk__sieve *v, const hbk_sift_options *o, hbk_allocator *alloc, hbk_error *err)
{
    memset(v, 0, sizeof *v);
    v->alloc = v->ids.alloc = alloc;
    bool ok = true;
    if (o->dedup != 0)
        ok = (v->dedup = hbk_dedup_new(o->dedup, o->dedup_words, o->dedup_hashes, alloc, err)) != NULL;
    if (ok && o->n_holdout > 0)
        ok = (v->holdout = hbk_holdout_new(o->holdout_words, alloc, err)) != NULL;
    for (hbk_int i = 0; ok && i < o->n_holdout; i++)
        ok = hbk_holdout_add_file(v->holdout, o->holdout[i], err);
    if (!ok) hbk__sieve_free(v);
    return ok;
}

static bool hbk__sieve_id(hbk__sieve *v, const char *id, hbk_error *err)
{
    void *data = v->at.data;
    if (!hbk__reserve(v->alloc, &data, &v->at.cap, v->at.n + 1, sizeof *v->at.data, err)) return false;
    v->at.data = (uint64_t *)data;
    v->at.data[v->at.n++] = v->ids.len;
    hbk_text_append(&v->ids, id, strlen(id) + 1);
    return hbk_text_ok(&v->ids, err);
}

/* Marks one usable row where the sieve holds it back. */
static bool hbk__sieve_row(hbk__sieve *v, json_t *row, const char *path, hbk_int line, hbk_error *err)
{
    char id[256], where[600];
    const char *x, *y, *file = NULL;
    hbk_int like = -1, at = 0;
    double similarity = 0;
    if (!hbk__row_id(row, "row", id, path, line, err) ||
        !hbk__row_text(row, "instruction", &x, path, line, err) ||
        !hbk__row_text(row, "output", &y, path, line, err))
        return false;
    if (v->holdout && (!hbk_holdout_find(v->holdout, x, &file, &at, err) ||
                       (!file && !hbk_holdout_find(v->holdout, y, &file, &at, err))))
        return false;
    bool ok = true;
    if (file) {
        snprintf(where, sizeof where, "%.500s:%lld", file, (long long)at);
        ok = json_object_set_new(row, "status", json_string(hbk_fate_name(HBK_FATE_CONTAMINATED))) == 0 &&
             json_object_set_new(row, "overlaps", json_string(where)) == 0;
    } else if (v->dedup) {
        if (!hbk_dedup_add(v->dedup, x, &like, &similarity, err) || !hbk__sieve_id(v, id, err)) return false;
        if (like >= 0)
            ok = json_object_set_new(row, "status", json_string(hbk_fate_name(HBK_FATE_DUPLICATE))) == 0 &&
                 json_object_set_new(row, "duplicate_of", json_string(v->ids.data + v->at.data[like])) == 0 &&
                 json_object_set_new(row, "similarity", json_real(similarity)) == 0;
    }
    return ok || hbk_fail(err, HBK_ERROR_MEMORY, "out of memory for a row");
}

/* Takes an earlier sieve's marks off a row; *usable: its status is then ok, or it has none. */
static void hbk__sieve_reset(json_t *row, bool *usable)
{
    const char *status = json_string_value(json_object_get(row, "status"));
    bool held = status && (!strcmp(status, hbk_fate_name(HBK_FATE_DUPLICATE)) ||
                           !strcmp(status, hbk_fate_name(HBK_FATE_CONTAMINATED)));
    *usable = !status || held || !strcmp(status, hbk_fate_name(HBK_FATE_OK));
    if (!held) return;
    json_object_set_new(row, "status", json_string(hbk_fate_name(HBK_FATE_OK)));
    json_object_del(row, "duplicate_of");
    json_object_del(row, "similarity");
    json_object_del(row, "overlaps");
}

static bool hbk__sieve_file(hbk__sieve *v, const char *candidates, const char *out, hbk_error *err)
{
    hbk_file f;
    json_t *row;
    memset(&f, 0, sizeof f);
    hbk_jsonl_reader *in = hbk_jsonl_open(candidates, v->alloc, err);
    hbk_jsonl_writer *w = NULL;
    bool ok = in && hbk_file_begin(&f, out, err) && (w = hbk_jsonl_create(f.tmp, 0, v->alloc, err)) != NULL;
    for (int got; ok && (got = hbk_jsonl_next(in, &row, err)) != 0;) {
        bool usable = false;
        if (got > 0) hbk__sieve_reset(row, &usable);
        ok = got > 0 && (!usable || hbk__sieve_row(v, row, candidates, hbk_jsonl_line(in), err)) &&
             hbk_jsonl_write(w, row, err);
    }
    hbk_jsonl_close(in);
    if (w && !hbk_jsonl_finish(w, ok ? err : NULL)) ok = false;
    ok = ok && hbk_file_commit(&f, err);
    hbk_file_abandon(&f);
    return ok;
}

HBK_DEF bool hbk_sift(const hbk_sift_options *o, const char *candidates, const char *out,
                      hbk_allocator *alloc, hbk_error *err)
{
    hbk__sieve v;
    if (!hbk__sieve_new(&v, o, alloc, err)) return false;
    bool ok = hbk__sieve_file(&v, candidates, out, err);
    hbk__sieve_free(&v);
    return ok;
}

/* ---- the stage ---------------------------------------------------------------------- */

static int hbk__take_segment(const hbk__stage *s, hbk__item *item, const char *path, hbk_int line,
                             hbk_error *err)
{
    hbk_render r;
    memset(&r, 0, sizeof r);
    r.use = HBK_BACKWARD;
    if (!hbk__row_text(item->row, "text", &item->output, path, line, err) ||
        !hbk__row_id(item->row, "row", item->id, path, line, err))
        return -1;
    r.output = item->output;
    item->prompt.alloc = s->alloc;
    return hbk_template_tokens(s->t, s->tok, &r, &item->prompt, NULL, err) ? 1 : -1;
}

/* Mean log-probability of a reply's tokens; NAN if it has none. */
static double hbk__reply_logprob(const hbk_request *r)
{
    double sum = 0;
    for (hbk_int i = 0; i < r->logprobs->n; i++) sum += r->logprobs->data[i].logprob;
    return r->logprobs->n ? sum / (double)r->logprobs->n : (double)NAN;
}

/* The reply as it is judged and kept, into `text`. */
static bool hbk__instruction(const hbk_augment_options *o, const hbk_request *r, hbk_text *text,
                             hbk_error *err)
{
    const char *x = hbk_reply_text(r->reply);
    size_t n = strlen(x);
    if (!o->raw) x = hbk_augment_clean(x, &n);
    hbk_text_clear(text);
    hbk_text_append(text, x, n);
    return hbk_text_ok(text, err);
}

/* Chooses among an item's replies r: a usable one before one that is not, of equals the likeliest, of those
   the first. *logprobs, NULL for one reply, is the caller's. */
static bool hbk__pick(const hbk__stage *s, const hbk__item *item, const hbk_request *r, hbk_int *picked,
                      hbk_fate *fate, json_t **logprobs, hbk_text *text, hbk_error *err)
{
    const hbk_augment_options *o = (const hbk_augment_options *)s->options;
    double best = 0;
    *logprobs = o->candidates > 1 ? json_array() : NULL;
    for (hbk_int k = 0; k < o->candidates; k++) {
        hbk_fate f;
        if (!hbk__instruction(o, &r[k], text, err) ||
            !hbk_augment_judge(&f, hbk_text_string(text), item->output, r[k].finish, o, s->t, s->tok,
                               s->alloc, err))
            return false;
        double p = *logprobs ? hbk__reply_logprob(&r[k]) : 0;
        if (*logprobs) json_array_append_new(*logprobs, isnan(p) ? json_null() : json_real(p));
        if (isnan(p)) p = (double)-INFINITY;
        bool usable = f == HBK_FATE_OK, was = *fate == HBK_FATE_OK;
        if (k > 0 && (usable == was ? p <= best : was)) continue;
        *picked = k;
        *fate = f;
        best = p;
    }
    return true;
}

/* The row of an item, from its replies r. `text` is room to work in. */
static bool hbk__candidate_row(const hbk__stage *s, const hbk__item *item, const hbk_request *r,
                               hbk_jsonl_writer *out, hbk_text *text, hbk_error *err)
{
    hbk_int k = 0;
    hbk_fate fate = HBK_FATE_OK;
    json_t *logprobs = NULL;
    if (!hbk__pick(s, item, r, &k, &fate, &logprobs, text, err) ||
        !hbk__instruction((const hbk_augment_options *)s->options, &r[k], text, err)) {
        json_decref(logprobs);
        return false;
    }
    const char *x = hbk_text_string(text), *said = hbk_reply_text(r[k].reply);
    json_t *row = json_pack("{s:s s:s s:s s:s s:s s:o}", "id", item->id, "instruction", x, "output",
                            item->output, "status", hbk_fate_name(fate), "finish",
                            hbk_finish_name(r[k].finish), "prov", hbk__prov(s));
    bool ok = row != NULL;
    if (ok && strcmp(x, said)) ok = json_object_set_new(row, "raw", json_string(said)) == 0;
    if (ok && logprobs)
        ok = json_object_set_new(row, "picked", json_integer(k)) == 0 &&
             json_object_set(row, "logprobs", logprobs) == 0;
    json_decref(logprobs);
    if (ok) return hbk__write_row(out, row, err);
    json_decref(row);
    return hbk_fail(err, HBK_ERROR_MEMORY, "out of memory for a row");
}

static bool hbk__augment_wave(const hbk__stage *s, hbk__item *items, hbk_int n, hbk_jsonl_writer *out,
                              hbk_error *err)
{
    hbk_int k = ((const hbk_augment_options *)s->options)->candidates;
    hbk_text text;
    memset(&text, 0, sizeof text);
    text.alloc = s->alloc;
    hbk_request *r = hbk__requests_new(s, items, n, k, k > 1, err);
    bool ok = r && hbk__requests_run(s, items, n, r, n * k, hbk__length_limit(s), NULL, err);
    for (hbk_int i = 0; ok && i < n; i++)
        ok = hbk__candidate_row(s, &items[i], r + i * k, out, &text, err);
    if (r) hbk__requests_free(s, r, n * k);
    hbk_text_free(&text);
    return ok;
}

static bool hbk__augment_describe(const hbk__stage *s, json_t *prov)
{
    const hbk_augment_options *o = (const hbk_augment_options *)s->options;
    return json_object_set_new(prov, "candidates", json_integer(o->candidates)) == 0 &&
           json_object_set_new(prov, "temperature", json_real(o->decode.sampling.temperature)) == 0 &&
           json_object_set_new(prov, "top_p", json_real(o->decode.sampling.top_p)) == 0;
}

static bool hbk__augment_check(const hbk_augment_options *o, hbk_error *err)
{
    if (o->candidates < 1 || (o->candidates > 1 && o->decode.sampling.temperature <= 0))
        return hbk_fail(err, HBK_ERROR_OPTION,
                        "%lld candidates: at least 1 is needed, and more than 1 need a temperature above 0, "
                        "or all would be the same",
                        (long long)o->candidates);
    if (o->min_chars < 0 || o->min_chars > o->max_chars)
        return hbk_fail(err, HBK_ERROR_OPTION,
                        "instructions of %lld to %lld characters: expected 0 <= least <= most",
                        (long long)o->min_chars, (long long)o->max_chars);
    if (o->echo_words < 1 || !(o->max_echo >= 0))
        return hbk_fail(err, HBK_ERROR_OPTION,
                        "echo: %lld words and a share of %g: expected at least 1 word and a share of 0 to 1",
                        (long long)o->echo_words, o->max_echo);
    return true;
}

HBK_DEF bool hbk_augment(const hbk_model *m, const hbk_adapter *adapter, const hbk_tokenizer *tok,
                         const hbk_template *t, const hbk_augment_options *o, const char *prov_adapter,
                         const char *segments, const char *out, const hbk_progress *progress,
                         hbk_allocator *alloc, hbk_error *err)
{
    hbk__stage s = {"augment",         m,
                    adapter,           tok,
                    t,                 &o->decode,
                    prov_adapter,      alloc,
                    o,                 hbk__take_segment,
                    hbk__augment_wave, hbk__augment_describe};
    hbk__sieve v;
    if (!hbk__augment_check(o, err) || !hbk_template_check(t, tok, err) ||
        !hbk__sieve_new(&v, &o->sift, alloc, err))
        return false;
    bool ok = hbk__run_waves(&s, segments, out, progress, err) &&
              ((!v.dedup && !v.holdout) || hbk__sieve_file(&v, out, out, err));
    hbk__sieve_free(&v);
    return ok;
}

/* ---- rewriting ------------------------------------------------------------------------ */

HBK_DEF hbk_decode_options hbk_rewrite_defaults(void)
{
    hbk_decode_options o = hbk_decode_defaults();
    o.sampling.max_new = 1024;
    return o;
}

/* A row as an item for a prompt of `use`, which has instruction and output; rows that are not ok are passed
   over. */
static int hbk__take_pair(const hbk__stage *s, hbk__item *item, hbk_use use, const char *path, hbk_int line,
                          hbk_error *err)
{
    const char *status = "ok";
    if (json_object_get(item->row, "status") &&
        !hbk_json_string(item->row, "status", &status, path, line, err))
        return -1;
    if (strcmp(status, "ok")) return 0;
    hbk_render r;
    memset(&r, 0, sizeof r);
    r.use = use;
    if (!hbk__row_text(item->row, "instruction", &item->instruction, path, line, err) ||
        !hbk__row_text(item->row, "output", &item->output, path, line, err) ||
        !hbk__row_id(item->row, "row", item->id, path, line, err))
        return -1;
    r.instruction = item->instruction;
    r.output = item->output;
    item->prompt.alloc = s->alloc;
    return hbk_template_tokens(s->t, s->tok, &r, &item->prompt, NULL, err) ? 1 : -1;
}

static int hbk__take_draft(const hbk__stage *s, hbk__item *item, const char *path, hbk_int line,
                           hbk_error *err)
{
    return hbk__take_pair(s, item, HBK_REWRITING, path, line, err);
}

/* The row of an item whose rewriting is r. */
static bool hbk__rewritten_row(const hbk__stage *s, const hbk__item *item, const hbk_request *r,
                               hbk_jsonl_writer *out, hbk_error *err)
{
    hbk_augment_options any; /* of the filters only those that tell an answer from none */
    hbk_fate fate;
    memset(&any, 0, sizeof any);
    any.max_chars = INT64_MAX;
    any.echo_words = 1;
    any.max_echo = 1;
    const char *y = hbk_reply_text(r->reply);
    if (!hbk_augment_judge(&fate, y, item->output, r->finish, &any, s->t, s->tok, s->alloc, err))
        return false;
    json_t *row = json_copy(item->row);
    bool ok = row && json_object_set_new(row, "id", json_string(item->id)) == 0;
    if (ok && fate == HBK_FATE_OK) /* item->output goes with the row that holds it: first the copy */
        ok = json_object_set_new(row, "original", json_string(item->output)) == 0 &&
             json_object_set_new(row, "output", json_string(y)) == 0;
    ok = ok && json_object_set_new(row, "rewrite", json_string(hbk_fate_name(fate))) == 0 &&
         json_object_set_new(row, "finish", json_string(hbk_finish_name(r->finish))) == 0 &&
         json_object_set_new(row, "prov", hbk__prov(s)) == 0;
    if (ok) return hbk__write_row(out, row, err);
    json_decref(row);
    return hbk_fail(err, HBK_ERROR_MEMORY, "out of memory for a row");
}

static bool hbk__rewrite_wave(const hbk__stage *s, hbk__item *items, hbk_int n, hbk_jsonl_writer *out,
                              hbk_error *err)
{
    hbk_request *r = hbk__decode(s, items, n, 1, hbk__length_limit(s), err);
    bool ok = r != NULL;
    for (hbk_int i = 0; ok && i < n; i++) ok = hbk__rewritten_row(s, &items[i], &r[i], out, err);
    hbk__requests_free(s, r, n);
    return ok;
}

static bool hbk__rewrite_describe(const hbk__stage *s, json_t *prov)
{
    const char *wording = hbk__template_text(s->t, HBK_REWRITING);
    const hbk_sampling *p = &s->o->sampling;
    json_t *hash = hbk__hex(hbk_hash(0, wording, strlen(wording)));
    return json_object_set_new(prov, "rewriting_hash", hash) == 0 &&
           json_object_set_new(prov, "temperature", json_real(p->temperature)) == 0 &&
           json_object_set_new(prov, "top_p", json_real(p->top_p)) == 0;
}

HBK_DEF bool hbk_rewrite(const hbk_model *m, const hbk_adapter *adapter, const hbk_tokenizer *tok,
                         const hbk_template *t, const hbk_decode_options *o, const char *prov_adapter,
                         const char *pairs, const char *out, const hbk_progress *progress,
                         hbk_allocator *alloc, hbk_error *err)
{
    hbk__stage s = {"rewrite", m, adapter, tok, t, o, prov_adapter, alloc, NULL, hbk__take_draft,
                    hbk__rewrite_wave, hbk__rewrite_describe};
    return hbk_template_check(t, tok, err) && hbk__run_waves(&s, pairs, out, progress, err);
}

/* ==== 20  SELF-CURATION ======================================================

   A model rates each candidate from 1 to 5 for how good an answer the text is to its instruction, by a
   rubric that asks for a short reasoning first and "Score: <rating>" on the last line; the best are kept.
   Source: the paper, section 2.3 and its Table 1.

   Two read-outs. `text`: the last score that the reply spells, or nothing: an unparsable reply is counted and
   dropped, never given a default. `expected`: the same reasoning, then the reply is led to "Score:" and the
   rating is the mean of 1..5 under the probabilities of the five whole continuations " 1" .. " 5",

       E = sum_k k p_k / sum_k p_k          p_k = product of the probabilities of its tokens

   which is always defined, and can tell 4.6 from 4.4. Whole continuations, because in some vocabularies all
   five begin with the same token.

   Two signals may stand beside the rating or in its place. IFD, instruction-following difficulty, is the
   rater's loss on the output after its instruction, as a share of the loss on the output alone: from 1 on the
   instruction does not help, and below it the higher shares are the pairs that teach most (Li et al. 2023,
   From Quantity to Quality, arXiv 2308.12032, section 2.2). The instruction stands there without a tag,
   whatever tags the rater was trained with. Round trip is how likely the backward model finds the instruction
   that it wrote, per token. Several signals make one order by the sum of the ranks. */

HBK_DEF hbk_curate_options hbk_curate_defaults(void)
{
    hbk_curate_options o;
    memset(&o, 0, sizeof o);
    o.decode = hbk_decode_defaults();
    o.decode.sampling.temperature = 0;
    o.decode.sampling.max_new = 512;
    o.readout = HBK_READOUT_TEXT;
    o.votes = 1;
    o.signals = HBK_SIGNAL_RATING;
    o.keep = 4.5;
    return o;
}

/* ---- reading a rating ------------------------------------------------------------------ */

static bool hbk__digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool hbk__letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* Past what may stand around a score without meaning anything. */
static const char *hbk__skip_marks(const char *s)
{
    return s + strspn(s, " \t*_`'\"<[(#");
}

/* What follows the number at its end `s`: true if it is still a rating, and *end is then past "/5". "4-5" and
   "4 to 5" are ranges, "4/10" and "4 of 10" on another scale, "4th", "4,5" and "80%" something else. */
static bool hbk__rating_ends(const char *s, const char **end)
{
    static const char *const joins[] = {"/",  "out of", "of", "-", "\xe2\x80\x93", /* an en dash */
                                        "\xe2\x80\x94", "~",  "to", "or"};         /* and an em dash */
    enum { N_SCALES = 3, N_JOINS = 9 };
    *end = s;
    if (hbk__letter(*s) || (*s == ',' && hbk__digit(s[1]))) return false;
    s = hbk__skip_marks(s);
    if (*s == '%') return false;
    for (int i = 0; i < N_JOINS; i++) {
        size_t n = strlen(joins[i]);
        const char *second = strncmp(s, joins[i], n) == 0 ? hbk__skip_marks(s + n) : "";
        if (!hbk__digit(*second)) continue;
        *end = second + 1;
        return i < N_SCALES && *second == '5' && !hbk__digit(second[1]) &&
               !(second[1] == '.' && hbk__digit(second[2]));
    }
    return true;
}

/* The rating that begins at `s`, behind a label, and its end in *end; or NAN. */
static double hbk__rating_at(const char *s, const char **end)
{
    double value = 0, unit = 1;
    s = hbk__skip_marks(s);
    if (!hbk__digit(*s)) return (double)NAN;
    for (; hbk__digit(*s); s++) value = value * 10 + (*s - '0');
    if (*s == '.' && hbk__digit(s[1]))
        for (s++; hbk__digit(*s); s++) value += (*s - '0') * (unit /= 10);
    return hbk__rating_ends(s, end) && value >= 1 && value <= 5 ? value : (double)NAN;
}

/* The reply's last label, the word "score" in any case with a colon, and what it says; *label is past the
   colon, *end past the rating. The last label counts, even if nothing usable follows it. */
static double hbk__rating_find(const char *reply, const char **label, const char **end)
{
    *label = *end = NULL;
    for (const char *s = reply; *s; s++) {
        static const char word[] = "score";
        int i = 0;
        while (i < 5 && (s[i] | 32) == word[i]) i++;
        if (i < 5) continue;
        const char *before = s, *after = hbk__skip_marks(s + 5);
        while (before > reply && before[-1] == '_') before--; /* "__Score__" is bold, "my_score" is not */
        if (before > reply && (hbk__letter(before[-1]) || hbk__digit(before[-1]))) continue;
        if (*after == ':' || *after == '=') *label = after + 1; /* else the word, not the label */
    }
    return *label ? hbk__rating_at(*label, end) : (double)NAN;
}

HBK_DEF double hbk_rating_parse(const char *reply)
{
    const char *label, *end;
    return hbk__rating_find(reply, &label, &end);
}

/* ---- rating a wave ---------------------------------------------------------------------- */

enum { HBK__GRADES = 5 };

static int hbk__take_candidate(const hbk__stage *s, hbk__item *item, const char *path, hbk_int line,
                               hbk_error *err)
{
    return hbk__take_pair(s, item, HBK_RATING, path, line, err);
}

/* The digits as continuations, how many tokens one takes at most, and how many with the lead to it. */
typedef struct hbk__digits {
    hbk_tokens ids[HBK__GRADES];
    hbk_int longest, reserve;
} hbk__digits;

static bool hbk__digits_encode(const hbk__stage *s, hbk__digits *d, hbk_error *err)
{
    hbk_tokens lead;
    memset(&lead, 0, sizeof lead);
    memset(d, 0, sizeof *d);
    lead.alloc = s->alloc;
    const char *score = hbk_template_score(s->t);
    bool ok = hbk_tokenizer_encode(s->tok, score, strlen(score), HBK_ENCODE_CONTINUE, &lead, err);
    for (int k = 0; ok && k < HBK__GRADES; k++) {
        char text[3] = {' ', (char)('1' + k), 0};
        d->ids[k].alloc = s->alloc;
        ok = hbk_tokenizer_encode(s->tok, text, 2, HBK_ENCODE_CONTINUE, &d->ids[k], err);
        for (hbk_int i = 0; ok && i < d->ids[k].n; i++)
            if (d->ids[k].data[i] == hbk_tokenizer_unk(s->tok))
                ok = hbk_fail(
                    err, HBK_ERROR_UNSUPPORTED,
                    "the vocabulary cannot spell the digit %d, which the expected read-out needs; use "
                    "--readout text",
                    k + 1);
        d->longest = HBK__MAX(d->longest, d->ids[k].n);
    }
    d->reserve = lead.n + 2 + d->longest;
    hbk_tokens_free(&lead);
    return ok;
}

static void hbk__digits_free(hbk__digits *d)
{
    for (int k = 0; k < HBK__GRADES; k++) hbk_tokens_free(&d->ids[k]);
}

/* Blanks between a rating prompt and its reply. */
static hbk_int hbk__reply_blanks(const hbk__stage *s)
{
    hbk_span_text spans[HBK_MAX_SPANS];
    hbk_render r;
    memset(&r, 0, sizeof r);
    r.use = HBK_RATING;
    r.instruction = r.output = r.reply = ".";
    hbk_int n = hbk_template_spans(s->t, s->tok, &r, spans);
    for (hbk_int i = 0; i < n; i++)
        if (spans[i].target && spans[i].text) return spans[i].blanks;
    return 0;
}

/* Appends to `prompt` the reasoning, up to its last score label, or led to one. */
static bool hbk__lead_to_score(const hbk__stage *s, const char *reasoning, hbk_tokens *prompt, hbk_error *err)
{
    const char *score = hbk_template_score(s->t), *label, *end;
    hbk__rating_find(reasoning, &label, &end);
    hbk_text text;
    memset(&text, 0, sizeof text);
    text.alloc = s->alloc;
    if (label || *reasoning || !strchr(" \n", *score))
        for (hbk_int i = hbk__reply_blanks(s); i > 0; i--) hbk_text_append(&text, " ", 1);
    if (label) {
        hbk_text_append(&text, reasoning, (size_t)(label - reasoning));
    } else {
        hbk_text_add(&text, reasoning);
        if (*reasoning && !strchr(" \n", *score)) hbk_text_add(&text, "\n"); /* a line of its own */
        hbk_text_add(&text, score);
    }
    bool ok = hbk_text_ok(&text, err) && hbk_tokenizer_encode(s->tok, hbk_text_string(&text), text.len,
                                                              HBK_ENCODE_CONTINUE, prompt, err);
    hbk_text_free(&text);
    return ok;
}

static double hbk__expected_of(const hbk_scoring *p)
{
    double max = (double)-INFINITY, sum = 0, mean = 0;
    for (int k = 0; k < HBK__GRADES; k++) {
        if (isnan(p[k].log_likelihood)) return (double)NAN;
        max = fmax(max, p[k].log_likelihood);
    }
    for (int k = 0; k < HBK__GRADES; k++) {
        double q = exp(p[k].log_likelihood - max);
        sum += q;
        mean += q * (k + 1);
    }
    return mean / sum;
}

/* A rating prompt with its reasoning, led to the label. Reasoning that grows beyond the limit where its text
   is encoded anew is left out: the room for the label and a digit is always there. */
static bool hbk__score_prompt(const hbk__stage *s, const hbk_tokens *prompt, const char *reasoning,
                              const hbk__digits *d, hbk_tokens *out, hbk_error *err)
{
    hbk_tokens_append(out, prompt->data, prompt->n);
    if (!hbk__lead_to_score(s, reasoning, out, err)) return false;
    if (out->n + d->longest <= hbk__length_limit(s)) return true;
    out->n = prompt->n;
    return hbk__lead_to_score(s, "", out, err);
}

/* The five digits behind a prompt; an empty one gives NAN. */
static void hbk__grades(hbk_scoring p[HBK__GRADES], const hbk_tokens *prompt, const hbk__digits *d)
{
    memset(p, 0, HBK__GRADES * sizeof *p);
    for (int k = 0; k < HBK__GRADES; k++) {
        p[k].prompt = prompt->data;
        p[k].n_prompt = prompt->n;
        p[k].continuation = d->ids[k].data;
        p[k].n_continuation = d->ids[k].n;
    }
}

/* What the expected read-out needs; score[i] of vote r[i] is NAN as long as it has none. */
typedef struct hbk__reading {
    const hbk__stage *s;
    const hbk__item *items;
    hbk_int votes, total;
    const hbk_request *r;
    const hbk__digits *d;
    double *score;
} hbk__reading;

/* Tokens by which a reply may grow, where its text is encoded anew, and still find room in its session. */
enum { HBK__ANEW = 16 };

/* Reads vote i while the session holds its reply: of all that leads to the digits only the label, if the
   model did not write it, is new. What has no room here keeps NAN. */
static bool hbk__read_at_end(void *ctx, hbk_session *session, hbk_int i, hbk_error *err)
{
    hbk__reading *e = (hbk__reading *)ctx;
    hbk_scoring p[HBK__GRADES];
    hbk_tokens prompt;
    memset(&prompt, 0, sizeof prompt);
    prompt.alloc = e->s->alloc;
    bool ok = hbk__score_prompt(e->s, &e->items[i / e->votes].prompt, hbk_reply_text(e->r[i].reply), e->d,
                                &prompt, err);
    hbk__grades(p, &prompt, e->d);
    ok = ok && hbk_score(session, p, HBK__GRADES, err);
    if (ok) e->score[i] = hbk__expected_of(p);
    hbk_tokens_free(&prompt);
    return ok;
}

/* Reads the votes that have no score: their prompts and reasoning are led to the label anew. */
static bool hbk__read_rest(const hbk__reading *e, hbk_error *err)
{
    const hbk__stage *s = e->s;
    hbk_int n = 0, longest = 1;
    hbk_tokens *prompts = HBK__NEW(s->alloc, hbk_tokens, e->total, err);
    hbk_scoring *p = prompts ? HBK__NEW(s->alloc, hbk_scoring, e->total * HBK__GRADES, err) : NULL;
    bool ok = p != NULL;
    for (hbk_int i = 0; ok && i < e->total; i++) {
        bool too_long = e->r[i].finish == HBK_FINISH_TOO_LONG; /* not rated, whatever else the wave holds */
        prompts[i].alloc = s->alloc;
        if (!isnan(e->score[i]) || too_long) continue;
        ok = hbk__score_prompt(s, &e->items[i / e->votes].prompt, hbk_reply_text(e->r[i].reply), e->d,
                               &prompts[i], err);
        longest = HBK__MAX(longest, prompts[i].n);
        hbk__grades(p + HBK__GRADES * n++, &prompts[i], e->d);
    }
    hbk_session *session =
        ok && n
            ? hbk_session_new(s->m, s->adapter, 1, longest + e->d->longest, s->o->cache, s->alloc, err)
            : NULL;
    ok = ok && (!n || (session && hbk_score(session, p, n * HBK__GRADES, err)));
    for (hbk_int i = 0, k = 0; ok && i < e->total; i++) /* in the order of above */
        if (isnan(e->score[i]) && e->r[i].finish != HBK_FINISH_TOO_LONG)
            e->score[i] = hbk__expected_of(p + HBK__GRADES * k++);
    hbk_session_free(session);
    for (hbk_int i = 0; prompts && i < e->total; i++) hbk_tokens_free(&prompts[i]);
    hbk_free(s->alloc, prompts);
    hbk_free(s->alloc, p);
    return ok;
}

/* A spelled rating; of a reply that was cut off the last line may have lost its end, "4" of "4.5" or "4/10",
   and holds none. */
static double hbk__text_rating(const hbk_request *r)
{
    const char *label, *end;
    double rating = hbk__rating_find(hbk_reply_text(r->reply), &label, &end);
    return hbk__is_cut(r->finish) && !(end && strchr(end, '\n')) ? (double)NAN : rating;
}

/* What hbk_rate adds to its stage. */
typedef struct hbk__rater {
    const hbk_curate_options *o;
    uint64_t hash; /* of model and adapter */
} hbk__rater;

/* What a wave of n pairs comes to; [i * votes + v] is vote v of pair i. */
typedef struct hbk__ratings {
    const hbk_curate_options *o;
    hbk_request *r; /* (n, votes), or NULL where nothing is generated */
    double *score;  /* (n, votes) */
    hbk_int *tries; /* (n, votes) replies that came after the first */
    double *ifd, *round_trip; /* (n) or NULL */
    hbk_int n;
} hbk__ratings;

/* ---- a second chance for replies without a score ---- */

/* Decodes n records once more, record k for vote of[k], and replaces the old replies. */
static bool hbk__sample_again(const hbk__stage *s, const hbk__item *items, const hbk_int *of, hbk_int n,
                              hbk__ratings *w, hbk_error *err)
{
    hbk_request *again = hbk__decode(s, items, n, 1, hbk__length_limit(s), err);
    if (!again) return false;
    for (hbk_int k = 0; k < n; k++) {
        hbk_request *old = &w->r[of[k]];
        hbk_reply reply = *old->reply;
        *old->reply = *again[k].reply;
        *again[k].reply = reply;
        old->finish = again[k].finish;
        w->score[of[k]] = hbk__text_rating(old);
        w->tries[of[k]]++;
    }
    hbk__requests_free(s, again, n);
    return true;
}

/* Samples what has no score anew, up to o->retries times: every try and vote with a stream of its own. */
static bool hbk__retry(const hbk__stage *s, const hbk__item *items, hbk__ratings *w, hbk_error *err)
{
    char name[64]; /* of the streams */
    hbk_decode_options o = w->o->decode;
    hbk__stage stage = *s;
    hbk_int votes = w->o->votes, n = 1;
    if (o.sampling.temperature <= 0) o.sampling.temperature = hbk_decode_defaults().sampling.temperature;
    stage.name = name;
    stage.o = &o;
    hbk__item *again = HBK__NEW(s->alloc, hbk__item, w->n, err);
    hbk_int *of = again ? HBK__NEW(s->alloc, hbk_int, w->n, err) : NULL;
    bool ok = of != NULL;
    for (hbk_int try_ = 1; ok && try_ <= w->o->retries && n > 0; try_++)
        for (hbk_int v = n = 0; ok && v < votes; v++) {
            hbk_int k = 0;
            for (hbk_int at = v; at < w->n * votes; at += votes)
                if (isnan(w->score[at]) && w->r[at].finish != HBK_FINISH_TOO_LONG) {
                    again[k] = items[at / votes];
                    of[k++] = at;
                }
            snprintf(name, sizeof name, "%s again %lld.%lld", s->name, (long long)try_, (long long)v);
            if (k) ok = hbk__sample_again(&stage, again, of, k, w, err);
            n += k;
        }
    hbk_free(s->alloc, again);
    hbk_free(s->alloc, of);
    return ok;
}

/* ---- signals beside the rating ---- */

/* Mean log-likelihood of each pair's target under (m, adapter), in forward use its output after its
   instruction, in backward use its instruction after its output, into given (n); and, where alone (n) is not
   NULL, of the same tokens after the prompt's first, the bos. NAN where a pair does not fit. */
static bool hbk__likelihoods(const hbk__stage *s, const hbk_model *m, const hbk_adapter *adapter,
                             const hbk__item *items, hbk_int n, hbk_use use, double *given, double *alone,
                             hbk_error *err)
{
    hbk_int limit = HBK__MIN(hbk__length_limit(s), m->config.context_length), longest = 2;
    hbk_tokens *ids = HBK__NEW(s->alloc, hbk_tokens, n, err);
    hbk_scoring *p = ids ? HBK__NEW(s->alloc, hbk_scoring, 2 * n, err) : NULL;
    bool ok = p != NULL;
    for (hbk_int i = 0; ok && i < n; i++) {
        hbk_render r;
        memset(&r, 0, sizeof r);
        r.use = use;
        if (use == HBK_FORWARD) r.instruction = items[i].instruction;
        else r.output = items[i].output;
        r.reply = use == HBK_FORWARD ? items[i].output : items[i].instruction;
        ids[i].alloc = s->alloc;
        ok = hbk_template_tokens(s->t, s->tok, &r, &ids[i], &p[i].n_prompt, err);
        if (!ok || ids[i].n > limit) continue; /* p[i] has no continuation and comes to NAN */
        p[i].prompt = p[n + i].prompt = ids[i].data;
        p[i].continuation = p[n + i].continuation = ids[i].data + p[i].n_prompt;
        p[i].n_continuation = p[n + i].n_continuation = ids[i].n - p[i].n_prompt;
        p[n + i].n_prompt = 1;
        longest = HBK__MAX(longest, ids[i].n);
    }
    hbk_session *session =
        ok ? hbk_session_new(m, adapter, 1, longest, s->o->cache, s->alloc, err) : NULL;
    ok = session && hbk_score(session, p, alone ? 2 * n : n, err);
    for (hbk_int i = 0; ok && i < n; i++) {
        double tokens = (double)p[i].n_continuation;
        given[i] = p[i].log_likelihood / tokens;
        if (alone) alone[i] = p[n + i].log_likelihood / tokens;
    }
    hbk_session_free(session);
    for (hbk_int i = 0; ids && i < n; i++) hbk_tokens_free(&ids[i]);
    hbk_free(s->alloc, ids);
    hbk_free(s->alloc, p);
    return ok;
}

/* The signals that are wanted: w->ifd and w->round_trip. */
static bool hbk__signals(const hbk__stage *s, const hbk__item *items, hbk__ratings *w, hbk_error *err)
{
    const hbk_curate_options *o = w->o;
    bool ok = true;
    if (o->signals & HBK_SIGNAL_IFD) {
        w->ifd = HBK__NEW(s->alloc, double, w->n, err);
        double *alone = w->ifd ? HBK__NEW(s->alloc, double, w->n, err) : NULL;
        ok = alone &&
             hbk__likelihoods(s, s->m, s->adapter, items, w->n, HBK_FORWARD, w->ifd, alone, err);
        for (hbk_int i = 0; ok && i < w->n; i++) w->ifd[i] /= alone[i];
        hbk_free(s->alloc, alone);
    }
    if (ok && o->signals & HBK_SIGNAL_ROUND_TRIP) {
        w->round_trip = HBK__NEW(s->alloc, double, w->n, err);
        ok = w->round_trip && hbk__likelihoods(s, o->backward, o->backward_adapter, items, w->n,
                                               HBK_BACKWARD, w->round_trip, NULL, err);
    }
    return ok;
}

/* ---- rows ---- */

static const char *hbk__readout_name(const hbk_curate_options *o)
{
    if (!(o->signals & HBK_SIGNAL_RATING)) return "none";
    return o->readout == HBK_READOUT_TEXT ? "text" : "expected";
}

static json_t *hbk__real_or_null(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static int hbk__by_value(const void *x, const void *y)
{
    double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

/* Sums up those of a pair's votes that can be read: sorts them to the front of x (n), returns how many. */
static hbk_int hbk__sum_up(double *x, hbk_int n, double *mean, double *median, double *spread)
{
    hbk_int read = 0;
    for (hbk_int i = 0; i < n; i++)
        if (!isnan(x[i])) x[read++] = x[i];
    double sum = 0, squares = 0;
    for (hbk_int i = 0; i < read; i++) sum += x[i]; /* in their own order: that of the bytes in the file */
    *mean = read ? sum / (double)read : (double)NAN;
    for (hbk_int i = 0; i < read; i++) squares += (x[i] - *mean) * (x[i] - *mean);
    *spread = read > 1 ? sqrt(squares / (double)(read - 1)) : (double)NAN;
    if (read > 1) qsort(x, (size_t)read, sizeof *x, hbk__by_value); /* x is NULL without votes */
    *median = read ? 0.5 * (x[(read - 1) / 2] + x[read / 2]) : (double)NAN;
    return read;
}

/* What a pair's votes come to. */
typedef struct hbk__verdict {
    double mean, median, spread;
    hbk_int read, tries;
    const char *status;
    json_t *each;
} hbk__verdict;

/* The verdict on pair i of a wave; sorts its votes. The caller lets go of `each`. */
static hbk__verdict hbk__verdict_of(const hbk__ratings *w, hbk_int i)
{
    hbk__verdict v;
    hbk_int votes = w->r ? w->o->votes : 0;
    bool too_long = !w->r && ((w->ifd && isnan(w->ifd[i])) || (w->round_trip && isnan(w->round_trip[i])));
    bool truncated = false;
    memset(&v, 0, sizeof v);
    v.each = json_array();
    for (hbk_int k = i * votes; k < (i + 1) * votes; k++) {
        too_long = too_long || w->r[k].finish == HBK_FINISH_TOO_LONG;
        truncated = truncated || hbk__is_cut(w->r[k].finish);
        v.tries += w->tries[k];
        json_array_append_new(v.each, hbk__real_or_null(w->score[k]));
    }
    v.read = hbk__sum_up(votes ? w->score + i * votes : NULL, votes, &v.mean, &v.median, &v.spread);
    v.status = too_long            ? "too_long"
               : v.read || !w->r   ? "ok"
               : truncated         ? "truncated"
                                   : "unparsable";
    return v;
}

/* Row i of a wave. */
static bool hbk__rating_row(const hbk__stage *s, const hbk__item *items, const hbk__ratings *w, hbk_int i,
                            hbk_jsonl_writer *out, hbk_error *err)
{
    const hbk__rater *rater = (const hbk__rater *)s->options;
    const hbk_curate_options *o = w->o;
    hbk__verdict v = hbk__verdict_of(w, i);
    json_t *row = json_pack(
        "{s:s s:o s:s s:s s:o}", "id", items[i].id, "score",
        hbk__real_or_null(o->vote == HBK_VOTE_MEAN ? v.mean : v.median), "status", v.status, "readout",
        hbk__readout_name(o), "votes", v.each);
    int failed = row ? 0 : -1;
    if (w->r && o->votes > 1) {
        failed |= json_object_set_new(row, "mean", hbk__real_or_null(v.mean));
        failed |= json_object_set_new(row, "median", hbk__real_or_null(v.median));
        failed |= json_object_set_new(row, "spread", hbk__real_or_null(v.spread));
    }
    const char *text = w->r ? hbk_reply_text(w->r[i * o->votes].reply) : "";
    failed |= json_object_set_new(row, "retries", json_integer((json_int_t)v.tries));
    failed |= json_object_set_new(row, "text", json_string(text));
    if (w->ifd) failed |= json_object_set_new(row, "ifd", hbk__real_or_null(w->ifd[i]));
    if (w->round_trip) failed |= json_object_set_new(row, "round_trip", hbk__real_or_null(w->round_trip[i]));
    failed |= json_object_set_new(row, "rater", hbk__hex(rater->hash));
    failed |= json_object_set_new(row, "prov", hbk__prov(s));
    if (!failed) return hbk__write_row(out, row, err);
    json_decref(row);
    return hbk_fail(err, HBK_ERROR_MEMORY, "out of memory for a row");
}

/* Generates the wave's ratings, w->r, and reads the expected ones where they end: w->score. */
static bool hbk__rate_replies(const hbk__stage *s, const hbk__item *items, hbk__ratings *w,
                              const hbk__digits *d, hbk_error *err)
{
    const hbk_curate_options *o = w->o;
    bool expected = o->readout == HBK_READOUT_EXPECTED;
    hbk_int room = HBK__MAX(hbk__length_limit(s) - d->reserve, 1);
    w->r = hbk__requests_new(s, items, w->n, o->votes, false, err);
    hbk_int total = w->r ? w->n * o->votes : 0; /* a product that is too large gives no requests */
    w->score = w->r ? HBK__NEW(s->alloc, double, total, err) : NULL;
    w->tries = w->score ? HBK__NEW(s->alloc, hbk_int, total, err) : NULL;
    if (!w->tries) return false;
    for (hbk_int i = 0; i < total; i++) w->score[i] = (double)NAN;
    hbk__reading e = {s, items, o->votes, total, w->r, d, w->score};
    hbk__ending ending = {hbk__read_at_end, &e, d->reserve + HBK__ANEW};
    bool ok = hbk__requests_run(s, items, w->n, w->r, total, room, expected ? &ending : NULL, err);
    if (ok && expected) ok = hbk__read_rest(&e, err);
    for (hbk_int i = 0; ok && !expected && i < total; i++) w->score[i] = hbk__text_rating(&w->r[i]);
    if (ok && !expected && o->retries > 0) ok = hbk__retry(s, items, w, err);
    return ok;
}

static bool hbk__rate_by_reply(const hbk__stage *s, const hbk__item *items, hbk__ratings *w, hbk_error *err)
{
    hbk__digits d;
    memset(&d, 0, sizeof d);
    bool ok = w->o->readout != HBK_READOUT_EXPECTED || hbk__digits_encode(s, &d, err);
    ok = ok && hbk__rate_replies(s, items, w, &d, err);
    hbk__digits_free(&d);
    return ok;
}

static bool hbk__rate_wave(const hbk__stage *s, hbk__item *items, hbk_int n, hbk_jsonl_writer *out,
                           hbk_error *err)
{
    hbk__ratings w;
    memset(&w, 0, sizeof w);
    w.o = ((const hbk__rater *)s->options)->o;
    w.n = n;
    bool rated = w.o->signals & HBK_SIGNAL_RATING;
    bool ok = (!rated || hbk__rate_by_reply(s, items, &w, err)) && hbk__signals(s, items, &w, err);
    for (hbk_int i = 0; ok && i < n; i++) ok = hbk__rating_row(s, items, &w, i, out, err);
    hbk_free(s->alloc, w.score);
    hbk_free(s->alloc, w.tries);
    hbk_free(s->alloc, w.ifd);
    hbk_free(s->alloc, w.round_trip);
    if (w.r) hbk__requests_free(s, w.r, n * w.o->votes);
    return ok;
}

/* ---- what is refused before a rating begins ---- */

static bool hbk__rate_check(const hbk__stage *s, const hbk_curate_options *o, hbk_error *err)
{
    unsigned all = HBK_SIGNAL_RATING | HBK_SIGNAL_IFD | HBK_SIGNAL_ROUND_TRIP;
    if (o->votes < 1 || (o->votes > 1 && o->decode.sampling.temperature <= 0))
        return hbk_fail(
            err, HBK_ERROR_OPTION,
            "%lld votes: at least 1 is needed, and more than 1 need a temperature above 0, or all "
            "would be the same",
            (long long)o->votes);
    if (o->retries < 0)
        return hbk_fail(err, HBK_ERROR_OPTION, "%lld retries: expected 0 or more", (long long)o->retries);
    if (!o->signals || (o->signals & ~all))
        return hbk_fail(err, HBK_ERROR_OPTION, "signals %u: expected a sum of HBK_SIGNAL_...", o->signals);
    if (o->signals & HBK_SIGNAL_ROUND_TRIP && !o->backward)
        return hbk_fail(err, HBK_ERROR_OPTION,
                        "the round trip needs the backward model that wrote the instructions");
    if (!(o->signals & HBK_SIGNAL_RATING) || o->readout != HBK_READOUT_EXPECTED) return true;
    hbk__digits d;
    bool spelled = hbk__digits_encode(s, &d, err);
    hbk__digits_free(&d);
    return spelled;
}

/* Ratings are told apart by their ids: each may occur once. */
static bool hbk__ids_unique(const char *path, hbk_allocator *alloc, hbk_error *err)
{
    hbk_jsonl_reader *in = hbk_jsonl_open(path, alloc, err);
    hbk__hash_set seen;
    json_t *row;
    int got = in ? 1 : -1;
    memset(&seen, 0, sizeof seen);
    seen.alloc = alloc;
    while (got > 0 && (got = hbk_jsonl_next(in, &row, err)) > 0) {
        char id[256];
        bool had = false, ok = hbk__row_id(row, "row", id, path, hbk_jsonl_line(in), err) &&
                               hbk__hash_add(&seen, hbk_hash(0, id, strlen(id)), &had, err);
        if (ok && had)
            ok = hbk_fail_at(err, HBK_ERROR_DATA, path, hbk_jsonl_line(in),
                             "the id \"%s\" stands in an earlier row too: give every row its own", id);
        if (!ok) got = -1;
    }
    hbk_jsonl_close(in);
    hbk_free(alloc, seen.slots);
    return got == 0;
}

/* hbk_json_same in both directions: what was rounded then, and is not now, is no key of `now`. */
static bool hbk__prov_same(json_t *then, const json_t *now, const char *path, const char *remedy,
                           hbk_error *err)
{
    const char *key;
    json_t *value;
    if (!hbk_json_same(then, now, path, remedy, err)) return false;
    json_object_foreach(then, key, value)
    {
        if (!json_object_get(now, key)) return hbk__fail_begun(path, key, value, NULL, remedy, err);
    }
    return true;
}

/* Were the ratings that `path` holds made as these are to be? The first row speaks for all, as each names who
   made it; what differs is named. */
static bool hbk__ratings_same(const hbk__stage *s, const char *path, hbk_error *err)
{
    static const char remedy[] = "another file for the ratings";
    const hbk__rater *rater = (const hbk__rater *)s->options;
    hbk_jsonl_reader *in = hbk_file_exists(path) ? hbk_jsonl_open(path, s->alloc, err) : NULL;
    json_t *row, *now = NULL, *prov = NULL;
    bool ok = in || !hbk_file_exists(path), rated = rater->o->signals & HBK_SIGNAL_RATING;
    int got = in ? hbk_jsonl_next(in, &row, NULL) : 0; /* a torn row is made again */
    if (got > 0) {
        prov = hbk__prov(s);
        now = json_pack("{s:s s:o}", "readout", hbk__readout_name(rater->o), "rater", hbk__hex(rater->hash));
        json_int_t votes = rated ? (json_int_t)rater->o->votes : 0;
        json_int_t then = (json_int_t)json_array_size(json_object_get(row, "votes"));
        ok = prov && now ? hbk__prov_same(json_object_get(row, "prov"), prov, path, remedy, err) &&
                               hbk_json_same(row, now, path, remedy, err)
                         : hbk_fail(err, HBK_ERROR_MEMORY, "out of memory for a row");
        if (ok && votes != then)
            ok = hbk_fail_at(err, HBK_ERROR_OPTION, path, 0,
                             "was begun with %lld votes, not %lld: use the same, or %s", (long long)then,
                             (long long)votes, remedy);
    }
    json_decref(now);
    json_decref(prov);
    hbk_jsonl_close(in);
    return ok;
}

HBK_DEF bool hbk_rate(const hbk_model *m, const hbk_adapter *adapter, const hbk_tokenizer *tok,
                      const hbk_template *t, const hbk_curate_options *o, const char *prov_adapter,
                      const char *candidates, const char *ratings, const hbk_progress *progress,
                      hbk_allocator *alloc, hbk_error *err)
{
    hbk__rater rater = {o, adapter ? hbk_adapter_hash(hbk_model_hash(m), adapter) : hbk_model_hash(m)};
    hbk__stage s = {"rate",       m,     adapter, tok,   t, &o->decode,
                    prov_adapter, alloc, &rater,  hbk__take_candidate, hbk__rate_wave, NULL};
    return hbk_template_check(t, tok, err) && hbk__rate_check(&s, o, err) &&
           hbk__ids_unique(candidates, alloc, err) && hbk__ratings_same(&s, ratings, err) &&
           hbk__run_waves(&s, candidates, ratings, progress, err);
}

/* ---- selection ------------------------------------------------------------------------------ */

enum { HBK__N_SIGNALS = 3 };
static const char *const hbk__signal_keys[HBK__N_SIGNALS] = {"score", "ifd", "round_trip"};

/* A rating as read back: its place in the file, its signals, NAN where there is none, and the value that it
   is selected by. */
typedef struct hbk__rated {
    double signal[HBK__N_SIGNALS], value, ranks;
    hbk_int at;
} hbk__rated;

static int hbk__best_first(const void *x, const void *y)
{
    const hbk__rated *a = (const hbk__rated *)x, *b = (const hbk__rated *)y;
    if (a->value != b->value) return a->value > b->value ? -1 : 1;
    return a->at < b->at ? -1 : 1; /* ties: the earlier record */
}

/* Reads the signals of a rating row that are asked for. One that was never measured is an error. */
static bool hbk__read_signals(const json_t *row, unsigned signals, hbk__rated *x, hbk_curate_counts *c,
                              const char *path, hbk_int line, hbk_error *err)
{
    bool all = true;
    x->ranks = 0;
    for (int i = 0; i < HBK__N_SIGNALS; i++) {
        const json_t *value = json_object_get(row, hbk__signal_keys[i]);
        x->signal[i] = json_is_number(value) ? json_number_value(value) : (double)NAN;
        if (!(signals >> i & 1)) continue;
        if (!value)
            return hbk_fail_at(err, HBK_ERROR_DATA, path, line,
                               "\"%s\" is missing: it was not measured when these pairs were rated",
                               hbk__signal_keys[i]);
        all = all && !isnan(x->signal[i]);
    }
    bool unhelpful = all && signals & HBK_SIGNAL_IFD && x->signal[1] >= 1;
    c->unhelpful += unhelpful;
    x->value = all && !unhelpful ? 0 : (double)NAN;
    return true;
}

/* Counts one rating row and reads it into *x. */
static bool hbk__count_rating(const json_t *row, unsigned signals, hbk__rated *x, hbk_curate_counts *c,
                              const char *path, hbk_int line, hbk_error *err)
{
    const char *status = "";
    if (!hbk_json_string(row, "status", &status, path, line, err) ||
        !hbk__read_signals(row, signals, x, c, path, line, err))
        return false;
    double score = x->signal[0];
    c->n++;
    if (!strcmp(status, "unparsable")) c->unparsable++;
    if (!strcmp(status, "truncated")) c->truncated++;
    if (!strcmp(status, "too_long")) c->too_long++;
    if (json_integer_value(json_object_get(row, "retries")) > 0) c->retried++;
    if (isnan(score)) return true;
    if (score < 1 || score > 5)
        return hbk_fail_at(err, HBK_ERROR_RANGE, path, line, "\"score\" is %g, expected 1 to 5", score);
    c->rated++;
    c->histogram[(int)floor(score + 0.5) - 1]++;
    return true;
}

/* Reads all ratings; *rated (n) in file order is the caller's to free. */
static bool hbk__read_ratings(const char *path, unsigned signals, hbk_curate_counts *c, hbk__rated **rated,
                              hbk_int *n, hbk_allocator *alloc, hbk_error *err)
{
    hbk_jsonl_reader *in = hbk_jsonl_open(path, alloc, err);
    hbk_int cap = 0;
    json_t *row;
    int got = in ? 0 : -1;
    *rated = NULL;
    *n = 0;
    while (in && (got = hbk_jsonl_next(in, &row, err)) > 0) {
        void *grown = *rated;
        if (!hbk__reserve(alloc, &grown, &cap, *n + 1, sizeof **rated, err)) {
            got = -1;
            break;
        }
        *rated = (hbk__rated *)grown;
        (*rated)[*n].at = *n;
        if (!hbk__count_rating(row, signals, &(*rated)[(*n)++], c, path, hbk_jsonl_line(in), err)) {
            got = -1;
            break;
        }
    }
    hbk_jsonl_close(in);
    return got == 0;
}

/* Sorts the m pairs that are ranked, the best first: by their only signal, or by the sum of their ranks in
   each. Equals share the mean of their ranks, so that a signal of few values does not order by chance. */
static void hbk__rank(hbk__rated *x, hbk_int m, unsigned signals)
{
    int n_signals = 0;
    for (int k = 0; k < HBK__N_SIGNALS; k++) {
        if (!(signals >> k & 1)) continue;
        n_signals++;
        for (hbk_int i = 0; i < m; i++) x[i].value = x[i].signal[k];
        qsort(x, (size_t)m, sizeof *x, hbk__best_first);
        for (hbk_int i = 0, end; i < m; i = end) {
            for (end = i; end < m && x[end].value == x[i].value;) end++;
            for (hbk_int at = i; at < end; at++) x[at].ranks += 0.5 * (double)(i + end - 1);
        }
    }
    if (n_signals < 2) return;
    for (hbk_int i = 0; i < m; i++) x[i].value = -x[i].ranks;
    qsort(x, (size_t)m, sizeof *x, hbk__best_first);
}

/* Marks what is kept: values of at least o->keep, or the best. */
static bool hbk__mark_kept(const hbk_curate_options *o, const hbk__rated *rated, hbk_int n, bool *kept,
                           hbk_curate_counts *c, hbk_allocator *alloc, hbk_error *err)
{
    hbk__rated *sorted = HBK__NEW(alloc, hbk__rated, n, err);
    if (!sorted) return false;
    hbk_int m = 0, most;
    bool best = o->keep_top > 0 || o->keep_share > 0, several = (o->signals & (o->signals - 1)) != 0;
    for (hbk_int i = 0; i < n; i++)
        if (!isnan(rated[i].value)) sorted[m++] = rated[i];
    hbk__rank(sorted, m, o->signals);
    most = o->keep_top > 0 ? o->keep_top : best ? (hbk_int)ceil(o->keep_share * (double)m - 1e-9) : m;
    c->ranked = m;
    c->threshold = best ? (double)NAN : o->keep;
    for (hbk_int i = 0; i < HBK__MIN(m, most); i++) {
        if (!best && sorted[i].value < o->keep) break;
        kept[sorted[i].at] = true;
        c->kept++;
        if (best && !several) c->threshold = sorted[i].value;
    }
    c->collapsed = (double)c->kept < 0.02 * (double)c->n || (double)c->kept > 0.9 * (double)c->n;
    hbk_free(alloc, sorted);
    return true;
}

static bool hbk__write_curated(const json_t *row, double score, const char *path, hbk_int line,
                               hbk_jsonl_writer *out, hbk_error *err)
{
    char id[256];
    const char *x, *y;
    if (!hbk__row_id(row, "row", id, path, line, err) ||
        !hbk__row_text(row, "instruction", &x, path, line, err) ||
        !hbk__row_text(row, "output", &y, path, line, err))
        return false;
    json_t *pair = json_pack("{s:s s:s s:s}", "id", id, "instruction", x, "output", y);
    int failed = pair ? 0 : -1;
    if (!isnan(score)) failed |= json_object_set_new(pair, "score", json_real(score));
    failed |= json_object_set_new(pair, "source", json_string("aug"));
    if (!failed) return hbk__write_row(out, pair, err);
    json_decref(pair);
    return hbk_fail(err, HBK_ERROR_MEMORY, "out of memory for a row");
}

/* Walks candidates and ratings side by side: rating k belongs to the k-th candidate that is "ok". */
static bool hbk__merge_kept(const char *candidates, const char *ratings, const hbk__rated *rated,
                            const bool *kept, hbk_int n, hbk_jsonl_writer *out, hbk_allocator *alloc,
                            hbk_error *err)
{
    hbk_jsonl_reader *c = hbk_jsonl_open(candidates, alloc, err);
    hbk_jsonl_reader *r = c ? hbk_jsonl_open(ratings, alloc, err) : NULL;
    json_t *row, *rating;
    hbk_int k = 0;
    int got = r ? 0 : -1;
    while (r && (got = hbk_jsonl_next(c, &row, err)) > 0) {
        const char *status = json_string_value(json_object_get(row, "status"));
        if (status && strcmp(status, "ok")) continue;
        char id[256], rated_id[256];
        bool ok = hbk__row_id(row, "row", id, candidates, hbk_jsonl_line(c), err);
        if (ok &&
            (k >= n || hbk_jsonl_next(r, &rating, err) <= 0 ||
             !hbk__row_id(rating, "row", rated_id, ratings, hbk_jsonl_line(r), err) || strcmp(id, rated_id)))
            ok = hbk_fail_at(
                err, HBK_ERROR_DATA, ratings, k + 1,
                "expected the rating of candidate \"%s\" here: these ratings are of other candidates", id);
        if (ok && kept[k])
            ok = hbk__write_curated(row, rated[k].signal[0], candidates, hbk_jsonl_line(c), out, err);
        k++;
        if (ok) continue;
        got = -1;
        break;
    }
    if (got == 0 && k < n) {
        hbk_fail_at(err, HBK_ERROR_DATA, ratings, k + 1, "there is no candidate for this rating");
        got = -1;
    }
    hbk_jsonl_close(c);
    hbk_jsonl_close(r);
    return got == 0;
}

static bool hbk__select_check(const hbk_curate_options *o, hbk_error *err)
{
    if (o->keep_top > 0 && o->keep_share > 0)
        return hbk_fail(err, HBK_ERROR_OPTION, "keep_top and keep_share exclude each other");
    if (isnan(o->keep) || !(o->keep_share <= 1)) /* nothing compares with NAN: all would be kept */
        return hbk_fail(err, HBK_ERROR_OPTION,
                        "a score from %g or a share of %g is to be kept: expected a number, and a share up "
                        "to 1",
                        o->keep, o->keep_share);
    if (o->signals != HBK_SIGNAL_RATING && o->keep_top <= 0 && o->keep_share <= 0)
        return hbk_fail(err, HBK_ERROR_OPTION,
                        "a least score is of ratings alone: by other signals so many (keep_top) or a share "
                        "(keep_share) of the pairs can be kept");
    return true;
}

HBK_DEF bool hbk_select(const hbk_curate_options *o, const char *candidates, const char *ratings,
                        const char *curated, hbk_curate_counts *counts, hbk_allocator *alloc, hbk_error *err)
{
    hbk_file f; /* the result is derived whole: it takes its name when it is complete */
    hbk_curate_counts c;
    hbk__rated *rated = NULL;
    hbk_int n;
    memset(&c, 0, sizeof c);
    memset(&f, 0, sizeof f);
    if (hbk__same_file(curated, candidates) || hbk__same_file(curated, ratings))
        return hbk_fail_at(err, HBK_ERROR_OPTION, curated, 0, "is an input too: choose another output file");
    if (!hbk__select_check(o, err)) return false;
    bool ok = hbk__read_ratings(ratings, o->signals, &c, &rated, &n, alloc, err);
    bool *kept = ok ? HBK__NEW(alloc, bool, n, err) : NULL;
    hbk_jsonl_writer *out = NULL;
    ok = kept && hbk__mark_kept(o, rated, n, kept, &c, alloc, err);
    ok = ok && hbk_file_begin(&f, curated, err) && (out = hbk_jsonl_create(f.tmp, 0, alloc, err)) != NULL;
    ok = ok && hbk__merge_kept(candidates, ratings, rated, kept, n, out, alloc, err);
    if (out && !hbk_jsonl_finish(out, ok ? err : NULL)) ok = false;
    ok = ok && hbk_file_commit(&f, err);
    hbk_file_abandon(&f);
    hbk_free(alloc, kept);
    hbk_free(alloc, rated);
    if (ok && counts) *counts = c;
    return ok;
}

/* ---- against labels ---------------------------------------------------------------------- */

/* Ids by what is known of them. */
typedef struct hbk__labels {
    hbk__hash_set good, bad, kept;
} hbk__labels;

/* One row of labels. */
static bool hbk__read_label(hbk__labels *l, const json_t *row, uint64_t id, const char *path, hbk_int line,
                       hbk_error *err)
{
    const double good_from = 4.5; /* the paper's A5 */
    const json_t *good = json_object_get(row, "good"), *score = json_object_get(row, "score");
    bool had = false;
    if (!json_is_boolean(good) && !json_is_number(score))
        return hbk_fail_at(err, HBK_ERROR_FORMAT, path, line,
                           "expected {\"id\", \"good\": true or false} or {\"id\", \"score\": 1 to 5}");
    if (hbk__hash_has(&l->good, id) || hbk__hash_has(&l->bad, id))
        return hbk_fail_at(err, HBK_ERROR_DATA, path, line, "this id is labelled in an earlier row too");
    bool is_good = json_is_boolean(good) ? json_is_true(good) : json_number_value(score) >= good_from;
    return hbk__hash_add(is_good ? &l->good : &l->bad, id, &had, err);
}

/* Walks a file's rows into the sets: labels, or (labels false) ids of pairs that were kept. */
static bool hbk__read_ids(hbk__labels *l, const char *path, bool labels, hbk_allocator *alloc, hbk_error *err)
{
    hbk_jsonl_reader *in = hbk_jsonl_open(path, alloc, err);
    json_t *row;
    int got = in ? 1 : -1;
    while (got > 0 && (got = hbk_jsonl_next(in, &row, err)) > 0) {
        char text[256];
        bool had, ok = hbk__row_id(row, "row", text, path, hbk_jsonl_line(in), err);
        uint64_t id = ok ? hbk_hash(0, text, strlen(text)) : 0;
        ok = ok && (labels ? hbk__read_label(l, row, id, path, hbk_jsonl_line(in), err)
                           : hbk__hash_add(&l->kept, id, &had, err));
        if (!ok) got = -1;
    }
    hbk_jsonl_close(in);
    return got == 0;
}

/* Counts the rated pairs that have a label. */
static bool hbk__count_labels(const hbk__labels *l, const char *path, hbk_agreement *a, hbk_allocator *alloc,
                              hbk_error *err)
{
    hbk_jsonl_reader *in = hbk_jsonl_open(path, alloc, err);
    json_t *row;
    int got = in ? 1 : -1;
    while (got > 0 && (got = hbk_jsonl_next(in, &row, err)) > 0) {
        char text[256];
        if (!hbk__row_id(row, "row", text, path, hbk_jsonl_line(in), err)) {
            got = -1;
            break;
        }
        uint64_t id = hbk_hash(0, text, strlen(text));
        bool good = hbk__hash_has(&l->good, id), kept = hbk__hash_has(&l->kept, id);
        if (!good && !hbk__hash_has(&l->bad, id)) continue;
        a->n++;
        a->good += good;
        a->kept += kept;
        a->both += good && kept;
    }
    hbk_jsonl_close(in);
    return got == 0;
}

HBK_DEF bool hbk_agree(const char *labels, const char *ratings, const char *curated, hbk_agreement *a,
                       hbk_allocator *alloc, hbk_error *err)
{
    hbk__labels l;
    hbk_agreement found;
    memset(&l, 0, sizeof l);
    memset(&found, 0, sizeof found);
    l.good.alloc = l.bad.alloc = l.kept.alloc = alloc;
    bool ok = hbk__read_ids(&l, labels, true, alloc, err) && hbk__read_ids(&l, curated, false, alloc, err) &&
              hbk__count_labels(&l, ratings, &found, alloc, err);
    found.unknown = l.good.n + l.bad.n - found.n;
    found.precision = found.kept ? (double)found.both / (double)found.kept : (double)NAN;
    found.recall = found.good ? (double)found.both / (double)found.good : (double)NAN;
    if (ok && found.n == 0)
        ok = hbk_fail_at(err, HBK_ERROR_DATA, labels, 0, "labels none of the pairs that %s rates", ratings);
    if (ok) *a = found;
    hbk_free(alloc, l.good.slots);
    hbk_free(alloc, l.bad.slots);
    hbk_free(alloc, l.kept.slots);
    return ok;
}

/* ==== 21  THE LOOP ===========================================================

       seed, reversed      --> M_yx --> candidates
       seed                --> M0   --> ratings-1 of all candidates --> curated-1
       seed + curated-1    --> M1   --> ratings-2 of all candidates --> curated-2
       seed + curated-2    --> M2

   Every model is finetuned from the base, never from the model before it. Seed and curated examples are told
   apart by a tag after the instruction; M0 is trained with the seed's. Neither the backward nor the rating
   prompt carries one. Source: the paper, sections 2.2 and 2.3.

   Each stage leaves its files, and run.json says which are whole; a call on the same folder skips those and
   goes on, a call with other options is refused. Rows say which weights made them, and a file that other
   weights have made is refused too: the second curation never selects by the first one's ratings.

   The loop ends before its last iteration when a curation keeps nothing; when it keeps what the curation
   before it has kept, for then the base, the options and the examples are the same and so is the model (not
   where outputs are rewritten, which is off in the paper: see chapter 19); when
   a rater has collapsed, if that is asked for; and before the training that would take all of them together
   beyond a number of steps. What ended it stands in run.json. */

HBK_DEF hbk_loop_options hbk_loop_defaults(void)
{
    hbk_loop_options o;
    memset(&o, 0, sizeof o);
    o.model_name = "base";
    o.tag_seed = HBK_TAG_SEED;
    o.tag_web = HBK_TAG_WEB;
    o.inference_tags = "seed,web";
    o.iterations = 2;
    o.seed_repeat = 1;
    o.max_length = -1;
    o.myx = o.m0 = o.mt = hbk_train_defaults(false);
    o.augment = hbk_augment_defaults();
    o.curate = hbk_curate_defaults();
    o.rewriting = hbk_rewrite_defaults();
    o.stop_unchanged = true;
    o.seed = 1;
    return o;
}

HBK_DEF bool hbk_inference_tag(char out[512], const char *list, const char *tag_seed, const char *tag_web,
                               hbk_error *err)
{
    static const char *const names[] = {"none", "seed", "web", "seed,web", "web,seed"};
    const char *first = NULL, *second = NULL;
    int k = 0;
    while (k < 5 && strcmp(list, names[k])) k++;
    if (k == 5)
        return hbk_fail(err, HBK_ERROR_OPTION,
                        "inference tags '%s': expected seed,web  web,seed  seed  web  or none", list);
    if (k == 1 || k == 3) first = tag_seed;
    if (k == 2 || k == 4) first = tag_web;
    if (k == 3) second = tag_web;
    if (k == 4) second = tag_seed;
    if (!first) {
        first = second;
        second = NULL;
    }
    char both[512];
    int n = snprintf(both, 512, "%s%s%s", first ? first : "", second ? " " : "", second ? second : "");
    if (n < 0 || n >= 512)
        return hbk_fail(err, HBK_ERROR_RANGE, "the inference tags are longer than 511 bytes");
    memcpy(out, both, (size_t)n + 1);
    return true;
}

HBK_DEF bool hbk_recipe_tag(char out[512], const char *dir, hbk_error *err)
{
    char path[512];
    if (!hbk_path(path, dir, "humpback.json", err)) return false;
    json_t *j = NULL; /* an adapter from elsewhere has no tags */
    if (hbk_file_exists(path) && !(j = hbk_json_read(path, err))) return false;
    const char *tag = json_string_value(json_object_get(j, "inference_tag"));
    bool ok = !tag || strlen(tag) < 512 ||
              hbk_fail_at(err, HBK_ERROR_RANGE, path, 0, "inference_tag is longer than 511 bytes");
    if (ok) snprintf(out, 512, "%s", tag ? tag : "");
    json_decref(j);
    return ok;
}

/* ---- the state of a run ---------------------------------------------------------------- */

typedef struct hbk__loop {
    const hbk_model *m;
    const hbk_tokenizer *tok;
    const hbk_loop_options *o;
    const hbk_template *t;
    hbk_template *own_template;
    const hbk_progress *progress;
    hbk_allocator *alloc;
    char dir[512], run[512], segments[512], seed[512], candidates[512], inference_tag[512];
    json_t *state;   /* run.json */
    hbk_pairs pairs; /* the seed */
    hbk_dataset replay;
    double lap; /* when the stage before ended, by the caller's clock */
    bool fits;  /* a segment was seen that fits into the rating prompt */
    hbk_loop_result r;
} hbk__loop;

static bool hbk__loop_path(const hbk__loop *l, char out[512], const char *format, int k, hbk_error *err)
{
    char name[64];
    if (k < 0)
        snprintf(name, sizeof name, "%s", format);
    else
        snprintf(name, sizeof name, "%s%d%s", format, k, strchr(format, '-') ? ".jsonl" : "");
    return hbk_path(out, l->dir, name, err);
}

static bool hbk__add(json_t *into, const char *key, json_t *value)
{
    return json_object_set_new(into, key, value ? value : json_null()) == 0;
}

static bool hbk__decode_json(json_t *j, const char *prefix, const hbk_decode_options *o)
{
    static const char *const names[] = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty",
                                        "max_new",     "stop",  "wave",  "slots", "max_length",
                                        "cache"};
    json_t *values[] = {json_real(o->sampling.temperature),
                        json_real(o->sampling.top_p),
                        json_integer(o->sampling.top_k),
                        json_real(o->sampling.min_p),
                        json_real(o->sampling.repetition_penalty),
                        json_integer(o->sampling.max_new),
                        json_integer(o->sampling.stop),
                        json_integer(o->wave),
                        json_integer(o->slots),
                        json_integer(o->max_length),
                        json_string(hbk_dtype_name(o->cache))};
    bool ok = true;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char key[64];
        snprintf(key, sizeof key, "%s%s", prefix, names[i]);
        ok = hbk__add(j, key, values[i]) && ok;
    }
    return ok;
}

/* Evaluation files by what they hold: one may move, but not change. */
static bool hbk__sift_json(json_t *j, const hbk_sift_options *o)
{
    json_t *files = json_array();
    for (hbk_int i = 0; i < o->n_holdout; i++) {
        uint64_t hash = 0; /* of a file that cannot be read: whoever reads it will say so */
        bool read = hbk_file_hash(o->holdout[i], &hash, NULL);
        json_array_append_new(files, read ? hbk__hex(hash) : json_null());
    }
    return hbk__add(j, "augment.dedup", json_real(o->dedup)) &&
           hbk__add(j, "augment.dedup_words", json_integer(o->dedup_words)) &&
           hbk__add(j, "augment.dedup_hashes", json_integer(o->dedup_hashes)) &&
           hbk__add(j, "augment.holdout", files) &&
           hbk__add(j, "augment.holdout_words", json_integer(o->holdout_words));
}

static bool hbk__augment_json(json_t *j, const hbk_augment_options *o)
{
    return hbk__add(j, "augment.candidates", json_integer(o->candidates)) &&
           hbk__add(j, "augment.min_chars", json_integer(o->min_chars)) &&
           hbk__add(j, "augment.max_chars", json_integer(o->max_chars)) &&
           hbk__add(j, "augment.max_echo", json_real(o->max_echo)) &&
           hbk__add(j, "augment.echo_words", json_integer(o->echo_words)) &&
           hbk__add(j, "augment.keep_truncated", json_boolean(o->keep_truncated)) &&
           hbk__add(j, "augment.raw", json_boolean(o->raw)) && hbk__sift_json(j, &o->sift);
}

static json_t *hbk__or_null(const char *s)
{
    return s ? json_string(s) : json_null();
}

/* What curation k, 1 ..., keeps: its options. */
static hbk_curate_options hbk__loop_keeping(const hbk_loop_options *o, int k)
{
    hbk_curate_options c = o->curate;
    for (int i = 0; i < k; i++) {
        if (o->keep[i] > 0) {
            c.keep = o->keep[i];
            c.keep_share = 0;
            c.keep_top = 0;
        }
        if (o->keep_share[i] > 0) {
            c.keep_share = o->keep_share[i];
            c.keep_top = 0;
        }
    }
    return c;
}

/* The threshold, or the share, of every curation; one that is the same for all is no array. */
static json_t *hbk__keeping_json(const hbk_loop_options *o, bool share)
{
    json_t *list = json_array(), *first;
    bool differ = false;
    for (int k = 1; k <= o->iterations; k++) {
        hbk_curate_options c = hbk__loop_keeping(o, k);
        json_array_append_new(list, json_real(share ? c.keep_share : c.keep));
        if (!json_equal(json_array_get(list, (size_t)k - 1), json_array_get(list, 0))) differ = true;
    }
    if (differ && json_array_size(list) == (size_t)o->iterations) return list;
    first = json_copy(json_array_get(list, 0));
    json_decref(list);
    return first;
}

/* Every option that has a say in the result, flat; the number of threads too, since sums differ by it. */
static json_t *hbk__loop_json(const hbk__loop *l)
{
    const hbk_loop_options *o = l->o;
    const char *better = hbk__template_text(l->t, HBK_REWRITING);
    json_t *j = json_object();
    bool ok =
        j && hbk__add(j, "model", json_string(o->model_name)) &&
        hbk__add(j, "model_hash", hbk__hex(hbk_model_hash(l->m))) &&
        hbk__add(j, "precision", json_string(hbk_model_precision(l->m))) &&
        hbk__add(j, "template", json_string(hbk_template_name(l->t))) &&
        hbk__add(j, "template_hash", hbk__hex(hbk_template_hash(l->t))) &&
        hbk__add(j, "tag_seed", hbk__or_null(o->tag_seed)) &&
        hbk__add(j, "tag_web", hbk__or_null(o->tag_web)) &&
        hbk__add(j, "inference_tags", json_string(o->inference_tags)) &&
        hbk__add(j, "iterations", json_integer(o->iterations)) &&
        hbk__add(j, "seed_repeat", json_integer(o->seed_repeat)) &&
        hbk__add(j, "validation_share", json_real(o->validation_share)) &&
        hbk__add(j, "stop_on_collapse", json_boolean(o->stop_on_collapse)) &&
        hbk__add(j, "stop_unchanged", json_boolean(o->stop_unchanged)) &&
        hbk__add(j, "max_steps", json_integer(o->max_steps)) &&
        hbk__add(j, "max_length", json_integer(o->max_length)) &&
        hbk__add(j, "readout", json_string(o->curate.readout == HBK_READOUT_TEXT ? "text" : "expected")) &&
        hbk__add(j, "votes", json_integer(o->curate.votes)) &&
        hbk__add(j, "vote", json_string(o->curate.vote == HBK_VOTE_MEAN ? "mean" : "median")) &&
        hbk__add(j, "retries", json_integer(o->curate.retries)) &&
        hbk__add(j, "signals", json_integer(o->curate.signals)) &&
        hbk__add(j, "keep_top", json_integer(o->curate.keep_top)) &&
        hbk__add(j, "keep", hbk__keeping_json(o, false)) &&
        hbk__add(j, "keep_share", hbk__keeping_json(o, true)) &&
        hbk__add(j, "seed", json_integer((json_int_t)o->seed)) &&
        hbk__add(j, "threads", json_integer(hbk__n_threads())) &&
        hbk__decode_json(j, "augment.", &o->augment.decode) && hbk__augment_json(j, &o->augment) &&
        hbk__decode_json(j, "rate.", &o->curate.decode) && hbk__add(j, "rewrite", json_boolean(o->rewrite)) &&
        hbk__decode_json(j, "rewrite.", &o->rewriting) &&
        hbk__add(j, "rewrite.wording",
                 o->rewrite ? hbk__hex(hbk_hash(0, better, strlen(better))) : json_null()) &&
        hbk__options_json(j, "myx.", &o->myx) && hbk__options_json(j, "m0.", &o->m0) &&
        hbk__options_json(j, "mt.", &o->mt);
    if (ok) return j;
    json_decref(j);
    return NULL;
}

static json_t *hbk__input_json(const char *path, hbk_error *err)
{
    uint64_t hash;
    if (!path) return json_null();
    if (!hbk_file_hash(path, &hash, err)) return NULL;
    return json_pack("{s:s s:o}", "path", path, "hash", hbk__hex(hash));
}

static bool hbk__save_state(hbk__loop *l, hbk_error *err)
{
    return hbk_json_write(l->run, l->state, err);
}

/* Is the run that `then` records this one? A difference is named. An input may move, but not change. */
static bool hbk__same_run(const json_t *then, const json_t *now, const char *dir, hbk_error *err)
{
    static const char *const names[] = {"seed", "segments", "replay"};
    const char *remedy = "another folder, or --force, which sets the old one aside";
    if (!hbk_json_same(json_object_get(then, "options"), json_object_get(now, "options"), dir, remedy, err))
        return false;
    for (int i = 0; i < 3; i++) {
        const json_t *a = json_object_get(json_object_get(then, "inputs"), names[i]);
        const json_t *b = json_object_get(json_object_get(now, "inputs"), names[i]);
        json_t *x = json_object_get(a, "hash"), *y = json_object_get(b, "hash");
        if ((x || y) && !(x && y && json_equal(x, y)))
            return hbk__fail_begun(dir, names[i], a, b, remedy, err);
    }
    return true;
}

/* Has anything been made yet? Before the first training a folder holds nothing that other options could
   spoil, and whoever has mended a slip that ended the run there need not set it aside. */
static bool hbk__loop_begun(const hbk__loop *l, const json_t *then)
{
    char myx[512];
    return json_object_get(json_object_get(then, "stages"), "myx") ||
           (hbk_path(myx, l->dir, "myx", NULL) && hbk_dir_exists(myx));
}

/* Opens or begins the folder: l->state is run.json with these options, or the difference is named. */
static bool hbk__loop_open(hbk__loop *l, hbk_error *err)
{
    json_t *seed = hbk__input_json(l->o->seed_path, err), *segments = hbk__input_json(l->o->corpus_path, err);
    json_t *replay = hbk__input_json(l->o->replay_path, err), *options = hbk__loop_json(l);
    bool inputs = seed && segments && replay;
    json_t *now =
        json_pack("{s:s s:o s:{s:o s:o s:o} s:{} s:s}", "humpback", HBK_VERSION, "options", options, "inputs",
                  "seed", seed, "segments", segments, "replay", replay, "stages", "stopped", "");
    if (!inputs || !now) {
        json_decref(now);
        return inputs ? hbk_fail(err, HBK_ERROR_MEMORY, "out of memory for run.json") : false;
    }
    if (hbk_file_exists(l->run)) {
        json_t *then = hbk_json_read(l->run, err);
        if (then && hbk__same_run(then, now, l->dir, err)) {
            json_decref(now);
            l->state = then;
            return true;
        }
        bool anew =
            then && (!hbk__loop_begun(l, then) || (l->o->force && hbk_file_set_aside(l->dir, err)));
        json_decref(then);
        if (!anew) {
            json_decref(now);
            return false;
        }
    }
    l->state = now;
    return hbk_dir_make(l->dir, err) && hbk__save_state(l, err);
}

/* A stage's entry in run.json, or NULL while it is not done. */
static json_t *hbk__stage_done(const hbk__loop *l, const char *name)
{
    return json_object_get(json_object_get(l->state, "stages"), name);
}

static double hbk__now(const hbk_progress *p)
{
    return p && p->now ? p->now(p->ctx) : 0;
}

/* Writes the entry, with the seconds since the stage before it where a clock is given. */
static bool hbk__stage_finish(hbk__loop *l, const char *name, json_t *entry, hbk_error *err)
{
    double now = hbk__now(l->progress);
    if (entry && l->progress && l->progress->now)
        json_object_set_new(entry, "seconds", json_real(floor((now - l->lap) * 1e3 + 0.5) / 1e3));
    l->lap = now;
    if (!entry || json_object_set_new(json_object_get(l->state, "stages"), name, entry))
        return hbk_fail(err, HBK_ERROR_MEMORY, "out of memory for run.json");
    return hbk__save_state(l, err);
}

/* ---- stages --------------------------------------------------------------------------------- */

/* Would a pair with this text fit into the rating prompt? Then l->fits is set; *shortest is the least length
   that a prompt had. */
static bool hbk__loop_try_rating(hbk__loop *l, const char *text, hbk_int *shortest, hbk_error *err)
{
    hbk_int limit = l->o->curate.decode.max_length, context = l->m->config.context_length;
    if (limit <= 0) limit = l->o->max_length > 0 ? l->o->max_length : context;
    hbk_render r;
    hbk_tokens ids;
    memset(&r, 0, sizeof r);
    memset(&ids, 0, sizeof ids);
    ids.alloc = l->alloc;
    r.use = HBK_RATING;
    r.instruction = "";
    r.output = text;
    bool ok = hbk_template_tokens(l->t, l->tok, &r, &ids, NULL, err);
    if (ok && (*shortest == 0 || ids.n < *shortest)) *shortest = ids.n;
    if (ok && ids.n < HBK__MIN(limit, context)) l->fits = true;
    hbk_tokens_free(&ids);
    return ok;
}

/* An id names its random numbers and its rating, so it comes once. By hash: among a million ids a wrong match
   has a chance of 1 in 10^7. */
static bool hbk__loop_new_id(hbk__hash_set *ids, const char *id, const char *path, hbk_int line,
                             hbk_error *err)
{
    bool had = false;
    if (!hbk__hash_add(ids, hbk_hash(0, id, strlen(id)), &had, err)) return false;
    return !had || hbk_fail_at(err, HBK_ERROR_DATA, path, line,
                               "the id \"%.80s\" came before: give every row its own, or remove the ids", id);
}

/* Walks the corpus: every row is checked and, where `out` is given, written with its id. */
static bool hbk__loop_segments(hbk__loop *l, hbk_jsonl_writer *out, hbk_error *err)
{
    const char *path = l->o->corpus_path, *text = "";
    hbk_jsonl_reader *in = hbk_jsonl_open(path, l->alloc, err);
    hbk__hash_set ids;
    memset(&ids, 0, sizeof ids);
    ids.alloc = l->alloc;
    bool ok = in != NULL;
    json_t *row;
    hbk_int n = 0, shortest = 0;
    for (int got; ok && (got = hbk_jsonl_next(in, &row, err)) != 0; n++) {
        char id[256];
        ok = got > 0 && hbk__row_text(row, "text", &text, path, hbk_jsonl_line(in), err) &&
             hbk__row_id(row, "row", id, path, hbk_jsonl_line(in), err) &&
             hbk__loop_new_id(&ids, id, path, hbk_jsonl_line(in), err) &&
             (l->fits || hbk__loop_try_rating(l, text, &shortest, err)) &&
             (!out || (hbk__add(row, "id", json_string(id)) && hbk_jsonl_write(out, row, err)));
    }
    hbk_jsonl_close(in);
    hbk_free(l->alloc, ids.slots);
    if (ok && n == 0)
        ok = hbk_fail_at(err, HBK_ERROR_DATA, path, 0, "the corpus is empty: it needs rows {\"text\": ...}");
    if (ok && !l->fits) /* found here, and not after the trainings before the first rating */
        ok = hbk_fail_at(
            err, HBK_ERROR_DATA, path, 0,
            "no segment fits into the rating prompt: the shortest makes one of %lld tokens; shorten "
            "the rubric or the segments, or take a model with a longer context",
            (long long)shortest);
    l->r.n_segments = n;
    return ok;
}

/* Renders one example of every kind, tags included: what the vocabulary cannot spell is found here, not after
   an hour. Only forward use holds a tag. */
static bool hbk__loop_spells(hbk__loop *l, hbk_error *err)
{
    static const hbk_use uses[] = {HBK_BACKWARD, HBK_RATING, HBK_FORWARD, HBK_FORWARD, HBK_REWRITING};
    const char *const tags[] = {NULL, NULL, l->o->tag_seed, l->o->tag_web, NULL};
    bool ok = hbk_template_check(l->t, l->tok, err);
    for (int i = 0; ok && i < (l->o->rewrite ? 5 : 4); i++) {
        hbk_render r;
        hbk_tokens ids;
        memset(&r, 0, sizeof r);
        memset(&ids, 0, sizeof ids);
        ids.alloc = l->alloc;
        r.use = uses[i];
        r.instruction = r.output = r.reply = l->pairs.data[0].instruction;
        r.tag = tags[i];
        hbk_error e;
        ok = hbk_template_tokens(l->t, l->tok, &r, &ids, NULL, &e);
        if (!ok && err) *err = e;
        if (!ok && r.tag && e.code == HBK_ERROR_OPTION)
            ok = hbk_fail(err, HBK_ERROR_OPTION,
                          "the model's vocabulary cannot spell the tag \"%.100s\": choose other words with "
                          "--tag-seed and --tag-web",
                          r.tag);
        hbk_tokens_free(&ids);
    }
    return ok;
}

/* What a curation would refuse is refused before anything is trained. */
static bool hbk__loop_curations(const hbk__loop *l, hbk_error *err)
{
    hbk_curate_options o = l->o->curate;
    hbk__stage s;
    memset(&s, 0, sizeof s);
    s.tok = l->tok;
    s.t = l->t;
    s.alloc = l->alloc;
    o.backward = l->m; /* M_yx is still to come */
    bool ok = hbk__rate_check(&s, &o, err);
    for (int k = 1; ok && k <= l->o->iterations; k++) {
        o = hbk__loop_keeping(l->o, k);
        ok = hbk__select_check(&o, err);
    }
    return ok;
}

/* So is what the augmentation would refuse: its options, and evaluation files. */
static bool hbk__loop_holdout(hbk__loop *l, hbk_error *err)
{
    hbk__sieve v;
    if (!hbk__sieve_new(&v, &l->o->augment.sift, l->alloc, err)) return false;
    hbk__sieve_free(&v);
    return hbk__augment_check(&l->o->augment, err);
}

/* Reads the seed. */
static bool hbk__loop_seed(hbk__loop *l, hbk_error *err)
{
    const char *path = l->o->seed_path;
    hbk__hash_set ids;
    memset(&ids, 0, sizeof ids);
    ids.alloc = l->alloc;
    bool ok = hbk_pairs_load(&l->pairs, path, "seed", err);
    for (hbk_int i = 0; ok && i < l->pairs.n; i++) {
        const hbk_pair *p = &l->pairs.data[i];
        ok = hbk__loop_new_id(&ids, p->id, path, 0, err);
        if (ok && strcmp(p->source, "seed")) /* its tag must not hang on what a row calls itself */
            ok =
                hbk_fail_at(err, HBK_ERROR_DATA, path, 0,
                            "pair \"%.80s\" says \"source\": \"%s\": a seed holds people's pairs; remove the "
                            "row or the field",
                            p->id, p->source);
    }
    hbk_free(l->alloc, ids.slots);
    l->r.n_seed = l->pairs.n;
    return ok &&
           (l->pairs.n >= 2 ||
            hbk_fail_at(err, HBK_ERROR_DATA, path, 0,
                        "holds %lld pairs; at least 2 are needed to finetune on, and a hundred to learn "
                        "from",
                        (long long)l->pairs.n));
}

/* Reads all inputs once, before anything is written. */
static bool hbk__loop_check(hbk__loop *l, hbk_error *err)
{
    l->pairs.alloc = l->replay.alloc = l->alloc;
    hbk_int limit = l->o->max_length > 0 ? l->o->max_length : l->m->config.context_length;
    const char *const inputs[] = {l->o->seed_path, l->o->corpus_path, l->o->replay_path};
    for (int i = 0; i < 3; i++)
        if (inputs[i] && hbk__inside(l->dir, inputs[i]))
            return hbk_fail_at(err, HBK_ERROR_OPTION, inputs[i], 0,
                               "lies in the run folder %s, which the run writes to: choose another folder",
                               l->dir);
    bool begun = hbk__loop_begun(l, NULL);
    l->fits = begun; /* it was looked at then; another rubric will be named by its hash, as files will */
    return hbk__loop_seed(l, err) && hbk__loop_spells(l, err) && hbk__loop_segments(l, NULL, err) &&
           (begun || hbk__loop_holdout(l, err)) && hbk__loop_curations(l, err) &&
           (!l->o->replay_path || hbk_dataset_add_texts(&l->replay, l->o->replay_path, l->tok, limit, err));
}

/* seed.jsonl and segments.jsonl: the inputs in the run's own form. */
static bool hbk__loop_inputs(hbk__loop *l, hbk_error *err)
{
    if (hbk__stage_done(l, "segments")) return true;
    hbk_jsonl_writer *out = hbk_jsonl_create(l->seed, 0, l->alloc, err);
    bool ok = out != NULL;
    for (hbk_int i = 0; ok && i < l->pairs.n; i++) {
        const hbk_pair *p = &l->pairs.data[i];
        ok = hbk__write_row(out,
                            json_pack("{s:s s:s s:s s:s}", "id", p->id, "instruction", p->instruction,
                                      "output", p->output, "source", "seed"),
                            err);
    }
    if (out && !hbk_jsonl_finish(out, ok ? err : NULL)) ok = false;
    out = ok ? hbk_jsonl_create(l->segments, 0, l->alloc, err) : NULL;
    ok = out && hbk__loop_segments(l, out, err);
    if (out && !hbk_jsonl_finish(out, ok ? err : NULL)) ok = false;
    return ok &&
           hbk__stage_finish(l, "segments", json_pack("{s:I}", "rows", (json_int_t)l->r.n_segments), err);
}

/* template.json, and rubric.txt with the wording that rates. */
static bool hbk__loop_template(hbk__loop *l, hbk_error *err)
{
    char path[512];
    if (!hbk__loop_path(l, path, "template.json", -1, err) || !hbk_template_save(l->t, path, err) ||
        !hbk__loop_path(l, path, "rubric.txt", -1, err))
        return false;
    const char *rating = hbk__template_text(l->t, HBK_RATING);
    return hbk_file_write(path, rating, strlen(rating), err);
}

/* Finetunes the base, always the base, on `d` into the folder `name`. `held`, which may be empty, is what the
   training is validated on. */
static bool hbk__loop_finetune(hbk__loop *l, const char *name, const hbk_dataset *d, const hbk_dataset *held,
                               const hbk_train_options *o, hbk_use use, hbk_error *err)
{
    char dir[512];
    if (!hbk_path(dir, l->dir, name, err)) return false;
    hbk_recipe r;
    memset(&r, 0, sizeof r);
    r.tmpl = l->t;
    r.tok = l->tok;
    r.base_name = l->o->model_name;
    r.use = use;
    if (use == HBK_FORWARD) {
        r.tag_seed = l->o->tag_seed;
        r.tag_web = l->o->tag_web;
        r.inference_tag = l->inference_tag;
    }
    hbk_train_data data = {d, l->replay.n ? &l->replay : NULL, held->n ? held : NULL};
    if (!hbk_finetune(l->m, &data, o, NULL, &r, dir, l->progress, l->alloc, err)) return false;
    hbk_int steps = hbk__train_length(o, d->n);
    l->r.steps += steps;
    snprintf(l->r.final_dir, sizeof l->r.final_dir, "%s", dir);
    return hbk__stage_done(l, name) ||
           hbk__stage_finish(l, name,
                             json_pack("{s:b s:o s:I s:I s:I s:I}", "done", 1, "base",
                                       hbk__hex(hbk_model_hash(l->m)), "examples", (json_int_t)d->n,
                                       "validation", (json_int_t)held->n, "too_long",
                                       (json_int_t)d->n_too_long, "steps", (json_int_t)steps),
                             err);
}

/* Says in result and run.json why the loop ends before its last iteration. */
static bool hbk__loop_stop(hbk__loop *l, const char *why, hbk_error *err)
{
    snprintf(l->r.stopped, sizeof l->r.stopped, "%s", why);
    return json_object_set_new(l->state, "stopped", json_string(why)) == 0
               ? hbk__save_state(l, err)
               : hbk_fail(err, HBK_ERROR_MEMORY, "out of memory for run.json");
}

/* May a model of iteration k be trained on n examples? Not beyond max_steps: the loop is stopped then. */
static bool hbk__loop_affords(hbk__loop *l, int k, hbk_int n, const hbk_train_options *o, hbk_error *err)
{
    char why[256];
    hbk_int steps = hbk__train_length(o, n), most = l->o->max_steps;
    if (k < 1 || most <= 0 || steps <= most - l->r.steps) return true;
    snprintf(why, sizeof why,
             "M%d takes %lld training steps more than the %lld done, and %lld are allowed; M%d is the result",
             k, (long long)steps, (long long)l->r.steps, (long long)most, k - 1);
    return hbk__loop_stop(l, why, err);
}

/* Trains on the seed, `repeat` times, and a curated file (NULL: none), tagged by source. `k` is the number of
   the iteration, 0 before the first. The loop may be stopped instead. */
static bool hbk__loop_train(hbk__loop *l, const char *name, int k, const char *curated, hbk_int repeat,
                            const hbk_train_options *o, hbk_use use, hbk_error *err)
{
    hbk_dataset d, held;
    hbk_pairs web;
    memset(&d, 0, sizeof d);
    memset(&held, 0, sizeof held);
    memset(&web, 0, sizeof web);
    d.alloc = held.alloc = web.alloc = l->alloc;
    hbk_int limit = l->o->max_length > 0 ? l->o->max_length : l->m->config.context_length;
    const char *tag_seed = use == HBK_FORWARD ? l->o->tag_seed : NULL, *tag_web = l->o->tag_web;
    bool ok = !curated || hbk_pairs_load(&web, curated, "aug", err);
    for (hbk_int i = 0; ok && i < repeat; i++)
        ok = hbk_dataset_add_pairs(&d, &l->pairs, l->t, l->tok, use, tag_seed, tag_web, limit, err);
    if (ok && curated) ok = hbk_dataset_add_pairs(&d, &web, l->t, l->tok, use, tag_seed, tag_web, limit, err);
    if (ok && l->o->validation_share > 0)
        ok = hbk_dataset_split(&d, &held, l->o->validation_share, o->seed, err);
    ok = ok && hbk__loop_affords(l, k, d.n, o, err);
    if (ok && !l->r.stopped[0]) ok = hbk__loop_finetune(l, name, &d, &held, o, use, err);
    hbk_dataset_free(&d);
    hbk_dataset_free(&held);
    hbk_pairs_free(&web);
    return ok;
}

/* Opens the finetuned folder `name` for decoding. `who`, which its rows will carry, is the name and a hash of
   the weights. */
static bool hbk__loop_tuned(hbk__loop *l, hbk_tuned *t, const char *name, char who[64], hbk_error *err)
{
    char dir[512];
    if (!hbk_path(dir, l->dir, name, err) || !hbk_tuned_load(t, l->m, dir, l->alloc, err)) return false;
    uint64_t hash = hbk_model_hash(t->model);
    if (t->adapter) hash = hbk_adapter_hash(hash, t->adapter);
    snprintf(who, 64, "%s %016llx", name, (unsigned long long)hash);
    return true;
}

/* Are all rows of the file `path`, which the stage `name` has left, from the weights that run.json names, and
   from this template? Ratings of another model, or of the iteration before, are well-formed ratings. */
static bool hbk__loop_made_here(const hbk__loop *l, const char *name, const char *path, hbk_error *err)
{
    const char *wanted = json_string_value(json_object_get(hbk__stage_done(l, name), "by"));
    hbk_jsonl_reader *in = hbk_jsonl_open(path, l->alloc, err);
    json_t *row;
    int got = in ? 0 : -1;
    char tmpl[24];
    snprintf(tmpl, sizeof tmpl, "%016llx", (unsigned long long)hbk_template_hash(l->t));
    while (in && (got = hbk_jsonl_next(in, &row, err)) > 0) {
        const json_t *prov = json_object_get(row, "prov");
        const char *made = json_string_value(json_object_get(prov, "adapter"));
        const char *with = json_string_value(json_object_get(prov, "template_hash"));
        bool ours = wanted && made && !strcmp(wanted, made);
        if (ours && with && !strcmp(with, tmpl)) continue;
        hbk_fail_at(err, HBK_ERROR_DATA, path, hbk_jsonl_line(in),
                    "made by \"%.60s\"%s, expected \"%.60s\": put the run's own file back, or start anew in "
                    "another folder",
                    made ? made : "?", ours ? " with another template or rubric" : "", wanted ? wanted : "?");
        got = -1;
        break;
    }
    hbk_jsonl_close(in);
    return got == 0;
}

static bool hbk__loop_augment(hbk__loop *l, hbk_error *err)
{
    hbk_augment_options o = l->o->augment;
    hbk_int counts[HBK_FATE_COUNT] = {0};
    hbk_tuned t;
    char who[64] = "";
    o.decode.seed = l->o->seed;
    if (o.decode.max_length < 0) o.decode.max_length = l->o->max_length;
    if (!hbk__stage_done(l, "candidates")) {
        if (!hbk__loop_tuned(l, &t, "myx", who, err)) return false;
        bool ok = hbk_augment(t.model, t.adapter, l->tok, l->t, &o, who, l->segments, l->candidates,
                              l->progress, l->alloc, err);
        hbk_tuned_free(&t);
        if (!ok) return false;
    } else if (!hbk__loop_made_here(l, "candidates", l->candidates, err)) {
        return false;
    }
    if (!hbk_fate_count(counts, l->candidates, "status", l->alloc, err)) return false;
    for (int f = 0; f < HBK_FATE_COUNT; f++) l->r.n_candidates += counts[f];
    l->r.n_ok = counts[HBK_FATE_OK];
    if (hbk__stage_done(l, "candidates")) return true;
    json_t *statuses = json_object();
    for (int f = 0; f < HBK_FATE_COUNT; f++)
        if (counts[f]) hbk__add(statuses, hbk_fate_name((hbk_fate)f), json_integer(counts[f]));
    return hbk__stage_finish(l, "candidates",
                             json_pack("{s:I s:s s:o}", "rows", (json_int_t)l->r.n_candidates, "by", who,
                                       "status", statuses),
                             err);
}

static json_t *hbk__counts_json(const hbk_curate_counts *c)
{
    const hbk_int *h = c->histogram;
    return json_pack(
        "{s:I s:I s:I s:I s:I s:I s:I s:I s:I s:o s:b s:[I,I,I,I,I]}", "n", (json_int_t)c->n, "rated",
        (json_int_t)c->rated, "unparsable", (json_int_t)c->unparsable, "truncated", (json_int_t)c->truncated,
        "too_long", (json_int_t)c->too_long, "retried", (json_int_t)c->retried, "ranked",
        (json_int_t)c->ranked, "unhelpful", (json_int_t)c->unhelpful, "kept", (json_int_t)c->kept,
        "threshold", isnan(c->threshold) ? json_null() : json_real(c->threshold), "collapsed", c->collapsed,
        "histogram",
        (json_int_t)h[0], (json_int_t)h[1], (json_int_t)h[2], (json_int_t)h[3], (json_int_t)h[4]);
}

/* Curation number k, 1 ..., by the model before it; *kept pairs go to curated-k.jsonl. */
static bool hbk__loop_curate(hbk__loop *l, int k, hbk_error *err)
{
    char ratings[512], curated[512], rater[16], stage[32], selected[32], who[64], writer[64];
    hbk_curate_options o = hbk__loop_keeping(l->o, k);
    hbk_curate_counts *c = &l->r.curated[k - 1];
    snprintf(rater, sizeof rater, "m%d", k - 1);
    snprintf(stage, sizeof stage, "ratings-%d", k);
    snprintf(selected, sizeof selected, "curated-%d", k);
    o.decode.seed = l->o->seed;
    if (o.decode.max_length < 0) o.decode.max_length = l->o->max_length;
    if (!hbk__loop_path(l, ratings, "ratings-", k, err) || !hbk__loop_path(l, curated, "curated-", k, err))
        return false;
    if (!hbk__stage_done(l, stage)) {
        hbk_tuned t, myx;
        memset(&myx, 0, sizeof myx);
        if (!hbk__loop_tuned(l, &t, rater, who, err)) return false;
        bool ok = !(o.signals & HBK_SIGNAL_ROUND_TRIP) || hbk__loop_tuned(l, &myx, "myx", writer, err);
        o.backward = myx.model;
        o.backward_adapter = myx.adapter;
        ok = ok && hbk_rate(t.model, t.adapter, l->tok, l->t, &o, who, l->candidates, ratings, l->progress,
                            l->alloc, err);
        hbk_tuned_free(&myx);
        hbk_tuned_free(&t);
        if (!ok || !hbk__stage_finish(l, stage, json_pack("{s:b s:s}", "done", 1, "by", who), err))
            return false;
    } else if (!hbk__loop_made_here(l, stage, ratings, err)) {
        return false;
    }
    if (!hbk_select(&o, l->candidates, ratings, curated, c, l->alloc, err)) return false;
    return hbk__stage_done(l, selected) || hbk__stage_finish(l, selected, hbk__counts_json(c), err);
}

/* Rewrites curated-k by the model that has curated into rewritten-k, whose path *pairs, what is to be
   learned, becomes; where that is not asked for, nothing happens. */
static bool hbk__loop_rewrite(hbk__loop *l, int k, char pairs[512], hbk_error *err)
{
    char out[512], name[16], stage[32], who[64];
    hbk_decode_options o = l->o->rewriting;
    hbk_int counts[HBK_FATE_COUNT] = {0}, n = 0;
    if (!l->o->rewrite) return true;
    snprintf(name, sizeof name, "m%d", k - 1);
    snprintf(stage, sizeof stage, "rewritten-%d", k);
    o.seed = l->o->seed;
    if (o.max_length < 0) o.max_length = l->o->max_length;
    if (!hbk__loop_path(l, out, "rewritten-", k, err)) return false;
    if (!hbk__stage_done(l, stage)) {
        hbk_tuned t;
        if (!hbk__loop_tuned(l, &t, name, who, err)) return false;
        bool ok = hbk_rewrite(t.model, t.adapter, l->tok, l->t, &o, who, pairs, out, l->progress, l->alloc,
                              err);
        hbk_tuned_free(&t);
        if (!ok || !hbk_fate_count(counts, out, "rewrite", l->alloc, err)) return false;
        for (int f = 0; f < HBK_FATE_COUNT; f++) n += counts[f];
        json_t *entry = json_pack("{s:I s:I s:s}", "rows", (json_int_t)n, "rewritten",
                                  (json_int_t)counts[HBK_FATE_OK], "by", who);
        if (!hbk__stage_finish(l, stage, entry, err)) return false;
    } else if (!hbk__loop_made_here(l, stage, out, err)) {
        return false;
    }
    memcpy(pairs, out, sizeof out);
    return true;
}

/* Has curation k kept the pairs of the one before it, to the letter? */
static bool hbk__loop_unchanged(const hbk__loop *l, int k, bool *unchanged, hbk_error *err)
{
    hbk_pairs p[2];
    bool ok = true;
    memset(p, 0, sizeof p);
    for (int i = 0; ok && i < 2; i++) {
        char path[512];
        p[i].alloc = l->alloc;
        ok = hbk__loop_path(l, path, "curated-", k - i, err) && hbk_pairs_load(&p[i], path, "aug", err);
    }
    *unchanged = ok && p[0].n == p[1].n;
    for (hbk_int i = 0; *unchanged && i < p[0].n; i++) {
        const hbk_pair *x = &p[0].data[i], *y = &p[1].data[i];
        *unchanged = !strcmp(x->instruction, y->instruction) && !strcmp(x->output, y->output);
    }
    hbk_pairs_free(&p[0]);
    hbk_pairs_free(&p[1]);
    return ok;
}

/* Stops the loop where curation k gives a reason to. */
static bool hbk__loop_stop_rules(hbk__loop *l, int k, hbk_error *err)
{
    const hbk_curate_counts *c = &l->r.curated[k - 1];
    long long kept = c->kept, n = c->n;
    bool unchanged = false;
    char why[256];
    if (kept == 0) {
        snprintf(
            why, sizeof why,
            "curation %d kept none of %lld candidates (%lld ratings could be read, %lld not, %lld cut off, "
            "%lld too long); M%d is the result",
            k, n, (long long)c->rated, (long long)c->unparsable, (long long)c->truncated,
            (long long)c->too_long, k - 1);
        return hbk__loop_stop(l, why, err);
    }
    if (c->collapsed && l->o->stop_on_collapse) {
        snprintf(why, sizeof why,
                 "the rater of curation %d has collapsed: it kept %lld of %lld candidates; M%d is the result",
                 k, kept, n, k - 1);
        return hbk__loop_stop(l, why, err);
    }
    bool same = l->o->stop_unchanged && !l->o->rewrite; /* each rater rewrites in its own way */
    if (k > 1 && same && !hbk__loop_unchanged(l, k, &unchanged, err)) return false;
    if (!unchanged) return true;
    snprintf(
        why, sizeof why,
        "curation %d kept the same %lld pairs as curation %d, and M%d would be M%d once more; M%d is the "
        "result",
        k, kept, k - 1, k, k - 1, k - 1);
    return hbk__loop_stop(l, why, err);
}

static bool hbk__loop_iterations(hbk__loop *l, hbk_error *err)
{
    char why[256], name[16], curated[512];
    if (l->r.n_ok == 0) {
        snprintf(why, sizeof why, "none of %lld candidates has a usable instruction; M0 is the result",
                 (long long)l->r.n_candidates);
        return hbk__loop_stop(l, why, err);
    }
    for (int k = 1; k <= l->o->iterations; k++) {
        snprintf(name, sizeof name, "m%d", k);
        if (!hbk__loop_curate(l, k, err) || !hbk__loop_stop_rules(l, k, err)) return false;
        if (l->r.stopped[0]) return true;
        if (!hbk__loop_path(l, curated, "curated-", k, err) || !hbk__loop_rewrite(l, k, curated, err) ||
            !hbk__loop_train(l, name, k, curated, l->o->seed_repeat, &l->o->mt, HBK_FORWARD, err))
            return false;
        if (l->r.stopped[0]) return true;
        l->r.iterations = k;
    }
    return true;
}

static bool hbk__loop_stages(hbk__loop *l, hbk_error *err)
{
    return hbk__loop_inputs(l, err) && hbk__loop_template(l, err) &&
           hbk__loop_train(l, "myx", 0, NULL, 1, &l->o->myx, HBK_BACKWARD, err) &&
           hbk__loop_augment(l, err) && hbk__loop_train(l, "m0", 0, NULL, 1, &l->o->m0, HBK_FORWARD, err) &&
           hbk__loop_iterations(l, err);
}

/* The options that no later stage would look at. */
static bool hbk__loop_options_check(const hbk_loop_options *o, hbk_error *err)
{
    if (!o->seed_path || !o->corpus_path || o->iterations < 1 || o->seed_repeat < 1)
        return hbk_fail(err, HBK_ERROR_OPTION,
                        "the loop needs seed pairs, at least one copy of them, a corpus and at least one "
                        "iteration");
    if (o->iterations > HBK_ITERATIONS)
        return hbk_fail(err, HBK_ERROR_OPTION, "%lld iterations are too many: at most %d",
                        (long long)o->iterations, (int)HBK_ITERATIONS);
    for (int k = 0; k < HBK_ITERATIONS; k++) {
        if (!(o->keep[k] >= 0) || !(o->keep_share[k] >= 0 && o->keep_share[k] <= 1))
            return hbk_fail(
                err, HBK_ERROR_OPTION,
                "curation %d is to keep scores from %g or a share of %g: expected a score from 1 to "
                "5, or a share up to 1",
                k + 1, o->keep[k], o->keep_share[k]);
        if (o->keep[k] > 0 && o->keep_share[k] > 0)
            return hbk_fail(err, HBK_ERROR_OPTION, "curation %d keeps by score or by share, not by both",
                            k + 1);
    }
    if (!(o->validation_share >= 0 && o->validation_share < 1) || o->max_steps < 0)
        return hbk_fail(err, HBK_ERROR_OPTION,
                        "validation share %g and most steps %lld: expected 0 to below 1, and 0 or more",
                        o->validation_share, (long long)o->max_steps);
    return o->validation_share <= 0 || o->seed_repeat == 1 ||
           hbk_fail(err, HBK_ERROR_OPTION,
                    "a validation share and %lld copies of the seed: what is held out would be trained on",
                    (long long)o->seed_repeat);
}

HBK_DEF bool hbk_loop_run(const hbk_model *m, const hbk_tokenizer *tok, const hbk_loop_options *o,
                          const char *dir, const hbk_progress *progress, hbk_loop_result *result,
                          hbk_allocator *alloc, hbk_error *err)
{
    hbk__loop *l = HBK__NEW(alloc, hbk__loop, 1, err);
    if (!l) return false;
    l->m = m;
    l->tok = tok;
    l->o = o;
    l->progress = progress;
    l->alloc = alloc;
    l->lap = hbk__now(progress);
    snprintf(l->dir, sizeof l->dir, "%s", dir);
    for (size_t n = strlen(l->dir); n > 1 && l->dir[n - 1] == '/'; n--) l->dir[n - 1] = 0;
    if (!o->tmpl) l->own_template = hbk_template_load("llama2", alloc, err);
    l->t = o->tmpl ? o->tmpl : l->own_template;
    bool ok = l->t != NULL && hbk__loop_options_check(o, err) &&
              hbk_inference_tag(l->inference_tag, o->inference_tags, o->tag_seed, o->tag_web, err) &&
              hbk__loop_path(l, l->run, "run.json", -1, err) &&
              hbk__loop_path(l, l->seed, "seed.jsonl", -1, err) &&
              hbk__loop_path(l, l->segments, "segments.jsonl", -1, err) &&
              hbk__loop_path(l, l->candidates, "candidates.jsonl", -1, err) && hbk__loop_check(l, err) &&
              hbk__loop_open(l, err) && hbk__loop_stages(l, err);
    if (ok && result) *result = l->r;
    json_decref(l->state);
    hbk_pairs_free(&l->pairs);
    hbk_dataset_free(&l->replay);
    hbk_template_free(l->own_template);
    hbk_free(alloc, l);
    return ok;
}

HBK__GLUE_END

/* ==== 22  MEASURING ==========================================================

   A difference between two models means nothing without the spread of such differences: over seeds the
   mean comes with a 95 % interval, mean +- t(n-1) s / sqrt(n), s the sample deviation, t Student's. Its n
   values must be independent: one of each seed, paired differences rather than both sides.

   The loss is a mean over target tokens, not over examples, as in training: -sum log p / their number. */

HBK_DEF hbk_summary hbk_summarize(const double *x, hbk_int n)
{
    /* Student's t, two-sided 95 %, for 1 .. 30 degrees of freedom; beyond, the normal with a correction. */
    static const double t[] = {12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
                               2.201,  2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
                               2.080,  2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042};
    hbk_summary s = {n, (double)NAN, (double)NAN, (double)NAN};
    double sum = 0, squares = 0;
    if (n < 1) return s;
    for (hbk_int i = 0; i < n; i++) sum += x[i];
    s.mean = sum / (double)n;
    if (n < 2) return s;
    for (hbk_int i = 0; i < n; i++) squares += (x[i] - s.mean) * (x[i] - s.mean);
    s.deviation = sqrt(squares / (double)(n - 1));
    double quantile = n - 1 <= 30 ? t[n - 2] : 1.96 + 2.4 / (double)(n - 1);
    s.half_width = quantile * s.deviation / sqrt((double)n);
    return s;
}

HBK_DEF bool hbk_evaluate_loss(const hbk_model *m, const hbk_adapter *adapter, const hbk_dataset *d,
                               hbk_int max_tokens, double *loss, hbk_allocator *alloc, hbk_error *err)
{
    if (d->n < 1) return hbk_fail(err, HBK_ERROR_DATA, "there is no example to evaluate");
    hbk_packer p;
    hbk_int room = HBK__MAX(max_tokens, d->max_length), targets = 0;
    if (!hbk_packer_init(&p, room, d->n, alloc, err)) return false;
    hbk_acts *a = hbk_acts_new(m, adapter, room, d->max_length, HBK_KEEP_NONE, alloc, err);
    hbk_pass pass;
    memset(&pass, 0, sizeof pass);
    pass.adapter = adapter;
    double sum = 0, part;
    bool ok = a != NULL;
    for (hbk_int i = 0; ok && i <= d->n; i++) {
        if (i < d->n && hbk_packer_add(&p, d, i)) continue;
        hbk_batch b = hbk_packer_batch(&p);
        ok = hbk_model_pass(a, m, &b, &pass, &part, NULL, err);
        if (ok) sum += part;
        targets += p.n_targets;
        hbk_packer_clear(&p);
        if (i < d->n) hbk_packer_add(&p, d, i);
    }
    if (ok) *loss = sum / (double)targets;
    hbk_acts_free(a);
    hbk_packer_free(&p);
    return ok;
}

#ifdef __clang__
#pragma clang diagnostic pop
#endif
#ifdef __cplusplus
}
#endif
#endif /* HUMPBACK_IMPLEMENTATION */

/* Licence: take whichever you prefer.
   ------------------------------------------------------------------------------
   A - Public domain (www.unlicense.org)
   This is free and unencumbered software released into the public domain. Anyone is free to copy, modify,
   publish, use, compile, sell, or distribute this software, either in source code form or as a compiled
   binary, for any purpose, commercial or non-commercial, and by any means. In jurisdictions that recognize
   copyright laws, the author or authors of this software dedicate any and all copyright interest in the
   software to the public domain. We make this dedication for the benefit of the public at large and to the
   detriment of our heirs and successors. We intend this dedication to be an overt act of relinquishment in
   perpetuity of all present and future rights to this software under copyright law.
   THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT
   LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO
   EVENT SHALL THE AUTHORS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF
   CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER
   DEALINGS IN THE SOFTWARE.
   ------------------------------------------------------------------------------
   B - MIT License. Copyright (c) 2026 the humpback.h authors
   Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
   associated documentation files (the "Software"), to deal in the Software without restriction, including
   without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
   copies of the Software, and to permit persons to whom the Software is furnished to do so, subject to the
   following conditions: The above copyright notice and this permission notice shall be included in all
   copies or substantial portions of the Software.
   THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT
   LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO
   EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER
   IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR
   THE USE OR OTHER DEALINGS IN THE SOFTWARE. */
