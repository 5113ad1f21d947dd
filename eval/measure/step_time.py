"""Time of one decoding step by phase, against what the hardware allows.

    python -m eval.measure.step_time --base-model-path checkpoints/demo/target --ea-model-path checkpoints/demo/eagle3
    python -m eval.measure.step_time --shape llama-3.1-8b --nodes 60 --context 512 2048 8192  random weights, on a GPU

Variants (tree x nodes x context) alternate round by round, so that a drift of the machine reaches all alike; medians
over `--rounds` rounds of `--steps` steps are reported. `floor` is the larger of two: bytes that must be read / measured
copy bandwidth, and FLOPs / measured matrix-product rate. `host` is what lies between the phases. On a GPU every phase
ends with a wait, and steps are replayed as CUDA graphs unless `--no-graphs`.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import NamedTuple

import torch

from eagle import EagleModel, command
from eagle.api.loading import ATTENTION
from eagle.autotune.step_timer import HOST, step_seconds
from eagle.engine.plan import Plan
from eagle.files import check_writable, write_whole
from eagle.nn.precision import DTYPES
from eagle.trees import TreeSettings
from eval.measure.roofline import Floor, measure_rates, step_floor
from eval.measure.shapes import SHAPES, random_pair
from eval.provenance import provenance
from eval.report.markdown import markdown_table
from eval.run.answers import PHASES
from eval.run.load_models import add_model_flags, load_from_flags

COLUMNS = (*PHASES, HOST)
WARM_UP = 4  # steps after a prompt: the first has other shapes, then a graph is prepared and recorded
ROOM = 128  # tokens generated behind the prompt before the variant starts over


class Variant(NamedTuple):
    """One setting that is timed: tree, verifier, rows scored per step, tokens before the step."""

    tree: str
    verifier: str
    nodes: int
    context: int


def variants(args: argparse.Namespace) -> list[Variant]:
    """Plain decoding once per context, then every tree with every budget above one node."""
    found = []
    for context in args.context:
        found.append(Variant("none", "hsd", 1, context))
        found += [
            Variant(tree, args.verifier, nodes, context) for nodes in args.nodes if nodes > 1 for tree in args.trees
        ]
    return found


class VariantSteps:
    """Steps of one variant around its context length: the prompt is half of `ROOM` shorter, generation half longer."""

    def __init__(self, model: EagleModel, variant: Variant, options: argparse.Namespace):
        """Raises ValueError for a context too short for the prompt."""
        self.model, self.variant, self.options, length = model, variant, options, variant.context - ROOM // 2
        if length < 1:
            raise ValueError(f"--context {variant.context}: expected more than {ROOM // 2} tokens")
        self.passes = 0 if variant.tree == "none" else min(options.depth, max(variant.nodes - 1, 1))
        random = torch.Generator().manual_seed(0)
        self.prompt = torch.randint(model.target.vocab_size, (length,), generator=random).tolist()
        settings = TreeSettings(variant.nodes, options.depth)
        self.plan = Plan.resolve(variant.tree, variant.verifier, settings, options.temperature)

    def round(self) -> list[dict[str, float]]:
        """Seconds by phase of some steps behind the prompt."""
        options = self.options
        return list(
            step_seconds(
                self.model,
                self.plan,
                [self.prompt],
                options.temperature,
                options.steps,
                warm_up=WARM_UP,
                room=ROOM,
                graphs=options.graphs,
                synchronize=True,
                seed=options.seed,
            )
        )


def measure(model: EagleModel, args: argparse.Namespace) -> list[dict]:
    """Alternate the variants over `--rounds` rounds; rows of medians in milliseconds."""
    measured = [VariantSteps(model, variant, args) for variant in variants(args)]
    times: dict[Variant, list[dict[str, float]]] = {steps.variant: [] for steps in measured}
    for _ in range(args.rounds):
        for steps in measured:
            times[steps.variant] += steps.round()
    rates = measure_rates(model.device, model.target.model.dtype)
    rows = []
    for steps in measured:
        width = max(steps.variant.nodes // max(steps.passes, 1), 1)
        floor = step_floor(model, rates, steps.variant.nodes, steps.passes, width)
        rows.append(summarise(steps.variant, times[steps.variant], floor))
    plain = {row["context"]: row["step"] for row in rows if row["tree"] == "none"}
    for row in rows:
        row["plain_steps"] = row["step"] / plain[row["context"]]
    return rows


def summarise(variant: Variant, times: list[dict[str, float]], floor: Floor) -> dict:
    """One row: medians by phase and of the whole step, in milliseconds, beside the floor."""
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


def table(rows: list[dict]) -> str:
    """Markdown, in milliseconds. `plain steps`: in units of plain decoding's step at the same context."""
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
    return markdown_table(header, cells)


