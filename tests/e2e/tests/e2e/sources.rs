//! What a build may read, on the real BuildKit: it asks the builder about every source, however a Dockerfile names it.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use serde_json::json;
use slipway_e2e::{build_context::BuildContext, builder_process::BuilderProcess, testbed::Testbed};

/// A server on the loopback address that counts its connections and answers every request with the text `content`.
pub(crate) struct CountingHttpServer {
    pub(crate) port: u16,
    connections: Arc<AtomicUsize>,
}

impl CountingHttpServer {
    pub(crate) fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let port = listener.local_addr()?.port();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = connections.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                counter.fetch_add(1, Ordering::SeqCst);
                let mut request = [0; 1024];
                if stream.read(&mut request).is_ok() {
                    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 7\r\nconnection: close\r\n\r\ncontent";
                    stream.write_all(answer.as_bytes()).ok();
                }
            }
        });
        Ok(Self { port, connections })
    }

    pub(crate) fn connection_count(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn no_spelling_of_a_private_address_is_read_and_no_connection_is_made() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let server = CountingHttpServer::start()?;
    let port = server.port;
    let builder = BuilderProcess::start_with_settings(&testbed, &[]).await?;
    for (source, expected) in [
        (format!("ADD http://127.0.0.1:{port}/a /a"), "loopback"),
        (
            format!("ADD http://localhost:{port}/a /a"),
            "without a public address",
        ),
        (
            format!("ADD http://LOCALHOST.:{port}/a /a"),
            "without a public address",
        ),
        (
            format!("ADD http://2130706433:{port}/a /a"),
            "four decimal numbers",
        ),
        (
            format!("ADD http://0x7f.0.0.1:{port}/a /a"),
            "four decimal numbers",
        ),
        (
            format!("ADD http://0177.0.0.1:{port}/a /a"),
            "four decimal numbers",
        ),
        (format!("ADD http://127.1:{port}/a /a"), "four decimal numbers"),
        (format!("ADD http://0:{port}/a /a"), "four decimal numbers"),
        (format!("ADD http://[::1]:{port}/a /a"), "loopback"),
        (format!("ADD http://[::ffff:127.0.0.1]:{port}/a /a"), "loopback"),
        (format!("ADD http://user:pass@127.0.0.1:{port}/a /a"), "loopback"),
        (
            format!("ARG HOST=127.0.0.1\nADD http://$HOST:{port}/a /a"),
            "loopback",
        ),
        (
            format!(
                "ADD --checksum=sha256:ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73 http://127.0.0.1:{port}/a /a"
            ),
            "loopback",
        ),
        (format!("ADD http://127.0.0.1:{port}/a.git /a"), "loopback"),
        (format!("ADD https://127.0.0.1:{port}/a.git#main /a"), "loopback"),
        (format!("ADD git://127.0.0.1:{port}/a.git /a"), "loopback"),
        (
            "ADD http://169.254.169.254/latest/meta-data/ /a".to_owned(),
            "metadata",
        ),
        (
            "ADD http://metadata.google.internal/a /a".to_owned(),
            "without a public address",
        ),
        ("ADD http://[fd00:ec2::254]/a /a".to_owned(), "private address"),
        ("COPY --from=169.254.169.254/a/b:1 / /a".to_owned(), "metadata"),
    ] {
        let context = BuildContext::dockerfile(format!("FROM scratch\n{source}\n"));
        let tar = context.tar_with_config_last(
            &json!({ "image": testbed.image_name("e2e/sources", "1"), "skipPush": true }),
        )?;

        let reply = builder.build_client_with_own_key()?.post_signed(tar).await?;

        assert_eq!(reply.status, 422, "{source}: {}", reply.text);
        let error = reply.text_field("error");
        assert!(
            error.starts_with("the build may not read ") && error.contains(expected),
            "{source}: {error}"
        );
    }
    assert_eq!(
        server.connection_count(),
        0,
        "the daemon connected to a private address"
    );
    Ok(())
}

#[tokio::test]
async fn allowed_sources_let_a_build_read_from_a_private_host() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let server = CountingHttpServer::start()?;
    let allowed = format!("127.0.0.1:{}", server.port);
    // A daemon of its own: the stack's may be in another network.
    let daemon = slipway_e2e::buildkit::BuildkitDaemon::start(&testbed, "").await?;
    let settings = [
        ("allowed_sources", &*allowed),
        ("buildkit_url", &daemon.socket_url()),
    ];
    let builder = BuilderProcess::start_with_settings(&testbed, &settings).await?;
    let dockerfile = format!("FROM scratch\nADD http://{allowed}/a /a\n");
    let tar = BuildContext::dockerfile(dockerfile).tar_with_config_last(
        &json!({ "image": testbed.image_name("e2e/sources", "2"), "skipPush": true }),
    )?;

    let reply = builder.build_client_with_own_key()?.post_signed(tar).await?;

    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(server.connection_count() > 0);
    Ok(())
}
