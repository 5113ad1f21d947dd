"""HumanEval's answers are run where that is asked for: what passes, what does not, what a program cannot do."""

import gzip
import json
import os
import textwrap

import pytest

from eval.__main__ import main
from eval.questions import benchmarks, downloads, execution
from eval.report import metrics
from tests.eval.fake import FakeEngine, load
from tests.eval.helpers import records

TASK = execution.Task(
    "import math\n\n\ndef area(r):\n    '''Of a disc.'''\n",
    "def check(candidate):\n    assert candidate(0) == 0\n    assert round(candidate(2), 2) == 12.57\n",
    "area",
)
BODY = "    return math.pi * r**2\n"
WHOLE = "def area(r):\n" + BODY
RIGHT = {
    "the body alone": BODY,
    "the body, stripped": BODY.strip(),
    "two lines of a body, stripped": "square = r * r\n    return math.pi * square",
    "the whole function": WHOLE,
    "a block among words": f"Sure:\n\n```python\n{WHOLE}```\nIt squares the radius.",
    "a block that is not closed": f"```\n{WHOLE}",
    "an indented block": "```python\n" + textwrap.indent(WHOLE, "    ") + "```",
    "the block with the function among others": f"```bash\npip install x\n```\n```python\n{WHOLE}```",
}
WRONG = {
    "another result": WHOLE.replace("**2", "**3"),
    "no code": "I cannot do that.",
    "nothing": "",
    "an early exit": "import os\ndef area(r):\n    os._exit(0)",
    "an early end": "raise SystemExit(0)\ndef area(r):\n" + BODY,
}


@pytest.mark.parametrize("what", RIGHT)
def test_what_passes(what):
    assert execution.runs(execution.program(TASK, RIGHT[what]))


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not(what):
    assert not execution.runs(execution.program(TASK, WRONG[what]))


@pytest.mark.parametrize(
    "code",
    [
        "import socket",
        "import subprocess; subprocess.run(['true'])",
        "bytearray(1 << 33)",
        "open('big', 'wb').write(bytes(1 << 22))",
        "input()",
        "import os; assert os.environ.get('HOME')",
        "import torch",
    ],
)
def test_what_a_program_cannot_do(code):
    assert execution.runs("pass")
    assert not execution.runs(code)


@pytest.mark.parametrize("code", ["while True: pass", "while True: print('x' * 10**6)", "import time; time.sleep(60)"])
def test_a_program_that_does_not_end_is_stopped(code):
    assert not execution.runs(code, seconds=1)


def test_a_program_works_in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert execution.runs("import os; assert not os.listdir('.'); open('here', 'w').write('x')")
    assert not os.listdir(tmp_path)


@pytest.fixture
def one_task(tmp_path, monkeypatch):
    """HumanEval with one task, which is asked by both of its question sets."""
    task = {"prompt": TASK.prompt, "canonical_solution": BODY, "test": TASK.test, "entry_point": TASK.entry_point}
    asked = {"question_id": 5, "turns": [f"Complete the code.\n{TASK.prompt}"], "reference": [BODY]}
    files = {
        execution.HUMANEVAL: gzip.compress(json.dumps(task).encode()),
        "eagle80/humaneval.jsonl": json.dumps(asked).encode(),
    }
    for name, content in files.items():
        place = tmp_path / "data" / name
        place.parent.mkdir(parents=True)
        place.write_bytes(content)
        entry = downloads.KNOWN[name]._replace(sha256=downloads.sha256(content))
        monkeypatch.setitem(downloads.KNOWN, name, entry)
    monkeypatch.setenv("HSD_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    execution.humaneval.cache_clear()
    yield
    execution.humaneval.cache_clear()


COMMAND = ["--bench", "humaneval", "--base-model-path", "target", "--tree", "none", "--quiet"]


@pytest.mark.usefixtures("one_task")
@pytest.mark.parametrize("protocol", ["full", "eagle80"])
@pytest.mark.parametrize(("text", "share"), [(WHOLE, 1.0), ("no idea", 0.0)])
def test_a_run_marks_its_answers(protocol, text, share, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.eval.fake.FakeTokenizer.decode", lambda *_, **__: text)
    command = [*COMMAND, "--protocol", protocol, "--run-code", "--answer-file", "a.jsonl"]
    assert main(command, load=lambda *_, **__: FakeEngine()) == 0
    (record,) = records(tmp_path / "a.jsonl")
    assert record["passed"] is bool(share)
    assert metrics.accuracy([record])[0] == share


@pytest.mark.usefixtures("one_task")
def test_nothing_is_run_unless_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "runs", lambda *_: pytest.fail("run"))
    assert main([*COMMAND, "--answer-file", "a.jsonl"], load=load) == 0
    (record,) = records(tmp_path / "a.jsonl")
    assert "passed" not in record
    assert metrics.accuracy([record]) is None


@pytest.mark.usefixtures("one_task")
def test_questions_without_tests_are_refused_before_the_first(tmp_path, capsys):
    place = tmp_path / "mine.jsonl"
    place.write_text('{"question": "a"}\n')
    assert main([*COMMAND, "--question-file", str(place), "--run-code", "--answer-file", "a.jsonl"], load=load) == 2
    assert "--run-code: question 0 is none of HumanEval's" in capsys.readouterr().err
    assert not (tmp_path / "a.jsonl").exists()


def test_humaneval_s_own_solutions_pass():
    """Every question of both sets has its tests; some of the 164 solutions are run."""
    try:
        sets = [benchmarks.load("humaneval", name).questions for name in ("full", "eagle80")]
        execution.humaneval.cache_clear()
        for questions in sets:
            execution.check(questions)
    except downloads.MissingDataError:
        pytest.skip("HumanEval's files are not here")
    for question in sets[0][::10]:
        assert execution.passes(question, [question.reference])
