"""The demo pair's corpus and target."""
