//! Objects of the API server as they are read: the fields that meshd asks for, and no others. What is missing is empty;
//! what it means is decided elsewhere.
//!
//! Source: the Kubernetes API reference, `core/v1` and `discovery.k8s.io/v1` (and `v1beta1`, whose endpoints say the node in
//! `topology`).

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Resource,
    core::{ApiResource, DynamicResourceScope},
};
use serde::{Deserialize, Deserializer};

macro_rules! object {
    ($(#[$doc:meta])* $name:ident { $($field:ident : $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub(super) struct $name {
            pub(super) metadata: ObjectMeta,
            $(#[serde(default, deserialize_with = "null_is_default")] pub(super) $field: $type,)*
        }

        impl Resource for $name {
            type DynamicType = ApiResource;
            type Scope = DynamicResourceScope;

            fn kind(resource: &ApiResource) -> Cow<'_, str> {
                resource.kind.as_str().into()
            }

            fn group(resource: &ApiResource) -> Cow<'_, str> {
                resource.group.as_str().into()
            }

            fn version(resource: &ApiResource) -> Cow<'_, str> {
                resource.version.as_str().into()
            }

            fn plural(resource: &ApiResource) -> Cow<'_, str> {
                resource.plural.as_str().into()
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

macro_rules! part {
    ($name:ident { $($field:ident : $type:ty),* $(,)? }) => {
        #[derive(Debug, Clone, Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub(super) struct $name {
            $(#[serde(deserialize_with = "null_is_default")] pub(super) $field: $type,)*
        }
    };
}

object!(
    /// A `Namespace`: its labels are all that counts.
    NamespaceObject {}
);
object!(
    /// A `Pod`.
    PodObject { spec: PodSpec, status: PodStatus }
);
object!(
    /// A `Service`.
    ServiceObject { spec: ServiceSpec }
);
object!(
    /// An `EndpointSlice`.
    SliceObject { address_type: String, endpoints: Vec<SliceEndpoint>, ports: Vec<SlicePort> }
);
object!(
    /// An `Endpoints` of clusters without slices.
    EndpointsObject { subsets: Vec<Subset> }
);
object!(
    /// A `Node`.
    NodeObject { status: NodeStatus }
);

part!(PodSpec { node_name: String, service_account_name: String, host_network: bool });

/// The state of a pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct PodStatus {
    #[serde(deserialize_with = "null_is_default")]
    pub(super) phase: String,
    #[serde(rename = "podIP", deserialize_with = "null_is_default")]
    pub(super) pod_ip: String,
    #[serde(rename = "podIPs", deserialize_with = "null_is_default")]
    pub(super) pod_ips: Vec<PodIp>,
}

part!(PodIp { ip: String });

/// What a service asks for.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ServiceSpec {
    #[serde(deserialize_with = "null_is_default")]
    pub(super) r#type: String,
    #[serde(rename = "clusterIP", deserialize_with = "null_is_default")]
    pub(super) cluster_ip: String,
    #[serde(rename = "clusterIPs", deserialize_with = "null_is_default")]
    pub(super) cluster_ips: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) ports: Vec<ServicePort>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) selector: BTreeMap<String, String>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) session_affinity: String,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) internal_traffic_policy: String,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) external_traffic_policy: String,
}

part!(ServicePort { name: String, protocol: String, app_protocol: String, port: i64, node_port: i64 });
part!(SliceEndpoint {
    addresses: Vec<String>,
    conditions: Conditions,
    node_name: String,
    topology: BTreeMap<String, String>,
    hints: Hints,
    target_ref: TargetRef,
});
part!(Conditions { ready: Option<bool>, serving: Option<bool>, terminating: Option<bool> });
part!(Hints { for_zones: Vec<Hint>, for_nodes: Vec<Hint> });
part!(Hint { name: String });
part!(TargetRef { kind: String, namespace: String, name: String });
part!(SlicePort { name: String, protocol: String, port: Option<i64> });
part!(Subset { addresses: Vec<SubsetAddress>, ports: Vec<SlicePort> });
part!(SubsetAddress { ip: String, node_name: String, target_ref: TargetRef });
part!(NodeStatus { addresses: Vec<NodeAddress> });
part!(NodeAddress { r#type: String, address: String });

/// Go writes an empty list as null.
fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}
