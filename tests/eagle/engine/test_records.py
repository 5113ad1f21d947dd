"""The trees that `record_trees=True` gives, against what the engine verified and what the builders promise."""

import pytest
import torch

import hsd
from eagle.api.eagle_model import EagleModel
from eagle.drafters import CausalLMDrafter
from eagle.engine import step
from tests.eagle.tiny import VOCAB, tiny_head, tiny_target

PROMPT = torch.tensor([[7, 3, 22, 41, 5]])
TREES = ["hybrid", "rsd", "topk", "chain", "multi", "none"]


def with_head(draft_vocab=VOCAB):
    target = tiny_target(max_position_embeddings=256)
    return EagleModel.from_head(target, tiny_head(target, draft_vocab=draft_vocab))


def with_lm():
    return EagleModel(tiny_target(), CausalLMDrafter(tiny_target(seed=5), VOCAB))


def generated(engine, prompt=PROMPT, **settings):
    settings = {"nodes": 14, "depth": 4, "seed": 3, "max_new_tokens": 12, **settings}
    return engine.generate(prompt, return_dict_in_generate=True, **settings).rows


CASES = [(with_head, tree, 0.8) for tree in TREES] + [
    (with_head, "hybrid", 0.0),
    (with_lm, "hybrid", 0.8),
    (with_lm, "topk", 0.0),
    (lambda: with_head(40), "hybrid", 0.8),
]


@pytest.mark.parametrize(("make", "tree", "temperature"), CASES)
def test_a_tree_per_step_and_the_same_tokens(monkeypatch, make, tree, temperature):
    engine, verified, verify = make(), [], step.verify

    def spy(session, tree, logits):
        probs, kept = verify(session, tree, logits)
        verified.append((tree.row(0), probs[0], hsd.stopping_law(tree.row(0), probs[0], session.plan.verifier)))
        return probs, kept

    plain = generated(engine, tree=tree, temperature=temperature)[0]
    assert not plain.trees
    monkeypatch.setattr(step, "verify", spy)
    row = generated(engine, tree=tree, temperature=temperature, record_trees=True)[0]
    assert row.new_tokens == plain.new_tokens
    assert len(row.trees) == len(row.steps) == len(verified)
    emitted = [row.new_tokens[0]]
    for record, made, (drafts, probs, law) in zip(row.trees, row.steps, verified, strict=True):
        assert record.tokens == drafts.tokens.tolist()
        assert record.tokens[0] == emitted[-1]
        assert record.stop == pytest.approx(law.stop.tolist(), abs=1e-6)
        for node, parent in list(enumerate(record.parents))[1:]:
            assert record.p[node] == probs[parent, record.tokens[node]].item()
            assert record.d[node] == _drawn_with(drafts, node)
        emitted += [record.tokens[node] for node in record.path[1:]] + [record.bonus]
        assert sum(stop * depth for stop, depth in zip(record.stop, _depths(record))) == pytest.approx(
            made.expected_accepted, abs=1e-5
        )
    assert emitted[: len(row.new_tokens)] == row.new_tokens


def _drawn_with(drafts, node: int) -> float:
    proposal = drafts.proposal_rows[node]
    if proposal < 0:
        return 1.0
    token = drafts.tokens[node]
    column = token if drafts.support is None else (drafts.support == token).nonzero()[0, 0]
    return drafts.proposals[proposal, column].item()


def _depths(record) -> list[int]:
    depths = [0]
    for parent in record.parents[1:]:
        depths.append(depths[parent] + 1)
    return depths


@pytest.mark.parametrize("make", [with_head, lambda: with_head(40)], ids=["head", "small vocabulary"])
def test_q_is_the_drafter_s_whole_distribution(make):
    """A hybrid tree samples from q outside a node's top-k tokens: d = q / (1 - q(S)). A chain samples from q."""
    for record in generated(make(), tree="hybrid", temperature=1.0, record_trees=True)[0].trees:
        for node, parent in list(enumerate(record.parents))[1:]:
            if record.sampled[node]:
                siblings = [other for other, same in enumerate(record.parents) if same == parent]
                topk = sum(record.q[other] for other in siblings if not record.sampled[other])
                assert record.d[node] * (1 - topk) == pytest.approx(record.q[node], rel=1e-3)
    chains = generated(make(), tree="chain", temperature=0.7, record_trees=True)[0].trees
    assert any(record.q != record.q[:1] * len(record.q) for record in chains)
    for record in chains:
        assert record.d[1:] == pytest.approx(record.q[1:], rel=1e-5)


def test_top_k_children_are_the_likeliest_by_q():
    for record in generated(with_head(), tree="topk", temperature=1.0, record_trees=True)[0].trees:
        reach = [1.0]
        for parent, q in list(zip(record.parents, record.q))[1:]:
            reach.append(reach[parent] * q)
        first = [q for parent, q in zip(record.parents, record.q) if parent == 0]
        assert first == sorted(first, reverse=True)
        assert min(reach) > 0


def test_rows_of_a_batch_have_their_own_trees():
    rows = generated(with_head(), PROMPT.repeat(3, 1), tree="hybrid", temperature=1.0, record_trees=True)
    for row in rows:
        emitted = [row.new_tokens[0]]
        for record in row.trees:
            emitted += [record.tokens[node] for node in record.path[1:]] + [record.bonus]
        assert emitted[: len(row.new_tokens)] == row.new_tokens
        assert len(row.trees) == len(row.steps)


def test_recording_and_graphs():
    engine = with_head()
    with pytest.warns(UserWarning, match="record_trees=True"):
        generated(engine, record_trees=True, graphs=True)
    with pytest.raises(ValueError, match="record_trees=1: expected True or False"):
        generated(engine, record_trees=1)
