"""The data of demo studies, made before the first run. In: makers' names and a folder. Out: the folder, whole or not there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from .. import console
from ..demo import captions, easyvqa, glyphs
from ..errors import UserError, nearest

MAKERS: dict[str, Callable[[Path], object]] = {
    "captions": captions.write,
    "easyvqa": easyvqa.write,
    "glyphs": glyphs.write,
}
MARK = "made.json"


def prepare(names: str, out: Path) -> None:
    """Makes the data of each maker (`captions,easyvqa`) in `out`, unless an earlier call has.

    Raises:
        UserError: there is no such maker, or `out` holds other data.
    """
    makers = [name.strip() for name in names.split(",")]
    for name in makers:
        if name not in MAKERS:
            raise UserError(f"prepare: no demo data '{name}'.{nearest(name, MAKERS)} There is {', '.join(MAKERS)}.")
    if out.exists():
        there = json.loads((out / MARK).read_text()) if (out / MARK).is_file() else None
        if there != makers:
            raise UserError(f"{out} holds other data than {names}. Name another --out.")
        return
    console.note(f"Making the data: {', '.join(makers)}")
    new = out.with_name(out.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for name in makers:
        MAKERS[name](new)
    (new / MARK).write_text(json.dumps(makers) + "\n")
    new.rename(out)
