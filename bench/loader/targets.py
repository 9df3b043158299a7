"""The targets, and with them everything that is measured: who against whom, on which file, by how much."""

from __future__ import annotations

from dataclasses import dataclass

from cases import Case

BATCHES = (512, 4096)


@dataclass(frozen=True)
class Target:
    """A claim about one of our contenders.

    Attributes
    ----------
    ours : a name in `ours.OURS`
    source, output, cache : as in `Case`
    ratios : peer -> the least ratio of cells a second, ours over the peer's of the same round
    cells_per_s : the least speed, if one is claimed
    of_limit : the least share of the physical limit, if one is claimed
    """

    ours: str
    source: str
    output: str
    ratios: dict[str, float]
    cache: str = "warm"
    cells_per_s: float | None = None
    of_limit: float | None = None

    @property
    def limits(self) -> tuple[str, ...]:
        """What bounds it: a file in the cache of pages costs reading too; a packed row has no chunks to decode."""
        if self.output == "tokens" or self.source == "packed":
            return ()
        return ("limit-read", "limit-copy") + (() if self.source == "raw" else ("limit-decode",))

    def case(self, contender: str, batch: int) -> Case:
        """The measurement of one contender of this target."""
        source = "memory" if contender.endswith("-memory") else self.source
        if contender.startswith("limit-"):
            batch = BATCHES[-1]  # they know no batches
        return Case(contender, source, self.output, batch, self.cache)

    def contenders(self) -> tuple[str, ...]:
        """Ours, the peers it is compared with, the limits."""
        return (self.ours, *self.ratios, *self.limits)


_COMPRESSED = ("gzip", "shuffle_gzip", "zstd")
TARGETS = (
    *(
        Target("scdd", source, "csr", {"scdataset": 10, "python-threads": 5}, of_limit=0.75)
        for source in _COMPRESSED
    ),
    *(Target("scdd", source, "dense", {"scdataset": 10}) for source in _COMPRESSED),
    Target("scdd", "raw", "csr", {"scdataset": 12, "backed-contiguous": 3.5}),
    Target("scdd", "raw", "dense", {"scdataset": 12, "scipy-memory": 4}),
    Target("scdd", "annbatch", "csr", {"annbatch-32": 2.4}),  # blocks of its own choice, mixed better
    Target("scdd-32", "annbatch", "csr", {"annbatch-32": 2.4}),
    Target("scdd-64", "annbatch", "csr", {"annbatch-64": 3.1}),
    Target("scdd-512", "annbatch", "csr", {"annbatch-512": 3.1}),
    Target("scdd-64", "annbatch", "dense", {"annbatch-64": 3.2}),
    Target("scdd-cache", "packed", "csr", {"scipy-memory": 3.5}, cells_per_s=1_200_000),
    Target("scdd-cache", "packed", "dense", {"scipy-memory": 3.5}, cells_per_s=350_000),
    Target("scdd", "gzip", "tokens", {}, cells_per_s=100_000),
    Target("scdd-cache", "packed", "tokens", {}, cells_per_s=100_000),
    Target("scdd", "gzip", "csr", {"scdataset": 9}, cache="cold"),
    Target("scdd-64", "annbatch", "csr", {"annbatch-64": 2}, cache="cold"),
    Target("scdd-32", "annbatch", "csr", {"annbatch-32": 2}, cache="cold"),
)

# Measured beside them, for whoever asks how the usual ways compare; nothing is claimed.
CONTEXT = (
    *(
        Case(peer, source, "csr", 4096, "warm")
        for peer in ("annloader", "backed-random")
        for source in ("gzip", "raw")
    ),
    Case("backed-contiguous", "gzip", "csr", 4096, "warm"),
    Case("scipy-memory", "memory", "csr", 4096, "warm"),
    Case("scvi-memory", "memory", "csr", 512, "warm"),
)


def groups(batches: tuple[int, ...] = BATCHES) -> list[list[Case]]:
    """Cases that take turns: those of one source, output and cache, so that their ratios are of the same minutes."""
    found: dict[tuple[str, str, str], list[Case]] = {}
    for target in TARGETS:
        key = (target.source, target.output, target.cache)
        for batch in batches:
            found.setdefault(key, []).extend(target.case(name, batch) for name in target.contenders())
    return [list(dict.fromkeys(cases)) for cases in found.values()] + [list(CONTEXT)]
