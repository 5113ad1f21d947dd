"""Whose requests are answered: hosts, origins, JSON, sizes, the key. The table without a server, and one real one."""

import http.client

import pytest

from eagle import EagleModel
from eagle.serve.guard import Rules
from eagle.serve.refusal import Refused
from tests.eagle.serve.running import PAIR, get, post, running

JSON = {"content-type": "application/json", "content-length": "5"}


def refused(rules: Rules, method: str, path: str = "/v1/models", **headers: str) -> int:
    """The status, 0 where the request is answered."""
    try:
        rules.check(method, path, {name.replace("_", "-"): value for name, value in headers.items()})
    except Refused as error:
        found = error
    else:
        return 0
    assert len(str(found).split()) > 4
    return found.status


@pytest.mark.parametrize(
    ("rules", "host", "status"),
    [
        (Rules(), "127.0.0.1:8000", 0),
        (Rules(), "localhost", 0),
        (Rules(), "LOCALHOST:1", 0),
        (Rules(), "[::1]:8000", 0),
        (Rules(), "", 421),
        (Rules(), "evil.example:8000", 421),
        (Rules(), "127.0.0.1.evil.example", 421),
        (Rules(), "10.0.0.1:8000", 421),
        (Rules(), "[", 421),
        (Rules("10.0.0.1"), "10.0.0.1:8000", 0),
        (Rules("0.0.0.0"), "10.0.0.1:8000", 0),
        (Rules("0.0.0.0"), "evil.example", 421),
        (Rules("0.0.0.0", ["chat.example"]), "Chat.Example:443", 0),
    ],
)
def test_hosts(rules, host, status):
    """A name of another site that resolves to this machine (DNS rebinding) is refused."""
    assert refused(rules, "GET", host=host) == status
    assert refused(rules, "POST", host=host, **JSON) == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 0),
        ("http://localhost:8000", 0),
        ("http://localhost:9000", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("https://chat.example", 0),
    ],
)
def test_origins_of_every_post(origin, status):
    rules, headers = Rules(origins=["https://chat.example"]), {"host": "localhost:8000", **JSON}
    if origin is not None:
        headers["origin"] = origin
    assert refused(rules, "POST", **headers) == status
    assert refused(rules, "GET", **headers) == 0


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"])
def test_other_sites_forms_cannot_ask(kind):
    """A form of another site can send these kinds without asking the server first."""
    headers = {"host": "localhost", "content-type": kind, "content-length": "5"}
    assert refused(Rules(), "POST", **headers) == 415
    chunked = {"host": "localhost", "content-type": kind, "transfer-encoding": "chunked"}
    assert refused(Rules(), "POST", **chunked) == 415
    assert refused(Rules(), "POST", **{**headers, "content-type": "application/json; charset=utf-8"}) == 0


@pytest.mark.parametrize("sent", ["", "Bearer", "Bearer wrong", "Basic secret", "Bearer secret2", "Bearer sécret"])
def test_the_key(sent):
    rules = Rules(api_key="secret")
    assert refused(rules, "GET", host="localhost", authorization=sent) == 401
    assert refused(rules, "GET", host="localhost", authorization="bearer secret") == 0
    assert refused(rules, "GET", "/health", host="localhost") == 0


@pytest.fixture(scope="module")
def url():
    model = EagleModel.from_pretrained(*PAIR)
    rules = Rules(api_key="secret", max_bytes=2000, origins=["https://chat.example"])
    with running(model, rules=rules) as (url, _):
        yield url


KEY = {"Authorization": "Bearer secret"}
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


def test_every_route_is_behind_it(url):
    for path in ("/v1/models", "/metrics", "/info"):
        assert get(url + path)[0] == 401
        assert get(url + path, **KEY)[0] == 200
    for path in ("/v1/chat/completions", "/v1/completions", "/steps"):
        status, body = post(url + path, CHAT)
        assert (status, body["error"]["code"]) == (401, "invalid_api_key")
        assert post(url + path, CHAT, Host="evil.example", **KEY)[0] == 421
        assert post(url + path, CHAT, Origin="https://evil.example", **KEY)[0] == 403
        assert post(url + path, CHAT, Content_Type="text/plain", **KEY)[0] == 415
        assert post(url + path, b"x" * 2001, **KEY)[0] == 413
        status, body = post(url + path, b"[" * 1500, **KEY)
        assert (status, "no JSON" in body["error"]["message"]) == (400, True)
    assert post(f"{url}/v1/chat/completions", CHAT, **KEY)[0] == 200
    assert get(f"{url}/health")[0] == get(f"{url}/")[0] == 200


def test_a_body_that_never_says_how_long_it_is(url):
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    headers = {"Content-Type": "application/json", "Transfer-Encoding": "chunked", **KEY}
    connection.request("POST", "/v1/chat/completions", iter([b"x" * 900] * 4), headers, encode_chunked=True)
    assert connection.getresponse().status == 413


def test_cors_for_allowed_sites_only(url):
    for origin, allowed in (("https://chat.example", True), ("https://evil.example", False)):
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        connection.request("OPTIONS", "/v1/chat/completions", headers=asks)
        answer = connection.getresponse()
        assert (answer.getheader("Access-Control-Allow-Origin") == origin) == allowed


def test_errors_say_nothing_of_the_installation(url):
    bodies = [
        post(f"{url}/v1/chat/completions", {"messages": [{"role": "user", "content": "word " * 300}], "n": 99}, **KEY),
        post(f"{url}/nowhere", {}, **KEY),
        post(f"{url}/v1/models", {}, **KEY),
        get(f"{url}/v1/models/..%2f..%2fetc%2fpasswd", **KEY),
        post(f"{url}/v1/completions", {"prompt": "x", "logit_bias": {"5": "x"}}, **KEY),
    ]
    for status, body in bodies:
        assert 400 <= status < 500
        text = str(body)
        assert not any(word in text for word in (".py", "site-packages", "/usr", "/root", "/home", "Traceback"))
