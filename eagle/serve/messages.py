"""Messages of a conversation, checked and rendered by the tokenizer's own chat template, as they were sent."""

from collections.abc import Mapping, Sequence
from typing import Any

from eagle import chat_template
from eagle.serve.refusal import Refused

ROLES = ("system", "user", "assistant")
# What clients send back with an answer they got: neutral values are taken, others are refused.
ANSWER_FIELDS = ("refusal", "tool_calls", "function_call", "audio", "annotations", "reasoning_content")


def check_messages(messages: Any) -> list[dict[str, str]]:
    """The messages with their contents as texts. Raises Refused naming what is wrong with which one."""
    if not isinstance(messages, list) or not messages:
        raise Refused("messages: expected a list of at least one message", "messages")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message(message: Any, name: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise Refused(f"{name}: expected an object with role and content", name)
    role = message.get("role")
    if role not in ROLES:
        raise Refused(f"{name}.role={role!r}: expected one of {', '.join(ROLES)}", f"{name}.role")
    for field, value in message.items():
        if field in ("role", "content") or (field in ANSWER_FIELDS and not value):
            continue
        raise Refused(f"{name}.{field} is not supported by this server; leave it out", f"{name}.{field}")
    return {"role": role, "content": _content(message.get("content"), f"{name}.content")}


def _content(content: Any, name: str) -> str:
    """A text, or the texts of parts joined by line breaks."""
    if isinstance(content, list) and content:
        return "\n".join(_part(part, f"{name}[{index}]") for index, part in enumerate(content))
    return check_text(content, name)


def _part(part: Any, name: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text":
        raise Refused(f"{name}: a part of type {kind!r} is not supported; this server reads parts of type 'text'", name)
    return check_text(part.get("text"), f"{name}.text")


def check_text(value: Any, name: str) -> str:
    """A text of whole characters."""
    if not isinstance(value, str):
        raise Refused(f"{name}: expected a text, found {type(value).__name__}", name)
    try:
        chat_template.check_text(value, name)
    except ValueError as error:
        raise Refused(str(error), name) from error
    return value


def check_keywords(tokenizer: Any, value: Any) -> dict[str, Any]:
    """Variables of the template, such as enable_thinking. Raises Refused for one that it does not read."""
    name = "chat_template_kwargs"
    if not isinstance(value, dict) or not value.keys().isdisjoint(chat_template.OF_THE_CALL):
        raise Refused(f'{name}: expected an object such as {{"enable_thinking": false}}', name)
    try:
        chat_template.check_keywords(tokenizer, value)
    except ValueError as error:
        raise Refused(f"{name}: {error}", name) from error
    return value


def chat_tokens(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], keywords: Mapping[str, Any] | None = None
) -> list[int]:
    """Token ids of a conversation up to where the answer begins, with these variables of the template.

    Raises Refused where there is no template and where it refuses the messages.
    """
    if not tokenizer.chat_template:
        raise Refused("the model's tokenizer has no chat template: use /v1/completions", "messages")
    try:
        text = chat_template.render(tokenizer, messages, keywords)
    except Exception as error:  # jinja's errors, and what templates raise themselves
        raise Refused(f"the model's chat template refuses these messages: {error}", "messages") from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
