"""The demo's work: rows of a Julia set, equal to the last bit wherever they are computed.

Only sums, products, square roots and integers: IEEE 754 leaves nothing open there, so that a row made by another
machine has the same bytes. (Logarithms, which make smoother colours, differ from one C library to the next.)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

STEPS = 320
ESCAPE = 16.0
HALF_WIDTH = 1.6
CONSTANTS = ((-0.7269, 0.1889), (-0.8, 0.156), (-0.4, 0.6), (0.285, 0.01))
STOPS = ((0, 0, 8), (24, 40, 110), (60, 140, 200), (240, 250, 255), (255, 190, 60), (150, 50, 20), (20, 4, 16))
"""The palette runs through these colours, from what escapes at once to what stays longest."""


class Scene(NamedTuple):
    """What is rendered."""

    width: int
    height: int
    c: tuple[float, float]


def row(scene: Scene, y: int) -> bytes:
    """Return row `y` as RGB bytes: each pixel is the mean of four points in it."""
    scale = 2 * HALF_WIDTH / scene.width
    xs = np.arange(scene.width) - (scene.width - 1) / 2
    across = np.concatenate([xs - 0.25, xs + 0.25, xs - 0.25, xs + 0.25])
    down = np.repeat([y - 0.25, y + 0.25], 2 * scene.width) - (scene.height - 1) / 2
    colours = _palette()[_escape(across * scale, down * scale, scene.c)].reshape(4, scene.width, 3)
    mean: npt.NDArray[np.uint16] = colours.sum(axis=0, dtype=np.uint16) // 4
    return mean.astype(np.uint8).tobytes()


def _escape(re: npt.NDArray[np.float64], im: npt.NDArray[np.float64], c: tuple[float, float]) -> npt.NDArray[np.int64]:
    """Return how many steps of z² + c each point stays within the radius."""
    count = np.zeros(len(re), np.int64)
    inside = np.arange(len(re))
    for _ in range(STEPS):
        re2, im2 = re * re, im * im
        stays = re2 + im2 < ESCAPE
        if not stays.all():
            re, im, re2, im2, inside = re[stays], im[stays], re2[stays], im2[stays], inside[stays]
        count[inside] += 1
        im = 2 * re * im + c[1]
        re = re2 - im2 + c[0]
    return count


def _palette() -> npt.NDArray[np.uint8]:
    """Return `STEPS` + 1 colours between the stops; the last, for what never escapes, is black."""
    # The square root spreads the many small counts.
    place = np.sqrt(np.arange(STEPS) / STEPS) * (len(STOPS) - 1)
    stop = place.astype(np.int64)
    part = (place - stop)[:, None]
    stops = np.array(STOPS, np.float64)
    colours = stops[stop] * (1 - part) + stops[stop + 1] * part
    return np.concatenate([colours, [[0, 0, 0]]]).astype(np.uint8)
