r"""Tables of `python -m eval.measure.paths`: E[accepted] by verifier, draft length, temperature and number of paths.

    python -m eval.measure.paths_table results/paths-gsm8k [--output docs/results/paths-gsm8k.json]
    python -m eval.measure.paths_table results/paths-shots4 results/paths-shots24     one row per directory: by context

Means are over states, brackets are 95 % bootstrap intervals over questions, differences are paired state by state.
Where the paper has the setting, its numbers stand beside ours: it has other targets, so its levels differ, and what
can be compared is the order of the methods and their distances. Writes DIR/paths.json, which `eval.report.embed` puts
into documents, and prints it.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eagle import command, jsonl
from eagle.files import write_whole
from eval.report.estimates import Estimate, bootstrap
from eval.report.markdown import Table, number
from eval.run.load_models import model_name

PAPER_DEPTH = 10
PUBLISHED = Path(__file__).resolve().parents[1] / "reports" / "published.json"

State = dict[str, Any]
Question = dict[str, Any]


class Measured(NamedTuple):
    """One file: its settings, its session, and one record per question."""

    settings: dict[str, Any]
    session: dict[str, Any]
    questions: list[Question]

    @property
    def temperature(self) -> float:
        """The temperature of the target and of the drafts."""
        return self.settings["temperature"]

    @property
    def states(self) -> int:
        """How many states have one path."""
        return sum(len(question["states"]) for question in self.questions)


def read(folder: Path) -> list[Measured]:
    """Every temperature of a directory, the largest first. Raises ValueError where there is none."""
    found = []
    for path in sorted(folder.glob("paths_T*.jsonl")):
        head, *questions = (value for _, value in jsonl.lines(path))
        found.append(Measured(head["settings"], head["session"], [row for row in questions if row["states"]]))
    found = [measured for measured in found if measured.questions]
    if not found:
        raise ValueError(f"{folder}: no paths_T*.jsonl with a question in it; run python -m eval.measure.paths first")
    return sorted(found, key=lambda measured: -measured.temperature)


def mean(questions: list[Question], value: Callable[[State], float], several: bool = False) -> Estimate | None:
    """The mean of a value over states, with its interval over questions; `several`: states with several paths."""
    parts = [[row["several"]] if several else row["states"] for row in questions if row["several"] or not several]
    sums = np.array([sum(map(value, states)) for states in parts], dtype=float)
    return bootstrap(lambda above, below: above / below, sums, np.array([len(states) for states in parts], dtype=float))


def accepted(verifier: str, depth: int | str) -> Callable[[State], float]:
    """E[accepted] of a verifier, as a function of a state."""
    return lambda state: state["expected"][str(depth)][verifier]


def difference(first: str, second: str, depth: int | str) -> Callable[[State], float]:
    """E[accepted] of one verifier minus that of another one on the same draft."""
    return lambda state: accepted(first, depth)(state) - accepted(second, depth)(state)


def overlap(state: State) -> float:
    """Sum of min(p, q) at a state."""
    return state["overlap"]


def distance_at(depth: int) -> Callable[[State], float]:
    """The released rule's total variation at the full draft, as a function of a state."""
    return lambda state: state["released"][str(depth)][2]


def one_path_row(label: str, measured: Measured, depth: int) -> list[str]:
    """A row of the one-path tables."""
    cells = [number(mean(measured.questions, accepted(name, depth))) for name in ("token", "block", "hsd", "published")]
    pairs = [("hsd", "token"), ("published", "hsd")]
    gains = [number(mean(measured.questions, difference(*pair, depth)), 3, "+") for pair in pairs]
    return [label, *cells, *gains, str(measured.states), str(len(measured.questions))]


ONE_PATH = ["token", "block", "hsd", "published (lossy)", "hsd - token", "published - hsd", "states", "questions"]


def by_length(measured: Measured) -> Table:
    """How the draft's length changes each method."""
    rows = [one_path_row(str(depth), measured, depth) for depth in measured.settings["depths"]]
    widest = max(
        abs(difference("block", "hsd", depth)(state))
        for row in measured.questions
        for state in row["states"]
        for depth in measured.settings["depths"]
    )
    note = f"`block` and `hsd` are one quantity: they differ by at most {widest:.0e} at any state (solved in float64)."
    return Table(f"One path, temperature {measured.temperature:g}, by draft length", note, ["length", *ONE_PATH], rows)


