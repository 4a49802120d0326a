"""A picture of what was made from what: boxes in layers, with arrows that keep clear of the boxes between.

Layered drawing after Sugiyama, Tagawa and Toda 1981 (doi 10.1109/TSMC.1981.4308636): each node as late as what is made
from it allows, long arrows led through places of their own, and the order in each layer by the mean place of its
neighbours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from textwrap import wrap

from serin.core.palette import Tone

BOX, PASSAGE = 58.0, 16.0
"""Height of a box, and of the place that an arrow takes between boxes."""
SWEEPS = 6
DETAIL_CHARS = 23


@dataclass(frozen=True)
class Node:
    """A box."""

    key: str
    name: str
    detail: str = ""
    """Up to two lines in smaller type."""
    tone: Tone = Tone.PLAIN
    sources: tuple[str, ...] = field(default=())
    """Keys of the nodes that lead to it; those that are not drawn are passed over."""


def flow(title: str, nodes: Sequence[Node]) -> str:
    """Boxes with arrows: left to right, and top to bottom on a narrow page.

    Args:
        title: read out before what is made from what.
        nodes: without circles; the order breaks ties.
    """
    if not nodes:
        return ""
    graph = _graph(nodes)
    spoken = f"{title}: {'; '.join(_told(node, nodes) for node in nodes)}"
    wide, tall = (_drawn(spoken, nodes, graph, upright) for upright in (False, True))
    return f'<div class="only-wide">{wide}</div><div class="only-narrow">{tall}</div>'


@dataclass(frozen=True)
class _Graph:
    """Keys in layers; each way leads from a node through the places between to another node."""

    layers: list[list[str]]
    ways: list[list[str]]


def _graph(nodes: Sequence[Node]) -> _Graph:
    known = {node.key for node in nodes}
    edges = [(source, node.key) for node in nodes for source in node.sources if source in known]
    depth = _depths([node.key for node in nodes], edges)
    layers: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for key, level in depth.items():
        layers[level].append(key)
    ways = []
    for source, target in edges:
        between = [f"{source}\0{target}\0{level}" for level in range(depth[source] + 1, depth[target])]
        for level, passage in enumerate(between, start=depth[source] + 1):
            layers[level].append(passage)
        ways.append([source, *between, target])
    return _Graph(_ordered(layers, ways), ways)


def _depths(keys: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """The layer of each node: as late as possible, since what is used late is best seen beside what uses it."""
    height: dict[str, int] = {}

    def height_of(key: str) -> int:
        if key not in height:
            height[key] = max((height_of(target) + 1 for source, target in edges if source == key), default=0)
        return height[key]

    longest = max(map(height_of, keys))
    return {key: longest - height_of(key) for key in keys}


def _ordered(layers: list[list[str]], ways: Sequence[Sequence[str]]) -> list[list[str]]:
    neighbours: dict[str, list[str]] = {}
    for way in ways:
        for one, other in pairwise(way):
            neighbours.setdefault(one, []).append(other)
            neighbours.setdefault(other, []).append(one)
    for _ in range(SWEEPS):
        place = {key: (i + 0.5) / len(layer) for layer in layers for i, key in enumerate(layer)}
        for layer in layers:
            mean = {key: _mean([place[one] for one in neighbours.get(key, [key])]) for key in layer}
            layer.sort(key=mean.__getitem__)
            place |= {key: (i + 0.5) / len(layer) for i, key in enumerate(layer)}
    return layers


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True)
class _Layout:
    """Sizes in the picture's units: along the layers, and across them."""

    width: float
    upright: bool

    @property
    def along(self) -> float:
        """Size of a box in the direction of the arrows."""
        return BOX if self.upright else self.width

    @property
    def across(self) -> float:
        """The other size."""
        return self.width if self.upright else BOX

    @property
    def gaps(self) -> tuple[float, float]:
        """Between layers, and within one."""
        return (30.0, 10.0) if self.upright else (40.0, 14.0)

    def point(self, along: float, across: float) -> tuple[float, float]:
        """x and y."""
        return (across, along) if self.upright else (along, across)


