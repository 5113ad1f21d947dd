"""The losslessness certificate: exact, by enumeration of toy worlds; no sampling, no tolerance for noise.

For every family of drafts (chosen, one path, several paths, with and without replacement, hybrid, ...) and every
verifier: the error of the joint law it emits, E[accepted], the optimum over all lossless verifiers (a linear
program, scipy), an upper bound, and the share of the way from token-wise to the optimum that it goes.

Somebody else's verifier:  --verifier module:function  where

    function(tree: hsd.DraftTree, target_probs: Float64[N, V]) -> (stop Float[N], residuals Float[N, V])

or an object with .stop and .residual(node). It has to be exact: give the law, not samples. It is taken to claim
losslessness. Raising ValueError on a tree refuses its family.

Exit code 1 if something that claims losslessness is not lossless.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor

import hsd
from hsd.audit.exact import Rule
from hsd.audit.report import Subject, audit, families, plot, table


def as_rule(function: Callable) -> Rule:
    """Accept (stop, residuals) or an object with .stop and .residual(node)."""
    def rule(tree: hsd.DraftTree, target: Tensor) -> tuple[Tensor, Tensor]:
        law = function(tree, target)
        if isinstance(law, tuple) and len(law) == 2 and isinstance(law[1], Tensor):
            return law
        return law.stop, torch.stack([law.residual(node) for node in range(len(tree))])

    return rule


def known(name: str) -> Subject:
    """A verifier of hsd.VERIFIERS."""
    entry = hsd.VERIFIERS[name]
    return Subject(name, as_rule(lambda tree, p: hsd.stopping_law(tree, p, name)), entry.lossless, entry.scope)


def foreign(spec: str) -> Subject:
    """From "module:function". Raises ValueError if there is no such thing."""
    module, _, function = spec.partition(":")
    if not module or not function:
        raise ValueError(f"--verifier {spec!r}: expected a name in {', '.join(hsd.VERIFIERS)}, or module:function")
    sys.path.insert(0, "")
    return Subject(spec, as_rule(getattr(importlib.import_module(module), function)))


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hsd.audit", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verifier", action="append", metavar="NAME", default=[],
                        help="a name in hsd.VERIFIERS or module:function; may be repeated (default: all names); "
                             "`token` is always included, as the baseline")
    parser.add_argument("--families", choices=("quick", "standard", "full"), default="standard",
                        help="quick: four; full: every recipe crossed with every kind of world (minutes)")
    parser.add_argument("--seed", type=int, default=7, help="of the toy models (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the rows to FILE")
    parser.add_argument("--plot", metavar="FILE", help="write a PNG of E[accepted] to FILE (needs matplotlib)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Print the table; return the exit code."""
    args = arguments().parse_args(argv)
    names = list(dict.fromkeys(["token", *(args.verifier or hsd.VERIFIERS)]))
    subjects = [known(name) if name in hsd.VERIFIERS else foreign(name) for name in names]
    rows = list(audit(subjects, families(args.families), args.seed))
    print(table(rows))
    if args.json:
        with open(args.json, "w") as file:
            json.dump([{**asdict(row), "verdict": row.verdict} for row in rows], file, indent=1)
    if args.plot:
        plot(rows, args.plot)
    failures = [row for row in rows if row.failed]
    for row in failures:
        print(f"NOT LOSSLESS: {row.verifier} on {row.family}: error {row.error:.2e}, TV {row.variation:.2e}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
