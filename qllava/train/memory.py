"""How much memory a run will take, part by part, from configurations alone.

In: a recipe, and the largest micro-batch. Out: bytes by part. The formula for what a layer keeps is held to what autograd
keeps in tests/train/test_memory.py; the sums are held to measured peaks by `python -m benchmarks planner`.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import torch

from ..model.adapt import LORA, PROJECTOR, make_trainable, part_of
from ..model.forward import LOGITS_AT_ONCE
from ..model.projectors import image_tokens, work_of
from ..model.tiles import model_class, tiling_of
from ..recipe.rules import has_lora
from ..recipe.schema import Recipe
from .engine import ALONE, Engine
from .held import FLOAT, WHOLE, Counts, held

# Bytes of optimizer state for each trained parameter, by what stands in the optimizer's name.
STATES = (("paged", 0.0), ("8bit", 2.0), ("adafactor", 0.1), ("lion", 4.0), ("adam", 8.0), ("sgd", 0.0))
# Bytes that PEFT's layer keeps for each position: times width, times SwiGLU's width; by (16 bits, LoRA, dropout).
PLAIN = {
    (True, True, False): (28.7, 8.2), (True, True, True): (52.7, 12.2), (False, True, False): (32, 16), (False, True, True): (72, 20),
    (True, False, False): (16, 6), (False, False, False): (24, 12),
}  # fmt: skip
# Beside tensors: libraries, or the GPU's context; what is left of the weights that were read to be quantised (glibc keeps freed
# blocks); and what an allocator holds for each byte that is asked of it. Of the CPU measured by `python -m benchmarks
# planner`; of a GPU assumed.
RUNTIME = {"cpu": 670 << 20, "cuda": 600 << 20}
LEFT = {"cpu": 1.0, "cuda": 0.0}
HELD = {"cpu": 1.45, "cuda": 1.0}


@dataclass(frozen=True)
class Batch:
    """A micro-batch, by what its memory depends on."""

    positions: int  # padding included
    images: int  # that the tower sees; of one in tiles, every view
    labels: int


@dataclass(frozen=True)
class Memory:
    """Bytes of a run's parts at its peak."""

    weights: int
    trained: int  # weights in float32, gradients, optimizer
    kept: int  # activations for the backward pass
    working: int  # what one layer, the head or the tower takes for a moment
    runtime: int  # libraries, or the GPU's context
    buffers: int = 0  # of the engine: gathered layers, gradients on their way

    @property
    def peak(self) -> int:
        return self.weights + self.trained + self.kept + self.working + self.runtime + self.buffers


