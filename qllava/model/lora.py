"""LoRA on a LLaVA: where it sits, what it starts from, and how it is plain LoRA again when it is saved.

In: a frozen LLaVA and a recipe's `lora` block. Out: a `PeftModel`.

A start from the base's own weights (PiSSA, OLoRA) and a second adapter on top of a first one have the same form here: the
trained adapter and a frozen *companion* beside it. For PiSSA the companion is the trained one's first state, subtracted; so
the base's weights stay as they are, 4-bit ones too, and at the start nothing has changed. Both together are one plain LoRA
of the summed rank, and as that they are saved: the trained one's rows first, then the companion's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ..errors import RunError, UserError, nearest
from ..recipe.rules import from_own_weights, has_lora
from ..recipe.schema import Lora, Recipe
from .quantize import dequantized
from .tower import tower_parameters

LANGUAGE = "model.language_model."
OWN, COMPANION = "default", "companion"  # names of the adapters in PEFT
MOST_BATCHES = 500  # that EVA may look at
Tensors = dict[str, torch.Tensor]


def lora_linears(llava: nn.Module, recipe: Recipe) -> list[str]:
    """Paths of the linears that get LoRA: all of the LLM's but `lm_head`, and the tower's that are read, as asked."""
    read = tower_parameters(llava) if recipe.tune_vision_tower == "lora" else set()
    language = recipe.tune in ("lora", "qlora")
    return [
        n
        for n, m in llava.named_modules()
        if isinstance(m, nn.Linear) and ((language and n.startswith(LANGUAGE)) or f"{n}.weight" in read)
    ]


def lora_targets(linears: Iterable[str]) -> str:
    """One regular expression for the paths, anchored at the root: the LLM's for every layer, the tower's one by one."""
    shapes = {
        re.sub(r"\\\.\d+(?=\\\.)", r"\\.\\d+", re.escape(n)) if n.startswith(LANGUAGE) else re.escape(n)
        for n in linears
    }
    return "|".join(sorted(shapes))


def add_lora(llava: nn.Module, recipe: Recipe, like: Any = None) -> nn.Module:
    """The model with LoRA as the recipe says, in float32, not yet started in a way of its own.

    Args:
        like: a `LoraConfig` to take ranks, alphas and variants from instead: that of the adapter that will be loaded.

    Raises:
        UserError: a rank or alpha pattern matches no module.
        RunError: LoRA landed on another set of modules.
    """
    from peft import EvaConfig, LoraConfig, get_peft_model

    linears, lora = lora_linears(llava, recipe), recipe.lora
    check_patterns(lora, linears)
    if like is None:
        _check_ranks(llava, recipe, linears)
    values = lora.model_dump(exclude={"eva_config"})
    init = lora.init_lora_weights
    values["init_lora_weights"] = True if like is not None or init == "loftq" or from_own_weights(recipe) else init
    targets: Any = lora_targets(linears)
    if like is not None:
        values |= {
            n: getattr(like, n) for n in ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
        }
        targets = like.target_modules if like.rank_pattern else targets
    elif init == "eva":
        values["eva_config"] = EvaConfig(
            **lora.eva_config.model_dump(), use_label_mask=False
        )  # answers are a few tokens
    adapted = get_peft_model(llava, LoraConfig(task_type="CAUSAL_LM", target_modules=targets, **values))
    check_lora(adapted, linears, all_of_them=like is None)
    return adapted


def check_patterns(lora: Lora, linears: list[str]) -> None:
    """Raises `UserError` for a rank or alpha pattern that matches no module; PEFT lets such a one pass in silence."""
    from peft.utils.other import get_pattern_key

    ends = {n.split(".", 4)[-1] for n in linears}
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(lora, field):
            try:
                hit = any(
                    get_pattern_key([pattern], name) == pattern and re.match(rf"(.*\.)?({pattern})$", name)
                    for name in linears
                )
            except re.error as error:
                raise UserError(f"lora.{field}: {pattern!r} is no regular expression: {error}.") from None
            if not hit:
                raise UserError(
                    f"lora.{field}: {pattern!r} matches none of the {len(linears)} modules with LoRA.{nearest(pattern, ends)} "
                    f"There are: {', '.join(sorted(ends))}."
                )


def _check_ranks(llava: nn.Module, recipe: Recipe, linears: list[str]) -> None:
    """Raises `UserError` for a rank beyond what a decomposition of the weight gives."""
    from peft.utils.other import get_pattern_key

    lora = recipe.lora
    if not (from_own_weights(recipe) or lora.init_lora_weights == "loftq"):
        return
    for name in linears:
        rank = lora.rank_pattern.get(get_pattern_key(lora.rank_pattern.keys(), name), lora.r)
        most = min(llava.get_submodule(name).in_features, llava.get_submodule(name).out_features)
        if rank > most:
            end = name.split(".layers.")[-1].split(".", 1)[-1]
            raise UserError(
                f"lora.r: {lora.init_lora_weights} takes rank {rank} of {name}, which has only {most}. Write a smaller lora.r, "
                f"or lora.rank_pattern: {{{end}: {most}}}."
            )


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """The modules that carry LoRA, by their path from the LLaVA's root."""
    return {
        n.removeprefix("base_model.model."): m
        for n, m in model.named_modules()
        if hasattr(m, "lora_A") and len(m.lora_A)
    }


