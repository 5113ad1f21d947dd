"""EAGLE-3 drafting with lossless verification: load a target and a draft head, and generate.

model = EagleModel.from_pretrained(base_model_path, ea_model_path)
ids = model.generate(input_ids, temperature=1.0, tree="hybrid", verifier="hsd")
"""

from eagle import threads  # noqa: F401  before torch is imported
from eagle.api.custom_generate import custom_generate
from eagle.api.eagle_model import EagleModel
from eagle.api.outputs import GeneratedRow, GenerateOutput, PlanRecord, StepRecord, TreeRecord
from eagle.checkpoints.load import load_head, save_head
from eagle.engine.distributions import SamplingParams
from eagle.model.ea_model import EaModel

__all__ = [
    "EaModel",
    "EagleModel",
    "GenerateOutput",
    "GeneratedRow",
    "PlanRecord",
    "SamplingParams",
    "StepRecord",
    "TreeRecord",
    "custom_generate",
    "load_head",
    "save_head",
]
