//! Where tokens are looked for, and what is left of them.

use super::*;

/// A rule, a path, headers, and what comes of it.
type Case<'a> = (JwtRule, &'a str, Vec<(&'static str, &'a str)>, &'a String);

fn header(name: &'static str, prefix: &str) -> HeaderLocation {
    HeaderLocation { name: HeaderName::from_static(name), prefix: prefix.to_owned() }
}

/// Nowhere but where it is told.
fn rule_from(headers: &[(&'static str, &str)], params: &[&str], cookies: &[&str]) -> JwtRule {
    JwtRule {
        from_headers: headers.iter().map(|(name, prefix)| header(name, prefix)).collect(),
        from_params: params.iter().map(|&p| p.to_owned()).collect(),
        from_cookies: cookies.iter().map(|&c| c.to_owned()).collect(),
        ..rule()
    }
}

#[test]
fn a_token_is_found_where_the_rule_says_and_nowhere_else() {
    let token = good_token();
    let good = format!("{ISSUER}/alice");
    let anonymous = "anonymous".to_owned();
    let form = Refusal::Form.to_string();
    let text = |text: &str| text.replace("TOKEN", &token);
    let cases: Vec<Case<'_>> = vec![
        (rule(), "/", vec![], &anonymous),
        (rule(), "/", vec![("authorization", "Bearer TOKEN")], &good),
        (rule(), "/?access_token=TOKEN", vec![], &good),
        (rule(), "/?a=b&access%5Ftoken=TOKEN&c", vec![], &good),
        (rule(), "/", vec![("authorization", "Bearer   TOKEN ")], &good),
        (rule(), "/", vec![("authorization", "Basic x, Bearer TOKEN")], &good),
        (rule(), "/", vec![("authorization", "bearer TOKEN")], &anonymous),
        (rule(), "/", vec![("authorization", "Basic dXNlcg==")], &anonymous),
        (rule(), "/", vec![("authorization", "TOKEN")], &anonymous),
        (rule(), "/", vec![("authorization", "Bearer")], &anonymous),
        (rule(), "/", vec![("authorization", "Bearer x")], &form),
        (rule(), "/", vec![("authorization", "Bearer !")], &form),
        (rule(), "/", vec![("x-token", "TOKEN"), ("cookie", "access_token=TOKEN")], &anonymous),
        (rule(), "/?access_token=", vec![], &form),
        (rule(), "/?access_token", vec![], &form),
        (rule(), "/?access_tokens=x", vec![], &anonymous),
        (rule(), "/access_token=x", vec![], &anonymous),
        (rule_from(&[("x-token", "")], &[], &[]), "/", vec![("x-token", "TOKEN")], &good),
        (
            rule_from(&[("x-token", "")], &[], &[]),
            "/?access_token=x",
            vec![("authorization", "Bearer x")],
            &anonymous,
        ),
        (rule_from(&[("x-token", "")], &[], &[]), "/", vec![("x-token", "")], &form),
        (rule_from(&[("x-token", "")], &[], &[]), "/", vec![("x-token", "TOKEN,TOKEN")], &form),
        (rule_from(&[("x-token", "JWT ")], &[], &[]), "/", vec![("x-token", "JWT TOKEN")], &good),
        (rule_from(&[], &["t"], &[]), "/?t=TOKEN", vec![], &good),
        (rule_from(&[], &["t"], &[]), "/?access_token=x", vec![], &anonymous),
        (rule_from(&[], &[], &["s"]), "/", vec![("cookie", "a=b; s=TOKEN")], &good),
        (rule_from(&[], &[], &["s"]), "/", vec![("cookie", "a=b"), ("cookie", "s=\"TOKEN\"")], &good),
        (rule_from(&[], &[], &["s"]), "/", vec![("cookie", "S=x; ss=x")], &anonymous),
        (rule_from(&[("x-token", "")], &["t"], &["s"]), "/?t=TOKEN", vec![("cookie", "s=TOKEN")], &good),
    ];
    for (rule, path, list, expected) in cases {
        let list: Vec<_> = list.iter().map(|(name, value)| (*name, text(value))).collect();
        let list: Vec<_> = list.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let decision = decide(&[rule], &text(path), &list);
        assert_eq!(&short(&decision), expected, "{path} {list:?}");
    }
}

#[test]
fn of_several_tokens_all_must_be_good_wherever_they_are() {
    let (alice, bob) = (good_token(), RSA.token("RS256", Some("k"), &claims_with(&json!({"sub": "bob"}))));
    let expired = RSA.token("RS256", Some("k"), &claims_with(&json!({"exp": 1})));
    let everywhere = rule_from(&[("a-token", ""), ("authorization", "Bearer ")], &["t"], &["s"]);
    for (path, list, expected) in [
        // The claims of the first place count: headers, parameters, cookies.
        ("/?t=BOB", vec![("authorization", "Bearer ALICE")], format!("{ISSUER}/alice")),
        ("/?t=BOB", vec![("cookie", "s=ALICE")], format!("{ISSUER}/bob")),
        ("/", vec![("authorization", "Bearer BOB"), ("a-token", "ALICE")], format!("{ISSUER}/alice")),
        ("/?t=OLD", vec![("authorization", "Bearer ALICE")], Refusal::Expired.to_string()),
        ("/?t=ALICE&t=OLD", vec![], Refusal::Expired.to_string()),
        ("/", vec![("cookie", "s=ALICE; s=OLD")], Refusal::Expired.to_string()),
        // `Authorization` is one value; lines of other headers are values of their own.
        (
            "/",
            vec![("authorization", "Bearer ALICE"), ("authorization", "Bearer ALICE")],
            Refusal::Form.to_string(),
        ),
        ("/", vec![("authorization", "Bearer ALICE, Bearer OLD")], Refusal::Form.to_string()),
        ("/", vec![("authorization", "Bearer ALICE more")], Refusal::SignatureEncoding.to_string()),
        (
            "/",
            vec![("authorization", "Basic x"), ("authorization", "Bearer ALICE")],
            format!("{ISSUER}/alice"),
        ),
        ("/", vec![("a-token", "ALICE"), ("a-token", "ALICE")], format!("{ISSUER}/alice")),
        ("/", vec![("a-token", "ALICE"), ("a-token", "OLD")], Refusal::Expired.to_string()),
        ("/", vec![("a-token", "OLD"), ("a-token", "ALICE")], Refusal::Expired.to_string()),
        ("/?t=1&t=2&t=3&t=4&t=5", vec![], Refusal::TooManyTokens.to_string()),
    ] {
        let text = |text: &str| text.replace("ALICE", &alice).replace("BOB", &bob).replace("OLD", &expired);
        let list: Vec<_> = list.iter().map(|(name, value)| (*name, text(value))).collect();
        let list: Vec<_> = list.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(
            short(&decide(std::slice::from_ref(&everywhere), &text(path), &list)),
            expected,
            "{path} {list:?}"
        );
    }
}

#[test]
fn a_token_is_taken_out_unless_it_is_forwarded() {
    let token = good_token();
    let places = rule_from(&[("authorization", "Bearer "), ("x-token", "")], &["t"], &["s"]);
    for (path, list, new_path, left) in [
        ("/p?a=%20&t=TOKEN&b", vec![("authorization", "Bearer TOKEN")], Some("/p?a=%20&b"), vec![]),
        ("/p?t=TOKEN", vec![("authorization", "Basic x")], Some("/p"), vec![("authorization", "Basic x")]),
        ("/p?a=t", vec![("x-token", "TOKEN"), ("other", "1")], None, vec![("other", "1")]),
        (
            "/",
            vec![("cookie", "a=b; s=TOKEN; c=d"), ("cookie", "s=TOKEN"), ("cookie", "e=f")],
            None,
            vec![("cookie", "a=b; c=d"), ("cookie", "e=f")],
        ),
    ] {
        let text = |text: &str| text.replace("TOKEN", &token);
        let list: Vec<_> = list.iter().map(|(name, value)| (*name, text(value))).collect();
        let list: Vec<_> = list.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let decision = decide(std::slice::from_ref(&places), &text(path), &list);
        let mut seen = headers(&list);
        decision.edits.apply(&mut seen);
        assert_eq!(decision.edits.path_and_query.as_deref(), new_path, "{path}");
        assert_eq!(seen, headers(&left), "{path} {list:?}");
        let forwards = JwtRule { forward_original_token: true, ..places.clone() };
        assert!(decide(&[forwards], &text(path), &list).edits.is_empty());
    }
}
