"""Many questions to a server at once, so that it is never idle and never asked for more than it can bear."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from tqdm.auto import tqdm

from ..data.processes import process_state


T = TypeVar("T")


async def ask_all(
    ask: Callable[[T], Awaitable[None]],
    questions: Iterable[T],
    concurrency: int,
    total: int,
    desc: str | None = None,
) -> None:
    """
    Ask questions, at most `concurrency` of them at a time.

    Questions are taken as there is room for them, so that an iterator can end early. When one fails, or on the first
    Ctrl-C, no further one is taken, but the answers under way are waited for: a server bills them either way.

    Args:
        ask (`Callable`):
            Asks a question and does with the answer what has to be done.
        questions (`Iterable`):
            What to ask.
        concurrency (`int`):
            Greatest number of questions under way at a time.
        total (`int`):
            Number of questions, for the progress bar.
        desc (`str`, *optional*):
            Title of the progress bar, shown by the local main process. No bar where `None`.

    Raises:
        `Exception`: The first that `ask` raised.
    """
    room = asyncio.Semaphore(concurrency)
    under_way, errors = set(), []
    show = desc is not None and process_state().is_local_main_process

    with tqdm(total=total, desc=desc, disable=not show) as progress:

        def finish(task: asyncio.Task) -> None:
            under_way.discard(task)
            room.release()
            progress.update()
            if not task.cancelled() and task.exception() is not None:
                errors.append(task.exception())

        try:
            try:
                for question in questions:
                    await room.acquire()
                    if errors:
                        break
                    task = asyncio.ensure_future(ask(question))
                    under_way.add(task)
                    task.add_done_callback(finish)
            except Exception as error:
                errors.append(error)
            if under_way:
                await asyncio.wait(under_way)
        except asyncio.CancelledError:
            if under_way:
                message = f"Stopping: {len(under_way)} answers under way are waited for (Ctrl-C drops them)."
                progress.write(message, file=sys.stderr)
                await asyncio.wait(under_way)
            raise
    if errors:
        raise errors[0]


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also from a notebook, whose own event loop is running already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        inside_a_loop = False
    else:
        inside_a_loop = True
    if not inside_a_loop:
        return asyncio.run(main)
    started = Future()

    async def in_thread() -> T:
        started.set_result((asyncio.get_running_loop(), asyncio.current_task()))
        return await main

    with ThreadPoolExecutor(1) as thread:
        result = thread.submit(asyncio.run, in_thread())
        try:
            return result.result()
        except KeyboardInterrupt:
            # It reached this thread and not the one that asks
            loop, task = started.result()
            loop.call_soon_threadsafe(task.cancel)
            raise
