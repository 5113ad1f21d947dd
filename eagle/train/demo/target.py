"""Train the demo target: a deep, narrow Llama on the demo corpus, from nothing, on a CPU.

    python -m eagle.train.demo.target DATA_DIR --output checkpoints/demo/target --minutes 60

Drafting pays with depth: a head pass costs one layer, a target pass all of them. The learning rate follows the clock:
constant, then linear to zero over the last `--decay` share of `--minutes`. A run that is stopped continues from its
last checkpoint in `--work` when the command is repeated; time between the parts does not count.
"""

import argparse
import copy
import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from eagle import command
from eagle.files import sole_writer, write_whole
from eagle.nn.precision import has_bf16
from eagle.train import checkpoint
from eagle.train.demo.corpus import demo_conversations, encode, pack, train_tokenizer
from eagle.train.schedule import adamw, learning_rate_factor, set_learning_rate


def build_target(tokenizer, layers: int, width: int, context: int) -> LlamaForCausalLM:
    """A Llama with small residual branches, its weights random."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=-(-width * 8 // 3 // 16) * 16,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 64,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():  # residual branches start small: stable at this depth
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.data /= (2 * layers) ** 0.5
    return model


def batches(documents: list[list[int]], args: argparse.Namespace, skip: int) -> Iterator[Tensor]:
    """Endless batches Int64[batch, length], each epoch in an order of its own; the first `skip` are passed over."""
    for epoch in itertools.count():
        rows = pack(documents, args.length, torch.Generator().manual_seed(args.seed + epoch)).split(args.batch)
        yield from rows[skip:]
        skip = max(0, skip - len(rows))


def autocast() -> torch.autocast:
    """bfloat16 products where the CPU multiplies it, else float32."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_bf16(torch.device("cpu")))


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, rows: Tensor) -> float:
    """Mean next-token cross-entropy in nats per token over packed rows."""
    model.eval()
    losses = []
    for batch in rows.split(8):
        with autocast():
            losses.append(model(batch, labels=batch).loss)
    model.train()
    return torch.stack(losses).mean().item()


@dataclass
class Run:
    """How far a run is, and its curve so far."""

    step: int = 0
    seconds: float = 0.0
    curve: list[dict] = field(default_factory=list)


def resume(work: Path, model: LlamaForCausalLM, optimizer: Optimizer) -> Run:
    """Restore the newest checkpoint; a fresh `Run` where there is none."""
    found = checkpoint.directories(work)
    if not found:
        return Run()
    checkpoint.restore(found[-1], "target", model, optimizer)
    return Run(**checkpoint.read_json_object(found[-1] / "state.json"))


def train(model: LlamaForCausalLM, documents: list[list[int]], held_out: Tensor, args: argparse.Namespace) -> Run:
    """Train from the newest checkpoint in `--work`, if any, to the end of the time or the steps."""
    optimizer, work = adamw(model.parameters(), args.lr, weight_decay=0.1), Path(args.work)
    run = resume(work, model, optimizer)
    total, began = args.minutes * 60, time.monotonic() - run.seconds
    bar = tqdm(total=round(total), initial=round(run.seconds), unit="s")
    for batch in batches(documents, args, skip=run.step):
        run.seconds = time.monotonic() - began
        share = run.seconds / total if args.steps is None else run.step / args.steps
        if share >= 1:
            break
        factor = learning_rate_factor(share, run.step, args.warmup, args.decay)
        loss = one_step(model, optimizer, batch, args.lr * factor)
        run.step += 1
        if run.step % args.log_every == 0:
            row = {
                "step": run.step,
                "tokens": run.step * batch.numel(),
                "seconds": round(run.seconds, 1),
                "loss": round(loss, 4),
            }
            if run.step % args.save_every == 0:
                row["held_out_loss"] = round(held_out_loss(model, held_out), 4)
            run.curve.append(row)
            bar.set_postfix(loss=f"{loss:.3f}", tokens=row["tokens"])
        if run.step % args.save_every == 0:
            checkpoint.save(work, run.step, "target", model, optimizer, vars(run), keep=1)
        bar.update(round(run.seconds) - bar.n)
    run.curve.append(
        {"step": run.step, "seconds": round(run.seconds, 1), "held_out_loss": round(held_out_loss(model, held_out), 4)}
    )
    return run


