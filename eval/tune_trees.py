"""Tune draft trees for a pair, on held-out training questions.

    python -m eval.tune_trees --base-model-path checkpoints/demo/target --ea-model-path checkpoints/demo/eagle3 \\
        --data-dir $HSD_DATA --temperatures 0.5 1 --nats 0.5 1 --budgets 8 16 32 60 --output tuned.json

Four steps; every measured piece is one line of the log, and a run that is started again goes on where it stopped.
1. The target's mean entropy along its own samples, and the temperatures that give the entropies of --nats.
2. Calibration, along drafted chains: per depth p(top-1), sum min(p, q), what k chosen children cover and what k - 1
   chosen and one sampled cover; from it the power of q to draft from and the worth of an unlikely draw (beta).
3. Contests at real decoding states, exact E[accepted] on the same states: the hybrid's sharpness, beta and growth,
   each one value for all budgets of a temperature, which gives way only to one that beats it by two standard errors;
   then its depth for every budget (one standard error); at last the hybrid against topk and chain at fresh states.
4. The result as JSON. `tree="auto"` reads eagle/trees/tuned.json.

The questions are every 20th of gsm8k/train.jsonl (never trained on, see eagle/train/demo/corpus.py), or --prompts, JSON
lines with `messages`. Never give it test questions: a number tuned on them measures nothing.
"""
import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from eagle.train.demo.corpus import HOLD_OUT_EVERY, read_gsm8k
from eagle.trees import TreeSettings
from eagle.trees.auto import pair_of, rule
from eval import jsonl as storage
from eval import provenance
from eval import tree_search as search
from eval.questions import prompts
from eval.runs import load_models as engine
from eval.tree_search import Candidate, Visit

CHAIN_DEPTH = 7
DEPTH_COLUMNS = ("entropy", "spread", "top_q", "top_p", "overlap")


@dataclass
class Job:
    """What a run works with. `log` maps a piece's name to its record; new pieces are appended to the file."""

    model: Any
    prompts: list[list[int]]
    options: argparse.Namespace
    log: dict[str, Any]
    file: Any

    def piece(self, name: str, questions: int, measure: Callable[[Callable[[], None]], Any]) -> Any:
        """Measure once: a piece that the log has is not measured again."""
        if name not in self.log:
            shown = name.split(" [")[0]
            with tqdm(total=questions, desc=shown, disable=self.options.quiet, unit="question", leave=False) as bar:
                self.log[name] = measure(bar.update)
            storage.append(self.file, {"piece": name, "value": self.log[name]})
        return self.log[name]


def entropies(job: Job) -> dict[float, float]:
    """Mean entropy at each temperature of the grid."""
    options, found = job.options, {}
    rows = job.prompts[: options.entropy_questions]
    for temperature in options.entropy_grid:
        found[temperature] = job.piece(f"entropy T={temperature}", 1, lambda tick: search.mean_entropy(
            job.model, rows, temperature, options.entropy_tokens, options.seed))  # noqa: B023
        print(f"temperature {temperature:<5} mean entropy {found[temperature]:.3f} nats")
    return found


def calibrate(job: Job, temperature: float) -> dict[str, Any]:
    """The per-depth report and the fitted slot-value model at one temperature."""
    options = job.options

    def measure(tick: Callable[[], None]) -> dict[str, Any]:
        seen = search.calibration_nodes(job.model, job.prompts, temperature, visits(options), CHAIN_DEPTH,
                                        options.seed, tick)
        by_depth = {name: search.by_depth(seen, name).tolist() for name in (*DEPTH_COLUMNS, "chosen", "mixed")}
        by_depth["passed"] = search.come_there(seen).tolist()
        return {"states": len(seen), "fit": search.fit(seen), "by_depth": by_depth}

    found = job.piece(f"calibration T={temperature}", len(job.prompts), measure)
    print(depth_table(temperature, found))
    return found


def depth_table(temperature: float, found: dict[str, Any]) -> str:
    """Markdown: one row per draft step."""
    rows = found["by_depth"]
    lines = [f"\ntemperature {temperature}, {found['states']} states; rows weighted by the chance of coming there",
             "| step | come here | entropy of p | q(top-1) | p(top-1) | sum min(p, q) | 1 .. 4 chosen cover | "
             "0 .. 3 chosen + 1 sampled cover |", "|---|---|---|---|---|---|---|---|"]
    for step in range(len(rows["passed"])):
        cells = [f"{rows[name][step]:.2f}" for name in ("passed", "entropy", "top_q", "top_p", "overlap")]
        covers = [" ".join(f"{value:.2f}" for value in rows[name][step][:4]) for name in ("chosen", "mixed")]
        lines.append(f"| {step + 1} | " + " | ".join([*cells, *covers]) + " |")
    fitted = found["fit"]
    lines.append(f"fit: draft from q^{fitted['sharpness']} (overlap {fitted['overlap']:.3f}, of q itself "
                 f"{fitted['overlap_of_q']:.3f}); an unlikely draw is accepted with probability {fitted['beta']}")
    return "\n".join(lines)


