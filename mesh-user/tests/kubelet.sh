#!/bin/bash
# A cluster of one node in a machine made for it (`cargo xtask kubelet`): Kubernetes' own API server, controller manager, scheduler
# and kubelet, with containerd and runc, run pods; deploy/kubernetes is installed as docs/kubernetes.md says, meshes pods that run
# already, and is taken out again. Traffic between pods is the judge. Never run it elsewhere: it mounts, and attaches to the root of
# the cgroup tree.
#
# usage: kubelet.sh FOLDER_OF_KUBERNETES FOLDER_OF_CONTAINERD FOLDER_OF_IMAGES FOLDER_OF_DEPLOY
#
# What is waited for is evaluated anew each time.
# shellcheck disable=SC2016
set -euo pipefail
assets=$1 runtime=$2 images=$3 deploy=$4
[ -e /run/guest/program ] || { echo "this is no machine made for tests"; exit 1; }
here=$(dirname "$(realpath "$0")")
logs=/run/logs keys=/run/kube
mkdir -p $logs $keys
export PATH="$assets:$runtime/usr/bin:$runtime/usr/sbin:$PATH" KUBECONFIG=$keys/admin.kubeconfig

say() { echo "kubelet [$SECONDS s]: $*"; }
fail() {
	trap - ERR
	say "FAILED: $*"
	timeout 60 kubectl get pods --all-namespaces -o wide || true
	timeout 60 kubectl -n meshd-system logs daemonset/meshd --tail 25 || true
	for pod in $(timeout 60 kubectl -n meshd-system get pods -o name); do
		echo "--- $pod, and before it was started again:"
		timeout 60 kubectl -n meshd-system logs "$pod" --tail 10 || true
		timeout 60 kubectl -n meshd-system logs "$pod" --previous --tail 10 || true
	done
	timeout 60 kubectl get events --all-namespaces --sort-by=.lastTimestamp 2>&1 | tail -n 25 || true
	for log in "$logs"/*.log; do
		echo "--- $log"
		tail -n 15 "$log" | cut -c 1-400
	done
	exit 1
}
trap 'fail "line $LINENO"' ERR
until_true() { # SECONDS WHAT COMMAND...
	local end=$((SECONDS + $1)) what=$2
	shift 2
	until "$@"; do
		[ $SECONDS -lt $end ] || fail "waited in vain for $what"
		sleep 0.5
	done
}
start() { # NAME COMMAND...: in the background
	local name=$1
	shift
	"$@" >"$logs/$name.log" 2>&1 &
}
page_from() { # NAMESPACE POD URL
	kubectl -n "$1" exec "$2" -- curl -sS --max-time 10 "$3" 2>&1 || true
}
serves() { page_from "$@" | grep -q "hello from server"; }
must_serve() { # WHEN NAMESPACE POD URL
	local when=$1
	shift
	serves "$@" || fail "$when: $2 is not served: $(page_from "$@")"
}
# curl itself says that it was turned away: an exec that fails is no refusal.
refuses() { page_from "$@" | grep -q '^curl: ('; }
must_refuse() {
	local when=$1
	shift
	refuses "$@" || fail "$when: $2 is not refused: $(page_from "$@")"
}
field() { kubectl -n "$1" get "$2" -o jsonpath="$3"; }
lives() { field shop "pod/$1" '{.metadata.uid} {.status.containerStatuses[0].restartCount}'; }
on_wire() { # FILE COMMAND...: what the pods' bridge carried meanwhile of the client's (the kubelet's probes are in the clear)
	local file=$1
	shift
	tcpdump -i cni0 -U -w "$file" host "$client" and host "$server" 2>"$logs/tcpdump.log" &
	local tcpdump=$!
	until_true 30 "tcpdump" grep -q "listening on" "$logs/tcpdump.log"
	"$@"
	sleep 1
	kill $tcpdump
	wait $tcpdump || true
}
# A file between them: a grep that has seen enough would end tcpdump, and the pipe would count as failed.
read_wire() { tcpdump -n -A -r "$1" >"$1.txt" 2>/dev/null || fail "cannot read $1"; }

# --- The node: as a distribution's start leaves it, with an address of its own and the cluster's two.
mount --make-rshared /
for folder in /var/lib/containerd /var/lib/kubelet; do
	# An overlay's layers may not be on an overlay, which this machine's root is.
	mkdir -p $folder
	mount -t tmpfs tmpfs $folder
done
modprobe dummy
ip link add node0 type dummy
ip link set node0 up
# Without kube-proxy the API server and DNS are asked at their own cluster addresses.
for address in 10.9.0.1/24 10.96.0.1/32 10.96.0.10/32; do ip addr add $address dev node0; done
echo "nameserver 10.96.0.10" >$keys/resolv.conf
programs_before=$(bpftool prog show | grep -Ec '^[0-9]+: ' || true)

key() { # NAME SUBJECT EXTENSIONS
	openssl ecparam -name prime256v1 -genkey -noout -out "$keys/$1.key"
	openssl req -new -key "$keys/$1.key" -subj "$2" -out "$keys/$1.csr"
	openssl x509 -req -in "$keys/$1.csr" -CA $keys/ca.crt -CAkey $keys/ca.key -CAcreateserial -days 30 \
		-extfile <(printf '%s' "$3") -out "$keys/$1.crt" 2>/dev/null
}
kubeconfig() { # NAME
	cat >"$keys/$1.kubeconfig" <<-YAML
		apiVersion: v1
		kind: Config
		current-context: c
		clusters: [ { name: c, cluster: { server: "https://10.96.0.1", certificate-authority: $keys/ca.crt } } ]
		users: [ { name: u, user: { client-certificate: $keys/$1.crt, client-key: $keys/$1.key } } ]
		contexts: [ { name: c, context: { cluster: c, user: u } } ]
	YAML
}
openssl ecparam -name prime256v1 -genkey -noout -out $keys/ca.key
openssl req -x509 -new -key $keys/ca.key -subj /CN=cluster -days 30 -out $keys/ca.crt \
	-addext 'keyUsage=critical,keyCertSign,cRLSign'
key server /CN=kube-apiserver \
	$'subjectAltName=IP:10.96.0.1,IP:10.9.0.1,IP:127.0.0.1,DNS:kubernetes.default.svc\nextendedKeyUsage=serverAuth'
key admin /O=system:masters/CN=admin 'extendedKeyUsage=clientAuth'
key node /O=system:nodes/CN=system:node:guest 'extendedKeyUsage=clientAuth'
kubeconfig admin
kubeconfig node
openssl ecparam -name prime256v1 -genkey -noout -out $keys/accounts.key
openssl ec -in $keys/accounts.key -pubout -out $keys/accounts.pub 2>/dev/null

# --- The control plane.
start etcd etcd --unsafe-no-fsync --data-dir /run/etcd --listen-client-urls http://127.0.0.1:2379 \
	--advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:0
# Tokens in pods are bound and renewed, as in current Kubernetes.
start kube-apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 --bind-address=0.0.0.0 --secure-port=443 \
	--advertise-address=10.9.0.1 --cert-dir=$keys/certs --tls-cert-file=$keys/server.crt --tls-private-key-file=$keys/server.key \
	--client-ca-file=$keys/ca.crt --service-cluster-ip-range=10.96.0.0/16 --allow-privileged=true \
	--authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
	--kubelet-client-certificate=$keys/admin.crt --kubelet-client-key=$keys/admin.key --kubelet-preferred-address-types=InternalIP \
	--service-account-issuer=https://kubernetes.default.svc --service-account-key-file=$keys/accounts.pub \
	--service-account-signing-key-file=$keys/accounts.key --feature-gates=BoundServiceAccountTokenVolume=true

# --- Meanwhile the container runtime.
mkdir -p /etc/cni/net.d
cat >/etc/cni/net.d/10-bridge.conf <<-JSON
	{ "cniVersion": "0.4.0", "name": "pods", "type": "bridge", "bridge": "cni0", "isGateway": true,
	  "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.244.0.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }] } }
JSON
cat >$keys/containerd.toml <<-TOML
	version = 2
	[plugins."io.containerd.grpc.v1.cri"]
	sandbox_image = "registry.k8s.io/pause:3.10"
	[plugins."io.containerd.grpc.v1.cri".cni]
	bin_dir = "$runtime/usr/lib/cni"
	[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
	runtime_type = "io.containerd.runc.v2"
TOML
# As its unit has it; pods inherit it.
ulimit -n 1048576
start containerd containerd --config $keys/containerd.toml
until_true 120 "containerd" test -S /run/containerd/containerd.sock
for image in pause meshd shop; do
	ctr -n k8s.io images import "$images/$image/image.tar" >$logs/import-$image.log 2>&1
done
say "containerd has its images"

# kubectl takes a second of an emulated processor each time.
ready() { curl -fsS --cacert $keys/ca.crt --cert $keys/admin.crt --key $keys/admin.key https://10.96.0.1/readyz >/dev/null 2>&1; }
until_true 300 "the API server" ready
say "the API server is ready"
controllers=daemonset,deployment,replicaset,endpoint,endpointslice,serviceaccount,root-ca-cert-publisher,namespace
start kube-controller-manager kube-controller-manager --kubeconfig=$keys/admin.kubeconfig --leader-elect=false --port=0 \
	--controllers=$controllers,garbagecollector,nodelifecycle --secure-port=0 --root-ca-file=$keys/ca.crt \
	--service-account-private-key-file=$keys/accounts.key --feature-gates=BoundServiceAccountTokenVolume=true \
	--node-monitor-grace-period=120s
start kube-scheduler kube-scheduler --kubeconfig=$keys/admin.kubeconfig --leader-elect=false --port=0 --secure-port=0
start dns python3 "$here/kubelet_dns.py" 10.96.0.10 https://10.96.0.1 $keys

# --- The kubelet.
cat >$keys/kubelet.yaml <<-YAML
	apiVersion: kubelet.config.k8s.io/v1beta1
	kind: KubeletConfiguration
	authentication: { anonymous: { enabled: false }, webhook: { enabled: false }, x509: { clientCAFile: $keys/ca.crt } }
	authorization: { mode: AlwaysAllow }
	cgroupDriver: cgroupfs
	clusterDNS: [10.96.0.10]
	clusterDomain: cluster.local
	failSwapOn: false
	# Its iptables chains are for kube-proxy, which is not here.
	makeIPTablesUtilChains: false
	resolvConf: $keys/resolv.conf
	evictionHard: { imagefs.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%" }
	imageGCHighThresholdPercent: 100
YAML
kubelet --config=$keys/kubelet.yaml --kubeconfig=$keys/node.kubeconfig --hostname-override=guest --node-ip=10.9.0.1 \
	--container-runtime=remote --container-runtime-endpoint=unix:///run/containerd/containerd.sock \
	--cert-dir=$keys/kubelet >$logs/kubelet.log 2>&1 &
kubelet=$!
until_true 300 "the node's object" eval 'kubectl get node guest >/dev/null 2>&1'
kubectl wait --for=condition=Ready node/guest --timeout=300s
kubectl get nodes -o wide

# --- Pods that know nothing of a mesh.
kubectl create namespace shop
kubectl create namespace elsewhere
pod() { # NAMESPACE NAME, and the rest of its specification
	cat <<-YAML
		apiVersion: v1
		kind: Pod
		metadata: { name: $2, namespace: $1, labels: { app: $2 } }
		spec:
		  terminationGracePeriodSeconds: 1
		  securityContext: { runAsUser: 1000, runAsGroup: 1000 }
	YAML
	cat
	echo "---"
}
{
	cat <<-YAML
		apiVersion: v1
		kind: ConfigMap
		metadata: { name: server, namespace: shop }
		data:
		  nginx.conf: |
		    pid /tmp/pid;
		    error_log stderr;
		    daemon off;
		    events {}
		    http {
		      access_log /dev/stdout;
		      client_body_temp_path /tmp/a; proxy_temp_path /tmp/b; fastcgi_temp_path /tmp/c; uwsgi_temp_path /tmp/d; scgi_temp_path /tmp/e;
		      server { listen 8080; location / { return 200 "hello from server\n"; } }
		    }
		---
		apiVersion: v1
		kind: Service
		metadata: { name: web, namespace: shop }
		spec: { selector: { app: server }, ports: [ { port: 80, targetPort: 8080 } ] }
		---
	YAML
	pod shop server <<-YAML
		  containers:
		    - name: nginx
		      image: shop:1
		      command: [nginx, -e, stderr, -c, /etc/shop/nginx.conf]
		      readinessProbe: { httpGet: { path: /, port: 8080 }, periodSeconds: 2, timeoutSeconds: 5, failureThreshold: 2 }
		      volumeMounts: [ { name: config, mountPath: /etc/shop }, { name: tmp, mountPath: /tmp } ]
		  volumes: [ { name: config, configMap: { name: server } }, { name: tmp, emptyDir: {} } ]
	YAML
	for place in "shop client" "elsewhere outsider"; do
		# shellcheck disable=SC2086
		pod $place <<<"  containers: [ { name: sleep, image: \"shop:1\" } ]"
	done
} >/run/pods.yaml
until_true 120 "service accounts" eval 'kubectl -n elsewhere get serviceaccount default >/dev/null 2>&1 &&
	kubectl -n shop get serviceaccount default >/dev/null 2>&1'
kubectl apply -f /run/pods.yaml
kubectl -n shop wait --for=condition=Ready pod/server pod/client --timeout=300s
kubectl -n elsewhere wait --for=condition=Ready pod/outsider --timeout=300s
server=$(field shop pod/server '{.status.podIP}')
client=$(field shop pod/client '{.status.podIP}')
direct=http://$server:8080/
must_serve "before there is a mesh" elsewhere outsider "$direct"
on_wire /run/plain.pcap must_serve "before there is a mesh" shop client "$direct"
read_wire /run/plain.pcap
grep -q "hello from server" /run/plain.pcap.txt || fail "no plaintext on the wire where it was expected"
server_lives=$(lives server) client_lives=$(lives client)
say "pods talk in plaintext"

# --- As docs/kubernetes.md says. 1.20 lacks what the patches take out of the manifests.
mkdir -p /run/overlay
cp -r "$deploy/kubernetes" /run/overlay/base
overlay() { # NAME BASE, and patches
	mkdir -p "/run/overlay/$1"
	cat >"/run/overlay/$1/kustomization.yaml" <<-YAML
		resources: [ ../$2 ]
		patches:
	YAML
	cat >>"/run/overlay/$1/kustomization.yaml"
}
overlay mesh base <<-YAML
	  - target: { kind: DaemonSet, name: meshd }
	    patch: '[ { "op": "remove", "path": "/spec/template/spec/containers/0/securityContext/appArmorProfile" } ]'
	  - target: { kind: PodDisruptionBudget }
	    patch: '[ { "op": "replace", "path": "/apiVersion", "value": "policy/v1beta1" } ]'
YAML
overlay cleanup base/cleanup <<-YAML
	  - target: { kind: DaemonSet, name: meshd-cleanup }
	    patch: '[ { "op": "remove", "path": "/spec/template/spec/initContainers/0/securityContext/appArmorProfile" } ]'
YAML
kubectl create -k /run/overlay/base/crds
kubectl apply --server-side -k /run/overlay/mesh
kubectl -n meshd-system rollout status deployment/meshd-ca --timeout=300s
kubectl -n meshd-system rollout status daemonset/meshd --timeout=300s
agent=$(kubectl -n meshd-system get pods -l app.kubernetes.io/name=meshd -o name)
kubectl -n meshd-system get pods -o wide
kubectl -n meshd-system exec "$agent" -- meshctl status
restarts=$(kubectl -n meshd-system get pods -l app.kubernetes.io/name=meshd-ca \
	-o jsonpath='{range .items[?(@.status.containerStatuses[0].restartCount>0)]}{.metadata.name}{" "}{end}')
for ca in $restarts; do
	say "$ca was started again, after it had said:"
	kubectl -n meshd-system logs "$ca" --previous --tail 10
done
grep -q '^Seccomp:.*2$' "/proc/$(pgrep -f '^/usr/bin/meshd run')/status" || fail "no seccomp profile holds the agent"
say "agent and CA are ready; what the agent may: $(
	grep -E 'CapBnd|NoNewPrivs|Seccomp:' "/proc/$(pgrep -f '^/usr/bin/meshd run')/status" | tr -s '\t\n' '  '
)"

# --- Into the mesh, without a restart.
kubectl label namespace shop meshd.io/dataplane=enabled
until_true 120 "the first meshed connection" eval 'serves shop client "$direct" &&
	kubectl -n meshd-system logs "$agent" | grep -q "\"peer_spiffe_id\":\"spiffe://cluster.local/ns/shop/sa/default\""'
on_wire /run/meshed.pcap must_serve "meshed" shop client "$direct"
read_wire /run/meshed.pcap
grep -qF " $server.8080" /run/meshed.pcap.txt || fail "nothing on the wire in the mesh: $(grep ' IP ' /run/meshed.pcap.txt)"
if grep -q "hello from server" /run/meshed.pcap.txt; then fail "plaintext on the wire in the mesh: $(cat /run/meshed.pcap.txt)"; fi
# DNS is our own here, and slow on an emulated processor.
until_true 60 "the service's name, which meshd alone serves here" serves shop client http://web/
must_serve "PERMISSIVE" elsewhere outsider "$direct"
say "pods that ran already are meshed"
kubectl apply -f - <<-YAML
	apiVersion: security.istio.io/v1
	kind: PeerAuthentication
	metadata: { name: default, namespace: shop }
	spec: { mtls: { mode: STRICT } }
YAML
until_true 120 "STRICT" refuses elsewhere outsider "$direct"
must_serve "STRICT" shop client "$direct"
probes() { kubectl -n shop logs server | grep -c kube-probe; }
enough=$(($(probes) + 3))
until_true 120 "the kubelet's probes under STRICT" eval '[ "$(probes)" -ge '$enough' ]'
until_true 30 "the server to be ready under STRICT" eval '[ "$(field shop pod/server "{.status.containerStatuses[0].ready}")" = true ]'
say "STRICT refuses who is not in the mesh, and the kubelet's probes pass"

# --- A pod that begins in the mesh: its init container already needs it.
pod shop late <<-YAML | kubectl apply -f -
	  initContainers: [ { name: first, image: "shop:1", command: [curl, -sS, --max-time, "30", "$direct"] } ]
	  containers: [ { name: sleep, image: "shop:1" } ]
YAML
kubectl -n shop wait --for=condition=Ready pod/late --timeout=300s
kubectl -n shop logs late -c first | grep -q "hello from server" || fail "the init container was not served"
[ "$(field shop pod/late '{.status.initContainerStatuses[0].restartCount}')" = 0 ] || fail "the init container had to try again"
say "a new pod's init container is in the mesh"

# --- The agent dies. The kubelet holds still until we have seen what happens without it.
address=$(field elsewhere pod/outsider '{.status.podIP}')
outsider=
for pid in $(pgrep -f -x '/usr/bin/sleep 1000000'); do
	if nsenter --target "$pid" --net ip -4 -o addr | grep -qF "$address/"; then outsider=$pid; fi
done
[ -n "$outsider" ] || fail "no process of the outsider was found"
kill -STOP $kubelet
kill -KILL "$(pgrep -f '^/usr/bin/meshd run')"
without=$(nsenter --target "$outsider" --net curl -sS --max-time 5 "$direct" 2>&1 || true)
kill -CONT $kubelet
[[ $without == "curl: ("* ]] || fail "the outsider was not refused while no agent runs: $without"
until_true 300 "the agent's restart" eval \
	'[ "$(field meshd-system "$agent" "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}")" = "1 true" ]'
must_serve "after kill -9" shop client "$direct"
must_refuse "after kill -9" elsewhere outsider "$direct"
say "the kubelet started the agent again after kill -9; nobody was let in meanwhile"

for ca in $(kubectl -n meshd-system get pods -l app.kubernetes.io/name=meshd-ca -o name); do
	kubectl -n meshd-system logs "$ca" --previous --tail 10 2>/dev/null | sed "s|^|before its restart, $ca: |" || true
done

# --- Out of the mesh, and everything away, in the order of docs/kubernetes.md.
[ "$(lives server)" = "$server_lives" ] || fail "the server was restarted: $(lives server)"
[ "$(lives client)" = "$client_lives" ] || fail "the client was restarted: $(lives client)"
kubectl label namespace shop meshd.io/dataplane-
until_true 120 "the outsider to be served" serves elsewhere outsider "$direct"
must_serve "after the label's removal" shop client "$direct"
say "out of the mesh again"
kubectl -n meshd-system delete daemonset meshd --cascade=foreground
if pgrep -f '^/usr/bin/meshd run'; then fail "the agent outlived its DaemonSet"; fi
say "the agent is gone"
[ -e /sys/fs/bpf/meshd ] || fail "nothing was left for the cleaning"
kubectl apply -k /run/overlay/cleanup
kubectl -n meshd-system rollout status daemonset/meshd-cleanup --timeout=300s
[ ! -e /sys/fs/bpf/meshd ] || fail "left: $(find /sys/fs/bpf/meshd)"
kubectl delete -k /run/overlay/cleanup
say "the node is clean"
kubectl delete -k /run/overlay/mesh --ignore-not-found
until_true 120 "the end of all pods" eval '! pgrep -f "^/usr/bin/meshd" >/dev/null'
must_serve "uninstalled" elsewhere outsider "$direct"
# runc's own programs, which allow devices, belong to pods.
left=$(bpftool prog show | grep -E '^[0-9]+: ' | grep -vc cgroup_device || true)
[ "$left" -le "$programs_before" ] || fail "programs are left in the kernel: $(bpftool prog show)"
[ ! -e /run/meshd ] || fail "left: $(find /run/meshd)"
kill -KILL $kubelet
say "all of it worked"
