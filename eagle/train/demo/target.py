"""Train the demo target: a deep, narrow Llama on the demo corpus, from nothing, by the `Trainer` of transformers.

    python -m eagle.train.demo.target DATA_DIR --output checkpoints/demo/target --steps 1000

Drafting pays with depth: a head pass costs one layer, a target pass all of them. The learning rate is constant, then
linear to zero over the last `--decay` share of the steps. A run that is stopped continues from its last checkpoint in
`--work` when the command is repeated.
"""

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from eagle import command
from eagle.files import sole_writer, write_whole
from eagle.nn.precision import has_bf16
from eagle.train.demo.corpus import demo_conversations, encode, pack, train_tokenizer


def build_target(tokenizer: Any, layers: int, width: int, context: int) -> LlamaForCausalLM:
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


def settings(args: argparse.Namespace) -> TrainingArguments:
    """What the trainer is told. bfloat16 products where the CPU multiplies them, else float32."""
    decay = int(args.decay * args.steps)
    return TrainingArguments(
        output_dir=args.work,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch,
        per_device_eval_batch_size=args.batch,
        learning_rate=args.lr,
        weight_decay=0.1,
        adam_beta2=0.95,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": decay, "decay_type": "linear"},
        warmup_steps=args.warmup,
        logging_steps=args.log_every,
        eval_strategy="steps",
        eval_steps=args.save_every,
        save_steps=args.save_every,
        save_total_limit=1,
        bf16=has_bf16(torch.device("cpu")),
        use_cpu=True,
        seed=args.seed,
        report_to="none",
    )


def rows_of(packed: Tensor) -> list[dict[str, Tensor]]:
    """Packed rows Int64[n, length] as the trainer takes them."""
    return [{"input_ids": row, "labels": row} for row in packed]


def train(model: LlamaForCausalLM, train_rows: Tensor, held_out: Tensor, args: argparse.Namespace) -> list[dict]:
    """Train from the newest checkpoint in `--work`, if any, to `--steps`; the curve."""
    trainer = Trainer(model, settings(args), train_dataset=rows_of(train_rows), eval_dataset=rows_of(held_out))
    Path(args.work).mkdir(parents=True, exist_ok=True)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(args.work))
    trainer.evaluate()
    return trainer.state.log_history


def export(model: LlamaForCausalLM, tokenizer: Any, curve: list[dict], output: str) -> None:
    """Write a bf16 copy in the Hugging Face layout, with the tokenizer and the curve."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    write_whole(Path(output, "training_curve.jsonl"), "".join(json.dumps(row) + "\n" for row in curve))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.parser("eagle.train.demo.target", __doc__)
    parser.add_argument("data_dir")
    parser.add_argument("--output", default="checkpoints/demo/target")
    parser.add_argument("--work", default="results/train_demo/target", help="checkpoints to resume from")
    parser.add_argument("--steps", type=command.COUNT, default=1000)
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
        "--decay", type=command.SHARE, default=0.35, help="share of the steps with a falling learning rate"
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
    packed = pack(documents, args.length, torch.Generator().manual_seed(args.seed))
    held_out = pack(encode(tokenizer, held_out_set), args.length, torch.Generator().manual_seed(1))
    model = build_target(tokenizer, args.layers, args.width, args.context)
    parameters = sum(weight.numel() for weight in model.parameters())
    print(f"{len(documents)} documents, {sum(map(len, documents))} tokens, {parameters} parameters", flush=True)
    export(model, tokenizer, train(model, packed, held_out, args), args.output)


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
