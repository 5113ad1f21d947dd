"""The snippet of EAGLE's README on the demo pair: only the paths and `.cuda()` are replaced."""

from pathlib import Path

import pytest
import torch

PAIR = Path(__file__).parents[3] / "checkpoints" / "demo"
pytest.importorskip("fastchat")


@pytest.mark.filterwarnings("ignore")
def test_it_runs(monkeypatch):
    from fastchat.conversation import get_conv_template

    from eagle.model import ea_model
    from eagle.model.ea_model import EaModel

    monkeypatch.setattr(ea_model, "PROMPTS", 1)  # a shorter measurement: float16 is slow on a CPU
    monkeypatch.setattr(ea_model, "TOKENS", 2)
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
    assert model.nodes >= 1  # 1: plain decoding, where no tree was faster
    parts = list(model.ea_generate(input_ids, temperature=0.0, max_new_tokens=8))
    assert torch.equal(parts[-1], model.eagenerate(input_ids, temperature=0.0, max_new_tokens=8, hsd=True))
    assert parts[-1].shape == model.naivegenerate(input_ids, temperature=0.0, max_new_tokens=8).shape
