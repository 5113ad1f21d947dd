"""Load and save EAGLE-3 heads.

    head = load_head(path_or_hub_id, target_config)      any of the five public families, checked tensor by tensor
    save_head(head, directory, target_layers)            the SafeAILab layout: config.json + model.safetensors

Nothing is loaded partly: a tensor that is missing, unexpected or of the wrong shape is an error that names it.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor

from eagle.checkpoints.checks import (
    check_finite,
    check_tap_count,
    check_target,
    check_tensors,
    drop_identity_map,
    read_vocabulary_map,
)
from eagle.checkpoints.formats import positive_number, read_config
from eagle.checkpoints.layouts import safeailab_config
from eagle.checkpoints.pretrained import CODE_OPTIONS, HUB_OPTIONS
from eagle.checkpoints.weight_files import read_tensors
from eagle.files import read_json, write_file, write_json
from eagle.nn.head import Eagle3Head, HeadConfig, Rotary

WANTED = ("*.json", "*.safetensors", "*.bin")
# Copies of the target's, kept by the speculators library while it trains and by some of its checkpoints.
TRAINING_ONLY = {"verifier_lm_head.weight", "verifier_norm.weight"}


def locate(path_or_hub_id: str | Path, subfolder: str = "", **hub: Any) -> Path:
    """The local directory of a head: a directory as it is, a hub id downloaded (or taken from the hub's cache).

    hub    of `snapshot_download`: revision, token, cache_dir, local_files_only, ...
    """
    path = Path(path_or_hub_id, subfolder)
    if str(path_or_hub_id) and path.is_dir():  # Path("") is the working directory
        return path
    if path.is_file():
        raise ValueError(f"draft head {str(path)!r} is a file; expected its directory, with config.json beside it")
    try:
        patterns = [f"{subfolder}/{name}" if subfolder else name for name in WANTED]
        return Path(snapshot_download(str(path_or_hub_id), allow_patterns=patterns, **hub), subfolder)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"draft head {str(path_or_hub_id)!r}: neither a directory here nor a repository the hub would give "
            f"({type(error).__name__}); check the spelling, access rights and network"
        ) from error


@contextlib.contextmanager
def naming(path_or_hub_id: str | Path) -> Iterator[None]:
    """Every ValueError raised inside says which head it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"draft head {str(path_or_hub_id)!r}: {error}") from error


def canonical_name(name: str) -> str:
    """`layers.0.*` (speculators, vLLM) and `midlayer.*` (others) are one layer; `model.` before a name says nothing."""
    name = name.removeprefix("model.")
    return "midlayer." + name[len("layers.0.") :] if name.startswith("layers.0.") else name


def canonical(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One name per tensor, without what only training needs."""
    kept = {name: tensor for name, tensor in tensors.items() if name not in TRAINING_ONLY}
    renamed = {canonical_name(name): tensor for name, tensor in kept.items()}
    if len(renamed) != len(kept):
        raise ValueError("tensors: the layer is there twice, as midlayer.* and as layers.0.*; remove one")
    return renamed


def tie_own_embeddings(config: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The head's own embeddings as its lm_head too, where it says so and has none (it may say so and have one)."""
    embeddings = tensors.get("embed_tokens.weight")
    if not config.get("tie_word_embeddings") or "lm_head.weight" in tensors or embeddings is None:
        return tensors
    return {**tensors, "lm_head.weight": embeddings}


def read_checkpoint(directory: Path, target_config: Any) -> tuple[HeadConfig, dict[str, Tensor]]:
    """config.json and tensors, not compared yet. `target_config` None: its layer count, which default taps follow
    from, is not known.
    """
    tensors = canonical(read_tensors(directory))
    settings = read_json(directory / "config.json")
    tensors = tie_own_embeddings(settings, tensors)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    layers = target_config.num_hidden_layers if target_config is not None else None
    return read_config(settings, shapes, layers), tensors


def build_head(config: HeadConfig, tensors: dict[str, Tensor], dtype: torch.dtype | None = None) -> Eagle3Head:
    """A head with these weights, checked; floating-point tensors in `dtype`, or in that of `fc.weight`."""
    tensors = drop_identity_map(tensors, config)
    with torch.device("meta"):
        head = Eagle3Head(config)
    check_tap_count(config, tensors)
    check_tensors(tensors, head.state_dict())
    if config.has_vocabulary_map:
        offsets = read_vocabulary_map(tensors["d2t"], tensors["t2d"], config)
        tensors = {**tensors, "d2t": offsets, "t2d": tensors["t2d"].bool()}
    dtype = dtype or tensors["fc.weight"].dtype
    tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    check_finite(tensors)
    head.load_state_dict(tensors, assign=True)
    head.rotary = Rotary(config.rotary_config())
    if not (head.rotary.inv_freq.isfinite().all() and math.isfinite(head.rotary.attention_scaling)):
        raise ValueError(f"rope_parameters {config.rope_parameters}: they give frequencies that are not finite")
    return head


def load_head(
    path_or_hub_id: str | Path,
    target_config: Any,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    taps: tuple[int, ...] | None = None,
    rope_theta: float | None = None,
    **hub: Any,
) -> Eagle3Head:
    """Load a draft head of any public family for the target described by `target_config` (its Hugging Face config).

    `taps` and `rope_theta` override what config.json says. Bind the target before use (`head.bind(target)`): its
    embeddings, and its output layer, serve a head that has none of its own. `hub` says where a repository's files are:
    revision, token, cache_dir, subfolder, local_files_only, ... Raises ValueError naming the tensor or key at fault.
    """
    unknown = sorted(hub.keys() - set(HUB_OPTIONS))
    if unknown:
        raise ValueError(f"load_head got {unknown[0]}={hub[unknown[0]]!r}; expected one of {', '.join(HUB_OPTIONS)}")
    directory = locate(path_or_hub_id, **{name: hub[name] for name in hub if name not in CODE_OPTIONS})
    text_config = target_config.get_text_config() if hasattr(target_config, "get_text_config") else target_config
    with naming(path_or_hub_id):
        config, tensors = read_checkpoint(directory, text_config)
        if taps is not None:
            config = dataclasses.replace(config, taps=tuple(taps))
        if rope_theta is not None:
            theta = positive_number({"rope_theta": rope_theta}, "rope_theta", 1.0, "load_head")
            rope = {**(config.rope_parameters or {}), "rope_theta": float(theta)}
            config = dataclasses.replace(config, rope_parameters=rope)
        check_target(config, text_config)
        head = build_head(config, tensors, dtype)
    return head.to(device) if device is not None else head


def save_head(
    head: Eagle3Head, directory: str | Path, target_layers: int | None = None, dtype: torch.dtype | None = None
) -> None:
    """Write config.json and model.safetensors in the SafeAILab layout, each whole or not at all.

    Taps are written unless they are the published default for a target of `target_layers` layers.
    """
    directory = Path(directory)
    dtype = dtype or head.fc.weight.dtype
    tensors = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous().clone()
        for name, tensor in head.state_dict().items()
    }
    name = str(dtype).removeprefix("torch.")
    write_file(directory / "model.safetensors", lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    write_json(directory / "config.json", safeailab_config(head.config, name, target_layers))
