"""The evaluate stage: baseline, candidate and champion on held-out conversations and golden questions, and the gate."""
