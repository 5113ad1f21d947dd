r"""E[accepted] of trees and verifiers over temperatures and budgets, on the same states of a benchmark's questions.

    python -m eval.measure.table --bench gsm8k --base-model-path checkpoints/demo/target \
        --ea-model-path checkpoints/demo/eagle3 --temperatures 0 0.5 1 1.5 --budgets 4 8 16 32 60 128 \
        --methods topk+token chain+hsd hybrid+token hybrid+hsd --output results/tree_table

The states lie on answers that the target itself samples, every `--stride` tokens, so no method chooses them. Every
number is exact for its tree (the stopping law, no verification noise) and comes with a bootstrap 95 % interval over
questions; gains are paired. All trees of a state are scored in one forward, so more of them (`--draws`) cost little.
Hybrid trees are fitted to the head as calibrated. The tables name the target's entropy along these answers. Writes
table.md, table.json and table.png; a run that is started again goes on where it stopped. Timings and E[accepted] along
each method's own generations come from `python -m eval`.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tqdm import tqdm

from eagle import command, jsonl
from eagle.autotune.candidates import Fit
from eagle.autotune.probe import NODES_PER_FORWARD, StateProbe, TreeLimits
from eagle.engine.distributions import SamplingParams
from eagle.files import check_writable, write_whole
from eagle.trees import TreeSettings, find_tree, greedy_tree, is_sampled
from eval import provenance
from eval.measure.ladder import NATS, Values, name, plot, summarise, tables
from eval.questions import benchmarks, prompts
from eval.run.load_models import add_model_flags, load_from_flags, model_name, resolve_flags, weights_of

Row = dict[str, list[float]]  # of one question: "method@nodes" or NATS -> a value per state


def generator_of(seed: int, question: int) -> torch.Generator:
    """The generator of one question's states: the same whichever questions were measured before."""
    return torch.Generator().manual_seed(1_000_003 * seed + question)


def measure(
    model: Any,
    questions: list[list[int]],
    temperature: float,
    cells: list[tuple[str, TreeSettings]],
    states: int,
    stride: int,
    draws: int,
    seed: int,
    done: list[Row],
    save: Callable[[Row], None],
    quiet: bool,
) -> list[Row]:
    """All cells at the same states; `save(row)` after each question, the first len(done) are not asked again."""
    room = TreeLimits.of([(method.split("+")[0], settings) for method, settings in cells])
    probe = StateProbe(model, SamplingParams(temperature), room, NODES_PER_FORWARD)
    rows = list(done)
    for number in tqdm(range(len(done), len(questions)), desc=f"T={temperature}", disable=quiet, unit="question"):
        row: Row = {key: [] for key in keys_of(cells)}
        probe.begin(questions[number], stride * states + 1, generator_of(seed, number))
        while not probe.ended:
            if len(row[NATS]) % stride == 0:
                at_state(probe, temperature, cells, draws, row)
            law = probe.advance()  # along the target's own samples
            row[NATS].append(round(float(torch.special.entr(law).sum()), 4))
        rows.append(row)
        save(row)
    return rows


def at_state(
    probe: StateProbe,
    temperature: float,
    cells: list[tuple[str, TreeSettings]],
    draws: int,
    row: Row,
) -> None:
    """Each tree `draws` times, verified by all the verifiers that are asked for; their means."""
    verifiers: dict[tuple[str, TreeSettings], dict[str, str]] = {}  # per tree: its cells and their verifiers
    for method, settings in cells:
        tree, verifier = method.split("+") if temperature else (greedy_tree(method.split("+")[0]), "greedy")
        verifiers.setdefault((tree, settings), {})[name(method, settings.nodes)] = verifier
    asked = [plan for plan in verifiers for _ in range(draws if is_sampled(plan[0]) else 1)]
    found: dict[str, list[float]] = {}
    for plan, drafted in zip(asked, probe.score([probe.grow(*plan) for plan in asked]), strict=True):
        for cell, verifier in verifiers[plan].items():
            found.setdefault(cell, []).append(drafted.expected(verifier))
    for cell, values in found.items():
        row[cell].append(round(fmean(values), 5))


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = command.parser("eval.measure.table", __doc__)
    add = parser.add_argument
    benchmarks.add_flags(parser, 20)
    add_model_flags(parser)
    add(
        "--methods",
        nargs="+",
        default=["topk+token", "chain+hsd", "hybrid+token", "hybrid+hsd"],
        metavar="M",
        help="tree+verifier; gains are those of the last one over each of the others",
    )
    add("--temperatures", type=command.TEMPERATURE, nargs="+", default=[0.0, 0.5, 1.0], metavar="T")
    add("--budgets", type=command.NODES, nargs="+", default=[8, 16, 32, 60], metavar="N")
    add("--depth", type=command.COUNT, default=7)
    add("--states", type=command.COUNT, default=4, help="states per question")
    add("--stride", type=command.COUNT, default=16, help="tokens from one to the next")
    add(
        "--draws",
        type=command.COUNT,
        default=1,
        help="trees drafted at each state where trees are sampled; their mean counts",
    )
    add("--seed", type=command.SEED, default=0)
    add("--output", required=True, metavar="DIR")
    add("--quiet", action="store_true")
    return parser


