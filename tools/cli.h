/* cli.h - commands, flags and progress of a command line - public domain, see humpback.h

   A command is a row of a table: its name, its flags, its function. A flag is a row too, and that row is all
   that is said about it: the parser reads it, `--help` prints it, and where the flag belongs to an options
   struct of the library it names the field that it sets. Such a field's default is printed out of the
   library's own defaults, so that the help cannot lie.

       cli_parse    argv -> checked values: unknown, missing and malformed ones end here, with exit code 2
       cli_text, cli_int, cli_choice, cli_has    a flag's value, or its default
       cli_nth      each value of a flag that may be repeated
       cli_once     refuses that of one that may not
       cli_bind     copies what was given into an options struct
       cli_fail     a library error as one line on stderr -> exit code
       cli_watch    an hbk_progress that draws on stderr, and that Ctrl-C ends

   Include after humpback.h's implementation. */

#ifndef TOOL_CLI_H
#define TOOL_CLI_H

#include "../humpback.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { CLI_LIST = 64 }; /* most numbers of a CLI_REALS */
enum { CLI_DONE = 0, CLI_FAILED = 1, CLI_MISUSED = 2, CLI_INTERRUPTED = 130 };

/* ---- what a command line can hold ------------------------------------------------ */

typedef enum cli_kind {
    CLI_SWITCH,  /* takes no value                                   field: bool, set to true */
    CLI_OFF,     /* likewise                                                bool, set to false */
    CLI_TEXT,    /* any text                                                const char * */
    CLI_INT,     /* a whole number from low to high                         hbk_int */
    CLI_REAL,    /* a number from low to high                               double */
    CLI_REALS,   /* several of them, by commas                              none: cli_reals reads it */
    CLI_SEED,    /* a whole number from 0 on                                uint64_t */
    CLI_CHOICE,  /* one of the words of `value`, "linear|cosine"            an enum: the word's number */
    CLI_TARGETS  /* projections: "q_proj,v_proj" or "all"                   unsigned */
} cli_kind;

/* A row: {name, kind, value, initial, help, low, high, field}.
   value    what --help calls the value; of a CLI_CHOICE the words themselves
   initial  the default, used where the flag is not given; one in brackets, "(the model's)", is only told;
            NULL: none, or, for a field, what the library's defaults hold
   low      of a CLI_TEXT: 1 if the flag must be given
   field    offset in the group's options struct, or CLI_FREE */
typedef struct cli_flag {
    const char *name; /* without the dashes */
    cli_kind kind;
    const char *value, *initial, *help;
    double low, high;
    size_t field;
} cli_flag;
#define CLI_FREE SIZE_MAX
#define CLI_END {NULL, CLI_SWITCH, NULL, NULL, NULL, 0, 0, 0}
#define CLI_MOST 1e15 /* "no upper limit" */

/* Flags that belong together. Of a flag with stages, "m0 mt", there are also --m0-NAME and --mt-NAME. */
typedef struct cli_group {
    const char *title;
    const cli_flag *flags; /* ended by CLI_END */
    const char *stages;    /* or NULL */
    void (*defaults)(void *options, bool full); /* of the struct that the fields are in, or NULL */
} cli_group;

struct cli;
enum { CLI_GROUPS = 8 };
typedef struct cli_command {
    const char *name, *summary;
    const char *usage; /* what follows the name */
    int least, most;   /* operands: arguments that are no flags */
    const cli_group *groups[CLI_GROUPS]; /* ended by NULL, or full */
    int (*run)(struct cli *c);
} cli_command;

typedef struct cli_given {
    const cli_flag *flag;
    char stage[16]; /* "" or a stage of its group */
    const char *text;
} cli_given;

/* What is drawn on stderr, and since when. */
typedef struct cli_meter {
    bool terminal;      /* one line, rewritten in place; else plain lines */
    bool drawn;         /* `line` is on the screen as it is */
    char stage[64];
    char line[320];
    double began, shown; /* seconds: when the stage was first heard of, when a line was last written */
    hbk_int first;       /* what was done then: a resumed stage does not start at 0 */
} cli_meter;

