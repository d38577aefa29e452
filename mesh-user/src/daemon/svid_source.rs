//! Who issues this node's SVIDs, as the node's file has it: a CA in this process, one elsewhere, or a Workload API; and the
//! task that follows what that one tells.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::DaemonError;
use crate::{
    ca::{
        CaError, SvidSource,
        authority::{Authority, AuthoritySettings, Local},
        jwt_svid::{JwtAuthority, MintJwt},
        remote::{Address, Istiod, IstiodSettings, MeshdCa, MeshdCaSettings, ServerIdentity},
        workload_api::{IssueExportable, IssueThrough, WorkloadApiSource},
    },
    config::{CaConfig, CaProvider, Config},
};

/// What the node's file chose.
pub(super) struct Opened {
    /// Of the daemon's own SVIDs.
    pub(super) source: Arc<dyn SvidSource>,
    /// Of those that workloads hold themselves; none: the source does not certify keys of theirs.
    pub(super) exportable: Option<Arc<dyn IssueExportable>>,
    /// Of JWT-SVIDs.
    pub(super) minter: Option<Arc<dyn MintJwt>>,
    /// The authority of JWT-SVIDs, where it is in this process.
    pub(super) jwt: Option<Arc<JwtAuthority>>,
    /// The authority itself, where it is in this process.
    pub(super) authority: Option<Authority>,
}

/// Opens it. Tasks of it run until `stop`.
pub(super) fn open(config: &Config, stop: &CancellationToken) -> Result<Opened, DaemonError> {
    let svid_lifetime = Duration::from_secs(config.ca.svid_lifetime_seconds);
    Ok(match config.ca.provider {
        CaProvider::Embedded => embedded(config, svid_lifetime, stop)?,
        CaProvider::MeshdCa => {
            let address = Address::parse(given(config.ca.address.as_ref(), "address")?);
            let ca = MeshdCa::open(MeshdCaSettings {
                trust_domain: config.trust_domain.clone(),
                node: config.node.clone(),
                server: server(&config.ca, &address)?,
                address,
                roots_file: config.ca.roots_file.clone(),
                token_file: config.ca.token_file.clone(),
                join_token_file: config.ca.join_token_file.clone(),
                state_dir: config.state_dir.clone(),
                svid_lifetime,
                clock_skew: config.limits.clock_skew(),
            })?;
            tokio::spawn(Arc::clone(&ca).run(stop.clone()));
            Opened {
                source: Arc::<MeshdCa>::clone(&ca),
                exportable: Some(Arc::<MeshdCa>::clone(&ca)),
                minter: Some(ca),
                jwt: None,
                authority: None,
            }
        }
        CaProvider::Istiod => {
            let address = Address::parse(given(config.ca.address.as_ref(), "address")?);
            let ca = Istiod::open(IstiodSettings {
                trust_domain: config.trust_domain.clone(),
                server: server(&config.ca, &address)?,
                address,
                roots_file: given(config.ca.roots_file.as_ref(), "rootsFile")?.clone(),
                token_file: given(config.ca.token_file.as_ref(), "tokenFile")?.clone(),
                cluster_id: config.ca.cluster_id.clone(),
                state_dir: config.state_dir.clone(),
                svid_lifetime,
                clock_skew: config.limits.clock_skew(),
            })?;
            tokio::spawn(Arc::clone(&ca).run(stop.clone()));
            Opened {
                source: Arc::<Istiod>::clone(&ca),
                exportable: Some(ca),
                minter: None,
                jwt: None,
                authority: None,
            }
        }
        CaProvider::WorkloadApi => Opened {
            source: Arc::new(WorkloadApiSource::start(config.ca.address.as_deref()).map_err(CaError::from)?),
            exportable: None,
            minter: None,
            jwt: None,
            authority: None,
        },
    })
}

fn embedded(config: &Config, lifetime: Duration, stop: &CancellationToken) -> Result<Opened, DaemonError> {
    let authority = Authority::open(AuthoritySettings {
        lifetime,
        max_lifetime: lifetime,
        ..AuthoritySettings::new(config.ca_directory(), config.trust_domain.clone())
    })?;
    let (running, stop) = (authority.clone(), stop.clone());
    tokio::spawn(async move { running.run(stop).await });
    let open_jwt = || authority.open_jwt(&config.jwt_directory());
    let jwt = config.workload_api.enabled.then(open_jwt).transpose()?;
    Ok(Opened {
        source: Arc::new(Local(authority.clone())),
        exportable: Some(Arc::new(IssueThrough::new(
            Arc::new(authority.clone()),
            config.node.as_str().into(),
        ))),
        minter: jwt.clone().map(|jwt| -> Arc<dyn MintJwt> { jwt }),
        jwt,
        authority: Some(authority),
    })
}

/// The configuration's check has seen to it that the field is there.
fn given<'a, T: ?Sized>(field: Option<&'a T>, name: &'static str) -> Result<&'a T, DaemonError> {
    field.ok_or(DaemonError::CaField(name))
}

fn server(ca: &CaConfig, address: &Address) -> Result<ServerIdentity, DaemonError> {
    let host = match address {
        Address::Tcp(address) => address.rsplit_once(':').map_or("", |(host, _)| host),
        Address::Unix(_) => "localhost",
    };
    let name = ca.server_name.as_deref().unwrap_or_else(|| host.trim_matches(['[', ']']));
    ServerIdentity::parse(name).map_err(|_| DaemonError::CaField("serverName"))
}
