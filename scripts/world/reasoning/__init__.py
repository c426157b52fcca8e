"""The reasoning part of the offline world: sums in words, thought through in a language, answered by a number."""
