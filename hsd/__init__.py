"""Lossless verification of speculative drafts: which path of a draft tree to keep, and what to emit next.

    tree = hsd.DraftTree(tokens, parents, proposal_rows, proposals)
    law = hsd.stopping_law(tree, target_probs, verifier="hsd")       # exact distribution of the stopping node
    path, token = hsd.verify(tree, target_probs, verifier="hsd", generator=g)
    decision = hsd.decide(tree_batch, target_probs, "hsd", uniforms)                # a batch, in fixed shapes

Torch only: no model, no tokenizer, no global random state unless `verify` gets no generator.
"""

from hsd.layout import Layout
from hsd.outcome import Decision, StopDistribution, StoppingLaw, Verdict
from hsd.sampling import draw, draw_distinct
from hsd.topology import Topology, ancestors_of, topology
from hsd.tree import DraftTree, TreeBatch
from hsd.verifiers import VERIFIERS, Verifier
from hsd.verify import DRAWS, decide, stopping_law, verify

__all__ = [
    "DRAWS",
    "VERIFIERS",
    "Decision",
    "DraftTree",
    "Layout",
    "StopDistribution",
    "StoppingLaw",
    "Topology",
    "TreeBatch",
    "Verdict",
    "Verifier",
    "ancestors_of",
    "decide",
    "draw",
    "draw_distinct",
    "stopping_law",
    "topology",
    "verify",
]
