"""Kubeflow Pipelines from the command line and from CI: submit and follow runs, keep schedules, promote releases.

The SDK's own client talks to the server; ``transport`` adds what it lacks (time limits, bounded retries, tokens that
rotate), ``follow`` replaces its wait loop, which neither ends on CANCELED nor survives a restart of the server.
"""
