"""Would it pay to choose the tree anew within a request? An upper bound, before anybody builds it.

    python -m eval.adaptation --base-model-path checkpoints/demo/target --ea-model-path checkpoints/demo/eagle3 \\
        --data-dir $HSD_DATA --temperature 0.75 --candidates 5:3:9.8 9:4:11.8 16:5:13.7 32:6:17.3

A candidate is NODES:DEPTH[:MILLISECONDS of its step]; without milliseconds all cost the same and E[accepted] alone
counts. At every step of every answer all candidates draft from the same state, so their exact E[accepted] are known
side by side. Three ways to choose are compared by tokens per unit of time, sum(1 + E) / sum(cost):

    fixed      the best single candidate over all requests
    past       at each step the candidate with the best discounted record over the *earlier* steps of the request. It
               is told every candidate's E[accepted], which a real engine knows for the tree it drafted only: more than
               any lossless adaptation could use
    hindsight  the best candidate of each request, known beforehand

Questions are held-out training questions, as in eval.tune_trees.
"""
import argparse
import os
import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from eagle.engine.sampling import SamplingSettings
from eagle.trees import TreeSettings
from eval.runs import load_models as engine
from eval.tree_search import generator_of
from eval.trees.probe import Room, Walk
from eval.tune_trees import read_prompts

RESAMPLES = 2000


class Option(NamedTuple):
    """A hybrid tree and what its step costs, in any unit."""

    nodes: int
    depth: int
    cost: float

    @staticmethod
    def parse(text: str) -> "Option":
        """"16:5:13.7" or "16:5". Raises ValueError for anything else."""
        parts = text.split(":")
        try:
            return Option(int(parts[0]), int(parts[1]), float(parts[2]) if len(parts) > 2 else 1.0)
        except (IndexError, ValueError) as error:
            raise ValueError(f"--candidates {text!r}: expected NODES:DEPTH or NODES:DEPTH:MILLISECONDS") from error


def expected_along(walk: Walk, prompt: list[int], options: list[Option], tokens: int,
                   generator: torch.Generator) -> np.ndarray:
    """E[accepted] with HSD of every option at every step of one answer: [steps, options]. The middle one moves on."""
    rows: list[list[float]] = []

    def follow(walk: Walk):
        drafted = [walk.draft("hybrid", TreeSettings(option.nodes, option.depth)) for option in options]
        rows.append([one.expected("hsd") for one in drafted])
        return drafted[len(options) // 2], "hsd"

    for _ in walk.along(prompt, tokens, generator, follow=follow):
        pass
    return np.array(rows)


def choices_by_past(expected: np.ndarray, costs: np.ndarray, discount: float, start: int) -> np.ndarray:
    """Index of the option used at each step: best discounted (1 + E) / cost so far, `start` at the first."""
    record, weight, chosen = np.zeros(len(costs)), 0.0, []
    for row in expected:
        chosen.append(start if weight == 0 else int(((record / weight) / costs).argmax()))
        record, weight = discount * record + 1 + row, discount * weight + 1
    return np.array(chosen)


def totals(requests: list[np.ndarray], costs: np.ndarray, discount: float) -> Iterator[np.ndarray]:
    """Per request [options + 2, 2]: tokens and time of each fixed option, then of `past`, then of `hindsight`."""
    whole = [np.stack([(1 + e).sum(0), len(e) * costs], 1) for e in requests]
    start = int((sum(w[:, 0] for w in whole) / costs).argmax())  # every option made the same steps
    for expected, fixed in zip(requests, whole, strict=True):
        steps = np.arange(len(expected))
        past = choices_by_past(expected, costs, discount, start)
        by_past = [(1 + expected[steps, past]).sum(), costs[past].sum()]
        yield np.concatenate([fixed, [by_past], [fixed[(fixed[:, 0] / fixed[:, 1]).argmax()]]])


def gains(sums: np.ndarray, seed: int = 0) -> dict[str, list[float]]:
    """[requests, options + 2, 2] -> gain of `past` and `hindsight` over the best fixed option: point, low, high."""
    draws = np.random.default_rng(seed).integers(len(sums), size=(RESAMPLES, len(sums)))

    def rates(total: np.ndarray) -> np.ndarray:
        return total[..., 0] / total[..., 1]

    point, samples = rates(sums.sum(0)), rates(sums[draws].sum(1))
    best = point[:-2].argmax()
    found = {}
    for name, place in (("past", -2), ("hindsight", -1)):
        ratio = samples[:, place] / samples[:, best] - 1
        found[name] = [point[place] / point[best] - 1, *np.quantile(ratio, (0.025, 0.975))]
    return found


def report(requests: list[np.ndarray], options: list[Option], discounts: list[float]) -> str:
    """Markdown: what each fixed option gives, and what choosing adds to the best of them."""
    costs = np.array([option.cost for option in options])
    steps = sum(map(len, requests))
    lines = [f"{steps} steps of {len(requests)} requests", "", "| nodes | depth | cost | E[accepted] | tokens / cost |",
             "|---|---|---|---|---|"]
    mean = np.concatenate(requests).mean(0)
    lines += [f"| {o.nodes} | {o.depth} | {o.cost:g} | {e:.2f} | {(1 + e) / o.cost:.3f} |"
              for o, e in zip(options, mean, strict=True)]
    lines += ["", "| chosen by | gain over the best fixed tree |", "|---|---|"]
    for discount in discounts:
        found = gains(np.stack(list(totals(requests, costs, discount))))
        lines.append(f"| the past, discount {discount} | {shown(found['past'])} |")
    lines.append(f"| hindsight, per request | {shown(found['hindsight'])} |")
    return "\n".join(lines)


def shown(values: list[float]) -> str:
    point, low, high = (100 * value for value in values)
    return f"{point:+.1f} % [{low:+.1f}, {high:+.1f}]"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eval.adaptation", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--base-model-path", required=True, metavar="P")
    add("--ea-model-path", required=True, metavar="P")
    add("--data-dir", default=os.environ.get("HSD_DATA"), metavar="D", help="with gsm8k/train.jsonl")
    add("--prompts", metavar="F", help="other held-out questions: JSON lines with `messages`")
    add("--num-questions", type=int, default=16, metavar="N")
    add("--temperature", type=float, default=1.0)
    add("--candidates", nargs="+", required=True, metavar="N:K[:MS]")
    add("--discounts", type=float, nargs="+", default=[0.8, 0.95, 1.0], metavar="G")
    add("--max-new-tokens", type=int, default=160, metavar="N")
    add("--seed", type=int, default=0)
    add("--dtype", choices=list(engine.DTYPES), default=engine.default_dtype())
    add("--quiet", action="store_true", help="no progress bar")
    return parser


def run(options: argparse.Namespace) -> str:
    candidates = [Option.parse(text) for text in options.candidates]
    model = engine.load(options.base_model_path, options.ea_model_path, options.dtype)
    plans = [("hybrid", TreeSettings(candidate.nodes, candidate.depth)) for candidate in candidates]
    walk = Walk(model, SamplingSettings(options.temperature), Room.of(plans))
    prompts = read_prompts(options, model.tokenizer)
    requests = [
        expected_along(walk, prompt, candidates, options.max_new_tokens, generator_of(options.seed, number))
        for number, prompt in enumerate(tqdm(prompts, disable=options.quiet, unit="request"))
    ]
    return report([r for r in requests if len(r)], candidates, options.discounts)


def main(argv: list[str] | None = None) -> int:
    try:
        print(run(build_parser().parse_args(argv)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    raise SystemExit(main())
