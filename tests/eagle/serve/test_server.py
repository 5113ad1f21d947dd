"""The routes with the real openai client, and the command as a process."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from eagle import EagleModel
from tests.eagle.serve.running import DRAFTING, PAIR, get, post, running, wait_until_free

openai = pytest.importorskip("openai")

QUESTION = [{"role": "user", "content": "What is 2 + 3?"}]


@pytest.fixture(scope="module")
def model():
    return EagleModel.from_pretrained(*PAIR, dtype=torch.float32)


@pytest.fixture(scope="module")
def server(model):
    with running(model, max_queued=40) as (url, service):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
        yield SimpleNamespace(url=url, service=service, client=client)


def chat(server, messages=QUESTION, **options):
    options = {"temperature": 0, "max_tokens": 8, **options}
    return server.client.chat.completions.create(model="demo", messages=messages, **options)


def complete(server, prompt="One day", **options):
    return server.client.completions.create(model="demo", prompt=prompt, **{"max_tokens": 8, **options})


def alone(model, messages, **options) -> tuple[str, int, int]:
    """Text and token counts of the same request to `generate`."""
    ids = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    options = {**DRAFTING, "temperature": 0, "max_new_tokens": 8, **options}
    new = model.generate(ids, **options)[0, ids.shape[1] :]
    return model.tokenizer.decode(new, skip_special_tokens=True), ids.shape[1], len(new)


def test_models_health_and_metrics(server):
    assert [one.id for one in server.client.models.list()] == ["demo"]
    assert server.client.models.retrieve("demo").object == "model"
    with pytest.raises(openai.NotFoundError, match="'gpt-5' is not here"):
        server.client.models.retrieve("gpt-5")
    chat(server)
    assert get(f"{server.url}/health") == (200, {"status": "ok", "running": 0, "waiting": 0})
    status, text = get(f"{server.url}/metrics")
    values = dict(re.findall(r"^(eagle_\S+) (\S+)$", text.decode(), re.MULTILINE))
    assert status == 200
    assert float(values['eagle_requests_total{route="/v1/chat/completions",status="200"}']) >= 1
    for name in ("prompt_tokens_total", "generated_tokens_total", "steps_total", "accepted_tokens_per_step_count"):
        assert float(values[f"eagle_{name}"]) > 0
    assert float(values["eagle_rows_running"]) == float(values["eagle_rows_waiting"]) == 0


def test_an_answer_has_the_tokens_of_generate(server, model):
    messages = [{"role": "system", "content": "Be brief."}, *QUESTION]
    for options in ({}, {"temperature": 1, "seed": 3}, {"temperature": 0.7, "seed": 4, "top_p": 0.9}):
        answer = chat(server, messages, **options)
        text, prompt, new = alone(model, messages, **options)
        assert answer.choices[0].message.content == text
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, new)
        assert answer.usage.total_tokens == prompt + new
        assert answer.choices[0].finish_reason == ("length" if new == 8 else "stop")
        assert answer.object == "chat.completion" and answer.created > 1e9
        drafted = answer.usage.completion_tokens_details
        assert drafted.accepted_prediction_tokens >= 0 and drafted.rejected_prediction_tokens > 0


def test_a_stream_has_the_same_text_in_pieces(server, model):
    chunks = list(chat(server, stream=True, max_tokens=20, stream_options={"include_usage": True}))
    pieces = [one.choices[0].delta.content for one in chunks if one.choices and one.choices[0].delta.content]
    assert "".join(pieces) == alone(model, QUESTION, max_new_tokens=20)[0]
    assert len(pieces) > 1
    assert {one.object for one in chunks} == {"chat.completion.chunk"}
    assert len({(one.id, one.created, one.model) for one in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 20
    assert all(one.usage is None for one in chunks[:-1])
    assert all(one.usage is None for one in chat(server, stream=True))


def test_characters_of_several_tokens_arrive_whole(server, model):
    """The emoji is forced token by token: four tokens, one character."""
    tokens = model.tokenizer("🙂", add_special_tokens=False).input_ids
    assert len(tokens) > 2
    bias = {str(token): 60 for token in tokens}
    options = {"temperature": 1, "seed": 1, "max_tokens": 40, "logit_bias": bias, "stream": True}
    pieces = [one.choices[0].delta.content or "" for one in chat(server, **options)]
    whole = chat(server, **{**options, "stream": False}).choices[0].message.content
    assert "".join(pieces) == whole
    for piece in pieces[:-2]:
        piece.encode()
    assert all(not piece.endswith("\ufffd") or piece == "\ufffd" * len(piece) for piece in pieces)


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


def test_completions_choices_and_echo(server):
    answer = complete(server, "2 + 3 =", max_tokens=4, temperature=0, echo=True)
    assert answer.choices[0].text.startswith("2 + 3 =") and answer.object == "text_completion"
    answer = complete(server, temperature=1.0, top_p=0.9, n=3, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.text for choice in answer.choices}) > 1
    again = complete(server, temperature=1.0, top_p=0.9, n=3, seed=1)
    assert [choice.text for choice in again.choices] == [choice.text for choice in answer.choices]
    several = complete(server, ["2 + 3 =", "One day"], temperature=0, n=1)
    one_by_one = [complete(server, prompt, temperature=0).choices[0].text for prompt in ("2 + 3 =", "One day")]
    assert [choice.text for choice in several.choices] == one_by_one
    streamed = complete(server, "2 + 3 =", temperature=0, stream=True, echo=True)
    assert "".join(one.choices[0].text for one in streamed) == "2 + 3 =" + one_by_one[0]


def test_logprobs(server):
    answer = chat(server, logprobs=True, top_logprobs=2).choices[0]
    assert "".join(one.token for one in answer.logprobs.content) == answer.message.content
    for one in answer.logprobs.content:
        assert one.logprob == one.top_logprobs[0].logprob <= 0, "greedy: the likeliest"
        assert bytes(one.bytes).decode() == one.token and len(one.top_logprobs) == 2
    chunks = [one.choices[0] for one in chat(server, logprobs=True, stream=True)]
    streamed = [token.logprob for one in chunks if one.logprobs for token in one.logprobs.content]
    assert streamed == pytest.approx([one.logprob for one in answer.logprobs.content], abs=1e-3)
    found = complete(server, temperature=0, logprobs=2).choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset) == 8
    assert found.text_offset == [len("".join(found.tokens[:place])) for place in range(8)]


def test_a_refused_request_is_an_error_of_the_client(server):
    for options in ({"temperature": 9}, {"n": 99}, {"tools": [{"type": "function", "function": {"name": "f"}}]}):
        with pytest.raises(openai.BadRequestError) as refused:
            chat(server, **options)
        assert refused.value.param == next(iter(options))
    with pytest.raises(openai.BadRequestError, match="no room for a new token"):
        chat(server, [{"role": "user", "content": "word " * 3000}])
    with pytest.raises(openai.APIStatusError, match="larger than 20000"):
        chat(server, [{"role": "user", "content": "x" * 30000}])
    assert server.service.scheduler.queued == 0


def test_32_requests_at_once_each_get_their_own_answer(server, model):
    conversations = [[{"role": "user", "content": f"What is {i} + {i * i}?"}] for i in range(32)]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda messages: chat(server, messages, max_tokens=4), conversations))
    expected = [alone(model, messages, max_new_tokens=4)[0] for messages in conversations]
    assert [answer.choices[0].message.content for answer in answers] == expected
    assert len({answer.id for answer in answers}) == 32


def test_16_streams_of_which_some_leave(server, model):
    """Clients come at different moments and every third leaves after its first piece: the others get their answers."""

    def ask(index):
        time.sleep(0.05 * (index % 5))
        messages = [{"role": "user", "content": f"Tell me about {index}."}]
        stream = chat(server, messages, stream=True, temperature=1, seed=index, max_tokens=12 if index % 3 else 1500)
        text = ""
        for one in stream:
            text += one.choices[0].delta.content or ""
            if index % 3 == 0 and text:
                stream.close()
                return None
        return text

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, range(16)))
    for index, text in enumerate(found):
        if index % 3:
            messages = [{"role": "user", "content": f"Tell me about {index}."}]
            assert text == alone(model, messages, temperature=1, seed=index, max_new_tokens=12)[0]
    wait_until_free(server.service)


def test_a_client_that_leaves_frees_its_rows(server, model):
    """The end token is out of reach, so that no answer ends by chance before its client leaves."""
    endless = {"max_tokens": 1500, "logit_bias": {str(model.tokenizer.eos_token_id): -100}}
    stream = complete(server, temperature=1, n=2, stop=["no such text"], stream=True, **endless)
    next(iter(stream))
    assert server.service.scheduler.queued == 2
    stream.close()
    wait_until_free(server.service, 5)
    with pytest.raises(openai.APITimeoutError):
        server.client.with_options(timeout=0.1).completions.create(
            model="demo", prompt="One day", stop=["no such text"], **endless
        )
    wait_until_free(server.service, 5)


def test_token_ids_are_the_answers(server, model):
    """Those of `generate`, end token included."""
    ids = model.tokenizer("One day", return_tensors="pt")["input_ids"]
    whole = model.generate(ids, temperature=0, max_new_tokens=40, **DRAFTING)[0, ids.shape[1] :].tolist()
    asked = {"temperature": 0, "max_tokens": 40, "extra_body": {"return_token_ids": True}}
    assert complete(server, **asked).choices[0].model_extra["token_ids"] == whole
    asked["extra_body"]["stop_token_ids"] = [whole[5]]
    cut = complete(server, **asked).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.model_extra["token_ids"] == whole[: whole.index(whole[5]) + 1]


def test_a_full_queue_refuses(server):
    """6 requests of 16 choices; what is not refused is answered."""

    def ask(_):
        try:
            return len(chat(server, n=16, max_tokens=1, temperature=1).choices)
        except openai.RateLimitError as error:
            return str(error)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(6)))
    refused = [answer for answer in answers if answer != 16]
    assert 0 < len(refused) < 6
    assert all("try again later" in answer for answer in refused)
    wait_until_free(server.service)


def test_an_error_in_a_stream_is_an_event(server, monkeypatch):
    prepare = server.service.model.prepare

    def breaking(ids, arguments):
        def breaks(*_):
            raise RuntimeError("/secret/place")

        return prepare(ids, {**arguments, "logits_processor": [breaks]})

    monkeypatch.setattr(server.service.model, "prepare", breaking)
    with pytest.raises(openai.APIError, match="log says more") as failed:
        list(chat(server, stream=True))
    assert "secret" not in str(failed.value)
    with pytest.raises(openai.InternalServerError, match="log says more"):
        chat(server)
    wait_until_free(server.service)


class Command:
    """python -m eagle.serve as a process."""

    def __init__(self, *arguments: str):
        command = [sys.executable, "-m", "eagle.serve", "--pair", "demo", "--tree", "topk", "--nodes", "6", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines: list[str] = []

    def until(self, pattern: str) -> re.Match:
        for line in self.process.stdout:
            self.lines.append(line)
            if match := re.search(pattern, line):
                return match
        raise AssertionError("".join(self.lines))

    def rest(self) -> str:
        threading.Thread(target=self.process.wait, daemon=True).start()
        return self.process.stdout.read()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as place:
        return place.getsockname()[1]


@pytest.mark.parametrize(
    "signals", [signal.SIGINT, signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)]
)
def test_the_command_ends_by_a_signal_and_leaves_nothing(signals):
    if signal.getsignal(signals) is signal.SIG_IGN:
        pytest.skip("ignored by what started the tests, such as nohup")
    port = free_port()
    command = Command("--port", str(port))
    try:
        command.until("Ctrl-C ends it")
        status, answer = post(f"http://127.0.0.1:{port}/v1/chat/completions", {"messages": QUESTION, "max_tokens": 3})
        assert (status, answer["model"]) == (200, "demo")
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(command.process.pid)], capture_output=True, text=True
        )
        assert children.stdout.strip() == "", "one process"
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions",
            json.dumps({"prompt": "One day", "stream": True, "stop": ["no such text"]}).encode(),
            {"Content-Type": "application/json"},
        )
        stream = urllib.request.urlopen(request, timeout=30)
        stream.readline()
        command.process.send_signal(signals)
        assert command.process.wait(20) == (-signal.SIGHUP if signals == signal.SIGHUP else 0)
        assert re.search(r"/v1/chat/completions 200, [\d.]+ s, \d+ \+ 3 tokens, acceptance length", command.rest())
        stream.close()
        with socket.create_server(("127.0.0.1", port)):
            pass
    finally:
        command.process.kill()


def test_a_taken_port_is_an_error_that_names_a_free_one():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = Command("--port", str(port))
        free = int(command.until(rf"error: port {port} on 127.0.0.1 is in use: pass --port (\d+), which is free")[1])
        assert command.process.wait(20) == 2
        with socket.create_server(("127.0.0.1", free)):
            pass


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "99999"], ["--port", "x"], ["--max-bytes", "-5"], ["--max-queued", "0"], ["--max-rows", "0"],
        ["--nodes", "0"], ["--depth", "0"], ["--nodes", "many"], ["--tree", "oak"], ["--verifier", "published"],
        ["--dtype", "int8"], ["--host", "not an address"], ["--worker-address", "nowhere", "--controller", "http://x"],
        ["--worker-address", "http://10.0.0.1:1"], ["--controller", "http://x", "--api-key", "k"],
        ["--pair", "nobody"], ["--tree", "auto", "--nodes", "8"],
    ],
)  # fmt: skip
def test_a_refused_option_is_an_error_before_anything_is_loaded(arguments, capsys, monkeypatch):
    from eagle.serve import __main__ as command

    monkeypatch.setattr(EagleModel, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr(command, "interrupt_on_termination", lambda: None)
    try:
        code = command.main(["--pair", "demo", "--port", str(free_port()), *arguments])
    except SystemExit as leaving:
        code = leaving.code
    out, log = capsys.readouterr()
    assert code == 2, out
    assert "Traceback" not in log and len(log.split()) > 4
