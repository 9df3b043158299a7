"""Judges AnnData objects, whoever made them."""
