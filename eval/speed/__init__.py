"""Speed: what steps, verifications and batches cost."""
