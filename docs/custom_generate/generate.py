"""For a model or head repository: custom_generate/generate.py. Needs this project's package (`pip install eagle3-hsd`).

model.generate(**inputs, custom_generate="REPOSITORY", trust_remote_code=True)
"""

from eagle import custom_generate

HEAD = "REPOSITORY"  # hub id or directory of the EAGLE-3 head, usually of the repository this file is in
decoders = {}


def generate(model, head=HEAD, streamer=None, **kwargs):
    """As `model.generate`, drafting with `head`; further keywords: tree, verifier, nodes, depth, seed, ..."""
    decode = decoders.setdefault(head, custom_generate(head))
    return model.generate(custom_generate=decode, stream_to=streamer, **kwargs)