def _drawn(title: str, nodes: Sequence[Node], graph: _Graph, upright: bool) -> str:
    layout = _Layout(150.0 if upright else 156.0, upright)
    places, extent = _places(graph.layers, {node.key for node in nodes}, layout)
    along = len(graph.layers) * (layout.along + layout.gaps[0]) - layout.gaps[0]
    width, height = layout.point(along, extent)
    ways = "".join(_way([places[key] for key in way], layout) for way in graph.ways)
    boxes = "".join(_box(node, places[node.key], layout) for node in nodes)
    return (
        f'<svg role="img" viewBox="-1 -1 {width + 2:.0f} {height + 2:.0f}" style="width:100%;max-width:{width:.0f}px;'
        f'height:auto"><title>{escape(title)}</title>{ways}{boxes}</svg>'
    )


def _places(
    layers: Sequence[Sequence[str]], boxes: set[str], layout: _Layout
) -> tuple[dict[str, tuple[float, float]], float]:
    """Where each key starts along the arrows and has its middle across them; and the whole extent across."""
    sizes = [[layout.across if key in boxes else PASSAGE for key in layer] for layer in layers]
    extents = [sum(row) + layout.gaps[1] * (len(row) - 1) for row in sizes]
    places: dict[str, tuple[float, float]] = {}
    for number, (layer, row, extent) in enumerate(zip(layers, sizes, extents, strict=True)):
        at = (max(extents) - extent) / 2
        for key, size in zip(layer, row, strict=True):
            places[key] = (number * (layout.along + layout.gaps[0]), at + size / 2)
            at += size + layout.gaps[1]
    return places, max(extents)


def _way(stops: Sequence[tuple[float, float]], layout: _Layout) -> str:
    """An arrow from the first stop's end to the last one's beginning, straight through the stops between."""
    gap = layout.gaps[0]
    path = "M{} {}".format(*layout.point(stops[0][0] + layout.along, stops[0][1]))
    for number, (start, middle) in enumerate(stops[1:], start=1):
        before, last = stops[number - 1], number == len(stops) - 1
        end = start - (5 if last else 0)
        bends = (
            layout.point(before[0] + layout.along + gap * 0.6, before[1]),
            layout.point(start - gap * 0.6, middle),
            layout.point(end, middle),
        )
        path += "C" + " ".join(f"{x:.1f} {y:.1f}" for x, y in bends)
        if not last:
            path += "L{} {}".format(*layout.point(start + layout.along, middle))
    tip = [layout.point(stops[-1][0] - 6, stops[-1][1] + side) for side in (-4, 4)]
    tip.append(layout.point(stops[-1][0], stops[-1][1]))
    points = " ".join(f"{x},{y}" for x, y in tip)
    return f'<path class="edge" d="{path}"/><polygon class="tip" points="{points}"/>'


def _box(node: Node, place: tuple[float, float], layout: _Layout) -> str:
    x, y = layout.point(place[0], place[1] - layout.across / 2)
    lines = wrap(node.detail, DETAIL_CHARS)[:2]
    top = y + BOX / 2 - 7 * len(lines) + 4.5
    texts = f'<text class="strong" x="{x + 12}" y="{top:.1f}">{escape(node.name)}</text>'
    texts += "".join(
        f'<text x="{x + 12}" y="{top + 14 * i:.1f}">{escape(line)}</text>' for i, line in enumerate(lines, 1)
    )
    rect = f'<rect class="box" x="{x}" y="{y}" width="{layout.width:.0f}" height="{BOX:.0f}" rx="9"/>'
    return f'<g class="tone-{node.tone}">{rect}{texts}</g>'


def _told(node: Node, nodes: Sequence[Node]) -> str:
    names: Mapping[str, str] = {one.key: one.name for one in nodes}
    sources = [names[key] for key in node.sources if key in names]
    made = f" from {', '.join(sources)}" if sources else ""
    return f"{node.name}{f' ({node.detail})' if node.detail else ''}{made}"
