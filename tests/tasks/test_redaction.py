from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tasks.errors import ThawlineError
from tasks.params import TuneParams
from tasks.redaction import redact, redacted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at postgresql://ada:s3cret@db:5432/x!", "at postgresql://ada:***@db:5432/x!"),
        ("https://ada:p@ss/w:rd@host/a", "https://ada:***@host/a"),
        ("https://ghp_abc@github.com/x", "https://***@github.com/x"),
        ("redis://:1234@host", "redis://:***@host"),
        ("GET /x?access_token=abc&page=2 HTTP", "GET /x?access_token=***&page=2 HTTP"),
        ("blob;AccountKey=abc==;Host=h", "blob;AccountKey=***;Host=h"),
        ("'Authorization': 'Bearer abc.def-g'", "'Authorization': 'Bearer ***'"),
        ("authorization: Basic YWJj\nmore", "authorization: Basic ***\nmore"),
    ],
)
def test_secrets_are_known_by_where_they_stand(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_secrets_in_lists_and_objects_are_hidden_too() -> None:
    evidence = {"why": ["at https://ada:s3cret@host/a", 3, None], "key": {"x": "no secret"}}
    hidden = {"why": ["at https://ada:***@host/a", 3, None], "key": {"x": "no secret"}}
    assert redacted(evidence) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/#/experiments by ada@example.org",
        "ssh://git@github.com/x and git@github.com:x/y.git",
        "postgresql://user:$PASSWORD@host/optuna",
        "s3://bucket/key=7/part",
        "12:30 a@b, C:/x@y",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_secrets_are_known_by_their_value(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_TOKEN", "tok-en 1234")
    monkeypatch.setenv("STORE", "mysql://u:inner-9876@h/d")
    monkeypatch.setenv("SOME_KEY", "postgres")  # a word that stands elsewhere too
    monkeypatch.setenv("KEY_FILE", str(tmp_path))
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config.local").write_text(
        "['remote \"x\"']\n    secret_access_key = a/b+c-5555\n    user = somebody-else\n"
    )
    assert redact("a tok-en 1234 b tok-en%201234") == "a *** b ***"
    assert redact("password inner-9876 refused") == "password *** refused"
    assert redact("a/b+c-5555, a%2Fb%2Bc-5555, somebody-else") == "***, ***, somebody-else"
    assert redact(f"postgres in {tmp_path}") == f"postgres in {tmp_path}"


def test_an_error_never_holds_one_however_it_is_shown() -> None:
    error = ThawlineError("cannot reach https://ada:s3cret@host")
    assert "s3cret" not in f"{error} {error!r} {error.args}"


def test_a_password_in_the_parameters_is_refused() -> None:
    assert TuneParams(storage="postgresql://u:$PASSWORD@h/d").storage
    with pytest.raises(ValueError, match=r"write \$NAME in its place"):
        TuneParams(storage="postgresql://u:s3cret@h/d")


def test_what_a_process_prints_is_redacted_also_as_it_dies() -> None:
    code = (
        "import logging, sys\nfrom tasks import redaction\nredaction.install()\n"
        "print('x://u:s3cret@h')\nlogging.warning('y://u:s3cret@h')\nraise SystemExit('z://u:s3cret@h')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "x://u:***@h\n"
    assert done.stderr == "WARNING:root:y://u:***@h\nz://u:***@h\n"
