"""The same process as a worker of FastChat's, for several machines behind its controller and its API server.

FastChat's API server flattens the messages with a conversation template that the worker reports, and has none that fits
every model. This worker reports one whose role marks hold a random key: text of a user cannot imitate them, so the
messages can be read back from the flat prompt exactly and rendered by the tokenizer's own template. A prompt without
marks is a plain completion.
"""

import json
import logging
import re
import secrets
import threading
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from eagle.serve.answers import Answers, Gone
from eagle.serve.messages import chat_tokens
from eagle.serve.refusal import Refused
from eagle.serve.replies import usage
from eagle.serve.requests import Asked, json_of, prepare
from eagle.serve.scheduler import QueueFull
from eagle.serve.service import Service

MARK = "<|eagle:"  # every mark begins with it
ROLES = ("system", "user", "assistant")
CHATML = 9  # `fastchat.conversation.SeparatorStyle.CHATML`
BEAT = 45  # seconds between signs of life, as FastChat's own workers have it
INVALID, RATE_LIMIT, INTERNAL = 40302, 42901, 50001  # of `fastchat.constants.ErrorCode`
SAMPLING = ("temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty")
NEUTRAL = {  # what is not supported: the values that change nothing
    "logprobs": (None, 0),
    "best_of": (None, 1),
    "use_beam_search": (None, False),
    "images": (None, []),
}

log = logging.getLogger("eagle.serve")


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

    def conversation(self) -> dict[str, Any]:
        """The template for FastChat: the fields of its `Conversation`."""
        return {
            "name": "eagle",
            "system_template": self.mark("system") + "\n{system_message}",
            "system_message": "",
            "messages": [],
            "roles": (self.mark("user"), self.mark("assistant")),
            "offset": 0,
            "sep_style": CHATML,
            "sep": self._end,
            "sep2": None,
            "stop_str": None,
            "stop_token_ids": None,
        }

    def messages(self, prompt: str) -> list[dict[str, str]] | None:
        """The messages of a flat prompt; None where it has no marks: text to be completed as it is.

        Raises Refused for marks of another worker.
        """
        if not prompt.startswith(MARK):
            return None
        parts = self._split.split(prompt)
        if parts[0] or len(parts) < 3:
            raise Refused("the prompt was made for a worker that is gone; send the request again")
        found = [
            {"role": role, "content": text.removesuffix(f"{self._end}\n")}
            for role, text in zip(parts[1::2], parts[2::2], strict=True)
        ]
        if found[-1] == {"role": "assistant", "content": ""}:
            found.pop()  # the answer that is asked for
        return [message for message in found if message["role"] != "system" or message["content"]]

    def tokens(self, tokenizer: Any, prompt: str, template: Mapping[str, Any] | None = None) -> list[int]:
        """Token ids of a flat prompt, with these variables of the chat template.

        Raises Refused where the template refuses the messages.
        """
        messages = self.messages(prompt)
        return list(tokenizer(prompt)["input_ids"]) if messages is None else chat_tokens(tokenizer, messages, template)


def read_params(params: Any, service: Service, marks: PromptFormat) -> Asked:
    """FastChat's parameters of one request. Raises ValueError for what is not supported."""
    if not isinstance(params, dict) or not isinstance(params.get("prompt"), str):
        raise Refused("expected a JSON object with a prompt")
    for name, neutral in NEUTRAL.items():
        if params.get(name) not in neutral:
            raise Refused(f"{name}={params[name]!r} is not supported by this server; leave it out")
    given = {name: params[name] for name in SAMPLING if params.get(name) is not None}
    prompt = marks.tokens(service.model.tokenizer, params["prompt"], service.template)
    stops = params.get("stop") or ()
    stops = (stops,) if isinstance(stops, str) else tuple(stop for stop in stops if stop)
    prepared = prepare(service.model, prompt, given, params.get("max_new_tokens"), service.drafting)
    return Asked([prepared], [params["prompt"]] if params.get("echo") else [], stop=stops)


