"""Makes similarities of different language pairs comparable."""
