"""The target's features of the whole training set, computed once and kept on disk.

    DIR/manifest.json                   what the cache belongs to
    DIR/features-00000.safetensors      taps.<i> [n, 3F] and last.<i> [n, F] of examples i, in the training precision;
                                        log_sum.<i> and likeliest.<i> [n] for heads with a draft vocabulary

It pays as soon as the data is read twice: reading is much cheaper than a forward of the target. The size is known
before anything is computed (`estimate`) and compared with the free disk. Shards are written whole or not at all, so an
interrupted run continues with the missing shards.
"""

import functools
import shutil
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from eagle.files import read_json, write_file, write_json
from eagle.train.config import TrainConfig
from eagle.train.data.conversations import Example, collate, digest
from eagle.train.data.features import Features, OnlineFeatures
from eagle.train.distributed import is_sharded
from eagle.train.objective.alignment import align
from eagle.train.objective.loss import Totals

SHARD_TOKENS = 65536
WORTH_EPOCHS = 1.5  # passes over the data from which "auto" caches
DISK_SHARE = 0.25  # of the free disk that "auto" takes at most


def estimate(examples: list[Example], hidden_size: int, taps: int, dtype: torch.dtype) -> int:
    """Bytes on disk: every token has its taps and the final hidden state."""
    tokens = sum(len(example.ids) for example in examples)
    return tokens * (taps + 1) * hidden_size * dtype.itemsize


def expected_epochs(config: TrainConfig, examples: list[Example]) -> float:
    """How often the run reads the data, as far as its limits say: 0 where there is only a limit in minutes."""
    tokens = sum(len(example.ids) for example in examples)
    limits = [] if config.epochs is None else [config.epochs]
    if config.steps is not None:
        limits.append(config.steps * config.batch_tokens / tokens)
    return min(limits, default=0.0)


def cache_directory(config: TrainConfig, examples: list[Example], size: int) -> Path | None:
    """Where to cache `size` bytes of features; None where they are computed online.

    "auto" caches in OUTPUT/features when the data is read at least 1.5 times and the cache takes at most a quarter of
    the free disk, or is there already.
    """
    if config.feature_cache == "off":
        return None
    if config.feature_cache != "auto":
        return Path(config.feature_cache)
    directory = Path(config.output, "features")
    if (directory / "manifest.json").exists():
        return directory
    if expected_epochs(config, examples) < WORTH_EPOCHS:
        return None
    existing = next(path for path in directory.absolute().parents if path.exists())
    return directory if size <= DISK_SHARE * shutil.disk_usage(existing).free else None


def shards_of(examples: list[Example], shard_tokens: int) -> list[list[int]]:
    """Consecutive examples, about `shard_tokens` tokens to a file."""
    shards: list[list[int]] = [[]]
    filled = 0
    for i, example in enumerate(examples):
        if filled >= shard_tokens:
            shards.append([])
            filled = 0
        shards[-1].append(i)
        filled += len(example.ids)
    return shards


def batches_of(examples: list[Example], rows: list[int], batch_tokens: int) -> list[list[int]]:
    """`rows` by length in batches of at most `batch_tokens` padded tokens (one row where a single one is longer)."""
    batches: list[list[int]] = []
    for i in sorted(rows, key=lambda i: -len(examples[i].ids)):
        if batches and (len(batches[-1]) + 1) * len(examples[batches[-1][0]].ids) <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


