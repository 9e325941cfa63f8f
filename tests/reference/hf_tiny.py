"""Writes what tests/lua/test_models.lua compares with beside the folders of tests/data/hf_tiny that
came with the reference data: the folders gemma2 and t5_gated, and hf_variants.{json,safetensors}: what
transformers computes with the weights of those folders under other configs.

Run: python tests/reference/hf_tiny.py tests/data/hf_tiny (needs torch, transformers, safetensors).
Every parameter is perturbed, so that none sits at its initial zero or one."""
import json
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import (AutoConfig, AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, T5Config,
                          T5ForConditionalGeneration)

root = sys.argv[1]


def perturb(model):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.float().eval()


def save(model, folder, io, out):
    out.loss.backward()
    model.save_pretrained(folder)
    io = dict(io, logits=out.logits.detach().contiguous(), loss=out.loss.detach().reshape(1))
    save_file(io, folder + "/io.safetensors")
    save_file({"grad." + n: p.grad.contiguous() for n, p in model.named_parameters()}, folder + "/grads.safetensors")


@torch.no_grad()
def greedy(model, ids, n=16):
    for _ in range(n):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    return ids


def gemma2():
    torch.manual_seed(7)
    model = perturb(Gemma2ForCausalLM(Gemma2Config(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, query_pre_attn_scalar=12,
        sliding_window=5, attn_logit_softcapping=2.0, final_logit_softcapping=3.0, attention_dropout=0.0,
        bos_token_id=2, eos_token_id=1, pad_token_id=0, attn_implementation="eager")))
    ids = torch.randint(3, 61, (2, 12))
    mask = torch.ones_like(ids)
    io = {"input_ids": ids, "attention_mask": mask, "greedy_from_first5": greedy(model, ids[:1, :5])}
    save(model, root + "/gemma2", io, model(input_ids=ids, attention_mask=mask, labels=ids))


@torch.no_grad()
def answer(model, ids, mask, n=12):
    out = torch.full((ids.shape[0], 1), model.config.decoder_start_token_id)
    for _ in range(n):
        logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=out).logits
        out = torch.cat([out, logits[:, -1].argmax(-1, keepdim=True)], 1)
    return out[:, 1:].contiguous()


def t5_gated():
    torch.manual_seed(8)
    model = perturb(T5ForConditionalGeneration(T5Config(
        vocab_size=61, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=3, num_heads=2,
        relative_attention_num_buckets=8, relative_attention_max_distance=10, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0)))
    ids, labels = torch.randint(3, 61, (2, 17)), torch.randint(3, 61, (2, 13))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    io = {"input_ids": ids, "attention_mask": mask, "labels": labels, "greedy": answer(model, ids, mask)}
    save(model, root + "/t5_gated", io, model(input_ids=ids, attention_mask=mask, labels=labels))


YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
variants = {
    "llama linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "llama yarn": ("llama", {"rope_parameters": YARN}),
    "mistral window": ("mistral", {"sliding_window": 4}),
    "qwen2 window": ("qwen2", {"sliding_window": 3, "use_sliding_window": True, "max_window_layers": 1,
                               "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}),
    "gpt2 by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "deepseek_v3 yarn": ("deepseek_v3", {"rope_parameters": dict(YARN, mscale=1.0, mscale_all_dim=0.7)}),
}


@torch.no_grad()
def others():
    logits, changes = {}, {}
    for name, (folder, change) in variants.items():
        config = AutoConfig.from_pretrained(root + "/" + folder, **change)
        model = AutoModelForCausalLM.from_pretrained(
            root + "/" + folder, config=config, attn_implementation="eager").float().eval()
        ids = load_file(root + "/" + folder + "/io.safetensors")["input_ids"]
        logits[name], changes[name] = model(input_ids=ids).logits.contiguous(), {"folder": folder, "config": change}
    t5 = T5ForConditionalGeneration.from_pretrained(root + "/t5").float().eval()
    io = load_file(root + "/t5/io.safetensors")
    logits["t5 greedy"] = answer(t5, io["input_ids"], io["attention_mask"])
    save_file(logits, root + "/hf_variants.safetensors")
    with open(root + "/hf_variants.json", "w") as f:
        json.dump(changes, f, indent=1, sort_keys=True)
        f.write("\n")


gemma2()
t5_gated()
others()
