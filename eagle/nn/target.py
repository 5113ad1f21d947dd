r"""A stock `transformers` causal LM as the target: read a prompt, score a tree, commit the accepted path.

A tree is scored in one forward. Node i sees the committed tokens and its ancestors, at position length + depth:

        0            tree mask      0 1 2 3 4 5 6      position - length
       / \               0         1 . . . . . .      0
      1   2               1         1 1 . . . . .      1
     / \   \             2         1 . 1 . . . .      1
    3   4   5             3         1 1 . 1 . . .      2
            |             4         1 1 . . 1 . .      2
            6             5         1 . 1 . . 1 .      2
                          6         1 . 1 . . 1 1      3

The auxiliary hidden states are the *inputs* of three decoder layers, the taps.

Shapes: B batch, N nodes, L prompt length, D hidden size, A = taps * D, V vocabulary, K depth.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eagle.nn import tree_attention as attention
from eagle.nn.decoder import LENGTH_DEPENDENT_ROPE, Decoder, known
from eagle.nn.kv_cache import CacheShape, CacheWindow, RowCache
from eagle.nn.packed import Product
from eagle.nn.windows import additive, masks, reach_of, tree_distances

SUPPORTED = {"llama", "qwen2", "qwen3", "mistral", "granite", "granitemoe", "mixtral", "qwen3_moe"} | {
    "gemma3_text",
    "gpt_oss",
    "llama4_text",
    "olmo2",
    "phi3",
    "smollm3",
}
# What a tree cannot be scored by, with the reason.
REFUSED = {
    "gemma3": "a model of pictures and text; load its text part (Gemma3ForCausalLM)",
    "llama4": "a model of pictures and text; load its text part (Llama4ForCausalLM)",
    "gemma4": "its layers share keys and values and have two head sizes, which one cache does not hold",
    "gemma4_text": "its layers share keys and values and have two head sizes, which one cache does not hold",
    **dict.fromkeys(
        ("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "granitemoehybrid"),
        "its linear-attention layers keep one running state, which a tree's rejected nodes cannot be taken out of",
    ),
    "deepseek_v3": "its compressed keys and values (MLA) are not held by this cache",
}
SINKS = {"gpt_oss"}  # attention with a learned share for no token, which only these attentions compute:
SINK_ATTENTION = {"eager", "grouped"}
ATTENTION = {"sdpa", "eager", "grouped", attention.NAME}  # what reads dense masks

PREFILL_CHUNK = 512  # tokens read behind cached ones in one forward: their mask has a row each


class Scores(NamedTuple):
    """Logits [B, n, V] and auxiliary hidden states [B, n, A] (None without taps) at every position of a forward."""

    logits: Tensor
    aux_states: Tensor | None


def states_to_keep(taps: Sequence[int]) -> list[int] | bool:
    """What to ask a model for as `output_hidden_states`, so that `layer_inputs` finds the inputs of these layers.

    A list chooses among layer inputs in transformers 5.24 and among layer outputs in 5.17: both are kept.
    The input of layer 0 is no layer's output, so all states are kept for it.
    """
    return sorted({*taps, *(tap - 1 for tap in taps)}) if min(taps) > 0 else True


def layer_inputs(states: Sequence[Tensor], taps: Sequence[int], layers: int, like: Tensor) -> Tensor:
    """The inputs [B, n, D] of the layers `taps`, concatenated [B, n, A], on the device of `like`.

    `states` has the inputs of `layers` layers and the last one's output, or the outputs alone (see `states_to_keep`).
    """
    shift = layers + 1 - len(states)
    if shift not in (0, 1):
        raise ValueError(f"the target returned {len(states)} hidden states; expected {layers + 1} or {layers}")
    return torch.cat([states[tap - shift].to(like.device) for tap in taps], dim=-1)


def check_supported(config) -> None:
    """ValueError for an architecture whose tree scoring has not been tested, or cannot be exact."""
    if config.model_type not in SUPPORTED:
        reason = REFUSED.get(config.model_type, "it is not known to score trees correctly")
        raise ValueError(
            f"target architecture {config.model_type!r} is not supported: {reason}; "
            f"known: {', '.join(sorted(SUPPORTED))}"
        )
    reach_of(config)


def check_attention(name: str, config) -> None:
    """ValueError for attention that would ignore a tree's mask, a window or attention sinks."""
    if name not in ATTENTION:
        raise ValueError(
            f"the target's attention is {name!r}, which is not known to read a tree's mask; call "
            f"model.set_attn_implementation with one of {', '.join(sorted(ATTENTION))}"
        )

    if name == attention.NAME and not reach_of(config).is_full:
        raise ValueError(
            f"attention {name!r} shows all committed tokens; for a target with windows take 'grouped' or 'sdpa'"
        )
    if config.model_type in SINKS and name not in SINK_ATTENTION:
        raise ValueError(
            f"attention {name!r} leaves out the sinks of {config.model_type}; "
            f"take {' or '.join(sorted(SINK_ATTENTION))}"
        )


