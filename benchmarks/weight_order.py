"""Time of a linear layer by rows, its weight row by row, column by column and packed: why `eagle.weight_order` and
`eagle.modules.packed_linear` exist.

    python -m benchmarks.weight_order --shape 4096 256 --threads 1

Alternating, the median of many repeats, float32 on the CPU.
"""
import argparse
import statistics
import time

import torch
from torch.nn.functional import linear

from eagle.modules.packed_linear import packed, packed_product
from eagle.weight_order import column_major


def seconds(product, x: torch.Tensor, weight: torch.Tensor) -> float:
    began = time.perf_counter()
    product(x, weight)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=2, default=(4096, 256), metavar=("OUT", "IN"))
    parser.add_argument("--rows", type=int, nargs="+", default=(1, 2, 5, 13, 21, 60, 500))
    parser.add_argument("--repeats", type=int, default=201)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    by_row = torch.randn(*args.shape)
    weights = {
        "by row": (linear, by_row), "by column": (linear, column_major(by_row)),
        "packed": (packed_product, packed(by_row)),
    }
    print("| rows | " + " | ".join(f"{name}, us" for name in weights) + " |\n|---|" + "---|" * len(weights))
    for rows in args.rows:
        x, times = torch.randn(rows, args.shape[1]), {name: [] for name in weights}
        for _ in range(args.repeats):
            for name, (product, weight) in weights.items():
                times[name].append(seconds(product, x, weight))
        medians = (1e6 * statistics.median(taken) for taken in times.values())
        print(f"| {rows} | " + " | ".join(f"{median:.1f}" for median in medians) + " |")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
