"""`EagleModel`: a target, a drafter and `generate`."""

import contextlib
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor
from transformers import StopStringCriteria

from eagle.api.arguments import (
    GenerateArguments,
    GenerationArgs,
    resolve_arguments,
    stated,
    token_ids,
)
from eagle.api.loading import load_lm, load_options
from eagle.api.outputs import GeneratedRow, GenerateOutput, PlanRecord, sequences_of
from eagle.autotune.auto import AutoTree
from eagle.autotune.candidates import Fit
from eagle.checkpoints.checks import check_target
from eagle.checkpoints.load import load_head
from eagle.checkpoints.pretrained import read_tokenizer
from eagle.drafters import CausalLMDrafter, Drafter, Eagle3Drafter
from eagle.drafters.causal_lm import check_models_agree, check_same_tokenizer
from eagle.engine.capturable import graph_blocker
from eagle.engine.distributions import SamplingTransform
from eagle.engine.generate import Stopping, iterate
from eagle.engine.graphs import CudaGraphs, GraphRunner
from eagle.engine.plan import Plan
from eagle.engine.stopping import CriteriaStopping
from eagle.nn.head import Eagle3Head
from eagle.nn.target import CachedLM, device_of


class Prepared(NamedTuple):
    """One generation before it starts. input_ids Int64[B * num_return_sequences, L], `prompts` without padding."""

    args: GenerationArgs
    input_ids: Tensor
    prompts: list[list[int]]
    plan: Plan
    stopping: Stopping
    generator: torch.Generator | None


