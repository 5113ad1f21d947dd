"""The questions: which benchmarks and protocols exist, and how a file becomes a list of questions.

| benchmark | protocol | questions |
|---|---|---|
| gsm8k | full | all 1,319 test questions, zero-shot chat |
| gsm8k | eagle80 | the 80 questions EAGLE reports on, zero-shot chat |
| gsm8k | paper263 | the HSD paper's: the first 263 test questions behind an 8-shot chain-of-thought prompt |
| gsm8k | shots4, shots12, shots24 | test questions behind so many worked training problems: 0.5k, 2k, 4k tokens |
| gsm8k | sample | 16 problems in the same style, written for this project, always at hand |
| mt_bench | full | 80 questions of two turns; the first answer is fed back |
| humaneval | full, eagle80 | 164 or 80 function headers to complete; executed only when asked (`execution.py`) |
| alpaca | eagle80 | the 80 instructions EAGLE reports on |
| math500 | full | 500 problems of MATH, by `--question-file` |
| spec_bench | full | six tasks of 80 questions, by `--question-file`; MT-Bench's categories are one task |

`--question-file` replaces a protocol's questions by the reader's own; the answer file then names that file.
"""

import argparse
import functools
import gzip
import json
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from eagle import command, jsonl
from eagle.chat_template import check_text
from eagle.digests import sha256
from eval.provenance import portable
from eval.questions import downloads
from eval.questions.grading import boxed, has_number, reference_number

SAMPLE = Path(__file__).parent / "sample.jsonl"
PAPER_QUESTIONS = 263
HUMANEVAL_TASK = "Complete the code I provided.\n\n"
MATH_TASK = "\n\nReason step by step, and put the final answer within \\boxed{}."


class Question(NamedTuple):
    """One question: what the user says in each turn, and the reference answer if there is one."""

    question_id: int
    category: str
    turns: tuple[str, ...]
    reference: str | None = None


class QuestionSet(NamedTuple):
    """Questions and where they came from: `source` names the file, `sha256` covers the questions themselves."""

    bench: str
    protocol: str
    source: str
    questions: list[Question]

    @property
    def sha256(self) -> str:
        """Hash of the questions, whatever the file's name and layout."""
        return sha256(json.dumps([list(question) for question in self.questions]))


class Line(NamedTuple):
    """One JSON object of a file, and where it stands: `FILE, line N`."""

    place: str
    value: dict[str, Any]


def parse(content: bytes, source: str) -> list[Line]:
    """JSON lines (gzipped or not). Raises ValueError naming the line that is not UTF-8 or not a JSON object."""
    try:
        raw = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{source}: damaged gzip data ({error}); download it again") from error
    found = [Line(*read) for read in jsonl.objects(raw.split(b"\n"), source, "a question")]
    if not found:
        raise ValueError(f"{source}: no questions in it; expected one JSON object per line")
    return found


def shown(value: Any) -> str:
    """A value as it stands in an error message: at most 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def text_of(value: Any, key: str, place: str) -> str:
    """A text with something in it. Raises ValueError for anything else."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place}: {key} is {shown(value)}; expected a text that is not empty")
    check_text(value, f"{place}: {key}")
    return value


def turns_of(record: dict[str, Any], place: str) -> tuple[str, ...]:
    """What the user says, in any of the layouts in use.

    turns (MT-Bench, Spec-Bench, EAGLE's samples), question (GSM8K), prompt (HumanEval), problem (MATH)
    """
    if "turns" in record:
        turns = record["turns"]
        if not isinstance(turns, list) or not turns:
            raise ValueError(f"{place}: turns is {shown(turns)}; expected a list of texts, one per turn")
        return tuple(text_of(turn, f"turns[{index}]", place) for index, turn in enumerate(turns))
    if "question" in record:
        return (text_of(record["question"], "question", place),)
    if "prompt" in record:
        return (HUMANEVAL_TASK + text_of(record["prompt"], "prompt", place),)
    if "problem" in record:
        return (text_of(record["problem"], "problem", place) + MATH_TASK,)
    raise ValueError(f"{place}: keys {shown(sorted(record))}; expected `question`, `turns`, `prompt` or `problem`")


