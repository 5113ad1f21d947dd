"""A FastChat worker that decodes with `EagleModel`: one request after another, in the order of arrival.

Beside FastChat's routes: GET / is the page, GET /info what it shows of the model, POST /steps an answer with its trees.

All work on the model happens in one thread. A stream whose client left is closed before the next request begins.
"""

import asyncio
import functools
import json
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from fastchat.constants import ErrorCode
from fastchat.conversation import Conversation
from fastchat.serve.base_model_worker import BaseModelWorker

from eagle.api.eagle_model import EagleModel
from eagle.files import parse_json
from eagle.serve.limits import MAX_BYTES, SizeLimit
from eagle.serve.page import load_page
from eagle.serve.prompts import PromptFormat
from eagle.serve.steps import open_steps, step_events
from eagle.serve.text import TextStep, stream_text

MAX_QUEUED = 64  # requests that wait or run; the next one is refused
NOT_SUPPORTED = {  # what FastChat passes on: the values that change nothing
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logprobs": (None, 0),
    "best_of": (None, 1),
    "use_beam_search": (None, False),
    "images": (None, []),
}


class RequestError(Exception):
    """A request that is not answered. `code`: FastChat's error code."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


def generation_arguments(params: dict[str, Any]) -> dict[str, Any]:
    """Keywords of `EagleModel.stream` from FastChat's parameters. Raises ValueError for what is not supported."""
    for name, neutral in NOT_SUPPORTED.items():
        if params.get(name) not in neutral:
            raise ValueError(f"{name}={params[name]!r} is not supported by this server; leave it out")
    top_k = params.get("top_k")
    arguments = {
        "max_new_tokens": params.get("max_new_tokens"),
        "temperature": params.get("temperature"),
        "top_p": params.get("top_p"),
        "top_k": None if top_k is None or top_k < 0 else top_k,
    }
    return {name: value for name, value in arguments.items() if value is not None}


