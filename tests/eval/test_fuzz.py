"""Question files and answer files that are damaged at random: a correct result or one sentence, never a lost line.

Every example is a healthy file that was changed: bytes of it, or a value somewhere in its JSON. Whatever comes of it is
either read whole (a question per line, a record per line), or refused with a ValueError of one sentence that names the
file. FUZZ_EXAMPLES sets how many examples each test tries; the gate tries 300.
"""

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval.questions import benchmarks
from eval.report import summary, tables
from eval.run import answers
from tests.eval.helpers import evaluate

EXAMPLES = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "300")),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

QUESTIONS = [
    {"question": "How much is 1 + 1?", "answer": "Two.\n#### 2"},
    {"question_id": 81, "category": "writing", "turns": ["Tell me.", "Again."], "reference": ["so", "and so"]},
    {"question_id": -4, "prompt": "def f():\n", "canonical_solution": "    pass\n"},
    {"question_id": 7, "turns": ["caf\u00e9 \U0001f600"], "category": "chat", "extra": {"a": [1, None]}},
]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63, 10**400, -1, 0, 1.5, 1e308, float("nan"), float("inf"), -0.0]),
    st.text(max_size=6),
    st.sampled_from(["", " ", "####", "#### 1e999", "#### " + "9" * 400, "\ud800", "\x00", "|", "a\nb"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Paths of everything inside a JSON value, the value itself first."""
    inside = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [path, *(place for key, part in inside for place in places(part, (*path, key)))]


def replaced(value: Any, path: tuple, new: Any) -> Any:
    """The value with another one at a path; `DROP` removes a key or an element."""
    if not path:
        return new
    value = copy.copy(value)
    if len(path) == 1 and new is DROP:
        del value[path[0]]
    else:
        value[path[0]] = replaced(value[path[0]], path[1:], new)
    return value


DROP = object()


@st.composite
def mutated_lines(draw: st.DrawFn, lines: list[Any]) -> bytes:
    """JSON lines of which up to three values were replaced or removed, with the line ends that editors write."""
    lines = copy.deepcopy(lines)
    for _ in range(draw(st.integers(0, 3))):
        index = draw(st.integers(0, len(lines) - 1))
        path = draw(st.sampled_from(places(lines[index])))
        lines[index] = replaced(lines[index], path, draw(VALUES | st.just(DROP) if path else VALUES))
    end = draw(st.sampled_from(["\n", "\r\n", "\n\n"]))
    text = "".join(json.dumps(line, ensure_ascii=draw(st.booleans())) + end for line in lines)
    return text.encode("utf-8", "surrogatepass")


@st.composite
def mutated_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """A file of which a stretch of bytes was replaced by others, removed, doubled or cut off."""
    start = draw(st.integers(0, len(content)))
    stop = draw(st.integers(start, min(start + 40, len(content))))
    return draw(
        st.sampled_from([content[:start], content[:stop] + content[start:], content[:start] + content[stop:]])
        | st.binary(max_size=12).map(lambda noise: content[:start] + noise + content[stop:])
    )


def as_bytes(lines: list[Any]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def assert_one_sentence(error: ValueError, name: str) -> None:
    text = str(error)
    assert type(error) is ValueError, f"{type(error).__name__}: {text}"
    assert "\n" not in text, text
    assert name in text, text
    assert len(text) < 600, text


# --- question files ------------------------------------------------------------------------------------------------


@EXAMPLES
@given(content=mutated_lines(QUESTIONS) | mutated_bytes(as_bytes(QUESTIONS)))
def test_question_files(content, tmp_path):
    place = tmp_path / "mine.jsonl"
    place.write_bytes(content)
    try:
        found = benchmarks.load("gsm8k", question_file=str(place))
    except ValueError as error:
        assert_one_sentence(error, "mine.jsonl")
        return
    assert len(found.questions) == sum(bool(line.strip()) for line in content.split(b"\n"))
    assert len({question.question_id for question in found.questions}) == len(found.questions)
    assert len(found.sha256) == 64
    for question in found.questions:
        for text in (*question.turns, question.category, question.reference or "x"):
            assert text.strip()
            assert text.encode("utf-8").decode("utf-8") == text


# --- answer files --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Three finished answers of one method."""
    output = tmp_path_factory.mktemp("run")
    assert evaluate(output, "--num-questions", "3", methods=("hybrid+hsd",)) == 0
    return output / "hybrid+hsd.jsonl"


@pytest.fixture(scope="module")
def entries(run) -> list[Any]:
    return [json.loads(line) for line in run.read_text().splitlines()]


def assert_read_or_refused(place: Path, meta: bytes, content: bytes) -> None:
    """Both ways a file is read: for a report, with all of its tables, and for a resumed run."""
    place.write_bytes(content)
    answers.meta_path(place).write_bytes(meta)
    finished = content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]
    try:
        (found,) = answers.read([str(place)])
        sections = summary.sections([found])
        text = "".join(table.title for section in sections for table in tables.tables(section))
    except ValueError as error:
        assert_one_sentence(error, place.stem)
    else:
        assert len(found.records) == len(finished)
        assert text.startswith("Result")
        json.dumps(sections, allow_nan=False)
    with_lock = answers.AnswerFile(place)
    try:
        with_lock.begin(json.loads(meta)["settings"], {})
        assert len(with_lock.done) == len(finished)
    except ValueError as error:
        assert_one_sentence(error, place.stem)
    finally:
        with_lock.close()
    assert place.read_bytes() == content[: content.rfind(b"\n") + 1]  # a torn last line is dropped, no other is


@EXAMPLES
@given(data=st.data())
def test_answer_files(data, run, entries, tmp_path):
    whole = run.read_bytes()
    content = data.draw(mutated_lines(entries) | mutated_bytes(whole))
    assert_read_or_refused(tmp_path / "answers.jsonl", answers.meta_path(run).read_bytes(), content)


@EXAMPLES
@given(data=st.data())
def test_settings_files(data, run, tmp_path):
    """A damaged meta.json: the report is made or refused; the answers beside it stay as they are."""
    whole = answers.meta_path(run).read_bytes()
    meta = data.draw(mutated_lines([json.loads(whole)]) | mutated_bytes(whole))
    place = tmp_path / "answers.jsonl"
    place.write_bytes(run.read_bytes())
    answers.meta_path(place).write_bytes(meta)
    try:
        (found,) = answers.read([str(place)])
        for section in summary.sections([found]):
            tables.tables(section)
    except ValueError as error:
        assert_one_sentence(error, "answers")
    assert place.read_bytes() == run.read_bytes()
