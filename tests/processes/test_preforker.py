"""The door for a loop of one's own: what each signal does to it."""

import re
import signal
from pathlib import Path

import pytest

from tests.conftest import Starter, alive, eventually, title

LOOP = """
    def work(master):
        master.logger.info("worker=%d began", master.slot)
        while master.wait(1):
            pass
        master.logger.info("worker=%d ran the code after the loop", master.slot)

    Preforker(work, workers=2, app_name="loop").run()
    print("run() returned", flush=True)
"""


def test_quit_runs_the_code_after_the_loop(start: Starter) -> None:
    server = start(LOOP).all_ready(2)
    server.saw("began", times=2)
    assert server.quit() == 0
    assert server.count("ran the code after the loop") == 2
    server.saw(r"run\(\) returned")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_term_and_int_do_not_run_the_code_after_the_loop(start: Starter, signum: int) -> None:
    server = start(LOOP).all_ready(2)
    server.signal(signum)
    assert server.wait() == 0
    assert server.count("ran the code after the loop") == 0
    server.saw(r"run\(\) returned")


def test_ttin_makes_three_of_two_and_ttou_ends_one_gracefully(start: Starter) -> None:
    server = start(LOOP).all_ready(2)
    server.signal(signal.SIGTTIN)
    server.saw(r"worker=[123] began", times=3)  # one that is not ready would go first
    server.signal(signal.SIGTTOU)
    server.saw(r"worker=3 ran the code after the loop")
    server.saw(r"worker=3 .*reaped: exit code 0")
    assert len(server.workers()) == 2


def test_ttou_ends_one_after_the_other_until_none_is_left_and_ttin_revives(
    start: Starter,
) -> None:
    server = start(LOOP).all_ready(2)
    for left in (1, 0):
        server.signal(signal.SIGTTOU)
        server.saw("reaped: exit code 0", times=2 - left)
    server.signal(signal.SIGTTIN)
    server.saw("worker=1 began", times=2)
    assert len(server.workers()) == 1


def test_winch_ends_all_gracefully_and_keeps_the_master(start: Starter) -> None:
    server = start(LOOP).all_ready(2)
    server.signal(signal.SIGWINCH)
    server.saw("ran the code after the loop", times=2)
    server.saw("reaped: exit code 0", times=2)
    assert server.workers() == [] and alive(server.pid)
    server.signal(signal.SIGTTIN)
    server.saw("began", times=3)


def test_a_thousand_signals_leave_the_pool_within_its_bounds(start: Starter) -> None:
    server = start(LOOP).all_ready(2)
    for _ in range(1000):
        server.signal(signal.SIGTTOU)
    server.signal(signal.SIGWINCH)
    eventually(lambda: not server.workers())
    # Signals that are pending together are heard in the order of their numbers, TTIN before
    # WINCH: so first all of them must be with the master, and then one that it tells of.
    status = Path(f"/proc/{server.pid}/status")
    eventually(lambda: re.search(r"^ShdPnd:\s*0+$", status.read_text(), re.MULTILINE))
    server.signal(signal.SIGUSR1)
    server.saw("rotation 1, logs reopened")
    server.signal(signal.SIGTTIN)
    eventually(lambda: len(server.workers()) == 1)


def test_no_flood_of_others_pushes_a_quit_out(start: Starter) -> None:
    server = start(LOOP).all_ready(2)
    for _ in range(6000):
        server.signal(signal.SIGUSR1)
    assert server.quit() == 0
    assert server.count("ran the code after the loop") == 2


def test_a_worker_answers_signals_that_are_for_the_master_with_nothing(start: Starter) -> None:
    server = start(LOOP).all_ready(2)
    signums = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTTIN, signal.SIGTTOU)
    for worker in server.workers():
        # All at once, which is more than faulthandler's own signal stack has room for.
        server.signal(signal.SIGSTOP, worker)
        for signum in signums:
            server.signal(signum, worker)
        server.signal(signal.SIGCONT, worker)
    assert server.quit() == 0
    assert server.count("ran the code after the loop") == 2
    assert server.count("forked") == 2


def test_the_master_takes_all_its_signals_at_once_even_with_faulthandler(start: Starter) -> None:
    server = start("    import faulthandler\n    faulthandler.enable()\n" + LOOP).all_ready(2)
    server.signal(signal.SIGSTOP)
    for signum in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU, signal.SIGQUIT):
        server.signal(signum)
    server.signal(signal.SIGCONT)
    assert server.wait() == 0
    assert server.count("Fatal") == 0


def test_a_worker_told_to_quit_by_its_pid_finishes_and_is_replaced(start: Starter) -> None:
    server = start(LOOP).all_ready(2)
    server.saw("began", times=2)
    server.signal(signal.SIGQUIT, server.workers()[0])
    server.saw("ran the code after the loop")
    server.saw("began", times=3)


def test_a_bare_loop_lives_as_long_as_it_asks(start: Starter) -> None:
    server = start("""
        def work(master):
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                assert master.wants_me_alive()
                time.sleep(0.01)
            master.logger.info("outlived the timeout")
            master.wait(60)

        Preforker(work, workers=1, timeout=0.5).run()
    """)
    server.saw("outlived the timeout")
    assert server.count("forked") == 1


def test_within_announces_a_long_silence(start: Starter) -> None:
    server = start("""
        def work(master):
            master.wants_me_alive(within=30)
            time.sleep(2.5)
            master.logger.info("slept longer than the timeout")
            master.wait(60)

        Preforker(work, workers=1, timeout=1).run()
    """)
    server.saw("slept longer than the timeout")
    assert server.count("forked") == 1


