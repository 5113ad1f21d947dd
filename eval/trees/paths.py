r"""Verifiers on the same sampled drafts at the same states, exactly: the HSD paper's tables without their noise.

    python -m eval.trees.paths --bench gsm8k --protocol paper263 --num-questions 40 --temperatures 1 0.6 0.8 \
        --base-model-path qwen2.5-coder-1.5b --draft-model-path qwen2.5-coder-0.5b --output results/paths-gsm8k

The target answers every question by its own samples at temperature 1. Every `--stride` tokens of an answer the draft
model drafts one path, at each of the `--temperatures`, and at one state of a question several i.i.d. ones, at the first
of them. All verifiers see the same drafts, and shorter drafts and fewer paths are parts of the longest one, so every
difference is paired. E[accepted] comes from the stopping distribution: no verification is drawn. A token drafted behind
an end-of-answer token is not counted.

For the released rule (`published`, not lossless) the record also has what it emits after the draft's last but one
token; see `emitted_at_full_draft`. A run that is started again goes on at the questions where it stopped;
`python -m eval.trees.paths_table DIR` makes the tables.

Shapes: B states, N nodes, K depth, V vocabulary.
"""

import argparse
import dataclasses
import functools
import operator
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hsd
from eagle import command
from eagle.checkpoints.fingerprint import weights_fingerprint
from eagle.engine.sampling import SamplingParams, SamplingTransform
from eagle.engine.step import common_prefix
from eagle.model.eagle_model import EagleModel
from eagle.modules.target import CachedLM
from eagle.trees import DraftProbs, TreeSettings, find_tree
from eval import jsonl, provenance
from eval.questions import accuracy, benchmarks, prompts
from eval.runs.load_models import DTYPES, add_model_flags, resolve_flags
from eval.trees.forest import Forest, ForestDrafter
from hsd import TreeBatch

CHAIN = ("token", "block", "hsd", "published")
SEVERAL = ("token", "hsd")
SCORED = 128  # nodes whose target distributions are in memory together
AGREE = 1e-6  # block and hsd on one path, in float64


