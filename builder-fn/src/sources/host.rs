//! The host of an address, and whether it is one that no build may read from.
//!
//! A host is parsed strictly: what different programs read differently is no host here. Go's resolver, git's libcurl
//! and C libraries disagree about `0x7f.1`, `2130706433` and `0177.0.0.1`, so an IPv4 address has four decimal numbers.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The length of the longest host name, in bytes (RFC 1035).
const MAX_HOST_NAME_BYTES: usize = 253;

/// The endings of names that never belong to public hosts: RFC 6761, RFC 6762 (with its appendix G), RFC 8375, ICANN's
/// `internal`, and the names of Kubernetes' services.
const PRIVATE_SUFFIXES: [&str; 11] = [
    "arpa",
    "corp",
    "home",
    "internal",
    "intranet",
    "lan",
    "local",
    "localdomain",
    "localhost",
    "private",
    "svc",
];

/// The names of metadata services that end in no [private suffix](PRIVATE_SUFFIXES).
const METADATA_NAMES: [&str; 1] = ["metadata.goog"];

/// The first labels of metadata services' names with a private suffix: `metadata.google.internal`,
/// `instance-data.ec2.internal`.
const METADATA_FIRST_LABELS: [&str; 2] = ["metadata", "instance-data"];

/// The host of an address, without its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Host {
    /// A host name in lower case, without a dot at its end.
    Name(String),
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// An IPv6 address.
    V6(Ipv6Addr),
}

/// The error for text that is no host, or one that programs read differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "should be a host name of letters, digits, '-', '_' and '.', an IPv4 address of four decimal numbers, or an IPv6 \
     address in brackets"
)]
pub(super) struct MalformedHost;

impl Host {
    /// Parses a host as addresses have it: an IPv6 address is in brackets.
    pub(super) fn parse_with_ipv6_in_brackets(text: &str) -> Result<Self, MalformedHost> {
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(MalformedHost)?;
            return inner.parse().map(Self::V6).map_err(|_| MalformedHost);
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let is_label = |label: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            !label.is_empty() && label.len() <= 63 && label.bytes().all(allowed)
        };
        if name.len() > MAX_HOST_NAME_BYTES || !name.split('.').all(is_label) {
            return Err(MalformedHost);
        }
        // A name whose last label is a number is an address to most programs, whatever comes before it.
        match name.rsplit('.').next().is_some_and(is_number_to_c_libraries) {
            true => name.parse().map(Self::V4).map_err(|_| MalformedHost),
            false => Ok(Self::Name(name)),
        }
    }

    /// Returns the kind of a private host, as a phrase for an error text; `None` for a public host. A private host is
    /// within the machine, the cluster or the cloud.
    ///
    /// A public name may still have a private address. Whoever resolves it has to check that.
    pub(super) fn private_kind(&self) -> Option<&'static str> {
        match self {
            Self::Name(name) => private_name_kind(name),
            Self::V4(address) => private_v4_kind(*address),
            Self::V6(address) => private_v6_kind(*address),
        }
    }

    /// Returns whether the host is that of a metadata service, or a link-local address.
    pub(super) fn is_metadata_or_link_local(&self) -> bool {
        match self {
            Self::Name(name) => {
                METADATA_NAMES.contains(&name.as_str())
                    || name
                        .split('.')
                        .next()
                        .is_some_and(|label| METADATA_FIRST_LABELS.contains(&label))
                        && private_name_kind(name).is_some()
            }
            Self::V4(address) => is_metadata_or_link_local_v4(*address),
            Self::V6(address) => {
                embedded_ipv4(*address).is_some_and(is_metadata_or_link_local_v4)
                    || address.is_unicast_link_local()
                    || address.segments()[..2] == [0xfd00, 0x0ec2]
            }
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::V4(address) => write!(f, "{address}"),
            Self::V6(address) => write!(f, "[{address}]"),
        }
    }
}

/// Returns whether C libraries read the last label of a name as a number: decimal, octal, or hexadecimal.
fn is_number_to_c_libraries(label: &str) -> bool {
    let is_hexadecimal = label
        .strip_prefix("0x")
        .is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    is_hexadecimal || label.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns the kind of a private host name, for an error text; `None` for a public one.
fn private_name_kind(name: &str) -> Option<&'static str> {
    let has_suffix = |suffix: &&str| {
        name.strip_suffix(*suffix)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    if METADATA_NAMES.contains(&name) {
        Some("a metadata service")
    } else if !name.contains('.') || PRIVATE_SUFFIXES.iter().any(has_suffix) {
        Some("a name without a public address")
    } else {
        None
    }
}

/// Returns whether the address is that of a metadata service, or link-local.
fn is_metadata_or_link_local_v4(address: Ipv4Addr) -> bool {
    // Azure's and Alibaba's metadata services have addresses outside of the link-local range.
    address.is_link_local() || matches!(address.octets(), [168, 63, 129, 16] | [100, 100, 100, 200])
}

/// Returns the kind of an IPv4 address that is not public, for an error text; `None` for a public one.
fn private_v4_kind(address: Ipv4Addr) -> Option<&'static str> {
    let [first, second, third, _] = address.octets();
    match (first, second, third) {
        _ if is_metadata_or_link_local_v4(address) => Some("a link-local address or a metadata service"),
        (127, ..) => Some("a loopback address"),
        (0, ..) => Some("an address of this machine"),
        (10, ..) | (172, 16..=31, _) | (192, 168, _) => Some("a private address"),
        (100, 64..=127, _) => Some("a shared address (CGNAT)"),
        // Protocol assignments, documentation, the 6to4 relay and benchmarks: RFC 6890.
        (192, 0, 0 | 2) | (192, 88, 99) | (198, 18..=19, _) | (198, 51, 100) | (203, 0, 113) => {
            Some("an address for special purposes")
        }
        (224..=255, ..) => Some("a multicast or reserved address"),
        _ => None,
    }
}

