"""The reward process: a language gate, and the quality of answers on a scale that is fair to all pairs of languages."""