def visits(options: argparse.Namespace) -> Visit:
    return Visit(options.states, options.stride)


def tune_greedy(job: Job) -> list[dict[str, Any]]:
    """Temperature 0, where nothing is drawn: the top-k tree, or one path of the likeliest tokens."""
    budgets, deepest = job.options.budgets, job.options.max_depth
    wide = Candidate("topk", deepest, *UNUSED)
    entries = [(n, c) for n in budgets for c in (wide, Candidate("chain", min(deepest, n - 1), *UNUSED))]
    found = run_contest(job, "final T=0", 0.0, entries, Candidate("chain", deepest, *UNUSED), seed=1)
    return [cell(0.0, n, found, wide) for n in budgets]


def tune(job: Job, temperature: float, fitted: dict[str, float]) -> list[dict[str, Any]]:
    """The best tree and settings of each budget at one temperature."""
    budgets, deepest = job.options.budgets, job.options.max_depth
    start = {n: from_settings("hybrid", rule(TreeSettings(n, deepest))) for n in budgets}
    others = {n: [Candidate("topk", deepest, *UNUSED), Candidate("chain", min(deepest, n - 1), *UNUSED)]
              for n in budgets}
    shared = {"sharpness": sorted({0.85, 1.0, fitted["sharpness"]}), "beta": sorted({0.6, 0.95, fitted["beta"]}),
              "growth": [0.8, 1.25]}
    for name, values in shared.items():
        entries = [(n, candidate) for n in budgets for candidate in search.variations(start[n], name, values)]
        found = run_contest(job, f"{name} T={temperature}", temperature, entries, start[max(budgets)])
        value = search.pooled(found, start, name)
        start = {n: c if value is None else c._replace(**{name: value}) for n, c in start.items()}
        print(f"  -> {name} " + ("stays" if value is None else f"{value}"))
    entries = [(n, candidate) for n in budgets for candidate in
               search.variations(start[n], "depth", search.depths_to_try(start[n], n, deepest))]
    found = run_contest(job, f"depth T={temperature}", temperature, entries, start[max(budgets)])
    start = {n: search.better(found, n, start[n]) for n in budgets}
    finals = [(n, c) for n in budgets for c in [start[n], *others[n]]]
    found = run_contest(job, f"final T={temperature}", temperature, finals, start[max(budgets)], seed=1)
    return [cell(temperature, n, found, start[n]) for n in budgets]


UNUSED = (0.0, 1.0, 1.0)  # beta, growth, sharpness of trees that have none


def from_settings(tree: str, settings: TreeSettings) -> Candidate:
    return Candidate(tree, settings.depth, settings.beta, settings.growth, round(settings.sharpness, 3))


def run_contest(job: Job, name: str, temperature: float, entries: list[tuple[int, Candidate]], step: Candidate,
                seed: int = 0) -> search.Contest:
    """One logged contest, and a line for every budget."""
    key = f"{name} {sorted(set(entries))}"
    options = job.options
    raw = job.piece(key, len(job.prompts), lambda tick: [
        [n, list(c), values] for (n, c), values in search.contest(
            job.model, job.prompts, temperature, entries, visits(options), step, options.seed + seed, tick).items()])
    found = {(n, Candidate(*c)): values for n, c, values in raw}
    print(f"\n{name}")
    for (n, candidate), values in found.items():
        error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        print(f"  nodes {n:4} {candidate.tree:6} depth {candidate.depth:2} beta {candidate.beta:.2f} "
              f"growth {candidate.growth:.2f} sharpness {candidate.sharpness:.2f}   "
              f"E[accepted] {np.mean(values):.3f} +- {error:.3f}")
    return found


def cell(temperature: float, nodes: int, found: search.Contest, incumbent: Candidate) -> dict[str, Any]:
    """The winner of one budget as it is written down; another tree than the incumbent wins only beyond a standard
    error."""
    best = search.better(found, nodes, incumbent)
    values = {c.tree: np.array(v) for (n, c), v in found.items() if n == nodes}
    settings = {} if best.tree != "hybrid" else {
        "beta": best.beta, "growth": best.growth, "sharpness": best.sharpness}
    return {"temperature": temperature, "nodes": nodes, "tree": best.tree, "depth": best.depth, **settings,
            "expected": {tree: round(float(v.mean()), 3) for tree, v in values.items()},
            "states": len(values[incumbent.tree])}


