//! A flood of requests without a valid signature, whose bodies and heads are slow, incomplete, huge or compressed.

pub mod process;

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use flate2::{Compression, write::GzEncoder};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
};

use crate::network_namespace::NetworkNamespace;

/// The time that a sender waits after an answer, a close or an error, before it connects again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);

/// The number of pseudo-random bytes at the end of each gzip body, which do not compress.
const NOISE_BYTES: usize = 512 << 10;

/// A kind of sender without the key, by the way in which it keeps the receiver busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum UnsignedSender {
    /// Sends a short head without its end, and waits.
    IdleHead,
    /// Sends a head of 300 KiB without its end, and waits.
    HugeHead,
    /// Sends a head, no body, and waits.
    IdleBody,
    /// Sends a byte of its body a second.
    Trickle,
    /// Sends half of a body that is not compressed, and waits.
    HalfBody,
    /// Sends most of a gzip stream whose tar has 15 MiB of extended attributes, and waits.
    ExtendedAttributes,
    /// Sends most of a gzip stream whose tar has a file of 28 MiB of zeros, and waits.
    Ratio,
    /// Sends a complete body, the beginning of a gzip stream, with a wrong signature.
    WrongSignature,
}

impl UnsignedSender {
    /// All kinds of unsigned senders.
    pub const ALL: [Self; 8] = [
        Self::IdleHead,
        Self::HugeHead,
        Self::IdleBody,
        Self::Trickle,
        Self::HalfBody,
        Self::ExtendedAttributes,
        Self::Ratio,
        Self::WrongSignature,
    ];
}

/// The bodies that the senders of a flood send, made once.
#[derive(Debug)]
struct FloodBodies {
    extended_attributes: Vec<u8>,
    ratio: Vec<u8>,
    plain: Vec<u8>,
}

/// The number of times that senders of each kind got each answer: a status, `closed`, or an error.
pub type OutcomeCounts = BTreeMap<(UnsignedSender, String), usize>;

/// The counts of what the senders of a flood have sent, and of the answers that they got.
#[derive(Debug, Default)]
struct FloodCounters {
    connections: AtomicU64,
    requests: AtomicU64,
    bytes: AtomicU64,
    outcomes: Mutex<OutcomeCounts>,
}

/// A flood of unsigned requests by running senders, which stop when this is dropped.
#[derive(Debug)]
pub struct Flood {
    counters: Arc<FloodCounters>,
    stop: watch::Sender<bool>,
    thread: Option<thread::JoinHandle<()>>,
}

/// The function that receives a flood, and the form of its requests.
#[derive(Debug, Clone)]
pub struct FloodTargetAndRequestForm {
    /// The address that the senders connect to.
    pub address: SocketAddr,
    /// The path in the senders' requests.
    pub path: &'static str,
    /// The name of the header with the signature.
    pub signature: &'static str,
    /// The length of the plain bodies, in bytes.
    pub body: usize,
}

