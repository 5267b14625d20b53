"""What is said of a run when it has ended: what it measured, the run card, and the way to the hub.

In: the trainer, the log, the manifest. Out: `run.json` and `run.md` in output_dir. (The model card in the artifact is
`artifact.card`'s.)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import console
from ..artifact.card import base_name, markdown_table
from ..artifact.manifest import Manifest, versions
from ..errors import RunError, UserError
from ..recipe.schema import Recipe

JSON, MARKDOWN = "run.json", "run.md"


def joules() -> Callable[[], float] | None:
    """The card's own energy counter, in joules since its driver was loaded; None without a card that tells."""
    if not torch.cuda.is_available():
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # no pynvml, no driver, or a card that does not count
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000


class Meter:
    """Time and energy from now on."""

    def __init__(self) -> None:
        self.started, self._joules = time.perf_counter(), joules()
        self._before = self._joules() if self._joules else 0.0

    def report(self, trainer: Any, best: int | None = None) -> dict[str, Any]:
        """What the run came to, from its counters and its log. Time and throughput are of this process's part of it, from
        the resumption if there was one, evaluations and saving included.

        Args:
            best: the step whose weights are kept, if not the last one's.
        """
        from .measure import over_processes, peak_memory

        seconds, counts = time.perf_counter() - self.started, over_processes(trainer.accelerator, trainer.counts)
        log = trainer.state.log_history
        evaluated = {e["step"]: e["eval_loss"] for e in log if "eval_loss" in e}
        losses = [entry["loss"] for entry in log if "loss" in entry]
        world = trainer.args.world_size
        return {
            "steps": trainer.state.global_step,
            "seconds": round(seconds, 3),
            "processes": world,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            "loss": losses[-1] if losses else None,
            "weights_of_step": best or trainer.state.global_step,
            "eval_loss": evaluated[best or max(evaluated)] if evaluated else None,
            "best_eval_loss": min(evaluated.values()) if evaluated else None,
            "samples_per_second": round(counts.samples / seconds, 3),
            "tokens_per_second": round(counts.tokens / seconds, 1),
            "supervised_tokens_per_second": round(counts.supervised / seconds, 1),
            "data_wait_share": round(counts.waited / world / seconds, 4),
            "peak_memory_mib": peak_memory(),
            "energy_wh": round((self._joules() - self._before) / 3600, 2) if self._joules else None,
        }


def run_card(manifest: Manifest, history: list[dict[str, Any]], out: Path) -> None:
    """Writes `run.json` and `run.md` into `out`."""
    card = {
        **manifest.report,
        "artifact": "final",
        "kind": manifest.kind,
        "base": manifest.base.model_dump() if manifest.base else None,
        "tune": manifest.tune,
        "dtype": manifest.dtype,
        "versions": versions(),
        "recipe": manifest.recipe,
        "log": history,
    }
    (out / JSON).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    report, recipe = manifest.report, manifest.recipe or {}
    lines = [
        f"# {out.name}",
        "",
        f"{recipe.get('stage')}, tune {manifest.tune}, on {base_name(manifest)}; {report['steps']:,} steps of "
        f"{recipe.get('global_batch_size')} samples in {report['seconds']:,.0f} s on {report['processes']} × {report['device']}.",
        "",
        *markdown_table(("measured", "value"), [(k.replace("_", " "), v) for k, v in report.items() if _scalar(v)]),
        "",
        "## What trained",
        "",
        *markdown_table(
            ("part", "parameters", "trainable", "dtype"),
            [(p["part"], p["parameters"], p["trainable"], p["dtype"]) for p in report["audit"]],
        ),
        "",
        "## Data",
        "",
        *markdown_table(("source", "samples"), list(report["samples"].items())),
        "",
        f"Dropped as unusable: {len(report['dropped']):,}. Digest {report['data_digest']}.",
        "",
        "## Versions",
        "",
        ", ".join(f"{name} {number}" for name, number in versions().items()),
    ]
    (out / MARKDOWN).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _scalar(value: Any) -> bool:
    return isinstance(value, int | float | str) and not isinstance(value, bool)


def check_hub(recipe: Recipe) -> None:
    """Makes sure, before a run, that its artifact can be sent.

    Raises:
        UserError: nobody is logged in, or the repository's name is none.
    """
    if recipe.push_to_hub is None:
        return
    from huggingface_hub import HfApi
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(recipe.push_to_hub)
        HfApi().whoami()
    except HFValidationError as error:
        raise UserError(f"push_to_hub: {error}") from None
    except Exception as error:  # not logged in, no network, a hub that refuses: each has its own class
        raise UserError(
            f"push_to_hub: the hub knows nobody here ({str(error)[:200]}). Log in with `hf auth login`."
        ) from None


def push(recipe: Recipe, artifact: Path) -> None:
    """Sends the artifact to the recipe's repository, as transformers and PEFT do (`HfApi.upload_folder`).

    Raises:
        RunError: it did not get there; the artifact is where it was.
    """
    if recipe.push_to_hub is None:
        return
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(recipe.push_to_hub, private=recipe.hub_private_repo, exist_ok=True)
        url = api.upload_folder(repo_id=recipe.push_to_hub, folder_path=artifact, commit_message="Trained by qllava")
    except Exception as error:  # whatever the network or the hub says; nothing of the run is lost
        raise RunError(
            f"The run has ended well, but {artifact} could not be sent to {recipe.push_to_hub}: {str(error)[:200]}. Send it "
            f"with: hf upload {recipe.push_to_hub} {artifact}"
        ) from None
    console.note(f"Sent to {url}")
