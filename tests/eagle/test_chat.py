"""python -m eagle.chat on the demo pair."""

import contextlib
import io
import itertools
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
import warnings

import pytest
import torch
from jinja2 import TemplateError

from eagle import EagleModel, chat
from eagle.autotune.auto import AutoTree
from eagle.autotune.candidates import Candidate
from eagle.autotune.choice import Point
from eagle.serve import conversation, options
from tests.eagle.serve.running import PAIR

ARGUMENTS = {"tree": "hybrid", "verifier": "hsd", "temperature": 0.0, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def model():
    return EagleModel.from_pretrained(*PAIR)


@pytest.fixture
def talk(model):
    return conversation.Chat(model, dict(ARGUMENTS), io.StringIO(), io.StringIO())


def generated(model, messages) -> str:
    ids = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    new = model.generate(ids, **ARGUMENTS)[0, ids.shape[1] :]
    return model.tokenizer.decode(new, skip_special_tokens=True)


def test_the_second_answer_is_given_to_the_whole_conversation(model, talk):
    messages = [{"role": "user", "content": "What is 2 + 3?"}]
    messages += [{"role": "assistant", "content": generated(model, messages)}, {"role": "user", "content": "And 4?"}]
    second = generated(model, messages)
    talk.answer("What is 2 + 3?")
    talk.answer("And 4?")
    assert talk.out.getvalue() == messages[1]["content"] + "\n" + second + "\n"
    assert talk.messages == [*messages, {"role": "assistant", "content": second}]


def test_commands(talk):
    talk.answer("Hello")
    for line in ("/reset", "/temperature 0.5", "/tree topk", "/verifier token", "/nodes 9", "/depth 3", "/help"):
        assert talk.command(line)
    assert talk.messages == []
    assert (talk.arguments["nodes"], talk.arguments["depth"]) == (9, 3)
    assert {"temperature": 0.5, "tree": "topk", "verifier": "token"}.items() <= talk.arguments.items()
    assert not talk.command("/exit")


def test_auto_and_sizes_exclude_each_other(talk):
    talk.arguments = {"tree": "topk", "nodes": 8, "verifier": "token", "temperature": 0.0}
    talk.command("/tree auto")
    assert talk.arguments == {"tree": "auto", "temperature": 0.0}
    talk.command("/nodes 12")
    assert talk.arguments == {"tree": "hybrid", "nodes": 12, "temperature": 0.0}


def test_another_answer_to_the_last_message(talk):
    talk.command("/retry")
    assert "no answer yet" in talk.log.getvalue()
    talk.arguments |= {"temperature": 1.0, "seed": 3}
    first, second = talk.answer("One day").new_tokens, talk.retry().new_tokens
    assert first != second
    assert [message["role"] for message in talk.messages] == ["user", "assistant"]
    assert talk.messages[0]["content"] == "One day"


def test_a_system_message_for_the_conversation_that_is_there(talk):
    talk.answer("Hello")
    talk.command("/system Be brief.")
    assert [message["role"] for message in talk.messages] == ["system", "user", "assistant"]
    talk.command("/system Speak.")
    assert talk.messages[0] == {"role": "system", "content": "Speak."}
    talk.command("/reset")
    assert talk.messages == [{"role": "system", "content": "Speak."}]
    talk.command("/system")
    assert talk.messages == []


def test_conversations_are_saved_as_training_reads_them(talk, tmp_path):
    talk.answer("Größe 🙂")
    path = tmp_path / "chats.jsonl"
    for _ in range(2):
        talk.command(f"/save {path}")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"messages": talk.messages}] * 2
    talk.command(f"/save {tmp_path}")
    talk.command("/save")
    assert "Is a directory" in talk.log.getvalue() and "expected the name of a file" in talk.log.getvalue()


def test_one_line_where_drafts_make_it_slower(talk):
    talk.arguments |= {"max_new_tokens": 20, "eos_token_id": []}
    talk.plain_rate = 1e9
    for text in ("Hello", "And now?"):
        talk.answer(text)
    assert talk.log.getvalue().count("slower than plain decoding: try /tree auto or /tree none") == 1


@pytest.mark.parametrize(
    "line",
    [
        "/nodes 0",
        "/nodes many",
        "/depth 1.5",
        "/temperature warm",
        "/temperature -1",
        "/temperature nan",
        "/tree oak",
        "/verifier x",
    ],
)
def test_a_wrong_value_changes_nothing_and_is_explained(talk, line):
    before = dict(talk.arguments)
    assert talk.command(line)
    assert talk.arguments == before
    assert "expected" in talk.log.getvalue()


