"""The arguments of `generate`: one function from what was given and what the model's file states to a checked result.

Order of precedence, attribute by attribute:

    1. a keyword of the call; None means "not given" for every keyword that `transformers` has too
    2. the `generation_config` object of the call, where it states a value
    3. the model's generation_config.json, where it states a value (`transformers` fills the rest with its library
       defaults, such as top_k = 50, only inside its own generate: they are never inherited)
    4. temperature 1, no truncation, 512 new tokens

Sampling or greedy: `do_sample` of 1 or 2 decides; else a temperature of 1 or 2 (0 is greedy); else `do_sample`, then
the temperature, of 3; else sampling at temperature 1.
"""

import difflib
import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, TypedDict, TypeVar

import torch
from torch import Tensor
from transformers import GenerationConfig

from eagle.autotune.candidates import AUTO, VERIFIER
from eagle.engine.distributions import SamplingParams
from eagle.trees import TreeSettings

Method = TypeVar("Method", bound=Callable[..., Any])

DEFAULT_NEW_TOKENS = 512
MAX_NODES = 4096  # a tree's ancestor mask has nodes x nodes entries per row


class GenerateArguments(TypedDict, total=False):
    """Keywords of `EagleModel.generate` and `EagleModel.stream` beside `input_ids` and `max_new_tokens`.

    As in `transformers`:

    generation_config       GenerationConfig, overridden by keywords
    do_sample               False: greedy; True: sample
    temperature, top_k, top_p, min_p, repetition_penalty
    max_length              limit on the padded prompt and the new tokens together; max_new_tokens wins over it
    stop_strings            text(s) that end a row; the tokenizer is the model's unless `tokenizer` is given
    logits_processor        LogitsProcessorList, applied to the target's logits at every node with that node's own
                            prefix. Must depend on its arguments alone; the generation is not recorded as CUDA graphs
    stopping_criteria       StoppingCriteriaList, asked after every single token with that row alone; scores are None
    num_return_sequences    independent continuations per prompt (sampling only)
    eos_token_id            token id(s) that end a row, [] for none; int, list or integer tensor
    pad_token_id            pads shorter rows of the result on the right
    attention_mask          Int64[B, L], 0 where `input_ids` is padding (on either side)

    Of this project:

    seed, generator         randomness: a seed, or a torch.Generator on the model's device, not both; neither: torch's
                            global generator
    tree                    "none" (plain decoding), a name in `eagle.trees.TREES`, or "auto": the tree, nodes and depth
                            that give most tokens per second on this machine, plain decoding where none is faster
                            (`eagle.autotune.auto`). Chosen before the generation from what was measured before it, so
                            what is emitted is as exact as with the same tree named; `GeneratedRow.plan` records it.
                            Not given: "hybrid", or "none" for a model without a drafter
    verifier                a name in `hsd.VERIFIERS`; at temperature 0 "greedy" is used, which accepts the same
    nodes                   rows of the target's scoring forward per step: draft tokens and root; 1: plain decoding;
                            "auto": nodes and depth as with tree="auto", the kind of tree being given.
                            Neither nodes nor depth given: 8 and 4 on a CPU, 60 and 7 elsewhere
    depth, width            see `eagle.trees.TreeSettings`
    beta, sharpness         the same; not given: what the head's calibration says, for hybrid trees
    draft_temperature       temperature of the draft distribution; None: the target's
    graphs                  replay steps as CUDA graphs: None where possible, True the same with a warning where not,
                            False never
    reuse_cache             True: the tokens that the prompt begins with are not read again where the caches still hold
                            them from the latest generation (one row only; the model's weights must not have changed).
                            The same tokens up to the rounding of the arithmetic
    record_trees            True: `GeneratedRow.trees` holds the draft tree of every step; without CUDA graphs
    """

    generation_config: GenerationConfig | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    max_length: int | None
    stop_strings: str | Sequence[str] | None
    tokenizer: Any
    logits_processor: Sequence[Callable[..., Any]] | None
    stopping_criteria: Sequence[Callable[..., Any]] | None
    num_return_sequences: int | None
    eos_token_id: int | Sequence[int] | Tensor | None
    pad_token_id: int | Tensor | None
    attention_mask: Tensor | None
    seed: int | None
    generator: torch.Generator | None
    tree: str
    verifier: str
    nodes: int | Literal["auto"]
    depth: int
    width: int | None
    beta: float
    sharpness: float
    draft_temperature: float | None
    graphs: bool | None
    reuse_cache: bool | None
    record_trees: bool | None