def picture(rows: list[dict]) -> bytes:
    """Stacked bars by phase, the floor as a mark. Needs matplotlib, which a GPU machine may lack."""
    from eval.report.plots import PHASE_COLORS, png, pyplot

    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.4 * len(rows)), layout="constrained")
    colors = {**PHASE_COLORS, HOST: "#444444"}
    left = [0.0] * len(rows)
    for name in COLUMNS:
        widths = [row[name] for row in rows]
        axes.barh(range(len(rows)), widths, left=left, color=colors[name], label=name, height=0.66)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.plot([row["floor"] for row in rows], range(len(rows)), "k|", markersize=14, label="floor")
    axes.set_yticks(range(len(rows)), [f"{row['tree']} {row['nodes']} @ {row['context']}" for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds per step")
    axes.legend(frameon=False, ncols=3, fontsize=8)
    return png(figure)


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = command.parser("eval.measure.step_time", __doc__)
    add_model_flags(parser)
    parser.add_argument("--shape", choices=list(SHAPES), help="random weights in this shape, instead of a checkpoint")
    parser.add_argument("--layers", type=command.COUNT, help="with --shape: a target of only this many layers")
    parser.add_argument("--attention", choices=ATTENTION, help="the target's, instead of the device's own")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--nodes", type=command.NODES, nargs="+", default=[8, 16, 32, 60], help="rows scored per step")
    parser.add_argument(
        "--context", type=command.COUNT, nargs="+", default=[256], help="tokens committed before the step"
    )
    parser.add_argument("--trees", nargs="+", default=["topk", "hybrid"])
    parser.add_argument("--verifier", default="hsd")
    parser.add_argument("--depth", type=command.COUNT, default=7)
    parser.add_argument("--temperature", type=command.TEMPERATURE, default=1.0)
    parser.add_argument("--no-graphs", dest="graphs", action="store_false", help="on a GPU: run every step as it is")
    parser.add_argument("--steps", type=command.COUNT, default=10, help="steps per variant and round")
    parser.add_argument("--rounds", type=command.COUNT, default=3)
    parser.add_argument("--seed", type=command.SEED, default=0)
    parser.add_argument("--output", metavar="DIR", help="write step_time.json and step_time.png there")
    return parser


def load_pair(args: argparse.Namespace) -> EagleModel:
    """The pair of a checkpoint, or of random weights with `--shape`."""
    random = args.shape and random_pair(args.shape, DTYPES[args.dtype], torch.device(args.device), args.layers)
    model = random or load_from_flags(args)
    if args.attention:
        model.target.model.set_attn_implementation(args.attention)
    return model


def run(args: argparse.Namespace) -> None:
    """Measure, print the table, write rows and picture."""
    if bool(args.shape) == bool(args.pair or args.base_model_path):
        raise ValueError("give --shape, --pair, or --base-model-path and --ea-model-path")
    if args.output:
        check_writable(Path(args.output, "step_time.json"))
    rows = measure(load_pair(args), args)
    print(f"Milliseconds, medians.\n\n{table(rows)}")
    if args.output:
        directory = Path(args.output)
        write_whole(directory / "step_time.json", json.dumps({"rows": rows, "origin": provenance()}, indent=1))
        write_whole(directory / "step_time.png", picture(rows))


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command.start(build_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
