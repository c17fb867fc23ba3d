//! A flood of senders without the key, at a process of the deployer: how much memory it costs, and whether signed
//! hand-overs still arrive.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use function_host::Secret;
use function_host::signature::{self, HmacKeys};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// The number of senders without the key, unless the environment variable `FLOOD_SENDERS` has another one.
const DEFAULT_UNSIGNED_SENDER_COUNT: usize = 300;

/// The duration of the flood, unless the environment variable `FLOOD_SECONDS` has another one.
const DEFAULT_FLOOD_DURATION: Duration = Duration::from_secs(5);

/// The limit on the memory that the flood costs, in KiB. The deployer as shipped takes less than 9 MiB without it.
const FLOOD_MEMORY_GROWTH_LIMIT_KIB: u64 = 23 << 10;

/// The time after which a signed hand-over counts as lost.
const SIGNED_ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

const DEPLOY_KEY: &str = "a key of 17 bytes";

/// A process of the deployer, with a gateway that does not exist. Dropping it kills the process.
struct DeployerProcess {
    process: Child,
    address: SocketAddr,
    _secrets: TempDir,
}

impl DeployerProcess {
    /// Starts the deployer and waits until it listens.
    async fn start() -> Self {
        let secrets = tempfile::tempdir().unwrap();
        fs::write(secrets.path().join("deploy-secret"), DEPLOY_KEY).unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_deployer-fn"))
            .env_clear()
            .env("port", "0")
            .env("metrics_port", "0")
            .env("gateway_url", "http://127.0.0.1:1")
            .env("log_level", "warn,function_host=info")
            .env("secret_mount_path", secrets.path())
            .env("MALLOC_ARENA_MAX", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stdout.take().unwrap()).lines();
        let port = loop {
            let line = log.next_line().await.unwrap().unwrap();
            let line: Value = serde_json::from_str(&line).unwrap();
            if line["message"] == "listening" {
                break u16::try_from(line["port"].as_u64().unwrap()).unwrap();
            }
        };
        tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        Self {
            process,
            address: (Ipv4Addr::LOCALHOST, port).into(),
            _secrets: secrets,
        }
    }

    /// Returns the most memory that the process has used so far, in KiB.
    fn peak_memory_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process.id().unwrap());
        let status = fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
        kib.parse().unwrap()
    }
}

/// Sends a signed hand-over that is not valid; returns the time until the answer. Fails unless the answer is 400, which
/// shows that the signature was verified.
async fn send_signed_invalid_and_time_answer(address: SocketAddr) -> Result<Duration, String> {
    let body = json!({"deploy": {"service": "x".repeat(2000)}}).to_string();
    let signature = signature::sign_body(&HmacKeys::new(&Secret::new(DEPLOY_KEY)).unwrap(), body.as_bytes());
    let request = format!(
        "POST / HTTP/1.1\r\nhost: deployer\r\nconnection: close\r\nx-deploy-signature: {signature}\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let begun = Instant::now();
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = timeout(SIGNED_ANSWER_TIMEOUT, exchange)
        .await
        .map_err(|_| "no answer".to_owned())?;
    let answer = answer.map_err(|error| error.to_string())?;
    match answer.starts_with("HTTP/1.1 400 ") {
        true => Ok(begun.elapsed()),
        false => Err(answer),
    }
}

/// Sends what the senders of this kind send (0 to 9), until the deployer closes the connection.
async fn send_without_valid_signature_until_closed(
    mut stream: TcpStream,
    kind_of_sender: usize,
) -> std::io::Result<()> {
    let wrong = format!("x-deploy-signature: sha256={}\r\n", "0".repeat(64));
    let head = |length: &str| format!("POST / HTTP/1.1\r\nhost: deployer\r\n{wrong}{length}\r\n");
    let megabyte = head("content-length: 1048576\r\n");
    match kind_of_sender {
        // Nothing at all.
        0 => {}
        // Half a head, byte by byte.
        1 => {
            for byte in b"POST / HTTP/1.1\r\nhost: deployer\r\nx-filler: "
                .iter()
                .chain(&[b'x'; 1000])
            {
                stream.write_u8(*byte).await?;
                sleep(Duration::from_millis(50)).await;
            }
        }
        // A head that is as large as possible, without its end.
        2 => {
            stream.write_all(b"POST / HTTP/1.1\r\nx-filler: ").await?;
            stream.write_all(&[b'x'; 65_000]).await?;
        }
        // Half a body.
        3 => {
            stream.write_all(megabyte.as_bytes()).await?;
            stream.write_all(&[b' '; 600_000]).await?;
        }
        // A body, byte by byte.
        4 => {
            stream.write_all(megabyte.as_bytes()).await?;
            loop {
                stream.write_u8(b' ').await?;
                sleep(Duration::from_millis(50)).await;
            }
        }
        // Chunks of one byte, with extensions.
        5 => {
            let chunks = "1;x=y\r\n \r\n".repeat(100);
            stream
                .write_all(head("transfer-encoding: chunked\r\n").as_bytes())
                .await?;
            loop {
                stream.write_all(chunks.as_bytes()).await?;
                sleep(Duration::from_millis(20)).await;
            }
        }
        // A body that is announced and never sent.
        6 => {
            let expecting = head("content-length: 65536\r\nexpect: 100-continue\r\n");
            stream.write_all(expecting.as_bytes()).await?;
        }
        // A whole body with a wrong signature.
        7 => {
            stream
                .write_all(head("content-length: 65536\r\n").as_bytes())
                .await?;
            stream.write_all(&[b' '; 65_536]).await?;
        }
        // Many requests whose answers are not read.
        8 => {
            let requests = "GET / HTTP/1.1\r\nhost: deployer\r\n\r\n".repeat(20_000);
            stream.write_all(requests.as_bytes()).await?;
            return sleep_for_default_flood_duration().await;
        }
        // HTTP/1.0, with a body that the deployer does not read.
        _ => {
            stream
                .write_all(b"POST / HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: 1048576\r\n\r\n")
                .await?;
            stream.write_all(&[b' '; 100_000]).await?;
        }
    }
    let mut answer = [0; 4096];
    while stream.read(&mut answer).await? > 0 {}
    Ok(())
}

/// Sleeps for [`DEFAULT_FLOOD_DURATION`], while the caller keeps its connection open.
async fn sleep_for_default_flood_duration() -> std::io::Result<()> {
    sleep(DEFAULT_FLOOD_DURATION).await;
    Ok(())
}

/// Returns the number in an environment variable, if it is set.
fn number_from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|number| number.parse().unwrap())
}

