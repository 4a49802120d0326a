"""Does a user ask for something unsafe?"""

from serin.serve.rails import encoder

DEFAULT_THRESHOLD = 0.5


def score(text: str) -> float:
    """Probability-like score in [0, 1] that a request is unsafe.

    Each reading of the text (see ``rails.normal``) is judged in windows of 64 word pieces; the highest score counts.
    """
    weights = encoder.load("harm")
    return encoder.sigmoid(encoder.highest(text, weights) - float(weights["offset"][0]))
