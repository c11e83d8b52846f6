//! The world on a loopback port, for a function that runs in a process of its own.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::wire::Request;
use crate::world::{Unanswered, World};

/// Where the state can be read.
const STATE_PATH: &str = "/_sim/state";

/// A world's port that is open and not served yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    world: World,
}

impl Server {
    /// Opens the port on the loopback interface; 0 takes any that is free.
    ///
    /// # Errors
    /// When the port cannot be opened, mostly because it is taken.
    pub async fn bind(world: World, port: u16) -> io::Result<Self> {
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
        Ok(Self { listener, world })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until it is dropped.
    pub async fn run(self) -> Infallible {
        loop {
            // A connection that broke before it was taken concerns its client alone.
            let Ok((stream, _)) = self.listener.accept().await else {
                continue;
            };
            let world = self.world.clone();
            tokio::spawn(async move {
                let service = service_fn(|request| answer(world.clone(), request));
                // An error here is a client that went away, or a reply that is meant to be lost.
                let _gone = http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    }
}

async fn answer(
    world: World,
    request: http::Request<Incoming>,
) -> Result<http::Response<Full<Bytes>>, Unanswered> {
    let (parts, body) = request.into_parts();
    if parts.method == http::Method::GET && parts.uri.path() == STATE_PATH {
        let mut response = http::Response::new(Full::from(world.snapshot().to_string()));
        response.headers_mut().insert(
            CONTENT_TYPE,
            http::HeaderValue::from_static("application/json"),
        );
        return Ok(response);
    }
    let collected = body.collect().await;
    let bytes = collected.map_err(|_gone| Unanswered::ReplyLost)?.to_bytes();
    let headers: BTreeMap<String, String> = parts
        .headers
        .iter()
        .map(|(name, value)| {
            (
                name.as_str().to_owned(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        })
        .collect();
    let request = Request {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        headers,
        body: String::from_utf8_lossy(&bytes).into_owned(),
    };
    let reply = world.converse(&request).await?;
    let mut response = http::Response::builder().status(reply.status);
    for (name, value) in &reply.headers {
        response = response.header(name, value);
    }
    Ok(response.body(Full::from(reply.body)).unwrap_or_default())
}
