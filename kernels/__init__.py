"""Fused operators: plain functions over tensors that know nothing of cells.

Each operator is a folder with the same files: ``api`` (the public function), ``ops`` (its registration
with PyTorch), ``reference`` (its definition), ``triton`` (the kernels), ``tiles`` (how they are cut) and
``builds`` (what is compiled ahead of time). Tensors on a GPU go to the kernels, all others to PyTorch.
Importing this package needs neither a GPU nor Triton.
"""

from __future__ import annotations

if __name__ != "scdd.kernels":
    raise ImportError(
        f"this package was imported as {__name__!r}, a copy whose operators would clash with the real ones; "
        "install scdd (`pip install -e .`) and import `scdd.kernels`"
    )

# Bound here and now, not lazily: a folder and its function share a name, and the function must win.
from ._segments import SegmentSchedule, segment_schedule
from .attention_map import AttentionRows, attention_mass, attention_rows
from .coding_rate import coding_rate, subspace_coding_rate
from .denoise_loss import DenoiseLoss, denoise_loss
from .denoise_step import (
    DenoisedStep,
    ddim_coefficients,
    ddpm_coefficients,
    denoise_step,
    denoise_step_with_estimate,
    dpm_solver_coefficients,
)
from .embed_genes import SoftBins, ValueMLP, embed_genes
from .ista import (
    IstaOutput,
    ista_operator,
    ista_step,
    ista_step_with_zeros,
    overcomplete_ista_step,
    overcomplete_ista_step_with_zeros,
)
from .linear_cross_entropy import masked_linear_cross_entropy
from .modulate import ModulateOutput, gated_residual_modulate, modulate
from .noise_patch_embed import (
    NoisedTokens,
    noise_patch_embed,
    noise_patch_embed_with_input,
    patch_noise,
)
from .sample_distance import (
    PermutationTest,
    bandwidth_heuristic,
    energy_distance,
    maximum_mean_discrepancy,
    mmd_permutation_test,
)
from .segment_attention import SegmentAttentionOutput, segment_attention, segment_attention_with_lse
from .single_step_denoise import DenoiserWeights, pack_denoiser, single_step_denoise
from .subspace_attention import multihead_subspace_attention
from .token_statistics import token_statistics_attention

__all__ = [
    "AttentionRows",
    "DenoiseLoss",
    "DenoisedStep",
    "DenoiserWeights",
    "IstaOutput",
    "ModulateOutput",
    "NoisedTokens",
    "PermutationTest",
    "SegmentAttentionOutput",
    "SegmentSchedule",
    "SoftBins",
    "ValueMLP",
    "attention_mass",
    "attention_rows",
    "bandwidth_heuristic",
    "coding_rate",
    "ddim_coefficients",
    "ddpm_coefficients",
    "denoise_loss",
    "denoise_step",
    "denoise_step_with_estimate",
    "dpm_solver_coefficients",
    "embed_genes",
    "energy_distance",
    "gated_residual_modulate",
    "ista_operator",
    "ista_step",
    "ista_step_with_zeros",
    "masked_linear_cross_entropy",
    "maximum_mean_discrepancy",
    "mmd_permutation_test",
    "modulate",
    "multihead_subspace_attention",
    "noise_patch_embed",
    "noise_patch_embed_with_input",
    "overcomplete_ista_step",
    "overcomplete_ista_step_with_zeros",
    "pack_denoiser",
    "patch_noise",
    "segment_attention",
    "segment_attention_with_lse",
    "segment_schedule",
    "single_step_denoise",
    "subspace_coding_rate",
    "token_statistics_attention",
]
