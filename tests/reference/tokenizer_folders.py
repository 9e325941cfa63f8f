"""Folders whose facts stand in several files, and what AutoTokenizer of transformers makes of them: writes
tests/data/tokenizers/folders.json. Run from the repository's root:
    pip install transformers==5.24.0 tokenizers==0.23.3 sentencepiece==0.2.3
    python tests/reference/tokenizer_folders.py
A case is a vocabulary of tests/data/tokenizers (base, with changes to its top level) or files of its own, and
what lies beside it; for each text the ids with and without special tokens, and the text decoded again."""
import copy
import json
import os
import shutil
import tempfile

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
from transformers import AutoTokenizer  # noqa: E402

DATA = "tests/data/tokenizers/"
CASES = []


def flags(content, **more):
    out = dict(content=content, lstrip=False, rstrip=False, single_word=False, normalized=False, special=True)
    out.update(more)
    return out


def typed(content, **more):
    out = flags(content, **more)
    out["__type"] = "AddedToken"
    return out


def byte_alphabet():
    vocab, extra = {}, 0
    for b in range(256):
        plain = 33 <= b <= 126 or 161 <= b <= 172 or b >= 174
        vocab[chr(b if plain else 256 + extra)] = b
        extra += not plain
    return vocab


def case(name, texts, base=None, changes=None, files=None, config=None):
    folder = tempfile.mkdtemp()
    files = dict(files or {})
    if config is not None:
        files["tokenizer_config.json"] = config
    if base:
        tokenizer = json.load(open(DATA + base + ".json"))
        tokenizer.update(changes or {})
        json.dump(tokenizer, open(folder + "/tokenizer.json", "w"))
    for file, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        open(folder + "/" + file, "w", encoding="utf-8").write(text)
    tok = AutoTokenizer.from_pretrained(folder)
    want = dict(
        ids=[tok(t).input_ids for t in texts],
        plain=[tok(t, add_special_tokens=False).input_ids for t in texts],
        decoded=[tok.decode(tok(t).input_ids, skip_special_tokens=True) for t in texts],
        added={str(i): [t.content, t.special] for i, t in tok.added_tokens_decoder.items()},
        roles={r: getattr(tok, r + "_token_id") for r in ("bos", "eos", "pad", "unk", "cls", "sep", "mask")},
    )
    want["roles"] = {r: i for r, i in want["roles"].items() if i is not None}
    CASES.append(dict(name=name, base=base, changes=changes, files=files, texts=texts, want=want))
    shutil.rmtree(folder)


BYTES = dict(added_tokens=[], normalizer=None, post_processor=None,
             pre_tokenizer=dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True),
             model=dict(type="BPE", vocab=byte_alphabet(), merges=[]))
FAST = dict(tokenizer_class="PreTrainedTokenizerFast")


def bytes_case(name, texts, config=None, files=None, **changes):
    case(name, texts, "bytelevel", dict(copy.deepcopy(BYTES), **changes), files, dict(FAST, **(config or {})))


