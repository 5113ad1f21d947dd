"""`EagleModel`: a target, a drafter and `generate`."""

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Unpack, overload

import torch
from torch import Tensor
from transformers import StopStringCriteria

from eagle.api.arguments import (
    GenerateArguments,
    GenerationArgs,
    lists_arguments,
    resolve_arguments,
    stated,
    token_ids,
)
from eagle.api.loading import bind_target, load_lm, load_options
from eagle.api.outputs import GeneratedRow, GenerateOutput, PlanRecord, sequences_of
from eagle.autotune.auto import AutoTree, shipped
from eagle.autotune.candidates import Candidate, Fit
from eagle.checkpoints.checks import check_target
from eagle.checkpoints.load import load_head
from eagle.checkpoints.pretrained import ACCESS, hub_options, read_config, read_tokenizer
from eagle.digests import seed_of
from eagle.drafters import CausalLMDrafter, Drafter, Eagle3Drafter
from eagle.drafters.causal_lm import check_models_agree, check_same_tokenizer
from eagle.engine.distributions import Sampling
from eagle.engine.graphs import CudaGraphs, GraphRunner, graph_blocker
from eagle.engine.plan import Plan
from eagle.engine.session import Session, Workspace
from eagle.engine.stopping import Stopping
from eagle.nn.head import Eagle3Head
from eagle.nn.target import CachedLM, device_of
from eagle.trees import TREES, levels_on

TYPICAL_STEPS = 10  # of a generation, whose median is compared with what was measured for its tree


class Prepared(NamedTuple):
    """One generation before it starts. input_ids Int64[B * num_return_sequences, L], `prompts` without padding."""

    args: GenerationArgs
    input_ids: Tensor
    prompts: list[list[int]]
    plan: Plan
    sampling: Sampling
    stopping: Stopping
    seed: int


