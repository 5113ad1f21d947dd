"""The training loop: features -> unrolled loss -> step, on whatever `accelerate` provides.

Every process walks the same plan of batches and takes its own rows; the loss is divided by the number of predicted
positions of the *whole* batch, known from the data alone, so one process, several, and any accumulation give the same
gradient.
"""

import contextlib
import itertools
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate.utils import broadcast
from torch import Tensor

from eagle.chat_template import record_beside
from eagle.checkpoints.load import save_head
from eagle.files import sole_writer, write_json
from eagle.nn.precision import DTYPES
from eagle.train import checkpoint
from eagle.train.config import TrainConfig
from eagle.train.data.conversations import Batch, collate, digest, epoch_plan, split_rows
from eagle.train.data.feature_cache import CachedFeatures, cache_directory, estimate
from eagle.train.data.features import OnlineFeatures
from eagle.train.distributed import build_accelerator, check_launch, is_sharded, training_device
from eagle.train.evaluation.agreement import evaluate
from eagle.train.evaluation.drafted_trees import TreeEvaluation
from eagle.train.evaluation.plot import plot
from eagle.train.fusion import is_fused
from eagle.train.log import TrainingLog
from eagle.train.objective.alignment import Objective, align
from eagle.train.progress import Progress, checkpoint_root, read_progress, weights_of
from eagle.train.schedule import adamw, learning_rate_factor, linear_ramp, set_learning_rate
from eagle.train.setup import build_head, load_target, split_examples


def train(config: TrainConfig) -> None:
    """A whole run, the only one that writes its output. Raises ValueError as `Trainer` does."""
    config.check_runnable()
    check_launch()
    main = os.environ.get("RANK", "0") == "0"  # accelerate's and torchrun's; the other processes write nothing
    with sole_writer(config.output) if main else contextlib.nullcontext():
        Trainer(config).run()


