//! Where a head ends, and that nothing in it can be read as more lines than it has. Pure; looks at each byte once.

use super::super::error::Refusal;

/// Whether a head has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scanned {
    /// After so many bytes.
    Complete(usize),
    /// Not yet.
    NeedMore,
}

/// Finds the end of a head or trailer section, looking at each byte once however they arrive.
#[derive(Debug)]
pub struct HeadScan {
    at: usize,
    line_start: usize,
    strict: bool,
}

impl HeadScan {
    /// For what a client sends: every line ends in CRLF, and nothing else is a control character but a tab.
    pub fn request() -> Self {
        Self { at: 0, line_start: 0, strict: true }
    }

    /// For what an application sends: a bare LF ends a line too.
    pub fn response() -> Self {
        Self { strict: false, ..Self::request() }
    }

    /// Whether no byte was looked at yet.
    pub(super) fn is_fresh(&self) -> bool {
        self.at == 0
    }

    /// Looks on in `bytes`, which are those of the last call with more behind them.
    pub fn feed(&mut self, bytes: &[u8], max: usize) -> Result<Scanned, Refusal> {
        loop {
            let end = bytes.len().min(max).max(self.at);
            self.at += bytes.get(self.at..end).map_or(0, plain_bytes);
            let Some(byte) = bytes.get(self.at) else { break };
            if self.at >= max {
                return Err(Refusal::TooLarge);
            }
            match byte {
                b'\r' if self.strict => match bytes.get(self.at + 1) {
                    None => return Ok(Scanned::NeedMore),
                    Some(b'\n') => {}
                    Some(_) => return Err(Refusal::LineEnd),
                },
                b'\n' => {
                    let line = &bytes[self.line_start..self.at];
                    if self.strict && line.last() != Some(&b'\r') {
                        return Err(Refusal::LineEnd);
                    }
                    self.line_start = self.at + 1;
                    if matches!(line, [] | [b'\r']) {
                        return Ok(Scanned::Complete(self.at + 1));
                    }
                }
                b'\t' => {}
                0..=0x1f | 0x7f if self.strict => return Err(Refusal::Control),
                _ => {}
            }
            self.at += 1;
        }
        Ok(Scanned::NeedMore)
    }
}

/// How many bytes stand before the first control character, DEL included: eight are looked at in one step, since a head
/// hardly has any. The lowest byte that is marked in a word is marked rightly; a borrow may mark bytes above it.
fn plain_bytes(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let below = |word: u64, bound: u64| word.wrapping_sub(ONES * bound) & !word & (ONES * 0x80);
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let marked = below(word, 0x20) | below(word ^ (ONES * 0x7f), 1);
        if marked != 0 {
            return index * 8 + marked.trailing_zeros() as usize / 8;
        }
    }
    let plain = rest.iter().take_while(|byte| !byte.is_ascii_control()).count();
    words.len() * 8 + plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_plain_up_to_the_first_control_character() {
        for at in 0..20 {
            for byte in 0..=255_u8 {
                let mut bytes = [b'a'; 24];
                bytes[at] = byte;
                // What stands behind it does not matter, nor do neighbours that differ from a control in one bit.
                for (around, other) in
                    [(at + 1, b'\n'), (at + 1, 0x7f), (at.saturating_sub(1), 0x80), (at + 2, 0x20)]
                {
                    let mut bytes = bytes;
                    if around != at {
                        bytes[around] = other;
                    }
                    let expected = bytes.iter().position(u8::is_ascii_control).unwrap_or(bytes.len());
                    assert_eq!(plain_bytes(&bytes), expected, "{bytes:?}");
                    assert_eq!(plain_bytes(&bytes[..at]), expected.min(at), "{bytes:?}");
                }
            }
        }
    }
}
