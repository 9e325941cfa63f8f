"""Small SentencePiece models with every flag that changes ids, and what SentencePiece makes of texts with them:
writes tests/data/tokenizers/sentencepiece/. Run from the repository's root:
    pip install sentencepiece==0.2.3 protobuf
    python tests/reference/sentencepiece_models.py"""
import json
import os
import random
import tempfile

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

OUT = "tests/data/tokenizers/sentencepiece/"
RNG = random.Random(5)
WORK = tempfile.mkdtemp() + "/"
TEXTS = ["Hello world", " the  copy ", "  ", "", "a", "the copy's the", "say <a> <ab> b", "x 😀🏴 y",
         "<|im_start|>user\nthe copy<|im_end|>", "ＡＢＣ ﬁne", "e\u0301 é", "tab\tnl\n\nx  ", "▁▁ a▁b", "中文 한국어",
         "\u3000wide\u00a0nb", "<ctl> <unk> <s>x</s>", "ＡＢ  ＡＢＣ", "0x<0x41>", "copy\u2581copy", "  leading",
         "trailing   "]
PARTS = ["the", "copy", " ", "  ", "\n", "ＡＢ", "é", "e\u0301", "<a>", "<ab>", "<|im_start|>", "中", "🙂", "of", "and",
         "'s", "▁", "ﬁ", "x", "\t", "\u3000", "Th", "is", ".", "tion", "ware"]
TEXTS += ["".join(RNG.choice(PARTS) for _ in range(RNG.randint(2, 12))) for _ in range(40)]
RULES = {"Ａ": "A", "Ｂ": "B", "Ｃ": "C", "ﬁ": "fi", "e\u0301": "é", "\u3000": " ", "\u00a0": " ", "\t": " ",
         "A": "a", "T": "t"}


def train(name, edit=None, **options):
    settings = dict(input=WORK + "corpus", vocab_size=200, character_coverage=0.995, hard_vocab_limit=False,
                    minloglevel=2, num_threads=1, model_prefix=WORK + name, normalization_rule_name="identity")
    settings.update(options)
    sentencepiece.SentencePieceTrainer.train(**settings)
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(open(WORK + name + ".model", "rb").read())
    model.trainer_spec.input[:] = []
    model.trainer_spec.model_prefix = ""
    if edit:
        edit(model)
    open(OUT + name + ".model", "wb").write(model.SerializeToString())
    processor = sentencepiece.SentencePieceProcessor(model_file=OUT + name + ".model")
    return [processor.encode(t) for t in TEXTS]


def no_escape(model):
    model.normalizer_spec.escape_whitespaces = False
    for piece in model.pieces:
        piece.piece = piece.piece.replace("▁", " ")


def unused(model):
    long = [p for p in model.pieces if p.type == 1 and len(p.piece) > 2]
    for piece in long[::3]:
        piece.type = 5


os.makedirs(OUT, exist_ok=True)
text = open("LICENSE", encoding="utf-8").read()
open(WORK + "corpus", "w", encoding="utf-8").write((text + "\ncopy ＡＢ é <a> naïve\n" * 3) * 3)
with open(WORK + "rules.tsv", "w", encoding="utf-8") as f:
    for a, b in RULES.items():
        f.write(" ".join("%X" % ord(c) for c in a) + "\t" + " ".join("%X" % ord(c) for c in b) + "\n")
WANT = {}
for kind in ("bpe", "unigram"):
    def one(name, edit=None, **options):
        WANT[f"{kind}_{name}"] = train(f"{kind}_{name}", edit, model_type=kind, **options)

    rules = dict(normalization_rule_tsv=WORK + "rules.tsv", normalization_rule_name="")
    one("plain")
    one("bare", add_dummy_prefix=False, remove_extra_whitespaces=False)
    one("suffix", treat_whitespace_as_suffix=True, **rules)
    one("rules", remove_extra_whitespaces=False, **rules)
    one("user", user_defined_symbols=["<|im_start|>", "<|im_end|>", "the", "▁copy", "ＡＢ", "\n"],
        control_symbols=["<ctl>"], byte_fallback=True, vocab_size=480, **rules)
    one("user_bare", user_defined_symbols=["<a>", "<ab>", "copy", "é"], remove_extra_whitespaces=False,
        add_dummy_prefix=False)
    one("no_escape", no_escape)
    one("unused", unused)
json.dump(dict(texts=TEXTS, ids=WANT), open(OUT + "expected.json", "w", encoding="utf-8"), ensure_ascii=False,
          separators=(",", ":"))
train("words", model_type="word")
