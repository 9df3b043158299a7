"""SCDG: the single-step conditional diffusion generator, trained on an atlas."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from scipy import sparse

from scdd.data.atlas import Atlas
from scdd.errors import InputError
from scdd.models.autoencoder import Autoencoder, observed, rebuild_preprocessor
from scdd.models.conditions import Conditions
from scdd.models.config import SCDGConfig, resolve_config
from scdd.models.generation import CellGenerator, check_guidance, check_steps
from scdd.models.priors import ClassPriors
from scdd.models.scdg_net import Conditioned, LatentBatch, QualityWeights, SCDGNet
from scdd.models.student import train_student
from scdd.models.validation import Parts, hold_out
from scdd.nn.heads import NegativeBinomialHead
from scdd.train.checkpoint import identifying
from scdd.train.loop import TrainConfig, train

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from scdd.data.loading.batch import CellBatch
    from scdd.data.preprocess import Preprocessor

_BLOCK = 4_096


class SCDG(CellGenerator):
    """Generate labelled cells in one network call, from codes that can be optimised.

    Parameters
    ----------
    atlas
        Training cells (an :class:`scdd.Atlas`, AnnData or path).
    label_key
        The ``obs`` column whose classes matter most; it is always a condition.
    conditions
        Further ``obs`` columns (disease, tissue, donor ...) to condition on; numeric ones (age, dose) are
        taken as numbers, with NaN for a cell where none is known.
    categorical
        Those of ``conditions`` that are categories though their values are numbers.
    preset, config, **changes
        ``"fast"`` (for distillation), ``"counts"`` (to generate), ``"quality"`` or ``"faithful"``, or an
        :class:`SCDGConfig`; single settings by name.

    Notes
    -----
    Two readings of "single step" are built in. ``objective="code_then_noise"`` (default): a code lies in
    clean latent space, is noised to ``t_star`` and denoised in one call. The others: the code is the initial
    noise, and the network is trained as a one-step map, by ``"mean_flow"``, by ``"consistency"``, or as a
    student ``"distilled"`` from the denoiser (which ``steps > 1`` then samples). A plain denoiser read at
    t = T would return the class mean whatever the code.

    Reconstructed from the abstract of scDD (arXiv 2503.04357) and its building blocks.
    """

    def __init__(
        self,
        atlas: Any = None,
        *,
        label_key: str = "cell_type",
        conditions: Sequence[str] = (),
        categorical: Sequence[str] = (),
        preset: str = "fast",
        config: SCDGConfig | None = None,
        preprocessor: Preprocessor | None = None,
        autoencoder: Autoencoder | None = None,
        **changes: Any,
    ):
        if config is not None and changes:
            raise InputError(f"{next(iter(changes))}= is ignored beside config=; change the config itself")
        self.config = config or resolve_config(preset, changes)
        self.label_key = label_key
        self.history: dict[str, list[dict[str, float]]] = {}
        self.trained_on = ""
        if atlas is None:
            return
        self.atlas = Atlas.of(atlas).within_memory()
        self.conditions = Conditions.fit(self.atlas, [label_key, *conditions], categorical=categorical)
        if len(self.conditions.values[0]) < 2:
            raise InputError(f"obs[{label_key!r}] has one class; a class-conditional generator needs two")
        self.autoencoder = autoencoder or Autoencoder(
            self.atlas, label_key=label_key, config=self.config.autoencoder, preprocessor=preprocessor
        )
        # A given autoencoder brings its own settings, and they are what must be saved.
        self.config = replace(self.config, autoencoder=self.autoencoder.config)
        self.preprocessor = self.autoencoder.preprocessor

    def _build(self) -> SCDGNet:
        c = self.config
        torch.manual_seed(c.seed)
        return SCDGNet(
            self.autoencoder.net,
            self.autoencoder.config.latent,
            self.conditions.sizes,
            width=c.width,
            depth=c.depth,
            timesteps=c.timesteps,
            objective=c.objective,
            parameterisation=c.parameterisation,
            condition_dropout=c.condition_dropout,
            quality=QualityWeights(c.weight_latent, c.weight_expression, c.weight_classifier),
            steps=c.steps,
            grid=c.consistency_grid,
        )

    def fit(
        self, *, checkpoint: str | Path | None = None, log: str | Path | None = None, progress: bool = True
    ) -> Self:
        """Train autoencoder, judge, denoiser and (``distilled``) student in turn; keep moving averages.

        With ``checkpoint`` (a folder) an interrupted run continues where it was, to the same numbers. ``log``
        is a folder, for a CSV file of each stage and TensorBoard's events.
        """
        if log is not None and Path(log).suffix == ".csv":
            raise InputError(f"log={str(log)!r}: SCDG is trained in stages; name a folder")
        places = {name: None if checkpoint is None else Path(checkpoint) / f"{name}.pt" for name in _STAGES}
        if not self.autoencoder.fitted:
            self.autoencoder.fit(checkpoint=places["autoencoder"], log=log, progress=progress)
        self.history["autoencoder"] = self.autoencoder.history
        self.net = self._build()
        c = self.config
        fields = torch.from_numpy(self.conditions.codes_of(self.atlas))
        codes, totals = self._encode_atlas()

        def judged(batch: CellBatch) -> Conditioned:
            return Conditioned(observed(batch), fields[torch.from_numpy(batch.row_ids)])

        parts = hold_out(len(codes), c.validation, codes=fields[:, 0].numpy(), seed=c.seed)

        def encoded(pool: np.ndarray | None) -> Callable[[CellBatch], LatentBatch]:
            def prepare(batch: CellBatch) -> LatentBatch:
                rows = _with_more_rows(batch.row_ids, len(codes) if pool is None else pool, c.batch_size)
                return LatentBatch(codes[rows], fields[rows], observed(batch))

            return prepare

        options: dict[str, Any] = {"checkpoint": places, "log": log, "progress": progress, "parts": parts}
        self._stage(
            "classifier", "classifier_loss", lambda _: judged, c.classifier_steps, 128, 0.95, **options
        )
        self.net.classifier.requires_grad_(False)
        self._stage("generator", "loss", encoded, c.steps, c.quality_batch, c.ema, **options)
        if c.objective == "distilled":
            self.net, self.history["student"] = train_student(
                self.net, fields, c,
                checkpoint=places["student"], identity=self._identity(),
                log=None if log is None else Path(log), progress=progress,
            )  # fmt: skip
        self.net.requires_grad_(False)
        self.autoencoder.net = self.net.autoencoder
        stream = torch.Generator().manual_seed(c.seed)
        drawn = self.autoencoder.net.posterior_draw(codes, stream)
        self.priors = ClassPriors.fit(drawn, totals, fields[:, 0], self.conditions.sizes[0])
        self.trained_on = self.atlas.fingerprint()
        self.fitted = True
        return self

    def _stage(
        self,
        name: str,
        loss: str,
        prepare: Callable[[np.ndarray | None], Callable[[CellBatch], Any]],
        steps: int,
        batch_size: int,
        ema: float,
        *,
        parts: Parts,
        checkpoint: dict[str, Path | None],
        log: str | Path | None,
        progress: bool,
    ) -> None:
        """``prepare``: the rows that may be used -> a loader's batch -> what the loss takes."""
        c = self.config
        loader = self.autoencoder.loader(
            self.atlas, batch_size=batch_size, rows=parts.train, shuffle=True, seed=c.seed + 1
        )
        settings = TrainConfig(
            steps=steps, batch_size=batch_size, lr=c.lr, ema=ema, device=c.device, precision=c.precision,
            seed=c.seed, validate_every=c.validate_every, patience=c.patience, min_delta=c.min_delta,
            compile=c.compile,
        )  # fmt: skip
        net, self.history[name] = train(
            self.net, loss, loader, settings, label=name, prepare=prepare(parts.train),
            validation=self.autoencoder.held_out(parts.validation, batch_size, prepare(parts.validation)),
            checkpoint=checkpoint[name],
            identity=self._identity(), log=None if log is None else Path(log), progress=progress,
        )  # fmt: skip
        self.net = net  # type: ignore[assignment]

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with: settings, genes, cells, labels and the autoencoder itself."""
        conditions = json.dumps(self.conditions.to_dict(), sort_keys=True)
        return {
            **self.autoencoder._identity(),
            "model": identifying(self.config.to_dict()),
            "conditions": hashlib.sha256(conditions.encode()).hexdigest(),
            "encoder": self.autoencoder.weights_hash(),
        }

    def _encode_atlas(self) -> tuple[Tensor, Tensor]:
        """Codes [n, d] and totals [n] of every training cell: d floats a cell are all that is held."""
        codes, totals = [], []
        for rows, block in self.atlas.blocks(_BLOCK):
            codes.append(torch.from_numpy(self.autoencoder.encode(self.atlas, rows)))
            totals.append(torch.from_numpy(np.asarray(block.sum(1), dtype=np.float32).ravel()))
        return torch.cat(codes), torch.cat(totals)

    def encode(self, cells: Any, rows: np.ndarray | None = None) -> np.ndarray:
        """Standardised codes float32 [n, d] of an atlas or AnnData."""
        return self.autoencoder.encode(cells, rows)

    @torch.no_grad()
    def decode(
        self, codes: np.ndarray, condition: Mapping[str, Any] | None = None, *, seed: int = 0
    ) -> np.ndarray:
        """Expected log1p CP10k float32 [n, G] of codes sent through the one-step generator."""
        self._require_fit()
        z = torch.as_tensor(codes, dtype=torch.float32)
        given = self.conditions.encode(condition or {}, len(z))
        # Training drops all conditions of a cell or none; some without the others were never seen.
        known = self.conditions.complete(given, np.random.default_rng(seed)) if condition else given
        fields = torch.from_numpy(known)
        eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed))
        clean = self.latent(z, eps, fields)
        return self.net.autoencoder.decode(clean, self._typical_totals(fields)).clamp_min(0).numpy()

    def latent(self, code: Tensor, eps: Tensor, fields: Tensor, *, guidance: float | None = None) -> Tensor:
        """The clean latent [n, d] of codes [n, d], differentiable in them."""
        c = self.config
        w = c.guidance if guidance is None else guidance
        if c.objective == "distilled" and w != c.guidance:
            raise InputError(
                f"guidance={w}: the student was distilled with guidance={c.guidance}, which one step cannot "
                "leave; take more steps, or train with the guidance that is wanted"
            )
        return self.net.one_step(code, eps, fields, t_star=self.config.t_star, guidance=w)

    def _typical_totals(self, fields: Tensor) -> Tensor:
        return self.priors.typical_totals(fields[:, 0].clamp_min(0))

    _block = _BLOCK

    @property
    def _makes(self) -> str:
        return "counts" if self.net.autoencoder.head.needs_counts else "log1p"

    def _how(
        self, steps: int | None, guidance: float | None, sampler: str | None, eta: float
    ) -> dict[str, Any]:
        """1 step: one network call from a draw of the class prior (``code_then_noise``) or from noise.

        K > 1: K calls from pure noise.
        """
        if sampler is not None or eta:
            raise InputError("sampler= and eta= go with the diffusion transformers; SCDG has one sampler")
        return {
            "steps": check_steps(steps, 1, self.config.timesteps),
            "guidance": check_guidance(guidance, self.config.guidance),
        }

    def _draw_totals(self, fields: Tensor, generator: torch.Generator) -> Tensor:
        return self.priors.sample_totals(fields[:, 0], generator)

    def _draw_block(
        self, fields: Tensor, totals: Tensor, generator: torch.Generator, **how: Any
    ) -> Tensor | sparse.csr_matrix:
        steps, w = how["steps"], how["guidance"]
        label, shape = fields[:, 0], (len(fields), self.autoencoder.config.latent)
        eps = torch.randn(shape, generator=generator)
        if steps > 1:
            clean = self.net.many_steps(eps, fields, steps=steps, guidance=w, generator=generator)
        else:
            code = eps if self.config.code_is_noise else self.priors.sample(label, generator)
            clean = self.latent(code, eps, fields, guidance=w)
        features, head = self.net.autoencoder.features(clean), self.net.autoencoder.head
        if isinstance(head, NegativeBinomialHead):
            drawn = head.draw_sparse(features, totals, generator)
            parts = tuple(part.numpy() for part in drawn)
            return sparse.csr_matrix(parts, shape=(len(fields), len(head.theta)))
        return head.draw(features, totals, generator)

    def _config(self) -> dict[str, Any]:
        return {
            "config": self.config.to_dict(),
            "label_key": self.label_key,
            "trained_on": self.trained_on,
            "autoencoder_classes": self.autoencoder.classes,
            "conditions": self.conditions.to_dict(),
            "preprocessor": self.preprocessor.to_dict(),
        }

    def _tensors(self) -> dict[str, Tensor]:
        weights = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        return {**weights, **{f"prior.{name}": value for name, value in self.priors._asdict().items()}}

    @classmethod
    def _rebuild(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        model = cls(label_key=config["label_key"], config=SCDGConfig(**config["config"]))
        model.conditions = Conditions.from_dict(config["conditions"])
        model.trained_on = config["trained_on"]
        scale = tensors["net.autoencoder.gene_mean"], tensors["net.autoencoder.gene_std"]
        model.preprocessor = rebuild_preprocessor(config["preprocessor"], *scale)
        model.autoencoder = Autoencoder(config=model.config.autoencoder)
        model.autoencoder.preprocessor = model.preprocessor
        model.autoencoder.classes = config["autoencoder_classes"]
        model.autoencoder.net = model.autoencoder._build()
        model.net = model._build()
        model.net.load_state_dict(
            {k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")}
        )
        model.net.eval().requires_grad_(False)
        model.autoencoder.fitted = True
        model.priors = ClassPriors(**{name: tensors[f"prior.{name}"] for name in ClassPriors._fields})
        return model


_STAGES = ("autoencoder", "classifier", "generator", "student")


def _with_more_rows(rows: np.ndarray, pool: np.ndarray | int, size: int) -> Tensor:
    """``rows``, then others of ``pool`` (n: of 0..n-1) up to ``size`` in all.

    They are drawn by a generator seeded with the rows themselves.

    A pure function of the loader's batch, so that a resumed run draws what the first would have.
    """
    n = pool if isinstance(pool, int) else len(pool)
    extra = max(min(size, n) - len(rows), 0)
    drawn = np.random.default_rng(rows).integers(n, size=extra)
    return torch.from_numpy(np.concatenate([rows, drawn if isinstance(pool, int) else pool[drawn]]))
