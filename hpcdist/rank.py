"""`python -m hpcdist.rank`, which scripts run once per task; `hpcdist.launcher.rank` says what it does."""

import signal
import sys

if __name__ == "__main__" and "--max-requeues" in sys.argv:
    # Asked to stop while it starts, which on a slow shared disk takes seconds, a rank stops once it can: ended now, it
    # would leave its job FAILED.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR2))

from hpcdist.launcher.process import FORWARDED_SIGNALS
from hpcdist.launcher.rank import main

if __name__ == "__main__":
    result = main(sys.argv[1:])
    # While Python ends it puts the default back for what it handled: a TERM to a job whose other rank just failed would
    # make 143 of this rank's status, and so of the job's, which is the highest.
    for signal_number in FORWARDED_SIGNALS:
        signal.signal(signal_number, signal.SIG_IGN)
    sys.exit(result)
