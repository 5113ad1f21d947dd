"""Compare plans at the same decoding states, exactly: E[accepted] from the stopping law, no verification noise.

    plans = [("topk", TreeSettings(60)), ("hybrid", TreeSettings(60))]
    walk = Walk(model, SamplingParams(temperature=1.0), Room.of(plans))
    for _ in walk.along(prompt, max_new_tokens=100, generator=g):
        for tree, settings in plans:
            drafted = walk.draft(tree, settings)      # the real builder; scored, not committed
            drafted.expected("hsd"), drafted.expected("token")

At one state every plan drafts from the same root with the same drafter state, so two plans differ by their trees'
draws alone. The state moves on along the target's own samples, or by the steps of a drafted tree (`follow`), so that
the states are those a real generation visits.

Shapes: N nodes, V vocabulary, Vd draft vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

import hsd
from eagle.engine.plan import Plan
from eagle.engine.sampling import SamplingParams, SamplingTransform
from eagle.engine.sequence import DecodingState
from eagle.engine.step import Decoder
from eagle.engine.step import Drafted as DraftedStep
from eagle.model.eagle_model import EagleModel
from eagle.modules.target import Scores
from eagle.trees import DraftProbs, TreeBatch, TreeSettings, find_tree, root_only


class Room(NamedTuple):
    """The largest tree that will be asked for: rows scored, depth, and nodes given to the drafter."""

    nodes: int
    depth: int
    slots: int

    @staticmethod
    def of(plans: list[tuple[str, TreeSettings]]) -> "Room":
        """Room for all of these (tree, settings)."""
        return Room(
            max(settings.nodes for _, settings in plans),
            max(settings.depth for _, settings in plans),
            max(find_tree(tree).slots(settings) for tree, settings in plans),
        )


@dataclass(frozen=True)
class Drafted:
    """One plan's tree at one state, scored by the target. laws Float[N, V]: p at every node."""

    batch: TreeBatch
    scores: Scores
    laws: Tensor
    _known: dict[str, hsd.StoppingLaw] = field(default_factory=dict)

    @cached_property
    def tree(self) -> hsd.DraftTree:
        return self.batch.row(0)

    def stopping_law(self, verifier: str) -> hsd.StoppingLaw:
        if verifier not in self._known:
            self._known[verifier] = hsd.stopping_law(self.tree, self.laws, verifier, check=False)
        return self._known[verifier]

    def expected(self, verifier: str = "hsd") -> float:
        """E[accepted] of one step: draft tokens, bonus excluded."""
        return self.stopping_law(verifier).expected_accepted.item()


class Walk:
    """One row's decoding, stopped at each state to look at trees."""

    def __init__(self, model: EagleModel, sampling: SamplingParams, room: Room):
        if sampling.needs_prefix:
            raise ValueError("repetition_penalty: probing does not carry prefixes; use 1.0")
        self.model, self.sampling, self.room = model, sampling, room
        self.law = SamplingTransform(sampling)
        self.settings = TreeSettings(max(room.nodes, 2), room.depth)
        self.state: DecodingState | None = None

    @torch.inference_mode()
    def begin(self, prompt: list[int], max_new_tokens: int, generator: torch.Generator) -> None:
        """Read a prompt and draw the first token, which becomes the root."""
        self.generator = generator
        room = min(max_new_tokens, self.model.context_length - len(prompt))
        widest = self._decoder("topk", "token")  # reserves the rows to be scored
        self.state = widest.prefill([prompt], room)
        self.sequence = [*prompt, *self.state.step.root.tolist()]
        self.model.drafter.reserve(1, self.room.slots, len(prompt) + room, self.room.depth + 1)
        self._limit = len(prompt) + room
        self._stops = self.model.eos_ids()
        self._read()

    @torch.inference_mode()
    def _read(self) -> None:
        self.logits = self.model.drafter.read(*self.state.step)
        self.model.drafter.set_length_bound(len(self.sequence))

    def _decoder(self, tree: str, verifier: str) -> Decoder:
        plan = Plan.resolve(tree, verifier, self.settings, self.law)
        return Decoder(self.model.target, self.model.drafter, plan, self.generator)

    @property
    def ended(self) -> bool:
        """After an end-of-answer token, or with no room for another step."""
        return self.sequence[-1] in self._stops or len(self.sequence) >= self._limit

    @property
    def root_law(self) -> Tensor:
        """q at the root under the walk's sampling settings: Float[Vd]."""
        return self.law(self.logits)[0]

    @torch.inference_mode()
    def draft(
        self,
        tree: str,
        settings: TreeSettings,
        draft_sampling: SamplingParams | None = None,
        draw: Callable[[Tensor], Tensor] | None = None,
    ) -> Drafted:
        """Grow a tree from the current root and score it; the state stays where it is.

        draft_sampling   settings of the draft law, where they should differ from the target's
        draw             the tree's randomness; None: the walk's generator
        """
        drafter = self.model.drafter
        drafter.lineage.clear()
        builder = find_tree(tree)
        root = self.state.step.root.to(self.logits.device)
        transform = DraftProbs(SamplingTransform(draft_sampling) if draft_sampling else self.law)
        draw = draw or (lambda probs: hsd.draw(probs, self.generator))
        batch = builder.build(drafter, root, self.logits, settings, transform, draw) if builder else root_only(root)
        return self._score(batch)

    def _score(self, batch: TreeBatch) -> Drafted:
        scores = self.model.target.score_tree(batch.tokens, batch.depths, batch.ancestors())
        return Drafted(batch, scores, self.law(scores.logits)[0])

    @torch.inference_mode()
    def advance(self, drafted: Drafted | None = None, verifier: str = "token") -> Drafted:
        """Move on by one token of the target's own, or by one verified step of a drafted tree.

        The target's scratch area holds one tree only, so `drafted` is scored again: others may have come between.
        """
        drafted = self._score(root_only(self.state.step.root) if drafted is None else drafted.batch)
        decoder, sound = self._decoder("none", verifier), torch.zeros((), dtype=torch.bool)
        outcome = decoder.verify(self.state, DraftedStep(drafted.batch, sound), drafted.scores, self.generator)
        decoder.commit(self.state, drafted.scores, outcome)
        emitted = outcome.tokens[0, : int(outcome.accepted[0]) + 1].tolist()
        ends = [place for place, token in enumerate(emitted) if token in self._stops]
        self.sequence.extend(emitted[: ends[0] + 1] if ends else emitted)
        if not self.ended:
            self.model.target.set_length_bound(len(self.sequence) - 1)
            self._read()
        return drafted

    def along(
        self,
        prompt: list[int],
        max_new_tokens: int,
        generator: torch.Generator,
        follow: Callable[["Walk"], tuple[Drafted | None, str]] | None = None,
    ) -> Iterator[int]:
        """The states of one answer, by index. `follow(walk)` says how to move on: (drafted, verifier) or (None, ...).

        Without it the states follow the target's own samples, every token of them.
        """
        self.begin(prompt, max_new_tokens, generator)
        index = 0
        while not self.ended:
            yield index
            self.advance(*(follow(self) if follow else (None, "token")))
            index += 1


