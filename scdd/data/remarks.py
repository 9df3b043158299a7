"""What can be read and is hardly meant: said once, as a warning, and then done as asked."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from scdd.data.expression import row_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scipy import sparse

    from scdd.data.expression import Values
    from scdd.data.source import Source

# float32 holds every whole number below this.
EXACT = 1 << 24
# What missing entries become when a column is turned into strings, here or by whoever wrote the file.
_BLANK = {"", "nan", "NaN", "NAN", "None", "NA", "<NA>", "N/A", "n/a", "#N/A", "null", "NULL", "NaT"}


def remark_on_mask(values: Values, name: str, layer: str, others: Iterable[str]) -> None:
    """Counts that are all 0 or 1: ``others`` are the file's other matrices."""
    if not values.only_ones:
        return
    listed = ", ".join(others)
    remedy = f"pass layer= (--layer); there are {listed}" if listed else "read the file that holds the counts"
    _warn(
        f"{name}: {layer} holds only 0 and 1, in {values.n:,} values looked at: that is a mask or binarised "
        f"data rather than counts; if there are counts, {remedy}"
    )


def remark_on_unlabelled(sampler: str, codes: np.ndarray) -> None:
    """Cells of code -1, which a sampler by classes leaves out."""
    n_without = int((codes < 0).sum())
    if n_without and n_without < len(codes):
        _warn(
            f"sampler={sampler!r} leaves out {n_without:,} of {len(codes):,} cells: they have no label, or "
            "none of those given"
        )


def rounds_counts(source: Source, block: sparse.csr_matrix, rows: np.ndarray) -> bool:
    """Whether a block holds counts that float32 may have rounded; ``rows`` are its rows in the file."""
    if source.expression != "counts" or not len(block.data) or block.data.max() < EXACT:
        return False
    at = int(np.argmax(block.data >= EXACT))
    row = int(rows[np.searchsorted(block.indptr, at, side="right") - 1])
    _warn(
        f"{source.matrix.place}, {row_name(row, source.obs.index)}, gene "
        f"{str(source.var_names[block.indices[at]])!r} holds {block.data[at]:,.0f}: values are read as "
        f"float32, which rounds counts above {EXACT:,}; check that row if a cell cannot have so many"
    )
    return True


def remark_on_blank_labels(key: str, names: Sequence[str], codes: np.ndarray, told: set[str]) -> None:
    """Labels that say that there is none; each column once a set ``told``. Codes -1 are no labels."""
    blank = [code for code, name in enumerate(names) if name.strip() in _BLANK]
    if not blank or key in told:
        return
    told.add(key)
    counts = np.bincount(codes[codes >= 0], minlength=len(names))
    found = ", ".join(f"{names[code]!r}: {counts[code]:,} cells" for code in blank)
    column, values = f"obs[{key!r}]", [names[code] for code in blank]
    _warn(
        f"{column} has labels that look like missing ones ({found}) and are read as classes; to drop those "
        f"cells, set {column} = {column}.where(~{column}.isin({values})) and leave unlabelled cells out "
        "(atlas.drop_unlabelled, --drop-unlabelled); to keep them, give them a name"
    )


def remark_on_other_labels(key: str, met: str, names: Sequence[str]) -> None:
    """Categories of which no cell has any; ``met`` is a label that a cell has."""
    _warn(
        f"no cell has any of the {len(names)} labels that labels= gives for obs[{key!r}] (e.g. "
        f"{names[0] if names else None!r}; the first cell has {met!r}): every code is -1; give the labels "
        "as the column spells them"
    )


def remark_on_absent_genes(sentence: str, told: set[str]) -> None:
    """Genes of a model that cells lack; each ``sentence`` once a set ``told``."""
    if sentence not in told:
        told.add(sentence)
        _warn(sentence)


def _warn(message: str) -> None:
    # At the line of the user, whichever function of ours it is that called.
    warnings.warn(message, stacklevel=_frames_to_the_user())


def _frames_to_the_user() -> int:
    import sys

    frame, level = sys._getframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").startswith("scdd."):
        frame, level = frame.f_back, level + 1  # type: ignore[assignment]
    return level
