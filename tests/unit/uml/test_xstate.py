"""The library that completes the extended state of a traced process (tests/uml/xstate.c), on real processes.

A process fills its registers with numbers, stops, and says afterwards what it finds. In between its state is read and
written through the library by a tracer that keeps only the first bytes of it, as User-mode Linux does.
"""

import ctypes
import errno
import os
import platform
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.uml import guest

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the state is that of x86-64 processors")

UML = Path(guest.__file__).parent
GETREGSET, SETREGSET, CONT = 0x4204, 0x4205, 7
NT_X86_XSTATE = 0x202
AREA = 16 << 10
"""Bytes of an area that the program prints."""

# The standard format of an XSAVE area.
XMM, IN_USE, HEADER_END = slice(160, 416), 512, 576
AVX, AVX_BIT = slice(576, 832), 1 << 2


class Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Tracer:
    """What ptrace of a library does with the state of a process."""

    def __init__(self, library: str | None) -> None:
        self._ptrace = ctypes.CDLL(library, use_errno=True).ptrace
        self._ptrace.restype = ctypes.c_long

    def get(self, pid: int, length: int) -> bytearray:
        state = bytearray(length)
        got = self._call(GETREGSET, pid, state)
        return state[:got]

    def set(self, pid: int, state: bytearray) -> None:
        self._call(SETREGSET, pid, state)

    def _call(self, request: int, pid: int, state: bytearray) -> int:
        vector = Vector(ctypes.addressof(ctypes.c_char.from_buffer(state)), len(state))
        if self._ptrace(request, pid, ctypes.c_void_p(NT_X86_XSTATE), ctypes.byref(vector)):
            raise OSError(ctypes.get_errno(), "ptrace")
        length: int = vector.length
        return length

    def go_on(self, pid: int) -> None:
        assert self._ptrace(CONT, pid, None, None) == 0


class Process:
    """Stopped, with its registers full."""

    def __init__(self, program: Path, seed: int) -> None:
        self._process = subprocess.Popen([program, "stop", str(seed)], stdout=subprocess.PIPE)
        self.pid = self._process.pid
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        assert os.WSTOPSIG(status) == signal.SIGSTOP

    def registers_after(self, tracer: Tracer) -> tuple[bytearray, bytes]:
        """What it had filled its registers with, and what it found in them when it went on."""
        tracer.go_on(self.pid)
        printed, _ = self._process.communicate(timeout=30)
        assert (self._process.returncode, len(printed)) == (0, 2 * AREA)
        return bytearray(printed[:AREA]), printed[AREA:]

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("xstate")


@pytest.fixture(scope="module")
def tracer(folder: Path) -> Tracer:
    return Tracer(str(guest.preloaded(UML / "xstate.c", folder / "xstate.so")))


@pytest.fixture(scope="module")
def program(folder: Path) -> Path:
    return guest.compiled(UML / "xstate_registers.c", folder / "xstate_registers")


@pytest.fixture
def stopped(program: Path) -> Iterator[Callable[[int], Process]]:
    processes: list[Process] = []

    def start(seed: int) -> Process:
        processes.append(Process(program, seed))
        return processes[-1]

    yield start
    for process in processes:
        process.close()


@contextmanager
def refused(code: int) -> Iterator[None]:
    with pytest.raises(OSError, match="ptrace") as failed:
        yield
    assert failed.value.errno == code


def whole(tracer: Tracer, process: Process) -> int:
    return len(tracer.get(process.pid, 64 << 10))


def registers(area: bytearray | bytes) -> tuple[bytes, bytes]:
    """Those of x87 and SSE, and all that came later. Between them is what the kernel writes there for itself."""
    return bytes(area[32:416]), bytes(area[HEADER_END:])


def need_more_than_sse(tracer: Tracer, process: Process) -> None:
    if whole(tracer, process) == HEADER_END:
        pytest.skip("this processor has nothing beyond SSE")


def test_the_kernel_takes_all_or_nothing(stopped: Callable[[int], Process], tracer: Tracer) -> None:
    """What the library is for."""
    kernel = Tracer(None)
    process = stopped(1)
    need_more_than_sse(tracer, process)
    with refused(errno.EFAULT):
        kernel.set(process.pid, kernel.get(process.pid, whole(tracer, process) - 8))


@pytest.mark.parametrize("kept", [HEADER_END, 704, 832, 2696, 64 << 10])
def test_all_registers_are_there_after_a_part_was_written_back(
    stopped: Callable[[int], Process], tracer: Tracer, kept: int
) -> None:
    """704 ends amid the upper halves of the AVX registers; from 2696 on it is all that most processors have."""
    process = stopped(2)
    tracer.set(process.pid, tracer.get(process.pid, kept))
    filled, after = process.registers_after(tracer)
    assert registers(after) == registers(filled)


@pytest.mark.parametrize("kept", [HEADER_END, 704])
def test_the_caller_decides_on_its_part_and_the_process_on_the_rest(
    stopped: Callable[[int], Process], tracer: Tracer, kept: int
) -> None:
    process = stopped(3)
    need_more_than_sse(tracer, process)
    state = tracer.get(process.pid, kept)
    assert int.from_bytes(state[IN_USE : IN_USE + 8], "little") & AVX_BIT
    state[XMM] = bytes(range(256))
    state[AVX.start :] = bytes(kept - AVX.start)
    state[IN_USE] &= ~AVX_BIT  # as in an area that was read when the AVX registers had not been used yet
    tracer.set(process.pid, state)
    filled, after = process.registers_after(tracer)
    filled[XMM] = bytes(range(256))
    assert registers(after) == registers(filled)


def test_with_the_whole_area_the_caller_decides_on_all(stopped: Callable[[int], Process], tracer: Tracer) -> None:
    process = stopped(4)
    need_more_than_sse(tracer, process)
    state = tracer.get(process.pid, whole(tracer, process))
    state[IN_USE] &= ~AVX_BIT
    tracer.set(process.pid, state)
    filled, after = process.registers_after(tracer)
    filled[AVX] = bytes(256)
    assert registers(after) == registers(filled)


def test_processes_that_take_turns_keep_their_own(stopped: Callable[[int], Process], tracer: Tracer) -> None:
    first, second = stopped(5), stopped(6)
    of_first = tracer.get(first.pid, HEADER_END)
    of_second = tracer.get(second.pid, HEADER_END)
    tracer.set(first.pid, of_first)
    tracer.set(second.pid, of_second)
    for process in (first, second):
        filled, after = process.registers_after(tracer)
        assert registers(after) == registers(filled)


def test_errors_are_the_kernel_s(stopped: Callable[[int], Process], tracer: Tracer) -> None:
    process = stopped(7)
    need_more_than_sse(tracer, process)
    state = tracer.get(process.pid, HEADER_END)
    with refused(errno.ESRCH):
        tracer.set(os.getpid(), state)
    with refused(errno.EFAULT):
        tracer.set(process.pid, state[: HEADER_END - 64])  # without a header nobody knows what is in use
    with refused(errno.EINVAL):
        tracer.set(process.pid, bytearray(state[:HEADER_END] + bytes(4)))  # no length of eight-byte words