/// Returns the kind of an IPv6 address that is not public, or leads to such an IPv4 address; `None` for a public one.
fn private_v6_kind(address: Ipv6Addr) -> Option<&'static str> {
    if let Some(kind) = embedded_ipv4(address).and_then(private_v4_kind) {
        return Some(kind);
    }
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("a loopback address"),
        [0, 0, 0, 0, 0, 0xffff, ..] => None,
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => None,
        // Documentation, and Teredo, whose addresses have another form of IPv4 address in them.
        [0x2001, 0x0db8, ..] | [0x2001, 0, ..] => Some("an address for special purposes"),
        [0xfe80..=0xfebf, ..] => Some("a link-local address or a metadata service"),
        [0xfc00..=0xfdff, ..] => Some("a private address"),
        [0x2000..=0x3fff, ..] => None,
        _ => Some("an address for special purposes"),
    }
}

/// Returns the IPv4 address that packets to an IPv6 address may reach: mapped, compatible, translated (RFC 2765), NAT64
/// (RFC 6052), 6to4 (RFC 3056) and ISATAP (RFC 5214).
fn embedded_ipv4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let of = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [_, _, _, _, 0 | 0x200, 0x5efe, high, low]
        | [0x2002, high, low, ..] => of(high, low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_private_or_malformed(text: &str) -> bool {
        Host::parse_with_ipv6_in_brackets(text).map_or(true, |host| host.private_kind().is_some())
    }

    #[test]
    fn a_public_host_is_public_in_every_valid_spelling() {
        for (text, shown) in [
            ("example.com", "example.com"),
            ("EXAMPLE.com.", "example.com"),
            ("a_b.example", "a_b.example"),
            ("9.9.9.9", "9.9.9.9"),
            ("172.15.0.1", "172.15.0.1"),
            ("100.128.0.1", "100.128.0.1"),
            ("[2606:4700::1111]", "[2606:4700::1111]"),
            ("[2606:4700:0::1111]", "[2606:4700::1111]"),
            ("[::ffff:9.9.9.9]", "[::ffff:9.9.9.9]"),
            ("10.example.com", "10.example.com"),
            ("internal.example.com", "internal.example.com"),
        ] {
            let host = Host::parse_with_ipv6_in_brackets(text).expect(text);
            assert_eq!(host.to_string(), shown);
            assert_eq!(host.private_kind(), None, "{text}");
        }
    }

    #[test]
    fn addresses_within_the_machine_the_cluster_or_the_cloud_are_private() {
        for text in [
            "127.0.0.1",
            "127.255.255.254",
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "169.254.169.254",
            "169.254.170.2",
            "169.254.170.23",
            "168.63.129.16",
            "100.100.100.200",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "[::]",
            "[::1]",
            "[fe80::1]",
            "[fc00::1]",
            "[fd00:ec2::254]",
            "[ff02::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:a9fe:a9fe]",
            "[::127.0.0.1]",
            "[64:ff9b::169.254.169.254]",
            "[64:ff9b:1::1]",
            "[2002:7f00:1::]",
            "[2002:a9fe:a9fe::1]",
            "[2001:db8::1]",
            "[2606:4700::5efe:10.0.0.1]",
            "localhost",
            "LOCALHOST.",
            "a.localhost",
            "localhost.localdomain",
            "ip6-loopback",
            "printer.local",
            "gateway.openfaas.svc",
            "gateway.openfaas.svc.cluster.local",
            "kubernetes",
            "metadata",
            "metadata.google.internal",
            "Metadata.Google.Internal.",
            "metadata.goog",
            "instance-data.ec2.internal",
            "host.docker.internal",
            "buildkit-session",
        ] {
            let host = Host::parse_with_ipv6_in_brackets(text).expect(text);
            assert!(host.private_kind().is_some(), "{text}");
        }
    }

    #[test]
    fn a_host_that_programs_read_differently_is_rejected() {
        for text in [
            "",
            ".",
            "a..b",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0x7F.0.0.1",
            "0177.0.0.1",
            "127.0.0.01",
            "127.0.0.1..",
            "1.2.3.4.5",
            "a.127",
            "127.0.0.0x1",
            "127.0.0.1%20",
            "%31%32%37.0.0.1",
            "１２７.0.0.1",
            "localhost\u{3002}",
            "loc\u{ad}alhost",
            "127.0.0.1\t",
            "127.0.0.1#",
            "user@127.0.0.1",
            "[::1",
            "[::1%25eth0]",
            "[127.0.0.1]",
            "::1",
            "a b",
        ] {
            assert_eq!(
                Host::parse_with_ipv6_in_brackets(text),
                Err(MalformedHost),
                "{text:?}"
            );
        }
    }

    #[test]
    fn metadata_services_are_distinguished_from_other_private_hosts() {
        for (text, expected) in [
            ("169.254.169.254", true),
            ("168.63.129.16", true),
            ("[fd00:ec2::254]", true),
            ("[::ffff:169.254.169.254]", true),
            ("[fe80::a9fe:a9fe]", true),
            ("metadata.google.internal", true),
            ("metadata.goog", true),
            ("metadata", true),
            ("metadata.example.com", false),
            ("registry.internal", false),
            ("10.63.1.2", false),
            ("127.0.0.1", false),
        ] {
            assert_eq!(
                Host::parse_with_ipv6_in_brackets(text)
                    .expect(text)
                    .is_metadata_or_link_local(),
                expected,
                "{text}"
            );
        }
    }

    fn generate_private_ipv4() -> impl Strategy<Value = Ipv4Addr> {
        let ranges: [(u32, u32); 9] = [
            (0x7f00_0000, 24),
            (0x0a00_0000, 24),
            (0xac10_0000, 20),
            (0xc0a8_0000, 16),
            (0xa9fe_0000, 16),
            (0x6440_0000, 22),
            (0x0000_0000, 24),
            (0xa83f_8110, 0),
            (0xe000_0000, 28),
        ];
        (proptest::sample::select(ranges.to_vec()), any::<u32>())
            .prop_map(|((base, bits), random)| Ipv4Addr::from(base | (random & ((1_u64 << bits) - 1) as u32)))
    }

    /// Returns the spellings of an address that one program or another reads as this address.
    fn spellings_of_ipv4(address: Ipv4Addr) -> Vec<String> {
        let number = u32::from(address);
        let [a, b, c, d] = address.octets();
        let mapped = address.to_ipv6_mapped();
        let [.., high, low] = mapped.segments();
        let encode = |text: &str| {
            text.bytes()
                .map(|byte| format!("%{byte:02x}"))
                .collect::<String>()
        };
        let dotted = address.to_string();
        vec![
            dotted.clone(),
            format!("{dotted}."),
            format!("{number}"),
            format!("0x{number:x}"),
            format!("0X{number:X}"),
            format!("0{number:o}"),
            format!("{a}.{}", number & 0x00ff_ffff),
            format!("{a}.{b}.{}", number & 0xffff),
            format!("0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}"),
            format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
            format!("00{a}.{b}.{c}.{d}"),
            format!("{a}.{b}.{c}.0x{d:02X}"),
            format!("[{mapped}]"),
            format!("[::ffff:{high:x}:{low:x}]"),
            format!("[0:0:0:0:0:FFFF:{dotted}]"),
            format!("[::{dotted}]"),
            format!("[64:ff9b::{dotted}]"),
            format!("[2002:{high:x}:{low:x}::1]"),
            format!("[{mapped}%25lo]"),
            encode(&dotted),
            dotted.replace('.', "\u{3002}"),
            dotted.replace('.', "%2e"),
        ]
    }

    proptest! {
        #[test]
        fn no_spelling_of_a_private_address_is_public(address in generate_private_ipv4()) {
            for spelling in spellings_of_ipv4(address) {
                prop_assert!(is_private_or_malformed(&spelling), "{spelling}");
            }
        }

        #[test]
        fn no_ipv4_spelling_of_an_address_changes_whether_it_is_private(number in any::<u32>()) {
            let address = Ipv4Addr::from(number);
            for spelling in spellings_of_ipv4(address) {
                if let Ok(host) = Host::parse_with_ipv6_in_brackets(&spelling) {
                    let expected = private_v4_kind(address).is_some();
                    // IPv6 forms of public addresses may be private for another reason.
                    prop_assert!(host.private_kind().is_some() == expected || matches!(host, Host::V6(_)), "{spelling}");
                    prop_assert!(!expected || host.private_kind().is_some(), "{spelling}");
                }
            }
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,80}") {
            let _ = Host::parse_with_ipv6_in_brackets(&text).map(|host| (host.private_kind(), host.is_metadata_or_link_local(), host.to_string()));
        }

        #[test]
        fn ipv6_addresses_outside_of_global_unicast_are_private(address in any::<u128>()) {
            let address = Ipv6Addr::from(address);
            let is_global = (0x2000..=0x3fff).contains(&address.segments()[0]);
            prop_assert!(is_global || is_private_or_malformed(&format!("[{address}]")), "{address}");
        }
    }
}
