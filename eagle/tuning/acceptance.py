"""The exact E[accepted] of every candidate at states of the target's own answers.

The states lie `STRIDE` tokens apart on answers that the target alone samples, so no tree chooses them. At each of them
the real builders draft every candidate and its stopping law gives E[accepted] without verification noise.

Shapes: V vocabulary, Vd draft vocabulary.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

import hsd
from eagle.engine.sampling import SamplingParams, SamplingTransform
from eagle.tuning.calibration import Expected, Overlap, Table
from eagle.tuning.candidates import VERIFIER, Candidate, candidates_at, is_greedy
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
    limits = TreeLimits.of([(candidate.tree, candidate.settings) for candidate in candidates])
    probe = StateProbe(model, SamplingParams(temperature), limits, TOGETHER)
    per_prompt = math.ceil(states / max(len(prompts), 1))
    rows: list[list[list[float]]] = []  # per prompt and state: E[accepted] of every candidate, then the overlaps
    for index, prompt in enumerate(prompts):
        if len(prompt) < model.context_length:
            generator = torch.Generator(device=model.device).manual_seed(1_000_003 * seed + index)
            rows.append(_answer(probe, prompt, per_prompt, generator, candidates))
    rows = [row for row in rows if row]
    if not rows:
        raise ValueError(f"no state was reached on {len(prompts)} prompts: pass prompts with longer answers")
    columns = [mean_and_error([[state[column] for state in row] for row in rows]) for column in range(len(rows[0][0]))]
    trees = tuple(Expected(*candidate, *column) for candidate, column in zip(candidates, columns))
    means = [mean for mean, _ in columns[len(candidates) :]]
    overlaps = tuple(Overlap(factor, mean) for factor, mean in zip(_factors(temperature), means))
    return Table(temperature, sum(map(len, rows)), trees, overlaps)


def _answer(
    probe: StateProbe, prompt: Sequence[int], count: int, generator: torch.Generator, candidates: list[Candidate]
) -> list[list[float]]:
    found: list[list[float]] = []
    for index in probe.states(list(prompt), STRIDE * count + 1, generator):
        if index % STRIDE == STRIDE // 2:
            found.append(_at_state(probe, candidates))
    return found


def _at_state(probe: StateProbe, candidates: list[Candidate]) -> list[float]:
    temperature = probe.sampling.temperature
    verifier = "greedy" if is_greedy(temperature) else VERIFIER
    longest = max((one for one in candidates if one.tree == "chain"), key=lambda one: one.depth)
    branching = [one for one in candidates if one.tree != "chain"]
    path, *trees = probe.score([probe.grow(one.tree, one.settings) for one in (longest, *branching)])
    found = {one: scored.expected(verifier) for one, scored in zip(branching, trees, strict=True)}
    expected = [found[one] if one in found else path_expected(path, one.nodes, verifier) for one in candidates]
    return [
        *expected,
        *(overlap(path.target_probs[0], probe, factor * temperature) for factor in _factors(temperature)),
    ]


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
