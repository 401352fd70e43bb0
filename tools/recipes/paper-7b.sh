#!/bin/sh
# paper-7b: instruction backtranslation with every setting of the paper, for LLaMA 7B - public domain
#
#   MODEL=llama-7b SEEDS=oasst.jsonl PAGES='web/*.md' OUT=run tools/recipes/paper-7b.sh
#   tools/recipes/paper-7b.sh --check      do all flags exist? Nothing is read or written
#
# The paper: Li et al. 2023, Self-Alignment with Instruction Backtranslation. Its settings, and where they are
# below; what it does not report (betas, warm-up, clipping, length, packing) is left to the defaults:
#
#   base        finetuned whole, four times, always from the base   --full, and how run works
#   seed        3,200 first turns of Open Assistant, English, rank 0   seeds --limit 3200
#   segments    600 to 3,000 characters, deduplicated, 502,133 of them   corpus's defaults
#   steps       500 for Myx and M0 (3,200 pairs); 1,600 for M1 and M2 (about 45,000), Table 18   --steps
#   batch       32 examples   --batch
#   rate        1e-5 linearly to 9e-6, which is a rate, not a factor   --lr --lr-end --schedule
#   decay       weight decay 0.1, dropout 0.1
#   sampling    temperature 0.7, top-p 0.9, of instructions and ratings; one candidate a segment
#   curation    k = 5: a mean of 4.5 or more; two iterations, each rates all candidates anew
#   tags        one sentence after the instruction of seed and of web pairs; both at inference
#
# What differs on a CPU, and why:
#
#   the paper trained whole models on GPUs; here --full holds weights, gradients and two moments in f32: 16
#   bytes a parameter, 108 GB for 7B before activations. LORA=1 trains adapters of rank 16 on the base as it
#   is stored, at 20 times the rate, since so few numbers have to move further.
#   --recompute keeps less for the backward, at the price of a forward, and changes no bit.
#   502,133 segments take a processor years: SEGMENTS takes the first so many.
#
# What it takes, by
#     OMP_WAIT_POLICY=passive humpback plan --shape S --dtype T --tokens 2048 --recompute
# on two cores of an EPYC processor that others used as well: LoRA of rank 16, a pass of 2,048 tokens. A step
# of 32 examples of 400 tokens is about six passes.
#
#   S               T          memory    seconds a pass
#   smollm2-135m    bf16      0.7 GB                16
#   tinyllama-1.1b  bf16      3.4 GB                91
#   llama-7b        bf16     16.5 GB               600
#   llama-33b       q4_0     25.7 GB              3600
#   llama-65b       q4_0     47.9 GB              7100
set -eu
HUMPBACK=${HUMPBACK:-humpback} # or build/humpback
MODEL=${MODEL:-llama-7b}       # a Hugging Face folder or a .gguf
SEEDS=${SEEDS:-oasst.jsonl}    # what `seeds` reads: Open Assistant trees, Alpaca rows ...
PAGES=${PAGES:-pages/*}        # what `corpus` reads: text, markdown, JSONL; words of a list are files
OUT=${OUT:-paper-7b}           # segments, seed pairs and the run go here
TEMPLATE=${TEMPLATE:-llama2}   # [INST] ... [/INST], as in the paper's submission to AlpacaEval
SEGMENTS=${SEGMENTS:-502133}
SEED_STEPS=${SEED_STEPS:-500}
STEPS=${STEPS:-1600}
LORA=${LORA:-}
MORE=${MORE:-}                 # flags of `run` that come last and win

if [ -n "$LORA" ]; then
    MODE='--rank 16 --alpha 32 --lr 2e-4 --lr-end 1.8e-4'
else
    MODE='--full --lr 1e-5 --lr-end 9e-6'
fi

command -v "$HUMPBACK" >/dev/null || {
    echo "$0: there is no program $HUMPBACK: put it on the PATH, or set HUMPBACK=build/humpback" >&2
    exit 1
}

# With --check there is nothing to open: a command that knows its flags fails with 1, else with 2.
CHECK=
if [ "${1:-}" = --check ]; then
    CHECK=1 MODEL=/nonexistent/model SEEDS=/nonexistent/seeds PAGES=/nonexistent/pages OUT=/nonexistent/out
fi
step() {
    if [ -z "$CHECK" ]; then
        "$HUMPBACK" "$@"
        return
    fi
    code=0
    "$HUMPBACK" "$@" >/dev/null 2>&1 || code=$?
    [ "$code" = 1 ] && return
    echo "$0: humpback $1 ends with $code, expected 1: are all flags known?" >&2
    exit 1
}

[ -n "$CHECK" ] || mkdir -p "$OUT"
# shellcheck disable=SC2086 # PAGES, MODE and MORE are lists of words
{
    step corpus $PAGES --out "$OUT/all-segments.jsonl" --min-chars 600 --max-chars 3000
    [ -n "$CHECK" ] || head -n "$SEGMENTS" "$OUT/all-segments.jsonl" >"$OUT/segments.jsonl"
    step seeds "$SEEDS" --out "$OUT/seed.jsonl" --limit 3200
    step run --model "$MODEL" --seed-data "$OUT/seed.jsonl" --corpus "$OUT/segments.jsonl" --out "$OUT/run" \
        $MODE --schedule linear --weight-decay 0.1 --dropout 0.1 --batch 32 --recompute \
        --steps "$SEED_STEPS" --mt-steps "$STEPS" --iterations 2 --keep 4.5 --max-length 2048 \
        --temperature 0.7 --top-p 0.9 --curate-temperature 0.7 --curate-top-p 0.9 --curate-max-new 512 \
        --tag-seed 'Answer in the style of an AI Assistant.' \
        --tag-web 'Answer with knowledge from web search.' --inference-tags seed,web \
        --template "$TEMPLATE" --readout text --seed 1 $MORE
}
