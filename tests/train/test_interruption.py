"""Ctrl-C: the step is finished, all is saved, and the run continues to the same numbers."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import torch
from support.regression import Batches, Regression, run, weights

from scdd.train.interruption import Interrupted


class Pressed(Batches):
    """Ctrl-C while a batch is read."""

    def __init__(self, at: int, times: int = 1):
        super().__init__()
        self.press_at, self.times = at, times

    def given(self, item):
        if self.served == self.press_at:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)
        return item


def test_ctrl_c_saves_and_the_run_continues_to_the_same_numbers(tmp_path):
    whole, history = run(40, module=Regression(0.3))
    place, settings = tmp_path / "run.pt", {"checkpoint_every": 1_000}
    with pytest.raises(Interrupted, match=r"after step 25 of 40, saved in .*run the same again"):
        run(40, module=Regression(0.3), batches=Pressed(25), settings=settings, checkpoint=place)
    assert torch.load(place, weights_only=True)["step"] == 25
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed, other = run(40, module=Regression(0.3), settings=settings, checkpoint=place)
    assert history == other
    assert torch.equal(weights(whole), weights(resumed))


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    with pytest.raises(KeyboardInterrupt) as caught:
        run(
            40,
            batches=Pressed(25, times=2),
            settings={"checkpoint_every": 1_000},
            checkpoint=tmp_path / "r.pt",
        )
    assert not isinstance(caught.value, Interrupted)
    assert not (tmp_path / "r.pt").exists()


def test_without_a_checkpoint_ctrl_c_is_at_once():
    batches = Pressed(25)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(40, batches=batches)
    assert not isinstance(caught.value, Interrupted)
    assert batches.served == 25


def test_training_on_another_thread_leaves_signals_alone(tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(run(14, checkpoint=tmp_path / "run.pt")))
    thread.start()
    thread.join()
    assert found[0][1][-1]["step"] == 14
