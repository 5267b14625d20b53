"""Several adapters on one base in memory. In: a base and adapters by name. Out: one model that answers as any of them.

LoRA, projector and vision tower change together; the base is read once. Adding one costs its own size and no reload.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from ..errors import UserError, nearest
from ..model.build import load_model
from ..model.device import pick_device, pick_dtype
from ..model.projector import projector_tensors, put_projector, read_projector
from ..model.tower import FILE as TOWER_FILE
from ..model.tower import read_tower, tower_tensors
from .adapter import check_loaded
from .delta import CONFIG, read_lora
from .load import Loaded, base_of, find_artifact, processing_of, quantization_of, same_base
from .manifest import Manifest, verify_quick

BASE = "base"  # the name of the base without any adapter


class Switch:
    """One base with several adapters, one of which (or none) answers at a time.

    Args:
        adapters: artifacts by name; the first says which base it is and how it is held.
        base: where the base lies now, if no longer where the manifests say.
        dtype: of the weights that are not quantised.

    Raises:
        UserError: an adapter is none, or on another base.
        RunError: a file is damaged.
    """

    def __init__(self, adapters: Mapping[str, str | Path], base: str | None = None, dtype: str = "auto") -> None:
        if not adapters:
            raise UserError("Name at least one adapter.")
        folders = {name: _folder(source) for name, source in adapters.items()}
        first = _manifest(next(iter(folders.values())))
        self.source = base_of(first, base)
        self.fingerprint = first.base.fingerprint
        self.quantization, device = quantization_of(first), pick_device()
        held = pick_dtype((first.dtype or "auto") if dtype == "auto" else dtype, device)
        self._model = load_model(self.source, held, device, self.quantization)
        self._own = {k: v.clone() for k, v in projector_tensors(self._model).items()}
        self._tower: dict[str, torch.Tensor] = {}  # the base's own tensors, of those that some adapter changes
        self._manifests: dict[str, Manifest] = {}
        self._parts: dict[str, tuple[dict, dict, str | None]] = {}  # projector, tower, and LoRA's name in PEFT
        self._count, self._first = 0, first
        self.active = BASE
        for name, folder in folders.items():
            self.add(name, folder)
        self.use(next(iter(folders)))

    @property
    def names(self) -> list[str]:
        return [BASE, *self._manifests]

    def add(self, name: str, source: str | Path) -> None:
        """Takes one more adapter into memory, without reading the base again.

        Raises:
            UserError: the name is taken, or the adapter is on another base.
        """
        if name in self.names or not name.isidentifier():
            raise UserError(
                f"{name!r} is taken, or no plain name (letters, digits and _); there are: {', '.join(self.names)}."
            )
        folder = _folder(source)
        manifest = _manifest(folder)
        if not same_base(manifest.base, self._first.base):
            raise UserError(
                f"{folder} is on another base ({manifest.base.source}) than the one in memory ({self.source})."
            )
        if quantization_of(manifest) != self.quantization:
            raise UserError(
                f"{folder} was trained on a base {'in 4 bits' if quantization_of(manifest) else 'that is not quantised'}, unlike "
                "the one in memory; switch between adapters of one kind, or merge it."
            )
        lora = self._load_lora(folder) if (folder / CONFIG).is_file() else None
        tower = read_tower(folder) if (folder / TOWER_FILE).is_file() else {}
        for key in tower.keys() - self._tower.keys():
            self._tower[key] = tower_tensors(self._model)[key].detach().clone()
        self._parts[name] = (read_projector(folder), tower, lora)
        self._manifests[name] = manifest
        self.use(self.active)

    def _load_lora(self, folder: Path) -> str:
        """Loads it under a name that PEFT has never had, since PEFT keeps the settings of a name; returns that name."""
        from peft import PeftModel

        self._count += 1
        inside, stored = f"adapter_number_{self._count}", set(read_lora(folder)[0])
        try:
            if isinstance(self._model, PeftModel):
                self._model.load_adapter(str(folder), inside)
            else:
                self._model = PeftModel.from_pretrained(self._model, folder, adapter_name=inside)
            check_loaded(self._model, stored, folder, inside)
        except (RuntimeError, ValueError, KeyError, OSError, UserError) as error:
            if isinstance(self._model, PeftModel) and len(self._model.peft_config) > 1:
                self._model.delete_adapter(inside)
            raise UserError(f"The LoRA in {folder} does not fit this base: {str(error)[:300]}") from None
        return inside

    def remove(self, name: str) -> None:
        """Forgets an adapter; the base answers if it was the active one."""
        self._known(name)
        if name == BASE:
            raise UserError("The base cannot be removed.")
        _, _, lora = self._parts.pop(name)
        self._manifests.pop(name)
        if self.active == name:
            self.use(BASE)
        if lora and len(self._model.peft_config) > 1:  # PEFT keeps the last one, which nothing activates
            self._model.delete_adapter(lora)

    @torch.no_grad()
    def use(self, name: str) -> Loaded:
        """Makes the adapter of that name (or `base`) answer from now on, and gives the model with its inputs."""
        self._known(name)
        projector, tower, lora = self._parts.get(name, (self._own, {}, None))
        if hasattr(self._model, "peft_config"):
            if lora:
                self._model.base_model.enable_adapter_layers()
                self._model.set_adapter(lora, inference_mode=True)
            else:
                self._model.base_model.disable_adapter_layers()
        put_projector(self._model, projector, name)
        own = tower_tensors(self._model) if self._tower else {}
        for key, tensor in self._tower.items():
            own[key].copy_(tower.get(key, tensor))
        self.active = name
        return self.loaded

    @property
    def loaded(self) -> Loaded:
        """The model as it answers now."""
        manifest = self._manifests.get(self.active, self._first)
        return Loaded(self._model.eval(), processing_of(manifest, self.source), self._manifests.get(self.active))

    @contextlib.contextmanager
    def using(self, name: str) -> Iterator[Loaded]:
        """For one request: the adapter of that name, and afterwards the one that was active before."""
        before = self.active
        try:
            yield self.use(name)
        finally:
            self.use(before)

    def _known(self, name: str) -> None:
        if name not in self.names:
            raise UserError(
                f"No adapter {name!r} is in memory.{nearest(name, self.names)} There are: {', '.join(self.names)}."
            )


def _folder(source: str | Path) -> Path:
    folder = find_artifact(source)
    if folder is None:
        raise UserError(f"{source} is not an artifact.")
    return folder


def _manifest(folder: Path) -> Manifest:
    manifest = verify_quick(folder)
    if manifest.holds != "adapter" or manifest.base is None:
        raise UserError(f"{folder} is no adapter.")
    return manifest
