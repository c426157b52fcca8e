"""Which prompt groups are handed out, to whom, and what comes back."""
