"""Refuse the wrong build of torch: ``python3 check_torch.py cpu|cuda|any``."""

import sys

import torch


def main(wanted: str) -> str:
    """Returns what is wrong; empty when nothing is."""
    found = f"cuda {torch.version.cuda}" if torch.version.cuda else "cpu"
    if wanted == "any" or found.startswith(wanted):
        return ""
    argument = "CPU_TORCH_INDEX" if wanted == "cpu" else "GPU_TORCH_INDEX"
    return f"torch {torch.__version__} is a build for {found}, not for {wanted}: give --build-arg {argument}=URL."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]) or None)