class EagleModel:
    """Speculative decoding with a stock `transformers` target and an EAGLE-3 head (or a small LM) as drafter.

    Generations may overlap: each has a session with caches of its own. Not thread-safe.

    new_graphs      makes what records steps as CUDA graphs; None where there is no CUDA device
    eager_because   why the latest generation ran without graphs; None: with them
    auto            chooses for tree="auto"; keeps what it measured
    training        False: the model only decodes
    """

    training = False
    input_modalities = output_modalities = ("text",)  # for the repr of a pipeline

    def __init__(
        self,
        model: Any,
        drafter: Drafter | None = None,
        tokenizer: Any = None,
        taps: tuple[int, ...] = (),
        decoder: str = "auto",
    ):
        """`model`: a `transformers` causal LM; `taps`: the layers whose inputs the drafter reads; `decoder`: "stock"
        never runs the project's own (see `CachedLM`).
        """
        self.target = CachedLM(model, taps, decoder)
        self.drafter = drafter
        self.tokenizer = tokenizer
        self.device = self.target.device
        self.context_length = self.target.context_length
        self.new_graphs: Callable[[], GraphRunner] | None = None
        if self.device.type == "cuda":
            self.new_graphs = lambda: GraphRunner(CudaGraphs(self.device))
        self.auto = AutoTree(levels=levels_on(self.device))
        self.eager_because: str | None = None
        self._idle: list[Workspace] = []  # of sessions that have ended, for the next one

    @property
    def config(self) -> Any:
        """The target's config."""
        return self.target.model.config

    @property
    def generation_config(self) -> Any:
        """The target's generation config, whose values are the defaults of `generate`."""
        return self.target.model.generation_config

    @generation_config.setter
    def generation_config(self, config: Any) -> None:
        self.target.model.generation_config = config

    @property
    def dtype(self) -> torch.dtype:
        """Of the target's weights."""
        found: torch.dtype = self.target.model.dtype
        return found

    def eval(self) -> "EagleModel":
        """Return the model, which is always in evaluation mode."""
        return self

    def can_generate(self) -> bool:
        """True, for `transformers.pipeline`."""
        return True

    def to(self, *places: Any, device: Any = None, dtype: Any = None) -> "EagleModel":
        """Return the model where it is there already. ValueError for another device or dtype: a pair stays where it was
        loaded.
        """
        for place in (*places, device, dtype):
            if place is None or place == self.dtype:
                continue
            wanted = None if isinstance(place, torch.dtype) else torch.device(place)
            if wanted is None or wanted.type != self.device.type or wanted.index not in (None, self.device.index):
                raise ValueError(
                    f"to({place!r}): the pair is on {self.device} in {self.dtype} and stays there; load it with "
                    "EagleModel.from_pretrained(..., device_map={'': DEVICE}, dtype=DTYPE)"
                )
        return self

    @contextlib.contextmanager
    def session(
        self, plan: Plan, *, graphs: bool = True, record_trees: bool = False, reuse: bool = False
    ) -> Iterator[Session]:
        """A session on this model, with the caches and recordings of one that has ended where there are some.

        graphs         replay steps as CUDA graphs, where there is a CUDA device
        record_trees   rows get the draft tree of every step
        reuse          rows may begin with what the caches still hold (`Session.add`)

        Raises ValueError as `Session` does.
        """
        plan.drafter_of(self.drafter)  # before a workspace is taken
        space = self._idle.pop() if self._idle else Workspace.of(self.target, self.drafter)
        if not reuse:
            space.forget()
        if graphs and space.graphs is None and self.new_graphs is not None:
            space = space._replace(graphs=self.new_graphs())
        found = Session(self.target, self.drafter, plan, graphs=graphs, record_trees=record_trees, workspace=space)
        try:
            yield found
        finally:
            space = found.close()
            if not self._idle:
                self._idle.append(space)

    @classmethod
    def from_head(cls, model: Any, head: Eagle3Head, tokenizer: Any = None, decoder: str = "auto") -> "EagleModel":
        """A loaded `transformers` causal LM and a loaded head.

        The head is moved, in place, to the device of the target's last layer and to the target's dtype.
        Raises ValueError when the head was not made for a target of this shape.
        """
        check_target(head.config, model.config)
        device = device_of(model.model.layers[-1])
        head.to(device, model.dtype)
        bind_target(head, model, device)
        return cls(model, Eagle3Drafter(head), tokenizer, tuple(head.config.taps), decoder)

    @classmethod
    def from_pretrained(
        cls,
        base_model_path: str,
        ea_model_path: str | None = None,
        draft_model_path: str | None = None,
        dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        attention: str | None = None,
        taps: tuple[int, ...] | None = None,
        rope_theta: float | None = None,
        attn_implementation: str | None = None,
        drafter_kwargs: Mapping[str, Any] | None = None,
        decoder: str = "auto",
        **model_kwargs: Any,
    ) -> "EagleModel":
        """Load a pair from local paths or hub ids.

        Give `ea_model_path` (an EAGLE-3 head) or `draft_model_path` (a small causal LM with the same tokenizer), or
        neither for plain decoding.

        dtype        a torch.dtype or its name; "auto": what decodes fastest on the device (bfloat16 where the hardware
                     multiplies it or native code reads it, else float32); None: on a GPU the checkpoint's, on a CPU
                     float32
        device_map   as in `transformers`; None: the GPU if there is one, else the CPU
        attention    "grouped" (`eagle.nn.grouped_attention`; the default on a CPU), "sdpa" (elsewhere), or
                     "split_prefix" for a tree attention without a mask over the cache
                     (`eagle.nn.tree_attention`); `attn_implementation` is another name for it
        decoder      "auto": the project's own where it equals the target's (`eagle.nn.decoder`;
                     `target.decoder_because` says why not), "stock": never
        taps, rope_theta    override the head's config.json (`eagle.load_head`)
        model_kwargs        go to the target's `from_pretrained`; what says where files are (revision, token, cache_dir,
                            subfolder, ...) to its tokenizer's too, what is about access to the drafter's as well
        drafter_kwargs      the same for the head or the draft model: its own revision, subfolder, ...

        Raises ValueError when head and target, or the two tokenizers, do not belong together, and for other values.
        """
        if ea_model_path and draft_model_path:
            raise ValueError("both ea_model_path and draft_model_path were given: a model drafts with one of them")
        if not ea_model_path and (taps is not None or rope_theta is not None):
            raise ValueError("taps and rope_theta override an EAGLE-3 head's config.json: give ea_model_path with them")
        dtype = model_kwargs.pop("torch_dtype", dtype)
        family = read_config(base_model_path, **hub_options(model_kwargs)).model_type if dtype == "auto" else ""
        options = load_options(dtype, device_map, attention, attn_implementation, family)
        tokenizer = read_tokenizer(base_model_path, **hub_options(model_kwargs))
        model = load_lm(base_model_path, options, **model_kwargs)
        places = {**hub_options(model_kwargs, ACCESS), **(drafter_kwargs or {})}
        if ea_model_path:
            head = load_head(ea_model_path, model.config, model.dtype, taps=taps, rope_theta=rope_theta, **places)
            pair = cls.from_head(model, head, tokenizer, decoder)
            pair.auto = AutoTree(base_model_path, ea_model_path, pair.auto.levels)
            return pair
        if not draft_model_path:
            return cls(model, None, tokenizer, decoder=decoder)
        check_same_tokenizer(tokenizer, read_tokenizer(draft_model_path, **hub_options(places)))
        draft_model = load_lm(draft_model_path, options, **places)
        check_models_agree(model, draft_model, tokenizer)
        pair = cls(model, CausalLMDrafter(draft_model, model.config.vocab_size), tokenizer, decoder=decoder)
        pair.auto = AutoTree(base_model_path, draft_model_path, pair.auto.levels)
        return pair

    @overload
    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int | None = None,
        *,
        streamer: Any = None,
        return_dict_in_generate: Literal[True],
        **arguments: Unpack[GenerateArguments],
    ) -> GenerateOutput: ...

    @overload
    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int | None = None,
        *,
        streamer: Any = None,
        return_dict_in_generate: Literal[False] | None = None,
        **arguments: Unpack[GenerateArguments],
    ) -> Tensor: ...

    @overload
    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int | None = None,
        *,
        streamer: Any = None,
        return_dict_in_generate: bool | None = None,
        **arguments: Unpack[GenerateArguments],
    ) -> Tensor | GenerateOutput: ...

    @lists_arguments
    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int | None = None,
        *,
        streamer: Any = None,
        return_dict_in_generate: bool | None = None,
        **arguments: Unpack[GenerateArguments],
    ) -> Tensor | GenerateOutput:
        """Continue the prompts; the emitted distribution is the target's own under the sampling settings.

        input_ids        Int64[B, L]; rows may be padded on either side where `attention_mask` [B, L] is 0
        max_new_tokens   default 512
        streamer         a `transformers` streamer (one row only): gets the prompt, then each step's tokens
        return_dict_in_generate     True: a `GenerateOutput`; False (the default): its sequences

        Returns Int64[B * num_return_sequences, L + new] on the input's device (the input rows, the new tokens, the pad
        token behind shorter rows), or the `GenerateOutput`.
        Raises ValueError as `stream` does.
        """
        given = {"max_new_tokens": max_new_tokens, "return_dict_in_generate": return_dict_in_generate, **arguments}
        prepared = self.prepare(input_ids, given)
        if streamer is not None:
            _check_streamer(streamer, len(prepared.prompts))
            streamer.put(prepared.input_ids.cpu())
        rows: list[GeneratedRow] = []
        sent = 0
        for rows in self._run(prepared):
            if streamer is not None:
                streamer.put(torch.tensor(rows[0].new_tokens[sent:]))
                sent = len(rows[0].new_tokens)
        if streamer is not None:
            streamer.end()
        sequences = sequences_of(prepared.input_ids, rows, self._pad_id(prepared.args))
        return GenerateOutput(sequences, rows) if prepared.args.return_dict_in_generate else sequences

    @lists_arguments
    def stream(
        self, input_ids: Tensor, max_new_tokens: int | None = None, **arguments: Unpack[GenerateArguments]
    ) -> Iterator[list[GeneratedRow]]:
        """Yield the growing rows after the prompts' forward and after every step; arguments as for `generate`.

        Raises ValueError for an empty prompt, token ids out of range, a prompt that fills the context, an argument that
        is not known or out of range.
        """
        return self._run(self.prepare(input_ids, {"max_new_tokens": max_new_tokens, **arguments}))

    def _run(self, prepared: Prepared) -> Iterator[list[GeneratedRow]]:
        began = time.perf_counter()
        args, _, prompts, plan, sampling, stopping, seed = prepared
        graphs = self._records(plan, sampling, args)
        with self.session(plan, graphs=graphs, record_trees=args.record_trees, reuse=args.reuse_cache) as session:
            rows, made = [], _record_of(args)
            for index, prompt in enumerate(prompts):
                own = row_generator(seed, index)
                rows.append(session.add(prompt, sampling, own, stopping=stopping, reuse=args.reuse_cache, began=began))
                rows[-1].plan = made
            yield rows
            while session.rows:
                session.step()
                if session.graphs is not None and session.graphs.broken:
                    self.eager_because = session.graphs.broken
                yield rows
        seconds = [sum(record.seconds.values()) for record in rows[0].steps]
        if args.automatic and len(rows) == 1 and len(seconds) >= TYPICAL_STEPS:
            chosen = Candidate(args.tree, args.settings.nodes, args.settings.depth)
            self.auto.observe(1, args.sampling.temperature, chosen, 1e3 * statistics.median(seconds))

    def prepare(self, input_ids: Tensor, arguments: dict[str, Any]) -> Prepared:
        """Check the arguments of `generate` and look up everything they name. Raises ValueError as `stream` does."""
        args = resolve_arguments(arguments, stated(getattr(self.target.model, "generation_config", None)))
        prompts = _prompt_rows(input_ids, args.attention_mask)
        self._check_prompts(prompts)
        copies = args.num_return_sequences
        if copies > 1 and args.sampling.greedy:
            raise ValueError(f"num_return_sequences={copies} with greedy decoding: all of them would be the same")
        args = self._choose_tree(args, len(prompts) * copies)
        if args.tree != "none" and args.settings.nodes > 1 and self.drafter is None:
            raise ValueError(f"tree={args.tree!r} needs a drafter: load with ea_model_path or draft_model_path")
        return Prepared(
            args,
            input_ids.repeat_interleave(copies, 0),
            [list(prompt) for prompt in prompts for _ in range(copies)],
            Plan.resolve(args.tree, args.verifier, args.settings, args.sampling.temperature),
            Sampling(args.sampling, args.draft_sampling, args.logits_processor),
            self._stopping(args, input_ids),
            _seed(args),
        )

    def _choose_tree(self, args: GenerationArgs, batch: int) -> GenerationArgs:
        """The arguments with the tree that "auto" stands for, and what suits the head where it is not given."""
        temperature = args.sampling.temperature
        if self.drafter is None and not args.stated & {"tree", "nodes"}:
            args = replace(args, tree="none")
        if args.automatic and args.tree != "none":
            tree, nodes, depth = self.auto.choose(self, temperature, batch, args.tree).candidate
            args = replace(args, tree=tree, settings=replace(args.settings, nodes=nodes, depth=depth))
        elif not args.stated & {"nodes", "depth"}:
            _, nodes, depth = shipped(self.device.type, args.tree, temperature)
            args = replace(args, settings=replace(args.settings, nodes=nodes, depth=depth))
        missing = set(Fit._fields) - args.stated
        builder = TREES.get(args.tree)
        if builder and builder.fitted and missing:
            fit = self.auto.fit(temperature, brief=args.automatic)
            args = replace(args, settings=replace(args.settings, **{name: getattr(fit, name) for name in missing}))
        return args

    def _stopping(self, args: GenerationArgs, input_ids: Tensor) -> Stopping:
        limit = args.new_tokens(input_ids.shape[1])
        criteria = list(args.stopping_criteria)
        if args.stop_strings:
            tokenizer = args.tokenizer or self.tokenizer
            if tokenizer is None:
                raise ValueError(f"stop_strings={args.stop_strings!r} need a tokenizer: pass tokenizer=")
            criteria.append(StopStringCriteria(tokenizer, list(args.stop_strings)))
        return Stopping(self.eos_ids(args.eos_token_id), limit, self.context_length, criteria, input_ids.device)

    def _records(self, plan: Plan, sampling: Sampling, args: GenerationArgs) -> bool:
        """Whether this generation's steps are recorded; if not, the reason goes to `eager_because`."""
        broken = next((space.graphs.broken for space in self._idle if space.graphs and space.graphs.broken), None)
        if args.graphs is False:
            self.eager_because = "graphs=False"
        elif args.record_trees:
            self.eager_because = "record_trees=True"
        elif self.new_graphs is None:
            self.eager_because = f"the model is on {self.device}; graphs need a CUDA device"
        else:
            self.eager_because = graph_blocker(self.target, plan.drafter_of(self.drafter), sampling) or broken
        if args.graphs and self.eager_because:
            warnings.warn(f"graphs=True: decoding without them, because {self.eager_because}", stacklevel=4)
        return self.eager_because is None

    def _check_prompts(self, prompts: list[list[int]]) -> None:
        for index, prompt in enumerate(prompts):
            if not prompt:
                raise ValueError(f"prompt {index} is empty: a generation needs at least one token (for example BOS)")
            low, high = min(prompt), max(prompt)
            if low < 0 or high >= self.target.vocab_size:
                raise ValueError(
                    f"prompt {index} has token id {low if low < 0 else high}: expected ids in 0 .. "
                    f"{self.target.vocab_size - 1}; was it made with another tokenizer?"
                )
            if len(prompt) >= self.context_length:
                raise ValueError(
                    f"prompt {index} has {len(prompt)} tokens and the target's context is {self.context_length}: "
                    "no room for a new token; shorten the prompt"
                )

    def eos_ids(self, given: Any = None) -> frozenset[int]:
        """The token ids that end a row: the given ones, else the model's, else the tokenizer's."""
        config = getattr(self.target.model, "generation_config", None)
        for value in (given, getattr(config, "eos_token_id", None), getattr(self.tokenizer, "eos_token_id", None)):
            if value is not None:
                return token_ids("eos_token_id", value)
        return frozenset()

    def _pad_id(self, args: GenerationArgs) -> int:
        pad = args.pad_token_id if args.pad_token_id is not None else getattr(self.tokenizer, "pad_token_id", None)
        return pad if pad is not None else min((id for id in self.eos_ids(args.eos_token_id) if id >= 0), default=0)


