"""Whether a cache fits before it is asked for: a refusal with numbers instead of an out-of-memory error halfway."""

import psutil
import torch

GIB = 2**30


def free_bytes(device: torch.device) -> int:
    """Bytes a new tensor on `device` may take: free memory, and on a GPU what torch holds without using it."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    return psutil.virtual_memory().available


def check_fits(needed: int, device: torch.device, what: str) -> None:
    """ValueError when `needed` bytes for `what` are more than `device` has."""
    free = free_bytes(device)
    if needed > free:
        raise ValueError(
            f"{what} needs {needed / GIB:.2f} GiB on {device} and {free / GIB:.2f} GiB are free; "
            "lower max_new_tokens, the batch or the nodes, or use a smaller dtype"
        )
