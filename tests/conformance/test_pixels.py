"""Pixels equal those of the original LLaVA, element by element (shared/conformance/pixels.*)."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from qllava.data.image import open_image, to_pixels


def test_every_picture(shared):
    folder = shared / "conformance"
    expected, cases = load_file(folder / "pixels.safetensors"), json.loads((folder / "pixels.json").read_text())
    assert len(cases) == len(expected) == 24
    for case in cases:
        edge = case["edge"]
        processor = CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge})
        got = to_pixels(open_image(folder / case["image"]), processor, case["mode"])
        torch.testing.assert_close(got, expected[case["key"]].reshape(got.shape), atol=1e-5, rtol=0, msg=case["key"])