typedef struct cli {
    const cli_command *command;
    cli_given *given;
    const char **operands;
    int n_given, n_operands;
    hbk_error err;
    cli_meter meter;
    hbk_progress progress;
} cli;

/* ---- values ------------------------------------------------------------------- */

/* "humpback: ..." about wrong use, and where help is; returns the exit code. */
static int cli_misused(const cli *c, const char *fmt, ...) HBK_PRINTF(2, 3);
static int cli_misused(const cli *c, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fputs("humpback: ", stderr);
    vfprintf(stderr, fmt, args);
    fprintf(stderr, "; see humpback %s%s--help\n", c->command ? c->command->name : "", c->command ? " " : "");
    va_end(args);
    return CLI_MISUSED;
}

/* The number of the word `text` in "one|two|three"; -1 if it is none of them. */
static int cli_word(const char *words, const char *text)
{
    size_t n = strlen(text);
    for (int i = 0;; i++) {
        size_t length = strcspn(words, "|");
        if (length == n && strncmp(words, text, n) == 0) return i;
        if (!words[length]) return -1;
        words += length + 1;
    }
}

static bool cli_read_int(const char *text, long long *value)
{
    char *end;
    errno = 0;
    *value = strtoll(text, &end, 10);
    return end != text && !*end && errno == 0;
}

static bool cli_read_real(const char *text, double *value)
{
    char *end;
    *value = strtod(text, &end);
    return end != text && !*end && isfinite(*value);
}

/* The numbers of "4.5,4" into values[most]; their number, or -1 where that is no such list. */
static int cli_reals(const char *text, double *values, int most)
{
    int n = 0;
    char *end;
    do {
        if (n == most) return -1;
        values[n] = strtod(text, &end);
        if (end == text || !isfinite(values[n]) || (*end && *end != ',')) return -1;
        n++;
        text = end + 1;
    } while (*end);
    return n;
}

/* Says what is wrong with a value; "" if nothing is. */
static void cli_check(const cli_flag *f, const char *text, char wrong[256])
{
    long long whole = 0;
    double number = 0;
    unsigned bits;
    hbk_error err;
    wrong[0] = 0;
    if (f->kind == CLI_INT || f->kind == CLI_SEED) {
        bool ok = cli_read_int(text, &whole);
        if (!ok) snprintf(wrong, 256, "\"%.60s\" is no whole number", text);
        number = (double)whole;
    }
    if (f->kind == CLI_REAL && !cli_read_real(text, &number))
        snprintf(wrong, 256, "\"%.60s\" is no number", text);
    if (f->kind == CLI_REALS) {
        double list[CLI_LIST];
        int n = cli_reals(text, list, CLI_LIST);
        if (n < 0) snprintf(wrong, 256, "\"%.60s\" is no list of numbers such as 4.5,4", text);
        for (int i = 0; i < n; i++) /* the first that is out of range stands for all */
            if (i == 0 || (number >= f->low && number <= f->high)) number = list[i];
    }
    if (f->kind == CLI_CHOICE && cli_word(f->value, text) < 0)
        snprintf(wrong, 256, "\"%.60s\" is none of %s", text, f->value);
    if (f->kind == CLI_TARGETS && !hbk_adapter_targets(text, &bits, &err))
        snprintf(wrong, 256, "%.250s", err.message);
    if (wrong[0] || f->kind == CLI_TEXT || f->kind == CLI_CHOICE) return;
    double high = f->kind == CLI_SEED ? CLI_MOST * 1e4 : f->high;
    if (number < f->low) snprintf(wrong, 256, "%.60s is too small: at least %g", text, f->low);
    if (number > high) snprintf(wrong, 256, "%.60s is too large: at most %g", text, high);
}

