"""The verbs as flows of data: plan, prune, evaluate; `prune.py` is the file to read first."""
