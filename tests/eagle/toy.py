"""A tabular world behind the real interfaces: target and draft laws by prefix, a drafter, drafts that are replayed."""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from eagle.trees import Draft, TreeBatch, TreeSettings, find_tree


class Table:
    """A random law for every prefix, in float64. `sharpness` 0 is uniform; `zeros` is the share of exact zeros."""

    def __init__(self, vocab: int, seed: int, sharpness: float = 1.5, zeros: float = 0.0):
        self.vocab, self.seed, self.sharpness, self.zeros = vocab, seed, sharpness, zeros
        self._laws: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, prefix: tuple[int, ...]) -> Tensor:
        if prefix not in self._laws:
            generator = torch.Generator().manual_seed(hash((self.seed, prefix)) % 2**31)
            law = (self.sharpness * torch.randn(self.vocab, generator=generator, dtype=torch.float64)).softmax(-1)
            keep = torch.rand(self.vocab, generator=generator) >= self.zeros
            keep[law.argmax()] = True
            self._laws[prefix] = law * keep / (law * keep).sum()
        return self._laws[prefix]


class MoodyTable(Table):
    """A table that is sharp after token 0 and flat after others: what grows below depends on what was drawn."""

    def __call__(self, prefix: tuple[int, ...]) -> Tensor:
        law = super().__call__(prefix)
        if not prefix:
            return law
        power = law ** (4.0 if prefix[-1] == 0 else 0.25) * (law > 0)
        return power / power.sum()


class TableDrafter:
    """What a draft asks of a drafter, over one `Table` per row. Logits are log-probabilities, so a softmax gives the
    tables back.
    """

    support = None

    def __init__(self, *tables: Table):
        self.tables = tables
        self.rewind()

    @property
    def root_logits(self) -> Tensor:
        return torch.stack([table(()).log() for table in self.tables])

    def rewind(self) -> None:
        self.prefixes: list[list[tuple[int, ...]]] = [[()] for _ in self.tables]

    def grow(self, parents: Tensor, tokens: Tensor) -> Tensor:
        rows = []
        for table, known, *pairs in zip(self.tables, self.prefixes, parents.tolist(), tokens.tolist()):
            new = [(*known[parent], token) for parent, token in zip(*pairs)]
            known += new
            rows.append(torch.stack([table(prefix).log() for prefix in new]))
        return torch.stack(rows)


def softmax(logits: Tensor) -> Tensor:
    """q of a draft at temperature 1."""
    return logits.softmax(-1)


class ReplayedDraws:
    """Draws that follow a script; beyond it, the first possible token, noting what else could have come.

    calls   the tokens drawn, call by call
    """

    def __init__(self, script: tuple[int, ...] = ()):
        self.script, self.taken, self.options, self.weight = script, [], [], 1.0
        self.calls: list[list[int]] = []

    def __call__(self, probs: Tensor) -> Tensor:
        rows = probs.reshape(-1, probs.shape[-1])
        self.calls.append([self._one(row) for row in rows])
        return torch.tensor(self.calls[-1]).view(probs.shape[:-1])

    def distinct(self, probs: Tensor, count: int) -> Tensor:
        rows = probs.reshape(-1, probs.shape[-1])
        return torch.tensor([self._several(row, count) for row in rows]).view(*probs.shape[:-1], count)

    def _several(self, row: Tensor, count: int) -> list[int]:
        tokens: list[int] = []
        for _ in range(count):
            rest = row.clone()
            rest[tokens] = 0
            unused = next(token for token in range(len(row)) if token not in tokens)
            tokens.append(self._one(rest / rest.sum()) if rest.sum() > 0 else unused)
        return tokens

    def _one(self, row: Tensor) -> int:
        possible = [token for token, p in enumerate(row.tolist()) if p > 1e-15]
        place = len(self.taken)
        token = self.script[place] if place < len(self.script) else possible[0]
        self.taken.append(token)
        self.options.append(possible)
        self.weight *= row[token].item()
        return token


