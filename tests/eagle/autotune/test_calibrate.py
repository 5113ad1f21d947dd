"""`python -m eagle.calibrate` on a tiny pair."""

import json

import pytest

from eagle import EagleModel, calibrate
from eagle.autotune.calibration import NAME, Calibration
from eagle.autotune.candidates import BETAS, candidates_at
from tests.eval.conftest import pair  # noqa: F401


def chats(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_a_calibration_is_written_beside_the_head(pair, tmp_path, capsys):  # noqa: F811
    data = chats(
        tmp_path / "prompts.jsonl",
        {"messages": [{"role": "user", "content": "How many apples?"}, {"role": "assistant", "content": "3"}]},
        {"messages": [{"role": "user", "content": "How many pears are 2 and 3?"}]},
    )
    arguments = [str(pair / "target"), str(pair / "head"), "--temperatures", "1", "0", "--states", "2", "--data", data]
    assert calibrate.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "temperature 0, equal levels, 2 states" in printed and "| hybrid | 16 | 6 |" in printed
    model = EagleModel.from_pretrained(str(pair / "target"), str(pair / "head"))
    found = model.auto.calibration
    assert [table.temperature for table in found.tables] == [0.0, 1.0]
    assert [row.candidate for row in found.tables[1].trees] == candidates_at(1.0)
    assert found.tables[1].fit.beta in BETAS
    on_a_gpu = Calibration.load(pair / "head" / NAME, *model.auto.fingerprints, "equal")
    for ours, theirs in zip(found.tables, on_a_gpu.tables, strict=True):
        alike = [a == b for a, b in zip(ours.trees, theirs.trees, strict=True)]
        assert [a.is_fitted for a in candidates_at(ours.temperature)] >= [not one for one in alike]
    assert not all(alike)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"text": "x"}, "line 1.*expected messages with role and content"),
        ({"messages": [{"role": "user"}]}, "expected messages with role and content"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "a message before the first answer"),
        ({"messages": []}, "a message before the first answer"),
    ],
)
def test_bad_prompts_are_named(tmp_path, capsys, line, words):
    import re

    data = chats(tmp_path / "prompts.jsonl", line)
    assert calibrate.main(["nowhere", "nowhere", "--data", data]) == 2
    assert re.search(words, capsys.readouterr().err)
