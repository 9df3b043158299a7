"""Opening atlases as the options of a verb say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from scdd.errors import InputError

if TYPE_CHECKING:
    from scdd.data.atlas import Atlas


def open_atlas(
    paths: list[str],
    label: str | None,
    layer: str,
    expression: str,
    drop_unlabelled: bool,
    min_class_cells: int,
) -> Atlas:
    """One atlas of all paths; says how it was read."""
    from scdd.data.atlas import Atlas

    atlas = Atlas(paths[0] if len(paths) == 1 else paths, layer=layer, expression=expression)
    if label and drop_unlabelled:
        atlas = atlas.drop_unlabelled(label)
    if label and min_class_cells > 1:
        atlas.labels(label)  # unlabelled cells are an error of their own, not a rare class
        atlas = atlas.drop_rare(label, min_class_cells)
    for note in atlas.notes():
        typer.echo(note)
    return atlas


def hold_out(atlas: Atlas, label: str | None, by: str | None, test: Any, seed: int) -> tuple[Atlas, Atlas]:
    """Train and test parts; says how many cells are held out, and how."""
    if not test:
        raise InputError("--report needs held-out cells and --test is 0; leave --report out, or raise --test")
    train, held_out = atlas.split(by=by, label_key=label, test=test, seed=seed)
    how = f"whole groups of {by}" if by else "at random within classes" if label else "at random"
    typer.echo(f"held out {held_out.n_obs:,} of {atlas.n_obs:,} cells ({how})")
    return train, held_out
