"""SMTP and FTP by Python's own clients, asyncio, and a program that brings its own TLS. `serve PORT CERT KEY` answers,
`call HOST PORT CERT` says what it saw as one JSON line. FTP's data connections are opened from either side."""

import asyncio, ftplib, io, json, smtplib, socket, ssl, sys, threading

MARKER = "MARKER-7f3a91c2-readable"
FILE = (MARKER.encode() + b"\n") * 10_000


def line_by_line(sock, greeting, answer):
    """A server that speaks first and answers lines until `answer` says nothing."""
    lines = sock.makefile("rwb", buffering=0)
    say = lambda text: lines.write(text.encode() + b"\r\n")
    say(greeting)
    while line := lines.readline():
        if (reply := answer(line.decode().strip(), lines, say)) is None:
            break
        say(reply)
    sock.close()


def smtp(sock):
    def answer(line, lines, say):
        verb = line[:4].upper()
        if verb == "DATA":
            say("354 go on")
            kept = b""
            while (text := lines.readline()) != b".\r\n":
                kept += text
            return "250 kept " + str(kept.count(MARKER.encode()))
        return {"EHLO": "250 mesh", "MAIL": "250 ok", "RCPT": "250 ok", "QUIT": "221 bye"}.get(verb, "500 what")

    line_by_line(sock, "220 ready", answer)


class Ftp:
    """One control connection; just what ftplib asks for."""

    def __init__(self, sock):
        self.sock, self.opens_data = sock, None
        # As FTP servers do, for ABOR (RFC 959 section 4.1.3).
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        line_by_line(sock, "220 ready", self.answer)

    def answer(self, line, lines, say):
        verb, _, argument = line.partition(" ")
        handle = getattr(self, verb.lower(), None)
        return handle(argument, say) if handle else "200 ok"

    def user(self, *_):
        return "230 in"

    def quit(self, _, say):
        say("221 bye")

    def listener(self):
        own = self.sock.getsockname()
        listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        self.opens_data = lambda: listener.accept()[0]
        return own[0].removeprefix("::ffff:"), listener.getsockname()[1]

    def pasv(self, *_):
        host, port = self.listener()
        return f"227 ({host.replace('.', ',')},{port >> 8},{port & 255})"

    def epsv(self, *_):
        return f"229 (|||{self.listener()[1]}|)"

    def port(self, argument, _):
        *host, high, low = argument.split(",")
        self.opens_data = lambda: socket.create_connection((".".join(host), int(high) * 256 + int(low)), 60)
        return "200 I call you"

    def eprt(self, argument, _):
        _, _, host, port, _ = argument.split("|")
        self.opens_data = lambda: socket.create_connection((host, int(port)), 60)
        return "200 I call you"

    def retr(self, _, say):
        say("150 here it comes")
        with self.opens_data() as data:
            data.sendall(FILE)
        return "226 sent"

    def stor(self, _, say):
        say("150 go on")
        with self.opens_data() as data:
            stored = b"".join(iter(lambda: data.recv(65536), b""))
        return f"226 {len(stored)} bytes"

    def abor(self, *_):
        return "226 nothing to stop"


def own_tls(context):
    def greet(sock):
        with context.wrap_socket(sock, server_side=True) as inner:
            inner.sendall(inner.recv(1024))

    return greet


async def echo(reader, writer):
    while part := await reader.read(65536):
        writer.write(part)
        await writer.drain()
    writer.close()


def accept_all(port, serve_one):
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)

    def loop():
        while True:
            threading.Thread(target=serve_one, args=(listener.accept()[0],), daemon=True).start()
    threading.Thread(target=loop).start()


async def serve_echo(port):
    await asyncio.start_server(echo, ["0.0.0.0", "::"], port)
    print("listening", flush=True)
    await asyncio.Event().wait()


def serve(port, cert, key):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    for offset, part in enumerate([smtp, Ftp, own_tls(context)]):
        accept_all(port + offset, part)
    asyncio.run(serve_echo(port + 3))


def call_smtp(host, port):
    with smtplib.SMTP(host, port, timeout=60) as mail:
        mail.ehlo(), mail.mail("a@mesh"), mail.rcpt("b@mesh")
        return mail.data(f"Subject: x\r\n\r\n{MARKER}\r\n")[1].decode()


def call_ftp(host, port, passive):
    with ftplib.FTP(timeout=60) as ftp:
        ftp.connect(host, port)
        ftp.login()
        ftp.set_pasv(passive)
        got = io.BytesIO()
        ftp.retrbinary("RETR file", got.write)
        stored = ftp.storbinary("STOR file", io.BytesIO(FILE))
        # ABOR goes out as urgent data.
        return [got.getvalue() == FILE, stored, ftp.abort()]


def call_tls(host, port, cert):
    """The server's own certificate is what the client verifies; meshd's is not seen."""
    context = ssl.create_default_context(cafile=cert)
    with socket.create_connection((host, port), 60) as sock:
        with context.wrap_socket(sock, server_hostname=MARKER + ".test") as inner:
            inner.sendall(MARKER.encode())
            return [inner.recv(100).decode(), dict(pair for name in inner.getpeercert()["subject"] for pair in name)]


async def call_asyncio(host, port):
    async def one(number):
        reader, writer = await asyncio.open_connection(host, port)
        text = f"{MARKER} {number}\n".encode() * 1000
        writer.write(text)
        writer.write_eof()
        back = await reader.read(-1)
        writer.close()
        return back == text

    try:
        await asyncio.open_connection(host, port + 999)
    except OSError as error:
        refused = type(error).__name__
    return [refused, await asyncio.gather(*(one(n) for n in range(20)))]


def call(host, port, cert):
    echoes = asyncio.run(call_asyncio(host, port + 3))
    print(json.dumps({
        "smtp": call_smtp(host, port),
        "ftp_passive": call_ftp(host, port + 1, True),
        "ftp_active": call_ftp(host, port + 1, False),
        "tls": call_tls(host, port + 2, cert),
        "asyncio": [echoes[0], all(echoes[1]), len(echoes[1])],
    }))


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]), *sys.argv[3:])
else:
    call(sys.argv[2], int(sys.argv[3]), sys.argv[4])
