"""The exact E[accepted] of every candidate at states of the target's own answers.

The states lie `STRIDE` tokens apart on answers that the target alone samples, so no tree chooses them. At each of them
the real builders draft every candidate and its stopping law gives E[accepted] without verification noise.

Shapes: V vocabulary, Vd draft vocabulary.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hsd
from eagle.engine.sampling import SamplingParams, SamplingTransform
from eagle.trees import TreeSettings
from eagle.tuning.calibration import Expected, Overlap, Table
from eagle.tuning.candidates import BETAS, VERIFIER, Candidate, candidates_at, is_greedy
from eagle.tuning.probe import TOGETHER, ScoredTree, StateProbe, TreeLimits

STRIDE = 12
FACTORS = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4)  # draft temperature over the target's


def measure_table(
    model: Any, prompts: Collection[Sequence[int]], temperature: float, states: int, seed: int = 0
) -> Table:
    """The table of one temperature, over about `states` states, equally many of each prompt with a long enough answer.

    model    an `eagle.EagleModel` with a drafter; a generation of it must not be unfinished
    seed     prompt i is answered with a generator of its own, whatever the other prompts are

    Raises ValueError where no state was reached.
    """
    candidates = candidates_at(temperature)
    limits = TreeLimits.of([(one.tree, one.settings) for one in candidates])
    probe = StateProbe(model, SamplingParams(temperature), limits, TOGETHER)
    per_prompt = math.ceil(states / max(len(prompts), 1))
    rows: list[list[AtState]] = []
    for index, prompt in enumerate(prompts):
        if len(prompt) < model.context_length:
            generator = torch.Generator(device=model.device).manual_seed(1_000_003 * seed + index)
            rows.append(_answer(probe, prompt, per_prompt, generator, candidates))
    rows = [row for row in rows if row]
    if not rows:
        raise ValueError(f"no state was reached on {len(prompts)} prompts: pass prompts with longer answers")
    found = {tree: mean_and_error([[state.expected[tree] for state in row] for row in rows]) for tree in rows[0][0][0]}
    beta = best_beta(candidates, found)
    trees = tuple(Expected(*one, *found[one.tree, one.with_beta(beta)]) for one in candidates)
    by_state = [state.overlaps for row in rows for state in row]
    overlaps = tuple(Overlap(factor, round(fmean(q), 4)) for factor, q in zip(_factors(temperature), zip(*by_state)))
    return Table(temperature, len(by_state), trees, overlaps, beta)


class AtState(NamedTuple):
    """What was measured at one state: E[accepted] by tree and settings, and sum min(p, q) by factor."""

    expected: dict[tuple[str, TreeSettings], float]
    overlaps: list[float]


def best_beta(candidates: Iterable[Candidate], found: Mapping[tuple[str, TreeSettings], tuple[float, float]]) -> float:
    """The beta with which the candidates that have one accept most in all; the default where none has."""
    asked = [one for one in candidates if len(one.variants) > 1]
    if not asked:
        return TreeSettings().beta
    return max(BETAS, key=lambda beta: math.fsum(found[one.tree, one.with_beta(beta)][0] for one in asked))


def _answer(
    probe: StateProbe, prompt: Sequence[int], count: int, generator: torch.Generator, candidates: list[Candidate]
) -> list[AtState]:
    found: list[AtState] = []
    for index in probe.states(list(prompt), STRIDE * count + 1, generator):
        if index % STRIDE == STRIDE // 2:
            found.append(_at_state(probe, candidates))
    return found


def _at_state(probe: StateProbe, candidates: list[Candidate]) -> AtState:
    temperature = probe.sampling.temperature
    verifier = "greedy" if is_greedy(temperature) else VERIFIER
    chains = [one for one in candidates if one.tree == "chain"]
    longest = max(chains, key=lambda one: one.depth)
    asked = [(one.tree, settings) for one in candidates if one.tree != "chain" for settings in one.variants]
    path, *trees = probe.score([probe.grow(*tree) for tree in ((longest.tree, longest.settings), *asked)])
    expected = {tree: scored.expected(verifier) for tree, scored in zip(asked, trees, strict=True)}
    for one in chains:
        expected[one.tree, one.settings] = path_expected(path, one.nodes, verifier)
    overlaps = [overlap(path.target_probs[0], probe, factor * temperature) for factor in _factors(temperature)]
    return AtState(expected, overlaps)


def path_expected(path: ScoredTree, nodes: int, verifier: str) -> float:
    """E[accepted] of the first `nodes` nodes of a sampled path, which are a sampled path themselves."""
    tree, probs = path.tree, path.target_probs[:nodes]
    first = hsd.DraftTree(
        tree.tokens[:nodes], tree.parents[:nodes], tree.proposal_rows[:nodes], tree.proposals, tree.support
    )
    return hsd.stopping_law(first, probs, verifier, check=False).expected_accepted.item()


def _factors(temperature: float) -> tuple[float, ...]:
    """At temperature 0 the tree is ranked by q at temperature 1 and q is drawn from nowhere else."""
    return () if is_greedy(temperature) else FACTORS


def overlap(target_probs: Tensor, probe: StateProbe, draft_temperature: float) -> float:
    """Sum of min(p, q) at the root: p Float[V], q the probe's draft distribution at this temperature."""
    q = SamplingTransform(SamplingParams(draft_temperature))(probe.logits)[0]
    support = probe.drafter.support
    p = target_probs if support is None else target_probs[support]
    return torch.minimum(p.to(q), q).sum().item()


def mean_and_error(values: list[list[float]]) -> tuple[float, float]:
    """Mean over all states, and its standard error over prompts (a ratio of sums), as states of one answer are alike.
    Both to four digits behind the point.
    """
    count, prompts = sum(map(len, values)), len(values)
    mean = math.fsum(map(math.fsum, values)) / count
    squares = math.fsum((math.fsum(row) - mean * len(row)) ** 2 for row in values)
    error = math.sqrt(squares * prompts / (prompts - 1)) / count if prompts > 1 else 0.0
    return round(mean, 4), round(error, 4)
