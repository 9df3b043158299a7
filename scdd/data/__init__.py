"""From files to mini-batches: atlas, splits, preprocessing, loader, simulator."""