def by_temperature(found: list[Measured]) -> Table:
    """How the temperature changes each method."""
    fitting = [measured for measured in found if PAPER_DEPTH in measured.settings["depths"]]
    rows = [one_path_row(f"{measured.temperature:g}", measured, PAPER_DEPTH) for measured in fitting]
    note = "The same states at every temperature (answers sampled at 1); p and q have the same temperature."
    return Table(f"One path of {PAPER_DEPTH} tokens, by temperature", note, ["temperature", *ONE_PATH], rows)


def by_paths(measured: Measured) -> Table:
    """Several i.i.d. paths, recursive rejection with replacement; one path at the same states first."""
    depth, several = measured.settings["paths_depth"], [row for row in measured.questions if row["several"]]
    alone = [
        {**row, "states": [state for state in row["states"] if state["root"] == row["several"]["root"]]}
        for row in several
    ]
    rows = []
    if depth in measured.settings["depths"]:
        rows.append(_paths_row("1", alone, depth, False))
    rows += [_paths_row(str(count), several, count, True) for count in measured.settings["paths"]]
    title = f"Several paths of {depth} tokens, temperature {measured.temperature:g}"
    note = (
        "One state per question; 1, 4 and 11 paths at the same states, the smaller numbers being parts of the largest"
    )
    return Table(title, note + " (1: another draw).", ["paths", "token", "hsd", "hsd - token", "states"], rows)


def _paths_row(label: str, questions: list[Question], key: int, several: bool) -> list[str]:
    cells = [number(mean(questions, accepted(name, key), several)) for name in ("token", "hsd")]
    gain = number(mean(questions, difference("hsd", "token", key), several), 3, "+")
    return [label, *cells, gain, str(len(questions))]


def lossiness(found: list[Measured]) -> Table:
    """What the released rule emits behind a full draft."""
    rows = []
    for measured in found:
        for depth in measured.settings["depths"]:
            kept, mass, distance = np.array(
                [state["released"][str(depth)] for row in measured.questions for state in row["states"]]
            ).T
            bought = mean(measured.questions, difference("published", "hsd", depth))
            quantiles = np.quantile(distance, [0.5, 0.9, 0.99])
            rows.append(
                [
                    f"{measured.temperature:g}",
                    str(depth),
                    number(mean(measured.questions, distance_at(depth)), 3),
                    *(f"{value:.3f}" for value in quantiles),
                    f"{(distance * mass).sum() / mass.sum():.3f}",
                    f"{np.mean(mass - kept > 1e-4):.0%}",
                    f"{kept.mean():.3f} -> {mass.mean():.3f}",
                    number(bought, 3, "+"),
                ]
            )
    header = ["temperature", "length", "TV, mean", "median", "90 %", "99 %", "per emitted token", "states concerned"]
    note = (
        "Given the draft x_1 .. x_K-1, over every draw of x_K: total variation between the next token that the "
        "released rule emits behind x_1 .. x_K-1 and the target's; per emitted token: weighted by that; kept: "
        "probability that x_1 .. x_K-1 is kept, lossless -> released; bought: E[accepted] over the lossless optimum."
    )
    return Table("What the released rule costs (`published`)", note, [*header, "kept", "bought"], rows)


def states(found: list[Measured]) -> Table:
    """What the states are like."""
    rows = []
    for measured in found:
        lengths = [len(row["tokens"]) for row in measured.questions]
        cut = sum(not row["ended"] for row in measured.questions)
        answers = [str(len(measured.questions)), f"{np.mean(lengths):.0f}", str(cut)]
        shared = number(mean(measured.questions, overlap))
        rows.append([f"{measured.temperature:g}", *answers, str(measured.states), shared])
    header = ["temperature", "answers", "tokens, mean", "cut at the limit", "states", "sum min(p, q) at a state"]
    return Table("The states", "On the target's own answers, sampled at temperature 1.", header, rows)


THEORY = {
    "token": "lowest",
    "block": "the most that a lossless rule accepts on one path",
    "hsd": "= block",
    "published": "above every lossless rule",
}


def paper_values(bench: str, method: str) -> dict[str, float]:
    """The paper's block efficiency by target, for one path of 10 tokens."""
    entries = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return {
        entry["target"]: entry["value"]
        for entry in entries
        if (entry["head"], entry["bench"], entry["method"]) == ("qwen2.5-0.5b", bench, method)
    }