/// Returns the median and the 95th percentile.
fn median_and_95th_percentile(mut times: Vec<Duration>) -> [Duration; 2] {
    times.sort_unstable();
    [50, 95].map(|percent| times[times.len() * percent / 100])
}

/// Sends signed hand-overs that are not valid for `duration`, one after the other, 100 ms apart; returns the time
/// until each answer.
async fn send_signed_invalid_throughout(address: SocketAddr, duration: Duration) -> Vec<Duration> {
    let begun = Instant::now();
    let mut times = Vec::new();
    while begun.elapsed() < duration {
        times.push(send_signed_invalid_and_time_answer(address).await.unwrap());
        sleep(Duration::from_millis(100)).await;
    }
    times
}

#[tokio::test(flavor = "multi_thread")]
async fn unsigned_senders_cost_little_memory_and_no_signed_hand_over() {
    let deployer = DeployerProcess::start().await;
    let address = deployer.address;
    let alone = send_signed_invalid_throughout(address, Duration::from_secs(2)).await;
    let idle = deployer.peak_memory_kib();
    let senders = number_from_environment("FLOOD_SENDERS")
        .map_or(DEFAULT_UNSIGNED_SENDER_COUNT, |number| number as usize);
    let mut flood = JoinSet::new();
    for number in 0..senders {
        flood.spawn(async move {
            loop {
                if let Ok(stream) = TcpStream::connect(address).await {
                    let _ = send_without_valid_signature_until_closed(stream, number % 10).await;
                }
                sleep(Duration::from_secs(1)).await;
            }
        });
    }

    let flooded = send_signed_invalid_throughout(
        address,
        number_from_environment("FLOOD_SECONDS").map_or(DEFAULT_FLOOD_DURATION, Duration::from_secs),
    )
    .await;

    flood.shutdown().await;
    let peak = deployer.peak_memory_kib();
    let (alone, flooded) = (
        median_and_95th_percentile(alone),
        median_and_95th_percentile(flooded),
    );
    let figures = format!("memory {idle} KiB, then {peak} KiB; median and p95 {alone:?}, then {flooded:?}");
    assert!(peak - idle < FLOOD_MEMORY_GROWTH_LIMIT_KIB, "{figures}");
    // Shown with --nocapture.
    writeln!(std::io::stdout(), "{figures}").unwrap();
}
