"""From rows to batches: order, windows, memory and what is delivered."""
