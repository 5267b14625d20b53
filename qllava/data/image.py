"""From an image file to CLIP's pixel tensor, exactly as the original LLaVA does it.

In: a path under an image root, or a PIL image. Out: float32 [3, edge, edge]. Facts: LLaVA's mm_utils.py (expand2square,
process_images) at c121f04, checked element by element in tests/conformance/test_pixels.py.
"""

from __future__ import annotations

import functools
import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import ExifTags, Image, UnidentifiedImageError

from ..errors import UserError

CLIP_EDGE = 336  # pixels
ASPECTS = ("pad", "square")
# Pillow's formats that are opened; others could start programs (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "MPO", "PPM", "AVIF", "JPEG2000", "TGA", "ICO", "PCX")
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip  # what sets a picture upright, by EXIF's orientation
SIDEWAYS = (5, 6, 7, 8)  # of these, what swaps width and height
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes of more than 8 bits a channel
BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, RuntimeError, MemoryError, struct.error, Image.DecompressionBombError,
)  # fmt: skip  # what Pillow raises for damaged files
Ref = str | bytes  # an image as a sample names it: a path under the image root, or a whole file's bytes


def resolve(path: str, root: Path) -> Path:
    """The image's file, which must lie under `root`.

    Raises:
        UserError: the path leaves the root, or no file is there.
    """
    try:
        file = (root / path).resolve()
        there = file.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise UserError(f"The image path {path[:80]!r} is none: {getattr(error, 'strerror', None) or error}.") from None
    if not file.is_relative_to(root.resolve()):
        raise UserError(f"The image path {path!r} leaves the image root {root}; paths must stay under it.")
    if not there:
        raise UserError(f"No image at {file}.")
    return file


def read_image(ref: Ref, root: Path, exif: bool = True) -> Image.Image:
    """The image that a sample names, as `open_image` gives it."""
    return open_image(resolve(ref, root) if isinstance(ref, str) else ref, exif)


def open_image(file: Path | bytes, exif: bool = True) -> Image.Image:
    """The file's (first) picture as RGB.

    Alpha is dropped and palettes, grey levels and CMYK are converted as Pillow's `convert("RGB")` does, like the original.

    Args:
        exif: turn the picture as its EXIF says. The original does not; phones' photos lie on their side without it.

    Raises:
        UserError: it is missing, is not an image, is damaged, has more than 8 bits a channel, or is a decompression bomb.
    """
    with _opened(file) as image:
        image.load()  # damage is an error here, and not swallowed while EXIF is looked for
        turn = TURNS.get(_orientation(image)) if exif else None
        return (image if turn is None else image.transpose(turn)).convert("RGB")


def check_image(ref: Ref, root: Path, aspect: str = "pad") -> tuple[int, int]:
    """Width and height, after decoding the whole file, a JPEG at an eighth of its size, which is quicker.

    Raises:
        UserError: `open_image` or `to_pixels` would refuse it.
    """
    return look_at(ref, root, aspect)[1]


def look_at(ref: Ref, root: Path, aspect: str = "pad", decode: bool = True) -> tuple[str, tuple[int, int]]:
    """Format, by Pillow's name for what the content is, and width and height, as `check_image` gives them.

    Args:
        decode: whether to decode the file; otherwise only its header is read.
    """
    with _opened(resolve(ref, root) if isinstance(ref, str) else ref) as image:
        form, size = str(image.format), image.size
        if decode:
            if form == "JPEG":
                image.draft(image.mode, (max(1, size[0] // 8), max(1, size[1] // 8)))
            image.load()
    check_size(*size, aspect)
    return form, size


def size_of(file: Path | bytes, exif: bool = True) -> tuple[int, int]:
    """Width and height of what `open_image` gives, from the file's header alone.

    Raises:
        UserError: there is no such image.
    """
    with _opened(file) as image:
        width, height = image.size
        return (height, width) if exif and _orientation(image) in SIDEWAYS else (width, height)


def _orientation(image: Image.Image) -> int:
    """What EXIF says about how the camera was held; 1, upright, where it says nothing or nonsense."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (*BROKEN, TypeError, KeyError):
        return 1


@contextmanager
def _opened(file: Path | bytes) -> Iterator[Image.Image]:
    """The opened file; whatever goes wrong with it inside the block is a `UserError` that names it."""
    name = f"An image of {len(file)} bytes" if isinstance(file, bytes) else str(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice as many pixels are an error
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=_formats()) as image:
                if image.mode in DEEP:
                    raise UserError(
                        f"{name} has more than 8 bits a channel (mode {image.mode}), which Pillow would clip to white. "
                        "Convert it to 8 bits with the window that matters."
                    )
                yield image
    except FileNotFoundError:
        raise UserError(f"No image at {name}.") from None
    except UnidentifiedImageError:
        raise UserError(f"{name} is not an image that Pillow can read.") from None
    except BROKEN as error:
        raise UserError(f"{name} cannot be decoded: {error}") from None


@functools.cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def check_size(width: int, height: int, aspect: str) -> None:
    """Raises `UserError` for a picture so long and thin that it would take gigabytes on its way to CLIP: padded to a square,
    or with its short edge scaled to CLIP's before the crop. The limits are Pillow's for a decompression bomb, and twice it.
    """
    longer, shorter = max(width, height), min(width, height)
    pixels = longer * longer if aspect == "pad" else CLIP_EDGE * CLIP_EDGE * longer / shorter / 2
    if Image.MAX_IMAGE_PIXELS and pixels > 2 * Image.MAX_IMAGE_PIXELS:
        raise UserError(f"An image of {width} by {height} pixels is too long to be made a square.")


def to_square(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """The image centred on a square of its longer side in that colour (0-255)."""
    width, height = image.size
    if width == height:
        return image
    edge = max(width, height)
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
    return _processed(image, processor, aspect)


def to_crop(image: Image.Image, processor: Any, aspect: str) -> torch.Tensor:
    """What `to_pixels` makes of the image before its numbers are rescaled and normalised: uint8 [3, edge, edge]."""
    return _processed(image, processor, aspect, do_rescale=False, do_normalize=False)


def _processed(image: Image.Image, processor: Any, aspect: str, **options: bool) -> torch.Tensor:
    check_size(*image.size, aspect)
    if aspect == "pad":
        image = to_square(image, tuple(int(c * 255) for c in processor.image_mean))
    return torch.as_tensor(processor.preprocess(image, return_tensors="pt", **options)["pixel_values"][0])
