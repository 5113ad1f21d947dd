"""Other engines beside this project: a job as JSON, run by an engine in its own environment, counters read back.

    scripts/engines.sh                      makes the environments, under $HSD_ENGINES
    run_job("vllm", job, folder)           (or llama.cpp; see the keys below)

A job      target, head (paths), draft (length of the chains; 0: none), prompts (token ids), stop (ids that end an
           answer), max_tokens, temperature, context, dtype
A result   tokens per prompt, drafts, drafted, accepted, seconds; llama.cpp also every chain it drafted

Shapes and speed are not compared here: what is asked is whether an export is understood.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
RUNNERS = {"vllm": HERE / "vllm_run.py", "llama.cpp": HERE / "llama_cpp_run.py"}
LOCAL = ("ours", "transformers")  # run in this environment, by local_run.py
CANDIDATE = re.compile(r"draft candidate\s+0, pos\s+(\d+):\s+(\d+) \(")
DRAFTED = re.compile(r"generate_draft: id=(\d+), #tokens=(\d+)")


def environment(threads: int) -> dict[str, str]:
    """Variables of an engine that computes with this many threads."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}" if threads > 1 else "0",
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": str(HERE.parents[1]),
    }


class Chain(NamedTuple):
    """What llama.cpp drafted behind `length` tokens and `last`, greedily."""

    last: int
    length: int
    tokens: tuple[int, ...]


def interpreter(engine: str) -> Path | None:
    """The engine's Python, or None where scripts/engines.sh has not made its environment."""
    if engine in LOCAL:
        return Path(sys.executable)
    root = os.environ.get("HSD_ENGINES") or Path.home() / ".cache" / "eagle3-hsd" / "engines"
    place = Path(root) / engine
    return place / "bin" / "python" if (place / "complete").is_file() else None


def run_job(engine: str, job: dict[str, Any], folder: str | Path, timeout: float = 1800) -> dict[str, Any]:
    """Run a job in an engine, with files in `folder`; its result. Raises ValueError with the end of its log."""
    python = interpreter(engine)
    if python is None:
        raise ValueError(f"engine {engine!r} is not installed; run `bash scripts/engines.sh {engine}`")
    folder = Path(folder)
    paths = [folder / f"{engine}-{part}" for part in ("job.json", "result.json", "log.txt")]
    paths[0].write_text(json.dumps(job))
    paths[1].unlink(missing_ok=True)
    with open(paths[2], "wb") as log:
        command = [str(python), str(RUNNERS.get(engine, HERE / "local_run.py")), str(paths[0]), str(paths[1])]
        env = {**os.environ, **environment(job.get("threads", 1))}
        subprocess.run(command, stdout=log, stderr=log, env=env, timeout=timeout, check=False)
    text = paths[2].read_text(errors="replace")
    if not paths[1].is_file():
        raise ValueError(f"{engine} ended without a result: ...{text[-2000:]}")
    result = json.loads(paths[1].read_text())
    if engine == "llama.cpp" and job.get("chains", True):
        result["chains"] = [chain._asdict() for chain in read_chains(text)]
        result["drafts"] = len(result["chains"])
    return result


def read_chains(log: str) -> list[Chain]:
    """Every chain in llama.cpp's debug log, in order."""
    found: list[Chain] = []
    tokens: list[int] = []
    for line in log.splitlines():
        if match := CANDIDATE.search(line):
            tokens = [*tokens[: int(match[1])], int(match[2])]
        elif match := DRAFTED.search(line):
            found.append(Chain(int(match[1]), int(match[2]), tuple(tokens)))
            tokens = []
    return found
