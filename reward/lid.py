"""fastText's language identification, lid.176, for every part of many texts at once.

fastText reads a line as its words and their character n-grams, averages a vector for each of them, and gives
probabilities by a hierarchical softmax over a Huffman tree of the languages (Joulin et al. 2017, "Bag of Tricks for
Efficient Text Classification"). The library reads one line at a time. To judge each passage of an answer it would have
to read everything again for each passage; here every n-gram is looked up once for all texts, and the vectors of any
passage are sums. Probabilities equal the library's up to rounding, which a test checks.

Shapes: C characters, U units, S spans, L languages, D the model's dimension (16).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import fasttext
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from common.process import FatalError
from common.writing import GROUPS, normalise_word, scripts_of

Floats: TypeAlias = NDArray[np.float32]
Ints: TypeAlias = NDArray[np.int64]

_MAGIC, _LABEL, _END_OF_LINE = 793712314, "__label__", "</s>"
_WORD_BEGINS, _WORD_ENDS = "<", ">"  # what fastText puts around a word before it takes the n-grams
_FNV_START, _FNV_PRIME = np.uint32(2166136261), np.uint32(16777619)
_UNIT = 8  # longest unit in characters: words of scripts without spaces are cut, so that spans can end inside
_CHUNK = 1 << 15  # characters that are looked up at a time, which bounds the memory
_CACHED_UNITS = 1 << 18  # units of words that are kept; with more than these the cache starts anew


@dataclass(frozen=True)
class Units:
    """Texts cut into units: words, pieces of long words, and parts of words in one script.

    Attributes:
        sums: [U, D] the sum of the vectors of each unit's word and n-grams.
        counts: [U] how many vectors were added up.
        letters: [U] letters and combining marks in each unit.
        scripts: [U] the scripts of these letters, a bit each, see :func:`common.writing.scripts_of_language`.
        owner: [U] the index of the text that a unit belongs to; never decreasing.
    """

    sums: Floats
    counts: Floats
    letters: Ints
    scripts: Ints
    owner: Ints


class LanguageModel:
    """A supervised fastText model with hierarchical softmax, as lid.176 is.

    Attributes:
        languages: [L] the codes, in the model's order.
        frequencies: [L] of how many examples it has learned each.

    Args:
        file: ``lid.176.ftz`` or ``lid.176.bin``.

    Raises:
        FatalError: the file is not such a model.
    """

    def __init__(self, file: Path) -> None:
        try:
            model = fasttext.load_model(str(file))
            model.predict(["a word vector model fails here"])
        except ValueError as error:
            raise FatalError(f"the language model {file} is not a fastText classifier: {error}") from None
        settings: Any = model.f.getArgs()
        if settings.loss.name != "hs" or settings.wordNgrams != 1:
            raise FatalError(
                f"the language model {file} is no lid.176, which has hierarchical softmax and no word n-grams"
            )
        labels, frequencies = model.get_labels(include_freq=True)
        self.languages = [label.removeprefix(_LABEL) for label in labels]
        self.frequencies = np.array(frequencies, np.float64)
        self._index = {code: index for index, code in enumerate(self.languages)}
        self._shortest, self._longest, self._buckets = settings.minn, settings.maxn, settings.bucket
        words = model.get_words()
        self._rows_of_words = {word: row for row, word in enumerate(words)}
        kept = _read_pruning(file)
        if kept is None:
            self._rows_of_buckets = np.arange(self._buckets, dtype=np.int32) + len(words)
            self._vectors: Floats = np.array(model.get_input_matrix(), np.float32)
        else:
            self._rows_of_buckets = np.full(self._buckets, -1, np.int32)
            self._rows_of_buckets[kept[:, 0]] = kept[:, 1] + len(words)
            rows = range(len(words) + len(kept))
            self._vectors = np.stack([model.get_input_vector(row) for row in rows]).astype(np.float32)
        end = self._rows_of_words.get(_END_OF_LINE)
        # Copies, because the library frees this memory together with its model.
        self._end = self._vectors[end] if end is not None else np.zeros(self._vectors.shape[1], np.float32)
        self._end_count = float(end is not None)
        self._tree = np.array(model.f.getOutputMatrix(), np.float32)[: len(labels) - 1]
        right, left = _paths(list(frequencies))
        self._on_path, self._left_sum = right + left, self._tree.T @ left
        self._forget_words()

    def index(self, languages: Iterable[str]) -> list[int]:
        """The columns of these languages; those that the model does not know are left out."""
        return [self._index[code] for code in languages if code in self._index]

    def read(self, texts: Sequence[str]) -> Units:
        """Cuts texts into units and adds up the vectors of each. White space separates words.

        Letters are counted after :func:`common.writing.normalise_word`, which also says what the model reads.
        """
        words = [text.split() for text in texts]
        flat = [word for some in words for word in some]
        if new := list({word: None for word in flat if word not in self._cached}):
            if self._used + sum(map(len, new)) > len(self._sums):
                self._forget_words()
                new = list(dict.fromkeys(flat))
            self._cache(new)
        known = np.array([self._cached[word] for word in flat], np.int64)
        first, units = self._first[known], self._first[known + 1] - self._first[known]
        row = np.repeat(first - np.cumsum(units) + units, units) + np.arange(int(units.sum()))
        owner = np.repeat(np.arange(len(texts)), [len(some) for some in words])
        return Units(
            self._sums[row], self._counts[row], self._letters[row], self._scripts[row], np.repeat(owner, units)
        )

    def log_probabilities(self, sums: Floats, counts: Floats, columns: Sequence[int] | None = None) -> Floats:
        """Natural logarithms of the probabilities of languages, [S, columns], for spans of text.

        Args:
            sums: [S, D] sums of the units of each span.
            counts: [S] sums of their counts.
            columns: of the languages; None: all.
        """
        # Each span is read as a line, which ends with a mark that has a vector too.
        hidden = (sums + self._end) / np.maximum(counts + self._end_count, 1)[:, None]
        on_path, left_sum = self._on_path, self._left_sum
        if columns is not None:
            on_path, left_sum = on_path[:, columns], left_sum[:, columns]
        nodes = np.flatnonzero(on_path.any(1))
        # A path turns right at a node with the probability sigmoid(s) and left with sigmoid(-s), and
        # log sigmoid(-s) = log sigmoid(s) - s.
        scores = hidden @ self._tree[nodes].T
        softplus = np.abs(scores)  # log(1 + exp(-s)) = max(-s, 0) + log(1 + exp(-|s|)), which cannot overflow
        for step in (np.negative, np.exp, np.log1p):
            step(softplus, out=softplus)
        softplus -= np.minimum(scores, 0)
        found: Floats = -(softplus @ on_path[nodes]) - hidden @ left_sum
        return found

    # -- vectors of words ----------------------------------------------------------------------------------------------

    def _forget_words(self) -> None:
        self._cached: dict[str, int] = {}
        self._first = np.zeros(1, np.int64)
        self._used = 0
        self._sums = np.zeros((_CACHED_UNITS, self._tree.shape[1]), np.float32)
        self._counts = np.zeros(_CACHED_UNITS, np.float32)
        self._letters = np.zeros(_CACHED_UNITS, np.int64)
        self._scripts = np.zeros(_CACHED_UNITS, np.int64)

    def _cache(self, words: list[str]) -> None:
        """Computes the units of words that are not known yet."""
        plain = [normalise_word(word) for word in words]
        written = np.frombuffer(
            "".join(f"{_WORD_BEGINS}{word}{_WORD_ENDS}" for word in plain).encode("utf-32-le"), np.uint32
        ).astype(np.int64)
        lengths = np.array([len(word) + 2 for word in plain])
        ends = np.cumsum(lengths)
        word_of = np.repeat(np.arange(len(plain)), lengths)
        place = np.arange(len(written)) - (ends - lengths)[word_of]
        script = scripts_of(written)
        # The marks at both ends of a word and what is no letter belong to the unit before them.
        last_letter = np.maximum.accumulate(np.where(script > 0, np.arange(len(written)), 0))
        group = np.where(word_of[last_letter] == word_of, GROUPS[script[last_letter]], -1)
        changes = (group != np.roll(group, 1)) & (np.roll(group, 1) >= 0)
        cut = (place == 0) | ((place > 1) & (changes | ((place - 1) % _UNIT == 0)) & (place < lengths[word_of] - 1))
        unit_of = np.cumsum(cut) - 1
        units = int(unit_of[-1]) + 1
        sums, counts = self._add_ngrams(written, ends[word_of], unit_of, units)
        starts = np.flatnonzero(cut)
        first = unit_of[ends - lengths]
        for unit, word in zip(first.tolist(), plain, strict=True):
            row = self._rows_of_words.get(word)
            if row is not None and word:
                sums[unit] += self._vectors[row]
                counts[unit] += 1
        if self._used + units > len(self._sums):  # a single call with more than the cache holds
            grown = self._used + units
            self._sums = np.resize(self._sums, (grown, self._sums.shape[1]))
            self._counts = np.resize(self._counts, grown)
            self._letters, self._scripts = np.resize(self._letters, grown), np.resize(self._scripts, grown)
        here = slice(self._used, self._used + units)
        self._sums[here], self._counts[here] = sums, counts
        self._letters[here] = np.add.reduceat((script > 0).astype(np.int64), starts)
        self._scripts[here] = np.bitwise_or.reduceat(np.where(script > 0, np.int64(1) << script, 0), starts)
        number = len(self._cached)
        self._cached.update(zip(words, range(number, number + len(words)), strict=True))
        self._first = np.concatenate([self._first[:-1], self._used + first, [self._used + units]])
        self._used += units

    def _add_ngrams(self, written: Ints, word_end: Ints, unit_of: Ints, units: int) -> tuple[Floats, Floats]:
        """The sums [U, D] and counts [U] of the n-grams that begin in each unit.

        An n-gram's bucket is its FNV-1a hash over UTF-8, in which fastText takes bytes as signed numbers.
        """
        all_rows, all_owners = [], []
        for start in range(0, len(written), _CHUNK):
            stop = min(start + _CHUNK, len(written))
            reach = min(stop + self._longest - 1, len(written))
            code_bytes, sizes = _utf8(written[start:reach])
            hashes = np.full(stop - start, _FNV_START, np.uint32)
            for step in range(self._longest):
                inside = np.arange(start, stop) + step < word_end[start:stop]
                at = np.minimum(np.arange(stop - start) + step, reach - start - 1)
                for byte in range(4):
                    used = inside & (sizes[at] > byte)
                    if used.any():
                        hashes = np.where(used, (hashes ^ code_bytes[byte][at]) * _FNV_PRIME, hashes)
                if step + 1 >= self._shortest:
                    rows = self._rows_of_buckets[hashes[inside] % np.uint32(self._buckets)]
                    all_rows.append(rows[rows >= 0])
                    all_owners.append(unit_of[start:stop][inside][rows >= 0])
        rows, owners = np.concatenate(all_rows), np.concatenate(all_owners)
        chosen = csr_matrix((np.ones(len(rows), np.float32), (owners, rows)), (units, len(self._vectors)))
        return chosen @ self._vectors, np.bincount(owners, minlength=units).astype(np.float32)


def sum_rows(values: NDArray[Any], starts: Ints) -> NDArray[Any]:
    """The sums of consecutive rows, [S, D] of [N, D]; ``starts`` [S] are the first rows of each sum, from 0.

    As ``np.add.reduceat``, which is several times slower where the sums are short.
    """
    ends = np.append(starts, len(values))
    ones = np.ones(len(values), values.dtype)
    sums: NDArray[Any] = csr_matrix((ones, np.arange(len(values)), ends), (len(starts), len(values))) @ values
    return sums


def _continuation(codes: Ints, shift: int) -> Ints:
    return 0x80 | (codes >> shift) & 0x3F


def _utf8(codes: Ints) -> tuple[list[NDArray[np.uint32]], Ints]:
    """The up to four UTF-8 bytes of each code point, sign-extended to 32 bits, and how many there are."""
    sizes = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    lead = np.select(
        [sizes == 1, sizes == 2, sizes == 3], [codes, 0xC0 | codes >> 6, 0xE0 | codes >> 12], 0xF0 | codes >> 18
    )
    second = np.select(
        [sizes == 2, sizes == 3], [_continuation(codes, 0), _continuation(codes, 6)], _continuation(codes, 12)
    )
    fourth = _continuation(codes, 0)
    third = np.where(sizes == 3, fourth, _continuation(codes, 6))
    signed = [
        np.where(byte >= 0x80, byte | 0xFFFFFF00, byte).astype(np.uint32) for byte in (lead, second, third, fourth)
    ]
    return signed, sizes


def _paths(frequencies: list[int]) -> tuple[Floats, Floats]:
    """The languages' paths through the Huffman tree, [L - 1, L] each: 1 where a path turns right, and where left.

    The tree is built as fastText does it, from the labels' frequencies in decreasing order.
    """
    leaves = len(frequencies)
    weight = [*map(int, frequencies), *([10**15] * (leaves - 1))]
    parent, turns_right = [-1] * (2 * leaves - 1), [False] * (2 * leaves - 1)
    leaf, node = leaves - 1, leaves
    for new in range(leaves, 2 * leaves - 1):
        children = []
        for _ in range(2):
            if leaf >= 0 and weight[leaf] < weight[node]:
                children.append(leaf)
                leaf -= 1
            else:
                children.append(node)
                node += 1
        weight[new] = weight[children[0]] + weight[children[1]]
        parent[children[0]] = parent[children[1]] = new
        turns_right[children[1]] = True
    right, left = np.zeros((2, leaves - 1, leaves), np.float32)
    for language in range(leaves):
        at = language
        while parent[at] != -1:
            (right if turns_right[at] else left)[parent[at] - leaves, language] = 1
            at = parent[at]
    return right, left


def _read_pruning(file: Path) -> Ints | None:
    """Which buckets a compressed model has kept: [n, 2] of bucket and row among the n-grams. None: it has all.

    The library does not say which. The layout is that of ``Args::load`` and ``Dictionary::load`` of fastText 0.9.
    """
    with file.open("rb") as stream:
        magic, _version = struct.unpack("<ii", stream.read(8))
        if magic != _MAGIC:
            raise FatalError(f"the language model {file} is not a fastText model")
        stream.read(12 * 4 + 8)  # twelve settings and the sampling threshold
        entries, _words, _labels, _tokens, kept = struct.unpack("<iiiqq", stream.read(28))
        if kept < 0:
            return None
        for _ in range(entries):
            while stream.read(1) != b"\0":
                pass
            stream.read(9)
        return np.frombuffer(stream.read(8 * kept), np.int32).reshape(-1, 2).astype(np.int64)
