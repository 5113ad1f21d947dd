"""Two verifiers of your own: one is lossless, one is not, and enumeration tells which.

    python -m examples.own_verifier

What you learn: a verifier is a function from `VerifierInput` to `StopDistribution`; `python -m hsd.audit` enumerates
every draft and every outcome of toy worlds and compares what is emitted with the target's distribution; an entry of
`hsd.VERIFIERS` can be named in `generate`.

Both below combine token-wise verification with HSD. `by_coin` takes either with probability one half. `better_of_both`
takes for each drafted tree the one that accepts more of it. That looks like a free gain, but the choice depends on the
sampled tokens, so drafts that happened to suit one of the verifiers are kept too often.
"""

from torch import Tensor

import hsd
from eagle import EagleModel
from hsd.audit.__main__ import main as audit
from hsd.outcome import StopDistribution
from hsd.verifiers.hierarchical import hierarchical
from hsd.verifiers.inputs import VerifierInput
from hsd.verifiers.token import token


def mixed(first: StopDistribution, second: StopDistribution, share: Tensor) -> StopDistribution:
    """`first` with probability `share` Float[B], else `second`."""
    parts = (share[:, None] * first.stop, first), ((1 - share)[:, None] * second.stop, second)

    def residual(nodes: Tensor) -> Tensor:
        total = sum(stop.gather(1, nodes[:, None]) * law.residual(nodes) for stop, law in parts)
        return total / total.sum(1, keepdim=True)

    return StopDistribution(sum(stop for stop, _ in parts), residual)


def by_coin(inputs: VerifierInput) -> StopDistribution:
    """One or the other, by a fair coin that knows nothing of the draft."""
    law = token(inputs)
    return mixed(hierarchical(inputs), law, law.stop.new_full(law.stop.shape[:1], 0.5))


def better_of_both(inputs: VerifierInput) -> StopDistribution:
    """The one that accepts more of this tree on average."""
    laws = hierarchical(inputs), token(inputs)
    accepted = [(law.stop * inputs.batch.depths).sum(1) for law in laws]
    return mixed(*laws, (accepted[0] > accepted[1]).to(laws[0].stop))


if __name__ == "__main__":
    chosen = ["--verifier", "examples.own_verifier:by_coin", "--verifier", "examples.own_verifier:better_of_both"]
    failed = audit(["--families", "quick", *chosen])
    assert failed, "better_of_both is not lossless"

    hsd.VERIFIERS["by_coin"] = hsd.Verifier(by_coin, lossless=True, scope="tree")
    model = EagleModel.from_pretrained("checkpoints/demo/target", "checkpoints/demo/eagle3")
    ids = model.tokenizer("Mia has 3 boxes with 12 pencils each.", return_tensors="pt")["input_ids"]
    out = model.generate(ids, 32, temperature=1.0, tree="hybrid", verifier="by_coin", nodes=16, depth=4, seed=0)
    print(model.tokenizer.decode(out[0]))
