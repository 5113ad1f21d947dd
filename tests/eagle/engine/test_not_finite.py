"""Draft distributions that are not finite are replaced and decoding stays exact; such target logits raise an error."""

import warnings

import pytest
import torch

import hsd
from eagle.api.eagle_model import EagleModel
from eagle.trees import Draft, TreeSettings, find_tree
from tests.eagle.tiny import tiny_head, tiny_target
from tests.eagle.toy import ReplayedDraft, Table, TableDrafter, emitted_law, every_outcome, joint_law, softmax

PROMPT = torch.tensor([[7, 3, 22, 41, 5]])
BAD_ROWS = {"nan": torch.nan, "inf": torch.inf, "no finite entry": -torch.inf}


class BrokenAfter(TableDrafter):
    """A drafter whose logits are not finite once the token 1 was drafted."""

    def __init__(self, table: Table, value: float):
        super().__init__(table)
        self.value = value

    def grow(self, parents, tokens):
        logits = super().grow(parents, tokens)
        for row, prefix in zip(logits[0], self.prefixes[0][-tokens.shape[1] :], strict=True):
            if 1 in prefix:
                row[0 if self.value != -torch.inf else slice(None)] = self.value
        return logits


class Given:
    """A drafter whose next logits are given."""

    support = None

    def __init__(self, logits: torch.Tensor):
        self.logits = logits

    def grow(self, parents, tokens):
        return self.logits


def draft_of(logits: torch.Tensor) -> Draft:
    """A draft whose frontier has these logits [B, n, Vd], behind a root with finite ones."""
    root = torch.zeros(len(logits), dtype=torch.int64)
    draft = Draft(Given(logits), root, torch.zeros_like(logits[:, 0]), softmax, torch.zeros(len(logits), 0))
    draft.grow(None, None)
    return draft