def check_lora(model: nn.Module, expected: list[str], all_of_them: bool = True) -> None:
    """Makes sure that LoRA sits on the expected modules, and on no other.

    Raises:
        RunError: it does not.
    """
    found, wanted = set(lora_layers(model)), set(expected)
    if found - wanted or not found or (all_of_them and found != wanted):
        raise RunError(
            f"LoRA sits on {len(found)} modules instead of {len(wanted)}; not asked for: {sorted(found - wanted)[:3]}, "
            f"missing: {sorted(wanted - found)[:3]}."
        )


# -- starts
@torch.no_grad()
def start_from_own_weights(model: nn.Module, kind: str) -> None:
    """PiSSA or OLoRA: LoRA begins as a part of each weight, and a companion takes the same away.

    The decomposition is PEFT's, made of a float32 copy of each weight.
    """
    rows: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, module in lora_layers(model).items():
        real = module.base_layer
        module.base_layer = copy = nn.Linear(1, 1, bias=False, device="meta")
        copy.weight = nn.Parameter(dequantized(real), requires_grad=False)
        try:
            module.olora_init(OWN) if kind == "olora" else module.pissa_init(OWN, kind)
        finally:
            module.base_layer = real
        a, b = module.lora_A[OWN].weight, module.lora_B[OWN].weight
        a.data, b.data = a.data.contiguous(), b.data.contiguous()
        rows[name] = (a.data.clone(), -b.data)
    add_companion(model, rows)


@torch.no_grad()
def add_companion(model: nn.Module, rows: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """A frozen adapter beside the trained one, of these A [r, in] and B [out, r], with the trained one's scaling."""
    from peft import LoraConfig

    layers = lora_layers(model)
    ranks = {n: a.shape[0] for n, (a, _) in rows.items()}
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=list(rows), r=max(ranks.values()), rank_pattern=ranks)
    model.add_adapter(COMPANION, config)
    for name, (a, b) in rows.items():
        module = layers[name]
        module.lora_A[COMPANION].weight.data = a.to(module.lora_A[OWN].weight)
        module.lora_B[COMPANION].weight.data = b.to(module.lora_B[OWN].weight)
        module.scaling[COMPANION] = module.scaling[OWN]
    model.base_model.set_adapter([OWN, COMPANION])
    for name, parameter in model.named_parameters():
        if f".{COMPANION}." in name:
            parameter.requires_grad = False


