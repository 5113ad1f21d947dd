"""POST /steps: an answer with its draft trees, and what is refused."""

import json
import re
import urllib.error
import urllib.request

import pytest

from eagle import EagleModel
from tests.eagle.serve.running import PAIR, running, wait_until_free

QUESTION = [{"role": "user", "content": "What is 2 + 3?"}]
DRAFTING = {"tree": "hybrid", "verifier": "hsd", "nodes": 10, "depth": 3}


@pytest.fixture(scope="module")
def model():
    return EagleModel.from_pretrained(*PAIR)


@pytest.fixture(scope="module")
def worker(model):
    with running(model, DRAFTING, max_rows=1, max_queued=2) as (url, service):
        service.url = url
        yield service


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
    begin, *steps, end = events(worker, tree=tree, **({} if tree == "none" else {"nodes": 10, "depth": 3}))
    assert (begin["event"], begin["tree"], begin["ahead"]) == ("begin", "none" if tree == "none" else "topk", 0)
    assert begin["nodes"] == (1 if tree == "none" else 10)
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


def test_auto_is_what_the_server_chooses(worker, model):
    model.auto.settled = True  # as after the measurement at the start
    begin, *_ = events(worker, tree="auto")
    chosen = model.auto.choose(model, 0.0).candidate
    assert (begin["tree"], begin["nodes"]) == (chosen.tree if chosen.nodes > 1 else "none", chosen.nodes)


def test_without_trees(worker):
    assert all(step.get("tree") is None for step in events(worker, trees=False)[1:])


BAD = {
    "no JSON": b"{nonsense",
    "a list": [],
    "no messages": {},
    "no role": {"messages": [{"content": "Hi"}]},
    "a number": {"messages": [5]},
    "an image": {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
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
    assert worker.scheduler.queued == 0


def test_a_cancelled_stream_frees_the_worker_and_a_full_queue_refuses(worker):
    long = {"messages": QUESTION, "temperature": 1.5, "max_tokens": 1500, "trees": False}
    first, waiting = open_request(worker, long), open_request(worker, long)
    assert json.loads(first.readline())["ahead"] == 0
    assert json.loads(waiting.readline())["ahead"] == 1
    with pytest.raises(urllib.error.HTTPError) as refused:
        open_request(worker, long)
    assert refused.value.code == 429
    assert "try again later" in json.load(refused.value)["error"]["message"]
    first.close()
    waiting.close()
    wait_until_free(worker)
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
    assert info["sampling"] == {"temperature": 1.0, "top_p": 1.0, "top_k": 0} and not info["key"]
    assert info["model"] == "demo" and info["drafts"] and info["drafting"]["nodes"] == 10
