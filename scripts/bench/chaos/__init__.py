"""A small cluster whose processes are killed, stopped and deceived at random, and a verdict on what became of the run.

``cluster`` starts the processes and starts them again, ``events`` harms them, ``tap`` and ``observer`` watch the run
from outside, ``verdict`` compares what they saw with what the run says of itself. ``world`` has the policy and the
questions, ``clock`` the wall clocks that jump.
"""
