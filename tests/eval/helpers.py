"""Small things several tests of the harness need."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from eval.__main__ import main
from tests.eval.fake import load

ROOT = Path(__file__).parents[2]
VOLATILE = ("answer_id", "tstamp", "session")
METHODS = ("plain", "topk+token", "hybrid+hsd")
FILES = tuple(f"{method}.jsonl" for method in METHODS)  # what `arguments` asks for


def arguments(output: Path, *more: str, methods: tuple[str, ...] = METHODS) -> list[str]:
    return [
        "--bench",
        "gsm8k",
        "--base-model-path",
        "target",
        "--ea-model-path",
        "head",
        "--quiet",
        *(() if "--question-file" in more or "--protocol" in more else ("--protocol", "sample")),
        "--methods",
        *methods,
        "--output",
        str(output),
        *more,
    ]


def evaluate(output: Path, *more: str, **options: Any) -> int:
    return main(arguments(output, *more, **options), load=load)


def records(path: Path) -> list[dict[str, Any]]:
    """The records of an answer file without what differs between two equal runs."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key not in VOLATILE} for entry in found]


def started(output: Path, seconds: float) -> subprocess.Popen:
    """A run in another process that takes so long per answer, after its first answer by `plain`."""
    running = subprocess.Popen(
        [sys.executable, "-m", "tests.eval.fake", *arguments(output)],
        env={**os.environ, "FAKE_DELAY": str(seconds)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    first = output / "plain.jsonl"
    while not first.is_file() or not first.read_bytes().count(b"\n"):
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.01)
    return running


def numbers(output: Path) -> list[Any]:
    """A report's rows and comparisons."""
    found = json.loads((output / "report.json").read_text())["sections"]
    return [(section["rows"], section["pairs"]) for section in found]


def turn(
    accepted: list[int],
    *,
    truncated: list[int] | None = None,
    expected: list[float] | None = None,
    seconds: float = 1.0,
    stop: str = "eos",
) -> dict[str, Any]:
    """One measured turn whose steps accepted these many tokens and added a bonus token each."""
    cut = truncated or [0] * len(accepted)
    emitted = [a + (not c) for a, c in zip(accepted, cut)]
    return {
        "prompt_tokens": 3,
        "tokens": list(range(1 + sum(emitted))),
        "seconds": seconds,
        "prefill_seconds": 0.1,
        "stop_reason": stop,
        "steps": {
            "accepted": accepted,
            "emitted": emitted,
            "expected": expected or [float(a) for a in accepted],
            "nodes": [60] * len(accepted),
            "truncated": cut,
            "draft": [0.001] * len(accepted),
            "score": [0.002] * len(accepted),
            "verify": [0.0] * len(accepted),
            "commit": [0.0] * len(accepted),
        },
    }


def entry(
    question_id: int,
    *turns: dict[str, Any],
    text: str = "#### 1",
    reference: str | None = "#### 1",
    error: str | None = None,
    category: str = "math",
) -> dict[str, Any]:
    return {
        "question_id": question_id,
        "answer_id": "x",
        "model_id": "m",
        "category": category,
        "reference": reference,
        "error": error,
        "session": 0,
        "tstamp": 0.0,
        "measured": list(turns),
        "choices": [{"index": 0, "turns": [text] * len(turns), "idxs": [], "new_tokens": [], "wall_time": []}],
    }
