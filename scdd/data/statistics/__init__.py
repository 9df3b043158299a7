"""Streaming statistics of cells and genes."""
