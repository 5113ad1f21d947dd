r"""Verifiers on the same sampled drafts at the same states, exactly: the HSD paper's tables without their noise.

    python -m eval.measure.paths --bench gsm8k --protocol paper263 --num-questions 40 --temperatures 1 0.6 0.8 \
        --base-model-path qwen2.5-coder-1.5b --draft-model-path qwen2.5-coder-0.5b --output results/paths-gsm8k

The target answers every question by its own samples at temperature 1. Every `--stride` tokens of an answer the draft
model drafts one path, at each of the `--temperatures`, and at one state of a question several i.i.d. ones, at the first
of them. All verifiers see the same drafts, and shorter drafts and fewer paths are parts of the longest one, so every
difference is paired. E[accepted] comes from the stopping distribution: no verification is drawn. A token drafted behind
an end-of-answer token is not counted.

For the released rule (`published`, not lossless) the record also has what it emits after the draft's last but one
token; see `eval.measure.measures.emitted_at_full_draft`. A run that is started again goes on at the questions where it
stopped; `python -m eval.measure.paths_table DIR` makes the tables.
"""

import argparse
import functools
import operator
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from eagle import command, jsonl
from eagle.api.eagle_model import EagleModel
from eagle.checkpoints.fingerprint import weights_fingerprint
from eagle.engine.distributions import SamplingParams, SamplingTransform
from eagle.engine.step import common_prefix
from eagle.files import check_writable
from eagle.nn.precision import DTYPES
from eagle.nn.target import CachedLM
from eval import provenance
from eval.measure.forest import Forest, ForestDrafter
from eval.measure.measures import expected, released_rule
from eval.measure.states import Answer, Drafts, Pair, State, cut, draft, in_float64, sample_answers, scored, states_of
from eval.questions import benchmarks, grading, prompts
from eval.run.load_models import add_model_flags, resolve_flags
from eval.run.methods import verifiers_of

ONE, SEVERAL = verifiers_of("chain"), verifiers_of("multi")


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


# --- one state --------------------------------------------------------------------------------------------------------


def one_path(pair: Pair, state: State, drafts: Drafts, depths: tuple[int, ...]) -> dict[str, Any]:
    """E[accepted] by depth and verifier, and the released rule at the full draft by depth."""
    drafts = in_float64(drafts)
    record: dict[str, Any] = {"root": state.root, "expected": {}, "released": {}}
    for depth in depths:
        shorter = cut(drafts, 1, depth)
        record["expected"][str(depth)] = expected(shorter, ONE, pair.stops)
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


# --- the run ----------------------------------------------------------------------------------------------------------


def generator_of(seed: int, question: int, purpose: int) -> int:
    """The seed of a question's answer (0) or of its drafts (1): the same whatever was measured before."""
    return (1_000_003 * seed + question) * 2 + purpose


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
    return {
        "question_id": question.question_id,
        "prompt_tokens": work.pair.target.length + len(work.prompts[place]),
        "tokens": answer.tokens,
        "ended": answer.ended,
        "correct": grading.is_correct(text, question.reference) if grading.has_number(question.reference) else None,
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


@torch.inference_mode()
def run(options: argparse.Namespace) -> None:
    """Measure `--rows` questions at a time, at every temperature."""
    output = Path(options.output)
    shape = Shape(
        tuple(options.depths), tuple(options.paths), options.paths_depth, options.stride, options.max_new_tokens
    )
    check_writable(output / "paths.json")
    resolve_flags(options)
    asked = benchmarks.load(options.bench, options.protocol, options.question_file, options.num_questions)
    model, draft_lm = load_pair(options)
    rows = prompts.encode_first_turns(model.tokenizer, options.base_model_path, asked.questions)
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
    if options.question_file:
        settings["question_file"] = asked.source
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
    parser = command.parser("eval.measure.paths", __doc__)
    add = parser.add_argument
    benchmarks.add_flags(parser, 40)
    add_model_flags(parser)
    add("--temperatures", type=command.TEMPERATURE, nargs="+", default=[1.0], metavar="T")
    add("--depths", type=command.COUNT, nargs="+", default=[5, 10, 15], metavar="K", help="draft lengths of one path")
    add(
        "--paths",
        type=command.COUNT,
        nargs="*",
        default=[4, 11],
        metavar="N",
        help="numbers of i.i.d. paths; none: leave out",
    )
    add("--paths-depth", type=command.COUNT, default=10, metavar="K", help="draft length of several paths")
    add("--stride", type=command.COUNT, default=24, help="tokens from one state to the next")
    add("--rows", type=command.COUNT, default=16, help="answers sampled together (memory: their caches)")
    add("--max-new-tokens", type=command.COUNT, default=320, metavar="N")
    add("--seed", type=command.SEED, default=0)
    add("--output", required=True, metavar="DIR")
    add("--quiet", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command.start(
        build_parser(),
        run,
        argv,
        lambda options: f"The finished questions are kept in {options.output}; the same command goes on there.",
    )


if __name__ == "__main__":
    raise SystemExit(main())
