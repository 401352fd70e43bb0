"""The comparisons of this folder themselves: what is wrong must fail, NaN and nothing at all included."""
import contextlib
import io
import os
import re
import runpy

import common
from common import attempt, check

NAN = float("nan")


def verdict(comparison):
    """ok or failed: what the comparison prints, which is not counted."""
    before = dict(common.counts)
    with contextlib.redirect_stdout(io.StringIO()):
        comparison()
    got = [k for k in before if common.counts[k] > before[k]]
    common.counts.update(before)
    return " and ".join(got)


def expect(what, wanted, comparison):
    with attempt("itself", what):
        got = verdict(comparison)
        check("itself", what, got == wanted, f"{got}, expected {wanted}" if got != wanted else wanted)


def arrays():
    expect("compare, equal", "ok", lambda: common.compare("", "", [1.0, 2.0], [1.0, 2.0], 0))
    for ours, theirs in (([NAN, 1.0], [1.0, 1.0]), ([1.0, 1.0], [1.0, NAN]), ([NAN], [NAN]), ([], [])):
        expect(f"compare {ours} with {theirs}", "failed", lambda: common.compare("", "", ours, theirs, 1))


def tensors():
    import gradients
    import torch
    import training
    good = {n: torch.ones(2) for n in "abc"}
    expect("gradients, equal", "ok", lambda: gradients.compare_all("", good, good))
    for n in "abc":
        bad = {**good, n: torch.tensor([1.0, NAN])}
        expect(f"gradients, NaN in {n} of ours", "failed", lambda: gradients.compare_all("", bad, good))
        expect(f"gradients, NaN in {n} of theirs", "failed", lambda: gradients.compare_all("", good, bad))
    expect("gradients, none", "failed", lambda: gradients.compare_all("", {}, {}))
    start, other = ({n: torch.full((2,), x) for n in "abc"} for x in (0.0, 2.0))
    expect("weights, equal", "ok", lambda: training.compare_weights("", good, good, good, start))
    expect("weights, others", "failed", lambda: training.compare_weights("", other, good, good, start))
    for k in range(3):
        steps = [NAN if i == k else 1.0 for i in range(3)]
        bad = {**good, "abc"[k]: torch.tensor([1.0, NAN])}
        expect(f"losses, NaN in step {k + 1}", "failed",
               lambda: training.compare_steps("", "", steps, [1.0] * 3, 1e-3, ""))
        expect(f"weights, NaN in {'abc'[k]}", "failed",
               lambda: training.compare_weights("", bad, good, good, start))


def skipping():
    """What is skipped without leave fails the script, and `run` says in its last line what and why."""
    run = runpy.run_path(os.path.join(common.HERE, "run"))
    last = run["summary"]([5, 0, 2], {"X is not set": ["2 of tokenizers"]}, [], 1, True)
    check("itself", "last line of a run", re.search(r"2 of tokenizers.*X is not set.*fails", last), last)
    leave = os.environ.pop("SKIP_OK", None)
    check("itself", "skipped unasked", not common.excused(common.NO_DATA), "fails")
    check("itself", "skipped llama.cpp as asked", common.excused(common.NO_LLAMA_CPP), "passes")
    os.environ["SKIP_OK"] = "1"
    check("itself", "skipped as asked", common.excused(common.NO_DATA), "passes")
    os.environ.pop("SKIP_OK")
    if leave is not None:
        os.environ["SKIP_OK"] = leave


def main():
    arrays()
    tensors()
    skipping()
    common.finish()


if __name__ == "__main__":
    main()
