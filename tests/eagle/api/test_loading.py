"""Where and how a pair is loaded: device, dtype, attention, the head's overrides; both constructors alike."""

from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from eagle import EagleModel, load_head, save_head
from eagle.api import loading
from eagle.api.loading import load_options, main_device, resolve_attention, resolve_device_map, resolve_dtype
from eagle.nn import precision
from tests.eagle.tiny import VOCAB, tiny_head, tiny_target

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PROMPT = torch.tensor([[7, 3, 9, 1, 5]])


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    base, head = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("head")
    target = tiny_target()
    target.save_pretrained(base)
    tokenizer = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCAB)}, "t0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(base)
    save_head(tiny_head(target), head)
    return str(base), str(head)


@pytest.mark.parametrize(
    ("given", "cuda", "want"),
    [
        (None, True, "cuda"),
        (None, False, None),
        ("cpu", True, "cpu"),
        ("auto", True, "auto"),
        ({"": 1}, True, {"": 1}),
    ],
)
def test_the_gpu_is_the_default_where_there_is_one(given, cuda, want):
    assert resolve_device_map(given, cuda) == want


@pytest.mark.parametrize(
    ("device_map", "cuda", "want"),
    [
        (None, True, "cpu"),
        ("cuda", True, "cuda"),
        ("cuda:1", True, "cuda"),
        (0, True, "cuda"),
        (torch.device("cpu"), True, "cpu"),
        ("auto", True, "cuda"),
        ("auto", False, "cpu"),
        ({"a": "cpu", "b": "disk"}, True, "cpu"),
        ({"a": "cpu", "b": 0}, True, "cuda"),
    ],
)
def test_the_device_that_computes(device_map, cuda, want):
    assert main_device(device_map, cuda).type == want


@pytest.mark.parametrize("hardware", [True, False])
def test_dtypes(monkeypatch, hardware):
    monkeypatch.setattr(precision, "has_bf16", lambda device: hardware)
    fastest = torch.bfloat16 if hardware else torch.float32
    assert resolve_dtype("auto", CPU) == resolve_dtype("auto", GPU) == fastest
    assert resolve_dtype(None, CPU) == torch.float32
    assert resolve_dtype(None, GPU) == loading.CHECKPOINT_DTYPE
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        assert resolve_dtype(dtype, CPU) == resolve_dtype(name, CPU) == resolve_dtype(str(dtype), CPU) == dtype


@pytest.mark.parametrize(("family", "reason"), [("llama", None), ("llama", "no compiler"), ("gemma3_text", None)])
def test_native_code_makes_bfloat16_the_faster_one(monkeypatch, family, reason):
    monkeypatch.setattr(loading, "fastest", lambda device: "float32")
    monkeypatch.setattr(loading.native, "unavailable", lambda: reason)
    expected = torch.bfloat16 if (family, reason) == ("llama", None) else torch.float32
    assert resolve_dtype("auto", CPU, family) == expected
    assert resolve_dtype("auto", GPU, family) == torch.float32


@pytest.mark.parametrize("dtype", ["fp8", "", 3, torch.int64, "int8"])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match="dtype=.*: expected a floating"):
        resolve_dtype(dtype, CPU)


def test_with_a_gpu_and_nothing_said_the_model_goes_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert load_options(None, None, None, None) == (loading.CHECKPOINT_DTYPE, "cuda", "sdpa")
    assert load_options(None, "cpu", None, None) == (torch.float32, "cpu", "grouped")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load_options(None, None, None, None) == (torch.float32, None, "grouped")


@pytest.mark.parametrize("accelerate", [True, False])
def test_one_device_needs_no_accelerate(paths, monkeypatch, accelerate):
    asked = []
    load = loading.read_model

    def recorded(path, device_map, **options):
        asked.append(device_map)
        return load(path, device_map=device_map, **options)

    monkeypatch.setattr(loading, "is_accelerate_available", lambda: accelerate)
    monkeypatch.setattr(loading, "read_model", recorded)
    assert EagleModel.from_pretrained(*paths, device_map="cpu").device == CPU
    assert asked == (["cpu"] if accelerate else [None])


def test_attention_by_either_name():
    assert resolve_attention(None, "sdpa", CPU) == "sdpa"
    assert resolve_attention("split_prefix", None, CPU) == resolve_attention("split_prefix", "split_prefix", CPU)
    with pytest.raises(ValueError, match="give one of them"):
        resolve_attention("sdpa", "split_prefix", CPU)


def test_the_attention_of_a_device():
    assert resolve_attention(None, None, CPU) == "grouped"
    assert resolve_attention(None, None, torch.device("cuda")) == "sdpa"


@pytest.mark.parametrize("name", ["attention", "attn_implementation"])
def test_an_attention_that_misreads_tree_masks_is_refused(paths, name):
    with pytest.raises(ValueError, match=f"{name}='flash_attention_2': expected one of sdpa"):
        EagleModel.from_pretrained(*paths, **{name: "flash_attention_2"})


def test_the_heads_overrides(paths):
    model = EagleModel.from_pretrained(*paths, taps=(1, 3, 6), rope_theta=5000)
    config = model.drafter.head.config
    assert model.target.taps == config.taps == (1, 3, 6)
    assert config.rope_parameters["rope_theta"] == 5000
    with pytest.raises(ValueError, match="give ea_model_path with them"):
        EagleModel.from_pretrained(paths[0], taps=(1, 3, 6))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_constructors_prepare_the_same_model(paths, dtype):
    """A head in another dtype than the target's is cast, as `from_pretrained` loads it."""
    loaded = EagleModel.from_pretrained(*paths, dtype=dtype)
    head = load_head(paths[1], loaded.target.config, dtype=torch.float32)
    target = AutoModelForCausalLM.from_pretrained(paths[0], dtype=getattr(torch, dtype))
    made = EagleModel.from_head(target, head)
    for left, right in zip(loaded.drafter.head.parameters(), made.drafter.head.parameters()):
        assert left.dtype == right.dtype == target.dtype
        assert torch.equal(left, right)
    settings = {"max_new_tokens": 20, "seed": 0, "nodes": 12, "depth": 4}
    assert torch.equal(loaded.generate(PROMPT, **settings), made.generate(PROMPT, **settings))


@pytest.mark.parametrize("device_map", ["cuda:1", {"": "cuda:1"}, {"": 1}, 1])
def test_a_gpu_by_any_name_needs_no_accelerate(monkeypatch, device_map):
    """The model is read on the CPU and moved: `transformers` would ask for accelerate."""
    seen: dict = {}
    read = SimpleNamespace(to=lambda device: seen.update(moved_to=device))
    monkeypatch.setattr(loading, "is_accelerate_available", lambda: False)
    monkeypatch.setattr(loading, "read_model", lambda path, **options: seen.update(options) or read)
    loading.load_lm("somewhere", loading.LoadOptions(torch.float32, device_map, "sdpa"))
    assert seen["device_map"] is None and seen["moved_to"] == torch.device("cuda", 1)
