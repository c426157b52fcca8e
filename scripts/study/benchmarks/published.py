"""How those who publish a benchmark read an answer out of a response, faults included. Pure functions.

Each function has the source in its name; ``scripts/study/benchmarks/scoring.py`` says which benchmark takes which, and
what we do instead. Where the published code compares formulas, :func:`equal_formulas` and :func:`equal_mclm` are run
in the limited workers of ``reward.terms.math.MathVerifier``.
"""

from __future__ import annotations

import re
import string
from math import isclose

_CLOSE = "</think>"
_BOX = re.compile(r"boxed{")
_NUMBER_MMATH = re.compile(r"[+-]?(?=\.?[0-9])(?:0|[1-9]\d{0,2}(?:,\d{3})*|\d*)?(?:\.\d*)?(?!\d)")
_PREFIXES = ("final answer", "answer is", "answer:", "answer is:", "final answer:", "final answer is")
_THOUSANDS, _PLAIN_NUMBER = re.compile(r"(\d),(\d)"), re.compile(r"\d+(?:\.\d+)?")
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")  # lm-evaluation-harness, mgsm's flexible-extract
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)  # its ignore_punctuation
_TOLERANCE = 1e-4  # PolyMath's, relative
_MSVAMP_TOLERANCE = 1e-3


def _closed(text: str, start: int) -> str | None:
    """What stands from ``start`` to the brace that closes the one before it; None where none does."""
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return None


def answer_mmath(response: str) -> str:
    r"""MMATH (``math_postprocess_v2``): the last ``\boxed{}`` of the whole response, else its last number.

    The thought counts, too, so an answer that a truncated thought considers is taken for the result. Without a number
    the answer is the word None. A last box that is not closed leaves the last number.
    """
    start = response.rfind("\\boxed")
    start = start if start >= 0 else response.rfind("\\fbox")
    inside = _closed(response, start + len("\\boxed{")) if response.startswith("\\boxed{", max(start, 0)) else None
    if start >= 0 and inside:
        doubled = re.match(r"^\{(.*)\}$", inside)
        return doubled[1] if doubled else inside
    rest = response.lower()
    for prefix in _PREFIXES:
        if prefix in rest:
            rest = response.split(prefix)[-1].strip()
    found = _NUMBER_MMATH.findall(rest)
    return found[-1].replace(",", "").replace("+", "").strip().strip(".") if found else "None"


def answer_polymath(response: str) -> str | None:
    r"""PolyMath (``run_eval.py``): the **first** closed ``\boxed{}`` of the part after the thought, without spaces."""
    text = response.rpartition(_CLOSE)[2].replace(" ", "")
    inside = (_closed(text, found.end()) for found in _BOX.finditer(text))
    return next((one for one in inside if one is not None), None)


def numbers_close_polymath(given: str, gold: str) -> bool | None:
    """PolyMath (``math_equal``): whether two numbers are equal up to 0.01%, or one is 100 times the other.

    So 50 is right where 0.5 or 5000 is asked for. None where one of them is no number; a formula is then compared.
    """
    if given.strip().lower() == gold.strip().lower():
        return True
    values = [_number_polymath(one) for one in (given, gold)]
    if values[0] is None or values[1] is None:
        return None
    return any(isclose(values[1] * factor, values[0], rel_tol=_TOLERANCE) for factor in (0.01, 1, 100))


def _number_polymath(text: str) -> float | None:
    plain = text.replace(",", "")
    try:
        return float(plain)
    except ValueError:
        pass
    if plain.endswith("%"):
        try:
            return float(plain[:-1].removesuffix("\\")) / 100
        except ValueError:
            pass
    return None


def boxes_adamame(response: str) -> tuple[str, str]:
    r"""AdaMame (``metrics.py``): the first ``\boxed{}`` after the thought and the first within it; ``""`` for none.

    An answer is right if either is, so a result that the thought considers first and drops counts.
    """
    before, found, after = response.partition(_CLOSE)
    thought, answer = (before, after) if found else ("", response)
    return _first_box(answer), _first_box(thought)


def _first_box(text: str) -> str:
    start = text.find("\\boxed{")
    if start < 0:
        return ""
    inside = _closed(text, start + len("\\boxed{"))
    return (text[start + len("\\boxed{") : -1] if inside is None else inside).strip()


def number_mathoctopus(text: str) -> float:
    """MSVAMP (MathOctopus, ``extract_last_num``): the last number; commas between digits go, and signs are not read.

    Without a number it is 0, which is then right where 0 is asked for; -3 is 3; decimal commas make 1,5 into 15.
    """
    found = _PLAIN_NUMBER.findall(_THOUSANDS.sub(r"\1\2", text))
    return float(found[-1]) if found else 0.0


def right_mathoctopus(response: str, gold: str) -> bool:
    """MSVAMP: whether the last numbers of response and reference differ by less than 0.001."""
    return abs(number_mathoctopus(gold) - number_mathoctopus(response)) < _MSVAMP_TOLERANCE


def right_harness_mgsm(response: str, gold: str) -> bool:
    """MGSM by lm-evaluation-harness, flexible-extract: the last run of digits, points and commas, as a text.

    All ASCII punctuation is left out of both, so -15, 1,5 and 1.5 are right where 15 is asked for, and 18.00 is not
    where 18 is; digits of other scripts are none; without a number it is [invalid].

    Source: ``lm_eval/tasks/mgsm/direct/direct_yaml``, version 4.0. There the gold is a whole number's digits.
    """
    found = _FLEXIBLE.findall(response)
    texts = [found[-1].strip() if found else "[invalid]", gold.partition(".")[0]]
    said, wanted = (one.translate(_WITHOUT_PUNCTUATION) for one in texts)
    return said == wanted


def equal_formulas(text: str, accepted: list[str], language: str) -> bool:
    r"""``math_verify.verify(parse(gold), parse(text))`` and no more, as MMATH and AdaMame compare.

    A gold without dollar signs is not read as a formula: of 2\\sqrt{3} only a number is seen.
    """
    from math_verify import parse, verify

    try:
        return any(verify(parse(gold), parse(text)) for gold in accepted)
    except Exception:  # as in the published code, whatever a formula provokes is wrong
        return False


def equal_mclm(text: str, accepted: list[str], language: str) -> bool:
    r"""MCLM (``score.py``): as :func:`equal_formulas` of the whole response, or if either text contains the other.

    So an answer 1 is right where 12 is asked for.
    """
    from math_verify import parse, verify

    try:
        read = parse(text)
        gold = accepted[0]
        contained = any(str(one) in gold or gold in str(one) for one in read)
        return bool(verify(parse(gold), read)) or contained
    except Exception:  # as in the published code, whatever a formula provokes is wrong
        return False
