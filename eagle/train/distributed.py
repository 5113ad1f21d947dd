"""Several processes: the head is copied to each of them (DDP); a target too large for one device can be sharded.

`shard_target` divides every decoder layer of the frozen target over all processes with torch's `fully_shard`. The head
is small and is never sharded, so FSDP and DeepSpeed sections of an accelerate config, which would shard the trained
model, are refused.
"""

import os
from collections.abc import Mapping

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import GradientAccumulationPlugin
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from eagle.train.config import TrainConfig

# Variables that `accelerate launch` sets, and the section of its config that each stands for.
SHARDED_TRAINING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}


def flag(environment: Mapping[str, str], name: str) -> bool:
    """Whether a variable is set to yes, in accelerate's spellings."""
    return environment.get(name, "false").lower() in ("1", "true", "yes", "on", "y", "t")


def check_launch(environment: Mapping[str, str] = os.environ) -> None:
    """ValueError where the accelerate config shards the trained model."""
    for variable, section in SHARDED_TRAINING.items():
        if flag(environment, variable):
            raise ValueError(
                f"the accelerate config asks for {section}, which would shard the head; use a plain multi-process "
                "config, and --shard-target true where one device cannot hold the target"
            )


def on_cpu(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether to train on CPUs; passed on to accelerate, which does not find that out under torchrun."""
    return flag(environment, "ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def training_device() -> torch.device:
    """This process's device."""
    return PartialState(cpu=on_cpu()).device


def build_accelerator(config: TrainConfig) -> Accelerator:
    """An Accelerator of this run's precision; `accumulation` is the trainer's, whatever the accelerate config says."""
    return Accelerator(
        mixed_precision="bf16" if config.precision == "bfloat16" else "no",  # accelerate's names
        cpu=on_cpu(),
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )


def shard_layers(target: PreTrainedModel, device: torch.device) -> None:
    """Divide each decoder layer over all processes; a layer is gathered while it runs.

    Embeddings, final norm and lm_head, which the head reads, stay whole. Raises ValueError in a single process.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        raise ValueError(
            "shard_target needs several processes; start them with `accelerate launch -m eagle.train` or torchrun"
        )
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for layer in target.model.layers:
        # No backward pass runs through the target, so nothing else would free a gathered layer.
        fully_shard(layer.to(device), mesh=mesh, reshard_after_forward=True)


def is_sharded(target: torch.nn.Module) -> bool:
    """Whether every forward of the target needs all processes at once."""
    return any(isinstance(weight, DTensor) for weight in target.parameters())
