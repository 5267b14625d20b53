"""Greedy answers, in batches that give what one question at a time would give.

In: prompts of `Processing.prompt`. Out: texts, in the order of the prompts. Padding goes left, so that every prompt ends
where its answer begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..artifact.load import Loaded
from ..data.collate import collate
from ..data.tokens import IMAGE

Prompt = Callable[[], dict[str, Any]]  # made when its batch comes up, so that few images are in memory at a time


@torch.inference_mode()
def generate(
    loaded: Loaded, prompts: Sequence[dict[str, Any]], max_new_tokens: int = 128, **options: Any
) -> list[list[int]]:
    """Token ids of one answer for each prompt, without the end token, for a batch at once."""
    batch = collate(prompts, loaded.processing, side="left")
    batch.pop("labels")
    inputs = {k: v.to(loaded.device) for k, v in batch.items()}
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(vision_dtype(loaded.model))
    ends, stop = loaded.processing.end_ids, loaded.processing.stop
    if stop is not None:
        options |= {"stop_strings": [stop], "tokenizer": loaded.processing.encoder.tokenizer}
    out = loaded.model.generate(
        **inputs, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, eos_token_id=ends,
        pad_token_id=loaded.processing.pad_token_id, **options,
    )  # fmt: skip
    answers = out[:, inputs["input_ids"].shape[1] :].tolist()
    return [ids[: next((i for i, t in enumerate(ids) if t in ends), None)] for ids in answers]


def vision_dtype(model: torch.nn.Module) -> torch.dtype:
    """The dtype that the vision tower computes in."""
    return next(p.dtype for n, p in model.named_parameters() if "vision_tower" in n)


def decode(loaded: Loaded, ids: Sequence[int]) -> str:
    text = loaded.processing.encoder.tokenizer.decode(ids, skip_special_tokens=True)
    if loaded.processing.stop is not None:
        text = text.split(loaded.processing.stop)[0]
    return text.strip()


def answer_all(
    loaded: Loaded,
    prompts: Sequence[Prompt],
    lengths: Sequence[int],
    max_new_tokens: int = 128,
    batch_size: int = 32,
    done: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """An answer for each prompt. Prompts of like length share a batch; `done` is told how many more are answered."""
    order = sorted(range(len(prompts)), key=lambda i: -lengths[i])
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        ids = generate(loaded, [prompts[i]() for i in chosen], max_new_tokens)
        for i, answer in zip(chosen, ids, strict=True):
            answers[i] = decode(loaded, answer)
        done(len(chosen))
    return answers


def prompt_length(ids: Sequence[int], image_tokens: int) -> int:
    """Positions that a prompt takes once its images are spread."""
    return sum(image_tokens if i == IMAGE else 1 for i in ids)
