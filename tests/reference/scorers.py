"""Writes tests/data/scorers: tiny models of transformers with a head of one number (...ForSequenceClassification,
num_labels 1) or of two classes at every token (...ForTokenClassification), with what they give. tests/lua/test_scorer.lua
reads them.

Run: python tests/reference/scorers.py tests/data/scorers (needs torch, transformers, safetensors)."""
import sys

import torch
from safetensors.torch import save_file
from transformers import (GPT2Config, GPT2ForSequenceClassification, GPT2ForTokenClassification, LlamaConfig,
                          LlamaForSequenceClassification, LlamaForTokenClassification)

root = sys.argv[1]
llama = dict(vocab_size=23, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=32, pad_token_id=0, attention_dropout=0.0)
gpt2 = dict(vocab_size=23, n_embd=16, n_layer=2, n_head=4, n_positions=32, pad_token_id=0, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0)
made = {
    "llama_sequence": LlamaForSequenceClassification(LlamaConfig(num_labels=1, **llama)),
    "llama_token": LlamaForTokenClassification(LlamaConfig(num_labels=2, **llama)),
    "gpt2_sequence": GPT2ForSequenceClassification(GPT2Config(num_labels=1, **gpt2)),
    "gpt2_token": GPT2ForTokenClassification(GPT2Config(num_labels=1, **gpt2)),
}
torch.manual_seed(3)
for name, model in made.items():
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    model = model.float().eval()
    ids = torch.randint(1, 23, (3, 8))
    lengths = torch.tensor([8, 5, 3])
    mask = (torch.arange(8) < lengths[:, None]).long()
    ids = ids * mask  # padded on the right with 0
    logits = model(input_ids=ids, attention_mask=mask).logits
    logits.square().sum().backward() if "sequence" in name else None
    model.save_pretrained(root + "/" + name)
    io = {"input_ids": ids, "lengths": lengths, "logits": logits.detach().contiguous()}
    if "sequence" in name:
        io["grad.score.weight"] = model.score.weight.grad.contiguous()
    save_file(io, root + "/" + name + "/io.safetensors")
