"""`EagleModel`: a target, a drafter and `generate`."""

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from eagle.checkpoints.load import check_target, load_head
from eagle.drafters import CausalLMDrafter, Drafter, Eagle3Drafter
from eagle.engine.capturable import why_not
from eagle.engine.cuda_graphs import CudaGraphs, GraphRunner
from eagle.engine.generate import Stopping, iterate
from eagle.engine.plan import Plan
from eagle.engine.sampling import SamplingParams, SamplingTransform
from eagle.model.outputs import GeneratedRow, GenerateOutput, sequences_of
from eagle.modules.head import Eagle3Head
from eagle.modules.target import CachedLM, device_of
from eagle.modules.tree_attention import ATTENTION
from eagle.trees import TreeSettings, find_tree


class EagleModel:
    """Speculative decoding with a stock `transformers` target and an EAGLE-3 head (or a small LM) as drafter.

    captured        what records steps as CUDA graphs; None where there is no CUDA device
    eager_because   why the latest generation ran without graphs; None: with them
    """

    def __init__(self, model, drafter: Drafter | None = None, tokenizer=None, taps: tuple[int, ...] = ()):
        self.target = CachedLM(model, taps)
        self.drafter = drafter
        self.tokenizer = tokenizer
        self.device = self.target.device
        self.context_length = self.target.context_length
        self.captured = GraphRunner(CudaGraphs(self.device)) if self.device.type == "cuda" else None
        self._eager_because: str | None = None

    @property
    def eager_because(self) -> str | None:
        return self._eager_because or (self.captured.broken if self.captured is not None else None)

    @classmethod
    def from_head(cls, model, head: Eagle3Head, tokenizer=None) -> "EagleModel":
        """A loaded `transformers` causal LM and a loaded head; the head moves beside the target's last layer.

        Raises ValueError when the head was not made for a target of this shape.
        """
        check_target(head.config, model.config)
        device = device_of(model.model.layers[-1])
        head.to(device)
        embeddings = model.get_input_embeddings()
        if embeddings.weight.is_meta and not head.config.own_embeddings:
            raise ValueError("the target's embed_tokens are offloaded; the head reads them too: keep them on a device")
        if embeddings.weight.device != device:
            embeddings = torch.nn.Embedding.from_pretrained(embeddings.weight.to(device))
        head.bind_embeddings(embeddings)
        return cls(model, Eagle3Drafter(head), tokenizer, tuple(head.config.taps))

    @classmethod
    def from_pretrained(
        cls,
        base_model_path: str,
        ea_model_path: str | None = None,
        draft_model_path: str | None = None,
        dtype: torch.dtype | None = None,
        device_map: str | None = None,
        attention: str = "sdpa",
        **model_kwargs,
    ) -> "EagleModel":
        """Load a pair from local paths or hub ids.

        Give `ea_model_path` (an EAGLE-3 head) or `draft_model_path` (a small causal LM with the same tokenizer), or
        neither for plain decoding. dtype: None keeps the checkpoint's on a GPU and means float32 on a CPU.
        attention: "sdpa", or "split_prefix" for a tree attention without a mask over the cache
        (`eagle.modules.tree_attention`).
        Raises ValueError when head and target, or the two tokenizers, do not belong together.
        """
        if attention not in ATTENTION:
            raise ValueError(f"attention={attention!r}: expected one of {', '.join(ATTENTION)}")
        if ea_model_path and draft_model_path:
            raise ValueError("both ea_model_path and draft_model_path were given: a model drafts with one of them")
        dtype = dtype or ("auto" if torch.cuda.is_available() else torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(base_model_path)
        model = _load_lm(base_model_path, dtype, device_map, **{"attn_implementation": attention, **model_kwargs})
        if ea_model_path:
            head = load_head(ea_model_path, model.config, dtype=model.dtype)
            return cls.from_head(model, head, tokenizer)
        if not draft_model_path:
            return cls(model, None, tokenizer)
        check_same_tokenizer(tokenizer, AutoTokenizer.from_pretrained(draft_model_path))
        small = _load_lm(draft_model_path, dtype, device_map, attn_implementation=attention)
        return cls(model, CausalLMDrafter(small, model.config.vocab_size), tokenizer)

    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int = 512,
        *,
        attention_mask: Tensor | None = None,
        streamer=None,
        return_dict_in_generate: bool = False,
        **settings,
    ) -> Tensor | GenerateOutput:
        """Continue the prompts; the emitted law is the target's own under the sampling settings.

        input_ids     Int64[B, L]; rows may be padded on either side where `attention_mask` [B, L] is 0
        streamer      a `transformers` streamer (one row only): gets the prompt, then each step's tokens
        settings      temperature, tree, verifier, ...: see `stream`

        Returns Int64[B, L + new] on the input's device (shorter rows padded on the right with the pad token), or with
        `return_dict_in_generate` a `GenerateOutput`.
        Raises ValueError as `stream` does.
        """
        sent = 0
        for rows in self.stream(input_ids, max_new_tokens, attention_mask=attention_mask, **settings):
            if streamer is not None:
                if len(rows) > 1:
                    raise ValueError(f"a streamer follows one row, got a batch of {len(rows)}; generate row by row")
                if not sent:
                    streamer.put(torch.tensor([rows[0].prompt]))
                streamer.put(torch.tensor(rows[0].new_tokens[sent:]))
                sent = len(rows[0].new_tokens)
        if streamer is not None:
            streamer.end()
        sequences = sequences_of(input_ids, rows, self._pad_id())
        return GenerateOutput(sequences, rows) if return_dict_in_generate else sequences

    def stream(
        self,
        input_ids: Tensor,
        max_new_tokens: int = 512,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        tree: str = "hybrid",
        verifier: str = "hsd",
        nodes: int = 60,
        depth: int = 7,
        width: int | None = None,
        beta: float = 0.85,
        generator: torch.Generator | None = None,
        eos_token_id: int | list[int] | None = None,
        attention_mask: Tensor | None = None,
        draft_sampling: SamplingParams | None = None,
        graphs: bool | None = None,
    ) -> Iterator[list[GeneratedRow]]:
        """Yield the growing rows after the prompts' forward and after every step.

        tree            "none" (plain decoding), "topk", "chain", "multi" or "hybrid"; see `eagle.trees`
        nodes           rows of the target's scoring forward per step: drafted nodes and the root
        depth, width, beta    see `eagle.trees.TreeSettings`
        verifier        a name in `hsd.VERIFIERS`; at temperature 0 "greedy" is used, which accepts the same
        generator       source of all randomness, on the model's device; None: torch's global one
        eos_token_id    token id(s) that end a row; None: the model's own
        draft_sampling  settings of the draft law where they should differ from the target's
        graphs          replay steps as CUDA graphs: None where possible, True the same but warn where not, False never;
                        `eager_because` has the reason

        Raises ValueError for an empty prompt, token ids out of range, a prompt that fills the context, settings out
        of range, an unknown tree or verifier.
        """
        prompts = _prompt_rows(input_ids, attention_mask)
        self._check_prompts(prompts)
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens}: expected at least 1")
        sampling = SamplingParams(temperature, top_k, top_p, min_p, repetition_penalty)
        plan = self._plan(sampling, draft_sampling, tree, verifier, TreeSettings(nodes, depth, width, beta))
        stopping = Stopping(self.eos_ids(eos_token_id), max_new_tokens, self.context_length)
        captured = self._recordings(plan, graphs)
        return iterate(self.target, self.drafter, plan, prompts, stopping, generator, captured)

    def _recordings(self, plan: Plan, graphs: bool | None) -> GraphRunner | None:
        """Where this plan's steps are recorded, None if they are not; the reason goes to `eager_because`."""
        if graphs is False:
            self._eager_because = "graphs=False"
        elif self.captured is None:
            self._eager_because = f"the model is on {self.device}; graphs need a CUDA device"
        else:
            drafter = self.drafter if find_tree(plan.tree) else None
            self._eager_because = why_not(self.target, drafter, plan)
        if graphs and self.eager_because:
            warnings.warn(f"graphs=True: decoding without them, because {self.eager_because}", stacklevel=4)
        return None if self.eager_because else self.captured

    def _plan(
        self,
        sampling: SamplingParams,
        draft_sampling: SamplingParams | None,
        tree: str,
        verifier: str,
        settings: TreeSettings,
    ) -> Plan:
        if find_tree(tree) is not None and self.drafter is None:
            raise ValueError(f"tree={tree!r} needs a drafter: load with ea_model_path or draft_model_path")
        draft_sampling = draft_sampling or SamplingParams(
            sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p
        )
        return Plan.resolve(tree, verifier, settings, SamplingTransform(sampling), SamplingTransform(draft_sampling))

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

    def eos_ids(self, given: int | list[int] | None = None) -> frozenset[int]:
        """The token ids that end a row: the given ones, else the model's, else the tokenizer's."""
        if given is None:
            given = self.target.model.generation_config.eos_token_id
        if given is None and self.tokenizer is not None:
            given = self.tokenizer.eos_token_id
        if given is None:
            return frozenset()
        return frozenset([given] if isinstance(given, int) else given)

    def _pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id if self.tokenizer is not None else None
        return pad if pad is not None else next(iter(self.eos_ids()), 0)


