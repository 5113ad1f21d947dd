"""`python -m eagle.train.regenerate`, the short name of `python -m eagle.train.data.regenerate`."""

import sys

from eagle.train.data.regenerate import main

if __name__ == "__main__":
    sys.exit(main())
