//! An axum router on a free port of loopback, until dropped.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use anyhow::{Context, Result};
use axum::{Router, serve::Listener};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
    server::TlsStream,
};

use crate::certs::Identity;

/// A running HTTP server. It lives in the runtime of the test that started it.
pub struct HttpServer {
    scheme: &'static str,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl HttpServer {
    /// Serves `router`.
    pub async fn start(router: Router) -> Result<Self> {
        let listener = listen().await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            // It ends only when the task is dropped.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self {
            scheme: "http",
            address,
            task,
        })
    }

    /// Serves `router` by TLS as this server.
    pub async fn start_tls(router: Router, identity: &Identity) -> Result<Self> {
        let listener = TlsListener {
            tcp: listen().await?,
            acceptor: acceptor(identity)?,
        };
        let address = listener.tcp.local_addr()?;
        let task = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self {
            scheme: "https",
            address,
            task,
        })
    }

    /// `http://127.0.0.1:<port>`, or `https`.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }
}

/// Accepts TLS connections as this server.
pub(crate) fn acceptor(identity: &Identity) -> Result<TlsAcceptor> {
    let chain = vec![CertificateDer::from_pem_slice(identity.cert.as_bytes())?];
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn listen() -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .context("listen on loopback")
}

struct TlsListener {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.tcp).await;
            // A client that rejects the certificate goes away.
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
