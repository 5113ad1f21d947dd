"""Prompts that the target writes itself (Magpie, arXiv 2406.08464).

An instruct model that reads its chat template up to the start of a user turn continues with a request of the kind it
was trained on. The prompt ends with the turn's end token; unfinished, empty and repeated ones are dropped.
"""

from collections import deque
from collections.abc import Callable

from tqdm import tqdm

from eagle.chat_template import fixed, render
from eagle.digests import seed_of
from eagle.train.data.endpoint import Endpoint
from eagle.train.data.provenance import Journal
from eagle.train.data.sampler import Request, Sampler

TEMPERATURE, TOP_P = 1.0, 0.95
MARK = "CONTENT-OF-THE-TURN"


def user_turn(tokenizer, keywords: dict | None = None) -> tuple[list[int], set[int]]:
    """Ids of the chat template's rendering up to a user's text, and the special tokens that follow such a text.

    Raises ValueError where the template does not render the text of a user turn as it is.
    """
    text = render(tokenizer, [{"role": "user", "content": MARK}], fixed(keywords), prompt=False)
    before, found, after = text.partition(MARK)
    if not found:
        raise ValueError("the chat template changes a user's text, so the start of a user turn cannot be found")
    following = tokenizer(after, add_special_tokens=False)["input_ids"][:1]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return tokenizer(before, add_special_tokens=False)["input_ids"], set(following) & special


class PromptWriter:
    """Samples prompts; number i has random numbers of its own."""

    def __init__(
        self, sampler: Sampler | Endpoint, tokenizer, longest: int, seed: int, keywords: dict | None = None
    ) -> None:
        """Prompts of more than `longest` tokens are unfinished. Raises ValueError where no token ends a user turn."""
        self.sampler, self.tokenizer, self.longest, self.seed = sampler, tokenizer, longest, seed
        self.prefix, ends = user_turn(tokenizer, keywords)
        self.ends = sampler.ends | ends
        self.tokens = 0

    def write(self, count: int, journal: Journal, is_over: Callable[[], bool]) -> None:
        """Sample the prompts 0 .. count - 1 that the journal does not hold: a text each, None where unfinished."""
        missing = [number for number in range(count) if number not in journal.values]
        queue = deque(
            Request(i, self.prefix, self.longest, seed_of(self.seed, "prompt", i), TEMPERATURE, TOP_P) for i in missing
        )
        answers_end, self.sampler.ends = self.sampler.ends, self.ends
        with tqdm(total=len(missing), unit="prompt", desc="prompts") as bar:
            for done, ids in self.sampler.run(queue):
                ended = ids[-1] in self.ends
                text = self.tokenizer.decode(ids[:-1], skip_special_tokens=True).strip() if ended else ""
                journal.append(done.key, text or None)
                self.tokens += len(ids)
                bar.update()
                if is_over():
                    queue.clear()
        self.sampler.ends = answers_end

    def conversations(self, journal: Journal) -> list[list[dict[str, str]]]:
        """The finished prompts, each once, as conversations with an answer to be sampled; states what was dropped."""
        found = {text: None for _, text in sorted(journal.values.items()) if isinstance(text, str)}
        unfinished = sum(text is None for text in journal.values.values())
        repeated = len(journal.values) - unfinished - len(found)
        print(f"{len(found)} prompts of its own; dropped: {unfinished} unfinished or empty, {repeated} repeated")
        return [[{"role": "user", "content": text}, {"role": "assistant", "content": ""}] for text in found]
