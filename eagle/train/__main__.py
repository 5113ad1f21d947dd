"""Train an EAGLE-3 draft head for a target.

    python -m eagle.train --config F [--setting value ...]

F is a JSON file (see eagle/train/config.py); every setting can be given on the command line instead. A run whose
output directory holds checkpoints continues from the last one. The best head so far lies in the output directory
itself, in the SafeAILab layout; with several processes or machines, start it with `accelerate launch -m eagle.train`.
"""

import argparse

from eagle.train.config import add_arguments, from_arguments
from eagle.train.trainer import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m eagle.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    Trainer(from_arguments(parser.parse_args())).run()


if __name__ == "__main__":
    main()
