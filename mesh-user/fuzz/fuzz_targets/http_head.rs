//! HTTP/1 as clients and applications send it: first bytes, heads, chunks. However the bytes are split the answer is the
//! same; what is accepted reads back equal after it was written anew, and has one reading by a plain reader of lines.
//! Input: what it is (`request`, `response`, `chunks`) on the first line, then the bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_user::http::{
    ChunkedDecoder, Detected, HeadScan, ParsedRequest, Piece, Refusal, RequestHead, Scanned, Settings,
    Version, detect, fuzz, parse_request, parse_response,
};

const MAX_LINE: usize = 8192;

fuzz_target!(|input: &[u8]| {
    let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let rest = input.get(end + 1..).unwrap_or_default();
    match &input[..end] {
        b"response" => response(rest),
        b"chunks" => chunks(rest),
        _ => request(rest),
    }
});

fn request(bytes: &[u8]) {
    let whole = detect(bytes, MAX_LINE);
    for end in 0..bytes.len().min(256) {
        let part = detect(&bytes[..end], MAX_LINE);
        assert!(part == Detected::NeedMore || part == whole, "{end}: {part:?}, then {whole:?}");
    }
    let settings = Settings::default();
    let Some(end) = scanned(HeadScan::request, bytes, settings.max_head_bytes) else { return };
    let head = &bytes[..end];
    let Ok(parsed) = parse_request(head, &settings) else { return };
    one_reading(head, &parsed);
    let written = fuzz::written_request(head, &parsed);
    let scan = HeadScan::request().feed(&written, usize::MAX);
    assert_eq!(scan, Ok(Scanned::Complete(written.len())), "{}", written.escape_ascii());
    let again = parse_request(&written, &settings).expect("what is written is accepted");
    let (before, after) = (parsed.head(head), again.head(&written));
    assert_eq!((before.method, before.path), (after.method, after.path));
    assert_eq!((before.authority, before.version), (after.authority, after.version));
    assert_eq!(fuzz::framing(&parsed), fuzz::framing(&again));
    assert!(!fuzz::hides(&again), "an offer that hides requests is passed on");
    let kept = |head: RequestHead<'_>| {
        let named = |name: &str| ["connection", "upgrade", "http2-settings", "host"].contains(&name);
        let fields = head.fields().filter(|(name, _)| !named(&name.to_ascii_lowercase()));
        fields.map(|(name, value)| (name.to_owned(), value.to_vec())).collect::<Vec<_>>()
    };
    assert_eq!(kept(before), kept(after));
    assert_eq!(fuzz::written_request(&written, &again), written, "written once more it is another");
}

/// Where the head ends, the same for the whole and byte by byte.
fn scanned(new: fn() -> HeadScan, bytes: &[u8], max: usize) -> Option<usize> {
    let at_once = new().feed(bytes, max);
    let mut scan = new();
    let mut by_byte = Ok(Scanned::NeedMore);
    for end in 1..=bytes.len() {
        by_byte = scan.feed(&bytes[..end], max);
        if by_byte != Ok(Scanned::NeedMore) {
            break;
        }
    }
    assert_eq!(at_once, by_byte);
    match at_once {
        Ok(Scanned::Complete(end)) => Some(end),
        _ => None,
    }
}

