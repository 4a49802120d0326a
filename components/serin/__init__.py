"""Serin: from documents and conversations to a guarded LLM endpoint, and back to the release before it.

The packages below are the stages of the loop; each holds its logic beside a thin ``component.py``:
``data_prep``, ``finetune``, ``index``, ``evaluate``, ``release``, ``deploy`` and ``monitor``.  ``serve`` is the
endpoint itself, ``samples`` the data of the demo, ``core`` what they share.
"""

__version__ = "0.1.0"
