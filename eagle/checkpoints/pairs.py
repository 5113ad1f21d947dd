"""Pairs by name: where a target and its head lie on this machine.

    pair = resolve_pair("smollm2-135m")        Pair(name, target, head), two directories
    add_pair_argument(parser); options = parser.parse_args(); apply_pair(options)       `--pair NAME` of a command

A pair's target is ROOT/NAME/target and its head ROOT/NAME/eagle3, each in the first of these roots that has it:
`$HSD_CHECKPOINTS` where it is set, `checkpoints/` of the source tree this package is imported from, and
`~/.cache/eagle3-hsd`. `python -m eagle.checkpoints.fetch NAME` writes to the first of them.
"""

import argparse
import os
from pathlib import Path
from typing import NamedTuple

from eagle.checkpoints.known import KNOWN, KnownPair

DEMO = "demo"
SOURCE_TREE = Path(__file__).resolve().parents[2]


class Pair(NamedTuple):
    """A target and its EAGLE-3 head: two directories, relative where they lie below the working directory."""

    name: str
    target: str
    head: str


def pair_names() -> list[str]:
    """Every name `resolve_pair` takes."""
    return [DEMO, *KNOWN]


def find_known(name: str) -> KnownPair:
    """The table's row. Raises ValueError listing the names there are."""
    if name not in KNOWN:
        raise ValueError(f"pair {name!r} is not known; expected one of {', '.join(KNOWN)}")
    return KNOWN[name]


def roots() -> list[Path]:
    """The folders pairs are looked for in, first match wins."""
    given = os.environ.get("HSD_CHECKPOINTS")
    checkout = SOURCE_TREE / "checkpoints"
    return [
        *([Path(given).expanduser()] if given else []),
        *([checkout] if (SOURCE_TREE / "pyproject.toml").is_file() else []),
        Path.home() / ".cache" / "eagle3-hsd",
    ]


def find_part(name: str, part: str) -> Path | None:
    """The first ROOT/name/part with a config.json in it, or None."""
    found = (root / name / part for root in roots())
    return next((place for place in found if (place / "config.json").is_file()), None)


def readable(place: Path) -> str:
    """The path as a user would type it: relative where it is below the working directory."""
    here = Path.cwd()
    return str(place.relative_to(here)) if place.is_relative_to(here) else str(place)


def find_target(name: str) -> str:
    """The target's directory. Raises ValueError for an unknown name and for a target that was not fetched yet."""
    if name != DEMO and name not in KNOWN:
        raise ValueError(f"--pair {name!r} is not known; expected one of {', '.join(pair_names())}")
    place = find_part(name, "target")
    if place is None:
        remedy = "set $HSD_CHECKPOINTS to the repository's checkpoints/ folder"
        if name != DEMO:
            remedy = f"run `python -m eagle.checkpoints.fetch {name}`"
        raise ValueError(f"--pair {name}: no target in {', '.join(map(str, roots()))}; {remedy}")
    return readable(place)


def find_head(name: str) -> str:
    """The head's directory. Raises ValueError where there is none."""
    place = find_part(name, "eagle3")
    if place is None:
        raise ValueError(
            f"--pair {name}: no head at {name}/eagle3 in {', '.join(map(str, roots()))}; train one "
            "(scripts/train_head.sh) and put it there, or set $HSD_CHECKPOINTS to a folder that has it"
        )
    return readable(place)


def resolve_pair(name: str) -> Pair:
    """The directories of a pair. Raises ValueError naming what is missing and the command that gets it."""
    return Pair(name, find_target(name), find_head(name))


def add_pair_argument(parser: argparse._ActionsContainer) -> None:
    """Add `--pair NAME` to a parser, or to a group of one."""
    parser.add_argument(
        "--pair",
        metavar="NAME",
        help=f"a target and its head by name: {', '.join(pair_names())} (python -m eagle.checkpoints.fetch NAME)",
    )


def apply_pair(options: argparse.Namespace, head: bool = True) -> None:
    """Fill base_model_path and ea_model_path from `--pair`; a path that was given stays, and so does a draft model.

    head    whether a head is needed; without one, none is looked for
    Raises ValueError where neither a pair nor a target was given, and as `resolve_pair` does.
    """
    if options.pair is None:
        if not options.base_model_path:
            raise ValueError("no target was given; pass --pair NAME, or --base-model-path and --ea-model-path")
        return
    options.base_model_path = options.base_model_path or find_target(options.pair)
    if head and not getattr(options, "draft_model_path", None):
        options.ea_model_path = options.ea_model_path or find_head(options.pair)
