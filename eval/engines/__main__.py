r"""Engines side by side on this machine: the same pair, the same questions, the same threads.

    bash scripts/engines.sh vllm llama.cpp                        once
    python -m eval.engines --engines ours transformers vllm llama.cpp --pair smollm2-135m --output results/engines
    python -m eval.engines --engines ours --pair demo --endpoint http://HOST:8000/v1 --output results/engines

Every engine answers the questions without drafts and with the pair's head (vLLM and llama.cpp draft chains of --draft
tokens, this project what `tree="auto"` chooses, and a chain of the same length), each in a process of its own, --rounds
times, taking turns. A rate is tokens over the seconds of whole requests, prompt included, the median over all requests;
an engine's start is not counted. `--dtype auto`, the default, is what suits an engine: bfloat16, but float32 for vLLM
and transformers on a CPU that does not multiply bfloat16. Reads of the weights: tokens per second of plain decoding by
the bytes of the weights, over what a plain read reaches here. `--endpoint URL` adds any OpenAI-compatible server.
Finished runs are kept in the output folder until the table is written: the same command goes on after an interruption.
"""

import argparse
import json
import shutil
import statistics
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from eagle import command
from eagle.checkpoints.pretrained import read_model, read_tokenizer
from eagle.convert import convert, convert_to_gguf
from eagle.files import check_writable, write_json
from eval.engines.jobs import LOCAL, RUNNERS, interpreter, run_job
from eval.engines.target_gguf import write_target
from eval.provenance import provenance
from eval.questions import benchmarks, prompts
from eval.report.markdown import markdown_table
from eval.run.load_models import AUTO_DTYPE, add_model_flags, auto_dtype, resolve_flags

QUIET = 0.1  # of one core, by others: above that the table says how busy the machine was
CONTEXT = 1024


class Cell(NamedTuple):
    """One way to decode: engine, what drafts, and the keys of its job."""

    engine: str
    method: str
    job: dict[str, Any]


def dtype_of(engine: str, options: argparse.Namespace) -> str:
    """The dtype that an engine computes in; for "auto" its faster one."""
    if options.dtype != AUTO_DTYPE:
        return options.dtype
    if engine == "llama.cpp":
        return "bfloat16"
    return auto_dtype(options.base_model_path if engine == "ours" else None, "cpu")


def cells(options: argparse.Namespace, paths: dict[str, dict[str, str]]) -> list[Cell]:
    """What is compared, plain decoding of an engine first."""
    found = []
    for engine in options.engines:
        own = {**paths.get(engine, {}), "dtype": dtype_of(engine, options)}
        found.append(Cell(engine, "plain", {**own, "draft": 0, "tree": "none"}))
        if engine == "ours":
            found.append(Cell(engine, "auto", {**own, "draft": options.draft, "tree": "auto"}))
        if engine != "transformers":
            found.append(Cell(engine, f"chain of {options.draft}", {**own, "draft": options.draft, "tree": "chain"}))
    return found


def exports(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, str]]:
    """Target and head as each engine reads them, written once."""
    found: dict[str, dict[str, str]] = {}
    if "vllm" in options.engines:
        head = folder / "head-vllm"
        if not head.is_dir():
            convert(options.ea_model_path, str(head), "safeailab", options.base_model_path)
        found["vllm"] = {"head": str(head)}
    if "llama.cpp" in options.engines:
        dtype = dtype_of("llama.cpp", options)
        target, head = folder / "target.gguf", folder / "head.gguf"
        if not target.is_file():
            write_target(read_model(options.base_model_path, dtype=torch.float32), str(target), None, dtype)
        if not head.is_file():
            convert_to_gguf(options.ea_model_path, str(head), str(target), options.base_model_path, dtype)
        found["llama.cpp"] = {"target": str(target), "head": str(head)}
    return found


def busy() -> float:
    """What other processes take of the machine, in cores, over a second."""
    return psutil.cpu_percent(1.0) / 100 * (psutil.cpu_count() or 1)


