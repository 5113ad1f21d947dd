"""Features from disk are the features the target computes."""

import pytest
import torch

from eagle.train.data import feature_cache as module
from eagle.train.data.conversations import collate
from eagle.train.objective.alignment import align
from eagle.train.trainer import Trainer
from tests.eagle.train.conftest import losses


@pytest.mark.parametrize("vocabulary", [None, 60])
def test_cached_features_give_the_same_losses(settings, tmp_path, monkeypatch, vocabulary):
    monkeypatch.setattr(module, "SHARD_TOKENS", 300)
    shared = {"batch_tokens": 400, "warmup": 20, "draft_vocab_size": vocabulary, "acceptance_weight": 0.5}
    Trainer(settings(tmp_path / "online", **shared)).run()
    Trainer(settings(tmp_path / "cached", **shared, feature_cache=str(tmp_path / "cache"))).run()
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "online"), abs=1e-4)


def test_size_is_known_before_and_refused_without_room(settings, tmp_path, monkeypatch, capsys):
    config = settings(tmp_path / "a", feature_cache=str(tmp_path / "cache"))
    trainer = Trainer(config)
    trainer.cache.fill(trainer.source, trainer.accelerator)
    stated = module.estimate(trainer.train_set, 64, 3, torch.float32)
    there = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.safetensors"))
    assert stated <= there < 1.2 * stated + 10_000 * len(trainer.train_set) / 50
    assert "feature cache" in capsys.readouterr().out

    full = module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: full)
    with pytest.raises(ValueError, match="GB are free"):
        Trainer(settings(tmp_path / "b", feature_cache=str(tmp_path / "other")))


def test_an_interrupted_cache_is_completed_and_another_one_refused(settings, tmp_path, monkeypatch):
    directory = tmp_path / "cache"
    trainer = Trainer(settings(tmp_path / "a", feature_cache=str(directory)))
    first = trainer.cache
    first.fill(trainer.source, trainer.accelerator)
    before = first.read("taps", 0).clone()
    first.path(0).unlink()
    again = Trainer(settings(tmp_path / "a", feature_cache=str(directory))).cache
    again.fill(trainer.source, trainer.accelerator)
    assert torch.equal(again.read("taps", 0), before)
    with pytest.raises(ValueError, match="another target, data set or precision"):
        Trainer(settings(tmp_path / "b", feature_cache=str(directory), taps=[1, 2, 3]))


def test_files_that_another_machine_kept_to_itself(settings, tmp_path, monkeypatch):
    """As if each of two machines had a disk of its own: what was written cannot be seen."""
    monkeypatch.setattr(module, "write_file", lambda path, write: None)
    with pytest.raises(ValueError, match="features-00000.safetensors.*file system that all machines see"):
        Trainer(settings(tmp_path / "a", feature_cache=str(tmp_path / "cache"))).run()


def test_a_draft_vocabulary_reads_the_totals_and_not_the_output_layer(settings, tmp_path):
    config = settings(tmp_path / "a", draft_vocab_size=60, feature_cache=str(tmp_path / "cache"))
    trainer = Trainer(config)
    trainer.cache.fill(trainer.source, trainer.accelerator)
    batch = collate(trainer.train_set[:3])
    predicted, support = align(batch.answer).predicted, trainer.head.support()
    kept, computed = trainer.cache([0, 1, 2], torch.device("cpu")), trainer.source(batch)
    assert kept.totals is not None and computed.totals is None
    expected = trainer.source.probs(computed, predicted, support)
    trainer.target.get_output_embeddings().forward = None  # calling it would fail
    for found, wanted in zip(trainer.source.probs(kept, predicted, support), expected, strict=True):
        torch.testing.assert_close(found, wanted)