class Worker(BaseModelWorker):
    """See the module. `drafting`: keywords of `EagleModel.stream` that every request gets."""

    def __init__(
        self,
        model: EagleModel,
        name: str,
        controller: str,
        address: str,
        drafting: dict[str, Any],
        most_queued: int = MAX_QUEUED,
    ):
        self.format = PromptFormat()
        super().__init__(controller, address, self.format.key[:8], name, [name], most_queued)
        self.model, self.drafting, self.most_queued = model, drafting, most_queued
        self.tokenizer, self.context_len = model.tokenizer, model.context_length
        self.queued = 0
        self.text_of = functools.lru_cache(1 << 16)(lambda token: self.tokenizer.decode([token]))
        self._turn = asyncio.Lock()  # asyncio's locks are fair
        self._thread = ThreadPoolExecutor(1, "decoding")

    def make_conv_template(self, conv_template: str | None = None, model_path: str | None = None) -> Conversation:
        """The format whose messages are read back."""
        del conv_template, model_path
        return self.format.conversation()

    def get_queue_length(self) -> int:
        """Requests that wait or run."""
        return self.queued

    def send_heart_beat(self) -> None:
        """As in FastChat; a controller that answers with something unexpected does not end the beats."""
        try:
            super().send_heart_beat()
        except Exception as error:
            print(f"worker: no heart beat to {self.controller_addr}: {error}", flush=True)

    def count_token(self, params: dict[str, Any]) -> dict[str, int]:
        """Length of the rendered prompt; one that cannot be rendered counts 0, the generation says why."""
        try:
            return {"count": len(self.format.tokens(self.tokenizer, params["prompt"])), "error_code": 0}
        except ValueError:
            return {"count": 0, "error_code": 0}

    async def answer(self, params: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """FastChat's chunks of one request: the whole text so far, usage and, in the last one, the finish reason.

        Closing the iterator ends the generation. Raises RequestError before the first chunk.
        """
        self.check_queue()
        prompt, steps = self._open(params)
        text, tokens = params["prompt"] if params.get("echo") else "", 0
        async with aclosing(self._in_turn(steps)) as answer:
            async for step in answer:
                text, tokens = text + step.text, tokens + len(step.tokens)
                yield chunk(text, len(prompt), tokens, step.finish or None)

    def check_queue(self) -> None:
        """Raises RequestError where no further request is taken."""
        if self.queued >= self.most_queued:
            raise RequestError(
                ErrorCode.RATE_LIMIT, f"{self.queued} requests are waiting, the most this worker takes: try again later"
            )

    def events(self, request: Any) -> AsyncGenerator[dict[str, Any], None]:
        """The events of `eagle.serve.steps`. Raises RequestError at once for a request that is refused."""
        self.check_queue()
        try:
            return self._events(open_steps(self.model, request, self.drafting))
        except ValueError as error:
            raise RequestError(ErrorCode.PARAM_OUT_OF_RANGE, str(error)) from error

    async def _events(self, steps: Iterator[TextStep]) -> AsyncGenerator[dict[str, Any], None]:
        try:
            if self.queued:
                yield {"event": "queued", "ahead": self.queued}
            async with aclosing(self._in_turn(steps)) as answer:
                async for step in answer:
                    for event in step_events(step, self.text_of):
                        yield event
        except Exception as error:
            yield {"event": "error", "message": failure(error)["text"]}

    async def _in_turn(self, steps: Iterator[TextStep]) -> AsyncGenerator[TextStep, None]:
        self.check_queue()
        self.queued += 1
        self.call_ct += 1
        try:
            async with self._turn, aclosing(self._in_thread(steps)) as computed:
                async for step in computed:
                    yield step
        finally:
            self.queued -= 1

    def _open(self, params: dict[str, Any]) -> tuple[list[int], Iterator[TextStep]]:
        try:
            prompt = list(self.format.tokens(self.tokenizer, params["prompt"]))
            arguments = {"reuse_cache": True, **self.drafting, **generation_arguments(params)}
            stop_ids = set(params.get("stop_token_ids") or ())
            if stop_ids:
                arguments["eos_token_id"] = sorted(stop_ids | self.model.eos_ids())
            return prompt, stream_text(self.model, prompt, params.get("stop") or (), **arguments)
        except ValueError as error:
            raise RequestError(ErrorCode.PARAM_OUT_OF_RANGE, str(error)) from error

    async def _in_thread(self, steps: Iterator[TextStep]) -> AsyncGenerator[TextStep, None]:
        """The steps, each computed in the decoding thread. The iterator is closed there too, after a running step."""
        loop = asyncio.get_running_loop()
        try:
            while (step := await loop.run_in_executor(self._thread, next, steps, None)) is not None:
                yield step
        finally:
            self._thread.submit(steps.close)  # type: ignore[attr-defined]


def chunk(text: str, prompt_tokens: int, tokens: int, finish: str | None) -> dict[str, Any]:
    """One of FastChat's answers."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}
    return {"text": text, "error_code": 0, "usage": usage, "finish_reason": finish, "logprobs": None}


def failure(error: Exception) -> dict[str, Any]:
    """FastChat's form of an error."""
    code = error.code if isinstance(error, RequestError) else ErrorCode.INTERNAL_ERROR
    return {"text": str(error) or type(error).__name__, "error_code": int(code)}


async def safely(chunks: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[dict[str, Any], None]:
    """The chunks; an exception becomes the last one."""
    try:
        async for one in chunks:
            yield one
    except Exception as error:
        yield failure(error)
    finally:
        await chunks.aclose()


def sentence(status: int, message: str) -> JSONResponse:
    """An error of our own routes."""
    return JSONResponse({"error": {"message": message}}, status_code=status)


def add_page(app: FastAPI, worker: Worker, most_bytes: int) -> None:
    """Our own routes."""
    page = load_page()

    @app.get("/")
    async def index() -> HTMLResponse:
        return HTMLResponse(page.html, headers=page.headers)

    @app.get("/info")
    async def info() -> dict[str, Any]:
        return {
            "model": worker.model_names[0],
            "context": worker.context_len,
            "drafts": worker.model.drafter is not None,
            "drafting": worker.drafting,
        }

    @app.post("/steps", response_model=None)
    async def steps(request: Request) -> JSONResponse | StreamingResponse:
        if not request.headers.get("content-type", "").startswith("application/json"):
            return sentence(415, "send the request as application/json")  # other sites' forms cannot
        body = await request.body()
        if len(body) > most_bytes:
            return sentence(413, f"the request is larger than {most_bytes} bytes")
        try:
            events = worker.events(parse_json(body))
        except ValueError as error:
            return sentence(400, f"the request is no JSON: {error}")
        except RequestError as error:
            return sentence(429 if error.code == ErrorCode.RATE_LIMIT else 400, str(error))
        return StreamingResponse(_lines(events), media_type="application/x-ndjson")


async def _lines(events: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        async for event in events:
            yield json.dumps(event).encode() + b"\n"


def build_app(worker: Worker, most_bytes: int = MAX_BYTES) -> FastAPI:
    """The routes of FastChat's workers and ours. FastChat's API server makes a request up to eight times larger."""
    app = FastAPI()
    app.add_middleware(SizeLimit, most=8 * most_bytes, refuse=lambda message: sentence(413, message))
    add_page(app, worker, most_bytes)

    @app.post("/worker_generate_stream")
    async def generate_stream(request: Request) -> StreamingResponse:
        chunks = safely(worker.answer(await request.json()))
        return StreamingResponse(json.dumps(one).encode() + b"\0" async for one in chunks)

    @app.post("/worker_generate")
    async def generate(request: Request) -> JSONResponse:
        last: dict[str, Any] = {}
        chunks = safely(worker.answer(await request.json()))
        async for one in chunks:
            last = one
            if await request.is_disconnected():
                await chunks.aclose()
                break
        return JSONResponse(last)

    @app.post("/worker_get_status")
    async def status() -> dict[str, Any]:
        return worker.get_status()

    @app.post("/count_token")
    async def count_token(request: Request) -> dict[str, int]:
        return worker.count_token(await request.json())

    @app.post("/worker_get_conv_template")
    async def conversation() -> dict[str, Any]:
        return worker.get_conv_template()

    @app.post("/model_details")
    async def details() -> dict[str, int]:
        return {"context_length": worker.context_len}

    return app
