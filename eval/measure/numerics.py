"""How far rounding moves a target's logits: one token at a time against many rows in one forward.

    python -m eval.measure.numerics --pair smollm2-135m --dtypes float32 bfloat16 --num-questions 10

The verification rule is exact for the distributions that it is given. A forward of N rows and N forwards of one row add
their products in different orders, so those distributions differ by rounding, whoever decodes. For every dtype:

    logits      the plain greedy answers are read again, one row and `--rows` rows at a time, by the same cache and
                attention; per position the largest difference of a logit, and the total variation at temperature 1
    answers     how many greedy answers of the drafted tree, and of transformers' generate, differ from plain
                decoding's, and the two largest logits' distance where each first does (one row at a time)

Questions are the bundled sample problems, which belong to no benchmark.
"""

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from eagle import EagleModel, command
from eagle.files import check_writable, write_whole
from eagle.nn.precision import DTYPES
from eagle.nn.target import CachedLM
from eval.provenance import provenance
from eval.questions import benchmarks, prompts
from eval.report.markdown import markdown_table
from eval.run.load_models import add_model_flags, load_from_flags


@torch.inference_mode()
def read(target: CachedLM, prompt: list[int], answer: list[int], rows: int) -> Tensor:
    """Logits Float32[n, V] before each of the n tokens of an answer, read `rows` tokens per forward."""
    target = target.fork()
    target.cache.reserve(1, rows, len(prompt) + len(answer), rows)
    found = [target.read_prompt(0, prompt).logits[0]]
    target.cache.use(1)
    for start in range(0, len(answer) - 1, rows):
        part = torch.tensor([answer[start : min(start + rows, len(answer) - 1)]], device=target.device)
        places = torch.arange(part.shape[1], device=target.device)
        found.append(target.score_tree(part, places[None], (places <= places[:, None])[None]).logits[0])
        target.commit(places[None], torch.tensor([len(places)], device=target.device))
        target.cache.set_held([len(prompt) + start + len(places)])
    return torch.cat(found).float()


def greedy(model: EagleModel, prompt: list[int], tree: str, args: argparse.Namespace) -> list[int]:
    """The model's answer at temperature 0, drafted with `tree`."""
    ids = torch.tensor([prompt], device=model.device)
    *_, rows = model.stream(
        ids, args.max_new_tokens, temperature=0.0, repetition_penalty=1.0, tree=tree, nodes=args.rows, verifier="hsd"
    )
    return rows[0].new_tokens


def by_transformers(model: EagleModel, prompt: list[int], args: argparse.Namespace) -> list[int]:
    """transformers' greedy answer."""
    ids = torch.tensor([prompt], device=model.device)
    settings = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0}
    found = model.target.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=args.max_new_tokens, **settings
    )
    return found[0, len(prompt) :].tolist()


def parting(plain: list[int], other: list[int]) -> int | None:
    """The first place where two answers differ, None where they are the same."""
    differ = (place for place, (a, b) in enumerate(zip(plain, other)) if a != b)
    shorter = min(len(plain), len(other))
    return next(differ, None if len(plain) == len(other) else shorter)


def margin(logits: Tensor, place: int) -> float:
    """The distance of the two largest logits at a place of an answer."""
    largest, second = logits[min(place, len(logits) - 1)].topk(2).values.tolist()
    return largest - second


def one_question(model: EagleModel, prompt: list[int], args: argparse.Namespace) -> dict[str, Any]:
    """What is measured on one prompt."""
    plain = greedy(model, prompt, "none", args)
    one, many = (read(model.target, prompt, plain, rows) for rows in (1, args.rows))
    others = {"transformers": by_transformers(model, prompt, args)}
    if model.drafter is not None:
        others["topk"] = greedy(model, prompt, "topk", args)
    places = {name: parting(plain, tokens) for name, tokens in others.items()}
    return {
        "tokens": len(plain),
        "logits": (one - many).abs().amax(-1).tolist(),
        "distance": ((one.softmax(-1) - many.softmax(-1)).abs().sum(-1) / 2).tolist(),
        "margins": {name: None if place is None else margin(one, place) for name, place in places.items()},
    }


def summarise(dtype: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the table; lists of margins are sorted."""
    logits = [value for question in found for value in question["logits"]]
    distance = [value for question in found for value in question["distance"]]
    row: dict[str, Any] = {
        "dtype": dtype,
        "questions": len(found),
        "tokens": sum(question["tokens"] for question in found),
        "logits": [statistics.median(logits), max(logits)],
        "distance": [statistics.median(distance), max(distance)],
    }
    for name in found[0]["margins"]:
        margins = [question["margins"][name] for question in found]
        row[name] = sorted(value for value in margins if value is not None)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row per dtype."""
    others = [name for name in ("topk", "transformers") if name in rows[0]]
    header = ["dtype", "tokens", "logits: typical, largest", "TV: typical, largest"]
    header += [f"{name}: answers that differ, distance of the two largest logits there" for name in others]
    cells = []
    for row in rows:
        pairs = [f"{row[name][0]:.1e}, {row[name][1]:.1e}" for name in ("logits", "distance")]
        parted = [
            f"{len(row[name])} of {row['questions']}"
            + (f": {row[name][0]:.1e} to {row[name][-1]:.1e}" if row[name] else "")
            for name in others
        ]
        cells.append([row["dtype"], str(row["tokens"]), *pairs, *parted])
    return markdown_table(header, cells)


def measure(args: argparse.Namespace) -> Iterable[dict[str, Any]]:
    """One row per dtype; the model is loaded anew for each."""
    questions = benchmarks.load("gsm8k", "sample", None, args.num_questions).questions
    for dtype in args.dtypes:
        args.dtype = dtype
        model = load_from_flags(args)
        asked = prompts.encode_first_turns(model.tokenizer, "", questions)
        yield summarise(dtype, [one_question(model, prompt, args) for prompt in tqdm(asked, dtype, leave=False)])
        del model  # its memory is free for the next one


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = command.parser("eval.measure.numerics", __doc__)
    add_model_flags(parser, default_pair="demo")
    add = parser.add_argument
    add("--dtypes", nargs="+", choices=list(DTYPES), default=["float32", "bfloat16"], help="instead of --dtype")
    add("--num-questions", type=command.COUNT, default=10, metavar="N")
    add("--max-new-tokens", type=command.COUNT, default=160, metavar="N")
    add("--rows", type=command.NODES, default=16, metavar="N", help="rows of one forward, and nodes of the tree")
    add("--output", type=Path, metavar="F", help="also write the rows as JSON")
    return parser


def run(args: argparse.Namespace) -> None:
    """Measure, print the table, write the rows."""
    if args.output:
        check_writable(args.output)
    rows = list(measure(args))
    print(table(rows))
    if args.output:
        settings = {name: value for name, value in vars(args).items() if name not in ("output", "dtype")}
        content = {"rows": rows, "settings": settings, "origin": provenance()}
        write_whole(args.output, json.dumps(content, indent=1, default=str) + "\n")


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command.start(build_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
