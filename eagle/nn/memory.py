"""Whether a cache fits before it is asked for: a refusal with numbers instead of an out-of-memory error halfway."""

from typing import Any

import psutil
import torch

GIB = 2**30


def free_bytes(device: torch.device) -> int:
    """Bytes a new tensor on `device` may take: free memory, and on a GPU what torch holds without using it."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.mem_get_info(device)[0] + sum(map(_held, _segments(index)))
    return psutil.virtual_memory().available


def _segments(index: int) -> list[dict[str, Any]]:
    """What torch holds of one GPU for everybody; what is in the pools of graphs is theirs alone."""
    found = torch.cuda.memory_snapshot()
    return [one for one in found if one["device"] == index and tuple(one["segment_pool_id"]) == (0, 0)]


def _held(segment: dict[str, Any]) -> int:
    return segment["total_size"] - segment["allocated_size"]


def check_fits(needed: int, device: torch.device, what: str) -> None:
    """ValueError when `needed` bytes for `what` are more than `device` has."""
    free = free_bytes(device)
    if needed > free:
        raise ValueError(
            f"{what} needs {needed / GIB:.2f} GiB on {device} and {free / GIB:.2f} GiB are free; "
            "lower max_new_tokens, the batch or the nodes, or use a smaller dtype"
        )
