"""Contextual-bandit worlds in which routing strategies are compared by regret."""
