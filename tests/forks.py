"""Starts Python programs by forking a process that has imported what they need.

To a program it is a start of its own: its arguments, folder, environment, outputs, signals and exit are its own. Only
the imports' time is saved: 0.2 s for each `hpcdist`, 4 s for each rank of a training.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

# What Python and the libraries read when they start: of a program that is to have others, a new process is started.
LIBRARIES = ("OMP_", "MKL_", "OPENBLAS_", "TORCH")
READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC_", "MPL", *LIBRARIES)
ENVIRONMENT = dict(os.environ)
LARGEST_REQUEST = 1 << 17


def read_at_start(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(READ_AT_START)}


def own_environment() -> dict[str, str]:
    """This process's environment, without what torch and Lightning have put there when a test used them in it."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(LIBRARIES)}
    return ours | {name: value for name, value in ENVIRONMENT.items() if name.startswith(LIBRARIES)}


class Forked:
    """A program that was started: what tests need of `subprocess.Popen`."""

    def __init__(self, reports: int):
        self.reports = os.fdopen(reports)
        self.pid = int(self.reports.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self.reports], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            self.returncode = int(self.reports.readline())
            self.reports.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Server:
    """The process that is forked; it ends with this one."""

    def __init__(self, packages: Sequence[str]):
        self.requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks", str(theirs.fileno()), *packages],
            cwd=Path(__file__).parent.parent,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        atexit.register(self.end)

    def start(self, out: int, err: int, **request: object) -> Forked:
        """Starts a program, which `become` describes."""
        reports, report = os.pipe()
        request = json.dumps(request).encode()
        assert len(request) < LARGEST_REQUEST
        try:
            socket.send_fds(self.requests, [request], [out, err, report])
        finally:
            os.close(report)
        return Forked(reports)

    def end(self) -> None:
        self.requests.close()
        self.process.wait()


@functools.cache
def serve_for(*packages: str) -> Server:
    """The server that has these packages imported, with all that is in them; `package:` without."""
    return Server(packages)


def start(
    command: Sequence[str],
    packages: Sequence[str],
    *,
    env: dict[str, str],
    cwd: Path | str,
    out: int,
    err: int,
    is_tidy: bool = True,
) -> Forked | subprocess.Popen:
    """Starts a Python program: forked where that makes no difference to it."""
    if read_at_start(env) != read_at_start(ENVIRONMENT):
        return subprocess.Popen(command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
    program = list(map(str, command[1:]))
    return serve_for(*packages).start(out, err, program=program, env=env, cwd=str(cwd), is_tidy=is_tidy)


def run(
    command: Sequence[str], packages: Sequence[str], *, timeout: float, **how: object
) -> subprocess.CompletedProcess:
    """Starts a Python program and waits for it, as `subprocess.run` does with its outputs captured as text."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = start(command, packages, out=out.fileno(), err=err.fileno(), **how)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            raise
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(command, process.returncode, out.read(), err.read())


def load(name: str) -> None:
    package = importlib.import_module(name.removesuffix(":"))
    if not name.endswith(":"):
        for module in pkgutil.walk_packages(getattr(package, "__path__", ()), f"{name}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)


def serve(requests: socket.socket) -> dict:
    """Forks for each request; returns it in the new process only."""
    ctrl_c = signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        text, handles, _, _ = socket.recv_fds(requests, LARGEST_REQUEST, 3)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not text:
            os._exit(0)
        # The one in between waits for the program's end and reports it, the others need not.
        if os.fork() == 0:
            requests.close()
            *outputs, report = handles
            pid = os.fork()
            if pid == 0:
                os.close(report)
                signal.signal(signal.SIGINT, ctrl_c)
                for handle, output in enumerate(outputs, start=1):
                    os.dup2(output, handle)
                    os.close(output)
                return json.loads(text)
            for output in (1, 2, *outputs):
                os.close(output)
            os.write(report, f"{pid}\n".encode())
            os.write(report, f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())
            os._exit(0)
        for handle in handles:
            os.close(handle)


def become(program: list[str], env: dict[str, str], cwd: str, is_tidy: bool) -> None:
    """Makes this process what `python PROGRAM` would be, and runs it: `-m MODULE` or a file, and its arguments.

    Unless `is_tidy` it ends without freeing its memory piece by piece, which takes longer than most commands.
    """
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    os.chdir(cwd)
    try:
        if program[0] == "-m":
            module, sys.argv = program[1], program[1:]
            sys.path[0] = cwd
            for name in (module, f"{module}.__main__"):
                if not hasattr(sys.modules.get(name), "__path__"):
                    sys.modules.pop(name, None)
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            sys.argv = program
            sys.path[0] = os.path.dirname(program[0])
            runpy.run_path(program[0], run_name="__main__")
    except SystemExit as done:
        if is_tidy or not isinstance(done.code, int):
            raise
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(done.code)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        load(name)
    gc.freeze()
    become(**serve(socket.socket(fileno=int(sys.argv[1]))))