def check_rope(config, because: str) -> None:
    """ValueError where the stock model would turn committed and drafted positions by the longest of a forward."""
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in LENGTH_DEPENDENT_ROPE:
        raise ValueError(
            f"rotary scaling {rope!r} depends on the longest position of a forward, so a tree would not be scored as "
            f"plain decoding is; it can be where the project's own decoder runs, which it does not here: {because}"
        )


def device_of(module: torch.nn.Module) -> torch.device:
    """Where a module computes; accelerate holds the weights of an offloaded one elsewhere between its calls."""
    place = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return next(module.parameters()).device if place is None else torch.device(place)


def cache_keyword(*forwards: Callable) -> str:
    """The name of the cache argument in the first of these forwards that names it: "cache" from transformers 5.24,
    "past_key_values" before.
    """
    for forward in forwards:
        names = inspect.signature(forward).parameters
        if "cache" in names:
            return "cache"
        if "past_key_values" in names:
            break
    return "past_key_values"


class CachedLM:
    """A causal LM with preallocated cache rows and a scratch area for tree nodes. Not thread-safe; a `fork` has rows of
    its own.

    cache     `RowCache`: which rows are in use, their lengths, what they hold
    A forward looks at `cache.window()` committed slots, a bucket of the longest row; masks hide the rest.

    Forwards go through `decoder` where the model is exactly as transformers made it, and else, or with decoder="stock",
    through the model itself: `decoder_because` says why. `refresh` decides, once per session.
    """

    def __init__(self, model, taps: tuple[int, ...] = (), decoder: str = "auto"):
        check_supported(model.config)
        if decoder not in ("auto", "stock"):
            raise ValueError(f"decoder={decoder!r}: expected 'auto' or 'stock'")
        self.model = model.eval().requires_grad_(False)
        self.config = model.config
        self._cache_keyword = cache_keyword(model.forward, model.model.forward)
        self.taps = taps
        self.reach = reach_of(self.config)
        layers = model.model.layers
        bad = [tap for tap in taps if not 0 <= tap < len(layers)]
        if bad:
            raise ValueError(f"feature taps {bad} are out of range: the target has layers 0 .. {len(layers) - 1}")
        self.device = device_of(model.get_input_embeddings())
        self.layer_devices = tuple(device_of(layer) for layer in layers)
        size = getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads
        shape = CacheShape(0, self.config.num_key_value_heads, size, 0, 0, self.layer_devices, self.model.dtype)
        self.cache = RowCache(shape, self.device)
        self._stock = decoder == "stock"
        self.decoder: Decoder | None = None
        self.decoder_because: str | None = None
        self._output: Product | None = None
        self.refresh()

    def fork(self) -> "CachedLM":
        """The same model, refreshed, with cache rows of its own, none allocated."""
        self.refresh()
        other = copy.copy(self)
        other.cache = self.cache.fork()
        return other

    def refresh(self) -> None:
        """See what became of the model since the last generation: weights, hooks, adapters, lm_head, attention.

        Raises ValueError for what would not score trees correctly.
        """
        check_attention(self.attention, self.config)
        mixed = "its layers have several kinds of masks" if self.reach.by_layer_type else None
        self.decoder_because = "decoder='stock'" if self._stock else mixed or known(self.model)
        if self.decoder_because:
            self.decoder = None
            check_rope(self.config, self.decoder_because)
        elif self.decoder is None or not self.decoder.is_current():
            self.decoder = Decoder(self.model)
        head = self.model.get_output_embeddings()
        if self._output is None or self._output.layers[0] is not head or not self._output.is_current():
            self._output = Product(head)

    def state(self) -> list[Tensor]:
        """The tensors that outlive a step: allocated before it, then read and written in place."""
        return [*self.cache.state(), *([] if self.decoder is None else self.decoder.state())]

    @property
    def vocab_size(self) -> int:
        return self.model.get_output_embeddings().weight.shape[0]

    @property
    def context_length(self) -> int:
        """Tokens that the model is for: with a long-context rope those before its angles change for all positions, with
        Llama 4's temperature tuning those before it begins.
        """
        rope = getattr(self.config, "rope_parameters", None) or {}
        longest = self.config.max_position_embeddings
        if getattr(self.config, "attn_temperature_tuning", False):  # Llama 4 counts forwards, not positions, beyond
            longest = min(longest, int(self.config.floor_scale) - 1)
        return rope.get("original_max_position_embeddings", longest) if rope.get("rope_type") == "longrope" else longest

    @property
    def attention(self) -> str:
        """The attention that the model is set to, by the name `transformers` has for it."""
        return self.config._attn_implementation  # noqa: SLF001  transformers has no public name for it

    def _forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Any,
        cache: CacheWindow,
        logits_at: Tensor | None = None,
        **options,
    ) -> Scores:
        if self.decoder is None:
            return self._stock_forward(tokens, positions, mask, cache, logits_at, **options)
        hidden, aux = self.decoder(tokens, positions, mask, cache, sorted(self.taps), **options)
        if aux is not None and list(self.taps) != sorted(self.taps):
            parts = dict(zip(sorted(self.taps), aux.chunk(len(self.taps), dim=-1)))
            aux = torch.cat([parts[tap] for tap in self.taps], dim=-1)
        if logits_at is not None:
            hidden = hidden.gather(1, logits_at[:, None, None].expand(-1, 1, hidden.shape[-1]))
        assert self._output is not None
        logits, divisor = self._output(hidden), self.decoder.constants.logits
        return Scores(logits if divisor == 1 else logits / divisor, aux)

    def _stock_forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Any,
        cache: CacheWindow,
        logits_at: Tensor | None,
        **options,
    ) -> Scores:
        """The user's model, as a whole: its hooks, its adapters, its own forward."""
        if self.taps:
            options["output_hidden_states"] = states_to_keep(self.taps)
        if logits_at is not None:
            options["logits_to_keep"] = logits_at
        out = self.model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=mask,
            use_cache=True,
            **{self._cache_keyword: cache},
            **options,
        )
        logits = out.logits
        if logits_at is not None:  # every row at every row's position
            rows = torch.arange(len(logits), device=logits.device)
            logits = logits[rows, rows].unsqueeze(1)
        aux = layer_inputs(out.hidden_states, self.taps, self.config.num_hidden_layers, logits) if self.taps else None
        return Scores(logits, aux)

    def _float_mask(self, visible: Tensor) -> Tensor:
        """Bool [B, n, slots] -> additive mask [B, 1, n, slots]."""
        return additive(visible, self.model.dtype)

    def _masks(self, visible: Tensor, positions: Tensor, first: Tensor | None = None) -> Any:
        """What a forward takes as its mask: `visible` Bool[B, n, slots], of which each kind of layer shows its reach.

        The slots are those of the tree, Bool[B, n, S] `first`, where there are any, and then committed ones.
        """
        both = visible if first is None else torch.cat([first, visible], dim=-1)
        if self.reach.is_full:
            return self._float_mask(both)
        distances = positions[:, :, None] - torch.arange(visible.shape[-1], device=visible.device)
        if first is not None:
            distances = torch.cat([tree_distances(first), distances], dim=-1)
        return masks(self.reach, both, distances, positions, self.model.dtype)

    def read_prompt(self, row: int, prompt: list[int], held: int = 0) -> Scores:
        """Read a prompt into a row, of which its first `held` tokens are kept. The row is not in use by that.

        Returns logits [1, 1, V] after the last token and aux states [1, L - held, A].
        """
        tokens = torch.tensor([prompt[held:]], device=self.device)
        with self.cache.only(row, held):
            scores = self.extend_in_chunks(tokens) if held or len(prompt) > PREFILL_CHUNK else self._prefill(tokens)
        self.cache.held[row], self.cache.ids[row] = len(prompt), list(prompt)
        return scores

    def _prefill(self, tokens: Tensor) -> Scores:
        """Read a prompt Int64[1, L] into an empty row: plain causal attention, without a mask where no layer has a
        window.
        """
        length, scratch = tokens.shape[1], self.cache.buffer.shape.scratch
        cache = CacheWindow(self.cache.buffer, first=scratch, stop=scratch + length, start=scratch)
        positions = torch.arange(length, device=self.device)[None]
        counts = torch.full_like(tokens[:, 0], length)
        causal = positions[:, None] <= positions[:, :, None]
        mask = None if self.reach.is_full else self._masks(causal, positions)
        scores = self._forward(tokens, positions, mask, cache, counts - 1)
        self.cache.advance(counts)
        self.cache.longest = length
        return scores

    def extend(self, tokens: Tensor, counts: Tensor) -> Scores:
        """Read `counts` Int64[B] more tokens per row, of Int64[B, n] padded on the right; logits [B, 1, V] after the
        last.
        """
        cache, n = self.cache, tokens.shape[1]
        scratch, window = cache.buffer.shape.scratch, cache.window(n)
        positions = cache.lengths[:, None] + torch.arange(n, device=self.device)
        view = CacheWindow(cache.buffer, first=scratch, stop=scratch + window, positions=positions)
        mask = self._masks(torch.arange(window, device=self.device) <= positions[:, :, None], positions)
        scores = self._forward(tokens, positions, mask, view, counts - 1)
        cache.advance(counts)
        cache.longest += n
        return scores

    def extend_in_chunks(self, tokens: Tensor) -> Scores:
        """Read Int64[1, n] behind what is cached, in parts, whose masks are small. Logits [1, 1, V] after the last
        token, aux states [1, n, A].
        """
        parts = [
            self.extend(part, torch.full_like(part[:, 0], part.shape[1])) for part in tokens.split(PREFILL_CHUNK, dim=1)
        ]
        aux = [part.aux_states for part in parts if part.aux_states is not None]
        return Scores(parts[-1].logits, torch.cat(aux, 1) if aux else None)

    def score(self, tokens: Tensor, depths: Tensor, ancestors: Tensor, start: int = 0) -> Scores:
        """Score tree nodes Int64[B, n] held in scratch places `start` .. `start + n - 1`; the cache length stays.

        depths Int64[B, n]; ancestors Bool[B, n, scratch]: which places each node sees (itself included).
        Returns logits [B, n, V] and aux states [B, n, A].
        """
        cache, window = self.cache, self.cache.window()
        stop, first = cache.buffer.shape.scratch + window, cache.first_node
        view = CacheWindow(cache.buffer, first=first, stop=stop, start=first + start)
        positions = cache.lengths[:, None] + depths
        if self.attention == attention.NAME:  # no mask for what every node of a row sees
            mask = self._float_mask(ancestors)
            return self._forward(tokens, positions, mask, view, prefix_lengths=cache.lengths)
        committed = torch.arange(window, device=self.device) < cache.lengths[:, None]
        committed = committed[:, None].expand(-1, tokens.shape[1], -1)
        return self._forward(tokens, positions, self._masks(committed, positions, ancestors), view)

    def score_tree(self, tokens: Tensor, depths: Tensor, ancestors: Tensor) -> Scores:
        """Score whole trees Int64[B, N], on any device: depths Int64[B, N], ancestors Bool[B, N, N]."""
        ancestors = torch.nn.functional.pad(ancestors, (0, self.cache.scratch - ancestors.shape[-1]))
        return self.score(tokens.to(self.device), depths.to(self.device), ancestors.to(self.device))

    def commit(self, nodes: Tensor, counts: Tensor) -> None:
        """Append scratch nodes Int64[B, K+1] (first `counts` Int64[B] of each row are real) to the committed tokens."""
        nodes, counts = nodes.to(self.device), counts.to(self.device)
        positions = self.cache.lengths[:, None] + torch.arange(nodes.shape[1], device=self.device)
        self.cache.buffer.commit(nodes + self.cache.first_node, positions)
        self.cache.advance(counts)
