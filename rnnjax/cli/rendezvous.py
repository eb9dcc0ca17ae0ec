r"""How processes of a training find each other, and learn at once that one of them has ended.

JAX's own runtime needs minutes to notice that a process is missing, and ends the program with a stack trace. So before
it starts, process 0 listens at the address that all were given, the others call, and versions and numbers are compared:
whatever is wrong is one sentence, on every process, within the time that was given. The connections stay. A process
that ends says why, or its connection breaks; either way the others know within the second, where a collective
operation would wait. And each says every few seconds that it is alive, so that one which was stopped, or whose machine
is gone, is missed after `SILENCE`.

What is sent are lines of JSON, over connections that are as open as those of JAX itself: for a network that is trusted.
"""

from __future__ import annotations

import contextlib
import json
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Group", "join", "parse_address"]

_MAX_LINE = 1 << 16
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):([0-9]{1,5})")
_RETRY = 0.2  # seconds
SILENCE = 30.0  # seconds after which a process that says nothing is lost; each says something six times as often


def parse_address(text: str) -> tuple[str, int] | None:
    """Host and port of ``HOST:PORT``; None for what is no address.

    >>> parse_address("10.0.0.1:1234"), parse_address("[::1]:80"), parse_address("book.txt")
    (('10.0.0.1', 1234), ('::1', 80), None)
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match[2]) < 65536:
        return None
    return match[1].strip("[]"), int(match[2])


class _Peer:
    """A connection, line by line."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket, self.rest = connection, b""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # A machine that is gone answers nothing: that is known after 20 seconds.
        for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, message: dict[str, Any]) -> None:
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    @property
    def has_more(self) -> bool:
        """Whether a message is there already."""
        return b"\n" in self.rest

    def receive(self, deadline: float) -> dict[str, Any] | None:
        """The next message; None where the other side has ended, or sent something else.

        Raises:
            TimeoutError: if there is none before the deadline.
        """
        while b"\n" not in self.rest:
            self.socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                data = self.socket.recv(4096)
            except TimeoutError:
                raise
            except OSError:
                return None
            self.rest += data
            if not data or len(self.rest) > _MAX_LINE:
                return None
        line, self.rest = self.rest.split(b"\n", 1)
        with contextlib.suppress(ValueError, RecursionError):
            message = json.loads(line)
            if isinstance(message, dict):
                return message
        return None


class Group:
    """The connections of a process to the others: of process 0 to all, of the others to process 0.

    Attributes:
        index: of this process.
        count: of all.
    """

    def __init__(self, index: int, count: int, peers: dict[int, _Peer]) -> None:
        self.index, self.count, self._peers = index, count, peers
        self._ending = threading.Lock()
        self._watched = self._left = False

    def watch(self, end: Callable[[str, int], None]) -> None:
        """From now on ``end(sentence, code)`` is called, by a thread, when another process ends before `close`."""
        self._watched = True
        threading.Thread(target=self._watch, args=(end,), name="rendezvous", daemon=True).start()

    def _watch(self, end: Callable[[str, int], None]) -> None:
        there, silence = dict(self._peers), SILENCE
        heard, spoken = dict.fromkeys(there, time.monotonic()), 0.0
        with selectors.DefaultSelector() as selector:
            for index, peer in there.items():
                selector.register(peer.socket, selectors.EVENT_READ, index)
            while there:
                if time.monotonic() >= spoken + silence / 6 and not self._left:
                    spoken = time.monotonic()
                    self._tell({"alive": True})
                for key, _ in selector.select(silence / 6):
                    index, last = key.data, self._messages(key.data)
                    heard[index] = time.monotonic()
                    if last is None or "alive" in last:
                        continue
                    if last.get("left") or (self._left and "gone" in last):
                        selector.unregister(key.fileobj)
                        del there[index]
                        continue
                    why = f"process {index} has ended without a word (killed, or its machine is out of reach)"
                    self._end(end, str(last.get("ended", why)), int(last.get("code", 1)))
                    return
                # What has come meanwhile was read first: this process may have been stopped itself.
                for index in there.keys() & heard.keys() if not self._left else ():
                    if time.monotonic() > heard[index] + silence and time.monotonic() < spoken + silence:
                        why = f"process {index} has not answered for {silence:g} seconds (stopped, or out of reach)"
                        self._end(end, why, 1)
                        return
        self._disconnect()

    def _messages(self, index: int) -> dict[str, Any] | None:
        """The last of the messages that are there, or the first that is not about being alive.

        Returns:
            None for half a message; ``{"gone": True}`` where the connection has ended.
        """
        peer = self._peers[index]
        message: dict[str, Any] = {"alive": True}
        while "alive" in message:
            try:
                found = peer.receive(time.monotonic() + 0.05)
            except TimeoutError:
                return None
            message = {"gone": True} if found is None else found
            if not peer.has_more:
                break
        return message

    def _end(self, end: Callable[[str, int], None], sentence: str, code: int) -> None:
        if self._ending.acquire(blocking=False):
            self._tell({"ended": sentence[:1000], "code": code})
            end(sentence[:1000], code)

    def leave(self, sentence: str, code: int) -> None:
        """Tells the others why this process ends; waits for ever if it ends already for another reason."""
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()
        self._tell({"ended": f"process {self.index}: {sentence}", "code": code})

    def close(self) -> None:
        """Tells the others that this process has done its part; it need not hear of them any more."""
        self._left = True
        self._tell({"left": True})
        if not self._watched:
            self._disconnect()

    def _disconnect(self) -> None:
        for peer in self._peers.values():
            peer.socket.close()

    def _tell(self, message: dict[str, Any]) -> None:
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.send(message)


