"""Settings are checked at the door, and an error says the value, the rule and the cure."""

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from prefork_server import ConfigError, Preforker, PreforkTCPServer, Settings
from prefork_server.settings import settle


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"workers": 0}, "workers must be a whole number, 1 to 2048, not 0"),
        ({"workers": -1}, "workers must be a whole number, 1 to 2048, not -1"),
        ({"workers": 10**9}, "workers must be a whole number, 1 to 2048, not 1000000000"),
        ({"workers": "4"}, "workers must be a whole number, 1 to 2048, not '4'"),
        ({"workers": True}, "workers must be a whole number, 1 to 2048, not True"),
        ({"workers": None}, "workers must be a whole number, 1 to 2048, not None"),
        ({"workers": 2.5}, "workers must be a whole number, 1 to 2048, not 2.5"),
        ({"workers": float("nan")}, "workers must be a whole number, 1 to 2048, not nan"),
        (
            {"max_workers": 4},
            "max_workers must be a whole number, workers (10) to 2048, or None, not 4",
        ),
        ({"max_workers": 2049}, "or None, not 2049"),
        ({"max_workers": "many"}, "or None, not 'many'"),
        ({"min_spare_workers": 2}, "min_spare_workers is for an adaptive pool: set max_workers"),
        ({"max_spare_workers": 2}, "max_spare_workers is for an adaptive pool: set max_workers"),
        ({"max_workers": 20, "min_spare_workers": 0}, "1 to max_workers (20), or None, not 0"),
        ({"max_workers": 20, "min_spare_workers": 21}, "not 21"),
        (
            {"max_workers": 20, "min_spare_workers": 5, "max_spare_workers": 5},
            "max_spare_workers must be a whole number above min_spare_workers (5), 2048 at most",
        ),
        ({"max_workers": 20, "max_spare_workers": 1}, "above min_spare_workers (1)"),
        ({"timeout": "5s"}, "timeout must be a number of seconds above 0 and at most 31622400"),
        ({"timeout": 0}, "not 0; None means never"),
        ({"timeout": -1}, "not -1; None means never"),
        ({"timeout": True}, "not True; None means never"),
        ({"timeout": float("inf")}, "not inf; None means never"),
        ({"timeout": float("nan")}, "not nan; None means never"),
        ({"client_timeout": 0}, "client_timeout must be a number of seconds above 0"),
        ({"boot_timeout": None}, "boot_timeout must be a number of seconds above 0"),
        ({"graceful_timeout": -0.5}, "graceful_timeout must be a number of seconds above 0"),
        ({"max_requests": -1}, "max_requests must be a whole number, 0 (never) to 115292150460684"),
        ({"max_requests": None}, "not None"),
        ({"max_requests": 10.0}, "not 10.0"),
        ({"max_worker_memory": 0}, "max_worker_memory must be a whole number of bytes, 1 to 1152"),
        ({"max_worker_memory": "1G"}, "or None, not '1G'"),
        ({"app_name": 5}, "app_name must be printable ASCII text, not 5"),
        ({"app_name": "a\nb"}, "app_name must be printable ASCII text, not 'a\\nb'"),
        ({"user": ""}, "user must be a name or a number from 0, not ''"),
        ({"user": -1}, "user must be a name or a number from 0, not -1"),
        ({"group": True}, "group must be a name or a number from 0, not True"),
        ({"umask": "0027"}, "umask must be a number, 0 to 0o777, not '0027'"),
        ({"umask": 0o1000}, "umask must be a number, 0 to 0o777, not 512"),
        ({"umask": 22}, "umask 22 is 0o26: write 0o22 if that is meant"),
        ({"inline": True, "user": "www"}, "user, group and umask are for workers"),
        ({"term": "later"}, "term must be 'now' or 'graceful', not 'later'"),
        ({"gc_freeze": None}, "gc_freeze must be True or False, not None"),
        ({"term": None}, "term must be 'now' or 'graceful', not None"),
        ({"workrs": 4}, "there is no setting workrs: did you mean workers?"),
        ({"time_out": 4}, "there is no setting time_out: did you mean timeout?"),
        ({"xyzzy": 4}, "there is no setting xyzzy: there are workers, max_workers, min_"),
    ],
)
@pytest.mark.parametrize(
    "door",
    [
        lambda **wrong: Preforker(lambda master: None, **wrong),
        lambda **wrong: PreforkTCPServer(("127.0.0.1", 1), lambda *_: None, **wrong),
    ],
    ids=["Preforker", "PreforkTCPServer"],
)
def test_a_wrong_setting_is_one_clear_sentence_before_anything_is_bound(
    door: Callable[..., object], wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        door(**wrong)  # port 1 on a live machine: to bind it would be another error
    assert message in str(error.value)
    assert isinstance(error.value, ValueError)


def test_settings_themselves_refuse_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match="workers must be"):
        Settings(workers=0)
    with pytest.raises(ConfigError, match="there is no setting workrs: did you mean workers"):
        Settings(workrs=4)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="settings must be a Settings object, not 4"):
        settle(4, {})  # type: ignore[arg-type]


