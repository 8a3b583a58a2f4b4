"""Processes that this program starts and that must not outlive it."""

from __future__ import annotations

import multiprocessing
import os
import threading

# `python -c ISDT VERB ...` with stdin=PIPE: the `isdt` command in a process that ends with the one that started it. The pipe ends
# however that one does; os.read, because a thread that waits in sys.stdin keeps the interpreter from ending by itself.
ISDT = """
import os, runpy, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
runpy.run_module("isdt_policy", run_name="__main__", alter_sys=True)
"""


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, by kill -9 too; call it in a child of multiprocessing.

    Workers of a ProcessPoolExecutor hold both ends of the pipe from which they read, so they would wait for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
