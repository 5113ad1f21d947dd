"""Verifiers, most of them wrong on purpose, in the forms that `python -m hsd.audit --verifier` takes."""

import torch

import hsd


def residual_not_updated(tree, target):
    """HSD's stopping law, but the bonus token from p itself: the most common bug."""
    return hsd.stopping_law(tree, target, "hsd").stop, target


def topk_treated_as_sampled_from_q(tree, target):
    """Every top-k token is accepted with min(1, p / q): here q is replaced by p's own row, so all are accepted."""
    law = hsd.stopping_law(tree, target, "token")
    if bool((tree.proposal_rows >= 0).any()):
        return law
    last = torch.zeros_like(law.stop).index_fill(0, torch.tensor([len(tree) - 1]), 1)
    return last, torch.stack([law.residual(node) for node in range(len(tree))])


def not_a_number(tree, target):
    """NaN must not pass for a small error."""
    law = hsd.stopping_law(tree, target, "hsd")
    return law.stop * torch.nan, target


def paths_only(tree, target):
    """Right on paths, refuses everything else."""
    return hsd.stopping_law(tree, target, "block")


def refuses(_tree, _target):
    """Certifies nothing."""
    raise ValueError("no tree is good enough")


def as_in_the_registry(inputs):
    """A function of VerifierInput, which is right."""
    return hsd.VERIFIERS["hsd"].stop_distribution(inputs)


lossy_entry = hsd.VERIFIERS["published"]