def lists_arguments(method: Method) -> Method:
    """The method, its docstring listing the keywords of `GenerateArguments` (for `help`)."""
    method.__doc__ = "\n\n".join(inspect.cleandoc(part.__doc__ or "") for part in (method, GenerateArguments))
    return method


@dataclass(frozen=True)
class GenerationArgs:
    """Checked arguments of one generation. None: `eos_token_id`, `pad_token_id` were stated nowhere.

    automatic: nodes and depth, and with tree "auto" the kind of tree, are to be chosen; `settings` holds defaults.
    stated: which of "tree" and the fields of `settings` the caller gave; the others are defaults.
    """

    sampling: SamplingParams
    draft_temperature: float | None
    tree: str
    verifier: str
    settings: TreeSettings
    automatic: bool
    stated: frozenset[str]
    max_new_tokens: int | None
    max_length: int | None
    eos_token_id: frozenset[int] | None
    pad_token_id: int | None
    stop_strings: tuple[str, ...]
    tokenizer: Any
    logits_processor: tuple[Callable[..., Any], ...]
    stopping_criteria: tuple[Callable[..., Any], ...]
    num_return_sequences: int
    attention_mask: Tensor | None
    seed: int | None
    generator: torch.Generator | None
    graphs: bool | None
    reuse_cache: bool
    record_trees: bool
    return_dict_in_generate: bool

    @property
    def draft_sampling(self) -> SamplingParams:
        """Settings of the draft distribution: the target's without its repetition penalty."""
        target = self.sampling
        temperature = target.temperature if self.draft_temperature is None else self.draft_temperature
        return SamplingParams(temperature, target.top_k, target.top_p, target.min_p)

    def new_tokens(self, prompt_length: int) -> int:
        """The limit on new tokens behind prompts of padded length `prompt_length`.

        Raises ValueError where max_length leaves no room for one.
        """
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if self.max_length is None:
            return DEFAULT_NEW_TOKENS
        if self.max_length <= prompt_length:
            raise ValueError(
                f"max_length={self.max_length}: the prompt already has {prompt_length} tokens; raise it, or give "
                "max_new_tokens"
            )
        return self.max_length - prompt_length


# --- one check per kind of value -------------------------------------------------------------------------------------


def fault(name: str, value: Any, expected: str) -> ValueError:
    """The error of a bad value, on one line."""
    return ValueError(f"{name}={shown(value)}: expected {expected}")


