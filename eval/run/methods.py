"""The methods a run can compare, all on the same target: what drafts, what verifies, and how one turn is answered.

A method's name is `tree+verifier`. Four have other names: `plain` (token by token on this project's engine, the
denominator of every speedup) and three baselines from outside: `transformers` (that library's own `generate`),
`transformers-lookup` (the same with prompt look-up, which drafts by searching the text so far) and
`transformers-assisted` (assisted generation with an ordinary draft model, `--draft-model-path`).
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig

from eagle.api.outputs import PlanRecord
from eagle.autotune.auto import shipped
from eagle.autotune.candidates import AUTO, VERIFIER
from eagle.trees import TREES, TreeSettings, find_tree
from hsd import VERIFIERS

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class Decoding(NamedTuple):
    """How an answer is generated.

    Every sampling setting is written out, so that no default of a library or of a model's file decides what a benchmark
    measures. None leaves a choice about the tree to the engine's default.

    nodes            "auto": nodes and depth as the engine chooses them for each tree
    lookup_tokens    longest draft of `transformers-lookup`
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 512
    nodes: int | str | None = None
    depth: int | None = None
    width: int | None = None
    lookup_tokens: int = 10

    def sampling(self) -> dict[str, Any]:
        """The sampling settings by name."""
        return {name: getattr(self, name) for name in SAMPLING}

    def tree_options(self, tree: str) -> dict[str, Any]:
        """The engine's arguments about the tree. `width` belongs to EAGLE's own tree."""
        if tree in ("none", AUTO):
            return {}
        if self.nodes == AUTO:
            return {"nodes": AUTO}
        given = {"nodes": self.nodes, "depth": self.depth}
        if tree == "topk":
            given["width"] = self.width
        return {name: value for name, value in given.items() if value is not None}

    def with_defaults(self, device: str) -> "Decoding":
        """What `EagleModel.generate` takes on such a device where nothing was given, so that it is recorded."""
        if self.nodes == AUTO:
            return self
        sizes = shipped(device, AUTO, self.temperature) if self.nodes is self.depth is None else TreeSettings()
        return self._replace(
            **{name: getattr(sizes, name) for name in ("nodes", "depth") if getattr(self, name) is None}
        )


class Models(NamedTuple):
    """What answers: an `eagle.EagleModel`, and an ordinary draft model for `transformers-assisted`."""

    engine: Any
    assistant: Any = None


class Turn(NamedTuple):
    """One generated answer: its tokens, its time, one record per decoding step and the engine's plan (none for outside
    baselines).
    """

    tokens: list[int]
    steps: list[Any]
    stop_reason: str
    prompt_tokens: int
    seconds: float
    prefill_seconds: float | None
    plan: PlanRecord | None = None


class Method(NamedTuple):
    """`answer(models, method, input_ids, decoding, generator)` gives the Turn. `tree` and `verifier` are recorded."""

    name: str
    tree: str
    verifier: str
    answer: Callable[..., Turn]
    lossy: bool = False


def engine_rows(
    engine: Any,
    method: Method,
    input_ids: torch.Tensor,
    decoding: Decoding,
    generator: torch.Generator,
    attention_mask: torch.Tensor | None = None,
) -> list[Any]:
    """What this project's engine records of each row of input_ids Int64[B, L], padded where the mask says so."""
    return engine.generate(
        input_ids.to(engine.device),
        max_new_tokens=decoding.max_new_tokens,
        attention_mask=None if attention_mask is None else attention_mask.to(engine.device),
        tree=method.tree,
        verifier=method.verifier,
        generator=generator,
        return_dict_in_generate=True,
        **decoding.sampling(),
        **decoding.tree_options(method.tree),
    ).rows


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids Int64[B, L] padded with 0 on the right, and their attention mask Int64[B, L]."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


def answer_batch(engine: Any, method: Method, rows: list[list[int]], decoding: Decoding, seed: int) -> list[Any]:
    """The engine's record of each row of a batch, in order; every row draws from one generator, seeded here."""
    ids, mask = padded(rows)
    generator = torch.Generator(device=engine.device).manual_seed(seed)
    return engine_rows(engine, method, ids, decoding, generator, mask)


def by_engine(
    models: Models, method: Method, input_ids: torch.Tensor, decoding: Decoding, generator: torch.Generator
) -> Turn:
    """One answer by this project's engine."""
    (row,) = engine_rows(models.engine, method, input_ids, decoding, generator)
    return Turn(
        list(row.new_tokens),
        list(row.steps),
        row.stop_reason,
        row.prompt_tokens,
        row.seconds,
        row.prefill_seconds,
        row.plan,
    )


