"""How a number, a duration or a model's text looks on a screen. Pure functions from values to short strings."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

_EIGHTHS = "▁▂▃▄▅▆▇█"


def number(value: float) -> str:
    """Three significant digits, exponents only where a decimal would hide them: 0.742, 12.3, -0.0021, 1.2e-06."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    size = abs(value)
    if size < 1e-3 or size >= 1e5:
        return f"{value:.1e}"
    digits = max(0, 2 - math.floor(math.log10(size)))
    return f"{value:.{min(digits, 4)}f}"


def count(value: float) -> str:
    """A quantity or a rate of anything countable: 940, 7.5k, 12.3k, 1.2M."""
    for limit, divisor, suffix in ((1e3, 1, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M"), (math.inf, 1e9, "G")):
        if abs(value) < limit:
            scaled = value / divisor
            return f"{scaled:.0f}{suffix}" if not suffix or abs(scaled) >= 100 else f"{scaled:.1f}{suffix}"
    return f"{value:g}"


def percent(fraction: float) -> str:
    """0.031 as '3.1%'; exact zero as '0%', so that nothing at all and a little look different."""
    return "0%" if fraction == 0 else f"{100 * fraction:.1f}%"


def duration(value_s: float) -> str:
    """A stretch of time, as a clock: 0:58, 12:05, 1:02:03."""
    minutes, rest = divmod(int(max(0.0, value_s)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def ratio_range(low: float, high: float) -> str:
    """The importance ratio's range. Only a ratio of exactly 1.0 is shown as one: no rounding may hide a difference."""
    if low == high == 1.0:
        return "1 exactly"
    return f"{low:.6g}..{high:.6g}"


def bars(values: Sequence[float | None], *, rows: int, low: float, high: float) -> list[str]:
    """A bar chart of block characters: `rows` lines from the top down, one column a value, None left empty.

    Every value draws at least one eighth, so that a zero differs from a step that has not been.
    """
    lines = []
    span = (high - low) or 1.0
    eighths = [None if v is None or math.isnan(v) else max(1, round(8 * rows * (v - low) / span)) for v in values]
    for row in reversed(range(rows)):
        filled = [0 if height is None else min(8, max(0, height - 8 * row)) for height in eighths]
        lines.append("".join(_EIGHTHS[part - 1] if part else " " for part in filled))
    return lines


def printable(text: str, encoding: str = "utf-8") -> str:
    """Text that someone else wrote, made safe for a terminal: nothing in it moves the cursor or cannot be encoded.

    Control characters other than newline and tab become their pictures or escapes; so do lone surrogates and
    the invisible characters that reorder a line.
    """
    if not (text.isascii() and text.isprintable()):
        text = "".join(map(_visible, text.replace("\r\n", "\n")))
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _visible(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs"):
        return character
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else f"\\u{code:04x}"
