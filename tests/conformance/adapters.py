"""LoRA adapters against PEFT: its adapters loaded by us, ours loaded by it, and merged models."""
import filecmp
import warnings

import common
from common import attempt, check, compare, humpback, logits, make_model, refuses, scratch, tokens

LIMIT = 1e-4
IDS = tokens(60, 131, 7)

# How PEFT may have been asked to make an adapter.
THEIRS = {
    "q, v, rank 4": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "all seven, rank 3, alpha 7.5": {"r": 3, "lora_alpha": 7.5, "target_modules": [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]},
    "all-linear": {"target_modules": "all-linear"},
    "rank_pattern": {"rank_pattern": {"q_proj": 2, "down_proj": 7}, "target_modules": "all-linear"},
    "rank_pattern, a layer's": {"rank_pattern": {"layers.1.self_attn.q_proj": 6},
                                "target_modules": ["q_proj", "o_proj"]},
    "alpha_pattern": {"alpha_pattern": {"v_proj": 3, "layers.0.*gate_proj": 20},
                      "target_modules": ["v_proj", "gate_proj", "k_proj"]},
    "rank_pattern, alpha_pattern, rsLoRA": {"rank_pattern": {"^model.layers.0.mlp.up_proj": 6},
                                            "alpha_pattern": {"q_proj": 2.5}, "use_rslora": True,
                                            "target_modules": ["q_proj", "up_proj"]},
    "rsLoRA, rank 6": {"r": 6, "use_rslora": True, "target_modules": "all-linear"},
    "layers_to_transform": {"layers_to_transform": [1], "target_modules": ["q_proj", "up_proj"]},
    "layers_to_transform, one number": {"layers_to_transform": 0, "layers_pattern": "layers",
                                        "target_modules": ["k_proj", "o_proj"]},
    "targets by regex": {"target_modules": r".*layers\.\d+\.(self_attn\.[qk]_proj|mlp\.down_proj)"},
    "targets by regex, one layer": {"target_modules": r"model\.layers\.1\..*(v|o|up)_proj"},
    "exclude_modules": {"target_modules": "all-linear", "exclude_modules": ["k_proj"]},
    "lm_head": {"target_modules": ["lm_head", "q_proj"]},
    "rank above a side": {"r": 20, "target_modules": ["k_proj", "v_proj"]},
}
REFUSED = {
    "DoRA": ("use_dora", {"use_dora": True, "target_modules": ["q_proj"]}),
    "lora_bias": ("lora_bias", {"lora_bias": True, "target_modules": ["o_proj"]}, {"attention_bias": True}),
    "modules_to_save": ("modules_to_save", {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}),
    "embedding": ("embed_tokens", {"target_modules": ["embed_tokens", "q_proj"]}),
    "bias all": ("bias", {"bias": "all", "target_modules": ["q_proj"]}, {"attention_bias": True}),
}


def peft_model(base, options, seed, folder=None):
    """A PEFT model with a random B, saved into `folder`."""
    import torch
    from peft import LoraConfig, get_peft_model
    torch.manual_seed(seed)
    defaults = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}
    model = get_peft_model(common.reference(base), LoraConfig(**{**defaults, **options}))
    for name, p in model.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            torch.nn.init.normal_(p, std=0.15)
    if folder:
        model.save_pretrained(folder)
    return model.eval()


def effect(base, theirs):
    """How far the adapter moves the logits: to compare one that does nothing would say nothing."""
    moved = float((common.reference_logits(common.reference(base), IDS) - theirs).abs().max())
    if not moved >= 0.1:
        raise ValueError(f"the adapter moves the logits by {moved} only")
    return f"the adapter moves them by {moved:.1f}"


def load_theirs(folder, base):
    for k, (name, options) in enumerate(THEIRS.items()):
        with attempt("we load", name):
            at = f"{folder}/theirs-{k}"
            theirs = common.reference_logits(peft_model(base, options, k, at), IDS)
            compare("we load", name, logits(base, IDS, at), theirs, LIMIT, effect(base, theirs))