def added():
    new, old = "<|new|>", "<|old|>"
    bytes_case("an id behind a gap", ["x<|new|>x"], {"added_tokens_decoder": {"300": flags(new)}})
    bytes_case("two behind gaps", [new + old + "x"], {"added_tokens_decoder": {"300": flags(new), "290": flags(old)}})
    bytes_case("an id that another token has", ["x<|new|>x"], {"added_tokens_decoder": {"120": flags(new)}})
    bytes_case("other flags than tokenizer.json's", ["x  <|new|>x"],
               {"added_tokens_decoder": {"256": flags(new, lstrip=True)}}, added_tokens=[dict(id=256, **flags(new))])
    bytes_case("special after all", ["x  <|new|>x"], {"added_tokens_decoder": {"256": flags(new)}},
               added_tokens=[dict(id=256, **flags(new, special=False))])
    bytes_case("a token of the vocabulary", ["axb"], {"added_tokens_decoder": {"120": flags("x")}})
    bytes_case("an eos that is in the vocabulary", ["axb"], {"eos_token": "x"})
    bytes_case("an eos as an object", ["a <|new|> b"], {"eos_token": typed(new, lstrip=True, rstrip=True)})
    bytes_case("single words and normalised ones", ["cat cats <|new|>", "ABC abc xABC"],
               {"added_tokens_decoder": {"256": flags("cat", single_word=True, special=False),
                                         "257": flags("abc", special=False, normalized=True)}},
               normalizer=dict(type="Lowercase"))
    bytes_case("special_tokens_map, a string", ["x<|new|>"], {}, {"special_tokens_map.json": {"eos_token": new}})
    bytes_case("special_tokens_map over the config", ["a <|new|> b<|old|>"], {"eos_token": old},
               {"special_tokens_map.json": {"eos_token": {k: v for k, v in flags(new, lstrip=True).items()
                                                          if k != "special"}}})
    bytes_case("special_tokens_map, several", ["<|old|><|new|>"], {},
               {"special_tokens_map.json": {"additional_special_tokens": [old, new]}})
    bytes_case("old files beside added_tokens_decoder", ["<|new|><|e|><|q|>"],
               {"added_tokens_decoder": {"256": flags(new)}},
               {"special_tokens_map.json": {"eos_token": "<|e|>"}, "added_tokens.json": {"<|q|>": 257}})
    bytes_case("added_tokens.json", ["<|new|>foo<|q|>"], {"eos_token": "<|q|>"},
               {"added_tokens.json": {"<|q|>": 257, new: 256, "foo": 258}})
    bytes_case("the order of ids", ["<|e|><|p|><|b|><|x|><|n|><|i|>"],
               {"eos_token": "<|e|>", "pad_token": "<|p|>", "bos_token": "<|b|>", "image_token": "<|i|>",
                "additional_special_tokens": ["<|x|>"], "added_tokens_decoder": {"256": flags("<|n|>")}})
    bytes_case("tokens by names of the model's own", ["<|new|><|old|>"],
               {"image_token": new, "extra_special_tokens": {"foo_token": old}})
    bytes_case("extra tokens over additional ones", ["<|new|><|old|>"],
               {"extra_special_tokens": [new], "additional_special_tokens": [old]})
    bytes_case("additional tokens as objects", ["a <|new|>"],
               {"additional_special_tokens": [typed(new, lstrip=True)]})
    bytes_case("special tokens are split", ["x<|e|>"], {"eos_token": "<|e|>", "split_special_tokens": True})
    bytes_case("null is none", ["x<|new|>"], {"eos_token": None})
    bytes_case("one token in two roles", ["x<|new|>"], {"eos_token": new, "pad_token": new})


