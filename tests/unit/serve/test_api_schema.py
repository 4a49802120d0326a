"""/openapi.json says what the endpoint does: schemathesis asks what it allows, and what it does not."""

from collections.abc import Iterator

import jsonschema_rs
import pytest
import requests
import schemathesis
from asking import call
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from serin.core.gateway_client import GatewayProcess
from serin.serve.api_routes import OPERATIONS

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]
EXAMPLES = {"/v1/chat/completions": 40, "/v1/completions": 25}
DIALECT = "https://json-schema.org/draft/2020-12/schema"


@pytest.fixture(scope="module")
def document(api: GatewayProcess) -> schemathesis.schemas.BaseSchema:
    return schemathesis.openapi.from_url(f"{api.url}/openapi.json")


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as made:
        yield made


@pytest.mark.parametrize(
    ("method", "path"), [(o.method, o.path) for _, o in OPERATIONS], ids=[o.operation_id for _, o in OPERATIONS]
)
def test_any_request_is_answered_as_the_document_says(
    api: GatewayProcess, document: schemathesis.schemas.BaseSchema, session: requests.Session, method: str, path: str
):
    operation = document[path][method]
    headers = {"authorization": f"Bearer {api.admin_token}"}
    modes = [operation.as_strategy(generation_mode=GenerationMode.POSITIVE)]
    if operation.body:
        modes.append(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))

    @settings(
        max_examples=EXAMPLES.get(path, 15),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=st.one_of(modes))
    def ask(case: schemathesis.Case) -> None:
        case.call_and_validate(session=session, headers=headers, checks=CHECKS)

    ask()


def test_the_document_needs_no_key_and_holds_every_route(api: GatewayProcess):
    answer = call(f"{api.url}/openapi.json")
    assert answer.status == 200
    assert answer.body["openapi"] == "3.1.0"
    found = {(method.upper(), path) for path, methods in answer.body["paths"].items() for method in methods}
    assert found == {(operation.method, operation.path) for _, operation in OPERATIONS}


def test_its_schemas_are_schemas_and_all_references_lead_somewhere(api: GatewayProcess):
    body = call(f"{api.url}/openapi.json").body
    for name in body["components"]["schemas"]:
        schema = {"$schema": DIALECT, "$ref": f"#/components/schemas/{name}", "components": body["components"]}
        jsonschema_rs.validator_for(schema, offline=True)


def test_keys_are_asked_for_where_it_says_so(api: GatewayProcess):
    paths = call(f"{api.url}/openapi.json").body["paths"]
    assert paths["/v1/chat/completions"]["post"]["security"] == [{}, {"apiKey": []}], "none are set on loopback"
    assert paths["/admin/rollouts"]["put"]["security"] == [{"adminToken": []}]
    assert "security" not in paths["/health"]["get"]
