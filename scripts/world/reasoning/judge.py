"""A judge for the reasoning world that computes what a language model would estimate: it can read number words.

It answers the prompts of the recipes ``m-thinker``, ``sp3f`` and ``pb-rlsvr`` over HTTP, as an OpenAI-compatible
endpoint, so that a run has its real path to a judge. What is asked of it can be decided in this world: the steps of a
thought are ``a + b = s`` and ``s - c = r``, and the answer is ``r``. It is told nothing that is not in the prompt.
"""

from __future__ import annotations

import json
import re
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from common.languages import code_of
from scripts.world.reasoning.number_words import number_word
from scripts.world.reasoning.stories import LANGUAGES

NAME = "number-words"  # of the model, in MODEL@URL
_LARGEST = 29  # of the numbers that are looked for; sums of the world are smaller
_UNSPACED = ("ja", "zh")
_THOUGHT = re.compile(r"(?:.*<think>)?(.*?)</think>(.*)", re.DOTALL)
_ALIGNMENT = re.compile(r"English thought:\n(.*?)\n\nThought in ([^\n]+):\n(.*)\n\nList the key ", re.DOTALL)
_COMPARISON = re.compile(
    r"A correct solution:\n(.*?)\n\nAnswer A:\n(.*?)\n\nAnswer B:\n(.*)\n\nBoth answers are ", re.DOTALL
)
_TRANSLATION = re.compile(r"English text:\n(.*?)\n\nText in another language:\n(.*)\n\nHow well does ", re.DOTALL)


def answer(prompt: str) -> str:
    """What the judge says to the prompt of a recipe.

    Raises:
        ValueError: the prompt is of no recipe that it knows.
    """
    if found := _ALIGNMENT.search(prompt):
        english, language, thought = found.groups()
        return f"{_steps_found(numbers(thought, code_of(language)), numbers(english, 'en')) / 3:.2f}"
    if found := _COMPARISON.search(prompt):
        solution, *answers = found.groups()
        first, second = (_quality(one, numbers(solution, "en")) for one in answers)
        if first == second:  # then both are equally good, and chance decides
            first += 1 - 2 * (zlib.crc32("\n".join(answers).encode()) & 1)
        return f"{first} and {second} of the steps and results are right.\n{'A' if first > second else 'B'}"
    if found := _TRANSLATION.search(prompt):
        english, text = (one.strip() for one in found.groups())
        return "100" if english == text else "0"
    raise ValueError("this judge knows the prompts of m-thinker, sp3f and pb-rlsvr alone")


def numbers(thought: str, language: str) -> list[int]:
    """The numbers that stand in a thought in words of a language, in their order."""
    pattern, values = _words(language)
    return [values[found.lower()] for found in pattern.findall(thought)]


@cache
def _words(language: str) -> tuple[re.Pattern[str], dict[str, int]]:
    values = {number_word(number, language).lower(): number for number in range(_LARGEST + 1)}
    either = "|".join(sorted(map(re.escape, values), key=len, reverse=True))  # so that "fourteen" is not "four"
    edge = "" if language in _UNSPACED else r"\b"
    return re.compile(f"{edge}(?:{either}){edge}", re.IGNORECASE), values


def _steps_found(found: list[int], solution: list[int]) -> int:
    """How many of the two steps and the answer of a solution a thought has, by the numbers in both."""
    steps = [solution[:3], solution[3:6]]
    said = [found[start : start + 3] for start in range(len(found) - 2)]
    return sum(one in said for one in steps) + (found[-1:] == solution[-1:])


def _quality(text: str, solution: list[int]) -> int:
    """Of an answer in whatever language: its steps, the answer of its thought, and the number after it."""
    parted = _THOUGHT.match(text)
    thought, final = parted.groups() if parted else (text, "")
    steps = max(_steps_found(numbers(thought, language), solution) for language in LANGUAGES)
    return steps + (final.strip() == str(solution[-1]))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # a connection serves many calls
    disable_nagle_algorithm = True  # head and body are two small writes

    def do_POST(self) -> None:
        try:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, body = 200, _completion(answer(request["messages"][-1]["content"]))
        except (ValueError, LookupError) as error:
            status, body = 400, json.dumps({"error": {"message": str(error)}})
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Nothing is printed for a call."""


def _completion(text: str) -> str:
    message = {"role": "assistant", "content": text}
    return json.dumps(
        {
            "id": "judge",
            "object": "chat.completion",
            "created": 0,
            "model": NAME,
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        }
    )


@contextmanager
def serve_judge() -> Iterator[str]:
    """The judge, as ``MODEL@URL`` of an endpoint on loopback that lives as long as the block."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"{NAME}@http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
