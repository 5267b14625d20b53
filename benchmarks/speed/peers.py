"""The peers, each a function of a job and a callback: set up as their own documentation does it, for the same job.

All train LoRA on every linear of the LLM and the whole projector, with AdamW at the same rate, on the same token ids and the
same pixels. The base is loaded in the job's dtype. What they leave at defaults is theirs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .job import CLIP, LEARNING_RATE, LORA, SEED, Job
from .sets import as_messages

LINEARS = r"model\.language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
UNQUANTIZED = [
    "model.vision_tower",
    "model.multi_modal_projector",
    "lm_head",
]  # whole paths: shorter names match nothing
# LLaVA-1.5's conversation with its beginning and end tokens, which the published template lacks. The space after <image> is
# what the original's tokenizer puts there.
TEMPLATE = (
    "{{ bos_token }}{{ ' A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user\\'s questions. ' }}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' }}"
    "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}{{ '<image> \\n' }}{% endif %}{% endfor %}"
    "{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}{% endif %}{{ ' ASSISTANT:' }}"
    "{% else %}{% generation %}{{ ' ' }}{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}"
    "{{ '</s>' }}{% endgeneration %}{% endif %}{% endfor %}"
)


def trl(job: Job, watch: Any, **changed: Any) -> None:
    """Plain TRL: its collator, its loss, gradient checkpointing as by default; answers alone are supervised."""
    from trl import SFTConfig, SFTTrainer

    folder = Path(job.out)
    folder.mkdir(parents=True, exist_ok=True)
    template = folder / "template.jinja"
    template.write_text(TEMPLATE)
    bf16 = {} if job.dtype == "bfloat16" else {"bf16": False}  # on by default
    arguments = SFTConfig(
        **_common(job), **bf16, assistant_only_loss=True, max_length=None, chat_template_path=str(template),
        model_init_kwargs=_loading(job), **changed,
    )  # fmt: skip
    SFTTrainer(job.base, args=arguments, train_dataset=dataset(job), peft_config=_lora(), callbacks=[watch]).train()


def trl_no_gc(job: Job, watch: Any) -> None:
    """The same without gradient checkpointing."""
    trl(job, watch, gradient_checkpointing=False)


def hf(job: Job, watch: Any) -> None:
    """Plain `transformers.Trainer` with PEFT and a collator written by hand: all logits, no checkpointing."""
    from peft import get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoProcessor, LlavaForConditionalGeneration, Trainer, TrainingArguments, set_seed

    set_seed(SEED)
    processor = AutoProcessor.from_pretrained(job.base)
    model = LlavaForConditionalGeneration.from_pretrained(job.base, **_loading(job))
    if job.tune == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model = get_peft_model(model, _lora())
    model.config.use_cache = False
    arguments = TrainingArguments(**_common(job), bf16=job.dtype == "bfloat16", remove_unused_columns=False)
    Trainer(
        model=model, args=arguments, train_dataset=dataset(job), data_collator=Collator(processor), callbacks=[watch]
    ).train()


class Collator:
    """Rows of images and messages to a padded batch, with answers alone as labels."""

    def __init__(self, processor: Any) -> None:
        self.tokenizer, self.images = processor.tokenizer, processor.image_processor
        edge = self.images.crop_size["height"]
        self.template = TEMPLATE.replace("<image>", "<image>" * (edge // processor.patch_size) ** 2)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        talks = []
        for row in rows:
            parts = [{"type": "image"} for _ in row["images"]] + [
                {"type": "text", "text": row["messages"][0]["content"]}
            ]
            talks.append([{"role": "user", "content": parts}, *row["messages"][1:]])
        batch = self.tokenizer.apply_chat_template(
            talks, chat_template=self.template, tokenize=True, return_dict=True, return_tensors="pt", padding=True,
            return_assistant_tokens_mask=True, tokenizer_kwargs={"padding_side": "right"},
        )  # fmt: skip
        learned = torch.as_tensor(batch.pop("assistant_masks")).bool()
        out = {**batch, "labels": batch["input_ids"].masked_fill(~learned, -100)}
        pictures = [image.convert("RGB") for row in rows for image in row["images"]]
        if pictures:
            out["pixel_values"] = self.images(pictures, return_tensors="pt")["pixel_values"]
        return out


def dataset(job: Job) -> Any:
    """The samples as TRL reads them, images decoded when a row is asked for. Nothing of qllava is
    imported: it sets what oneDNN keeps, which is no peer's."""
    from datasets import Dataset, Features, Image, List, Value

    path = Path(job.data)
    rows = json.loads(path.read_text())
    rows = [rows[i] for i in job.order] if job.order else rows
    columns = {
        "images": [[str(path.parent / "images" / row["image"])] if "image" in row else [] for row in rows],
        "messages": [as_messages(row) for row in rows],
    }
    message = {"role": Value("string"), "content": Value("string")}
    return Dataset.from_dict(columns, features=Features({"images": List(Image()), "messages": List(message)}))


def _common(job: Job) -> dict[str, Any]:
    return {
        "output_dir": job.out, "max_steps": job.steps, "per_device_train_batch_size": job.micro_batch,
        "gradient_accumulation_steps": job.batch // job.micro_batch, "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant", "max_grad_norm": CLIP, "optim": "adamw_torch", "seed": SEED,
        "use_cpu": job.device == "cpu", "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
    }  # fmt: skip


def _loading(job: Job) -> dict[str, Any]:
    """Arguments of `from_pretrained`."""
    import torch

    values: dict[str, Any] = {"dtype": getattr(torch, job.dtype)}
    if job.tune == "qlora":
        from transformers import BitsAndBytesConfig

        values["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=values["dtype"], llm_int8_skip_modules=UNQUANTIZED,
        )  # fmt: skip
    if job.device == "cuda" or job.tune == "qlora":
        values["device_map"] = {"": job.device}  # TRL's `auto` would spread over what it finds
    return values


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM", target_modules=LINEARS, modules_to_save=["multi_modal_projector"], bias="none", **LORA
    )
