"""What code for a `transformers` model touches besides generate's arguments: attributes, pipeline, outputs, help."""

from pathlib import Path
from typing import Literal, get_overloads, get_type_hints

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, TextIteratorStreamer, pipeline
from transformers.utils import ModelOutput

import eagle
from eagle import EagleModel, GenerateOutput
from eagle.api.arguments import GenerateArguments

ROOT = Path(__file__).parents[3]
PAIR = ROOT / "checkpoints" / "demo"
HEAD = str(PAIR / "eagle3")
SMALL = {"nodes": 8, "depth": 3}


@pytest.fixture(scope="module")
def model():
    return EagleModel.from_pretrained(str(PAIR / "target"), HEAD, dtype=torch.float32)


@pytest.fixture(scope="module")
def stock():
    return AutoModelForCausalLM.from_pretrained(PAIR / "target", dtype=torch.float32)


@pytest.fixture(scope="module")
def ids(model):
    return model.tokenizer(["Mia has 3 boxes."], return_tensors="pt")["input_ids"]


def test_attributes_are_the_target_s(model):
    target = model.target.model
    assert model.config is target.config and model.generation_config is target.generation_config
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert model.eval() is model and not model.training and model.can_generate()


def test_a_changed_generation_config_counts(model, ids):
    before = model.generation_config
    model.generation_config = GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=before.eos_token_id)
    try:
        assert model.generate(ids, tree="none").shape[1] == ids.shape[1] + 3
    finally:
        model.generation_config = before


@pytest.mark.parametrize("place", [("cpu",), (torch.device("cpu"),), (torch.float32,), ("cpu", torch.float32), ()])
def test_to_where_it_is_changes_nothing(model, place):
    assert model.to(*place) is model
    assert model.to(device="cpu", dtype=torch.float32) is model


@pytest.mark.parametrize("place", ["cuda", torch.float16, "meta"])
def test_to_elsewhere_names_the_argument_of_loading(model, place):
    with pytest.raises(ValueError, match=r"the pair is on cpu in torch.float32.*device_map=.*dtype="):
        model.to(place)


@pytest.mark.parametrize("given", [{"do_sample": False}, {"temperature": 0.8, "top_k": 20, "seed": 1}])
def test_pipeline(model, given):
    ask = pipeline("text-generation", model=model, tokenizer=model.tokenizer)
    assert "EagleModel" in repr(ask)
    (found,) = ask("Mia has 3 boxes.", max_new_tokens=6, **given, **SMALL)
    ids = model.tokenizer("Mia has 3 boxes.", return_tensors="pt")["input_ids"]
    want = model.generate(ids, 6, **given, **SMALL)
    assert found["generated_text"] == model.tokenizer.decode(want[0], skip_special_tokens=True)
    chat = ask([{"role": "user", "content": "Hello"}], max_new_tokens=4, **given, **SMALL)
    assert chat[0]["generated_text"][-1]["role"] == "assistant"


def test_the_output_is_a_model_output(model, ids):
    out = model.generate(ids, 5, return_dict_in_generate=True, **SMALL)
    assert isinstance(out, ModelOutput)
    assert list(out) == ["sequences", "rows"] and out["rows"] is out.rows
    assert out[0] is out.sequences is out["sequences"]
    sequences, rows = out.to_tuple()
    assert sequences.shape[1] == ids.shape[1] + len(rows[0].new_tokens)


def test_type_checkers_know_what_comes_back():
    found = {}
    for one in get_overloads(EagleModel.generate):
        hints = get_type_hints(one)
        found[hints["return_dict_in_generate"]] = hints["return"]
    want = {Literal[True]: GenerateOutput, Literal[False] | None: Tensor, bool | None: Tensor | GenerateOutput}
    assert found == want


@pytest.mark.parametrize("name", ["generate", "stream"])
def test_help_lists_every_argument(name):
    text = getattr(EagleModel, name).__doc__
    for argument in ("input_ids", "max_new_tokens", *GenerateArguments.__annotations__):
        assert argument in text, argument


OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_that_are_not_there_are_refused_everywhere(model, stock, ids, name):
    message = f"{name}=True: not supported with speculative decoding; leave it out"
    asked = {name: True, "return_dict_in_generate": True}
    with pytest.raises(ValueError, match=message):
        model.generate(ids, 5, **asked)
    with pytest.raises(ValueError, match=message):
        model.stream(ids, 5, **{name: True})
    with pytest.raises(ValueError, match=message):
        model.generate(ids, generation_config=GenerationConfig(max_new_tokens=5, **asked))
    with pytest.raises(ValueError, match=message):
        stock.generate(ids, custom_generate=eagle.custom_generate(HEAD), max_new_tokens=5, **asked)


def test_a_streamer_that_would_wait_for_ever_is_refused(model, stock, ids):
    """transformers keeps `streamer` from a custom function; its reader gets an end."""
    streamer = TextIteratorStreamer(model.tokenizer, skip_prompt=True, timeout=5)
    with pytest.raises(ValueError, match="streamer.*stream_to="):
        stock.generate(ids, custom_generate=eagle.custom_generate(HEAD), streamer=streamer, max_new_tokens=5)
    assert list(streamer) == [""]
