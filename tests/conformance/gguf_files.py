"""GGUF in both directions: files of the gguf package and of llama.cpp read by us, ours read by both of them.

Logits of a quantised file are compared with transformers computing in float32 on the values that
gguf.quants.dequantize finds in it. llama.cpp itself rounds activations to int8 before a product with
quantised weights (and to the weights' type with F16 and BF16), so its distance is reported as a normalised
mean square error, with a limit that only a wrong layout would exceed."""
import filecmp
import os
import re

import numpy

import common
import gguf_tokenizers
import gguf_writer
import llama
from common import attempt, check, compare, equal, humpback, line, make_model, scratch, skip, tokens

LIMIT = 1e-4        # to transformers in float32
LLAMA_LIMIT = 1e-3  # to llama.cpp where weights are f32
NMSE_LIMIT = 1e-2   # to llama.cpp where it rounds
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}  # rows of whole K blocks
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
CONFIGS = {
    "grouped heads": {},
    "MHA": {"num_key_value_heads": 6},
    "MQA": {"num_key_value_heads": 1},
    "head_dim 12": {"head_dim": 12},
    "tied": {"tie_word_embeddings": True},
    "attention_bias": {"attention_bias": True},
    "rope linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    "rope llama3 (rope_freqs)": {"rope_scaling": LLAMA3, "rope_theta": 500000.0, "head_dim": 16},
}
IDS = tokens(60, 131, 9)


def reference(folder, config, weights):
    """transformers on these float32 weights; the folder stays."""
    import torch
    from safetensors.torch import save_file
    make_model(folder, config, 0)
    tensors = {n: torch.from_numpy(numpy.array(w)) for n, w in weights.items()}
    save_file(tensors, folder + "/model.safetensors", metadata={"format": "pt"})
    return common.reference(folder)


def with_llama(what, path, ours, limit=None, adapter=None, topic="llama.cpp"):
    """Our logits against llama.cpp's: the largest difference below `limit`, or the error below NMSE_LIMIT."""
    if llama.missing():
        return skip(topic, what, llama.missing())
    theirs = llama.logits(path, IDS, adapter)
    if limit:
        return compare(topic, what, ours, theirs, limit)
    nmse = float(((ours - theirs) ** 2).mean() / (theirs ** 2).mean())
    return line(topic, what, f"normalised mean square error {nmse:.1e}  limit {NMSE_LIMIT:.0e}",
                "ok" if nmse <= NMSE_LIMIT else "failed")


def unpacked(what, path, wanted, folder):
    """Our float32 of every tensor, which exporting a merged folder writes, is exactly the package's."""
    from safetensors.numpy import load_file
    common.make_tokenizer(common.scratch(os.path.basename(folder) + "-tokenizer"), 131)
    humpback("export", "--model", path, "--tokenizer", folder + "-tokenizer", "--merge", folder,
             "--dtype", "f32")
    got = load_file(folder + "/model.safetensors")
    wrong = [n for n, w in wanted.items() if n not in got or not numpy.array_equal(got[n], w)]
    check("values", what, not wrong, f"{len(wanted)} tensors exactly equal" if not wrong else
          f"{len(wrong)} of {len(wanted)} tensors differ, {wrong[0]}")


def read_types(folder):
    for k, name in enumerate(gguf_writer.TYPES):
        path = f"{folder}/{name}.gguf"
        weights = gguf_writer.make_gguf(path, WIDE, 150 + k, name)
        with attempt("logits", name):
            model = reference(f"{folder}/{name}", WIDE, weights)
            ours = common.logits(path, IDS)
            theirs = common.reference_logits(model, IDS)
            compare("logits", name, ours, theirs, LIMIT, f"range {theirs.min():.1f} {theirs.max():.1f}")
            for n in (1, 5):  # few rows at a time go through kernels of their own
                compare("logits", f"{name}, {n} tokens", common.logits(path, IDS[:n]), theirs[:n], LIMIT)
            with_llama(name, path, ours, LLAMA_LIMIT if name == "F32" else None)
        with attempt("values", name):
            unpacked(name, path, weights, f"{folder}/{name}-unpacked")


