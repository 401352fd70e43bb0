"""What the scripts of this folder share: one line per comparison, the command line, models from a seed.

A script is a list of comparisons like

    with common.attempt("logits", "gqa bf16"):
        ours = common.logits(folder, ids)
        common.compare("logits", "gqa bf16", ours, theirs, 1e-4)

and ends with common.finish(), which prints the counts and leaves with 1 if anything failed, or was skipped
without SKIP_OK=1. Each prints

    logits     gqa bf16                                     largest 1.2e-05  limit 1e-04  ok

Its files stay under build/conformance/NAME until the next run. This folder is taken off the module path as
soon as this module is imported (so import it first): a script here may be called like the package that it
compares with, and tokenizers.py would else stand in the place of tokenizers for everyone.
"""
import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import warnings

import numpy

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [p for p in sys.path if os.path.abspath(p or ".") != HERE] + [HERE]
ROOT = os.path.dirname(os.path.dirname(HERE))
BUILD = os.path.join(ROOT, "build")
HUMPBACK = os.environ.get("HUMPBACK", os.path.join(BUILD, "humpback"))
DATA = os.environ.get("HUMPBACK_DATA")  # reference files; comparisons on them are skipped without it
NO_DATA = "HUMPBACK_DATA is not set"
NO_LLAMA_CPP = "SKIP_LLAMA_CPP is set"

# The models are small: threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
warnings.simplefilter("ignore")  # of the libraries, about their own next versions

counts = {"ok": 0, "failed": 0, "skipped": 0}
reasons = {}  # why comparisons were skipped: how many


class Refusal(Exception):
    """The command line left with an error; str() is what it said."""


# ---- lines -----------------------------------------------------------------------------------------------

def line(topic, what, result, verdict):
    """Prints one comparison; verdict is ok, failed or skipped."""
    counts[verdict] += 1
    mark = verdict if verdict != "failed" else "FAILED"
    print(f"{topic:<10} {what:<44} {result}  {mark}", flush=True)
    return verdict == "ok"


def compare(topic, what, ours, theirs, limit, note=""):
    """The largest absolute difference of two arrays; another shape or a NaN fails."""
    ours, theirs = as_array(ours), as_array(theirs)
    if ours.shape != theirs.shape:
        return line(topic, what, f"shape {ours.shape}, expected {theirs.shape}", "failed")
    off = float(numpy.abs(ours - theirs).max()) if ours.size else math.nan  # numpy's max keeps a NaN
    result = f"largest {off:.1e}  limit {limit:.0e}{'  ' + note if note else ''}"
    return line(topic, what, result, "ok" if off <= limit else "failed")


def largest(values):
    """(the largest number, its name) of (number, name) pairs, NaN above all: max() would lose it, for every
    comparison with NaN is false."""
    return max(values, key=lambda v: (math.isnan(v[0]), v[0]), default=(0.0, ""))


def equal(topic, what, ours, theirs, note=""):
    """Two lists, texts or arrays that must be the same; where not, says where they part."""
    if hasattr(ours, "shape"):
        ours, theirs = ours.reshape(-1).tolist(), theirs.reshape(-1).tolist()
    if ours == theirs:
        return line(topic, what, f"equal{'  ' + note if note else ''}", "ok")
    n = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    here, there = str(ours[n:n + 4])[:40], str(theirs[n:n + 4])[:40]
    return line(topic, what, f"differ at {n} of {len(theirs)}: {here}, expected {there}", "failed")


def check(topic, what, ok, result):
    """Anything else that is right or wrong."""
    return line(topic, what, result, "ok" if ok else "failed")


def skip(topic, what, why):
    """A comparison that cannot be made here; see excused."""
    why = " ".join(why.replace(";", ",").split())  # one part of the last line, which `run` reads
    reasons[why] = reasons.get(why, 0) + 1
    line(topic, what, why, "skipped")


def excused(why):
    """Whether the caller asked for a run without these: what is skipped unasked fails a run."""
    return os.environ.get("SKIP_OK") == "1" or why == NO_LLAMA_CPP


def refuses(topic, what, part, *args):
    """The command line leaves with 1 and a single line that holds `part`."""
    done = subprocess.run([HUMPBACK, *args], capture_output=True, text=True)
    said = done.stderr.strip().replace(BUILD + "/conformance/", "")
    ok = done.returncode == 1 and part in said and "\n" not in said
    return line(topic, what, f"'{said[:90]}...'" if ok else
                f"exit {done.returncode}, '{said[:200]}' does not name {part}", "ok" if ok else "failed")


@contextlib.contextmanager
def attempt(topic, what):
    """An exception inside is one failed comparison, and the script goes on."""
    try:
        yield
    except Exception as e:  # whatever went wrong belongs to this line
        text = " ".join(str(e).split()) or "no message"
        line(topic, what, f"{type(e).__name__}: {text[:300]}", "failed")


def finish():
    name = os.path.basename(sys.argv[0]).removesuffix(".py")
    why = "; ".join(f"{n}: {reason}" for reason, n in reasons.items())
    print(f"{name}: {counts['ok']} ok, {counts['failed']} failed, {counts['skipped']} skipped"
          f"{' (' + why + ')' if why else ''}", flush=True)
    sys.exit(1 if counts["failed"] or not all(map(excused, reasons)) else 0)


def as_array(x):
    """Of a tensor, array or list, in double: differences are not rounded once more."""
    x = x.detach().float().numpy() if hasattr(x, "detach") else numpy.asarray(x)
    return x.astype(numpy.float64)


# ---- files and the command line --------------------------------------------------------------------------

