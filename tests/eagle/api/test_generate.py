"""`EagleModel.generate` on tiny models: the target's greedy output, exact limits, batches, clear errors."""

import pytest
import torch
from transformers import TextStreamer

from eagle.api.eagle_model import EagleModel
from eagle.drafters import CausalLMDrafter
from eagle.nn.target import CachedLM
from eagle.trees import TREES
from tests.eagle.tiny import VOCAB, tiny_head, tiny_target

PROMPT = torch.tensor([[7, 3, 9, 1, 5, 20, 33, 4]])


@pytest.fixture(scope="module")
def target():
    return tiny_target()


@pytest.fixture(scope="module")
def model(target):
    return EagleModel.from_head(target, tiny_head(target))


def greedy(target, prompt, count):
    mask = torch.ones_like(prompt)  # or transformers takes the prompt's own zeros for padding
    return target.generate(prompt, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize(("nodes", "depth"), [(2, 1), (8, 3), (60, 7)])
def test_temperature_0_is_greedy_decoding(model, target, tree, nodes, depth):
    out = model.generate(PROMPT, 40, temperature=0, tree=tree, nodes=nodes, depth=depth)
    assert torch.equal(out, greedy(target, PROMPT, 40))


def test_a_good_drafter_is_accepted(target):
    """The target drafting for itself: every draft is accepted, at temperature 0 and 1."""
    model = EagleModel(target, CausalLMDrafter(tiny_target(), VOCAB))
    for temperature in (0, 1.0):
        out = model.generate(
            PROMPT, 40, temperature=temperature, tree="chain", depth=5, generator=seeded(), return_dict_in_generate=True
        ).rows[0]
        assert [step.accepted for step in out.steps[:-1]] == [5] * (len(out.steps) - 1)


@pytest.mark.parametrize("tree", TREES)
def test_ordinary_draft_model(target, tree):
    model = EagleModel(target, CausalLMDrafter(tiny_target(seed=3, num_hidden_layers=4), VOCAB))
    assert torch.equal(model.generate(PROMPT, 30, temperature=0, tree=tree), greedy(target, PROMPT, 30))


def test_draft_vocabulary_smaller_than_the_targets(target):
    model = EagleModel.from_head(target, tiny_head(target, draft_vocab=25))
    assert torch.equal(model.generate(PROMPT, 30, temperature=0, tree="topk"), greedy(target, PROMPT, 30))
    out = model.generate(PROMPT, 30, tree="hybrid", generator=seeded())
    assert out.shape == (1, PROMPT.shape[1] + 30)


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_max_new_tokens_is_exact(model, tree, count):
    out = model.generate(PROMPT, count, tree=tree, generator=seeded(), return_dict_in_generate=True).rows[0]
    assert len(out.new_tokens) == count and out.stop_reason == "length"
    assert 1 + sum(step.emitted for step in out.steps) == count


def test_nothing_after_eos(model):
    free = model.generate(PROMPT, 60, generator=seeded(), return_dict_in_generate=True).rows[0].new_tokens
    for eos in {free[0], free[5], free[20]}:
        out = model.generate(PROMPT, 60, eos_token_id=eos, generator=seeded(), return_dict_in_generate=True).rows[0]
        assert out.new_tokens == free[: free.index(eos) + 1]
        assert out.stop_reason == "eos"
        assert 1 + sum(step.emitted for step in out.steps) == len(out.new_tokens)


def test_several_stop_tokens(model):
    free = model.generate(PROMPT, 60, generator=seeded(), return_dict_in_generate=True).rows[0].new_tokens
    out = model.generate(
        PROMPT, 60, eos_token_id=[free[9], free[6]], generator=seeded(), return_dict_in_generate=True
    ).rows[0]
    assert out.new_tokens == free[: min(free.index(free[9]), free.index(free[6])) + 1]


@pytest.mark.parametrize("tree", ["none", "topk", "hybrid"])
def test_the_context_limit_ends_a_row_cleanly(model, target, tree):
    limit = target.config.max_position_embeddings
    prompt = torch.randint(0, VOCAB, (1, limit - 5), generator=seeded())
    out = model.generate(prompt, 40, temperature=0, tree=tree, return_dict_in_generate=True).rows[0]
    assert out.stop_reason == "context" and len(out.new_tokens) == 5
    assert torch.equal(torch.tensor([out.prompt + out.new_tokens]), greedy(target, prompt, 5))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tree", TREES)
def test_batched_rows_equal_single_rows(model, side, tree):
    lengths = [8, 3, 5]
    mask = torch.tensor([[1] * n + [0] * (8 - n) for n in lengths])
    ids = torch.randint(0, VOCAB, (3, 8), generator=seeded(4))
    if side == "left":
        mask = mask.flip(1)
    rows = model.generate(
        ids, 25, attention_mask=mask, temperature=0, tree=tree, eos_token_id=17, return_dict_in_generate=True
    ).rows
    for row, tokens, keep in zip(rows, ids, mask.bool()):
        alone = model.generate(
            tokens[keep][None], 25, temperature=0, tree=tree, eos_token_id=17, return_dict_in_generate=True
        ).rows[0]
        assert row.new_tokens == alone.new_tokens and row.stop_reason == alone.stop_reason


@pytest.mark.parametrize("drafter", ["head", "draft model", "none"])
def test_finished_rows_leave_the_batch(target, drafter, monkeypatch):
    """Row by row the tokens and steps of the row alone, in ever smaller forwards."""
    small = CausalLMDrafter(tiny_target(seed=3, num_hidden_layers=4), VOCAB)
    model = EagleModel(target, small) if drafter == "draft model" else EagleModel.from_head(target, tiny_head(target))
    tree = "none" if drafter == "none" else "topk"
    ids = torch.randint(0, VOCAB, (12, 6), generator=seeded(5))

    def rows_of(prompts):
        return model.generate(
            prompts, 60, temperature=0, tree=tree, eos_token_id=[3, 17, 44], return_dict_in_generate=True
        ).rows

    alone = [rows_of(prompt[None])[0] for prompt in ids]
    ends = sorted(len(row.steps) for row in alone)
    assert ends[2] < ends[8] < ends[-1], "the rows end together: choose other prompts"
    score, sizes = CachedLM.score_tree, []
    monkeypatch.setattr(
        CachedLM, "score_tree", lambda lm, tokens, *rest: sizes.append(len(tokens)) or score(lm, tokens, *rest)
    )
    for row, single in zip(rows_of(ids), alone, strict=True):
        assert row.new_tokens == single.new_tokens and row.stop_reason == single.stop_reason
        assert [step.accepted for step in row.steps] == [step.accepted for step in single.steps]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < len(ids) // 2
    assert rows_of(ids)[0].new_tokens == alone[0].new_tokens  # a whole batch again, in caches that hold fewer rows


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others(model):
    runs = [model.generate(PROMPT, 40, generator=seeded(seed)).tolist() for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_expected_accepted_is_the_mean_of_accepted(model):
    """Over many steps the noise-free statistic and the counted one agree: |z| < 4, false alarm 6e-5."""
    out = model.generate(PROMPT, 110, tree="chain", generator=seeded(), return_dict_in_generate=True).rows[0]
    steps = out.steps[:-1]
    for seed in range(1, 6):
        steps += (
            model.generate(PROMPT, 110, tree="chain", generator=seeded(seed), return_dict_in_generate=True)
            .rows[0]
            .steps[:-1]
        )
    gaps = torch.tensor([step.accepted - step.expected_accepted for step in steps])
    assert abs(gaps.mean() / (gaps.std() / len(gaps) ** 0.5)) < 4


def test_caches_are_reused(model):
    model.generate(PROMPT, 30)
    store = lambda: model._idle[0].target.cache.store
    first = store()
    model.generate(PROMPT[:, :5], 20)
    assert store() is first


def test_streamer_gets_prompt_and_tokens_in_order(model):
    class Collect(TextStreamer):
        def __init__(self):
            self.got, self.ended = [], False

        def put(self, value):
            self.got += value.flatten().tolist()

        def end(self):
            self.ended = True

    streamer = Collect()
    out = model.generate(PROMPT, 20, streamer=streamer, generator=seeded())
    assert streamer.got == out[0].tolist() and streamer.ended


BAD_CALLS = {
    "prompt 0 is empty": {"input_ids": torch.zeros(1, 0, dtype=torch.int64)},
    "token id 60: expected ids in 0 .. 59": {"input_ids": torch.tensor([[1, 60]])},
    "token id -1": {"input_ids": torch.tensor([[1, -1]])},
    "expected an integer tensor": {"input_ids": torch.tensor([[1.0, 2.0]])},
    "context is 128": {"input_ids": torch.ones(1, 128, dtype=torch.int64)},
    "max_new_tokens=0": {"max_new_tokens": 0},
    "temperature=-1": {"temperature": -1},
    "top_p=1.5": {"top_p": 1.5},
    "tree 'oak' is not known; known: none, topk": {"tree": "oak"},
    "oak": {"verifier": "oak"},
    "nodes=0": {"nodes": 0},
    "depth=0": {"depth": 0},
    "beta=2": {"beta": 2},
    "attention_mask": {"attention_mask": torch.ones(1, 3)},
}


@pytest.mark.parametrize("message", BAD_CALLS)
def test_bad_calls_say_what_is_wrong(model, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**{"input_ids": PROMPT, **BAD_CALLS[message]})


def test_mismatched_pairs_are_refused(target):
    with pytest.raises(ValueError, match="another target"):
        EagleModel.from_head(target, tiny_head(tiny_target(hidden_size=64)))
    with pytest.raises(ValueError, match="another target"):
        EagleModel.from_head(target, tiny_head(tiny_target(vocab_size=50), draft_vocab=50))
    with pytest.raises(ValueError, match="needs a drafter"):
        EagleModel(target).generate(PROMPT, 5, tree="topk")


def test_what_is_not_said_about_the_tree_suits_model_and_device(model, target):
    """No drafter: plain decoding; a CPU: 8 nodes, depth 4. One stated number leaves the other at its default."""
    assert torch.equal(EagleModel(target).generate(PROMPT, 5, temperature=0), greedy(target, PROMPT, 5))
    for given, size in (({}, (8, 4)), ({"tree": "topk"}, (8, 4)), ({"nodes": 20}, (20, 7)), ({"depth": 5}, (60, 5))):
        plan = model.generate(PROMPT, 3, temperature=0, return_dict_in_generate=True, **given).rows[0].plan
        assert (plan.nodes, plan.depth) == size
