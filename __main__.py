"""python FOLDER ...: the command line from the pack's folder, nothing of which need be installed.

Python looks for modules in a folder that it is told to run, even the one of ComfyUI's portable package, which doesn't look
in the current folder, so that `-m hyperlora_core` finds nothing there.
"""

import sys

from hyperlora_core.cli import main

sys.exit(main())
