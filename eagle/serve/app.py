"""The routes of a server.

GET    /health  /metrics  /v1/models  /v1/models/{id}
POST   /v1/chat/completions  /v1/completions                  as OpenAI's
GET    /  /info       POST  /steps                            the page, and what it reads (`eagle.serve.steps`)
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any
from uuid import uuid4

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import HTTPException
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse

from eagle.serve.answers import Answers, Gone
from eagle.serve.fastchat import Worker, add_worker
from eagle.serve.guard import Guard, Rules, refusal
from eagle.serve.page import load_page
from eagle.serve.refusal import Refused, error_body
from eagle.serve.replies import CHAT, COMPLETION, Route, usage
from eagle.serve.requests import Asked, json_of, read_chat, read_completion
from eagle.serve.scheduler import INTERNAL, QueueFull
from eagle.serve.service import Service
from eagle.serve.steps import events_of, read_steps

log = logging.getLogger("eagle.serve")
Reader = Callable[..., Asked]
CLOSED = 499  # in the log: the client left


def build_app(service: Service, rules: Rules | None = None, worker: Worker | None = None) -> FastAPI:
    """The routes of one model; with `worker` those of FastChat's workers, too."""
    rules = rules or Rules()
    app = FastAPI(lifespan=_lifespan(service, worker), docs_url=None, redoc_url=None, openapi_url=None)
    if rules.origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(rules.origins), allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Guard, rules=rules)
    _add_errors(app)
    _add_models(app, service)
    _add_openai(app, service)
    _add_page(app, service, bool(rules.api_key))
    if worker is not None:
        add_worker(app, worker)
    return app


def _lifespan(service: Service, worker: Worker | None) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if worker is not None:
            worker.start()
        yield
        if worker is not None:
            worker.stop()
        service.close()

    return lifespan


def _add_errors(app: FastAPI) -> None:
    """Every error is a JSON object with a sentence; what only the log should say goes there."""

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        status = error.status_code
        return JSONResponse(error_body(f"{error.detail}: {request.method} {request.url.path}", status), status)

    @app.exception_handler(Exception)
    async def internal(_: Request, error: Exception) -> JSONResponse:
        log.error("a request failed", exc_info=error)
        return JSONResponse(error_body(INTERNAL, 500), 500)


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> dict[str, Any]:
        scheduler = service.scheduler
        return {"status": "ok", "running": scheduler.running, "waiting": scheduler.queued - scheduler.running}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.meters.text(), media_type=service.meters.content_type)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [service.card()]}

    @app.get("/v1/models/{name:path}", response_model=None)
    async def model(name: str) -> dict[str, Any] | JSONResponse:
        if name == service.name:
            return service.card()
        message = f"the model {name!r} is not here; this server has {service.name!r}"
        return refusal(Refused(message, "model", 404, "model_not_found"))


