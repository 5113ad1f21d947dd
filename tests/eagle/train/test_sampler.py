"""Continuous batching: the model's own greedy answers, the right distribution, and no dependence on the batch."""

import copy
import platform
import subprocess
import sys
from collections import deque

import pytest
import torch
from transformers import AutoModelForCausalLM

import hsd
from eagle.digests import seed_of
from eagle.engine.distributions import RowDistributions, SamplingParams
from eagle.train.data.sampler import Request, Sampler
from tests.eagle.train.conftest import ROOT

PROMPTS = [
    [1, 3, 20, 21, 5, 4],
    [1, 3, 40, 5, 4],
    [1, 3, 30, 31, 32, 33, 5, 4],
    [1, 3, 50, 51, 5, 4],
    [1, 4],
    [1, 3, *range(10, 40), 5, 4],
]


@pytest.fixture(scope="module")
def model(tiny_target):
    return AutoModelForCausalLM.from_pretrained(tiny_target).eval()


def answers(model, rows: int, requests: list[Request], ends=(5,)) -> list[list[int]]:
    found = {done.key: ids for done, ids in Sampler(model, rows, list(ends)).run(deque(requests))}
    return [found[request.key] for request in requests]


def requests(limit: int, temperature: float) -> list[Request]:
    """Limits differ, so rows end and are replaced at different times."""
    return [Request(i, prompt, limit + 3 * i, seed_of(i), temperature) for i, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize("rows", [1, 2, 4, 6])
def test_greedy_answers_are_the_models_own(tiny_target, model, rows):
    stock = AutoModelForCausalLM.from_pretrained(tiny_target).eval()
    wanted = requests(70, 0.0)  # longer than one granule of the cache
    for request, answer in zip(wanted, answers(model, rows, wanted), strict=True):
        prompt = torch.tensor([request.prompt])
        alone = stock.generate(prompt, max_new_tokens=request.limit, do_sample=False, eos_token_id=5, pad_token_id=0)
        assert answer == alone[0, len(request.prompt) :].tolist()


def test_the_batch_size_and_the_order_change_nothing(model):
    wanted = requests(12, 1.0)
    alone = answers(model, 1, wanted)
    assert answers(model, 4, wanted) == alone
    assert answers(model, 3, wanted[::-1]) == alone[::-1]
    assert len({tuple(answer) for answer in alone}) == len(alone)


def test_requests_may_be_added_while_it_runs(model):
    queue, found = deque(requests(4, 1.0)[:2]), []
    for done, ids in Sampler(model, 2, [5]).run(queue):
        found.append(done.key)
        if done.key < 2:
            queue.append(Request(done.key + 2, done.prompt + ids, 4, 0))
    assert sorted(found) == [0, 1, 2, 3]


def chi_square(tokens: torch.Tensor, probs: torch.Tensor) -> tuple[float, float]:
    """The statistic over likely tokens, and a bound that a right sampler passes 9,999 times in 10,000."""
    expected = probs * len(tokens)
    counts = torch.bincount(tokens, minlength=len(probs))
    likely = expected > 5
    statistic = ((counts - expected) ** 2 / expected)[likely].sum().item()
    assert counts[probs == 0].sum() == 0
    return statistic, likely.sum().item() + 4 * (2 * likely.sum().item()) ** 0.5


def sample(logits: torch.Tensor, params: list[SamplingParams], uniform: torch.Tensor) -> torch.Tensor:
    """One token per row of logits [n, V], as a session draws them."""
    rows = RowDistributions(len(logits), logits.device)
    rows.set(params)
    return hsd.draw(rows(logits[:, None])[:, 0], uniform)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6)])
def test_samples_follow_the_distribution(temperature, top_p):
    generator = torch.Generator().manual_seed(0)
    logits, n = 2 * torch.randn(700, generator=generator), 20000
    probs = (logits / temperature).softmax(-1)
    if top_p < 1:
        ranked, index = probs.sort(descending=True)
        probs = torch.zeros_like(probs).scatter(0, index, ranked * (ranked.cumsum(0) - ranked < top_p))
        probs = probs / probs.sum()
    rows, uniform = logits.expand(n, -1), torch.rand(n, generator=generator, dtype=torch.float64)
    tokens = sample(rows, [SamplingParams(temperature, top_p=top_p)] * n, uniform)
    statistic, bound = chi_square(tokens, probs)
    assert statistic < bound


def test_every_row_has_its_own_temperature():
    logits = torch.tensor([0.0, 3.0, 1.0]).expand(3, -1)
    params = [SamplingParams(0.0), SamplingParams(1.0), SamplingParams(1.0, top_p=0.1)]
    tokens = sample(logits, params, torch.full((3,), 0.999, dtype=torch.float64))
    assert tokens.tolist() == [1, 2, 1]  # greedy; the end of the whole distribution; the end of a nucleus of one


def test_logits_that_are_not_finite_are_refused(model):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.get_output_embeddings().weight[7] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        answers(broken, 2, requests(4, 1.0))


def test_ids_beyond_the_tokenizer_are_never_sampled(model):
    found = Sampler(model, 3, [5], vocabulary=12).run(deque(requests(12, 1.0)))
    assert max(token for _, ids in found for token in ids) < 12


FAULTS = """
import resource, torch
from eagle.train.data.sampler import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.zeros(10_000_000) + torch.zeros(1_000_000).sum()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
keep_freed_memory()
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc's settings are glibc's")
def test_freed_memory_is_used_again():
    """Without its settings 20 sums of 40 MB fault for 400,000 pages of 4 kB."""
    found = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, cwd=ROOT)
    before, after = map(int, found.stdout.split())
    assert after < before / 4
