"""A conversation as the target's prompt: by the tokenizer's chat template, else by FastChat's for the model's family.

A wrong template costs half of the acceptance and still looks like English, so nothing is guessed: a model whose
tokenizer has no template and whose family is not listed here is refused. The answer file records which one was used.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch

from eagle import chat_template
from eagle.digests import sha256
from eval.questions.benchmarks import Question

FASTCHAT_BY_FAMILY = {  # a piece of the model's name -> FastChat's template for that family
    "vicuna": "vicuna_v1.1",
    "llama-2": "llama-2",
    "qwen-7b-chat": "qwen-7b-chat",
    "qwen-14b-chat": "qwen-7b-chat",
    "mistral": "mistral",
    "zephyr": "zephyr",
    "chatglm3": "chatglm3",
}
Messages = list[dict[str, str]]


class PromptFormat(NamedTuple):
    """A chat template: its name for the record, and a function from messages to text."""

    name: str
    render: Callable[[Messages], str]
    adds_bos: bool  # whether the text still needs the tokenizer's own first token


def from_tokenizer(tokenizer: Any, keywords: Mapping[str, Any]) -> PromptFormat:
    """The tokenizer's own chat template. Raises ValueError for keywords that it does not read."""
    chat_template.check_keywords(tokenizer, keywords)
    name = f"tokenizer:{sha256(str(tokenizer.chat_template))[:12]}{chat_template.shown(keywords)}"
    render = functools.partial(chat_template.render, tokenizer, keywords=chat_template.fixed(keywords))
    return PromptFormat(name, render, adds_bos=False)


def from_fastchat(template: str) -> PromptFormat:
    """FastChat's template of this name. Needs fschat."""
    from fastchat.conversation import get_conv_template  # optional: only models without a template need it

    def render(messages: Messages) -> str:
        conversation = get_conv_template(template)
        speakers = dict(zip(("user", "assistant"), conversation.roles, strict=True))
        for message in messages:
            if message["role"] == "system":
                conversation.set_system_message(message["content"])
            else:
                conversation.append_message(speakers[message["role"]], message["content"])
        conversation.append_message(speakers["assistant"], None)
        return conversation.get_prompt()

    return PromptFormat(f"fastchat:{template}", render, adds_bos=True)


def prompt_format(tokenizer: Any, model_name: str, keywords: Mapping[str, Any] | None = None) -> PromptFormat:
    """The template of a model; `keywords` for it. ValueError when neither the tokenizer nor the family list has one."""
    if getattr(tokenizer, "chat_template", None):
        return from_tokenizer(tokenizer, keywords or {})
    if keywords:
        raise ValueError(f"chat template keywords {dict(keywords)}: the target's tokenizer has no chat template")
    lowered = model_name.lower()
    found = next((template for family, template in FASTCHAT_BY_FAMILY.items() if family in lowered), None)
    if found is None:
        raise ValueError(
            f"model {model_name!r}: its tokenizer has no chat template, and its name contains none of the families "
            f"{', '.join(FASTCHAT_BY_FAMILY)}; add a chat_template to the tokenizer's files"
        )
    return from_fastchat(found)


def encode(tokenizer: Any, style: PromptFormat, messages: Messages) -> torch.Tensor:
    """Token ids of a conversation, ready for the assistant's next answer: Int64[1, L]."""
    ids = tokenizer(style.render(messages), add_special_tokens=style.adds_bos)["input_ids"]
    return torch.tensor([ids], dtype=torch.int64)


def encode_first_turns(
    tokenizer: Any, model_name: str, questions: Iterable[Question], keywords: Mapping[str, Any] | None = None
) -> list[list[int]]:
    """Each question's first turn as the only user message of a conversation, as token ids."""
    style = prompt_format(tokenizer, model_name, keywords)
    return [encode(tokenizer, style, [{"role": "user", "content": one.turns[0]}])[0].tolist() for one in questions]
