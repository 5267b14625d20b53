"""Greedy answers, in batches that give what one question at a time would give.

In: prompts of `Processing.prompt`. Out: texts, in the order of the prompts. Padding goes left, so that every prompt ends
where its answer begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from .. import console
from ..artifact.load import Loaded
from ..data.collate import collate
from ..errors import RunError
from ..model.device import ran_out
from .question import Question, features_of, length_of


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


def answers(
    loaded: Loaded, questions: Sequence[Question], chosen: Sequence[Sequence[int]], max_new_tokens: int
) -> Iterator[tuple[Sequence[int], list[str]]]:
    """For each batch of question numbers in turn: the numbers and their answers. The next batch's images are read meanwhile."""

    def prompts(batch: Sequence[int]) -> list[dict[str, Any]]:
        return [features_of(questions[i], loaded.processing) for i in batch]

    with ThreadPoolExecutor(1) as reader:
        coming = [reader.submit(prompts, batch) for batch in chosen[:1]]
        for number, batch in enumerate(chosen):
            ready = coming.pop().result()
            coming += [reader.submit(prompts, after) for after in chosen[number + 1 : number + 2]]
            try:
                texts = [decode(loaded, ids) for ids in generate(loaded, ready, max_new_tokens)]
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
                smaller = f"Take less than {len(batch)} questions at once (--batch-size)." if len(batch) > 1 else ""
                raise RunError(f"Memory ran out at question {questions[batch[0]].id!r}. {smaller}".strip()) from None
            yield batch, texts


def batches(loaded: Loaded, questions: Sequence[Question], numbers: Sequence[int], size: int) -> list[list[int]]:
    """The questions of these numbers in batches of like length, the longest first, so that what does not fit fails at once."""
    processing = loaded.processing
    lengths = {i: length_of(questions[i], processing) for i in numbers}
    order = sorted(numbers, key=lambda i: -lengths[i])
    context = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and order and lengths[order[0]] > context:
        many = sum(n > context for n in lengths.values())
        console.note(
            f"{many:,} prompts are longer than the {context:,} positions that the model was made for, such as that of "
            f"{questions[order[0]].id!r} ({lengths[order[0]]:,}); their answers are worth little."
        )
    return [order[i : i + size] for i in range(0, len(order), size)]
