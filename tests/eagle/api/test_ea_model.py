"""EAGLE's names: a pair on disk, loaded and called as EAGLE's own scripts do."""

import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from eagle import EagleModel, EaModel, save_head
from eagle.autotune import step_cost
from eagle.autotune.calibration import Calibration, Expected, Table
from eagle.autotune.candidates import PLAIN, Candidate
from tests.eagle.tiny import VOCAB, tiny_head, tiny_target

PROMPT = torch.tensor([[7, 3, 9, 1, 5, 20]])


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    base, head = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("head")
    target = tiny_target()
    target.save_pretrained(base)
    vocabulary = {f"t{i}": i for i in range(VOCAB - 1)} | {"<|eot_id|>": VOCAB - 1}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, "t0"))).save_pretrained(base)
    save_head(tiny_head(target), head)
    return str(base), str(head)


@pytest.fixture(scope="module")
def model(paths):
    return EaModel.from_pretrained(
        use_eagle3=True,
        base_model_path=paths[0],
        ea_model_path=paths[1],
        total_token=20,
        depth=3,
        top_k=4,
        torch_dtype=torch.float32,
        low_cpu_mem_usage=True,
    ).eval()


@pytest.mark.parametrize("hsd", [True, False])
def test_eagenerate_is_greedy_at_temperature_0(model, hsd):
    naive, count, _ = model.naivegenerate(PROMPT, temperature=0.0, max_new_tokens=30, log=True)
    ids, new, last = model.eagenerate(PROMPT, temperature=0.0, max_new_tokens=30, log=True, hsd=hsd)
    assert torch.equal(ids, naive) and new == count == 30 and last < 29


def test_streams_grow_and_end_where_eagenerate_does(model):
    for stream, whole in ((model.ea_generate, model.eagenerate), (model.naive_generate, model.naivegenerate)):
        parts = list(stream(PROMPT, temperature=1.0, max_new_tokens=20, generator=torch.Generator().manual_seed(3)))
        ids = whole(PROMPT, temperature=1.0, max_new_tokens=20, generator=torch.Generator().manual_seed(3))
        assert torch.equal(parts[-1], ids) and len(parts) > 1
        assert all(torch.equal(part, ids[:, : part.shape[1]]) for part in parts)


def test_max_length_counts_the_prompt(model):
    assert model.eagenerate(PROMPT, max_new_tokens=50, max_length=15).shape == (1, 15)
    with pytest.raises(ValueError, match="max_length=6"):
        model.eagenerate(PROMPT, max_length=6)


def test_is_llama3_stops_at_eot(model):
    ids = model.eagenerate(PROMPT, temperature=1.5, max_new_tokens=120, is_llama3=True)[0].tolist()
    assert VOCAB - 1 not in ids[:-1]


def test_bad_loads(paths):
    with pytest.raises(ValueError, match="use_eagle3=False"):
        EaModel.from_pretrained(use_eagle3=False, base_model_path=paths[0], ea_model_path=paths[1])
    with pytest.raises(ValueError, match="both are needed"):
        EaModel.from_pretrained(base_model_path=paths[0])
    with pytest.raises(ValueError, match="total_token=1: expected at least 2"):
        EaModel.from_pretrained(base_model_path=paths[0], ea_model_path=paths[1], total_token=1)
    with pytest.raises(ValueError, match="drafts with one of them"):
        EagleModel.from_pretrained(paths[0], paths[1], draft_model_path=paths[0])


def test_a_draft_model_with_another_tokenizer_is_refused(paths, tmp_path):
    tiny_target().save_pretrained(tmp_path)
    other = Tokenizer(models.WordLevel({f"u{i}": i for i in range(VOCAB)}, "u0"))
    PreTrainedTokenizerFast(tokenizer_object=other).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tokenizers differ"):
        EagleModel.from_pretrained(paths[0], draft_model_path=str(tmp_path))


def test_a_draft_model_with_too_few_embeddings_or_another_end_is_refused(paths, tmp_path):
    for name in ("short", "other"):
        shutil.copytree(paths[0], tmp_path / name)
    tiny_target(vocab_size=VOCAB - 8).save_pretrained(tmp_path / "short")
    with pytest.raises(ValueError, match=f"the draft model has embeddings for {VOCAB - 8} tokens .* expected at least"):
        EagleModel.from_pretrained(paths[0], draft_model_path=str(tmp_path / "short"))
    for path, end in ((tmp_path / "other", 7), (tmp_path / "target", 5)):
        shutil.copytree(paths[0], path, dirs_exist_ok=True)
        (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    with pytest.raises(ValueError, match=r"eos_token_id \[5\], the draft model with \[7\]"):
        EagleModel.from_pretrained(str(tmp_path / "target"), draft_model_path=str(tmp_path / "other"))


def test_a_padded_draft_model_proposes_no_token_that_the_target_lacks(paths, tmp_path):
    shutil.copytree(paths[0], tmp_path / "padded")
    tiny_target(vocab_size=VOCAB + 8).save_pretrained(tmp_path / "padded")
    model = EagleModel.from_pretrained(paths[0], draft_model_path=str(tmp_path / "padded"))
    tokens = model.generate(PROMPT, 30, temperature=1.5, tree="chain", depth=4, seed=0)[0]
    assert int(tokens.max()) < VOCAB


def test_an_ordinary_draft_model_from_disk(paths):
    model = EagleModel.from_pretrained(paths[0], draft_model_path=paths[0])
    out = model.generate(PROMPT, 30, temperature=0, tree="chain", depth=4, return_dict_in_generate=True).rows[0]
    assert all(step.accepted == 4 for step in out.steps[:-1])


@pytest.mark.parametrize(("plain", "want"), [(10.0, (1, 1)), (20.0, (32, 16))])
def test_an_automatic_number_of_nodes_is_the_fastest_for_the_method(paths, plain, want, tmp_path, monkeypatch):
    """total_token=-1: of the hybrid tree with `hsd`, of EAGLE's own without; plain decoding where none is faster."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    automatic = EaModel.from_pretrained(base_model_path=paths[0], ea_model_path=paths[1], total_token=-1)
    own, hybrid, ms = Candidate("topk", 16, 6), Candidate("hybrid", 32, 6), 30.0
    table = Table(1.0, 1, (Expected(*own, 1.0, 0.0), Expected(*hybrid, 1.5, 0.0)))
    automatic.model.auto.calibration = Calibration(None, None, "", 0, (table,))
    monkeypatch.setattr(step_cost, "measure", lambda *_: {PLAIN: plain, own: ms, hybrid: ms})
    given = {"temperature": 1.0, "max_new_tokens": 10}
    plans = [next(automatic._rows(PROMPT, hsd=hsd, **given)).plan for hsd in (True, False)]
    assert tuple(plan.nodes for plan in plans) == want
    assert automatic.eagenerate(PROMPT, max_new_tokens=10).shape == (1, 16)
    assert automatic.naivegenerate(PROMPT, max_new_tokens=10).shape == (1, 16)