class Shape(NamedTuple):
    """What is drafted: one path is cut to each of `depths`, several are cut to each number of `paths`."""

    depths: tuple[int, ...]
    paths: tuple[int, ...]
    paths_depth: int
    stride: int
    max_new_tokens: int

    def slots(self, questions: int) -> int:
        """Nodes of the drafts that are in a forest at one time, for so many questions."""
        several = 1 + max(self.paths, default=0) * self.paths_depth
        states = -(-self.max_new_tokens // self.stride)
        return questions * max(states * (1 + max(self.depths)), several)


class Answer(NamedTuple):
    """One sampled answer. first: node of its first token in the target's forest, one node per token before that."""

    tokens: list[int]
    ended: bool
    prompt_nodes: list[int]
    nodes: list[int]


class Pair(NamedTuple):
    """Both models behind the same prefix; `stops` ends an answer."""

    target: Forest
    drafter: ForestDrafter
    stops: frozenset[int]


# --- answers ----------------------------------------------------------------------------------------------------------


def sample_answers(
    pair: Pair, rows: list[list[int]], probs: SamplingTransform, generators: list[torch.Generator], limit: int
) -> list[Answer]:
    """The target's own answers to prompts (without the shared prefix), all rows at once."""
    forest = pair.target
    tokens: list[int] = []
    parents: list[int] = []
    ends: list[int] = []
    for prompt in rows:
        first = forest.filled + len(tokens)
        parents += [-1, *range(first, first + len(prompt) - 1)]
        tokens += prompt
        ends.append(len(tokens) - 1)
    start = forest.filled
    logits = forest.grow(tokens, parents, wanted=ends)
    answers = [
        Answer([], False, list(range(start + end + 1 - len(prompt), start + end + 1)), [])
        for prompt, end in zip(rows, ends, strict=True)
    ]
    active = list(range(len(rows)))
    while active:
        drawn = [int(hsd.draw(probs(line)[None], generators[row])) for line, row in zip(logits, active, strict=True)]
        for row, token in zip(active, drawn, strict=True):
            answers[row].tokens.append(token)
            answers[row] = answers[row]._replace(ended=token in pair.stops)
        going = [row for row in active if not answers[row].ended and len(answers[row].tokens) < limit]
        first = forest.filled
        if not going:
            break
        last = [(answers[row].nodes or answers[row].prompt_nodes)[-1] for row in going]
        logits = forest.grow([answers[row].tokens[-1] for row in going], last)
        for place, row in enumerate(going):
            answers[row].nodes.append(first + place)
        active = going
    return answers


# --- drafts ----------------------------------------------------------------------------------------------------------


class State(NamedTuple):
    """A place of an answer: its last token, and the nodes before that one in both forests. seed: of its drafts."""

    question: int
    root: int
    token: int
    in_target: int
    in_draft: int
    seed: int


class Drafts(NamedTuple):
    """Drafted trees of B states, `paths` each, and the target distributions at their nodes, Float[B, N, V]."""

    batch: TreeBatch
    target_probs: Tensor
    paths: int


def draft(pair: Pair, states: list[State], temperature: float, paths: int, depth: int) -> TreeBatch:
    """Sampled paths by the real builder at B states; the draft model's forest stays as it was."""
    mark = pair.drafter.forest.filled
    logits = pair.drafter.read([state.token for state in states], [state.in_draft for state in states])
    builder = find_tree("chain" if paths == 1 else "multi")
    assert builder is not None
    settings = TreeSettings(1 + paths * depth, depth, paths if paths > 1 else None)
    generators = [torch.Generator().manual_seed(state.seed) for state in states]
    draw = lambda q: torch.stack([hsd.draw(row, own) for row, own in zip(q, generators, strict=True)])
    probs = DraftProbs(SamplingTransform(SamplingParams(temperature)))
    batch = builder.build(pair.drafter, torch.tensor([state.token for state in states]), logits, settings, probs, draw)
    pair.drafter.forest.truncate(mark)
    return batch


def scored(
    pair: Pair, states: list[State], batch: TreeBatch, temperature: float, paths: int
) -> Iterator[tuple[State, Drafts]]:
    """Each state with its tree, scored by the target, whose forest stays as it was."""
    forest, nodes, transform = pair.target, batch.tokens.shape[1], SamplingTransform(SamplingParams(temperature))
    for start in range(0, len(states), max(SCORED // nodes, 1)):
        rows = range(start, min(start + max(SCORED // nodes, 1), len(states)))
        mark = forest.filled
        tokens: list[int] = []
        parents: list[int] = []
        for row in rows:
            first = mark + len(tokens)
            tokens += batch.tokens[row].tolist()
            parents += [states[row].in_target if up < 0 else first + up for up in batch.parents[row].tolist()]
        probs = transform(forest.grow(tokens, parents)).view(len(rows), nodes, -1)
        forest.truncate(mark)
        for row in rows:
            yield states[row], Drafts(TreeBatch.of_one(batch.row(row)), probs[row - start][None], paths)


def cut(drafts: Drafts, paths: int, depth: int) -> Drafts:
    """The first `paths` paths to `depth`: what would have been drafted with these limits and the same draws."""
    batch, before = drafts.batch, drafts.paths
    nodes = torch.arange(batch.tokens.shape[1])
    level, path = (nodes + before - 1) // before, (nodes - 1) % before
    keep = ((level <= depth) & ((path < paths) | (nodes == 0))).nonzero()[:, 0]
    inner = keep[level[keep] < depth]  # row i of the proposals is node i's
    parents = torch.searchsorted(keep, batch.parents[:, keep].clamp(min=0))  # a first path with a token is kept too
    parents[:, 0] = -1
    assert batch.proposals is not None
    smaller = TreeBatch(
        batch.tokens[:, keep],
        parents,
        batch.depths[:, keep],
        parents,
        batch.proposals[:, inner],
        batch.support,
        hsd.Layout.infer(parents[0].tolist(), (parents[0] >= 0).tolist()),  # one state's: no node is looked at twice
    )
    return Drafts(smaller, drafts.target_probs[:, keep], paths)


def in_float64(drafts: Drafts) -> Drafts:
    """p and q in float64, every row renormalized."""
    batch = drafts.batch
    assert batch.proposals is not None
    p, q = drafts.target_probs.double(), batch.proposals.double()
    raised = dataclasses.replace(batch, proposals=q / q.sum(-1, keepdim=True))
    return Drafts(raised, p / p.sum(-1, keepdim=True), drafts.paths)


# --- what is measured at a state --------------------------------------------------------------------------------------


def counted(tree: hsd.DraftTree, stops: frozenset[int]) -> Tensor:
    """Float64[N]: draft tokens kept when verification stops at a node, none behind an end-of-answer token."""
    values, over = [0.0], [False]
    for token, parent in zip(tree.tokens.tolist()[1:], tree.parents.tolist()[1:]):
        values.append(values[parent] + (not over[parent]))
        over.append(over[parent] or token in stops)
    return torch.tensor(values, dtype=torch.float64)


def expected(drafts: Drafts, verifiers: tuple[str, ...], stops: frozenset[int]) -> dict[str, float]:
    """E[accepted] of each verifier on one state's tree."""
    tree, depth = drafts.batch.row(0), counted(drafts.batch.row(0), stops)
    found = {}
    for verifier in verifiers:
        law = hsd.stopping_law(tree, drafts.target_probs[0], verifier, check=False)
        found[verifier] = float((law.stop.double() * depth).sum())
    if "block" in found and abs(found["block"] - found["hsd"]) > AGREE:
        raise ValueError(f"block and hsd accept {found['block']} and {found['hsd']} on one path: expected the same")
    return found


class Emitted(NamedTuple):
    """What the released rule emits after x_1 .. x_{K-1}, given that these are drafted; see `emitted_at_full_draft`.

    kept       probability w of x_1 .. x_{K-1} being kept under the lossless rule
    mass       the same under the released rule
    distance   total variation between its next token and the target's
    """

    kept: float
    mass: float
    distance: float


def emitted_at_full_draft(target: Tensor, draft_probs: Tensor, tokens: list[int]) -> Emitted:
    """The released rule where the draft is complete, exactly, over all draws of its last token.

    With P, Q the distributions after x_1 .. x_{K-1}, w the capped and R the uncapped product of the ratios so far:

        emitted(x) = min(Q, R P)(x) + (1 - sum min(Q, R P)) h norm(max(w P - Q, 0))(x),   h = S / (S + 1 - w)

    where S = sum max(w P - Q, 0). With w for R this is w P, the lossless rule's.

    target Float[K, V], draft_probs Float[K, V]: p and q at the nodes 0 .. K - 1; tokens: x_1 .. x_{K-1}
    """
    capped = joint = 1.0
    for place, token in enumerate(tokens):
        ratio = float(target[place, token].double() / draft_probs[place, token].double())
        capped, joint = min(1.0, capped * ratio), joint * ratio
    p, q = target[len(tokens)].double(), draft_probs[len(tokens)].double()
    excess = (capped * p - q).clamp(min=0)
    total = float(excess.sum())
    full = torch.minimum(q, joint * p)
    left = (1 - float(full.sum())) / (total + 1 - capped) if total else 0.0
    emitted = full + max(left, 0.0) * excess
    mass = float(emitted.sum())
    return Emitted(capped, mass, float((emitted / mass - p / p.sum()).abs().sum()) / 2)


def released_rule(drafts: Drafts) -> list[float]:
    """`emitted_at_full_draft` of a state's path, with q on the target's vocabulary."""
    batch, p = drafts.batch, drafts.target_probs[0]
    assert batch.proposals is not None
    q = batch.proposals[0]
    if batch.support is not None:
        q = torch.zeros_like(p[:-1]).index_copy(1, batch.support, q)
    return [round(value, 6) for value in emitted_at_full_draft(p[:-1], q, batch.tokens[0, 1:-1].tolist())]


def one_path(pair: Pair, state: State, drafts: Drafts, depths: tuple[int, ...]) -> dict[str, Any]:
    """E[accepted] by depth and verifier, and the released rule at the full draft by depth."""
    drafts = in_float64(drafts)
    record: dict[str, Any] = {"root": state.root, "expected": {}, "released": {}}
    for depth in depths:
        shorter = cut(drafts, 1, depth)
        record["expected"][str(depth)] = expected(shorter, CHAIN, pair.stops)
        record["released"][str(depth)] = released_rule(shorter)
    assert drafts.batch.proposals is not None
    p, q = drafts.target_probs[0, 0], drafts.batch.proposals[0, 0]
    known = p if drafts.batch.support is None else p[drafts.batch.support]
    record["overlap"] = round(float(torch.minimum(known, q).sum()), 6)
    return record


def several_paths(pair: Pair, state: State, drafts: Drafts, shape: Shape) -> dict[str, Any]:
    """E[accepted] by number of paths and verifier."""
    parts = {str(count): cut(drafts, count, shape.paths_depth) for count in shape.paths}
    found = {count: expected(part, SEVERAL, pair.stops) for count, part in parts.items()}
    return {"root": state.root, "expected": found}


# --- questions --------------------------------------------------------------------------------------------------------


def positions(length: int, stride: int, generator: torch.Generator) -> list[int]:
    """Places of an answer's tokens that are roots: every `stride`-th from a drawn one on, never the last."""
    offset = int(torch.randint(stride, (1,), generator=generator))
    return list(range(offset % max(length - 1, 1), length - 1, stride))


def states_of(
    pair: Pair, prompts: list[list[int]], answers: list[Answer], seeds: list[int], stride: int
) -> list[State]:
    """The states of some answers, which the draft model reads."""
    forest = pair.drafter.forest
    tokens: list[int] = []
    parents: list[int] = []
    states: list[State] = []
    for question, (prompt, answer, seed) in enumerate(zip(prompts, answers, seeds, strict=True)):
        roots = positions(len(answer.tokens), stride, torch.Generator().manual_seed(seed))
        text = [*prompt, *answer.tokens[: max(roots, default=0)]]
        first = forest.filled + len(tokens)
        parents += [-1, *range(first, first + len(text) - 1)]
        tokens += text
        for root in roots:
            in_target = answer.nodes[root - 1] if root else answer.prompt_nodes[-1]
            in_draft = first + len(prompt) + root - 1
            states.append(State(question, root, answer.tokens[root], in_target, in_draft, seed + 7919 * (root + 1)))
    forest.grow(tokens, parents, wanted=[])
    return states


def generator_of(seed: int, question: int, purpose: int) -> int:
    """The seed of a question's answer (0) or of its drafts (1): the same whatever was measured before."""
    return (1_000_003 * seed + question) * 2 + purpose


# --- the run ----------------------------------------------------------------------------------------------------------


def load_pair(options: argparse.Namespace) -> tuple[EagleModel, CachedLM]:
    """The target, and the draft model's `CachedLM`."""
    if not options.draft_model_path:
        raise ValueError("sampled paths come from an ordinary draft model: pass --draft-model-path")
    model = EagleModel.from_pretrained(
        options.base_model_path,
        draft_model_path=options.draft_model_path,
        dtype=DTYPES[options.dtype],
    )
    return model, model.drafter.lm  # type: ignore[union-attr]


class Work(NamedTuple):
    """The pair, the questions with their prompts behind the shared prefix, and what is measured."""

    pair: Pair
    questions: list[benchmarks.Question]
    prompts: list[list[int]]
    shape: Shape
    seed: int
    tokenizer: Any
    say: Callable[[str], None]


def read_or_sample(work: Work, places: list[int], path: Path, head: dict[str, Any]) -> list[Answer]:
    """The answers to some questions, from `path` or sampled now and appended to it; all are in the target's forest."""
    with opened(path, head) as (file, records):
        known = {record["question_id"]: record for record in records}
        wave = [place for place in places if work.questions[place].question_id not in known]
        found: dict[int, Answer] = {}
        forest = work.pair.target
        for place in places:
            if place not in wave:
                record, prompt = known[work.questions[place].question_id], work.prompts[place]
                first = forest.filled
                forest.chain([*prompt, *record["tokens"][:-1]])
                nodes = list(range(first, forest.filled))
                ends = len(prompt)
                found[place] = Answer(record["tokens"], record["ended"], nodes[:ends], nodes[ends:])
        if wave:
            seeds = [generator_of(work.seed, work.questions[place].question_id, 0) for place in wave]
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            probs = SamplingTransform(SamplingParams(1.0))
            prompts = [work.prompts[place] for place in wave]
            sampled = sample_answers(work.pair, prompts, probs, generators, work.shape.max_new_tokens)
            for place, answer in zip(wave, sampled, strict=True):
                found[place] = answer
                jsonl.append(file, answer_record(work, place, answer), path)
            work.say(f"{len(wave)} answers")
    return [found[place] for place in places]


def answer_record(work: Work, place: int, answer: Answer) -> dict[str, Any]:
    """One line of answers.jsonl."""
    question = work.questions[place]
    text = work.tokenizer.decode(answer.tokens, skip_special_tokens=True) if work.tokenizer else ""
    reference = question.reference if question.reference and "####" in question.reference else None
    return {
        "question_id": question.question_id,
        "tokens": answer.tokens,
        "ended": answer.ended,
        "correct": accuracy.is_correct(text, reference) if reference else None,
    }


def measure(work: Work, states: list[State], temperature: float, several: bool) -> dict[int, dict[str, Any]]:
    """By question: what is measured at its states, and with `several` paths at one of them."""
    pair, shape = work.pair, work.shape
    records: dict[int, dict[str, Any]] = {}
    if not states:
        return records
    trees = draft(pair, states, temperature, 1, max(shape.depths))
    for state, drafts in scored(pair, states, trees, temperature, 1):
        record = records.setdefault(state.question, {"states": [], "several": None})
        record["states"].append(one_path(pair, state, drafts, shape.depths))
    if several:
        by_question: dict[int, list[State]] = {}
        for state in states:
            by_question.setdefault(state.question, []).append(state)
        for own in by_question.values():
            state = own[own[0].seed % len(own)]  # the same whatever is asked beside it
            trees = draft(pair, [state], temperature, max(shape.paths), shape.paths_depth)
            ((_, drafts),) = scored(pair, [state], trees, temperature, max(shape.paths))
            records[state.question]["several"] = several_paths(pair, state, drafts, shape)
    return records


def run(options: argparse.Namespace) -> None:
    """Measure `--rows` questions at a time, at every temperature."""
    output = Path(options.output)
    shape = Shape(
        tuple(options.depths), tuple(options.paths), options.paths_depth, options.stride, options.max_new_tokens
    )
    jsonl.check_writable(output / "paths.json")
    resolve_flags(options)
    asked = benchmarks.load(options.bench, options.protocol, None, options.num_questions)
    model, draft_lm = load_pair(options)
    style = prompts.prompt_format(model.tokenizer, options.base_model_path)
    rows = prompts.encode_texts(model.tokenizer, style, (question.turns[0] for question in asked.questions))
    shared = min(min(common_prefix(rows[0], row), len(row) - 1) for row in rows)  # each row keeps a token of its own
    prefix, rows = rows[0][:shared], [row[shared:] for row in rows]
    slots = options.rows * (max(map(len, rows)) + shape.max_new_tokens) + shape.slots(options.rows)
    columns = min(draft_lm.vocab_size, model.target.vocab_size)
    pair = Pair(
        Forest(model.target, prefix, slots),
        ForestDrafter(Forest(draft_lm, prefix, slots), columns, model.target.vocab_size),
        model.eos_ids(),
    )
    say = (
        (lambda _text: None)
        if options.quiet
        else (lambda text: print(f"{text}, {time.process_time():.0f} s", flush=True))
    )
    work = Work(pair, asked.questions, rows, shape, options.seed, model.tokenizer, say)
    for first in range(0, len(rows), options.rows):
        measure_questions(work, list(range(first, min(first + options.rows, len(rows)))), options, asked, output)


def measure_questions(
    work: Work, places: list[int], options: argparse.Namespace, asked: benchmarks.QuestionSet, output: Path
) -> None:
    """Answer some questions and measure those that a temperature's file does not have yet."""
    pair, shape = work.pair, work.shape
    ids = {work.questions[place].question_id for place in places}
    missing = {
        temperature: path
        for temperature in options.temperatures
        if not ids
        <= finished(path := output / f"paths_T{temperature:g}.jsonl", header(options, asked, shape, temperature))
    }
    if not missing:
        return
    answers = read_or_sample(work, places, output / "answers.jsonl", header(options, asked, None, 1.0))
    seeds = [generator_of(work.seed, work.questions[place].question_id, 1) for place in places]
    states = states_of(pair, [work.prompts[place] for place in places], answers, seeds, shape.stride)
    work.say(f"{len(states)} states")
    for temperature, path in missing.items():
        several = bool(shape.paths) and temperature == options.temperatures[0]
        with opened(path, header(options, asked, shape, temperature)) as (file, records):
            done = {record["question_id"] for record in records}
            left = {row for row, place in enumerate(places) if work.questions[place].question_id not in done}
            found = measure(work, [state for state in states if state.question in left], temperature, several)
            for row in sorted(left):
                record = found.get(row, {"states": [], "several": None})
                jsonl.append(file, {**answer_record(work, places[row], answers[row]), **record}, path)
        work.say(f"temperature {temperature:g}: {len(left)} questions")
    pair.target.truncate(0)
    pair.drafter.forest.truncate(0)


def finished(path: Path, head: dict[str, Any]) -> set[int]:
    """The questions that a file has."""
    if not path.exists():
        return set()
    with opened(path, head) as (_, records):
        return {record["question_id"] for record in records}


# A file of this command, claimed, and its records; the session in its head is not compared.
opened = functools.partial(jsonl.measured, settings=operator.itemgetter("settings"))


def header(
    options: argparse.Namespace, asked: benchmarks.QuestionSet, shape: Shape | None, temperature: float
) -> dict[str, Any]:
    """The first line of a file: the settings that a resumed run must agree on, and where the numbers come from.

    The number of questions is none of them: more may be asked later. `shape` None: a file of answers.
    """
    settings = {
        "bench": asked.bench,
        "protocol": asked.protocol,
        "temperature": temperature,
        "max_new_tokens": options.max_new_tokens,
        "seed": options.seed,
        "dtype": options.dtype,
        "target": provenance.portable(options.base_model_path),
        "draft": provenance.portable(options.draft_model_path),
        "target_sha256": hashed(options.base_model_path),
        "draft_sha256": hashed(options.draft_model_path),
    }
    if shape is not None:
        settings |= {
            name: list(value) if isinstance(value, tuple) else value for name, value in shape._asdict().items()
        }
    return {"settings": settings, "session": provenance.provenance()}


@functools.cache
def hashed(path: str) -> str | None:
    """The fingerprint of a model's weights, computed once."""
    return weights_fingerprint(path)


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.trees.paths",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    benchmarks.add_flags(parser, 40)
    add_model_flags(parser)
    add("--temperatures", type=float, nargs="+", default=[1.0], metavar="T")
    add("--depths", type=int, nargs="+", default=[5, 10, 15], metavar="K", help="draft lengths of one path")
    add("--paths", type=int, nargs="*", default=[4, 11], metavar="N", help="numbers of i.i.d. paths; none: leave out")
    add("--paths-depth", type=int, default=10, metavar="K", help="draft length of several paths")
    add("--stride", type=int, default=24, help="tokens from one state to the next")
    add("--rows", type=int, default=16, help="answers sampled together (memory: their caches)")
    add("--max-new-tokens", type=int, default=320, metavar="N")
    add("--seed", type=int, default=0)
    add("--output", required=True, metavar="DIR")
    add("--quiet", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = build_parser().parse_args(argv)

    def work() -> None:
        with torch.inference_mode():
            run(options)

    return command.run(
        work, lambda: f"The finished questions are kept in {options.output}; the same command goes on there."
    )


if __name__ == "__main__":
    raise SystemExit(main())
