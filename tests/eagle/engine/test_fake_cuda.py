"""Whole generations on CUDA devices that are not there: what would wait, lie on the wrong device, or be stale.

A step waits for the device once, copies nothing but its random numbers to it and its result back, and a recorded one
finds everything where it was. `tests/eagle/fake_cuda.py` says what is seen and what is not.
"""

import pytest
import torch
from transformers import PreTrainedModel

from eagle import SamplingParams
from eagle.api.eagle_model import EagleModel
from eagle.drafters import CausalLMDrafter
from eagle.engine.plan import Plan
from eagle.engine.session import Session
from eagle.nn import tree_attention
from eagle.nn.target import CachedLM
from eagle.trees import TREES, TreeSettings
from tests.eagle.fake_cuda import CheckedRunner, Watch, fake_cuda, made_on, replaced
from tests.eagle.tiny import VOCAB, tiny_head, tiny_target

TAPS = (0, 1, 2)
PROMPTS, MASK = [[7, 3, 22, 41, 5], [9, 1, 0, 0, 0]], [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]


def large() -> PreTrainedModel:
    return tiny_target(max_position_embeddings=2048, num_hidden_layers=TAPS[-1] + 1)


def engine_of(watch: Watch, drafter: str = "head") -> tuple[EagleModel, CheckedRunner]:
    """A tiny target on cuda:0 with a head, or with an ordinary draft model, and what records its steps."""
    with made_on("cuda:0"):
        target = large()
        if drafter == "head":
            engine = EagleModel.from_head(target, tiny_head(target, draft_vocab=40, taps=TAPS))
        else:
            engine = EagleModel(target, CausalLMDrafter(tiny_target(num_hidden_layers=1), VOCAB))
    return engine, recorded(watch, engine)


def recorded(watch: Watch, engine: EagleModel) -> CheckedRunner:
    runner = CheckedRunner(watch)
    engine.new_graphs = lambda: runner
    return runner


def generation(engine: EagleModel, count: int = 7, rows: int = 2, **settings):
    """Three steps of two tokens by default: the first runs, the second is recorded, the third replayed and compared."""
    settings = {"nodes": 8, "depth": 3, "eos_token_id": [], "seed": 1, **settings}
    mask = torch.tensor(MASK[:rows])
    return engine.generate(torch.tensor(PROMPTS[:rows]), count, attention_mask=mask, **settings)


@pytest.fixture
def watch():
    return Watch()


