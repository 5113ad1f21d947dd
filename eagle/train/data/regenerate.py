"""Rewrite the answers of a data set with the target itself: a head should learn what its target says.

    python -m eagle.train.regenerate --target T --data F... --output OUT.jsonl --temperature 1

Questions stay, every assistant turn is sampled anew (later turns see the new earlier ones). A line of the output holds
the messages and the very token ids that were sampled. Batches are seeded by their number and written to OUT.jsonl.parts
one by one, so a run that is killed continues where it was and gives the same lines; OUT.jsonl appears when all parts
are there, or when `--minutes` are over, with what there is. A complete OUT.jsonl is left alone.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from eagle.files import write_json, write_text
from eagle.modules.target import cache_keyword
from eagle.train.data.conversations import read_messages
from eagle.train.precision import has_bf16


def draw(logits: Tensor, temperature: Tensor, generator: torch.Generator) -> Tensor:
    """Logits [B, V], one temperature per row [B] -> one token each, Int64[B]; the most likely one at temperature 0."""
    greedy = temperature == 0
    law = (logits.float() / temperature.masked_fill(greedy, 1)[:, None]).softmax(-1)
    drawn = torch.multinomial(law, 1, generator=generator).squeeze(1)
    return torch.where(greedy, logits.argmax(-1), drawn)


@torch.no_grad()
def sample(
    model, prompts: list[list[int]], limit: int, temperatures: list[float], ends: Tensor, generator
) -> list[list[int]]:
    """Up to `limit` tokens after every prompt, the end token included, each prompt at its own temperature. Rows that
    are done leave the batch."""
    longest = max(map(len, prompts))
    tokens = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    answers: list[list[int]] = [[] for _ in prompts]
    rows, running = list(range(len(prompts))), torch.ones(len(prompts), dtype=torch.bool, device=model.device)
    cache, positions = DynamicCache(config=model.config), mask.cumsum(1).sub(1).clamp(min=0)
    cached = {cache_keyword(model.forward): cache}
    temperature = torch.tensor(temperatures, dtype=torch.float32, device=model.device)
    for _ in range(limit):
        out = model(input_ids=tokens, attention_mask=mask, position_ids=positions, logits_to_keep=1, **cached)
        token = draw(out.logits[:, -1], temperature, generator)
        for row, value, alive in zip(rows, token.tolist(), running.tolist(), strict=True):
            if alive:
                answers[row].append(value)
        running = running & ~torch.isin(token, ends)
        positions, mask = positions[:, -1:] + 1, torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        if running.sum() <= 0.75 * len(rows):
            keep = running.nonzero().squeeze(1)
            if not len(keep):
                break
            cache.batch_select_indices(keep)
            rows = [rows[i] for i in keep.tolist()]
            token, positions, mask, running = token[keep], positions[keep], mask[keep], running[keep]
            temperature = temperature[keep]
        tokens = token[:, None]
    return answers


class Dialogue:
    """One conversation on its way through the sampler: ids so far, spans the target wrote, messages so far."""

    def __init__(self, tokenizer, messages: list[dict[str, str]], temperature: float):
        self.tokenizer = tokenizer
        self.temperature = temperature
        self.original = messages
        self.turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        self.messages: list[dict[str, str]] = []
        self.ids: list[int] = []
        self.spans: list[list[int]] = []
        self.text = ""

    def prompt(self, turn: int) -> bool:
        """Bring the ids up to an assistant turn; False where there is none, or the template rewrites the past."""
        if turn >= len(self.turns) or len(self.spans) < turn:
            return False
        self.messages += self.original[len(self.messages) : self.turns[turn]]
        text = self.tokenizer.apply_chat_template(self.messages, tokenize=False, add_generation_prompt=True)
        if not text.startswith(self.text):
            return False
        self.ids += self.tokenizer(text[len(self.text) :], add_special_tokens=False)["input_ids"]
        self.text = text
        return True

    def answer(self, ids: list[int]) -> None:
        self.spans.append([len(self.ids), len(self.ids) + len(ids)])
        self.ids += ids
        self.messages.append({"role": "assistant", "content": self.tokenizer.decode(ids, skip_special_tokens=True)})
        self.text += self.tokenizer.decode(ids, skip_special_tokens=False)

    def record(self) -> dict:
        return {"messages": self.messages, "ids": self.ids, "spans": self.spans, "vocab_size": len(self.tokenizer)}


def end_tokens(model, tokenizer) -> Tensor:
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [tokenizer.eos_token_id if ends is None else ends]
    return torch.tensor(ends, device=model.device)


def regenerate_batch(model, tokenizer, conversations: list, temperatures: list[float], args, seed: int) -> list[dict]:
    dialogues = [Dialogue(tokenizer, *pair) for pair in zip(conversations, temperatures, strict=True)]
    generator = torch.Generator(model.device).manual_seed(seed)
    context, ends = model.config.max_position_embeddings, end_tokens(model, tokenizer)
    for turn in range(max(len(d.turns) for d in dialogues)):
        ready = [d for d in dialogues if d.prompt(turn) and len(d.ids) < context]
        if not ready:
            break
        prompts = [d.ids for d in ready]
        limit = min(args.max_new_tokens, context - max(map(len, prompts)))
        answers = sample(model, prompts, limit, [d.temperature for d in ready], ends, generator)
        for dialogue, ids in zip(ready, answers, strict=True):
            dialogue.answer(ids)
    return [dialogue.record() for dialogue in dialogues if dialogue.spans]


def batches_of(conversations: list, size: int, seed: int) -> list[list[int]]:
    """Questions of similar length share a batch; batches come in random order: any number of them is a fair sample."""
    lengths = [sum(len(m["content"]) for m in item if m["role"] != "assistant") for item in conversations]
    order = sorted(range(len(conversations)), key=lengths.__getitem__)
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    shuffled = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed))
    return [batches[i] for i in shuffled.tolist()]


def check_same_run(parts: Path, args) -> None:
    """Parts of another run must not be mixed in."""
    keys = ("target", "data", "temperature", "batch", "max_new_tokens", "seed", "limit", "dtype")
    settings = {key: getattr(args, key) for key in keys}
    path = parts / "settings.json"
    if path.exists() and json.loads(path.read_text()) != settings:
        begun = json.dumps(json.loads(path.read_text()))
        raise ValueError(f"{parts} was begun with other settings ({begun}); remove it or choose another output")
    write_json(path, settings)


def regenerate(args) -> None:
    parts = Path(f"{args.output}.parts")
    if Path(args.output).exists() and not parts.exists():
        print(f"{args.output}: complete; remove it to sample again")
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.dtype == "auto":
        args.dtype = "bf16" if has_bf16(device) else "fp32"  # decided before it is compared with the parts' settings
    check_same_run(parts, args)
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(args.target, dtype=dtype, device_map=args.device_map).eval()
    if args.device_map is None:
        model = model.to(device)
    tokenizer = AutoTokenizer.from_pretrained(args.target)
    conversations = read_messages(args.data)[: args.limit]
    started, tokens = time.monotonic(), 0
    bar = tqdm(batches_of(conversations, args.batch, args.seed), unit="batch")
    for number, rows in enumerate(bar):
        path = parts / f"{number:06d}.jsonl"
        if args.minutes is not None and time.monotonic() - started > 60 * args.minutes:
            break
        if not path.exists():
            seed = args.seed * 1_000_003 + number
            temperatures = [args.temperature[i % len(args.temperature)] for i in rows]
            records = regenerate_batch(model, tokenizer, [conversations[i] for i in rows], temperatures, args, seed)
            write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
            tokens += sum(b - a for record in records for a, b in record["spans"])
            bar.set_postfix_str(f"{tokens / (time.monotonic() - started):.0f} tok/s")
    finished = sorted(parts.glob("[0-9]*.jsonl"))
    text = "".join(part.read_text("utf-8") for part in finished)
    write_text(args.output, text)
    print(f"{args.output}: {text.count(chr(10))} of {len(conversations)} conversations")
    if len(finished) == len(bar):
        shutil.rmtree(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m eagle.train.regenerate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--target", required=True, help="directory or hub id of the target model")
    parser.add_argument("--data", required=True, nargs="+", help="JSONL files, messages or ShareGPT")
    parser.add_argument("--output", required=True)
    parser.add_argument(
        "--temperature",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="T",
        help="several: conversation i is answered at the i-th of them, round and round",
    )
    parser.add_argument("--max-new-tokens", type=int, default=512, help="per answer; the context ends it as well")
    parser.add_argument("--batch", type=int, default=128, help="conversations sampled together")
    parser.add_argument("--limit", type=int, help="only the first conversations")
    parser.add_argument("--minutes", type=float, help="stop after the batch that ends later than this")
    parser.add_argument(
        "--dtype",
        choices=("auto", "bf16", "fp32"),
        default="auto",
        help="auto: bf16 where the device multiplies it itself, else fp32",
    )
    parser.add_argument("--device-map", help="as in transformers, e.g. auto: spread a large target over the GPUs")
    parser.add_argument("--seed", type=int, default=0)
    regenerate(parser.parse_args())


if __name__ == "__main__":
    main()
