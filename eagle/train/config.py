"""Settings of a head's training: a JSON file, a dataclass, command-line overrides.

    {"target": "path/to/target", "data": ["train.jsonl"], "output": "runs/head", "minutes": 40}

An unknown key is an error that lists the known ones. Paths are relative to the working directory.
docs/training.md describes every setting.
"""

import argparse
import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from eagle.command import LARGEST
from eagle.files import parse_json
from eagle.nn.precision import fastest

PRECISIONS = ("auto", "bfloat16", "float32")
COMPILE = ("auto", "on", "off")
OLD_PRECISIONS = {"bf16": "bfloat16", "no": "float32"}  # how runs begun before December 2026 say it

# What numbers may be: the words, the test, the settings. None is always allowed where the default is None.
Range = tuple[str, Callable[[float], bool], tuple[str, ...]]
RANGES: tuple[Range, ...] = (
    ("0 .. 1", lambda x: 0 <= x <= 1, ("acceptance_weight", "acceptance_warmup", "decay", "step_decay")),
    ("0 .. 0.5", lambda x: 0 < x <= 0.5, ("held_out_share",)),
    (
        f"1 .. {LARGEST}",
        lambda x: 1 <= x <= LARGEST,
        ("unroll", "accumulation", "log_every", "eval_every", "save_every", "keep", "max_length", "batch_tokens")
        + ("eval_examples", "eval_tokens", "eval_nodes", "eval_depth", "draft_vocab_size", "intermediate_size")
        + ("head_layers", "sliding_window"),
    ),
    (f"0 .. {LARGEST}", lambda x: 0 <= x <= LARGEST, ("seed",)),
    ("0 or more", lambda x: x >= 0, ("warmup", "weight_decay", "eval_prompts", "eval_temperature")),
    ("more than 0", lambda x: x > 0, ("lr", "clip", "steps", "epochs", "minutes")),
)


@dataclass
class TrainConfig:
    """The settings of `python -m eagle.train`. Raises ValueError for a number out of range, naming the setting."""

    target: str = ""  # directory or hub id of the target model
    data: list[str] = field(default_factory=list)  # JSONL files, messages or ShareGPT
    held_out: list[str] = field(default_factory=list)  # JSONL files; empty: `held_out_share` of the data
    held_out_share: float = 0.02
    output: str = ""

    unroll: int = 7  # draft steps of the training-time test
    step_decay: float = 0.8  # loss weight of step i: step_decay ** i
    acceptance_weight: float = 0.0  # share of the acceptance loss, 0 .. 1
    acceptance_warmup: float = 0.0  # share of the run over which that weight rises from 0
    draft_vocab_size: int | None = None  # None: the target's whole vocabulary
    taps: list[int] | None = None  # None: layers 2, L // 2, L - 3
    intermediate_size: int | None = None  # None: the target's
    qk_norm: bool = False  # a Qwen 3 layer: norms of each head's query and key
    head_layers: int = 1
    sliding_window: int | None = None  # tokens that the head's layers see; None: all
    init_from: str | None = None  # continue from this head instead of a fresh one

    chat_template_kwargs: dict = field(default_factory=dict)  # what the chat template reads beside the messages
    max_length: int = 2048
    batch_tokens: int = 8192  # rows * longest of one optimizer step, over all processes
    accumulation: int = 1
    checkpointing: bool = False  # recompute draft steps in the backward pass: less memory, more time
    compile: str = "auto"  # by torch.compile: auto: the loss, where a compiler is and it pays | on: the head too | off
    shard_target: bool = False  # divide the target's layers over the processes (torch fully_shard)
    feature_cache: str = "auto"  # directory | "off" | "auto": OUTPUT/features where epochs repeat and it fits the disk
    precision: str = "auto"  # bfloat16 where the device multiplies it itself, else float32
    seed: int = 0

    steps: int | None = None  # optimizer steps; training ends at the first limit that is reached
    epochs: float | None = None
    minutes: float | None = None
    lr: float = 1e-3
    warmup: int = 50  # steps
    decay: float = 0.4  # share of the run, at its end, with the rate falling linearly to zero
    weight_decay: float = 0.0
    clip: float = 1.0

    log_every: int = 10
    eval_every: int = 200
    eval_examples: int = 64  # held-out conversations on which p and q are compared
    eval_prompts: int = 24  # held-out prompts answered for E[accepted]; 0: the sampled chain along the text instead
    eval_tokens: int = 48
    eval_temperature: float = 1.0
    eval_tree: str = "hybrid"
    eval_verifier: str = "hsd"
    eval_nodes: int = 60
    eval_depth: int = 7
    save_every: int = 200
    keep: int = 2  # checkpoints kept for resuming

    def __post_init__(self) -> None:
        self.precision = OLD_PRECISIONS.get(self.precision, self.precision)
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; known: {', '.join(PRECISIONS)}")
        if self.compile not in COMPILE:
            raise ValueError(f"compile is {self.compile!r}; known: {', '.join(COMPILE)}")
        for words, fits, names in RANGES:
            for name in names:
                value = getattr(self, name)
                if value is not None and not (math.isfinite(value) and fits(value)):
                    raise ValueError(f"{name} is {value}; expected {words}")

    def for_device(self, device: torch.device) -> "TrainConfig":
        """These settings with `precision` "auto" resolved for `device`."""
        if self.precision != "auto":
            return self
        return dataclasses.replace(self, precision=fastest(device))

    def check_runnable(self) -> None:
        """Raise ValueError where target, data, output or every limit of the run is missing."""
        missing = [name for name in ("target", "data", "output") if not getattr(self, name)]
        if missing:
            raise ValueError(f"settings {', '.join(missing)}: must be given, in the config file or as --{missing[0]}")
        if not self.feature_cache:
            raise ValueError("feature_cache is ''; expected a directory, 'auto' or 'off'")
        if self.steps is None and self.epochs is None and self.minutes is None:
            raise ValueError("give at least one of steps, epochs, minutes: nothing says when training ends")


