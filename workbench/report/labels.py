"""Where the labels of a scatter plot go so that none covers another, a point, or the border.

Every label tries the places around its point, ring by ring, and takes the cheapest; then all are reconsidered, given
the others, until nothing changes. No random start: the same points always give the same picture.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

RINGS = (8.0, 15.0, 25.0, 38.0, 54.0, 74.0, 98.0, 126.0, 160.0)
"""Distances from a point to the near edge of its label, in pixels."""
ANGLES = np.linspace(0, 2 * math.pi, 24, endpoint=False)
SWEEPS = 6


class Box(NamedTuple):
    """A rectangle by its edges, in pixels."""

    left: float
    top: float
    right: float
    bottom: float


def place(
    points: list[tuple[float, float]],
    sizes: list[tuple[float, float]],
    bounds: Box,
    *,
    blocked: list[Box],
    lines: list[Box],
) -> list[Box]:
    """A box for each point's label.

    The cost of a place is its distance, plus 40 a pixel of area outside `bounds` or on another label, 12 on a `blocked`
    box, 0.6 on a `line` (an interval bar: to cross it is better than to move far away), and 30 a dot of leader across
    a label or a blocked box.

    Args:
        points: their centers.   sizes: width and height of each label.
        blocked: boxes to stay off, the markers among them.   lines: thin boxes to stay off if that is cheap.
    """
    options = [_around(point, size) for point, size in zip(points, sizes, strict=True)]
    leaders = [_leaders(point, boxes) for point, boxes in zip(points, options, strict=True)]
    fixed = [_fixed_cost(boxes, bounds, blocked, lines) for boxes in options]
    for i, (x, y) in enumerate(points):
        strange = [box for box in blocked if not (box.left <= x <= box.right and box.top <= y <= box.bottom)]
        if strange:
            fixed[i] += 30 * _inside(leaders[i], np.array(strange, dtype=float)).sum(axis=1)
    crowd = [sum(math.dist(p, q) < 90 for q in points) for p in points]
    order = sorted(range(len(points)), key=lambda i: -crowd[i])
    chosen: dict[int, int] = {}
    for _ in range(SWEEPS):
        before = dict(chosen)
        for i in order:
            others = [j for j in chosen if j != i]
            cost = fixed[i].copy()
            if others:
                taken = np.array([options[j][chosen[j]] for j in others])
                lead = np.concatenate([leaders[j][chosen[j]] for j in others])
                cost += 40 * _overlap(options[i], taken).sum(axis=1)
                cost += 30 * _inside(leaders[i], taken).sum(axis=1)
                cost += 30 * _inside(lead[None], options[i][:, None]).reshape(len(cost), -1).sum(axis=1)
            chosen[i] = int(cost.argmin())
        if chosen == before:
            break
    return [Box(*(float(edge) for edge in options[i][chosen[i]])) for i in range(len(points))]


def _around(point: tuple[float, float], size: tuple[float, float]) -> Float[np.ndarray, "place 4"]:
    """Candidate boxes, ring by ring, to the right first: the near edge or corner is one ring away from the point."""
    x, y = point
    width, height = size
    boxes = []
    for ring in RINGS:
        for angle in ANGLES:
            left = x + ring * math.cos(angle) + (math.cos(angle) - 1) * width / 2
            top = y + ring * math.sin(angle) + (math.sin(angle) - 1) * height / 2
            boxes.append((left, top, left + width, top + height))
    return np.array(boxes, dtype=float)


def _fixed_cost(
    boxes: Float[np.ndarray, "place 4"], bounds: Box, blocked: list[Box], lines: list[Box]
) -> Float[np.ndarray, "place"]:
    distance = np.repeat(np.array(RINGS), len(ANGLES))
    turn = np.tile(1 - np.cos(ANGLES), len(RINGS))  # to the right reads best
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    cost = distance + 4 * turn + 40 * (area - _overlap(boxes, np.array([bounds], dtype=float)).sum(axis=1))
    for weight, obstacles in ((12.0, blocked), (0.6, lines)):
        if obstacles:
            cost += weight * _overlap(boxes, np.array(obstacles, dtype=float)).sum(axis=1)
    return cost


def _overlap(a: Float[np.ndarray, "one 4"], b: Float[np.ndarray, "other 4"]) -> Float[np.ndarray, "one other"]:
    """Area that each box of `a` shares with each of `b`."""
    width = np.minimum(a[:, None, 2], b[None, :, 2]) - np.maximum(a[:, None, 0], b[None, :, 0])
    height = np.minimum(a[:, None, 3], b[None, :, 3]) - np.maximum(a[:, None, 1], b[None, :, 1])
    return np.clip(width, 0, None) * np.clip(height, 0, None)


def _leaders(point: tuple[float, float], boxes: Float[np.ndarray, "place 4"]) -> Float[np.ndarray, "place 6 2"]:
    """Six dots along the line from the point to each box."""
    end = np.stack([np.clip(point[0], boxes[:, 0], boxes[:, 2]), np.clip(point[1], boxes[:, 1], boxes[:, 3])], axis=1)
    share = np.linspace(0.15, 0.95, 6)[None, :, None]
    return np.array(point)[None, None] + share * (end - np.array(point))[:, None]


def _inside(dots: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """How many of the dots [place dot 2] lie in each box, [place box]; boxes are [box 4] or, one each, [place 1 4]."""
    x, y = dots[..., None, 0], dots[..., None, 1]
    boxes = boxes if boxes.ndim == 3 else boxes[None]
    edges = boxes[:, None]
    hit = (x > edges[..., 0]) & (x < edges[..., 2]) & (y > edges[..., 1]) & (y < edges[..., 3])
    return hit.sum(axis=1)
