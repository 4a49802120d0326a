"""What is composed of the stages and submitted: pipelines, their configurations, the local runner, the CLI."""
