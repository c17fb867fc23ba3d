//! Tests that stacks have separate credentials, that one goes on when another is stopped, and that only this machine
//! reaches them.

use std::net::{IpAddr, UdpSocket};

use reqwest::StatusCode;
use slipway_stack::{LauncherError, Stack};

use crate::{machine::stacks_listening_sockets_in_machines_network, remove_stack, start_fresh_bare_stack};

#[tokio::test]
async fn stacks_have_separate_credentials_and_only_this_machine_reaches_them() -> Result<(), LauncherError> {
    let (first, second) = (
        start_fresh_bare_stack("test-first").await?,
        start_fresh_bare_stack("test-second").await?,
    );
    assert_ne!(first.gateway.url, second.gateway.url);
    assert_ne!(first.gateway.password, second.gateway.password);
    assert_ne!(first.registry.host, second.registry.host);
    for (stack, other) in [(&first, &second), (&second, &first)] {
        assert_eq!(
            status_of_gateway_login(stack, &stack.gateway.password).await,
            StatusCode::OK
        );
        assert_eq!(
            status_of_gateway_login(stack, &other.gateway.password).await,
            StatusCode::UNAUTHORIZED
        );
        assert_eq!(
            status_of_registry_login(stack, &stack.registry.password).await,
            StatusCode::OK
        );
        assert_eq!(
            status_of_registry_login(stack, &other.registry.password).await,
            StatusCode::UNAUTHORIZED
        );
        assert_eq!(
            stacks_listening_sockets_in_machines_network(stack),
            Vec::<String>::new()
        );
        // From another address of this machine, like a packet from another machine.
        if let Some(address) = own_outside_address() {
            let client = reqwest::Client::builder().no_proxy().local_address(address);
            let client = client
                .connect_timeout(std::time::Duration::from_millis(500))
                .build()
                .unwrap();
            let blocked = client.get(&stack.gateway.url).send().await.unwrap_err();
            assert!(blocked.is_connect(), "{blocked:?}");
        }
    }
    first.down().await?;
    assert_eq!(
        status_of_gateway_login(&second, &second.gateway.password).await,
        StatusCode::OK,
        "stopping one stack leaves the other running"
    );
    remove_stack("test-first").await?;
    remove_stack("test-second").await
}

/// Returns the status of the gateway's answer to the administrator's user name with this password.
async fn status_of_gateway_login(stack: &Stack, password: &str) -> StatusCode {
    get_status_with_basic_auth(
        &format!("{}/system/functions", stack.gateway.url),
        &stack.gateway.user,
        password,
    )
    .await
}

/// Returns the status of the registry's answer to the stack's user name with this password.
async fn status_of_registry_login(stack: &Stack, password: &str) -> StatusCode {
    get_status_with_basic_auth(
        &format!("http://{}/v2/_catalog", stack.registry.host),
        &stack.registry.user,
        password,
    )
    .await
}

async fn get_status_with_basic_auth(url: &str, user: &str, password: &str) -> StatusCode {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    client
        .get(url)
        .basic_auth(user, Some(password))
        .send()
        .await
        .unwrap()
        .status()
}

/// Returns the address that this machine uses to reach other machines, or `None` if it has no route.
pub(crate) fn own_outside_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Connecting a UDP socket sends nothing. The address is reserved for documentation (RFC 5737).
    socket.connect("203.0.113.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}
