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
import subprocess

import common
import llama
import texts
import vocabularies
from common import DATA, attempt, humpback, line
from vocabularies import (HERE, LLAMA3, add_odd, byte_level, change_spm, llama3, make_letters, make_unused,
                          metaspace, read_prose, train_spm, write, write_gguf)

import gguf
import sentencepiece
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

N = int(os.environ.get("TEXTS", "20000"))
PROGRAM = os.path.join(common.BUILD, "conformance-tokenizers")


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

def differences(what, inputs, ours, theirs):
    """One line: how many of the inputs gave something else, and the shortest of them."""
    wrong = [(len(i), i, a, b) for i, a, b in zip(inputs, ours, theirs) if a != b]
    if len(ours) != len(theirs):
        return line("tokenizers", what, f"{len(ours)} lines, expected {len(theirs)}", "failed")
    note = ""
    if wrong:
        _, i, a, b = min(wrong, key=lambda w: w[0])
        note = f"; {i!r:.200} gave {a!r:.200}, expected {b!r:.200}"
    return line("tokenizers", what, f"{len(theirs)} tried, {len(wrong)} differ{note}",
                "failed" if wrong else "ok")


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
        differences(f"{name}: ids", rows, ours, theirs)
        if encode_special:
            theirs = encode_special(rows)
            differences(f"{name}: ids, special tokens", rows, our_ids(path, rows, True), theirs)
        lists = [ids for ids in theirs if ids]
        differences(f"{name}: texts", lists, our_texts(path, lists), decode(lists))
        lists = random_ids(7, size, favoured)
        differences(f"{name}: texts of random ids", lists, our_texts(path, lists), decode(lists))


def compare_json(name, path, seed, prose="", ours=None):
    """ours: another file that must give the same ids."""
    with attempt("tokenizers", name):
        file = os.path.join(path, "tokenizer.json") if os.path.isdir(path) else path
        data = vocabularies.read_json(file)
        tok = vocabularies.load(data)
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
        compare(name, ours or path, encode(False), encode(True), decode, generator, size, favoured)


def compare_spm(name, path, seed, prose="", ours=None):
    with attempt("tokenizers", name):
        sp = sentencepiece.SentencePieceProcessor(model_file=path)
        size = sp.get_piece_size()
        pieces = [sp.id_to_piece(i).replace("\u2581", " ") for i in range(0, size, max(1, size // 3000))]
        odd = [i for i in range(size) if sp.is_control(i) or sp.is_byte(i) or sp.is_unknown(i) or
               sp.is_unused(i) or sp.id_to_piece(i).startswith("\u2581")][:600]
        special = [sp.id_to_piece(i) for i in odd[:3]] + ["[x]", "[xy]", "xyz "]
        generator = texts.Texts(seed, pieces, special, prose)
        path = ours or path
        compare(name, path, sp.encode, None, lambda rows: [sp.decode(ids) for ids in rows], generator, size,
                odd)
        rows = [generator.bytes() for _ in range(N)]
        file = os.path.join(HERE, "bytes.txt")
        with open(file, "wb") as f:
            f.write(b"".join(row + b"\n" for row in rows))
        ours = lines(humpback("tokenize", "--tokenizer", path, "--lines", file, "--bos", "no"))
        differences(f"{name}: no UTF-8", rows, ours, [sp.encode(row) for row in rows])


def compare_llama_cpp(name, path, seed, prose, spelled_only=False):
    """Ids of texts only: llama.cpp's texts go piece by piece. spelled_only: the vocabulary has no bytes, and
    llama.cpp ends the process at a character that it cannot spell."""
    if llama.missing():
        return common.skip("tokenizers", name, llama.missing())
    with attempt("tokenizers", name):
        pieces = set(gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"].contents())
        generator = texts.Texts(seed, [p.replace("\u2581", " ") for p in pieces if spelled_only], (), prose)
        rows = [t for t in generator.many(N) if "\0" not in t and
                (not spelled_only or all(c in pieces for c in t.replace(" ", "\u2581")))]
        with llama.Model(path, vocab_only=True) as model:
            theirs = [model.tokenize(t) for t in rows]
        differences(f"{name}: ids", rows, our_ids(path, rows, False), theirs)


# ---- the families ----------------------------------------------------------------------------------------

def reference_files(prose):
    if not DATA:
        return common.skip("tokenizers", "published files", common.NO_DATA)
    data = os.path.join(DATA, "tokenizers")
    compare_spm("llama-2 tokenizer.model", os.path.join(data, "llama2.tokenizer.model"), 11, prose)
    compare_json("llama-2 tokenizer.json", os.path.join(data, "llama2.tokenizer.json"), 12, prose)
    compare_json("tinyllama tokenizer.json", os.path.join(data, "tinyllama.tokenizer.json"), 13, prose)
    compare_spm("botchan spm", os.path.join(DATA, "golden", "spm", "botchan_llamalike.model"), 14, prose)
    compare_json("story_hf", os.path.join(DATA, "checkpoints", "story_hf"), 15, prose)
    with attempt("tokenizers", "llama-3"):
        tok = llama3(data)
        path = write(tok, "llama3.json")
        compare_json("llama-3 tokenizer.json", path, 16, prose)
        meta = os.path.join(data, "llama3.tokenizer.model.tiktoken")
        compare_json("llama-3 tiktoken", path, 17, prose, meta)
        compare_json("llama-3 gguf", path, 18, prose, write_gguf(tok, "llama3.gguf", "llama-bpe"))
    spm = os.path.join(data, "llama2.tokenizer.model")
    ggml = os.path.join(data, "vectors", "ggml-vocab-llama-spm.gguf")
    compare_spm("llama-2 gguf", spm, 19, prose, ggml)
    compare_saved("llama-2 gguf, saved", ggml, 51, prose)
    compare_llama_cpp("story gguf", os.path.join(DATA, "gguf", "story-q8_0.gguf"), 20, prose, True)


def compare_saved(name, path, seed, prose):
    """What we write from a GGUF loads in tokenizers, and gives the GGUF's ids."""
    with attempt("tokenizers", name):
        folder = os.path.join(HERE, f"saved-{seed}")
        subprocess.run([PROGRAM, "save", path, folder], check=True)
        compare_json(name, folder, seed, prose)
        rows = texts.Texts(seed, (), (), prose).many(N)
        before, after = our_ids(path, rows, False), our_ids(folder, rows, False)
        differences(f"{name}: ids of the GGUF", rows, before, after)


def trained_files(prose):
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] + [f"<extra_{i}>" for i in range(14)]
    level = pre_tokenizers.ByteLevel
    smollm = byte_level(prose, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                        level(add_prefix_space=False)]), names)
    path = write(smollm, "smollm.json")
    compare_json("smollm-like", path, 21, prose)
    compare_json("smollm-like gguf", path, 26, prose, write_gguf(smollm, "smollm.gguf", "smollm"))
    compare_saved("smollm-like gguf, saved", os.path.join(HERE, "smollm.gguf"), 52, prose)
    plain = byte_level(prose, level(add_prefix_space=False), names)
    path = write(plain, "plain.json")
    compare_json("gpt-2-like gguf", path, 27, prose, write_gguf(plain, "plain.gguf", "gpt-2"))
    compare_llama_cpp("gguf without pre", write_gguf(plain, "default.gguf", None), 28, prose)
    path = write(byte_level(prose, level(add_prefix_space=True)), "gpt2.json")
    compare_json("gpt-2-like, prefix space", path, 22, prose)
    split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                                     level(add_prefix_space=False, use_regex=False)])
    odd = byte_level(prose, split, ["<s>"])
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
        tok.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"),
                                               normalizers.Replace(" ", "\u2581")])
        compare_json("prepend and replace, odd added tokens", write(tok, "prepend.json"), 25, prose)


