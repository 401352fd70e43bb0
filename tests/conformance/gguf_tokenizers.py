"""Small vocabularies of the kinds that GGUF knows, as Hugging Face folders and as GGUF keys: byte-level BPE
with the pre-tokenisers of Llama 3, SmolLM and GPT-2, and SentencePiece BPE. Learned from this project's own
README, so that they are the same wherever it is checked out at one version."""
import io
import os
import random

import common

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def corpus():
    with open(os.path.join(common.ROOT, "README.md"), encoding="utf-8") as f:
        return f.read().split("\n\n")


def texts(n):
    """Words of the README, numbers, punctuation, runs of blanks, and a few other scripts, mixed."""
    rng = random.Random(5)
    words = " ".join(corpus()).split()
    odd = ["12345", "3.14", "don't", "WE'LL", "  ", "\n\n", "\t", "   x", "...", "--", "a1b2", "=>", "(a)",
           "'s", "x\r\ny", "\u00e9t\u00e9", "\u4f60\u597d", "\U0001f433",
           "\u0440\u044b\u0431\u0430", "\u00bd"]
    return [rng.choice(["", " "]).join(rng.choice(words + 4 * odd) for _ in range(rng.randint(1, 12)))
            for _ in range(n)]


def byte_level(folder, kind, vocab_size):
    """Byte-level BPE: tokenizer.json into `folder`; returns (text -> ids, adds the GGUF keys to a writer)."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    tok = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    tok.pre_tokenizer = {
        "llama-bpe": lambda: pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
        "smollm": lambda: pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    }[kind]()
    tok.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(corpus(), trainer)
    tok.save(folder + "/tokenizer.json")
    common.write_json(folder + "/tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "add_bos_token": False, "clean_up_tokenization_spaces": False})
    model = common.json.loads(tok.to_str())["model"]

    def add_keys(writer):
        pieces = sorted(model["vocab"], key=model["vocab"].get)
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(kind)
        writer.add_token_list(pieces)
        writer.add_token_types([3 if p in special else 1 for p in pieces])
        writer.add_token_merges(merges)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_add_bos_token(False)
    return lambda text: tok.encode(text, add_special_tokens=False).ids, add_keys


def spm(folder, kind, vocab_size):
    """tokenizer.model of SentencePiece BPE as Llama 2 has it."""
    import sentencepiece
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n\n".join(corpus()).split("\n")), model_writer=out, vocab_size=vocab_size,
        model_type="bpe", byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, unk_id=0, bos_id=1, eos_id=2,
        pad_id=-1, character_coverage=0.9999, minloglevel=2)
    with open(folder + "/tokenizer.model", "wb") as f:
        f.write(out.getvalue())
    sp = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())

    def add_keys(writer):
        n = sp.vocab_size()
        types = [2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1
                 for i in range(n)]
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list([sp.id_to_piece(i) for i in range(n)])
        writer.add_token_scores([sp.get_score(i) for i in range(n)])
        writer.add_token_types(types)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        writer.add_add_bos_token(True)
        writer.add_add_space_prefix(True)
    assert kind == "spm"
    return sp.encode, add_keys
