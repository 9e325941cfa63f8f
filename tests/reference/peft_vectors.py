"""Writes tests/data/peft_*: adapters that PEFT made for tests/data/hf_tiny/llama, with its logits and
gradients; with --check FOLDER it loads an adapter folder that Perilune wrote and prints its logits.

python peft_vectors.py tests/data      (needs torch, transformers, peft; not part of the tests)
"""

import sys

import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

BASE = "tests/data/hf_tiny/llama"


def base():
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()


def perturb(model, std):
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if p.requires_grad:
            p.data.add_(torch.randn_like(p) * std)


def run(model, ids, names):
    logits = model(input_ids=ids).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    out = {"input_ids": ids, "logits": logits.detach().contiguous(), "loss": loss.detach().reshape(1)}
    for name, p in model.named_parameters():
        if p.requires_grad and names in name:
            out["grad." + name.replace(".default", "")] = p.grad.contiguous()
    return out


def main():
    ids = load_file(BASE + "/io.safetensors")["input_ids"]
    if sys.argv[1] == "--check":
        model = PeftModel.from_pretrained(base(), sys.argv[2]).eval()
        logits = model(input_ids=ids).logits
        if len(sys.argv) > 3:
            want = load_file(sys.argv[3])["logits"]
            print("largest difference", (logits - want).abs().max().item())
        else:
            print(logits.flatten()[:8].tolist())
        return
    configs = {
        "lora": LoraConfig(r=3, lora_alpha=12, target_modules=["q_proj", "v_proj", "down_proj"], use_rslora=True,
                           rank_pattern={"down_proj": 2}, task_type="CAUSAL_LM"),
        "prefix": PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    }
    for kind, config in configs.items():
        model = get_peft_model(base(), config)
        perturb(model, 0.1 if kind == "lora" else 0.5)
        folder = f"{sys.argv[1]}/peft_{kind}"
        out = run(model, ids, "lora_" if kind == "lora" else "prompt")
        model.save_pretrained(folder)
        save_file(out, folder + "/io.safetensors")


main()
