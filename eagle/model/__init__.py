"""EAGLE's own import path: `from eagle.model.ea_model import EaModel`."""
