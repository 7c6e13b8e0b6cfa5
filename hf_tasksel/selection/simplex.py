"""Minimises a smooth function of shares that sum to one, each at most its cap, without its derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

STEP_SIZES = np.geomspace(1e-3, 30, 12)  # largest changes of log-shares
INTERIOR = 0.1  # a descent starts from this much of even shares, since a share of 0 can't grow
NEGLIGIBLE = 1e-3  # shares below that, relative to an even share, are tried at 0
TOLERANCE = 1e-7  # relative decrease at which a descent ends
SHARE_FLOOR = 1e-12

Function = Callable[[np.ndarray], np.ndarray]


def minimize_on_simplex(
    function: Function, starts: Sequence[np.ndarray], caps: np.ndarray, max_iter: int
) -> tuple[np.ndarray, list[float]]:
    """Descend from each start by exponentiated gradient and return the best point found.

    Args:
        function: takes (m, n) shares, which may sum to a little more than one, and returns (m,) values.
        starts: points (n,) on the simplex, within the caps.
        caps: (n,) the largest allowed shares, positive, Σ ≥ 1.
        max_iter: steps of a descent; each takes n + 12 values in two calls.

    Returns:
        The shares (n,) and the values on the way there. They are no worse than any start.

    Reference:
        Kivinen and Warmuth 1997, with finite differences for the gradient and a line search.
    """
    even = capped(np.ones((1, len(caps))), caps)[0]
    found = []
    for start in starts:
        found.append((start, [float(function(start[None])[0])]))
        found.append(descend(function, (1 - INTERIOR) * start + INTERIOR * even, caps, max_iter))
    point, path = min(found, key=lambda pair: pair[1][-1])
    sparse = capped(np.where(point < NEGLIGIBLE * even, 0.0, point)[None], caps)
    value = float(function(sparse)[0])
    return (sparse[0], [*path, value]) if value <= path[-1] else (point, path)


def descend(function: Function, point: np.ndarray, caps: np.ndarray, max_iter: int) -> tuple[np.ndarray, list[float]]:
    """Return the end of one descent from `point` (n,) and the values on the way."""
    path = [float(function(point[None])[0])]
    distance = 1e-2 / len(point)  # of the finite differences: small beside an even share
    for _ in range(max_iter):
        slopes = (function(point + distance * np.eye(len(point))) - path[-1]) / distance
        slopes -= slopes @ point
        largest = np.abs(slopes).max()
        if not largest > 0:
            break
        moved = np.maximum(point, SHARE_FLOOR) * np.exp(-STEP_SIZES[:, None] * slopes / largest)
        candidates = capped(np.maximum(moved, SHARE_FLOOR), caps)
        values = function(candidates)
        best = int(np.argmin(values))
        decrease = path[-1] - values[best]
        if decrease > 0:
            point = candidates[best]
            path.append(float(values[best]))
        if decrease <= TOLERANCE * abs(path[-1]):
            break
    return point, path


def capped(points: np.ndarray, caps: np.ndarray) -> np.ndarray:
    """Scale non-negative rows (m, n) to sum to one, cutting entries at `caps` (n,) and scaling the others up for it.

    A row whose positive entries have too little room is filled up at its other entries, in proportion to their caps.
    """
    points = np.minimum(points / points.sum(1, keepdims=True), caps)
    for _ in range(len(caps)):
        missing = 1 - points.sum(1, keepdims=True)
        if (missing <= SHARE_FLOOR).all():
            break
        free = np.where(points < caps, points, 0.0)
        room = np.where(free.sum(1, keepdims=True) > 0, free, caps - points)
        points = np.minimum(
            points + missing * room / np.maximum(room.sum(1, keepdims=True), np.finfo(float).tiny), caps
        )
    return points / points.sum(1, keepdims=True)
