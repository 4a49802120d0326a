"""Remove from site-packages what no component runs: ``python3 trim.py SITE_PACKAGES``.

Patterns are named package by package: a folder called ``tests`` is code in some (evidently, jinja2, mpmath).
"""

import shutil
import sys
from pathlib import Path

TESTED = (
    "matplotlib", "networkx", "nltk", "numpy", "pandas", "pyarrow", "scipy", "sklearn", "statsmodels", "sympy",
)  # fmt: skip
"""Packages whose ``tests`` and ``test`` folders are only tests."""
UNUSED = (
    "torch/test", "torch/include", "torch/share",  # headers and tests of the C++ interface
    "ray/jars", "ray/cpp", "ray/rllib",  # Java, C++, games; the job server does not start without the dashboard's pages
    "pyarrow/include", "pyarrow/*flight*.so*", "numpy/_core/include",
    "jupyterlab_plotly",  # pages of a server that is not run from these images
)  # fmt: skip
KEPT_PROGRAMS = {"torch_shm_manager"}
"""The one program of torch/bin that torch itself starts."""
SUFFIXES = {".a", ".c", ".h", ".ipynb", ".map", ".pxd", ".pyi", ".pyx"}
"""Sources of compiled modules, type stubs, notebooks, source maps."""


def main(site: Path) -> None:
    """Trim in place; what is absent is passed over, so that one list serves all images."""
    for package in TESTED:
        for name in ("test", "tests"):
            for folder in sorted((site / package).rglob(name)):
                _remove(folder)
    for pattern in UNUSED:
        for path in sorted(site.glob(pattern)):
            _remove(path)
    for program in (site / "torch" / "bin").glob("*"):
        if program.name not in KEPT_PROGRAMS:
            _remove(program)
    for path in site.rglob("*"):
        if path.suffix in SUFFIXES and path.is_file():
            path.unlink()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
