"""Help for the tests of journals: writing edits by hand, in this process and in others."""

from __future__ import annotations

import multiprocessing
import os

import numpy as np
import torch

from toedit_collate import EditPolicy
from toedit_collate.stores.journal import keys_of

POLICY = EditPolicy().record()


def record(journal, source, changes, *, generation=1, step=0, prior="a prior", policy=POLICY):
    """Put the edit of one document into a journal.

    Args:
        source: its token ids.
        changes: position in the document as that generation found it -> new token, None: removed.
        prior: its fingerprint.
    """
    journal.start_generation(generation, prior, policy)
    earlier = [number for number in journal.generations if number < generation]
    before = journal.replay(source, max(earlier, default=0))
    rows = [(p, before[p], -1 if new is None else new) for p, new in sorted(changes.items())]
    journal.record(
        keys_of(torch.tensor(source), [len(source)]),
        np.array([len(source)]),
        np.array([len(rows)]),
        np.array(rows, np.int64).reshape(-1, 3),
        step,
        scored=len(source) - 1,
        selected=len(rows),
    )


def in_child(function, *arguments):
    """Call a function in a forked process, which then ends without cleaning up.

    Returns:
        What the function returned; its error as a text; or "killed".
    """
    receiver, sender = multiprocessing.Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:
        try:
            sender.send(function(*arguments))
        except BaseException as error:
            sender.send(f"{type(error).__name__}: {error}")
        finally:
            os._exit(0)
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return "killed"
    finally:
        os.waitpid(pid, 0)
