"""Record what the engine emits and what the verifiers decide, to compare later versions with.

    python -m tests.golden.record

tokens.json         tokens of every method, demo pair, batch 1, float64, one thread, every setting written out
trees.safetensors   draft trees as drafted at temperature 1, with the target and the stopping distributions

Run again only when a change is meant to alter what is emitted (another default tree, another order of draws), and say
so in the commit.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

import hsd
from eagle import EagleModel

HERE = Path(__file__).parent
DEMO = HERE.parents[1] / "checkpoints" / "demo"
PROMPTS = (
    "A box holds 12 eggs. How many eggs are in 7 boxes?",
    "Would a pear sink in water? Explain.",
)
METHODS = {
    "plain": {"tree": "none", "verifier": "token", "nodes": 1, "depth": 1},
    "topk+token": {"tree": "topk", "verifier": "token", "nodes": 24, "depth": 5, "width": 6},
    "topk+hsd": {"tree": "topk", "verifier": "hsd", "nodes": 24, "depth": 5, "width": 6},
    "chain+block": {"tree": "chain", "verifier": "block", "nodes": 6, "depth": 5},
    "multi+hsd": {"tree": "multi", "verifier": "hsd", "nodes": 16, "depth": 5, "width": 3},
    "hybrid+token": {"tree": "hybrid", "verifier": "token", "beta": 0.7, "sharpness": 1.0, "nodes": 16, "depth": 5},
    "hybrid+hsd": {"tree": "hybrid", "verifier": "hsd", "beta": 0.7, "sharpness": 1.0, "nodes": 16, "depth": 5},
}
SAMPLING = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
RECORDED_TREES = {"topk": 0, "chain": 0, "multi": 0, "hybrid": 4}  # builder -> steps of the answer skipped


def load() -> EagleModel:
    torch.set_num_threads(1)
    return EagleModel.from_pretrained(str(DEMO / "target"), str(DEMO / "eagle3"), dtype=torch.float64)


def prompt_ids(model: EagleModel, question: str) -> torch.Tensor:
    chat = [{"role": "user", "content": question}]
    encoded = model.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    return encoded["input_ids"]


def tokens(model: EagleModel, method: str, temperature: float, question: str) -> list[int]:
    """48 new tokens of one method from a generator seeded with 0."""
    ids = prompt_ids(model, question)
    out = model.generate(
        ids,
        max_new_tokens=48,
        temperature=temperature,
        generator=torch.Generator().manual_seed(0),
        **SAMPLING,
        **METHODS[method],
    )
    return out[0, ids.shape[1] :].tolist()


def main() -> None:
    model = load()
    found = {
        f"{method} T={temperature:g}": [tokens(model, method, temperature, question) for question in PROMPTS]
        for method in METHODS
        for temperature in (0.0, 1.0)
    }
    (HERE / "tokens.json").write_text(json.dumps(found, indent=1) + "\n")
    record_trees(model)


def record_trees(model: EagleModel) -> None:
    from eagle.autotune.probe import StateProbe, TreeLimits
    from eagle.engine.distributions import SamplingParams
    from eagle.trees import TreeSettings

    tensors = {}
    for name, skip in RECORDED_TREES.items():
        settings = TreeSettings(nodes=10, depth=3, width=3)
        probe = StateProbe(model, SamplingParams(1.0), TreeLimits.of([(name, settings)]))
        generator = torch.Generator().manual_seed(1)
        for index in probe.states(prompt_ids(model, PROMPTS[0])[0].tolist(), 40, generator):
            if index == skip:
                drafted = probe.draft(name, settings)
                break
        tree, probs = drafted.tree, drafted.target_probs.float()
        tensors |= {
            f"{name}.tokens": tree.tokens,
            f"{name}.parents": tree.parents,
            f"{name}.proposal_rows": tree.proposal_rows,
            f"{name}.target_probs": probs,
        }
        if tree.proposals is not None:
            tensors[f"{name}.proposals"] = tree.proposals.float()
        if tree.support is not None:
            tensors[f"{name}.support"] = tree.support
        bare = hsd.DraftTree(
            tree.tokens, tree.parents, tree.proposal_rows, tensors.get(f"{name}.proposals"), tree.support
        )
        for verifier in ("hsd", "token", *(["block"] if name == "chain" else [])):
            law = hsd.stopping_law(bare, probs, verifier)
            tensors[f"{name}.{verifier}.stop"] = law.stop
            tensors[f"{name}.{verifier}.expected"] = law.expected_accepted.reshape(1)
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, HERE / "trees.safetensors")


if __name__ == "__main__":
    main()
