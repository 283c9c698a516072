"""The flow of a target over tokens and layers as shapes of a picture, for a template to draw and to escape.

Tokens are columns and the residual stream runs upwards. Between the cuts of a layer it passes attention, whose messages
go from column to column, and then the MLP, beside the stream. Widths are flows, colours their signs: at every height
the widths that cross it, with their signs, add up to the target.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bilinear_circuits.paths.account import FlowMap
from bilinear_circuits.report.text import shorten, signed, visible

MOST_TOKENS = 24
_MOST_MESSAGES = 240
_LEAST = 0.004  # of the widest: what is thinner is not drawn
_LEFT, _TOP, _BOTTOM = 84, 40, 62
_COLUMN, _NARROW, _MANY = 68, 49, 15  # width of a column, and where there are more than so many
_ATTENTION, _MLP, _WIDEST = 52, 40, 24
_BULGE = 23


@dataclass(frozen=True)
class Shape:
    """One line of the picture.

    Attributes:
        path: SVG path.
        width: Of its stroke.
        sign: "positive" or "negative".
        tip: What is said of it.
        link: The id it leads to, or nothing.
        box: x and y of a box on it, or None.
    """

    path: str
    width: float
    sign: str
    tip: str
    link: str = ""
    box: tuple[float, float] | None = None


@dataclass(frozen=True)
class Picture:
    """The whole picture.

    Attributes:
        left: Width of the names of the parts at the left.
        width: Of the rest of the picture.
        height: Of the picture.
        shapes: Lines, the widest first.
        rows: Height and name of the parts at the left.
        columns: Place, text and position of each token drawn.
        target: Place of the target.
        left_out: Tokens that are not drawn.
    """

    left: int
    width: int
    height: int
    shapes: tuple[Shape, ...]
    rows: tuple[tuple[float, str], ...]
    columns: tuple[tuple[float, str, int], ...]
    target: tuple[float, float]
    left_out: int


class _Drawing:
    """Places and widths of one map."""

    def __init__(self, flow: FlowMap, position: int, n_tokens: int) -> None:
        self.flow = flow
        n_cuts, n_pos = flow.residual.shape
        strength = flow.residual.abs().sum(0)
        strength[position] = float("inf")
        self.tokens = sorted(strength.argsort(descending=True, stable=True)[:n_tokens].tolist())
        self.height = _TOP + _BOTTOM + (n_cuts // 2) * (_ATTENTION + _MLP)
        widest = flow.residual[:, self.tokens].abs().max().item()
        self.unit = widest or 1.0
        self.shapes: list[Shape] = []
        self.left_out = n_pos - len(self.tokens)
        self.column = _COLUMN if len(self.tokens) <= _MANY else _NARROW

    def x(self, token: int) -> float:
        return (self.tokens.index(token) + 0.5) * self.column

    def y(self, cut: int) -> float:
        return float(self.height - _BOTTOM - (cut + 1) // 2 * _ATTENTION - cut // 2 * _MLP)

    def add(self, path: str, value: float, tip: str, link: str = "", box: tuple[float, float] | None = None) -> None:
        """A line, unless it would be too thin to be seen."""
        width = min(abs(value) / self.unit, 1.0)
        if width >= _LEAST:
            sign = "negative" if value < 0 else "positive"
            self.shapes.append(Shape(path, round(max(width * _WIDEST, 0.7), 2), sign, tip, link, box))


def flow_picture(
    flow: FlowMap,
    position: int,
    texts: Sequence[str],
    links: Mapping[tuple[int, int], str],
    n_tokens: int = MOST_TOKENS,
) -> Picture:
    """Place the flow of a target over tokens and layers.

    Args:
        flow: The flow.
        position: Token at which the target is read.
        texts: Texts of the tokens.
        links: Where an MLP, by layer and token, leads.
        n_tokens: Most tokens drawn, those with most flow.
    """
    drawing = _Drawing(flow, position, n_tokens)
    for layer in range(len(flow.mlps)):
        _attention(drawing, layer, texts)
        _mlps(drawing, layer, texts, links)
    drawing.shapes.sort(key=lambda one: -one.width)
    rows = [(drawing.y(0) + 17, "embedding")]
    for layer in range(len(flow.mlps)):
        rows.append((drawing.y(2 * layer) - _ATTENTION / 2, f"attention {layer}"))
        rows.append((drawing.y(2 * layer + 1) - _MLP / 2, f"MLP {layer}"))
    top = 2 * len(flow.mlps)
    return Picture(
        left=_LEFT,
        width=drawing.column * len(drawing.tokens) + 12,
        height=drawing.height,
        shapes=tuple(drawing.shapes),
        rows=tuple(rows),
        columns=tuple((drawing.x(t), shorten(visible(texts[t]), drawing.column // 7), t) for t in drawing.tokens),
        target=(drawing.x(position), drawing.y(top)),
        left_out=drawing.left_out,
    )


def _attention(drawing: _Drawing, layer: int, texts: Sequence[str]) -> None:
    """What goes past attention at each token, and the messages."""
    flow, low, high = drawing.flow, drawing.y(2 * layer), drawing.y(2 * layer + 1)
    messages, middle = flow.messages[layer], (low + high) / 2
    for t in drawing.tokens:
        past = (flow.residual[2 * layer + 1, t] - messages[t].sum()).item()
        tip = f"residual stream at {visible(texts[t])} @{t}, past attention {layer}: {signed(past)}"
        drawing.add(_line(drawing.x(t), low, high), past, tip)
    best = messages.abs().flatten().argsort(descending=True, stable=True)[:_MOST_MESSAGES].tolist()
    for at in best:
        q, k = divmod(at, messages.shape[1])
        if q in drawing.tokens and k in drawing.tokens:
            value = messages[q, k].item()
            tip = f"attention {layer} from {visible(texts[k])} @{k} to {visible(texts[q])} @{q}: {signed(value)}"
            start, end = drawing.x(k), drawing.x(q)
            bent = f"M{start:g} {low:g}C{start:g} {middle:g} {end:g} {middle:g} {end:g} {high:g}"
            drawing.add(_beside(start, low, high) if q == k else bent, value, tip)


def _mlps(drawing: _Drawing, layer: int, texts: Sequence[str], links: Mapping[tuple[int, int], str]) -> None:
    """What goes past the MLP at each token, and through it."""
    flow, low, high = drawing.flow, drawing.y(2 * layer + 1), drawing.y(2 * layer + 2)
    for t in drawing.tokens:
        value, x = flow.mlps[layer, t].item(), drawing.x(t)
        whole = flow.residual[2 * layer + 2, t].item() if 2 * layer + 2 < len(flow.residual) else value
        tip = f"residual stream at {visible(texts[t])} @{t}, past MLP {layer}: {signed(whole - value)}"
        drawing.add(_line(x, low, high), whole - value, tip)
        tip = f"MLP {layer} at {visible(texts[t])} @{t}: {signed(value)}"
        link = links.get((layer, t), "")
        drawing.add(_beside(x, low, high), value, tip, link, (x + _BULGE, (low + high) / 2))


def _line(x: float, low: float, high: float) -> str:
    return f"M{x:g} {low:g}V{high:g}"


def _beside(x: float, low: float, high: float) -> str:
    """A line that leaves the stream to the right and comes back."""
    out = x + _BULGE * 4 / 3
    return f"M{x:g} {low:g}C{out:g} {low:g} {out:g} {high:g} {x:g} {high:g}"
