"""What a machine lacks is skipped, or fails where it was promised."""

from pathlib import Path

import needs
import pytest


@pytest.mark.parametrize(
    ("promised", "outcome"),
    [("", pytest.skip.Exception), ("test,browser", pytest.skip.Exception), ("data,test", pytest.fail.Exception)],
)
@pytest.mark.parametrize(
    ("data", "said"), [(needs.mnist, "that holds MNIST/raw"), (needs.svhn, "that holds SVHN/train")]
)
def test_absent_data_fail_where_they_were_promised(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data, said, promised, outcome
):
    monkeypatch.setenv("HSAL_TESTS_REQUIRE", promised)
    with pytest.raises(outcome, match=f"set HSAL_DATA to the folder {said}"):
        data(tmp_path)


@pytest.mark.parametrize("promised", [None, "data"])
def test_an_absent_module_is_skipped_where_it_was_not_promised(monkeypatch: pytest.MonkeyPatch, promised: str | None):
    monkeypatch.delenv("HSAL_TESTS_REQUIRE", raising=False)
    if promised:
        monkeypatch.setenv("HSAL_TESTS_REQUIRE", promised)
    with pytest.raises(pytest.skip.Exception, match="get it"):
        needs.module("no_such_module", "browser", "get it")


def test_a_promised_module_that_is_absent_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HSAL_TESTS_REQUIRE", "test,browser")
    with pytest.raises(pytest.fail.Exception, match="promises browser: get it"):
        needs.module("no_such_module", "browser", "get it")
    assert needs.module("pytest", "browser", "get it") is pytest


def test_an_unknown_promise_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HSAL_TESTS_REQUIRE", "1")
    with pytest.raises(
        pytest.UsageError, match="Expected HSAL_TESTS_REQUIRE of data, test, browser, rllib, recipes; got 1"
    ):
        needs.lack("data", "get it")
