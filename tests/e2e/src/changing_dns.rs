//! A DNS server whose answers change, so that a name that was checked is not the address that is reached.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use anyhow::Result;
use tokio::task::JoinHandle;

use crate::network_namespace::NetworkNamespace;

/// The addresses that a name has, one after the other.
#[derive(Debug, Clone, Copy)]
pub struct ChangingName {
    /// The name, in lower case.
    pub name: &'static str,
    /// The address in the first answers.
    pub first: Ipv4Addr,
    /// The number of answers with the first address.
    pub answers: usize,
    /// The address in all further answers.
    pub then: Ipv4Addr,
}

/// A DNS server whose answers change. It stops on drop.
#[derive(Debug)]
pub struct ChangingDns {
    serving: JoinHandle<()>,
}

impl ChangingDns {
    /// Starts a server on port 53 of this loopback address of a namespace. Queries for names that it does not have
    /// get SERVFAIL, so that clients ask their next server.
    pub fn start_in_namespace(
        namespace: &NetworkNamespace,
        address: Ipv4Addr,
        names: &[ChangingName],
    ) -> Result<Self> {
        let socket = namespace.run_inside(|| Ok(UdpSocket::bind((IpAddr::from(address), 53))?))?;
        socket.set_nonblocking(true)?;
        let socket = tokio::net::UdpSocket::from_std(socket)?;
        let mut names = names.to_vec();
        let serving = tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
                let reply = buffer
                    .get(..length)
                    .and_then(|query| answer_dns_query(query, &mut names));
                if let Some(reply) = reply {
                    socket.send_to(&reply, client).await.ok();
                }
            }
        });
        Ok(Self { serving })
    }
}

impl Drop for ChangingDns {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// The type of a query for an IPv4 address (RFC 1035).
const A_RECORD_TYPE: u16 = 1;

/// Returns the reply to a query (RFC 1035), or `None` if it is malformed. The answer's time to live is 0.
fn answer_dns_query(query: &[u8], names: &mut [ChangingName]) -> Option<Vec<u8>> {
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    let question = query.get(12..at + 4)?;
    let known = names.iter_mut().find(|known| known.name == labels.join("."));
    let code: u8 = if known.is_some() { 0 } else { 2 };
    let answer = known
        .filter(|_| kind == A_RECORD_TYPE)
        .map(ChangingName::next_address);
    let mut reply = query.get(..2)?.to_vec();
    // A response to a recursive query, with one question.
    reply.extend([0x81, 0x80 | code, 0, 1, 0, u8::from(answer.is_some()), 0, 0, 0, 0]);
    reply.extend(question);
    if let Some(address) = answer {
        // The name is at offset 12; type A, class IN, time to live 0, four bytes.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        reply.extend(address.octets());
    }
    Some(reply)
}

impl ChangingName {
    /// Returns the address for the name's next answer.
    fn next_address(&mut self) -> Ipv4Addr {
        match self.answers.checked_sub(1) {
            Some(rest) => {
                self.answers = rest;
                self.first
            }
            None => self.then,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns_query(name: &str, kind: u8) -> Vec<u8> {
        let mut query = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(label.len() as u8);
            query.extend(label.bytes());
        }
        query.extend([0, 0, kind, 0, 1]);
        query
    }

    #[test]
    fn the_address_of_a_known_name_changes_and_other_names_fail() {
        let (first, then) = (Ipv4Addr::new(1, 2, 3, 4), Ipv4Addr::new(5, 6, 7, 8));
        let mut names = [ChangingName {
            name: "a.test",
            first,
            answers: 1,
            then,
        }];
        let reply = answer_dns_query(&dns_query("A.test", 1), &mut names).unwrap();
        assert_eq!((&reply[..2], reply[3] & 15, reply[7]), (&[7, 9][..], 0, 1));
        assert_eq!(reply[reply.len() - 4..], first.octets());
        let reply = answer_dns_query(&dns_query("a.test", 1), &mut names).unwrap();
        assert_eq!(reply[reply.len() - 4..], then.octets());
        let other = answer_dns_query(&dns_query("b.test", 1), &mut names).unwrap();
        assert_eq!((other[3] & 15, other[7]), (2, 0));
        assert_eq!(answer_dns_query(&[0; 12], &mut names), None);
    }
}
