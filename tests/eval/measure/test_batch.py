"""`python -m eval.measure.batch` on a tiny pair: every row is there and says what was measured."""

import json

import pytest

from eval.measure import batch
from eval.run.load_models import resolve_flags
from eval.run.methods import padded


def test_rows_by_batch_size_and_method(pair_flags, tmp_path, capsys):
    path = tmp_path / "batch.json"
    sizes = ["--batch", "1", "3", "--problems", "3", "--tokens", "6", "--nodes", "5", "--depth", "2", "--repeats", "1"]
    assert batch.main([*pair_flags, *sizes, "--output", str(path)]) == 0
    written = json.loads(path.read_text(encoding="utf-8"))
    rows = written["rows"]
    assert [(row["batch"], row["method"]) for row in rows] == [
        (1, "plain"),
        (1, "hybrid+hsd"),
        (3, "plain"),
        (3, "hybrid+hsd"),
    ]
    for row in rows:
        assert 0 < row["tokens"] <= 18
        assert row["tokens_per_second"] > 0
        assert row["speedup"] == pytest.approx(1) or row["method"] != "plain"
        assert row["tau"] == 1 if row["method"] == "plain" else 1 < row["tau"] <= 3
    assert written["settings"]["nodes"] == 5
    assert "git" in written["origin"]
    assert capsys.readouterr().out.count("| hybrid+hsd |") == 2


def test_sizes_below_one_are_refused(capsys):
    assert batch.main(["--batch", "4", "0"]) == 2
    assert "--batch 0: expected a whole number, 1 or more" in capsys.readouterr().err


def test_padding_is_on_the_right():
    ids, mask = padded([[5, 6, 7], [8]])
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_the_demo_pair_is_the_default():
    options = batch.build_parser().parse_args([])
    resolve_flags(options)
    assert options.base_model_path.endswith("checkpoints/demo/target")
    assert options.ea_model_path.endswith("checkpoints/demo/eagle3")


def test_methods_are_of_this_engine_and_plain_is_among_them(pair_flags, capsys):
    assert batch.main(["--methods", "hybrid+hsd"]) == 2
    assert "plain is missing" in capsys.readouterr().err
    assert batch.main([*pair_flags, "--methods", "plain", "transformers"]) == 2
    assert "--methods transformers: expected methods of this engine" in capsys.readouterr().err
