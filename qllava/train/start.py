"""Where a run starts: at the beginning, or at a checkpoint of the same run. In: recipe and output_dir. Out: a checkpoint or
None. Nothing of an earlier run is written over, and no checkpoint of another run is gone on with.
"""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from .. import console
from ..artifact.alone import alone
from ..artifact.delta import CONFIG, read_lora
from ..artifact.load import FINAL, check_base, find_artifact
from ..artifact.manifest import FILE, can_write, digest, read_manifest, verify, verify_quick
from ..artifact.merge import merge
from ..console import first_process
from ..errors import UserError
from ..model.base import config_of, skeleton, sources
from ..model.fingerprint import fingerprint
from ..model.projector import fitting, read_projector
from ..recipe.schema import Parts, Recipe
from .checkpoint import PIECES, PROBE, SHARDS, checkpoints, keeps, newest_good, set_aside, sweep, written_by
from .engine import Engine
from .peers import Peers

MERGED = "base"  # in output_dir: what adapter_start: merge-then-new trains on

LEAVING = 5.0  # seconds in which a run that was killed is gone, with its loaders
SEEN = 10.0  # seconds in which a network file system shows a new file on another host

# What may differ between a run and its resumption: when it ends, what it says, and how it shares out the same work.
FREE = {
    "output_dir", "max_steps", "num_train_epochs", "save_steps", "save_total_limit", "logging_steps", "report_to",
    "dataloader_num_workers", "per_device_train_batch_size", "gradient_checkpointing", "packing", "fused_layers",
    "attention", "image_cache", "projector", "data", "base", "adapter", "sample_generations", "divergence_factor", "push_to_hub", "hub_private_repo",
    "ddp_timeout",
}  # fmt: skip


def settle_base(recipe: Recipe) -> Recipe:
    """The recipe with a run's output_dir as `base` replaced by the model in it.

    Raises:
        UserError: the base is an adapter.
    """
    folder = find_artifact(recipe.base) if isinstance(recipe.base, str) else None
    if folder is None:
        return recipe
    if read_manifest(folder).holds == "adapter":
        raise UserError(
            f"base {recipe.base} is an adapter, not a base. Merge it first (qllava merge {recipe.base} --out DIR), "
            "or, to start from its projector, name it as projector."
        )
    return recipe.model_copy(update={"base": str(folder)})


def only_run(out: Path, peers: Peers) -> AbstractContextManager:
    """Keeps another run out of `output_dir` while the block lasts: the first thing it does is to clear away what is half written.

    Raises:
        UserError: another run holds it; the first process finds out for all.
    """
    if peers.rank:
        return nullcontext()
    return alone(out, f"Another run is writing to {out}. Wait for it, or name another output_dir.", LEAVING)


def check_device(recipe: Recipe, dtype: torch.dtype, device: torch.device) -> None:
    """Raises `UserError` for what a CPU cannot train."""
    if device.type != "cpu":
        return
    if dtype == torch.float16:
        raise UserError(
            "dtype float16 trains on a GPU alone: its loss scaler needs one. Write dtype: float32 or bfloat16."
        )
    if recipe.attention == "flex":
        raise UserError("attention: FlexAttention has no backward pass on a CPU. Write attention: auto.")


def check_projector(recipe: Recipe) -> None:
    """Looks at the projector that the recipe starts from, before the base's weights are read.

    Raises:
        UserError: there is none, or it is another than the base has.
    """
    if recipe.projector is None:
        return
    folder = find_artifact(recipe.projector) or Path(recipe.projector)
    fitting(skeleton(config_of(recipe.base)), read_projector(folder), folder, first=True)