def origin(job: Job, temperatures: dict[str, Any]) -> dict[str, Any]:
    """Where the numbers come from; no machine's paths."""
    told = provenance.provenance([])
    shown = {name: value for name, value in vars(job.options).items()
             if isinstance(value, (int, float, list)) or value is None}
    return {"git": told["git"], "versions": told["versions"], "cpu": told["hardware"]["cpu"],
            "date": time.strftime("%Y-%m-%d", time.gmtime()), "questions": f"every {HOLD_OUT_EVERY}th of "
            "gsm8k/train.jsonl, held out of training" if not job.options.prompts else Path(job.options.prompts).name,
            "settings": shown, **temperatures}


def read_prompts(options: argparse.Namespace, tokenizer: Any) -> list[list[int]]:
    """Token ids of the held-out conversations' first user turns."""
    if options.prompts:
        lines = [json.loads(line) for line in Path(options.prompts).read_text(encoding="utf-8").splitlines() if line]
        conversations = [line["messages"] for line in lines]
    else:
        path = Path(options.data_dir or "", "gsm8k", "train.jsonl")
        if not path.is_file():
            raise ValueError(f"--data-dir {options.data_dir!r} has no gsm8k/train.jsonl; pass it, set HSD_DATA, "
                             "or give --prompts F")
        conversations = list(read_gsm8k(path))[::HOLD_OUT_EVERY]
    style = prompts.prompt_format(tokenizer, options.base_model_path)
    chosen = conversations[: options.num_questions]
    return [prompts.encode(tokenizer, style, messages[:1])[0].tolist() for messages in chosen]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eval.tune_trees", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--base-model-path", required=True, metavar="P")
    add("--ea-model-path", metavar="P")
    add("--draft-model-path", metavar="P", help="an ordinary draft model instead of a head")
    add("--data-dir", default=os.environ.get("HSD_DATA"), metavar="D",
        help="with gsm8k/train.jsonl (default: $HSD_DATA)")
    add("--prompts", metavar="F", help="other held-out questions: JSON lines with `messages`")
    add("--num-questions", type=int, default=24, metavar="N")
    add("--states", type=int, default=4, metavar="S", help="decoding states per question (default 4)")
    add("--stride", type=int, default=4, metavar="S", help="steps from one to the next (default 4)")
    add("--temperatures", type=float, nargs="*", default=[1.0], metavar="T")
    add("--nats", type=float, nargs="*", default=[], metavar="H",
        help="also at the temperatures of these mean entropies")
    add("--budgets", type=int, nargs="+", default=[8, 16, 32, 60], metavar="N", help="nodes, root included")
    add("--max-depth", type=int, default=7, metavar="K")
    add("--entropy-grid", type=float, nargs="*", default=[0.3, 0.5, 0.7, 0.85, 1.0], metavar="T")
    add("--entropy-questions", type=int, default=32, metavar="N")
    add("--entropy-tokens", type=int, default=128, metavar="N")
    add("--seed", type=int, default=0)
    add("--dtype", choices=list(engine.DTYPES), default=engine.default_dtype())
    add("--output", required=True, metavar="F", help="the choices, JSON; the log lies beside it as F.log.jsonl")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


def open_log(path: Path) -> tuple[dict[str, Any], Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    pieces = {}
    if path.is_file():
        storage.recover(path)
        pieces = {line["piece"]: line["value"] for line in storage.lines(path)}
    return pieces, open(path, "ab")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure and decide; returns what is written to --output."""
    if min(options.budgets) < 2:
        raise ValueError(f"--budgets {min(options.budgets)}: expected at least 2, the root and one drafted node")
    model = engine.load(options.base_model_path, options.ea_model_path, options.dtype,
                        draft_model_path=options.draft_model_path)
    log, file = open_log(Path(f"{options.output}.log.jsonl"))
    with file:
        job = Job(model, read_prompts(options, model.tokenizer), options, log, file)
        measured = entropies(job)
        found = {nats: search.temperature_for(nats, measured) for nats in options.nats}
        for nats, temperature in found.items():
            print(f"{nats} nats: " + ("outside the grid" if temperature is None else f"temperature {temperature:.3f}"))
        at_nats = [round(t, 2) for t in found.values() if t is not None]
        cells, calibrations = [], {}
        for temperature in sorted({*options.temperatures, *at_nats}):
            if temperature == 0:
                cells += tune_greedy(job)
                continue
            calibration = calibrate(job, temperature)
            calibrations[temperature] = calibration
            cells += tune(job, temperature, calibration["fit"])
        told = {"entropy": measured, "temperature_of_nats": found}
        return {"provenance": origin(job, told), "pair": pair_of(model.drafter), "cells": cells,
                "calibration": calibrations}


def main(argv: list[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    try:
        result = run(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    storage.write_whole(Path(options.output), json.dumps(result, indent=1) + "\n")
    for row in result["cells"]:
        print(f"T {row['temperature']:<5} nodes {row['nodes']:4}: {row['tree']} depth {row['depth']} "
              + ", ".join(f"{tree} {value:.2f}" for tree, value in row["expected"].items()))
    print(f"choices: {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
