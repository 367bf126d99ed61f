//! A .zst file frame by frame.
//!
//! Each [frame](https://www.rfc-editor.org/rfc/rfc8878#section-3.1.1) says at its beginning how much its decoder must
//! remember, and a file may have several of them.

use std::io::{self, BufRead, Chain, Cursor, Read};
use std::sync::Arc;

use zstd::stream::read::Decoder;

use super::dictionary::Turn;
use crate::images::xz::{Decoders, Lease};

/// The first bytes of a frame.
pub(super) const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The window of `zstd --ultra -22`, 128 MiB, as a power of two.
const LARGEST_WINDOW: u32 = 27;
/// The magic number and the descriptor.
const FIXED: usize = MAGIC.len() + 1;

/// What the frames of a file decode to.
pub(super) struct Frames<R: BufRead> {
    decoders: Arc<Decoders>,
    turn: Turn,
    /// What follows the last frame.
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
        let header = header(&mut file)?;
        if header.is_empty() {
            return Ok(None);
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

/// How many bytes the decoder of a frame that begins like this has to remember; none of something else, which the decoder
/// refuses.
pub(super) fn window(header: &[u8]) -> u64 {
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

/// Where a header tells the window.
struct Fields {
    start: usize,
    end: usize,
    /// It is as long as what the frame decodes to, which is told instead.
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
