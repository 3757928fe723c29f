"""The frontends as all relay processes together show them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from clojarsd.core.view import FrontendView


class Summed:
    """One frontend over all processes."""

    def __init__(self, view: Callable[[str], FrontendView], name: str) -> None:
        self._view = view
        self._name = name

    def view(self) -> FrontendView:
        """The frontend as it is, as far as is known."""
        return self._view(self._name)


class FleetViews(Mapping[str, Summed]):
    """By name.

    Args:
        view: sums one up.
        names: gives the names that there are.
    """

    def __init__(self, view: Callable[[str], FrontendView], names: Callable[[], Collection[str]]) -> None:
        self._view = view
        self._names = names

    def __getitem__(self, name: str) -> Summed:
        if name not in self._names():
            raise KeyError(name)
        return Summed(self._view, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())
