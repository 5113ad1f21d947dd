"""Replace the answers of a data set with the target's own: drafting happens along the target's own text.

    python -m eagle.train.regenerate --target T --data F... --output OUT.jsonl --temperature 0 0.6 1
    python -m eagle.train.regenerate --target T --self-prompts 2000 --exclude EVALUATION_FILE... --output OUT.jsonl
    python -m eagle.train.regenerate --target T --data F... --output OUT.jsonl --endpoint http://127.0.0.1:8000/v1

Questions stay, every assistant turn is sampled anew (later turns see the new earlier ones). With --self-prompts the
target also writes prompts itself, by continuing its chat template's rendering up to the start of a user turn. With
--endpoint a server samples (vLLM, `python -m eagle.serve`): T's tokenizer and settings are read, its weights are not
loaded. A line of the output holds the messages and the sampled token ids, in the order of the data. Random numbers
belong to the conversation, so batch size, interruptions and --minutes do not change an answer (up to rounding).

    OUT.jsonl.settings.json     what OUT.jsonl is sampled from; another target, data or settings are refused
    OUT.jsonl.part              finished conversations while the run is incomplete: it continues from there
"""

import argparse
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from eagle import command
from eagle.chat_template import add_flag, check_keywords
from eagle.checkpoints.pretrained import read_config, read_generation_config, read_tokenizer
from eagle.digests import seed_of, sha256_of_file
from eagle.files import sole_writer, write_whole
from eagle.nn.precision import DTYPES, fastest
from eagle.train.data.conversations import read_messages
from eagle.train.data.dialogue import Dialogue, json_line
from eagle.train.data.endpoint import Endpoint
from eagle.train.data.overlap import RUN, Overlap
from eagle.train.data.provenance import Journal, Sidecar, target_digests
from eagle.train.data.sampler import Request, Sampler, keep_freed_memory
from eagle.train.data.self_prompts import PromptWriter
from eagle.train.setup import load_pretrained

WINDOW = 256  # conversations among which similar prompt lengths are put beside each other, short ones first


def check(args: argparse.Namespace) -> None:
    """Raise ValueError where there is nothing to answer, or where what loads the target goes with a server."""
    if not args.data and not args.self_prompts:
        raise ValueError("nothing to answer: give --data F..., --self-prompts N, or both")
    if args.endpoint and (args.dtype != "auto" or args.device_map):
        raise ValueError("--dtype and --device-map are the server's with --endpoint: leave them out")
    if args.endpoint_model and not args.endpoint:
        raise ValueError("--endpoint-model: expected with --endpoint URL only")


def settings_of(args: argparse.Namespace, dtype: str) -> dict:
    """Everything that decides what the output holds."""
    keys = ("temperature", "max_new_tokens", "limit", "seed", "self_prompts", "prompt_tokens")
    return {
        **{key: getattr(args, key) for key in keys},
        "dtype": dtype,
        "chat_template_kwargs": args.chat_template_kwargs,
        "data": [sha256_of_file(path) for path in args.data],
        "exclude": [sha256_of_file(path) for path in args.exclude],
        "target": target_digests(args.target),
    }


def end_tokens(settings, tokenizer) -> list[int]:
    """The ids that end an answer, from a generation config or, without one, the tokenizer. Raises ValueError where
    neither has one.
    """
    ends = settings.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    if ends is None:
        raise ValueError("the target has no end token: set eos_token_id in its generation_config.json")
    return list(ends) if isinstance(ends, list) else [ends]


class Clock:
    """Time, and tokens sampled in it."""

    def __init__(self, minutes: float | None) -> None:
        """`minutes` None: no limit."""
        self.started, self.minutes, self.tokens = time.monotonic(), minutes, 0

    def is_over(self) -> bool:
        """Whether the limit has passed."""
        return self.minutes is not None and self.seconds() > 60 * self.minutes

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    def rate(self) -> str:
        """Tokens per second, as text."""
        return f"{self.tokens / max(self.seconds(), 1e-9):.0f} tok/s"


