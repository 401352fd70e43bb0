"""Token ids and texts of every family against sentencepiece and tokenizers, on 20,000 texts of each.

For each: ids with special tokens left as text, ids with special tokens taken (where the reference can), the
texts of those ids, and the texts of random lists of ids. For SentencePiece also 20,000 byte strings that are
no UTF-8. TEXTS=n tries n of each.

What the reference does and we do not, on purpose:
  control pieces   sentencepiece gives a control piece that is one character long to whoever writes that
                   character. Here no text becomes a control token: none of the models below has one.
  merged specials  tokenizers lets merges arrive at a special token, if a vocabulary has such merges. Here no
                   text becomes one; so those trained below see none.
  normalised text  tokenizers 0.23 decodes an added token with "normalized": true as its normalised text, and
                   does not see any more that it is special. Here it is its own text, and hidden if special;
                   so the reference decodes without its normaliser.
  new scripts      texts.py draws no code point younger than Python's Unicode.
"""
import json
import os
import random
import struct
import subprocess

import texts
import common
from common import DATA, attempt, humpback, line, scratch

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

N = int(os.environ.get("TEXTS", "20000"))
PROGRAM = os.path.join(common.BUILD, "conformance-tokenizers")
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
HERE = None  # the folder of this run's files


# ---- our side --------------------------------------------------------------------------------------------

def dump(name, rows):
    path = os.path.join(HERE, name)
    with open(path, "w", encoding="utf-8") as f:
        for row in rows:
            f.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def lines(out):
    return [json.loads(x) for x in out.split("\n")[:-1]]


def our_ids(path, rows, special):
    out = humpback("tokenize", "--tokenizer", path, "--jsonl", dump("texts.jsonl", rows), "--bos", "no",
                   *(["--special"] if special else []))
    return lines(out)


def our_texts(path, rows):
    return lines(humpback("tokenize", "--tokenizer", path, "--decode-jsonl", dump("ids.jsonl", rows)))


# ---- comparing -------------------------------------------------------------------------------------------

def differences(what, inputs, ours, theirs, show):
    """One line: how many of the inputs gave something else, and the shortest of them."""
    wrong = [(len(i), i, a, b) for i, a, b in zip(inputs, ours, theirs) if a != b]
    if len(ours) != len(theirs):
        return line("tokenizers", what, f"{len(ours)} lines, expected {len(theirs)}", "failed")
    note = ""
    if wrong:
        _, i, a, b = min(wrong, key=lambda w: w[0])
        note = f"; {i!r:.200} gave {show(a)!r:.200}, expected {show(b)!r:.200}"
    return line("tokenizers", what, f"{len(theirs)} tried, {len(wrong)} differ{note}", "failed" if wrong else "ok")


def random_ids(seed, size, favoured):
    """Lists of ids: any, and often the favoured ones (bytes, special tokens, spaces)."""
    r = random.Random(seed)
    return [[r.choice(favoured) if favoured and r.random() < 0.4 else r.randrange(size)
             for _ in range(r.randint(0, 12))] for _ in range(N)]


def compare(name, path, encode, encode_special, decode, generator, size, favoured):
    """encode(texts), encode_special(texts) or None, decode(lists of ids): the reference."""
    with attempt("tokenizers", name):
        rows = generator.many(N)
        theirs = encode(rows)
        ours = our_ids(path, rows, False)
        differences(f"{name}: ids", rows, ours, theirs, lambda x: x)
        if encode_special:
            theirs = encode_special(rows)
            differences(f"{name}: ids, special tokens", rows, our_ids(path, rows, True), theirs, lambda x: x)
        lists = [ids for ids in theirs if ids]
        differences(f"{name}: texts", lists, our_texts(path, lists), decode(lists), lambda x: x)
        lists = random_ids(7, size, favoured)
        differences(f"{name}: texts of random ids", lists, our_texts(path, lists), decode(lists), lambda x: x)


