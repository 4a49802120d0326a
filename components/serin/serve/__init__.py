"""The endpoint: a gateway process in front of one engine process per release.

``gateway`` routes sessions to releases and runs their rails, retrieval and prompts; ``engine`` decodes; ``server``
is the gateway's command line (``serin serve``); whoever moves traffic uses ``serin.core.gateway_client``.
"""