def known_keys() -> dict[str, dataclasses.Field]:
    """Name -> field of every setting."""
    return {f.name: f for f in dataclasses.fields(TrainConfig)}


def from_dict(settings: dict) -> TrainConfig:
    """Settings by name -> TrainConfig. Raises ValueError for unknown names and values of the wrong kind."""
    unknown = sorted(settings.keys() - known_keys().keys())
    if unknown:
        raise ValueError(f"unknown settings {', '.join(unknown)}; known: {', '.join(known_keys())}")
    for name, value in settings.items():
        check_kind(known_keys()[name], value)
    return TrainConfig(**settings)


def read_settings(path: str | Path) -> dict:
    """The settings in a JSON file. Raises ValueError naming the file where it holds no JSON object."""
    try:
        settings = parse_json(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"config file {str(path)!r}: cannot be read as JSON ({error})") from error
    if not isinstance(settings, dict):
        raise ValueError(f"config file {str(path)!r}: expected a JSON object")
    return settings


# Values that a setting of each annotated type takes, in words and as a test.
KINDS = {
    "str": ("a text", lambda v: isinstance(v, str)),
    "bool": ("true or false", lambda v: isinstance(v, bool)),
    "int": ("a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool)),
    "float": ("a number", lambda v: isinstance(v, (int, float)) and not isinstance(v, bool)),
    "dict": ("a JSON object", lambda v: isinstance(v, dict)),
    "list[str]": ("a list of texts", lambda v: isinstance(v, list) and all(isinstance(x, str) for x in v)),
    "list[int]": ("a list of whole numbers", lambda v: isinstance(v, list) and all(isinstance(x, int) for x in v)),
}


def kind_of(setting: dataclasses.Field) -> str:
    """The annotation as it is written: "int", "list[str]", "float | None"."""
    return setting.type.__name__ if isinstance(setting.type, type) else str(setting.type)


def check_kind(setting: dataclasses.Field, value) -> None:
    """Raise ValueError where a value is not of its setting's annotated type."""
    kind, _, optional = kind_of(setting).partition(" | ")
    words, fits = KINDS[kind]
    if not (fits(value) or (optional and value is None)):
        raise ValueError(f"setting {setting.name} is {value!r}; expected {words}")


def parser_of(setting: dataclasses.Field):
    """The function from command-line text to a setting's value: names stay text, the rest is read as JSON."""

    def parse(text: str):
        if kind_of(setting).startswith(("str", "list[str]")):
            return text
        try:
            return json.loads(text)
        except ValueError:
            return text  # check_kind says what was expected

    return parse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --config and one option per setting."""
    parser.add_argument("--config", metavar="F", help="JSON file with settings; the options below override it")
    for name, setting in known_keys().items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            type=parser_of(setting),
            default=argparse.SUPPRESS,
            nargs="+" if kind_of(setting).startswith("list") else None,
            help=kind_of(setting),
        )


def from_arguments(args: argparse.Namespace) -> TrainConfig:
    """Parsed arguments -> TrainConfig; options override the file."""
    given = {name: value for name, value in vars(args).items() if name in known_keys()}
    return from_dict({**(read_settings(args.config) if args.config else {}), **given})
