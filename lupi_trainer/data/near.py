"""Which of many sets are nearly the same."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np


# `watch(rows, what)` gives the rows one after another, and shows how far it is
Watch: TypeAlias = Callable[[Sequence[Any], str], Iterable[Any]]
BLOCK, MANY, WIDEST = 256, 8, 2048  # rows a product; of how many rows a common element is in one; at most so many


def unwatched(rows: Sequence[Any], what: str) -> Iterable[Any]:
    return rows


def near_rows(
    sets: Iterable[set[str]], share: float, watch: Watch = unwatched, what: str = "compared"
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Every set that is like one before it: all of them, and no other.

    Each is compared with each, by counting: what is in many of the sets as a matrix product, what is in few by lists
    of those that have it, what is in the same sets once for all of it, and what is in one set alone not at all. So
    texts from one template, or of the sentences of one pool, cost hardly more than texts that have nothing in common,
    and of a set nothing is kept but a number an element.

    Args:
        sets: read one at a time.
        share: the least Jaccard similarity (common elements / elements of both together), above 0.
        watch: shows how far it is.
        what: a word for it.

    Yields:
        (j, numbers of the near ones before it, ascending, their similarities).
    """
    elements = [np.fromiter(map(hash, one), np.int64, len(one)) for one in sets]
    sizes = np.array([len(one) for one in elements], np.int64)
    rows = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    _, elements, counts = np.unique(np.concatenate([*elements, np.empty(0, np.int64)]), False, True, True)
    shared = counts[elements] > 1
    rows, elements, counts, weights = _together(rows[shared], elements[shared], len(sizes))
    many = np.argsort(-counts, kind="stable")[:WIDEST]
    many = many[counts[many] > max(1, len(sizes) // MANY)]
    column = np.full(len(counts), -1, np.int32)
    column[many] = np.arange(len(many))
    matrix = np.zeros((len(sizes), len(many)), np.float32)
    in_many = column[elements] >= 0
    matrix[rows[in_many], column[elements[in_many]]] = 1
    weighted = weights[many].astype(np.float32)

    rows, elements = rows[~in_many], elements[~in_many]  # by row
    order = np.argsort(elements, kind="stable")
    having = rows[order]  # by element, and of each by row
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    first = np.searchsorted(elements[order], elements)
    bounds = np.searchsorted(rows, np.arange(len(sizes) + 1))

    for j in watch(range(len(sizes)), what):
        if j % BLOCK == 0:
            product = (matrix[j : j + BLOCK] * weighted) @ matrix[: j + BLOCK].T
        own = slice(bounds[j], bounds[j + 1])
        before = place[own] - first[own]  # how many earlier rows have it
        starts = first[own] - np.cumsum(before) + before
        earlier = having[np.repeat(starts, before) + np.arange(before.sum())]
        few = np.bincount(earlier, np.repeat(weights[elements[own]], before), minlength=j)
        common = product[j % BLOCK, :j] + few
        similarity = common / np.maximum(sizes[:j] + sizes[j] - common, 1)
        near = np.flatnonzero((similarity >= share) & (common > 0))
        if len(near):
            yield j, near, similarity[near]


def _together(rows: np.ndarray, elements: np.ndarray, many: int) -> tuple[np.ndarray, ...]:
    """Elements that are in the same of `many` rows become one, which counts as often.

    Args:
        rows, elements: numbers of both, of every element of a row; by row.

    Returns:
        (rows, elements) of those that are left, in how many rows each element is, how many it was.
    """
    order = np.argsort(elements, kind="stable")
    starts = np.flatnonzero(np.diff(elements[order], prepend=-1))
    # a set of rows, as the sum of numbers drawn for each
    drawn = np.random.default_rng(0).integers(0, 2**64, many, np.uint64)
    sums = np.add.reduceat(drawn[rows[order]], starts) if len(starts) else drawn[:0]
    counts = np.diff(starts, append=len(order))
    _, leading, weights = np.unique(sums, return_index=True, return_counts=True)
    number = np.full(len(starts), -1, np.int64)
    number[leading] = np.arange(len(leading))
    left = np.empty(len(order), np.int64)
    left[order] = np.repeat(number, counts)
    return rows[left >= 0], left[left >= 0], counts[leading], weights


def near_pairs(sets: Iterable[set[str]], share: float) -> Iterator[tuple[int, int, float]]:
    """Pairs (i, j, Jaccard similarity), i < j, of sets that are at least `share` alike: see [`near_rows`]."""
    for j, near, similarities in near_rows(sets, share):
        yield from ((i, j, similarity) for i, similarity in zip(near.tolist(), similarities.tolist()))
