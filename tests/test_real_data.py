"""The whole way on real cells: pbmc3k, kang (donors held out) and haber. Needs SCDD_DATA."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

import scdd

SETS = {
    "pbmc3k": ("pbmc3k.h5ad", {"label_key": "cell_type"}),
    "kang": ("kang_pbmc_ctrl_8donors.h5ad", {"by": "batch", "test": ["donor_1015", "donor_101"]}),
    "haber": ("mouse_intestine_haber.h5ad", {"label_key": "cell_type"}),
}
QUICK = {"autoencoder_steps": 250, "steps": 300, "classifier_steps": 100, "device": "cpu"}

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", SETS)
def test_distilled_cells_beat_stratified_random(real_data, name):
    """Logistic regression on held-out cells, 1 and 10 rows a class, a generator trained for seconds."""
    file, split = SETS[name]
    train, test = scdd.Atlas(real_data / file).split(**split)
    if name == "kang":
        assert not set(train.obs["batch"]) & {"donor_1015", "donor_101"}
        assert set(test.obs["batch"].astype(str)) == {"donor_1015", "donor_101"}
    p = scdd.Preprocessor.fit(train, n_top_genes=400)
    model = scdd.SCDG(train, label_key="cell_type", preprocessor=p, **QUICK).fit(progress=False)
    x, y = p.transform(test), test.obs["cell_type"].astype(str)

    def score(k, **options):
        made = scdd.distill(train, label_key="cell_type", cells_per_class=k, progress=False, **options)
        fit = LogisticRegression(max_iter=300).fit(np.asarray(made.X), made.obs["cell_type"].astype(str))
        return f1_score(y, fit.predict(x), average="macro")

    for k in (1, 10):
        random = np.mean([score(k, method="random", genes=p.genes, seed=s) for s in range(4)])
        ours = score(k, generator=model, matching={"iterations": 60})
        assert ours > random, f"{name}, {k} a class"


def test_the_command_of_the_readme(real_data, tmp_path):
    """From file to distilled set and report, then scanpy from PCA to UMAP."""
    sc = pytest.importorskip("scanpy")
    out, report = tmp_path / "d.h5ad", tmp_path / "r.html"
    command = ["distill", real_data / "pbmc3k.h5ad", "--label", "cell_type", "--cells-per-class", 10]
    command += ["-o", out, "--report", report, "--seeds", 2, "--genes", 500]
    run = subprocess.run(
        [sys.executable, "-m", "scdd.cli", *map(str, command)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    made = sc.read_h5ad(out)
    assert made.shape == (90, 500)
    sc.pp.pca(made)
    sc.pp.neighbors(made)
    sc.tl.umap(made)
    assert np.isfinite(made.obsm["X_umap"]).all()
    assert "<html" in report.read_text()
