r"""Verifiers on the same sampled drafts at the same states, exactly: the HSD paper's tables without their noise.

    python -m eval.trees.paths --bench gsm8k --protocol paper263 --num-questions 40 --temperatures 1 0.6 0.8 \
        --base-model-path qwen2.5-coder-1.5b --draft-model-path qwen2.5-coder-0.5b --output results/paths-gsm8k

The target answers every question by its own samples. Every `--stride` tokens of an answer the draft model drafts one
path, and at the first state of a question several i.i.d. ones. All verifiers see the same drafts, and shorter drafts
and fewer paths are parts of the longest one, so every difference is paired. E[accepted] comes from the stopping
distribution: no verification is drawn. A token drafted behind an end-of-answer token is not counted.

For the released rule (`published`, not lossless) the record also has what it emits after the draft's last but one
token; see `emitted_at_full_draft`. A run that is started again goes on at the question where it stopped;
`python -m eval.trees.paths_table DIR` makes the tables.

Shapes: B states, N nodes, K depth, V vocabulary.
"""

import argparse
import contextlib
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hsd
from eagle.engine.sampling import SamplingParams, SamplingTransform
from eagle.model.eagle_model import EagleModel
from eagle.modules.target import CachedLM
from eagle.trees import DraftProbs, TreeSettings, find_tree
from eval import command, jsonl, provenance
from eval.questions import accuracy, benchmarks, prompts
from eval.runs.load_models import DTYPES, add_model_flags, resolve_flags, weights_fingerprint
from eval.trees.forest import Forest, ForestDrafter
from hsd import TreeBatch

CHAIN = ("token", "block", "hsd", "published")
SEVERAL = ("token", "hsd")
TOGETHER = 8  # states drafted in one batch
AGREE = 1e-4  # block and hsd on one path, in float32 over a vocabulary of 150,000


