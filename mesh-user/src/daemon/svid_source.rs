//! Who issues this node's SVIDs, as the node's file has it: a CA in this process, or one elsewhere and the task that follows
//! what that one tells.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::DaemonError;
use crate::{
    ca::{
        EmbeddedCa, InProcess, SvidSource,
        remote::{Address, Istiod, IstiodSettings, MeshdCa, MeshdCaSettings, ServerIdentity},
    },
    config::{CaConfig, CaProvider, Config},
};

/// Opens it. Tasks of it run until `stop`.
pub(super) fn open(config: &Config, stop: &CancellationToken) -> Result<Arc<dyn SvidSource>, DaemonError> {
    let svid_lifetime = Duration::from_secs(config.ca.svid_lifetime_seconds);
    Ok(match config.ca.provider {
        CaProvider::Embedded => {
            let ca = EmbeddedCa::open(&config.ca_directory(), config.trust_domain.clone(), svid_lifetime)?;
            Arc::new(InProcess::new(ca))
        }
        CaProvider::MeshdCa => {
            let address = Address::parse(given(config.ca.address.as_ref(), "address")?);
            let ca = MeshdCa::open(MeshdCaSettings {
                trust_domain: config.trust_domain.clone(),
                node: config.node.clone(),
                server: server(&config.ca, &address)?,
                address,
                roots_file: config.ca.roots_file.clone(),
                join_token_file: config.ca.join_token_file.clone(),
                state_dir: config.state_dir.clone(),
                svid_lifetime,
                clock_skew: config.limits.clock_skew(),
            })?;
            tokio::spawn(Arc::clone(&ca).run(stop.clone()));
            ca
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
            ca
        }
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
