//! Host names.

use crate::policy::destination_rule::host;

#[test]
fn hosts_are_resolved_as_istio_resolves_them() {
    let domains = ["td1".parse().unwrap(), "td2".parse().unwrap()];
    for (written, resolved) in [
        ("reviews", "reviews.shop.svc.cluster.local"),
        ("Reviews", "reviews.shop.svc.cluster.local"),
        // A name with a dot is taken for a whole one.
        ("reviews.prod", "reviews.prod"),
        ("reviews.prod.svc.cluster.local", "reviews.prod.svc.cluster.local"),
        ("reviews.prod.svc.cluster.local.", "reviews.prod.svc.cluster.local"),
        ("reviews.prod.svc.td2", "reviews.prod.svc.cluster.local"),
        ("*.prod.svc.td1", "*.prod.svc.cluster.local"),
        ("*", "*"),
        ("*.example.com", "*.example.com"),
        ("10.0.0.1", "10.0.0.1"),
    ] {
        assert_eq!(host::resolve(written, "shop", &domains), resolved, "{written}");
    }
}

#[test]
fn a_wildcard_is_for_names_that_end_like_it() {
    for (rule, service, expected) in [
        ("*", "a.example.com", true),
        ("*.example.com", "a.example.com", true),
        ("*.example.com", "a.b.example.com", true),
        ("*.example.com", "example.com", false),
        ("*.example.com", "aexample.com", false),
        ("*-api.example.com", "eu-api.example.com", true),
        ("*-api.example.com", "api.example.com", false),
        ("a.example.com", "a.example.com", true),
        ("a.example.com", "b.example.com", false),
        ("example.com", "a.example.com", false),
    ] {
        assert_eq!(host::matches(rule, service), expected, "{rule} {service}");
    }
}

#[test]
fn hosts_that_istio_refuses_are_refused() {
    for (written, good) in [
        ("reviews", true),
        ("reviews.prod.svc.cluster.local.", true),
        ("*.foo.com", true),
        ("*foo.com", true),
        ("*-a.foo.com", true),
        ("*", true),
        ("", false),
        ("a.*.com", false),
        ("*.", true),
        ("**.com", false),
        ("a_b.com", false),
        ("-a.com", false),
        ("a.b.1", false),
        (&"a".repeat(64), false),
        (&"a.".repeat(128), false),
    ] {
        assert_eq!(host::problem(written).is_none(), good, "{written:?}: {:?}", host::problem(written));
    }
}
