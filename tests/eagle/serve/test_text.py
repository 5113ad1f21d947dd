"""Tokens to text piece by piece, and stop strings."""

import random

import pytest
from transformers import AutoTokenizer

from eagle.serve.text import StopFilter, TextDecoder

TEXT = "Größe: 3 µm, 日本語 and 🙂 end.\n\n  two spaces"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained("checkpoints/demo/target")


def test_pieces_join_to_the_decoded_text(tokenizer):
    tokens = tokenizer(TEXT).input_ids
    decoder = TextDecoder(tokenizer)
    pieces = [decoder.push(token) for token in tokens]
    assert "".join(pieces) + decoder.finish() == tokenizer.decode(tokens, skip_special_tokens=True)
    assert all("\ufffd" not in piece for piece in pieces)
    assert sum(map(bool, pieces)) > 5, "text comes in pieces"


def test_half_a_character_is_held_back_and_not_lost(tokenizer):
    tokens = tokenizer("🙂").input_ids
    assert len(tokens) > 1
    decoder = TextDecoder(tokenizer)
    assert not "".join(decoder.push(token) for token in tokens[:-1])
    assert decoder.finish() == tokenizer.decode(tokens[:-1], skip_special_tokens=True)


class Counting:
    """Counts the tokens that are decoded."""

    def __init__(self, tokenizer):
        self.tokenizer, self.decoded = tokenizer, 0

    def decode(self, tokens, **options):
        self.decoded += len(tokens)
        return self.tokenizer.decode(tokens, **options)


@pytest.mark.parametrize("what", ["bytes of no character", "special tokens", "mixed", "halves"])
def test_a_run_of_tokens_without_text_costs_linear_time(tokenizer, what):
    half, special = tokenizer("🙂").input_ids[:-1], [tokenizer.eos_token_id]
    rng = random.Random(0)
    tokens = {
        "bytes of no character": half[:1] * 500,
        "special tokens": special * 500,
        "mixed": rng.choices([*half, *special, *tokenizer("a é 日").input_ids], k=500),
        "halves": [*half * 40, *tokenizer("🙂 é").input_ids, *half * 40],
    }[what]
    counting = Counting(tokenizer)
    decoder = TextDecoder(counting)
    pieces = [decoder.push(token) for token in tokens]
    assert "".join(pieces) + decoder.finish() == tokenizer.decode(tokens, skip_special_tokens=True)
    assert counting.decoded < 80 * len(tokens)


@pytest.mark.parametrize("seed", range(50))
def test_stop_strings_cut_as_on_the_whole_text(seed):
    rng = random.Random(seed)
    text = "".join(rng.choices("ab", k=30))
    stops = ["".join(rng.choices("ab", k=rng.randint(2, 6))) for _ in range(2)]
    stops_filter, shown, place = StopFilter(stops), "", 0
    while place < len(text) and not stops_filter.stopped:
        size = rng.randint(0, 3)
        shown += stops_filter.push(text[place : place + size])
        place += size
    if not stops_filter.stopped:
        shown += stops_filter.finish()
    found = [text.index(stop) for stop in stops if stop in text]
    whole = text[: min(found)] if found else text
    # Two stop strings may overlap so that the one that ends first begins later: text before it was shown by right.
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    assert shown == whole or (len(found) == 2 and len(shown) <= min(ends))
    assert not any(stop in shown for stop in stops)
