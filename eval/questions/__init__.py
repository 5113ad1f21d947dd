"""Questions: benchmarks, their files, prompts, and whether an answer is right."""
