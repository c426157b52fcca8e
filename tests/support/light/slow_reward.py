"""A reward process that takes ``SLOW_TEXT_S`` for an answer and scores by chance: the real service, another scorer.

``python -m tests.support.light.slow_reward CONFIG.toml [--section.key value]``
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence

import zmq

from common.config import Config
from common.net import sockets
from common.process import main
from common.wire import Score, ScoreRequest
from reward.service import Service
from tests.support.scorers import FunctionScorer


def score(requests: Sequence[ScoreRequest]) -> list[list[Score]]:
    time.sleep(float(os.environ["SLOW_TEXT_S"]) * sum(len(request.answers) for request in requests))
    values = [[random.random() for _ in request.answers] for request in requests]
    return [[Score(reward=v, quality=v, similarity=v, compliant=True, detected="en") for v in row] for row in values]


def serve(config: Config) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = sockets.bind(context, config.reward.addresses[config.reward.replica])
    Service(context, socket, config.reward).run(FunctionScorer(score))


if __name__ == "__main__":
    main(serve)
