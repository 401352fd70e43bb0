/* seeds.h: public instruction data -> seed.jsonl, the work of `humpback seeds`.

   One row of the input gives at most one pair (instruction, output): the first turn. Which of the formats
   below a file has is seen from its first row.

   Of a tree the paper takes the first turn, in English, with the reply that people ranked first (rank 0); a
   tree whose replies have no ranks is skipped, not guessed at. An "input" follows its instruction after a
   blank line. Every row that is left out is counted under its reason. Texts keep their bytes; only guanaco's,
   which stand between marks, lose the white space around them.

   Include after humpback.h's implementation, or link with it. */

#ifndef TOOL_SEEDS_H
#define TOOL_SEEDS_H

#include "../humpback.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

/* Names, and what a row looks like. */
#define TOOL_SEED_FORMATS(X)                                                                                 \
    X(alpaca, "{\"instruction\", \"input\"?, \"output\"}")                                                   \
    X(messages, "{\"messages\": [{\"role\", \"content\"}, ...]}")                                            \
    X(sharegpt, "{\"conversations\": [{\"from\", \"value\"}, ...]}, or of plain strings in turn")            \
    X(oasst, "{\"prompt\": {\"text\", \"lang\", \"replies\": [{\"text\", \"lang\", \"role\", \"rank\"}]}}")  \
    X(seed_tasks, "{\"instruction\", \"instances\": [{\"input\", \"output\"}]}")                             \
    X(guanaco, "{\"text\": \"### Human: ...### Assistant: ...\"}")

/* The same as a text for --help. */
#define TOOL_SEED_HELP_ROW(name, row) "  " #name "\n      " row "\n"
#define TOOL_SEED_HELP                TOOL_SEED_FORMATS(TOOL_SEED_HELP_ROW)

#define TOOL_SEED_FATES(X)                                                                                 \
    X(WRITTEN, "written")                                                                                  \
    X(LANGUAGE, "not in English")                                                                          \
    X(DELETED, "deleted or rejected in review")                                                            \
    X(UNRANKED, "without a reply ranked first")                                                            \
    X(UNANSWERED, "without a person's turn and an answer to it")                                           \
    X(EMPTY, "with an empty instruction or output")                                                        \
    X(MALFORMED, "in another form than the first row")                                                     \
    X(NO_INSTRUCTION, "without an instruction")                                                            \
    X(NO_OUTPUT, "without an output")

typedef enum tool_seed_fate {
#define TOOL_X(name, text) TOOL_SEED_##name,
    TOOL_SEED_FATES(TOOL_X)
#undef TOOL_X
        TOOL_SEED_FATE_COUNT
} tool_seed_fate;

static const char *tool_seed_fate_name(tool_seed_fate f)
{
    static const char *const names[] = {
#define TOOL_X(name, text) text,
        TOOL_SEED_FATES(TOOL_X)
#undef TOOL_X
    };
    return f >= 0 && f < TOOL_SEED_FATE_COUNT ? names[f] : "?";
}

typedef struct tool_seed_counts {
    const char *format;                   /* one of the six names above */
    hbk_int rows;                         /* read */
    hbk_int fates[TOOL_SEED_FATE_COUNT];  /* their sum is rows */
    hbk_int first[TOOL_SEED_FATE_COUNT];  /* the line of the first of each */
} tool_seed_counts;

/* A fate in words: the form that was expected, and where the first such row stands. */
static void tool_seed_reason(const tool_seed_counts *c, tool_seed_fate f, char out[256])
{
    static const char *const forms[][2] = {
#define TOOL_X(name, row) {#name, row},
        TOOL_SEED_FORMATS(TOOL_X)
#undef TOOL_X
    };
    const char *form = "";
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        if (f == TOOL_SEED_MALFORMED && c->format && strcmp(c->format, forms[i][0]) == 0) form = forms[i][1];
    if (f == TOOL_SEED_WRITTEN) snprintf(out, 256, "%s", tool_seed_fate_name(f));
    else
        snprintf(out, 256, "%s%s%s (the first in line %lld)", tool_seed_fate_name(f), *form ? ": " : "", form,
                 (long long)c->first[f]);
}

/* The pair of one row, under construction. */
typedef struct tool_seed_pair {
    hbk_text instruction, output;
    char id[256];
} tool_seed_pair;

