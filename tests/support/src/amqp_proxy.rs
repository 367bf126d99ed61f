//! A proxy that knows AMQP frames well enough to lose one of a kind, as a network does at the worst moment.
//!
//! The frames are those of [AMQP 0-9-1](https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf), 2.3.5 and 4.2.3.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::{JoinHandle, JoinSet},
};

/// Bytes of the protocol header, sent before the first frame.
const GREETING: usize = 8;
/// Kind, channel, and length, before what a frame carries; one byte comes after it.
const HEAD: usize = 7;

/// A frame worth losing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The client's `basic.publish`; what it publishes comes in later frames.
    Publish,
    /// The broker's `basic.ack` of a published message.
    Confirm,
    /// The client's `basic.ack` of a delivery.
    Acknowledgement,
}

/// How it is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The connection breaks instead.
    Cut,
    /// Nothing else happens.
    Silence,
}

/// A running proxy to a broker without TLS.
pub struct AmqpProxy {
    address: SocketAddr,
    losses: Losses,
    task: JoinHandle<()>,
}

#[derive(Clone, Default)]
struct Losses(Arc<Mutex<Vec<(Frame, Loss)>>>);

impl AmqpProxy {
    /// Forwards a free port to `target`.
    pub async fn start(target: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let losses = Losses::default();
        let task = tokio::spawn(forward(listener, target, losses.clone()));
        Ok(Self { address, losses, task })
    }

    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Loses the next frame of a kind.
    pub fn lose(&self, frame: Frame, loss: Loss) {
        self.losses.lock().push((frame, loss));
    }

    /// Loses no more, and returns how much was not lost yet.
    pub fn mend(&self) -> usize {
        std::mem::take(&mut *self.losses.lock()).len()
    }

    /// Whether every loss asked for has happened.
    pub fn losses_met(&self) -> bool {
        self.losses.lock().is_empty()
    }
}

impl Drop for AmqpProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Losses {
    /// A test that panicked with the lock held has failed already.
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Frame, Loss)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, frame: Frame) -> Option<Loss> {
        let mut losses = self.lock();
        let position = losses.iter().position(|(wanted, _)| *wanted == frame)?;
        Some(losses.remove(position).1)
    }
}

async fn forward(listener: TcpListener, target: u16, losses: Losses) {
    // Dropped with this task, which ends every connection.
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let losses = losses.clone();
        connections.spawn(async move {
            let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else {
                return;
            };
            let (mut from_client, to_client) = client.into_split();
            let (from_server, mut to_server) = server.into_split();
            let client = async {
                let mut greeting = [0; GREETING];
                from_client.read_exact(&mut greeting).await?;
                to_server.write_all(&greeting).await?;
                let kinds = [(40, Frame::Publish), (80, Frame::Acknowledgement)];
                pump(from_client, to_server, &kinds, &losses).await
            };
            // Both ends see their connection close, whichever comes first.
            tokio::select! {
                _ = client => {}
                _ = pump(from_server, to_client, &[(80, Frame::Confirm)], &losses) => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Passes on frames until one is to break the connection. `kinds` are methods of the class `basic`.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    kinds: &[(u16, Frame)],
    losses: &Losses,
) -> std::io::Result<()> {
    const METHOD: u8 = 1;
    const BASIC: u16 = 60;
    loop {
        let mut frame = vec![0; HEAD];
        from.read_exact(&mut frame).await?;
        let length = u32::from_be_bytes([frame[3], frame[4], frame[5], frame[6]]) as usize;
        frame.resize(HEAD + length + 1, 0);
        from.read_exact(&mut frame[HEAD..]).await?;
        let two = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let is_basic = frame[0] == METHOD && length >= 4 && two(HEAD) == BASIC;
        let kind = kinds.iter().find(|(method, _)| is_basic && two(HEAD + 2) == *method);
        match kind.and_then(|(_, kind)| losses.take(*kind)) {
            Some(Loss::Cut) => return Ok(()),
            Some(Loss::Silence) => {}
            None => to.write_all(&frame).await?,
        }
    }
}
