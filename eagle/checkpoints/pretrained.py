"""What `transformers` reads of a model directory or hub id: config, tokenizer, weights.

Whatever `transformers`, `tokenizers`, safetensors or the hub raise becomes a ValueError of one sentence that names the
model. A checkpoint that lacks tensors is refused: `transformers` would fill them with random numbers.

What says where files are (`HUB_OPTIONS`) reaches config, tokenizer and weights alike.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from eagle.checkpoints.weight_files import check_local

LONGEST_REASON = 300
ACCESS = ("token", "cache_dir", "local_files_only", "force_download", "proxies")  # of the hub, whatever the repository
CODE_OPTIONS = ("trust_remote_code", "code_revision")  # a head has no code
HUB_OPTIONS = (*ACCESS, *CODE_OPTIONS, "revision", "subfolder")


def hub_options(options: Mapping[str, Any], names: tuple[str, ...] = HUB_OPTIONS) -> dict[str, Any]:
    """Those of a `from_pretrained`'s keyword arguments that say where files are."""
    return {name: options[name] for name in names if name in options}


@contextmanager
def loading(path: str | Path, options: Mapping[str, Any]) -> Iterator[None]:
    """Turn an exception raised inside into a ValueError that names the model; the files' own checks come first."""
    check_local(Path(path, options.get("subfolder") or ""))
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


def read_config(path: str | Path, **hub: Any) -> Any:
    """The config; `hub`: HUB_OPTIONS. Raises ValueError naming the model."""
    with loading(path, hub):
        return AutoConfig.from_pretrained(path, **hub)


def read_generation_config(path: str | Path, **hub: Any) -> GenerationConfig:
    """The generation config, as a model would have it: its file's, else what the config says. Raises ValueError."""
    with loading(path, hub):
        try:
            return GenerationConfig.from_pretrained(path, **hub)
        except OSError:  # no such file
            return GenerationConfig.from_model_config(AutoConfig.from_pretrained(path, **hub))


def read_tokenizer(path: str | Path, **hub: Any) -> Any:
    """The tokenizer, tried on one word; `hub`: HUB_OPTIONS.

    Raises ValueError naming the model, also for a broken chat template.
    """
    with loading(path, hub):
        tokenizer = AutoTokenizer.from_pretrained(path, **hub)
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
    with loading(path, options):
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
