"""Settings from a file and the command line."""

import argparse
import json
import re

import pytest

from eagle.train.config import TrainConfig, add_arguments, from_arguments, from_dict


def parse(*arguments: str) -> TrainConfig:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return from_arguments(parser.parse_args(arguments))


def test_the_command_line_overrides_the_file(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"target": "t", "data": ["a.jsonl"], "lr": 1e-4, "taps": [1, 2, 3]}))
    config = parse("--config", str(path), "--lr", "2e-3", "--data", "b.jsonl", "c.jsonl", "--checkpointing", "true")
    assert (config.target, config.data, config.lr) == ("t", ["b.jsonl", "c.jsonl"], 2e-3)
    assert (config.taps, config.checkpointing) == ([1, 2, 3], True)


def test_a_name_that_looks_like_a_number_stays_a_name():
    assert parse("--output", "123").output == "123"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rate": 1}, ["learning_rate", "known", "lr"]),
        ({"optimizer": "adamw"}, ["unknown", "optimizer"]),
        ({"lr": float("nan")}, ["lr", "nan", "more than 0"]),
        ({"steps": 0}, ["steps", "0", "more than 0"]),
        ({"held_out_share": 0.0}, ["held_out_share", "0 .. 0.5"]),
        ({"precision": "fp8"}, ["fp8", "bfloat16"]),
        ({"compile": "yes"}, ["yes", "auto, on, off"]),
        ({"acceptance_weight": 2}, ["acceptance_weight", "0 .. 1"]),
        ({"acceptance_warmup": -1}, ["acceptance_warmup", "0 .. 1"]),
        ({"unroll": 0}, ["unroll"]),
        ({"lr": "fast"}, ["lr", "fast", "number"]),
        ({"data": "a.jsonl"}, ["data", "list"]),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        from_dict(settings)
    assert all(word in str(error.value) for word in words), error.value


def test_what_a_run_needs():
    with pytest.raises(ValueError, match="target, data, output"):
        TrainConfig().check_runnable()
    with pytest.raises(ValueError, match="steps, epochs, minutes"):
        TrainConfig(target="t", data=["d"], output="o").check_runnable()


def test_unreadable_file(tmp_path):
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        parse("--config", str(tmp_path / "none.json"))
