"""`python -m sapp_cli` is `sapp`.

Python looks for modules in the current folder first then, where a `re.py` of somebody's data would run. Before anything else is
imported that folder is taken out, unless sapp itself lies in it.
"""

import os
import sys

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - pathlib is not imported yet

if sys.path and sys.path[0] in ("", os.getcwd()) and os.getcwd() != HERE:  # noqa: PTH109
    del sys.path[0]

from sapp_cli.cli.main import main  # noqa: E402

main()
