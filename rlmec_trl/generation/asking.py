"""Many concurrent requests to a server, never more than `concurrency`."""

import sys
import threading
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
    questions, end = iter(questions), object()
    lock, stop, errors = threading.Lock(), threading.Event(), []
    # Numbers of the threads at work, and whether there is none
    running: set[int] = set()
    idle = threading.Event()
    idle.set()
    show = desc is not None and process_state().is_local_main_process

    def work(number: int) -> None:
        try:
            while True:
                with lock:
                    question = end if stop.is_set() else next(questions, end)
                if question is end:
                    return
                ask(question)
                with lock:
                    progress.update()
        except BaseException as error:
            errors.append(error)
            stop.set()
        finally:
            leave(number)

    def leave(number: int) -> None:
        with lock:
            running.discard(number)
            if not running:
                idle.set()

    def wait() -> None:
        # Not by `Thread.join`: when Ctrl-C interrupts it, Python takes the thread for one that has ended, and its
        # response would be lost. With a limit, because a Ctrl-C right before the wait begins does not interrupt it.
        while not idle.wait(timeout=1):
            pass

    with tqdm(total=total, desc=desc, disable=not show) as progress:
        try:
            for number in range(min(concurrency, total)):
                with lock:
                    running.add(number)
                    idle.clear()
                try:
                    # Daemon threads, so that a second Ctrl-C does not wait for them
                    threading.Thread(target=work, args=(number,), daemon=True).start()
                except RuntimeError:
                    # No more threads can be started
                    leave(number)
                    raise
            wait()
        except KeyboardInterrupt:
            stop.set()
            progress.write("Stopping: waiting for pending responses (Ctrl-C drops them).", file=sys.stderr)
            wait()
            raise
        except BaseException:
            stop.set()
            wait()
            raise
    if errors:
        raise errors[0]
