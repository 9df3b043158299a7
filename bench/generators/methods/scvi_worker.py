"""Trains scVI and samples it: run by the interpreter of an environment with scvi-tools, knows nothing of scdd.

One argument, JSON: paths of train.h5ad, labels.json, made.h5ad; label, seed, code, settings, models.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from scipy import sparse

BLOCK = 512


def main() -> None:
    job = json.loads(sys.argv[1])
    labels = np.array(json.loads(Path(job["labels.json"]).read_text()))
    train = anndata.read_h5ad(job["train.h5ad"])
    # Lightning talks on stdout, whose last line is ours.
    with contextlib.redirect_stdout(sys.stderr):
        model, seconds, note = trained(train, job)
        start = time.perf_counter()
        x = sampled(model, train, labels, job["label"], job["code"], job["seed"])
    anndata.AnnData(x, var=pd.DataFrame(index=train.var_names)).write_h5ad(job["made.h5ad"])
    generate = time.perf_counter() - start
    print(json.dumps({"train_seconds": seconds, "generate_seconds": generate, "note": note}))


def trained(train, job: dict):
    """A model trained before with the same settings, or a new one; with its training time."""
    import scvi

    scvi.settings.seed = job["seed"]
    settings = {"n_latent": 30, "n_layers": 2, "gene_likelihood": "nb", "cell_passes": 240_000} | job[
        "settings"
    ]
    epochs = int(min(400, max(20, settings.pop("cell_passes") // train.n_obs)))
    key = hashlib.sha256(json.dumps([job["seed"], settings, epochs, train.shape], sort_keys=True).encode())
    folder = Path(job["models"]) / key.hexdigest()[:12]
    scvi.model.SCVI.setup_anndata(train, batch_key=job["label"])
    if (folder / "seconds.json").exists():
        model = scvi.model.SCVI.load(folder, adata=train)
        return model, *json.loads((folder / "seconds.json").read_text())
    start = time.perf_counter()
    # The class is a covariate of encoder and decoder, so that the code need not hold it.
    model = scvi.model.SCVI(train, encode_covariates=True, **settings)
    model.train(
        max_epochs=epochs, accelerator="cpu", enable_progress_bar=False, early_stopping=True,
        # Its 400 epochs of warm-up would leave a model of fewer epochs with next to no prior.
        plan_kwargs={"n_epochs_kl_warmup": max(1, epochs // 4)}, logger=False, enable_checkpointing=False,
    )  # fmt: skip
    passed = len(model.history["train_loss_epoch"]) if model.history else epochs
    said = time.perf_counter() - start, f"scvi-tools {scvi.__version__}, {passed} epochs"
    model.save(folder, overwrite=True)
    (folder / "seconds.json").write_text(json.dumps(said))
    return model, *said


@torch.inference_mode()
def sampled(model, train, labels: np.ndarray, label: str, code: str, seed: int) -> sparse.csr_matrix:
    """Counts of cells of the asked classes."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    own, library = train.obs[label].to_numpy().astype(str), np.asarray(train.X.sum(1)).ravel()
    names = list(model.adata_manager.get_state_registry("batch").categorical_mapping)
    batch = torch.tensor([names.index(name) for name in labels])[:, None]
    mean, variance = model.get_latent_representation(return_dist=True)
    z = np.empty((len(labels), mean.shape[1]), dtype=np.float32)
    totals = np.empty(len(labels), dtype=np.float32)
    for name in np.unique(labels):
        places, members = np.flatnonzero(labels == name), np.flatnonzero(own == name)
        picked = np.resize(rng.permutation(members), len(places))
        totals[places] = library[picked if code == "posterior" else rng.choice(members, len(places))]
        z[places] = codes(code, mean[members], variance[members], (mean[picked], variance[picked]), rng)
    blocks = []
    for start in range(0, len(labels), BLOCK):
        part = slice(start, start + BLOCK)
        size = torch.from_numpy(totals[part])[:, None].log()
        px = model.module.generative(torch.from_numpy(z[part]), size, batch[part])["px"]
        blocks.append(sparse.csr_matrix(px.sample().numpy()))
    return sparse.vstack(blocks, format="csr")


def codes(code: str, mean, variance, picked, rng) -> np.ndarray:
    """Codes of one class from the prior, from a Gaussian over its posteriors, or from those of train cells."""
    shape = picked[0].shape
    if code == "prior":
        return rng.standard_normal(shape)
    if code == "posterior":
        return picked[0] + np.sqrt(picked[1]) * rng.standard_normal(shape)
    spread = np.diag(variance.mean(0)) + (np.cov(mean.T) if len(mean) > 1 else 0.0)
    return rng.multivariate_normal(mean.mean(0), spread, size=shape[0], method="eigh")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    main()
