"""`tree="auto"` on the embedded pair and on tiny ones. Step times are made up: nothing here is timed."""

import itertools
import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from eagle import EagleModel
from eagle.autotune import auto, step_cost
from eagle.autotune.acceptance import Measured
from eagle.autotune.calibration import NAME, Calibration, Expected, Table
from eagle.autotune.candidates import CANDIDATES, PLAIN, Candidate, Fit, candidates_at
from eagle.autotune.step_cost import Times
from eagle.checkpoints.fingerprint import fingerprint
from eagle.trees import TreeSettings
from tests.eagle.tiny import tiny_head, tiny_target

DEMO = Path(__file__).parents[3] / "checkpoints" / "demo"
IDS = torch.tensor([[3, 1, 4, 1, 5]])


def cheap(model, batch, greedy, accepted, shown):
    """A machine on which a node costs a hundredth of a step: trees pay, unless a batch is large."""
    return Times({one: 10.0 + 0.1 * batch * one.nodes for one in [PLAIN, *CANDIDATES]}, 1.0)


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """No file outside of the test is read or written; the step times of `cheap`; brief calibrations are briefer."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(step_cost, "measure", cheap)
    monkeypatch.setattr(auto, "BRIEF_STATES", 3)


@pytest.fixture(scope="module")
def demo():
    return EagleModel.from_pretrained(str(DEMO / "target"), str(DEMO / "eagle3"))


@pytest.fixture
def tiny():
    target = tiny_target()
    return EagleModel.from_head(target, tiny_head(target))


def calibrated(model, *expected):
    """Give a model a calibration with these (tree, nodes, depth, E[accepted])."""
    rows = tuple(Expected(*one, 0.0) for one in expected)
    model.auto.calibration = Calibration(None, None, "", 0, (Table(0.0, 1, rows), Table(1.0, 1, rows)))
    return model


def test_the_committed_calibrations_belong_to_their_weights():
    for path in DEMO.parent.glob(f"*/eagle3/{NAME}"):
        target = path.parents[1] / "target"
        marks = json.loads(path.read_text())
        assert marks["head"] == fingerprint(path.parent)
        assert not target.is_dir() or marks["target"] == fingerprint(target)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_seed_and_the_record_give_the_same_tokens(demo, temperature):
    """On the embedded pair, whatever is calibrated for it."""
    calibrated(demo, ("topk", 8, 4, 2.0), ("hybrid", 16, 6, 3.0), ("chain", 8, 7, 2.0))
    ids = torch.tensor([demo.tokenizer("How many eggs are in 7 boxes?")["input_ids"]])
    given = {"max_new_tokens": 24, "temperature": temperature, "seed": 5, "return_dict_in_generate": True}
    [row] = demo.generate(ids, tree="auto", **given).rows
    assert row.plan[:4] == (("topk", "hsd", 8, 4) if temperature == 0 else ("hybrid", "hsd", 16, 6))
    [again] = demo.generate(ids, **row.plan._asdict(), **given).rows
    assert again.new_tokens == row.new_tokens
    assert again.plan == row.plan
    assert [step.nodes for step in again.steps] == [step.nodes for step in row.steps]


def test_every_generation_records_its_plan(tiny):
    *_, [row] = tiny.stream(IDS, 4, tree="chain", nodes=4, depth=3, verifier="token", seed=0)
    assert row.plan == ("chain", "token", 4, 3, TreeSettings().beta, TreeSettings().sharpness)


def test_a_head_that_guesses_leaves_plain_decoding(tiny, monkeypatch):
    """Random weights, on a machine where every node costs half a step."""
    slow = Times({one: 5.0 + 5.0 * one.nodes for one in [PLAIN, *CANDIDATES]}, 1.0)
    monkeypatch.setattr(step_cost, "measure", lambda *_: slow)
    monkeypatch.setattr(auto, "bundled_prompts", lambda _: [[3, 1, 4], [1, 5]])
    monkeypatch.setattr(auto, "BRIEF_STATES", 2)
    given = {"max_new_tokens": 12, "temperature": 1.0, "seed": 3, "return_dict_in_generate": True}
    [row] = tiny.generate(IDS, tree="auto", **given).rows
    assert row.plan[:4] == ("none", "hsd", 1, 1)
    assert row.new_tokens == tiny.generate(IDS, tree="none", **given).rows[0].new_tokens


def test_the_kind_can_be_given(tiny):
    calibrated(tiny, ("topk", 16, 6, 3.0), ("chain", 4, 3, 1.0))
    given = {"max_new_tokens": 4, "temperature": 1.0, "seed": 0, "return_dict_in_generate": True}
    plan = lambda **asked: tiny.generate(IDS, **asked, **given).rows[0].plan[:4]
    assert plan(tree="auto") == plan(tree="topk", nodes="auto") == ("topk", "hsd", 16, 6)
    assert plan(tree="chain", nodes="auto") == ("chain", "hsd", 4, 3)
    assert plan(tree="topk", nodes="auto", verifier="token") == ("topk", "token", 16, 6)
    with pytest.raises(ValueError, match="tree='hybrid' is not in the head's calibration"):
        plan(nodes="auto")
    assert plan(tree="none", nodes="auto")[0] == "none"


def test_hybrid_trees_take_what_suits_the_head(tiny):
    given = {"max_new_tokens": 4, "seed": 0, "return_dict_in_generate": True}
    fit = lambda **asked: tiny.generate(IDS, **asked, **given).rows[0].plan[4:]
    assert fit(temperature=1.0) == Fit()
    rows, (cold, warm) = (Expected("hybrid", 16, 6, 3.0, 0.0),), (Fit(0.3, 0.6), Fit(0.5, 0.9))
    tiny.auto.calibration = Calibration(
        None, None, "", 0, (Table(0.5, 1, rows, fit=cold), Table(1.0, 1, rows, fit=warm))
    )
    assert [fit(temperature=t) for t in (0.3, 0.6, 1.2)] == [cold, cold, warm]
    assert fit(temperature=1.0, beta=0.85) == (0.85, 0.9)
    assert fit(temperature=1.0, sharpness=0.7, beta=0.85) == (0.85, 0.7)
    assert fit(temperature=1.0, tree="topk") == Fit()


def test_at_temperature_0_hybrid_stands_for_topk(tiny):
    calibrated(tiny, ("topk", 16, 6, 3.0))
    assert tiny.auto.choose(tiny, 0.0, 1, "hybrid").candidate == Candidate("topk", 16, 6)


def test_a_batch_chooses_for_itself(tiny):
    calibrated(tiny, ("topk", 60, 7, 4.0), ("topk", 8, 4, 2.0))
    nodes = [
        tiny.generate(IDS.repeat(rows, 1), 2, tree="auto", return_dict_in_generate=True).rows[0].plan.nodes
        for rows in (1, 16)
    ]
    assert nodes == [60, 8]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tree": "auto", "nodes": 16}, "nodes=16: expected nothing: tree='auto' chooses it"),
        ({"tree": "auto", "depth": 4}, "depth=4"),
        ({"tree": "topk", "nodes": "auto", "width": 3}, "width=3: expected nothing: nodes='auto'"),
        ({"tree": "auto", "verifier": "token"}, "verifier='token': expected 'hsd'"),
        ({"tree": "hybrid", "nodes": "auto", "verifier": "token"}, "verifier='token'"),
        ({"tree": "multi", "nodes": "auto"}, "tree='multi'"),
        ({"tree": "topk", "nodes": "some"}, "nodes='some': expected a whole number"),
    ],
)
def test_what_auto_chooses_cannot_be_given(tiny, given, words):
    with pytest.raises(ValueError, match=words):
        tiny.generate(IDS, 4, **given)


def test_a_model_without_a_drafter_or_a_tokenizer(tiny):
    with pytest.raises(ValueError, match="needs a drafter"):
        EagleModel(tiny_target()).generate(IDS, 4, tree="auto")
    with pytest.raises(ValueError, match="without a tokenizer"):
        tiny.generate(IDS, 4, tree="auto")


def test_measuring_while_another_generation_is_unfinished_changes_nothing_for_it(tiny, monkeypatch):
    monkeypatch.setattr(auto, "bundled_prompts", lambda _: [[3, 1, 4]])
    monkeypatch.setattr(auto, "BRIEF_STATES", 1)
    want = tiny.generate(IDS, 8, tree="none", seed=0)[0, IDS.shape[1] :].tolist()
    steps = tiny.stream(IDS, 8, tree="none", seed=0)
    next(steps)
    tiny.generate(IDS, 4, tree="auto")
    *_, [row] = steps
    assert row.new_tokens == want


def found_everywhere(temperature, levels):
    """One token accepted, whatever the tree."""
    candidates = candidates_at(temperature)
    found = {(one.tree, settings): (1.0, 0.0) for one in candidates for settings in one.variants(1, levels)}
    return Measured(temperature, 1, found, ())


def test_without_a_calibration_a_brief_one_is_measured_once_and_kept(tmp_path, monkeypatch, copied):
    asked = []

    def measured(model, prompts, temperature, states, shown, levels):
        asked.append((temperature, states, len(prompts)))
        return found_everywhere(temperature, levels)

    monkeypatch.setattr(auto, "measure", measured)
    for _ in range(2):  # as in two processes
        model = EagleModel.from_pretrained(*copied)
        for temperature in (0.0, 0.9, 1.1):
            model.auto.choose(model, temperature)
    assert asked == [(0.0, auto.BRIEF_STATES, 16), (1.0, auto.BRIEF_STATES, 16)]
    model.auto.prepare(model)
    assert [temperature for temperature, *_ in asked[2:]] == [0.5, 0.7]
    assert {path.name.rsplit("-", 1)[0] for path in (tmp_path / "cache" / "eagle3-hsd").iterdir()} == {
        "calibration",
        "step-costs",
    }


def test_what_takes_too_long_is_taken_from_what_is_shipped(monkeypatch, copied):
    """A machine on which a minute is over at once: one warning, then the device's usual tree for every temperature."""

    def slow(model, prompts, temperature, states, shown, levels):
        for _ in shown(prompts):
            monkeypatch.setattr(auto.time, "monotonic", lambda: 1e12)

    model = EagleModel.from_pretrained(*copied)
    monkeypatch.setattr(auto, "measure", slow)
    with pytest.warns(UserWarning, match="more than 60 s here"):
        model.auto.prepare(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.auto.choose(model, 1.0).candidate == Candidate("hybrid", 8, 4)
        assert model.auto.choose(model, 0.0).candidate == Candidate("topk", 8, 4)
        assert model.auto.choose(model, 1.0, 1, "chain").candidate == Candidate("chain", 5, 4)
    assert auto.shipped("cuda", "auto", 1.0) == Candidate("hybrid", 60, 7)


@pytest.fixture
def copied(tmp_path):
    """The embedded pair with a head of its own, without a calibration."""
    shutil.copytree(DEMO / "eagle3", tmp_path / "head", ignore=lambda *_: [NAME])
    return str(DEMO / "target"), str(tmp_path / "head")


def test_a_calibration_of_another_head_is_a_warning_and_not_used(copied):
    rows = (Expected("topk", 16, 6, 3.0, 0.1),)
    found = Calibration(fingerprint(copied[0]), fingerprint(copied[1]), "", 0, (Table(1.0, 1, rows),))
    found.save(Path(copied[1], NAME))
    model = EagleModel.from_pretrained(*copied)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.auto.calibration == found
        assert model.auto.choose(model, 1.0).candidate == Candidate("topk", 16, 6)
    config = Path(copied[1], "config.json")
    config.write_text(config.read_text() + "\n")  # a change that only the fingerprint sees
    model = EagleModel.from_pretrained(*copied)
    with pytest.warns(UserWarning, match=r"belongs to a head with .* measured briefly"):
        assert model.auto.calibration is None


def test_a_real_step_is_measured(demo, monkeypatch):
    """The one measurement that is made: the candidates have times, whatever they are."""
    monkeypatch.undo()
    monkeypatch.setattr(step_cost, "ROUNDS", 1)
    monkeypatch.setattr(step_cost, "candidates_at", lambda _: [Candidate("hybrid", 4, 2), Candidate("chain", 3, 2)])
    times, _ = step_cost.measure(demo, 2, greedy=False, accepted={})
    assert PLAIN in times and all(ms > 0 for ms in times.values())
    steps = list(itertools.islice(step_cost.step_times(demo, PLAIN, [3, 1, 4], 1, 0.0), 10))
    assert len(steps) == step_cost.STEPS


def test_a_calibration_of_trees_that_the_device_does_not_grow_is_a_warning_and_not_used(copied, monkeypatch):
    """As on a GPU, with one that was made before both kinds of levels were measured."""
    rows = (Expected("hybrid", 16, 6, 3.0, 0.1),)
    found = Calibration(fingerprint(copied[0]), fingerprint(copied[1]), "", 0, (Table(1.0, 1, rows),))
    found.save(Path(copied[1], NAME))
    model, asked = EagleModel.from_pretrained(*copied), []
    assert model.auto.levels == "ragged"
    model.auto.levels = "equal"

    def measured(model, prompts, temperature, states, shown, levels):
        asked.append(levels)
        return found_everywhere(temperature, levels)

    monkeypatch.setattr(auto, "measure", measured)
    with pytest.warns(UserWarning, match="ragged levels, and this device's have equal ones.* measured briefly"):
        model.auto.choose(model, 1.0)
    assert asked == [["equal"]]
