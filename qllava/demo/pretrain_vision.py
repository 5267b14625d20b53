"""Pretrains the embedded vision tower: a small CLIP that learns which caption belongs to which picture.

In: the drawn scenes of `world` (three quarters of every batch) and Fluent Emoji 3D on random grounds (one quarter),
each with one of its captions. Out: a `CLIPVisionModel` folder. The text half is thrown away, as LLaVA throws away
CLIP's. Loss: CLIP's symmetric cross-entropy (Radford et al. 2021), where all captions of a batch that are true of a
picture share its probability.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from . import emoji, world
from .schedule import Meter, cosine

TEXT_LENGTH = 40
EASY = 0.5  # share of the steps that see one thing at a time, and in their first half large ones
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def config(vocab: int, eos: int) -> CLIPConfig:
    """A ViT of 6 layers and 128 channels over 8 by 8 patches of 8 pixels; a text half of 3 layers beside it."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=world.EDGE,
        patch_size=8,
        projection_dim=128,
    )
    text = CLIPTextConfig(
        vocab_size=vocab,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        projection_dim=128,
        bos_token_id=1,
        eos_token_id=eos,
        pad_token_id=0,
    )
    return CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128)


def on_ground(rng: random.Random, picture: Image.Image) -> Image.Image:
    """An emoji on a ground of random colour, scaled to 50-100 % and moved."""
    low = rng.choice((0, 200, 230))
    ground = Image.new("RGB", (world.EDGE, world.EDGE), tuple(rng.randint(low, 255) for _ in range(3)))
    edge = rng.randint(world.EDGE // 2, world.EDGE)
    small = picture.resize((edge, edge), Image.Resampling.BILINEAR)
    ground.paste(small, (rng.randint(0, world.EDGE - edge), rng.randint(0, world.EDGE - edge)), small)
    return ground


def pixels(images: list[Image.Image]) -> torch.Tensor:
    """RGB images of the model's own size, [batch, 3, edge, edge], normalised as CLIP does."""
    array = (np.stack([np.asarray(i, np.float32) for i in images]) / 255 - MEAN) / STD
    return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class Pair:
    """A picture with one of its captions. `claims` is what the caption says, `facts` all that is true of the picture."""

    image: Image.Image
    caption: str
    claims: frozenset[str]
    facts: frozenset[str]


def one_thing(rng: random.Random, large: bool = False) -> Pair:
    """A scene of one thing, of which the caption names the shape, the colour or both."""
    scene = world.sample(rng, most=1, sizes=("medium", "large") if large else tuple(world.SIZES))
    thing = scene.things[0]
    claims = rng.choices(((thing.shape,), (thing.color,), (thing.color, thing.shape)), (4, 1, 3))[0]
    named = " ".join(claims) if thing.shape in claims else f"{thing.color} thing"
    caption = rng.choice(("{}", "a picture of {}", "there is {}")).format(world.article(named)).capitalize() + "."
    return Pair(world.draw(scene), caption, frozenset(claims), frozenset((thing.shape, thing.color)))


def batch(rng: random.Random, emojis: list, size: int, progress: float = 1.0) -> list[Pair]:
    """Pairs; in the first `EASY` of the progress, the scenes hold one thing and the captions name little of it."""
    easy = progress < EASY
    pairs = []
    for i in range(size):
        if i % 4 == 0:
            entry, picture = rng.choice(emojis)
            caption = emoji.caption(rng, entry)
            pairs.append(Pair(on_ground(rng, picture), caption, frozenset((caption,)), frozenset((caption,))))
        elif easy or i % 4 == 1:
            pairs.append(one_thing(rng, large=progress < EASY / 2))
        else:
            scene = world.sample(rng)
            caption = world.tell(rng, scene)
            pairs.append(Pair(world.draw(scene), caption, frozenset((caption,)), frozenset((caption,))))
    return pairs


def matches(pairs: list[Pair]) -> torch.Tensor:
    """[pictures, captions] 1 where all that the caption claims is true of the picture."""
    return torch.tensor([[float(c.claims <= p.facts) for c in pairs] for p in pairs])


def encode(tokenizer: Any, captions: list[str]) -> dict[str, torch.Tensor]:
    """BOS, the caption cut to fit, EOS; padded on the right to the longest. [batch, longest]"""
    rows = [
        [
            tokenizer.bos_token_id,
            *tokenizer.encode(c, add_special_tokens=False)[: TEXT_LENGTH - 2],
            tokenizer.eos_token_id,
        ]
        for c in captions
    ]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


def embed_images(model: CLIPModel, pixel_values: torch.Tensor) -> torch.Tensor:
    # the mean of the patches, not the class token: LLaVA reads the patches, so they are to carry the meaning
    pooled = model.vision_model(pixel_values=pixel_values).last_hidden_state[:, 1:].mean(1)
    return torch.nn.functional.normalize(model.visual_projection(pooled).float(), dim=-1)


def embed_texts(model: CLIPModel, **inputs: torch.Tensor) -> torch.Tensor:
    pooled = model.text_model(**inputs).pooler_output
    return torch.nn.functional.normalize(model.text_projection(pooled).float(), dim=-1)


@torch.no_grad()
def zero_shot(model: CLIPModel, tokenizer: Any, count: int = 500) -> dict[str, float]:
    """Share of scenes with one thing whose colour and whose shape CLIP names right, out of all the world's names."""
    rng = random.Random(12345)
    scenes = [world.sample(rng, most=1) for _ in range(count)]
    images = embed_images(model.eval(), pixels([world.draw(s) for s in scenes]))
    names = [(c, s) for c in world.COLORS for s in world.SHAPES]
    texts = embed_texts(model, **encode(tokenizer, [f"A {c} {s}." for c, s in names]))
    best = [names[i] for i in (images @ texts.T).argmax(-1)]
    model.train()
    return {
        "color": sum(b[0] == s.things[0].color for b, s in zip(best, scenes, strict=True)) / count,
        "shape": sum(b[1] == s.things[0].shape for b, s in zip(best, scenes, strict=True)) / count,
    }


def train(tokenizer: Any, out: Path, steps: int, size: int = 96, seed: int = 0, peak: float = 1e-3) -> dict:
    """Trains for `steps` batches of `size` pairs and writes the tower and its image processor to `out`."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    emojis = emoji.load()
    # eager: at 65 tokens, the backward pass of the fused attention is the slower one on a CPU
    model = CLIPModel._from_config(config(len(tokenizer), tokenizer.eos_token_id), attn_implementation="eager").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = cosine(optimizer, steps, warmup=min(100, steps // 5 + 1))
    meter = Meter("vision", steps)
    for step in range(steps):
        pairs = batch(rng, emojis, size, step / steps)
        images, captions, true = [p.image for p in pairs], [p.caption for p in pairs], matches(pairs)
        with torch.autocast("cpu", torch.bfloat16):
            image, text = embed_images(model, pixels(images)), embed_texts(model, **encode(tokenizer, captions))
        logits = model.logit_scale.exp().clamp(max=100) * image @ text.T
        cross = torch.nn.functional.cross_entropy
        per_picture, per_caption = true / true.sum(1, keepdim=True), (true / true.sum(0)).T
        loss = (cross(logits, per_picture) + cross(logits.T, per_caption)) / 2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        meter(step, loss.item(), lambda: zero_shot(model, tokenizer))
    final = zero_shot(model, tokenizer, 2000)
    model.vision_model.to(torch.float16).save_pretrained(out)
    CLIPImageProcessorPil(
        size={"shortest_edge": world.EDGE}, crop_size={"height": world.EDGE, "width": world.EDGE}
    ).save_pretrained(out)
    return {"pairs": steps * size, "emoji": len(emojis), **meter.summary(), "zero_shot": final}
