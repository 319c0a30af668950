"""Direct labels: put each name where it covers nothing, so that a figure needs no legend to be read.

Greedy, from left to right: of all places around a point, a few directions at growing distance, the name takes the first
that covers no mark, bar, line or other name, and from which no other mark is nearer than its own. Where there is none,
it takes the least bad. The axes' limits must be settled and the figure's layout final, since text has a size in pixels.

Example::

    texts = [axes.text(x, y, name) for x, y, name in points]  # the points drawn with axes.errorbar
    place_names(axes, texts)
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.container import ErrorbarContainer
from matplotlib.transforms import Bbox

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

ANGLES = (90, 45, 135, 270, 315, 225, 0, 180)
RINGS = (9, 16, 26, 38, 52, 68, 86, 106, 128)  # distance of a name from its point, in points (1/72 inch)


def place_names(panel: Axes, names: list[Text]) -> None:
    """Move each name from its point to the best place around it, and join the two by a thin line if that is far."""
    pixels = panel.figure.dpi / 72
    marks = [tuple(panel.transData.transform(name.get_position())) for name in names]
    taken = obstacles(panel)
    placed: list[Bbox] = []
    frame = panel.get_window_extent()
    for name, (x, y) in sorted(zip(names, marks, strict=True), key=lambda pair: pair[1]):
        size = name.get_window_extent()
        others = [mark for mark in marks if mark != (x, y)]
        choices = []
        for ring, angle in itertools.product(RINGS, ANGLES):
            box = box_at(x, y, size.width, size.height, ring * pixels, angle)
            if frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1:
                covered = sum(overlap(box, other) for other in taken)
                covered += sum(overlap(dot, other) for dot in line_to(box, x, y) for other in placed)
                mistaken = sum(distance(box, mark) <= distance(box, (x, y)) for mark in others)
                choices.append((covered + mistaken * size.height**2, ring, box))
        _, ring, box = min(choices, key=lambda choice: choice[:2], default=(0, 0, size))
        placed.append(box)
        taken += [box, *line_to(box, x, y)]
        centre = panel.transData.inverted().transform(((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2))
        if ring > RINGS[1]:
            panel.plot(*zip(name.get_position(), centre, strict=True), color=name.get_color(), linewidth=0.7, zorder=2)
        name.set(
            position=centre, ha="center", va="center", bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        )


def obstacles(panel: Axes) -> list[Bbox]:
    """Return the boxes, in pixels, of the marks and the bars of all points."""
    boxes = []
    for container in panel.containers:
        if isinstance(container, ErrorbarContainer):
            mark, _, bars = container.lines
            x, y = panel.transData.transform(np.asarray(mark.get_xydata())[0])
            boxes.append(Bbox.from_extents(x - 8, y - 8, x + 8, y + 8))
            for bar in bars:
                ends = panel.transData.transform(bar.get_segments()[0])
                boxes.append(Bbox.from_extents(*(ends.min(axis=0) - 2), *(ends.max(axis=0) + 2)))
    return boxes


def line_to(box: Bbox, x: float, y: float) -> list[Bbox]:
    """Return small boxes along the line from (x, y) to the middle of ``box``."""
    middle_x, middle_y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
    return [
        Bbox.from_bounds(x + part * (middle_x - x) - 2, y + part * (middle_y - y) - 2, 4, 4)
        for part in np.linspace(0.2, 1, 12)
    ]


def box_at(x: float, y: float, width: float, height: float, distance: float, angle: float) -> Bbox:
    """Return the box of this size whose nearest edge is ``distance`` away from (x, y) in the direction ``angle``."""
    across, up = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    centre_x, centre_y = x + across * (distance + width / 2), y + up * (distance + height / 2)
    return Bbox.from_bounds(centre_x - width / 2, centre_y - height / 2, width, height)


def overlap(box: Bbox, other: Bbox) -> float:
    """Return the area that two boxes share, in square pixels."""
    width = min(box.x1, other.x1) - max(box.x0, other.x0)
    height = min(box.y1, other.y1) - max(box.y0, other.y0)
    return float(max(width, 0.0) * max(height, 0.0))


def distance(box: Bbox, point: tuple[float, float]) -> float:
    """Return the distance in pixels from a point to the nearest edge of a box; 0 inside it."""
    return float(np.hypot(max(box.x0 - point[0], 0, point[0] - box.x1), max(box.y0 - point[1], 0, point[1] - box.y1)))
