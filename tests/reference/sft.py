"""Writes tests/data/sft.json: one update of supervised fine-tuning by a plain PyTorch loop over the adapter in
tests/data/peft_lora on tests/data/hf_tiny/llama: each example by itself, the sum of losses divided by the
learned tokens of all, gradients clipped to norm 1, AdamW.

python sft.py > tests/data/sft.json      (needs torch, transformers, peft; not part of the tests)
"""

import json

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("tests/data/hf_tiny/llama", dtype=torch.float32)
model = PeftModel.from_pretrained(base, "tests/data/peft_lora", is_trainable=True).train()
examples = []
for i in range(1, 9):
    n = 4 + i * 5 % 7
    examples.append(([(i * 7 + k * 3) % 50 for k in range(1, n + 1)], [int(k > 2) for k in range(1, n + 1)]))
learned = sum(sum(mask[1:]) for _, mask in examples)
total = torch.zeros(())
for ids, mask in examples:
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    labels = torch.tensor([t if on else -100 for t, on in zip(ids, mask)])[1:]
    total = total + torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
loss = total / learned
loss.backward()
named = [(n.replace("base_model.model.", "", 1).replace(".default", ""), p)
         for n, p in model.named_parameters() if p.requires_grad]
norm = torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
before = {n: p.detach().clone() for n, p in named}
torch.optim.AdamW([p for _, p in named], lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1).step()
print(json.dumps({"loss": loss.item(), "grad_norm": norm.item(), "learned": learned,
                  "after": {n: p.detach().flatten()[:8].tolist() for n, p in named}}))
