"""Matrices as they lie in files: where chunks are, and rows of every layout."""
