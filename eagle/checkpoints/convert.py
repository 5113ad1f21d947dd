"""Rewrite a draft head for other engines, bit for bit.

    python -m eagle.convert IN OUT --to {safeailab,speculators} [--target T]

IN is a directory or hub id of any public family. Tensors keep their bits and their dtype: only their names
(`midlayer.*` or `layers.0.*`), the container and config.json change. --target is the target's directory or hub id: it
is needed where IN names no feature taps, checks that the head belongs to it, and is written as the verifier's name.

safeailab     what SafeAILab's code, SGLang and vLLM read: flat config.json, midlayer.*
speculators   what the speculators library and vLLM read: nested config.json, layers.0.*
"""

import argparse
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from eagle.checkpoints.checks import check_target
from eagle.checkpoints.layouts import safeailab_config, speculators_config
from eagle.checkpoints.load import build_head, locate, naming, read_checkpoint
from eagle.checkpoints.pretrained import read_config
from eagle.files import write_file, write_json
from eagle.modules.head import HeadConfig

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
    write_file(output / "model.safetensors", lambda path: save_file(renamed, path, metadata={"format": "pt"}))
    write_json(output / "config.json", write_config(to, config, dtype, target, target_name))
    return config


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m eagle.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="IN")
    parser.add_argument("output", metavar="OUT")
    parser.add_argument("--to", required=True, choices=tuple(LAYER_PREFIX))
    parser.add_argument("--target", help="the target's directory or hub id")
    args = parser.parse_args()
    config = convert(args.source, args.output, args.to, args.target)
    print(f"{args.output}: {args.to} layout, taps (layer inputs) {list(config.taps)}")


if __name__ == "__main__":
    main()
