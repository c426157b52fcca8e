"""What terms and reward functions share: judge endpoints, embeddings, verified formulas and identified languages.

One :class:`Tools` serves all groups of a reward process. Its methods run in the process's event loop; what computes
goes to threads and processes beside it, so that no group waits for another one's judge.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from common.config import RewardConfig
from common.endpoint import Conversation, Endpoints, Failure
from common.prose import judged_words
from common.sparse_log import is_logged
from reward.calibration.formulas import Calibration
from reward.gate import ComplianceGate
from reward.symbols import without_symbols
from reward.terms.math import MathVerifier
from reward.terms.missing import NEVER, note, waiting
from reward.terms.verifying import VerifyingQueue

if TYPE_CHECKING:
    from reward.embedder import Vectors

logger = logging.getLogger("reward")

T = TypeVar("T")

_GATHER_S = 0.005  # how long texts to embed wait for those of other groups


class Tools:
    """The tools of a reward process.

    ``counts`` holds the counters of the judges, as ``judge_calls`` and the others that ``Endpoints.counts`` has, and
    those of the verifier, which begin with ``math_``.

    ``never`` is what a reward function gives in place of None for an answer, or a part of one, that will not have a
    value the next time either: its group is not scored again for that.

    Args:
        config: the section ``reward``.
        calibrate: turns a similarity into a quality, given the two languages.
        embed_batch: embeds texts in a thread of its own; the second argument says whether they are kept.
        cache: SQLite file of judgements; None: nowhere.
        languages: codes of the languages of the run.
    """

    never = NEVER

    def __init__(
        self,
        config: RewardConfig,
        calibrate: Calibration,
        embed_batch: Callable[[list[str], bool], asyncio.Future[Vectors]],
        cache: Path | None = None,
        languages: Collection[str] = (),
    ) -> None:
        self.config, self.calibrate = config, calibrate
        self._embed_batch, self._cache, self._languages = embed_batch, cache, languages
        self._verifier: MathVerifier | None = None
        self._starting = asyncio.Lock()
        self._verifying: VerifyingQueue | None = None
        self._waiting: dict[bool, list[tuple[list[str], asyncio.Future[Vectors]]]] = {True: [], False: []}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def counts(self) -> Counter[str]:
        judges = self.__dict__.get("_endpoints")  # not made before the first judgement
        counts = judges.counts if judges is not None else {}
        verified = self._verifier.counts if self._verifier is not None else {}
        return Counter({f"judge_{name}": value for name, value in counts.items()} | dict(verified))

    @cached_property
    def _endpoints(self) -> Endpoints:
        config = self.config
        return Endpoints(
            config.judges,
            self._cache,
            calls=config.judge_calls,
            timeout_s=config.judge_timeout_s,
            deadline_s=config.judge_timeout_s,
            attempts=None,
            sampling=config.judge_sampling,
        )

    async def judge(self, messages: Conversation, read: Callable[[str], T]) -> T | None:
        """What ``read`` makes of the answer that one of ``reward.judges`` gives to the messages.

        Judgements are kept by the content of the messages. Takes at most ``reward.judge_timeout_s``, with all attempts.

        Args:
            messages: chat messages, ``[{"role": "user", "content": …}]``.
            read: raises ValueError for an answer of no use; the judge is then told why and asked again.

        Returns:
            None where no endpoint gave a usable answer in time: the value is missing, which is not 0. Where an endpoint
            refused the messages, or gave no answer that could be used, and nothing else failed, a group whose answers
            are missing is not scored again.

        Raises:
            ValueError: there are no judges.
        """
        found = await self.judge_or_failure(messages, read)
        return None if isinstance(found, Failure) else found

    async def judge_or_failure(self, messages: Conversation, read: Callable[[str], T]) -> T | Failure:
        """As :meth:`judge`, with the reason in place of None, which tells what another time would not change.

        Raises:
            ValueError: there are no judges.
        """
        if not self.config.judges:
            raise ValueError('a judge is asked, but reward.judges names none: set it to ["MODEL@URL"]')
        with waiting():
            found = await self._endpoints.ask(messages, read)
        if isinstance(found, Failure):
            note(for_now=not found.lasting, never=found.lasting)
            failed = self._endpoints.counts["failed"]
            if is_logged(failed):
                logger.warning("a judgement is missing (%d so far): %s", failed, found.reason)
        return found

    async def embed(self, texts: Sequence[str], keep: bool = False) -> Vectors:
        """The embeddings of the texts by ``reward.embedder``, made in one batch with those that other groups ask for.

        Args:
            keep: keep them on disk, for texts that come again, as a question's columns do.

        Returns:
            [n, dimension] float32, rows of length 1; nan in the row of a text for which the embedder gave no numbers.
        """
        future: asyncio.Future[Vectors] = asyncio.get_running_loop().create_future()
        together = self._waiting[keep]
        together.append((list(texts), future))
        if len(together) == 1:
            task = asyncio.create_task(self._embed_waiting(keep))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        with waiting():
            vectors = await future
        note(never=int(np.isnan(vectors).any(axis=1).sum()))
        return vectors

    async def _embed_waiting(self, keep: bool) -> None:
        await asyncio.sleep(_GATHER_S)
        together, self._waiting[keep] = self._waiting[keep], []
        try:
            vectors = await self._embed_batch([text for texts, _ in together for text in texts], keep)
        except Exception as error:  # whatever the encoder raises is for those who wait for it
            for _, future in together:
                if not future.done():
                    future.set_exception(error)
            return
        start = 0
        for texts, future in together:
            if not future.done():
                future.set_result(vectors[start : start + len(texts)])
            start += len(texts)

    def start_verifier(self) -> None:
        """Starts the processes of math-verify. Blocks for seconds, and for at most 240.

        Raises:
            FatalError: math-verify is not installed, or does not start.
        """
        if self._verifier is None:
            self._verifier = MathVerifier()
            self._verifying = VerifyingQueue(self._verifier)

    async def verify(self, text: str, accepted: list[str], language: str = "") -> float | None:
        """1 where the formula that a text ends with equals an accepted one by math-verify; otherwise 0.

        Args:
            language: of the text, which decides what 1.234 means; ``""``: not known.

        Returns:
            None where the verifier did not get to it in time: the value is missing, which is not 0.
        """
        return (await self.verify_all([(text, accepted, language)]))[0]

    async def verify_all(self, answers: Sequence[tuple[str, list[str], str]]) -> list[float | None]:
        """:meth:`verify` for many answers at a time, each with its accepted ones and its language."""
        with waiting():
            async with self._starting:
                if self._verifying is None:
                    await asyncio.to_thread(self.start_verifier)
            queue = self._verifying
            assert queue is not None
            found = list(await asyncio.gather(*(queue.verify(*answer) for answer in answers)))
        note(for_now=found.count(None))
        return found

    def in_language(self, texts: Sequence[str], languages: Sequence[str]) -> list[bool]:
        """Whether each text counts as being in its language, by the same rules as the language gate.

        So a text in a language near it does, and a bare number; see ``ComplianceGate.in_language``. An empty text is in
        no language.

        Args:
            languages: for each text the code of the language that is looked for; in ``""`` is no text.
        """
        return self._gate.in_language(texts, languages)

    @property
    def run_languages(self) -> frozenset[str]:
        """The codes of the languages of the run."""
        return frozenset(self._languages)

    def languages(self, texts: Sequence[str], among: Sequence[str] = ()) -> list[str]:
        """The language that each text as a whole is most probably in, as a code; ``""`` for a text without a language.

        A text in one of several languages that are near one another may be taken for another of them, unless they are
        told apart by ``among``. Whether a text is in a given language is for :meth:`in_language` to tell.

        Args:
            among: codes of the languages to choose from. A text in a language near one of these
                (``reward.near_languages``) counts as it; of these that are near one another the first counts.
                Empty: any language.
        """
        if not among:
            return self._gate.language_gate.detect(texts)
        counts_as = languages_with_near(among, self.config.near_languages)
        found = self._gate.language_gate.detect(texts, [list(counts_as)] * len(texts))
        return [counts_as.get(code, code) for code in found]

    def language_shares(self, texts: Sequence[str], languages: Sequence[str]) -> list[float]:
        """The share of each text's letters that are in its language, in [0, 1].

        It is 0 for a text without letters, code and the symbols of formulas not counted: a bare number counts as being
        in any language, but has no share that could be in one.

        Args:
            languages: for each text the code of the language that is looked for.
        """
        found = [1 - one.foreign for one in self._gate.judge(texts, languages)]
        rows = zip(texts, languages, found, strict=True)
        return [share if has_letters(text, code) else 0.0 for text, code, share in rows]

    @cached_property
    def _gate(self) -> ComplianceGate:
        """One of its own, so that nobody waits for the gate of the answers, which judges whole batches."""
        return ComplianceGate(self.config, self._languages)

    async def close(self) -> None:
        """Ends the processes and connections."""
        if "_endpoints" in self.__dict__:
            await self._endpoints.close()
        if self._verifier is not None and self._verifying is not None:
            self._verifying.close()
            self._verifier.close()


def has_letters(text: str, language: str) -> bool:
    """Whether there is anything in a text that is in some language: code and the symbols of formulas do not count."""
    return any(map(str.isalpha, without_symbols(judged_words(text), language)))


def languages_with_near(codes: Sequence[str], near: Mapping[str, Collection[str]]) -> dict[str, str]:
    """The given languages and those near them -> which of the given ones they count as.

    Two of the given ones that are near each other count as the first of them.
    """
    given = list(dict.fromkeys(codes))
    first = {
        code: next(one for one in given if one == code or (one in near.get(code, ()) and code in near.get(one, ())))
        for code in given
    }
    others = {other: first[code] for code in reversed(given) for other in near.get(code, ()) if other not in first}
    return {**others, **first}