def _check_streamer(streamer: Any, rows: int) -> None:
    if (
        isinstance(streamer, type)
        or not callable(getattr(streamer, "put", None))
        or not callable(getattr(streamer, "end", None))
    ):
        raise ValueError(f"streamer={streamer!r}: expected a transformers streamer, with put and end")
    if rows > 1:
        raise ValueError(f"a streamer follows one row, got a batch of {rows}; generate row by row")


def _check_dense(name: str, value: Any) -> None:
    """ValueError unless the value is a tensor whose numbers can be read."""
    if not isinstance(value, Tensor) or value.is_meta or value.layout != torch.strided:
        kind = type(value).__name__
        if isinstance(value, Tensor):
            kind = f"one on the device {value.device} with the layout {value.layout}"
        raise ValueError(f"{name}: expected an integer tensor [batch, length], found {kind}")


def _seed(args: GenerationArgs) -> int:
    """What the rows' seeds derive from: a number of the given generator, of one with the given seed, or of torch's."""
    generator = args.generator if args.seed is None else torch.Generator().manual_seed(args.seed)
    device = torch.device("cpu") if generator is None else generator.device
    return int(torch.randint(2**63 - 1, (1,), generator=generator, device=device))


def row_generator(seed: int, index: int) -> torch.Generator:
    """The random numbers of one row of a batch."""
    return torch.Generator().manual_seed(seed_of(seed, "row", index))


def _record_of(args: GenerationArgs) -> PlanRecord:
    settings = args.settings
    return PlanRecord(args.tree, args.verifier, settings.nodes, settings.depth, settings.beta, settings.sharpness)


def _prompt_rows(input_ids: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
    """Rows of token ids without their padding."""
    _check_dense("input_ids", input_ids)
    if input_ids.ndim != 2 or input_ids.dtype not in (torch.int64, torch.int32):
        found = f"{input_ids.dtype} of shape {tuple(input_ids.shape)}"
        raise ValueError(f"input_ids: expected an integer tensor [batch, length], found {found}")
    if not len(input_ids):
        raise ValueError("input_ids has no rows: expected at least one prompt")
    if attention_mask is None:
        return input_ids.tolist()
    _check_dense("attention_mask", attention_mask)
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask {tuple(attention_mask.shape)} must have the shape of input_ids {tuple(input_ids.shape)}"
        )
    keep = attention_mask.to(input_ids.device).bool()
    return [row[kept].tolist() for row, kept in zip(input_ids, keep)]