static const char *tool_string(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

static tool_seed_fate tool_seed_oasst(const json_t *row, tool_seed_pair *p)
{
    const json_t *prompt = json_object_get(row, "prompt"), *replies = json_object_get(prompt, "replies");
    const json_t *best = NULL;
    for (size_t i = 0; i < json_array_size(replies) && !best; i++) {
        const json_t *reply = json_array_get(replies, i), *rank = json_object_get(reply, "rank");
        const char *role = tool_string(reply, "role");
        if (role && strcmp(role, "assistant") == 0 && json_is_integer(rank) && json_integer_value(rank) == 0)
            best = reply;
    }
    const json_t *const turns[2] = {prompt, best};
    hbk_text *const texts[2] = {&p->instruction, &p->output};
    for (int i = 0; i < 2; i++) {
        if (!turns[i]) return TOOL_SEED_UNRANKED;
        const char *text = tool_string(turns[i], "text"), *lang = tool_string(turns[i], "lang");
        if (!text || !lang) return TOOL_SEED_MALFORMED;
        if (strcmp(lang, "en") != 0) return TOOL_SEED_LANGUAGE;
        if (json_is_true(json_object_get(turns[i], "deleted")) ||
            json_is_false(json_object_get(turns[i], "review_result")))
            return TOOL_SEED_DELETED;
        hbk_text_add(texts[i], text);
    }
    const char *id = tool_string(row, "message_tree_id");
    if (id && *id) snprintf(p->id, sizeof p->id, "%s", id);
    return TOOL_SEED_WRITTEN;
}

/* Alpaca's fields, of the row itself or of a seed task's first instance. */
static tool_seed_fate tool_seed_fields(const json_t *row, const json_t *instance, tool_seed_pair *p)
{
    const char *instruction = tool_string(row, "instruction"), *output = tool_string(instance, "output");
    const char *input = tool_string(instance, "input");
    if (instruction && !json_object_get(instance, "output")) return TOOL_SEED_NO_OUTPUT;
    if (output && !json_object_get(row, "instruction")) return TOOL_SEED_NO_INSTRUCTION;
    if (!instruction || !output) return TOOL_SEED_MALFORMED;
    hbk_text_add(&p->instruction, instruction);
    if (input && *input && *instruction) hbk_text_printf(&p->instruction, "\n\n%s", input);
    hbk_text_add(&p->output, output);
    return TOOL_SEED_WRITTEN;
}

/* The first person's turn of a conversation and the answer right after it; what a system says before is
   not part of the pair. */
static tool_seed_fate tool_seed_turns(const json_t *turns, const char *who, const char *what,
                                      tool_seed_pair *p)
{
    static const char *const people[] = {"user", "human"}, *const machines[] = {"assistant", "gpt"};
    int found = 0; /* 1: the person's turn, 2: both */
    for (size_t i = 0; i < json_array_size(turns) && found < 2; i++) {
        const json_t *turn = json_array_get(turns, i);
        const char *role = tool_string(turn, who), *text = tool_string(turn, what);
        if (json_is_string(turn)) { /* conversations of plain strings begin with the person */
            text = json_string_value(turn);
            role = i == 0 ? people[0] : machines[0];
        }
        if (!role || !text) return TOOL_SEED_MALFORMED;
        if (strcmp(role, "system") == 0 && found == 0) continue;
        const char *const *roles = found == 0 ? people : machines;
        if (strcmp(role, roles[0]) != 0 && strcmp(role, roles[1]) != 0) return TOOL_SEED_UNANSWERED;
        hbk_text_add(found == 0 ? &p->instruction : &p->output, text);
        found++;
    }
    return found == 2 ? TOOL_SEED_WRITTEN : TOOL_SEED_UNANSWERED;
}

static tool_seed_fate tool_seed_guanaco(const json_t *row, tool_seed_pair *p)
{
    static const char human[] = "### Human:", machine[] = "### Assistant:";
    const char *text = tool_string(row, "text");
    if (!text) return TOOL_SEED_MALFORMED;
    const char *ask = strstr(text, human), *answer = ask ? strstr(ask, machine) : NULL;
    if (!answer) return TOOL_SEED_UNANSWERED;
    ask += sizeof human - 1;
    hbk_text_append(&p->instruction, ask, (size_t)(answer - ask));
    answer += sizeof machine - 1;
    const char *next = strstr(answer, human); /* the second turn, if there is one */
    hbk_text_append(&p->output, answer, next ? (size_t)(next - answer) : strlen(answer));
    hbk_text_trim(&p->instruction);
    hbk_text_trim(&p->output);
    return TOOL_SEED_WRITTEN;
}

/* The format that a row has; NULL if it is none of them. */
static const char *tool_seed_format(const json_t *row)
{
    const char *text = tool_string(row, "text");
    if (json_is_object(json_object_get(row, "prompt"))) return "oasst";
    if (json_is_array(json_object_get(row, "instances"))) return "seed_tasks";
    if (json_is_array(json_object_get(row, "messages"))) return "messages";
    if (json_is_array(json_object_get(row, "conversations"))) return "sharegpt";
    if (text && strstr(text, "### Human:")) return "guanaco";
    if (tool_string(row, "instruction") || tool_string(row, "output")) return "alpaca";
    return NULL;
}

/* The pair of a row of the given format; the id is set beforehand and replaced by the row's own. */
static tool_seed_fate tool_seed_row(const char *format, const json_t *row, tool_seed_pair *p)
{
    const char *id = tool_string(row, "id");
    if (id && *id) snprintf(p->id, sizeof p->id, "%s", id);
    tool_seed_fate fate;
    if (strcmp(format, "oasst") == 0) fate = tool_seed_oasst(row, p);
    else if (strcmp(format, "seed_tasks") == 0)
        fate = tool_seed_fields(row, json_array_get(json_object_get(row, "instances"), 0), p);
    else if (strcmp(format, "alpaca") == 0) fate = tool_seed_fields(row, row, p);
    else if (strcmp(format, "messages") == 0)
        fate = tool_seed_turns(json_object_get(row, "messages"), "role", "content", p);
    else if (strcmp(format, "sharegpt") == 0)
        fate = tool_seed_turns(json_object_get(row, "conversations"), "from", "value", p);
    else fate = tool_seed_guanaco(row, p);
    if (fate != TOOL_SEED_WRITTEN) return fate;
    const char *const texts[2] = {hbk_text_string(&p->instruction), hbk_text_string(&p->output)};
    for (int i = 0; i < 2; i++)
        if (texts[i][strspn(texts[i], " \t\r\n\f\v")] == 0) return TOOL_SEED_EMPTY;
    return TOOL_SEED_WRITTEN;
}

static bool tool_seed_write(hbk_jsonl_writer *w, const tool_seed_pair *p, hbk_error *err)
{
    if (!hbk_text_ok(&p->instruction, err) || !hbk_text_ok(&p->output, err)) return false;
    json_t *row = json_pack("{s:s, s:s, s:s, s:s}", "id", p->id, "instruction",
                            hbk_text_string(&p->instruction), "output", hbk_text_string(&p->output),
                            "source", "seed");
    bool ok = row ? hbk_jsonl_write(w, row, err)
                  : hbk_fail(err, HBK_ERROR_MEMORY, "pair %s: its row cannot be built: memory is out", p->id);
    json_decref(row);
    return ok;
}

/* Converts the rows that are left in the reader; *counts is filled as far as it gets. */
static bool tool_seed_rows(hbk_jsonl_reader *r, hbk_jsonl_writer *w, const char *input, hbk_int limit,
                           tool_seed_counts *counts, hbk_error *err)
{
    tool_seed_pair p;
    memset(&p, 0, sizeof p);
    json_t *row;
    int got = 0;
    bool ok = true;
    while (ok && (limit <= 0 || counts->fates[TOOL_SEED_WRITTEN] < limit) &&
           (got = hbk_jsonl_next(r, &row, err)) > 0) {
        if (!counts->format) counts->format = tool_seed_format(row);
        if (!counts->format) {
            ok = hbk_fail_at(err, HBK_ERROR_UNSUPPORTED, input, hbk_jsonl_line(r),
                             "no format that is known: expected rows {\"instruction\", \"output\"}, or of "
                             "oasst, seed_tasks, messages, sharegpt or guanaco (seeds --help shows them)");
            break;
        }
        hbk_text_clear(&p.instruction);
        hbk_text_clear(&p.output);
        snprintf(p.id, sizeof p.id, "seed-%lld", (long long)hbk_jsonl_line(r));
        tool_seed_fate fate = tool_seed_row(counts->format, row, &p);
        if (fate == TOOL_SEED_WRITTEN) ok = tool_seed_write(w, &p, err);
        counts->rows += ok;
        counts->fates[fate] += ok;
        if (!counts->first[fate]) counts->first[fate] = hbk_jsonl_line(r);
    }
    hbk_text_free(&p.instruction);
    hbk_text_free(&p.output);
    return ok && got >= 0;
}

/* Converts file `input` into `output`, rows {"id","instruction","output","source":"seed"}, until `limit` of
   them are written (0: all). *counts (not NULL) is filled in every case. No pair at all is an error. */
static bool tool_seeds(const char *input, const char *output, hbk_int limit, tool_seed_counts *counts,
                       hbk_error *err)
{
    memset(counts, 0, sizeof *counts);
    hbk_jsonl_reader *r = hbk_jsonl_open(input, NULL, err);
    if (!r) return false;
    hbk_jsonl_writer *w = hbk_jsonl_create(output, 0, NULL, err);
    bool ok = w && tool_seed_rows(r, w, input, limit, counts, err);
    hbk_jsonl_close(r);
    ok = hbk_jsonl_finish(w, ok ? err : NULL) && ok;
    if (ok && counts->rows == 0)
        return hbk_fail_at(err, HBK_ERROR_DATA, input, 0, "holds no row (seeds --help shows the forms)");
    if (ok && counts->fates[TOOL_SEED_WRITTEN] == 0) {
        int most = TOOL_SEED_WRITTEN + 1;
        for (int i = most; i < TOOL_SEED_FATE_COUNT; i++)
            if (counts->fates[i] > counts->fates[most]) most = i;
        char reason[256];
        tool_seed_reason(counts, (tool_seed_fate)most, reason);
        return hbk_fail_at(err, HBK_ERROR_DATA, input, 0, "no pair in %lld rows, most of them %s",
                           (long long)counts->rows, reason);
    }
    return ok;
}

#endif
