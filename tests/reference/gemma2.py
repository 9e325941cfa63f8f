"""Writes tests/data/hf_tiny/gemma2: a tiny Gemma 2 with random weights, saved by transformers, with
its outputs, loss and gradients. Run: python tests/reference/gemma2.py FOLDER (needs torch,
transformers, safetensors). Every parameter is perturbed, so that none sits at its initial zero."""
import sys

import torch
from safetensors.torch import save_file
from transformers import Gemma2Config, Gemma2ForCausalLM

folder = sys.argv[1]
torch.manual_seed(7)
config = Gemma2Config(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=64, query_pre_attn_scalar=12,
    sliding_window=5, attn_logit_softcapping=2.0, final_logit_softcapping=3.0, attention_dropout=0.0,
    bos_token_id=2, eos_token_id=1, pad_token_id=0, attn_implementation="eager",
)
model = Gemma2ForCausalLM(config).float().eval()
with torch.no_grad():
    for p in model.parameters():
        p.add_(0.2 * torch.randn_like(p))
ids = torch.randint(3, 61, (2, 12))
mask = torch.ones_like(ids)
out = model(input_ids=ids, attention_mask=mask, labels=ids)
out.loss.backward()
with torch.no_grad():
    greedy = ids[:1, :5]
    for _ in range(16):
        logits = model(input_ids=greedy).logits[:, -1]
        greedy = torch.cat([greedy, logits.argmax(-1, keepdim=True)], 1)
model.save_pretrained(folder)
save_file({"input_ids": ids, "attention_mask": mask, "logits": out.logits.detach().contiguous(),
           "loss": out.loss.detach().reshape(1), "greedy_from_first5": greedy}, folder + "/io.safetensors")
save_file({"grad." + n: p.grad.contiguous() for n, p in model.named_parameters()}, folder + "/grads.safetensors")
