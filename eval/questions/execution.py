"""Is a HumanEval answer right? Its code is run against the benchmark's tests, in a process of its own.

Nothing is run unless it is asked for (`python -m eval --run-code`). What runs is what a model wrote: the process gets
an empty folder to work in, no environment, no input, ten seconds, and limits on processor time, memory, file size and
processes; where Linux lets it, no network (a namespace of its own), and Python's sockets are gone either way. That
contains accidents, not an attacker: for answers of a model that is not trusted, run the whole command in a container.
"""

import contextlib
import functools
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from eval.questions import downloads
from eval.questions.benchmarks import Question, parse

HUMANEVAL = "humaneval/HumanEval.jsonl.gz"
SECONDS = 10.0
MEMORY = 1 << 30
BLOCK = re.compile(r"```(?:\w+)?[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)

# Reads {"program", "proof"} from its input; writes the proof when the program has run to its end. Its own output goes
# nowhere, so that neither a flood of it nor an early exit counts as an answer.
CHILD = f"""
import ctypes, json, os, resource, sys
given = json.load(sys.stdin)
verdict = os.dup(1)
nowhere = os.open(os.devnull, os.O_RDWR)
for stream in (0, 1, 2):
    os.dup2(nowhere, stream)
try:
    ctypes.CDLL(None).unshare(0x10000000 | 0x40000000)  # a user namespace with a network of its own: none
except (AttributeError, OSError):
    pass
for name, most in (("CPU", {int(SECONDS)}), ("AS", {MEMORY}), ("FSIZE", 1 << 20), ("NPROC", 0), ("CORE", 0)):
    try:
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (most, most))
    except (AttributeError, ValueError, OSError):
        pass
sys.modules.update(dict.fromkeys(("socket", "_socket", "subprocess", "ctypes", "_ctypes")))
exec(compile(given["program"], "answer.py", "exec"), {{"__name__": "answer"}})
os.write(verdict, given["proof"].encode())
os._exit(0)
"""


class Task(NamedTuple):
    """One problem: the header that a model completes, the tests, and the name that they call."""

    prompt: str
    test: str
    entry_point: str


@functools.cache
def humaneval() -> dict[str, Task]:
    """HumanEval's tasks by their own solutions, which are the references of its question sets."""
    lines = [line.value for line in parse(downloads.read_or_download(HUMANEVAL), HUMANEVAL)]
    return {one["canonical_solution"].strip(): Task(one["prompt"], one["test"], one["entry_point"]) for one in lines}


def task_of(question: Question) -> Task:
    """The task that a question asks. Raises ValueError for one that is none of HumanEval's."""
    task = humaneval().get((question.reference or "").strip())
    if task is None:
        raise ValueError(
            f"--run-code: question {question.question_id} is none of HumanEval's, which have tests; leave the "
            "flag out, or ask --bench humaneval"
        )
    return task


def check(questions: Sequence[Question]) -> None:
    """ValueError for a question without tests, before anything is asked."""
    for question in questions:
        task_of(question)


def code_of(text: str, entry_point: str) -> str:
    """The code of an answer: the block that defines the function, else the first one, else all of it."""
    blocks = BLOCK.findall(text)
    return next((block for block in blocks if f"def {entry_point}" in block), blocks[0] if blocks else text)


def program(task: Task, text: str) -> str:
    """The answer as a program that ends where the tests pass: behind the header, whose body it is unless it defines the
    function again.
    """
    code = code_of(text, task.entry_point)
    if f"def {task.entry_point}" in code:
        code = "\n" + textwrap.dedent(code)
    elif not code[:1].isspace():  # the first line of a body lost its indentation where the answer was stripped
        code = "    " + code
    return f"{task.prompt}{code}\n\n{task.test}\n\ncheck({task.entry_point})\n"


def runs(code: str, seconds: float = SECONDS) -> bool:
    """Whether a program runs to its end, within the limits."""
    proof = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
            text=True,
        )
        try:
            said, _ = child.communicate(json.dumps({"program": code, "proof": proof}), timeout=seconds)
        except subprocess.TimeoutExpired:
            said = ""
        finally:
            _end(child)
    return said == proof


def _end(child: subprocess.Popen[str]) -> None:
    """Kill the process and whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.communicate()


def passes(question: Question, texts: Sequence[str]) -> bool:
    """Whether the code of the last turn's answer passes its question's tests."""
    return runs(program(task_of(question), texts[-1]))
