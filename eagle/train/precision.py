"""Which number format to compute in, where nobody says.

bfloat16 halves memory, and is faster where the hardware multiplies it; elsewhere it is emulated, several times slower
than float32.
"""

import torch

CPU_FEATURES = ("amx_bf16", "avx512_bf16", "bf16")  # the last one as ARM calls it


def has_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 itself. False for a kind of device that cannot be asked."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return any(found.get(feature) for feature in CPU_FEATURES)
    return False
