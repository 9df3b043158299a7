"""Attention whose queries, keys and values are one tensor: the tokens, projected on each head's subspace."""

from __future__ import annotations

from .api import multihead_subspace_attention

__all__ = ["multihead_subspace_attention"]
