//! The admin address: `/healthz` and `/metrics`. The console comes later.

use axum::{Router, extract::State, http::StatusCode, routing::get};
use janusfs_client::Client;
use janusfs_env::metrics;
use janusfs_wire::meta::StatFs;
use tokio::{net::TcpListener, sync::watch};

/// Serves until `stop` turns true.
pub(crate) async fn serve(
    listener: TcpListener,
    client: Client,
    mut stop: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(|| async { metrics::render() }))
        .with_state(client);
    axum::serve(listener, routes)
        .with_graceful_shutdown(async move {
            // An error means that the sender is gone: stop as well.
            let _ = stop.wait_for(|stop| *stop).await;
        })
        .await
}

/// Healthy means: the metadata answers and every storage target tells its figures.
async fn healthz(State(client): State<Client>) -> (StatusCode, String) {
    let meta = client.call(&StatFs {}).await.map(|_| ());
    let storage = client.usage().await.map(|_| ());
    match meta.and(storage) {
        Ok(()) => (StatusCode::OK, "ok\n".into()),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}
