//! A .zst file frame by frame.
//!
//! Each [frame](https://www.rfc-editor.org/rfc/rfc8878#section-3.1.1) says at its beginning how much its decoder must
//! remember, and a file may have several of them. Between them, and at both ends of the file, there may be
//! [skippable frames](https://www.rfc-editor.org/rfc/rfc8878#section-3.1.2), which hold something for other readers:
//! `pzstd` writes one first.

use std::io::{self, BufRead, Chain, Cursor, Read};
use std::sync::Arc;

use zstd::stream::read::Decoder;

use super::dictionary::Turn;
use crate::images::magic;
use crate::images::xz::{Decoders, Lease};

/// The first bytes of a frame.
pub(super) const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The first bytes of a skippable frame, but for the lower half of the first one.
const SKIPPABLE: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];
/// The window of `zstd --ultra -22`, 128 MiB, as a power of two.
const LARGEST_WINDOW: u32 = 27;
/// The magic number and the descriptor.
const FIXED: usize = MAGIC.len() + 1;

/// Decodes the frames of a file, one after the other.
pub(super) struct Frames<R: BufRead> {
    decoders: Arc<Decoders>,
    turn: Turn,
    /// The bytes that follow the last frame.
    rest: Option<R>,
    frame: Option<Frame<R>>,
}

/// A frame that is being decoded.
struct Frame<R: BufRead> {
    decoder: Decoder<'static, Chain<Cursor<Vec<u8>>, R>>,
    _window: Lease,
}

impl<R: BufRead> Frames<R> {
    /// `turn` suffices for the first frame.
    pub fn new(file: R, decoders: Arc<Decoders>, turn: Turn) -> Self {
        Self {
            decoders,
            turn,
            rest: Some(file),
            frame: None,
        }
    }

    /// Begins the next frame, if there is one.
    fn next(&mut self) -> io::Result<Option<Frame<R>>> {
        let Some(mut file) = self.rest.take() else {
            return Ok(None);
        };
        let mut header = header(&mut file)?;
        while is_skippable(&header) {
            skip(&header, &mut file)?;
            header = self::header(&mut file)?;
        }
        if header.is_empty() {
            return Ok(None);
        }
        if let Some(name) = magic::unsupported(&header) {
            // lz4 has skippable frames of the same form.
            let text = format!("it has a part that is {name}, which is not supported");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let window = window(&header);
        self.turn.extend(window)?;
        let window = self.decoders.overdraw(window.min(1 << LARGEST_WINDOW));
        let mut decoder = Decoder::with_buffer(Cursor::new(header).chain(file))?.single_frame();
        decoder.window_log_max(LARGEST_WINDOW)?;
        Ok(Some(Frame {
            decoder,
            _window: window,
        }))
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(frame) = &mut self.frame {
                let read = frame.decoder.read(buffer)?;
                if read > 0 || buffer.is_empty() {
                    return Ok(read);
                }
            }
            if let Some(ended) = self.frame.take() {
                // All of the header was read long ago.
                self.rest = Some(ended.decoder.into_inner().into_inner().1);
            }
            self.frame = self.next()?;
            if self.frame.is_none() {
                return Ok(0);
            }
        }
    }
}

/// Reads as much of a frame as tells its window; nothing of what may follow the shortest one.
fn header(file: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut header = Vec::new();
    file.take(FIXED as u64).read_to_end(&mut header)?;
    if let Some(fields) = Fields::of(&header) {
        file.take(fields.end as u64 - FIXED as u64).read_to_end(&mut header)?;
    }
    Ok(header)
}

/// Whether a file starts like this, be it with a skippable frame.
pub(super) fn starts_file(first: &[u8]) -> bool {
    first.starts_with(&MAGIC) || is_skippable(first)
}

fn is_skippable(header: &[u8]) -> bool {
    matches!(header, [first, rest @ ..] if first & 0xf0 == SKIPPABLE[0] && rest.starts_with(&SKIPPABLE[1..]))
}

