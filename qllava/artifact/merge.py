"""An adapter and its base as one plain Hugging Face model.

In: an adapter artifact. Out: a `LlavaForConditionalGeneration` folder that transformers loads without qllava. ΔW is added
in float32 and cast once. For QLoRA, `bf16-dequantized` adds it to the weights that training saw (the 4-bit ones, spelt
out), `bf16` to the original ones, from which they differ by the quantisation's rounding.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import UserError
from ..model.build import load_model
from ..model.device import dtype_of, pick_device, pick_dtype
from ..model.quantize import dequantize
from ..model.whole import save_whole
from .adapter import put_adapter
from .load import base_of, find_artifact, processing_of, quantization_of
from .manifest import Manifest, verify, writing

TARGETS = ("bf16", "bf16-dequantized")


def merge(
    adapter: str | Path, out: str | Path, target: str | None = None, dtype: str = "bfloat16", base: str | None = None
) -> Path:
    """Writes the merged model to `out` and returns its folder.

    Args:
        adapter: an adapter or a checkpoint with one, or a run's output_dir.
        target: `bf16` or `bf16-dequantized`; by default the one whose weights the adapter saw in training.
        dtype: of the weights written.
        base: where the base lies now, if no longer where the manifest says.

    Raises:
        UserError: `adapter` is none, is on another base, or `out` is there already.
        RunError: a file of the adapter is damaged.
    """
    written, folder = dtype_of(dtype), find_artifact(adapter)
    if folder is None:
        raise UserError(f"{adapter} is not an artifact, so there is nothing to merge.")
    manifest = verify(folder)
    if manifest.holds != "adapter":
        raise UserError(f"{folder} is a whole model already; there is nothing to merge.")
    if Path(out).exists():
        raise UserError(f"{out} is there already; name another folder, or remove it.")
    quantization = quantization_of(manifest)
    target = target or ("bf16" if quantization is None else "bf16-dequantized")
    if target not in TARGETS:
        raise UserError(f"No merge target '{target}'. There are: {', '.join(TARGETS)}.")
    if target == "bf16-dequantized" and quantization is None:
        raise UserError(f"{folder} was not trained on a quantised base, so its base is not to be dequantised.")
    source = base_of(manifest, base)
    device = pick_device() if target == "bf16-dequantized" else torch.device("cpu")
    if target == "bf16-dequantized":
        model = dequantize(
            load_model(source, pick_dtype(manifest.dtype or "auto", device), device, quantization)
        ).float()
    else:
        model = load_model(source, torch.float32, device)
    model = put_adapter(model, folder)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    processing = processing_of(manifest, source, keep_plain=True)
    merged = Manifest(
        kind="model",
        holds="model",
        template=manifest.template,
        image_aspect_ratio=manifest.image_aspect_ratio,
        after_eos=manifest.after_eos,
        exif_transpose=manifest.exif_transpose,
        tune=manifest.tune,
        dtype=dtype,
        recipe=manifest.recipe,
        report={"merged_from": str(folder), "base": manifest.base.model_dump(), "target": target},
    )
    with writing(Path(out), merged) as partial:
        save_whole(model, processing, partial, written)
    return Path(out)
