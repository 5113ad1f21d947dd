"""EAGLE-3 drafting with lossless verification: load a target and a draft head, and generate.

model = EagleModel.from_pretrained(base_model_path, ea_model_path)
ids = model.generate(input_ids, temperature=1.0, tree="hybrid", verifier="hsd")

The names below are imported when they are first asked for: a command's --help needs none of them.
"""

import importlib
from typing import TYPE_CHECKING, Any

from eagle import threads  # noqa: F401  before torch is imported

if TYPE_CHECKING:
    from eagle.api.custom_generate import custom_generate
    from eagle.api.eagle_model import EagleModel
    from eagle.api.outputs import GeneratedRow, GenerateOutput, PlanRecord, StepRecord, TreeRecord
    from eagle.checkpoints.load import load_head, save_head
    from eagle.engine.distributions import SamplingParams
    from eagle.engine.session import Session
    from eagle.model.ea_model import EaModel

__version__ = "0.1.0"  # the one place: pyproject.toml reads it from here

__all__ = [
    "EaModel",
    "EagleModel",
    "GenerateOutput",
    "GeneratedRow",
    "PlanRecord",
    "SamplingParams",
    "Session",
    "StepRecord",
    "TreeRecord",
    "custom_generate",
    "load_head",
    "save_head",
]

_PLACES = {
    "EaModel": "eagle.model.ea_model",
    "EagleModel": "eagle.api.eagle_model",
    "GenerateOutput": "eagle.api.outputs",
    "GeneratedRow": "eagle.api.outputs",
    "PlanRecord": "eagle.api.outputs",
    "SamplingParams": "eagle.engine.distributions",
    "Session": "eagle.engine.session",
    "StepRecord": "eagle.api.outputs",
    "TreeRecord": "eagle.api.outputs",
    "custom_generate": "eagle.api.custom_generate",
    "load_head": "eagle.checkpoints.load",
    "save_head": "eagle.checkpoints.load",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'eagle' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
