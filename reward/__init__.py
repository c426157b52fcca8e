"""Scores answers: a language gate, and the similarity to the reference on a scale fair to every language pair."""
