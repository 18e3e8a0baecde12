"""How the report writes figures and names, wherever it is read: terminal, Markdown, HTML, messages of gates."""

from __future__ import annotations

from collections.abc import Sequence

from sapp_cli.visible import printable as printable  # noqa: PLC0414 - names are written so wherever figures are

UNITS = ("B", "kB", "MB", "GB", "TB")
THOUSANDS = ("", "k", "M", "G", "T")


def size_text(size: int) -> str:
    """Bytes with three digits: 512 -> "512 B", 106,600 -> "107 kB", 1,204,264 -> "1.20 MB"."""
    value, unit = float(size), 0
    while value >= 999.5 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    if unit == 0:
        return f"{size} B"
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{decimals}f} {UNITS[unit]}"


def count_text(count: int) -> str:
    """A large count with three digits: 512 -> "512", 106,600 -> "107 k", 1,204,264 -> "1.20 M"."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(THOUSANDS) - 1:
        value, unit = value / 1000, unit + 1
    if unit == 0:
        return str(count)
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{decimals}f} {THOUSANDS[unit]}"


def percent(share: float) -> str:
    """0.875 -> "87.5 %"; never "100.0 %" or "0.0 %" of what is not quite that."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %"


def time_text(seconds: float) -> str:
    """Three digits: 0.0123 -> "12.3 ms"."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= 0.9995 * size or unit == "µs":
            value = seconds / size
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    raise AssertionError("the last unit takes everything")


def span_text(seconds: float) -> str:
    """Of a run, or what is left of it: 45 -> "45 s", 75 -> "1 min 15 s", 3700 -> "1 h 01 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def rate_text(rate: float) -> str:
    """So many a second, three digits and more: 23.456 -> "23.5", 12345.6 -> "12,346"."""
    return f"{rate:,.{2 if rate < 9.995 else 1 if rate < 99.95 else 0}f}"


def times_smaller(before: float, after: float) -> str:
    """(1200, 150) -> "8.0× smaller"; "" where it is not."""
    return f"{before / after:.1f}× smaller" if 0 < after < before else ""


def times_fewer(before: float, after: float) -> str:
    """(1200, 150) -> "8.0× fewer"; "" where they are not."""
    return times_smaller(before, after).replace("smaller", "fewer")


def counted(count: int, what: str) -> str:
    """(1, "file") -> "1 file", (2, "file") -> "2 files"."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def by(sides: Sequence[int] | None) -> str:
    """(512, 64) -> "512×64"."""
    return "×".join(map(str, sides)) if sides else "–"


def cut_in_the_middle(text: str, width: int) -> str:
    """The beginning and the end of a long name: "encoder.la…output.dense.weight"."""
    if len(text) <= width:
        return text
    head = (width - 1) // 3
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def metric_text(value: float) -> str:
    """0.97222 -> "0.9722"; very small and very large ones with an exponent."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.3e}"