SETTINGS = [
    *({"tree": tree, "temperature": 0.0} for tree in ("none", "topk")),
    *({"tree": tree, "temperature": 1.0} for tree in TREES),
    {"tree": "rsd", "verifier": "token"},
    {"tree": "hybrid", "verifier": "token"},
    {"tree": "chain", "verifier": "block"},
    {"tree": "chain", "verifier": "published"},
    {"top_k": 20, "min_p": 0.05, "draft_temperature": 0.5},
    {"top_p": 0.9, "sharpness": 0.8, "attention": "split_prefix"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda one: " ".join(map(str, one.values())))
def test_a_step_waits_once_copies_nothing_and_is_never_stale(watch, settings):
    settings = dict(settings)
    by_torch = lambda device, dtype: tree_attention.by_torch  # what is compiled on a GPU, or installed, is not here
    with fake_cuda(watch), replaced((tree_attention, "choose", by_torch)):
        engine, runner = engine_of(watch)
        engine.target.model.set_attn_implementation(settings.pop("attention", "sdpa"))
        generation(engine, **settings)
    assert watch.faults() == []
    assert runner.broken is None and runner.log["replay"]


@pytest.mark.parametrize("tree", ["topk", "multi", "hybrid"])
def test_an_ordinary_draft_model_and_one_row(watch, tree):
    with fake_cuda(watch):
        engine, runner = engine_of(watch, "lm")
        generation(engine, rows=1, tree=tree)
    assert watch.faults() == []
    assert runner.broken is None and runner.log["replay"]


def test_windows_are_crossed(watch):
    with fake_cuda(watch, granule=8):
        engine, runner = engine_of(watch)
        generation(engine, 24, rows=1, tree="chain", nodes=2, depth=1)
        windows = {key[2] for key in runner._steps}
    assert watch.faults() == []
    assert runner.broken is None and runner.recorded >= 3
    assert len(windows) >= 3 and all(target == drafter for target, drafter in windows)  # both cross at the same steps


def test_trees_that_alternate_are_recorded_once(watch):
    """Their caches and tensors stay: an evaluation that goes from method to method records none of them again."""
    with fake_cuda(watch):
        engine, runner = engine_of(watch)
        for count in (3, 5):  # what is allocated in the first round drops what was recorded before it
            for tree in ("topk", "hybrid", "none"):
                generation(engine, count, rows=1, tree=tree)
        before = runner.log
        for tree in ("topk", "hybrid", "none"):
            generation(engine, 5, rows=1, tree=tree)
    assert watch.faults() == []
    assert before["reset"] == runner.log["reset"] and before["record"] == runner.log["record"] > 0
    assert before["warm"] == runner.log["warm"]


def test_rows_that_join_and_leave_with_parameters_of_their_own(watch):
    """A step is about a power of two of rows; whoever joins or leaves, steps between are recorded ones."""
    with fake_cuda(watch):
        engine, runner = engine_of(watch)
        plan = Plan.resolve("hybrid", "hsd", TreeSettings(5, 2))
        with engine.session(plan) as session:
            session.reserve(4, 40)
            for seed, params in enumerate([SamplingParams(0.7), SamplingParams(1.2, top_k=9), SamplingParams(0.0)]):
                session.add(PROMPTS[0], params, seed, max_new_tokens=30)
                session.step()
            assert session.width == 4
            session.remove(session.rows[0])
            for _ in range(3):
                session.step()
            assert session.width == 2
    assert watch.faults() == []
    assert runner.broken is None and runner.log["replay"] and not runner.log["reset"]


class SeenAttention(Watch):
    """Heads of the queries, and of the keys and values, of every attention in a step."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.overloadpacket.__name__ == "scaled_dot_product_attention" and self.phase:
            self.heads.append((args[0].shape[1], args[1].shape[1]))
        return super().__torch_dispatch__(operator, types, args, kwargs)


@pytest.mark.parametrize("tree", ["none", "topk"])
def test_keys_and_values_of_a_group_are_not_repeated(tree):
    """Two heads share them here, and are one head of more rows; plain decoding does not repeat them either."""
    watch = SeenAttention()
    with fake_cuda(watch):
        engine, _ = engine_of(watch)
        watch.heads = []
        with engine.session(Plan.resolve(tree, "hsd", TreeSettings(4, 2)), graphs=False) as session:
            session.add(PROMPTS[0], max_new_tokens=4)
            session.step()
    assert len(watch.heads) >= TAPS[-1] + 1 and set(watch.heads) == {(2, 2)}


# --- several devices --------------------------------------------------------------------------------------------------


def spread(module: torch.nn.Module, device: str) -> None:
    """Its weights on another device, and accelerate's hook that moves its inputs there, as `device_map="auto"` does."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    for owner in module.modules():
        for name, weight in list(owner._parameters.items()):
            if weight is not None:
                owner._parameters[name] = torch.nn.Parameter(torch.empty_like(weight, device=device), False)
        for name, values in list(owner._buffers.items()):
            owner._buffers[name] = torch.empty_like(values, device=device)
    add_hook_to_module(
        module, AlignDevicesHook(torch.device(device), place_submodules=False, skip_keys="past_key_values")
    )


def over_two_devices(target):
    """The second half of the layers, and lm_head, on cuda:1."""
    middle = len(target.model.layers) // 2
    for part in (*target.model.layers[middle:], target.model.norm, target.lm_head):
        spread(part, "cuda:1")
    for part in (*target.model.layers[:middle], target.model.embed_tokens, target.model.rotary_emb):
        spread(part, "cuda:0")
    return target


@pytest.mark.parametrize(
    "settings", [{"tree": "none"}, {"tree": "hybrid"}, {"tree": "topk", "repetition_penalty": 1.2}]
)
@pytest.mark.parametrize("drafter", ["head", "lm"])
def test_a_target_over_two_devices(watch, settings, drafter):
    with fake_cuda(watch):
        with made_on("cuda:0"):
            target = large()
            small = over_two_devices(tiny_target(num_hidden_layers=2)) if drafter == "lm" else None
        with made_on("cuda:1"):
            head = tiny_head(target, draft_vocab=40, taps=TAPS)
        over_two_devices(target)
        if small is None:
            engine = EagleModel.from_head(target, head)
        else:
            engine = EagleModel(target, CausalLMDrafter(small, VOCAB))
        recorded(watch, engine)
        generation(engine, 5, nodes=5, depth=2, **settings)
        penalty = settings.get("repetition_penalty")
        assert ("repetition_penalty" if penalty else "spread over cuda:0, cuda:1") in engine.eager_because


# --- faults are noticed -----------------------------------------------------------------------------------------------


def planted(name: str):
    """A fault in the target's scoring."""
    score = CachedLM.score

    def wrong(lm, tokens, *rest, **options):
        scores = score(lm, tokens, *rest, **options)
        if name == "read":
            scores.logits.sum().item()
        if name == "host values":
            scores.logits.add_(torch.tensor(1.0, device=tokens.device))
        if name == "stale":
            scores.logits.add_(lm.cache.longest)  # a number of the host that is no part of a recording's key
        if name == "device":
            scores.logits + torch.zeros(scores.logits.shape)
        return scores

    return replaced((CachedLM, "score", wrong))


@pytest.mark.filterwarnings("ignore:decoding goes on without graphs")
@pytest.mark.parametrize("name", ["read", "host values", "stale"])
def test_a_planted_fault_is_noticed(watch, name):
    with fake_cuda(watch), planted(name):
        engine, runner = engine_of(watch)
        generation(engine, rows=1, tree="none")
    assert any("score" in fault for fault in watch.faults())
    assert name == "stale" or "cannot be recorded" in runner.broken


def test_a_tensor_on_another_device_is_noticed(watch):
    with fake_cuda(watch), planted("device"), pytest.raises(RuntimeError, match="device"):
        generation(engine_of(watch)[0], rows=1, tree="none")


def test_a_second_read_in_a_step_is_noticed(watch):
    append = Session.append

    def reads_twice(session, packed, nodes):
        packed[0].tolist()
        return append(session, packed, nodes)

    with fake_cuda(watch), replaced((Session, "append", reads_twice)):
        generation(engine_of(watch)[0], rows=1, tree="none")
    assert any("steps read" in fault for fault in watch.faults())
