"""Where an endpoint's traffic is split, and how a release is written into the objects that split it."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from serin.core.config import Section

TrafficKind = Literal["gateway", "kserve_canary", "kserve_knative", "llm_service", "httproute"]
DNS_LABEL = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
RELEASE_FIELDS: dict[str, dict[str, Any]] = {
    "kserve_canary": {"model": {"storageUri": "{model_uri}"}},
    "kserve_knative": {"model": {"storageUri": "{model_uri}"}},
    "llm_service": {"model": {"uri": "{model_uri}"}},
}
"""What of a predictor, or of an LLMInferenceService's spec, a release decides where the settings do not say."""


class TrafficConfig(Section):
    """What moves an endpoint's traffic."""

    kind: TrafficKind = "gateway"
    """``gateway``: our own; ``kserve_canary``: an InferenceService's ``spec.canary`` (Standard mode, KServe 0.20);
    ``kserve_knative``: its ``canaryTrafficPercent`` (Knative mode); ``llm_service``: the weights of two
    LLMInferenceServices of one group; ``httproute``: the weights of a Gateway API HTTPRoute."""
    gateways: tuple[str, ...] = ()
    """Gateways by URL; a host name that stands for several addresses (a headless Service) means each of them.  Their
    token is in SERIN_ADMIN_TOKEN.  Empty: ``$SERIN_GATEWAY_URL``, else one is started for the rollout's length."""
    name: str = Field("", pattern=r"^$|" + DNS_LABEL)
    """The InferenceService, or the HTTPRoute."""
    services: tuple[str, ...] = ()
    """The two LLMInferenceServices that take turns as champion and candidate."""
    namespace: str = ""
    """Where they are; empty: the pod's, or the kubeconfig's."""
    fields: dict[str, Any] = Field(default_factory=dict)
    """What a release decides of the predictor, or of the LLMInferenceService's ``spec``: a part of it, laid over what
    is there, lists replaced whole.  In its texts ``{id}``, ``{short_id}``, ``{model_uri}``, ``{model_digest}``,
    ``{index_uri}``, ``{index_digest}``, ``{guardrails_digest}`` and ``{code_version}`` are the release's.  Name here
    whatever must change with it.  Empty: the model's URI alone."""
    service: str = "serin-{short_id}"
    """HTTPRoute: the Service of a release; one must be there for each release in traffic."""
    port: int = Field(8080, ge=1, le=65535)
    """HTTPRoute: the Services' port."""
    sticky: bool = False
    """HTTPRoute: its rules have ``sessionPersistence``, which must be so; otherwise requests are dealt one by one."""
    replicas: int | None = Field(None, ge=1)
    """``kserve_canary``: pods of the champion; nothing: as many as its predictor's ``minReplicas`` say."""
    candidate_replicas: int | None = Field(None, ge=1)
    """``kserve_canary``: pods of the candidate; nothing: as many as the champion's, so that both are judged at the same
    load per pod from the half on, and a promotion changes none."""
    patience_s: float = Field(60.0, gt=0)
    """An API that does not answer for this long is an error."""

    @model_validator(mode="after")
    def _names_what_its_kind_needs(self) -> Self:
        if self.kind in ("kserve_canary", "kserve_knative", "httproute") and not self.name:
            raise ValueError(f"kind {self.kind} needs 'name': the object that splits the traffic")
        if self.kind == "llm_service" and len(set(self.services)) != 2:
            raise ValueError("kind llm_service needs 'services': the names of two LLMInferenceServices")
        if self.kind == "httproute" and "{" not in self.service:
            raise ValueError("'service' must differ between releases: use {short_id} in it")
        return self

    @property
    def release_fields(self) -> dict[str, Any]:
        """``fields``, or the kind's own."""
        return self.fields or RELEASE_FIELDS.get(self.kind, {})
