"""POST /steps: an answer with its draft trees, and what is refused."""

import json
import re
import time
import urllib.error
import urllib.request

import pytest

from eagle import EagleModel

pytest.importorskip("fastchat")

QUESTION = [{"role": "user", "content": "What is 2 + 3?"}]


@pytest.fixture(scope="module")
def model():
    return EagleModel.from_pretrained("checkpoints/demo/target", "checkpoints/demo/eagle3")


@pytest.fixture(scope="module")
def worker(model):
    from tests.eagle.serve.running import running

    with running(model, most_queued=2, tree="hybrid", verifier="hsd", nodes=10, depth=3) as (url, worker):
        worker.url = url
        yield worker


def open_request(worker, body, kind="application/json"):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return urllib.request.urlopen(
        urllib.request.Request(f"{worker.url}/steps", data, {"Content-Type": kind}), timeout=60
    )


def events(worker, **body) -> list[dict]:
    with open_request(worker, {"messages": QUESTION, "temperature": 0, "max_tokens": 8, **body}) as answer:
        assert answer.headers["Content-Type"].startswith("application/x-ndjson")
        return [json.loads(line) for line in answer]


@pytest.mark.parametrize("tree", ["hybrid", "topk", "none"])
def test_an_answer_by_steps(worker, model, tree):
    *steps, end = events(worker, tree=tree)
    ids = model.tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    new = model.generate(ids, max_new_tokens=8, temperature=0)[0, ids.shape[1] :]
    assert "".join(step["text"] for step in steps) == model.tokenizer.decode(new, skip_special_tokens=True)
    assert [step["event"] for step in steps] == ["step"] * len(steps)
    assert [step["index"] for step in steps] == list(range(len(steps)))
    assert (end["event"], end["tokens"], end["prompt_tokens"]) == ("end", len(new), ids.shape[1])
    assert end["rate"] > 0 and end["finish"] in ("stop", "length")
    assert "tree" not in steps[0]
    for step in steps[1:]:
        columns = step["tree"]
        nodes = len(columns["parent"])
        assert nodes == step["nodes"] == (1 if tree == "none" else 10)
        assert {len(columns[name]) for name in ("text", "sampled", "p", "q", "d", "stop")} == {nodes}
        assert sum(columns["stop"]) == pytest.approx(1, abs=1e-2)
        assert step["accepted"] <= len(columns["path"]) - 1
        assert all(isinstance(text, str) for text in [*columns["text"], columns["bonus"]])


def test_without_trees(worker):
    assert all(step.get("tree") is None for step in events(worker, trees=False))


BAD = {
    "no JSON": b"{nonsense",
    "a list": [],
    "no messages": {},
    "no role": {"messages": [{"content": "Hi"}]},
    "a number": {"messages": [5]},
    "an empty content": {"messages": [{"role": "user", "content": ""}]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
    "an unknown name": {"messages": QUESTION, "verifer": "hsd"},
    "an unknown tree": {"messages": QUESTION, "tree": "oak"},
    "a verifier that is not lossless": {"messages": QUESTION, "verifier": "published"},
    "temperature": {"messages": QUESTION, "temperature": -1},
    "NaN": b'{"messages": [{"role": "user", "content": "Hi"}], "temperature": NaN}',
    "text for a number": {"messages": QUESTION, "nodes": "many"},
    "too many tokens": {"messages": QUESTION, "max_tokens": 0},
    "too many nodes": {"messages": QUESTION, "nodes": 10**9},
    "trees": {"messages": QUESTION, "trees": 1},
    "a prompt that fills the context": {"messages": [{"role": "user", "content": "word " * 3000}]},
    "greedy above temperature 0": {"messages": QUESTION, "verifier": "greedy", "temperature": 1},
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_with_a_sentence(worker, name):
    with pytest.raises(urllib.error.HTTPError) as refused:
        open_request(worker, BAD[name])
    assert refused.value.code == 400
    assert len(json.load(refused.value)["error"]["message"].split()) > 3
    assert worker.queued == 0


@pytest.mark.parametrize("path", ["steps", "worker_generate"])
def test_sizes(worker, path):
    """Behind FastChat's API a request is larger than what its client sent."""
    body = json.dumps({"messages": [{"role": "user", "content": "x" * (20001 if path == "steps" else 200000)}]})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(
            urllib.request.Request(f"{worker.url}/{path}", body.encode(), {"Content-Type": "application/json"})
        )
    assert refused.value.code == 413
    assert "larger than" in json.load(refused.value)["error"]["message"]


@pytest.mark.parametrize("body", [b"[" * 9000, b'{"messages": ', b"\xff\xfe"], ids=["deep", "cut", "no UTF-8"])
def test_a_body_that_is_no_json_is_refused(worker, body):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(
            urllib.request.Request(f"{worker.url}/steps", body, {"Content-Type": "application/json"})
        )
    assert refused.value.code == 400
    assert "no JSON" in json.load(refused.value)["error"]["message"]


def test_other_sites_cannot_ask(worker):
    """A form of another site can send text, not JSON, without asking the server first."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        open_request(worker, {"messages": QUESTION}, "text/plain")
    assert refused.value.code == 415


def test_a_cancelled_stream_frees_the_worker_and_a_full_queue_refuses(worker):
    long = {"messages": QUESTION, "temperature": 1.5, "max_tokens": 1500, "trees": False}
    running, waiting = open_request(worker, long), open_request(worker, long)
    assert json.loads(running.readline())["event"] == "step"
    assert json.loads(waiting.readline()) == {"event": "queued", "ahead": 1}
    with pytest.raises(urllib.error.HTTPError) as refused:
        open_request(worker, long)
    assert refused.value.code == 429
    assert "try again later" in json.load(refused.value)["error"]["message"]
    running.close()
    waiting.close()
    end = time.monotonic() + 10
    while worker.queued:
        assert time.monotonic() < end, "the worker is still busy"
        time.sleep(0.02)
    assert events(worker)[-1]["event"] == "end"


def test_the_page_and_its_policy(worker):
    with urllib.request.urlopen(f"{worker.url}/") as answer:
        html, policy = answer.read().decode(), answer.headers["Content-Security-Policy"]
    assert html.startswith("<!doctype html>")
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert policy.count("'sha256-") == 2, "one script, one style"
    markup = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "onclick", "onerror", " style=", "src=")
    assert [word for word in markup if word in html] == []
    assert re.findall(r"https?://[^\"']*", html) == ["http://www.w3.org/2000/svg"], "it loads nothing from elsewhere"
    with urllib.request.urlopen(f"{worker.url}/info") as answer:
        info = json.load(answer)
    assert info["model"] == "demo" and info["drafts"] and info["drafting"]["nodes"] == 10
