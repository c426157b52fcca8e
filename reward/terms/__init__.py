"""The terms that make the quality of an answer; ``registry.py`` lists them."""
