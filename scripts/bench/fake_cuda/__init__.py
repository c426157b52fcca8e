"""A pretended GPU: the learner's code runs on CUDA tensors without data, and every operation is counted.

``shim.py`` makes a CPU build of torch accept CUDA tensors, and ``meter.py`` counts what is done with them.
"""
