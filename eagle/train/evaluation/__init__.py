"""How good a head is: on held-out text, and by drafted trees."""
