//! The keys that sign a trust domain's JWT-SVIDs: in the CA's folder, `jwt.key` (PEM, mode 0600) holds one or more, of which
//! the first signs; all are published, so that a key can be known everywhere before it signs and until its last token has
//! ended. When which is changed is decided by the CA ([`crate::ca::authority`]). Their public halves lie beside them in
//! `jwt.json`, for [`super::super::OwnBundle`].

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use aws_lc_rs::{
    digest::{SHA256, digest},
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use futures_util::future::BoxFuture;
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde_json::{Value, json};
use zeroize::{Zeroize, Zeroizing};

use super::{DEFAULT_LIFETIME, JwtSvid, JwtSvidRequest, MAX_LIFETIME, MintJwt, check_audiences};
use crate::{
    ca::{CaError, files, spiffe_bundle},
    identity::{JwtAuthorities, TrustDomain},
};

const KEYS: &str = "jwt.key";
const PUBLIC_KEYS: &str = "jwt.json";
/// More are a mistake.
pub(in crate::ca) const MAX_KEYS: usize = 8;

/// Signs the JWT-SVIDs of a trust domain.
pub struct JwtAuthority {
    trust_domain: TrustDomain,
    directory: PathBuf,
    keys: ArcSwap<Keys>,
}

/// What `jwt.key` holds.
struct Keys {
    /// Signs.
    current: Key,
    /// All, in the order of the file.
    kids: Vec<Arc<str>>,
    published: JwtAuthorities,
}

struct Key {
    /// RFC 7638 thumbprint.
    kid: Arc<str>,
    pair: EcdsaKeyPair,
}

impl fmt::Debug for JwtAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtAuthority").field("kids", &self.kids()).finish_non_exhaustive()
    }
}

impl JwtAuthority {
    /// Loads the keys of the CA's folder, or makes one there when it has none.
    ///
    /// # Errors
    /// When the file is readable by others, holds anything but keys for ES256, or cannot be written.
    pub fn open(directory: &Path, trust_domain: TrustDomain) -> Result<Self, CaError> {
        files::open_directory(directory)?;
        if files::read_secret(&directory.join(KEYS))?.is_none() {
            files::write(directory, KEYS, pem(&[generate()?]).as_bytes(), 0o600)?;
        }
        let keys = ArcSwap::from_pointee(Keys::read(directory)?);
        Ok(Self { trust_domain, directory: directory.to_owned(), keys })
    }

    /// What its tokens are verified with.
    pub fn published(&self) -> JwtAuthorities {
        self.keys.load().published.clone()
    }

    /// The key IDs, that of the key that signs first.
    pub(in crate::ca) fn kids(&self) -> Vec<Arc<str>> {
        self.keys.load().kids.clone()
    }

    /// Takes up what another process has written.
    pub(in crate::ca) fn reload(&self) -> Result<(), CaError> {
        self.keys.store(Arc::new(Keys::read(&self.directory)?));
        Ok(())
    }

    /// Makes a key that is published and does not sign yet. Callers see to it that nobody else writes at the same time.
    pub(in crate::ca) fn add(&self) -> Result<Arc<str>, CaError> {
        let new = generate()?;
        let failed = || CaError::Sign { subject: "the JWT authority".into(), what: "no key".into() };
        let kid = Key::read(&PrivatePkcs8KeyDer::from(new.as_slice())).ok_or_else(failed)?.kid;
        self.rewrite(|keys| {
            keys.push((Arc::clone(&kid), new));
            Ok(())
        })?;
        Ok(kid)
    }

    /// Has a published key sign. As [`Self::add`].
    pub(in crate::ca) fn sign_with(&self, kid: &str) -> Result<(), CaError> {
        self.rewrite(|keys| {
            let at = keys.iter().position(|(known, _)| **known == *kid).ok_or_else(|| missing(kid))?;
            keys[..=at].rotate_right(1);
            Ok(())
        })
    }

    /// Removes a key that does not sign. As [`Self::add`].
    pub(in crate::ca) fn remove(&self, kid: &str) -> Result<(), CaError> {
        self.rewrite(|keys| {
            let at =
                keys.iter().skip(1).position(|(known, _)| **known == *kid).ok_or_else(|| missing(kid))?;
            keys.remove(at + 1);
            Ok(())
        })
    }

    fn rewrite(
        &self,
        change: impl FnOnce(&mut Vec<(Arc<str>, Zeroizing<Vec<u8>>)>) -> Result<(), CaError>,
    ) -> Result<(), CaError> {
        let mut keys = Vec::new();
        for (key, der) in read_all(&self.directory)? {
            keys.push((key.kid, der));
        }
        change(&mut keys)?;
        let ders: Vec<_> = keys.into_iter().map(|(_, der)| der).collect();
        files::write(&self.directory, KEYS, pem(&ders).as_bytes(), 0o600)?;
        self.reload()
    }

