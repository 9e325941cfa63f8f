"""Writes tests/data/beam_search.json and greedy_penalties.json: what transformers' generate makes of the
tiny models of tests/data/hf_tiny. Needs torch and transformers 5; run from the checkout's root."""

import json

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

FOLDER = "tests/data/hf_tiny/"
ENDS = [1, 3, 5, 7, 9, 11]
# beams, length_penalty, early_stopping, sequences returned, ids that end, new tokens, repetition_penalty;
# random weights seldom end, so several ids do
BEAMS = [
    (2, 1.0, False, 1, [], 8, 1.0),
    (3, 1.0, False, 3, [2, 7, 11], 12, 1.0),
    (4, 0.0, False, 2, [5, 9, 33], 12, 1.0),
    (4, 2.0, True, 4, [5, 9, 33, 40], 12, 1.0),
    (4, 1.5, "never", 2, [5, 9, 33, 40], 12, 1.0),
    (3, -1.0, "never", 3, ENDS, 10, 1.0),
    (3, 1.0, True, 2, ENDS, 10, 1.3),
    (5, 1.0, False, 5, list(range(1, 11)), 14, 1.0),
]
# repetition_penalty, min_new_tokens, ids that end, new tokens
GREEDY = [
    (1.0, 0, [], 12),
    (1.3, 0, [], 16),
    (0.8, 0, [], 12),
    (1.0, 6, [46, 25, 32], 12),
    (1.2, 4, [46, 25, 32, 4], 14),
    (5.0, 0, [], 20),
]


def model_and_ids(name):
    auto = AutoModelForSeq2SeqLM if name == "t5" else AutoModelForCausalLM
    model = auto.from_pretrained(FOLDER + name).eval()
    return model, load_file(FOLDER + name + "/io.safetensors")["input_ids"]


def generate(model, ids, stop, **options):
    return model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
                          eos_token_id=stop or -1, **options)


def beams():
    out = []
    for name in ("llama", "qwen3", "gpt2", "t5"):
        model, ids = model_and_ids(name)
        for n, penalty, early, returned, stop, new, repetition in BEAMS:
            for length in (5, 7):
                options = dict(num_beams=n, length_penalty=penalty, early_stopping=early,
                               num_return_sequences=returned, max_new_tokens=new, repetition_penalty=repetition)
                r = generate(model, ids[:, :length], stop, output_scores=True, return_dict_in_generate=True,
                             **options)
                out.append(dict(options, model=name, prompt=ids[:, :length].tolist(), stop=stop,
                                sequences=r.sequences[:, 1 if name == "t5" else length:].tolist(),
                                scores=[round(s, 6) for s in r.sequences_scores.tolist()]))
    return out


def greedy():
    out = []
    for name in ("llama", "qwen2"):
        model, ids = model_and_ids(name)
        for repetition, least, stop, new in GREEDY:
            options = dict(repetition_penalty=repetition, max_new_tokens=new)
            more = dict(min_new_tokens=least) if least else {}
            r = generate(model, ids[:1, :6], stop, **options, **more)
            out.append(dict(options, model=name, prompt=ids[0, :6].tolist(), min_new_tokens=least, stop=stop,
                            tokens=r[0, 6:].tolist()))
    return out


if __name__ == "__main__":
    for name, rows in (("beam_search", beams()), ("greedy_penalties", greedy())):
        with open("tests/data/%s.json" % name, "w") as f:
            json.dump(rows, f, separators=(",", ":"), sort_keys=True)
            f.write("\n")
