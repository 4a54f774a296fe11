"""Write mergekit's configuration for the blocks in a row that cost least together, as PruneMe chooses them.

python examples/drop_layers_with_mergekit.py MODEL COUNT TEXT > merge.yaml; mergekit-yaml merge.yaml OUT
"""

from __future__ import annotations

import sys

import yaml

import pyprune
from pyprune.scoring.calibration import calibration
from pyprune.scoring.other_tools import mergekit_config


def main(model: str, count: str, text: str) -> None:
    decoder = pyprune.load(model)
    result = pyprune.search(decoder, calibration(decoder, text).input_ids, "window", count=int(count))
    print(yaml.safe_dump(mergekit_config(result.pruning(), model, len(decoder.blocks)), sort_keys=False), end="")


if __name__ == "__main__":
    main(*sys.argv[1:])
