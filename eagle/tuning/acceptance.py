"""The exact E[accepted] of every candidate at states of the target's own answers.

The states lie `STRIDE` tokens apart on answers that the target alone samples, so no tree chooses them. At each of them
the real builders draft every candidate and its stopping law gives E[accepted] without verification noise. All trees
that are compared at a state draw from generators of the same seeds: differences between alike trees are then half as
noisy (correlation of hybrid trees with beta .3 and .7: one half).

Shapes: V vocabulary, Vd draft vocabulary.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hsd
from eagle.engine.sampling import SamplingParams, SamplingTransform
from eagle.trees import GeneratorDraw, TreeSettings, is_sampled
from eagle.tuning.calibration import Expected, Overlap, Table
from eagle.tuning.candidates import BETAS, VERIFIER, Candidate, candidates_at, is_greedy
from eagle.tuning.probe import TOGETHER, ScoredTree, StateProbe, TreeLimits

STRIDE = 12
DRAWS = 2  # trees per state and candidate
FACTORS = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4)  # draft temperature over the target's


Plan = tuple[str, TreeSettings]


class Measured(NamedTuple):
    """What was measured at one temperature: mean and standard error of E[accepted] by tree and settings."""

    temperature: float
    states: int
    found: dict[Plan, tuple[float, float]]
    overlaps: tuple[Overlap, ...]

    @property
    def candidates(self) -> list[Candidate]:
        return candidates_at(self.temperature)

    def expected(self, beta: float) -> tuple[Expected, ...]:
        """The candidates' rows of a table, hybrid trees with this beta."""
        return tuple(Expected(*one, *self.found[one.tree, one.with_beta(beta)]) for one in self.candidates)


def measure(model: Any, prompts: Collection[Sequence[int]], temperature: float, states: int, seed: int = 0) -> Measured:
    """Measure one temperature at about `states` states, equally many of each prompt with a long enough answer.

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
    found = {plan: mean_and_error([[state.expected[plan] for state in row] for row in rows]) for plan in rows[0][0][0]}
    by_state = [state.overlaps for row in rows for state in row]
    overlaps = tuple(Overlap(factor, round(fmean(q), 4)) for factor, q in zip(_factors(temperature), zip(*by_state)))
    return Measured(temperature, len(by_state), found, overlaps)


def tables_of(measured: Sequence[Measured]) -> tuple[Table, ...]:
    """One table per temperature, with the beta that accepts most over all of them: it belongs to the head, and one
    temperature alone says little about it.
    """
    beta = best_beta(measured)
    return tuple(Table(one.temperature, one.states, one.expected(beta), one.overlaps, beta) for one in measured)


def best_beta(measured: Sequence[Measured]) -> float:
    """The beta with which the candidates that have one accept most, each temperature's total counting alike; the
    default where no candidate has one.
    """
    totals = [
        {beta: math.fsum(one.found[tree.tree, tree.with_beta(beta)][0] for tree in asked) for beta in BETAS}
        for one in measured
        if (asked := [tree for tree in one.candidates if len(tree.variants) > 1])
    ]
    if not totals:
        return TreeSettings().beta
    return max(BETAS, key=lambda beta: math.fsum(total[beta] / math.fsum(total.values()) for total in totals))


class AtState(NamedTuple):
    """What was measured at one state: E[accepted] by tree and settings, and sum min(p, q) by factor."""

    expected: dict[Plan, float]
    overlaps: list[float]


def _answer(
    probe: StateProbe, prompt: Sequence[int], count: int, generator: torch.Generator, candidates: list[Candidate]
) -> list[AtState]:
    found: list[AtState] = []
    for index in probe.states(list(prompt), STRIDE * count + 1, generator):
        if index % STRIDE == STRIDE // 2:
            seeds = torch.randint(2**62, (DRAWS,), generator=generator, device=generator.device).tolist()
            found.append(_at_state(probe, candidates, seeds))
    return found


def _at_state(probe: StateProbe, candidates: list[Candidate], seeds: list[int]) -> AtState:
    """Every candidate's mean over the trees of these seeds; paths are the beginnings of the longest one."""
    temperature = probe.sampling.temperature
    longest = max((one for one in candidates if one.tree == "chain"), key=lambda one: one.depth)
    others = [(one.tree, settings) for one in candidates if one.tree != "chain" for settings in one.variants]
    plans = [
        (plan, seed)
        for plan in [(longest.tree, longest.settings), *others]
        for seed in seeds[: len(seeds) if is_sampled(plan[0]) else 1]
    ]
    device = probe.generator.device
    grown = [
        probe.grow(*plan, draw=GeneratorDraw(torch.Generator(device=device).manual_seed(seed))) for plan, seed in plans
    ]
    expected: dict[Plan, list[float]] = {}
    for (plan, _), scored in zip(plans, probe.score(grown), strict=True):
        for part, value in _values(plan, scored, candidates, temperature):
            expected.setdefault(part, []).append(value)
    overlaps = [overlap(scored.target_probs[0], probe, factor * temperature) for factor in _factors(temperature)]
    return AtState({plan: fmean(values) for plan, values in expected.items()}, overlaps)


def _values(
    plan: Plan, scored: ScoredTree, candidates: list[Candidate], temperature: float
) -> Iterator[tuple[Plan, float]]:
    """E[accepted] of a tree, or of all candidates that are the beginning of a path."""
    verifier = "greedy" if is_greedy(temperature) else VERIFIER
    if plan[0] != "chain":
        yield plan, scored.expected(verifier)
        return
    for one in candidates:
        if one.tree == "chain":
            yield (one.tree, one.settings), path_expected(scored, one.nodes, verifier)


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
