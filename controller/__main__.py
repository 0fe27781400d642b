"""``python -m controller`` is ``penstock``."""

import sys

from controller.cli import main

sys.exit(main())
