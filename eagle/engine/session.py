"""`Session`: rows that are decoded together, with their caches and their randomness. Whoever decodes drives one.

    session = Session(model.target, model.drafter, Plan.resolve("hybrid", "hsd", TreeSettings(16, 4)))
    row = session.add(prompt_ids, SamplingParams(0.7), seed=1, max_new_tokens=100)      joins between two steps
    while not row.finished:
        records = session.step()                   one decoding step of every row; extends and stops rows
    row.new_tokens, row.steps

A row's tokens depend on its prompt, its parameters and its seed, never on the rows beside it. Every random number of a
row comes from the row's own generator: one for the first token, then for each step the stopping node's, the bonus
token's and those of the draft tree, drawn on the host and copied to the device before the step.

Shapes: B rows in a step, K depth, A width of the auxiliary hidden states, V vocabulary.
"""

import time
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

import hsd
from eagle.drafters import Drafter
from eagle.engine.distributions import Prefixes, RowDistributions, Sampling, SamplingParams, node_prefixes, row_prefixes
from eagle.engine.graphs import GraphRunner
from eagle.engine.plan import Plan
from eagle.engine.records import GeneratedRow, StepRecord, StepTrees
from eagle.engine.step import step
from eagle.engine.stopping import Stopping
from eagle.nn.target import CachedLM
from eagle.trees import Draft, TreeBatch

T = TypeVar("T")
FIRST_STEPS, LEAST_ACCEPTED = 200, 0.02  # a head that accepts less per step over these was made for something else
UNFIT = (
    "over {steps} steps {accepted:.3f} draft tokens were accepted per step: the tokens are exact, but this drafter "
    "seems to be made for another target, template or tokenizer; tree='none' is faster"
)
RESERVED = 1024  # new tokens that a row has room for at first; the caches grow where it needs more
REPLACED = (
    "the drafter gave a distribution that is not finite; it was replaced by the uniform one, so the tokens are still "
    "distributed exactly as the target's, but few drafts will be accepted: check the head's weights and its dtype"
)
LASTING = ("_pending", "_counts", "_aux", "_uniforms", "_p", "_q")  # tensors of a session that outlive a step
MOST_KEPT = 16  # plans whose tensors a workspace keeps


class Workspace(NamedTuple):
    """What sessions of one model may hand on: caches, and recordings with the tensors whose addresses they hold.

    tensors   what steps of a plan leave for the next ones, where steps are recorded
    """

    target: CachedLM
    drafter: Drafter | None
    graphs: GraphRunner | None
    tensors: dict[Hashable, dict[str, Any]]

    @classmethod
    def of(cls, target: CachedLM, drafter: Drafter | None, graphs: GraphRunner | None = None) -> "Workspace":
        """A new one, with nothing allocated, of the models as they are now."""
        return cls(target.fork(), None if drafter is None else drafter.fork(), graphs, {})

    def forget(self) -> None:
        """Count the caches as empty; their memory stays."""
        self.target.cache.forget()
        if self.drafter is not None:
            self.drafter.cache.forget()

    def release(self) -> None:
        """Free the caches. Hidden places that hold NaN would spoil a later row: zero times NaN is NaN."""
        self.target.cache.release()
        if self.drafter is not None:
            self.drafter.cache.release()


@dataclass
class _Row:
    """A row in use: what is handed out, and what decides its tokens."""

    record: GeneratedRow
    sampling: Sampling
    stopping: Stopping
    generator: torch.Generator
    began: float

    def numbers(self, count: int) -> Tensor:
        """The row's next random numbers, Float64[count] in [0, 1), on the host."""
        return torch.rand(count, dtype=torch.float64, generator=self.generator)


class Clock:
    """Wall seconds per phase. `synchronize` waits for this device at each reading: work counts where it began."""

    def __init__(self, synchronize: torch.device | None = None):
        self.synchronize, self._last = synchronize, 0.0
        self.seconds: dict[str, float] = {}

    def start(self) -> None:
        """Begin a step."""
        self.seconds, self._last = {}, self._now()

    def lap(self, phase: str) -> None:
        """Seconds since the last reading belong to `phase`, beside those that it has."""
        now = self._now()
        self.seconds[phase], self._last = self.seconds.get(phase, 0.0) + now - self._last, now

    def _now(self) -> float:
        if self.synchronize is not None and self.synchronize.type == "cuda":
            torch.cuda.synchronize(self.synchronize)
        return time.perf_counter()


