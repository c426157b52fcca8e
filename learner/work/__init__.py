"""Handing out prompt groups: which questions are asked, who answers them, what comes back and what becomes of it."""