def _load_lm(path: str, dtype, device_map: str | None, **kwargs):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, device_map=device_map, **kwargs)
    return model


def check_same_tokenizer(target, draft) -> None:
    """ValueError when a draft model's tokenizer gives other ids than the target's."""
    ours, theirs = target.get_vocab(), draft.get_vocab()
    if ours != theirs:
        differing = sorted(set(ours.items()) ^ set(theirs.items()), key=lambda item: item[1])[:3]
        raise ValueError(
            f"draft and target tokenizers differ ({len(theirs)} and {len(ours)} tokens; for example {differing}): "
            "use a draft model of the same family"
        )


def _prompt_rows(input_ids: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
    """Rows of token ids without their padding."""
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or input_ids.dtype not in (torch.int64, torch.int32):
        found = (
            f"{input_ids.dtype} of shape {tuple(input_ids.shape)}"
            if isinstance(input_ids, Tensor)
            else type(input_ids).__name__
        )
        raise ValueError(f"input_ids: expected an integer tensor [batch, length], found {found}")
    if attention_mask is None:
        return input_ids.tolist()
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask {tuple(attention_mask.shape)} must have the shape of input_ids {tuple(input_ids.shape)}"
        )
    return [row[keep].tolist() for row, keep in zip(input_ids, attention_mask.bool())]
