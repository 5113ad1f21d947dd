"""Train the demo target: a deep, narrow Llama on the demo corpus, from nothing, on a CPU.

    python -m eagle.train.demo_target DATA_DIR --output checkpoints/demo/target --minutes 60

Depth is what makes drafting pay: one head pass costs one layer, one target pass costs all of them. Hidden matrices
are trained with Muon, embeddings and norms with AdamW (both from torch.optim). The learning rate follows the clock:
constant, then linear to zero over the last `--decay` share of `--minutes`, so that the run ends where it was told to.
"""
import argparse
import copy
import json
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from eagle.train.corpus import demo_conversations, encode, pack, train_tokenizer


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


def build_optimizers(model: LlamaForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    matrices = [w for name, w in model.model.layers.named_parameters() if w.ndim == 2]
    held = {id(w) for w in matrices}
    others = [w for w in model.parameters() if id(w) not in held]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def schedule(progress: float, step: int, warmup: int, decay: float) -> float:
    """Learning-rate factor at `progress` in [0, 1] of the time."""
    return min(1.0, (step + 1) / warmup, max(0.0, 1 - progress) / decay)


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, rows: torch.Tensor) -> float:
    """Mean next-token cross-entropy in nats per token over packed rows."""
    model.eval()
    losses = []
    for batch in rows.split(8):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses.append(model(batch, labels=batch).loss)
    model.train()
    return torch.stack(losses).mean().item()


def train(model: LlamaForCausalLM, documents, held_out, args) -> list[dict]:
    generator = torch.Generator().manual_seed(args.seed)
    optimizers = build_optimizers(model, args.lr)
    start, step, curve, queue = time.monotonic(), 0, [], []
    total = args.minutes * 60
    while (elapsed := time.monotonic() - start) < total:
        if not queue:
            queue = list(pack(documents, args.length, generator).split(args.batch))
        batch = queue.pop()
        factor = schedule(elapsed / total, step, warmup=50, decay=args.decay)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.lr * factor
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % args.log_every == 0 or step == 1:
            row = {"step": step, "tokens": step * args.batch * args.length, "seconds": round(elapsed, 1),
                   "loss": round(loss.item(), 4), "lr": args.lr * factor}
            if step % (10 * args.log_every) == 0:
                row["held_out_loss"] = round(held_out_loss(model, held_out), 4)
                save(model, args.output)
            curve.append(row)
            print(json.dumps(row), flush=True)
    curve.append({"step": step, "tokens": step * args.batch * args.length,
                  "seconds": round(time.monotonic() - start, 1),
                  "held_out_loss": round(held_out_loss(model, held_out), 4)})
    return curve


def save(model: LlamaForCausalLM, output: str) -> None:
    """Write a bf16 copy in the Hugging Face layout; the weights in training stay float32."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir")
    parser.add_argument("--output", default="checkpoints/demo/target")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--context", type=int, default=2048, help="max_position_embeddings written to the config")
    parser.add_argument("--length", type=int, default=512, help="tokens per training row")
    parser.add_argument("--batch", type=int, default=8, help="rows per step")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--decay", type=float, default=0.35, help="share of the time with a falling learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=10)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    train_set, held_out_set = demo_conversations(args.data_dir)
    tokenizer = train_tokenizer(train_set, args.vocab_size)
    tokenizer.model_max_length = args.context
    tokenizer.save_pretrained(args.output)
    documents = encode(tokenizer, train_set)
    held_out = pack(encode(tokenizer, held_out_set), args.length, torch.Generator().manual_seed(1))
    counts = {"documents": len(documents), "tokens": sum(map(len, documents)), "vocab": len(tokenizer)}
    print(json.dumps(counts), flush=True)
    model = build_target(tokenizer, args.layers, args.width, args.context)
    print(json.dumps({"parameters": sum(p.numel() for p in model.parameters())}), flush=True)
    curve = train(model, documents, held_out, args)
    save(model, args.output)
    Path(args.output, "training_curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curve))


if __name__ == "__main__":
    main()