def _add_openai(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", response_model=None)
    async def chat(request: Request) -> Response:
        return await respond(service, request, CHAT, read_chat)

    @app.post("/v1/completions", response_model=None)
    async def completions(request: Request) -> Response:
        return await respond(service, request, COMPLETION, read_completion)


async def respond(service: Service, request: Request, route: Route, read: Reader) -> Response:
    """Read a request and answer it, at once or as a stream."""
    began, path = time.perf_counter(), request.url.path
    try:
        body = json_of(await request.body())
        asked = await asyncio.to_thread(read, body, service.model, service.name, service.drafting, service.template)
        answers = open_answers(service, asked)
    except ValueError as error:
        found = error if isinstance(error, Refused) else refused(error)
        service.note(path, found.status, (), began)
        return refusal(found)
    reply = Reply(service, request, route, asked, answers, began)
    if asked.stream:
        return StreamingResponse(reply.stream(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    return await reply.whole()


def open_answers(service: Service, asked: Asked) -> Answers:
    """Queue a request's rows. Raises Refused where the queue is full."""
    try:
        return Answers(service.scheduler, asked.prepared, asked.choices, stop=asked.stop, logprobs=asked.logprobs)
    except QueueFull as error:
        raise Refused(str(error), status=429) from error


def refused(error: ValueError) -> Refused:
    """A ValueError of ours, which begins with the argument that is wrong where one is."""
    message = str(error)
    name = message.partition("=")[0].partition(":")[0]
    return Refused(message, name if name.isidentifier() else None)


class Reply:
    """The response to one request of OpenAI's kind."""

    def __init__(self, service: Service, request: Request, route: Route, asked: Asked, answers: Answers, began: float):
        self.service, self.request, self.route, self.asked, self.answers = service, request, route, asked, answers
        self.began, self.path = began, request.url.path
        self.head = {"id": f"{route.prefix}-{uuid4().hex}", "created": int(time.time()), "model": service.name}
        self.offsets = [0] * len(answers.jobs)

    async def whole(self) -> Response:
        """All choices in one object."""
        texts, finishes = [self._echo(index) for index in range(len(self.offsets))], [""] * len(self.offsets)
        found: list[list[Any]] = [[] for _ in texts]
        try:
            async with aclosing(self.answers.updates(self.request.receive)) as updates:
                async for index, update in updates:
                    if update.error:
                        return self._failed(update.error)
                    texts[index] += update.text
                    found[index] += update.logprobs
                    finishes[index] = update.finish
        except Gone:
            self._note(CLOSED)
            return Response(status_code=CLOSED)
        choices = [
            {
                "index": index,
                **self.route.choice(text, self._logprobs(logprobs, 0)),
                "finish_reason": finish,
                **self._token_ids(index),
            }
            for index, (text, logprobs, finish) in enumerate(zip(texts, found, finishes))
        ]
        self._note(200)
        return JSONResponse({**self.head, "object": self.route.kind, "choices": choices, "usage": self._usage()})

    async def stream(self) -> AsyncIterator[str]:
        """Server-sent events: the roles, a piece per step that has one, the usage where it was asked for."""
        status = CLOSED
        try:
            for index in range(len(self.offsets)):
                for piece in self._first(index):
                    yield self._event(index, piece, None)
            async with aclosing(self.answers.updates(self.request.receive)) as updates:
                async for index, update in updates:
                    if update.error:
                        status = 500
                        yield sent(error_body(update.error, 500))
                        return
                    for event in self._events(index, update):
                        yield event
            if self.asked.usage_chunk:
                yield sent({**self.head, "object": self.route.chunk, "choices": [], "usage": self._usage()})
            yield "data: [DONE]\n\n"
            status = 200
        except Gone:
            return
        finally:
            self.answers.cancel()
            self._note(status)

    def _first(self, index: int) -> Iterator[dict[str, Any]]:
        if self.route is CHAT:
            yield {"delta": {"role": "assistant", "content": ""}, "logprobs": None}
        elif self._echo(index):
            yield self.route.piece(self._echo(index), None)

    def _events(self, index: int, update: Any) -> Iterator[str]:
        """The pieces of one step, the last one's finish reason in a piece of its own."""
        if update.text or update.logprobs:
            logprobs = self._logprobs(update.logprobs, self.offsets[index])
            yield self._event(index, self.route.piece(update.text, logprobs), None)
            self.offsets[index] += len(update.text)
        if update.finish:
            yield self._event(index, self.route.piece("", None), update.finish)

    def _event(self, index: int, piece: dict[str, Any], finish: str | None) -> str:
        usage_field = {"usage": None} if self.asked.usage_chunk else {}
        choice = {"index": index, **piece, "finish_reason": finish}
        return sent({**self.head, "object": self.route.chunk, "choices": [choice], **usage_field})

    def _echo(self, index: int) -> str:
        return self.asked.echoes[index // self.asked.choices] if self.asked.echoes else ""

    def _logprobs(self, found: list[Any], offset: int) -> dict[str, Any] | None:
        if self.asked.logprobs is None:
            return None
        return self.route.logprobs(found, self.service.text_of, offset)

    def _token_ids(self, index: int) -> dict[str, Any]:
        row = self.answers.jobs[index].row
        return {"token_ids": row.new_tokens} if self.asked.token_ids and row is not None else {}

    def _usage(self) -> dict[str, Any]:
        return usage(self.answers.jobs, self.asked.choices)

    def _failed(self, message: str) -> Response:
        self._note(500)
        return JSONResponse(error_body(message, 500), 500)

    def _note(self, status: int) -> None:
        self.service.note(self.path, status, self.answers.jobs, self.began, self.asked.user)


def sent(value: Any) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(value)}\n\n"


def _add_page(app: FastAPI, service: Service, locked: bool) -> None:
    page = load_page()

    @app.get("/")
    async def index() -> HTMLResponse:
        return HTMLResponse(page.html, headers=page.headers)

    @app.get("/info")
    async def info() -> dict[str, Any]:
        return {
            "model": service.name,
            "context": service.model.context_length,
            "drafts": service.model.drafter is not None,
            "drafting": service.drafting,
            "sampling": service.sampling(),
            "key": locked,
        }

    @app.post("/steps", response_model=None)
    async def steps(request: Request) -> Response:
        began = time.perf_counter()
        try:
            body = json_of(await request.body())
            asked = await asyncio.to_thread(read_steps, body, service.model, service.drafting, service.template)
            answers = open_answers(service, asked)
        except ValueError as error:
            found = error if isinstance(error, Refused) else refused(error)
            service.note("/steps", found.status, (), began)
            return refusal(found)
        return StreamingResponse(_lines(service, request, answers, began), media_type="application/x-ndjson")


async def _lines(service: Service, request: Request, answers: Answers, began: float) -> AsyncIterator[bytes]:
    status = CLOSED
    try:
        async with aclosing(answers.updates(request.receive)) as updates:
            async for event in events_of(answers, updates, service.text_of):
                yield json.dumps(event).encode() + b"\n"
        status = 200
    except Gone:
        return
    finally:
        answers.cancel()
        service.note("/steps", status, answers.jobs, began)
