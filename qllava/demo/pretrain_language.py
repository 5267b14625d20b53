"""Pretrains the embedded LLM: a small Llama that learns to read a scene told in words and to answer, in text alone.

In: the conversations of `corpus`, written in the template `vicuna_v1`, and captions as plain lines. Out: a
`LlamaForCausalLM` folder beside its tokenizer.
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ..data.sample import parse
from ..data.template import TEMPLATES
from ..data.tokens import IGNORE, Encoder, encode_sample
from . import corpus, emoji, world
from .schedule import Both, Meter

TEMPLATE = TEMPLATES["vicuna_v1"]
BARE = dataclasses.replace(TEMPLATE, system="")
OTHER_WEIGHT = 0.1


@dataclass(frozen=True)
class Lesson:
    """What is read up to a share `end` of the steps: the shares of each kind of row, and whether questions are negated.

    Whether what is asked for is what is told is by far the hardest thing to learn. It is learned on bare drills, then on
    drills in chat, then on scenes of one thing; and only then do questions with `not` begin, for before, with half of the
    answers turned round, a match says nothing about the answer.
    """

    end: float
    drill: float
    drill_in_chat: float
    one_thing: float
    anything: float
    negated: bool = True


LESSONS = (
    Lesson(0.12, 1.00, 0.00, 0.00, 0.00, negated=False),
    Lesson(0.22, 0.30, 0.50, 0.20, 0.00, negated=False),
    Lesson(0.35, 0.10, 0.20, 0.70, 0.00, negated=False),
    Lesson(0.65, 0.12, 0.23, 0.60, 0.05),
    Lesson(1.00, 0.03, 0.07, 0.40, 0.50),
)


def config(vocab: int) -> LlamaConfig:
    """Four layers of 256 channels in 8 heads: 4.2 million parameters."""
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )


@torch.no_grad()
def prepare(model: LlamaForCausalLM) -> None:
    """Starting weights under which comparing words is learned in minutes.

    Embeddings as large as the stream that is built on them (T5's and Gemma's choice; Llama's 0.02 drowns in the first
    layer's output), small writing matrices (GPT-2's choice), and, in half of the heads above the first layer, queries equal
    to keys, so that these heads begin by looking for the word they stand on.
    """
    cfg = model.config
    model.model.embed_tokens.weight.normal_(std=1.0)
    half = cfg.hidden_size // 2
    for number, layer in enumerate(model.model.layers):
        for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
            matrix.weight.mul_(1 / (2 * cfg.num_hidden_layers) ** 0.5)
        if number:
            layer.self_attn.k_proj.weight[:half] *= 2
            layer.self_attn.q_proj.weight[:half] = layer.self_attn.k_proj.weight[:half]


Row = tuple[list[int], list[float]]  # ids, and the weight of each in the loss


def talk_row(talk: list[dict[str, str]], encoder: Encoder, system: bool) -> Row:
    """A conversation; answers weigh 1, everything else `OTHER_WEIGHT`, the system prompt, where there is one, 0."""
    template = TEMPLATE if system else BARE
    tokens = encode_sample(parse({"id": "", "conversations": talk}), template, encoder, image_tokens=0)
    fixed = 1 + len(encoder.encode(f" {template.system}")) * system
    weights = [OTHER_WEIGHT if label == IGNORE else 1.0 for label in tokens.labels]
    return tokens.ids, [0.0] * fixed + weights[fixed:]


def drill_row(rng: random.Random, encoder: Encoder, negated: bool) -> Row:
    """` red star. star? yes. blue? no.`, where the answers alone weigh."""
    told, questions = corpus.drill(rng, negated)
    pieces = [(f" {told}.", 0.0)]
    for question, answer in questions:
        pieces += [(f" {question}", 0.0), (f" {answer}", 1.0), (".", 0.0)]
    ids, weights = [encoder.bos], [0.0]
    for text, weight in pieces:
        new = encoder.encode(text)
        ids, weights = ids + new, weights + [weight] * len(new)
    return ids, weights


def row(rng: random.Random, emojis: list, encoder: Encoder, lesson: Lesson) -> Row:
    """One row of the lesson."""
    shares = (lesson.drill, lesson.drill_in_chat, lesson.one_thing, lesson.anything)
    match rng.choices(range(4), shares)[0]:
        case 0:
            return drill_row(rng, encoder, lesson.negated)
        case 1:
            return talk_row(corpus.drill_in_chat(rng, lesson.negated), encoder, system=False)
        case 2:
            return talk_row(corpus.about_one_thing(rng, lesson.negated), encoder, system=rng.random() < 0.3)
    if rng.random() < 0.1:
        ids = [encoder.bos, *encoder.encode(f" {corpus.caption(rng, emojis)}\n")]
        return ids, [OTHER_WEIGHT] * len(ids)
    return talk_row(corpus.conversation(rng, emojis), encoder, system=rng.random() < 0.5)


def collate(rows: list[Row]) -> dict[str, torch.Tensor]:
    """[batch, longest] ids padded with 0, mask, and loss weights.

    The longest is rounded up to a multiple of 32: for each shape it has not met, oneDNN compiles its kernels anew.
    """
    longest = -(-max(len(ids) for ids, _ in rows) // 32) * 32
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


def train(tokenizer: Any, out: Path, steps: int, size: int = 40, seed: int = 0) -> dict:
    """Trains for `steps` batches of `size` rows (64 of the bare drills, which are short) and writes the LLM to `out`."""
    rng = random.Random(seed + 100)
    torch.manual_seed(seed)
    encoder, emojis = Encoder(tokenizer, out / "tokenizer.model"), [e for e, _ in emoji.load()]
    # eager: at this length, the backward pass of the fused attention is the slower one on a CPU
    model = LlamaForCausalLM._from_config(config(len(tokenizer)), attn_implementation="eager").train()
    prepare(model)
    optimizer = Both(model, muon=0.02, adamw=1.5e-3, betas=(0.9, 0.95))
    schedules = optimizer.schedules(steps, warmup=min(30, steps // 5 + 1))
    meter, rows, total = Meter("language", steps), 0, 0
    for step in range(steps):
        lesson = next(each for each in LESSONS if step < each.end * steps)
        batch = [row(rng, emojis, encoder, lesson) for _ in range(64 if lesson is LESSONS[0] else size)]
        inputs = collate(batch)
        rows, total = rows + len(batch), total + int(inputs["mask"].sum())
        loss = loss_of(model, inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for schedule in schedules:
            schedule.step()
        meter(step, loss.item(), lambda: read_and_answer(model, encoder))
    final = read_and_answer(model, encoder, 2000)
    model.to(torch.float16).save_pretrained(out)
    return {"rows": rows, "tokens": total, **meter.summary(), "read_and_answer": final}
