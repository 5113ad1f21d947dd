"""One decoding step, for every row of the batch at once:

    draft     the drafter reads the tokens committed last and grows a tree from the root
    score     one target forward gives logits and auxiliary hidden states at every node
    verify    the stopping distribution decides the path to keep and the bonus token
    commit    the path's keys and values move behind the committed ones; the bonus token is the next root

The host waits for the device once per step, in `read_back`. From the second step of a generation on, a graph runner
(`eagle.engine.graphs`) may replay the four phases instead of running them.

Shapes: B batch, N nodes, K depth, V vocabulary, A width of the auxiliary hidden states.
"""

from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor

import hsd
from eagle.api.outputs import GeneratedRow
from eagle.drafters.base import Drafter
from eagle.engine.distributions import Prefixes, node_prefixes, row_prefixes
from eagle.engine.graphs import GraphRunner
from eagle.engine.plan import Plan
from eagle.engine.records import TreeRecorder
from eagle.engine.sequence import DecodingState, StateBuffers, StepState
from eagle.nn.target import CachedLM, Scores
from eagle.trees import DraftProbs, GeneratorDraw, TreeBatch, root_only


class Drafted(NamedTuple):
    """The trees of a step. replaced Bool[] : whether a draft distribution was not finite and was replaced."""

    tree: TreeBatch
    replaced: Tensor


class Outcome(NamedTuple):
    """A step's decision. path Int64[B, K+1] (nodes, padded with 0), accepted Int64[B], tokens Int64[B, K+1] (accepted
    tokens, then the bonus token, then padding), expected Float[B] (E[accepted]), finite Bool[B] (whether the row's
    target distributions were), replaced Bool[B] (whether a draft distribution of the step was not finite).
    """

    path: Tensor
    accepted: Tensor
    tokens: Tensor
    expected: Tensor
    finite: Tensor
    replaced: Tensor


class StepResult(NamedTuple):
    """One row's step on the host: token ids (accepted ones and the bonus), E[accepted], rows scored, whether all target
    distributions were finite and whether a draft distribution was replaced.
    """

    tokens: list[int]
    expected_accepted: float
    nodes: int
    finite: bool
    replaced: bool


class Phases(NamedTuple):
    """The four phases as callables, as they are or replayed."""

    draft: Callable[[DecodingState], Drafted]
    score: Callable[[TreeBatch], Scores]
    verify: Callable[[DecodingState, Drafted, Scores], Outcome]
    commit: Callable[[DecodingState, Scores, Outcome], Tensor]


