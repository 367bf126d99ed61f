//! A TCP proxy on loopback that can break what goes through it, as a network does.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// A running proxy to one port of loopback.
pub struct Proxy {
    address: SocketAddr,
    open: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Forwards a free port to `target`.
    pub async fn start(target: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (open, state) = watch::channel(true);
        let task = tokio::spawn(forward(listener, target, state));
        Ok(Self { address, open, task })
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

async fn forward(listener: TcpListener, target: u16, state: watch::Receiver<bool>) {
    // Dropped with this task, which ends every connection.
    let mut connections = JoinSet::new();
    while let Ok((mut client, _)) = listener.accept().await {
        let mut changed = state.clone();
        if !*changed.borrow_and_update() {
            continue;
        }
        connections.spawn(async move {
            let pass = async {
                let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await?;
                copy_bidirectional(&mut client, &mut server).await
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
