"""Compare plans at the same decoding states, exactly: E[accepted] from the stopping law, no verification noise.

    plans = [("topk", TreeSettings(60)), ("hybrid", TreeSettings(60))]
    probe = StateProbe(model, SamplingParams(temperature=1.0), TreeLimits.of(plans))
    for _ in probe.states(prompt, max_new_tokens=100, generator=g):
        for tree, settings in plans:
            drafted = probe.draft(tree, settings)      # the real builder; scored, not committed
            drafted.expected("hsd"), drafted.expected("token")

At one state every plan drafts from the same root with the same drafter state, so two plans differ by their trees'
samples alone. The state moves on along the target's own samples, or by the steps of a drafted tree (`follow`), so that
the states are those a real generation visits.

Shapes: N nodes, V vocabulary, Vd draft vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hsd
from eagle.autotune.union import MergedTrees, unions
from eagle.engine.distributions import SamplingParams, SamplingTransform
from eagle.engine.plan import Plan
from eagle.engine.sequence import DecodingState
from eagle.engine.step import Decoder, Drafted
from eagle.trees import DraftProbs, GeneratorDraw, TreeBatch, TreeSettings, find_tree, root_only
from eagle.trees.base import Draw

NODES_PER_FORWARD = 256  # nodes per forward where many trees are scored: more gain nothing on a CPU


class TreeLimits(NamedTuple):
    """The largest tree that will be asked for: rows scored, depth, and nodes given to the drafter."""

    nodes: int
    depth: int
    slots: int

    @staticmethod
    def of(plans: list[tuple[str, TreeSettings]]) -> "TreeLimits":
        """The limits of all of these (tree, settings)."""
        return TreeLimits(
            max(settings.nodes for _, settings in plans),
            max(settings.depth for _, settings in plans),
            max(builder.slots(settings) for tree, settings in plans if (builder := find_tree(tree))),
        )


@dataclass(frozen=True)
class ScoredTree:
    """One tree at one state, scored by the target. target_probs Float[N, V]: p at every node."""

    batch: TreeBatch
    target_probs: Tensor
    _known: dict[str, hsd.StoppingLaw] = field(default_factory=dict)

    @cached_property
    def tree(self) -> hsd.DraftTree:
        """The tree alone, as `hsd` takes it."""
        return self.batch.row(0)

    def stopping_law(self, verifier: str) -> hsd.StoppingLaw:
        """The exact distribution of the stopping node under a verifier, computed once."""
        if verifier not in self._known:
            self._known[verifier] = hsd.stopping_law(self.tree, self.target_probs, verifier, check=False)
        return self._known[verifier]

    def expected(self, verifier: str = "hsd") -> float:
        """E[accepted] of one step: draft tokens, bonus excluded."""
        return self.stopping_law(verifier).expected_accepted.item()


class StateProbe:
    """One row's decoding, stopped at each state to look at trees."""

    def __init__(self, model: Any, sampling: SamplingParams, limits: TreeLimits, together: int = 0):
        """`model`: an `eagle.EagleModel` with a drafter; `together`: nodes that `score` gives to one forward, at least
        those of the largest tree.
        """
        if model.drafter is None:
            raise ValueError("a probe drafts trees: load the model with ea_model_path or draft_model_path")
        if sampling.needs_prefix:
            raise ValueError("repetition_penalty: probing does not carry prefixes; use 1.0")
        self.model, self.drafter, self.sampling, self.limits = model, model.drafter, sampling, limits
        self.target = SamplingTransform(sampling)
        self.settings = TreeSettings(max(limits.nodes, together, 2), limits.depth)
        self.state: DecodingState  # from `begin` on

    @torch.inference_mode()
    def begin(self, prompt: list[int], max_new_tokens: int, generator: torch.Generator) -> None:
        """Read a prompt and draw the first token, which becomes the root."""
        self.generator = generator
        room = min(max_new_tokens, self.model.context_length - len(prompt))
        widest = self._decoder("topk", "token")  # reserves the rows to be scored
        self.state = widest.prefill([prompt], room)
        self.sequence = [*prompt, *self.state.step.root.tolist()]
        self.drafter.reserve(1, self.limits.slots, len(prompt) + room, self.limits.depth + 1)
        self._limit = len(prompt) + room
        self._stops = self.model.eos_ids()
        self._read()

    @torch.inference_mode()
    def _read(self) -> None:
        self.logits = self.drafter.read(*self.state.step)
        self.drafter.set_length_bound(len(self.sequence))

    def _decoder(self, tree: str, verifier: str) -> Decoder:
        plan = Plan.resolve(tree, verifier, self.settings, self.target)
        return Decoder(self.model.target, self.drafter, plan, self.generator)

    @property
    def ended(self) -> bool:
        """After an end-of-answer token, or with no room for another step."""
        return self.sequence[-1] in self._stops or len(self.sequence) >= self._limit

    @property
    def root_probs(self) -> Tensor:
        """q at the root under the probe's sampling settings: Float[Vd]."""
        return self.target(self.logits)[0]

    @torch.inference_mode()
    def grow(
        self,
        tree: str,
        settings: TreeSettings,
        draft_sampling: SamplingParams | None = None,
        draw: Draw | None = None,
    ) -> TreeBatch:
        """Grow a tree from the current root; the state stays where it is.

        draft_sampling   sampling parameters of q, where they should differ from the target's
        draw             the tree's randomness; None: the probe's generator
        """
        self.drafter.rewind()
        builder = find_tree(tree)
        root = self.state.step.root.to(self.logits.device)
        if not builder:
            return root_only(root)
        transform = DraftProbs(SamplingTransform(draft_sampling) if draft_sampling else self.target)
        return builder.build(
            self.drafter, root, self.logits, settings, transform, draw or GeneratorDraw(self.generator)
        )

    @torch.inference_mode()
    def score(self, trees: list[TreeBatch]) -> Iterator[ScoredTree]:
        """Trees grown at this state with the target's distributions at their nodes, in as few forwards as they need."""
        left = iter(trees)
        for union in unions(trees, self.settings.nodes):
            probs = self._target_probs(union)
            yield from (ScoredTree(next(left), probs[places]) for places in union.places)

    def _target_probs(self, union: MergedTrees) -> Tensor:
        """p at every node: Float[N, V]."""
        tokens, depths = torch.tensor([union.tokens]), torch.tensor([union.depths])
        return self.target(self.model.target.score_tree(tokens, depths, union.ancestors()[None]).logits)[0]

    def draft(
        self,
        tree: str,
        settings: TreeSettings,
        draft_sampling: SamplingParams | None = None,
        draw: Draw | None = None,
    ) -> ScoredTree:
        """`grow` and `score` of one tree."""
        return next(self.score([self.grow(tree, settings, draft_sampling, draw)]))

    @torch.inference_mode()
    def advance(self, drafted: ScoredTree | None = None, verifier: str = "token") -> Tensor:
        """Move on by one token of the target's own, or by one verified step of a drafted tree.

        The target's scratch area holds one tree only, so `drafted` is scored again: others may have come between.
        Returns p at the root, Float[V].
        """
        batch = root_only(self.state.step.root) if drafted is None else drafted.batch
        scores = self.model.target.score_tree(batch.tokens, batch.depths, batch.ancestors())
        decoder, sound = self._decoder("none", verifier), torch.zeros((), dtype=torch.bool)
        outcome = decoder.verify(self.state, Drafted(batch, sound), scores, self.generator)
        decoder.commit(self.state, scores, outcome)
        emitted = outcome.tokens[0, : int(outcome.accepted[0]) + 1].tolist()
        ends = [place for place, token in enumerate(emitted) if token in self._stops]
        self.sequence.extend(emitted[: ends[0] + 1] if ends else emitted)
        if not self.ended:
            self.model.target.set_length_bound(len(self.sequence) - 1)
            self._read()
        return self.target(scores.logits[:, :1])[0, 0]

    def states(
        self,
        prompt: list[int],
        max_new_tokens: int,
        generator: torch.Generator,
        follow: Callable[["StateProbe"], tuple[ScoredTree | None, str]] | None = None,
    ) -> Iterator[int]:
        """The states of one answer, by index. `follow(probe)` says how to move on: (drafted, verifier) or (None, ...).

        Without it the states follow the target's own samples, every token of them.
        """
        self.begin(prompt, max_new_tokens, generator)
        index = 0
        while not self.ended:
            yield index
            self.advance(*(follow(self) if follow else (None, "token")))
            index += 1