def read_configs(folder):
    for k, (name, config) in enumerate(CONFIGS.items()):
        with attempt("logits", name):
            path = f"{folder}/config-{k}.gguf"
            weights = gguf_writer.make_gguf(path, config, 170 + k, "F32")
            ours = common.logits(path, IDS)
            compare("logits", name, ours,
                    common.reference_logits(reference(f"{folder}/config-{k}", config, weights), IDS), LIMIT)
            with_llama(name, path, ours, LLAMA_LIMIT)


def read_containers(folder):
    """Version 2 of the format, which differs in the number alone, and models in several files."""
    with attempt("logits", "GGUF version 2"):
        path = folder + "/v2.gguf"
        weights = gguf_writer.make_gguf(path, {}, 180, "F16")
        model = reference(folder + "/v2", {}, weights)
        with open(path, "r+b") as f:
            f.seek(4)
            f.write(b"\x02\0\0\0")
        compare("logits", "GGUF version 2", common.logits(path, IDS), common.reference_logits(model, IDS),
                LIMIT)
    with attempt("logits", "split files"):
        weights = gguf_writer.make_gguf(folder + "/split.gguf", WIDE, 181, "Q8_0", split=6)
        first = sorted(f for f in os.listdir(folder) if f.startswith("split-00001-of"))[0]
        model = reference(folder + "/split", WIDE, weights)
        ours = common.logits(f"{folder}/{first}", IDS)
        compare("logits", f"split files, {first[12:20]}", ours, common.reference_logits(model, IDS), LIMIT)
        with_llama("split files", f"{folder}/{first}", ours)


def read_quantizer(folder):
    """What llama.cpp's own quantiser makes: mixtures of types."""
    from gguf import GGUFReader
    from gguf.quants import dequantize
    source = folder + "/F32.gguf"
    c = {**common.CONFIG, **WIDE}
    for ftype in ("MOSTLY_Q4_K_M", "MOSTLY_Q2_K", "MOSTLY_Q3_K_M", "MOSTLY_Q5_K_S", "MOSTLY_Q4_0"):
        what = ftype.removeprefix("MOSTLY_") + " by llama.cpp"
        if llama.missing():
            skip("logits", what, llama.missing())
            continue
        with attempt("logits", what):
            path = f"{folder}/{ftype}.gguf"
            llama.quantize(source, path, ftype)
            names = {gguf_writer.gguf_name(n): n for n in common.shapes(WIDE)}
            weights, types = {}, set()
            for t in GGUFReader(path).tensors:
                w = numpy.array(dequantize(t.data, t.tensor_type)).reshape(t.shape[::-1]).astype("float32")
                heads = gguf_writer.heads_of(names[t.name], c)
                weights[names[t.name]] = gguf_writer.halves(w, heads) if heads else w
                types.add(t.tensor_type.name)
            model = reference(f"{folder}/{ftype}", WIDE, weights)
            ours = common.logits(path, IDS)
            compare("logits", what, ours, common.reference_logits(model, IDS), LIMIT, " ".join(sorted(types)))
            with_llama(what, path, ours)
            unpacked(what, path, weights, f"{folder}/{ftype}-unpacked")


def check_written(what, path, folder, config, type_name):
    """The gguf package reads our file: names, shapes, types, and bytes as it would have written them."""
    from gguf import GGMLQuantizationType as T, GGUFReader
    from gguf.quants import quantize
    from safetensors.torch import load_file
    c = {**common.CONFIG, **config}
    reader = GGUFReader(path)
    found = {t.name: t for t in reader.tensors}
    wanted = {gguf_writer.gguf_name(n): (n, w.float().numpy())
              for n, w in load_file(folder + "/model.safetensors").items()}
    extra = set(found) - set(wanted) - {"rope_freqs.weight"}
    missing = set(wanted) - set(found)
    wrong = []
    for name, (source, w) in wanted.items():
        heads = gguf_writer.heads_of(source, c)
        w = numpy.ascontiguousarray(gguf_writer.pairs(w, heads) if heads else w)
        t = T.F32 if w.ndim == 1 else T[type_name]
        data = w.astype("float16") if t == T.F16 else quantize(w, t)
        if name in found and (found[name].tensor_type != t or found[name].data.tobytes() != data.tobytes()):
            wrong.append(name)
    ok = not (extra or missing or wrong)
    result = f"{len(found)} tensors as gguf writes them, {len(reader.fields)} keys"
    if not ok:
        result = f"differ: {wrong[:3]}; absent: {sorted(missing)[:3]}; too many: {sorted(extra)[:3]}"
    check("written", what, ok, result)


