"""LLaVA's own JSON, the 558K captions, ShareGPT."""

from __future__ import annotations

import json

import pytest
from sets_raw import built, put, row

from qllava.data.sources.html import markdown
from qllava.errors import UserError


def test_llava_instruct_keeps_its_rows_of_one_image_apart(tmp_path):
    rows = [
        row(
            "000000033471",
            "000000033471.jpg",
            "What are the colors of the bus?\n<image>",
            "White and red.",
            "Why?",
            "Paint.",
        ),
        row("000000033471", "000000033471.jpg", "<image>\nDescribe it.", "A bus."),
    ]
    put(tmp_path / "raw", "llava/llava_instruct_150k.json", rows)
    made, told = built(tmp_path, set="llava", files={"rows": "llava/llava_instruct_150k.json"}, images="coco/train2017")
    assert made == [
        row("000000033471", "coco/train2017/000000033471.jpg", "<image>\nWhat are the colors of the bus?", "White and red.", "Why?", "Paint."),
        row("000000033471", "coco/train2017/000000033471.jpg", "<image>\nDescribe it.", "A bus."),
    ]  # fmt: skip
    assert told["records"] == 2 and told["left_out"] == {}


def test_own_llava_rows(tmp_path):
    lines = [
        row("a", None, "Hello", "Hi", "More?"),
        {**row("b", None, "<image>\n<image>\nSame?", "No"), "image": ["1.jpg", "2.jpg"]},
        {**row("c", "1.jpg", "Hello", "Hi", "And <image>?", "Yes")},
        {k: v for k, v in row("d", None, "No id", "ok").items() if k != "id"},
    ]
    put(tmp_path / "raw", "mine.jsonl", "\n".join(map(json.dumps, lines)))
    made, told = built(
        tmp_path, set="llava", files={"rows": "mine.jsonl"}, images="my", prompt="Briefly.", prompt_on="every"
    )
    assert made == [
        row("a", None, "Hello\nBriefly.", "Hi"),
        {**row("b", None, "<image>\n<image>\nSame?\nBriefly.", "No"), "image": ["my/1.jpg", "my/2.jpg"]},
        row("4", None, "No id\nBriefly.", "ok"),
    ]
    assert told["left_out"] == {"rows with images elsewhere than in the first question": 1}
    put(tmp_path / "raw", "mine.jsonl", "\n".join([json.dumps(lines[0]), "", '{"id": 1}']))
    with pytest.raises(
        UserError, match=r"mine\.jsonl, record 2 \(line 3\): the row \(id 1\): 'conversations' is missing"
    ):
        built(tmp_path, set="llava", files={"rows": "mine.jsonl"})
    put(tmp_path / "raw", "mine.jsonl", json.dumps(lines[0]) + "\n{oops")
    with pytest.raises(UserError, match=r"mine\.jsonl, line 2 is not valid JSON"):
        built(tmp_path, set="llava", files={"rows": "mine.jsonl"})
    with pytest.raises(UserError, match=r"files\.rows: is missing"):
        built(tmp_path, set="llava")


def test_captions_draw_one_of_the_requests(tmp_path):
    meta = [
        {"id": f"{i:09d}", "image": f"00000/{i:09d}.jpg", "blip_caption": f"a dog {i}", "url": "x"} for i in range(30)
    ]
    put(tmp_path / "raw", "llava_pretrain/blip_laion_cc_sbu_558k_meta.json", meta)
    made, _ = built(tmp_path, set="captions", prompt=["Describe.", "Tell."])
    for i, found in enumerate(made):
        assert found in [
            row(f"{i:09d}", f"00000/{i:09d}.jpg", f"<image>\n{p}", f"a dog {i}") for p in ("Describe.", "Tell.")
        ]
    asked = [r["conversations"][0]["value"] for r in made]
    assert 5 < asked.count("<image>\nTell.") < 25
    meta[2]["image"] = " "
    put(tmp_path / "raw", "llava_pretrain/blip_laion_cc_sbu_558k_meta.json", meta)
    with pytest.raises(UserError, match=r"record 3 \(line 1\): 'image' is '', which names nothing"):
        built(tmp_path, set="captions", prompt="P")
    meta[1].pop("blip_caption")
    put(
        tmp_path / "raw",
        "llava_pretrain/blip_laion_cc_sbu_558k_meta.json",
        "[" + ",\n".join(map(json.dumps, meta)) + "]",
    )
    with pytest.raises(UserError, match=r"record 2 \(line 2\): has no 'blip_caption'"):
        built(tmp_path, set="captions", prompt="P")


def talk(name: str, *turns: tuple[str, str]) -> dict:
    return {"id": name, "conversations": [{"from": f, "value": v} for f, v in turns]}


SHAREGPT = {"set": "sharegpt", "files": {"rows": "sharegpt.json"}}


