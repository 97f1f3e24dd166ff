"""Placeholders in commands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import rightbatch as rb
from rightbatch._errors import UsageError
from rightbatch._training.trial import TrialRequest
from rightbatch.integrations.command.template import HIDDEN, Template, hide_secrets


def template(*arguments: str) -> Template:
    return Template.of([sys.executable, *arguments])


def test_known_names_in_braces_are_replaced_wherever_they_are() -> None:
    made = template("t.py", "--set", "optim.batch={batch}", "{batch}", '{"a": {batch}}')
    assert made.filled({"batch": 32})[1:] == [
        "t.py", "--set", "optim.batch=32", "32", '{"a": 32}',
    ]  # fmt: skip


@pytest.mark.parametrize("text", ['{"lr": 0.1}', "${HOME}", "{}", "{batches}", "{{x}}"])
def test_other_braces_stay_as_they_are(text: str) -> None:
    assert template(text).filled({"batch": 1})[1:] == [text]


def test_a_command_without_a_placeholder_is_told_where_to_put_it() -> None:
    with pytest.raises(UsageError, match=r"\{batch\} in the command.*--batch \{batch\}"):
        template("train.py").require("batch", "fit")


def test_a_placeholder_without_a_value_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"\{resume\} has no value"):
        template("{resume}").filled({"batch": 1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a list of arguments"),
        ("python train.py", "a list of arguments"),
        (["no-such-program"], "there is no program"),
        (["train_it.py"], "did you mean `python train_it.py`"),
        (["python train.py"], "without quotes around all of them"),
    ],
)
def test_what_is_no_command_is_refused_with_the_remedy(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Template.of(arguments)


def test_secrets_are_not_shown() -> None:
    secrets = ["swordfish 1", "swordfish-2", "swordfish-3", "swordfish-4"]
    made = template(
        "t.py", "--api-key", secrets[0], f"--token={secrets[1]}", f"wandb_password={secrets[2]}",
        f"http://me:{secrets[3]}@host", "{batch}",
    )  # fmt: skip
    shown = str(made)
    assert "swordfish" not in shown
    assert shown.count(HIDDEN) == 4
    assert shown.endswith("{batch}")


def test_what_is_no_secret_is_shown() -> None:
    made = template("t.py", "--tokenizer", "gpt2", "--max-tokens", "512", "passes=3", "{batch}")
    assert HIDDEN not in str(made)


def test_a_secret_that_the_command_prints_is_hidden() -> None:
    arguments = [
        "t.py",
        "--hub_token",
        "hf_swordfish",
        "http://me:pike-and-eel@host",
        "--pass",
        "9",
    ]
    variables = {"WANDB_API_KEY": "cod-and-haddock", "HOME": "/home/me", "TOKENIZERS": "false-ish"}
    text = "error: 9 hf_swordfish http://me:pike-and-eel@host cod-and-haddock /home/me false-ish"
    shown = hide_secrets(text, arguments, variables)
    assert shown == "error: 9 *** http://me:***@host *** /home/me false-ish"


def test_an_error_of_a_trial_has_no_secret(tmp_path: Path) -> None:
    text = "import sys, torch; print(sys.argv)\nraise ValueError(' '.join(sys.argv))"
    (tmp_path / "script.py").write_text(text)
    script = str(tmp_path / "script.py")
    command = rb.Command([sys.executable, script, "{batch}", "--api-key", "swordfish"])
    failure = command.trial(2, TrialRequest(2)).failure
    assert failure is not None
    assert "swordfish" not in failure.message + failure.traceback
    assert HIDDEN in failure.message and HIDDEN in failure.traceback
