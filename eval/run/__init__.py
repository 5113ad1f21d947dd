"""Runs: methods, answer files, and the loop over questions."""
