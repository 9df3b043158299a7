"""The loop resumes to the same numbers, averages what is trained, and refuses what cannot be."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scdd.errors import DataFileError, InputError
from scdd.train.ema import MovingAverage
from scdd.train.loop import TrainConfig, train


class Regression(nn.Module):
    """Noise in the loss and batch norm, so that generator and buffers must be restored as well."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.layer = nn.BatchNorm1d(4), nn.Linear(4, 1)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def loss(self, batch, generator):
        x, y = batch
        noise = 0.1 * torch.randn(y.shape, generator=generator)
        return {"square": (self.layer(self.norm(x)) - y + noise).square().mean()}


class Batches:
    """Ten batches an epoch, with the state of a loader."""

    def __init__(self):
        x = torch.randn(80, 4, generator=torch.Generator().manual_seed(1))
        self.items = list(zip(x.split(8), (x.sum(1, keepdim=True)).split(8), strict=True))
        self.at = 0

    def __iter__(self):
        start, self.at = self.at % 10, self.at % 10
        for item in self.items[start:]:
            self.at += 1
            yield item

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def run(steps, **options):
    config = TrainConfig(steps=steps, batch_size=8, lr=0.05, device="cpu", checkpoint_every=7)
    return train(Regression(), "loss", options.pop("batches", Batches()), config, progress=False, **options)


def weights(module):
    return torch.cat([v.reshape(-1).float() for v in module.state_dict().values()])


def test_training_lowers_the_loss_and_leaves_frozen_parts_alone():
    module, history = run(200)
    assert history[-1]["square"] < 0.5 * history[0]["square"]
    torch.testing.assert_close(module.frozen.weight, Regression().frozen.weight)
    assert not module.training


def test_an_interrupted_run_resumes_to_the_same_numbers(tmp_path):
    whole, whole_history = run(40)

    class Broken(Batches):
        def __iter__(self):
            for item in super().__iter__():
                self.served = getattr(self, "served", 0) + 1
                if self.served == 25:
                    raise KeyboardInterrupt
                yield item

    place = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        run(40, batches=Broken(), checkpoint=place)
    resumed, history = run(40, checkpoint=place)
    assert torch.equal(weights(whole), weights(resumed))
    assert whole_history[-1]["step"] == history[-1]["step"] == 40


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    run(14, checkpoint=tmp_path / "run.pt")
    with pytest.raises(InputError, match=r"steps=14.*delete it"):
        run(28, checkpoint=tmp_path / "run.pt")


def test_a_truncated_checkpoint_is_refused(tmp_path):
    place = tmp_path / "run.pt"
    run(14, checkpoint=place)
    place.write_bytes(place.read_bytes()[:200])
    with pytest.raises(DataFileError, match="delete it"):
        run(14, checkpoint=place)


def test_divergence_is_named():
    class Bad(Regression):
        def loss(self, batch, generator):
            return {"square": super().loss(batch, generator)["square"] * float("nan")}

    with pytest.raises(InputError, match="diverged at step 0"):
        train(Bad(), "loss", Batches(), TrainConfig(steps=3, device="cpu"), progress=False)


@pytest.mark.parametrize("options", [{"steps": 0}, {"steps": 1, "batch_size": 0}])
def test_bad_settings(options):
    with pytest.raises(InputError, match="at least 1"):
        TrainConfig(**options)


def test_bad_devices():
    for device in ("tpu", "cuda") if not torch.cuda.is_available() else ("tpu",):
        with pytest.raises(InputError, match="device="):
            train(Regression(), "loss", Batches(), TrainConfig(steps=1, device=device), progress=False)


def test_no_batches_is_an_error_not_a_hang():
    with pytest.raises(InputError, match="no batch"):
        train(Regression(), "loss", [], TrainConfig(steps=3, device="cpu"), progress=False)


def test_the_moving_average_follows_its_formula():
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    average = MovingAverage(module, decay=0.9)
    nn.init.ones_(module.weight)
    expected = 0.0
    for n in range(30):
        average.update()
        expected += (1 - min(0.9, (1 + n) / (10 + n))) * (1 - expected)
    average.apply()
    assert module.weight.item() == pytest.approx(expected, rel=1e-5)
