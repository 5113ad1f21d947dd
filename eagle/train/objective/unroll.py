"""Training-time test: the head unrolled on its own output, as it will run while drafting (EAGLE-3, section 3.2).

The pair (feature f_t, token x_{t+1}) sits at position t. Drafting from origin t continues from the head's own hidden
state h^{s-1}_t with the next token x_{t+1+s}, at position t + s; step s predicts x_{t+2+s}:

    h^0_t = head( fuse(f_t),   x_{t+1}   | keys of step 0 at positions <= t )
    h^s_t = head( h^{s-1}_t,   x_{t+1+s} | keys of step 0 at positions <= t, and of steps 1..s at origin t )
    q^s_t = softmax( logits(h^s_t) )                      compared with p( . | x_{<= t+1+s} )

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

from eagle.modules.head import Attend, Eagle3Head


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """x [B, n, ...], index Int64[B, m] -> [B, m, ...]"""
    return x[torch.arange(len(x), device=x.device)[:, None], index]


def attend_from_origins(q: Tensor, keys: list[Tensor], values: list[Tensor], origins: Tensor) -> Tensor:
    """q [B, H, m, E] of the newest step -> [B, H, m, E].

    keys[0], values[0] [B, G, n, E] are those of step 0, seen up to each origin; keys[j], values[j] [B, G, m, E] of
    step j, seen by their own origin only.
    """
    batch, heads, m, size = q.shape
    groups, n = keys[0].shape[1:3]
    q = q.view(batch, groups, heads // groups, m, size) * size**-0.5
    shared = q @ keys[0].unsqueeze(2).transpose(-1, -2)
    hidden = torch.arange(n, device=q.device) > origins[:, :, None]
    shared = shared.masked_fill(hidden[:, None, None], float("-inf"))
    own = torch.stack([(q * key.unsqueeze(2)).sum(-1) for key in keys[1:]], dim=-1)
    weights = torch.cat([shared, own], dim=-1).softmax(dim=-1, dtype=torch.float32).to(values[0].dtype)
    out = weights[..., :n] @ values[0].unsqueeze(2)
    for j, value in enumerate(values[1:]):
        out = out + weights[..., n + j, None] * value.unsqueeze(2)
    return out.reshape(batch, heads, m, size)


class UnrolledAttention:
    """The keys and values of one unrolled pass, and the `attend` of each of its steps."""

    def __init__(self, origins: Tensor, opaque: bool = False):
        """`opaque`: torch.compile does not look into `attend`, whose lists are others in every batch."""
        self.origins = origins
        self.opaque = opaque
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def at(self, step: int) -> Attend:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if step == len(self.keys):  # not when gradient checkpointing replays the step
                self.keys.append(k)
                self.values.append(v)
            if step == 0:
                return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
            return attend_from_origins(q, [*self.keys[:step], k], [*self.values[:step], v], self.origins)

        return torch.compiler.disable(attend, recursive=False) if self.opaque else attend


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

    features [B, n, 3F] and tokens Int64[B, n] padded on the right; origins Int64[B, m]. Tokens past the end read as 0:
    what is predicted after them must be masked by the caller. `compiled` is the head's forward, compiled.
    """
    positions = torch.arange(tokens.shape[1], device=tokens.device)[None].expand_as(tokens)
    padded = pad(tokens, (0, steps + 1))
    attention, run = UnrolledAttention(origins, compiled is not None), compiled or head
    hidden = run(head.fuse(features), padded[:, 1 : tokens.shape[1] + 1], positions, attention.at(0))
    hidden = gather_rows(hidden, origins)
    yield hidden
    for step in range(1, steps):
        inputs = hidden, padded.gather(1, origins + step + 1), origins + step, attention.at(step)
        hidden = checkpoint(run, *inputs, use_reentrant=False) if checkpointing else run(*inputs)
        yield hidden
