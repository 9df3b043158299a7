"""NaN: training stops, the last good state is kept, in memory and on disk, and a resumed run goes on."""

from __future__ import annotations

import pytest
import torch
from support.regression import BadBatches, Batches, Regression, run, weights

from scdd.errors import InputError
from scdd.train import loop
from scdd.train.divergence import Diverged


@pytest.fixture(params=["read at each step", "read seldom, as on a GPU"])
def reading(request, monkeypatch):
    if request.param != "read at each step":
        seldom = lambda self, step: self._row_due(step)  # noqa: E731
        monkeypatch.setattr(loop._Run, "_reading_due", seldom)


class BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


@pytest.mark.usefixtures("reading")
def test_a_bad_batch_stops_training_and_stays_out_of_the_weights():
    module = Regression()
    with pytest.raises(Diverged, match=r"at step 23: square is nan.*lr=0\.05 \(try 0\.02\)") as caught:
        run(200, module=module, batches=BadBatches(23))
    assert caught.value.step == 23
    assert isinstance(caught.value, InputError)
    assert torch.isfinite(weights(module)).all(), "running statistics too"
    assert not module.training


def test_what_is_left_is_the_moving_average_of_the_steps_before():
    module = Regression()
    with pytest.raises(Diverged):
        run(200, module=module, batches=BadBatches(23), settings={"warmup": 0.0})
    good = Regression()
    with pytest.raises(RuntimeError, match="enough"):
        run(200, module=good, batches=Enough(), settings={"warmup": 0.0})
    found, expected = (
        {name: value for name, value in m.state_dict().items() if value.is_floating_point()}
        for m in (module, good)
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Enough(Batches):
    def given(self, item):
        if self.served == 24:
            raise RuntimeError("enough")
        return item


@pytest.mark.usefixtures("reading")
def test_a_bad_gradient_is_found_where_the_loss_is_fine():
    class Bad(Regression):
        count = 0

        def loss(self, batch, generator):
            terms = super().loss(batch, generator)
            self.count += 1
            return {"square": BadGradient.apply(terms["square"])} if self.count == 5 else terms

    module = Bad()
    with pytest.raises(Diverged, match="at step 4: gradient_norm is"):
        run(100, module=module)
    assert torch.isfinite(weights(module)).all()


@pytest.mark.usefixtures("reading")
def test_a_good_checkpoint_is_never_overwritten_and_a_lower_rate_goes_on_from_it(tmp_path):
    place = tmp_path / "run.pt"
    with pytest.raises(Diverged, match=r"of step 21, is .*run\.pt: the same run with another lr"):
        run(60, batches=BadBatches(23), checkpoint=place)
    saved = torch.load(place, weights_only=True)
    assert saved["step"] == 21
    assert all(torch.isfinite(v).all() for v in saved["module"].values())
    with pytest.warns(UserWarning, match=r"continued with lr=0\.02 \(before: 0\.05\)"):
        module, history = run(60, settings={"lr": 0.02}, checkpoint=place)
    assert history[-1]["step"] == 60
    assert history[-1]["lr"] < 0.02
    assert torch.isfinite(weights(module)).all()


def test_where_no_checkpoint_was_due_yet_the_last_good_state_is_written(tmp_path):
    place = tmp_path / "run.pt"
    with pytest.raises(Diverged, match="of step 3, is"):
        run(60, batches=BadBatches(3), checkpoint=place)
    _, history = run(60, checkpoint=place)
    assert history[-1]["step"] == 60


def test_precision_is_named_where_it_may_be_the_cause():
    with pytest.raises(Diverged, match=r"precision='32-true' in place of 'bf16-mixed'.*checkpoint= "):
        run(20, batches=BadBatches(3), settings={"precision": "bf16-mixed"})


def test_bf16_trains():
    class Recording(Regression):
        def loss(self, batch, generator):
            assert self.layer(batch[0]).dtype == torch.bfloat16
            return super().loss(batch, generator)

    module, history = run(200, module=Recording(), settings={"precision": "bf16-mixed"})
    assert history[-1]["square"] < 0.5 * history[0]["square"]
    assert all(p.dtype == torch.float32 for p in module.parameters())