/* Writes a checked value into a field. */
static void cli_store(const cli_flag *f, const char *text, void *field)
{
    long long whole = 0;
    if (f->kind == CLI_INT || f->kind == CLI_SEED) cli_read_int(text, &whole);
    switch (f->kind) {
    case CLI_SWITCH:
    case CLI_OFF: *(bool *)field = f->kind == CLI_SWITCH; break;
    case CLI_TEXT: *(const char **)field = text; break;
    case CLI_REALS: break; /* no field holds a list */
    case CLI_INT: *(hbk_int *)field = whole; break;
    case CLI_REAL: cli_read_real(text, (double *)field); break;
    case CLI_SEED: *(uint64_t *)field = (uint64_t)whole; break;
    case CLI_CHOICE: *(int *)field = cli_word(f->value, text); break;
    case CLI_TARGETS: hbk_adapter_targets(text, (unsigned *)field, NULL); break;
    }
}

/* Copies what was given of a group, for `stage` or (stage "") for all, into its options struct. */
static void cli_bind(const cli *c, const cli_group *g, const char *stage, void *options)
{
    for (int i = 0; i < c->n_given; i++) {
        const cli_given *v = &c->given[i];
        for (const cli_flag *f = g->flags; f->name; f++)
            if (f == v->flag && strcmp(v->stage, stage) == 0 && f->field != CLI_FREE)
                cli_store(f, v->text, (char *)options + f->field);
    }
}

/* The flag and, in `stage`, its prefix; NULL if the command has none of that name. */
static const cli_flag *cli_find(const cli_command *command, const char *name, size_t n, char stage[16])
{
    for (int i = 0; i < CLI_GROUPS && command->groups[i]; i++) {
        const cli_group *g = command->groups[i];
        const char *at = "";
        do { /* the name itself, then behind each stage's */
            size_t prefix = strcspn(at, " "), skip = prefix ? prefix + 1 : 0;
            bool fits = n > skip && strncmp(name, at, prefix) == 0 && (!skip || name[prefix] == '-');
            for (const cli_flag *f = g->flags; fits && f->name; f++)
                if (strlen(f->name) == n - skip && strncmp(f->name, name + skip, n - skip) == 0) {
                    snprintf(stage, 16, "%.*s", (int)prefix, at);
                    return f;
                }
            at = *at ? at + prefix : g->stages ? g->stages : "";
            at += strspn(at, " ");
        } while (*at);
    }
    return NULL;
}

/* The last value given for a flag in `stage` ("": without one); NULL if it was not given. */
static const char *cli_stage_text(const cli *c, const char *stage, const char *name)
{
    char own[16];
    const cli_flag *f = cli_find(c->command, name, strlen(name), own);
    HBK_ASSERT(f && !own[0] && "no such flag in the command's table");
    for (int i = c->n_given; i-- > 0;)
        if (c->given[i].flag == f && strcmp(c->given[i].stage, stage) == 0) return c->given[i].text;
    return NULL;
}

/* The last value given for a flag without a stage, or its default; NULL if there is neither. */
static const char *cli_text(const cli *c, const char *name)
{
    char stage[16];
    const cli_flag *f = cli_find(c->command, name, strlen(name), stage);
    const char *given = cli_stage_text(c, "", name);
    if (given) return given;
    return f->initial && f->initial[0] != '(' ? f->initial : NULL;
}

/* The value number k, from 0, of a flag that may be repeated; NULL: it was not given so often. */
static const char *cli_nth(const cli *c, const char *name, int k)
{
    char stage[16];
    const cli_flag *f = cli_find(c->command, name, strlen(name), stage);
    for (int i = 0; i < c->n_given; i++)
        if (c->given[i].flag == f && !c->given[i].stage[0] && k-- == 0) return c->given[i].text;
    return NULL;
}

/* A flag that takes one file or folder and was given several: all but the last would be left out in silence.
   0 or an exit code. */
