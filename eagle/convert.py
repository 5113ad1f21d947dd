"""Rewrite a draft head for other engines, bit for bit.

    python -m eagle.convert IN OUT --to {safeailab,speculators} [--target T]

IN is a directory or hub id of any public family. Tensors keep their bits and their dtype: only their names
(`midlayer.*` or `layers.0.*`), the container and config.json change. --target is the target's directory or hub id: it
is needed where IN names no feature taps, checks that the head belongs to it, and is written as the verifier's name.

safeailab     what SafeAILab's code, SGLang and vLLM read: flat config.json, midlayer.*
speculators   what the speculators library and vLLM read: nested config.json, layers.0.*
"""

import argparse
import sys
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from eagle import command
from eagle.checkpoints.checks import check_target
from eagle.checkpoints.layouts import safeailab_config, speculators_config
from eagle.checkpoints.load import build_head, locate, naming, read_checkpoint
from eagle.checkpoints.pretrained import read_config
from eagle.files import sole_writer, write_directory, write_json
from eagle.nn.head import HeadConfig

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
        raise ValueError(f"format {to!r} is not known; known: {', '.join(LAYER_PREFIX)}")
    if not str(output):
        raise ValueError("output '': expected a directory")
    directory, output = locate(source), Path(output)
    if output.resolve() == directory.resolve():
        raise ValueError(f"output {str(output)!r} is the input directory; choose another, so that the original stays")
    target = text_config(target_name)
    with naming(source):
        config, tensors = read_checkpoint(directory, target)
        if target is not None:
            check_target(config, target)
        build_head(config, dict(tensors))
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
    parser.add_argument("--to", required=True, choices=tuple(LAYER_PREFIX))
    parser.add_argument("--target", help="the target's directory or hub id")

    def work(args: argparse.Namespace) -> None:
        config = convert(args.source, args.output, args.to, args.target)
        print(f"{args.output}: {args.to} layout, taps (layer inputs) {list(config.taps)}")

    return command.start(parser, work, argv)


if __name__ == "__main__":
    sys.exit(main())