def test_sharegpt_filters(tmp_path):
    put(tmp_path / "raw", "sharegpt.json", [
        talk("opens_0", ("gpt", "lost"), ("human", "Q1"), ("gpt", "<p>A <strong>b</strong></p>"), ("human", "left")),
        talk("system_0", ("system", "S"), ("user", "Q2"), ("chatgpt", "A2")),
        talk("again_0", ("human", "Q2"), ("gpt", "A2"), ("human", "other"), ("gpt", "end")),
        talk("twice_0", ("human", "Q3"), ("human", "Q4"), ("gpt", "A3")),
        talk("blank_0", ("human", "Q5"), ("gpt", " ")),
        talk("none_0", ("gpt", "A6")),
        talk("marks_0", ("human", "What is <image>?"), ("gpt", "A tag.")),
    ])  # fmt: skip
    made, told = built(tmp_path, **SHAREGPT)
    assert made == [row("opens_0", None, "Q1", "A **b**"), row("system_0", None, "Q2", "A2")]
    assert told["left_out"] == {
        "conversations that begin as an earlier one": 1, "conversations whose speakers do not take turns": 1,
        "conversations with an empty turn": 1, "conversations without a question and its answer": 1, "conversations with <image> in their text": 1,
    }  # fmt: skip


def test_sharegpt_ends_at_a_turns_border(tmp_path):
    # the estimate: a third of the bytes, and 6 a turn; each pair below takes 2 + 10 + 12 = 24
    pair = (("human", "abcdef"), ("gpt", "x" * 30))
    put(
        tmp_path / "raw",
        "sharegpt.json",
        [talk("a", *pair, *pair, *pair), talk("b", ("human", "y" * 300), ("gpt", "z"))],
    )
    for most, pairs in ((72, 3), (71, 2), (48, 2), (47, 1)):
        made, told = built(tmp_path, max_tokens=most, **SHAREGPT)
        assert [len(r["conversations"]) // 2 for r in made] == [pairs]
        cut = {} if pairs == 3 else {f"later parts of conversations, after {most} tokens": 1}
        assert told["left_out"] == cut | {f"first answers that end after {most} tokens": 1}


def test_sharegpt_with_a_tokenizer(tmp_path, shared):
    pair = (
        ("human", "Tell me a story."),
        ("gpt", "Once upon a time there was a fox."),
    )  # 5 and 10 tokens of Llama, with 12 for the roles
    put(tmp_path / "raw", "sharegpt.json", [talk("a", *pair, *pair)])
    fields = {**SHAREGPT, "tokenizer": str(shared / "llama_tokenizer")}
    assert [len(built(tmp_path, max_tokens=n, **fields)[0][0]["conversations"]) for n in (53, 54)] == [2, 4]


def test_malformed_sharegpt(tmp_path):
    good = json.dumps(talk("a", ("human", "q"), ("gpt", "a")))
    for bad, says in (
        (talk("b", ("robot", "q")), r"record 2 \(line 2\): 'from' is 'robot', none of human"),
        ({"id": "b"}, r"record 2 \(line 2\): has no 'conversations'"),
        ({"id": "b", "conversations": [{"from": "human"}]}, r"record 2 \(line 2\): has no 'value'"),
    ):
        put(tmp_path / "raw", "sharegpt.json", f"[{good},\n{json.dumps(bad)}]")
        with pytest.raises(UserError, match=says):
            built(tmp_path, **SHAREGPT)


@pytest.mark.parametrize(
    ("html", "want"),
    [
        ("if a < b and b > c: pass", "if a < b and b > c: pass"),
        ("<p>is a tag:\n```html\n<p>x</p>\n```", "<p>is a tag:\n```html\n<p>x</p>\n```"),
        ("Write <p>x</p> there.", "Write <p>x</p> there."),
        ("Vector<int> x; #include <string>", "Vector<int> x; #include <string>"),
        ('<div class="markdown"><p>One &amp; two</p><p>Three<br>four</p></div>', "One & two\n\nThree\nfour"),
        ("<p>A <code>b</code>:</p><ol><li><p>one</p></li><li><p>two</p></li></ol><p>end</p>", "A `b`:\n\n1. one\n2. two\n\nend"),
        ("<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>", "- a\n  - b\n- c"),
        ("<p>See:</p><pre><div><span>python</span><button>Copy code</button></div><code>if a:\n    b &lt; c\n</code></pre><p>x</p>",
         "See:\n\n```python\nif a:\n    b < c\n```\n\nx"),
        ('<h2>Head</h2><p>a <em>b</em> <a href="u">c</a></p>', "## Head\n\na *b* [c](u)"),
    ],
)  # fmt: skip
def test_html_as_markdown(html, want):
    assert markdown(html) == want
