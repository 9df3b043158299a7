"""Published variants of these metrics, reproduced with their quirks: comparable with their papers only.

What each does differently from the house metrics stands in the function; none of them is recommended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import train_test_split

from scdd.evaluation.generated import published_kernels as kernels
from scdd.evaluation.generated.readings import Reading
from scdd.evaluation.generated.support import mixing
from scdd.evaluation.generated.transport import exact_wasserstein

if TYPE_CHECKING:
    from collections.abc import Callable

    from scdd.evaluation.generated.gathering import Draw, World
    from scdd.evaluation.generated.space import Cells


def variant(name: str, draw: Draw, world: World) -> list[Reading]:
    """Rows of a published variant; ``value`` is generated against test, ``floor`` real against test."""
    of = _VARIANTS[name]
    made, floor = (of(side, draw.test, world) for side in (draw.generated, draw.floor))
    return [
        Reading("as published", metric, space, value, floor[metric, space], variant=name)
        for (metric, space), value in made.items()
    ]


Found = dict[tuple[str, str], float]


def scrdit(made: Cells, real: Cells, world: World) -> Found:
    """Of scRDiT and White-Box DiT: KL of rows paired by order, W1 of the flattened matrix, chunked MMD.

    They see neither co-expression (chunks of 20 genes, summed kernels) nor, in W1, which gene is which; KL
    prefers a mean cell to real ones.
    """
    a, b = made.genes.astype(np.float64), real.genes.astype(np.float64)
    name = f"{a.shape[1]:,} genes"
    return {
        ("KL over genes, rows paired", name): kernels.paired_kl(a, b),
        ("W1, flattened", name): float(stats.wasserstein_distance(a.ravel(), b.ravel())),
        ("W1 of gene means", name): float(stats.wasserstein_distance(a.mean(0), b.mean(0))),
        ("MMD, chunks of 20 genes", name): kernels.chunked_mmd(a, b, 20),
    }


def scdiffusion(made: Cells, real: Cells, world: World) -> Found:
    """Of scDiffusion: 50 components fitted on both samples together, summed kernels, a forest of depth 5."""
    joint = _joint_components(made.genes, real.genes, 50)
    a, b = joint[: len(made)], joint[len(made) :]
    means = [np.asarray(side.x.mean(axis=0)).ravel() for side in (made, real)]
    forest = RandomForestClassifier(
        world.settings.published_trees, max_depth=5, class_weight="balanced", random_state=1,
        n_jobs=world.settings.threads,
    )  # fmt: skip
    score = _told_apart(forest, joint, len(made), share=0.25)
    # scIB walks from cell to cell along the graph of 10 neighbours; here the 90 nearest cells themselves.
    lisi = mixing(a[:, :20], b[:, :20])
    return {
        ("Spearman of gene means", "all genes"): float(stats.spearmanr(means[0], means[1]).statistic),
        ("Pearson of gene means", "all genes"): float(np.corrcoef(means[0], means[1])[0, 1]),
        ("MMD, five kernels summed", "joint 50 PCs"): kernels.summed_mmd(a, b),
        ("forest of depth 5, accuracy", "joint 50 PCs"): score[0],
        ("forest of depth 5, AUC", "joint 50 PCs"): score[1],
        ("iLISI, 0 to 1", "joint 20 PCs"): lisi,
    }


def cfgen_2025(made: Cells, real: Cells, world: World) -> Found:
    """Of CFGen until 2025: components of test, onto which generated cells fall *without* the mean taken away.

    W2 then is mostly that constant offset.
    """
    return _cfgen(made, real, world, centred=False)


def cfgen_2026(made: Cells, real: Cells, world: World) -> Found:
    """Of CFGen since July 2026: the same with the mean of the real genes taken away."""
    return _cfgen(made, real, world, centred=True)


def groundgan(made: Cells, real: Cells, world: World) -> Found:
    """Of scGAN and GRouNdGAN: expression without logarithm, a full forest on 50 components, LISI on t-SNE."""
    a, b = np.expm1(made.genes), np.expm1(real.genes)
    n = len(a)
    forest = RandomForestClassifier(
        world.settings.published_trees, random_state=0, n_jobs=world.settings.threads
    )
    score = _told_apart(forest, np.vstack([a, b]), n, share=0.3, components=50)
    centres = a.mean(0).astype(np.float64), b.mean(0).astype(np.float64)
    name = f"{a.shape[1]:,} genes, no log"
    cosine = centres[0] @ centres[1] / (np.linalg.norm(centres[0]) * np.linalg.norm(centres[1]))
    return {
        ("full forest, AUC", "50 PCs of its train part, no log"): score[1],
        ("MMD, widths of 25 neighbours", name): kernels.neighbour_mmd(a, b),
        ("centroids, cosine", name): float(cosine),
        ("centroids, Euclidean", name): float(np.linalg.norm(centres[0] - centres[1])),
        ("miLISI, 1 to 2", "joint t-SNE"): kernels.tsne_lisi(a, b),
    }


_VARIANTS: dict[str, Callable[[Cells, Cells, World], Found]] = {
    "scrdit": scrdit,
    "scdiffusion": scdiffusion,
    "cfgen-2025": cfgen_2025,
    "cfgen-2026": cfgen_2026,
    "groundgan": groundgan,
}


def _cfgen(made: Cells, real: Cells, world: World, *, centred: bool) -> Found:
    """By class, then the mean of classes: exact W1 and W2, and five kernels of fixed widths, summed."""
    pca = PCA(min(30, len(real) - 1, real.genes.shape[1]), svd_solver="full").fit(real.genes)
    a = (made.genes - (pca.mean_ if centred else 0.0)) @ pca.components_.T
    b = pca.transform(real.genes)
    rows = []
    for code in np.unique(real.codes):
        own, other = a[made.codes == code], b[real.codes == code]
        if min(len(own), len(other)) > 1:
            w = [exact_wasserstein(own, other, power=power) for power in (1, 2)]
            rows.append([*w, kernels.fixed_mmd(own, other)])
    mean = np.mean(rows, axis=0) if rows else np.full(3, np.nan)
    space = "30 PCs of test" + ("" if centred else ", generated not centred")
    names = ("W1, mean of classes", "W2, mean of classes", "RBF MMD summed, mean of classes")
    return {(name, space): float(value) for name, value in zip(names, mean, strict=True)}


def _joint_components(a: np.ndarray, b: np.ndarray, n: int) -> np.ndarray:
    joint = np.vstack([a, b])
    solver = "arpack" if n < min(joint.shape) else "full"
    return PCA(min(n, *joint.shape), svd_solver=solver, random_state=0).fit_transform(joint)


def _told_apart(
    forest: RandomForestClassifier, x: np.ndarray, n: int, *, share: float, components: int = 0
) -> tuple[float, float]:
    """Accuracy and AUC of a forest on one hold-out; components are of its train part where asked for."""
    truth = np.repeat([0, 1], [n, len(x) - n])
    x_train, x_test, y_train, y_test = train_test_split(x, truth, test_size=share, random_state=1)
    if components:
        pca = PCA(min(components, *x_train.shape), random_state=0).fit(x_train)
        x_train, x_test = pca.transform(x_train), pca.transform(x_test)
    forest.fit(x_train, y_train)
    score = forest.predict_proba(x_test)[:, 1]
    return float(accuracy_score(y_test, score > 0.5)), float(roc_auc_score(y_test, score))
