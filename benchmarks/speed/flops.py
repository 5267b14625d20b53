"""How many floating-point operations a step needs, from sizes alone.

In: a shape, LoRA's rank, and what a step was fed. Out: operations. A multiplication and an addition are two.

"4N": a frozen weight costs 2 operations a token in the forward pass and 2 in the backward pass, for the gradient goes through
it but not to it. A trained weight costs 6. Per step:

- the LLM's linears, N = layers (4 hidden² + 3 hidden mlp): 4 N a token, padding not counted;
- LoRA on them, layers r (8 hidden + 3 (hidden + mlp)) weights: 6 each a token;
- attention: 4 hidden a layer and (query, key) pair forward, twice that backward; pairs under the causal mask only;
- the head: 4 vocabulary hidden a supervised token, for no other position needs its logits;
- the projector: 6 a weight and image token;
- CLIP, forward alone and without its last layer, which LLaVA-1.5 does not read: 2 a weight and patch, and its attention.

Norms, softmax, embeddings and the optimizer are left out. What is recomputed is no part of what a step needs; `recomputed`
counts it, for the use of the hardware: the forward pass of the LLM's checkpointed layers.
"""

from __future__ import annotations

from collections.abc import Mapping

from .shapes import Shape


def llm_weights(shape: Shape) -> int:
    """Weights of the LLM's linears without its head."""
    return shape.layers * (4 * shape.hidden**2 + 3 * shape.hidden * shape.mlp)


def lora_weights(shape: Shape, rank: int) -> int:
    """Weights of LoRA on all of those."""
    return shape.layers * rank * (8 * shape.hidden + 3 * (shape.hidden + shape.mlp))


def projector_weights(shape: Shape) -> int:
    return shape.tower_hidden * shape.hidden + shape.hidden**2


def tower_forward(shape: Shape) -> int:
    """Operations for one image."""
    places, width, layers = shape.image_tokens + 1, shape.tower_hidden, shape.tower_layers - 1
    patches = 2 * 3 * shape.patch**2 * width * shape.image_tokens
    return patches + layers * (2 * 12 * width**2 * places + 4 * width * places**2)


def step_flops(shape: Shape, rank: int, fed: Mapping[str, int]) -> float:
    """Operations that the step needs.

    Args:
        fed: `tokens`, `supervised`, `images` and `pairs`, as `stopwatch.counted` gives them.
    """
    tokens, images = fed["tokens"], fed["images"]
    return (
        tokens * (4 * llm_weights(shape) + 6 * lora_weights(shape, rank))
        + fed["pairs"] * 12 * shape.hidden * shape.layers
        + fed["supervised"] * 4 * shape.vocabulary * shape.hidden
        + images * (6 * projector_weights(shape) * shape.image_tokens + tower_forward(shape))
    )


def recomputed(shape: Shape, rank: int, fed: Mapping[str, int], share: float) -> float:
    """Operations done twice where `share` of the LLM's layers are checkpointed."""
    forward = fed["tokens"] * 2 * (llm_weights(shape) + lora_weights(shape, rank))
    return share * (forward + fed["pairs"] * 4 * shape.hidden * shape.layers)
