"""``python -m agnews_fast`` is the ``agnews-fast`` command."""

import sys

from agnews_fast.cli import main

sys.exit(main())
