//! A real Kubernetes API server with its etcd in a place of the story: as envtest starts it, with role-based access, and
//! keys of its own. Its programs lie where `cargo xtask kube` put them, or where `KUBEBUILDER_ASSETS` says.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};

use super::netns::Place;
use super::process::{PATIENCE, Program, wait_until};

/// Where the API server answers, in its place.
pub(crate) const PORT: u16 = 6443;
const ETCD: &str = "127.0.0.1:2379";
/// What bound tokens are for unless they say otherwise.
pub(crate) const ISSUER: &str = "https://kubernetes.default.svc";

/// The folder of programs, if set-up has made it.
pub(crate) fn assets() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("KUBEBUILDER_ASSETS") {
        return Some(folder.into());
    }
    let assets = super::daemon::bin_dir().parent()?.join("kube/assets");
    assets.join("kubectl").is_file().then_some(assets)
}

/// Where the deployed manifests are.
pub(crate) fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes")
}

/// A node's object.
pub(crate) fn node(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } })
}

/// A cluster without nodes and controllers.
pub(crate) struct Cluster {
    pub(crate) place: Place,
    assets: PathBuf,
    dir: PathBuf,
    /// What else the API server is started with.
    pub(crate) flags: Vec<String>,
    _etcd: Program,
    api_server: Option<Program>,
}

impl Cluster {
    /// Starts it in `place` and waits until it is ready.
    pub(crate) fn start(place: &Place) -> anyhow::Result<Self> {
        Self::start_with(place, Vec::new())
    }

    /// The same, the API server with `flags` too.
    pub(crate) fn start_with(place: &Place, flags: Vec<String>) -> anyhow::Result<Self> {
        let assets = assets().context("no API server: cargo xtask kube")?;
        let dir = place.dir().join(format!("{}-cluster", place.name));
        fs::create_dir_all(&dir)?;
        make_certificates(place, &dir)?;
        let etcd = assets.join("etcd").to_string_lossy().into_owned();
        let data = dir.join("etcd");
        let url = format!("http://{ETCD}");
        let etcd = [
            etcd.as_str(),
            "--unsafe-no-fsync",
            "--data-dir",
            &data.to_string_lossy(),
            "--listen-client-urls",
            &url,
            "--advertise-client-urls",
            &url,
            "--listen-peer-urls",
            "http://127.0.0.1:0",
        ]
        .map(str::to_owned);
        let etcd = place.launch("etcd", &etcd).start()?;
        let mut cluster = Self { place: place.clone(), assets, dir, flags, _etcd: etcd, api_server: None };
        fs::write(cluster.admin(), cluster.kubeconfig_of("admin").to_string())?;
        cluster.start_api_server()?;
        Ok(cluster)
    }

    /// Starts the API server, again after [`Self::stop_api_server`], and waits until it is ready.
    pub(crate) fn start_api_server(&mut self) -> anyhow::Result<()> {
        let file = |name: &str| self.file(name).to_string_lossy().into_owned();
        let api_server = self.assets.join("kube-apiserver").to_string_lossy().into_owned();
        let mut arguments = vec![
            api_server,
            format!("--etcd-servers=http://{ETCD}"),
            "--bind-address=0.0.0.0".to_owned(),
            format!("--advertise-address={}", self.place.v4),
            format!("--secure-port={PORT}"),
            format!("--cert-dir={}", file("certs")),
            format!("--tls-cert-file={}", file("server.crt")),
            format!("--tls-private-key-file={}", file("server.key")),
            format!("--client-ca-file={}", file("ca.crt")),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            format!("--service-account-issuer={ISSUER}"),
            format!("--service-account-key-file={}", file("accounts.pub")),
            format!("--service-account-signing-key-file={}", file("accounts.key")),
        ];
        arguments.extend(self.flags.iter().cloned());
        let mut program = self.place.launch("kube-apiserver", &arguments).start()?;
        wait_until(PATIENCE * 4, "the API server to be ready", || {
            ensure!(program.is_running(), "the API server ended at start: {}", program.stderr());
            Ok(self.kubectl(&["get", "--raw", "/readyz"]).is_ok())
        })?;
        self.api_server = Some(program);
        Ok(())
    }

    /// SIGKILL; what it stored stays.
    pub(crate) fn stop_api_server(&mut self) -> anyhow::Result<()> {
        self.api_server.take().context("the API server runs")?.kill_hard()
    }

    /// Starts the controllers that make pods of Deployments and Jobs and slices of Services; without those that want nodes
    /// with heartbeats.
    pub(crate) fn start_controllers(&self) -> anyhow::Result<Program> {
        let manager = self.assets.join("kube-controller-manager");
        ensure!(
            manager.is_file(),
            "no kube-controller-manager in {}: cargo xtask kube",
            self.assets.display()
        );
        let file = |name: &str| self.file(name).to_string_lossy().into_owned();
        let arguments = [
            manager.to_string_lossy().into_owned(),
            format!("--kubeconfig={}", file("admin.kubeconfig")),
            "--controllers=deployment,replicaset,statefulset,job,endpoint,endpointslice,serviceaccount,namespace,garbagecollector"
                .to_owned(),
            "--leader-elect=false".to_owned(),
            "--port=0".to_owned(),
            "--secure-port=0".to_owned(),
            "--kube-api-qps=200".to_owned(),
            "--kube-api-burst=400".to_owned(),
        ];
        self.place.launch("kube-controller-manager", &arguments).start()
    }

