"""Pairs by name: where they are looked for, and what `--pair` fills in."""

import argparse
from pathlib import Path

import pytest

from eagle.checkpoints import pairs

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Three empty roots: given ($HSD_CHECKPOINTS), tree/checkpoints (a source tree), home/.cache/eagle3-hsd."""
    monkeypatch.setenv("HSD_CHECKPOINTS", str(tmp_path / "given"))
    monkeypatch.setattr(pairs, "SOURCE_TREE", tmp_path / "tree")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "pyproject.toml").touch()
    return tmp_path


def put(directory):
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")


def test_the_first_root_that_has_it_wins_part_by_part(place, monkeypatch):
    for root in ("home/.cache/eagle3-hsd", "tree/checkpoints", "given"):
        put(place / root / "smollm2-135m" / "target")
        assert pairs.find_target("smollm2-135m") == f"{root}/smollm2-135m/target"
    put(place / "tree/checkpoints/smollm2-135m/eagle3")
    pair = pairs.resolve_pair("smollm2-135m")
    assert pair == ("smollm2-135m", "given/smollm2-135m/target", "tree/checkpoints/smollm2-135m/eagle3")
    monkeypatch.delenv("HSD_CHECKPOINTS")
    assert pairs.find_target("smollm2-135m") == "tree/checkpoints/smollm2-135m/target"
    (place / "tree" / "pyproject.toml").unlink()  # an installed package: no source tree
    assert pairs.roots() == [place / "home/.cache/eagle3-hsd"]
    monkeypatch.chdir(place / "tree")
    assert pairs.find_target("smollm2-135m") == str(place / "home/.cache/eagle3-hsd/smollm2-135m/target")


def test_what_is_missing_is_named_with_its_command(place):
    with pytest.raises(ValueError, match="run `python -m eagle.checkpoints.fetch smollm2-135m`"):
        pairs.resolve_pair("smollm2-135m")
    put(place / "given/smollm2-135m/target")
    with pytest.raises(ValueError, match="no head at smollm2-135m/eagle3 in .*train_head.sh"):
        pairs.resolve_pair("smollm2-135m")
    with pytest.raises(ValueError, match="'llama' is not known; expected one of demo, smollm2-135m"):
        pairs.resolve_pair("llama")
    with pytest.raises(ValueError, match="--pair demo: no target .*HSD_CHECKPOINTS"):
        pairs.resolve_pair("demo")


def test_the_demo_pair_is_a_pair(monkeypatch):
    monkeypatch.delenv("HSD_CHECKPOINTS", raising=False)
    monkeypatch.chdir(REPOSITORY)
    assert pairs.resolve_pair("demo") == ("demo", "checkpoints/demo/target", "checkpoints/demo/eagle3")


def test_a_pair_without_a_head_is_enough_where_nothing_drafts(place):
    put(place / "given/smollm2-135m/target")
    options = argparse.Namespace(pair="smollm2-135m", base_model_path=None, ea_model_path=None)
    pairs.apply_pair(options, head=False)
    assert (options.base_model_path, options.ea_model_path) == ("given/smollm2-135m/target", None)
    with pytest.raises(ValueError, match="no head at smollm2-135m/eagle3"):
        pairs.apply_pair(options)


def parse(*arguments):
    parser = argparse.ArgumentParser()
    pairs.add_pair_argument(parser)
    for name in ("--base-model-path", "--ea-model-path", "--draft-model-path"):
        parser.add_argument(name)
    options = parser.parse_args(list(arguments))
    pairs.apply_pair(options)
    return options.base_model_path, options.ea_model_path, options.draft_model_path


def test_pair_fills_what_was_not_given(place):
    for part in ("target", "eagle3"):
        put(place / "given/smollm2-135m" / part)
    target, head = "given/smollm2-135m/target", "given/smollm2-135m/eagle3"
    assert parse("--pair", "smollm2-135m") == (target, head, None)
    assert parse("--pair", "smollm2-135m", "--ea-model-path", "x") == (target, "x", None)
    assert parse("--pair", "smollm2-135m", "--draft-model-path", "x") == (target, None, "x")
    assert parse("--base-model-path", "a", "--ea-model-path", "b") == ("a", "b", None)
    for arguments, message in (((), "no target was given; pass --pair"), (("--pair", "x"), "'x' is not known")):
        with pytest.raises(ValueError, match=message):
            parse(*arguments)
