r"""E[accepted] of trees and verifiers over temperatures and budgets, on the same states of a benchmark's questions.

    python -m eval.trees.table --bench gsm8k --base-model-path checkpoints/demo/target \
        --ea-model-path checkpoints/demo/eagle3 --temperatures 0 0.5 1 1.5 --budgets 4 8 16 32 60 128 \
        --methods topk+token chain+hsd hybrid+token hybrid+hsd --output results/tree_table

The states lie on answers that the target itself samples, every `--stride` tokens, so no method chooses them. Every
number is exact for its tree (the stopping law, no verification noise) and comes with a bootstrap 95 % interval over
questions; gains are paired. All trees of a state are scored in one forward, so more of them (`--draws`) cost little.
Hybrid trees have the head's calibrated beta. A table names the target's entropy along these answers, in nats. Writes
table.md, table.json and table.png; a run that is started again goes on where it stopped. Timings and E[accepted] along
each method's own generations come from `python -m eval`.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from eagle import command
from eagle.engine.sampling import SamplingParams
from eagle.files import write_file, write_whole
from eagle.trees import TreeSettings, find_tree, greedy_tree, is_sampled
from eagle.tuning.probe import TOGETHER, StateProbe, TreeLimits
from eval import jsonl, provenance
from eval.questions import benchmarks, prompts
from eval.reports.estimates import bootstrap, ratio
from eval.reports.markdown import markdown_table
from eval.runs.load_models import add_model_flags, load_from_flags, resolve_flags, weights_of

Values = dict[str, list[list[float]]]  # "method@nodes" -> per question, E[accepted] at each state
NATS = "nats"  # beside these: the entropy of p at each token of the answer, at the temperature of the table


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
    done: Values,
    save: Any,
    quiet: bool,
) -> Values:
    """All cells at the same states; `save(question)` after each question, questions in `done` are not asked again."""
    room = TreeLimits.of([(method.split("+")[0], settings) for method, settings in cells])
    probe = StateProbe(model, SamplingParams(temperature), room, TOGETHER)
    first = len(next(iter(done.values()), []))
    for number in tqdm(range(first, len(questions)), desc=f"T={temperature}", disable=quiet, unit="question"):
        row: dict[str, list[float]] = {name(method, settings): [] for method, settings in cells}
        row[NATS] = []
        probe.begin(questions[number], stride * states + 1, generator_of(seed, number))
        while not probe.ended:
            if len(row[NATS]) % stride == 0:
                at_state(probe, temperature, cells, draws, row)
            law = probe.advance()  # along the target's own samples
            row[NATS].append(round(float(torch.special.entr(law).sum()), 4))
        for key, values in row.items():
            done.setdefault(key, []).append(values)
        save(row)
    return done


def at_state(
    probe: StateProbe,
    temperature: float,
    cells: list[tuple[str, TreeSettings]],
    draws: int,
    row: dict[str, list[float]],
) -> None:
    """Each tree `draws` times, verified by all the verifiers that are asked for; their means."""
    verifiers: dict[tuple[str, TreeSettings], dict[str, str]] = {}  # per tree: its cells and their verifiers
    for method, settings in cells:
        tree, verifier = method.split("+") if temperature else (greedy_tree(method.split("+")[0]), "greedy")
        verifiers.setdefault((tree, settings), {})[name(method, settings)] = verifier
    asked = [plan for plan in verifiers for _ in range(draws if is_sampled(plan[0]) else 1)]
    found: dict[str, list[float]] = {}
    for plan, drafted in zip(asked, probe.score([probe.grow(*plan) for plan in asked]), strict=True):
        for cell, verifier in verifiers[plan].items():
            found.setdefault(cell, []).append(drafted.expected(verifier))
    for cell, values in found.items():
        row[cell].append(round(fmean(values), 5))


def name(method: str, settings: TreeSettings) -> str:
    """`METHOD@NODES`, the key of a cell."""
    return f"{method}@{settings.nodes}"


def interval(values: list[list[float]], base: list[list[float]] | None = None) -> list[float]:
    """Mean over states, low and high: 95 %, bootstrap over questions. With `base`, of the ratio minus 1."""
    rows = [(sum(v), sum(b), len(v)) for v, b in zip(values, base or values, strict=True) if v]
    ours, theirs, states = np.array(rows, dtype=float).T
    found = bootstrap(lambda a, b: ratio(a, b) - 1, ours, theirs) if base else bootstrap(ratio, ours, states)
    if found is None:
        return [float("nan")] * 3
    low, high = (found.value if bound is None else bound for bound in (found.low, found.high))
    return [round(x, 4) for x in (found.value, low, high)]


def summarise(values: Values, base_method: str) -> dict[str, Any]:
    """Per cell: E[accepted], and its gain over the base method at the same budget, with intervals."""
    rows = {}
    for key, cells in values.items():
        base = values.get(f"{base_method}@{key.split('@')[1]}")
        gain = interval(cells, base) if base and any(map(sum, base)) else None
        rows[key] = {"expected": interval(cells), "gain": gain, "states": sum(map(len, cells)), "questions": len(cells)}
    return rows


def markdown(
    tables: dict[str, dict[str, Any]], nats: dict[str, list[float]], methods: list[str], budgets: list[int]
) -> str:
    """One table per temperature: budgets down, methods across, `E (gain over the first method [interval])`."""
    parts = []
    for temperature, rows in tables.items():
        first, (mean, low, high) = rows[f"{methods[0]}@{budgets[0]}"], nats[temperature]
        parts.append(
            f"temperature {temperature} ({mean:.2f} nats [{low:.2f}, {high:.2f}]): {first['states']} states of "
            f"{first['questions']} questions"
        )
        cells = [
            [str(nodes), *(_shown(rows[f"{method}@{nodes}"], method == methods[0]) for method in methods)]
            for nodes in budgets
        ]
        parts.append(markdown_table(["nodes", *methods], cells))
    return "\n\n".join(parts) + "\n"


def _shown(row: dict[str, Any], is_base: bool) -> str:
    value, low, high = row["expected"]
    if is_base or row["gain"] is None:
        return f"{value:.2f} [{low:.2f}, {high:.2f}]"
    gain, low, high = (100 * x for x in row["gain"])
    return f"{value:.2f} ({gain:+.0f} % [{low:+.0f}, {high:+.0f}])"


def plot(tables: dict[str, dict[str, Any]], methods: list[str], budgets: list[int], path: Path) -> None:
    """E[accepted] over the budget, one panel per temperature, bands are intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(tables), figsize=(3.3 * len(tables) + 1, 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, (temperature, rows) in zip(panels[0], tables.items()):
        for number, method in enumerate(methods):
            points = np.array([rows[f"{method}@{nodes}"]["expected"] for nodes in budgets])
            line = axes.plot(budgets, points[:, 0], marker="o", markersize=3.5, label=method, color=f"C{number}")
            axes.fill_between(budgets, points[:, 1], points[:, 2], color=line[0].get_color(), alpha=0.12)
        axes.set_xscale("log", base=2)
        axes.set_xticks(budgets, [str(nodes) for nodes in budgets])
        axes.set_title(f"temperature {temperature}")
        axes.set_xlabel("nodes scored per step")
        axes.grid(alpha=0.25)
    panels[0][0].set_ylabel("E[accepted] (draft tokens per step)")
    figure.legend(
        *panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=len(methods), frameon=False
    )
    write_file(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))
    pyplot.close(figure)


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = command.parser("eval.trees.table", __doc__)
    add = parser.add_argument
    benchmarks.add_flags(parser, 20)
    add_model_flags(parser)
    add(
        "--methods",
        nargs="+",
        default=["topk+token", "chain+hsd", "hybrid+token", "hybrid+hsd"],
        metavar="M",
        help="tree+verifier; gains are over the first",
    )
    add("--temperatures", type=float, nargs="+", default=[0.0, 0.5, 1.0], metavar="T")
    add("--budgets", type=int, nargs="+", default=[8, 16, 32, 60], metavar="N")
    add("--depth", type=int, default=7)
    add("--states", type=int, default=4, help="states per question")
    add("--stride", type=int, default=16, help="tokens from one to the next")
    add("--draws", type=int, default=1, help="trees drafted at each state where trees are sampled; their mean counts")
    add("--seed", type=int, default=0)
    add("--output", required=True, metavar="DIR")
    add("--quiet", action="store_true")
    return parser