    /// As [`MintJwt::mint`], at `now`.
    ///
    /// # Errors
    /// As there.
    pub fn sign(&self, request: &JwtSvidRequest, now: SystemTime) -> Result<JwtSvid, CaError> {
        let failed = |what: String| CaError::Sign { subject: request.id.to_string(), what };
        if *request.id.trust_domain() != self.trust_domain {
            return Err(failed(format!("this authority signs for trust domain {} only", self.trust_domain)));
        }
        if request.id.path().is_empty() {
            return Err(failed("a trust domain is no workload".to_owned()));
        }
        check_audiences(&request.audiences).map_err(failed)?;
        let issued = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let lifetime = request.lifetime.unwrap_or(DEFAULT_LIFETIME).min(MAX_LIFETIME);
        let expires = issued.saturating_add(lifetime.as_secs());
        let keys = self.keys.load();
        let header = json!({ "alg": "ES256", "kid": *keys.current.kid, "typ": "JWT" });
        let claims =
            json!({ "sub": request.id.to_string(), "aud": request.audiences, "iat": issued, "exp": expires });
        let mut token = format!("{}.{}", encode(&header), encode(&claims));
        let signature = keys.current.pair.sign(&SystemRandom::new(), token.as_bytes());
        let signature = signature.map_err(|_| failed("the key does not sign".to_owned()))?;
        token.push('.');
        BASE64_URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(JwtSvid { token, expires: UNIX_EPOCH + std::time::Duration::from_secs(expires) })
    }
}

impl MintJwt for JwtAuthority {
    fn mint(&self, request: JwtSvidRequest) -> BoxFuture<'_, Result<JwtSvid, CaError>> {
        Box::pin(async move { self.sign(&request, SystemTime::now()) })
    }
}

fn encode(json: &Value) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(json.to_string())
}

impl Key {
    fn read(pkcs8: &PrivatePkcs8KeyDer<'_>) -> Option<Self> {
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.secret_pkcs8_der()).ok()?;
        let (x, y) = coordinates(&pair)?;
        // RFC 7638 section 3: the required members only, by name, without white space.
        let thumbprint = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        let kid = BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, thumbprint.as_bytes()));
        Some(Self { kid: kid.into(), pair })
    }

    /// Key ID and JWK.
    fn published(&self) -> Option<(Arc<str>, Arc<str>)> {
        let (x, y) = coordinates(&self.pair)?;
        let jwk = json!({ "kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": *self.kid, "use": "jwt-svid" });
        Some((Arc::clone(&self.kid), jwk.to_string().into()))
    }
}

/// Of the public point: 04, then both (SEC 1 section 2.3.3), as RFC 7518 section 6.2.1 writes them.
fn coordinates(pair: &EcdsaKeyPair) -> Option<(String, String)> {
    let (4, point) = pair.public_key().as_ref().split_first().map(|(form, point)| (*form, point))? else {
        return None;
    };
    let (x, y) = point.split_at_checked(32)?;
    Some((BASE64_URL_SAFE_NO_PAD.encode(x), BASE64_URL_SAFE_NO_PAD.encode(y)))
}

impl Keys {
    fn read(directory: &Path) -> Result<Self, CaError> {
        let path = directory.join(KEYS);
        let invalid = |what: &str| CaError::Invalid { path: path.clone(), what: what.to_owned() };
        let keys: Vec<Key> = read_all(directory)?.into_iter().map(|(key, _)| key).collect();
        let published = keys.iter().map(Key::published).collect::<Option<JwtAuthorities>>();
        let published = published.ok_or_else(|| invalid("holds a key without a public half"))?;
        let kids = keys.iter().map(|key| Arc::clone(&key.kid)).collect();
        let current = keys.into_iter().next();
        let current = current.ok_or_else(|| invalid("holds no private key (BEGIN PRIVATE KEY)"))?;
        publish(directory, &published)?;
        Ok(Self { current, kids, published })
    }
}

/// A key, and how it is written (PKCS #8).
type Written = (Key, Zeroizing<Vec<u8>>);

/// The keys of the file.
fn read_all(directory: &Path) -> Result<Vec<Written>, CaError> {
    let path = directory.join(KEYS);
    let invalid = |what: String| CaError::Invalid { path: path.clone(), what };
    let text = files::read_secret(&path)?.ok_or_else(|| invalid("is gone: restore it".to_owned()))?;
    let mut keys = Vec::new();
    for der in PrivatePkcs8KeyDer::pem_slice_iter(text.as_bytes()) {
        let mut der = der.map_err(|error| invalid(format!("is no PEM of private keys: {error}")))?;
        let kept = Zeroizing::new(der.secret_pkcs8_der().to_vec());
        let key = Key::read(&der);
        der.zeroize();
        let key = key.ok_or_else(|| invalid("holds a key that is no P-256 one (PKCS #8)".to_owned()))?;
        keys.push((key, kept));
    }
    if keys.len() > MAX_KEYS {
        let what = format!("holds more than {MAX_KEYS} keys; remove those whose tokens have ended");
        return Err(invalid(what));
    }
    Ok(keys)
}

