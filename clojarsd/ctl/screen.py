"""Text with colours, for a terminal. Imported only when there is one, because rich takes longer than all the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from rich.console import Console
from rich.live import Live
from rich.text import Text

from clojarsd.ctl.render import Line

_STYLES = {"good": "green", "warning": "yellow", "bad": "bold red", "strong": "bold", "faint": "dim"}
REDRAWN_EVERY = 1.0


def show(lines: Iterable[Line]) -> None:
    """Print the lines."""
    Console(highlight=False).print(_text(lines), soft_wrap=True)


def redraw(picture: Callable[[], Iterable[Line]]) -> None:
    """Draw the picture again and again in the same place, until interrupted."""
    with Live(_text(picture()), console=Console(highlight=False), auto_refresh=False) as live:
        while True:
            time.sleep(REDRAWN_EVERY)
            live.update(_text(picture()), refresh=True)


def _text(lines: Iterable[Line]) -> Text:
    text = Text()
    for number, line in enumerate(lines):
        if number:
            text.append("\n")
        for piece, style in line:
            text.append(piece, _STYLES.get(style, ""))
    return text
