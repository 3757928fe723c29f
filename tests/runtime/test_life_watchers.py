"""Who watches an upgrade hears at once of a stop that comes first, since no successor will tell them."""

from __future__ import annotations

import pytest

from clojarsd.core.errors import Failed
from clojarsd.runtime.life import End
from tests.runtime.test_life import living
from tests.support.units import Units
from tests.support.waiting import until

SENTENCE = "^cannot upgrade: clojarsd is ending; clojarsd 1.0 stays in charge$"


@pytest.mark.parametrize("is_rehearsing", [False, True])
async def test_a_stop_ends_the_upgrade_for_who_watches_it(is_rehearsing: bool) -> None:
    async with living(Units()) as house:
        house.may_end.clear()
        upgrade = house.life.upgrade("ann")
        if is_rehearsing:
            await until(lambda: house.rehearsals)
        house.life.stop("bob")
        with pytest.raises(Failed, match=SENTENCE):
            await upgrade.result()  # while the rehearsal still runs
        house.may_end.set()
        assert await house.life.ended() is End.STOP
        assert house.held == 0
