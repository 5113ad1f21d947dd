"""A target that one device cannot hold: its decoder layers are spread over the processes, the head is copied.

The setting `shard_target` asks for it, and so does an accelerate config:

    FSDP  FULL_SHARD, or reshard_after_forward true (version 2)          each layer over all processes
          HYBRID_SHARD                                                   each layer over the processes of one machine
          SHARD_GRAD_OP, HYBRID_SHARD_ZERO2, NO_SHARD, reshard false     not spread
    DeepSpeed  ZeRO stage 3                                              each layer over all processes
               stages 0, 1, 2                                            not spread

Where nothing is spread, only gradients and optimizer state would be divided, and the head, which alone has them, is
small. accelerate would divide the head as well, so it is never told: `take_request` removes the variables it reads,
and the Accelerator that is built next copies the head (DDP). Neither the deepspeed package nor accelerate's FSDP
plugin is used.
"""

import base64
import binascii
import json
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

# FSDP 1's strategies by name and by number; True: every layer is spread.
STRATEGIES = {
    "FULL_SHARD": True,
    "SHARD_GRAD_OP": False,
    "NO_SHARD": False,
    "HYBRID_SHARD": True,
    "HYBRID_SHARD_ZERO2": False,
}


class Sharding(NamedTuple):
    """What is done with the target's decoder layers. `asked_by` names the setting, for messages."""

    asked_by: str
    spread: bool = True
    within_machine: bool = False  # only over the processes of each machine

    def describe(self) -> str:
        if not self.spread:
            return f"{self.asked_by}: nothing to divide but the head's gradients; target and head are copied (DDP)"
        over = "each machine's processes" if self.within_machine else "the processes"
        return f"{self.asked_by}: the target's layers are spread over {over}; the head is copied (DDP)"


def is_true(value: str) -> bool:
    return value.lower() in ("true", "1", "yes", "on", "y", "t")


def refuse_offload(setting: str, value: str) -> None:
    if value.lower() not in ("none", "false"):
        raise ValueError(
            f"{setting} is {value!r} in the accelerate config; the target's shards stay on the device: set it to none "
            "(FSDP: false), and start more processes where they do not fit"
        )


def fsdp_request(environment: Mapping[str, str]) -> Sharding:
    """The FSDP section of an accelerate config, from the variables `accelerate launch` makes of it."""
    refuse_offload("fsdp_offload_params", environment.get("FSDP_OFFLOAD_PARAMS", "false"))
    if environment.get("FSDP_VERSION", "1") == "2":
        reshard = environment.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
        return Sharding(f"FSDP 2, reshard_after_forward {reshard}", is_true(reshard))
    named = environment.get("FSDP_SHARDING_STRATEGY", "FULL_SHARD").upper()
    names = list(STRATEGIES)
    strategy = names[int(named) - 1] if named in ("1", "2", "3", "4", "5") else named
    if strategy not in STRATEGIES:
        raise ValueError(f"fsdp_sharding_strategy is {named!r}; known: {', '.join(names)}, or their numbers 1 .. 5")
    return Sharding(f"FSDP {strategy}", STRATEGIES[strategy], within_machine=strategy == "HYBRID_SHARD")


def deepspeed_file(given: str) -> dict:
    """A DeepSpeed config: the path of a JSON file, or the JSON itself in base 64."""
    try:
        text = Path(given).read_text() if given.endswith(".json") else base64.urlsafe_b64decode(given).decode()
        return json.loads(text)
    except (OSError, ValueError, binascii.Error) as error:
        raise ValueError(f"deepspeed_config_file {given!r}: cannot be read as JSON ({error})") from error


def deepspeed_request(environment: Mapping[str, str]) -> Sharding:
    """The DeepSpeed section of an accelerate config: of all its settings only those of the parameters matter here."""
    prefix = "ACCELERATE_DEEPSPEED_"
    given = environment.get(f"{prefix}CONFIG_FILE", "none")
    zero = {} if given == "none" else deepspeed_file(given).get("zero_optimization") or {}
    device = (zero.get("offload_param") or {}).get("device", environment.get(f"{prefix}OFFLOAD_PARAM_DEVICE", "none"))
    refuse_offload("DeepSpeed's offload_param device", str(device))
    stage = str(zero.get("stage", environment.get(f"{prefix}ZERO_STAGE", "2")))
    if stage not in ("0", "1", "2", "3"):
        raise ValueError(f"DeepSpeed's zero stage is {stage!r}; expected 0, 1, 2 or 3")
    return Sharding(f"DeepSpeed ZeRO stage {stage}", stage == "3")


KINDS = {"ACCELERATE_USE_FSDP": fsdp_request, "ACCELERATE_USE_DEEPSPEED": deepspeed_request}
OTHER_KINDS = {"ACCELERATE_USE_MEGATRON_LM": "Megatron-LM", "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config"}


def take_request(environment: MutableMapping[str, str] = os.environ) -> Sharding | None:
    """What the accelerate config asks for, taken out of `environment` so that nobody else acts on it: an Accelerator
    built afterwards is a plain one, and `transformers` loads the whole target in every process. None: nothing asked.

    Raises ValueError for an unknown strategy or stage, and for kinds of parallelism that have no meaning here.
    """
    for variable, kind in OTHER_KINDS.items():
        if is_true(environment.get(variable, "false")):
            raise ValueError(
                f"the accelerate config asks for {kind}, which is not supported; use a plain multi-process config, or "
                "FSDP or DeepSpeed ZeRO stage 3 where one device cannot hold the target"
            )
    for variable, read in KINDS.items():
        if is_true(environment.get(variable, "false")):
            request = read(environment)
            del environment[variable]
            return request
    return None


def trains_on_cpu(environment: Mapping[str, str] = os.environ) -> bool:
    """Asked for, or nothing else is there. accelerate wants to be told: under an FSDP or DeepSpeed config it takes
    several processes without a GPU for so many runs of one process."""
    return is_true(environment.get("ACCELERATE_USE_CPU", "false")) or not torch.accelerator.is_available()


def mesh_of(device: torch.device, within_machine: bool):
    """The processes that share a layer: all of them, or those of this machine."""
    world = torch.distributed.get_world_size()
    if not within_machine:
        return init_device_mesh(device.type, (world,))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if world % local:
        raise ValueError(f"{world} processes, {local} on this machine: HYBRID_SHARD needs as many on every machine")
    return init_device_mesh(device.type, (world // local, local), mesh_dim_names=("machine", "device"))["device"]


def spread_layers(target, device: torch.device, sharding: Sharding) -> None:
    """Every process keeps its share of each decoder layer and gathers a layer when it runs. Embeddings, final norm and
    lm_head, which the head reads on its own, stay whole.

    Raises ValueError where there is only one process.
    """
    if not torch.distributed.is_initialized():
        raise ValueError(
            f"{sharding.asked_by} needs several processes; start them with `accelerate launch -m eagle.train`"
        )
    mesh = mesh_of(device, sharding.within_machine)
    for layer in target.model.layers:
        # No backward pass ever runs through the target: a layer that kept its parameters would keep them for good.
        fully_shard(layer.to(device), mesh=mesh, reshard_after_forward=True)


def is_spread(target) -> bool:
    """Whether every forward of the target takes all processes at once."""
    return any(isinstance(weight, DTensor) for weight in target.parameters())