static int cli_once(const cli *c, const char *name, const char *remedy)
{
    if (!cli_nth(c, name, 1)) return CLI_DONE;
    return cli_misused(c, "--%s is given more than once, and takes one: %s", name, remedy);
}

static bool cli_has(const cli *c, const char *name)
{
    char stage[16];
    const cli_flag *f = cli_find(c->command, name, strlen(name), stage);
    for (int i = 0; i < c->n_given; i++)
        if (c->given[i].flag == f && !c->given[i].stage[0]) return true;
    return false;
}

static hbk_int cli_int(const cli *c, const char *name)
{
    const char *text = cli_text(c, name);
    return text ? (hbk_int)strtoll(text, NULL, 10) : 0;
}

static double cli_real(const cli *c, const char *name)
{
    const char *text = cli_text(c, name);
    return text ? strtod(text, NULL) : 0;
}

static int cli_choice(const cli *c, const char *name)
{
    char stage[16];
    const cli_flag *f = cli_find(c->command, name, strlen(name), stage);
    return cli_word(f->value, cli_text(c, name));
}

/* ---- parsing ------------------------------------------------------------------- */

/* One flag at argv[*i]: "--name value", "--name=value" or a switch. Returns an exit code. */
static int cli_parse_flag(cli *c, int argc, char **argv, int *i)
{
    const char *name = argv[*i] + 2, *text = strchr(name, '=');
    size_t n = text ? (size_t)(text - name) : strlen(name);
    cli_given *v = &c->given[c->n_given];
    char wrong[256];
    v->flag = cli_find(c->command, name, n, v->stage);
    if (!v->flag) return cli_misused(c, "unknown flag %.60s", argv[*i]);
    bool takes_none = v->flag->kind == CLI_SWITCH || v->flag->kind == CLI_OFF;
    if (takes_none && text) return cli_misused(c, "--%.*s takes no value", (int)n, name);
    if (text) v->text = text + 1;
    else if (takes_none) v->text = "";
    else {
        const char *next = *i + 1 < argc ? argv[*i + 1] : NULL;
        char stage[16];
        if (!next || (strncmp(next, "--", 2) == 0 && cli_find(c->command, next + 2, strlen(next + 2), stage)))
            return cli_misused(c, "--%.*s needs a value, %s", (int)n, name, v->flag->value);
        v->text = next;
        ++*i;
    }
    if (!takes_none) {
        cli_check(v->flag, v->text, wrong);
        if (wrong[0]) return cli_misused(c, "--%.*s: %s", (int)n, name, wrong);
    }
    c->n_given++;
    return CLI_DONE;
}

/* Sorts the arguments into flags and operands. c->given and c->operands hold argc entries each. */
static int cli_parse(cli *c, int argc, char **argv)
{
    bool flags = true;
    for (int i = 0; i < argc; i++) {
        if (flags && strcmp(argv[i], "--") == 0) flags = false;
        else if (flags && strncmp(argv[i], "--", 2) == 0) {
            int code = cli_parse_flag(c, argc, argv, &i);
            if (code) return code;
        } else if (flags && argv[i][0] == '-' && argv[i][1]) {
            return cli_misused(c, "unknown flag %.60s", argv[i]);
        } else if (c->n_operands == c->command->most) {
            return cli_misused(c, "unexpected argument %.60s", argv[i]);
        } else {
            c->operands[c->n_operands++] = argv[i];
        }
    }
    if (c->n_operands < c->command->least)
        return cli_misused(c, "%s needs %s", c->command->name, c->command->usage);
    for (int i = 0; i < CLI_GROUPS && c->command->groups[i]; i++)
        for (const cli_flag *f = c->command->groups[i]->flags; f->name; f++)
            if (f->kind == CLI_TEXT && f->low > 0 && !cli_has(c, f->name))
                return cli_misused(c, "%s needs --%s %s", c->command->name, f->name, f->value);
    return CLI_DONE;
}

