"""The queue: rows that join and leave a running batch, and what each of them gets."""

import queue
import random
import time

import pytest
import torch

from eagle import EagleModel
from eagle.engine import session
from eagle.serve.scheduler import Job, QueueFull, Scheduler
from tests.eagle.serve.running import PAIR

TREE = {"tree": "hybrid", "verifier": "hsd", "nodes": 8, "depth": 3}


@pytest.fixture(scope="module")
def model():
    return EagleModel.from_pretrained(*PAIR)


@pytest.fixture
def scheduler(model):
    found = Scheduler(model, max_rows=16, max_queued=40)
    yield found
    found.close()


class Asked:
    """A job and what was delivered of it."""

    def __init__(self, model, text: str, slow: float = 0.0, stop=(), logprobs=None, **arguments):
        ids = model.tokenizer(text, return_tensors="pt").input_ids
        self.ids, self.arguments, self.updates, self.slow = ids, {**TREE, **arguments}, queue.Queue(), slow
        prepared = model.prepare(ids, self.arguments)
        self.job = Job(prepared, self.deliver, stop=stop, logprobs=logprobs)

    def deliver(self, update) -> None:
        self.updates.put(update)
        time.sleep(self.slow)

    def all(self) -> list:
        found = [self.updates.get(timeout=60)]
        while not found[-1].finish:
            found.append(self.updates.get(timeout=60))
        return found

    def tokens(self) -> list[int]:
        return [token for update in self.all() for token in update.tokens]

    def alone(self, model) -> list[int]:
        return model.generate(self.ids, **self.arguments)[0, self.ids.shape[1] :].tolist()


def wait_until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_16_rows_that_join_and_leave_each_get_what_they_get_alone(model, scheduler):
    """Different prompts, parameters, seeds and lengths, arriving at random moments; some leave in the middle."""
    rng = random.Random(0)
    asked = [
        Asked(
            model,
            f"{rng.choice(['What is', 'One day', 'The sky'])} {index}",
            temperature=rng.choice([0.0, 0.7, 1.0]),
            top_p=rng.choice([0.9, 1.0]),
            seed=index,
            max_new_tokens=rng.randint(1, 24),
        )
        for index in range(16)
    ]
    leaving = {id(one): rng.randint(1, 3) for one in rng.sample(asked[:12], 4)}
    for one in asked:
        scheduler.submit([one.job])
        if rng.random() < 0.5:
            time.sleep(0.03)
        if id(one) in leaving:
            scheduler.cancel(one.job)
    stayed = [one for one in asked if id(one) not in leaving]
    found = [one.tokens() for one in stayed]
    wait_until(lambda: scheduler.queued == 0)
    scheduler.close()
    assert found == [one.alone(model) for one in stayed]


def test_a_cancelled_row_is_free_within_a_step(model, scheduler):
    long = Asked(model, "One day", seed=0, temperature=1.5, max_new_tokens=1500, eos_token_id=[], slow=0.05)
    other = Asked(model, "The sky", seed=1, temperature=1.5, max_new_tokens=1500, eos_token_id=[])
    scheduler.submit([long.job])
    scheduler.submit([other.job])
    wait_until(lambda: scheduler.running == 2 and long.updates.qsize() > 3)
    steps = len(other.job.row.steps)
    scheduler.cancel(long.job)
    wait_until(lambda: scheduler.running == 1)
    assert len(other.job.row.steps) - steps <= 2, "the step that ran, and at most the one that had begun"
    seen = long.updates.qsize()
    wait_until(lambda: len(other.job.row.steps) > steps + 4)
    assert long.updates.qsize() <= seen + 1, "nothing more is delivered"
    scheduler.cancel(other.job)
    wait_until(lambda: scheduler.queued == 0)


def test_a_waiting_job_that_is_cancelled_never_begins(model):
    scheduler = Scheduler(model, max_rows=1, max_queued=3)
    first, second = (Asked(model, "One day", seed=index, max_new_tokens=1500, eos_token_id=[]) for index in range(2))
    scheduler.submit([first.job])
    assert scheduler.submit([second.job]) == 1
    scheduler.cancel(second.job)
    scheduler.cancel(first.job)
    wait_until(lambda: scheduler.queued == 0)
    scheduler.close()
    assert second.job.row is None and second.updates.empty()


def test_a_full_queue_takes_all_rows_of_a_request_or_none(model):
    scheduler = Scheduler(model, max_rows=1, max_queued=3)
    asked = [Asked(model, "One day", seed=index, max_new_tokens=2) for index in range(4)]
    with pytest.raises(QueueFull, match="try again later"):
        scheduler.submit([one.job for one in asked])
    assert scheduler.queued == 0
    scheduler.submit([one.job for one in asked[:3]])
    for one in asked[:3]:
        assert one.all()[-1].finish
    scheduler.close()