def join(address: str, count: int, index: int, wait: float, versions: dict[str, str]) -> Group:
    """Meets the other processes.

    Args:
        address: ``HOST:PORT`` of process 0, the same for all.
        count: of the processes.
        index: of this one, from 0.
        wait: seconds for all of them to come.
        versions: by name, of what must be the same on all machines.

    Raises:
        ValueError: if the address is wrong or taken, a process is missing, or one is of another version or was given
            other numbers; on all processes that have come.
    """
    found = parse_address(address)
    if found is None:
        raise ValueError(f"--distributed: the address must be HOST:PORT, as 10.0.0.1:1234, got {address!r}.")
    hello = {"process": index, "processes": count, "versions": versions, "host": socket.gethostname()}
    deadline = time.monotonic() + wait
    if index == 0:
        return Group(0, count, _answer(address, found[1], hello, wait, deadline))
    return Group(index, count, {0: _call(address, found, hello, wait, deadline)})


def _answer(address: str, port: int, hello: dict[str, Any], wait: float, deadline: float) -> dict[int, _Peer]:
    """Process 0: waits until all others have called."""
    peers: dict[int, _Peer] = {}
    count = hello["processes"]

    def refuse(sentence: str) -> ValueError:
        for peer in peers.values():
            with contextlib.suppress(OSError), peer.socket:
                peer.send({"stop": sentence})
        return ValueError(sentence)

    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        server = socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=max(64, count))
    except OSError as error:
        raise ValueError(
            f"--distributed: process 0 cannot listen on port {port} ({error.strerror or error}); take another port on "
            "all processes, or end the program that has it."
        ) from error
    with server:
        while len(peers) < count - 1:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                missing = [str(k) for k in range(1, count) if k not in peers]
                more = f" and {len(missing) - 20:,} others" if len(missing) > 20 else ""
                names = f"process {missing[0]}" if len(missing) == 1 else f"processes {', '.join(missing[:20])}{more}"
                raise refuse(
                    f"--distributed: {names} of {count} did not call at {address} within {wait:g} s; start all of "
                    "them, with the same address, or give them more time with --wait."
                ) from None
            peer, said = _Peer(connection), None
            with contextlib.suppress(TimeoutError):  # of one that calls and says nothing
                said = peer.receive(min(deadline, time.monotonic() + 10.0))
            number = said.get("process") if said else None
            if said is None or not isinstance(number, int) or not isinstance(said.get("versions"), dict):
                connection.close()  # somebody else, who calls at every port
                continue
            if problem := _problem(hello, said, peers):
                peers[number if number not in peers else -1] = peer
                raise refuse(f"--distributed: {problem}.")
            peers[number] = peer
    for peer in peers.values():
        with contextlib.suppress(OSError):
            peer.send({"go": True})
    return peers


def _problem(hello: dict[str, Any], said: dict[str, Any], peers: dict[int, _Peer]) -> str:
    number = said["process"]
    who = f"process {number} on {str(said.get('host'))[:60]}"
    if said.get("processes") != hello["processes"]:
        return (
            f"all must be given the same --processes, got {hello['processes']} on process 0 and "
            f"{said.get('processes')} on {who}"
        )
    if not 0 < number < hello["processes"] or number in peers:
        return f"each must be given a --process of its own, got {number} twice"
    for name, version in hello["versions"].items():
        if said["versions"].get(name) != version:
            return (
                f"all must run the same version of {name}, got {version} on process 0 and "
                f"{str(said['versions'].get(name))[:40]} on {who}; install the same on all machines"
            )
    return ""


def _call(address: str, target: tuple[str, int], hello: dict[str, Any], wait: float, deadline: float) -> _Peer:
    """The others: call process 0 until it answers."""
    why = ""
    while True:
        with contextlib.ExitStack() as stack:
            try:
                seconds = max(0.1, min(10.0, deadline - time.monotonic()))
                peer = _Peer(stack.enter_context(socket.create_connection(target, timeout=seconds)))
                peer.send(hello)
                said = peer.receive(deadline + 5.0)  # process 0 tells who is missing a moment later
            except TimeoutError:
                why = "it does not answer"
            except OSError as error:
                why = error.strerror or str(error)
            else:
                if said is not None and said.get("go"):
                    stack.pop_all()
                    return peer
                if said is not None and "stop" in said:
                    raise ValueError(str(said["stop"])[:1000])
                why = "what answers there is no process 0 of this program, or it has ended"
        if time.monotonic() + _RETRY > deadline:
            raise ValueError(
                f"--distributed: process {hello['process']} cannot reach process 0 at {address} within {wait:g} s "
                f"({why}); start process 0, and give all of them its address."
            )
        time.sleep(_RETRY)
