"""Writes tests/data/text_parts.json: what the reference implementation makes of normalizers,
pre-tokenizers, decoders and post-processors of tokenizer.json.

python text_parts.py OUTPUT      (needs tokenizers and sentencepiece; not part of the tests)

Characters are those of Unicode 3.2: the reference carries tables of several versions.
"""

import base64
import json
import random
import sys
import tempfile
import unicodedata

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer

RNG = random.Random(11)
SEPARATOR = "\u241f"  # between pieces
FRAGMENTS = (
    "'s 'S 'll 'LL 're 'Ve 't don't Hello WORLD camelCase HTTPServer 中文 かな カナー 한국어 1 12 "
    "1234567 ½ ٣ ① . ... !!! $ + <x> / // \\ [ ] ^ _ ` { é ß ǅ ª ʰ İ ﬁ ▁ ▁▁ Ġ ؟ ، । … #tag "
    "http://a.b/c?d=e a_b x² Ⅳ नमस्ते ไทย ab12cd A1"
).split(" ") + [" ", "  ", "   ", "\n", "\r\n", "\n\n", " \n ", "\t", "'\u017f", "e\u0301",
                "\u0301", "\u200d", "\u3000", "\xa0", "\u2028", "\x85", "\U0001d7d8", "\U0001d49c"]
OLD = unicodedata.ucd_3_2_0
KINDS = {}
for code in range(0x20, 0x30000):
    KINDS.setdefault(OLD.category(chr(code)), []).append(chr(code))
for unwanted in ("Cn", "Cs", "Co"):
    KINDS.pop(unwanted)


def text(n):
    out = []
    for _ in range(n):
        kind = RNG.random()
        if kind < 0.6:
            out.append(RNG.choice(FRAGMENTS))
        elif kind < 0.85:
            out.append(chr(RNG.randrange(32, 127)))
        else:
            out.append(RNG.choice(KINDS[RNG.choice(sorted(KINDS))]))
    return "".join(out)


TEXTS = ["", " ", "a", "Hello, world! It's 2024: 1234567 items (100%).\n\n  def f(x):\n\treturn x\n",
         "  leading and trailing  ", "中文，标点。かな\u3000カナ", "don'T we'LL I'Ve\u2019s"]
TEXTS += [text(RNG.randrange(8, 26)) for _ in range(17)]

# ---- the patterns of models, as their own tokenizer.json has them ----

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
FOLD = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = FOLD + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES
QWEN2 = LLAMA3.replace("{1,3}", "")
QWEN35 = (FOLD + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + SPACES)
HIGH, LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def cased(end, digits):
    lead = r"[^\r\n\p{L}\p{N}]?"
    return (lead + HIGH + "*" + LOW + "+" + end + "|" + lead + HIGH + "+" + LOW + "*" + end + "|" + digits
            + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + SPACES)


KIMI = cased(FOLD + "?", r"\p{N}{1,3}").replace(r"\p{M}]", r"\p{M}&&[^\p{Han}]]").replace(r"\r\n/]", r"\r\n]")
DEEPSEEK3 = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
             r"| ?[\p{P}\p{S}]+[\r\n]*|" + SPACES).replace('\\"', '"')
CJK = "[一-龥぀-ゟ゠-ヿ]+"
BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def sequence(*parts):
    return {"type": "Sequence", "pretokenizers": list(parts)}


def byte_level(prefix, regex):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


