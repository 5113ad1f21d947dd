"""How near a forward of few rows is to the speed at which the machine reads: products, then whole forwards.

    python -m eval.measure.products --pair smollm2-135m --dtype bfloat16 --threads 2
    python -m eval.measure.products --pair demo --rows 1 8 --clock cpu --threads 1       beside other work

products     GB/s of weights read, per shape of the target's linear layers: every layer of a shape in turn, so that they
             come from memory as in a step; as torch multiplies, with oneDNN's packed copies, and natively
forwards     milliseconds of scoring a chain of so many rows behind `--context` tokens: the stock model, the project's
             decoder in torch, and with native code

Ways alternate round by round; medians, minima in brackets. `read` is the machine reading one large tensor.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from eagle import command
from eagle.checkpoints.pairs import DEMO
from eagle.checkpoints.pretrained import read_model
from eagle.nn import native
from eagle.nn.native import calls
from eagle.nn.packed import can_pack, packed, packed_product
from eagle.nn.target import CachedLM
from eval.report.markdown import markdown_table
from eval.run.load_models import DTYPES, add_model_flags, resolve_flags

READ_BYTES = 2**28
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Ways = dict[str, Callable[[], object]]  # what is compared, by name


def alternate(ways: Ways, rounds: int, now: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of every way, round by round, after one call each that is not counted."""
    found: dict[str, list[float]] = defaultdict(list)
    for way in ways.values():
        way()
    for _ in range(rounds):
        for name, way in ways.items():
            began = now()
            way()
            found[name].append(now() - began)
    return found


def cell(seconds: list[float], show: Callable[[float], str]) -> str:
    """Median, and the best in brackets."""
    return f"{show(statistics.median(seconds))} ({show(min(seconds))})"


def read_rate(rounds: int, now: Callable[[], float]) -> str:
    """GB/s of reading a tensor larger than the caches."""
    data = torch.ones(READ_BYTES // 4)
    return cell(alternate({"read": data.sum}, rounds, now)["read"], lambda s: f"{READ_BYTES / s / 1e9:.1f}")


def weights_by_shape(model: nn.Module) -> dict[tuple[int, int], list[Tensor]]:
    """The weights of the linear layers, by [out, in]."""
    found: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            out, size = layer.weight.shape
            found[out, size].append(layer.weight.detach())
    return found


def product_ways(weights: list[Tensor], x: Tensor) -> Ways:
    """x times every weight in turn, in the ways that this machine has."""
    copies = [packed(weight) for weight in weights] if can_pack(weights[0]) else []
    ways: Ways = {"torch": lambda: [linear(x, weight) for weight in weights]}
    if copies:
        ways["oneDNN, packed"] = lambda: [packed_product(x, copy) for copy in copies]
    if calls.usable(*weights):
        ways["native"] = lambda: [calls.linear(x, weight) for weight in weights]
    return ways


def forward_ways(model: nn.Module, tokens: Tensor, rows: int) -> Ways:
    """Scoring a chain of `rows` tokens behind `tokens` Int64[1, L]."""
    depths, chain = torch.arange(rows)[None], torch.ones(1, rows, rows).tril().bool()

    def scoring(lm: CachedLM) -> Callable[[], object]:
        lm.cache.reserve(1, rows, tokens.shape[1], rows)
        lm.read_prompt(0, tokens[0].tolist())
        lm.cache.use(1)
        return lambda: lm.score_tree(tokens[:, :rows], depths, chain)

    ways = {"stock": CachedLM(model, decoder="stock"), "decoder, torch": CachedLM(model), "decoder": CachedLM(model)}
    for name, lm in list(ways.items()):
        if name != "stock" and (lm.decoder is None or lm.decoder.native is None):
            del ways[name]  # the same as the row above
    if "decoder, torch" in ways and ways["decoder, torch"].decoder is not None:
        ways["decoder, torch"].decoder.native = None
    return {name: scoring(lm) for name, lm in ways.items()}


def table(rows_of: dict[str, dict[int, str]], rows: list[int], name: str) -> str:
    """Markdown: a row per way, a column per number of rows."""
    cells = [[way, *(found.get(count, "-") for count in rows)] for way, found in rows_of.items()]
    return markdown_table([name, *(f"{count} rows" for count in rows)], cells)


def measure(options: argparse.Namespace) -> None:
    """Print what is read, a table per shape, and the forwards."""
    torch.set_num_threads(options.threads)
    resolve_flags(options, head=False)
    model = read_model(options.base_model_path, dtype=DTYPES[options.dtype], attn_implementation="grouped")
    now = CLOCKS[options.clock]
    generator = torch.Generator().manual_seed(0)
    print(f"{options.threads} threads, {options.dtype}, native code: {native.unavailable() or 'yes'}")
    print(f"read: {read_rate(options.rounds, now)} GB/s")
    for (out, size), weights in weights_by_shape(model).items():
        found: dict[str, dict[int, str]] = defaultdict(dict)
        total = sum(weight.nbytes for weight in weights)
        for rows in options.rows:
            x = torch.randn(rows, size, generator=generator).to(model.dtype)
            for way, seconds in alternate(product_ways(weights, x), options.rounds, now).items():
                found[way][rows] = cell(seconds, lambda s, total=total: f"{total / s / 1e9:.1f}")  # type: ignore[misc]
        print(f"\n{table(found, options.rows, f'{out} x {size} ({len(weights)}), GB/s')}")
    tokens = torch.randint(model.config.vocab_size, (1, options.context), generator=generator)
    found = defaultdict(dict)
    for rows in options.rows:
        for way, seconds in alternate(forward_ways(model, tokens, rows), options.rounds, now).items():
            found[way][rows] = cell(seconds, lambda s: f"{1e3 * s:.1f}")
    print(f"\n{table(found, options.rows, f'forward behind {options.context} tokens, ms')}")


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = command.parser("eval.measure.products", __doc__)
    add_model_flags(parser, default_pair=DEMO)
    parser.add_argument("--rows", type=command.whole(1), nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--context", type=command.whole(1), default=320, help="tokens before the rows of a forward")
    parser.add_argument("--rounds", type=command.whole(1), default=15)
    parser.add_argument("--threads", type=command.whole(1), default=torch.get_num_threads())
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: this process's processor time")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = build_parser().parse_args(argv)
    if options.context < max(options.rows):
        build_parser().error(f"--context {options.context}: expected at least as many tokens as --rows {options.rows}")
    with torch.inference_mode():
        return command.run(lambda: measure(options))


if __name__ == "__main__":
    raise SystemExit(main())
