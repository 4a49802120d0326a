"""How the weights of the grounding score are made: public answers, true ones and ones that were changed.

``python -m serin.core.grounding.training --data DIR --output FILE`` (one minute) writes the shipped file again.
"""
