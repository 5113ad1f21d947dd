"""Faults: damaged files, other weights, NaN, a full disk, an interrupt, two processes. Each has one clear line."""

import errno
import json
import math
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eagle import files, jsonl
from eval.__main__ import main
from eval.report import report
from eval.run import answers
from tests.eval.fake import FakeEngine
from tests.eval.helpers import FILES, arguments, evaluate, records, started

# --- two processes -------------------------------------------------------------------------------------------------


def test_fresh_leaves_a_running_run_alone(unbroken, tmp_path, capsys):
    running = started(tmp_path, 0.05)
    assert evaluate(tmp_path, "--fresh") == 2
    assert "another run is writing this file" in capsys.readouterr().err
    assert running.wait(300) == 0, running.stderr.read()
    assert [records(tmp_path / name) for name in FILES] == [records(unbroken / name) for name in FILES]


def test_a_file_removed_between_opening_and_locking_is_opened_again(tmp_path, monkeypatch):
    """Otherwise the lock would hold a file without a name, and everything written to it would be lost."""
    place, calls, lock = tmp_path / "a.jsonl", [], files.lock

    def late(file, message):
        if not calls:
            place.unlink()
        calls.append(message)
        lock(file, message)

    monkeypatch.setattr(files, "lock", late)
    with jsonl.open_locked(place) as file:
        jsonl.append(file, {"a": 1}, place)
    assert len(calls) == 2
    assert place.read_bytes() == b'{"a": 1}\n'


def test_a_run_that_never_began_leaves_no_files(tmp_path, capsys):
    assert main(arguments(tmp_path), load=lambda *_, **__: (_ for _ in ()).throw(OSError("no such model"))) == 2
    assert "no such model" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --- weights -------------------------------------------------------------------------------------------------------


def weights(folder: Path, value: float) -> str:
    folder.mkdir(exist_ok=True)
    save_file({"w": torch.full((50, 50), value)}, folder / "model.safetensors")
    return str(folder)


def run_on(target: str, head: str, output: Path) -> int:
    paths = {"target": target, "head": head}
    return main([paths.get(part, part) for part in arguments(output, "--num-questions", "2")], load=fake)


def fake(*_, **__):
    return FakeEngine()


def test_replaced_weights_are_noticed(tmp_path, capsys):
    target, head = weights(tmp_path / "target", 1.0), weights(tmp_path / "head", 2.0)
    assert run_on(target, head, tmp_path / "run") == 0
    weights(tmp_path / "head", 3.0)
    assert run_on(target, head, tmp_path / "run") == 2
    assert "the weights of ea_model_path are others than before" in capsys.readouterr().err
    weights(tmp_path / "head", 2.0)
    assert run_on(target, head, tmp_path / "run") == 0


def test_moved_weights_are_the_same(tmp_path):
    target, head = weights(tmp_path / "target", 1.0), weights(tmp_path / "head", 2.0)
    assert run_on(target, head, tmp_path / "run") == 0
    shutil.move(head, tmp_path / "elsewhere")
    assert run_on(target, str(tmp_path / "elsewhere"), tmp_path / "run") == 0
    assert run_on(target, str(tmp_path / "elsewhere"), tmp_path / "again") == 0
    found = report.write([str(tmp_path / "run" / FILES[0]), str(tmp_path / "again" / FILES[1])], tmp_path / "both")
    assert len(found) == 1


# --- NaN -----------------------------------------------------------------------------------------------------------


class NanEngine(FakeEngine):
    """E[accepted] of hybrid trees is NaN from the first or from the eighth answer on."""

    def __init__(self, healthy: int):
        super().__init__()
        self.healthy = healthy

    def generate(self, *args, tree, **kwargs):
        output = super().generate(*args, tree=tree, **kwargs)
        if tree != "hybrid":
            return output
        self.healthy -= 1
        if self.healthy >= 0:
            return output
        row = output.rows[0]
        broken = [step._replace(expected_accepted=math.nan) for step in row.steps]
        return output._replace(rows=[row._replace(steps=broken)])


