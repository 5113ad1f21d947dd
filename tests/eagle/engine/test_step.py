"""The engine with its preallocated caches against a simple one that keeps nothing, and what must not change from step
to step: addresses, the number of tensors, memory.
"""

import gc

import psutil
import pytest
import torch

import hsd
from eagle.api.eagle_model import EagleModel
from eagle.engine import step
from eagle.nn import memory
from eagle.nn.kv_cache import CacheShape, KVBuffer
from eagle.trees import hybrid
from tests.eagle.tiny import tiny_head, tiny_target

PROMPT = torch.tensor([[7, 3, 22, 41, 5]])


def model():
    target = tiny_target(max_position_embeddings=256)
    return EagleModel.from_head(target, tiny_head(target))


def recorded(monkeypatch, engine, **settings):
    """Generate and keep what every step verified: (tokens before, tree, p at its nodes, stopping law)."""
    steps, verify = [], step.verify

    def spy(session, tree, logits):
        probs, kept = verify(session, tree, logits)
        steps.append(
            (session.rows[0].ids, tree, probs[0], hsd.stopping_law(tree.row(0), probs[0], session.plan.verifier))
        )
        return probs, kept

    monkeypatch.setattr(step, "verify", spy)
    engine.generate(PROMPT, 40, generator=torch.Generator().manual_seed(4), **settings)
    return steps


def simple_law(target, sequence: list[int], tree, temperature: float) -> torch.Tensor:
    """Target laws at every node, each from a forward of its own over the whole text: no cache, no mask."""
    tokens, parents, laws = tree.tokens[0].tolist(), tree.parents[0].tolist(), []
    for node in range(len(tokens)):
        path, at = [], node
        while at > 0:
            path.insert(0, tokens[at])
            at = parents[at]
        with torch.no_grad():
            laws.append(target(torch.tensor([sequence + path])).logits[0, -1])
    return (torch.stack(laws) / temperature).softmax(-1)


@pytest.mark.parametrize("tree", ["hybrid", "topk", "chain", "multi", "rsd"])
@pytest.mark.parametrize("verifier", ["hsd", "token"])
def test_stopping_laws_are_those_of_a_simple_engine(monkeypatch, tree, verifier):
    engine = model()
    steps = recorded(monkeypatch, engine, tree=tree, verifier=verifier, temperature=1.0, nodes=12, depth=4)
    assert len(steps) > 5
    for sequence, drafted, probs, law in steps[::3]:
        simple = simple_law(engine.target.model, sequence, drafted, 1.0)
        assert torch.allclose(probs, simple, atol=2e-5)  # float32 sums in another order: 1.2e-5 seen
        expected = hsd.stopping_law(drafted.row(0), simple, verifier)
        assert torch.allclose(law.stop, expected.stop, atol=2e-5)
        for node in (law.stop > 0.01).nonzero().flatten().tolist():  # residuals of rare stops divide by little
            assert torch.allclose(law.residual(node), expected.residual(node), atol=1e-3)


@pytest.mark.parametrize("tree", ["none", "hybrid", "topk", "chain", "multi", "rsd"])
def test_tokens_at_temperature_0_are_those_of_a_simple_engine(tree):
    engine, sequence = model(), PROMPT[0].tolist()
    while len(sequence) < PROMPT.shape[1] + 40:
        with torch.no_grad():
            sequence.append(engine.target.model(torch.tensor([sequence])).logits[0, -1].argmax().item())
    assert engine.generate(PROMPT, 40, temperature=0.0, tree=tree, nodes=12, depth=4)[0].tolist() == sequence


@pytest.mark.parametrize("tree", ["hybrid", "topk", "chain"])
def test_every_step_has_the_same_shapes_and_addresses(monkeypatch, tree):
    monkeypatch.setattr(hybrid, "levels_on", lambda _: "equal")  # as on a GPU
    engine, seen, score = model(), set(), step.score

    def spy(session, drafted):
        stores = (*session.target.state(), *session.drafter.state())
        fields = (drafted.tokens, drafted.parents, drafted.depths, drafted.proposal_rows, drafted.proposals)
        seen.add(
            (
                tuple(store.data_ptr() for store in stores),
                tuple(store.shape for store in stores),
                tuple(None if field is None else field.shape for field in fields),
            )
        )
        return score(session, drafted)

    monkeypatch.setattr(step, "score", spy)
    for seed in range(3):
        engine.generate(PROMPT, 40, tree=tree, nodes=12, depth=4, generator=torch.Generator().manual_seed(seed))
    assert len(seen) == 1


@pytest.mark.parametrize("tree", ["none", "hybrid", "topk", "chain", "multi", "rsd"])
def test_what_outlives_a_step_stays_where_it_is(monkeypatch, tree):
    """Recorded or not, a step reads and writes the same tensors and, within a bucket, attends over the same window."""
    engine, commit, seen = model(), step.commit, set()

    def spy(session, *parts):
        packed = commit(session, *parts)
        tensors = [tensor for owned in session._outlives().values() for tensor in owned]
        places = tuple(tensor.data_ptr() for tensor in tensors), tuple(tensor.shape for tensor in tensors)
        seen.add((session.target.cache.window(), *places))
        return packed

    monkeypatch.setattr(step, "commit", spy)
    engine.generate(PROMPT, 100, tree=tree, nodes=12, depth=4, generator=torch.Generator().manual_seed(0))
    assert {window for window, *_ in seen} == {64, 128} and len(seen) == 2


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_memory_is_flat_over_120_generations():
    engine, process = model(), psutil.Process()

    def generate(count: int) -> tuple[int, int]:
        for seed in range(count):
            engine.generate(PROMPT, 8, nodes=8, depth=3, generator=torch.Generator().manual_seed(seed))
        return live_tensors(), process.memory_info().rss

    tensors, resident = generate(20)
    later_tensors, later_resident = generate(120)
    assert later_tensors == tensors
    assert later_resident - resident < 16 * 2**20  # 140 kB a generation; its caches alone are more


def test_the_caches_serve_the_next_request():
    engine = model()
    engine.generate(PROMPT, 40, nodes=12, depth=4)
    [before] = engine._idle
    stores = before.target.cache.store, before.drafter.cache.store
    engine.generate(PROMPT, 20, nodes=12, depth=4)
    [after] = engine._idle
    assert (after.target.cache.store, after.drafter.cache.store) == stores


def test_a_request_that_does_not_fit_is_refused_with_the_numbers(monkeypatch):
    engine = model()
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    with pytest.raises(ValueError, match=r"key/value cache of 1 rows .* needs .* GiB on cpu and .* GiB are free"):
        engine.generate(PROMPT, 40)


def test_the_stated_bytes_are_the_allocated_ones():
    cpu = torch.device("cpu")
    shape = CacheShape(3, 2, 8, 12, 50, (cpu,) * 5, torch.float32)
    assert shape.bytes_on(cpu) == sum(store.nbytes for store in KVBuffer(shape).stores)


def test_generation_ends_at_the_context_limit():
    engine = model()
    row = engine.generate(
        PROMPT, 10_000, return_dict_in_generate=True, nodes=12, depth=4, generator=torch.Generator().manual_seed(0)
    ).rows[0]
    assert row.stop_reason == "context"
    assert PROMPT.shape[1] + len(row.new_tokens) == 256
