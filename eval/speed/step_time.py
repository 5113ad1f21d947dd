"""Time of one decoding step by phase, against what the hardware allows.

    python -m eval.speed.step_time --base-model-path checkpoints/demo/target --ea-model-path checkpoints/demo/eagle3
    python -m eval.speed.step_time --shape llama-3.1-8b --nodes 1 60 --context 512 2048 8192    random weights, on a GPU

Variants (tree x nodes x context) alternate step by step, so that a drift of the machine hits all alike; the medians
over `--steps` rounds are reported. `floor` is the larger of two: bytes that must be read / measured copy bandwidth,
and FLOPs / measured matrix-product rate. `host` is what lies between the phases. On a GPU every phase ends with a wait,
and steps are replayed as CUDA graphs unless `--no-graphs`.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import torch

from eagle import EagleModel
from eagle.checkpoints.pairs import add_pair_argument, parse_with_pair
from eagle.engine.capturable import why_not
from eagle.engine.plan import Plan
from eagle.engine.sampling import SamplingParams, SamplingTransform
from eagle.engine.sequence import PhaseClock
from eagle.engine.step import Decoder
from eagle.trees import TreeSettings
from eval.jsonl import write_whole
from eval.provenance import provenance
from eval.reports.plots import PHASE_COLOURS, png, pyplot
from eval.reports.tables import Table, markdown_table
from eval.runs.answers import PHASES
from eval.runs.load_models import DTYPES, default_dtype, load
from eval.speed.roofline import Floor, measure_rates, step_floor
from eval.speed.shapes import SHAPES, random_pair

COLUMNS = (*PHASES, "host")
WARM_UP = 4  # steps: the prompt's, and those in which a graph is prepared and recorded


class Variant(NamedTuple):
    tree: str
    verifier: str
    nodes: int
    context: int

    @property
    def label(self) -> str:
        return f"{self.tree} {self.nodes} @ {self.context}"


def variants(args: argparse.Namespace) -> list[Variant]:
    """Plain decoding once per context, then every tree with every budget above one node."""
    found = []
    for context in args.context:
        found.append(Variant("none", "hsd", 1, context))
        found += [
            Variant(tree, args.verifier, nodes, context) for nodes in args.nodes if nodes > 1 for tree in args.trees
        ]
    return found


class Runner:
    """One variant's session, kept at its context length: steps go on until `room` is used up, then it starts over."""

    def __init__(self, model: EagleModel, variant: Variant, args: argparse.Namespace):
        self.model, self.variant, self.room = model, variant, 64
        self.generator = torch.Generator(model.device).manual_seed(args.seed)
        settings = TreeSettings(nodes=variant.nodes, depth=args.depth)
        law = SamplingTransform(SamplingParams(args.temperature))
        self.plan = Plan.resolve(variant.tree, variant.verifier, settings, law)
        self.passes = 0 if variant.tree == "none" else min(args.depth, max(variant.nodes - 1, 1))
        drafter = model.drafter if self.plan.builder else None
        possible = args.graphs and model.captured is not None and not why_not(model.target, drafter, self.plan)
        self.decoder = Decoder(model.target, drafter, self.plan, self.generator, model.captured if possible else None)
        self.state = None

    def start(self) -> None:
        context = self.variant.context - self.room // 2
        vocabulary = self.model.target.vocab_size
        tokens = torch.randint(vocabulary, (context,), generator=torch.Generator().manual_seed(0)).tolist()
        graphs = self.decoder.graphs
        self.state = self.decoder.prefill([tokens], self.room, graphs.buffers if graphs else None)
        self.state.clock = PhaseClock(synchronize=self.model.device.type == "cuda")
        self.state.rows[0].new_tokens += self.state.step.root.tolist()

    def round(self, count: int) -> list[dict[str, float]]:
        """Seconds by phase of `count` steps after those that warm up."""
        self.start()
        times = [self.one() for _ in range(count + WARM_UP)]
        return times[WARM_UP:]

    def one(self) -> dict[str, float]:
        row = self.state.rows[0]
        if len(row.new_tokens) > self.room - self.plan.settings.depth - 2:
            self.start()
            row = self.state.rows[0]
        began = time.perf_counter()
        results = self.decoder.step(self.state)
        whole = time.perf_counter() - began
        row.new_tokens += results[0].tokens
        seconds = self.state.clock.seconds
        return {**seconds, "host": max(whole - sum(seconds.values()), 0.0)}


