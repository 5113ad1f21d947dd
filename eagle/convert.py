"""Rewrite a draft head for other engines: SafeAILab's code, SGLang, vLLM, speculators, llama.cpp.

    python -m eagle.convert IN OUT --to {safeailab,speculators} [--target T]
    python -m eagle.convert IN OUT.gguf --to gguf --target-gguf T.gguf [--target T] [--dtype bfloat16]

IN is a directory or hub id of any public family. In the first two layouts tensors keep their bits and their dtype: only
their names (`midlayer.*` or `layers.0.*`), the container and config.json change. --target is the target's directory or
hub id: needed where IN names no feature taps, a check that the head belongs to it, and written as the verifier's
name.

safeailab     what SafeAILab's code, SGLang and vLLM read: flat config.json, midlayer.*
speculators   what the speculators library and vLLM read: nested config.json, layers.0.*
gguf          one file for llama.cpp (eagle/checkpoints/to_gguf.py says how it differs); --target-gguf is the target as
              llama.cpp has it, whose tokenizer is copied; needs the package gguf (the extra `fetch`)
docs/engines.md shows how each engine is started with the result.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from eagle import command
from eagle.checkpoints.checks import check_target
from eagle.checkpoints.layouts import safeailab_config, speculators_config
from eagle.checkpoints.load import build_head, locate, naming, read_checkpoint
from eagle.checkpoints.pretrained import read_config
from eagle.checkpoints.to_gguf import FILE_TYPES, check_expressible, write_gguf
from eagle.files import sole_writer, write_directory, write_file, write_json
from eagle.nn.head import Eagle3Head, HeadConfig

FORMATS = ("safeailab", "speculators", "gguf")
LAYER_PREFIX = {"safeailab": "midlayer.", "speculators": "layers.0."}


def text_config(target: str | None):
    return read_config(target).get_text_config() if target else None


def rename(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """`midlayer.*` -> `prefix*`; everything else keeps its name."""
    return {
        prefix + name.removeprefix("midlayer.") if name.startswith("midlayer.") else name: tensor
        for name, tensor in tensors.items()
    }


def write_config(to: str, config: HeadConfig, dtype: str, target, target_name: str | None) -> dict:
    if to == "safeailab":
        return safeailab_config(config, dtype, target.num_hidden_layers if target is not None else None)
    architectures = list(getattr(target, "architectures", None) or [])
    return speculators_config(config, dtype, target_name, architectures)


def convert(source: str | Path, output: str | Path, to: str, target_name: str | None = None) -> HeadConfig:
    """Write the head at `source` to `output` in the layout `to`; the checks of `load_head` come first."""
    if to not in LAYER_PREFIX:
        raise ValueError(f"format {to!r} is not known; known: {', '.join(FORMATS)}")
    if not str(output):
        raise ValueError("output '': expected a directory")
    directory, output = locate(source), Path(output)
    if output.resolve() == directory.resolve():
        raise ValueError(f"output {str(output)!r} is the input directory; choose another, so that the original stays")
    target = text_config(target_name)
    head, tensors = read_head(source, target)
    config = head.config
    if config.has_vocabulary_map and not torch.equal(tensors["d2t"].long(), head.get_buffer("d2t")):
        tensors["d2t"] = head.get_buffer("d2t").to(tensors["d2t"].dtype)  # it held target ids
    renamed = {name: t.detach().clone().contiguous() for name, t in rename(tensors, LAYER_PREFIX[to]).items()}
    dtype = str(tensors["fc.weight"].dtype).removeprefix("torch.")
    layout = write_config(to, config, dtype, target, target_name)

    def fill(folder: Path) -> None:
        save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
        write_json(folder / "config.json", layout)

    with sole_writer(output):
        check_new(output)
        write_directory(output, fill)
    return config


def read_head(source: str | Path, target) -> tuple[Eagle3Head, dict[str, Tensor]]:
    """The head at `source`, checked as `load_head` does, and its tensors as they are on disk."""
    with naming(source):
        config, tensors = read_checkpoint(locate(source), target)
        if target is not None:
            check_target(config, target)
        return build_head(config, dict(tensors)), tensors


def convert_to_gguf(
    source: str | Path,
    output: str | Path,
    target_gguf: str | None,
    target_name: str | None = None,
    dtype: str = "bfloat16",
) -> HeadConfig:
    """Write the head at `source` to the file `output` for llama.cpp, whole or not at all."""
    if target_gguf is None:
        raise ValueError("--to gguf needs --target-gguf: the target's GGUF file, whose tokenizer the head's file holds")
    if find_spec("gguf") is None:
        raise ValueError("--to gguf needs the package gguf; install it, or the extra: pip install 'eagle3-hsd[fetch]'")
    head, _ = read_head(source, text_config(target_name))
    with naming(source):
        check_expressible(head.config)
    with sole_writer(output):
        if Path(output).exists():
            raise ValueError(f"output {str(output)!r} exists already; remove it, or choose another")
        write_file(output, lambda path: write_gguf(head, path, target_gguf, dtype))
    return head.config


def check_new(output: Path) -> None:
    """ValueError unless `output` is absent or an empty directory, which is removed: what is there is never mixed."""
    if output.is_dir() and not any(output.iterdir()):
        output.rmdir()
    if output.exists():
        raise ValueError(f"output {str(output)!r} exists already; remove it, or choose another")


def main(argv: list[str] | None = None) -> int:
    """Convert as `argv` says and return the exit status."""
    parser = command.parser("eagle.convert", __doc__)
    parser.add_argument("source", metavar="IN")
    parser.add_argument("output", metavar="OUT")
    parser.add_argument("--to", required=True, choices=FORMATS)
    parser.add_argument("--target", help="the target's directory or hub id")
    parser.add_argument("--target-gguf", metavar="F", help="gguf only: the target's GGUF file")
    parser.add_argument("--dtype", choices=tuple(FILE_TYPES), help="gguf only: of the matrices (default bfloat16)")

    def work(args: argparse.Namespace) -> None:
        if args.to == "gguf":
            dtype = args.dtype or "bfloat16"
            config = convert_to_gguf(args.source, args.output, args.target_gguf, args.target, dtype)
        elif args.dtype or args.target_gguf:
            raise ValueError(f"--dtype and --target-gguf are for --to gguf; {args.to} keeps the tensors' bits")
        else:
            config = convert(args.source, args.output, args.to, args.target)
        print(f"{args.output}: {args.to} layout, taps (layer inputs) {list(config.taps)}")

    return command.start(parser, work, argv)


if __name__ == "__main__":
    sys.exit(main())
