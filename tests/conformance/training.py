"""Fifty steps of finetuning against PEFT and PyTorch: every loss, every gradient norm, the last weights.

Both sides begin with the same base and the same adapter (PEFT's, with its zero B or a random one) and take
the same rows in the same order, without dropout. Theirs is what a Trainer does, written out: padded batches,
labels of -100 before the completion, the loss of a step divided by its target tokens however many batches it
takes, clip_grad_norm_, torch.optim.AdamW, and a learning rate from the formula of chapter 16. First
`finetune --dump-labels` is asked whether both sides read the same tokens and the same mask out of the rows.

The difference of two sets of trained weights is the norm of what lies between them, divided by the norm of
what training changed. Theirs is computed once more in double, and its own difference to that is printed
beside ours: it says how far float32 can be trusted here. AdamW's first step is a gradient's sign, however
small: seed 305 for "grouped heads" has one of 5.9e-7 among many of 1e-2, which PyTorch in float32 finds to be
3.1e-7, and then both sides end 2e-3 of the change away from double. The seeds below are not of that kind."""
import math
import os
import re

import common
from common import attempt, humpback, line, make_model, scratch, tokens

STEPS, ROWS, VOCAB, SEED = 50, 22, 151, 400
LOSS_LIMIT = 1e-4    # of a step's loss, relative
NORM_LIMIT = 1e-3    # of its gradient's norm before clipping, relative
WEIGHTS_LIMIT = 1e-3

BASE = {"hidden_size": 64, "intermediate_size": 112, "num_attention_heads": 4, "num_key_value_heads": 4,
        "vocab_size": VOCAB}
GQA = {"hidden_size": 96, "intermediate_size": 144, "num_attention_heads": 6, "num_key_value_heads": 2,
       "num_hidden_layers": 3}
BIASES = {"attention_bias": True, "mlp_bias": True}
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
QV = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
ALL = {"r": 8, "lora_alpha": 16, "target_modules": SEVEN}

# Flags of `humpback finetune` that the other side follows, and their values unless said otherwise.
FLAGS = {"lr": 2e-3, "lr-end": 2e-4, "schedule": "linear", "warmup": 0, "weight-decay": 0.0, "beta1": 0.9,
         "beta2": 0.95, "clip": 1.0, "batch": 4, "accumulate": 1, "lora-plus": 1.0}
FULL = {"lr": 1e-3, "lr-end": 1e-4, "weight-decay": 0.1}

# name: (config of the base, its type, LoRA or None for all weights, random B?, flags)
CASES = {
    "q, v, rank 4": ({}, "float32", QV, False, {"lr": 5e-3}),
    "all seven, rank 8, clipped, cosine": ({}, "float32", ALL, False, {
        "clip": 0.3, "schedule": "cosine", "warmup": 6, "weight-decay": 0.05}),
    "rsLoRA, random B": ({}, "float32", {**ALL, "use_rslora": True}, True, {"schedule": "constant"}),
    "lm_head and all seven": ({}, "float32", {**ALL, "target_modules": SEVEN + ["lm_head"]}, False, {}),
    "accumulation 4": ({}, "float32", ALL, True, {"accumulate": 4, "batch": 2}),
    "grouped heads, 3 layers": (GQA, "float32", ALL, False, {}),
    "biases": (BIASES, "float32", ALL, True, {}),
    "bf16 base": (GQA, "bfloat16", ALL, False, {}),
    "rank_pattern, LoRA+, one layer": ({}, "float32", {**ALL, "rank_pattern": {"v_proj": 3, "up_proj": 12},
                                                       "layers_to_transform": [1]}, False,
                                       {"lora-plus": 8.0, "lr": 1e-3}),
    "full": (GQA, "float32", None, False, FULL),
    "full, tied, biases, accumulation 4": ({**BIASES, "tie_word_embeddings": True}, "float32", None, False,
                                           {**FULL, "accumulate": 4, "batch": 2, "schedule": "cosine"}),
    "full, bf16 base": ({}, "bfloat16", None, False, {**FULL, "clip": 0}),
}


# ---- rows, and what both sides read in them --------------------------------------------------------------

