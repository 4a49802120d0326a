"""The exit handler: whatever became of a run, say so, clean up behind it, and leave traffic where it belongs."""
