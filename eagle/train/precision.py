"""`has_bf16`, under the name it has for training."""

from eagle.modules.precision import CPU_FEATURES, has_bf16

__all__ = ["CPU_FEATURES", "has_bf16"]
