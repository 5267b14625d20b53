"""What stops a run: each guard on its own, and as a run meets it."""

from __future__ import annotations

import math
import random
import shutil

import pytest
import torch

from qllava.api import train
from qllava.errors import RunError
from qllava.recipe import resolve_recipe
from qllava.train import guards
from qllava.train.checkpoint import checkpoints, newest_good, number_of, rotate
from qllava.train.guards import BadStep, Divergence, check_gradients, check_step, starved


def test_a_step_is_looked_at_before_it_is_taken():
    check_step(3, 1.5, 2.0, 7)
    for values, message in {
        (math.nan, 1.0, 7): "The loss is nan at step 3",
        (math.inf, 1.0, 7): "The loss is inf at step 3",
        (1.0, math.inf, 7): "The gradient's norm is inf at step 3",
        (math.nan, 1.0, 0): "No token of step 3's samples is supervised",
    }.items():
        with pytest.raises(BadStep, match=message):
            check_step(3, *values)
    check_step(3, 1.0, math.inf, 7, scaled=True)  # a loss scaler skips such a step by itself


def test_a_blow_up_is_seen_and_noise_is_not():
    """LLaVA's own 2e-4 (issue 918 there): the loss goes from 1 to 3 and more, and stays."""
    calm = Divergence(3.0)
    assert not any(calm.add(i, 1.0 + 0.9 * math.sin(i * 7) + 3 * (i % 10 == 0)) for i in range(1, 400))
    assert calm.good == pytest.approx(399, abs=10)
    small = Divergence(3.0)  # on a set learned by heart, ten times nearly nothing is still nearly nothing
    assert not any(small.add(i, 0.01 if i < 200 else 0.1) for i in range(1, 400))
    turns = Divergence(3.0)  # easy and hard batches take turns, in unequal runs
    rng = random.Random(1)
    assert not any(turns.add(i, 0.3 if rng.random() < 0.5 else 1.8) for i in range(1, 3000))
    wild = Divergence(3.0)
    told = [wild.add(i, 1.0 if i <= 100 else 4.0) for i in range(1, 200)]
    stopped = next(i for i, word in enumerate(told, 1) if word)
    assert 101 < stopped <= 100 + guards.WINDOW and wild.good <= 100
    assert "has blown up" in told[stopped - 1] and "adapter=CHECKPOINT" in told[stopped - 1]
    assert not any(Divergence(None).add(i, 1.0 if i < 100 else 9.0) for i in range(200))


def test_gradients_that_go_astray():
    layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    layers[0].requires_grad_(False)
    layers(torch.ones(1, 2)).sum().backward()
    check_gradients(layers)
    layers[1].bias.grad = None
    with pytest.raises(RunError, match=r"1 tensors train but got no gradient, such as 1\.bias"):
        check_gradients(layers)
    layers[1].bias.grad = torch.tensor([math.nan, 0.0])
    with pytest.raises(RunError, match=r"got no finite one, such as 1\.bias"):
        check_gradients(layers)
    check_gradients(layers, finite=False)
    layers[0].bias.grad = torch.zeros(2)
    with pytest.raises(RunError, match=r"are frozen but got one, such as 0\.bias"):
        check_gradients(layers, finite=False)


def test_a_word_about_starvation():
    assert starved(1.0, 10.0, 0) is None and starved(0.5, 0.6, 0) is None
    assert "50 % of the time goes on waiting" in starved(5.0, 10.0, 0) and "dataloader_num_workers=4" in starved(
        5.0, 10.0, 0
    )
    assert "by 4 workers: try dataloader_num_workers=8" in starved(5.0, 10.0, 4)


def test_rotation_spares_the_newest_and_the_last_good(tmp_path):
    for step in (2, 4, 6, 8, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    rotate(tmp_path, None)
    assert len(checkpoints(tmp_path)) == 5
    rotate(tmp_path, 2, {5})
    assert [number_of(c) for c in checkpoints(tmp_path)] == [10, 4]
    rotate(tmp_path, 1, {1})
    assert [number_of(c) for c in checkpoints(tmp_path)] == [10]


@pytest.fixture
def blow_up(monkeypatch):
    """Multiplies the loss by a factor from a step on."""
    from qllava.train.trainer import LlavaTrainer

    plain = LlavaTrainer.compute_loss

    def install(step, factor):
        def compute_loss(self, *args, **kwargs):
            loss = plain(self, *args, **kwargs)
            if self.state.global_step + 1 >= step:
                self._step_loss = self._step_loss + (factor - 1) * loss.detach()
                loss = loss * factor
            return loss

        monkeypatch.setattr(LlavaTrainer, "compute_loss", compute_loss)

    return install


def test_a_loss_that_is_none_keeps_the_last_good_state(recipe_values, tmp_path, blow_up):
    """transformers would log 0.0 and train on with weights that are none."""
    values = {**recipe_values, "tune": "lora", "max_steps": 6, "save_steps": 50, "warmup_steps": 0}
    blow_up(4, math.nan)
    with pytest.raises(RunError, match=r"(?s)The loss is nan at step 4.*The last good checkpoint is .*checkpoint-3"):
        train(resolve_recipe(values))
    found, _ = newest_good(tmp_path / "run")
    assert found.name == "checkpoint-3" and not (tmp_path / "run" / "final").exists()
    blow_up(99, 1.0)
    resumed = train(resolve_recipe(values), resume=True)
    shutil.rmtree(tmp_path / "run")
    whole = train(resolve_recipe(values))
    assert resumed.log[-1]["loss"] == whole.log[-1]["loss"]


def test_a_divergence_keeps_what_was_before_it(recipe_values, tmp_path, blow_up, monkeypatch, capsys):
    monkeypatch.setattr(guards, "WINDOW", 4)
    values = {
        **recipe_values,
        "tune": "lora",
        "max_steps": 30,
        "save_steps": 2,
        "learning_rate": 1e-4,
        "warmup_steps": 0,
    }
    blow_up(12, 50.0)
    with pytest.raises(RunError, match=r"(?s)has blown up.*The last good checkpoint is"):
        train(resolve_recipe(values))
    found, complaints = newest_good(tmp_path / "run")
    assert not complaints and 6 <= number_of(found) <= 10  # step 12's loss would be that of the weights after step 11
    set_aside = sorted(p.name for p in (tmp_path / "run").glob("diverged-*"))
    assert set_aside and "written after all was well" in " ".join(capsys.readouterr().err.split())
    blow_up(999, 1.0)  # with a lower rate, from the last good state
    again = {
        **values,
        "adapter": str(found),
        "output_dir": str(tmp_path / "again"),
        "learning_rate": 1e-5,
        "max_steps": 2,
    }
    assert train(resolve_recipe(again)).steps == 2
