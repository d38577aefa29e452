//! The stories by topic. Each function is one story with one reason to fail; its name is the sentence it proves.

use super::harness::Story;

mod authority;
mod authorizers;
mod bulk;
mod bypass;
mod cluster;
mod cluster_ca;
mod destination;
mod endings;
mod federation;
mod fleet;
pub(crate) mod helm;
mod hold;
mod hostile;
mod http;
mod install;
mod interop;
mod interop_gnutls;
mod interop_go;
mod kernel_path;
mod kubernetes_access;
mod kubernetes_discovery;
mod kubernetes_pods;
mod kubernetes_scale;
mod lifecycle;
mod limits;
mod modes;
mod neighbours;
mod operating;
mod pods;
mod policy;
mod privileges;
mod renewal;
mod requests;
mod requests_documents;
mod requests_envoy;
pub(crate) mod requests_openid;
mod requests_streams;
mod review;
mod selectors;
mod selfcheck;
mod servers_first;
mod transparency;
mod truth;
pub(crate) mod workload_api;

/// All stories with their topic; the long ones first, so that none of them is left alone at the end.
pub(crate) fn all() -> Vec<(&'static str, &'static Story)> {
    let topics: &[(&str, &'static [Story])] = &[
        ("selfcheck", selfcheck::STORIES),
        ("cluster", cluster::STORIES),
        ("kubernetes_discovery", kubernetes_discovery::STORIES),
        ("kubernetes_pods", kubernetes_pods::STORIES),
        ("kubernetes_access", kubernetes_access::STORIES),
        ("kubernetes_scale", kubernetes_scale::STORIES),
        ("pods", pods::STORIES),
        ("install", install::STORIES),
        ("helm", helm::STORIES),
        ("privileges", privileges::STORIES),
        ("cluster_ca", cluster_ca::STORIES),
        ("bulk", bulk::STORIES),
        ("servers_first", servers_first::STORIES),
        ("sockets", transparency::sockets::STORIES),
        ("programs", transparency::programs::STORIES),
        ("http", http::STORIES),
        ("requests", requests::STORIES),
        ("review", review::STORIES),
        ("requests_documents", requests_documents::STORIES),
        ("requests_envoy", requests_envoy::STORIES),
        ("requests_openid", requests_openid::STORIES),
        ("requests_streams", requests_streams::STORIES),
        ("authority", authority::STORIES),
        ("fleet", fleet::STORIES),
        ("authorizers", authorizers::STORIES),
        ("workload_api", workload_api::STORIES),
        ("truth", truth::STORIES),
        ("endings", endings::STORIES),
        ("hold", hold::STORIES),
        ("bypass", bypass::STORIES),
        ("bypass", bypass::uncaptured::STORIES),
        ("bypass", bypass::forged::STORIES),
        ("bypass", bypass::places::STORIES),
        ("bypass", bypass::moments::STORIES),
        ("modes", modes::STORIES),
        ("policy", policy::STORIES),
        ("destination", destination::STORIES),
        ("hostile", hostile::STORIES),
        ("hostile", hostile::crowds::STORIES),
        ("hostile", hostile::resources::STORIES),
        ("interop", interop::STORIES),
        ("interop", interop_gnutls::STORIES),
        ("interop", interop_go::STORIES),
        ("federation", federation::STORIES),
        ("kernel_path", kernel_path::STORIES),
        ("lifecycle", lifecycle::STORIES),
        ("limits", limits::STORIES),
        ("neighbours", neighbours::STORIES),
        ("selectors", selectors::STORIES),
        ("operating", operating::STORIES),
        ("renewal", renewal::STORIES),
    ];
    topics.iter().flat_map(|(topic, stories)| stories.iter().map(move |story| (*topic, story))).collect()
}
