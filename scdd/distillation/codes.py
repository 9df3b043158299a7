"""Where latent codes start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from scdd.distillation.selectors import SELECTORS, ClassCells
from scdd.errors import InputError

if TYPE_CHECKING:
    from scdd.distillation.candidates import Candidates
    from scdd.models.scdg import SCDG

INITS = ("random", "prior", "real", "kmeans", *SELECTORS)


def initial_codes(
    generator: SCDG, candidates: Candidates, budget: np.ndarray, classes: np.ndarray, init: str, seed: int
) -> torch.Tensor:
    """Codes float32 [sum(budget), d], class after class.

    ``"random"``: standard normal, as published. ``"prior"``: the class's Gaussian. ``"real"``: encoded
    cells drawn at random. ``"kmeans"``: centres of k-means among the class's encoded cells. The name of a
    selector: the encoded rows of that selector. Missing rows are filled from the prior, the shallow end of
    the spectrum first. ``classes`` int64 [C] are the generator's numbers of the task's classes.
    """
    if init not in INITS:
        raise InputError(f"init={init!r}; choose one of {', '.join(INITS)}")
    if generator.config.code_is_noise and init != "random":
        raise InputError(
            f"init={init!r}: a {generator.config.objective} code is noise, not a clean latent; "
            "pass init='random'"
        )
    rng = np.random.default_rng(seed)
    stream = torch.Generator().manual_seed(seed)
    pieces = []
    for k, rows in enumerate(budget):
        label = torch.full((int(rows),), int(classes[k]))
        start = generator.priors.sample(label, stream)
        if init == "random":
            start = torch.randn(start.shape, generator=stream)
        elif init != "prior":
            found = torch.from_numpy(_from_cells(generator, candidates, k, int(rows), init, rng))
            start[len(start) - len(found) :] = found
        pieces.append(start)
    return torch.cat(pieces)


@torch.no_grad()
def _from_cells(
    generator: SCDG, candidates: Candidates, k: int, rows: int, init: str, rng: np.random.Generator
) -> np.ndarray:
    """At most ``rows`` codes [<= rows, d] made from the cells of class ``k``."""
    encode = generator.autoencoder.net.encode
    if init in ("real", "kmeans"):
        x = candidates.expression(k)
        codes = encode(torch.from_numpy(x)).numpy()
        rule = SELECTORS["random" if init == "real" else "cluster_centroids"].function
        # The rules average what they are given: codes in place of expression gives code-space centroids.
        chosen = rule(ClassCells(codes, codes, candidates.rows[k]), rows, rng).expression
        return np.ascontiguousarray(chosen[_largest_last(codes, chosen)][-rows:])
    selected = SELECTORS[init].function(candidates.cells(k), rows, rng).expression[:rows]
    return encode(torch.from_numpy(selected)).numpy()


def _largest_last(codes: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Order of the centres so that the one nearest the class mean is last, where the spectrum is deepest."""
    return np.argsort(-np.linalg.norm(centres - codes.mean(0), axis=1), kind="stable")