def test_stop_strings_free_the_row_and_cut_the_tokens(model, scheduler):
    whole = Asked(model, "2 + 3 =", temperature=0, max_new_tokens=24)
    scheduler.submit([whole.job])
    text = "".join(update.text for update in whole.all())
    stop = text[len(text) // 2 :][:2]
    cut = Asked(model, "2 + 3 =", temperature=0, max_new_tokens=24, stop=[stop])
    scheduler.submit([cut.job])
    updates = cut.all()
    assert "".join(update.text for update in updates) == text[: text.index(stop)]
    assert updates[-1].finish == "stop"
    assert sum(len(update.tokens) for update in updates) == cut.job.tokens < whole.job.tokens
    wait_until(lambda: scheduler.queued == 0)


@pytest.mark.parametrize("arguments", [{"temperature": 0}, {"temperature": 1.0}, {"tree": "none", "temperature": 0.7}])
def test_logprobs_are_the_targets_at_the_emitted_tokens(model, scheduler, arguments):
    asked = Asked(model, "One day", seed=4, max_new_tokens=16, logprobs=3, **arguments)
    beside = Asked(model, "The sky is", seed=5, max_new_tokens=9, logprobs=0, **arguments)
    scheduler.submit([asked.job, beside.job])
    updates = asked.all()
    scheduler.close()
    found = [one for update in updates for one in update.logprobs]
    tokens = [token for update in updates for token in update.tokens]
    assert [one.token for one in found] == tokens
    ids = torch.tensor([asked.ids[0].tolist() + tokens])
    expected = model.target.model(ids).logits[0, asked.ids.shape[1] - 1 : -1].log_softmax(-1)
    for place, one in enumerate(found):
        assert one.logprob == pytest.approx(expected[place, one.token].item(), abs=2e-4)
        likeliest = expected[place].topk(3)
        assert [value for _, value in one.top] == pytest.approx(likeliest.values.tolist(), abs=2e-4)


def test_an_error_of_one_row_leaves_the_others_and_the_thread(model, scheduler):
    def breaks(*_):
        raise RuntimeError("/secret/place is broken")

    fine = Asked(model, "The sky", seed=1, temperature=0, max_new_tokens=12, tree="topk")
    bad = Asked(model, "One day", seed=0, max_new_tokens=8, logits_processor=[breaks])
    scheduler.submit([fine.job, bad.job])
    [update] = bad.all()
    assert update.finish == "error" and "log says more" in update.error and "secret" not in update.error
    assert fine.all()[-1].finish
    after = Asked(model, "One day", seed=0, max_new_tokens=4)
    scheduler.submit([after.job])
    assert after.all()[-1].finish and scheduler.queued == 0


def test_a_receiver_that_is_gone_frees_its_row(model, scheduler):
    asked = Asked(model, "One day", seed=0, max_new_tokens=1500, eos_token_id=[])

    def closed(update):
        raise RuntimeError("Event loop is closed")

    asked.job.deliver = closed
    scheduler.submit([asked.job])
    wait_until(lambda: scheduler.queued == 0)


def test_closing_ends_every_answer_with_a_sentence(model):
    scheduler = Scheduler(model, max_rows=1)
    asked = [Asked(model, "One day", seed=index, max_new_tokens=1500, eos_token_id=[]) for index in range(2)]
    scheduler.submit([one.job for one in asked])
    asked[0].updates.get(timeout=30)
    scheduler.close()
    assert [one.all()[-1].error for one in asked] == ["the server is ending"] * 2
    with pytest.raises(QueueFull):
        scheduler.submit([asked[0].job])


def test_the_caches_grow_with_the_answers(model, monkeypatch):
    """What a row may still need is not reserved at once; where it needs more, all rows keep what they hold."""
    expected = [
        Asked(model, text, seed=index, max_new_tokens=60, eos_token_id=[]).alone(model)
        for index, text in enumerate(["One day", "The sky is"])
    ]
    monkeypatch.setattr(session, "RESERVED", 4)
    fresh = EagleModel(model.target.model, model.drafter, model.tokenizer, model.target.taps)
    fresh.auto = model.auto  # the head's calibration decides how trees are made
    scheduler = Scheduler(fresh)
    asked = [
        Asked(fresh, text, seed=index, max_new_tokens=60, eos_token_id=[])
        for index, text in enumerate(["One day", "The sky is"])
    ]
    scheduler.submit([one.job for one in asked])
    found = [one.tokens() for one in asked]
    scheduler.close()
    assert found == expected


def test_a_conversation_that_goes_on_is_not_read_again(model, scheduler):
    first = Asked(model, "One day a man went to the", seed=0, max_new_tokens=8, temperature=0)
    scheduler.submit([first.job])
    tokens = first.tokens()
    ids = torch.tensor([first.ids[0].tolist() + tokens])
    job = Job(model.prepare(ids, {**TREE, "temperature": 0, "max_new_tokens": 4}), first.deliver)
    scheduler.submit([job])
    assert first.all()[-1].finish
    assert job.row.reused_tokens >= first.ids.shape[1] - 1
