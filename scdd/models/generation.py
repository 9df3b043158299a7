"""What every generator of cells shares: requests in, AnnData or a file written block by block out."""

from __future__ import annotations

import json
import logging
import math
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from scipy import sparse

import scdd
from scdd.data.writing.writer import write_csr
from scdd.errors import InputError
from scdd.models.base import Model
from scdd.models.likeness import SIZES, by_likeness
from scdd.models.requests import Request, by_conditions, by_table, notes_of, whole_number
from scdd.output import check_writable
from scdd.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import anndata
    from torch import Tensor

    from scdd.models.conditions import Conditions

log = logging.getLogger("scdd.generate")

_MOST_GUIDANCE = 100.0
SAMPLERS = ("dpm++", "ddim", "ddpm", "flow")


class CellGenerator(Model):
    """A trained model that makes cells; subclasses draw one block of them.

    They also say how many cells a block has (``_block``) and what options of drawing they have (``_how``).
    """

    conditions: Conditions
    label_key: str
    trained_on: str
    _block: ClassVar[int]

    @property
    @abstractmethod
    def _makes(self) -> str:
        """``"counts"`` or ``"log1p"``."""

    @abstractmethod
    def _draw_block(
        self, fields: Tensor, totals: Tensor, generator: torch.Generator, **how: Any
    ) -> Tensor | sparse.csr_matrix:
        """Counts or log1p CP10k [b, G] of condition codes [b, F] and total counts [b]."""

    @abstractmethod
    def _draw_totals(self, fields: Tensor, generator: torch.Generator) -> Tensor:
        """Total counts [b] as cells of these condition codes [b, F] have them."""

    @abstractmethod
    def _how(
        self, steps: int | None, guidance: float | None, sampler: str | None, eta: float
    ) -> dict[str, Any]:
        """Options of ``_draw_block``, checked, with the defaults of the model in place of None."""

    def generate(
        self,
        n: int | None = None,
        *,
        condition: Mapping[str, Any] | None = None,
        table: pd.DataFrame | str | Path | None = None,
        like: Any = None,
        out: str | Path | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
        eta: float = 0.0,
        seed: int = 0,
        batch_size: int | None = None,
        progress: bool = True,
    ) -> Any:
        """New cells: counts in X, or log1p CP10k where the model knows no library sizes.

        Columns of conditions that are left open follow the training composition, as they go with those that
        are given.

        Parameters
        ----------
        n
            How many. Left out: as many as ``condition``, ``table`` or ``like`` describe.
        condition
            ``obs`` column -> one value or n values.
        table
            A data frame, .csv or .tsv: a row a cell, any of the condition columns; empty entries are open. A
            column ``n`` or ``n_cells`` says how many cells a row asks for.
        like
            AnnData, path or Atlas: match its composition cell by cell, and its library sizes. With ``n``,
            cells are drawn from it. ``condition`` replaces a column of it.
        out
            ``.h5ad`` or ``.zarr``: write there block by block, in bounded memory, and return the path.
        steps
            Network calls a cell.
        guidance
            Classifier-free guidance w in ``(1 + w) f(c) - w f(null)``, from -1.
        sampler, eta
            Of the transformers: dpm++, ddim, ddpm or flow; noise of DDIM, 0 to 1.
        seed, batch_size
            Cells drawn at a time. The same seed and batch size make the same cells, in memory or on disk,
            bit for bit on a CPU.

        Raises
        ------
        InputError
            Conditions or values that the model was not trained with, numbers of cells that disagree, options
            out of their range, genes of ``like`` that are not the model's.
        """
        self._require_fit()
        how = self._how(steps, guidance, sampler, eta)
        if out is not None:
            inputs = [path for path in (table, like) if isinstance(path, (str, Path))]
            check_writable(out, suffixes=(".h5ad", ".zarr"), inputs=inputs)
        seed = _seed(seed)
        size = self._block if batch_size is None else whole_number(batch_size, named="batch_size")
        request = self._request(n, dict(condition or {}), table, like, seed)
        notes = [*request.notes, *notes_of(self.conditions, request)]
        for note in [f"{request.n:,} cells", *notes]:
            log.info("%s", note)
        uns = self._uns(request, notes, {**how, "seed": seed, "batch_size": size})
        with progress_bar("generating", request.n, enabled=progress) as advance:
            blocks = self._blocks(request, how, seed, size, advance)
            if out is None:
                return self._in_memory(blocks, uns)
            return write_csr(out, blocks, obs=None, var=self._var(), uns=uns, progress=False)

    def _request(self, n: int | None, condition: dict[str, Any], table: Any, like: Any, seed: int) -> Request:
        if table is not None and like is not None:
            raise InputError("table= and like= both say which cells are wanted; give one of them")
        if table is not None:
            return by_table(self.conditions, n, table, condition)
        if like is None:
            return by_conditions(self.conditions, n, condition)
        sized = self._makes == "counts"
        return by_likeness(
            self.conditions, n, like, condition, preprocessor=self.preprocessor, sized=sized, seed=seed
        )

    def _blocks(
        self, request: Request, how: dict[str, Any], seed: int, size: int, advance: Any
    ) -> Iterator[tuple[sparse.csr_matrix, pd.DataFrame]]:
        """The cells and their ``obs``, each block from random numbers of its own."""
        for number, start in enumerate(range(0, request.n, size)):
            rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            given, totals = request.block(start, start + size)
            codes = self.conditions.complete(given, rng)
            with torch.no_grad():
                fields = torch.from_numpy(codes)
                sizes = self._draw_totals(fields, generator) if totals is None else torch.from_numpy(totals)
                x = self._draw_block(fields, sizes, generator, **how)
            obs = self.conditions.decode(codes)
            obs.index = pd.Index([f"generated_{start + i}" for i in range(len(codes))])
            if self._makes == "counts":
                # of all genes, those that are not modelled among them
                obs[SIZES] = sizes.cpu().numpy()
            yield x if sparse.issparse(x) else sparse.csr_matrix(x.cpu().numpy()), obs
            advance(len(codes))

    def _in_memory(
        self, blocks: Iterator[tuple[sparse.csr_matrix, pd.DataFrame]], uns: dict[str, Any]
    ) -> anndata.AnnData:
        import anndata

        matrices, frames = zip(*blocks, strict=True)
        x = sparse.vstack(matrices, format="csr")
        return anndata.AnnData(x, obs=pd.concat(frames), var=self._var(), uns=uns)

    def _var(self) -> pd.DataFrame:
        return pd.DataFrame(index=self.preprocessor.genes)

    def _uns(self, request: Request, notes: list[str], run: dict[str, Any]) -> dict[str, Any]:
        """How the cells came to be."""
        record = {
            "method": type(self).__name__,
            "expression": self._makes,
            "label_key": self.label_key,
            "conditions": list(self.conditions.names),
            "model": self.weights_hash(),
            "trained_on": self.trained_on,
            "config": json.dumps(self.config.to_dict(), sort_keys=True),  # type: ignore[attr-defined]
            "versions": {"scdd": scdd.__version__, "torch": str(torch.__version__), "numpy": np.__version__},
            # Sums depend on how many threads share them: bit-for-bit repetition needs the same number.
            "threads": torch.get_num_threads(),
            "notes": notes,
            **request.record,
            **run,
        }
        return {"scdd": record} | ({} if self._makes == "counts" else {"log1p": {"base": None}})


