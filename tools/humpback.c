/* humpback - the command line of humpback.h - public domain

   Each command is a function that reads its flags, calls the library and prints what came of it:

     world.h     what commands share: flags of the library's options; models, templates, adapters, tags
     generate.h  tokenize, logits, generate, chat
     finetune.h  finetune
     stages.h    corpus, seeds, augment, rewrite, curate, run, demo, reproduce, report
     export.h    export
     inspect.h   inspect
     plan.h      plan
     bench.h     bench

   Tables here say which flags there are; cli.h parses them, and prints them for --help.

   Results go to stdout, progress and errors to stderr. */

#define HUMPBACK_IMPLEMENTATION
#include "../humpback.h"

#include "cli.h"

#include "bench.h"
#include "curve.h"
#include "demo.h"
#include "findings.h"
#include "inspect.h"
#include "report.h"
#include "seeds.h"

#include "world.h"

#include "export.h"
#include "finetune.h"
#include "plan.h"
#include "generate.h"
#include "stages.h"

/* ==== COMMANDS AND THEIR OWN FLAGS =========================================== */

#define CMD_FLAG_FORCE(what)                                                                                 \
    {                                                                                                        \
        "force", CLI_SWITCH, NULL, NULL, what, 0, 0, CLI_FREE                                                \
    }
#define CMD_FLAG_MODEL                                                                                       \
    {"model", CLI_TEXT, "M", NULL, "a Hugging Face folder, a .gguf, or a llama2.c .bin", 1, 0, CLI_FREE},    \
    {                                                                                                        \
        "tokenizer", CLI_TEXT, "F", NULL, "the tokenizer, where the model is one file", 0, 0, CLI_FREE       \
    }
#define CMD_FLAG_PRECISION                                                                                   \
    {                                                                                                        \
        "precision", CLI_CHOICE, "f32|bf16", "f32",                                                          \
            "of products: bf16 rounds both sides, for speed, where the processor has it", 0, 0, CLI_FREE     \
    }
#define CMD_FLAG_ADAPTER(what)                                                                               \
    {                                                                                                        \
        "adapter", CLI_TEXT, "D", NULL, what ": a PEFT folder, a .gguf, or one of finetune --full", 0, 0,    \
            CLI_FREE                                                                                         \
    }
#define CMD_FLAG_TEMPLATE(more)                                                                              \
    {                                                                                                        \
        "template", CLI_TEXT, "NAME|F", "(that of the finetuned folder, else of the model)",                 \
            "llama2, llama3, chatml, plain" more " or a JSON file", 0, 0, CLI_FREE                           \
    }
#define CMD_FLAG_STOP                                                                                        \
    {                                                                                                        \
        "stop", CLI_TEXT, "T", NULL, "a text that ends an answer, which is cut before it; may be repeated",  \
            0, 0, CLI_FREE                                                                                   \
    }
#define CMD_FLAGS_TEXT                                                                                       \
    {"bos", CLI_CHOICE, "auto|yes|no", "auto", "bos before raw text; auto: where the format has it",         \
     0,     0,          CLI_FREE},                                                                           \
    {                                                                                                        \
        "special", CLI_SWITCH, NULL, NULL, "special tokens spelled in raw text become their ids", 0, 0,      \
            CLI_FREE                                                                                         \
    }

#define CMD_FLAG_WORLD                                                                                       \
    {                                                                                                        \
        "world", CLI_CHOICE, "plain|hard", "plain", "hard: with rumours, and requests made of several", 0,   \
            0, CLI_FREE                                                                                      \
    }

static const cli_flag cmd_demo_flags[] = {
    {"out", CLI_TEXT, "D", "humpback-demo", "the run folder", 0, 0, CLI_FREE},
    {"seed", CLI_SEED, "N", "1", "of the miniature world and of all random choices", 0, 0, CLI_FREE},
    CMD_FLAG_WORLD,
    {"lora", CLI_SWITCH, NULL, NULL, "finetune adapters instead of whole models", 0, 0, CLI_FREE},
    CMD_FLAG_JSON,
    CLI_END};
static const cli_flag cmd_reproduce_flags[] = {
    {"out", CLI_TEXT, "D", "humpback-reproduce", "the folder; one that was begun is continued", 0, 0,
     CLI_FREE},
    {"worlds", CLI_TEXT, "LIST", "(20,21,22,23,24; with --quick the first three)",
     "seeds of the miniature worlds", 0, 0, CLI_FREE},
    CMD_FLAG_WORLD,
    {"quick", CLI_SWITCH, NULL, NULL, "the main line and findings a and b only, in smaller worlds", 0, 0,
     CLI_FREE},
    {"jobs", CLI_INT, "N", "2", "rows made side by side, each on one thread", 1, REPRO_JOBS, CLI_FREE},
    CMD_FLAG_JSON,
    CLI_END};
