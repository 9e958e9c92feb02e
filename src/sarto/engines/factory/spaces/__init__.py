"""Task spaces that ship: where their samples come from."""
