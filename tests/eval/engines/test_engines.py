"""The embedded demo pair, exported, in other engines: they open it, draft with it, in float32 the same tokens.

Skipped where scripts/engines.sh has not made the engines' environments. Acceptance alone would prove little: taps one
layer off cost a few percent (docs/engines.md).
"""

import pytest
import torch

from eagle.checkpoints.load import load_head
from eagle.checkpoints.pairs import resolve_pair
from eagle.checkpoints.pretrained import read_model
from eagle.convert import convert, convert_to_gguf
from eagle.drafters import Eagle3Drafter
from eval.engines.jobs import Chain, interpreter, read_chains, run_job

DRAFT = 3
PROMPTS = [[5, 1200, 77, 301, 950, 12, 88, 2041], [9, 640, 31, 77]]
ENGINE = pytest.mark.engine


def needs(engine: str):
    missing = interpreter(engine) is None
    return pytest.mark.skipif(missing, reason=f"no environment of {engine}: bash scripts/engines.sh {engine}")


@pytest.fixture(scope="module")
def pair():
    return resolve_pair("demo")


def job(target, head, dtype: str = "float32") -> dict:
    return {
        "target": str(target),
        "head": str(head),
        "draft": DRAFT,
        "prompts": PROMPTS,
        "stop": [],
        "max_tokens": 24,
        "temperature": 0.0,
        "context": 256,
        "dtype": dtype,
    }


@torch.no_grad()
def our_chain(target, head, tokens: list[int]) -> tuple[int, ...]:
    """The greedy chain behind `tokens`, from the head alone."""
    states = target(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    aux = torch.cat([states[tap] for tap in head.config.taps], dim=-1)
    drafter, support = Eagle3Drafter(head), head.support()
    drafter.reserve(1, DRAFT, len(tokens) + 8, 4)
    drafter.read_prompt(0, tokens[:-1], 0, aux[:, :-1])
    drafter.use(1)
    logits, found = drafter.read(torch.tensor([tokens[-1:]]), torch.tensor([1]), aux[:, -2:-1]), []
    for step in range(DRAFT):
        place = logits.argmax(-1)
        found.append(place if support is None else support[place])
        logits = drafter.grow(torch.full((1, 1), step), found[-1][:, None])[:, 0] if step + 1 < DRAFT else logits
    return tuple(int(token) for token in found)


@ENGINE
@needs("llama.cpp")
def test_llama_cpp_drafts_the_same_tokens_one_by_one(pair, tmp_path):
    from eval.engines.target_gguf import write_target

    target = read_model(pair.target, dtype=torch.float32)
    write_target(target, str(tmp_path / "target.gguf"))
    convert_to_gguf(pair.head, tmp_path / "head.gguf", str(tmp_path / "target.gguf"), pair.target, "float32")
    result = run_job("llama.cpp", job(tmp_path / "target.gguf", tmp_path / "head.gguf"), tmp_path)
    head = load_head(pair.head, target.config, dtype=torch.float32)
    head.bind(target)
    written = [prompt + answer for prompt, answer in zip(PROMPTS, result["tokens"], strict=True)]
    compared = 0
    for chain in result["chains"]:
        texts = [text[: chain["length"] + 1] for text in written if text[chain["length"]] == chain["last"]]
        assert tuple(chain["tokens"]) in [our_chain(target, head, text) for text in texts]
        compared += len(chain["tokens"])
    assert compared > 30 and result["accepted"] > 0


@ENGINE
@needs("vllm")
@pytest.mark.parametrize("layout", ["speculators", "safeailab"])
def test_vllm_opens_both_layouts_and_accepts(pair, tmp_path, layout):
    convert(pair.head, tmp_path / "head", layout, pair.target)
    result = run_job("vllm", job(pair.target, tmp_path / "head"), tmp_path)
    assert [len(answer) for answer in result["tokens"]] == [24, 24]
    assert result["drafted"] == DRAFT * result["drafts"] > 0
    assert result["accepted"] > 0


def test_chains_are_read_from_the_log():
    log = """
0.19 D spec  draft:  - seq_id 0, draft candidate   0, pos   0:   2022 (   0.546) ' makes'
0.19 D spec  draft:  - seq_id 0, draft candidate   1, pos   0:   1135 (   0.290) ' made'
0.19 D spec  draft:  - seq_id 0, draft candidate   0, pos   1:    260 (   0.194) '
'
0.19 D slot handle_last_: id  0 | task 0 | generate_draft: id=1041, #tokens=50, #draft=2, pos_next=50
0.20 D spec  draft:  - seq_id 0, draft candidate   0, pos   0:     30 (   0.447) '.'
0.20 D slot handle_last_: id  0 | task 0 | generate_draft: id=7124, #tokens=51, #draft=1, pos_next=51
"""
    assert read_chains(log) == [Chain(1041, 50, (2022, 260)), Chain(7124, 51, (30,))]
