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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from eagle import command, jsonl
from eagle.api.eagle_model import EagleModel
from eagle.autotune.probe import ScoredTree, StateProbe, TreeLimits
from eagle.checkpoints.fingerprint import weights_fingerprint
from eagle.engine.distributions import SamplingParams
from eagle.engine.plan import Plan
from eagle.engine.records import GeneratedRow
from eagle.engine.stopping import Stopping
from eagle.files import check_writable
from eagle.nn.precision import DTYPES
from eagle.trees import TreeSettings
from eval import provenance
from eval.measure.measures import cut, expected, in_float64, released_rule
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

    @property
    def one(self) -> tuple[str, TreeSettings]:
        """The longest path."""
        return "chain", TreeSettings(1 + max(self.depths), max(self.depths))

    @property
    def several(self) -> tuple[str, TreeSettings]:
        """Most paths."""
        count = max(self.paths)
        return "multi", TreeSettings(1 + count * self.paths_depth, self.paths_depth, count)


# --- one state --------------------------------------------------------------------------------------------------------


def one_path(drafted: ScoredTree, root: int, depths: tuple[int, ...], stops: frozenset[int]) -> dict[str, Any]:
    """E[accepted] by depth and verifier, and the released rule at the full draft by depth."""
    drafted = in_float64(drafted)
    record: dict[str, Any] = {"root": root, "expected": {}, "released": {}}
    for depth in depths:
        shorter = cut(drafted, 1, 1, depth)
        record["expected"][str(depth)] = expected(shorter, ONE, stops)
        record["released"][str(depth)] = released_rule(shorter)
    assert drafted.batch.proposals is not None
    p, q = drafted.target_probs[0], drafted.batch.proposals[0, 0]
    known = p if drafted.batch.support is None else p[drafted.batch.support]
    record["overlap"] = round(float(torch.minimum(known, q).sum()), 6)
    return record


def several_paths(drafted: ScoredTree, root: int, shape: Shape, stops: frozenset[int]) -> dict[str, Any]:
    """E[accepted] by number of paths and verifier."""
    parts = {str(count): cut(drafted, max(shape.paths), count, shape.paths_depth) for count in shape.paths}
    return {"root": root, "expected": {count: expected(part, SEVERAL, stops) for count, part in parts.items()}}


def roots(length: int, stride: int, generator: torch.Generator) -> list[int]:
    """Places of an answer that are states: every `stride`-th from a drawn one on, never that of the last token."""
    offset = int(torch.randint(stride, (1,), generator=generator))
    return list(range(offset % max(length - 1, 1), length - 1, stride))


# --- the run ----------------------------------------------------------------------------------------------------------


def generator_of(seed: int, question: int, purpose: int) -> torch.Generator:
    """Of a question's answer (0), of its states (1) or of one of them: the same whatever was measured before."""
    return torch.Generator().manual_seed((1_000_003 * seed + question) * 2 + purpose)


def load_model(options: argparse.Namespace) -> EagleModel:
    """The target and the draft model."""
    if not options.draft_model_path:
        raise ValueError("sampled paths come from an ordinary draft model: pass --draft-model-path")
    return EagleModel.from_pretrained(
        options.base_model_path,
        draft_model_path=options.draft_model_path,
        dtype=DTYPES[options.dtype],
    )


class Work(NamedTuple):
    """The models, the questions with their prompts, and what is measured."""

    model: EagleModel
    questions: list[benchmarks.Question]
    prompts: list[list[int]]
    shape: Shape
    seed: int
    say: Callable[[str], None]

    def answers(self, places: list[int], rows: int) -> Iterator[tuple[int, GeneratedRow]]:
        """The target's own answers to some questions, in the order in which they end, `rows` of them at once."""
        stopping = Stopping(self.model.eos_ids(), self.shape.max_new_tokens, self.model.context_length)
        waiting = list(places)
        growing: dict[int, GeneratedRow] = {}
        with self.model.session(Plan.resolve("none", "hsd", TreeSettings()), reuse=True) as session:
            while waiting or growing:
                while waiting and len(growing) < rows:
                    place = waiting.pop(0)
                    generator = generator_of(self.seed, self.questions[place].question_id, 0)
                    growing[place] = session.add(self.prompts[place], None, generator, stopping=stopping, reuse=True)
                session.step()
                for place in [place for place, row in growing.items() if row.finished]:
                    yield place, growing.pop(place)


