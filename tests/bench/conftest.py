"""Puts the repository root on `sys.path`: `bench` is run from there and never installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
