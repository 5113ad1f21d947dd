"""Training-time test: the head unrolled on its own output, as it will run while drafting (EAGLE-3, section 3.2).

The pair (feature f_t, token x_{t+1}) sits at position t. Drafting from origin t continues from the head's own hidden
state h^{s-1}_t with the next token x_{t+1+s}, at position t + s; step s predicts x_{t+2+s}:

    h^0_t = head( fuse(f_t),   x_{t+1}   | keys of step 0 at positions <= t )
    h^s_t = head( h^{s-1}_t,   x_{t+1+s} | keys of step 0 at positions <= t, and of steps 1..s at origin t )
    q^s_t = softmax( logits(h^s_t) )                      compared with p( . | x_{<= t+1+s} )

Of a head with several layers each keeps its own keys; a layer with a sliding window sees, of these, the positions above
its query's own (t + s) minus the window.

So at step s the causal part stays where it was, and every origin sees its own drafted keys and nobody else's. Four
origins, query at step 2 (rows: origin t; columns: keys of step 0 | of step 1 | of step 2):

    t = 0     1 . . .  |  1 . . .  |  1 . . .
    t = 1     1 1 . .  |  . 1 . .  |  . 1 . .
    t = 2     1 1 1 .  |  . . 1 .  |  . . 1 .
    t = 3     1 1 1 1  |  . . . 1  |  . . . 1

Origins from which nothing is to be predicted (the prompt's) are computed at step 0 only, where others read their keys.

Shapes: B batch, n tokens, m origins, H heads, G key/value heads, E head size, D hidden.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from eagle.nn.head import Attend, Eagle3Head, HeadConfig


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """x [B, n, ...], index Int64[B, m] -> [B, m, ...]"""
    return x[torch.arange(len(x), device=x.device)[:, None], index]


def attend_from_origins(
    q: Tensor, keys: list[Tensor], values: list[Tensor], origins: Tensor, window: int | None = None
) -> Tensor:
    """q [B, H, m, E] of the newest step -> [B, H, m, E].

    keys[0], values[0] [B, G, n, E] are those of step 0, seen up to each origin; keys[j], values[j] [B, G, m, E] of
    step j, seen by their own origin only. With a `window`, positions up to the query's own minus the window are unseen.
    """
    batch, heads, m, size = q.shape
    (groups, n), step = keys[0].shape[1:3], len(keys) - 1
    q = q.view(batch, groups, heads // groups, m, size) * size**-0.5
    shared = q @ keys[0].unsqueeze(2).transpose(-1, -2)
    hidden = _unseen(torch.arange(n, device=q.device), origins[:, :, None], step, window)
    shared = shared.masked_fill(hidden[:, None, None], float("-inf"))
    seen = [j for j in range(1, step + 1) if window is None or step - j < window]
    own = [(q * keys[j].unsqueeze(2)).sum(-1) for j in seen]
    weights = torch.cat([shared, torch.stack(own, dim=-1)], dim=-1)
    weights = weights.softmax(dim=-1, dtype=torch.float32).to(values[0].dtype)
    out = weights[..., :n] @ values[0].unsqueeze(2)
    for place, j in enumerate(seen):
        out = out + weights[..., n + place, None] * values[j].unsqueeze(2)
    return out.reshape(batch, heads, m, size)


def _unseen(positions: Tensor, origins: Tensor, step: int, window: int | None) -> Tensor:
    """Bool: the `positions` of step 0 that queries of `origins` at `step` do not see."""
    later = positions > origins
    return later if window is None else later | (positions <= origins + step - window)


class UnrolledAttention:
    """The keys and values of one unrolled pass, by layer and step, and the `attend` of each of its steps."""

    def __init__(self, origins: Tensor, config: HeadConfig, opaque: bool = False):
        """`opaque`: torch.compile does not look into `attend`, whose lists are others in every batch."""
        self.origins, self.config, self.opaque = origins, config, opaque
        self.keys: list[list[Tensor]] = [[] for _ in range(config.num_hidden_layers)]
        self.values: list[list[Tensor]] = [[] for _ in range(config.num_hidden_layers)]

    def at(self, step: int) -> Attend:
        def attend(q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
            keys, values, window = self.keys[layer], self.values[layer], self.config.window_of(layer)
            if step == len(keys):  # not when gradient checkpointing replays the step
                keys.append(k)
                values.append(v)
            if step == 0:
                return attend_causally(q, k, v, window)
            return attend_from_origins(q, [*keys[:step], k], [*values[:step], v], self.origins, window)

        return torch.compiler.disable(attend, recursive=False) if self.opaque else attend


def attend_causally(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """q [B, H, n, E], k and v [B, G, n, E] -> [B, H, n, E]: every position sees itself and those before it, at most
    `window` of them.
    """
    grouped = q.shape[1] != k.shape[1]
    if window is None:
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    at = torch.arange(q.shape[2], device=q.device)
    seen = ~_unseen(at, at[:, None], 0, window)
    return scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=grouped)


def unroll(
    head: Eagle3Head,
    features: Tensor,
    tokens: Tensor,
    origins: Tensor,
    steps: int,
    checkpointing: bool = False,
    compiled: Callable | None = None,
) -> Iterator[Tensor]:
    """Hidden states h^s at the origins, [B, m, D], for s = 0 .. steps - 1.

    features [B, n, A F] and tokens Int64[B, n] padded on the right; origins Int64[B, m]. Tokens past the end read as 0:
    what is predicted after them must be masked by the caller. `compiled` is the head's forward, compiled.
    """
    positions = torch.arange(tokens.shape[1], device=tokens.device)[None].expand_as(tokens)
    padded = pad(tokens, (0, steps + 1))
    attention, run = UnrolledAttention(origins, head.config, compiled is not None), compiled or head
    hidden = run(head.fuse(features), padded[:, 1 : tokens.shape[1] + 1], positions, attention.at(0))
    hidden = gather_rows(hidden, origins)
    yield hidden
    for step in range(1, steps):
        inputs = hidden, padded.gather(1, origins + step + 1), origins + step, attention.at(step)
        hidden = checkpoint(run, *inputs, use_reentrant=False) if checkpointing else run(*inputs)
        yield hidden
