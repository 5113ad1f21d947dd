"""Speculative decoding inside `transformers`: model.generate(..., custom_generate=eagle.custom_generate("HEAD")).

`transformers` prepares prompts, logits processors and stopping criteria as for its own sampling, then calls the
returned function. Its standard processors become `SamplingParams`; others are applied at every tree node with that
node's prefix.
"""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitNormalization,
    MaxLengthCriteria,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from eagle.api.arguments import check_loop
from eagle.api.eagle_model import EagleModel
from eagle.api.outputs import GenerateOutput
from eagle.checkpoints.load import load_head

# attribute of the processor -> keyword of generate, in the order in which transformers applies them
WARPERS = {
    TemperatureLogitsWarper: "temperature",
    TopKLogitsWarper: "top_k",
    TopPLogitsWarper: "top_p",
    MinPLogitsWarper: "min_p",
}


def custom_generate(head: str | Path) -> Callable[..., Tensor | GenerateOutput]:
    """A function for the `custom_generate` argument of a stock model's `generate`.

    head    path or hub id of an EAGLE-3 head for that model, loaded at the first call, kept while the model is the same

    The call takes further keywords, with the meaning they have for `EagleModel.generate`: tree, verifier, nodes, depth,
    width, beta, sharpness, draft_temperature, seed, generator, graphs; and `stream_to`, a streamer (`transformers` does
    not pass its own `streamer` on, nor `tokenizer`, so that stop strings need a `StopStringCriteria`). Everything else,
    library defaults such as top_k = 50 included, is what `transformers` makes of its own arguments. The head's
    calibration is not read: beta and sharpness are the defaults of `TreeSettings` unless given. The model is put into
    evaluation mode and its parameters are frozen.

    Raises ValueError for a `streamer`, what only the loop of `transformers` itself does (beam search, output_scores),
    or further logits processors with a padded batch.
    """
    loaded: list[EagleModel] = []  # for the model of the latest call

    def decode(
        model: Any,
        input_ids: Tensor,
        logits_processor: Sequence[Callable[..., Any]] = (),
        stopping_criteria: Sequence[Callable[..., Any]] = (),
        generation_config: GenerationConfig | None = None,
        tree: str | None = None,
        verifier: str | None = None,
        nodes: int | Literal["auto"] | None = None,
        depth: int | None = None,
        width: int | None = None,
        beta: float | None = None,
        sharpness: float | None = None,
        draft_temperature: float | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        graphs: bool | None = None,
        stream_to: Any = None,
        **model_kwargs: Any,
    ) -> Tensor | GenerateOutput:
        attention_mask = model_kwargs.get("attention_mask")  # the rest is the cache and the like, for its own loop
        config = generation_config or model.generation_config
        check_loop(config)
        _check_streamer(inspect.currentframe())
        if not loaded or loaded[0].target.model is not model:
            loaded[:] = [EagleModel.from_head(model, load_head(head, model.config, dtype=model.dtype))]
        given: dict[str, Any] = {
            "tree": tree,
            "verifier": verifier,
            "nodes": nodes,
            "depth": depth,
            "width": width,
            "beta": beta,
            "sharpness": sharpness,
            "draft_temperature": draft_temperature,
            "seed": seed,
            "generator": generator,
            "graphs": graphs,
        }
        sampling = sampling_of(logits_processor, bool(config.do_sample))
        if sampling["logits_processor"] and attention_mask is not None and not bool((attention_mask == 1).all()):
            names = ", ".join(type(processor).__name__ for processor in sampling["logits_processor"])
            raise ValueError(f"{names}: not supported with a padded batch; generate its rows one by one")
        out: Tensor | GenerateOutput = loaded[0].generate(
            input_ids,
            attention_mask=attention_mask,
            streamer=stream_to,
            **sampling,
            **ends_of(stopping_criteria, input_ids.shape[1]),
            **_the_rest(config),
            **{name: value for name, value in given.items() if value is not None},
        )
        return out

    return decode


def _check_streamer(here: FrameType | None) -> None:
    """ValueError where the `generate` that called was given a `streamer`; its reader gets an end.

    `transformers` puts the prompt into it and passes it on to no custom function, so that only that frame knows of it.
    """
    caller = here.f_back if here else None
    streamer = caller.f_locals.get("streamer") if caller and caller.f_code.co_name == "generate" else None
    if streamer is not None:
        streamer.end()
        raise ValueError(
            f"streamer={type(streamer).__name__}: transformers does not pass it on to a custom function; expected it "
            "as stream_to=, which gets the prompt and the tokens of every step"
        )


def sampling_of(processors: Sequence[Callable[..., Any]], do_sample: bool) -> dict[str, Any]:
    """Keywords of `EagleModel.generate` that make the distribution the prepared processors make.

    A repetition penalty first and the standard warpers last become settings; what is between them stays a processor. In
    any other order all of them stay processors.
    """
    rest = [processor for processor in processors if not isinstance(processor, LogitNormalization)]
    settings: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    first = rest[0] if rest else None
    if isinstance(first, RepetitionPenaltyLogitsProcessor) and not _ignores_the_prompt(first):
        settings["repetition_penalty"] = first.penalty
        rest = rest[1:]
    standard = [processor for processor in rest if type(processor) in WARPERS]
    count = len(standard)
    kinds = [type(processor) for processor in standard]
    if count and rest[-count:] == standard and kinds == [kind for kind in WARPERS if kind in kinds]:
        rest = rest[:-count]
        settings |= {WARPERS[type(warper)]: getattr(warper, WARPERS[type(warper)]) for warper in standard}
    if not do_sample:
        settings = {"temperature": 0.0, "repetition_penalty": settings["repetition_penalty"]}
        settings |= {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    return {**settings, "do_sample": do_sample, "logits_processor": rest}


def _ignores_the_prompt(penalty: RepetitionPenaltyLogitsProcessor) -> bool:
    """A tensor is the padding of each row, which `EagleModel` has removed; a number is a choice of the caller."""
    return isinstance(getattr(penalty, "prompt_ignore_length", None), int)


def ends_of(criteria: Sequence[Callable[..., Any]], prompt_length: int) -> dict[str, Any]:
    """Keywords of `EagleModel.generate` that stop where the prepared criteria stop."""
    lengths = [criterion.max_length for criterion in criteria if isinstance(criterion, MaxLengthCriteria)]
    ends = [token for c in criteria if isinstance(c, EosTokenCriteria) for token in c.eos_token_id.tolist()]
    others = [c for c in criteria if not isinstance(c, MaxLengthCriteria | EosTokenCriteria)]
    limit = {"max_new_tokens": min(lengths) - prompt_length} if lengths else {}
    return {**limit, "eos_token_id": ends, "stopping_criteria": others}


def _the_rest(config: GenerationConfig) -> dict[str, Any]:
    """What `transformers` has applied already is not taken from the model's file a second time."""
    pad = config.pad_token_id
    return {
        "stop_strings": [],
        "num_return_sequences": 1,
        "return_dict_in_generate": bool(config.return_dict_in_generate),
        **({} if pad is None else {"pad_token_id": pad}),
    }
