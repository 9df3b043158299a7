"""Write the atlas in annbatch's own format, by annbatch itself with its defaults: lz4 zarr, shuffled on disk.

`python collection.py raw.h5ad annbatch.zarr`, with an interpreter that has annbatch and zarrs. By default annbatch
holds the whole matrix while it shuffles (17 GB for the large atlas); `--dataset-size 2GB` holds a part at a time.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import zarr
from annbatch import DatasetCollection


def main() -> None:
    """Convert, and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("h5ad", type=Path)
    parser.add_argument("collection", type=Path)
    parser.add_argument("--dataset-size", default="20GB", help="annbatch's own option and default")
    arguments = parser.parse_args()
    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    begin = time.perf_counter()
    part = arguments.collection.with_suffix(".part.zarr")
    DatasetCollection(part).add_adatas(
        [arguments.h5ad], shuffle=True, dataset_size=arguments.dataset_size, rng=np.random.default_rng(0)
    )
    part.rename(arguments.collection)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{time.perf_counter() - begin:.0f} s, peak {peak:,.0f} MB")


if __name__ == "__main__":
    main()
