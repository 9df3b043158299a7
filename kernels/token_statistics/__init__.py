"""Attention that is linear in tokens: each head weighs its tokens by how they align with its own variance."""

from __future__ import annotations

from .api import token_statistics_attention

__all__ = ["token_statistics_attention"]
