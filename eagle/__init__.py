"""EAGLE-3 drafting with lossless verification: load a target and a draft head, and generate.

    model = EagleModel.from_pretrained(base_model_path, ea_model_path)
    ids = model.generate(input_ids, temperature=1.0, tree="hybrid", verifier="hsd")
"""
from eagle.ea_model import EaModel
from eagle.generation import Generation, StepRecord
from eagle.model import EagleModel
from eagle.sampling import SamplingSettings
from eagle.weights import load_head, save_head

__all__ = ["EaModel", "EagleModel", "Generation", "SamplingSettings", "StepRecord", "load_head", "save_head"]
