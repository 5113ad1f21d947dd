"""E[accepted] of drafted trees: the number by which the best head is selected.

The decoding engine answers held-out prompts with the head in training. Every step's E[accepted] is exact for the tree
it drafted (it comes from the stopping law, without verification noise); the mean over steps is compared between heads
on the same prompts and the same random numbers.
"""

import torch

from eagle.api.eagle_model import EagleModel
from eagle.api.outputs import GenerateOutput
from eagle.nn.head import Eagle3Head
from eagle.train.config import TrainConfig
from eagle.train.data.conversations import Example


class TreeEvaluation:
    """Answers to a fixed set of prompts, with a copy of the head: the engine freezes and casts the head it is given."""

    def __init__(self, target, head: Eagle3Head, held_out: list[Example], config: TrainConfig) -> None:
        """Prompts are the tokens before the first answer of the first `eval_prompts` held-out conversations."""
        self.copy = Eagle3Head(head.config).to(target.device, target.dtype)
        self.model = EagleModel.from_head(target, self.copy)
        prompts = [list(e.ids[: list(e.answer).index(True)]) for e in held_out[: config.eval_prompts]]
        self.prompts = [prompt for prompt in prompts if len(prompt) > 1]
        self.config = config

    def answers(self, head: Eagle3Head) -> list[list[float]]:
        """E[accepted] of every step of every answer, at `eval_temperature` with `eval_tree` and `eval_verifier`."""
        config = self.config
        self.copy.load_state_dict(head.state_dict())
        generator = torch.Generator(self.model.device).manual_seed(config.seed)
        found = []
        for prompt in self.prompts:
            answer = self.model.generate(
                torch.tensor([prompt]),
                max_new_tokens=config.eval_tokens,
                temperature=config.eval_temperature,
                top_p=1.0,
                top_k=0,
                min_p=0.0,
                repetition_penalty=1.0,
                tree=config.eval_tree,
                verifier=config.eval_verifier,
                nodes=config.eval_nodes,
                depth=config.eval_depth,
                generator=generator,
                return_dict_in_generate=True,
            )
            assert isinstance(answer, GenerateOutput)
            found.append([step.expected_accepted for step in answer.rows[0].steps])
        return found

    def expected_accepted(self, head: Eagle3Head) -> float:
        """Mean over all steps of all answers."""
        values = [value for answer in self.answers(head) for value in answer]
        return sum(values) / max(1, len(values))