def compare_json(name, path, seed, prose=""):
    with attempt("tokenizers", name):
        file = os.path.join(path, "tokenizer.json") if os.path.isdir(path) else path
        with open(file, encoding="utf-8") as f:
            data = json.load(f)
        # LLaMA-2's published file lost its no-break spaces, and tokenizers refuses the merges that held them
        data["model"]["merges"] = [m for m in data["model"]["merges"] if not (isinstance(m, str) and "  " in m)]
        tok = Tokenizer.from_str(json.dumps(data))
        tok.no_truncation()
        tok.no_padding()
        decoder = Tokenizer.from_str(json.dumps({**data, "normalizer": None}))

        def encode(special):
            def run(rows):
                tok.encode_special_tokens = not special
                return [e.ids for e in tok.encode_batch(rows, add_special_tokens=False)]
            return run

        def decode(rows):
            return [decoder.decode(ids, skip_special_tokens=True) for ids in rows]

        added = [t.content for t in tok.get_added_tokens_decoder().values()]
        size = tok.get_vocab_size()
        pieces = [tok.decode([i], skip_special_tokens=True) for i in range(0, size, max(1, size // 3000))]
        vocab = tok.get_vocab()
        favoured = [vocab[t] for t in added + ["\u2581", "\u2581\u2581", "\u0120"] if t in vocab]
        favoured += [i for p, i in vocab.items() if p.startswith("<0x")]
        generator = texts.Texts(seed, pieces, added, prose)
        compare(name, path, encode(False), encode(True), decode, generator, size, favoured)


def compare_spm(name, path, seed, prose=""):
    with attempt("tokenizers", name):
        sp = sentencepiece.SentencePieceProcessor(model_file=path)
        size = sp.get_piece_size()
        pieces = [sp.id_to_piece(i).replace("\u2581", " ") for i in range(0, size, max(1, size // 3000))]
        odd = [i for i in range(size) if sp.is_control(i) or sp.is_byte(i) or sp.is_unknown(i) or sp.is_unused(i)
               or sp.id_to_piece(i).startswith("\u2581")][:600]
        special = [sp.id_to_piece(i) for i in odd[:3]] + ["[x]", "[xy]", "xyz "]
        generator = texts.Texts(seed, pieces, special, prose)
        compare(name, path, sp.encode, None, lambda rows: [sp.decode(ids) for ids in rows], generator, size, odd)
        rows = [generator.bytes() for _ in range(N)]
        file = os.path.join(HERE, "bytes.txt")
        with open(file, "wb") as f:
            f.write(b"".join(row + b"\n" for row in rows))
        ours = lines(humpback("tokenize", "--tokenizer", path, "--lines", file, "--bos", "no"))
        differences(f"{name}: no UTF-8", rows, ours, [sp.encode(row) for row in rows], lambda x: x)


# ---- the files -------------------------------------------------------------------------------------------

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
             "finetune_right_pad_id", "step_id", "start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag",
             "image"] + [f"reserved_special_token_{i}" for i in range(2, 246)]
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
        tok.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()] +
                                        ([decoders.Strip(" ", 1, 0)] if scheme != "never" else []))
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
        body = b"\x0a" + varint(len(text)) + text + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind])
        out = b"\x0a" + varint(len(body)) + body + out
    path = os.path.join(HERE, name + ".model")
    with open(path, "wb") as f:
        f.write(out)
    return path


def make_unused(pieces):
    """A third of the pieces is not used any more, single characters among them."""
    r = random.Random(3)
    return [[t, s, 5 if k == 1 and (len(t) > 1 or t in "qzJ") and r.random() < 0.33 else k] for t, s, k in pieces]


def make_letters(pieces):
    """Some characters are no pieces any more, though pieces hold them. Scores come in steps, with many ties."""
    return [[t, float(round(s / 50)), k] for t, s, k in pieces if t not in list("ekn\u2581")]


# ---- the families ----------------------------------------------------------------------------------------

def reference_files(prose):
    if not DATA:
        return common.skip("tokenizers", "published files", "set HUMPBACK_DATA")
    data = os.path.join(DATA, "tokenizers")
    compare_spm("llama-2 tokenizer.model", os.path.join(data, "llama2.tokenizer.model"), 11, prose)
    compare_json("llama-2 tokenizer.json", os.path.join(data, "llama2.tokenizer.json"), 12, prose)
    compare_json("tinyllama tokenizer.json", os.path.join(data, "tinyllama.tokenizer.json"), 13, prose)
    compare_spm("botchan spm", os.path.join(DATA, "golden", "spm", "botchan_llamalike.model"), 14, prose)
    compare_json("story_hf", os.path.join(DATA, "checkpoints", "story_hf"), 15, prose)
    with attempt("tokenizers", "llama-3"):
        path = write(llama3(data), "llama3.json")
        compare_json("llama-3 tokenizer.json", path, 16, prose)
        compare_tiktoken(os.path.join(data, "llama3.tokenizer.model.tiktoken"), path, prose)


def compare_tiktoken(path, reference, prose):
    """Meta's file gives the ids of Llama-3's tokenizer.json."""
    tok = Tokenizer.from_file(reference)
    added = [t.content for t in tok.get_added_tokens_decoder().values()]
    generator = texts.Texts(17, [tok.decode([i]) for i in range(0, 128000, 40)], added, prose)

    def encode(taken):
        def run(rows):
            tok.encode_special_tokens = not taken
            return [e.ids for e in tok.encode_batch(rows, add_special_tokens=False)]
        return run
    compare("llama-3 tiktoken", path, encode(False), encode(True), lambda rows: [tok.decode(r) for r in rows],
            generator, tok.get_vocab_size(), list(range(128000, 128256)))


def trained_files(prose):
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"] + [f"<extra_{i}>" for i in range(13)]
    level = pre_tokenizers.ByteLevel
    smollm = byte_level(prose, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                        level(add_prefix_space=False)]), names)
    compare_json("smollm-like", write(smollm, "smollm.json"), 21, prose)
    compare_json("gpt-2-like, prefix space", write(byte_level(prose, level(add_prefix_space=True)), "gpt2.json"),
                 22, prose)
    odd = byte_level(prose, pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                                                     level(add_prefix_space=False, use_regex=False)]), ["<s>"])
    add_odd(odd)
    compare_json("llama-3-like, odd added tokens", write(odd, "odd.json"), 23, prose)
    for scheme in ("always", "first", "never"):
        for split in (True, False):
            name = f"metaspace {scheme}, split {str(split).lower()}"
            with attempt("tokenizers", name):
                tok = metaspace(prose, scheme, split, fallback=scheme != "first")
                compare_json(name, write(tok, f"meta-{scheme}-{split}.json"), 24, prose)
    with attempt("tokenizers", "prepend and replace, odd added tokens"):
        tok = metaspace(prose, "always", True)
        data = json.loads(tok.to_str())
        data["pre_tokenizer"] = None
        tok = Tokenizer.from_str(json.dumps(data))
        tok.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        compare_json("prepend and replace, odd added tokens", write(tok, "prepend.json"), 25, prose)


