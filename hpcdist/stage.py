"""`python -m hpcdist.stage`, which scripts run once per node; `hpcdist.launcher.stage_data` says what it does."""

import sys

from hpcdist.launcher.stage_data import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
