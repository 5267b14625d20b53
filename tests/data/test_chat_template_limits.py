"""Chat templates that write more than a prompt holds, or change what they are given."""

from __future__ import annotations

import pytest

from qllava.data.chat_template import chat_template
from qllava.data.processing import load_tokenizer
from qllava.data.sample import Turn
from qllava.errors import UserError
from qllava.model.base import EMBEDDED

THINKING = (  # as Qwen3's: an empty thought before the last answer alone, which a prompt does not hold
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_what_a_prompt_does_not_hold_is_part_of_the_answer():
    tokenizer = load_tokenizer(str(EMBEDDED / "llm"))[0]
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "<think>", "</think>"], special_tokens=True)
    tokenizer.chat_template = THINKING
    pieces = chat_template(tokenizer).pieces([Turn("user", "q"), Turn("assistant", "a")])
    said = "".join(getattr(p, "text", getattr(p, "token", "")) for p in pieces if p.supervised)
    assert said == "<think>\n\n</think>\n\na<|im_end|>"


@pytest.mark.parametrize("change", ["m.content|upper", "m.content.split('!')[-1]"])
def test_a_template_that_changes_texts_is_refused(change):
    tokenizer = load_tokenizer(str(EMBEDDED / "llm"))[0]
    tokenizer.add_tokens(["<|end|>"], special_tokens=True)
    tokenizer.chat_template = "{% for m in messages %}{{ CHANGE + '<|end|>' }}{% endfor %}".replace("CHANGE", change)
    with pytest.raises(UserError, match="changes the text of a turn"):
        chat_template(tokenizer).pieces([Turn("user", "say! it"), Turn("assistant", "b")])
