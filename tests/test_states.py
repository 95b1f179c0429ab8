"""The state diagram of the handshake is what its table says."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.build

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def states() -> Any:
    spec = importlib.util.spec_from_file_location("states", ROOT / "tools" / "states.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["states"] = module
    spec.loader.exec_module(module)
    return module


def test_every_step_of_the_table_is_in_the_diagram(states: Any) -> None:
    steps = states.steps_of(states.TABLE.read_text())
    assert ("I_START", "CALL_START", "I_STATUS") in steps
    assert ("A_CLAIM", "CALL_ACCEPT", "CONNECTED") in steps
    assert len(steps) == len(set(steps))
    text = states.diagram(steps)
    assert re.search(r"^start +--\[ start\(\) \]--> status$", text, re.MULTILINE)
    for state, what, after in steps:
        assert state[2:].lower() in text
        assert states.shown(what) in text
        assert after.lower().removeprefix("i_").removeprefix("a_") in text


def test_table_in_another_form_is_told(states: Any) -> None:
    with pytest.raises(states.TableError, match="no table"):
        states.steps_of("int steps;")
    broken = states.TABLE.read_text().replace("[TM_HS_IN_ACK] =", "[1 + TM_HS_IN_ACK] =")
    with pytest.raises(states.TableError, match="not understood"):
        states.steps_of(broken)


def test_section_of_the_page_is_replaced_between_its_markers(
    states: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "ARCHITECTURE.md"
    monkeypatch.setattr(states, "PAGE", page)
    page.write_text("before\n")
    assert states.main(["--check"]) == 1
    assert states.main(["--write"]) == 1
    page.write_text(f"before\n{states.BEGIN}\nstale words\n{states.END}\nafter\n")
    assert states.main(["--check"]) == 1
    assert states.main(["--write"]) == 0
    assert states.main(["--check"]) == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale words" not in text