def test_a_method_with_nan_is_left_out_and_the_others_answer(unbroken, tmp_path, capsys):
    assert main(arguments(tmp_path), load=lambda *_, **__: NanEngine(0)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hybrid+hsd is left out, it fails on the warm-up prompt 'How many")
    assert "ValueError: E[accepted] of step 0 is nan: the draft head's or the target's probabilities" in line
    assert [records(tmp_path / name) for name in FILES[:2]] == [records(unbroken / name) for name in FILES[:2]]
    (section,) = json.loads((tmp_path / "report.json").read_text())["sections"]
    assert [row["method"] for row in section["rows"]] == ["plain", "topk+token"]


def test_a_question_with_nan_is_named(tmp_path, capsys):
    assert main(arguments(tmp_path), load=lambda *_, **__: NanEngine(15)) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["hybrid+hsd, question 14", "hybrid+hsd, question 15"]
    assert all("E[accepted] of step 0 is nan" in line for line in lines)
    errors = [entry["error"] for entry in records(tmp_path / FILES[2])]
    assert errors[:14] == [None] * 14
    assert all("nan" in error for error in errors[14:])


def test_no_method_left_is_an_error(tmp_path, capsys):
    command = arguments(tmp_path, methods=("hybrid+hsd", "hybrid+token"))
    assert main(command, load=lambda *_, **__: NanEngine(0)) == 2
    assert "error: no method passes the warm-up: hybrid+hsd: ValueError" in capsys.readouterr().err


# --- damaged answer files ------------------------------------------------------------------------------------------


def edited(unbroken: Path, output: Path, change) -> Path:
    """A copy of a finished file whose second line was changed."""
    place = output / FILES[1]
    lines = (unbroken / FILES[1]).read_text().splitlines()
    entry = json.loads(lines[1])
    changed = change(entry)
    lines[1] = json.dumps(entry if changed is None else changed)
    place.write_text("\n".join(lines) + "\n")
    shutil.copy(answers.meta_path(unbroken / FILES[1]), answers.meta_path(place))
    return place


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.pop("question_id") and None, "expected `question_id`, a number"),
        (lambda entry: entry.update(question_id=None), "expected `question_id`, a number"),
        (lambda _: [1], "expected a JSON object"),
        (lambda _: "text", "expected a JSON object"),
        (lambda entry: entry.update(category=3), "expected `category`, a text"),
        (lambda entry: entry.update(reference=["x"]), "expected `reference`, a text or null"),
        (lambda entry: entry.update(measured=None), "expected `measured`, a list of objects"),
        (lambda entry: entry.update(passed="yes"), "expected `passed`, true or false"),
        (lambda entry: entry.update(choices=[]), "expected `choices`, a list of objects"),
        (lambda entry: entry["choices"][0].update(turns=[]), "a text per measured turn"),
        (lambda entry: entry["measured"][0].update(tokens="abc"), "in turn 0 `tokens`, a list of token ids"),
        (lambda entry: entry["measured"][0]["steps"].pop("emitted") and None, "in turn 0 `steps.emitted`, a list"),
        (lambda entry: entry["measured"][0]["steps"]["emitted"].append(1), "lists of one length in `steps`"),
        (lambda entry: entry["measured"][0].update(seconds=float("nan")), "`seconds`, a number"),
    ],
)
def test_a_damaged_line_is_named(unbroken, tmp_path, capsys, change, message):
    place = edited(unbroken, tmp_path, change)
    before = place.read_bytes()
    assert report.main([str(place)]) == 2
    said = capsys.readouterr().err
    assert f"{place}, line 2: " in said
    assert message in said
    assert evaluate(tmp_path, methods=("topk+token",)) == 2
    assert f"{place}, line 2: " in capsys.readouterr().err
    assert place.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("", "not JSON"),
        ("[]", "expected a JSON object with `settings`"),
        ('{"settings": {}}', "expected `sessions`"),
        ('{"settings": {}, "sessions": [3]}', "expected `sessions`"),
        ('{"settings": {}, "sessions": []}', "schema is None; expected 1 to 1"),
        ('{"settings": {}, "sessions": [], "schema": "1"}', "schema is '1'; expected 1 to 1"),
        ('{"settings": {}, "sessions": [], "schema": true}', "schema is True; expected 1 to 1"),
        ('{"settings": {}, "sessions": [], "schema": 2}', "expected 1 to 1, which this version reads; update"),
        ('{"settings": {}, "sessions": [], "schema": 1}', "method"),
    ],
)
def test_damaged_settings_are_named(unbroken, tmp_path, capsys, content, message):
    shutil.copy(unbroken / FILES[0], tmp_path / FILES[0])
    (tmp_path / "plain.meta.json").write_text(content)
    for command in (lambda: report.main([str(tmp_path)]), lambda: evaluate(tmp_path, methods=("plain",))):
        assert command() == 2
        said = capsys.readouterr().err
        assert "plain" in said
        assert message in said
    assert (tmp_path / FILES[0]).read_bytes() == (unbroken / FILES[0]).read_bytes()


# --- places that cannot be written ---------------------------------------------------------------------------------


def test_a_report_s_place_is_tried_before_the_work(unbroken, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(report, "plots", lambda _: pytest.fail("drawn before the place was tried"))
    assert report.main([str(unbroken), "--output", str(tmp_path / "file")]) == 2
    assert f"{tmp_path / 'file' / 'report.json'}: cannot be written" in capsys.readouterr().err


def test_an_answer_file_s_place_is_tried_before_the_models_are_loaded(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    command = arguments(tmp_path / "file")
    assert main(command, load=lambda *_, **__: pytest.fail("loaded before the place was tried")) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_a_full_disk_is_said_with_the_file(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="free space") as caught:
        jsonl.append(full, {"a": 1}, tmp_path / "answers.jsonl")
    assert caught.value.filename == str(tmp_path / "answers.jsonl")
    assert caught.value.errno == errno.ENOSPC


def test_a_run_on_a_full_disk_keeps_what_it_has(unbroken, tmp_path, capsys, monkeypatch):
    append, written = jsonl.append, []

    def full(file, record, path):
        if len(written) == 7:
            with files.naming(path):
                raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        append(file, record, path)

    monkeypatch.setattr(jsonl, "append", full)
    assert evaluate(tmp_path) == 2
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert ".jsonl" in said
    monkeypatch.undo()
    assert sum(len(records(tmp_path / name)) for name in FILES) == 7
    assert evaluate(tmp_path) == 0
    assert [records(tmp_path / name) for name in FILES] == [records(unbroken / name) for name in FILES]


# --- interrupts ----------------------------------------------------------------------------------------------------


def test_an_interrupt_says_what_is_kept_and_how_to_continue(unbroken, tmp_path):
    running = started(tmp_path, 0.4)
    running.send_signal(signal.SIGINT)
    assert running.wait(300) == 130
    said = running.stderr.read()
    kept = sum(len(records(tmp_path / name)) for name in FILES)
    assert f"interrupted. {kept} answers are kept in {tmp_path / FILES[0]}" in said
    assert "the same command (without --fresh) goes on from there" in said
    assert "Traceback" not in said
    assert evaluate(tmp_path) == 0
    assert [records(tmp_path / name) for name in FILES] == [records(unbroken / name) for name in FILES]