class Decoder:
    """The models, the plan and the randomness of one generation.

    `graphs` None: every step runs as it is. `generator` None: torch's global generator of the device. `recorder` keeps
    each step's tree and decision; not together with `graphs`.
    """

    def __init__(
        self,
        target: CachedLM,
        drafter: Drafter | None,
        plan: Plan,
        generator: torch.Generator | None = None,
        graphs: GraphRunner | None = None,
        recorder: TreeRecorder | None = None,
    ):
        self.target, self.plan, self.generator, self.graphs = target, plan, generator, graphs
        self.recorder = recorder
        drafter = drafter if recorder is None else recorder.drafter
        self.drafter = drafter if plan.builder else None
        phases = {name: getattr(self, name) for name in Phases._fields}
        self._eager = Phases(**{name: self._with_generator(phase) for name, phase in phases.items()})
        self._replayed: Phases | None = None
        if graphs is not None:
            self._replayed = Phases(**{name: graphs.wrap(name, phase) for name, phase in phases.items()})

    def _with_generator(self, phase: Callable) -> Callable:
        return lambda *inputs: phase(*inputs, generator=self.generator)

    # --- prompts ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def prefill(
        self, prompts: list[list[int]], room: int, buffers: StateBuffers | None = None, reuse: bool = False
    ) -> DecodingState:
        """Read the prompts and draw the first token of each row; caches get room for `room` more tokens per row.

        `reuse`: tokens that the caches still hold from the generation before are not read again (see `remember`). The
        rows come back without the drawn token, `DecodingState.step` with it. Raises ValueError where the target's
        logits are not finite.
        """
        target, plan = self.target, self.plan
        longest, slack = max(map(len, prompts)), plan.depth + 1
        kept = self._reusable(prompts) if reuse else 0
        skipped = kept + 1 if kept else 0  # the drafter is one token ahead: it reads a token with the state before it
        target.reserve(len(prompts), plan.nodes, longest + room, slack, kept)
        if self.drafter is not None and plan.builder is not None:
            slots = plan.builder.slots(plan.settings)
            self.drafter.reserve(len(prompts), slots, longest + room, slack, skipped)
            self.drafter.remember(prompts[0][:skipped])
        counts = torch.tensor([len(prompt) for prompt in prompts], device=target.device)
        tokens = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts], device=target.device)
        scores = target.extend_in_chunks(tokens[:, kept:]) if kept else target.prefill(tokens, counts)
        rows = [GeneratedRow(prompt, reused_tokens=kept) for prompt in prompts]
        probs = plan.target(scores.logits[:, 0], row_tokens(plan, rows, target.device))
        check_finite(finite_rows(probs).tolist(), "after the prompt", plan)
        root = hsd.draw(probs, self.generator)
        pending = torch.cat([tokens, torch.zeros_like(root)[:, None]], 1).scatter_(1, counts[:, None], root[:, None])
        step = StepState(pending[:, skipped:], counts + 1 - skipped, scores.aux)
        return DecodingState(step, rows, {} if buffers is None else buffers)

    def _reusable(self, prompts: list[list[int]]) -> int:
        """How many of the only prompt's first tokens both caches hold; one token at least is read."""
        if len(prompts) != 1:
            return 0
        [prompt] = prompts
        kept = min(common_prefix(self.target.cached_ids, prompt), len(prompt) - 1)
        if self.drafter is not None:
            kept = min(kept, common_prefix(self.drafter.cached_ids, prompt) - 1)
        return max(kept, 0)

    def remember(self, rows: list[GeneratedRow]) -> None:
        """Note the tokens that the caches hold, for a generation whose prompt begins with them (one row only). What was
        committed stays in its place, so this holds after an interrupted step too.
        """
        if len(rows) != 1:
            return
        [row] = rows
        ids = row.prompt + row.new_tokens
        self.target.cached_ids = ids[:-1]
        if self.drafter is not None and row.steps:
            self.drafter.remember(ids[: len(ids) - row.steps[-1].emitted])  # up to the last step's root

    @torch.inference_mode()
    def drop_finished(self, state: DecodingState) -> None:
        """On a CPU: take finished rows out of the batch once they are half of it.

        On a GPU they stay, whether steps are replayed, whose shape is fixed, or not: the tokens are the same.
        """
        left = [place for place, active in enumerate(state.active) if active]
        if self.target.device.type != "cpu" or not 0 < len(left) <= len(state.rows) // 2:
            return
        self.target.keep_rows(left)
        if self.drafter is not None:
            self.drafter.keep_rows(left)
        state.rows, state.step = [state.rows[place] for place in left], state.step.of_rows(left)

    def release(self) -> None:
        """Free the caches. Masked slots that hold NaN would spoil the next generation: zero times NaN is NaN."""
        self.target.release()
        if self.drafter is not None:
            self.drafter.release()

    # --- the step --------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self, state: DecodingState) -> list[StepResult]:
        """Decode one step of every row, at least one of which is unfinished. The caller extends `state.rows`."""
        clock, phases = state.clock, self._open(state)
        clock.start()
        drafted = phases.draft(state)
        clock.lap("draft")
        scores = phases.score(drafted.tree)
        clock.lap("score")
        outcome = phases.verify(state, drafted, scores)
        clock.lap("verify")
        packed = phases.commit(state, scores, outcome)
        results = read_back(packed, drafted.tree.tokens.shape[1])
        self.set_length_bounds(state, results)
        if self.graphs is not None and phases is self._replayed:
            self.graphs.end(self.generator)
        clock.lap("commit")
        return results

    def draft(self, state: DecodingState, generator: torch.Generator | None) -> Drafted:
        """Grow one tree per row from its root."""
        if self.drafter is None or self.plan.builder is None:
            root = state.step.root
            return Drafted(root_only(root), torch.zeros_like(root[0], dtype=torch.bool))
        logits = self.drafter.read(*state.step)
        probs = DraftProbs(self.plan.draft)
        root = state.step.root.to(logits.device)
        tree = self.plan.builder.build(self.drafter, root, logits, self.plan.settings, probs, GeneratorDraw(generator))
        return Drafted(tree, probs.replaced())

    def score(self, tree: TreeBatch, generator: torch.Generator | None = None) -> Scores:
        """Target logits [B, N, V] and auxiliary hidden states [B, N, A] at every node, in one forward."""
        del generator  # every phase is called alike
        return self.target.score_tree(tree.tokens, tree.depths, tree.ancestors())

    def verify(
        self, state: DecodingState, drafted: Drafted, scores: Scores, generator: torch.Generator | None
    ) -> Outcome:
        """Decide each row's path and bonus token from the exact stopping distribution, without a host wait."""
        tree = drafted.tree
        logits = scores.logits.to(tree.tokens.device)
        probs = self.plan.target(logits, node_tokens(self.plan, state.rows, tree))
        flags = finite_rows(probs), drafted.replaced.to(logits.device).expand(len(logits))
        if tree.tokens.shape[1] == 1:
            tokens = hsd.draw(probs, generator)
            nothing = torch.zeros_like(tokens)
            if self.recorder is not None:
                self.recorder.keep(tree, probs, hsd.Decision.at_root(tokens[:, 0]))
            return Outcome(nothing, nothing[:, 0], tokens, nothing[:, 0].double(), *flags)
        decision = hsd.decide(tree, probs, self.plan.verifier, generator)
        if self.recorder is not None:
            self.recorder.keep(tree, probs, decision)
        path = decision.path.clamp(min=0)
        place = torch.arange(path.shape[1], device=path.device)
        following = tree.tokens.gather(1, path.roll(-1, 1))
        tokens = torch.where(place == decision.length[:, None], decision.token[:, None], following)
        return Outcome(path, decision.length, tokens, decision.expected_accepted, *flags)

    def commit(
        self, state: DecodingState, scores: Scores, outcome: Outcome, generator: torch.Generator | None = None
    ) -> Tensor:
        """Keep the accepted path in the cache, its tokens and auxiliary hidden states for the next draft, and pack what
        the host reads.
        """
        del generator
        counts, aux, target = outcome.accepted + 1, scores.aux, self.target
        target.commit(outcome.path.to(target.device), counts.to(target.device))
        if aux is not None:
            path = outcome.path.to(aux.device)
            aux = aux.gather(1, path[:, :, None].expand(-1, -1, aux.shape[-1]))
        state.store(StepState(outcome.tokens, counts, aux))
        return pack(outcome)

    def set_length_bounds(self, state: DecodingState, results: list[StepResult]) -> None:
        """Lower the host-side bounds on cached tokens to what the step really added. The rows are not extended yet."""
        lengths = [
            (len(row.prompt) + len(row.new_tokens), len(result.tokens))
            for row, result in zip(state.rows, results, strict=True)
            if not row.stop_reason
        ]
        if self.drafter is not None:
            self.drafter.set_length_bound(max(before for before, _ in lengths))
        self.target.set_length_bound(max(before + added for before, added in lengths) - 1)

    def _open(self, state: DecodingState) -> Phases:
        """The phases of this step: replayed ones once shapes repeat. Their key is everything on the host that decides
        what a step does.
        """
        if self.graphs is None or self._replayed is None or not state.begun:
            return self._eager
        target, drafter = self.target, self.drafter
        windows = (target.window(), 0 if drafter is None else drafter.window(state.step.pending.shape[1]))
        signature = state.step.signature()
        tensors: dict[Hashable, list[Tensor]] = {
            "target": target.state(),
            signature: [part for part in state.step if part is not None],
        }
        if drafter is not None:
            tensors["drafter"] = drafter.state()
        self.graphs.begin((self.plan, signature, windows, target.attention), tensors, self.generator)
        return self._replayed