def write_models(folder):
    """Our exports, of each type and configuration, in llama.cpp, in the gguf package, and back in ours."""
    whole_blocks = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    types = [("float32", "f32"), ("float32", "f16"), ("float32", "bf16"), ("float32", "q8_0"),
             ("bfloat16", "bf16"), ("bfloat16", "f32"), ("float16", "q8_0")]
    cases = [(f"{dtype} from {stored}", whole_blocks, stored, dtype) for stored, dtype in types]
    cases += [("f32, " + name, config, "float32", "f32") for name, config in CONFIGS.items()]
    for k, (what, config, stored, dtype) in enumerate(cases):
        with attempt("export", what):
            config = {"vocab_size": 300, **config}
            at = make_model(f"{folder}/out-{k}", config, 190 + k, stored)
            gguf_tokenizers.byte_level(at, "smollm", 300)
            path = f"{folder}/out-{k}.gguf"
            humpback("export", "--model", at, "--gguf", path, "--dtype", dtype)
            check_written(what, path, at, config, dtype.upper())
            theirs = common.reference_logits(common.reference(at), IDS)
            if dtype == "f32":
                compare("export", what + ", read again", common.logits(path, IDS), theirs, LIMIT)
            with_llama(what, path, theirs.numpy() if dtype == "f32" else common.logits(path, IDS),
                       LLAMA_LIMIT if dtype == "f32" else None, topic="export")
    with attempt("export", "twice the same bytes"):
        again = os.path.join(common.scratch("again"), os.path.basename(path))  # the name stands in the file
        humpback("export", "--model", at, "--gguf", again, "--dtype", dtype)
        same = filecmp.cmp(path, again, shallow=False)
        check("export", "twice the same bytes", same, "equal" if same else "different")


def write_adapters(folder):
    """export --adapter-gguf: llama.cpp with it gives PEFT's logits."""
    import adapters
    for k, (name, options, config) in enumerate([
            ("all seven", {"target_modules": "all-linear"}, {}),
            ("rsLoRA", {"use_rslora": True, "r": 6, "target_modules": "all-linear"},
             {"num_key_value_heads": 1}),
            ("rank_pattern, alpha_pattern", adapters.THEIRS["rank_pattern, alpha_pattern, rsLoRA"], {}),
            ("lm_head", adapters.THEIRS["lm_head"], {}),
            ("layers_to_transform", adapters.THEIRS["layers_to_transform"], {"head_dim": 12})]):
        with attempt("adapter", name):
            config = {"vocab_size": 300, **config}
            base = make_model(f"{folder}/adapter-base-{k}", config, 210 + k)
            gguf_tokenizers.byte_level(base, "smollm", 300)
            model = adapters.peft_model(base, options, k, f"{folder}/adapter-{k}")
            theirs = common.reference_logits(model, IDS).numpy()
            humpback("export", "--model", base, "--gguf", f"{folder}/adapter-base-{k}.gguf", "--dtype", "f32")
            humpback("export", "--model", base, "--adapter", f"{folder}/adapter-{k}", "--adapter-gguf",
                     f"{folder}/adapter-{k}.gguf")
            with_llama(name, f"{folder}/adapter-base-{k}.gguf", theirs, LLAMA_LIMIT,
                       f"{folder}/adapter-{k}.gguf", topic="adapter")
            again = common.logits(f"{folder}/adapter-base-{k}.gguf", IDS, f"{folder}/adapter-{k}.gguf")
            compare("adapter", name + ", read again", again, theirs, LIMIT)
            humpback("export", "--model", base, "--adapter", f"{folder}/adapter-{k}", "--gguf",
                     f"{folder}/merged-{k}.gguf", "--dtype", "f32")
            with_llama(name + ", merged", f"{folder}/merged-{k}.gguf", theirs, LLAMA_LIMIT, topic="adapter")


