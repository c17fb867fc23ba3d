//! TCP forwarders. One forwards from a fixed address of the stack to the current container of builder-fn,
//! without the gateway. With faasd, another forwards from a loopback address of the machine to the registry.
//!
//! The kernel moves the bytes, by way of pipes: copying them in the launcher, which is compiled without optimisation,
//! took twice as much processor time.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use rustix::{
    net::{Shutdown, shutdown},
    pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice},
};
use tokio::{
    io::Interest,
    net::{TcpListener, TcpStream},
};

use crate::{
    address::BUILDER_PORT,
    error::{IoResultExt as _, Result},
    plan::ProviderChoice,
    supervisor::part_spec::StackDirAndPlan,
};

/// The name of the function to which connections are forwarded.
const FORWARDED_FUNCTION_NAME: &str = "builder-fn";

/// The port on which every function listens.
const FUNCTION_PORT: u16 = 8080;

/// The timeout for a forwarder to connect to a container, which is on a bridge of this machine.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The size of the pipe between two connections, in bytes: the largest that the kernel gives to every user.
const PIPE_BYTES: usize = 1 << 20;

/// A TCP forwarder, from a listener to a container or a fixed address.
#[derive(Debug)]
pub(crate) struct Forwarder {
    listener: TcpListener,
    target: ForwardTarget,
}

/// The destination of a forwarder.
#[derive(Debug, Clone)]
enum ForwardTarget {
    /// The current container of a function.
    Function(ContainerAddressDirectory),
    /// A fixed network address.
    Address(SocketAddr),
}

/// Opens a listener at the registry's loopback address if the provider is faasd. A socket stays in the network
/// namespace in which it was made, so this must run in the machine's.
pub(crate) fn listen_for_loopback_registry_if_faasd(
    config: &StackDirAndPlan,
) -> Result<Option<std::net::TcpListener>> {
    if matches!(config.plan.provider, ProviderChoice::Embedded(_)) {
        return Ok(None);
    }
    let address = config.plan.number.loopback_registry_address_for_faasd();
    let listener = std::net::TcpListener::bind(address).with_operation("listen on", address.to_string())?;
    listener
        .set_nonblocking(true)
        .with_operation("listen on", address.to_string())?;
    Ok(Some(listener))
}

/// Opens the forwarders of a stack: to builder-fn and, if `loopback` is a listener, to the registry.
pub(crate) async fn open_forwarders(
    config: &StackDirAndPlan,
    loopback: Option<std::net::TcpListener>,
) -> Result<Vec<Forwarder>> {
    let number = config.plan.number;
    let address = SocketAddr::from((number.stacks_end_address(), BUILDER_PORT));
    let listener = TcpListener::bind(address)
        .await
        .with_operation("listen on", address.to_string())?;
    let addresses = match &config.plan.provider {
        ProviderChoice::Embedded(_) => {
            ContainerAddressDirectory::Results(config.dir.part_data_directory("provider").join("cni/results"))
        }
        ProviderChoice::Faasd(_) => ContainerAddressDirectory::Leases("/run/cni/openfaas-cni-bridge".into()),
    };
    let mut all = vec![Forwarder {
        listener,
        target: ForwardTarget::Function(addresses),
    }];
    if let Some(loopback) = loopback {
        let listener = TcpListener::from_std(loopback).with_operation(
            "listen on",
            number.loopback_registry_address_for_faasd().to_string(),
        )?;
        all.push(Forwarder {
            listener,
            target: ForwardTarget::Address(number.registry_address()),
        });
    }
    Ok(all)
}

impl Forwarder {
    /// Accepts connections and forwards each one in a new task.
    pub(crate) async fn accept_and_forward_until_error(&self) -> Result<()> {
        loop {
            let (client, _) = self
                .listener
                .accept()
                .await
                .with_operation("accept on", "a forwarder's address")?;
            tokio::spawn(forward_to_first_accepting_address_or_close(
                client,
                self.target.current_addresses(),
            ));
        }
    }
}

impl ForwardTarget {
    /// Returns the addresses to try, in this order; none while the function has no container.
    fn current_addresses(&self) -> Vec<SocketAddr> {
        match self {
            ForwardTarget::Function(addresses) => addresses
                .addresses_of_function(FORWARDED_FUNCTION_NAME)
                .into_iter()
                .map(|address| (address, FUNCTION_PORT).into())
                .collect(),
            ForwardTarget::Address(address) => vec![*address],
        }
    }
}

