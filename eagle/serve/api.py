"""FastChat's OpenAI-compatible API server with what it lacks: request sizes, status codes, workers that are gone.

    run(controller, host, port, most_bytes)

FastChat answers every error with status 400 and a sentence; here a full queue is 429 and a missing worker 503. A worker
that does not answer any more is dropped from the controller when a request meets it, instead of a minute later.
"""

import aiohttp
import uvicorn
from fastapi import Request
from fastapi.responses import JSONResponse
from fastchat.constants import ErrorCode
from fastchat.protocol import openai_api_protocol as protocol
from fastchat.serve import openai_api_server as server

from eagle.serve.limits import MAX_BYTES, SizeLimit
from eagle.serve.prompts import check_messages

MAX_CHOICES = 16  # `n` of one request
STATUS = {
    ErrorCode.RATE_LIMIT: 429,
    ErrorCode.INTERNAL_ERROR: 500,
    ErrorCode.CONTROLLER_NO_WORKER: 503,
}


class NoWorker(Exception):
    """No worker answers for a model."""


def error_response(code: int, message: str) -> JSONResponse:
    """OpenAI's form of an error; `message` is one sentence."""
    kind = "server_error" if code >= 50000 else "invalid_request_error"
    body = {"error": {"message": message, "type": kind, "param": None, "code": int(code)}}
    return JSONResponse(body, status_code=STATUS.get(ErrorCode(code), 400))


def too_large(message: str) -> JSONResponse:
    """The error of a request above the size limit."""
    return error_response(ErrorCode.PARAM_OUT_OF_RANGE, message)


async def worker_address(model: str) -> str:
    """A worker that answers; those that do not are dropped from the controller."""
    controller = server.app_settings.controller_address
    for _ in range(3):
        address = await server.fetch_remote(f"{controller}/get_worker_address", {"model": model}, "address")
        if address and await answers(address):
            return address
        await server.fetch_remote(f"{controller}/refresh_all_workers")
    raise NoWorker(f"no worker for the model {model!r} answers: start one, or try again later")


async def answers(address: str) -> bool:
    """Whether a worker is there."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
            session.post(f"{address}/worker_get_status") as response,
        ):
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


async def conversation(model: str, address: str) -> dict:
    """A worker's conversation template, always asked for: a worker started again has a new one."""
    return await server.fetch_remote(f"{address}/worker_get_conv_template", {"model": model}, "conv")


def check_request(request: protocol.ChatCompletionRequest | protocol.CompletionRequest) -> JSONResponse | None:
    """FastChat's checks and ours."""
    if request.n is not None and request.n > MAX_CHOICES:
        return error_response(ErrorCode.PARAM_OUT_OF_RANGE, f"n={request.n} is more than {MAX_CHOICES}")
    if hasattr(request, "messages"):
        try:
            check_messages(request.messages)
        except ValueError as error:
            return error_response(ErrorCode.PARAM_OUT_OF_RANGE, str(error))
    prompt = getattr(request, "prompt", "text")
    if not prompt or (isinstance(prompt, list) and not all(isinstance(text, str) and text for text in prompt)):
        return error_response(ErrorCode.PARAM_OUT_OF_RANGE, "prompt: expected a text, or a list of texts, not empty")
    return _fastchat_checks(request)


_fastchat_checks = server.check_requests


def dump(self, **options) -> str:
    """FastChat calls pydantic's old `json(ensure_ascii=...)`, which pydantic 2 refuses."""
    options.pop("ensure_ascii", None)
    return self.model_dump_json(**options)


def install(controller: str, most_bytes: int = MAX_BYTES):
    """FastChat's app with the changes of this module."""
    server.app_settings.controller_address = controller
    server.create_error_response = error_response
    server.get_worker_address = worker_address
    server.get_conv = conversation
    server.check_requests = check_request
    protocol.ChatCompletionStreamResponse.json = dump
    protocol.CompletionStreamResponse.json = dump
    server.app.add_middleware(SizeLimit, most=most_bytes, refuse=too_large)

    @server.app.exception_handler(NoWorker)
    async def no_worker(_: Request, error: NoWorker) -> JSONResponse:
        return error_response(ErrorCode.CONTROLLER_NO_WORKER, str(error))

    @server.app.exception_handler(aiohttp.ClientError)
    async def lost(_: Request, error: aiohttp.ClientError) -> JSONResponse:
        return error_response(ErrorCode.CONTROLLER_NO_WORKER, f"the worker was lost: {error}; send the request again")

    return server.app


def run(controller: str, host: str, port: int, most_bytes: int = MAX_BYTES) -> None:
    """Serve until the process ends."""
    uvicorn.run(install(controller, most_bytes), host=host, port=port, log_level="warning")