class NodeQuantities(NamedTuple):
    """What decides a tree's shape, at every inner node of a drafted chain (n of them, from the root down).

    passed      Float[n]     probability that the accepted path passes the node: the weight of its row in averages
    entropy     Float[n]     of p, in nats
    spread      Float[n]     1 - sum of q squared: how unlikely a draw from q is, on average
    top_q       Float[n]     q of the likeliest token, and `top_p`, p of the same token
    top_p       Float[n]
    overlap     Float[n]     sum of min(p, q): the chance that a token drawn from q is accepted
    q_drawn     Float[n]     q of the token that was drawn
    accepted    Float[n]     min(1, p / q) of the same token
    chosen      Float[n, k]  p covered by the 1 .. k likeliest tokens of q
    mixed       Float[n, k]  covered by the 0 .. k-1 likeliest and one child drawn outside them
    """

    passed: Tensor
    entropy: Tensor
    spread: Tensor
    top_q: Tensor
    top_p: Tensor
    overlap: Tensor
    q_drawn: Tensor
    accepted: Tensor
    chosen: Tensor
    mixed: Tensor


def node_quantities(chain: Drafted, children: int = 5) -> NodeQuantities:
    """Quantities at the nodes of a tree drafted as "chain"; q is its proposal law."""
    batch, law = chain.batch, chain.stopping_law("hsd")
    q = batch.proposals[0]
    n = len(q)
    p_all = chain.laws[:n]
    p = p_all if batch.support is None else p_all.index_select(1, batch.support)
    drawn_target = batch.tokens[0, 1 : n + 1]
    column = drawn_target if batch.support is None else (batch.support == drawn_target[:, None]).int().argmax(-1)
    pick = lambda rows: rows.gather(1, column[:, None])[:, 0]
    top_q, top = q.topk(children)
    top_p = p.gather(1, top)
    return NodeQuantities(
        passed=law.stop.flip(0).cumsum(0).flip(0)[:n],
        entropy=-torch.xlogy(p_all, p_all).sum(-1),
        spread=1 - q.square().sum(-1),
        top_q=top_q[:, 0],
        top_p=top_p[:, 0],
        overlap=torch.minimum(p, q).sum(-1),
        q_drawn=pick(q),
        accepted=(pick(p) / pick(q).clamp(min=1e-30)).clamp(max=1),
        chosen=top_p.cumsum(-1),
        mixed=_mixed_coverage(p, q, top),
    )


def _mixed_coverage(p: Tensor, q: Tensor, top: Tensor) -> Tensor:
    """p(S) + sum of min(p, q outside S renormalised), S being the 0 .. k-1 likeliest tokens: [n, k]."""
    covered = []
    for size in range(top.shape[1]):
        outside = q.scatter(1, top[:, :size], 0.0)
        outside = outside / outside.sum(-1, keepdim=True).clamp(min=1e-30)
        covered.append(p.gather(1, top[:, :size]).sum(-1) + torch.minimum(p, outside).sum(-1))
    return torch.stack(covered, -1)
