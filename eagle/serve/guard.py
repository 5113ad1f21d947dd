"""What stands before every route: whose requests are answered, and how large they may be.

Host        of loopback, of the address that is listened on, or allowed by name: a page of another site cannot reach the
            server by a name of its own that resolves to this machine
Origin      of every POST that has one: the server's own page, or allowed
body        JSON, at most so many bytes
API key     where the server has one: `Authorization: Bearer KEY`
"""

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse

from eagle.serve.refusal import Refused, error_body

MAX_BYTES = 1 << 20  # of a request's body
LOOPBACK = ("localhost", "127.0.0.1", "::1")
EVERYWHERE = ("0.0.0.0", "::")
OPEN = ("/", "/health")  # readable without a key: the page, which asks for it, and the sign of life

HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}  # by status

Receive = Callable[[], Awaitable[dict[str, Any]]]


@dataclass(frozen=True)
class Rules:
    """Whose requests are answered.

    host        address that is listened on
    hosts       further names in the Host header
    origins     further origins that may POST, such as https://chat.example.org
    api_key     "" for none
    max_bytes   of a body
    """

    host: str = "127.0.0.1"
    hosts: Collection[str] = ()
    origins: Collection[str] = ()
    api_key: str = ""
    max_bytes: int = MAX_BYTES

    def check(self, method: str, path: str, headers: dict[str, str]) -> None:
        """Raises Refused for a request that is not answered."""
        host = headers.get("host", "")
        if not self._allows(host):
            raise Refused(f"the host {host!r} is not served here; start the server with --allow-host NAME", status=421)
        if method == "POST":
            self._check_post(host, headers)
        if self.api_key and path not in OPEN and method != "OPTIONS":
            self._check_key(headers.get("authorization", ""))

    def _allows(self, host: str) -> bool:
        name = _name(host)
        if self.host in EVERYWHERE and _is_address(name):
            return True  # only names can be made to resolve to another machine
        return name in {*LOOPBACK, self.host.lower(), *(one.lower() for one in self.hosts)}

    def _check_post(self, host: str, headers: dict[str, str]) -> None:
        origin = headers.get("origin")
        if origin is not None and origin not in self.origins and urlsplit(origin).netloc.lower() != host.lower():
            raise Refused(
                f"requests from {origin!r} are not answered; start the server with --allow-origin URL", status=403
            )
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if has_body and kind != "application/json":
            raise Refused("send the request as application/json", status=415)

    def _check_key(self, authorization: str) -> None:
        scheme, _, key = authorization.partition(" ")
        same = hmac.compare_digest(key.strip().encode(), self.api_key.encode())
        if scheme.lower() != "bearer" or not same:
            raise Refused("this server needs its API key: send Authorization: Bearer KEY", status=401)


def _name(host: str) -> str:
    """A Host header without its port and brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """Middleware with these rules. Bodies are read whole before a route sees them, whatever their header states."""

    def __init__(self, app: Callable[..., Awaitable[None]], rules: Rules):
        self.app, self.rules = app, rules

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Callable[..., Awaitable[None]]) -> None:
        """Answer a refused request, pass on any other."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self.rules.check(scope["method"], scope["path"], headers)
            body = await self._body(receive)
        except Refused as error:
            await refusal(error)(scope, receive, send)
            return
        if body is not None:
            await self.app(scope, _replayed(body, receive), send)

    async def _body(self, receive: Receive) -> bytes | None:
        """None: the client left."""
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > self.rules.max_bytes:
                raise Refused(f"the request is larger than {self.rules.max_bytes} bytes", status=413)
        return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    first: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> dict[str, Any]:
        return first.pop() if first else await receive()

    return replay


def refusal(error: Refused) -> JSONResponse:
    """The response to a refused request."""
    body = error_body(str(error), error.status, error.param, error.code)
    return JSONResponse(body, error.status, HEADERS.get(error.status))