static const cli_flag cmd_tokenize_flags[] = {
    {"model", CLI_TEXT, "M", NULL, "a folder with a tokenizer", 0, 0, CLI_FREE},
    {"tokenizer", CLI_TEXT, "F", NULL, "a tokenizer.json, tokenizer.model, tokenizer.bin or .gguf instead", 0,
     0, CLI_FREE},
    {"text", CLI_TEXT, "T", NULL, "a text", 0, 0, CLI_FREE},
    {"file", CLI_TEXT, "F", NULL, "a file that is one text", 0, 0, CLI_FREE},
    {"lines", CLI_TEXT, "F", NULL, "a file whose every line is a text", 0, 0, CLI_FREE},
    {"jsonl", CLI_TEXT, "F", NULL, "a file with one JSON string a line, each a text", 0, 0, CLI_FREE},
    {"decode", CLI_TEXT, "IDS", NULL, "ids like 1,15043,3186: prints their text", 0, 0, CLI_FREE},
    {"decode-jsonl", CLI_TEXT, "F", NULL, "a file with one JSON array of ids a line: prints JSON strings", 0,
     0, CLI_FREE},
    CMD_FLAGS_TEXT,
    CLI_END};
static const cli_flag cmd_logits_flags[] = {
    CMD_FLAG_MODEL,
    CMD_FLAG_PRECISION,
    CMD_FLAG_ADAPTER("finetuned weights"),
    {"ids", CLI_TEXT, "IDS", NULL, "token ids like 1,15043,3186", 0, 0, CLI_FREE},
    {"text", CLI_TEXT, "T", NULL, "a raw text instead", 0, 0, CLI_FREE},
    {"out", CLI_TEXT, "F", NULL, "safetensors with \"logits\", f32 [tokens, vocabulary]", 1, 0, CLI_FREE},
    CMD_FLAGS_TEXT,
    CLI_END};
static const cli_flag cmd_generate_flags[] = {
    CMD_FLAG_MODEL,
    CMD_FLAG_PRECISION,
    CMD_FLAG_ADAPTER("finetuned weights"),
    {"prompt", CLI_TEXT, "T", NULL, "an instruction; its answer goes to stdout; may be repeated", 0, 0,
     CLI_FREE},
    {"data", CLI_TEXT, "F", NULL, "many: JSONL rows with \"instruction\" or \"prompt\"", 0, 0, CLI_FREE},
    {"out", CLI_TEXT, "F", NULL, "the rows of --data with \"output\" and \"finish\"", 0, 0, CLI_FREE},
    CMD_FLAG_TEMPLATE(", none (raw text)"),
    {"tag", CLI_TEXT, "T", "(the finetuned folder's)", "appended to the instruction", 0, 0, CLI_FREE},
    {"inference-tags", CLI_TEXT, "LIST", "(the finetuned folder's)", "none, seed, web or seed,web", 0, 0,
     CLI_FREE},
    {"tag-seed", CLI_TEXT, "T", HBK_TAG_SEED, "what --inference-tags calls seed", 0, 0, CLI_FREE},
    {"tag-web", CLI_TEXT, "T", HBK_TAG_WEB, "and web", 0, 0, CLI_FREE},
    {"reverse", CLI_SWITCH, NULL, NULL, "the prompt is an output: write its instruction", 0, 0, CLI_FREE},
    CMD_FLAGS_TEXT,
    {"n", CLI_INT, "N", "1", "answers to each --prompt", 1, 1e6, CLI_FREE},
    CMD_FLAG_STOP,
    {"logprobs", CLI_INT, "N", "(off)", "log-probabilities of each token and the N likeliest, with --json", 0,
     1e6, CLI_FREE},
    {"print-ids", CLI_SWITCH, NULL, NULL, "the generated ids as a JSON array instead of the text", 0, 0,
     CLI_FREE},
    CMD_FLAG_FORCE("with --data: set a file that was begun with other options aside"),
    CMD_FLAG_JSON,
    CLI_END};
