"""Loss and the gradient of every parameter against PyTorch: whole models, and adapters on them.

Ours come from build/conformance/gradients, which backpropagates a ragged batch through the header's chapter
11 at once; PyTorch's are the sum over its sequences, one by one."""
import os
import subprocess

import common
import gguf_files
import gguf_writer
from common import attempt, compare, line, make_model, scratch, tokens

LIMIT = 1e-4  # of the largest difference in a tensor, relative to the tensor's largest gradient
LOSS_LIMIT = 1e-6
PROGRAM = os.path.join(common.BUILD, "conformance-gradients")

LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
CONFIGS = {
    "grouped heads": ({}, "float32"),
    "MHA": ({"num_key_value_heads": 6}, "float32"),
    "MQA, rope linear": ({"num_key_value_heads": 1,
                          "rope_scaling": {"rope_type": "linear", "factor": 2.5}}, "float32"),
    "head_dim 12, rope llama3": ({"head_dim": 12, "rope_scaling": LLAMA3}, "float32"),
    "tied": ({"tie_word_embeddings": True}, "float32"),
    "attention_bias": ({"attention_bias": True}, "float32"),
    "both biases, tied": ({"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}, "float32"),
    "three layers, bf16": ({"num_hidden_layers": 3}, "bfloat16"),
    "f16": ({}, "float16"),
}
ADAPTERS = {
    "q, v, rank 4": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "all seven, rank 3": {"r": 3, "lora_alpha": 5, "target_modules": "all-linear"},
    "rank_pattern, alpha_pattern": {"r": 4, "lora_alpha": 8,
                                    "rank_pattern": {"q_proj": 2, "layers.1.*up_proj": 6},
                                    "alpha_pattern": {"q_proj": 3}, "target_modules": ["q_proj", "up_proj"]},
    "rsLoRA, one layer": {"r": 4, "lora_alpha": 8, "use_rslora": True, "layers_to_transform": [1],
                          "target_modules": ["k_proj", "o_proj", "down_proj"]},
    "lm_head": {"r": 4, "lora_alpha": 8, "target_modules": ["lm_head", "gate_proj"]},
}


def batch(seed):
    """Three sequences; some tokens have no target."""
    sequences = []
    for k, n in enumerate((7, 23, 12)):
        ids = tokens(n + 1, 131, 10 * seed + k)
        targets = ids[1:]
        for i in range(0, n, 5):
            targets[i] = -1
        sequences.append((ids[:-1], targets))
    return sequences


def ours(folder, adapter, out, sequences):
    """(sum of losses, {name: gradient}) of our program."""
    from safetensors.torch import load_file
    text = f"{len(sequences)}\n" + "".join(f"{len(ids)} {' '.join(map(str, ids + targets))}\n"
                                           for ids, targets in sequences)
    done = subprocess.run([PROGRAM, folder, adapter, out], input=text, capture_output=True, text=True)
    if done.returncode != 0:
        raise common.Refusal(done.stderr.strip())
    file = "model.safetensors" if adapter == "none" else "adapter_model.safetensors"
    return float(done.stdout), load_file(os.path.join(out, file))


def theirs(model, sequences):
    """(sum of losses) with the gradients of the mean left in the parameters of `model`."""
    import torch
    n = sum(t >= 0 for _, targets in sequences for t in targets)
    total = 0.0
    for ids, targets in sequences:
        logits = model(torch.tensor([ids])).logits[0].double()
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(targets), ignore_index=-1,
                                                 reduction="sum")
        (loss / n).backward()
        total += loss.item()
    return total


def compare_all(what, got, wanted):
    """One line for all tensors: the largest relative difference, and where."""
    missing = sorted(set(wanted) ^ set(got))
    if missing:
        return line("gradients", what, f"only one side has {', '.join(missing[:3])}", "failed")
    if not wanted:
        return line("gradients", what, "no gradient to compare", "failed")
    differences = []
    for name, g in wanted.items():
        scale = float(g.abs().max())
        if scale == 0 or g.shape != got[name].shape:
            return line("gradients", what, f"{name}: no gradient, or of another shape", "failed")
        differences.append((float((got[name].double() - g.double()).abs().max()) / scale, name))
    worst, where = common.largest(differences)
    return line("gradients", what, f"largest {worst:.1e}  limit {LIMIT:.0e} relative, {len(wanted)} tensors, "
                f"at {where}", "ok" if worst <= LIMIT else "failed")


def whole_models(folder):
    for k, (name, (config, dtype)) in enumerate(CONFIGS.items()):
        with attempt("gradients", name):
            at = make_model(f"{folder}/{k}", config, 80 + k, dtype)
            sequences = batch(k)
            loss, grads = ours(at, "none", f"{folder}/{k}-grads", sequences)
            model = common.reference(at)
            total = theirs(model, sequences)
            compare("loss", name, [loss / total], [1.0], LOSS_LIMIT, f"of {total:.4f}")
            compare_all(name, grads, {n: p.grad for n, p in model.named_parameters()})


def compare_adapter(what, path, base, options, folder, k):
    """An adapter with a random B on our model at `path`, which transformers has as `base`."""
    import torch
    from peft import LoraConfig, get_peft_model
    with attempt("gradients", what):
        torch.manual_seed(k)
        model = get_peft_model(base, LoraConfig(**options, task_type="CAUSAL_LM"))
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        for n, p in trained.items():
            if "lora_B" in n:
                torch.nn.init.normal_(p, std=0.1)
        model.save_pretrained(folder + "-adapter")
        sequences = batch(k)
        loss, grads = ours(path, folder + "-adapter", folder + "-grads", sequences)
        total = theirs(model, sequences)
        compare("loss", what, [loss / total], [1.0], LOSS_LIMIT, f"of {total:.4f}")
        compare_all(what, grads, {n.replace(".default", ""): p.grad for n, p in trained.items()})


def adapters(folder):
    for k, (name, options) in enumerate(ADAPTERS.items()):
        at = make_model(f"{folder}/a{k}", {}, 90 + k, "bfloat16" if k == 1 else "float32")
        compare_adapter("adapter " + name, at, common.reference(at), options, f"{folder}/a{k}", k)


def quantised_bases(folder):
    """On a base of every stored type, the gradient passes through the blocks."""
    for k, name in enumerate(gguf_writer.TYPES):
        path = f"{folder}/{name}.gguf"
        weights = gguf_writer.make_gguf(path, gguf_files.WIDE, 250 + k, name)
        base = gguf_files.reference(f"{folder}/{name}", gguf_files.WIDE, weights)
        compare_adapter("adapter on " + name, path, base, {"r": 4, "target_modules": "all-linear"},
                        f"{folder}/{name}", k)


def main():
    folder = scratch()
    whole_models(folder)
    adapters(folder)
    quantised_bases(folder)
    common.finish()


if __name__ == "__main__":
    main()
