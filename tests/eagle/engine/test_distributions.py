"""Distributions under sampling settings, as `transformers` makes them, and what looks at each node's own prefix."""

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList, TopPLogitsWarper

from eagle.api.eagle_model import EagleModel
from eagle.engine import distributions
from eagle.engine.distributions import (
    LIKELIEST,
    Prefixes,
    RowDistributions,
    SamplingParams,
    SamplingTransform,
    node_prefixes,
    nucleus,
    row_prefixes,
)
from tests.eagle.tiny import tiny_head, tiny_target

LOGITS = torch.tensor([[2.0, 1.0, 0.5, -1.0, -3.0]])


def test_plain_and_tempered():
    assert torch.allclose(SamplingTransform(SamplingParams())(LOGITS), LOGITS.softmax(-1))
    assert torch.allclose(SamplingTransform(SamplingParams(0.5))(LOGITS), (2 * LOGITS).softmax(-1))
    assert SamplingTransform(SamplingParams(0))(LOGITS).tolist() == [[1, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        (SamplingParams(top_k=2), 2),
        (SamplingParams(top_p=0.8), 2),
        (SamplingParams(top_p=0), 1),
        (SamplingParams(), 5),
        (SamplingParams(min_p=0.3), 2),
    ],
)
def test_truncation(settings, kept):
    probs = SamplingTransform(settings)(LOGITS)
    assert int((probs > 0).sum()) == kept and probs.sum().item() == pytest.approx(1)


def by_threshold(rows, top_p):
    """As on a GPU, where nothing may wait for the device."""
    return distributions._by_threshold(rows, torch.full((len(rows), 1), 1 - top_p))


def by_likeliest(rows, top_p):
    """As on a CPU."""
    return nucleus(rows[None], torch.full((1, 1, 1), 1 - top_p))[0]


@pytest.mark.parametrize("found_by", [by_threshold, by_likeliest])
@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.9, 0.999, 1 - 1e-6])
def test_the_nucleus_is_that_of_transformers(top_p, found_by):
    """Rows that are sure, flat (wider than what is looked at first), masked, tied, or not finite."""
    generator = torch.Generator().manual_seed(4)
    scales = torch.tensor([8.0, 3, 1, 0.01, 3, 3, 3, 3, 1])[:, None]
    rows = torch.randn(9, 3 * LIKELIEST, generator=generator) * scales
    rows[4, 40:] = -torch.inf
    rows[5, 3] = torch.nan
    rows[6, 7] = torch.inf
    rows[7:] = (8 * rows[7:]).round() / 8  # as bfloat16 has them: dozens are equal
    found, wanted = found_by(rows, top_p), TopPLogitsWarper(top_p)(None, rows)
    assert torch.equal(found.softmax(-1).isnan(), wanted.softmax(-1).isnan())
    assert torch.equal(found[:5], wanted[:5])
    for one, other in zip(found[7:], wanted[7:]):  # which of the equal ones are kept is left to the sort
        assert torch.equal(one.sort().values, other.sort().values)
    kept = (found[:5] > -torch.inf).sum(-1)
    assert top_p < 0.9 or (kept.min() < LIKELIEST < kept.max())


@pytest.mark.parametrize("found_by", [by_threshold, by_likeliest])
@pytest.mark.parametrize(("top_p", "kept"), [(0.0, 1), (2**-12, 1), (0.25, 512), (0.5, 1024), (0.75 + 2**-12, 1537)])
def test_of_equally_likely_tokens_as_many_are_kept_as_have_the_mass(top_p, kept, found_by):
    """2048 of them: masses are exact numbers. Of all zeros, positive and negative ones are equal."""
    rows = torch.zeros(3, 4096).masked_fill(torch.arange(4096) % 2 == 1, -torch.inf)
    rows[1] += 3.7
    rows[2, :2048:2] = -0.0
    found = found_by(rows, top_p)
    assert ((found > -torch.inf).sum(-1) == kept).all()


