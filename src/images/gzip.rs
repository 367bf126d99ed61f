//! A gzip file as GNU gzip takes it: one member after the other, and zeros behind the last one.
//!
//! Tapes and tools that write whole blocks fill the last one with zeros, which `gzip -d` ignores. Of anything else behind
//! the data it says "trailing garbage ignored" and fails; so does this.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

use super::magic;

/// Decompresses the members of a file.
pub(super) struct Members<R> {
    state: State<R>,
}

enum State<R> {
    /// A member may follow; the flag says whether one came before.
    Between(R, bool),
    Member(GzDecoder<R>),
    Ended,
}

impl<R: BufRead> Members<R> {
    pub fn new(file: R) -> Self {
        Self {
            state: State::Between(file, false),
        }
    }

    /// The next member, or the end.
    fn next(mut file: R, is_later: bool) -> io::Result<State<R>> {
        match file.fill_buf()? {
            [] => Ok(State::Ended),
            [0, ..] if is_later => {
                skip_zeros(file)?;
                Ok(State::Ended)
            }
            [0x1f] | [0x1f, 0x8b, ..] => Ok(State::Member(GzDecoder::new(file))),
            _ if is_later => Err(invalid("something that is not gzip follows the data")),
            first => Err(match magic::foreign(first) {
                Some(name) => invalid(format!("it is {name}")),
                None => invalid("it does not start as gzip does"),
            }),
        }
    }
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // An error ends the file.
            self.state = match std::mem::replace(&mut self.state, State::Ended) {
                State::Ended => return Ok(0),
                State::Between(file, is_later) => Self::next(file, is_later)?,
                State::Member(mut member) => {
                    let read = member.read(buffer)?;
                    if read > 0 || buffer.is_empty() {
                        self.state = State::Member(member);
                        return Ok(read);
                    }
                    State::Between(member.into_inner(), true)
                }
            };
        }
    }
}

fn skip_zeros(mut file: impl BufRead) -> io::Result<()> {
    loop {
        let bytes = file.fill_buf()?;
        if bytes.is_empty() {
            return Ok(());
        }
        if bytes.iter().any(|byte| *byte != 0) {
            return Err(invalid("something other than zeros follows the data"));
        }
        let length = bytes.len();
        file.consume(length);
    }
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Write};

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read(file: &[u8]) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        // Every border between the pieces that are read is met.
        for size in [1, 7, 1 << 16] {
            bytes.clear();
            Members::new(BufReader::with_capacity(size, file)).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    }

    #[test]
    fn members_and_zeros_behind_them_are_read_to_the_end() {
        let (one, two) = (gzip(b"one"), gzip(b"two"));
        let empty = gzip(b"");
        for (file, content) in [
            (one.clone(), &b"one"[..]),
            ([&one[..], &[0; 5]].concat(), b"one"),
            ([&one[..], &two].concat(), b"onetwo"),
            ([&one[..], &empty, &two, &[0; 1000]].concat(), b"onetwo"),
            (empty.clone(), b""),
        ] {
            assert_eq!(read(&file).unwrap(), content, "{file:02x?}");
        }
    }

    #[test]
    fn anything_else_behind_them_is_an_error() {
        let (one, two) = (gzip(b"one"), gzip(b"two"));
        for file in [
            [&one[..], b"x"].concat(),
            [&one[..], &[0, 0, 1]].concat(),
            [&one[..], &[0; 4], &two].concat(),
            [&one[..], &two[..two.len() - 1]].concat(),
            [&one[..], &two[..5]].concat(),
            one[..one.len() - 1].to_vec(),
            [0; 100].to_vec(),
            b"BZh91AY&SY".to_vec(),
        ] {
            assert!(read(&file).is_err(), "{file:02x?}");
        }
    }
}
