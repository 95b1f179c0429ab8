"""tools/conformance.py makes a page that says what the tests with real peers say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.build

ROOT = Path(__file__).resolve().parent.parent


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("conformance", ROOT / "tools/conformance.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["conformance"] = module
    spec.loader.exec_module(module)
    return module


conformance = load()

SHARED = """
import pytest
@pytest.fixture(params=["uring", "epoll"])
def backend(request): ...
@pytest.fixture(params=["otp25", "otp28"])
def otp(request): ...
@pytest.fixture
def beam(otp): ...
@pytest.fixture
def elixir(): ...
"""
TESTS = '''
"""Calls, both ways.

And more of it."""
import pytest
@pytest.fixture
def node(backend): ...
def test_beam_calls_python(node, beam):
    """With a reply."""
def test_elixir_calls(elixir): ...
@pytest.mark.slow
def test_it_goes_on(backend): peers.otp28()
def helper(): ...
'''


def test_page_has_a_line_for_each_test_with_its_peers_and_backends() -> None:
    text = conformance.page({"test_some_calls": TESTS}, {"conftest": SHARED})
    assert text.startswith("# ")
    assert "3 behaviours." in text
    body = text[text.index("## ") :]
    assert body == (
        "## Some calls\n\nCalls, both ways. And more of it.\n\n"
        "- BEAM calls Python. With a reply. *(OTP 25, OTP 28; both backends)*\n"
        "- Elixir calls. *(Elixir)*\n"
        "- It goes on. *(OTP 28; both backends; long run)*\n"
    )
