"""python -m hyperlora_core ..."""

import sys

from .cli import main

sys.exit(main())
