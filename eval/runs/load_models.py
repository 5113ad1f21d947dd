"""Loading what a run measures: the target with its EAGLE-3 head, and a draft model for the assisted baseline."""

from typing import Any

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def default_dtype() -> str:
    return "bfloat16" if torch.cuda.is_available() else "float32"


def device_of(rank: int) -> str:
    """This process's device: one GPU per local rank, else the CPU."""
    return f"cuda:{rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


def load(
    base_model_path: str,
    ea_model_path: str | None,
    dtype: str,
    local_rank: int = 0,
    draft_model_path: str | None = None,
) -> Any:
    """The engine, an `eagle.EagleModel`. It drafts with the head, or, without one, with the draft model.

    A draft model is also kept as `.assistant`, for the assisted generation of `transformers`.
    """
    from eagle import EagleModel

    device = device_of(local_rank)
    placement = {"dtype": DTYPES[dtype], "device_map": None if device == "cpu" else {"": device}}
    drafter = {"ea_model_path": ea_model_path} if ea_model_path else {"draft_model_path": draft_model_path}
    engine = EagleModel.from_pretrained(base_model_path, **drafter, **placement)
    if draft_model_path:
        from transformers import AutoModelForCausalLM

        assistant = AutoModelForCausalLM.from_pretrained(draft_model_path, **placement).eval()
        assistant.generation_config.num_assistant_tokens_schedule = "constant"
        assistant.generation_config.assistant_confidence_threshold = 0.0  # drafts of one length, as ours are
        engine.assistant = assistant
    return engine
