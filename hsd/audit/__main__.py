"""The losslessness certificate: exact, by enumeration of toy worlds; no sampling, no tolerance for noise.

For every family of drafts (top-k, one path, several paths, with and without replacement, hybrid, ...) and
every verifier: the error of the joint distribution it emits, E[accepted], the optimum over all lossless verifiers (a
linear program, scipy), an upper bound, and how much of the way from token-wise to the optimum it goes.

Somebody else's verifier:  --verifier module:function  where function is one of

    function(inputs: VerifierInput) -> StopDistribution                          as those of hsd/verifiers
    function(tree: hsd.DraftTree, target_probs: Float64[N, V]) -> (stop Float[N], residuals Float[N, V]), or an object
                                                                                 with .stop and .residual(node)

or an hsd.Verifier. It has to be exact: distributions, not samples. It is taken to claim losslessness, except an
hsd.Verifier, which says so itself. Raising ValueError on a tree refuses its family.

Exit code 1 if something that claims losslessness is not lossless, 2 if a file cannot be written.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

import hsd
from hsd.audit.exact import Rule
from hsd.audit.report import HEADER, Row, Subject, audit, families, line, plot


def as_rule(function: hsd.Verifier | Callable[..., Any]) -> Rule:
    """Accept a function of `VerifierInput` as it stands in hsd.VERIFIERS, or of a tree and target probabilities."""
    if isinstance(function, hsd.Verifier):
        entry = function
    elif len(inspect.signature(function).parameters) == 1:
        entry = hsd.Verifier(function, lossless=True, scope="tree")
    else:
        return rule_of(function)
    return rule_of(lambda tree, target: hsd.stopping_law(tree, target, entry))


def rule_of(function: Callable[[hsd.DraftTree, Tensor], Any]) -> Rule:
    """Accept (stop, residuals) or an object with .stop and .residual(node)."""

    def rule(tree: hsd.DraftTree, target: Tensor) -> tuple[Tensor, Tensor]:
        result = function(tree, target)
        if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Tensor):
            return result
        unused = torch.zeros_like(target[0])
        return result.stop, torch.stack(
            [result.residual(node) if stop > 0 else unused for node, stop in enumerate(result.stop.tolist())]
        )

    return rule


def known(name: str) -> Subject:
    """A verifier of hsd.VERIFIERS."""
    entry = hsd.VERIFIERS[name]
    return Subject(name, as_rule(entry), entry.lossless, entry.scope)


def foreign(spec: str) -> Subject:
    """From "module:function". Raises ValueError if there is no such thing."""
    module, _, function = spec.partition(":")
    if not module or not function:
        known_names = ", ".join(hsd.VERIFIERS)
        raise ValueError(f"--verifier {spec!r}: expected one of {known_names}, or module:function")
    sys.path.insert(0, "")
    found = getattr(importlib.import_module(module), function)
    claims = found[1:] if isinstance(found, hsd.Verifier) else ()
    return Subject(spec, as_rule(found), *claims)


class Parser(argparse.ArgumentParser):
    """Refuses in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit code 2."""
        self.exit(2, f"error: {message.removeprefix('argument --seed: ')}\n")


def seed(text: str) -> int:
    """A whole number that a random generator takes."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"--seed {text}: expected a whole number from 0 to {2**63 - 1}")
    return int(text)


def arguments() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m hsd.audit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--verifier",
        action="append",
        metavar="NAME",
        default=[],
        help="a name in hsd.VERIFIERS or module:function; may be repeated (default: all "
        "names); `token` is always included, as the baseline",
    )
    parser.add_argument(
        "--families",
        choices=("quick", "standard", "full"),
        default="standard",
        help="quick: four; full: every recipe crossed with every kind of world (minutes)",
    )
    parser.add_argument("--seed", type=seed, default=7, help="of the toy models (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the rows to FILE")
    parser.add_argument("--plot", metavar="FILE", help="write a PNG of E[accepted] (needs matplotlib)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Print the table; return the exit code."""
    parser = arguments()
    args = parser.parse_args(argv)
    try:
        for place in (args.json, args.plot):
            if place:
                check_writable(Path(place))
    except OSError as error:
        parser.error(str(error))
    names = list(dict.fromkeys(["token", *(args.verifier or hsd.VERIFIERS)]))
    try:
        subjects = [known(name) if name in hsd.VERIFIERS else foreign(name) for name in names]
    except (ValueError, ImportError, AttributeError) as inputs:
        parser.error(str(inputs))
    rows = []
    print(HEADER)
    for row in audit(subjects, families(args.families), args.seed):
        rows.append(row)
        print(line(row), flush=True)
    try:
        if args.json:
            content = json.dumps([{**asdict(row), "verdict": row.verdict} for row in rows], indent=1)
            write_whole(Path(args.json), lambda path: path.write_text(content))
        if args.plot:
            write_whole(Path(args.plot), lambda path: plot(rows, str(path)))
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return _conclude(subjects, rows)


def check_writable(path: Path) -> None:
    """OSError naming a place where no file can be written; called before the work."""
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "there is something other than a file; choose another place", str(path))
    write_whole(path.with_name(f"{path.name}.tmp"), lambda temporary: temporary.write_bytes(b""))
    path.with_name(f"{path.name}.tmp").unlink()


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then rename it: there is never half of one. OSError names `path`."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def _conclude(subjects: list[Subject], rows: list[Row]) -> int:
    """Print what failed. Having refused every family certifies nothing, so it is a failure too."""
    failures = [
        f"NOT LOSSLESS: {row.verifier} on {row.family}: error {row.error:.2e}, TV {row.variation:.2e}"
        for row in rows
        if row.failed
    ]
    tried = {row.verifier for row in rows}
    failures += [
        f"NOT CERTIFIED: no family here suits {subject.name}" for subject in subjects if subject.name not in tried
    ]
    if failures:
        print("\n".join(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
