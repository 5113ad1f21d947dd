"""The decoder of Llama and its kin: what a target runs instead of the stock model where the two are the same.

    x = rms_norm(h);   q, k, v = W_qkv x;   q, k = rotate(q, k);   h += W_o attention(q, keys, values)
    x = rms_norm(h);   h += W_down( silu(W_gate x) * W_up x )

A family differs from Llama in what is multiplied in (`Constants`), in biases, or in norms of q and k. Weights are the
stock model's own: on a GPU W_q, W_k and W_v lie in one buffer of which the stock parameters are views, on a CPU they
are read where they lie. Few rows on a CPU go through all layers in one native call (`eagle.nn.native`), which equals
`_layer`. `known` decides what may run here: whatever is not exactly as transformers made it runs in the stock model.

Shapes: B batch, n positions, D hidden, H heads, G key/value heads, E head size, A = taps * D, P positions of the table.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, rms_norm, scaled_dot_product_attention, silu

from eagle.nn import native
from eagle.nn.grouped_attention import attend_grouped
from eagle.nn.kv_cache import CacheWindow
from eagle.nn.native.calls import LINEAR, NORMS, LayerShape, LayerStack, Slots, usable
from eagle.nn.packed import Product, copies_fit
from eagle.nn.tree_attention import split_prefix

FAMILIES = {"llama", "qwen2", "qwen3", "mistral", "granite"}
ROPE = {"default", "linear", "llama3", "yarn"}  # angles depend on the position alone
LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}  # ... below the original context length; the target goes no further
PLAIN = (nn.Linear, nn.Embedding, nn.ModuleList)
LOOKING = "transformers.utils.output_capturing"  # hooks that keep what a user asks for and change nothing
PARTS = {f"{name}.weight" for name in NORMS if name != "hidden_norm"} | {
    f"{name}.{part}" for name in LINEAR for part in ("weight", "bias")
}


class Constants(NamedTuple):
    """What embeddings, attention scores, the output of a block, and logits (divided) are multiplied with."""

    embedding: float
    scores: float
    block: float
    logits: float


def constants(config: Any, head_dim: int) -> Constants:
    if config.model_type != "granite":
        return Constants(1.0, head_dim**-0.5, 1.0, 1.0)
    factors = (config.embedding_multiplier, config.attention_multiplier, config.residual_multiplier)
    return Constants(*factors, config.logits_scaling)


# --- what is known ---------------------------------------------------------------------------------------------------


def known(model: Any) -> str | None:
    """Why this model may differ from what is written here; None: it does not."""
    config = model.config
    if config.model_type not in FAMILIES:
        return f"{config.model_type!r} is none of {', '.join(sorted(FAMILIES))}"
    home = f"transformers.models.{config.model_type}.modeling_{config.model_type}"
    reason = next((reason for name, module in model.named_modules() if (reason := _changed(name, module, home))), None)
    if reason or (reason := _layers_differ(model)):
        return reason
    rope = model.model.rotary_emb.rope_type
    if rope not in ROPE | LENGTH_DEPENDENT_ROPE:
        return f"rope_type={rope!r}"
    return None if config.hidden_act == "silu" else f"hidden_act={config.hidden_act!r}"


def _changed(name: str, module: nn.Module, home: str) -> str | None:
    """Why a module is not as transformers made it."""
    kind, own, name = type(module), vars(module), name or "the model"
    if kind not in PLAIN and kind.__module__ not in (home, "transformers.activations"):
        return f"{name} is a {kind.__module__}.{kind.__qualname__}"
    if "forward" in own or (kind is not nn.ModuleList and kind.forward.__module__ != kind.__module__):
        return f"the forward of {name} was replaced"
    hooks = [*own["_forward_hooks"].values(), *own["_forward_pre_hooks"].values()]
    if "_hf_hook" in own or any(getattr(hook, "__module__", None) != LOOKING for hook in hooks):
        return f"{name} has a hook"
    odd = [key for key, tensor in own["_parameters"].items() if tensor is not None and type(tensor) is not nn.Parameter]
    return f"{name}.{odd[0]} is no plain parameter" if odd else None


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    """By name, as `named_parameters`, in a third of its time."""
    return {
        f"{name}.{key}": tensor
        for name, module in model.named_modules()
        for key, tensor in vars(module)["_parameters"].items()
        if tensor is not None
    }


def _layers_differ(model: Any) -> str | None:
    """Why the layers are not those of `_layer`, all of one dtype on one device."""
    found = _parameters(model)
    if len({(tensor.dtype, tensor.device) for tensor in found.values()}) > 1:
        return "its weights are of several dtypes or on several devices"
    names = {name.split(".", 3)[3] for name in found if name.startswith("model.layers.")} - PARTS
    return f"its layers have {', '.join(sorted(names))}" if names else None


# --- the decoder -----------------------------------------------------------------------------------------------------


class Layer:
    """The weights of one stock layer, and its four products. copies: see `Product`."""

    def __init__(self, stock: Any, copies: bool):
        attention, mlp = stock.self_attn, stock.mlp
        self.input_norm, self.post_norm = stock.input_layernorm.weight, stock.post_attention_layernorm.weight
        norms = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        self.q_norm, self.k_norm = (None if norm is None else norm.weight for norm in norms)
        self.qkv = Product(attention.q_proj, attention.k_proj, attention.v_proj, copies=copies)
        self.o, self.down = Product(attention.o_proj, copies=copies), Product(mlp.down_proj, copies=copies)
        self.gate_up = Product(mlp.gate_proj, mlp.up_proj, copies=copies)

    @property
    def products(self) -> tuple[Product, ...]:
        return self.qkv, self.o, self.gate_up, self.down


class Decoder:
    """The layers of a `known` model, from tokens to the normed hidden state."""

    def __init__(self, model: Any):
        config = self.config = model.config
        self.stock = model.model
        self.made_of = list(_parameters(self.stock).values())
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.constants, self.eps = constants(config, self.head_dim), config.rms_norm_eps
        copies = self.made_of[0].dtype != torch.float32 and copies_fit(self.made_of)  # in float32 steps gain nothing
        self.layers = [Layer(layer, copies) for layer in self.stock.layers]
        self.table: Tensor | None = None
        self.native = self._native_layers() if usable(*self.made_of) else None

    def _native_layers(self) -> LayerStack:
        shape = LayerShape(
            self.config.hidden_size, self.heads, self.groups, self.head_dim, self.config.intermediate_size,
            self.eps, self.constants.scores, self.constants.block,
        )  # fmt: skip
        layers = [dict(layer.named_parameters()) for layer in self.stock.layers]
        return LayerStack(layers, shape, self.stock.norm.weight)

    def is_current(self) -> bool:
        """Whether the stock model still has the tensors this was made of, where they were, and no copy is stale."""
        found = list(_parameters(self.stock).values())
        if len(found) != len(self.made_of) or any(a is not b for a, b in zip(found, self.made_of)):
            return False
        if self.native is not None and not self.native.is_current():
            return False
        return all(product.is_current() for layer in self.layers for product in layer.products)

    def state(self) -> list[Tensor]:
        """Tensors of its own whose addresses recorded steps depend on."""
        own = [] if self.table is None else [self.table]
        return own + [tensor for layer in self.layers for product in layer.products for tensor in product.state()]

    def reserve(self, positions: int) -> None:
        """Make the table of angles, Float32[P, 2 E], long enough: cosines; sines, negative in their first half."""
        rotary, half = self.stock.rotary_emb, self.head_dim // 2
        if self.table is not None and len(self.table) >= positions:
            return
        fixed = rotary.original_inv_freq if rotary.rope_type in LENGTH_DEPENDENT_ROPE else rotary.inv_freq
        angles = torch.arange(positions, device=fixed.device)[:, None].float() * fixed.float()
        cos, sin = angles.cos() * rotary.attention_scaling, angles.sin() * rotary.attention_scaling
        self.table = torch.cat([cos, cos, -sin, sin], dim=-1).to(self.made_of[0].device)
        assert half * 4 == self.table.shape[1]

    @torch.no_grad()
    def __call__(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        cache: CacheWindow,
        taps: Sequence[int] = (),
        prefix_lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens and positions Int64[B, n] -> the normed hidden state [B, n, D], and the inputs of the layers `taps`
        (ascending) [B, n, A].

        mask: additive [B or 1, 1, n, slots seen]; None reads a prompt into an empty cache. prefix_lengths Int64[B]: the
        mask is of the scratch slots alone, before this many committed ones (`eagle.nn.tree_attention`).
        """
        self.reserve(cache.buffer.shape.capacity + cache.buffer.shape.scratch)
        assert self.table is not None
        hidden = self.stock.embed_tokens(tokens)
        if self.constants.embedding != 1:
            hidden = hidden * self.constants.embedding
        angles = embedding(positions, self.table)
        few = self.native is not None and tokens.numel() <= native.max_rows()
        if few and mask is not None and prefix_lengths is None:
            assert self.native is not None
            return self.native.run(hidden, angles, Slots.of(cache, tokens, mask), taps)
        cos, sin = angles.unsqueeze(2).chunk(2, dim=-1)
        kept = []
        for index, layer in enumerate(self.layers):
            kept += [hidden] * taps.count(index)
            hidden = self._layer(layer, hidden, cos, sin, cache.layers[index], mask, prefix_lengths)
        output = rms_norm(hidden, hidden.shape[-1:], self.stock.norm.weight, self.eps)
        return output, torch.cat(kept, dim=-1) if taps else None

    def _layer(
        self,
        layer: Layer,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: Any,
        mask: Tensor | None,
        prefix_lengths: Tensor | None,
    ) -> Tensor:
        """h [B, n, D] through one layer; `cache.update` keeps keys and values and returns all that are seen."""
        qkv = layer.qkv(rms_norm(hidden, hidden.shape[-1:], layer.input_norm, self.eps))
        q, k, v = qkv.unflatten(-1, (-1, self.head_dim)).split([self.heads, self.groups, self.groups], dim=2)
        if layer.q_norm is not None:
            q = rms_norm(q, q.shape[-1:], layer.q_norm, self.eps)
            k = rms_norm(k, k.shape[-1:], layer.k_norm, self.eps)
        q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
        keys, values = cache.update(k.transpose(1, 2), v.transpose(1, 2))
        attended = self._attend(q.transpose(1, 2), keys, values, mask, prefix_lengths)
        hidden = self._added(hidden, layer.o(attended.transpose(1, 2).flatten(2)))
        gate, up = layer.gate_up(rms_norm(hidden, hidden.shape[-1:], layer.post_norm, self.eps)).chunk(2, dim=-1)
        return self._added(hidden, layer.down(silu(gate).mul_(up)))

    def _added(self, hidden: Tensor, block: Tensor) -> Tensor:
        return hidden + block if self.constants.block == 1 else hidden + block * self.constants.block

    def _attend(
        self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, prefix_lengths: Tensor | None
    ) -> Tensor:
        """q [B, H, n, E] -> [B, H, n, E]"""
        scale = self.constants.scores
        if mask is None:
            return scaled_dot_product_attention(q, keys, values, is_causal=q.shape[2] > 1, scale=scale, enable_gqa=True)
        if prefix_lengths is None:
            return attend_grouped(q, keys, values, mask, scale)
        attended, _ = split_prefix(None, q, keys, values, mask, scale, prefix_lengths=prefix_lengths)
        return attended.transpose(1, 2)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, n, heads, E] turned by angles Float32[B, n, 1, E], in float32 as the native layers do."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)
