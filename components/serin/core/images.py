"""The image that components run in; one tag is one code version."""

import os

DEFAULT_IMAGE = "serin/cpu:0.1.0"


def component_image() -> str:
    """``$SERIN_IMAGE`` when compiling for a cluster (a pinned digest), else the tag of this version."""
    return os.environ.get("SERIN_IMAGE", DEFAULT_IMAGE)