def settle_adapter(recipe: Recipe, reads: bool = True) -> tuple[Recipe, Path | None]:
    """The recipe, and the artifact of the adapter that it starts from, if any.

    For `merge-then-new` the base is where the merged one is going to be (see `merge_first`).

    Args:
        reads: whether this process may look at the base's weights, to see that they are those of the adapter.

    Raises:
        UserError: what is named is no adapter, is on another base, or is not of the recipe's shape.
    """
    if recipe.adapter is None:
        return recipe, None
    folder = find_artifact(recipe.adapter)
    if folder is None:
        found = checkpoints(Path(recipe.adapter)) if Path(recipe.adapter).is_dir() else []
        there = f" It holds checkpoints; name one of them, such as {found[0]}." if found else ""
        raise UserError(f"adapter: {recipe.adapter} is not an artifact (it has no {FILE}).{there}")
    manifest = verify(folder)
    if manifest.holds != "adapter" or manifest.base is None:
        raise UserError(f"adapter: {folder} is a whole model, no adapter. Name it as base.")
    if reads:
        check_base(recipe.base, manifest.base)
    if manifest.template != recipe.template and manifest.template != "plain":
        console.note(f"{folder} learned the template {manifest.template}, and this run goes on with {recipe.template}.")
    if recipe.adapter_start == "merge-then-new":
        merged = Path(recipe.output_dir) / MERGED
        return recipe.model_copy(update={"base": str(merged), "adapter": None, "adapter_start": "continue"}), folder
    if not (folder / CONFIG).is_file():
        raise UserError(f"adapter: {folder} has no LoRA to start from, only a projector. Name it as projector.")
    if recipe.adapter_start == "continue":
        _, config = read_lora(folder)
        mine = {n: getattr(recipe.lora, n) for n in ("r", "lora_alpha", "use_rslora", "use_dora")}
        wrong = [f"{n}: {getattr(config, n)} there, {v} here" for n, v in mine.items() if getattr(config, n) != v]
        for field in ("rank_pattern", "alpha_pattern"):
            if getattr(recipe.lora, field) and getattr(recipe.lora, field) != getattr(config, field):
                raise UserError(
                    f"lora.{field}: {folder} has {getattr(config, field) or 'none'}, which is kept. Drop the field."
                )
        if wrong:
            shape = " ".join(f"lora.{n}={getattr(config, n)}" for n, v in mine.items() if getattr(config, n) != v)
            raise UserError(
                f"{folder} is of another shape, in which it cannot be trained on: {'; '.join(wrong)}. Write {shape}, or "
                "adapter_start: stack or merge-then-new."
            )
    return recipe, folder


def merge_first(recipe: Recipe, adapter: Path, base: str | Parts) -> None:
    """Writes the adapter and its base as one to `output_dir/base`, unless a run that was cut off has done so.

    Raises:
        UserError: another base is there.
    """
    merged = Path(recipe.output_dir) / MERGED
    if merged.exists():
        if read_manifest(merged).report.get("merged_from_sha256") != digest(adapter / FILE):
            raise UserError(
                f"{merged} is there already and is not made of {adapter} as it is now; name another output_dir."
            )
        verify_quick(merged)
        return
    console.note(f"Merging {adapter} into {merged}, the new base.")
    merge(adapter, merged, dtype="float32" if recipe.dtype == "float32" else "bfloat16", base=base)


def where_to_start(
    recipe: Recipe, resume: bool, peers: Peers, reads: bool = True, engine: Engine | None = None
) -> Path | None:
    """The checkpoint to go on from, or None to begin; the first process chooses for all. One that torchrun starts anew
    (--max-restarts) goes on from what there is.

    Args:
        reads: whether this process may look at the base's weights, to see that they are those of the checkpoint.
        engine: what the run is under, to see that it reads the checkpoint's optimizer.

    Raises:
        UserError: output_dir holds a run already, or none to resume, or another one; nothing can be written there; or it is
            not the same folder for all hosts.
    """
    out = Path(recipe.output_dir)
    resume = resume or (peers.restarted and bool(checkpoints(out)))
    chosen = peers.from_first("start", lambda: _choose(recipe, resume, out, engine))
    can_write(out / PROBE).rmdir()
    if peers.processes > 1:
        _same_folder(out, peers)
    if chosen and reads and not first_process():
        _compare(recipe, out / chosen)
    return chosen and out / chosen


def _same_folder(out: Path, peers: Peers) -> None:
    """Raises `UserError` in a process that does not see the first one's output_dir."""
    mark = out / peers.from_first("mark", lambda: can_write(out / PROBE).name)
    try:
        end = time.monotonic() + SEEN
        while mark not in out.iterdir():
            if time.monotonic() > end:
                raise UserError(
                    f"output_dir {out} is not the folder that the first process writes to. It must be on a file system that all "
                    "hosts share."
                )
            time.sleep(0.2)
        peers.meet("output_dir")
    finally:
        if first_process():
            mark.rmdir()


