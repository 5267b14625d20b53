"""What one contender is told: model, samples, batch, settings. A JSON file between the race and a worker."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0}
LEARNING_RATE, CLIP, SEED = 2e-4, 1.0, 42


@dataclasses.dataclass(frozen=True)
class Job:
    name: str  # as the result calls it
    kind: str  # `qllava`, or a function in `peers`; `rate` and `base` answer one question, see `race.ask`
    base: str = ""  # folder of a Hugging Face LLaVA; for `base`, the one that it is to be written in
    data: str = ""  # samples.json, with images/ beside it
    out: str = ""  # folder for what the contender writes
    device: str = "cpu"
    dtype: str = "float32"
    tune: str = "lora"  # or qlora
    batch: int = 4  # samples in an optimizer step
    micro_batch: int = 4
    steps: int = 6  # warm-up steps among them
    threads: int = 1
    vram_cap: float = 0  # GiB; 0 is all
    overrides: tuple[str, ...] = ()  # of the recipe, for qllava
    order: tuple[int, ...] = ()  # of the samples, for the others: the one in which qllava takes them

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps(dataclasses.asdict(self)))
        return path

    @classmethod
    def read(cls, path: Path) -> Job:
        values = json.loads(path.read_text())
        return cls(**values | {name: tuple(values[name]) for name in ("overrides", "order")})

    def recipe(self) -> Any:
        """The recipe of a qllava contender.

        Raises:
            UserError: an override is wrong.
        """
        from qllava.recipe.load import resolve_recipe

        values = {
            "stage": "instruct", "tune": self.tune, "base": self.base, "lora": LORA, "dtype": self.dtype,
            "data": [{"path": self.data, "image_root": "images"}], "output_dir": self.out, "seed": SEED,
            "max_steps": self.steps, "global_batch_size": self.batch, "per_device_train_batch_size": self.micro_batch,
            "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "warmup_steps": 0, "max_grad_norm": CLIP,
            "optim": "adamw_torch", "save_steps": 1_000_000, "divergence_factor": None,
        }  # fmt: skip
        return resolve_recipe(values, self.overrides, self.name)
