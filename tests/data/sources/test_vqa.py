"""VQAv2, OK-VQA, A-OKVQA and GQA in their published layouts give the conversations that the rules give by hand."""

from __future__ import annotations

import json

import pytest
import sets_raw
from sets_raw import SHORT, built, put, row

from qllava.errors import UserError

LETTER = "Answer with the option's letter from the given choices directly."


def test_vqav2_merges_an_images_questions(tmp_path):
    sets_raw.vqav2(tmp_path / "raw")
    rows, told = built(tmp_path, set="vqav2", prompt=SHORT)
    assert rows == [
        row("000000458752", "coco/train2017/000000458752.jpg",
            f"<image>\nWhat is this photo taken looking through?\n{SHORT}", "Net", "What position is this man playing?", "Pitcher"),
        row("000000262146", "coco/train2017/000000262146.jpg", f"<image>\nWhat color is the snow?\n{SHORT}", "White"),
    ]  # fmt: skip
    assert (told["rows"], told["records"], told["left_out"]) == (2, 3, {})


def test_prompt_on_every_question_on_none_and_unmerged(tmp_path):
    sets_raw.vqav2(tmp_path / "raw")
    every = built(tmp_path, set="vqav2", prompt=SHORT, prompt_on="every")[0][0]
    assert [t["value"] for t in every["conversations"][::2]] == [
        f"<image>\nWhat is this photo taken looking through?\n{SHORT}", f"What position is this man playing?\n{SHORT}",
    ]  # fmt: skip
    plain = built(tmp_path, set="vqav2", merge=False, images="elsewhere/")[0]
    assert plain[2] == row(
        "000000458752", "elsewhere/000000458752.jpg", "<image>\nWhat position is this man playing?", "Pitcher"
    )
    assert len(plain) == 3


def test_okvqa_takes_the_answer_that_most_gave(tmp_path):
    sets_raw.okvqa(tmp_path / "raw")
    rows, _ = built(tmp_path, set="okvqa", prompt=SHORT)
    assert rows == [row("000000051606", "coco/train2017/000000051606.jpg",
                        f"<image>\nWhat is the hairstyle of the blond called?\n{SHORT}", "Braid")]  # fmt: skip


def test_aokvqa_once_for_every_choice(tmp_path):
    sets_raw.aokvqa(tmp_path / "raw")
    rows, _ = built(tmp_path, set="aokvqa", prompt=LETTER)
    first = "<image>\nWhat is the man awaiting?\n{}\n" + LETTER
    orders = [
        ("A. skateboarder\nB. train\nC. delivery\nD. cab", "D", "A. road\nB. hill", "A"),
        ("A. cab\nB. skateboarder\nC. train\nD. delivery", "A", "A. hill\nB. road", "B"),
        ("A. delivery\nB. cab\nC. skateboarder\nD. train", "B", "A. road\nB. hill", "A"),
        ("A. train\nB. delivery\nC. cab\nD. skateboarder", "C", "A. hill\nB. road", "B"),
    ]
    assert rows == [
        row("000000299207", "coco/train2017/000000299207.jpg", first.format(a), b, f"Where does he stand?\n{c}", d)
        for a, b, c, d in orders
    ]
    assert len(built(tmp_path, set="aokvqa", prompt=LETTER, each_choice=False)[0]) == 1


def test_gqa_short_answers(tmp_path):
    sets_raw.gqa(tmp_path / "raw")
    rows, _ = built(tmp_path, set="gqa", prompt=SHORT)
    assert rows == [
        row("2375429", "gqa/images/2375429.jpg", f"<image>\nWhat is on the white wall?\n{SHORT}", "Pipe", "Is it clean?", "Yes"),
        row("n161313", "gqa/images/n161313.jpg", f"<image>\nIs that pipe red?\n{SHORT}", "No"),
    ]  # fmt: skip


def by_line(content) -> str:
    """JSON with every record on a line of its own."""
    if isinstance(content, list):
        return "[\n" + ",\n".join(map(json.dumps, content)) + "\n]"
    named = (f"{json.dumps(k)}: {by_line(v) if isinstance(v, list) else json.dumps(v)}" for k, v in content.items())
    return "{\n" + ",\n".join(named) + "\n}"


QUESTIONS, ANSWERS = "vqav2/v2_OpenEnded_mscoco_train2014_questions.json", "vqav2/v2_mscoco_train2014_annotations.json"
GQA = "gqa/train_balanced_questions.json"


