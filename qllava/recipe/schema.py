"""The recipe: every field of a run, typed, with its default and where the default comes from.

Fields that transformers, PEFT or bitsandbytes know keep their names and meanings; the blocks `lora` and `quantization`
hold the fields of `peft.LoraConfig` and `transformers.BitsAndBytesConfig`. Our own words are in DESIGN's glossary
(CONTRIBUTING.md). Rules that join several fields are in `rules.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from ..errors import nearest
from .parts import Block, Parts

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _percent(value: Any) -> Any:
    """`10%` is 0.1."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            return value
    return value


Percent = Annotated[float, BeforeValidator(_percent), Field(gt=0, le=1)]


def _sources(value: Any) -> Any:
    """Says how sources are written where a list of them is expected and something else stands."""
    form = "write data: [{path: FILE, image_root: FOLDER}]"
    if isinstance(value, Mapping):
        raise PydanticCustomError("sources", f"is a list, which an override replaces as a whole; {form}")
    if not isinstance(value, Sequence) or isinstance(value, str) or any(isinstance(v, str) for v in value):
        raise PydanticCustomError("sources", f"is a list of sources, each with its fields; {form}")
    if not value:
        raise PydanticCustomError("sources", f"names no source; {form}")
    return value


STARTS = ("true", "gaussian", "orthogonal", "eva", "olora", "pissa", "pissa_niter_16", "loftq")


def _start(value: Any) -> Any:
    """A start of LoRA by its name in PEFT."""
    if isinstance(value, bool) or value in STARTS[1:] or re.fullmatch(r"pissa_niter_[1-9]\d*", str(value)):
        return value
    raise PydanticCustomError(
        "start", "is none of {known}{nearest}", {"known": ", ".join(STARTS), "nearest": nearest(str(value), STARTS)}
    )


def _size(value: Any) -> Any:
    """A number of samples above 0, or `auto`."""
    number = _whole(value)
    if value == "auto" or (number is not None and number > 0):
        return value if value == "auto" else number
    raise PydanticCustomError("size", "is a number of samples above 0, or auto")


def _layers(value: Any) -> Any:
    """Whether layers run again, how many of them, or `auto`."""
    number = _whole(value)
    if isinstance(value, bool) or value == "auto" or (number is not None and number > 0):
        return value if number is None else number
    raise PydanticCustomError("layers", "is true, false, a number of layers above 0, or auto")


def _whole(value: Any) -> int | None:
    """The value as a whole number; None where it is none."""
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)
    return int(value) if whole else None


TemplateName = Literal[
    "plain", "vicuna_v1", "llava_llama_2", "llama_2", "llama_3", "mistral_instruct", "chatml_direct", "mpt", "v0",
    "chat_template", "auto",
]  # fmt: skip


class Source(Block):
    """One set of samples with their images, and how much of it is taken."""

    path: Annotated[str, Field(min_length=1)]
    """LLaVA JSON or JSONL, parquet file, folder (of parquet files, of images with their metadata, or saved by
    `datasets`), or `hub:owner/name` on the hub."""
    image_root: str = "."
    """Folder that image paths start from; images outside it are refused. Relative to the folder that `path` lies in."""
    split: str = "train"
    """Of a set on the hub."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Each sample so many times: 2 is twice, 0.5 a random half."""
    max_samples: Positive | None = None
    """At most so many different samples, drawn at random."""
    replay: Percent | None = None
    """As many random samples as this share of all other sources' (`10%` or 0.1): a general set beside a domain's."""


class Eva(Block):
    """Fields of `peft.EvaConfig`."""

    rho: Annotated[float, Field(ge=1)] = 2.0
    """How far ranks may move between modules: at most `rho` times `r`; 1 leaves them as they are."""
    tau: Annotated[float, Field(gt=0, le=1)] = 0.99
    whiten: bool = False