def in_sampling_order(dialogues: dict[int, Dialogue], seed: int) -> list[int]:
    """Numbers in random order, similar prompt lengths beside each other.

    The first ones are a fair sample of all, whenever the time is over, but for a last unfinished window.
    """
    numbers = sorted(dialogues)
    shuffled = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed)).tolist()
    order = [numbers[i] for i in shuffled]
    windows = [order[start : start + WINDOW] for start in range(0, len(order), WINDOW)]
    return [i for window in windows for i in sorted(window, key=lambda i: len(dialogues[i].ids))]


def answer_all(
    sampler: Sampler | Endpoint,
    dialogues: dict[int, Dialogue],
    journal: Journal,
    clock: Clock,
    args: argparse.Namespace,
) -> None:
    """Answer the dialogues, all of which have a first prompt, and append each to the journal when it is finished."""
    context = sampler.context

    def request(number: int) -> Request:
        dialogue = dialogues[number]
        limit = min(args.max_new_tokens, context - len(dialogue.ids))
        seed = seed_of(args.seed, "answer", number, dialogue.answers)
        return Request(number, list(dialogue.ids), limit, seed, dialogue.temperature)

    queue = deque(request(number) for number in in_sampling_order(dialogues, args.seed))
    with tqdm(total=len(queue), unit="conversation", desc="answers") as bar:
        for done, ids in sampler.run(queue):
            dialogue = dialogues[done.key]
            dialogue.answer(ids)
            clock.tokens += len(ids)
            if dialogue.next_prompt() and len(dialogue.ids) < context:
                queue.appendleft(request(done.key))
                continue
            journal.append(done.key, dialogue.records())
            bar.update()
            bar.set_postfix_str(clock.rate())
            if clock.is_over():
                started = [item for item in queue if dialogues[item.key].answers]
                queue.clear()
                queue.extend(started)  # conversations begun are finished: short ones are not preferred


def without_overlap(prompts: list[list[dict]], exclude: list[str]) -> Iterator[int]:
    """Numbers of the conversations none of whose user turns shares 13 words in a row with an excluded file."""
    overlap = Overlap(exclude)
    for number, messages in enumerate(prompts):
        if not any(overlap.shares(m["content"]) for m in messages if m["role"] != "assistant"):
            yield number


def first_prompts(tokenizer, conversations: list, numbers: Iterable[int], args) -> dict[int, Dialogue]:
    """Dialogues at their first assistant turn."""
    found = {}
    for number in numbers:
        temperature = args.temperature[number % len(args.temperature)]
        dialogue = Dialogue(tokenizer, conversations[number], temperature, args.chat_template_kwargs)
        if dialogue.next_prompt():
            found[number] = dialogue
    return found


def regenerate(args: argparse.Namespace) -> None:
    """Sample what is missing of the output. Raises ValueError for settings, data or an output that do not fit, or where
    another process writes the output.
    """
    check(args)
    with sole_writer(args.output):
        _sample(args)


def open_sampler(args: argparse.Namespace, device: torch.device, dtype: str) -> tuple[Sampler | Endpoint, Any]:
    """What answers, and the target's tokenizer."""
    if args.endpoint:
        config, tokenizer = read_config(args.target), read_tokenizer(args.target)
        ends = end_tokens(read_generation_config(args.target), tokenizer)
        context = config.max_position_embeddings
        return Endpoint(args.endpoint, args.batch, ends, context, args.endpoint_model), tokenizer
    model, tokenizer = load_pretrained(args.target, DTYPES[dtype], args.device_map)
    model = model if args.device_map else model.to(device)
    return Sampler(model, args.batch, end_tokens(model.generation_config, tokenizer), len(tokenizer)), tokenizer