def _choose(recipe: Recipe, resume: bool, out: Path, engine: Engine | None) -> str | None:
    if not resume:
        if (out / FINAL).exists() or checkpoints(out):
            raise UserError(f"{out} holds a run already. Add --resume to go on with it, or name another output_dir.")
        sweep(out)
        return None
    if (out / FINAL).exists():
        raise UserError(f"The run in {out} has ended; its artifact is {out / FINAL}.")
    found, complaints = newest_good(out)
    if found is None:
        reasons = "".join(f"\n  - {c}" for c in complaints.values())
        raise UserError(f"No good checkpoint in {out} to resume from.{reasons}\nBegin anew with another output_dir.")
    _compare(recipe, found)
    if engine is not None:
        _same_engine(found, engine)
    for folder, complaint in complaints.items():
        console.note(f"Passed over: {complaint} It is now {set_aside(folder)}.")
    sweep(out)
    console.note(f"Resuming from {found}.")
    return found.name


def _compare(recipe: Recipe, checkpoint: Path) -> None:
    """Raises `UserError`, naming what differs, when the checkpoint is of another run than the recipe's."""
    manifest = read_manifest(checkpoint)
    before, now = manifest.recipe or {}, recipe.model_dump(mode="json")
    wrong = [
        f"{k}: {before[k]} then, {now[k]} now" for k in now if k not in FREE and k in before and before[k] != now[k]
    ]
    split = "per_device_train_batch_size"  # which the original's order depends on
    if recipe.order == "original" and before.get(split, now[split]) != now[split]:
        wrong.append(
            f"{split}: {before[split]} then, {now[split]} now, and with order: original the order depends on it"
        )
    if manifest.base is not None and manifest.base.fingerprint != fingerprint(sources(recipe.base)):
        wrong.append(f"base: {manifest.base.source} then, another one now")
    if isinstance(before.get("base"), dict) and isinstance(now["base"], dict):
        then, here = Parts(**before["base"]).shape, Parts(**now["base"]).shape
        wrong += [f"base.{f}: {then[f]} then, {here[f]} now" for f in here if then[f] != here[f]]
    if 0 < recipe.max_steps < steps_done(checkpoint):
        wrong.append(f"max_steps: {checkpoint} is past {recipe.max_steps}")
    if wrong:
        raise UserError(
            f"{checkpoint} is of another run, which this recipe cannot go on with:\n"
            + "\n".join(f"  - {w}" for w in wrong)
            + "\nResume with what the run began with, or begin anew in another output_dir."
        )


def _same_engine(checkpoint: Path, engine: Engine) -> None:
    """Raises `UserError` where the checkpoint's optimizer is in a form that the engine would pass over."""
    kind = written_by(checkpoint)
    if kind != keeps(engine):
        remedy = {
            PIECES: "accelerate launch --config_file recipes/cluster/zero2.yaml (or zero3.yaml) …",
            SHARDS: "accelerate launch --config_file recipes/cluster/fsdp2.yaml …",
        }.get(kind, "torchrun, or one process")
        raise UserError(
            f"{checkpoint} holds the optimizer as {kind} keeps it, and this run is under {engine.title}, which cannot read that. "
            f"Resume with {remedy}, or begin anew in another output_dir."
        )


def same_data(checkpoint: Path, digest: str) -> None:
    """Raises `UserError` when the checkpoint's run was made of other samples than those of this digest."""
    before = read_manifest(checkpoint).report.get("data_digest")
    if before is not None and before != digest:
        raise UserError(
            f"{checkpoint} was trained on other samples than this recipe takes now ({before} then, {digest} now): a file, a "
            "weight, a cap or what could be used of it has changed. Put the data back as it was, or begin anew in another "
            "output_dir."
        )


def steps_done(checkpoint: Path) -> int:
    """Optimizer steps that lie behind a checkpoint."""
    return json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]


def steps_wanted(checkpoint: Path, recipe: Recipe) -> int:
    """Optimizer steps of the whole run that the checkpoint is of."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    same_length = (read_manifest(checkpoint).recipe or {}).get("num_train_epochs") == recipe.num_train_epochs
    return recipe.max_steps if recipe.max_steps > 0 else state["max_steps"] if same_length else state["global_step"] + 1