def load_spellings(folder, base):
    """The same adapter as other programs write it."""
    from safetensors.torch import load_file, save_file
    at = folder + "/spellings"
    model = peft_model(base, {"target_modules": "all-linear"}, 50, at)
    theirs = common.reference_logits(model, IDS)
    file = at + "/adapter_model.safetensors"
    tensors = load_file(file)
    with attempt("we load", ".default. in the names"):
        save_file({n.replace(".weight", ".default.weight"): t for n, t in tensors.items()}, file)
        compare("we load", ".default. in the names", logits(base, IDS, at), theirs, LIMIT)
    with attempt("we load", "MLX"):  # transposed, and the scale (alpha / rank in PEFT) stands there as it is
        mlx = common.scratch("mlx")
        save_file({n.removeprefix("base_model.model.").replace(".lora_A.weight", ".lora_a")
                   .replace(".lora_B.weight", ".lora_b"): t.T.contiguous() for n, t in tensors.items()},
                  mlx + "/adapters.safetensors")
        common.write_json(mlx + "/adapter_config.json", {
            "fine_tune_type": "lora", "num_layers": -1,
            "lora_parameters": {"rank": 4, "scale": 2.0, "dropout": 0.0}})
        compare("we load", "MLX", logits(base, IDS, mlx), theirs, LIMIT)
    for dtype in ("float16", "bfloat16"):
        with attempt("we load", dtype):
            import torch
            rounded = {n: t.to(getattr(torch, dtype)) for n, t in tensors.items()}
            save_file(rounded, file)
            for n, p in model.named_parameters():
                if "lora_" in n:
                    p.data.copy_(rounded[n.replace(".default", "")].float())
            compare("we load", "stored in " + dtype, logits(base, IDS, at),
                    common.reference_logits(model, IDS), LIMIT)


def load_bases(folder):
    """Adapters on bases that are not plain."""
    for k, (name, config, dtype) in enumerate([
            ("both biases", {"attention_bias": True, "mlp_bias": True}, "float32"),
            ("tied, MQA, head_dim 12",
             {"tie_word_embeddings": True, "num_key_value_heads": 1, "head_dim": 12}, "float32"),
            ("bf16 base", {}, "bfloat16")]):
        with attempt("we load", "on " + name):
            base = make_model(f"{folder}/base-{k}", config, 110 + k, dtype)
            at = f"{folder}/on-{k}"
            theirs = common.reference_logits(peft_model(base, {"target_modules": "all-linear"}, k, at), IDS)
            compare("we load", "on " + name, logits(base, IDS, at), theirs, LIMIT, effect(base, theirs))


def refused(folder, base):
    for k, (name, (part, options, *config)) in enumerate(REFUSED.items()):
        with attempt("refused", name):
            at = f"{folder}/refused-{k}"
            model = base if not config else make_model(at + "-base", config[0], 120 + k)
            peft_model(model, options, k, at)
            refuses("refused", name, part, "logits", "--model", model, "--adapter", at, "--ids", "1,2",
                    "--out", folder + "/out")


def finetuned(folder, base, name, *flags):
    """A folder that a few steps of our own finetuning leave."""
    spell = common.make_tokenizer(base, 131)
    common.write_json(folder + "/template.json", {"name": "bare", "prompt": "{bos}{instruction}",
                                                  "reply": "{output}{eos}"})
    with open(folder + "/pairs.jsonl", "w") as f:
        for k in range(12):
            f.write(common.json.dumps({"instruction": spell(tokens(9, 131, k)),
                                       "output": spell(tokens(14, 131, 50 + k))}) + "\n")
    humpback("finetune", "--model", base, "--data", folder + "/pairs.jsonl", "--out", f"{folder}/{name}",
             "--template", folder + "/template.json", "--steps", 6, "--batch", 4, "--lr", 0.02,
             "--lr-end", 0.02, *flags)
    return f"{folder}/{name}"


def theirs_of(base, folder):
    """The logits of our adapter in PEFT."""
    from peft import PeftModel
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing or an unexpected key is only a warning there
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        return PeftModel.from_pretrained(common.reference(base), folder).eval()


