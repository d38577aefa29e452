"""Ways past meshd that no ready program offers. Each verb makes its attempts and says what it saw, one JSON line each:
the name of an error, or what came of the attempt."""

import ctypes, errno, json, os, re, socket, struct, sys, threading, time

MARKER = b"MARKER-7f3a91c2-readable"
AF_VSOCK, AF_XDP, IPPROTO_SCTP, IPPROTO_UDPLITE = 40, 44, 132, 136
IP_OPTIONS, IPOPT_LSRR, IPOPT_NOP = 4, 131, 1
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SYN, ACK, PUSH = 2, 16, 8
libc = ctypes.CDLL(None, use_errno=True)


def say(**seen):
    print(json.dumps(seen), flush=True)


def named(call):
    """What `call` returns, or the name of its error."""
    try:
        return call()
    except TimeoutError:
        return "timeout"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))


def family(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def wait_for(file):
    say(event="waiting")
    while not os.path.exists(file):
        time.sleep(0.01)


def exchange(sock, host, port, text=MARKER, wait=5.0):
    """What a server that echoes says to `text`."""
    sock.settimeout(wait)
    sock.connect((host, port))
    sock.sendall(text)
    said = b""
    while len(said) < len(text):
        part = sock.recv(4096)
        if not part:
            break
        said += part
    sock.close()
    return said.decode()


def talk(host, port, wait=5.0):
    return named(lambda: exchange(socket.socket(family(host)), host, port, wait=wait))


# ---- datagrams


def receive(port):
    """Answers datagrams on both families."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.bind(("::", int(port)))
    say(event="listening")
    while True:
        data, sender = sock.recvfrom(65536)
        say(event="received", text=data.decode(errors="replace"))
        named(lambda: sock.sendto(data, sender))


def ask(host, port, connected=False, sock=None):
    """The answer to a datagram."""
    sock = sock or socket.socket(family(host), socket.SOCK_DGRAM)
    sock.settimeout(3)
    if connected:
        sock.connect((host, port))
        sock.send(MARKER)
    else:
        sock.sendto(MARKER, (host, port))
    return sock.recv(4096).decode()


def ping(host):
    """The answer to an echo request that carries the marker."""
    six = family(host) == socket.AF_INET6
    sock = socket.socket(family(host), socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP)
    sock.settimeout(3)
    sock.sendto(struct.pack("!BBHHH", 128 if six else 8, 0, 0, 1, 1) + MARKER, (host, 0))
    return sock.recv(4096)[8:].decode()


def datagrams(host4, host6, port):
    port = int(port)
    for host in (host4, host6):
        say(case="sendto", host=host, saw=named(lambda: ask(host, port)))
        say(case="connected", host=host, saw=named(lambda: ask(host, port, connected=True)))
        say(case="ping", host=host, saw=named(lambda: ping(host)))
    say(case="mapped", host=host4, saw=named(lambda: ask("::ffff:" + host4, port)))


def later(file, host, port, own=None):
    """A socket that is made now and sends when the file is there."""
    sock = socket.socket(family(host), socket.SOCK_DGRAM)
    if own:
        sock.bind((own, 0))
    wait_for(file)
    say(case="later", saw=named(lambda: ask(host, int(port), sock=sock)))


def binds(port):
    for host, number in (("0.0.0.0", port), ("::", port), ("127.0.0.1", port), ("::1", port), ("0.0.0.0", "0"), ("0.0.0.0", "7053")):
        def bind():
            with socket.socket(family(host), socket.SOCK_DGRAM) as sock:
                sock.bind((host, int(number)))
            return "bound"
        say(case=f"{host} {number}", saw=named(bind))


def kinds():
    """Sockets of every kind that could carry bytes off the host."""
    inet, inet6, stream, datagram, raw = socket.AF_INET, socket.AF_INET6, socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW
    for name, args in {
        "raw_tcp": (inet, raw, socket.IPPROTO_TCP),
        "raw_any": (inet, raw, socket.IPPROTO_RAW),
        "raw_icmp": (inet, raw, socket.IPPROTO_ICMP),
        "raw_v6": (inet6, raw, socket.IPPROTO_UDP),
        "sctp": (inet, stream, IPPROTO_SCTP),
        "sctp_v6": (inet6, socket.SOCK_SEQPACKET, IPPROTO_SCTP),
        "udplite": (inet, datagram, IPPROTO_UDPLITE),
        "tcp": (inet, stream, 0),
        "udp": (inet6, datagram, 0),
        "packet": (socket.AF_PACKET, raw, 0),
        "vsock": (AF_VSOCK, stream, 0),
        "xdp": (AF_XDP, raw, 0),
    }.items():
        def make():
            socket.socket(*args).close()
            return "given"
        say(case=name, saw=named(make))


# ---- packets made by hand


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def segment(source, destination, source_port, port, flags, sequence, acknowledged, data):
    six = ":" in destination
    pack = lambda text: socket.inet_pton(socket.AF_INET6 if six else socket.AF_INET, text)
    header = struct.pack("!HHIIBBHHH", source_port, port, sequence, acknowledged, 5 << 4, flags, 65535, 0, 0)
    length = len(header) + len(data)
    pseudo = pack(source) + pack(destination) + (struct.pack("!IxxxB", length, 6) if six else struct.pack("!xBH", 6, length))
    header = header[:16] + struct.pack("!H", checksum(pseudo + header + data)) + header[18:]
    if six:
        ip = struct.pack("!IHBB", 6 << 28, length, 6, 64) + pack(source) + pack(destination)
    else:
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + length, 7, 0, 64, 6, 0, pack(source), pack(destination))
        ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    return ip + header + data


def forge(way, mac, source, destination, port):
    """A handshake that is never answered to us: SYN with data, then an ACK with data for every guess at the server's
    first sequence number that a few packets allow."""
    port = int(port)
    six = ":" in destination

    def send():
        if way == "packet":
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
            to = ("eth0", 0x86DD if six else 0x0800, 0, 0, bytes.fromhex(mac.replace(":", "")))
        else:
            sock = socket.socket(family(destination), socket.SOCK_RAW, socket.IPPROTO_RAW)
            to = (destination, 0)
        for source_port in range(40000, 40010):
            for flags, sequence, acknowledged in ((SYN, 1000, 0), (ACK | PUSH, 1001, 1), (ACK | PUSH, 1001, 0x80000000)):
                sock.sendto(segment(source, destination, source_port, port, flags, sequence, acknowledged, b"forged"), to)
        return "sent"

    say(case=way, saw=named(send))


def smuggle(mac, host, port, source):
    """The marker in a segment of no connection, past the TCP of the host."""
    def send():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        to = ("eth0", 0x0800, 0, 0, bytes.fromhex(mac.replace(":", "")))
        sock.sendto(segment(source, host, 40000, int(port), ACK | PUSH, 1, 1, MARKER), to)
        return "sent"
    say(case="packet", saw=named(send))


# ---- options


def source_route(host, port, via):
    """Loose source routes: to the host by another, and to another by the host."""
    for name, to, hop in (("by another", host, via), ("by the host", via, host)):
        sock = socket.socket()
        hops = socket.inet_aton(hop)
        option = bytes([IPOPT_NOP, IPOPT_LSRR, 3 + len(hops), 4]) + hops
        sock.setsockopt(socket.IPPROTO_IP, IP_OPTIONS, option)
        say(case=name, saw=named(lambda: exchange(sock, to, int(port))))
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.IPPROTO_IP, IP_OPTIONS, option)
        say(case=name + ", datagram", saw=named(lambda: ask(to, int(port), sock=sock)))


def connect(host, port, wait="3"):
    say(saw=talk(host, int(port), float(wait)))


def standing(file, host, port):
    """A connection that is made now and goes on when the file is there."""
    sock = socket.create_connection((host, int(port)))
    sock.settimeout(5)

    def echoed(text):
        sock.sendall(text)
        return sock.recv(4096).decode()

    say(case="first", saw=named(lambda: echoed(b"first")))
    wait_for(file)
    say(case="later", saw=named(lambda: echoed(b"later")))


# ---- namespaces and cgroups


def unshare(what, host, port):
    flags = {"net": CLONE_NEWNET, "user": CLONE_NEWUSER, "both": CLONE_NEWUSER | CLONE_NEWNET}[what]
    if libc.unshare(flags):
        say(saw="unshare: " + errno.errorcode[ctypes.get_errno()])
    else:
        say(saw=talk(host, int(port)))


def setns(file, host, port):
    with open(file) as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWNET):
            say(saw="setns: " + errno.errorcode[ctypes.get_errno()])
            return
    say(saw=talk(host, int(port)))


def own_cgroup():
    mounts = open("/proc/self/mounts").read()
    mount = re.search(r"^\S+ (\S+) cgroup2 ", mounts, re.M).group(1)
    path = re.search(r"^0::(.*)$", open("/proc/self/cgroup").read(), re.M).group(1)
    return mount + path


def thread(host, port):
    """From a thread that has a cgroup of its own."""
    group = os.path.join(own_cgroup(), "thread")
    os.mkdir(group)
    open(os.path.join(group, "cgroup.type"), "w").write("threaded")

    def work():
        open(os.path.join(group, "cgroup.threads"), "w").write(str(threading.get_native_id()))
        say(saw=talk(host, int(port)), cgroup=open("/proc/thread-self/cgroup").read().strip().rsplit("/", 1)[-1])

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()


def move(group, host, port):
    """With a socket made before this process moved, and with one made after."""
    old = socket.socket()
    open(os.path.join(group, "cgroup.procs"), "w").write("0")
    say(case="before", saw=named(lambda: exchange(old, host, int(port))))
    say(case="after", saw=talk(host, int(port)))


# ---- load


def hammer(file, host, port, prefix):
    """Exchanges numbered texts, several at a time, until the file is there; says which were answered."""
    answered, failed, lock = [], 0, threading.Lock()
    numbers = iter(range(1 << 30))

    def work():
        nonlocal failed
        while not os.path.exists(file):
            with lock:
                text = f"{prefix}-{next(numbers):07}".encode()
            said = named(lambda: exchange(socket.socket(family(host)), host, int(port), text, wait=2.0))
            with lock:
                if said == text.decode():
                    if not answered:
                        say(event="served")
                    answered.append(said)
                else:
                    failed += 1
            time.sleep(0.02)

    workers = [threading.Thread(target=work) for _ in range(3)]
    say(event="begun")
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    say(answered=answered, failed=failed)


VERBS = {
    "receive": receive, "datagrams": datagrams, "later": later, "binds": binds, "kinds": kinds, "forge": forge,
    "smuggle": smuggle, "source-route": source_route, "connect": connect, "standing": standing, "unshare": unshare, "setns": setns,
    "thread": thread, "move": move, "hammer": hammer,
}
VERBS[sys.argv[1]](*sys.argv[2:])
