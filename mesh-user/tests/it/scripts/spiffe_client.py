"""A workload that asks the SPIFFE Workload API, by py-spiffe.

spiffe_client.py SOCKET once AUDIENCE    one JSON object about everything it got, or about the refusal
spiffe_client.py SOCKET watch            a line per update of its X.509 context, and one for the error that ends it
spiffe_client.py SOCKET keep AUDIENCE    a line per key that signs its tokens; ends when its first token is not believed
"""

import json
import sys
import threading
import time

import grpc
from spiffe import JwtSvid, TrustDomain, WorkloadApiClient
from spiffe.workloadapi.errors import WorkloadApiError


def once(client, audience):
    context = client.fetch_x509_context(timeout=20)
    found = []
    for svid in context.x509_svids:
        bundle = context.x509_bundle_set.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
        issuer = svid.cert_chain[1] if len(svid.cert_chain) > 1 else None
        last = svid.cert_chain[-1] if issuer else svid.leaf
        if issuer:
            svid.leaf.verify_directly_issued_by(issuer)
        root = [one for one in bundle.x509_authorities if one.subject == last.issuer]
        last.verify_directly_issued_by(root[0])
        assert svid.private_key.public_key() == svid.leaf.public_key()
        found.append(str(svid.spiffe_id))
    token = client.fetch_jwt_svid(audience={audience}, timeout=20)
    bundles = client.fetch_jwt_bundles(timeout=20)
    bundle = bundles.get_bundle_for_trust_domain(TrustDomain("cluster.local"))
    # By its own rules, and by the server's.
    own = JwtSvid.parse_and_validate(token.token, bundle, {audience})
    theirs = client.validate_jwt_svid(token.token, audience, timeout=20)
    try:
        client.validate_jwt_svid(token.token, audience + "-other", timeout=20)
        other = "believed"
    except WorkloadApiError:
        other = "refused"
    return {
        "svids": found,
        "jwt": [str(token.spiffe_id), str(own.spiffe_id), str(theirs.spiffe_id)],
        "other_audience": other,
        "bundles": sorted(str(one.trust_domain) for one in client.fetch_x509_bundles(timeout=20).bundles),
    }


def bare(socket):
    """Without the header that py-spiffe adds."""
    with grpc.insecure_channel("unix://" + socket.removeprefix("unix://")) as channel:
        call = channel.unary_stream("/SpiffeWorkloadAPI/FetchX509SVID")
        try:
            next(call(b"", timeout=20))
            return "answered"
        except grpc.RpcError as error:
            return error.code().name


def watch(client):
    ended = threading.Event()

    def told(context):
        print("told", ",".join(str(svid.spiffe_id) for svid in context.x509_svids), flush=True)

    def failed(error):
        print("ended", error, flush=True)
        ended.set()

    client.stream_x509_contexts(told, failed, retry_connect=False)
    ended.wait()


def keep(client, audience):
    first, signer = None, None
    while True:
        token = client.fetch_jwt_svid(audience={audience}, timeout=20).token
        first = first or token
        bundles = client.fetch_jwt_bundles(timeout=20)
        bundle = bundles.get_bundle_for_trust_domain(TrustDomain("cluster.local"))
        for one in (first, token):
            JwtSvid.parse_and_validate(one, bundle, {audience})
            client.validate_jwt_svid(one, audience, timeout=20)
        header = token.split(".")[0]
        if header != signer:
            signer = header
            print("signed by", header, flush=True)
        time.sleep(0.2)


def main():
    socket, mode = sys.argv[1:3]
    with WorkloadApiClient(socket_path=socket) as client:
        if mode == "watch":
            watch(client)
            return
        if mode == "keep":
            keep(client, sys.argv[3])
        try:
            answer = once(client, sys.argv[3])
        except WorkloadApiError as error:
            answer = {"refused": str(error)}
        print(json.dumps(answer | {"bare": bare(socket)}))


main()
