"""`custom_generate` on a stock model: the tokens of `EagleModel.generate`, with processors, criteria and batches."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LogitNormalization,
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TypicalLogitsWarper,
)

import eagle
from eagle import EagleModel
from eagle.api.custom_generate import sampling_of

ROOT = Path(__file__).parents[3]
PAIR = ROOT / "checkpoints" / "demo"
HEAD = str(PAIR / "eagle3")
SMALL = {"nodes": 12, "depth": 4, "beta": 0.7, "sharpness": 1.0}  # not those of the calibration


@pytest.fixture(scope="module")
def stock():
    return AutoModelForCausalLM.from_pretrained(PAIR / "target", dtype=torch.float32)


@pytest.fixture(scope="module")
def ours():
    return EagleModel.from_pretrained(str(PAIR / "target"), HEAD, dtype=torch.float32)


@pytest.fixture(scope="module")
def inputs(ours):
    return dict(ours.tokenizer(["Mia has 3 boxes with 12 pencils each."], return_tensors="pt"))


@pytest.mark.parametrize(
    ("theirs", "own"),
    [
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50}),
        ({"do_sample": True, "temperature": 0.8, "top_k": 0, "top_p": 0.9}, {"temperature": 0.8, "top_p": 0.9}),
        ({"do_sample": True, "top_k": 0, "min_p": 0.05, "repetition_penalty": 1.2}, None),
        ({"do_sample": False}, {"temperature": 0}),
        ({"do_sample": False, "repetition_penalty": 1.3}, {"temperature": 0, "repetition_penalty": 1.3}),
    ],
)
@pytest.mark.parametrize("tree", ["none", "hybrid"])
def test_the_tokens_of_eagle_model(stock, ours, inputs, theirs, own, tree):
    shared = {"max_new_tokens": 16, "tree": tree, "seed": 3, **SMALL}
    out = stock.generate(**inputs, custom_generate=eagle.custom_generate(HEAD), **shared, **theirs)
    assert torch.equal(out, ours.generate(**inputs, **shared, **(theirs if own is None else own)))


def test_greedy_equals_transformers_with_processors_and_criteria(stock, inputs):
    decode = eagle.custom_generate(HEAD)
    settings = {
        "max_new_tokens": 24,
        "do_sample": False,
        "no_repeat_ngram_size": 2,
        "logits_processor": LogitsProcessorList([NoRepeatNGramLogitsProcessor(1)]),
        "stopping_criteria": StoppingCriteriaList([lambda ids, scores: ids[:, -2:].sum(1) % 7 == 0]),
    }
    want = stock.generate(**inputs, **settings)
    assert torch.equal(stock.generate(**inputs, custom_generate=decode, **SMALL, **settings), want)


def test_a_padded_batch_and_several_sequences(stock, ours):
    tokenizer = ours.tokenizer
    tokenizer.padding_side = "left"
    batch = dict(
        tokenizer(
            ["Mia has 3 boxes.", "Why do people carry umbrellas when it rains?"], padding=True, return_tensors="pt"
        )
    )
    decode = eagle.custom_generate(HEAD)
    shared = {"max_new_tokens": 10, "seed": 1, "num_return_sequences": 2, **SMALL}
    out = stock.generate(**batch, custom_generate=decode, do_sample=True, top_k=0, **shared)
    assert torch.equal(out, ours.generate(**batch, temperature=1.0, **shared))
    with pytest.raises(ValueError, match="NoRepeatNGramLogitsProcessor: not supported with a padded batch"):
        stock.generate(**batch, custom_generate=decode, do_sample=False, no_repeat_ngram_size=2)


class Streamer:
    def __init__(self):
        self.got = []

    def put(self, value):
        self.got += value.flatten().tolist()

    def end(self):
        self.got.append("end")


def test_the_folder_for_the_hub(stock, ours, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    shutil.copytree(ROOT / "docs" / "custom_generate", tmp_path / "repository" / "custom_generate")
    settings, streamer = {"max_new_tokens": 12, "seed": 0, **SMALL}, Streamer()
    out = stock.generate(
        **inputs,
        streamer=streamer,
        custom_generate=str(tmp_path / "repository"),
        trust_remote_code=True,
        head=HEAD,
        do_sample=True,
        top_k=0,
        **settings,
    )
    assert torch.equal(out, ours.generate(**inputs, temperature=1.0, **settings))
    assert streamer.got == [*out[0].tolist(), "end"]


def test_output_object_and_streamer(stock, inputs):
    streamer = Streamer()
    out = stock.generate(
        **inputs,
        custom_generate=eagle.custom_generate(HEAD),
        max_new_tokens=8,
        do_sample=True,
        return_dict_in_generate=True,
        stream_to=streamer,
        **SMALL,
    )
    assert len(out.rows[0].new_tokens) <= 8
    assert streamer.got == [*out.sequences[0].tolist(), "end"]


def test_standard_processors_become_settings():
    penalty, heat, k, p = (
        RepetitionPenaltyLogitsProcessor(1.2),
        TemperatureLogitsWarper(0.5),
        TopKLogitsWarper(7),
        MinPLogitsWarper(0.1),
    )
    gram, typical = NoRepeatNGramLogitsProcessor(2), TypicalLogitsWarper(0.9)
    found = sampling_of([penalty, gram, heat, k, p, LogitNormalization()], True)
    assert found["logits_processor"] == [gram]
    assert (found["temperature"], found["top_k"], found["min_p"], found["repetition_penalty"]) == (0.5, 7, 0.1, 1.2)
    for order in ([k, heat], [heat, typical], [heat, gram, k]):
        found = sampling_of(order, True)
        assert found["logits_processor"] == order
        assert found["temperature"] == 1.0


def test_the_documents_python_runs():
    text = (ROOT / "docs" / "transformers.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        code = block.replace("checkpoints/", f"{ROOT}/checkpoints/").replace("max_new_tokens=64", "max_new_tokens=8")
        names: dict = {}
        exec(compile(code, "transformers.md", "exec"), names)
        assert "ask" in names or names["ids"].shape[1] > names["inputs"]["input_ids"].shape[1]