def scratch(*names):
    """A fresh folder build/conformance/SCRIPT/NAMES..."""
    script = os.path.basename(sys.argv[0]).removesuffix(".py")
    path = os.path.join(BUILD, "conformance", script, *names)
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    return path


def humpback(*args):
    """stdout of `humpback ARGS`."""
    done = subprocess.run([HUMPBACK, *map(str, args)], capture_output=True, text=True)
    if done.returncode != 0:
        raise Refusal(f"exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def logits(model, ids, adapter=None):
    """Our logits (tokens, vocabulary) of a list of ids."""
    from safetensors.numpy import load_file
    out = os.path.join(BUILD, "conformance", f"logits-{os.getpid()}.safetensors")
    try:
        humpback("logits", "--model", model, "--ids", ",".join(map(str, ids)), "--out", out,
                 *(["--adapter", adapter] if adapter else []))
        return load_file(out)["logits"]
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(out)


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False, indent=1)


# ---- models from a seed ----------------------------------------------------------------------------------

# Of every random model unless said otherwise. No two sizes are equal, so that none can stand for another.
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "vocab_size": 131, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.02, "use_cache": True, "torch_dtype": "float32",
}


def shapes(config):
    """Hugging Face names and shapes of every tensor, in the order of the model."""
    c = {**CONFIG, **config}
    d, ff, heads = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]
    hd = c.get("head_dim") or d // heads
    q, kv = heads * hd, (c.get("num_key_value_heads") or heads) * hd
    out = {"model.embed_tokens.weight": (c["vocab_size"], d)}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        out[p + "input_layernorm.weight"] = out[p + "post_attention_layernorm.weight"] = (d,)
        sizes = {"self_attn.q_proj": (q, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d),
                 "self_attn.o_proj": (d, q), "mlp.gate_proj": (ff, d), "mlp.up_proj": (ff, d),
                 "mlp.down_proj": (d, ff)}
        for name, shape in sizes.items():
            out[p + name + ".weight"] = shape
            if c.get("attention_bias" if "attn" in name else "mlp_bias"):
                out[p + name + ".bias"] = shape[:1]
    out["model.norm.weight"] = (d,)
    if not c["tie_word_embeddings"]:
        out["lm_head.weight"] = (c["vocab_size"], d)
    return out


def weights(config, seed, dtype="float32"):
    """Random tensors large enough to matter: logits spread over several units, attention is not uniform,
    gains and biases are far from one and zero."""
    import torch
    g = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in shapes(config).items():
        x = torch.randn(shape, generator=g)
        if name.endswith("norm.weight"):
            x = 1 + 0.3 * x
        elif name.endswith(".bias"):
            x = 0.3 * x
        elif "embed_tokens" in name or "lm_head" in name:
            x = x * 2 / shape[1] ** 0.5
        else:
            x = x * (1.5 if "q_proj" in name or "k_proj" in name else 1) / shape[1] ** 0.5
        out[name] = x.to(getattr(torch, dtype))
    return out


def make_model(folder, config, seed, dtype="float32", rename=None, spelling="v4"):
    """A model folder: config.json with CONFIG and `config` (None takes a key away), and model.safetensors.
    rename: {name: name under which the tensor is stored}. spelling: "v5" writes rope_parameters and dtype as
    version 5 of transformers does; `config` is always in the older form."""
    from safetensors.torch import save_file
    os.makedirs(folder, exist_ok=True)
    tensors = weights(config, seed, dtype)
    for old, new in (rename or {}).items():
        tensors[new] = tensors.pop(old)
    save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    full = {k: v for k, v in {**CONFIG, **config, "torch_dtype": dtype}.items() if v is not None}
    if spelling == "v5":
        rope = {"rope_type": "default", **full.pop("rope_scaling", {})}
        rope["rope_type"] = rope.pop("type", rope["rope_type"])
        full["rope_parameters"] = {**rope, "rope_theta": full.pop("rope_theta", 10000.0)}
        full["dtype"] = full.pop("torch_dtype")
    write_json(os.path.join(folder, "config.json"), full)
    return folder


def make_tokenizer(folder, vocab_size):
    """A tokenizer.json whose ids and characters are one another's names, so that a text says its ids: id i is
    the character U+4E00 + i, except 1, <s>, and 2, </s>. Returns the text of a list of ids."""
    special_ids = {"<s>": 1, "</s>": 2}
    vocab = {**special_ids, **{chr(0x4E00 + i): i for i in range(vocab_size) if i not in (1, 2)}}
    special = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True} for t, i in special_ids.items()]
    write_json(os.path.join(folder, "tokenizer.json"), {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": None, "post_processor": None, "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
                  "merges": []}})
    write_json(os.path.join(folder, "tokenizer_config.json"), {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>",
        "eos_token": "</s>", "add_bos_token": False, "clean_up_tokenization_spaces": False})
    return lambda ids: "".join(chr(0x4E00 + i) for i in ids if i not in (1, 2))


def tokens(n, vocab_size, seed):
    """n random ids, none of them special."""
    return numpy.random.default_rng(seed).integers(3, vocab_size, n).tolist()


# ---- the reference side ----------------------------------------------------------------------------------

def reference(folder):
    """transformers' model of a folder, whatever its stored type, computing in float32."""
    import torch
    from transformers import AutoModelForCausalLM
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def reference_logits(model, ids):
    import torch
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0]


def reference_greedy(model, ids, n):
    """The n most likely ids after `ids`, one by one; ends before the model's eos."""
    import torch
    with torch.no_grad():
        out = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                             max_new_tokens=n, do_sample=False, pad_token_id=0)[0, len(ids):].tolist()
    eos = model.generation_config.eos_token_id
    ends = eos if isinstance(eos, list) else [eos]
    return out[:-1] if out and out[-1] in ends else out
