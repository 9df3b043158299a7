"""Logs: every row once, resumed or not; and TensorBoard only where it is."""

from __future__ import annotations

import csv

import pytest
from support.regression import Batches, held_out, run

from scdd.errors import DataFileError


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_log_is_the_history(tmp_path):
    _, history = run(
        120, settings={"validate_every": 100}, validation=held_out(), log=tmp_path / "logs", label="toy"
    )
    rows = rows_of(tmp_path / "logs" / "toy.csv")
    assert [int(row["step"]) for row in rows] == [row["step"] for row in history] == [50, 100, 120]
    assert float(rows[0]["loss"]) == pytest.approx(history[0]["loss"])
    assert [row["validation"] != "" for row in rows] == [False, True, True]
    assert float(rows[0]["cells_per_second"]) > 0
    assert set(history[0]) == {"step", "square", "loss", "gradient_norm", "lr"}
    assert history[-1]["lr"] < 0.02 * 0.05 < history[0]["lr"]


def test_a_resumed_run_writes_no_step_twice(tmp_path):
    class Broken(Batches):
        def given(self, item):
            if self.served == 130:
                raise KeyboardInterrupt
            return item

    place = {"checkpoint": tmp_path / "run.pt", "log": tmp_path / "log.csv"}
    with pytest.raises(KeyboardInterrupt):
        run(200, batches=Broken(), settings={"checkpoint_every": 70}, **place)
    assert [row["step"] for row in rows_of(tmp_path / "log.csv")] == ["50", "100"]
    run(200, settings={"checkpoint_every": 70}, **place)
    assert [row["step"] for row in rows_of(tmp_path / "log.csv")] == ["50", "100", "150", "200"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataFileError, match=r"the log .*file/training\.csv cannot be written"):
        run(5, log=tmp_path / "file")


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(100, log=tmp_path, label="toy")
    events = EventAccumulator(str(tmp_path / "toy"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [50, 100]
