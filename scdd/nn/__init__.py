"""Torch modules: embeddings, conditioned blocks, expression heads."""
