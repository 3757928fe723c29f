"""The HTTP API on the control socket: who calls, what they may do, and how connections begin and end.

What each request does is in `control_routes`.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import NoReturn, Protocol

import structlog
from aiohttp import web

from clojarsd.core.api import Access, ErrorKind, Rights, error_body, kind_of
from clojarsd.core.errors import Denied, Failed, Refused
from clojarsd.core.names import Role
from clojarsd.runtime.control_daemon import CONFIG_PATH, Config, DaemonDesk, Life
from clojarsd.runtime.control_frontends import FrontendDesk, Frontends
from clojarsd.runtime.control_jvm import Archives, JvmDesk
from clojarsd.runtime.control_request import CALLER, Caller
from clojarsd.runtime.control_rollout import RolloutDesk, Rollouts
from clojarsd.runtime.control_routes import Desk, Orders
from clojarsd.runtime.control_stream import BUG, Streams
from clojarsd.runtime.history import History
from clojarsd.runtime.log_keeper import InstanceLog
from clojarsd.runtime.status import Board
from clojarsd.system.inotify import EntryWatch
from clojarsd.system.peer import Peer, group_names, peer_of, user_name
from clojarsd.system.sockets import EXHAUSTED

log = structlog.get_logger()

LARGEST_BODY = 65536
IDLE_TIMEOUT = 60.0
"""Seconds that a connection may stay without a request."""
CLOSE_TIMEOUT = 1.0
"""Seconds that requests have for their last line when the server ends, twice."""
CONNECTIONS_PER_USER = 64
"""So that nobody but root and the daemon's own user can use up its descriptors."""
ACCEPTED_AT_ONCE = 16
ACCEPT_PAUSE = 1.0
"""Seconds until the next try when the process is out of descriptors."""
FINISH_TIMEOUT = 0.5
FINISH_LOOK = 0.005
"""Seconds that callers have to be answered at the end, and between two looks whether they are."""
RESTORE_PAUSE = 5.0
"""Seconds until the next try to make a socket that was removed."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Listener(Protocol):
    """A listening Unix socket at a path of its own; see `system.control_socket.ControlSocket`."""

    @property
    def path(self) -> os.PathLike[str]:
        """Where it is."""

    @property
    def socket(self) -> socket.socket:
        """The socket, which does not block; another one after `restore`."""

    def is_there(self) -> bool:
        """Whether the path still leads to it."""

    def restore(self) -> None:
        """Listen at the path again; raises Failed, and the old socket stays."""


class ControlServer:
    """Answers on the control socket while `serve` runs, in the daemon's task group.

    Made by daemon.py, with a listener that is bound already and that daemon.py closes. A request may fail alone; a
    caller that goes away ends nothing but its watching.

    Attributes:
        access: who may do what; another one may take its place.

    Args:
        logs: what each instance writes; a path is that of a log file which nobody rotates.
        config: what the daemon acts by; without it, its paths are not there.
        life: how the daemon is upgraded and ended; without it, its paths are not there.
        frontends: what may be ordered about frontends; without it, its paths are not there.
        archives: what makes class-data archives; without it, its paths are not there.
    """

    def __init__(
        self,
        listener: Listener,
        orders: Orders,
        board: Board,
        history: History,
        access: Access,
        logs: Mapping[Role, Path | InstanceLog],
        *,
        config: Config | None = None,
        life: Life | None = None,
        frontends: Frontends | None = None,
        rollouts: Rollouts | None = None,
        archives: Archives | None = None,
    ) -> None:
        self._listener = listener
        self.access = access
        self._streams = Streams()
        self._desk = Desk(orders, board, history, logs, self._streams)
        self._daemon_desk = DaemonDesk(history, self._streams, config, life)
        self._frontend_desk = FrontendDesk(history, board, frontends)
        self._rollout_desk = RolloutDesk(history, self._streams, rollouts)
        self._jvm_desk = JvmDesk(history, board, self._streams, archives)
        self._group: asyncio.TaskGroup
        self._accepting: socket.socket | None = None
        self._server: web.Server | None = None
        self._is_closing = False
        self.why_ending = "clojarsd is ending"

    async def serve(self) -> NoReturn:
        """Answer until cancelled; what is being streamed then gets a last line that says so, within a few seconds.

        The line says `why_ending`, which whoever cancels may set before. The stream of an upgrade or a stop is not cut:
        it gets the last line of its work, which has ended by then.
        """
        app = web.Application(middlewares=[self._answer], client_max_size=LARGEST_BODY)
        self._group = asyncio.TaskGroup()
        self._desk.add_routes(app.router, self._group)
        self._daemon_desk.add_routes(app.router, self._group)
        self._frontend_desk.add_routes(app.router)
        self._rollout_desk.add_routes(app.router, self._group)
        self._jvm_desk.add_routes(app.router, self._group)
        runner = web.AppRunner(
            app,
            access_log=None,
            handler_cancellation=True,  # of a caller that has gone
            keepalive_timeout=IDLE_TIMEOUT,
            shutdown_timeout=CLOSE_TIMEOUT,
            tcp_keepalive=False,
        )
        await runner.setup()
        assert runner.server is not None
        self._server = runner.server
        try:
            async with self._group:
                self._accept_from(self._listener.socket, runner.server)
                await self._keep_listening(runner.server)
        finally:
            self._is_closing = True
            self._stop_accepting()
            self._streams.close(self.why_ending)
            await runner.cleanup()

    async def finish(self) -> None:
        """Take no further caller, end what is streamed, and let those who are in be answered, for a moment.

        To be called before `serve` is cancelled. Whoever comes later waits in the backlog, for whoever has it next.
        """
        self._is_closing = True
        self._stop_accepting()
        self._streams.close(self.why_ending)
        loop = asyncio.get_running_loop()
        until = loop.time() + FINISH_TIMEOUT
        while self._server is not None and self._server.connections and loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(FINISH_LOOK)  # aiohttp tells nobody when a connection has ended

    # Connections.

    def _accept_from(self, listening: socket.socket, server: web.Server) -> None:
        self._stop_accepting()
        self._accepting = listening
        asyncio.get_running_loop().add_reader(listening, self._accept, listening, server)

    def _stop_accepting(self) -> None:
        if self._accepting is not None:
            asyncio.get_running_loop().remove_reader(self._accepting)
            self._accepting = None

    def _accept(self, listening: socket.socket, server: web.Server) -> None:
        """Take the connections that wait; when out of descriptors, leave them there and try again after a pause."""
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in EXHAUSTED:
                    raise
                log.warning("control_accept_paused", reason=error.strerror, pause_s=ACCEPT_PAUSE)
                self._stop_accepting()
                asyncio.get_running_loop().call_later(ACCEPT_PAUSE, self._accept_again, listening, server)
                return
            self._group.create_task(self._begin(connection, server))

    def _accept_again(self, listening: socket.socket, server: web.Server) -> None:
        if not self._is_closing and self._accepting is None and listening is self._listener.socket:
            self._accept_from(listening, server)

    async def _begin(self, connection: socket.socket, server: web.Server) -> None:
        """Give the connection to the server, unless its user has too many."""
        connection.setblocking(False)
        try:
            peer = peer_of(connection.fileno())
            if peer.uid not in (0, self.access.daemon_uid):
                already = sum(_peer(protocol.transport).uid == peer.uid for protocol in server.connections)
                if already >= CONNECTIONS_PER_USER:
                    log.warning("control_connection_refused", uid=peer.uid, pid=peer.pid, open=already)
                    connection.close()
                    return
            await asyncio.get_running_loop().connect_accepted_socket(server, sock=connection)
        except OSError as error:
            log.debug("control_connection_lost", error=str(error))
            connection.close()
        except asyncio.CancelledError:
            connection.close()
            raise

    async def _keep_listening(self, server: web.Server) -> NoReturn:
        """Bind again whenever the socket's file is removed; while that is not possible, try again and again."""
        path = Path(self._listener.path)
        is_lost = False
        while True:
            try:
                if not self._listener.is_there():
                    self._bind_again(server)
                    log.warning("control_socket_restored", path=str(path))
                is_lost = False
                with EntryWatch(path) as watch:
                    while self._listener.is_there():
                        await watch.change()
            except Failed as failed:
                if not is_lost:
                    log.error("control_socket_lost", reason=str(failed), pause_s=RESTORE_PAUSE)
                is_lost = True
                await asyncio.sleep(RESTORE_PAUSE)

    def _bind_again(self, server: web.Server) -> None:
        self._stop_accepting()
        try:
            self._listener.restore()
        finally:
            self._accept_from(self._listener.socket, server)

    # Requests.

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let the caller in, and turn every error into an answer."""
        try:
            CALLER.set(await self._let_in(request))
            return await handler(request)
        except (Refused, Failed) as error:
            return _error(kind_of(error), str(error))
        except web.HTTPException as error:
            return _error(ErrorKind.USAGE, _explain(request, error), error.status)
        except ConnectionError:
            raise  # the caller has gone
        except Exception:
            log.exception("control_request_failed", method=request.method, path=request.path)
            return _error(ErrorKind.FAILED, BUG)

    async def _let_in(self, request: web.Request) -> Caller:
        """Who calls, if they may make such a request."""
        peer = _peer(request.transport)
        user, groups = await asyncio.to_thread(lambda: (user_name(peer.uid), group_names(peer.gids)))
        rights = self.access.rights(peer.uid, user, groups)
        shows_config = request.method in ("GET", "HEAD") and request.path == CONFIG_PATH
        needed = Rights.LOOK if request.method in ("GET", "HEAD") and not shows_config else Rights.OPERATE
        if rights < needed:
            log.warning("control_request_denied", by=user, pid=peer.pid, method=request.method, path=request.path)
            wish = "see the configuration" if shows_config else "give orders"
            raise Denied(self.access.why_denied(user, needed, wish))
        return Caller(user, peer.pid)


def _peer(transport: asyncio.BaseTransport | None) -> Peer:
    """Who is at the other end.

    Raises:
        ConnectionError: nobody is any more.
    """
    connection = transport.get_extra_info("socket") if transport is not None else None
    if connection is None or connection.fileno() < 0:
        raise ConnectionResetError("the caller has gone")
    return peer_of(connection.fileno())


def _error(kind: ErrorKind, message: str, status: int | None = None) -> web.Response:
    return web.json_response(error_body(kind, message), status=status if status is not None else kind.status)


def _explain(request: web.Request, error: web.HTTPException) -> str:
    """What is wrong with a request that got no further than aiohttp, or that was refused as not understood."""
    if isinstance(error, web.HTTPNotFound):
        return f"there is no {request.path}"
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods - {"HEAD"}))
        return f"{request.path} does not take {request.method} ({allowed})"
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return f"the body is too long (at most {LARGEST_BODY} bytes)"
    return error.text or error.reason
