"""Socket calls as programs make them. `serve PORT` answers what a connection's first line asks for; `call` makes every
case and says what it saw, one JSON line each. What differs between two runs by chance (ports, times) is never said."""

import ctypes, errno, hashlib, json, os, select, socket, struct, subprocess, sys, tempfile, threading, time

MARKER = b"MARKER-7f3a91c2-readable"
SO_ORIGINAL_DST, TCP_FASTOPEN, TCP_FASTOPEN_CONNECT, SYN_DATA = 80, 23, 30, 32
SO_ZEROCOPY, MSG_ZEROCOPY, MSG_ERRQUEUE, MSG_FASTOPEN, POLLRDHUP = 60, 0x4000000, 0x2000, 0x20000000, 0x2000
CLONE_NEWNET = 0x40000000
BULK = 1 << 18
libc = ctypes.CDLL(None, use_errno=True)


def pattern(length):
    return hashlib.sha256(b"pattern").digest() * (length // 32)


def digest(data):
    return {"length": len(data), "sum": hashlib.sha256(data).hexdigest()[:16]}


def read_line(sock):
    line = b""
    while not line.endswith(b"\n"):
        byte = sock.recv(1)
        if not byte:
            break
        line += byte
    return line.decode().strip()


def read_all(sock, step=65536, pause=0):
    data = b""
    while part := sock.recv(step):
        data += part
        time.sleep(pause)
    return data


def named(call):
    """What `call` returns, or the name of its error."""
    try:
        return call()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))


def original_destination(sock):
    return named(lambda: sock.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16).hex())


def tcp_options(sock):
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5]


# ---- the server's part

seen, said = {}, threading.Condition()


def tell(name, facts):
    with said:
        seen[name] = facts
        said.notify_all()


def report(sock, name):
    with said:
        said.wait_for(lambda: name in seen, timeout=60)
        sock.sendall(json.dumps(seen.pop(name, "nothing in 60 s")).encode())


def echo(sock, _=None):
    while part := sock.recv(65536):
        sock.sendall(part)


def urgent(sock, inline):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline == "inline")
    sock.sendall(b"go\n")
    poll = select.poll()
    poll.register(sock, POLLRDHUP)
    poll.poll(60_000)
    marked = select.select([], [], [sock], 0)[2] != []
    out_of_band = named(lambda: sock.recv(1, socket.MSG_OOB).decode())
    tell("urgent", {"marked": marked, "out_of_band": out_of_band, "read": read_all(sock).decode()})


def lingered(sock, _):
    sock.sendall(sock.recv(1))
    tell("lingered", named(lambda: sock.recv(1).decode()))


def both_shut(sock, _):
    end = sock.recv(1).decode()
    sock.sendall(b"too late")
    poll = select.poll()
    poll.register(sock, 0)
    poll.poll(60_000)
    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    tell("both_shut", {"end": end, "after": errno.errorcode.get(error)})


def halves(sock, _):
    sock.sendall(b"first")
    read_line(sock)
    sock.sendall(b"after")


def full_backlog(sock, _):
    listener = socket.socket(socket.AF_INET6)
    listener.bind(("::", 0))
    listener.listen(1)
    sock.sendall(b"%d\n" % listener.getsockname()[1])
    read_line(sock)
    for _ in range(6):
        threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()


def answer(sock):
    verb, _, argument = read_line(sock).partition(" ")
    parts = {
        "echo": echo, "report": report, "urgent": urgent, "lingered": lingered, "both_shut": both_shut,
        "halves": halves, "full_backlog": full_backlog,
        "digest": lambda sock, _: sock.sendall(json.dumps(digest(read_all(sock))).encode()),
        "blob": lambda sock, length: sock.sendall(pattern(int(length))),
        "original": lambda sock, _: sock.sendall(original_destination(sock).encode()),
        "options": lambda sock, _: sock.sendall(b"%d" % tcp_options(sock)),
    }
    if verb:
        named(lambda: parts[verb](sock, argument))
    sock.close()


def serve(port):
    for at in (port, port + 1):
        listener = socket.create_server(("::", at), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
        listener.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 16)
        threading.Thread(target=accept_all, args=(listener,)).start()
    print("listening", flush=True)


def accept_all(listener):
    while True:
        threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()


# ---- the client's part: each case returns what it saw

class Server:
    def __init__(self, host, port, other_netns):
        self.family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.host, self.port, self.other_netns = host, port, other_netns

    def socket(self):
        # Not Python's timeout, which makes the descriptor non-blocking.
        sock = socket.socket(self.family)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", 60, 0))
        return sock

    def at(self, offset=0):
        return (self.host, self.port + offset)

    def dial(self, asks):
        sock = self.socket()
        sock.connect(self.at())
        sock.sendall(asks.encode() + b"\n")
        return sock

    def reported(self, name):
        return json.loads(read_all(self.dial("report " + name)))


def echoed(sock, text=MARKER):
    sock.sendall(text)
    return sock.recv(len(text), socket.MSG_WAITALL).decode()


def case_original_destination(server):
    sock = server.dial("original")
    return {"client": original_destination(sock), "server": read_all(sock).decode()}