/// Lines and colons, as the least of all parsers reads them: nothing that was accepted may look different to it.
fn one_reading(bytes: &[u8], parsed: &ParsedRequest) {
    let text = bytes.strip_suffix(b"\r\n\r\n").expect("a head ends with an empty line");
    let head = parsed.head(bytes);
    let mut lines = split(text, b"\r\n").into_iter();
    let start = split(lines.next().unwrap_or_default(), b" ");
    let version: &[u8] = if head.version == Version::Http10 { b"HTTP/1.0" } else { b"HTTP/1.1" };
    assert_eq!(start, [head.method.as_bytes(), head.target.as_bytes(), version]);
    let (mut hosts, mut lengths, mut codings) = (Vec::new(), Vec::new(), Vec::new());
    let mut own = head.fields();
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':').expect("a field has a colon");
        let (name, value) = (&line[..colon], trimmed(&line[colon + 1..]));
        assert!(!name.is_empty() && name.iter().all(|byte| is_token(*byte)), "{}", line.escape_ascii());
        assert!(value.iter().all(|byte| *byte == b'\t' || !byte.is_ascii_control()));
        let (own_name, own_value) = own.next().expect("as many fields as lines");
        assert_eq!((own_name.as_bytes(), own_value), (name, value));
        for (of, list) in
            [("host", &mut hosts), ("content-length", &mut lengths), ("transfer-encoding", &mut codings)]
        {
            if name.eq_ignore_ascii_case(of.as_bytes()) {
                list.push(value);
            }
            // To CGI and its like these are one name.
            let folded = of.replace('-', "_");
            assert!(of == folded || !name.eq_ignore_ascii_case(folded.as_bytes()), "{of} with an underscore");
        }
    }
    assert_eq!(own.next(), None);
    assert!(
        hosts.len() == 1 || (hosts.is_empty() && head.version == Version::Http10),
        "several hosts, or none"
    );
    let lower = head.target.to_ascii_lowercase();
    if let Some(behind) = lower.strip_prefix("http://").or_else(|| lower.strip_prefix("https://"))
        && head.method != "CONNECT"
    {
        let named = behind.split(['/', '?']).next().unwrap_or_default();
        assert!(head.authority.eq_ignore_ascii_case(named), "{named} is asked for at {}", head.authority);
    } else if let Some(host) = hosts.first() {
        assert!(head.authority.as_bytes().eq_ignore_ascii_case(host));
    }
    assert!(lengths.len() + codings.len() <= 1, "several lengths");
    for length in lengths {
        assert!(
            !length.is_empty()
                && length.iter().all(u8::is_ascii_digit)
                && (length == b"0" || length[0] != b'0')
        );
    }
    for coding in codings {
        assert!(coding.eq_ignore_ascii_case(b"chunked") && head.version == Version::Http11);
    }
}

fn split<'a>(bytes: &'a [u8], at: &[u8]) -> Vec<&'a [u8]> {
    let (mut parts, mut start, mut next) = (Vec::new(), 0, 0);
    while next + at.len() <= bytes.len() {
        if &bytes[next..next + at.len()] == at {
            parts.push(&bytes[start..next]);
            next += at.len();
            start = next;
        } else {
            next += 1;
        }
    }
    parts.push(&bytes[start..]);
    parts
}

fn trimmed(value: &[u8]) -> &[u8] {
    let start = value.iter().position(|byte| !b" \t".contains(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !b" \t".contains(byte)).map_or(start, |at| at + 1);
    &value[start..end]
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn response(bytes: &[u8]) {
    let settings = Settings::default();
    let Some(end) = scanned(HeadScan::response, bytes, settings.max_head_bytes) else { return };
    let head = &bytes[..end];
    for method in ["GET", "HEAD", "CONNECT"] {
        let Ok(parsed) = parse_response(head, method, &settings) else { continue };
        let written = fuzz::written_response(head, &parsed);
        // A client is as strict as we are.
        let scan = HeadScan::response().feed(&written, usize::MAX);
        assert_eq!(scan, Ok(Scanned::Complete(written.len())), "{}", written.escape_ascii());
        assert!(!split(&written, b"\r\n").concat().contains(&b'\n'), "{}", written.escape_ascii());
        let again = parse_response(&written, method, &settings).expect("what is written is accepted");
        assert_eq!(fuzz::response(head, &parsed), fuzz::response(&written, &again));
    }
}

/// The data, where the last chunk ended, and the refusal.
type Decoded = (Vec<u8>, Option<usize>, Option<Refusal>);

fn decoded(bytes: &[u8], step: usize) -> Decoded {
    let (mut decoder, mut data, mut at) = (ChunkedDecoder::default(), Vec::new(), 0);
    for part in bytes.chunks(step.max(1)) {
        let mut rest = part;
        loop {
            match decoder.next(rest) {
                Err(refusal) => return (data, None, Some(refusal)),
                Ok((used, piece)) => {
                    at += used;
                    match piece {
                        Piece::Data(range) => data.extend_from_slice(&rest[range]),
                        Piece::Last => return (data, Some(at), None),
                        Piece::NeedMore => {
                            assert_eq!(used, rest.len(), "bytes are left behind");
                            break;
                        }
                    }
                    rest = &rest[used..];
                }
            }
        }
    }
    (data, None, None)
}

fn chunks(bytes: &[u8]) {
    let (data, end, refused) = decoded(bytes, bytes.len());
    for step in [1, 2, 7] {
        let (by_step, by_step_end, by_step_refused) = decoded(bytes, step);
        assert_eq!((&by_step, by_step_end, by_step_refused), (&data, end, refused), "{step} at once");
    }
    if end.is_some() {
        let mut again = Vec::new();
        for part in data.chunks(5) {
            again.extend(fuzz::chunk(part));
        }
        again.extend_from_slice(b"0\r\n");
        assert_eq!(decoded(&again, again.len()), (data, Some(again.len()), None));
    }
}
