"""Answers from a server that has the target: any with OpenAI's /v1/completions that takes and returns token ids.

That is vLLM (`return_token_ids`, version 0.10.2 or later) and `python -m eagle.serve`. Every sampling parameter is
sent: a server's defaults may be those of the model's generation_config.json (vLLM's are).
"""

import json
import os
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from eagle.train.data.sampler import Request

TRIES, PAUSE = 4, 2.0  # of a request that a busy or restarting server does not answer; seconds, doubled every time
BUSY = (408, 429, 500, 502, 503, 504)
MAX_SEED = 2**31  # what every server takes


class Endpoint:
    """Answers requests as `Sampler` does, with at most `rows` of them at the server."""

    def __init__(self, url: str, rows: int, ends: list[int], context: int, model: str | None = None) -> None:
        """`url` is what stands before /completions, such as http://127.0.0.1:8000/v1. `model`: its name there, None for
        the only one. The key is OPENAI_API_KEY's, where that is set. Raises ValueError where the server does not
        answer, has no such model, or several and none is named.
        """
        self.url, self.rows, self.ends, self.context = url.rstrip("/"), rows, set(ends), context
        names = [one["id"] for one in self._ask("data", "models")]
        if (model is None and len(names) != 1) or (model is not None and model not in names):
            raise ValueError(f"--endpoint-model {model}: {self.url} has {', '.join(names) or 'none'}; name one of them")
        self.model = model or names[0]

    def run(self, queue: deque[Request]) -> Iterator[tuple[Request, list[int]]]:
        """Yield every request with its answer, end token included, as it ends; requests may be added meanwhile.

        Raises ValueError where the server refuses one, does not answer, or returns no token ids.
        """
        pool = ThreadPoolExecutor(self.rows)
        open_requests: dict[Future[list[int]], Request] = {}
        try:
            while queue or open_requests:
                while queue and len(open_requests) < self.rows:
                    request = queue.popleft()
                    open_requests[pool.submit(self._complete, request)] = request
                for done in wait(open_requests, return_when=FIRST_COMPLETED).done:
                    yield open_requests.pop(done), done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _complete(self, request: Request) -> list[int]:
        body = {
            "model": self.model,
            "prompt": request.prompt,
            "max_tokens": request.limit,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "seed": request.seed % MAX_SEED,
            "stop_token_ids": sorted(self.ends),
            "return_token_ids": True,
        }
        [choice] = self._ask("choices", "completions", body)
        ids = choice.get("token_ids")
        if not ids:
            raise ValueError(
                f"{self.url} returned no token_ids; expected a server that knows return_token_ids, such as vLLM "
                "0.10.2 or later"
            )
        if choice.get("finish_reason") == "stop" and ids[-1] not in self.ends:
            raise ValueError(
                f"{self.url} ended an answer with token {ids[-1]}, which is none of the target's end tokens "
                f"{sorted(self.ends)}: does it serve this target?"
            )
        return list(ids)

    def _ask(self, field: str, route: str, body: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """A field of the answer, tried again where the server is busy or not there."""
        pause = PAUSE
        for left in reversed(range(TRIES)):
            try:
                return list(self._ask_once(route, body)[field])
            except urllib.error.HTTPError as error:
                why = f"{error.code}: {error.read(1000).decode(errors='replace')}"
                left *= error.code in BUSY
            except OSError as error:
                why = str(getattr(error, "reason", error))
            except (ValueError, KeyError, TypeError) as error:  # no address, no JSON, or another one
                why, left = f"{type(error).__name__}: {error}", 0
            if not left:
                break
            time.sleep(pause)
            pause *= 2
        raise ValueError(f"{self.url}/{route}: {why}; is this the address of an OpenAI-compatible server?")

    def _ask_once(self, route: str, body: dict[str, Any] | None) -> Any:
        key = os.environ.get("OPENAI_API_KEY", "none")
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/{route}", data, headers)) as answer:
            return json.load(answer)
