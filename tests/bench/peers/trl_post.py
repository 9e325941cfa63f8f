"""Steps of TRL as tests/bench/post_training.lua asks for them: prints seconds of each optimizer step, seconds of the
processor that it took, and the peak resident size. python trl_post.py sft|dpo|grpo MODEL_FOLDER ROWS.json STEPS
(needs torch, trl, peft)
CHECKPOINTING=0 keeps activations, which is faster where they fit; TRL's own default is to compute them again."""

import json
import os
import resource
import sys
import time

os.environ.update(HF_HUB_OFFLINE="1", WANDB_DISABLED="true", TOKENIZERS_PARALLELISM="false")
import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig

torch.set_num_threads(int(os.environ.get("PEER_THREADS", "2")))
method, folder, path, steps = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
with open(path, encoding="utf-8") as file:
    given = json.load(file)
data = Dataset.from_list(given["rows"])


class Clock(transformers.TrainerCallback):
    def on_step_begin(self, *args, **kwargs):
        self.began, self.cpu = time.monotonic(), time.process_time()

    def on_step_end(self, *args, **kwargs):
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"step {time.monotonic() - self.began:.2f} {time.process_time() - self.cpu:.2f} {rss:.2f}", flush=True)


common = dict(
    output_dir="/tmp/trl_post", max_steps=steps, learning_rate=1e-5, bf16=False, use_cpu=True, report_to="none",
    save_strategy="no", logging_strategy="no", gradient_checkpointing=os.environ.get("CHECKPOINTING", "1") == "1",
    per_device_train_batch_size=given["micro"], gradient_accumulation_steps=given["batch"] // given["micro"],
    model_init_kwargs={"dtype": "float32"})
lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
rest = dict(model=folder, train_dataset=data, callbacks=[Clock()], peft_config=lora)


def reward(completions, **_):
    return [float(len(c[0]["content"]) % 7) for c in completions]


if method == "grpo":
    config = trl.GRPOConfig(num_generations=given["group"], max_completion_length=given["tokens"], beta=0.0,
                            temperature=1.0, generation_kwargs={"min_new_tokens": given["tokens"]}, **common)
    trainer = trl.GRPOTrainer(reward_funcs=reward, args=config, **rest)
elif method == "sft":
    trainer = trl.SFTTrainer(args=trl.SFTConfig(max_length=1024, **common), **rest)
else:
    trainer = trl.DPOTrainer(args=trl.DPOConfig(max_length=1024, **common), **rest)
trainer.train()
