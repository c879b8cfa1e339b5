//! Real sockets on loopback: calls, bulk, errors, deadlines, lost connections, wrong secrets.
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use janusfs_chain_transport::{ClusterSecret, TcpPeer, TcpServer};
use janusfs_rpc::{Handler, Reply, Request, Transport};
use janusfs_types::FsError;
use janusfs_wire::ServiceId;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

/// Method 1 echoes, 2 fails, 3 never answers.
struct Echo;

impl Handler for Echo {
    fn handle(&self, request: Request) -> BoxFuture<'_, Result<Reply, FsError>> {
        async move {
            match request.method {
                1 => Ok(Reply {
                    head: request.head,
                    body: request.body,
                    lease_ms: request.caller.map_or(0, |caller| {
                        u32::from(caller.wants_lease && caller.remote) * 7
                    }),
                }),
                2 => Err(FsError::Corrupt("chunk 7".into())),
                _ => std::future::pending().await,
            }
        }
        .boxed()
    }
}

struct Server {
    address: String,
    stop: watch::Sender<bool>,
    task: JoinHandle<std::io::Result<()>>,
}

async fn start(secret: [u8; 32]) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (stop, stopped) = watch::channel(false);
    let secret = ClusterSecret::new(secret);
    let task =
        janusfs_env::tasks::spawn(TcpServer::serve(listener, secret, Arc::new(Echo), stopped));
    Server {
        address,
        stop,
        task,
    }
}

fn peer(server: &Server, secret: [u8; 32]) -> Arc<TcpPeer> {
    let runtime = tokio::runtime::Handle::current();
    Arc::new(TcpPeer::new(
        &server.address,
        ClusterSecret::new(secret),
        runtime,
    ))
}

fn request(method: u16, body: Vec<Bytes>, timeout: Duration) -> Request {
    Request {
        caller: None,
        service: ServiceId::Storage,
        method,
        timeout,
        head: Bytes::from_static(b"head"),
        body,
    }
}

const LONG: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn many_calls_at_once_each_get_their_own_answer() {
    let server = start([1; 32]).await;
    let peer = peer(&server, [1; 32]);
    let calls = (0..400u32).map(|n| {
        let peer = peer.clone();
        async move {
            let len = usize::try_from(n * 997 % 200_000).unwrap();
            let body = Bytes::from(vec![n.to_le_bytes()[0]; len]);
            let reply = peer
                .call(request(1, vec![body.clone()], LONG))
                .await
                .unwrap();
            assert_eq!(&reply.head[..], b"head");
            assert_eq!(reply.body.concat(), body);
        }
    });
    futures::future::join_all(calls).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_keep_their_type() {
    let server = start([1; 32]).await;
    let error = peer(&server, [1; 32])
        .call(request(2, vec![], LONG))
        .await
        .unwrap_err();
    assert_eq!(error, FsError::Corrupt("chunk 7".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_a_call_and_the_connection_lives_on() {
    let server = start([1; 32]).await;
    let peer = peer(&server, [1; 32]);
    let error = peer
        .call(request(3, vec![], Duration::from_millis(50)))
        .await
        .unwrap_err();
    assert!(matches!(error, FsError::Unavailable(_)));
    peer.call(request(1, vec![], LONG)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_fails_the_calls_in_flight() {
    let server = start([1; 32]).await;
    let peer = peer(&server, [1; 32]);
    peer.call(request(1, vec![], LONG)).await.unwrap();
    let waiting =
        janusfs_env::tasks::spawn(async move { peer.call(request(3, vec![], LONG)).await });
    server.stop.send(true).unwrap();
    assert!(matches!(
        waiting.await.unwrap(),
        Err(FsError::Unavailable(_))
    ));
    server.task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_is_refused_and_says_so() {
    let server = start([1; 32]).await;
    let error = peer(&server, [2; 32])
        .call(request(1, vec![], LONG))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("secrets differ"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let peer = TcpPeer::new(
        &address,
        ClusterSecret::new([1; 32]),
        tokio::runtime::Handle::current(),
    );
    let error = peer.call(request(1, vec![], LONG)).await.unwrap_err();
    assert!(error.to_string().contains("cannot connect"), "{error}");
}
