"""The oracles of the tests (`tests/reference/`), which the benchmark shares: data loader and ONNX graph."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parents[1]


def reference_module(name: str) -> ModuleType:
    """Import `tests/reference/NAME.py` by its place, since any installed package may call itself `tests`."""
    package = "bench_reference"
    if package not in sys.modules:
        folder = REPOSITORY / "tests" / "reference"
        spec = importlib.util.spec_from_file_location(
            package, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[package] = module
        spec.loader.exec_module(module)
    return importlib.import_module(f"{package}.{name}")