def ids_of(model, file):
    return [common.json.loads(row) for row in
            humpback("tokenize", "--model", model, "--jsonl", file, "--bos", "no").splitlines()]


def vocabularies(folder):
    """The tokenizer inside a GGUF: ids as from the original, which stands in a folder."""
    texts = gguf_tokenizers.texts(400)
    file = folder + "/texts.jsonl"
    with open(file, "w") as f:
        f.writelines(common.json.dumps(t) + "\n" for t in texts)
    for kind in ("llama-bpe", "smollm", "gpt-2", "spm"):
        with attempt("ids", kind):
            at = make_model(f"{folder}/ids-{kind}", {"vocab_size": 600}, 220)
            make = gguf_tokenizers.spm if kind == "spm" else gguf_tokenizers.byte_level
            encode, add_keys = make(at, kind, 600)
            wanted = [encode(t) for t in texts]
            equal("ids", f"{kind}, the folder", ids_of(at, file), wanted, f"{len(texts)} texts")
            path = f"{folder}/ids-{kind}.gguf"
            gguf_writer.make_gguf(path, {"vocab_size": 600}, 220, "F16", add_keys)
            with attempt("ids", f"{kind}, GGUF of the gguf package"):
                equal("ids", f"{kind}, GGUF of the gguf package", ids_of(path, file), wanted)
            ours = f"{folder}/ids-{kind}-ours.gguf"
            humpback("export", "--model", at, "--gguf", ours, "--dtype", "f16")
            equal("ids", f"{kind}, GGUF of ours", ids_of(ours, file), wanted)
            for what, gguf in ((f"{kind}, the package's in llama.cpp", path),
                               (f"{kind}, ours in llama.cpp", ours)):
                if llama.missing():
                    skip("ids", what, llama.missing())
                    continue
                with llama.Model(gguf, vocab_only=True) as m:
                    equal("ids", what, [m.tokenize(t) for t in texts], wanted)


def generation(folder):
    """Greedy text from a GGUF alone: its weights, its vocabulary, its eos."""
    at = make_model(f"{folder}/greedy", {"vocab_size": 300}, 230)
    encode, _ = gguf_tokenizers.byte_level(at, "smollm", 300)
    model = common.reference(at)
    with attempt("greedy", "GGUF of ours"):
        humpback("export", "--model", at, "--gguf", folder + "/greedy.gguf", "--dtype", "f32")
        for prompt in ("the whole method", "x = 1", "humpback run"):
            ours = humpback("generate", "--model", folder + "/greedy.gguf", "--prompt", prompt, "--template",
                            "none", "--temperature", 0, "--max-new", 64, "--print-ids")
            equal("greedy", f"GGUF of ours, \"{prompt}\"", common.json.loads(ours),
                  common.reference_greedy(model, encode(prompt), 64))


def story():
    """The reference files: the trained model in six types, in our program and in llama.cpp."""
    if not common.DATA:
        return skip("logits", "story-*.gguf", common.NO_DATA)
    model = common.reference(common.DATA + "/checkpoints/story_hf")
    f32 = common.reference_logits(model, IDS).numpy()
    for name in ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m"):
        with attempt("logits", "story-" + name):
            path = f"{common.DATA}/gguf/story-{name}.gguf"
            ours = common.logits(path, IDS)
            if name == "f32":
                compare("logits", "story-f32", ours, f32, LIMIT)
            with_llama("story-" + name, path, ours, LLAMA_LIMIT if name == "f32" else None)
    return None


def main():
    folder = scratch()
    if re.search("cannot be imported", llama.missing() or ""):
        check("llama.cpp", "import", False, llama.missing())
    read_types(folder)
    read_configs(folder)
    read_containers(folder)
    read_quantizer(folder)
    write_models(folder)
    write_adapters(folder)
    vocabularies(folder)
    generation(folder)
    story()
    common.finish()


if __name__ == "__main__":
    main()
