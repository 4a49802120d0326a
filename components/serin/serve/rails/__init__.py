"""Small learned classifiers that the endpoint's rails ask; each in its own module, numpy only."""
