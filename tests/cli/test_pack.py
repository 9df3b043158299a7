"""`scdd pack` and `scdd info` as a user meets them."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np

import scdd
from scdd.data.packed.header import OFFSETS, ROWS


def refused(result, code, *words):
    assert result[0] == code, result
    assert len(result[2].strip().splitlines()) == 1
    assert result[2].startswith("scdd: ")
    assert all(word in result[2] for word in words), result[2]


def test_pack_beside_the_file_then_train_from_it(command, h5ad, adata):
    code, out, _ = command("pack", h5ad, "--verify", "--no-progress")
    path = h5ad.with_suffix(".packed")
    assert code == 0
    assert f"wrote {path}: 240 cells x 60 genes" in out
    loader = scdd.CellLoader(scdd.Atlas(h5ad), batch_size=50, cache="auto", output="csr", normalise=False)
    assert loader.plan().source == "packed cache"
    seen = np.zeros(adata.shape, dtype=np.float32)
    for batch in loader:
        seen[batch.row_ids] = batch.x.toarray()
    np.testing.assert_array_equal(seen, adata.X.toarray())


def test_pack_again(command, h5ad, tmp_path):
    out = tmp_path / "copy.packed"
    assert "wrote" in command("pack", h5ad, "-o", out)[1]
    inode = (out / ROWS).stat().st_ino
    assert "up to date: " in command("pack", h5ad, "-o", out)[1]
    assert (out / ROWS).stat().st_ino == inode
    assert "wrote" in command("pack", h5ad, "-o", out, "--force")[1]
    assert (out / ROWS).stat().st_ino != inode


def test_verify_alone(command, h5ad):
    command("pack", h5ad)
    path = h5ad.with_suffix(".packed")
    code, out, _ = command("pack", path, "--verify")
    assert (code, out.startswith(f"verified {path}")) == (0, True)
    with (path / ROWS).open("r+b") as file:
        file.seek(70)
        byte = file.read(1)[0]
        file.seek(70)
        file.write(bytes([byte ^ 1]))
    refused(command("pack", path, "--verify"), 3, "checksum", ROWS)


def test_refusals(command, h5ad, tmp_path, make_atlas):
    refused(command("pack", tmp_path / "none.h5ad"), 3, "none.h5ad", "does not exist")
    refused(command("pack", h5ad, "-o", tmp_path / "out"), 2, ".packed")
    refused(command("pack", h5ad, h5ad), 2, "--out")
    refused(command("pack", h5ad, "--layer", "layers/none"), 2, "layers/none")
    command("pack", h5ad)
    packed = h5ad.with_suffix(".packed")
    refused(command("pack", packed), 2, "choose another output")
    make_atlas(20, 10, 2).write_h5ad(tmp_path / "other.h5ad")
    refused(command("pack", tmp_path / "other.h5ad", "-o", packed), 2, "another source", "--force")
    folder = tmp_path / "mine.packed"
    folder.mkdir()
    refused(command("pack", h5ad, "-o", folder), 3, "not a packed folder")
    (packed / OFFSETS).unlink()
    refused(command("pack", packed, "--verify"), 3, OFFSETS)
    assert not list(tmp_path.glob(".*"))


def test_info_of_both(command, h5ad):
    command("pack", h5ad)
    _, out, _ = command("info", h5ad, "--label", "cell_type")
    assert "cells just now" in out
    assert "variance inflation of 1.00" in out
    assert "type 1: 80" in out
    _, out, _ = command("info", h5ad.with_suffix(".packed"))
    assert "packed, " in out
    assert "240 cells" in out


def test_help_teaches():
    result = subprocess.run(
        [sys.executable, "-m", "scdd.cli", "pack", "--help"],
        capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert "Example: scdd pack" in result.stdout
    assert "--verify" in result.stdout
