"""Validation: comparable from one evaluation to the next, stops in time, keeps the best, leaves no trace."""

from __future__ import annotations

import pytest
import torch
from support.regression import Batches, Regression, held_out, run, weights
from torch import nn

EVERY = {"validate_every": 5}


class Memory(nn.Module):
    """One weight a cell: it learns its training cells by heart, and never anything of others."""

    def __init__(self):
        super().__init__()
        self.start = nn.Parameter(torch.zeros(()))

    def loss(self, batch, generator):
        # falls towards 1 and then overshoots: training asks for 3
        wanted = 3.0 if self.training else 1.0
        return {"square": (self.start - wanted).square()}


def test_validation_is_on_the_average_and_the_same_each_time():
    """With lr ~ 0 nothing is learnt: every evaluation gives the same number, dropout and noise or not."""
    settings = EVERY | {"lr": 1e-30, "weight_decay": 0.0, "ema": 0.0}
    module = Regression(dropout=0.5)
    module.norm.momentum = 0.0
    _, history = run(20, module=module, settings=settings, validation=held_out())
    judged = [row["validation"] for row in history if "validation" in row]
    assert len(judged) == 4
    assert len(set(judged)) == 1


def test_evaluation_leaves_no_trace_on_training():
    plain, history = run(40, module=Regression(0.3))
    judged, other = run(40, module=Regression(0.3), settings=EVERY, validation=held_out())
    assert other[-1]["validation"] == min(row["validation"] for row in other), "the last is the best here"
    assert torch.equal(weights(plain), weights(judged))
    assert history[-1]["step"] == other[-1]["step"] == 40


def test_training_stops_early_and_keeps_the_best():
    settings = {"validate_every": 2, "patience": 3, "ema": 0.0, "lr": 0.2, "weight_decay": 0.0}
    module, history = run(500, module=Memory(), settings=settings, validation=[(None, 1)])
    judged = {row["step"]: row["validation"] for row in history if "validation" in row}
    best = min(judged, key=judged.get)
    assert max(judged) == best + 2 * 3 < 500, "three evaluations without gain, then the end"
    assert (module.start.item() - 1.0) ** 2 == pytest.approx(judged[best])
    assert judged[max(judged)] > judged[best]


def test_without_patience_all_steps_are_made_and_the_best_is_kept():
    settings = {"validate_every": 2, "ema": 0.0, "lr": 0.2, "weight_decay": 0.0}
    module, history = run(100, module=Memory(), settings=settings, validation=[(None, 1)])
    assert history[-1]["step"] == 100
    assert (module.start.item() - 1.0) ** 2 == pytest.approx(min(row["validation"] for row in history))


def test_min_delta():
    settings = {"validate_every": 2, "patience": 2, "min_delta": 1e9}
    _, history = run(100, settings=settings, validation=held_out())
    assert history[-1]["step"] == 6, "the first counts, the next two gain too little"


@pytest.mark.parametrize("interrupted_at", [10, 14])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, interrupted_at):
    """Weights, history, the best, the patience left; what is saved before 10 lies between two rows."""
    settings = {"validate_every": 2, "patience": 6, "lr": 0.3, "ema": 0.5, "checkpoint_every": 3}

    class Broken(Batches):
        def given(self, item):
            if self.served == interrupted_at:
                raise KeyboardInterrupt
            return item

    noise = held_out(noise=3.0)
    whole, history = run(200, module=Regression(0.3), settings=settings, validation=noise)
    assert history[-1]["step"] < 200, "it stops early"
    place = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        run(
            200,
            module=Regression(0.3),
            batches=Broken(),
            settings=settings,
            validation=noise,
            checkpoint=place,
        )
    resumed, other = run(200, module=Regression(0.3), settings=settings, validation=noise, checkpoint=place)
    assert history == other
    assert torch.equal(weights(whole), weights(resumed))
    finished, third = run(200, module=Regression(0.3), settings=settings, validation=noise, checkpoint=place)
    assert history == third, "a run that stopped early is over"
    assert torch.equal(weights(whole), weights(finished))


def test_a_validation_loss_that_is_no_number_is_never_the_best():
    class Odd(Regression):
        def loss(self, batch, generator):
            terms = super().loss(batch, generator)
            return terms if self.training else {"square": terms["square"] * float("nan")}

    settings = EVERY | {"patience": 2}
    module, history = run(100, module=Odd(), settings=settings, validation=held_out())
    assert history[-1]["step"] == 10
    assert torch.isfinite(weights(module)).all()
