"""One job in llama.cpp, for the interpreter of the wheel's own environment: imports nothing of this project.

python llama_cpp_run.py JOB.json RESULT.json      (see eval/engines/jobs.py)
"""

import json
import sys
import time


def parameters(job):
    """The server's settings: one slot, flash attention off, cache in the job's dtype, chains of the job's length."""
    import xllamacpp as x

    params = x.CommonParams()
    params.model.path = job["target"]
    params.n_ctx = job["context"]
    params.n_parallel = 1
    threads = job.get("threads", 1)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    kind = {"float32": "GGML_TYPE_F32", "bfloat16": "GGML_TYPE_BF16"}[job["dtype"]]
    params.cache_type_k = params.cache_type_v = getattr(x.ggml_type, kind)
    params.warmup, params.fit_params, params.port = False, False, 0
    params.verbosity = 5 if job.get("chains", True) else 2  # debug: the log then names every drafted token
    if job["draft"]:
        params.speculative.types = [x.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_EAGLE3]
        draft = params.speculative.draft
        draft.mparams.path = job["head"]
        draft.n_max, draft.n_min, draft.p_min = job["draft"], 0, 0.0
        draft.cache_type_k = draft.cache_type_v = getattr(x.ggml_type, kind)
        draft.cpuparams.n_threads = draft.cpuparams_batch.n_threads = threads
    return params


def peak_memory():
    """Most bytes of memory that this process held; ru_maxrss would begin with those of the process that started it."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))


def main(job_path: str, result_path: str) -> None:
    """Answer the job's prompts one after the other; write tokens and counters."""
    import xllamacpp as x

    with open(job_path) as file:
        job = json.load(file)
    server = x.Server(parameters(job))
    result: dict = {"tokens": [], "drafts": 0, "drafted": 0, "accepted": 0, "each": []}
    start = time.time()
    for number, prompt in enumerate([*job["prompts"][: job.get("warm_up", 0)], *job["prompts"]]):
        request = {
            "prompt": prompt,
            "max_tokens": job["max_tokens"],
            "temperature": job["temperature"],
            "seed": 0,
            "cache_prompt": False,
            "logprobs": 1,  # the one way to the tokens' ids
            "samplers": ["temperature"],
            "ignore_eos": not job["stop"],
        }
        began = time.perf_counter()
        answer = server.handle_completions(request)
        if number < job.get("warm_up", 0):
            continue
        result["each"].append(time.perf_counter() - began)
        answer = answer[0] if isinstance(answer, list) else answer
        timings = answer.get("timings", {})
        content = (answer["choices"][0].get("logprobs") or {}).get("content") or []
        result["tokens"].append([entry["id"] for entry in content])
        result["drafted"] += timings.get("draft_n", 0)
        result["accepted"] += timings.get("draft_n_accepted", 0)
    result["seconds"] = time.time() - start
    result["memory"] = peak_memory()
    with open(result_path, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
