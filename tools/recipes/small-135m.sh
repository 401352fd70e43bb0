#!/bin/sh
# small-135m: the paper's settings as far as a laptop goes, for SmolLM2-135M - public domain
#
#   MODEL=SmolLM2-135M SEEDS=oasst.jsonl PAGES='web/*.md' OUT=run tools/recipes/small-135m.sh
#   tools/recipes/small-135m.sh --check    do all flags exist? Nothing is read or written
#
# paper-7b.sh says where the settings come from. As there: batch 32, weight decay 0.1, dropout 0.1,
# temperature 0.7 and top-p 0.9, two iterations, tags, 3,200 seed pairs and 500 steps on them.
# What differs here, and why:
#
#   adapters of rank 16 at 2e-4 (to nine tenths of it, as in the paper) instead of the whole model at 1e-5: a
#   quarter of the memory, 0.7 GB instead of 2.7. FULL=1 trains the whole model, as the paper did.
#   2,000 segments instead of 502,133, and so 600 steps instead of 1,600: the paper's step table for its size.
#   Ratings are read as their mean under the model, --readout expected: a small model seldom writes a score
#   that can be read; and the best 8 % are kept, the paper's own yield, since the scores of a small rater lie
#   close together. The reasoning before them is greedy. As in the paper it is
#   CURATE='--readout text --keep 4.5 --curate-temperature 0.7 --curate-top-p 0.9'.
#   At most 1,024 tokens an example, where the paper's submission had 2,048.
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
MODEL=${MODEL:-SmolLM2-135M}   # a Hugging Face folder or a .gguf
SEEDS=${SEEDS:-oasst.jsonl}    # what `seeds` reads: Open Assistant trees, Alpaca rows ...
PAGES=${PAGES:-pages/*}        # what `corpus` reads: text, markdown, JSONL; words of a list are files
OUT=${OUT:-small-135m}         # segments, seed pairs and the run go here
TEMPLATE=${TEMPLATE:-chatml}   # its vocabulary spells it; elsewhere llama2, or plain
SEGMENTS=${SEGMENTS:-2000}
SEED_STEPS=${SEED_STEPS:-500}
STEPS=${STEPS:-600}
FULL=${FULL:-}
CURATE=${CURATE:---readout expected --keep-share 0.08}
MORE=${MORE:-}                 # flags of `run` that come last and win

if [ -z "$FULL" ]; then
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
# shellcheck disable=SC2086 # PAGES, MODE, CURATE and MORE are lists of words
{
    step corpus $PAGES --out "$OUT/all-segments.jsonl" --min-chars 600 --max-chars 3000
    [ -n "$CHECK" ] || head -n "$SEGMENTS" "$OUT/all-segments.jsonl" >"$OUT/segments.jsonl"
    step seeds "$SEEDS" --out "$OUT/seed.jsonl" --limit 3200
    step run --model "$MODEL" --seed-data "$OUT/seed.jsonl" --corpus "$OUT/segments.jsonl" --out "$OUT/run" \
        $MODE --schedule linear --weight-decay 0.1 --dropout 0.1 --batch 32 --recompute \
        --steps "$SEED_STEPS" --mt-steps "$STEPS" --iterations 2 --max-length 1024 \
        --temperature 0.7 --top-p 0.9 \
        --tag-seed 'Answer in the style of an AI Assistant.' \
        --tag-web 'Answer with knowledge from web search.' --inference-tags seed,web \
        --template "$TEMPLATE" --seed 1 $CURATE $MORE
}
