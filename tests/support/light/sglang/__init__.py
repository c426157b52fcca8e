"""A light engine in the place of SGLang: with ``tests/support/light`` on PYTHONPATH, an actor starts it."""
