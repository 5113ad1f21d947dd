"""What says where files are reaches config, tokenizer, weights and drafter: a hub cache with two revisions."""

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from eagle import EagleModel, load_head, save_head
from eagle.checkpoints.pretrained import HUB_OPTIONS, hub_options
from eagle.train.setup import load_pretrained
from tests.eagle.tiny import VOCAB, tiny_head, tiny_target

FIRST, SECOND = "a" * 40, "b" * 40


def write_target(place, seed):
    place.mkdir(parents=True)
    tiny_target(seed=seed, rope_theta=10000.0 * (seed + 1)).save_pretrained(place)
    tokenizer = Tokenizer(models.WordLevel({f"t{seed}_{i}": i for i in range(VOCAB)}, f"t{seed}_0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(place)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A hub cache of none/target and none/head: `main` is FIRST; what is in `inner` differs from what is above it."""
    cache = tmp_path_factory.mktemp("cache")
    for seed, commit in enumerate((FIRST, SECOND)):
        write_target(cache / "models--none--target/snapshots" / commit, seed)
        write_target(cache / "models--none--target/snapshots" / commit / "inner", seed + 2)
        place = cache / "models--none--head/snapshots" / commit
        save_head(tiny_head(tiny_target(), seed=seed), place)
        save_head(tiny_head(tiny_target(), seed=seed + 2), place / "inner")
    for name in ("target", "head"):
        (cache / f"models--none--{name}/refs").mkdir()
        (cache / f"models--none--{name}/refs/main").write_text(FIRST)
    return cache


WHERE = [
    ({}, 0),
    ({"revision": SECOND}, 1),
    ({"subfolder": "inner"}, 2),
    ({"revision": SECOND, "subfolder": "inner"}, 3),
]


@pytest.mark.parametrize(("where", "seed"), WHERE)
def test_config_tokenizer_and_weights_are_of_one_revision(cache, where, seed):
    places = {"cache_dir": str(cache), "local_files_only": True, **where}
    loaded = EagleModel.from_pretrained("none/target", **places)
    for model, tokenizer in (
        (loaded.target.model, loaded.tokenizer),
        load_pretrained("none/target", torch.float32, **places),
    ):
        assert tokenizer.convert_ids_to_tokens(3) == f"t{seed}_3"
        assert model.config.rope_parameters["rope_theta"] == 10000.0 * (seed + 1)
        expected = tiny_target(seed=seed).lm_head.weight
        assert torch.equal(model.lm_head.weight.float(), expected)


@pytest.mark.parametrize(("where", "seed"), WHERE)
def test_a_head_has_its_own_revision(cache, where, seed):
    access = {"cache_dir": str(cache), "local_files_only": True}
    pair = EagleModel.from_pretrained("none/target", "none/head", drafter_kwargs=where, **access)
    alone = load_head("none/head", pair.target.config, **access, **where)
    expected = tiny_head(tiny_target(), seed=seed).fc.weight
    assert torch.equal(alone.fc.weight, expected)
    assert torch.equal(pair.drafter.head.fc.weight, expected)


def test_a_draft_model_has_its_own_revision(cache):
    access = {"cache_dir": str(cache), "local_files_only": True}
    pair = EagleModel.from_pretrained(
        "none/target", draft_model_path="none/target", revision=SECOND, drafter_kwargs={"revision": SECOND}, **access
    )
    assert torch.equal(pair.drafter.lm.model.lm_head.weight, tiny_target(seed=1).lm_head.weight)
    with pytest.raises(ValueError, match="token"):  # of the first revision, whose tokenizer is another
        EagleModel.from_pretrained("none/target", draft_model_path="none/target", revision=SECOND, **access)


def test_every_option_reaches_all_three(monkeypatch):
    seen = {}

    def record(name):
        def from_pretrained(path, **given):
            seen[name] = hub_options(given)
            raise OSError("seen")

        return type(name, (), {"from_pretrained": staticmethod(from_pretrained)})

    from eagle.checkpoints import pretrained

    for name in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"):
        monkeypatch.setattr(pretrained, name, record(name))
    given = dict.fromkeys(HUB_OPTIONS, "x")
    for read in (pretrained.read_config, pretrained.read_tokenizer, pretrained.read_model):
        with pytest.raises(ValueError, match="seen"):
            read("none/such", **given)
    assert seen == dict.fromkeys(("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"), given)


def test_a_head_refuses_what_is_no_place(cache):
    with pytest.raises(ValueError, match="load_head got quantize=True; expected one of"):
        load_head("none/head", tiny_target().config, quantize=True)