/// Reads past a skippable frame, of which `header` is the first [`FIXED`] bytes.
fn skip(header: &[u8], file: &mut impl Read) -> io::Result<()> {
    let mut length = [0; 4];
    let (known, rest) = length.split_at_mut(FIXED - SKIPPABLE.len());
    known.copy_from_slice(header.get(SKIPPABLE.len()..FIXED).ok_or(io::ErrorKind::UnexpectedEof)?);
    file.read_exact(rest)?;
    let length = u64::from(u32::from_le_bytes(length));
    if io::copy(&mut file.take(length), &mut io::sink())? < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// How many bytes the decoder of a file that begins like this has to remember for its first frame, as far as it is here.
pub(super) fn first_window(mut first: &[u8]) -> u64 {
    while is_skippable(first) {
        let length = first.get(4..8).and_then(|length| length.try_into().ok());
        let length = length.map_or(u32::MAX, u32::from_le_bytes);
        let end = usize::try_from(length).unwrap_or(usize::MAX).saturating_add(8);
        first = first.get(end..).unwrap_or_default();
    }
    window(first)
}

/// How many bytes the decoder of a frame that begins like this has to remember; none of something else, which the decoder
/// refuses.
fn window(header: &[u8]) -> u64 {
    let Some(fields) = Fields::of(header) else { return 0 };
    match header.get(fields.start..fields.end) {
        None => 0,
        Some([window]) if !fields.is_length => {
            let base = 1 << (10 + (window >> 3));
            base + base / 8 * u64::from(window & 7)
        }
        Some(length) => {
            let mut bytes = [0; 8];
            bytes[..length.len()].copy_from_slice(length);
            // Lengths of two bytes begin where those of one end.
            u64::from_le_bytes(bytes) + if length.len() == 2 { 256 } else { 0 }
        }
    }
}

/// The place in a header that states the window.
struct Fields {
    start: usize,
    end: usize,
    /// The header states the frame's decoded length instead, which is also the length of the window.
    is_length: bool,
}

impl Fields {
    /// `None` if no frame begins like this.
    fn of(header: &[u8]) -> Option<Self> {
        let descriptor = *header.strip_prefix(&MAGIC)?.first()?;
        let is_length = descriptor & 0x20 != 0;
        if !is_length {
            return Some(Self {
                start: FIXED,
                end: FIXED + 1,
                is_length,
            });
        }
        let start = FIXED + [0, 1, 2, 4][usize::from(descriptor & 3)];
        Some(Self {
            start,
            end: start + (1 << (descriptor >> 6)),
            is_length,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_header_tells_the_window() {
        let of = |fields: &[u8]| window(&[&MAGIC[..], fields].concat());
        assert_eq!(of(&[0, 0x88]), 128 << 20);
        assert_eq!(of(&[0, 0x01, 1, 0, 0]), 1024 + 128);
        assert_eq!(of(&[0x20, 200, 1]), 200);
        assert_eq!(of(&[0x60, 1, 1]), 257 + 256);
        assert_eq!(of(&[0xa1, 9, 0, 0, 0, 4]), 64 << 20);
        assert_eq!(of(&[0xe3, 9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 1]), 1 << 56);
        for short in [&[][..], &[0], &[0xa1, 9, 0, 0, 0]] {
            assert_eq!(of(short), 0, "{short:?}");
        }
        assert_eq!(window(&[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]), 0);
    }

    #[test]
    fn the_window_of_a_frame_is_found_behind_skippable_ones() {
        let frame = [&MAGIC[..], &[0, 0x88]].concat();
        let skippable = |kind: u8, bytes: &[u8]| {
            let length = u32::try_from(bytes.len()).unwrap().to_le_bytes();
            [&[0x50 | kind, 0x2a, 0x4d, 0x18], &length[..], bytes].concat()
        };
        let (empty, long) = (skippable(0, b""), skippable(15, &[0; 300]));
        for before in [vec![], empty.clone(), [&empty[..], &long, &empty].concat()] {
            let file = [&before[..], &frame].concat();
            assert!(starts_file(&file));
            assert_eq!(first_window(&file), 128 << 20);
        }
        for short in [&long[..200], &long[..6], &long[..]] {
            assert_eq!(first_window(short), 0);
        }
        assert!(!starts_file(&[0x60, 0x2a, 0x4d, 0x18]));
    }

    #[test]
    fn an_encoder_tells_what_is_read_here() {
        for log in [10, 23, 27] {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(log).unwrap();
            encoder.write_all(b"a piece").unwrap();
            encoder.flush().unwrap();
            assert_eq!(window(&encoder.finish().unwrap()), 1 << log);
        }
        let known = zstd::bulk::compress(&[7; 70_000], 1).unwrap();
        assert_eq!(window(&known), 70_000);
        assert_eq!(header(&mut &known[..]).unwrap(), known[..9]);
    }
}
