"""Writes a GGUF file of SmolLM2-135M-Instruct as a Hugging Face folder in f32, for the peers that read
only those: python smollm2_folder.py FILE.gguf FOLDER   (needs torch, transformers, gguf)."""

import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

path = Path(sys.argv[1])
where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
model = AutoModelForCausalLM.from_pretrained(**where, dtype="float32")
model.is_quantized = False  # it was; what is written is f32
model.hf_quantizer = None
del model.config.quantization_config
model.save_pretrained(sys.argv[2])
AutoTokenizer.from_pretrained(**where).save_pretrained(sys.argv[2])
