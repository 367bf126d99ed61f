//! Decoded pieces, put together to whole chunks also where a block ends in the middle of one.

use std::collections::BTreeMap;

use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::decompress::Lanes;
use super::{CHUNK, Chunk, Content, Error, Piece};
use crate::images::xz;

/// A decoded piece: no more than a chunk, and of one chunk only.
#[derive(Debug)]
pub(in crate::images) struct Decoded {
    /// Its place in the image.
    pub offset: u64,
    /// The bytes at that place.
    pub content: Content,
    /// Says that the target has not taken it yet.
    pub waiting: Option<xz::Waiting>,
}

/// Decoded pieces that follow each other.
#[derive(Debug)]
pub(in crate::images) enum Lane {
    /// Those of a block, or of all blocks as they come; what there may be of them is bounded elsewhere.
    Blocks(mpsc::UnboundedReceiver<Decoded>),
    /// Those of a whole file.
    Pieces(mpsc::Receiver<Decoded>),
}

/// A file that is being decoded.
#[derive(Debug)]
pub(in crate::images) struct Decoding {
    lanes: Lanes,
    lane: Option<Lane>,
    assembler: Assembler,
    complete: bool,
    _task: AbortOnDropHandle<()>,
}

impl Decoding {
    /// Takes what `task` decodes; dropped, it ends that.
    pub fn new(lanes: Lanes, task: AbortOnDropHandle<()>) -> Self {
        Self {
            lanes,
            lane: None,
            assembler: Assembler::default(),
            complete: false,
            _task: task,
        }
    }

    /// The next chunk; `None` if the stage is gone.
    pub async fn next(&mut self) -> Option<Result<Option<Chunk>, Error>> {
        while !self.complete {
            let decoded = match &mut self.lane {
                Some(Lane::Blocks(lane)) => lane.recv().await,
                Some(Lane::Pieces(lane)) => lane.recv().await,
                None => None,
            };
            if let Some(Decoded {
                offset,
                content,
                waiting,
            }) = decoded
            {
                drop(waiting);
                if let Some(chunk) = self.assembler.add(Chunk { offset, content }) {
                    return Some(Ok(Some(chunk)));
                }
                continue;
            }
            match self.lanes.recv().await? {
                Ok(Piece::Next(lane)) => self.lane = Some(lane),
                Ok(Piece::End) => self.complete = true,
                Err(error) => return Some(Err(error)),
            }
        }
        // The image's last chunk may be a short one; it is the only one left.
        Some(Ok(self.assembler.rest()))
    }
}

/// Holds the parts of chunks until their other parts are there. Only the chunks at the two ends of a block that is
/// being decoded can lack something.
#[derive(Debug, Default)]
struct Assembler(BTreeMap<u64, Partial>);

/// A chunk that lacks something.
#[derive(Debug, Default)]
struct Partial {
    /// A whole chunk; empty as long as there are only zeros.
    bytes: Vec<u8>,
    filled: usize,
}

impl Assembler {
    /// Adds a part of a chunk; gives the chunk once it is whole.
    fn add(&mut self, part: Chunk) -> Option<Chunk> {
        let len = part.content.len();
        if len == CHUNK {
            return Some(part);
        }
        let into = usize::try_from(part.offset % CHUNK as u64).unwrap_or(0);
        let start = part.offset - into as u64;
        let partial = self.0.entry(start).or_default();
        if let Content::Data(bytes) = part.content {
            if partial.bytes.is_empty() {
                partial.bytes = vec![0; CHUNK];
            }
            partial.bytes[into..into + len].copy_from_slice(&bytes);
        }
        partial.filled += len;
        if partial.filled < CHUNK {
            return None;
        }
        let partial = self.0.remove(&start)?;
        Some(partial.chunk(start))
    }

    /// The short chunk at the end of the image, if it has one.
    fn rest(&mut self) -> Option<Chunk> {
        let (start, partial) = self.0.pop_first()?;
        Some(partial.chunk(start))
    }
}

impl Partial {
    fn chunk(mut self, offset: u64) -> Chunk {
        let content = if self.bytes.is_empty() {
            Content::Hole(self.filled)
        } else {
            self.bytes.truncate(self.filled);
            Content::Data(self.bytes.into())
        };
        Chunk { offset, content }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(offset: usize, len: usize, byte: u8) -> Chunk {
        Chunk {
            offset: offset as u64,
            content: Content::Data(vec![byte; len].into()),
        }
    }

    #[test]
    fn parts_come_together_in_any_order() {
        let mut assembler = Assembler::default();
        assert_eq!(assembler.add(data(CHUNK + 10, CHUNK - 10, 3)), None);
        assert_eq!(assembler.add(data(10, CHUNK - 10, 2)), None);
        let first = assembler.add(data(0, 10, 1)).unwrap();
        let expected: Vec<u8> = [vec![1; 10], vec![2; CHUNK - 10]].concat();
        assert_eq!((first.offset, first.content), (0, Content::Data(expected.into())));
        let hole = Chunk {
            offset: CHUNK as u64,
            content: Content::Hole(10),
        };
        let second = assembler.add(hole).unwrap();
        let expected: Vec<u8> = [vec![0; 10], vec![3; CHUNK - 10]].concat();
        assert_eq!(
            (second.offset, second.content),
            (CHUNK as u64, Content::Data(expected.into()))
        );
        assert_eq!(assembler.rest(), None);
    }

    #[test]
    fn the_end_is_short() {
        let mut assembler = Assembler::default();
        for offset in 0..3 {
            let hole = Content::Hole(1);
            assert_eq!(assembler.add(Chunk { offset, content: hole }), None);
        }
        let rest = assembler.rest().unwrap();
        assert_eq!((rest.offset, rest.content), (0, Content::Hole(3)));
        assert_eq!(assembler.rest(), None);
    }
}
