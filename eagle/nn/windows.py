r"""Which of the tokens before it a layer of the target shows a query, and the masks that say so: the one place.

    full      all of them                                     Llama and most others
    sliding   positions above p - window, for a query at p    Gemma 3, gpt-oss, Mistral, Phi 3, ...
    chunked   positions in p's chunk of so many               Llama 4

The cache holds every token, whatever the windows: a ring would have forgotten what a rejected branch pushed out. A
tree's node sees those of its ancestors and of the committed tokens that lie within reach of its own position:

        0          window 3, three tokens committed at positions 0 1 2
       / \          node 0 at 3 sees     1 2 | 0            node 3 at 5 sees      | 0 1 3
      1   2         node 1 at 4 sees       2 | 0 1
     /              node 2 at 4 sees       2 | 0 2
    3

Parents come before children, so along a path the distance to an ancestor is the number of ancestors in later places.

Shapes: B batch, n queries, S scratch places, C committed slots.
"""

from typing import NamedTuple

import torch
from torch import Tensor

WINDOW_EVERYWHERE = {"mistral", "mixtral", "phi3", "qwen3_moe"}  # a window in the config is one in every layer
KINDS = ("full_attention", "sliding_attention", "chunked_attention")


class Reach(NamedTuple):
    """What the kinds of layers of a model show; `by_layer_type`: the model wants a mask per kind, not one for all."""

    kinds: tuple[str, ...]
    window: int | None = None
    chunk: int | None = None
    by_layer_type: bool = False

    @property
    def is_full(self) -> bool:
        """Whether every layer shows everything."""
        return self.kinds == ("full_attention",)

    def of(self, kind: str, distances: Tensor, positions: Tensor) -> Tensor | None:
        """Bool [B, n, slots]: what lies within reach, of keys `distances` before queries at `positions` Int64[B, n].

        None for all.
        """
        if kind == "sliding_attention" and self.window is not None:
            return distances < self.window
        if kind == "chunked_attention" and self.chunk is not None:
            return distances <= positions[:, :, None] % self.chunk
        return None


def reach_of(config) -> Reach:
    """The reach of a model's layers. Raises ValueError for a kind of layer that is not known."""
    window, types = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if config.model_type in WINDOW_EVERYWHERE:
        return Reach(("full_attention",)) if window is None else Reach(("sliding_attention",), window)
    kinds = tuple(sorted(set(types or ["full_attention"])))
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ValueError(
            f"target with layers of the kind {', '.join(unknown)} (layer_types): what such a layer remembers of "
            f"rejected nodes cannot be taken back; known kinds: {', '.join(KINDS)}"
        )
    return Reach(kinds, window, getattr(config, "attention_chunk_size", None), kinds != ("full_attention",))


def tree_distances(ancestors: Tensor) -> Tensor:
    """ancestors Bool[B, n, S], each node itself included -> Int64[B, n, S]: how far above the node an ancestor lies."""
    return ancestors.long().flip(-1).cumsum(-1).flip(-1) - 1


def masks(
    reach: Reach, visible: Tensor, distances: Tensor, positions: Tensor, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """Additive masks [B, 1, n, slots] from `visible` Bool[B, n, slots], one per kind of layer, or one for all."""
    found = {}
    for kind in reach.kinds:
        near = reach.of(kind, distances, positions)
        found[kind] = additive(visible if near is None else visible & near, dtype)
    return found if reach.by_layer_type else found[reach.kinds[0]]


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Bool [B, n, slots] -> additive mask [B, 1, n, slots] (a bool mask is silently wrong with eager attention)."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min).unsqueeze(1)
