"""Draft for a stock `transformers` model, without loading it through this project.

    python -m examples.custom_generate

What you learn: `eagle.custom_generate(HEAD)` is a function for the `custom_generate` argument of `generate`, which
prepares prompts and samplers as for its own decoding. In float32 the greedy answer is the one `transformers` writes.
`top_k=0` switches off the library's default of 50 (docs/transformers.md).
"""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import eagle

model = AutoModelForCausalLM.from_pretrained("checkpoints/demo/target", dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained("checkpoints/demo/target")
decode = eagle.custom_generate("checkpoints/demo/eagle3")
inputs = tokenizer("Mia has 3 boxes with 12 pencils each.", return_tensors="pt")

greedy = {"do_sample": False, "max_new_tokens": 32}
drafted = model.generate(**inputs, **greedy, custom_generate=decode, nodes=16, depth=4)
assert torch.equal(drafted, model.generate(**inputs, **greedy))
print(tokenizer.decode(drafted[0]))

sampled = model.generate(
    **inputs,
    do_sample=True,
    top_k=0,
    max_new_tokens=32,
    custom_generate=decode,
    tree="hybrid",
    nodes=16,
    depth=4,
    seed=0,
)
print(tokenizer.decode(sampled[0]))
