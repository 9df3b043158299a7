"""The command as a user meets it: results, exit codes, one-line errors, nothing half-written."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import scdd

RULE = ["--method", "herding", "--cells-per-class", "3", "--no-progress"]


def scdd_command(*arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "scdd.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


def distil(path: Path, out: Path, *more: object, **options) -> subprocess.CompletedProcess:
    return scdd_command("distill", path, "--label", "cell_type", "-o", out, *RULE, *more, **options)


def assert_refused(result: subprocess.CompletedProcess, out: Path, code: int, *words: str) -> None:
    """One line on standard error that names the fault, the right exit code, and no file."""
    assert result.returncode == code, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("scdd: ")
    assert all(word in lines[0] for word in words), lines[0]
    assert not [p for p in out.parent.iterdir() if "distilled" in p.name or "tmp" in p.name]


def test_distil_with_a_report(h5ad, tmp_path):
    out = tmp_path / "distilled.h5ad"
    result = distil(h5ad, out, "--report", tmp_path / "r.html", "--baselines", "random", "--seeds", 2)
    assert result.returncode == 0, result.stderr
    made = ad.read_h5ad(out)
    assert made.obs["cell_type"].value_counts().tolist() == [3, 3, 3]
    assert "recover" in result.stdout.lower()
    assert "<html" in (tmp_path / "r.html").read_text()
    split = (tmp_path / "distilled.split.csv").read_text().splitlines()
    held_out = {line.split(",")[0] for line in split if line.endswith(",test")}
    assert len(split) == 241
    assert len(held_out) == 48
    assert not held_out & set(made.obs["source_cell"]), "no held-out cell may be in the set"


def test_held_out_donors(h5ad, tmp_path):
    options = ["--report", tmp_path / "r.html", "--baselines", "", "--seeds", 2]
    result = distil(
        h5ad, tmp_path / "distilled.h5ad", *options, "--split-by", "donor", "--test-group", "donor 1"
    )
    assert result.returncode == 0, result.stderr
    made = ad.read_h5ad(tmp_path / "distilled.h5ad")
    donors = ad.read_h5ad(h5ad).obs["donor"]
    assert "donor 1" not in set(donors[made.obs["source_cell"]])


def test_train_generate_evaluate_info(h5ad, tmp_path, adata):
    trained = scdd_command(
        "train",
        "scdg",
        h5ad,
        "-l",
        "cell_type",
        "-c",
        "condition",
        "-o",
        tmp_path / "m",
        "--steps",
        30,
        "--genes",
        40,
    )
    assert trained.returncode == 0, trained.stderr
    made = scdd_command(
        "generate", tmp_path / "m", "-n", 30, "-c", "cell_type=type 1", "-o", tmp_path / "g.h5ad", "--seed", 3
    )
    assert made.returncode == 0, made.stderr
    cells = ad.read_h5ad(tmp_path / "g.h5ad")
    assert set(cells.obs["cell_type"]) == {"type 1"}
    assert cells.shape == (30, 40)
    described = scdd_command("info", tmp_path / "m")
    assert "type 1" in described.stdout
    assert "ctrl" in described.stdout
    out = tmp_path / "distilled.h5ad"
    assert distil(h5ad, out, "--generator", tmp_path / "m", "--method", "scdd").returncode == 0
    adata[:60].copy().write_h5ad(tmp_path / "test.h5ad")
    judged = scdd_command(
        "evaluate", out, "--train", h5ad, "--test", tmp_path / "test.h5ad", "-l", "cell_type",
        "-o", tmp_path / "r.html", "--scores", tmp_path / "s.csv", "--seeds", 2, "--baseline", f"other={out}",
    )  # fmt: skip
    assert judged.returncode == 0, judged.stderr
    assert "macro_f1" in (tmp_path / "s.csv").read_text()


def test_simulate_then_info(tmp_path):
    made = scdd_command("simulate", "-o", tmp_path / "sim.h5ad", "-n", 500, "--genes", 50, "--classes", 3)
    assert made.returncode == 0, made.stderr
    described = scdd_command("info", tmp_path / "sim.h5ad", "--label", "cell_type")
    assert "500 cells" in described.stdout
    assert "whole numbers" in described.stdout


@pytest.mark.parametrize("verb", ["distill", "train", "generate", "evaluate", "simulate", "info"])
def test_help_teaches(verb):
    result = scdd_command(verb, "--help", env={**os.environ, "COLUMNS": "200"})
    assert result.returncode == 0
    assert f"Example: scdd {verb}" in result.stdout


def test_missing_file(tmp_path):
    out = tmp_path / "distilled.h5ad"
    assert_refused(distil(tmp_path / "none.h5ad", out), out, 3, "none.h5ad", "does not exist")


def test_truncated_file(h5ad, tmp_path):
    short, out = tmp_path / "short.h5ad", tmp_path / "distilled.h5ad"
    short.write_bytes(h5ad.read_bytes()[:-2_000])
    assert_refused(distil(short, out), out, 3, "short.h5ad")


def _changed(adata, h5ad, change):
    change(adata)
    adata.write_h5ad(h5ad)


def _nan_labels(adata):
    adata.obs.loc[adata.obs_names[:5], "cell_type"] = np.nan


def _lonely_class(adata):
    adata.obs["cell_type"] = ["solo", *adata.obs["cell_type"].astype(str)[1:]]


def _negative(adata):
    adata.X.data[7] = -1


def _logged(adata):
    adata.X = adata.X.log1p()


def _twice(adata):
    adata.var_names = ["GENE0", *adata.var_names[1:-1], "GENE0"]


BAD = {
    "NaN labels": (_nan_labels, ["5 of 240 cells", "--drop-unlabelled"]),
    "class with one cell": (_lonely_class, ["solo", "--min-class-cells 2"]),
    "negative values": (_negative, ["negative", "--layer"]),
    "log values": (_logged, ["log1p", "--expression log1p"]),
    "duplicated genes": (_twice, ["GENE0", "var_names_make_unique"]),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_cells(adata, h5ad, tmp_path, fault):
    change, words = BAD[fault]
    _changed(adata, h5ad, change)
    out = tmp_path / "distilled.h5ad"
    assert_refused(distil(h5ad, out), out, 2, *words)


def test_the_remedies_work(adata, h5ad, tmp_path):
    _changed(adata.copy(), h5ad, _nan_labels)
    assert distil(h5ad, tmp_path / "a.h5ad", "--drop-unlabelled").returncode == 0
    _changed(adata.copy(), h5ad, _lonely_class)
    assert distil(h5ad, tmp_path / "b.h5ad", "--min-class-cells", 2).returncode == 0
    assert "solo" not in set(ad.read_h5ad(tmp_path / "b.h5ad").obs["cell_type"])
    _changed(adata, h5ad, _logged)
    assert distil(h5ad, tmp_path / "c.h5ad", "--expression", "log1p").returncode == 0


def test_no_such_label(h5ad, tmp_path):
    out = tmp_path / "distilled.h5ad"
    result = scdd_command("distill", h5ad, "--label", "celltype", "-o", out, *RULE)
    assert_refused(result, out, 2, "'celltype'", "cell_type")


def test_empty_atlas(adata, h5ad, tmp_path):
    adata[:0].copy().write_h5ad(h5ad)
    assert_refused(distil(h5ad, tmp_path / "distilled.h5ad"), tmp_path / "distilled.h5ad", 2, "empty")


def test_zero_genes_in_common(adata, h5ad, tmp_path):
    other, out = adata.copy(), tmp_path / "distilled.h5ad"
    other.var_names = [f"ENSG{i}" for i in range(other.n_vars)]
    other.write_h5ad(tmp_path / "other.h5ad")
    result = scdd_command("distill", h5ad, tmp_path / "other.h5ad", "--label", "cell_type", "-o", out, *RULE)
    assert_refused(result, out, 2, "zero genes in common")


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_read_only_folder(h5ad, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write anywhere (root)")
        assert_refused(
            distil(h5ad, folder / "distilled.h5ad"), folder / "distilled.h5ad", 3, "cannot be written"
        )
    finally:
        folder.chmod(stat.S_IRWXU)


def test_a_read_only_folder_is_refused_before_any_work(h5ad, tmp_path, monkeypatch):
    """The same for root, whom permissions do not stop: the file system says no."""
    from scdd.errors import DataFileError
    from scdd.output import check_writable

    def refuse(self, *args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(DataFileError, match="Read-only file system"):
        check_writable(tmp_path / "distilled.h5ad")


def test_a_warning_is_one_line(adata, tmp_path):
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).replace("type 0", "nan")
    adata.write_h5ad(tmp_path / "a.h5ad")
    result = distil(tmp_path / "a.h5ad", tmp_path / "distilled.h5ad")
    assert result.returncode == 0, result.stderr
    said = [line for line in result.stderr.splitlines() if "look like missing" in line]
    assert len(said) == 1
    assert said[0].startswith(
        "scdd: warning: obs['cell_type'] has labels that look like missing ones ('nan': 80"
    )


def test_a_missing_output_folder(h5ad, tmp_path):
    result = distil(h5ad, tmp_path / "nowhere" / "distilled.h5ad")
    assert result.returncode == 3
    assert "does not exist" in result.stderr


def test_ctrl_c_in_mid_run_leaves_nothing(h5ad, tmp_path):
    out = tmp_path / "distilled.h5ad"
    command = [sys.executable, "-m", "scdd.cli", "distill", str(h5ad), "--label", "cell_type", "-o", str(out)]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    time.sleep(6)
    assert running.poll() is None, "the run ended before it could be interrupted"
    running.send_signal(signal.SIGINT)
    _, error = running.communicate(timeout=120)  # on a busy machine imports alone take long
    assert running.returncode == 130
    assert error.strip() == "scdd: interrupted; no output was written"
    assert {p.name for p in tmp_path.iterdir()} == {"atlas.h5ad"}


def test_an_earlier_result_survives_a_failed_run(adata, h5ad, tmp_path):
    out = tmp_path / "distilled.h5ad"
    out.write_bytes(b"precious")
    _changed(adata, h5ad, _logged)
    assert distil(h5ad, out).returncode == 2
    assert out.read_bytes() == b"precious"


def test_the_input_is_never_overwritten(h5ad):
    """`-o` equal to the atlas once replaced it, without a word."""
    before = h5ad.read_bytes()
    result = distil(h5ad, h5ad)
    assert result.returncode == 2
    assert "is an input" in result.stderr
    assert h5ad.read_bytes() == before


def test_a_generator_that_may_have_seen_the_test_cells_is_refused(h5ad, tmp_path):
    options = ["-l", "cell_type", "--steps", 20, "--genes", 40]
    assert scdd_command("train", "scdg", h5ad, *options, "-o", tmp_path / "all").returncode == 0
    assert (
        scdd_command("train", "scdg", h5ad, *options, "-o", tmp_path / "part", "--test", 0.2).returncode == 0
    )
    report = ["--method", "scdd", "--report", tmp_path / "r.html", "--seeds", 2, "--baselines", ""]
    out = tmp_path / "distilled.h5ad"
    refused = distil(h5ad, out, *report, "--generator", tmp_path / "all")
    assert_refused(refused, out, 2, "was not trained on exactly the training part", "--test")
    assert distil(h5ad, out, *report, "--generator", tmp_path / "part").returncode == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--split-by", "donor"], ["--report"]),
        (["--init", "real"], ["--init", "--method scdd"]),
        (["--baselines", "magic", "--report", "r.html"], ["magic", "half_half"]),
        (["--method", "magic"], ["magic", "herding"]),
    ],
)
def test_options_that_would_be_ignored_or_fail_late(h5ad, tmp_path, options, words):
    result = distil(h5ad, tmp_path / "distilled.h5ad", *options, cwd=tmp_path)
    assert_refused(result, tmp_path / "distilled.h5ad", 2, *words)


def test_output_names_say_what_is_written(h5ad, tmp_path):
    result = distil(h5ad, tmp_path / "distilled.csv")
    assert_refused(result, tmp_path / "distilled.csv", 2, ".h5ad or .zarr")


def test_one_donor_cannot_be_held_out(adata, h5ad, tmp_path):
    adata.obs["donor"] = "only"
    adata.write_h5ad(h5ad)
    out = tmp_path / "distilled.h5ad"
    result = distil(h5ad, out, "--split-by", "donor", "--report", tmp_path / "r.html")
    assert_refused(result, out, 2, "one group", "'only'")


def test_what_was_read_is_said(adata, h5ad, tmp_path):
    adata[:, 20:].copy().write_h5ad(tmp_path / "other.h5ad")
    result = scdd_command(
        "distill", h5ad, tmp_path / "other.h5ad", "-l", "cell_type", "-o", tmp_path / "distilled.h5ad", *RULE
    )
    assert "read X of atlas.h5ad as counts" in result.stdout
    assert "share 40 genes; 20 others are left out" in result.stdout


def test_importing_scdd_is_light():
    code = (
        "import sys, time; t = time.perf_counter(); import scdd; "
        "print(time.perf_counter() - t, 'torch' in sys.modules)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    seconds, torch = zip(*(run.stdout.split() for run in runs), strict=True)
    assert set(torch) == {"False"}
    assert min(map(float, seconds)) < 0.3
    assert set(scdd.__all__) >= {"Atlas", "distill", "evaluate", "SCDG"}
    assert all(getattr(scdd, name) is not None for name in scdd.__all__)


def test_scanpy_runs_on_a_distilled_set(h5ad, tmp_path):
    sc = pytest.importorskip("scanpy")
    out = tmp_path / "distilled.h5ad"
    assert distil(h5ad, out, "--cells-per-class", 12).returncode == 0
    made = sc.read_h5ad(out)
    sc.pp.pca(made, n_comps=10)
    sc.pp.neighbors(made, n_neighbors=5)
    sc.tl.umap(made)
    assert np.isfinite(made.obsm["X_umap"]).all()