def case_fast_open_by_sendto(server):
    sock = server.socket()
    sent = sock.sendto(b"options\n", MSG_FASTOPEN, server.at())
    served = int(read_all(sock))
    return {"sent": sent, "client_syn_data": bool(tcp_options(sock) & SYN_DATA), "server_syn_data": bool(served & SYN_DATA)}


def case_fast_open_by_connect(server):
    sock = server.socket()
    sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    sock.connect(server.at())
    sock.sendall(b"echo\n")
    return echoed(sock)


def case_connect_again_after_unspec(server):
    sock = server.dial("echo")
    first = echoed(sock)
    gone = libc.connect(sock.fileno(), struct.pack("H14x", socket.AF_UNSPEC), 16)
    sock.connect(server.at(1))
    sock.sendall(b"echo\n")
    return {"first": first, "gone": gone, "then": echoed(sock), "peer": sock.getpeername()[1] - server.port}


def case_reuse_after_refusal(server):
    sock = server.socket()
    refused = named(lambda: sock.connect(server.at(999)))
    sock.connect(server.at())
    sock.sendall(b"echo\n")
    return {"refused": refused, "then": echoed(sock)}


def in_a_child(act):
    """What `act` returns in a forked child."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.write(writing, json.dumps(named(act)).encode())
        os._exit(0)
    os.close(writing)
    os.wait()
    return json.loads(os.read(reading, 65536))


def case_fork(server):
    sock = server.dial("echo")
    own = sock.getsockname()
    seen = in_a_child(lambda: [echoed(sock), sock.getsockname() == own, sock.getpeername()[:2] == server.at()])
    return {"child": seen, "parent": echoed(sock)}


def case_exec(server):
    sock = server.dial("echo")
    fd = sock.fileno()
    said = subprocess.run(["/bin/sh", "-c", f"echo exec >&{fd}; head -c 5 <&{fd}"], pass_fds=[fd], stdout=subprocess.PIPE)
    return said.stdout.decode()


def case_passed_to_another_namespace(server):
    """One connected socket, and one that connects only there."""
    here, there = socket.socketpair(socket.AF_UNIX)
    connected, fresh = server.dial("echo"), server.socket()
    socket.send_fds(here, [b"x"], [connected.fileno(), fresh.fileno()])
    own = connected.getsockname()
    connected.close(), fresh.close()

    def act():
        with open(server.other_netns) as netns:
            if libc.setns(netns.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        fds = socket.recv_fds(there, 1, 2)[1]
        connected, fresh = (socket.socket(fileno=fd) for fd in fds)
        fresh.connect(server.at())
        fresh.sendall(b"echo\n")
        same = [connected.getsockname() == own, connected.getpeername()[:2] == server.at()]
        same += [fresh.getsockname()[0] == own[0], fresh.getpeername()[:2] == server.at()]
        return [echoed(connected), echoed(fresh), same]

    return in_a_child(act)


def file_of(data):
    file = tempfile.TemporaryFile()
    file.write(data)
    file.seek(0)
    return file


def case_sendfile(server):
    sock, offset = server.dial("digest"), 0
    file = file_of(pattern(BULK))
    while count := os.sendfile(sock.fileno(), file.fileno(), offset, BULK):
        offset += count
    sock.shutdown(socket.SHUT_WR)
    return json.loads(read_all(sock))


def case_splice(server):
    """Socket to pipe to file, and file to pipe to socket."""
    reading, writing = os.pipe()
    file, inward = tempfile.TemporaryFile(), server.dial(f"blob {BULK}")
    while count := os.splice(inward.fileno(), writing, 65536):
        while count:
            count -= os.splice(reading, file.fileno(), count)
    file.seek(0)
    outward, source = server.dial("digest"), file_of(pattern(BULK))
    while count := os.splice(source.fileno(), writing, 65536):
        while count:
            count -= os.splice(reading, outward.fileno(), count)
    outward.shutdown(socket.SHUT_WR)
    return {"in": digest(file.read()), "out": json.loads(read_all(outward))}


def case_zero_copy(server):
    """Every send is told to be complete: numbers 0 to 3."""
    sock = server.dial("digest")
    sock.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    blocks = [bytearray([n]) * 65536 for n in range(4)]
    for block in blocks:
        assert sock.send(block, MSG_ZEROCOPY) == len(block), "a short send"
    sock.shutdown(socket.SHUT_WR)
    sum_, complete, poll = json.loads(read_all(sock)), set(), select.poll()
    poll.register(sock, 0)
    while len(complete) < 4 and poll.poll(10_000):
        for _, _, data in sock.recvmsg(1, 512, MSG_ERRQUEUE)[1]:
            low, high = struct.unpack_from("II", data, 8)
            complete |= set(range(low, high + 1))
    return {"server": sum_, "complete": sorted(complete)}


def case_peek(server):
    sock = server.dial("echo")
    sock.sendall(MARKER)
    sock.recv(len(MARKER), socket.MSG_PEEK | socket.MSG_WAITALL)
    return [sock.recv(6, socket.MSG_PEEK).decode(), sock.recv(100).decode()]


def case_urgent_data(server):
    return urgent_data(server, "apart")


def case_urgent_data_inline(server):
    return urgent_data(server, "inline")


def urgent_data(server, how):
    sock = server.dial("urgent " + how)
    read_line(sock)
    sock.send(b"ab")
    sock.send(b"!", socket.MSG_OOB)
    sock.send(b"cd")
    sock.shutdown(socket.SHUT_WR)
    return server.reported("urgent")


def case_linger_zero(server):
    sock = server.dial("lingered")
    echoed(sock, b"x")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    return server.reported("lingered")


def case_shutdown_both_ways(server):
    sock = server.dial("both_shut")
    sock.shutdown(socket.SHUT_RDWR)
    # What the server says too late is answered by a reset, perhaps before this looks.
    own_end = named(lambda: sock.recv(1).decode())
    return {"own_end": "" if own_end == "ECONNRESET" else own_end, "server": server.reported("both_shut")}


def case_receive_low_water_mark(server):
    sock, poll = server.dial("halves"), select.poll()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
    poll.register(sock, select.POLLIN)
    while named(lambda: len(sock.recv(10, socket.MSG_PEEK | socket.MSG_DONTWAIT))) != 5:
        time.sleep(0.005)
    at_half = bool(poll.poll(0))
    sock.sendall(b"\n")
    return {"at_half": at_half, "at_ten": bool(poll.poll(60_000)), "read": sock.recv(100).decode()}


def case_tcp_info(server):
    sock = server.dial("echo")
    echoed(sock)
    state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[0]
    segment = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    return {"state": state, "segment_fits_the_wire": segment <= 1460}


def case_proc_net_tcp(server):
    """Whether the kernel's table lists the socket with the port that it dialled."""
    sock = server.dial("echo")
    echoed(sock)
    table = "/proc/net/tcp6" if server.family == socket.AF_INET6 else "/proc/net/tcp"
    inode, rows = str(os.fstat(sock.fileno()).st_ino), [line.split() for line in open(table)]
    remote = [row[2] for row in rows if row[9] == inode]
    return [int(at.rpartition(":")[2], 16) == server.port for at in remote]


