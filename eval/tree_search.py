"""What `eval.tune_trees` measures and how it decides: the target's entropy, calibration, contests between settings.

Everything is E[accepted] of real trees at real decoding states (eval/trees/probe.py), the same for all candidates.
"""
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from eagle.engine.sampling import Law, SamplingSettings
from eagle.model.eagle_model import EagleModel
from eagle.trees import TreeSettings
from eval.trees.probe import NodeQuantities, Room, Walk, node_quantities

Prompts = list[list[int]]
SHARPNESS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5)  # powers of q that a calibration tries


class Visit(NamedTuple):
    """Which states of an answer are looked at: every `stride`-th step, `states` of them at most."""

    states: int = 4
    stride: int = 4
    max_new_tokens: int = 256


class Candidate(NamedTuple):
    """A tree and its settings, as they are written to a file."""

    tree: str
    depth: int
    beta: float = 0.8
    growth: float = 1.1
    sharpness: float = 1.0

    def settings(self, nodes: int) -> TreeSettings:
        return TreeSettings(nodes, self.depth, None, self.beta, self.growth, self.sharpness)


Contest = dict[tuple[int, Candidate], list[float]]  # (nodes, candidate) -> E[accepted], state by state


def generator_of(seed: int, question: int) -> torch.Generator:
    return torch.Generator().manual_seed(1_000_003 * seed + question)