def check_steps(steps: int | None, default: int, most: int) -> int:
    """``steps`` or the default, from 1 to ``most``."""
    if steps is None:
        return default
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or not 1 <= steps <= most:
        raise InputError(f"steps={steps}; it is a whole number in 1..{most}")
    return int(steps)


def check_guidance(guidance: float | None, default: float) -> float:
    """``guidance`` or the default: -1 ignores the conditions, 0 takes them as they are."""
    if guidance is None:
        return default
    if not -1 <= guidance <= _MOST_GUIDANCE:
        raise InputError(f"guidance={guidance}; it lies in -1..{_MOST_GUIDANCE:g}, 0 is no guidance")
    return float(guidance)


def check_sampler(sampler: str | None, default: str) -> str:
    """``sampler`` or the default."""
    if sampler is not None and sampler not in SAMPLERS:
        raise InputError(f"sampler={sampler!r}; choose one of {', '.join(SAMPLERS)}")
    return sampler or default


def check_eta(eta: float) -> float:
    """``eta`` from 0 (no noise) to 1."""
    if not (math.isfinite(eta) and 0 <= eta <= 1):
        raise InputError(f"eta={eta}; it lies in 0..1")
    return float(eta)


def _seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"seed={seed}; give a whole number of at least 0")
    return int(seed)
