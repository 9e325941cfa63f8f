"""Runs loops of tinker-cookbook, as they are published, against perilune train-server. Not part of the tests.

    perilune convert SmolLM2-135M-Instruct.Q4_1.gguf smollm2/
    perilune train-server smollm2 --name smollm2
    pip install torch tinker==0.38.0 sympy pylatexenc math-verify && pip install --no-deps tinker-cookbook==0.6.1 ...
    TINKER_BASE_URL=http://127.0.0.1:8473 TINKER_API_KEY=tml-local python tests/reference/tinker_loops.py sl smollm2/ 16 sl
    ...                                                                      ... tinker_loops.py rl smollm2/ 16 rl sl

What a hub would give is given here: rows (datasets.load_dataset), the tokenizer of the folder, the name of a renderer.
The loops themselves, tinker_cookbook.recipes.sl_loop and rl_loop, and the client are imported unmodified.
"""
import json
import os
import random
import sys

import datasets
import transformers
from tinker_cookbook import model_info, tokenizer_utils

kind, folder = sys.argv[1], sys.argv[2]
steps = int(sys.argv[3]) if len(sys.argv) > 3 else 8
draw = random.Random(1)
question = "What is {} + {}?"


def rows(path, *_):
    pairs = [(draw.randint(1, 4), draw.randint(1, 4)) for _ in range(8 * steps)]
    if "no_robots" in path:  # conversations: sums with answers in boxes
        ask = question + " Provide a numerical answer without units, written inside \\boxed{{}}."
        train = {"messages": [[{"role": "user", "content": ask.format(a, b)},
                               {"role": "assistant", "content": f"\\boxed{{{a + b}}}"}] for a, b in pairs]}
    else:  # sums in the form of GSM8K
        train = {"question": [question.format(a, b) for a, b in pairs], "answer": [f"#### {a + b}" for a, b in pairs]}
    return datasets.DatasetDict({"train": datasets.Dataset.from_dict(train)})


datasets.load_dataset = rows
tokenizer_utils.register_tokenizer("smollm2", lambda: transformers.AutoTokenizer.from_pretrained(folder))
model_info.get_recommended_renderer_name = lambda _: "role_colon"

log_path = sys.argv[4] if len(sys.argv) > 4 else f"/tmp/{kind}-loop"
if kind == "sl":
    from tinker_cookbook.recipes import sl_loop as loop
    config = loop.Config(model_name="smollm2", batch_size=8, learning_rate=1e-3, max_length=64, lora_rank=8, save_every=5,
                         log_path=log_path)
else:  # argument 5: the log folder of sl, whose last weights it begins with
    from tinker_cookbook.recipes import rl_loop as loop
    if len(sys.argv) > 5:
        last = json.loads(open(sys.argv[5] + "/checkpoints.jsonl").read().splitlines()[-1])
        os.makedirs(log_path)
        with open(log_path + "/checkpoints.jsonl", "w") as file:
            file.write(json.dumps({**last, "batch": 0}) + "\n")
    config = loop.Config(model_name="smollm2", batch_size=4, group_size=8, learning_rate=3e-4, lora_rank=8, max_tokens=12,
                         loss_fn="importance_sampling", save_every=5, log_path=log_path)
loop.main(config)
