"""Random models as GGUF, written by the gguf package: matrices are blocks of random bits with scales of a
sane size, so that every nibble and every packed scale occurs, and their values are what gguf.quants makes of
them."""
import numpy
from gguf import GGUFWriter, GGMLQuantizationType as T
from gguf.constants import GGML_QUANT_SIZES, RopeScalingType
from gguf.quants import dequantize

import common

# Where a block's half-precision numbers stand: (offset of d, offset of m or dmin, what d is multiplied with
# on average: m or dmin times the same makes the values centred).
HALVES = {"Q4_0": (0, None, 0), "Q4_1": (0, 2, -7.5), "Q5_0": (0, None, 0), "Q5_1": (0, 2, -15.5),
          "Q8_0": (0, None, 0), "Q2_K": (80, 82, 1.5), "Q3_K": (108, None, 0), "Q4_K": (0, 2, 7.5),
          "Q5_K": (0, 2, 15.5), "Q6_K": (208, None, 0)}
TYPES = ["F32", "F16", "BF16", *HALVES]


def blocks(name, shape, deviation, rng):
    """Stored bytes (rows, bytes per row) of a random matrix whose values deviate by about `deviation`."""
    if name in ("F32", "F16"):
        return (rng.standard_normal(shape) * deviation).astype({"F32": "float32", "F16": "float16"}[name])
    if name == "BF16":
        x = (rng.standard_normal(shape) * deviation).astype("float32")
        return (x.view("uint32") >> 16).astype("uint16").view("uint8").reshape(shape[0], -1)
    elements, size = GGML_QUANT_SIZES[T[name]]
    n = shape[0] * shape[1] // elements
    out = rng.integers(0, 256, (n, size), dtype="uint8")
    d_at, m_at, centre = HALVES[name]

    def set_scale(scale):
        d = (scale * rng.uniform(0.5, 1.5, n)).astype("float16")
        out[:, d_at:d_at + 2] = d.view("uint8").reshape(n, 2)
        if m_at is not None:
            out[:, m_at:m_at + 2] = (d * numpy.float16(centre)).view("uint8").reshape(n, 2)
    set_scale(1.0 / 64)
    set_scale(deviation / 64 / dequantize(out, T[name]).std())
    return out.reshape(shape[0], -1)


def values(name, stored, shape):
    """float32 of the stored bytes, as the gguf package reads them."""
    return dequantize(stored.view("uint8").reshape(shape[0], -1), T[name]).reshape(shape).astype("float32")


NAMES = {"model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm",
         "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
         "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def gguf_name(name):
    """model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight"""
    base, suffix = name.rsplit(".", 1)
    if base.startswith("model.layers."):
        _, _, layer, part = base.split(".", 3)
        return f"blk.{layer}.{NAMES[part]}.{suffix}"
    return NAMES[base] + "." + suffix


def halves(w, heads):
    """Rows of each head from pairs, (first, second) ..., to Hugging Face's two halves."""
    d = w.shape[0] // heads
    return w.reshape(heads, d // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)


def pairs(w, heads):
    d = w.shape[0] // heads
    return w.reshape(heads, 2, d // 2, -1).swapaxes(1, 2).reshape(w.shape)


def heads_of(name, c):
    """The heads whose rows GGUF pairs, or 0."""
    if "q_proj" in name:
        return c["num_attention_heads"]
    return (c.get("num_key_value_heads") or c["num_attention_heads"]) if "k_proj" in name else 0


def rope_divisors(c):
    """rope_freqs.weight of a llama3 scaling: what each frequency is divided by."""
    s = c["rope_scaling"]
    d = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    inv = 1.0 / c["rope_theta"] ** (numpy.arange(0, d, 2, dtype="float64") / d)
    length = 2 * numpy.pi / inv
    smooth = (s["original_max_position_embeddings"] / length - s["low_freq_factor"]) / \
        (s["high_freq_factor"] - s["low_freq_factor"])
    return (1 / (numpy.clip(smooth, 0, 1) * (1 - 1 / s["factor"]) + 1 / s["factor"])).astype("float32")


def add_config(w, c):
    d = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    w.add_name("random")
    w.add_vocab_size(c["vocab_size"])
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_block_count(c["num_hidden_layers"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(c.get("num_key_value_heads") or c["num_attention_heads"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_rope_dimension_count(d)
    w.add_rope_freq_base(c["rope_theta"])
    if c.get("head_dim"):
        w.add_key_length(d)
        w.add_value_length(d)
    scaling = c.get("rope_scaling") or {}
    if scaling.get("rope_type") == "linear":
        w.add_rope_scaling_type(RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(scaling["factor"])


def make_gguf(path, config, seed, type_name, tokenizer=None, split=0):
    """Writes a random model whose matrices are of one type. Returns its weights in float32, in
    Hugging Face's names.
    tokenizer: adds its keys to a writer; split: at most so many tensors in a file."""
    rng = numpy.random.default_rng(seed)
    c = {**common.CONFIG, **config}
    writer = GGUFWriter(path, "llama", split_max_tensors=split)
    add_config(writer, c)
    if tokenizer:
        tokenizer(writer)
    else:
        writer.add_tokenizer_model("none")
    out = {}
    scaling = c.get("rope_scaling") or {}
    if scaling.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", rope_divisors(c))
    for name, shape in common.shapes(config).items():
        if len(shape) == 1:
            mean = 1 if name.endswith("norm.weight") else 0
            stored = value = (mean + 0.3 * rng.standard_normal(shape)).astype("float32")
            writer.add_tensor(gguf_name(name), stored)
        else:
            vocab = "embed_tokens" in name or "lm_head" in name
            stored = blocks(type_name, shape, (2 if vocab else 1.2) / shape[1] ** 0.5, rng)
            value = values(type_name, stored, shape)
            raw = None if type_name in ("F32", "F16") else T[type_name]
            writer.add_tensor(gguf_name(name), stored, raw_dtype=raw)
        out[name] = halves(value, heads_of(name, c)) if heads_of(name, c) else value
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out