def wait_for_quiet(patience: float, say: Callable[[str], None]) -> float:
    """Wait up to `patience` seconds for a machine that does nothing else; what it does then."""
    end = time.monotonic() + patience
    while (found := busy()) > QUIET and time.monotonic() < end:
        say(f"waiting for a quiet machine: {found:.2f} cores are busy")
        time.sleep(4)
    return found


def measure(options: argparse.Namespace, rows: list[list[int]], folder: Path) -> list[dict[str, Any]]:
    """Every cell `--rounds` times in turn; a row each."""
    wanted, say = cells(options, exports(options, folder)), lambda text: print(text, flush=True)
    runs: dict[int, list[dict[str, Any]]] = {index: [] for index in range(len(wanted))}
    for turn in range(options.rounds):
        for index, one in enumerate(wanted):
            job = {
                "engine": one.engine, "target": options.base_model_path, "head": options.ea_model_path, "prompts": rows,
                "stop": [], "max_tokens": options.max_new_tokens, "temperature": options.temperature,
                "context": CONTEXT, "threads": options.threads, "warm_up": 1, "eager": False,
                "chains": False, **one.job,
            }  # fmt: skip
            kept = folder / "runs" / f"{one.engine}-{one.method.replace(' ', '-')}-{turn + 1}.json"
            runs[index].append(finished(kept, job) or timed(one, job, kept, options.patience, say))
    return [summary(one, runs[index]) for index, one in enumerate(wanted)]