def measure(model: EagleModel, args: argparse.Namespace) -> list[dict]:
    """Alternate the variants over `--rounds` rounds; rows of medians in milliseconds."""
    runners = [Runner(model, variant, args) for variant in variants(args)]
    times: dict[Variant, list[dict[str, float]]] = {runner.variant: [] for runner in runners}
    for _ in range(args.rounds):
        for runner in runners:
            times[runner.variant] += runner.round(args.steps)
    rates = measure_rates(model.device, model.target.model.dtype)
    rows = []
    for runner in runners:
        width = max(runner.variant.nodes // max(runner.passes, 1), 1)
        floor = step_floor(model, rates, runner.variant.nodes, runner.passes, width)
        rows.append(summarise(runner.variant, times[runner.variant], floor))
    plain = {row["context"]: row["step"] for row in rows if row["tree"] == "none"}
    for row in rows:
        row["plain_steps"] = row["step"] / plain[row["context"]]
    return rows


def summarise(variant: Variant, times: list[dict[str, float]], floor: Floor) -> dict:
    medians = {name: 1e3 * statistics.median(one[name] for one in times) for name in COLUMNS}
    whole = 1e3 * statistics.median(sum(one.values()) for one in times)
    return {
        **variant._asdict(),
        **medians,
        "step": whole,
        "floor": 1e3 * floor.seconds,
        "floor_bytes": 1e3 * floor.bytes_seconds,
        "floor_flops": 1e3 * floor.flops_seconds,
        "ratio": whole / (1e3 * floor.seconds),
        "n": len(times),
    }


def table(rows: list[dict]) -> Table:
    header = ["tree", "nodes", "context", *COLUMNS, "step", "plain steps", "floor", "step / floor"]
    cells = [
        [
            row["tree"],
            str(row["nodes"]),
            str(row["context"]),
            *(f"{row[name]:.2f}" for name in COLUMNS),
            f"{row['step']:.2f}",
            f"{row['plain_steps']:.2f}",
            f"{row['floor']:.2f}",
            f"{row['ratio']:.1f}",
        ]
        for row in rows
    ]
    note = "Milliseconds, medians. `plain steps` is the step in units of plain decoding's step at the same context."
    return Table("Time of a step", note, header, cells)


def picture(rows: list[dict]) -> bytes:
    """Stacked bars by phase, the floor as a mark."""
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.4 * len(rows)), layout="constrained")
    colours = {**PHASE_COLOURS, "host": "#444444"}
    left = [0.0] * len(rows)
    for name in COLUMNS:
        widths = [row[name] for row in rows]
        axes.barh(range(len(rows)), widths, left=left, color=colours[name], label=name, height=0.66)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.plot([row["floor"] for row in rows], range(len(rows)), "k|", markersize=14, label="floor")
    axes.set_yticks(range(len(rows)), [f"{row['tree']} {row['nodes']} @ {row['context']}" for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds per step")
    axes.legend(frameon=False, ncols=3, fontsize=8)
    return png(figure)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m eval.speed.step_time", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_pair_argument(parser)
    parser.add_argument("--base-model-path", metavar="P")
    parser.add_argument("--ea-model-path", metavar="P")
    parser.add_argument("--shape", choices=list(SHAPES), help="random weights in this shape, instead of a checkpoint")
    parser.add_argument("--layers", type=int, help="with --shape: a target of only this many layers")
    parser.add_argument("--dtype", choices=list(DTYPES), default=default_dtype())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--nodes", type=int, nargs="+", default=[8, 16, 32, 60], help="rows scored per step")
    parser.add_argument("--context", type=int, nargs="+", default=[256], help="tokens committed before the step")
    parser.add_argument("--trees", nargs="+", default=["topk", "hybrid"])
    parser.add_argument("--verifier", default="hsd")
    parser.add_argument("--depth", type=int, default=7)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--no-graphs", dest="graphs", action="store_false", help="on a GPU: run every step as it is")
    parser.add_argument("--steps", type=int, default=10, help="steps per variant and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", metavar="DIR", help="write step_time.json and step_time.png there")
    args = parser.parse_args()
    if args.pair:
        args = parse_with_pair(parser)
    if bool(args.shape) == bool(args.base_model_path and args.ea_model_path):
        parser.error("give --shape, --pair, or both --base-model-path and --ea-model-path")
    return args


def main() -> None:
    args = parse()
    device = torch.device(args.device)
    if args.shape:
        model = random_pair(args.shape, DTYPES[args.dtype], device, args.layers)
    else:
        model = load(args.base_model_path, args.ea_model_path, args.dtype)
    rows = measure(model, args)
    print(markdown_table(table(rows)))
    if args.output:
        directory = Path(args.output)
        write_whole(directory / "step_time.json", json.dumps({"rows": rows, "origin": provenance()}, indent=1))
        write_whole(directory / "step_time.png", picture(rows))


if __name__ == "__main__":
    main()
