"""The EAGLE-3 draft head: a decoder layer that reads the target's features (arXiv 2503.01840, section 3).

    g_t  = fc(low_t ; mid_t ; high_t)                       fuse the three feature taps
    a_t  = attention( input_layernorm(embed(x_{t+1})) ; hidden_norm(g_t) )      twice as wide on the way in
    h_t  = g_t + a_t,   then   h_t + mlp(post_attention_layernorm(h_t))
    q_t  = softmax( lm_head( norm(h_t) ) )                  the draft law of token t+2

While drafting, h_t (before `norm`) takes the place of g at the next position: the head runs on its own output.
Attention is passed in as a function, because decoding (cache in place, tree mask) and training (unrolled steps) differ
in nothing else.

Published variants, each a flag of `HeadConfig`, all off in the original:
    norm_before_fc        g_t = fc( input_norm(low_t ; mid_t ; high_t) )                     one norm over all taps
    fc_norm               g_t = fc( fc_norm.0(low_t) ; fc_norm.1(mid_t) ; fc_norm.2(high_t) )      one norm per tap
    norm_before_residual  h_t = hidden_norm(g_t) + a_t                                the residual is normed as well
    norm_output           the head continues from norm(h_t), and q_t = softmax( lm_head( norm(h_t) ) ) as before
    own_embeddings        `embed` reads the checkpoint's embed_tokens instead of the target's
    own_lm_head           off: `lm_head` is the target's output layer (full vocabulary only)
    qk_norm               one RMS norm over each head's query and one over each head's key, before rotation (Qwen3)
    qkv_bias, o_bias, mlp_bias      biases of these products (Qwen2: the first; Llama's attention_bias: the first two)
    num_hidden_layers     more layers: those after the first are ordinary decoder layers over h,
                          h + attention( input_layernorm(h) ), unless
    embeds_in_every_layer     every layer is built like the first and reads the embedding again
    sliding_windows       per layer: a query at position i sees positions above i - window only

Any number of taps. Shapes: B batch, n positions, D hidden, H heads, G key/value heads, E head size, F tap width,
A taps, V target vocabulary, Vd draft vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.nn.functional import rms_norm
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb

# attend(q [B, H, n, E], k [B, G, n, E], v [B, G, n, E], layer) -> [B, H, n, E]; rotary positions are already applied.
Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]

DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0}


@dataclass(frozen=True)
class HeadConfig:
    """What the head's shape depends on. `taps` are decoder layers whose *inputs* are read, counted from 0."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    draft_vocab_size: int
    taps: tuple[int, ...]
    target_hidden_size: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_parameters: dict | None = None
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_before_residual: bool = False
    norm_output: bool = False
    own_embeddings: bool = False
    own_lm_head: bool = True
    num_hidden_layers: int = 1
    embeds_in_every_layer: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    sliding_windows: tuple[int | None, ...] | None = None

    @property
    def has_vocabulary_map(self) -> bool:
        return self.draft_vocab_size != self.vocab_size

    def window_of(self, layer: int) -> int | None:
        """How many positions a query of this layer sees, its own included; None for all."""
        return self.sliding_windows[layer] if self.sliding_windows is not None else None

    def reads_embeddings(self, layer: int) -> bool:
        """Whether this layer's attention reads the token's embedding beside the hidden state, twice as wide."""
        return layer == 0 or self.embeds_in_every_layer

    def rotary_config(self) -> LlamaConfig:
        """What the rotary angles depend on. Raises ValueError where `rope_parameters` are incomplete."""
        rope = dict(self.rope_parameters or DEFAULT_ROPE)
        try:
            return LlamaConfig(
                hidden_size=self.num_attention_heads * self.head_dim,  # transformers wants a multiple of the heads
                num_attention_heads=self.num_attention_heads,
                head_dim=self.head_dim,
                max_position_embeddings=self.max_position_embeddings,
                rope_parameters=dict(rope),
            )
        except (KeyError, StrictDataclassError) as error:
            reason = " ".join(str(error.args[0]).split())
            raise ValueError(f"rope_parameters {rope}: {reason}") from error


