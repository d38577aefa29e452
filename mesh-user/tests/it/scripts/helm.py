"""Helm without its command: the library of its Go code that `PyPI`'s helm-sdkpy carries, called as `helm` calls it.

Reads a JSON object from the file that its argument names: `do` (render, lint, package, install, upgrade, uninstall),
`library`, `chart`, `values`, `namespace`, `folder` (for files that it writes), `kubeconfig` (of a real cluster). Prints one:
`error`, or what came of it.

The library has no `helm template`. `render` installs into an API server of this script's own, which says it is a new one, has
nothing, keeps nothing and answers yes: what Helm would send it, and the release that Helm writes down, is the rendering.
"""

import base64
import ctypes
import gzip
import json
import os
import pathlib
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# What a cluster that the chart is for knows: group/version, then plural: kind. `!` marks kinds without a namespace.
KINDS = {
    "v1": {
        "configmaps": "ConfigMap",
        "!namespaces": "Namespace",
        "secrets": "Secret",
        "serviceaccounts": "ServiceAccount",
        "services": "Service",
    },
    "apps/v1": {"daemonsets": "DaemonSet", "deployments": "Deployment"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    # What a test puts in its place for an old cluster.
    "policy/v1beta1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "rbac.authorization.k8s.io/v1": {
        "roles": "Role",
        "rolebindings": "RoleBinding",
        "!clusterroles": "ClusterRole",
        "!clusterrolebindings": "ClusterRoleBinding",
    },
    "apiextensions.k8s.io/v1": {"!customresourcedefinitions": "CustomResourceDefinition"},
    "monitoring.coreos.com/v1": {"podmonitors": "PodMonitor", "prometheusrules": "PrometheusRule"},
}

# A release is JSON, by gzip, in base64.
PACKED = re.compile(rb"H4sI[A-Za-z0-9+/]+=*")


def resource(group_version, plural, kind):
    group, _, version = group_version.rpartition("/")
    return {
        "resource": plural.lstrip("!"),
        "responseKind": {"group": group, "version": version, "kind": kind},
        "scope": "Cluster" if plural.startswith("!") else "Namespaced",
        "singularResource": kind.lower(),
        "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
    }


def discovery(core):
    """Aggregated discovery (apidiscovery.k8s.io/v2) of /api or /apis."""
    items = []
    for group_version, kinds in KINDS.items():
        group, _, version = group_version.rpartition("/")
        if (group == "") != core:
            continue
        resources = [resource(group_version, plural, kind) for plural, kind in kinds.items()]
        versions = [{"version": version, "resources": resources, "freshness": "Current"}]
        items.append({"metadata": {"name": group} if group else {}, "versions": versions})
    return {"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items}


def failure(code, reason):
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "reason": reason,
        "code": code,
        "message": reason,
    }


class ApiServer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # An answer is two writes, and forty milliseconds with it.
    disable_nagle_algorithm = True
    # Objects as they came.
    written = []
    # As Helm packs them.
    releases = []

    def log_message(self, *_):
        pass

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        if self.command == "GET":
            code, said = self.read(path)
        elif self.command == "DELETE":
            code, said = 404, failure(404, "NotFound")
        else:
            code, said = self.write(body)
        text = json.dumps(said).encode()
        self.send_response(code)
        kind = "application/json"
        if path in ("/api", "/apis"):
            kind += ";g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def keep(self, said, release=None):
        self.written.append(said)
        if release:
            self.releases.append(release.group().decode())
        return said

    def read(self, path):
        if path == "/version":
            return 200, {"major": "1", "minor": "33", "gitVersion": "v1.33.0"}
        if path in ("/api", "/apis"):
            return 200, discovery(path == "/api")
        if path.endswith("/secrets"):
            return 200, {"kind": "SecretList", "apiVersion": "v1", "metadata": {}, "items": []}
        return 404, failure(404, "NotFound")

    def write(self, body):
        if body.startswith(b"k8s\0"):
            # A Secret in protobuf, the release in it: text within bytes.
            return 201, self.keep({"kind": "Secret", "apiVersion": "v1", "metadata": {}}, PACKED.search(body))
        said = json.loads(body)
        if self.command == "POST":
            self.keep(said)
        if said.get("kind") == "CustomResourceDefinition":
            # Helm leaves it, and does not wait for it.
            return 409, failure(409, "AlreadyExists")
        return 201 if self.command == "POST" else 200, said

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer


class Helm:
    """The library, and a handle of it for one namespace of one cluster."""

    def __init__(self, library, namespace, kubeconfig):
        self.library = ctypes.CDLL(library)
        self.library.helm_sdkpy_last_error.restype = ctypes.c_char_p
        self.handle = ctypes.c_ulonglong()
        self.call("config_create", namespace, kubeconfig, "", "{}", ctypes.byref(self.handle), handle=False)

    def call(self, name, *arguments, handle=True):
        arguments = [a.encode() if isinstance(a, str) else a for a in arguments]
        if handle:
            arguments.insert(0, self.handle)
        if getattr(self.library, f"helm_sdkpy_{name}")(*arguments) != 0:
            raise RuntimeError((self.library.helm_sdkpy_last_error() or b"it said nothing").decode())

    def result(self, name, *arguments):
        """Of a call whose last argument takes a text. It is not freed: this process ends soon."""
        text = ctypes.c_char_p()
        self.call(name, *arguments, ctypes.byref(text))
        return (text.value or b"").decode()


def options(**more):
    return json.dumps({"wait": False, "timeout_seconds": 60, "server_side_apply": "false"} | more)


def serve(folder):
    """Starts the API server; the file by which it is reached."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), ApiServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    }
    file = pathlib.Path(folder) / "kubeconfig.json"
    file.write_text(json.dumps(config))
    return str(file)


def rendered():
    """The release that Helm wrote down, and the CRDs that it would have made."""
    release = json.loads(gzip.decompress(base64.b64decode(ApiServer.releases[0])))
    return {
        "manifest": release["manifest"],
        "hooks": [hook["path"] for hook in release.get("hooks") or []],
        "notes": release["info"].get("notes", ""),
        "crds": [o for o in ApiServer.written if o.get("kind") == "CustomResourceDefinition"],
    }


def run(asked):
    do, chart, folder = asked["do"], asked.get("chart", ""), asked["folder"]
    values, release = json.dumps(asked.get("values") or {}), "meshd"
    helm = Helm(asked["library"], asked["namespace"], asked.get("kubeconfig") or serve(folder))
    if do == "lint":
        return json.loads(helm.result("lint", chart))
    if do == "package":
        return {"path": helm.result("package", chart, folder)}
    if do == "uninstall":
        return json.loads(helm.result("uninstall", release, 0, 60))
    if do == "upgrade":
        return json.loads(helm.result("upgrade", release, chart, values, "", options()))
    # This script's server has no schemas of objects, against which a namespace would be held too.
    real = do == "install"
    how = options(create_namespace=real, disable_openapi_validation=not real)
    said = helm.result("install", release, chart, values, "", how)
    return rendered() if do == "render" else json.loads(said)


def main():
    asked = json.loads(pathlib.Path(sys.argv[1]).read_text())
    # Before Go reads its environment: nothing is written to a user's home.
    for name in ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"):
        os.environ[name] = asked["folder"]
    try:
        said = run(asked)
    except RuntimeError as error:
        said = {"error": str(error)}
    print(json.dumps(said))


main()
