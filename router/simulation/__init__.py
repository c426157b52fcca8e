"""Simulations in which strategies of the router are compared."""
