"""All that stands between a sample and a model: tokenizer, template, image path. One object, kept with every artifact.

In: the folders of a tokenizer and of an image processor. Out: features (`input_ids`, `labels`, `pixel_values`) of samples
and prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ..errors import UserError
from .chat_template import chat_template
from .image import Ref, read_image, resolve, size_of, to_pixels
from .sample import Sample, Turn
from .template import OWN, Special, Template, get_template
from .tiles import Size, Tiling, to_views
from .tokens import Encoder, Tokens, encode_prompt, encode_sample

if TYPE_CHECKING:
    from .cache import Crops, Features

STOPS = {"v0": "###"}


@dataclass
class Processing:
    """How inputs are made for one model."""

    encoder: Encoder
    image_processor: Any  # CLIPImageProcessorPil
    template: Template
    image_aspect_ratio: str  # "pad" or "square"
    image_tokens: int  # tokens that one image takes: (edge / patch)²; with `tiling`, its global view
    image_token_id: int  # the id that stands for one of them in the model's vocabulary
    pad_token_id: int
    exif: bool = True  # pictures are turned as their EXIF says
    cache: Crops | Features | None = None  # what is kept of samples' images; prompts know none
    tiling: Tiling | None = None  # LLaVA-1.5-HD: images go in tiles, and how many tokens one takes depends on its size

    def _closing(self) -> list[str]:
        """The special tokens with which the template closes an answer, other than the tokenizer's end token."""
        try:
            pieces = self.template.pieces((Turn("user", "x"), Turn("assistant", "y")))
        except UserError:  # `plain`, which holds no question
            return []
        return [p.token for p in pieces if isinstance(p, Special) and p.supervised]

    @property
    def end_ids(self) -> list[int]:
        """Ids that end an answer: the tokenizer's end token, and the template's where it closes answers with another."""
        ids = (self.encoder.eos, *map(self.encoder.special, self._closing()))
        return list(dict.fromkeys(i for i in ids if i is not None))

    @property
    def stop(self) -> str | None:
        """Text that ends an answer where no special token does; None where one does."""
        spelled = [token for token in self._closing() if self.encoder.special(token) is None]
        return spelled[0] if spelled else STOPS.get(self.template.name)

    def tokens(self, sample: Sample, max_length: int | None, root: Path | None = None) -> Tokens:
        """Ids and labels of a training sample, an image as one -200.

        Args:
            root: of its images, whose sizes are looked up in their headers where tokens depend on them.
        """
        counts = self.image_tokens if self.tiling is None else self.tiling.tokens(self.sizes(sample.images, root))
        return self.encoded(sample, counts, max_length)

    def encoded(self, sample: Sample, counts: int | Sequence[int], max_length: int | None) -> Tokens:
        """`tokens` of a sample whose images take so many positions."""
        return encode_sample(sample, self.template, self.encoder, counts, max_length)

    def sizes(self, refs: Sequence[Ref], root: Path | None) -> list[Size]:
        """Width and height of each image, where they matter; else nothing."""
        if self.tiling is None:
            return []
        files = [resolve(ref, root or Path()) if isinstance(ref, str) else ref for ref in refs]
        return [size_of(file, self.exif) for file in files]

    def counts(self, row: Mapping[str, Any]) -> int | list[int]:
        """Tokens of the images of a row of features: each image's, or a number for each."""
        if self.tiling is None:
            return self.image_tokens
        found = row.get("image_sizes")
        return [] if found is None else self.tiling.tokens([(w, h) for h, w in torch.as_tensor(found).tolist()])

    @property
    def image_name(self) -> str:
        """What samples' images become: `pixel_values`, or `image_features` where those are kept."""
        return "pixel_values" if self.cache is None else self.cache.name

    @property
    def image_names(self) -> list[str]:
        """All columns that images take of a row of features."""
        return [self.image_name] if self.tiling is None else [self.image_name, "image_sizes"]

    def images(self, refs: Sequence[Ref], root: Path) -> dict[str, torch.Tensor]:
        """A sample's images: `pixel_values` [images, 3, edge, edge] or `image_features` [images, patches, width]; of tiled
        ones all views behind each other, and `image_sizes` [images, 2], height and width. Nothing without images."""
        if self.cache is None or not refs:
            return self.pictures([read_image(ref, root, self.exif) for ref in refs])
        kept = [self.cache.load(ref, root) for ref in refs]
        if self.tiling is None:
            return {self.image_name: torch.stack(kept)}
        return {self.image_name: torch.cat(kept), "image_sizes": in_rows(self.sizes(refs, root))}

    def prompt(self, turns: Sequence[Turn], images: Sequence[Image.Image] = ()) -> dict[str, Any]:
        """Features of a conversation that the model is to continue."""
        wanted = sum(t.images for t in turns)
        if wanted != len(images):
            raise UserError(f"The conversation has {wanted} image placeholder(s) and {len(images)} image(s).")
        return {"input_ids": encode_prompt(turns, self.template, self.encoder), "pixel_values": None} | self.pictures(
            images
        )

    def pictures(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """What `images` gives, of opened ones."""
        if not images:
            return {}
        if self.tiling is not None:
            views = torch.cat([to_views(i, self.image_processor, self.tiling) for i in images])
            return {"pixel_values": views, "image_sizes": in_rows([i.size for i in images])}
        return {
            "pixel_values": torch.stack([to_pixels(i, self.image_processor, self.image_aspect_ratio) for i in images])
        }


def in_rows(sizes: Sequence[Size]) -> torch.Tensor:
    """Sizes as transformers has them: [images, 2], height and width."""
    return torch.tensor([[height, width] for width, height in sizes], dtype=torch.long).reshape(-1, 2)


def load_tokenizer(source: str, revision: str | None = None) -> tuple[Any, Path | None]:
    """The tokenizer of a folder or hub id and, where there is one, its `tokenizer.model`.

    Raises:
        UserError: there is no tokenizer.
    """
    from transformers import AutoTokenizer
    from transformers.utils import cached_file

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        model_file = cached_file(
            source, "tokenizer.model", revision=revision, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise UserError(f"No tokenizer in {source}: {str(error).splitlines()[0]}") from None
    return tokenizer, Path(model_file) if model_file else None


def make_template(name: str, tokenizer: Any) -> Template:
    """The template of that name; `chat_template` is the tokenizer's own.

    Raises:
        UserError: there is no such template.
    """
    return chat_template(tokenizer) if name == OWN else get_template(name)


def load_image_processor(source: str) -> Any:
    """The image processor of a folder or hub id, as the PIL class that equals the original's values.

    SigLIP's squeezes a picture into its square; here as with CLIP it is padded to a square first, or cropped to one.

    Raises:
        UserError: there is none.
    """
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    try:
        found, _ = CLIPImageProcessorPil.get_image_processor_dict(source)
        size, more = found.get("size"), {}
        if isinstance(size, dict) and "height" in size:  # SigLIP's: scaled to that square, and not cropped
            more = {"size": {"shortest_edge": size["height"]}, "crop_size": dict(size), "do_center_crop": True}
        return CLIPImageProcessorPil.from_pretrained(source, **more)
    except (OSError, ValueError) as error:
        raise UserError(f"No image processor in {source}: {str(error).splitlines()[0]}") from None