static const cli_flag cmd_chat_flags[] = {
    CMD_FLAG_MODEL,
    CMD_FLAG_PRECISION,
    CMD_FLAG_ADAPTER("finetuned weights"),
    CMD_FLAG_TEMPLATE(""),
    {"system", CLI_TEXT, "T", NULL, "said to the model before the conversation", 0, 0, CLI_FREE},
    CMD_FLAG_STOP,
    {"seed", CLI_SEED, "N", "1", "of all random choices", 0, 0, CLI_FREE},
    {"max-length", CLI_INT, "N", "(the model's context, at most 8192)", "longest conversation, in tokens", 2,
     1e9, CLI_FREE},
    CMD_FLAG_CACHE,
    CLI_END};
static const cli_flag cmd_seeds_flags[] = {
    {"out", CLI_TEXT, "F", NULL, "pairs, {\"id\",\"instruction\",\"output\",\"source\":\"seed\"} a line", 1,
     0, CLI_FREE},
    {"limit", CLI_INT, "N", "0", "stop after N pairs; 0: take all", 0, CLI_MOST, CLI_FREE},
    CMD_FLAG_JSON,
    CLI_END};
static const cli_flag cmd_finetune_flags[] = {
    CMD_FLAG_MODEL,
    CMD_FLAG_PRECISION,
    {"data", CLI_TEXT, "F", NULL,
     "rows of pairs (Alpaca), messages, ShareGPT, prompt/completion, Open Assistant trees or text", 1, 0,
     CLI_FREE},
    {"overlong", CLI_CHOICE, "drop|cut|error", "drop", "what is longer than --max-length", 0, 0, CLI_FREE},
    {"out", CLI_TEXT, "D", NULL, "the finetuned folder; one that was begun is continued", 0, 0, CLI_FREE},
    CMD_FLAG_TEMPLATE(""),
    {"reverse", CLI_SWITCH, NULL, NULL, "the backward model: from output to instruction", 0, 0, CLI_FREE},
    {"full", CLI_SWITCH, NULL, NULL, "train every weight instead of an adapter", 0, 0, CLI_FREE},
    {"init-adapter", CLI_TEXT, "D", NULL, "start from this adapter", 0, 0, CLI_FREE},
    {"tag-seed", CLI_TEXT, "T", NULL, "appended to the instruction of rows of source \"seed\"", 0, 0,
     CLI_FREE},
    {"tag-web", CLI_TEXT, "T", NULL, "appended to that of rows of source \"aug\"", 0, 0, CLI_FREE},
    {"inference-tags", CLI_TEXT, "LIST", "(the tags that are given)",
     "what generate will append: none, seed, ...", 0, 0, CLI_FREE},
    {"replay", CLI_TEXT, "F", NULL, "raw documents, JSONL rows with \"text\", mixed in", 0, 0, CLI_FREE},
    {"validation", CLI_TEXT, "F", NULL, "rows never trained on; the weights of their lowest loss are kept", 0,
     0, CLI_FREE},
    {"validation-share", CLI_REAL, "X", "(none)", "hold out this share of --data instead", 1e-9, 0.999,
     CLI_FREE},
    {"max-length", CLI_INT, "N", "(the model's context)", "longest example in tokens", 2,
     1e9, CLI_FREE},
    {"dump-labels", CLI_SWITCH, NULL, NULL, "print the first examples and their loss mask, and stop", 0, 0,
     CLI_FREE},
    {"resume", CLI_SWITCH, NULL, NULL, "accepted: what was begun is continued anyway", 0, 0, CLI_FREE},
    CMD_FLAG_JSON,
    CLI_END};
static const cli_flag cmd_augment_flags[] = {
    CMD_FLAG_MODEL,
    CMD_FLAG_PRECISION,
    CMD_FLAG_ADAPTER("the backward model"),
    {"corpus", CLI_TEXT, "F", NULL, "segments: JSONL rows with \"text\"", 1, 0, CLI_FREE},
    {"out", CLI_TEXT, "F", NULL, "candidates; a file that was begun is continued", 1, 0, CLI_FREE},
    {"prompt", CLI_TEXT, "F", "(the template's)", "a file with the backward wording, with {output}", 0, 0,
     CLI_FREE},
    CMD_FLAG_TEMPLATE(""),
    CMD_FLAG_FORCE("set a file that was begun with other options aside"),
    CMD_FLAG_JSON,
    CLI_END};