def make_rows(folder, base):
    """Rows of ragged lengths, as a file for us and as (ids, labels) from transformers' tokenizer."""
    from transformers import AutoTokenizer
    spell = common.make_tokenizer(base, VOCAB)
    tokenizer = AutoTokenizer.from_pretrained(base)
    path, rows = folder + "/rows.jsonl", []
    with open(path, "w", encoding="utf-8") as f:
        for k in range(ROWS):
            prompt = spell(tokens(2 + 7 * k % 19, VOCAB, 3 * k))
            completion = spell(tokens(1 + 5 * k % 31, VOCAB, 3 * k + 1))
            f.write(common.json.dumps({"prompt": prompt, "completion": completion}) + "\n")
            head = [tokenizer.bos_token_id] + tokenizer(prompt, add_special_tokens=False).input_ids
            tail = tokenizer(completion, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
            rows.append((head + tail, [-100] * len(head) + tail))
    return path, rows


def same_labels(base, path, rows):
    """The first examples as `--dump-labels` prints them."""
    ours = []
    for text in humpback("finetune", "--model", base, "--data", path, "--dump-labels").splitlines():
        row = re.match(r" *(\d+) +(\d+)  (loss|-   )  ", text)
        if row and row[1] == "0":
            ours.append(([], []))
        if row:
            ours[-1][0].append(int(row[2]))
            ours[-1][1].append(int(row[2]) if row[3] == "loss" else -100)
    common.equal("training", "tokens and mask", ours, rows[:len(ours) or 1],
                 f"{len(ours)} examples")


# ---- their fifty steps -----------------------------------------------------------------------------------

def learning_rate(f, step):
    if step <= f["warmup"]:
        return f["lr"] * step / f["warmup"]
    if f["schedule"] == "constant":
        return f["lr"]
    t = (step - f["warmup"] - 1) / (STEPS - f["warmup"] - 1)
    if f["schedule"] == "cosine":
        t = 0.5 - 0.5 * math.cos(math.pi * t)
    return f["lr"] * (1 - t) + f["lr-end"] * t


def padded(rows):
    import torch
    longest = max(len(ids) for ids, _ in rows)
    return {"input_ids": torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows]),
            "labels": torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in rows])}


def optimiser(trained, f):
    """A group for each pair of (decays?, B of LoRA+?); "times" is what multiplies its rate."""
    import torch
    groups = {}
    for name, p in trained.items():
        decay = f["weight-decay"] if p.ndim > 1 else 0.0
        groups.setdefault((decay, f["lora-plus"] if "lora_B" in name else 1.0), []).append(p)
    return torch.optim.AdamW([{"params": p, "weight_decay": decay, "times": times}
                              for (decay, times), p in groups.items()],
                             lr=f["lr"], betas=(f["beta1"], f["beta2"]), eps=1e-8)


def train(model, trained, rows, f):
    """[(loss, gradient norm)] of every step."""
    import torch
    adamw, facts, at = optimiser(trained, f), [], 0
    for step in range(1, STEPS + 1):
        batches = []
        for _ in range(f["accumulate"]):
            batches.append([rows[(at + i) % len(rows)] for i in range(f["batch"])])
            at += f["batch"]
        targets = sum(label >= 0 for b in batches for _, labels in b for label in labels)
        loss = 0.0
        for b in batches:
            part = model(**padded(b), num_items_in_batch=targets, use_cache=False).loss
            part.backward()
            loss += part.item()
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), f["clip"] or math.inf)
        for group in adamw.param_groups:
            group["lr"] = learning_rate(f, step) * group["times"]
        adamw.step()
        adamw.zero_grad()
        facts.append((loss, norm.item()))
    return facts


# ---- the comparison --------------------------------------------------------------------------------------

def ours(folder, base, data, lora, f):
    """([(loss, gradient norm)], {name: tensor}) of our own fifty steps."""
    from safetensors.torch import load_file
    out = folder + "/ours"
    flags = ["--init-adapter", folder + "/start"] if lora else ["--full"]
    for key, value in f.items():
        idle = key == "lora-plus" and not lora or key == "lr-end" and f["schedule"] == "constant"
        flags += [] if idle else ["--" + key, value]
    humpback("finetune", "--model", base, "--data", data, "--out", out, "--steps", STEPS, "--no-shuffle",
             "--dropout", 0, "--save-every", 0, *flags)
    with open(out + "/metrics.jsonl") as lines:
        facts = [common.json.loads(row) for row in lines]
    weights = load_file(f"{out}/{'adapter_model' if lora else 'model'}.safetensors")
    return [(row["loss"], row["grad_norm"]) for row in facts], weights


