"""From an image file to CLIP's pixel tensor, exactly as the original LLaVA does it.

In: a path under an image root, or a PIL image. Out: float32 [3, edge, edge]. Facts: LLaVA's mm_utils.py (expand2square,
process_images) at c121f04, checked element by element in tests/conformance/test_pixels.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import UserError

ASPECTS = ("pad", "square")


def resolve(path: str, root: Path) -> Path:
    """The image's file, which must lie under `root`.

    Raises:
        UserError: the path leaves the root, or no file is there.
    """
    try:
        file = (root / path).resolve()
        there = file.is_file()
    except (OSError, ValueError) as error:
        raise UserError(f"The image path {path[:80]!r} is none: {error}.") from None
    if not file.is_relative_to(root.resolve()):
        raise UserError(f"The image path {path!r} leaves the image root {root}; paths must stay under it.")
    if not there:
        raise UserError(f"No image at {file}.")
    return file


def open_image(file: Path) -> Image.Image:
    """The file's (first) picture as RGB, turned as its EXIF says.

    Raises:
        UserError: it is missing, is not an image, is damaged, or is a decompression bomb.
    """
    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise UserError(f"No image at {file}.") from None
    except UnidentifiedImageError:
        raise UserError(f"{file} is not an image that Pillow can read.") from None
    except (OSError, SyntaxError, ValueError, NotImplementedError, MemoryError, Image.DecompressionBombError) as error:
        raise UserError(f"{file} cannot be decoded: {error}") from None


def to_square(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """The image centred on a square of its longer side in that colour (0-255)."""
    width, height = image.size
    if width == height:
        return image
    edge = max(width, height)
    if edge * edge > 4 * (Image.MAX_IMAGE_PIXELS or edge * edge):
        raise UserError(f"An image of {width} by {height} pixels is too long to be padded to a square.")
    square = Image.new("RGB", (edge, edge), color)
    square.paste(image, ((edge - width) // 2, (edge - height) // 2))
    return square


def to_pixels(image: Image.Image, processor: Any, aspect: str) -> torch.Tensor:
    """CLIP's pixel tensor, float32 [3, edge, edge].

    Args:
        image: RGB.
        processor: a `CLIPImageProcessorPil`.
        aspect: `pad` (to a square in the processor's mean colour first) or `square` (the processor's centre crop).
    """
    if aspect == "pad":
        image = to_square(image, tuple(int(c * 255) for c in processor.image_mean))
    return torch.as_tensor(processor.preprocess(image, return_tensors="pt")["pixel_values"][0])