async def chunks(body: bytes, service: Service, marks: PromptFormat, request: Request) -> AsyncIterator[dict[str, Any]]:
    """FastChat's chunks of an answer: the whole text so far, the usage, in the last one the finish reason."""
    try:
        asked = read_params(json_of(body), service, marks)
        answers = Answers(service.scheduler, asked.prepared, stop=asked.stop)
    except (ValueError, QueueFull) as error:
        yield {"text": str(error), "error_code": RATE_LIMIT if isinstance(error, QueueFull) else INVALID}
        return
    text = "".join(asked.echoes)
    async with aclosing(answers.updates(request.receive)) as updates:
        async for _, update in updates:
            if update.error:
                yield {"text": update.error, "error_code": INTERNAL}
                return
            text += update.text
            counts = usage(answers.jobs, 1)
            yield {
                "text": text,
                "error_code": 0,
                "usage": {name: counts[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")},
                "finish_reason": update.finish or None,
                "logprobs": None,
            }


class Worker:
    """What a controller knows of this process, and the thread that keeps it informed."""

    def __init__(self, service: Service, controller: str, address: str):
        self.service, self.controller, self.address = service, controller.rstrip("/"), address
        self.marks = PromptFormat()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heart beat", daemon=True)

    def start(self) -> None:
        """Register, now and whenever the controller has forgotten this worker."""
        self._thread.start()

    def stop(self) -> None:
        """No more signs of life: the controller drops the worker after a while."""
        self._ended.set()

    def status(self) -> dict[str, Any]:
        """As the controller asks for it."""
        return {"model_names": [self.service.name], "speed": 1, "queue_length": self.service.scheduler.queued}

    def _beat(self) -> None:
        known, pause = False, 0.0
        while not self._ended.wait(pause):
            try:
                known = self._tell(known)
                pause = BEAT
            except (OSError, ValueError, KeyError) as error:
                log.info("no sign of the controller at %s: %s", self.controller, error)
                pause = 2

    def _tell(self, known: bool) -> bool:
        """Whether the controller knows this worker; it is registered where it does not."""
        if known:
            beat = {"worker_name": self.address, "queue_length": self.service.scheduler.queued}
            known = bool(json.loads(_post(f"{self.controller}/receive_heart_beat", beat))["exist"])
        if not known:
            worker = {"worker_name": self.address, "check_heart_beat": True, "worker_status": self.status()}
            _post(f"{self.controller}/register_worker", {**worker, "multimodal": False})
            log.info("registered at %s as %s", self.controller, self.address)
        return True


def _post(url: str, body: dict[str, Any]) -> bytes:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return bytes(answer.read())


def add_worker(app: FastAPI, worker: Worker) -> None:
    """The routes of FastChat's workers."""
    service, marks = worker.service, worker.marks

    @app.post("/worker_generate_stream")
    async def stream(request: Request) -> StreamingResponse:
        found = chunks(await request.body(), service, marks, request)
        return StreamingResponse(_lines(found))

    @app.post("/worker_generate", response_model=None)
    async def generate(request: Request) -> Response:
        last: dict[str, Any] = {}
        try:
            async for one in chunks(await request.body(), service, marks, request):
                last = one
        except Gone:
            return Response(status_code=499)
        return JSONResponse(last)

    @app.post("/worker_get_status")
    async def status() -> dict[str, Any]:
        return worker.status()

    @app.post("/count_token")
    async def count_token(request: Request) -> dict[str, int]:
        """Length of the rendered prompt; one that cannot be rendered counts 0, the generation says why."""
        try:
            count = len(
                marks.tokens(service.model.tokenizer, json_of(await request.body())["prompt"], service.template)
            )
        except (ValueError, TypeError, KeyError):
            count = 0
        return {"count": count, "error_code": 0}

    @app.post("/worker_get_conv_template")
    async def conversation() -> dict[str, Any]:
        return {"conv": marks.conversation()}

    @app.post("/model_details")
    async def details() -> dict[str, int]:
        return {"context_length": service.model.context_length}


async def _lines(found: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    try:
        async for one in found:
            yield json.dumps(one).encode() + b"\0"
    except Gone:
        return
