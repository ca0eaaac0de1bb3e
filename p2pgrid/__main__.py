"""`python -m p2pgrid` is `p2pgrid`."""

import sys

from p2pgrid.cli.main import main

sys.exit(main())
