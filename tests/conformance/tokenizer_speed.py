"""Speed of encoding 10 MB of English as one text, one thread: MB/s of ours, tokenizers and sentencepiece.

Seconds are of processor time, so that what else runs matters less; median of 5, the libraries taking turns.
Ours must be twice tokenizers and faster than sentencepiece (which always has LLaMA-2's vocabulary). Needs
HUMPBACK_DATA.
"""
import json
import os
import random
import statistics
import subprocess
import time

import common
import vocabularies as files
from common import DATA, attempt, line

import sentencepiece
from tokenizers import pre_tokenizers

ROUNDS = int(os.environ.get("ROUNDS", "5"))
PROGRAM = os.path.join(common.BUILD, "conformance-tokenizers")


def big_text(size):
    """Sentences of real texts in random order; every thirtieth word is made of two others, so that new words
    keep coming as they do in a text that does not repeat itself."""
    sentences = []
    for name in ("lf_c4_demo.jsonl", "seed_tasks.jsonl", "oasst_en_100_tree.jsonl"):
        with open(os.path.join(DATA, "instructions", name), encoding="utf-8") as f:
            stack = [json.loads(row) for row in f if row.strip()]
        while stack:
            x = stack.pop()
            if isinstance(x, dict):
                stack += x.values()
            elif isinstance(x, list):
                stack += x
            elif isinstance(x, str) and len(x) > 100:
                sentences += [s.split(" ") for s in x.replace("\n", "\n ").split(". ") if len(s) > 20]
    r = random.Random(1)
    words = [w for s in sentences for w in s if w.isalpha()]
    out, n = [], 0
    while n < size:
        s = " ".join(r.choice(words)[:4] + r.choice(words)[-4:] if r.random() < 1 / 30 else w
                     for w in r.choice(sentences))
        out.append(s)
        n += len(s.encode()) + 2
    return ". ".join(out)


def ours(path, file):
    done = subprocess.run([PROGRAM, "time", path, file], capture_output=True, text=True, check=True)
    seconds, ids = done.stdout.split()
    return float(seconds), int(ids)


def theirs(encode, text):
    start = time.process_time()
    n = len(encode(text))
    return time.process_time() - start, n


def measure(name, path, text, file, references):
    """references: {library: (encode, how many times faster we must be)}."""
    with attempt("speed", name):
        seconds = {"ours": []}
        counts = {}
        for _ in range(ROUNDS):
            s, counts["ours"] = ours(path, file)
            seconds["ours"].append(s)
            for library, (encode, _) in references.items():
                s, counts[library] = theirs(encode, text)
                seconds.setdefault(library, []).append(s)
        rate = {k: len(text.encode()) / 1e6 / statistics.median(v) for k, v in seconds.items()}
        ok = all(rate["ours"] >= least * rate[k] for k, (_, least) in references.items())
        same = len({counts[k] for k in counts if k != "sentencepiece"}) == 1
        result = f"{rate['ours']:.1f} MB/s" + "".join(
            f", {rate['ours'] / rate[k]:.1f} times {k} ({rate[k]:.2f})" for k in references)
        line("speed", name, result + ("" if same else f"; counts of ids differ: {counts}"),
             "ok" if ok and same else "failed")


def main():
    if not DATA:
        common.skip("speed", "tokenizers", common.NO_DATA)
        common.finish()
    text = big_text(10_000_000)
    file = os.path.join(files.HERE, "text.txt")
    with open(file, "w", encoding="utf-8", newline="") as f:
        f.write(text)
    data = os.path.join(DATA, "tokenizers")
    spm = os.path.join(data, "llama2.tokenizer.model")
    sp = sentencepiece.SentencePieceProcessor(model_file=spm).encode

    def both(path):
        tok = files.load(files.read_json(path))
        return {"tokenizers": (lambda t: tok.encode(t, add_special_tokens=False).ids, 2),
                "sentencepiece": (sp, 1)}

    llama2 = os.path.join(data, "llama2.tokenizer.json")
    measure("llama-2 tokenizer.model", spm, text, file, {"sentencepiece": (sp, 1)})
    measure("llama-2 tokenizer.json", llama2, text, file, both(llama2))
    path = files.write(files.llama3(data), "llama3.json")
    measure("llama-3 tokenizer.json", path, text, file, both(path))
    level = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                     pre_tokenizers.ByteLevel(add_prefix_space=False)])
    path = files.write(files.byte_level(text[:3_000_000], level, ["<|endoftext|>"], 49152), "smollm.json")
    measure("smollm-like", path, text, file, both(path))
    common.finish()


if __name__ == "__main__":
    main()
