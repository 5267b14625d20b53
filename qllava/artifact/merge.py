"""An adapter and its base as one plain Hugging Face model, and the proof that it is right.

In: an adapter artifact. Out: a `LlavaForConditionalGeneration` folder that transformers loads without qllava, with the
proof in its manifest. ΔW is added in float32 and cast once, tensor by tensor, so that memory stays near one shard; then the
written model is loaded from disk and compared with base and adapter.

Targets: `bf16` adds to the original weights; for QLoRA, `bf16-dequantized` adds to the weights that training saw (the 4-bit
ones, spelt out), from which the original ones differ by the quantisation's rounding; `nf4` rounds the sum to 4 bits again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .. import console
from ..errors import RunError, UserError
from ..model import dialects
from ..model.base import plain_generation, portable, sources
from ..model.build import load_model
from ..model.device import dtype_of, pick_device, pick_dtype
from ..model.fingerprint import fingerprint
from ..model.lora import LANGUAGE
from ..model.projector import MARK, read_projector, runtime_name
from ..model.quantize import dequantize, four_bits
from ..model.tiles import ROW_END
from ..model.tower import FILE as TOWER_FILE
from ..model.tower import PREFIX as TOWER
from ..model.tower import read_tower
from ..model.whole import save_settings
from ..recipe.schema import Quantization
from .adapter import put_adapter
from .card import model_card
from .delta import CONFIG, read_changes
from .load import as_artifact, base_of, find_artifact, processing_of, quantization_of
from .manifest import FILE, Base, Manifest, digest, verify, writing
from .prove import Said, check_tensor, compare, judge, probes, say
from .stream import EMBEDDINGS, BaseTensors, peak_memory, write_shards

ORIGINAL, DEQUANTIZED, FOUR_BITS = TARGETS = ("bf16", "bf16-dequantized", "nf4")


def merge(
    adapter: str | Path, out: str | Path, target: str | None = None, dtype: str = "bfloat16", base: str | None = None,
    force: bool = False, proof: bool = True, origin: str | None = None,
) -> Path:  # fmt: skip
    """Writes the merged model to `out` and returns its folder.

    Args:
        adapter: an adapter or a checkpoint with one, or a run's output_dir.
        target: `bf16`, `bf16-dequantized` or `nf4`; by default the one whose weights the adapter saw in training.
        dtype: of the weights written; `auto` is the base's.
        base: where the base lies now, if no longer where the manifest says.
        force: allows `nf4`, whose rounding undoes a part of what was learned.
        origin: what `adapter` was made of, for the report, if it is only a copy.
        proof: load what was written and compare it with base and adapter; only to be left out where memory is short.

    Raises:
        UserError: `adapter` is none, is on another base, or `out` is there already.
        RunError: a file of the adapter is damaged, or the merge does not do what base and adapter do; nothing is left then.
    """
    written = None if dtype == "auto" else dtype_of(dtype)
    if Path(out).exists():
        raise UserError(f"{out} is there already; name another folder, or remove it.")
    with as_artifact(adapter, base) as (folder, named):
        if folder is None:
            raise UserError(f"{adapter} is not an artifact, so there is nothing to merge.")
        return _merge(folder, origin or str(adapter), Path(out), target, written, named, force, proof)


def _merge(
    folder: Path, source: str, out: Path, target: str | None, written: torch.dtype | None, base: str | None, force: bool,
    proof: bool,
) -> Path:  # fmt: skip
    manifest = verify(folder)
    if manifest.holds != "adapter":
        raise UserError(f"{folder} is a whole model already; there is nothing to merge.")
    quantization = quantization_of(manifest)
    target = target or (ORIGINAL if quantization is None else DEQUANTIZED)
    if target not in TARGETS:
        raise UserError(f"No merge target '{target}'. There are: {', '.join(TARGETS)}.")
    if target == DEQUANTIZED and quantization is None:
        raise UserError(f"{folder} was not trained on a quantised base, so its base is not to be dequantised.")
    if target == FOUR_BITS and not force:
        raise UserError(
            "Merging into 4 bits rounds a part of what was learned away. Serve base and adapter, or merge to another target; "
            "--force does it all the same."
        )
    base_source = base_of(manifest, base)
    written = written or BaseTensors(base_source)[EMBEDDINGS[0]].dtype
    bound = manifest.base or Base(source=portable(base_source), fingerprint=fingerprint(sources(base_source)))
    job = Job(folder, manifest, base_source, quantization, target, written)
    merged = Manifest(
        kind="model", holds="model", template=manifest.template, image_aspect_ratio=manifest.image_aspect_ratio,
        after_eos=manifest.after_eos, exif_transpose=manifest.exif_transpose, tune=manifest.tune, dtype=str(written).removeprefix("torch."),
        recipe=manifest.recipe,
        report={
            "merged_from": str(find_artifact(source) or source),
            "merged_from_sha256": digest(folder / FILE), "base": bound.model_dump(),
            "target": target, **({"tower_changed": True} if (folder / TOWER_FILE).is_file() else {}),
        },
    )  # fmt: skip
    report = merged.report
    with writing(out, merged) as partial:
        with peak_memory() as peak:
            job.write(partial)
        report["peak_memory_mib_of_writing"] = peak()
        if target == FOUR_BITS:
            report["warning"] = "Merged into 4 bits: a part of what was learned is rounded away."
        if proof:
            report.update(job.prove(partial))
        else:
            report["proof"] = None
            console.note("Not compared with base and adapter: what was written is unproven.")
        model_card(merged, partial)
    console.note(f"Writing took {report['peak_memory_mib_of_writing']:,} MiB of memory at most.")
    return out


class Job:
    """One merge: where from, to what."""

    def __init__(
        self, folder: Path, manifest: Manifest, base: Any, quantization: Quantization | None, target: str,
        written: torch.dtype,
    ) -> None:  # fmt: skip
        self.folder, self.manifest, self.base, self.quantization = folder, manifest, base, quantization
        self.target, self.written = target, written
        self.device = pick_device()
        self.held = pick_dtype(manifest.dtype or "auto", self.device)  # how training held frozen weights
        self.changes = read_changes(folder) if (folder / CONFIG).is_file() else {}
        self.parts = {runtime_name(k): v for k, v in read_projector(folder).items()}
        if (folder / TOWER_FILE).is_file():
            self.parts |= {TOWER + k: v for k, v in read_tower(folder).items()}
        self.processing = processing_of(manifest, base, keep_plain=True)

    # -- writing
    def write(self, out: Path) -> None:
        """The merged model's folder."""
        tensors = BaseTensors(self.base)
        write_shards(self._tensors(tensors), out)
        save_settings(tensors.config, plain_generation(tensors.config), self.processing, out, self.written)
        if self.target == FOUR_BITS:
            _round_folder(out, self.quantization or Quantization(), self.written, self.device)

    def _tensors(self, tensors: BaseTensors) -> Iterator[tuple[str, torch.Tensor]]:
        left, parts = dict(self.changes), dict(self.parts)
        for key, tensor in tensors:
            name = dialects.to_runtime(key)
            tensor = parts.pop(name) if name in parts else self._seen(name, tensor)
            change = left.pop(name.removesuffix(".weight"), None)
            yield key, self._cast(key, tensor if change is None else change.applied(tensor))
        for name, tensor in sorted(parts.items()):  # the projector of a base in parts
            if MARK not in name and ROW_END not in name:
                raise UserError(f"{self.folder} holds {name}, which the base has not.")
            yield dialects.to_published(name), self._cast(name, tensor)
        if left:
            raise UserError(f"{self.folder} has LoRA on modules that the base has not: {sorted(left)[:3]}.")

    def _cast(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        cast = tensor.to("cpu", self.written)
        if not torch.isfinite(cast).all():
            raise RunError(
                f"{name} would hold numbers that are none in {self.written}: the base or the adapter is damaged, or too large."
            )
        return cast

    def _seen(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A base's weight as it is to be added to."""
        if self.quantization is None or self.target == ORIGINAL:
            return tensor
        tensor = tensor.to(self.held)
        if name.startswith(f"{LANGUAGE}layers.") and tensor.ndim == 2:
            tensor = four_bits(tensor, self.quantization, self.device)
        return tensor

    # -- proving
    def prove(self, out: Path) -> dict[str, Any]:
        """The report; see `prove.judge` for what it raises."""
        prompts = probes(processing_of(self.manifest, self.base))
        image_token = self.processing.image_token_id
        base_says, reference = self._reference(prompts, image_token)
        effect = compare(base_says, reference)
        if self.target != FOUR_BITS:
            self._check_tensors(out)
        model = load_model(str(out), torch.float32, self.device)
        if self.target == FOUR_BITS:
            model = dequantize(model).float()
        says = say(model, prompts, image_token, reference)
        del model
        figures, changed = compare(reference, says), compare(base_says, says)
        kind = "nf4" if self.target == FOUR_BITS else str(self.written).removeprefix("torch.")
        if not (self.target == ORIGINAL and self.quantization is not None):
            judge(figures, effect, changed, kind)
        report: dict[str, Any] = {
            "proof": figures.document(),
            "effect": effect.document(),
            "changed": changed.document(),
        }
        if self.quantization is not None:
            report |= self._all_targets(prompts, image_token, reference, figures)
        _show(report, self.target)
        return report

    def _reference(self, prompts: list, image_token: int) -> tuple[Said, Said]:
        """What the base says, and what base and adapter say, on the weights that training saw."""
        together = say(put_adapter(self._base(self.quantization), self.folder).eval(), prompts, image_token)
        return say(self._base(self.quantization), prompts, image_token, together), together

    def _check_tensors(self, out: Path) -> None:
        """Every written tensor against PEFT's merge of the same weights."""
        expected = dict(self._merged_by_peft(self.target).named_parameters())
        for key, tensor in BaseTensors(str(out)):
            name = dialects.to_runtime(key)
            if name in expected:
                check_tensor(key, expected[name].detach().cpu(), tensor)

    def _merged_by_peft(self, target: str) -> torch.nn.Module:
        """PEFT's own merge in memory, in float32, into the weights that the target adds to."""
        model = put_adapter(self._base(None if target == ORIGINAL else self.quantization), self.folder)
        return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model

    def _base(self, quantization: Quantization | None) -> torch.nn.Module:
        if quantization is None:
            return load_model(self.base, torch.float32, self.device)
        return dequantize(load_model(self.base, self.held, self.device, quantization)).float()

    def _all_targets(self, prompts: list, image_token: int, reference: Said, written: Any) -> dict[str, Any]:
        """For QLoRA: how each target would come out, the written one from disk; and which is nearest."""
        found = {self.target: written}
        for target in TARGETS:
            if target in found:
                continue
            model = self._merged_by_peft(target)
            for name, parameter in model.named_parameters():
                if target == FOUR_BITS and name.startswith(f"{LANGUAGE}layers.") and parameter.ndim == 2:
                    parameter.data = four_bits(parameter.data.to(self.written), self.quantization, self.device).float()
                else:
                    parameter.data = parameter.data.to(self.written).float()
            found[target] = compare(reference, say(model.eval(), prompts, image_token, reference))
            del model
        best = min((t for t in TARGETS if t != FOUR_BITS), key=lambda t: found[t].kl)
        return {"targets": {t: found[t].document() for t in TARGETS}, "recommended": best}


def _round_folder(out: Path, quantization: Quantization, written: torch.dtype, device: torch.device) -> None:
    """Replaces the folder's weights by their 4-bit form, as transformers and bitsandbytes save it."""
    model = load_model(str(out), written, device, quantization)
    for file in (*out.glob("*.safetensors"), *out.glob("*.index.json")):
        file.unlink()
    model.save_pretrained(out)


def _show(report: dict[str, Any], target: str) -> None:
    rows = report.get("targets") or {target: report["proof"]}
    console.table(
        "Merged against base and adapter",
        ("target", "largest", "mean", "of spread", "KL", "greedy agreement"),
        [
            (t, *(f"{f[k]:.3g}" for k in ("largest", "mean", "relative", "kl")), f"{f['greedy_agreement']:.3f}")
            for t, f in rows.items()
        ],
    )
    if report.get("recommended", target) != target:
        console.note(f"By these figures {report['recommended']} is nearer to what was trained than {target}.")