@pytest.mark.parametrize(
    ("make", "name", "change", "mark", "says"),
    [
        ("vqav2", QUESTIONS, lambda c: c["questions"][1].pop("image_id"), "snow", "record 2 (line {}): has no 'image_id'"),
        ("vqav2", QUESTIONS, lambda c: c["questions"][2].update(question_id=7), ": 7}", "record 3 (line {}): question 7 has no answer"),
        ("vqav2", ANSWERS, lambda c: c["annotations"][0].update(multiple_choice_answer=3), ": 3,", "record 1 (line {}): 'multiple_choice_answer' is '3', not a text"),
        ("vqav2", ANSWERS, lambda c: c.pop("annotations"), "info", "has no 'annotations'"),
        ("okvqa", "okvqa/mscoco_train2014_annotations.json", lambda c: c["annotations"][0].update(answers=[]), "[]", "record 1 (line {}): has no answers"),
        ("aokvqa", "aokvqa/aokvqa_v1p0_train.json", lambda c: c[1].update(correct_choice_idx=2), "2BnC", "record 2 (line {}): 'correct_choice_idx' is 2 of 2 choices"),
        ("aokvqa", "aokvqa/aokvqa_v1p0_train.json", lambda c: c[1].update(choices=["a", 5]), "2BnC", "record 2 (line {}): 'choices' is \"['a', 5]\", not a list of texts"),
        ("aokvqa", "aokvqa/aokvqa_v1p0_train.json", lambda c: c[1].update(choices=["a", " "]), "2BnC", "record 2 (line {}): has a choice without a text"),
        ("vqav2", QUESTIONS, lambda c: c["questions"][1].update(image_id=-5), "snow", "record 2 (line {}): 'image_id' is -5, which is below 0"),
        ("aokvqa", "aokvqa/aokvqa_v1p0_train.json", lambda c: c[1].update(image_id=-5), "2BnC", "record 2 (line {}): 'image_id' is -5, which is below 0"),
        ("vqav2", ANSWERS, lambda c: c["annotations"][1].update(question_id=458752000), "pitcher", "record 2 (line {}): question 458752000 has an answer already"),
        ("okvqa", "okvqa/mscoco_train2014_annotations.json", lambda c: c["annotations"].append({**c["annotations"][0], "x": "mark"}), "mark", "record 2 (line {}): question 516065 has an answer already"),
        ("gqa", GQA, lambda c: c["07333405"].update(imageId="../5"), "07333405", "record 2 (line {}): image '../5.jpg' leaves the image folder"),
        ("gqa", GQA, lambda c: c["07333405"].update(imageId=5), "07333405", "record 2 (line {}): 'imageId' is '5', not a text"),
        ("gqa", GQA, lambda c: c.update({"15736264": "x"}), "15736264", "record 3 (line {}): is str, not an object with 'imageId'"),
    ],
)  # fmt: skip
def test_a_malformed_record_is_named_with_its_line(tmp_path, make, name, change, mark, says):
    raw = tmp_path / "raw"
    getattr(sets_raw, make)(raw)
    content = json.loads((raw / name).read_text())
    change(content)
    text = by_line(content)
    put(raw, name, text)
    line = next(i for i, t in enumerate(text.split("\n"), 1) if mark in t)
    with pytest.raises(UserError) as error:
        built(tmp_path, set=make)
    assert f"{raw / name}" in str(error.value) and says.format(line) in str(error.value)
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


def test_pairs_that_no_conversation_can_hold_are_counted(tmp_path):
    raw = tmp_path / "raw"
    sets_raw.gqa(raw)
    name = "gqa/train_balanced_questions.json"
    content = json.loads((raw / name).read_text())
    content["07333408"]["answer"] = " "
    content["15736264"]["question"] = "Is <image> clean?"
    put(raw, name, content)
    rows, told = built(tmp_path, set="gqa")
    assert [r["id"] for r in rows] == ["n161313"] and told["records"] == 3
    assert told["left_out"] == {"pairs without a question or an answer": 1, "pairs with <image> in their text": 1}


def test_every_file_of_a_list_is_read(tmp_path):
    raw = tmp_path / "raw"
    sets_raw.vqav2(raw)
    for name, key in ((QUESTIONS, "questions"), (ANSWERS, "annotations")):
        content = json.loads((raw / name).read_text())
        for part, some in (("a", content[key][:1]), ("b", content[key][1:])):
            put(raw, f"{key}-{part}.json", {key: some})
    files = {key: [f"{key}-a.json", f"{key}-b.json"] for key in ("questions", "annotations")}
    parts, told = built(tmp_path, set="vqav2", files=files)
    assert parts == built(tmp_path, set="vqav2")[0] and told["records"] == 3
    put(raw, "questions-b.json", {"questions": [sets_raw.vqa_question(1, 9, "q?")]})
    with pytest.raises(
        UserError,
        match=r"questions-b\.json, record 1 \(line 1\): question 9 has no answer in annotations-a\.json, annotations-b",
    ):
        built(tmp_path, set="vqav2", files=files)


def test_every_file_of_gqa_is_read(tmp_path):
    raw = tmp_path / "raw"
    sets_raw.gqa(raw)
    put(raw, "more.json", {"9": sets_raw.gqa_question("77", "More?", "yes")})
    rows, told = built(tmp_path, set="gqa", files={"questions": [GQA, "more.json"]})
    assert [r["id"] for r in rows] == ["2375429", "n161313", "77"] and told["records"] == 4
