"""What a head is trained for: alignment, unrolling, loss."""
