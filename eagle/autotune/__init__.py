"""What a tree accepts and what its step costs, measured: how `tree="auto"` chooses."""