def read_or_sample(work: Work, rows: int, path: Path, head: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The record of every answer by question id, from `path` or sampled now and appended to it."""
    with opened(path, head) as (file, records):
        known = {record["question_id"]: record for record in records}
        missing = [place for place, asked in enumerate(work.questions) if asked.question_id not in known]
        for place, row in work.answers(missing, rows):
            record = answer_record(work, place, row)
            known[record["question_id"]] = record
            jsonl.append(file, record, path)
        if missing:
            work.say(f"{len(missing)} answers")
    return known


def answer_record(work: Work, place: int, row: GeneratedRow) -> dict[str, Any]:
    """One line of answers.jsonl."""
    question, tokenizer = work.questions[place], work.model.tokenizer
    text = tokenizer.decode(row.new_tokens, skip_special_tokens=True) if tokenizer else ""
    return {
        "question_id": question.question_id,
        "prompt_tokens": row.prompt_tokens,
        "tokens": row.new_tokens,
        "ended": row.stop_reason == "eos",
        "correct": grading.is_correct(text, question.reference) if grading.can_be_marked(question.reference) else None,
    }


def measure(work: Work, probe: StateProbe, place: int, tokens: list[int], temperature: float, several: bool) -> Any:
    """What is measured at the states of one answer, and with `several` paths at one of them."""
    shape, stops, question = work.shape, work.model.eos_ids(), work.questions[place].question_id
    sampling = SamplingParams(temperature)
    found: dict[str, Any] = {"states": [], "several": None}
    generator = generator_of(work.seed, question, 1)
    places = roots(len(tokens), shape.stride, generator)
    chosen = int(torch.randint(max(len(places), 1), (1,), generator=generator))
    for index, root in enumerate(places):
        own = generator_of(work.seed, question, 2 * 7919 * (root + 1) + 1)
        probe.begin([*work.prompts[place], *tokens[:root]], 2, own, reuse=True)
        if probe.ended:  # the answer could have ended here
            continue
        (drafted,) = probe.score([probe.grow(*shape.one, draft_sampling=sampling)], sampling)
        found["states"].append(one_path(drafted, root, shape.depths, stops))
        if several and index == chosen:
            (drafted,) = probe.score([probe.grow(*shape.several, draft_sampling=sampling)], sampling)
            found["several"] = several_paths(drafted, root, shape, stops)
    return found


@torch.inference_mode()
def run(options: argparse.Namespace) -> None:
    """Sample the answers, then measure at every temperature what its file does not have yet."""
    output = Path(options.output)
    shape = Shape(
        tuple(options.depths), tuple(options.paths), options.paths_depth, options.stride, options.max_new_tokens
    )
    check_writable(output / "paths.json")
    resolve_flags(options)
    asked = benchmarks.load(options.bench, options.protocol, options.question_file, options.num_questions)
    model = load_model(options)
    rows = prompts.encode_first_turns(model.tokenizer, options.base_model_path, asked.questions)
    say = lambda text: None if options.quiet else print(f"{text}, {time.process_time():.0f} s", flush=True)
    work = Work(model, asked.questions, rows, shape, options.seed, say)
    answers = read_or_sample(work, options.rows, output / "answers.jsonl", header(options, asked, None, 1.0))
    limits = TreeLimits.of([shape.one, *([shape.several] if shape.paths else [])])
    probe = StateProbe(model, SamplingParams(1.0), limits)
    for temperature in options.temperatures:
        path = output / f"paths_T{temperature:g}.jsonl"
        several = bool(shape.paths) and temperature == options.temperatures[0]
        with opened(path, header(options, asked, shape, temperature)) as (file, records):
            done = {record["question_id"] for record in records}
            for place, question in enumerate(work.questions):
                if question.question_id not in done:
                    record = answers[question.question_id]
                    found = measure(work, probe, place, record["tokens"], temperature, several)
                    jsonl.append(file, {**record, **found}, path)
        say(f"temperature {temperature:g}")


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
    add("--rows", type=command.COUNT, default=16, help="answers sampled together")
    add("--max-new-tokens", type=command.COUNT, default=320, metavar="N")
    add("--seed", type=command.SEED, default=0)
    add("--output", required=True, metavar="DIR")
    add("--quiet", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command.start(build_parser(), run, argv, command.resumable("questions"))


if __name__ == "__main__":
    raise SystemExit(main())
