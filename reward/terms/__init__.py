"""The terms that make the quality of an answer."""
