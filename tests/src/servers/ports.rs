//! Free ports below the range that the kernel hands out for connections, so that nobody gets them by accident between
//! the check and the server's own bind. Two test processes can still choose the same: starters try again.

use std::net::{Ipv4Addr, TcpListener};

use rand::RngExt;

/// `SeaweedFS` takes each port and the one this much higher.
const TWIN: u16 = 10_000;
/// Both a port and its twin stay below 32,768, where Linux begins to hand out ports by itself.
const RANGE: std::ops::Range<u16> = 12_000..22_000;

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// `count` different ports, free a moment ago, as are their twins.
pub(super) fn free_with_twins(count: usize) -> Vec<u16> {
    let mut ports = Vec::with_capacity(count);
    let mut dice = rand::rng();
    while ports.len() < count {
        let port = dice.random_range(RANGE);
        if !ports.contains(&port) && is_free(port) && is_free(port + TWIN) {
            ports.push(port);
        }
    }
    ports
}

/// A port that was free a moment ago.
pub(super) fn free() -> u16 {
    free_with_twins(1)[0]
}
