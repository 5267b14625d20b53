"""LLaVAs with random weights, as Hugging Face folders that every contender loads.

In: a shape's name and a folder. Out: that folder with weights (bfloat16, seeded), configs, processor and tokenizer. The
tokenizer is the embedded base's (2,048 pieces); a shape's vocabulary may be larger, and its other rows are never asked for.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SHARD = 4 << 30  # bytes of weights in one file
STD = 0.02  # of every weight; Llama's own initialisation


@dataclass(frozen=True)
class Shape:
    """Sizes of an LLM (hidden, layers, heads, width of its MLP, vocabulary) and of its CLIP tower."""

    hidden: int
    layers: int
    heads: int
    mlp: int
    vocabulary: int
    tower_hidden: int
    tower_layers: int
    tower_heads: int
    edge: int = 336  # pixels
    patch: int = 14

    @property
    def image_tokens(self) -> int:
        return (self.edge // self.patch) ** 2


SHAPES = {
    # for tests: 16 image tokens
    "tiny": Shape(64, 2, 4, 128, 2112, 32, 3, 2, edge=56),
    # a head of 39 % of the body: makes much of the loss
    "mid": Shape(512, 8, 8, 1376, 32064, 256, 4, 4),
    # the proportions of 7B: the head 4 % of the body, CLIP about 5 % of the cost
    "prop": Shape(1024, 8, 16, 2752, 4096, 512, 6, 8),
    # Vicuna's real sizes with CLIP ViT-L/14-336
    "7b": Shape(4096, 32, 32, 11008, 32064, 1024, 24, 16),
    "13b": Shape(5120, 40, 40, 13824, 32064, 1024, 24, 16),
}


def base_folder(name: str, folder: Path, device: str = "cpu") -> Path:
    """Where that shape's LLaVA stands, or will; another folder if its sizes change."""
    return folder / f"{name}-{device}-{zlib.crc32(repr(SHAPES[name]).encode()):08x}"


def make_base(name: str, folder: Path, device: str = "cpu") -> Path:
    """The folder of that shape's LLaVA, written if it is not there.

    Args:
        device: where the random numbers are drawn; a GPU makes 7B in seconds. The draw depends on it.
    """
    out = base_folder(name, folder, device)
    if out.is_dir():
        return out
    shape, partial = SHAPES[name], out.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    parts = _parts(shape, partial / "parts")
    _settings(parts, partial)
    shutil.rmtree(partial / "parts")
    _weights(partial, device)
    return partial.rename(out)


def _parts(shape: Shape, folder: Path) -> dict[str, str]:
    """Folders of tower and LLM without weights: configs, image processor, tokenizer."""
    from transformers import CLIPVisionConfig, LlamaConfig

    from qllava.model.base import EMBEDDED

    tower, llm = folder / "tower", folder / "llm"
    shutil.copytree(EMBEDDED / "llm", llm, ignore=shutil.ignore_patterns("*.safetensors"))
    LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=shape.mlp, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.heads, vocab_size=shape.vocabulary,
        max_position_embeddings=4096, bos_token_id=1, eos_token_id=2, pad_token_id=0, rms_norm_eps=1e-5,
    ).save_pretrained(llm)  # fmt: skip
    CLIPVisionConfig(
        hidden_size=shape.tower_hidden, intermediate_size=4 * shape.tower_hidden, num_hidden_layers=shape.tower_layers,
        num_attention_heads=shape.tower_heads, image_size=shape.edge, patch_size=shape.patch, projection_dim=shape.tower_hidden,
    ).save_pretrained(tower)  # fmt: skip
    images = json.loads((EMBEDDED / "vision_tower" / "preprocessor_config.json").read_text())
    images |= {"size": {"shortest_edge": shape.edge}, "crop_size": {"height": shape.edge, "width": shape.edge}}
    (tower / "preprocessor_config.json").write_text(json.dumps(images))
    return {"vision_tower": str(tower), "llm": str(llm)}


def _settings(parts: dict[str, str], out: Path) -> None:
    import torch

    from qllava.model.base import assembled_config, plain_generation
    from qllava.model.inputs import load_processing
    from qllava.model.whole import save_settings
    from qllava.recipe.schema import Parts

    base = Parts(**parts)
    config = assembled_config(base)
    processing = load_processing(base, "vicuna_v1", "pad")
    save_settings(config, plain_generation(config), processing, out, torch.bfloat16)
    (out / "preprocessor_config.json").write_text(
        (Path(parts["vision_tower"]) / "preprocessor_config.json").read_text()
    )


def _weights(out: Path, device: str) -> None:
    """Random weights in shards, one tensor in memory at a time beside the shard: norms are 1, biases 0, all else normal."""
    from safetensors.torch import save_file

    index: dict[str, str] = {}
    shards = list(_shards(out, device))
    total = 0
    for i, keys in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: _draw(name, size, seed, device) for name, size, seed in keys}
        total += sum(t.numel() * t.element_size() for t in tensors.values())
        save_file(tensors, out / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    document = {"metadata": {"total_size": total}, "weight_map": index}
    (out / "model.safetensors.index.json").write_text(json.dumps(document))


def _shards(out: Path, device: str) -> Iterator[list[tuple[str, tuple[int, ...], int]]]:
    """Names, sizes and seeds of the tensors, in lists of at most `SHARD` bytes in bfloat16."""
    from transformers import AutoConfig

    from qllava.model import dialects
    from qllava.model.base import skeleton

    shard, bytes_ = [], 0
    for seed, (name, tensor) in enumerate(skeleton(AutoConfig.from_pretrained(out)).state_dict().items()):
        if shard and bytes_ + 2 * tensor.numel() > SHARD:
            yield shard
            shard, bytes_ = [], 0
        shard.append((dialects.to_published(name), tuple(tensor.shape), seed))
        bytes_ += 2 * tensor.numel()
    yield shard


def _draw(name: str, size: tuple[int, ...], seed: int, device: str):
    import torch

    if name.endswith(".bias"):
        return torch.zeros(size, dtype=torch.bfloat16)
    if "norm" in name.rsplit(".", 2)[-2]:
        return torch.ones(size, dtype=torch.bfloat16)
    generator = torch.Generator(device).manual_seed(seed)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return (torch.randn(size, generator=generator, device=device, dtype=dtype) * STD).to("cpu", torch.bfloat16)
