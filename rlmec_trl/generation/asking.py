"""Many questions to a server at once, so that it is never idle and never asked for more than it can bear."""

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
    Ask questions, at most `concurrency` of them at a time, each in a thread.

    Threads, not an event loop: there, the answers to a burst of questions are read side by side, the next questions go
    out as a burst again, and the server is idle in between.

    Questions are taken one by one as there is room for them, so that an iterator can end early. When one fails, or on
    the first Ctrl-C, no further one is taken, but the answers under way are waited for: a server bills them anyway.

    Args:
        ask (`Callable`):
            Asks a question and does with the answer what has to be done. Called in several threads at once.
        questions (`Iterable`):
            What to ask. Advanced by one thread at a time.
        concurrency (`int`):
            Greatest number of questions under way at a time.
        total (`int`):
            Number of questions at most, for the progress bar.
        desc (`str`, *optional*):
            Title of the progress bar, shown by the local main process. No bar where `None`.

    Raises:
        `Exception`: The first that `ask`, or the iterator, raised.
    """
    questions, end = iter(questions), object()
    lock, stop, errors = threading.Lock(), threading.Event(), []
    show = desc is not None and process_state().is_local_main_process

    def work() -> None:
        while True:
            try:
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
                return

    with tqdm(total=total, desc=desc, disable=not show) as progress:
        # Daemons, so that a second Ctrl-C does not wait for them
        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(concurrency, total))]
        try:
            for thread in threads:
                thread.start()
            _join(threads)
        except KeyboardInterrupt:
            stop.set()
            progress.write("Stopping: answers under way are waited for (Ctrl-C drops them).", file=sys.stderr)
            _join(threads)
            raise
        except BaseException:
            # No thread is left to start, say
            stop.set()
            _join(threads)
            raise
    if errors:
        raise errors[0]


def _join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        if thread.is_alive():
            thread.join()
