"""`python -m eval.measure.table` on a tiny pair: written, resumed, claimed by one process."""

import json
import re

from eagle import jsonl
from eval.measure import ladder, table


def flags(pair_flags, output, *more):
    sizes = ["--num-questions", "2", "--budgets", "4", "6", "--depth", "2", "--states", "2", "--stride", "2"]
    sizes += ["--draws", "2"]
    methods = ["--methods", "topk+token", "hybrid+hsd", "--temperatures", "1", "--protocol", "sample", "--quiet"]
    return [*pair_flags, *sizes, *methods, "--output", str(output), *more]


def test_a_table_that_is_resumed(pair_flags, tmp_path, capsys):
    assert table.main(flags(pair_flags, tmp_path)) == 0
    written = (tmp_path / "table.md").read_text()
    title, _, header, *_ = written.splitlines()
    assert (title, header) == ("E[accepted]", "| nats | nodes | topk+token | hybrid+hsd |")
    assert re.search(r"temperature 1: \d\.\d\d nats \[.*\], 4 states of 2 questions\.", written)
    assert "Gain of hybrid+hsd over the others" in written and written in capsys.readouterr().out
    states = (tmp_path / "states_T1.jsonl").read_bytes()
    first, second, third = states.splitlines(keepends=True)
    (tmp_path / "states_T1.jsonl").write_bytes(first + second + third[:9])  # cut inside the last line
    assert table.main(flags(pair_flags, tmp_path)) == 0
    assert (tmp_path / "states_T1.jsonl").read_bytes() == states
    found = json.loads((tmp_path / "table.json").read_text())["found"]["1"]
    assert {method: list(cells) for method, cells in found["expected"].items()} == {
        "topk+token": ["4", "6"],
        "hybrid+hsd": ["4", "6"],
    }
    assert list(found["gains"]) == ["topk+token"]
    values = json.loads(second)
    assert len(values["nats"]) >= 2 * len(values["topk+token@4"]) - 1 and min(values["nats"]) > 0


def test_a_target_drafted_by_a_model_of_its_own(pair, tmp_path):
    target = str(pair / "target")
    assert table.main(flags(["--base-model-path", target, "--draft-model-path", target], tmp_path)) == 0
    assert json.loads((tmp_path / "table.json").read_text())["pair"].endswith(f" drafted by {pair.name}")


def test_other_settings_are_refused(pair_flags, tmp_path, capsys):
    assert table.main(flags(pair_flags, tmp_path)) == 0
    assert table.main(flags(pair_flags, tmp_path, "--seed", "5")) == 2
    assert "was measured with other settings" in capsys.readouterr().err


def test_every_file_is_checked_before_anything_is_measured(pair_flags, tmp_path, capsys):
    (tmp_path / "states_T1.jsonl").write_text('{"seed": 9}\n')
    assert table.main(flags(pair_flags, tmp_path, "--temperatures", "0", "1")) == 2
    assert "states_T1.jsonl was measured with other settings" in capsys.readouterr().err
    assert len((tmp_path / "states_T0.jsonl").read_bytes().splitlines()) == 1  # its first line, no question


def test_a_damaged_line_is_named(pair_flags, tmp_path, capsys):
    assert table.main(flags(pair_flags, tmp_path)) == 0
    place = tmp_path / "states_T1.jsonl"
    first, _, third = place.read_bytes().splitlines(keepends=True)
    place.write_bytes(first + b'{"topk+token@4": 3}\n' + third)
    assert table.main(flags(pair_flags, tmp_path)) == 2
    assert f"{place}, line 2: expected a list of numbers for each of" in capsys.readouterr().err


def test_two_runs_cannot_write_one_file(pair_flags, tmp_path, capsys):
    with jsonl.open_locked(tmp_path / "states_T1.jsonl"):
        assert table.main(flags(pair_flags, tmp_path)) == 2
    assert "another run is writing this file" in capsys.readouterr().err


def test_intervals_by_hand():
    assert ladder.interval([[1.0, 3.0], [2.0]])[0] == 2.0
    value, low, high = ladder.interval([[2.0]] * 5, [[1.0]] * 5)
    assert value == low == high == 1.0


def test_tables_by_hand():
    values = {"nats": [[0.5], [0.7]], "a@4": [[1.0], [1.0]], "b@4": [[1.5], [1.5]]}
    found = {"0.6": ladder.summarise(values, ["a", "b"], [4])}
    expected, gains = ladder.tables(found)
    assert expected.rows == [["0.60", "4", "1.00", "1.50"]]
    assert gains.title == "Gain of b over the others" and gains.rows == [["0.60", "4", "+50% [+50%, +50%]"]]
    values |= {"a@8": [[2.0], [2.0]], "b@8": [[2.0], [3.0]]}
    both = ladder.summarise(values, ["a", "b"], [4, 8])["gains"]["a"]
    assert [round(both[nodes][0], 4) for nodes in ("4", "8", "all")] == [0.5, 0.25, round(8 / 6 - 1, 4)]
    values |= {"a@4": [[0.0], [0.0]]}
    nothing = ladder.summarise(values, ["a", "b"], [4])
    assert nothing["gains"] == {"a": {"4": None}} and ladder.tables({"1": nothing})[1].rows[0][-1] == "–"
    (alone,) = ladder.tables({"1": ladder.summarise(values, ["a"], [4])})
    assert alone.header == ["nats", "nodes", "a"]
