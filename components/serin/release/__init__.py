"""The release stage: binds model, index, prompt, guardrails and serving settings into one immutable release."""
