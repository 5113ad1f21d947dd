"""The arguments that name a pair and how it drafts, the same for the chat and the server. Nothing heavy is imported
before a command needs it, so that --help is quick.
"""

import argparse
import sys
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from eagle import command
from eagle.chat_template import add_flag, warn_of_others
from eagle.checkpoints.pairs import add_pair_argument, apply_pair

if TYPE_CHECKING:
    from eagle.api.eagle_model import EagleModel

AUTO = "auto"
TREES = ("none", "topk", "chain", "multi", "rsd", "hybrid")  # that come with `eagle.trees.TREES`, for --help
LOSSLESS = ("hsd", "token", "block", "greedy")  # that come with `hsd.VERIFIERS`
DTYPES = (AUTO, "float32", "float16", "bfloat16")
MAX_NODES = 4096


def nodes_or_auto(text: str) -> int | str:
    """The value of --nodes."""
    return text if text == AUTO else command.whole(1, MAX_NODES)(text)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a pair and how it drafts."""
    add_pair_argument(parser)
    parser.add_argument(
        "--target",
        "--base-model-path",
        dest="base_model_path",
        metavar="PATH",
        help="the target: a directory or a hub id",
    )
    parser.add_argument("--head", "--ea-model-path", dest="ea_model_path", metavar="PATH", help="its EAGLE-3 head")
    parser.add_argument("--dtype", default=AUTO, choices=DTYPES, help="auto: what decodes fastest on the device")
    parser.add_argument(
        "--tree",
        metavar="NAME",
        help="auto: what is fastest here, plain decoding where no tree is (default); none: plain decoding; "
        f"or {', '.join(TREES[1:])}; hybrid where --nodes, --depth or --verifier is given",
    )
    parser.add_argument("--verifier", metavar="NAME", help=f"{', '.join(LOSSLESS)} (default: hsd)")
    parser.add_argument(
        "--nodes", type=nodes_or_auto, help="rows of the target's forward per step; auto: what is fastest here"
    )
    parser.add_argument("--depth", type=command.whole(1, MAX_NODES), help="levels of the draft tree")
    add_flag(parser)


def drafting_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Keywords of `EagleModel.generate` from `add_model_arguments`."""
    return drafting_of(vars(options))


def drafting_of(named: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the names that say how to draft: "auto" where none does, "hybrid" where a size or verifier does."""
    given = {name: named[name] for name in ("tree", "verifier", "nodes", "depth") if named.get(name) is not None}
    return {"tree": "hybrid" if given else AUTO, **given}


def trees() -> list[str]:
    """What a tree can be called."""
    from eagle.trees import TREES as ENTERED

    return [AUTO, *ENTERED]


def verifiers() -> list[str]:
    """The lossless verifiers."""
    from hsd.verifiers import VERIFIERS

    return [name for name, verifier in VERIFIERS.items() if verifier.lossless]


def check_names(drafting: Mapping[str, Any]) -> None:
    """ValueError for a tree or verifier that is not known, or that is not lossless."""
    for name, known in (("tree", trees()), ("verifier", verifiers())):
        if name in drafting and drafting[name] not in known:
            raise ValueError(f"{name}={drafting[name]!r}: expected one of {', '.join(known)}")


def load_model(options: argparse.Namespace) -> "EagleModel":
    """The pair that the options name; with "auto", everything is measured that it needs.

    Raises ValueError or OSError saying what is missing.
    """
    drafting = drafting_arguments(options)
    apply_pair(options, head=drafting["tree"] != "none")
    if drafting["tree"] != "none" and not options.ea_model_path:
        raise ValueError(f"--tree {drafting['tree']} needs a head: pass --pair or --head, or --tree none")

    from transformers.utils import logging

    from eagle.api.arguments import resolve_arguments
    from eagle.api.eagle_model import EagleModel

    check_names(drafting)
    resolve_arguments(drafting, {})
    logging.disable_progress_bar()
    warn_of_others(options.ea_model_path, options.chat_template_kwargs)
    model = EagleModel.from_pretrained(options.base_model_path, options.ea_model_path, dtype=options.dtype)
    if AUTO in (drafting["tree"], drafting.get("nodes")):
        prepare_auto(model)
    return model


def prepare_auto(model: "EagleModel") -> None:
    """Measure what tree="auto" needs, and say where no tree is faster than plain decoding."""
    from eagle.autotune.auto import LONGEST

    print(
        f"choosing draft trees; what that needs is measured once on a machine, for {LONGEST:g} s at most ...",
        file=sys.stderr,
        flush=True,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.auto.prepare(model)
    for warning in caught:  # as sentences, without the place in the source
        print(warning.message, file=sys.stderr)
    if not model.auto.settled and all(model.auto.choose(model, one).candidate.nodes == 1 for one in (0.0, 1.0)):
        print("no draft tree is faster than plain decoding here: answers are decoded plainly", file=sys.stderr)
