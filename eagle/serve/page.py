"""The page that shows an answer's draft trees: one static file, which may load nothing and run nothing but itself."""

import base64
import hashlib
import re
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).with_name("page.html")


class Page(NamedTuple):
    """The file and the headers it is served with."""

    html: str
    headers: dict[str, str]


def load_page() -> Page:
    """The page, with a policy that allows its own script and style by their hashes and requests to its own server."""
    html = PAGE.read_text(encoding="utf-8")
    policy = [
        "default-src 'none'",
        f"script-src {_hashes(html, 'script')}",
        f"style-src {_hashes(html, 'style')}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    headers = {
        "Content-Security-Policy": "; ".join(policy),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Page(html, headers)


def _hashes(html: str, tag: str) -> str:
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found]
    return " ".join(f"'sha256-{digest}'" for digest in digests)
