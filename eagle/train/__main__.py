"""Train an EAGLE-3 draft head for a target.

    python -m eagle.train --config F [--setting value ...]

F is a JSON file (see eagle/train/config.py); every setting can be given on the command line instead. A run whose
output directory holds checkpoints continues from the last one. The best head so far lies in the output directory
itself, in the SafeAILab layout; with several processes or machines, start it with `accelerate launch -m eagle.train`.
"""

import argparse
import sys

import torch

from eagle import command
from eagle.train import checkpoint
from eagle.train.config import add_arguments, from_arguments
from eagle.train.progress import checkpoint_root
from eagle.train.trainer import train


def main(argv: list[str] | None = None) -> int:
    """Train a head as `argv` says and return the exit status."""
    parser = command.parser("eagle.train", __doc__)
    add_arguments(parser)

    def kept(args: argparse.Namespace) -> str:
        found = checkpoint.directories(checkpoint_root(from_arguments(args).output))
        if not found:
            return "no checkpoint was written yet; the same command begins again"
        return f"{found[-1]} is kept; the same command continues from it"

    torch.set_flush_denormal(True)  # a CPU computes a draft's smallest probabilities many times slower than others
    try:
        return command.start(parser, lambda args: train(from_arguments(args)), argv, kept)
    finally:
        torch.set_flush_denormal(False)


if __name__ == "__main__":
    sys.exit(main())
