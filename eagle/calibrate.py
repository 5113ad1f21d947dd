"""Measure what each draft tree accepts with a head, for `tree="auto"`: writes calibration.json beside the head.

    python -m eagle.calibrate checkpoints/demo/target checkpoints/demo/eagle3
    python -m eagle.calibrate TARGET HEAD --data prompts.jsonl --temperatures 0 0.6 1 --states 200

At states of the target's own answers every candidate tree is drafted and its exact E[accepted] computed. Hybrid trees
are fitted to the head: by how sure it may be of its tokens (their sharpness), and with the beta that accepts most over
all temperatures, once with the levels that they have on a CPU and once with those on a GPU. Nothing is timed, so the
file is valid on every machine. --data should hold nobody's test questions:
a choice tuned on them would flatter the numbers measured on them.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from eagle import command
from eagle.api.eagle_model import EagleModel
from eagle.autotune.acceptance import measure, tables_of
from eagle.autotune.auto import TEMPERATURES
from eagle.autotune.calibration import NAME, Calibration, Table, digest_of
from eagle.autotune.candidates import KINDS
from eagle.autotune.prompts import bundled_prompts, encode
from eagle.checkpoints.fingerprint import fingerprint, local_directory
from eagle.train.data.conversations import read_records


def prompts_of(path: str) -> list[list[dict[str, str]]]:
    """The messages before the first answer of every line {"messages": [...]}. Raises ValueError naming the line."""
    found = []
    for place, record in read_records(path):
        try:
            messages = [{"role": str(one["role"]), "content": str(one["content"])} for one in record["messages"]]
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{place}: expected messages with role and content ({type(error).__name__}: {error})"
            ) from error
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        found.append(messages[: answers[0]] if answers else messages)
    if not found or not all(found):
        raise ValueError(f"{path}: expected at least one line, each with a message before the first answer")
    return found


def calibrate(options: argparse.Namespace) -> Path:
    """Measure every temperature and write the file. Returns its path."""
    chats = prompts_of(options.data) if options.data else None
    model = EagleModel.from_pretrained(options.target, options.head, dtype=options.dtype)
    prompts = encode(model.tokenizer, chats) if chats else bundled_prompts(model.tokenizer)
    target, head = (Path(str(local_directory(path))) for path in (options.target, options.head))
    measured = []
    for temperature in sorted(set(options.temperatures)):
        shown = partial(tqdm, desc=f"temperature {temperature:g}", unit="prompt")
        measured.append(measure(model, prompts, temperature, options.states, options.seed, shown))
    tables, path = tables_of(measured), head / NAME
    Calibration(fingerprint(target), fingerprint(head), digest_of(prompts), options.seed, tables).save(path)
    print("\n\n".join(map(text_of, tables)))
    print(f"\nwritten to {path}")
    return path


def text_of(table: Table) -> str:
    """One temperature's table as Markdown: the best tree of every kind and size, then the overlaps."""
    rows = [
        f"| {row.tree} | {row.nodes} | {row.depth} | {row.expected:.2f} +- {row.standard_error:.2f} |"
        for kind in KINDS
        for row in table.trees
        if row.tree == kind
    ]
    title = f"temperature {table.temperature:g}, {table.levels} levels, {table.states} states"
    head = [title, "", "| tree | nodes | depth | E[accepted] |"]
    overlaps = ", ".join(f"{one.power:g}: {one.overlap:.3f}" for one in table.overlaps)
    losses = ", ".join(f"{one.power:g}: {one.loss:.3f}" for one in table.overlaps)
    tail = [
        "",
        f"hybrid trees with sharpness {table.fit.sharpness:g} and beta {table.fit.beta:g}",
        f"sum of min(p, q) by power of q: {overlaps}",
        f"quadratic loss by power of q: {losses}",
    ]
    return "\n".join([*head, "|---|---|---|---|", *rows, *(tail if overlaps else [])])


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = command.parser("eagle.calibrate", __doc__)
    add = parser.add_argument
    add("target", metavar="TARGET", help="directory or hub id of the target model")
    add("head", metavar="HEAD", help="directory or hub id of its draft head")
    add("--data", metavar="F.jsonl", help='prompts, {"messages": [...]} per line (default: bundled ones)')
    add("--temperatures", type=command.TEMPERATURE, nargs="+", default=list(TEMPERATURES), metavar="T")
    add("--states", type=command.COUNT, default=64, metavar="N", help="states per temperature (default 64)")
    add("--dtype", help="float32, float16, bfloat16, or auto: what decodes fastest on the device")
    add("--seed", type=command.SEED, default=0)
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command.start(build_parser(), calibrate, argv, lambda _: "Nothing was written; run the command again.")


if __name__ == "__main__":
    sys.exit(main())