class Session:
    """See the module.

    rows       the rows in use, unfinished all of them, in the order of their cache rows
    plan       how trees are drafted and verified, the same for all rows
    drafter    None where the plan is plain decoding
    clock      seconds of the latest step by phase
    trees      what the latest step drafted and decided, with `record_trees` or where `watched` was set
    first      logits Float[V] that the latest row's first token was drawn from, where `watched` was set
    """

    def __init__(
        self,
        target: CachedLM,
        drafter: Drafter | None,
        plan: Plan,
        *,
        graphs: bool = True,
        record_trees: bool = False,
        vocabulary: int | None = None,
        workspace: Workspace | None = None,
    ):
        """`target` and `drafter` are a model's; the session's caches are its own.

        graphs      replay steps where the workspace records them
        vocabulary  token ids from here on are never sampled; None: all that the target has
        workspace   caches to go on with, which no other session uses

        Raises ValueError for a plan that drafts without a drafter.
        """
        plan.drafter_of(drafter)
        self.workspace = Workspace.of(target, drafter) if workspace is None else workspace
        self.target, self.plan = self.workspace.target, plan
        self.drafter = plan.drafter_of(self.workspace.drafter)
        self.graphs = self.workspace.graphs if graphs and not record_trees else None
        self.device = self.target.device
        self.clock = Clock()
        self.record_trees, self.watched = record_trees, False
        self.vocabulary = vocabulary
        self.trees: StepTrees | None = None
        self.first: Tensor | None = None
        self._capacity = 0
        if workspace is not None:  # one of its own has looked at the models
            self.target.refresh()
            if self.drafter is not None:
                self.drafter.refresh()
        self._rows: list[_Row] = []
        self._draft: Draft | None = None
        self._warned, self._sound = False, True
        self._tally = [0, 0]  # steps and accepted tokens, until the first ones are judged
        self._pending = torch.zeros(0, plan.depth + 1, dtype=torch.int64, device=self.device)
        self._counts = torch.ones(0, dtype=torch.int64, device=self.device)
        self._aux: Tensor | None = None
        kept = self.workspace.tensors.pop(self._planned, None) if self.graphs is not None else None
        if kept is None:
            self._allocate(1)
        else:
            vars(self).update(kept)

    @property
    def rows(self) -> list[GeneratedRow]:
        """See the class."""
        return [row.record for row in self._rows]

    # --- rows that come and go -------------------------------------------------------------------------------------

    @torch.inference_mode()
    def add(
        self,
        prompt: Sequence[int],
        params: SamplingParams | Sampling | None = None,
        seed: int | torch.Generator = 0,
        *,
        max_new_tokens: int | None = None,
        stopping: Stopping | None = None,
        reuse: bool = False,
        began: float | None = None,
    ) -> GeneratedRow:
        """Read a prompt, draw its first token, and take the row into the next steps (unless that token ends it).

        params           how it is sampled; None: at temperature 1, or greedily where the plan is
        seed             of the row's random numbers, or a CPU generator that is the row's alone
        max_new_tokens   overrides the limit of `stopping`
        stopping         when it ends; None: after the limit, or where the target's context is full
        reuse            tokens that a free cache row still holds of the prompt's beginning are not read again
        began            when the row's seconds begin (`time.perf_counter()`); None: now

        Raises ValueError for an empty prompt, parameters that the plan is not exact for, logits that are not finite.
        """
        if not prompt:
            raise ValueError("the prompt is empty: a row needs at least one token (for example BOS)")
        params = SamplingParams(0.0 if self.plan.greedy else 1.0) if params is None else params
        sampling = params if isinstance(params, Sampling) else Sampling(params)
        if self.plan.greedy and not sampling.target.greedy:
            raise ValueError(
                f"temperature={sampling.target.temperature:g}: this session's plan is for temperature 0; "
                "resolve a plan for sampling"
            )
        stopping = Stopping(context_length=self.target.context_length) if stopping is None else stopping
        if max_new_tokens is not None:
            stopping = replace(stopping, max_new_tokens=max_new_tokens)
        generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        began = time.perf_counter() if began is None else began
        row = _Row(GeneratedRow(list(prompt)), sampling, stopping, generator, began)
        self._sound = False
        self._read(row, reuse)
        self._sound = True
        return row.record

    @torch.inference_mode()
    def reserve(self, rows: int, tokens: int) -> None:
        """Allocate at once what rows to come are known to need: their number, and the tokens of the longest."""
        self._reserve(self._padded(max(rows, len(self._rows))), tokens)

    @torch.inference_mode()
    def remove(self, record: GeneratedRow) -> None:
        """Take a row out, finished or not; the last row moves to its place. Does nothing for one that has left."""
        found = [index for index, row in enumerate(self._rows) if row.record is record]
        if not found:
            return
        [index], last = found, len(self._rows) - 1
        for place in (index, last):
            self._note(place)
        self._move(last, index)
        self._rows[index] = self._rows[last]
        self._rows.pop()
        self._arrange()

    def close(self) -> Workspace:
        """Take all rows out. The workspace may go to another session, which can reuse what its caches hold."""
        for index in range(len(self._rows)):
            self._note(index)
        self._rows.clear()
        if self.graphs is not None and self._sound:
            kept = self.workspace.tensors
            kept[self._planned] = {name: getattr(self, name) for name in LASTING}
            if len(kept) > MOST_KEPT:
                kept.pop(next(iter(kept)))
        if not self._sound:
            self.workspace.release()
        return self.workspace

    def _read(self, row: _Row, reuse: bool) -> None:
        record, place = row.record, len(self._rows)
        prompt = record.prompt
        self._reserve(self._padded(place + 1), len(prompt) + min(max(row.stopping.room(record), 1), RESERVED))
        held = self._find_held(prompt, place) if reuse else 0
        record.reused_tokens = held
        scores = self.target.read_prompt(place, prompt, held)
        if self.drafter is not None:
            self.drafter.read_prompt(place, prompt, held, scores.aux_states)
        probs = self._first_probs(row, scores.logits)
        self.first = scores.logits[0, -1] if self.watched else None
        check_finite(probs[..., 0].isfinite().flatten(1).all(1).tolist(), "after the prompt", [row.sampling])
        token = hsd.draw(probs[:, 0], row.numbers(1).to(probs.device))
        row.stopping.emit(record, token.tolist())
        record.seconds = record.prefill_seconds = time.perf_counter() - row.began
        if record.finished:
            return
        self._rows.append(row)
        self._pending[place] = 0
        self._pending[place, 0], self._counts[place] = token[0], 1
        if scores.aux_states is not None:
            self._aux_of(scores.aux_states)[place, 0] = scores.aux_states[0, -1]
        self._arrange()

    def _first_probs(self, row: _Row, logits: Tensor) -> Tensor:
        rows = RowDistributions(1, logits.device, self.vocabulary)
        rows.set([row.sampling.target], [row.sampling.processors])
        prefixes = None
        if row.sampling.needs_prefix:
            tokens, lengths = row_prefixes([row.record.ids], logits.device)
            prefixes = Prefixes(tokens[:, None], lengths[:, None])
        return rows(logits, prefixes)

    def _find_held(self, prompt: list[int], place: int) -> int:
        """Move the free cache row that holds most of the prompt's beginning to `place`; how much it holds. One token at
        least is read.
        """
        caches = [self.target.cache] + ([self.drafter.cache] if self.drafter is not None else [])
        best, most = place, 0
        for row in range(place, min(len(cache.ids) for cache in caches)):
            known = [common_prefix(cache.ids[row], prompt) - index * self._ahead for index, cache in enumerate(caches)]
            held = min(*known, len(prompt) - 1) if known else 0
            best, most = (row, held) if held > most else (best, most)
        for cache in caches:
            cache.move(best, place)
        return max(most, 0)

    def _note(self, index: int) -> None:
        """Write down which tokens a row's caches hold. What was committed stays in its place, so this holds after an
        interrupted step too.
        """
        record = self._rows[index].record
        ids = record.ids
        self.target.cache.ids[index], self.target.cache.held[index] = ids[:-1], len(ids) - 1
        if self.drafter is not None and record.steps:
            self.drafter.cache.ids[index] = ids[: len(ids) - record.steps[-1].emitted]  # up to the last step's root
            self.drafter.cache.held[index] = len(self.drafter.cache.ids[index]) - self._ahead

    def _move(self, source: int, goal: int) -> None:
        if source == goal:
            return
        self.target.cache.move(source, goal)
        if self.drafter is not None:
            self.drafter.cache.move(source, goal)
        for tensor in (self._pending, self._counts, self._aux):
            if tensor is not None:
                tensor[goal] = tensor[source]

    # --- tensors ---------------------------------------------------------------------------------------------------

    @property
    def verified_on(self) -> torch.device:
        """Where trees lie and are verified: the drafter's device, which may not be the target's first."""
        return self.device if self.drafter is None else self.drafter.device

    @property
    def _planned(self) -> Hashable:
        """What decides the shapes of the tensors that outlive a step."""
        return self.plan, self.vocabulary

    @property
    def _ahead(self) -> int:
        """A head caches a pair per token but the first, an ordinary LM a key per token."""
        return self.drafter.ahead if self.drafter is not None else 0

    def _reserve(self, rows: int, capacity: int) -> None:
        slack, allocated = self.plan.depth + 1, len(self._counts)
        self._capacity = capacity = max(capacity, self._capacity)
        self.target.cache.reserve(rows, self.plan.nodes, capacity, slack)
        if self.drafter is not None:
            self.drafter.reserve(rows, self.plan.grown_by(rows), capacity, slack)
        if rows > allocated:
            self._allocate(max(rows, 2 * allocated))
            self._arrange()

    def _grow(self) -> None:
        """Room for the coming step: a row's limit can be the whole context, so not all of it is reserved at once."""
        steps = [(row.record.length, row.stopping.room(row.record)) for row in self._rows]
        needed = max(length + min(self.plan.depth + 1, room) for length, room in steps)  # a row that ends needs no more
        if needed > self._capacity:
            self._reserve(self.width, needed + max(needed // 2, RESERVED))

    def _allocate(self, rows: int) -> None:
        """Tensors that one step leaves for the next, for this many rows; what they hold stays."""
        pending, counts, aux = self._pending, self._counts, self._aux
        self._pending = torch.zeros(rows, self.plan.depth + 1, dtype=torch.int64, device=self.device)
        self._counts = torch.ones(rows, dtype=torch.int64, device=self.device)
        self._pending[: len(pending)], self._counts[: len(counts)] = pending, counts
        self._aux = None
        if aux is not None:
            self._aux_of(aux)[: len(aux)] = aux
        self._uniforms = torch.zeros(rows, hsd.DRAWS + self.plan.draws, dtype=torch.float64, device=self.verified_on)
        self._p = RowDistributions(rows, self.verified_on, self.vocabulary)
        self._q = RowDistributions(rows, self.verified_on, exact=False)

    def _aux_of(self, like: Tensor) -> Tensor:
        if self._aux is None:
            shape = (*self._pending.shape, like.shape[-1])
            self._aux = torch.zeros(shape, dtype=like.dtype, device=like.device)
        return self._aux

    def _padded(self, rows: int) -> int:
        """Rows of a step that is about this many."""
        return rows if follows_rows(self.device) else 1 << max(rows - 1, 0).bit_length()

    def _arrange(self) -> None:
        """The rows in use have changed."""
        rows = [row.sampling for row in self._rows]
        self.width = self._padded(len(rows))
        rows += [Sampling(SamplingParams(0.0 if self.plan.greedy else 1.0))] * (self.width - len(rows))
        self._p.set([row.target for row in rows], [row.processors for row in rows])
        self._q.set([row.of_draft for row in rows])
        self.target.cache.use(self.width)
        if self.drafter is not None:
            self.drafter.use(self.width)
        self._draft = None

    # --- one step --------------------------------------------------------------------------------------------------

    def step(self, tree: TreeBatch | None = None) -> list[StepRecord]:
        """Decode one step of every row and take out those that it ended: one record per row of `rows` before it.

        `tree`: verify this one, drafted at the present state (`open_draft`), instead of drafting.

        Raises ValueError where the target's distributions are not finite. Warns once where a draft distribution was not
        (the tokens stay exact).
        """
        return step(self, tree) if self._rows else []

    def begin_step(self, recordable: bool = True) -> None:
        """Draw the step's random numbers, and open its recording where steps are recorded."""
        self._grow()
        self.clock.start()
        self.draw_numbers()
        self._replays = self.graphs is not None and recordable and self._draft is None
        if self.graphs is not None and self._replays:
            self._look_at(max(self._windows()))
            self.graphs.begin(self._key(), self._outlives())

    def draw_numbers(self) -> Tensor:
        """New numbers for the coming step, Float64[B, n]: the stopping node's, the bonus token's, the tree's."""
        numbers = torch.stack([row.numbers(self._uniforms.shape[1]) for row in self._rows])
        self._uniforms[: len(numbers)].copy_(numbers)
        return self.uniforms

    @property
    def uniforms(self) -> Tensor:
        """The step's numbers, Float64[B, n]."""
        return self._uniforms[: self.width]

    @property
    def root(self) -> Tensor:
        """Int64[B]: the last committed token of each row, where trees lie."""
        last = self._pending[: self.width].gather(1, (self._counts[: self.width] - 1)[:, None])[:, 0]
        return last.to(self.verified_on)

    def open_draft(self) -> Draft:
        """The draft of the coming step: the drafter reads what was committed, once. Its numbers are the step's."""
        assert self.drafter is not None
        if self._draft is None:
            aux = None if self._aux is None else self._aux[: self.width]
            logits = self.drafter.read(self._pending[: self.width], self._counts[: self.width], aux)
            self._draft = Draft(self.drafter, self.root, logits, self._q, self.uniforms[:, hsd.DRAWS :])
        return self._draft

    def none_replaced(self) -> Tensor:
        """Bool[B]: no draft distribution was replaced."""
        return torch.zeros(self.width, dtype=torch.bool, device=self.device)

    def target_probs(self, logits: Tensor, tree: TreeBatch) -> Tensor:
        """Logits [B, N, V] at the nodes of trees -> p Float32[B, N, V] under each row's parameters."""
        return self._p(logits, self._prefixes(tree))

    def draft_probs(self, logits: Tensor, row: int) -> Tensor:
        """One row's draft logits [1, n, Vd] -> q."""
        own = RowDistributions(1, logits.device, exact=False)
        own.set([self._rows[row].sampling.of_draft])
        return own(logits)

    def _prefixes(self, tree: TreeBatch) -> Prefixes | None:
        if not any(row.sampling.needs_prefix for row in self._rows):
            return None
        base = row_prefixes([row.record.ids for row in self._rows], tree.tokens.device)
        return node_prefixes(base, tree.tokens, tree.depths, tree.ancestors())

    def keep_trees(self, tree: TreeBatch, logits: Tensor, probs: Tensor, kept: hsd.Decision) -> None:
        """References to what the step drafted and decided, where somebody looks at them."""
        if self.record_trees or self.watched:
            self.trees = StepTrees(self._draft, tree, logits, probs, kept)

    def store_pending(self, tokens: Tensor, counts: Tensor, aux_states: Tensor | None, path: Tensor) -> None:
        """What the next draft reads: the emitted tokens Int64[B, K+1] and the auxiliary hidden states before each."""
        self._pending[: self.width, : tokens.shape[1]] = tokens.to(self.device)
        self._counts[: self.width] = counts.to(self.device)
        if aux_states is not None:
            path = path.to(aux_states.device)
            found = aux_states.gather(1, path[:, :, None].expand(-1, -1, aux_states.shape[-1]))
            self._aux_of(found)[: self.width, : path.shape[1]] = found
        self._draft = None

    def phase(self, name: str, function: Callable[[], T]) -> T:
        """Run a part of the step, or replay its recording."""
        found: T = self.graphs.run(name, lambda: self._anew(function)) if self._replays and self.graphs else function()
        self.clock.lap(name)
        return found

    def _anew(self, function: Callable[[], T]) -> T:
        """Run a part of a recorded step. It is run again where recording it failed, and reads what it read again."""
        self._draft = None
        return function()

    def append(self, packed: Tensor, nodes: int) -> list[StepRecord]:
        """Read the step's result, the one wait for the device, and extend the rows."""
        values, records = packed.tolist(), []
        self.clock.lap("commit")
        values = values[: len(self._rows)]
        self._sound = False
        check_finite([bool(finite) for _, _, finite, *_ in values], "in a step", [row.sampling for row in self._rows])
        self._sound = not any(replaced for _, _, _, replaced, *_ in values)
        if not self._sound and not self._warned:
            self._warned = True
            warnings.warn(REPLACED, stacklevel=4)
        before = [row.record.length for row in self._rows]
        for index, (row, (accepted, expected, _, _, *tokens)) in enumerate(zip(self._rows, values, strict=True)):
            emitted = [int(token) for token in tokens[: int(accepted) + 1]]
            records.append(self._extend(row, index, emitted, expected, nodes))
        self._judge(records)
        self._hold(before)
        self._look_at(0)
        for record in [row.record for row in self._rows if row.record.finished]:
            self.remove(record)
        return records

    def _extend(self, row: _Row, index: int, tokens: list[int], expected: float, nodes: int) -> StepRecord:
        kept = row.stopping.emit(row.record, tokens)
        accepted, cut = min(len(kept), len(tokens) - 1), len(kept) < len(tokens)
        found = StepRecord(accepted, len(kept), expected, nodes, cut, dict(self.clock.seconds))
        row.record.steps.append(found)
        row.record.seconds = time.perf_counter() - row.began
        if self.record_trees and self.trees is not None:
            row.record.trees.append(self.trees.record(index, lambda logits: self.draft_probs(logits, index)))
        return found

    def _judge(self, records: list[StepRecord]) -> None:
        """Warn once where almost nothing is accepted."""
        if self.drafter is None or self._tally[0] >= FIRST_STEPS:
            return
        self._tally[0] += len(records)
        self._tally[1] += sum(record.accepted for record in records)
        steps, accepted = self._tally
        if steps >= FIRST_STEPS and accepted < LEAST_ACCEPTED * steps:
            warnings.warn(UNFIT.format(steps=steps, accepted=accepted / steps), stacklevel=5)

    def _hold(self, before: list[int]) -> None:
        """Lower the host's bounds on cached tokens to what the step really added. `before`: tokens of each row."""
        idle = [1] * (self.width - len(before))
        self.target.cache.set_held([row.record.length - 1 for row in self._rows] + idle)
        if self.drafter is not None:
            self.drafter.set_held(before + idle)

    def _key(self) -> tuple[Any, ...]:
        """Everything on the host that decides what a step does."""
        windows = self._windows()
        signatures = (self._p.signature, self._q.signature)
        return (self._planned, self.width, windows, self.target.attention, *signatures)

    def _windows(self) -> tuple[int, int]:
        """Committed slots that the target's and the drafter's forwards look at."""
        drafter = self.drafter
        return self.target.cache.window(), 0 if drafter is None else drafter.cache.window(self._pending.shape[1])

    def _look_at(self, slots: int) -> None:
        """At least this many in every cache, so that windows change together and each pair of them is recorded once."""
        self.target.cache.least = slots
        if self.drafter is not None:
            self.drafter.cache.least = slots

    def _outlives(self) -> dict[Hashable, list[Tensor]]:
        """The tensors that outlive a step, by owner."""
        own = [self._pending, self._counts, self._uniforms, *self._p.state(), *self._q.state()]
        found: dict[Hashable, list[Tensor]] = {"target": self.target.state()}
        found[self._planned] = own + ([] if self._aux is None else [self._aux])
        if self.drafter is not None:
            found["drafter"] = self.drafter.state()
        return found


def follows_rows(device: torch.device) -> bool:
    """Whether a step is about the rows in use alone. On a GPU it is about the next power of two: shapes repeat."""
    return device.type == "cpu"


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens two sequences share."""
    pairs = enumerate(zip(one, other))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def check_finite(finite: list[bool], where: str, rows: list[Sampling]) -> None:
    """ValueError naming the first row whose target distributions are not finite, and the settings that could be why."""
    if all(finite):
        return
    row, remedy = finite.index(False), ""
    penalty = rows[row].target.repetition_penalty
    changed = [f"repetition_penalty={penalty:g}"] * (penalty != 1) + ["logits_processor"] * bool(rows[row].processors)
    if changed:
        where, remedy = f"{where} under {' and '.join(changed)}", "leave that out, or "
    raise ValueError(
        f"the target's logits of row {row} are NaN or infinite {where}: no token can be drawn from them; {remedy}check "
        "the weights (NaN entries, overflow in half precision) and load with dtype=torch.float32"
    )
