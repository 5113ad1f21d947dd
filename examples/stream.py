"""Print an answer while it is written, one line for each call of the target.

    python -m examples.stream

What you learn: `stream` yields the growing rows after every step; a step adds the accepted draft tokens and one bonus
token. For text alone a `transformers` streamer does: `model.generate(ids, streamer=TextStreamer(model.tokenizer))`.
"""

from eagle import EagleModel

model = EagleModel.from_pretrained("checkpoints/demo/target", "checkpoints/demo/eagle3")
ids = model.tokenizer("Mia has 3 boxes with 12 pencils each.", return_tensors="pt")["input_ids"]

shown = 0
for rows in model.stream(ids, max_new_tokens=40, temperature=0.7, tree="hybrid", nodes=16, depth=5, seed=1):
    new = rows[0].new_tokens
    print([model.tokenizer.decode([token]) for token in new[shown:]])
    shown = len(new)