def default_taps(num_layers: int) -> tuple[int, int, int]:
    """Layers 2, L//2, L-3: the taps of every published EAGLE-3 head that does not say otherwise."""
    return (2, num_layers // 2, num_layers - 3)


class Rotary(LlamaRotaryEmbedding):
    """Rotary angles whose frequencies stay float32 when the head is moved to half precision."""

    def _apply(self, fn, recurse: bool = True):
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, moved in list(self.named_buffers()):
            setattr(self, name, exact[name].to(moved.device))
        return self


class Norm(LlamaRMSNorm):
    """An RMS norm in one operator, where input and weight are of one dtype: always but while training in bfloat16."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        if hidden_states.dtype != self.weight.dtype:
            return super().forward(hidden_states)
        return rms_norm(hidden_states, hidden_states.shape[-1:], self.weight, self.variance_epsilon)


class HeadAttention(nn.Module):
    """Grouped-query attention over inputs of width 2 D, or D in layers that do not read the embedding."""

    def __init__(self, config: HeadConfig, layer: int = 0):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        width = config.hidden_size * (2 if config.reads_embeddings(layer) else 1)
        heads, groups = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, heads, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, groups, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, groups, bias=config.qkv_bias)
        self.o_proj = nn.Linear(heads, config.hidden_size, bias=config.o_bias)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm = Norm(config.head_dim, config.rms_norm_eps)
            self.k_norm = Norm(config.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, self.head_dim)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), *rotary)
        return self.o_proj(attend(q, k, v.transpose(1, 2), self.layer).transpose(1, 2).flatten(2))


class HeadMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: HeadConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class HeadLayer(nn.Module):
    """A decoder layer; its parameter names are those of the published checkpoints (`midlayer.*`, `layers.N.*`)."""

    def __init__(self, config: HeadConfig, layer: int = 0):
        super().__init__()
        self.norm_before_residual = config.norm_before_residual and layer == 0
        self.self_attn = HeadAttention(config, layer)
        self.mlp = HeadMLP(config)
        self.hidden_norm = None
        if config.reads_embeddings(layer):
            self.hidden_norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.input_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Norm(config.hidden_size, config.rms_norm_eps)

    def attention_input(self, hidden: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """g or h and embeddings [B, n, D] -> the residual [B, n, D] and what q, k and v are made of [B, n, 2 D or D]"""
        if self.hidden_norm is None:
            return hidden, self.input_layernorm(hidden)
        normed = self.hidden_norm(hidden)
        wide = torch.cat([self.input_layernorm(embedded), normed], dim=-1)
        return normed if self.norm_before_residual else hidden, wide

    def forward(self, hidden: Tensor, embedded: Tensor, rotary: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        residual, x = self.attention_input(hidden, embedded)
        hidden = residual + self.self_attn(x, rotary, attend)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Eagle3Head(nn.Module):
    """The draft head. What the checkpoint has not of its own, embeddings or output layer, is the target's (`bind`)."""

    def __init__(self, config: HeadConfig):
        super().__init__()
        self.config = config
        fused = len(config.taps) * config.target_hidden_size
        if config.norm_before_fc:
            self.input_norm = Norm(fused, config.rms_norm_eps)
        if config.fc_norm:
            norms = [Norm(config.target_hidden_size, config.rms_norm_eps) for _ in config.taps]
            self.fc_norm = nn.ModuleList(norms)
        self.fc = nn.Linear(fused, config.hidden_size, bias=False)
        self.midlayer = HeadLayer(config)
        if config.num_hidden_layers > 1:
            deeper = range(1, config.num_hidden_layers)
            self.layers = nn.ModuleDict({str(layer): HeadLayer(config, layer) for layer in deeper})
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        if config.own_lm_head:
            self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)
        if config.own_embeddings:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.has_vocabulary_map:
            self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.int64))
            self.register_buffer("t2d", torch.zeros(config.vocab_size, dtype=torch.bool))
        self.rotary = Rotary(config.rotary_config())
        self._bound: list[nn.Embedding] = []  # in lists: the target's weights are not the head's parameters
        self._bound_output: list[nn.Module] = []

    def bind_embeddings(self, embeddings: nn.Embedding) -> None:
        """Use the target's input embeddings; without effect on a head that has its own."""
        if not self.config.own_embeddings:
            self._bound = [embeddings]

    def bind_output(self, output: nn.Module) -> None:
        """Use the target's output layer, [..., D] -> [..., V]; without effect on a head that has its own."""
        if not self.config.own_lm_head:
            self._bound_output = [output]

    def bind(self, target) -> None:
        """Use what the head has not of its own from `target`, a `transformers` model."""
        self.bind_embeddings(target.get_input_embeddings())
        self.bind_output(target.get_output_embeddings())

    def all_layers(self) -> list[HeadLayer]:
        """The decoder layers in order."""
        return [self.midlayer, *(self.layers.values() if self.config.num_hidden_layers > 1 else ())]

    def output_layer(self) -> nn.Module:
        """The head's own output layer, or the target's. ValueError where it is the target's and none was bound."""
        if self.config.own_lm_head:
            return self.lm_head
        if not self._bound_output:
            raise ValueError("the head has no lm_head of its own: bind the target first (head.bind(target))")
        return self._bound_output[0]

    def embed(self, tokens: Tensor) -> Tensor:
        """Int64[...] -> [..., D]"""
        table = self.embed_tokens if self.config.own_embeddings else self._bound[0]
        return table(tokens).to(self.fc.weight.dtype)

    def support(self) -> Tensor | None:
        """Int64[Vd]: the target token of every draft token; None where the vocabularies are the same."""
        if not self.config.has_vocabulary_map:
            return None
        offsets = self.get_buffer("d2t")
        return offsets + torch.arange(len(offsets), device=offsets.device)

    def normed(self, features: Tensor) -> Tensor:
        """Concatenated taps [..., A F] as `fc` reads them, in its dtype."""
        features = features.to(self.fc.weight.dtype)
        if self.config.norm_before_fc:
            features = self.input_norm(features)
        if self.config.fc_norm:
            taps = features.chunk(len(self.config.taps), dim=-1)
            features = torch.cat([norm(tap) for norm, tap in zip(self.fc_norm, taps, strict=True)], dim=-1)
        return features

    def fuse(self, features: Tensor) -> Tensor:
        """Concatenated taps [..., A F] -> g [..., D]"""
        return self.fc(self.normed(features))

    def forward(self, hidden: Tensor, tokens: Tensor, position_ids: Tensor, attend: Attend) -> Tensor:
        """g or h [B, n, D], the *next* tokens Int64[B, n], positions Int64[B, n] -> h [B, n, D], which the next
        draft step continues from and `logits` reads.
        """
        embedded, rotary = self.embed(tokens), self.rotary(hidden, position_ids)
        for layer in self.all_layers():
            hidden = layer(hidden, embedded, rotary, attend)
        return self.norm(hidden) if self.config.norm_output else hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """h [..., D] -> draft logits [..., Vd]"""
        return self.output_layer()(hidden if self.config.norm_output else self.norm(hidden))
