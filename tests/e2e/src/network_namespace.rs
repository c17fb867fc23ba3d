//! Network namespaces of processes: sockets, programs and more addresses in a namespace of the stack.
//!
//! A socket stays in the namespace in which it was opened, so only opening it needs a thread there.

use std::{
    fs::{self, File},
    net::IpAddr,
    os::fd::AsFd as _,
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The network namespace of a running process.
#[derive(Debug)]
pub struct NetworkNamespace(File);

impl NetworkNamespace {
    /// Returns the network namespace of the process with this id.
    pub fn of_process(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/ns/net");
        Ok(Self(File::open(&path).context(path)?))
    }

    /// Runs `work` on a thread inside the namespace and returns its result.
    pub fn run_inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let inside = || {
            self.enter()?;
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join())
            .map_err(|_| anyhow::anyhow!("the thread panicked"))?
    }

    /// Starts a thread inside the namespace that runs `work`.
    pub fn spawn_inside<T: Send + 'static>(
        self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> thread::JoinHandle<Result<T>> {
        thread::spawn(move || {
            self.enter()?;
            work()
        })
    }

    /// Moves the current thread into the namespace.
    fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
            .context("entering the network namespace")
    }

    /// Runs a program inside the namespace and returns its output. Fails if the program does.
    pub fn program_output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.run_inside(|| {
            let output = Command::new(program).args(arguments).output()?;
            let errors = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{program} {arguments:?}: {errors}");
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        })
    }

    /// Returns the IPv4 addresses of the namespace's interfaces, with 127.0.0.1 last.
    pub fn ipv4_addresses_with_loopback_last(&self) -> Result<Vec<String>> {
        let listed = self.program_output("ip", &["-4", "-o", "address", "show"])?;
        let interfaces = listed.lines().filter(|line| !line.contains(": lo "));
        let words = interfaces.filter_map(|line| line.split_whitespace().nth(3));
        let addresses = words.filter_map(|word| word.split('/').next());
        let outside = addresses.filter(|address| !address.starts_with("127."));
        Ok(outside
            .map(str::to_owned)
            .chain(["127.0.0.1".to_owned()])
            .collect())
    }

    /// Adds addresses to the namespace's loopback interface until the returned guard is dropped.
    pub fn with_addresses(self, addresses: &[IpAddr]) -> Result<ExtraAddresses> {
        let mut extra = ExtraAddresses {
            namespace: self,
            addresses: Vec::new(),
        };
        for address in addresses {
            // An earlier run that was killed may have left it.
            extra.change_address("del", *address).ok();
            extra.change_address("add", *address)?;
            extra.addresses.push(*address);
        }
        Ok(extra)
    }
}

/// A guard of addresses that were added to a network namespace; dropping it removes them.
#[derive(Debug)]
pub struct ExtraAddresses {
    namespace: NetworkNamespace,
    addresses: Vec<IpAddr>,
}

impl ExtraAddresses {
    /// Returns the namespace that has the addresses.
    pub fn namespace(&self) -> &NetworkNamespace {
        &self.namespace
    }

    /// Runs `ip address ACTION` for an address of the namespace's loopback interface.
    fn change_address(&self, action: &str, address: IpAddr) -> Result<()> {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        let address = format!("{address}/{prefix}");
        let mut arguments = vec!["address", action, &address, "dev", "lo"];
        if action == "add" && prefix == 128 {
            arguments.push("nodad");
        }
        self.namespace.program_output("ip", &arguments).map(drop)
    }
}

impl Drop for ExtraAddresses {
    fn drop(&mut self) {
        for address in &self.addresses {
            // The namespace may have ended with its stack.
            self.change_address("del", *address).ok();
        }
    }
}

/// Returns the id of a process whose program's path ends with `program_suffix` and one of whose arguments contains
/// `argument_part`. Fails if there is none.
pub fn find_first_process(program_suffix: &str, argument_part: &str) -> Result<u32> {
    for entry in fs::read_dir("/proc")? {
        let folder = entry?.path();
        // Most entries are not processes, and a process may exit while the list is read.
        let Ok(line) = fs::read(folder.join("cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&line);
        let mut words = line.split('\0');
        let is_program = words.next().is_some_and(|word| word.ends_with(program_suffix));
        if is_program && words.any(|word| word.contains(argument_part)) {
            let name = folder
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            return name.parse().context(name);
        }
    }
    anyhow::bail!("no process {program_suffix} with {argument_part} in its arguments is running")
}
