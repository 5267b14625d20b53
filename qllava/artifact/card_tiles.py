"""The part of a LLaVA-1.5-HD's card that says what it needs, with lines of plain `transformers` that do what qllava does.

In: the artifact's folder and template. Out: Markdown. The lines are run by tests/artifact/test_card_tiles.py, which compares
their logits with qllava's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..data.sample import Turn
from ..data.template import OWN, Image, Special, Text, get_template
from ..errors import UserError
from ..model.tiles import FIELD

QUESTION = "What is in this picture?"
PROCESSOR = "preprocessor_config.json"
LINES = """import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, LlavaNextForConditionalGeneration

FOLDER, PICTURE = "THIS_FOLDER", "photo.png"
MEAN, STD = {mean}, {std}

model = LlavaNextForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.{dtype})
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
edge, patch = model.config.vision_config.image_size, model.config.vision_config.patch_size
side = edge // patch


def fit(size, frame):  # the largest size of these proportions inside the frame
    (w, h), (most_w, most_h) = size, frame
    if most_w * h <= most_h * w:
        return most_w, max(1, (2 * h * most_w + w) // (2 * w))
    return max(1, (2 * w * most_h + h) // (2 * h)), most_h


def centred(image, frame):  # on the mean colour; and where it lies
    left, top = (frame[0] - image.width) // 2, (frame[1] - image.height) // 2
    canvas = Image.new("RGB", frame, tuple(int(c * 255) for c in MEAN))
    canvas.paste(image, (left, top))
    return canvas, left, top


def pixels(image):
    values = (np.asarray(image, np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    return torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1)


@torch.no_grad()
def features(image):  # what the LLM reads of a picture: [tokens, width]
    def worth(grid):  # detail, then few tiles
        w, h = fit(image.size, (grid[1] * edge, grid[0] * edge))
        return min(w * h, image.width * image.height), -grid[0] * grid[1]

    rows, columns = max([(h // edge, w // edge) for h, w in model.config.image_grid_pinpoints], key=worth)
    inner = fit(image.size, (columns * edge, rows * edge))
    canvas, left, top = centred(image.resize(inner, Image.BICUBIC), (columns * edge, rows * edge))
    corners = [(c * edge, r * edge) for r in range(rows) for c in range(columns)]
    views = [canvas.crop((x, y, x + edge, y + edge)) for x, y in corners]
    views.append(centred(image, (max(image.size),) * 2)[0].resize((edge, edge), Image.BICUBIC))
    seen = torch.stack([pixels(view) for view in views]).to(model.device, model.dtype)
    hidden = model.model.vision_tower(seen, output_hidden_states=True).hidden_states
    seen = model.model.multi_modal_projector(hidden[model.config.vision_feature_layer][:, 1:])
    tiles = seen[:-1].reshape(rows, columns, side, side, -1).transpose(1, 2).reshape(rows * side, columns * side, -1)
    tiles = tiles[top // patch : -(-(top + inner[1]) // patch), left // patch : -(-(left + inner[0]) // patch)]
    ends = model.model.image_newline.to(seen.dtype).expand(len(tiles), 1, -1)
    return torch.cat([torch.cat([tiles, ends], 1).flatten(0, 1), seen[-1]])


prompt = {prompt}
before, after = prompt.split("<image>")
ids = [tokenizer(before{options}).input_ids, tokenizer(after, add_special_tokens=False).input_ids]
words = [model.get_input_embeddings()(torch.tensor(one, device=model.device)).detach() for one in ids]
inputs_embeds = torch.cat([words[0], features(Image.open(PICTURE).convert("RGB")), words[1]])[None]
answer = model.generate(
    inputs_embeds=inputs_embeds, attention_mask=torch.ones(inputs_embeds.shape[:2], device=model.device), max_new_tokens=128, do_sample=False
)
print(tokenizer.decode(answer[0], skip_special_tokens=True))"""


def tiles_in(folder: Path) -> int | None:
    """`max_tiles` of the whole model in the folder; None where it has none."""
    file = folder / "config.json"
    return json.loads(file.read_text(encoding="utf-8")).get(FIELD) if file.is_file() else None


def needs(folder: Path, template: str, dtype: str | None) -> list[str]:
    """Lines of the card: what a whole LLaVA-1.5-HD needs beside `transformers`."""
    images = json.loads((folder / PROCESSOR).read_text(encoding="utf-8"))
    prompt, options = _prompt(template)
    code = LINES
    for name, value in {
        "mean": tuple(images["image_mean"]), "std": tuple(images["image_std"]), "dtype": dtype or "bfloat16",
        "prompt": prompt, "options": options,
    }.items():  # fmt: skip
        code = code.replace("{" + name + "}", str(value))
    return [
        f"A LLaVA-1.5-HD of at most {tiles_in(folder)} tiles. `qllava chat THIS_FOLDER --image photo.png` talks to it.",
        "",
        "`transformers.LlavaNextForConditionalGeneration` loads every weight, but **its own image path is not this model's**: it "
        "puts the global view first, stretches it, and removes padding by another rounding. There is no processor here for the "
        "same reason. What plain transformers needs are the packed features as `inputs_embeds`, which these lines make, without "
        "qllava; the LLM is transformers' own. Logits are then those of qllava. (Pictures that EXIF turns are to be turned before.)",
        "",
        "```python",
        *code.splitlines(),
        "```",
    ]


def _prompt(template: str) -> tuple[Any, str]:
    """The prompt as code, and what the tokenizer is told beside it."""
    turns = (Turn("user", QUESTION, 1),)
    if template == OWN:
        talk = [{"role": "user", "content": f"<image>\n{QUESTION}"}]
        return (
            f"tokenizer.apply_chat_template({talk!r}, tokenize=False, add_generation_prompt=True)",
            ", add_special_tokens=False",
        )
    try:
        pieces = get_template(template).pieces(turns)
    except UserError:  # `plain`, which holds no question
        pieces = get_template("vicuna_v1").pieces(turns)
    written = {Image: lambda piece: "<image>", Text: lambda piece: piece.text, Special: lambda piece: piece.token}
    return repr("".join(written[type(p)](p) for p in pieces if type(p) in written)), ""