# --- from the device to the host -------------------------------------------------------------------------------------


def pack(outcome: Outcome) -> Tensor:
    """Everything the host reads of a step in one tensor, Float64[B, 4 + K+1]: accepted, E[accepted], finite, replaced,
    tokens.
    """
    columns = (outcome.accepted, outcome.expected, outcome.finite, outcome.replaced)
    return torch.cat([torch.stack([column.double() for column in columns], 1), outcome.tokens], 1)


def read_back(packed: Tensor, nodes: int) -> list[StepResult]:
    """The step's one wait: `pack`'s tensor as results, one per row."""
    results = []
    for accepted, expected, finite, replaced, *tokens in packed.tolist():
        kept = [int(token) for token in tokens[: int(accepted) + 1]]
        results.append(StepResult(kept, expected, nodes, bool(finite), bool(replaced)))
    return results


def finite_rows(probs: Tensor) -> Tensor:
    """Target probabilities [B, ..., V] -> Bool[B]: False where some position's are not finite.

    `SamplingTransform` makes such a position NaN everywhere, so one entry of each shows it.
    """
    return probs[..., 0].isfinite().view(len(probs), -1).all(1)


def check_finite(finite: list[bool], where: str, plan: Plan) -> None:
    """ValueError naming the first row whose target distributions are not finite, and the settings that could be why."""
    if not all(finite):
        penalty, remedy = plan.target.settings.repetition_penalty, ""
        changed = [f"repetition_penalty={penalty:g}"] * (penalty != 1) + ["logits_processor"] * bool(
            plan.target.processors
        )
        if changed:
            where, remedy = f"{where} under {' and '.join(changed)}", "leave that out, or "
        raise ValueError(
            f"the target's logits of row {finite.index(False)} are NaN or infinite {where}: no token can be drawn from "
            f"them; {remedy}check the weights (NaN entries, overflow in half precision) and load with "
            "dtype=torch.float32"
        )


# --- tokens before a position, and in the caches ----------------------------------------------------------------------


def common_prefix(one: list[int], other: list[int]) -> int:
    """How many first tokens two sequences share."""
    pairs = enumerate(zip(one, other))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def row_tokens(plan: Plan, rows: list[GeneratedRow], device: torch.device) -> Prefixes | None:
    """What precedes the next token of each row; None where the plan looks at no tokens."""
    if not plan.target.needs_prefix:
        return None
    return row_prefixes([row.prompt + row.new_tokens for row in rows], device)


def node_tokens(plan: Plan, rows: list[GeneratedRow], tree: TreeBatch) -> Prefixes | None:
    """What precedes the token after each node of each row's tree; None where the plan looks at no tokens."""
    base = row_tokens(plan, rows, tree.tokens.device)
    return None if base is None else node_prefixes(base, tree.tokens, tree.depths, tree.ancestors())