def finished(path: Path, job: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier, interrupted call measured with the same job, or None."""
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    return found["result"] if found["job"] == job else None


def timed(cell: Cell, job: dict[str, Any], path: Path, patience: float, say: Callable[[str], None]) -> dict[str, Any]:
    """The job's result on a machine as quiet as it gets, kept in `path`."""
    load = wait_for_quiet(patience, say)
    say(f"{cell.engine}, {cell.method}: {path.stem}")
    result = {**run_job(cell.engine, job, path.parents[1]), "busy": load}
    path.parent.mkdir(exist_ok=True)
    write_json(path, {"job": job, "result": result})
    return result


def summary(cell: Cell, runs: list[dict[str, Any]]) -> dict[str, Any]:
    rates = [len(tokens) / seconds for run in runs for tokens, seconds in zip(run["tokens"], run["each"])]
    tokens = sum(len(tokens) for run in runs for tokens in run["tokens"])
    accepted = sum(run["accepted"] for run in runs)
    steps = sum(run["drafts"] for run in runs) or tokens - accepted - sum(len(run["tokens"]) for run in runs)
    return {
        "engine": cell.engine,
        "method": runs[0].get("plan") or cell.method if cell.method == "auto" else cell.method,
        "dtype": cell.job["dtype"],
        "rate": statistics.median(rates),
        "accepted": accepted / steps if cell.job["draft"] and steps else None,
        "memory": max(run.get("memory", 0) for run in runs),
        "busy": max(run["busy"] for run in runs),
        "n": len(rates),
    }


def ask(url: str, model: str, prompt: list[int], options: argparse.Namespace) -> tuple[int, float]:
    """Tokens and seconds of one request to an OpenAI-compatible server."""
    body = {"model": model, "prompt": prompt, "max_tokens": options.max_new_tokens, "temperature": options.temperature}
    request = urllib.request.Request(
        f"{url}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    began = time.perf_counter()
    with urllib.request.urlopen(request) as answer:
        found = json.load(answer)
    return found["usage"]["completion_tokens"], time.perf_counter() - began


def endpoint(url: str, rows: list[list[int]], options: argparse.Namespace) -> dict[str, Any]:
    """A row of a server that somebody else started."""
    with urllib.request.urlopen(f"{url}/models") as answer:
        model = json.load(answer)["data"][0]["id"]
    rates = []
    for prompt in [rows[0], *rows * options.rounds]:
        tokens, seconds = ask(url, model, prompt, options)
        rates.append(tokens / seconds)
    return {
        "engine": url,
        "method": model,
        "dtype": "",
        "rate": statistics.median(rates[1:]),
        "accepted": None,
        "memory": 0,
        "busy": 0.0,
        "n": len(rates) - 1,
    }


def read_rate(threads: int) -> float:
    """Bytes per second of a plain read of 256 MB, the best of several."""
    torch.set_num_threads(threads)
    data, best = torch.ones(2**26), 0.0
    for _ in range(8):
        began = time.perf_counter()
        data.sum()
        best = max(best, data.nbytes / (time.perf_counter() - began))
    return best


def share(row: dict[str, Any], weights: float, rate: float) -> str:
    """Of the rate of a plain read: what an engine's plain decoding reads of `weights` bytes of 16-bit numbers."""
    read = row["rate"] * weights * (2 if row["dtype"] == "float32" else 1)
    return f"{read / rate:.0%}" if row["method"] == "plain" else "-"


def table(rows: list[dict[str, Any]], weights: float, rate: float) -> str:
    """Markdown."""
    cells = [
        [
            row["engine"],
            row["method"],
            row["dtype"] or "-",
            f"{row['rate']:.1f}",
            "-" if row["accepted"] is None else f"{row['accepted']:.2f}",
            share(row, weights, rate),
            f"{row['memory'] / 2**30:.2f}" if row["memory"] else "-",
        ]
        for row in rows
    ]
    return markdown_table(
        ["engine", "drafts", "dtype", "tok/s", "accepted/step", "reads of the weights, share of the limit", "GiB"],
        cells,
    )


def run(options: argparse.Namespace) -> None:
    """Measure, print the table, write engines.json."""
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder / "engines.json")
    resolve_flags(options)
    missing = [engine for engine in options.engines if interpreter(engine) is None]
    if missing:
        raise ValueError(f"--engines {missing[0]}: not installed; run `bash scripts/engines.sh {missing[0]}`")
    asked = benchmarks.load(options.bench, options.protocol, options.question_file, options.num_questions)
    tokenizer = read_tokenizer(options.base_model_path)
    rows = prompts.encode_first_turns(tokenizer, options.base_model_path, asked.questions)
    found = measure(options, rows, folder) + [endpoint(url.rstrip("/"), rows, options) for url in options.endpoint]
    weights = sum(path.stat().st_size for path in Path(options.base_model_path).glob("*.safetensors"))
    rate = read_rate(options.threads)
    text = table(found, weights, rate)
    most = max(row["busy"] for row in found)
    note = f"plain reads {rate / 1e9:.1f} GB/s, weights {weights / 1e6:.0f} MB, others took at most {most:.2f} cores"
    print(f"\n{text}\n\n{note}")
    settings = {key: getattr(options, key) for key in ("temperature", "max_new_tokens", "threads", "dtype", "draft")}
    write_json(
        folder / "engines.json",
        {"rows": found, "read_rate": rate, "weights": weights, "settings": settings, "origin": provenance()},
    )
    shutil.rmtree(folder / "runs", ignore_errors=True)


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = command.parser("eval.engines", __doc__)
    add = parser.add_argument
    benchmarks.add_flags(parser, 6)
    add_model_flags(parser, auto=True)
    add("--engines", nargs="+", default=list(LOCAL), choices=[*LOCAL, *RUNNERS], metavar="E")
    add("--endpoint", nargs="*", default=[], metavar="URL", help="OpenAI-compatible servers that are running")
    add("--temperature", type=command.TEMPERATURE, default=0.0, metavar="T")
    add("--max-new-tokens", type=command.COUNT, default=128, metavar="N", help="every answer has as many")
    add("--draft", type=command.COUNT, default=3, metavar="K", help="length of drafted chains")
    add("--threads", type=command.COUNT, default=torch.get_num_threads())
    add("--rounds", type=command.COUNT, default=2)
    add("--patience", type=command.SECONDS, default=60.0, help="seconds to wait for a quiet machine, each time")
    add("--output", required=True, metavar="DIR", help="engines.json, and the exports that engines read")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command.start(build_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