class CachedFeatures:
    """Features by example number, from files that `fill` wrote."""

    def __init__(
        self,
        examples: list[Example],
        directory: str | Path,
        target: str,
        taps: tuple[int, ...],
        dtype: torch.dtype,
        batch_tokens: int,
        totals: bool = False,
    ) -> None:
        """Nothing is read or written yet. `batch_tokens` bounds a forward of `fill`; `totals`: keep those too."""
        self.examples = examples
        self.totals = totals
        self.directory = Path(directory)
        self.dtype = dtype
        self.batch_tokens = batch_tokens
        self.shards = shards_of(examples, SHARD_TOKENS)
        self.shard_of = {i: number for number, shard in enumerate(self.shards) for i in shard}
        self.manifest = {
            "target": target,
            "taps": list(taps),
            "dtype": str(dtype),
            "examples": len(examples),
            "data": digest(examples),
            "shard_tokens": SHARD_TOKENS,
            "totals": totals,
        }
        self._open: dict[int, safe_open] = {}

    def path(self, number: int) -> Path:
        """The file of a shard."""
        return self.directory / f"features-{number:05d}.safetensors"

    def check(self, size: int) -> None:
        """ValueError unless the directory is empty or this cache's own, with room on the disk for what is missing."""
        path = self.directory / "manifest.json"
        if path.exists() and read_json(path) != self.manifest:
            raise ValueError(
                f"feature cache {str(self.directory)!r} belongs to another target, data set or precision; remove it or "
                "name another directory"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        there = sum(file.stat().st_size for file in self.directory.glob("features-*.safetensors"))
        free = shutil.disk_usage(self.directory).free
        if size - there > free:
            raise ValueError(
                f"feature cache {str(self.directory)!r}: {(size - there) / 1e9:.1f} GB needed, {free / 1e9:.1f} GB are "
                "free; train with features computed online (--feature-cache off), or cut the data"
            )

    def fill(self, source: OnlineFeatures, accelerator: Accelerator) -> None:
        """Compute the missing shards.

        The processes share the work, except where the target's layers are divided over them and every forward needs
        all processes.
        """
        size = estimate(self.examples, source.target.config.hidden_size, len(source.taps), self.dtype)
        self.check(size)
        accelerator.print(f"feature cache {self.directory}: {size / 1e9:.3f} GB in {len(self.shards)} files")
        if accelerator.is_main_process:
            write_json(self.directory / "manifest.json", self.manifest)
        world, rank = accelerator.num_processes, accelerator.process_index
        missing = [number for number in range(len(self.shards)) if not self.path(number).exists()]
        accelerator.wait_for_everyone()  # all have looked before the first one writes
        together = is_sharded(source.target)
        mine = missing if together else missing[rank::world]
        rows = sum(len(self.shards[number]) for number in mine)
        every = 0.1 if sys.stderr.isatty() else 30  # seconds; a log needs fewer lines
        shown = accelerator.is_main_process and rows > 0
        with tqdm(total=rows, unit="row", desc="features", disable=not shown, mininterval=every) as bar:
            for turn, number in enumerate(mine):
                tensors = self.compute(self.shards[number], source, accelerator, bar)
                if not together or turn % world == rank:
                    write_file(self.path(number), functools.partial(save_file, tensors))
        accelerator.wait_for_everyone()
        lost = [self.path(number).name for number in missing if not self.path(number).exists()]
        if lost:
            raise ValueError(
                f"feature cache {str(self.directory)!r}: {lost} of other processes are not here; it must lie on a file "
                "system that all machines see"
            )

    def compute(
        self, shard: list[int], source: OnlineFeatures, accelerator: Accelerator, bar: tqdm
    ) -> dict[str, Tensor]:
        """The tensors of one file."""
        tensors = {}
        for rows in batches_of(self.examples, shard, self.batch_tokens):
            batch = collate([self.examples[i] for i in rows]).to(accelerator.device)
            with accelerator.autocast():
                found = source(batch)
                totals = source.totals(found.last, align(batch.answer).predicted) if self.totals else None
            for place, i in enumerate(rows):
                length = len(self.examples[i].ids)
                tensors[f"taps.{i}"] = found.taps[place, :length].to("cpu", self.dtype).clone()
                tensors[f"last.{i}"] = found.last[place, :length].to("cpu", self.dtype).clone()
                for name, total in (totals._asdict() if totals else {}).items():
                    tensors[f"{name}.{i}"] = total[place, :length].to("cpu").clone()
            bar.update(len(rows))
        return tensors

    def read(self, name: str, i: int) -> Tensor:
        """`taps` [n, 3F], `last` [n, F], `log_sum` or `likeliest` [n] of example i."""
        number = self.shard_of[i]
        if number not in self._open:
            try:
                self._open[number] = safe_open(self.path(number), framework="pt")
            except Exception as error:
                raise ValueError(
                    f"{self.path(number)}: cannot be read ({error}); remove it to compute it again"
                ) from error
        return self._open[number].get_tensor(f"{name}.{i}")

    def __call__(self, indices: list[int], device: torch.device) -> Features:
        """Padded features of these examples, in their order."""

        def padded(name: str) -> Tensor:
            return pad_sequence([self.read(name, i) for i in indices], batch_first=True).to(device)

        totals = Totals(*map(padded, Totals._fields)) if self.totals else None
        return Features(padded("taps"), padded("last"), totals)
