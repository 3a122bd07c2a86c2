"""What is a secret in a configuration, and what only sounds like one."""

from __future__ import annotations

import pytest

from sidestep.client import ConfigurationError, HParams, connect
from sidestep.client.plain import flat_config, plain_config
from sidestep.client.values import EmitContext
from sidestep.client.veil import HIDDEN

KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("api_key", "x"),
        ("wandb_api_key", KEY),
        ("WANDB_API_KEY", KEY),
        ("wandbApiKey", KEY),
        ("openai.apikey", "x"),
        ("password", "hunter2"),
        ("db-password", b"hunter2"),
        ("DB_PASSWD", "x"),
        ("client_secret", "x"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("hf_token", "hf_" + "aBcDeFgHiJ" * 3),
        ("auth_token", "x"),
        ("credentials", {"user": "me", "value": "x"}),
        ("wandb_key", KEY),
    ],
)
def test_a_secret_is_hidden(name: str, value: object) -> None:
    assert plain_config({"a": {name: value}, "lr": 0.1}) == {"a": {name: HIDDEN}, "lr": 0.1}
    assert flat_config({"a": {name: value}}) == {f"a/{name}": HIDDEN}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 512),
        ("num_token", 197),
        ("cls_token", True),
        ("mask_token", "<mask>"),
        ("pad_token", "<|reserved_special_token_250|>"),
        ("tokenizer", "sentencepiece-32k-uncased-v2"),
        ("sort_key", "name"),
        ("query_key", "attention_query_projection_key"),
        ("key", "image"),
        ("keys", ["a", "b"]),
        ("password", ""),
        ("token", None),
        ("secretary", "x"),
        ("pass", 3),
    ],
)
def test_what_only_sounds_so_is_left_alone(name: str, value: object) -> None:
    assert plain_config({name: value}) == {name: value}


def test_what_the_environment_keeps_secret_is_hidden_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    config = {"argv": ["train.py", f"--wandb={KEY}"], KEY: 1, "raw": KEY.encode(), "n": 3}
    found = plain_config(config)
    assert found == {"argv": ["train.py", f"--wandb={HIDDEN}"], HIDDEN: 1, "raw": HIDDEN, "n": 3}


def test_who_logs_in_is_not_in_an_address() -> None:
    found = plain_config({"url": "postgres://me:hunter2@host/db", "mail": "me@host"})
    assert found == {"url": f"postgres://{HIDDEN}@host/db", "mail": "me@host"}


def test_hyperparameters_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "aBcDeFgHiJ" * 3)
    given = {"api_key": "x", "note": "hf_" + "aBcDeFgHiJ" * 3, "lr": 0.1}
    info = HParams(given).prepare(EmitContext(0, {})).info
    assert info["hparams"] == {"api_key": HIDDEN, "note": HIDDEN, "lr": 0.1}


def test_a_key_for_wandb_is_refused_without_repeating_it() -> None:
    with pytest.raises(ConfigurationError, match="WANDB_API_KEY") as caught:
        connect("run", wandb={"project": "p", "api_key": KEY})
    assert KEY not in str(caught.value)
