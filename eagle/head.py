"""The EAGLE-3 draft head: one decoder layer that reads the target's features (arXiv 2503.01840, section 3).

    g_t  = fc(low_t ; mid_t ; high_t)                       fuse the three feature taps
    a_t  = attention( input_layernorm(embed(x_{t+1})) ; hidden_norm(g_t) )      twice as wide on the way in
    h_t  = g_t + a_t,   then   h_t + mlp(post_attention_layernorm(h_t))
    q_t  = softmax( lm_head( norm(h_t) ) )                  the draft law of token t+2

While drafting, h_t (before `norm`) takes the place of g at the next position: the head runs on its own output.
Attention is passed in as a function, because decoding (cache in place, tree mask) and training (unrolled steps) differ
in nothing else.

Shapes: B batch, n positions, D hidden, H heads, G key/value heads, E head size, F tap width, V target vocabulary,
Vd draft vocabulary.
"""
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb

# attend(q [B, H, n, E], k [B, G, n, E], v [B, G, n, E]) -> [B, H, n, E]; rotary positions are already applied.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


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

    @property
    def has_vocabulary_map(self) -> bool:
        return self.draft_vocab_size != self.vocab_size

    def rotary_config(self) -> LlamaConfig:
        return LlamaConfig(
            hidden_size=self.hidden_size,
            num_attention_heads=self.num_attention_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.max_position_embeddings,
            rope_parameters=self.rope_parameters or {"rope_type": "default", "rope_theta": 10000.0},
        )


def default_taps(num_layers: int) -> tuple[int, int, int]:
    """Layers 2, L//2, L-3: the taps of every published EAGLE-3 head that does not say otherwise."""
    return (2, num_layers // 2, num_layers - 3)


class HeadAttention(nn.Module):
    """Grouped-query attention over inputs of width 2 D."""

    def __init__(self, config: HeadConfig):
        super().__init__()
        self.head_dim = config.head_dim
        wide = 2 * config.hidden_size
        self.q_proj = nn.Linear(wide, config.num_attention_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(wide, config.num_key_value_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(wide, config.num_key_value_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        def heads(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

        q, k, v = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        q, k = apply_rotary_pos_emb(q, k, *rotary)
        return self.o_proj(attend(q, k, v).transpose(1, 2).flatten(2))


class HeadMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: HeadConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class HeadLayer(nn.Module):
    """The one decoder layer; its parameter names are those of the published checkpoints (`midlayer.*`)."""

    def __init__(self, config: HeadConfig):
        super().__init__()
        self.self_attn = HeadAttention(config)
        self.mlp = HeadMLP(config)
        self.hidden_norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden: Tensor, embedded: Tensor, rotary: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        wide = torch.cat([self.input_layernorm(embedded), self.hidden_norm(hidden)], dim=-1)
        hidden = hidden + self.self_attn(wide, rotary, attend)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Eagle3Head(nn.Module):
    """The draft head. Embeddings come from the target (`bind_embeddings`) unless the checkpoint has its own."""

    def __init__(self, config: HeadConfig):
        super().__init__()
        self.config = config
        self.fc = nn.Linear(len(config.taps) * config.target_hidden_size, config.hidden_size, bias=False)
        self.midlayer = HeadLayer(config)
        self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)
        if config.has_vocabulary_map:
            self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.int64))
            self.register_buffer("t2d", torch.zeros(config.vocab_size, dtype=torch.bool))
        self.rotary = LlamaRotaryEmbedding(config.rotary_config())
        self._embeddings: list[nn.Embedding] = []  # in a list: the target's weights are not the head's parameters

    def bind_embeddings(self, embeddings: nn.Embedding) -> None:
        self._embeddings = [embeddings]

    def embed(self, tokens: Tensor) -> Tensor:
        """Int64[...] -> [..., D]"""
        return self._embeddings[0](tokens).to(self.fc.weight.dtype)

    def support(self) -> Tensor | None:
        """Int64[Vd]: the target token of every draft token; None where the vocabularies are the same."""
        if not self.config.has_vocabulary_map:
            return None
        return self.d2t + torch.arange(self.config.draft_vocab_size, device=self.d2t.device)

    def fuse(self, features: Tensor) -> Tensor:
        """Concatenated taps [..., 3F] -> g [..., D]"""
        return self.fc(features.to(self.fc.weight.dtype))

    def forward(self, hidden: Tensor, tokens: Tensor, position_ids: Tensor, attend: Attend) -> Tensor:
        """g or h [B, n, D], the *next* tokens Int64[B, n], positions Int64[B, n] -> h [B, n, D]"""
        return self.midlayer(hidden, self.embed(tokens), self.rotary(hidden, position_ids), attend)

    def logits(self, hidden: Tensor) -> Tensor:
        """h [..., D] -> draft logits [..., Vd]"""
        return self.lm_head(self.norm(hidden))
