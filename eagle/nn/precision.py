"""The number formats that can be asked for, and which one a device computes in fastest.

bfloat16 halves memory, and is faster where the hardware multiplies it; elsewhere it is emulated, several times slower
than float32.
"""

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}  # by the names of flags
CPU_FEATURES = ("amx_bf16", "avx512_bf16", "bf16")  # the last one is ARM's name


def has_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 in hardware; False for device types that have no such query."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return any(found.get(feature) for feature in CPU_FEATURES)
    return False


def fastest(device: torch.device) -> str:
    """The name of the faster one of bfloat16 and float32."""
    return "bfloat16" if has_bf16(device) else "float32"