/* ---- help ---------------------------------------------------------------------- */

/* A field's value as text. */
static void cli_show(const cli_flag *f, const void *options, char out[64])
{
    const char *field = (const char *)options + f->field, *word = f->value;
    long long whole = 0;
    double number = 0;
    if (f->kind == CLI_REAL) memcpy(&number, field, sizeof number);
    if (f->kind == CLI_INT || f->kind == CLI_SEED) memcpy(&whole, field, sizeof whole);
    out[0] = 0;
    if (f->kind == CLI_REAL) snprintf(out, 64, "%g", number);
    else if (f->kind == CLI_CHOICE) {
        int i;
        for (memcpy(&i, field, sizeof i); i > 0; i--) word += strcspn(word, "|") + 1;
        snprintf(out, 64, "%.*s", (int)strcspn(word, "|"), word);
    } else if (f->kind == CLI_INT || f->kind == CLI_SEED) {
        snprintf(out, 64, "%lld", whole);
    } else {
        snprintf(out, 64, "off");
    }
}

/* A flag's default, and behind it what --full makes of it. */
static void cli_show_default(const cli_group *g, const cli_flag *f, char out[160])
{
    union { /* what the fields of any group are in */
        hbk_train_options train;
        hbk_decode_options decode;
        hbk_augment_options augment;
        hbk_curate_options curate;
        hbk_corpus_options corpus;
    } lora, full;
    char a[64], b[64];
    size_t n = f->initial ? strlen(f->initial) : 0;
    if (n && f->initial[0] == '(') snprintf(out, 160, "%.*s", (int)HBK__MIN(n - 2, 150), f->initial + 1);
    else if (n) snprintf(out, 160, "%.150s", f->initial);
    else if (f->kind == CLI_SWITCH || f->kind == CLI_OFF) snprintf(out, 160, "off");
    else if (f->kind == CLI_TEXT) snprintf(out, 160, "%s", f->low > 0 ? "required" : "none");
    else {
        HBK_ASSERT(g->defaults && f->field != CLI_FREE && "a flag without a default");
        memset(&lora, 0, sizeof lora);
        memset(&full, 0, sizeof full);
        g->defaults(&lora, false);
        g->defaults(&full, true);
        cli_show(f, &lora, a);
        cli_show(f, &full, b);
        snprintf(out, 160, strcmp(a, b) ? "%s; with --full %s" : "%s", a, b);
    }
}

static void cli_help_command(const cli_command *command)
{
    char left[160], initial[160];
    printf("humpback %s %s\n\n%s\n", command->name, command->usage, command->summary);
    for (int i = 0; i < CLI_GROUPS && command->groups[i]; i++) {
        const cli_group *g = command->groups[i];
        printf("\n%s\n", g->title);
        for (const cli_flag *f = g->flags; f->name; f++) {
            bool takes_none = f->kind == CLI_SWITCH || f->kind == CLI_OFF;
            snprintf(left, sizeof left, "--%s %s", f->name, takes_none ? "" : f->value);
            cli_show_default(g, f, initial);
            printf("  %-24s ", left);
            if (strlen(left) > 25) printf("\n%27s", "");
            printf("%s [%s]\n", f->help, initial);
        }
        if (g->stages) {
            int n = (int)strcspn(g->stages, " ");
            printf("  Each also for one stage alone, with its name in front; stages: %s.\n"
                   "  Example: --%s X --%.*s-%s Y is Y in %.*s, X in the others.\n",
                   g->stages, g->flags->name, n, g->stages, g->flags->name, n, g->stages);
        }
    }
}

static void cli_help(const cli_command *commands)
{
    printf("humpback " HBK_VERSION ": instruction backtranslation on your own machine\n\n"
           "humpback COMMAND [flags]     humpback COMMAND --help     humpback --version\n\n");
    for (; commands->name; commands++) printf("  %-10s %s\n", commands->name, commands->summary);
    printf("\nExit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted with everything so far kept.\n"
           "Where other programs keep the cores busy, set OMP_WAIT_POLICY=passive: threads then sleep\n"
           "while they wait for each other; spinning can make them 20 times as slow.\n");
}