def shown(value: Any) -> str:
    """The value in a message; its type where it is long."""
    found = repr(value)
    return found if len(found) < 80 and "\n" not in found else type(value).__name__


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite real number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise fault(name, value, "a finite number")
    found = float(value)
    if not low <= found <= high:
        raise fault(name, value, f"a number in [{low:g}, {high:g}]" if high < math.inf else f"at least {low:g}")
    return found


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """A whole number in low .. high."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise fault(name, value, "a whole number")
    found = int(value)
    if found < low or (high is not None and found > high):
        raise fault(name, value, f"at least {low}" if high is None or found < low else f"at most {high}")
    return found


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise fault(name, value, "True or False")
    return value


def text(name: str, value: Any) -> str:
    """A string that is not empty."""
    if not isinstance(value, str) or not value:
        raise fault(name, value, "a string that is not empty")
    return value


def texts(name: str, value: Any) -> tuple[str, ...]:
    """One string or several."""
    if not isinstance(value, str | list | tuple):
        raise fault(name, value, "a string or a list of strings")
    return (text(name, value),) if isinstance(value, str) else tuple(text(name, item) for item in value)


def token_ids(name: str, value: Any) -> frozenset[int]:
    """A token id or several: an int, a list or an integer tensor of at most one dimension; -1 matches no token."""
    if isinstance(value, Tensor):
        if value.ndim > 1 or value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            raise fault(name, value, "an integer tensor with at most one dimension")
        value = value.tolist()
    if isinstance(value, list | tuple | set | frozenset):
        return frozenset(integer(name, item, -1) for item in value)
    return frozenset([integer(name, value, -1)])


def token_id(name: str, value: Any) -> int:
    """One token id, as an int or an integer tensor with one element."""
    found = token_ids(name, value)
    if len(found) != 1:
        raise fault(name, value, "one token id")
    return next(iter(found))


def callables(name: str, value: Any) -> tuple[Callable[..., Any], ...]:
    """Several functions, as in `LogitsProcessorList` and `StoppingCriteriaList`."""
    if not isinstance(value, list | tuple) or not all(map(callable, value)):
        raise fault(name, value, "a list of callables, for example a LogitsProcessorList or StoppingCriteriaList")
    return tuple(value)


def instance(name: str, value: Any, kind: type) -> Any:
    """An object of one class."""
    if not isinstance(value, kind):
        raise fault(name, value, f"a {kind.__module__.split('.')[0]}.{kind.__name__}")
    return value


# --- names -----------------------------------------------------------------------------------------------------------


def _at(neutral: tuple[Any, ...], names: str) -> dict[str, tuple[Any, ...]]:
    return dict.fromkeys(names.split(), neutral)


OF_CONFIG = frozenset(
    _at(
        (),
        "do_sample temperature top_k top_p min_p repetition_penalty max_new_tokens max_length stop_strings "
        "num_return_sequences eos_token_id pad_token_id return_dict_in_generate",
    )
)
# Names of `transformers` that are not supported, with the values at which they change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    **_at(
        (0,), "min_length min_new_tokens no_repeat_ngram_size encoder_no_repeat_ngram_size epsilon_cutoff eta_cutoff"
    ),
    **_at((0,), "diversity_penalty penalty_alpha assistant_ensemble_weight"),
    **_at((1,), "num_beams num_beam_groups typical_p top_h encoder_repetition_penalty guidance_scale"),
    **_at((False,), "early_stopping output_attentions output_hidden_states output_scores output_logits token_healing"),
    **_at((False,), "remove_invalid_values low_memory use_mtp synced_gpus"),
    **_at((True,), "use_cache"),
    **_at((0, 1), "length_penalty"),
    **_at((False, True), "renormalize_logits"),
    **_at((), "bad_words_ids constraints dola_layers exponential_decay_length_penalty force_words_ids max_time"),
    **_at((), "forced_bos_token_id forced_eos_token_id sequence_bias suppress_tokens begin_suppress_tokens"),
    **_at((), "watermarking_config prefix_allowed_tokens_fn assistant_model assistant_tokenizer custom_generate"),
    **_at((), "negative_prompt_ids negative_prompt_attention_mask prompt_lookup_num_tokens"),
}
# Of those, what is neither a logits processor nor a stopping criterion: nothing that is prepared beforehand does it.
OF_THE_LOOP = (
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("num_beams", "num_beam_groups", "penalty_alpha", "dola_layers", "prompt_lookup_num_tokens"),
)
REQUIRED = {"tree", "verifier", "nodes", "depth", "beta", "sharpness"}  # None is refused


def _unsupported(name: str, value: Any, source: str) -> str | None:
    """Why a setting of `transformers` cannot be followed; None where it changes nothing or is none of these."""
    simple = isinstance(value, Real)  # a tensor's comparison would be a tensor
    if name not in NEUTRAL or value is None or (simple and value in NEUTRAL[name]):
        return None
    remedy = "pass a logits_processor or stopping_criteria that does the same"
    if name.startswith("output_"):
        remedy = "take the target's probabilities at every node of the drafts: record_trees=True of EagleModel.generate"
    return f"{source}{name}={shown(value)}: not supported with speculative decoding; leave it out, or {remedy}"


def check_loop(config: GenerationConfig) -> None:
    """ValueError for a setting that only the loop of `transformers` itself follows."""
    for name in OF_THE_LOOP:
        reason = _unsupported(name, getattr(config, name, None), "")
        if reason:
            raise ValueError(reason)


def check_names(given: Mapping[str, Any]) -> None:
    """ValueError for a keyword that is not known, naming the nearest known one, or that is not supported."""
    known = [*GenerateArguments.__annotations__, "max_new_tokens", "return_dict_in_generate"]
    for name, value in given.items():
        if name in known:
            continue
        reason = _unsupported(name, value, "")
        if reason is None and name not in NEUTRAL:
            near = difflib.get_close_matches(name, [*known, "input_ids", "streamer"], n=1)
            reason = f"generate() has no argument {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        if reason:
            raise ValueError(reason)


def stated(config: GenerationConfig | None) -> dict[str, Any]:
    """The values that a generation config states itself."""
    if config is None:
        return {}
    return {name: value for name, value in vars(config).items() if value is not None and not name.startswith("_")}


# --- merging ---------------------------------------------------------------------------------------------------------


def resolve_arguments(given: Mapping[str, Any], file: Mapping[str, Any]) -> GenerationArgs:
    """Merge and check the keywords of a call, in the order of the module's docstring.

    given   keywords (see `GenerateArguments`)
    file    what the model's generation_config.json states; a setting there that is not supported is warned about

    Raises ValueError naming the keyword, its value and what was expected.
    """
    check_names(given)
    for name in REQUIRED & given.keys():
        if given[name] is None:
            raise fault(name, None, "a value; leave the argument out for the default")
    given = {name: value for name, value in given.items() if value is not None}
    config = given.pop("generation_config", None)
    if config is not None:
        given = {**_of_config(instance("generation_config", config, GenerationConfig)), **given}
    _warn_about(file)
    both = {**{name: value for name, value in file.items() if name in OF_CONFIG and value is not None}, **given}
    if "seed" in given and "generator" in given:
        raise ValueError("both seed and generator were given: pass one of them")
    return GenerationArgs(
        sampling=_sampling(given, both),
        **_drafting(given),
        **_limits(given, file),
        **_ends(both),
        **_call(both),
    )


def _of_config(config: GenerationConfig) -> dict[str, Any]:
    values = stated(config)
    for name, value in values.items():
        reason = _unsupported(name, value, "generation_config.")
        if reason:
            raise ValueError(reason)
    return {name: value for name, value in values.items() if name in OF_CONFIG}


def _warn_about(file: Mapping[str, Any]) -> None:
    for name, value in file.items():
        reason = _unsupported(name, value, "the model's generation_config.json has ")
        if reason:
            warnings.warn(reason, stacklevel=5)


def _sampling(given: Mapping[str, Any], both: Mapping[str, Any]) -> SamplingParams:
    """`both`: `given` over the file. Greedy is temperature 0."""
    layer = given if {"do_sample", "temperature"} & given.keys() else both
    temperature = number("temperature", both.get("temperature", 1.0), 0)
    top_k = integer("top_k", both.get("top_k", 0), 0)
    top_p = number("top_p", both.get("top_p", 1.0), 0, 1)
    min_p = number("min_p", both.get("min_p", 0.0), 0, 1)
    penalty = number("repetition_penalty", both.get("repetition_penalty", 1.0))
    if "do_sample" not in layer:
        return SamplingParams(temperature, top_k, top_p, min_p, penalty)
    if not flag("do_sample", layer["do_sample"]):
        return SamplingParams(0.0, repetition_penalty=penalty)
    if temperature == 0:
        raise ValueError("do_sample=True with temperature=0: sampling needs a temperature above 0; give one of the two")
    return SamplingParams(temperature, top_k, top_p, min_p, penalty)


def _drafting(given: Mapping[str, Any]) -> dict[str, Any]:
    automatic = _automatic(given)
    default = TreeSettings()
    width, temperature = given.get("width"), given.get("draft_temperature")
    settings = TreeSettings(
        nodes=default.nodes if automatic else integer("nodes", given.get("nodes", default.nodes), 1, MAX_NODES),
        depth=integer("depth", given.get("depth", default.depth), 1, MAX_NODES),
        width=None if width is None else integer("width", width, 1, MAX_NODES),
        beta=number("beta", given.get("beta", default.beta), 0, 1),
        sharpness=number("sharpness", given.get("sharpness", default.sharpness), 0.01, 100),
    )
    return {
        "tree": text("tree", given.get("tree", "hybrid")),
        "verifier": text("verifier", given.get("verifier", "hsd")),
        "settings": settings,
        "automatic": automatic,
        "stated": frozenset(given) & {"tree", *(field.name for field in fields(TreeSettings))},
        "draft_temperature": None if temperature is None else number("draft_temperature", temperature, 0),
    }


def _automatic(given: Mapping[str, Any]) -> bool:
    """Whether the tree's size is to be chosen. Raises ValueError for what cannot be given then."""
    kind, nodes = given.get("tree"), given.get("nodes")
    if AUTO not in (kind, nodes):
        return False
    for name in ("nodes", "depth", "width"):
        if name in given and given[name] != AUTO:
            asked = "tree" if kind == AUTO else "nodes"
            raise fault(
                name, given[name], f"nothing: {asked}='auto' chooses it; leave it out, or name a tree and nodes"
            )
    if given.get("verifier", VERIFIER) != VERIFIER and kind != "topk":
        raise fault(
            "verifier", given["verifier"], f"{VERIFIER!r}, which 'auto' chooses trees for; or name tree and nodes"
        )
    return True