def sentencepiece_files(prose):
    symbols = ["[x]", "[xy]", "xyz", "\u2581[sep]", "\u2581\u2581\u2581"]
    base = {}
    for name, options in {
        "spm, extra spaces removed": {"remove_extra_whitespaces": True, "byte_fallback": True},
        "spm, no dummy prefix": {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "byte_fallback": True},
        "spm, no bytes": {"remove_extra_whitespaces": False, "unk_surface": "??"},
        "spm, user-defined": {"remove_extra_whitespaces": True, "byte_fallback": True,
                              "user_defined_symbols": symbols},
        "spm, spaces cross": {"remove_extra_whitespaces": False, "split_by_whitespace": False,
                              "user_defined_symbols": symbols, "allow_whitespace_only_pieces": True},
    }.items():
        with attempt("tokenizers", name):
            base[name] = train_spm(prose, name.replace(",", "").replace(" ", "-"), **options)
            compare_spm(name, base[name], 31, prose)
    for name, change in {"spm, unused pieces": make_unused, "spm, letters without pieces": make_letters}.items():
        for kind, model in {"bytes": "spm, user-defined", "no bytes": "spm, spaces cross"}.items():
            with attempt("tokenizers", f"{name}, {kind}"):
                path = change_spm(base[model], f"{change.__name__}-{kind}".replace(" ", "-"), change)
                compare_spm(f"{name}, {kind}", path, 32, prose)


def our_training(prose):
    file = os.path.join(HERE, "ours.txt")
    with open(file, "w", encoding="utf-8") as f:
        f.write(prose[:300000] + prose[-50000:] + texts.SPECIAL[0] * 9)
    for size, fallback in ((1200, 1), (2500, 0)):
        name = f"trained here, {'bytes' if fallback else 'no bytes'}"
        with attempt("tokenizers", name):
            folder = os.path.join(HERE, f"ours-{fallback}")
            subprocess.run([PROGRAM, "train", file, str(size), str(fallback), folder], check=True)
            compare_json(name, folder, 41, prose)


def main():
    global HERE
    HERE = scratch()
    prose = read_prose()
    reference_files(prose)
    trained_files(prose)
    sentencepiece_files(prose)
    our_training(prose)
    common.finish()


if __name__ == "__main__":
    main()
