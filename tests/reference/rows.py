"""Writes tests/data/rows.json: training rows of every format as TRL's own trainers tokenise them.

python rows.py SMOLLM2_FOLDER QWEN3_FOLDER trl/chat_templates/qwen2_5.jinja > tests/data/rows.json
(needs torch, transformers, trl 1.16, datasets; not part of the tests)
"""

import json
import sys
from types import SimpleNamespace

from datasets import Dataset
from transformers import AutoTokenizer
from trl import DPOTrainer, KTOTrainer, SFTTrainer
from trl.chat_template_utils import get_training_chat_template
from trl.data_utils import maybe_apply_chat_template, maybe_extract_prompt


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
ROWS = {
    "language_modeling": [
        {"text": "The sky is blue.\nIs it? Ça alors: 12345"},
        {"messages": [user("What color is the sky?"), assistant("It is blue.")]},
        {"messages": [SYSTEM, user("Hi"), assistant("Hello!"), user("And 2+2?"), assistant(" Four, I think. ")]},
        {"conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]},
    ],
    "prompt_completion": [
        {"prompt": "The sky is", "completion": " blue."},
        {"prompt": "The sky i", "completion": "s blue."},
        {"prompt": "2+2=", "completion": "4"},
        {"prompt": [user("What color is the sky?")], "completion": [assistant("It is blue.")]},
        {"prompt": [SYSTEM, user("Go on")],
         "completion": [assistant("one"), user("more"), assistant("two")]},
        {"prompt": [user("Say it"), assistant("The answer is")], "completion": [assistant("4")]},
    ],
    "preference": [
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"chosen": "The sky is black", "rejected": "The sky is blue"},
        {"chosen": "Sky", "rejected": "Sky and sea"},
        {"chosen": "caf\u00e9", "rejected": "caf\u00e8"},
        {"prompt": [user("Sky?")], "chosen": [assistant("Blue.")], "rejected": [assistant("Green.")]},
        {"chosen": [SYSTEM, user("Sky?"), assistant("Blue.")], "rejected": [SYSTEM, user("Sky?"), assistant("No.")]},
    ],
    "unpaired_preference": [
        {"prompt": "The sky is", "completion": " blue.", "label": True},
        {"prompt": [user("Sky?")], "completion": [assistant("Green.")], "label": False},
    ],
    "prompt_only": [
        {"prompt": "The sky is"},
        {"prompt": [SYSTEM, user("Sky?")]},
        {"prompt": [user("Sky?"), assistant("It is ")]},
    ],
}


def prepared(trainer, row, tok, template, **more):
    args = SimpleNamespace(dataset_num_proc=None, dataset_text_field="text", assistant_only_loss=False, max_length=None,
                           truncation_mode="keep_start", loss_type="sigmoid", shuffle_dataset=False)
    for key, value in more.items():
        setattr(args, key, value)
    stub = SimpleNamespace(_tokenizer=tok, chat_template=template, completion_only_loss=True, calculate_KL=False)
    data = Dataset.from_list([row])
    rest = (data, tok, args) + ((False, None, "train") if trainer is SFTTrainer else ("train",))
    return trainer._prepare_dataset(stub, *rest)[0]


def sft(row, tok, template=None, **more):
    out = prepared(SFTTrainer, row, tok, template, **more)
    return {"ids": out["input_ids"], "mask": [int(label != -100) for label in out["labels"]]}


def expected(kind, row, tok, training):
    if kind == "language_modeling":
        out = sft(row, tok)
        if training and "text" not in row:
            marked = sft(row, tok, training, assistant_only_loss=True)
            assert marked["ids"] == out["ids"], "the marks change the text"
            out["assistant"] = marked["mask"]
        return out
    if kind == "prompt_completion":
        return sft(row, tok)
    if kind == "preference":
        out = prepared(DPOTrainer, maybe_extract_prompt(row), tok, None)
        return {key: out[key + "_ids"] for key in ("prompt", "chosen", "rejected")}
    if kind == "unpaired_preference":
        out = prepared(KTOTrainer, row, tok, None)
        return {"prompt": out["prompt_ids"], "completion": out["completion_ids"]}
    prompt = maybe_apply_chat_template(row, tok)["prompt"]
    plain = isinstance(row["prompt"], str)
    return {"prompt": tok(prompt, add_special_tokens=plain)["input_ids"]}


def main():
    out = {}
    for name, folder in (("smollm2", sys.argv[1]), ("qwen3", sys.argv[2])):
        tok = AutoTokenizer.from_pretrained(folder)
        if name == "qwen3":
            tok.chat_template = open(sys.argv[3]).read()
        training = get_training_chat_template(tok) if name == "qwen3" else None
        out[name] = []
        for kind, rows in ROWS.items():
            for row in rows:
                if name == "smollm2" or kind in ("language_modeling", "prompt_completion"):
                    want = expected(kind, json.loads(json.dumps(row)), tok, training)
                    out[name].append({"kind": kind, "row": row, "want": want})
    lines = [f'"{name}":[\n' + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "]"
             for name, cases in out.items()]
    print("{" + ",\n".join(lines) + "}")


main()