def sentencepiece_files(prose):
    symbols = ["[x]", "[xy]", "xyz", "\u2581[sep]", "\u2581\u2581\u2581"]
    base = {}
    for name, options in {
        "spm, extra spaces removed": {"remove_extra_whitespaces": True, "byte_fallback": True},
        "spm, no dummy prefix": {"add_dummy_prefix": False, "remove_extra_whitespaces": False,
                                 "byte_fallback": True},
        "spm, no bytes": {"remove_extra_whitespaces": False, "unk_surface": "??"},
        "spm, user-defined": {"remove_extra_whitespaces": True, "byte_fallback": True,
                              "user_defined_symbols": symbols},
        "spm, spaces cross": {"remove_extra_whitespaces": False, "split_by_whitespace": False,
                              "user_defined_symbols": symbols, "allow_whitespace_only_pieces": True},
    }.items():
        with attempt("tokenizers", name):
            base[name] = train_spm(prose, name.replace(",", "").replace(" ", "-"), **options)
            compare_spm(name, base[name], 31, prose)
    changes = {"spm, unused pieces": make_unused, "spm, letters without pieces": make_letters}
    for name, change in changes.items():
        for kind, model in {"bytes": "spm, user-defined", "no bytes": "spm, spaces cross"}.items():
            with attempt("tokenizers", f"{name}, {kind}"):
                path = change_spm(base[model], f"{change.__name__}-{kind}".replace(" ", "-"), change)
                compare_spm(f"{name}, {kind}", path, 32, prose)


def our_training(prose):
    file = os.path.join(HERE, "ours.txt")
    with open(file, "w", encoding="utf-8") as f:
        f.write(prose[:300000] + prose[-50000:] + texts.SPECIAL[0] * 9)
    for size, fallback in ((1200, 1), (5000, 0)):  # 3663 characters, where no real text is at hand
        name = f"trained here, {'bytes' if fallback else 'no bytes'}"
        with attempt("tokenizers", name):
            folder = os.path.join(HERE, f"ours-{fallback}")
            subprocess.run([PROGRAM, "train", file, str(size), str(fallback), folder], check=True)
            compare_json(name, folder, 41, prose)


def main():
    prose = read_prose()
    reference_files(prose)
    trained_files(prose)
    sentencepiece_files(prose)
    our_training(prose)
    common.finish()


if __name__ == "__main__":
    main()
