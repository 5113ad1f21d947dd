"""How many committed slots a forward looks at: the length, rounded up, so that shapes repeat from step to step.

    SMALLEST = 64       length  1 .. 64  65 .. 128 ... 961 .. 1024 | 1025 .. 1152 ... 1921 .. 2048 | 2049 .. 2304 ...
                        window       64        128            1024            1152           2048            2304

Multiples of the smallest granule up to sixteen of them, then eight windows for every doubling of the length: a
generation sees few shapes, and at most an eighth of a long window is padding, which masks hide.
"""

import torch

# Slots by device type: on a CPU padding costs time, on a GPU every new shape costs a capture.
SMALLEST = {"cpu": 64, "cuda": 256}
DEFAULT_SMALLEST = 256


def whole(length: int, device: torch.device) -> int:
    """`length` as a multiple of the smallest granule: what a cache is allocated with."""
    granule = SMALLEST.get(device.type, DEFAULT_SMALLEST)
    return max(-(-length // granule), 1) * granule


def bucket(length: int, device: torch.device) -> int:
    """The window for `length` committed tokens: at least `length`, at most an eighth or one granule more."""
    granule = max(SMALLEST.get(device.type, DEFAULT_SMALLEST), 1 << max((length - 1).bit_length() - 4, 0))
    return max(-(-length // granule), 1) * granule
