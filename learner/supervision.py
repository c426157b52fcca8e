"""Environment variables by which a supervisor tells the learner how its start came about. Their values mean nothing."""

from __future__ import annotations

# The supervisor lost its connection to the learner before this one, and started this one in its place. The one before
# may still run: it ends once its own side has noticed the loss, and it has saved.
CONNECTED_AGAIN = "LRPO_CONNECTED_AGAIN"
# When this learner is interrupted, the supervisor starts another one in its place, so that actors should wait for that.
SUCCESSOR = "LRPO_SUCCESSOR"
