r"""The demo pair's training text: where it comes from, what is set aside, how it becomes token ids.

    python -m eagle.train.demo.corpus DATA_DIR OUT_DIR    gsm8k.jsonl, flan_cot.jsonl, held_out.jsonl for eagle.train

Sources (a data directory with the layout below; licences lie beside the files):
    gsm8k/train.jsonl      question, answer        calculator marks `<<48/2=24>>` removed
    flan_cot/*_train.tsv   prompt, answer, rationale   (tab-separated, `\n` escaped)
Nothing marked "evaluation only" is ever opened here. Every 20th GSM8K training question (5 %) is held out: it is
never trained on; settings are tuned on it.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from eagle import command
from eagle.files import write_whole

HOLD_OUT_EVERY = 20
CALCULATOR_MARK = re.compile(r"<<[^>]*>>")
SPECIAL_TOKENS = ["<|pad|>", "<|bos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>' }}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

Conversation = list[dict[str, str]]


def conversation(question: str, answer: str) -> Conversation:
    """One question and its answer."""
    return [{"role": "user", "content": question.strip()}, {"role": "assistant", "content": answer.strip()}]


def read_gsm8k(path: Path) -> Iterator[Conversation]:
    """The conversations of a GSM8K file, without calculator marks."""
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        yield conversation(record["question"], CALCULATOR_MARK.sub("", record["answer"]))


def read_flan(path: Path) -> Iterator[Conversation]:
    """The conversations of a FLAN file, rationales before answers."""
    for line in path.read_text(encoding="utf-8").splitlines():
        fields = [field.replace("\\n", "\n").strip() for field in line.split("\t")]
        if len(fields) == 3:
            prompt, answer, rationale = fields
            yield conversation(prompt, f"{rationale}\n#### {answer}")


def demo_sources(data_dir: str | Path) -> dict[str, list[Conversation]]:
    """Conversations of the demo pair: "gsm8k" and "flan_cot" to train on, "held_out" to tune on.

    Raises ValueError when `data_dir` has no gsm8k/train.jsonl or no flan_cot/*_train.tsv.
    """
    root = Path(data_dir)
    gsm8k, flan = root / "gsm8k" / "train.jsonl", sorted((root / "flan_cot").glob("*_train.tsv"))
    if not gsm8k.is_file() or not flan:
        raise ValueError(
            f"data directory {str(root)!r}: expected gsm8k/train.jsonl and flan_cot/*_train.tsv; "
            "pass the directory that holds both"
        )
    questions = list(read_gsm8k(gsm8k))
    return {
        "gsm8k": [item for i, item in enumerate(questions) if i % HOLD_OUT_EVERY],
        "flan_cot": [item for path in flan for item in read_flan(path)],
        "held_out": questions[::HOLD_OUT_EVERY],
    }


def demo_conversations(data_dir: str | Path) -> tuple[list[Conversation], list[Conversation]]:
    """Training and held-out conversations of the demo pair."""
    sources = demo_sources(data_dir)
    return sources["gsm8k"] + sources["flan_cot"], sources["held_out"]


def train_tokenizer(conversations: list[Conversation], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits, trained on the messages' text; carries the chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((m["content"] for item in conversations for m in item), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, conversations: list[Conversation]) -> list[list[int]]:
    """Token ids of each conversation, rendered with the tokenizer's chat template."""
    texts = [tokenizer.apply_chat_template(item, tokenize=False) for item in conversations]
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def pack(documents: list[list[int]], length: int, generator: torch.Generator) -> torch.Tensor:
    """Shuffle the documents, join them, cut into rows: Int64[rows, length] (the tail is dropped)."""
    order = torch.randperm(len(documents), generator=generator).tolist()
    stream = torch.tensor([token for i in order for token in documents[i]], dtype=torch.int64)
    rows = len(stream) // length
    return stream[: rows * length].view(rows, length)


def write_sources(data_dir: str | Path, out_dir: str | Path) -> None:
    """Write gsm8k.jsonl, flan_cot.jsonl and held_out.jsonl."""
    for name, conversations in demo_sources(data_dir).items():
        lines = [json.dumps({"messages": item}, ensure_ascii=False) + "\n" for item in conversations]
        write_whole(Path(out_dir, f"{name}.jsonl"), "".join(lines))
        print(f"{name}.jsonl: {len(lines)} conversations")


def main(argv: list[str] | None = None) -> int:
    """Write the corpus as `argv` says and return the exit status."""
    parser = command.parser("eagle.train.demo.corpus", __doc__)
    parser.add_argument("data_dir", metavar="DATA_DIR")
    parser.add_argument("out_dir", metavar="OUT_DIR")
    return command.start(parser, lambda args: write_sources(args.data_dir, args.out_dir), argv)


if __name__ == "__main__":
    sys.exit(main())