    /// One of its keys and certificates.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The file by which an administrator reaches it.
    pub(crate) fn admin(&self) -> PathBuf {
        self.file("admin.kubeconfig")
    }

    /// Where it is reached from the wire.
    pub(crate) fn url(&self) -> String {
        format!("https://{}:{PORT}", self.place.v4)
    }

    /// Runs kubectl as administrator; its output, if it succeeded.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let kubectl = self.assets.join("kubectl");
        let (kubectl, admin) = (kubectl.to_string_lossy(), self.admin());
        let admin = admin.to_string_lossy();
        let mut argv: Vec<&str> = vec![&kubectl, "--kubeconfig", &admin];
        argv.extend(arguments);
        self.place.run(&argv)?.succeeded()
    }

    /// Creates or applies (`how`) the files under `deploy/kubernetes` of these names.
    pub(crate) fn deploy(&self, how: &str, files: &[&str]) -> anyhow::Result<()> {
        let folder = manifests();
        for file in files {
            let path = folder.join(file);
            let flag = if path.is_dir() { "-k" } else { "-f" };
            self.kubectl(&[how, flag, &path.to_string_lossy()])?;
        }
        Ok(())
    }

    /// Applies objects.
    pub(crate) fn apply(&self, objects: &[Value]) -> anyhow::Result<()> {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        let file = self.dir.join("apply.json");
        fs::write(&file, list.to_string())?;
        self.kubectl(&["apply", "-f", &file.to_string_lossy()]).map(|_| ())
    }

    /// A token of a service account, bound to a pod where one is named.
    pub(crate) fn token(
        &self,
        namespace: &str,
        account: &str,
        audience: &str,
        pod: Option<&str>,
    ) -> anyhow::Result<String> {
        let audience = format!("--audience={audience}");
        let mut arguments = vec!["-n", namespace, "create", "token", account, &audience, "--duration=10m"];
        let bound = pod.map(|pod| format!("--bound-object-name={pod}"));
        if let Some(bound) = &bound {
            arguments.extend(["--bound-object-kind=Pod", bound]);
        }
        Ok(self.kubectl(&arguments)?.trim().to_owned())
    }

    /// A file by which whoever has this token reaches it.
    pub(crate) fn kubeconfig_of_token(&self, token: &str) -> Value {
        let mut config = self.kubeconfig_of("admin");
        config["users"][0]["user"] = json!({ "token": token });
        config
    }

    /// The file by which agents reach it: their deployed account, with no more than its roles grant.
    pub(crate) fn agents(&self) -> anyhow::Result<PathBuf> {
        const NAMESPACE: &str = "meshd-system";
        let mut config = self.kubeconfig_of_token(&self.token(NAMESPACE, "meshd", ISSUER, None)?);
        config["contexts"][0]["context"]["namespace"] = json!(NAMESPACE);
        let file = self.file("agent.kubeconfig");
        fs::write(&file, config.to_string())?;
        Ok(file)
    }

    /// By a client certificate of this name.
    fn kubeconfig_of(&self, name: &str) -> Value {
        let file = |name: String| self.dir.join(name);
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [ { "name": "c", "cluster": {
                "server": self.url(), "certificate-authority": file("ca.crt".into()),
            } } ],
            "users": [ { "name": "u", "user": {
                "client-certificate": file(format!("{name}.crt")), "client-key": file(format!("{name}.key")),
            } } ],
            "contexts": [ { "name": "c", "context": { "cluster": "c", "user": "u" } } ],
        })
    }
}

fn make_certificates(place: &Place, dir: &Path) -> anyhow::Result<()> {
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "cluster");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    fs::write(dir.join("ca.crt"), authority.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(authority, key);
    let mut server = CertificateParams::default();
    server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    let addresses = [IpAddr::V4(place.v4), IpAddr::V6(place.v6), Ipv4Addr::LOCALHOST.into()];
    server.subject_alt_names = addresses.map(SanType::IpAddress).to_vec();
    server.subject_alt_names.push(SanType::DnsName("kubernetes.default.svc".try_into()?));
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let mut admin = CertificateParams::default();
    admin.distinguished_name.push(DnType::OrganizationName, "system:masters");
    admin.distinguished_name.push(DnType::CommonName, "admin");
    admin.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    for (name, params) in [("server", server), ("admin", admin)] {
        let key = KeyPair::generate()?;
        fs::write(dir.join(format!("{name}.crt")), params.signed_by(&key, &issuer)?.pem())?;
        fs::write(dir.join(format!("{name}.key")), key.serialize_pem())?;
    }
    let accounts = KeyPair::generate()?;
    fs::write(dir.join("accounts.key"), accounts.serialize_pem())?;
    fs::write(dir.join("accounts.pub"), accounts.public_key_pem())?;
    Ok(())
}
