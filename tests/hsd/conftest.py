"""Make `tests.reference` and `benchmarks` importable from the repository root; one thread: the tensors are tiny."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
torch.set_num_threads(1)
