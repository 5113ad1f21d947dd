"""Question files: layouts, protocols, checksums, and errors that say what to do."""

import gzip
import json

import pytest

from eval.questions import benchmarks, downloads
from eval.questions.grading import reference_number
from tests.eval.helpers import evaluate

NUMBERED = [{"question": f"How much is {i} + 1?", "answer": f"#### {i + 1}"} for i in range(300)]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """An empty data directory, no download folder, no network."""
    monkeypatch.setenv("HSD_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HSD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "data"


def put(folder, monkeypatch, path, content):
    """A file in the data directory whose checksum counts as the published one."""
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(content)
    monkeypatch.setitem(downloads.KNOWN, path, downloads.KNOWN[path]._replace(sha256=downloads.sha256(content)))


def as_lines(records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def test_the_sample_is_whole():
    found = benchmarks.load("gsm8k", "sample")
    assert len(found.questions) == 16
    assert all(reference_number(question.reference) >= 0 for question in found.questions)


@pytest.mark.usefixtures("data")
def test_gsm8k_falls_back_to_the_sample_and_says_so(capsys):
    found = benchmarks.load("gsm8k")
    assert found.protocol == "sample"
    assert found.source == "gsm8k/sample"
    assert "python -m eval.questions.downloads gsm8k/test.jsonl" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("bench", "protocol", "path"),
    [
        ("gsm8k", "full", "gsm8k/test.jsonl"),
        ("gsm8k", "eagle80", "eagle80/gsm8k.jsonl"),
        ("mt_bench", None, "mt_bench/question.jsonl"),
        ("humaneval", None, "humaneval/HumanEval.jsonl.gz"),
    ],
)
@pytest.mark.usefixtures("data")
def test_a_missing_file_names_the_command(bench, protocol, path):
    with pytest.raises(downloads.MissingDataError, match=f"run `python -m eval.questions.downloads {path}`"):
        benchmarks.load(bench, protocol)


def test_paper263_puts_eight_examples_in_front(data, monkeypatch):
    put(data, monkeypatch, "gsm8k/test.jsonl", as_lines(NUMBERED))
    put(data, monkeypatch, "gsm8k/prompt_original.txt", b"Question: one?\nThe answer is 1.\n")
    found = benchmarks.load("gsm8k", "paper263")
    assert len(found.questions) == 263
    assert found.questions[4].turns == ("Question: one?\nThe answer is 1.\n\nQuestion: How much is 4 + 1?\n",)
    assert found.questions[4].reference == "#### 5"


def test_worked_examples_stand_in_front_without_calculator_marks(data, monkeypatch):
    worked = [
        {"question": f"{i} + 1?", "answer": f"{i} + 1 = <<{i}+1={i + 1}>>{i + 1} eggs.\n#### {i + 1}"} for i in range(9)
    ]
    put(data, monkeypatch, "gsm8k/train.jsonl", as_lines(worked))
    put(data, monkeypatch, "gsm8k/test.jsonl", as_lines(NUMBERED))
    found = benchmarks.load("gsm8k", "shots4", num_questions=3).questions[2]
    examples = "".join(f"Question: {i} + 1?\n{i} + 1 = {i + 1} eggs.\nThe answer is {i + 1}.\n\n" for i in range(4))
    assert found.turns == (f"{examples}Question: How much is 2 + 1?\n",)
    assert found.reference == "#### 3"


def test_humaneval_is_asked_not_run(data, monkeypatch):
    task = {"task_id": "HumanEval/0", "prompt": "def f():\n", "canonical_solution": "    pass\n"}
    put(data, monkeypatch, "humaneval/HumanEval.jsonl.gz", gzip.compress(as_lines([task])))
    (question,) = benchmarks.load("humaneval").questions
    assert question.turns == ("Complete the code I provided.\n\ndef f():\n",)
    assert question.category == "code"


def test_a_changed_file_is_refused(data, monkeypatch):
    put(data, monkeypatch, "mt_bench/question.jsonl", b'{"question_id": 1, "turns": ["a", "b"]}\n')
    (data / "mt_bench/question.jsonl").write_bytes(b'{"question_id": 1, "turns": ["a", "c"]}\n')
    with pytest.raises(ValueError, match="SHA-256 .* expected .* for mt_bench/question.jsonl"):
        benchmarks.load("mt_bench")


def test_a_changed_question_changes_the_hash(tmp_path):
    place = tmp_path / "mine.jsonl"
    place.write_bytes(as_lines(NUMBERED[:2]))
    before = benchmarks.load("gsm8k", question_file=str(place)).sha256
    place.write_bytes(as_lines(NUMBERED[1:3]))
    assert benchmarks.load("gsm8k", question_file=str(place)).sha256 != before


TURN = {"turns": ["a"]}
BAD_LINES = [
    ([1], "'\\[1\\]' is not a JSON object"),
    ("text", "is not a JSON object"),
    ({"text": "x"}, "expected `question`, `turns`, `prompt` or `problem`"),
    ({"turns": []}, "turns is \\[\\]; expected a list of texts"),
    ({"turns": "hello"}, "turns is 'hello'; expected a list of texts"),
    ({"turns": None}, "turns is None; expected a list of texts"),
    ({"turns": ["a", 3]}, "turns\\[1\\] is 3; expected a text that is not empty"),
    ({"turns": ["a", " "]}, "turns\\[1\\] is ' '; expected a text"),
    ({"question": "  "}, "question is '  '; expected a text"),
    ({"question": ["a"]}, "question is \\['a'\\]; expected a text"),
    ({"question": "a \ud800"}, "question holds half of a surrogate pair"),
    ({"prompt": None}, "prompt is None; expected a text"),
    ({"question": "a", "answer": 42}, "answer is 42; expected a text"),
    ({"question": "a", "answer": "#### many"}, "expected `#### n` at its end"),
    ({**TURN, "reference": ["a", 3]}, "reference is .*; expected a text, a list of texts, or null"),
    ({**TURN, "category": 3}, "category is 3; expected a text"),
    ({**TURN, "question_id": None}, "question_id is None; expected an integer"),
    ({**TURN, "question_id": "abc"}, "question_id is 'abc'; expected an integer"),
    ({**TURN, "question_id": 1.5}, "question_id is 1.5; expected an integer"),
    ({**TURN, "question_id": True}, "question_id is True; expected an integer"),
    ({**TURN, "question_id": 0}, "question_id 0 appears twice"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_bad_line_is_named_before_anything_is_asked(tmp_path, line, message, capsys):
    """The lines before it are fine: only a check of the whole file finds it before the first question."""
    place = tmp_path / "bad.jsonl"
    place.write_bytes(as_lines([{"question": "fine"}, {"question": "fine too"}, line]))
    with pytest.raises(ValueError, match=f"bad.jsonl, line 3: .*{message}|bad.jsonl, line 3: {message}"):
        benchmarks.load("gsm8k", question_file=str(place))
    assert evaluate(tmp_path / "run", "--question-file", str(place)) == 2
    assert not (tmp_path / "run").exists()
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no questions in it"),
        (b"\n \n", "no questions in it"),
        (b"not json\n", "line 1: not JSON"),
        (b'{"question": "caf\xe9"}\n', "line 1: not UTF-8 \\(byte 0xe9 at place 17\\); save it as UTF-8"),
        (b'{"question": "a"}\n' + b"[" * 100_000, "line 2: not JSON"),
        (b'{"question_id": ' + b"9" * 5000 + b', "question": "a"}\n', "line 1: "),
        (b'{"question_id": 3, "turns": ["a"]}\n{"question_id": 3, "turns": ["b"]}\n', "line 2: question_id 3 .*line 1"),
        (gzip.compress(mtime=0, data=b'{"question": "a"}\n')[:-9], "damaged gzip data"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    place = tmp_path / "bad.jsonl"
    place.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        benchmarks.load("gsm8k", question_file=str(place))
    assert "bad.jsonl" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gsm9k",), "benchmark 'gsm9k' is not known; expected one of gsm8k"),
        (("gsm8k", "eagle81"), "protocol 'eagle81' is not known for gsm8k; expected one of full, eagle80"),
        (("gsm8k", "sample", "x.jsonl"), "leave one of them out"),
        (("gsm8k", None, "nowhere.jsonl"), "'nowhere.jsonl' does not exist"),
        (("gsm8k", "sample", None, 17), "--num-questions 17: gsm8k/sample has 16"),
        (("gsm8k", "sample", None, 0), "expected 1 to 16"),
    ],
)
def test_bad_requests_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        benchmarks.load(*arguments)


def test_a_byte_order_mark_is_no_fault(tmp_path):
    place = tmp_path / "marked.jsonl"
    place.write_bytes(b"\xef\xbb\xbf" + as_lines(NUMBERED[:2]))
    assert len(benchmarks.load("gsm8k", question_file=str(place)).questions) == 2


def test_unknown_data_file_lists_the_known():
    with pytest.raises(ValueError, match="'gsm8k/valid.jsonl' is not known; expected one of gsm8k/test.jsonl"):
        downloads.read("gsm8k/valid.jsonl")


@pytest.mark.usefixtures("data")
def test_download_is_checked_and_kept(monkeypatch, tmp_path):
    origin = tmp_path / "origin.jsonl"
    origin.write_bytes(as_lines(NUMBERED[:3]))
    item = downloads.KNOWN["gsm8k/test.jsonl"]._replace(url=origin.as_uri())
    monkeypatch.setitem(downloads.KNOWN, item.path, item)
    with pytest.raises(ValueError, match="differs from the original"):
        downloads.download(item.path)
    assert downloads.find(item.path) is None
    monkeypatch.setitem(downloads.KNOWN, item.path, item._replace(sha256=downloads.sha256(origin.read_bytes())))
    assert downloads.download(item.path).read_bytes() == origin.read_bytes()
    assert len(benchmarks.load("gsm8k", "full").questions) == 3


@pytest.mark.usefixtures("data")
def test_unreachable_download_is_an_error_with_a_remedy(monkeypatch, tmp_path):
    item = downloads.KNOWN["gsm8k/test.jsonl"]._replace(url=(tmp_path / "nothing").as_uri())
    monkeypatch.setitem(downloads.KNOWN, item.path, item)
    with pytest.raises(downloads.MissingDataError, match="set HSD_DATA"):
        downloads.download(item.path)


@pytest.mark.usefixtures("data")
def test_the_command_lists_and_downloads(monkeypatch, tmp_path, capsys):
    origin = tmp_path / "origin.jsonl"
    origin.write_bytes(as_lines(NUMBERED[:3]))
    item = downloads.KNOWN["gsm8k/test.jsonl"]._replace(
        url=origin.as_uri(), sha256=downloads.sha256(origin.read_bytes())
    )
    monkeypatch.setitem(downloads.KNOWN, item.path, item)
    assert downloads.main([]) == 0
    assert capsys.readouterr().out.count("missing") == len(downloads.KNOWN)
    assert downloads.main([item.path]) == 0
    assert downloads.main(["gsm8k/nothing.jsonl"]) == 2
    assert "'gsm8k/nothing.jsonl' is not known" in capsys.readouterr().err


def test_math_problems(tmp_path):
    lines = [
        {"problem": "Half of 1?", "answer": "\\frac{1}{2}", "subject": "Prealgebra", "solution": "x", "unique_id": "a"},
        {"problem": "Twice 2?", "solution": "It is $\\boxed{4}$.", "level": 1},
    ]
    place = tmp_path / "math.jsonl"
    place.write_bytes(as_lines(lines))
    first, second = benchmarks.load("math500", question_file=str(place)).questions
    assert first.turns[0].startswith("Half of 1?\n") and first.turns[0].endswith("final answer within \\boxed{}.")
    assert (first.category, first.reference) == ("Prealgebra", "\\boxed{\\frac{1}{2}}")
    assert (second.category, second.reference) == ("math", "\\boxed{4}")
    place.write_bytes(as_lines([{"problem": "Twice 2?", "solution": "It is 4."}]))
    with pytest.raises(ValueError, match="line 1: answer is None; expected a text"):
        benchmarks.load("math500", question_file=str(place))


def test_spec_bench_has_six_tasks(tmp_path):
    names = ["writing", "stem", "translation", "summarization", "qa", "math_reasoning", "rag"]
    place = tmp_path / "spec.jsonl"
    place.write_bytes(as_lines([{"question_id": i, "category": c, "turns": ["a"]} for i, c in enumerate(names)]))
    found = [one.category for one in benchmarks.load("spec_bench", question_file=str(place)).questions]
    assert found == ["mt_bench", "mt_bench", *names[2:]]


@pytest.mark.parametrize("bench", ["math500", "spec_bench"])
def test_questions_that_are_elsewhere_are_named_with_the_way_to_use_them(bench):
    with pytest.raises(downloads.MissingDataError, match="https://github.com/.* pass it with --question-file"):
        benchmarks.load(bench)


def test_alpaca_s_empty_categories(data, monkeypatch):
    put(data, monkeypatch, "eagle80/alpaca.jsonl", as_lines([{"question_id": 0, "category": "", "turns": ["a"]}]))
    assert benchmarks.load("alpaca").questions[0].category == "instruction"
