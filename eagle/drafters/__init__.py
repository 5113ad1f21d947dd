"""Drafters: what proposes tokens. `Drafter` is the protocol; the EAGLE-3 head and an ordinary LM implement it."""

from eagle.drafters.base import Drafter
from eagle.drafters.causal_lm import CausalLMDrafter
from eagle.drafters.eagle3 import Eagle3Drafter

__all__ = ["CausalLMDrafter", "Drafter", "Eagle3Drafter"]