RAW = byte_level(False, False)
NAMED = {
    "gpt-2": byte_level(False, True),
    "llama-bpe": sequence(split(LLAMA3), RAW),
    "qwen2": sequence(split(QWEN2), RAW),
    "qwen35": sequence(split(QWEN35), RAW),
    "gpt-4o": sequence(split(cased(FOLD + "?", r"\p{N}{1,3}")), RAW),
    "tekken": sequence(split(cased("", r"\p{N}")), RAW),
    "kimi-k2": sequence(split(r"[\p{Han}]+|" + KIMI), RAW),
    "deepseek-v3": sequence(split(r"\p{N}{1,3}"), split(CJK), split(DEEPSEEK3), RAW),
    "deepseek-coder": sequence(split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"),
                               split("[一-龥ࠀ-一가-퟿]+"), {"type": "Digits", "individual_digits": True}, RAW),
    "smollm": sequence({"type": "Digits", "individual_digits": True}, byte_level(False, True)),
    "falcon": sequence(split(r"[\p{P}\$\+<=>\^~\|`]+"), split(GPT2),
                       split("[0-9][0-9][0-9]"), RAW),
    "bloom": sequence(split(BLOOM), RAW),
    "superbpe": sequence(split(r"\p{N}+"), split(r"(?=(\d{3})+(?!\d))"), RAW),
    "tiny_aya": sequence(split(r"\d{1,3}(?=(?:\d{3})*\b)"), split(cased(FOLD + "?", r"\p{N}{1,3}")), RAW),
    "exaone-moe": sequence(split(FOLD + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
                                 r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"), RAW),
    "bailingmoe": sequence(split(r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}"
                                 r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"), RAW),
    "seed-coder": sequence(split(FOLD + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|"
                                 + SPACES), RAW),
}


def metaspace(scheme, cut):
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": cut}


BEHAVIORS = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
SPLITS = [metaspace("always", True), metaspace("first", False), metaspace("never", True),
          {"type": "Metaspace", "replacement": "_", "add_prefix_space": True},
          {"type": "BertPreTokenizer"}, {"type": "Whitespace"}, {"type": "WhitespaceSplit"},
          {"type": "Digits", "individual_digits": False}, {"type": "Punctuation", "behavior": "Contiguous"},
          {"type": "CharDelimiterSplit", "delimiter": "a"}, {"type": "FixedLength", "length": 3},
          {"type": "UnicodeScripts"}, byte_level(True, True), byte_level(True, False)]
SPLITS += [split("[a-z]|'", b, i) for b in BEHAVIORS for i in (False, True)]
SPLITS += [split(" ", "MergedWithNext", False, "String"), split("x*"), split(r"\b"), split(r"\w+|[^\w\s]+"),
           split(r"\h+"), split(r"\p{N}{1,3}+"), split(r"a(?i)b|c"), split(r".$"), split(r"(?m).+"), split(r"a{,2}"),
           split(r"[[:punct:]]+"), split(r"\p{^L}+"), split(r"\u0061|\x{4e2d}"), split(r"\p{Letter}+"),
           sequence({"type": "WhitespaceSplit"}, metaspace("always", True)),
           sequence(byte_level(False, True), split("Ġ", "Removed", False, "String")),
           sequence(sequence(split(QWEN2, "Removed", True)), byte_level(True, False))]


def normal(kind, **more):
    return {"type": kind, **more}


def bert(clean, chinese, accents, lower):
    return normal("BertNormalizer", clean_text=clean, handle_chinese_chars=chinese, strip_accents=accents,
                  lowercase=lower)


def replace(pattern, content, kind="String"):
    return normal("Replace", pattern={kind: pattern}, content=content)


def charsmap():
    """Rules of our own, compiled by SentencePiece."""
    rules = [("ﬁ", "fi"), ("①", "1"), ("é", "e"), ("e\u0301", "E"), ("A", "a"), ("WOR", "wor"), ("\t", " "),
             ("…", "..."), ("カ", "か"), ("x", "")]
    with tempfile.TemporaryDirectory() as folder:
        with open(folder + "/rules.tsv", "w", encoding="utf-8") as out:
            for a, b in rules:
                out.write(" ".join(f"{ord(c):x}" for c in a) + "\t" + " ".join(f"{ord(c):x}" for c in b) + "\n")
        with open(folder + "/text", "w", encoding="utf-8") as out:
            out.write("a b c d e f g h\n" * 50)
        sentencepiece.SentencePieceTrainer.train(
            input=folder + "/text", model_prefix=folder + "/m", vocab_size=20, hard_vocab_limit=False,
            normalization_rule_tsv=folder + "/rules.tsv", minloglevel=2)
        model = sentencepiece_model_pb2.ModelProto()
        with open(folder + "/m.model", "rb") as data:
            model.ParseFromString(data.read())
    return normal("Precompiled",
                  precompiled_charsmap=base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode())


NORMALIZERS = [normal("NFC"), normal("NFD"), normal("NFKC"), normal("NFKD"), normal("Lowercase"),
               normal("StripAccents"), normal("Nmt"), normal("ByteLevel"), normal("Prepend", prepend="▁"),
               normal("Strip", strip_left=True, strip_right=True),
               normal("Strip", strip_left=False, strip_right=True),
               bert(True, True, None, True), bert(True, False, False, True), bert(False, True, True, False),
               replace(" ", "▁"), replace(r"\s+", " ", "Regex"), replace("x*", "-", "Regex"), charsmap(),
               normal("Sequence", normalizers=[normal("Prepend", prepend="▁"), replace(" ", "▁")]),
               normal("Sequence", normalizers=[normal("NFKC"), normal("Lowercase"), replace(" {2,}", " ", "Regex")])]

BYTES = {}
for b in list(range(33, 127)) + list(range(0xA1, 0xAD)) + list(range(0xAE, 0x100)):
    BYTES[b] = chr(b)
for b in range(256):
    BYTES.setdefault(b, chr(256 + sum(1 for k in range(b) if ord(BYTES[k]) >= 256)))


def mapped(data):
    return "".join(BYTES[b] for b in data)


TOKENS = ["▁", "▁Hello", "a", "ab", " a", "##ing", "##", "lo</w>", "<0xE4>", "<0xB8>", "<0xAD>", "<0xFF>", "<0x41>",
          "<0xZZ>", "<pad>", "|", "h", "h", ".", " n't", "do not", "'s", " ' ", "xx", "  ", "中文", "<｜end｜>",
          mapped(b" \xe4\xb8"), mapped(b"\xad"), mapped("中".encode()), mapped(b" the"), mapped(b"\xf0\x9f"),
          mapped(b"\x98\x80"), mapped(b"\xe0\x80"), mapped(b"\xed\xa0"), mapped(b"\xff")]
LISTS = [[RNG.choice(TOKENS) for _ in range(RNG.randrange(1, 12))] for _ in range(24)]
LISTS += [["<0xE4>", "<0xB8>", "<0xAD>", "▁a"], ["▁a", "<0xE4>", "<0xB8>"], ["<0xF0>", "<0x9F>", "<0x98>", "<0x80>"],
          [mapped(b"\xf0"), mapped(b"\x9f"), mapped(b"\x98"), mapped(b"\x80")],
          [mapped(b"\xf0"), mapped(b"\x9f"), mapped(b"a")], ["▁▁x", "▁y"]]
LLAMA = normal("Sequence", decoders=[replace("▁", " "), normal("ByteFallback"), normal("Fuse"),
                                     normal("Strip", content=" ", start=1, stop=0)])
DECODERS = [byte_level(True, True), normal("WordPiece", prefix="##", cleanup=True), metaspace("always", True),
            metaspace("never", True), normal("CTC", pad_token="<pad>", word_delimiter_token="|", cleanup=True),
            normal("Fuse"), normal("ByteFallback"), normal("BPEDecoder", suffix="</w>"), replace("ab", ""),
            replace("[a-c]+", "<>", "Regex"), LLAMA,
            normal("Sequence", decoders=[byte_level(True, True), replace(" a", "_"),
                                         normal("WordPiece", prefix="##", cleanup=True)]),
            normal("Sequence", decoders=[normal("Fuse"), replace("^ ", "", "Regex"),
                                         normal("Strip", content="x", start=2, stop=0)]), None]


def template(single, pair, specials):
    def part(p):
        name, kind = p.split(":")
        key = "Sequence" if name in "AB" else "SpecialToken"
        return {key: {"id": name, "type_id": int(kind)}}
    return normal("TemplateProcessing", single=[part(p) for p in single.split()], pair=[part(p) for p in pair.split()],
                  special_tokens={k: {"id": k, "ids": v, "tokens": [k] * len(v)} for k, v in specials.items()})


POSTS = [normal("BertProcessing", sep=["[SEP]", 102], cls=["[CLS]", 101]),
         normal("RobertaProcessing", sep=["</s>", 2], cls=["<s>", 0], trim_offsets=True, add_prefix_space=True),
         byte_level(True, True), template("[C]:0 A:0 [S]:0", "[C]:0 A:0 [S]:0 B:1 [S]:1", {"[C]": [1], "[S]": [2]}),
         template("<s>:0 A:0", "<s>:0 A:0 <s>:1 B:1", {"<s>": [1, 7]}),
         normal("Sequence", processors=[byte_level(True, False), template("<s>:0 A:0", "<s>:0 A:0 B:0", {"<s>": [5]})]),
         None]
BROKEN = [b"", b"abc", b"a\xffb", b"\xe4\xb8", b"\xe4\xb8x", b"\xf0\x9f\x98", b"\xf0\x9f\x98\x80", b"\xc0\x80", b"\xed\xa0\x80",
          b"\xf4\x90\x80\x80", b"\xe0\x9f\xbf", b"\xf8\x88\x80\x80", b"\xc3(", b"\xe2\x82\xac\xe2\x82", b"\x80\x80"]


def tokenizer(part, spec, vocab=None):
    model = {"type": "WordLevel", "vocab": vocab or {}, "unk_token": "?"}
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
             "pre_tokenizer": None, "post_processor": None, "decoder": None, "model": model}
    whole[part] = spec
    return Tokenizer.from_str(json.dumps(whole))


def unmapped(piece):
    back = {c: b for b, c in BYTES.items()}
    return bytes(back[c] for c in piece).decode(errors="surrogateescape")


def ends_in_bytes(spec):
    if spec["type"] == "Sequence":
        return ends_in_bytes(spec["pretokenizers"][-1])
    return spec["type"] == "ByteLevel"


def pieces(spec):
    tool, out = tokenizer("pre_tokenizer", spec).pre_tokenizer, []
    for t in TEXTS:
        parts = [p for p, _ in tool.pre_tokenize_str(t) if p != ""]
        if ends_in_bytes(spec):
            parts = [unmapped(p) for p in parts]
        out.append(SEPARATOR.join(parts))
    return out


def post(spec):
    tool = tokenizer("post_processor", spec, {"A": 1000, "B": 2000, "?": 3000})
    one, two = tool.encode("A"), tool.encode("A", "B")
    return {"spec": dump(spec), "single": one.ids, "single_types": one.type_ids, "pair": two.ids,
            "pair_types": two.type_ids}


def dump(spec):
    return json.dumps(spec, ensure_ascii=False)


def decoded(spec):
    tool = tokenizer("decoder", spec).decoder
    return [tool.decode(t) if tool else " ".join(t) for t in LISTS]


def main():
    assert not any(SEPARATOR in t for t in TEXTS)
    out = {"texts": TEXTS, "tokens": LISTS,
           "split": [{"spec": dump(s), "out": pieces(s)} for s in SPLITS],
           "named": [{"name": n, "out": pieces(s)} for n, s in NAMED.items()],
           "normalize": [{"spec": dump(s), "out": [tokenizer("normalizer", s).normalizer.normalize_str(t) for t in TEXTS]}
                         for s in NORMALIZERS],
           "decode": [{"spec": dump(s), "out": decoded(s)} for s in DECODERS],
           "post": [post(s) for s in POSTS],
           "repair": [{"hex": b.hex(), "out": b.decode(errors="replace")} for b in BROKEN]}
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(out, file, ensure_ascii=False, separators=(",", ":"))
        file.write("\n")


main()
