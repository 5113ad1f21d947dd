"""One job in this project or in transformers, in a process of its own, as `eval.engines.jobs` has jobs and results.

python local_run.py JOB.json RESULT.json      job["engine"]: ours or transformers; job["tree"]: none, auto, topk, ...
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from eagle import EagleModel
from eagle.checkpoints.pretrained import read_model
from eagle.nn.precision import DTYPES


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """Answers of `EagleModel.generate`; a job with `draft` and without `tree` drafts chains as others do."""
    head = job["head"] if job.get("tree") != "none" else None
    model = EagleModel.from_pretrained(job["target"], head, dtype=job["dtype"])
    shape: dict[str, Any] = {"tree": job["tree"]}
    if job["tree"] == "chain":
        shape |= {"depth": job["draft"], "nodes": job["draft"] + 1}
    found: dict[str, Any] = {"tokens": [], "drafts": 0, "drafted": 0, "accepted": 0, "each": [], "plan": ""}
    for number, prompt in enumerate([*job["prompts"][: job["warm_up"]], *job["prompts"]]):
        began = time.perf_counter()
        out: Any = model.generate(
            torch.tensor([prompt]), job["max_tokens"], temperature=job["temperature"], repetition_penalty=1.0,
            top_p=1.0, top_k=0, eos_token_id=job["stop"], seed=number, return_dict_in_generate=True, **shape,
        )  # fmt: skip
        seconds, row = time.perf_counter() - began, out.rows[0]
        if number < job["warm_up"]:
            continue
        found["tokens"].append(row.new_tokens)
        found["each"].append(seconds)
        found["drafts"] += len(row.steps)
        found["drafted"] += sum(step.nodes - 1 for step in row.steps)
        found["accepted"] += sum(step.accepted for step in row.steps)
        found["plan"] = f"{row.plan.tree} {row.plan.nodes}/{row.plan.depth}"
    return found


def by_transformers(job: dict[str, Any]) -> dict[str, Any]:
    """Answers of the stock model's `generate`, with its own attention."""
    model = read_model(job["target"], dtype=DTYPES[job["dtype"]]).eval()
    model.generation_config.eos_token_id = None
    sampling = {"do_sample": True, "temperature": job["temperature"], "top_k": 0, "top_p": 1.0}
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    found: dict[str, Any] = {"tokens": [], "drafts": 0, "drafted": 0, "accepted": 0, "each": []}
    for number, prompt in enumerate([*job["prompts"][: job["warm_up"]], *job["prompts"]]):
        ids = torch.tensor([prompt])
        torch.manual_seed(number)
        began = time.perf_counter()
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=job["max_tokens"], repetition_penalty=1.0,
            eos_token_id=job["stop"] or None, pad_token_id=0, **(sampling if job["temperature"] else greedy),
        )  # fmt: skip
        if number >= job["warm_up"]:
            found["each"].append(time.perf_counter() - began)
            found["tokens"].append(out[0, len(prompt) :].tolist())
    return found


def peak_memory() -> int:
    """Most bytes of memory that this process held; ru_maxrss would begin with those of the process that started it."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))


def main(job_path: str, result_path: str) -> None:
    """Run the job; write tokens, counters and seconds."""
    job = json.loads(Path(job_path).read_text())
    torch.set_num_threads(job["threads"])
    found = ours(job) if job["engine"] == "ours" else by_transformers(job)
    found["memory"] = peak_memory()
    Path(result_path).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
