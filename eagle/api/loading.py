"""How `EagleModel.from_pretrained` loads a causal LM: on which device, in which dtype, with which attention."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from transformers.utils import is_accelerate_available

from eagle.checkpoints.checks import check_embeddings
from eagle.checkpoints.pretrained import read_model
from eagle.nn import grouped_attention, native, tree_attention
from eagle.nn.decoder import FAMILIES
from eagle.nn.head import Eagle3Head
from eagle.nn.precision import DTYPES, fastest

ATTENTION = ("sdpa", grouped_attention.NAME, tree_attention.NAME)  # what reads tree masks correctly
CHECKPOINT_DTYPE = "auto"  # transformers' name for the dtype that the checkpoint is stored in
SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")  # device maps that accelerate works out


class LoadOptions(NamedTuple):
    """What `load_lm` passes on. dtype "auto" is the checkpoint's; `device_map` None is the CPU."""

    dtype: torch.dtype | str
    device_map: Any
    attention: str


def resolve_device_map(device_map: Any, cuda: bool) -> Any:
    """The given device map, else the GPU if there is one (`cuda`)."""
    if device_map is None and cuda:
        return "cuda"
    return device_map


def main_device(device_map: Any, cuda: bool) -> torch.device:
    """The kind of device that computes under a resolved device map: a GPU if any part of the model lies on one."""
    if device_map is None:
        return torch.device("cpu")
    if isinstance(device_map, str) and device_map in SPREAD:
        return torch.device("cuda" if cuda else "cpu")
    if isinstance(device_map, Mapping):
        places = [place for place in device_map.values() if place != "disk"]
        devices = [torch.device("cuda", place) if isinstance(place, int) else torch.device(place) for place in places]
        return next((device for device in devices if device.type != "cpu"), torch.device("cpu"))
    return torch.device("cuda", device_map) if isinstance(device_map, int) else torch.device(device_map)


def resolve_dtype(dtype: torch.dtype | str | None, device: torch.device, family: str = "") -> torch.dtype | str:
    """None: float32 on a CPU, else the checkpoint's. "auto": the dtype that decodes fastest on `device`: native code
    reads half the bytes in bfloat16, whatever the CPU multiplies, for a `family` (model_type) that it knows.

    Raises ValueError for any other value than a floating dtype or its name.
    """
    if dtype is None:
        return torch.float32 if device.type == "cpu" else CHECKPOINT_DTYPE
    if dtype == "auto":
        read_natively = device.type == "cpu" and family in FAMILIES and native.unavailable() is None
        return torch.bfloat16 if read_natively else DTYPES[fastest(device)]
    if isinstance(dtype, str) and dtype.removeprefix("torch.") in DTYPES:
        return DTYPES[dtype.removeprefix("torch.")]
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype={dtype!r}: expected a floating torch.dtype, 'auto', {', '.join(map(repr, DTYPES))}")
    return dtype


def resolve_attention(attention: str | None, implementation: str | None, device: torch.device) -> str:
    """The attention from `attention` and from transformers' name for it, `attn_implementation`; else the device's.

    Raises ValueError for one that does not read tree masks correctly, or two that differ.
    """
    for name, value in (("attention", attention), ("attn_implementation", implementation)):
        if value is not None and value not in ATTENTION:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(ATTENTION)}")
    if attention and implementation and attention != implementation:
        raise ValueError(f"attention={attention!r} and attn_implementation={implementation!r}: give one of them")
    return attention or implementation or (grouped_attention.NAME if device.type == "cpu" else "sdpa")


def load_options(
    dtype: torch.dtype | str | None,
    device_map: Any,
    attention: str | None,
    implementation: str | None,
    family: str = "",
) -> LoadOptions:
    """Defaults filled in and checked, see the functions above. Raises ValueError as they do."""
    cuda = torch.cuda.is_available()
    device_map = resolve_device_map(device_map, cuda)
    device = main_device(device_map, cuda)
    chosen = resolve_dtype(dtype, device, family)
    return LoadOptions(chosen, device_map, resolve_attention(attention, implementation, device))


def load_lm(path: str, options: LoadOptions, **model_kwargs: Any) -> Any:
    """A `transformers` causal LM. Without accelerate a model for one device is read on the CPU and then moved."""
    dtype, device_map, attention = options
    place = device_map[""] if isinstance(device_map, Mapping) and set(device_map) == {""} else device_map
    single = isinstance(place, str | int | torch.device) and place not in SPREAD
    move = single and not is_accelerate_available()
    model: Any = read_model(
        path,
        dtype=dtype,
        device_map=None if move else device_map,
        attn_implementation=attention,
        **model_kwargs,
    )
    return model.to(main_device(device_map, cuda=True)) if move else model


def bind_target(head: Eagle3Head, model: Any, device: torch.device) -> None:
    """Let the head, on `device`, use the target's embeddings and output layer where it has none of its own.

    Raises ValueError for such weights that are offloaded. Warns where the head's own embeddings are not this target's.
    """
    embeddings, output = model.get_input_embeddings(), model.get_output_embeddings()
    needed = {"embed_tokens": not head.config.own_embeddings, "lm_head": not head.config.own_lm_head}
    for name, layer in (("embed_tokens", embeddings), ("lm_head", output)):
        if needed[name] and layer.weight.is_meta:
            raise ValueError(f"the target's {name} are offloaded; the head reads them too: keep them on a device")
    if head.config.own_embeddings:
        check_embeddings(head.embed_tokens.weight, embeddings.weight)
    if embeddings.weight.device != device and needed["embed_tokens"]:
        embeddings = torch.nn.Embedding.from_pretrained(embeddings.weight.to(device))
    if output.weight.device != device and needed["lm_head"]:
        rows, width = output.weight.shape
        copy = torch.nn.Linear(width, rows, bias=False, device="meta")
        copy.weight = torch.nn.Parameter(output.weight.to(device), requires_grad=False)
        output = copy
    head.bind_embeddings(embeddings)
    head.bind_output(output)
