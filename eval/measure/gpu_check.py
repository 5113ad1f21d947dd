"""Everything a GPU must show, in one command: correctness first, then time. On a CPU: `--dry-run`.

    python -m eval.measure.gpu_check OUT                  about 9 minutes at most, no network
    python -m eval.measure.gpu_check OUT --dry-run        the same parts on the CPU, tiny sizes, the demo pair
    python -m eval.measure.gpu_check OUT --parts attention batch

Every part is a process of its own with a time limit: an exception, a crashed CUDA context or a part that hangs ends
that part and no other, and what it measured until then is kept. After every part three files are rewritten whole:

    OUT/summary.txt     a line per part: what came out, and every bar with whether it was met
    OUT/results.json    origin, and per part: status, seconds, rows, notes, checks
    OUT/log.txt         what the parts printed

Exit code 0 where no part failed, ran out of time or missed a bar, else 1.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from eagle import command
from eagle.files import check_writable, write_whole
from eval.provenance import REPOSITORY, provenance

WHOLE_SECONDS = 530.0  # of all parts together
DRY_SECONDS = 300.0  # limit of each part of a dry run
OPTIONAL = ("flash_attn", "fastchat", "datasets", "accelerate", "matplotlib", "pytest", "hypothesis", "triton")
OK, MISSED, SKIPPED, FAILED, TIME_OUT = "ok", "missed", "skipped", "failed", "time-out"
GOOD = (OK, SKIPPED)


class Part(NamedTuple):
    """One part: its name, what it shows, and its time limit in seconds."""

    name: str
    title: str
    seconds: float


PARTS = (
    Part("gpu-tests", "the tests marked gpu", 100),
    Part("exactness", "stopping distributions on the device equal the CPU's in float64", 40),
    Part("graphs", "CUDA graphs on and off give the same tokens", 50),
    Part("step-time", "time of a step against the floor of this machine", 130),
    Part("verification", "verification's share of a step", 30),
    Part("attention", "attention in two parts against SDPA", 60),
    Part("pairs", "pairs end to end: tokens per second, acceptance, greedy tokens", 70),
    Part("batch", "tokens per second by batch size", 50),
)


class Ended(NamedTuple):
    """How a process ended: exit code (None: it was stopped at its time limit), seconds, what it printed."""

    code: int | None
    seconds: float
    printed: str


# (part, file for the findings) -> the command that runs the part
CommandOf = Callable[[Part, Path], Sequence[str]]


def stop(process: subprocess.Popen) -> None:
    """End a process and everything it started; it leads its own process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_process(arguments: Sequence[str], seconds: float, log: Path) -> Ended:
    """Run a command in a process group of its own; stopped after `seconds`. Output goes through the file `log`."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            arguments,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=REPOSITORY,
            env=environment,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            stop(process)
    return Ended(code, time.monotonic() - began, log.read_text(encoding="utf-8", errors="replace"))


def read_findings(file: Path) -> dict[str, Any]:
    """What a part wrote so far; empty fields where it wrote nothing."""
    empty: dict[str, Any] = {"summary": "", "skipped": None, "rows": [], "notes": [], "checks": []}
    return {**empty, **(json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {})}


def status_of(ended: Ended, findings: dict[str, Any]) -> str:
    """One word for how a part went. A check whose `met` is None was not judged."""
    if ended.code is None:
        return TIME_OUT
    if ended.code != 0:
        return FAILED
    if findings["skipped"]:
        return SKIPPED
    return MISSED if any(check["met"] is False for check in findings["checks"]) else OK


def reason(status: str, ended: Ended, findings: dict[str, Any], limit: float) -> str:
    """The summary of a part, behind the cause where it did not end by itself."""
    measured = f"; before that: {findings['summary']}" if findings["summary"] else ""
    if status == TIME_OUT:
        return f"stopped after {limit:.0f} s with {len(findings['rows'])} rows{measured}"
    if status == FAILED:
        lines = [line for line in ended.printed.splitlines() if line.strip()]
        return f"exit code {ended.code}: {lines[-1].strip() if lines else 'nothing was printed'}{measured}"
    return findings["skipped"] or findings["summary"]


def run_part(part: Part, command_of: CommandOf, limit: float, folder: Path) -> tuple[dict[str, Any], str]:
    """(record of one part, what it printed). No error of the part is raised here."""
    file = folder / f"{part.name}.json"
    try:
        ended = run_process(command_of(part, file), limit, folder / f"{part.name}.log")
    except OSError as error:
        ended = Ended(127, 0.0, command.one_line(error))
    findings = read_findings(file)
    status = status_of(ended, findings)
    findings["summary"] = reason(status, ended, findings, limit)
    record = {"part": part.name, "title": part.title, "status": status, "seconds": round(ended.seconds, 2), **findings}
    return record, ended.printed


def line_of(record: dict[str, Any]) -> str:
    """A part on one line."""
    said = " ".join(record["summary"].split())
    return f"{record['part']:<13} {record['status']:<9} {record['seconds']:6.1f} s   {said}"


def summary_text(records: list[dict[str, Any]], origin: dict[str, Any], dry: bool) -> str:
    """The head, a line per part, and below each its checks and notes."""
    hardware, versions = origin["hardware"], origin["versions"]
    lines = [
        f"{'dry run on the CPU: no bar of speed is judged; ' if dry else ''}commit {origin['git']['commit']}, "
        f"Python {origin['python']}, torch {versions['torch']}, transformers {versions['transformers']}",
        f"{', '.join(hardware['gpus']) or 'no GPU'}; {hardware['cpu']}, {hardware['threads']} threads; "
        f"not installed: {', '.join(origin['missing']) or 'nothing'}",
        "",
    ]
    marks = {True: "met", False: "MISSED", None: "not judged"}
    for record in records:
        lines.append(line_of(record))
        lines += [f"{'':<15}{marks[check['met']]}: {check['what']}: {check['found']}" for check in record["checks"]]
        lines += [f"{'':<15}note: {note}" for note in record["notes"]]
    counts = {status: sum(record["status"] == status for record in records) for status in (OK, MISSED, SKIPPED)}
    failed = sum(record["status"] in (FAILED, TIME_OUT) for record in records)
    whole = sum(record["seconds"] for record in records)
    totals = ", ".join(f"{count} {status}" for status, count in counts.items())
    return "\n".join([*lines, "", f"{len(records)} parts in {whole:.0f} s: {totals}, {failed} failed or timed out", ""])


def run_parts(
    parts: Sequence[Part], command_of: CommandOf, out: Path, dry: bool, seconds: float = WHOLE_SECONDS
) -> list[dict[str, Any]]:
    """Run the parts one after the other and rewrite the three files after each; `seconds` bounds all of them.

    A part gets its own limit, or what is left of the whole where that is less.
    """
    missing = [name for name in OPTIONAL if find_spec(name) is None]
    origin = {**provenance(), "missing": missing}
    ends, records, log = time.monotonic() + seconds, [], ""
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            limit = min(part.seconds, ends - time.monotonic())
            record, printed = run_part(part, command_of, limit, Path(folder))
            records.append(record)
            log += f"===== {part.name}: {record['status']}, {record['seconds']} s\n{printed}\n"
            results = {"dry_run": dry, "origin": origin, "parts": records}
            write_whole(out / "results.json", json.dumps(results, indent=1))
            write_whole(out / "summary.txt", summary_text(records, origin, dry))
            write_whole(out / "log.txt", log)
            print(line_of(record), flush=True)
    return records


def own_command(out: Path, dry: bool) -> CommandOf:
    """Parts run by this module: `--run-part NAME FILE` in a new interpreter."""
    base = [sys.executable, "-m", "eval.measure.gpu_check", str(out), *(["--dry-run"] if dry else [])]
    return lambda part, file: [*base, "--run-part", part.name, str(file)]


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    names = [part.name for part in PARTS]
    parser = command.parser("eval.measure.gpu_check", __doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write to")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with the demo pair and tiny sizes")
    parser.add_argument("--parts", nargs="+", choices=names, default=names, metavar="PART", help=", ".join(names))
    parser.add_argument("--run-part", nargs=2, metavar=("PART", "FILE"), help="run one part here; findings go to FILE")
    return parser


def run(args: argparse.Namespace) -> int:
    """All parts, or the one that is asked for; the exit code."""
    out = args.out.resolve()
    if args.run_part:
        from eval.measure.gpu_parts import run_here  # imports the engine, which the process that watches does not need

        run_here(args.run_part[0], Path(args.run_part[1]), out, args.dry_run)
        return 0
    if args.dry_run:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # also for the parts
    elif not torch.cuda.is_available():
        raise ValueError("torch sees no CUDA device; run with --dry-run on a CPU")
    check_writable(out / "results.json")
    selected, whole = [part for part in PARTS if part.name in args.parts], WHOLE_SECONDS
    if args.dry_run:  # it may share its machine with other work
        selected, whole = [part._replace(seconds=DRY_SECONDS) for part in selected], DRY_SECONDS * len(selected)
    records = run_parts(selected, own_command(out, args.dry_run), out, args.dry_run, whole)
    print(f"\n{(out / 'summary.txt').read_text(encoding='utf-8')}")
    return 0 if all(record["status"] in GOOD for record in records) else 1


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command.start(build_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
