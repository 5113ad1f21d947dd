"""The static shape of a family of trees, fixed before one is drafted, so that `decide` reads no values on the host.

    rounds[t - 1][s] = the nodes of depth t that may hold the (s+1)-th sampled child of their parent

Vocabulary-wide work is done once per listed node. Which sampled child of its parent a node is, is found on the device:
a listed node that is another one, or a top-k token, is skipped. So a list may be longer than necessary, and rows whose
nodes have different numbers of sampled children may share a layout; a list may not miss a sampled node.

    layout                        rounds at depth 1                          at depth 2
    Layout.topk(2)                none                                       none
    Layout.chain(2)               range(1, 2)                                range(2, 3)
    Layout.levels((8, 8), (1, 3)) range(1, 2)                                range(9, 12)
    Layout.siblings((2, 3))       range(1, 2), range(2, 3)                   range(3, 5), range(4, 6), range(5, 6)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Slots = range | tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Static shape of a family of trees.

    rounds         rounds[t - 1][s]: the nodes of depth t that may hold the (s+1)-th sampled child of their
                   parent. Ranges need no transfer to the device; tuples do.
    sampled_first  no top-k child comes before a sampled sibling
    """

    rounds: tuple[tuple[Slots, ...], ...]
    sampled_first: bool = False

    @property
    def depth(self) -> int:
        """An upper bound on the depth of the tree."""
        return len(self.rounds)

    @property
    def max_draws(self) -> int:
        """An upper bound on the number of sampled children of one node."""
        return max((len(rounds) for rounds in self.rounds), default=0)

    @property
    def end(self) -> int:
        """One more than the largest node that it names."""
        return max((max(slots, default=0) + 1 for level in self.rounds for slots in level), default=1)

    @staticmethod
    def topk(depth: int) -> Layout:
        """Top-k tokens only; any order of the nodes; at most `depth` deep."""
        return Layout(((),) * depth, sampled_first=True)

    @staticmethod
    def chain(length: int) -> Layout:
        """One path of `length` tokens, each of which may be sampled."""
        return Layout(tuple((range(i, i + 1),) for i in range(1, length + 1)), sampled_first=True)

    @staticmethod
    def levels(sizes: Sequence[int], sampled: Sequence[int]) -> Layout:
        """Nodes in depth order, sizes[t] of them at depth t + 1, sampled ones among the first sampled[t].

        At most one sampled child per parent, before its top-k siblings. Raises ValueError on unequal lengths
        or sampled[t] > sizes[t].
        """
        if len(sizes) != len(sampled) or any(s > n for s, n in zip(sampled, sizes)):
            raise ValueError(
                f"sampled = {tuple(sampled)}: expected one count per level, at most the level's size in {tuple(sizes)}"
            )
        rounds, start = [], 1
        for size, count in zip(sizes, sampled):
            rounds.append((range(start, start + count),) if count else ())
            start += size
        return Layout(tuple(rounds), sampled_first=True)

    @staticmethod
    def siblings(sizes: Sequence[int]) -> Layout:
        """Nodes in depth order, sizes[t] of them at depth t + 1, with any number of sampled children per parent.

        Within a level first children come first, then second ones, and so on; sampled children before top-k siblings.
        """
        rounds, start, above = [], 1, 1
        for size in sizes:
            rounds.append(tuple(range(start + turn, start + min(size, (turn + 1) * above)) for turn in range(size)))
            start, above = start + size, size
        return Layout(tuple(rounds), sampled_first=True)

    @staticmethod
    def infer(parents: Sequence[int], sampled: Sequence[bool]) -> Layout:
        """The layout of one tree whose parents and sampled flags are on the host."""
        depth, draws, has_topk = [0] * len(parents), [0] * len(parents), [False] * len(parents)
        rounds: list[list[list[int]]] = []
        sampled_first = True
        for node, parent in enumerate(parents[1:], 1):
            depth[node] = depth[parent] + 1
            if depth[node] > len(rounds):
                rounds.append([])
            if not sampled[node]:
                has_topk[parent] = True
                continue
            sampled_first &= not has_topk[parent]
            level, turn = rounds[depth[node] - 1], draws[parent]
            if turn == len(level):
                level.append([])
            level[turn].append(node)
            draws[parent] += 1
        return Layout(tuple(tuple(tuple(slots) for slots in level) for level in rounds), sampled_first)

    def covers(self, other: Layout) -> bool:
        """True if this layout is a valid hint for a tree whose inferred layout is `other`."""
        if self.depth < other.depth or (self.sampled_first and not other.sampled_first):
            return False
        return all(
            len(mine) >= len(theirs) and all(set(t) <= set(m) for m, t in zip(mine, theirs))
            for mine, theirs in zip(self.rounds, other.rounds)
        )
