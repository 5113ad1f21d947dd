"""EAGLE's own names on this engine: scripts written for EAGLE-3 run with `from eagle.model.ea_model import EaModel`.

What differs from the original: `hsd=True` (the default) drafts the hybrid tree and verifies it branch-wise;
`hsd=False` is EAGLE-3's own method, its top-k tree with token-wise verification. Nothing is emitted past an EOS or
past `max_new_tokens`. EAGLE's `depth` counts the head's passes after the first, so its tree is one level deeper:
`depth=7` here is the same tree as there, `TreeSettings(depth=8)`.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from eagle.api.eagle_model import EagleModel
from eagle.api.outputs import GeneratedRow, sequences_of
from eagle.autotune.candidates import AUTO


class EaModel:
    """A pair loaded with EAGLE's argument names.

    model       the `EagleModel` that decodes
    tokenizer   the target's
    base_model  the `transformers` target, `config` its config
    training    False: the model only decodes
    """

    training = False

    def __init__(self, model: EagleModel, total_token: int, depth: int, top_k: int):
        """Wrap a loaded pair; arguments as for `from_pretrained`."""
        self.model = model
        self.tokenizer = model.tokenizer
        self.base_model = model.target.model
        self.config = self.base_model.config
        self.total_token, self.depth, self.top_k = total_token, depth + 1, top_k

    @classmethod
    def from_pretrained(
        cls,
        use_eagle3: bool = True,
        base_model_path: str | None = None,
        ea_model_path: str | None = None,
        total_token: int = 60,
        depth: int = 7,
        top_k: int = 10,
        threshold: float = 1.0,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        low_cpu_mem_usage: bool = True,
        device_map: Any = None,
        **model_kwargs: Any,
    ) -> "EaModel":
        """Load a pair.

        total_token     rows of the target's scoring forward, the root included; -1: the number, `depth` included, that
                        gives most tokens per second here (nodes="auto" of `EagleModel.generate`); the first generation
                        may measure for some seconds first
        depth, top_k    shape of EAGLE's tree, as there
        threshold, low_cpu_mem_usage    accepted for old scripts, without effect
        the others      as for `EagleModel.from_pretrained`

        Raises ValueError for use_eagle3=False (EAGLE-1/2 heads are another architecture), a missing path, or a
        total_token that leaves nothing to draft.
        """
        del threshold, low_cpu_mem_usage
        if not use_eagle3:
            raise ValueError("use_eagle3=False: only EAGLE-3 heads are supported; EAGLE-1/2 heads have no feature taps")
        if not base_model_path or not ea_model_path:
            raise ValueError(f"base_model_path={base_model_path!r}, ea_model_path={ea_model_path!r}: both are needed")
        if total_token != -1 and total_token < 2:
            raise ValueError(
                f"total_token={total_token}: expected at least 2 (the root and one draft token), or -1 for an "
                "automatic choice"
            )
        dtype = torch_dtype if dtype is None else dtype
        model = EagleModel.from_pretrained(
            base_model_path, ea_model_path, dtype=dtype, device_map=device_map, **model_kwargs
        )
        return cls(model, total_token, depth, top_k)

    @property
    def device(self) -> torch.device:
        """Where the target takes its input; input on another device is accepted and answered there."""
        return self.model.device

    def get_tokenizer(self) -> Any:
        """The target's tokenizer."""
        return self.tokenizer

    def eval(self) -> "EaModel":
        """Return the model, which is always in evaluation mode."""
        return self

    def eagenerate(self, input_ids: Tensor, *args: Any, log: bool = False, **kwargs: Any) -> Any:
        """Generate; Int64[1, L + new] on the input's device, or with `log` (ids, number of new tokens, index of the
        last step).

        Arguments as for `ea_generate`.
        """
        return _finish(input_ids, self._rows(input_ids, *args, **kwargs), log)

    def naivegenerate(self, input_ids: Tensor, *args: Any, log: bool = False, **kwargs: Any) -> Any:
        """Plain token-by-token decoding with the same target; returns as `eagenerate`."""
        return _finish(input_ids, self._rows(input_ids, *args, **{**kwargs, "tree": "none"}), log)

    def ea_generate(self, input_ids: Tensor, *args: Any, log: bool = False, **kwargs: Any) -> Iterator[Tensor]:
        """Yield Int64[1, L + new so far] after the prompt's forward and after every step.

        temperature, top_p, top_k       0 means greedy, no limit, no limit
        max_new_tokens, max_length      limits on the new tokens and on the whole sequence
        hsd                             True: hybrid tree, branch-wise verification; False: EAGLE-3's own method
        tree, verifier                  override what `hsd` stands for
        is_llama3                       also stop at <|eot_id|>
        generator                       source of all randomness
        """
        del log
        for row in self._rows(input_ids, *args, **kwargs):
            yield sequences_of(input_ids, [row], pad=0)

    def naive_generate(self, input_ids: Tensor, *args: Any, log: bool = False, **kwargs: Any) -> Iterator[Tensor]:
        """Like `naivegenerate`, yielding as `ea_generate` does."""
        del log
        for row in self._rows(input_ids, *args, **{**kwargs, "tree": "none"}):
            yield sequences_of(input_ids, [row], pad=0)

    def _rows(
        self,
        input_ids: Tensor,
        temperature: float = 0.0,
        top_p: float = 0.0,
        top_k: float = 0.0,
        max_new_tokens: int = 512,
        max_length: int = 2048,
        is_llama3: bool = False,
        hsd: bool = True,
        tree: str | None = None,
        verifier: str | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[GeneratedRow]:
        tree, verifier = tree or ("hybrid" if hsd else "topk"), verifier or ("hsd" if hsd else "token")
        room = max_length - input_ids.shape[-1]
        if room < 1:
            raise ValueError(f"max_length={max_length}: the prompt already has {input_ids.shape[-1]} tokens; raise it")
        steps = self.model.stream(
            input_ids,
            min(max_new_tokens, room),
            temperature=temperature,
            top_p=top_p or 1.0,
            top_k=int(top_k),
            min_p=0.0,
            repetition_penalty=1.0,
            tree=tree,
            verifier=verifier,
            generator=generator,
            eos_token_id=self._eos_ids(is_llama3),
            **self._size(tree, temperature),
        )
        return (rows[0] for rows in steps)

    def _size(self, tree: str, temperature: float) -> dict[str, Any]:
        """Keywords of `EagleModel.stream`. `top_k` of the constructor is the published tree's width; the hybrid tree
        spends `total_token` its own way.
        """
        if self.total_token == -1:
            return {"nodes": AUTO}
        width = self.top_k if tree == "topk" or temperature == 0 else None
        return {"nodes": self.total_token, "depth": self.depth, "width": width}

    def _eos_ids(self, is_llama3: bool) -> list[int]:
        ids = set(self.model.eos_ids())
        if is_llama3:
            ids.add(self.tokenizer.convert_tokens_to_ids("<|eot_id|>"))
        return sorted(ids)


def _finish(input_ids: Tensor, rows: Iterator[GeneratedRow], log: bool) -> Any:
    *_, row = rows
    sequences = sequences_of(input_ids, [row], pad=0)
    return (sequences, len(row.new_tokens), len(row.steps) - 1) if log else sequences