static const cli_flag cmd_rewrite_flags[] = {
    CMD_FLAG_MODEL,
    CMD_FLAG_PRECISION,
    CMD_FLAG_ADAPTER("the model that rewrites"),
    {"pairs", CLI_TEXT, "F", NULL, "what curate kept: rows with \"instruction\" and \"output\"", 1, 0,
     CLI_FREE},
    {"out", CLI_TEXT, "F", NULL, "the same rows with new outputs; a file that was begun is continued", 1, 0,
     CLI_FREE},
    {"prompt", CLI_TEXT, "F", "(the template's)",
     "a file with the rewriting wording, with {instruction} and {output}", 0, 0, CLI_FREE},
    CMD_FLAG_TEMPLATE(""),
    CMD_FLAG_FORCE("set a file that was begun with other options aside"),
    CMD_FLAG_JSON,
    CLI_END};
static const cli_flag cmd_curate_own_flags[] = {
    CMD_FLAG_MODEL,
    CMD_FLAG_PRECISION,
    CMD_FLAG_ADAPTER("the rating model"),
    {"candidates", CLI_TEXT, "F", NULL, "what augment wrote", 1, 0, CLI_FREE},
    {"out", CLI_TEXT, "F", NULL, "the pairs that are kept", 1, 0, CLI_FREE},
    {"ratings", CLI_TEXT, "F", "(beside --out, .ratings.jsonl)", "every rating; one begun is continued", 0, 0,
     CLI_FREE},
    {"rubric", CLI_TEXT, "F", "(the template's)",
     "a file with the rating wording, with {instruction} and {output}", 0, 0, CLI_FREE},
    {"backward", CLI_TEXT, "D", NULL, "the backward model, for --signal round-trip", 0, 0, CLI_FREE},
    {"labels", CLI_TEXT, "F", NULL,
     "rows {\"id\",\"good\"} or {\"id\",\"score\"}, good from 4.5: prints precision and recall", 0, 0,
     CLI_FREE},
    CMD_FLAG_TEMPLATE(""),
    CMD_FLAG_FORCE("set ratings that were begun with other options aside"),
    CMD_FLAG_JSON,
    CLI_END};
static const cli_flag cmd_run_flags[] = {
    CMD_FLAG_MODEL,
    CMD_FLAG_PRECISION,
    {"seed-data", CLI_TEXT, "F", NULL, "pairs by people: JSONL rows with \"instruction\" and \"output\"", 1,
     0, CLI_FREE},
    {"corpus", CLI_TEXT, "F", NULL, "segments: JSONL rows with \"text\"", 1, 0, CLI_FREE},
    {"out", CLI_TEXT, "D", NULL, "the run folder; one that was begun is continued", 1, 0, CLI_FREE},
    {"iterations", CLI_INT, "N", "2", "curations, each followed by a finetuning", 1, HBK_ITERATIONS,
     CLI_FREE},
    {"keep", CLI_REALS, "X,...", "4.5",
     "least score kept, 1 to 5, of each curation; the last for all after it", 1, 5, CLI_FREE},
    {"keep-share", CLI_REALS, "X,...", "(by --keep)", "the best share of the rated pairs instead, likewise",
     1e-9, 1, CLI_FREE},
    {"stop-on-collapse", CLI_SWITCH, NULL, NULL, "end when a curation keeps under 2 % or over 90 %", 0, 0,
     CLI_FREE},
    {"no-stop-unchanged", CLI_SWITCH, NULL, NULL,
     "go on when a curation keeps the pairs of the one before (the same model again)", 0, 0, CLI_FREE},
    {"max-steps", CLI_INT, "N", "0", "end before a model takes all training beyond N steps; 0: never", 0,
     CLI_MOST, CLI_FREE},
    {"full", CLI_SWITCH, NULL, NULL, "train every weight instead of adapters", 0, 0, CLI_FREE},
    {"seed-repeat", CLI_INT, "N", "1", "copies of the seed among the examples of M1, M2 ...", 1, 1000,
     CLI_FREE},
    {"tag-seed", CLI_TEXT, "T", HBK_TAG_SEED, "after a seed pair's instruction; empty: none", 0, 0, CLI_FREE},
    {"tag-web", CLI_TEXT, "T", HBK_TAG_WEB, "after a curated pair's; empty: none", 0, 0, CLI_FREE},
    {"inference-tags", CLI_CHOICE, "seed,web|web,seed|seed|web|none", "seed,web",
     "what generate will append, in this order", 0, 0, CLI_FREE},
    {"template", CLI_TEXT, "NAME|F", "(the model's)", "llama2, llama3, chatml, plain or a JSON file", 0, 0,
     CLI_FREE},
    {"prompt", CLI_TEXT, "F", "(the template's)", "a file with the backward wording, with {output}", 0, 0,
     CLI_FREE},
    {"rubric", CLI_TEXT, "F", "(the template's)",
     "a file with the rating wording, with {instruction} and {output}", 0, 0, CLI_FREE},
    {"rewrite", CLI_SWITCH, NULL, NULL, "the rater writes the outputs that it kept anew", 0, 0, CLI_FREE},
    {"rewriting", CLI_TEXT, "F", "(the template's)",
     "a file with the rewriting wording, with {instruction} and {output}", 0, 0, CLI_FREE},
    {"replay", CLI_TEXT, "F", NULL, "raw documents, JSONL rows with \"text\", mixed in", 0, 0, CLI_FREE},
    {"validation-share", CLI_REAL, "X", "(none)",
     "hold out this share of every model's examples; the weights of their lowest loss are kept", 1e-9, 0.999,
     CLI_FREE},
    {"max-length", CLI_INT, "N", "(the model's context)", "longest example, prompt and answer, in tokens", 2,
     1e9, CLI_FREE},
    CMD_FLAG_FORCE("with other options than before: set the folder aside and start anew"),
    CMD_FLAG_JSON,
    CLI_END};
