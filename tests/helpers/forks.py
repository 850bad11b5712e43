"""Processes that end as any Python program does, without the seconds that imports take.

A server has imported everything, and forks a child for each program. The child runs it as the
`__main__` module, and ends through the interpreter's own shutdown.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent


class Server:
    """Runs programs one after another.

    Args:
        modules: they are imported once, by the server.
    """

    def __init__(self, *modules: str) -> None:
        tests = HERE.parent
        paths = [tests, HERE, tests / "stores", tests.parent, os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, __file__, *modules],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, code: str, *arguments: object, is_closed: bool = False) -> tuple[int, str]:
        """Run a program.

        Args:
            arguments: its `sys.argv[1:]`.
            is_closed: it prints to a pipe that has no reader.

        Returns:
            Its exit status, and what it printed as errors.
        """
        with tempfile.NamedTemporaryFile("r") as errors:
            order = {"code": code, "arguments": list(map(str, arguments))}
            order |= {"errors": errors.name, "is_closed": is_closed}
            print(json.dumps(order), file=self.process.stdin, flush=True)
            status = int(self.process.stdout.readline())
            return status, errors.read()

    def close(self) -> None:
        self.process.kill()
        self.process.wait(30)


def serve() -> str | None:
    """Fork children until there are no orders; returns in a child, with its program."""
    while order := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            order = json.loads(order)
            reader, writer = os.pipe()
            os.close(reader)
            streams = (
                os.open(os.devnull, os.O_RDONLY),
                writer,
                os.open(order["errors"], os.O_WRONLY),
            )
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            sys.argv = ["-c", *order["arguments"]]
            return order["code"]
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return None


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.freeze()  # the end of a child takes a second otherwise
    program = serve()
    if program is not None:
        exec(compile(program, "-c", "exec", dont_inherit=True), globals())