def one_step(model: LlamaForCausalLM, optimizer: Optimizer, batch: Tensor, lr: float) -> float:
    """One optimizer step on Int64[batch, length]; its loss. Raises ValueError where the loss is not finite."""
    set_learning_rate(optimizer, lr)
    with autocast():
        loss = model(batch, labels=batch).loss
    if not loss.isfinite():
        raise ValueError(f"the loss is {loss.item()} at learning rate {lr:.3g}; continue with a smaller --lr")
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def export(model: LlamaForCausalLM, tokenizer, run: Run, output: str) -> None:
    """Write a bf16 copy in the Hugging Face layout, with the tokenizer and the curve."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    write_whole(Path(output, "training_curve.jsonl"), "".join(json.dumps(row) + "\n" for row in run.curve))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.parser("eagle.train.demo.target", __doc__)
    parser.add_argument("data_dir")
    parser.add_argument("--output", default="checkpoints/demo/target")
    parser.add_argument("--work", default="results/train_demo/target", help="checkpoints to resume from")
    parser.add_argument("--minutes", type=command.SECONDS, default=60)
    parser.add_argument(
        "--steps", type=command.COUNT, help="end after this many steps instead, whatever the clock says"
    )
    parser.add_argument("--layers", type=command.COUNT, default=16)
    parser.add_argument("--width", type=command.COUNT, default=256)
    parser.add_argument("--vocab-size", type=command.COUNT, default=4096)
    parser.add_argument(
        "--context", type=command.COUNT, default=2048, help="max_position_embeddings written to the config"
    )
    parser.add_argument("--length", type=command.COUNT, default=512, help="tokens per training row")
    parser.add_argument("--batch", type=command.COUNT, default=8, help="rows per step")
    parser.add_argument("--lr", type=command.POSITIVE, default=1.5e-3)
    parser.add_argument("--warmup", type=command.INDEX, default=50, help="steps")
    parser.add_argument(
        "--decay", type=command.SHARE, default=0.35, help="share of the time with a falling learning rate"
    )
    parser.add_argument("--seed", type=command.SEED, default=0)
    parser.add_argument("--log-every", type=command.COUNT, default=10)
    parser.add_argument("--save-every", type=command.COUNT, default=100)
    return parser


def build_and_train(args: argparse.Namespace) -> None:
    """Corpus, tokenizer, model, training, export."""
    torch.manual_seed(args.seed)
    train_set, held_out_set = demo_conversations(args.data_dir)
    tokenizer = train_tokenizer(train_set, args.vocab_size)
    tokenizer.model_max_length = args.context
    documents = encode(tokenizer, train_set)
    held_out = pack(encode(tokenizer, held_out_set), args.length, torch.Generator().manual_seed(1))
    model = build_target(tokenizer, args.layers, args.width, args.context)
    parameters = sum(weight.numel() for weight in model.parameters())
    print(f"{len(documents)} documents, {sum(map(len, documents))} tokens, {parameters} parameters", flush=True)
    export(model, tokenizer, train(model, documents, held_out, args), args.output)


def main(argv: list[str] | None = None) -> int:
    """Train as `argv` says and return the exit status."""

    def work(args: argparse.Namespace) -> None:
        with sole_writer(args.work), sole_writer(args.output):
            build_and_train(args)

    def kept(args: argparse.Namespace) -> str:
        return f"the checkpoint in {args.work}, if any, is kept; the same command continues from it"

    return command.start(build_parser(), work, argv, kept)


if __name__ == "__main__":
    sys.exit(main())
