"""The proof of a merge: what the written model says against what base and adapter say, on the same few questions.

In: models. Out: figures, and an error where they say that the merge is wrong. Everything is computed in float32, so that the
figures are the weights' and not the arithmetic's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from PIL import Image

from ..data.collate import IMAGE_KINDS, collate
from ..data.processing import Processing
from ..data.sample import Turn
from ..errors import RunError

QUESTIONS = (
    "What is in this picture?\nAnswer the question using a single word or phrase.",
    "Describe the image.",
    "Is there a person in the image?\nAnswer the question using a single word or phrase.",
)
TEXT = "Name three colors."
CONTINUED = 12  # tokens of greedy continuation
TOLERANCE = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.06, "nf4": 1.0}  # of the logits' spread
LEAST = 0.25  # share of the adapter's effect that has to be there after the merge
Prompt = tuple[torch.Tensor, dict[str, torch.Tensor]]  # ids [1, positions] and what belongs to its image, if it has one


def probes(processing: Processing) -> list[Prompt]:
    """The same prompts every time: three about pictures (a gradient, noise, two squares), one of text alone."""
    x, y = np.meshgrid(np.arange(320), np.arange(240))
    gradient = np.stack([x * 255 // 320, y * 255 // 240, (x + y) % 256], -1).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    squares = np.full((300, 200, 3), 240, np.uint8)
    squares[40:120, 30:110], squares[170:260, 80:170] = (200, 30, 30), (30, 60, 200)
    out = []
    for pixels, question in zip((gradient, noise, squares), QUESTIONS, strict=True):
        out.append(processing.prompt([Turn("user", question, 1)], [Image.fromarray(pixels)]))
    out.append(processing.prompt([Turn("user", TEXT, 0)]))
    prompts = []
    for made in out:
        batch = collate([made], processing)
        prompts.append((batch["input_ids"], {k: batch[k] for k in IMAGE_KINDS if k in batch}))
    return prompts


@dataclass
class Said:
    """What a model says to the prompts."""

    logits: list[torch.Tensor]  # of each: [text positions and continuation, vocabulary], float32 on the CPU
    tokens: list[list[int]]  # of each: the most likely next token at every position


@torch.inference_mode()
def say(model: torch.nn.Module, prompts: Sequence[Prompt], image_token: int, follow: Said | None = None) -> Said:
    """The model's logits, over the prompt's text and over a greedy continuation.

    Args:
        follow: continues as this one did, so that both are compared on the same tokens.
    """
    device = next(model.parameters()).device
    said = Said([], [])
    for i, (ids, pictures) in enumerate(prompts):
        inputs = {k: v.to(device) for k, v in pictures.items()}
        if follow is None:
            for _ in range(CONTINUED):
                last = model(input_ids=ids.to(device), **inputs).logits[0, -1].argmax()
                ids = torch.cat([ids, last.cpu().reshape(1, 1)], 1)
        else:
            ids = torch.cat([ids, torch.tensor([follow.tokens[i][-CONTINUED - 1 : -1]])], 1)
        logits = model(input_ids=ids.to(device), **inputs).logits[0].float().cpu()[ids[0] != image_token]
        said.logits.append(logits)
        said.tokens.append(logits.argmax(-1).tolist())
    return said


@dataclass(frozen=True)
class Figures:
    """How far one model's logits are from another's."""

    largest: float  # difference of logits
    mean: float
    relative: float  # mean difference over the spread (standard deviation) of the reference's logits
    kl: float  # mean over positions, in nats
    greedy_agreement: float  # share of positions with the same most likely token

    def document(self) -> dict[str, float]:
        return {k: float(f"{v:.4g}") for k, v in asdict(self).items()}


def compare(reference: Said, other: Said) -> Figures:
    """Figures of `other` against `reference`."""
    a, b = torch.cat(reference.logits), torch.cat(other.logits)
    size = min(a.shape[1], b.shape[1])
    a, b = a[:, :size], b[:, :size]
    gap = (a - b).abs()
    kl = torch.nn.functional.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    same = a.argmax(-1) == b.argmax(-1)
    return Figures(
        float(gap.max()), float(gap.mean()), float(gap.mean() / a.std()), float(kl.mean()), float(same.float().mean())
    )


def judge(merged: Figures, effect: Figures, changed: Figures, kind: str) -> None:
    """Lets a merge pass, or says what is wrong with it.

    Args:
        merged: the written model against base and adapter.
        effect: base and adapter against the base alone.
        changed: the written model against the base alone.
        kind: how it was written: `float32`, `float16`, `bfloat16` or `nf4`.

    Raises:
        RunError: nothing has changed, or too much has, or it says what is no number.
    """
    if not all(math.isfinite(v) for figures in (merged, effect, changed) for v in asdict(figures).values()):
        raise RunError(
            "Base, adapter or merged model answer with numbers that are none. Is a file of the base damaged?"
        )
    if effect.mean == 0:
        raise RunError(
            "The adapter changes nothing: base and adapter answer exactly as the base alone. Was it trained?"
        )
    if changed.mean < LEAST * effect.mean:
        raise RunError(
            f"The merge changed nothing: the written model differs from the base by {changed.mean:.2g} (mean of logits), base "
            f"and adapter by {effect.mean:.2g}."
        )
    if merged.relative > TOLERANCE[kind] and merged.mean > LEAST * effect.mean:
        raise RunError(
            f"The merge changed too much: the written model differs from base and adapter by {merged.relative:.2g} of the logits' "
            f"spread; in {kind} at most {TOLERANCE[kind]:g} is rounding."
        )


ROUNDING = {torch.float32: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-7}  # one unit in the last place
SMALL = 1e-6  # below this, sums in another order differ


def check_tensor(name: str, expected: torch.Tensor, written: torch.Tensor) -> None:
    """Makes sure that a written weight is the one that PEFT's own merge gives, to the last place of its dtype.

    Raises:
        RunError: it is not.
    """
    size = min(len(expected), len(written))
    gap = (expected[:size].float() - written[:size].float()).abs()
    allowed = ROUNDING.get(written.dtype, 2**-7) * expected[:size].float().abs() + SMALL
    if not bool((gap <= allowed).all()):
        raise RunError(
            f"The merge went wrong: {name} differs by up to {float(gap.max()):.2g} from what PEFT's own merge gives, which is more "
            "than rounding."
        )
