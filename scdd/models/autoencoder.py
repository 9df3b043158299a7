"""Autoencoder of expression profiles: the latent space that codes live in."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from scdd.data.atlas import Atlas
from scdd.data.loader import CellLoader
from scdd.data.preprocess import Preprocessor
from scdd.data.statistics.moments import column_moments
from scdd.errors import InputError
from scdd.models.base import Model
from scdd.models.config import AutoencoderConfig
from scdd.models.validation import HeldOutCells, hold_out
from scdd.nn.autoencoder import AutoencoderNet
from scdd.nn.heads import Observed
from scdd.train.checkpoint import identifying
from scdd.train.loop import TrainConfig, train

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from scdd.data.loading.batch import CellBatch

_BLOCK = 4_096


class Autoencoder(Model):
    """MLP autoencoder with standardised latents, trained on an atlas.

    Parameters
    ----------
    atlas
        Training cells (an :class:`scdd.Atlas`, AnnData or path).
    label_key
        Column of ``obs`` whose classes the codes should keep apart; none: unsupervised.
    preprocessor
        Genes and scale; fitted on ``atlas`` if absent.
    config, **changes
        An :class:`AutoencoderConfig`, or single settings of it.

    Notes
    -----
    The Gaussian head reads and writes log1p CP10k; the ``"nb"`` head models raw counts and needs them.
    After training the latents are standardised per dimension with the training cells' mean and standard
    deviation: unit noise would swamp anything smaller.
    """

    def __init__(
        self,
        atlas: Any = None,
        *,
        label_key: str | None = None,
        preprocessor: Preprocessor | None = None,
        config: AutoencoderConfig | None = None,
        **changes: Any,
    ):
        self.config = replace(config or AutoencoderConfig(), **changes)
        self.history: list[dict[str, float]] = []
        self.classes = 0
        if atlas is None:
            return
        self.atlas = Atlas.of(atlas).within_memory()
        if self.config.head == "nb" and self.atlas.expression != "counts":
            raise InputError(
                f"head='nb' models counts and {self.atlas.name} holds {self.atlas.expression}; "
                "pass head='gaussian'"
            )
        fit = {"n_top_genes": self.config.n_top_genes, "flavor": self.config.flavor}
        self.preprocessor = preprocessor or Preprocessor.fit(self.atlas, **fit)  # type: ignore[arg-type]
        self.labels: torch.Tensor | None = None
        self._strata: np.ndarray | None = None
        if label_key is not None:
            self._strata, names = self.atlas.labels(label_key)
            if self.config.label_weight > 0:
                self.labels, self.classes = torch.from_numpy(self._strata), len(names)
        self.net = self._build()

    def _build(self) -> AutoencoderNet:
        torch.manual_seed(self.config.seed)
        c = self.config
        return AutoencoderNet(
            self.preprocessor.n_genes,
            c.latent,
            c.hidden,
            head=c.head,
            dropout=c.dropout,
            kl_weight=c.kl_weight,
            classes=self.classes,
            label_weight=c.label_weight,
        )

    def fit(
        self, *, checkpoint: str | Path | None = None, log: str | Path | None = None, progress: bool = True
    ) -> Self:
        """Train, then measure the latents' mean and standard deviation in one pass.

        With ``checkpoint`` (a file) a run continues where it was; ``log`` is a .csv file or a folder.
        """
        c = self.config
        self.net.requires_grad_(True)
        self._start_from_data()
        torch.manual_seed(c.seed)
        parts = hold_out(self.atlas.n_obs, c.validation, codes=self._strata, seed=c.seed)
        loader = self.loader(self.atlas, batch_size=c.batch_size, rows=parts.train, shuffle=True, seed=c.seed)
        settings = TrainConfig(
            steps=c.steps, batch_size=c.batch_size, lr=c.lr, device=c.device, precision=c.precision,
            seed=c.seed, ema=0.99, validate_every=c.validate_every, patience=c.patience,
            min_delta=c.min_delta, compile=c.compile,
        )  # fmt: skip
        net, self.history = train(
            self.net, "loss", loader, settings,
            label="autoencoder", prepare=self._with_label,
            validation=self.held_out(parts.validation, c.batch_size, self._with_label),
            checkpoint=None if checkpoint is None else Path(checkpoint),
            identity=self._identity(), log=None if log is None else Path(log), progress=progress,
        )  # fmt: skip
        self.net = net  # type: ignore[assignment]
        self._standardise_latents()
        self.net.requires_grad_(False)
        self.fitted = True
        return self

    def held_out(
        self, rows: np.ndarray | None, batch_size: int, prepare: Callable[[CellBatch], Any]
    ) -> HeldOutCells | None:
        """The validation cells ``rows`` of the atlas as this model wants them; held in memory."""
        if rows is None:
            return None
        cells = self.atlas.subset(rows).within_memory()
        return HeldOutCells(self.loader(cells, batch_size=batch_size, shuffle=False), rows, prepare)

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with: settings, genes, cells and labels."""
        labels = b"" if self.labels is None else self.labels.numpy().tobytes()
        return {
            "model": identifying(asdict(self.config)),
            "genes": hashlib.sha256("\n".join(self.preprocessor.genes).encode()).hexdigest(),
            "atlas": self.atlas.fingerprint(),
            "labels": hashlib.sha256(labels).hexdigest(),
        }

    def _with_label(self, batch: CellBatch) -> Observed:
        label = None if self.labels is None else self.labels[torch.from_numpy(batch.row_ids)]
        return observed(batch)._replace(label=label)

    def _start_from_data(self) -> None:
        p = self.preprocessor
        if p.mean is None or p.std is None:
            raise InputError("preprocessor= has no scale; make it with Preprocessor.fit, not of_genes")
        self.net.gene_mean.copy_(torch.from_numpy(p.mean))
        self.net.gene_std.copy_(torch.from_numpy(p.std))
        # of the share that a gene has of a cell's counts, where they are counts
        moments = column_moments(self.atlas, target_sum=1.0 if p.log1p else 0.0)
        where = self.atlas.var_names.astype(str).get_indexer(p.genes)
        if (where < 0).any():
            raise InputError(
                f"preprocessor= names genes that {self.atlas.name} lacks, e.g. {p.genes[where < 0][0]!r}"
            )
        detected = torch.from_numpy(moments.nonzero[where] / moments.n).float()
        share = torch.from_numpy(moments.mean[where]).float()
        self.net.head.start_from(torch.from_numpy(p.mean), detected, share)

    def loader(self, atlas: Atlas, **options: Any) -> CellLoader:
        """Batches of an atlas as this model wants them."""
        counts = self.config.head == "nb"
        # A last batch of one cell has no variance for batch norm; partial batches are dropped in training.
        rows = options.get("rows")
        small = options["batch_size"] > (atlas.n_obs if rows is None else len(rows))
        drop = options.get("shuffle", False) and not small
        return CellLoader(atlas, preprocessor=self.preprocessor, counts=counts, drop_last=drop, **options)

    @torch.no_grad()
    def _standardise_latents(self) -> None:
        total, square, n = torch.zeros(()), torch.zeros(()), 0
        for x in self._expression(self.atlas):
            z = self.net.encode_raw(x).double()
            total, square, n = total + z.sum(0), square + z.square().sum(0), n + len(z)
        mean = total / n
        # of draws from q(z | x): dimensions that the decoder does not use are all posterior
        variance = (square / n - mean**2).clamp_min(1e-8) + self.net.posterior_spread.double().square()
        std = variance.sqrt()
        self.net.latent_mean.copy_(mean)
        self.net.latent_std.copy_(std)

    def _expression(self, atlas: Atlas, rows: np.ndarray | None = None) -> Iterator[Tensor]:
        rows = np.arange(atlas.n_obs) if rows is None else rows
        for start in range(0, len(rows), _BLOCK):
            yield torch.from_numpy(self.preprocessor.transform(atlas, rows[start : start + _BLOCK]))

    @torch.no_grad()
    def encode(self, cells: Any, rows: np.ndarray | None = None) -> np.ndarray:
        """Standardised codes float32 [n, d] of an atlas or AnnData."""
        self._require_fit()
        atlas = Atlas.of(cells, expression=self.preprocessor.expression)
        return np.concatenate([self.net.encode(x).numpy() for x in self._expression(atlas, rows)])

    @torch.no_grad()
    def decode(self, codes: np.ndarray, totals: np.ndarray | float = 1e4) -> np.ndarray:
        """Expected log1p CP10k float32 [n, G] of standardised codes, never negative."""
        self._require_fit()
        z = torch.as_tensor(codes, dtype=torch.float32)
        size = torch.as_tensor(totals, dtype=torch.float32).expand(len(z))
        return self.net.decode(z, size).clamp_min(0).numpy()

    def _config(self) -> dict[str, Any]:
        return {
            "config": asdict(self.config),
            "classes": self.classes,
            "preprocessor": self.preprocessor.to_dict(),
        }

    def _tensors(self) -> dict[str, Tensor]:
        return self.net.state_dict()

    @classmethod
    def _rebuild(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        model = cls(config=AutoencoderConfig(**config["config"]))
        model.classes = config["classes"]
        model.preprocessor = rebuild_preprocessor(
            config["preprocessor"], tensors["gene_mean"], tensors["gene_std"]
        )
        model.net = model._build()
        model.net.load_state_dict(tensors)
        model.net.eval().requires_grad_(False)
        return model


def observed(batch: CellBatch) -> Observed:
    """A loader's batch as the tensors a head is trained on."""
    counts = None if batch.counts is None else torch.from_numpy(batch.counts)
    return Observed(torch.from_numpy(batch.x), counts, torch.from_numpy(batch.totals).float())


def rebuild_preprocessor(state: dict[str, Any], mean: Tensor, std: Tensor) -> Preprocessor:
    """A preprocessor from its saved genes and the scale stored among the weights."""
    import pandas as pd

    return Preprocessor(
        pd.Index(state["genes"]), state["expression"], state["target_sum"], mean.numpy(), std.numpy(),
        state.get("file_genes"),
    )  # fmt: skip
