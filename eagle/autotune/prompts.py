"""Prompts to measure on, written for this purpose: they are questions of no benchmark."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from eagle.chat_template import render

PROMPTS = (
    "A gardener plants 6 rows of 14 tulips and gives 19 of them away. How many tulips are left?",
    "Explain in three sentences why the sky looks blue during the day and red in the evening.",
    "Write a short letter that invites a friend to a picnic by the lake next Sunday.",
    "List four ways to save electricity at home and say what each of them costs.",
    "A train leaves at 9:40 and arrives at 13:15. How long does the journey take?",
    "Write a Python function that returns the second largest number of a list.",
    "Summarise the story of a lighthouse keeper who finds a message in a bottle.",
    "What is the difference between a virus and a bacterium?",
    "Maria buys 3 notebooks for 2.50 each and pays with a 20 note. How much does she get back?",
    "Give me a recipe for a simple vegetable soup, with the amounts for two people.",
    "Translate into plain English: the aforementioned party shall remit payment forthwith.",
    "Describe a rainy morning in a small harbour town.",
    "Write an SQL query that counts the orders of each customer in the year 2020.",
    "A tank holds 240 litres and loses 8 litres an hour. After how many hours is it three quarters full?",
    "My neighbour plays loud music at night. Write a polite note to put in the letter box.",
    "Name three rivers of Europe and the seas they flow into.",
)


def encode(tokenizer: Any, chats: Sequence[Sequence[dict[str, str]]]) -> list[list[int]]:
    """Token ids of chats that wait for an answer; without a chat template, of the last message's text alone.

    Raises ValueError without a tokenizer.
    """
    if tokenizer is None:
        raise ValueError("the model was made without a tokenizer, so there are no prompts to measure on: name a tree")
    if not getattr(tokenizer, "chat_template", None):
        return [tokenizer(chat[-1]["content"])["input_ids"] for chat in chats]
    texts = [render(tokenizer, chat) for chat in chats]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def bundled_prompts(tokenizer: Any) -> list[list[int]]:
    """Token ids of `PROMPTS`, each as a user message."""
    return encode(tokenizer, [[{"role": "user", "content": text}] for text in PROMPTS])


def with_generators(
    model: Any, prompts: Iterable[Sequence[int]], seed: int
) -> Iterator[tuple[list[int], torch.Generator]]:
    """The prompts that leave room for an answer, each with a generator of its own, whatever the other prompts are."""
    for index, prompt in enumerate(prompts):
        if len(prompt) < model.context_length:
            yield list(prompt), torch.Generator().manual_seed(1_000_003 * seed + index)