def reference_of(record: dict[str, Any], place: str) -> str | None:
    r"""The reference answer, None without one.

    It is `reference` (a text or a list of them, whose first counts), `answer` or `canonical_solution`. One with `####`
    must have a number behind it, as GSM8K's do. Of a `problem` it is `answer` or what `solution` boxes, as
    `\boxed{...}`.
    """
    if "problem" in record:
        given = record["answer"] if "answer" in record else boxed(text_of(record.get("solution"), "solution", place))
        return f"\\boxed{{{text_of(given, 'answer', place)}}}"
    key = next((key for key in ("reference", "answer", "canonical_solution") if record.get(key) is not None), None)
    if key is None:
        return None
    given = record[key]
    if isinstance(given, list) and key == "reference":
        if not all(isinstance(part, str) for part in given):
            raise ValueError(f"{place}: reference is {shown(given)}; expected a text, a list of texts, or null")
        given = given[0] if given else ""
    if given == "":
        return None
    reference = text_of(given, key, place)
    if has_number(reference):
        try:
            reference_number(reference)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
    return reference


def id_of(record: dict[str, Any], index: int, place: str) -> int:
    """`question_id`, or the question's index in the file where there is none."""
    number = record.get("question_id", index)
    if not isinstance(number, int) or isinstance(number, bool) or abs(number) > 2**53:
        raise ValueError(f"{place}: question_id is {shown(number)}; expected an integer, or leave it out everywhere")
    return number


def as_question(line: Line, index: int, category: str) -> Question:
    """One question. `category` is for those that name none. Raises ValueError naming the line and the key."""
    record, place = line.value, line.place
    named = record.get("category") or record.get("subject") or category  # EAGLE's Alpaca names an empty one
    turns, reference = turns_of(record, place), reference_of(record, place)
    return Question(id_of(record, index, place), text_of(named, "category", place), turns, reference)


def as_questions(content: bytes, category: str, source: str) -> list[Question]:
    """A whole file, checked before anything is asked."""
    read_lines = parse(content, source)
    questions = [as_question(line, index, category) for index, line in enumerate(read_lines)]
    places: dict[int, str] = {}
    for line, question in zip(read_lines, questions, strict=True):
        earlier = places.setdefault(question.question_id, line.place)
        if earlier != line.place:
            raise ValueError(
                f"{line.place}: question_id {question.question_id} appears twice (first in {earlier}); every question "
                "needs its own"
            )
    return questions


def from_file(path: str, category: str) -> Callable[[], list[Question]]:
    """A protocol that is one known question file."""
    return lambda: as_questions(downloads.read_or_download(path), category, path)


GSM8K_TEST = from_file("gsm8k/test.jsonl", "math")


def paper263() -> list[Question]:
    """The first 263 test questions, each behind the 8 worked examples, joined as the paper's released script does."""
    examples = downloads.read_or_download("gsm8k/prompt_original.txt").decode("utf-8")
    return behind(f"{examples}\n", GSM8K_TEST()[:PAPER_QUESTIONS])


def behind_examples(count: int) -> list[Question]:
    """The test questions, each behind the first `count` training problems with their solutions: longer contexts."""
    examples = from_file("gsm8k/train.jsonl", "math")()[:count]
    worked = "".join(f"Question: {example.turns[0]}\n{solution(example)}\n\n" for example in examples)
    return behind(worked, GSM8K_TEST())


def behind(examples: str, questions: list[Question]) -> list[Question]:
    """The questions, each behind the same worked examples."""
    return [question._replace(turns=(f"{examples}Question: {question.turns[0]}\n",)) for question in questions]


def solution(example: Question) -> str:
    """A training problem's reference without its calculator marks; the number behind `####` as a sentence."""
    worked = re.sub(r"<<.*?>>", "", example.reference or "")
    return re.sub(r"\n####\s*(.*)", r"\nThe answer is \1.", worked)


def elsewhere(what: str, url: str) -> Callable[[], list[Question]]:
    """A protocol whose file is not among those that are downloaded and checked here."""

    def refuse() -> list[Question]:
        raise downloads.MissingDataError(
            f"the questions of {what} are not downloaded here; get {url} and pass it with --question-file"
        )

    return refuse


class Benchmark(NamedTuple):
    """A benchmark's protocols, the first being the default, how long an answer may get, the category of questions that
    name none, and the categories that are reported under another name.
    """

    protocols: dict[str, Callable[[], list[Question]]]
    max_new_tokens: int
    category: str
    tasks: Mapping[str, str] = {}