def _limits(given: Mapping[str, Any], file: Mapping[str, Any]) -> dict[str, Any]:
    """What the call states wins as a whole: a max_length of the call over a max_new_tokens of the file."""
    names = ("max_new_tokens", "max_length")
    layer = given if any(name in given for name in names) else file
    return {name: None if layer.get(name) is None else integer(name, layer[name], 1) for name in names}


def _ends(both: Mapping[str, Any]) -> dict[str, Any]:
    eos, pad = both.get("eos_token_id"), both.get("pad_token_id")
    return {
        "eos_token_id": None if eos is None else token_ids("eos_token_id", eos),
        "pad_token_id": None if pad is None else token_id("pad_token_id", pad),
        "stop_strings": texts("stop_strings", both.get("stop_strings", ())),
        "stopping_criteria": callables("stopping_criteria", both.get("stopping_criteria", ())),
    }


def _call(both: Mapping[str, Any]) -> dict[str, Any]:
    """What concerns the call as a whole; kinds that are None unless given are checked only then."""
    checks: dict[str, Callable[[str, Any], Any]] = {
        "attention_mask": lambda name, value: instance(name, value, Tensor),
        "seed": lambda name, value: integer(name, value, 0, 2**63 - 1),
        "generator": lambda name, value: instance(name, value, torch.Generator),
        "graphs": flag,
    }
    return {
        **{name: check(name, both[name]) if name in both else None for name, check in checks.items()},
        "tokenizer": both.get("tokenizer"),
        "logits_processor": callables("logits_processor", both.get("logits_processor", ())),
        "num_return_sequences": integer("num_return_sequences", both.get("num_return_sequences", 1), 1),
        "reuse_cache": flag("reuse_cache", both.get("reuse_cache", False)),
        "record_trees": flag("record_trees", both.get("record_trees", False)),
        "return_dict_in_generate": flag("return_dict_in_generate", both.get("return_dict_in_generate", False)),
    }
