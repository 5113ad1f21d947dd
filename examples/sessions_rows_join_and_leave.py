"""Two answers decoded together, the second of which joins while the first is under way.

    python -m examples.sessions_rows_join_and_leave

What you learn: a session is a batch whose rows come and go between two steps, each with its own prompt, sampling and
seed. A row's tokens do not depend on its neighbours: the second answer is the one it would have been alone
(docs/session.md). The server is such a session with a queue in front.
"""

from eagle import EagleModel, SamplingParams
from eagle.engine.plan import Plan
from eagle.trees import TreeSettings

model = EagleModel.from_pretrained("checkpoints/demo/target", "checkpoints/demo/eagle3")
plan = Plan.resolve("hybrid", "hsd", TreeSettings(nodes=16, depth=4))
prompts = [model.tokenizer(text)["input_ids"] for text in ("Tom buys 4 pens.", "A train leaves at 9.")]


def second(session):
    """Enter the second prompt; its row."""
    return session.add(prompts[1], SamplingParams(1.0, top_p=0.9), seed=2, max_new_tokens=24)


with model.session(plan) as session:
    first = session.add(prompts[0], SamplingParams(0.7), seed=1, max_new_tokens=32)
    for _ in range(3):
        session.step()
    late = second(session)
    while session.rows:
        records = session.step()
        print(f"{len(records)} rows in this step, emitted {[record.emitted for record in records]}")

with model.session(plan) as session:
    alone = second(session)
    while session.rows:
        session.step()

print(model.tokenizer.decode(first.new_tokens))
print(model.tokenizer.decode(late.new_tokens))
assert late.new_tokens == alone.new_tokens
