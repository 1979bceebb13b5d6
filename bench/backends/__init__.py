"""The peers. A file here with a tuple `PEERS` of `Backend` classes is found by itself."""

import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType

from .base import Backend

OURS = "agnews-fast"


def discover() -> dict[str, str]:
    """Name of every peer in this folder -> its specification, `FILE:NAME`."""
    specs: dict[str, str] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        path = Path(__file__).parent / f"{module.name}.py"
        for peer in getattr(_load(path), "PEERS", ()):
            specs[peer.name] = f"{path}:{peer.name}"
    return specs


def find(spec: str) -> type[Backend]:
    """The peer that `FILE:NAME` names. The file need not be in this folder."""
    path, _, name = spec.rpartition(":")
    peers: dict[str, type[Backend]] = {peer.name: peer for peer in getattr(_load(Path(path)), "PEERS", ())}
    if name not in peers:
        raise LookupError(f"{path}: expected a peer named {name!r} in PEERS, got {', '.join(peers) or 'none'}")
    return peers[name]


def missing_packages(peer: type[Backend]) -> list[str]:
    return [package for package in peer.requires if importlib.util.find_spec(package) is None]


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_peer_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise LookupError(f"{path}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