def _sample(args: argparse.Namespace) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = "the server's" if args.endpoint else fastest(device) if args.dtype == "auto" else args.dtype
    conversations = read_messages(args.data)[: args.limit]
    sidecar = Sidecar(args.output, settings_of(args, dtype))
    if sidecar.begin():
        print(f"{args.output}: complete; remove it and {sidecar.path.name} to sample again")
        return
    clock, journal = Clock(args.minutes), Journal(f"{args.output}.part")
    sampler, tokenizer = open_sampler(args, device, dtype)
    check_keywords(tokenizer, args.chat_template_kwargs)
    prompts = Journal(f"{args.output}.prompts.part")
    if args.self_prompts:
        writer = PromptWriter(sampler, tokenizer, args.prompt_tokens, args.seed, args.chat_template_kwargs)
        writer.write(args.self_prompts, prompts, clock.is_over)
        clock.tokens += writer.tokens
        if len(prompts.values) < args.self_prompts:
            print(f"{len(prompts.values)} of {args.self_prompts} prompts, no answers yet: the same command continues")
            return
        conversations += writer.conversations(prompts)
    kept = list(without_overlap(conversations, args.exclude))
    dialogues = first_prompts(tokenizer, conversations, (i for i in kept if i not in journal.values), args)
    dialogues = {number: dialogue for number, dialogue in dialogues.items() if len(dialogue.ids) < sampler.context}
    begun = len(dialogues)
    if not clock.is_over():
        answer_all(sampler, dialogues, journal, clock, args)
    answered = [journal.values[number] for number in sorted(journal.values)]
    write_whole(args.output, "".join(json_line(record) for records in answered for record in records))
    if args.exclude:
        print(f"{len(conversations) - len(kept)} prompts dropped: {RUN} words in a row shared with --exclude files")
    print(f"{args.output}: {len(answered)} of {len(kept)} conversations, {clock.rate()}")
    if all(number in journal.values for number in dialogues):
        sidecar.finish()
        for part in (journal.path, prompts.path):
            part.unlink(missing_ok=True)
    else:
        print(f"incomplete ({begun} were left to do): the same command continues")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = command.parser("eagle.train.regenerate", __doc__)
    add = found.add_argument
    add("--target", required=True, help="directory or hub id of the target model")
    add("--data", nargs="+", default=[], help="JSONL files, messages or ShareGPT")
    add("--output", required=True)
    add(
        "--temperature",
        type=command.TEMPERATURE,
        nargs="+",
        default=[1.0],
        metavar="T",
        help="several: conversation i is answered at the i-th of them, round and round",
    )
    add("--max-new-tokens", type=command.COUNT, default=512, help="per answer; the context ends it as well")
    add("--batch", type=command.COUNT, default=128, help="conversations in progress at once")
    add("--limit", type=command.COUNT, help="only the first conversations of the data")
    add("--minutes", type=command.SECONDS, help="begin no conversation after this time")
    add(
        "--self-prompts",
        type=command.INDEX,
        default=0,
        metavar="N",
        help="let the target write N prompts itself, and answer them",
    )
    add(
        "--prompt-tokens",
        type=command.COUNT,
        default=256,
        help="longest prompt of --self-prompts; longer ones are dropped",
    )
    add(
        "--exclude", nargs="+", default=[], metavar="F", help=f"drop prompts that share {RUN} words in a row with these"
    )
    add(
        "--dtype",
        choices=("auto", "bfloat16", "float32"),
        default="auto",
        help="auto: bfloat16 where the device multiplies it in hardware, else float32",
    )
    add("--endpoint", metavar="URL", help="a server of the target (vLLM, eagle.serve), e.g. http://127.0.0.1:8000/v1")
    add("--endpoint-model", metavar="NAME", help="the target's name there (default: the only one)")
    add("--device-map", help="as in transformers, e.g. auto: divide a large target over the GPUs")
    add_flag(found)
    add("--seed", type=command.SEED, default=0)
    return found


def main(argv: list[str] | None = None) -> int:
    """Sample as `argv` says and return the exit status."""

    def kept(args: argparse.Namespace) -> str:
        part = Path(f"{args.output}.part")
        if part.exists():
            return f"finished conversations are kept in {part}; the same command continues"
        return "no conversation was finished yet; the same command continues"

    return command.start(parser(), regenerate, argv, kept)


if __name__ == "__main__":
    keep_freed_memory()  # of the whole process: not where others call `main`
    sys.exit(main())
