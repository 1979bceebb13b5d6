"""New process to first label: `python -m bench.cold FILE:NAME CHECKPOINT CACHE THREADS TEXT` prints the label's number.

The interpreter, every import that the peer needs, loading the model and the tokenizer are all part of it.
"""

import sys
from pathlib import Path

from .backends import find
from .backends.base import Setting


def main() -> None:
    peer, checkpoint, cache, threads, text = sys.argv[1:]
    backend = find(peer)(Setting(Path(checkpoint), Path(cache), int(threads)))
    print(backend.label(text), flush=True)


if __name__ == "__main__":
    main()
