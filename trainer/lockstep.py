"""Minimize several functions at once whose values are cheaper computed together than one by one.

scipy's L-BFGS asks for one value and waits for it. Here each search runs in a thread of its own, and all that wait are
answered in one round. Which searches share a round follows from how often each has asked, never from which thread came
first: what comes out is the same each time.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import OptimizeResult, minimize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


def minimize_together(
    start: np.ndarray,
    values: Callable[[Sequence[int], np.ndarray], tuple[np.ndarray, np.ndarray]],
    *,
    count: int,
    options: Mapping[str, float],
) -> list[OptimizeResult]:
    """Minimize `count` functions of as many arguments each, by L-BFGS-B.

    Args:
        start: (k,) where every search begins.
        values: from the numbers of the functions that are asked (m,), ascending, and their arguments (m, k) to their
            values (m,) and gradients (m, k). Called by the caller's thread.
        count: how many functions.
        options: of scipy's L-BFGS-B.

    Returns:
        One of scipy's results for each function. What `values` raises is raised here.
    """
    questions = SimpleQueue[tuple[int, "np.ndarray | None"]]()
    answers = [SimpleQueue[tuple[float, np.ndarray] | BaseException]() for _ in range(count)]

    def search(number: int) -> OptimizeResult:
        def ask(arguments: np.ndarray) -> tuple[float, np.ndarray]:
            questions.put((number, arguments.copy()))
            answer = answers[number].get()
            if isinstance(answer, BaseException):
                raise answer
            return answer

        try:
            return minimize(ask, start, jac=True, method="L-BFGS-B", options=dict(options))
        finally:
            questions.put((number, None))

    with ThreadPoolExecutor(count) as pool:
        searches = [pool.submit(search, number) for number in range(count)]
        try:
            for asked in _rounds(questions, count):
                order = sorted(asked)
                losses, gradients = values(order, np.stack([asked[number] for number in order]))
                for number, loss, gradient in zip(order, losses.tolist(), gradients, strict=True):
                    answers[number].put((loss, gradient))
        except BaseException as error:
            for answer in answers:  # to those that wait and those that will
                answer.put(error)
            raise
    return [search.result() for search in searches]


def _rounds(questions: SimpleQueue[tuple[int, np.ndarray | None]], searching: int) -> Iterator[dict[int, np.ndarray]]:
    """What all searches that have not ended ask, by their numbers; the next once these are answered."""
    while searching:
        asked: dict[int, np.ndarray] = {}
        while len(asked) < searching:
            number, arguments = questions.get()
            if arguments is None:
                searching -= 1
            else:
                asked[number] = arguments
        if asked:
            yield asked
