"""`python -m eagle.convert`, the short name of `python -m eagle.checkpoints.convert`."""

import sys

from eagle.checkpoints.convert import main

if __name__ == "__main__":
    sys.exit(main())
