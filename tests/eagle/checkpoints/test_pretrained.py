"""Damaged target directories: one sentence that names the directory, whatever the libraries below raise."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from eagle import EagleModel
from eagle.train.setup import load_pretrained
from eval.measure import tree_picture
from tests.eagle.tiny import VOCAB, tiny_target


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    place = tmp_path_factory.mktemp("good")
    tiny_target().save_pretrained(place)
    tokenizer = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCAB)}, "t0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(place)
    return place


def edited(path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def config(**changes):
    return lambda place: edited(place / "config.json", **changes)


def written(name, text):
    return lambda place: (place / name).write_text(text)


def tensors(change):
    def damage(place):
        path = place / "model.safetensors"
        weights = load_file(path)
        change(weights)
        save_file(weights, path, metadata={"format": "pt"})

    return damage


UP = "model.layers.2.mlp.up_proj.weight"
DAMAGE = {
    "config.json is a list": (written("config.json", "[]"), "expected a JSON object"),
    "config.json nests too deep": (written("config.json", "[" * 99999), "not JSON"),
    "a width that is text": (config(hidden_size="abc"), "'hidden_size' expected int, got str"),
    "no heads": (config(num_attention_heads=0), "modulo by zero"),
    "another vocabulary": (config(vocab_size=70), "has with another shape the tensor"),
    "an unknown activation": (config(hidden_act="abc"), "KeyError: 'abc'"),
    "a type that is a list": (config(model_type=[1]), "TypeError: unhashable"),
    "generation_config.json is null": (written("generation_config.json", "null"), "TypeError"),
    "tokenizer.json is a list": (written("tokenizer.json", "[]"), "cannot be loaded"),
    "tokenizer.json is missing": (lambda place: (place / "tokenizer.json").unlink(), "cannot be loaded"),
    "tokenizer_config.json is a number": (written("tokenizer_config.json", "3"), "cannot be loaded"),
    "a length that is text": (
        lambda place: edited(place / "tokenizer_config.json", model_max_length="abc"),
        "TypeError: '>' not supported",
    ),
    "a template that is none": (written("chat_template.jinja", "{{ broken"), "unexpected end of template"),
    "a tensor is missing": (tensors(lambda weights: weights.pop(UP)), f"lacks the tensor {UP} that"),
    "tensors are missing": (tensors(lambda weights: (weights.pop(UP), weights.pop("lm_head.weight"))), "and 1 more"),
    "a tensor is cut": (
        tensors(lambda weights: weights.update({UP: weights[UP][:5].clone()})),
        f"has with another shape the tensor {UP}",
    ),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_target_is_one_sentence(good, tmp_path, damage, words):
    place = shutil.copytree(good, tmp_path / "target")
    damage(place)
    for load in (EagleModel.from_pretrained, lambda path: load_pretrained(path, torch.float32)):
        with pytest.raises(ValueError, match="^target '") as caught:
            load(str(place))
        message = str(caught.value)
        assert message.startswith(f"target {str(place)!r}") and words in message
        assert "\n" not in message and len(message) < 600


def test_a_name_that_is_nowhere(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"target 'none/such' \(no directory here, taken for a hub id\) cannot be"):
        EagleModel.from_pretrained("none/such")


def test_a_template_that_refuses_a_message_is_no_fault_of_the_files(good, tmp_path, capsys):
    place = shutil.copytree(good, tmp_path / "target")
    (place / "chat_template.jinja").write_text("{{ raise_exception('two turns, please') }}")
    assert EagleModel.from_pretrained(str(place)).tokenizer.chat_template
    capsys.readouterr()  # the progress bar of that call
    assert tree_picture.main(["--base-model-path", str(place), "--output", str(tmp_path / "a.png")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: the target's chat template cannot render the messages: two turns, please"


def test_the_good_one_loads(good):
    assert EagleModel.from_pretrained(str(good)).tokenizer("t3")["input_ids"] == [3]