def test_retire_ends_one_worker_and_makes_another(start: Starter) -> None:
    server = start("""
        def work(master):
            first = not os.path.exists("been-here")
            open("been-here", "w").close()
            master.wait(1.1)
            if first:
                master.retire()
                master.logger.info("after retire: %s %s", master.wants_me_alive(), master.wait(9))
                return
            master.logger.info("the successor lives")
            master.wait(60)

        os.chdir(os.path.dirname(__file__))
        Preforker(work, workers=1).run()
    """)
    server.saw("after retire: False False")
    server.saw("the successor lives")
    assert server.count("ERROR|WARNING") == 0


def test_asking_costs_little_and_false_is_final(start: Starter) -> None:
    server = start("""
        def work(master):
            for _ in range(100_000):
                master.wants_me_alive()
            master.logger.info("asked often")
            while master.wants_me_alive():
                time.sleep(0.01)
            master.logger.info("then: %s", {master.wants_me_alive() for _ in range(1000)})

        Preforker(work, workers=1).run()
    """)
    server.saw("asked often")
    server.quit()
    server.saw(r"then: \{False\}")


def test_the_titles_show_who_is_who(start: Starter) -> None:
    server = start(LOOP).all_ready(2)
    assert title(server.pid) == "loop master"
    assert sorted(map(title, server.workers())) == ["loop worker 1", "loop worker 2"]


def test_shutdown_in_a_worker_stops_everything(start: Starter) -> None:
    server = start("""
        def work(master):
            if master.slot == 1:
                preforker.shutdown()
            while master.wait(1):
                pass
            master.logger.info("worker=%d finished", master.slot)

        preforker = Preforker(work, workers=2)
        preforker.run()
    """)
    assert server.wait() == 0
    server.saw("worker=1 finished")


def test_the_master_handle_tells_who_it_is(start: Starter) -> None:
    server = start("""
        def work(master):
            assert current_master() is master
            assert master.pid == os.getppid()
            master.logger.info("%r", master)
            master.wait(60)

        try:
            current_master()
        except RuntimeError as error:
            print(error, flush=True)
        Preforker(work, workers=1).run()
    """)
    server.saw("in a worker process only")
    server.saw(r"<MasterHandle pid=\d+, in worker=1 pid=\d+>")


def test_an_exit_code_of_ones_own_is_told(start: Starter) -> None:
    server = start("""
        def work(master):
            master.wait(1.1)
            sys.exit(7 if master.slot == 1 else "the shop is closed")

        Preforker(work, workers=2).run()
    """)
    server.expect_error("exit code [71]")
    server.saw("worker=1 .*reaped: exit code 7")
    server.saw("worker=2 .*reaped: exit code 1")
    server.saw("the shop is closed")


def test_without_listeners_there_is_nothing_to_accept_from(start: Starter) -> None:
    server = start("""
        Preforker(lambda master: next(master.connections()), workers=1).run()
    """)
    server.expect_error("reaped", "Traceback")
    server.saw(r"RuntimeError: there is nothing to accept from: give Preforker\(\.\.\., listen=")


def test_the_accept_loop_serves_its_listeners_and_ends_gracefully(start: Starter) -> None:
    server = start("""
        def work(master):
            for connection, peer in master.connections():
                with connection:
                    connection.sendall(connection.recv(100).upper())
            master.logger.info("left the accept loop")

        Preforker(work, workers=2, listen=["127.0.0.1:0", "unix:" + __file__ + ".sock"]).run()
    """).ready()
    assert server.ask(b"hello") == b"HELLO"
    server.quit()
    assert server.count("left the accept loop") == 2


def test_it_can_run_again_and_each_run_is_waited_for_anew(start: Starter) -> None:
    server = start("""
        def work(master):
            if os.path.exists("second"):
                time.sleep(0.3)
            master.wait(60)

        def slow(master):
            if os.path.exists("second"):
                time.sleep(0.3)

        os.chdir(os.path.dirname(__file__))
        preforker = Preforker(work, workers=1, after_fork=slow)
        for attempt in (1, 2):
            thread = threading.Thread(target=preforker.run)
            thread.start()
            while not preforker._remote._thread:
                time.sleep(0.001)
            began = time.monotonic()
            assert preforker.wait_ready(20)
            print("ready after %.1fs" % (time.monotonic() - began), flush=True)
            preforker.shutdown()
            preforker.shutdown()  # what is over stays over, and is no order for the next run
            thread.join()
            open("second", "w").close()
        print("ran twice", flush=True)
    """)
    server.saw("ran twice")
    second = server.saw(r"ready after (.*)s", times=2)[1]
    assert float(second[1]) >= 0.3


def test_whoever_waits_is_told_when_the_start_fails(start: Starter) -> None:
    server = start("""
        blocker = socket.create_server(("127.0.0.1", 0))
        preforker = Preforker(lambda master: None, listen=blocker.getsockname())
        threading.excepthook = lambda args: os.write(1, f"raised {args.exc_value}\\n".encode())
        threading.Thread(target=preforker.run).start()
        os.write(1, f"ready: {preforker.wait_ready(20)}\\n".encode())
        preforker.shutdown()
        blocker.close()
    """)
    server.saw("ready: False")
    server.saw("raised cannot listen on 127.0.0.1:.* in use .is another server running there")
    assert server.wait() == 0


def test_a_server_started_with_nohup_stays_when_the_terminal_goes(start: Starter) -> None:
    server = start("    signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + LOOP).all_ready(2)
    server.signal(signal.SIGHUP)
    server.signal(signal.SIGTTIN)
    server.saw("worker=3 began")
    assert server.count("SIGHUP") == 0
