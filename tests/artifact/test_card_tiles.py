"""A merged LLaVA-1.5-HD: the lines of its card make plain transformers say what qllava says; where no tiles are known it is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from qllava.api import convert, load, merge, switch
from qllava.artifact.convert.vllm import lint_vllm
from qllava.data.collate import collate
from qllava.data.sample import Turn
from qllava.errors import UserError
from qllava.recipe.schema import Parts

TILED = Parts(vision_tower="embedded", llm="embedded", max_tiles=6)


@pytest.fixture(scope="module")
def adapter(make):
    return make(3, source=TILED)


@pytest.fixture(scope="module")
def merged(adapter, tmp_path_factory):
    return merge(adapter, tmp_path_factory.mktemp("hd") / "merged", dtype="float32")


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (300, 200), (90, 500), (4000, 300)])
def test_the_lines_of_the_card_say_what_qllava_says(merged, tmp_path, capsys, size):
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    card = (merged / "README.md").read_text()
    assert "# LLaVA-1.5-HD" in card and "its own image path is not this model's" in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert "qllava" not in code
    code = code.replace("THIS_FOLDER", str(merged)).replace("photo.png", str(tmp_path / "photo.png"))
    space: dict = {}
    exec(code.replace("max_new_tokens=128", "max_new_tokens=6"), space)
    said = capsys.readouterr().out.strip()

    loaded = load(merged, dtype="float32")
    picture = Image.open(tmp_path / "photo.png")
    made = loaded.processing.prompt([Turn("user", "What is in this picture?", 1)], [picture])
    batch = collate([made], loaded.processing)
    batch.pop("labels")
    with torch.no_grad():
        ours = loaded.model(**batch).logits
        theirs = space["model"](inputs_embeds=space["inputs_embeds"]).logits
    assert theirs.shape == ours.shape
    assert torch.allclose(theirs, ours, atol=2e-4), float((theirs - ours).abs().max())
    from qllava.evaluate.generate import decode, generate

    assert said == decode(loaded, generate(loaded, [made], 6)[0])


def test_where_no_tiles_are_known_it_is_refused(merged, adapter, tmp_path):
    for source in (merged, adapter):
        for to in ("original", "gguf", "vllm"):
            with pytest.raises(UserError, match=r"is a LLaVA-1\.5-HD, whose tiles"):
                convert(source, to, tmp_path / "out", merge=source is adapter)
    with pytest.raises(UserError, match=r"is a LLaVA-1\.5-HD, whose tiles"):
        lint_vllm(merged)
    assert "Refused" in lint_vllm(adapter)[0]
    assert not (tmp_path / "out").exists()


def test_written_anew_it_is_the_same(merged, tmp_path):
    again = convert(merged, "hf", tmp_path / "again")
    a, b = (load_file(f / "model.safetensors") for f in (merged, again))
    assert a.keys() == b.keys() and "image_newline" in a and all(torch.equal(a[k], b[k]) for k in a)
    assert load(again).processing.tiling == load(merged).processing.tiling


def test_adapters_are_switched_with_their_row_ends(adapter, make):
    other = make(4, source=TILED)
    files = {"a": adapter, "b": other}
    board = switch(files)
    for name, folder in files.items():
        end = board.use(name).model.get_base_model().model.image_newline
        assert torch.equal(end, load_file(folder / "projector.safetensors")["image_newline"])