def load_ours(folder, base):
    for k, (name, flags) in enumerate({
            "q, v, rank 4": ["--rank", 4, "--alpha", 8, "--targets", "q_proj,v_proj"],
            "all seven, rank 16": [],
            "o, down, rank 3, alpha 4.5": ["--rank", 3, "--alpha", 4.5, "--targets", "o_proj,down_proj"],
            "with dropout": ["--rank", 4, "--dropout", 0.3],
            "ranks and alphas that differ": ["--rank", 4, "--alpha", 8, "--targets", "q_proj,v_proj,up_proj",
                                             "--rank-of", "v_proj=7,up_proj=2", "--alpha-of", "q_proj=3"],
            "rsLoRA with a rank that differs": ["--rank", 4, "--rslora", "--rank-of", "down_proj=6"],
            "two layers, lm_head": ["--rank", 4, "--layers", "1-2", "--targets", "k_proj,o_proj,lm_head"],
            }.items()):
        with attempt("PEFT loads", name):
            at = finetuned(folder, base, f"ours-{k}", *flags)
            theirs = common.reference_logits(theirs_of(base, at), IDS)
            compare("PEFT loads", name, logits(base, IDS, at), theirs, LIMIT, effect(base, theirs))
    # Begun from their adapters, ours keep what is special about them.
    for k, name in enumerate(("rank_pattern, alpha_pattern, rsLoRA", "layers_to_transform", "lm_head",
                              "rsLoRA, rank 6")):
        with attempt("PEFT loads", "continued: " + name):
            peft_model(base, THEIRS[name], 60 + k, f"{folder}/start-{k}")
            at = finetuned(folder, base, f"continued-{k}", "--init-adapter", f"{folder}/start-{k}")
            theirs = common.reference_logits(theirs_of(base, at), IDS)
            before = logits(base, IDS, f"{folder}/start-{k}")
            moved = float(abs(before - theirs.numpy()).max())
            compare("PEFT loads", "continued: " + name, logits(base, IDS, at), theirs, LIMIT,
                    f"training moves them by {moved:.1f}")


def merged(folder):
    """export --merge against merge_and_unload: the numbers of each tensor, and logits on both sides."""
    import torch
    from safetensors.torch import load_file
    for k, (name, config, dtype) in enumerate([
            ("f32", {}, "float32"), ("bf16", {}, "bfloat16"), ("f16, tied", {"tie_word_embeddings": True},
                                                              "float16"),
            ("f32, both biases", {"attention_bias": True, "mlp_bias": True}, "float32")]):
        with attempt("merged", name):
            base = make_model(f"{folder}/merge-base-{k}", config, 130 + k, dtype)
            common.make_tokenizer(base, 131)
            model = peft_model(base, THEIRS["rank_pattern, alpha_pattern, rsLoRA"], k, f"{folder}/merge-{k}")
            out = f"{folder}/merged-{k}"
            humpback("export", "--model", base, "--adapter", f"{folder}/merge-{k}", "--merge", out)
            wanted = model.merge_and_unload().state_dict()
            got = load_file(out + "/model.safetensors")
            if config.get("tie_word_embeddings"):
                wanted.pop("lm_head.weight")
            types = {str(t.dtype).removeprefix("torch.") for n, t in got.items() if n.endswith("proj.weight")}
            check("merged", name + ", stored as the base", types == {dtype} and set(wanted) == set(got),
                  f"{len(got)} tensors, {', '.join(sorted(types))}")
            eps = {"float32": 1e-6, "bfloat16": 2.0 ** -8, "float16": 2.0 ** -11}[dtype]
            worst, _ = common.largest((float(((got[n].float() - w).abs() / (w.abs() + 1e-3)).max()), n)
                                      for n, w in wanted.items())
            check("merged", name + ", weights", worst <= eps * 1.01,
                  f"largest {worst:.1e} relative, rounding to the stored type {eps:.1e}")
            theirs = common.reference_logits(common.reference(out), IDS)
            compare("merged", name + ", logits there and here", logits(out, IDS), theirs, LIMIT)
            if dtype == "float32":
                compare("merged", name + ", logits as with the adapter",
                        logits(base, IDS, f"{folder}/merge-{k}"), theirs, LIMIT)
            same = [f for f in ("tokenizer.json", "tokenizer_config.json")
                    if filecmp.cmp(f"{base}/{f}", f"{out}/{f}", shallow=False)]
            check("merged", name + ", tokenizer files", len(same) == 2, "the same bytes: " + ", ".join(same))
            with torch.no_grad():
                del model


def main():
    folder = scratch()
    base = make_model(folder + "/base", {"num_hidden_layers": 3}, 100)
    load_theirs(folder, base)
    load_spellings(folder, base)
    load_bases(folder)
    refused(folder, base)
    load_ours(folder, base)
    merged(folder)
    common.finish()


if __name__ == "__main__":
    main()
