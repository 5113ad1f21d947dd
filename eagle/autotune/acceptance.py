"""The exact E[accepted] of every candidate at states of the target's own answers.

The states lie `STRIDE` tokens apart on answers that the target alone samples, so no tree chooses them. At each of them
the real builders draft every candidate and its stopping law gives E[accepted] without verification noise. All trees
that are compared at a state draw from generators of the same seeds: differences between alike trees then have half the
variance (correlation of hybrid trees with beta .3 and .7: one half).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch

import hsd
from eagle.autotune.calibration import Expected, Overlap, Table
from eagle.autotune.candidates import BETAS, VERIFIER, Candidate, Fit, candidates_at, is_greedy
from eagle.autotune.probe import NODES_PER_FORWARD, ScoredTree, StateProbe, TreeLimits
from eagle.autotune.prompts import with_generators
from eagle.autotune.sharpness import measure_overlaps, sharpness_of
from eagle.engine.distributions import SamplingParams
from eagle.trees import LEVELS, TreeSettings, is_sampled

STRIDE = 12
STATES_PER_ANSWER = 4  # at least: a head guesses the first words of an answer much worse than the rest
DRAWS = 2  # trees per state and candidate

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

    @property
    def sharpness(self) -> float:
        """With which the hybrid trees were drafted."""
        return sharpness_of(self.overlaps)

    def accepted(self, candidate: Candidate, beta: float, levels: str) -> tuple[float, float]:
        """E[accepted] of a candidate, where it has a beta with this one and such levels, and its standard error."""
        return self.found[candidate.tree, candidate.fitted(Fit(beta, self.sharpness), levels)]

    def table(self, beta: float, levels: str) -> Table:
        """The table with this beta."""
        trees = tuple(Expected(*one, *self.accepted(one, beta, levels)) for one in self.candidates)
        return Table(self.temperature, self.states, trees, self.overlaps, Fit(beta, self.sharpness), levels)


def measure(
    model: Any,
    prompts: Sequence[Sequence[int]],
    temperature: float,
    states: int,
    seed: int = 0,
    shown: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    levels: Sequence[str] = LEVELS,
) -> Measured:
    """Measure one temperature at about `states` states, equally many of each answer that is long enough.

    model    an `eagle.EagleModel` with a drafter
    prompts  for few states not all of them are answered, so that each answer has `STATES_PER_ANSWER`
    seed     prompt i is answered with a generator of its own, whatever the other prompts are
    shown    wraps what is worked through, such as a progress bar
    levels   of hybrid trees, whatever the device grows

    Raises ValueError where no state was reached.
    """
    per_prompt = max(math.ceil(states / max(len(prompts), 1)), min(states, STATES_PER_ANSWER))
    prompts = spread(prompts, math.ceil(states / per_prompt))
    overlaps = measure_overlaps(model, shown(prompts), temperature, STRIDE * per_prompt, seed)
    candidates, sharpness = candidates_at(temperature), sharpness_of(overlaps)
    plans = [(one.tree, settings) for one in candidates for settings in one.variants(sharpness, levels)]
    probe = StateProbe(model, SamplingParams(temperature), TreeLimits.of(plans), NODES_PER_FORWARD)
    rows = [
        row
        for prompt, generator in with_generators(model, shown(prompts), seed)
        if (row := _answer(probe, prompt, generator, per_prompt, plans))
    ]
    if not rows:
        raise ValueError(f"no state was reached on {len(prompts)} prompts: pass prompts with longer answers")
    found = {plan: mean_and_error([[state[plan] for state in row] for row in rows]) for plan in plans}
    return Measured(temperature, sum(map(len, rows)), found, overlaps)


def spread(prompts: Sequence[Sequence[int]], count: int) -> Sequence[Sequence[int]]:
    """`count` of the prompts, evenly over their order; all where there are no more."""
    return [prompts[index * len(prompts) // count] for index in range(count)] if count < len(prompts) else prompts


def tables_of(measured: Sequence[Measured], levels: Sequence[str] = LEVELS) -> tuple[Table, ...]:
    """For each kind of levels one table per temperature, with the beta that accepts most over all of them: it belongs
    to the head, and one temperature alone says little about it.
    """
    betas = {kind: best_beta(measured, kind) for kind in levels}
    return tuple(one.table(beta, kind) for kind, beta in betas.items() for one in measured)


def best_beta(measured: Sequence[Measured], levels: str) -> float:
    """The beta with which the candidates that have one accept most, each temperature's total counting alike; the
    default where no candidate has one.
    """
    totals = [
        {beta: math.fsum(one.accepted(tree, beta, levels)[0] for tree in asked) for beta in BETAS}
        for one in measured
        if (asked := [tree for tree in one.candidates if tree.is_fitted])
    ]
    if not totals:
        return TreeSettings().beta
    return max(BETAS, key=lambda beta: math.fsum(total[beta] / (max(total.values()) or 1) for total in totals))


def _answer(
    probe: StateProbe, prompt: list[int], generator: torch.Generator, count: int, plans: list[Plan]
) -> list[dict[Plan, float]]:
    """E[accepted] of every plan, for each state of one answer."""
    found: list[dict[Plan, float]] = []
    for index in probe.states(prompt, STRIDE * count + 1, generator):
        if index % STRIDE == STRIDE // 2:
            seeds = torch.randint(2**62, (DRAWS,), generator=generator).tolist()
            found.append(_at_state(probe, plans, seeds))
    return found


def _at_state(probe: StateProbe, plans: list[Plan], seeds: list[int]) -> dict[Plan, float]:
    """Every plan's mean over the trees of these seeds; paths are the beginnings of the longest one."""
    chains = [plan for plan in plans if plan[0] == "chain"]
    longest = max(chains, key=lambda plan: plan[1].depth)
    drafted = [
        (plan, seed)
        for plan in [longest, *(plan for plan in plans if plan[0] != "chain")]
        for seed in seeds[: len(seeds) if is_sampled(plan[0]) else 1]
    ]
    grown = [probe.grow(*plan, generator=torch.Generator().manual_seed(seed)) for plan, seed in drafted]
    verifier = "greedy" if is_greedy(probe.sampling.temperature) else VERIFIER
    expected: dict[Plan, list[float]] = {plan: [] for plan in plans}
    for (plan, _), scored in zip(drafted, probe.score(grown), strict=True):
        if plan == longest:
            for path in chains:
                expected[path].append(path_expected(scored, path[1].nodes, verifier))
        else:
            expected[plan].append(scored.expected(verifier))
    return {plan: fmean(values) for plan, values in expected.items()}


def path_expected(path: ScoredTree, nodes: int, verifier: str) -> float:
    """E[accepted] of the first `nodes` nodes of a sampled path, which are a sampled path themselves."""
    tree, probs = path.tree, path.target_probs[:nodes]
    first = hsd.DraftTree(
        tree.tokens[:nodes], tree.parents[:nodes], tree.proposal_rows[:nodes], tree.proposals, tree.support
    )
    return hsd.stopping_law(first, probs, verifier, check=False).expected_accepted.item()


def mean_and_error(values: list[list[float]]) -> tuple[float, float]:
    """Mean over all states, and its standard error over prompts (a ratio of sums), as states of one answer are alike.
    Both to four digits behind the point.
    """
    count, prompts = sum(map(len, values)), len(values)
    mean = math.fsum(map(math.fsum, values)) / count
    squares = math.fsum((math.fsum(row) - mean * len(row)) ** 2 for row in values)
    error = math.sqrt(squares * prompts / (prompts - 1)) / count if prompts > 1 else 0.0
    return round(mean, 4), round(error, 4)
