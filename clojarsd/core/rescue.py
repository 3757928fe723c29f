"""Where a connection belongs that was taken out of an instance's accept queue."""

from __future__ import annotations

from collections.abc import Iterable

from clojarsd.core.addresses import is_number
from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.names import Address, Role


def frontend_of(local: Address, role: Role, frontends: Iterable[FrontendPlan]) -> str | None:
    """The name of the frontend that a client wanted who has reached the instance at that address.

    One that the kernel has steered has the frontend's address. One that came by the instance's own port was connected
    by the relay process, or by somebody who knows that port: that belongs to the first frontend of the port.

    Args:
        local: of the accepted connection, numeric.

    Returns:
        None: there is no such frontend.
    """
    of_port = None
    for plan in frontends:
        if any(_takes(listen, local) for listen in plan.listen):
            return plan.name
        backend = plan.backends[role]
        if of_port is None and isinstance(backend, Address) and backend.port == local.port:
            of_port = plan.name
    return of_port


def _takes(listen: Address, local: Address) -> bool:
    if listen.port != local.port:
        return False
    if listen.host == "0.0.0.0":
        return ":" not in local.host
    return listen.host in (local.host, "::") or not is_number(listen.host)  # whatever the name stands for
