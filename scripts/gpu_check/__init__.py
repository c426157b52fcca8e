"""Checks of the code for GPUs on a machine that has one. ``__main__.py`` runs them."""
