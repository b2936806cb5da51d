"""The life of a worker that runs a loop: signs of life, the wish to go, an end in time.

What it serves is none of its business. One task runs all of it, from ``after_fork`` to the
closing of the exit stack, since task groups and time limits must be left where they were
entered.
"""

import asyncio
import contextvars
import faulthandler
import inspect
import os
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from types import FrameType
from typing import Any

from ..job import nothing
from ..listeners import address_text
from ..reports import leave_report
from ..signals import WHERE, all_blocked, take
from ..text import printable
from ..worker.master_handle import MasterHandle
from .handle import AsyncMasterHandle, at_home_in_loop
from .loops import LoopKind

# Of ``graceful_timeout``: when what goes on is cancelled, and when the worker is to be gone.
# The master's patience began a moment earlier than we heard of it.
_CANCEL, _CANCEL_BEFORE = 0.7, 3.0  # a share of it, or so many seconds before its end
_LEAVE, _LEAVE_BEFORE = 0.9, 1.0
_SHOWN = 20  # tasks in the report of a loop that hangs, and of each the innermost frames
_FRAMES = 4


class Life:
    """``begin`` is the hook ``after_fork`` of a worker, ``live`` its work.

    ``serve(master, life)`` is awaited once it is ready. It is cancelled when the time that a
    worker has to go is nearly over, and raises what ends the worker.
    """

    loop: asyncio.AbstractEventLoop
    epoll: int  # the descriptor of the loop's
    graceful: float

    def __init__(
        self,
        kind: LoopKind,
        after_fork: Callable[[AsyncMasterHandle], object],
        serve: "Callable[[AsyncMasterHandle, Life], Awaitable[object]]",
        before_exit: Callable[[AsyncMasterHandle], object] = nothing,
    ) -> None:
        self._kind = kind
        self._after_fork = after_fork
        self._serve = serve
        self._before_exit = before_exit
        self._raised: BaseException | None = None  # by what it lives for
        self._leave_at = 0.0  # of the loop's clock; 0: nobody wants it to go
        self.each_beat: Callable[[], object] = nothing

    def begin(self, master: MasterHandle) -> None:
        """Make the loop, and run it until ``after_fork`` has returned. Raises what that does."""
        self.loop, self.epoll = self._kind.make()
        self._master = at_home_in_loop(master)
        self.graceful = master.heartbeat.graceful
        self.loop.set_exception_handler(self._complain)
        if not master.inline:
            self._tell_of_tasks_too()
        self._prepared = self.loop.create_future()
        self._ready = self.loop.create_future()
        self._task = self.loop.create_task(self._live(), context=contextvars.copy_context())
        self._task.add_done_callback(self._be_prepared)
        try:
            self._run_until(self._prepared)
            if self._task.done():
                self._task.result()
        except BaseException:
            self._close()
            raise

    def live(self, master: MasterHandle) -> None:
        try:
            self._ready.set_result(None)
            self._run_until(self._task)
        finally:
            self._close()

    def _run_until(self, future: "asyncio.Future[Any]") -> None:
        try:
            self.loop.run_until_complete(future)
        except RuntimeError:
            if self._task.done() or not self._leave_at:
                raise  # by user code, or it has stopped the loop
            self.warn("what is to be closed at the end does not end, leaving")
            if self._raised:
                raise self._raised from None

    def _be_prepared(self, *_: object) -> None:
        if not self._prepared.done():
            self._prepared.set_result(None)

    def _close(self) -> None:
        # A worker ends in os._exit: there, a loop that is closed would only wait for threads.
        if self._master.inline:
            self.loop.close()

    async def _live(self) -> None:
        master = self._master
        try:
            prepared = self._after_fork(master)
            if inspect.isawaitable(prepared):
                await prepared
            self._be_prepared()
            await self._ready
            self.loop.add_reader(master.heartbeat.bell.fileno(), self._rung)
            self._limit = asyncio.timeout(None)
            try:
                async with self._limit:
                    self._pulse()
                    await self._serve(master, self)
            except TimeoutError:
                if not self._limit.expired():
                    raise
        except BaseException as error:  # user code
            self._raised = error
            raise
        finally:
            await self._end()

    # Signs of life

    def _pulse(self) -> None:
        heartbeat = self._master.heartbeat
        heartbeat.look()
        self._look()
        self.each_beat()
        self.loop.call_later(heartbeat.pause, self._pulse)

    def _rung(self) -> None:
        self._master.heartbeat.bell.hush()
        self._look()

    def _look(self) -> None:
        """Is it time to go?"""
        if self._master.is_over() and not self._leave_at:
            now = self.loop.time()
            self._leave_at = now + self._share(_LEAVE, _LEAVE_BEFORE)
            self._limit.reschedule(now + self._share(_CANCEL, _CANCEL_BEFORE))
            self._master.retired.set()

    def _share(self, share: float, before: float) -> float:
        return max(self.graceful * share, self.graceful - before)

    # The end

    def left(self) -> float:
        """Seconds until the worker is to be gone."""
        if not self._leave_at:  # it ends by itself
            self._leave_at = self.loop.time() + self.graceful / 2
        return self._leave_at - self.loop.time()

    async def _end(self) -> None:
        master = self._master
        master.retired.set()  # it may go by itself, and what is to be closed may wait for this
        # Whoever swallows the cancellation below, or is closed for ever, does not keep us.
        self.loop.call_later(max(0.0, self.left()) + self.graceful / 20, self.loop.stop)
        try:
            async with asyncio.timeout(self.left()) as limit:
                if self._ready.done():
                    await self._say_goodbye()
                await master.exit_stack.aclose()
        except TimeoutError:
            if not limit.expired():
                raise  # by what was closed
            self.warn("exit_stack was not closed in time")
        others = asyncio.all_tasks() - {self._task}
        await cancelled(others, self.left())
        await self.loop.shutdown_asyncgens()

    async def _say_goodbye(self) -> None:
        try:
            leaving = self._before_exit(self._master)
            if inspect.isawaitable(leaving):
                await leaving
        except Exception:  # user code
            extra = self._extra("hook_failed")
            self._master.logger.exception("before_exit failed", extra=extra)

    # What goes wrong

    def warn(self, message: str, *args: object) -> None:
        self._master.logger.warning(message, *args, extra=self._extra("late"))

    def report(self, message: str, peer: Any, error: BaseException) -> None:
        """What user code raised, once, with the peer."""
        self._master.heartbeat.fail(error)
        text = address_text(peer) if peer else "a client"
        extra = self._extra("request_failed")
        self._master.logger.error("%s for %s", message, text, exc_info=error, extra=extra)

    def gone(self, peer: Any, error: BaseException) -> None:
        text = address_text(peer) if peer else "a client"
        extra = self._extra("request_failed")
        self._master.logger.debug("%s is gone: %s", text, printable(str(error)), extra=extra)

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The loop's own way to say that a protocol, a callback or a task has raised."""
        transport = context.get("transport")
        peer = transport.get_extra_info("peername") if transport else None
        message = context["message"] + (f" for {address_text(peer)}" if peer else "")
        extra = self._extra("request_failed")
        error = context.get("exception")
        if error:
            self._master.heartbeat.fail(error)
        self._master.logger.error("%s", printable(message), exc_info=error, extra=extra)

    def _extra(self, event: str) -> dict[str, object]:
        return {"event": event, "worker": self._master.slot, "pid": os.getpid()}

    def _tell_of_tasks_too(self) -> None:
        """Asked where it is, a worker writes its stack, from C, whatever it does; and then
        those of its tasks, if what it does is Python, or a sleep that a signal ends."""
        with all_blocked():  # in between the signal would mean death
            faulthandler.unregister(WHERE)
            take(WHERE, self._tell_of_tasks)
            faulthandler.register(WHERE, self._master.report, chain=True)

    def _tell_of_tasks(self, signum: int, frame: FrameType | None) -> None:
        busy = asyncio.current_task(self.loop)  # its stack is the one above
        tasks = asyncio.all_tasks(self.loop) - {self._task, busy}
        text = f"{len(tasks)} other tasks (most recent call first):\n"
        for task in islice(tasks, _SHOWN):
            text += f"  {task.get_name()}\n"
            for inner in islice(_awaiting(task.get_coro()), _FRAMES):
                code = inner.f_code
                text += f'    File "{code.co_filename}", line {inner.f_lineno} in {code.co_name}\n'
        leave_report(self._master.report, text)


def _awaiting(coroutine: Any) -> Iterator[FrameType]:
    """The frames of a coroutine that waits, the innermost first."""
    frames: list[FrameType] = []
    while frame := getattr(coroutine, "cr_frame", None):
        frames.append(frame)
        coroutine = coroutine.cr_await
    return reversed(frames)


async def cancelled(tasks: "set[asyncio.Task[Any]]", seconds: float) -> None:
    """Cancel them, and wait until they are done, at most so long."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=max(0.0, seconds))
