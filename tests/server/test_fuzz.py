"""Whatever is asked, the server answers as its own description says, and never with a defect of its own."""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.server.conftest import alphabet, running

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def api():
    """The description of a running server, where `model` can only be the one there is: else nothing else is tried."""
    with running(alphabet(), max_tokens=50) as url:
        description = httpx.get(f"{url}/openapi.json").json()
        description["components"]["schemas"]["CompletionRequest"]["properties"]["model"]["enum"] = ["m"]
        schema = schemathesis.openapi.from_dict(description)
        schema.config.update(base_url=url)
        yield schema


def fuzz(api, operation, mode, count):
    """Ask so many times, the same each time: as the description says, or just not so."""
    path, method = operation

    @settings(
        max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=api[path][method].as_strategy(generation_mode=mode))
    def asked(case):
        case.call_and_validate(checks=CHECKS)

    asked()


OPERATIONS = [
    ("/v1/completions", "POST"),
    ("/tokenize", "POST"),
    ("/detokenize", "POST"),
    ("/tokenizer_info", "GET"),
    ("/v1/models", "GET"),
    ("/v1/models/{id}", "GET"),
    ("/health", "GET"),
    ("/metrics", "GET"),
]


def test_every_operation_is_asked(api):
    assert {(each.ok().path, each.ok().method.upper()) for each in api.get_all_operations()} == set(OPERATIONS)


@pytest.mark.parametrize("mode", GenerationMode)
def test_a_few_hundred_requests(api, mode):
    fuzz(api, OPERATIONS[0], mode, 150)


@pytest.mark.parametrize("operation", OPERATIONS[1:])
def test_a_few_requests(api, operation):
    fuzz(api, operation, GenerationMode.POSITIVE, 20)


@pytest.mark.parametrize("operation", OPERATIONS[1:3])
def test_a_few_wrong_requests(api, operation):
    fuzz(api, operation, GenerationMode.NEGATIVE, 50)


@pytest.mark.slow
@pytest.mark.parametrize("mode", GenerationMode)
def test_many_more_requests(api, mode):
    fuzz(api, OPERATIONS[0], mode, 3000)
