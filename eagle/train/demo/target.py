"""Train the demo target: a deep, narrow Llama on the demo corpus, from nothing, on a CPU.

    python -m eagle.train.demo.target DATA_DIR --output checkpoints/demo/target --minutes 60

Depth is what makes drafting pay: one head pass costs one layer, one target pass costs all of them. Hidden matrices
are trained with Muon, embeddings and norms with AdamW. The learning rate follows the clock: constant, then linear to
zero over the last `--decay` share of `--minutes`, so that a run ends where it was told to. A run that is stopped goes
on from its last checkpoint in `--work` when the command is repeated; time that it did not run does not count.
"""

import argparse
import copy
import itertools
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from eagle.files import write_directory, write_text
from eagle.train.demo.corpus import demo_conversations, encode, pack, train_tokenizer
from eagle.train.optim import BETAS, rate, set_rate


def build_target(tokenizer, layers: int, width: int, context: int) -> LlamaForCausalLM:
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


def build_optimizers(model: LlamaForCausalLM, lr: float) -> list[Optimizer]:
    matrices = [w for w in model.model.layers.parameters() if w.ndim == 2]
    held = {id(w) for w in matrices}
    others = [w for w in model.parameters() if id(w) not in held]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=BETAS, weight_decay=0.0),
    ]


def batches(documents: list[list[int]], args: argparse.Namespace, skip: int) -> Iterator[Tensor]:
    """Endless batches Int64[batch, length], each epoch in an order of its own; the first `skip` are passed over."""
    for epoch in itertools.count():
        rows = pack(documents, args.length, torch.Generator().manual_seed(args.seed + epoch)).split(args.batch)
        yield from rows[skip:]
        skip = max(0, skip - len(rows))


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, rows: Tensor) -> float:
    """Mean next-token cross-entropy in nats per token over packed rows."""
    model.eval()
    losses = []
    for batch in rows.split(8):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses.append(model(batch, labels=batch).loss)
    model.train()
    return torch.stack(losses).mean().item()


@dataclass
class Run:
    """How far a run is, and its curve so far."""

    step: int = 0
    seconds: float = 0.0
    curve: list[dict] = field(default_factory=list)


def save_checkpoint(work: Path, model: LlamaForCausalLM, optimizers: list[Optimizer], run: Run) -> None:
    """Write this step's checkpoint whole, then remove the older ones."""
    older = checkpoints(work)

    def fill(directory: Path) -> None:
        torch.save(model.state_dict(), directory / "model.pt")
        torch.save([optimizer.state_dict() for optimizer in optimizers], directory / "optimizers.pt")
        (directory / "run.json").write_text(json.dumps(vars(run)))

    write_directory(work / f"step-{run.step:08d}", fill)
    for path in older:
        shutil.rmtree(path)


def checkpoints(work: Path) -> list[Path]:
    return sorted(work.glob("step-*"))


def resume(work: Path, model: LlamaForCausalLM, optimizers: list[Optimizer]) -> Run:
    """Restore the newest checkpoint; a fresh `Run` where there is none."""
    found = checkpoints(work)
    if not found:
        return Run()
    model.load_state_dict(torch.load(found[-1] / "model.pt", weights_only=True))
    for optimizer, state in zip(optimizers, torch.load(found[-1] / "optimizers.pt", weights_only=True)):
        optimizer.load_state_dict(state)
    return Run(**json.loads((found[-1] / "run.json").read_text()))


def train(model: LlamaForCausalLM, documents: list[list[int]], held_out: Tensor, args: argparse.Namespace) -> Run:
    optimizers, work = build_optimizers(model, args.lr), Path(args.work)
    run = resume(work, model, optimizers)
    total, began = args.minutes * 60, time.monotonic() - run.seconds
    bar = tqdm(total=round(total), initial=round(run.seconds), unit="s")
    for batch in batches(documents, args, skip=run.step):
        run.seconds = time.monotonic() - began
        share = run.seconds / total if args.steps is None else run.step / args.steps
        if share >= 1:
            break
        loss = one_step(model, optimizers, batch, args.lr * rate(share, run.step, args.warmup, args.decay))
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
            save_checkpoint(work, model, optimizers, run)
        bar.update(round(run.seconds) - bar.n)
    run.curve.append(
        {"step": run.step, "seconds": round(run.seconds, 1), "held_out_loss": round(held_out_loss(model, held_out), 4)}
    )
    return run


def one_step(model: LlamaForCausalLM, optimizers: list[Optimizer], batch: Tensor, lr: float) -> float:
    set_rate(optimizers, lr)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(batch, labels=batch).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


def export(model: LlamaForCausalLM, tokenizer, run: Run, output: str) -> None:
    """Write a bf16 copy in the Hugging Face layout, with the tokenizer and the curve."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    write_text(Path(output, "training_curve.jsonl"), "".join(json.dumps(row) + "\n" for row in run.curve))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m eagle.train.demo.target",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data_dir")
    parser.add_argument("--output", default="checkpoints/demo/target")
    parser.add_argument("--work", default="results/train_demo/target", help="checkpoints to resume from")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--steps", type=int, help="end after this many steps instead, whatever the clock says")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--context", type=int, default=2048, help="max_position_embeddings written to the config")
    parser.add_argument("--length", type=int, default=512, help="tokens per training row")
    parser.add_argument("--batch", type=int, default=8, help="rows per step")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--warmup", type=int, default=50, help="steps")
    parser.add_argument("--decay", type=float, default=0.35, help="share of the time with a falling learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=10)
    parser.add_argument("--save-every", type=int, default=100)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
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


if __name__ == "__main__":
    main()