static const cli_flag cmd_report_flags[] = {
    {"out", CLI_TEXT, "F", "(RUN/report.html, D/loss.svg)", "the page; of a curve a .svg or .png", 0, 0,
     CLI_FREE},
    CLI_END};

static const cli_group cmd_demo_group = {"Flags", cmd_demo_flags, NULL, NULL};
static const cli_group cmd_reproduce_group = {"Flags", cmd_reproduce_flags, NULL, NULL};
static const cli_group cmd_tokenize_group = {"Flags", cmd_tokenize_flags, NULL, NULL};
static const cli_flag cmd_export_flags[] = {
    CMD_FLAG_MODEL,
    CMD_FLAG_ADAPTER("what is merged into it"),
    {"merge", CLI_TEXT, "DIR", NULL, "a Hugging Face folder: weights, configuration, tokenizer", 0, 0,
     CLI_FREE},
    {"gguf", CLI_TEXT, "F", NULL, "a GGUF file of the model, for llama.cpp", 0, 0, CLI_FREE},
    {"adapter-gguf", CLI_TEXT, "F", NULL, "a GGUF file of the adapter alone", 0, 0, CLI_FREE},
    {"dtype", CLI_CHOICE, "f32|bf16|f16|q8_0", "(the model's; bf16 if that is quantised)",
     "type of the weights; q8_0 in GGUF only", 0, 0, CLI_FREE},
    CMD_FLAG_FORCE("set aside what stands under the output's name, as NAME.1 ..."),
    CMD_FLAG_JSON,
    CLI_END};
static const cli_group cmd_logits_group = {"Flags", cmd_logits_flags, NULL, NULL};
static const cli_group cmd_export_group = {"Flags", cmd_export_flags, NULL, NULL};
static const cli_group cmd_generate_group = {"Flags", cmd_generate_flags, NULL, NULL};
static const cli_group cmd_chat_group = {"Flags", cmd_chat_flags, NULL, NULL};
static const cli_group cmd_seeds_group = {
    "One file of JSON rows, one a line or all in an array, all of one form; a pair from each:\n\n"
    TOOL_SEED_HELP "\nSeveral files: convert each, and put the results together with cat.\n\nFlags",
    cmd_seeds_flags, NULL, NULL};
static const cli_group cmd_finetune_group = {"Flags", cmd_finetune_flags, NULL, NULL};
static const cli_group cmd_augment_group = {"Flags", cmd_augment_flags, NULL, NULL};
static const cli_group cmd_rewrite_group = {"Flags", cmd_rewrite_flags, NULL, NULL};
static const cli_group cmd_curate_own_group = {"Flags", cmd_curate_own_flags, NULL, NULL};
static const cli_group cmd_run_group = {"Flags", cmd_run_flags, NULL, NULL};
static const cli_group cmd_report_group = {"Flags", cmd_report_flags, NULL, NULL};

