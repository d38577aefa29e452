#!/bin/bash
# Runs deploy/systemd's units under a systemd of its own, in a machine made for it (`cargo xtask vm`): installs meshd.service as
# docs/operations.md says, then starts, reloads, kills, restarts and stops it, with traffic between two workloads
# as the judge; then meshd-ca.service as docs/authority.md says, with meshd as its agent. Never run it elsewhere: it writes to /etc and /usr/bin and attaches to the root of the cgroup tree.
#
# usage: systemd_unit.sh FOLDER_OF_MESHD FOLDER_OF_DEPLOY
set -euo pipefail
bin=$1 deploy=$2
log=/run/meshd.log
[ -e /run/guest/program ] || { echo "this is no machine made for tests"; exit 1; }

say() { echo "systemd: $*"; }
fail() {
	say "FAILED: $*"
	tail -n 30 "$log" 2>/dev/null || true
	control status meshd --no-pager --lines 0 || true
	exit 1
}
# systemctl, where this systemd is process 1.
control() { nsenter --target "$systemd" --pid --mount systemctl "$@"; }
until_true() { # SECONDS WHAT COMMAND...
	local end=$((SECONDS + $1)) what=$2
	shift 2
	until "$@"; do
		[ $SECONDS -lt $end ] || fail "waited in vain for $what"
		sleep 0.2
	done
}
property() { control show --value --property "$1" "${2:-meshd}"; }
page() { ip netns exec "$1" curl -sS --max-time 10 http://10.9.0.2:8080/ 2>&1; }
must_serve() { [ "$(page client)" = "hello from the server" ] || fail "$1: the client is not served: $(page client)"; }
must_refuse() { if page "$2" | grep -q hello; then fail "$1: $2 was served"; fi; }

# Two pods and an outsider on one wire.
ip link add wire type bridge
ip link set wire up
host=0
for pod in client server outsider; do
	host=$((host + 1))
	ip netns add $pod
	ip link add v-$pod type veth peer name eth0 netns $pod
	ip link set v-$pod master wire up
	ip -n $pod addr add 10.9.0.$host/24 dev eth0
	ip -n $pod link set eth0 up
	ip -n $pod link set lo up
done
mkdir -p /run/pages
echo "hello from the server" >/run/pages/index.html

# As docs/operations.md says.
install -m 755 "$bin/meshd" "$bin/meshctl" /usr/bin/
install -d -m 755 /etc/meshd /etc/meshd/policies
install -m 644 "$deploy/systemd/meshd.service" /etc/systemd/system/
cat >/etc/meshd/node.yaml <<-YAML
	node: node-a
	workloads:
	  - { name: client, namespace: shop, selector: { netns: /run/netns/client }, addresses: [10.9.0.1] }
	  - { name: server, namespace: shop, selector: { netns: /run/netns/server }, addresses: [10.9.0.2] }
YAML
cat >/etc/meshd/policies/strict.yaml <<-YAML
	apiVersion: security.istio.io/v1
	kind: PeerAuthentication
	metadata: { name: default, namespace: istio-system }
	spec: { mtls: { mode: STRICT } }
YAML
# The test's own: a file for what is said, and less patience with a daemon that hangs.
mkdir -p /etc/systemd/system/meshd.service.d
cat >/etc/systemd/system/meshd.service.d/test.conf <<-CONF
	[Service]
	StandardError=append:$log
	WatchdogSec=20s
	TimeoutAbortSec=5s
CONF
printf '[Unit]\nDescription=nothing but what the test starts\nDefaultDependencies=no\n' >/etc/systemd/system/bare.target

# Neither journal nor bus: systemctl talks to process 1 itself.
env container=meshd-test unshare --pid --fork --mount --mount-proc \
	/lib/systemd/systemd --system --unit=bare.target --log-level=warning --log-target=console >/run/systemd.log 2>&1 &
unshare=$!
until_true 60 "a child of unshare" pgrep --parent $unshare >/dev/null
systemd=$(pgrep --parent $unshare)
until_true 60 "systemd to answer" control show-environment >/dev/null 2>&1

cat >/run/pages/nginx.conf <<-CONF
	pid /run/pages/pid;
	error_log stderr;
	events {}
	http { access_log off; server { listen 8080; root /run/pages; } }
CONF
ip netns exec server nginx -c /run/pages/nginx.conf -g 'daemon off;' >/run/nginx.log 2>&1 &
until_true 60 "the server" eval 'page outsider | grep -q hello'

systemd-analyze verify /etc/systemd/system/meshd.service || fail "systemd-analyze finds fault with the unit"
control start meshd || fail "start"
[ "$(property ActiveState)" = active ] || fail "not active after start"
say "started: $(property StatusText)"
meshctl status >/dev/null || fail "meshctl status"
meshctl check >/dev/null || fail "meshctl check: something required is not proven"
meshctl check
must_serve "after start"
must_refuse "after start" outsider
# A client that binds a privileged port, as NFS clients do, keeps it on the wire leg.
ip netns exec client curl -sS --max-time 10 --local-port 900 http://10.9.0.2:8080/ >/dev/null || fail "from port 900"
until_true 20 "the access log" grep -q '"direction":"inbound","source":{"address":"10.9.0.1:900"' $log
grep -q '"peer_spiffe_id":"spiffe://cluster.local/ns/shop/sa/default"' $log || fail "no identity was proven"
say "what it may: $(grep -E 'CapBnd|NoNewPrivs|Seccomp:' "/proc/$(pgrep -x meshd)/status" | tr -s '\t\n' '  ')"

control reload meshd || fail "a reload of good files"
sed -i 's/^workloads:/worklods:/' /etc/meshd/node.yaml
if control reload meshd; then fail "a reload of bad files succeeded"; fi
must_serve "after a refused reload"
sed -i 's/^worklods:/workloads:/' /etc/meshd/node.yaml
control reload meshd || fail "a reload of mended files"
say "reloads told good from bad"

before=$(property MainPID)
kill -STOP "$(pgrep -x meshd)"
until_true 120 "the watchdog" eval '[ "$(property NRestarts)" -ge 1 ] && [ "$(property ActiveState)" = active ]'
[ "$(property MainPID)" != "$before" ] || fail "the same process after the watchdog"
must_serve "after the watchdog"
must_refuse "after the watchdog" outsider
say "the watchdog replaced a daemon that hung"

kill -KILL "$(pgrep -x meshd)"
must_refuse "while it is dead" outsider
until_true 120 "the restart" eval '[ "$(property NRestarts)" -ge 2 ] && [ "$(property ActiveState)" = active ]'
must_serve "after kill -9"
say "systemd started it again after kill -9"

control restart meshd || fail "restart"
must_serve "after restart"
control stop meshd || fail "stop"
[ "$(property Result)" = success ] || fail "stop: $(property Result)"
! mount | grep -q /run/meshd || fail "its mount is left"
page outsider | grep -q hello || fail "the network is not as before after stop"
say "stopped, nothing left"

sed -i '1a shutdown: { hooks: keep }' /etc/meshd/node.yaml
control start meshd || fail "start with hooks kept"
must_serve "with hooks kept"
control stop meshd || fail "stop with hooks kept"
must_refuse "stopped, hooks kept" outsider
must_refuse "stopped, hooks kept" client
meshctl cleanup || fail "cleanup"
page outsider | grep -q hello || fail "the network is not as before after cleanup"
say "hooks that were kept refused, and cleanup took them away"

# The CA of a fleet, and this machine's meshd as its agent.
useradd --system --home-dir /nonexistent --shell /usr/sbin/nologin meshd-ca
install -m 644 "$deploy/systemd/meshd-ca.service" /etc/systemd/system/
cat >/etc/meshd/ca.yaml <<-YAML
	trustDomain: cluster.local
	dnsNames: [ca.example.com]
	unixSocket: { path: /run/meshd-ca/agents.sock, node: node-a }
	nodes: [ { name: node-a, identities: ["spiffe://cluster.local/ns/shop/*"] } ]
	audit: { file: /var/log/meshd-ca/audit.json }
YAML
mkdir -p /etc/systemd/system/meshd-ca.service.d
printf '[Service]\nStandardError=append:/run/meshd-ca.log\n' >/etc/systemd/system/meshd-ca.service.d/test.conf
log=/run/meshd-ca.log
meshctl ca config-validate /etc/meshd/ca.yaml || fail "the CA's file is not valid"
systemd-analyze verify /etc/systemd/system/meshd-ca.service || fail "systemd-analyze finds fault with the CA's unit"
control daemon-reload
control start meshd-ca || fail "start of the CA"
meshctl ca status || fail "meshctl ca status"
ca=$(property MainPID meshd-ca)
[ "$(ps -o user= -C meshd | sort -u)" = meshd-ca ] || fail "the CA is not a user of its own"
cat >>/etc/meshd/node.yaml <<-YAML
	ca: { provider: meshd-ca, address: "unix:/run/meshd-ca/agents.sock" }
YAML
log=/run/meshd.log
control start meshd || fail "start as the CA's agent"
must_serve "with the CA's certificates"
must_refuse "with the CA's certificates" outsider
grep -q '"identity":"spiffe://cluster.local/ns/shop/sa/default"' /var/log/meshd-ca/audit.json || fail "the audit knows of no certificate"
pkill -KILL -u meshd-ca -x meshd
must_serve "while the CA is dead"
until_true 120 "the CA's restart" eval '[ "$(property NRestarts meshd-ca)" -ge 1 ] && meshctl ca status >/dev/null 2>&1'
[ "$(property MainPID meshd-ca)" != "$ca" ] || fail "the same CA after kill -9"
control reload meshd-ca || fail "a reload of the CA"
control restart meshd || fail "a restart of the CA's agent"
must_serve "after the CA was killed"
control stop meshd meshd-ca || fail "stop of both"
[ "$(property Result meshd-ca)" = success ] || fail "stop of the CA: $(property Result meshd-ca)"
say "the CA served its agent, was killed and came back"
kill -KILL "$systemd"
say "all of it worked"