class EagleModel:
    """Speculative decoding with a stock `transformers` target and an EAGLE-3 head (or a small LM) as drafter.

    One generation at a time: the caches and recorded graphs belong to the model.

    captured        records steps as CUDA graphs; None where there is no CUDA device
    eager_because   why the latest generation ran without graphs; None: with them
    auto            chooses for tree="auto"; keeps what it measured
    """

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
        self.captured = GraphRunner(CudaGraphs(self.device)) if self.device.type == "cuda" else None
        self.auto = AutoTree()
        self._eager_because: str | None = None
        self._in_use = threading.Lock()

    @property
    def eager_because(self) -> str | None:
        """Why the latest generation ran without CUDA graphs; None: it ran with them."""
        return self._eager_because or (self.captured.broken if self.captured is not None else None)

    @classmethod
    def from_head(cls, model: Any, head: Eagle3Head, tokenizer: Any = None, decoder: str = "auto") -> "EagleModel":
        """A loaded `transformers` causal LM and a loaded head.

        The head is moved, in place, to the device of the target's last layer and to the target's dtype.
        Raises ValueError when the head was not made for a target of this shape.
        """
        check_target(head.config, model.config)
        device = device_of(model.model.layers[-1])
        head.to(device, model.dtype)
        embeddings = model.get_input_embeddings()
        if embeddings.weight.is_meta and not head.config.own_embeddings:
            raise ValueError("the target's embed_tokens are offloaded; the head reads them too: keep them on a device")
        if embeddings.weight.device != device:
            embeddings = torch.nn.Embedding.from_pretrained(embeddings.weight.to(device))
        head.bind_embeddings(embeddings)
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
        taps: tuple[int, int, int] | None = None,
        rope_theta: float | None = None,
        attn_implementation: str | None = None,
        decoder: str = "auto",
        **model_kwargs: Any,
    ) -> "EagleModel":
        """Load a pair from local paths or hub ids.

        Give `ea_model_path` (an EAGLE-3 head) or `draft_model_path` (a small causal LM with the same tokenizer), or
        neither for plain decoding.

        dtype        a torch.dtype or its name; "auto": what decodes fastest on the device (bfloat16 where the hardware
                     multiplies it, else float32); None: the checkpoint's on a GPU, float32 on a CPU
        device_map   as in `transformers`; None: the GPU if there is one, else the CPU
        attention    "grouped" (`eagle.nn.grouped_attention`; the default on a CPU), "sdpa" (elsewhere), or
                     "split_prefix" for a tree attention without a mask over the cache
                     (`eagle.nn.tree_attention`); `attn_implementation` is another name for it
        decoder      "auto": the project's own where it equals the target's (`eagle.nn.decoder`;
                     `target.decoder_because` says why not), "stock": never
        taps, rope_theta    override the head's config.json (`eagle.load_head`)
        model_kwargs        go to the target's `from_pretrained`

        Raises ValueError when head and target, or the two tokenizers, do not belong together, and for other values.
        """
        if ea_model_path and draft_model_path:
            raise ValueError("both ea_model_path and draft_model_path were given: a model drafts with one of them")
        if not ea_model_path and (taps is not None or rope_theta is not None):
            raise ValueError("taps and rope_theta override an EAGLE-3 head's config.json: give ea_model_path with them")
        options = load_options(model_kwargs.pop("torch_dtype", dtype), device_map, attention, attn_implementation)
        tokenizer = read_tokenizer(base_model_path)
        model = load_lm(base_model_path, options, **model_kwargs)
        if ea_model_path:
            head = load_head(ea_model_path, model.config, dtype=model.dtype, taps=taps, rope_theta=rope_theta)
            pair = cls.from_head(model, head, tokenizer, decoder)
            pair.auto = AutoTree(base_model_path, ea_model_path)
            return pair
        if not draft_model_path:
            return cls(model, None, tokenizer, decoder=decoder)
        check_same_tokenizer(tokenizer, read_tokenizer(draft_model_path))
        draft_model = load_lm(draft_model_path, options)
        check_models_agree(model, draft_model, tokenizer)
        pair = cls(model, CausalLMDrafter(draft_model, model.config.vocab_size), tokenizer, decoder=decoder)
        pair.auto = AutoTree(base_model_path, draft_model_path)
        return pair

    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int | None = None,
        *,
        streamer: Any = None,
        **arguments: Unpack[GenerateArguments],
    ) -> Tensor | GenerateOutput:
        """Continue the prompts; the emitted distribution is the target's own under the sampling settings.

        input_ids        Int64[B, L]; rows may be padded on either side where `attention_mask` [B, L] is 0
        max_new_tokens   default 512
        streamer         a `transformers` streamer (one row only): gets the prompt, then each step's tokens
        arguments        see `eagle.api.arguments.GenerateArguments`

        Returns Int64[B * num_return_sequences, L + new] on the input's device (the input rows, the new tokens, the pad
        token behind shorter rows), or with `return_dict_in_generate` a `GenerateOutput`.
        Raises ValueError as `stream` does.
        """
        prepared = self._prepare(input_ids, {"max_new_tokens": max_new_tokens, **arguments})
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

    def stream(
        self, input_ids: Tensor, max_new_tokens: int | None = None, **arguments: Unpack[GenerateArguments]
    ) -> Iterator[list[GeneratedRow]]:
        """Yield the growing rows after the prompts' forward and after every step; arguments as for `generate`.

        The model is in use from the first `next` until the iterator is exhausted, closed or dropped.

        Raises ValueError for an empty prompt, token ids out of range, a prompt that fills the context, an argument that
        is not known or out of range; RuntimeError from the first `next` while another generation is unfinished (with
        tree="auto" at once, where something has to be measured first).
        """
        return self._run(self._prepare(input_ids, {"max_new_tokens": max_new_tokens, **arguments}))

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the model's caches, as every generation does. RuntimeError while another one does."""
        if not self._in_use.acquire(blocking=False):
            raise RuntimeError(
                "another generation of this model is unfinished and holds its caches: exhaust its stream() or close() "
                "it first, or load a second model"
            )
        try:
            yield
        finally:
            self._in_use.release()

    def _run(self, prepared: Prepared) -> Iterator[list[GeneratedRow]]:
        with self.exclusive():
            graphs = self._recordings(prepared.plan, prepared.args)
            args, _, prompts, plan, stopping, generator = prepared
            models, records = (self.target, self.drafter), (args.record_trees, args.reuse_cache)
            made = _record_of(args)
            for rows in iterate(*models, plan, prompts, stopping, generator, graphs, *records):
                for row in rows:
                    row.plan = made
                yield rows

    def _prepare(self, input_ids: Tensor, arguments: dict[str, Any]) -> Prepared:
        args = resolve_arguments(arguments, stated(getattr(self.target.model, "generation_config", None)))
        prompts = _prompt_rows(input_ids, args.attention_mask)
        self._check_prompts(prompts)
        copies = args.num_return_sequences
        if copies > 1 and args.sampling.greedy:
            raise ValueError(f"num_return_sequences={copies} with greedy decoding: all of them would be the same")
        args = self._choose_tree(args, len(prompts) * copies)
        return Prepared(
            args,
            input_ids.repeat_interleave(copies, 0),
            [list(prompt) for prompt in prompts for _ in range(copies)],
            self._plan(args),
            self._stopping(args, input_ids),
            self._generator(args),
        )

    def _choose_tree(self, args: GenerationArgs, batch: int) -> GenerationArgs:
        """The arguments with the tree that "auto" stands for, and what suits the head where it is not given."""
        temperature = args.sampling.temperature
        if args.automatic and args.tree != "none":
            tree, nodes, depth = self.auto.choose(self, temperature, batch, args.tree).candidate
            args = replace(args, tree=tree, settings=replace(args.settings, nodes=nodes, depth=depth))
        missing = set(Fit._fields) - args.stated
        if args.tree == "hybrid" and missing:
            fit = self.auto.fit(temperature, brief=args.automatic)
            args = replace(args, settings=replace(args.settings, **{name: getattr(fit, name) for name in missing}))
        return args

    def _plan(self, args: GenerationArgs) -> Plan:
        target = SamplingTransform(args.sampling, args.logits_processor)
        draft = SamplingTransform(args.draft_sampling)
        plan = Plan.resolve(args.tree, args.verifier, args.settings, target, draft)
        if plan.builder is not None and self.drafter is None:
            raise ValueError(f"tree={args.tree!r} needs a drafter: load with ea_model_path or draft_model_path")
        return plan

    def _stopping(self, args: GenerationArgs, input_ids: Tensor) -> Stopping:
        limits = (self.eos_ids(args.eos_token_id), args.new_tokens(input_ids.shape[1]), self.context_length)
        criteria = list(args.stopping_criteria)
        if args.stop_strings:
            tokenizer = args.tokenizer or self.tokenizer
            if tokenizer is None:
                raise ValueError(f"stop_strings={args.stop_strings!r} need a tokenizer: pass tokenizer=")
            criteria.append(StopStringCriteria(tokenizer, list(args.stop_strings)))
        return CriteriaStopping(*limits, criteria, input_ids.device) if criteria else Stopping(*limits)

    def _generator(self, args: GenerationArgs) -> torch.Generator | None:
        if args.seed is not None:
            return torch.Generator(self.device).manual_seed(args.seed)
        if args.generator is not None and args.generator.device.type != self.device.type:
            raise ValueError(
                f"generator is on {args.generator.device} and the model on {self.device}: make it with "
                f"torch.Generator({self.device.type!r}), or pass seed="
            )
        return args.generator

    def _recordings(self, plan: Plan, args: GenerationArgs) -> GraphRunner | None:
        """Where this plan's steps are recorded, None if they are not; the reason goes to `eager_because`."""
        if args.graphs is False:
            self._eager_because = "graphs=False"
        elif args.record_trees:
            self._eager_because = "record_trees=True"
        elif self.captured is None:
            self._eager_because = f"the model is on {self.device}; graphs need a CUDA device"
        else:
            self._eager_because = graph_blocker(self.target, self.drafter if plan.builder else None, plan)
        if args.graphs and self.eager_because:
            warnings.warn(f"graphs=True: decoding without them, because {self.eager_because}", stacklevel=4)
        return None if self.eager_because else self.captured

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
