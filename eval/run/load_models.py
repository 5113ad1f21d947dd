"""Loading what a run measures: the target with its drafter, and the flags that every command names them by."""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from eagle import EagleModel
from eagle.api.loading import resolve_dtype
from eagle.checkpoints.fingerprint import weights_fingerprint
from eagle.checkpoints.known import KNOWN
from eagle.checkpoints.pairs import add_pair_argument, apply_pair, find_target
from eagle.checkpoints.pretrained import read_config, read_model
from eagle.nn.precision import DTYPES

AUTO_DTYPE = "auto"


def default_dtype() -> str:
    """bfloat16 on a GPU, float32 on a CPU."""
    return "bfloat16" if torch.cuda.is_available() else "float32"


def auto_dtype(target: str | None, device: str) -> str:
    """The name of what `EagleModel.from_pretrained(target, dtype="auto")` computes in there; None: what suits code that
    is not this project's.
    """
    family = "" if target is None else read_config(target).model_type
    return str(resolve_dtype("auto", torch.device(device), family)).removeprefix("torch.")


def add_model_flags(parser: Any, default_pair: str | None = None, auto: bool = False) -> None:
    """--pair, --base-model-path, --ea-model-path, --draft-model-path and --dtype, for `resolve_flags`.

    default_pair    the pair that is used where neither a pair nor a target is given
    auto            whether `--dtype auto` is one of the choices, and the default
    """
    parser.set_defaults(default_pair=default_pair)
    add_pair_argument(parser)
    add = parser.add_argument
    default = f" (default: the {default_pair} pair)" if default_pair else ""
    add("--base-model-path", "--target", metavar="P", help="the target, a directory or a hub id" + default)
    add("--ea-model-path", "--head", metavar="P", help="its EAGLE-3 head, which drafts")
    add(
        "--draft-model-path",
        metavar="P",
        help="an ordinary draft model: drafts when there is no head; used by transformers-assisted",
    )
    add(
        "--dtype",
        choices=[*DTYPES, *([AUTO_DTYPE] if auto else [])],
        default=AUTO_DTYPE if auto else default_dtype(),
        help="weights and arithmetic "
        + ("(default: auto, what decodes fastest here)" if auto else "(default: %(default)s on this machine)"),
    )


def resolve_flags(options: argparse.Namespace, head: bool = True) -> None:
    """Fill the paths of a pair that is given by name, or of the command's default pair; a target and a draft model
    may be names of the fetch table, too. `head`: whether a pair's head is needed.

    Raises ValueError where nothing names a target, or a pair is not known or not here.
    """
    if options.pair is None and not options.base_model_path:
        options.pair = options.default_pair
    options.base_model_path = fetched(options.base_model_path)
    options.draft_model_path = fetched(options.draft_model_path)
    apply_pair(options, head)


def fetched(path: str | None) -> str | None:
    """The directory of a target that is given by its name in the fetch table; any other path as it is.

    Raises ValueError for one that was not fetched yet.
    """
    return find_target(path) if path in KNOWN and not Path(path).exists() else path


def weights_of(options: argparse.Namespace) -> list[str | None]:
    """Which weights the flags of `add_model_flags` name: a fingerprint of each, the path where it has none."""
    paths = (options.base_model_path, options.ea_model_path, options.draft_model_path)
    return [weights_fingerprint(path) or path for path in paths]


def load_from_flags(options: argparse.Namespace) -> EagleModel:
    """The pair that the flags of `add_model_flags` name."""
    resolve_flags(options)
    return load(
        options.base_model_path, options.ea_model_path, options.dtype, draft_model_path=options.draft_model_path
    )


def device_of(rank: int) -> str:
    """This process's device: one GPU per local rank, else the CPU."""
    return f"cuda:{rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


def load(
    base_model_path: str,
    ea_model_path: str | None,
    dtype: str,
    local_rank: int = 0,
    draft_model_path: str | None = None,
) -> EagleModel:
    """The target with the head, or, without one, with the draft model as its drafter.

    Raises ValueError and OSError as `EagleModel.from_pretrained` does.
    """
    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # `transformers`' own, for every weight
    return EagleModel.from_pretrained(
        base_model_path,
        ea_model_path=ea_model_path,
        draft_model_path=None if ea_model_path else draft_model_path,
        **placement(dtype, local_rank),
    )


def placement(dtype: Any, local_rank: int = 0) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained`: dtype and device of this process."""
    device = device_of(local_rank)
    return {"dtype": dtype, "device_map": None if device == "cpu" else {"": device}}


def load_assistant(path: str, dtype: torch.dtype, local_rank: int = 0) -> Any:
    """An ordinary draft model for `transformers`' assisted generation, set to drafts of one length as ours are."""
    assistant = read_model(path, **placement(dtype, local_rank))
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    return assistant


def model_name(path: str) -> str:
    """NAME of NAME/target, else the last part of a path or hub id."""
    place = Path(path)
    return place.parent.name if place.name == "target" else place.name
