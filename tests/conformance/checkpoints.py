"""llama2.c checkpoints (.bin, versions 0, 1, 2) of a random model: logits against transformers.

The writer below follows the layout, not our reader: rows of q and k go from Hugging Face's halves to
pairs."""
import struct

import common
from common import attempt, compare, logits, make_model, scratch, tokens

LIMIT = 1e-4
ORDER = ["input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
         "post_attention_layernorm", "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj"]  # of version 0


def paired(w, heads):
    """Rows of each head from (first half, second half) to (first, second), (first, second) ..."""
    d = w.shape[0] // heads
    return w.reshape(heads, 2, d // 2, -1).transpose(1, 2).reshape(w.shape)


def parts(config, weights):
    """A function: the part's tensors, one per layer, as the checkpoint stores them."""
    def of(part):
        out = []
        for i in range(config["num_hidden_layers"]):
            w = weights[f"model.layers.{i}.{part}.weight"]
            if part.endswith("q_proj"):
                w = paired(w, config["num_attention_heads"])
            if part.endswith("k_proj"):
                w = paired(w, config["num_key_value_heads"])
            out.append(w)
        return out
    return of


def raw(tensors):
    return b"".join(t.contiguous().numpy().tobytes() for t in tensors)


def sizes(c, sign):
    return struct.pack("<7i", c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"],
                       c["num_attention_heads"], c["num_key_value_heads"], sign * c["vocab_size"],
                       c["max_position_embeddings"])


def version_0(c, w):
    of = parts(c, w)
    d = c["hidden_size"] // c["num_attention_heads"]
    tables = bytes(2 * c["max_position_embeddings"] * (d // 2) * 4)  # positions, which readers compute
    data = sizes(c, 1 if c["tie_word_embeddings"] else -1) + raw([w["model.embed_tokens.weight"]])
    data += b"".join(raw(of(part)) for part in ORDER) + raw([w["model.norm.weight"]]) + tables
    return data + (b"" if c["tie_word_embeddings"] else raw([w["lm_head.weight"]]))


def order_1(c, w):
    """(the norms, the matrices) in the order of versions 1 and 2."""
    of = parts(c, w)
    norms = of("input_layernorm") + of("post_attention_layernorm") + [w["model.norm.weight"]]
    matrices = [w["model.embed_tokens.weight"]]
    for part in ORDER[1:5] + ["mlp.gate_proj", "mlp.down_proj", "mlp.up_proj"]:
        matrices += of(part)
    return norms, matrices + ([] if c["tie_word_embeddings"] else [w["lm_head.weight"]])


def version_1(c, w):
    norms, matrices = order_1(c, w)
    head = struct.pack("<Ii", 0x616B3432, 1) + sizes(c, 1) + bytes([c["tie_word_embeddings"]])
    return head.ljust(256, b"\0") + raw(norms + matrices)


def quantised(t, group):
    """(bytes of int8 and scales, the values they stand for)"""
    import torch
    x = t.contiguous().reshape(-1, group)
    scale = x.abs().max(dim=1).values / 127
    q = (x / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
    return q.numpy().tobytes() + scale.numpy().tobytes(), (q.float() * scale[:, None]).reshape(t.shape)


def version_2(c, w, group):
    norms, matrices = order_1(c, w)
    head = struct.pack("<Ii", 0x616B3432, 2) + sizes(c, 1) + bytes([c["tie_word_embeddings"]])
    head += struct.pack("<i", group)
    return head.ljust(256, b"\0") + raw(norms) + b"".join(quantised(t, group)[0] for t in matrices)


def round_to_groups(c, w, group):
    """The weights that version 2 stores, in place. A row of a pair moves whole, so the groups of q and k are
    those of the moved rows only where a group does not cross rows: `group` divides the row length."""
    for name, t in w.items():
        if "norm" not in name:
            t.copy_(quantised(t, group)[1])


def main():
    import torch
    folder = scratch()
    ids = tokens(80, 131, 5)
    for k, tied in enumerate((False, True)):
        config = {"tie_word_embeddings": tied, "num_hidden_layers": 3}
        c = {**common.CONFIG, **config}
        at = make_model(f"{folder}/{k}", config, 140 + k)
        w = common.weights(config, 140 + k)
        for what, data in (("version 0", lambda: version_0(c, w)), ("version 1", lambda: version_1(c, w)),
                           ("version 2, groups of 16", lambda: version_2(c, w, 16))):
            name = what + (", tied" if tied else "")
            with attempt("logits", name), torch.no_grad():
                model = common.reference(at)
                if "2" in what:
                    round_to_groups(c, w, 16)
                    model.load_state_dict(w, strict=False)
                path = f"{folder}/{k}-{what[8]}.bin"
                with open(path, "wb") as f:
                    f.write(data())
                compare("logits", name, logits(path, ids), common.reference_logits(model, ids), LIMIT)
    common.finish()


if __name__ == "__main__":
    main()
