"""One GRPO step of TRL as tests/bench/grpo.lua asks for it: prints seconds of each step after the first
and the peak resident size. python trl_grpo.py MODEL_FOLDER ROWS.jsonl STEPS   (needs torch, trl, peft)"""

import json
import os
import resource
import sys
import time

os.environ.update(HF_HUB_OFFLINE="1", WANDB_DISABLED="true", TOKENIZERS_PARALLELISM="false")
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

torch.set_num_threads(int(os.environ.get("PEER_THREADS", "2")))
folder, path, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
rows = [json.loads(line) for line in open(path, encoding="utf-8")]
data = Dataset.from_list([{"prompt": [{"role": "user", "content": r["prompt"]}]} for r in rows])


def reward(completions, **_):
    return [float(len(c[0]["content"]) % 7) for c in completions]


class Clock(TrainerCallback):
    def on_step_begin(self, *args, **kwargs):
        self.began = time.monotonic()

    def on_step_end(self, *args, **kwargs):
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"step {time.monotonic() - self.began:.1f} {rss:.2f}", flush=True)


config = GRPOConfig(
    output_dir="/tmp/trl_grpo", per_device_train_batch_size=32, num_generations=8, max_completion_length=128,
    max_steps=steps, learning_rate=1e-5, beta=0.0, bf16=False, use_cpu=True, report_to="none", save_strategy="no",
    logging_strategy="no", temperature=1.0, gradient_checkpointing=os.environ.get("CHECKPOINTING", "1") == "1",
    model_init_kwargs={"dtype": "float32"},
    generation_kwargs={"min_new_tokens": 128})
trainer = GRPOTrainer(model=folder, reward_funcs=reward, args=config, train_dataset=data, callbacks=[Clock()],
                      peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
trainer.train()
