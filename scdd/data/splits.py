"""Train, validation and test cells: made once, seeded, by whole donors where there are donors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from scdd.errors import InputError
from scdd.output import atomic_path

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class SplitRule:
    """How much (a share of the cells) or which groups go to the test and validation parts."""

    test: float | Sequence[str] = 0.2
    validation: float | Sequence[str] = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        shares = [share for share in (self.test, self.validation) if isinstance(share, (int, float))]
        if any(not 0 <= share < 1 for share in shares) or sum(shares) >= 1:
            raise InputError(
                f"test={self.test!r}, validation={self.validation!r}: "
                "shares lie in [0, 1) and leave a train part"
            )


class Split(NamedTuple):
    """Positions of the cells of each part, each sorted."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_rows(
    n: int,
    rule: SplitRule,
    *,
    groups: np.ndarray | None = None,
    codes: np.ndarray | None = None,
    by: str | None = None,
) -> Split:
    """Part ``n`` cells: whole ``groups``, or within each class of ``codes``, or at random."""
    rng = np.random.default_rng(rule.seed)
    if groups is not None:
        part = _part_by_group(groups, rule, rng, by or "group")
    elif isinstance(rule.test, Sequence) or isinstance(rule.validation, Sequence):
        raise InputError(f"test={rule.test!r} names groups; say which obs column holds them with by=")
    else:
        part = _part_by_class(np.zeros(n, dtype=np.int64) if codes is None else codes, rule, rng)
    return Split(*(np.flatnonzero(part == number) for number in range(3)))


def _part_by_class(codes: np.ndarray, rule: SplitRule, rng: np.random.Generator) -> np.ndarray:
    """Shares of every class; two cells of a class, where it has them, stay in train."""
    part = np.zeros(len(codes), dtype=np.int8)
    for code in np.unique(codes):
        rows = rng.permutation(np.flatnonzero(codes == code))
        spare = max(len(rows) - 2, 0)
        n_test = min(round(len(rows) * rule.test), spare)  # type: ignore[operator]
        n_validation = min(round(len(rows) * rule.validation), spare - n_test)  # type: ignore[operator]
        part[rows[:n_test]] = 2
        part[rows[n_test : n_test + n_validation]] = 1
    return part


def _part_by_group(groups: np.ndarray, rule: SplitRule, rng: np.random.Generator, by: str) -> np.ndarray:
    names, sizes = np.unique(groups, return_counts=True)
    if len(names) < 2 and rule.test:
        raise InputError(f"obs[{by!r}] has one group ({names[0]!r}); a split by it needs two or more")
    free = [str(name) for name in rng.permutation(names)]
    size_of = dict(zip(map(str, names), sizes, strict=True))
    chosen: dict[int, list[str]] = {}
    for number, share in ((2, rule.test), (1, rule.validation)):
        chosen[number] = _take_groups(free, size_of, share, by)
        free = [name for name in free if name not in chosen[number]]
    if not free:
        raise InputError(f"obs[{by!r}] has {len(names)} groups, too few to leave one for training")
    part = np.zeros(len(groups), dtype=np.int8)
    for number, members in chosen.items():
        part[np.isin(groups.astype(str), members)] = number
    return part


def _take_groups(free: list[str], sizes: dict[str, int], share: float | Sequence[str], by: str) -> list[str]:
    """The named groups, or the group set of the drawn order that reaches the share of cells."""
    if not isinstance(share, (int, float)):
        named = [share] if isinstance(share, str) else [str(name) for name in share]
        unknown = [name for name in named if name not in free]
        if unknown:
            raise InputError(
                f"obs[{by!r}] has no group {unknown[0]!r}; its groups are: {', '.join(sorted(free))}"
            )
        return named
    target, cells = share * sum(sizes.values()), 0
    taken: list[str] = []
    for name in free[:-1]:
        # A group is taken if that brings the share nearer to what was asked; the first always is.
        if cells >= target or (taken and cells + sizes[name] - target > target - cells):
            continue
        taken.append(name)
        cells += sizes[name]
    return taken if share > 0 else []


def save_split(path: str | Path, parts: dict[str, pd.Index]) -> None:
    """Write which cell is in which part as a two-column CSV (``cell,part``)."""
    frames = [pd.DataFrame({"cell": names, "part": part}) for part, names in parts.items()]
    with atomic_path(path) as temporary:
        pd.concat(frames).to_csv(temporary, index=False)


def load_split(path: str | Path, obs_names: pd.Index) -> dict[str, np.ndarray]:
    """Positions in ``obs_names`` of every part of a saved split; unknown cells are an error."""
    table = pd.read_csv(path, dtype=str)
    if not {"cell", "part"} <= set(table.columns):
        raise InputError(f"{path} is no saved split: it needs the columns cell and part")
    rows = obs_names.get_indexer(table["cell"]) if obs_names.is_unique else np.array([-1])
    if (rows < 0).any():
        raise InputError(f"{path} names cells that the atlas lacks; was it saved from another file?")
    return {str(part): np.sort(rows[table["part"] == part]) for part in table["part"].unique()}