def synchronize(device: torch.device | str) -> None:
    """Wait until a GPU has done what was queued; a CPU has nothing queued."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device | str) -> float:
    """Wall seconds of one call, the device synchronized at both ends."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def library_config(engine: Any, decoding: Decoding) -> GenerationConfig:
    """`transformers`' settings for this decoding: those of `Decoding`, and the library's neutral ones for the rest."""
    stops = sorted(engine.eos_ids())
    sampling = {name: value for name, value in decoding.sampling().items() if name != "repetition_penalty"}
    return GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        do_sample=decoding.temperature > 0,
        repetition_penalty=decoding.repetition_penalty,
        eos_token_id=stops or None,
        pad_token_id=stops[0] if stops else 0,
        **(sampling if decoding.temperature > 0 else {}),
    )


@contextmanager
def generation_config(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Put `config` in the place of the model's own, whose file would fill whatever an argument leaves open."""
    before, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = before


def by_transformers(
    models: Models, method: Method, input_ids: torch.Tensor, decoding: Decoding, generator: torch.Generator
) -> Turn:
    """One answer by `transformers`' own generate."""
    engine, model = models.engine, models.engine.target.model
    input_ids, options = input_ids.to(engine.device), {}
    if method.name == "transformers-assisted":
        options["assistant_model"] = models.assistant
        if decoding.depth:
            models.assistant.generation_config.num_assistant_tokens = decoding.depth
    if method.name == "transformers-lookup":
        options["prompt_lookup_num_tokens"] = decoding.lookup_tokens
    cuda = [engine.device] if torch.device(engine.device).type == "cuda" else []
    config = library_config(engine, decoding)
    with torch.random.fork_rng(devices=cuda), generation_config(model, config):  # it draws from the global generator
        torch.manual_seed(generator.initial_seed())
        synchronize(engine.device)
        start = time.perf_counter()
        sequences = model.generate(input_ids, attention_mask=torch.ones_like(input_ids), **options)
        synchronize(engine.device)
        seconds = time.perf_counter() - start
    tokens = sequences[0, input_ids.shape[1] :].tolist()
    reason = "eos" if tokens and tokens[-1] in engine.eos_ids() else "length"
    return Turn(tokens, [], reason, input_ids.shape[1], seconds, None)


def engine_method(tree: str, verifier: str) -> Method:
    """The method `tree+verifier` on this project's engine."""
    return Method(f"{tree}+{verifier}", tree, verifier, by_engine, lossy=not VERIFIERS[verifier].lossless)


def verifiers_of(tree: str) -> list[str]:
    """The verifiers that can be asked for with a kind of tree, lossy ones last.

    Those of one-hot targets are none of them: temperature 0 stands for those.
    """
    if tree == AUTO:
        return [VERIFIER]  # it is chosen for this one
    builder = find_tree(tree)
    scopes = ("tree", "path") if builder is not None and builder.single_path else ("tree",)
    found = [name for name, verifier in VERIFIERS.items() if verifier.scope in scopes]
    return sorted(found, key=lambda name: (not VERIFIERS[name].lossless, name == VERIFIER))  # baselines first


METHODS = {
    method.name: method
    for method in (
        Method("plain", "none", "token", by_engine),
        Method("transformers", "none", "none", by_transformers),
        Method("transformers-lookup", "prompt look-up", "token", by_transformers),
        Method("transformers-assisted", "draft model", "token", by_transformers),
        *(
            engine_method(tree, verifier)
            for tree in [*TREES, AUTO]
            if tree != "none"
            for verifier in verifiers_of(tree)
        ),
    )
}
PLAIN = "plain"
NEEDS_NO_DRAFTER = ("plain", "transformers", "transformers-lookup")


def resolve(name: str) -> Method:
    """The method of this name. Raises ValueError listing the known ones."""
    if name not in METHODS:
        raise ValueError(f"method {name!r} is not known; expected one of {', '.join(METHODS)}")
    return METHODS[name]


def resolve_own(names: Iterable[str]) -> list[Method]:
    """The methods of these names, once each. Raises ValueError for one that is not decoded by this engine."""
    methods = [resolve(name) for name in dict.fromkeys(names)]
    for method in methods:
        if method.answer is not by_engine:
            raise ValueError(f"--methods {method.name}: expected methods of this engine, as plain or hybrid+hsd")
    return methods


def from_flags(tree: str, verifier: str) -> Method:
    """The method of `--tree T --verifier V`; tree `none` is plain decoding, whatever the verifier."""
    return METHODS[PLAIN] if tree in ("none", PLAIN) else resolve(f"{tree}+{verifier}")
