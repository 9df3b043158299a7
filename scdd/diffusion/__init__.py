"""Diffusion on vectors: schedules, parameterisations, one-step maps, samplers. Torch only; knows nothing of cells."""