fn missing(kid: &str) -> CaError {
    CaError::Refused(format!("there is no JWT key {kid} that could be"))
}

/// PKCS #8.
fn generate() -> Result<Zeroizing<Vec<u8>>, CaError> {
    let failed = |e: rcgen::Error| CaError::Sign { subject: "the JWT authority".into(), what: e.to_string() };
    let mut key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let der = Zeroizing::new(key.serialize_der());
    key.zeroize();
    Ok(der)
}

/// RFC 7468.
fn pem(keys: &[Zeroizing<Vec<u8>>]) -> Zeroizing<String> {
    // as long as it gets, so that no copy is left behind by growing
    let mut text = Zeroizing::new(String::with_capacity(keys.len() * 1024));
    for key in keys {
        let lines = Zeroizing::new(BASE64_STANDARD.encode(key.as_slice()));
        text.push_str("-----BEGIN PRIVATE KEY-----\n");
        let mut rest = lines.as_str();
        while !rest.is_empty() {
            let (line, behind) = rest.split_at(rest.len().min(64));
            text.push_str(line);
            text.push('\n');
            rest = behind;
        }
        text.push_str("-----END PRIVATE KEY-----\n");
    }
    text
}

/// Writes the public halves where they are not there yet.
fn publish(directory: &Path, keys: &JwtAuthorities) -> Result<(), CaError> {
    let text = format!("{:#}\n", key_set(keys));
    let path = directory.join(PUBLIC_KEYS);
    if std::fs::read_to_string(&path).is_ok_and(|known| known == text) {
        return Ok(());
    }
    files::write(directory, PUBLIC_KEYS, text.as_bytes(), 0o644)
}

/// The public halves in a CA's folder; none: there is no authority yet.
pub(in crate::ca) fn read_published(directory: &Path) -> Result<JwtAuthorities, CaError> {
    let path = directory.join(PUBLIC_KEYS);
    let Some(text) = files::read_public(&path)? else { return Ok(JwtAuthorities::new()) };
    spiffe_bundle::read_jwt(&text).map_err(|what| CaError::Invalid { path, what })
}

