"""The report: written whole, complete, readable by FastChat, and fit to look at."""

import ast
import glob
import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from eagle import files as storage
from eval.report import report, summary, tables
from eval.run.answers import Answers
from tests.eval.helpers import entry, evaluate, turn

SETTINGS = {
    "bench": "gsm8k",
    "protocol": "eagle80",
    "temperature": 1.0,
    "num_questions": 2,
    "seed": 0,
    "base_model_path": "meta-llama/Llama-3.1-8B-Instruct",
    "draft_model_path": None,
    "ea_model_path": "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B",
}


def answers(name, *entries, **changes):
    tree, _, verifier = name.partition("+")
    own = {"method": name, "tree": "none" if name == "plain" else tree, "verifier": verifier, "lossy": False}
    return Answers(name, {**SETTINGS, **own, **changes}, [], list(entries))


@pytest.fixture(scope="module")
def mt_bench(tmp_path_factory):
    """A finished two-turn run with categories, a failure and a runaway."""
    output = tmp_path_factory.mktemp("mt_bench")
    questions = [
        {"question_id": 81 + i, "category": category, "turns": [f"tell {i}", "again"]}
        for i, category in enumerate(["writing", "math", "writing", "math", "coding", "coding"])
    ]
    questions[3]["turns"][1] = "explode"
    place = output / "questions.json"
    place.write_text("".join(json.dumps(question) + "\n" for question in questions))
    assert (
        evaluate(
            output,
            "--question-file",
            str(place),
            "--max-new-tokens",
            "25",
            methods=("plain", "topk+token", "topk+hsd", "hybrid+token", "hybrid+hsd"),
        )
        == 0
    )
    return output


def test_every_file_is_there_and_whole(mt_bench):
    names = {path.name for path in mt_bench.iterdir()}
    assert {
        "report.md",
        "report.json",
        "report.html",
        "overview.png",
        "acceptance.png",
        "distribution.png",
        "step_time.png",
        "categories.png",
    } <= names
    assert not [name for name in names if name.endswith(".tmp")]
    assert (mt_bench / "overview.png").read_bytes().startswith(b"\x89PNG")


def test_markdown_says_what_happened(mt_bench):
    text = (mt_bench / "report.md").read_text()
    for part in (
        "tau by category",
        "Runaway answers",
        "RuntimeError: out of memory, or so",
        "hybrid+hsd - topk+hsd",
        "git commit",
        "Milliseconds per step",
        "Acceptance by depth",
    ):
        assert part in text
    assert "| hybrid+hsd | " in text