def compare_steps(name, which, ours, theirs, limit, note):
    """One line for all steps: the largest relative difference, and where."""
    if len(ours) != len(theirs):
        return line("training", f"{name}: {which}", f"{len(ours)} steps, expected {len(theirs)}", "failed")
    worst, step = common.largest((abs(a - b) / abs(b), k + 1)
                                 for k, (a, b) in enumerate(zip(ours, theirs)))
    return line("training", f"{name}: {which}", f"largest {worst:.1e}  limit {limit:.0e} relative, in step "
                f"{step}; {note}", "ok" if worst <= limit else "failed")


def distances(a, b):
    """The norm of the difference of every tensor."""
    return {n: float((a[n].double() - w.double()).norm()) for n, w in b.items()}


def compare_weights(name, ours, theirs, double, start):
    """The whole difference over the whole change, and the largest of a tensor."""
    if set(ours) != set(theirs):
        odd = sorted(set(ours) ^ set(theirs))
        return line("training", f"{name}: weights", f"only one side has {', '.join(odd[:3])}", "failed")
    off, moved = distances(ours, theirs), distances(theirs, start)
    change = math.hypot(*moved.values())
    total = math.hypot(*off.values()) / change
    rounding = math.hypot(*distances(theirs, double).values()) / change
    worst, _ = common.largest((off[n] / moved[n], n) for n in off)
    ok = total <= WEIGHTS_LIMIT and all(m > 0 for m in moved.values())
    return line("training", f"{name}: weights",
                f"largest {total:.1e}  limit {WEIGHTS_LIMIT:.0e} of the change, of one tensor {worst:.1e}; "
                f"theirs from double {rounding:.1e}",
                "ok" if ok else "failed")


def peer(base, lora, random_b, seed, folder):
    """(model, {name as stored: trained parameter}); the adapter that both begin with is saved."""
    import torch
    model = common.reference(base)
    if lora:
        from peft import LoraConfig, get_peft_model
        torch.manual_seed(seed)
        model = get_peft_model(model, LoraConfig(**lora, lora_dropout=0.0, task_type="CAUSAL_LM"))
        for name, p in model.named_parameters():
            if "lora_B" in name and random_b:
                torch.nn.init.normal_(p, std=0.05)
        model.save_pretrained(folder + "/start")
    model.train()
    return model, {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}


def case(folder, seed, name, config, dtype, lora, random_b, flags):
    f = {**FLAGS, **flags}
    base = make_model(folder + "/base", {**BASE, **config}, seed, dtype)
    data, rows = make_rows(folder, base)
    if seed == SEED:
        same_labels(base, data, rows)
    model, trained = peer(base, lora, random_b, seed, folder)
    start = {n: p.detach().clone() for n, p in trained.items()}
    theirs = train(model, trained, rows, f)
    model, double = peer(base, lora, random_b, seed, folder)
    train(model.double(), double, rows, f)
    mine, weights = ours(folder, base, data, lora, f)
    losses, norms = ([x[i] for x in theirs] for i in (0, 1))
    clipped = sum(n > f["clip"] > 0 for n in norms)
    compare_steps(name, "losses", [x[0] for x in mine], losses, LOSS_LIMIT,
                  f"{sum(losses[:11]) / 11:.2f} in the first 11, {sum(losses[-11:]) / 11:.2f} in the last")
    compare_steps(name, "norms", [x[1] for x in mine], norms, NORM_LIMIT, f"{clipped} of {STEPS} clipped")
    compare_weights(name, weights, *({n: p.detach() for n, p in t.items()} for t in (trained, double)), start)


def main():
    folder = scratch()
    for k, (name, what) in enumerate(CASES.items()):
        with attempt("training", name):
            at = f"{folder}/{k}"
            os.makedirs(at)
            case(at, SEED + k, name, *what)
    common.finish()


if __name__ == "__main__":
    main()
