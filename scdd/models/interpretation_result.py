"""The measurements of a white-box transformer as a table, sentences and files."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scdd.output import atomic_path, check_writable

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure

SUFFIXES = (".csv", ".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Interpretation:
    """One row of ``table`` for every layer and diffusion time (0 data, 1 noise); means over ``cells``.

    Columns
    -------
    rate_before, rate_after, rate_end
        Coding rate ``R^c`` (Yu et al. 2023) of the tokens in the layer's own subspaces: before its attention,
        after it, and after the token map; ``_sd`` is the spread over cells.
    whole_before, whole_after, whole_end
        Coding rate ``R`` of the tokens as a whole, at the same places.
    change, change_se, falls, falls_clearly
        ``rate_after - rate_before`` cell by cell, its standard error, whether it is below zero, and whether
        by more than two standard errors. ``block_change``, ``block_falls``: to the end of the block.
    zeros, l1_input, l1
        Share of exact zeros that ISTA leaves; sums of absolute values a token, before and after.
    price_before, price_after, cost_before, cost_after
        ``lambda |z|_1`` and ``|y - D z|^2 / 2 + lambda |z|_1`` a token, of the start of ISTA and of its code.
    gate_mixer, gate_sparse
        Mean gates of both branches; ``_size``: mean absolute value; ``_negative``: share below zero.
    orthogonality, within, between, basis_scale
        ``|U^T U / s - I|_F / sqrt(D)`` in all, within heads and between them; s.
    threshold, step_stability
        Mean lambda; ``eta sigma_max(D)^2``: up to 1 the step can not overshoot, from 2 on it diverges.
    epsilon, tokens
        How rates were measured: see ``WhiteBoxDiffusionTransformer.interpret``.
    """

    table: pd.DataFrame

    @property
    def share_falling(self) -> float:
        """In how many (layer, time) cells the coding rate really falls over the attention, as a share."""
        return float(self.table["falls"].mean())

    def by_layer(self) -> pd.DataFrame:
        """Means over times, one row a layer."""
        shown = [
            "rate_before", "rate_after", "rate_end", "whole_before", "whole_end", "zeros", "cost_before",
            "cost_after", "gate_mixer", "gate_mixer_negative", "gate_sparse", "gate_sparse_negative",
            "within", "between", "threshold", "step_stability",
        ]  # fmt: skip
        layers = self.table.groupby("layer")
        means = layers[[name for name in shown if name in self.table]].mean()
        return means.assign(falls=layers["falls"].sum(), times=layers.size())

    def summary(self) -> str:
        """Say in sentences where the coding rate falls, then every layer in a line."""
        return "\n".join([*self.headline(), "", self.by_layer().to_string(float_format="{:.3g}".format)])

    def headline(self) -> list[str]:
        """What was measured, and in how many (layer, time) cells the coding rate falls."""
        t, first = self.table, self.table.iloc[0]
        said = [
            f"{t['layer'].nunique()} layers x {t['time'].nunique()} times, {first['cells']} cells; "
            f"epsilon {first['epsilon']:g} (squared {first['epsilon'] ** 2:g}), tokens {first['tokens']}.",
            f"R^c falls over the attention in {t['falls'].sum()} of {len(t)} (layer, time) cells, "
            f"by more than two standard errors in {t['falls_clearly'].sum()}; over the whole block in "
            f"{t['block_falls'].sum()}.",
        ]
        if "zeros" in t:
            helped = (t["cost_after"] < t["cost_before"]).sum()
            said.append(
                f"ISTA leaves {t['zeros'].mean():.1%} exact zeros "
                f"and lowers its own cost in {helped} of {len(t)}."
            )
        return said

    def plot(self) -> Figure:
        """Heat maps of changes of the rate and of zeros by layer and time; rates and gates as lines."""
        from scdd.models.interpretation_plot import overview

        return overview(self.table)

    def save(self, path: str | Path) -> None:
        """Write the table (``.csv``) or the plot (``.png``, ``.svg``, ``.pdf``); never half of it.

        Raises
        ------
        InputError
            Another suffix.
        DataFileError
            The folder is missing or cannot be written.
        """
        check_writable(path, suffixes=SUFFIXES)
        with atomic_path(path) as temporary:
            if temporary.suffix == ".csv":
                self.table.to_csv(temporary, index=False)
                return
            from scdd.models.interpretation_plot import write

            write(self.plot(), temporary)

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return f"Interpretation({len(self.table)} rows, R^c falls in {self.table['falls'].sum()})"

    def _repr_html_(self) -> str:
        said = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in self.headline())
        return said + self.by_layer().to_html(border=0, float_format="{:.3g}".format)
