"""The monitor stage: a release's traffic against what it was made for, and what to do about it."""