class ReplayedDraft(Draft):
    """A real draft of one row over a table, but for its samples, which a script gives. The numbers that a sample would
    take are counted: a builder may not need more of them than it says.
    """

    def __init__(self, table: Table, draws: ReplayedDraws, numbers: int = 0):
        drafter = TableDrafter(table)
        uniforms = torch.zeros(1, numbers, dtype=torch.float64)
        super().__init__(drafter, torch.zeros(1, dtype=torch.int64), drafter.root_logits, softmax, uniforms)
        self.draws = draws

    def sample(self, probs: Tensor, places: Tensor | None = None, reserved: int | None = None) -> Tensor:
        self._take(reserved or probs.shape[1])
        return self.draws(probs)

    def sample_distinct(self, probs: Tensor, count: int) -> Tensor:
        self._take(probs.shape[1] * count)
        return self.draws.distinct(probs, count)


def grown_tree(name: str, settings: TreeSettings, table: Table, draws: ReplayedDraws) -> TreeBatch:
    """The tree that the real builder grows with these draws; one row."""
    builder = find_tree(name)
    return builder.build(ReplayedDraft(table, draws, builder.draws(settings)), settings)


def every_outcome(build: Callable[[ReplayedDraws], object]) -> Iterator[tuple[float, object]]:
    """(probability, result) for every sequence of draws that `build` can see: a depth-first replay."""
    stack = [()]
    while stack:
        draws = ReplayedDraws(stack.pop())
        result = build(draws)
        yield draws.weight, result
        for place in range(len(draws.script), len(draws.taken)):
            for other in draws.options[place][1:]:
                stack.append((*draws.taken[:place], other))


def merged(outcomes: Iterator[tuple[float, object]]) -> list[tuple[float, object]]:
    """Equal trees once: draws that no node was made of do not count."""
    found: dict[tuple, tuple[float, object]] = {}
    for weight, tree in outcomes:
        key = tuple(tuple(part.tolist()) for part in (tree.tokens, tree.parents, tree.proposal_rows))
        found[key] = (found.get(key, (0.0, tree))[0] + weight, tree)
    return list(found.values())


def joint_law(table: Table, horizon: int) -> Tensor:
    """Law of the next `horizon` tokens: Float64[V, ..., V]."""
    law = torch.zeros((table.vocab,) * horizon, dtype=torch.float64)
    for word in itertools.product(range(table.vocab), repeat=horizon):
        law[word] = path_probability(table, (), word)
    return law


def path_probability(table: Table, prefix: tuple[int, ...], word: tuple[int, ...]) -> float:
    probability = 1.0
    for token in word:
        probability *= table(prefix)[token].item()
        prefix = (*prefix, token)
    return probability


def emitted_law(target: Table, outcomes, stopping_law, horizon: int) -> tuple[Tensor, float]:
    """Joint law of the first `horizon` emitted tokens over all trees and stops, and E[accepted].

    After the bonus token the target itself continues.
    """
    law = torch.zeros((target.vocab,) * horizon, dtype=torch.float64)
    expected = 0.0
    for weight, tree in outcomes:
        prefixes = node_prefixes(tree)
        result = stopping_law(tree, torch.stack([target(prefix) for prefix in prefixes]))
        expected += weight * result.expected_accepted.item()
        for node, prefix in enumerate(prefixes):
            stop = result.stop[node].item()
            if stop == 0:
                continue
            residual = result.residual(node)
            for tail in itertools.product(range(target.vocab), repeat=horizon - len(prefix)):
                rest = path_probability(target, (*prefix, tail[0]), tail[1:])
                law[(*prefix, *tail)] += weight * stop * residual[tail[0]].item() * rest
    return law, expected


def node_prefixes(tree) -> list[tuple[int, ...]]:
    prefixes: list[tuple[int, ...]] = []
    for token, parent in zip(tree.tokens.tolist(), tree.parents.tolist()):
        prefixes.append(() if parent < 0 else (*prefixes[parent], token))
    return prefixes
