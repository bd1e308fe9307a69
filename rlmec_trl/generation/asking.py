"""Many concurrent requests to a server, never more than `concurrency`."""

import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from tqdm.auto import tqdm

from .processes import process_state


T = TypeVar("T")


def ask_all(
    ask: Callable[[T], None], questions: Iterable[T], concurrency: int, total: int, desc: str | None = None
) -> None:
    """
    Send requests, at most `concurrency` of them at a time, each in a thread.

    Threads are used instead of an event loop, because an event loop reads the responses to a burst of requests
    together and then sends the next requests as a burst again, so that the server is idle in between.

    Requests are taken from the iterable only when they can be sent, so that an iterator can end early. After a failure
    or the first Ctrl-C, no further request is sent, but pending responses are awaited: a server bills them anyway.

    Args:
        ask (`Callable`):
            Sends one request and handles its response. Called in several threads at once.
        questions (`Iterable`):
            What to send. Advanced by one thread at a time.
        concurrency (`int`):
            Maximum number of pending requests.
        total (`int`):
            Maximum number of requests in total, for the progress bar.
        desc (`str`, *optional*):
            Title of the progress bar, shown by the local main process. If `None`, there is no bar.

    Raises:
        `Exception`: The first exception raised by `ask` or by the iterator.
    """
    if total == 0:
        return
    questions, end = iter(questions), object()
    # Guards the iterator, the progress bar and `pending`. A plain lock and plain values, no `Event` and no
    # `Thread.join`: a Ctrl-C in the middle of those leaves a lock held for good, or takes a thread for ended.
    lock = threading.Lock()
    pending, stopped, errors = 0, False, []
    show = desc is not None and process_state().is_local_main_process

    def work() -> None:
        while (question := take()) is not end:
            try:
                ask(question)
            except BaseException as error:
                stop(error)
            finally:
                finish()

    def take() -> T | object:
        nonlocal pending, stopped
        with lock:
            if stopped:
                return end
            try:
                question = next(questions, end)
            except BaseException as error:
                question = end
                stop(error)
            if question is end:
                stopped = True
            else:
                pending += 1
            return question

    def stop(error: BaseException) -> None:
        nonlocal stopped
        errors.append(error)
        stopped = True

    def finish() -> None:
        nonlocal pending
        with lock:
            pending -= 1
            if not errors:
                progress.update()

    def wait() -> None:
        while True:
            # Under the lock: a thread may be about to send what it has just taken
            with lock:
                if stopped and not pending:
                    return
            time.sleep(0.01)

    with tqdm(total=total, desc=desc, disable=not show) as progress:
        try:
            for _ in range(min(concurrency, total)):
                # Daemon threads, so that a second Ctrl-C does not wait for them
                threading.Thread(target=work, daemon=True).start()
            wait()
        except BaseException as error:
            # No more threads can be started
            stopped = True
            # A Ctrl-C in the middle of `Thread.start` may come out as the error of a lock
            interrupted = isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt)
            if interrupted:
                progress.write("Stopping: waiting for pending responses (Ctrl-C drops them).", file=sys.stderr)
            wait()
            if interrupted:
                raise KeyboardInterrupt from None
            raise
    if errors:
        raise errors[0]
