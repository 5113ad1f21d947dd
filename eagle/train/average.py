"""The mean of heads' weights: what a short run gains on one kind of text without what it loses on another.

    python -m eagle.train.average HEAD_A HEAD_B... --output DIR

For heads of which each continued from another (`--init-from`). Writes DIR/config.json and DIR/model.safetensors.
"""

import argparse
import functools
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from eagle import command
from eagle.files import write_file


def mean(tensors: list[Tensor], name: str) -> Tensor:
    """Of tensors of one shape, in their dtype; of whole numbers (d2t, t2d) the one value that all have.

    Raises ValueError naming the tensor where shapes or whole numbers differ.
    """
    first = tensors[0]
    if any(tensor.shape != first.shape for tensor in tensors):
        shapes = [list(tensor.shape) for tensor in tensors]
        raise ValueError(
            f"{name}: shapes {shapes}; expected the same in all heads, of which each continued from another"
        )
    if first.is_floating_point():
        return torch.stack([tensor.float() for tensor in tensors]).mean(0).to(first.dtype)
    if any(not torch.equal(tensor, first) for tensor in tensors):
        raise ValueError(
            f"{name}: the heads have other draft vocabularies; average heads that continued from one another"
        )
    return first


def average(heads: list[str], output: str) -> None:
    """Write the mean of the head directories. Raises ValueError for heads that do not fit."""
    files = [Path(head, "model.safetensors") for head in heads]
    missing = [str(file) for file in files if not file.is_file()]
    if missing or len(files) < 2:
        raise ValueError(f"heads {heads}: expected two or more directories with model.safetensors; missing {missing}")
    weights = [load_file(file) for file in files]
    if any(one.keys() != weights[0].keys() for one in weights):
        raise ValueError(
            f"heads {heads}: their tensors have other names; average heads that continued from one another"
        )
    found = {name: mean([one[name] for one in weights], name) for name in weights[0]}
    Path(output).mkdir(parents=True, exist_ok=True)
    write_file(Path(output, "model.safetensors"), functools.partial(save_file, found, metadata={"format": "pt"}))
    shutil.copyfile(Path(heads[0], "config.json"), Path(output, "config.json"))


def main(argv: list[str] | None = None) -> int:
    """Average as `argv` says and return the exit status."""
    parser = command.parser("eagle.train.average", __doc__)
    parser.add_argument("heads", nargs="+", metavar="HEAD", help="directories of heads of one shape")
    parser.add_argument("--output", required=True, metavar="DIR")
    args: argparse.Namespace = parser.parse_args(argv)
    return command.run(lambda: average(args.heads, args.output))


if __name__ == "__main__":
    sys.exit(main())
