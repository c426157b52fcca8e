"""What whoever starts a learner, and starts it again, tells it: variables of the environment that are set or not."""

from __future__ import annotations

# This learner takes the place of one whose connection broke. That one is there until its side has noticed, too, and it
# has saved.
CONNECTED_AGAIN = "LRPO_CONNECTED_AGAIN"
# When this learner is interrupted, another one takes its place, so that actors should wait for it.
SUCCESSOR = "LRPO_SUCCESSOR"