class Shape(NamedTuple):
    """What is drafted: one path is cut to each of `depths`, several are cut to each number of `paths`."""

    depths: tuple[int, ...]
    paths: tuple[int, ...]
    paths_depth: int
    stride: int
    max_new_tokens: int

    @property
    def slots(self) -> int:
        """Nodes of the drafts that are in a forest at one time."""
        several = 1 + max(self.paths, default=0) * self.paths_depth
        return max(TOGETHER * (1 + max(self.depths)), several)


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
    forest, tokens, parents, ends = pair.target, [], [], []
    for row in rows:
        first = forest.filled + len(tokens)
        parents += [-1, *range(first, first + len(row) - 1)]
        tokens += row
        ends.append(len(tokens) - 1)
    start = forest.filled
    logits = forest.grow(tokens, parents, wanted=ends)
    answers = [
        Answer([], False, list(range(start + end + 1 - len(row), start + end + 1)), [])
        for row, end in zip(rows, ends, strict=True)
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


# --- drafts -----------------------------------------------------------------------------------------------------------


class Drafts(NamedTuple):
    """Drafted trees of B states and the target distributions at their nodes, Float[B, N, V]. counted: see `counted`."""

    batch: TreeBatch
    target_probs: Tensor
    paths: int


def draft(
    pair: Pair,
    roots: list[int],
    before: tuple[list[int], list[int]],
    temperature: float,
    paths: int,
    depth: int,
    generator: torch.Generator,
) -> Drafts:
    """Sampled paths by the real builder at B states, scored by the target; both forests stay as they were.

    roots    the states' last tokens
    before   the nodes before them in the target's and in the draft model's forest
    """
    target, drafter = pair.target, pair.drafter
    marks = target.filled, drafter.forest.filled
    transform = SamplingTransform(SamplingParams(temperature))
    logits = drafter.read(roots, before[1])
    builder = find_tree("chain" if paths == 1 else "multi")
    assert builder is not None
    settings = TreeSettings(1 + paths * depth, depth, paths if paths > 1 else None)
    batch = builder.build(
        drafter, torch.tensor(roots), logits, settings, DraftProbs(transform), lambda q: hsd.draw(q, generator)
    )
    states, nodes = batch.tokens.shape
    first = target.filled + torch.arange(states)[:, None] * nodes
    parents = torch.where(batch.parents < 0, torch.tensor(before[0])[:, None], batch.parents + first)
    scores = target.grow(batch.tokens.flatten().tolist(), parents.flatten().tolist())
    target.truncate(marks[0])
    drafter.forest.truncate(marks[1])
    return Drafts(batch, transform(scores).view(states, nodes, -1), paths)


def cut(drafts: Drafts, paths: int, depth: int) -> Drafts:
    """The first `paths` paths to `depth`: what would have been drafted with these limits and the same draws."""
    batch, before = drafts.batch, drafts.paths
    nodes = torch.arange(batch.tokens.shape[1])
    level, path = (nodes + before - 1) // before, (nodes - 1) % before
    keep = ((level <= depth) & ((path < paths) | (nodes == 0))).nonzero()[:, 0]
    inner = keep[level[keep] < depth]  # row i of the proposals is node i's
    new = torch.arange(len(keep))
    parents = torch.where(new == 0, -1, (new - paths).clamp(min=0)).expand(len(batch), -1)
    assert batch.proposals is not None
    smaller = TreeBatch(
        batch.tokens[:, keep],
        parents,
        batch.depths[:, keep],
        parents,
        batch.proposals[:, inner],
        batch.support,
        hsd.Layout.paths(paths, depth) if paths > 1 else hsd.Layout.chain(depth),
    )
    return Drafts(smaller, drafts.target_probs[:, keep], paths)


# --- what is measured at a state --------------------------------------------------------------------------------------


def counted(tree: hsd.DraftTree, stops: frozenset[int]) -> Tensor:
    """Float64[N]: draft tokens kept when verification stops at a node, none behind an end-of-answer token."""
    values, over = [0.0], [False]
    for token, parent in zip(tree.tokens.tolist()[1:], tree.parents.tolist()[1:]):
        values.append(values[parent] + (not over[parent]))
        over.append(over[parent] or token in stops)
    return torch.tensor(values, dtype=torch.float64)


def expected(drafts: Drafts, row: int, verifiers: tuple[str, ...], stops: frozenset[int]) -> dict[str, float]:
    """E[accepted] of each verifier on one state's tree."""
    tree, depth = drafts.batch.row(row), counted(drafts.batch.row(row), stops)
    found = {}
    for verifier in verifiers:
        law = hsd.stopping_law(tree, drafts.target_probs[row], verifier, check=False)
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


def released_rule(drafts: Drafts, row: int) -> list[float]:
    """`emitted_at_full_draft` of one state's path, with q on the target's vocabulary."""
    batch, p = drafts.batch, drafts.target_probs[row]
    assert batch.proposals is not None
    q = batch.proposals[row]
    if batch.support is not None:
        q = torch.zeros_like(p[:-1]).index_copy(1, batch.support, q)
    return [round(value, 6) for value in emitted_at_full_draft(p[:-1], q, batch.tokens[row, 1:-1].tolist())]


def one_path(pair: Pair, drafts: Drafts, row: int, depths: tuple[int, ...]) -> dict[str, Any]:
    """E[accepted] by depth and verifier, and the released rule at the full draft by depth."""
    record: dict[str, Any] = {"expected": {}, "released": {}}
    for depth in depths:
        shorter = cut(drafts, 1, depth)
        record["expected"][str(depth)] = expected(shorter, row, CHAIN, pair.stops)
        record["released"][str(depth)] = released_rule(shorter, row)
    p, q = drafts.target_probs[row, 0], drafts.batch.proposals[row, 0]  # type: ignore[index]
    known = p if drafts.batch.support is None else p[drafts.batch.support]
    record["overlap"] = round(float(torch.minimum(known, q).sum()), 6)
    return record


# --- a question -------------------------------------------------------------------------------------------------------


def states_of(length: int, stride: int, generator: torch.Generator) -> list[int]:
    """Positions of an answer's tokens that are roots: every `stride`-th from a drawn one on, never the last."""
    offset = int(torch.randint(stride, (1,), generator=generator))
    return list(range(offset % max(length - 1, 1), length - 1, stride))


def measure(
    pair: Pair, prompt: list[int], answer: Answer, temperature: float, shape: Shape, generator: torch.Generator
) -> dict[str, Any]:
    """All drafts at the states of one answer."""
    roots = states_of(len(answer.tokens), shape.stride, generator)
    if not roots:
        return {"states": [], "several": None}
    forest = pair.drafter.forest
    mark, text = forest.filled, [*prompt, *answer.tokens[: roots[-1]]]
    forest.chain(text)
    before = [
        (answer.nodes[root - 1] if root else answer.prompt_nodes[-1], mark + len(prompt) + root - 1) for root in roots
    ]
    tokens = [answer.tokens[root] for root in roots]
    states = []
    for first in range(0, len(roots), TOGETHER):
        part = slice(first, first + TOGETHER)
        nodes = tuple(map(list, zip(*before[part], strict=True)))
        drafts = draft(pair, tokens[part], nodes, temperature, 1, max(shape.depths), generator)  # type: ignore[arg-type]
        states += [
            {"root": roots[first + row], **one_path(pair, drafts, row, shape.depths)}
            for row in range(len(tokens[part]))
        ]
    several = None
    if shape.paths:
        place = int(torch.randint(len(roots), (1,), generator=generator))
        nodes = [before[place][0]], [before[place][1]]
        drafts = draft(
            pair, tokens[place : place + 1], nodes, temperature, max(shape.paths), shape.paths_depth, generator
        )
        parts = {str(count): cut(drafts, count, shape.paths_depth) for count in shape.paths}
        several = {
            "root": roots[place],
            "expected": {count: expected(part, 0, SEVERAL, pair.stops) for count, part in parts.items()},
        }
    forest.truncate(mark)
    return {"states": states, "several": several}


def generator_of(seed: int, question: int, purpose: int) -> torch.Generator:
    """A question's generator for its answer (0) or its drafts (1): the same whatever was measured before."""
    return torch.Generator().manual_seed((1_000_003 * seed + question) * 2 + purpose)


# --- the run ----------------------------------------------------------------------------------------------------------


def common_prefix(rows: list[list[int]]) -> int:
    """How many first tokens all rows share, at least one of each row's left out."""
    shortest = min(map(len, rows)) - 1
    same = (all(row[place] == rows[0][place] for row in rows) for place in range(shortest))
    return next((place for place, equal in enumerate(same) if not equal), shortest)


def load_pair(options: argparse.Namespace) -> tuple[EagleModel, CachedLM]:
    """The target, with attention that does not repeat the cache per query head, and the draft model's `CachedLM`."""
    if not options.draft_model_path:
        raise ValueError("sampled paths come from an ordinary draft model: pass --draft-model-path")
    model = EagleModel.from_pretrained(
        options.base_model_path,
        draft_model_path=options.draft_model_path,
        dtype=DTYPES[options.dtype],
        attention="split_prefix",
    )
    return model, model.drafter.lm  # type: ignore[union-attr]


def encode(model: EagleModel, questions: list[benchmarks.Question], base_model_path: str) -> list[list[int]]:
    """The questions as prompts in the target's chat template."""
    style = prompts.prompt_format(model.tokenizer, base_model_path)
    turns = [[{"role": "user", "content": question.turns[0]}] for question in questions]
    return [prompts.encode(model.tokenizer, style, turn)[0].tolist() for turn in turns]


def one_temperature(
    pair: Pair,
    questions: list[benchmarks.Question],
    rows: list[list[int]],
    temperature: float,
    shape: Shape,
    options: argparse.Namespace,
    tokenizer: Any,
    file: Any,
    path: Path,
) -> None:
    """Answer and measure the questions that `path` does not have yet, `--rows` answers at a time."""
    probs = SamplingTransform(SamplingParams(temperature))
    done = {record["question_id"] for _, record in list(jsonl.lines(path))[1:]}
    left = [place for place, question in enumerate(questions) if question.question_id not in done]
    for first in range(0, len(left), options.rows):
        wave = left[first : first + options.rows]
        generators = [generator_of(options.seed, questions[place].question_id, 0) for place in wave]
        answers = sample_answers(pair, [rows[place] for place in wave], probs, generators, shape.max_new_tokens)
        for place, answer in zip(wave, answers, strict=True):
            question = questions[place]
            generator = generator_of(options.seed, question.question_id, 1)
            text = tokenizer.decode(answer.tokens, skip_special_tokens=True) if tokenizer else ""
            record = {
                "question_id": question.question_id,
                "tokens": answer.tokens,
                "ended": answer.ended,
                "correct": accuracy.is_correct(text, question.reference)
                if question.reference and "####" in question.reference
                else None,
                **measure(pair, rows[place], answer, temperature, shape, generator),
            }
            jsonl.append(file, record, path)
            if not options.quiet:
                print(
                    f"T={temperature:g} question {question.question_id}: {len(answer.tokens)} tokens, "
                    f"{len(record['states'])} states, {time.process_time():.0f} s",
                    flush=True,
                )
        pair.target.truncate(0)


def run(options: argparse.Namespace) -> None:
    """Measure every temperature."""
    output = Path(options.output)
    shape = Shape(
        tuple(options.depths), tuple(options.paths), options.paths_depth, options.stride, options.max_new_tokens
    )
    jsonl.check_writable(output / "table.json")
    resolve_flags(options)
    asked = benchmarks.load(options.bench, options.protocol, None, options.num_questions)
    model, draft_lm = load_pair(options)
    rows = encode(model, asked.questions, options.base_model_path)
    shared = common_prefix(rows)
    prefix, rows = rows[0][:shared], [row[shared:] for row in rows]
    longest = max(map(len, rows)) + shape.max_new_tokens
    columns = min(draft_lm.vocab_size, model.target.vocab_size)
    pair = Pair(
        Forest(model.target, prefix, options.rows * longest + shape.slots),
        ForestDrafter(Forest(draft_lm, prefix, longest + shape.slots), columns, model.target.vocab_size),
        model.eos_ids(),
    )
    for temperature in options.temperatures:
        path = output / f"paths_T{temperature:g}.jsonl"
        head = header(options, asked, shape, temperature)
        with contextlib.closing(jsonl.open_locked(path)) as file:
            jsonl.recover(path)
            found = next((value for _, value in jsonl.lines(path)), None)
            if found is None:
                jsonl.append(file, head, path)
            elif found["settings"] != head["settings"]:
                raise ValueError(f"{path} was measured with other settings ({found}); choose another --output")
            one_temperature(pair, asked.questions, rows, temperature, shape, options, model.tokenizer, file, path)


def header(
    options: argparse.Namespace, asked: benchmarks.QuestionSet, shape: Shape, temperature: float
) -> dict[str, Any]:
    """The first line of a file: the settings that a resumed run must agree on, and where the numbers come from.

    The number of questions is none of them: more may be asked later.
    """
    settings = {
        "bench": asked.bench,
        "protocol": asked.protocol,
        "temperature": temperature,
        "depths": list(shape.depths),
        "paths": list(shape.paths),
        "paths_depth": shape.paths_depth,
        "stride": shape.stride,
        "max_new_tokens": shape.max_new_tokens,
        "seed": options.seed,
        "dtype": options.dtype,
        "target": provenance.portable(options.base_model_path),
        "draft": provenance.portable(options.draft_model_path),
        "target_sha256": weights_fingerprint(options.base_model_path),
        "draft_sha256": weights_fingerprint(options.draft_model_path),
    }
    return {"settings": settings, "session": provenance.provenance()}


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.trees.paths",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--bench", choices=list(benchmarks.BENCHMARKS), default="gsm8k")
    add("--protocol")
    add("--num-questions", type=int, default=40, metavar="N")
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