SPECIAL = dict(unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", mask_token="[MASK]")
WORDS = ["The KING é 中文x king", "Do n't say \"I 've\" , okay ?", "[MASK] a\tb  c", ""]


def bert():
    vocab = json.load(open(DATA + "wordpiece.json"))["model"]["vocab"]
    words = "\n".join(sorted(vocab, key=vocab.get)) + "\n"
    for settings in ({}, {"do_lower_case": False}, {"strip_accents": True, "do_lower_case": False},
                     {"strip_accents": False}, {"tokenize_chinese_chars": False}):
        case("vocab.txt " + json.dumps(settings), WORDS, files={"vocab.txt": words},
             config=dict(tokenizer_class="BertTokenizer", **SPECIAL, **settings))
        case("tokenizer.json of a BERT " + json.dumps(settings), WORDS, "wordpiece",
             config=dict(tokenizer_class="DistilBertTokenizer", **SPECIAL, **settings))
    case("the usual names", WORDS, files={"vocab.txt": words}, config=dict(tokenizer_class="BertTokenizer"))
    renamed = words
    for a, b in (("[CLS]", "<cls>"), ("[SEP]", "<sep>"), ("[UNK]", "<unk>"), ("[PAD]", "<pad>"), ("[MASK]", "<m>")):
        renamed = renamed.replace(a + "\n", b + "\n", 1)
    case("names of its own", ["the king <m> 🙂"], files={"vocab.txt": renamed},
         config=dict(tokenizer_class="BertTokenizer", cls_token="<cls>", sep_token="<sep>", unk_token="<unk>",
                     pad_token="<pad>", mask_token="<m>"))
    case("another class leaves tokenizer.json alone", WORDS, "wordpiece",
         config=dict(FAST, do_lower_case=False, **SPECIAL))
    case("clean_up_tokenization_spaces", WORDS, "wordpiece",
         {"decoder": None}, config=dict(FAST, clean_up_tokenization_spaces=True, **SPECIAL))


def byte_level():
    plain = json.load(open(DATA + "bytelevel.json"))
    plain["added_tokens"] = [a for a in plain["added_tokens"] if a["id"] == 0]
    for prefix in (False, True):
        pre = dict(type="ByteLevel", add_prefix_space=prefix, trim_offsets=True, use_regex=True)
        changes = dict(added_tokens=plain["added_tokens"], pre_tokenizer=pre)
        for family in ("GPT2Tokenizer", "PreTrainedTokenizerFast"):
            for said in (False, True):
                case(f"{family} add_prefix_space={said} over {prefix}", ["king of", " king", ""], "bytelevel",
                     changes, config=dict(tokenizer_class=family, add_prefix_space=said))
    vocab = plain["model"]["vocab"]
    merges = "#version: 0.2\n" + "".join((m if isinstance(m, str) else " ".join(m)) + "\n"
                                        for m in plain["model"]["merges"])
    files = {"vocab.json": vocab, "merges.txt": merges}
    texts = ["king's  12345 don't\n\n x", "e\u0301 é<|endoftext|>"]
    case("vocab.json of GPT-2", texts, files=files, config=dict(tokenizer_class="GPT2Tokenizer"))
    case("vocab.json of GPT-2 with a space before", texts, files=files,
         config=dict(tokenizer_class="GPT2Tokenizer", add_prefix_space=True))
    case("vocab.json of Qwen 2", texts, files=files, config=dict(tokenizer_class="Qwen2Tokenizer"))
    roberta = {"added_tokens_decoder": {str(900 + i): flags(t, lstrip=t == "<mask>") for i, t in
                                        enumerate(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))}}
    case("vocab.json of RoBERTa", ["king <mask> of", ""], files=files,
         config=dict(tokenizer_class="RobertaTokenizer", **roberta))


def llama():
    names = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    for settings in ({}, {"add_prefix_space": False}):
        case("Llama " + json.dumps(settings), ["the king", "a  b", "é🙂"], "llama",
             config=dict(tokenizer_class="LlamaTokenizerFast", legacy=True, **names, **settings))


def shared(value, names):
    """Values that many cases have stand once, under a name that begins with @."""
    if isinstance(value, (dict, str)) and len(value) > 100:
        text = json.dumps(value, ensure_ascii=False, sort_keys=True)
        return names.setdefault(text, "@%d" % len(names))
    if isinstance(value, dict):
        return {k: shared(v, names) for k, v in value.items()}
    return value


added()
bert()
byte_level()
llama()
NAMES = {}
for c in CASES:
    c["changes"], c["files"] = shared(c["changes"], NAMES), shared(c["files"], NAMES)
OUT = dict(shared={name: json.loads(text) for text, name in NAMES.items()}, cases=CASES)
json.dump(OUT, open(DATA + "folders.json", "w", encoding="utf-8"), ensure_ascii=False, separators=(",", ":"))
print(len(CASES), "cases,", os.path.getsize(DATA + "folders.json"), "bytes")
