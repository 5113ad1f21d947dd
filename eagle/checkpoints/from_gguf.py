"""A GGUF file as an ordinary `transformers` directory: bf16 safetensors, tokenizer, chat template, generation config.

`transformers` reads and dequantizes the file (with the `gguf` package). What its conversion loses is put back here:
the pre-tokenizer that splits digits, and which tokens end an answer.
"""

import contextlib
import io
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from eagle.files import write_directory, write_json

# GGUF's tokenizer.ggml.pre -> the pre-tokenizer, for those that transformers replaces by plain byte-level splitting.
PRE_TOKENIZERS = {
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
}
ORIGIN = "origin.json"
SAMPLE = "Steps:\n\n1. Add 12 and 3.50\n\n2. Grüße, 世界  42!"


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No advice from `transformers` inside, and no progress bars where nobody watches them."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    watched = sys.stderr.isatty()
    if not watched:
        logging.disable_progress_bar()
    try:  # the bar of the GGUF reader has no switch
        with contextlib.nullcontext() if watched else contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def read_tokenizer(gguf: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file, with its own pre-tokenizer and a pad token."""
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    fields = GGUFReader(gguf).fields
    kind = fields.get("tokenizer.ggml.pre")
    make = PRE_TOKENIZERS.get(kind.contents()) if kind is not None else None
    if make is not None:
        tokenizer.backend_tokenizer.pre_tokenizer = make()
    pad = fields.get("tokenizer.ggml.padding_token_id")
    if pad is not None:  # transformers 5.17 does not read it
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(int(pad.contents()))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def stop_ids(tokenizer: PreTrainedTokenizerBase, stop_tokens: Iterable[str]) -> list[int]:
    """The ids of `stop_tokens`. Raises ValueError for a token the tokenizer does not have."""
    vocabulary = tokenizer.get_vocab()
    absent = [token for token in stop_tokens if token not in vocabulary]
    if absent:
        raise ValueError(f"stop token {absent[0]!r} is not in the tokenizer's vocabulary of {len(vocabulary)} tokens")
    return [vocabulary[token] for token in stop_tokens]


def check_tokenizer(directory: Path, chat: bool) -> None:
    """The saved tokenizer decodes what it encodes and, for a `chat` model, renders a chat. Raises ValueError."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    back = tokenizer.decode(tokenizer(SAMPLE, add_special_tokens=False)["input_ids"])
    if back != SAMPLE:
        raise ValueError(f"the converted tokenizer turns {SAMPLE!r} into {back!r}; the GGUF file's tokenizer is broken")
    if not chat:
        return
    if not tokenizer.chat_template:
        raise ValueError("the GGUF file has no chat template; expected that of an instruct model")
    messages = [{"role": "user", "content": SAMPLE}]
    if SAMPLE not in tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True):
        raise ValueError("the chat template leaves the user's message out; the GGUF file's template is broken")


def save_model(gguf: Path, directory: Path, name: str, generation: GenerationConfig, size: int) -> None:
    """Dequantize the weights to bf16 and write them with both configs. `size`: number of the tokenizer's tokens."""
    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.bfloat16)
    if size > model.config.vocab_size:
        raise ValueError(
            f"the converted tokenizer has {size} tokens and the model's vocabulary {model.config.vocab_size}; the GGUF "
            "file's tokenizer lacks one of its special tokens"
        )
    model.hf_quantizer = None  # save_pretrained refuses a model that calls itself quantized
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    vars(model.config).update(_model_name_or_path=name)  # the conversion takes it from the file's free text
    model.config.eos_token_id = generation.eos_token_id
    model.config.pad_token_id = generation.pad_token_id
    model.generation_config = generation
    model.save_pretrained(directory)


def convert_gguf(
    gguf: Path, output: Path, name: str, stop_tokens: Iterable[str], origin: dict[str, Any], chat: bool = True
) -> None:
    """Write the model in `gguf` to the directory `output`, which must not exist; it appears when it is complete.

    name         what config.json calls the model
    stop_tokens  tokens that end an answer, the tokenizer's own EOS first
    origin       written to origin.json: where the file came from
    chat         whether a chat template is required, as of an instruct model
    Raises ValueError for a tokenizer that does not decode what it encodes, and for an unknown stop token.
    """

    def fill(directory: Path) -> None:
        tokenizer = read_tokenizer(gguf)
        stops = stop_ids(tokenizer, stop_tokens)
        tokenizer.save_pretrained(directory)
        check_tokenizer(directory, chat)
        generation = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=stops[0] if len(stops) == 1 else stops,
            pad_token_id=tokenizer.pad_token_id,
        )
        save_model(gguf, directory, name, generation, len(tokenizer))
        write_json(directory / ORIGIN, origin)

    with quiet_transformers():
        write_directory(output, fill)
