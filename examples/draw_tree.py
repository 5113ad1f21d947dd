"""Draw the draft tree of one decoding step, as text and as a picture.

    python -m examples.draw_tree [PICTURE]          default results/tree.png

What you learn: `record_trees=True` keeps every step's tree. A sampled token (o) is verified with p / d, the target's
probability over the one it was drawn with; a top-k token (#) with p alone. `stop` is the probability that the accepted
path ends at a node; these sum to 1, so E[accepted] is known before anything is drawn.
"""

import sys
from pathlib import Path

from eagle import EagleModel
from eval.measure import tree_picture

picture = Path(sys.argv[1] if len(sys.argv) > 1 else "results/tree.png")
pair = "checkpoints/demo/target", "checkpoints/demo/eagle3"
question = "A baker fills 4 trays with 6 rolls each. How many rolls are there?"

model = EagleModel.from_pretrained(*pair)
chat = [{"role": "user", "content": question}]
ids = model.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
out = model.generate(ids, 8, tree="hybrid", nodes=12, depth=4, seed=3, record_trees=True, return_dict_in_generate=True)
tree = out.rows[0].trees[0]


def show(node: int, indent: str = "") -> None:
    """Print a node and what was drafted below it."""
    kind = "o" if tree.sampled[node] else "#"
    text = repr(model.tokenizer.decode([tree.tokens[node]]))
    print(f"{indent}{kind} {text:<12} p {tree.p[node]:.2f}  d {tree.d[node]:.2f}  stop {tree.stop[node]:.2f}")
    for child, parent in enumerate(tree.parents):
        if parent == node:
            show(child, indent + "    ")


show(0)
picture.parent.mkdir(parents=True, exist_ok=True)
arguments = ["--base-model-path", pair[0], "--ea-model-path", pair[1], "--prompt", question, "--output", str(picture)]
tree_picture.main([*arguments, "--nodes", "12", "--depth", "4"])
