"""The path of a scoreboard, by which the command finds it where the kernel hides descriptors."""

import os
from pathlib import Path

from prefork_server.scoreboard import PID, Scoreboard, path_of


def test_what_a_dead_process_with_this_number_has_left_is_removed_by_each_server() -> None:
    """The command would take it for the scoreboard of the living one."""
    left = Path(path_of(os.getpid()))
    left.write_bytes(b"left")
    board = Scoreboard(1)
    assert board.get(0, PID) == os.getpid()
    assert not left.exists()
    board.close()
