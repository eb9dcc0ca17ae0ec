"""Processes find each other, or say in one sentence why not; here they are threads."""

import socket
import threading
import time

import pytest

from rnnjax.cli.rendezvous import join, parse_address
from rnnjax.fit.processes import ALONE, Clock, Crew, OtherProcessError

SAME = {"rnnjax": "1", "jax": "2"}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def in_threads(*works):
    """What every work returned, or raised."""
    found = [None] * len(works)

    def run(index):
        try:
            found[index] = works[index]()
        except Exception as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def meet(*calls, wait=20.0):
    address = f"127.0.0.1:{free_port()}"
    return in_threads(*(lambda call=call: join(address, call[0], call[1], wait, call[2]) for call in calls))


def disconnect(groups):
    for group in groups:
        for peer in group._peers.values():
            peer.socket.close()


def test_an_address():
    assert parse_address("10.0.0.1:1234") == ("10.0.0.1", 1234)
    assert parse_address("[::1]:80") == ("::1", 80)
    for wrong in ("host", "host:", ":80", "host:0", "host:65536", "a b:80", "http://host:80", "::1:80"):
        assert parse_address(wrong) is None, wrong


def test_one_that_ends_is_known_to_all():
    groups = meet((3, 0, SAME), (3, 1, SAME), (3, 2, SAME))
    assert [group.index for group in groups] == [0, 1, 2]
    heard, all_heard = {}, threading.Semaphore(0)
    for group in groups[:2]:

        def end(sentence, code, index=group.index):
            heard[index] = sentence, code
            all_heard.release()

        group.watch(end)
    groups[2].leave("the disk is full", 2)
    for _ in range(2):
        assert all_heard.acquire(timeout=20)
    disconnect(groups)
    assert heard == dict.fromkeys((0, 1), ("process 2: the disk is full", 2))


def test_one_that_is_killed_is_known_to_all():
    groups = meet((3, 0, SAME), (3, 1, SAME), (3, 2, SAME))
    heard, all_heard = {}, threading.Semaphore(0)
    for group in groups[:2]:

        def end(sentence, code, index=group.index):
            heard[index] = sentence, code
            all_heard.release()

        group.watch(end)
    groups[2]._peers[0].socket.close()
    for _ in range(2):
        assert all_heard.acquire(timeout=20)
    disconnect(groups)
    sentence = "process 2 has ended without a word (killed, or its machine is out of reach)"
    assert heard == dict.fromkeys((0, 1), (sentence, 1))


def test_those_that_have_done_their_part_may_go():
    groups, heard = meet((2, 0, SAME), (2, 1, SAME)), []
    for group in groups:
        group.watch(lambda *said: heard.append(said))
    for group in groups:
        group.close()
    for thread in threading.enumerate():
        if thread.name == "rendezvous":
            thread.join(20)
    assert not heard


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        ((2, 1, {"rnnjax": "1", "jax": "3"}), r"the same version of jax, got 2 on process 0 and 3 on process 1 on "),
        ((2, 1, {"rnnjax": "0", "jax": "2"}), r"the same version of rnnjax, got 1 on process 0 and 0 on process 1 on "),
        ((3, 1, SAME), r"the same --processes, got 2 on process 0 and 3 on process 1 on "),
    ],
)
def test_processes_that_differ(second, sentence):
    for error in meet((2, 0, SAME), second):
        with pytest.raises(ValueError, match=sentence):
            raise error


def test_a_number_that_was_given_twice():
    found = meet((3, 0, SAME), (3, 1, SAME), (3, 1, SAME), wait=2.0)
    for error in found:
        with pytest.raises(ValueError, match="a --process of its own, got 1 twice"):
            raise error


def test_a_process_that_does_not_come():
    for error in meet((4, 0, SAME), (4, 2, SAME), wait=1.0):
        with pytest.raises(
            ValueError, match=r"processes 1, 3 of 4 did not call at 127.0.0.1:\d+ within 1 s; start all"
        ):
            raise error


