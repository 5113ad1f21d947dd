"""A tabular language model behind the engine's interface: answers in microseconds, seconds that are made up.

    python -m tests.eval.fake [arguments of python -m eval]       the real command line on the fake engine

FAKE_DELAY (seconds per answer) makes a run slow enough to be killed.
"""

import os
import time
from typing import Any, NamedTuple

import torch

from eagle.api.outputs import PlanRecord, StepRecord
from eval.__main__ import main

ALPHABET = [chr(code) for code in range(32, 127)] + ["\n"]
END = len(ALPHABET)


class FakeTokenizer:
    """One token per character; the end token last."""

    chat_template = "{{ messages }}"
    eos_token_id = END

    def apply_chat_template(self, messages, tokenize, add_generation_prompt, **_):
        assert not tokenize
        assert add_generation_prompt
        return "".join(f"<{message['role']}>{message['content']}" for message in messages) + "<assistant>"

    def __call__(self, text: str, **_) -> dict[str, list[int]]:
        return {"input_ids": [ALPHABET.index(letter) for letter in text if letter in ALPHABET]}

    def decode(self, tokens: list[int], **_) -> str:
        return "".join(ALPHABET[token] for token in tokens if token != END)


class Row(NamedTuple):
    new_tokens: list[int]
    steps: list[StepRecord]
    stop_reason: str
    prompt_tokens: int
    seconds: float
    prefill_seconds: float
    plan: PlanRecord | None = None


class Output(NamedTuple):
    rows: list[Row]


class FakeEngine:
    """Draws an answer's length and letters from the generator; drafts are accepted in runs of `gain`."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self) -> None:
        self.tokenizer = FakeTokenizer()
        self.asked: list[tuple[str, str, str]] = []

    def generate(
        self,
        input_ids,
        max_new_tokens,
        tree,
        verifier,
        generator,
        return_dict_in_generate,
        **_,
    ) -> Output:
        assert return_dict_in_generate
        time.sleep(float(os.environ.get("FAKE_DELAY", "0")))
        prompt = self.tokenizer.decode(input_ids[0].tolist())
        self.asked.append((prompt, tree, verifier))
        if "explode" in prompt:
            raise RuntimeError("out of memory, or so")
        length = int(torch.randint(5, 40, (1,), generator=generator))
        tokens = torch.randint(0, END, (length,), generator=generator).tolist() + [END]
        reason = "eos" if len(tokens) <= max_new_tokens else "length"
        tokens = tokens[:max_new_tokens]
        gain = {"none": 0, "topk": 2}.get(tree, 3)
        made = steps(len(tokens) - 1, gain)
        return Output([Row(tokens, made, reason, input_ids.shape[1], 0.01 * len(tokens), 0.005)])


def steps(emitted: int, gain: int) -> list[StepRecord]:
    """Steps that emit `gain` drafts and a bonus each, the last one cut where the answer ends."""
    made = []
    while emitted > 0:
        now = min(gain + 1, emitted)
        phases = {"draft": 0.001, "score": 0.002, "verify": 0.0005, "commit": 0.0001}
        made.append(StepRecord(min(gain, now), now, gain + 0.25, 60, now < gain + 1, phases))
        emitted -= now
    return made


def load(*_: Any, **__: Any) -> FakeEngine:
    return FakeEngine()


if __name__ == "__main__":
    raise SystemExit(main(load=load))
