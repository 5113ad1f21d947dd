"""Bounds on what a server reads: bodies larger than allowed are refused whatever their header states."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi.responses import Response

MAX_BYTES = 1 << 20  # of a request's body


class SizeLimit:
    """Middleware that refuses bodies of more than `most` bytes; `refuse(sentence)` makes the response (status 413)."""

    def __init__(self, app: Callable[..., Awaitable[None]], most: int, refuse: Callable[[str], Response]):
        self.app, self.most, self.refuse = app, most, refuse

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        """Read the whole body, then answer or pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        while more and len(body) <= self.most:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if len(body) > self.most:
            response = self.refuse(f"the request is larger than {self.most} bytes")
            response.status_code = 413
            await response(scope, receive, send)
            return
        first: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> dict[str, Any]:
            return first.pop() if first else await receive()

        await self.app(scope, replay, send)
