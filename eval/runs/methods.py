"""The methods a run can compare, all on the same target: what drafts, what verifies, and how one turn is answered.

A method's name is `tree+verifier`. Three stand alone: `plain` (token by token on this project's engine: the
denominator of every speedup), `transformers` (that library's own `generate`) and `transformers-assisted` (its assisted
generation with an ordinary draft model, `--draft-model-path`), the last two as baselines from outside.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from eagle.trees import TreeSettings


class Decoding(NamedTuple):
    """How an answer is generated. None leaves a choice to the engine's default."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 512
    nodes: int | None = None
    depth: int | None = None
    width: int | None = None

    def tree_options(self, tree: str) -> dict[str, int]:
        """What the engine is told about the tree. `width` is EAGLE's and means its own tree only."""
        chosen = {} if tree == "none" else {"nodes": self.nodes, "depth": self.depth}
        if tree == "topk":
            chosen["width"] = self.width
        return {name: value for name, value in chosen.items() if value is not None}

    def with_defaults(self) -> "Decoding":
        """The engine's own defaults where nothing was chosen, so that they are on record."""
        defaults = TreeSettings()
        return self._replace(
            **{name: getattr(defaults, name) for name in ("nodes", "depth") if getattr(self, name) is None}
        )


class Turn(NamedTuple):
    """One generated answer: its tokens, its time, and one record per decoding step (none for outside baselines)."""

    tokens: list[int]
    steps: list[Any]
    stop_reason: str
    prompt_tokens: int
    seconds: float
    prefill_seconds: float | None


class Method(NamedTuple):
    """`answer(engine, method, input_ids, decoding, generator)` gives the Turn; tree and verifier are for the record."""

    name: str
    tree: str
    verifier: str
    answer: Callable[..., Turn]
    lossy: bool = False


def by_engine(
    engine: Any, method: Method, input_ids: torch.Tensor, decoding: Decoding, generator: torch.Generator
) -> Turn:
    row = engine.generate(
        input_ids.to(engine.device),
        max_new_tokens=decoding.max_new_tokens,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        top_k=decoding.top_k,
        tree=method.tree,
        verifier=method.verifier,
        generator=generator,
        return_dict_in_generate=True,
        **decoding.tree_options(method.tree),
    ).rows[0]
    return Turn(
        list(row.new_tokens), list(row.steps), row.stop_reason, row.prompt_tokens, row.seconds, row.prefill_seconds
    )


def library_options(engine: Any, decoding: Decoding) -> dict[str, Any]:
    """Arguments of `transformers`' generate; penalties that a model's own config may set are switched off."""
    stops = sorted(engine.eos_ids())
    options = {
        "max_new_tokens": decoding.max_new_tokens,
        "do_sample": decoding.temperature > 0,
        "repetition_penalty": 1.0,
        "eos_token_id": stops or None,
        "pad_token_id": stops[0] if stops else 0,
    }
    if decoding.temperature > 0:
        options |= {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k}
    return options


def synchronise(device: torch.device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def by_transformers(
    engine: Any, method: Method, input_ids: torch.Tensor, decoding: Decoding, generator: torch.Generator
) -> Turn:
    options, input_ids = library_options(engine, decoding), input_ids.to(engine.device)
    if method.name == "transformers-assisted":
        options["assistant_model"] = engine.assistant
        if decoding.depth:
            engine.assistant.generation_config.num_assistant_tokens = decoding.depth
    cuda = [engine.device] if torch.device(engine.device).type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):  # the library draws from the global generator
        torch.manual_seed(generator.initial_seed())
        synchronise(engine.device)
        start = time.perf_counter()
        sequences = engine.target.model.generate(input_ids, attention_mask=torch.ones_like(input_ids), **options)
        synchronise(engine.device)
        seconds = time.perf_counter() - start
    tokens = sequences[0, input_ids.shape[1] :].tolist()
    reason = "eos" if tokens and tokens[-1] in engine.eos_ids() else "length"
    return Turn(tokens, [], reason, input_ids.shape[1], seconds, None)


def engine_method(tree: str, verifier: str) -> Method:
    return Method(f"{tree}+{verifier}", tree, verifier, by_engine, lossy=verifier == "published")


METHODS = {
    method.name: method
    for method in (
        Method("plain", "none", "token", by_engine),
        Method("transformers", "none", "none", by_transformers),
        Method("transformers-assisted", "draft model", "token", by_transformers),
        *(engine_method("topk", verifier) for verifier in ("token", "hsd")),
        *(engine_method(tree, verifier) for tree in ("hybrid",) for verifier in ("token", "hsd")),
        *(engine_method("chain", verifier) for verifier in ("token", "block", "hsd", "published")),
        *(engine_method("multi", verifier) for verifier in ("token", "hsd")),
    )
}
PLAIN = "plain"


def resolve(name: str) -> Method:
    if name not in METHODS:
        raise ValueError(f"method {name!r} is not known; expected one of {', '.join(METHODS)}")
    return METHODS[name]


def from_flags(tree: str, verifier: str) -> Method:
    """The method of `--tree T --verifier V`; tree `none` is plain decoding, whatever the verifier."""
    return METHODS[PLAIN] if tree in ("none", PLAIN) else resolve(f"{tree}+{verifier}")
