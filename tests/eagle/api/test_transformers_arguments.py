"""Arguments of `transformers`' generate, with the same effect; one generation at a time; the model's own settings."""

import string

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PreTrainedTokenizerFast,
    StoppingCriteriaList,
)

from eagle import EagleModel, GenerateOutput
from eagle.trees import TREES
from tests.eagle.tiny import VOCAB, tiny_head, tiny_target

PROMPT = torch.tensor([[7, 3, 9, 1, 5, 20, 33, 4]])
SMALL = {"nodes": 12, "depth": 4}


def spelling() -> PreTrainedTokenizerFast:
    """One character per token, so that stop strings lie across tokens."""
    letters = string.ascii_letters + string.digits
    tokenizer = Tokenizer(models.WordLevel({letter: index for index, letter in enumerate(letters[:VOCAB])}, "a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def failing_at_15(input_ids, scores):
    if input_ids.shape[1] >= 15:
        raise ZeroDivisionError
    return False


@pytest.fixture(scope="module")
def target():
    return tiny_target(spread=0.2)


@pytest.fixture
def model(target):
    return EagleModel.from_head(target, tiny_head(target), spelling())


def by_transformers(target, ids, **settings):
    settings = {"max_new_tokens": 30, "do_sample": False, "pad_token_id": 0, **settings}
    return target.generate(ids, attention_mask=torch.ones_like(ids), **settings)


def rows(model, ids=PROMPT, **settings):
    return model.generate(ids, return_dict_in_generate=True, **{**SMALL, **settings}).rows


# --- what comes back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_result_is_the_input_and_what_follows_it(model, side):
    mask = torch.tensor([[1] * 8, [0] * 5 + [1] * 3])
    mask = mask if side == "left" else mask.flip(1)
    ids = torch.randint(1, VOCAB, (2, 8), generator=torch.Generator().manual_seed(4)) * mask
    settings = {"attention_mask": mask, "temperature": 0, "eos_token_id": 17, "pad_token_id": 59, **SMALL}
    out = model.generate(ids, 25, return_dict_in_generate=True, **settings)
    assert isinstance(out, GenerateOutput) and torch.equal(out.sequences[:, :8], ids)
    longest = max(len(row.new_tokens) for row in out.rows)
    for row, sequence, tokens, keep in zip(out.rows, out.sequences, ids, mask.bool()):
        assert row.prompt == tokens[keep].tolist()
        assert sequence[8:].tolist() == row.new_tokens + [59] * (longest - len(row.new_tokens))
    assert torch.equal(model.generate(ids, 25, **settings), out.sequences)


def test_one_row_gives_the_same_kind_of_object(model):
    out = model.generate(PROMPT, 5, return_dict_in_generate=True)
    assert isinstance(out, GenerateOutput) and len(out.rows) == 1 and out.sequences.shape == (1, 13)
    assert out.sequences.dtype == torch.int64 and out.sequences.device == PROMPT.device
    step = out.rows[0].steps[0]
    assert step.accepted >= 0 and step.expected_accepted >= 0 and step.nodes > 1 and step.seconds["draft"] > 0
    assert out.rows[0].seconds >= out.rows[0].prefill_seconds > 0


def test_several_sequences_per_prompt(model):
    ids = torch.cat([PROMPT, PROMPT.flip(1)])
    out = model.generate(ids, 12, num_return_sequences=3, seed=1, return_dict_in_generate=True, **SMALL)
    assert torch.equal(out.sequences[:, :8], ids.repeat_interleave(3, 0))
    assert len({tuple(row.new_tokens) for row in out.rows}) == 6
    out.rows[0].prompt.append(0)
    assert out.rows[1].prompt == PROMPT[0].tolist()
    with pytest.raises(ValueError, match="num_return_sequences=3 with greedy decoding"):
        model.generate(ids, 12, num_return_sequences=3, do_sample=False)


def test_a_seed_is_a_generator(model):
    settings = {"max_new_tokens": 20, **SMALL}
    by_seed = model.generate(PROMPT, seed=5, **settings)
    assert torch.equal(by_seed, model.generate(PROMPT, generator=torch.Generator().manual_seed(5), **settings))
    assert not torch.equal(by_seed, model.generate(PROMPT, seed=6, **settings))


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", ["none", "topk", "hybrid"])
def test_do_sample_false_is_greedy_decoding(model, target, tree):
    want = by_transformers(target, PROMPT)
    for settings in ({"do_sample": False}, {"do_sample": False, "temperature": 0.7}, {"temperature": 0}):
        assert torch.equal(model.generate(PROMPT, 30, tree=tree, **settings, **SMALL), want)
    config = GenerationConfig(max_new_tokens=30, do_sample=False)
    assert torch.equal(model.generate(PROMPT, generation_config=config, tree=tree), want)


def test_the_models_file_is_the_default(tmp_path, target):
    target.save_pretrained(tmp_path)
    config = GenerationConfig(do_sample=False, repetition_penalty=1.3, max_new_tokens=11, eos_token_id=59)
    config.save_pretrained(tmp_path)
    spelling().save_pretrained(tmp_path)
    model = EagleModel.from_pretrained(str(tmp_path))
    want = by_transformers(target, PROMPT, repetition_penalty=1.3, max_new_tokens=11, eos_token_id=59)
    assert torch.equal(model.generate(PROMPT, tree="none"), want)
    assert model.generate(PROMPT, 20, tree="none", eos_token_id=[]).shape[1] == 28
    sampled = model.generate(PROMPT, temperature=1.0, repetition_penalty=1.0, tree="none", seed=0, eos_token_id=[])
    plain = EagleModel(target).generate(PROMPT, 11, tree="none", seed=0)
    assert torch.equal(sampled, plain)


@pytest.mark.parametrize("tree", ["none", "topk", "hybrid"])
def test_max_length_counts_the_prompt(model, target, tree):
    out = model.generate(PROMPT, max_length=20, do_sample=False, tree=tree, **SMALL)
    assert torch.equal(out, by_transformers(target, PROMPT, max_new_tokens=None, max_length=20))


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("count", [1, 2])
def test_stop_strings(model, target, tree, count):
    """Greedy, against `transformers`; the strings are taken from the middle of what would be generated."""
    text = model.tokenizer.decode(by_transformers(target, PROMPT)[0, 8:])
    stops = [text[20:23], text[13:15]][:count]
    want = by_transformers(target, PROMPT, stop_strings=stops, tokenizer=model.tokenizer)
    assert want.shape[1] < 38
    (row,) = rows(model, max_new_tokens=30, do_sample=False, stop_strings=stops, tree=tree)
    assert row.prompt + row.new_tokens == want[0].tolist() and row.stop_reason == "criteria"
    assert 1 + sum(step.emitted for step in row.steps) == len(row.new_tokens)


def test_stop_strings_need_a_tokenizer(target):
    with pytest.raises(ValueError, match="need a tokenizer"):
        EagleModel(target).generate(PROMPT, 5, tree="none", stop_strings="ab")
    EagleModel(target).generate(PROMPT, 5, tree="none", stop_strings="ab", tokenizer=spelling())


def ends_with_even_sum(input_ids, scores, **kwargs):
    """A criterion that may be met at any token, several times in a step."""
    return input_ids[:, -3:].sum(1) % 5 == 0


@pytest.mark.parametrize("tree", TREES)
def test_nothing_is_kept_after_a_criterion_is_met(model, tree):
    settings = {"tree": tree, "seed": 3, "max_new_tokens": 60}
    free = rows(model, **settings)[0].new_tokens
    criteria = StoppingCriteriaList([ends_with_even_sum, MaxLengthCriteria(50)])
    (row,) = rows(model, stopping_criteria=criteria, **settings)
    tokens = PROMPT[0].tolist() + free
    ends = [end for end in range(9, len(tokens) + 1) if sum(tokens[end - 3 : end]) % 5 == 0 or end >= 50]
    assert row.new_tokens == tokens[8 : ends[0]] and row.stop_reason == "criteria"


def test_criteria_stop_rows_one_by_one(model):
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    ids = torch.cat([PROMPT, PROMPT.flip(1)])
    found = rows(
        model, ids, attention_mask=mask, max_new_tokens=20, stopping_criteria=[lambda ids, scores: ids.shape[1] >= 15]
    )
    assert [len(row.new_tokens) for row in found] == [7, 10]


# --- defects ---------------------------------------------------------------------------------------------------------


def test_the_greedy_verifier_needs_temperature_0(model):
    with pytest.raises(ValueError, match="verifier='greedy' at temperature 1"):
        model.generate(PROMPT, 5, verifier="greedy")
    model.generate(PROMPT, 5, verifier="greedy", temperature=0)


@pytest.mark.parametrize("verifier", ["block", "published"])
@pytest.mark.parametrize("tree", ["hybrid", "topk", "multi"])
def test_a_verifier_of_one_path_is_refused_before_the_first_token(model, tree, verifier):
    with pytest.raises(ValueError, match=f"verifier='{verifier}'.*branches"):
        model.stream(PROMPT, 5, tree=tree, verifier=verifier)
    model.generate(PROMPT, 5, tree="chain", verifier=verifier)


@pytest.mark.parametrize("tree", TREES)
def test_one_node_is_plain_decoding(model, tree):
    (row,) = rows(model, tree=tree, nodes=1, max_new_tokens=10, seed=0)
    (plain,) = rows(model, tree="none", max_new_tokens=10, seed=0)
    assert row.new_tokens == plain.new_tokens and {step.nodes for step in row.steps} == {1}


def test_generations_of_one_model_may_be_unfinished_at_once(model):
    """Two streams, step by step in turn, and a whole generation between: the tokens they give alone."""
    settings = [{"seed": 0, **SMALL}, {"seed": 1, "temperature": 0.5, **SMALL, "tree": "topk", "nodes": 12}]
    want = [model.generate(PROMPT, 20, **one)[0, 8:].tolist() for one in settings]
    streams, found = [model.stream(PROMPT, 20, **one) for one in settings], [None, None]
    for turn in range(40):
        for index, stream in enumerate(streams):
            found[index] = next(stream, found[index])
        if turn == 2:
            assert model.generate(PROMPT, 20, **settings[0])[0, 8:].tolist() == want[0]
    assert [rows[0].new_tokens for rows in found] == want and all(rows[0].finished for rows in found)


@pytest.mark.parametrize("end", ["close", "drop", "fail"])
def test_a_generation_that_is_given_up_frees_the_model(model, end):
    want = model.generate(PROMPT, 20, seed=0, **SMALL)
    stream = model.stream(PROMPT, 20, seed=1, stopping_criteria=[failing_at_15], **SMALL)
    next(stream)
    if end == "close":
        stream.close()
    elif end == "fail":
        with pytest.raises(ZeroDivisionError):
            list(stream)
    del stream
    assert torch.equal(model.generate(PROMPT, 20, seed=0, **SMALL), want)


class Streamer:
    put = end = print


BAD_CALLS = {
    "input_ids has no rows": {"input_ids": torch.zeros(0, 3, dtype=torch.int64)},
    "input_ids: expected an integer tensor": {"input_ids": [[1, 2]]},
    "did you mean 'temperature'": {"temprature": 0.5},
    "must have the shape of input_ids": {"attention_mask": torch.ones(2, 8)},
    "attention_mask=": {"attention_mask": [[1] * 8]},
    "streamer=3: expected a transformers streamer": {"streamer": 3},
    "a streamer follows one row": {"input_ids": PROMPT.expand(2, -1), "streamer": Streamer()},
}  # fmt: skip


@pytest.mark.parametrize("message", BAD_CALLS)
def test_bad_calls_say_what_is_wrong(model, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**{"input_ids": PROMPT, **BAD_CALLS[message]})


# --- logits processors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", TREES)
def test_processors_see_each_nodes_own_prefix(model, target, tree):
    """Greedy, against `transformers`, with processors that look at all tokens and at the length."""
    processors = LogitsProcessorList(
        [
            NoRepeatNGramLogitsProcessor(2),
            MinNewTokensLengthLogitsProcessor(8, 10, [int(x) for x in range(0, VOCAB, 3)]),
        ]
    )
    want = by_transformers(target, PROMPT, logits_processor=processors)
    assert not torch.equal(want, by_transformers(target, PROMPT))
    out = model.generate(PROMPT, 30, do_sample=False, logits_processor=processors, tree=tree, **SMALL)
    assert torch.equal(out, want)


def test_processors_on_rows_of_different_lengths(model):
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    ids = torch.cat([PROMPT, PROMPT.flip(1)])
    processors = [NoRepeatNGramLogitsProcessor(2)]
    together = rows(model, ids, attention_mask=mask, max_new_tokens=20, temperature=0, logits_processor=processors)
    for row in together:
        (alone,) = rows(
            model, torch.tensor([row.prompt]), max_new_tokens=20, temperature=0, logits_processor=processors
        )
        assert row.new_tokens == alone.new_tokens


@pytest.mark.parametrize("tree", TREES)
def test_a_processor_along_the_tree_keeps_the_rule(model, tree):
    """Each token must fit the count of tokens before it, modulo 3: sampled, from prefixes of the right length."""

    def by_length(prefixes, scores):
        allowed = torch.arange(VOCAB) % 3 == prefixes.shape[1] % 3
        return scores.masked_fill(~allowed, -torch.inf)

    (row,) = rows(model, max_new_tokens=40, seed=2, tree=tree, logits_processor=[by_length])
    assert [token % 3 for token in row.new_tokens] == [(8 + index) % 3 for index in range(40)]
