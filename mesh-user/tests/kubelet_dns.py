"""A cluster's DNS for kubelet.sh: NAME.NAMESPACE.svc[.cluster.local] is asked of the API server, for every question anew.

A headless service has its ready endpoints' addresses, another one its own. IPv4 alone.

usage: kubelet_dns.py ADDRESS API_SERVER FOLDER_OF_KEYS
"""

import json
import socket
import ssl
import struct
import sys
import urllib.error
import urllib.request

ADDRESS, SERVER, KEYS = sys.argv[1:]
TLS = ssl.create_default_context(cafile=f"{KEYS}/ca.crt")
TLS.load_cert_chain(f"{KEYS}/admin.crt", f"{KEYS}/admin.key")
A, NAME_ERROR = 1, 3


def ask(path):
    with urllib.request.urlopen(f"{SERVER}/api/v1/{path}", context=TLS, timeout=10) as answer:
        return json.load(answer)


def addresses(name):
    """None: no such name."""
    labels = name.lower().removesuffix(".cluster.local").split(".")
    if len(labels) != 3 or labels[2] != "svc":
        return None
    try:
        own = ask(f"namespaces/{labels[1]}/services/{labels[0]}")["spec"]["clusterIP"]
        if own != "None":
            return [own]
        subsets = ask(f"namespaces/{labels[1]}/endpoints/{labels[0]}").get("subsets") or []
    except urllib.error.HTTPError:
        return None
    return [each["ip"] for subset in subsets for each in subset.get("addresses") or []]


def answer(query):
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    question = query[12 : at + 5]
    found = addresses(".".join(labels))
    wanted = found if struct.unpack("!H", query[at + 1 : at + 3])[0] == A else []
    flags = 0x8580 | (NAME_ERROR if found is None else 0)
    records = [b"\xc0\x0c" + struct.pack("!HHIH", A, 1, 1, 4) + socket.inet_aton(ip) for ip in wanted or []]
    return query[:2] + struct.pack("!5H", flags, 1, len(records), 0, 0) + question + b"".join(records)


wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
wire.bind((ADDRESS, 53))
while True:
    query, asker = wire.recvfrom(512)
    try:
        wire.sendto(answer(query), asker)
    except (OSError, IndexError, struct.error, UnicodeDecodeError) as error:
        print(error, flush=True)