def mean_entropy(model: EagleModel, prompts: Prompts, temperature: float, tokens: int, seed: int = 0) -> float:
    """Mean entropy in nats of the target's law along its own samples, `tokens` per prompt at most."""
    longest = max(map(len, prompts))
    ids = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts])
    mask = torch.tensor([[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in prompts])
    rows = model.generate(
        ids.to(model.device), tokens, attention_mask=mask.to(model.device), temperature=temperature, tree="none",
        generator=torch.Generator(model.device).manual_seed(seed), return_dict_in_generate=True,
    )
    law, total, count = Law(SamplingSettings(temperature)), 0.0, 0
    for row in rows if isinstance(rows, list) else [rows]:
        with torch.inference_mode():
            logits = model.target.model(row.sequences.to(model.device)).logits[0, row.prompt_tokens - 1 : -1]
        p = law(logits)
        total += -torch.xlogy(p, p).sum().item()
        count += len(p)
    return total / count


def temperature_for(nats: float, entropies: dict[float, float]) -> float | None:
    """The temperature of a mean entropy, between measured ones; None outside them."""
    points = sorted(entropies.items())
    for (cold, low), (warm, high) in zip(points, points[1:]):
        if low <= nats <= high:
            return cold + (warm - cold) * (nats - low) / max(high - low, 1e-9)
    return None


def visit(walk: Walk, prompt: list[int], generator: torch.Generator, plan: Visit, step: Candidate,
          nodes: int) -> Iterator[int]:
    """Yield at the states to look at; the answer goes on by steps of `step`, verified by HSD."""
    settings = step.settings(nodes)
    move = lambda walk: (walk.draft(step.tree, settings), "hsd")
    for index in walk.along(prompt, plan.max_new_tokens, generator, follow=move):
        if index % plan.stride == 0:
            yield index
        if index >= plan.stride * (plan.states - 1):
            return


def calibration_nodes(model: EagleModel, prompts: Prompts, temperature: float, plan: Visit, depth: int,
                      seed: int, tick: Callable[[], None]) -> list[dict[float, NodeQuantities]]:
    """At every state, a chain's quantities for each sharpness of q that is tried."""
    chain = Candidate("chain", depth)
    walk = Walk(model, SamplingSettings(temperature), Room(depth + 1, depth, depth))
    seen = []
    for question, prompt in enumerate(prompts):
        for _ in visit(walk, prompt, generator_of(seed, question), plan, chain, depth + 1):
            drafted = walk.draft("chain", chain.settings(depth + 1))
            seen.append({s: node_quantities(drafted, sharpness=s) for s in SHARPNESS})
        tick()
    return seen


def by_depth(seen: list[dict[float, NodeQuantities]], name: str, sharpness: float = 1.0) -> np.ndarray:
    """Mean per depth of one quantity, weighted by the chance that the accepted path comes there."""
    weights = np.stack([nodes[1.0].passed.numpy() for nodes in seen])
    values = np.stack([getattr(nodes[sharpness], name).numpy() for nodes in seen])
    weights = weights.reshape(*weights.shape, *[1] * (values.ndim - 2))
    return (values * weights).sum(0) / weights.sum(0)


def come_there(seen: list[dict[float, NodeQuantities]]) -> np.ndarray:
    """Mean chance, per depth, that a chain's accepted path comes to the node whose law is looked at."""
    return np.mean([nodes[1.0].passed.numpy() for nodes in seen], axis=0)


def overall(seen: list[dict[float, NodeQuantities]], name: str, sharpness: float) -> float:
    weights = np.concatenate([nodes[1.0].passed.numpy() for nodes in seen])
    values = np.concatenate([getattr(nodes[sharpness], name).numpy() for nodes in seen])
    return float(np.average(values, weights=weights))


def fit(seen: list[dict[float, NodeQuantities]]) -> dict[str, float]:
    """The slot-value model: the power of q that overlaps most with p, and the beta of 1 - (1 - beta) G at it.

    Least squares through the point (G = 0, overlap 1): a certain draft is right.
    """
    best = max(SHARPNESS, key=lambda s: overall(seen, "overlap", s))
    weights = np.concatenate([nodes[1.0].passed.numpy() for nodes in seen])
    spread = np.concatenate([nodes[best].spread.numpy() for nodes in seen])
    missed = 1 - np.concatenate([nodes[best].overlap.numpy() for nodes in seen])
    slope = float((weights * spread * missed).sum() / max((weights * spread * spread).sum(), 1e-9))
    return {"sharpness": best, "beta": round(min(max(1 - slope, 0.0), 1.0), 3),
            "overlap": overall(seen, "overlap", best), "overlap_of_q": overall(seen, "overlap", 1.0)}


def contest(model: EagleModel, prompts: Prompts, temperature: float, entries: list[tuple[int, Candidate]],
            plan: Visit, step: Candidate, seed: int, tick: Callable[[], None]) -> Contest:
    """E[accepted] with HSD of every (nodes, candidate) at the same states, visited by 60-node steps of `step`."""
    entries = list(dict.fromkeys(entries))
    most = max([60, *(nodes for nodes, _ in entries)])
    room = Room.of([(c.tree, c.settings(n)) for n, c in entries] + [(step.tree, step.settings(60))])
    walk = Walk(model, SamplingSettings(temperature), room._replace(nodes=most))
    found: Contest = {entry: [] for entry in entries}
    for question, prompt in enumerate(prompts):
        for _ in visit(walk, prompt, generator_of(seed, question), plan, step, 60):
            for nodes, candidate in entries:
                drafted = walk.draft(candidate.tree, candidate.settings(nodes))
                found[nodes, candidate].append(drafted.expected("hsd"))
        tick()
    return found


def better(found: Contest, nodes: int, incumbent: Candidate) -> Candidate:
    """The best candidate for a budget; the incumbent unless it is beaten by more than a standard error."""
    base = np.array(found[nodes, incumbent])
    gains = {c: np.array(v) - base for (n, c), v in found.items() if n == nodes}
    best = max(gains, key=lambda c: gains[c].mean())
    error = gains[best].std(ddof=1) / math.sqrt(len(base)) if len(base) > 1 else math.inf
    return best if gains[best].mean() > error else incumbent


def pooled(found: Contest, start: dict[int, Candidate], name: str, errors: float = 2.0) -> Any:
    """One value of a setting for all budgets: relative gains over the incumbents, averaged over budgets state by state.

    None, for "keep each incumbent's", unless a value wins by more than `errors` standard errors: with a few values to
    choose from, one standard error is often beaten by chance.
    """
    gains = {}
    for value in {getattr(candidate, name) for _, candidate in found}:
        rows = []
        for n, incumbent in start.items():
            key, base = (n, incumbent._replace(**{name: value})), np.array(found[n, incumbent])
            if key in found:
                rows.append((np.array(found[key]) - base) / max(base.mean(), 1e-9))
        if len(rows) == len(start):
            gains[value] = np.mean(rows, axis=0)
    best = max(gains, key=lambda value: gains[value].mean(), default=None)
    if best is None or len(gains[best]) < 2:
        return None
    error = gains[best].std(ddof=1) / math.sqrt(len(gains[best]))
    return best if gains[best].mean() > errors * error and error > 0 else None


def variations(incumbent: Candidate, name: str, values: list[Any]) -> list[Candidate]:
    """The incumbent and its neighbours in one setting."""
    return list(dict.fromkeys([incumbent, *(incumbent._replace(**{name: value}) for value in values)]))


def depths_to_try(incumbent: Candidate, nodes: int, deepest: int) -> list[int]:
    steps = (-2, -1, 1, 2)
    return [d for d in (incumbent.depth + step for step in steps) if 1 <= d <= min(deepest, nodes - 1)]