class Trainer:
    """One run. A checkpoint holds the head, the optimizer's state, `progress` and the window of the log."""

    def __init__(self, config: TrainConfig) -> None:
        """Load target, data and head, and the newest checkpoint in the output.

        Raises ValueError for settings, data or a checkpoint that do not fit.
        """
        config.check_runnable()
        check_launch()
        self.config = config = config.for_device(training_device())
        self.accelerator = build_accelerator(config)
        self.device = self.accelerator.device
        torch.manual_seed(config.seed)
        self.target, tokenizer = load_target(config, self.device)
        context = self.target.config.max_position_embeddings
        self.train_set, held_out = split_examples(config, tokenizer, context)
        self.check_batches()
        self.head = build_head(config, self.target, self.train_set)
        self.source = OnlineFeatures(self.target, self.head.config.taps)
        self.cache = self.open_cache()
        self.trees = TreeEvaluation(self.target, self.head, held_out, config) if config.eval_prompts else None
        self.held_out = [collate(held_out[i : i + 16]).to(self.device) for i in range(0, len(held_out), 16)]
        self.prepare()
        self.started = time.monotonic() - self.progress.seconds

    def prepare(self) -> None:
        """Optimizer, the last checkpoint's state, and the wrapping of both for this run's processes."""
        config, accelerator = self.config, self.accelerator
        optimizer = adamw(self.head.parameters(), config.lr, config.weight_decay)
        self.progress, target = Progress(), weights_of(config.target)
        found = checkpoint.directories(checkpoint_root(config.output))
        if found:
            self.progress = read_progress(found[-1], config, self.train_set, target)
            checkpoint.restore(found[-1], "head", self.head, optimizer)
        self.progress.examples, self.progress.data = len(self.train_set), digest(self.train_set)
        self.progress.target = target
        steps = accelerator.gather(torch.tensor([self.progress.step], device=self.device)).tolist()
        if min(steps) != max(steps):
            raise ValueError(
                f"{config.output}: the processes found checkpoints of the steps {sorted(set(steps))}; the output must "
                "lie on a file system that all machines see"
            )
        self.log = TrainingLog(config.output, config.unroll, accelerator, self.progress, config.steps)
        fused = is_fused(config.compile, self.device, self.head.config.draft_vocab_size)
        compiled = config.compile == "on"
        objective = Objective(self.head, config.unroll, config.step_decay, config.checkpointing, fused, compiled)
        self.objective = accelerator.prepare_model(objective.to(self.device))
        self.optimizer = accelerator.prepare_optimizer(optimizer)

    def open_cache(self) -> CachedFeatures | None:
        """The feature cache, checked but not filled; None where features are computed online."""
        config, taps = self.config, self.source.taps
        dtype = DTYPES[config.precision]
        size = estimate(self.train_set, self.target.config.hidden_size, len(taps), dtype)
        directory = cache_directory(config, self.train_set, size)
        if directory is None:
            return None
        totals = self.head.support() is not None and not is_sharded(self.target)
        target = weights_of(config.target)
        cache = CachedFeatures(self.train_set, directory, target, taps, dtype, config.batch_tokens, totals)
        cache.check(size)
        return cache

    def check_batches(self) -> None:
        """ValueError where a part of a batch could not hold the longest conversation."""
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
        """Seconds of training, over all the run's parts."""
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
            probs = self.source.probs(features, where.predicted, self.head.support())
        return self.objective(features.taps, batch, where, probs, self.acceptance_weight)

    def step(self, rows: list[int], share: float) -> None:
        """One optimizer step on the examples `rows`.

        Raises ValueError, before the weights are changed, where the gradient is not finite.
        """
        config = self.config
        lr = config.lr * learning_rate_factor(share, self.progress.step, config.warmup, config.decay)
        set_learning_rate(self.optimizer, lr)
        self.acceptance_weight = linear_ramp(share, config.acceptance_weight, config.acceptance_warmup)
        positions = sum(self.train_set[i].drafted() for i in rows)
        scale = self.accelerator.num_processes / positions  # undoes the averaging over processes
        parts = self.my_parts(rows)
        for number, (indices, batch) in enumerate(parts):
            last = number + 1 == len(parts)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.objective):
                loss, sums = self.losses(indices, batch.to(self.device))
                self.accelerator.backward(loss * scale)
            self.log.count(loss, sums)
        self.check_gradient(self.accelerator.clip_grad_norm_(self.head.parameters(), config.clip), loss, lr)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.log.count_positions(positions)
        self.progress.step += 1
        self.progress.tokens += sum(len(self.train_set[i].ids) for i in rows)

    def check_gradient(self, norm: Tensor, loss: Tensor, lr: float) -> None:
        """ValueError where the gradient's norm, equal on all processes, is not finite."""
        if math.isfinite(norm):
            return
        kept = checkpoint.directories(checkpoint_root(self.config.output))
        healthy = f"the checkpoint of {kept[-1].name} is kept" if kept else "there is no checkpoint yet"
        raise ValueError(
            f"training stopped at step {self.progress.step + 1}: the loss is {loss.item()}, the gradient's norm "
            f"{float(norm)}, at learning rate {lr:.3g}; {healthy} in {self.config.output}: give the same command with "
            "a smaller --lr to continue from it"
        )

    # --- what is kept ----------------------------------------------------------------------------------------------

    def evaluate(self) -> None:
        """Held-out comparison of p and q, and E[accepted]; the head is exported when it is the best so far."""
        with self.accelerator.autocast():
            report = evaluate(self.head, self.source, self.held_out, self.config.unroll)
        expected = round(self.trees.expected_accepted(self.head) if self.trees else report.chain, 4)
        if expected > self.progress.best:
            self.progress.best = expected
            self.export(Path(self.config.output))
        row = {"step": self.progress.step, "held_out": report._asdict(), "expected_accepted": expected}
        self.log.write(row)

    def export(self, directory: Path) -> None:
        """Write the head in bfloat16, in the SafeAILab layout."""
        if self.accelerator.is_main_process:
            save_head(self.head, directory, self.target.config.num_hidden_layers, torch.bfloat16)
            record_beside(directory, self.config.chat_template_kwargs)

    def save(self) -> None:
        """Write a checkpoint of this step."""
        self.progress.seconds = self.elapsed()
        self.progress.window = self.log.total().tolist()
        if self.accelerator.is_main_process:
            optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
            state = {"progress": vars(self.progress), "config": vars(self.config)}
            root, step = checkpoint_root(self.config.output), self.progress.step
            checkpoint.save(root, step, "head", self.head, optimizer, state, self.config.keep)

    # --- the run ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the first limit, then evaluate, save and plot.

        A run that was stopped in between continues; one that is finished is left alone.
        """
        config, filled = self.config, False
        for rows in self.batches():
            share = self.share_done()
            if share >= 1:
                self.progress.batch -= 1  # a run that is continued with higher limits begins with this batch
                break
            if self.cache and not filled:
                self.cache.fill(self.source, self.accelerator)
                filled = True
            self.step(rows, share)
            self.log.bar.update()
            step = self.progress.step
            if step % config.log_every == 0:
                self.log.write_step(self.elapsed(), self.optimizer.param_groups[0]["lr"])
            if step % config.eval_every == 0:
                self.evaluate()
            if step % config.save_every == 0:
                self.save()
        self.log.bar.close()
        self.finish()

    def finish(self) -> None:
        """The last evaluation, `last/` and the curves, unless `finished.json` says that this step has them."""
        output, step = Path(self.config.output), self.progress.step
        marker = output / "finished.json"
        if marker.exists() and checkpoint.read_json_object(marker).get("step") == step:
            return
        if self.log.evaluated_at != step:
            self.evaluate()
        self.save()
        self.export(output / "last")
        if self.accelerator.is_main_process:
            plot(output)
            write_json(marker, {"step": step})
            if self.config.feature_cache == "auto":
                shutil.rmtree(output / "features", ignore_errors=True)