/* ---- progress ------------------------------------------------------------------ */

static volatile sig_atomic_t cli_interrupted; /* what a signal handler may touch is global */

static void cli_on_signal(int number)
{
    (void)number;
    cli_interrupted = 1;
}

static double cli_now(void *ctx)
{
    struct timespec t;
    (void)ctx;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Most bytes of memory that the process ever held at once, mapped files that were read included. */
static double cli_peak_memory(void)
{
    struct rusage usage;
    double unit = 1024;
#ifdef __APPLE__
    unit = 1; /* bytes there, kilobytes elsewhere */
#endif
    return getrusage(RUSAGE_SELF, &usage) == 0 ? (double)usage.ru_maxrss * unit : 0;
}

/* Columns of the terminal that stderr is. */
static int cli_columns(void)
{
    struct winsize size;
    return ioctl(2, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? (int)size.ws_col : 80;
}

/* Writes m->line, on a terminal over the one before. */
static void cli_draw(cli_meter *m, double now)
{
    if (m->terminal) fprintf(stderr, "\r%.*s\033[K", cli_columns() - 1, m->line);
    else fprintf(stderr, "%s\n", m->line);
    m->shown = now;
    m->drawn = true;
}

/* Ends the stage on the screen: its last line stays. */
static void cli_draw_end(cli_meter *m)
{
    if (!m->stage[0]) return;
    if (!m->drawn) cli_draw(m, m->shown);
    if (m->terminal) fputc('\n', stderr);
    m->stage[0] = 0;
}

static void cli_duration(double seconds, char out[32])
{
    long s = (long)(seconds + 0.5);
    if (s < 3600) snprintf(out, 32, "%ld:%02ld", s / 60, s % 60);
    else snprintf(out, 32, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
}

/* One blank where there are several. */
static void cli_squeeze(char *s)
{
    char *to = s;
    for (; *s; s++)
        if (*s != ' ' || s[1] != ' ') *to++ = *s;
    *to = 0;
}

static bool cli_on_progress(void *ctx, const char *stage, hbk_int done, hbk_int total, const char *unit,
                            const char *note)
{
    static const char full[] = "####################", empty[] = "....................";
    cli_meter *m = (cli_meter *)ctx;
    double now = cli_now(NULL), share = total > 0 ? (double)done / (double)total : 0;
    char line[176], of[32] = "", rate[32] = "", left[32] = "";
    int n = (int)(share * 20);
    if (strncmp(m->stage, stage, sizeof m->stage - 1) != 0) {
        cli_draw_end(m);
        snprintf(m->stage, sizeof m->stage, "%s", stage);
        m->began = m->shown = now;
        m->first = done;
    }
    double per_second = now > m->began ? (double)(done - m->first) / (now - m->began) : 0;
    if (total > 0) snprintf(of, sizeof of, "/%lld", (long long)total);
    if (per_second > 0) snprintf(rate, sizeof rate, "  %.3g/s", per_second);
    if (done >= total) cli_duration(now - m->began, left);
    else if (per_second > 0) cli_duration((double)(total - done) / per_second, left);
    snprintf(line, sizeof line, "%3.0f%%  %lld%s %s%s%s%s%s  %.0f MB%s%s", floor(share * 100),
             (long long)done, of, unit, rate, left[0] ? "  " : "", left,
             left[0] && done < total ? " left" : "", cli_peak_memory() * 1e-6, note[0] ? "  " : "", note);
    if (m->terminal && strlen(line) + 13 > (size_t)cli_columns()) { /* share and speed can be spared */
        snprintf(m->line, sizeof m->line, "%.12s %lld%s %s%s %.0f MB %s", stage, (long long)done, of, left,
                 left[0] && done < total ? " left" : "", cli_peak_memory() * 1e-6, note);
        cli_squeeze(m->line);
    } else if (m->terminal && total > 0 && strlen(line) + 33 < (size_t)cli_columns()) { /* there is room */
        snprintf(m->line, sizeof m->line, "%-11.24s %.*s%.*s %s", stage, n, full, 20 - n, empty, line);
    } else {
        snprintf(m->line, sizeof m->line, "%-11.24s %s", stage, line);
    }
    m->drawn = false;
    if (now - m->shown >= (m->terminal ? 0.1 : 5)) cli_draw(m, now);
    return !cli_interrupted;
}

/* The progress for a long command. From here on the first Ctrl-C ends it in good order, the second one at
   once. */
static const hbk_progress *cli_watch(cli *c)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = cli_on_signal;
    action.sa_flags = SA_RESTART | (int)SA_RESETHAND;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    c->meter.terminal = isatty(2);
    c->progress.call = cli_on_progress;
    c->progress.now = cli_now;
    c->progress.ctx = &c->meter;
    return &c->progress;
}

/* ---- endings ------------------------------------------------------------------- */

/* The library's error on one line, below what is drawn; the exit code that it means. */
static int cli_fail(cli *c)
{
    if (c->meter.stage[0] && c->meter.terminal) fputc('\n', stderr);
    fprintf(stderr, "humpback: %s\n", c->err.message);
    return c->err.code == HBK_ERROR_CANCELLED ? CLI_INTERRUPTED : CLI_FAILED;
}

static int cli_end(cli *c, bool ok)
{
    if (!ok) return cli_fail(c);
    cli_draw_end(&c->meter);
    return CLI_DONE;
}

/* Prints a result for programs and lets go of it. */
static bool cli_print_json(json_t *value, hbk_error *err)
{
    hbk_text text;
    memset(&text, 0, sizeof text);
    bool ok = hbk_json_text(&text, value, JSON_REAL_PRECISION(9), err);
    if (ok) puts(hbk_text_string(&text));
    hbk_text_free(&text);
    json_decref(value);
    return ok;
}

/* A line for people: kept away from where a program reads. */
static void cli_say(const cli *c, const char *fmt, ...) HBK_PRINTF(2, 3);
static void cli_say(const cli *c, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vfprintf(cli_has(c, "json") ? stderr : stdout, fmt, args);
    va_end(args);
}

/* Runs the command that argv names. */
static int cli_main(const cli_command *commands, int argc, char **argv)
{
    cli c;
    memset(&c, 0, sizeof c);
    const char *name = argc > 1 ? argv[1] : "--help";
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        cli_help(commands);
        return CLI_DONE;
    }
    if (strcmp(name, "--version") == 0) {
        puts("humpback " HBK_VERSION);
        return CLI_DONE;
    }
    for (const cli_command *command = commands; command->name && !c.command; command++)
        if (strcmp(command->name, name) == 0) c.command = command;
    if (!c.command) return cli_misused(&c, "unknown command %.60s", name);
    for (int i = 2; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            cli_help_command(c.command);
            return CLI_DONE;
        }
    c.given = (cli_given *)calloc((size_t)argc, sizeof *c.given);
    c.operands = (const char **)calloc((size_t)argc, sizeof *c.operands);
    int code = CLI_FAILED;
    if (c.given && c.operands) {
        code = cli_parse(&c, argc - 2, argv + 2);
        if (code == CLI_DONE) code = c.command->run(&c);
    } else {
        fputs("humpback: out of memory\n", stderr);
    }
    free(c.given);
    free(c.operands);
    if ((fflush(stdout) != 0 || ferror(stdout)) && code == CLI_DONE) {
        fputs("humpback: the output cannot be written\n", stderr);
        code = CLI_FAILED;
    }
    return code;
}

#endif
