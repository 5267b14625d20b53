"""What is measured and asked while a run goes on: the loss on held-out samples, and answers to the same few questions.

In: the trainer, at its evaluations. Out: `eval_loss`, and lines in `samples.jsonl`. Nothing is drawn from the run's random
streams, and the weights are as they were, so that a run with evaluations takes the same steps as one without.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from datasets import Dataset

from .. import console
from ..artifact.load import Loaded
from ..data.image import read_image
from ..data.rows import from_columns
from ..data.sample import Sample, Turn
from ..data.survey import each
from ..data.tokens import IGNORE
from ..evaluate.generate import decode, generate

if TYPE_CHECKING:
    from .trainer import LlavaTrainer

MAX_NEW_TOKENS = 128
SAMPLES = "samples.jsonl"


@dataclass
class Watch:
    """Held-out rows (features, as `dataset.training_set` gives them) and questions with their image roots."""

    held: Dataset | None = None
    questions: list[tuple[Sample, Path]] = field(default_factory=list)

    def look(self, trainer: LlavaTrainer) -> dict[str, float]:
        """Measures and asks; see the module."""
        devices = range(torch.cuda.device_count())
        with torch.random.fork_rng(devices=list(devices)), torch.inference_mode(), trainer.accelerator.autocast():
            model = trainer.accelerator.unwrap_model(trainer.model)
            training = model.training
            model.eval()
            try:
                if self.questions and trainer.is_world_process_zero():
                    self._ask(trainer, model)
                return {} if self.held is None else {"eval_loss": self._loss(trainer, model)}
            finally:
                model.train(training)

    def _loss(self, trainer: LlavaTrainer, model: torch.nn.Module) -> float:
        """The mean cross-entropy over all supervised tokens of the held-out rows."""
        accelerator, size = trainer.accelerator, trainer.recipe.per_device_train_batch_size
        total = torch.zeros(2, dtype=torch.float64)
        mine = range(accelerator.process_index, len(self.held), accelerator.num_processes)
        for start in range(0, len(mine), size):
            batch = trainer.data_collator(self.held.__getitems__(list(mine[start : start + size])))
            batch = trainer._prepare_inputs(batch)
            total += torch.tensor(
                [float(model(**batch, normalizer=1).loss), int((batch["labels"][:, 1:] != IGNORE).sum())]
            )
        if accelerator.num_processes > 1:
            total = accelerator.reduce(total.float().to(accelerator.device), "sum").cpu()
        return float(total[0] / total[1])

    def _ask(self, trainer: LlavaTrainer, model: torch.nn.Module) -> None:
        loaded, processing = Loaded(model, trainer.processing, None), trainer.processing
        step = trainer.state.global_step
        lines = []
        for sample, root in self.questions:
            turns, expected = question_of(sample)
            images = [read_image(ref, root, processing.exif) for ref in sample.images[: sum(t.images for t in turns)]]
            answer = decode(loaded, generate(loaded, [processing.prompt(turns, images)], MAX_NEW_TOKENS)[0])
            lines.append(
                {"step": step, "id": sample.id, "prompt": turns[-1].text, "expected": expected, "answer": answer}
            )
        with (Path(trainer.args.output_dir) / SAMPLES).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        for line in lines[:3]:
            console.note(console.safe(f"step {step}  {line['id']}: {line['answer']!r} (expected {line['expected']!r})"))


def question_of(sample: Sample) -> tuple[list[Turn], str]:
    """The turns up to a sample's first answer, and that answer."""
    at = next(i for i, turn in enumerate(sample.turns) if turn.role == "assistant")
    return list(sample.turns[:at]), sample.turns[at].text


def choose_questions(rows: Dataset, count: int, seed: int) -> list[tuple[Sample, Path]]:
    """`count` different rows, always the same for a seed, as samples with their image roots."""
    numbers = random.Random(f"questions:{seed}").sample(range(len(rows)), min(count, len(rows)))
    return [from_columns(row) for row in each(rows.select(sorted(numbers)))] if numbers else []
