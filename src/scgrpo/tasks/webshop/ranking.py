"""Ranking products as Lucene does (BM25, `k1 = 0.9`, `b = 0.4`, Anserini's defaults), bit by bit.

    score(q, d) = sum over terms t of q:  w_t - w_t / (1 + tf_{t,d} * s(d)),     w_t = (count of t in q) * idf_t
    idf_t = ln(1 + (N - n_t + 0.5) / (n_t + 0.5)),     1 / s(d) = k1 * (1 - b + b * length(d) / mean length)

- N is the number of documents that have a term at all, n_t of those with t; the mean length is exact, but length(d)
  is stored in one byte: exact below 40, then rounded down to four significant bits of what is above 24.
- Everything is single precision, as in Lucene, but the sum over terms, which is double and then rounded.
- Equal scores are ordered by document name.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from scgrpo.tasks.webshop.analysis import terms

K1, B = 0.9, 0.4
# Codes for lengths that are stored as they are: what floats of four bits up to 2**31 - 1 leave over of 256.
_NUM_FREE = 24


def stored_length(length: int) -> int:
    """A document's length in terms as Lucene's one-byte norm gives it back (`SmallFloat.intToByte4`).

    Never longer, and less than an eighth shorter.
    """
    rest = length - _NUM_FREE
    if rest < 16:
        return length
    shift = rest.bit_length() - 4
    return _NUM_FREE + (rest >> shift << shift)


class SearchIndex:
    """Documents by their words.

    Memory: 6 bytes per pair of document and term, 8 per document, and the vocabulary; while it is built, 14 more per
    pair.

    Args:
        names: of documents, all different.
        texts: their contents, in the same order.
    """

    def __init__(self, names: Sequence[str], texts: Iterable[str]) -> None:
        self.names = list(names)
        vocabulary: dict[str, int] = {}
        term_ids, frequencies, sizes, lengths = array("i"), array("H"), array("i"), array("i")
        for text in texts:
            counts = Counter(terms(text))
            for term, count in counts.items():
                term_ids.append(vocabulary.setdefault(term, len(vocabulary)))
                frequencies.append(min(count, 65535))
            sizes.append(len(counts))
            lengths.append(counts.total())
        self._vocabulary = vocabulary
        self._set_norms(np.frombuffer(lengths, np.int32) if lengths else np.zeros(0, np.int32))
        by_term = np.frombuffer(term_ids, np.int32) if term_ids else np.zeros(0, np.int32)
        order = np.argsort(by_term, kind="stable")
        self._starts = np.zeros(len(vocabulary) + 1, np.int64)
        np.cumsum(np.bincount(by_term, minlength=len(vocabulary)), out=self._starts[1:])
        documents = np.repeat(np.arange(len(sizes), dtype=np.int32), np.asarray(sizes, dtype=np.int64))
        self._documents = documents[order]
        self._frequencies = np.asarray(frequencies, dtype=np.uint16)[order]
        rank = np.empty(len(self.names), np.int32)
        rank[sorted(range(len(self.names)), key=self.names.__getitem__)] = np.arange(len(self.names))
        self._name_rank = rank

    def _set_norms(self, lengths: npt.NDArray[np.int32]) -> None:
        self._num_documents = int((lengths > 0).sum())
        one, k1, b = np.float32(1), np.float32(K1), np.float32(B)
        mean = np.float32(int(lengths.sum()) / max(1, self._num_documents))
        kept = {length: stored_length(int(length)) for length in np.unique(lengths)}
        stored = np.array([kept[length] for length in lengths], dtype=np.float32)
        self._saturation = one / (k1 * ((one - b) + b * stored / max(mean, np.float32(1e-9))))

    def search(self, query: str, limit: int = 50) -> list[str]:
        """Names of the best documents that share a term with the query, best first."""
        return [self.names[index] for index, _ in self._best(query, limit)]

    def scores(self, query: str, limit: int = 50) -> list[tuple[str, float]]:
        """As `search`, with scores."""
        return [(self.names[index], score) for index, score in self._best(query, limit)]

    def _best(self, query: str, limit: int) -> list[tuple[int, float]]:
        total = np.zeros(len(self.names))
        for term, count in Counter(terms(query)).items():
            term_id = self._vocabulary.get(term)
            if term_id is not None:
                documents, part = self._part(term_id, count)
                total[documents] += part
        scores = total.astype(np.float32)
        found = np.flatnonzero(scores)
        if len(found) > limit:  # all that may be among the best, ties at the border included
            border = np.partition(scores[found], len(found) - limit)[len(found) - limit]
            found = found[scores[found] >= border]
        best = found[np.lexsort((self._name_rank[found], -scores[found]))][:limit]
        return [(int(index), float(scores[index])) for index in best]

    def _part(self, term_id: int, count: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Documents with a term, and what it adds to each one's score."""
        start, end = self._starts[term_id], self._starts[term_id + 1]
        documents = self._documents[start:end]
        num = len(documents)
        idf = np.float32(math.log(1 + (self._num_documents - num + 0.5) / (num + 0.5)))
        weight = np.float32(count) * idf
        frequencies = self._frequencies[start:end].astype(np.float32)
        return documents, weight - weight / (np.float32(1) + frequencies * self._saturation[documents])
