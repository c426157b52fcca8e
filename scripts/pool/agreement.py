"""Whether a pool file and the configuration of its run agree, and what the one takes from the other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import dropwhile

from common.config import Config, ConfigError, given_keys
from scripts.pool.pool_file import Nodes, Pool


def settle(pool: Pool, config: Config, arguments: Sequence[str]) -> Pool:
    """The pool with the width of each engine: where an entry of actors names no ``tp``, the configuration's.

    The pool file decides how many learner nodes and ranks there are, whatever configuration files say, as those of
    ``configs/`` are for one machine.

    Args:
        config: what ``arguments`` say.
        arguments: configuration files and flags, as ``common.config.load`` reads them.

    Raises:
        ConfigError: the pool contradicts the configuration or a flag, or has a learner and nobody to give rewards.
    """
    _check_rewards(pool, config)
    _check_ranks(pool, config, given_keys([*dropwhile(lambda word: not word.startswith("--"), arguments)]))
    return pool.model_copy(update={"nodes": tuple(_with_width(nodes, config) for nodes in pool.nodes)})


def _check_rewards(pool: Pool, config: Config) -> None:
    roles = {nodes.role for nodes in pool.nodes}
    if "learner" in roles and "reward" not in roles and config.reward.addresses == type(config.reward)().addresses:
        raise ConfigError(
            "nodes: there is a learner, but no [[nodes]] has role = 'reward', so that actors would wait for one: add "
            "it, or give reward.addresses where reward processes run already"
        )


def _check_ranks(pool: Pool, config: Config, by_hand: set[str]) -> None:
    learners = [nodes for nodes in pool.nodes if nodes.role == "learner"]
    if not learners:
        return
    numbers = [("nodes", sum(nodes.machines for nodes in learners), "machines")]
    numbers += [("ranks", nodes.engines, "engines on each machine") for nodes in learners]
    for key, number, what in numbers:
        flag = getattr(config.learner, key)
        if f"learner.{key}" in by_hand and flag != number:
            raise ConfigError(
                f"nodes: the learner has {number} {what}, and --learner.{key} says {flag}: the pool file decides, so "
                "change it there and leave the flag out"
            )


def _with_width(nodes: Nodes, config: Config) -> Nodes:
    width = config.actor.engine_args.get("tp")
    if nodes.role != "actor" or width is None:
        return nodes
    if "tp" not in nodes.model_fields_set:
        return nodes.model_copy(update={"tp": width})
    if nodes.tp != width:
        raise ConfigError(
            f"nodes: the actors of {nodes.place} have tp = {nodes.tp}, and the configuration has "
            f"actor.engine_args.tp = {width}: leave one of them out"
        )
    return nodes
