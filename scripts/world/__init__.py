"""The offline world and its demo."""
