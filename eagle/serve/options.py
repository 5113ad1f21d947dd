"""The arguments that name a pair and how it drafts, the same for the chat and the server."""

import argparse
import sys
from typing import Any

from transformers.utils import logging

from eagle import command
from eagle.api.arguments import resolve_arguments
from eagle.api.eagle_model import EagleModel
from eagle.autotune.candidates import AUTO, count_or_auto
from eagle.chat_template import add_flag
from eagle.checkpoints.pairs import add_pair_argument, apply_pair
from eagle.trees import TREES
from hsd.verifiers import VERIFIERS

LOSSLESS = [name for name, verifier in VERIFIERS.items() if verifier.lossless]


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a pair and how it drafts."""
    add_pair_argument(parser)
    parser.add_argument("--base-model-path", metavar="PATH", help="the target: a directory or a hub id")
    parser.add_argument("--ea-model-path", metavar="PATH", help="its EAGLE-3 head")
    parser.add_argument("--dtype", help="float32, float16, bfloat16, or auto: what decodes fastest on the device")
    parser.add_argument(
        "--tree", default="hybrid", choices=[*TREES, AUTO], help="none: plain decoding; auto: what is fastest here"
    )
    parser.add_argument("--verifier", default="hsd", choices=LOSSLESS)
    parser.add_argument(
        "--nodes", type=count_or_auto, help="rows of the target's forward per step; auto: what is fastest here"
    )
    add_flag(parser)
    parser.add_argument("--depth", type=command.COUNT, default=None, help="levels of the draft tree")


def drafting_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Keywords of `EagleModel.stream` from `add_model_arguments`."""
    named = {name: getattr(options, name) for name in ("tree", "verifier", "nodes", "depth")}
    return {name: value for name, value in named.items() if value is not None}


def load_model(options: argparse.Namespace) -> EagleModel:
    """The pair that the options name; with "auto", everything is measured that it needs.

    Raises ValueError or OSError saying what is missing.
    """
    apply_pair(options, head=options.tree != "none")
    if options.tree != "none" and not options.ea_model_path:
        raise ValueError(f"--tree {options.tree} needs a head: pass --pair or --ea-model-path, or --tree none")
    resolve_arguments(drafting_arguments(options), {})
    logging.disable_progress_bar()
    model = EagleModel.from_pretrained(options.base_model_path, options.ea_model_path, dtype=options.dtype)
    if AUTO in (options.tree, options.nodes):
        print("choosing draft trees; what that needs is measured once on a machine ...", file=sys.stderr, flush=True)
        model.auto.prepare(model)
    return model
