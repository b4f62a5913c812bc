"""Pictures of the report as inline SVG: no script, no font and no file from elsewhere.

Colours are classes that the page's style sheet fills in, so that one drawing serves light, dark and
paper.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from fedtree_secure.report.statement import ClientStatement, LayerStatement, Statement

TINTS = 8  # classes tint-0 to tint-7 of the style sheet
_WIDTH, _HEIGHT = 300, 156
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 8, 12, 36
_CELL, _ROW, _MARGIN = 56, 30, 70
_LETTER = 5.5  # of a name at 40 degrees, across and upwards
_LONGEST = 24  # letters of a name in the drawing; tables have all of it


def burn_down(client: ClientStatement) -> str:
    """Return how a data set's epsilon grew, as steps under the line of its budget."""
    charges = client.burn_down
    top = max([client.allowed, *(charge.epsilon for charge in charges)]) * 1.08
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(step: float) -> float:
        return _LEFT + width * step / max(1, len(charges))

    def y(epsilon: float) -> float:
        return _TOP + height * (1 - epsilon / top)

    path = [f"M{x(0):.1f} {y(0):.1f}"]
    for step, charge in enumerate(charges):
        path.append(f"V{y(charge.epsilon):.1f}H{x(step + 1):.1f}")
    said = ", ".join(f"{c.purpose} {c.epsilon:.2f}" for c in charges) or "nothing charged"
    limit = y(client.allowed)
    return _svg(
        _WIDTH,
        _HEIGHT,
        f"Epsilon of {client.dataset}: {said}; budget {client.allowed:g}",
        [
            f'<path class="area" d="{"".join(path)}V{y(0):.1f}Z"/>',
            f'<path class="line" d="{"".join(path)}"/>',
            f'<path class="axis" d="M{_LEFT} {_TOP}V{y(0):.1f}H{_WIDTH - _RIGHT}"/>',
            f'<path class="limit" d="M{_LEFT} {limit:.1f}H{_WIDTH - _RIGHT}"/>',
            _text(_LEFT - 4, limit + 4, f"{client.allowed:g}", "end"),
            _text(_LEFT - 4, y(0) + 4, "0", "end"),
            _text(_LEFT, _HEIGHT - 20, charges[0].purpose if charges else "", "start"),
            _text(_WIDTH - _RIGHT, _HEIGHT - 20, charges[-1].purpose, "end")
            if len(charges) > 1
            else "",
            _text(_WIDTH / 2, _HEIGHT - 5, f"{len(charges)} charges, in order", "middle"),
        ],
    )


def tree(statement: Statement) -> str:
    """Return who shares which layer: a row for each layer, a column for each client.

    Filled boxes are groups whose sum is opened, with their size; hollow ones stay at home.
    """
    order = leaf_order(statement)
    layers = list(reversed(statement.layers))
    tints = _tints(statement.layers)
    shown = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in order]
    room = 16 + _LETTER * max(map(len, shown))  # names lean over their columns
    width = _MARGIN + _CELL * (len(order) - 0.5) + room
    height = room + _ROW * len(layers) + 10
    drawn = []
    for at, name in enumerate(shown):
        x = _MARGIN + _CELL * (at + 0.5)
        drawn.append(
            f'<text transform="translate({x:.0f} {room - 8:.0f}) rotate(-40)">{escape(name)}</text>'
        )
    for row, layer in enumerate(layers):
        y = room + _ROW * row
        drawn.append(_text(_MARGIN - 8, y + _ROW / 2 + 4, f"layer {layer.layer}", "end"))
        for group, opened in zip(layer.groups, layer.opened, strict=True):
            drawn += _boxes(group, order, y, f"tint-{tints[group]}" if opened else "home")
    said = "; ".join(f"layer {layer.layer}: {_sizes(layer)}" for layer in statement.layers)
    return _svg(width, height, f"Groups by layer. {said}", drawn)


def leaf_order(statement: Statement) -> list[str]:
    """Return clients so that members of a group stand side by side, as far as the layers allow."""
    keys: dict[str, tuple[int, ...]] = {client.name: () for client in statement.clients}
    for layer in statement.layers:
        for number, group in enumerate(layer.groups):
            for name in group:
                keys[name] = (*keys[name], number)
    return sorted(keys, key=lambda name: (keys[name], name))


@dataclass(frozen=True)
class _Run:
    """Neighbouring columns of one group."""

    first: int
    count: int


def _boxes(group: Sequence[str], order: Sequence[str], y: float, tint: str) -> list[str]:
    drawn = []
    for run in _runs(sorted(order.index(name) for name in group)):
        x, width = _MARGIN + _CELL * run.first + 3, _CELL * run.count - 6
        drawn.append(
            f'<rect class="{tint}" x="{x}" y="{y + 3:.0f}" width="{width}" height="{_ROW - 6}" '
            'rx="5"/>'
        )
        if tint != "home":
            middle = x + width / 2
            drawn.append(
                f'<text class="on" x="{middle:.0f}" y="{y + _ROW / 2 + 4:.0f}" '
                f'text-anchor="middle">{len(group)}</text>'
            )
    return drawn


def _runs(places: Iterable[int]) -> list[_Run]:
    found: list[_Run] = []
    for place in places:
        if found and found[-1].first + found[-1].count == place:
            found[-1] = _Run(found[-1].first, found[-1].count + 1)
        else:
            found.append(_Run(place, 1))
    return found


def _tints(layers: Iterable[LayerStatement]) -> dict[tuple[str, ...], int]:
    """The same group has the same colour in every layer."""
    groups = dict.fromkeys(group for layer in layers for group in layer.groups)
    return {group: at % TINTS for at, group in enumerate(groups)}


def _sizes(layer: LayerStatement) -> str:
    pairs = zip(layer.groups, layer.opened, strict=True)
    return ", ".join(f"{len(g)} {'shared' if opened else 'at home'}" for g, opened in pairs)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: float, height: float, label: str, drawn: Iterable[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img" '
        f'aria-label="{escape(label)}">{"".join(drawn)}</svg>'
    )
