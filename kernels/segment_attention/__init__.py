"""Softmax attention inside the segments of a packed batch."""

from __future__ import annotations

from .api import SegmentAttentionOutput, segment_attention, segment_attention_with_lse

__all__ = ["SegmentAttentionOutput", "segment_attention", "segment_attention_with_lse"]
