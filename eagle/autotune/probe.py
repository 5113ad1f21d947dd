"""Compare plans at the same decoding states, exactly: E[accepted] from the stopping law, no verification noise.

    plans = [("topk", TreeSettings(60)), ("hybrid", TreeSettings(60))]
    probe = StateProbe(model, SamplingParams(temperature=1.0), TreeLimits.of(plans))
    for _ in probe.states(prompt, max_new_tokens=100, generator=g):
        for tree, settings in plans:
            drafted = probe.draft(tree, settings)      # the real builder; scored, not committed
            drafted.expected("hsd"), drafted.expected("token")

At one state every plan drafts from the same root with the same drafter state, so two plans differ by their trees'
samples alone. The state is that of a session's row: it moves on along the target's own samples, or by the steps of a
drafted tree (`follow`), so that the states are those a real generation visits.

Shapes: N nodes, V vocabulary, Vd draft vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hsd
from eagle.autotune.merged import MergedTrees, merge
from eagle.engine.distributions import SamplingParams, SamplingTransform
from eagle.engine.plan import Plan
from eagle.engine.session import Session, Workspace
from eagle.engine.stopping import Stopping
from eagle.trees import Draft, TreeBatch, TreeBuilder, TreeSettings, find_tree, root_only
from hsd.verifiers import find_verifier

NODES_PER_FORWARD = 256  # nodes per forward where many trees are scored: more gain nothing on a CPU


class TreeLimits(NamedTuple):
    """The largest tree that will be asked for: rows scored, depth, and nodes given to the drafter."""

    nodes: int
    depth: int
    grown: int

    @staticmethod
    def of(plans: list[tuple[str, TreeSettings]]) -> "TreeLimits":
        """The limits of all of these (tree, settings)."""
        return TreeLimits(
            max(settings.nodes for _, settings in plans),
            max(settings.depth for _, settings in plans),
            max(builder.grown(settings) for tree, settings in plans if (builder := find_tree(tree))),
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
    """A session of one row, stopped at each state to look at trees."""

    def __init__(self, model: Any, sampling: SamplingParams, limits: TreeLimits, together: int = 0):
        """`model`: an `eagle.EagleModel` with a drafter; `together`: nodes that `score` gives to one forward, at least
        those of the largest tree.
        """
        if model.drafter is None:
            raise ValueError("a probe drafts trees: load the model with ea_model_path or draft_model_path")
        if sampling.needs_prefix:
            raise ValueError("repetition_penalty: probing does not carry prefixes; use 1.0")
        self.model, self.drafter, self.sampling = model, model.drafter, sampling
        self.target = SamplingTransform(sampling)
        builder = TreeBuilder(_not_drafted, lambda _: limits.grown)
        settings = TreeSettings(max(limits.nodes, together, 2), limits.depth)
        self.plan = Plan("probe", builder, settings, find_verifier("token"))
        self.session = self._new_session(Workspace.of(model.target, model.drafter))

    def _new_session(self, space: Workspace) -> Session:
        return Session(self.model.target, self.model.drafter, self.plan, workspace=space)

    @torch.inference_mode()
    def begin(self, prompt: list[int], max_new_tokens: int, generator: torch.Generator, *, reuse: bool = False) -> None:
        """Read a prompt and draw the first token, which becomes the root.

        reuse   what was read of this prompt's beginning for the state before is not read again
        """
        space = self.session.close()
        if not reuse:
            space.forget()
        self.generator = generator
        self.session = self._new_session(space)
        self.session.watched = True
        stopping = Stopping(self.model.eos_ids(), max_new_tokens, self.model.context_length)
        self.row = self.session.add(prompt, self.sampling, generator, stopping=stopping, reuse=reuse)

    @property
    def ended(self) -> bool:
        """After an end-of-answer token, or with no room for another step."""
        return self.row.finished

    @property
    @torch.inference_mode()
    def draft_logits(self) -> Tensor:
        """Of the drafter after the root: Float[Vd]."""
        return self.session.open_draft().logits[0][0, 0]

    @torch.inference_mode()
    def grow(
        self,
        tree: str,
        settings: TreeSettings,
        draft_sampling: SamplingParams | None = None,
        generator: torch.Generator | None = None,
    ) -> TreeBatch:
        """Grow a tree from the current root; the state stays where it is.

        draft_sampling   sampling parameters of q, where they should differ from the target's
        generator        of the tree's random numbers, on the CPU; None: the row's
        """
        builder = find_tree(tree)
        if not builder:
            return root_only(self.session.root)
        generator = self.generator if generator is None else generator
        numbers = torch.rand(1, builder.draws(settings), dtype=torch.float64, generator=generator)
        root = self.session.open_draft()
        to_probs = SamplingTransform(draft_sampling) if draft_sampling else None
        return builder.build(root.again(numbers.to(root.root.device), to_probs), settings)

    @torch.inference_mode()
    def score(self, trees: list[TreeBatch], sampling: SamplingParams | None = None) -> Iterator[ScoredTree]:
        """Trees grown at this state with the target's distributions at their nodes, in as few forwards as they need.

        sampling   parameters of p, where they should differ from those that the state was sampled with
        """
        left, to_probs = iter(trees), SamplingTransform(sampling) if sampling else self.target
        for merged in merge(trees, self.plan.nodes):
            probs = to_probs(self._logits(merged))
            yield from (ScoredTree(next(left), probs[places]) for places in merged.places)

    def _logits(self, merged: MergedTrees) -> Tensor:
        """The target's at every node: [N, V]."""
        tokens, depths = torch.tensor([merged.tokens]), torch.tensor([merged.depths])
        return self.session.target.score_tree(tokens, depths, merged.ancestors()[None]).logits[0]

    def draft(
        self,
        tree: str,
        settings: TreeSettings,
        draft_sampling: SamplingParams | None = None,
        generator: torch.Generator | None = None,
    ) -> ScoredTree:
        """`grow` and `score` of one tree."""
        return next(self.score([self.grow(tree, settings, draft_sampling, generator)]))

    @torch.inference_mode()
    def advance(self, drafted: ScoredTree | None = None, verifier: str = "token") -> Tensor:
        """Move on by one token of the target's own, or by one verified step of a drafted tree.

        The target's scratch area holds one tree only, so `drafted` is scored again: others may have come between.
        Returns p at the root, Float[V].
        """
        session = self.session
        session.open_draft()  # the drafter reads every root, whether or not a tree was grown from it
        session.plan = replace(self.plan, verifier=find_verifier(verifier))
        session.step(root_only(session.root) if drafted is None else drafted.batch)
        assert session.trees is not None
        return session.trees.probs[0, 0]

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


def _not_drafted(_draft: Draft, _settings: TreeSettings) -> TreeBatch:
    raise RuntimeError("a probe's trees are grown by its caller")