def test_an_interrupted_answer_stays_in_the_conversation_and_frees_the_model(model, talk):
    class Interrupting(io.StringIO):
        def write(self, text):
            if self.tell() > 4:
                self.write = super().write
                raise KeyboardInterrupt
            return super().write(text)

    talk.out = Interrupting()
    talk.arguments["max_new_tokens"] = 40
    talk.answer("What is 2 + 3?")
    assert "interrupted" in talk.log.getvalue()
    assert [message["role"] for message in talk.messages] == ["user", "assistant"]
    assert talk.answer("And 4?") is not None


def test_a_conversation_that_fills_the_context(talk):
    assert talk.answer("word " * 3000) is None
    assert talk.messages == []
    assert "context" in talk.log.getvalue()


def test_colors_change_with_the_step_and_control_characters_go(talk):
    talk.color = True
    row = talk.answer("What is 2 + 3?")
    colors = re.findall("\x1b\\[3[0-9]m", talk.out.getvalue())
    assert 1 < len(colors) <= len(row.steps) + 1
    assert conversation.printable("a\x1b[2Jb\r\n\tc\u202e") == "a[2Jb\n\tc"


def test_the_second_turn_reads_only_what_is_new(model, talk):
    talk.answer("What is 2 + 3?")
    row = talk.answer("And 4?")
    assert row.reused_tokens == 0, "not asked for"
    talk.reset()
    talk.arguments["reuse_cache"] = True
    talk.answer("What is 2 + 3?")
    row = talk.answer("And 4?")
    assert row.prompt_tokens - row.reused_tokens < 20 < row.prompt_tokens
    assert f"{row.reused_tokens} of {row.prompt_tokens} prompt tokens from the cache" in talk.log.getvalue()
    talk.reset()
    assert (
        talk.answer("Bye").new_tokens
        == model.generate(torch.tensor([row_prompt(model, "Bye")]), **ARGUMENTS)[
            0, len(row_prompt(model, "Bye")) :
        ].tolist()
    )


def row_prompt(model, text: str) -> list[int]:
    messages = [{"role": "user", "content": text}]
    return model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


# The terminal becomes the command's controlling one, so that Ctrl-C reaches it.
ON_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


PROMPT = r">(\x08|\s)"
STATE = "/nowhere/that/can/be/written"  # the history of typed lines is then not kept


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *command: str):
        leader, follower = pty.openpty()
        command = (sys.executable, "-c", ON_TERMINAL, sys.executable, *command)
        environment = {**os.environ, "PROMPT_TOOLKIT_NO_CPR": "1", "XDG_STATE_HOME": STATE}
        streams = {"env": environment, "stdin": follower, "stdout": follower, "stderr": follower}
        self.process = subprocess.Popen(command, **streams, start_new_session=True)
        os.close(follower)
        self.leader, self.text, self.read = leader, "", 0

    def until(self, pattern: str, seconds: float = 90) -> str:
        """What is printed up to the next match."""
        end = time.monotonic() + seconds
        while not (match := re.compile(pattern).search(self.text, self.read)):
            assert time.monotonic() < end, f"no {pattern!r} after {self.text[self.read :]!r}"
            assert self.process.poll() is None, f"it ended after {self.text[self.read :]!r}"
            if select.select([self.leader], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):  # it ended
                    self.text += os.read(self.leader, 65536).decode(errors="replace")
        begin, self.read = self.read, match.end()
        return self.text[begin : match.end()]

    def enter(self, line: str) -> None:
        os.write(self.leader, f"{line}\r".encode())


