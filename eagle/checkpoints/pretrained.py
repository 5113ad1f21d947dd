"""What `transformers` reads of a model directory or hub id: config, tokenizer, weights.

Whatever `transformers`, `tokenizers`, safetensors or the hub raise becomes a ValueError of one sentence that names the
model. A checkpoint that lacks tensors is refused: `transformers` would fill them with random numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from eagle.checkpoints.weight_files import check_local

LONGEST_REASON = 300


@contextmanager
def loading(path: str | Path) -> Iterator[None]:
    """Turn an exception raised inside into a ValueError that names the model; the files' own checks come first."""
    check_local(path)
    try:
        yield
    except Exception as error:  # each of the libraries has its own
        kind = "a directory" if Path(path).is_dir() else "no directory here, taken for a hub id"
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, KeyError | IndexError | AttributeError | TypeError | RecursionError):
            reason = f"{type(error).__name__}: {reason}; a file of it does not hold what transformers expects"
        if len(reason) > LONGEST_REASON:
            reason = f"{reason[:LONGEST_REASON]}..."
        raise ValueError(f"target {str(path)!r} ({kind}) cannot be loaded: {reason}") from error


def read_config(path: str | Path) -> Any:
    """The config. Raises ValueError naming the model."""
    with loading(path):
        return AutoConfig.from_pretrained(path)


def read_tokenizer(path: str | Path) -> Any:
    """The tokenizer, tried on one word. Raises ValueError naming the model, also for a broken chat template."""
    with loading(path):
        tokenizer = AutoTokenizer.from_pretrained(path)
        tokenizer("word")
        if tokenizer.chat_template:
            check_template(tokenizer)
        return tokenizer


def check_template(tokenizer: Any) -> None:
    """Raise jinja2.TemplateSyntaxError for a chat template that cannot be compiled.

    One that refuses a message is no fault of the files: rendering it then says why.
    """
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "word"}], tokenize=False)
    except TemplateSyntaxError:
        raise
    except Exception:
        return


def read_model(path: str | Path, **options: Any) -> Any:
    """The causal LM in eval mode, complete. Raises ValueError naming the model, and tensors that lack or do not fit."""
    with loading(path):
        model, found = AutoModelForCausalLM.from_pretrained(
            path, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    wrong = {
        "lacks": sorted(found["missing_keys"]),
        "has with another shape": sorted(str(entry[0]) for entry in found["mismatched_keys"]),
    }
    for how, names in wrong.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(
                f"target {str(path)!r}: the checkpoint {how} the tensor {names[0]}{more} that its config.json asks "
                "for; get the files again, or correct config.json"
            )
    return model.eval()