def test_of_rows_without_top_p_nothing_is_left_out():
    rows, rest = torch.randn(2, 3, 2 * LIKELIEST), torch.tensor([0.0, 0.4])[:, None, None]
    for found in (distributions._by_threshold(rows, rest), nucleus(rows, rest), nucleus(rows, rest, exact=False)):
        assert torch.equal(found[0], rows[0])
    assert torch.equal(nucleus(rows, rest)[1], by_threshold(rows[1], 0.6))


def test_a_draft_distribution_is_cut_where_its_likeliest_tokens_have_the_mass():
    rows = torch.randn(1, 2, 3 * LIKELIEST, generator=torch.Generator().manual_seed(0))
    rows[:, 0] *= 6
    rest = torch.full((1, 1, 1), 0.1)
    sure, flat = nucleus(rows, rest, exact=False)[0]
    assert torch.equal(sure, nucleus(rows, rest)[0, 0]) and (sure == -torch.inf).any()
    assert torch.equal(flat, rows[0, 1])


def test_penalty_needs_the_prefix():
    with pytest.raises(ValueError, match="pass prefixes"):
        SamplingTransform(SamplingParams(repetition_penalty=1.2))(LOGITS)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repetition_penalty"])
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name}=.*: expected"):
        SamplingParams(**{name: value})


