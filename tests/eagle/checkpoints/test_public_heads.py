"""Every public head, tiny: read by its own config it computes what its trainer does, drafts so and decodes exactly."""

import json

import pytest
import torch
from safetensors.torch import save_file

from eagle.api.eagle_model import EagleModel
from eagle.checkpoints.load import load_head
from eagle.drafters import Eagle3Drafter
from eagle.nn.head import Eagle3Head, HeadConfig
from eagle.train.objective.unroll import unroll
from tests.eagle.checkpoints.public_heads import PUBLIC, VOCABULARY, PublicHead
from tests.eagle.nn import test_head
from tests.eagle.nn.test_head import BASE, VARIANTS, D, F, random_weights, reference, windowed
from tests.eagle.tiny import tiny_target

pytestmark = pytest.mark.filterwarnings(
    "ignore:config.json states rope_theta", "ignore:the head's own embed_tokens", "ignore:the head's config.json states"
)
STEPS, LENGTH = 4, 14


def write(folder, head: PublicHead) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(head.config))
    if head.pickle:
        torch.save(head.tensors(), folder / "pytorch_model.bin")
    else:
        save_file(head.tensors(), folder / "model.safetensors")


def target_of(head: PublicHead):
    changes = {"num_hidden_layers": head.layers, "hidden_size": head.target_width, "max_position_embeddings": 4096}
    return tiny_target(head.family, **changes)


@pytest.fixture(params=PUBLIC)
def pair(request, tmp_path):
    head = PUBLIC[request.param]
    write(tmp_path / "head", head)
    target = target_of(head)
    loaded = load_head(tmp_path / "head", target.config)
    loaded.bind(target)
    return head, target, loaded


@torch.no_grad()
def test_it_is_what_its_trainer_wrote(pair):
    """Taps and rope as published, every tensor, and the forward with plain numbers."""
    head, target, loaded = pair
    assert loaded.config.taps == head.taps
    assert loaded.config.rope_parameters["rope_theta"] == head.theta
    found = {name.replace("midlayer.", f"{head.layer}."): t for name, t in loaded.state_dict().items()}
    assert found.keys() == head.tensors().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in head.tensors().items())

    features, tokens = torch.randn(1, 5, len(head.taps) * head.target_width), torch.randint(VOCABULARY, (1, 5))
    hidden = loaded(loaded.fuse(features), tokens, torch.arange(5)[None], windowed(loaded.config))
    table = head.tensors().get("embed_tokens.weight", target.get_input_embeddings().weight)
    weights = {name: tensor.tolist() for name, tensor in loaded.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_head, "F", head.target_width)
        patch.setitem(test_head.BASE, "rms_norm_eps", loaded.config.rms_norm_eps)
        expected, logits = reference(weights, loaded.config, features[0].tolist(), tokens[0].tolist(), table.tolist())
    torch.testing.assert_close(hidden[0], torch.tensor(expected), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(loaded.logits(hidden)[0], torch.tensor(logits), atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("read_at_once", [True, False], ids=["prompt", "prompt and steps"])
def test_drafting_is_the_unrolled_forward(pair, read_at_once):
    """Two rows of other lengths read a prompt and draft the tokens that truly follow: training's logits to 1e-5."""
    head, _, loaded = pair
    compare_with_training(loaded, len(head.taps) * head.target_width, read_at_once)


def compare_with_training(loaded, width: int, read_at_once: bool) -> None:
    torch.manual_seed(2)
    features, tokens = torch.randn(2, LENGTH, width), torch.randint(VOCABULARY, (2, LENGTH))
    origins = torch.tensor([[8], [6]])  # pairs read: 9 and 7, so tokens read: 10 and 8
    trained = [loaded.logits(hidden)[:, 0] for hidden in unroll(loaded, features, tokens, origins, STEPS)]
    drafter, more = Eagle3Drafter(loaded), 1 if read_at_once else 3
    drafter.reserve(2, STEPS, 40, STEPS + 1)
    rest, aux = [], []
    for row, pairs in enumerate((9, 7)):
        held = pairs + 1 - more
        drafter.read_prompt(row, tokens[row, :held].tolist(), 0, features[row : row + 1, :held])
        rest.append(tokens[row, held : pairs + 1])
        aux.append(features[row, held - 1 : pairs])
    drafter.use(2)
    found = [drafter.read(torch.stack(rest), torch.tensor([more, more]), torch.stack(aux))]
    for step in range(1, STEPS):
        next_tokens = tokens.gather(1, origins + step + 1)
        found.append(drafter.grow(torch.full((2, 1), step - 1), next_tokens)[:, 0])
    for step in range(STEPS):
        torch.testing.assert_close(found[step], trained[step], atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("read_at_once", [True, False], ids=["prompt", "prompt and steps"])
@pytest.mark.parametrize("name", [*VARIANTS, "window of one", "windows in three layers"])
def test_every_variant_drafts_as_it_is_trained(name, read_at_once):
    """Also where a window is shorter than the drafted path."""
    more = {
        "window of one": {"sliding_windows": (1,)},
        "windows in three layers": {"num_hidden_layers": 3, "sliding_windows": (3, None, 2)},
    }
    torch.manual_seed(0)
    head = Eagle3Head(HeadConfig(**{**BASE, **{**VARIANTS, **more}[name], "vocab_size": VOCABULARY}))
    random_weights(head)
    head.bind_embeddings(torch.nn.Embedding(VOCABULARY, D))
    head.bind_output(torch.nn.Linear(D, VOCABULARY, bias=False))
    compare_with_training(head, len(head.config.taps) * F, read_at_once)


def test_it_decodes_exactly(pair):
    """Temperature 0: the tokens of plain decoding, with a tree, past the head's window."""
    _, target, loaded = pair
    prompt = torch.tensor([[5, 17, 3, 42]])
    plain = EagleModel(target).generate(prompt, 16, temperature=0.0, tree="none", eos_token_id=[])
    out = EagleModel.from_head(target, loaded).generate(
        prompt, 16, temperature=0.0, tree="topk", nodes=12, depth=4, eos_token_id=[]
    )
    assert torch.equal(out, plain)
