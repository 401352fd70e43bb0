"""Models of every configuration against transformers in float32: logits, and 64 tokens of greedy text."""
import os
import shutil

import common
from common import attempt, compare, equal, humpback, logits, make_model, refuses, scratch, skip, tokens

LIMIT = 1e-4
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}

# name: differences to common.CONFIG, in the spelling of version 4 of transformers; None takes a key away.
CONFIGS = {
    "grouped heads": {},
    "one head group (MHA)": {"num_key_value_heads": 6},
    "one key head (MQA)": {"num_key_value_heads": 1},
    "num_key_value_heads absent": {"num_key_value_heads": None},
    "head_dim 10, not hidden/heads": {"head_dim": 10},
    "head_dim null": {"head_dim": None},
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "both biases": {"attention_bias": True, "mlp_bias": True, "head_dim": 12, "num_key_value_heads": 3},
    "tied": {"tie_word_embeddings": True},
    "rope theta 500000": {"rope_theta": 500000.0},
    "rope_theta absent": {"rope_theta": None},
    "rope linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    "rope linear, spelled type": {"rope_scaling": {"type": "linear", "factor": 2.5}},
    "rope llama3": {"rope_theta": 500000.0, "rope_scaling": LLAMA3, "head_dim": 16},
    "rope default, spelled out": {"rope_scaling": {"rope_type": "default"}},
    "eps 1e-6, odd sizes": {"rms_norm_eps": 1e-6, "intermediate_size": 77, "vocab_size": 103},
    "three layers, dim 96": {"num_hidden_layers": 3, "hidden_size": 96, "intermediate_size": 200},
    "mistral, sliding_window null": {**MISTRAL, "sliding_window": None, "head_dim": 8},
    "mistral, window of the whole context": {**MISTRAL, "sliding_window": 256},
}
# What is no LLaMA is refused, and the message names the key and the value.
REFUSED = {
    "rope yarn": ("yarn", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0,
                                            "original_max_position_embeddings": 32}}),
    "rope dynamic": ("dynamic", {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}),
    "rope longrope": ("longrope", {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4,
                                                    "long_factor": [2.0] * 4}}),
    "Mixtral": ("mixtral", {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
                            "num_local_experts": 4, "num_experts_per_tok": 2}),
    "Qwen2": ("Qwen2ForCausalLM", {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}),
    "Gemma": ("GemmaForCausalLM", {"architectures": ["GemmaForCausalLM"], "model_type": "gemma"}),
    "mistral, active window": ("sliding_window", {**MISTRAL, "sliding_window": 32}),
    "another activation": ("gelu", {"hidden_act": "gelu"}),
}


def compare_logits(what, folder, ids):
    """Returns the reference model, for more. The range shows that the limit means something."""
    model = common.reference(folder)
    theirs = common.reference_logits(model, ids)
    compare("logits", what, logits(folder, ids), theirs, LIMIT,
            f"range {float(theirs.min()):.1f} {float(theirs.max()):.1f}")
    if not float(theirs.std()) >= 1:
        common.check("logits", what, False, "these logits hardly differ: the comparison says nothing")
    return model


def greedy(folder, text, *more):
    """Our continuation of 64 ids of one prompt."""
    return eval_ids(humpback("generate", "--model", folder, "--prompt", text, "--template", "none",
                             "--temperature", 0, "--max-new", 64, "--print-ids", *more))


def eval_ids(text):
    return [int(i) for i in text.strip().strip("[]").split(",") if i.strip()]


def nearest(model, ids, out):
    """Where greedy texts part it matters how near the two best logits were: the least distance on the way."""
    best = common.reference_logits(model, ids + out)[len(ids) - 1:].topk(2).values
    return float((best[:, 0] - best[:, 1]).min())


def batch(what, folder, spell, model, seed):
    """Eleven prompts of lengths 1 to 60, the last six with a common beginning (which is computed once and
    forked), in three slots at a time."""
    V, n = 131, [1, 2, 7, 60, 13]
    prompts = [tokens(k, V, seed + k) for k in n]
    shared = tokens(20, V, seed)
    for name, many in (("ragged", prompts), ("forked", [shared + tokens(k, V, 9 + k) for k in range(6)])):
        rows, out = folder + f"/{name}.jsonl", folder + f"/{name}-out.jsonl"
        with open(rows, "w") as f:
            for p in many:
                f.write('{"prompt": "%s"}\n' % spell(p))
        humpback("generate", "--model", folder, "--data", rows, "--out", out, "--template", "none",
                 "--temperature", 0, "--max-new", 64, "--slots", 3)
        with open(out, encoding="utf-8") as f:
            ours = [common.json.loads(row)["output"] for row in f]
        theirs = [spell(common.reference_greedy(model, p, 64)) for p in many]
        equal("greedy", f"{what}, {name} batch of {len(many)}", ours, theirs)