static const cli_command cmd_commands[] = {
    {"demo",
     "the whole loop on a built-in miniature world, from nothing, in minutes",
     "[flags]",
     0,
     0,
     {&cmd_demo_group},
     cmd_demo},
    {"reproduce",
     "the paper's findings over several miniature worlds, with intervals",
     "[flags]",
     0,
     0,
     {&cmd_reproduce_group},
     cmd_reproduce},
    {"run",
     "the whole loop on your data",
     "--model M --seed-data F --corpus F --out D [flags]",
     0,
     0,
     {&cmd_run_group, &cmd_loop_train_group, &cmd_loop_lora_group, &cmd_filter_group, &cmd_curate_group,
      &cmd_loop_sampling_group, &cmd_wave_group},
     cmd_run},
    {"corpus",
     "raw text, markdown or JSONL -> segments.jsonl, every drop counted",
     "INPUT... --out F [flags]",
     1,
     1 << 20,
     {&cmd_corpus_group},
     cmd_corpus},
    {"seeds",
     "oasst trees, alpaca, sharegpt, messages, guanaco -> seed.jsonl",
     "INPUT --out F [flags]",
     1,
     1,
     {&cmd_seeds_group},
     cmd_seeds},
    {"finetune",
     "a LoRA adapter or, with --full, a model, from pairs",
     "--model M --data F --out D [flags]",
     0,
     0,
     {&cmd_finetune_group, &cmd_train_group, &cmd_lora_group},
     cmd_finetune},
    {"augment",
     "the backward model writes an instruction for every segment",
     "--model M [--adapter D] --corpus F --out F [flags]",
     0,
     0,
     {&cmd_augment_group, &cmd_filter_group, &cmd_augment_sampling_group, &cmd_seed_group, &cmd_wave_group},
     cmd_augment},
    {"curate",
     "a model rates candidates; the best are kept",
     "--model M [--adapter D] --candidates F --out F [flags]",
     0,
     0,
     {&cmd_curate_own_group, &cmd_curate_group, &cmd_keep_group, &cmd_rate_sampling_group, &cmd_seed_group,
      &cmd_wave_group},
     cmd_curate},
    {"rewrite",
     "a model writes the outputs of pairs anew (back-and-forth translation)",
     "--model M [--adapter D] --pairs F --out F [flags]",
     0,
     0,
     {&cmd_rewrite_group, &cmd_rewrite_sampling_group, &cmd_seed_group, &cmd_wave_group},
     cmd_rewrite},
    {"generate",
     "answers to one prompt or to a file of them",
     "--model M [--adapter D] (--prompt T... | --data F --out F) [flags]",
     0,
     0,
     {&cmd_generate_group, &cmd_sampling_group, &cmd_seed_group, &cmd_wave_group},
     cmd_generate},
    {"chat",
     "a conversation, a line of stdin a turn; /help there",
     "--model M [--adapter D] [--template NAME|F] [flags]",
     0,
     0,
     {&cmd_chat_group, &cmd_sampling_group},
     cmd_chat},
    {"tokenize",
     "text -> token ids as JSON, and back",
     "--model M (--text T | --file F | --lines F | --jsonl F | --decode IDS | --decode-jsonl F) [flags]",
     0,
     0,
     {&cmd_tokenize_group},
     cmd_tokenize},
    {"logits",
     "the logits of every position -> safetensors",
     "--model M [--adapter D] (--ids IDS | --text T) --out F [flags]",
     0,
     0,
     {&cmd_logits_group},
     cmd_logits},
    {"export",
     "a model, its adapter merged, or the adapter, for other programs",
     "--model M [--adapter D] (--merge DIR | --gguf F | --adapter-gguf F) [flags]",
     0,
     0,
     {&cmd_export_group},
     cmd_export},
    {"inspect",
     "what a model, adapter, tokenizer or run folder holds",
     "FILE|DIR [flags]",
     1,
     1,
     {&inspect_group},
     inspect_main},
    {"plan",
     "memory and time of a finetuning, before it is begun",
     "(--model M | --shape S) [flags]",
     0,
     0,
     {&plan_group, &plan_train_group},
     plan_main},
    {"report",
     "writes a run folder's report.json and report.html again, or a finetuned folder's curve",
     "RUN|D [--out F]",
     1,
     1,
     {&cmd_report_group},
     cmd_report},
    {"bench",
     "tokens per second, GFLOP/s and GB/s on random weights",
     "[flags]",
     0,
     0,
     {&bench_group, &bench_about},
     bench_main},
    {NULL, NULL, NULL, 0, 0, {NULL}, NULL}};

int main(int argc, char **argv)
{
    return cli_main(cmd_commands, argc, argv);
}
