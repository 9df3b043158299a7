"""The verb `pack`: an atlas as a folder that is read in any order at full speed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scdd.cli import options as opt
from scdd.errors import InputError

if TYPE_CHECKING:
    from scdd.data.atlas import Atlas
    from scdd.data.packed.store import PackedStore


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command(epilog="Example: scdd pack atlas.h5ad --out atlas.packed")(pack)


def pack(
    atlas: opt.Atlas,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A folder, NAME.packed; by default beside the atlas.")
    ] = None,
    layer: opt.Layer = "auto",
    expression: opt.ExpressionKind = opt.Expression.auto,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every checksum; given a .packed folder, do only that.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Write again what is up to date or was packed from elsewhere.")
    ] = False,
    progress: opt.Progress = True,
) -> None:
    """Pack an atlas: about two bytes a stored value, lossless, every cell to be read on its own.

    Training then reads cells in a truly random order as fast as in the file's. The source is left as it is;
    when it has changed, the same command packs it again.
    """
    from scdd.data.packed.header import SUFFIX
    from scdd.data.packed.store import PackedStore

    if verify and out is None and len(atlas) == 1 and Path(atlas[0]).suffix == SUFFIX:
        typer.echo(_describe(PackedStore.open(atlas[0], verify=True), "verified"))
        return
    _pack(atlas, out or _beside(atlas), layer, expression.value, verify, force, progress)


def _pack(
    paths: list[str], out: Path, layer: str, expression: str, verify: bool, force: bool, progress: bool
) -> None:
    from scdd.data.atlas import Atlas
    from scdd.data.packed.fingerprint import is_fresh
    from scdd.data.packed.store import PackedStore
    from scdd.data.packed.writing import pack as write

    cells = Atlas(paths[0] if len(paths) == 1 else paths, layer=layer, expression=expression)
    for note in cells.notes():
        typer.echo(note)
    fresh = not force and is_fresh(out, cells)
    start = time.perf_counter()
    packed = write(cells, out, overwrite=force, progress=progress)
    seconds = time.perf_counter() - start
    if verify:
        packed = PackedStore.open(out, verify=True)
    said = _describe(packed, "up to date:" if fresh else "wrote") + _beside_source(cells, packed)
    typer.echo(said if fresh else f"{said}, {seconds:.1f} s")


def _beside(paths: list[str]) -> Path:
    if len(paths) > 1:
        raise InputError("several sources become one folder: name it with --out NAME.packed")
    if "://" in paths[0]:
        raise InputError("what is read over the network is packed to a local disk: pass --out NAME.packed")
    return Path(paths[0]).with_suffix(".packed")


def _describe(packed: PackedStore, verb: str) -> str:
    size = sum(sums.size for sums in packed.header.files.values())
    cells, genes = packed.shape
    return (
        f"{verb} {packed.path}: {cells:,} cells x {genes:,} genes, {size / 1e6:,.1f} MB, "
        f"{size / cells:,.0f} bytes a cell"
    )


def _beside_source(cells: Atlas, packed: PackedStore) -> str:
    """How many bytes a cell takes in the source, other layers included; nothing where it is not a file."""
    size = sum(file["size"] for file in packed.header.source["files"])
    return f" (the source: {size / len(cells.store):,.0f})" if size else ""
