"""One job in vLLM, for the interpreter of vLLM's own environment: imports nothing of this project.

VLLM_ENABLE_V1_MULTIPROCESSING=0 python vllm_run.py JOB.json RESULT.json      (see eval/engines/jobs.py)
"""

import json
import sys
import time


def counters(llm) -> dict:
    """vLLM's own: drafts, drafted and accepted tokens, accepted by position."""
    found = {}
    for metric in llm.get_metrics():
        if metric.name.startswith("vllm:spec_decode"):
            found[metric.name.removeprefix("vllm:spec_decode_")] = getattr(metric, "value", None) or getattr(
                metric, "values", 0
            )
    return found


def peak_memory():
    """Most bytes of memory that this process held; ru_maxrss would begin with those of the process that started it."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))


def main(job_path: str, result_path: str) -> None:
    """Answer the job's prompts one after the other; write tokens and counters."""
    from vllm import LLM, SamplingParams, TokensPrompt

    with open(job_path) as file:
        job = json.load(file)
    speculative = {"method": "eagle3", "model": job["head"], "num_speculative_tokens": job["draft"]}
    llm = LLM(
        model=job["target"],
        dtype=job["dtype"],
        max_model_len=job["context"],
        max_num_seqs=1,
        enforce_eager=job.get("eager", True),
        disable_log_stats=False,
        enable_prefix_caching=False,
        speculative_config=speculative if job["draft"] else None,
    )
    options = SamplingParams(
        temperature=job["temperature"],
        max_tokens=job["max_tokens"],
        seed=0,
        stop_token_ids=job["stop"],
        ignore_eos=not job["stop"],
        detokenize=False,
    )
    tokens, each, start = [], [], time.time()
    for prompt in [*job["prompts"][: job.get("warm_up", 0)], *job["prompts"]]:
        began = time.perf_counter()
        output = llm.generate(TokensPrompt(prompt_token_ids=prompt), options, use_tqdm=False)[0]
        each.append(time.perf_counter() - began)
        tokens.append(list(output.outputs[0].token_ids))
    tokens, each = tokens[job.get("warm_up", 0) :], each[job.get("warm_up", 0) :]
    found = counters(llm)
    result = {
        "tokens": tokens,
        "drafts": int(found.get("num_drafts", 0)),
        "drafted": int(found.get("num_draft_tokens", 0)),
        "accepted": int(found.get("num_accepted_tokens", 0)),
        "seconds": time.time() - start,
        "each": each,
        "memory": peak_memory(),
    }
    with open(result_path, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
