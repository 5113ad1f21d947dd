"""The questions: which benchmarks and protocols exist, and how a file becomes a list of questions.

| benchmark | protocol | questions |
|---|---|---|
| gsm8k | full | all 1,319 test questions, zero-shot chat |
| gsm8k | eagle80 | the 80 questions EAGLE reports on, zero-shot chat |
| gsm8k | paper263 | the HSD paper's: the first 263 test questions behind an 8-shot chain-of-thought prompt |
| gsm8k | sample | 16 problems in the same style, written for this project, always at hand |
| mt_bench | full | 80 questions of two turns; the first answer is fed back |
| humaneval | full, eagle80 | 164 or 80 function headers to complete; what the model writes is never executed |

`--question-file` replaces a protocol's questions by the reader's own; the answer file then names that file.
"""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from eval.provenance import portable
from eval.questions import downloads as files

SAMPLE = Path(__file__).parent / "sample.jsonl"
PAPER_QUESTIONS = 263
HUMANEVAL_TASK = "Complete the code I provided.\n\n"


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
        return files.sha256(json.dumps([list(question) for question in self.questions]).encode())


Records = list[dict[str, Any]]


def parse(content: bytes, source: str) -> Records:
    """JSON lines (gzipped or not) as dicts. Raises ValueError naming the line that is not a JSON object."""
    text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8")
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{source}, line {number}: not JSON ({error}); expected one question per line") from error
        if not isinstance(record, dict):
            raise ValueError(f"{source}, line {number}: {line[:40]!r} is not a JSON object with a question in it")
        records.append(record)
    if not records:
        raise ValueError(f"{source}: no questions in it; expected one JSON object per line")
    return records


def as_question(record: dict[str, Any], index: int, category: str, source: str) -> Question:
    """One question from any of the layouts in use.

    question / answer               GSM8K
    turns (and category, reference) MT-Bench, EAGLE's samples
    prompt / canonical_solution     HumanEval
    """
    if "turns" in record:
        given = record.get("reference")
        reference = given[0] if isinstance(given, list) and given else given or None
        turns = tuple(record["turns"])
    elif "question" in record:
        turns, reference = (record["question"],), record.get("answer")
    elif "prompt" in record:
        turns, reference = (HUMANEVAL_TASK + record["prompt"],), record.get("canonical_solution")
    else:
        raise ValueError(f"{source}, question {index}: keys {sorted(record)}; expected `question`, `turns` or `prompt`")
    if not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise ValueError(f"{source}, question {index}: an empty turn in {turns!r}; expected text in every turn")
    return Question(int(record.get("question_id", index)), record.get("category", category), turns, reference)


def as_questions(content: bytes, category: str, source: str) -> list[Question]:
    questions = [as_question(record, i, category, source) for i, record in enumerate(parse(content, source))]
    ids = [question.question_id for question in questions]
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise ValueError(f"{source}: question_id {twice} appears twice; every question needs its own")
    return questions


def published(path: str, category: str) -> Callable[[], list[Question]]:
    return lambda: as_questions(files.read_or_download(path), category, path)


def paper263() -> list[Question]:
    """The first 263 test questions, each behind the 8 worked examples, joined as the paper's released script does."""
    examples = files.read_or_download("gsm8k/prompt_original.txt").decode("utf-8")
    plain = as_questions(files.read_or_download("gsm8k/test.jsonl"), "math", "gsm8k/test.jsonl")[:PAPER_QUESTIONS]
    return [question._replace(turns=(f"{examples}\nQuestion: {question.turns[0]}\n",)) for question in plain]


class Benchmark(NamedTuple):
    """A benchmark's protocols, the first being the default, and how long an answer may get."""

    protocols: dict[str, Callable[[], list[Question]]]
    max_new_tokens: int
    category: str


BENCHMARKS = {
    "gsm8k": Benchmark(
        {
            "full": published("gsm8k/test.jsonl", "math"),
            "eagle80": published("eagle80/gsm8k.jsonl", "math"),
            "paper263": paper263,
            "sample": lambda: as_questions(SAMPLE.read_bytes(), "math", SAMPLE.name),
        },
        512,
        "math",
    ),
    "mt_bench": Benchmark({"full": published("mt_bench/question.jsonl", "chat")}, 1024, "chat"),
    "humaneval": Benchmark(
        {
            "full": published("humaneval/HumanEval.jsonl.gz", "code"),
            "eagle80": published("eagle80/humaneval.jsonl", "code"),
        },
        512,
        "code",
    ),
}


def benchmark(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise ValueError(f"benchmark {name!r} is not known; expected one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def read_file(path: str, category: str) -> list[Question]:
    place = Path(path)
    if not place.is_file():
        raise ValueError(f"question file {path!r} does not exist; pass a JSON-lines file, or leave --question-file out")
    return as_questions(place.read_bytes(), category, path)


def load(
    bench: str, protocol: str | None = None, question_file: str | None = None, num_questions: int | None = None
) -> QuestionSet:
    """The questions of a run.

    A protocol that was asked for by name is used or refused. With none named, GSM8K without its test file falls back
    to the bundled sample; the set then says `sample`, as every file written from it does.
    """
    chosen = benchmark(bench)
    if protocol is not None and protocol not in chosen.protocols:
        raise ValueError(
            f"protocol {protocol!r} is not known for {bench}; expected one of {', '.join(chosen.protocols)}"
        )
    if question_file and protocol:
        raise ValueError(
            f"--question-file {question_file!r} and --protocol {protocol!r} both name questions; leave one of them out"
        )
    if question_file:
        name, source, questions = "file", portable(question_file), read_file(question_file, chosen.category)
    else:
        name = protocol or next(iter(chosen.protocols))
        name, questions = questions_of(chosen, name, fall_back=protocol is None)
        source = f"{bench}/{name}"
    return QuestionSet(bench, name, source, first(questions, num_questions, source))


def questions_of(chosen: Benchmark, protocol: str, fall_back: bool) -> tuple[str, list[Question]]:
    """A protocol's questions and the protocol's name: `sample` if it had to stand in for files that are not here."""
    try:
        return protocol, chosen.protocols[protocol]()
    except files.MissingData as error:
        if not fall_back or "sample" not in chosen.protocols:
            raise
        print(f"{error}\nUsing the 16 bundled problems instead (protocol `sample`).")
        return "sample", chosen.protocols["sample"]()


def first(questions: list[Question], count: int | None, source: str) -> list[Question]:
    if count is None:
        return questions
    if not 1 <= count <= len(questions):
        raise ValueError(f"--num-questions {count}: {source} has {len(questions)}; expected 1 to {len(questions)}")
    return questions[:count]
