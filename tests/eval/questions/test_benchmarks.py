"""Question files: layouts, protocols, checksums, and errors that say what to do."""

import gzip
import json

import pytest

from eval.questions import benchmarks, downloads
from eval.questions.accuracy import reference_number

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


def test_gsm8k_falls_back_to_the_sample_and_says_so(data, capsys):
    found = benchmarks.load("gsm8k")
    assert found.protocol == "sample" and found.source == "gsm8k/sample"
    assert "python -m eval.questions.downloads gsm8k/test.jsonl" in capsys.readouterr().out


@pytest.mark.parametrize(
    "bench, protocol, path",
    [
        ("gsm8k", "full", "gsm8k/test.jsonl"),
        ("gsm8k", "eagle80", "eagle80/gsm8k.jsonl"),
        ("mt_bench", None, "mt_bench/question.jsonl"),
        ("humaneval", None, "humaneval/HumanEval.jsonl.gz"),
    ],
)
def test_a_missing_file_names_the_command(data, bench, protocol, path):
    with pytest.raises(downloads.MissingDataError, match=f"run `python -m eval.questions.downloads {path}`"):
        benchmarks.load(bench, protocol)


def test_paper263_puts_eight_examples_in_front(data, monkeypatch):
    put(data, monkeypatch, "gsm8k/test.jsonl", as_lines(NUMBERED))
    put(data, monkeypatch, "gsm8k/prompt_original.txt", b"Question: one?\nThe answer is 1.\n")
    found = benchmarks.load("gsm8k", "paper263")
    assert len(found.questions) == 263
    assert found.questions[4].turns == ("Question: one?\nThe answer is 1.\n\nQuestion: How much is 4 + 1?\n",)
    assert found.questions[4].reference == "#### 5"


def test_humaneval_is_asked_not_run(data, monkeypatch):
    task = {"task_id": "HumanEval/0", "prompt": "def f():\n", "canonical_solution": "    pass\n"}
    put(data, monkeypatch, "humaneval/HumanEval.jsonl.gz", gzip.compress(as_lines([task])))
    (question,) = benchmarks.load("humaneval").questions
    assert question.turns == ("Complete the code I provided.\n\ndef f():\n",) and question.category == "code"


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


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "no questions in it"),
        (b"not json\n", "line 1: not JSON"),
        (b"[1]\n", "is not a JSON object"),
        (b'{"text": "x"}\n', "expected `question`, `turns` or `prompt`"),
        (b'{"turns": []}\n', "line 1: turns is \\[\\]; expected a list of texts"),
        (b'{"question": "  "}\n', "line 1: question is '  '; expected a text that is not empty"),
        (b'{"question_id": 3, "turns": ["a"]}\n{"question_id": 3, "turns": ["b"]}\n', "question_id 3 appears twice"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    place = tmp_path / "bad.jsonl"
    place.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        benchmarks.load("gsm8k", question_file=str(place))
    assert "bad.jsonl" in str(caught.value)


@pytest.mark.parametrize(
    "arguments, message",
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


def test_unknown_data_file_lists_the_known():
    with pytest.raises(ValueError, match="'gsm8k/valid.jsonl' is not known; expected one of gsm8k/test.jsonl"):
        downloads.read("gsm8k/valid.jsonl")


def test_download_is_checked_and_kept(data, monkeypatch, tmp_path):
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


def test_unreachable_download_is_an_error_with_a_remedy(data, monkeypatch, tmp_path):
    item = downloads.KNOWN["gsm8k/test.jsonl"]._replace(url=(tmp_path / "nothing").as_uri())
    monkeypatch.setitem(downloads.KNOWN, item.path, item)
    with pytest.raises(downloads.MissingDataError, match="set HSD_DATA"):
        downloads.download(item.path)


def test_the_command_lists_and_downloads(data, monkeypatch, tmp_path, capsys):
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
