import pytest
from serve_soak import run


@pytest.mark.slow
def test_half_a_minute_of_changes_mixes_no_answer_and_loses_no_event():
    found = run(25.0)
    assert found["wrong_answers"] == []
    assert found["lost_events"] == found["double_events"] == found["wrong_shadows"] == 0
    assert found["shadows"] > 0
    assert found["answered"] > 10
    assert len(found["releases"]) == 2
