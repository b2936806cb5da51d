"""The pid files of real servers."""

import os
import re
import signal
from pathlib import Path

from tests.conftest import Starter, eventually


def test_of_twenty_that_start_together_one_runs_and_the_others_name_it(
    start: Starter, tmp_path: Path
) -> None:
    program = """
        def work(master):
            while master.wait(60): pass
        try:
            Preforker(work, workers=1, pid_path="../same.pid").run()
        except BootError as error:
            print("refused:", error)
            sys.exit(3)
    """
    starters = []
    for n in range(20):
        (tmp_path / str(n)).mkdir()
        starters.append(Starter(tmp_path / str(n)))
    masters = [starter(program) for starter in starters]
    try:
        eventually(lambda: sum(m.process.poll() is not None for m in masters) == 19)
        (winner,) = [m for m in masters if m.process.poll() is None]
        winner.ready()
        assert (tmp_path / "same.pid").read_text() == f"{winner.pid}\n"
        for loser in masters:
            if loser is not winner:
                assert loser.wait() == 3
                loser.saw(f"refused: already running: pid {winner.pid} holds")
        assert winner.quit() == 0
    finally:
        for master in masters:
            master.finish()
    assert not (tmp_path / "same.pid").exists()


def test_a_stop_during_the_boot_leaves_no_file_and_nobody(start: Starter, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "boot")
    server = start("""
        def after_fork(master):
            print("booting", master.slot)
            with open("boot") as gate: gate.read()
        Preforker(lambda master: None, workers=3, after_fork=after_fork).run()
    """)
    server.saw("booting 1")
    assert (tmp_path / "preforker.pid").exists()
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert not (tmp_path / "preforker.pid").exists()


def test_a_second_signal_at_the_very_end_leaves_no_file(start: Starter, tmp_path: Path) -> None:
    server = start("""
        from prefork_server.signals import Inbox
        # As soon as signals have their default actions again, another one comes.
        Inbox.close = lambda self: os.kill(os.getpid(), signal.SIGTERM)
        def work(master):
            while master.wait(60): pass
        Preforker(work, workers=1).run()
    """).ready()
    assert (tmp_path / "preforker.pid").exists()
    server.signal(signal.SIGTERM)
    assert server.wait() == -signal.SIGTERM
    assert not (tmp_path / "preforker.pid").exists()


def test_off_the_main_thread_there_is_no_pid_file(start: Starter, tmp_path: Path) -> None:
    server = start("""
        def work(master):
            while master.wait(60): pass
        preforker = Preforker(work, workers=1)
        thread = threading.Thread(target=preforker.run)
        thread.start()
        preforker.wait_ready()
        print("files:", *os.listdir("."))
        preforker.shutdown()
        thread.join()
    """)
    assert not re.search("pid", server.saw("files: (.*)")[0][1])