def configurations(folder):
    for number, (name, config) in enumerate(CONFIGS.items()):
        V = config.get("vocab_size", 131)
        for spelling in ("v4", "v5"):
            what = name if spelling == "v4" else name + ", v5 config"
            if spelling == "v5" and "rope" not in name and number > 0:
                continue  # the spellings differ in the rope's keys (and in dtype)
            at = f"{folder}/{number}-{spelling}"
            with attempt("logits", what):
                make_model(at, config, number, spelling=spelling)
                spell = common.make_tokenizer(at, V)
                model = compare_logits(what, at, tokens(80, V, number))
                with attempt("greedy", what):
                    ids = tokens(12, V, 100 + number)
                    out = common.reference_greedy(model, ids, 64)
                    apart = nearest(model, ids, out)
                    equal("greedy", what, greedy(at, spell(ids)), out,
                          f"{len(out)} ids, the two best logits at least {apart:.0e} apart")
                if number in (0, 8, 14):
                    with attempt("greedy", what + ", batches"):
                        batch(what, at, spell, model, number)


def stored_types(folder):
    for dtype in ("float16", "bfloat16"):
        for tied in (False, True):
            with attempt("logits", dtype):
                what = dtype + (", tied" if tied else "")
                at = make_model(f"{folder}/{what}", {"tie_word_embeddings": tied}, 30, dtype)
                spell = common.make_tokenizer(at, 131)
                model = compare_logits(what, at, tokens(80, 131, 30))
                ids = tokens(12, 131, 31)
                equal("greedy", what, greedy(at, spell(ids)), common.reference_greedy(model, ids, 64))


