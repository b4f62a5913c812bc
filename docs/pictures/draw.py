"""Draw the three pictures of concepts.md: `python docs/pictures/draw.py`.

Plain SVG on a light ground, so that it reads alike in both of the site's themes and on paper.
"""

from html import escape
from pathlib import Path

HERE = Path(__file__).parent
INK, FAINT, GROUND = "#1c2733", "#5c6b7a", "#fbfcfd"
HOME, WIRE, SERVER = "#2f6f4f", "#8a5a00", "#274e8c"
TINTS = {HOME: "#e6f2ec", WIRE: "#fbf1de", SERVER: "#e5ecf7"}
GROUPS = ("#3b6ea5", "#b5651d", "#5b8c5a", "#8e5ea2")
NAMES = ("heart", "bones", "skin", "bank-1", "bank-2", "bank-3")


TIP = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
    f'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{INK}"/></marker></defs>'
)


class Picture:
    """Shapes on a canvas of ``width`` by ``height`` units."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height = width, height
        self.parts = [
            f"<title>{escape(title)}</title>",
            TIP,
            f'<rect width="{width}" height="{height}" rx="10" fill="{GROUND}"/>',
        ]

    def box(self, x: int, y: int, wide: int, high: int, colour: str) -> None:
        """Draw a frame, filled with the colour's tint."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{wide}" height="{high}" rx="8" '
            f'fill="{TINTS.get(colour, colour)}" stroke="{colour}" stroke-width="1.5"/>'
        )

    def say(self, x: int, y: int, text: str, how: str = "", colour: str = INK) -> None:
        """Write a line; ``how`` may hold "bold", "small" and "middle"."""
        look = f'fill="{colour}" font-size="{13 if "small" in how else 15}"'
        look += ' font-weight="600"' if "bold" in how else ""
        look += ' text-anchor="middle"' if "middle" in how else ""
        self.parts.append(f'<text x="{x}" y="{y}" {look}>{escape(text)}</text>')

    def lines(self, x: int, y: int, texts: list[str], how: str = "small") -> None:
        """Write lines below each other."""
        for number, text in enumerate(texts):
            self.say(x, y + 21 * number, text, how)

    def arrow(self, x1: int, y1: int, x2: int, y2: int, text: str = "") -> None:
        """Draw an arrow, with a text above it."""
        self.parts.append(
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{INK}" stroke-width="1.5" '
            'marker-end="url(#tip)"/>'
        )
        if text:
            self.say((x1 + x2) // 2, min(y1, y2) - 7, text, "small middle")

    def dot(self, x: int, y: int, colour: str) -> None:
        """Draw a client."""
        self.parts.append(f'<circle cx="{x}" cy="{y}" r="9" fill="{colour}"/>')

    def bar(self, x1: int, x2: int, y: int, colour: str) -> None:
        """Join the dots of a group."""
        self.parts.append(
            f'<line x1="{x1}" y1="{y}" x2="{x2}" y2="{y}" stroke="{colour}" stroke-width="18" '
            'stroke-linecap="round" opacity=".28"/>'
        )

    def svg(self) -> str:
        """Return the whole picture."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            'role="img" font-family="system-ui, sans-serif">'
        )
        return "\n".join([head, *self.parts, "</svg>\n"])


def who_sees_what() -> Picture:
    """Three columns: what stays at a client, what is on the wire, what the server opens."""
    p = Picture(900, 372, "Who sees what: rows stay at home, masked vectors leave, sums are opened")
    columns = (
        (20, HOME, "A client, at home"),
        (320, WIRE, "On the wire"),
        (620, SERVER, "The server"),
    )
    for x, colour, title in columns:
        p.box(x, 20, 260, 274, colour)
        p.say(x + 130, 48, title, "bold middle", colour)
    p.lines(
        36,
        80,
        [
            "sees: its rows, keys and ledger,",
            "its metrics, its own adapter",
            "",
            "1. charges the ledger",
            "2. clips each record's gradient",
            "3. adds Gaussian noise",
            "4. masks what will be uploaded",
        ],
    )
    p.lines(
        336,
        80,
        [
            "seen by the network:",
            "masked vectors, uniform bytes",
            "sizes and times",
            "opened sums, distances, the tree",
            "",
            "every request is signed",
            "and numbered",
        ],
    )
    p.lines(
        636,
        80,
        [
            "sees: declared sizes, who took part,",
            "distances of noised vectors,",
            "sums over min_group or more",
            "",
            "never: rows, one client's update,",
            "metrics, weights of the backbone",
        ],
    )
    p.arrow(281, 262, 318, 262)
    p.arrow(581, 262, 618, 262)
    p.say(450, 326, "First wall: the client's own noise. Epsilon holds whoever looks.", "middle")
    p.say(
        450, 350, "Second wall: masks. One update is hidden in a sum of at least three.", "middle"
    )
    return p


def tree() -> Picture:
    """Six layers by six clients: one group below, two above."""
    p = Picture(900, 400, "The tree over the layers: shared by all below, by alike clients above")
    everybody, halves = ((0, 1, 2, 3, 4, 5),), ((0, 1, 2), (3, 4, 5))
    rows = [(f"layer {n}", halves if n > 2 else everybody) for n in range(5, -1, -1)]
    for place, name in enumerate(NAMES):
        p.say(_x(place), 40, name, "small middle", FAINT)
    for number, (layer, groups) in enumerate(rows):
        y = 72 + 44 * number
        p.say(24, y + 5, layer, "small", FAINT)
        for group, colour in zip(groups, GROUPS, strict=False):
            p.bar(_x(group[0]), _x(group[-1]), y, colour)
            for place in group:
                p.dot(_x(place), y, colour)
    p.say(24, 352, "Shallow layers read text alike for everybody: one group, most noise averaged.")
    p.say(24, 378, "Deep layers may split, into groups of min_group or more, where a split pays.")
    return p


def _x(place: int) -> int:
    return 150 + 130 * place


ROUND = (
    ("1 advertise", "signed request, digests of all experts", "fresh keys for this attempt"),
    ("2 share", "everybody's keys", "sealed shares, one for each peer"),
    ("3 mask", "the peers' sealed shares", "masked change, as long as the plain one"),
    ("4 confirm", "who survived", "signature over the survivors"),
    ("5 reveal", "a quorum's signatures", "shares that open the sums, nothing else"),
)


def a_round() -> Picture:
    """The five exchanges of a round between a client and the server."""
    p = Picture(900, 560, "A round: keys, shares, masked changes, signed survivors, opened sums")
    for x, colour, title in ((40, HOME, "each client"), (640, SERVER, "the server")):
        p.box(x, 20, 220, 38, colour)
        p.say(x + 110, 45, title, "bold middle", colour)
        p.parts.append(
            f'<line x1="{x + 110}" y1="58" x2="{x + 110}" y2="545" stroke="{colour}" '
            'stroke-width="1.5" stroke-dasharray="4 5"/>'
        )
    y = 100
    for name, asked, answered in ROUND:
        p.say(770, y + 20, name, "bold")
        p.arrow(748, y, 152, y, asked)
        if name == "3 mask":
            p.box(176, y + 12, 400, 54, HOME)
            p.lines(
                188,
                y + 34,
                [
                    "opens them all, charges the ledger, and only then takes",
                    "a DP-SGD step on its rows",
                ],
            )
            y += 56
        p.arrow(152, y + 34, 748, y + 34, answered)
        y += 82
    return p


PICTURES = {"who-sees-what.svg": who_sees_what, "tree.svg": tree, "round.svg": a_round}


def main() -> None:
    """Write every picture beside this file."""
    for name, draw in PICTURES.items():
        (HERE / name).write_text(draw().svg(), "utf-8")


if __name__ == "__main__":
    main()
