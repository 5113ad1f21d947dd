"""A first answer: load a target and its head, ask a question, and compare drafting with plain decoding.

    python -m examples.first_answer          from the top of the checkout

What you learn: the three calls that are needed (`from_pretrained`, the chat template, `generate`), and what
`return_dict_in_generate` says about the drafts. The embedded target has 12.7M parameters: it writes sentences of the
right form and gets the sums wrong.
"""

from eagle import EagleModel

model = EagleModel.from_pretrained("checkpoints/demo/target", "checkpoints/demo/eagle3")
chat = [{"role": "user", "content": "A box holds 12 eggs. How many eggs are in 7 boxes?"}]
ids = model.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]

for tree in ("none", "hybrid"):  # "none" is plain decoding; "auto" would choose by times measured on this machine
    out = model.generate(ids, 64, temperature=1.0, tree=tree, nodes=16, depth=5, seed=0, return_dict_in_generate=True)
    row = out.rows[0]
    print(f"--- tree={tree!r}: {len(row.new_tokens)} tokens in {len(row.steps)} calls of the target")
    print(model.tokenizer.decode(row.new_tokens, skip_special_tokens=True))
