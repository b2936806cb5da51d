"""Privileges: what is refused before anything is forked, and a system call that did nothing."""

import os
import pwd

import pytest

from prefork_server import ConfigError, Settings
from prefork_server.privileges import Identity, identity_of

NOBODY = pwd.getpwnam("nobody")


@pytest.mark.parametrize(
    ("identity", "sentence"),
    [
        (Identity(None, 8, (8,), None), "the groups are not those of"),
        (Identity(7, None, (), None), "the user is not that of"),
    ],
)
def test_a_system_call_that_did_nothing_is_found_out(
    monkeypatch: pytest.MonkeyPatch, identity: Identity, sentence: str
) -> None:
    for name in ("setgroups", "setresgid", "setresuid"):
        monkeypatch.setattr(os, name, lambda *_: None)
    with pytest.raises(RuntimeError, match=sentence):
        identity.assume()


def test_privileges_that_could_be_had_again_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("setgroups", "setresgid", "setresuid", "setuid"):
        monkeypatch.setattr(os, name, lambda *_: None)
    monkeypatch.setattr(os, "getresuid", lambda: (7, 7, 7))
    monkeypatch.setattr(os, "getresgid", lambda: (8, 8, 8))
    monkeypatch.setattr(os, "getgroups", lambda: [8])
    with pytest.raises(RuntimeError, match="could be had again"):
        Identity(7, 8, (8,), None).assume()


def test_only_root_may_name_another_than_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY.pw_uid)
    monkeypatch.setattr(os, "getresuid", lambda: (NOBODY.pw_uid,) * 3)
    monkeypatch.setattr(os, "getresgid", lambda: (NOBODY.pw_gid,) * 3)
    assert identity_of(Settings(user="nobody")) is None
    assert identity_of(Settings(user="nobody", umask=7)) == Identity(None, None, (), 7)
    for wrong in (Settings(user="root"), Settings(group="root"), Settings(user=0)):
        with pytest.raises(ConfigError, match="only root can become somebody else"):
            identity_of(wrong)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (Settings(user="no-such-user"), "there is no user 'no-such-user'"),
        (Settings(group="no-such-group"), "there is no group 'no-such-group'"),
    ],
)
def test_who_does_not_exist_is_named_before_anything_is_forked(
    settings: Settings, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        identity_of(settings)


def test_nobody_is_named_by_default() -> None:
    assert identity_of(Settings()) is None
