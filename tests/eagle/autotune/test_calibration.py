"""calibration.json: read back as written, refused for other weights, whole or absent."""

import json
import os
from dataclasses import replace

import pytest

from eagle.autotune.calibration import Calibration, Expected, Overlap, Table, digest_of
from eagle.autotune.candidates import Fit

TREES = (Expected("hybrid", 16, 6, 1.5, 0.1), Expected("chain", 4, 3, 0.9, 0.0))
FOUND = Calibration(
    "aa",
    "bb",
    digest_of([[1, 2]]),
    3,
    (Table(0.0, 8, TREES), Table(0.7, 9, TREES[:1], (Overlap(0.8, 0.46, -0.2),), Fit(0.5, 0.9))),
)
ON_A_GPU = tuple(replace(table, levels="equal", fit=Fit(0.3, 0.9)) for table in FOUND.tables)


def test_read_back_as_written(tmp_path):
    FOUND.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json", "aa", "bb", "ragged") == FOUND


def test_each_kind_of_levels_has_its_tables(tmp_path):
    path = tmp_path / "calibration.json"
    replace(FOUND, tables=FOUND.tables + ON_A_GPU).save(path)
    assert Calibration.load(path, "aa", "bb", "ragged") == FOUND
    assert Calibration.load(path, "aa", "bb", "equal") == replace(FOUND, tables=ON_A_GPU)


def test_a_file_without_levels_is_of_a_cpu(tmp_path):
    """As all of format 3 are."""
    path = tmp_path / "calibration.json"
    FOUND.save(path)
    value = json.loads(path.read_text())
    for table in value["tables"]:
        del table["levels"]
    path.write_text(json.dumps({**value, "format": 3}))
    assert Calibration.load(path, "aa", "bb", "ragged") == FOUND
    with pytest.raises(ValueError, match="its hybrid trees have ragged levels, and this device's have equal ones"):
        Calibration.load(path, "aa", "bb", "equal")


def test_the_table_of_the_nearest_temperature():
    assert FOUND.table(0.0) == FOUND.tables[0]
    assert FOUND.table(0.2) == FOUND.table(1.5) == FOUND.tables[1]


def test_the_most_that_is_accepted_at_any_temperature():
    warm = Table(1.0, 9, (Expected("hybrid", 16, 6, 1.7, 0.1), Expected("topk", 4, 2, 0.4, 0.0)))
    calibration = Calibration("aa", "bb", "", 0, (*FOUND.tables, warm))
    assert calibration.most_accepted(greedy=True) == {row.candidate: row.expected for row in TREES}
    hybrid, topk = (row.candidate for row in warm.trees)
    assert calibration.most_accepted(greedy=False) == {hybrid: 1.7, topk: 0.4}


@pytest.mark.parametrize(
    ("marks", "which"), [(("aa", "cc"), "head"), (("cc", "bb"), "target"), ((None, "bb"), "target")]
)
def test_other_weights_are_refused(tmp_path, marks, which):
    FOUND.save(tmp_path / "calibration.json")
    with pytest.raises(ValueError, match=f"calibration.json: it belongs to a {which} .*python -m eagle.calibrate"):
        Calibration.load(tmp_path / "calibration.json", *marks, "ragged")


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"format": 1}',
        '{"format": 2}',
        '{"format": 2, "target": "aa", "head": "bb", "prompts": "", "seed": 0, "tables": []}',
        '{"format": 2, "target": "aa", "head": "bb", "prompts": "", "seed": 0, "tables": [{"temperature": "x"}]}',
        '{"format": 2, "target": "aa", "head": "bb", "prompts": "", "seed": 0, '
        '"tables": [{"temperature": 1, "states": 1, "trees": [{"tree": "topk"}], "overlaps": []}]}',
    ],
)
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(ValueError, match="calibration.json"):
        Calibration.load(tmp_path / "calibration.json", "aa", "bb", "ragged")


BAD = [
    ({"beta": "0.7", "sharpness": 1.0}, "beta is '0.7', expected a number from 0 to 1"),
    ({"beta": 5, "sharpness": 1.0}, "beta is 5"),
    ({"beta": 0.7, "sharpness": 1e9}, "sharpness is 1000000000.0"),
    ({"beta": float("nan"), "sharpness": 1.0}, "beta is nan"),
    ({"beta": True, "sharpness": 1.0}, "beta is True"),
    ({"nodes": 2.5}, "nodes is 2.5, expected a whole number"),
    ({"depth": 0}, "depth is 0"),
    ({"tree": "oak"}, "tree is 'oak', expected one of"),
    ({"expected": -1.0}, "expected is -1.0"),
    ({"expected": float("inf")}, "expected is inf"),
    ({"standard_error": None}, "standard_error is None"),
    ({"temperature": "x"}, "temperature is 'x'"),
    ({"temperature": -0.5}, "temperature is -0.5"),
    ({"states": 0}, "states is 0"),
    ({"overlap": 1.5}, "overlap is 1.5"),
    ({"levels": "even"}, "levels is 'even', expected one of ragged, equal"),
]


@pytest.mark.parametrize(("changes", "words"), BAD)
def test_values_that_nobody_measured_are_refused(tmp_path, changes, words):
    path = tmp_path / "calibration.json"
    FOUND.save(path)
    value = json.loads(path.read_text())
    table = value["tables"][1]
    for part in (table, table["trees"][0], table["overlaps"][0], table["fit"]):
        part.update({name: changes[name] for name in changes.keys() & part.keys()})
    path.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=f"calibration.json: not a calibration .*{words}"):
        Calibration.load(path, "aa", "bb", "ragged")


def test_whole_or_not_at_all(tmp_path, monkeypatch):
    """A process that dies before the rename leaves the file that was there, and no other."""
    path = tmp_path / "calibration.json"
    FOUND.save(path)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        Calibration("cc", "dd", "", 0, FOUND.tables).save(path)
    assert Calibration.load(path, "aa", "bb", "ragged") == FOUND
    assert [entry.name for entry in tmp_path.iterdir()] == ["calibration.json"]


def test_it_says_what_it_is_in_json(tmp_path):
    FOUND.save(tmp_path / "calibration.json")
    value = json.loads((tmp_path / "calibration.json").read_text())
    assert value["format"] == 4 and value["target"] == "aa"
    assert value["tables"][1]["overlaps"] == [{"power": 0.8, "overlap": 0.46, "loss": -0.2}]
    assert value["tables"][1]["fit"] == {"beta": 0.5, "sharpness": 0.9}
    assert value["tables"][1]["levels"] == "ragged"
