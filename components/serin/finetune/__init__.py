"""The fine-tune stage: base model + dataset -> artefacts 'base' and 'model', trained on Ray Train.

``serin.finetune.train.finetune`` is the entry point.  The base ``serin://tiny`` is pretrained first; every other base
is copied as it is.  The training loop (``loop``) is plain PyTorch and runs with or without Ray.
"""