/// Forwards one connection to the first address that accepts a connection. If none does, the connection is
/// closed, as the function's own address would refuse it.
async fn forward_to_first_accepting_address_or_close(client: TcpStream, addresses: Vec<SocketAddr>) {
    for address in addresses {
        let connect = TcpStream::connect(address);
        if let Ok(Ok(target)) = tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            let _ = move_bytes_both_ways(&client, &target).await;
            return;
        }
    }
}

/// Moves bytes between two connections in both directions, until both have ended or one has failed.
async fn move_bytes_both_ways(client: &TcpStream, target: &TcpStream) -> io::Result<()> {
    // Without this, the kernel would hold back the end of a request until the other side has acknowledged what precedes
    // it.
    client.set_nodelay(true)?;
    target.set_nodelay(true)?;
    tokio::try_join!(move_bytes(client, target), move_bytes(target, client)).map(drop)
}

/// Moves bytes from one connection to another until the first one ends, and then ends the second one in this direction.
async fn move_bytes(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    let (pipe_output, pipe_input) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // Fails if this user's pipes take up too much memory already; a smaller pipe is slower only.
    let _ = fcntl_setpipe_size(&pipe_input, PIPE_BYTES);
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    loop {
        // The pipe is empty here and never when the bytes leave it, so that each call waits for one connection only.
        let fill = || Ok(splice(from, None, &pipe_input, None, PIPE_BYTES, flags)?);
        let mut filled = from.async_io(Interest::READABLE, fill).await?;
        if filled == 0 {
            return Ok(shutdown(to, Shutdown::Write)?);
        }
        while filled > 0 {
            let drain = || Ok(splice(&pipe_output, None, to, None, filled, flags)?);
            filled -= to.async_io(Interest::WRITABLE, drain).await?;
        }
    }
}

/// The directory with files that name the addresses of containers.
#[derive(Debug, Clone)]
enum ContainerAddressDirectory {
    /// The directory that the embedded provider writes: one file for each container, `NAME.…`, with the CNI
    /// plugins' result.
    Results(PathBuf),
    /// The directory that CNI's host-local plugin writes, as faasd uses it: one file for each address, with
    /// `NAME-PID` in its first line.
    Leases(PathBuf),
}

impl ContainerAddressDirectory {
    /// Returns the addresses of a function's containers, newest first: during an update there can be two.
    fn addresses_of_function(&self, function: &str) -> Vec<Ipv4Addr> {
        let (ContainerAddressDirectory::Results(dir) | ContainerAddressDirectory::Leases(dir)) = self;
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let mut found = entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let text = fs::read_to_string(entry.path()).ok()?;
                let address = match self {
                    ContainerAddressDirectory::Results(_) => address_in_cni_result(&name, &text, function),
                    ContainerAddressDirectory::Leases(_) => address_in_cni_lease(&name, &text, function),
                };
                let modified = entry.metadata().and_then(|metadata| metadata.modified());
                Some((modified.unwrap_or(SystemTime::UNIX_EPOCH), address?))
            })
            .collect::<Vec<_>>();
        found.sort();
        found.into_iter().rev().map(|(_, address)| address).collect()
    }
}

/// Returns the address in a CNI result, or `None` unless `id` is a container of the function.
fn address_in_cni_result(id: &str, result: &str, function: &str) -> Option<Ipv4Addr> {
    id.strip_prefix(function)?.strip_prefix('.')?;
    let result: serde_json::Value = serde_json::from_str(result).ok()?;
    result["ips"][0]["address"]
        .as_str()?
        .split('/')
        .next()?
        .parse()
        .ok()
}

