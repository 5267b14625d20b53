"""The loss at labelled positions equals the plain one."""

from __future__ import annotations

import copy

import torch

from qllava.data.collate import collate
from qllava.data.dataset import training_set
from qllava.data.rows import rows_of
from qllava.model.build import load_model, load_processing
from qllava.model.forward import install_loss
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
