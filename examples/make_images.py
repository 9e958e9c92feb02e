"""Writes the images that the demo market ships: python examples/make_images.py --data DIR

`samples/` holds 20 images a class from the pool that no donor was trained on; orders choose with them.
`heldout/` holds 200 images a class of the test split; only reports read them.
Each class is one lossless WebP sheet.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from cifar import TILE, Split, read_split, train_and_pool
from PIL import Image

NOTE = (
    "Tiles of CIFAR-10 (Alex Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; "
    "www.cs.toronto.edu/~kriz/cifar.html). Its authors state no licence; cite the report when you use them."
)


def write_sheets(split: Split, folder: Path, count: int, columns: int, source: str) -> None:
    """One sheet a class with its first `count` images, and sheet.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in split.classes:
        images = split.of(name)[:count]
        rows = count // columns
        sheet = images.reshape(rows, columns, TILE, TILE, 3).transpose(0, 2, 1, 3, 4)
        sheet = np.ascontiguousarray(sheet).reshape(rows * TILE, columns * TILE, 3)
        path = folder / f"{name}.webp"
        Image.fromarray(sheet).save(path, lossless=True, quality=100, method=6)
        if not np.array_equal(np.asarray(Image.open(path).convert("RGB")), sheet):
            raise SystemExit(f"{path} does not hold the pixels that were written")
    description = {"tile": [TILE, TILE], "classes": list(split.classes), "source": source, "note": NOTE}
    (folder / "sheet.json").write_text(json.dumps(description, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10 sheets with meta.json")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    given = parser.parse_args()
    _, pool = train_and_pool(read_split(given.data, "train"))
    write_sheets(pool, given.out / "samples", 20, 10, "train split, not used to train the donors")
    write_sheets(read_split(given.data, "test"), given.out / "heldout", 200, 20, "test split")


if __name__ == "__main__":
    main()
