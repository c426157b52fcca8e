"""How many groups an actor keeps in flight: as many as its engine has room for, found from the engine's gauges."""

from __future__ import annotations

from collections.abc import Mapping

# The largest share of the KV cache after one more step. It is low, as answers in flight have half of their tokens.
_TARGET_USAGE = 0.6
_CUT_FACTOR = 0.75
_SETTLING = 1.5  # the effect of a cut is seen once this many times the groups in flight have finished
_RETRY_AFTER = 64  # groups without retraction before the limit is raised by one again; doubles with each cut
_STEPS_TO_MOST = 16


class Concurrency:
    """Raises the number of slots additively while the KV cache has room, and cuts it when answers were retracted.

    Nothing but the arguments of ``record_finished`` enters: there is no clock and no I/O.

    Args:
        most: upper bound, ``actor.groups_in_flight``. It can be reached after 16 finished groups.
    """

    def __init__(self, most: int) -> None:
        self.slots = self._step = -(-most // _STEPS_TO_MOST)  # rounded up
        self._most = most
        self._limit = most  # below ``most`` once there was a cut
        self._since_cut = 0  # groups finished since the last cut, or since the limit was last raised
        self._retry_after = _RETRY_AFTER
        self._had_gauges = False  # so far

    def record_finished(self, gauges: Mapping[str, float], in_flight: int, *, retracted: bool) -> None:
        """Adapts ``slots`` when a group has finished.

        Args:
            gauges: of the engine: ``usage`` of its KV cache in [0, 1], numbers of requests ``running`` and
                ``waiting``. Empty where they could not be read. An engine that has never given any gets all slots.
            in_flight: groups that were being generated, the finished one included.
            retracted: whether the engine put answers of the group back for lack of memory.
        """
        if not gauges and not self._had_gauges:
            self.slots = self._most
            return
        if not self._had_gauges:  # until now it had all slots, so the search begins at the first step
            self._had_gauges, self.slots = True, self._step
        self._since_cut += 1
        waiting, running = gauges.get("waiting", 0.0), gauges.get("running", 0.0)
        no_cut_yet = self._limit == self._most
        if retracted and (no_cut_yet or self._since_cut > _SETTLING * self.slots):
            fitting_share = running / (running + waiting) if running else 1.0
            self._limit = self.slots = max(1, int(self.slots * min(_CUT_FACTOR, fitting_share)))
            self._since_cut, self._retry_after, self._step = 0, 2 * self._retry_after, 1
        elif not retracted:
            if not no_cut_yet and self._since_cut >= self._retry_after:
                self._limit, self._since_cut = self._limit + 1, 0
            # Several groups may finish at once, so the slots need not be full for the usage to count: half is enough.
            has_room = gauges and gauges["usage"] * (self.slots + self._step) < _TARGET_USAGE * in_flight
            if has_room and not waiting and 2 * in_flight >= self.slots:
                self.slots = min(self._limit, self.slots + self._step)
