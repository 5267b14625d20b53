"""The model card of an artifact: `README.md` in the hub's format, by `huggingface_hub`. In: its manifest. Out: the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open

from ..model.projector import FILE as PROJECTOR_FILE
from ..model.projector import MARK
from ..model.projectors import kind_of
from ..model.tiles import ROW_END
from ..recipe.projector import MLP
from .card_tiles import needs, tiles_in
from .manifest import Manifest

KINDS = {"lora": "LoRA adapter", "qlora": "QLoRA adapter", "projector": "projector", "full": "model"}


def base_name(manifest: Manifest) -> str:
    """The base that the artifact was made on, as people read it."""
    base = manifest.base.model_dump() if manifest.base else manifest.report.get("base") or {}
    source = base.get("source", "a base")
    return source if isinstance(source, str) else f"{source['vision_tower']} and {source['llm']}"


def markdown_table(head: tuple[str, ...], rows: list[tuple]) -> list[str]:
    """Lines of a Markdown table; whole numbers get thousands separators."""
    cells = [[f"{c:,}" if isinstance(c, int) else str(c).replace("|", "\\|") for c in row] for row in rows]
    return [f"| {' | '.join(r)} |" for r in [list(head), ["---"] * len(head), *cells]]


def model_card(manifest: Manifest, folder: Path) -> None:
    """Writes `README.md` into the artifact's folder: metadata for the hub, what it is, how it was proven and how it is used."""
    from huggingface_hub import ModelCard, ModelCardData

    adapter = manifest.holds == "adapter"
    data = ModelCardData(
        base_model=_on_hub(manifest) or None,
        library_name="peft" if adapter and (folder / "adapter_config.json").is_file() else "transformers",
        pipeline_tag="image-text-to-text",
        tags=["llava", "qllava", *([manifest.tune] if manifest.tune else [])],
    )
    kind = KINDS.get(manifest.tune or "", "adapter") if adapter else "model"
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        f"# LLaVA-1.5{'' if _tiles(manifest, folder) is None else '-HD'} {kind}",
        "",
        *_what(manifest, kind),
        "",
        *_proof(manifest),
        *(
            _use(adapter, _projector(folder))
            if tiles_in(folder) is None
            else needs(folder, manifest.template, manifest.dtype)
        ),
    ]
    ModelCard("\n".join(lines) + "\n").save(folder / "README.md")


def _tiles(manifest: Manifest, folder: Path) -> int | None:
    source = manifest.base.source if manifest.base and manifest.holds == "adapter" else None
    return source.get("max_tiles") if isinstance(source, dict) else tiles_in(folder)


def _on_hub(manifest: Manifest) -> list[str]:
    base = manifest.base.model_dump() if manifest.base else manifest.report.get("base") or {}
    source = base.get("source")
    names = [source] if isinstance(source, str) else [source["llm"], source["vision_tower"]] if source else []
    return [n for n in names if "/" in n and not Path(n).is_absolute()]


def _what(manifest: Manifest, kind: str) -> list[str]:
    report, recipe = manifest.report, manifest.recipe or {}
    lora = recipe.get("lora") if "lora" in (manifest.tune or "") else None
    rank = f", rank {lora['r']}, alpha {lora['lora_alpha']:g}" if lora else ""
    bound = f" (fingerprint `{manifest.base.fingerprint}`)" if manifest.base else ""
    merged = f", with {report['merged_from']} merged into it ({report['target']})" if "merged_from" in report else ""
    lines = [
        f"A {kind}{rank} for a LLaVA-1.5, made by qllava on {base_name(manifest)}{bound}{merged}.",
        "",
        f"- prompts: template `{manifest.template}`; images: `{manifest.image_aspect_ratio}`",
    ]
    if "combined_from" in report:
        named = ", ".join(f"{p['adapter']} × {p['weight']:g}" for p in report["combined_from"])
        lines += [f"- combined from {named} ({report['method']})"]
    if "steps" in report:
        loss = f"{report['loss']:.4f}" if report.get("loss") is not None else "not logged"
        held = f", held-out loss {report['eval_loss']:.4f}" if report.get("eval_loss") is not None else ""
        rate = recipe.get("learning_rate")
        lines += [
            f"- {report['steps']:,} steps of {recipe.get('global_batch_size')} samples ({_trained_on(report):,} taken, "
            f"held-out ones left out), learning rate {rate}, projector's {recipe.get('projector_learning_rate') or rate}",
            f"- last training loss {loss}{held}; the weights are those of step {report.get('weights_of_step', report['steps']):,}",
        ]
    return [*lines, "- the resolved recipe, versions and the SHA-256 of every file: `qllava.json`"]


def _trained_on(report: dict[str, Any]) -> int:
    return sum(report["samples"].values()) - report.get("held_out", 0)


def _proof(manifest: Manifest) -> list[str]:
    report: dict[str, Any] = manifest.report
    lines = [f"**Warning.** {report['warning']}", ""] if "warning" in report else []
    if "merged_from" not in report:
        return lines
    if not report.get("proof"):
        return [*lines, "Not compared with base and adapter.", ""]
    targets = report.get("targets") or {report["target"]: report["proof"]}
    rows = [
        (
            f"{t} (this)" if t == report["target"] else t,
            f["largest"],
            f["mean"],
            f["relative"],
            f["kl"],
            f["greedy_agreement"],
        )
        for t, f in targets.items()
    ]
    head = ("target", "largest difference of logits", "mean", "of their spread", "KL (nats)", "greedy agreement")
    return [*lines, "Against base and adapter, on the same prompts, in float32:", "", *markdown_table(head, rows), ""]


def _projector(folder: Path) -> str:
    """The name of the artifact's projector, out of its names: a base is not at hand, and may be no folder."""
    names: set[str] = set()
    for file in (
        [folder / PROJECTOR_FILE] if (folder / PROJECTOR_FILE).is_file() else sorted(folder.glob("*.safetensors"))
    ):
        with safe_open(file, "pt") as tensors:
            names |= {k.split(MARK)[-1] for k in tensors.keys() if MARK in k or file.name == PROJECTOR_FILE}  # noqa: SIM118
    return kind_of(names - {ROW_END}) or MLP


def _use(adapter: bool, projector: str) -> list[str]:
    if not adapter and projector != MLP:
        return [
            f"Its projector is `{projector}`, so it is a model of type `qllava`, which `transformers` alone refuses: "
            "`qllava.load(THIS_FOLDER)` loads it, and `qllava chat THIS_FOLDER --image photo.png` talks to it."
        ]
    if not adapter:
        return [
            "Loads with `transformers.LlavaForConditionalGeneration`; `qllava chat THIS_FOLDER --image photo.png` talks to it."
        ]
    return [
        "```",
        "qllava chat THIS_FOLDER --image photo.png",
        f"qllava merge THIS_FOLDER --out merged     # one {'plain Hugging Face LLaVA' if projector == MLP else 'whole model, which qllava loads'}",
        "```",
        "",
        "The base is bound by its fingerprint: another one is refused. The projector is in `projector.safetensors`, so LoRA loaded",
        "by PEFT alone lacks it.",
    ]
