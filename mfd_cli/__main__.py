"""python -m mfd_cli."""

import os
import sys

# `python -m` looks into the working folder first, where a folder named `teachers` would hide mfd's own
if sys.path[0] in ("", os.getcwd()) and not os.path.isfile("mfd_cli/__main__.py"):
    del sys.path[0]

from mfd_cli.cli import main

if __name__ == "__main__":
    main()
