"""`scdd train` as a user meets it: every kind, resuming, and options that cannot be meant."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import anndata as ad
import numpy as np
import pytest

from scdd.cli.settings import known_settings, read_settings
from scdd.cli.training import Request
from scdd.errors import InputError
from scdd.models.config import AutoencoderConfig
from scdd.models.transformer_config import TransformerConfig
from scdd.nn.transformer import TransformerShape

COMMAND = [sys.executable, "-m", "scdd.cli", "train"]
TINY = [
    "--steps", 20, "--patch", 12, "--width", 16, "--heads", 2, "--depth", 1, "--batch-size", 32,
    "--lr", "3e-3", "--device", "cpu", "--no-progress",
]  # fmt: skip


def train(*arguments: object, **options) -> subprocess.CompletedProcess:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


def saved(folder):
    return json.loads((folder / "config.json").read_text())


def test_a_transformer_from_a_file(h5ad, tmp_path):
    result = train(
        "whitebox", h5ad, "-l", "cell_type", "-c", "donor", *TINY, "--validation", 0.2,
        "--validate-every", 10, "--variant", "token_statistics", "--set", "tied=true",
        "--set", "zeros=plain", "--genes", 40, "--precision", "bf16-mixed",
        "--log", tmp_path / "logs", "--checkpoints", tmp_path / "run", "-o", tmp_path / "m",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "validation loss" in result.stdout
    assert "whose weights are kept" in result.stdout
    assert "240 cells, 40 genes" in result.stdout
    config = saved(tmp_path / "m")
    assert config["class"] == "WhiteBoxDiffusionTransformer"
    assert config["conditions"]["names"] == ["cell_type", "donor"]
    shape = config["config"]["shape"]
    assert (shape["mixer"], shape["tied"], shape["patch"]) == ("statistics", True, 12)
    assert (config["config"]["zeros"], config["config"]["precision"]) == ("plain", "bf16-mixed")
    lines = (tmp_path / "logs" / "WhiteBoxDiffusionTransformer.csv").read_text().splitlines()
    assert lines[0].startswith("step,")
    assert [line.split(",")[0] for line in lines[1:]] == ["10", "20"]
    assert (tmp_path / "run" / "whitebox.pt").exists()


def test_scdg_with_validation(h5ad, tmp_path):
    result = train(
        "scdg", h5ad, "-l", "cell_type", "--steps", 20, "--genes", 40, "--head", "nb", "--width", 32,
        "--validation", 0.2, "--validate-every", 10, "--patience", 3, "--set", "classifier_steps=10",
        "--set", "autoencoder_hidden=32,16", "-o", tmp_path / "m",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("whose weights are kept") == 3
    config = saved(tmp_path / "m")["config"]
    assert (config["width"], config["steps"], config["patience"]) == (32, 20, 3)
    inner = config["autoencoder"]
    assert (inner["hidden"], inner["steps"], inner["head"], inner["n_top_genes"]) == ([32, 16], 20, "nb", 40)
    assert inner["validation"] == 0.2


def test_autoencoder_alone(h5ad, tmp_path):
    result = train("autoencoder", h5ad, "--steps", 20, "--set", "latent=5", "-o", tmp_path / "m")
    assert result.returncode == 0, result.stderr
    assert "no cells held out for validation" in result.stdout
    assert saved(tmp_path / "m")["config"]["latent"] == 5


def test_ctrl_c_says_how_to_go_on_and_the_command_does(h5ad, tmp_path):
    arguments = [
        "dit",
        h5ad,
        "-l",
        "cell_type",
        *TINY,
        "--checkpoints",
        tmp_path / "run",
        "-o",
        tmp_path / "m",
    ]
    arguments[arguments.index("--steps") + 1] = 4_000
    command = [*COMMAND, *map(str, arguments), "--log", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "DiffusionTransformer.csv"
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) > 1) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "run the same again to continue" in said
    assert "dit.pt" in said
    assert not (tmp_path / "m").exists()
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["dit.pt"]
    import torch

    saved_run = torch.load(tmp_path / "run" / "dit.pt", weights_only=True)
    assert 50 <= saved_run["step"] < 4_000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dit"], ["--label"]),
        (["dit", "-l", "x", "--objective", "mean_flow"], ["--objective", "scdg", "not with dit"]),
        (["scdg", "-l", "x", "--patch", "4"], ["--patch", "dit and whitebox", "not with scdg"]),
        (["dit", "-l", "x", "--variant", "alpha"], ["--variant", "whitebox"]),
        (["autoencoder", "-c", "donor"], ["--condition", "not with autoencoder"]),
        (["whitebox", "-l", "x", "--variant", "magic"], ["magic", "residual_free"]),
        (["dit", "-l", "x", "--preset", "fast"], ["fast", "published"]),
        (["scdg", "-l", "x", "--preset", "published"], ["published", "faithful"]),
        (["dit", "-l", "x", "--precision", "fp8"], ["fp8", "bf16-mixed"]),
        (["dit", "-l", "x", "--lr", "0"], ["lr=0", "above 0"]),
        (["dit", "-l", "x", "--device", "tpu"], ["tpu", "cuda"]),
        (["dit", "-l", "x", "--set", "colour=red"], ["colour", "weight_decay"]),
        (["dit", "-l", "x", "--set", "tied"], ["NAME=VALUE"]),
        (["dit", "-l", "x", "--set", "tied=maybe"], ["tied=maybe", "true or false"]),
        (["dit", "-l", "x", "--width", "64", "--set", "width=32"], ["--width"]),
        (["dit", "-l", "x", "--split-by", "donor"], ["--test"]),
        (["dit", "-l", "cell_type", "--log", "a.csv"], ["a.csv", "folder"]),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(h5ad, tmp_path, capsys, monkeypatch, arguments, words):
    """In this process, as a command would run it: seventeen interpreters would take a minute to start."""
    from scdd.cli import main

    kind, *options = arguments
    monkeypatch.setattr(sys, "argv", ["scdd", "train", kind, str(h5ad), *options, "-o", str(tmp_path / "m")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(said) == 1
    assert all(word in said[0] for word in words), said[0]
    assert not (tmp_path / "m").exists()


def test_settings_are_read_as_their_type():
    known = known_settings(TransformerConfig, TransformerShape) | known_settings(
        AutoencoderConfig, prefix="a_"
    )
    assert "shape" not in known
    given = [
        "lr=3e-4", "tied=yes", "n_top_genes=none", "validation=0.2", "order=correlation", "a_hidden=64,32",
        "sampling-steps=7", "modulation=full", "positive_gates=attention",
    ]  # fmt: skip
    assert read_settings(given, known) == {
        "lr": 3e-4, "tied": True, "n_top_genes": None, "validation": 0.2, "order": "correlation",
        "a_hidden": (64, 32), "sampling_steps": 7, "modulation": "full",
        "positive_gates": "attention",
    }  # fmt: skip
    for wrong in ("lr=fast", "sampling_steps=1.5", "modulation=some", "a_hidden=a,b"):
        with pytest.raises(InputError, match="--set"):
            read_settings([wrong], known)
    with pytest.raises(InputError, match="twice"):
        read_settings(["lr=1", "lr=2"], known)


def test_options_reach_both_stages_of_scdg():
    names = (
        "condition", "objective", "head", "width", "depth", "patch", "heads", "variant", "steps",
        "batch_size", "lr", "precision", "compile", "validation", "patience", "validate_every", "genes",
    )  # fmt: skip
    asked = {"lr": 1e-4, "precision": "bf16-mixed", "validation": 0.1, "patience": 3, "genes": 0, "steps": 9}
    config = Request("scdg", "x", dict.fromkeys(names) | asked, [], None, 4, "cpu").config
    for stage in (config, config.autoencoder):
        assert (stage.lr, stage.precision, stage.steps, stage.seed) == (1e-4, "bf16-mixed", 9, 4)
        assert (stage.validation, stage.patience, stage.device) == (0.1, 3, "cpu")
    assert config.autoencoder.n_top_genes is None


def test_cells_held_out_are_not_trained_on(h5ad, tmp_path):
    options = ["-l", "cell_type", *TINY, "--test", 0.25, "--seed", 3]
    result = train("dit", h5ad, *options, "-o", tmp_path / "m", env={**os.environ, "COLUMNS": "200"})
    assert result.returncode == 0, result.stderr
    assert "held out 60 of 240 cells" in result.stdout
    cells = ad.read_h5ad(h5ad)
    assert np.isfinite(cells.X.sum())
    import scdd

    kept, _ = scdd.Atlas(h5ad).split(label_key="cell_type", test=0.25, seed=3)
    assert saved(tmp_path / "m")["trained_on"] == kept.fingerprint()
