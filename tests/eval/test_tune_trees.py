"""The tuner end to end on a tiny random pair, and how it decides."""
import json
import random

import pytest
import torch

from eagle.checkpoints.load import save_head
from eagle.train.demo.corpus import train_tokenizer
from eagle.trees import TreeSettings, auto
from eval import adaptation, tune_trees
from eval import tree_search as search
from eval.tree_search import Candidate
from eval.trees import table as tree_table
from tests.eagle.tiny import LAYERS, tiny_head, tiny_target

WORDS = "seven ducks and three hens lay two eggs each day so how many in a week".split()


def questions(count: int) -> list[str]:
    chooser = random.Random(0)
    return [" ".join(chooser.choices(WORDS, k=8)) for _ in range(count)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Directory with target/, head/ and data/gsm8k/train.jsonl."""
    path = tmp_path_factory.mktemp("pair")
    texts = questions(60)
    tokenizer = train_tokenizer([[{"role": "user", "content": text}] for text in texts], 290)
    target = tiny_target(vocab_size=len(tokenizer), max_position_embeddings=256)
    target.config.eos_token_id = target.generation_config.eos_token_id = tokenizer.eos_token_id
    target.save_pretrained(path / "target")
    tokenizer.save_pretrained(path / "target")
    save_head(tiny_head(target, draft_vocab=len(tokenizer)), path / "head", LAYERS)
    (path / "data" / "gsm8k").mkdir(parents=True)
    lines = [json.dumps({"question": text, "answer": "#### 1"}) for text in texts]
    (path / "data" / "gsm8k" / "train.jsonl").write_text("\n".join(lines) + "\n")
    return path


def command(pair, output, *more):
    return ["--base-model-path", str(pair / "target"), "--ea-model-path", str(pair / "head"), "--data-dir",
            str(pair / "data"), "--num-questions", "2", "--states", "2", "--stride", "1", "--temperatures", "0.8",
            "--budgets", "4", "9", "--max-depth", "4", "--entropy-grid", "0.5", "1.0", "--entropy-questions", "2",
            "--entropy-tokens", "10", "--output", str(output), "--quiet", "--dtype", "float32", *more]


def test_it_writes_choices_that_auto_can_read(pair, tmp_path, capsys):
    output = tmp_path / "tuned.json"
    assert tune_trees.main(command(pair, output)) == 0
    written = json.loads(output.read_text())
    assert [(cell["temperature"], cell["nodes"]) for cell in written["cells"]] == [(0.8, 4), (0.8, 9)]
    for cell in written["cells"]:
        tree, settings = auto.choose(0.8, TreeSettings(cell["nodes"], 4), written["cells"])
        assert tree == cell["tree"] and settings.depth == cell["depth"]
        assert set(cell["expected"]) == {"hybrid", "topk", "chain"}
    assert written["pair"] == {"hidden_size": 32, "vocab_size": 290, "draft_vocab_size": 290}
    assert set(written["provenance"]) >= {"git", "date", "questions", "versions", "entropy"}
    assert str(pair) not in output.read_text(), "no machine's paths in what is shipped"
    shown = capsys.readouterr().out
    assert "| step | come here |" in shown and "nats" in shown and "nodes    9 topk" in shown


def test_it_resumes_and_measures_nothing_twice(pair, tmp_path, monkeypatch):
    output = tmp_path / "tuned.json"
    assert tune_trees.main(command(pair, output)) == 0
    first = json.loads(output.read_text())
    log = output.with_name("tuned.json.log.jsonl")
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])  # killed while writing the last piece
    measured = []
    original = search.contest
    monkeypatch.setattr(search, "contest", lambda *args: measured.append(1) or original(*args))
    assert tune_trees.main(command(pair, output)) == 0
    assert measured == [1]
    assert json.loads(output.read_text())["cells"] == first["cells"]


def test_only_held_out_training_questions_are_asked(pair):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pair / "target")
    options = tune_trees.build_parser().parse_args(command(pair, "x", "--num-questions", "9"))
    asked = [tokenizer.decode(ids) for ids in tune_trees.read_prompts(options, tokenizer)]
    held_out = questions(60)[::20]
    assert len(asked) == 3
    assert all(text in shown for text, shown in zip(held_out, asked))


@pytest.mark.parametrize("more, named", [(("--data-dir", "nowhere"), "nowhere"), (("--budgets", "1"), "--budgets 1")])
def test_mistakes_are_named(pair, tmp_path, capsys, more, named):
    assert tune_trees.main(command(pair, tmp_path / "tuned.json", *more)) == 2
    assert named in capsys.readouterr().err


OLD, NEW = Candidate("hybrid", 5), Candidate("hybrid", 6)


def test_noise_does_not_move_a_setting():
    assert search.better({(8, OLD): [1.0, 2.0, 3.0], (8, NEW): [3.0, 0.5, 3.0]}, 8, OLD) == OLD
    assert search.better({(8, OLD): [1.0, 2.0, 3.0], (8, NEW): [1.5, 2.4, 3.6]}, 8, OLD) == NEW
    assert search.better({(8, OLD): [1.0], (8, NEW): [9.0]}, 8, OLD) == OLD


def test_budgets_are_decided_apart():
    found = {(8, OLD): [1.0, 2.0], (8, NEW): [2.0, 3.1], (16, OLD): [5.0, 5.0], (16, NEW): [1.0, 1.1]}
    assert (search.better(found, 8, OLD), search.better(found, 16, OLD)) == (NEW, OLD)


def test_a_shared_setting_needs_two_standard_errors_over_all_budgets():
    start = {8: OLD, 16: OLD._replace(depth=7)}
    steady = {(n, c._replace(beta=b)): [1.0 + (b > 0.8) * g for g in (0.3, 0.4, 0.5, 0.4)]
              for n, c in start.items() for b in (0.8, 0.9)}
    assert search.pooled(steady, start, "beta") == 0.9
    noisy = {key: [v * w for v, w in zip(values, (1, 3, 0.1, 0.2))] if key[1].beta > 0.8 else values
             for key, values in steady.items()}
    assert search.pooled(noisy, start, "beta") is None
    halves = {key: values for key, values in steady.items() if key[0] == 8 or key[1].beta < 0.9}
    assert search.pooled(halves, start, "beta") is None, "measured for one budget only"


def test_the_temperature_of_an_entropy():
    measured = {0.5: 0.4, 0.7: 0.8, 1.0: 2.0}
    assert search.temperature_for(0.6, measured) == pytest.approx(0.6)
    assert search.temperature_for(3.0, measured) is None


def test_depths_stay_within_the_budget():
    assert search.depths_to_try(Candidate("hybrid", 3), 5, 7) == [1, 2, 4]
    assert search.depths_to_try(Candidate("hybrid", 7), 60, 7) == [5, 6]


def fake_nodes(sharpness_of_p: float, beta: float):
    """Quantities of a head whose overlap is 1 - (1 - beta) G at one power of q, and less at others."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(50, generator=generator)
    column = torch.ones(50, 2)
    made = {}
    for power in search.SHARPNESS:
        overlap = 1 - (1 - beta) * spread - abs(power - sharpness_of_p)
        made[power] = search.NodeQuantities(torch.ones(50), spread, spread, spread, spread, overlap, spread, spread,
                                            column, column)
    return [made]


def test_the_fit_finds_the_power_and_the_worth_of_a_draw():
    fitted = search.fit(fake_nodes(0.8, 0.6))
    assert fitted["sharpness"] == 0.8 and fitted["beta"] == pytest.approx(0.6, abs=0.01)


def table_command(pair, output, *more):
    return ["--bench", "gsm8k", "--protocol", "sample", "--num-questions", "2", "--base-model-path",
            str(pair / "target"), "--ea-model-path", str(pair / "head"), "--temperatures", "0", "1", "--budgets", "4",
            "8", "--depth", "3", "--states", "2", "--stride", "2", "--methods", "topk+token", "hybrid+token",
            "hybrid+hsd", "auto+hsd", "--output", str(output), "--quiet", "--dtype", "float32", *more]


def test_the_table_over_temperatures_and_budgets(pair, tmp_path):
    assert tree_table.main(table_command(pair, tmp_path)) == 0
    written = json.loads((tmp_path / "table.json").read_text())
    assert str(pair) not in (tmp_path / "table.json").read_text()
    cold, warm = written["tables"]["0"], written["tables"]["1"]
    assert cold["topk+token@8"]["expected"] == cold["hybrid+hsd@8"]["expected"] == cold["auto+hsd@8"]["expected"]
    assert warm["hybrid+hsd@8"]["expected"][0] >= 0 and warm["hybrid+hsd@8"]["states"] > 0
    assert (tmp_path / "table.png").read_bytes()[:4] == b"\x89PNG"
    text = (tmp_path / "table.md").read_text()
    assert text.count("| nodes | topk+token |") == 2 and "temperature 1:" in text


def test_the_table_resumes_and_refuses_other_settings(pair, tmp_path, monkeypatch, capsys):
    assert tree_table.main(table_command(pair, tmp_path)) == 0
    first = json.loads((tmp_path / "table.json").read_text())["tables"]
    path = tmp_path / "states_T1.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:9])  # killed in the last question
    asked = []
    original = tree_table.generator_of
    monkeypatch.setattr(tree_table, "generator_of", lambda seed, number: asked.append(number) or original(seed, number))
    assert tree_table.main(table_command(pair, tmp_path)) == 0
    assert asked == [1]
    assert json.loads((tmp_path / "table.json").read_text())["tables"] == first
    assert tree_table.main(table_command(pair, tmp_path, "--seed", "7")) == 2
    assert "other settings" in capsys.readouterr().err


def test_intervals_hold_the_mean_and_gains_are_ratios():
    values, base = [[1.0, 2.0], [3.0]], [[1.0, 1.0], [2.0]]
    mean, low, high = tree_table.interval(values)
    assert mean == 2.0 and low <= mean <= high
    assert tree_table.interval(values, base)[0] == pytest.approx(0.5)


def test_a_method_needs_a_tree_and_a_verifier(pair, tmp_path, capsys):
    assert tree_table.main(table_command(pair, tmp_path, "--methods", "hybrid")) == 2
    assert "tree+verifier" in capsys.readouterr().err


def test_temperature_0_is_tuned_on_its_own(pair, tmp_path):
    output = tmp_path / "tuned.json"
    given = command(pair, output)
    given[given.index("0.8")] = "0"
    assert tune_trees.main(given) == 0
    cells = json.loads(output.read_text())["cells"]
    assert {cell["temperature"] for cell in cells} == {0.0}
    assert all(cell["tree"] in ("topk", "chain") and set(cell["expected"]) == {"topk", "chain"} for cell in cells)
    chain = [{"temperature": 0.0, "nodes": 8, "tree": "chain", "depth": 7}]
    assert auto.choose(0.0, TreeSettings(8, 7), chain).tree == "chain"
    assert auto.choose(0.0, TreeSettings(8, 7)).tree == "topk"
    assert auto.choose(0.5, TreeSettings(8, 7), chain).tree == "hybrid"


def test_adaptation_within_a_request_is_measured_on_the_same_questions(pair, capsys):
    given = ["--base-model-path", str(pair / "target"), "--ea-model-path", str(pair / "head"), "--data-dir",
             str(pair / "data"), "--num-questions", "2", "--max-new-tokens", "8", "--quiet", "--dtype", "float32"]
    assert adaptation.main([*given, "--candidates", "3:2:1.5", "6:3:2"]) == 0
    shown = capsys.readouterr().out
    assert "of 2 requests" in shown and "| 6 | 3 | 2 |" in shown and "hindsight" in shown
    assert adaptation.main([*given, "--candidates", "three"]) == 2
    assert "NODES:DEPTH" in capsys.readouterr().err
