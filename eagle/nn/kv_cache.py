"""Keys and values in one buffer that is allocated once and written in place.

    slot     0 ........ S-1 | S ............ S+C-1
             scratch        | committed
             tree nodes     | token t of the sequence sits at slot S + t

The tree being scored always lies in the first S slots (a smaller tree in the last of them, beside the committed
tokens, so that it sees no more slots than it needs), so every step writes to the same addresses whatever the sequence
length, and rows of a batch may differ in length. `commit` copies the accepted nodes behind the committed
tokens. Slots at or past a row's length hold garbage; attention masks never show them.

A forward looks at a bucket of committed slots, the length rounded up, so that shapes repeat from step to step:

    SMALLEST = 64       length  1 .. 64  65 .. 128 ... 961 .. 1024 | 1025 .. 1152 ... 1921 .. 2048 | 2049 .. 2304 ...
                        bucket       64        128            1024            1152           2048            2304

Multiples of the smallest granule up to sixteen of them, then eight buckets for every doubling of the length: a
generation sees few shapes, and at most an eighth of a long bucket is padding, which masks hide.

Shapes: Y layers, B batch, G key/value heads, S scratch slots, C committed slots, E head size, n new positions.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from eagle.nn.memory import check_fits

# Slots by device type: on a CPU padding costs time, on a GPU every new shape costs a capture.
SMALLEST = {"cpu": 64, "cuda": 256}
DEFAULT_SMALLEST = 256


def round_up(length: int, device: torch.device) -> int:
    """`length` as a multiple of the smallest granule: what a cache is allocated with."""
    granule = SMALLEST.get(device.type, DEFAULT_SMALLEST)
    return max(-(-length // granule), 1) * granule


def bucket(length: int, device: torch.device) -> int:
    """The slots looked at for `length` committed tokens: at least `length`, at most an eighth or one granule more."""
    granule = max(SMALLEST.get(device.type, DEFAULT_SMALLEST), 1 << max((length - 1).bit_length() - 4, 0))
    return max(-(-length // granule), 1) * granule


@dataclass(frozen=True)
class CacheShape:
    """`capacity` is C, `scratch` is S; `devices` holds one device per layer."""

    batch: int
    kv_heads: int
    head_dim: int
    scratch: int
    capacity: int
    devices: tuple[torch.device, ...]
    dtype: torch.dtype

    def bytes_on(self, device: torch.device) -> int:
        """What the layers of one device take: keys and values of every slot."""
        slots = self.batch * (self.scratch + self.capacity)
        return 2 * self.devices.count(device) * slots * self.kv_heads * self.head_dim * self.dtype.itemsize

    def fits(self, other: "CacheShape") -> bool:
        """Whether a buffer of this shape can serve a request for `other` as it is."""
        return (
            (self.batch, self.kv_heads, self.head_dim, self.devices, self.dtype)
            == (other.batch, other.kv_heads, other.head_dim, other.devices, other.dtype)
            and self.scratch >= other.scratch
            and self.capacity >= other.capacity
        )


class KVBuffer:
    """The storage. Layers that share a device share one tensor [Y, 2, B, G, S + C, E].

    Raises ValueError when a device has less free memory than its layers need.
    """

    def __init__(self, shape: CacheShape):
        self.shape = shape
        slots = shape.scratch + shape.capacity
        self.stores: list[Tensor] = []
        self.layers: list[Tensor] = []  # per layer: [2, B, G, S + C, E], a view into its store
        by_device = {device: shape.devices.count(device) for device in shape.devices}
        views = {}
        for device in by_device:
            check_fits(shape.bytes_on(device), device, f"the key/value cache of {shape.batch} rows x {slots} slots")
        for device, count in by_device.items():
            store = torch.zeros(
                count, 2, shape.batch, shape.kv_heads, slots, shape.head_dim, dtype=shape.dtype, device=device
            )
            self.stores.append(store)
            views[device] = iter(store)
        self.layers = [next(views[device]) for device in shape.devices]

    def copy_committed(self, other: "KVBuffer", count: int) -> None:
        """Take over the first `count` committed tokens of a buffer with the same layers and rows."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            source = theirs[:, :, :, other.shape.scratch : other.shape.scratch + count]
            mine[:, :, :, self.shape.scratch : self.shape.scratch + count] = source

    def keep_rows(self, rows: list[int]) -> None:
        """Go on with these rows (ascending) as rows 0, 1, ...: moved in place, no memory is allocated or freed."""
        for store in self.stores:
            for place, row in enumerate(rows):
                if place != row:
                    store[:, :, place] = store[:, :, row]
        self.layers = [layer[:, : len(rows)] for layer in self.layers]
        self.shape = replace(self.shape, batch=len(rows))

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Write [B, G, n, E] at slots start .. start + n - 1 of every row."""
        stop = start + keys.shape[2]
        self.layers[layer][0, :, :, start:stop] = keys
        self.layers[layer][1, :, :, start:stop] = values

    def write_pair(self, layer: int, start: int, pair: Tensor) -> None:
        """`write` of keys and values in one tensor [2, B, G, n, E], in one copy."""
        self.layers[layer][:, :, :, start : start + pair.shape[3]] = pair

    def write_rows(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write [B, G, n, E] at committed positions Int64[B, n], which may differ from row to row."""
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        slots, (store_keys, store_values) = positions + self.shape.scratch, self.layers[layer]
        store_keys[rows, :, slots] = keys.transpose(1, 2)  # by index: scatter_ in bfloat16 is a hundred times slower
        store_values[rows, :, slots] = values.transpose(1, 2)

    def view(self, layer: int, first: int, stop: int) -> tuple[Tensor, Tensor]:
        """Keys and values at slots first .. stop - 1, each [B, G, stop - first, E], without a copy."""
        window = self.layers[layer][:, :, :, first:stop]
        return window[0], window[1]

    def commit(self, nodes: Tensor, positions: Tensor) -> None:
        """Copy scratch slots `nodes` Int64[B, k] to committed `positions` Int64[B, k], in all layers at once."""
        for store in self.stores:
            source, goal = nodes.to(store.device), positions.to(store.device) + self.shape.scratch
            rows = torch.arange(len(source), device=store.device)[:, None]
            store[:, :, rows, :, goal] = store[:, :, rows, :, source]


