"""Deploy: roll a release out beside the champion on real traffic, judge it, and promote it or turn it away."""
