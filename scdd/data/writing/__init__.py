"""Writing atlases, streamed."""