class Shape:
    """A recipe's model as numbers: parameters by part, trained and frozen, and the configurations' widths.

    Raises:
        UserError: the base has no configuration to read.
    """

    def __init__(self, recipe: Recipe, config: object) -> None:
        with torch.device("meta"):
            model = model_class(config)(config).requires_grad_(False)
            linears = {
                f"{n}.weight" for n, m in model.model.language_model.named_modules() if isinstance(m, torch.nn.Linear)
            }
            model = make_trainable(model, recipe)
        self.frozen: Counter[str] = Counter()
        self.trained: Counter[str] = Counter()
        self.linears = 0  # of the LLM, without lm_head
        self.layer: Counter[bool] = Counter()  # of one of the LLM's layers, by whether it trains; so the next
        self.small: Counter[bool] = Counter()  # of tensors that ZeRO-3 does not cut
        for name, p in model.named_parameters():
            self.layer[p.requires_grad] += p.numel() if "language_model.layers.0." in name else 0
            self.small[p.requires_grad] += p.numel() if p.numel() <= WHOLE else 0
            (self.trained if p.requires_grad else self.frozen)[part_of(name)] += p.numel()
            inner = (
                name.replace("base_model.model.", "").replace(".base_layer", "").removeprefix("model.language_model.")
            )
            self.linears += p.numel() if inner in linears else 0
        text, vision = config.text_config, config.vision_config
        self.width, self.middle, self.layers = text.hidden_size, text.intermediate_size, text.num_hidden_layers
        self.heads, self.vocabulary = text.num_attention_heads, text.vocab_size
        self.attention = self.heads * (getattr(text, "head_dim", None) or self.width // self.heads)
        self.patches = (vision.image_size // vision.patch_size) ** 2
        tiling = tiling_of(config)
        self.views = 1 if tiling is None else tiling.max_tiles + 1  # of an image, at most
        self.projected = work_of(config)  # of an image
        self.image_tokens = image_tokens(config) if tiling is None else tiling.most_tokens
        self.tower_width, self.tower_middle = vision.hidden_size, vision.intermediate_size
        self.tower = sum(c["vision tower"] for c in (self.frozen, self.trained))
        self.edge = vision.image_size


def estimate(
    recipe: Recipe,
    shape: Shape,
    batch: Batch,
    dtype: torch.dtype,
    recomputed: int,
    device: str,
    optim: str | None = None,
    engine: Engine = ALONE,
) -> Memory:
    """The peak of a run whose largest micro-batch is `batch`.

    Args:
        recomputed: so many of the LLM's layers are run again in the backward pass.
        device: `cpu` or `cuda`.
        optim: instead of the recipe's.
        engine: what processes share the run by.
    """
    size = dtype.itemsize
    mine = held(counts(recipe, shape, dtype), engine, state_bytes(optim or recipe.optim))
    layer = kept_by_layer(recipe, shape, batch, size)
    stream = batch.positions * shape.width * size
    kept = recomputed * stream + max(shape.layers - recomputed, 1 if recomputed else 0) * layer
    kept += 3 * stream + batch.positions * shape.width  # embeddings, what follows them, the last norm, where images go
    kept += 2 * batch.labels * shape.width * size
    kept += batch.images * (3 * shape.edge**2 * 4 + shape.projected.kept * size)
    kept += sum(c[PROJECTOR] for c in (shape.trained, shape.frozen)) * size  # spelt out in the computation's dtype
    if shape.trained[LORA] and size < 4 and not recipe.fused_layers:
        kept += shape.trained[LORA] * size
    if size < 4:  # autocast keeps what it spelt out to the end of the forward pass, under DDP whatever is run again
        spelt = sum(n for part, n in shape.trained.items() if part not in (PROJECTOR, LORA)) * size
        kept += spelt if not engine.casts else int(spelt * max(1, shape.layers - recomputed) / shape.layers)
    return Memory(
        weights=mine.frozen,
        trained=mine.learning,
        buffers=mine.buffers,
        kept=int(HELD[device] * kept),
        working=int(
            HELD[device]
            * max(
                _backward(recipe, shape, batch, size),
                _logits(recipe, shape, batch, size),
                _tower(shape, batch, size) - kept,
            )
        ),
        runtime=RUNTIME[device] + (int(LEFT[device] * shape.linears * size) if recipe.tune == "qlora" else 0),
    )


def state_bytes(optim: str) -> float:
    """Bytes of the optimizer for each parameter that trains."""
    return next((b for word, b in STATES if word in optim), 8.0)


def counts(recipe: Recipe, shape: Shape, dtype: torch.dtype) -> Counts:
    """The recipe's model as numbers that an engine shares out."""
    size, four = dtype.itemsize, recipe.tune == "qlora"
    frozen, trained = sum(shape.frozen.values()), sum(shape.trained.values())
    head = shape.frozen["lm_head"] * size + shape.trained["lm_head"] * FLOAT
    return Counts(
        trained=trained,
        frozen=frozen,
        frozen_bytes=frozen * size - (int(shape.linears * (size - four_bit_bytes(recipe))) if four else 0),
        layer=shape.layer[False] * size + shape.layer[True] * FLOAT,
        layer_trained=shape.layer[True],
        ends=head + shape.width * size,
        small=shape.small[False] * size + shape.small[True] * FLOAT,
    )


def four_bit_bytes(recipe: Recipe) -> float:
    """Bytes of a 4-bit weight with its scale: one for 64 weights, itself in 8 bits with double quantisation."""
    return 0.5 + ((1 + 4 / 256) if recipe.quantization.bnb_4bit_use_double_quant else 4) / 64


def kept_by_layer(recipe: Recipe, shape: Shape, batch: Batch, size: int) -> int:
    """Bytes of one layer's activations for the backward pass."""
    if recipe.fused_layers and recipe.tune != "full":
        wide = 2 * shape.width + 4 * shape.attention + 2 * shape.middle
        return batch.positions * (size * wide + 4 * shape.heads + 8)
    lora = recipe.tune in ("lora", "qlora")
    width, middle = PLAIN[size < 4, lora or recipe.tune == "full", lora and recipe.lora.lora_dropout > 0]
    return int(batch.positions * (width * shape.width + middle * shape.middle + 4 * shape.heads + 64))


def _backward(recipe: Recipe, shape: Shape, batch: Batch, size: int) -> int:
    """What the backward pass of one layer takes for a moment: SwiGLU's gradients, the norm's in float32, spelt-out weights."""
    wide = batch.positions * (4 * shape.middle + 2 * shape.width) * size + 3 * batch.positions * shape.width * 4
    weight = shape.width * shape.middle * size if recipe.tune == "qlora" or size < 4 else 0
    return (wide if recipe.fused_layers else 2 * wide) + weight  # PEFT's layers add up a copy for each linear


def _logits(recipe: Recipe, shape: Shape, batch: Batch, size: int) -> int:
    """A head that learns makes all its logits at once."""
    at_once = batch.labels if recipe.tune == "full" else max(1, LOGITS_AT_ONCE // shape.vocabulary)
    rows = min(batch.labels, at_once)
    return rows * shape.vocabulary * (8 + 2 * size)


def _tower(shape: Shape, batch: Batch, size: int) -> int:
    """The frozen tower's forward pass over all images at once."""
    return batch.images * (shape.patches + 1) * (6 * shape.tower_width + 2 * shape.tower_middle) * size


def operations(recipe: Recipe, shape: Shape, batch: Batch, recomputed: int) -> float:
    """Multiplications and additions of one micro-batch, forward and backward: 4 for each weight of a frozen linear and
    position (6 where it trains), 2 more where a layer is run again, and the tower once."""
    each = 6 if recipe.tune == "full" else 4
    again = 2 * recomputed / shape.layers
    attention = 2 * batch.positions * shape.attention * shape.layers * min(batch.positions, 1024) * (3.5 + again / 2)
    linears = batch.positions * shape.linears * (each + again)
    head = 4 * batch.labels * shape.width * shape.vocabulary
    lora = 6 * batch.positions * sum(n for p, n in shape.trained.items() if "LoRA" in p) if has_lora(recipe) else 0
    projector = 6 * batch.images * shape.projected.multiplications
    return linears + attention + head + lora + projector + 2 * batch.images * (shape.patches + 1) * shape.tower


def gib(size: float) -> str:
    """Bytes as GiB, with two digits."""
    return f"{size / 2**30:,.2f} GiB" if math.isfinite(size) else "-"
