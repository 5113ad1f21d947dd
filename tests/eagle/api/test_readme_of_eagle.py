"""The snippet of EAGLE's README on the demo pair: only the paths and `.cuda()` are replaced."""

from pathlib import Path

import pytest
import torch

PAIR = Path(__file__).parents[3] / "checkpoints" / "demo"
pytest.importorskip("fastchat")


@pytest.mark.filterwarnings("ignore")
def test_it_runs(monkeypatch, tmp_path):
    from fastchat.conversation import get_conv_template

    from eagle.autotune import step_cost
    from eagle.model.ea_model import EaModel

    times = {one: 10.0 + one.nodes / 10 for one in [step_cost.PLAIN, *step_cost.candidates_at(1.0)]}
    monkeypatch.setattr(step_cost, "measure", lambda *_: times)  # float16 is slow on a CPU
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = EaModel.from_pretrained(
        base_model_path=str(PAIR / "target"),
        ea_model_path=str(PAIR / "eagle3"),
        torch_dtype=torch.float16,
        low_cpu_mem_usage=True,
        device_map="auto",
        total_token=-1,
    )
    model.eval()
    assert not model.training
    your_message = "Hello"
    conv = get_conv_template("vicuna_v1.1")  # get_conversation_template("vicuna"), without fastchat.model's 6 s import
    conv.append_message(conv.roles[0], your_message)
    conv.append_message(conv.roles[1], None)
    prompt = conv.get_prompt()
    input_ids = model.tokenizer([prompt]).input_ids
    input_ids = torch.as_tensor(input_ids)
    output_ids = model.eagenerate(input_ids, temperature=0.5, max_new_tokens=24)
    output = model.tokenizer.decode(output_ids[0])

    assert output.startswith(model.tokenizer.decode(input_ids[0]))
    assert input_ids.shape[1] < output_ids.shape[1] <= input_ids.shape[1] + 24
    assert output_ids.device == input_ids.device
    parts = list(model.ea_generate(input_ids, temperature=0.0, max_new_tokens=8))
    assert torch.equal(parts[-1], model.eagenerate(input_ids, temperature=0.0, max_new_tokens=8, hsd=True))
    assert parts[-1].shape == model.naivegenerate(input_ids, temperature=0.0, max_new_tokens=8).shape