@torch.no_grad()
def start_loftq(model: nn.Module, original: Callable[[str], torch.Tensor]) -> None:
    """LoftQ, one round: LoRA begins as the best approximation of what 4 bits lost (as `peft.replace_lora_weights_loftq`).

    Args:
        original: gives a weight [out, in] as it was, by its module's path.
    """
    for name, module in lora_layers(model).items():
        seen = dequantized(module.base_layer)
        u, s, v = torch.linalg.svd(original(name).to(seen) - seen, full_matrices=False)
        rank = module.r[OWN]
        root = (s[:rank] / module.scaling[OWN]).sqrt()
        module.lora_A[OWN].weight.data = (root[:, None] * v[:rank]).contiguous()
        module.lora_B[OWN].weight.data = (u[:, :rank] * root).contiguous()


def start_eva(model: nn.Module, batches: Iterable[dict[str, torch.Tensor]]) -> None:
    """EVA: LoRA's A begins as the main directions of each linear's inputs on these batches, and ranks move to where they
    explain most. Every process has to be given the same batches."""
    from peft import initialize_lora_eva_weights

    before = set(lora_layers(model))
    bounded = _Bounded(batches)
    initialize_lora_eva_weights(model, bounded, gather_distributed_inputs=False, show_progress_bar=False)
    check_lora(model, sorted(before), all_of_them=False)
    model.peft_config[OWN].target_modules = sorted(lora_layers(model))


class _Bounded:
    """The batches, over and over, but not without end: PEFT cycles until every direction has settled."""

    def __init__(self, batches: Any) -> None:
        self.batches, self.left = batches, MOST_BATCHES

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        for batch in self.batches:
            self.left -= 1
            if self.left < 0:
                raise UserError(
                    f"EVA has not settled after {MOST_BATCHES} batches: each module wants lora.r times eva_config.rho directions of a "
                    "batch's tokens. Write a smaller lora.r, a smaller lora.eva_config.rho or tau, or a larger "
                    "per_device_train_batch_size."
                )
            yield batch


# -- as plain LoRA
def plain_lora(model: nn.Module) -> tuple[Tensors, Any]:
    """The adapter as PEFT saves it, with the companion in it if there is one; and its `LoraConfig`."""
    from peft import get_peft_model_state_dict

    config = type(model.peft_config[OWN])(**{
        k: v for k, v in model.peft_config[OWN].to_dict().items() if k in SAVED and v is not None
    })  # fmt: skip
    config.inference_mode, config.init_lora_weights = True, True  # never to be started anew when it is loaded
    state = get_peft_model_state_dict(model, adapter_name=OWN)
    if COMPANION in model.peft_config:
        other = get_peft_model_state_dict(model, adapter_name=COMPANION)
        state = {
            k: torch.cat([v, other[k]], dim=0 if "lora_A" in k else 1) if k in other else v for k, v in state.items()
        }
        layers = lora_layers(model)
        ranks = {n: sum(m.r.values()) for n, m in layers.items()}
        config.r = max(ranks.values())
        config.use_rslora, config.rank_pattern = False, {n: r for n, r in ranks.items() if r != config.r}
        alphas = {n: m.scaling[OWN] * ranks[n] for n, m in layers.items()}
        config.lora_alpha = next(iter(alphas.values()))
        config.alpha_pattern = {n: a for n, a in alphas.items() if a != config.lora_alpha}
    return {k: v.detach().cpu().contiguous() for k, v in state.items()}, config


SAVED = (
    "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "bias", "target_modules", "use_rslora", "use_dora",
    "rank_pattern", "alpha_pattern",
)  # fmt: skip


def is_plain(recipe: Recipe) -> bool:
    """Whether what is saved has the shape of what is trained, with no companion in it."""
    return not (has_lora(recipe) and (from_own_weights(recipe) or (recipe.adapter and recipe.adapter_start == "stack")))
