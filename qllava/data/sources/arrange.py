"""From a source's talks to the rows of a LLaVA JSON: merged, drawn, arranged, in segments, with the prompt, capped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from ..sample import PLACEHOLDER, is_text
from . import rules
from .inputs import Inputs
from .rules import Pair, Talk
from .sets import SETS, Set

if TYPE_CHECKING:
    from .mix import Source

ROLE = 6  # tokens of a turn beside its text, as Vicuna's own script counts them


def conversations(name: str, source: Source, inputs: Inputs, seed: int) -> Iterator[dict[str, Any]]:
    """The source's rows. What is drawn depends on the seed, the source's name and the image, and on nothing else."""
    kind = SETS[source.set]
    talks = _sound(kind.read(inputs), kind, inputs)
    if kind.flat and source.merge:
        talks = rules.merge(talks)
    if source.max_tokens is not None:
        talks = _cut(talks, source.max_tokens, inputs)
    made = chain.from_iterable(_of(talk, kind, source, inputs, (seed, name)) for talk in talks)
    if source.cap is not None:
        made = iter(_capped(list(made), source.cap, inputs, (seed, name)))
    every = source.prompt_on == "every"
    closing = source.prompt if kind.kind in ("pairs", "choices", "whole") else None
    for talk in made:
        images = len(talk.image) if isinstance(talk.image, list) else int(talk.image is not None)
        turns = rules.conversation(talk.pairs, closing, every, images)
        yield {"id": talk.id} | ({"image": talk.image} if talk.image is not None else {}) | {"conversations": turns}


def _cut(talks: Iterable[Talk], most: int, inputs: Inputs) -> Iterator[Talk]:
    """The talks up to the last answer that ends within `most` tokens."""
    for talk in talks:
        lengths = (inputs.length(q) + inputs.length(a) + 2 * ROLE for q, a in talk.pairs)
        count = rules.fits(lengths, most)
        if count < len(talk.pairs):
            inputs.left[f"first answers that end after {most:,} tokens" if not count else
                        f"later parts of conversations, after {most:,} tokens"] += 1  # fmt: skip
        if count:
            yield talk._replace(pairs=talk.pairs[:count])


def _capped(made: list[Talk], cap: int, inputs: Inputs, drawn: tuple[int, str]) -> list[Talk]:
    if len(made) > cap:
        inputs.left[f"conversations above the cap of {cap:,}"] += len(made) - cap
    return rules.sample(made, cap, rules.drawn(*drawn, "cap"))


def _sound(talks: Iterable[Talk], kind: Set, inputs: Inputs) -> Iterator[Talk]:
    """The talks without pairs that no conversation can hold; of a whole conversation one such pair takes all along."""
    whole = kind.kind == "whole"
    for talk in talks:
        if not is_text(names := f"{talk.id}{talk.image}") or "\0" in names:
            inputs.left["records whose name holds what is no character"] += 1
            continue
        wrong = [_wrong(p, kind) for p in talk.pairs]
        reasons = [w for w in wrong if w]
        if not talk.pairs:
            inputs.left["records without a question"] += 1
        elif not reasons:
            yield talk
        elif whole:
            inputs.left[f"conversations {reasons[0]}"] += 1
        else:
            inputs.left.update(f"pairs {w}" for w in reasons)
            if len(reasons) < len(talk.pairs):
                yield talk._replace(pairs=[p for p, w in zip(talk.pairs, wrong, strict=True) if not w])


def _wrong(pair: tuple[Any, ...], kind: Set) -> str | None:
    """Why no conversation can hold the pair."""
    question, answer = pair[0], pair[1] if kind.kind != "regions" else ""
    if not (answer or kind.kind == "regions") or not (question or kind.kind == "captions"):
        return "without a question or an answer"
    if kind.kind == "regions" and not question.strip(". "):  # the question to locate it ends without its full stop
        return "without a question or an answer"
    if kind.kind == "regions" and rules.outside(*pair[1:]):
        return "whose region lies outside its image"
    text = question + (" ".join(answer) if kind.kind == "choices" else answer)
    if PLACEHOLDER in text:
        return f"with {PLACEHOLDER} in their text"
    return None if is_text(text) else "with half of a surrogate pair in their text"


def _of(talk: Talk, kind: Set, source: Source, inputs: Inputs, drawn: tuple[int, str]) -> Iterator[Talk]:
    """A talk's conversations."""
    pairs = talk.pairs
    if source.per_image is not None and len(pairs) > source.per_image:
        inputs.left[f"pairs above {source.per_image} an image"] += len(pairs) - source.per_image
        pairs = rules.sample(pairs, source.per_image, rules.drawn(*drawn, talk.id))
    for some in _arranged(pairs, talk, kind, source, drawn):
        for part in rules.segments(some, source.segment):
            yield Talk(talk.id, talk.image, list(part))


def _arranged(pairs: list[Any], talk: Talk, kind: Set, source: Source, drawn: tuple[int, str]) -> list[list[Pair]]:
    match kind.kind:
        case "choices":
            return rules.each_choice(pairs) if source.each_choice else [[rules.lettered(*p) for p in pairs]]
        case "captions":
            prompts = source.prompt if isinstance(source.prompt, list) else [source.prompt]
            prompt = prompts[0] if len(prompts) == 1 else rules.drawn(*drawn, talk.id, "prompt").choice(prompts)
            return [[(f"{prompt}\n{seen}" if seen else prompt, caption) for seen, caption in pairs]]
        case "regions":
            describe, locate = source.prompt
            chance = rules.drawn(*drawn, talk.id, "regions")
            written = [(text, rules.square(box, width, height)) for text, box, width, height in pairs]
            chance.shuffle(written)
            return [rules.both_ways(written, describe, locate, chance)]
        case _:
            return [pairs]
