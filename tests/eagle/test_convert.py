"""Conversions lose nothing: same bits, same head, both ways, from every family."""

import json
import sys

import gguf
import pytest
import torch
from safetensors.torch import load_file

from eagle import convert as module
from eagle.checkpoints.load import load_head
from eagle.convert import convert, convert_to_gguf
from eagle.files import sole_writer
from tests.eagle.checkpoints.test_load import (
    DRAFT,
    FAMILIES,
    LAYERS,
    TARGET,
    VOCABULARY,
    edit,
    random_head,
    save_head,
    write_family,
)

pytestmark = pytest.mark.filterwarnings("ignore:config.json states rope_theta")


@pytest.fixture
def target(tmp_path):
    TARGET.save_pretrained(tmp_path / "target")
    return str(tmp_path / "target")


def bits(directory) -> dict[str, tuple]:
    return bits_of(load_file(directory / "model.safetensors"))


def bits_of(tensors) -> dict[str, tuple]:
    """Name in our spelling -> (dtype, shape, raw bytes)."""
    return {
        name.replace("layers.0.", "midlayer."): (t.dtype, tuple(t.shape), t.flatten().view(torch.uint8).tolist())
        for name, t in tensors.items()
    }


@pytest.mark.parametrize("first", ["speculators", "safeailab"])
@pytest.mark.parametrize("pickle", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back_from_every_family(tmp_path, target, family, pickle, first):
    source, second = tmp_path / family, {"speculators": "safeailab", "safeailab": "speculators"}[first]
    source.mkdir()
    tensors = write_family(source, family, pickle)
    convert(source, tmp_path / "one", first, target)
    convert(tmp_path / "one", tmp_path / "two", second, target)
    convert(tmp_path / "two", tmp_path / "three", first, target)
    assert bits_of(tensors) == bits(tmp_path / "one") == bits(tmp_path / "two") == bits(tmp_path / "three")
    heads = [load_head(tmp_path / name, TARGET) for name in (family, "one", "two", "three")]
    assert all(head.config == heads[0].config for head in heads)
    assert (tmp_path / "one" / "config.json").read_text() == (tmp_path / "three" / "config.json").read_text()


def test_odd_files_keep_their_bits(tmp_path, target):
    """Integer maps, half precision, weights of one storage (as torch.save keeps them): all as they were."""
    head = random_head(own_embeddings=True).half()
    tensors = dict(head.state_dict())
    tensors |= {"t2d": head.t2d.to(torch.uint8), "d2t": head.d2t.int()}
    tensors["midlayer.hidden_norm.weight"] = tensors["midlayer.input_layernorm.weight"]
    save_head(head, tmp_path / "in", LAYERS)
    (tmp_path / "in" / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "in" / "pytorch_model.bin")
    convert(tmp_path / "in", tmp_path / "nested", "speculators", target)
    convert(tmp_path / "nested", tmp_path / "flat", "safeailab", target)
    assert bits_of(tensors) == bits(tmp_path / "nested") == bits(tmp_path / "flat")
    assert load_file(tmp_path / "flat" / "model.safetensors")["t2d"].dtype == torch.uint8


def test_a_bad_head_is_not_converted(tmp_path, target):
    save_head(random_head(), tmp_path / "in", LAYERS)
    edit(tmp_path / "in", tensors={"norm.weight": None})
    with pytest.raises(ValueError, match=r"draft head '.*in': tensors: missing \['norm.weight'\]"):
        convert(tmp_path / "in", tmp_path / "out", "speculators", target)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"fc_norm": True, "norm_output": True},
        {"norm_before_fc": True},
        {"norm_before_residual": True},
        {"own_embeddings": True, "hidden_size": 16, "head_dim": 4},
        {"taps": (1, 3, 6)},
        {"draft_vocab_size": VOCABULARY},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}},
        {"taps": (1, 2, 3, 5, 7), "qk_norm": True},
        {"qkv_bias": True, "o_bias": True},
        {"num_hidden_layers": 2, "sliding_windows": (None, 5)},
        {"own_lm_head": False, "draft_vocab_size": VOCABULARY},
    ],
)
def test_every_setting_survives(tmp_path, target, changes):
    save_head(random_head(**changes).to(torch.bfloat16), tmp_path / "in", LAYERS)
    convert(tmp_path / "in", tmp_path / "nested", "speculators", target)
    convert(tmp_path / "nested", tmp_path / "out", "safeailab", target)
    assert load_head(tmp_path / "nested", TARGET).config == load_head(tmp_path / "in", TARGET).config
    assert (tmp_path / "out" / "config.json").read_text() == (tmp_path / "in" / "config.json").read_text()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "in" / "model.safetensors").read_bytes()


