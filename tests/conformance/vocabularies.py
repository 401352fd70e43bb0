"""Tokenizer files to compare on, beside the published ones: tokenizers and sentencepiece train them from real
and made text, so that every setting of the formats occurs."""
import json
import os
import random
import struct

import texts
from common import DATA, scratch

import gguf
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
HERE = scratch()  # the folder of this run's files


def read_json(path):
    """A tokenizer.json that tokenizers reads: LLaMA-2's published file lost its no-break spaces, and the
    merges that held them are no pairs any more."""
    with open(path, encoding="utf-8") as f:
        data = json.load(f)
    data["model"]["merges"] = [m for m in data["model"]["merges"] if not (isinstance(m, str) and "  " in m)]
    return data


def load(data):
    tok = Tokenizer.from_str(json.dumps(data))
    tok.no_truncation()
    tok.no_padding()
    return tok


def read_prose():
    """Real text, where there is some, to train on and to cut from, and what texts.py makes."""
    out = []
    path = DATA and os.path.join(DATA, "instructions", "lf_c4_demo.jsonl")
    if path and os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            out = [json.loads(row)["text"] for row in f if row.strip()]
    g = texts.Texts(1)
    kinds = [g.english, g.code, g.contractions, g.numbers, g.spaces, g.long_word, g.emoji, g.mixed]
    return "\n".join(out + [kind() for _ in range(600) for kind in kinds])


def special(names):
    return [AddedToken(n, special=True, normalized=False) for n in names]


def write(tok, name):
    path = os.path.join(HERE, name)
    tok.save(path)
    return path


def llama3(data):
    """Llama-3's tokenizer.json from its vocabulary and merges, as Hugging Face's converter writes it."""
    with open(os.path.join(data, "llama3.2.encoder.json"), encoding="utf-8") as f:
        vocab = json.load(f)
    with open(os.path.join(data, "llama3.2.vocab.bpe"), encoding="utf-8") as f:
        merges = [tuple(m.split(" ")) for m in f.read().split("\n") if m and not m.startswith("#version")]
    tok = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    names = ["begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1",
             "finetune_right_pad_id", "step_id", "start_header_id", "end_header_id", "eom_id", "eot_id",
             "python_tag", "image"] + [f"reserved_special_token_{i}" for i in range(2, 246)]
    tok.add_special_tokens(special([f"<|{n}|>" for n in names]))
    return tok


def byte_level(prose, pre, names=(), size=3000):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(names), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(prose.split("\n"), trainer)
    return tok


def metaspace(prose, scheme, split, fallback=True, size=2500):
    """A LLaMA-like vocabulary in the newer spelling, with added tokens of every kind."""
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=scheme != "never", byte_fallback=fallback))
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    first = ["<unk>", "<s>", "</s>"] + ([f"<0x{b:02X}>" for b in range(256)] if fallback else [])
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=first, show_progress=False,
                                  max_token_length=24, limit_alphabet=200)
    tok.train_from_iterator(prose.split("\n"), trainer)
    data = json.loads(tok.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
    tok = Tokenizer.from_str(json.dumps(data))
    if split:
        steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        tok.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if scheme != "never" else []))
    else:
        tok.decoder = decoders.Metaspace(prepend_scheme=scheme)
    add_odd(tok)
    return tok


def add_odd(tok):
    tok.add_tokens([AddedToken("<left>", lstrip=True), AddedToken("<right>", rstrip=True, normalized=False),
                    AddedToken("word", single_word=True), AddedToken("<both>", lstrip=True, rstrip=True),
                    AddedToken("wordy", normalized=False, single_word=True), AddedToken("two words")])
    tok.add_special_tokens([AddedToken("<l>", lstrip=True, normalized=True), AddedToken("<r>", rstrip=True),
                            AddedToken("<one>", single_word=True, normalized=False), AddedToken("<s>x"),
                            AddedToken("\n\n", normalized=False)])


def write_gguf(tok, name, pre):
    """The same vocabulary in a GGUF without tensors."""
    data = json.loads(tok.to_str())
    added = {t["id"]: 3 if t["special"] else 4 for t in data["added_tokens"]}
    path = os.path.join(HERE, name)
    size = tok.get_vocab_size()
    w = gguf.GGUFWriter(path, "llama")
    w.add_block_count(1)
    w.add_context_length(64)
    w.add_tokenizer_model("gpt2")
    if pre:
        w.add_tokenizer_pre(pre)
    w.add_token_list([tok.id_to_token(i) for i in range(size)])
    w.add_token_types([added.get(i, 1) for i in range(size)])
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()
    return path


def train_spm(prose, name, **options):
    file = os.path.join(HERE, "prose.txt")
    with open(file, "w", encoding="utf-8") as f:
        f.write(prose)
    prefix = os.path.join(HERE, name)
    sentencepiece.SentencePieceTrainer.train(
        input=file, model_prefix=prefix, model_type="bpe", normalization_rule_name="identity",
        **{"vocab_size": 4000, "num_threads": 1, "minloglevel": 2, "character_coverage": 0.99, **options})
    return prefix + ".model"


def varint(n):
    return bytes([n & 127 | 128]) + varint(n >> 7) if n > 127 else bytes([n])


def fields(data):
    """(number, bytes of the field, its value) of a protobuf message."""
    def number(i):
        n = shift = 0
        while True:
            n |= (data[i] & 127) << shift
            i, shift = i + 1, shift + 7
            if data[i - 1] < 128:
                return n, i
    i = 0
    while i < len(data):
        start = i
        tag, i = number(i)
        if tag & 7 == 0:
            value, i = number(i)
        else:
            n, i = number(i) if tag & 7 == 2 else (4, i)
            value, i = data[i:i + n], i + n
        yield tag >> 3, data[start:i], value


def change_spm(path, name, change):
    """The same model with other pieces: change([[text, score, type], ...]) returns them."""
    with open(path, "rb") as f:
        model = list(fields(f.read()))
    pieces = []
    for number, _, value in model:
        if number == 1:
            p = {n: v for n, _, v in fields(value)}
            pieces.append([p[1].decode(), struct.unpack("<f", p[2])[0], p.get(3, 1)])
    out = b"".join(whole for number, whole, _ in model if number != 1)
    for text, score, kind in reversed(change(pieces)):
        text = text.encode()
        body = b"\x0a" + varint(len(text)) + text + b"\x15" + struct.pack("<f", score)
        body += b"\x18" + bytes([kind])
        out = b"\x0a" + varint(len(body)) + body + out
    path = os.path.join(HERE, name + ".model")
    with open(path, "wb") as f:
        f.write(out)
    return path


def make_unused(pieces):
    """A third of the pieces is not used any more, single characters among them."""
    r = random.Random(3)
    return [[t, s, 5 if k == 1 and (len(t) > 1 or t in "qzJ") and r.random() < 0.33 else k]
            for t, s, k in pieces]


def make_letters(pieces):
    """Some characters are no pieces any more, though pieces hold them. Scores come in steps: many ties."""
    return [[t, float(round(s / 50)), k] for t, s, k in pieces if t not in list("ekn\u2581")]
