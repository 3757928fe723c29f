"""The answer to the question of a rollout, on its way from who gives it to who has asked."""

from __future__ import annotations

import asyncio

from clojarsd.core.errors import Refused


class Answer:
    """Whether somebody promotes what waits. Made by the deployer, and used again for each rollout.

    Attributes:
        by: who has said yes and does not know yet whether that counts; None: nobody.
    """

    def __init__(self) -> None:
        self.by: str | None = None
        self._counted: asyncio.Future[None] | None = None

    def give(self, by: str) -> asyncio.Future[None]:
        """Say yes, unless somebody just did. What is returned is done when that counts, and has Refused when it came to
        nothing; who ceases to wait for it has said it all the same.
        """
        if self._counted is None:
            self.by, self._counted = by, asyncio.get_running_loop().create_future()
        return asyncio.shield(self._counted)

    def count(self) -> None:
        """It counts."""
        if self._counted is not None:
            self._counted.set_result(None)
        self.by = self._counted = None

    def refuse(self, why: str) -> None:
        """It comes to nothing; there may be none."""
        if self._counted is not None:
            self._counted.set_exception(Refused(f"cannot promote: {why}"))
        self.by = self._counted = None