def run(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Measure every temperature, write the table. Returns the cells by temperature."""
    for method in options.methods:
        if find_tree(method.partition("+")[0]) is None or "+" not in method:
            raise ValueError(f"--methods {method!r}: expected tree+verifier, such as hybrid+hsd")
    output = Path(options.output)
    jsonl.check_writable(output / "table.json")
    resolve_flags(options)
    asked = benchmarks.load(options.bench, options.protocol, options.question_file, options.num_questions)
    model = load_from_flags(options)
    questions = prompts.encode_first_turns(model.tokenizer, options.base_model_path, asked.questions)
    tables, nats, betas = {}, {}, {}
    for temperature in options.temperatures:
        betas[f"{temperature:g}"] = beta = model.auto.beta(temperature)  # calibrated on other prompts
        settings = [TreeSettings(nodes, options.depth, beta=beta) for nodes in options.budgets]
        cells = [(method, of_budget) for of_budget in settings for method in options.methods]
        values = one_temperature(model, questions, temperature, cells, options, output)
        nats[f"{temperature:g}"] = interval(values.pop(NATS))
        tables[f"{temperature:g}"] = summarise(values, options.methods[0])
    write(tables, nats, betas, asked, options, output)
    return tables


def one_temperature(
    model: Any,
    questions: list[list[int]],
    temperature: float,
    cells: list[tuple[str, TreeSettings]],
    options: argparse.Namespace,
    output: Path,
) -> Values:
    """Measure what the temperature's file does not hold yet."""
    path, beta = output / f"states_T{temperature:g}.jsonl", cells[0][1].beta
    done: Values = {}
    asked_for = {
        "values": [NATS, "E[accepted]"],
        "methods": options.methods,
        "budgets": options.budgets,
        "depth": options.depth,
        "beta": beta,
        "states": options.states,
        "stride": options.stride,
        "draws": options.draws,
        "seed": options.seed,
        "bench": [options.bench, options.protocol, options.question_file],
        "dtype": options.dtype,
        "models": weights_of(options),
    }
    with jsonl.measured(path, asked_for) as (file, rows):
        for number, row in enumerate(rows[: len(questions)], start=2):
            check_row(row, {NATS, *(name(*cell) for cell in cells)}, f"{path}, line {number}")
            for key, values in row.items():
                done.setdefault(key, []).append(values)
        return measure(
            model,
            questions,
            temperature,
            cells,
            options.states,
            options.stride,
            options.draws,
            options.seed,
            done,
            lambda row: jsonl.append(file, row, path),
            options.quiet,
        )


def check_row(row: Any, names: set[str], place: str) -> None:
    """ValueError for a line that is not one question's states."""
    good = isinstance(row, dict) and row.keys() == names and all(isinstance(values, list) for values in row.values())
    if not good or not all(isinstance(x, int | float) for values in row.values() for x in values):
        raise ValueError(f"{place}: expected a list of numbers for each of {', '.join(sorted(names))}; remove the line")


def write(
    tables: dict[str, Any],
    nats: dict[str, list[float]],
    betas: dict[str, float],
    asked: benchmarks.QuestionSet,
    options: argparse.Namespace,
    output: Path,
) -> None:
    """Write table.json, table.md and table.png."""
    origin = provenance.provenance([])
    record = {
        "bench": asked.bench,
        "protocol": asked.protocol,
        "questions_sha256": asked.sha256,
        "depth": options.depth,
        "seed": options.seed,
        "stride": options.stride,
        "draws": options.draws,
        "git": origin["git"],
        "versions": origin["versions"],
        "cpu": origin["hardware"]["cpu"],
        "nats": nats,
        "beta": betas,
        "tables": tables,
    }
    write_whole(output / "table.json", json.dumps(record, indent=1) + "\n")
    write_whole(output / "table.md", markdown(tables, nats, options.methods, options.budgets))
    plot(tables, options.methods, options.budgets, output / "table.png")


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = build_parser().parse_args(argv)

    def work() -> None:
        with torch.inference_mode():
            run(options)
        print(Path(options.output, "table.md").read_text(encoding="utf-8"))

    return command.run(
        work, lambda: f"The finished states are kept in {options.output}; the same command goes on there."
    )


if __name__ == "__main__":
    raise SystemExit(main())
