"""Training data: files, answers sampled from the target, the target's features."""