impl Flood {
    /// Starts `count` senders, of these kinds by turns. `namespace` is the network namespace of their sockets; `None`
    /// means this process's own.
    pub fn start(
        target: FloodTargetAndRequestForm,
        kinds: &[UnsignedSender],
        count: usize,
        namespace: Option<NetworkNamespace>,
    ) -> Result<Self> {
        let bodies = Arc::new(FloodBodies {
            extended_attributes: gzip_without_trailer(&append_beginning_of_random_file(
                tar_of_large_attributes_without_end()?,
            )?)?,
            ratio: gzip_without_trailer(&append_beginning_of_random_file(tar_of_zeros_without_end()?)?)?,
            plain: vec![0; target.body],
        });
        let counters = Arc::<FloodCounters>::default();
        let (stop, stopped) = watch::channel(false);
        let (kinds, counted) = (kinds.to_vec(), Arc::clone(&counters));
        let work = move || -> Result<()> {
            // All sockets of this runtime are opened on this thread, and so in its namespace.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                for (number, kind) in kinds.iter().cycle().take(count).enumerate() {
                    let (target, bodies, counters) =
                        (target.clone(), Arc::clone(&bodies), Arc::clone(&counted));
                    let kind = *kind;
                    tokio::spawn(async move {
                        // Spread the connections over a second.
                        tokio::time::sleep(RECONNECT_PAUSE * 2 * number as u32 / count as u32).await;
                        loop {
                            let outcome = match send_unsigned(kind, &target, &bodies, &counters).await {
                                Ok(answer) => answer,
                                Err(error) => format!("{:?}", error.kind()),
                            };
                            counters.count_outcome(kind, outcome);
                            tokio::time::sleep(RECONNECT_PAUSE).await;
                        }
                    });
                }
                let mut stopped = stopped;
                stopped.wait_for(|stop| *stop).await.ok();
            });
            Ok(())
        };
        let thread = thread::spawn(move || {
            let result = match namespace {
                Some(namespace) => namespace.run_inside(work),
                None => work(),
            };
            result.ok();
        });
        Ok(Self {
            counters,
            stop,
            thread: Some(thread),
        })
    }

    /// Returns how often senders of each kind got each answer.
    pub fn outcome_counts(&self) -> OutcomeCounts {
        let outcomes = self.counters.outcomes.lock();
        outcomes.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the number of connections that the senders have opened so far.
    pub fn connection_count(&self) -> u64 {
        self.counters.connections.load(Ordering::Relaxed)
    }

    /// Returns the number of requests whose heads the senders have sent whole so far.
    pub fn complete_head_count(&self) -> u64 {
        self.counters.requests.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes that the senders have sent so far, without those of [`UnsignedSender::Trickle`].
    pub fn sent_bytes_without_trickle(&self) -> u64 {
        self.counters.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl FloodCounters {
    fn count_outcome(&self, kind: UnsignedSender, outcome: String) {
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        *outcomes.entry((kind, outcome)).or_default() += 1;
    }

    /// Writes all of `bytes`, and counts those that the kernel has taken.
    async fn write(&self, stream: &mut TcpStream, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            let count = stream.write(bytes).await?;
            self.bytes.fetch_add(count as u64, Ordering::Relaxed);
            bytes = bytes.get(count..).unwrap_or_default();
        }
        Ok(())
    }

    /// Writes the head of a request to its end, and counts the request.
    async fn write_head_and_blank_line(&self, stream: &mut TcpStream, head: &str) -> std::io::Result<()> {
        self.write(stream, head.as_bytes()).await?;
        self.write(stream, b"\r\n").await?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Sends one request, waits for its answer, however long that takes, and returns the answer's status, or `closed`.
async fn send_unsigned(
    kind: UnsignedSender,
    target: &FloodTargetAndRequestForm,
    bodies: &FloodBodies,
    counters: &FloodCounters,
) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(target.address).await?;
    counters.connections.fetch_add(1, Ordering::Relaxed);
    let head = |length: usize| {
        format!(
            "POST {} HTTP/1.1\r\nHost: flood\r\n{}: sha256={}\r\nContent-Length: {length}\r\n",
            target.path,
            target.signature,
            "0".repeat(64)
        )
    };
    let (length, body) = match kind {
        UnsignedSender::IdleHead => {
            counters.write(&mut stream, head(10).as_bytes()).await?;
            return read_status_or_closed(&mut stream).await;
        }
        UnsignedSender::HugeHead => {
            let fields: String = (0..150)
                .map(|number| format!("X-{number}: {}\r\n", "x".repeat(2000)))
                .collect();
            counters
                .write(&mut stream, (head(10) + &fields).as_bytes())
                .await?;
            return read_status_or_closed(&mut stream).await;
        }
        UnsignedSender::Trickle => {
            counters
                .write_head_and_blank_line(&mut stream, &head(1 << 20))
                .await?;
            let (mut read, mut write) = stream.split();
            let trickle = async {
                while write.write_all(b"x").await.is_ok() {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            };
            let mut answer = [0; 64];
            return tokio::select! {
                length = read.read(&mut answer) => Ok(status_or_closed(answer.get(..length?).unwrap_or_default())),
                () = trickle => Ok("closed".to_owned()),
            };
        }
        UnsignedSender::IdleBody => (1 << 20, &[][..]),
        UnsignedSender::HalfBody => (2 * bodies.plain.len(), bodies.plain.as_slice()),
        UnsignedSender::ExtendedAttributes => {
            let body = &bodies.extended_attributes;
            (2 * body.len(), body.as_slice())
        }
        UnsignedSender::Ratio => (2 * bodies.ratio.len(), bodies.ratio.as_slice()),
        UnsignedSender::WrongSignature => {
            let all = bodies.extended_attributes.as_slice();
            let body = all.get(..bodies.plain.len()).unwrap_or(all);
            (body.len(), body)
        }
    };
    counters
        .write_head_and_blank_line(&mut stream, &head(length))
        .await?;
    counters.write(&mut stream, body).await?;
    read_status_or_closed(&mut stream).await
}

/// Waits for an answer, and returns its status, or `closed`.
async fn read_status_or_closed(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut answer = [0; 64];
    let length = stream.read(&mut answer).await?;
    Ok(status_or_closed(answer.get(..length).unwrap_or_default()))
}

/// Returns the status of an answer, or `closed`.
fn status_or_closed(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(answer);
    text.split_whitespace().nth(1).unwrap_or("closed").to_owned()
}

/// Returns a tar without its end marker, with 240 empty files that each have an extended attribute of 64 KiB.
pub fn tar_of_large_attributes_without_end() -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for number in 0..240_u32 {
        // 64 KiB that compress well, and of which no two are equal.
        let value: Vec<u8> = (0..64_u32 << 10).map(|at| (at / 512 + number) as u8).collect();
        let name = format!("SCHILY.xattr.user.a{number}");
        builder.append_pax_extensions([(name.as_str(), value.as_slice())])?;
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        header.set_mode(0o644);
        builder.append_data(&mut header, format!("context/{number}"), [].as_slice())?;
    }
    let mut tar = builder.into_inner()?;
    tar.truncate(tar.len() - 1024);
    Ok(tar)
}

/// Returns a tar with one file of 28 MiB of zeros, without the tar's end marker.
fn tar_of_zeros_without_end() -> Result<Vec<u8>> {
    const CONTENT_BYTES: usize = 28 << 20;
    let mut tar = tar_header("context/zeros", CONTENT_BYTES as u64)?;
    tar.resize(tar.len() + CONTENT_BYTES, 0);
    Ok(tar)
}

/// Appends the beginning of a file that does not compress. A receiver that processes a body in batches gets to all that
/// precedes it.
fn append_beginning_of_random_file(mut tar: Vec<u8>) -> Result<Vec<u8>> {
    tar.extend(tar_header("context/noise", 1 << 30)?);
    // Xorshift.
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    for _ in 0..NOISE_BYTES / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        tar.extend(state.to_le_bytes());
    }
    Ok(tar)
}

/// Returns the header of a regular file of this size.
fn tar_header(path: &str, size: u64) -> Result<Vec<u8>> {
    let mut header = tar::Header::new_gnu();
    header.set_path(path).context("the path")?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    Ok(header.as_bytes().to_vec())
}

/// Returns a gzip stream that is flushed and has no trailer.
fn gzip_without_trailer(content: &[u8]) -> Result<Vec<u8>> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(content)?;
    gzip.flush()?;
    Ok(gzip.get_ref().clone())
}
