"""Settings of a release."""

from typing import Any

from serin.core.config import Section
from serin.core.policy import GuardrailPolicy, default_policy
from serin.core.serving import ServingConfig


class ReleaseConfig(Section):
    """What goes into a release besides its artefacts and its prompt."""

    serving: ServingConfig = ServingConfig()
    """How the endpoint retrieves and decodes."""
    guardrails: dict[str, Any] | None = None
    """The guardrail policy; None is the default one."""

    def policy(self) -> GuardrailPolicy:
        """The guardrail policy, complete and checked.

        Raises:
            ConfigError: naming the field that is wrong.
        """
        return default_policy() if self.guardrails is None else GuardrailPolicy.load(self.guardrails)
