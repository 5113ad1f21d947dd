"""`reuse_cache=True`: a prompt that begins as the text before is not read again, and gives the same tokens."""

import random

import pytest
import torch

from eagle.api.eagle_model import EagleModel
from eagle.drafters import CausalLMDrafter
from eagle.engine import step
from eagle.nn import target as target_module
from tests.eagle.tiny import VOCAB, tiny_head, tiny_target


def with_head(**changes):
    target = tiny_target(max_position_embeddings=512, **changes)
    return EagleModel.from_head(target, tiny_head(target))


def with_lm():
    target = tiny_target(max_position_embeddings=512)
    return EagleModel(target, CausalLMDrafter(tiny_target(seed=5, max_position_embeddings=512), VOCAB))


def answer(engine, prompt, reuse=True, **settings):
    settings = {"nodes": 10, "depth": 3, "temperature": 0.0, "max_new_tokens": 9, **settings}
    ids = torch.tensor([prompt])
    return engine.generate(ids, reuse_cache=reuse, return_dict_in_generate=True, **settings).rows[0]


def tokens(seed: int, count: int) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=count)


@pytest.mark.parametrize("make", [with_head, with_lm, lambda: with_head(tie_word_embeddings=True)])
def test_a_conversation_has_the_tokens_it_has_without_reuse(make):
    """Turns with different trees and sizes, a history whose end differs, and one that was cut."""
    engine, fresh, history = make(), make(), tokens(0, 12)
    turns = [{"tree": "hybrid"}, {"tree": "topk", "nodes": 24}, {"tree": "none"}, {"tree": "hybrid", "depth": 5}]
    turns += [{"tree": "chain"}, {"tree": "hybrid", "max_new_tokens": 1}, {"tree": "multi"}, {"tree": "hybrid"}]
    for turn, settings in enumerate(turns):
        row, expected = answer(engine, history, **settings), answer(fresh, history, False, **settings)
        assert row.new_tokens == expected.new_tokens, f"turn {turn}"
        assert [record.accepted for record in row.steps] == [record.accepted for record in expected.steps]
        assert (row.reused_tokens > 0) == (turn > 0)
        assert expected.reused_tokens == 0
        history = history + row.new_tokens
        history = (history[:-2] if turn == 4 else history[: len(history) // 2] if turn == 6 else history) + tokens(
            turn, 7
        )


def test_only_what_is_new_is_read(monkeypatch):
    engine, history, read = with_head(), tokens(1, 30), []
    first = answer(engine, history)
    monkeypatch.setattr(
        target_module.CachedLM,
        "extend_in_chunks",
        lambda self, ids, original=target_module.CachedLM.extend_in_chunks: (
            read.append(ids.shape[1]) or original(self, ids)
        ),
    )
    prompt = history + first.new_tokens + tokens(2, 6)
    second = answer(engine, prompt)
    # the drafter has not read what the last step emitted, and is one token ahead of the target
    assert read == [len(prompt) - second.reused_tokens] and read[0] <= 6 + first.steps[-1].emitted + 1
    assert answer(engine, prompt).reused_tokens == len(prompt) - 1, "one token is read for its logits"
    assert answer(engine, prompt[:20]).reused_tokens == 19
    assert answer(engine, [*prompt[:7], (prompt[7] + 1) % VOCAB, 3]).reused_tokens == 6


def test_a_long_rest_is_read_in_parts(monkeypatch):
    engine, fresh = with_head(), with_head()
    first = answer(engine, tokens(3, 20))
    prompt = tokens(3, 20) + first.new_tokens + tokens(4, 61)
    monkeypatch.setattr(target_module, "PREFILL_CHUNK", 16)
    row = answer(engine, prompt)
    assert row.reused_tokens > 18
    assert row.new_tokens == answer(fresh, prompt, False).new_tokens


def test_an_abandoned_and_an_interrupted_generation_leave_a_sound_cache(monkeypatch):
    engine, fresh, history = with_head(), with_head(), tokens(5, 15)
    settings = {"nodes": 10, "depth": 3, "temperature": 0.0, "max_new_tokens": 40, "reuse_cache": True}
    stream = engine.stream(torch.tensor([history]), **settings)
    for _ in range(4):
        [row] = next(stream)
    stream.close()
    prompt = row.prompt + row.new_tokens + tokens(6, 5)
    again = answer(engine, prompt)
    assert again.reused_tokens > len(history)
    assert again.new_tokens == answer(fresh, prompt, False).new_tokens

    commit, count = step.commit, iter(range(100))

    def interrupted(*arguments, **keywords):
        result = commit(*arguments, **keywords)
        if next(count) == 2:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(step, "commit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        for [row] in engine.stream(torch.tensor([prompt]), **settings):  # noqa: B007  the last one is looked at
            pass
    prompt = row.prompt + row.new_tokens + tokens(7, 5)
    again = answer(engine, prompt)
    assert again.reused_tokens > len(history)
    assert again.new_tokens == answer(fresh, prompt, False).new_tokens


def test_what_others_did_with_the_caches_is_not_reused():
    engine, history = with_head(), tokens(8, 15)
    answer(engine, history)
    answer(engine, [(token + 1) % VOCAB for token in history], False)
    assert answer(engine, history).reused_tokens == 0, "a generation without reuse came between"
    assert answer(engine, history).reused_tokens == len(history) - 1
    engine._idle[0].release()
    assert answer(engine, history).reused_tokens == 0, "the caches were freed"
    engine._idle.clear()
    assert answer(engine, history).reused_tokens == 0, "another session took the caches"
    assert answer(engine, history, False).reused_tokens == 0


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_rows_of_a_batch_are_continued_in_any_order(order):
    """A row takes the free cache row that holds most of its beginning; what that one overwrites is read again."""
    engine, fresh, histories = with_head(), with_head(), [tokens(seed, 15) for seed in (8, 9, 10)]
    settings = {"max_new_tokens": 6, "nodes": 10, "depth": 3, "temperature": 0.0, "return_dict_in_generate": True}
    first = engine.generate(torch.tensor(histories), reuse_cache=True, **settings).rows
    prompts = [row.ids + tokens(11, 4) for row in map(first.__getitem__, order)]
    again = engine.generate(torch.tensor(prompts), reuse_cache=True, **settings).rows
    assert max(row.reused_tokens for row in again) >= 15
    expected = fresh.generate(torch.tensor(prompts), **settings).rows
    assert [row.new_tokens for row in again] == [row.new_tokens for row in expected]