class Lora(Block):
    """Fields of `peft.LoraConfig`. It goes on every linear of the LLM but `lm_head`, and nowhere else unless asked."""

    r: Positive = 128
    lora_alpha: Annotated[float, Field(gt=0)] = 256
    lora_dropout: Share = 0.05
    bias: Literal["none"] = "none"
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: Annotated[bool | str, BeforeValidator(_start)] = True
    """As in PEFT. `pissa`, `pissa_niter_N` and `olora` start from the base's own weights, `eva` from the activations of the
    first batches, `loftq` from what 4 bits lost. What is saved is plain LoRA on the base as it was, whatever the start."""
    eva_config: Eva = Eva()
    rank_pattern: dict[str, Positive] = Field(default={})
    """Another rank for modules by name (`mlp.down_proj: 64`, or a regular expression for the end of the path)."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(default={})


class Quantization(Block):
    """Fields of `transformers.BitsAndBytesConfig`, for the LLM's linears alone."""

    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    bnb_4bit_use_double_quant: bool = True
    bnb_4bit_compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto` is the run's `dtype`."""


class Recipe(Block):
    """One run of `qllava train`."""

    # -- what is trained
    stage: Literal["align", "instruct"]
    """`align`: the projector learns from captions. `instruct`: visual instruction tuning."""
    tune: Literal["projector", "full", "lora", "qlora"]
    """What trains of the LLM. The projector is fully trained in every one of them."""
    tune_vision_tower: Literal["frozen", "full", "lora"] = "frozen"
    """What trains of the vision tower: nothing, all of it that the projector sees, or LoRA (as the block `lora` says)."""
    base: str | Parts
    """A LLaVA (folder, hub id or artifact), or the parts to assemble one from."""
    projector: str | None = None
    """Artifact (of stage `align`, say) or folder to take the projector's first weights from."""
    adapter: str | None = None
    """Artifact of an adapter on this base, to start from."""
    adapter_start: Literal["continue", "stack", "merge-then-new"] = "continue"
    """What `adapter` is for: `continue` trains it on; `stack` leaves it as it is and trains a second one on top, and both
    are saved as one; `merge-then-new` merges it into a new base (`output_dir/base`) and trains a new one on that."""
    lora: Lora = Lora()
    quantization: Quantization = Quantization()
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of frozen weights and of the computation. `auto`: bfloat16 where the device is fast in it, else float32."""

    # -- data
    data: Annotated[tuple[Source, ...], BeforeValidator(_sources)]
    subset: Percent = 1.0
    """Share of every source that is taken, the same share of each kind of image in it; a smaller one lies in a larger."""
    on_bad: Literal["error", "drop", "report"] = "error"
    """A sample that cannot be used (missing image, broken turns, …): `error` stops before anything is read, `drop` and
    `report` decode everything first and leave it out, and the artifact lists it; `report` also prints each."""
    template: TemplateName = "vicuna_v1"
    """How conversations are written: `plain`, `vicuna_v1`, `llava_llama_2`, `llama_2`, `mistral_instruct`,
    `chatml_direct`, `mpt`, `v0`, `chat_template` (the LLM's own), or `auto` (by the LLM, for those of the paper)."""
    after_eos: Annotated[Literal["current", "legacy", "4.31"], BeforeValidator(lambda v: str(v))] = "current"
    """Text right after an end token: as today's LLaVA encodes it, or as older versions of transformers did."""
    image_aspect_ratio: Literal["pad", "square"] = "pad"
    """`pad`: to a square in CLIP's mean colour (LLaVA-1.5's stage 2 and inference). `square`: centre crop (stage 1)."""
    exif_transpose: bool = True
    """Turn pictures as their EXIF says. The original does not; photos from phones lie on their side without it."""
    pairing: Literal["rows", "shared", "turns"] = "rows"
    """What becomes of several samples about one image. `rows`: each is a row of its own, with the image. `shared`: the image
    and what else they begin with stand once, and each sample sees that and itself; exactly as `rows`, in a fraction of the
    time. `turns`: one conversation of many turns, in which later answers see earlier ones, as the 665K set was made; a
    source that holds such conversations already stays as it is."""
    max_length: Positive = 2048
    """Longest sequence, every image counted with all its tokens. Text is cut at the end, an image never."""
    dataloader_num_workers: Annotated[int, Field(ge=0)] = 0
    image_cache: Literal["none", "crops", "features"] = "none"
    """What is kept on disk for the next epoch: `crops`, the images as CLIP's edge by edge pixels (0.3 MB each at 336), or
    `features`, what a frozen vision tower makes of them (1.1 MB each for CLIP-L in bfloat16)."""

    # -- optimisation
    output_dir: Annotated[str, Field(min_length=1)]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    num_train_epochs: Annotated[float, Field(gt=0)] = 1
    max_steps: int = -1
    """Stops after so many steps; -1 goes by `num_train_epochs`."""
    global_batch_size: Positive
    """Samples in one optimizer step over all processes; accumulation follows from it."""
    per_device_train_batch_size: Annotated[int | str, BeforeValidator(_size)]
    """Samples in one micro-batch. `auto`: as many as the planner finds room for in this machine's memory; it lets layers run
    again, too, where `gradient_checkpointing` is not set."""
    learning_rate: Rate
    projector_learning_rate: Rate | None = None
    """The projector's own rate (the original's `mm_projector_lr`); without it, `learning_rate`."""
    vision_tower_learning_rate: Rate | None = None
    """The vision tower's own rate (LLaVA-NeXT's `mm_vision_tower_lr`, 2e-6 there); without it, `learning_rate`."""
    loraplus_lr_ratio: Annotated[float, Field(gt=0)] | None = None
    """LoRA+: the rate of LoRA's B matrices as a multiple of its A matrices' (16 in the paper)."""
    loss_average: Literal["global_batch", "per_micro_batch"] = "global_batch"
    """Over which supervised tokens the loss is a mean: all of the global batch's, however it is split; or, as the
    original, each micro-batch's, whose means are averaged, so that tokens of short answers weigh more."""
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup_steps: Annotated[float, Field(ge=0)] = 0.03
    """As in transformers 5: below 1 a share of all steps, else a number of steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(ge=0)] = 0.0
    """0 clips nothing, as the original in effect (its DeepSpeed files leave clipping out)."""
    ddp_timeout: Positive = 1800
    """Seconds after which processes of a launch give up one that is silent (transformers' field)."""
    optim: str = "adamw_torch"
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.999
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    gradient_checkpointing: Annotated[bool | int | str, BeforeValidator(_layers)] = False
    """Recompute the LLM's activations: about 40 % more time for about half the memory. A number: of so many of its layers.
    `auto`: of as many as memory asks for, which may be none."""
    packing: bool = True
    """Lay the samples of a micro-batch one behind the other, without padding and without attention across samples (TRL calls
    it padding_free). The same loss and gradients as padded rows."""
    attention: Literal["auto", "segments", "flex"] = "auto"
    """How packed rows attend: `segments`, sample by sample by PyTorch's own kernels; `flex`, by one FlexAttention kernel, for
    a GPU; `auto`: `flex` on a GPU, else `segments`."""
    fused_layers: bool = True
    """Run the LLM's layers (norm, linears with LoRA, SwiGLU) as functions that keep fewer activations for the backward pass.
    The same loss and gradients."""
    group_by_modality_length: bool = False
    """Batches of one modality and of like length, as the original's stage 2."""
    order: Literal["qllava", "original"] = "qllava"
    """With `group_by_modality_length`: `original` is LLaVA's own algorithm, whose order depends on the number of
    processes as well and whose last batches mix modalities."""

    # -- what is written
    logging_steps: Positive = 10
    save_steps: Annotated[float, Field(gt=0)] = 500
    """As in transformers: below 1 a share of all steps, else a number of steps."""
    save_total_limit: Positive | None = 2
    report_to: tuple[str, ...] = ()
    """Trackers by transformers' names: `tensorboard`, `wandb`, …"""

    # -- what is watched
    eval_share: Annotated[float, BeforeValidator(_percent), Field(ge=0, lt=1)] = 0.0
    """Share of the samples that is held out of training, to measure the loss on (`2%` or 0.02)."""
    eval_steps: Annotated[float, Field(gt=0)] = 0.1
    """Below 1 a share of all steps, else a number of steps. Counts for the sample answers, too."""
    early_stopping_patience: Positive | None = None
    """Ends the run when the held-out loss has not fallen for so many evaluations, and keeps the best state."""
    sample_generations: Annotated[int, Field(ge=0, le=64)] = 0
    """So many questions, always the same, are answered at every evaluation and written to `samples.jsonl`."""
    divergence_factor: Annotated[float, Field(gt=1)] | None = 3.0
    """Stops the run when the median loss of 20 steps is so many times the lowest such median; null never does."""
    push_to_hub: str | None = None
    """Repository (`owner/name`) that the finished artifact is sent to."""
    hub_private_repo: bool = True
