"""Entry of the installed executable, and of `python -m flexdriver`."""

import sys

from flexdriver.callout import main

main(sys.argv[1:])
