"""Trees: what draft trees accept, state by state, without a generation's noise."""
