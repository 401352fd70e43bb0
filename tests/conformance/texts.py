"""Texts to tokenise, made from a seed: what people write, and what they hardly would.

A code point is drawn only if Python knows it: libraries differ in their Unicode version, and in what a letter
of the newest scripts is. Surrogates cannot stand in UTF-8.
"""
import random
import sys
import unicodedata

ASSIGNED = [c for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
PRIVATE = [0xE000, 0xF8FF, 0xF0000, 0x10FFFD, 0xFFFE, 0x1FFFF]
MARKS = [c for c in ASSIGNED if unicodedata.category(chr(c))[0] == "M"]
NUMBERS = [c for c in ASSIGNED if unicodedata.category(chr(c))[0] == "N"]
SPACES = [" ", " ", " ", "\t", "\n", "\n", "\r\n", "\r", "\u00a0", "\u3000", "\u2003", "\u2028", "\u0085",
          "\v", "\f", "\u200b", "\u2581", "\u1680", "\x1c", "\ufeff"]
SCRIPTS = [(0x41, 0x7A), (0xC0, 0x17F), (0x370, 0x3FF), (0x400, 0x4FF), (0x5D0, 0x5EA), (0x620, 0x64A),
           (0x900, 0x97F), (0xE01, 0xE3A), (0x10A0, 0x10FF), (0x3041, 0x3096), (0x30A1, 0x30FA),
           (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0x1F600, 0x1F64F), (0x1D400, 0x1D7FF)]
WORDS = """the of and to a in is it you that he was for on are with as I his they be at one have this
from or had by hot word but what some we can out other were all there when up use your how said an each
she which their time if will way about many then them write would like so these her long make thing see
him two has look more day could go come did number sound no most people my over know water than call
first who may down side been now find any new work part take get place made live where after back little
only round man year came show every good me give our under name very through just form sentence great
think help low line differ turn cause much mean before move right boy old too same tell does set three
want air well also play small end put home read hand port large spell add even land here must big high
such follow act why ask men change went light kind off need house picture try us again animal point
mother internationalization unbelievable""".split()
WORDS += ["Stra\u00dfe", "na\u00efve", "caf\u00e9", "coo\u0308perate"]
CODE = ["def ", "return", "self.", "for (int i = 0; i < n; i++) {\n", "    ", "\t", "if ", "==", "!=", "->",
        "::", "();\n", "{", "}", "[", "]", "#include <stdio.h>\n", "//", "/*", "*/", "0x1F", "3.14159",
        "1e-5", "NULL", "std::", "&&", "||", "=>", "\\n", "\"", "'", "`", "```python\n", "import ",
        "lambda x: x", "x_1", "camelCase", "SNAKE_CASE", "</div>", "<a href=\"http://x.y/z?q=1&r=2\">",
        "\n\n", ";\n", "$", "%d", "@", "~", "^"]
EMOJI = ["\U0001F600", "\U0001F469\u200d\U0001F469\u200d\U0001F467", "\U0001F44D\U0001F3FD", "\u2764\ufe0f",
         "\U0001F1E9\U0001F1EA", "1\ufe0f\u20e3", "\U0001F3F4\U000E0067\U000E0062\U000E007F",
         "\U0001F9D1\u200d\U0001F680", "\U0001F40B", "\u263a\ufe0f"]
SPECIAL = ["<s>", "</s>", "<unk>", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|im_start|>",
           "<|im_end|>", "<|endoftext|>", "[INST]", "[/INST]", "<<SYS>>", "<0x0A>", "<0xE2>", "<pad>",
           "<|start_header_id|>", "<|reserved_special_token_3|>", "<|start_story|>", "<|end_story|>"]
CONTRACTED = ["s", "S", "t", "T", "re", "RE", "rE", "ve", "VE", "m", "M", "ll", "LL", "Ll", "d", "D",
              "\u017f", "x", "l", "r", "v", "se", "\u212a", " s"]


class Texts:
    """One text after another. pieces: strings of a vocabulary, of which words are made that merge far;
    special: its special tokens; prose: a long text to cut from."""

    def __init__(self, seed, pieces=(), special=(), prose=""):
        self.r = random.Random(seed)
        self.pieces = [p for p in pieces if p]
        self.special = SPECIAL + list(special)
        self.prose = prose
        self.kinds = [self.english, self.english, self.unicode, self.ascii, self.code, self.spaces,
                      self.emoji, self.combining, self.specials, self.specials, self.run, self.mixed,
                      self.long_word, self.numbers, self.contractions, self.edges]
        if self.pieces:
            self.kinds += [self.vocabulary] * 4
        if prose:
            self.kinds += [self.cut] * 3

    def one(self):
        r = self.r
        text = r.choice(self.kinds)()
        while r.random() < 0.3 and len(text) < 2000:
            text += r.choice(["", " ", "\n"]) + r.choice(self.kinds)()
        return text

    def many(self, n):
        return ["", " ", "  ", "\u2581", "a", "\n", "\0"][:n] + [self.one() for _ in range(n - 7)]

    def word(self):
        w = self.r.choice(WORDS)
        return w.upper() if self.r.random() < 0.05 else w.capitalize() if self.r.random() < 0.2 else w

    def english(self):
        out = ""
        for _ in range(self.r.randint(1, 25)):
            out += self.word() + self.r.choice([" "] * 12 + [", ", ". ", "! ", "? ", "; ", " - ", "...", "\n",
                                                             "  "])
        return out

    def unicode(self):
        r = self.r
        return "".join(chr(r.choice(ASSIGNED) if r.random() < 0.95 else r.choice(PRIVATE))
                       for _ in range(r.randint(1, 30)))

    def ascii(self):
        return "".join(chr(self.r.randint(0 if self.r.random() < 0.05 else 32, 126))
                       for _ in range(self.r.randint(1, 60)))

    def code(self):
        return "".join(self.r.choice(CODE) if self.r.random() < 0.7 else self.word()
                       for _ in range(self.r.randint(1, 30)))

    def spaces(self):
        r = self.r
        return "".join(r.choice(SPACES) * r.choice([1, 1, 1, 2, 3, 5, 16]) if r.random() < 0.7 else
                       r.choice([self.word(), "1", ".", "'s"]) for _ in range(r.randint(1, 12)))

    def emoji(self):
        return "".join(self.r.choice(EMOJI) if self.r.random() < 0.7 else self.r.choice([" ", self.word()])
                       for _ in range(self.r.randint(1, 12)))

    def combining(self):
        return "".join(self.r.choice("aeioun \u0915\u05d0\u0644x1") +
                       "".join(chr(self.r.choice(MARKS)) for _ in range(self.r.choice([0, 1, 1, 2, 6])))
                       for _ in range(self.r.randint(1, 12)))

    def specials(self):
        r = self.r
        out = ""
        for _ in range(r.randint(1, 6)):
            s = r.choice(self.special)
            if r.random() < 0.3:  # almost one
                i = r.randint(0, len(s))
                s = s[:i] + r.choice(["", " ", "x", s]) + s[i + r.randint(0, 1):]
            out += r.choice(["", "", " ", "  ", "\n", self.word(), "\u00a0", "x_", "\u2581"]) + s
        return out + r.choice(["", " ", self.word(), "\n  y"])

    def run(self):
        r = self.r
        c = r.choice(["a", " ", "\n", "-", "=", "0", "\u4e2d", "\U0001F600", "\u2581", ".", "\t", "ab", " a",
                      "!", "\u0301", chr(r.choice(ASSIGNED))])
        return c * r.choice([2, 3, 7, 31, 64, 65, 200, 1000])

    def mixed(self):
        r = self.r
        out = ""
        for _ in range(r.randint(1, 10)):
            low, high = r.choice(SCRIPTS)
            out += "".join(chr(r.randint(low, high)) for _ in range(r.randint(1, 6)))
            out += r.choice(["", " ", ", "])
        return out

    def long_word(self):
        r = self.r
        return "".join(r.choice(WORDS) for _ in range(r.choice([3, 10, 40, 300])))

    def numbers(self):
        r = self.r
        return "".join(r.choice([str(r.randint(0, 10 ** r.randint(1, 12))), chr(r.choice(NUMBERS)), " ", ".",
                                 ",", "x", "\u0663\u0664", "\u00bd", "\u2167"])
                       for _ in range(r.randint(1, 12)))

    def contractions(self):
        r = self.r
        return "".join(r.choice([self.word(), "", " ", "1", "."]) + r.choice(["'", "'", "\u2019"]) +
                       r.choice(CONTRACTED) + r.choice(["", " ", "t"]) for _ in range(r.randint(1, 6)))

    def edges(self):
        """Spaces and U+2581 at the ends, where each family has its own rules."""
        r = self.r
        ends = ["", " ", "  ", "   ", "\u2581", " \u2581", "\u2581 ", "\n", "\t", "\u2581\u2581"]
        return r.choice(ends) + self.word() + r.choice(ends) + self.word() + r.choice(ends)

    def vocabulary(self):
        return "".join(self.r.choice(self.pieces) for _ in range(self.r.randint(1, 15)))

    def cut(self):
        i = self.r.randrange(len(self.prose))
        return self.prose[i:i + self.r.choice([10, 50, 200, 600])]

    def bytes(self):
        """Bytes that are mostly no UTF-8: whole characters, cut ones, and any byte. No line feed."""
        r = self.r
        out = b""
        for _ in range(r.randint(1, 12)):
            c = chr(r.choice(ASSIGNED)).encode()
            out += r.choice([c, c[:-1], c[1:], bytes([r.randint(0, 255)]), b"\xed\xa0\x80",
                             b"\xf4\x90\x80\x80", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf8\x88\x80\x80\x80",
                             b"\xef\xbf\xbd", b"a", b" the",
                             bytes(r.randint(128, 255) for _ in range(4))])
        return out.replace(b"\n", b"")