def test_the_page_needs_nothing_else(mt_bench):
    page = (mt_bench / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    for outside in ("http://", "https://", "<script", "<link", "url("):
        assert outside not in page


def test_json_holds_the_numbers(mt_bench):
    (section,) = json.loads((mt_bench / "report.json").read_text())["sections"]
    rows = {row["method"]: row for row in section["rows"]}
    assert rows["plain"]["tau"][0] == 1.0
    assert rows["plain"]["n"] == 5
    assert rows["hybrid+hsd"]["errors"] == {"84": "RuntimeError: out of memory, or so"}
    assert section["sessions"][0]["versions"]["torch"]
    assert {(pair["first"], pair["second"]) for pair in section["pairs"]} == {
        ("topk+hsd", "topk+token"),
        ("hybrid+token", "topk+token"),
        ("hybrid+hsd", "topk+hsd"),
        ("hybrid+hsd", "hybrid+token"),
        ("hybrid+hsd", "topk+token"),
    }
    for pair in section["pairs"]:
        first, second = (rows[pair[which]]["expected"][0] for which in ("first", "second"))
        if pair["n"] == rows[pair["first"]]["n"] == rows[pair["second"]]["n"]:
            assert pair["expected_gain"][0] == pytest.approx(first / second - 1)


def test_report_command_equals_the_run_s_own_report(mt_bench, tmp_path, capsys):
    assert report.main([str(mt_bench), "--output", str(tmp_path)]) == 0
    assert (tmp_path / "report.md").read_text() == (mt_bench / "report.md").read_text()
    assert (tmp_path / "overview.png").read_bytes() == (mt_bench / "overview.png").read_bytes()
    assert report.main([str(tmp_path / "nothing")]) == 2
    assert "no answer file there" in capsys.readouterr().err


def test_runs_with_other_settings_are_not_compared(tmp_path):
    for seed in ("0", "1"):
        assert evaluate(tmp_path / seed, "--seed", seed, "--num-questions", "2") == 0
    found = report.write([str(tmp_path / "0"), str(tmp_path / "1")], tmp_path / "both")
    assert [len(section["rows"]) for section in found] == [3, 3]
    assert len(list((tmp_path / "both").glob("*overview.png"))) == 2


def test_published_numbers_stand_beside_their_own_setting_only():
    (section,) = summary.sections([answers("topk+token", entry(0, turn([2])))])
    assert "accepted 3.22" in "".join(tables.headline(section).rows[0])
    (section,) = summary.sections(
        [
            answers(
                "topk+token",
                entry(0, turn([2])),
                base_model_path="checkpoints/demo/target",
                ea_model_path="checkpoints/demo/eagle3",
            )
        ]
    )
    assert section["published"] == []
    assert "published" not in tables.headline(section).header


def test_numbers_of_a_drafter_stand_beside_that_drafter():
    paths = {"base_model_path": "Qwen/Qwen3-4B", "bench": "mt_bench", "protocol": "full"}
    for head, text in (("deepseek-ai/eagle3_qwen3_4b_ttt7", "tau 2.39"), ("AngelSlim/Qwen3-4B_eagle3", "–")):
        run = answers("chain+token", entry(0, turn([2])), ea_model_path=head, **paths)
        (section,) = summary.sections([run])
        assert tables.published_text(section, section["rows"][0]) == text


def test_published_numbers_all_have_a_source_and_a_definition():
    for row in json.loads(summary.PUBLISHED.read_text()):
        assert row["source"], row
        assert row["definition"], row
        assert isinstance(row["confirmed"], bool), row
        assert row["method"] in summary.METHODS


def test_greedy_rows_say_whether_the_tokens_are_plain_s():
    same, other = entry(0, turn([2])), entry(1, turn([2]))
    (section,) = summary.sections(
        [
            answers("plain", same, entry(1, turn([0])), temperature=0.0),
            answers("topk+token", same, other, temperature=0.0),
        ]
    )
    table = tables.headline(section)
    assert table.rows[1][table.header.index("same tokens as plain")] == "1 of 2"


def test_one_method_twice_is_refused():
    with pytest.raises(ValueError, match="'plain' appears twice"):
        summary.sections([answers("plain"), answers("plain")])


def test_writing_whole_leaves_the_old_file_on_failure(tmp_path, monkeypatch):
    place = tmp_path / "report.md"
    storage.write_whole(place, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        storage.write_whole(place, "new")
    assert place.read_text() == "old"


def fastchat_loader():
    """`fastchat.llm_judge.common.load_model_answers`, taken from its installed source.

    Importing that module would need openai, anthropic and fastchat.model, none of which a reader of answers uses.
    """
    package = importlib.util.find_spec("fastchat")
    if package is None:
        pytest.skip("fschat is not installed")
    source = (Path(package.submodule_search_locations[0]) / "llm_judge" / "common.py").read_text()
    function = next(
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "load_model_answers"
    )
    scope = {"glob": glob, "os": os, "json": json}
    exec(compile(ast.Module([function], []), "fastchat", "exec"), scope)
    return scope["load_model_answers"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")  # in its source
def test_fastchat_reads_the_answers(mt_bench):
    found = fastchat_loader()(str(mt_bench / "model_answer"))
    assert set(found) == {"plain", "topk+token", "topk+hsd", "hybrid+token", "hybrid+hsd"}
    assert sorted(found["topk+hsd"]) == [81, 82, 83, 85, 86]
    one = found["topk+hsd"][81]
    assert {"question_id", "answer_id", "model_id", "choices", "tstamp"} <= set(one)
    assert one["choices"][0]["index"] == 0
    assert len(one["choices"][0]["turns"]) == 2


@pytest.mark.browser
def test_the_page_in_a_browser(mt_bench, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    picture = tmp_path / "page.png"
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--window-size=1240,3200",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--screenshot={picture}",
        (mt_bench / "report.html").resolve().as_uri(),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    pixels = pytest.importorskip("matplotlib.pyplot").imread(picture)
    assert pixels.shape[:2] == (3200, 1240)
    colours = {tuple((pixel * 255).astype(int)[:3]) for pixel in pixels[::7, ::7].reshape(-1, pixels.shape[2])}
    assert len(colours) > 50  # text, tables and all the plots' colours; a blank or broken page has a handful
