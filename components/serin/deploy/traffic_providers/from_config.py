"""The provider that a configuration names."""

from collections.abc import Callable

from serin.core.gateway_client import GatewayClient
from serin.core.kubernetes import Clock, KubernetesApi, connect
from serin.core.release import Release
from serin.deploy.traffic_providers.base import TrafficProvider
from serin.deploy.traffic_providers.cluster import ClusterProvider
from serin.deploy.traffic_providers.config import TrafficConfig
from serin.deploy.traffic_providers.gateway import GatewayTraffic
from serin.deploy.traffic_providers.httproute import HTTPRoute
from serin.deploy.traffic_providers.kserve_canary import KServeCanary
from serin.deploy.traffic_providers.kserve_knative import KServeKnative
from serin.deploy.traffic_providers.llm_service import LLMServices

CLUSTER_PROVIDERS: dict[str, type[ClusterProvider]] = {
    "kserve_canary": KServeCanary,
    "kserve_knative": KServeKnative,
    "llm_service": LLMServices,
    "httproute": HTTPRoute,
}


def provider_for(
    config: TrafficConfig,
    release_of: Callable[[str], Release],
    *,
    gateway: GatewayClient | None = None,
    api: KubernetesApi | None = None,
    clock: Clock | None = None,
) -> TrafficProvider:
    """The provider of an endpoint.

    Args:
        config: which kind, and which objects.
        release_of: a release by its id, such as ``partial(load_release, storage)``.
        gateway: one that the caller started; it goes before those of the configuration.
        api: of the cluster; None connects with the kubeconfig's, or the pod's, identity.
        clock: handed in by tests.

    Raises:
        ConfigError: kind ``gateway`` and no gateway is named anywhere.
        ServingError: kind ``gateway`` and SERIN_ADMIN_TOKEN is not set.
        UnavailableError: there is no usable kubeconfig.
    """
    if config.kind == "gateway":
        if gateway is not None:
            return GatewayTraffic(lambda: [gateway])
        return GatewayTraffic.from_urls(config.gateways) if config.gateways else GatewayTraffic.from_environment()
    provider = CLUSTER_PROVIDERS[config.kind]
    return provider(config, api or connect(config.namespace), release_of, clock=clock)