def beside_the_paper(measured: Measured) -> Table:
    """The paper's main table beside this pair's numbers."""
    bench, rows = measured.settings["bench"], []
    base = paper_values(bench, "chain+token")
    for method, expectation in THEORY.items():
        theirs = paper_values(bench, f"chain+{method}")
        rows.append(
            [
                method,
                number(mean(measured.questions, accepted(method, PAPER_DEPTH))),
                number(mean(measured.questions, difference(method, "token", PAPER_DEPTH)), 2, "+"),
                " / ".join(f"{theirs[target]:.2f}" for target in sorted(theirs)) or "the code behind its HSD row",
                " / ".join(f"{theirs[target] - base[target]:+.2f}" for target in sorted(theirs)) or "–",
                expectation,
            ]
        )
    header = ["method", "this pair, E[accepted]", "minus token", "paper, 14B / 32B / 72B", "minus token", "theory"]
    note = (
        f"{bench}, temperature 1, {PAPER_DEPTH} draft tokens. The paper: Qwen2.5-Instruct in GPTQ 8 bit with the 0.5B "
        "model, block efficiency averaged over the steps that drafted all tokens."
    )
    return Table("Beside the paper's main table", note, header, rows)


def caption(found: list[Measured]) -> str:
    """What a reader needs to repeat the numbers."""
    first = found[0]
    settings, session = first.settings, first.session
    pair = " drafted by ".join(model_name(settings[role]) for role in ("target", "draft"))
    asked = ", ".join(dict.fromkeys(measured.settings["protocol"] for measured in found))
    protocol = f"{settings['bench']} ({asked}), {pair}"
    commits = sorted({(measured.session["git"]["commit"] or "unknown")[:9] for measured in found})
    return (
        f"{protocol}; seed {settings['seed']}, {settings['dtype']}, a state every {settings['stride']} tokens of "
        f"answers of at most {settings['max_new_tokens']}, {session['hardware']['cpu']}, "
        f"torch {session['versions']['torch']}, transformers {session['versions']['transformers']}, "
        f"commit {', '.join(commits)}."
    )


def tables(found: list[Measured]) -> list[Table]:
    """Every table that there are numbers for."""
    made = []
    full = next((measured for measured in found if measured.temperature == 1), None)
    if full and PAPER_DEPTH in full.settings["depths"] and full.settings["bench"] in ("gsm8k", "humaneval"):
        made.append(beside_the_paper(full))
    made += [by_length(measured) for measured in found if len(measured.settings["depths"]) > 1]
    if len(found) > 1:
        made.append(by_temperature(found))
    made += [by_paths(measured) for measured in found if any(row["several"] for row in measured.questions)]
    return [*made, lossiness(found), states(found)]


def by_context(found: list[Measured]) -> Table:
    """One row per run: how the length of the prompt changes what HSD adds."""
    rows = []
    for measured in found:
        prompt = [row["prompt_tokens"] for row in measured.questions if "prompt_tokens" in row]
        context = f"{np.mean(prompt):.0f}" if prompt else "–"
        for depth in measured.settings["depths"]:
            gain = number(mean(measured.questions, difference("hsd", "token", depth)), 3, "+")
            cells = [number(mean(measured.questions, accepted(name, depth))) for name in ("token", "hsd")]
            cells += [gain, number(mean(measured.questions, overlap))]
            size = [str(measured.states), str(len(measured.questions))]
            rows.append([measured.settings["protocol"], context, str(depth), *cells, *size])
    header = ["protocol", "prompt tokens, mean", "length", "token", "hsd", "hsd - token", "sum min(p, q)"]
    note = f"One path, temperature {found[0].temperature:g}; the states lie on the target's own answers to each prompt."
    return Table("One path, by context", note, [*header, "states", "questions"], rows)


def write(folders: list[Path], output: Path) -> str:
    """Write the tables as JSON; returns them as Markdown. Several directories: their largest temperatures compared."""
    if len(folders) == 1:
        found = read(folders[0])
        made = tables(found)
    else:
        found = [read(folder)[0] for folder in folders]
        made = [by_context(found)]
    below = caption(found)
    record = {"tables": [table._asdict() for table in made], "caption": below}
    write_whole(output, json.dumps(record, indent=1) + "\n")
    return "\n\n".join([*(table.text() for table in made), below])


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = command.parser("eval.measure.paths_table", __doc__)
    parser.add_argument("folder", type=Path, nargs="+", help="what eval.measure.paths wrote; several: compared")
    parser.add_argument("--output", type=Path, metavar="F", help="default: paths.json in the first folder")

    def work(options: argparse.Namespace) -> None:
        print(write(options.folder, options.output or options.folder[0] / "paths.json"))

    return command.start(parser, work, argv)


if __name__ == "__main__":
    raise SystemExit(main())
