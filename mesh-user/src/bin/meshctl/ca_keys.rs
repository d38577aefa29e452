//! The commands about a CA's own keys and the certificates that it takes back, whoever holds it: `meshd ca`, or a node whose
//! CA is embedded.

use std::{io::Write, path::Path};

use mesh_user::{
    admin::{
        self, AdminClient, CA_KEYS, CaStatus, RevokeBody, RevokeWhat, RotateBody, RotateStep, UnblockBody,
        Unblocked,
    },
    ca::authority::{AuthorityStatus, Kind, OneStatus, Reason, Revoked, Stage},
};
use serde::Serialize;

use crate::{
    args::{CaCommand, CaService, Output, RevokeArguments, RevokeReason, RotateKind},
    authority::time,
    render,
};

/// What `ca status` shows.
#[derive(Serialize)]
struct Standing {
    /// None: the CA is embedded.
    #[serde(flatten)]
    service: Option<CaStatus>,
    keys: AuthorityStatus,
}

/// Whom a command asks.
pub(crate) fn client(service: &CaService, runtime_dir: &Path) -> AdminClient {
    if service.embedded { AdminClient::new(runtime_dir) } else { AdminClient::of_ca(&service.ca_runtime_dir) }
}

/// Runs one of them; false: it is another's.
pub(crate) async fn run(
    command: &CaCommand,
    runtime_dir: &Path,
    format: Output,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let at = |path: &str| format!("{CA_KEYS}/{path}");
    match command {
        CaCommand::Status(service) => {
            let client = client(service, runtime_dir);
            let figures = if service.embedded { None } else { Some(client.get("/v1/status").await?) };
            let standing = Standing { service: figures, keys: client.get(&at("status")).await? };
            render::either(out, format, &standing, |out| {
                if let Some(service) = &standing.service {
                    crate::authority::show(out, service)?;
                    writeln!(out)?;
                }
                show(out, &standing.keys)
            })?;
        }
        CaCommand::Rotate { kind, advance, force, cancel, service } => {
            let step = match (cancel, advance, force) {
                (true, ..) => RotateStep::Cancel,
                (false, true, true) => RotateStep::Force,
                (false, true, false) => RotateStep::Advance,
                (false, false, _) => RotateStep::Begin,
            };
            let kind = match kind {
                RotateKind::Root => admin::RotateKind::Root,
                RotateKind::Intermediate => admin::RotateKind::Intermediate,
                RotateKind::Jwt => admin::RotateKind::Jwt,
            };
            let body = RotateBody { kind, step };
            let keys: AuthorityStatus = client(service, runtime_dir).post_json(&at("rotate"), &body).await?;
            render::either(out, format, &keys, |out| show(out, &keys))?;
        }
        CaCommand::Revoke { what, reason, force, service } => {
            let body = RevokeBody { what: meant(what), reason: said(*reason), force: *force };
            let revoked: Revoked = client(service, runtime_dir).post_json(&at("revoke"), &body).await?;
            render::either(out, format, &revoked, |out| {
                writeln!(
                    out,
                    "revoked {} certificates; trust version {}",
                    revoked.serials.len(),
                    revoked.version
                )?;
                for serial in &revoked.remaining {
                    writeln!(
                        out,
                        "no list can name {serial}: its authority's key is gone; withdraw that authority"
                    )?;
                }
                Ok(())
            })?;
        }
        CaCommand::Unblock { identity, service } => {
            let body = UnblockBody { identity: identity.clone() };
            let answer: Unblocked = client(service, runtime_dir).post_json(&at("unblock"), &body).await?;
            let standing = if answer.was_blocked { "may have certificates again" } else { "was not blocked" };
            let sentence = format!("{identity} {standing}");
            render::done(out, format, &sentence)?;
        }
        CaCommand::Crl(service) => {
            out.write_all(client(service, runtime_dir).text(&at("crl")).await?.as_bytes())?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// clap sees to it that exactly one is given.
fn meant(what: &RevokeArguments) -> RevokeWhat {
    let RevokeArguments { serial, identity, block, issuer } = what.clone();
    let of = |id: Option<String>, block| id.map(|id| RevokeWhat::Identity { id, block });
    let by_number = serial.map(RevokeWhat::Serial).or(issuer.map(RevokeWhat::Issuer));
    let meant = by_number.or(of(identity, false)).or(of(block, true));
    meant.unwrap_or_else(|| RevokeWhat::Serial(String::new()))
}

fn said(reason: RevokeReason) -> Reason {
    match reason {
        RevokeReason::Unspecified => Reason::Unspecified,
        RevokeReason::KeyCompromise => Reason::KeyCompromise,
        RevokeReason::CaCompromise => Reason::CaCompromise,
        RevokeReason::AffiliationChanged => Reason::AffiliationChanged,
        RevokeReason::Superseded => Reason::Superseded,
        RevokeReason::CessationOfOperation => Reason::CessationOfOperation,
        RevokeReason::PrivilegeWithdrawn => Reason::PrivilegeWithdrawn,
    }
}

fn show(out: &mut dyn Write, keys: &AuthorityStatus) -> std::io::Result<()> {
    let row = |one: &OneStatus| {
        let stage =
            if one.signs { format!("{}, signs", name(one.stage)) } else { name(one.stage).to_owned() };
        let next = match (&one.next, &one.stays) {
            (Some(next), _) => format!("{} when told", name(*next)),
            (None, Some(why)) => why.clone(),
            (None, None) => String::new(),
        };
        let kind = match one.kind {
            Kind::Root => "root",
            Kind::Intermediate => "intermediate",
        };
        [
            kind.to_owned(),
            stage,
            one.serial.clone(),
            time(one.not_after_seconds),
            one.certificates.to_string(),
            next,
        ]
    };
    let header = ["KIND", "STAGE", "SERIAL", "ENDS", "CERTIFICATES", "NEXT"];
    render::table(out, header, keys.authorities.iter().map(row))?;
    writeln!(out)?;
    let rotates = if keys.automatic { "by itself" } else { "when told" };
    writeln!(
        out,
        "trust version {}; rotates {rotates}; {} certificates revoked",
        keys.trust_version, keys.revoked
    )?;
    for key in &keys.jwt_keys {
        let next = match (&key.next, &key.stays) {
            (Some(next), _) => format!("; {} when told", name(*next)),
            (None, Some(why)) => format!("; {why}"),
            (None, None) => String::new(),
        };
        let kid = render::clean(&key.kid);
        writeln!(out, "JWT key {kid} is {} since {}{next}", name(key.stage), time(key.since_seconds))?;
    }
    if keys.clock_ahead_seconds > 0 {
        writeln!(
            out,
            "CLOCK: {} s ahead of the time that has passed; nothing is withdrawn or forgotten by itself until it has been \
             steady for so long",
            keys.clock_ahead_seconds
        )?;
    }
    for node in &keys.nodes {
        let name = render::clean(&node.node);
        writeln!(out, "node {name} has version {} since {}", node.version, time(node.acknowledged_seconds))?;
    }
    for id in &keys.blocked {
        writeln!(out, "blocked: {}", render::clean(id))?;
    }
    Ok(())
}

fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Prepared => "prepared",
        Stage::Trusted => "trusted",
        Stage::Active => "active",
        Stage::Retiring => "retiring",
        Stage::Withdrawn => "withdrawn",
    }
}
