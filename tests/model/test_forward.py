"""The loss at labelled positions equals the plain one."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image

from qllava.data.collate import collate
from qllava.data.dataset import training_set
from qllava.data.pack import pack
from qllava.data.rows import rows_of
from qllava.model.attention import install_attention
from qllava.model.build import load_model
from qllava.model.forward import install_loss
from qllava.model.fused import fuse
from qllava.model.inputs import load_processing
from qllava.recipe.schema import Parts, Source

EMBEDDED = Parts(vision_tower="embedded", llm="embedded")


def test_loss_and_gradient_equal_the_plain_ones(scenes):
    processing = load_processing(EMBEDDED, "vicuna_v1", "pad")
    rows = training_set(rows_of(Source(path=str(scenes), image_root="images")), processing, 2048)
    batch = collate([rows[i] for i in (0, 1, 14)], processing)
    plain = load_model(EMBEDDED, torch.float32, torch.device("cpu"))
    plain.model.multi_modal_projector.requires_grad_(True)
    ours = copy.deepcopy(plain)
    install_loss(ours)
    expected, got = plain(**batch).loss, ours(**batch).loss
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    expected.backward()
    got.backward()
    for a, b in zip(plain.parameters(), ours.parameters(), strict=True):
        if a.requires_grad:
            assert (b.grad - a.grad).norm() < 2e-5 * a.grad.norm()  # as far apart as two plain ways of batching are
    count = int((batch["labels"][:, 1:] != -100).sum())
    torch.testing.assert_close(ours(**batch, normalizer=2 * count).loss, expected / 2)
    unlabelled = {k: v for k, v in batch.items() if k != "labels"}
    torch.testing.assert_close(ours(**unlabelled).logits, plain(**unlabelled).logits)


def test_text_alone_gives_the_projector_a_gradient_of_zero(scenes):
    processing = load_processing(EMBEDDED, "vicuna_v1", "pad")
    rows = training_set(rows_of(Source(path=str(scenes), image_root="images")), processing, 2048)
    batch = collate([rows[14], rows[15]], processing)
    model = load_model(EMBEDDED, torch.float32, torch.device("cpu"))
    expected = model(**batch).loss
    model.model.multi_modal_projector.requires_grad_(True)
    install_loss(model)
    loss = model(**batch).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all((p.grad == 0).all() for p in model.model.multi_modal_projector.parameters())


def conversations(tmp_path):
    """Nine samples: four questions about one image, two of them the same; two about another; one of two turns; text alone."""
    for i in range(2):
        Image.effect_noise((80 + i * 20, 64), 80).convert("RGB").save(tmp_path / f"{i}.png")
    asked = [
        (0, "Which?", "red"),
        (1, "And that?", "a blue one"),
        (0, "Which?", "not red at all"),
        (0, "Where is it?", "there"),
    ]
    asked += [
        (0, "Which is it, please?", "red"),
        (1, "Which?", "none"),
        (None, "Hello", "Hi there"),
        (None, "Hi", "Hello you"),
    ]
    rows = []
    for i, (image, question, answer) in enumerate(asked):
        talk = [
            {"from": "human", "value": ("" if image is None else "<image>\n") + question},
            {"from": "gpt", "value": answer},
        ]
        if i == 3:
            talk += [{"from": "human", "value": "And?"}, {"from": "gpt", "value": "no more"}]
        rows.append({"id": str(i), "conversations": talk} | ({} if image is None else {"image": f"{image}.png"}))
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize("fused", [False, True], ids=["PEFT's layers", "fused layers"])
@pytest.mark.parametrize("template", ["vicuna_v1", "llava_llama_2"])
def test_packed_and_shared_rows_equal_separate_ones(tmp_path, template, fused):
    """In float64, so that what is left is the norms' and the loss's own float32: 1e-6 of loss and gradients."""
    processing = load_processing(EMBEDDED, template, "pad")
    rows = training_set(rows_of(Source(path=str(conversations(tmp_path)))), processing, 2048)
    samples = [rows[i] for i in range(len(rows))]
    plain = load_model(EMBEDDED, torch.float32, torch.device("cpu"))
    plain = get_peft_model(plain, LoraConfig(r=4, target_modules=r".*language_model.*(_proj)"))
    for name, p in plain.named_parameters():
        p.requires_grad_("lora_" in name or "multi_modal_projector" in name)
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.02, generator=torch.Generator().manual_seed(0))
    plain = plain.double()
    packed = copy.deepcopy(plain)
    install_loss(plain.get_base_model()), install_loss(packed.get_base_model())
    install_attention(packed.get_base_model().model.language_model)
    if fused:
        assert fuse(packed.get_base_model().model.language_model)
    batches = [collate([one], processing) for one in samples]
    count = sum(int((b["labels"][:, 1:] != -100).sum()) for b in batches)
    expected = sum(plain(**as_double(b), normalizer=count).loss for b in batches)
    trained = [p for p in plain.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(expected, trained)
    positions = []
    for shared in (False, True):
        batch = pack(samples, processing, shared=shared, multiple=8)
        positions.append(batch["input_ids"].shape[1])
        loss = packed(**as_double(batch), normalizer=count).loss
        got = torch.autograd.grad(loss, [p for p in packed.parameters() if p.requires_grad])
        assert abs(float(loss - expected)) < 1e-6 * float(expected)
        for a, b in zip(got, wanted, strict=True):
            assert (a - b).norm() <= 1e-6 * b.norm()
    assert positions[1] < 0.6 * positions[0]


def test_captions_of_one_image_share_it(tmp_path):
    """In stage 1 the first word of a caption is predicted from the image's last position, which all captions share."""
    processing = load_processing(EMBEDDED, "plain", "square")
    Image.effect_noise((80, 64), 80).convert("RGB").save(tmp_path / "0.png")
    rows = [
        {"id": str(i), "image": "0.png", "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": text}]}
        for i, text in enumerate(("a red thing", "nothing at all", "red"))
    ]  # fmt: skip
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    made = training_set(rows_of(Source(path=str(tmp_path / "captions.json"))), processing, 2048)
    samples = [made[i] for i in range(3)]
    model = load_model(EMBEDDED, torch.float32, torch.device("cpu"))
    install_loss(model), install_attention(model.model.language_model), fuse(model.model.language_model)
    batch = pack(samples, processing, shared=True)
    assert len(batch["pixel_values"]) == 1 and len(batch["layout"].groups) == 1
    torch.testing.assert_close(model(**batch).loss, model(**collate(samples, processing)).loss, rtol=1e-5, atol=0)


def test_a_batch_without_a_label_has_a_loss_of_zero():
    """As rows have that only fill an uneven batch; their mean is over nothing."""
    model = load_model(EMBEDDED, torch.float32, torch.device("cpu"))
    install_loss(model), install_attention(model.model.language_model)
    processing = load_processing(EMBEDDED, "vicuna_v1", "pad")
    rows = [{"input_ids": [1, 1], "labels": [-100, -100]}]
    for batch in (pack(rows, processing), collate(rows, processing)):
        assert float(model(**batch).loss) == 0.0


def as_double(batch):
    return {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in batch.items()}
