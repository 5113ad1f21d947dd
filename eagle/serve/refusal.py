"""A request that is refused: the sentence, and what OpenAI's error object says beside it."""

from typing import Any

CODES = {400: None, 401: "invalid_api_key", 404: "not_found", 429: "rate_limit_exceeded"}


class Refused(ValueError):
    """`param`: the field that is wrong; `status`: of the response; `code`: None for the status's own."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


def error_body(message: str, status: int = 400, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's form of an error; `message` is a sentence."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code or CODES.get(status)}}
