"""What tests share: small data on disk, the embedded base, and the folder `shared/` where there is one."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

if TYPE_CHECKING:
    import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach a hub
os.environ["OMP_NUM_THREADS"] = "1"  # as many as launched processes have, so that sums come out alike
# A shell starts what goes to the background deaf to Ctrl-C, and children would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items):
    """The slow tests first, so that the others run beside them and none is waited for at the end; of them those with a real Slurm
    last, whose daemons and jobs other launches have not to share the machine with."""
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, "test_slurm" in item.nodeid))


class AtOnce:
    """Shows a failure when it happens: a run that is cut off before its summary has said why."""

    def __init__(self, terminal):
        self.terminal = terminal

    def pytest_runtest_logreport(self, report):
        if report.failed:
            tail = "\n".join(report.longreprtext.splitlines()[-30:])
            self.terminal.write_line(f"\n{report.nodeid} failed after {report.duration:.0f} s\n{tail}\n")


@pytest.hookimpl(trylast=True)  # the terminal is there
def pytest_configure(config):
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(AtOnce(terminal))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with conformance data and the Llama vocabulary, beside the checkout or inside it."""
    for folder in (os.environ.get("QLLAVA_SHARED"), ROOT.parent / "shared", ROOT / "shared"):
        if folder and (Path(folder) / "conformance").is_dir():
            return Path(folder)
    pytest.skip(
        "no shared/ folder with conformance data (made by running the original LLaVA; not part of the repository)"
    )


def scene_rows(count: int) -> list[dict]:
    """LLaVA samples about drawn pictures: one question about even ones, two about odd ones."""
    colors = ("red", "green", "blue")
    rows = []
    for i in range(count):
        turns = [
            {"from": "human", "value": "<image>\nWhich color?\nAnswer the question using a single word or phrase."},
            {"from": "gpt", "value": colors[i % 3]},
        ]
        if i % 2:
            turns += [{"from": "human", "value": "Is it red?"}, {"from": "gpt", "value": "yes" if i % 3 == 0 else "no"}]
        rows.append({"id": f"s{i}", "image": f"{i}.png", "conversations": turns})
    return rows


def image_logits(model) -> torch.Tensor:
    """What a model, wrapped by PEFT or not, says to one image of noise and three words: [1, positions, vocabulary]."""
    import torch

    torch.manual_seed(0)
    llava = model.get_base_model() if hasattr(model, "get_base_model") else model
    image, edge = llava.config.image_token_index, llava.config.vision_config.image_size
    ids = torch.tensor([[1, *[image] * llava.config.image_seq_length, 40, 50, 60]])
    with torch.no_grad():
        return model.eval()(input_ids=ids, pixel_values=torch.randn(1, 3, edge, edge)).logits


TOWER = {  # CLIP ViT-L/14-336
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 336, "patch_size": 14,
}  # fmt: skip
LLMS = {  # Vicuna
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
}


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """A LLaVA JSON of 16 samples (two of them text alone) with its pictures in `images/`."""
    folder = tmp_path / "images"
    folder.mkdir()
    rows = scene_rows(14)
    for i in range(14):
        Image.new("RGB", (64 + i, 64), ("red", "green", "blue")[i % 3]).save(folder / f"{i}.png")
    for i in (14, 15):
        talk = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]
        rows.append({"id": f"t{i}", "conversations": talk})
    path = tmp_path / "scenes.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def recipe_values(scenes: Path, tmp_path: Path) -> dict:
    """A small QLoRA run on the embedded base."""
    return {
        "stage": "instruct",
        "tune": "qlora",
        "base": {"vision_tower": "embedded", "llm": "embedded"},
        "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0},
        "data": [{"path": str(scenes), "image_root": "images"}],
        "dtype": "float32",
        "output_dir": str(tmp_path / "run"),
        "global_batch_size": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "projector_learning_rate": 1e-3,
        "max_steps": 4,
        "save_steps": 2,
        "logging_steps": 1,
    }
