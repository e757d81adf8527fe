"""`python -m tests.families [NAMES...] [--write]`: what every family of causal language models does here."""

import sys

from tests.families.table import main


sys.exit(main(sys.argv[1:]))
