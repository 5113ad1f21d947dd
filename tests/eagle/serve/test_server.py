"""python -m eagle.serve with the demo pair and the real openai client: one server for the whole file."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from eagle import EagleModel
from eagle.serve import launch

pytest.importorskip("fastchat")
openai = pytest.importorskip("openai")

QUESTION = [{"role": "user", "content": "What is 2 + 3?"}]
WORKER = ["-m", "eagle.serve", "--pair", "demo", "--worker-only"]


@pytest.fixture(scope="module")
def model():
    return EagleModel.from_pretrained("checkpoints/demo/target", "checkpoints/demo/eagle3", dtype=torch.float32)


@pytest.fixture(scope="module")
def server():
    """The command, its URLs and a client."""
    command = [sys.executable, "-m", "eagle.serve", "--pair", "demo", "--most-queued", "40", "--most-bytes", "20000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    urls = {}
    for line in process.stdout:
        if match := re.match(r"(\w+) +(http://\S+)", line):
            urls[match[1]] = match[2]
        if "Ctrl-C" in line:
            break
    if set(urls) != {"controller", "worker", "page", "API"}:
        process.terminate()
        pytest.fail(f"the server printed {urls} and ended with {process.wait(20)}")
    client = openai.OpenAI(base_url=urls["API"], api_key="none", max_retries=0, timeout=60)
    yield SimpleNamespace(process=process, client=client, **urls)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def post(url: str, body: dict | bytes) -> tuple[int, dict]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def chat(server, messages=QUESTION, **options):
    options = {"temperature": 0, "max_tokens": 8, **options}
    return server.client.chat.completions.create(model="demo", messages=messages, **options)


def alone(model, messages, max_new_tokens=8) -> tuple[str, int, int]:
    """Text and token counts of the same request to `generate`."""
    ids = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    new = model.generate(ids, max_new_tokens=max_new_tokens, temperature=0)[0, ids.shape[1] :]
    return model.tokenizer.decode(new, skip_special_tokens=True), ids.shape[1], len(new)


def queued(server) -> int:
    return post(f"{server.worker}/worker_get_status", {})[1]["queue_length"]


def wait_until_free(server, seconds=20) -> None:
    end = time.monotonic() + seconds
    while queued(server):
        assert time.monotonic() < end, "the worker is still busy"
        time.sleep(0.05)


def test_models(server):
    assert [one.id for one in server.client.models.list()] == ["demo"]


def test_an_answer_has_the_tokens_of_generate(server, model):
    messages = [{"role": "system", "content": "Be brief."}, *QUESTION]
    answer = chat(server, messages)
    text, prompt, new = alone(model, messages)
    assert answer.choices[0].message.content == text
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, new)
    assert answer.usage.total_tokens == prompt + new
    assert answer.choices[0].finish_reason == ("length" if new == 8 else "stop")


def test_a_stream_has_the_same_text_in_pieces(server, model):
    chunks = [one.choices[0] for one in chat(server, stream=True, max_tokens=20)]
    pieces = [one.delta.content for one in chunks if one.delta.content]
    assert "".join(pieces) == alone(model, QUESTION, 20)[0]
    assert len(pieces) > 1
    assert chunks[-1].finish_reason in ("stop", "length")


def test_stop_strings_end_the_text_before_them(server):
    whole = chat(server, max_tokens=20).choices[0].message.content
    stop = whole[len(whole) // 2 :][:3]
    answer = chat(server, max_tokens=20, stop=[stop]).choices[0]
    assert answer.message.content == whole[: whole.index(stop)]
    assert answer.finish_reason == "stop"
    streamed = "".join(
        one.choices[0].delta.content or "" for one in chat(server, max_tokens=20, stop=stop, stream=True)
    )
    assert streamed == answer.message.content


def test_completions_and_choices(server):
    create = server.client.completions.create
    answer = create(model="demo", prompt="2 + 3 =", max_tokens=4, temperature=0, echo=True)
    assert answer.choices[0].text.startswith("2 + 3 =")
    assert answer.usage.completion_tokens == 4 or answer.choices[0].finish_reason == "stop"
    answer = create(model="demo", prompt="One day", max_tokens=6, temperature=1.0, top_p=0.9, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.text for choice in answer.choices}) > 1
    streamed = create(model="demo", prompt="2 + 3 =", max_tokens=4, temperature=0, stream=True)
    expected = create(model="demo", prompt="2 + 3 =", max_tokens=4, temperature=0).choices[0].text
    assert "".join(one.choices[0].text for one in streamed) == expected


BAD = {
    "no such model": {"model": "gpt-5"},
    "temperature": {"temperature": -1},
    "hot": {"temperature": 3},
    "top_p": {"top_p": 2},
    "max_tokens": {"max_tokens": 0},
    "type": {"max_tokens": "many"},
    "n": {"n": 1000},
    "no messages": {"messages": []},
    "role": {"messages": [{"role": "king", "content": "Hi"}]},
    "no content": {"messages": [{"role": "user"}]},
    "context": {"messages": [{"role": "user", "content": "word " * 3000}]},
    "penalty": {"presence_penalty": 0.5},
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_with_a_sentence(server, name):
    body = {"model": "demo", "messages": QUESTION, "max_tokens": 4, **BAD[name]}
    status, answer = post(f"{server.API}/chat/completions", body)
    assert 400 <= status < 500, answer
    assert len(answer["error"]["message"].split()) > 3
    assert queued(server) == 0


def test_requests_that_are_too_large_or_no_json(server):
    status, answer = post(
        f"{server.API}/chat/completions", {"model": "demo", "messages": [{"role": "user", "content": "x" * 30000}]}
    )
    assert (status, "20000" in answer["error"]["message"]) == (413, True)
    assert post(f"{server.API}/chat/completions", b"{nonsense")[0] == 400


def test_32_requests_at_once_each_get_their_own_answer(server, model):
    conversations = [[{"role": "user", "content": f"What is {i} + {i * i}?"}] for i in range(32)]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda messages: chat(server, messages, max_tokens=4), conversations))
    expected = [alone(model, messages, 4)[0] for messages in conversations]
    assert [answer.choices[0].message.content for answer in answers] == expected
    assert len({answer.id for answer in answers}) == 32


def test_a_cancelled_stream_frees_the_worker(server):
    stream = server.client.completions.create(
        model="demo", prompt="One day", max_tokens=1500, temperature=1, stop=["no such text"], stream=True
    )
    next(iter(stream))
    assert queued(server) == 1
    stream.close()
    wait_until_free(server, 5)
    assert chat(server, max_tokens=1).usage.completion_tokens == 1


def test_a_killed_worker_loses_only_its_own_requests(server, tmp_path):
    with launch.Server() as second:
        port = launch.free_port("127.0.0.1")
        worker = second.start("worker", [*WORKER, "--controller", server.controller, "--port", str(port)])
        status = f"http://127.0.0.1:{port}/worker_get_status"
        while "is registered" not in worker.log.read_text():
            second.check()
            time.sleep(0.2)
        stream = chat(server, stream=True, max_tokens=1000, temperature=1)
        next(iter(stream))
        chat(server, max_tokens=1)  # to the other one: its queue is shorter
        both = queued(server), post(status, {})[1]["queue_length"]
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
        stream.close()
        answers = [chat(server, max_tokens=2).choices[0].message.content for _ in range(4)]
        assert len(set(answers)) == 1
        assert sum(both) <= 1
        assert [one.id for one in server.client.models.list()] == ["demo"]


def test_a_full_queue_refuses(server):
    """40 requests of 16 choices; what is not refused is answered."""

    def ask(_):
        try:
            return len(chat(server, n=16, max_tokens=1).choices)
        except openai.RateLimitError as error:
            return str(error)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(6)))
    refused = [answer for answer in answers if answer != 16]
    assert 0 < len(refused) < 6
    assert all("try again later" in answer for answer in refused)
    wait_until_free(server)


def test_ctrl_c_ends_every_process(server):
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(20) == 0
    for url in (server.controller, server.worker, server.API):
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(url, timeout=2)
