"""Iterations of a recipe: filter the questions, make their anchors, train, and again with the trained policy."""
