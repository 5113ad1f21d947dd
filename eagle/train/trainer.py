"""The training loop: features -> unrolled loss -> step, on whatever `accelerate` provides.

Every process walks the same plan of batches and takes its own rows; the loss is divided by the number of predicted
positions of the *whole* batch, known from the data alone, so one process, several, and any accumulation give the same
gradient.
"""

import contextlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import GradientAccumulationPlugin, broadcast
from torch import Tensor

from eagle.checkpoints.load import save_head
from eagle.train import checkpoint
from eagle.train.config import TrainConfig
from eagle.train.data.conversations import Batch, collate, epoch_plan, split_rows
from eagle.train.data.feature_cache import CachedFeatures
from eagle.train.data.features import OnlineFeatures
from eagle.train.distributed import Sharding, take_request, trains_on_cpu
from eagle.train.evaluation.drafting import DraftingTrial
from eagle.train.evaluation.held_out import evaluate
from eagle.train.evaluation.plot import plot
from eagle.train.objective.alignment import Objective, align
from eagle.train.optim import build_optimizers, rate, risen, set_rate
from eagle.train.records import Records
from eagle.train.setup import build_head, load_target, split_examples


class Trainer:
    """One run. State that a checkpoint must hold is in the head, the optimizers, `progress` and the records' window."""

    def __init__(self, config: TrainConfig):
        config.check_runnable()
        sharding = take_request() or (Sharding("shard_target") if config.shard_target else None)
        cpu = trains_on_cpu()
        self.config = config = config.for_device(PartialState(cpu=cpu).device)
        self.accelerator = Accelerator(  # `accumulation` counts, whatever the accelerate config says of it
            mixed_precision=config.precision,
            cpu=cpu,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
        self.device = self.accelerator.device
        if sharding:
            self.accelerator.print(sharding.describe())
        torch.manual_seed(config.seed)
        self.target, tokenizer = load_target(config, self.device, sharding)
        context = self.target.config.max_position_embeddings
        self.train_set, held_out = split_examples(config, tokenizer, context)
        self.check_batches()
        self.head = build_head(config, self.target, self.train_set)
        self.source = OnlineFeatures(self.target, self.head.config.taps)
        self.cache = self.open_cache()
        self.trial = DraftingTrial(self.target, self.head, held_out, config) if config.eval_prompts else None
        self.held_out = [collate(held_out[i : i + 16]).to(self.device) for i in range(0, len(held_out), 16)]
        self.prepare()
        self.started = time.monotonic() - self.progress.seconds

    def prepare(self) -> None:
        """Optimizers, the last checkpoint's state, and the wrapping of both for this run's processes."""
        config, accelerator = self.config, self.accelerator
        optimizers = build_optimizers(self.head, config.optimizer, config.lr, config.weight_decay)
        self.progress = checkpoint.load_latest(config.output, self.head, optimizers, config)
        if self.progress.step and self.progress.examples not in (0, len(self.train_set)):
            raise ValueError(
                f"{config.output} was begun with {self.progress.examples} conversations, now there are "
                f"{len(self.train_set)}: the batches would be others; choose another output or restore the data"
            )
        self.progress.examples = len(self.train_set)
        steps = accelerator.gather(torch.tensor([self.progress.step], device=self.device)).tolist()
        if min(steps) != max(steps):
            raise ValueError(
                f"{config.output}: the processes found checkpoints of the steps {sorted(set(steps))}; the output must "
                "lie on a file system that all machines see"
            )
        self.records = Records(config.output, config.unroll, accelerator, self.progress, config.steps)
        objective = Objective(self.head, config.unroll, config.step_decay, config.checkpointing)
        self.objective = accelerator.prepare_model(objective.to(self.device))
        self.optimizers = [accelerator.prepare_optimizer(optimizer) for optimizer in optimizers]

    def open_cache(self) -> CachedFeatures | None:
        if not self.config.feature_cache:
            return None
        dtype = torch.bfloat16 if self.config.precision == "bf16" else torch.float32
        cache = CachedFeatures(self.train_set, self.config.feature_cache, self.config.target, self.source.taps, dtype)
        cache.fill(self.source, self.accelerator)
        return cache

    def check_batches(self) -> None:
        parts = self.accelerator.num_processes * self.config.accumulation
        longest = max(len(example.ids) for example in self.train_set)
        if self.config.batch_tokens < parts * longest:
            raise ValueError(
                f"batch_tokens is {self.config.batch_tokens}; {parts} parts (processes * accumulation) of the longest "
                f"conversation ({longest} tokens) need at least {parts * longest}: raise it or lower max_length"
            )

    # --- what to do next -------------------------------------------------------------------------------------------

    def batches(self) -> Iterator[list[int]]:
        """Batches of example indices from where the run stands, over as many epochs as it takes."""
        lengths = [len(example.ids) for example in self.train_set]
        for epoch in itertools.count(self.progress.epoch):
            plan = epoch_plan(lengths, self.config.batch_tokens, self.config.seed, epoch)
            self.batches_per_epoch = len(plan)
            for index in range(self.progress.batch, len(plan)):
                self.progress.epoch, self.progress.batch = epoch, index + 1
                yield plan[index]
            self.progress.batch = 0

    def share_done(self) -> float:
        """Progress in [0, 1] towards the first limit that ends the run; the same on every process."""
        config, progress = self.config, self.progress
        shares = [0.0]
        if config.steps is not None:
            shares.append(progress.step / config.steps)
        if config.epochs is not None:
            epochs = progress.epoch + (progress.batch - 1) / self.batches_per_epoch
            shares.append(epochs / config.epochs)
        if config.minutes is not None:
            elapsed = torch.tensor([self.elapsed()], device=self.device)
            shares.append(broadcast(elapsed).item() / (60 * config.minutes))
        return max(shares)

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    # --- one step --------------------------------------------------------------------------------------------------

    def my_parts(self, rows: list[int]) -> list[tuple[list[int], Batch]]:
        """This process's share of a batch, one part per accumulation round: example indices and tokens.

        Where there are fewer rows than parts, a part gets a row without answers: no loss, but the same collectives.
        """
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        parts = []
        for part in split_rows(rows, world * self.config.accumulation)[rank::world]:
            batch = collate([self.train_set[i] for i in part or rows[:1]])
            parts.append((part or rows[:1], batch if part else batch._replace(answer=batch.answer & False)))
        return parts

    def losses(self, indices: list[int], batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss summed over this batch's positions, and per-step sums [unroll, 4]."""
        where = align(batch.answer)
        with self.accelerator.autocast():
            features = self.cache(indices, self.device) if self.cache else self.source(batch)
            law = self.source.law(features.last, where.predicted, self.head.support())
        return self.objective(features.taps, batch, where, law, self.acceptance_weight)

    def step(self, rows: list[int], share: float) -> None:
        config = self.config
        set_rate(self.optimizers, config.lr * rate(share, self.progress.step, config.warmup, config.decay))
        self.acceptance_weight = risen(share, config.acceptance_weight, config.acceptance_warmup)
        positions = sum(self.train_set[i].drafted() for i in rows)
        scale = self.accelerator.num_processes / positions  # undoes the averaging over processes
        parts = self.my_parts(rows)
        for number, (indices, batch) in enumerate(parts):
            last = number + 1 == len(parts)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.objective):
                loss, sums = self.losses(indices, batch.to(self.device))
                self.accelerator.backward(loss * scale)
            self.records.count(loss, sums)
        self.accelerator.clip_grad_norm_(self.head.parameters(), config.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.records.count_positions(positions)
        self.progress.step += 1
        self.progress.tokens += sum(len(self.train_set[i].ids) for i in rows)

    # --- what is kept ----------------------------------------------------------------------------------------------

    def evaluate(self) -> None:
        """Held-out laws and E[accepted]; the head is exported when it is the best so far."""
        with self.accelerator.autocast():
            report = evaluate(self.head, self.source, self.held_out, self.config.unroll)
        expected = self.trial.expected_accepted(self.head) if self.trial else report.chain
        row = {"step": self.progress.step, "held_out": report._asdict(), "expected_accepted": round(expected, 4)}
        self.records.write(row)
        if expected > self.progress.best:
            self.progress.best = expected
            self.export(Path(self.config.output))

    def export(self, directory: Path) -> None:
        if self.accelerator.is_main_process:
            save_head(self.head, directory, self.target.config.num_hidden_layers, torch.bfloat16)

    def save(self) -> None:
        self.progress.seconds = self.elapsed()
        self.progress.window = self.records.total().tolist()
        if self.accelerator.is_main_process:
            bare = [getattr(optimizer, "optimizer", optimizer) for optimizer in self.optimizers]
            checkpoint.save(self.config.output, self.head, bare, self.progress, self.config)

    # --- the run ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        config, begun_at = self.config, self.progress.step
        for rows in self.batches():
            share = self.share_done()
            if share >= 1:
                self.progress.batch -= 1  # a run that is continued with higher limits begins with this batch
                break
            self.step(rows, share)
            self.records.bar.update()
            step = self.progress.step
            if step % config.log_every == 0:
                self.records.write_step(self.elapsed(), self.optimizers[0].param_groups[0]["lr"])
            if step % config.eval_every == 0:
                self.evaluate()
            if step % config.save_every == 0:
                self.save()
        self.records.bar.close()
        if self.progress.step == begun_at:
            return  # a finished run was started again
        if self.progress.step % config.eval_every:
            self.evaluate()
        self.save()
        self.export(Path(config.output, "last"))
        if self.accelerator.is_main_process:
            plot(config.output)