/// Returns the address of a lease, which is its file's name, or `None` unless the function's container has the lease.
fn address_in_cni_lease(address: &str, lease: &str, function: &str) -> Option<Ipv4Addr> {
    let pid = lease
        .lines()
        .next()?
        .trim()
        .strip_prefix(function)?
        .strip_prefix('-')?;
    pid.parse::<u32>().ok()?;
    address.parse().ok()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn container_addresses_of_other_functions_are_ignored() {
        let result = r#"{"ips":[{"version":"4","address":"10.62.0.7/16"}]}"#;
        assert_eq!(
            address_in_cni_result("builder-fn.k3", result, FORWARDED_FUNCTION_NAME),
            Some(Ipv4Addr::new(10, 62, 0, 7))
        );
        assert_eq!(
            address_in_cni_result("builder-fn-two.k3", result, FORWARDED_FUNCTION_NAME),
            None
        );
        assert_eq!(
            address_in_cni_result("builder-fn.k3", "", FORWARDED_FUNCTION_NAME),
            None
        );
        assert_eq!(
            address_in_cni_lease("10.62.0.9", "builder-fn-621\r\neth0", FORWARDED_FUNCTION_NAME),
            Some(Ipv4Addr::new(10, 62, 0, 9))
        );
        assert_eq!(
            address_in_cni_lease("10.62.0.9", "builder-fn-two-621\r\neth0", FORWARDED_FUNCTION_NAME),
            None
        );
        assert_eq!(
            address_in_cni_lease("last_reserved_ip.0", "10.62.0.9", FORWARDED_FUNCTION_NAME),
            None
        );
    }

    #[test]
    fn the_address_of_the_newest_container_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        for (name, address, seconds) in [("builder-fn.a", "10.62.0.5", 1), ("builder-fn.b", "10.62.0.4", 2)] {
            let path = dir.path().join(name);
            fs::write(&path, format!(r#"{{"ips":[{{"address":"{address}/16"}}]}}"#)).unwrap();
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            fs::File::options()
                .append(true)
                .open(&path)
                .unwrap()
                .set_modified(at)
                .unwrap();
        }
        let found = ContainerAddressDirectory::Results(dir.path().to_owned())
            .addresses_of_function(FORWARDED_FUNCTION_NAME);
        assert_eq!(found, [Ipv4Addr::new(10, 62, 0, 4), Ipv4Addr::new(10, 62, 0, 5)]);
    }

    /// Returns the two ends of a TCP connection.
    async fn connection_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (client.unwrap(), accepted.unwrap().0)
    }

    /// Returns the client's end and the target's end of a forwarded connection.
    async fn forwarded_connection() -> (TcpStream, TcpStream) {
        let (client, accepted) = connection_pair().await;
        let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        tokio::spawn(forward_to_first_accepting_address_or_close(
            accepted,
            vec![target.local_addr().unwrap()],
        ));
        (client, target.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn both_directions_of_a_forwarded_connection_arrive_unchanged_and_each_ends_by_itself() {
        let (mut client, mut target) = forwarded_connection().await;
        // Longer than all buffers on the way, and of a length that no buffer's size divides.
        let request: Vec<u8> = (0..24 * PIPE_BYTES + 1)
            .map(|at| ((at * 31) >> 7) as u8)
            .collect();
        let received = tokio::spawn(async move {
            let mut received = Vec::new();
            target.read_to_end(&mut received).await.unwrap();
            target
                .write_all(b"answer after the end of the request")
                .await
                .unwrap();
            received
        });
        client.write_all(&request).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer after the end of the request");
        assert!(received.await.unwrap() == request);
    }

    #[tokio::test]
    async fn a_connection_whose_target_fails_ends_for_the_client_too() {
        let (mut client, target) = forwarded_connection().await;
        target.set_zero_linger().unwrap();
        drop(target);
        let mut rest = Vec::new();
        // A reset or the end, whichever the forwarder could pass on.
        let _ = client.read_to_end(&mut rest).await;
        assert!(rest.is_empty());
    }

    #[tokio::test]
    async fn a_connection_goes_to_the_first_address_that_accepts_it() {
        let (mut client, accepted) = connection_pair().await;
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let closed_address = closed.local_addr().unwrap();
        drop(closed);
        let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addresses = vec![closed_address, target.local_addr().unwrap()];
        tokio::spawn(forward_to_first_accepting_address_or_close(accepted, addresses));
        client.write_all(b"x").await.unwrap();
        let mut byte = [0];
        target
            .accept()
            .await
            .unwrap()
            .0
            .read_exact(&mut byte)
            .await
            .unwrap();
        assert_eq!(&byte, b"x");
    }
}