@torch.inference_mode()
def run(options: argparse.Namespace) -> None:
    """Measure every temperature, write the table."""
    for method in options.methods:
        if find_tree(method.partition("+")[0]) is None or "+" not in method:
            raise ValueError(f"--methods {method!r}: expected tree+verifier, such as hybrid+hsd")
    output = Path(options.output)
    check_writable(output / "table.json")
    resolve_flags(options)
    asked = benchmarks.load(options.bench, options.protocol, options.question_file, options.num_questions)
    model = load_from_flags(options)
    questions = prompts.encode_first_turns(model.tokenizer, options.base_model_path, asked.questions)
    fits = {temperature: model.auto.fit(temperature) for temperature in options.temperatures}  # on other prompts
    cells = {temperature: cells_of(fit, options) for temperature, fit in fits.items()}
    found = {}
    with ExitStack() as stack:  # every file is claimed and checked before the first is measured
        opened = {
            temperature: stack.enter_context(
                states_file(output, temperature, fit, keys_of(cells[temperature]), options)
            )
            for temperature, fit in fits.items()
        }
        for temperature, (rows, save) in opened.items():
            measured = measure(
                model,
                questions,
                temperature,
                cells[temperature],
                options.states,
                options.stride,
                options.draws,
                options.seed,
                rows[: len(questions)],
                save,
                options.quiet,
            )
            found[f"{temperature:g}"] = summarise(columns(measured), options.methods, options.budgets)
    write(found, {f"{temperature:g}": fit._asdict() for temperature, fit in fits.items()}, asked, options, output)
    print((output / "table.md").read_text(encoding="utf-8"))


def cells_of(fit: Fit, options: argparse.Namespace) -> list[tuple[str, TreeSettings]]:
    """Every method with every budget, trees shaped by `fit`."""
    settings = [TreeSettings(nodes, options.depth, **fit._asdict()) for nodes in options.budgets]
    return [(method, of_budget) for of_budget in settings for method in options.methods]


def keys_of(cells: list[tuple[str, TreeSettings]]) -> list[str]:
    """What a row holds: a value per state for every cell, the entropies along the answer."""
    return [*(name(method, settings.nodes) for method, settings in cells), NATS]


@contextmanager
def states_file(
    output: Path, temperature: float, fit: Fit, keys: list[str], options: argparse.Namespace
) -> Iterator[tuple[list[Row], Callable[[Row], None]]]:
    """The rows that the temperature's file holds, and what appends one; this process claims the file."""
    path = output / f"states_T{temperature:g}.jsonl"
    asked_for = {
        "values": [NATS, "E[accepted]"],
        "methods": options.methods,
        "budgets": options.budgets,
        "depth": options.depth,
        "beta": fit.beta,
        "sharpness": fit.sharpness,
        "states": options.states,
        "stride": options.stride,
        "draws": options.draws,
        "seed": options.seed,
        "bench": [options.bench, options.protocol, options.question_file],
        "dtype": options.dtype,
        "models": weights_of(options),
    }
    with jsonl.measured(path, asked_for) as (file, rows):
        for number, row in enumerate(rows, start=2):
            check_row(row, set(keys), f"{path}, line {number}")
        yield rows, lambda row: jsonl.append(file, row, path)


def columns(rows: list[Row]) -> Values:
    """A list per question for every value."""
    return {key: [row[key] for row in rows] for key in (rows[0] if rows else ())}


def check_row(row: Any, names: set[str], place: str) -> None:
    """ValueError for a line that is not one question's states."""
    good = isinstance(row, dict) and row.keys() == names and all(isinstance(values, list) for values in row.values())
    if not good or not all(isinstance(x, int | float) for values in row.values() for x in values):
        raise ValueError(f"{place}: expected a list of numbers for each of {', '.join(sorted(names))}; remove the line")


def write(
    found: dict[str, dict[str, Any]],
    fits: dict[str, dict[str, float]],
    asked: benchmarks.QuestionSet,
    options: argparse.Namespace,
    output: Path,
) -> None:
    """Write table.json, which `eval.report.embed` puts into documents, table.md and table.png."""
    origin, made = provenance.provenance([]), tables(found)
    drafter = options.ea_model_path or options.draft_model_path
    pair = " drafted by ".join(map(model_name, (options.base_model_path, drafter)))
    fitted = ", ".join(
        f"{fit['beta']:g} and {fit['sharpness']:g} at {temperature}" for temperature, fit in fits.items()
    )
    machine = f"{options.dtype}, {origin['hardware']['cpu']}, torch {origin['versions']['torch']}"
    caption = (
        f"{asked.bench} ({asked.protocol}), {pair}; depth {options.depth}, beta and sharpness {fitted}, "
        f"{options.draws} draws, seed {options.seed}, {machine}, commit {(origin['git']['commit'] or 'unknown')[:9]}."
    )
    record = {
        "bench": asked.bench,
        "protocol": asked.protocol,
        "questions_sha256": asked.sha256,
        "pair": pair,
        "depth": options.depth,
        "seed": options.seed,
        "stride": options.stride,
        "draws": options.draws,
        "dtype": options.dtype,
        "git": origin["git"],
        "versions": origin["versions"],
        "cpu": origin["hardware"]["cpu"],
        "fits": fits,
        "found": found,
        "tables": [table._asdict() for table in made],
        "caption": caption,
    }
    write_whole(output / "table.json", json.dumps(record, indent=1) + "\n")
    write_whole(output / "table.md", "\n\n".join([*(table.text() for table in made), caption]) + "\n")
    plot(found, output / "table.png")


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command.start(build_parser(), run, argv, command.resumable("states"))


if __name__ == "__main__":
    raise SystemExit(main())