def test_what_other_engines_need_is_written(tmp_path, target):
    save_head(random_head(taps=(1, 3, 6)), tmp_path / "in", LAYERS)
    convert(tmp_path / "in", tmp_path / "nested", "speculators", target)
    nested = json.loads((tmp_path / "nested" / "config.json").read_text())
    assert nested["speculators_model_type"] == "eagle3"
    assert "model_type" not in nested  # vLLM takes a config for speculators' only without one
    assert nested["draft_vocab_size"] == DRAFT
    assert nested["eagle_aux_hidden_state_layer_ids"] == [1, 3, 6]  # layer inputs
    assert nested["speculators_config"]["verifier"]["name_or_path"] == target
    assert nested["transformer_layer_config"]["head_dim"] == 8
    assert "layers.0.hidden_norm.weight" in load_file(tmp_path / "nested" / "model.safetensors")
    flat = json.loads((tmp_path / "in" / "config.json").read_text())
    assert flat["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [0, 2, 5]  # layer outputs
    assert flat["architectures"] == ["LlamaForCausalLM"]
    assert flat["rope_theta"] == 10000.0


def test_errors_name_the_remedy(tmp_path):
    save_head(random_head(), tmp_path / "in", LAYERS)
    with pytest.raises(ValueError, match="known: safeailab, speculators, gguf"):
        convert(tmp_path / "in", tmp_path / "out", "onnx")
    with pytest.raises(ValueError, match="choose another"):
        convert(tmp_path / "in", tmp_path / "in", "speculators")
    with pytest.raises(ValueError, match="layer count is needed.*--target"):
        convert(tmp_path / "in", tmp_path / "out", "speculators")
    assert not (tmp_path / "out").exists()


def test_command_line(tmp_path, target, monkeypatch, capsys):
    save_head(random_head(), tmp_path / "in", LAYERS)
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--to", "speculators", "--target", target]
    monkeypatch.setattr(sys, "argv", ["convert", *arguments])
    assert module.main() == 0
    assert "taps (layer inputs) [2, 4, 5]" in capsys.readouterr().out


def test_what_is_there_is_never_mixed(tmp_path, target, capsys):
    save_head(random_head(), tmp_path / "in", LAYERS)
    out = tmp_path / "out"
    arguments = [str(tmp_path / "in"), str(out), "--to", "speculators", "--target", target]
    with sole_writer(out):
        assert module.main(arguments) == 2
    assert "out: another process is writing it" in capsys.readouterr().err
    out.mkdir()
    assert module.main(arguments) == 0  # an empty directory is taken
    before = bits(out)
    assert module.main(arguments) == 2
    assert f"error: output {str(out)!r} exists already; remove it, or choose another" in capsys.readouterr().err
    assert bits(out) == before


@pytest.mark.parametrize("place", ["", "none/such", "file"])
def test_an_error_of_use_is_one_line(tmp_path, place, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    save_head(random_head(), tmp_path, LAYERS)  # Path("") is the working directory
    assert module.main([place, "out", "--to", "speculators"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: draft head {place!r}")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 2, "embeds_in_every_layer": True}, "every layer reads embeddings"),
        ({"qkv_bias": True}, "none on the output"),
    ],
)
def test_what_speculators_has_no_place_for(tmp_path, target, changes, words):
    save_head(random_head(**changes), tmp_path / "in", LAYERS)
    with pytest.raises(ValueError, match=words):
        convert(tmp_path / "in", tmp_path / "out", "speculators", target)


GGUF_REFUSALS = {
    "5 taps": {"taps": (1, 2, 3, 5, 7)},
    "2 layers": {"num_hidden_layers": 2},
    "fc_norm": {"fc_norm": True},
    "norm_output": {"norm_output": True},
    "q_norm and k_norm": {"qk_norm": True},
    "biases": {"qkv_bias": True},
    "a sliding window": {"sliding_windows": (4,)},
    "rope type 'yarn'": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
}


@pytest.mark.parametrize(("words", "changes"), GGUF_REFUSALS.items(), ids=GGUF_REFUSALS)
def test_what_llama_cpp_has_no_place_for(tmp_path, words, changes):
    save_head(random_head(**changes), tmp_path / "in", LAYERS)
    with pytest.raises(ValueError, match=f"this head has {words}.*no place for; export it as"):
        convert_to_gguf(tmp_path / "in", tmp_path / "out.gguf", "t.gguf", str(write_target(tmp_path)))


def write_target(tmp_path):
    TARGET.save_pretrained(tmp_path / "target")
    return tmp_path / "target"


def test_a_gguf_file_has_llama_cpp_s_conventions(tmp_path, target):
    """Absolute d2t, both names of the taps, interleaved rows, divided frequencies, the target's tokenizer."""
    rope = {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}
    head = random_head(rope_parameters=rope, norm_before_residual=True)
    save_head(head, tmp_path / "in", LAYERS)
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(VOCABULARY)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    convert_to_gguf(tmp_path / "in", tmp_path / "out.gguf", str(tmp_path / "t.gguf"), target, "float32")
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    found = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    assert fields["general.architecture"] == "eagle3"
    assert fields["eagle3.target_layers"] == fields["eagle3.extract_layers"] == [2, 4, 5]
    assert fields["eagle3.norm_before_residual"] and fields["tokenizer.ggml.tokens"][7] == "t7"
    assert torch.equal(found["d2t"], head.support())
    q = head.midlayer.self_attn.q_proj.weight.data.unflatten(0, (4, 8))
    assert torch.equal(found["blk.0.attn_q.weight"].unflatten(0, (4, 8))[:, 1], q[:, 4])
    torch.testing.assert_close(found["rope_freqs.weight"], torch.full((4,), 4.0))
    assert torch.equal(found["output.weight"], head.lm_head.weight.data)
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "llama")
    writer.add_token_list(["a"] * 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ValueError, match="3 tokens, and the head's target has 40"):
        convert_to_gguf(tmp_path / "in", tmp_path / "no.gguf", str(tmp_path / "other.gguf"), target)
    assert not (tmp_path / "no.gguf").exists()


def test_gguf_on_the_command_line(tmp_path, target, capsys):
    save_head(random_head(), tmp_path / "in", LAYERS)
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--target", target]
    assert module.main([*arguments, "--to", "gguf"]) == 2
    assert "needs --target-gguf" in capsys.readouterr().err
    assert module.main([*arguments, "--to", "safeailab", "--dtype", "float16"]) == 2
    assert "are for --to gguf" in capsys.readouterr().err
