"""A small, sound call of every public function of `scdd.kernels`, for what must hold of all of them."""

from __future__ import annotations

import inspect
import math
from types import SimpleNamespace

import torch

from scdd import kernels

FUNCTIONS = tuple(name for name in kernels.__all__ if inspect.isfunction(getattr(kernels, name)))
RESULTS = tuple(name for name in kernels.__all__ if name not in FUNCTIONS)

_CELLS, _TOKENS, _HEADS = 3, 10, 2


def takes(name: str, argument: str) -> bool:
    """Whether a function has an argument."""
    return argument in inspect.signature(getattr(kernels, name)).parameters


def call(name: str, arguments: dict) -> object:
    """Call a function of `scdd.kernels` by keyword alone."""
    return getattr(kernels, name)(**arguments)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + 7 * sum(shape) + len(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def arguments_of(name: str, dtype: torch.dtype = torch.float32) -> dict:
    """Arguments by keyword, with every optional tensor that can be given."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def some(*shape: int, seed: int = 0) -> torch.Tensor:
        return normal(*shape, dtype=dtype, seed=seed)

    def positive(*shape: int) -> torch.Tensor:
        return normal(*shape, dtype=wide).abs() + 0.1

    for family in (_attention, _white_box, _diffusion, _others):
        found = family(name, some, positive)
        if found is not None:
            return found
    raise KeyError(f"{name} has no call here; add one")


def _attention(name, some, positive):
    starts = torch.tensor([0, 4, 4, _TOKENS])
    if name == "segment_schedule":
        return {"cu_seqlens": starts, "total": _TOKENS, "tile_rows": 64}
    if name not in ("segment_attention", "segment_attention_with_lse", "attention_mass", "attention_rows"):
        return None
    q, k, v = (some(_TOKENS, _HEADS, 32, seed=seed) for seed in range(3))
    scores = {
        "q": q, "k": k, "cu_seqlens": starts, "scale": 0.2, "key_weight": positive(_HEADS),
        "key_value": positive(_TOKENS), "slope": positive(_HEADS), "coordinate": positive(_TOKENS),
    }  # fmt: skip
    if name.startswith("segment_attention"):
        return scores | {"v": v}
    scores["lse"] = kernels.segment_attention_with_lse(v=v, **scores).lse
    if name == "attention_mass":
        return scores
    return scores | {"genes": torch.arange(_TOKENS) % 5, "chosen": torch.tensor([1, 3]), "n_genes": 5}


def _white_box(name, some, positive):
    packed = {"w": some(_TOKENS, _HEADS, 32), "cu_seqlens": torch.tensor([0, 4, 4, _TOKENS])}
    rows, row = some(_CELLS, 5, 8), some(_CELLS, 8, seed=1)
    modulation = {"x": rows, "shift": some(_CELLS, 8), "scale": row}
    extras = {"residual": some(_CELLS, 5, 8, seed=2), "gate": some(_CELLS, 8, seed=3)}
    sparse = {"step_size": 0.1, "threshold": 0.1, **extras}
    wide = {"x": rows, "dictionary": some(8, 16), "readout": some(8, 16, seed=1), **sparse}
    step = {"y": rows, "dictionary": some(8, 8), **sparse}
    return {
        "coding_rate": {"z": some(_CELLS, 5, 4), "eps": 0.5},
        "subspace_coding_rate": packed | {"eps": 0.5},
        "multihead_subspace_attention": packed | {"scale": 0.2},
        "token_statistics_attention": packed | {"temperature": positive(_HEADS)},
        "modulate": modulation,
        "gated_residual_modulate": modulation | extras,
        "ista_operator": {"dictionary": some(8, 8), "step_size": 0.1},
        "ista_step": step,
        "ista_step_with_zeros": step,
        "overcomplete_ista_step": wide,
        "overcomplete_ista_step_with_zeros": wide,
    }.get(name)


def _diffusion(name, some, positive):
    cells = {"x0": some(_CELLS, 10), "signal": positive(_CELLS), "noise": positive(_CELLS), "seed": 3}
    embedding = {"weight": some(8, 4), "bias": some(8), "position": some(3, 8)}
    layer = {
        "h": some(_CELLS, 3, 8), "shift": some(_CELLS, 8), "scale": some(_CELLS, 8, seed=1),
        "weight": some(4, 8), "bias": some(4), "prediction": "v", "cell_weight": positive(_CELLS),
    }  # fmt: skip
    step = {
        "x": some(_CELLS, 10), "output": some(_CELLS, 10, seed=1), "coefficients": positive(6),
        "unconditional": some(_CELLS, 10, seed=2), "guidance": 2.0, "previous": some(_CELLS, 10, seed=3),
        "seed": 3, "clamp": (0, math.inf),
    }  # fmt: skip
    times = {"alpha_bar": torch.tensor([0.3, 0.6]), "alpha_bar_next": torch.tensor([0.6, 1.0])}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        layers = [torch.nn.Linear(*sizes) for sizes in ((8, 16), (16, 32), (32, 16), (16, 8))]
    network = {"enter": layers[0], "branches": [tuple(layers[1:3])], "leave": layers[3]}
    if name == "single_step_denoise":
        codes = some(_CELLS, 8)
        return {
            "z": codes, "modulation": some(2, 5 * 16), "signal": codes[:, 0].abs(),
            "noise": codes[:, 1].abs(), "condition": torch.tensor([0, 1, 1]), "eps": some(_CELLS, 8, seed=1),
            "weights": kernels.pack_denoiser(**network, dtype=codes.dtype), "mean": some(8), "std": some(8),
        }  # fmt: skip
    return {
        "noise_patch_embed": cells | embedding,
        "noise_patch_embed_with_input": cells | embedding,
        "patch_noise": {"seed": 3, "cells": 2, "genes": 10, "patch": 4},
        "denoise_loss": cells | layer,
        "denoise_step": step,
        "denoise_step_with_estimate": step,
        "ddim_coefficients": times,
        "ddpm_coefficients": times,
        "dpm_solver_coefficients": times | {"alpha_bar_last": torch.tensor([0.1, 0.3])},
        "pack_denoiser": network,
    }.get(name)


def _others(name, some, positive):
    samples = {"x": some(6, 4), "y": some(5, 4, seed=1)}
    weighted = samples | {"weights_x": positive(6), "weights_y": positive(5)}
    target = torch.tensor([0, 1, -100, 5, -100, 2, 3, -100, 4, 4])
    tokens = torch.arange(_TOKENS)
    return {
        "maximum_mean_discrepancy": weighted,
        "energy_distance": weighted,
        "mmd_permutation_test": samples | {"permutations": 20},
        "bandwidth_heuristic": samples,
        "masked_linear_cross_entropy": {
            "hidden": some(_TOKENS, 8), "weight": some(6, 8), "target": target, "bias": some(6),
            "max_masked": 9,
        },
        "embed_genes": {
            "genes": tokens % 5 - 1, "values": positive(_TOKENS), "gene_table": some(5, 8),
            "encoding": kernels.SoftBins(some(4), some(4, seed=1), some(6, 8), some(6, 4)),
            "streams": tokens % 2, "stream_table": some(2, 8), "value_stream": 0,
            "prefix_table": some(1, 8), "weight": some(8), "bias": some(8, seed=5),
        },
    }.get(name)  # fmt: skip


def example_names() -> dict:
    """What the examples of the docstrings take as given."""
    cells, width, genes, heads = 4, 32, 10, 2
    linear = torch.nn.Linear
    tokens = normal(cells, 5, width)
    starts = torch.tensor([0, 1200, 1200, 3500])
    alpha_bar = torch.linspace(1, 0.01, 11)
    blocks = [torch.nn.Sequential(linear(16, 32), torch.nn.SiLU(), linear(32, 16)) for _ in range(2)]
    q, k, v = (normal(3500, heads, 4, seed=seed) for seed in range(3))
    return {
        # attention
        "q": q, "k": k, "v": v, "cu_seqlens": starts, "counts": torch.rand(3500), "lse": normal(3500, heads),
        "genes": torch.arange(3500) % 20, "factors": torch.tensor([3, 5]),
        "indices": torch.arange(3500) % 20, "data": torch.rand(3500), "gene_table": normal(20, width),
        "weight": torch.rand(heads), "bias": torch.rand(heads), "table": normal(heads, width),
        # transformers
        "tokens": tokens, "heads": heads, "projection": linear(width, width), "output": linear(width, width),
        "temperature": torch.ones(heads), "subspaces": normal(width, width),
        "condition": normal(cells, 6), "condition_to_modulation": linear(6, 2 * width), "x": tokens,
        "shift": normal(cells, width), "scale": normal(cells, width), "gate": normal(cells, width),
        "mlp": linear(width, width), "branch": tokens, "stream": tokens, "dictionary": normal(width, width),
        "readout": normal(width, width),
        # diffusion
        "x0": normal(cells, genes), "signal": torch.rand(cells), "noise": torch.rand(cells), "step": 7,
        "embed": linear(4, width), "position": normal(3, width), "blocks": lambda tokens: tokens,
        "head": linear(width, 4), "alpha_bar": alpha_bar, "times": [10, 5, 1, 0],
        "network": lambda x, t: 0.1 * x, "codes": normal(cells, 8), "modulation": normal(3, 8 * 16),
        "label": torch.tensor([0, 1, 2, 2]), "eps": normal(cells, 8),
        "net": SimpleNamespace(enter=linear(8, 16), branches=blocks, leave=linear(16, 8)),
        # losses and samples
        "hidden": normal(3500, width), "embedding": normal(20, width), "gene": torch.arange(3500) % 20,
        "masked": torch.arange(3500) % 7 == 0, "real": normal(9, 3), "synthetic": normal(8, 3),
        "generated": normal(8, 3), "held_out": normal(7, 3),
    }  # fmt: skip
