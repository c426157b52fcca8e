"""``lrpo study``: the comparison of ways to choose answer languages, over seeds and worlds."""
