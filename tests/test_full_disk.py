"""A disk that is full, at any byte of any output: one error, the old output untouched, nothing left over.

Each write happens in a process of its own, as HDF5 is known to crash when the interpreter ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scdd
from scdd.errors import DataFileError
from scdd.hdf5_writing import new_hdf5
from scdd.output import atomic_path, write_anndata

resource = pytest.importorskip("resource")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes to be limited")

CHILD = """
import os, resource, sys, warnings
from pathlib import Path
import numpy as np, pandas as pd, anndata, h5py, zarr, anndata.io
from scipy import sparse
warnings.simplefilter("ignore")
import scdd
from scdd.data.packed.writing import pack
from scdd.errors import DataFileError
from scdd.output import write_anndata

path, kind = Path(sys.argv[1]), sys.argv[2]
x = np.random.default_rng(0).random((300, 200)).astype(np.float32)
obs = pd.DataFrame({"c": pd.Categorical(list("abc") * 100), "w": x[:, 0]}, index=np.arange(300).astype(str))
adata = anndata.AnnData(x, obs=obs)
adata.uns["scdd"], adata.obsm["X_code"] = {"settings": "{}", "versions": {"numpy": "2"}}, x[:, :6].copy()
counts = anndata.AnnData(sparse.csr_matrix(np.rint(4 * x)), obs=obs)
atlas = scdd.Atlas(counts)

def write():
    if kind == "anndata":
        write_anndata(adata, path)
    elif kind == "streamed":
        blocks = iter([counts.X[:100], counts.X[100:]])
        scdd.write_csr(path, blocks, obs=obs, var=counts.var, progress=False)
    elif kind == "packed":
        pack(atlas, path, overwrite=True, progress=False)
    elif kind == "checkpoint":
        import torch
        from scdd.train.checkpoint import save_checkpoint
        save_checkpoint(path, {"weights": torch.zeros(100_000)})

if kind == "checkpoint":
    import torch
for limit in map(int, sys.argv[3:]):
    sys.stdout.flush()
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            write()
        except DataFileError as error:
            print(error)
            sys.exit(3)
        sys.exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print("ended with", code, "and left", sorted(p.name for p in path.parent.iterdir()), flush=True)
"""
FREE = 1 << 30


def written(path: Path, kind: str, *limits: int) -> list[str]:
    """What processes say that may each write so many bytes to a file, one after the other."""
    command = [sys.executable, "-c", CHILD, str(path), kind, *map(str, limits)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert not done.stderr
    return done.stdout.splitlines()


def content(path: Path) -> dict[str, bytes]:
    files = path.rglob("*") if path.is_dir() else [path]
    return {str(file.relative_to(path.parent)): file.read_bytes() for file in files if file.is_file()}


KINDS = [
    ("anndata", "a.h5ad", [0, 700, 2_100, 30_000, 230_000]),
    ("anndata", "a.zarr", [40, 3_000]),
    ("streamed", "a.h5ad", [0, 700, 2_100, 20_000, 60_000]),
    ("streamed", "a.zarr", [40]),
    ("packed", "a.packed", [0, 3_000, 60_000]),
    ("checkpoint", "a.pt", [5_000]),
]


@pytest.mark.parametrize(("kind", "name", "limits"), KINDS)
def test_nothing_is_left_and_the_process_ends_in_order(tmp_path, kind, name, limits):
    out = tmp_path / name
    refused = [
        f"{out} cannot be written (File too large); free space or choose another place (--out, cache=)",
        "ended with 3 and left []",
    ]
    said = written(out, kind, *limits, FREE)
    assert said == [*refused * len(limits), f"ended with 0 and left ['{name}']"]


@pytest.mark.parametrize(("kind", "name", "limits"), [row for row in KINDS if not row[1].endswith(".zarr")])
def test_the_old_output_stays(tmp_path, kind, name, limits):
    out = tmp_path / name
    assert written(out, kind, FREE) == [f"ended with 0 and left ['{name}']"]
    before = content(out)
    assert written(out, kind, *limits)[1::2] == [f"ended with 3 and left ['{name}']"] * len(limits)
    assert content(out) == before


@pytest.mark.parametrize("name", ["distilled.h5ad", "distilled.zarr"])
def test_the_command_says_so(tmp_path, h5ad, name):
    command = [sys.executable, "-m", "scdd.cli", "distill", str(h5ad), "--label", "cell_type"]
    command += ["-o", str(tmp_path / name), "--method", "herding", "--cells-per-class", "3", "--no-progress"]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))  # noqa: E731
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, preexec_fn=limit, cwd=tmp_path
    )
    assert done.returncode == 3, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("scdd")]
    assert said == [
        f"scdd: {tmp_path / name} cannot be written (File too large); "
        "free space or choose another place (--out, cache=)"
    ]
    assert list(tmp_path.iterdir()) == [h5ad]


def test_a_model_on_a_full_disk(tmp_path, generator, monkeypatch):
    generator.save(tmp_path / "model")
    before = content(tmp_path / "model")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataFileError, match="No space left"):
        generator.save(tmp_path / "model")
    assert content(tmp_path / "model") == before
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_a_folder_takes_the_place_of_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()
    with atomic_path(tmp_path / "a") as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_what_the_disk_did_not_take_can_be_read_again(tmp_path, monkeypatch):
    """Else HDF5 would stumble over its own tables."""
    from scdd import hdf5_writing

    real, written = os.pwrite, []

    def full_later(descriptor, data, at):
        written.append(len(data))
        if len(written) > 40:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[: len(data) // 2 + 1], at)  # also a disk that takes parts

    monkeypatch.setattr(hdf5_writing.os, "pwrite", full_later)
    values = np.arange(50_000, dtype=np.float64)
    with pytest.raises(OSError, match="No space left"), new_hdf5(tmp_path / "a.h5") as file:
        for number in range(60):
            file.root.create_group(f"g{number}")["x"] = values + number
            file.root.flush()
        for number in range(60):
            np.testing.assert_array_equal(file.root[f"g{number}/x"][...], values + number)
        written.append(-1)  # the checks above were reached
    assert written[-1] == -1


def test_it_is_the_file_that_anndata_writes(tmp_path, adata):
    import anndata as ad
    import h5py

    write_anndata(adata, tmp_path / "a.h5ad")
    adata.write_h5ad(tmp_path / "b.h5ad")
    with h5py.File(tmp_path / "a.h5ad") as a, h5py.File(tmp_path / "b.h5ad") as b:
        assert set(a) == set(b)
    adata.uns["log1p"], adata.obsm["X_code"] = {"base": None}, np.ones((240, 2))
    adata.raw = adata
    write_anndata(adata, tmp_path / "a.h5ad")
    adata.write_h5ad(tmp_path / "b.h5ad")
    ours, theirs = ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_h5ad(tmp_path / "b.h5ad")
    pd.testing.assert_frame_equal(ours.obs, theirs.obs)
    assert ours.uns == theirs.uns
    assert (sparse.csr_matrix(ours.X) != theirs.X).nnz == 0
    assert (ours.raw.X != theirs.raw.X).nnz == 0
    np.testing.assert_array_equal(ours.obsm["X_code"], theirs.obsm["X_code"])
    assert scdd.Atlas(tmp_path / "a.h5ad").shape == (240, 60)
