"""A foreign `adapter_config.json` as a plain `LoraConfig` for the model in memory, its modules named one by one or by shape."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...model.lora import lora_targets

CHANGED = re.compile(r"pissa|olora|corda|loftq|lora_ga")  # starts that change the base's own weights
BEYOND = (  # what makes more of it than LoRA, rsLoRA or DoRA on linears
    "layer_replication", "use_qalora", "alora_invocation_tokens", "arrow_config", "lora_bias", "trainable_token_indices",
    "target_parameters", "use_bdlora", "velora_config", "kasa_config", "monteclora_config",
)  # fmt: skip


def plain_config(
    config: dict[str, Any], ranks: dict[str, int], linears: list[str], base: str | None, folder: Path
) -> Any:
    """The config by which PEFT puts these modules' LoRA where it belongs, and scales it as it was.

    Args:
        config: the adapter's own.
        ranks: of every module with LoRA, by its path in memory.
        linears: all that could have it.

    Raises:
        UserError: it is no plain LoRA.
    """
    from peft import LoraConfig

    if config.get("peft_type", "LORA") != "LORA":
        raise UserError(f"{folder} is a {config['peft_type']}, no LoRA; only LoRA can be converted.")
    start = str(config.get("init_lora_weights", True))
    if CHANGED.search(start):
        raise UserError(
            f"{folder} began with init_lora_weights: {start}, which changes the base's own weights. Save it as plain LoRA first "
            "(PEFT: save_pretrained(path_initial_model_for_weight_conversion=...)), and convert that."
        )
    if beyond := [n for n in BEYOND if config.get(n)]:
        raise UserError(f"{folder} is no plain LoRA: its adapter_config.json has {beyond[0]}: {config[beyond[0]]}.")
    if config.get("bias", "none") != "none":
        raise UserError(f"{folder} was trained with bias: {config['bias']}, which has no place in an adapter here.")
    try:
        alpha, rank, dropout = config["lora_alpha"], int(config["r"]), float(config.get("lora_dropout") or 0)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}/adapter_config.json does not say how the LoRA is scaled: {error!r}.") from None
    alphas = {m: alpha_of(config, m, alpha) for m in ranks}
    pattern = lora_targets(ranks)
    regular = all((n in ranks) == bool(re.fullmatch(pattern, n)) for n in linears)
    return LoraConfig(
        task_type="CAUSAL_LM", base_model_name_or_path=base, r=rank, lora_alpha=alpha, lora_dropout=dropout, inference_mode=True,
        target_modules=pattern if regular else sorted(ranks), use_rslora=bool(config.get("use_rslora")),
        use_dora=bool(config.get("use_dora")), rank_pattern={m: r for m, r in ranks.items() if r != rank},
        alpha_pattern={m: a for m, a in alphas.items() if a != alpha},
    )  # fmt: skip


def alpha_of(config: dict[str, Any], module: str, default: float) -> float:
    """A module's alpha by PEFT's rule, its pattern written in whatever layout."""
    patterns = config.get("alpha_pattern") or {}
    from peft.utils.other import get_pattern_key

    inner = module.removeprefix("model.language_model.")
    for name in (module, f"model.{inner}", f"language_model.model.{inner}"):
        key = get_pattern_key(patterns.keys(), name)
        if key in patterns:
            return patterns[key]
    return default
