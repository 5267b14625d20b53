"""Pretrains the embedded LLM: a small Llama that learns to read a scene told in words and to answer, in text alone.

In: the conversations of `corpus`, written in the template `vicuna_v1`, and captions as plain lines. Out: a
`LlamaForCausalLM` folder beside its tokenizer. Answers weigh 1 in the loss, everything else a tenth, the system prompt 0.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ..data.sample import parse
from ..data.template import TEMPLATES
from ..data.tokens import IGNORE, Encoder, encode_sample
from . import corpus, emoji, world
from .schedule import Both, Meter, cosine

TEMPLATE = TEMPLATES["vicuna_v1"]
OTHER_WEIGHT = 0.1
PRACTICE = (  # up to that share of the steps: the shares of drills, and of conversations about one thing
    (0.25, 1.00, 0.00),
    (0.55, 0.30, 0.70),  # up to here without `not`: half of the answers turned round would teach nothing
    (0.85, 0.25, 0.70),
    (1.00, 0.10, 0.50),
)
EASY = 0.25  # share of the steps that read about one thing at a time


def config(vocab: int) -> LlamaConfig:
    """Four layers of 256 channels: 4.2 million parameters."""
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )


def row(
    rng: random.Random, emojis: list, encoder: Encoder, system: int, easy: bool = False
) -> tuple[list[int], list[float]]:
    """Ids, and the weight of each in the loss."""
    if rng.random() < 0.1:
        ids = [encoder.bos, *encoder.encode(f" {corpus.caption(rng, emojis)}\n")]
        return ids, [OTHER_WEIGHT] * len(ids)
    sample = parse({"id": "", "conversations": corpus.conversation(rng, emojis, easy)})
    tokens = encode_sample(sample, TEMPLATE, encoder, image_tokens=0)
    weights = [OTHER_WEIGHT if label == IGNORE else 1.0 for label in tokens.labels]
    return tokens.ids, [0.0] * system + weights[system:]


def practice_row(rng: random.Random, emojis: list, encoder: Encoder, system: int, progress: float) -> tuple[list, list]:
    """As `row`, for `practice`."""
    drills, one_thing = next((d, o) for end, d, o in PRACTICE if progress < end)
    kind, negated = rng.random(), progress >= PRACTICE[1][0]
    if kind < drills:
        ids, weights = [encoder.bos], [0.0]
        for text, answer in corpus.drill(rng, negated):
            new = encoder.encode(text)
            ids, weights = ids + new, weights + [float(answer)] * len(new)
        return ids, weights
    if kind >= drills + one_thing:
        return row(rng, emojis, encoder, system)
    sample = parse({"id": "", "conversations": corpus.about_one_thing(rng, negated)})
    tokens = encode_sample(sample, TEMPLATE, encoder, image_tokens=0)
    weights = [OTHER_WEIGHT if label == IGNORE else 1.0 for label in tokens.labels]
    return tokens.ids, [0.0] * system + weights[system:]


def collate(rows: list[tuple[list[int], list[float]]]) -> dict[str, torch.Tensor]:
    """[batch, longest] ids padded with 0, mask, and loss weights."""
    longest = max(len(ids) for ids, _ in rows)
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    weights = torch.zeros(len(rows), longest)
    for i, (row_ids, row_weights) in enumerate(rows):
        ids[i, : len(row_ids)], mask[i, : len(row_ids)] = torch.tensor(row_ids), 1
        weights[i, : len(row_ids)] = torch.tensor(row_weights)
    return {"ids": ids, "mask": mask, "weights": weights}


@torch.no_grad()
def read_and_answer(model: LlamaForCausalLM, encoder: Encoder, count: int = 400) -> dict[str, float]:
    """Share of short questions that the most likely tokens answer exactly, end token included: what, yes/no; one thing, any."""
    model.eval()
    right: dict[str, list[bool]] = {}
    for most in (1, 3):
        rng, rows, kinds = random.Random(54321), [], []
        for _ in range(count):
            scene = world.sample(rng, most)
            question = world.ask(rng, scene)
            talk = corpus.turns(f"{world.tell_enough(rng, scene)}\n{question.text}\n{world.SHORT}", question.short)
            tokens = encode_sample(parse({"id": "", "conversations": talk}), TEMPLATE, encoder, image_tokens=0)
            rows.append((tokens.ids, [float(label != IGNORE) for label in tokens.labels]))
            kinds.append(
                f"{'yes/no' if question.short in ('yes', 'no') else 'what'}, {'one thing' if most == 1 else 'any scene'}"
            )
        for i in range(0, count, 100):
            inputs = collate(rows[i : i + 100])
            best = model(input_ids=inputs["ids"], attention_mask=inputs["mask"]).logits[:, :-1].argmax(-1)
            wrong = ((best != inputs["ids"][:, 1:]) & (inputs["weights"][:, 1:] > 0)).any(-1)
            for kind, bad in zip(kinds[i : i + 100], wrong.tolist(), strict=True):
                right.setdefault(kind, []).append(not bad)
    model.train()
    return {kind: round(sum(r) / len(r), 4) for kind, r in right.items()}


def loss_of(model: LlamaForCausalLM, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The weighted mean of the next tokens' cross-entropies."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=inputs["ids"], attention_mask=inputs["mask"]).logits[:, :-1]
    targets, weights = inputs["ids"][:, 1:].flatten(), inputs["weights"][:, 1:].flatten()
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets, reduction="none")
    return (each * weights).sum() / weights.sum()


def train(tokenizer: Any, out: Path, steps: int, size: int = 32, seed: int = 0, peak: float = 1.5e-3) -> dict:
    """Trains for `steps` batches of `size` conversations and writes the LLM to `out`."""
    rng = random.Random(seed + 100)
    torch.manual_seed(seed)
    encoder, emojis = Encoder(tokenizer, out / "tokenizer.model"), [e for e, _ in emoji.load()]
    system = 1 + len(encoder.encode(f" {TEMPLATE.system}"))
    # eager: at this length, the backward pass of the fused attention is the slower one on a CPU
    model = LlamaForCausalLM._from_config(config(len(tokenizer)), attn_implementation="eager").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = cosine(optimizer, steps, warmup=min(100, steps // 5 + 1))
    meter, total = Meter("language", steps), 0
    pool: list = []
    for step in range(steps):
        if not pool:  # eight batches at a time, sorted by length, so that little is padding
            rows = sorted(
                (row(rng, emojis, encoder, system, step < EASY * steps) for _ in range(8 * size)),
                key=lambda r: len(r[0]),
            )
            pool = [rows[i : i + size] for i in range(0, len(rows), size)]
            rng.shuffle(pool)
        inputs = collate(pool.pop())
        total += int(inputs["mask"].sum())
        loss = loss_of(model, inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        meter(step, loss.item(), lambda: read_and_answer(model, encoder))
    final = read_and_answer(model, encoder, 2000)
    model.to(torch.float16).save_pretrained(out)
    return {"conversations": steps * size, "tokens": total, **meter.summary(), "read_and_answer": final}


def practice(tokenizer: Any, out: Path, steps: int, size: int = 40, seed: int = 1) -> dict:
    """Teaches the LLM in `out` to compare: whether what is asked for is what is told. Muon, where AdamW did not get there."""
    rng = random.Random(seed + 100)
    torch.manual_seed(seed)
    encoder, emojis = Encoder(tokenizer, out / "tokenizer.model"), [e for e, _ in emoji.load()]
    system = 1 + len(encoder.encode(f" {TEMPLATE.system}"))
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager").train()
    optimizer = Both(model, muon=0.01, adamw=1e-3, betas=(0.9, 0.95))
    schedules = optimizer.schedules(steps, warmup=min(30, steps // 5 + 1))
    meter, total = Meter("practice", steps), 0
    for step in range(steps):
        rows = 64 if step < PRACTICE[0][0] * steps else size  # drills are short
        inputs = collate([practice_row(rng, emojis, encoder, system, step / steps) for _ in range(rows)])
        total += int(inputs["mask"].sum())
        loss = loss_of(model, inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for schedule in schedules:
            schedule.step()
        meter(step, loss.item(), lambda: read_and_answer(model, encoder))
    final = read_and_answer(model, encoder, 2000)
    model.to(torch.float16).save_pretrained(out)
    return {"tokens": total, **meter.summary(), "read_and_answer": final}