class CacheWindow(Cache):
    """What one forward reads and writes of a buffer, behind the cache interface of `transformers`.

    The forward sees slots `first` .. `stop` - 1. It writes its keys and values at slots `start` ..., the same for every
    row, or with `positions` Int64[B, n] at these committed positions.
    """

    def __init__(self, buffer: KVBuffer, first: int, stop: int, start: int = 0, positions: Tensor | None = None):
        self.buffer, self.first, self.stop, self.start, self.positions = buffer, first, stop, start, positions
        super().__init__(layers=[_Layer(self, index) for index in range(len(buffer.layers))])


class _Layer(CacheLayerMixin):
    """One layer of the buffer."""

    def __init__(self, window: CacheWindow, index: int):
        super().__init__()
        self.window, self.index, self.is_initialized = window, index, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the buffer exists."""

    def update(self, key_states: Tensor, value_states: Tensor, *_args, **_kwargs) -> tuple[Tensor, Tensor]:
        """Write new keys and values [B, G, n, E]; all that the forward sees, each [B, G, stop - first, E]."""
        window, buffer = self.window, self.window.buffer
        if window.positions is None:
            buffer.write(self.index, window.start, key_states, value_states)
        else:
            buffer.write_rows(self.index, window.positions.to(key_states.device), key_states, value_states)
        return buffer.view(self.index, window.first, window.stop)

    def get_seq_length(self) -> int:
        """0: asked for only where no mask is passed, when a prompt is read into an empty cache."""
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002  the base class's parameter
        """Slots that the forward sees, and their offset."""
        return self.window.stop - self.window.first, 0

    def get_max_length(self) -> int:
        """Committed slots of the buffer."""
        return self.window.buffer.shape.capacity
