//! The bar of an upload on a pseudo-terminal.

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use crate::fake_builder::outcome_of_running_function;
use crate::project::{Project, wait_for_end};
use crate::pseudo_terminal::spawn_on_terminal;
use crate::up::incompressible;

/// The size of the file that is sent: more than the buffers of a connection hold.
const FILE_BYTES: usize = 24 << 20;

/// The size of the receive buffer of the server, in bytes.
const RECEIVE_BUFFER_BYTES: u32 = 64 << 10;

/// Answers probes at once, a build request once `may_read` is true and its body was read, and questions with 404.
async fn serve(listener: TcpListener, may_read: watch::Receiver<bool>) {
    while let Ok((connection, _)) = listener.accept().await {
        tokio::spawn(answer_requests(BufReader::new(connection), may_read.clone()));
    }
}

async fn answer_requests(
    mut connection: BufReader<TcpStream>,
    mut may_read: watch::Receiver<bool>,
) -> std::io::Result<()> {
    loop {
        let (mut first, mut body_bytes) = (String::new(), 0);
        connection.read_line(&mut first).await?;
        loop {
            let mut line = String::new();
            if connection.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(length) = line.strip_prefix("content-length: ") {
                body_bytes = length.parse().expect("a number");
            }
        }
        let (status, body) = match first.split(' ').next() {
            Some("POST") => {
                may_read
                    .wait_for(|may_read| *may_read)
                    .await
                    .expect("the test runs");
                let mut body = (&mut connection).take(body_bytes);
                tokio::io::copy(&mut body, &mut tokio::io::sink()).await?;
                ("200 OK", format!("{}\n", outcome_of_running_function()))
            }
            _ if first.contains("/_/health") => ("200 OK", "{}".to_owned()),
            _ => ("404 Not Found", "{}".to_owned()),
        };
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        connection.write_all(answer.as_bytes()).await?;
    }
}

#[tokio::test]
async fn an_upload_has_a_bar_with_what_was_sent_until_all_was_sent() {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .set_recv_buffer_size(RECEIVE_BUFFER_BYTES)
        .expect("a buffer");
    socket
        .bind("127.0.0.1:0".parse().expect("an address"))
        .expect("a port");
    let listener = socket.listen(16).expect("a listener");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (let_server_read, may_read) = watch::channel(false);
    tokio::spawn(serve(listener, may_read));
    let project = Project::shop();
    project.write("shop/large", incompressible(FILE_BYTES));
    let mut command = project.command(&["up", "--via", "builder", "--builder", &url]);
    command.env("TERM", "xterm");
    let (child, mut terminal) = spawn_on_terminal(&mut command);

    let is_bar = |line: &String| line.contains("shop: sending");
    let screen = terminal
        .wait_for_screen(|screen| {
            screen
                .iter()
                .any(|line| is_bar(line) && line.contains('█') && line.contains("/24."))
        })
        .await;
    let bars: Vec<_> = screen.iter().filter(|line| is_bar(line)).collect();
    // A part of the bar is drawn, and the total is that of the packed context.
    assert!(
        matches!(bars[..], [bar] if bar.contains('░') && bar.contains("iB/24.") && bar.contains("iB/s")),
        "{screen:#?}"
    );

    let_server_read.send_replace(true);
    let screen = terminal.wait_for_last_screen().await;
    assert_eq!(wait_for_end(child).await.code, Some(0), "{screen:#?}");
    assert!(!screen.iter().any(is_bar), "{screen:#?}");
}
