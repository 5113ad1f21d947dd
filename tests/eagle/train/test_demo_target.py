"""The demo target's training: the same weights after a stop, a loadable result."""

import functools
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback

from eagle.train.demo import target as demo_target

SIZE = [
    "--layers",
    "2",
    "--width",
    "64",
    "--vocab-size",
    "320",
    "--length",
    "32",
    "--batch",
    "2",
    "--context",
    "64",
    "--warmup",
    "0",
    "--log-every",
    "1",
    "--save-every",
    "2",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    (root / "gsm8k").mkdir()
    (root / "flan_cot").mkdir()
    lines = [
        json.dumps({"question": f"What is {i} plus {i}?", "answer": f"<<{i}+{i}={2 * i}>>{2 * i}\n#### {2 * i}"})
        for i in range(60)
    ]
    (root / "gsm8k" / "train.jsonl").write_text("\n".join(lines))
    record = "Is ice cold?\\nOptions:\\n- yes\\n- no\tyes\tIce is frozen.\n"
    (root / "flan_cot" / "toy_train.tsv").write_text(record * 5)
    return root


def run(data, tmp_path, name: str, steps: int, status: int = 0):
    output = tmp_path / name
    found = demo_target.main(
        [
            str(data),
            "--output",
            str(output),
            "--work",
            str(tmp_path / "work" / name),
            "--steps",
            str(steps),
            "--decay",
            "0",
            *SIZE,
        ]
    )
    assert found == status
    return load_file(output / "model.safetensors") if status == 0 else None


class Interrupted(TrainerCallback):
    """Ctrl-C after the fifth step, one behind the second checkpoint."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt


def test_a_stopped_run_ends_with_the_same_weights(data, tmp_path, monkeypatch):
    whole = run(data, tmp_path, "whole", 6)
    with monkeypatch.context() as patch:
        patch.setattr(demo_target, "Trainer", functools.partial(Trainer, callbacks=[Interrupted()]))
        run(data, tmp_path, "stopped", 6, status=130)
    halves = run(data, tmp_path, "stopped", 6)
    assert whole.keys() == halves.keys() and all(torch.equal(whole[name], halves[name]) for name in whole)


def test_the_result_loads_and_speaks(data, tmp_path):
    run(data, tmp_path, "spoken", 2)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "spoken")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "spoken")
    assert model.dtype == torch.bfloat16
    chat = [{"role": "user", "content": "What is 3 plus 3?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[0]).startswith("<|bos|><|user|>What is 3 plus 3?<|end|><|assistant|>")
    assert model.generate(ids, max_new_tokens=3).shape[1] <= ids.shape[1] + 3
    curve = (tmp_path / "spoken" / "training_curve.jsonl").read_text().splitlines()
    assert json.loads(curve[-1])["eval_loss"] > 0