def test_nobody_answers():
    with pytest.raises(ValueError, match=r"process 1 cannot reach process 0 at 127.0.0.1:\d+ within 0.5 s \(Connect"):
        join(f"127.0.0.1:{free_port()}", 2, 1, 0.5, SAME)
    with pytest.raises(ValueError, match=r"process 1 cannot reach process 0 at nowhere.invalid:80 within 0.5 s \("):
        join("nowhere.invalid:80", 2, 1, 0.5, SAME)
    with pytest.raises(ValueError, match=r"the address must be HOST:PORT, as 10.0.0.1:1234, got 'nowhere'"):
        join("nowhere", 2, 1, 0.5, SAME)


def test_a_port_that_is_in_use():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=rf"process 0 cannot listen on port {port} \(.*take another port on all"):
            join(f"127.0.0.1:{port}", 2, 0, 5.0, SAME)


def test_strangers_at_the_port_are_passed_over():
    port = free_port()
    address = f"127.0.0.1:{port}"

    def stranger():
        for _ in range(100):
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                    connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    return connection.recv(100)
            except ConnectionRefusedError:
                time.sleep(0.05)
        return None

    def late():
        time.sleep(0.3)
        return join(address, 2, 1, 20.0, SAME)

    lead, answer, other = in_threads(lambda: join(address, 2, 0, 20.0, SAME), stranger, late)
    assert answer == b"" and lead.index == 0 and other.index == 1
    disconnect((lead, other))


class Threads:
    """A crew of threads: what `jax.distributed` does for processes."""

    def __init__(self, count):
        self.barrier, self.said = threading.Barrier(count, timeout=20), [None] * count
        threads = self

        class Member(Crew):
            def gather(self, value):
                threads.said[self.index] = value
                threads.barrier.wait()
                found = list(threads.said)
                threads.barrier.wait()
                return found

        self.members = [Member(count, index) for index in range(count)]

    def run(self, work):
        return in_threads(*(lambda member=member: work(member) for member in self.members))


def test_what_the_lead_finds_out():
    assert ALONE.by_lead(lambda: (1, 2)) == (1, 2)
    assert Threads(3).run(lambda member: member.by_lead(lambda: [member.index, 0.1])) == [[0, 0.1]] * 3

    def fails(member):
        return member.by_lead(lambda: 1 // member.index)

    own, *others = Threads(3).run(fails)
    assert isinstance(own, ZeroDivisionError)
    assert [str(error) for error in others] == ["process 0: integer division or modulo by zero"] * 2


def test_what_all_must_do():
    assert Threads(2).run(lambda member: member.together(lambda: member.index)) == [0, 1]

    def fails(member):
        return member.together(lambda: 1 // (1 - member.index))

    other, own = Threads(2).run(fails)
    assert isinstance(own, ZeroDivisionError) and isinstance(other, OtherProcessError)
    assert str(other) == "process 1: integer division or modulo by zero"


def test_clocks_that_differ_decide_the_same():
    """Three clocks of different speeds: every process makes as many updates until the time of process 0 is up."""

    def work(member):
        clock, real, steps, stops = Clock(member), 0.0, 0, []
        clock._preemptible = False
        clock.agree(real)
        while clock.seconds(real) < 10.0:
            for _ in range(4):
                real += (0.1, 0.3, 0.02)[member.index] + (5.0 if steps == 0 else 0.0)  # the first is compiled
                clock.counted(real)
                steps += 1
                if clock.seconds(real) >= 10.0:
                    break
            stops.append(clock.agree(real, stop=member.index == 2 and steps > 20))
        return steps, stops, clock.seconds(real)

    found = Threads(3).run(work)
    assert found[0] == found[1] == found[2]
    steps, stops, seconds = found[0]
    assert 48 <= steps <= 56  # 5 seconds and 10 updates a second
    assert stops == [False] * 5 + [True] * (len(stops) - 5)
    assert 10.0 <= seconds < 10.5
