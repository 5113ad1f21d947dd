"""`python -m eval.measure.paths`: cut drafts, what the released rule emits, and a resumed run with its tables
(`python -m eval.measure.paths_table`).
"""

import json

import pytest
import torch

import hsd
from eagle import EagleModel
from eagle.autotune.probe import StateProbe, TreeLimits
from eagle.drafters import CausalLMDrafter
from eagle.engine.distributions import SamplingParams
from eagle.trees import TreeSettings
from eval.measure import measures, paths, paths_table
from tests.eagle.tiny import VOCAB, tiny_target

PROMPT = [7, 3, 9, 1, 11, 12]


@pytest.fixture(scope="module")
def models():
    return tiny_target("qwen2", seed=1), tiny_target("qwen2", seed=2)


def after(model, tokens):
    return model(torch.tensor([PROMPT + tokens])).logits[0, -1]


@torch.inference_mode()
def test_a_cut_draft_is_a_shorter_draft_with_the_same_tokens(models):
    target, drafter = models
    settings, sampling = TreeSettings(13, 4, 3), SamplingParams(0.5)
    probe = StateProbe(
        EagleModel(target, CausalLMDrafter(drafter, VOCAB)), SamplingParams(1.0), TreeLimits.of([("multi", settings)])
    )
    probe.begin(PROMPT, 2, torch.Generator().manual_seed(4))
    (drafted,) = probe.score([probe.grow("multi", settings, draft_sampling=sampling)], sampling)
    smaller = measures.cut(drafted, 3, 2, 3)
    tree, long = smaller.tree, drafted.batch.tokens[0].tolist()
    assert (smaller.batch.depths[0].tolist(), tree.parents.tolist()) == ([0, 1, 1, 2, 2, 3, 3], [-1, 0, 0, 1, 2, 3, 4])
    assert tree.tokens.tolist() == [long[0], *long[1:3], *long[4:6], *long[7:9]]
    second_path = [tree.tokens.tolist()[place] for place in (0, 2, 4)]
    p, q = ((after(model, second_path) / 0.5).softmax(-1) for model in models)
    torch.testing.assert_close(smaller.target_probs[4], p, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(tree.proposals[int(tree.proposal_rows[6])], q, atol=1e-4, rtol=1e-3)
    hsd.stopping_law(tree, smaller.target_probs)  # its checks pass


@torch.inference_mode()
def test_a_state_is_the_same_whatever_was_read_before(models):
    target, drafter = models
    settings = TreeSettings(4, 3)
    model = EagleModel(target, CausalLMDrafter(drafter, VOCAB))
    found = []
    for before in ([], [PROMPT[:3]], [PROMPT[:5], [*PROMPT, 8, 9]]):
        probe = StateProbe(model, SamplingParams(1.0), TreeLimits.of([("chain", settings)]))
        for prompt in [*before, PROMPT]:
            probe.begin(prompt, 2, torch.Generator().manual_seed(4), reuse=True)
            drafted = probe.draft("chain", settings)
        found.append((drafted.batch.tokens.tolist(), drafted.expected("hsd")))
    assert probe.row.reused_tokens == 5  # all but the last
    assert [tokens for tokens, _ in found] == [found[0][0]] * 3
    assert [value for _, value in found] == pytest.approx([found[0][1]] * 3, abs=1e-4)


def test_nothing_behind_an_end_of_answer_token_is_counted():
    tree = hsd.DraftTree(torch.tensor([0, 4, 5, 6]), torch.tensor([-1, 0, 1, 2]), torch.tensor([-1] * 4))
    assert measures.counted(tree, frozenset({5})).tolist() == [0, 1, 2, 2]
    assert measures.counted(tree, frozenset()).tolist() == [0, 1, 2, 3]


def test_what_the_released_rule_emits_by_enumeration():
    """Two drafted tokens of four: the second token of the emitted text, over every draw of the second draft token."""
    torch.manual_seed(3)
    p, q = torch.rand(2, 3, 4, dtype=torch.float64).softmax(-1)
    p[0], q[0] = torch.tensor([0.55, 0.15, 0.15, 0.15]), torch.tensor([0.25] * 4)  # a ratio above 1, which is capped
    emitted = torch.zeros(4, dtype=torch.float64)
    for token in range(4):
        tree = hsd.DraftTree(torch.tensor([0, 0, token]), torch.tensor([-1, 0, 1]), torch.tensor([-1, 0, 1]), q[:2])
        law = hsd.stopping_law(tree, p, "published")
        emitted[token] += q[1, token] * law.stop[2]
        emitted += q[1, token] * law.stop[1] * law.residual(1)
    found = measures.emitted_at_full_draft(p[:2], q[:2], [0])
    assert found.kept == 1.0
    assert found.mass == pytest.approx(float(emitted.sum()))
    assert found.distance == pytest.approx(float((emitted / emitted.sum() - p[1]).abs().sum() / 2))
    assert found.distance > 0.01
    lossless = measures.emitted_at_full_draft(p[:2], q[:2], [1])  # a ratio below 1: nothing was capped
    assert lossless.distance == pytest.approx(0, abs=1e-12)
    assert lossless.mass == pytest.approx(lossless.kept)


def flags(pair, output, *more, questions=("--protocol", "sample")):
    model = ["--base-model-path", str(pair / "target"), "--draft-model-path", str(pair / "target")]
    sizes = ["--num-questions", "2", "--rows", "2", "--stride", "4", "--max-new-tokens", "12", "--depths", "2", "3"]
    several = [
        "--paths",
        "2",
        "3",
        "--paths-depth",
        "2",
        "--temperatures",
        "1",
        "0.5",
        "--quiet",
    ]
    return [*model, *sizes, *several, *questions, "--output", str(output), *more]


def test_a_run_that_is_resumed_and_its_table(pair, tmp_path, capsys):
    """The target as its own draft model: everything is accepted, whoever verifies."""
    assert paths.main(flags(pair, tmp_path)) == 0
    file, answers = tmp_path / "paths_T1.jsonl", (tmp_path / "answers.jsonl").read_bytes()
    first, second, third = file.read_bytes().splitlines(keepends=True)
    for state in json.loads(second)["states"]:
        assert state["overlap"] == pytest.approx(1, abs=1e-4)
        assert list(state["expected"]) == ["2", "3"]
        for values in state["expected"].values():  # all of them the whole draft, but for what follows an end
            assert list(values.values()) == pytest.approx([values["hsd"]] * 4, abs=1e-3)
    file.write_bytes(first + second + third[:9])
    assert paths.main(flags(pair, tmp_path)) == 0
    assert (tmp_path / "answers.jsonl").read_bytes() == answers
    again = [json.loads(line) for line in file.read_bytes().splitlines()[1:]]
    for before, now in zip(map(json.loads, (second, third)), again, strict=True):
        assert before["tokens"] == now["tokens"]
        for state, other in zip(before["states"], now["states"], strict=True):
            assert state["expected"]["3"] == pytest.approx(other["expected"]["3"], abs=1e-4)
    assert paths.main(flags(pair, tmp_path, "--seed", "5")) == 2
    assert "was measured with other settings" in capsys.readouterr().err
    assert paths_table.main([str(tmp_path)]) == 0
    tables = json.loads((tmp_path / "paths.json").read_text())["tables"]
    assert [row[0] for row in tables[0]["rows"]] == ["2", "3"]
    assert {row[0] for table in tables if table["title"].startswith("Several paths") for row in table["rows"]} == {
        "1",
        "2",
        "3",
    }


def test_questions_of_a_file(pair, tmp_path, capsys):
    """Longer contexts, say: the same question behind other text. Another file is another measurement."""
    for name in ("short", "long"):
        question = json.dumps({"question": "2 + 2?" * (4 if name == "long" else 1), "answer": "#### 4"})
        (tmp_path / f"{name}.jsonl").write_text(f"{question}\n{question}\n")
    short, long = (("--question-file", str(tmp_path / f"{name}.jsonl")) for name in ("short", "long"))
    assert paths.main(flags(pair, tmp_path / "out", questions=short)) == 0
    assert len((tmp_path / "out" / "answers.jsonl").read_text().splitlines()) == 3  # the settings, two answers
    assert paths.main(flags(pair, tmp_path / "out", questions=long)) == 2
    assert "was measured with other settings" in capsys.readouterr().err
    assert paths.main(flags(pair, tmp_path / "long", questions=long)) == 0
    capsys.readouterr()
    assert paths_table.main([str(tmp_path / "out"), str(tmp_path / "long")]) == 0
    (table,) = json.loads((tmp_path / "out" / "paths.json").read_text())["tables"]
    contexts = [float(row[1]) for row in table["rows"]]
    assert contexts[0] == contexts[1] < contexts[2] == contexts[3]  # two lengths of each
    assert table["title"] in capsys.readouterr().out
