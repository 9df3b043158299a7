"""Packed folders: every cell on its own, in any order."""