BENCHMARKS = {
    "gsm8k": Benchmark(
        {
            "full": GSM8K_TEST,
            "eagle80": from_file("eagle80/gsm8k.jsonl", "math"),
            "paper263": paper263,
            **{f"shots{count}": functools.partial(behind_examples, count) for count in (4, 12, 24)},
            "sample": lambda: as_questions(SAMPLE.read_bytes(), "math", SAMPLE.name),
        },
        512,
        "math",
    ),
    "mt_bench": Benchmark({"full": from_file("mt_bench/question.jsonl", "chat")}, 1024, "chat"),
    "humaneval": Benchmark(
        {
            "full": from_file("humaneval/HumanEval.jsonl.gz", "code"),
            "eagle80": from_file("eagle80/humaneval.jsonl", "code"),
        },
        512,
        "code",
    ),
    "alpaca": Benchmark({"eagle80": from_file("eagle80/alpaca.jsonl", "instruction")}, 512, "instruction"),
    "math500": Benchmark(
        {
            "full": elsewhere(
                "MATH-500 (MIT)", "prm800k/math_splits/test.jsonl of https://github.com/openai/prm800k (Git LFS)"
            )
        },
        1024,
        "math",
    ),
    "spec_bench": Benchmark(
        {"full": elsewhere("Spec-Bench", "data/spec_bench/question.jsonl of https://github.com/hemingkx/Spec-Bench")},
        1024,
        "chat",
        dict.fromkeys(
            ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"), "mt_bench"
        ),
    ),
}


def benchmark(name: str) -> Benchmark:
    """The benchmark of this name. Raises ValueError listing the known ones."""
    if name not in BENCHMARKS:
        raise ValueError(f"benchmark {name!r} is not known; expected one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def read_file(path: str, category: str) -> list[Question]:
    """The questions of the reader's own file."""
    place = Path(path)
    if not place.is_file():
        raise ValueError(f"question file {path!r} does not exist; pass a JSON-lines file, or leave --question-file out")
    return as_questions(place.read_bytes(), category, path)


def load(
    bench: str,
    protocol: str | None = None,
    question_file: str | None = None,
    num_questions: int | None = None,
    between: tuple[int, int | None] = (0, None),
) -> QuestionSet:
    """The questions of a run: of those from `between[0]` on and below `between[1]` the first `num_questions`.

    A protocol that was asked for by name is used or refused. With none named, GSM8K without its test file falls back
    to the bundled sample; the set then says `sample`, as every file written from it does.
    """
    chosen = benchmark(bench)
    if protocol is not None and protocol not in chosen.protocols:
        raise ValueError(
            f"protocol {protocol!r} is not known for {bench}; expected one of {', '.join(chosen.protocols)}"
        )
    if question_file is not None and protocol:
        raise ValueError(
            f"--question-file {question_file!r} and --protocol {protocol!r} both name questions; leave one of them out"
        )
    if question_file is not None:
        name, source, questions = "file", portable(question_file), read_file(question_file, chosen.category)
    else:
        name = protocol or next(iter(chosen.protocols))
        name, questions = questions_of(chosen, name, fall_back=protocol is None)
        source = f"{bench}/{name}"
    questions = [one._replace(category=chosen.tasks.get(one.category, one.category)) for one in questions]
    begin, end = between
    if not questions[begin:end]:
        raise ValueError(f"--question-begin {begin}, --question-end {end}: none of the {len(questions)} of {source}")
    return QuestionSet(bench, name, source, first(questions[begin:end], num_questions, source))


def questions_of(chosen: Benchmark, protocol: str, fall_back: bool) -> tuple[str, list[Question]]:
    """A protocol's questions and the protocol's name: `sample` if it had to stand in for files that are not here."""
    try:
        return protocol, chosen.protocols[protocol]()
    except downloads.MissingDataError as error:
        if not fall_back or "sample" not in chosen.protocols:
            raise
        print(f"{error}\nUsing the 16 bundled problems instead (protocol `sample`).")
        return "sample", chosen.protocols["sample"]()


def first(questions: list[Question], count: int | None, source: str) -> list[Question]:
    """The first `count` questions; None: all."""
    if count is None:
        return questions
    if not 1 <= count <= len(questions):
        raise ValueError(f"--num-questions {count}: {source} has {len(questions)}; expected 1 to {len(questions)}")
    return questions[:count]


def add_flags(parser: argparse.ArgumentParser, count: int) -> None:
    """The flags that choose questions, `count` of them by default, of commands that measure a part of a set."""
    parser.add_argument("--bench", choices=list(BENCHMARKS), default="gsm8k")
    parser.add_argument("--protocol")
    parser.add_argument("--question-file", metavar="F", help="JSON lines with `question` or `turns`, instead")
    parser.add_argument("--num-questions", type=command.COUNT, default=count, metavar="N")
