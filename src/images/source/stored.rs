//! The stored bytes as a decoder reads them: from async code, or from a thread that may block.

use std::io::{self, Read};

use bytes::{Buf, Bytes, BytesMut};

use super::{Error, Piece, Receiver};

/// The stored bytes of an image for its decoder.
pub(in crate::images) struct Stored {
    path: String,
    receiver: Receiver<Bytes>,
    piece: Bytes,
    failed: Option<Error>,
    ended: bool,
}

impl Stored {
    /// Reads the pieces that a download of the image at `path` yields.
    pub fn new(path: &str, receiver: Receiver<Bytes>) -> Self {
        Self {
            path: path.to_owned(),
            receiver,
            piece: Bytes::new(),
            failed: None,
            ended: false,
        }
    }

    /// The image.
    pub fn path(&self) -> &str {
        &self.path
    }

    fn needs(&self) -> bool {
        self.piece.is_empty() && !self.ended
    }

    fn take(&mut self, next: Option<Result<Piece<Bytes>, Error>>) -> Result<(), Error> {
        match next {
            Some(Ok(Piece::Next(bytes))) => self.piece = bytes,
            Some(Ok(Piece::End)) => self.ended = true,
            // An error is reported once.
            Some(Err(error)) => {
                self.ended = true;
                return Err(error);
            }
            None => return Err(Error::Interrupted(self.path.clone())),
        }
        Ok(())
    }

    /// The next bytes; empty only at the end. The caller advances them.
    pub async fn piece(&mut self) -> Result<&mut Bytes, Error> {
        while self.needs() {
            let next = self.receiver.recv().await;
            self.take(next)?;
        }
        Ok(&mut self.piece)
    }

    /// So many first bytes, fewer only if there are no more. They stay.
    pub async fn peek(&mut self, count: usize) -> Result<Bytes, Error> {
        let mut first = BytesMut::new();
        while first.len() < count {
            let piece = self.piece().await?;
            if piece.is_empty() {
                break;
            }
            first.extend_from_slice(piece);
            piece.clear();
        }
        self.piece = first.freeze();
        Ok(self.piece.slice(..self.piece.len().min(count)))
    }

    /// Reads to the last byte, so that size and checksum are verified whatever the decoder left unread.
    pub async fn drain(&mut self) -> Result<(), Error> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        while !self.ended {
            self.piece().await?.clear();
        }
        Ok(())
    }
}

impl Read for Stored {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.needs() {
            let next = self.receiver.blocking_recv();
            if let Err(error) = self.take(next) {
                let text = error.to_string();
                self.failed = Some(error);
                return Err(io::Error::other(text));
            }
        }
        let taken = self.piece.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&self.piece[..taken]);
        self.piece.advance(taken);
        Ok(taken)
    }
}
