"""The models that the paper's tables and the model zoo name: arXiv 2310.03744v2, tables 3 and 4, and docs/MODEL_ZOO.md.

A benchmark's own file holds their figures, by these slugs. Figures that the paper marks as trained on the benchmark's training
images or annotations (*) are marked there too.
"""

from __future__ import annotations

MODELS = {
    "llava-1.5-7b": "LLaVA-1.5 7B",
    "llava-1.5-13b": "LLaVA-1.5 13B",
    "llava-1.5-hd-13b": "LLaVA-1.5-HD 13B",
    "llava-1.5-7b-lora": "LLaVA-1.5 7B LoRA",
    "llava-1.5-13b-lora": "LLaVA-1.5 13B LoRA",
    "llava-7b": "LLaVA 7B",
    "blip-2": "BLIP-2 (Vicuna-13B)",
    "instructblip-7b": "InstructBLIP (Vicuna-7B)",
    "instructblip-13b": "InstructBLIP (Vicuna-13B)",
    "shikra-13b": "Shikra 13B",
    "idefics-9b": "IDEFICS-9B",
    "idefics-80b": "IDEFICS-80B",
    "qwen-vl": "Qwen-VL",
    "qwen-vl-chat": "Qwen-VL-Chat",
    "pali-x-55b": "PaLI-X-55B (specialist)",
}
