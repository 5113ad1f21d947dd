"""Settings chosen by measuring: what a step costs on this machine."""
