"""How a rank ends when it can't finish: at once, with the reason, and never with status 0.

Needs no torch, so that it stands before the slow imports begin.
"""

import os
import signal
import socket
import sys
import threading
import time
import traceback
from types import TracebackType

from hpcdist.errors import HpcdistError
from hpcdist.records.ranks import LOST_PEER_STATUS, STOPPED_STATUS
from hpcdist.train.environment import RankEnvironment
from hpcdist.train.outcome import Outcome

ENDING_SIGNALS = {signal.SIGTERM, signal.SIGINT}  # not HUP: under nohup it is ignored, and must stay so

# A rank whose connection broke is seldom the one to blame. It ends with a status of its own, and later than the rank
# that broke it, so that the launcher sees that one first.
LOST_PEER_DELAY_S = 3.0
LOST_PEER_SIGNS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "gloo/transport",
    "NCCL communicator",
    "remote server shutdown",
)


class StoppedError(HpcdistError):
    """The training was asked to stop, and did so between two steps."""

    exit_code = STOPPED_STATUS


class FailureReporter:
    """Ends this rank: says why, writes what was measured, exits."""

    def __init__(self, rank: RankEnvironment, outcome: Outcome) -> None:
        self._name = f"rank {rank.rank} on {socket.gethostname()}"
        self._outcome = outcome
        # A rank with a stop file is asked by that file, and its watcher has switched TERM off for it.
        self._signals = ENDING_SIGNALS - {signal.SIGTERM} if rank.stop_file else ENDING_SIGNALS

    def watch(self) -> None:
        """Take over signals and uncaught exceptions; to be called before any thread is started.

        The signals are blocked and a thread waits for them. A handler would not do: Python runs it between two
        bytecodes, and a rank that waits for a dead peer inside gloo or NCCL executes none.
        """
        sys.excepthook = self._end_with_bug
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        # Children must not inherit signals that nobody waits for.
        os.register_at_fork(after_in_child=_unblock)
        threading.Thread(target=self._wait_for_signal, name="signals", daemon=True).start()

    def _wait_for_signal(self) -> None:
        number = signal.sigwait(self._signals)
        try:
            print(f"{self._name}: ended by {signal.Signals(number).name}", file=sys.stderr, flush=True)
            self._outcome.write()
        finally:
            # By the signal itself, so that whoever waits for this process sees what ended it.
            _unblock()
            os.kill(os.getpid(), number)
            time.sleep(1)
            os._exit(128 + number)

    def end(self, error: BaseException) -> None:
        """End the rank with this error; never return."""
        try:
            status = self._explain(error)
            self._outcome.write()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            # Not sys.exit: destroying a process group whose other ranks still compute can wait for ever.
            os._exit(status)

    def _explain(self, error: BaseException) -> int:
        if isinstance(error, StoppedError):
            print(f"{self._name}: {error.message}", flush=True)
            return error.exit_code
        if isinstance(error, HpcdistError):
            print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr, flush=True)
            return error.exit_code
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in LOST_PEER_SIGNS):
            reason = str(error).splitlines()[0]
            print(f"error: {self._name} lost its connection to another rank: {reason}", file=sys.stderr)
            print("hint: look for the first rank that failed", file=sys.stderr, flush=True)
            time.sleep(LOST_PEER_DELAY_S)
            return LOST_PEER_STATUS
        text = "".join(traceback.format_exception(error))
        sys.stderr.write("".join(f"{self._name}: {line}\n" for line in text.rstrip().splitlines()))
        return 1

    def _end_with_bug(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        self.end(error)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)