def test_settings_are_frozen_and_show_what_was_said() -> None:
    settings = Settings(workers=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.workers = 4  # type: ignore[misc]
    assert repr(settings) == "Settings(workers=3)"
    assert repr(Preforker(print, settings=settings).settings) == (
        "Settings(pid_path='./preforker.pid', timeout=5.0, workers=3)"
    )


def test_settings_that_read_the_same_are_equal() -> None:
    assert Settings(timeout=30) == Settings()
    assert {Settings(timeout=30): "found"}[Settings()] == "found"
    assert Settings(workers=3) != Settings()
    assert dataclasses.asdict(Settings())["timeout"] == 30.0


COPIES: dict[str, Callable[[Settings], Settings]] = {
    "replace": dataclasses.replace,
    "replace twice": lambda s: dataclasses.replace(dataclasses.replace(s, workers=4), workers=3),
    "pickle": lambda s: pickle.loads(pickle.dumps(s)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_says_what_the_first_one_said_and_no_more(way: str) -> None:
    settings = Settings(workers=3, client_timeout=30.0)
    again = COPIES[way](settings)
    assert again == settings
    door = settle(again, {}, timeout=5.0, client_timeout=None, pid_path="x")
    assert (door.workers, door.timeout, door.client_timeout, door.pid_path) == (3, 5, 30, "x")


def test_a_change_is_said_even_if_it_is_to_the_default() -> None:
    changed = dataclasses.replace(Settings(workers=3), timeout=30.0, pid_path=None)
    door = Preforker(print, settings=dataclasses.replace(changed, app_name="x")).settings
    assert (door.workers, door.timeout, door.pid_path, door.app_name) == (3, 30, None, "x")
    with pytest.raises(ConfigError, match="there is no setting workrs: did you mean workers"):
        dataclasses.replace(changed, workrs=4)  # type: ignore[call-arg]


def test_what_was_said_wins_over_the_door_and_keywords_over_both() -> None:
    assert settle(None, {}, timeout=5.0).timeout == 5
    assert settle(Settings(workers=3), {}, timeout=5.0) == Settings(workers=3, timeout=5)
    assert settle(Settings(timeout=30.0), {}, timeout=5.0).timeout == 30
    assert settle(Settings(workers=3), {"workers": 4}).workers == 4
    again = settle(
        settle(Settings(workers=3), {}, timeout=5.0), {}, timeout=7.0, client_timeout=None
    )
    assert (again.workers, again.timeout, again.client_timeout) == (3, 5, None)


def test_the_doors_have_the_defaults_they_say() -> None:
    assert Preforker(lambda master: None).settings == Settings(
        timeout=5.0, pid_path="./preforker.pid"
    )
    named = Preforker(lambda master: None, app_name="ours/mine").settings
    assert named.pid_path == "./ours_mine.pid"
    assert Preforker(lambda master: None, pid_path=None).settings.pid_path is None
    assert Settings() == Settings(
        workers=10, timeout=30, boot_timeout=60, graceful_timeout=30, client_timeout=30, app_name=""
    )
