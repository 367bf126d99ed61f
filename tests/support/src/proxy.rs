//! A TCP proxy on loopback that can break what goes through it, as a network does.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// A running proxy to one port of loopback.
pub struct Proxy {
    address: SocketAddr,
    open: watch::Sender<bool>,
    fuse: Fuse,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Forwards a free port to `target`.
    pub async fn start(target: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (open, state) = watch::channel(true);
        let fuse = Fuse::default();
        let task = tokio::spawn(forward(listener, target, state, fuse.clone()));
        Ok(Self {
            address,
            open,
            fuse,
            task,
        })
    }

    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Breaks all connections; new ones get through.
    pub fn cut(&self) {
        self.close();
        self.open();
    }

    /// Breaks the connection on which byte number `bytes` from now on goes to the target, before that byte.
    pub fn cut_after(&self, bytes: usize) {
        self.fuse.set(Some(bytes));
    }

    /// Breaks all connections and every new one, until [`Proxy::open`].
    pub fn close(&self) {
        self.open.send_replace(false);
    }

    /// Lets connections through again.
    pub fn open(&self) {
        self.open.send_replace(true);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How many bytes more may go to the target; any number when `None`.
#[derive(Clone, Default)]
struct Fuse(Arc<Mutex<Option<usize>>>);

impl Fuse {
    fn set(&self, left: Option<usize>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = left;
    }

    /// How many of so many bytes may pass. If not all of them may, the fuse has blown and is gone.
    fn pass(&self, bytes: usize) -> usize {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let passing = left.map_or(bytes, |left| left.min(bytes));
        *left = left.filter(|_| passing == bytes).map(|left| left - passing);
        passing
    }
}

async fn forward(listener: TcpListener, target: u16, state: watch::Receiver<bool>, fuse: Fuse) {
    // Dropped with this task, which ends every connection.
    let mut connections = JoinSet::new();
    while let Ok((mut client, _)) = listener.accept().await {
        let mut changed = state.clone();
        if !*changed.borrow_and_update() {
            continue;
        }
        let fuse = fuse.clone();
        connections.spawn(async move {
            let pass = async {
                let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await?;
                exchange(&mut client, &mut server, &fuse).await
            };
            // Both ends see their connection close, whichever comes first.
            tokio::select! {
                _ = pass => {}
                _ = changed.changed() => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Passes on what either side says, until both are done or the fuse blows.
async fn exchange(client: &mut TcpStream, server: &mut TcpStream, fuse: &Fuse) -> io::Result<()> {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let up = async {
        let mut bytes = vec![0; 16 << 10];
        loop {
            let read = from_client.read(&mut bytes).await?;
            let passing = fuse.pass(read);
            to_server.write_all(&bytes[..passing]).await?;
            match read {
                0 => return to_server.shutdown().await,
                read if passing < read => return Err(io::ErrorKind::ConnectionAborted.into()),
                _ => {}
            }
        }
    };
    let down = async {
        copy(&mut from_server, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::try_join!(up, down).map(drop)
}
