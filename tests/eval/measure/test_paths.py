"""`python -m eval.measure.paths`: a forest's logits, cut drafts, what the released rule emits, and a resumed run with
its tables (`python -m eval.measure.paths_table`).
"""

import json

import pytest
import torch

import hsd
from eagle.engine.distributions import SamplingParams, SamplingTransform
from eagle.nn.target import CachedLM
from eval.measure import measures, paths, paths_table, states
from eval.measure.forest import Forest, ForestDrafter
from tests.eagle.tiny import VOCAB, tiny_target

PREFIX = [7, 3, 9, 1]


@pytest.fixture(scope="module")
def models():
    return tiny_target("qwen2", seed=1), tiny_target("qwen2", seed=2)


def two_forests(models, slots=80):
    target, drafter = (Forest(CachedLM(model), PREFIX, slots) for model in models)
    return states.Pair(target, ForestDrafter(drafter, VOCAB, VOCAB), frozenset({5}))


def after(model, tokens):
    return model(torch.tensor([PREFIX + tokens])).logits[0, -1]


@torch.inference_mode()
def test_a_node_sees_the_prefix_and_its_ancestors_alone(models):
    forest = Forest(CachedLM(models[0]), PREFIX, 20)
    #  11 - 12 - 13, 11 - 12 - 14, 21 - 22: added in two forwards, then the last branch forgotten and replaced
    first = forest.grow([11, 12, 13, 21, 22], [-1, 0, 1, -1, 3])
    second = forest.grow([14], [1])
    for logits, text in ((first[2], [11, 12, 13]), (first[4], [21, 22]), (second[0], [11, 12, 14])):
        torch.testing.assert_close(logits, after(models[0], text), atol=1e-4, rtol=1e-4)
    forest.truncate(3)
    torch.testing.assert_close(forest.chain([31, 32], 0), after(models[0], [11, 31, 32]), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="node 5 has the parent 6"):
        forest.grow([1], [6])
    with pytest.raises(ValueError, match="room for 20"):
        forest.grow([1] * 16, [-1] * 16)


@torch.inference_mode()
def test_a_cut_draft_is_a_shorter_draft_with_the_same_tokens(models):
    pair = two_forests(models)
    for forest in (pair.target, pair.drafter.forest):
        forest.chain([11, 12])
    places = [states.State(0, 1, 13, 1, 1, 5), states.State(1, 0, 14, 0, 0, 6)]
    batch = states.draft(pair, places, 1.0, 3, 4)
    assert torch.equal(states.draft(pair, places[1:], 1.0, 3, 4).tokens, batch.tokens[1:])  # whatever is beside it
    (_, drafts), _ = states.scored(pair, places, batch, 1.0, 3)
    assert pair.target.filled == pair.drafter.forest.filled == 2
    smaller = states.cut(drafts, 2, 3)
    tree = smaller.batch.row(0)
    assert (smaller.batch.depths[0].tolist(), tree.parents.tolist()) == ([0, 1, 1, 2, 2, 3, 3], [-1, 0, 0, 1, 2, 3, 4])
    long = batch.tokens[0].tolist()
    assert tree.tokens.tolist() == [long[0], *long[1:3], *long[4:6], *long[7:9]]
    second_path = [11, 12, 13, *(tree.tokens.tolist()[place] for place in (2, 4))]
    p, q = (after(model, second_path).softmax(-1) for model in models)
    torch.testing.assert_close(smaller.target_probs[0, 4], p, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(tree.proposals[int(tree.proposal_rows[6])], q, atol=1e-4, rtol=1e-3)
    hsd.stopping_law(tree, smaller.target_probs[0])  # its checks pass


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


@torch.inference_mode()
def test_answers_are_the_target_s_own_samples(models):
    pair, rows = two_forests(models), [[11, 12], [13]]
    probs = SamplingTransform(SamplingParams(1.0))
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    answers = states.sample_answers(pair, rows, probs, generators, 6)
    for row, answer, seed in zip(rows, answers, (1, 2), strict=True):
        generator, tokens = torch.Generator().manual_seed(seed), []
        while len(tokens) < 6 and 5 not in tokens:
            tokens.append(int(hsd.draw(probs(after(models[0], row + tokens))[None], generator)))
        assert answer.tokens == tokens
        assert answer.ended == (5 in tokens)


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
