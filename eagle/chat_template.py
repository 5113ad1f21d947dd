"""A conversation as text, by the tokenizer's own chat template: the one way to it, for data, benchmarks and chats.

Templates read more than messages: `enable_thinking`, `date_string`, `documents`, ... Such keywords are given to every
command as one JSON object, `--chat-template-kwargs '{"enable_thinking": false}'`, and recorded with what is made.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eagle.files import read_json, write_json

Messages = Sequence[Mapping[str, str]]
# Llama-3 templates print a date. A fixed one keeps data and benchmarks the same tomorrow.
FIXED = {"date_string": "26 Jul 2024"}
RECORD = "chat_template_kwargs.json"  # beside a head that was trained here
OF_THE_CALL = {"messages", "tokenize", "add_generation_prompt", "return_dict", "conversation", "chat_template"}


def check_text(text: str, what: str) -> None:
    """ValueError where a text holds half of a surrogate pair, which no UTF-8 text can and no tokenizer takes."""
    half = re.search("[\ud800-\udfff]", text)
    if half:
        raise ValueError(
            f"{what} holds half of a surrogate pair, {ascii(half[0])} at place {half.start()}, which no UTF-8 text "
            "can; write the whole character"
        )


def render(tokenizer: Any, messages: Messages, keywords: Mapping[str, Any] | None = None, prompt: bool = True) -> str:
    """The text of the messages; `prompt`: up to where the assistant's next message begins.

    Raises ValueError without a chat template and for half surrogates, jinja2.TemplateError where the template refuses.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("the target's tokenizer has no chat template; set tokenizer.chat_template and save it")
    for number, message in enumerate(messages):
        if isinstance(message["content"], str):
            check_text(message["content"], f"message {number} ({message['role']})")
    return tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=prompt, **(keywords or {})
    )


def fixed(keywords: Mapping[str, Any] | None) -> dict[str, Any]:
    """The keywords for what has to be the same tomorrow."""
    return {**FIXED, **(keywords or {})}


def check_keywords(tokenizer: Any, keywords: Mapping[str, Any]) -> None:
    """ValueError for a keyword that the tokenizer's template does not read: it would change nothing, silently."""
    template = str(getattr(tokenizer, "chat_template", None) or "")
    for name in keywords:
        if not re.search(rf"(?<![\w.'\"]){re.escape(name)}\b", template):
            raise ValueError(
                f"chat template keyword {name!r}: the target's chat template does not read it; leave it out"
            )


def keywords_of(text: str) -> dict[str, Any]:
    """The type of `--chat-template-kwargs`: a JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{text}: not JSON ({error})") from error
    if not isinstance(value, dict) or not value.keys().isdisjoint(OF_THE_CALL):
        raise argparse.ArgumentTypeError(f'{text}: expected a JSON object such as {{"enable_thinking": false}}')
    return value


def add_flag(parser: Any) -> None:
    """--chat-template-kwargs."""
    parser.add_argument(
        "--chat-template-kwargs",
        type=keywords_of,
        default={},
        metavar="JSON",
        help="what the chat template reads beside the messages, such as '{\"enable_thinking\": false}'",
    )


def record_beside(head: str | Path, keywords: Mapping[str, Any]) -> None:
    """Say in a head's directory with which keywords the prompts were written that it was trained on."""
    write_json(Path(head, RECORD), {"chat_template_kwargs": dict(keywords)})


def warn_of_others(head: str | Path | None, keywords: Mapping[str, Any]) -> None:
    """A line on stderr where a head was trained on prompts that were written with other keywords."""
    path = Path(head or "", RECORD)
    if not head or not path.is_file():
        return
    trained = read_json(path).get("chat_template_kwargs")
    if trained != keywords:
        print(
            f"{head}: trained on prompts with chat template keywords {json.dumps(trained)}, used with "
            f"{json.dumps(dict(keywords))}: it will accept less; --chat-template-kwargs sets them",
            file=sys.stderr,
        )


def shown(keywords: Mapping[str, Any]) -> str:
    """The keywords as they are recorded behind a template's name; empty where there are none."""
    return f" {json.dumps(dict(keywords), sort_keys=True)}" if keywords else ""