SETTINGS = [
    {"temperature": 0.7, "top_k": 4, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.3},
    {"top_k": 3, "top_p": 0.6},
    {"temperature": 1.6, "min_p": 0.2},
    {"top_p": 0.0},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("custom", [False, True])
def test_the_processors_of_transformers_in_their_order(settings, custom):
    target = tiny_target()
    config = GenerationConfig(do_sample=True, **settings)
    processors = [halve_even] if custom else []
    theirs = target._get_logits_processor(config, 3, logits_processor=LogitsProcessorList(processors))
    logits, rows = torch.randn(2, 60, generator=torch.Generator().manual_seed(0)), [[1, 2, 3], [4, 5, 6]]
    want = theirs(torch.tensor(rows), logits.clone()).softmax(-1)
    given = row_prefixes(rows, torch.device("cpu"))
    assert torch.equal(SamplingTransform(SamplingParams(**settings), processors)(logits, given), want)


def halve_even(prefixes, scores):
    """Changes its argument in place, and depends on the prefix."""
    scores[:, ::2] /= prefixes[:, -1:]
    return scores


def recorder(seen):
    def processor(prefixes, scores):
        seen.extend(prefixes.tolist())
        return scores

    return processor


def test_node_prefixes_are_the_rows_and_their_paths():
    #   row 0: 5 8 2,  2 -> 7 -> 1, 2 -> 9       row 1: 3,  3 -> 4, 3 -> 6 -> 0
    rows = row_prefixes([[5, 8, 2], [3]], torch.device("cpu"))
    tokens = torch.tensor([[2, 7, 9, 1], [3, 4, 6, 0]])
    depths = torch.tensor([[0, 1, 1, 2], [0, 1, 1, 2]])
    ancestors = torch.eye(4, dtype=torch.bool).expand(2, 4, 4).clone()
    ancestors[:, :, 0] = True
    ancestors[0, 3, 1] = ancestors[1, 3, 2] = True
    found = node_prefixes(rows, tokens, depths, ancestors)
    want = [[[5, 8, 2], [5, 8, 2, 7], [5, 8, 2, 9], [5, 8, 2, 7, 1]], [[3], [3, 4], [3, 6], [3, 6, 0]]]
    for row in range(2):
        for node in range(4):
            prefix, length = found.tokens[row, node].tolist(), int(found.lengths[row, node])
            assert prefix[:length] == want[row][node]
            assert set(prefix[length:]) <= {tokens[row, 0].item()}
    seen = []
    SamplingTransform(SamplingParams(), [recorder(seen)])(torch.zeros(2, 4, 10), found)
    assert sorted(seen) == sorted(prefix for row in want for prefix in row)


@pytest.mark.parametrize(
    "bad", [lambda ids, scores: scores[:, :3], lambda ids, scores: None, lambda ids, scores: scores.tolist()]
)
def test_a_processor_that_returns_no_scores_is_refused(bad):
    with pytest.raises(ValueError, match="expected scores"):
        SamplingTransform(SamplingParams(), [bad])(LOGITS, row_prefixes([[1, 2]], torch.device("cpu")))


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("limits", [{}, {"top_k": 2, "top_p": 0.9, "min_p": 0.01}])
@pytest.mark.parametrize("fault", [torch.nan, torch.inf, -torch.inf])
def test_logits_without_a_distribution_are_nan_everywhere(temperature, limits, fault):
    logits = torch.randn(3, 8)
    logits[1] = -torch.inf
    logits[1, 0] = fault
    logits[2, 5] = -torch.inf
    probs = SamplingTransform(SamplingParams(temperature, **limits))(logits)
    assert probs[1].isnan().all()
    assert torch.allclose(probs[[0, 2]].sum(-1), torch.ones(2))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("fault", [torch.nan, torch.inf])
def test_a_processor_that_masks_a_fault_does_not_mend_it(temperature, fault):
    logits = torch.randn(2, 5)
    logits[1, 3] = fault
    mask = lambda ids, scores: scores.index_fill(1, torch.tensor([3]), -torch.inf)
    found = SamplingTransform(SamplingParams(temperature), [mask])(
        logits, row_prefixes([[1], [2]], torch.device("cpu"))
    )
    assert found[1].isnan().all() and found[0].isfinite().all()


ROWS = [
    SamplingParams(0.0),
    SamplingParams(),
    SamplingParams(0.7, top_k=4, top_p=0.9, min_p=0.02, repetition_penalty=1.3),
    SamplingParams(1.4, top_p=0.5),
    SamplingParams(top_k=2),
    SamplingParams(0.0, repetition_penalty=2.0),
    SamplingParams(0.9, min_p=0.3),
]


def test_every_row_of_a_batch_is_under_its_own_parameters():
    """The distributions of each row are those that it has alone, bit for bit, over few tokens and over many."""
    generator = torch.Generator().manual_seed(1)
    processors = [(halve_even,) if index % 3 == 1 else () for index in range(len(ROWS))]
    prefixes = row_prefixes([[1 + index, 2, 3] for index in range(len(ROWS))], torch.device("cpu"))
    prefixes = Prefixes(prefixes.tokens[:, None].expand(-1, 2, -1), prefixes.lengths[:, None].expand(-1, 2))
    for vocabulary in (30, 2 * LIKELIEST):
        logits = 3 * torch.randn(len(ROWS), 2, vocabulary, generator=generator)
        together = RowDistributions(len(ROWS), torch.device("cpu"))
        together.set(ROWS, processors)
        found = together(logits, prefixes)
        for index, params in enumerate(ROWS):
            alone = SamplingTransform(params, processors[index])
            own = Prefixes(prefixes.tokens[index], prefixes.lengths[index])
            assert torch.equal(found[index], alone(logits[index], own))


def test_rows_that_leave_and_join_change_the_parameters_in_place():
    rows = RowDistributions(4, torch.device("cpu"))
    places = [tensor.data_ptr() for tensor in rows.state()]
    logits = torch.randn(4, 1, 9, generator=torch.Generator().manual_seed(0))
    for some in (ROWS[:2], ROWS[1:2], [ROWS[1], ROWS[3], ROWS[4], ROWS[6]]):
        rows.set(some)
        found = rows(logits[: len(some)])
        for index, params in enumerate(some):
            assert torch.equal(found[index], SamplingTransform(params)(logits[index]))
    assert [tensor.data_ptr() for tensor in rows.state()] == places


@pytest.mark.parametrize("tree", ["none", "topk", "chain", "hybrid"])
def test_greedy_with_repetition_penalty_equals_transformers(tree):
    target = tiny_target(spread=0.2)
    model = EagleModel.from_head(target, tiny_head(target))
    prompt = torch.tensor([[7, 3, 9, 1, 5]])
    want = target.generate(prompt, max_new_tokens=40, do_sample=False, repetition_penalty=1.3, pad_token_id=0)
    plain = target.generate(prompt, max_new_tokens=40, do_sample=False, pad_token_id=0)
    assert not torch.equal(want, plain)
    out = model.generate(prompt, 40, temperature=0, repetition_penalty=1.3, tree=tree, nodes=20, depth=4)
    assert torch.equal(out, want)
