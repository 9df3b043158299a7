"""Diffusion on vectors: schedules, parameterisations, one-step maps, samplers. Knows nothing of cells."""