/// As a JWK set.
pub(in crate::ca) fn key_set(keys: &JwtAuthorities) -> Value {
    let keys: Vec<Value> = keys.values().filter_map(|jwk| serde_json::from_str(jwk).ok()).collect();
    json!({ "keys": keys })
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, time::Duration};

    use super::{super::MAX_AUDIENCE_BYTES, *};
    use crate::{
        ca::{
            OwnBundle,
            authority::{Authority, AuthoritySettings},
        },
        identity::TrustBundles,
        jwt::{JwtSvidRefusal, Refusal, verify_jwt_svid},
    };

    const ID: &str = "spiffe://cluster.local/ns/shop/sa/web";

    fn request(id: &str, audiences: &[&str]) -> JwtSvidRequest {
        let audiences = audiences.iter().map(|&one| one.to_owned()).collect();
        JwtSvidRequest { id: id.parse().unwrap(), audiences, lifetime: None }
    }

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        folder
    }

    fn open(folder: &tempfile::TempDir) -> JwtAuthority {
        JwtAuthority::open(folder.path(), "cluster.local".parse().unwrap()).unwrap()
    }

    fn bundles(authority: &JwtAuthority) -> TrustBundles {
        let jwt_authorities = [("cluster.local".parse().unwrap(), authority.published())].into();
        TrustBundles { jwt_authorities, ..TrustBundles::default() }
    }

    #[test]
    fn what_it_mints_is_believed_for_its_time_and_its_audiences() {
        let authority = open(&folder());
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let minted = authority.sign(&request(ID, &["shop", "till"]), now).unwrap();
        assert_eq!(minted.expires, now + DEFAULT_LIFETIME);
        let verify = |audience, at: u64| verify_jwt_svid(&minted.token, audience, &bundles(&authority), at);
        let believed = verify("till", 1_700_000_000).unwrap();
        assert_eq!(believed.spiffe_id.to_string(), ID);
        assert_eq!(believed.claims["aud"], json!(["shop", "till"]));
        assert_eq!(
            (believed.claims["iat"].as_u64(), believed.claims["exp"].as_u64()),
            (Some(1_700_000_000), Some(1_700_000_300))
        );
        assert_eq!(verify("other", 1_700_000_000), Err(JwtSvidRefusal::Audience));
        assert_eq!(verify("shop", 1_700_000_361), Err(JwtSvidRefusal::Token(Refusal::Expired)));
        let others = bundles(&open(&folder()));
        let refused = verify_jwt_svid(&minted.token, "shop", &others, 1_700_000_000);
        assert_eq!(refused, Err(JwtSvidRefusal::UnknownKey("cluster.local".to_owned())));
        assert!(!format!("{minted:?}{authority:?}").contains(&minted.token));
    }

    #[test]
    fn it_mints_only_what_the_standard_and_its_bounds_allow() {
        let authority = open(&folder());
        let long = "a".repeat(MAX_AUDIENCE_BYTES + 1);
        for (what, request) in [
            ("cluster.local only", request("spiffe://other.example/ns/a/sa/b", &["shop"])),
            ("no workload", request("spiffe://cluster.local", &["shop"])),
            ("at least one", request(ID, &[])),
            ("at least one", request(ID, &["shop", ""])),
            ("at most 16", request(ID, &["a"; 17])),
            ("at most 16", request(ID, &[&long])),
        ] {
            let error = authority.sign(&request, SystemTime::now()).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        let longer = JwtSvidRequest { lifetime: Some(MAX_LIFETIME * 9), ..request(ID, &["shop"]) };
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(authority.sign(&longer, now).unwrap().expires, now + MAX_LIFETIME);
    }

    #[test]
    fn its_key_stays_and_nobody_else_reads_it() {
        let folder = folder();
        let first = open(&folder).published();
        assert_eq!(open(&folder).published(), first);
        let key = folder.path().join(KEYS);
        assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        let public = std::fs::read_to_string(folder.path().join(PUBLIC_KEYS)).unwrap();
        assert!(public.contains(&**first.keys().next().unwrap()) && !public.contains("\"d\""));
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
        let refused = JwtAuthority::open(folder.path(), "cluster.local".parse().unwrap());
        assert!(refused.unwrap_err().to_string().contains("lets others in"));
    }

    #[test]
    fn the_first_key_signs_and_all_are_published() {
        let (folder, coming) = (folder(), folder());
        let old = open(&folder);
        open(&coming);
        let read = |folder: &tempfile::TempDir| std::fs::read_to_string(folder.path().join(KEYS)).unwrap();
        let minted = old.sign(&request(ID, &["shop"]), SystemTime::now()).unwrap();
        files::write(folder.path(), KEYS, (read(&coming) + &read(&folder)).as_bytes(), 0o600).unwrap();
        let both = open(&folder);
        assert_eq!(both.published().len(), 2);
        assert_ne!(both.kids()[0], old.kids()[0]);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        verify_jwt_svid(&minted.token, "shop", &bundles(&both), now).unwrap();
        let newer = both.sign(&request(ID, &["shop"]), SystemTime::now()).unwrap();
        verify_jwt_svid(&newer.token, "shop", &bundles(&both), now).unwrap();
        assert!(verify_jwt_svid(&newer.token, "shop", &bundles(&old), now).is_err());
    }

    #[test]
    fn the_key_id_is_the_thumbprint_of_the_key() {
        let authority = open(&folder());
        let (kid, jwk) = authority.published().pop_first().unwrap();
        let jwk: Value = serde_json::from_str(&jwk).unwrap();
        let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":{},"y":{}}}"#, jwk["x"], jwk["y"]);
        assert_eq!(*kid, *BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, canonical.as_bytes())));
        assert_eq!(jwk["use"], "jwt-svid");
    }

    #[test]
    fn its_public_half_is_in_the_bundle_for_others() {
        let folder = folder();
        let authority = open(&folder);
        let domain = "cluster.local".parse().unwrap();
        Authority::open(AuthoritySettings::new(folder.path().to_owned(), domain)).unwrap();
        let bundle = OwnBundle::read(folder.path()).unwrap().with_jwt_authorities(folder.path()).unwrap();
        let text = bundle.spiffe().unwrap().to_string();
        let path = Path::new("bundle.json");
        assert_eq!(crate::ca::parse_jwt_authorities(path, &text).unwrap(), authority.published());
        assert_eq!(crate::ca::parse_bundle(path, &text).unwrap(), bundle.roots());
        assert!(!text.contains("\"d\""));
    }

    #[test]
    fn other_files_are_refused() {
        let rsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap().serialize_pem();
        for (what, text) in [("no private key", String::new()), ("no P-256", rsa)] {
            let folder = folder();
            files::write(folder.path(), KEYS, text.as_bytes(), 0o600).unwrap();
            let refused = JwtAuthority::open(folder.path(), "cluster.local".parse().unwrap()).unwrap_err();
            assert!(refused.to_string().contains(what), "{refused}");
        }
    }
}
