//! A check as Envoy's gRPC API writes it, and what its answer means (Envoy `check_request_utils.cc`,
//! `ext_authz_grpc_impl.cc`). Opens no connection.

use std::time::UNIX_EPOCH;

use http::{HeaderName, HeaderValue, StatusCode};

use super::{
    check::{Answer, Changes, Check, Denied, HeaderPut, HttpCheck, Party, Put, is_parameter},
    proto,
};

/// The request for `check`.
pub(super) fn request(check: &Check) -> proto::CheckRequest {
    let since = check.time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = proto::Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos().cast_signed(),
    };
    let mut destination = peer(&check.destination);
    let http = check.http.as_ref();
    if http.is_none() {
        destination.service = check.sni.clone().unwrap_or_default();
    }
    proto::CheckRequest {
        attributes: Some(proto::AttributeContext {
            source: Some(peer(&check.source)),
            destination: Some(destination),
            request: http.map(|http| proto::Request { time: Some(time), http: Some(http_request(http)) }),
            metadata_context: http.map(|_| proto::Nothing {}),
            route_metadata_context: http.map(|_| proto::Nothing {}),
        }),
    }
}

fn peer(party: &Party) -> proto::Peer {
    let address = proto::SocketAddress {
        address: party.address.ip().to_canonical().to_string(),
        port_value: u32::from(party.address.port()),
    };
    proto::Peer {
        address: Some(proto::Address { socket_address: Some(address) }),
        // Envoy takes it from a header that any client may send.
        service: String::new(),
        principal: party.principal.clone().unwrap_or_default(),
    }
}

/// All headers, as text, with Envoy's pseudo-headers among them.
fn http_request(http: &HttpCheck) -> proto::HttpRequest {
    let pseudo = [
        (":method", http.method.as_str()),
        (":path", &http.path),
        (":authority", &http.authority),
        (":scheme", http.scheme),
    ];
    let pseudo = pseudo.into_iter().filter(|(_, value)| !value.is_empty());
    let pseudo = pseudo.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let told =
        http.merged().filter(|(name, _)| !["host", "x-envoy-auth-partial-body"].contains(&name.as_str()));
    let told = told.map(|(name, value)| (name.to_string(), String::from_utf8_lossy(&value).into_owned()));
    proto::HttpRequest {
        id: http.id.to_string(),
        method: http.method.clone(),
        headers: pseudo.chain(told).collect(),
        path: http.path.clone(),
        host: http.authority.clone(),
        scheme: http.scheme.to_owned(),
        protocol: http.protocol.clone(),
    }
}

/// What a response means. As in Envoy one without a status allows.
pub(super) fn answer(response: proto::CheckResponse) -> Answer {
    let status = response.status.unwrap_or_default();
    let read = match (status.code, response.http_response) {
        (0, Some(proto::HttpResponse::Ok(ok))) => changes(ok).map(Answer::Allow),
        (0, _) => Ok(Answer::Allow(Changes::default())),
        (_, Some(proto::HttpResponse::Error(error))) => {
            let has_status = error.status.is_some_and(|status| status.code > 0);
            denied(error).map(|denied| Answer::Failed(said(&status), has_status.then_some(denied)))
        }
        (_, Some(proto::HttpResponse::Denied(response))) => denied(response).map(Answer::Deny),
        (_, Some(proto::HttpResponse::Ok(_)) | None) => Ok(Answer::Deny(Denied::bare(StatusCode::FORBIDDEN))),
    };
    read.unwrap_or_else(Answer::Invalid)
}

/// Its own words end up in the access log: a bounded piece, without what could end a line.
fn said(status: &proto::Status) -> String {
    let message: String = status.message.chars().filter(|c| !c.is_control()).take(200).collect();
    format!("it says that it failed: {} {message:?}", status.code)
}

fn denied(response: proto::DeniedHttpResponse) -> Result<Denied, String> {
    let status = match response.status.map_or(0, |status| status.code) {
        ..=0 => StatusCode::FORBIDDEN,
        code => u16::try_from(code)
            .ok()
            .filter(|code| (200..600).contains(code))
            .and_then(|code| StatusCode::from_u16(code).ok())
            .ok_or_else(|| format!("{code} is no status for a client"))?,
    };
    let headers =
        response.headers.into_iter().map(|option| put(option).map(|(name, value, _)| (name, value)));
    Ok(Denied { status, headers: headers.collect::<Result<_, _>>()?, body: response.body.into() })
}

fn changes(ok: proto::OkHttpResponse) -> Result<Changes, String> {
    let request = ok.headers.into_iter().map(put).collect::<Result<Vec<_>, _>>()?;
    if let Some((name, ..)) = request.iter().find(|(name, ..)| *name == http::header::HOST) {
        return Err(format!("it wants {name} changed, which meshd does not do"));
    }
    let good = |text: &String| is_parameter(text).then_some(()).ok_or("a query parameter is not encoded");
    for parameter in &ok.query_parameters_to_set {
        good(&parameter.key)?;
        good(&parameter.value)?;
    }
    let set = ok.query_parameters_to_set.into_iter().map(|parameter| (parameter.key, parameter.value));
    Ok(Changes {
        request,
        // A name that no header can have is on no request.
        remove: ok
            .headers_to_remove
            .iter()
            .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
            .collect(),
        response: ok.response_headers_to_add.into_iter().map(put).collect::<Result<_, _>>()?,
        set_parameters: set.collect(),
        remove_parameters: ok.query_parameters_to_remove,
    })
}

/// `append` is false by default here (Envoy's description of `HeaderValueOption`), and what it means for a request has
/// to be safe: a client's own value never stays where the authorizer does not say so.
fn put(option: proto::HeaderValueOption) -> Result<HeaderPut, String> {
    let put = match (option.append.map(|append| append.value), option.append_action) {
        (Some(true), _) => Put::Add,
        (Some(false), _) | (None, 0 | 2) => Put::Replace,
        (None, 1) => Put::AddIfAbsent,
        (None, 3) => Put::ReplaceIfPresent,
        (None, action) => return Err(format!("{action} is no action on a header")),
    };
    let header = option.header.unwrap_or_default();
    let shown: String = header.key.chars().filter(|c| !c.is_control()).take(100).collect();
    let name =
        HeaderName::from_bytes(header.key.as_bytes()).map_err(|_| format!("{shown:?} is no header"))?;
    let value = if header.value.is_empty() { &header.raw_value[..] } else { header.value.as_bytes() };
    let mut value = HeaderValue::from_bytes(value).map_err(|_| format!("the value of {name} is none"))?;
    value.set_sensitive(true);
    Ok((name, value, put))
}