def echo_by_epoll(server, mode):
    sock, out, back = server.socket(), pattern(BULK), b""
    sock.setblocking(False)
    epoll = select.epoll()
    epoll.register(sock, select.EPOLLIN | select.EPOLLOUT | mode)
    began = sock.connect_ex(server.at())
    out = b"echo\n" + out
    while len(back) < BULK:
        for _, events in epoll.poll(60):
            if events & select.EPOLLOUT:
                while out and isinstance(count := named(lambda: sock.send(out[:65536])), int):
                    out = out[count:]
                if not out and not mode:
                    epoll.modify(sock, select.EPOLLIN)
            if events & select.EPOLLIN:
                while isinstance(part := named(lambda: sock.recv(65536)), bytes) and part:
                    back += part
    return [errno.errorcode[began], digest(back)]


def case_level_triggered_epoll(server):
    return echo_by_epoll(server, 0)


def case_edge_triggered_epoll(server):
    return echo_by_epoll(server, select.EPOLLET)


def case_slow_reader(server):
    sock = server.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(server.at())
    sock.sendall(b"blob %d\n" % (2 * BULK))
    return digest(read_all(sock, 8192, 0.005))


def case_slow_writer(server):
    sock = server.dial("digest")
    for n in range(100):
        sock.send(bytes([n]))
        time.sleep(0.005)
    sock.shutdown(socket.SHUT_WR)
    return json.loads(read_all(sock))


def case_keepalive(server):
    sock = server.dial("echo")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT):
        sock.setsockopt(socket.IPPROTO_TCP, option, 1)
    time.sleep(1.5)
    return [echoed(sock), sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)]


def case_full_backlog(server):
    """More connects than the listener queues, and nobody accepts yet: all are served once somebody does."""
    control = server.dial("full_backlog")
    at, begun = (server.host, int(read_line(control))), []
    for _ in range(6):
        sock = server.socket()
        sock.setblocking(False)
        begun.append((sock, errno.errorcode.get(sock.connect_ex(at))))
    time.sleep(0.5)
    refused = sum(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0 for sock, _ in begun)
    control.sendall(b"accept\n")
    served = []
    for sock, _ in begun:
        select.select([], [sock], [], 60)
        sock.setblocking(True)
        served.append(named(lambda: echoed(sock, b"x")))
    return {"refused": refused, "served": served}


ONCE = {"slow_reader", "slow_writer", "keepalive", "full_backlog"}


def call(port, other_netns, hosts):
    cases = {name[5:]: case for name, case in globals().items() if name.startswith("case_")}
    for host in hosts:
        for name, case in cases.items():
            if host == hosts[0] or name not in ONCE:
                facts = named(lambda: case(Server(host, port, other_netns)))
                print(json.dumps({"case": name, "host": host, "saw": facts}), flush=True)


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]))
else:
    call(int(sys.argv[2]), sys.argv[3], sys.argv[4:])
