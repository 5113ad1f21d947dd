"""FastChat's prompt back to messages, so that the tokenizer's own chat template renders them.

FastChat's API server flattens the messages with a conversation template that the worker reports, and has none that fits
every model. The worker reports one whose role marks hold a random key: text of a user cannot imitate them, so the
messages can be read back from the flat prompt exactly. A prompt without marks is a plain completion.
"""

import re
import secrets
from collections.abc import Sequence
from typing import Any

MARK = "<|eagle:"  # every mark begins with it
ROLES = ("system", "user", "assistant")


def check_messages(messages: Any) -> None:
    """ValueError unless these are messages of known roles, each with a text that is not empty."""
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages: expected a list of at least one message")
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if not content or message.get("role") not in ROLES:
            raise ValueError("every message needs a role (system, user or assistant) and a content that is not empty")


def chat_tokens(tokenizer: Any, messages: Sequence[dict[str, str]]) -> Sequence[int]:
    """Token ids of a conversation by the tokenizer's own template. Raises ValueError where it has none or refuses."""
    if not tokenizer.chat_template:
        raise ValueError("the target's tokenizer has no chat template: use /v1/completions")
    if not messages:
        raise ValueError("messages: expected at least one message")
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    except Exception as error:  # jinja's errors, and what templates raise themselves
        raise ValueError(f"the model's chat template refuses these messages: {error}") from error


class PromptFormat:
    """The marks of one worker."""

    def __init__(self, key: str | None = None):
        """`key`: letters and digits, the random part of every mark; None: a new one."""
        self.key = key or secrets.token_hex(12)
        self._end = f"<|/eagle:{self.key}|>"
        self._split = re.compile(rf"<\|eagle:{self.key}:({'|'.join(ROLES)})\|>\n")

    def mark(self, role: str) -> str:
        """What stands before a message of this role."""
        return f"{MARK}{self.key}:{role}|>"

    def conversation(self) -> Any:
        """The template for FastChat (`fastchat.conversation.Conversation`)."""
        from fastchat.conversation import Conversation, SeparatorStyle

        return Conversation(
            name="eagle",
            system_template=self.mark("system") + "\n{system_message}",
            system_message="",
            messages=[],
            roles=(self.mark("user"), self.mark("assistant")),
            sep_style=SeparatorStyle.CHATML,
            sep=self._end,
        )

    def messages(self, prompt: str) -> list[dict[str, str]] | None:
        """The messages of a flat prompt; None where it has no marks: text to be completed as it is.

        Raises ValueError for marks of another worker.
        """
        if not prompt.startswith(MARK):
            return None
        parts = self._split.split(prompt)
        if parts[0] or len(parts) < 3:
            raise ValueError("the prompt was made for a worker that is gone; send the request again")
        found = [
            {"role": role, "content": text.removesuffix(f"{self._end}\n")}
            for role, text in zip(parts[1::2], parts[2::2], strict=True)
        ]
        if found[-1] == {"role": "assistant", "content": ""}:
            found.pop()  # the answer that is asked for
        return [message for message in found if message["role"] != "system" or message["content"]]

    def tokens(self, tokenizer: Any, prompt: str) -> Sequence[int]:
        """Token ids of a flat prompt. Raises ValueError where the chat template refuses the messages."""
        messages = self.messages(prompt)
        if messages is None:
            return tokenizer(prompt)["input_ids"]
        return chat_tokens(tokenizer, messages)