def stored_names(folder):
    """The same numbers in files that hold them differently."""
    import torch
    from safetensors.torch import load_file, save_file
    head, embed = "lm_head.weight", "model.embed_tokens.weight"
    with attempt("logits", "tied, the head is what is stored"):
        at = make_model(folder + "/head", {"tie_word_embeddings": True}, 40)
        theirs = common.reference_logits(common.reference(at), tokens(80, 131, 40))
        make_model(folder + "/head", {"tie_word_embeddings": True}, 40, rename={embed: head})
        compare("logits", "tied, the head is what is stored", logits(at, tokens(80, 131, 40)), theirs, LIMIT)
    with attempt("logits", "old inv_freq buffers in the file"):
        at = make_model(folder + "/buffers", {}, 41)
        all_tensors = load_file(at + "/model.safetensors")
        for i in range(2):
            all_tensors[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
        save_file(all_tensors, at + "/model.safetensors", metadata={"format": "pt"})
        compare_logits("old inv_freq buffers in the file", at, tokens(80, 131, 41))
    with attempt("logits", "three shards"):
        at = make_model(folder + "/shards", {"num_hidden_layers": 3}, 42)
        model = common.reference(at)
        os.remove(at + "/model.safetensors")
        shutil.copy(at + "/config.json", folder + "/config.json")
        model.save_pretrained(at, max_shard_size="60KB")
        shutil.copy(folder + "/config.json", at + "/config.json")
        shards = [f for f in os.listdir(at) if f.endswith(".safetensors")]
        compare_logits(f"{len(shards)} shards", at, tokens(80, 131, 42))
    with attempt("logits", "unaligned tensors"):
        at = make_model(folder + "/unaligned", {}, 43)
        with open(at + "/model.safetensors", "rb") as f:
            data = f.read()
        n = int.from_bytes(data[:8], "little")
        header = data[8:8 + n].rstrip() + b" " * (3 - len(data[8:8 + n].rstrip()) % 4)
        with open(at + "/model.safetensors", "wb") as f:  # data begin at an odd address
            f.write(len(header).to_bytes(8, "little") + header + data[8 + n:])
        compare_logits("unaligned tensors", at, tokens(80, 131, 43))


def long_positions(folder):
    """Far positions: transformers rounds frequencies and angles to float32, which moves these logits by 7e-4
    from those of exact angles; a model has to be run as it was trained."""
    for name, rope in (("default", None), ("llama3", {**LLAMA3, "original_max_position_embeddings": 512}),
                       ("linear", {"rope_type": "linear", "factor": 3.0})):
        with attempt("logits", f"2500 positions, rope {name}"):
            config = {"max_position_embeddings": 4096, "rope_scaling": rope, "num_hidden_layers": 1,
                      "head_dim": 16}
            at = make_model(f"{folder}/{name}", config, 50)
            compare_logits(f"2500 positions, rope {name}", at, tokens(2500, 131, 50))


def endings(folder):
    """A list of eos ids ends a text at whichever comes first; ids beyond the tokenizer are generated."""
    with attempt("greedy", "eos list"):
        at = make_model(folder + "/eos", {"eos_token_id": [2, 7]}, 60)
        spell = common.make_tokenizer(at, 131)
        ids = tokens(12, 131, 61)
        model = common.reference(at)
        first = common.reference_greedy(model, ids, 64)
        # The 20th id of the text becomes the second one of the list: there both have to stop.
        at = make_model(folder + "/eos2", {"eos_token_id": [2, first[19]]}, 60)
        common.make_tokenizer(at, 131)
        out = common.reference_greedy(common.reference(at), ids, 64)
        equal("greedy", "eos list", greedy(at, spell(ids)), out, f"{len(out)} ids instead of {len(first)}")
    with attempt("greedy", "eos in generation_config.json alone"):
        common.write_json(at + "/generation_config.json", {"eos_token_id": [first[9], 2], "bos_token_id": 1})
        out = common.reference_greedy(common.reference(at), ids, 64)
        equal("greedy", "eos in generation_config.json", greedy(at, spell(ids)), out, f"{len(out)} ids")
    with attempt("logits", "vocabulary padded beyond the tokenizer"):
        at = make_model(folder + "/padded", {"vocab_size": 192}, 62)
        spell = common.make_tokenizer(at, 131)
        model = compare_logits("vocabulary padded beyond the tokenizer", at, tokens(80, 131, 62))
        ids = tokens(12, 131, 63)
        equal("greedy", "vocabulary padded", greedy(at, spell(ids)), common.reference_greedy(model, ids, 64))


def refused(folder):
    for name, (part, config) in REFUSED.items():
        for spelling in ("v4", "v5"):
            if spelling == "v5" and "rope" not in name:
                continue
            with attempt("refused", name):
                at = make_model(f"{folder}/{name}", config, 70, spelling=spelling)
                refuses("refused", name + (", v5 config" if spelling == "v5" else ""), part, "logits",
                        "--model", at, "--ids", "1,2", "--out", folder + "/out")


def story():
    """The trained model among the reference files: alone, in a ragged batch, with a common beginning."""
    if not common.DATA:
        return skip("greedy", "story_hf", common.NO_DATA)
    from transformers import AutoTokenizer
    folder = common.DATA + "/checkpoints/story_hf"
    prompts = ["Once upon a time", "The little dog", "Lily and Tom went to the park. They", "One day, a",
               "Once upon a time there was a girl", "Once upon a time there was a big"]
    with attempt("greedy", "story_hf"):
        tok = AutoTokenizer.from_pretrained(folder)
        model = compare_logits("story_hf", folder, tok(" ".join(prompts))["input_ids"])
        at = scratch("story")
        with open(at + "/prompts.jsonl", "w") as f:
            f.writelines(common.json.dumps({"prompt": p}) + "\n" for p in prompts)
        theirs = [common.reference_greedy(model, tok(p)["input_ids"], 64) for p in prompts]
        for p, out in zip(prompts, theirs):
            equal("greedy", f"story_hf, \"{p[:24]}\"", greedy(folder, p), out)
        humpback("generate", "--model", folder, "--data", at + "/prompts.jsonl", "--out", at + "/out.jsonl",
                 "--template", "none", "--temperature", 0, "--max-new", 64, "--slots", 4)
        with open(at + "/out.jsonl") as f:
            ours = [common.json.loads(row)["output"] for row in f]
        equal("greedy", "story_hf, ragged batch of 6", [text.strip() for text in ours],
              [tok.decode(out, skip_special_tokens=True).strip() for out in theirs])
    return None


def main():
    folder = scratch()
    configurations(folder)
    stored_types(folder)
    stored_names(folder)
    long_positions(folder)
    endings(folder)
    refused(folder)
    story()
    common.finish()


if __name__ == "__main__":
    main()
