"""Training of draft heads, and of the demo target."""
