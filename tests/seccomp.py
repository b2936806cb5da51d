"""A seccomp filter under which system calls fail, as in old kernels, gVisor and containers.

``python seccomp.py CALL=ERROR ... -- WORDS`` executes ``python WORDS`` under it; a CALL may name
its first argument, ``socket:10=EAFNOSUPPORT`` is IPv6. In a program of a test: ``refuse(...)``.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

_NUMBERS = {  # of the calls, on the machines that the tests run on
    "x86_64": {
        "memfd_create": 319,
        "pidfd_open": 434,
        "pidfd_send_signal": 424,
        "sendfile": 40,
        "socket": 41,
        "socketpair": 53,
        "epoll_create1": 291,
        "sched_getaffinity": 204,
    },
    "aarch64": {
        "memfd_create": 279,
        "pidfd_open": 434,
        "pidfd_send_signal": 424,
        "sendfile": 71,
        "socket": 198,
        "socketpair": 199,
        "epoll_create1": 20,
        "sched_getaffinity": 123,
    },
}
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_NO_NEW_PRIVS, _SECCOMP, _FILTER = 38, 22, 2  # prctl(2)


def refuse(*words: str) -> None:
    """From now on, in this process and all that it starts."""
    numbers = _NUMBERS[platform.machine()]
    program = []
    for word in words:
        call, _, error = word.partition("=")
        name, _, argument = call.partition(":")
        answer = _ERRNO | getattr(errno, error)
        program.append((_LOAD, 0, 0, 0))
        program.append((_EQUAL, 0, 3 if argument else 1, numbers[name]))
        if argument:
            program += [(_LOAD, 0, 0, 16), (_EQUAL, 0, 1, int(argument))]
        program.append((_RETURN, 0, 0, answer))
    program.append((_RETURN, 0, 0, _ALLOW))
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    area = ctypes.create_string_buffer(code, len(code))
    fprog = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(area)))
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    for option, first, second in (
        (_NO_NEW_PRIVS, ctypes.c_ulong(1), zero),
        (_SECCOMP, ctypes.c_ulong(_FILTER), ctypes.byref(fprog)),
    ):
        if libc.prctl(option, first, second, zero, zero) != 0:
            raise OSError(ctypes.get_errno(), f"prctl {option}")


if __name__ == "__main__":
    at = sys.argv.index("--")
    refuse(*sys.argv[1:at])
    os.execv(sys.executable, [sys.executable, *sys.argv[at + 1 :]])
