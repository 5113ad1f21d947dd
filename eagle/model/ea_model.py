"""The names EAGLE users have in their scripts, on this engine.

What differs from the original: `hsd=True` (the default) drafts the hybrid tree and verifies it branch-wise;
`hsd=False` is EAGLE-3's own method, its top-k tree with token-wise verification. Nothing is emitted past an EOS or
past `max_new_tokens`. EAGLE's `depth` counts the head's passes after the first, so its tree is one level deeper:
`depth=7` here is the same tree as there, `TreeSettings(depth=8)`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from eagle.model.eagle_model import EagleModel
from eagle.model.outputs import GeneratedRow, sequences_of


class EaModel:
    """A pair loaded with EAGLE's argument names."""

    def __init__(self, model: EagleModel, total_token: int, depth: int, top_k: int):
        self.model = model
        self.tokenizer = model.tokenizer
        self.base_model = model.target.model
        self.config = self.base_model.config
        self.tree_settings = {"nodes": total_token, "depth": depth + 1}
        self.top_k = top_k

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
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        low_cpu_mem_usage: bool = True,
        device_map: str | None = None,
        **model_kwargs,
    ) -> "EaModel":
        """Load a pair. `total_token` counts the root, as in EAGLE; `threshold` and `low_cpu_mem_usage` are accepted
        for old scripts and have no effect.

        Raises ValueError for use_eagle3=False (EAGLE-1/2 heads are another architecture), a missing path, or
        total_token=-1 (EAGLE's automatic choice).
        """
        if not use_eagle3:
            raise ValueError("use_eagle3=False: only EAGLE-3 heads are supported; EAGLE-1/2 heads have no feature taps")
        if not base_model_path or not ea_model_path:
            raise ValueError(f"base_model_path={base_model_path!r}, ea_model_path={ea_model_path!r}: both are needed")
        if total_token < 2:
            raise ValueError(f"total_token={total_token}: expected at least 2 (the root and one drafted token)")
        model = EagleModel.from_pretrained(
            base_model_path, ea_model_path, dtype=dtype or torch_dtype, device_map=device_map, **model_kwargs
        )
        return cls(model, total_token, depth, top_k)

    def get_tokenizer(self):
        return self.tokenizer

    def eval(self) -> "EaModel":
        """Kept for old scripts: the model is always in evaluation mode."""
        return self

    def eagenerate(self, input_ids: Tensor, *args, log: bool = False, **kwargs):
        """Generate; Int64[1, L + new], or with `log` (ids, number of new tokens, index of the last step).

        Arguments as for `ea_generate`.
        """
        return _finish(input_ids, self._rows(input_ids, *args, **kwargs), log)

    def naivegenerate(self, input_ids: Tensor, *args, log: bool = False, **kwargs):
        """Plain token-by-token decoding with the same target; returns as `eagenerate`."""
        return _finish(input_ids, self._rows(input_ids, *args, **kwargs, tree="none"), log)

    def ea_generate(self, input_ids: Tensor, *args, log: bool = False, **kwargs) -> Iterator[Tensor]:
        """Yield Int64[1, L + new so far] after the prompt's forward and after every step.

        temperature, top_p, top_k       0 means greedy, no limit, no limit
        max_new_tokens, max_length      limits on the new tokens and on the whole sequence
        hsd                             True: hybrid tree, branch-wise verification; False: EAGLE-3's own method
        tree, verifier                  override what `hsd` stands for
        is_llama3                       also stop at <|eot_id|>
        generator                       source of all randomness
        """
        for row in self._rows(input_ids, *args, **kwargs):
            yield _sequences(input_ids, row)

    def naive_generate(self, input_ids: Tensor, *args, log: bool = False, **kwargs) -> Iterator[Tensor]:
        """Like `naivegenerate`, yielding as `ea_generate` does."""
        for row in self._rows(input_ids, *args, **kwargs, tree="none"):
            yield _sequences(input_ids, row)

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
        # `top_k` of the constructor is the published tree's width; the hybrid tree spends `total_token` its own way.
        width = self.top_k if tree == "topk" or temperature == 0 else None
        steps = self.model.stream(
            input_ids,
            min(max_new_tokens, room),
            temperature=temperature,
            top_p=top_p,
            top_k=int(top_k),
            tree=tree,
            verifier=verifier,
            width=width,
            generator=generator,
            eos_token_id=self._eos_ids(is_llama3),
            **self.tree_settings,
        )
        return (rows[0] for rows in steps)

    def _eos_ids(self, is_llama3: bool) -> list[int]:
        ids = set(self.model.eos_ids())
        if is_llama3:
            ids.add(self.tokenizer.convert_tokens_to_ids("<|eot_id|>"))
        return sorted(ids)


def _finish(input_ids: Tensor, rows: Iterator[GeneratedRow], log: bool):
    *_, row = rows
    sequences = _sequences(input_ids, row)
    return (sequences, len(row.new_tokens), len(row.steps) - 1) if log else sequences


def _sequences(input_ids: Tensor, row: GeneratedRow) -> Tensor:
    return sequences_of(input_ids, [row], pad=0)
