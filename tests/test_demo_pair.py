"""The embedded pair, loaded from disk by the real loaders: lossless end to end, and a drafter worth its name."""

import json
from pathlib import Path

import pytest
import torch
from scipy.stats import chi2
from transformers import DynamicCache

from eagle import EagleModel
from eagle.nn.target import cache_keyword

ROOT = Path(__file__).parents[1]
PAIR = ROOT / "checkpoints" / "demo"
TREES = ["topk", "chain", "multi", "hybrid"]
PROMPTS = [
    "Mia has 3 boxes with 12 pencils each. She gives away 7 pencils. How many pencils does she have left?",
    "A train travels 60 miles in one hour. How far does it travel in 4 hours?",
    "Why do people carry umbrellas?\nOptions:\n- to stay dry\n- to run faster\n- to cook",
]
FALSE_ALARM = 1e-4  # per comparison; 8 comparisons by default, so the file raises a false alarm for 1 seed in 1,250


@pytest.fixture(scope="module")
def model():
    return EagleModel.from_pretrained(str(PAIR / "target"), str(PAIR / "eagle3"), dtype=torch.float32)


def prompt_ids(model, text: str) -> torch.Tensor:
    chat = [{"role": "user", "content": text}]
    return model.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]


def questions(count: int) -> list[str]:
    lines = (ROOT / "eval" / "questions" / "sample.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["question"] for line in lines] + PROMPTS + ["What is the capital of France?"]
    return texts[:count]


def assert_greedy(model, text: str, tokens: int) -> None:
    ids = prompt_ids(model, text)
    want = model.target.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    for tree in TREES:
        assert torch.equal(model.generate(ids, tokens, temperature=0, tree=tree), want), (tree, text)


@pytest.mark.parametrize("text", questions(3))
def test_temperature_0_is_greedy_decoding(model, text):
    assert_greedy(model, text, tokens=60)


@pytest.mark.slow
@pytest.mark.parametrize("text", questions(20))
def test_temperature_0_is_greedy_decoding_on_more_questions(model, text):
    assert_greedy(model, text, tokens=200)


def sampled_triples(model, ids, verifier: str, tree: str, count: int) -> torch.Tensor:
    """Int64[count, 3]: three tokens after the prompt, by speculative decoding, 100 rows at a time."""
    generator = torch.Generator().manual_seed(7)
    rows = []
    for _ in range(count // 100):
        rows += model.generate(
            ids.expand(100, -1),
            3,
            tree=tree,
            verifier=verifier,
            nodes=9,
            depth=2,
            generator=generator,
            eos_token_id=-1,
            return_dict_in_generate=True,
        ).rows
    return torch.tensor([row.new_tokens for row in rows])


@torch.no_grad()
def pair_law(model, ids) -> torch.Tensor:
    """Float64[V, V]: exact law of the next two tokens, by `transformers` alone.

    The second law is only worked out where the first token has p > 2e-4: the other pairs expect far fewer than 5.
    """
    lm = model.target.model
    cached = {cache_keyword(lm.forward): DynamicCache(config=lm.config)}
    read = lm(ids, use_cache=True, **cached)
    first = read.logits[0, -1].double().softmax(-1)
    law = torch.zeros(len(first), len(first), dtype=torch.float64)
    likely = (first > 2e-4).nonzero()[:, 0]
    next(iter(cached.values())).batch_repeat_interleave(len(likely))
    logits = lm(likely[:, None], **cached).logits[:, -1]
    law[likely] = first[likely, None] * logits.double().softmax(-1)
    return law


def chi_square_tail(pairs: torch.Tensor, law: torch.Tensor) -> float:
    """P(a statistic this large) for observed pairs Int64[n, 2].

    Pairs are pooled, from the likeliest down, into at most 40 cells that expect 8 or more; what the law leaves out
    is in the last.
    """
    size = max(8, len(pairs) / 40)
    order = law.flatten().argsort(descending=True)
    reach = law.flatten()[order].cumsum(0) * len(pairs)
    cell = torch.empty_like(order)
    cell[order] = (reach / size).ceil().long() - 1
    cells = int(cell.max()) + 1
    observed = torch.bincount(cell[pairs[:, 0] * len(law) + pairs[:, 1]], minlength=cells).double()
    expected = torch.zeros(cells, dtype=torch.float64).index_add_(0, cell, law.flatten()) * len(pairs)
    expected[-1] += len(pairs) - expected.sum()
    own = expected > 0
    assert own.sum() >= 5, "the comparison needs cells to compare"
    statistic = ((observed[own] - expected[own]) ** 2 / expected[own]).sum().item()
    return float(chi2.sf(statistic, df=int(own.sum()) - 1))


def compare(model, text: str, tree: str, verifier: str, count: int) -> None:
    ids = prompt_ids(model, text)
    triples = sampled_triples(model, ids, verifier, tree, count)
    assert chi_square_tail(triples[:, :2], pair_law(model, ids)) > FALSE_ALARM
    mode = triples[:, 0].mode().values
    after = triples[triples[:, 0] == mode][:, 1:]
    assert chi_square_tail(after, pair_law(model, torch.cat([ids, mode.view(1, 1)], 1))) > FALSE_ALARM


def test_law_of_the_first_tokens(model):
    """(t1, t2), and (t2, t3) given the most frequent t1, against the target's exact law at temperature 1."""
    compare(model, PROMPTS[0], "hybrid", "hsd", count=400)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tree", "verifier"),
    [
        ("hybrid", "hsd"),
        ("hybrid", "token"),
        ("topk", "hsd"),
        ("chain", "block"),
        ("multi", "hsd"),
    ],
)
@pytest.mark.parametrize("text", PROMPTS)
def test_law_of_the_first_tokens_with_more_samples(model, text, tree, verifier):
    compare(model, text, tree, verifier, count=3000)


def test_the_chi_square_catches_a_small_shift(model):
    """A test of the test: pairs drawn from a law 0.05 away in total variation are refused."""
    law = pair_law(model, prompt_ids(model, PROMPTS[0]))
    flat = law.flatten()
    wrong = flat * 0.95
    wrong[flat.argmax()] += 0.05
    draws = torch.multinomial(wrong, 6000, True, generator=torch.Generator().manual_seed(0))
    pairs = torch.stack([draws // len(law), draws % len(law)], 1)
    assert chi_square_tail(pairs, law / law.sum()) < FALSE_ALARM


FLOOR = {"topk": 1.2, "hybrid": 2.5}  # accepted draft tokens per step at temperature 1; see docs for measured values


@pytest.mark.parametrize("tree", FLOOR)
def test_the_head_is_accepted(model, tree):
    generator = torch.Generator().manual_seed(0)
    steps = []
    for text in PROMPTS[:2]:
        ids = prompt_ids(model, text)
        given = {"tree": tree, "nodes": 60, "depth": 7, "generator": generator, "return_dict_in_generate": True}
        steps += model.generate(ids, 60, **given).rows[0].steps
    assert sum(step.expected_accepted for step in steps) / len(steps) > FLOOR[tree]


def test_the_pair_is_small():
    assert sum(path.stat().st_size for path in PAIR.rglob("*.safetensors")) < 40e6
