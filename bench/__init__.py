"""Side-by-side benchmark of `agnews_fast` and its peers; `python -m bench compare` runs it (see README.md)."""
