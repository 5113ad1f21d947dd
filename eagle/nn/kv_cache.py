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

from collections.abc import Iterator
from contextlib import contextmanager
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
        """Whether a buffer of this shape can serve a request for `other`, of the same layers, as it is."""
        return self.batch >= other.batch and self.scratch >= other.scratch and self.capacity >= other.capacity

    def grown(self, other: "CacheShape") -> "CacheShape":
        """The smallest shape that serves both."""
        sizes = {name: max(getattr(self, name), getattr(other, name)) for name in ("batch", "scratch", "capacity")}
        return replace(self, **sizes)


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

    def rows(self, first: int, count: int) -> "KVBuffer":
        """Some of the rows as a buffer of their own, in views of the same memory."""
        found = object.__new__(KVBuffer)
        found.shape = replace(self.shape, batch=count)
        found.stores = [store[:, :, first : first + count] for store in self.stores]
        found.layers = [layer[:, first : first + count] for layer in self.layers]
        return found

    def copy_committed(self, other: "KVBuffer", lengths: list[int]) -> None:
        """Take over the first `lengths` committed tokens of the first rows of a buffer with the same layers."""
        for mine, theirs in zip(self.stores, other.stores, strict=True):
            for row, count in enumerate(lengths):
                source = theirs[:, :, row, :, other.shape.scratch : other.shape.scratch + count]
                mine[:, :, row, :, self.shape.scratch : self.shape.scratch + count] = source

    def move_row(self, source: int, goal: int, count: int) -> None:
        """Copy the first `count` committed tokens of a row to another one."""
        window = slice(self.shape.scratch, self.shape.scratch + count)
        for store in self.stores:
            store[:, :, goal, :, window] = store[:, :, source, :, window]

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


class RowCache:
    """The cache rows of one session: rows 0 .. `count` - 1 are in use, the others keep what they held for later ones.

    count     rows that a forward is about
    held      committed tokens of every row, on the host; `longest` is the most that a row in use may have
    ids       per row, the token ids whose keys it holds; [] where that is not known
    least     committed slots that a forward looks at in any case: a step's caches then cross their buckets together
    scratch   tree nodes asked for: they lie in the last slots of the scratch area, which may be larger
    """

    def __init__(self, shape: CacheShape, device: torch.device):
        """`shape`: of one layer's heads; its batch, scratch and capacity are 0. `device`: where lengths are counted."""
        self.device, self._none = device, shape
        self.release()

    def fork(self) -> "RowCache":
        """Another one for the same layers, with nothing allocated."""
        return RowCache(self._none, self.device)

    def release(self) -> None:
        """Free the memory; `reserve` allocates it anew."""
        self.store: KVBuffer | None = None
        self._view: KVBuffer | None = None
        self._lengths = torch.zeros(0, dtype=torch.int64, device=self.device)
        self.lengths = self._lengths
        self.count = self.longest = self.scratch = self._limit = self.least = 0
        self.held: list[int] = []
        self.ids: list[list[int]] = []

    def reserve(self, rows: int, scratch: int, capacity: int, slack: int) -> None:
        """Room for `rows` rows of up to `capacity` tokens and trees of `scratch` nodes; what rows hold stays.

        At most `slack` tokens are ever written past a row's length at once. Raises ValueError where memory is short.
        """
        room = round_up(capacity + slack, self.device)
        wanted = replace(self._none, batch=rows, scratch=scratch, capacity=room)
        old = self.store
        if old is None or not old.shape.fits(wanted):
            shape = wanted if old is None else old.shape.grown(wanted)
            if not any(self.held):
                self.store = self._view = old = None  # its memory is free for the new one
            self.store = KVBuffer(shape)
            if old is not None:
                self.store.copy_committed(old, self.held)
            lengths = torch.zeros(shape.batch, dtype=torch.int64, device=self.device)
            lengths[: len(self._lengths)] = self._lengths
            self._lengths = lengths
            more = shape.batch - len(self.held)
            self.held, self.ids = [*self.held, *[0] * more], [*self.ids, *([] for _ in range(more))]
            self._select(0, self.count)
        self.scratch, self._limit = scratch, self.store_shape.capacity - slack

    @property
    def store_shape(self) -> CacheShape:
        """What is allocated."""
        return self.buffer.shape if self.store is None else self.store.shape

    @property
    def buffer(self) -> KVBuffer:
        """Keys and values of the rows in use. RuntimeError before `reserve`."""
        if self._view is None:
            raise RuntimeError("there is no cache: call reserve first")
        return self._view

    @property
    def first_node(self) -> int:
        """The slot of tree node 0."""
        return self.buffer.shape.scratch - self.scratch

    def forget(self) -> None:
        """Count every row as empty; the memory stays."""
        self.held, self.ids = [0] * len(self.held), [[] for _ in self.ids]

    def use(self, count: int) -> None:
        """Rows 0 .. `count` - 1 are in use from now on."""
        self.count = count
        self._select(0, count)
        self.longest = max(self.held[:count], default=0)

    def set_held(self, lengths: list[int]) -> None:
        """The committed tokens of the first rows, once they are known on the host."""
        self.held[: len(lengths)] = lengths
        self.longest = max(lengths, default=0)

    @contextmanager
    def only(self, row: int, held: int) -> Iterator[None]:
        """Work on one row, of which the first `held` tokens are kept."""
        self.held[row], self.longest = held, held
        self._select(row, 1)
        self.lengths.fill_(held)
        try:
            yield
        finally:
            self._select(0, self.count)
            self.longest = max(self.held[: self.count], default=0)

    def move(self, source: int, goal: int) -> None:
        """Row `goal` holds what row `source` holds."""
        if self.store is not None and source != goal:
            self.store.move_row(source, goal, self.held[source])
            self._lengths[goal] = self._lengths[source]
            self.held[goal], self.ids[goal] = self.held[source], self.ids[source]

    def advance(self, counts: Tensor) -> None:
        """Rows in use got `counts` Int64[B] more tokens. Rows that are done go along: the clamp keeps what they write
        inside the buffer.
        """
        self.lengths.add_(counts).clamp_(max=self._limit)

    def window(self, more: int = 0) -> int:
        """How many committed slots a forward looks at, `more` of which it writes itself."""
        return min(max(bucket(self.longest + more, self.device), self.least), self.buffer.shape.capacity)

    def state(self) -> list[Tensor]:
        """The tensors that outlive a step, read and written in place, with all rows."""
        return [*([] if self.store is None else self.store.stores), self._lengths]

    def _select(self, first: int, count: int) -> None:
        if self.store is not None:
            self._view = self.store.rows(first, count)
        self.lengths = self._lengths[first : first + count]


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