def test_on_a_terminal():
    """Colors, a status line with plain decoding beside it, the commands, Ctrl-C ends an answer and Ctrl-D the chat."""
    status = r"acceptance length ([\d.]+) \| ([\d.]+) tok/s \| plain ([\d.]+) tok/s \| [^\n]*\]"
    options = ("--temperature", "0", "--max-new-tokens", "120", "--nodes", "8", "--depth", "4")
    terminal = Terminal("-m", "eagle.chat", "--pair", "demo", *options)
    try:
        terminal.until("/help for commands")
        terminal.until(PROMPT)
        terminal.enter("What is 2 + 3?")
        answer = terminal.until(status)
        assert len(set(re.findall("\x1b\\[3[0-9]m", answer))) > 1
        assert all(float(number) > 0 for number in re.search(status, answer).groups())
        terminal.enter("And 4?")
        assert "prompt tokens from the cache" in terminal.until(status)
        terminal.enter("/temperature 1.9")
        terminal.until("\x1b\\[2mtemperature 1.9")
        os.write(terminal.leader, b"\x1b[200~/tree oak\nis a line of a pasted text\x1b[201~\r")
        assert "no command" not in terminal.until(status), "a pasted text is one message"
        terminal.until(PROMPT)
        terminal.enter("/tree topk")
        terminal.until("\x1b\\[2mtree topk")
        terminal.enter("Tell a long story.")
        terminal.until("\x1b\\[3[0-9]m")
        os.write(terminal.leader, b"\x03")
        assert "interrupted" in terminal.until(status)
        terminal.until(PROMPT)
        terminal.enter("/reset")
        terminal.until("the conversation is empty")
        terminal.enter("Tell a long story.")
        terminal.until("\x1b\\[3[0-9]m")
        terminal.enter("/temperature 0")
        os.write(terminal.leader, b"What is ")
        assert "/temperature" not in terminal.until(status), "what is typed meanwhile is not mixed with the answer"
        terminal.until("\x1b\\[2mtemperature 0")
        terminal.enter("2 + 3?")
        terminal.until(status)
        terminal.until(PROMPT)
        os.write(terminal.leader, b"\x04")
        assert terminal.process.wait(20) == 0
    finally:
        terminal.process.kill()
        os.close(terminal.leader)


def test_piped(monkeypatch, capsys):
    """Answers on stdout, without colors; everything else on stderr."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("/temperature 0\nHello\n\n/exit\nnot reached\n"))
    chat.main(["--pair", "demo", "--nodes", "8", "--max-new-tokens", "6"])
    out, log = capsys.readouterr()
    assert out.count("\n") == out.rstrip("\n").count("\n") + 1
    assert "\x1b" not in out + log
    assert re.search(r"acceptance length [\d.]+ \| [\d.]+ tok/s \| plain [\d.]+ tok/s \| \d+ tokens", log)
    assert log.count("acceptance length") == 1


def test_auto_is_prepared_before_the_first_line(monkeypatch, capsys):
    prepared = []
    chosen = Point(Candidate("chain", 4, 3), 2.0, 0.0, 10.0)
    monkeypatch.setattr(AutoTree, "prepare", lambda self, model: prepared.append(model))
    monkeypatch.setattr(AutoTree, "choose", lambda *_: chosen)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    chat.main(["--pair", "demo", "--tree", "auto", "--no-plain", "--max-new-tokens", "4"])
    assert len(prepared) == 1
    assert "acceptance length" in capsys.readouterr().err


def test_a_size_for_auto_is_refused_before_anything_is_loaded(capsys):
    where = ["--base-model-path", "nowhere", "--ea-model-path", "nowhere"]
    assert chat.main([*where, "--tree", "auto", "--nodes", "16"]) == 2
    assert "tree='auto' chooses it" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("the target's logits are NaN"), TemplateError("two turns, please")])
def test_an_answer_that_fails_is_said_and_forgotten(talk, monkeypatch, error):
    def breaks(*args, **kwargs):
        yield from itertools.islice(stream_text(*args, **kwargs), 1)
        raise error

    talk.answer("What is 2 + 3?")
    before, stream_text = list(talk.messages), conversation.stream_text
    monkeypatch.setattr(conversation, "stream_text", breaks)
    assert talk.answer("And 4?") is None
    assert f"{error} (/reset forgets the conversation)" in talk.log.getvalue()
    assert talk.messages == before
    monkeypatch.undo()
    assert talk.answer("And 4?") is not None  # the model is free again


def test_bytes_of_another_encoding_in_a_pipe(monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO("7 \xe9clairs\n".encode("latin-1")), encoding="utf-8")
    )
    chat.main(["--pair", "demo", "--nodes", "8", "--no-plain", "--max-new-tokens", "3"])
    assert "Traceback" not in capsys.readouterr().err


def test_what_the_measurement_warns_of_is_said_as_a_sentence(model, capsys, monkeypatch):
    monkeypatch.setattr(AutoTree, "prepare", lambda self, _: warnings.warn("the machine is busy", stacklevel=2))
    monkeypatch.setattr(model.auto, "settled", True)
    options.prepare_auto(model)
    assert capsys.readouterr().err.splitlines()[1:] == ["the machine is busy"]
