"""A light engine in the place of SGLang: put ``tests/light`` on PYTHONPATH, and an actor starts it as its server."""
