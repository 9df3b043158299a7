"""Diffusion transformers on expression profiles: scRDiT and the White-Box Diffusion Transformer."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch

from scdd.data.atlas import Atlas
from scdd.data.loader import CellLoader
from scdd.data.preprocess import Preprocessor
from scdd.data.statistics.moments import column_moments
from scdd.errors import InputError
from scdd.models.autoencoder import rebuild_preprocessor
from scdd.models.cell_code import CellCode, to_counts
from scdd.models.class_profiles import ClassProfiles, spread_within
from scdd.models.conditions import Conditions
from scdd.models.gene_order import correlation_order
from scdd.models.generation import CellGenerator, check_eta, check_guidance, check_sampler, check_steps
from scdd.models.interpretation import TokenForm, interpret
from scdd.models.library_sizes import LibrarySizes
from scdd.models.transformer_config import TransformerConfig, resolve
from scdd.models.transformer_net import CellsToLearn, TransformerDiffusion
from scdd.models.validation import HeldOutCells, hold_out
from scdd.models.white_box_variants import variant_of, variant_switches
from scdd.train.checkpoint import identifying
from scdd.train.loop import TrainConfig, train

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from scdd.data.loading.batch import CellBatch
    from scdd.models.interpretation_result import Interpretation

_BLOCK = 512
# cells that the linear denoiser is fitted on
_SAMPLE = 4_096


class DiffusionTransformer(CellGenerator):
    """Generate cells gene by gene with a diffusion transformer (scRDiT: Dong et al. 2024), conditionally.

    Cells are cut into patches of genes, noised, and denoised by adaLN-Zero blocks. Beyond the publication:
    any ``obs`` columns as conditions with classifier-free guidance, any genes, library sizes and zeros
    modelled, so that samples are counts; DDPM, DDIM, DPM-Solver++ and flow samplers.

    Parameters
    ----------
    atlas
        Training cells (an :class:`scdd.Atlas`, AnnData or path).
    label_key
        The ``obs`` column whose classes matter most; it is always a condition.
    conditions
        Further ``obs`` columns to condition on; numeric ones (age, dose) are taken as numbers, with NaN for
        a cell where none is known.
    categorical
        Those of ``conditions`` that are categories though their values are numbers.
    preset, config, **changes
        ``"default"`` or ``"published"``, or a :class:`TransformerConfig`; single settings by name.
    """

    kind: ClassVar[str] = "attention"

    def __init__(
        self,
        atlas: Any = None,
        *,
        label_key: str = "cell_type",
        conditions: Sequence[str] = (),
        categorical: Sequence[str] = (),
        preset: str = "default",
        config: TransformerConfig | None = None,
        preprocessor: Preprocessor | None = None,
        **changes: Any,
    ):
        if config is not None and changes:
            raise InputError(f"{next(iter(changes))}= is ignored beside config=; change the config itself")
        self.config = config or resolve(self.kind, preset, changes)
        self.label_key = label_key
        self.history: list[dict[str, float]] = []
        self.trained_on = ""
        if atlas is None:
            return
        c = self.config
        self.atlas = Atlas.of(atlas).within_memory()
        if c.library and self.atlas.expression != "counts":
            raise InputError(
                f"library=True makes counts and {self.atlas.name} holds {self.atlas.expression}; "
                "pass library=False, or counts"
            )
        self.conditions = Conditions.fit(self.atlas, [label_key, *conditions], categorical=categorical)
        fit = {"n_top_genes": c.n_top_genes, "flavor": c.flavor}
        self.preprocessor = preprocessor or Preprocessor.fit(self.atlas, **fit)  # type: ignore[arg-type]
        genes = self.preprocessor.n_genes
        self.order = np.arange(genes)
        if c.order == "correlation":
            self.order = correlation_order(self.atlas, self.preprocessor, seed=c.seed)

    def fit(
        self, *, checkpoint: str | Path | None = None, log: str | Path | None = None, progress: bool = True
    ) -> Self:
        """Train, and keep the best moving average.

        Parameters
        ----------
        checkpoint
            A file; a run that was interrupted or diverged continues from it.
        log
            A .csv file, or a folder for a CSV file and TensorBoard's events.
        """
        from pathlib import Path

        c = self.config
        self._measure()
        torch.manual_seed(c.seed)
        net = self._build()
        self._start_from_data(net)
        parts = hold_out(self.atlas.n_obs, c.validation, codes=self._codes[:, 0].numpy(), seed=c.seed)
        n = self.atlas.n_obs if parts.train is None else len(parts.train)
        loader = self._loader(
            self.atlas, rows=parts.train, shuffle=True, seed=c.seed + 1, drop_last=c.batch_size <= n
        )
        settings = TrainConfig(
            steps=c.steps, batch_size=c.batch_size, lr=c.lr, weight_decay=c.weight_decay, ema=c.ema,
            device=c.device, precision=c.precision, seed=c.seed, validate_every=c.validate_every,
            patience=c.patience, min_delta=c.min_delta, compile=c.compile,
        )  # fmt: skip
        trained, self.history = train(
            net, "loss", loader, settings, label=type(self).__name__, prepare=self._to_learn,
            validation=self._held_out(parts.validation),
            checkpoint=None if checkpoint is None else Path(checkpoint), identity=self._identity(),
            log=None if log is None else Path(log), progress=progress,
        )  # fmt: skip
        assert isinstance(trained, TransformerDiffusion)
        self.net = trained.requires_grad_(False)
        self.trained_on = self.atlas.fingerprint()
        self.fitted = True
        return self

    def _start_from_data(self, net: TransformerDiffusion) -> None:
        """Class means, their linear denoiser and shares of counts, where counts are modelled."""
        start, head, seed = net.net.start, net.net.counts, self.config.seed
        if start is None or head is None:
            return
        label = self._codes[:, 0].numpy()
        head.start_from(self.profiles.log_share(self.order))
        start.anchor.copy_(self.profiles.anchors(self.code, self.order))
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.permutation(self.atlas.n_obs)[:_SAMPLE])
        v = torch.from_numpy(self.preprocessor.transform(self.atlas, rows))[:, self.order]
        mixed = rng.permutation(len(rows))
        coded, label = self.code.encode(v)[mixed], label[rows][mixed]
        found = spread_within(coded, start.anchor, label, start.basis.shape[1])
        for buffer, values in zip((start.basis, start.spread, start.rest), found, strict=True):
            buffer[..., : values.shape[-1]] = values

    def _loader(self, atlas: Atlas, **options: Any) -> CellLoader:
        batch_size = self.config.batch_size
        counts = self.config.zeros == "counts"
        return CellLoader(
            atlas, preprocessor=self.preprocessor, batch_size=batch_size, counts=counts, **options
        )

    def _held_out(self, rows: np.ndarray | None) -> HeldOutCells | None:
        if rows is None:
            return None
        cells = self.atlas.subset(rows).within_memory()
        return HeldOutCells(self._loader(cells, shuffle=False), rows, self._to_learn)

    def _build(self) -> TransformerDiffusion:
        return TransformerDiffusion(
            self.preprocessor.n_genes, self.config,
            conditions=self.conditions.sizes, numbers=int(self.config.library),
        )  # fmt: skip

    def _measure(self) -> None:
        """What must be known of all training cells: zeros, library sizes, codes of conditions."""
        self._codes = torch.from_numpy(self.conditions.codes_of(self.atlas))
        totals = [np.asarray(block.sum(1)).ravel() for _, block in self.atlas.blocks()]
        sizes = torch.from_numpy(np.concatenate(totals))
        self.library = LibrarySizes.fit(sizes, self._codes[:, 0], self.conditions.sizes[0])
        p = self.preprocessor
        if self.config.zeros == "counts":
            assert p.mean is not None, "the preprocessor was fitted"
            assert p.std is not None, "the preprocessor was fitted"
            self.code = CellCode.of_genes(p.mean[self.order], p.std[self.order])
            label, classes = self._codes[:, 0].numpy(), self.conditions.sizes[0]
            self.profiles = ClassProfiles.fit(self.atlas, p, label, classes)
            return
        moments = column_moments(self.atlas)
        where = self.atlas.var_names.astype(str).get_indexer(p.genes)
        self.code = CellCode.fit(self.config.zeros, p, torch.from_numpy(moments.nonzero[where] / moments.n))

    def _to_learn(self, batch: CellBatch) -> CellsToLearn:
        v = torch.from_numpy(batch.x)[:, self.order]
        totals = torch.from_numpy(batch.totals).float()
        counts = None if batch.counts is None else torch.from_numpy(batch.counts)[:, self.order]
        codes = self._codes[torch.from_numpy(batch.row_ids)]
        return CellsToLearn(self.code.encode(v), v == 0, codes, self._numbers(totals), counts, totals)

    def _numbers(self, totals: Tensor) -> Tensor:
        """Numbers that condition a cell, [B, 1] or [B, 0]."""
        if not self.config.library:
            return torch.empty(len(totals), 0)
        mean, spread = self.library.moments
        return ((totals.clamp_min(1).log() - mean) / spread)[:, None]

    def _identity(self) -> dict[str, Any]:
        conditions = json.dumps(self.conditions.to_dict(), sort_keys=True)
        return {
            "model": identifying(self.config.to_dict()),
            "genes": hashlib.sha256("\n".join(self.preprocessor.genes[self.order]).encode()).hexdigest(),
            "atlas": self.atlas.fingerprint(),
            "conditions": hashlib.sha256(conditions.encode()).hexdigest(),
        }

    _block = _BLOCK

    @property
    def _makes(self) -> str:
        return "counts" if self.config.library else "log1p"

    def _how(
        self, steps: int | None, guidance: float | None, sampler: str | None, eta: float
    ) -> dict[str, Any]:
        c = self.config
        return {
            "sampler": check_sampler(sampler, c.sampler),
            # where counts are drawn from noised cells, there are no times below `last`
            "steps": check_steps(steps, c.sampling_steps, c.timesteps - self.net.last),
            "eta": check_eta(eta),
            "guidance": check_guidance(guidance, c.guidance),
        }

    def _draw_totals(self, fields: Tensor, generator: torch.Generator) -> Tensor:
        return self.library.sample(fields[:, 0], generator)

    def _draw_block(self, fields: Tensor, totals: Tensor, generator: torch.Generator, **how: Any) -> Tensor:
        noise = torch.randn(len(fields), self.preprocessor.n_genes, generator=generator)
        seed = int(torch.randint(2**31, (), generator=generator))
        drawn = self.net.draw(fields, self._numbers(totals), noise, seed=seed, **how)
        x = torch.empty_like(drawn.x0)
        if self.config.zeros == "counts":
            # a guidance of -1 ignores the conditions, and so must what is read off in the end
            known = torch.full_like(fields, -1) if how["guidance"] == -1 else fields
            x[:, self.order] = self.net.draw_counts(drawn.x0, known, totals, generator)
            return x
        v = self.code.decode(drawn.x0, drawn.zero_logit, generator)
        x[:, self.order] = to_counts(v, totals) if self.config.library else v
        return x

    def _config(self) -> dict[str, Any]:
        return {
            "config": self.config.to_dict(),
            "label_key": self.label_key,
            "trained_on": self.trained_on,
            "conditions": self.conditions.to_dict(),
            "preprocessor": self.preprocessor.to_dict(),
            "code": self.code.to_dict(),
        }

    def _tensors(self) -> dict[str, Tensor]:
        p = self.preprocessor
        scale = {"gene_mean": torch.from_numpy(p.mean), "gene_std": torch.from_numpy(p.std)}
        rest = {"order": torch.from_numpy(self.order), "log_total": self.library.log_total, **scale}
        return {**{f"net.{name}": value for name, value in self.net.state_dict().items()}, **rest}

    @classmethod
    def _rebuild(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        model = cls(label_key=config["label_key"], config=TransformerConfig(**config["config"]))
        model.conditions = Conditions.from_dict(config["conditions"])
        model.trained_on = config["trained_on"]
        scale = tensors["gene_mean"], tensors["gene_std"]
        model.preprocessor = rebuild_preprocessor(config["preprocessor"], *scale)
        model.order, model.code = tensors["order"].numpy(), CellCode(**config["code"])
        if model.code.kind == "counts":
            model.code = CellCode.of_genes(*(values.numpy()[model.order] for values in scale))
        model.library = LibrarySizes(tensors["log_total"])
        model.net = model._build()
        weights = {k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")}
        model.net.load_state_dict(weights)
        model.net.eval().requires_grad_(False)
        return model


class WhiteBoxDiffusionTransformer(DiffusionTransformer):
    """The same on CRATE blocks, which compress tokens into subspaces and sparsify them (WBDiT, 2025).

    See :class:`DiffusionTransformer` for the rest.

    Parameters
    ----------
    variant
        What the blocks are, by one name of ``scdd.models.white_box_variants.VARIANTS``: default, published,
        signed_gates, positive_gates, tied, residual_free, derived, alpha, token_statistics, tost. Left out,
        the preset decides. It sets ``mixer``, ``token_map``, ``tied``, ``residual``, ``learned_threshold``
        and ``positive_gates``, each of which may still be given beside it.
    """

    kind: ClassVar[str] = "white_box"

    def __init__(self, atlas: Any = None, *, variant: str | None = None, **settings: Any):
        if variant is not None:
            if settings.get("config") is not None:
                raise InputError(f"variant={variant!r} is ignored beside config=; change its shape itself")
            settings = variant_switches(variant) | settings
        super().__init__(atlas, **settings)

    @property
    def variant(self) -> str:
        """The name of what the blocks are, or ``"custom"``."""
        return variant_of(self.config.shape)

    def _config(self) -> dict[str, Any]:
        return super()._config() | {"variant": self.variant}

    def interpret(
        self,
        cells: Any,
        *,
        n_times: int = 8,
        max_cells: int = 256,
        epsilon: float = 0.1,
        tokens: TokenForm = "normalised",
        seed: int = 0,
    ) -> Interpretation:
        """Coding rate before and after each layer, sparsity, gates and orthogonality, over diffusion time.

        Parameters
        ----------
        cells
            Labelled cells (AnnData, path or Atlas) with the conditions of the model; up to ``max_cells`` are
            drawn. Genes are found by name.
        n_times
            Diffusion times, evenly spaced.
        epsilon
            The paper's precision, which enters squared. CRATE's code writes 0.01 where the paper has
            ``epsilon^2``: that is 0.1 here.
        tokens
            ``"normalised"``, as CRATE's code measures: behind the norm and the modulation that the layer's
            attention looks through, each token scaled to length one in each head. Blind to a shrinking of
            all tokens alike. ``"raw"``: the paper's formula on the stream as it is, which sees it.
        """
        self._require_fit()
        for name, value in (("n_times", n_times), ("max_cells", max_cells)):
            if value < 1:
                raise InputError(f"{name}={value}; it must be at least 1")
        if not hasattr(self.net.net.blocks[0].mixer, "project"):
            raise InputError(f"mixer={self.config.shape.mixer!r} has no subspaces; interpret a white box")
        atlas = Atlas.of(cells, expression=self.preprocessor.expression)
        rows = np.sort(np.random.default_rng(seed).permutation(atlas.n_obs)[:max_cells])
        steps = self.net.schedule.steps
        first = max(self.net.last, steps / n_times)  # before `last` nothing was trained
        times = np.unique(np.linspace(first, steps, n_times).round().astype(int)).tolist()
        known = self._known_cells(atlas, rows)
        return interpret(self.net, known, times, seed=seed, epsilon=epsilon, tokens=tokens)

    def _known_cells(self, atlas: Atlas, rows: np.ndarray) -> CellsToLearn:
        v = torch.from_numpy(self.preprocessor.transform(atlas, rows))[:, self.order]
        table = {name: atlas.column(name).iloc[rows] for name in self.conditions.names}
        totals = torch.from_numpy(np.asarray(atlas.read(rows).sum(1)).ravel()).float()
        codes = torch.from_numpy(self.conditions.encode(table, len(rows)))
        return CellsToLearn(self.code.encode(v), v == 0, codes, self._numbers(totals))