@pytest.mark.parametrize("value", BAD_ROWS.values(), ids=BAD_ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_that_is_not_finite_becomes_uniform_and_is_reported(value, dtype):
    logits = torch.randn(2, 3, 5, dtype=dtype)
    sound = draft_of(logits)
    assert torch.equal(sound.q, logits.softmax(-1)) and not sound.replaced().any()
    broken = logits.clone()
    broken[1, 2, 3 if value != -torch.inf else slice(None)] = value
    draft = draft_of(broken)
    found = draft.q
    assert torch.allclose(found[1, 2], torch.full((5,), 0.2, dtype=dtype))
    assert draft.replaced().tolist() == [False, True]
    assert torch.equal(found[0], logits[0].softmax(-1)) and torch.equal(found[1, :2], logits[1, :2].softmax(-1))
    ranked = draft_of(broken)
    assert torch.allclose(ranked.log_q[1, 2].exp(), torch.tensor(0.2)) and ranked.replaced().any()


def test_a_masked_token_is_no_fault():
    draft = draft_of(torch.tensor([[[0.0, -torch.inf, 1.0]]]))
    assert draft.q[0, 0, 1] == 0 and draft.log_q[0, 0, 1] == -torch.inf and not draft.replaced().any()


@pytest.mark.parametrize("value", BAD_ROWS.values(), ids=BAD_ROWS)
@pytest.mark.parametrize(
    ("name", "settings", "verifier"),
    [
        ("hybrid", TreeSettings(7, 3, 2, 0.6), "hsd"),
        ("hybrid", TreeSettings(7, 3, 2, 0.6), "token"),
        ("chain", TreeSettings(4, 3), "block"),
        ("chain", TreeSettings(4, 3), "hsd"),
        ("multi", TreeSettings(5, 2, 2), "token"),
        ("topk", TreeSettings(8, 3, 3), "hsd"),
    ],
)
def test_a_drafter_that_breaks_after_one_token_is_lossless(name, settings, verifier, value):
    target, builder = Table(3, seed=1), find_tree(name)

    def build(draws):
        draft = ReplayedDraft(Table(3, seed=2), draws, builder.draws(settings))
        draft.drafter = BrokenAfter(Table(3, seed=2), value)
        return builder.build(draft, settings).row(0)

    outcomes = list(every_outcome(build))
    assert sum(weight for weight, _ in outcomes) == pytest.approx(1, abs=1e-12)
    horizon = settings.depth + 1
    emitted, _ = emitted_law(target, outcomes, lambda tree, p: hsd.stopping_law(tree, p, verifier), horizon)
    assert (emitted - joint_law(target, horizon)).abs().max() < 1e-10


def nan_head() -> EagleModel:
    target = tiny_target()
    head = tiny_head(target)
    with torch.no_grad():
        head.norm.weight[0] = torch.nan
    return EagleModel.from_head(target, head)


@pytest.mark.parametrize(
    ("tree", "verifier"), [("hybrid", "hsd"), ("chain", "block"), ("multi", "token"), ("topk", "token")]
)
def test_a_nan_head_emits_possible_tokens_and_says_so_once(tree, verifier):
    engine = nan_head()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = engine.generate(
            PROMPT, max_new_tokens=20, temperature=1.0, top_k=3, tree=tree, verifier=verifier, nodes=9, depth=3,
            generator=torch.Generator().manual_seed(0), return_dict_in_generate=True,
        )  # fmt: skip
    assert sum("distribution that is not finite" in str(one.message) for one in caught) == 1
    row = out.rows[0]
    assert all(step.expected_accepted == step.expected_accepted for step in row.steps)
    with torch.no_grad():
        logits = engine.target.model(out.sequences).logits[0]
    for place, token in enumerate(row.new_tokens, PROMPT.shape[1] - 1):
        assert token in logits[place].topk(3).indices


def test_a_nan_head_at_temperature_0_gives_plain_decodings_tokens():
    engine = nan_head()
    with pytest.warns(UserWarning, match="not finite"):
        found = engine.generate(PROMPT, max_new_tokens=20, temperature=0.0, nodes=9, depth=3)
    assert found.tolist() == engine.generate(PROMPT, max_new_tokens=20, temperature=0.0, tree="none").tolist()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("tree", ["none", "topk", "hybrid"])
def test_target_logits_that_are_not_finite_raise(tree, temperature, value):
    target = tiny_target()
    engine = EagleModel.from_head(target, tiny_head(target))
    with torch.no_grad():
        target.lm_head.weight[17] = value  # one row of the output layer
    with pytest.raises(ValueError, match=r"target's logits of row 0 are NaN or infinite"):
        engine.generate(PROMPT, max_new_tokens=5, temperature=temperature, tree=tree, nodes=9, depth=3)


@pytest.mark.parametrize("tree", ["none", "topk", "chain", "multi", "rsd", "hybrid"])
def test_settings_that_overflow_raise_and_are_named(tree):
    """1e-40 is a legitimate penalty by its range; the logits divided by it are infinite in float32."""
    target = tiny_target()
    engine = EagleModel.from_head(target, tiny_head(target))
    with pytest.raises(ValueError, match="after the prompt under repetition_penalty=1e-40"):
        engine.generate(PROMPT, max_new_tokens=5, tree=tree, nodes=4, depth=3, repetition_penalty=1e-40)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("fault", [torch.nan, torch.inf, -torch.inf])
def test_a_processor_that_leaves_no_distribution_raises(temperature, fault):
    target = tiny_target()
    engine = EagleModel.from_head(target, tiny_head(target))
    bad = lambda ids, scores: scores + fault if ids.shape[1] > 8 else scores
    with pytest.raises(ValueError, match="row 0 are NaN or infinite in a step under logits_processor"):
        engine.generate(
            PROMPT, max_new_tokens=9, nodes=4, depth=2, temperature=temperature, logits_processor=[bad], seed=0
        )


def test_a_fault_in_the_middle_raises_and_the_next_generation_is_sound(monkeypatch):
    target = tiny_target()
    engine = EagleModel.from_head(target, tiny_head(target))
    settings = {"max_new_tokens": 24, "temperature": 0.0, "tree": "topk", "nodes": 9, "depth": 3}
    sound = engine.generate(PROMPT, **settings).tolist()
    embedding, seen = target.model.embed_tokens.weight, sound[0][12]
    kept = embedding[seen].clone()
    with torch.no_grad():
        embedding[seen] = torch.nan
    with pytest.raises(ValueError, match="in a step|after the prompt"):
        engine.generate(PROMPT, **settings)
    with torch.no_grad():
        embedding[seen] = kept
    assert engine.generate(PROMPT, **settings).tolist() == sound


def test_a_drafter_that_broke_once_is_sound_again_in_the_next_generation():
    target = tiny_target()
    head = tiny_head(target)
    engine, weight = EagleModel.from_head(target, head), head.norm.weight
    settings = {"max_new_tokens": 24, "nodes": 9, "depth": 3, "return_dict_in_generate": True}
    generate = lambda: engine.generate(PROMPT, generator=torch.Generator().manual_seed(0), **settings).rows[0]
    sound = [step.expected_accepted for step in generate().steps]
    kept = weight[0].item()
    for value in (torch.nan, kept):
        with torch.no_grad():
            weight[0] = value
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if value != kept else "error", UserWarning)
            row = generate()
    assert [step.expected_accepted for step in row.steps] == sound


def test_finished_rows_are_not_looked_at():
    """A row that has ended goes on beside the others; what it computes does not matter."""
    target = tiny_target()
    engine = EagleModel.from_head(target, tiny_head(target))
    prompts = torch.tensor([[7, 3, 22], [9, 1, 4]])
    plain = engine.generate(prompts, max_new_tokens=30, temperature=0.0, tree="none").tolist()
    end = plain[0][3]  # row 0 ends with its first token
    assert end not in plain[1][3:]
    with torch.no_grad():
        target.model.embed_tokens.weight[end] = torch.nan
    found = engine.generate(
        prompts, max_new_tokens=30, temperature=0.0, tree="none", eos_token_id=end, return_dict_in_generate=True
    )
    assert found.rows[0].new_tokens == [end] and found.rows[1].new_tokens == plain[1][3:]
